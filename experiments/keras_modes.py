"""Keras's BatchNormalization in its modes, in legacy Keras and in Keras 3.

Documents: qa, "How Could I Use Batch Normalization in Tensorflow", the sections on Keras, on one example, on GradientTape
and on trainable=False; and flags, Keras's own note at the end. Claims qa-08 to qa-14, qa-17 to qa-19, flags-09 to flags-11.

    make keras-modes        or        python -m experiments.keras_modes

Each library runs in a process of its own, eagerly as in the documents, on the TensorFlow backend; `machinery/keras_child.py`
has the documents' programs and what is measured of them (`modes`), of which each judge below asks for one part. Beyond the
documents: what a ``training=True`` that is written into a functional model does to ``predict``, and what the layer does on
a placeholder in a TF1-style graph.

Changed from the documents: the script of the four predictions is seeded throughout, and is run three more times: without the
batch of one row, without gamma and beta, and with the trainable=False of its title. There is no data set, so both
modes are the same.
"""

from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness, keras_child
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.keras_answers import KERAS_3, LEGACY, NEAR, answer_rows, normalized_by
from experiments.machinery.keras_child import text_by_library, verdict_by_library, where
from experiments.machinery.results import largest
from experiments.machinery.tables import Table
from experiments.machinery.verdicts import Verdict, dated, does_not_hold, holds, holds_with_a_trap

# Rows of the small models, two batches of 4; the outcomes are yes or no.
EXAMPLES = 8
# The document's.
SCRIPT_SEED, EPSILON, PRINTED_TWO = 1, 1e-3, ["-0.99800634", "0.99800587"]
# The third prediction is "very different" if its difference is so many times that of the fourth.
VERY = 5.0
# The document: these move, all others don't.
MOVE_IN_TRAINING = {"fit", "train_on_batch", "model(x, training=True)"}
# When the flag was set, by the names that the measurement has (flags-11).
FLAG_SET = {
    "after_a_fit": "after a fit (not run_eagerly)",
    "before_the_first_fit": "before the first fit",
    "run_eagerly": "with run_eagerly",
}

FULL = QUICK = Mode()


def run(settings: harness.Settings) -> dict:
    sides = np.array([3.0, 4.0])
    exact = (sides - sides.mean()) / np.sqrt(sides.var() + EPSILON)
    return {
        "libraries": keras_child.ask_both(keras_child.modes, examples=EXAMPLES, script_seed=SCRIPT_SEED),
        "exact_two_examples": [f"{value:.8f}" for value in exact],
        "tf_layers_trainable_false": tf_layers_trainable_false(),
    }


def numbers(values: list) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in np.ravel(values)) + "]"


# --- qa-08: the global learning phase ---------------------------------------------------------------------------------
def judge_qa_08(result: dict) -> Verdict:
    def switches(found: dict) -> bool:
        if not (found["learning_phase"] and found["set_learning_phase"]):
            return False
        off, on = (np.array(found["outputs_by_phase"][phase]) for phase in "01")
        return bool(np.abs(off - on).max() > 1.0)

    def text(found: dict) -> str:
        if not found["set_learning_phase"]:
            return "there is no set_learning_phase"
        off, on = (numbers(found["outputs_by_phase"][phase]) for phase in "01")
        return f"phase 0 gives {off} and phase 1 {on}"

    measured = text_by_library(result, "learning_phase", text)
    gone = where(result, "learning_phase", lambda found: not found["set_learning_phase"])
    switching = where(result, "learning_phase", switches)
    if len(gone) + len(switching) < len(result["libraries"]):
        return does_not_hold(measured, "Where the functions are, they don't switch.")
    if gone:
        note = f"Gone from {' and '.join(gone)}; the successor is training= in the call."
        return dated(measured, note + (f" {' and '.join(switching)} still has them." if switching else ""))
    return holds(measured, "Both have the two functions.")


# --- qa-09 to qa-13: one layer on [[3, 4]] and [[3], [4]] -------------------------------------------------------------
def judge_qa_09(result: dict) -> Verdict:
    expected = np.array([3.0, 4.0]) / np.sqrt(1.0 + EPSILON)
    note = f"Inference mode with moving statistics (0, 1) must give {numbers(expected)}."

    def right(found: dict) -> bool:
        return np.abs(np.array(found["without_training"]) - expected).max() < 1e-5

    def text(found: dict) -> str:
        return f"[[3, 4]] gives {numbers(found['without_training'])}"

    return verdict_by_library(result, "one_layer", right, text, note)


def judge_qa_10(result: dict) -> Verdict:
    def printed(found: dict) -> str:
        return found["one_example_printed"]

    def text(found: dict) -> str:
        return f"it prints {printed(found)}"

    note = "One example is its own mean, so every normalized input is 0."
    return verdict_by_library(result, "one_layer", lambda found: printed(found) == "[[0. 0.]]", text, note)


