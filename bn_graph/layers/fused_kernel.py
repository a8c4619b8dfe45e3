"""How a batch is normalized by TensorFlow's fused kernel: rank 4, the channels last, at most float32."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bn_graph.layers import moments
from bn_graph.layers.transforms import Axis, Normalized, by_mode
from bn_graph.tf1 import is_compiled, tf, with_gradient

__all__ = ["FAR", "HAS_MANY_VALUES", "SHIFTS_INPUTS", "by_fused_kernel"]

SHIFTS_INPUTS = "shifts_inputs"
"""The op, by this name in the layer's scope, that decides whether a value is subtracted before the fused kernel."""

HAS_MANY_VALUES = "has_many_values"
"""The op, by this name in the layer's scope, that decides whether the fused kernel's own statistics would do."""

_MOST_VALUES = 2**16
"""Of how many values a channel the fused kernel may take the statistics: it adds them up in one run of float32.

Of this many standard normal values its variance is 2·10⁻⁵ low, and the error grows with their number: 10⁻³ at 32×224×224.
(Squares of values behind a ReLU are uneven, and what is reached there is 4·10⁻⁴ and 4·10⁻³.)
"""

FAR = 16.0
"""How many standard deviations a channel's mean may lie from 0 before the rounding of the fused kernel would show (10⁻⁶)."""

_FAR_OF_MANY = 4.0
"""Likewise, of `moments.statistics_of_many`."""

_SAMPLED_EXAMPLES = 8
"""Of so many examples the middle row tells whether the mean is far, which costs next to nothing."""

_GRADIENT = "BnGraphFusedKernelInTraining"
"""The name under which TensorFlow knows `_training_gradients`."""


def by_fused_kernel(
    inputs: tf.Tensor, axis: Axis, gamma: tf.Tensor | None, beta: tf.Tensor | None, epsilon: float, *, unbiased: bool
) -> Normalized:
    """`by_moments` for rank 4 with the channels last, by TensorFlow's fused kernel: the same numbers, several times faster.

    The kernel sums the values as they are. Where a channel's mean lies far from 0 by its own standard deviation, that
    loses digits (inputs around 10⁶ with deviation 1: all of them), and one value per channel is subtracted first. A
    sample of the batch decides: the kernel's own statistics come too late to choose its inputs, and subtracting always
    would cost a pass over them. Gradients don't go through that choice, for they are the same on either side.

    It also sums all values of a channel in one run. Where they are many, `moments.statistics_of_many` has the statistics.
    """
    channels = inputs.shape.as_list()[axis]
    many = _has_many_values(inputs)
    values, far, subtracted = near_zero(inputs, epsilon, many)
    values = with_gradient(values, [inputs], lambda received, _: [received])
    scale = tf.ones([channels], tf.float32) if gamma is None else tf.convert_to_tensor(gamma)
    offset = tf.zeros([channels], tf.float32) if beta is None else tf.convert_to_tensor(beta)
    count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:-1]), tf.float32)
    results = by_mode(
        many,
        lambda: _kernel_of_many(values, scale, offset, epsilon, count),
        lambda: _Kernel(*_training_kernel(values, scale, offset, epsilon)),
    )
    outputs = results.outputs
    if many is not False:  # gradients don't go through this choice either
        outputs = _with_training_gradients(results, values, scale, offset, epsilon)
    mean = tf.where(far, results.mean + subtracted, results.mean)
    variance = results.variance
    if not unbiased:  # the kernel applies Bessel's correction
        variance = variance * (tf.maximum(count - 1.0, 1.0) / count)
    return Normalized(outputs, mean, variance)


