"""`slim.batch_norm`: what code written for ``tf.contrib.layers.batch_norm`` expects of each argument."""

import inspect

import numpy as np
import pytest

from bn_graph import checkpoints
from bn_graph.layers import slim
from bn_graph.layers.averages import moving_statistics
from bn_graph.layers.batch_norm import batch_norm_wrapper
from bn_graph.tf1 import legacy_layers, tf
from tests import oracle
from tests.conftest import USUAL_KINDS, VARIABLE_KINDS

CHANNELS = 3
DECAY = 0.75
MEAN, VARIANCE = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 9.0])
GAMMA, BETA = np.array([2.0, -1.0, 0.5]), np.array([0.25, 3.0, -4.0])
SHAPES = {2: (6, CHANNELS), 3: (4, 5, CHANNELS), 4: (4, 2, 3, CHANNELS), 5: (3, 2, 1, 2, CHANNELS)}
ranks = pytest.mark.parametrize("rank", SHAPES)


def constant(value):
    return tf.constant_initializer(np.asarray(value))


FOUR = {
    "beta": constant(BETA),
    "gamma": constant(GAMMA),
    "moving_mean": constant(MEAN),
    "moving_variance": constant(VARIANCE),
}


def value_of(session, name):
    (variable,) = (variable for variable in tf.global_variables() if variable.op.name == name)
    return session.run(variable)


def names_in(key):
    return [entry.op.name for entry in tf.get_collection(key)]


def assert_statistics(session, mean, variance, scope="BatchNorm", rtol=1e-6):
    np.testing.assert_allclose(value_of(session, f"{scope}/moving_mean"), mean, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(value_of(session, f"{scope}/moving_variance"), variance, rtol=rtol, atol=1e-6)


def assert_unmoved(session, before):
    assert before
    for old, new in zip(before, session.run(tf.global_variables()), strict=True):
        assert np.array_equal(old, new)


def values_per_channel(batch, axis=-1):
    return batch.size // batch.shape[axis]


def moved(batches, unbiased, axis=-1, start=(0.0, 1.0), decay=DECAY):
    """The moving statistics after these batches, by float64 NumPy."""
    mean, variance = start
    for batch in batches:
        batch_mean, batch_variance = oracle.statistics(batch, axis)
        count = values_per_channel(batch, axis)
        mean = mean * decay + batch_mean * (1 - decay)
        variance = variance * decay + batch_variance * (count / (count - 1) if unbiased else 1.0) * (1 - decay)
    return mean, variance


# --- signature and names ----------------------------------------------------------------------------------------------


def test_arguments_their_order_and_their_defaults_are_contribs():
    parameters = inspect.signature(slim.batch_norm).parameters
    # The document's listing of tf.contrib.layers.batch_norm.
    assert {name: parameter.default for name, parameter in parameters.items() if name != "inputs"} == {
        "decay": 0.999,
        "center": True,
        "scale": False,
        "epsilon": 0.001,
        "activation_fn": None,
        "param_initializers": None,
        "param_regularizers": None,
        "updates_collections": tf.GraphKeys.UPDATE_OPS,
        "is_training": True,
        "reuse": None,
        "variables_collections": None,
        "outputs_collections": None,
        "trainable": True,
        "batch_weights": None,
        "fused": None,
        "data_format": "NHWC",
        "zero_debias_moving_mean": False,
        "scope": None,
        "renorm": False,
        "renorm_clipping": None,
        "renorm_decay": 0.99,
        "adjustment": None,
    }
    assert list(parameters)[:6] == ["inputs", "decay", "center", "scale", "epsilon", "activation_fn"]
    assert list(parameters)[-5:] == ["scope", "renorm", "renorm_clipping", "renorm_decay", "adjustment"]


def test_by_default_there_are_beta_and_two_statistics_in_contribs_collections(plain_graph):
    slim.batch_norm(tf.placeholder(tf.float32, [None, CHANNELS]))
    all_three = ["BatchNorm/beta", "BatchNorm/moving_mean", "BatchNorm/moving_variance"]
    assert names_in(tf.GraphKeys.GLOBAL_VARIABLES) == all_three
    assert names_in(tf.GraphKeys.MODEL_VARIABLES) == all_three
    assert names_in(tf.GraphKeys.TRAINABLE_VARIABLES) == ["BatchNorm/beta"]
    assert [variable.op.name for variable in moving_statistics()] == all_three[1:]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_center_and_scale_say_which_parameters_there_are(plain_graph, center, scale):
    slim.batch_norm(tf.placeholder(tf.float32, [None, CHANNELS]), center=center, scale=scale)
    expected = ["BatchNorm/beta"] * center + ["BatchNorm/gamma"] * scale
    assert names_in(tf.GraphKeys.TRAINABLE_VARIABLES) == expected


def test_trainable_false_leaves_the_parameters_out_of_the_trainables_and_the_updates_alone(plain_graph, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    slim.batch_norm(inputs, DECAY, scale=True, trainable=False)
    assert tf.trainable_variables() == []
    assert len(names_in(tf.GraphKeys.MODEL_VARIABLES)) == 4
    session, batch = start(), random.normal(size=SHAPES[2])
    session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), {inputs: batch})
    assert_statistics(session, *moved([batch], unbiased=True))


