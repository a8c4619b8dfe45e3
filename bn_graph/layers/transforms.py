"""How a batch is normalized: by its moments, in virtual batches, with renormalization, and at inference by the moving
statistics. (By TensorFlow's fused kernel: `fused_kernel`.)

All take ``gamma`` and ``beta`` of shape `parameter_shape` (or None), compute in `moments.compute_dtype` of the inputs, and
return `Normalized`: the outputs, in the inputs' shape and dtype, and the statistics that the moving ones step toward.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

from bn_graph.layers import moments
from bn_graph.layers.averages import LayerVariables, read_after
from bn_graph.tf1 import tf, with_gradient

__all__ = [
    "Axis",
    "Normalized",
    "along",
    "by_mode",
    "by_moments",
    "by_moving_statistics",
    "by_virtual_batches",
    "corrected",
    "kept_axes",
    "parameter_shape",
    "per_example",
    "reduced_axes",
    "with_renorm",
]

T = TypeVar("T")

Axis: TypeAlias = int | tuple[int, ...]
"""The kept axis, or several in ascending order, counted from the front."""


class Normalized(NamedTuple):
    """``outputs`` like the inputs; ``mean`` and ``variance`` of the batch, of `parameter_shape`, for the estimator."""

    outputs: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor


def by_mode(training: bool | tf.Tensor, train: Callable[[], T], infer: Callable[[], T]) -> T:
    """What `train` or what `infer` makes; for a bool tensor both are built, and the value that is fed chooses one."""
    if isinstance(training, bool):
        return train() if training else infer()
    return tf.cond(training, train, infer)


def by_moments(
    inputs: tf.Tensor,
    axis: Axis,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    epsilon: float,
    *,
    unbiased: bool,
    weights: tf.Tensor | None = None,
) -> Normalized:
    """Normalizes by the batch's own mean and biased variance. `unbiased`: the estimator gets m/(m−1) times the latter."""
    axes = reduced_axes(inputs, axis)
    gamma, beta = along(axis, inputs, gamma), along(axis, inputs, beta)
    if weights is None:
        statistics = moments.batch_statistics(inputs, axes)
    else:
        statistics = moments.weighted_statistics(inputs, axes, per_example(weights, inputs))
    outputs = moments.normalize(statistics.centered, statistics.variance, gamma, beta, epsilon)
    if weights is None:
        sources = [source for source in (inputs, gamma, beta) if source is not None]

        def gradients(received: tf.Tensor, _: tf.Tensor, *parameters: tf.Tensor) -> list[tf.Tensor]:
            scale = None if gamma is None else parameters[0]
            of_inputs, of_gamma, of_beta = moments.normalize_gradients(received, statistics, scale, epsilon, axes)
            found = ([] if gamma is None else [of_gamma]) + ([] if beta is None else [of_beta])
            shaped = [tf.reshape(each, source.shape) for each, source in zip(found, parameters, strict=True)]
            return [tf.cast(of_inputs, inputs.dtype), *shaped]

        outputs = with_gradient(outputs, sources, gradients)
    variance = corrected(statistics.variance, statistics.count, unbiased)
    return Normalized(
        tf.cast(outputs, inputs.dtype), _vector(statistics.mean, inputs, axis), _vector(variance, inputs, axis)
    )