def near_zero(
    inputs: tf.Tensor, epsilon: float, many: bool | tf.Tensor = True
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`inputs` less one value per channel, if some channel's mean lies far from 0, else as they are; whether so; that value.

    Args:
        inputs: of rank 4, the channels last.
        epsilon: the layer's.
        many: whether `moments.statistics_of_many` has their statistics, or the fused kernel.
    """
    far = tf.identity(_is_far(inputs, epsilon, many), name=SHIFTS_INPUTS)
    value = moments.first_value(inputs, [0, 1, 2])
    values = tf.cond(far, lambda: inputs - value, lambda: inputs)
    return values, far, tf.reduce_sum(tf.cast(value, tf.float32), [0, 1, 2])


class _Kernel(NamedTuple):
    """The outputs of a fused kernel in training mode; ``reserved`` is what its gradient takes."""

    outputs: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    reserved_1: tf.Tensor
    reserved_2: tf.Tensor
    reserved_3: tf.Tensor

    @property
    def reserved(self) -> Sequence[tf.Tensor]:
        """All three of them."""
        return self[3:]


def _training_kernel(values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> Sequence[tf.Tensor]:
    empty = tf.zeros([0], tf.float32)
    return tf.raw_ops.FusedBatchNormV3(
        x=values, scale=scale, offset=offset, mean=empty, variance=empty, epsilon=epsilon, is_training=True
    )


def _kernel_of_many(
    values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float, count: tf.Tensor
) -> _Kernel:
    """What the kernel would give in training mode if it summed in short runs: in inference mode, by such statistics."""
    mean, variance = moments.statistics_of_many(values)
    outputs = tf.raw_ops.FusedBatchNormV3(
        x=values, scale=scale, offset=offset, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y
    unbiased = variance * (count / tf.maximum(count - 1.0, 1.0))
    return _Kernel(outputs, mean, unbiased, *_reserved(mean, variance, epsilon))


def _with_training_gradients(
    results: _Kernel, values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """The outputs, with the gradients of the kernel in training mode; in inference mode it takes statistics for constants.

    A graph that is imported has them too, by their name; where this library was not imported, ``tf.gradients`` raises there.
    """
    with tf.get_default_graph().gradient_override_map({"IdentityN": _GRADIENT}):
        return tf.identity_n([values, scale, offset, *results.reserved, tf.constant(epsilon), results.outputs])[-1]


@tf.RegisterGradient(_GRADIENT)
def _training_gradients(op: tf.Operation, *received: tf.Tensor) -> list[tf.Tensor | None]:
    values, scale, _, first, second, third, epsilon, _ = op.inputs
    results = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=received[-1],
        x=values,
        scale=scale,
        reserve_space_1=first,
        reserve_space_2=second,
        reserve_space_3=third,
        epsilon=float(tf.get_static_value(epsilon)),
        is_training=True,
    )
    return [*results[:3], *[None] * 5]


def _reserved(mean: tf.Tensor, variance: tf.Tensor, epsilon: float) -> Sequence[tf.Tensor]:
    """Statistics in the form in which the kernel hands them to its gradient, which differs between devices.

    So the kernel itself makes it: of two values a channel, ±√variance, which have that variance and mean 0. Its scale is
    no constant, by which the graph's model knows that this is no layer.
    """
    deviation = tf.sqrt(variance)
    two = tf.reshape(tf.stack([deviation, -deviation]), [2, 1, 1, -1])
    results = _training_kernel(two, tf.ones_like(mean, optimize=False), tf.zeros_like(mean), epsilon)
    return mean, results.reserve_space_2, results.reserve_space_3


def _has_many_values(inputs: tf.Tensor) -> bool | tf.Tensor:
    """Whether a channel has more than `_MOST_VALUES`; a tensor unless the static shape, or XLA, says no.

    The rounding is that of TensorFlow's kernel, and XLA has another and lacks an op of `moments.statistics_of_many`.
    """
    sizes = inputs.shape.as_list()[:-1]
    has_few = None not in sizes and math.prod(sizes) <= _MOST_VALUES
    if has_few or is_compiled(tf.get_default_graph()):
        return False
    return tf.greater(tf.reduce_prod(tf.shape(inputs, out_type=tf.int64)[:-1]), _MOST_VALUES, name=HAS_MANY_VALUES)


def _is_far(inputs: tf.Tensor, epsilon: float, many: bool | tf.Tensor) -> tf.Tensor:
    """Whether some channel's mean lies more than so many deviations from 0, by the middle rows of the first examples.

    If that is wrong, it costs little: a needless subtraction, or, since the deviation of k of m values is at most √(m/k)
    times that of all, so many digits as are in √(m/k).
    """
    middle = tf.shape(inputs)[1] // 2
    sample = tf.cast(tf.stop_gradient(inputs[:_SAMPLED_EXAMPLES, middle]), tf.float32)
    mean = tf.reduce_mean(sample, [0, 1])
    variance = tf.reduce_mean(tf.math.squared_difference(sample, mean), [0, 1])
    most = FAR**2 if many is False else tf.where(many, _FAR_OF_MANY**2, FAR**2)
    return tf.reduce_any(tf.square(mean) > most * (variance + epsilon))
