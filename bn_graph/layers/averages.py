"""The statistics' variables, and the estimators that move them in training.

``moving_mean`` starts at 0 and ``moving_variance`` at 1. They are variables like any other to a Saver, are not trainable,
and are listed by `moving_statistics`. An estimator is made with the layer and gives a function that, told a batch's mean
and variance, returns the ops that move the statistics: `exponential_average`, `cumulative_average`, `renorm_average`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bn_graph.tf1 import tf

__all__ = [
    "MOVING_STATISTICS",
    "MovingStatistics",
    "RenormStatistics",
    "create",
    "create_renorm",
    "cumulative_average",
    "exponential_average",
    "is_ref_variable",
    "moving_statistics",
    "register",
    "renorm_average",
    "run_when",
]

MOVING_STATISTICS = "bn_graph_moving_statistics"
"""Graph collection of the op names (strings, so that a meta graph can carry them) of every moving statistic."""

_CONVENTIONAL_NAMES = ("moving_mean", "moving_variance")

Initializer = Callable[..., tf.Tensor]
Updates = Callable[[tf.Tensor, tf.Tensor], list[tf.Operation]]
"""From a batch's mean and variance, shape ``[channels]``, to ``[the op for the mean, the op for the variance]``."""


class MovingStatistics(NamedTuple):
    """The two variables that stand for the population of one layer's inputs, each of shape ``[channels]``."""

    mean: tf.Variable
    variance: tf.Variable


class RenormStatistics(NamedTuple):
    """What renormalization corrects toward (`mean`, `deviation`), and the deviation that inference's variance comes from."""

    mean: tf.Variable
    deviation: tf.Variable
    inference_deviation: tf.Variable


def create(
    channels: int,
    dtype: tf.DType,
    *,
    initializers: Sequence[Initializer | None] = (None, None),
    collections: Sequence[Sequence[str] | None] = (None, None),
) -> MovingStatistics:
    """Makes (or, in a reusing scope, finds) ``moving_mean`` and ``moving_variance`` in the current variable scope.

    Args:
        channels: size of the channel axis; both variables have shape ``[channels]``.
        dtype: float32 or float64.
        initializers: of mean and variance; zeros and ones if None.
        collections: graph collections that mean and variance join; ``GLOBAL_VARIABLES`` if None.

    Returns:
        `MovingStatistics`. Both are listed in `MOVING_STATISTICS` too; neither is trainable.
    """
    defaults = (tf.zeros_initializer(), tf.ones_initializer())
    made = [
        _statistic(name, [channels], dtype, initializer or default, joined)
        for name, initializer, default, joined in zip(
            _CONVENTIONAL_NAMES, initializers, defaults, collections, strict=True
        )
    ]
    return MovingStatistics(*made)


def create_renorm(channels: int, dtype: tf.DType) -> RenormStatistics:
    """Makes ``renorm_mean`` (0), ``renorm_stddev`` (1) and ``moving_stddev`` (1), named as tf.layers names them.

    Args, collections: as in `create`.
    """
    return RenormStatistics(
        _statistic("renorm_mean", [channels], dtype, tf.zeros_initializer()),
        _statistic("renorm_stddev", [channels], dtype, tf.ones_initializer()),
        _statistic("moving_stddev", [channels], dtype, tf.ones_initializer()),
    )


def _statistic(
    name: str, shape: Sequence[int], dtype: tf.DType, initializer: Initializer, collections: Sequence[str] | None = None
) -> tf.Variable:
    # A scope's partitioner is for weights; a statistic in parts could neither be assigned nor be read as one.
    with tf.variable_scope(tf.get_variable_scope(), auxiliary_name_scope=False) as scope:
        scope.set_partitioner(None)
        variable = tf.get_variable(name, shape, dtype, initializer, trainable=False, collections=collections)
    register(variable)
    return variable


def register(variable: tf.Variable) -> None:
    """Lists `variable` in `MOVING_STATISTICS` of its graph, once, so that `moving_statistics` finds it."""
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


def exponential_average(
    statistics: MovingStatistics, decay: float, *, zero_debias: Sequence[bool] = (False, False)
) -> Updates:
    """The usual estimator: each update leaves old·decay + batch·(1 − decay).

    With a constant batch it converges to that batch's statistics, and n updates after the start, decayⁿ of the start is
    left in them. `zero_debias` takes that share out: the statistic is then Σ decay^(n−i)·batch_i / Σ decay^(n−i).

    Args:
        statistics: the variables to move.
        decay: weight of the old value, in [0, 1].
        zero_debias: for mean and variance. Makes ``<name>/biased`` (0, ``[channels]``) and ``<name>/local_step`` (0,
            scalar), as contrib names them, with `create`'s collections.

    Returns:
        The update function. No gradient flows through its ops.
    """
    steps = []
    for variable, name, debias in zip(statistics, _CONVENTIONAL_NAMES, zero_debias, strict=True):
        if not debias:
            steps.append(lambda batch, variable=variable: _step_toward(variable, batch, 1.0 - decay))
            continue
        dtype = variable.dtype.base_dtype
        biased = _statistic(f"{name}/biased", variable.shape, dtype, tf.zeros_initializer())
        count = _statistic(f"{name}/local_step", [], dtype, tf.zeros_initializer())
        steps.append(
            lambda batch, all_three=(variable, biased, count): _debiased_step(*all_three, batch=batch, decay=decay)
        )
    return lambda mean, variance: [step(batch) for step, batch in zip(steps, (mean, variance), strict=True)]


