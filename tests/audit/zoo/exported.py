"""What is handed on: SavedModels of both TensorFlows, frozen and text graphs, live graphs, imported ones, Keras."""

import functools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tensorflow.python.eager import context

from bn_graph.tf1 import tf
from tests import libraries
from tests.audit.zoo.forms import slim_in_place, tf_layers
from tests.audit.zoo.handwritten import without_population
from tests.audit.zoo.harness import (
    Built,
    case,
    feeds,
    finish,
    mode_placeholder,
    network,
    register,
    session,
    train_with_updates,
)


def _saved_model(at, norm, *, mode, train=True, signature_has_mode=False, with_updates=True, text=False):
    """Trains, and exports the same graph; only the signature's outputs are inference."""
    training = mode if isinstance(mode, bool) else mode_placeholder(mode)
    net = network(lambda x: norm(x, training), rank=4)
    optimizer = tf.train.GradientDescentOptimizer(0.1)
    train_op = train_with_updates(net.loss) if with_updates else optimizer.minimize(net.loss)
    inputs = {"x": net.x} | ({"is_training": training} if signature_has_mode else {})
    with session() as s:
        s.run(tf.global_variables_initializer())
        for step in range(3 if train else 0):
            s.run(train_op, feeds(training=True, seed=step))
        builder = tf.saved_model.builder.SavedModelBuilder(str(at / "export"))
        signature = tf.saved_model.signature_def_utils.predict_signature_def(inputs, {"probabilities": net.prediction})
        builder.add_meta_graph_and_variables(s, ["serve"], {"serving_default": signature})
        builder.save(as_text=text)
    return Built(at / "export")


for _norm in (tf_layers, slim_in_place):
    _name = _norm.__name__
    register(f"saved_model_{_name}_default_false", partial(_saved_model, norm=_norm, mode="default_false"), layers=1)
    _codes = "BN004" if _norm is tf_layers else "BN004 BN005"
    register(f"saved_model_{_name}_default_true", partial(_saved_model, norm=_norm, mode="default_true"), _codes)
    register(f"saved_model_{_name}_training_mode", partial(_saved_model, norm=_norm, mode=True), _codes)
    register(
        f"saved_model_{_name}_mode_in_the_signature",
        partial(_saved_model, norm=_norm, mode="fed", signature_has_mode=True),
    )
register("saved_model_as_text", partial(_saved_model, norm=tf_layers, mode="default_false", text=True), layers=1)
register(
    "saved_model_as_text_training_mode", partial(_saved_model, norm=tf_layers, mode=True, text=True), "BN004", layers=1
)
register(
    "saved_model_detached",
    partial(_saved_model, norm=tf_layers, mode="default_false", with_updates=False),
    "BN001 BN002",
)


def _inference_export(at, training):
    """An export without a train op, of a checkpoint that another graph trained."""
    (at / "training").mkdir()
    with tf.Graph().as_default():
        net = network(lambda x: tf_layers(x, True), rank=4)
        trained = finish(at / "training", train=[train_with_updates(net.loss)]).subject
    with tf.Graph().as_default():
        net = network(lambda x: tf_layers(x, training), rank=4)
        with session() as s:
            tf.train.Saver().restore(s, str(trained)[:-5])
            tf.saved_model.simple_save(s, str(at / "export"), {"x": net.x}, {"y": net.prediction})
    return Built(at / "export" / "saved_model.pb")


register("saved_model_for_inference", partial(_inference_export, training=False), layers=1)
register("saved_model_for_inference_in_training_mode", partial(_inference_export, training=True), "BN004", layers=1)


# ----------------------------------------------------------------------------------------------- files of graphs


def _trained_net(mode="fed", norm=tf_layers, rank=4):
    training = mode if isinstance(mode, bool) else mode_placeholder(mode)
    net = network(lambda x: norm(x, training), rank=rank)
    return net, train_with_updates(net.loss)


