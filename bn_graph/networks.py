"""The documents' networks, built for one mode at a time or for both.

`build_graph` is r2rt's fully connected network: inputs–100–100–10, sigmoids, weights drawn from N(0, 1), summed
cross-entropy, gradient descent. Whatever stands before the activations is handed in as `normalizer`, so that the
same graph can be had with `batch_norm_wrapper`, with biases only, or with a form of an experiment's own.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.layers.batch_norm import batch_norm_wrapper
from bn_graph.tf1 import tf

__all__ = ["Network", "build_graph", "normal_weights"]

Normalizer = Callable[..., tf.Tensor]


class Network(NamedTuple):
    """The tensors and ops of one network that a caller runs.

    ``x`` float32 [batch, inputs], ``y_`` float32 one-hot [batch, classes], ``logits`` [batch, classes], ``prediction``
    int64 [batch], ``correct`` bool [batch], ``accuracy`` and ``loss`` scalars, ``train_op``, ``global_step``.
    """

    x: tf.Tensor
    y_: tf.Tensor
    logits: tf.Tensor
    prediction: tf.Tensor
    correct: tf.Tensor
    accuracy: tf.Tensor
    loss: tf.Tensor
    train_op: tf.Operation | None
    global_step: tf.Variable


def normal_weights(layer_sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """N(0, 1) weights for each pair of neighbouring layers, drawn in order; the same for every network that shares them.

    Args:
        layer_sizes: units of the inputs, each hidden layer and the outputs.
        seed: of NumPy's generator.

    Returns:
        float32 arrays of shape ``[layer_sizes[i], layer_sizes[i + 1]]``.

    Example:
        >>> from bn_graph import normal_weights
        >>> [weights.shape for weights in normal_weights([64, 100, 10], seed=0)]
        [(64, 100), (100, 10)]
    """
    generator = np.random.default_rng(seed)
    return [
        generator.standard_normal((rows, columns)).astype(np.float32)
        for rows, columns in itertools.pairwise(layer_sizes)
    ]


def build_graph(
    is_training: bool | tf.Tensor,
    weights: Sequence[np.ndarray] | None = None,
    *,
    normalizer: Normalizer | None = batch_norm_wrapper,
    learning_rate: float = 0.01,
) -> Network:
    """Builds r2rt's network in the default graph, for training or for inference.

    Args:
        is_training: passed to `normalizer`. With ``False`` no train op is made.
        weights: initial weights, one array per layer; `normal_weights` of 784-100-100-10 with seed 0 if None. At
            inference only their shapes matter, since the values come from a checkpoint.
        normalizer: called as ``normalizer(z, is_training, name="bn1")`` on the weighted sum of each hidden layer, which
            then has no bias (beta does that); None gives each hidden layer a bias and no batch norm.
        learning_rate: of gradient descent on the *summed* cross-entropy, so that the step grows with the batch.

    Returns:
        A `Network`. Variables: ``w1``, ``w2``, …, one bias ``b<last>`` for the logits, what `normalizer` makes in the
        scopes ``bn1``, ``bn2``, …, and ``global_step``. Every name is given, so the training graph and the inference
        graph agree whatever else their graphs hold.

    Differences from the document, each with its reason: the loss is ``softmax_cross_entropy_with_logits`` (its own,
    −Σ y·log(softmax), turns into NaN once a probability underflows); the last bias is used (the document makes one in
    ``build_graph`` and leaves it out); variables have names; with ``is_training=False`` there is no train op.

    Source: r2rt, ``build_graph``.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     network = bn_graph.build_graph(True, bn_graph.normal_weights([64, 100, 100, 10], seed=0))
        ...     [variable.op.name for variable in tf.trainable_variables()]
        ['w1', 'bn1/gamma', 'bn1/beta', 'w2', 'bn2/gamma', 'bn2/beta', 'w3', 'b3']
    """
    if weights is None:
        weights = normal_weights((784, 100, 100, 10), seed=0)
    x = tf.placeholder(tf.float32, [None, weights[0].shape[0]], name="x")
    y_ = tf.placeholder(tf.float32, [None, weights[-1].shape[1]], name="y_")

    layer = x
    for number, initial in enumerate(weights[:-1], start=1):
        z = tf.matmul(layer, _variable(f"w{number}", initial))
        layer = tf.nn.sigmoid(_shifted(z, number, is_training, normalizer))
    last = len(weights)
    logits = tf.matmul(layer, _variable(f"w{last}", weights[-1])) + _bias(last, weights[-1].shape[1])

    loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits_v2(labels=y_, logits=logits), name="loss")
    prediction = tf.argmax(logits, 1, name="prediction")
    correct = tf.equal(prediction, tf.argmax(y_, 1), name="correct")
    accuracy = tf.reduce_mean(tf.cast(correct, tf.float32), name="accuracy")
    global_step = tf.train.get_or_create_global_step()
    train_op = None
    if is_training is not False:
        train_op = tf.train.GradientDescentOptimizer(learning_rate).minimize(loss, global_step)
    return Network(x, y_, logits, prediction, correct, accuracy, loss, train_op, global_step)


def _shifted(z: tf.Tensor, number: int, is_training: bool | tf.Tensor, normalizer: Normalizer | None) -> tf.Tensor:
    """What goes into hidden layer `number`'s activation: the normalized sum, or the sum and a bias."""
    if normalizer is None:
        return z + _bias(number, z.shape.as_list()[1])
    return normalizer(z, is_training, name=f"bn{number}")


def _bias(number: int, units: int) -> tf.Variable:
    return tf.get_variable(f"b{number}", [units], initializer=tf.zeros_initializer())


def _variable(name: str, initial: np.ndarray) -> tf.Variable:
    return tf.get_variable(name, initial.shape, initializer=tf.constant_initializer(initial))
