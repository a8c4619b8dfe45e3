"""Tests of `recalibrate`: against a float64 network in NumPy, for every way in which a graph may hold a batch norm layer."""

import itertools

import numpy as np
import pytest

import bn_graph
from bn_graph import recalibration as module
from bn_graph.graphs.calls import find_calls
from bn_graph.recalibration import RecalibrationError, recalibrate
from bn_graph.recalibration import assign as assigning
from bn_graph.tf1 import legacy_layers, tf
from tests.conftest import USUAL_KINDS

EPSILON = 1e-3
WIDTHS = (4, 5, 5, 5)


# --- What it should give ----------------------------------------------------------------------------------------------


def expected_pooled(data, weights, unbiased=True):
    """Each layer's mean and variance over all of `data`, the layers before it normalizing by theirs; tanh between."""
    found, hidden = [], data.astype(np.float64)
    for matrix in weights:
        hidden = hidden @ matrix.astype(np.float64)
        values = hidden.reshape(-1, hidden.shape[-1])
        mean, variance = values.mean(0), values.var(0, ddof=int(unbiased))
        found.append((mean, variance))
        hidden = np.tanh((hidden - mean) / np.sqrt(variance + EPSILON))
    return found


def expected_paper(batches, weights, unbiased=True):
    """Algorithm 2: each batch by its own statistics all the way; then averages, weighted by the batches' sizes."""
    per_batch = []
    for batch in batches:
        hidden, layers = batch.astype(np.float64), []
        for matrix in weights:
            hidden = hidden @ matrix.astype(np.float64)
            mean, variance = hidden.mean(0), hidden.var(0)
            m = len(hidden)
            layers.append((mean, variance * m / (m - 1) if unbiased else variance))
            hidden = np.tanh((hidden - mean) / np.sqrt(variance + EPSILON))
        per_batch.append(layers)
    sizes = [len(batch) for batch in batches]
    return [
        tuple(np.average([layers[k][part] for layers in per_batch], axis=0, weights=sizes) for part in (0, 1))
        for k in range(len(weights))
    ]


def assert_statistics(records, expected, tolerance=2e-6):
    assert len(records) == len(expected)
    for record, (mean, variance) in zip(records, expected, strict=True):
        np.testing.assert_allclose(record.mean.reshape(-1), mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(record.variance.reshape(-1), variance, rtol=tolerance, atol=tolerance)


# --- Ways to build a layer: each normalizes `z` by the batch or the population and moves two statistics ---------------


def wrapper(z, flag, name):
    return bn_graph.batch_norm_wrapper(z, flag, epsilon=EPSILON, name=name)


def wrapper_with_collection(z, flag, name):
    return bn_graph.batch_norm_wrapper(
        z, flag, epsilon=EPSILON, updates_collection=tf.GraphKeys.UPDATE_OPS, zero_debias=True, name=name
    )


def wrapper_unfused(z, flag, name):
    return bn_graph.batch_norm_wrapper(z, flag, epsilon=EPSILON, fused=False, name=name)


def wrapper_with_virtual_batches(z, flag, name):
    return bn_graph.batch_norm_wrapper(z, flag, epsilon=EPSILON, virtual_batch_size=2, name=name)


def wrapper_with_renorm(z, flag, name):
    return bn_graph.batch_norm_wrapper(z, flag, epsilon=EPSILON, renorm=True, name=name)


def tf_layers(z, flag, name):
    return legacy_layers().batch_normalization(z, training=flag, epsilon=EPSILON, name=name)


def tf_layers_unfused(z, flag, name):
    return legacy_layers().batch_normalization(z, training=flag, epsilon=EPSILON, fused=False, name=name)


def _variables(z, name):
    """Statistics with the names of r2rt's wrapper, and a scale that is not 1."""
    channels = z.shape.as_list()[-1]
    with tf.variable_scope(name):
        mean = tf.get_variable("pop_mean", [channels], initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable("pop_var", [channels], initializer=tf.ones_initializer(), trainable=False)
    return mean, variance


def _beta(z, name):
    with tf.variable_scope(name):
        return tf.get_variable("beta", z.shape[-1:], initializer=tf.zeros_initializer())


def _normalized(z, mean, variance):
    return tf.nn.batch_normalization(z, mean, variance, None, None, EPSILON)


def r2rt(z, flag, name):
    """r2rt's own: in-place assigns, pop·decay + batch·(1 − decay), everything inside the branch."""
    pop_mean, pop_var = _variables(z, name)

    def train():
        mean, variance = tf.nn.moments(z, list(range(z.shape.rank - 1)))
        updates = [
            tf.assign(pop_mean, pop_mean * 0.9 + mean * (1 - 0.9)),
            tf.assign(pop_var, pop_var * 0.9 + variance * (1 - 0.9)),
        ]
        with tf.control_dependencies(updates):
            return _normalized(z, mean, variance)

    with tf.name_scope(name):
        return train() if flag is True else tf.cond(flag, train, lambda: _normalized(z, pop_mean, pop_var))


def moving_average_shadows(z, flag, name):
    """The recipe of many answers on the web: ExponentialMovingAverage of the moments, chosen by tf.cond."""
    with tf.variable_scope(name):
        mean, variance = tf.nn.moments(z, list(range(z.shape.rank - 1)))
        average = tf.train.ExponentialMovingAverage(0.9)
        apply = average.apply([mean, variance])

        def train():
            with tf.control_dependencies([apply]):
                return tf.identity(mean), tf.identity(variance)

        def infer():
            return average.average(mean), average.average(variance)

        return _normalized(z, *(train() if flag is True else tf.cond(flag, train, infer)))


def moments_in_branch(z, flag, name):
    """tf.cond between the batch's moments, taken in the branch, and the statistics; it feeds the averages too."""
    pop_mean, pop_var = _variables(z, name)

    def train():
        return tf.nn.moments(z, list(range(z.shape.rank - 1)))

    mean, variance = train() if flag is True else tf.cond(flag, train, lambda: (pop_mean + 0.0, pop_var + 0.0))
    tf.assign_sub(pop_mean, (pop_mean - mean) * 0.1)
    tf.assign_sub(pop_var, (pop_var - variance) * 0.1)
    return _normalized(z, mean, variance)


def shifted_moments(z, flag, name):
    """What tf.nn.moments was before TensorFlow 1.5: about a shift, and a difference of squares."""
    pop_mean, pop_var = _variables(z, name)
    axes = list(range(z.shape.rank - 1))
    shift = tf.stop_gradient(tf.reduce_mean(z, axes, keepdims=True))
    shifted = tf.reduce_mean(z - shift, axes, keepdims=True)
    of_squares = tf.reduce_mean(tf.squared_difference(z, shift), axes, keepdims=True)
    variance = tf.squeeze(of_squares - tf.square(shifted), axes)
    mean = tf.squeeze(shifted + shift, axes)
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_sub(pop_mean, 0.1 * (pop_mean - mean)))
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_sub(pop_var, 0.1 * (pop_var - variance)))
    if flag is True:
        return (z - shift - shifted) * tf.rsqrt(variance + EPSILON)
    return _normalized(z, *tf.cond(flag, lambda: (mean, variance), lambda: (pop_mean + 0.0, pop_var + 0.0)))


