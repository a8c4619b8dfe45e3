"""Calls and idioms of old versions: what is gone, what is left under another name, what works by luck.

Documents: qa, *Update July 2016* (qa-01); r2rt, *Training the network* and throughout (r2rt-10, 24); solver, *class Model*
(solver-11, 13).

    make old-calls

What is there is looked up in the live libraries; batch norm of the three libraries is trained for a step, each in a process
of its own, and contrib's in TensorFlow 1.15 too, where `make eras` has made it. Nothing is drawn, and both modes are the same.
"""

import importlib.util
import sys
import warnings
from functools import partial

import numpy as np
import tensorflow

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import children, harness
from experiments.machinery.fresh import attempted
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.verdicts import Verdict, dated, does_not_hold, holds, holds_with_a_trap

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
# The last TensorFlow with contrib.
ERA = "1.15.5"
# Of tensorflow: three old names, and those that replace them.
OLD = ["contrib", "arg_max", "initialize_all_variables"]
NEW = ["argmax", "global_variables_initializer", "placeholder"]
# Four examples of a convolution's outputs; of a dense layer's, their first pixels.
BATCH = np.random.default_rng(0).normal(2.0, 3.0, (4, 2, 2, 3)).astype(np.float32)

FULL = QUICK = Mode()


def run(settings: Settings) -> dict:
    modules = {"tensorflow": tensorflow, "compat.v1": tf}
    return {
        "modules_found": {name: importlib.util.find_spec(name) is not None for name in MODULES},
        "easiest": {name: trained_if_installed(*names) for name, names in EASIEST.items()},
        "contrib_of_its_time": children.ask_era(ERA, "contrib_trains", values=BATCH.tolist()),
        "attributes": {name: {key: hasattr(module, name) for key, module in modules.items()} for name in OLD + NEW},
        "old_calls": old_calls(),
        "step_test": step_test(),
        "model_names": {name: attempted(partial(solver_model, name))[0] for name in ("Batch Norm", "BatchNorm")},
        "model_of_32_fed_784": attempted(feed_784)[0],
    }


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
        errors = (f"{text.partition(':')[0]} for inputs of rank {rank}" for rank, text in failed.items())
        return f"{name} raises {' and '.join(errors)}"

    measured = f"With TensorFlow {result['versions']['tensorflow']} {', '.join(map(outcome, found))}."
    working = [name for name, each in found.items() if not any(each.values())]
    if len(working) == len(found):
        return holds(measured, "All three train.")
    # contrib, the first that the document names, came with TensorFlow, the others are packages of their own.
    if "contrib" in working:
        others = ", ".join(name for name in found if name not in working)
        return holds_with_a_trap(f"not {others}", measured, "contrib is the one that came with TensorFlow.")
    note = "contrib, with slim in it, went with TensorFlow 1; tf_slim and tflearn are packages of their own. "
    if result["contrib_of_its_time"]:
        note = f"In TensorFlow {ERA} contrib trains, and it went with TensorFlow 1; tf_slim is a package of its own. "
    note += "bn_graph.layers.slim.batch_norm has contrib's signature, "
    note += "and bn_graph.batch_norm_wrapper needs no update ops."
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
    warning = f"warns ({found['warning'].partition(':')[0]})" if found["warning"] else "does not warn"
    measured = (
        f"Of range's numbers it picks {found['picked']} where {found['wanted']} are wanted, and Python {warning}."
    )
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
    measured = f"Of {' and '.join(old)} tensorflow has {' and '.join(plain) or 'neither'} and compat.v1 "
    measured += f"{'both' if v1 == list(old) else ' and '.join(v1) or 'neither'}; tensorflow.examples is "
    measured += f"{'there' if reader else 'gone'}."
    if len(plain) == len(old) and reader:
        return holds(measured, "All are there.")
    same = [name for name in v1 if result["old_calls"].get(name)]
    note = f"In compat.v1 {len(same)} of the {len(old)} still do what argmax and global_variables_initializer do."
    return dated(measured, f"{note} bn_graph.load reads MNIST with the tutorial's split.")


# --- solver-11: the old modules ---------------------------------------------------------------------------------------
def judge_solver_11(result: dict) -> Verdict:
    contrib = result["attributes"]["contrib"]["compat.v1"] or result["modules_found"]["tensorflow.contrib"]
    reader = result["modules_found"]["tensorflow.examples"]
    states = ("there" if each else "gone" for each in (contrib, reader))
    measured = "tf.contrib is {}, and tensorflow.examples is {}.".format(*states)
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
    errors = (text.split(". ")[0] for text in (spaced, joined))
    outcomes = [f"raises {error}" if error else "builds a model" for error in errors]
    measured = f'The name "Batch Norm" {outcomes[0]}, the name "BatchNorm" {outcomes[1]}.'
    about = f"a model of 32 inputs {'refuses' if result['model_of_32_fed_784'] else 'takes'} an image of 784 pixels"
    if not spaced:
        return holds(measured, f"It builds; {about}.")
    return does_not_hold(
        measured, f"A scope's name may have no blank in it. The 32 is the input's dimension, and {about}."
    )


# --- In words ---------------------------------------------------------------------------------------------------------
def summarize(result: dict) -> str:
    lines = [f"{name:<30} {'there' if found else 'gone'}" for name, found in result["modules_found"].items()]
    for name, found in result["attributes"].items():
        lines.append(f"{name:<30} {' and '.join(where for where, is_there in found.items() if is_there) or 'gone'}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