def test_layers_without_a_scope_get_distinct_ones(plain_graph):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    slim.batch_norm(slim.batch_norm(inputs))
    assert [name for name in names_in(tf.GraphKeys.GLOBAL_VARIABLES) if name.endswith("beta")] == [
        "BatchNorm/beta",
        "BatchNorm_1/beta",
    ]


@pytest.mark.parametrize("as_object", [False, True])
def test_reuse_of_a_scope_shares_one_set_of_variables_with_two_pairs_of_updates(plain_graph, as_object):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    with tf.variable_scope("shared") as scope:
        slim.batch_norm(inputs, scope=scope if as_object else "bn")
    if not as_object:
        slim.batch_norm(inputs, scope="shared/bn", reuse=True)
    else:
        slim.batch_norm(inputs, scope=scope, reuse=True)
    for key in (tf.GraphKeys.GLOBAL_VARIABLES, tf.GraphKeys.MODEL_VARIABLES):
        assert len(names_in(key)) == 3
    assert len(tf.get_collection(tf.GraphKeys.UPDATE_OPS)) == 4


def test_reuse_without_a_scope_or_without_the_variables_is_an_error(plain_graph):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    with pytest.raises(ValueError, match="reuse"):
        slim.batch_norm(inputs, reuse=True)
    with pytest.raises(ValueError, match="bn/"):
        slim.batch_norm(inputs, reuse=True, scope="bn")


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_variables_are_float32_for_half_precision_and_the_outputs_as_the_inputs(plain_graph, dtype):
    outputs = slim.batch_norm(tf.placeholder(dtype, [None, 2, 2, CHANNELS]), scale=True)
    assert outputs.dtype == dtype
    kept = tf.float64 if dtype == tf.float64 else tf.float32
    assert {variable.dtype.base_dtype for variable in tf.global_variables()} == {kept}


