"""A layer's variables, and the estimators that move its statistics in training.

``moving_mean`` starts at 0 and ``moving_variance`` at 1. They are variables like any other to a Saver, are not trainable,
and are listed by `moving_statistics`. An estimator is made with the layer, together with the variables that it needs
besides, and gives a function that takes a batch's mean and variance and returns the ops that move the statistics:
`exponential_average`, `cumulative_average`, `renorm_average`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from bn_graph.graphs.notes import MOVING_STATISTICS
from bn_graph.tf1 import may_run_in_turns, tf

__all__ = [
    "MOVING_STATISTICS",
    "LayerVariables",
    "RenormStatistics",
    "create",
    "create_renorm",
    "cumulative_average",
    "decays_in_a_run",
    "exponential_average",
    "is_ref_variable",
    "moving_statistics",
    "op_name",
    "read_after",
    "register",
    "renorm_average",
    "run_when",
]

_CONVENTIONAL_NAMES = ("moving_mean", "moving_variance")

Decay: TypeAlias = float | tf.Tensor | Callable[[], float | tf.Tensor]
"""What the layers take as a decay: a number in [0, 1], a scalar tensor of it, or a function that returns either."""

Initializer = Callable[..., tf.Tensor]
Regularizer = Callable[[tf.Tensor], tf.Tensor]
Updates = Callable[[tf.Tensor, tf.Tensor], list[tf.Operation]]
"""From a batch's mean and variance, of the variables' shape, to ``[the op for the mean, the op for the variance]``."""


class LayerVariables(NamedTuple):
    """The variables of one layer, each of shape ``[channels]`` unless several axes are kept; ``gamma`` and ``beta`` are
    None where it has none.

    In a list of a graph's layers, a gamma or beta that is partitioned is the tuple of its parts, in order.
    """

    gamma: tf.Variable | None
    beta: tf.Variable | None
    moving_mean: tf.Variable
    moving_variance: tf.Variable

    @property
    def statistics(self) -> tuple[tf.Variable, tf.Variable]:
        """The moving ones."""
        return self.moving_mean, self.moving_variance


class RenormStatistics(NamedTuple):
    """What renormalization corrects toward (`mean`, `deviation`), and the deviation that inference's variance comes from."""

    mean: tf.Variable
    deviation: tf.Variable
    inference_deviation: tf.Variable


def create(
    shape: Sequence[int],
    dtype: tf.DType,
    parameters: Mapping[str, bool] | None = None,
    initializers: Sequence[Initializer | None] = (None, None, None, None),
    regularizers: Sequence[Regularizer | None] = (None, None),
    trainable: bool = True,
    collections: Sequence[Sequence[str] | None] = (None, None, None, None),
) -> LayerVariables:
    """Makes (or, in a reusing scope, finds) a layer's variables in the current variable scope.

    Args:
        shape: of all variables, ``[channels]``; with several kept axes as `transforms.parameter_shape` has it.
        dtype: float32 or float64.
        parameters: whether there is a ``gamma``, a ``beta``, in the order of their creation; neither if None.
        initializers: of gamma, beta, mean and variance; ones, zeros, zeros and ones where None.
        regularizers: of gamma and beta.
        trainable: whether gamma and beta are. The statistics never are.
        collections: those that gamma, beta, mean and variance join; ``GLOBAL_VARIABLES`` where None.

    Returns:
        `LayerVariables`. The two statistics are listed in `MOVING_STATISTICS` too.
    """
    ones, zeros = tf.ones_initializer(), tf.zeros_initializer()
    defaults = LayerVariables(ones, zeros, zeros, ones)
    initializers = LayerVariables(*(given or default for given, default in zip(initializers, defaults, strict=True)))
    collections = LayerVariables(*collections)

    def parameter(name: str) -> tf.Variable:
        initializer, keys = getattr(initializers, name), getattr(collections, name)
        regularizer = dict(zip(("gamma", "beta"), regularizers, strict=True))[name]
        return tf.get_variable(name, shape, dtype, initializer, regularizer, trainable, collections=keys)

    made = {name: parameter(name) for name, wanted in (parameters or {}).items() if wanted}
    return LayerVariables(
        made.get("gamma"),
        made.get("beta"),
        _statistic("moving_mean", shape, dtype, initializers.moving_mean, collections.moving_mean),
        _statistic("moving_variance", shape, dtype, initializers.moving_variance, collections.moving_variance),
    )


def create_renorm(shape: Sequence[int], dtype: tf.DType) -> RenormStatistics:
    """Makes ``renorm_mean`` (0), ``renorm_stddev`` (1) and ``moving_stddev`` (1), named as tf.layers names them."""
    return RenormStatistics(
        _statistic("renorm_mean", shape, dtype, tf.zeros_initializer()),
        _statistic("renorm_stddev", shape, dtype, tf.ones_initializer()),
        _statistic("moving_stddev", shape, dtype, tf.ones_initializer()),
    )


