"""Savers that include the moving statistics, and restores that check them."""

import warnings

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf

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
