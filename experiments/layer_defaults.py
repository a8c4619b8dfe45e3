"""Signatures and defaults: what the article lists, against the libraries that are installed.

Document: article, the sections on the three implementations. Claims article-04, 06, 08.

    make layer-defaults

The signatures are read from the live functions and compared name by name with the documents' lists: tf.layers' and contrib's
own in TensorFlow 1.15, where `make eras` has made it, and tf_slim's, where it is installed, each in a process of its own;
today's tf.layers, and this library's slim form, which has contrib's signature and is judged where contrib is not there. The
rarer options of ``tf.layers`` are built and run. Nothing is trained, so both modes are the same.
"""

import importlib
import importlib.util
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np

import bn_graph
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import children, harness
from experiments.machinery.era_child import signature
from experiments.machinery.fresh import attempted
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import largest
from experiments.machinery.results import listed as listed_names
from experiments.machinery.tables import Table
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

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
# Four examples, so that they make two virtual batches of two.
BATCH = np.random.default_rng(0).normal(2.0, 3.0, (4, 2, 2, 3)).astype(np.float32)

NN, LAYERS, SLIM = "tf.nn.batch_normalization", "tf.layers.batch_normalization", "slim form"
# The last TensorFlow with contrib, and what is asked of it.
ERA, CONTRIB, TF_SLIM = "1.15.5", "contrib's batch_norm", "tf_slim"

FULL = QUICK = Mode()


def parse(text: str) -> dict[str, str]:
    """Each parameter's default, of a signature as it is listed."""
    pairs = [parameter.partition("=") for parameter in text.replace("\n", " ").split(", ")]
    return {name: default or "required" for name, _, default in pairs}


def run(settings: Settings) -> dict:
    functions = {NN: tf.nn.batch_normalization, LAYERS: legacy_layers().batch_normalization, SLIM: slim.batch_norm}
    # The lowest one can't be called with nothing but inputs.
    calls = functions | {NN: lambda x: tf.nn.batch_normalization(x, *tf.nn.moments(x, [0, 1, 2]), None, None, 1e-3)}
    signatures = {name: signature(function) for name, function in functions.items()}
    made = {name: made_by(call) for name, call in calls.items()}
    for name, found in (children.ask_era(ERA, "signatures") or {}).items():
        signatures[f"{name} of {ERA}"], made[f"{name} of {ERA}"] = found["signature"], found["made_by"]
    if importlib.util.find_spec(TF_SLIM):
        signatures[TF_SLIM] = children.ask(signature_in, module=TF_SLIM, name="batch_norm")
    return {
        "signatures": signatures,
        "made_by": made,
        "options": options_alone(),
        "combinations": options_together(),
    }


def signature_in(module: str, name: str) -> dict[str, str]:
    """Of a library that nothing else here should import."""
    return signature(getattr(importlib.import_module(module), name))


def of_the_time(result: dict, name: str, today: str) -> str:
    """The function of TensorFlow 1 itself, where it was asked; otherwise today's."""
    return f"{name} of {ERA}" if f"{name} of {ERA}" in result["signatures"] else today


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


def options_together() -> dict[str, dict]:
    """The error, empty where it builds and runs, and which of the options alone gives the same outputs."""
    alone = {name: run_layer(**{name: value})["outputs"] for name, value in OPTIONS.items()}
    names = ("virtual_batch_size", "renorm", "adjustment")
    pairs = {f"{a} with {b}": {a: OPTIONS[a], b: OPTIONS[b]} for a, b in itertools.combinations(names, 2)}
    pairs |= {f"fused=True with {name}": {"fused": True, name: value} for name, value in OPTIONS.items()}
    found = {}
    for name, options in pairs.items():
        error, got = attempted(partial(run_layer, **options))
        same = [] if error else [each for each, outputs in alone.items() if largest(got["outputs"] - outputs) < 1e-5]
        found[name] = {"error": error, "same_as": same}
    return found


