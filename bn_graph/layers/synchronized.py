"""Batch statistics, and moving statistics, over all workers' examples.

A worker has a part of the batch: a process of a cluster, or a tower of one process. Workers exchange one vector a layer
and direction (`Gather`): forward their parts' statistics, with the number of values, and backward two sums over their
gradients. Each computes from it, in the same order, so that all of them come to the same statistics bit for bit. The
caller provides the exchange; `bn_graph.training.distributed` has TensorFlow's collectives for it. Layers that follow each
other can't share an exchange: the inputs of one depend on the statistics of the other, and their gradients likewise.

Accuracy. E[x²] − E[x]² loses all digits where the mean is large, and so do means that are rounded at their own size.
A worker's mean travels in two parts (one of its values, and the mean of what is left when that is subtracted), its
variance about its own mean, and they are combined as Chan, Golub & LeVeque do (1979): within the workers and between.

Images are normalized by TensorFlow's fused kernel (`by_all_workers_with_kernels`), all else in ops that are written out.
"""

from collections.abc import Callable
from typing import NamedTuple

from bn_graph.layers import fused_kernel, moments
from bn_graph.layers.arguments import weights_shape_checks
from bn_graph.layers.transforms import Axis, Normalized, along, corrected, per_example, reduced_axes
from bn_graph.tf1 import is_compiled, tf

__all__ = ["Gather", "by_all_workers", "by_all_workers_with_kernels", "with_moving_statistics_of_all_workers"]

Gather = Callable[[tf.Tensor], tf.Tensor]
"""From a worker's vector ``[n]`` to all workers' ``[workers, n]``, the same at each; one exchange, which all run together.
It is called once for a layer, and once for its gradient, on the device of the former; its own gradient is not used."""

_ONE_VALUE = (
    "Batch normalization in training needs at least two values per channel in the batches of all workers together: "
    "the mean of one value is that value, so every output would be beta whatever the input. Their number was"
)


_NO_WEIGHT = (
    "batch_norm_wrapper needs weights that are not negative, and that sum per channel, at all workers together, to more "
    "than 0, or with unbiased_variance to more than 1. Their sums (NaN where a worker has a negative weight) were"
)

_NO_SECOND_GRADIENT = "Gradients of gradients don't go through batch_norm_wrapper(sync=...): expected first ones only."


class _Statistics(NamedTuple):
    """Of one worker's batch or of all: mean = shift + remainder. Constants all: `_normalize` has the gradient.

    ``values`` ``[1]`` counts the values per channel, ``count`` ``[1]`` or ``[channels]`` their weights (1 if not given).
    """

    values: tf.Tensor
    count: tf.Tensor
    shift: tf.Tensor
    remainder: tf.Tensor
    variance: tf.Tensor


def by_all_workers(
    inputs: tf.Tensor,
    axis: int,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    epsilon: float,
    gather: Gather,
    *,
    unbiased: bool,
    weights: tf.Tensor | None = None,
) -> Normalized:
    """Normalizes this worker's `inputs` by the mean and variance of all workers' examples, each example counted alike.

    Args:
        inputs, axis, gamma, beta, epsilon: as for `transforms.by_moments`. The batch's size may differ between workers,
            and be 0 or 1 at some.
        gather: exchanges one vector, forward, and one in the gradient.
        unbiased: the estimator gets m/(m−1) times the variance, m the number of values at all workers (their weights'
            sum).
        weights: how much each of this worker's examples counts, as for `transforms.by_moments`; may all be 0 at some
            workers.

    Returns:
        `Normalized`; its mean and variance are those of the whole batch, the same at every worker.

    Raises:
        tf.errors.InvalidArgumentError: at a run, at every worker, if all of them together have fewer than two values
            per channel, or weights that sum to 0.
    """
    values = tf.cast(inputs, moments.compute_dtype(inputs.dtype))
    if weights is not None:
        with tf.control_dependencies(weights_shape_checks(inputs, weights)):
            weights = tf.cast(per_example(weights, inputs), values.dtype) + tf.zeros_like(values)
    constants = tf.stop_gradient(values)
    part = _own(constants, axis, weights)
    whole = _combined(part, gather, unbiased=unbiased, weighted=weights is not None)
    # In two steps: what is left by the first is of the size of the values' spread, and so is its rounding.
    centered = constants - along(axis, inputs, whole.shift) - along(axis, inputs, whole.remainder)
    kept = None
    if weights is not None:  # what is not finite and does not count (padding) is normalized as if it were the mean
        kept = tf.logical_or(weights > 0, tf.math.is_finite(constants))
        centered = tf.where(kept, centered, tf.zeros_like(centered))

    batch = _Centered(centered, weights, kept, whole.count, whole.variance + epsilon)
    parameters = [tf.convert_to_tensor(each) for each in (gamma, beta) if each is not None]
    outputs = _normalize(batch, axis, gather, gamma is not None, beta is not None)(values, *parameters)
    variance = corrected(whole.variance, whole.count, unbiased)
    return Normalized(tf.cast(outputs, inputs.dtype), whole.shift + whole.remainder, variance)


