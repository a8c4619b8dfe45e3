"""Pooled statistics that go on from what reached the last level: the same numbers, in bounded memory, with no files left."""

import itertools
import os
import tracemalloc
import warnings

import numpy as np
import pytest

import bn_graph
from bn_graph.recalibration import RecalibrationError, recalibrate
from bn_graph.recalibration.cuts import find_cuts
from bn_graph.recalibration.kept import KeptValues
from bn_graph.recalibration.moments import count_mean_variance
from bn_graph.tf1 import tf
from tests.test_recalibration import (
    FORMS,
    assert_statistics,
    check_refused,
    examples,
    expected_pooled,
    network,
    r2rt,
    tf_layers,
    weights,
)


def statistics(records):
    return [(record.mean, record.variance) for record in records]


def counted(batches):
    """A generator function of the batches, and a list with an entry for each time that it was called."""
    passes = []

    def start():
        passes.append(1)
        yield from batches

    return start, passes


def residual_network(x):
    """Three levels and a shortcut over two of them, on images."""
    one = tf.nn.relu(bn_graph.batch_norm_wrapper(x, True, name="bn1"))
    two = tf.nn.relu(bn_graph.batch_norm_wrapper(_convolved(one, "w2"), True, name="bn2"))
    bn_graph.batch_norm_wrapper(one * one + _convolved(two, "w3"), True, name="bn3")


def _convolved(z, name):
    channels = z.shape.as_list()[-1]
    kernel = tf.get_variable(name, [3, 3, channels, channels], initializer=tf.glorot_uniform_initializer(seed=0))
    return tf.nn.conv2d(z, kernel, strides=1, padding="SAME")


@pytest.fixture
def residual(plain_graph, start, random):
    """A session, and batches of unequal sizes."""
    x = tf.placeholder(tf.float32, [None, 4, 4, 3])
    residual_network(x)
    sizes = [5, 1, 7, 3]
    return start(), [{x: 1.0 + random.randn(size, 4, 4, 3).astype(np.float32)} for size in sizes]


# --- The same statistics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cond_kind", ["v1", "v2"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_the_data_is_gone_through_once_whatever_form_the_layers_have(plain_graph, cond_kind, start, random, form):
    if cond_kind == "v2" and form is r2rt:
        pytest.skip("TensorFlow can't assign a ref variable inside a function, so there is no such graph")
    flag, matrices, data = tf.placeholder(tf.bool, []), weights(random), examples(random)
    x, _ = network(form, flag, matrices)
    batches, passes = counted([{x: data[:20]}, {x: data[20:]}])
    assert_statistics(recalibrate(start(), batches, is_training=flag), expected_pooled(data, matrices))
    assert len(passes) == 1


@pytest.mark.parametrize("in_files", [False, True])
def test_kept_values_give_what_passes_over_the_data_give(residual, tmp_path, in_files):
    session, batches = residual
    start, passes = counted(batches)
    expected = recalibrate(session, batches, cache_bytes=0)
    records = recalibrate(session, start, cache_dir=str(tmp_path) if in_files else None)
    assert_statistics(records, statistics(expected), tolerance=1e-6)
    assert len(passes) == 1


# One batch's values are at most 7·4·4·3·4 = 1,344 bytes a tensor, those of all 3,072; two tensors are kept after bn2.
@pytest.mark.parametrize("cache_bytes", [700, 2_000, 4_000, 6_000])
@pytest.mark.parametrize("in_files", [False, True])
def test_what_does_not_fit_is_computed_again_and_a_warning_says_so(residual, tmp_path, cache_bytes, in_files):
    session, batches = residual
    expected = recalibrate(session, batches, cache_bytes=0)
    start, passes = counted(batches)
    with pytest.warns(
        UserWarning, match=f"bytes, more than the {cache_bytes:,} of cache_bytes: . of 4 batches are"
    ) as seen:
        records = recalibrate(session, start, cache_bytes=cache_bytes, cache_dir=str(tmp_path) if in_files else None)
    assert len(seen) == 1  # and not once a level
    assert_statistics(records, statistics(expected), tolerance=1e-6)
    assert (len(passes) == 1) == (cache_bytes >= 3_072)  # where the first level fits, the others go on from there


