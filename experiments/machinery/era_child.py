"""Batch norm of TensorFlow 1 itself: contrib's, tf.layers' and tf.keras'. Run by an interpreter that `make eras` has made.

`children.ask_era` calls one of the functions below. They are written for Python 3.6 and know nothing of this project.
"""

import inspect
import json
import sys

import numpy as np
import tensorflow as tf

_PAIRS = [(False, False), (False, True), (True, False), (True, True)]


def signatures():
    """Each parameter's default, by the function's name; and what a call makes."""
    functions = {
        "tf.layers.batch_normalization": tf.layers.batch_normalization,
        "contrib's batch_norm": tf.contrib.layers.batch_norm,
    }
    return {name: {"signature": signature(each), "made_by": _made_by(each)} for name, each in functions.items()}


def signature(function):
    """Each parameter's default, or that it is required; an initializer by the name of its class. Today's pages ask it too."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        shown = type(default).__name__ if name.endswith("_initializer") and default is not None else repr(default)
        found[name] = "required" if default is parameter.empty else shown
    return found


def _made_by(function):
    with tf.Graph().as_default():
        function(tf.ones([4, 2, 2, 3]))
        names = [variable.op.name.split("/")[-1] for variable in tf.global_variables()]
        return {"variables": names, "update_ops": len(tf.get_collection(tf.GraphKeys.UPDATE_OPS))}


def contrib_trains(values):
    """Whether a training step with contrib's batch norm changes its variables, the moving ones too."""
    with tf.Graph().as_default(), tf.Session() as session:
        outputs = tf.contrib.layers.batch_norm(tf.constant(np.array(values, np.float32)))
        train = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(tf.square(outputs - 1.0)))
        session.run(tf.global_variables_initializer())
        before = session.run(tf.global_variables())
        session.run([train, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)])
        return not any(map(np.array_equal, before, session.run(tf.global_variables())))


def _contrib(inputs, training, trainable, momentum, initial):
    options = {"is_training": training, "trainable": trainable, "decay": momentum, "scale": True}
    starts = {name: tf.constant_initializer(value) for name, value in initial.items()}
    return tf.contrib.layers.batch_norm(inputs, param_initializers=starts, **options), []


def _initializers(initial):
    return {name + "_initializer": tf.constant_initializer(value) for name, value in initial.items()}


def _layers(inputs, training, trainable, momentum, initial):
    options = {"training": training, "trainable": trainable, "momentum": momentum}
    return tf.layers.batch_normalization(inputs, **dict(options, **_initializers(initial))), []


def _keras(inputs, training, trainable, momentum, initial):
    layer = tf.keras.layers.BatchNormalization(momentum=momentum, trainable=trainable, **_initializers(initial))
    outputs = layer(inputs, training=training)
    return outputs, layer.updates


def four_cells(image, start, momentum, batches):
    """(training, trainable) on one image, two runs each; and one step of the moving variance on batches of several ranks."""
    answer = {}
    for name, build in (("contrib", _contrib), ("tf.layers", _layers), ("tf.keras", _keras)):
        cells = []
        for training, trainable in _PAIRS:
            counted, runs = _runs(build, image, training, trainable, momentum, start)
            found = {"training": training, "trainable": trainable, "runs": runs}
            cells.append(dict(found, update_ops=None if build is _keras else counted))
        variances = [_runs(build, batch, True, True, 0.0, {})[1][0][2] for batch in batches]
        answer[name] = {"cells": cells, "variances": variances}
    return answer


def _runs(build, values, training, trainable, momentum, start):
    """The number of update ops, and for each of two runs the outputs and the statistics after it."""
    values = np.array(values, np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        outputs, own = build(tf.constant(values), training, trainable, momentum, start)
        updates = list(own) + tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        statistics = [
            next(each for each in tf.global_variables() if each.op.name.endswith(name))
            for name in ("moving_mean", "moving_variance")
        ]
        session.run(tf.global_variables_initializer())
        runs = []
        for _ in range(2):
            _, got = session.run([updates, outputs])
            runs.append([got.tolist()] + [each.tolist() for each in session.run(statistics)])
        return len(updates), runs


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.load(sys.stdin))))
