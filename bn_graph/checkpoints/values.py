"""Values of variables, assigned in a session."""

from collections import Counter
from collections.abc import Iterable

from numpy.typing import ArrayLike

from bn_graph.tf1 import tf

__all__ = ["assign_values"]


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