def summed_moments(z, flag, name):
    """What tf.nn.moments was in TensorFlow 1.0 to 1.2: sums times the reciprocal of the count, about a shift."""
    pop_mean, pop_var = _variables(z, name)
    axes = list(range(z.shape.rank - 1))
    shift = tf.stop_gradient(tf.reduce_mean(z, axes, keepdims=True))
    divisor = tf.reciprocal(tf.reduce_prod(tf.gather(tf.cast(tf.shape(z), tf.float32), axes)))
    shifted = tf.reduce_sum(z - shift, axes) * divisor
    mean = shifted + tf.reshape(shift, [-1])
    variance = tf.reduce_sum(tf.squared_difference(z, shift), axes) * divisor - tf.square(shifted)
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_sub(pop_mean, 0.1 * (pop_mean - mean)))
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_sub(pop_var, 0.1 * (pop_var - variance)))
    if flag is not True:
        mean, variance = tf.cond(flag, lambda: (mean, variance), lambda: (pop_mean + 0.0, pop_var + 0.0))
    return tf.nn.batch_normalization(z, mean, variance, _beta(z, name), None, EPSILON)


def centered_by_hand(z, flag, name):
    """Moments written out, normalizing what is centered already, with Bessel's correction of what is averaged, in place."""
    pop_mean, pop_var = _variables(z, name)
    axes = list(range(z.shape.rank - 1))
    mean = tf.reduce_mean(z, axes)
    centered = z - mean
    variance = tf.reduce_mean(centered * centered, axes)
    count = tf.cast(tf.shape(z)[0], tf.float32)
    updates = [
        tf.assign(pop_mean, 0.9 * pop_mean + 0.1 * mean),
        tf.assign(pop_var, 0.9 * pop_var + 0.1 * variance * (count / (count - 1.0))),
    ]
    with tf.control_dependencies(updates):
        by_batch = centered / tf.sqrt(variance + EPSILON)
    if flag is True:
        return by_batch
    return tf.where(flag, by_batch, _normalized(z, pop_mean, pop_var))


def zero_debiased(z, flag, name):
    """contrib's zero_debias_moving_mean, updates in place."""
    from tensorflow.python.training import moving_averages

    pop_mean, pop_var = _variables(z, name)
    mean, variance = tf.nn.moments(z, list(range(z.shape.rank - 1)))
    with tf.variable_scope(name):
        updates = [
            moving_averages.assign_moving_average(pop_mean, mean, 0.9, zero_debias=True),
            moving_averages.assign_moving_average(pop_var, variance, 0.9, zero_debias=False),
        ]
    if flag is not True:
        mean, variance = tf.cond(flag, lambda: (mean, variance), lambda: (pop_mean + 0.0, pop_var + 0.0))
    with tf.control_dependencies(updates):
        return tf.identity(_normalized(z, mean, variance))


FORMS = [
    wrapper,
    wrapper_with_collection,
    wrapper_with_virtual_batches,
    wrapper_with_renorm,
    tf_layers,
    tf_layers_unfused,
    r2rt,
    moving_average_shadows,
    moments_in_branch,
    shifted_moments,
    summed_moments,
    centered_by_hand,
    zero_debiased,
]


# --- The same for inference only: no op takes a batch in --------------------------------------------------------------


def by_hand_for_inference(z, flag, name):
    pop_mean, pop_var = _variables(z, name)
    return tf.nn.batch_normalization(z, pop_mean, pop_var, _beta(z, name), None, EPSILON)


