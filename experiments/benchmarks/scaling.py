"""What grows with what, in this project: audit time with nodes, and recalibration beside plain inference."""

from collections.abc import Callable, Iterator
from pathlib import Path

import bn_graph
from bn_graph.audit import audit
from bn_graph.tf1 import tf
from experiments.benchmarks import tasks

__all__ = ["audits", "recalibration"]


def audits(threads: int, path: str) -> dict[str, Callable]:
    """``run`` audits the meta graph at `path`, so many times."""
    del threads  # the audit is Python

    def run(count: int) -> None:
        for _ in range(count):
            audit(Path(path))

    return {"run": run}


def recalibration(threads: int, batch: int) -> dict[str, Callable]:
    """``run`` takes "inference", or a method of recalibration, "pooled" or "paper", once over the training images."""
    split = tasks.data()
    with tf.Graph().as_default() as graph:
        model = bn_graph.Model("model", tasks.INPUTS, tasks.CLASSES, tasks.SOLVER.hidden, seed=tasks.SEED)
        session = tf.Session(graph=graph, config=bn_graph.session_config(threads))
        session.run(tf.global_variables_initializer())

    def batches() -> Iterator[dict]:
        for start in range(0, split.size, batch):
            yield {model.x: split.images[start : start + batch], model.is_training: False}

    def run(method: str) -> None:
        if method == "inference":
            for feed in batches():
                session.run(model.logits, feed)
        else:
            config = bn_graph.session_config(threads)
            bn_graph.recalibrate(session, batches, method=method, is_training=model.is_training, config=config)

    return {"run": run}
