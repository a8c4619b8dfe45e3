"""Layers whose gamma and beta are partitioned: saved, restored, checked, imported and exported whole."""

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints import interchange
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf

BATCH = np.arange(10.0, dtype=np.float32).reshape(2, 5) ** 2
VALUES = {
    "gamma": np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
    "beta": np.array([6.0, 7.0, 8.0, 9.0, 10.0]),
    "moving_mean": np.array([0.5, 1.5, 2.5, 3.5, 4.5]),
    "moving_variance": np.array([4.0, 9.0, 16.0, 25.0, 36.0]),
}


def layer(parts=2, training=False):
    """Input and output of a layer `net/bn1` of 5 channels, whose gamma and beta are in so many parts (1: whole)."""
    partitioner = tf.fixed_size_partitioner(parts) if parts > 1 else None
    with tf.variable_scope("net", partitioner=partitioner):
        x = tf.placeholder(tf.float32, [None, 5])
        return x, bn_graph.batch_norm_wrapper(x, training, epsilon=1e-3, name="bn1")


def with_values(session):
    """Gives the layer in the session's graph the `VALUES`; returns what it computes of the `BATCH` then."""
    interchange.import_keras_weights(session, "net/bn1", list(VALUES.values()))
    normalized = (BATCH - VALUES["moving_mean"]) / np.sqrt(VALUES["moving_variance"] + 1e-3)
    return normalized * VALUES["gamma"] + VALUES["beta"]


def test_a_layers_partitioned_variables_are_all_their_parts_in_order(graph):
    layer(parts=3)
    found = bn_graph.batch_norm_layers()["net/bn1"]
    assert [part.op.name for part in found.gamma] == [f"net/bn1/gamma/part_{number}" for number in range(3)]
    assert [part.shape.as_list() for part in found.beta] == [[2], [2], [1]]
    assert found.moving_mean.op.name == "net/bn1/moving_mean"


def test_values_are_imported_and_exported_whole(graph, start):
    x, y = layer()
    session = start()
    graph.finalize()
    expected = with_values(session)
    np.testing.assert_allclose(session.run(y, {x: BATCH}), expected, rtol=1e-5)
    np.testing.assert_array_equal(interchange.export_keras_weights(session, "net/bn1"), list(VALUES.values()))
    exported = interchange.export_state_dict(session)
    np.testing.assert_array_equal(exported["net.bn1.weight"], VALUES["gamma"])
    np.testing.assert_array_equal(exported["net.bn1.bias"], VALUES["beta"])
    interchange.import_state_dict(session, exported | {"net.bn1.weight": -VALUES["gamma"]})
    np.testing.assert_array_equal(interchange.export_state_dict(session)["net.bn1.weight"], -VALUES["gamma"])


def test_values_of_another_shape_than_the_whole_are_refused(graph, start):
    layer()
    weights = [np.zeros(3), *list(VALUES.values())[1:]]
    with pytest.raises(ValueError, match=r"gamma has shape \[3\]; net/bn1/gamma has \[5\]"):
        interchange.import_keras_weights(start(), "net/bn1", weights)


def test_a_matrix_in_columns_is_assigned_and_each_part_by_itself(graph, start):
    whole = np.arange(8.0).reshape(2, 4)
    kernel = tf.get_variable("kernel", [2, 4], partitioner=tf.fixed_size_partitioner(2, axis=1))
    session = start()
    assign_values(session, [(kernel, whole)])
    np.testing.assert_array_equal(session.run(list(kernel)), [whole[:, :2], whole[:, 2:]])
    assign_values(session, [(next(iter(kernel)), whole[:, 2:])])
    np.testing.assert_array_equal(session.run(list(kernel)), [whole[:, 2:], whole[:, 2:]])


def test_a_saver_of_the_trainable_variables_is_refused(graph):
    layer()
    with pytest.raises(ValueError, match="net/bn1/moving_mean, net/bn1/moving_variance"):
        bn_graph.make_saver(tf.trainable_variables())


@pytest.mark.parametrize("saved_in", [1, 2, 3])
@pytest.mark.parametrize("restored_in", [1, 2])
@pytest.mark.parametrize("name_map", [None, {"net/bn1/": "layer/", "gamma": "scale"}])
def test_what_is_saved_in_any_number_of_parts_is_restored_in_any(start, tmp_path, saved_in, restored_in, name_map):
    with tf.Graph().as_default():
        layer(saved_in)
        session = start()
        expected = with_values(session)
        path = bn_graph.save(bn_graph.make_saver(name_map=name_map), session, tmp_path / "model")
    assert ("layer/scale" if name_map else "net/bn1/gamma") in dict(tf.train.list_variables(path))
    with tf.Graph().as_default():
        x, y = layer(restored_in)
        session = start()
        bn_graph.restore(session, path, name_map=name_map)
        np.testing.assert_allclose(session.run(y, {x: BATCH}), expected, rtol=1e-5)


def test_the_trainable_part_is_restored_by_itself_and_converted(graph, start, tmp_path):
    layer()
    session = start()
    with_values(session)
    path = bn_graph.save(bn_graph.make_saver(), session, tmp_path / "model")
    session.run(tf.global_variables_initializer())
    bn_graph.restore(session, path, var_list=tf.trainable_variables(), convert={"gamma": np.negative})
    gamma, beta, mean, _ = interchange.export_keras_weights(session, "net/bn1")
    np.testing.assert_array_equal([gamma, beta, mean], [-VALUES["gamma"], VALUES["beta"], np.zeros(5)])


def test_another_shape_or_a_missing_variable_is_named_by_the_wholes_name(start, tmp_path):
    with tf.Graph().as_default():
        tf.get_variable("net/bn1/gamma", [4])
        path = bn_graph.save(tf.train.Saver(), start(), tmp_path / "model")
    with tf.Graph().as_default():
        layer()
        session = start()
        with pytest.raises(bn_graph.CheckpointError, match=r"variables of the graph: net/bn1/beta\. Save"):
            bn_graph.restore(session, path)
        with pytest.raises(bn_graph.CheckpointError, match=r"net/bn1/gamma with shape \[4\]; the graph's has \[5\]"):
            bn_graph.restore(session, path, var_list=[v for v in tf.global_variables() if "gamma" in v.name])


def test_what_inference_of_a_partitioned_layer_needs_is_saved_whole(graph, start, tmp_path):
    _, y = layer(training=True)
    tf.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_sum(y))
    path = bn_graph.save(bn_graph.make_inference_saver(y), start(), tmp_path / "model")
    assert [name for name, _ in tf.train.list_variables(path)] == sorted(f"net/bn1/{leaf}" for leaf in VALUES)
