"""What the experiments' small classifiers share: sizes, first weights, placeholders, loss and accuracy.

`bn_graph.build_graph` and `bn_graph.Model` are the documents' networks whole; these parts are for a page that shows
another one.
"""

import itertools
from collections.abc import Sequence

import numpy as np

import bn_graph
from bn_graph.tf1 import tf

__all__ = [
    "accuracy",
    "batches_in_order",
    "first_rows",
    "glorot_weights",
    "layer_sizes",
    "losses",
    "placeholders",
    "variable",
]


def layer_sizes(dataset: bn_graph.Dataset, hidden: Sequence[int]) -> tuple[int, ...]:
    """Pixels of an image, units of the hidden layers, classes."""
    return (dataset.test.images.shape[1], *hidden, dataset.test.labels.shape[1])


def placeholders(sizes: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Images and one-hot labels, float32, of any number of examples."""
    return tf.placeholder(tf.float32, [None, sizes[0]]), tf.placeholder(tf.float32, [None, sizes[-1]])


def glorot_weights(sizes: Sequence[int], seed: int, scale: float = 1.0) -> list[np.ndarray]:
    """Uniform in ±scale·√(6/(rows + columns)), which is tf.layers' default; Glorot & Bengio have 4 for logistic units."""
    generator = np.random.default_rng(seed)
    return [
        generator.uniform(-limit, limit, shape).astype(np.float32)
        for shape in itertools.pairwise(sizes)
        for limit in [scale * np.sqrt(6 / sum(shape))]
    ]


def variable(name: str, initial: np.ndarray) -> tf.Variable:
    """A trainable variable that starts at `initial`."""
    return tf.get_variable(name, initial.shape, initializer=tf.constant_initializer(initial))


def losses(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of each example."""
    return tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits)


def accuracy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Share of the examples whose class is right, a scalar."""
    return tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1)), tf.float32))


def first_rows(size: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """Row numbers of the first `count` batches of a training on `size` examples, ``[count, batch_size]``."""
    rows = bn_graph.training.datasets.batch_rows(size, batch_size, seed=seed)
    return np.stack(list(itertools.islice(rows, count)))


def batches_in_order(split: bn_graph.Split, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The examples in order, in batches of `size`; the ragged rest, of fewer, is left out."""
    starts = range(0, split.size - size + 1, size)
    return [(split.images[start : start + size], split.labels[start : start + size]) for start in starts]
