"""Savers that include the moving statistics, and restores that check them."""

import importlib
import warnings

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints.names import NAME_MAPS, checkpoint_name, checkpoint_names
from bn_graph.checkpoints.savers import make_inference_saver
from bn_graph.checkpoints.variables import inference_variables
from bn_graph.tf1 import tf
from tests import libraries

BATCH = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]], np.float32)


def build_and_train(steps: int) -> tuple[tf.Graph, tf.Session, tf.Tensor, tf.Tensor]:
    graph = tf.Graph()
    with graph.as_default():
        x = tf.placeholder(tf.float32, [None, 2])
        y = bn_graph.batch_norm_wrapper(x, True, decay=0.5, name="bn1")
        session = tf.Session(config=bn_graph.session_config())
        session.run(tf.global_variables_initializer())
        for _ in range(steps):
            session.run(y, {x: BATCH})
    return graph, session, x, y


def save_after(steps: int, folder, names: list[str] | None = None) -> str:
    """A checkpoint after `steps` training runs, of the named variables or of all."""
    graph, session, _, _ = build_and_train(steps)
    with graph.as_default(), session:
        chosen = None if names is None else [v for v in tf.global_variables() if v.op.name in names]
        return tf.train.Saver(chosen).save(session, f"{folder}/model")


def inference_session() -> tuple[tf.Session, tf.Tensor, tf.Tensor]:
    graph = tf.Graph()
    with graph.as_default():
        x = tf.placeholder(tf.float32, [None, 2])
        y = bn_graph.batch_norm_wrapper(x, False, name="bn1")
    return tf.Session(graph=graph, config=bn_graph.session_config()), x, y


def test_restored_inference_normalizes_by_the_statistics_that_training_left(tmp_path):
    path = save_after(3, tmp_path)
    mean, variance = np.zeros(2), np.ones(2)
    for _ in range(3):
        mean = 0.5 * mean + 0.5 * BATCH.astype(np.float64).mean(0)
        variance = 0.5 * variance + 0.5 * BATCH.astype(np.float64).var(0)
    session, x, y = inference_session()
    with session:
        bn_graph.restore(session, path)
        np.testing.assert_allclose(session.run(y, {x: BATCH}), (BATCH - mean) / np.sqrt(variance + 1e-3), rtol=1e-6)


def test_restore_takes_the_latest_checkpoint_of_a_directory(tmp_path):
    save_after(1, tmp_path)
    session, _, _ = inference_session()
    with session:
        bn_graph.restore(session, tmp_path)


def test_saver_of_trainable_variables_is_refused_and_names_the_statistics():
    graph, session, _, _ = build_and_train(0)
    with graph.as_default(), session, pytest.raises(ValueError, match=r"bn1/moving_mean, bn1/moving_variance"):
        bn_graph.make_saver(tf.trainable_variables())


def test_saver_of_trainable_variables_and_moving_statistics_is_accepted():
    graph, session, _, _ = build_and_train(0)
    with graph.as_default(), session:
        bn_graph.make_saver(tf.trainable_variables() + bn_graph.moving_statistics())


def test_saver_without_an_averages_shadow_is_refused():
    with tf.Graph().as_default():
        average = tf.train.ExponentialMovingAverage(0.9)
        layer = bn_graph.ConvolutionalBatchNormalizer(2, 1e-3, average, True, name="bn")
        layer.get_assigner()
        own = [variable for variable in tf.global_variables() if variable.op.name.count("/") == 1]
        assert {variable.op.name for variable in own} == {"bn/mean", "bn/variance", "bn/beta", "bn/gamma"}
        with pytest.raises(ValueError, match="bn/mean/"):
            bn_graph.make_saver(own)


def test_saver_of_an_outer_layer_need_not_save_an_inner_ones_statistics():
    with tf.Graph().as_default(), tf.variable_scope("block"):
        outer = [tf.get_variable(name, [2]) for name in ("gamma", "beta")]
        bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 2]), False, name="inner")
        bn_graph.make_saver(outer)


def test_saver_that_saves_nothing_of_a_layer_need_not_save_its_statistics():
    graph, session, _, _ = build_and_train(0)
    with graph.as_default(), session:
        other = tf.get_variable("other", [1])
        bn_graph.make_saver([other])