def test_a_scopes_partitioner_does_not_cut_the_statistics(plain_graph, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    with tf.variable_scope("net", partitioner=tf.fixed_size_partitioner(3)):
        outputs = slim.batch_norm(inputs, DECAY, scale=True, updates_collections=None, zero_debias_moving_mean=True)
    assert "net/BatchNorm/beta/part_2" in names_in(tf.GraphKeys.MODEL_VARIABLES)
    session, batch = start(), random.normal(size=SHAPES[2])
    np.testing.assert_allclose(
        session.run(outputs, {inputs: batch}), oracle.normalized(batch, *oracle.statistics(batch)), rtol=1e-5, atol=1e-5
    )
    mean, variance = batch.mean(0), moved([batch], unbiased=True)[1]
    assert_statistics(session, mean, variance, scope="net/BatchNorm")


# --- collections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collections", ["mine", ["mine"], ["mine", "mine", tf.GraphKeys.MODEL_VARIABLES]])
def test_variables_collections_take_in_all_variables_once(plain_graph, collections):
    slim.batch_norm(tf.placeholder(tf.float32, [None, CHANNELS]), scale=True, variables_collections=collections)
    assert sorted(names_in("mine")) == [f"BatchNorm/{name}" for name in sorted(FOUR)]
    assert sorted(names_in(tf.GraphKeys.MODEL_VARIABLES)) == sorted(names_in("mine"))


def test_variables_collections_by_name_take_in_each_where_it_belongs(plain_graph):
    keys = {"beta": "b", "gamma": ["g", "both"], "moving_mean": ["m", "both"], "moving_variance": None}
    slim.batch_norm(tf.placeholder(tf.float32, [None, CHANNELS]), scale=True, variables_collections=keys)
    assert names_in("b") == ["BatchNorm/beta"]
    assert names_in("g") == ["BatchNorm/gamma"]
    assert names_in("m") == ["BatchNorm/moving_mean"]
    assert names_in("both") == ["BatchNorm/gamma", "BatchNorm/moving_mean"]
    assert len(names_in(tf.GraphKeys.MODEL_VARIABLES)) == 4


@pytest.mark.parametrize("collections", ["ends", ["ends", "more"]])
def test_outputs_collections_get_the_output_after_the_activation(plain_graph, collections):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    outputs = slim.batch_norm(inputs, activation_fn=tf.nn.relu, outputs_collections=collections, scope="bn")
    for key in [collections] if isinstance(collections, str) else collections:
        (collected,) = tf.get_collection(key)
        assert collected is outputs
    assert outputs.op.type == "Relu"
    assert outputs.aliases == ["bn"]


@pytest.mark.parametrize("key", [tf.GraphKeys.UPDATE_OPS, "my updates", ["one", "two"]])
@VARIABLE_KINDS
def test_the_update_ops_wait_in_the_collections_the_means_first(graph, key, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    outputs = slim.batch_norm(inputs, DECAY, updates_collections=key)
    keys = [key] if isinstance(key, str) else key
    for each in keys:
        names = [op.name for op in tf.get_collection(each)]
        assert len(names) == 2
        assert [name.split("/")[:2] for name in names] == [
            ["BatchNorm", "AssignMovingAvg"],
            ["BatchNorm", "AssignMovingAvg_1"],
        ]
    if tf.GraphKeys.UPDATE_OPS not in keys:
        assert tf.get_collection(tf.GraphKeys.UPDATE_OPS) == []

    session, batch = start(), random.normal(size=SHAPES[2])
    before = session.run(tf.global_variables())
    session.run(outputs, {inputs: batch})
    assert_unmoved(session, before)
    mean, variance = moved([batch], unbiased=True)
    session.run(tf.get_collection(keys[0])[0], {inputs: batch})
    assert_statistics(session, mean, 1.0)
    session.run(tf.get_collection(keys[0])[1], {inputs: batch})
    assert_statistics(session, mean, variance)


# --- modes ------------------------------------------------------------------------------------------------------------

FLAGS = {
    "python": lambda value: (value, {}),
    "int": lambda value: (int(value), {}),
    "numpy": lambda value: (np.bool_(value), {}),
    "constant": lambda value: (tf.constant(value), {}),
    "placeholder": lambda value: (lambda flag: (flag, {flag: value}))(tf.placeholder(tf.bool, [])),
    "ref variable": lambda value: (tf.Variable(value, trainable=False, use_resource=False), {}),
    "resource variable": lambda value: (tf.Variable(value, trainable=False, use_resource=True), {}),
}


# Those that take different ways; the others are one of them once they are read.
forms = pytest.mark.parametrize("form", ["python", "placeholder", "ref variable", "resource variable"])


@forms
@pytest.mark.parametrize("in_place", [True, False])
def test_training_normalizes_by_the_batch_and_the_train_op_moves_the_statistics(graph, form, in_place, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = FLAGS[form](True)
    outputs = slim.batch_norm(
        inputs, DECAY, is_training=flag, updates_collections=None if in_place else tf.GraphKeys.UPDATE_OPS
    )
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    assert len(updates) == (0 if in_place else 2)
    with tf.control_dependencies(updates):
        train_op = tf.train.GradientDescentOptimizer(0.0).minimize(tf.reduce_sum(outputs))
    session, batches = start(), [random.normal(3.0, 2.0, SHAPES[2]) for _ in range(2)]
    for batch in batches:
        got, _ = session.run([outputs, train_op], {inputs: batch, **feed})
        np.testing.assert_allclose(
            got, oracle.normalized(batch, *oracle.statistics(batch)), rtol=1e-5, atol=1e-5
        )  # float32
    assert_statistics(session, *moved(batches, unbiased=True))


@forms
@pytest.mark.parametrize("in_place", [True, False])
@USUAL_KINDS
def test_inference_normalizes_by_the_statistics_and_changes_nothing(graph, form, in_place, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = FLAGS[form](False)
    outputs = slim.batch_norm(
        inputs,
        scale=True,
        is_training=flag,
        param_initializers=FOUR,
        updates_collections=None if in_place else tf.GraphKeys.UPDATE_OPS,
    )
    session, batch = start(), random.normal(size=SHAPES[2])
    before = session.run(tf.global_variables())
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    got, *_ = session.run([outputs, *updates], {inputs: batch, **feed})
    np.testing.assert_allclose(got, oracle.normalized(batch, MEAN, VARIANCE, GAMMA, BETA), rtol=1e-6, atol=1e-6)
    assert_unmoved(session, before)
    if form == "python":
        assert updates == []


@pytest.mark.parametrize("form", ["python", "int", "numpy", "constant"])
@pytest.mark.parametrize("value", [True, False])
def test_a_flag_that_is_known_beforehand_decides_while_the_graph_is_built(plain_graph, form, value):
    slim.batch_norm(tf.placeholder(tf.float32, [None, CHANNELS]), is_training=FLAGS[form](value)[0])
    assert len(tf.get_collection(tf.GraphKeys.UPDATE_OPS)) == (2 if value else 0)
    assert not [op for op in plain_graph.get_operations() if op.type in ("If", "Switch")]


@ranks
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
@pytest.mark.parametrize("fused", [None, True, False])
def test_every_rank_data_format_and_kernel_gives_the_same_outputs_and_contribs_statistics(
    plain_graph, rank, data_format, fused, start, random
):
    batch = random.normal(2.0, 3.0, SHAPES[rank])
    axis = -1
    if data_format == "NCHW":
        batch, axis = np.moveaxis(batch, -1, 1), 1
    inputs, flag = tf.placeholder(tf.float32, batch.shape), tf.placeholder(tf.bool, [])
    outputs = slim.batch_norm(
        inputs,
        DECAY,
        scale=True,
        is_training=flag,
        fused=fused,
        data_format=data_format,
        param_initializers={"gamma": constant(GAMMA), "beta": constant(BETA)},
        updates_collections=None,
    )
    assert outputs.shape.as_list() == list(batch.shape)
    session = start()
    got = session.run(outputs, {inputs: batch, flag: True})
    expected = oracle.normalized(batch, *oracle.statistics(batch, axis), GAMMA, BETA, axis=axis)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    # contrib fuses rank 2 and 4 unless it is told not to, and the fused kernel's variance is Bessel-corrected
    mean, variance = moved([batch], unbiased=rank in (2, 4) and fused is not False, axis=axis)
    assert_statistics(session, mean, variance)

    got = session.run(outputs, {inputs: batch, flag: False})
    np.testing.assert_allclose(
        got, oracle.normalized(batch, mean, variance, GAMMA, BETA, axis=axis), rtol=1e-5, atol=1e-5
    )
    assert_statistics(session, mean, variance)


@pytest.mark.parametrize(("rank", "fused"), [(2, False), (3, None), (4, None), (4, False)])
def test_the_moving_variance_is_that_of_todays_tf_layers(plain_graph, rank, fused, start, random):
    inputs = tf.placeholder(tf.float32, SHAPES[rank])
    slim.batch_norm(inputs, DECAY, fused=fused, scope="ours")
    with pytest.warns(UserWarning):
        legacy_layers().batch_normalization(
            inputs, momentum=DECAY, training=True, fused=fused if rank == 4 else None, name="theirs"
        )
    session = start()
    session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), {inputs: random.normal(2.0, 3.0, SHAPES[rank])})
    ours, theirs = value_of(session, "ours/moving_variance"), value_of(session, "theirs/moving_variance")
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@ranks
def test_a_batch_of_one_value_per_channel_gives_beta_and_statistics_that_stay_numbers(plain_graph, rank, start):
    # contrib doesn't refuse it; the kernel's correction of one value is 1/1, so the variance it hands on is 0
    inputs = tf.placeholder(tf.float32, [None, *[1] * (rank - 2), CHANNELS])
    outputs = slim.batch_norm(inputs, DECAY, param_initializers={"beta": constant(BETA)}, updates_collections=None)
    session, one = start(), np.full([1] * (rank - 1) + [CHANNELS], 5.0)
    np.testing.assert_allclose(session.run(outputs, {inputs: one}).ravel(), BETA, rtol=1e-6)
    assert_statistics(session, 5.0 * (1 - DECAY), DECAY)


@ranks
@pytest.mark.parametrize("in_place", [True, False])
def test_an_empty_batch_in_training_is_one_clear_error_and_nothing_is_updated(plain_graph, rank, in_place, start):
    inputs = tf.placeholder(tf.float32, [None, *SHAPES[rank][1:]])
    outputs = slim.batch_norm(inputs, updates_collections=None if in_place else tf.GraphKeys.UPDATE_OPS)
    session, empty = start(), np.zeros((0, *SHAPES[rank][1:]))
    before = session.run(tf.global_variables())
    for fetch in (outputs, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="an empty batch has neither mean nor variance"):
            session.run(fetch, {inputs: empty})
        assert_unmoved(session, before)


# --- further arguments ------------------------------------------------------------------------------------------------


def test_the_initializers_set_all_four_variables(plain_graph, start):
    slim.batch_norm(tf.placeholder(tf.float32, [None, CHANNELS]), scale=True, param_initializers=FOUR)
    session = start()
    for name, expected in {"beta": BETA, "gamma": GAMMA, "moving_mean": MEAN, "moving_variance": VARIANCE}.items():
        np.testing.assert_allclose(value_of(session, f"BatchNorm/{name}"), expected)


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_the_regularizers_of_beta_and_gamma_join_the_losses_and_no_others(plain_graph, fused, in_place, start):
    regularizers = {name: (lambda variable, of=name: tf.reduce_sum(variable) * (1 + ord(of[0]))) for name in FOUR}
    slim.batch_norm(
        tf.placeholder(tf.float32, [None, CHANNELS]),
        scale=True,
        fused=fused,
        param_initializers=FOUR,
        param_regularizers=regularizers,
        updates_collections=None if in_place else tf.GraphKeys.UPDATE_OPS,
    )
    losses = start().run(tf.losses.get_regularization_losses())
    expected = [BETA.sum() * (1 + ord("b")), GAMMA.sum() * (1 + ord("g"))]
    np.testing.assert_allclose(sorted(losses), sorted(expected), rtol=1e-6)


def test_the_activation_comes_last(plain_graph, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    outputs = slim.batch_norm(inputs, activation_fn=tf.nn.relu, param_initializers={"beta": constant(BETA)})
    session, batch = start(), random.normal(size=SHAPES[2])
    expected = np.maximum(oracle.normalized(batch, *oracle.statistics(batch), beta=BETA), 0.0)
    assert (expected == 0).any() and (expected > 0).any()
    np.testing.assert_allclose(session.run(outputs, {inputs: batch}), expected, rtol=1e-5, atol=1e-5)


def test_epsilon_stands_inside_the_root(plain_graph, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    outputs = slim.batch_norm(inputs, epsilon=0.5)
    session, batch = start(), random.normal(size=SHAPES[2])
    expected = oracle.normalized(batch, *oracle.statistics(batch), epsilon=0.5)
    np.testing.assert_allclose(session.run(outputs, {inputs: batch}), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["python", "placeholder"])
def test_zero_debias_takes_the_start_out_of_the_mean_only(graph, form, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = FLAGS[form](True)
    outputs = slim.batch_norm(
        inputs, DECAY, is_training=flag, zero_debias_moving_mean=True, updates_collections=None, scope="bn"
    )
    assert names_in(tf.GraphKeys.GLOBAL_VARIABLES)[-2:] == ["bn/moving_mean/biased", "bn/moving_mean/local_step"]
    assert len(names_in(tf.GraphKeys.GLOBAL_VARIABLES)) == 5
    assert set(names_in(tf.GraphKeys.MODEL_VARIABLES)) == set(names_in(tf.GraphKeys.GLOBAL_VARIABLES))
    session, batches = start(), [random.normal(3.0, 2.0, SHAPES[2]) for _ in range(3)]
    for step, batch in enumerate(batches, start=1):
        session.run(outputs, {inputs: batch, **feed})
        biased, variance = moved(batches[:step], unbiased=True)
        assert_statistics(session, biased / (1 - DECAY**step), variance, scope="bn", rtol=1e-5)
        np.testing.assert_allclose(value_of(session, "bn/moving_mean/biased"), biased, rtol=1e-5)
        assert value_of(session, "bn/moving_mean/local_step") == step


@ranks
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_weights_count_each_example_as_often_as_they_say(plain_graph, rank, data_format, start, random):
    batch, axis = random.normal(2.0, 3.0, SHAPES[rank]), -1
    times = np.arange(len(batch)) % 3  # one example in three does not count at all
    if data_format == "NCHW":
        batch, axis = np.moveaxis(batch, -1, 1), 1
    inputs = tf.placeholder(tf.float32, batch.shape)
    outputs = slim.batch_norm(
        inputs, DECAY, batch_weights=times.astype(np.float32), data_format=data_format, updates_collections=None
    )
    session = start()
    repeated = np.repeat(batch, times, axis=0)
    expected = oracle.normalized(batch, *oracle.statistics(repeated, axis), axis=axis)
    np.testing.assert_allclose(session.run(outputs, {inputs: batch}), expected, rtol=1e-5, atol=1e-5)
    assert_statistics(session, *moved([repeated], unbiased=False, axis=axis))  # contrib has no kernel with weights


@pytest.mark.parametrize("weights_shape", [[None], [6], None])
def test_weights_may_be_fed_and_of_unknown_shape(plain_graph, weights_shape, start, random):
    inputs, weights = tf.placeholder(tf.float32, [None, CHANNELS]), tf.placeholder(tf.float32, weights_shape)
    outputs = slim.batch_norm(inputs, batch_weights=weights)
    session, batch, times = start(), random.normal(size=SHAPES[2]), [1, 0, 2, 1, 0, 3]
    expected = oracle.normalized(batch, *oracle.statistics(np.repeat(batch, times, axis=0)))
    got = session.run(outputs, {inputs: batch, weights: times})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_fused_true_with_what_the_kernel_can_not_do_falls_back_as_contrib_does(plain_graph, start, random):
    inputs = tf.placeholder(tf.float64, [None, 2, 3, CHANNELS])
    slim.batch_norm(inputs, DECAY, fused=True, batch_weights=tf.ones([4], tf.float64), scope="weights")
    slim.batch_norm(inputs, DECAY, fused=True, adjustment=lambda shape: (1.0, 0.0), scope="adjustment")
    slim.batch_norm(inputs, DECAY, fused=True, scope="float64")
    session, batch = start(), random.normal(size=SHAPES[4])
    session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), {inputs: batch})
    for scope in ("weights", "adjustment", "float64"):
        assert_statistics(session, *moved([batch], unbiased=False), scope=scope)


@pytest.mark.parametrize("clipping", [None, {"rmin": 0.9, "rmax": 1.2, "dmax": 0.1}])
@VARIABLE_KINDS
def test_renorm_corrects_toward_the_moving_statistics(graph, clipping, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    outputs = slim.batch_norm(inputs, DECAY, renorm=True, renorm_clipping=clipping, renorm_decay=0.5)
    session, batch = start(), random.normal(1.0, 2.0, SHAPES[2])
    mean, variance = oracle.statistics(batch)
    deviation = np.sqrt(variance + 1e-3)
    r, d = deviation / 1.0, (mean - 0.0) / 1.0  # toward the start: mean 0, deviation 1
    if clipping:
        r, d = np.clip(r, 0.9, 1.2), np.clip(d, -0.1, 0.1)
    got = session.run(outputs, {inputs: batch})
    np.testing.assert_allclose(got, oracle.normalized(batch, mean, variance) * r + d, rtol=1e-9)
    session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), {inputs: batch})
    np.testing.assert_allclose(value_of(session, "BatchNorm/renorm_mean"), 0.5 * mean, rtol=1e-9)
    np.testing.assert_allclose(value_of(session, "BatchNorm/renorm_stddev"), 0.5 + 0.5 * deviation, rtol=1e-9)
    new_deviation = DECAY + (1 - DECAY) * deviation
    assert_statistics(session, (1 - DECAY) * mean, new_deviation**2 - 1e-3)
    assert "BatchNorm/renorm_mean" in names_in(tf.GraphKeys.MODEL_VARIABLES)


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("dtype", [tf.float16, tf.float64])
def test_adjustment_acts_before_gamma_and_beta_in_training_only(plain_graph, renorm, dtype, start, random):
    inputs, flag = tf.placeholder(dtype, [None, CHANNELS]), tf.placeholder(tf.bool, [])
    seen = []

    def adjustment(shape):
        seen.append(shape)
        return tf.cast(shape[-1:], dtype) * np.array([1.0, 0.5, 2.0]) / 3, tf.constant([0.0, 0.5, -1.0], dtype)

    outputs = slim.batch_norm(
        inputs,
        scale=True,
        is_training=flag,
        adjustment=adjustment,
        renorm=renorm,
        param_initializers={"gamma": constant(GAMMA), "beta": constant(BETA)},
    )
    assert len(seen) == 1 and outputs.dtype == dtype
    session, batch = start(), random.normal(size=SHAPES[2]).astype(dtype.as_numpy_dtype)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == tf.float16 else {"rtol": 1e-9, "atol": 1e-9}
    mean, variance = oracle.statistics(batch)
    normalized = oracle.normalized(batch, mean, variance)
    if renorm:
        normalized = normalized * np.sqrt(variance + 1e-3) + mean  # toward the start: mean 0, deviation 1
    expected = (normalized * [1.0, 0.5, 2.0] + [0.0, 0.5, -1.0]) * GAMMA + BETA
    np.testing.assert_allclose(session.run(outputs, {inputs: batch, flag: True}), expected, **tolerance)
    expected = oracle.normalized(batch, 0.0, 1.0, GAMMA, BETA)
    np.testing.assert_allclose(session.run(outputs, {inputs: batch, flag: False}), expected, **tolerance)


@pytest.mark.parametrize("zero_debias", [False, True])
def test_a_decay_may_be_a_schedules_tensor(plain_graph, zero_debias, start, random):
    inputs, decay = tf.placeholder(tf.float32, [None, CHANNELS]), tf.placeholder(tf.float32, [])
    outputs = slim.batch_norm(inputs, decay, updates_collections=None, zero_debias_moving_mean=zero_debias)
    session, batch = start(), random.normal(size=SHAPES[2])
    session.run(outputs, {inputs: batch, decay: 0.25})
    mean, variance = moved([batch], unbiased=True, decay=0.25)
    assert_statistics(session, batch.mean(0) if zero_debias else mean, variance)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        (None, {}, "undefined rank"),
        ([None, None], {}, "undefined `C` dimension"),
        ([None, 2, 2, None], {}, "undefined channels dimension"),
        ([None, None, 2, 2], {"data_format": "NCHW"}, "undefined channels dimension"),
        ([3], {}, "rank from 2 to 5"),
        ([2, 2, 2, 2, 2, 2], {}, "rank from 2 to 5"),
        ([None, 3], {"data_format": "NHCW"}, "NCHW or NHWC"),
        ([None, 3], {"is_training": "yes"}, "is_training"),
        ([None, 3], {"is_training": None}, "is_training"),
        ([None, 3], {"param_initializers": {"betta": None}}, "betta"),
        ([None, 3], {"param_regularizers": {"scale": None}}, "scale"),
        ([None, 3], {"renorm": True, "renorm_clipping": {"max": 1.0}}, "max"),
        ([None, 3], {"decay": 1.5}, "decay"),
        ([None, 3], {"renorm_decay": -0.5}, "renorm_decay"),
        ([4, 3], {"batch_weights": np.ones(5, np.float32)}, "batch_weights"),
        ([4, 3], {"batch_weights": np.ones((4, 1), np.float32)}, "batch_weights"),
        ([4, 3], {"renorm": True, "batch_weights": np.ones(4, np.float32)}, "renorm is not supported"),
        ([4, 3], {"renorm": True, "updates_collections": None}, "renorm is not supported"),
        ([4, 3], {"renorm": True, "updates_collections": "mine"}, "renorm is not supported"),
        ([4, 3], {"renorm": True, "zero_debias_moving_mean": True}, "renorm is not supported"),
    ],
)
def test_what_contrib_refuses_and_typing_errors_are_refused(plain_graph, shape, arguments, message):
    with pytest.raises(ValueError, match=message):
        slim.batch_norm(tf.placeholder(tf.float32, shape), **arguments)
    assert tf.global_variables() == []