def test_no_warning_where_nothing_may_be_kept_or_all_fits(residual):
    session, batches = residual
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recalibrate(session, batches, cache_bytes=0)
        recalibrate(session, batches)


def test_a_caller_may_fill_the_same_array_again(plain_graph, start, random):
    x = tf.placeholder(tf.float32, [None, 4])
    shortcut = tf.reshape(x, [-1, 2, 2])  # shares its memory with what is fed
    hidden = bn_graph.batch_norm_wrapper(x, True, name="bn1")
    bn_graph.batch_norm_wrapper(tf.reshape(shortcut, [-1, 4]) * x + hidden, True, name="bn2")
    session, data = start(), examples(random, 64)
    buffer = np.empty([32, 4], np.float32)

    def refilled():
        for part in (data[:32], data[32:]):
            buffer[:] = part
            yield {x: buffer}

    expected = recalibrate(session, [{x: data[:32]}, {x: data[32:]}], cache_bytes=0)
    assert_statistics(recalibrate(session, refilled), statistics(expected), tolerance=1e-6)


def test_batches_may_feed_different_tensors(plain_graph, start, random):
    x, data = tf.placeholder(tf.float32, [None, 4]), examples(random)
    doubled = tf.multiply(x, 2.0, name="doubled")
    hidden = bn_graph.batch_norm_wrapper(doubled, True, name="bn1")
    bn_graph.batch_norm_wrapper(hidden + doubled, True, name="bn2")
    session = start()
    expected = recalibrate(session, [{x: data[:20]}, {x: data[20:]}], cache_bytes=0)
    records = recalibrate(session, [{x: data[:20]}, {"doubled:0": 2 * data[20:]}])
    assert_statistics(records, statistics(expected), tolerance=1e-6)


def test_feeds_that_no_layer_needs_do_no_harm_whatever_their_names(plain_graph, start, random):
    images, labels = tf.placeholder(tf.float32, [None, 4]), tf.placeholder(tf.float32, [None])
    assert labels.name == "Placeholder_1:0"  # which a copy without it may have for something else
    hidden = bn_graph.batch_norm_wrapper(images, True, name="bn1")
    bn_graph.batch_norm_wrapper(tf.tanh(hidden), True, name="bn2")
    data = examples(random)
    first, _ = recalibrate(start(), [{images: data, labels: data[:, 0]}])
    assert_statistics([first], [(data.mean(0), data.var(0, ddof=1))])


# --- What may not run twice -------------------------------------------------------------------------------------------


def test_a_random_value_that_two_levels_use_is_drawn_once_a_batch(plain_graph, start, random):
    x = tf.placeholder(tf.float32, [None, 4])
    noisy = x + tf.random.normal(tf.shape(x), seed=1)
    hidden = bn_graph.batch_norm_wrapper(noisy, True, epsilon=1e-6, name="bn1")
    bn_graph.batch_norm_wrapper(hidden - noisy, True, name="bn2")
    first, second = recalibrate(start(), [{x: examples(random)}, {x: examples(random)}], unbiased=False)
    # Of one and the same noise: (z − μ)/σ − z = (1/σ − 1)·z − μ/σ; of noise drawn again, the variances would add up.
    deviation = np.sqrt(first.variance)
    np.testing.assert_allclose(second.variance, (1 / deviation - 1) ** 2 * first.variance, rtol=1e-4)


def cuts_of(plain_graph, *levels, fed=("x:0",)):
    return find_cuts(plain_graph, plain_graph.as_graph_def(), levels, fed)


def test_a_level_is_not_cut_off_from_what_would_run_again_for_its_effect(plain_graph):
    x = tf.placeholder(tf.float32, [None], name="x")
    drawn = tf.random.uniform(tf.shape(x), name="drawn")
    tf.identity(x + drawn, name="one")
    with tf.control_dependencies([drawn]):
        tf.identity(tf.exp(x), name="two")
    assert cuts_of(plain_graph, ["one:0"], ["two:0"]) == [()]