def test_restore_refuses_by_name_a_checkpoint_without_statistics_and_assigns_nothing(tmp_path):
    path = save_after(3, tmp_path, ["bn1/gamma", "bn1/beta"])
    session, _, _ = inference_session()
    with session, session.graph.as_default():
        session.run(tf.global_variables_initializer())
        before = session.run(tf.global_variables())
        with pytest.raises(bn_graph.CheckpointError) as refusal:
            bn_graph.restore(session, path)
        assert "moving statistics that the graph needs: bn1/moving_mean, bn1/moving_variance" in str(refusal.value)
        assert "trainable_variables" in str(refusal.value)
        assert "\n" not in str(refusal.value)
        for now, then in zip(session.run(tf.global_variables()), before, strict=True):
            np.testing.assert_array_equal(now, then)


def test_restore_names_other_missing_variables_apart_from_statistics(tmp_path):
    path = save_after(1, tmp_path, ["bn1/moving_mean", "bn1/moving_variance"])
    session, _, _ = inference_session()
    with session, pytest.raises(bn_graph.CheckpointError, match=r"lacks variables of the graph: bn1/gamma, bn1/beta"):
        bn_graph.restore(session, path)


def test_restore_of_a_part_leaves_the_rest_alone(tmp_path):
    path = save_after(1, tmp_path, ["bn1/gamma", "bn1/beta"])
    session, _, _ = inference_session()
    with session, session.graph.as_default():
        session.run(tf.global_variables_initializer())
        bn_graph.restore(session, path, var_list=tf.trainable_variables())


def test_restore_refuses_a_different_shape_and_says_both(tmp_path):
    path = save_after(1, tmp_path)
    with tf.Graph().as_default():
        bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 5]), False, name="bn1")
        with (
            tf.Session() as session,
            pytest.raises(bn_graph.CheckpointError, match=r"shape \[2\]; the graph's has \[5\]"),
        ):
            bn_graph.restore(session, path)


def test_restore_warns_when_every_statistic_still_holds_its_initial_value(tmp_path):
    path = save_after(0, tmp_path)
    session, _, _ = inference_session()
    with session, pytest.warns(bn_graph.UntrainedStatisticsWarning, match="still hold their initial values"):
        bn_graph.restore(session, path)


def test_restore_of_trained_statistics_does_not_warn(tmp_path):
    path = save_after(1, tmp_path)
    session, _, _ = inference_session()
    with session, warnings.catch_warnings():
        warnings.simplefilter("error")
        bn_graph.restore(session, path)


@pytest.mark.parametrize("damage", ["missing", "empty index", "empty directory"])
def test_restore_of_no_readable_checkpoint_is_one_line_that_names_it(tmp_path, damage):
    prefix = tmp_path / "model"
    if damage == "empty index":
        save_after(1, tmp_path)
        (tmp_path / "model.index").write_bytes(b"")
    session, _, _ = inference_session()
    with session, pytest.raises(bn_graph.CheckpointError) as refusal:
        bn_graph.restore(session, tmp_path if damage == "empty directory" else prefix)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_save_makes_the_directory_that_a_bare_saver_would_refuse(tmp_path):
    graph, session, _, _ = build_and_train(1)
    with graph.as_default(), session:
        path = bn_graph.save(bn_graph.make_saver(), session, tmp_path / "a" / "b" / "model")
        bn_graph.restore(session, path)


def test_save_where_it_can_not_write_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    graph, session, _, _ = build_and_train(1)
    with graph.as_default(), session, pytest.raises(bn_graph.CheckpointError, match="could not be written"):
        bn_graph.save(bn_graph.make_saver(), session, tmp_path / "file" / "model")


def test_a_checkpoint_moves_between_the_wrapper_and_tf_layers(tmp_path):
    path = save_after(2, tmp_path)
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 2])
        y = tf.layers.batch_normalization(x, training=False, name="bn1")
        with tf.Session(graph=graph) as session:
            bn_graph.restore(session, path)
            theirs = session.run(y, {x: BATCH})
            back = tf.train.Saver().save(session, f"{tmp_path}/theirs")
    session, x, y = inference_session()
    with session:
        bn_graph.restore(session, back)
        np.testing.assert_allclose(session.run(y, {x: BATCH}), theirs, rtol=1e-6, atol=1e-6)


# Name maps


@pytest.mark.parametrize(
    ("name_map", "expected"),
    [
        ({"gamma": "scale"}, "net/bn1/scale"),
        ({"net/": ""}, "bn1/gamma"),
        ({"net/": "a/", "net/bn1/": "b/", "gamma": "scale"}, "b/scale"),
        ({"": "model/"}, "model/net/bn1/gamma"),
        ({"net/bn1/gamma": "Variable_3", "gamma": "scale", "net/": ""}, "Variable_3"),
        ({"beta": "offset", "bn1/": "x/"}, "net/bn1/gamma"),
        (str.upper, "NET/BN1/GAMMA"),
        (NAME_MAPS["keras_object"], "net/bn1/gamma/.ATTRIBUTES/VARIABLE_VALUE"),
        (NAME_MAPS["contrib"], "net/bn1/gamma"),
    ],
)
def test_a_name_map_has_leaves_scopes_whole_names_or_is_a_function(name_map, expected):
    assert checkpoint_name("net/bn1/gamma", name_map) == expected