def _frozen(at, mode, norm=tf_layers, text=False):
    """Variables made constants; the training nodes are gone."""
    net, train_op = _trained_net(mode, norm)
    with session() as s:
        s.run(tf.global_variables_initializer())
        s.run(train_op, feeds(training=True))
        graph = tf.get_default_graph().as_graph_def()
        frozen = tf.graph_util.convert_variables_to_constants(s, graph, [net.prediction.op.name])
    tf.io.write_graph(frozen, str(at), "frozen.pbtxt" if text else "frozen.pb", as_text=text)
    return Built(at / ("frozen.pbtxt" if text else "frozen.pb"))


register("frozen_graph_default_false", partial(_frozen, mode="default_false"), layers=1)
register("frozen_graph_default_false_resource", partial(_frozen, mode="default_false"), layers=1, variables="resource")
register("frozen_graph_training_mode", partial(_frozen, mode=True), "BN004", layers=1)
register("frozen_graph_as_text_training_mode", partial(_frozen, mode=True, text=True), "BN004", layers=1)


def _frozen_inference(at, training):
    net = network(lambda x: tf_layers(x, training), rank=4)
    with session() as s:
        s.run(tf.global_variables_initializer())
        moving = [v for v in tf.global_variables() if "moving" in v.op.name]
        s.run([tf.assign(v, [0.5, 1.5, 2.5]) for v in moving])
        graph = tf.get_default_graph().as_graph_def()
        frozen = tf.graph_util.convert_variables_to_constants(s, graph, [net.prediction.op.name])
    tf.io.write_graph(frozen, str(at), "frozen.pb", as_text=False)
    return Built(at / "frozen.pb")


register("frozen_graph_for_inference", partial(_frozen_inference, training=False), layers=1)
register("frozen_graph_for_inference_in_training_mode", partial(_frozen_inference, training=True), "BN004", layers=1)


@case("BN004", layers=1)
def frozen_graph_without_population(at):
    net = network(lambda x: without_population(x, "moments"))
    with session() as s:
        s.run(tf.global_variables_initializer())
        graph = tf.get_default_graph().as_graph_def()
        frozen = tf.graph_util.convert_variables_to_constants(s, graph, [net.prediction.op.name])
    tf.io.write_graph(frozen, str(at), "frozen.pb", as_text=False)
    return Built(at / "frozen.pb")


def _text(at, name, with_updates):
    training = mode_placeholder()
    net = network(lambda x: tf_layers(x, training))
    train_with_updates(net.loss) if with_updates else tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    tf.io.write_graph(tf.get_default_graph(), str(at), name, as_text=name.endswith("txt"))
    return Built(at / name)


register("graph_as_text", partial(_text, name="graph.pbtxt", with_updates=True), layers=1)
register("graph_as_text_detached", partial(_text, name="graph.pbtxt", with_updates=False), "BN001", layers=1)
register("graph_as_binary", partial(_text, name="graph.pb", with_updates=True), layers=1)
register("graph_under_another_name", partial(_text, name="weights.dat", with_updates=False), "BN001", layers=1)


@case("BN001 BN002")
def meta_graph_as_text_with_its_checkpoint(at):
    training = mode_placeholder()
    net = network(lambda x: tf_layers(x, training))
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    built = finish(at, train=[train_op], outputs=[net.logits])
    tf.train.export_meta_graph(str(at / "text.meta"), as_text=True, saver_def=tf.train.Saver().as_saver_def())
    return Built(at / "text.meta", built.facts, {"checkpoint": str(at / "model.ckpt")})


def _live(at, with_updates):
    training = mode_placeholder()
    net = network(lambda x: tf_layers(x, training))
    train_with_updates(net.loss) if with_updates else tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    return Built(tf.get_default_graph())


for _variables in ("ref", "resource"):
    register(f"live_graph_{_variables}", partial(_live, with_updates=True), layers=1, variables=_variables)
    register(f"live_graph_{_variables}_detached", partial(_live, with_updates=False), "BN001", variables=_variables)


