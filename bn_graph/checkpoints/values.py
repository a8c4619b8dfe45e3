"""Values of variables: assigned in a session, and whether a stored one fits."""

from collections import Counter
from collections.abc import Iterable, Sequence

from numpy.typing import ArrayLike

from bn_graph.checkpoints.files import CheckpointError
from bn_graph.tf1 import tf

__all__ = ["assign_values", "check_fit"]


def assign_values(session: tf.Session, values: Iterable[tuple[tf.Variable, ArrayLike]]) -> None:
    """Assigns `values` to variables. Adds nothing to the graph, which may be finalized.

    A variable is assigned by its initializer, with the initial value fed, as ``Variable.load`` does. Variables made from
    one initial tensor are assigned in as many runs, for a run feeds that tensor once.

    Args:
        session: holds the variables; they need not be initialized.
        values: variables and what they shall hold, of their shapes.

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
    for variable, value in values:
        assign = _initializing_assign(variable)
        initial = assign.inputs[1]
        if used[initial.ref()] == len(runs):
            runs.append(([], {}))
        ops, feeds = runs[used[initial.ref()]]
        ops.append(assign)
        feeds[initial] = value
        used[initial.ref()] += 1
    for ops, feeds in runs:
        session.run(ops, feeds)


def _initializing_assign(variable: tf.Variable) -> tf.Operation:
    # After tf.train.init_from_checkpoint the initializer of a ref variable is the assign's output instead of its op.
    initializer = variable.initializer
    assign = getattr(initializer, "op", initializer)
    if assign is None or len(assign.inputs) < 2:
        raise ValueError(f"The variable {variable.name} has no assign of an initial value that can be fed.")
    return assign


def check_fit(prefix: str, variable: tf.Variable, name: str, shape: Sequence[int] | None, dtype: tf.DType) -> None:
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
    held = f"The checkpoint {prefix} holds {name}"
    if shape is not None and not variable.shape.is_compatible_with(shape):
        raise CheckpointError(f"{held} with shape {list(shape)}; the graph's has {variable.shape.as_list()}.")
    if variable.dtype.base_dtype != dtype:
        raise CheckpointError(f"{held} as {dtype.name}; the graph's is {variable.dtype.base_dtype.name}.")