def test_a_check_may_run_again(plain_graph, start):
    x = tf.placeholder(tf.float32, [None], name="x")
    one = tf.identity(x * 2.0, name="one")
    with tf.control_dependencies([tf.debugging.assert_non_negative(x)]):
        tf.exp(one, name="two")
    (cut,) = cuts_of(plain_graph, ["one:0"], ["two:0"])
    assert "one:0" in cut
    session = start()
    values = dict(zip(cut, session.run(list(cut), {x: [1.0]}), strict=True))
    assert session.run("two:0", values) == pytest.approx(np.exp(2.0))


def test_strings_are_not_kept(plain_graph):
    texts = tf.placeholder(tf.string, [None], name="x")
    tf.strings.to_number(texts, name="one")
    tf.strings.length(texts, name="two")
    assert cuts_of(plain_graph, ["one:0"], ["two:0"]) == [()]


def test_weights_are_read_again_and_not_kept(plain_graph):
    x = tf.placeholder(tf.float32, [None, 2], name="x")
    weight = tf.get_variable("w", [2, 2])
    tf.matmul(x, weight, name="one")
    tf.matmul(tf.matmul(x, weight * 2.0), weight, name="two")
    assert cuts_of(plain_graph, ["one:0"], ["two:0"]) == [("x:0",)]


def test_loops_and_conds_between_levels_are_gone_through(plain_graph, cond_kind, start, random):
    x, flag = tf.placeholder(tf.float32, [None, 4]), tf.placeholder(tf.bool, [])
    one = bn_graph.batch_norm_wrapper(x, True, name="bn1")
    _, looped = tf.while_loop(lambda i, _: i < 2, lambda i, v: (i + 1, tf.tanh(v)), [0, one])
    chosen = tf.cond(flag, lambda: looped + tf.random.normal([]), lambda: tf.exp(looped))
    two = bn_graph.batch_norm_wrapper(chosen, True, name="bn2")
    with tf.control_dependencies([chosen]):
        bn_graph.batch_norm_wrapper(two * looped + tf.cond(flag, lambda: x, lambda: 2 * x), True, name="bn3")
    session, data = start(), examples(random)
    batches, _ = counted([{x: data[:20], flag: False}, {x: data[20:], flag: False}])
    expected = recalibrate(session, batches, cache_bytes=0)
    assert_statistics(recalibrate(session, batches), statistics(expected), tolerance=1e-6)


# --- Memory and files ---------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_data(plain_graph, start):
    x = tf.placeholder(tf.float32, [None, 1000])
    hidden = bn_graph.batch_norm_wrapper(x[:, :2], True, name="bn1")
    bn_graph.batch_norm_wrapper(tf.tanh(hidden), True, name="bn2")
    session = start()

    def peak(count, **options):
        def batches():
            generator = np.random.default_rng(0)
            for _ in range(count):
                yield {x: generator.random([250, 1000], np.float32)}  # 1 MB

        recalibrate(session, itertools.islice(batches(), 1), method="paper")
        tracemalloc.start()
        try:
            recalibrate(session, batches, **options)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(5), peak(60)
    assert many < few + 1_000_000  # the values that are kept of 55 batches more: 250·2·4 bytes each
    assert peak(60, cache_bytes=0) < few + 1_000_000


@pytest.fixture
def seen_files(tmp_path):
    """A folder, and a generator function's wrapper that looks into it at each batch."""
    seen = []

    def watched(batches):
        for batch in batches:
            seen.extend(os.listdir(tmp_path))
            yield batch

    return tmp_path, watched, seen


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_files_have_no_name_and_none_stays_behind(residual, seen_files, error):
    session, batches = residual
    folder, watched, seen = seen_files
    closed = []

    def progress(each):
        yield from watched(each)
        closed.append(1)
        if error is not None and len(closed) == 2:
            raise error("stopped")

    if error is None:
        recalibrate(session, batches, cache_dir=folder, progress=progress)
    else:
        check_refused(session, batches, "stopped", error=error, cache_dir=folder, progress=progress)
    assert seen == [] and os.listdir(folder) == []