def test_integers_are_refused(plain_graph):
    with pytest.raises(TypeError, match="float"):
        slim.batch_norm(tf.placeholder(tf.int32, [None, 3]))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def by_slim(inputs, training):
    return slim.batch_norm(inputs, scale=True, is_training=training, scope="bn")


def by_wrapper(inputs, training):
    return batch_norm_wrapper(inputs, training, name="bn")


def by_tf_layers(inputs, training):
    with pytest.warns(UserWarning):
        return legacy_layers().batch_normalization(inputs, training=training, name="bn")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (by_slim, by_slim),
        (by_slim, by_wrapper),
        (by_slim, by_tf_layers),
        (by_wrapper, by_slim),
        (by_tf_layers, by_slim),
    ],
)
def test_a_checkpoint_of_one_form_predicts_the_same_in_another(source, target, tmp_path, random):
    batch = random.normal(2.0, 3.0, SHAPES[4]).astype(np.float32)
    with tf.Graph().as_default():
        inputs = tf.placeholder(tf.float32, [None, 2, 3, CHANNELS])
        outputs = source(inputs, True)
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            train_op = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(tf.square(outputs - 1.0)))
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            session.run([train_op, outputs], {inputs: batch})
            path = checkpoints.save(checkpoints.make_saver(), session, tmp_path / "model")
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            gamma, beta, mean, variance = (value_of(session, f"bn/{name}") for name in names)
    assert not np.allclose(mean, 0.0) and not np.allclose(variance, 1.0) and not np.allclose(gamma, 1.0)
    with tf.Graph().as_default():
        inputs = tf.placeholder(tf.float32, [None, 2, 3, CHANNELS])
        outputs = target(inputs, False)
        with tf.Session() as session:
            checkpoints.restore(session, path)
            got = session.run(outputs, {inputs: batch})
    np.testing.assert_allclose(got, oracle.normalized(batch, mean, variance, gamma, beta), rtol=1e-5, atol=1e-5)
