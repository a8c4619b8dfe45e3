"""Signatures, defaults and dated calls: what the documents list, against the libraries that are installed.

Documents: article, the sections on the three implementations (article-04, 06, 08); qa, *Update July 2016* (qa-01); r2rt,
*Training the network* and throughout (r2rt-10, 24); solver, *class Model* (solver-11, 13).

    make layer-defaults        or        python -m experiments.layer_defaults

The signatures are read from the live functions and compared name by name with the documents' lists. contrib itself is gone with
TensorFlow 1, so its signature is read from this library's slim form, which must first agree with the article's list. The
rarer options of ``tf.layers`` are built and run. Nothing is trained, so both modes are the same.
"""

import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow

import bn_graph
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness
from experiments.machinery.figures import figure
from experiments.machinery.harness import Mode
from experiments.machinery.tables import draw_table
from experiments.machinery.verdicts import Verdict, dated, does_not_hold, holds, holds_if

# The article's lists. Initializers by their class; "required" has no default.
NN_LISTED = {
    "x": "required",
    "mean": "required",
    "variance": "required",
    "offset": "required",
    "scale": "required",
    "variance_epsilon": "required",
    "name": "None",
}
LAYERS_LISTED = {
    "inputs": "required",
    "axis": "-1",
    "momentum": "0.99",
    "epsilon": "0.001",
    "center": "True",
    "scale": "True",
    "beta_initializer": "Zeros",
    "gamma_initializer": "Ones",
    "moving_mean_initializer": "Zeros",
    "moving_variance_initializer": "Ones",
    "beta_regularizer": "None",
    "gamma_regularizer": "None",
    "beta_constraint": "None",
    "gamma_constraint": "None",
    "training": "False",
    "trainable": "True",
    "name": "None",
    "reuse": "None",
    "renorm": "False",
    "renorm_clipping": "None",
    "renorm_momentum": "0.99",
    "fused": "None",
    "virtual_batch_size": "None",
    "adjustment": "None",
}
CONTRIB_LISTED = {
    "inputs": "required",
    "decay": "0.999",
    "center": "True",
    "scale": "False",
    "epsilon": "0.001",
    "activation_fn": "None",
    "param_initializers": "None",
    "param_regularizers": "None",
    "updates_collections": "'update_ops'",  # tf.GraphKeys.UPDATE_OPS
    "is_training": "True",
    "reuse": "None",
    "variables_collections": "None",
    "outputs_collections": "None",
    "trainable": "True",
    "batch_weights": "None",
    "fused": "None",
    "data_format": "'NHWC'",  # DATA_FORMAT_NHWC
    "zero_debias_moving_mean": "False",
    "scope": "None",
    "renorm": "False",
    "renorm_clipping": "None",
    "renorm_decay": "0.99",
    "adjustment": "None",
}
SAME_MEANING = {"momentum": "decay", "training": "is_training", "name": "scope", "renorm_momentum": "renorm_decay"}
# article-08.
CLAIMED_DIFFERENCES = {"scale", "center"}

# The document's.
STEP_TEST = "i % 50 is 0"
# Its second training's.
STEPS = 10_000
# Looked for, never installed.
MODULES = ["tensorflow.contrib", "tf_slim", "tflearn", "tensorflow.examples"]
BATCH = np.random.default_rng(0).normal(2.0, 3.0, (4, 2, 2, 3)).astype(np.float32)

FULL = QUICK = Mode()


def run(settings: harness.Settings) -> dict:
    return {
        "signatures": {
            "tf.nn.batch_normalization": _signature(tf.nn.batch_normalization),
            "tf.layers.batch_normalization": _signature(legacy_layers().batch_normalization),
            "slim form": _signature(slim.batch_norm),
        },
        "made_by": {
            "tf.nn.batch_normalization": _made_by(_call_nn),
            "tf.layers.batch_normalization": _made_by(legacy_layers().batch_normalization),
            "slim form": _made_by(slim.batch_norm),
        },
        "options": _options(),
        "combinations": _combinations(),
        "modules_found": {name: importlib.util.find_spec(name) is not None for name in MODULES},
        "attributes": _attributes(),
        "old_calls": _old_calls(),
        "step_test": _step_test(),
        "model_names": {name: _model_error(name) for name in ("Batch Norm", "BatchNorm")},
        "model_of_32_fed_784": _fed_784_error(),
    }


