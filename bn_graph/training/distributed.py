"""Data-parallel training in graph mode: workers that each have a part of the batch and take each step together.

A worker is a process of a cluster (`Cluster`, from ``TF_CONFIG``) or a tower of one process on a device of its own. Each
builds the same graph, with variables of its own. The graphs exchange batch statistics (`gatherer`, for
``batch_norm_wrapper(..., sync=...)``), once forward and once backward, and sum their gradients (`all_sum`, by `train_op`).
So all workers take the same step from the same values, and their variables stay equal bit for bit.

    cluster = distributed.cluster_from_tf_config()              # {"cluster": {"worker": [...]}, "task": {...}}
    workers = cluster.workers()
    ...batch_norm_wrapper(z, True, sync=distributed.gatherer(workers))...
    step, total_loss = distributed.train_op(optimizer, loss, workers, global_step)
    equal = distributed.broadcast_op(tf.global_variables(), workers)
    with distributed.session(cluster) as session:               # waits for the others
        session.run(tf.global_variables_initializer())          # or restores, at the chief only
        session.run(equal)
        ...session.run(step, feed_dict=<this worker's examples>)...

The transport is TensorFlow's: collective ops between ``tf.train.Server`` processes. Vectors are gathered (0.43 ms between
two local processes, each on a core of its own), and small sums are gathered and then summed by every worker, for a sum
round a ring (0.82 ms) takes twice the turns; large ones of more than two workers go round a ring. Three methods were
compared on a chain of five dependent sums round a ring. (One or two runs of 500 on two busy cores: the spread is as large
as the differences, so speed did not decide.)

===============================================  ==========  =========================================================
method                                           ms a chain  remarks
===============================================  ==========  =========================================================
collective ops, a graph a worker (chosen)        5.9 to 7.5  variables are local; a timeout in each op bounds any wait
MultiWorkerMirroredStrategy in graph mode        6.4         the same ops below; needs the server made by hand all the
                                                             same, and its own variables, which no ref variable can be
one graph over all devices, sums by ``add_n``    7.6         weights cross the network at each step, towers must be
                                                             built in lockstep, and the chief feeds everybody's data
===============================================  ==========  =========================================================

A collective op does not notice at once that a peer has died (a session that drives remote devices does). So whatever a session
runs has a time limit (`session_config`), after which the other workers stop at the latest. A layer's exchanges have none of
their own, for TensorFlow starts a thread for each that has one, which sleeps until then: 0.64 ms for an exchange between two
processes instead of 0.46, and soon hundreds of threads.
"""

import json
import os
import socket
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from bn_graph.graphs.errors import BnGraphError
from bn_graph.tf1 import tf
from bn_graph.training import train_op as one_worker

__all__ = [
    "Cluster",
    "ClusterError",
    "WorkerLostError",
    "Workers",
    "across_replicas",
    "all_sum",
    "broadcast_op",
    "cluster_from_tf_config",
    "gatherer",
    "local_tf_configs",
    "session",
    "session_config",
    "train_op",
]

TIMEOUT = 20.0
"""Seconds that a worker waits for the others within a step. A step of the slowest worker must be shorter."""

WAIT = 60.0
"""Seconds that a worker waits for the others to start."""

_JOB = "worker"
_GROUP_KEY = 1
_AGREEMENT_KEY = 1 << 8  # the first instance key; those of a graph follow
_GRADIENTS_OF_ONE_SUM = 1 << 8
_BYTES_IN_A_TURN = 1 << 18  # what a local connection carries in the time that a message alone takes
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
)
_exchanges_made: weakref.WeakKeyDictionary[tf.Graph, dict[int, int]] = weakref.WeakKeyDictionary()
_servers: list[tf.train.Server] = []  # a server whose last reference goes would stop serving


class ClusterError(BnGraphError):
    """An invalid cluster, a port in use, or workers that did not start or do not agree. The message is one line."""


class WorkerLostError(RuntimeError):
    """Another worker stopped answering during a step. The message is one line."""


class Workers(NamedTuple):
    """The workers that have a part of the batch each, as one of them sees them.

    There are ``size`` of them, and this is number ``index``. Each sum waits at most ``timeout`` seconds for the others
    (0: no limit; in one process all towers run or none does). What a layer exchanges waits as long as its session does.
    """

    size: int
    index: int  # type: ignore[assignment]  # a tuple has a method of that name
    timeout: float = 0.0


