"""`ConvolutionalBatchNormalizer`: the documents' recipe, in any order, averages the present batch."""

import numpy as np
import pytest

from bn_graph import checkpoints
from bn_graph.layers.averages import MOVING_STATISTICS, moving_statistics
from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer
from bn_graph.tf1 import tf
from tests import oracle
from tests.conftest import USUAL_KINDS, VARIABLE_KINDS

DEPTH = 3
DECAY = 0.75
SHAPE = (4, 2, 3, DEPTH)
NAMES = ["mean", "variance", "beta", "gamma"]
SHADOWS = ["bn/mean/ExponentialMovingAverage", "bn/variance/ExponentialMovingAverage"]


def normalizer(scale_after_norm=True, name="bn", **ewma_options):
    ewma = tf.train.ExponentialMovingAverage(**{"decay": DECAY, **ewma_options})
    return ConvolutionalBatchNormalizer(DEPTH, 1e-3, ewma, scale_after_norm, name=name)


def images(shape=(None, 2, 3, DEPTH)):
    return tf.placeholder(tf.float32, shape)


def averages(bn):
    return [bn.ewma_trainer.average(variable) for variable in (bn.mean, bn.variance)]


def batches_of(random, count, shape=SHAPE):
    return [random.normal(3.0, 2.0, shape).astype(np.float32) for _ in range(count)]


def all_values(session):
    return session.run(tf.global_variables())


def assert_bit_identical(before, after):
    assert len(before) == len(after) > 0
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def assert_close(session, variables, expected, rtol=1e-6):
    for value, wanted in zip(session.run(list(variables)), expected, strict=True):
        np.testing.assert_allclose(value, np.broadcast_to(wanted, value.shape), rtol=rtol, atol=1e-7)


def flag_for(form, value):
    """What is passed as `train`, and what is fed."""
    if form == "python":
        return value, {}
    flag = tf.placeholder(tf.bool, [])
    return flag, {flag: value}


flags = pytest.mark.parametrize("form", ["python", "placeholder"])
orders = pytest.mark.parametrize("assigner_first", [True, False])


# --- variables --------------------------------------------------------------------------------------------------------


def test_the_constructor_makes_four_variables_of_which_two_are_trainable(plain_graph, start):
    bn = normalizer()
    assert [variable.op.name for variable in tf.global_variables()] == [f"bn/{name}" for name in NAMES]
    assert [variable.op.name for variable in tf.trainable_variables()] == ["bn/beta", "bn/gamma"]
    assert_close(start(), [bn.mean, bn.variance, bn.beta, bn.gamma], [0.0, 1.0, 0.0, 1.0])


@VARIABLE_KINDS
def test_the_assigner_makes_the_averages_which_start_at_the_variables_start(graph, start):
    bn = normalizer()
    assert averages(bn) == [None, None]
    bn.get_assigner()
    shadows = averages(bn)
    assert [shadow.op.name for shadow in shadows] == SHADOWS
    assert [variable.op.name for variable in tf.global_variables()][-2:] == SHADOWS
    assert tf.get_collection(MOVING_STATISTICS) == ["bn/mean", "bn/variance", *SHADOWS]
    assert [variable.op.name for variable in moving_statistics()] == ["bn/mean", "bn/variance", *SHADOWS]
    assert len(tf.trainable_variables()) == 2
    assert_close(start(), shadows, [0.0, 1.0])


def test_normalizers_without_a_name_get_distinct_ones_and_share_a_trainer(plain_graph):
    ewma = tf.train.ExponentialMovingAverage(0.9)
    for _ in range(2):
        ConvolutionalBatchNormalizer(DEPTH, 1e-3, ewma, True).get_assigner()
    scopes = [variable.op.name.split("/")[0] for variable in tf.global_variables()]
    assert sorted(set(scopes)) == ["ConvolutionalBatchNormalizer", "ConvolutionalBatchNormalizer_1"]
    assert len(tf.global_variables()) == 12