def _statistic(
    name: str, shape: Sequence[int], dtype: tf.DType, initializer: Initializer, collections: Sequence[str] | None = None
) -> tf.Variable:
    # A scope's partitioner is for weights; a statistic in parts can be neither assigned nor read as one.
    with tf.variable_scope(tf.get_variable_scope(), auxiliary_name_scope=False) as scope:
        scope.set_partitioner(None)
        variable = tf.get_variable(name, shape, dtype, initializer, trainable=False, collections=collections)
    if not hasattr(variable, "assign_sub"):
        raise ValueError(
            f"{name} must be a variable, for the layer updates it; the variable scope's custom getter returned {variable}. "
            "Let the getter return what it is given, getter(*args, **kwargs), for what is not trainable."
        )
    register(variable)
    return variable


def register(variable: tf.Variable) -> None:
    """Lists `variable` in `MOVING_STATISTICS` of its graph, once, so that `moving_statistics` finds it."""
    # Under wrap_function a variable is outside of the graph that is being built, and in no graph at all.
    graph = tf.get_default_graph() if is_eager(variable) else variable.graph
    if op_name(variable) not in _registered(graph):
        graph.add_to_collection(MOVING_STATISTICS, op_name(variable))


def op_name(variable: tf.Variable) -> str:
    """The variable's name without its port, also of one that has no op in the graph or no single one (parts)."""
    return variable.name.partition(":")[0]


def is_eager(variable: tf.Variable) -> bool:
    """Whether `variable` holds its value outside of every graph, as those made under ``wrap_function`` do."""
    return not is_ref_variable(variable) and not hasattr(variable.handle, "graph")


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
        if op_name(variable) in registered or op_name(variable).split("/")[-1] in _CONVENTIONAL_NAMES
    ]


def exponential_average(
    variables: LayerVariables, decay: float | tf.Tensor, *, zero_debias: Sequence[bool] = (False, False)
) -> Updates:
    """The usual estimator: each update leaves old·decay + batch·(1 − decay).

    With a constant batch it converges to that batch's statistics, and n updates after the start, decayⁿ of the start is
    left in them. `zero_debias` subtracts that share: the statistic is then Σ decay^(n−i)·batch_i / Σ decay^(n−i).

    Args:
        variables: the layer's, whose statistics are to move.
        decay: weight of the old value, in [0, 1]; a tensor is checked at each update.
        zero_debias: for mean and variance. Makes ``<name>/biased`` (0, ``[channels]``) and ``<name>/local_step`` (0,
            scalar), as contrib names them.

    Returns:
        The update function. No gradient flows through its ops.
    """
    statistics = (variables.moving_mean, variables.moving_variance)
    debiasing = [
        _create_debiasing(name, statistic) if debias else None
        for name, statistic, debias in zip(_CONVENTIONAL_NAMES, statistics, zero_debias, strict=True)
    ]

    def updates(mean: tf.Tensor, variance: tf.Tensor) -> list[tf.Operation]:
        (now,) = decays_in_a_run(mean.dtype, decay=decay)
        return [
            _debiased_step(statistic, *extra, batch, now) if extra else _step_toward(statistic, batch, 1.0 - now)
            for statistic, extra, batch in zip(statistics, debiasing, (mean, variance), strict=True)
        ]

    return updates


def _create_debiasing(name: str, statistic: tf.Variable) -> tuple[tf.Variable, tf.Variable]:
    dtype = statistic.dtype.base_dtype
    biased = _statistic(f"{name}/biased", statistic.shape, dtype, tf.zeros_initializer())
    return biased, _statistic(f"{name}/local_step", [], dtype, tf.zeros_initializer())


def _step_toward(variable: tf.Variable, target: tf.Tensor, share: float | tf.Tensor) -> tf.Operation:
    # tf.layers' names: of a ref variable the op is the scope itself, of a resource variable it lies in it.
    with tf.name_scope("AssignMovingAvg") as scope:
        step = (read_after(target, variable) - tf.stop_gradient(target)) * share
        return tf.assign_sub(variable, step, name=scope).op


def _debiased_step(
    variable: tf.Variable, biased: tf.Variable, count: tf.Variable, batch: tf.Tensor, decay: float | tf.Tensor
) -> tf.Operation:
    with tf.name_scope("AssignMovingAvg") as scope:
        new_biased = read_after(batch, biased) * decay + tf.stop_gradient(batch) * (1.0 - decay)
        new_count = read_after(batch, count) + 1.0
        # The batches' weights sum to 1 − decayⁿ; with decay 1 they sum to 0: nothing was learned.
        total = 1.0 - tf.pow(tf.convert_to_tensor(decay, new_count.dtype), new_count)
        debiased = tf.math.divide_no_nan(new_biased, total)
        saved = [tf.assign(biased, new_biased).op, tf.assign(count, new_count).op]
        with tf.control_dependencies(saved):
            return tf.assign(variable, debiased, name=scope).op


