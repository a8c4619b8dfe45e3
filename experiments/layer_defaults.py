"""Signatures, defaults and dated calls: what the documents list, against the libraries that are installed.

Documents: article, the sections on the three implementations (article-04, 06, 08); qa, *Update July 2016* (qa-01); r2rt,
*Training the network* and throughout (r2rt-10, 24); solver, *class Model* (solver-11, 13).

    make layer-defaults

The signatures are read from the live functions and compared name by name with the documents' lists. contrib is gone with
TensorFlow 1, so its signature is read from this library's slim form, which must first agree with the article's list. The
rarer options of ``tf.layers`` are built and run. Nothing is trained, so both modes are the same.
"""

import importlib.util
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow

import bn_graph
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import children, harness
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.tables import Table
from experiments.machinery.verdicts import Verdict, dated, does_not_hold, holds, holds_with_a_trap

# The article's lists, in its order. Initializers by their class; what has no default is required.
NN_LISTED = "x, mean, variance, offset, scale, variance_epsilon, name=None"
LAYERS_LISTED = """inputs, axis=-1, momentum=0.99, epsilon=0.001, center=True, scale=True, beta_initializer=Zeros,
gamma_initializer=Ones, moving_mean_initializer=Zeros, moving_variance_initializer=Ones, beta_regularizer=None,
gamma_regularizer=None, beta_constraint=None, gamma_constraint=None, training=False, trainable=True, name=None,
reuse=None, renorm=False, renorm_clipping=None, renorm_momentum=0.99, fused=None, virtual_batch_size=None,
adjustment=None"""
# Its tf.GraphKeys.UPDATE_OPS is 'update_ops', its DATA_FORMAT_NHWC 'NHWC'.
CONTRIB_LISTED = """inputs, decay=0.999, center=True, scale=False, epsilon=0.001, activation_fn=None, param_initializers=None,
param_regularizers=None, updates_collections='update_ops', is_training=True, reuse=None, variables_collections=None,
outputs_collections=None, trainable=True, batch_weights=None, fused=None, data_format='NHWC',
zero_debias_moving_mean=False, scope=None, renorm=False, renorm_clipping=None, renorm_decay=0.99, adjustment=None"""
SAME_MEANING = {"momentum": "decay", "training": "is_training", "name": "scope", "renorm_momentum": "renorm_decay"}
# r2rt's, and the steps of its second training.
STEP_TEST, STEPS = "i % 50 is 0", 10_000
# Looked for, never installed.
MODULES = ["tensorflow.contrib", "tf_slim", "tflearn", "tensorflow.examples"]
# Batch norm of the three libraries: where it is, and what it is called.
EASIEST = {
    "contrib": ("tensorflow.contrib.layers", "batch_norm"),
    "slim": ("tf_slim", "batch_norm"),
    "tflearn": ("tflearn", "batch_normalization"),
}
# Of tensorflow: three old names, and those that replace them.
OLD = ["contrib", "arg_max", "initialize_all_variables"]
NEW = ["argmax", "global_variables_initializer", "placeholder"]
# Four examples, so that they make two virtual batches of two.
BATCH = np.random.default_rng(0).normal(2.0, 3.0, (4, 2, 2, 3)).astype(np.float32)

NN, LAYERS, SLIM = "tf.nn.batch_normalization", "tf.layers.batch_normalization", "slim form"

FULL = QUICK = Mode()


def parse(text: str) -> dict[str, str]:
    """Each parameter's default, of a signature as it is listed."""
    pairs = [parameter.partition("=") for parameter in text.replace("\n", " ").split(", ")]
    return {name: default or "required" for name, _, default in pairs}


