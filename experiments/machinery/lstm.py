"""The networks of `recurrent`: images as sequences, and an LSTM or the BN-LSTM that reads them to the end.

They are scored through `tf.nn.dynamic_rnn`, with TensorFlow's cell or the library's, and trained on the same variables by
what computes the same faster: the LSTM by TensorFlow's kernel for whole sequences, ``BlockLSTM``; the BN-LSTM by a loop
forward and a loop backward that XLA compiles, with the gradient of a step written out (`read_in_training`). Of
`dynamic_rnn` itself XLA can't compile the gradients. tests/experiments/test_lstm.py compares both with `dynamic_rnn`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.layers import averages, moments
from bn_graph.layers.moments import BatchStatistics
from bn_graph.layers.recurrent import BatchNormLSTMCell
from bn_graph.tf1 import tf
from experiments.machinery.classifiers import accuracy, losses

__all__ = [
    "BATCH_SIZE",
    "DECAY",
    "EPSILON",
    "SETTINGS",
    "UNITS",
    "Cell",
    "Network",
    "as_sequences",
    "build_networks",
    "first_weights",
    "initialize",
    "sequences",
]

# The paper's, and of its code: RMSProp, clipped at 1.
UNITS, BATCH_SIZE = 100, 100
LEARNING_RATE, MOMENTUM, CLIP, RMS_DECAY = 1e-3, 0.9, 1.0, 0.9
# The library's; the memory is five batches.
EPSILON, DECAY = 1e-3, 0.8
PERMUTATION_SEED = 1
# Variable scope of the library's cell in `dynamic_rnn`.
_CELL = "rnn/bn_lstm_cell"
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
    initializer: tf.Operation | None


def sequences(images: np.ndarray, task: str) -> np.ndarray:
    """Flat square images as ``[n, steps, inputs]``: rows, or pixels, in order or permuted."""
    if task == "rows":
        side = int(np.sqrt(images.shape[1]))
        return images.reshape(-1, side, side)
    if task == "permuted pixels":
        images = images[:, np.random.RandomState(PERMUTATION_SEED).permutation(images.shape[1])]
    return images[:, :, np.newaxis]


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


# --- A network for training and one for inference, on the same variables ----------------------------------------------
def build_networks(shape: tuple[int, int], *, batch_norm: bool, classes: int = 10) -> tuple[Network, Network]:
    """For training and for inference, with one set of variables, which `initialize` gives their first values.

    One graph serves all first values and seeds, so that XLA compiles once.
    """
    count = tf.train.get_or_create_global_step()
    x, labels = tf.placeholder(tf.float32, [None, *shape]), tf.placeholder(tf.float32, [None, classes])
    cell = BatchNormLSTMCell(UNITS, False, shape[0], epsilon=EPSILON) if batch_norm else tf.nn.rnn_cell.LSTMCell(UNITS)
    inference = _with_head(x, labels, tf.nn.dynamic_rnn(cell, x, dtype=tf.float32)[1].h)
    x, labels = tf.placeholder(tf.float32, [BATCH_SIZE, *shape]), tf.placeholder(tf.float32, [BATCH_SIZE, classes])
    with tf.variable_scope("", reuse=True):
        read = _bn_lstm_in_training if batch_norm else _lstm_in_training
        training = _with_head(x, labels, read(tf.transpose(x, [1, 0, 2])))
    optimizer = tf.train.RMSPropOptimizer(LEARNING_RATE, RMS_DECAY, MOMENTUM)
    gradients, variables = zip(*optimizer.compute_gradients(training.loss), strict=True)
    clipped, _ = tf.clip_by_global_norm(gradients, CLIP)
    train_op = optimizer.apply_gradients(zip(clipped, variables, strict=True), global_step=count)
    return training._replace(train_op=train_op, initializer=tf.global_variables_initializer()), inference


def initialize(session: tf.Session, network: Network, cell: Cell, seed: int) -> None:
    """Gives all variables their first values; `network` is the one for training."""
    session.run(network.initializer)
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    weights = first_weights(network.x.shape[2], network.labels.shape[1], seed)
    values = {"head": weights["head"]}
    if cell.gamma is None:
        forget, write, read, candidate = np.split(np.concatenate([weights["input"], weights["recurrent"]]), 4, axis=1)
        values["rnn/lstm_cell/kernel"] = np.concatenate([write, candidate, forget, read], axis=1)  # tf's order
    else:
        values |= {f"{_CELL}/{name}_kernel": weights[name] for name in ("input", "recurrent")}
        gammas = [layer.gamma for layer in bn_graph.batch_norm_layers().values()]
        values |= {gamma.op.name: np.full(gamma.shape, cell.gamma) for gamma in gammas}
        values |= {"noise": cell.noise, "noise_seed": seed}
    assign_values(session, [(variables[name], value) for name, value in values.items()])


def _with_head(x: tf.Tensor, labels: tf.Tensor, hidden: tf.Tensor) -> Network:
    classes = labels.shape[1]
    logits = hidden @ tf.get_variable("head", [UNITS, classes])
    logits += tf.get_variable("head_bias", [classes], initializer=tf.zeros_initializer())
    return Network(x, labels, tf.reduce_mean(losses(logits, labels)), accuracy(logits, labels), None, None)


def _lstm_in_training(x: tf.Tensor) -> tf.Tensor:
    """The last hidden state of TensorFlow's LSTM from a state of zeros; `x` ``[steps, batch, inputs]``."""
    kernel, bias = (tf.get_variable(f"rnn/lstm_cell/{name}") for name in ("kernel", "bias"))
    zeros, unused = tf.zeros([BATCH_SIZE, UNITS]), tf.zeros([UNITS])
    peepholes = {"wci": unused, "wcf": unused, "wco": unused}
    options = {"forget_bias": 1.0, "cell_clip": -1.0}  # as the cell: it adds 1, and clips nothing
    steps = tf.constant(x.shape[0], tf.int64)
    return tf.raw_ops.BlockLSTM(
        seq_len_max=steps, x=x, cs_prev=zeros, h_prev=zeros, w=kernel, b=bias, **peepholes, **options
    ).h[-1]