def judge_qa_11(result: dict) -> Verdict:
    # The variance is what the layer averaged: with momentum 0.99 the moving one is 0.99·1 + 0.01·variance.
    def variance(found: dict) -> float:
        return (found["one_example_moving_variance"][0] - 0.99) / 0.01

    def undefined(found: dict) -> bool:
        return not np.isfinite(variance(found))

    def text(found: dict) -> str:
        output = numbers(found["one_example_with_beta"])
        return (
            f"the variance of one example is {abs(variance(found)):.3f}, and with a beta of 0.7 the output is {output}"
        )

    if where(result, "one_layer", undefined):
        note = "The layer's variance of one example is not a number."
        return verdict_by_library(result, "one_layer", undefined, text, note)
    layers = [each["one_layer"] for each in result["libraries"].values()]
    zero = all(abs(variance(found)) < 1e-4 for found in layers)
    only_beta = np.abs(np.array([found["one_example_with_beta"] for found in layers]) - 0.7).max() < NEAR
    note = "The biased variance of one example is 0" if zero else "The variance of one example is a number, not 0"
    note += ", so 0/√(0+ε) = 0, and beta is all that comes out" if only_beta else ", but the output is not beta alone"
    note += ". Only Bessel's m/(m−1) is undefined for it, and that is not what normalizes."
    return does_not_hold(text_by_library(result, "one_layer", text), note)


def judge_qa_12(result: dict) -> Verdict:
    return verdict_on_digits(result, "two_examples_printed")


def judge_qa_13(result: dict) -> Verdict:
    return verdict_on_digits(result, "axis_0_printed")


def verdict_on_digits(result: dict, key: str) -> Verdict:
    exact = " and ".join(result["exact_two_examples"])
    note = f"In exact arithmetic they are {exact}; where digits differ from those, it is float32's rounding."
    right, text = (lambda found: found[key] == PRINTED_TWO), (lambda found: f"it prints {' and '.join(found[key])}")
    return verdict_by_library(result, "one_layer", right, text, note)


# --- qa-14: training=True written into the model ----------------------------------------------------------------------
def judge_qa_14(result: dict) -> Verdict:
    def right(found: dict) -> bool:
        wired, open_ = found["hard_wired"], found["left_open"]
        return wired["moved_by_tape"] and not open_["moved_by_tape"] and wired["is_moving_mean"]

    def text(found: dict) -> str:
        moved, moved_without = (found[name]["moved_by_tape"] for name in ("hard_wired", "left_open"))
        which = "is" if found["hard_wired"]["is_moving_mean"] else "is not"
        return (
            f"they {'move' if moved else 'stay'} with training=True and {'move' if moved_without else 'stay'} without, and "
            f"weights[2] {which} moving_mean"
        )

    def predicts(found: dict) -> str:
        wired = found["hard_wired"]
        by = "the batch's statistics" if wired["alone_differs_by"] > NEAR else "the moving statistics"
        return f"predict normalizes by {by} and {'moves' if wired['moved_by_predict'] else 'keeps'} the moving ones"

    note = f"Of a training=True in the model: {text_by_library(result, 'hard_wired', predicts)}"
    by_call = where(result, "hard_wired", lambda found: found["left_open"]["moved_by_call_with_training"])
    if len(by_call) == len(result["libraries"]):
        note += " model(x, training=True) moves them as well, with nothing written in."
    judged = verdict_by_library(result, "hard_wired", right, text, note)
    moving = where(result, "hard_wired", lambda found: found["hard_wired"]["moved_by_predict"])
    if judged.verdict == "holds" and moving:
        trap = f"with training=True written into the model, predict in {' and '.join(moving)} moves them too"
        return holds_with_a_trap(trap, judged.measured, note)
    return judged


# --- qa-17: which calls move the moving averages ----------------------------------------------------------------------
def judge_qa_17(result: dict) -> Verdict:
    def moving(found: dict) -> set[str]:
        return {call for call, moved in found.items() if moved}

    def text(found: dict) -> str:
        still = [call for call, moved in found.items() if not moved]
        return f"they move in {', '.join(sorted(moving(found)))} and stay in {', '.join(still)}"

    # A training=True that was written into the model is the exception; qa-14 has it.
    wired = where(result, "hard_wired", lambda found: found["hard_wired"]["moved_by_predict"])
    note = "predict never moves them, not with training=True written into the model either."
    if wired:
        note = f"With training=True written into the model, predict moves them in {' and '.join(wired)}."
    judged = verdict_by_library(result, "which_calls_move", lambda found: moving(found) == MOVE_IN_TRAINING, text, note)
    if judged.verdict == "holds" and wired:
        return holds_with_a_trap("a training=True in the model makes inference move them", judged.measured, note)
    return judged


