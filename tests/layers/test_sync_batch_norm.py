"""`sync`: statistics of several workers' examples together, against the whole batch at one. Workers are towers here."""

import numpy as np
import pytest

from bn_graph.layers.averages import moving_statistics
from bn_graph.layers.batch_norm import batch_norm_wrapper
from bn_graph.tf1 import tf
from bn_graph.training import distributed
from bn_graph.training.distributed import Workers
from tests import oracle

CHANNELS = 3
DECAY = 0.5
FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


@pytest.fixture
def start():
    """As the common one, with a logical CPU for each of up to three towers."""
    sessions = []

    def open_session():
        config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        config.device_count["CPU"] = 3
        config.operation_timeout_in_ms = 30_000  # an exchange that lacks a partner must fail the test, not hang it
        sessions.append(tf.Session(config=config))
        sessions[-1].run(tf.global_variables_initializer())
        return sessions[-1]

    yield open_session
    for session in sessions:
        session.close()


def towers(parts, is_training=True, *, dtype=tf.float64, static=False, weights=None, **options):
    """Inputs and outputs of a layer at each worker; each has variables of its own, as processes have."""
    built = []
    options_of_each = [options if weights is None else options | {"weights": of_one} for of_one in weights or parts]
    for index, part in enumerate(parts):
        with tf.device(f"/cpu:{index}"):
            shape = part.shape if static else [None, *part.shape[1:]]
            inputs = tf.placeholder(dtype, shape)
            sync = distributed.gatherer(Workers(len(parts), index))
            name = f"worker_{index}"
            built.append(
                (
                    inputs,
                    batch_norm_wrapper(
                        inputs, is_training, decay=DECAY, sync=sync, name=name, **options_of_each[index]
                    ),
                )
            )
    inputs, outputs = zip(*built, strict=True)
    return list(inputs), list(outputs)


def fed(inputs, parts):
    return dict(zip(inputs, parts, strict=True))


def cut(batch, sizes):
    return np.split(batch, np.cumsum(sizes)[:-1])


def statistics_of_each(session, workers):
    values = session.run(moving_statistics())
    return np.reshape(values, [workers, 2, -1])


@pytest.mark.parametrize("sizes", [(4, 4), (7, 1), (5, 0), (1, 1), (2, 3, 4)])
def test_every_example_is_normalized_by_the_whole_batch_however_it_is_cut(plain_graph, start, random, sizes):
    batch = random.normal(2.0, 3.0, (sum(sizes), CHANNELS))
    parts = cut(batch, sizes)
    inputs, outputs = towers(parts)
    session = start()
    found = np.concatenate(session.run(outputs, fed(inputs, parts)))
    mean, variance = oracle.statistics(batch)
    np.testing.assert_allclose(found, oracle.normalized(batch, mean, variance), rtol=1e-6, atol=1e-9)
    expected = oracle.moving([batch], DECAY)
    for own in statistics_of_each(session, len(sizes)):
        np.testing.assert_allclose(own, expected, rtol=1e-12)


def test_workers_hold_the_same_bits(plain_graph, start, random):
    parts = [random.normal(1e3, 1.0, (size, CHANNELS)) for size in (3, 8, 2)]
    inputs, outputs = towers(parts, dtype=tf.float32)
    session = start()
    for _ in range(3):
        session.run(outputs, fed(inputs, parts))
    first, *others = statistics_of_each(session, 3)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 1), (5, 0)])
def test_gradients_are_those_of_the_whole_batch(plain_graph, start, random, sizes):
    batch, slopes = random.normal(1.0, 2.0, (sum(sizes), CHANNELS)), random.normal(size=(sum(sizes), CHANNELS))
    parts, weights = cut(batch, sizes), cut(slopes, sizes)
    inputs, outputs = towers(parts)
    # A worker takes the gradient of its own loss only, as a process does, which knows no other's.
    losses = [tf.reduce_sum(y**2 * weight) for y, weight in zip(outputs, weights, strict=True)]
    gradients = [tf.gradients(loss, x)[0] for loss, x in zip(losses, inputs, strict=True)]
    found = np.concatenate(start().run(gradients, fed(inputs, parts)))

    def whole_loss(values):
        return np.sum(oracle.normalized(values, *oracle.statistics(values)) ** 2 * slopes)

    # Central differences are good to about 1e-9 here.
    np.testing.assert_allclose(found, oracle.gradient(whole_loss, batch), rtol=1e-6, atol=1e-8)


