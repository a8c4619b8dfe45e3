"""Legacy Keras and Keras 3, each in a process of its own: a process can have only one of them as its ``tf.keras``.

`ask_both` runs one of the functions below in a child of each library, both at once; `where`, `text_by_library` and
`verdict_by_library` judge what came back. The module imports neither Keras until a child calls such a function.
"""

import math
import os
from collections.abc import Callable

import numpy as np

from experiments.machinery import children
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

__all__ = ["LIBRARIES", "ask_both", "four_cells", "modes", "text_by_library", "verdict_by_library", "where"]

LIBRARIES = {"legacy Keras": "1", "Keras 3": "0"}
"""Each library, and the value of TF_USE_LEGACY_KERAS that makes it ``tf.keras``."""


def ask_both(function: Callable, **arguments) -> dict[str, dict]:
    """What `function` returns in a process of each library; `arguments` and answers are what JSON can hold."""
    questions = {
        library: {"environment": {"TF_USE_LEGACY_KERAS": legacy, "KERAS_BACKEND": "tensorflow"}, **arguments}
        for library, legacy in LIBRARIES.items()
    }
    return children.ask_each(function, questions)


# Of a result whose "libraries" are what `ask_both` returned: one part of it, in each library.
def where(result: dict, part: str, condition: Callable[[dict], bool]) -> list[str]:
    """The libraries that meet the condition."""
    return [library for library, each in result["libraries"].items() if condition(each[part])]


def text_by_library(result: dict, part: str, text: Callable[[dict], str]) -> str:
    """A sentence: one for all libraries if they agree, else what was measured in each."""
    texts = {library: text(each[part]) for library, each in result["libraries"].items()}
    if len(set(texts.values())) == 1:
        return f"In {' and '.join(texts)} alike, {next(iter(texts.values()))}."
    return "; ".join(f"in {library}, {each}" for library, each in texts.items()).replace("in", "In", 1) + "."


def verdict_by_library(result: dict, part: str, condition: Callable, text: Callable, note: str) -> Verdict:
    """Judges by legacy Keras, the documents' own, first; `text` says what was measured in one library."""
    good, measured = where(result, part, condition), text_by_library(result, part, text)
    if len(good) == len(result["libraries"]):
        return holds(measured, note)
    if next(iter(LIBRARIES)) in good:
        others = " or ".join(library for library in result["libraries"] if library not in good)
        return holds_with_a_trap(f"not in {others}", measured, note)
    return does_not_hold(measured, f"{note} True of {good[0]}." if good else note)


def _keras():
    """The Keras that this process was started for."""
    if os.environ["TF_USE_LEGACY_KERAS"] == "1":
        import tf_keras as keras
    else:
        import keras
    return keras


def _is_legacy() -> bool:
    return os.environ["TF_USE_LEGACY_KERAS"] == "1"


def _numbers(values) -> list:
    return np.asarray(values, np.float64).tolist()


def _statistics(layer) -> list:
    return [_numbers(layer.moving_mean), _numbers(layer.moving_variance)]


# ---- experiments.training_vs_trainable


def four_cells(image: list, gamma: float, beta: float, momentum: float, batches: list) -> dict:
    """(training, trainable) on one image, two runs each; and one step of the moving variance on batches of several ranks."""
    keras = _keras()
    image = np.array(image, np.float32)
    cells = []
    for training in (False, True):
        for trainable in (False, True):
            layer = keras.layers.BatchNormalization(
                momentum=momentum,
                trainable=trainable,
                gamma_initializer=keras.initializers.Constant(gamma),
                beta_initializer=keras.initializers.Constant(beta),
            )
            runs = [[_numbers(layer(image, training=training)), *_statistics(layer)] for _ in range(2)]
            cells.append({"training": training, "trainable": trainable, "runs": runs, "update_ops": None})
    variances = []
    for batch in batches:
        layer = keras.layers.BatchNormalization(momentum=0.0)
        layer(np.array(batch, np.float32), training=True)
        variances.append(_numbers(layer.moving_variance))
    return {"cells": cells, "variances": variances, "version": keras.__version__}


# ---- experiments.keras_modes