# --- qa-18: a layer frozen by trainable=False -------------------------------------------------------------------------
def judge_qa_18(result: dict) -> Verdict:
    def farthest(found: dict) -> float:
        return max(
            found["distance_from_population"][call] for call in ("predict", "model(x)", "model(x, training=False)")
        )

    def right(found: dict) -> bool:
        return not found["layer_changed_by_fit"] and found["next_layer_changed_by_fit"] and farthest(found) < NEAR

    def text(found: dict) -> str:
        frozen, following = (
            "changes" if found[f"{each}layer_changed_by_fit"] else "does not change" for each in ("", "next_")
        )
        far = f"at most {farthest(found):.0e} from the moving averages' output"
        return f"fit {frozen} the frozen layer and {following} the next one, and the three calls are {far}"

    also = where(result, "frozen", lambda found: found["distance_from_population"]["model(x, training=True)"] < NEAR)
    note = "model(x, training=True) normalizes the frozen layer by the batch."
    if also:
        note = f"So does model(x, training=True) of the frozen layer in {' and '.join(also)}."
    return verdict_by_library(result, "frozen", right, text, note)


# --- qa-19: the script of four predictions ----------------------------------------------------------------------------
def judge_qa_19(result: dict) -> Verdict:
    def right(found: dict) -> bool:
        second, third, fourth = found["as_printed"]["largest_difference_from_first"][1:]
        return second == 0 and fourth > 0 and third > VERY * fourth

    def text(found: dict) -> str:
        second, third, fourth = found["as_printed"]["largest_difference_from_first"][1:]
        return (
            f"the second differs from the first by {second:.3f}, the third by {third:.3f}, the fourth by {fourth:.3f}"
        )

    scripts = {library: each["script"] for library, each in result["libraries"].items()}
    titled = max(max(script["as_its_title"]["largest_difference_from_first"]) for script in scripts.values())
    name, first = next(iter(scripts.items()))
    gamma = np.mean(first["as_printed"]["gamma_and_beta"][0])
    ragged, even = (first[case]["share_of_sample_variance"] for case in ("as_printed", "no_ragged_batch"))
    note = (
        f"With the title's trainable=False the largest difference is {titled:.3f}. In {name} the default optimizer "
        f"({first['as_printed']['optimizer']}) also trains gamma (mean {gamma:.3f}), and batches of 3, 3, 3 and 1 rows average "
        f"a variance of {ragged:.2f} of the rows' own ({even:.2f} with batches of 5)."
    )
    return verdict_by_library(result, "script", right, text, note)