def _bn_lstm_in_training(x: tf.Tensor) -> tf.Tensor:
    """The last hidden state of the library's BN-LSTM, which moves its statistics; `x` ``[steps, batch, inputs]``."""
    layers = bn_graph.batch_norm_layers()
    of_x, of_h, of_c = (layers[f"{_CELL}/{name}"] for name in ("bn_x", "bn_h", "bn_c"))
    trained = [tf.get_variable(f"{_CELL}/{name}") for name in ("input_kernel", "recurrent_kernel", "bias")]
    trained += [of_x.gamma, of_h.gamma, of_c.gamma, of_c.beta]
    with tf.variable_scope("", reuse=tf.AUTO_REUSE):
        noise = tf.get_variable("noise", [], initializer=tf.zeros_initializer(), trainable=False)
        seed = tf.get_variable("noise_seed", [], tf.int64, tf.zeros_initializer(), trainable=False)
    # As cell.noisy_state, with a draw that the seed and the step decide and not the session.
    draw = tf.random.stateless_normal([BATCH_SIZE, UNITS], tf.stack([seed, tf.train.get_or_create_global_step()]))
    last, kept = read_in_training(x, noise * draw, Weights(*(tf.convert_to_tensor(each) for each in trained)))
    statistics = (kept.mean_x, kept.variance_x), (kept.mean_h, kept.variance_h), (kept.mean_c, kept.variance_c)
    updates = []
    for layer, of_batch in zip((of_x, of_h, of_c), statistics, strict=True):
        updates += averages.exponential_average(layer, DECAY)(*(tf.squeeze(each, 1) for each in of_batch))
    with tf.control_dependencies(updates):
        return tf.identity(last)


