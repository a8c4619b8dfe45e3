"""Values assigned in a session: to variables of either kind, however they are initialized."""

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints import interchange, meta_graphs
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf


def test_variables_made_from_one_initial_tensor_get_each_their_own_value(graph, start):
    zero = tf.zeros([])
    a, b, c = (tf.get_variable(name, initializer=zero) for name in "abc")
    session = start()
    assign_values(session, [(a, 1.0), (b, 2.0), (c, 3.0)])
    assert session.run([a, b, c]) == [1.0, 2.0, 3.0]


def test_nothing_is_added_to_the_graph_and_values_need_not_be_initialized_before(graph):
    a, b = tf.get_variable("a", [2]), tf.get_variable("b", [], tf.int64, tf.zeros_initializer())
    graph.finalize()
    with tf.Session() as session:
        assign_values(session, zip([a, b], [[1.0, 2.0], 3], strict=True))
        np.testing.assert_array_equal(session.run(a), [1.0, 2.0])
        assert session.run(b) == 3


def checkpoint_of_ones(folder):
    """A checkpoint with the variables of a layer `bn1` of 2 channels, all of them ones."""
    with tf.Graph().as_default(), tf.Session() as session:
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            tf.get_variable(f"bn1/{leaf}", initializer=tf.ones([2]))
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, str(folder / "ones"))


def graph_initialized_from(checkpoint):
    """Output of a layer `bn1` whose variables start from the checkpoint."""
    x = tf.placeholder(tf.float32, [None, 2])
    outputs = bn_graph.batch_norm_wrapper(x, is_training=False, epsilon=1e-6, name="bn1")
    tf.train.init_from_checkpoint(checkpoint, {"/": "/"})
    return x, outputs


def test_variables_that_are_initialized_from_a_checkpoint_are_assigned(graph, start, tmp_path):
    graph_initialized_from(checkpoint_of_ones(tmp_path))
    session = start()
    variables = tf.global_variables()
    assign_values(session, [(variable, [3.0, index]) for index, variable in enumerate(variables)])
    np.testing.assert_array_equal(session.run(variables), [[3.0, index] for index in range(4)])


def test_every_import_works_after_init_from_checkpoint(graph, start, tmp_path):
    path = checkpoint_of_ones(tmp_path)
    graph_initialized_from(path)
    session = start()
    torch = {"weight": [5.0, 6.0], "bias": [0.0, 1.0], "running_mean": [2.0, 3.0], "running_var": [4.0, 9.0]}
    interchange.import_state_dict(session, {f"bn1.{name}": np.array(value) for name, value in torch.items()})
    np.testing.assert_array_equal(interchange.export_keras_weights(session, "bn1"), list(torch.values()))
    interchange.import_keras_weights(session, "bn1", [np.full(2, value) for value in (1.0, 2.0, 3.0, 4.0)])
    np.testing.assert_array_equal(interchange.export_keras_weights(session, "bn1")[3], [4.0, 4.0])
    bn_graph.restore(session, path, convert={"moving_variance": lambda stored: 4 * stored})
    np.testing.assert_array_equal(interchange.export_keras_weights(session, "bn1")[2:], [[1.0, 1.0], [4.0, 4.0]])
    meta_graphs.assign(session, {"bn1/beta": np.array([7.0, 8.0])})
    np.testing.assert_array_equal(interchange.export_keras_weights(session, "bn1")[1], [7.0, 8.0])


def test_imported_statistics_that_start_from_one_tensor_stay_apart(graph, start):
    one = tf.ones([2])
    for leaf in ("gamma", "moving_mean", "moving_variance"):
        tf.get_variable(f"bn1/{leaf}", initializer=one)
    session = start()
    weights = [np.full(2, value) for value in (5.0, 6.0, 7.0)]
    interchange.import_keras_weights(session, "bn1", weights)
    np.testing.assert_array_equal(interchange.export_keras_weights(session, "bn1"), weights)


def test_a_variable_without_an_assign_to_feed_is_named(plain_graph):
    class Uninitializable:
        name, initializer = "strange", tf.no_op()

    with tf.Session() as session, pytest.raises(ValueError, match=r"strange .*no assign.* can be fed"):
        assign_values(session, [(Uninitializable, 1.0)])