def divided_for_inference(z, flag, name):
    pop_mean, pop_var = _variables(z, name)
    return (z - pop_mean) / tf.sqrt(pop_var + EPSILON)


def fused_channels_first(z, flag, name):
    pop_mean, pop_var = _variables(z, name)
    z = tf.transpose(z, [0, 3, 1, 2])
    outputs, _, _ = tf.nn.fused_batch_norm(
        z, tf.ones_like(pop_mean), tf.zeros_like(pop_mean), pop_mean, pop_var, EPSILON, "NCHW", is_training=False
    )
    return tf.transpose(outputs, [0, 2, 3, 1])


def channels_in_the_middle(z, flag, name):
    z = tf.transpose(z, [0, 3, 1, 2])
    z = legacy_layers().batch_normalization(z, 1, epsilon=EPSILON, training=False, fused=False, name=name)
    return tf.transpose(z, [0, 2, 3, 1])


FOR_INFERENCE = [
    (tf_layers, 2),
    (tf_layers, 4),
    (tf_layers_unfused, 4),
    (by_hand_for_inference, 2),
    (divided_for_inference, 2),
    (channels_in_the_middle, 4),
]


def weights(random, layers=3):
    return [random.randn(rows, columns).astype(np.float32) for rows, columns in itertools.pairwise(WIDTHS)][:layers]


def network(form, flag, matrices, rank=2):
    """x, and the outputs of dense (1×1 convolutional) layers without biases, each before `form` and tanh."""
    x = hidden = tf.placeholder(tf.float32, [None, *[2] * (rank - 2), WIDTHS[0]], name="x")
    for number, matrix in enumerate(matrices, start=1):
        kernel = tf.get_variable(f"w{number}", matrix.shape, initializer=tf.constant_initializer(matrix))
        z = tf.matmul(tf.reshape(hidden, [-1, matrix.shape[0]]) if rank > 2 else hidden, kernel)
        z = tf.reshape(z, [-1, *[2] * (rank - 2), matrix.shape[1]]) if rank > 2 else z
        hidden = tf.tanh(form(z, flag, f"bn{number}"))
    return x, hidden


def examples(random, count=60, rank=2):
    return (3.0 + 2.0 * random.randn(count, *[2] * (rank - 2), WIDTHS[0])).astype(np.float32)


def split(data, sizes):
    assert sum(sizes) == len(data)
    return np.split(data, np.cumsum(sizes)[:-1])


def all_values(session):
    return session.run({variable.op.name: variable for variable in tf.global_variables()})


def statistics_of(records):
    return [name for record in records for name in (record.moving_mean, record.moving_variance)]


def assert_same(before, after, apart_from=()):
    assert before.keys() == after.keys()
    for name in before.keys() - set(apart_from):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name, strict=True)


# --- Every kind of graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_pooled_statistics_are_those_at_inference_where_training_is_fed(
    graph, cond_kind, variable_kind, start, random, form
):
    if cond_kind == "v2" and variable_kind == "ref" and form in (r2rt, tf_layers, tf_layers_unfused):
        pytest.skip("TensorFlow can't assign a ref variable inside a function, so there is no such graph")
    check_pooled(form, tf.placeholder(tf.bool, [], name="is_training"), start, random, rank=2)


@pytest.mark.parametrize("form", FORMS)
def test_pooled_statistics_are_those_at_inference_though_the_graph_only_trains(
    variable_kind, plain_graph, start, random, form
):
    with tf.variable_scope("", use_resource=variable_kind == "resource"):
        check_pooled(form, True, start, random, rank=2)


@pytest.mark.parametrize("form", [wrapper, wrapper_unfused, tf_layers])
@USUAL_KINDS
def test_pooled_statistics_of_rank_4_are_those_at_inference_where_training_is_fed(graph, start, random, form):
    check_pooled(form, tf.placeholder(tf.bool, [], name="is_training"), start, random, rank=4)


@pytest.mark.parametrize("form", [wrapper, wrapper_unfused, tf_layers, tf_layers_unfused])
def test_pooled_statistics_of_rank_4_are_those_at_inference_though_the_graph_only_trains(
    plain_graph, start, random, form
):
    check_pooled(form, True, start, random, rank=4)


def check_pooled(form, flag, start, random, rank):
    """All of it at once, for a graph kind is dear: the statistics, the record, and that nothing else has changed."""
    matrices, data = weights(random, layers=2), examples(random, rank=rank)
    x, _ = network(form, flag, matrices, rank)
    session = start()
    before = all_values(session)
    tf.get_default_graph().finalize()

    batches = [{x: batch} for batch in split(data, [20, 6, 34])]
    records = recalibrate(session, batches, is_training=None if flag is True else flag)

    assert_statistics(records, expected_pooled(data, matrices))
    after = all_values(session)
    assert_same(before, after, apart_from=statistics_of(records))
    for record in records:
        np.testing.assert_array_equal(after[record.moving_mean], record.mean)
        np.testing.assert_array_equal(after[record.moving_variance], record.variance)
        np.testing.assert_array_equal(before[record.moving_mean], record.mean_before)
        np.testing.assert_array_equal(before[record.moving_variance], record.variance_before)
        assert record.count == data.size // WIDTHS[0]


