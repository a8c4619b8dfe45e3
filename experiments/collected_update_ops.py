"""The collection UPDATE_OPS: how its entries print, and which of them a scope takes.

Documents: article, *UPDATE_OPS*; solver, ``class Model``. Claims article-10, solver-10.

    make collected-update-ops

The collection is printed for inputs of rank 4 and 2, with resource and with ref variables. Then pairs of models are built
in one graph, and what ``tf.get_collection(key, scope)`` takes for the first one's name is compared with its own update
ops, and with what this library takes. What a train op without them leaves behind is the page missing_update_ops. Nothing
is trained, so both modes are the same.
"""

import re

import numpy as np

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from bn_graph.training import train_op as library
from experiments.machinery import harness
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.verdicts import Verdict, dated, does_not_hold, holds, holds_with_a_trap
from experiments.missing_update_ops import KEY, reason

# The article's.
DOCUMENT_PRINTS = [
    "<tf.Tensor 'batch_normalization/AssignMovingAvg:0' shape=(3,) dtype=float32_ref>",
    "<tf.Tensor 'batch_normalization/AssignMovingAvg_1:0' shape=(3,) dtype=float32_ref>",
]
# Two models in one graph, and whether the second is normalized: the solver document's, two names that have nothing in
# common, one name that begins the other, and one whose dot stands for any letter in a regular expression.
PAIRS = [("batchnorm", "no_norm", False), ("left", "right", True), ("bn", "bn2", True), ("net.1", "net_1", True)]

FULL = QUICK = Mode()


def run(settings: Settings) -> dict:
    return {"printed": printed_entries(), "scopes": what_a_scope_takes(), "consequences": what_a_wrong_scope_does()}


# --- article-10: two AssignMovingAvg tensors --------------------------------------------------------------------------
def printed_entries() -> dict[str, list[str]]:
    """The collection's entries as `print` shows them, for each rank, as today and as the documents' readers had it."""
    printed = {}
    for variables, resource, cond in (("resource variables", True, "v2"), ("ref variables", False, "v1")):
        for rank, shape in ((4, [1, 2, 2, 3]), (2, [4, 3])):
            with harness.control_flow(cond), tf.Graph().as_default(), tf.variable_scope("", use_resource=resource):
                legacy_layers().batch_normalization(tf.ones(shape), training=tf.placeholder(tf.bool))
                entries = [repr(entry) for entry in tf.get_collection(KEY)]
            printed[f"rank {rank}, {variables}"] = entries
    return printed


def judge_article_10(result: dict) -> Verdict:
    printed = result["printed"]
    default = "rank 4, resource variables"
    today = printed[default]
    measured = f"Today it prints {' and '.join(map(_named, today)) or 'nothing'}."
    as_printed = [kind for kind, entries in printed.items() if entries == DOCUMENT_PRINTS]
    if default in as_printed:
        return holds(measured, "Digit for digit.")
    if as_printed:
        note = f"With {' or '.join(as_printed)}, which were the document's, it prints what stands there."
        return holds_with_a_trap("today's default prints something else", measured, note)
    if len(today) != 2 or not all("AssignMovingAvg" in entry for entry in today):
        return does_not_hold(measured, f"{len(today)} entries, and not all of them AssignMovingAvg.")
    note = "There are two still, but no float32_ref tensors: today they are operations on resource variables. "
    note += f"For inputs of rank 2 the name is gone as well: {_named(printed['rank 2, resource variables'][0])}."
    return dated(measured, note)


def _named(entry: str) -> str:
    """As "the operation bn/AssignMovingAvg", of "<tf.Operation 'bn/AssignMovingAvg' type=AssignVariableOp>"."""
    found = re.match(r"<tf\.(\w+) '([^']+)'", entry)
    return f"the {found[1].lower()} {found[2]}" if found else entry


# --- solver-10: scope=name keeps two models apart ---------------------------------------------------------------------
def layer_of(inputs: tf.Tensor, name: str, normalized: bool = True) -> tf.Tensor:
    """A model of one layer in a scope of its own, with its own switch as in the documents."""
    with tf.variable_scope(name):
        is_training = tf.placeholder(tf.bool, name="train_mode")
        net = legacy_layers().dense(inputs, 3)
        return legacy_layers().batch_normalization(net, training=is_training, name="norm") if normalized else net


