"""The statistics' variables: how they are made, listed and moved."""

import numpy as np
import pytest

from bn_graph.layers import averages, batch_norm
from bn_graph.tf1 import legacy_layers, tf
from tests import oracle
from tests.conftest import VARIABLE_KINDS


@VARIABLE_KINDS
def test_statistics_start_at_zero_and_one_and_are_not_trainable(graph, start):
    with tf.variable_scope("layer"):
        gamma, beta, *statistics = averages.create([3], tf.float64)
    assert gamma is None and beta is None
    mean, variance = start().run(statistics)
    np.testing.assert_array_equal(mean, np.zeros(3))
    np.testing.assert_array_equal(variance, np.ones(3))
    assert [variable.op.name for variable in statistics] == ["layer/moving_mean", "layer/moving_variance"]
    assert [variable.dtype.base_dtype for variable in statistics] == [tf.float64] * 2
    assert tf.trainable_variables() == []
    assert tf.global_variables() == statistics


@VARIABLE_KINDS
def test_variables_are_of_the_kind_that_the_scope_asks_for(graph, variable_kind):
    statistics = averages.create([3], tf.float32)[2:]
    assert [averages.is_ref_variable(variable) for variable in statistics] == [variable_kind == "ref"] * 2


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999, 1.0])
@VARIABLE_KINDS
def test_exponential_update_follows_the_recursion(graph, decay, start, random):
    variables = averages.create([2], tf.float64)
    inputs = tf.placeholder(tf.float64, [None, 2])
    mean, variance = tf.nn.moments(inputs, [0])
    update = averages.exponential_average(variables, decay)(mean, variance)

    session, batches = start(), [random.normal(5.0, 2.0, (4, 2)) for _ in range(4)]
    for step, batch in enumerate(batches, 1):
        session.run(update, {inputs: batch})
        expected = oracle.moving(batches[:step], decay)
        np.testing.assert_allclose(session.run(variables.moving_mean), expected[0] + np.zeros(2), rtol=1e-12)
        np.testing.assert_allclose(session.run(variables.moving_variance), expected[1] + np.zeros(2), rtol=1e-12)


@pytest.mark.parametrize("flag_kind", ["placeholder", "constant"])
def test_run_when_runs_the_op_if_the_flag_is_true_and_only_then(graph, flag_kind, start):
    counter = tf.get_variable("counter", [], tf.int32, tf.zeros_initializer())

    def gated(value):
        flag = tf.constant(value) if flag_kind == "constant" else tf.placeholder_with_default(value, None)
        return averages.run_when(flag, lambda: [tf.assign_add(counter, 1).op, tf.no_op()], [counter])

    if_true, if_false = gated(True), gated(False)
    session = start()
    for runs in range(1, 4):
        session.run(if_false)
        assert session.run(counter) == runs - 1
        session.run(if_true)
        assert session.run(counter) == runs


def test_run_when_is_done_before_what_depends_on_it(graph, start):
    counter = tf.get_variable("counter", [], tf.int32, tf.zeros_initializer())
    flag = tf.placeholder(tf.bool, [])
    gate = averages.run_when(flag, lambda: [tf.assign_add(counter, 1).op, tf.no_op()], [counter])
    with tf.control_dependencies(gate):
        after = counter.read_value() + 0
    session = start()
    for runs in range(1, 10):
        assert session.run(after, {flag: True}) == runs
        assert session.run(after, {flag: False}) == runs


def _two_layers():
    inputs = tf.placeholder(tf.float32, [None, 3], name="inputs")
    hidden = batch_norm.batch_norm_wrapper(inputs, True, name="first")
    return batch_norm.batch_norm_wrapper(hidden, True, name="second")


LISTED = ["first/moving_mean", "first/moving_variance", "second/moving_mean", "second/moving_variance"]


def test_moving_statistics_lists_every_layer_in_order_of_creation(plain_graph):
    tf.get_variable("weights", [3])
    _two_layers()
    assert [variable.op.name for variable in averages.moving_statistics()] == LISTED
    assert [variable.op.name for variable in averages.moving_statistics(plain_graph)] == LISTED


def test_moving_statistics_reads_the_graph_that_it_is_given_and_finds_none_in_an_empty_one(plain_graph):
    _two_layers()
    with tf.Graph().as_default() as other:
        assert averages.moving_statistics() == []
        assert averages.moving_statistics(other) == []
        assert len(averages.moving_statistics(plain_graph)) == 4


@pytest.mark.filterwarnings("ignore:.*tf.layers.batch_normalization. is deprecated:UserWarning")
def test_moving_statistics_lists_those_of_tf_layers(plain_graph):
    legacy_layers().batch_normalization(tf.zeros([2, 3]), training=True, name="theirs")
    names = [variable.op.name for variable in averages.moving_statistics()]
    assert names == ["theirs/moving_mean", "theirs/moving_variance"]


@pytest.mark.parametrize("import_scope", [None, "imported"])
@VARIABLE_KINDS
def test_moving_statistics_survive_export_and_import_of_a_meta_graph(graph, import_scope, tmp_path):
    _two_layers()
    path = str(tmp_path / "exported.meta")
    tf.train.export_meta_graph(path)
    prefix = f"{import_scope}/" if import_scope else ""
    with tf.Graph().as_default():
        tf.train.import_meta_graph(path, import_scope=import_scope)
        assert [variable.op.name for variable in averages.moving_statistics()] == [prefix + name for name in LISTED]


@VARIABLE_KINDS
def test_a_layer_added_to_an_imported_graph_is_listed_with_those_of_before(graph, tmp_path):
    _two_layers()
    path = str(tmp_path / "exported.meta")
    tf.train.export_meta_graph(path)
    with tf.Graph().as_default() as imported:
        tf.train.import_meta_graph(path)
        batch_norm.batch_norm_wrapper(tf.zeros([2, 3]), True, name="third")
        names = [variable.op.name for variable in averages.moving_statistics()]
        assert names == [*LISTED, "third/moving_mean", "third/moving_variance"]
        tf.train.export_meta_graph(path)  # strings of the import (bytes) and of the new layer export together
        assert len(imported.get_collection(averages.MOVING_STATISTICS)) == 6
    with tf.Graph().as_default():
        tf.train.import_meta_graph(path)
        assert len(averages.moving_statistics()) == 6


def test_statistics_are_registered_once_where_a_scope_is_reused(graph):
    for reuse in (False, True, tf.AUTO_REUSE):
        with tf.variable_scope("shared", reuse=reuse):
            averages.create([3], tf.float32)
    assert graph.get_collection(averages.MOVING_STATISTICS) == ["shared/moving_mean", "shared/moving_variance"]
    assert len(averages.moving_statistics()) == 2