# --- The BN-LSTM in training: two loops over the time steps, which XLA compiles ---------------------------------------
class Weights(NamedTuple):
    """Values of what a BN-LSTM trains."""

    input_kernel: tf.Tensor
    recurrent_kernel: tf.Tensor
    bias: tf.Tensor
    gamma_x: tf.Tensor
    gamma_h: tf.Tensor
    gamma_c: tf.Tensor
    beta_c: tf.Tensor


class Kept(NamedTuple):
    """Of every step, for the way back: what it began with, h·W_h less its mean, and the batch's statistics."""

    h: tf.Tensor
    c: tf.Tensor
    centered: tf.Tensor
    mean_x: tf.Tensor
    variance_x: tf.Tensor
    mean_h: tf.Tensor
    variance_h: tf.Tensor
    mean_c: tf.Tensor
    variance_c: tf.Tensor


def read_in_training(x: tf.Tensor, h: tf.Tensor, weights: Weights) -> tuple[tf.Tensor, Kept]:
    """The last hidden state, which has gradients in the weights alone; and what was kept of every step.

    Args:
        x: ``[steps, batch, inputs]``, of known shape.
        h: the first hidden state, ``[batch, units]``; the first c is 0.
        weights: those of a `BatchNormLSTMCell`.
    """

    @tf.custom_gradient
    def read(*weights: tf.Tensor) -> tuple[Sequence[tf.Tensor], Callable]:
        outputs = tf.function(_forward, jit_compile=True, autograph=False)(x, h, *weights)

        def gradients(received: tf.Tensor, *_) -> Sequence[tf.Tensor]:
            return tf.function(_backward, jit_compile=True, autograph=False)(x, received, *outputs[1:], *weights)

        return outputs, gradients

    last, *kept = read(*weights)
    return last, Kept(*kept)


def _forward(x: tf.Tensor, h: tf.Tensor, *weights: tf.Tensor) -> list[tf.Tensor]:
    weights = Weights(*weights)
    steps, channels = x.shape[0], 4 * UNITS
    rows = [UNITS] * 2 + [channels]
    shapes = [[BATCH_SIZE, size] for size in rows] + [[1, size] for size in [channels] * 4 + [UNITS] * 2]
    series = [tf.TensorArray(tf.float32, steps, element_shape=shape) for shape in shapes]

    def step(number, h, c, *series):
        inputs = _statistics(x[number] @ weights.input_kernel)
        hidden = _statistics(h @ weights.recurrent_kernel)
        *_, read, new_c = _gates(inputs, hidden, c, weights)
        cell = _statistics(new_c)
        kept = [h, c, hidden.centered, *inputs[1:3], *hidden[1:3], *cell[1:3]]
        written = [each.write(number, value) for each, value in zip(series, kept, strict=True)]
        out = tf.tanh(moments.normalize(cell.centered, cell.variance, weights.gamma_c, weights.beta_c, EPSILON))
        return read * out, new_c, *written

    last, _, *series = _loop(steps, step, [h, tf.zeros_like(h), *series])
    return [last, *(each.stack() for each in series)]


