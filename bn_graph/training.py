"""The documents' training loop: one ``session.run`` a step with a ``feed_dict``, made to stop and resume at any moment.

The batch of a step depends on the seed and the step alone (`bn_graph.datasets.batches`), and a checkpoint holds every
variable and the step. So a run that was stopped, by Ctrl-C or by kill -9, and started again ends with the same numbers,
bit for bit on one machine, as one that was not.
"""

import os
from collections.abc import Callable, Iterable

from bn_graph import checkpoints, datasets
from bn_graph.networks import Network
from bn_graph.tf1 import tf

__all__ = ["resume", "session_config", "train"]


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