def cumulative_average(variables: LayerVariables) -> Updates:
    """The simple average of all batches' statistics, each counted alike: PyTorch's ``momentum=None``.

    It converges to the mean over the whole run, early weights included, so it suits weights that no longer move.
    Makes ``moving_count`` (0, scalar).
    """
    statistics = (variables.moving_mean, variables.moving_variance)
    count = _statistic("moving_count", [], variables.moving_mean.dtype.base_dtype, tf.zeros_initializer())

    def updates(mean: tf.Tensor, variance: tf.Tensor) -> list[tf.Operation]:
        share = 1.0 / (read_after(mean, count) + 1.0)
        steps = [
            _step_toward(statistic, batch, share) for statistic, batch in zip(statistics, (mean, variance), strict=True)
        ]
        with tf.control_dependencies(steps):
            counted = tf.assign_add(count, 1.0).op
        # If a train op runs only one of the two, the batch must still be counted, and once.
        return [tf.group(step, counted, name="AssignMovingAvg") for step in steps]

    return updates


def renorm_average(
    variables: LayerVariables,
    renorm: RenormStatistics,
    decay: float | tf.Tensor,
    renorm_decay: float | tf.Tensor,
    epsilon: float,
) -> Updates:
    """The estimator of batch renormalization, as tf.layers has it: deviations √(σ²+ε) are averaged, not variances.

    Args:
        variables: the layer's; the moving variance becomes the square of ``moving_stddev``, less `epsilon`.
        renorm: ``renorm_mean`` and ``renorm_stddev`` move with `renorm_decay`, ``moving_stddev`` with `decay`.
        decay, renorm_decay: weights of the old values.
        epsilon: the layer's.

    Returns:
        The update function; it takes the batch's biased variance.
    """

    def updates(mean: tf.Tensor, variance: tf.Tensor) -> list[tf.Operation]:
        now, renorm_now = decays_in_a_run(mean.dtype, decay=decay, renorm_decay=renorm_decay)
        deviation = tf.stop_gradient(tf.sqrt(variance + epsilon))
        new_deviation = read_after(deviation, renorm.inference_deviation) * now + deviation * (1.0 - now)
        new_variance = tf.nn.relu(tf.square(new_deviation) - epsilon)
        return [
            tf.group(
                _step_toward(renorm.mean, mean, 1.0 - renorm_now),
                _step_toward(variables.moving_mean, mean, 1.0 - now),
            ),
            tf.group(
                _step_toward(renorm.deviation, deviation, 1.0 - renorm_now),
                tf.assign(renorm.inference_deviation, new_deviation),
                tf.assign(variables.moving_variance, new_variance, name="AssignMovingAvg"),
            ),
        ]

    return updates


def decays_in_a_run(dtype: tf.DType, **decays: float | tf.Tensor) -> list[float | tf.Tensor]:
    """The decays in their order; if any is a tensor, all in `dtype`, behind a check that each is in [0, 1]."""
    if all(isinstance(decay, float | int) for decay in decays.values()):
        return list(decays.values())
    tensors = {  # tf.cast would round a number to float32 first
        name: tf.convert_to_tensor(decay, dtype) if isinstance(decay, float | int) else tf.cast(decay, dtype)
        for name, decay in decays.items()
    }
    checks = [
        tf.debugging.Assert(
            tf.logical_and(decay >= 0.0, decay <= 1.0),
            [f"{name} is the weight of the old value and must be from 0 to 1, got", decay],
        )
        for name, decay in tensors.items()
    ]
    with tf.control_dependencies(checks):
        return [tf.identity(decay) for decay in tensors.values()]


def read_after(batch: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
    """The variable's value; in a loop, once `batch` is there.

    In a loop a batch that depends on the turn before comes after that turn's assigns; a read that waits for nothing may
    come before them. Elsewhere a read has nothing to wait for.
    """
    if not may_run_in_turns(tf.get_default_graph()):
        return variable.read_value()
    with tf.control_dependencies([tf.identity(batch)]):  # a function's own argument can't be a control input
        return variable.read_value()


def is_ref_variable(variable: tf.Variable) -> bool:
    """Whether `variable` is of TF1's original kind (``use_resource=False``), whose dtype is a reference."""
    return variable.dtype != variable.dtype.base_dtype


def run_when(
    flag: bool | tf.Tensor, make_ops: Callable[[], list[tf.Operation]], variables: Sequence[tf.Variable]
) -> list[tf.Operation]:
    """Ops that run what `make_ops` makes if `flag` is True, and touch nothing if it is False.

    Args:
        flag: Python bool or scalar bool tensor.
        make_ops: builds the two ops of an `Updates` inside the branch, so that they belong to it: an assign made
            *outside* a ``tf.cond`` and named as a control dependency inside it runs whichever branch is taken.
        variables: those that the ops assign.

    Returns:
        Two ops to depend on, for the two that `make_ops` returns; none for the Python bool False.
    """
    if isinstance(flag, bool):
        return make_ops() if flag else []
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
