"""Batch statistics, and moving statistics, over all workers' examples.

A worker has a part of the batch: a process of a cluster, or a tower of one process. Workers exchange one vector a layer
(`Gather`) and each computes from it, in the same order, so that all of them come to the same statistics bit for bit.
The caller provides the exchange; `bn_graph.training.distributed` has TensorFlow's collectives for it.

Accuracy. E[x²] − E[x]² loses all digits where the mean is large, and so do means that are rounded at their own size.
A worker's mean travels in two parts (one of its values, and the mean of what is left when that is subtracted), its
variance about its own mean, and they are combined as Chan, Golub & LeVeque do (1979): within the workers and between.
"""

from collections.abc import Callable
from typing import NamedTuple

from bn_graph.layers import moments
from bn_graph.layers.transforms import Normalized, along, corrected, reduced_axes
from bn_graph.tf1 import tf

__all__ = ["Gather", "by_all_workers", "with_moving_statistics_of_all_workers"]

Gather = Callable[[tf.Tensor], tf.Tensor]
"""From a worker's vector ``[n]`` to all workers' ``[workers, n]``, the same at each; the gradient of a worker's row is the
sum over all workers. All run it together, and each layer's call is one exchange."""

_ONE_VALUE = (
    "Batch normalization in training needs at least two values per channel in the batches of all workers together: "
    "the mean of one value is that value, so every output would be beta whatever the input. Their number was"
)


class _Statistics(NamedTuple):
    """Of one worker's batch or of all: mean = shift + remainder, and no gradient through count and shift."""

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
) -> Normalized:
    """Normalizes this worker's `inputs` by the mean and variance of all workers' examples, each example counted alike.

    Args:
        inputs, axis, gamma, beta, epsilon: as for `transforms.by_moments`. The batch's size may differ between workers,
            and be 0 or 1 at some.
        gather: exchanges one vector, forward, and one in the gradient.
        unbiased: the estimator gets m/(m−1) times the variance, m the number of values at all workers.

    Returns:
        `Normalized`; its mean and variance are those of the whole batch, the same at every worker.

    Raises:
        tf.errors.InvalidArgumentError: at a run, at every worker, if all of them together have fewer than two values
            per channel.
    """
    axes = reduced_axes(inputs, axis)
    values = tf.cast(inputs, moments.compute_dtype(inputs.dtype))
    channels = inputs.shape.as_list()[axis]
    corner = tuple(slice(0, 1) if dimension in axes else slice(None) for dimension in range(values.shape.rank))
    shift = tf.stop_gradient(tf.reduce_sum(values[corner], axes))  # the first value; of an empty batch, 0
    count = tf.cast(tf.size(values) // channels, values.dtype)
    shifted = values - along(axis, inputs, shift)
    remainder = tf.reduce_sum(shifted, axes) / tf.maximum(count, 1.0)
    centered = shifted - along(axis, inputs, remainder)
    variance = tf.reduce_sum(tf.square(centered), axes) / tf.maximum(count, 1.0)

    whole = _combined(_Statistics(count, shift, remainder, variance), gather)
    to_own_mean = (shift - whole.shift) + remainder - whole.remainder
    outputs = moments.normalize(
        centered + along(axis, inputs, to_own_mean),
        *(along(axis, inputs, each) for each in (whole.variance, gamma, beta)),
        epsilon,
    )
    variance = corrected(whole.variance, whole.count, unbiased)
    return Normalized(tf.cast(outputs, inputs.dtype), whole.shift + whole.remainder, variance)


def with_moving_statistics_of_all_workers(
    by_batch: Callable[..., Normalized], gather: Gather, *, unbiased: bool
) -> Callable[..., Normalized]:
    """`by_batch`, each worker by its own batch's statistics, and the estimator gets those of all workers' examples.

    Args:
        by_batch: as `transforms.by_moments`; its own variance biased.
        gather: exchanges one vector. Only the updates wait for it, and it has no gradient.
        unbiased: as in `by_all_workers`.

    Returns:
        A function like `by_batch`. The variance for the estimator is the mean of the workers' variances *and* the
        variance between their means: inference has no workers, and the population's variance has both parts.
    """

    def by_own_batch(inputs: tf.Tensor, axis: int, *args) -> Normalized:
        outputs, mean, variance = by_batch(inputs, axis, *args)
        mean, variance = tf.stop_gradient(mean), tf.stop_gradient(variance)
        count = tf.cast(tf.size(inputs) // inputs.shape.as_list()[axis], mean.dtype)
        whole = _combined(_Statistics(count, mean, tf.zeros_like(mean), variance), gather)
        return Normalized(outputs, whole.shift + whole.remainder, corrected(whole.variance, whole.count, unbiased))

    return by_own_batch


def _combined(part: _Statistics, gather: Gather) -> _Statistics:
    parts = gather(tf.concat([[part.count], part.shift, part.remainder, part.variance], 0))
    channels = part.shift.shape.as_list()[0]
    counts, shifts, remainders, variances = tf.split(parts, [1, channels, channels, channels], 1)
    counts, shifts = tf.stop_gradient(counts), tf.stop_gradient(shifts)
    count = tf.reduce_sum(counts)
    # Every worker has the same counts before it, so all of them raise, and none waits for another's next exchange.
    with tf.control_dependencies([tf.debugging.Assert(count > 1.0, [_ONE_VALUE, count])]):
        shares = counts / count
    # Any value near the data would do: the remainders have what is rounded off here.
    shift = tf.reduce_sum(shares * shifts, 0)
    offsets = (shifts - shift) + remainders
    remainder = tf.reduce_sum(shares * offsets, 0)
    variance = tf.reduce_sum(shares * (variances + tf.square(offsets - remainder)), 0)
    return _Statistics(count, shift, remainder, variance)