def judge_article_06(result: dict) -> Verdict:
    listed, where = parse(LAYERS_LISTED), dict.fromkeys([of_the_time(result, LAYERS, LAYERS), LAYERS])
    differing = {name: differences(listed, result["signatures"][name]) for name in where}
    own, *today = differing.values()
    agreement = "; ".join(own) or "all names and defaults agree"
    measured = (
        f"It has {len(result['signatures'][next(iter(where))])} parameters where {len(listed)} are listed; {agreement}"
    )
    measured += f"{f', in TensorFlow {ERA} and today' if today and today[0] == own else ''}."
    options, together = result["options"], result["combinations"]
    working = [name for name, found in options.items() if found["largest_error"] < 1e-4]
    refused = [name for name, found in together.items() if found["error"]]
    fused = [name for name in options if name in together[f"fused=True with {name}"]["same_as"]]
    note = f"Run in training, these do what they say: {', '.join(working) or 'none'}"
    if "virtual_batch_size" in working and options["virtual_batch_size"]["error_if_of_neighbours"] > 1e-4:
        note += " (whose virtual batches are not of neighbours, but of every other example)"
    note += f". Refused together: {', '.join(refused) or 'none'}"
    note += f"; fused=True is given up silently beside {len(fused)} of 3."
    if own:
        return does_not_hold(measured, note)
    if today and today[0]:
        return holds_with_a_trap(f"today's differs: {'; '.join(today[0])}", measured, note)
    return holds(measured, note)


# --- article-08: contrib's defaults beside tf.layers' -----------------------------------------------------------------
def judge_article_08(result: dict) -> Verdict:
    judged = [of_the_time(result, name, today) for name, today in ((LAYERS, LAYERS), (CONTRIB, SLIM))]
    layers, contrib = (result["signatures"][name] for name in judged)
    pairs = {name: SAME_MEANING.get(name, name) for name in layers}
    differing = {name: other for name, other in pairs.items() if other in contrib and layers[name] != contrib[other]}

    def shown(names) -> str:
        return ", ".join(
            f"{name} {layers[name]} and {'' if name == pairs[name] else f'{pairs[name]} '}{contrib[pairs[name]]}"
            for name in names
        )

    theirs = f"contrib, both of TensorFlow {ERA}" if judged[1] != SLIM else "contrib's form"
    measured = (
        f"The defaults that differ between tf.layers and {theirs}: {shown(differing) or 'none'}; center is "
        f"{layers['center']} in tf.layers and {contrib['center']} there."
    )
    unlisted = differences(parse(CONTRIB_LISTED), contrib)
    updates = [result["made_by"][name]["update_ops"] for name in judged]
    note = "The document's next clause says what the two are: scale True and False, center True in both. "
    note += f"Contrib's {f'differs from its list in {unlisted}' if unlisted else 'has its list'}"
    same = [name for name in (TF_SLIM, SLIM) if not differences(contrib, result["signatures"].get(name, {}))]
    note += f"{f', as have {listed_names(same)}' if same and judged[1] != SLIM else ''}. Called with inputs alone, tf.layers "
    note += f"makes {updates[0]} update ops and contrib's {updates[1]}."
    scale = (layers["scale"], contrib["scale"])
    if scale != ("True", "False") or layers["center"] != "True" or contrib["center"] != "True":
        return does_not_hold(measured, note)
    others = [name for name in differing if name != "scale"]
    if others:
        return holds_with_a_trap(f"these differ too: {shown(others)}", measured, note)
    return holds(measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
def tables(result: dict) -> list[Table]:
    """tf.layers' and slim's parameters side by side, those of one meaning in one row."""
    names = [of_the_time(result, name, today) for name, today in ((LAYERS, LAYERS), (CONTRIB, SLIM))]
    layers, contrib = (result["signatures"][name] for name in names)
    rows, colours = [], {}
    for name, default in layers.items():
        other = SAME_MEANING.get(name, name)
        rows.append([name, default, other if other in contrib else "—", contrib.get(other, "—")])
    rows += [["—", "—", name, default] for name, default in contrib.items() if name not in {row[2] for row in rows}]
    for number, row in enumerate(rows):
        if "—" not in row and row[1] != row[3]:
            colours |= {(number, 1): "orange", (number, 3): "orange"}
    header = [names[0], "default", f"contrib's batch_norm ({SLIM})" if names[1] == SLIM else names[1], "default"]
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
