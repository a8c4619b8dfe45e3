"""Recalibration by several processes: each has a share of the batches, and all get the statistics of all of them.

Each worker goes through its batches by itself; after each level they exchange count, mean and squared distances of each
layer (a few numbers a channel), over TensorFlow's collectives, as `bn_graph.training.distributed` does::

    cluster = distributed.cluster_from_tf_config()
    with workers.exchange(cluster) as gather:
        recalibrate(session, my_share_of_the_batches, gather=gather)

The exact statistics of parts add up to those of the whole, so it makes no difference how the batches are shared out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from bn_graph.tf1 import tf
from bn_graph.training import distributed

__all__ = ["exchange"]

_NUMBERS = 1 << 13  # of one exchange; a collective's shape is fixed

TIMEOUT = 24 * 3600.0
"""Seconds that a worker waits for the others at the end of a level: they have a whole pass over their share to do."""


@contextmanager
def exchange(
    cluster: distributed.Cluster, *, agree: str = "", wait: float = distributed.WAIT, timeout: float = TIMEOUT
) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """The `gather` argument of `bn_graph.recalibrate`, for one of the workers of a cluster.

    Args:
        cluster: of this process.
        agree: text of whatever must be the same at all workers, such as the method and the names of the layers.
        wait: seconds to wait for the others to start.
        timeout: seconds that a worker may be late for an exchange.

    Yields:
        A function that takes a float64 vector ``[n]``, of one length at all workers, and returns ``[workers, n]``.

    Raises:
        ClusterError, WorkerLostError: as `distributed.session` does.

    Example:
        >>> import numpy as np
        >>> from bn_graph.recalibration import workers
        >>> from bn_graph.training.distributed import Cluster
        >>> with workers.exchange(Cluster(("localhost:2222",), 0)) as gather:  # a cluster of one
        ...     gather(np.array([1.0, 2.0]))
        array([[1., 2.]])
    """
    with tf.Graph().as_default():
        numbers = tf.placeholder(tf.float64, [_NUMBERS])
        rows = distributed.gatherer(cluster.workers(timeout))(numbers)
        with distributed.session(cluster, agree=agree, wait=wait, timeout=timeout) as session:

            def gather(vector: np.ndarray) -> np.ndarray:
                padded = np.pad(vector, (0, -len(vector) % _NUMBERS))
                parts = [session.run(rows, {numbers: part}) for part in padded.reshape(-1, _NUMBERS)]
                return np.concatenate(parts, axis=1)[:, : len(vector)]

            yield gather
