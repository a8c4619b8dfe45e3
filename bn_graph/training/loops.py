"""The documents' training loop: one ``session.run`` a step with a ``feed_dict``, made to stop and resume at any moment.

It is the reference that the loop inside the graph (`bn_graph.training.graph_loop`) is held to. What both need is here:
a network's step, the session's settings, and the checkpoints on the way.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph import checkpoints
from bn_graph.graphs import effects
from bn_graph.graphs.graph import Graph, build
from bn_graph.tf1 import tf
from bn_graph.training import datasets
from bn_graph.training.networks import Model, Network

__all__ = [
    "Step",
    "checked_rows",
    "feed_loop",
    "refuse_counting_twice",
    "resume",
    "saving",
    "session_config",
    "step_of",
    "train",
]


class Step(NamedTuple):
    """One training step of one network, as `graph_loop` and `feed_loop` take it.

    Attributes:
        train_op: what the reference loop would run once a step.
        images, labels: the placeholders that it feeds the batch to.
        constants: what else it feeds, the same value at every step: ``{model.is_training: True}``. A variable may stand
            for a value that is to change from chunk to chunk; then `graph_loop` reads it, and `feed_loop` takes its value.
        recorded: tensors whose value at each step is wanted, such as the loss.
    """

    train_op: tf.Operation
    images: tf.Tensor
    labels: tf.Tensor
    constants: Mapping[tf.Tensor, object] = {}
    recorded: Sequence[tf.Tensor] = ()


def step_of(network: Network | Model, *, record_loss: bool = False) -> Step:
    """The training step of one of this library's networks.

    Args:
        network: a `Network` with a train op, or a `Model`, whose ``is_training`` is True then.
        record_loss: whether the loop gives the loss of every step (`Solver.train`'s).

    Raises:
        ValueError: the network was built for inference and has no train op.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     model = bn_graph.Model("model", 64, 10)
        ...     step = bn_graph.training.step_of(model)
        ...     step.train_op.name, step.constants == {model.is_training: True}
        ('model/train_op', True)
    """
    if network.train_op is None:
        raise ValueError("The network has no train op: it was built with is_training=False. Build it for training.")
    constants = {network.is_training: True} if isinstance(network, Model) else {}
    return Step(network.train_op, network.x, network.y_, constants, (network.loss,) if record_loss else ())


def session_config(threads: int = 1, *, networks: int = 1) -> tf.ConfigProto:
    """Session settings that pin TensorFlow's thread pools.

    Args:
        threads: of one kernel, and the least of the pool that kernels are run from. The documents' networks are too
            small to gain from more than one, and one thread makes every sum in one order, so that a run can be repeated
            bit for bit.
        networks: how many networks may be trained at the same time (`bn_graph.graph_loop`). It raises the number of
            kernels that run at once and leaves each kernel its `threads`, so no number depends on it.

    Example:
        >>> from bn_graph.training import session_config
        >>> session_config().intra_op_parallelism_threads
        1
        >>> session_config(networks=2).inter_op_parallelism_threads
        2
    """
    return tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=max(threads, networks))


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


def saving(
    session: tf.Session, directory: str | os.PathLike | None, *, steps: int, every: int
) -> Callable[[int], None]:
    """Makes a Saver, and the function that a loop tells how many steps are finished: it saves when that is due.

    Args:
        session: of the graph that is trained.
        directory: for checkpoints of all global variables, made if need be, two kept; None keeps none.
        steps: after which the last checkpoint is written, due or not.
        every: steps between two checkpoints.

    Returns:
        A function of the number of steps finished. It raises `CheckpointError` if a checkpoint can't be written.
    """
    if directory is None:
        return lambda finished: None
    with session.graph.as_default():
        saver = checkpoints.make_saver(max_to_keep=2)
    prefix = os.path.join(directory, "step")

    def save_if_due(finished: int) -> None:
        if finished % every == 0 or finished == steps:
            checkpoints.save(saver, session, prefix, global_step=finished, write_meta_graph=False)

    return save_if_due


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
    images, which would move the moving statistics toward the test set's.

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
) -> Callable[..., list[list[np.ndarray]]]:
    """The documents' loop behind `graph_loop`'s signature: each network's batch is fed, in one ``session.run`` a step.

    Args:
        session, steps, split, batch_size, seed, global_step: as for `graph_loop`; ref variables will do as well.

    Returns:
        ``advance(start, stop)`` and ``advance(start, stop, rows)``, as `graph_loop` does.

    Raises:
        ValueError: `batch_size` is not from 1 to ``split.size``; `seed` is negative; or a train op counts in `global_step`
            too.

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
    refuse_counting_twice(build(session.graph), steps, global_step)
    with session.graph.as_default():
        counted = [] if global_step is None else [global_step.assign_add(1).op]

    def advance(start: int, stop: int, given: np.ndarray | None = None) -> list[list[np.ndarray]]:
        constants = [{name: _value(session, value) for name, value in step.constants.items()} for step in steps]
        recorded: list[list[np.ndarray]] = [[] for _ in steps]
        batches = datasets.batches(split, batch_size, seed=seed, start=start)
        if given is not None:
            rows = checked_rows(given, [stop - start, batch_size])
            batches = ((split.images[each], split.labels[each]) for each in rows)
        for _ in range(start, stop):
            images, labels = next(batches)
            for step, fed, values in zip(steps, constants, recorded, strict=True):
                feed = {step.images: images, step.labels: labels, **fed}
                values.append(session.run((list(step.recorded), step.train_op), feed)[0])
            session.run(counted)
        return [[np.stack(column) for column in zip(*values, strict=True)] for values in recorded]

    return advance


def refuse_counting_twice(graph: Graph, steps: Sequence[Step], global_step: tf.Variable | None) -> None:
    """Raises if a step's train op increments the variable in which the loop is to count."""
    if global_step is None:
        return
    for step in steps:
        if global_step.op.name in effects.variables_written(graph, step.train_op):
            raise ValueError(
                f"The train op {step.train_op.name} increments {global_step.op.name} itself, and the loop's global_step would "
                "count each step again: leave it out, or make the train op with global_step=None."
            )


def checked_rows(rows: np.ndarray, shape: list[int]) -> np.ndarray:
    """The given numbers of the examples in each batch, as int32; raises unless there is one for every place."""
    rows = np.asarray(rows)
    if list(rows.shape) != shape or rows.dtype.kind not in "iu":
        raise ValueError(
            f"The rows of these steps' batches must be integers {shape}, got {rows.dtype} {list(rows.shape)}."
        )
    return rows.astype(np.int32)


def _value(session: tf.Session, value: object) -> object:
    return session.run(value) if tf.is_tensor(value) else value