def _imported(at, with_updates):
    """A meta graph imported under a prefix, and saved from there."""
    (at / "first").mkdir()
    with tf.Graph().as_default():
        training = mode_placeholder()
        net = network(lambda x: tf_layers(x, training))
        optimizer = tf.train.GradientDescentOptimizer(0.1)
        train_op = train_with_updates(net.loss) if with_updates else optimizer.minimize(net.loss)
        finish(at / "first", train=[train_op], outputs=[net.logits])
    tf.train.import_meta_graph(str(at / "first" / "model.ckpt.meta"), import_scope="imported")
    step = tf.get_default_graph().get_operation_by_name(f"imported/{train_op.name}")
    logits = tf.get_default_graph().get_tensor_by_name(f"imported/{net.logits.name}")
    return finish(at, train=[step], outputs=[logits])


register("imported_under_a_prefix", partial(_imported, with_updates=True), layers=1)
register("imported_under_a_prefix_detached", partial(_imported, with_updates=False), "BN001 BN002", layers=1)


@case()
def directory_of_a_run(at):
    """What a training run leaves behind: checkpoint file, graph.pbtxt, several checkpoints."""
    _net, train_op = _trained_net()
    saver = tf.train.Saver(max_to_keep=5)
    with session() as s:
        s.run(tf.global_variables_initializer())
        for step in range(2):
            s.run(train_op, feeds(training=True, seed=step))
            saver.save(s, str(at / "model.ckpt"), global_step=step)
    return Built(at)


# ------------------------------------------------------------------------------------------------ feeds of the user


@case("BN004")
def saved_model_whose_mode_the_user_fixes(at):
    """--feed is_training=True: the question is asked of that value."""
    built = _saved_model(at, tf_layers, mode="fed", signature_has_mode=True)
    return built._replace(options={"feeds": {"is_training": True}})


@case()
def saved_model_whose_default_the_user_overrides(at):
    built = _saved_model(at, tf_layers, mode="default_true")
    return built._replace(options={"feeds": {"is_training": False}})


# ------------------------------------------------------------------------------------------------------- Keras


def _legacy_keras(at, run_updates=True):
    """Model.fit in graph mode with legacy Keras, then a Saver of its session."""
    keras = tf.keras
    with session() as s:
        keras.backend.set_session(s)
        norm = keras.layers.BatchNormalization(momentum=0.9)
        model = keras.Sequential(
            [keras.layers.Dense(3, use_bias=False, input_shape=(3,)), norm, keras.layers.Dense(2, name="logits")]
        )
        random = np.random.RandomState(0)
        data = random.normal(1, 2, (8, 3)), random.normal(0, 1, (8, 2))
        if run_updates:
            model.compile(keras.optimizers.legacy.SGD(0.1), "mse")
            model.fit(*data, batch_size=4, verbose=0)
        else:
            # One's own train op with a Keras model: its updates are in model.updates, which nobody runs.
            y = tf.placeholder(tf.float32, [None, 2])
            loss = tf.reduce_mean(tf.square(model.output - y))
            train_op = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
            s.run(tf.global_variables_initializer())
            s.run(train_op, {model.input: data[0], y: data[1], keras.backend.learning_phase(): True})
        statistics = s.run([norm.moving_mean, norm.moving_variance])
        moved = not np.array_equal(statistics[0], np.zeros(3)) and not np.array_equal(statistics[1], np.ones(3))
        assert moved == run_updates
        prefix = tf.train.Saver().save(s, str(at / "model.ckpt"))
    return Built(Path(f"{prefix}.meta"))


for _variables in ("ref", "resource"):
    register(f"legacy_keras_fit_{_variables}", _legacy_keras, variables=_variables, layers=1)
    _make = partial(_legacy_keras, run_updates=False)
    register(f"legacy_keras_with_a_train_op_of_ones_own_{_variables}", _make, "BN001 BN002", variables=_variables)


# ---------------------------------------------------------------------------------- SavedModels of TensorFlow 2