def test_a_name_map_that_makes_two_names_one_is_refused():
    graph, _, _, _ = build_and_train(0)
    with graph.as_default(), pytest.raises(ValueError, match="both bn1/gamma and bn1/beta the name 'bn1/weight'"):
        bn_graph.make_saver(name_map={"gamma": "weight", "beta": "weight"})


@pytest.mark.parametrize("key", ["bn2/", "bn1/gama"])
def test_a_misspelt_scope_or_whole_name_in_a_name_map_is_refused(key):
    graph, _, _, _ = build_and_train(0)
    with graph.as_default(), pytest.raises(ValueError, match=f"names {key}, which fits none of the 4 variables"):
        checkpoint_names(tf.global_variables(), {key: "x"})


@pytest.mark.parametrize("library", NAME_MAPS)
def test_a_checkpoint_with_other_names_is_written_and_restored(tmp_path, library):
    name_map = {**NAME_MAPS[library], "bn1/": "conv1/BatchNorm/"}
    graph, session, _, _ = build_and_train(3)
    with graph.as_default(), session:
        path = bn_graph.save(bn_graph.make_saver(name_map=name_map), session, tmp_path / "model")
        values = {variable.op.name: session.run(variable) for variable in tf.global_variables()}
    held = {name for name, _ in tf.train.list_variables(path)}
    leaves = {leaf: NAME_MAPS[library].get(leaf, leaf) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert held == {f"conv1/BatchNorm/{leaf}" for leaf in leaves.values()}
    session, _, _ = inference_session()
    with session, session.graph.as_default():
        bn_graph.restore(session, path, name_map=name_map)
        for variable in tf.global_variables():
            np.testing.assert_array_equal(session.run(variable), values[variable.op.name])


def test_a_checkpoint_of_hand_made_variables_is_restored_by_their_whole_names(tmp_path):
    arrays = [np.array(values, np.float32) for values in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0])]
    with tf.Graph().as_default(), tf.Session() as session:
        made = [tf.Variable(array) for array in arrays]  # Variable, Variable_1, ..., as r2rt's wrapper leaves them
        session.run(tf.global_variables_initializer())
        path = tf.train.Saver().save(session, f"{tmp_path}/model")
        names = [variable.op.name for variable in made]
    leaves = ["gamma", "beta", "moving_mean", "moving_variance"]
    session, x, y = inference_session()
    with session:
        bn_graph.restore(session, path, name_map={f"bn1/{leaf}": n for leaf, n in zip(leaves, names, strict=True)})
        gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays)
        expected = gamma * (BATCH - mean) / np.sqrt(variance + 1e-3) + beta
        np.testing.assert_allclose(session.run(y, {x: BATCH}), expected, rtol=1e-5)


def test_a_keras_object_checkpoint_is_read(tmp_path):
    keras = importlib.import_module(libraries.LEGACY_KERAS)
    layer = keras.layers.BatchNormalization()
    model = keras.Sequential([layer])
    model.build((None, 2))
    arrays = [np.array(values, np.float32) for values in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0])]
    layer.set_weights(arrays)
    model.save_weights(f"{tmp_path}/weights")
    session, _, _ = inference_session()
    name_map = {**NAME_MAPS["keras_object"], "bn1/": "layer_with_weights-0/"}
    with session, session.graph.as_default():
        bn_graph.restore(session, tmp_path / "weights", name_map=name_map)
        for variable, array in zip(tf.global_variables(), arrays, strict=True):
            np.testing.assert_array_equal(session.run(variable), array)


def test_a_stored_standard_deviation_is_squared_where_it_is_told(tmp_path):
    with tf.Graph().as_default(), tf.Session() as session:
        for leaf, value in (("gamma", 1.0), ("beta", 0.0), ("mu", 2.0), ("sigma", 3.0)):
            tf.get_variable(f"bn1/{leaf}", [2], initializer=tf.constant_initializer(value))
        session.run(tf.global_variables_initializer())
        path = tf.train.Saver().save(session, f"{tmp_path}/model")
    for convert, variance in ((None, 3.0), ({"moving_variance": np.square}, 9.0), ({"bn1/moving_variance": abs}, 3.0)):
        session, x, y = inference_session()
        with session:
            bn_graph.restore(session, path, name_map=NAME_MAPS["mu_sigma"], convert=convert)
            expected = (BATCH - 2.0) / np.sqrt(variance + 1e-3)
            np.testing.assert_allclose(session.run(y, {x: BATCH}), expected, rtol=1e-5)


