"""Sessions to train in: their thread pools, their variables' first values, and the checkpoints on the way."""

import os
from collections.abc import Callable

from bn_graph import checkpoints
from bn_graph.tf1 import tf

__all__ = ["resume", "saving", "session_config"]


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

    Example:
        >>> from bn_graph.tf1 import tf
        >>> from bn_graph.training.sessions import saving
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     save_if_due = saving(session, None, steps=10, every=5)  # nowhere to save to
        ...     save_if_due(5)
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