def _signature(function: Callable) -> dict[str, str]:
    """Each parameter's default, an initializer by the name of its class."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if default is parameter.empty:
            found[name] = "required"
        else:
            found[name] = (
                type(default).__name__ if name.endswith("_initializer") and default is not None else repr(default)
            )
    return found


def _call_nn(inputs: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(inputs, [0, 1, 2])
    return tf.nn.batch_normalization(inputs, mean, variance, None, None, 1e-3)


def _made_by(call: Callable[[tf.Tensor], tf.Tensor]) -> dict:
    """What one call with nothing but its inputs leaves in a fresh graph."""
    with tf.Graph().as_default():
        call(tf.constant(BATCH))
        return {
            "variables": [variable.op.name.split("/")[-1] for variable in tf.global_variables()],
            "update_ops": len(tf.get_collection(tf.GraphKeys.UPDATE_OPS)),
        }


def _adjust(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """An adjustment that is the same for every example: twice the normalized value, and half above it."""
    return tf.fill([shape[0], 1, 1, 1], 2.0), tf.fill([shape[0], 1, 1, 1], 0.5)


OPTIONS = {
    "renorm": {"renorm": True},
    "virtual_batch_size": {"virtual_batch_size": 2},
    "adjustment": {"adjustment": _adjust},
}


def _options() -> dict[str, dict]:
    """The rarer options of tf.layers in training: do they build and run, and do they what their names say?"""
    plain = _run_layer()["outputs"]
    # At the first step renorm's unclipped r and d turn the batch's statistics into the moving ones, deviation 1, mean 0.
    expected = {"renorm": BATCH, "virtual_batch_size": _in_twos(BATCH, apart=2), "adjustment": 2.0 * plain + 0.5}
    found = {}
    for name, options in OPTIONS.items():
        got = _run_layer(**options)
        found[name] = {
            "largest_error": float(np.abs(got["outputs"] - expected[name]).max()),
            "differs_from_plain_by": round(float(np.abs(got["outputs"] - plain).max()), 6),
            "variables": got["variables"],
            "statistics_moved": got["moved"],
        }
        if name == "virtual_batch_size":
            neighbours = np.abs(got["outputs"] - _in_twos(BATCH, apart=1)).max()
            found[name]["error_if_of_neighbours"] = round(float(neighbours), 6)
    return found


def _in_twos(batch: np.ndarray, apart: int) -> np.ndarray:
    """Four examples normalized in twos: neighbours, or example k with example k + 2."""
    outputs = np.empty_like(batch)
    for two in ([0, 1], [2, 3]) if apart == 1 else ([0, 2], [1, 3]):
        outputs[two] = _normalized(batch[two])
    return outputs


def _run_layer(**options) -> dict:
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = legacy_layers().batch_normalization(tf.constant(BATCH), training=True, **options)
        session.run(tf.global_variables_initializer())
        got, _ = session.run([outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)])
        (mean,) = [variable for variable in tf.global_variables() if variable.op.name.endswith("/moving_mean")]
        return {
            "outputs": got,
            "variables": [variable.op.name.split("/")[-1] for variable in tf.global_variables()],
            "moved": bool(session.run(mean).any()),
        }


def _normalized(batch: np.ndarray) -> np.ndarray:
    return (batch - batch.mean((0, 1, 2))) / np.sqrt(batch.var((0, 1, 2)) + 1e-3)


def _combinations() -> dict[str, dict]:
    """Options together: the error, empty where it builds and runs, and which of the options alone gives the same outputs."""
    alone = {name: _run_layer(**options)["outputs"] for name, options in OPTIONS.items()}
    pairs = {
        "virtual_batch_size with renorm": OPTIONS["virtual_batch_size"] | OPTIONS["renorm"],
        "virtual_batch_size with adjustment": OPTIONS["virtual_batch_size"] | OPTIONS["adjustment"],
        "renorm with adjustment": OPTIONS["renorm"] | OPTIONS["adjustment"],
    }
    pairs |= {f"fused=True with {name}": {"fused": True} | options for name, options in OPTIONS.items()}
    found = {}
    for name, options in pairs.items():
        try:
            got = _run_layer(**options)["outputs"]
        except (ValueError, TypeError, tf.errors.OpError) as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", "same_as": []}
        else:
            same = [option for option, outputs in alone.items() if np.abs(got - outputs).max() < 1e-5]
            found[name] = {"error": "", "same_as": same}
    return found


def _error(call: Callable) -> str:
    """Calls in a fresh graph; the error's type and first line, or nothing."""
    with tf.Graph().as_default():
        try:
            call()
        except (ValueError, TypeError, tf.errors.OpError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return ""


def _attributes() -> dict[str, dict[str, bool]]:
    """Which of the old names, and of those that replace them, ``tensorflow`` and its compat.v1 have."""
    names = ("contrib", "arg_max", "initialize_all_variables", "argmax", "global_variables_initializer", "placeholder")
    return {name: {"tensorflow": hasattr(tensorflow, name), "compat.v1": hasattr(tf, name)} for name in names}


def _old_calls() -> dict[str, bool]:
    """Where compat.v1 still has the old calls: do they give what the new ones give?"""
    values = np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], np.float32)  # a tie in the first row
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        variable = tf.get_variable("v", initializer=values)
        hidden = tf.constant(values)
        flat = legacy_layers().flatten(hidden)
        found = {}
        if hasattr(tf, "initialize_all_variables"):
            session.run(tf.initialize_all_variables())
            found["initialize_all_variables"] = np.array_equal(session.run(variable), values)
        if hasattr(tf, "arg_max"):
            found["arg_max"] = np.array_equal(*session.run([tf.arg_max(hidden, 1), tf.argmax(hidden, 1)]))
        found["flatten_of_rank_2_is_the_identity"] = np.array_equal(session.run(flat), values)
    return found