class Cluster(NamedTuple):
    """The processes that train together: ``host:port`` of each, and which of them this is. The first is the chief."""

    addresses: tuple[str, ...]
    index: int  # type: ignore[assignment]  # a tuple has a method of that name

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes the checkpoints."""
        return self.index == 0

    def workers(self, timeout: float = TIMEOUT) -> Workers:
        """The cluster's processes as workers with one part of the batch each."""
        return Workers(len(self.addresses), self.index, timeout)


def cluster_from_tf_config(text: str | None = None) -> Cluster:
    """The cluster that ``TF_CONFIG`` describes, in the form that tf.distribute reads.

    Args:
        text: JSON; the environment's ``TF_CONFIG`` if None. ``cluster`` has the addresses of the ``worker`` job and, if
            there is one, of a ``chief``, which is then the first worker; ``task`` is the type and index of this process.

    Raises:
        ClusterError: it is missing or is no JSON; it has a job other than these two, an address that is not ``host:port``
            or is there twice, or a task that the cluster doesn't have.

    Example:
        >>> from bn_graph.training.distributed import cluster_from_tf_config
        >>> cluster_from_tf_config('{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 1}}')
        Cluster(addresses=('a:2222', 'b:2222'), index=1)
    """
    text = os.environ.get("TF_CONFIG", "") if text is None else text
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        kind, index = task["type"], task["index"]
        chiefs, workers = list(jobs.get("chief", [])), list(jobs.get(_JOB, []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad_config(f"{text!r} ({type(error).__name__}: {error})") from error
    if set(jobs) - {"chief", _JOB}:
        raise _bad_config(f"the jobs {', '.join(sorted(jobs))}; every process here is a worker")
    addresses = [*chiefs, *workers]
    _check_addresses(addresses)
    of_kind = {"chief": chiefs, _JOB: workers}.get(kind)
    if of_kind is None or isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(of_kind):
        raise _bad_config(f"the task {kind!r} {index!r}, which a cluster of {_counted(jobs)} doesn't have")
    return Cluster(tuple(addresses), index if kind == "chief" else len(chiefs) + index)


def _bad_config(found: str) -> ClusterError:
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    return ClusterError(f"TF_CONFIG: expected something like {example}, found {' '.join(found.split())}.")


def _counted(jobs: dict) -> str:
    return " and ".join(f"{len(addresses)} {job}{'s' * (len(addresses) != 1)}" for job, addresses in jobs.items())


def _check_addresses(addresses: Sequence) -> None:
    for address in addresses:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise _bad_config(f"the address {address!r}, which is not host:port")
    twice = sorted({address for address in addresses if addresses.count(address) > 1})
    if twice:
        raise _bad_config(f"the address {twice[0]!r} twice")
    if not addresses:
        raise _bad_config("no worker")


def local_tf_configs(workers: int) -> list[str]:
    """A ``TF_CONFIG`` for each of so many processes on this machine, on ports of the loopback that are free now.

    Example:
        >>> from bn_graph.training.distributed import cluster_from_tf_config, local_tf_configs
        >>> [cluster_from_tf_config(text).index for text in local_tf_configs(2)]
        [0, 1]
    """
    sockets = [socket.socket() for _ in range(workers)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()
    return [
        json.dumps({"cluster": {_JOB: addresses}, "task": {"type": _JOB, "index": index}}) for index in range(workers)
    ]


def all_sum(tensor: tf.Tensor, workers: Workers) -> tf.Tensor:
    """The sum of all workers' `tensor`: in the forward pass, and of their gradients in the backward pass.

    The gradient is that of the sum of all workers' losses, as far as it goes through here.

    Args:
        tensor: float or integer, of one shape at all workers, on another device at each.
        workers: all of them must build their sums in one order, which they do if they build one graph, and run them
            together.

    Returns:
        A tensor of the same shape and dtype, the same bits at each worker.

    Raises:
        tf.errors.DeadlineExceededError: at a run, after ``workers.timeout``.

    Example:
        >>> from bn_graph.training.distributed import Workers, all_sum
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        ...     sums = []
        ...     for index in range(2):
        ...         with tf.device(f"/cpu:{index}"):
        ...             sums.append(all_sum(tf.constant([1.0, index]), Workers(2, index)))
        ...     session.run(sums)
        [array([2., 1.], dtype=float32), array([2., 1.], dtype=float32)]
    """
    tensor = tf.convert_to_tensor(tensor)
    if workers.size == 1:
        return tf.identity(tensor)
    return _all_sum(tensor, workers, _next_key(tensor.graph, workers))


def _next_key(graph: tf.Graph, workers: Workers) -> int:
    """Of this worker's next exchange; the keys up to the one after that are for its gradients."""
    while graph.building_function:  # the keys of a run are those of all its functions
        graph = graph.outer_graph
    made = _exchanges_made.setdefault(graph, {})
    made[workers.index] = made.get(workers.index, 0) + 1
    return _AGREEMENT_KEY + made[workers.index] * _GRADIENTS_OF_ONE_SUM


def _all_sum(tensor: tf.Tensor, workers: Workers, key: int) -> tf.Tensor:
    gradients = 0

    @tf.custom_gradient
    def summed(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            # Counted by the sum that it is of: gradients of several losses, in whatever order they are asked for.
            nonlocal gradients
            gradients += 1
            with tf.device(total.device):  # wherever the gradient is asked for; a device is what tells workers apart
                return _reduce(upstream, workers, key + gradients)

        total = _reduce(x, workers, key)
        return total, gradient

    return summed(tensor)


def _reduce(tensor: tf.Tensor, workers: Workers, key: int) -> tf.Tensor:
    # Of known rank 1: a scalar has no dimension along which a ring could cut it.
    flat = tf.reshape(tensor, [-1])
    if _is_latency_bound(flat, workers):
        total = tf.reduce_sum(_gather(flat, workers, key, workers.timeout), 0)
    else:
        total = tf.raw_ops.CollectiveReduce(
            input=flat,
            group_size=workers.size,
            group_key=_GROUP_KEY,
            instance_key=key,
            merge_op="Add",
            final_op="Id",
            subdiv_offsets=[0],
            timeout_seconds=workers.timeout,
        )
    return tf.reshape(total, tf.shape(tensor) if None in tensor.shape.as_list() else tensor.shape)


def _is_latency_bound(flat: tf.Tensor, workers: Workers) -> bool:
    """Whether to gather all workers' values, w−1 turns, is faster than to sum them along a ring, 2·(w−1) turns.

    Of n bytes, (w−1)·n come to each worker by the one, and 2·(w−1)/w·n by the other.
    """
    size = flat.shape.num_elements()
    return size is not None and size * flat.dtype.size * (1.0 - 2.0 / workers.size) <= _BYTES_IN_A_TURN


def gatherer(workers: Workers) -> Callable[[tf.Tensor], tf.Tensor]:
    """The `sync` argument of ``batch_norm_wrapper``: puts every worker's ``[n]`` together as ``[workers, n]``.

    A vector has a known size, and no gradient goes through: the layer exchanges its gradients itself.

    Args:
        workers: those who have a part of the batch each; towers of one process need a device each (``/cpu:0``, ``/cpu:1``).

    Example:
        >>> import bn_graph
        >>> from bn_graph.training.distributed import Workers, gatherer
        >>> from bn_graph.tf1 import tf
        >>> batches = ([[1.0], [2.0]], [[6.0]])  # unequal: the mean of all is 3
        >>> with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        ...     for index in range(2):
        ...         with tf.device(f"/cpu:{index}"):
        ...             sync = gatherer(Workers(2, index))
        ...             y = bn_graph.batch_norm_wrapper(
        ...                 tf.constant(batches[index]), True, decay=0.0, sync=sync, name=f"tower_{index}"
        ...             )
        ...             tf.add_to_collection("outputs", y)
        ...     session.run(tf.global_variables_initializer())
        ...     _ = session.run(tf.get_collection("outputs"))
        ...     [float(mean[0]) for mean in session.run(bn_graph.moving_statistics())[::2]]
        [3.0, 3.0]
    """

    def gather(vector: tf.Tensor) -> tf.Tensor:
        return _gather(vector, workers, _next_key(vector.graph, workers), timeout=0.0)

    return gather


def _gather(vector: tf.Tensor, workers: Workers, key: int, timeout: float) -> tf.Tensor:
    row = vector[tf.newaxis]
    if workers.size == 1:
        return row
    return tf.raw_ops.CollectiveGather(
        input=row,
        group_size=workers.size,
        group_key=_GROUP_KEY,
        instance_key=key,
        shape=[workers.size, *vector.shape.as_list()],
        timeout_seconds=timeout,
    )


def across_replicas(vector: tf.Tensor) -> tf.Tensor:
    """`gatherer` for the replicas of a ``tf.distribute`` strategy: give the function itself, ``sync=across_replicas``.

    Args:
        vector: ``[n]``, in replica context (in a function that ``strategy.run`` was given).

    Returns:
        ``[replicas, n]``, the same at each.
    """
    context = tf.distribute.get_replica_context()
    index, size = context.replica_id_in_sync_group, context.num_replicas_in_sync
    # In graph mode the sum looks for variables behind it, comes to those of the other replicas, and raises.
    row = tf.stop_gradient(vector[tf.newaxis])
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.pad(row, [[index, size - 1 - index], [0, 0]]))


def train_op(
    optimizer: tf.train.Optimizer,
    loss: tf.Tensor,
    workers: Workers,
    global_step: tf.Variable | None = None,
    *,
    update_ops: Sequence[tf.Operation | tf.Tensor] | None = None,
    var_list: Sequence[tf.Variable] | None = None,
) -> tuple[tf.Operation, tf.Tensor]:
    """One step of all workers on the sum of their losses; one exchange carries all gradients, and the loss.

    Args:
        optimizer, update_ops, var_list: as for `bn_graph.train_op`, which this is otherwise: the update ops in
            ``UPDATE_OPS`` have run before any variable is trained.
        loss: this worker's share: a *sum* over its examples, or that divided by the number of all workers' examples. (A
            mean over its own would make examples of smaller batches count for more.)
        workers: those who step together. Their variables must hold equal values (`broadcast_op`).
        global_step: incremented by each step, if given.

    Returns:
        The op, and the total of the losses, a scalar, before the step.

    Raises:
        TypeError, ValueError: as `bn_graph.train_op` does.

    Example:
        >>> from bn_graph.training import distributed
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     weight = tf.get_variable("weight", [], initializer=tf.ones_initializer())
        ...     alone = distributed.Workers(size=1, index=0)
        ...     step, total = distributed.train_op(tf.train.GradientDescentOptimizer(0.25), weight**2, alone)
        ...     session.run(tf.global_variables_initializer())
        ...     float(session.run([total, step])[0]), float(session.run(weight))
        (1.0, 0.5)
    """
    totals = []

    def summed(gradients: list[tf.Tensor], variables: list[tf.Variable]) -> list[tf.Tensor]:
        flat = [tf.reshape(tf.convert_to_tensor(value), [-1]) for value in (loss, *gradients)]
        sizes = [1, *(variable.shape.num_elements() for variable in variables)]
        total, *sums = tf.split(all_sum(tf.concat(flat, 0), workers), sizes)
        totals.append(tf.reshape(total, []))
        return [tf.reshape(each, variable.shape) for each, variable in zip(sums, variables, strict=True)]

    step = one_worker.train_op(
        optimizer,
        loss,
        update_ops=update_ops,
        var_list=var_list,
        global_step=global_step,
        transform_gradients=summed,
    )
    return step, totals[0]


def broadcast_op(variables: Sequence[tf.Variable], workers: Workers) -> tf.Operation:
    """Assigns the chief's values to every worker's `variables`, so that only the chief has to read the checkpoint.

    Args:
        variables: floats and integers, initialized at every worker.
        workers: all run the op together.

    Example:
        >>> from bn_graph.training import distributed
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        ...     weights, ops = [], []
        ...     for index in range(2):
        ...         with tf.device(f"/cpu:{index}"):
        ...             weights.append(tf.get_variable(f"weight{index}", [], initializer=tf.constant_initializer(index + 1.0)))
        ...             ops.append(distributed.broadcast_op(weights[-1:], distributed.Workers(2, index)))
        ...     session.run(tf.global_variables_initializer())
        ...     session.run(ops)
        ...     [float(value) for value in session.run(weights)]
        [None, None]
        [1.0, 1.0]
    """
    assigns = []
    for variable in variables:
        value = variable.read_value()
        assigns.append(tf.assign(variable, all_sum(value if workers.index == 0 else tf.zeros_like(value), workers)).op)
    return tf.group(*assigns, name="broadcast")


def session_config(cluster: Cluster, timeout: float = TIMEOUT) -> tf.ConfigProto:
    """Settings of a worker's server and session: one thread a pool, ops on its own devices only, waits that end.

    Args:
        cluster: of this process.
        timeout: as given to `Cluster.workers`; whatever the session runs may take so long.

    Example:
        >>> from bn_graph.training.distributed import Cluster, session_config
        >>> session_config(Cluster(("localhost:2222", "localhost:2223"), 1)).device_filters[0]
        '/job:worker/task:1'
    """
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    config.device_filters.append(f"/job:{_JOB}/task:{cluster.index}")
    config.experimental.collective_group_leader = f"/job:{_JOB}/replica:0/task:0"
    # Of a whole run: a chief that is gone, and a layer's exchanges, have no limit of their own.
    config.operation_timeout_in_ms = int(1000 * timeout)
    return config


@contextmanager
def session(cluster: Cluster, *, agree: str = "", wait: float = WAIT, timeout: float = TIMEOUT) -> Iterator[tf.Session]:
    """A session of the default graph on this worker's own server, opened when all workers are there.

    Args:
        cluster: of this process. It starts one ``tf.train.Server``, which serves until the process ends.
        agree: text of whatever must be the same at all workers for the training to make sense (sizes, seed, data).
        wait: seconds to wait for the others to start.
        timeout: as given to `Cluster.workers`.

    Raises:
        ClusterError: this worker's port is in use or its host is not this machine; a worker did not start; they disagree.
        WorkerLostError: within the context, when another worker died or took longer than `timeout`. No later step of
            this process can succeed. Start all workers again, from the last checkpoint.

    Example:
        >>> from bn_graph.training import distributed
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     answer = tf.constant(42)
        ...     with distributed.session(distributed.Cluster(("localhost:2222",), 0)) as session:  # a cluster of one
        ...         int(session.run(answer))
        42
    """
    if len(cluster.addresses) == 1:
        with tf.Session(config=tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)) as alone:
            yield alone
        return
    server = _start_server(cluster, timeout)
    _wait_for_others(cluster, wait)
    _check_agreement(cluster, server, agree, wait)
    try:
        with tf.Session(server.target, config=session_config(cluster, timeout)) as opened:
            yield opened
    except _LOST as error:
        raise WorkerLostError(
            f"Worker {cluster.index} lost another worker: a step found it gone or waited {timeout:g} s for it "
            f"({type(error).__name__}). Start all workers again; they go on from the last checkpoint."
        ) from error


def _start_server(cluster: Cluster, timeout: float) -> tf.train.Server:
    address = cluster.addresses[cluster.index]
    host, _, port = address.rpartition(":")
    try:  # TensorFlow would say no more than that it could not start
        with socket.create_server((host.strip("[]"), int(port)), family=_family(host)):
            pass
        _servers.append(
            tf.train.Server(
                {_JOB: list(cluster.addresses)}, _JOB, cluster.index, config=session_config(cluster, timeout)
            )
        )
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ClusterError(
            f"Worker {cluster.index} can't serve at {address}: {reason}. Give the cluster an address of this machine "
            "with a port that is free."
        ) from error
    return _servers[-1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _wait_for_others(cluster: Cluster, wait: float) -> None:
    """Returns when every worker's port accepts connections; a session would wait for a missing one without a limit."""
    until = time.monotonic() + wait
    for index, address in enumerate(cluster.addresses):
        host, _, port = address.rpartition(":")
        while not _is_there(host.strip("[]"), int(port)):
            if time.monotonic() > until:
                raise ClusterError(
                    f"Worker {cluster.index} waited {wait:g} s for worker {index} at {address}, and it did not start. Start "
                    "it, or leave it out of the cluster."
                )
            time.sleep(0.1)


def _is_there(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return True
    except OSError:
        return False


def _check_agreement(cluster: Cluster, server: tf.train.Server, agree: str, wait: float) -> None:
    """Exchanges a digest of what must be equal at all workers."""
    workers = cluster.workers(timeout=wait)
    digest = zlib.crc32(json.dumps([agree, cluster.addresses]).encode())
    rows = tf.Graph()
    try:
        with rows.as_default():
            row = tf.pad(tf.constant([digest], tf.int64), [[workers.index, workers.size - 1 - workers.index]])
            digests = _reduce(row, workers, _AGREEMENT_KEY)
            with tf.Session(server.target, config=session_config(cluster, wait)) as opened:
                found = opened.run(digests).tolist()
    except (*_LOST, tf.errors.InvalidArgumentError) as error:
        raise ClusterError(
            f"Worker {cluster.index} reached all addresses, but could not exchange data with {workers.size - 1} other "
            f"workers there within {wait:g} s ({type(error).__name__}). Check that all have the same cluster, and that "
            "nothing else uses its ports."
        ) from error
    others = [index for index, each in enumerate(found) if each != digest]
    if others:
        raise ClusterError(
            f"Worker {cluster.index} and worker {others[0]} do not agree: expected the same cluster, data and settings at "
            f"all workers, found others there than here: {agree}."
        )