def test_names_do_not_depend_on_where_the_assigner_is_asked_for(plain_graph):
    with tf.variable_scope("net"):
        bn = normalizer()
    with tf.variable_scope("elsewhere", reuse=tf.AUTO_REUSE), tf.name_scope("here"):
        bn.get_assigner()
    assert [shadow.op.name for shadow in averages(bn)] == [f"net/{name}" for name in SHADOWS]


def test_the_assigner_is_one_op_however_often_it_is_asked_for(plain_graph, start, random):
    bn, x = normalizer(), images()
    first = bn.get_assigner()
    bn.normalize(x, train=True)
    assert bn.get_assigner() is first
    session, (batch,) = start(), batches_of(random, 1)
    session.run([first, bn.get_assigner()], {x: batch})
    assert_close(session, averages(bn), oracle.moving([batch], DECAY))


# --- modes ------------------------------------------------------------------------------------------------------------


@flags
@pytest.mark.parametrize("scale_after_norm", [True, False])
def test_training_normalizes_by_the_batch_and_stores_its_moments(graph, form, scale_after_norm, start, random):
    bn, x = normalizer(scale_after_norm), images()
    bn.get_assigner()
    flag, feed = flag_for(form, True)
    outputs = bn.normalize(x, train=flag)
    assert outputs.shape.as_list() == x.shape.as_list() and outputs.dtype == tf.float32
    assert outputs.op.name == "bn/outputs"
    session, (batch,) = start(), batches_of(random, 1)
    gamma, beta = np.array([2.0, -1.0, 0.5]), np.array([0.25, 3.0, -4.0])
    bn.gamma.load(gamma, session)
    bn.beta.load(beta, session)

    got = session.run(outputs, {x: batch, **feed})
    moments = oracle.statistics(batch)
    expected = oracle.normalized(batch, *moments, gamma if scale_after_norm else 1.0, beta)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # float32
    assert_close(session, [bn.mean, bn.variance], moments)
    assert_close(session, averages(bn), [0.0, 1.0])


@flags
@orders
@USUAL_KINDS
def test_a_training_run_with_the_train_op_moves_the_averages_a_step(graph, form, assigner_first, start, random):
    bn, x = normalizer(), images()
    if form == "placeholder":  # which needs the averages, as it may be fed False
        assigner_first = True
    assigner = bn.get_assigner() if assigner_first else None
    flag, feed = flag_for(form, True)
    outputs = bn.normalize(x, train=flag)
    assigner = bn.get_assigner()
    optimizer = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(tf.square(outputs - 1.0)))
    train_op = tf.group(optimizer, assigner)
    session, batches = start(), batches_of(random, 4)
    for step, batch in enumerate(batches, start=1):
        session.run(train_op, {x: batch, **feed})
        assert_close(session, [bn.mean, bn.variance], oracle.statistics(batch))
        assert_close(session, averages(bn), oracle.moving(batches[:step], DECAY))


@flags
def test_inference_normalizes_by_the_averages_and_leaves_every_variable_bit_identical(graph, form, start, random):
    bn, x = normalizer(), images()
    assigner = bn.get_assigner()
    train_outputs = bn.normalize(x, train=True)
    flag, feed = flag_for(form, False)
    outputs = bn.normalize(x, train=flag)
    session, batches = start(), batches_of(random, 2)
    feed_false = {x: batches[0], **feed}
    for batch in batches:
        session.run([train_outputs, assigner], {x: batch, **feed})
    before = all_values(session)

    expected = oracle.normalized(batches[0], *oracle.moving(batches, DECAY))
    np.testing.assert_allclose(session.run(outputs, feed_false), expected, rtol=1e-5, atol=1e-5)
    one = session.run(outputs, {**feed_false, x: batches[0][:1]})
    np.testing.assert_allclose(one, expected[:1], rtol=1e-5, atol=1e-5)
    assert session.run(outputs, {**feed_false, x: batches[0][:0]}).shape == (0, 2, 3, DEPTH)
    assert_bit_identical(before, all_values(session))