def signature(function: Callable) -> dict[str, str]:
    """The same of a live function; an initializer by the name of its class."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        shown = type(default).__name__ if name.endswith("_initializer") and default is not None else repr(default)
        found[name] = "required" if default is parameter.empty else shown
    return found


def run(settings: Settings) -> dict:
    functions = {NN: tf.nn.batch_normalization, LAYERS: legacy_layers().batch_normalization, SLIM: slim.batch_norm}
    # The lowest one can't be called with nothing but inputs.
    calls = functions | {NN: lambda x: tf.nn.batch_normalization(x, *tf.nn.moments(x, [0, 1, 2]), None, None, 1e-3)}
    modules = {"tensorflow": tensorflow, "compat.v1": tf}
    return {
        "signatures": {name: signature(function) for name, function in functions.items()},
        "made_by": {name: made_by(call) for name, call in calls.items()},
        "options": options_alone(),
        "combinations": options_together(),
        "modules_found": {name: importlib.util.find_spec(name) is not None for name in MODULES},
        "easiest": {name: trained_if_installed(*names) for name, names in EASIEST.items()},
        "attributes": {name: {key: hasattr(module, name) for key, module in modules.items()} for name in OLD + NEW},
        "old_calls": old_calls(),
        "step_test": step_test(),
        "model_names": {name: attempt(partial(solver_model, name))[0] for name in ("Batch Norm", "BatchNorm")},
        "model_of_32_fed_784": attempt(feed_784)[0],
    }


def attempt(call: Callable) -> tuple[str, object]:
    """Calls in a fresh graph: the error's type and first line, "" if there is none, and what is returned."""
    with tf.Graph().as_default():
        try:
            return "", call()
        except (ValueError, TypeError, tf.errors.OpError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", None


# --- article-04: what is left to the caller ---------------------------------------------------------------------------
def made_by(call: Callable[[tf.Tensor], tf.Tensor]) -> dict:
    """What one call with nothing but its inputs leaves in a fresh graph."""
    with tf.Graph().as_default():
        call(tf.constant(BATCH))
        return {"variables": variable_names(), "update_ops": len(tf.get_collection(tf.GraphKeys.UPDATE_OPS))}


def variable_names() -> list[str]:
    return [variable.op.name.split("/")[-1] for variable in tf.global_variables()]


def differences(listed: dict[str, str], live: dict[str, str]) -> list[str]:
    """Where the two signatures differ, in words."""
    found = [f"{name} is not there" for name in listed if name not in live]
    found += [f"{name} is not listed" for name in live if name not in listed]
    found += [f"{name}={live[name]}, listed as {was}" for name, was in listed.items() if live.get(name, was) != was]
    return found or (["the order"] if list(listed) != list(live) else [])


def judge_article_04(result: dict) -> Verdict:
    live, made = (result[key][NN] for key in ("signatures", "made_by"))
    differing = differences(parse(NN_LISTED), live)
    to_pass = [name for name in ("mean", "variance", "offset", "scale") if live.get(name) == "required"]
    measured = f"It requires {', '.join(to_pass)}, and makes {len(made['variables'])} variables and "
    measured += f"{made['update_ops']} update ops."
    right = not differing and len(to_pass) == 4 and not made["variables"] and not made["update_ops"]
    note = "The signature is the one listed." if not differing else f"The signature differs: {'; '.join(differing)}."
    return (holds if right else does_not_hold)(measured, note)


# --- article-06: the signature of tf.layers, and its rarer options ----------------------------------------------------
OPTIONS = {
    "renorm": True,
    "virtual_batch_size": 2,
    # The same for every example: twice the normalized value, and half above it.
    "adjustment": lambda shape: tuple(tf.fill([shape[0], 1, 1, 1], value) for value in (2.0, 0.5)),
}


def options_alone() -> dict[str, dict]:
    """The rarer options of tf.layers in training: do they build and run, and do they what their names say?"""
    plain = run_layer()["outputs"]
    # At the first step renorm's unclipped r and d turn the batch's statistics into the moving ones, deviation 1, mean 0.
    # The virtual batches are of every other example.
    expected = {"renorm": BATCH, "virtual_batch_size": in_twos([0, 2], [1, 3]), "adjustment": 2.0 * plain + 0.5}
    found = {}
    for name, value in OPTIONS.items():
        got = run_layer(**{name: value})
        found[name] = {
            "largest_error": largest(got["outputs"] - expected[name]),
            "differs_from_plain_by": round(largest(got["outputs"] - plain), 6),
            "variables": got["variables"],
            "statistics_moved": got["moved"],
        }
        if name == "virtual_batch_size":
            found[name]["error_if_of_neighbours"] = round(largest(got["outputs"] - in_twos([0, 1], [2, 3])), 6)
    return found


def run_layer(**options) -> dict:
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = legacy_layers().batch_normalization(tf.constant(BATCH), training=True, **options)
        session.run(tf.global_variables_initializer())
        got, _ = session.run([outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)])
        moving_mean = session.run(bn_graph.moving_statistics()[0])
        return {"outputs": got, "variables": variable_names(), "moved": bool(moving_mean.any())}


