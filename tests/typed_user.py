"""A program that uses the public names with type hints: read by mypy (``make lint``), never run.

TensorFlow has no hints of its own, so its classes are `Any` here. Where a line is wrong on purpose, mypy must say so:
it reports a ``type: ignore`` that ignores nothing.
"""

import numpy as np
import tensorflow.compat.v1 as tf

import bn_graph
from bn_graph.audit import Report, audit


def layers(x: tf.Tensor, is_training: tf.Tensor) -> list[str]:
    """The layer; its misuses."""
    bn_graph.batch_norm_wrapper(x, is_training, decay=0.9, name="bn1")
    bn_graph.batch_norm_wrapper(x, True, decay=lambda: 0.9, renorm=True, renorm_clipping={"rmax": 3.0})
    bn_graph.batch_norm_wrapper(x)  # type: ignore[call-arg]
    bn_graph.batch_norm_wrapper(x, True, 0.9)  # type: ignore[call-arg]
    bn_graph.batch_norm_wrapper(x, True, renorm_clipping=3.0)  # type: ignore[arg-type]
    bn_graph.batch_norm_wrapper(x, True, momentum=0.9)  # type: ignore[call-arg]
    return [variable.op.name for variable in bn_graph.moving_statistics()]


def training(session: tf.Session, loss: tf.Tensor) -> list[list[np.ndarray]]:
    """Networks, data, train ops and loops."""
    network = bn_graph.build_graph(True, bn_graph.normal_weights([784, 100, 10], seed=0))
    split = bn_graph.load("digits").train
    for images, labels in bn_graph.batches(split, 60, seed=0):
        print(images.shape + labels.shape)
    train_op = bn_graph.train_op(tf.train.GradientDescentOptimizer(0.01), loss, return_loss=True)
    bn_graph.check_train_op(train_op)
    bn_graph.check_train_op(["train", train_op])
    bn_graph.train(session, network, split, steps=10, batch_size=60, seed=0)
    bn_graph.train_in_graph(session, network, split, steps=10, batch_size=60, seed=0)
    bn_graph.train(session, network, split, 10)  # type: ignore[call-arg]
    run = bn_graph.graph_loop(session, bn_graph.step_of(network), split, batch_size=60, seed=0)
    return run(0, 10)


def checkpoints(session: tf.Session) -> dict[str, np.ndarray]:
    """Savers and other libraries' values."""
    prefix: str = bn_graph.save(bn_graph.make_saver(), session, "model")
    bn_graph.restore(session, prefix, name_map=bn_graph.NAME_MAPS["pop"])
    bn_graph.import_state_dict(session, bn_graph.export_state_dict(session), layers={"bn1": "bn1"})
    weights: list[np.ndarray] = bn_graph.export_keras_weights(session, "bn1")
    bn_graph.export_keras_weights(session, 3)  # type: ignore[arg-type]
    decay: float = bn_graph.decay_from_torch_momentum(0.1)
    layer = bn_graph.batch_norm_layers()["bn1"]
    print(weights, decay, layer.gamma, layer.moving_variance, layer.moving_median)  # type: ignore[attr-defined]
    return bn_graph.export_state_dict(session)


def population(session: tf.Session, x: tf.Tensor) -> list[str]:
    """Recalibration and exports."""
    feeds: list[dict[str, np.ndarray]] = [{"x:0": np.ones([1, 784])}]
    counts: list[int] = [each.count for each in bn_graph.recalibrate(session, feeds)]
    bn_graph.recalibrate(session, 7)  # type: ignore[arg-type]
    directory: str = bn_graph.export_saved_model(session, "served", {"x": x}, {"y": x})
    bn_graph.no_such_name  # type: ignore[attr-defined]  # noqa: B018
    print(counts, directory)
    return bn_graph.export_frozen_graph(session, "net.pb", {"x": x}, {"y": x}).folded


def findings() -> list[str]:
    """The audit."""
    report: Report = audit("model.meta")
    return [finding.code for finding in report.errors]
