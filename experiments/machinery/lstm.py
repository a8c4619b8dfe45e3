"""The networks of `recurrent`: images as sequences, and an LSTM or the BN-LSTM that reads them to the end."""

from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.layers.recurrent import BatchNormLSTMCell
from bn_graph.tf1 import tf
from experiments.machinery.classifiers import accuracy, losses, variable

__all__ = [
    "BATCH_SIZE",
    "DECAY",
    "EPSILON",
    "SETTINGS",
    "UNITS",
    "Cell",
    "Network",
    "as_sequences",
    "bn_lstm",
    "build_network",
    "first_weights",
    "sequences",
]

# The paper's, and of its code: RMSProp, clipped at 1.
UNITS, BATCH_SIZE = 100, 100
LEARNING_RATE, MOMENTUM, CLIP, RMS_DECAY = 1e-3, 0.9, 1.0, 0.9
# The library's; the memory is ten batches.
EPSILON, DECAY = 1e-3, 0.9
PERMUTATION_SEED = 1
# What kept work depends on.
SETTINGS = {
    "units": UNITS,
    "batch": BATCH_SIZE,
    "optimizer": [LEARNING_RATE, MOMENTUM, CLIP, RMS_DECAY],
    "layer": [EPSILON, DECAY],
}


class Cell(NamedTuple):
    """`gamma` is None for an LSTM without batch norm; `noise` is the standard deviation in the first state."""

    gamma: float | None
    noise: float


class Network(NamedTuple):
    x: tf.Tensor
    labels: tf.Tensor
    loss: tf.Tensor
    accuracy: tf.Tensor
    train_op: tf.Operation | None


def sequences(images: np.ndarray, task: str) -> np.ndarray:
    """Flat square images as ``[n, steps, inputs]``: rows, all pixels, or pixels averaged by 2×2, in order or permuted."""
    side = int(np.sqrt(images.shape[1]))
    if task in ("rows", "all pixels"):
        return images.reshape(-1, *((side, side) if task == "rows" else (side * side, 1)))
    half = side // 2
    pixels = images.reshape(-1, half, 2, half, 2).mean((2, 4)).reshape(-1, half * half, 1)
    if task == "permuted pixels":
        pixels = pixels[:, np.random.RandomState(PERMUTATION_SEED).permutation(half * half)]
    return pixels


def as_sequences(dataset: bn_graph.Dataset, task: str) -> bn_graph.Dataset:
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    made = {name: split._replace(images=sequences(split.images, task)) for name, split in splits.items()}
    return dataset._replace(**made)


def first_weights(inputs: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    """As the paper's code: orthogonal; hidden to candidate the identity. Gates in the cell's order f, i, o, g."""
    generator = np.random.RandomState(seed)

    def orthogonal(rows: int, columns: int) -> np.ndarray:
        u, _, v = np.linalg.svd(generator.normal(size=(rows, columns)), full_matrices=False)
        return (u if u.shape == (rows, columns) else v).astype(np.float32)

    recurrent = np.concatenate([orthogonal(UNITS, 3 * UNITS), np.eye(UNITS, dtype=np.float32)], axis=1)
    return {"input": orthogonal(inputs, 4 * UNITS), "recurrent": recurrent, "head": orthogonal(UNITS, classes)}


def bn_lstm(steps: int, training: bool, weights: dict[str, np.ndarray], **options) -> BatchNormLSTMCell:
    initializers = {f"{name}_initializer": tf.constant_initializer(weights[name]) for name in ("input", "recurrent")}
    return BatchNormLSTMCell(UNITS, training, max_steps=steps, **initializers, **options)


def last_hidden(x: tf.Tensor, variant: Cell, training: bool, weights: dict[str, np.ndarray], seed: int) -> tf.Tensor:
    if variant.gamma is None:
        forget, write, read, candidate = np.split(np.concatenate([weights["input"], weights["recurrent"]]), 4, axis=1)
        kernel = np.concatenate([write, candidate, forget, read], axis=1)  # tf's order
        cell = tf.nn.rnn_cell.LSTMCell(UNITS, initializer=tf.constant_initializer(kernel))  # its forget bias is 1 too
        return tf.nn.dynamic_rnn(cell, x, dtype=tf.float32)[1].h
    cell = bn_lstm(x.shape.as_list()[1], training, weights, gamma=variant.gamma, decay=DECAY, epsilon=EPSILON)
    state = cell.zero_state(BATCH_SIZE if training else tf.shape(x)[0])
    if training and variant.noise:
        # As cell.noisy_state, with a draw that the seed and the step decide and not the session.
        at = tf.stack([tf.constant(seed, tf.int64), tf.train.get_or_create_global_step()])
        state = state._replace(h=tf.random.stateless_normal([BATCH_SIZE, UNITS], at, stddev=variant.noise))
    return tf.nn.dynamic_rnn(cell, x, initial_state=state)[1].h


def build_network(shape: tuple[int, int], variant: Cell, training: bool, seed: int, classes: int = 10) -> Network:
    batch = BATCH_SIZE if training else None  # of a known size the gradients have fewer ops, at each step of a sequence
    x, labels = tf.placeholder(tf.float32, [batch, *shape]), tf.placeholder(tf.float32, [batch, classes])
    weights = first_weights(shape[1], classes, seed)
    hidden = last_hidden(x, variant, training, weights, seed)
    logits = hidden @ variable("head", weights["head"]) + variable("head_bias", np.zeros(classes, np.float32))
    loss, train_op = tf.reduce_mean(losses(logits, labels)), None
    if training:
        optimizer = tf.train.RMSPropOptimizer(LEARNING_RATE, RMS_DECAY, MOMENTUM)
        gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
        clipped, _ = tf.clip_by_global_norm(gradients, CLIP)
        count = tf.train.get_or_create_global_step()
        train_op = optimizer.apply_gradients(zip(clipped, variables, strict=True), global_step=count)
    return Network(x, labels, loss, accuracy(logits, labels), train_op)