def test_a_conversion_to_another_shape_is_refused_before_anything_is_assigned(tmp_path):
    path = save_after(3, tmp_path)
    session, _, _ = inference_session()
    with session, session.graph.as_default():
        session.run(tf.global_variables_initializer())
        with pytest.raises(ValueError, match=r"turns bn1/moving_mean into shape \[\]"):
            bn_graph.restore(session, path, convert={"moving_mean": np.sum})
        np.testing.assert_array_equal(session.run("bn1/moving_mean/Read/ReadVariableOp:0"), np.zeros(2))


def test_what_is_missing_is_named_as_the_checkpoint_would_and_beside_its_nearest_names(tmp_path):
    graph, session, _, _ = build_and_train(1)
    with graph.as_default(), session:
        path = bn_graph.save(bn_graph.make_saver(name_map={"bn1/": "layer1/bn/"}), session, tmp_path / "model")
    session, _, _ = inference_session()
    with session, pytest.raises(bn_graph.CheckpointError) as refusal:
        bn_graph.restore(session, path, name_map={"bn1/": "layer1/batch_norm/"})
    message = str(refusal.value)
    assert "layer1/batch_norm/moving_mean (for bn1/moving_mean)" in message
    assert "The nearest names that it has: " in message
    assert "layer1/bn/moving_mean" in message.split("nearest")[1]
    assert "\n" not in message


def test_a_checkpoint_in_another_precision_is_refused(tmp_path):
    path = save_after(1, tmp_path)
    with tf.Graph().as_default(), tf.Session() as session:
        bn_graph.batch_norm_wrapper(tf.placeholder(tf.float64, [None, 2]), False, name="bn1")
        with pytest.raises(bn_graph.CheckpointError, match=r"as float32; the graph's is float64"):
            bn_graph.restore(session, path)


# Savers for inference


def names_of(variables):
    return [variable.op.name for variable in variables]


BN = ["bn1/gamma", "bn1/beta", "bn1/moving_mean", "bn1/moving_variance"]


@pytest.mark.parametrize("updates_collection", [None, tf.GraphKeys.UPDATE_OPS, "mine"])
@pytest.mark.parametrize("flag", ["True", "False"])
def test_inference_variables_are_weights_and_statistics_without_slots_and_step(plain_graph, flag, updates_collection):
    check_inference_variables(flag == "True", updates_collection)


@pytest.mark.parametrize("updates_collection", [None, "mine"])
def test_inference_variables_with_a_flag_are_the_same(cond_kind, graph, updates_collection):
    check_inference_variables(tf.placeholder(tf.bool, []), updates_collection)


def check_inference_variables(is_training, updates_collection):
    x = tf.placeholder(tf.float32, [None, 3])
    z = x @ tf.get_variable("w", [3, 2])
    y = bn_graph.batch_norm_wrapper(z, is_training, updates_collection=updates_collection, name="bn1")
    step = tf.train.get_or_create_global_step()
    tf.train.AdamOptimizer().minimize(tf.reduce_sum(y), step)
    tf.get_variable("another_networks", [3])
    assert names_of(inference_variables(y)) == ["w", *BN]
    assert names_of(inference_variables([y.name], tf.get_default_graph())) == ["w", *BN]
    assert names_of(inference_variables({"y": y})) == ["w", *BN]


@pytest.mark.parametrize("options", [{"center": False, "scale": False}, {"renorm": True}, {"average": "cumulative"}])
@pytest.mark.parametrize("updates_collection", [None, "mine"])
def test_inference_variables_of_a_training_graph_do_for_the_inference_graph(plain_graph, options, updates_collection):
    x = tf.placeholder(tf.float32, [None, 3])
    y = bn_graph.batch_norm_wrapper(x, True, updates_collection=updates_collection, name="bn1", **options)
    saved = set(names_of(inference_variables(y)))
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [None, 3])
        y = bn_graph.batch_norm_wrapper(x, False, name="bn1", **options)
        needed = set(names_of(inference_variables(y)))
    assert {"bn1/moving_mean", "bn1/moving_variance"} <= needed <= saved


