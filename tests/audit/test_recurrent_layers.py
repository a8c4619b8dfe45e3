"""The audit of recurrent batch norm: statistics in rows, updated inside a loop, both kinds of control flow."""

import bn_graph
from bn_graph.audit import audit
from bn_graph.tf1 import tf

LAYERS = ("bn_c", "bn_h", "bn_x")


def report_on(mode):
    """The audit of a BN-LSTM's graph; one that trains, unless `mode` is False. "fed" is a placeholder."""
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [None, 5, 4], name="x")
        is_training = tf.placeholder(tf.bool, [], name="is_training") if mode == "fed" else mode
        cell = bn_graph.BatchNormLSTMCell(3, is_training, max_steps=5)
        start = cell.noisy_state(tf.shape(x)[0], is_training=is_training)
        _, state = tf.nn.dynamic_rnn(cell, x, initial_state=start)
        logits = tf.matmul(state.h, tf.get_variable("weights", [3, 2]))
        if mode is not False:
            tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(logits))
        return audit(tf.get_default_graph())


def rows_of(report):
    return {row.name.rpartition("/")[2]: (row.training, row.inference, row.updates) for row in report.layers}


def test_a_switched_cell_is_clean_and_all_its_updates_run_in_training_alone(cond_kind):
    report = report_on("fed")
    assert not report.errors
    assert rows_of(report) == dict.fromkeys(LAYERS, ("batch", "population", "2 of 2"))


def test_a_cell_that_only_trains_has_its_updates_and_no_error(cond_kind):
    report = report_on(True)
    assert not report.errors
    assert rows_of(report) == dict.fromkeys(LAYERS, ("batch", "?", "2 of 2"))


def test_a_cell_built_for_inference_uses_population_statistics(cond_kind):
    report = report_on(False)
    assert not report.findings
    assert rows_of(report) == dict.fromkeys(LAYERS, ("population", "population", "none"))


def test_a_cell_built_for_training_and_asked_for_an_output_normalizes_by_the_batch_and_updates(cond_kind):
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [None, 5, 4])
        cell = bn_graph.BatchNormLSTMCell(3, True, max_steps=5)
        _, state = tf.nn.dynamic_rnn(cell, x, initial_state=cell.noisy_state(tf.shape(x)[0], is_training=True))
        tf.identity(state.h, name="prediction")
        report = audit(tf.get_default_graph(), outputs=["prediction"])
    assert {finding.code for finding in report.errors} == {"BN004", "BN005"}