def test_gradients_of_several_losses_of_a_worker_do_not_meet_in_one_exchange(plain_graph, start, random):
    parts = [random.normal(size=(3, CHANNELS)) for _ in range(2)]
    inputs, outputs = towers(parts)
    squares = [tf.gradients(tf.reduce_sum(y**2), x)[0] for x, y in zip(inputs, outputs, strict=True)]
    cubes = [tf.gradients(tf.reduce_sum(y**3), x)[0] for x, y in zip(inputs, outputs, strict=True)]
    session = start()
    together = session.run([squares, cubes], fed(inputs, parts))
    apart = [session.run(squares, fed(inputs, parts)), session.run(cubes, fed(inputs, parts))]
    np.testing.assert_array_equal(together, apart)


def collectives():
    """Floats that each exchange of worker 0 carries, in the order in which they were built."""
    found = [op for op in tf.get_default_graph().get_operations() if "Collective" in op.type and op.device[-1] == "0"]
    return [op.inputs[0].shape.num_elements() for op in found]


def test_a_layer_makes_one_exchange_forward_and_one_of_two_sums_a_channel_backward(plain_graph):
    inputs, outputs = towers([np.ones((2, CHANNELS))] * 2)
    assert collectives() == [1 + 1 + 3 * CHANNELS]  # two numbers; means in two parts, and variances
    tf.gradients(tf.reduce_sum(outputs[0] ** 2), inputs[0])
    assert collectives() == [1 + 1 + 3 * CHANNELS, 2 * CHANNELS]


def test_gradients_of_gradients_are_refused(plain_graph):
    inputs, outputs = towers([np.ones((2, CHANNELS))] * 2)
    gradient = tf.gradients(tf.reduce_sum(outputs[0] ** 2), inputs[0])
    with pytest.raises(LookupError, match="Gradients of gradients don't go through"):
        tf.gradients(gradient, inputs[0])


@pytest.mark.parametrize("offsets", [(1e6, 1e6), (1e6, 1e6 + 8), (-3e5, -3e5)])
def test_a_large_mean_costs_no_digits(plain_graph, start, random, offsets):
    # Multiples of 1/8 are exact in float32 at this size, so that only the layer's own rounding is seen.
    parts = [offset + np.round(random.normal(size=(50, CHANNELS)) * 8) / 8 for offset in offsets]
    inputs, outputs = towers(parts, dtype=tf.float32)
    session = start()
    found = np.concatenate(session.run(outputs, fed(inputs, parts)))
    batch = np.concatenate(parts)
    expected = oracle.normalized(batch, *oracle.statistics(batch))
    # E[x²] − E[x]² in float32 would be off by 10⁵ and more; outputs are of the size of 1.
    np.testing.assert_allclose(found, expected, atol=5e-6)


def test_unbiased_variance_counts_all_workers_values(plain_graph, start, random):
    batch = random.normal(size=(7, CHANNELS))
    parts = cut(batch, (5, 2))
    inputs, outputs = towers(parts, unbiased_variance=True)
    session = start()
    session.run(outputs, fed(inputs, parts))
    expected = 1.0 * DECAY + batch.var(0, ddof=1) * (1 - DECAY)
    np.testing.assert_allclose(statistics_of_each(session, 2)[:, 1], [expected, expected], rtol=1e-12)


@pytest.mark.parametrize(("shape", "axis"), [((4, 5, CHANNELS), 2), ((4, CHANNELS, 2, 3), 1), ((4, 2, 3, CHANNELS), 3)])
def test_any_rank_and_axis(plain_graph, start, random, shape, axis):
    batch = random.normal(3.0, 2.0, shape)
    parts = cut(batch, (3, 1))
    inputs, outputs = towers(parts, dtype=tf.float32, axis=axis)
    found = np.concatenate(start().run(outputs, fed(inputs, parts)))
    expected = oracle.normalized(batch, *oracle.statistics(batch, axis), axis=axis)
    np.testing.assert_allclose(found, expected, atol=2e-6)  # float32