def test_the_assigner_changes_nothing_in_a_run_that_is_fed_false(graph, start, random):
    bn, x, flag = normalizer(), images(), tf.placeholder(tf.bool, [])
    assigner = bn.get_assigner()
    outputs = bn.normalize(x, train=flag)
    with tf.control_dependencies([assigner]):
        after = tf.identity(outputs)  # the op is live in either case, so what depends on it can be fetched
    session, (first, second) = start(), batches_of(random, 2)
    session.run(after, {x: first, flag: True})
    before = all_values(session)
    got = session.run(after, {x: second, flag: False})
    expected = oracle.normalized(second, *oracle.moving([first], DECAY))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert_bit_identical(before, all_values(session))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_keeps_its_dtype_and_float32_statistics(plain_graph, dtype, start, random):
    bn, x = normalizer(), tf.placeholder(dtype, [None, 2, 3, DEPTH])
    assigner, outputs = bn.get_assigner(), bn.normalize(x)
    assert outputs.dtype == dtype and bn.mean.dtype.base_dtype == tf.float32
    session, batch = start(), random.normal(3.0, 2.0, SHAPE).astype(dtype.as_numpy_dtype)
    got, _ = session.run([outputs, assigner], {x: batch})
    expected = oracle.normalized(batch, *oracle.statistics(batch))
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=2e-2, atol=2e-2)
    assert_close(session, averages(bn), oracle.moving([batch], DECAY), rtol=1e-5)


# --- the order of assign and average ----------------------------------------------------------------------------------


def test_in_every_fresh_session_the_average_is_of_the_present_batch(graph, random):
    bn, x = normalizer(), images()
    # The document's suggestion as it stands: asked for first, and grouped before the block, which then orders nothing.
    update_assignments = tf.group(bn.get_assigner())
    loss = tf.reduce_sum(tf.square(bn.normalize(x, train=True) - 1.0))
    optimizer = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
    with tf.control_dependencies([optimizer]):
        train_op = tf.group(update_assignments)
    initializer, shadows = tf.global_variables_initializer(), averages(bn)
    (batch,) = batches_of(random, 1, (64, 2, 3, DEPTH))
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=2)
    outcomes = set()
    for _ in range(25):  # with each kind of variable and cond: 100
        with tf.Session(config=config) as session:
            session.run(initializer)
            session.run([train_op, optimizer], {x: batch})
            outcomes.add(tuple(np.concatenate(session.run(shadows))))
    assert len(outcomes) == 1
    np.testing.assert_allclose(outcomes.pop(), np.concatenate(oracle.moving([batch], DECAY)), rtol=1e-6)


def test_the_assigner_alone_runs_the_forward_pass_of_its_batch(plain_graph, start, random):
    bn, x = normalizer(), images()
    assigner = bn.get_assigner()
    bn.normalize(x)
    session, (batch,) = start(), batches_of(random, 1)
    session.run(assigner, {x: batch})
    assert_close(session, [bn.mean, bn.variance], oracle.statistics(batch))
    assert_close(session, averages(bn), oracle.moving([batch], DECAY))


@flags
@orders
@USUAL_KINDS
def test_towers_on_parts_of_a_batch_average_what_one_tower_on_all_of_it_does(
    graph, form, assigner_first, start, random
):
    bn, parts = normalizer(), [images(), images(), images()]
    if assigner_first or form == "placeholder":
        bn.get_assigner()
    flag, feed = flag_for(form, True)
    outputs = [bn.normalize(part, train=flag) for part in parts]
    assigner = bn.get_assigner()
    session, (batch,) = start(), batches_of(random, 1, (9, 2, 3, DEPTH))
    cut = dict(zip(parts, np.split(batch, [2, 5]), strict=True))  # of 2, 3 and 4 images
    *got, _ = session.run([*outputs, assigner], {**cut, **feed})
    for tower, part in zip(got, cut.values(), strict=True):
        np.testing.assert_allclose(tower, oracle.normalized(part, *oracle.statistics(part)), rtol=1e-4, atol=1e-5)
    assert_close(session, [bn.mean, bn.variance], oracle.statistics(batch))
    assert_close(session, averages(bn), oracle.moving([batch], DECAY))


