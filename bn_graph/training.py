"""The documents' training loop: one ``session.run`` a step with a ``feed_dict``, made to stop and resume at any moment.

The batch of a step depends on the seed and the step alone (`bn_graph.datasets.batches`), and a checkpoint holds every
variable and the step. So a run that was stopped, by Ctrl-C or by kill -9, and started again ends with the same numbers,
bit for bit on one machine, as one that was not.
"""

import os
from collections.abc import Callable, Iterable

import numpy as np

from bn_graph import checkpoints, datasets
from bn_graph.networks import Model, Network
from bn_graph.tf1 import tf

__all__ = ["Solver", "resume", "session_config", "train"]


def session_config(threads: int = 1) -> tf.ConfigProto:
    """Session settings that pin TensorFlow's thread pools.

    Args:
        threads: of both pools. The documents' networks are too small to gain from more than one, and one thread
            makes every sum in one order, so that a run can be repeated bit for bit.

    Example:
        >>> from bn_graph.training import session_config
        >>> session_config().intra_op_parallelism_threads
        1
    """
    return tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)


def resume(session: tf.Session, directory: str | os.PathLike | None) -> None:
    """Initializes every variable of the default graph, or restores all of them if `directory` has a checkpoint.

    Args:
        session: of the default graph.
        directory: where `train` keeps its checkpoints; None for a fresh start.

    Raises:
        CheckpointError: the latest checkpoint does not fit the graph.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     network = bn_graph.build_graph(True, bn_graph.normal_weights([64, 100, 100, 10], seed=0))
        ...     bn_graph.resume(session, None)
        ...     int(session.run(network.global_step))
        0
    """
    latest = None if directory is None else tf.train.latest_checkpoint(os.fspath(directory))
    if latest is None:
        session.run(tf.global_variables_initializer())
    else:
        checkpoints.restore(session, latest)


def train(
    session: tf.Session,
    network: Network,
    split: datasets.Split,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    directory: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    progress: Callable[[range], Iterable[int]] = iter,
) -> None:
    """Trains `network` up to `steps` steps in all, counted from its first; resumes where its global step stands.

    Args:
        session: of the network's graph, its variables initialized or restored (`resume`).
        network: its ``train_op`` runs once a step, and with it whatever updates the layers' outputs depend on.
        split: the training examples.
        steps: value of the global step at the end. Nothing is done if it is reached already.
        batch_size: examples a step; the last, ragged batch of an epoch is dropped.
        seed: of the order of the batches.
        directory: for checkpoints of all global variables, made if need be; None keeps none.
        checkpoint_every: steps between two checkpoints; the last step is always saved.
        progress: wraps the range of steps left, as ``tqdm`` does.

    Raises:
        CheckpointError: a checkpoint can't be written.

    Source: r2rt, *Training the network*. Unlike the document's loop this one never runs the training graph on test
    images, which would move the population statistics toward the test set's.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> digits = bn_graph.load("digits")
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     network = bn_graph.build_graph(True, bn_graph.normal_weights([64, 100, 100, 10], seed=0))
        ...     bn_graph.resume(session, None)
        ...     bn_graph.train(session, network, digits.train, steps=3, batch_size=60, seed=0)
        ...     int(session.run(network.global_step))
        3
    """
    done = int(session.run(network.global_step))
    if done >= steps:
        return
    with session.graph.as_default():
        saver = None if directory is None else checkpoints.make_saver(max_to_keep=2)
    batches = datasets.batches(split, batch_size, seed=seed, start=done)
    for step in progress(range(done, steps)):
        images, labels = next(batches)
        session.run(network.train_op, {network.x: images, network.y_: labels})
        finished = step + 1
        if saver is not None and (finished % checkpoint_every == 0 or finished == steps):
            prefix = os.path.join(directory, "step")
            checkpoints.save(saver, session, prefix, global_step=finished, write_meta_graph=False)


class Solver:
    """A model and the session that it runs in: one training step at a time, and evaluation in whole or in batches.

    Attributes:
        session: of the model's graph; the caller initializes its variables.
        model: a `bn_graph.Model`, or anything with its ``x``, ``y_``, ``is_training``, ``loss``, ``accuracy`` and
            ``train_op``.

    Example:
        >>> import itertools, bn_graph
        >>> from bn_graph.tf1 import tf
        >>> digits = bn_graph.load("digits")
        >>> with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        ...     solver = bn_graph.Solver(session, bn_graph.Model("model", 64, 10, seed=0))
        ...     session.run(tf.global_variables_initializer())
        ...     for images, labels in itertools.islice(bn_graph.batches(digits.train, 32, seed=0), 200):
        ...         loss = solver.train(images, labels)
        ...     loss, accuracy = solver.evaluate(digits.test.images, digits.test.labels, batch_size=100)
        ...     accuracy > 0.9
        True
    """

    def __init__(self, session: tf.Session, model: Model):
        self.session = session
        self.model = model

    def train(self, x: np.ndarray, y_: np.ndarray) -> float:
        """Takes one step.

        Args:
            x: examples, as ``model.x``.
            y_: their one-hot labels.

        Returns:
            The loss of this batch by its own statistics, *before* the step: it is what the gradients are of.
        """
        _, loss = self.session.run([self.model.train_op, self.model.loss], self._feed(x, y_, is_training=True))
        return float(loss)

    def evaluate(
        self, x: np.ndarray, y_: np.ndarray, batch_size: int | None = None, *, is_training: bool = False
    ) -> tuple[float, float]:
        """Loss and accuracy, the mean over all examples. Nothing is updated, whatever `is_training` says.

        Args:
            x: examples, at least one.
            y_: their one-hot labels.
            batch_size: examples a run, for what does not fit into memory; all at once if None. The last batch may be
                smaller, and each counts by its size, so the result is that of all at once to float rounding, as long
                as the examples are normalized by population statistics (`is_training` False).
            is_training: True normalizes each batch by its own statistics, for those who want to see what comes of it.

        Returns:
            ``(loss, accuracy)``.

        Raises:
            ValueError: there is no example, or `batch_size` is not positive.
        """
        size = len(x)
        batch_size = size if batch_size is None else batch_size
        if size == 0 or batch_size < 1:
            raise ValueError(f"Expected an example at least and a positive batch_size, not {size} and {batch_size}.")
        total = np.zeros(2)
        for start in range(0, size, batch_size):
            batch = slice(start, start + batch_size)
            feed = self._feed(x[batch], y_[batch], is_training)
            total += len(x[batch]) * np.array(self.session.run([self.model.loss, self.model.accuracy], feed))
        loss, accuracy = total / size
        return float(loss), float(accuracy)

    def _feed(self, x: np.ndarray, y_: np.ndarray, is_training: bool) -> dict[tf.Tensor, np.ndarray | bool]:
        return {self.model.x: x, self.model.y_: y_, self.model.is_training: is_training}