def _backward(x: tf.Tensor, received: tf.Tensor, *kept_and_weights: tf.Tensor) -> list[tf.Tensor]:
    """The gradients of the weights, in their order: step by step from the last, each from what was kept of it."""
    kept, weights = Kept(*kept_and_weights[: len(Kept._fields)]), Weights(*kept_and_weights[len(Kept._fields) :])
    steps, count = x.shape[0], tf.constant(float(BATCH_SIZE))
    transposed = tf.transpose(weights.recurrent_kernel)

    def step(taken, of_h, of_c, of_products, *sums):
        number = steps - 1 - taken
        now = Kept(*(each[number] for each in kept))
        centered = x[number] @ weights.input_kernel - now.mean_x
        inputs = BatchStatistics(centered, now.mean_x, now.variance_x, count)
        hidden = BatchStatistics(now.centered, now.mean_h, now.variance_h, count)
        forget, write, candidate, read, new_c = _gates(inputs, hidden, now.c, weights)
        cell = BatchStatistics(new_c - now.mean_c, now.mean_c, now.variance_c, count)
        out = tf.tanh(moments.normalize(cell.centered, cell.variance, weights.gamma_c, weights.beta_c, EPSILON))
        of_out = of_h * read * (1.0 - out * out)
        of_cell, gamma_c, beta_c = moments.normalize_gradients(of_out, cell, weights.gamma_c, EPSILON, [0])
        of_c += of_cell
        of_gates = [
            of_c * now.c * forget * (1.0 - forget),
            of_c * candidate * write * (1.0 - write),
            of_h * out * read * (1.0 - read),
            of_c * write * (1.0 - candidate * candidate),
        ]
        of_gates = tf.concat(of_gates, 1)
        of_hidden, gamma_h, bias = moments.normalize_gradients(of_gates, hidden, weights.gamma_h, EPSILON, [0])
        of_inputs, gamma_x, _ = moments.normalize_gradients(of_gates, inputs, weights.gamma_x, EPSILON, [0])
        of_step = [tf.matmul(x[number], of_inputs, transpose_a=True), bias, gamma_x, gamma_h, gamma_c, beta_c]
        sums = [total + value for total, value in zip(sums, of_step, strict=True)]
        return of_hidden @ transposed, of_c * forget, of_products.write(number, of_hidden), *sums

    of_products = tf.TensorArray(tf.float32, steps, element_shape=[BATCH_SIZE, 4 * UNITS])
    sums = [tf.zeros_like(weights.input_kernel), *(tf.zeros_like(each)[tf.newaxis] for each in weights[2:])]
    start = [received, tf.zeros_like(received), of_products, *sums]
    _, _, of_products, of_input_kernel, *of_rows = _loop(steps, step, start)
    # One product over all steps, in place of one at each.
    of_products = tf.reshape(of_products.stack(), [-1, 4 * UNITS])
    of_recurrent_kernel = tf.matmul(tf.reshape(kept.h, [-1, UNITS]), of_products, transpose_a=True)
    return [of_input_kernel, of_recurrent_kernel, *(tf.squeeze(row, 0) for row in of_rows)]


def _statistics(values: tf.Tensor) -> BatchStatistics:
    """Of values around 0 and a hundred examples; `moments.batch_statistics` bears any, and takes twice the time here."""
    mean = tf.reduce_mean(values, 0, keepdims=True)
    centered = values - mean
    variance = tf.reduce_mean(tf.square(centered), 0, keepdims=True)
    return BatchStatistics(centered, mean, variance, tf.constant(float(BATCH_SIZE)))


def _gates(inputs: BatchStatistics, hidden: BatchStatistics, c: tf.Tensor, weights: Weights) -> tuple[tf.Tensor, ...]:
    """The gates f, i, the candidate g, the gate o, and the new c."""
    total = moments.normalize(inputs.centered, inputs.variance, weights.gamma_x, None, EPSILON) + weights.bias
    total += moments.normalize(hidden.centered, hidden.variance, weights.gamma_h, None, EPSILON)
    forget, write, read = tf.split(tf.sigmoid(total[:, : 3 * UNITS]), 3, axis=1)
    candidate = tf.tanh(total[:, 3 * UNITS :])
    return forget, write, candidate, read, forget * c + write * candidate


def _loop(steps: int, step: Callable, start: list) -> list:
    """What is left of `start` after `steps` steps: each takes its number, from 0 on, and the values, and returns new ones."""

    def body(number: tf.Tensor, *values) -> tuple:
        return number + 1, *step(number, *values)

    _, *values = tf.while_loop(
        lambda number, *_: number < steps,
        body,
        [tf.constant(0), *start],
        maximum_iterations=steps,
        parallel_iterations=1,
        back_prop=False,
    )
    return values
