"""The batch-normalizing transform itself, written out from the paper (Ioffe & Szegedy 2015, Algorithm 1).

For each channel, over the m values that a batch holds of it::

    μ  = 1/m Σ x             σ² = 1/m Σ (x − μ)²             y = γ·(x − μ)/√(σ² + ε) + β

The functions here know nothing of variables, modes or graphs' collections: tensors in, tensors out. Statistics keep
their reduced dimensions (size 1), so that they broadcast against the inputs whichever axis is the channel's.

Accuracy. ``tf.nn.batch_normalization`` computes ``x·s + (β − μ·s)``: with inputs around 10⁶ both terms are around
10⁶ and their difference loses all its digits. Here the mean is subtracted first, and in two steps, so that the sum
behind it is one of small values. Means are taken over one dimension after the other, so that each sum is short: of
millions of values (32×224×224 a channel) mean and variance are within 10⁻⁵ of float64's, where a single sum is off by
10⁻³. float16 and bfloat16 are computed in float32.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bn_graph.tf1 import tf

__all__ = [
    "BatchStatistics",
    "batch_statistics",
    "compute_dtype",
    "first_value",
    "normalize",
    "normalize_gradients",
    "statistics_of_many",
    "sum_of_sums",
    "weighted_statistics",
]


class BatchStatistics(NamedTuple):
    """Of one batch: ``centered`` = inputs − mean, of the inputs' shape; ``mean`` and ``variance`` (biased) with the
    reduced dimensions kept at size 1; ``count``, the number of values per channel (their weights' sum), broadcastable to
    ``mean``.
    """

    centered: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    count: tf.Tensor


def compute_dtype(dtype: tf.DType) -> tf.DType:
    """The dtype in which statistics of such inputs are computed and kept: float32 for half precision, else the same.

    Example:
        >>> from bn_graph.layers.moments import compute_dtype
        >>> from bn_graph.tf1 import tf
        >>> compute_dtype(tf.float16).name, compute_dtype(tf.float64).name
        ('float32', 'float64')
    """
    return tf.float32 if dtype in (tf.float16, tf.bfloat16) else tf.as_dtype(dtype)


def batch_statistics(inputs: tf.Tensor, axes: Sequence[int]) -> BatchStatistics:
    """Mean and biased variance of `inputs` over `axes`, and the inputs with the mean subtracted.

    Args:
        inputs: float tensor of known rank; float16 and bfloat16 are computed in float32.
        axes: the dimensions to average over, all but the channel's.

    Returns:
        `BatchStatistics` in `compute_dtype` of the inputs; its variance is 1/m, not 1/(m−1). Gradients flow through
        all but the count.

    Source: Ioffe & Szegedy 2015, Algorithm 1, lines 1 and 2; the document's "layer 1".

    Example:
        >>> from bn_graph.layers.moments import batch_statistics
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     _, mean, variance, _ = batch_statistics(tf.constant([[1.0], [3.0]]), [0])
        ...     session.run([mean, variance])
        [array([[2.]], dtype=float32), array([[1.]], dtype=float32)]
    """
    inputs = tf.cast(inputs, compute_dtype(inputs.dtype))
    axes = [axis % inputs.shape.rank for axis in axes]
    # A sum of values around 10⁶ is rounded to the spacing of floats at its own size, which grows with the batch. With one
    # of the values subtracted, they are of the size of their spread, and so is the rounding of their sum. (If that one is
    # an outlier, it is at most √m standard deviations off, for it widens the spread itself.)
    shift = first_value(inputs, axes)
    shifted = inputs - shift
    remainder = _mean_of_means(shifted, axes)
    centered = shifted - remainder
    variance = _mean_of_means(tf.square(centered), axes)
    return BatchStatistics(centered, shift + remainder, variance, _values_per_channel(inputs, axes))


def statistics_of_many(values: tf.Tensor, first: int = 1) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance of each channel, in two passes over the values that write nothing and sum no long run.

    The variance is E[x²] − E[x]²: within 2·10⁻⁵ where the mean lies within four standard deviations from 0, so subtract
    something near it before.

    Args:
        values: of rank 4, the channels last; half precision is computed in float32. Of none both are 0.
        first: the dimension that is summed over first. Of large images 1 is the fastest, of what a cache has room for 2:
            a sum over dimension 1 or 0 goes in steps that are often a multiple of 4096 bytes, of which a cache holds few.

    Returns:
        Two vectors ``[channels]``.
    """
    values = tf.cast(values, compute_dtype(values.dtype))
    count = tf.maximum(_values_per_channel(values, [0, 1, 2]), 1.0)
    others = [axis for axis in (0, 1, 2) if axis != first]
    mean = sum_of_sums(tf.reduce_sum(values, first, keepdims=True), others) / count
    norms = tf.raw_ops.EuclideanNorm(input=values, axis=[first], keep_dims=True)  # sums squares without writing them
    squares = sum_of_sums(tf.square(norms), others) / count
    variance = tf.maximum(squares - tf.square(mean), 0.0)
    return tf.reshape(mean, [-1]), tf.reshape(variance, [-1])


def _mean_of_means(values: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """The mean over `axes`, one after the other, so that each sum is short.

    To a sum of a million values the next one adds but its first digits, and the squares' mean comes out 10⁻³ low.
    """
    for axis in sorted(axes, reverse=True):
        values = tf.reduce_mean(values, axis, keepdims=True)
    return values


def sum_of_sums(values: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """The sum over `axes`, kept at size 1, one after the other, for the same reason; of no values, 0."""
    for axis in sorted(axes, reverse=True):
        values = tf.reduce_sum(values, axis, keepdims=True)
    return values


def first_value(inputs: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """One value per channel, kept at size 1, with no gradient; 0 for a shape that is known to have none."""
    sizes = inputs.shape.as_list()
    if 0 in sizes:
        return tf.zeros([1 if axis in axes else size for axis, size in enumerate(sizes)], inputs.dtype)
    corner = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(len(sizes)))
    return tf.stop_gradient(inputs[corner])


def _values_per_channel(inputs: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    sizes = [inputs.shape.as_list()[axis] for axis in axes]
    if None not in sizes:
        return tf.constant(float(math.prod(sizes)), inputs.dtype)
    return tf.cast(tf.reduce_prod(tf.gather(tf.shape(inputs), axes)), inputs.dtype)


def weighted_statistics(inputs: tf.Tensor, axes: Sequence[int], weights: tf.Tensor) -> BatchStatistics:
    """`batch_statistics` with each value counted `weights` times; a weight of 0 leaves a value out, NaN included.

    A value of weight 0 that is not finite (padding may hold anything) is centered as if it were the mean, so that it
    reaches neither outputs nor gradients; other values of weight 0 are centered like all.

    Args:
        inputs: float tensor of known rank.
        axes: the dimensions to average over.
        weights: bool or numeric, not negative, broadcastable to `inputs`; 1 in the channel's dimension or of its size.

    Returns:
        `BatchStatistics`: mean = Σwx/Σw, variance = Σw(x−mean)²/Σw, count = Σw.

    Example:
        >>> from bn_graph.layers.moments import weighted_statistics
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     padded, real = tf.constant([[1.0], [3.0], [99.0]]), tf.constant([[True], [True], [False]])
        ...     session.run(weighted_statistics(padded, [0], real).mean)
        array([[2.]], dtype=float32)
    """
    inputs = tf.cast(inputs, compute_dtype(inputs.dtype))
    weights = tf.cast(weights, inputs.dtype) + tf.zeros_like(inputs)
    # 0·NaN is NaN, in the forward pass and in the gradient.
    counted = tf.where(weights > 0, inputs, tf.zeros_like(inputs))
    count = sum_of_sums(weights, axes)

    def weighted_mean(values: tf.Tensor) -> tf.Tensor:
        return sum_of_sums(weights * values, axes) / count

    shift = tf.stop_gradient(weighted_mean(counted))
    remainder = weighted_mean(counted - shift)
    variance = weighted_mean(tf.square(counted - shift - remainder))
    neutral = tf.broadcast_to(shift, tf.shape(inputs))
    values = tf.where(tf.logical_or(weights > 0, tf.math.is_finite(inputs)), inputs, neutral)
    return BatchStatistics(values - shift - remainder, shift + remainder, variance, count)


def normalize(
    centered: tf.Tensor, variance: tf.Tensor, gamma: tf.Tensor | None, beta: tf.Tensor | None, epsilon: float
) -> tf.Tensor:
    """γ·centered/√(variance + ε) + β, the last line of the transform.

    Args:
        centered: inputs − mean, float32 or float64.
        variance, gamma, beta: broadcastable to `centered`, of its dtype; `gamma` or `beta` may be None (1 or 0).
        epsilon: added to the variance, inside the root.

    Returns:
        A tensor of `centered`'s shape and dtype.

    Source: Ioffe & Szegedy 2015, Algorithm 1, lines 3 and 4.

    Example:
        >>> from bn_graph.layers.moments import normalize
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     session.run(normalize(tf.constant([-1.0, 1.0]), tf.constant(0.75), None, tf.constant(5.0), 0.25))
        array([4., 6.], dtype=float32)
    """
    scale = tf.rsqrt(variance + epsilon)
    if gamma is not None:
        scale *= gamma
    outputs = centered * scale
    return outputs if beta is None else outputs + beta


def normalize_gradients(
    received: tf.Tensor, statistics: BatchStatistics, gamma: tf.Tensor | None, epsilon: float, axes: Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The gradients of `normalize` by `batch_statistics`, in the inputs, γ and β: with x̂ = (x − μ)/√(σ² + ε) and g `received`,

    Σ g for β, Σ g·x̂ for γ, and for x ``γ/√(σ² + ε)·(g − 1/m Σ g − x̂·1/m Σ g·x̂)``: half of the passes over the values that
    TensorFlow's take, which go through the mean and the variance one by one.

    Args:
        received: the gradient of the outputs, in their shape and dtype.
        statistics, gamma, epsilon: as they went into the outputs.
        axes: the dimensions averaged over.

    Returns:
        The gradients, those of γ and β with the reduced dimensions at size 1.

    Source: Ioffe & Szegedy 2015, section 3, the chain rule written out, and gathered.
    """
    inverse = tf.rsqrt(statistics.variance + epsilon)
    of_beta = sum_of_sums(received, axes)
    of_gamma = sum_of_sums(received * statistics.centered, axes) * inverse
    centered = received - of_beta / statistics.count - statistics.centered * (inverse * of_gamma / statistics.count)
    return centered * (inverse if gamma is None else inverse * gamma), of_gamma, of_beta