def test_half_precision_is_exchanged_in_float32(plain_graph, start, random):
    batch = random.normal(0.0, 1.0, (8, CHANNELS)).astype(np.float16)
    parts = cut(batch, (6, 2))
    inputs, outputs = towers(parts, dtype=tf.float16)
    session = start()
    found = session.run(outputs, fed(inputs, parts))
    assert found[0].dtype == np.float16
    np.testing.assert_allclose(statistics_of_each(session, 2)[1], oracle.moving([batch], DECAY), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_fed_flag_exchanges_in_training_and_only_then(graph, start, random, training):
    flag = tf.placeholder(tf.bool, [])
    batch = random.normal(2.0, 3.0, (6, CHANNELS))
    parts = cut(batch, (4, 2))
    inputs, outputs = towers(parts, flag)
    session = start()
    if not training:  # at inference a worker needs no other
        found = session.run(outputs[1], {inputs[1]: parts[1], flag: False})
        np.testing.assert_allclose(found, oracle.normalized(parts[1], 0.0, 1.0), rtol=1e-6)
        return
    found = np.concatenate(session.run(outputs, fed(inputs, parts) | {flag: True}))
    np.testing.assert_allclose(found, oracle.normalized(batch, *oracle.statistics(batch)), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics_of_each(session, 2)[0], oracle.moving([batch], DECAY), rtol=1e-12)


def test_layers_behind_one_fed_flag_do_not_meet_in_one_exchange(graph, start, random):
    flag = tf.placeholder(tf.bool, [])
    batches = random.normal(size=(2, 6, CHANNELS)) * np.reshape([1.0, 5.0], [2, 1, 1])
    pairs, outputs = [], []
    for index in range(2):
        sync = distributed.gatherer(Workers(2, index))
        with tf.device(f"/cpu:{index}"):
            for layer, batch in enumerate(batches):
                part = tf.constant(np.split(batch, 2)[index])
                outputs.append(batch_norm_wrapper(part, flag, sync=sync, name=f"worker_{index}_{layer}"))
                pairs.append(oracle.normalized(np.split(batch, 2)[index], *oracle.statistics(batch)))
    np.testing.assert_allclose(start().run(outputs, {flag: True}), pairs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(CHANNELS,), (2, 2, CHANNELS)])
def test_population_only_normalizes_each_worker_alone_and_counts_the_variance_between_them(
    plain_graph, start, random, shape
):
    parts = [random.normal(mean, 1.0, (size, *shape)) for mean, size in ((0.0, 5), (10.0, 3))]
    inputs, outputs = towers(parts, dtype=tf.float32, sync_population_only=True)
    session = start()
    for found, part in zip(session.run(outputs, fed(inputs, parts)), parts, strict=True):
        np.testing.assert_allclose(found, oracle.normalized(part, *oracle.statistics(part)), atol=5e-6)  # float32
    expected = oracle.moving([np.concatenate(parts)], DECAY)
    assert np.all(expected[1] > 8.0)  # the workers' own variances are about 1: most of it lies between them
    for own in statistics_of_each(session, 2):
        np.testing.assert_allclose(own, expected, rtol=1e-5)  # float32


def test_without_sync_the_variance_between_workers_is_missing(plain_graph, start, random):
    parts = [random.normal(mean, 1.0, (4, CHANNELS)) for mean in (0.0, 10.0)]
    for index, part in enumerate(parts):
        tf.add_to_collection(
            "outputs", batch_norm_wrapper(tf.constant(part), True, decay=DECAY, name=f"worker_{index}")
        )
    session = start()
    session.run(tf.get_collection("outputs"))
    for own, part in zip(statistics_of_each(session, 2), parts, strict=True):
        np.testing.assert_allclose(own, oracle.moving([part], DECAY), rtol=1e-12)


# --- weights ---


def weighted_statistics(batch, weights):
    """Mean and variance per channel of a batch whose examples count `weights` times each."""
    kept, weights = batch[weights > 0], weights[weights > 0]
    mean = np.average(kept, 0, weights)
    return mean, np.average((kept - mean) ** 2, 0, weights)


WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 0.0])
CUTS = pytest.mark.parametrize("sizes", [(3, 3), (5, 1), (6, 0), (1, 3, 2)])  # (5, 1): one worker has no weight at all