# --- What the data's split may and may not change ---------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_pooled_gives_the_same_answer_however_the_data_is_split(plain_graph, start, random, layers):
    data = np.sort(examples(random), axis=0)  # sorted: batches differ from one another as much as they can
    x, _ = network(wrapper, True, weights(random, layers))
    session = start()

    answers = [
        recalibrate(session, [{x: batch} for batch in split(data, sizes)])
        for sizes in ([60], [30, 30], [1, 2, 57], [7, 13, 1, 38, 1], [1] * 60)
    ]

    for records in answers[1:]:
        assert_statistics(records, [(record.mean, record.variance) for record in answers[0]], tolerance=1e-6)


def test_pooled_statistics_of_values_far_from_zero_keep_their_digits(plain_graph, start, random):
    data = (1e6 + random.randn(50, 4)).astype(np.float32)
    x = tf.placeholder(tf.float32, [None, 4])
    bn_graph.batch_norm_wrapper(x, True)
    (record,) = recalibrate(start(), [{x: batch} for batch in split(data, [3, 17, 30])])
    np.testing.assert_allclose(record.variance, data.astype(np.float64).var(0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("form", [wrapper, tf_layers, r2rt])
def test_paper_averages_batches_that_were_normalized_by_their_own_statistics(
    plain_graph, start, random, form, unbiased
):
    flag = tf.placeholder(tf.bool, [])
    matrices, batches = weights(random), split(examples(random), [20, 6, 34])
    x, _ = network(form, flag, matrices)
    session = start()
    before = all_values(session)

    feeds = [{x: batch} for batch in batches]
    records = recalibrate(session, feeds, method="paper", unbiased=unbiased, is_training=flag)

    assert_statistics(records, expected_paper(batches, matrices, unbiased), tolerance=1e-5)  # deeper inputs are float32
    assert_same(before, all_values(session), apart_from=statistics_of(records))


def test_paper_leaves_the_variance_between_batches_out_and_pooled_does_not(plain_graph, start):
    x = tf.placeholder(tf.float32, [None, 1])
    bn_graph.batch_norm_wrapper(x, True)
    session = start()
    batches = [{x: [[0.0], [2.0]]}, {x: [[100.0], [102.0]]}]
    (paper,) = recalibrate(session, batches, method="paper")
    (pooled,) = recalibrate(session, batches)
    np.testing.assert_allclose([paper.mean[0], paper.variance[0]], [51.0, 2.0])
    np.testing.assert_allclose([pooled.mean[0], pooled.variance[0]], [51.0, np.var([0, 2, 100, 102], ddof=1)])


def test_biased_variance_divides_by_n(plain_graph, start, random):
    matrices, data = weights(random), examples(random)
    x, _ = network(wrapper, True, matrices)
    records = recalibrate(start(), [{x: data}], unbiased=False)
    assert_statistics(records, expected_pooled(data, matrices, unbiased=False))


def test_estimators_agree_with_numpy(random):
    batches = [random.randn(size, 3) * 5 + 7 for size in (4, 1, 9)]
    pooled = module.PooledStatistics()
    for batch in batches:
        pooled.update(len(batch), batch.mean(0), batch.var(0))
    together = np.concatenate(batches)
    for unbiased in (True, False):
        mean, variance = pooled.result(unbiased)
        np.testing.assert_allclose(mean, together.mean(0), rtol=1e-12)
        np.testing.assert_allclose(variance, together.var(0, ddof=int(unbiased)), rtol=1e-12)


# --- Kinds of networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "rank"), [(wrapper, 2), (r2rt, 2), (moments_in_branch, 2), (tf_layers, 4)])
@USUAL_KINDS
def test_a_switch_that_defaults_to_training_does_not_spoil_the_pooled_statistics(graph, start, random, form, rank):
    flag = tf.placeholder_with_default(True, [])
    matrices, data = weights(random, layers=2), examples(random, rank=rank)
    x, _ = network(form, flag, matrices, rank)
    assert_statistics(recalibrate(start(), [{x: data[:11]}, {x: data[11:]}]), expected_pooled(data, matrices))


def test_a_layer_called_on_two_inputs_has_the_statistics_of_both(plain_graph, start, random):
    real, fake = random.randn(10, 2).astype(np.float32), 5 + random.randn(30, 2).astype(np.float32)
    x, z = tf.placeholder(tf.float32, [None, 2]), tf.placeholder(tf.float32, [None, 2])
    for inputs in (x, z):
        with tf.variable_scope("discriminator", reuse=tf.AUTO_REUSE):
            legacy_layers().batch_normalization(inputs, training=True, name="bn")
    (record,) = recalibrate(start(), [{x: real, z: fake}])
    assert_statistics([record], [(np.r_[real, fake].mean(0), np.r_[real, fake].var(0, ddof=1))])
    assert record.count == 40


def test_layers_beside_one_another_share_a_pass(plain_graph, start):
    x = tf.placeholder(tf.float32, [None, 2])
    beside = [bn_graph.batch_norm_wrapper(x * factor, True, name=f"beside_{factor}") for factor in (2, 3)]
    bn_graph.batch_norm_wrapper(tf.add_n(beside), True, name="above")
    passes = []

    def batches():
        passes.append(1)
        return iter([{x: np.eye(2)}])

    session = start()
    records = recalibrate(session, batches)
    assert len(passes) == 1
    assert [record.layer for record in records] == ["beside_2", "beside_3", "above"]
    recalibrate(session, batches, cache_bytes=0)
    assert len(passes) == 1 + 2


def test_a_residual_connection_around_a_layer_is_followed(plain_graph, start, random):
    data = examples(random)
    x = tf.placeholder(tf.float32, [None, 4])
    total = x + tf.nn.relu(bn_graph.batch_norm_wrapper(x, True, epsilon=EPSILON, name="bn1"))
    bn_graph.batch_norm_wrapper(total, True, name="bn2")
    _, above = recalibrate(start(), [{x: data[:9]}, {x: data[9:]}])
    wide = data.astype(np.float64)
    normalized = (wide - wide.mean(0)) / np.sqrt(wide.var(0, ddof=1) + EPSILON)
    expected = wide + np.maximum(normalized, 0)
    assert_statistics([above], [(expected.mean(0), expected.var(0, ddof=1))])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_statistics_of_other_dtypes_with_the_channels_first(plain_graph, start, random, dtype):
    data = random.randn(8, 3, 5).astype(dtype)
    x = tf.placeholder(dtype, [None, 3, 5])
    hidden = bn_graph.batch_norm_wrapper(x, True, axis=1, epsilon=EPSILON, name="bn1")
    bn_graph.batch_norm_wrapper(hidden, True, axis=1, name="bn2")
    first, second = recalibrate(start(), [{x: data[:5]}, {x: data[5:]}])
    wide = data.astype(np.float64)
    assert_statistics([first], [(wide.mean((0, 2)), wide.var((0, 2), ddof=1))])
    np.testing.assert_allclose(second.mean, 0.0, atol=1e-3)  # float16 outputs are rounded to 1 in 2000
    np.testing.assert_allclose(second.variance, 1.0, atol=5e-3)


def test_gamma_and_beta_of_the_layers_before_are_used(plain_graph, start, random):
    data = examples(random)
    x = tf.placeholder(tf.float32, [None, 4])
    options = {"gamma_initializer": tf.constant_initializer(3.0), "beta_initializer": tf.constant_initializer(-2.0)}
    hidden = bn_graph.batch_norm_wrapper(x, True, epsilon=EPSILON, name="bn1", **options)
    bn_graph.batch_norm_wrapper(hidden, True, name="bn2")
    first, second = recalibrate(start(), [{x: data}])
    np.testing.assert_allclose(second.mean, -2.0, rtol=1e-6)
    np.testing.assert_allclose(second.variance, 9.0 * first.variance / (first.variance + EPSILON), rtol=1e-6)


def test_a_graph_of_this_library_built_for_inference_can_be_recalibrated(plain_graph, start, random):
    matrices, data = weights(random), examples(random)
    x, _ = network(wrapper, False, matrices)
    session = start()
    assert_statistics(recalibrate(session, [{x: data}]), expected_pooled(data, matrices))
    with pytest.raises(RecalibrationError, match='Layer bn1 is built for inference only; use method="pooled"'):
        recalibrate(session, [{x: data}], method="paper")


@pytest.mark.parametrize(("form", "rank"), FOR_INFERENCE)
def test_layers_that_were_built_for_inference_get_the_statistics_of_their_inputs_if_named(
    variable_kind, plain_graph, start, random, form, rank
):
    matrices, data = weights(random, 2), examples(random, rank=rank)
    with tf.variable_scope("", use_resource=variable_kind == "resource"):
        x, _ = network(form, False, matrices, rank)
    session = start()
    before = all_values(session)
    plain_graph.finalize()
    records = recalibrate(session, [{x: batch} for batch in split(data, [20, 40])], layers=["bn1", "bn2"])
    assert_statistics(records, expected_pooled(data, matrices))
    assert_same(before, all_values(session), apart_from=statistics_of(records))


def test_a_fused_layer_for_inference_with_the_channels_first_has_its_channels_told(plain_graph):
    network(fused_channels_first, False, weights(np.random.RandomState(0), 1), rank=4)
    (call,) = find_calls(plain_graph).calls
    assert (call.layer, call.axes, call.updates) == ("bn1", (0, 2, 3), False)


def test_a_layer_for_inference_below_one_that_trains_is_done_with_it_if_named(plain_graph, start, random):
    matrices, data = weights(random, 2), examples(random)

    def first_trains(z, flag, name):
        return tf_layers(z, name == "bn1", name)

    x, _ = network(first_trains, None, matrices)
    session = start()
    records = recalibrate(session, [{x: data}], layers=["bn1", "bn2"])
    assert_statistics(records, expected_pooled(data, matrices))
    with pytest.raises(RecalibrationError, match='Layer bn2 is built for inference only; use method="pooled"'):
        recalibrate(session, [{x: data}], layers=["bn1", "bn2"], method="paper")


def test_a_graph_with_layers_for_inference_only_is_refused_unless_they_are_named(plain_graph, start, random):
    x, _ = network(tf_layers, False, weights(random, 2))
    check_refused(
        start(), [{x: examples(random)}], "for inference only, and to be named in layers= if wanted: bn1, bn2"
    )


def test_samplers_of_a_layer_that_batches_update_do_not_count(plain_graph, start, random):
    x, y = tf.placeholder(tf.float32, [None, 4]), tf.placeholder(tf.float32, [None, 4])
    with tf.variable_scope("", reuse=tf.AUTO_REUSE):
        summed_moments(x, True, "bn1")
        by_hand_for_inference(y, False, "bn1")
    data = examples(random)
    (record,) = recalibrate(start(), [{x: data}])  # y is not fed
    assert_statistics([record], [(data.mean(0), data.var(0, ddof=1))])


def test_a_layer_for_inference_inside_a_loop_is_left_alone(plain_graph, cond_kind):
    x = tf.placeholder(tf.float32, [None, 4])
    mean, variance = _variables(x, "inside")
    beta = _beta(x, "inside")

    def step(number, values):
        return number + 1, tf.tanh(tf.nn.batch_normalization(values, mean, variance, beta, None, EPSILON))

    shapes = [tf.TensorShape([]), x.shape]
    _, hidden = tf.while_loop(lambda number, _: number < 2, step, [0, x], shape_invariants=shapes)
    bn_graph.batch_norm_wrapper(hidden, True, name="bn1")
    assert [call.layer for call in find_calls(plain_graph).calls] == ["bn1"]


@pytest.mark.parametrize("form", [wrapper, tf_layers, r2rt])
def test_an_imported_meta_graph_is_recalibrated_by_names(variable_kind, start, random, tmp_path, form):
    matrices, data = weights(random), examples(random)
    with tf.Graph().as_default(), tf.variable_scope("", use_resource=variable_kind == "resource"):
        network(form, True, matrices)
        prefix = tf.train.Saver().save(start(), str(tmp_path / "model"))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        records = recalibrate(session, [{"x:0": data[:7]}, {"x": data[7:]}])
        assert [record.layer for record in records] == ["bn1", "bn2", "bn3"]
        assert_statistics(records, expected_pooled(data, matrices))
        np.testing.assert_array_equal(session.run(tf.global_variables())[0], matrices[0])


def test_layers_that_are_not_named_keep_their_statistics_and_normalize_by_them(plain_graph, start, random):
    data = examples(random)
    x, _ = network(wrapper, True, weights(random))
    session = start()
    before = all_values(session)
    (record,) = recalibrate(session, [{x: data}], layers=["bn2"])
    after = all_values(session)
    assert record.layer == "bn2"
    assert_same(before, after, apart_from=["bn2/moving_mean", "bn2/moving_variance"])
    hidden = (
        np.tanh(data.astype(np.float64) @ before["w1"] / np.sqrt(1.0 + EPSILON)) @ before["w2"]
    )  # bn1: still 0 and 1
    assert_statistics([record], [(hidden.mean(0), hidden.var(0, ddof=1))])


def test_dropout_hangs_on_the_switch_that_is_fed_false(plain_graph, start, random):
    flag = tf.placeholder(tf.bool, [])
    x = tf.placeholder(tf.float32, [None, 2])
    hidden = tf.cond(flag, lambda: tf.nn.dropout(x, rate=0.5), lambda: x)
    bn_graph.batch_norm_wrapper(hidden, flag)
    data = random.randn(20, 2).astype(np.float32)
    (record,) = recalibrate(start(), [{x: data, flag: True}], is_training=[flag])
    assert_statistics([record], [(data.mean(0), data.var(0, ddof=1))])


def test_digits_network_with_reset_statistics_recovers_its_accuracy_without_retraining(plain_graph, start):
    digits = bn_graph.load("digits")
    flag = tf.placeholder_with_default(True, [])
    network = bn_graph.build_graph(flag, bn_graph.normal_weights([64, 100, 100, 10], seed=0))
    session = start()
    bn_graph.train(session, network, digits.train, steps=300, batch_size=60, seed=0)
    for variable in bn_graph.moving_statistics():
        session.run(variable.initializer)
    before = all_values(session)
    test = {network.x: digits.test.images, network.y_: digits.test.labels}

    broken = session.run(network.accuracy, {**test, flag: False})
    by_batch = session.run(network.accuracy, {**test, flag: True})
    for variable in bn_graph.moving_statistics():
        session.run(variable.initializer)
    batches = [{network.x: part} for part in np.array_split(digits.train.images, 9)]
    records = recalibrate(session, batches, is_training=flag)
    repaired = session.run(network.accuracy, {**test, flag: False})

    assert_same(before, all_values(session), apart_from=statistics_of(records))
    assert broken < 0.6
    assert repaired > 0.9
    assert repaired > by_batch - 0.02


# --- Refusals: one line, the layer's name, and nothing changed --------------------------------------------------------


@pytest.fixture
def three_layers(plain_graph, start, random):
    """A session, its x and 12 examples, with statistics that are not 0 and 1."""
    x, _ = network(wrapper, True, weights(random))
    session = start()
    for variable in bn_graph.moving_statistics():
        variable.load(np.full(5, 7.0), session)
    return session, x, examples(random, 12)


def check_refused(session, batches, message, error=RecalibrationError, **options):
    before = all_values(session)
    with pytest.raises(error, match=message) as raised:
        recalibrate(session, batches, **options)
    assert_same(before, all_values(session))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["pooled", "paper"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_or_infinity_is_refused_naming_the_layer_and_the_batch(three_layers, method, value):
    session, x, data = three_layers
    broken = data.copy()
    broken[3, 1] = value
    message = "inputs of layer bn1 hold NaN or infinity in batch 2"
    check_refused(session, [{x: data}, {x: broken}], message, method=method)


@pytest.mark.parametrize("method", ["pooled", "paper"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [2, 5])  # in the first pass, and (pooled) in the second
def test_an_exception_midway_leaves_the_statistics_as_they_were(three_layers, method, error, at):
    session, x, data = three_layers
    served = []

    def batches():
        for _ in range(3 if method == "pooled" else 6):
            served.append(1)
            if len(served) == at:
                raise error("stopped")
            yield {x: data}

    check_refused(session, batches, "stopped", error=error, method=method, cache_bytes=0)


def test_a_failure_while_assigning_puts_back_what_was_assigned(plain_graph, start, random, monkeypatch):
    x = tf.placeholder(tf.float32, [None, 2])
    zeros = tf.zeros([2])  # both statistics start from one tensor, so they can't be assigned in one run
    mean = tf.get_variable("mean", initializer=zeros, trainable=False)
    variance = tf.get_variable("variance", initializer=zeros, trainable=False)
    batches = tf.nn.moments(x, [0])
    for variable, batch in zip((mean, variance), batches, strict=True):
        tf.assign_sub(variable, 0.1 * (variable - batch))
    _normalized(x, *batches)
    session, data = start(), random.randn(9, 2)
    (record,) = recalibrate(session, [{x: data}])
    np.testing.assert_allclose(record.variance, data.var(0, ddof=1), rtol=1e-6)

    assign, calls = assigning.assign_values, []

    def fail_midway(session, values):
        calls.append(1)
        if len(calls) == 1:
            assign(session, values[:1])
            raise KeyboardInterrupt("stopped")
        assign(session, values)

    monkeypatch.setattr(assigning, "assign_values", fail_midway)
    check_refused(session, [{x: data + 1}], "stopped", error=KeyboardInterrupt)


def test_no_data_is_refused(three_layers):
    session, x, data = three_layers
    check_refused(session, [], "Pass 1 over the data had 0 batches")
    check_refused(session, [{x: data[:0]}], "Layer bn1, all batches together: 0 values per channel, where at least 2")
    check_refused(session, [{x: data[:1]}], "Layer bn1, all batches together: 1 value per channel, where at least 2")
    check_refused(session, [{x: data}, {x: data[:0]}], "Layer bn1, batch 2|computed from batch 2", method="paper")


def test_paper_refuses_a_batch_of_one(three_layers):
    session, x, data = three_layers
    check_refused(session, [{x: data}, {x: data[:1]}], "batch 2: .*at least two values per channel", method="paper")


def test_paper_refuses_a_batch_of_one_of_tf_layers_too(plain_graph, start, random):
    x, _ = network(tf_layers, True, weights(random))
    data = examples(random)
    message = "Layer bn1, batch 1: 1 value per channel, where at least 2 are needed"
    check_refused(start(), [{x: data[:1]}], message, method="paper")


def test_an_iterator_is_refused_where_it_would_be_read_again_since_it_can_be_read_once_only(three_layers):
    session, x, data = three_layers
    check_refused(session, iter([{x: data}]), "got list_iterator, which can be read once only", cache_bytes=0)
    used_up = iter([{x: data}])
    check_refused(session, lambda: used_up, "Pass 2 over the data had 0 batches, the first 1", cache_bytes=0)
    check_refused(session, 7, "an iterable of feed dicts, .*; got int")


@pytest.mark.parametrize("method", ["pooled", "paper"])
def test_an_iterator_will_do_where_it_is_read_once(three_layers, method):
    session, x, data = three_layers
    batches = [{x: data[:5]}, {x: data[5:]}]
    expected = recalibrate(session, batches, method=method)
    records = recalibrate(session, iter(batches), method=method)
    assert_statistics(records, [(record.mean, record.variance) for record in expected], tolerance=0)


def test_names_that_do_not_exist_are_refused(three_layers):
    session, x, data = three_layers
    check_refused(session, [{x: data}], "No layer bn7 .* found are bn1, bn2, bn3", layers=["bn7"])
    check_refused(session, [{x: data}], "method must be one of pooled, paper, got 'exact'", method="exact")
    check_refused(session, [{"images": data}], "feed something that is no tensor of the graph")


def test_a_feed_that_is_missing_or_of_a_wrong_shape_is_refused_with_the_tensor_named(three_layers):
    session, x, data = three_layers
    check_refused(session, [{}], "inputs of bn1 can't be computed from batch 1: You must feed a value .*'x'")
    check_refused(session, [{x: data[:, :2]}], "can't be computed from batch 1: Cannot feed value of shape")


def test_a_graph_without_batch_norm_is_refused(plain_graph, start):
    tf.get_variable("w", [2])
    check_refused(
        start(), [{}], "No batch norm layer whose statistics could be computed is in the graph. None was found"
    )


def test_variables_that_are_not_initialized_are_refused(plain_graph):
    x, _ = network(wrapper, True, weights(np.random.RandomState(0)))
    with tf.Session() as session, pytest.raises(RecalibrationError, match="must be initialized or restored first"):
        recalibrate(session, [{x: np.zeros([2, 4])}])


def test_a_layer_that_feeds_itself_is_refused_by_pooled_and_not_by_paper(plain_graph, start, random):
    hidden = x = tf.placeholder(tf.float32, [None, 4])
    for _ in range(2):
        with tf.variable_scope("cell", reuse=tf.AUTO_REUSE):
            hidden = tf.tanh(legacy_layers().batch_normalization(hidden, training=True, name="bn"))
    session, data = start(), examples(random)
    check_refused(session, [{x: data}], 'inputs of layer cell/bn depend on its own outputs.*Use method="paper"')
    (record,) = recalibrate(session, [{x: data}], method="paper")
    assert record.count == 2 * len(data)


def test_what_only_knows_the_batch_is_refused_above_a_layer(plain_graph, start, random):
    x = tf.placeholder(tf.float32, [None, 2, 2, 4])
    by_moments = tf.nn.batch_normalization(x, *tf.nn.moments(x, [0, 1, 2]), None, None, EPSILON)
    by_kernel, _, _ = tf.nn.fused_batch_norm(x, tf.ones([4]), tf.zeros([4]))
    mean = tf.reduce_mean(x, [0, 1, 2])
    variance = tf.divide(
        tf.reduce_sum(tf.square(x - mean), [0, 1, 2]), tf.placeholder_with_default(32.0, []), name="sum"
    )
    by_sum = tf.nn.batch_normalization(x, mean, variance, None, None, EPSILON)
    bn_graph.batch_norm_wrapper(by_moments, True, name="bn1")
    bn_graph.batch_norm_wrapper(by_kernel, True, name="bn2")
    bn_graph.batch_norm_wrapper(by_sum, True, name="bn3")
    session, batches = start(), [{x: examples(random, rank=4)}]
    check_refused(session, batches, 'moments/variance, above layer bn1, .*Use method="paper"', layers=["bn1"])
    check_refused(session, batches, 'FusedBatchNormV3, above layer bn2, .*Use method="paper"', layers=["bn2"])
    check_refused(session, batches, 'sum_1, above layer bn3, .*Use method="paper"', layers=["bn3"])
    assert len(recalibrate(session, batches, method="paper")) == 3


def test_averages_that_are_each_examples_own_may_stand_above_a_layer(plain_graph, start, random):
    x = tf.placeholder(tf.float32, [None, 4])
    mean, variance = tf.nn.moments(x, [1], keepdims=True)
    bn_graph.batch_norm_wrapper(tf.nn.batch_normalization(x, mean, variance, None, None, EPSILON), True)
    assert len(recalibrate(start(), [{x: examples(random)}])) == 1


def test_a_layer_without_collected_updates_is_found_by_its_assigns(plain_graph, start, random):
    x = tf.placeholder(tf.float32, [None, 4])
    hidden = legacy_layers().batch_normalization(x, training=True, trainable=False, epsilon=EPSILON, name="frozen")
    bn_graph.batch_norm_wrapper(hidden, True, name="bn2")
    data = examples(random)
    frozen = {record.layer: record for record in recalibrate(start(), [{x: data}])}["frozen"]
    assert_statistics([frozen], [(data.mean(0), data.var(0, ddof=1))])


def test_statistics_that_nothing_updates_are_left_alone_with_a_warning(plain_graph, start, random):
    x = tf.placeholder(tf.float32, [None, 4])
    hidden = legacy_layers().batch_normalization(x, training=False, name="inference")
    bn_graph.batch_norm_wrapper(hidden, True, name="bn2")
    session = start()
    with pytest.warns(UserWarning, match="Left as they are.*: inference/moving_mean, inference/moving_variance"):
        (record,) = recalibrate(session, [{x: examples(random)}])
    assert record.layer == "bn2"


def test_a_layer_inside_a_branch_with_its_inputs_is_refused(plain_graph, cond_kind, start, random):
    flag, x = tf.placeholder(tf.bool, []), tf.placeholder(tf.float32, [None, 4])
    mean = tf.get_variable("bn/mean", [4], use_resource=True)
    variance = tf.get_variable("bn/variance", [4], use_resource=True)

    def branch():
        inputs = tf.exp(x)
        batch = tf.nn.moments(inputs, [0])
        updates = [tf.assign_sub(one, 0.1 * (one - new)) for one, new in zip((mean, variance), batch, strict=True)]
        with tf.control_dependencies(updates):
            return tf.nn.batch_normalization(inputs, *batch, None, None, EPSILON)

    tf.cond(flag, branch, lambda: x)
    message = {"v2": "inputs of layer bn are computed inside a branch", "v1": "inputs of bn can't be computed"}
    check_refused(start(), [{x: examples(random)}], message[cond_kind], is_training=flag)


def test_averages_of_losses_and_weights_are_no_layers(plain_graph, start, random):
    x, outputs = network(wrapper, True, weights(random, 1))
    loss = tf.reduce_mean(tf.square(outputs))
    average = tf.train.ExponentialMovingAverage(0.9)
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, average.apply([loss, *tf.trainable_variables()]))
    train_op = tf.train.AdamOptimizer().minimize(loss)
    session = start()
    session.run(train_op, {x: examples(random)})
    before = all_values(session)
    (record,) = recalibrate(session, [{x: examples(random)}])
    assert record.layer == "bn1"
    assert_same(before, all_values(session), apart_from=statistics_of([record]))


def test_progress_wraps_each_pass(three_layers):
    session, x, data = three_layers
    seen = []
    recalibrate(session, [{x: data}] * 2, progress=lambda batches: seen.append(len(batches)) or batches)
    assert seen == [2, 2, 2]
