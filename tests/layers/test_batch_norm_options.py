"""The options of `batch_norm_wrapper`: each changes what it says, and inference never changes a statistic."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.python.ops.parallel_for import gradients as parallel_for

from bn_graph.checkpoints.interchange import export_state_dict
from bn_graph.inference.export import UnfoldedWarning, export_frozen_graph
from bn_graph.layers import fused_kernel
from bn_graph.layers.averages import moving_statistics
from bn_graph.layers.batch_norm import LAYERS, batch_norm_wrapper
from bn_graph.recalibration import recalibrate
from bn_graph.tf1 import legacy_layers, tf
from tests import oracle
from tests.conftest import COND_KINDS, USUAL_KINDS, VARIABLE_KINDS

CHANNELS = 3


def value_of(session, leaf: str) -> np.ndarray:
    (variable,) = [v for v in tf.global_variables() if v.op.name.endswith(f"/{leaf}")]
    return session.run(variable)


def batches_of(random, count: int, shape=(6, CHANNELS)) -> list[np.ndarray]:
    return [random.normal(2.0, 3.0, shape) for _ in range(count)]


def layer(shape=(None, CHANNELS), dtype=tf.float64, **options):
    inputs, flag = tf.placeholder(dtype, shape), tf.placeholder(tf.bool, [])
    return inputs, flag, batch_norm_wrapper(inputs, flag, **options)


OPTIONS = {
    "plain": {},
    "unbiased": {"unbiased_variance": True},
    "cumulative": {"average": "cumulative"},
    "zero debias": {"zero_debias": True},
    "virtual batches": {"virtual_batch_size": 3},
    "renorm": {"renorm": True, "renorm_clipping": {"rmax": 3.0, "rmin": 1 / 3, "dmax": 5.0}},
    "weights": {"weights": np.array([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])},
    "collection": {"updates_collection": tf.GraphKeys.UPDATE_OPS},
    "no scale, no center": {"scale": False, "center": False},
    "frozen parameters": {"trainable": False},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_training_moves_every_statistic_and_inference_none(graph, option, start, random):
    inputs, flag, outputs = layer(decay=0.5, **OPTIONS[option])
    session = start()
    run = [outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)]
    batch = batches_of(random, 1)[0]
    initial = session.run(moving_statistics())
    session.run(run, {inputs: batch, flag: True})
    trained = session.run(moving_statistics())
    assert all(not np.array_equal(old, new) for old, new in zip(initial, trained, strict=True))
    everything = session.run(tf.global_variables())
    alone = (
        [session.run(run, {inputs: row[np.newaxis], flag: False})[0] for row in batch]
        if "weights" not in option
        else []
    )
    together = session.run(run, {inputs: batch, flag: False})[0]
    for old, new in zip(everything, session.run(tf.global_variables()), strict=True):
        np.testing.assert_array_equal(old, new)
    if alone:
        np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-12)
    expected = oracle.normalized(batch, value_of(session, "moving_mean"), value_of(session, "moving_variance"))
    np.testing.assert_allclose(together, expected, rtol=1e-12)


@pytest.mark.parametrize("option", OPTIONS)
@USUAL_KINDS
def test_python_bool_and_fed_flag_give_the_same_numbers(graph, option, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    options = {"decay": 0.5, **OPTIONS[option]}
    by_bool = batch_norm_wrapper(inputs, True, name="by_bool", **options)
    by_feed = batch_norm_wrapper(inputs, tf.placeholder_with_default(True, []), name="by_feed", **options)
    session = start()
    for batch in batches_of(random, 3):
        one, other, _ = session.run([by_bool, by_feed, tf.get_collection(tf.GraphKeys.UPDATE_OPS)], {inputs: batch})
        np.testing.assert_allclose(one, other, rtol=1e-12)
    statistics = session.run(moving_statistics())
    half = len(statistics) // 2
    for one, other in zip(statistics[:half], statistics[half:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_unbiased_variance_is_averaged_and_the_biased_one_normalizes(plain_graph, start, random):
    inputs, flag, outputs = layer(decay=0.0, unbiased_variance=True)
    batch = batches_of(random, 1)[0]
    session = start()
    got = session.run(outputs, {inputs: batch, flag: True})
    np.testing.assert_allclose(got, oracle.normalized(batch, batch.mean(0), batch.var(0)), rtol=1e-9)
    np.testing.assert_allclose(value_of(session, "moving_variance"), batch.var(0, ddof=1), rtol=1e-12)


def test_cumulative_average_counts_every_batch_alike(plain_graph, start, random):
    inputs, flag, outputs = layer(average="cumulative")
    session, batches = start(), batches_of(random, 5)
    for number, batch in enumerate(batches, start=1):
        session.run(outputs, {inputs: batch, flag: True})
        means, variances = zip(*(oracle.statistics(seen) for seen in batches[:number]), strict=True)
        np.testing.assert_allclose(value_of(session, "moving_mean"), np.mean(means, 0), rtol=1e-12)
        np.testing.assert_allclose(value_of(session, "moving_variance"), np.mean(variances, 0), rtol=1e-12)
        assert value_of(session, "moving_count") == number


@pytest.mark.parametrize("which", [0, 1])
def test_cumulative_average_counts_once_whichever_update_op_is_run(graph, which, start, random):
    inputs, flag, _ = layer(average="cumulative", updates_collection="updates")
    session = start()
    session.run(tf.get_collection("updates")[which], {inputs: batches_of(random, 1)[0], flag: True})
    assert value_of(session, "moving_count") == 1


def test_zero_debias_takes_the_start_out_of_the_average(plain_graph, start, random):
    decay = 0.9
    inputs, flag, outputs = layer(decay=decay, zero_debias=True)
    session, batches = start(), batches_of(random, 4)
    for number, batch in enumerate(batches, start=1):
        session.run(outputs, {inputs: batch, flag: True})
        shares = decay ** np.arange(number - 1, -1, -1.0)
        means, variances = zip(*(oracle.statistics(seen) for seen in batches[:number]), strict=True)
        np.testing.assert_allclose(value_of(session, "moving_mean"), shares @ means / shares.sum(), rtol=1e-9)
        np.testing.assert_allclose(value_of(session, "moving_variance"), shares @ variances / shares.sum(), rtol=1e-9)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((6, 2, 3, 4), 3), ((6, 4, 2, 3), 1)])
def test_virtual_batches_are_normalized_apart_and_the_population_has_the_variance_between_them(
    plain_graph, shape, axis, start, random
):
    inputs, flag, outputs = layer((None, *shape[1:]), decay=0.0, axis=axis, virtual_batch_size=2)
    batch = random.normal(2.0, 3.0, shape)
    session = start()
    got = session.run(outputs, {inputs: batch, flag: True})
    for first in range(0, 6, 2):
        ghost = batch[first : first + 2]
        expected = oracle.normalized(ghost, *oracle.statistics(ghost, axis), axis=axis)
        np.testing.assert_allclose(got[first : first + 2], expected, rtol=1e-9, atol=1e-12)
    mean, variance = oracle.statistics(batch, axis)
    np.testing.assert_allclose(value_of(session, "moving_mean"), mean, rtol=1e-12)
    np.testing.assert_allclose(value_of(session, "moving_variance"), variance, rtol=1e-12)


def test_virtual_batches_of_the_whole_batch_are_plain_batch_norm(plain_graph, start, random):
    inputs, flag, ghost = layer(virtual_batch_size=6)
    plain = batch_norm_wrapper(inputs, flag)
    one, other = start().run([ghost, plain], {inputs: batches_of(random, 1)[0], flag: True})
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_batch_that_can_not_be_cut_is_refused_and_updates_nothing(graph, start, random):
    inputs, flag, outputs = layer(virtual_batch_size=4)
    session = start()
    before = session.run(moving_statistics())
    with pytest.raises(tf.errors.InvalidArgumentError, match="multiple of virtual_batch_size=4"):
        session.run(outputs, {inputs: batches_of(random, 1)[0], flag: True})
    for old, new in zip(before, session.run(moving_statistics()), strict=True):
        np.testing.assert_array_equal(old, new)
    session.run(outputs, {inputs: batches_of(random, 1)[0], flag: False})  # inference knows no virtual batches


@pytest.mark.parametrize("clipping", [{}, {"rmin": 0.8, "rmax": 1.2, "dmax": 0.1}])
@VARIABLE_KINDS
def test_renorm_corrects_toward_the_statistics_before_the_step(graph, clipping, start, random):
    decay, renorm_decay, epsilon = 0.9, 0.7, 1e-3
    inputs, flag, outputs = layer(decay=decay, renorm=True, renorm_decay=renorm_decay, renorm_clipping=clipping)
    session = start()
    mean, deviation, moving_mean, moving_deviation = np.zeros(3), np.ones(3), np.zeros(3), np.ones(3)
    for batch in batches_of(random, 4):
        got = session.run(outputs, {inputs: batch, flag: True})
        batch_deviation = np.sqrt(batch.var(0) + epsilon)
        r = np.clip(batch_deviation / deviation, clipping.get("rmin"), clipping.get("rmax", np.inf))
        d = np.clip((batch.mean(0) - mean) / deviation, -clipping.get("dmax", np.inf), clipping.get("dmax", np.inf))
        np.testing.assert_allclose(got, (batch - batch.mean(0)) / batch_deviation * r + d, rtol=1e-9, atol=1e-9)
        mean = mean * renorm_decay + batch.mean(0) * (1 - renorm_decay)
        deviation = deviation * renorm_decay + batch_deviation * (1 - renorm_decay)
        moving_mean = moving_mean * decay + batch.mean(0) * (1 - decay)
        moving_deviation = moving_deviation * decay + batch_deviation * (1 - decay)
        np.testing.assert_allclose(value_of(session, "moving_mean"), moving_mean, rtol=1e-9)
        np.testing.assert_allclose(value_of(session, "moving_variance"), moving_deviation**2 - epsilon, rtol=1e-9)


def test_renorm_and_tf_layers_restore_into_each_other_and_agree(plain_graph, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])  # tf.layers has no renorm of float64
    clipping = {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0}
    ours = batch_norm_wrapper(inputs, True, decay=0.9, renorm=True, renorm_clipping=clipping, name="ours")
    theirs = tf.layers.batch_normalization(
        inputs, training=True, momentum=0.9, renorm=True, renorm_clipping=clipping, name="theirs"
    )
    session = start()
    for batch in batches_of(random, 3):
        one, other, _ = session.run([ours, theirs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)], {inputs: batch})
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # float32, in two orders
    names = {v.op.name.split("/")[-1] for v in tf.global_variables("ours")}
    assert names == {v.op.name.split("/")[-1] for v in tf.global_variables("theirs")}
    for leaf in names:
        one, other = (session.run(v) for v in tf.global_variables() if v.op.name.endswith(f"/{leaf}"))
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_weights_count_examples_and_a_mask_leaves_padding_out(plain_graph, start, random):
    weights = tf.placeholder(tf.float64, [None])
    inputs, flag, outputs = layer(decay=0.0, weights=weights)
    batch = batches_of(random, 1)[0]
    batch[5] = np.nan  # padding may hold anything
    session = start()
    got = session.run(outputs, {inputs: batch, flag: True, weights: [1, 2, 1, 0.5, 0, 0]})
    shares = np.array([1, 2, 1, 0.5]) / 4.5
    mean = shares @ batch[:4]
    variance = shares @ (batch[:4] - mean) ** 2
    np.testing.assert_allclose(value_of(session, "moving_mean"), mean, rtol=1e-12)
    np.testing.assert_allclose(value_of(session, "moving_variance"), variance, rtol=1e-12)
    np.testing.assert_allclose(got[:5], oracle.normalized(batch[:5], mean, variance), rtol=1e-9)


def test_a_mask_of_ones_is_plain_batch_norm_gradients_included(plain_graph, start, random):
    inputs, flag, plain = layer((None, 2, CHANNELS))
    masked = batch_norm_wrapper(inputs, flag, weights=tf.ones([4, 2, 1], tf.bool))
    gradients = [tf.gradients(tf.square(outputs) * inputs, inputs)[0] for outputs in (plain, masked)]
    batch = random.normal(size=(4, 2, CHANNELS))
    one, other, by_plain, by_masked = start().run([plain, masked, *gradients], {inputs: batch, flag: True})
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(by_plain, by_masked, rtol=1e-6, atol=1e-9)


def test_weights_of_the_leading_dimensions_mask_time_steps(plain_graph, start, random):
    mask = np.array([[True, True, False], [True, False, False]])
    inputs, flag, outputs = layer((None, 3, CHANNELS), decay=0.0, weights=tf.constant(mask))
    batch = random.normal(2.0, 3.0, (2, 3, CHANNELS))
    session = start()
    session.run(outputs, {inputs: batch, flag: True})
    np.testing.assert_allclose(value_of(session, "moving_mean"), batch[mask].mean(0), rtol=1e-12)
    np.testing.assert_allclose(value_of(session, "moving_variance"), batch[mask].var(0), rtol=1e-12)


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(4, CHANNELS), (4, 2, CHANNELS)])
def test_what_is_not_finite_in_a_row_of_weight_zero_reaches_no_gradient(plain_graph, shape, garbage, start, random):
    inputs, flag, outputs = layer((None, *shape[1:]), weights=tf.constant([True, True, True, False]))
    kernel = tf.get_variable("kernel", [CHANNELS, 2], tf.float64, tf.ones_initializer())
    after = tf.square(tf.tensordot(outputs, kernel, 1)) * np.arange(1.0, 3.0)
    loss = tf.reduce_sum(after[:3] * inputs[:3, ..., :1])
    gradients = tf.gradients(loss, [inputs, *tf.trainable_variables()])
    batch = random.normal(size=shape)
    session = start()
    padded = np.copy(batch)
    padded[3] = garbage
    expected = session.run(gradients, {inputs: batch, flag: True})
    for got, wanted in zip(session.run(gradients, {inputs: padded, flag: True}), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
    beta = np.zeros(shape[1:])
    np.testing.assert_allclose(session.run(outputs, {inputs: padded, flag: True})[3], beta, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "error", "says"),
    [
        (np.ones(5), ValueError, r"got weights of shape \(5,\) for inputs of shape \(4, 2, 3\)"),
        (np.ones((4, 3)), ValueError, r"got weights of shape \(4, 3\) for"),
        (np.ones((4, 2, 3, 1)), ValueError, r"got weights of shape \(4, 2, 3, 1\) for"),
        (["a", "b", "c", "d"], TypeError, "weights must be a mask of bools, or real numbers, got a tensor of string"),
    ],
)
def test_weights_of_a_wrong_shape_or_dtype_are_named(plain_graph, weights, error, says):
    with pytest.raises(error, match=says):
        batch_norm_wrapper(tf.zeros([4, 2, CHANNELS]), True, weights=weights)
    assert tf.global_variables() == []


def test_weights_of_unknown_rank_are_refused(plain_graph):
    with pytest.raises(ValueError, match=r"unknown rank. Set it with weights.set_shape"):
        batch_norm_wrapper(tf.zeros([4, CHANNELS]), True, weights=tf.placeholder(tf.float32))


def test_weights_that_are_fed_in_a_wrong_shape_are_named_and_nothing_is_updated(plain_graph, start):
    weights = tf.placeholder(tf.float32, [None])
    inputs, flag, outputs = layer(weights=weights)
    session = start()
    with pytest.raises(tf.errors.InvalidArgumentError, match="weights must have the shape of the leading dimensions"):
        session.run(outputs, {inputs: np.ones((4, CHANNELS)), weights: np.ones(3), flag: True})
    np.testing.assert_array_equal(value_of(session, "moving_mean"), np.zeros(3))
    session.run(outputs, {inputs: np.ones((4, CHANNELS)), weights: np.ones(1), flag: True})  # 1 counts all alike


@pytest.mark.parametrize("dtype", [tf.float64, tf.float16, tf.int32])
def test_renorm_clipping_takes_tensors_of_any_number_dtype(plain_graph, dtype, start, random):
    numbers = {"rmin": 1.0, "rmax": 2.0, "dmax": 0.0}
    tensors = {key: tf.cast(tf.constant(value), dtype) for key, value in numbers.items()}
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    pair = [batch_norm_wrapper(inputs, True, renorm=True, renorm_clipping=each) for each in (numbers, tensors)]
    one, other = start().run(pair, {inputs: batches_of(random, 1)[0]})
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bound", ["2", None, True, np.ones(2)])
def test_a_bound_of_renorm_clipping_that_is_no_number_is_named(plain_graph, bound):
    with pytest.raises(ValueError, match=r"renorm_clipping\['rmax'\] must be a number"):
        batch_norm_wrapper(tf.zeros([4, CHANNELS]), True, renorm=True, renorm_clipping={"rmax": bound})


@pytest.mark.parametrize("is_training", [True, False])
def test_a_getter_that_returns_tensors_for_the_statistics_is_named(plain_graph, is_training):
    def halved(getter, *args, **kwargs):
        return tf.cast(getter(*args, **kwargs), tf.float32) * 1.0

    with (
        tf.variable_scope("net", custom_getter=halved),
        pytest.raises(ValueError, match=r"moving_mean must be a variable.*custom getter returned"),
    ):
        batch_norm_wrapper(tf.zeros([4, CHANNELS]), is_training)


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, -1.0, 2.0]])
def test_weights_that_vanish_or_are_negative_are_refused_and_update_nothing(graph, weights, start, random):
    inputs, flag, outputs = layer(weights=tf.constant(weights))
    session = start()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not negative and do not all vanish"):
        session.run(outputs, {inputs: random.normal(size=(3, CHANNELS)), flag: True})
    np.testing.assert_array_equal(value_of(session, "moving_mean"), np.zeros(3))


def test_weights_too_light_for_an_unbiased_variance_are_refused(plain_graph, start, random):
    inputs, flag, outputs = layer(weights=tf.constant([0.2, 0.2, 0.1]), unbiased_variance=True)
    session = start()
    with pytest.raises(tf.errors.InvalidArgumentError, match="must sum to more than 1"):
        session.run(outputs, {inputs: random.normal(size=(3, CHANNELS)), flag: True})
    np.testing.assert_array_equal(value_of(session, "moving_variance"), np.ones(3))


# --- training without updates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["plain", "renorm", "cumulative", "collection"])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("updating", [True, False])
@USUAL_KINDS
def test_the_statistics_move_only_where_they_are_to_be_updated_in_training(
    graph, option, is_training, updating, start, random
):
    inputs, flag, update = (
        tf.placeholder(tf.float64, [None, CHANNELS]),
        tf.placeholder(tf.bool, []),
        tf.placeholder(tf.bool),
    )
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5, update_statistics=update, **OPTIONS[option])
    plain = batch_norm_wrapper(inputs, is_training, decay=0.5, name="plain", **OPTIONS[option])
    updates, own = tf.get_collection(tf.GraphKeys.UPDATE_OPS), len(moving_statistics()) // 2
    session, batch = start(), batches_of(random, 1)[0]
    before = session.run(moving_statistics()[:own])
    got, expected, _ = session.run([outputs, plain, updates], {inputs: batch, flag: is_training, update: updating})
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    after = session.run(moving_statistics())
    for old, new, of_plain in zip(before, after[:own], after[own:], strict=True):
        np.testing.assert_allclose(new, of_plain if updating else old, rtol=1e-12)


@pytest.mark.parametrize("key", [None, tf.GraphKeys.UPDATE_OPS])
def test_without_updates_by_a_python_bool_the_graph_has_no_update_op(plain_graph, key, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    outputs = batch_norm_wrapper(inputs, True, update_statistics=False, updates_collection=key)
    assigns = {operation for operation in plain_graph.get_operations() if "Assign" in operation.type}
    assert assigns == {variable.initializer for variable in tf.global_variables()}
    batch = batches_of(random, 1)[0]
    expected = oracle.normalized(batch, *oracle.statistics(batch))
    np.testing.assert_allclose(start().run(outputs, {inputs: batch}), expected, rtol=1e-9)


def test_update_statistics_that_is_no_flag_is_named(plain_graph):
    with pytest.raises(ValueError, match="update_statistics must be a Python bool or a scalar bool tensor"):
        batch_norm_wrapper(tf.zeros([4, CHANNELS]), True, update_statistics=1)


def test_virtual_batches_are_runs_of_neighbouring_examples(plain_graph, start, random):
    inputs, flag, outputs = layer(virtual_batch_size=2)
    batch = batches_of(random, 1)[0]
    got = start().run(outputs, {inputs: batch, flag: True})
    expected = [oracle.normalized(batch[i : i + 2], *oracle.statistics(batch[i : i + 2])) for i in (0, 2, 4)]
    np.testing.assert_allclose(got, np.concatenate(expected), rtol=1e-9)


# --- decay as a tensor or a function ----------------------------------------------------------------------------------

SCHEDULES = {
    "tensor": lambda decay: decay,
    "function that returns a tensor": lambda decay: lambda: decay,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("option", ["plain", "zero debias", "renorm", "collection"])
@USUAL_KINDS
def test_a_decay_may_be_a_schedule(graph, schedule, option, start, random):
    fed = tf.placeholder_with_default(np.float32(0.25), [])
    inputs, flag, by_schedule = layer(decay=SCHEDULES[schedule](fed), **OPTIONS[option])
    by_number = batch_norm_wrapper(inputs, flag, decay=0.25, **OPTIONS[option])
    session = start()
    for batch in batches_of(random, 2):
        fetches = [by_schedule, by_number, tf.get_collection(tf.GraphKeys.UPDATE_OPS)]
        one, other, _ = session.run(fetches, {inputs: batch, flag: True})
        np.testing.assert_allclose(one, other, rtol=1e-9)
    statistics = session.run(moving_statistics())
    half = len(statistics) // 2
    for one, other in zip(statistics[:half], statistics[half:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("argument", ["decay", "renorm_decay"])
@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
@USUAL_KINDS
def test_a_fed_decay_outside_zero_to_one_fails_the_training_run_and_updates_nothing(
    graph, argument, value, start, random
):
    fed = tf.placeholder(tf.float32, [])
    inputs, flag, outputs = layer(renorm=True, **{argument: fed})
    session, batch = start(), batches_of(random, 1)[0]
    before = session.run(tf.global_variables())
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{argument} is the weight of the old value"):
        session.run(outputs, {inputs: batch, flag: True, fed: value})
    session.run(outputs, {inputs: batch, flag: False, fed: value})  # inference has no use for it
    for old, new in zip(before, session.run(tf.global_variables()), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("decay", "says"),
    [
        (lambda: 1.5, "from 0 to 1, got 1.5"),
        (lambda: tf.constant(-0.5), "from 0 to 1, got -0.5"),
        (lambda: "0.9", "a function of no arguments that returns one of these, got '0.9'"),
        ([0.9], "must be a number, a scalar tensor of floats"),
        (np.array([0.9, 0.9]), "must be a number, a scalar tensor of floats"),
    ],
)
def test_a_decay_that_can_not_be_is_refused_when_the_graph_is_built(plain_graph, decay, says):
    with pytest.raises(ValueError, match=says):
        batch_norm_wrapper(tf.zeros([4, CHANNELS]), True, decay=decay)
    assert tf.global_variables() == []


# --- the fused kernel -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["few", "many"])
def values_per_channel(request, monkeypatch):
    """Whether the kernel takes the statistics itself, or a batch of a few small images counts as many values."""
    if request.param == "many":
        monkeypatch.setattr(fused_kernel, "_MOST_VALUES", 20)


@pytest.mark.parametrize(
    ("shape", "static", "offset"),
    [
        ((32, 224, 224, 2), (None, 224, 224, 2), 0.0),
        ((256, 56, 56, 2), (None, None, None, 2), 0.0),
        ((32, 64, 64, 2), (32, 64, 64, 2), 3.0),
        ((32, 64, 64, 2), (None, 64, 64, 2), 15.0),
        ((32, 64, 64, 2), (None, 64, 64, 2), 1e6),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_statistics_of_many_values_are_those_of_float64(plain_graph, shape, static, offset, fused, start, random):
    # Behind a ReLU the squares are uneven: summed in one run, 4·10⁻³ of the variance are lost at 32×224×224.
    batch = (np.maximum(random.standard_normal(shape), 0.0) + offset).astype(np.float32)
    inputs = tf.placeholder(tf.float32, static)
    outputs = batch_norm_wrapper(inputs, True, decay=0.0, fused=fused)
    session = start()
    got = session.run(outputs, {inputs: batch})
    mean, variance = session.run(moving_statistics())
    wide = batch.astype(np.float64)
    expected_mean, expected_variance = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-7, atol=2e-5 * np.sqrt(expected_variance.min()))
    np.testing.assert_allclose(variance, expected_variance, rtol=2e-5)
    np.testing.assert_allclose(got, oracle.normalized(wide, expected_mean, expected_variance), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("batch", [None, 20])
def test_gradients_of_many_values_are_those_of_float64(plain_graph, batch, start, random):
    shape = (20, 60, 60, 2)
    values, toward = random.normal(2.0, 3.0, shape), random.normal(1.0, 1.0, shape)
    results = {}
    for dtype in (tf.float32, tf.float64):
        inputs = tf.placeholder(dtype, [batch, 60, 60, 2])
        outputs = batch_norm_wrapper(inputs, True, name=dtype.name)
        parameters = tf.trainable_variables(f"{dtype.name}/")
        loss = tf.reduce_sum(outputs * toward.astype(dtype.as_numpy_dtype))
        results[dtype] = inputs, tf.gradients(loss, [inputs, *parameters])
    session = start()
    got, expected = (session.run(gradients, {inputs: values}) for inputs, gradients in results.values())
    # The kernel's gradient sums 72,000 products a channel in float32.
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def in_pairs(option):
    """Few values and many, either kind of cond, the option off and on: each with each, not all three."""
    cases = [("few", "v1", False), ("few", "v2", True), ("many", "v1", True), ("many", "v2", False)]
    kinds = ["values_per_channel", "cond_kind"]
    return pytest.mark.parametrize((*kinds, option), cases, indirect=kinds)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
@in_pairs("unbiased")
@COND_KINDS
def test_fused_and_unfused_give_the_same_numbers(graph, values_per_channel, dtype, unbiased, start, random):
    inputs, flag = tf.placeholder(dtype, [None, 4, 4, CHANNELS]), tf.placeholder(tf.bool, [])
    options = {"decay": 0.5, "unbiased_variance": unbiased}
    pair = [batch_norm_wrapper(inputs, flag, fused=fused, **options) for fused in (True, False)]
    gradients = [tf.gradients(tf.square(outputs), inputs)[0] for outputs in pair]
    session = start()
    # half: one unit in the last place of |y| < 4
    tolerance = {tf.float32: 5e-6, tf.float16: 4e-3, tf.bfloat16: 4e-2}[dtype]
    # Half precision has no values around 10⁶, or no spread around them.
    for offset in (0.0, 256.0, 1e6) if dtype == tf.float32 else (0.0, 256.0):
        session.run(tf.global_variables_initializer())
        batch = random.normal(offset, 1.0, (8, 4, 4, CHANNELS)).astype(np.float32)
        one, other = (np.float64(a) for a in session.run(pair, {inputs: batch, flag: True}))
        np.testing.assert_allclose(one, other, atol=tolerance)
        mean, variance, other_mean, other_variance = session.run(moving_statistics())
        np.testing.assert_allclose(mean, other_mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance, other_variance, rtol=1e-5)
        if dtype == tf.float32:
            one, other = session.run(gradients, {inputs: batch, flag: True})
            # The gradient of Σy² is all but 0 (normalizing undoes any change of it), so what is compared is rounding.
            np.testing.assert_allclose(one, other, atol=2e-4)
        one, other = (np.float64(a) for a in session.run(pair, {inputs: batch, flag: False}))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("values_per_channel")
def test_fused_gradients_equal_unfused(plain_graph, start, random):
    inputs = tf.placeholder(tf.float32, [None, 4, 4, CHANNELS])
    toward = tf.constant(random.normal(size=(8, 4, 4, CHANNELS)).astype(np.float32))
    results = []
    for fused in (True, False):
        outputs = batch_norm_wrapper(inputs, True, fused=fused, name=f"fused_{fused}")
        parameters = [v for v in tf.trainable_variables() if v.op.name.startswith(f"fused_{fused}/")]
        first = tf.gradients(tf.reduce_sum(outputs * toward), [inputs, *parameters])
        results.append([*first, tf.gradients(tf.reduce_sum(tf.square(first[0])), inputs)[0]])
    batch = random.normal(3.0, 2.0, (8, 4, 4, CHANNELS))
    for one, other in zip(*start().run(results, {inputs: batch}), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # float32 sums of 128 products in two orders


def test_the_kernel_is_taken_where_it_applies_and_only_there(plain_graph):
    def kernels(**options):
        with tf.Graph().as_default() as fresh:
            shape = options.pop("shape", [None, 4, 4, 3])
            batch_norm_wrapper(tf.placeholder(options.pop("dtype", tf.float32), shape), True, **options)
            return "FusedBatchNormV3" in str(fresh.as_graph_def())  # in functions too

    assert kernels()
    assert not kernels(fused=False)
    assert not kernels(axis=1)
    assert not kernels(dtype=tf.float64)
    assert not kernels(shape=[None, 3])
    assert not kernels(weights=np.ones(4, np.float32), shape=[4, 4, 4, 3])


@in_pairs("known")
@COND_KINDS
def test_gradients_of_the_fused_layer_are_vectorized_and_compiled(graph, values_per_channel, known, start, random):
    def outputs(inputs, reuse):
        return batch_norm_wrapper(inputs, True, name="bn", reuse=reuse)

    inputs = tf.placeholder(tf.float32, [4 if known else None, 3, 3, CHANNELS])
    plain = outputs(inputs, reuse=False)
    compiled = tf.function(lambda fed: outputs(fed, reuse=True), jit_compile=True, autograph=False)(inputs)
    toward = random.normal(size=(4, 3, 3, CHANNELS))
    expected, got = (tf.gradients(tf.reduce_sum(each * toward), inputs)[0] for each in (plain, compiled))
    few = tf.reshape(plain, [-1])[:4]
    rows, jacobian = (
        tf.stack([tf.gradients(value, inputs)[0] for value in tf.unstack(few, 4)]),
        parallel_for.jacobian(few, inputs),
    )
    session = start()
    for offset in (0.0, 1e6):
        fed = {inputs: random.normal(offset, 1.0, toward.shape)}
        values = session.run([expected, got, rows, jacobian], fed)
        np.testing.assert_allclose(values[1], values[0], atol=1e-5)  # XLA adds up in another order
        np.testing.assert_allclose(values[3], values[2], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("values_per_channel")
@COND_KINDS
def test_an_imported_fused_layer_has_the_gradients_of_the_original(graph, start, random):
    inputs = tf.placeholder(tf.float32, [None, 3, 3, CHANNELS], name="inputs")
    outputs = batch_norm_wrapper(inputs, True, name="bn")
    toward = random.normal(size=(4, 3, 3, CHANNELS))
    gradient, session = tf.gradients(tf.reduce_sum(outputs * toward), inputs)[0], start()
    meta_graph = tf.train.export_meta_graph()
    with tf.Graph().as_default() as imported:
        tf.train.import_meta_graph(meta_graph)
        again, outputs = (imported.get_tensor_by_name(tensor.name) for tensor in (inputs, outputs))
        imported_gradient, imported_session = tf.gradients(tf.reduce_sum(outputs * toward), again)[0], start()
    for offset in (0.0, 1e6):
        batch = random.normal(offset, 1.0, (4, 3, 3, CHANNELS))
        expected, got = session.run(gradient, {inputs: batch}), imported_session.run(imported_gradient, {again: batch})
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_constant_channels_give_beta(plain_graph, fused, start):
    inputs, flag, outputs = layer(
        (None, 4, 4, 2), tf.float32, fused=fused, beta_initializer=tf.constant_initializer(7.0)
    )
    batch = np.broadcast_to(np.float32([1e6, 0.1]), (3, 4, 4, 2))
    got = start().run(outputs, {inputs: batch, flag: True})
    np.testing.assert_allclose(got, np.full((3, 4, 4, 2), 7.0), rtol=1e-6)


# --- variables --------------------------------------------------------------------------------------------------------


def test_without_center_or_scale_there_is_no_such_variable(plain_graph):
    layer(center=False, name="a")
    layer(scale=False, name="b")
    names = [v.op.name for v in tf.trainable_variables()]
    assert names == ["a/gamma", "b/beta"]


def test_initializers_and_regularizers_reach_their_variable(plain_graph, start):
    constants = {
        f"{name}_initializer": tf.constant_initializer(value)
        for name, value in (("gamma", 2.0), ("beta", 3.0), ("moving_mean", 4.0), ("moving_variance", 5.0))
    }
    layer(**constants, gamma_regularizer=tf.reduce_sum, beta_regularizer=lambda beta: 10.0 * tf.reduce_sum(beta))
    session = start()
    for name, value in (("gamma", 2.0), ("beta", 3.0), ("moving_mean", 4.0), ("moving_variance", 5.0)):
        np.testing.assert_array_equal(value_of(session, name), np.full(CHANNELS, value))
    assert session.run(tf.losses.get_regularization_losses()) == [2.0 * CHANNELS, 30.0 * CHANNELS]


def test_frozen_parameters_are_not_trainable(plain_graph):
    layer(trainable=False)
    assert tf.trainable_variables() == []
    assert len(tf.global_variables()) == 4


def test_reuse_shares_one_set_of_variables(plain_graph, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    train = batch_norm_wrapper(inputs, True, decay=0.5, name="bn")
    infer = batch_norm_wrapper(inputs, False, name="bn", reuse=True)
    assert len(tf.global_variables()) == 4
    session, batch = start(), batches_of(random, 1)[0]
    session.run(train, {inputs: batch})
    expected = oracle.normalized(batch, *oracle.moving([batch], 0.5))
    np.testing.assert_allclose(session.run(infer, {inputs: batch}), expected, rtol=1e-9)


def test_a_name_used_twice_without_reuse_is_an_error(plain_graph):
    layer(name="bn")
    with pytest.raises(ValueError, match="already exists"):
        layer(name="bn")


@VARIABLE_KINDS
def test_each_call_leaves_a_note_that_outlives_a_meta_graph(graph):
    inputs, _, outputs = layer((None, CHANNELS, 4), axis=1, scale=False, name="bn")
    meta = tf.train.export_meta_graph(as_text=False)
    with tf.Graph().as_default() as imported:
        tf.train.import_meta_graph(meta)
        (note,) = [json.loads(text) for text in imported.get_collection(LAYERS)]
    expected = {"scope": "bn", "inputs": inputs.name, "outputs": outputs.name, "axis": 1, "epsilon": 1e-3}
    expected |= {name: f"bn/{name}" for name in ("beta", "moving_mean", "moving_variance")}
    assert note == expected


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"average": "moving"}, "average must be one of exponential, cumulative, got 'moving'"),
        ({"average": "cumulative", "zero_debias": True}, "no start to debias"),
        ({"zero_debias": True, "renorm": True}, "exclude each other"),
        ({"virtual_batch_size": 2, "renorm": True}, "virtual_batch_size and renorm exclude each other"),
        ({"virtual_batch_size": 2, "weights": [1.0]}, "virtual_batch_size and weights exclude each other"),
        ({"virtual_batch_size": 0}, "virtual_batch_size must be a whole number from 1 up, got 0"),
        ({"virtual_batch_size": 2, "axis": 0}, "the channel axis can't be axis 0"),
        ({"virtual_batch_size": 4}, "multiple of virtual_batch_size=4, got inputs of shape \\(6, 3\\)"),
        ({"renorm_clipping": {"rmx": 2.0}}, "rmin, rmax, dmax, got rmx"),
        ({"renorm_decay": 1.5}, "renorm_decay is the weight of the old value and must be from 0 to 1, got 1.5"),
        ({"fused": True}, "fused=True needs inputs of rank 4"),
    ],
)
def test_arguments_that_make_no_sense_are_named(plain_graph, options, says):
    with pytest.raises(ValueError, match=says):
        batch_norm_wrapper(tf.zeros([6, CHANNELS]), True, **options)
    assert tf.global_variables() == []


@pytest.mark.parametrize("option", ["virtual_batch_size", "renorm", "weights"])
def test_the_fused_kernel_is_refused_what_it_can_not_do(plain_graph, option):
    value = {"virtual_batch_size": 2, "renorm": True, "weights": np.ones(4)}[option]
    with pytest.raises(ValueError, match="neither virtual_batch_size nor renorm nor weights"):
        batch_norm_wrapper(tf.zeros([4, 2, 2, 3]), True, fused=True, **{option: value})


# --- several kept axes ------------------------------------------------------------------------------------------------


def kept(array: np.ndarray, axes, reduction) -> np.ndarray:
    """`reduction` of float64 values over all but `axes`, their dimensions kept."""
    reduced = tuple(d for d in range(array.ndim) if d not in axes)
    return reduction(np.float64(array), axis=reduced, keepdims=True)


@pytest.mark.parametrize("axes", [(1, 3), [3, 1], (-3, -1), (1, 2, 3), (0, 3)])
@pytest.mark.parametrize("flag_is_fed", [True, False])
def test_several_kept_axes_have_statistics_each_in_the_shapes_of_tf_layers(
    plain_graph, axes, flag_is_fed, start, random
):
    batch = random.normal(3.0, 2.0, (6, 2, 5, 3)).astype(np.float32)
    inputs = tf.placeholder(tf.float32, [6 if 0 in axes else None, 2, 5, 3])
    flag = tf.placeholder(tf.bool, []) if flag_is_fed else True
    outputs = batch_norm_wrapper(inputs, flag, axis=axes, decay=0.0, name="bn")
    session = start()
    got = session.run(outputs, {inputs: batch} | ({flag: True} if flag_is_fed else {}))
    axes = [axis % 4 for axis in axes]
    mean, variance = kept(batch, axes, np.mean), kept(batch, axes, np.var)
    np.testing.assert_allclose(got, (batch - mean) / np.sqrt(variance + 1e-3), rtol=1e-5, atol=1e-5)
    values = session.run({v.op.name: v for v in tf.global_variables()})
    np.testing.assert_allclose(values["bn/moving_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(values["bn/moving_variance"], variance, rtol=1e-5)
    shape = tuple(size if axis in axes else 1 for axis, size in enumerate(batch.shape))
    assert {name: value.shape for name, value in values.items()} == dict.fromkeys(
        ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"], shape
    )
    if flag_is_fed:
        np.testing.assert_allclose(session.run(outputs, {inputs: batch, flag: False}), got, rtol=1e-5, atol=1e-5)
    if 0 not in axes:  # theirs takes axis 0 with virtual batches only
        theirs = legacy_layers().batch_normalization(inputs, axis=list(axes), training=True, name="theirs")
        assert [v.shape.as_list() for v in tf.global_variables("theirs/")] == [list(shape)] * 4
        session.run(tf.global_variables_initializer())
        np.testing.assert_allclose(got, session.run(theirs, {inputs: batch}), rtol=1e-5, atol=1e-5)


def test_one_axis_in_a_list_is_that_axis(plain_graph):
    batch_norm_wrapper(tf.zeros([4, 5, 3]), True, axis=[1], name="bn")
    assert {variable.shape.as_list()[0] for variable in tf.global_variables()} == {5}


@pytest.mark.parametrize(
    "options",
    [{"virtual_batch_size": 3}, {"renorm": True}, {"average": "cumulative"}, {"zero_debias": True}, {"fused": False}],
    ids=str,
)
def test_options_with_several_kept_axes_do_what_they_do_with_one_of_all_channels(plain_graph, options, start, random):
    batch = random.normal(3.0, 2.0, (6, 2, 5, 3)).astype(np.float32)
    several = batch_norm_wrapper(tf.constant(batch), True, axis=[1, 3], name="several", **options)
    flat = tf.reshape(tf.transpose(tf.constant(batch), [0, 2, 1, 3]), [6, 5, 6])
    one = batch_norm_wrapper(flat, True, name="one", **options)
    one = tf.transpose(tf.reshape(one, [6, 5, 2, 3]), [0, 2, 1, 3])
    session = start()
    np.testing.assert_allclose(*session.run([several, one]), rtol=1e-5, atol=1e-5)
    values = session.run({v.op.name: v for v in tf.global_variables()})
    for name, value in values.items():
        if name.startswith("one/"):
            other = values[name.replace("one", "several")]
            np.testing.assert_allclose(other.reshape(value.shape), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("axis", "options", "says"),
    [
        ([], {}, "or a list of such"),
        ([1, 4], {}, "or a list of such"),
        ([1, -3], {}, "each kept axis once"),
        ([0, 1, 2, 3], {}, "leave one to average over"),
        ([1, 3], {"fused": True}, r"not rank 4 with axis \(1, 3\)"),
        ([1, 3], {"weights": np.ones(4)}, r"weights needs one channel axis, and axis=\[1, 3\]"),
        ([1, 3], {"sync": lambda vector: vector[tf.newaxis]}, "sync needs one channel axis"),
        ([0, 3], {"virtual_batch_size": 2}, "channel axis can't be axis 0"),
    ],
)
def test_kept_axes_that_can_not_be_are_refused(plain_graph, axis, options, says):
    with pytest.raises(ValueError, match=says):
        batch_norm_wrapper(tf.zeros([4, 2, 5, 3]), True, axis=axis, **options)


def test_a_layer_that_keeps_several_axes_is_recalibrated_and_exported_and_is_named_where_that_can_not_be(
    plain_graph, start, random, tmp_path
):
    inputs, flag = tf.placeholder(tf.float32, [None, 2, 5, 3]), tf.placeholder(tf.bool, [])
    outputs = batch_norm_wrapper(inputs, flag, axis=[1, 3], name="net/bn")
    batch = random.normal(3.0, 2.0, (6, 2, 5, 3)).astype(np.float32)
    session = start()
    recalibrate(session, [{inputs: batch, flag: True}], unbiased=False)
    mean, variance = session.run(moving_statistics())
    np.testing.assert_allclose(mean, kept(batch, (1, 3), np.mean), rtol=1e-5)
    np.testing.assert_allclose(variance, kept(batch, (1, 3), np.var), rtol=1e-5)
    with pytest.warns(UnfoldedWarning, match="net/bn"):
        export_frozen_graph(session, tmp_path / "model.pb", {"x": inputs}, {"y": outputs}, is_training=flag)
    with pytest.raises(ValueError, match="layer net/bn keeps several axes"):
        export_state_dict(session)


# --- against the oracle, any shape ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    axis=st.integers(0, 4),
    decay=st.floats(0.0, 1.0),
    offset=st.sampled_from([0.0, 256.0, 1e6, -1e6]),
    unbiased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape_in_float32_follows_the_float64_oracle(shape, axis, decay, offset, unbiased, seed):
    axis %= len(shape)
    count = np.prod(shape) // shape[axis]
    if count < 2:
        return
    batch = np.random.default_rng(seed).normal(offset, 2.0, shape).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        inputs = tf.placeholder(tf.float32, [None if d != axis else size for d, size in enumerate(shape)])
        outputs = batch_norm_wrapper(inputs, True, decay=decay, axis=axis, unbiased_variance=unbiased)
        session.run(tf.global_variables_initializer())
        got = session.run(outputs, {inputs: batch})
        statistics = session.run(moving_statistics())
    mean, variance = oracle.statistics(batch, axis)
    expected = oracle.normalized(batch, mean, variance, axis=axis)
    # Values around 10⁶ are a multiple of 1/16 apart; 32 of their like rounded sums give an error of some 10⁻⁶ of |y| ≤ 6.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    corrected = variance * count / (count - 1) if unbiased else variance
    np.testing.assert_allclose(statistics[0], mean * (1 - decay), rtol=1e-6, atol=1e-6)
    # The step from the start of 1 is rounded to float32 at 1.
    np.testing.assert_allclose(statistics[1], decay + corrected * (1 - decay), rtol=1e-5, atol=1.2e-7)
