"""Values of variables: assigned and read in a session, partitioned ones as a whole, and checked against a checkpoint's."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from bn_graph.checkpoints.files import CheckpointError
from bn_graph.graphs.errors import one_line
from bn_graph.tf1 import slice_info, tf

__all__ = [
    "WholeVariable",
    "assign_values",
    "check_fit",
    "open_checkpoint",
    "parts_of",
    "read_values",
    "whole_name",
    "whole_shape",
    "whole_variables",
]

WholeVariable: TypeAlias = tf.Variable | tuple[tf.Variable, ...]
"""A variable; a partitioned one is the tuple of its parts, in order. (Only such tuples are taken apart or put together:
a part by itself is a variable like any other.)"""


def parts_of(variable: WholeVariable | None) -> list[tf.Variable]:
    """The variables that a variable consists of: itself, its parts if it is partitioned, none of None."""
    if variable is None:
        return []
    return list(variable) if _is_partitioned(variable) else [variable]


def _is_partitioned(variable: WholeVariable) -> bool:
    return hasattr(variable, "__len__")  # a tuple, or what tf.get_variable returns, which is no tf.Variable


def whole_variables(variables: Iterable[WholeVariable]) -> dict[str, WholeVariable]:
    """The variables by their names, in order; those that are parts of one together, by the name of the whole.

    That is how ``tf.train.Saver`` names them in a checkpoint, which holds partitioned variables as whole tensors.
    """
    groups: dict[str, list[tf.Variable]] = {}
    for part in (part for variable in variables for part in parts_of(variable)):
        groups.setdefault(whole_name(part), []).append(part)
    return {name: group[0] if slice_info(group[0]) is None else tuple(group) for name, group in groups.items()}


def whole_name(variable: WholeVariable) -> str:
    """The name of a variable's op; of a partitioned variable or a part of one, the name of the whole."""
    first = parts_of(variable)[0]
    info = slice_info(first)
    return first.op.name if info is None else info[0]


def whole_shape(variable: WholeVariable) -> tf.TensorShape:
    """The shape of a variable, or of all of a partitioned one."""
    return tf.TensorShape(slice_info(parts_of(variable)[0])[1]) if _is_partitioned(variable) else variable.shape


def assign_values(session: tf.Session, values: Iterable[tuple[WholeVariable, ArrayLike]]) -> None:
    """Assigns `values` to variables. Adds nothing to the graph, which may be finalized.

    A variable is assigned by its initializer, with the initial value fed, as ``Variable.load`` does. Variables made from
    one initial tensor are assigned in as many runs, for a run feeds that tensor once.

    Args:
        session: holds the variables; they need not be initialized.
        values: variables and what they shall hold, of their shapes; of a partitioned variable, the whole.

    Raises:
        ValueError: a value's shape differs, or a variable has no initializer that assigns a tensor.

    Example:
        >>> from bn_graph.checkpoints.values import assign_values
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     w = tf.get_variable("w", [2])
        ...     assign_values(session, [(w, [1.0, 2.0])])
        ...     session.run(w)
        array([1., 2.], dtype=float32)
    """
    runs: list[tuple[list, dict]] = []
    used = Counter()
    for part, block in (pair for variable, value in values for pair in _cut(variable, value)):
        assign = _initializing_assign(part)
        initial = assign.inputs[1]
        if used[initial.ref()] == len(runs):
            runs.append(([], {}))
        ops, feeds = runs[used[initial.ref()]]
        ops.append(assign)
        feeds[initial] = block
        used[initial.ref()] += 1
    for ops, feeds in runs:
        session.run(ops, feeds)


def _cut(variable: WholeVariable, value: ArrayLike) -> Iterator[tuple[tf.Variable, ArrayLike]]:
    """The parts of a variable, each with its part of the value."""
    if not _is_partitioned(variable):
        yield variable, value
        return
    if np.shape(value) != tuple(whole_shape(variable)):
        raise ValueError(
            f"A value for {whole_name(variable)} has shape {np.shape(value)}, not {whole_shape(variable)}."
        )
    for part in parts_of(variable):
        yield part, np.asarray(value)[_place(part)]


def _place(part: tf.Variable) -> tuple[slice, ...]:
    """Where in the whole a part lies."""
    _, _, offset = slice_info(part)
    return tuple(slice(start, start + size) for start, size in zip(offset, part.shape.as_list(), strict=True))


def _initializing_assign(variable: tf.Variable) -> tf.Operation:
    # After tf.train.init_from_checkpoint the initializer of a ref variable is the assign's output instead of its op.
    initializer = variable.initializer
    assign = getattr(initializer, "op", initializer)
    if assign is None or len(assign.inputs) < 2:
        raise ValueError(f"The variable {variable.name} has no assign of an initial value that can be fed.")
    return assign


def read_values(session: tf.Session, variables: Sequence[WholeVariable]) -> list[np.ndarray]:
    """The values of variables, read in one run; of a partitioned variable, the whole. Adds nothing to the graph."""
    held = session.run([parts_of(variable) for variable in variables])
    return [_joined(variable, values) for variable, values in zip(variables, held, strict=True)]


def _joined(variable: WholeVariable, values: Sequence[np.ndarray]) -> np.ndarray:
    if not _is_partitioned(variable):
        return values[0]
    whole = np.empty(whole_shape(variable).as_list(), values[0].dtype)
    for part, value in zip(parts_of(variable), values, strict=True):
        whole[_place(part)] = value
    return whole


def open_checkpoint(prefix: str):
    """TensorFlow's reader of a checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint, or it can't be read.
    """
    try:
        return tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint {prefix} can't be read: {one_line(error)}") from error


def check_fit(prefix: str, variable: WholeVariable, name: str, shape: Sequence[int] | None, dtype: tf.DType) -> None:
    """Raises if a checkpoint's tensor can't be the value of `variable`.

    Args:
        prefix: of the checkpoint.
        variable: of the graph.
        name: the tensor's, in the checkpoint.
        shape: the tensor's; None if the variable is only a slice of it.
        dtype: the tensor's.

    Raises:
        CheckpointError: shape or dtype differ.
    """
    held, expected = f"The checkpoint {prefix} holds {name}", parts_of(variable)[0].dtype.base_dtype
    if shape is not None and not whole_shape(variable).is_compatible_with(shape):
        raise CheckpointError(f"{held} with shape {list(shape)}; the graph's has {whole_shape(variable).as_list()}.")
    if dtype != expected:
        raise CheckpointError(f"{held} as {dtype.name}; the graph's is {expected.name}.")