def in_twos(*pairs: list[int]) -> np.ndarray:
    """The four examples, each pair normalized by itself."""
    outputs = np.empty_like(BATCH)
    for two in pairs:
        outputs[two] = (BATCH[two] - BATCH[two].mean((0, 1, 2))) / np.sqrt(BATCH[two].var((0, 1, 2)) + 1e-3)
    return outputs


def largest(differences: np.ndarray) -> float:
    return float(np.abs(differences).max())


def options_together() -> dict[str, dict]:
    """The error, empty where it builds and runs, and which of the options alone gives the same outputs."""
    alone = {name: run_layer(**{name: value})["outputs"] for name, value in OPTIONS.items()}
    names = ("virtual_batch_size", "renorm", "adjustment")
    pairs = {f"{a} with {b}": {a: OPTIONS[a], b: OPTIONS[b]} for a, b in itertools.combinations(names, 2)}
    pairs |= {f"fused=True with {name}": {"fused": True, name: value} for name, value in OPTIONS.items()}
    found = {}
    for name, options in pairs.items():
        error, got = attempt(partial(run_layer, **options))
        same = [] if error else [each for each, outputs in alone.items() if largest(got["outputs"] - outputs) < 1e-5]
        found[name] = {"error": error, "same_as": same}
    return found


def judge_article_06(result: dict) -> Verdict:
    live = result["signatures"][LAYERS]
    differing = differences(parse(LAYERS_LISTED), live)
    agreement = "; ".join(differing) or "all names and defaults agree"
    measured = f"It has {len(live)} parameters where {len(parse(LAYERS_LISTED))} are listed; {agreement}."
    options, together = result["options"], result["combinations"]
    working = [name for name, found in options.items() if found["largest_error"] < 1e-4]
    refused = [name for name, found in together.items() if found["error"]]
    fused = [name for name in options if name in together[f"fused=True with {name}"]["same_as"]]
    note = f"Run in training, these do what they say: {', '.join(working) or 'none'}"
    if "virtual_batch_size" in working and options["virtual_batch_size"]["error_if_of_neighbours"] > 1e-4:
        note += " (whose virtual batches are not of neighbours, but of every other example)"
    note += f". Refused together: {', '.join(refused) or 'none'}"
    note += f"; fused=True is given up silently beside {len(fused)} of 3."
    return (does_not_hold if differing else holds)(measured, note)


# --- article-08: contrib's defaults beside tf.layers' -----------------------------------------------------------------
def judge_article_08(result: dict) -> Verdict:
    layers, contrib = (result["signatures"][name] for name in (LAYERS, SLIM))
    pairs = {name: SAME_MEANING.get(name, name) for name in layers}
    differing = {name: other for name, other in pairs.items() if other in contrib and layers[name] != contrib[other]}

    def shown(names) -> str:
        return ", ".join(
            f"{name if name == pairs[name] else f'{name}/{pairs[name]}'} {layers[name]}/{contrib[pairs[name]]}"
            for name in names
        )

    measured = (
        f"Of the defaults, {shown(differing) or 'none'} differ between tf.layers and contrib's form; center is "
        f"{layers['center']} in tf.layers and {contrib['center']} there."
    )
    unlisted = differences(parse(CONTRIB_LISTED), contrib)
    updates = [result["made_by"][name]["update_ops"] for name in (LAYERS, SLIM)]
    note = "The document's next clause says what the two are: scale True and False, center True in both. Contrib's "
    note += "form "
    note += f"{f'differs from its list in {unlisted}' if unlisted else 'has its list'}. Called with inputs alone, tf.layers "
    note += f"makes {updates[0]} update ops and contrib's form {updates[1]}."
    scale = (layers["scale"], contrib["scale"])
    if scale != ("True", "False") or layers["center"] != "True" or contrib["center"] != "True":
        return does_not_hold(measured, note)
    others = [name for name in differing if name != "scale"]
    if others:
        return holds_with_a_trap(f"{shown(others)} differ too", measured, note)
    return holds(measured, note)


# --- qa-01: contrib, tflearn, slim ------------------------------------------------------------------------------------
def trained_if_installed(module: str, layer: str) -> dict[str, str]:
    package = ".".join(module.split(".")[:2])
    if importlib.util.find_spec(package) is None:
        return {"found": f"there is no {package}"}
    return children.ask(one_step, module=module, layer=layer)