def _step_test() -> dict:
    """``i % 50 is 0`` compiled and run: the warning, the steps it picks, and where comparing identities goes wrong."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = compile(STEP_TEST, "<r2rt>", "eval")
        beyond = compile("i % 1000 is 500", "<beyond the cache>", "eval")  # 500 is no small integer
    wanted = list(range(0, STEPS, 50))
    return {
        "warning": f"{caught[0].category.__name__}: {caught[0].message}" if caught else "",
        "python": sys.implementation.name,
        "picked": sum(bool(eval(code, {"i": i})) for i in range(STEPS)),
        "wanted": len(wanted),
        "same_steps": [i for i in range(STEPS) if eval(code, {"i": i})] == wanted,
        "picked_of_numpy_integers": sum(bool(eval(code, {"i": i})) for i in np.arange(STEPS)),
        "picked_beyond_the_cache": sum(bool(eval(beyond, {"i": i})) for i in range(STEPS)),
        "wanted_beyond_the_cache": STEPS // 1000,
    }


def _solver_model(name: str, input_dim: int, output_dim: int) -> tuple[tf.Tensor, tf.Tensor]:
    """A network as the solver document's `Model` builds: everything in a variable scope of the model's name."""
    with tf.variable_scope(name):
        x = tf.placeholder(tf.float32, [None, input_dim], name="X")
        hidden = x
        for layer in range(2):
            with tf.variable_scope(f"layer{layer}"):
                hidden = legacy_layers().dense(hidden, 32)
                hidden = tf.nn.relu(legacy_layers().batch_normalization(hidden, training=True))
        return x, legacy_layers().dense(hidden, output_dim)


def _model_error(name: str) -> str:
    return _error(lambda: _solver_model(name, 32, 10))


def _fed_784_error() -> str:
    """The docstring's 32 is its input dimension; a model of that size, fed an image of MNIST."""

    def feed() -> None:
        x, logits = _solver_model("BatchNorm", 32, 10)
        with tf.Session(config=bn_graph.session_config()) as session:
            session.run(tf.global_variables_initializer())
            session.run(logits, {x: np.zeros((1, 784), np.float32)})

    return _error(feed)


FIGURES = {
    "layer_defaults.png": "The parameters of tf.layers' and of contrib's batch norm, those of one meaning side by side. "
    "Orange: the defaults that differ."
}


