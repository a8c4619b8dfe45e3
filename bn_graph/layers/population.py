"""The statistics' variables, and how a training step moves them.

``moving_mean`` starts at 0 and ``moving_variance`` at 1; each training step moves them toward the batch's::

    moving ← moving·decay + batch·(1 − decay)         done as   moving ← moving − (moving − batch)·(1 − decay)

They are variables like any other to a Saver, are not trainable, and are listed by `moving_statistics`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bn_graph.tf1 import tf

__all__ = ["MOVING_STATISTICS", "MovingStatistics", "exponential_update", "moving_statistics", "run_when"]

MOVING_STATISTICS = "bn_graph_moving_statistics"
"""Graph collection of the op names (strings, so that a meta graph can carry them) of every moving statistic."""

_CONVENTIONAL_NAMES = ("moving_mean", "moving_variance")


class MovingStatistics(NamedTuple):
    """The two variables that stand for the population of one layer's inputs."""

    mean: tf.Variable
    variance: tf.Variable


def create(channels: int, dtype: tf.DType) -> MovingStatistics:
    """Makes (or, in a reusing scope, finds) ``moving_mean`` and ``moving_variance`` in the current variable scope.

    Args:
        channels: size of the channel axis; both variables have shape ``[channels]``.
        dtype: float32 or float64.

    Returns:
        `MovingStatistics`. Both join ``GLOBAL_VARIABLES`` and `MOVING_STATISTICS`; neither is trainable.
    """
    mean, variance = (
        tf.get_variable(name, [channels], dtype, initializer, trainable=False)
        for name, initializer in (("moving_mean", tf.zeros_initializer()), ("moving_variance", tf.ones_initializer()))
    )
    for variable in (mean, variance):
        _register(variable)
    return MovingStatistics(mean, variance)


def _register(variable: tf.Variable) -> None:
    if variable.op.name not in _registered(variable.graph):
        variable.graph.add_to_collection(MOVING_STATISTICS, variable.op.name)


def _registered(graph: tf.Graph) -> set[str]:
    # A collection of strings comes back from a meta graph as bytes.
    return {tf.compat.as_str(name) for name in graph.get_collection(MOVING_STATISTICS)}


def moving_statistics(graph: tf.Graph | None = None) -> list[tf.Variable]:
    """The variables of `graph` that are moving statistics of a batch norm layer.

    Args:
        graph: the default graph if None.

    Returns:
        The global variables that this library registered, and those with the conventional names ``moving_mean`` and
        ``moving_variance`` (tf.layers, slim, Keras), in the order of their creation. ``tf.moving_average_variables()``
        lists none of them: that collection is filled by ``ExponentialMovingAverage.apply`` only.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     _ = bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 3]), is_training=True, name="bn1")
        ...     [variable.op.name for variable in bn_graph.moving_statistics(graph)]
        ['bn1/moving_mean', 'bn1/moving_variance']
    """
    graph = graph or tf.get_default_graph()
    registered = _registered(graph)
    return [
        variable
        for variable in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
        if variable.op.name in registered or variable.op.name.split("/")[-1] in _CONVENTIONAL_NAMES
    ]


def exponential_update(
    statistics: MovingStatistics, mean: tf.Tensor, variance: tf.Tensor, decay: float
) -> tf.Operation:
    """The op that moves `statistics` one step toward a batch's `mean` and `variance`.

    Args:
        statistics: the variables.
        mean, variance: shape ``[channels]``, of the variables' dtype.
        decay: weight of the old value, in [0, 1].

    Returns:
        One op; after it ran, each variable holds old·decay + batch·(1 − decay). No gradient flows through it.
    """
    updates = []
    for variable, batch in zip(statistics, (mean, variance), strict=True):
        step = (variable.read_value() - tf.stop_gradient(batch)) * (1.0 - decay)
        updates.append(tf.assign_sub(variable, step).op)
    return tf.group(*updates, name="update_moving_statistics")


def is_ref_variable(variable: tf.Variable) -> bool:
    """Whether `variable` is of TF1's original kind (``use_resource=False``), whose dtype is a reference."""
    return variable.dtype != variable.dtype.base_dtype


def run_when(flag: tf.Tensor, make_op: Callable[[], tf.Operation], variables: Sequence[tf.Variable]) -> tf.Operation:
    """An op that runs what `make_op` makes if `flag` is True, and touches nothing if it is False.

    Args:
        flag: scalar bool tensor.
        make_op: builds the op inside the branch, so that it belongs to the branch: an assign made *outside* a
            ``tf.cond`` and named as a control dependency inside it runs whichever branch is taken.
        variables: those that the op assigns.

    Returns:
        The op to depend on.
    """
    if not any(is_ref_variable(variable) for variable in variables):

        def branch() -> tf.Tensor:
            with tf.control_dependencies([make_op()]):
                return tf.constant(True)

        return tf.cond(flag, branch, lambda: tf.constant(False), name="update_if_training").op
    return _run_when_by_switch(flag, make_op)


def _run_when_by_switch(flag: tf.Tensor, make_op: Callable[[], tf.Operation]) -> tf.Operation:
    # A branch of cond v2 is a function, and a function can't assign a ref variable. The executor's own Switch and
    # Merge (what cond v1 is made of) can gate one, whichever kind of cond the program has chosen.
    with tf.name_scope("update_if_training"):
        if_false, if_true = tf.raw_ops.Switch(data=flag, pred=flag)
        with tf.control_dependencies([tf.identity(if_true, name="training")]):
            update = make_op()
        with tf.control_dependencies([update]):
            updated = tf.identity(if_true, name="updated")
        return tf.raw_ops.Merge(inputs=[if_false, updated]).output.op