def one_step(module: str, layer: str) -> dict[str, str]:
    """What comes of a training step with a library's batch norm, by the inputs' rank; in a process of its own."""
    # A library of that time may raise anything.
    try:
        function = getattr(importlib.import_module(module), layer)
    except Exception as error:
        return {"found": f"{type(error).__name__}: {error}"}
    outcomes = {"found": ""}
    for rank, values in (("2", BATCH[:, 0, 0]), ("4", BATCH)):
        with tf.Graph().as_default(), tf.Session() as session:
            try:
                outputs = function(tf.constant(values))
                step = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(tf.square(outputs)))
                session.run(tf.global_variables_initializer())
                session.run(step)
                outcomes[rank] = ""
            except Exception as error:
                outcomes[rank] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return outcomes


def judge_qa_01(result: dict) -> Verdict:
    found = result["easiest"]

    def outcome(name: str) -> str:
        if found[name]["found"]:
            return f"{name} is not installed"
        failed = {rank: text for rank, text in found[name].items() if text}
        if not failed:
            return f"{name} trains"
        return f"{name} fails " + " and ".join(f"for inputs of rank {rank} ({text})" for rank, text in failed.items())

    measured = f"With TensorFlow {result['versions']['tensorflow']} {', '.join(map(outcome, found))}."
    working = [name for name, each in found.items() if not any(each.values())]
    if len(working) == len(found):
        return holds(measured, "All three train.")
    # contrib, the first that the document names, came with TensorFlow, the others are packages of their own.
    if "contrib" in working:
        others = ", ".join(name for name in found if name not in working)
        return holds_with_a_trap(f"not {others}", measured, "contrib is the one that came with TensorFlow.")
    note = "contrib, with slim in it, went with TensorFlow 1; tf_slim and tflearn are packages of their own. "
    note += "bn_graph.layers.slim.batch_norm has contrib's signature, and bn_graph.batch_norm_wrapper needs no update "
    note += "ops."
    return dated(measured, note)


# --- r2rt-10: every 50th step by identity -----------------------------------------------------------------------------
def step_test() -> dict:
    """``i % 50 is 0`` compiled and run: the warning, the steps it picks, and where comparing identities goes wrong."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = compile(STEP_TEST, "<r2rt>", "eval")
        # 500 is no small integer.
        beyond = compile("i % 1000 is 500", "<beyond the cache>", "eval")
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


def judge_r2rt_10(result: dict) -> Verdict:
    found = result["step_test"]
    warning = f"with a {found['warning'].partition('.')[0]}" if found["warning"] else "without a warning"
    measured = f"Of range's numbers it picks {found['picked']} where {found['wanted']} are wanted, {warning}."
    note = f"0 is among the small integers that {found['python']} keeps once: of numpy integers it picks "
    note += f"{found['picked_of_numpy_integers']}, and i % 1000 is 500 picks {found['picked_beyond_the_cache']} of "
    note += f"{found['wanted_beyond_the_cache']}."
    if not found["same_steps"]:
        return does_not_hold(measured, f"Not the steps that == picks. {note}")
    if found["picked_of_numpy_integers"] == found["wanted"]:
        return holds(measured, "numpy integers are picked as well.")
    return holds_with_a_trap("NumPy's integers are never picked", measured, f"{note} Write ==.")


# --- r2rt-24: calls of old versions -----------------------------------------------------------------------------------
def old_calls() -> dict[str, bool]:
    """Where compat.v1 still has the old calls: do they give what the new ones give?"""
    # A tie in the first row.
    values = np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], np.float32)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        variable, hidden = tf.get_variable("v", initializer=values), tf.constant(values)
        flat, found = legacy_layers().flatten(hidden), {}
        if hasattr(tf, "initialize_all_variables"):
            session.run(tf.initialize_all_variables())
            found["initialize_all_variables"] = np.array_equal(session.run(variable), values)
        if hasattr(tf, "arg_max"):
            found["arg_max"] = np.array_equal(*session.run([tf.arg_max(hidden, 1), tf.argmax(hidden, 1)]))
        found["flatten_of_rank_2_is_the_identity"] = np.array_equal(session.run(flat), values)
    return found


def judge_r2rt_24(result: dict) -> Verdict:
    old = ("arg_max", "initialize_all_variables")
    plain, v1 = ([name for name in old if result["attributes"][name][key]] for key in ("tensorflow", "compat.v1"))
    reader = result["modules_found"]["tensorflow.examples"]
    measured = f"tensorflow has {' and '.join(plain) or 'neither function'}, compat.v1 "
    measured += f"{' and '.join(v1) or 'neither'}, and "
    measured += f"tensorflow.examples is {'there' if reader else 'gone'}."
    if len(plain) == len(old) and reader:
        return holds(measured, "All are there.")
    same = [name for name in v1 if result["old_calls"].get(name)]
    note = f"In compat.v1 {len(same)} of the {len(old)} still do what argmax and global_variables_initializer do."
    return dated(measured, f"{note} bn_graph.load reads MNIST with the tutorial's split.")


# --- solver-11: the old modules ---------------------------------------------------------------------------------------
def judge_solver_11(result: dict) -> Verdict:
    contrib = result["attributes"]["contrib"]["compat.v1"] or result["modules_found"]["tensorflow.contrib"]
    reader = result["modules_found"]["tensorflow.examples"]
    measured = f"tf.contrib is {'there' if contrib else 'gone'}, and tensorflow.examples "
    measured += f"{'there' if reader else 'gone'}."
    if contrib and reader:
        return holds(measured, "Both are there.")
    identity = result["old_calls"]["flatten_of_rank_2_is_the_identity"]
    flat = "it changed nothing: the input has rank 2" if identity else "it does change an input of rank 2"
    note = f"tf.compat.v1.layers.flatten replaces contrib's, and here {flat}. bn_graph.load reads MNIST."
    return dated(measured, note)


# --- solver-13: a model's name and its sizes --------------------------------------------------------------------------
def solver_model(name: str) -> tuple[tf.Tensor, tf.Tensor]:
    """A network as the solver document's `Model` builds, of 32 inputs: all in a variable scope of the model's name."""
    with tf.variable_scope(name):
        x = hidden = tf.placeholder(tf.float32, [None, 32], name="X")
        for layer in range(2):
            with tf.variable_scope(f"layer{layer}"):
                hidden = legacy_layers().dense(hidden, 32)
                hidden = tf.nn.relu(legacy_layers().batch_normalization(hidden, training=True))
        return x, legacy_layers().dense(hidden, 10)


def feed_784() -> None:
    """The docstring's 32 is its input dimension; a model of that size, fed an image of MNIST."""
    x, logits = solver_model("BatchNorm")
    with tf.Session(config=bn_graph.session_config()) as session:
        session.run(tf.global_variables_initializer())
        session.run(logits, {x: np.zeros((1, 784), np.float32)})


