"""``batch_norm`` with the signature and defaults of ``tf.contrib.layers.batch_norm``, on today's TensorFlow.

Code that was written for contrib (or for ``slim.batch_norm``, which fails on TensorFlow 2.21) changes its import::

    from bn_graph.layers import slim  # was: slim = tf.contrib.slim
    net = slim.batch_norm(net, is_training=is_training)

Two defaults are contrib's own against this project's rules, since compatibility is what this form is for: `is_training`
is True unless you set it, and a training batch of one value per channel is not refused: its output is beta.
`bn_graph.batch_norm_wrapper` has neither.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from bn_graph.layers import arguments, averages, fused_kernel, moments, transforms
from bn_graph.layers.averages import LayerVariables
from bn_graph.layers.batch_norm import attach_updates, record_call
from bn_graph.layers.transforms import Normalized
from bn_graph.tf1 import tf

__all__ = ["batch_norm"]

_CHANNEL_AXIS = {"NHWC": -1, "NCHW": 1}

Collections = str | Sequence[str] | None
Adjustment = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def batch_norm(
    inputs: tf.Tensor,
    decay: averages.Decay = 0.999,
    center: bool = True,
    scale: bool = False,
    epsilon: float = 0.001,
    activation_fn: Callable[[tf.Tensor], tf.Tensor] | None = None,
    param_initializers: Mapping[str, averages.Initializer] | None = None,
    param_regularizers: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] | None = None,
    updates_collections: Collections = tf.GraphKeys.UPDATE_OPS,
    is_training: bool | tf.Tensor = True,
    reuse: bool | None = None,
    variables_collections: Collections | Mapping[str, Collections] = None,
    outputs_collections: Collections = None,
    trainable: bool = True,
    batch_weights: tf.Tensor | None = None,
    fused: bool | None = None,
    data_format: str = "NHWC",
    zero_debias_moving_mean: bool = False,
    scope: str | tf.VariableScope | None = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, float] | None = None,
    renorm_decay: averages.Decay = 0.99,
    adjustment: Adjustment | None = None,
) -> tf.Tensor:
    """Normalizes `inputs` per channel: y = activation_fn(gamma·(x − μ)/√(σ² + epsilon) + beta).

    ==================  =======================  ==================================================================
    `is_training`       normalizes with          updates
    ==================  =======================  ==================================================================
    ``True``            the batch's statistics   the moving statistics: by the ops in `updates_collections`, or, with
                                                 ``updates_collections=None``, at each run of the outputs
    ``False``           the moving statistics    nothing; the graph has no update op
    bool tensor         by the value it is fed   only when it is fed True
    ==================  =======================  ==================================================================

    With the default `updates_collections` the train op must depend on the update ops (`bn_graph.train_op` sees to
    it), or the statistics stay (0, 1) and inference is wrong.

    **The moving variance depends on the kernel, as contrib's does.** Where contrib takes the fused kernel, it averages
    m/(m−1)·σ² (Bessel's correction): inputs of rank 2 and 4 below float64, unless ``fused=False`` or one of
    `batch_weights`, `renorm` and `adjustment` is given. Everywhere else it averages σ² itself. That is an accident,
    and the one that this project reproduces, since checkpoints and tests of contrib code rely on it. The outputs do
    not differ between the two. `bn_graph.batch_norm_wrapper` has an argument for it instead.

    Args:
        inputs: float16, bfloat16, float32 or float64 tensor of rank 2 to 5 with a known channel dimension.
        decay: weight of the old value in the moving statistics, or a schedule of it: see `bn_graph.batch_norm_wrapper`.
        center, scale: whether there is a ``beta``, a ``gamma``. Mind that `scale` is False by default.
        epsilon: added to the variance inside the root.
        activation_fn: applied last.
        param_initializers: by the variable's name: ``beta``, ``gamma``, ``moving_mean``, ``moving_variance``.
        param_regularizers: for ``beta`` and ``gamma``; their terms join ``REGULARIZATION_LOSSES``. For the two
            statistics they are without effect, as in contrib.
        updates_collections: one key or several for the two update ops, mean's first; None makes the updates
            dependencies of the outputs.
        is_training: Python bool or int, or scalar bool tensor or variable.
        reuse: as in ``tf.variable_scope``; needs `scope`.
        variables_collections: further keys for all variables, or a dict of such by the variable's name.
        outputs_collections: keys that the outputs join, after `activation_fn`; their ``aliases`` name the scope.
        trainable: whether beta and gamma are. The statistics follow `is_training`, whatever this says.
        batch_weights: shape ``[batch]``; how much each example counts in the batch's statistics. They are not checked.
        fused: None or True takes the kernel where it applies and never complains; see above for the moving variance.
        data_format: ``"NHWC"`` (channels last) or ``"NCHW"`` (channels second), for any rank. NCHW works on CPUs too.
        zero_debias_moving_mean: subtracts the share of the start value from the moving mean. Of the mean only.
        scope: variable scope, by name or object; ``BatchNorm``, made unique, if None.
        renorm, renorm_clipping, renorm_decay: batch renormalization, as in `bn_graph.batch_norm_wrapper`.
        adjustment: given the inputs' dynamic shape, returns (scale, bias), which are applied to the normalized
            values, before gamma and beta, in training only.

    Returns:
        A tensor of the shape and dtype of `inputs` (or what `activation_fn` makes of it).

    Variables (shape ``[channels]``; float32 for half-precision inputs, else the inputs' dtype):
        ``beta`` (0), ``gamma`` (1): in ``MODEL_VARIABLES``, ``GLOBAL_VARIABLES`` and, if `trainable`,
        ``TRAINABLE_VARIABLES``. ``moving_mean`` (0), ``moving_variance`` (1): in ``MODEL_VARIABLES``,
        ``GLOBAL_VARIABLES`` and `MOVING_STATISTICS`. With renorm ``renorm_mean``, ``renorm_stddev``,
        ``moving_stddev``, likewise. With zero debias ``moving_mean/biased`` and ``moving_mean/local_step``,
        likewise; contrib's own last releases put the scope before them once more.
        The update ops are named ``AssignMovingAvg`` and ``AssignMovingAvg_1`` under the scope where `is_training` is
        a Python bool.

    Differences from contrib:
        1. Unknown names in `param_initializers` or `param_regularizers`, and a decay outside [0, 1], are refused.
        2. `param_regularizers` always count; contrib drops them with ``fused=False`` and its own updates.
        3. Update ops exist whatever `trainable` says; contrib's last releases drop some with ``trainable=False``.
        4. There is no ``arg_scope``: ``functools.partial(batch_norm, decay=0.9, ...)`` sets arguments for many layers.

    Caveats: those of `bn_graph.batch_norm_wrapper`.

    Raises:
        ValueError: an undefined rank or channel dimension, or a rank outside 2 to 5; another `data_format`; an
            `is_training` that is neither; `batch_weights` of another shape; `renorm` with `batch_weights`,
            `zero_debias_moving_mean` or other `updates_collections` than ``UPDATE_OPS``; a name or key that means
            nothing; ``reuse=True`` without a scope, or without the variables.
        TypeError: `inputs` are not floats.
        tf.errors.InvalidArgumentError: at a training run with an empty batch. Nothing is updated.

    Source: "tensorflow中的batchnorm", section on ``tf.contrib.layers.batch_norm``, for signature and defaults.

    Example:
        >>> from bn_graph.layers import slim
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     x = tf.placeholder(tf.float32, [None, 1])
        ...     y = slim.batch_norm(x, decay=0.5, is_training=True, activation_fn=tf.nn.relu)
        ...     session.run(tf.global_variables_initializer())
        ...     _ = session.run([y, tf.get_collection(tf.GraphKeys.UPDATE_OPS)], {x: [[2.0], [6.0]]})
        ...     for variable in tf.get_collection(tf.GraphKeys.MODEL_VARIABLES):  # 0·0.5 + 4·0.5 and 1·0.5 + 2/1·4·0.5
        ...         print(variable.op.name, session.run(variable))
        BatchNorm/beta [0.]
        BatchNorm/moving_mean [2.]
        BatchNorm/moving_variance [4.5]
    """
    arguments.check_graph_mode()
    inputs = tf.convert_to_tensor(inputs, name="inputs")
    axis = _checked_axis(inputs, data_format)
    training = _checked_flag(is_training)
    decay, renorm_decay = arguments.checked_constants(epsilon=1.0, decay=decay, renorm_decay=renorm_decay)
    clipping = arguments.checked_clipping(renorm_clipping)
    initializers = _by_variable("param_initializers", param_initializers)
    regularizers = _by_variable("param_regularizers", param_regularizers)
    weights = _checked_weights(inputs, batch_weights)
    update_keys = None if updates_collections is None else _keys(updates_collections)
    if renorm:
        _check_renorm(weights, zero_debias_moving_mean, update_keys)
    fused, unbiased = _contrib_kernel(fused, inputs, axis, plain=weights is None and not renorm and adjustment is None)

    channels, dtype = inputs.shape.as_list()[axis], moments.compute_dtype(inputs.dtype)
    with tf.variable_scope(scope, default_name="BatchNorm", values=[inputs], reuse=reuse) as layer_scope:
        keys = [_model_keys(variables_collections, name) for name in LayerVariables._fields]
        parameters = {"beta": center, "gamma": scale}
        variables = averages.create([channels], dtype, parameters, initializers, regularizers[:2], trainable, keys)
        reference = averages.create_renorm([channels], dtype) if renorm else None
        if renorm:
            update = averages.renorm_average(variables, reference, decay, renorm_decay, epsilon)
        else:
            update = averages.exponential_average(variables, decay, zero_debias=(zero_debias_moving_mean, False))
        _add_model_variables(layer_scope.name)
        normalize_batch = _transform(fused, unbiased, weights, reference, clipping, adjustment)
        batch = transforms.by_mode(
            training,
            lambda: normalize_batch(inputs, axis, variables.gamma, variables.beta, epsilon),
            lambda: transforms.by_moving_statistics(inputs, axis, variables, epsilon, fused),
        )
        updates = averages.run_when(training, lambda: update(batch.mean, batch.variance), variables.statistics)
        outputs = record_call(attach_updates(batch.outputs, updates, update_keys), inputs, axis, variables, epsilon)
        outputs = outputs if activation_fn is None else activation_fn(outputs)
        return _collected(outputs, outputs_collections, layer_scope.name)


def _checked_axis(inputs: tf.Tensor, data_format: str) -> int:
    """The channel axis counted from the front; raises where contrib does, in words that its users know."""
    if data_format not in _CHANNEL_AXIS:
        raise ValueError(f"data_format has to be either NCHW or NHWC, got {data_format!r}.")
    if inputs.shape.rank is None:
        raise ValueError(f"Inputs {inputs.name} has undefined rank; set it with inputs.set_shape(...).")
    axis = _CHANNEL_AXIS[data_format]
    if 2 <= inputs.shape.rank <= 5 and inputs.shape.as_list()[axis] is None:
        raise ValueError(
            f"Inputs {inputs.name} has undefined `C` dimension, that is, an undefined channels dimension "
            f"(axis={axis}), in its shape {inputs.shape}."
        )
    return arguments.checked_axis(inputs, axis)


def _checked_flag(is_training: bool | int | tf.Tensor) -> bool | tf.Tensor:
    """`arguments.checked_is_training`, but a number is taken by its truth, as in contrib."""
    if isinstance(is_training, int | np.integer):
        return bool(is_training)
    return arguments.checked_is_training(is_training)


def _by_variable(argument: str, given: Mapping | None) -> list:
    """The dict's values in the order of `LayerVariables`; a name that no variable has would be without any effect."""
    unknown = set(given or {}) - set(LayerVariables._fields)
    if unknown:
        names = ", ".join(sorted(LayerVariables._fields))
        raise ValueError(f"{argument} may have the keys {names}, got {', '.join(sorted(unknown))}.")
    return [(given or {}).get(name) for name in LayerVariables._fields]


def _check_renorm(weights: tf.Tensor | None, zero_debias: bool, update_keys: list[str] | None) -> None:
    if weights is not None or zero_debias or update_keys != [tf.GraphKeys.UPDATE_OPS]:
        raise ValueError(
            "renorm is not supported with batch_weights, zero_debias_moving_mean, or updates_collections other than "
            "tf.GraphKeys.UPDATE_OPS."
        )


def _checked_weights(inputs: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor | None:
    """The weights as a tensor of rank 1."""
    if weights is None:
        return None
    weights = tf.convert_to_tensor(weights, name="batch_weights")
    if not inputs.shape[:1].is_compatible_with(weights.shape):
        raise ValueError(f"batch_weights must have the shape {inputs.shape[:1]} of the batch, got {weights.shape}.")
    return tf.reshape(weights, [-1])


def _contrib_kernel(fused: bool | None, inputs: tf.Tensor, axis: int, *, plain: bool) -> tuple[bool, bool]:
    """Whether this layer takes the kernel, and whether contrib's would, so that its moving variance is unbiased.

    They differ for rank 2, which contrib reshapes to rank 4, and for NCHW, which the kernel of a CPU does not have.
    """
    in_contrib = fused is not False and plain and inputs.shape.rank in (2, 4) and inputs.dtype != tf.float64
    return in_contrib and arguments.checked_fused(None, inputs, axis, plain=plain), in_contrib


def _keys(collections: Collections) -> list[str]:
    if collections is None:
        return []
    return [collections] if isinstance(collections, str) else list(collections)


def _model_keys(collections: Collections | Mapping[str, Collections], name: str) -> list[str]:
    """The collections that the variable of this `name` joins."""
    further = collections.get(name) if isinstance(collections, Mapping) else collections
    return [*_keys(further), tf.GraphKeys.GLOBAL_VARIABLES, tf.GraphKeys.MODEL_VARIABLES]


def _add_model_variables(scope: str) -> None:
    """Adds the layer's further statistics (renorm's, zero debias') to ``MODEL_VARIABLES``, once."""
    present = {variable.name for variable in tf.get_collection(tf.GraphKeys.MODEL_VARIABLES)}
    for variable in averages.moving_statistics():
        if variable.name.startswith(f"{scope}/") and variable.name not in present:
            tf.add_to_collection(tf.GraphKeys.MODEL_VARIABLES, variable)


def _transform(
    fused: bool,
    unbiased: bool,
    weights: tf.Tensor | None,
    reference: averages.RenormStatistics | None,
    clipping: Mapping[str, float],
    adjustment: Adjustment | None,
) -> Callable[..., Normalized]:
    """The transform of a training batch, ``(inputs, axis, gamma, beta, epsilon)``, which must not be empty."""
    if reference is not None:
        by_batch = partial(transforms.with_renorm, reference=reference[:2], clipping=clipping)
    elif fused:
        by_batch = partial(fused_kernel.by_fused_kernel, unbiased=unbiased)
    else:
        by_batch = partial(transforms.by_moments, unbiased=unbiased, weights=weights)
    if adjustment is not None:
        by_batch = partial(_adjusted, by_batch=by_batch, adjustment=adjustment)
    checked = partial(arguments.with_run_time_checks, may_be_single=True)
    return lambda inputs, axis, *parameters: by_batch(checked(inputs, axis), axis, *parameters)


def _adjusted(
    inputs: tf.Tensor,
    axis: int,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    epsilon: float,
    *,
    by_batch: Callable[..., Normalized],
    adjustment: Adjustment,
) -> Normalized:
    """`by_batch`, with `adjustment` between the normalized values and gamma and beta."""
    normalized, mean, variance = by_batch(inputs, axis, None, None, epsilon)
    scale, bias = (tf.cast(part, mean.dtype) for part in adjustment(tf.shape(inputs)))
    outputs = tf.cast(normalized, mean.dtype) * scale + bias
    if gamma is not None:
        outputs *= transforms.along(axis, inputs, gamma)
    if beta is not None:
        outputs += transforms.along(axis, inputs, beta)
    return Normalized(tf.cast(outputs, inputs.dtype), mean, variance)


def _collected(outputs: tf.Tensor, collections: Collections, alias: str) -> tf.Tensor:
    """Adds the outputs to the collections, with the alias by which slim's end points are looked up."""
    keys = _keys(collections)
    if keys:
        outputs.aliases = [alias]
    for key in keys:
        tf.add_to_collection(key, outputs)
    return outputs