def modes(examples: int, script_seed: int) -> dict:
    """All that experiments.keras_modes measures in one library."""
    keras = _keras()
    answer = {"version": keras.__version__, "learning_phase": _learning_phase(keras)}
    answer |= {"one_layer": _one_layer(keras), "hard_wired": _hard_wired(keras, examples)}
    answer |= {"which_calls_move": _which_calls_move(keras, examples), "frozen": _frozen(keras, examples)}
    answer["script"] = {
        "as_printed": _script(keras, script_seed, trainable=True, batch_size=3),
        "no_ragged_batch": _script(keras, script_seed, trainable=True, batch_size=5),
        "no_training_of_gamma": _script(keras, script_seed, trainable=True, batch_size=3, scale=False, center=False),
        "as_its_title": _script(keras, script_seed, trainable=False, batch_size=3),
    }
    answer |= {"recursion": _recursion(keras), "after_compile": _after_compile(keras, examples)}
    answer["trainable_false"] = _trainable_false_with_training(keras)
    answer["tf1_graph"] = _tf1_graph(keras)
    return answer


def _learning_phase(keras) -> dict:
    """Is the global switch there, and does it switch a layer that is called without training=?"""
    import tensorflow as tf

    names = ("learning_phase", "set_learning_phase", "learning_phase_scope")
    found = {name: hasattr(keras.backend, name) for name in names}
    found["through_tf_keras"] = {name: hasattr(tf.keras.backend, name) for name in names}
    found["outputs_by_phase"] = None
    if found["set_learning_phase"]:
        outputs = {}
        for phase in (0, 1):
            keras.backend.set_learning_phase(phase)
            outputs[str(phase)] = _numbers(keras.layers.BatchNormalization()(np.array([[3.0], [4.0]], np.float32)))
        keras.backend.set_learning_phase(0)
        keras.backend.clear_session()  # back to a phase that nobody has set
        found["outputs_by_phase"] = outputs
    return found


def _one_layer(keras) -> dict:
    """The document's layer on [[3., 4.]] and [[3.], [4.]], and on one example with a beta."""
    row, column = np.array([[3.0, 4.0]], np.float32), np.array([[3.0], [4.0]], np.float32)

    def plain(**options):
        return keras.layers.BatchNormalization(scale=False, center=False, **options)

    one = plain()
    of_one = _numbers(one(row, training=True))
    with_beta = keras.layers.BatchNormalization(beta_initializer=keras.initializers.Constant(0.7))
    # One value a channel at rank 4: where legacy Keras takes the fused kernel and its Bessel correction of 1/(1−1).
    rank_4 = plain()
    outputs_rank_4 = _numbers(rank_4(row.reshape(1, 1, 1, 2), training=True))
    return {
        "without_training": _numbers(plain()(row)),
        "one_example": of_one,
        "one_example_printed": str(np.asarray(plain()(row, training=True))),
        "one_example_moving_variance": _numbers(one.moving_variance),
        "one_example_with_beta": _numbers(with_beta(row, training=True)),
        "one_value_rank_4": outputs_rank_4,
        "one_value_rank_4_moving_variance": _numbers(rank_4.moving_variance),
        "two_examples_printed": [str(value) for value in np.asarray(plain()(column, training=True)).ravel()],
        "axis_0_printed": [str(value) for value in np.asarray(plain(axis=0)(row, training=True)).ravel()],
    }


def _hard_wired(keras, examples: int) -> dict:
    """The document's convolutional model, training=True written into it: a step under the tape, then predict."""
    import tensorflow as tf

    images = np.random.default_rng(0).normal(size=(examples, 64, 64, 3)).astype(np.float32)
    found = {}
    for name, options in {"hard_wired": {"training": True}, "left_open": {}}.items():
        keras.utils.set_random_seed(0)
        inputs = keras.layers.Input((64, 64, 3))
        x = keras.layers.Conv2D(3, kernel_size=3, padding="same")(inputs)
        model = keras.Model(inputs, keras.layers.BatchNormalization()(x, **options))
        layer = model.layers[2]
        weight = layer.weights[2]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(images) - 1.0))
        gradients = tape.gradient(loss, model.trainable_variables)
        keras.optimizers.SGD(0.1).apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        after_tape = _numbers(weight)
        model(images, training=True)
        after_call_with_training = _numbers(weight)
        together = model.predict(images, verbose=0)
        after_predict = _numbers(weight)
        alone = model.predict(images[:1], verbose=0)
        model(images, training=False)
        after_training_false = _numbers(weight)
        found[name] = {
            "weights_2": str(getattr(weight, "path", weight.name)),
            "is_moving_mean": weight is layer.moving_mean,
            "moved_by_tape": after_tape != [0.0] * 3,
            "moving_mean_after_tape": after_tape,
            "moved_by_call_with_training": after_call_with_training != after_tape,
            "moved_by_predict": after_predict != after_call_with_training,
            "moved_by_call_with_training_false": after_training_false != after_predict,
            "alone_differs_by": float(np.abs(alone - together[:1]).max()),
            "deviation_of_outputs": float(together.std()),
        }
    return found