@CUTS
@pytest.mark.parametrize("unbiased", [False, True])
def test_weighted_examples_are_pooled_over_all_workers(plain_graph, start, random, sizes, unbiased):
    batch = random.normal(2.0, 3.0, (6, CHANNELS))
    batch[1] = np.nan  # padding may hold anything
    parts, weights = cut(batch, sizes), cut(WEIGHTS, sizes)
    inputs, outputs = towers(parts, weights=weights, unbiased_variance=unbiased)
    session = start()
    found = np.concatenate(session.run(outputs, fed(inputs, parts)))
    mean, variance = weighted_statistics(batch, WEIGHTS)
    expected = oracle.normalized(batch, mean, variance)
    expected[1] = 0.0  # beta
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    total = WEIGHTS.sum()
    moving = np.stack(
        [mean * (1 - DECAY), 1.0 * DECAY + variance * (total / (total - 1) if unbiased else 1) * (1 - DECAY)]
    )
    for own in statistics_of_each(session, len(sizes)):
        np.testing.assert_allclose(own, moving, rtol=1e-12)


@CUTS
def test_gradients_of_weighted_examples_are_those_of_the_whole_batch(plain_graph, start, random, sizes):
    batch, slopes = random.normal(1.0, 2.0, (6, CHANNELS)), random.normal(size=(6, CHANNELS))
    slopes[1] = 0.0
    parts = cut(batch, sizes)
    inputs, outputs = towers(parts, weights=cut(WEIGHTS, sizes))
    losses = [tf.reduce_sum(y**2 * slope) for y, slope in zip(outputs, cut(slopes, sizes), strict=True)]
    gradients = [tf.gradients(loss, x)[0] for loss, x in zip(losses, inputs, strict=True)]
    session = start()
    found = np.concatenate(session.run(gradients, fed(inputs, parts)))

    def whole_loss(values):
        return np.sum(oracle.normalized(values, *weighted_statistics(values, WEIGHTS)) ** 2 * slopes)

    # Central differences are good to about 1e-9 here.
    np.testing.assert_allclose(found, oracle.gradient(whole_loss, batch), rtol=1e-6, atol=1e-8)
    batch[1] = np.inf
    again = np.concatenate(session.run(gradients, fed(inputs, cut(batch, sizes))))
    np.testing.assert_array_equal(np.delete(again, 1, 0), np.delete(found, 1, 0))
    assert np.isfinite(again).all()


def test_weights_of_one_are_no_weights(plain_graph, start, random):
    parts = [1e6 + np.round(random.normal(size=(size, 4, CHANNELS)) * 8) / 8 for size in (5, 2)]
    weights = [np.ones(part.shape[:2], np.float32) for part in parts]
    session_outputs = []
    for options in ({}, {"weights": weights}):
        with tf.Graph().as_default():
            inputs, outputs = towers(parts, dtype=tf.float32, **options)
            session_outputs.append(np.concatenate(start().run(outputs, fed(inputs, parts))))
    np.testing.assert_allclose(*session_outputs, atol=5e-6)  # float32, at a mean of 10⁶


def test_population_only_pools_weighted_statistics_of_workers(plain_graph, start, random):
    batch = random.normal(2.0, 3.0, (6, CHANNELS))
    parts, weights = cut(batch, (3, 3)), cut(WEIGHTS, (3, 3))
    inputs, outputs = towers(parts, weights=weights, sync_population_only=True)
    session = start()
    for found, part, of_part in zip(session.run(outputs, fed(inputs, parts)), parts, weights, strict=True):
        np.testing.assert_allclose(found, oracle.normalized(part, *weighted_statistics(part, of_part)), rtol=1e-6)
    mean, variance = weighted_statistics(batch, WEIGHTS)
    for own in statistics_of_each(session, 2):
        np.testing.assert_allclose(own, [mean * (1 - DECAY), 1.0 * DECAY + variance * (1 - DECAY)], rtol=1e-12)


@pytest.mark.parametrize(
    ("first", "unbiased"), [([0.0, 0.0], False), ([0.5, 0.5], True), ([3.0, -1.0], False)], ids=["0", "1", "negative"]
)
def test_weights_that_no_statistics_can_be_computed_of_are_refused_at_every_worker(plain_graph, start, first, unbiased):
    parts = [np.ones((2, CHANNELS)), np.ones((2, CHANNELS))]
    inputs, outputs = towers(parts, weights=[np.array(first), np.zeros(2)], unbiased_variance=unbiased)
    session = start()
    for y in outputs:
        with pytest.raises(tf.errors.InvalidArgumentError, match="weights that are not negative, and that sum"):
            session.run([y, *outputs], fed(inputs, parts))
    np.testing.assert_array_equal(statistics_of_each(session, 2)[0], [np.zeros(CHANNELS), np.ones(CHANNELS)])