def draw(result: dict, folder: Path) -> None:
    """tf.layers' and slim's parameters side by side, those of one meaning in one row."""
    layers, contrib = (result["signatures"][name] for name in ("tf.layers.batch_normalization", "slim form"))
    rows, colours = [], {}
    for name, default in layers.items():
        other = SAME_MEANING.get(name, name)
        rows.append([name, default, other if other in contrib else "—", contrib.get(other, "—")])
    matched = {row[2] for row in rows}
    rows += [["—", "—", name, default] for name, default in contrib.items() if name not in matched]
    for number, row in enumerate(rows):
        if "—" not in row and row[1] != row[3]:
            colours |= {(number, 1): "orange", (number, 3): "orange"}
    with figure(folder / "layer_defaults.png", figsize=(9.5, 9.3)) as (_, axis):
        header = ["tf.layers.batch_normalization", "default", "contrib's batch_norm (slim form)", "default"]
        draw_table(axis, header, rows, colours, [0.32, 0.18, 0.32, 0.18], height=1.27, size=8.5)
        axis.set_title("Parameters of the same meaning in one row (orange: the defaults differ)", fontsize=11)


def summarize(result: dict) -> str:
    lines = []
    for name, made in result["made_by"].items():
        lines.append(f"{name:<30} makes {len(made['variables'])} variables, {made['update_ops']} update ops")
    for name, found in result["options"].items():
        lines.append(f"{name:<30} runs; largest error {found['largest_error']:.1e}; {', '.join(found['variables'])}")
    for name, found in result["combinations"].items():
        lines.append(
            f"{name:<30} {found['error'] or 'runs; the same as ' + (' and '.join(found['same_as']) or 'none of them')}"
        )
    return "\n".join(lines)


def _differences(listed: dict[str, str], live: dict[str, str]) -> list[str]:
    """Where the two signatures differ, in words."""
    found = [f"{name} is not there" for name in listed if name not in live]
    found += [f"{name} is not listed" for name in live if name not in listed]
    found += [
        f"{name}={live[name]}, listed as {default}"
        for name, default in listed.items()
        if name in live and live[name] != default
    ]
    return found or (["the order"] if list(listed) != list(live) else [])


def judge_article_04(result: dict) -> Verdict:
    live, made = (result[key]["tf.nn.batch_normalization"] for key in ("signatures", "made_by"))
    differing = _differences(NN_LISTED, live)
    to_pass = [name for name in ("mean", "variance", "offset", "scale") if live.get(name) == "required"]
    measured = f"required: {', '.join(to_pass)}"
    measured += f"; it makes {len(made['variables'])} variables and {made['update_ops']} update ops"
    right = not differing and len(to_pass) == 4 and not made["variables"] and not made["update_ops"]
    note = "The signature is the one listed." if not differing else f"The signature differs: {'; '.join(differing)}."
    return (holds if right else does_not_hold)(measured, note)


def judge_article_06(result: dict) -> Verdict:
    live = result["signatures"]["tf.layers.batch_normalization"]
    differing = _differences(LAYERS_LISTED, live)
    measured = (
        f"{len(live)} parameters, {len(LAYERS_LISTED)} listed; {'; '.join(differing) or 'all names and defaults agree'}"
    )
    options, together = result["options"], result["combinations"]
    working = [name for name, found in options.items() if found["largest_error"] < 1e-4]
    refused = [name for name, found in together.items() if found["error"]]
    fused = [name for name in options if name in together[f"fused=True with {name}"]["same_as"]]
    note = f"Run in training, these do what they say: {', '.join(working) or 'none'}"
    if "virtual_batch_size" in working and options["virtual_batch_size"]["error_if_of_neighbours"] > 1e-4:
        note += " (whose virtual batches are not of neighbours, but of every other example)"
    note += (
        f". Refused together: {', '.join(refused) or 'none'}; fused=True is given up silently beside {len(fused)} of 3."
    )
    return (does_not_hold if differing else holds)(measured, note)


def judge_article_08(result: dict) -> Verdict:
    layers, contrib = (result["signatures"][name] for name in ("tf.layers.batch_normalization", "slim form"))
    pairs = {name: SAME_MEANING.get(name, name) for name in layers}
    differing = {name: other for name, other in pairs.items() if other in contrib and layers[name] != contrib[other]}
    said = [
        f"{name if name == other else f'{name}/{other}'} {layers[name]}/{contrib[other]}"
        for name, other in differing.items()
    ]
    same = [f"{name} is {layers[name]} in both" for name in sorted(CLAIMED_DIFFERENCES - set(differing))]
    measured = "; ".join([f"differ: {', '.join(said) or 'none'}", *same])
    unlisted = _differences(CONTRIB_LISTED, contrib)
    source = (
        "The slim form has the article's list" if not unlisted else f"The slim form differs from the list in {unlisted}"
    )
    updates = [result["made_by"][name]["update_ops"] for name in ("tf.layers.batch_normalization", "slim form")]
    note = (
        f"{source}. Called with inputs alone, tf.layers makes {updates[0]} update ops and the slim form {updates[1]}."
    )
    return (holds if set(differing) == CLAIMED_DIFFERENCES else does_not_hold)(measured, note)