class _Centered(NamedTuple):
    """This worker's values less the whole batch's mean, and their weights; the whole batch's count, and variance + ε.

    ``kept`` is False where a value counts as the mean.
    """

    values: tf.Tensor
    weights: tf.Tensor | None
    kept: tf.Tensor | None
    count: tf.Tensor
    variance: tf.Tensor


def _normalize(
    batch: _Centered, axis: int, gather: Gather, has_gamma: bool, has_beta: bool
) -> Callable[..., tf.Tensor]:
    """γ·c/√(σ² + ε) + β of the values, gamma and beta, with the gradient of all workers' losses.

    With r = 1/√(σ² + ε), sums Σ over all workers and a value's weight w of all their W, a value's gradient is
    γ·r·(∂y − w/W·(Σ∂y + c·r²·Σ∂y·c)) (Ioffe & Szegedy 2015, section 3). Both sums make one exchange. The gradients of
    gamma and beta are the worker's own share.
    """
    centered, weights, kept, count, variance = batch
    axes = reduced_axes(centered, axis)
    rsqrt = tf.rsqrt(variance)

    def broadcast(vector: tf.Tensor) -> tf.Tensor:
        return along(axis, centered, vector)

    @tf.custom_gradient
    def normalize(values: tf.Tensor, *parameters: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        del values  # they are centered already
        scale = rsqrt * parameters[0] if has_gamma else rsqrt
        outputs = centered * broadcast(scale)
        outputs = outputs + broadcast(parameters[-1]) if has_beta else outputs

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            own_sum = tf.reduce_sum(upstream, axes)
            if kept is not None:  # what counts as the mean does not move with it
                upstream = tf.where(kept, upstream, tf.zeros_like(upstream))
            of_kept = own_sum if kept is None else tf.reduce_sum(upstream, axes)
            own_product = tf.reduce_sum(upstream * centered, axes)
            total, product = _sums_of_all(gather, [of_kept, own_product], outputs.device)
            shared = centered * broadcast(scale * product / (variance * count)) + broadcast(scale * total / count)
            found = [upstream * broadcast(scale) - (shared if weights is None else weights * shared)]
            found += [rsqrt * own_product] * has_gamma + [own_sum] * has_beta
            return [tf.raw_ops.PreventGradient(input=each, message=_NO_SECOND_GRADIENT) for each in found]

        return outputs, gradient

    return normalize


def by_all_workers_with_kernels(
    inputs: tf.Tensor,
    axis: Axis,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    epsilon: float,
    gather: Gather,
    *,
    unbiased: bool,
) -> Normalized:
    """`by_all_workers` for rank 4 with the channels last, by TensorFlow's fused kernels: the same numbers, in fewer passes.

    The kernel takes statistics that it is given, forward and backward, where its gradient has both sums that are exchanged.
    """
    if is_compiled(tf.get_default_graph()):  # XLA has no `EuclideanNorm`, and makes one pass of several by itself
        return by_all_workers(inputs, axis, gamma, beta, epsilon, gather, unbiased=unbiased)
    values = tf.cast(inputs, moments.compute_dtype(inputs.dtype))
    near, far, subtracted = fused_kernel.near_zero(tf.stop_gradient(values), epsilon)
    shift = tf.where(far, subtracted, tf.zeros_like(subtracted))
    number = _values_per_channel(inputs, axis)
    part = _Statistics(number, number, shift, *moments.statistics_of_many(near, first=2))
    whole = _combined(part, gather, unbiased=unbiased, weighted=False)
    mean = (whole.shift - shift) + whole.remainder  # of what is near 0
    parameters = [
        tf.ones_like(shift) if gamma is None else gamma,
        tf.zeros_like(shift) if beta is None else beta,
    ]
    outputs = _kernels(near, mean, whole.variance, whole.count, epsilon, gather)(values, *parameters)
    variance = corrected(whole.variance, whole.count, unbiased)
    return Normalized(tf.cast(outputs, inputs.dtype), whole.shift + whole.remainder, variance)


def _kernels(
    near: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, count: tf.Tensor, epsilon: float, gather: Gather
) -> Callable[..., tf.Tensor]:
    """As `_normalize`, of the values, gamma and beta."""

    @tf.custom_gradient
    def normalize(values: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        del values  # they are near 0 already
        outputs = _by_statistics(near, gamma, beta, mean, variance, epsilon)

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            own = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=near,
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=variance,
                epsilon=epsilon,
                is_training=False,
            )
            total, product = _sums_of_all(gather, [own.offset_backprop, own.scale_backprop], outputs.device)
            factor = gamma * tf.rsqrt(variance + epsilon) / count
            shared = _by_statistics(near, factor * product, factor * total, mean, variance, epsilon)
            found = [own.x_backprop - shared, own.scale_backprop, own.offset_backprop]
            return [tf.raw_ops.PreventGradient(input=each, message=_NO_SECOND_GRADIENT) for each in found]

        return outputs, gradient

    return normalize


def _sums_of_all(gather: Gather, sums: list[tf.Tensor], device: str) -> list[tf.Tensor]:
    """A worker's vectors of one size, each summed over all workers; one exchange."""
    with tf.device(device):  # a device tells towers of one process apart
        return tf.split(tf.reduce_sum(gather(tf.concat(sums, 0)), 0), len(sums))


def _by_statistics(
    values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, epsilon: float
) -> tf.Tensor:
    return tf.raw_ops.FusedBatchNormV3(
        x=values, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y


def _own(values: tf.Tensor, axis: int, weights: tf.Tensor | None) -> _Statistics:
    """The statistics of one worker's batch; 0 where it has none."""
    axes = reduced_axes(values, axis)
    number = _values_per_channel(values, axis)
    if weights is None:
        count = number
        shift = tf.reduce_sum(moments.first_value(values, axes), axes)  # of an empty batch, 0
    else:
        values = tf.where(weights > 0, values, tf.zeros_like(values))  # 0·NaN is NaN
        count = _sum_of_weights(weights, axes)
        shift = tf.math.divide_no_nan(_sum(weights * values, axes), count)
    shift = tf.stop_gradient(shift)

    def mean(of: tf.Tensor) -> tf.Tensor:
        if weights is None:
            return _sum(of, axes) / tf.maximum(count, 1.0)
        return tf.math.divide_no_nan(_sum(weights * of, axes), count)

    shifted = values - along(axis, values, shift)
    remainder = mean(shifted)
    variance = mean(tf.math.squared_difference(shifted, along(axis, values, remainder)))
    return _Statistics(number, count, shift, remainder, variance)


def _sum(values: tf.Tensor, axes: list[int]) -> tf.Tensor:
    return tf.squeeze(moments.sum_of_sums(values, axes), axes)


def _values_per_channel(inputs: tf.Tensor, axis: int) -> tf.Tensor:
    count = tf.size(inputs) // inputs.shape.as_list()[axis]
    return tf.cast(tf.reshape(count, [1]), moments.compute_dtype(inputs.dtype))


def _sum_of_weights(weights: tf.Tensor, axes: list[int]) -> tf.Tensor:
    """Per channel; NaN if one is negative, so that every worker hears of it in the exchange."""
    is_negative = tf.reduce_any(weights < 0, axes)
    total = _sum(weights, axes)
    return tf.where(is_negative, tf.fill(tf.shape(total), tf.constant(float("nan"), total.dtype)), total)


def with_moving_statistics_of_all_workers(
    by_batch: Callable[..., Normalized], gather: Gather, *, unbiased: bool, weights: tf.Tensor | None = None
) -> Callable[..., Normalized]:
    """`by_batch`, each worker by its own batch's statistics, and the estimator gets those of all workers' examples.

    Args:
        by_batch: as `transforms.by_moments`; its own variance biased.
        gather: exchanges one vector. Only the updates wait for it, and it has no gradient.
        unbiased, weights: as in `by_all_workers`; `by_batch` has the weights too.

    Returns:
        A function like `by_batch`. The variance for the estimator is the mean of the workers' variances *and* the
        variance between their means: inference has no workers, and the population's variance has both parts.
    """

    def by_own_batch(inputs: tf.Tensor, axis: int, *args) -> Normalized:
        outputs, mean, variance = by_batch(inputs, axis, *args)
        mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance)
        number = count = _values_per_channel(inputs, axis)
        if weights is not None:
            each = tf.cast(per_example(weights, inputs), mean.dtype) + tf.zeros_like(inputs, mean.dtype)
            count = _sum_of_weights(each, reduced_axes(inputs, axis))
        own = _Statistics(number, count, mean, tf.zeros_like(mean), variance)
        whole = _combined(own, gather, unbiased=unbiased, weighted=weights is not None)
        return Normalized(outputs, whole.shift + whole.remainder, corrected(whole.variance, whole.count, unbiased))

    return by_own_batch


def _combined(part: _Statistics, gather: Gather, *, unbiased: bool, weighted: bool) -> _Statistics:
    """The whole batch's statistics, by one exchange, the same at every worker."""
    rows = tf.stop_gradient(gather(tf.concat(list(part), 0)))
    channels = part.shift.shape.as_list()[0]
    sizes = [1, channels if weighted else 1, channels, channels, channels]
    numbers, counts, shifts, remainders, variances = tf.split(rows, sizes, 1)
    number, count = tf.reduce_sum(numbers, 0), tf.reduce_sum(counts, 0)
    # Every worker has the same counts before it, so all of them raise, and none waits for another's next exchange.
    checks = [tf.debugging.Assert(number[0] > 1.0, [_ONE_VALUE, number])]
    if weighted:
        checks.append(tf.debugging.Assert(tf.reduce_all(count > (1.0 if unbiased else 0.0)), [_NO_WEIGHT, count]))
    with tf.control_dependencies(checks):
        shares = counts / count
    # Any value near the data would do: the remainders have what is rounded off here.
    shift = tf.reduce_sum(shares * shifts, 0)
    offsets = (shifts - shift) + remainders
    remainder = tf.reduce_sum(shares * offsets, 0)
    variance = tf.reduce_sum(shares * (variances + tf.square(offsets - remainder)), 0)
    return _Statistics(number, count, shift, remainder, variance)
