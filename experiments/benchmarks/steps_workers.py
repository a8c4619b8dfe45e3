"""Training steps of an image network in one process and in several workers, each of which has one core to itself."""

import atexit
import os
from collections.abc import Callable
from functools import partial

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from bn_graph.training import distributed
from experiments.benchmarks import tasks
from experiments.benchmarks.child import served

__all__ = ["EXCHANGES_OF_A_CHAIN", "worker"]

SIDE, FILTERS, LAYERS, BATCH = 16, 64, 4, 32
"""Images, and the convolutions of 3×3 with batch norm that follow each other: a step of 20 ms and more on one core."""

EXCHANGES_OF_A_CHAIN = 10  # each waits for the one before it, as a network's layers do

_opened = []  # for as long as the process lasts


def worker(threads: int, core: int, config: str, floats: tuple[int, ...]) -> dict[str, Callable]:
    """``run`` is asked for ``{"what": "alone", "without sync" or "with sync", "count": n}``, steps of one process and of a
    worker, or for exchanges of so many `floats`, "gather <floats>".

    Args:
        threads: one; the worker has one core.
        core: to which the process is pinned, where the system can.
        config: its ``TF_CONFIG``.
        floats: sizes of the exchanges.
    """
    del threads
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    cluster = distributed.cluster_from_tf_config(config)
    workers = cluster.workers()
    with tf.Graph().as_default():
        alone = tf.Session(config=bn_graph.session_config())
        runs = {"alone": _step(alone, cluster, lambda optimizer, loss: bn_graph.train_op(optimizer, loss), None)}
        alone.run(tf.global_variables_initializer())
    with tf.Graph().as_default():
        _opened.append(distributed.session(cluster))
        session = _opened[-1].__enter__()
        atexit.register(os._exit, 0)  # TensorFlow's servers have no clean end; waiting for one can hang
        for name, sync in (("without sync", None), ("with sync", distributed.gatherer(workers))):
            with tf.variable_scope(name.replace(" ", "_")):
                runs[name] = _step(
                    session,
                    cluster,
                    lambda optimizer, loss: distributed.train_op(
                        optimizer, loss, workers, var_list=tf.trainable_variables(tf.get_variable_scope().name)
                    ),
                    sync,
                )
        runs |= {f"gather {size}": partial(session.run, _chain(size, workers)) for size in floats}
        session.run(tf.global_variables_initializer())
        session.run(distributed.broadcast_op(tf.global_variables(), workers))
    return served(runs)


def _step(session: tf.Session, cluster: distributed.Cluster, train_op: Callable, sync: Callable | None) -> Callable:
    """Runs a step of a network of its own, on this worker's batch."""
    generator = np.random.default_rng(cluster.index)
    x, y_ = tf.placeholder(tf.float32, [None, SIDE, SIDE, 3]), tf.placeholder(tf.int64, [None])
    step = train_op(tf.train.GradientDescentOptimizer(0.01 / BATCH), _loss(x, y_, sync))
    images = generator.standard_normal((BATCH, SIDE, SIDE, 3), np.float32)
    feed = {x: images, y_: generator.integers(0, tasks.CLASSES, BATCH)}
    return partial(session.run, step, feed)


def _loss(x: tf.Tensor, y_: tf.Tensor, sync: Callable | None) -> tf.Tensor:
    net = x
    for number in range(LAYERS):
        shape = [3, 3, net.shape.as_list()[-1], FILTERS]
        kernel = tf.get_variable(f"kernel{number}", shape, initializer=tf.glorot_uniform_initializer(seed=number))
        net = tf.nn.conv2d(net, kernel, strides=1, padding="SAME")
        net = tf.nn.relu(bn_graph.batch_norm_wrapper(net, True, sync=sync, name=f"bn{number}"))
    weights = tf.get_variable("weights", [FILTERS, tasks.CLASSES], initializer=tf.zeros_initializer())
    logits = tf.reduce_mean(net, [1, 2]) @ weights
    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y_, logits=logits))


def _chain(floats: int, workers: distributed.Workers) -> tf.Operation:
    gather = distributed.gatherer(workers)
    vector = tf.zeros([floats])
    for _ in range(EXCHANGES_OF_A_CHAIN):
        vector = gather(vector)[0]
    return vector.op
