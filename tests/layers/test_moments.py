"""The transform: tensors in, tensors out, against float64 NumPy."""

import numpy as np
import pytest

from bn_graph.layers import moments
from bn_graph.tf1 import tf
from tests import oracle

pytestmark = pytest.mark.usefixtures("plain_graph")


@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 3), 1), ((3, 6), 0), ((4, 5, 3), 2), ((2, 3, 4, 5), 1), ((2, 3, 2, 2, 4), 4)]
)
def test_statistics_are_those_of_numpy_with_reduced_dimensions_kept(shape, axis, start, random):
    inputs = random.normal(2.0, 3.0, shape)
    reduced = [dimension for dimension in range(len(shape)) if dimension != axis]
    centered, mean, variance, _ = start().run(moments.batch_statistics(tf.constant(inputs), reduced))

    expected_mean, expected_variance = oracle.statistics(inputs, axis)
    kept = [size if dimension == axis else 1 for dimension, size in enumerate(shape)]
    assert mean.shape == variance.shape == tuple(kept)
    np.testing.assert_allclose(mean.ravel(), expected_mean, atol=1e-12)
    np.testing.assert_allclose(variance.ravel(), expected_variance, rtol=1e-12)
    np.testing.assert_allclose(centered, inputs - expected_mean.reshape(kept), atol=1e-12)


def test_variance_is_biased(start):
    _, _, variance, _ = start().run(moments.batch_statistics(tf.constant([[1.0], [3.0]]), [0]))
    np.testing.assert_array_equal(variance, [[np.var([1.0, 3.0], ddof=0)]])


def test_variance_of_equal_values_is_zero_however_large_they_are(start):
    centered, mean, variance, _ = start().run(moments.batch_statistics(tf.fill([7, 1], tf.constant(123456.7)), [0]))
    np.testing.assert_array_equal(centered, np.zeros((7, 1)))
    np.testing.assert_array_equal(variance, [[0.0]])
    np.testing.assert_array_equal(mean, [[np.float32(123456.7)]])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (tf.float16, tf.float32),
        (tf.bfloat16, tf.float32),
        (tf.float32, tf.float32),
        (tf.float64, tf.float64),
    ],
)
def test_half_precisions_are_computed_in_float32_and_others_in_their_own(dtype, expected):
    assert moments.compute_dtype(dtype) == expected
    computed = moments.batch_statistics(tf.zeros([2, 3], dtype), [0])
    assert [tensor.dtype for tensor in computed] == [expected] * 4