def test_weights_of_another_batch_are_refused(plain_graph, start):
    parts = [np.ones((1, CHANNELS)), np.ones((2, CHANNELS))]
    fed_weights = tf.placeholder(tf.float32, [None])
    inputs, outputs = towers(parts, weights=[fed_weights, np.ones(2)])
    with pytest.raises(tf.errors.InvalidArgumentError, match="weights must have the shape"):
        start().run(outputs, fed(inputs, parts) | {fed_weights: np.ones(4)})


def test_one_value_at_all_workers_together_is_refused_at_each_and_nothing_moves(plain_graph, start):
    parts = [np.ones((1, CHANNELS)), np.ones((0, CHANNELS))]
    inputs, outputs = towers(parts)
    session = start()
    with pytest.raises(tf.errors.InvalidArgumentError, match="two values per channel in the batches of all workers"):
        session.run(outputs, fed(inputs, parts))
    np.testing.assert_array_equal(statistics_of_each(session, 2)[0], [np.zeros(CHANNELS), np.ones(CHANNELS)])


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1, 1)])
def test_one_example_a_worker_is_enough_even_where_the_graph_knows_it(plain_graph, start, shape):
    parts = [np.full(shape, 1.0), np.full(shape, 3.0)]
    inputs, outputs = towers(parts, static=True, dtype=tf.float32)
    session = start()
    session.run(outputs, fed(inputs, parts))
    np.testing.assert_allclose(statistics_of_each(session, 2)[0], [[2.0 * (1 - DECAY)], [1.0]])  # exact in float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync": 2}, "sync must be a function"),
        ({"sync_population_only": True}, "there is no sync"),
        ({"sync": tf.identity, "renorm": True}, "renorm and sync exclude each other"),
        ({"sync": tf.identity, "virtual_batch_size": 2}, "virtual_batch_size and sync exclude each other"),
        (
            {"sync": tf.identity, "weights": np.ones(4), "renorm": True},
            "renorm and weights and sync exclude each other",
        ),
    ],
)
def test_what_does_not_go_with_sync_is_refused(plain_graph, options, message):
    with pytest.raises(ValueError, match=message):
        batch_norm_wrapper(tf.zeros([4, 2]), True, **options)


def kernels():
    return [op.get_attr("is_training") for op in tf.get_default_graph().get_operations() if op.type in FUSED]


def test_fused_kernels_normalize_images_by_given_statistics_unless_fused_is_false(plain_graph):
    inputs, sync = tf.zeros([4, 2, 2, 3]), distributed.gatherer(Workers(2, 0))
    batch_norm_wrapper(inputs, True, fused=False, sync=sync, name="written_out")
    batch_norm_wrapper(tf.cast(inputs, tf.float64), True, sync=sync, name="wide")
    batch_norm_wrapper(inputs, True, sync=sync, weights=tf.ones([4]), name="weighted")
    assert kernels() == []
    batch_norm_wrapper(inputs, True, fused=True, sync=sync, name="fused")
    assert kernels() == [False]
    batch_norm_wrapper(inputs, True, sync=sync, sync_population_only=True, name="own")
    assert kernels() == [False, True]
    with pytest.raises(ValueError, match="fused=True needs"):
        batch_norm_wrapper(inputs, True, fused=True, sync=sync, weights=tf.ones([4]))


