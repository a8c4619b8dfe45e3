"""Networks that are trained side by side in one graph: built, scored in several ways, and what their curves tell."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery.classifiers import accuracy, losses, variable

__all__ = [
    "EPSILON",
    "FORMS",
    "PERCENTILES",
    "Scored",
    "Tower",
    "build_tower",
    "first_step",
    "jitter",
    "percentiles",
    "read_curve",
    "written_curve",
]

# r2rt's; its decay is that of its second half. Training does not read the moving statistics, which are only scored by.
LEARNING_RATE, EPSILON, DECAY = 0.01, 1e-3, 0.999
# How networks are scored: without batch norm; by the statistics of what it is run on; by the moving statistics.
FORMS = ("plain", "batch", "population")
# Those of BN2015's Figure 1.
PERCENTILES = (15, 50, 85)


class Scored(NamedTuple):
    """One way to run a trained network on images: its accuracy, and what goes into the last hidden layer's sigmoids."""

    accuracy: tf.Tensor
    inputs: tf.Tensor


class Tower(NamedTuple):
    """One network: its training step, the ways to score it, none of which updates anything, and its last layer's beta."""

    train_op: tf.Operation
    scored: dict[str, Scored]
    beta: tf.Variable | None


def biased(z: tf.Tensor, name: str) -> tf.Tensor:
    """What stands before a sigmoid without batch norm."""
    return z + tf.get_variable(f"{name}/bias", [z.shape[-1]], initializer=tf.zeros_initializer())


def normalized(z: tf.Tensor, name: str, is_training: bool) -> tf.Tensor:
    """The library's layer; the form for prediction shares the variables of the one for training, which comes first."""
    reuse = None if is_training else True
    return bn_graph.batch_norm_wrapper(z, is_training, decay=DECAY, epsilon=EPSILON, name=name, reuse=reuse)


def by_own_statistics(z: tf.Tensor, name: str) -> tf.Tensor:
    """The document's first form: normalized by whatever batch there is, the whole test set for one. Updates nothing."""
    with tf.variable_scope(name, reuse=True):
        gamma, beta = (tf.get_variable(each, [z.shape[-1]]) for each in ("gamma", "beta"))
        return tf.nn.batch_normalization(z, *tf.nn.moments(z, [0]), beta, gamma, EPSILON)


def build_tower(
    name: str,
    images: tf.Tensor,
    labels: tf.Tensor,
    weights: Sequence[np.ndarray],
    *,
    batch_norm: bool,
    rate: float = LEARNING_RATE,
) -> Tower:
    """A sigmoid network, with its gradient descent of `rate` on the summed cross-entropy, in a variable scope of its own.

    It is scored by the `FORMS` that it has: "plain", or with batch norm the other two.
    """

    def forward(before_sigmoid: Callable[..., tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """The last hidden layer's sigmoid inputs, and the logits."""
        z = first
        for number, following in enumerate(matrices[1:], start=1):
            inputs = before_sigmoid(z, name=f"hidden{number}")
            z = tf.matmul(tf.nn.sigmoid(inputs), following)
        return inputs, z + bias

    with tf.variable_scope(name):
        matrices = [variable(f"w{number}", initial) for number, initial in enumerate(weights, start=1)]
        bias = variable("bias", np.zeros(weights[-1].shape[1], np.float32))
        first = tf.matmul(images, matrices[0])  # the largest product: the forms below share it
        if batch_norm:
            _, logits = forward(partial(normalized, is_training=True))
            forms = {"batch": by_own_statistics, "population": partial(normalized, is_training=False)}
        else:
            forms = {"plain": biased}
        outputs = {form: forward(before_sigmoid) for form, before_sigmoid in forms.items()}
        if not batch_norm:
            _, logits = outputs["plain"]
        own = tf.trainable_variables(scope=f"{name}/")
        optimizer = tf.train.GradientDescentOptimizer(rate)
        train_op = optimizer.minimize(tf.reduce_sum(losses(logits, labels)), var_list=own)
    scored = {form: Scored(accuracy(scores, labels), inputs) for form, (inputs, scores) in outputs.items()}
    last_beta = f"{name}/hidden{len(weights) - 1}/beta"
    return Tower(train_op, scored, next((each for each in own if each.op.name == last_beta), None))


def percentiles(inputs: np.ndarray) -> np.ndarray:
    """[percentile, unit] of the inputs [image, unit]."""
    return np.percentile(np.ascontiguousarray(inputs.T), PERCENTILES, axis=1)


def first_step(steps: np.ndarray, accuracies: np.ndarray, wanted: float) -> int | None:
    """The first step after which the accuracy is at least `wanted`; None if there is none."""
    reached = np.flatnonzero(accuracies >= wanted)
    return int(steps[reached[0]]) if len(reached) else None


def jitter(curve: np.ndarray) -> np.ndarray:
    """For each column, the size of what changes between neighbouring evaluations: noise, without the slow drift.

    It is √⅙ of the deviation of the second differences, which is σ for independent noise of deviation σ and 0 for a line.
    """
    return np.std(np.diff(curve.astype(np.float64), n=2, axis=0), axis=0) / np.sqrt(6.0)


def written_curve(curve: np.ndarray) -> list[str]:
    """A curve [point, unit] as one string of numbers a unit: a tenth of what JSON's lists would take."""
    return [" ".join(f"{value:.5g}" for value in column) for column in np.atleast_2d(np.transpose(curve))]


def read_curve(strings: list[str]) -> np.ndarray:
    """The inverse of `written_curve`: [unit, point]."""
    return np.array([[float(number) for number in string.split()] for string in strings])