def test_a_call_that_is_fed_false_does_not_count_among_the_others(graph, start, random):
    bn, x, y, flag = normalizer(), images(), images(), tf.placeholder(tf.bool, [])
    assigner = bn.get_assigner()
    bn.normalize(x, train=True)
    bn.normalize(y, train=flag)
    session, (first, second) = start(), batches_of(random, 2)
    session.run(assigner, {x: first, y: second, flag: False})
    assert_close(session, averages(bn), oracle.moving([first], DECAY))
    session.run(assigner, {x: first, y: second, flag: True})
    assert_close(session, averages(bn), oracle.moving([first, np.concatenate([first, second])], DECAY))


def test_the_trainers_num_updates_set_the_decay(plain_graph, start, random):
    step = tf.placeholder(tf.float32, [])
    bn, x = normalizer(num_updates=step), images()
    assigner = bn.get_assigner()
    bn.normalize(x)
    session, batches = start(), batches_of(random, 2)
    session.run(assigner, {x: batches[0], step: 0.0})  # min(0.75, 1/10)
    assert_close(session, averages(bn), oracle.moving(batches[:1], 0.1))
    session.run(assigner, {x: batches[0], step: 1000.0})
    mean, variance = (0.75 * old for old in oracle.moving(batches[:1], 0.1))
    batch_mean, batch_variance = oracle.statistics(batches[0])
    assert_close(session, averages(bn), [mean + 0.25 * batch_mean, variance + 0.25 * batch_variance])


def test_averages_that_the_caller_made_himself_serve_inference(plain_graph, start):
    bn, x = normalizer(), images()
    bn.ewma_trainer.apply([bn.mean, bn.variance])
    outputs = bn.normalize(x, train=False)
    got = start().run(outputs, {x: np.ones(SHAPE)})
    np.testing.assert_allclose(got, oracle.normalized(np.ones(SHAPE), 0.0, 1.0), rtol=1e-6)


# --- checkpoints and meta graphs --------------------------------------------------------------------------------------


def test_a_fresh_graph_that_only_predicts_restores_the_averages(graph, tmp_path, start, random):
    bn, x = normalizer(), images()
    assigner = bn.get_assigner()
    bn.normalize(x)
    session, batches = start(), batches_of(random, 3)
    for batch in batches:
        session.run(assigner, {x: batch})
    path = checkpoints.save(checkpoints.make_saver(), session, tmp_path / "model")

    with tf.Graph().as_default(), tf.Session() as predicting:
        bn, x = normalizer(), images()
        bn.get_assigner()
        outputs = bn.normalize(x, train=False)
        checkpoints.restore(predicting, path)
        got = predicting.run(outputs, {x: batches[0]})
    expected = oracle.normalized(batches[0], *oracle.moving(batches, DECAY))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_meta_graph_keeps_what_was_wired_into_the_assigner(plain_graph, tmp_path, random):
    bn, x = normalizer(), images()
    assigner = bn.get_assigner()
    bn.normalize(x)
    shadows = [shadow.op.name for shadow in averages(bn)]
    initializer = tf.global_variables_initializer()
    meta = tf.train.export_meta_graph(str(tmp_path / "graph.meta"))
    (batch,) = batches_of(random, 1)
    with tf.Graph().as_default() as imported, tf.Session() as session:
        tf.train.import_meta_graph(meta)
        session.run(imported.get_operation_by_name(initializer.name))
        session.run(imported.get_operation_by_name(assigner.name), {imported.get_tensor_by_name(x.name): batch})
        variables = [variable for variable in moving_statistics() if variable.op.name in shadows]
        assert_close(session, variables, oracle.moving([batch], DECAY))