# --- flags-09: trainable=False as inference mode ----------------------------------------------------------------------
def tf_layers_trainable_false() -> dict:
    """TF1's own layer with training=True and trainable=False: how far from normalizing by the batch, and by the moving."""
    x = np.random.default_rng(1).normal(2.0, 3.0, (EXAMPLES, 5)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = legacy_layers().batch_normalization(tf.constant(x), training=True, trainable=False)
        updates = len(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        session.run(tf.global_variables_initializer())
        got = session.run(outputs)
    by = {"batch": (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON), "moving": x / np.sqrt(1.001)}
    return {f"from_{name}": largest(got - each) for name, each in by.items()} | {"updates": updates}


def judge_flags_09(result: dict) -> Verdict:
    libraries = result["libraries"]
    old = {"tf.layers": result["tf_layers_trainable_false"]}
    old["TF1's Keras layer"] = libraries[LEGACY]["trainable_false"]["TF1"]
    new = {library: each["trainable_false"]["TF2"] for library, each in libraries.items()}
    found = {name: normalized_by(distances) for name, distances in (old | new).items()}
    by = {kind: [name for name, statistics in found.items() if statistics == kind] for kind in ("batch", "moving")}
    measured = (
        f"By the batch's statistics {' and '.join(by['batch']) or 'none'} normalize, by the moving ones "
        f"{' and '.join(by['moving']) or 'none'}."
    )
    updates = sum(each["updates"] for each in old.values())
    note = f"Asked with training=True and trainable=False; TF1's two layers make {updates} update ops then."
    wrong = [name for name, statistics in found.items() if statistics != ("batch" if name in old else "moving")]
    if not wrong:
        return holds(measured, note)
    return does_not_hold(measured, f"{note} Otherwise than claimed: {', '.join(wrong)}.")


# --- flags-10: trainable of a model and of the layers inside ----------------------------------------------------------
def judge_flags_10(result: dict) -> Verdict:
    def right(found: dict) -> bool:
        return found["outer_false"] == [False, False, 0] and found["outer_true"][:2] == [True, True]

    def text(found: dict) -> str:
        inner, innermost, count = found["outer_false"]
        return (
            f"False on the outer model makes the inner {inner} and its layer {innermost}: {count} trainable variables"
        )

    back = {each["recursion"]["then_innermost_true"][2] for each in result["libraries"].values()}
    note = f"With the inner layer set back to True the frozen model has {' or '.join(map(str, back))} trainable "
    note += "variables."
    return verdict_by_library(result, "recursion", right, text, note)


# --- flags-11: trainable changed after compile ------------------------------------------------------------------------
def judge_flags_11(result: dict) -> Verdict:
    def ignored(found: dict) -> list[str]:
        return [name for case, name in FLAG_SET.items() if all(found[case].values())]

    def still(found: dict, case: str) -> bool:
        return not any(found[case].values())

    def text(found: dict) -> str:
        heeded = [name for name in FLAG_SET.values() if name not in ignored(found)]
        effect = f", and one {' or '.join(heeded)} has" if heeded else ""
        again = "an" if still(found, "compiled_again") else "no"
        return (
            f"a change {' or '.join(ignored(found)) or 'at no time'} has no effect{effect}; compiled again it "
            f"has {again} effect"
        )

    measured = text_by_library(result, "after_compile", text)
    found = {library: each["after_compile"] for library, each in result["libraries"].items()}
    direct = all(still(each, "direct_call") for each in found.values())
    note = "A direct call model(x, training=True) "
    note += "takes the flag at once in both." if direct else "does not always take it."
    if not all(still(each, "compiled_again") for each in found.values()):
        return does_not_hold(measured, note)
    whole = [library for library, each in found.items() if len(ignored(each)) == len(FLAG_SET)]
    if len(whole) == len(found):
        return holds(measured, note)
    if LEGACY not in whole:
        return does_not_hold(measured, note)
    early = [name for name in FLAG_SET.values() if name not in ignored(found[KERAS_3])]
    return holds_with_a_trap(f"in Keras 3 a change {' or '.join(early)} has an effect at once", measured, note)


# --- The figure, and the table ----------------------------------------------------------------------------------------
FIGURES = {
    "keras_modes.png": "How far the script's predictions lie from its first: with the trainable=False of its title, "
    "nothing would be seen."
}


def tables(result: dict) -> list[Table]:
    """The questions on which the two libraries may differ."""
    rows = answer_rows(result)
    colours = {(r, c): "orange" for r, row in enumerate(rows) for c in (1, 2) if row[1] != row[2]}
    caption = "Where legacy Keras and Keras 3 agree and, in orange, where they do not."
    return [Table(caption, ["question", LEGACY, KERAS_3], rows, colours)]


def draw(result: dict, folder: Path) -> None:
    """The script's four predictions."""
    with figure(folder / "keras_modes.png", figsize=(8, 4.8)) as (drawing, axis):
        cases = {"as_printed": "as printed (trainable=True)", "as_its_title": "as its title says (trainable=False)"}
        looks = [(LEGACY, "as_printed", BLUE), (KERAS_3, "as_printed", GREY), (LEGACY, "as_its_title", ORANGE)]
        for place, (library, case, colour) in enumerate(looks):
            differences = result["libraries"][library]["script"][case]["largest_difference_from_first"][1:]
            positions = np.arange(3) + 0.27 * (place - 1)
            axis.bar(positions, differences, 0.25, color=colour, label=f"{library}, {cases[case]}")
            for x, value in zip(positions, differences, strict=True):
                axis.text(x, value + 0.04, f"{value:.2g}", ha="center", fontsize=8)
        axis.set_xticks(range(3), ["2nd: model(x)", "3rd: model(x,\ntraining=True)", "4th: model(x)"])
        axis.set(axisbelow=True, ylabel="largest difference from the 1st prediction\n(units of the output)")
        axis.grid(axis="x", visible=False)
        axis.set_title("The script's four predictions", fontsize=11)
        drawing.legend(loc="outside lower center", fontsize=9)


def summarize(result: dict) -> str:
    rows = answer_rows(result)
    width = max(len(question) for question, *_ in rows)
    versions = "  ".join(f"{library} {each['version']}" for library, each in result["libraries"].items())
    lines = [f"{'':<{width}}  {versions}"]
    lines += [f"{question:<{width}}  {legacy:<19}  {keras_3:<19}" for question, legacy, keras_3 in rows]
    title = "The script of four predictions: largest difference from the first; "
    title += "the moving variance as a share of the rows'"
    lines += ["", title]
    for library, each in result["libraries"].items():
        for case, found in each["script"].items():
            second, third, fourth = found["largest_difference_from_first"][1:]
            share = found["share_of_sample_variance"]
            shown = "none, not moved" if share is None else f"{share:.2f}"
            line = f"  {library:<12}  {case:<20}  2nd {second:.4f}   3rd {third:.4f}   4th {fourth:.4f}   share {shown}"
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
