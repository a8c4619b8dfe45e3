"""The documents' training loop: one ``session.run`` a step with a ``feed_dict``, made to stop and resume at any moment.

It is the reference that the loop inside the graph (`bn_graph.training.graph_loop`) is held to.
"""

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bn_graph.tf1 import tf
from bn_graph.training import datasets
from bn_graph.training.networks import Network
from bn_graph.training.sessions import saving
from bn_graph.training.steps import Step

__all__ = ["feed_loop", "train"]


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
    save_if_due = saving(session, directory, steps=steps, every=checkpoint_every)
    batches = datasets.batches(split, batch_size, seed=seed, start=done)
    for step in progress(range(done, steps)):
        images, labels = next(batches)
        session.run(network.train_op, {network.x: images, network.y_: labels})
        save_if_due(step + 1)


def feed_loop(
    session: tf.Session,
    steps: Step | Sequence[Step],
    split: datasets.Split,
    *,
    batch_size: int,
    seed: int,
    global_step: tf.Variable | None = None,
) -> Callable[[int, int], list[list[np.ndarray]]]:
    """The documents' loop behind `graph_loop`'s signature: each network's batch is fed, in one ``session.run`` a step.

    Args:
        session, steps, split, batch_size, seed, global_step: as for `graph_loop`; ref variables will do as well.

    Returns:
        ``advance(start, stop)``, as `graph_loop` does.

    Raises:
        ValueError: `batch_size` is not from 1 to ``split.size``, or `seed` is negative.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> digits = bn_graph.load("digits")
        >>> with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        ...     model = bn_graph.Model("model", 64, 10, seed=0)
        ...     session.run(tf.global_variables_initializer())
        ...     step = bn_graph.step_of(model, record_loss=True)
        ...     ((losses,),) = bn_graph.feed_loop(session, step, digits.train, batch_size=32, seed=0)(0, 5)
        ...     losses.shape
        (5,)
    """
    steps = [steps] if isinstance(steps, Step) else list(steps)
    datasets.batch_rows(split.size, batch_size, seed=seed)  # says what is wrong with its arguments
    with session.graph.as_default():
        counted = [] if global_step is None else [global_step.assign_add(1).op]

    def advance(start: int, stop: int) -> list[list[np.ndarray]]:
        constants = [{name: _value(session, value) for name, value in step.constants.items()} for step in steps]
        recorded = [[] for _ in steps]
        batches = datasets.batches(split, batch_size, seed=seed, start=start)
        for _ in range(start, stop):
            images, labels = next(batches)
            for step, fed, values in zip(steps, constants, recorded, strict=True):
                feed = {step.images: images, step.labels: labels, **fed}
                values.append(session.run((list(step.recorded), step.train_op), feed)[0])
            session.run(counted)
        return [[np.stack(column) for column in zip(*values, strict=True)] for values in recorded]

    return advance


def _value(session: tf.Session, value: object) -> object:
    return session.run(value) if tf.is_tensor(value) else value