def _step_toward(variable: tf.Variable, target: tf.Tensor, share: float | tf.Tensor) -> tf.Operation:
    # tf.layers' names: of a ref variable the op is the scope itself, of a resource variable it lies in it.
    with tf.name_scope("AssignMovingAvg") as scope:
        step = (variable.read_value() - tf.stop_gradient(target)) * share
        return tf.assign_sub(variable, step, name=scope).op


def _debiased_step(
    variable: tf.Variable, biased: tf.Variable, count: tf.Variable, *, batch: tf.Tensor, decay: float
) -> tf.Operation:
    with tf.name_scope("AssignMovingAvg") as scope:
        new_biased = biased.read_value() * decay + tf.stop_gradient(batch) * (1.0 - decay)
        new_count = count.read_value() + 1.0
        # The weights that the batches have so far sum to 1 − decayⁿ; with decay 1 they sum to 0: nothing was learned.
        total = 1.0 - tf.pow(tf.convert_to_tensor(decay, new_count.dtype), new_count)
        debiased = tf.math.divide_no_nan(new_biased, total)
        saved = [tf.assign(biased, new_biased).op, tf.assign(count, new_count).op]
        with tf.control_dependencies(saved):
            return tf.assign(variable, debiased, name=scope).op


def cumulative_average(statistics: MovingStatistics) -> Updates:
    """The simple average of all batches' statistics, each counted alike: PyTorch's ``momentum=None``.

    It converges to the mean over the whole run, early weights included, so it suits weights that no longer move.

    Args:
        statistics: the variables to move. Makes ``moving_count`` (0, scalar), with `create`'s collections.

    Returns:
        The update function.
    """
    count = _statistic("moving_count", [], statistics.mean.dtype.base_dtype, tf.zeros_initializer())

    def updates(mean: tf.Tensor, variance: tf.Tensor) -> list[tf.Operation]:
        share = 1.0 / (count.read_value() + 1.0)
        steps = [
            _step_toward(variable, batch, share) for variable, batch in zip(statistics, (mean, variance), strict=True)
        ]
        with tf.control_dependencies(steps):
            counted = tf.assign_add(count, 1.0).op
        # Whichever of the two a train op runs, it must count, and once.
        return [tf.group(step, counted, name="AssignMovingAvg") for step in steps]

    return updates


def renorm_average(
    statistics: MovingStatistics, renorm: RenormStatistics, decay: float, renorm_decay: float, epsilon: float
) -> Updates:
    """The estimator of batch renormalization, as tf.layers has it: deviations √(σ²+ε) are averaged, not variances.

    Args:
        statistics: what inference reads. The variance is the square of ``moving_stddev``, less `epsilon`.
        renorm: ``renorm_mean`` and ``renorm_stddev`` move with `renorm_decay`, ``moving_stddev`` with `decay`.
        decay, renorm_decay: weights of the old values.
        epsilon: the layer's.

    Returns:
        The update function; it is told the batch's biased variance.
    """

    def updates(mean: tf.Tensor, variance: tf.Tensor) -> list[tf.Operation]:
        deviation = tf.stop_gradient(tf.sqrt(variance + epsilon))
        new_deviation = renorm.inference_deviation.read_value() * decay + deviation * (1.0 - decay)
        new_variance = tf.nn.relu(tf.square(new_deviation) - epsilon)
        return [
            tf.group(
                _step_toward(renorm.mean, mean, 1.0 - renorm_decay), _step_toward(statistics.mean, mean, 1.0 - decay)
            ),
            tf.group(
                _step_toward(renorm.deviation, deviation, 1.0 - renorm_decay),
                tf.assign(renorm.inference_deviation, new_deviation),
                tf.assign(statistics.variance, new_variance, name="AssignMovingAvg"),
            ),
        ]

    return updates


def is_ref_variable(variable: tf.Variable) -> bool:
    """Whether `variable` is of TF1's original kind (``use_resource=False``), whose dtype is a reference."""
    return variable.dtype != variable.dtype.base_dtype


def run_when(
    flag: tf.Tensor, make_ops: Callable[[], list[tf.Operation]], variables: Sequence[tf.Variable]
) -> list[tf.Operation]:
    """Ops that run what `make_ops` makes if `flag` is True, and touch nothing if it is False.

    Args:
        flag: scalar bool tensor.
        make_ops: builds the two ops of an `Updates` inside the branch, so that they belong to it: an assign made
            *outside* a ``tf.cond`` and named as a control dependency inside it runs whichever branch is taken.
        variables: those that the ops assign.

    Returns:
        Two ops to depend on, for the two that `make_ops` returns.
    """
    with tf.name_scope("update_if_training"):
        if any(is_ref_variable(variable) for variable in variables):
            return _run_when_by_switch(flag, make_ops)

        def branch() -> list[tf.Tensor]:
            return [_after(op, tf.constant(True)) for op in make_ops()]

        both_done = tf.cond(flag, branch, lambda: [tf.constant(False), tf.constant(False)])
        return [tf.identity(done).op for done in both_done]


def _after(op: tf.Operation, value: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([op]):
        return tf.identity(value)


def _run_when_by_switch(flag: tf.Tensor, make_ops: Callable[[], list[tf.Operation]]) -> list[tf.Operation]:
    # A branch of cond v2 is a function, and a function can't assign a ref variable. The executor's own Switch and
    # Merge (what cond v1 is made of) can gate one, whichever kind of cond the program has chosen.
    if_false, if_true = tf.raw_ops.Switch(data=flag, pred=flag)
    with tf.control_dependencies([tf.identity(if_true, name="training")]):
        ops = make_ops()
    return [tf.raw_ops.Merge(inputs=[if_false, _after(op, if_true)]).output.op for op in ops]
