"""Count, mean and biased variance of a batch of values per channel, as exact as float64 and nearly as fast as float32."""

import math
from collections.abc import Sequence

from bn_graph.tf1 import tf

__all__ = ["count_mean_variance"]

_LONGEST_BLOCK = 64
_SHORTEST_BLOCK = 8


def count_mean_variance(inputs: tf.Tensor, axes: Sequence[int]) -> list[tf.Tensor]:
    """Values per channel (int64), their mean and biased variance (float64 [channels]), whatever kernel the layer has.

    Images in float32, where nearly all the time goes, are summed in short blocks in float32 and over the blocks in
    float64: within 10⁻⁷ of the whole sum in float64, which takes twice as long. Everything else is summed in float64.

    Args:
        inputs: what a layer normalizes.
        axes: that are averaged over.
    """
    block = _block(inputs, axes)
    if block:
        channels = inputs.shape.as_list()[-1]
        mean, variance = _by_blocks(tf.reshape(inputs, [-1, channels]), block)
    else:
        values = tf.cast(inputs, tf.float64)
        mean = tf.reduce_mean(values, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(values, mean), axes)
    count = tf.size(inputs, out_type=tf.int64) // tf.maximum(tf.size(mean, out_type=tf.int64), 1)
    return [count, tf.reshape(mean, [-1]), tf.reshape(variance, [-1])]


def _block(inputs: tf.Tensor, axes: Sequence[int]) -> int | None:
    """How many positions to sum in float32: as many as divide an example's, so that no batch leaves a rest."""
    sizes = inputs.shape.as_list() if inputs.shape.rank is not None else [None]
    rank = len(sizes)
    if inputs.dtype != tf.float32 or None in sizes[1:] or sorted(axis % rank for axis in axes) != list(range(rank - 1)):
        return None
    positions = math.prod(sizes[1:-1])
    blocks = range(_SHORTEST_BLOCK, min(_LONGEST_BLOCK, positions) + 1)
    return max((size for size in blocks if positions % size == 0), default=None)


def _by_blocks(rows: tf.Tensor, block: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of ``[n, channels]``, `block` of which divide n.

    First the mean of the first block is subtracted (of which an outlier is a small part), then the mean, so that few
    digits are lost.
    """

    def mean_of(values: tf.Tensor) -> tf.Tensor:
        sums = tf.reduce_sum(tf.reshape(values, [-1, block, rows.shape.as_list()[1]]), 1)
        return tf.reduce_sum(tf.cast(sums, tf.float64), 0) / tf.cast(tf.shape(values)[0], tf.float64)

    shift = tf.reduce_sum(rows[:block], 0) / block  # 0 of an empty batch
    shifted = rows - shift
    mean = mean_of(shifted)
    center = tf.cast(mean, tf.float32)
    variance = mean_of(tf.math.squared_difference(shifted, center)) - tf.square(mean - tf.cast(center, tf.float64))
    return mean + tf.cast(shift, tf.float64), variance
