"""A program that uses the public names with type hints: read by mypy (``make lint``), never run.

TensorFlow has no hints of its own, so its classes are `Any` here. Where a line is wrong on purpose, mypy must say so:
it reports a ``type: ignore`` that ignores nothing.
"""

import numpy as np
import tensorflow.compat.v1 as tf

import bn_graph
from bn_graph.audit import Report, audit

x = tf.placeholder(tf.float32, [None, 784], name="x")
is_training = tf.placeholder(tf.bool, [])


# --- The layer --------------------------------------------------------------------------------------------------------

bn_graph.batch_norm_wrapper(x, is_training, decay=0.9, name="bn1")
bn_graph.batch_norm_wrapper(x, True, decay=lambda: 0.9, renorm=True, renorm_clipping={"rmax": 3.0})
bn_graph.batch_norm_wrapper(x)  # type: ignore[call-arg]
bn_graph.batch_norm_wrapper(x, True, 0.9)  # type: ignore[call-arg]
bn_graph.batch_norm_wrapper(x, True, renorm_clipping=3.0)  # type: ignore[arg-type]
bn_graph.batch_norm_wrapper(x, True, momentum=0.9)  # type: ignore[call-arg]

statistics: list[str] = [variable.op.name for variable in bn_graph.moving_statistics()]


# --- Training ---------------------------------------------------------------------------------------------------------

network = bn_graph.build_graph(True, bn_graph.normal_weights([784, 100, 10], seed=0))
split = bn_graph.load("digits").train
for images, labels in bn_graph.batches(split, 60, seed=0):
    shapes: tuple[int, ...] = images.shape + labels.shape

train_op = bn_graph.train_op(tf.train.GradientDescentOptimizer(0.01), x, return_loss=True)
bn_graph.check_train_op(train_op)
bn_graph.check_train_op(["train", train_op])

with tf.Session(config=bn_graph.session_config()) as session:
    bn_graph.train(session, network, split, steps=10, batch_size=60, seed=0)
    bn_graph.train_in_graph(session, network, split, steps=10, batch_size=60, seed=0)
    run = bn_graph.graph_loop(session, bn_graph.step_of(network), split, batch_size=60, seed=0)
    results: list[list[np.ndarray]] = run(0, 10)
    bn_graph.train(session, network, split, 10)  # type: ignore[call-arg]


# --- Checkpoints, statistics, exports ---------------------------------------------------------------------------------

with tf.Session() as session:
    prefix: str = bn_graph.save(bn_graph.make_saver(), session, "model")
    bn_graph.restore(session, prefix, name_map=bn_graph.NAME_MAPS["pop"])
    layer = bn_graph.batch_norm_layers()["bn1"]
    print(layer.gamma, layer.moving_variance)
    arrays: dict[str, np.ndarray] = bn_graph.export_state_dict(session)
    bn_graph.import_state_dict(session, arrays, layers={"bn1": "bn1"})
    weights: list[np.ndarray] = bn_graph.export_keras_weights(session, "bn1")
    decay: float = bn_graph.decay_from_torch_momentum(0.1)
    feeds: list[dict[str, np.ndarray]] = [{"x:0": np.ones([1, 784])}]
    counted: list[float] = [each.count for each in bn_graph.recalibrate(session, feeds)]
    written: str = bn_graph.export_saved_model(session, "served", {"x": x}, {"y": x})
    folded: list[str] = bn_graph.export_frozen_graph(session, "net.pb", {"x": x}, {"y": x}).folded
    bn_graph.export_keras_weights(session, 3)  # type: ignore[arg-type]
    bn_graph.recalibrate(session, 7)  # type: ignore[arg-type]
    bn_graph.no_such_name  # type: ignore[attr-defined]  # noqa: B018


# --- The audit --------------------------------------------------------------------------------------------------------

report: Report = audit("model.meta")
codes: list[str] = [finding.code for finding in report.errors]
