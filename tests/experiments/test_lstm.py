"""The fast reading of sequences in training, against `tf.nn.dynamic_rnn` with TensorFlow's cell and with the library's."""

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf
from experiments.machinery import lstm
from experiments.machinery.classifiers import losses

STEPS, INPUTS, CLASSES, SEED = 6, 3, 10, 5
# The last of each has no noise, so that inference begins as training does.
CELLS = {"LSTM": [lstm.Cell(None, 0.0)], "BN-LSTM": [lstm.Cell(0.1, 0.1), lstm.Cell(1.0, 0.0)]}


def loss_by_dynamic_rnn(x, labels, batch_norm):
    """Of the network whose variables are there."""
    with tf.variable_scope("", reuse=True):
        if batch_norm:
            cell = bn_graph.BatchNormLSTMCell(lstm.UNITS, True, STEPS, decay=lstm.DECAY, epsilon=lstm.EPSILON)
            at = tf.stack([tf.constant(SEED, tf.int64), tf.train.get_global_step()])
            noise = tf.get_variable("noise") * tf.random.stateless_normal([lstm.BATCH_SIZE, lstm.UNITS], at)
            state = cell.zero_state(lstm.BATCH_SIZE)._replace(h=noise)
        else:
            cell = tf.nn.rnn_cell.LSTMCell(lstm.UNITS)
            state = cell.zero_state(lstm.BATCH_SIZE, tf.float32)
        hidden = tf.nn.dynamic_rnn(cell, x, initial_state=state)[1].h
        logits = hidden @ tf.get_variable("head") + tf.get_variable("head_bias")
        return tf.reduce_mean(losses(logits, labels))


@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS)
def test_loss_gradients_and_moving_statistics_are_dynamic_rnn_s_and_inference_reads_them(cells):
    random, batch_norm = np.random.RandomState(0), cells[0].gamma is not None
    x = random.uniform(size=(lstm.BATCH_SIZE, STEPS, INPUTS)).astype(np.float32)
    labels = np.eye(CLASSES, dtype=np.float32)[random.randint(CLASSES, size=lstm.BATCH_SIZE)]
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network, inference = lstm.build_networks((STEPS, INPUTS), batch_norm=batch_norm)
        reference = loss_by_dynamic_rnn(network.x, network.labels, batch_norm)
        trained, statistics = tf.trainable_variables(), bn_graph.moving_statistics()
        wanted, got = ([loss, *tf.gradients(loss, trained)] for loss in (reference, network.loss))
        feed = {network.x: x, network.labels: labels}
        for cell in cells:
            lstm.initialize(session, network, cell, SEED)
            for _ in range(3):
                before = session.run(statistics)
                expected = [*session.run(wanted, feed), *session.run(statistics)]
                assign_values(session, zip(statistics, before, strict=True))
                computed = [*session.run(got, feed), *session.run(statistics)]
                for of_reference, value in zip(expected, computed, strict=True):
                    # Six time steps in float32, each of which rounds sums of a hundred values.
                    np.testing.assert_allclose(value, of_reference, rtol=0, atol=1e-5 * np.abs(of_reference).max())
                session.run(network.train_op, feed)
            assert all(np.abs(value).max() > 0 for value in expected)
        # Once the statistics are those of one batch, inference gives it the loss that it has in training.
        for _ in range(80):  # of the start 0.8^80 = 2·10⁻⁸ is left
            loss = session.run(network.loss, feed)
        assert session.run(inference.loss, {inference.x: x, inference.labels: labels}) == pytest.approx(loss, rel=1e-5)