def _dense_model(keras, momentum: float = 0.5):
    """One BatchNormalization of five features, with its layer."""
    inputs = keras.layers.Input([5])
    layer = keras.layers.BatchNormalization(momentum=momentum)
    return keras.Model(inputs, layer(inputs)), layer


def _five_features(examples: int) -> np.ndarray:
    return np.random.default_rng(1).normal(2.0, 3.0, (examples, 5)).astype(np.float32)


def _which_calls_move(keras, examples: int) -> dict[str, bool]:
    """For each way of calling a model: did its moving statistics move?"""
    model, layer = _dense_model(keras)
    x = _five_features(examples)
    model.compile(optimizer="sgd", loss="mse")
    calls = {
        "fit": lambda: model.fit(x, x, batch_size=4, verbose=0),
        "train_on_batch": lambda: model.train_on_batch(x, x),
        "model(x, training=True)": lambda: model(x, training=True),
        "model(x)": lambda: model(x),
        "model(x, training=False)": lambda: model(x, training=False),
        "predict": lambda: model.predict(x, verbose=0),
        "evaluate": lambda: model.evaluate(x, x, verbose=0),
    }
    moves = {}
    for name, call in calls.items():
        before = _statistics(layer)
        call()
        moves[name] = _statistics(layer) != before
    return moves


def _frozen(keras, examples: int) -> dict:
    """trainable=False before compile: what fit changes, and which statistics each call normalizes with."""
    x = _five_features(examples)
    inputs = keras.layers.Input([5])
    layer = keras.layers.BatchNormalization(
        trainable=False,
        moving_mean_initializer=keras.initializers.Constant(1.0),
        moving_variance_initializer=keras.initializers.Constant(4.0),
    )
    head = keras.layers.Dense(5)
    model = keras.Model(inputs, head(layer(inputs)))
    whole = keras.Model(inputs, layer.output if not isinstance(layer.output, list) else layer.output[0])
    model.compile(optimizer="sgd", loss="mse")
    before = [_numbers(weight) for weight in layer.weights]
    head_before = _numbers(head.kernel)
    model.fit(x, x, batch_size=4, epochs=3, verbose=0)
    by_population = (x - 1.0) / np.sqrt(4.0 + 1e-3)
    outputs = {
        "predict": whole.predict(x, verbose=0),
        "model(x)": whole(x),
        "model(x, training=False)": whole(x, training=False),
        "model(x, training=True)": whole(x, training=True),
    }
    return {
        "layer_changed_by_fit": [_numbers(weight) for weight in layer.weights] != before,
        "next_layer_changed_by_fit": _numbers(head.kernel) != head_before,
        "distance_from_population": {
            name: float(np.abs(np.asarray(each) - by_population).max()) for name, each in outputs.items()
        },
    }


def _script(keras, seed: int, *, trainable: bool, batch_size: int, **options) -> dict:
    """The document's four predictions: of the same ten rows, after a fit on them, the third with training=True."""
    keras.utils.set_random_seed(seed)
    x = np.random.randn(10, 5) * 5 + 0.3
    inputs = keras.layers.Input([5])
    layer = keras.layers.BatchNormalization(trainable=trainable, epsilon=1e-9, momentum=0.99, **options)
    model = keras.Model(inputs=inputs, outputs=layer(inputs))
    model.compile(loss=lambda x, y: (x - y) ** 2)
    model.fit(x, x, batch_size=batch_size, epochs=10, verbose=0)
    fitted = _statistics(layer)
    start_left = 0.99 ** (10 * math.ceil(10 / batch_size))
    averaged = (np.array(fitted[1]) - start_left) / (1 - start_left)  # the batches' variances, without the start of 1
    parameters = [_numbers(weight) for weight in (layer.gamma, layer.beta) if weight is not None]
    calls = ({}, {}, {"training": True}, {})
    predictions = [np.asarray(model(x, **call)) for call in calls]
    return {
        "optimizer": type(model.optimizer).__name__.lower(),
        "gamma_and_beta": parameters,
        "moving_mean": fitted[0],
        "moving_variance": fitted[1],
        "share_of_sample_variance": float(np.mean(averaged / x.var(0, ddof=1))) if trainable else None,
        "means": [_numbers(each.mean(0)) for each in predictions],
        "variances": [_numbers(each.var(0)) for each in predictions],
        "largest_difference_from_first": [float(np.abs(each - predictions[0]).max()) for each in predictions],
    }