def judge_solver_13(result: dict) -> Verdict:
    spaced, joined = result["model_names"]["Batch Norm"], result["model_names"]["BatchNorm"]
    outcomes = [f"raises {text}" if text else "builds a model" for text in (spaced, joined)]
    measured = f'The name "Batch Norm" {outcomes[0]}, the name "BatchNorm" {outcomes[1]}.'
    about = f"a model of 32 inputs {'refuses' if result['model_of_32_fed_784'] else 'takes'} an image of 784 pixels"
    if not spaced:
        return holds(measured, f"It builds; {about}.")
    return does_not_hold(
        measured, f"A scope's name may have no blank in it. The 32 is the input's dimension, and {about}."
    )


# --- The figure -------------------------------------------------------------------------------------------------------
def tables(result: dict) -> list[Table]:
    """tf.layers' and slim's parameters side by side, those of one meaning in one row."""
    layers, contrib = (result["signatures"][name] for name in (LAYERS, SLIM))
    rows, colours = [], {}
    for name, default in layers.items():
        other = SAME_MEANING.get(name, name)
        rows.append([name, default, other if other in contrib else "—", contrib.get(other, "—")])
    rows += [["—", "—", name, default] for name, default in contrib.items() if name not in {row[2] for row in rows}]
    for number, row in enumerate(rows):
        if "—" not in row and row[1] != row[3]:
            colours |= {(number, 1): "orange", (number, 3): "orange"}
    header = ["tf.layers.batch_normalization", "default", "contrib's batch_norm (slim form)", "default"]
    caption = "The parameters of tf.layers' and of contrib's batch norm, those of one meaning in one row."
    return [Table(f"{caption} Orange: the defaults that differ.", header, rows, colours)]


def summarize(result: dict) -> str:
    lines = []
    for name, found in result["options"].items():
        lines.append(f"{name:<30} runs; largest error {found['largest_error']:.1e}; {', '.join(found['variables'])}")
    for name, found in result["combinations"].items():
        same = " and ".join(found["same_as"]) or "none of them"
        lines.append(f"{name:<30} {found['error'] or f'runs; the same as {same}'}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