def judge_qa_01(result: dict) -> Verdict:
    wanted = ("tensorflow.contrib", "tf_slim", "tflearn")
    found = [name for name in wanted if result["modules_found"][name]]
    measured = "; ".join(f"{name} {'found' if name in found else 'not found'}" for name in wanted)
    if len(found) == len(wanted):
        return holds(measured, "All three can be imported here.")
    if found:
        return holds_if(f"it is {' or '.join(found)}", measured, "The others can't be imported here.")
    return dated(
        measured,
        "contrib, with slim in it, went with TensorFlow 1; tf_slim and tflearn are packages of their own, not installed here. "
        "bn_graph.layers.slim.batch_norm has contrib's signature, and bn_graph.batch_norm_wrapper needs no update ops.",
    )


def judge_r2rt_10(result: dict) -> Verdict:
    found = result["step_test"]
    measured = f"picks {found['picked']} of {found['wanted']} steps; {found['warning'] or 'no warning'}"
    note = (
        f"0 is among the small integers that {found['python']} keeps once: of numpy integers it picks "
        f"{found['picked_of_numpy_integers']}, and i % 1000 is 500 picks {found['picked_beyond_the_cache']} of "
        f"{found['wanted_beyond_the_cache']}. Write ==."
    )
    if not found["same_steps"]:
        return does_not_hold(measured, f"Not the steps that == picks. {note.removesuffix(' Write ==.')}")
    if found["picked_of_numpy_integers"] == found["wanted"]:
        return holds(measured, "numpy integers are picked as well.")
    return holds_if("i is a Python int", measured, note)


def judge_r2rt_24(result: dict) -> Verdict:
    old = ("arg_max", "initialize_all_variables")
    plain = [name for name in old if result["attributes"][name]["tensorflow"]]
    v1 = [name for name in old if result["attributes"][name]["compat.v1"]]
    reader = result["modules_found"]["tensorflow.examples"]
    measured = (
        f"in tensorflow: {', '.join(plain) or 'neither'}; in compat.v1: {', '.join(v1) or 'neither'}; "
        f"tensorflow.examples {'found' if reader else 'not found'}"
    )
    if len(plain) == len(old) and reader:
        return holds(measured, "All are there.")
    same = [name for name in v1 if result["old_calls"].get(name)]
    note = f"In compat.v1 {len(same)} of the {len(old)} still do what argmax and global_variables_initializer do."
    return dated(measured, f"{note} bn_graph.load reads MNIST with the tutorial's split.")


def judge_solver_11(result: dict) -> Verdict:
    contrib = result["attributes"]["contrib"]["compat.v1"] or result["modules_found"]["tensorflow.contrib"]
    reader = result["modules_found"]["tensorflow.examples"]
    measured = (
        f"tf.contrib {'found' if contrib else 'not found'}; tensorflow.examples {'found' if reader else 'not found'}"
    )
    if contrib and reader:
        return holds(measured, "Both are there.")
    identity = result["old_calls"]["flatten_of_rank_2_is_the_identity"]
    flat = "it changed nothing: the input has rank 2" if identity else "it does change an input of rank 2"
    return dated(
        measured, f"tf.compat.v1.layers.flatten replaces contrib's, and here {flat}. bn_graph.load reads MNIST."
    )


def judge_solver_13(result: dict) -> Verdict:
    spaced, joined = result["model_names"]["Batch Norm"], result["model_names"]["BatchNorm"]
    measured = f'"Batch Norm": {spaced or "builds"}; "BatchNorm": {joined or "builds"}'
    fed = result["model_of_32_fed_784"]
    about = f"a model of 32 inputs {'refuses' if fed else 'takes'} an image of 784 pixels"
    if not spaced:
        return holds(measured, f"It builds; {about}.")
    return does_not_hold(
        measured, f"A scope's name may have no blank in it. The 32 is the input's dimension, and {about}."
    )


if __name__ == "__main__":
    harness.run(__name__)