def _recursion(keras) -> dict:
    """A layer inside a model inside a model: what setting the outermost one's trainable does to the flags within."""
    innermost = keras.layers.BatchNormalization()
    inner = keras.Sequential([keras.layers.Input([5]), innermost])
    outer = keras.Sequential([keras.layers.Input([5]), inner, keras.layers.Dense(2)])
    found = {"start": innermost.trainable}
    outer.trainable = False
    found["outer_false"] = [inner.trainable, innermost.trainable, len(outer.trainable_variables)]
    innermost.trainable = True
    found["then_innermost_true"] = [inner.trainable, innermost.trainable, len(outer.trainable_variables)]
    outer.trainable = False
    inner.trainable = True
    found["then_inner_true"] = [outer.trainable, innermost.trainable, len(outer.trainable_variables)]
    outer.trainable = True
    found["outer_true"] = [inner.trainable, innermost.trainable, len(outer.trainable_variables)]
    return found


def _after_compile(keras, examples: int) -> dict[str, dict[str, bool]]:
    """Did fit change the layer, its flag having been set to False after compile in one of several circumstances?"""
    x = _five_features(examples)

    def model_of(**options):
        keras.utils.set_random_seed(0)
        model, layer = _dense_model(keras)
        model.compile(optimizer="sgd", loss="mse", **options)
        return model, layer

    def fit(model):
        model.fit(x, x, batch_size=4, verbose=0)

    def changed(layer, call) -> dict[str, bool]:
        before = [_numbers(weight) for weight in layer.weights]
        call()
        after = [_numbers(weight) for weight in layer.weights]
        return {"parameters": after[:2] != before[:2], "statistics": after[2:] != before[2:]}

    found = {}
    model, layer = model_of()
    found["no_change_of_the_flag"] = changed(layer, lambda: fit(model))
    layer.trainable = False
    found["after_a_fit"] = changed(layer, lambda: fit(model))
    found["direct_call"] = changed(layer, lambda: model(x, training=True))
    model.compile(optimizer="sgd", loss="mse")
    found["compiled_again"] = changed(layer, lambda: fit(model))
    model, layer = model_of()
    layer.trainable = False
    found["before_the_first_fit"] = changed(layer, lambda: fit(model))
    model, layer = model_of(run_eagerly=True)
    fit(model)
    layer.trainable = False
    found["run_eagerly"] = changed(layer, lambda: fit(model))
    return found


def _trainable_false_with_training(keras) -> dict[str, dict]:
    """training=True with trainable=False: what normalizes, in TF2's layer and, in legacy Keras, in TF1's."""
    import tensorflow as tf

    x = _five_features(8)
    batch = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    moving = x / np.sqrt(1.0 + 1e-3)

    def distances(outputs) -> dict[str, float]:
        return {
            "from_batch": float(np.abs(outputs - batch).max()),
            "from_moving": float(np.abs(outputs - moving).max()),
        }

    found = {"TF2": distances(np.asarray(keras.layers.BatchNormalization(trainable=False)(x, training=True)))}
    if _is_legacy():
        v1 = tf.compat.v1
        with tf.Graph().as_default(), v1.Session() as session:
            layer = v1.keras.layers.BatchNormalization(trainable=False)
            outputs = layer(tf.constant(x), training=True)
            session.run([variable.initializer for variable in layer.weights])
            found["TF1"] = distances(session.run(outputs)) | {"updates": len(layer.updates)}
    return found


def _tf1_graph(keras) -> dict:
    """The layer on a placeholder in a TF1-style graph: what is built, what is collected, what runs."""
    import tensorflow as tf

    v1 = tf.compat.v1
    found = {"built": False, "error": ""}
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 5])
        try:
            layer = keras.layers.BatchNormalization(momentum=0.5)
            outputs = layer(x, training=True)
        except Exception as error:  # whatever it says is the measurement
            return found | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        found["built"] = True
        found["outputs_in_graph"] = getattr(outputs, "graph", None) is graph
        found["update_ops"] = len(v1.get_collection(v1.GraphKeys.UPDATE_OPS))
        found["layer_updates"] = len(getattr(layer, "updates", []))
        found["global_variables"] = len(v1.global_variables())
        found["trainable_variables"] = len(v1.trainable_variables())
        found["assign_ops_in_graph"] = sum(op.type.startswith("Assign") for op in graph.get_operations())
        try:
            with v1.Session() as session:
                session.run(v1.global_variables_initializer())
                session.run(outputs, {x: _five_features(8)})
                found["runs"] = True
                # Keras 3 wraps the variable; legacy Keras's is the variable.
                variable = layer.moving_mean if _is_legacy() else layer.moving_mean.value
                found["moving_mean"] = _numbers(session.run(variable))
        except Exception as error:
            found |= {"runs": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return found