def what_a_scope_takes() -> list[dict]:
    """Pairs of models in one graph; what `get_collection` takes for the first one's scope, and what it should."""
    found = []
    for name, other, normalized in PAIRS:
        with tf.Graph().as_default():
            inputs = tf.ones([4, 2])
            layer_of(inputs, name)
            own = tf.get_collection(KEY)
            layer_of(inputs, other, normalized)
            found.append({"models": f"{name}, {other}", "scope": name} | compare(name, own, name))
    for scope in ("bn", "bn/"):
        with tf.Graph().as_default():
            # Opened for the second time, the scope's ops are named bn_1.
            for layer in ("first", "second"):
                with tf.variable_scope("bn"):
                    legacy_layers().batch_normalization(tf.ones([4, 2]), training=True, name=layer)
            own = tf.get_collection(KEY)
            found.append({"models": "bn, opened twice", "scope": scope} | compare(scope, own, "bn"))
    return found


def compare(scope: str, own: list, path: str) -> dict[str, int]:
    """What `scope` takes beside the model's own update ops; and whether the library takes those for the model's path."""
    taken = tf.get_collection(KEY, scope=scope)
    return {
        "own": len(own),
        "taken": len(taken),
        "missed": sum(op not in taken for op in own),
        "foreign": sum(op not in own for op in taken),
        "library_right": int({op.name for op in library.collect(path)} == {op.name for op in own}),
    }


def what_a_wrong_scope_does() -> dict[str, str]:
    """Training one model alone with the update ops of both: an error where the other must be fed, silence where not."""
    found = {}
    for case, scope in (("the document's two, with scope", "no_norm"), ("the document's two, without scope", None)):
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            inputs = tf.ones([4, 2])
            layer_of(inputs, "batchnorm")
            step = train_op_of(layer_of(inputs, "no_norm", normalized=False), scope)
            session.run(tf.global_variables_initializer())
            try:
                session.run(step)
                found[case] = "runs"
            except tf.errors.InvalidArgumentError as error:
                found[case] = f"InvalidArgumentError: {reason(error)}"
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = {}
        for name in ("bn", "bn2"):
            with tf.variable_scope(name):
                outputs[name] = legacy_layers().batch_normalization(tf.ones([4, 2]), training=True, name="norm")
        step = train_op_of(outputs["bn"], "bn")
        session.run(tf.global_variables_initializer())
        session.run(step)
        other_mean, _ = (each for each in bn_graph.moving_statistics() if each.op.name.startswith("bn2/"))
        moves = "moves" if np.any(session.run(other_mean) != 0.0) else "leaves"
    found["bn beside bn2, both in training"] = f"runs; {moves} bn2's statistics{' alone' if moves == 'leaves' else ''}"
    return found


def train_op_of(outputs: tf.Tensor, scope: str | None) -> tf.Operation:
    loss = tf.reduce_mean(outputs)
    with tf.control_dependencies(tf.get_collection(KEY, scope=scope)):
        return tf.train.GradientDescentOptimizer(0.1).minimize(loss)


def judge_solver_10(result: dict) -> Verdict:
    cases = result["scopes"]
    wrong = [case for case in cases if case["missed"] or case["foreign"]]
    scopes = "; ".join(
        f"'{case['scope']}' of the models {case['models']} takes {case['taken']} ops where {case['own']} are its own"
        for case in wrong
    )
    measured = f"In {len(cases) - len(wrong)} of {len(cases)} cases a scope takes its own update ops and no others"
    measured += f"; {scopes}." if wrong else "."
    unscoped = result["consequences"]["the document's two, without scope"].split(":")[0]
    silent = result["consequences"]["bn beside bn2, both in training"].removeprefix("runs; ")
    note = (
        f"The scope is the beginning of a regular expression, and a step of bn beside bn2 {silent}. With no scope, training "
        f"the document's no_norm alone: {unscoped}."
    )
    if not wrong:
        return holds(measured, note)
    # The document's own pair.
    if cases[0] not in wrong:
        return holds_with_a_trap("a name that begins another's takes its update ops too", measured, note)
    return does_not_hold(measured, note)


if __name__ == "__main__":
    harness.run(__name__)