def _module(population, trained):
    """A tf.Module whose call takes the mode as a Python bool."""
    tf2 = tf.compat.v2

    class Net(tf2.Module):
        def __init__(self):
            super().__init__()
            self.gamma = tf2.Variable([1.0, 1.5, 2.0] if trained else tf2.ones([3]), name="bn/gamma")
            self.beta = tf2.Variable(tf2.zeros([3]), name="bn/beta")
            self.moving_mean = tf2.Variable(
                [0.5, 1.0, -1.0] if trained else tf2.zeros([3]), False, name="bn/moving_mean"
            )
            self.moving_variance = tf2.Variable(
                [0.5, 1.0, 2.0] if trained else tf2.ones([3]), False, name="bn/moving_variance"
            )
            self.w = tf2.Variable(tf2.random.normal([3, 3], seed=1), name="w")

        @tf2.function(input_signature=[tf2.TensorSpec([None, 3])])
        def predict(self, x):
            h = tf2.matmul(x, self.w)
            used = (self.moving_mean, self.moving_variance) if population else tf2.nn.moments(h, [0])
            return {"y": tf2.nn.batch_normalization(h, *used, self.beta, self.gamma, 1e-3)}

    return Net()


def _module_saved(at, population, trained=True):
    with context.eager_mode():
        module = _module(population, trained)
        tf.compat.v2.saved_model.save(module, str(at / "export"), signatures=module.predict)
    return Built(at / "export")


register("saved_model_of_a_module", partial(_module_saved, population=True), layers=1)
register(
    "saved_model_of_a_module_with_batch_statistics",
    partial(_module_saved, population=False),
    "BN004",
    layers=1,
    not_understood=1,  # its moving statistics, which nothing reads
)

_KERAS3 = """
import os, sys
os.environ.update(TF_USE_LEGACY_KERAS="0", KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="")
import numpy as np, tensorflow as tf, keras
keras.utils.set_random_seed(0)
def model():
    return keras.Sequential([keras.layers.Input((2, 2, 3)), keras.layers.Conv2D(3, 1, use_bias=False),
                             keras.layers.BatchNormalization(momentum=0.9), keras.layers.Flatten(), keras.layers.Dense(2)])
trained = model()
trained.compile("sgd", "mse")
data = np.random.RandomState(0).normal(1, 2, (8, 2, 2, 3)).astype("float32"), np.zeros((8, 2), "float32")
trained.fit(*data, epochs=1, verbose=0)
trained.export(sys.argv[1] + "/inference", verbose=False)
archive = keras.export.ExportArchive()
archive.track(trained)
archive.add_endpoint("serve", lambda x: trained(x, training=True), [tf.TensorSpec([None, 2, 2, 3])])
archive.write_out(sys.argv[1] + "/training", verbose=False)
"""


@functools.lru_cache(maxsize=1)
def _keras3_exports(at: Path) -> Path:
    """Keras 3 and legacy Keras exclude each other in one process, so a child writes both models."""
    if not libraries.HAS_KERAS_3:
        pytest.skip("Keras 3 comes with TensorFlow 2.16")
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    subprocess.run(
        [sys.executable, "-c", _KERAS3, str(at)], check=True, env=environment, capture_output=True, timeout=100
    )
    return at


@case(layers=1)
def saved_model_of_keras3(at):
    shared = at.parent / "keras3_exports"
    shared.mkdir(exist_ok=True)
    return Built(_keras3_exports(shared) / "inference")


@case("BN004 BN005", layers=1)
def saved_model_of_keras3_in_training_mode(at):
    """An endpoint that calls the model with training=True: it moves the statistics of the served model."""
    shared = at.parent / "keras3_exports"
    shared.mkdir(exist_ok=True)
    return Built(_keras3_exports(shared) / "training")


@case(layers=1)
def saved_model_of_legacy_keras(at):
    """tf_keras in eager mode, saved in the SavedModel format with train and call functions beside the signature."""
    with context.eager_mode():
        keras = tf.compat.v2.keras
        layers = keras.layers
        model = keras.Sequential(
            [layers.Dense(3, use_bias=False, input_shape=(3,)), layers.BatchNormalization(), layers.Dense(2)]
        )
        model.compile("sgd", "mse")
        model.fit(np.random.RandomState(0).normal(1, 2, (8, 3)), np.zeros((8, 2)), verbose=0)
        tf.compat.v2.saved_model.save(model, str(at / "export"))
    return Built(at / "export")