@pytest.mark.parametrize("offset", [0.0, 256.0, 1e6])
def test_float32_statistics_keep_their_digits_far_from_zero(offset, start, random):
    # The oracle reads the same numbers as the layer: rounded to float32 first, which at 1e6 is to multiples of 1/16.
    inputs = random.normal(offset, 1.0, (64, 3)).astype(np.float32)
    centered, mean, variance, _ = start().run(moments.batch_statistics(tf.constant(inputs), [0]))
    expected_mean, expected_variance = oracle.statistics(inputs)
    np.testing.assert_allclose(centered, inputs.astype(np.float64) - expected_mean, atol=1e-6)
    np.testing.assert_allclose(mean[0], expected_mean, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(variance[0], expected_variance, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_float32_statistics_of_a_large_batch_are_as_good_far_from_zero(offset, start, random):
    # 64 images of 28×28. A plain float32 sum of so many values is good to some 1e-5 around 0 (measured: 5e-6).
    values = random.normal(offset, 1.0, (64 * 28 * 28, 3)).astype(np.float32)
    inputs = tf.placeholder(tf.float32, [None, 3])
    centered, _, variance, _ = start().run(moments.batch_statistics(inputs, [0]), {inputs: values})
    expected_mean, expected_variance = oracle.statistics(values)
    np.testing.assert_allclose(centered, values.astype(np.float64) - expected_mean, atol=2e-5)
    np.testing.assert_allclose(variance[0], expected_variance, rtol=2e-5)


@pytest.mark.parametrize("shape", [(32, 224, 224, 2), (256, 56, 56, 2), (2, 32, 224, 224)])
def test_float32_statistics_of_millions_of_values_are_those_of_float64(shape, start, random):
    # Behind a ReLU the squares are uneven, and one sum of them all is 3·10⁻³ low.
    axes = [axis for axis, size in enumerate(shape) if size != 2]
    values = np.maximum(random.standard_normal(shape), 0.0).astype(np.float32)
    inputs = tf.placeholder(tf.float32, [None if axis in axes else 2 for axis in range(4)])
    statistics = moments.batch_statistics(inputs, axes)
    mean, variance = start().run([statistics.mean, statistics.variance], {inputs: values})
    wide = values.astype(np.float64)
    # The first value is subtracted before, so sums of 256 may be of values some deviations off.
    np.testing.assert_allclose(mean, wide.mean(tuple(axes), keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(variance, wide.var(tuple(axes), keepdims=True), rtol=1e-5)


def test_weighted_float32_statistics_of_millions_of_values_are_those_of_float64(start, random):
    shape = (32, 224, 224, 1)
    values = np.maximum(random.standard_normal(shape), 0.0).astype(np.float32)
    weights = random.uniform(0.0, 2.0, (32, 1, 1, 1)).astype(np.float32)
    inputs = tf.placeholder(tf.float32, [None, None, None, 1])
    statistics = moments.weighted_statistics(inputs, [0, 1, 2], tf.constant(weights))
    mean, variance = start().run([statistics.mean, statistics.variance], {inputs: values})
    wide = np.broadcast_to(weights.astype(np.float64), shape)
    expected = np.average(values, weights=wide)
    np.testing.assert_allclose(mean, np.full((1, 1, 1, 1), expected), rtol=1e-5)
    np.testing.assert_allclose(variance.item(), np.average((values - expected) ** 2, weights=wide), rtol=1e-5)


def test_statistics_of_float16_inputs_whose_sum_overflows_float16_are_finite(start):
    inputs = np.full((64, 1), 30000.0, np.float16)
    inputs[::2] = 20000.0
    with np.errstate(over="ignore"):
        assert np.isinf(inputs.sum(dtype=np.float16))
    _, mean, variance, _ = start().run(moments.batch_statistics(tf.constant(inputs), [0]))
    expected_mean, expected_variance = oracle.statistics(inputs)
    np.testing.assert_allclose(mean[0], expected_mean, rtol=1e-6)
    np.testing.assert_allclose(variance[0], expected_variance, rtol=1e-6)


@pytest.mark.parametrize("static", [[6, 4, 2], [None, 4, 2], [None, None, 2]])
def test_the_count_is_of_values_per_channel(static, start):
    inputs = tf.placeholder(tf.float32, static)
    count = moments.batch_statistics(inputs, [0, 1]).count
    assert start().run(count, {inputs: np.zeros((6, 4, 2))}) == 6 * 4


def test_gradients_flow_through_all_but_the_count(start, random):
    point = random.normal(3.0, 1.0, (4, 2))
    weights = [random.normal(size=shape) for shape in [(4, 2), (1, 2), (1, 2)]]
    inputs = tf.placeholder(tf.float64, [4, 2])
    computed = moments.batch_statistics(inputs, [0])
    loss = tf.add_n([tf.reduce_sum(tensor * weight) for tensor, weight in zip(computed[:3], weights, strict=True)])
    got = start().run(tf.gradients(loss, inputs)[0], {inputs: point})

    def expected_loss(values):
        mean, variance = oracle.statistics(values)
        return sum((part * weight).sum() for part, weight in zip((values - mean, mean, variance), weights, strict=True))

    np.testing.assert_allclose(got, oracle.gradient(expected_loss, point), atol=1e-8)


@pytest.mark.parametrize("with_gamma", [True, False])
@pytest.mark.parametrize("with_beta", [True, False])
def test_normalize_scales_by_gamma_and_shifts_by_beta_where_they_are_given(with_gamma, with_beta, start, random):
    centered, variance = random.normal(size=(5, 3)), np.array([0.5, 1.0, 4.0])
    gamma = np.array([1.0, -2.0, 3.0]) if with_gamma else None
    beta = np.array([0.0, 10.0, -1.0]) if with_beta else None
    got = start().run(moments.normalize(tf.constant(centered), tf.constant(variance), gamma, beta, 0.1))
    expected = oracle.normalized(
        centered, 0.0, variance, gamma if with_gamma else 1.0, beta if with_beta else 0.0, epsilon=0.1
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_epsilon_of_float64_is_not_rounded_to_float32(start):
    got = start().run(moments.normalize(tf.ones([], tf.float64), tf.zeros([], tf.float64), None, None, 0.1))
    np.testing.assert_allclose(got, 1.0 / np.sqrt(0.1), rtol=1e-14)


def test_epsilon_of_float64_may_be_smaller_than_the_smallest_float32(start):
    got = start().run(moments.normalize(tf.zeros([], tf.float64), tf.zeros([], tf.float64), None, None, 1e-60))
    np.testing.assert_array_equal(got, 0.0 / np.sqrt(1e-60))


def test_epsilon_is_inside_the_root(start):
    got = start().run(moments.normalize(tf.constant(6.0), tf.constant(0.0), None, None, 4.0))
    np.testing.assert_allclose(got, 6.0 / np.sqrt(0.0 + 4.0), rtol=1e-6)