def test_hand_made_statistics_of_any_name_are_found_by_what_reads_or_updates_them(graph):
    x = tf.placeholder(tf.float32, [None, 3])
    made = {name: tf.get_variable(name, [3], trainable=name == "scale") for name in ("scale", "pop_mean", "pop_var")}
    mean, variance = tf.nn.moments(x, [0])
    training = (x - mean) * tf.rsqrt(variance + 1e-3) * made["scale"]
    inference = (x - made["pop_mean"]) * tf.rsqrt(made["pop_var"] + 1e-3) * made["scale"]
    assert names_of(inference_variables(inference)) == ["scale", "pop_mean", "pop_var"]
    assert names_of(inference_variables(training)) == ["scale"]
    tf.add_to_collection("updates", tf.assign(made["pop_mean"], 0.9 * made["pop_mean"] + 0.1 * mean))
    tf.add_to_collection("updates", tf.group(tf.assign(made["pop_var"], variance)))
    assert names_of(inference_variables(training)) == ["scale", "pop_mean", "pop_var"]


def test_shadows_of_an_exponential_moving_average_are_found_when_they_are_read(graph):
    x = tf.placeholder(tf.float32, [None, 3])
    mean = tf.get_variable("mu", [3], trainable=False)
    average = tf.train.ExponentialMovingAverage(0.9)
    average.apply([mean])
    y = x - average.average(mean)
    assert names_of(inference_variables(y)) == ["mu/ExponentialMovingAverage"]


def test_updates_of_another_head_and_counters_are_left_out(graph):
    x = tf.placeholder(tf.float32, [None, 3])
    trunk = x @ tf.get_variable("w", [3, 2])
    heads = [
        tf.layers.batch_normalization(trunk @ tf.get_variable(f"w{i}", [2, 2]), training=True, name=f"bn{i}")
        for i in (1, 2)
    ]
    counter = tf.get_variable("counter", [], trainable=False)
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_add(counter, 1.0))
    assert names_of(inference_variables(heads[0])) == ["w", "w1", *BN]


def test_a_decay_that_follows_the_global_step_does_not_bring_the_step_in(graph):
    step = tf.train.get_or_create_global_step()
    x = tf.placeholder(tf.float32, [None, 3])
    mean = tf.get_variable("pop_mean", [3], trainable=False)
    share = 1.0 / tf.cast(tf.convert_to_tensor(step) + 1, tf.float32)
    with tf.control_dependencies([tf.assign_sub(mean, (mean - tf.reduce_mean(x, 0)) * share)]):
        y = tf.identity(x)
    assert names_of(inference_variables(y)) == ["pop_mean"]
    assert names_of(inference_variables(x * share)) == ["global_step"]


def test_a_train_op_among_the_outputs_is_refused():
    graph, _, _, y = build_and_train(0)
    with graph.as_default():
        train_op = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(y))
        with pytest.raises(ValueError, match="trains bn1/beta, bn1/gamma: they depend on a train op"):
            inference_variables([train_op.name])


@pytest.mark.parametrize("outputs", [[], {}])
def test_no_outputs_are_refused(outputs):
    with pytest.raises(ValueError, match="outputs is empty"):
        inference_variables(outputs)


def test_an_inference_saver_of_the_training_graph_restores_the_inference_graph(graph, start, tmp_path):
    x = tf.placeholder(tf.float32, [None, 2])
    y = tf.layers.batch_normalization(x, training=True, momentum=0.5, name="bn1")
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    tf.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_sum(y), tf.train.get_or_create_global_step())
    session = start()
    session.run(updates, {x: BATCH})
    path = bn_graph.save(make_inference_saver(y), session, tmp_path / "model")
    assert sorted(name for name, _ in tf.train.list_variables(path)) == sorted(BN)
    mean, variance = (0.5 * s + 0.5 * b for s, b in zip((0.0, 1.0), (BATCH.mean(0), BATCH.var(0)), strict=True))
    restored, x, y = inference_session()
    with restored:
        bn_graph.restore(restored, path)
        expected = (BATCH - mean) / np.sqrt(variance + 1e-3)
        np.testing.assert_allclose(restored.run(y, {x: BATCH}), expected, rtol=1e-5)


def test_an_inference_saver_takes_a_name_map(tmp_path):
    graph, session, _, y = build_and_train(1)
    with graph.as_default(), session:
        path = make_inference_saver(y, name_map=NAME_MAPS["pop"]).save(session, f"{tmp_path}/model")
    held = [name for name, _ in tf.train.list_variables(path)]
    assert held == ["bn1/offset", "bn1/pop_mean", "bn1/pop_var", "bn1/scale"]


def test_an_inference_saver_of_nothing_says_so(plain_graph):
    with pytest.raises(ValueError, match="read no variable"):
        make_inference_saver(tf.placeholder(tf.float32, []))