def by_virtual_batches(
    inputs: tf.Tensor,
    axis: Axis,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    epsilon: float,
    size: int,
    *,
    unbiased: bool,
) -> Normalized:
    """Normalizes each run of `size` examples by its own moments (ghost batches; Hoffer et al. 2017).

    The estimator gets the mean and variance of the *whole* batch: the mean of the virtual batches' variances and the
    variance between their means. Inference has no virtual batches, and the population's variance has both parts.
    """
    shape = tf.shape(inputs)
    static = inputs.shape.as_list()
    grouped = tf.reshape(inputs, tf.concat([[-1, size], shape[1:]], 0))
    grouped.set_shape([None if static[0] is None else static[0] // size, size, *static[1:]])
    kept = [dimension + 1 for dimension in kept_axes(axis)]
    ghosts = moments.batch_statistics(grouped, [d for d in range(1, len(static) + 1) if d not in kept])
    gamma, beta = (along(axis, inputs, vector) for vector in (gamma, beta))
    outputs = tf.reshape(moments.normalize(ghosts.centered, ghosts.variance, gamma, beta, epsilon), shape)

    between = moments.batch_statistics(ghosts.mean, [0])
    variance = tf.reduce_mean(ghosts.variance, 0, keepdims=True) + between.variance
    variance = corrected(variance, ghosts.count * between.count, unbiased)
    mean, variance = (_vector(moment, inputs, axis) for moment in (between.mean, variance))
    return Normalized(tf.cast(outputs, inputs.dtype), mean, variance)


def with_renorm(
    inputs: tf.Tensor,
    axis: Axis,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    epsilon: float,
    reference: tuple[tf.Variable, tf.Variable],
    clipping: Mapping[str, float],
) -> Normalized:
    """Batch renormalization (Ioffe 2017): y = gamma·(r·(x−μ)/√(σ²+ε) + d) + beta.

    r = √(σ²+ε)/deviation and d = (μ − mean)/deviation, from the moving `reference` = (mean, deviation) as it stands
    before this step, clipped to [rmin, rmax] and [−dmax, dmax], and constants to the gradient. So training normalizes
    nearly as inference will; with nothing clipped, exactly by the reference.
    """
    statistics = moments.batch_statistics(inputs, reduced_axes(inputs, axis))
    moving_mean, moving_deviation = (along(axis, inputs, read_after(inputs, variable)) for variable in reference)
    moving_deviation = tf.maximum(moving_deviation, epsilon**0.5)  # the start may be 0
    r = tf.sqrt(statistics.variance + epsilon) / moving_deviation
    d = (statistics.mean - moving_mean) / moving_deviation
    bounds = {  # a Python float takes the tensors' dtype by itself, and exactly
        key: bound if isinstance(bound, float | int) else tf.cast(bound, r.dtype) for key, bound in clipping.items()
    }
    if "rmin" in bounds:
        r = tf.maximum(r, bounds["rmin"])
    if "rmax" in bounds:
        r = tf.minimum(r, bounds["rmax"])
    if "dmax" in bounds:
        d = tf.clip_by_value(d, -bounds["dmax"], bounds["dmax"])
    normalized = moments.normalize(statistics.centered, statistics.variance, None, None, epsilon)
    outputs = normalized * tf.stop_gradient(r) + tf.stop_gradient(d)
    if gamma is not None:
        outputs *= along(axis, inputs, gamma)
    if beta is not None:
        outputs += along(axis, inputs, beta)
    with tf.control_dependencies([r, d]):  # the estimator must not move the reference before it was read
        mean, variance = (_vector(moment, inputs, axis) for moment in (statistics.mean, statistics.variance))
    return Normalized(tf.cast(outputs, inputs.dtype), mean, variance)


def by_moving_statistics(
    inputs: tf.Tensor, axis: Axis, variables: LayerVariables, epsilon: float, fused: bool
) -> Normalized:
    """Normalizes by the moving statistics: each output depends on its own example only."""
    gamma, beta, mean, variance = variables
    mean, variance = read_after(inputs, mean), read_after(inputs, variance)
    if fused:
        results = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones_like(variance) if gamma is None else gamma,
            offset=tf.zeros_like(mean) if beta is None else beta,
            mean=mean,
            variance=variance,
            epsilon=epsilon,
            is_training=False,
        )
        return Normalized(results.y, mean, variance)
    shaped = [along(axis, inputs, vector) for vector in (variance, gamma, beta)]
    centered = tf.cast(inputs, moments.compute_dtype(inputs.dtype)) - along(axis, inputs, mean)
    return Normalized(tf.cast(moments.normalize(centered, *shaped, epsilon), inputs.dtype), mean, variance)


def kept_axes(axis: Axis) -> tuple[int, ...]:
    """The kept axes, also if it is one."""
    return axis if isinstance(axis, tuple) else (axis,)


def reduced_axes(inputs: tf.Tensor, axis: Axis) -> list[int]:
    """All dimensions but the kept ones."""
    return [dimension for dimension in range(inputs.shape.rank) if dimension not in kept_axes(axis)]


def parameter_shape(inputs: tf.Tensor, axis: Axis) -> list[int]:
    """The shape of the layer's variables: ``[channels]``; with several kept axes that of `inputs`, 1 in all others."""
    sizes = inputs.shape.as_list()
    if isinstance(axis, int):
        return [sizes[axis]]
    return [size if dimension in axis else 1 for dimension, size in enumerate(sizes)]


def along(axis: Axis, inputs: tf.Tensor, vector: tf.Tensor | None) -> tf.Tensor | None:
    """`vector` of `parameter_shape`, shaped to broadcast along `axis`; the last axis and several need no reshaping."""
    if vector is None or isinstance(axis, tuple) or axis == inputs.shape.rank - 1:
        return None if vector is None else tf.convert_to_tensor(vector)
    return tf.reshape(vector, [-1 if dimension == axis else 1 for dimension in range(inputs.shape.rank)])


def per_example(weights: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
    """Weights of the leading dimensions (one an example, one a time step), shaped to broadcast over the rest of `inputs`."""
    missing = inputs.shape.rank - weights.shape.rank
    return tf.reshape(weights, tf.concat([tf.shape(weights), [1] * missing], 0)) if missing else weights


def corrected(variance: tf.Tensor, count: tf.Tensor, unbiased: bool) -> tf.Tensor:
    """count/(count − 1) times the variance if `unbiased` (Bessel's correction), else the variance."""
    # Of one value the variance is 0 and so is its correction, as in the fused kernel; 1/0 would make it NaN.
    return variance * tf.math.divide_no_nan(count, count - 1.0) if unbiased else variance


def _vector(moment: tf.Tensor, inputs: tf.Tensor, axis: int) -> tf.Tensor:
    return tf.reshape(moment, parameter_shape(inputs, axis))
