"""What the libraries do where they differ: the moving variance by rank and kernel, and (training, trainable). Measured.

The table of README's conventions is this test's: a library that changes its mind fails it.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from tests import libraries

SHAPES = {2: (6, 3), 3: (6, 2, 3), 4: (6, 2, 2, 3), 5: (6, 2, 2, 2, 3)}

# Which library keeps which variance, by rank: "biased" (1/m) or "unbiased" (1/(m−1)).
VARIANCES = {
    "batch_norm_wrapper": {2: "biased", 3: "biased", 4: "biased", 5: "biased"},
    "batch_norm_wrapper, unbiased_variance": {2: "unbiased", 3: "unbiased", 4: "unbiased", 5: "unbiased"},
    "tf.layers": {2: "biased", 3: "biased", 4: "unbiased", 5: "unbiased"},
    "tf.layers, fused=False": {2: "biased", 3: "biased", 4: "biased", 5: "biased"},
    "legacy Keras": {2: "biased", 3: "biased", 4: "unbiased", 5: "unbiased"},
    "Keras 3": {2: "biased", 3: "biased", 4: "biased", 5: "biased"},
}

# With training=True: what normalizes, and whether the statistics move, for trainable True and False.
TRAINABLE = {
    "batch_norm_wrapper": {True: ("batch", True), False: ("batch", True)},
    "tf.layers": {True: ("batch", True), False: ("batch", False)},
    "legacy Keras": {True: ("batch", True), False: ("population", False)},
    "Keras 3": {True: ("batch", True), False: ("population", False)},
}

_KERAS_3 = """
import json, sys
import keras, numpy as np
values = [np.array(v, "float32") for v in json.load(sys.stdin)]
found = []
for batch in values:
    for trainable in (True, False):
        layer = keras.layers.BatchNormalization(momentum=0.0, trainable=trainable)
        outputs = layer(batch, training=True)
        found.append([np.asarray(outputs).tolist(), np.asarray(layer.moving_variance).tolist()])
json.dump(found, sys.stdout)
"""


def batch(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).normal(2.0, 3.0, SHAPES[rank]).astype(np.float32)


def graph_mode(build) -> dict[tuple[int, bool], tuple[np.ndarray, np.ndarray]]:
    """The outputs and the moving variance after one training run of ``build(inputs, trainable)``."""
    found = {}
    for rank in SHAPES:
        for trainable in (True, False):
            with tf.Graph().as_default(), tf.Session() as session:
                outputs = build(tf.constant(batch(rank)), trainable)
                session.run(tf.global_variables_initializer())
                got, _ = session.run([outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)])
                (variance,) = [v for v in tf.global_variables() if "moving_variance" in v.name]
                found[rank, trainable] = got, session.run(variance)
    return found


def wrapper(**options):
    return lambda x, trainable: bn_graph.batch_norm_wrapper(x, True, decay=0.0, trainable=trainable, **options)


def tf_layers(**options):
    return lambda x, trainable: legacy_layers().batch_normalization(
        x, momentum=0.0, training=True, trainable=trainable, **options
    )


def legacy_keras() -> dict:
    """In a process of its own, since eager mode is decided for a process; TF2 is where trainable=False came to mean more."""
    return _keras_elsewhere(_KERAS_3.replace("import keras", f"import {libraries.LEGACY_KERAS} as keras"), legacy="1")


def _keras_elsewhere(program: str, legacy: str) -> dict:
    values = json.dumps([batch(rank).tolist() for rank in SHAPES])
    environment = os.environ | {"TF_USE_LEGACY_KERAS": legacy, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(
        [sys.executable, "-c", program], input=values, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = iter(json.loads(done.stdout))
    return {(rank, trainable): tuple(map(np.array, next(results))) for rank in SHAPES for trainable in (True, False)}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict]:
    return {
        "batch_norm_wrapper": graph_mode(wrapper()),
        "batch_norm_wrapper, unbiased_variance": graph_mode(wrapper(unbiased_variance=True)),
        "tf.layers": graph_mode(tf_layers()),
        "tf.layers, fused=False": graph_mode(tf_layers(fused=False)),
        "legacy Keras": legacy_keras(),
        "Keras 3": _keras_elsewhere(_KERAS_3, legacy="0") if libraries.HAS_KERAS_3 else {},
    }


def _marked(table: dict) -> list:
    """The table's libraries; Keras 3 is skipped where it is not there."""
    marks = {"Keras 3": libraries.needs_keras_3}
    return [pytest.param(library, marks=marks.get(library, ())) for library in table]


@pytest.mark.parametrize("library", _marked(VARIANCES))
@pytest.mark.parametrize("rank", SHAPES)
def test_moving_variance_is_biased_or_not_as_the_table_says(measured, library, rank):
    _, variance = measured[library][rank, True]
    axes = tuple(range(rank - 1))
    ddof = {"biased": 0, "unbiased": 1}[VARIANCES[library][rank]]
    np.testing.assert_allclose(variance, batch(rank).astype(np.float64).var(axes, ddof=ddof), rtol=1e-5)


@pytest.mark.parametrize("library", _marked(TRAINABLE))
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("rank", SHAPES)
def test_training_with_trainable_false_does_what_the_table_says(measured, library, trainable, rank):
    outputs, variance = measured[library][rank, trainable]
    normalizes_with, moves = TRAINABLE[library][trainable]
    values, axes = batch(rank).astype(np.float64), tuple(range(rank - 1))
    mean, var = (values.mean(axes), values.var(axes)) if normalizes_with == "batch" else (0.0, 1.0)
    np.testing.assert_allclose(outputs, (values - mean) / np.sqrt(var + 1e-3), rtol=1e-4, atol=1e-5)
    assert (not np.array_equal(variance, np.ones(3))) == moves
