"""The networks of `higher_learning_rates`: the solver document's and a recurrent one, trained at any rate from any weights.

Rate and mode are fed, so that one graph serves a whole sweep.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import classifiers, harness
from experiments.machinery.classifiers import layer_sizes

__all__ = ["RECURRENT_UNITS", "STRIPS", "Network", "build", "build_recurrent", "initial_weights", "score", "train"]

# Units of the recurrent layer, and about how many strips an image is read in: seven of four rows in MNIST.
RECURRENT_UNITS, STRIPS = 64, 7


class Network(NamedTuple):
    """What is run of a network: `step` trains, at the rate in `rate_in_use`; `layers` are pairs of gamma and beta."""

    x: tf.Tensor
    y_: tf.Tensor
    is_training: tf.Tensor
    rate: tf.Tensor
    rate_in_use: tf.Variable
    accuracy: tf.Tensor
    initializer: tf.Operation
    step: bn_graph.Step
    loops: dict[int, Callable]
    weights: list[tf.Variable]
    sums: list[tf.Tensor]
    layers: list[tuple[tf.Variable, tf.Variable]]


def build(sizes: Sequence[int], form: str, optimizer: str, *, train_weights: bool = True) -> Network:
    """The solver document's network in the default graph. Rate and mode are fed, so that one graph serves a whole sweep."""
    x, y_ = classifiers.placeholders(sizes)
    is_training, rate = tf.placeholder(tf.bool, []), tf.placeholder(tf.float32, [])
    weights, sums, layer = [], [], x
    for number, shape in enumerate(itertools.pairwise(sizes), start=1):
        weights.append(tf.get_variable(f"w{number}", shape, trainable=train_weights))
        bias = tf.get_variable(f"b{number}", shape[1:], initializer=tf.zeros_initializer(), trainable=train_weights)
        weights.append(bias)
        layer = tf.matmul(layer, weights[-2]) + bias
        if number < len(sizes) - 1:
            sums.append(layer)
            if form == "with":
                # tf.layers and not the library's wrapper, which refuses to train on a batch of one.
                layer = legacy_layers().batch_normalization(layer, training=is_training, name=f"bn{number}")
            layer = tf.nn.relu(layer)
    return trained_by(optimizer, layer, x, y_, is_training, rate, weights, sums)


def build_recurrent(dataset: bn_graph.Dataset, form: str, seed: int) -> Network:
    """A plain recurrent layer that reads an image strip by strip, and with batch norm one `tf.layers` layer for all steps."""
    x, y_ = classifiers.placeholders(layer_sizes(dataset, ()))
    is_training, rate = tf.placeholder(tf.bool, []), tf.placeholder(tf.float32, [])
    start = {"kernel_initializer": tf.glorot_uniform_initializer(seed=seed)}
    state = tf.zeros([tf.shape(x)[0], RECURRENT_UNITS])
    rows = dataset.image_shape[0]
    for step, strip in enumerate(tf.split(x, rows // max(rows // STRIPS, 1), axis=1)):
        with tf.variable_scope("cell", reuse=step > 0):
            state = legacy_layers().dense(tf.concat([strip, state], 1), RECURRENT_UNITS, name="sum", **start)
            if form == "with":
                state = legacy_layers().batch_normalization(state, training=is_training, name="bn")
            state = tf.nn.tanh(state)
    logits = legacy_layers().dense(state, y_.shape[1], name="outputs", **start)
    return trained_by("Adam", logits, x, y_, is_training, rate, [], [])


def trained_by(optimizer: str, logits: tf.Tensor, x, y_, is_training, rate, weights: list, sums: list) -> Network:
    """The network of these logits, with its loss and its training step."""
    loss, accuracy = tf.reduce_mean(classifiers.losses(logits, y_)), classifiers.accuracy(logits, y_)
    chosen = {"gradient descent": tf.train.GradientDescentOptimizer, "Adam": tf.train.AdamOptimizer}[optimizer](rate)
    train_op = bn_graph.train_op(chosen, loss)
    named = {variable.op.name: variable for variable in tf.trainable_variables()}
    layers = [(gamma, named[name.replace("gamma", "beta")]) for name, gamma in named.items() if name.endswith("/gamma")]
    initializer = tf.global_variables_initializer()
    rate_in_use = tf.Variable(rate, trainable=False, collections=[], name="rate_in_use")
    step = bn_graph.Step(train_op, x, y_, {is_training: True, rate: rate_in_use})
    # Loops are made once a batch size: TensorFlow optimizes each anew, which takes as long as many steps.
    return Network(x, y_, is_training, rate, rate_in_use, accuracy, initializer, step, {}, weights, sums, layers)


def initial_weights(sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Glorot's uniform weights and zero biases, as tf.layers.dense has them."""
    weights = classifiers.glorot_weights(sizes, seed)
    return [value for each in weights for value in (each, np.zeros(each.shape[1], np.float32))]


def train(
    session: tf.Session,
    network: Network,
    weights: list[np.ndarray],
    dataset: bn_graph.Dataset,
    *,
    batch: int,
    rate: float,
    steps: int,
    seed: int,
    loop: str = "graph",
) -> float:
    """Trains from `weights` on, whatever the session held; returns the accuracy on the test set in inference mode."""
    session.run(network.initializer)
    assign_values(session, zip(network.weights, weights, strict=True))
    session.run(network.rate_in_use.initializer, {network.rate: rate})
    if batch not in network.loops:
        build_loop = harness.LOOPS[loop]
        network.loops[batch] = build_loop(session, network.step, dataset.train, batch_size=batch, seed=0)
    rows = classifiers.first_rows(dataset.train.size, batch, steps, seed)
    for chunk in bn_graph.chunks(0, steps):
        network.loops[batch](chunk.start, chunk.stop, rows[chunk.start : chunk.stop])
    return score(session, network, dataset)


def score(session: tf.Session, network: Network, dataset: bn_graph.Dataset, by_batch: bool = False) -> float:
    """Accuracy on the test set, by moving statistics or by its own. Neither runs an update op: tf.layers' are apart."""
    feeds = {network.x: dataset.test.images, network.y_: dataset.test.labels, network.is_training: by_batch}
    return float(f"{session.run(network.accuracy, feeds):.5g}")