def test_a_folder_for_files_that_is_not_there_is_named(residual):
    session, batches = residual
    check_refused(session, batches, "No temporary file can be made in /nowhere: ", cache_dir="/nowhere")


def test_a_file_that_can_not_be_written_is_an_error(residual, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    session, batches = residual
    monkeypatch.setattr("bn_graph.recalibration.kept._File.append", full)
    check_refused(session, batches, "can't be written: .*No space left", cache_dir=tmp_path)


def test_kept_values_of_all_dtypes_and_shapes_come_back(tmp_path):
    arrays = [np.arange(6.0).reshape(2, 3), np.float16(2.5), np.zeros([0, 3]), np.array([True, False]), np.int64(7)]
    for folder in (None, str(tmp_path)):
        values = KeptValues(1000, folder)
        values.start_level()
        for expected, value in zip(arrays, values.get(values.keep(arrays)), strict=True):
            np.testing.assert_array_equal(value, expected)
            assert np.asarray(value).dtype == np.asarray(expected).dtype
        values.close()


def test_a_files_bytes_are_free_when_the_next_level_has_replaced_them(tmp_path):
    values = KeptValues(200, str(tmp_path))
    held = None
    for level in range(5):
        values.start_level()
        new = values.keep([np.full(25, float(level), np.float32)])
        assert new is not None
        if held is not None:
            values.drop(held)
        held = new
    np.testing.assert_array_equal(values.get(held)[0], np.full(25, 4.0))
    values.close()


# --- Moments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("as they come", lambda values: values),
        ("far from 0", lambda values: values + 1e6),
        ("nearly constant", lambda values: values * 1e-4 + 10),
        (
            "the first an outlier",
            lambda values: np.where(np.arange(values.size).reshape(values.shape) < 3, 1e4, values),
        ),
        ("an edge of zeros", lambda values: np.pad(values[:, 3:-3, 3:-3] + 5, [(0, 0), (3, 3), (3, 3), (0, 0)])),
        ("sorted", lambda values: np.sort(values, 1)),
    ],
)
def test_moments_of_images_are_those_of_float64(plain_graph, start, random, name, make):
    images = make(random.randn(6, 24, 24, 3)).astype(np.float32)
    x = tf.placeholder(tf.float32, [None, 24, 24, 3])
    moments = count_mean_variance(x, [0, 1, 2])
    session = start()
    count, mean, variance = session.run(moments, {x: images})
    wide = images.astype(np.float64)
    assert count == 6 * 24 * 24
    deviation = wide.std((0, 1, 2))
    np.testing.assert_allclose((mean - wide.mean((0, 1, 2))) / deviation, 0, atol=1e-7)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=3e-7)
    assert session.run(moments, {x: images[:0]})[0] == 0


def test_a_tf_layers_network_of_images_is_done_in_one_pass(plain_graph, start, random):
    x = tf.placeholder(tf.float32, [None, 4, 4, 3])
    hidden = x
    for number in range(3):
        hidden = tf.nn.relu(tf_layers(_convolved(hidden, f"w{number}"), True, f"bn{number}"))
    session = start()
    batches, passes = counted([{x: random.randn(5, 4, 4, 3)}, {x: random.randn(9, 4, 4, 3)}])
    expected = recalibrate(session, batches, cache_bytes=0)
    assert_statistics(recalibrate(session, batches), statistics(expected), tolerance=1e-6)
    assert len(passes) == 3 + 1


def test_an_iterator_that_does_not_fit_is_refused(residual):
    session, batches = residual
    check = {"error": RecalibrationError, "cache_bytes": 700}
    with pytest.warns(UserWarning, match="cache_bytes"):
        check_refused(session, iter(batches), "which can be read once only", **check)