# --- refusals ---------------------------------------------------------------------------------------------------------


@flags
def test_inference_before_the_assigner_exists_is_an_error_that_says_what_to_call(plain_graph, form):
    bn, x = normalizer(), images()
    bn.normalize(x, train=True)
    with pytest.raises(ValueError, match=r"get_assigner\(\)"):
        bn.normalize(x, train=flag_for(form, False)[0])
    bn.get_assigner()
    bn.normalize(x, train=False)


@pytest.mark.parametrize("with_inference", [True, False])
def test_running_the_assigner_of_a_graph_without_a_training_call_is_an_error(graph, with_inference, start):
    bn, x = normalizer(), images()
    assigner = bn.get_assigner()
    if with_inference:
        bn.normalize(x, train=False)
    session = start()
    before = all_values(session)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no call of normalize"):
        session.run(assigner)
    assert_bit_identical(before, all_values(session))


@pytest.mark.parametrize(
    ("shape", "received"),
    [((None, 2, DEPTH), r"2, 3\)"), ((None, 2, 2, 4), r"2, 2, 4\)"), ((None, 2, 2, None), "None"), (None, "unknown")],
)
def test_inputs_of_another_rank_or_depth_are_refused_by_expected_and_received(plain_graph, shape, received):
    bn = normalizer()
    with pytest.raises(ValueError, match=rf"depth = 3.*{received}"):
        bn.normalize(images(shape))


@pytest.mark.parametrize("dtype", [tf.float64, tf.int32])
def test_inputs_of_another_dtype_are_refused(plain_graph, dtype):
    with pytest.raises(TypeError, match=dtype.name):
        normalizer().normalize(tf.placeholder(dtype, [None, 2, 2, DEPTH]))


@pytest.mark.parametrize("train", ["yes", None, 1, np.array([True])])
def test_a_flag_that_is_none_is_refused(plain_graph, train):
    with pytest.raises(ValueError):
        normalizer().normalize(images(), train=train)


@pytest.mark.parametrize(("depth", "epsilon"), [(0, 1e-3), (2.5, 1e-3), (True, 1e-3), (3, 0.0), (3, -1.0)])
def test_a_depth_or_epsilon_that_can_not_be_is_refused(plain_graph, depth, epsilon):
    with pytest.raises(ValueError):
        ConvolutionalBatchNormalizer(depth, epsilon, tf.train.ExponentialMovingAverage(0.9), True)


@flags
def test_one_value_per_channel_is_refused_in_training_and_welcome_at_inference(graph, form, start):
    bn, x = normalizer(), images((None, None, None, DEPTH))
    assigner = bn.get_assigner()
    flag, feed = flag_for(form, True)
    outputs = bn.normalize(x, train=flag)
    session, one = start(), np.ones((1, 1, 1, DEPTH))
    before = all_values(session)
    for fetched in (outputs, assigner):
        with pytest.raises(tf.errors.InvalidArgumentError, match="at least two values per channel"):
            session.run(fetched, {x: one, **feed})
    if form == "placeholder":
        session.run(outputs, {x: one, flag: False})
    assert_bit_identical(before, all_values(session))
    with pytest.raises(ValueError, match="at least two values per channel"):
        bn.normalize(images((1, 1, 1, DEPTH)), train=True)


def test_a_training_call_inside_a_cond_is_refused_and_told_to_pass_the_flag(graph):
    bn, x, flag = normalizer(), images(), tf.placeholder(tf.bool, [])
    bn.get_assigner()
    with pytest.raises(ValueError, match="train="):
        tf.cond(flag, lambda: bn.normalize(x, True), lambda: bn.normalize(x, False))
