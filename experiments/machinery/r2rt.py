"""r2rt's second network as the document has it: its wrapper, its loss, and the bias that it leaves out.

`bn_graph.build_graph` is the library's form of it. Only the names of the variables, and a count of steps, are added.
"""

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery.classifiers import layer_sizes, placeholders, variable

__all__ = [
    "BATCH_SIZE",
    "DECAY",
    "EPSILON",
    "HIDDEN_UNITS",
    "LEARNING_RATE",
    "documents_network",
    "documents_wrapper",
    "first_weights",
]

# The document's. Its rate is of the summed loss, so 0.6 of the mean over the batch.
HIDDEN_UNITS, BATCH_SIZE, LEARNING_RATE = (100, 100), 60, 0.01
EPSILON, DECAY = 1e-3, 0.999


def first_weights(dataset: bn_graph.Dataset, seed: int) -> list[np.ndarray]:
    """Drawn from N(0, 1), as the document's."""
    return bn_graph.normal_weights(layer_sizes(dataset, HIDDEN_UNITS), seed)


def documents_wrapper(inputs, is_training, name):
    """The document's wrapper: assigns that the output depends on. The variables are named as the library's are."""
    units = inputs.shape.as_list()[-1]
    ones, zeros = tf.ones_initializer(), tf.zeros_initializer()
    with tf.variable_scope(name):
        gamma = tf.get_variable("gamma", [units], initializer=ones)
        beta = tf.get_variable("beta", [units], initializer=zeros)
        pop_mean = tf.get_variable("moving_mean", [units], initializer=zeros, trainable=False)
        pop_var = tf.get_variable("moving_variance", [units], initializer=ones, trainable=False)
        if not is_training:
            return tf.nn.batch_normalization(inputs, pop_mean, pop_var, beta, gamma, EPSILON)
        mean, var = tf.nn.moments(inputs, [0])
        train_mean = tf.assign(pop_mean, pop_mean * DECAY + mean * (1 - DECAY))
        train_var = tf.assign(pop_var, pop_var * DECAY + var * (1 - DECAY))
        with tf.control_dependencies([train_mean, train_var]):
            return tf.nn.batch_normalization(inputs, mean, var, beta, gamma, EPSILON)


def documents_network(is_training, weights, b3_used=False):
    """The document's `build_graph`: it makes b3 and leaves it out, and its loss takes the logarithm of the softmax."""
    x, y_ = placeholders((len(weights[0]), classes := weights[-1].shape[1]))
    layer = x
    for number, initial in enumerate(weights[:-1], start=1):
        z = tf.matmul(layer, variable(f"w{number}", initial))
        layer = tf.nn.sigmoid(documents_wrapper(z, is_training, f"bn{number}"))
    last = len(weights)
    b3 = variable(f"b{last}", np.zeros(classes, np.float32))
    logits = tf.matmul(layer, variable(f"w{last}", weights[-1])) + (b3 if b3_used else 0.0)
    y = tf.nn.softmax(logits)
    cross_entropy = -tf.reduce_sum(y_ * tf.log(y))
    global_step = tf.train.get_or_create_global_step()
    train_step = tf.train.GradientDescentOptimizer(LEARNING_RATE).minimize(cross_entropy, global_step)
    correct = tf.equal(tf.argmax(y, 1), tf.argmax(y_, 1))
    share = tf.reduce_mean(tf.cast(correct, tf.float32), name="accuracy")
    return bn_graph.Network(x, y_, logits, tf.argmax(y, 1), correct, share, cross_entropy, train_step, global_step)
