"""Sessions to train in: their thread pools, and their variables' first values, initialized or restored."""

import os

from bn_graph import checkpoints
from bn_graph.tf1 import tf

__all__ = ["resume", "session_config"]


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
