"""Training steps by Keras's `fit`: legacy Keras and Keras 3, on TensorFlow."""

from collections.abc import Callable

import numpy as np

from experiments.benchmarks import tasks
from experiments.benchmarks.tasks import Task

__all__ = ["keras3", "legacy_keras"]


def legacy_keras(threads: int, steps_per_execution: int = 1, **task) -> dict[str, Callable]:
    """Legacy Keras, the package ``tf-keras``."""
    import tf_keras

    return _fit(tf_keras, threads, steps_per_execution, tasks.made(task))


def keras3(threads: int, steps_per_execution: int = 1, **task) -> dict[str, Callable]:
    """Keras 3."""
    import keras

    return _fit(keras, threads, steps_per_execution, tasks.made(task))


def _fit(keras, threads: int, steps_per_execution: int, task: Task) -> dict[str, Callable]:
    """`fit` on arrays in memory. The examples lie in the order of their use, so that it neither shuffles nor gathers."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    split = tasks.data(task.examples)
    order = tasks.rows(task, split.size // task.batch, split.size).ravel()
    images, labels = split.images[order], split.labels[order]
    model = _model(keras, task)
    model.compile(steps_per_execution=steps_per_execution, **_training(keras, task))

    def run(count: int) -> None:
        examples = count * task.batch
        model.fit(images[:examples], labels[:examples], batch_size=task.batch, epochs=1, shuffle=False, verbose=0)

    def logits(batch: np.ndarray) -> np.ndarray:
        return model.predict(batch, verbose=0)

    return {"run": run, "check": lambda _: tasks.agreement(run, logits, split)}


def _model(keras, task: Task):
    *hidden, last = tasks.initial_weights(task)
    layers = [keras.layers.Input([task.sizes[0]])]
    for matrix in hidden:
        layers.append(keras.layers.Dense(matrix.shape[1], use_bias=False, kernel_initializer=_constant(matrix)))
        layers.append(keras.layers.BatchNormalization(momentum=task.decay, epsilon=tasks.EPSILON))
        layers.append(keras.layers.Activation("sigmoid" if task.network == "r2rt" else "relu"))
    layers.append(keras.layers.Dense(last.shape[1], kernel_initializer=_constant(last)))
    return keras.Sequential(layers)


def _constant(matrix: np.ndarray) -> Callable:
    return lambda shape, dtype=None, **_: matrix


def _training(keras, task: Task) -> dict:
    summed = "sum" if task.network == "r2rt" else "sum_over_batch_size"
    sgd = task.network == "r2rt"
    optimizer = (
        keras.optimizers.SGD(tasks.LEARNING_RATE) if sgd else keras.optimizers.Adam(tasks.LEARNING_RATE, epsilon=1e-8)
    )
    return {"optimizer": optimizer, "loss": keras.losses.CategoricalCrossentropy(from_logits=True, reduction=summed)}