@pytest.mark.parametrize("center_and_scale", [True, False])
@pytest.mark.parametrize(
    ("sizes", "offsets"),
    [((4, 4), 0.0), ((7, 1), 3.0), ((5, 0), 20.0), ((2, 3, 3), 0.0), ((4, 4), 1e5), ((4, 4), (0.0, 1e3))],
)
def test_kernels_give_images_the_outputs_and_gradients_of_the_whole_batch(
    plain_graph, start, random, sizes, offsets, center_and_scale
):
    # Multiples of 1/8 are exact in float32 at 10⁵, so that only the layer's own rounding is seen.
    batch = np.round(random.normal(size=(sum(sizes), 5, 4, CHANNELS)) * 8) / 8
    slopes = random.normal(size=batch.shape)
    batch[: sizes[0]] += np.max(offsets)
    batch[sizes[0] :] += np.min(offsets)
    options = {"center": center_and_scale, "scale": center_and_scale}
    options["gamma_initializer"] = tf.constant_initializer([0.5, 2.0, -1.0]) if center_and_scale else None
    results = {}
    for dtype, of_each in ((tf.float32, sizes), (tf.float64, [sum(sizes)])):  # one process, written out
        parts, weights = cut(batch, of_each), cut(slopes, of_each)
        with tf.variable_scope(dtype.name):
            inputs, outputs = towers(parts, dtype=dtype, **options)
        losses = [tf.reduce_sum(y * tf.constant(weight, dtype)) for y, weight in zip(outputs, weights, strict=True)]
        own = [tf.trainable_variables(f"{dtype.name}/worker_{index}/") for index in range(len(of_each))]
        gradients = [
            tf.gradients(loss, [x, *variables]) for loss, x, variables in zip(losses, inputs, own, strict=True)
        ]
        moving = [variable for variable in moving_statistics() if variable.name.startswith(dtype.name)]
        results[dtype] = (outputs, gradients, moving), fed(inputs, parts)
    session = start()
    outputs, gradients, _ = session.run(*results[tf.float64])
    wide = outputs[0], gradients[0]
    session.run(results[tf.float32][0][:2], results[tf.float32][1])
    outputs, gradients, moving = session.run(*results[tf.float32])
    scale = max(1.0, np.ptp(offsets) / 100)  # the deviation is large where offsets differ, and the gradient small
    np.testing.assert_allclose(np.concatenate(outputs), wide[0], atol=5e-6)
    np.testing.assert_allclose(np.concatenate([each[0] for each in gradients]), wide[1][0], atol=5e-6)
    for place in range(1, len(wide[1])):  # gamma's and beta's: each worker has its own share
        np.testing.assert_allclose(sum(each[place] for each in gradients), wide[1][place], atol=2e-5 * scale)
    for other in range(2, len(moving)):
        np.testing.assert_array_equal(moving[other], moving[other % 2])


def test_one_worker_exchanges_nothing(plain_graph):
    batch_norm_wrapper(tf.zeros([4, 2]), True, sync=distributed.gatherer(Workers(1, 0)))
    assert not any("Collective" in op.type for op in tf.get_default_graph().get_operations())


def test_replicas_of_a_strategy_share_their_statistics(plain_graph, start, random):
    batch = random.normal(2.0, 3.0, (6, CHANNELS))
    inputs = []

    def replica():
        x = tf.placeholder(tf.float64, [None, CHANNELS])
        inputs.append(x)
        y = batch_norm_wrapper(x, True, decay=DECAY, sync=distributed.across_replicas, name="bn")
        gradient = tf.gradients(tf.reduce_sum(y**3), x)[0]
        return y, gradient

    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        outputs, gradients = strategy.run(replica)
    session = start()
    local = [strategy.experimental_local_results(each) for each in (outputs, gradients)]
    found = [np.concatenate(values) for values in session.run(local, fed(inputs, cut(batch, (4, 2))))]
    np.testing.assert_allclose(found[0], oracle.normalized(batch, *oracle.statistics(batch)), rtol=1e-6, atol=1e-9)
    expected = oracle.gradient(lambda x: np.sum(oracle.normalized(x, *oracle.statistics(x)) ** 3), batch)
    np.testing.assert_allclose(found[1], expected, rtol=1e-6, atol=1e-7)  # central differences
    moving = session.run([variable.read_value() for variable in tf.global_variables() if "moving" in variable.name])
    np.testing.assert_allclose(moving, oracle.moving([batch], DECAY), rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_float32_statistics_of_millions_of_values_are_those_of_float64(plain_graph, weighted, start, random):
    batch = np.maximum(random.standard_normal((32, 224, 224, 1)), 0.0).astype(np.float32)
    inputs = tf.placeholder(tf.float32, [None, 224, 224, 1])
    options = {"weights": tf.ones([32])} if weighted else {}
    outputs = batch_norm_wrapper(inputs, True, decay=0.0, sync=lambda own: own[tf.newaxis], **options)
    session = start()
    session.run(outputs.op, {inputs: batch})
    mean, variance = session.run(moving_statistics())
    wide = batch.astype(np.float64)
    np.testing.assert_allclose(mean, [wide.mean()], rtol=1e-5)
    np.testing.assert_allclose(variance, [wide.var()], rtol=1e-5)
