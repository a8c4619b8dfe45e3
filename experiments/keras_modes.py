"""Keras's BatchNormalization in its modes, in legacy Keras and in Keras 3.

Documents: qa, "How Could I Use Batch Normalization in Tensorflow", the sections on Keras, on one example, on GradientTape
and on trainable=False; and flags, Keras's own note at the end. Claims qa-08 to qa-14, qa-17 to qa-19, flags-09 to flags-11.

    make keras-modes        or        python -m experiments.keras_modes

Each library runs in a process of its own (`experiments.machinery.keras_child`), eagerly as in the documents, on the TensorFlow
backend. Beyond the documents: what a ``training=True`` that is written into a functional model does to ``predict``, and
what the layer does on a placeholder in a TF1-style graph.

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
from experiments.machinery.tables import draw_table
from experiments.machinery.verdicts import Verdict, dated, does_not_hold, holds, holds_if

# Rows of the small models, two batches of 4; the outcomes are yes or no.
EXAMPLES = 8
# The document's.
SCRIPT_SEED = 1
# The third prediction is "very different" if its difference is so many times that of the fourth.
VERY = 5.0
# The document's digits.
PRINTED_TWO = ["-0.99800634", "0.99800587"]
# The document: these move, all others don't.
MOVE_IN_TRAINING = {"fit", "train_on_batch", "model(x, training=True)"}

LEGACY, KERAS_3 = keras_child.LIBRARIES

FULL = QUICK = Mode()


def run(settings: harness.Settings) -> dict:
    libraries = keras_child.ask_both(keras_child.modes, examples=EXAMPLES, script_seed=SCRIPT_SEED)
    sides = np.array([3.0, 4.0])
    exact = (sides - sides.mean()) / np.sqrt(sides.var() + 1e-3)
    return {
        "libraries": libraries,
        "exact_two_examples": [f"{value:.8f}" for value in exact],
        "tf_layers_trainable_false": _tf_layers_trainable_false(),
    }


def _tf_layers_trainable_false() -> dict:
    """TF1's own layer with training=True and trainable=False: how far from normalizing by the batch, and by the moving."""
    x = np.random.default_rng(1).normal(2.0, 3.0, (EXAMPLES, 5)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = legacy_layers().batch_normalization(tf.constant(x), training=True, trainable=False)
        updates = len(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        session.run(tf.global_variables_initializer())
        got = session.run(outputs)
    batch = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    return {
        "from_batch": float(np.abs(got - batch).max()),
        "from_moving": float(np.abs(got - x / np.sqrt(1.001)).max()),
        "updates": updates,
    }


FIGURES = {
    "keras_modes.png": "Left, where legacy Keras and Keras 3 agree and, in orange, where they do not. Right, how far the "
    "script's predictions lie from its first: with the trainable=False of its title, nothing would be seen."
}


def draw(result: dict, folder: Path) -> None:
    """Left: the questions on which the two libraries may differ. Right: the script's four predictions."""
    rows = [
        [question, *("yes" if answers[library] else "no" for library in (LEGACY, KERAS_3))]
        for question, answers in _answers(result).items()
    ]
    colours = {(r, c): "orange" for r, row in enumerate(rows) for c in (1, 2) if row[1] != row[2]}
    with figure(folder / "keras_modes.png", ncols=2, figsize=(13, 4.8), gridspec_kw={"width_ratios": [1.5, 1]}) as (
        _,
        (left, right),
    ):
        draw_table(left, ["", LEGACY, KERAS_3], rows, colours, [0.7, 0.15, 0.15], height=1.62)
        left.set_title("Questions with two answers (orange: the two differ)", fontsize=11)
        _draw_script(right, result)


def _draw_script(axis, result: dict) -> None:
    cases = {"as_printed": "as printed\n(trainable=True)", "as_its_title": "as its title says\n(trainable=False)"}
    looks = [(LEGACY, "as_printed", BLUE), (KERAS_3, "as_printed", GREY), (LEGACY, "as_its_title", ORANGE)]
    for place, (library, case, colour) in enumerate(looks):
        differences = result["libraries"][library]["script"][case]["largest_difference_from_first"][1:]
        positions = np.arange(3) + 0.27 * (place - 1)
        label = f"{library}, {cases[case]}".replace("\n", " ")
        axis.bar(positions, differences, 0.25, color=colour, label=label)
        for x, value in zip(positions, differences, strict=True):
            axis.text(x, value + 0.04, f"{value:.2g}", ha="center", fontsize=8)
    axis.set_xticks(range(3), ["2nd: model(x)", "3rd: model(x,\ntraining=True)", "4th: model(x)"])
    axis.set_ylabel("largest difference from the 1st prediction\n(units of the output)")
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.25)
    axis.legend(fontsize=8, loc="upper left")
    axis.set_title("The script's four predictions", fontsize=11)


def _answers(result: dict) -> dict[str, dict[str, bool]]:
    """The yes-or-no questions, by library."""
    found: dict[str, dict[str, bool]] = {}
    for library, each in result["libraries"].items():
        wired, compiled = each["hard_wired"]["hard_wired"], each["after_compile"]
        answers = {
            "set_learning_phase exists": each["learning_phase"]["set_learning_phase"],
            "written-in training=True: predict normalizes by the batch": wired["alone_differs_by"] > 1e-4,
            "written-in training=True: predict moves the statistics": wired["moved_by_predict"],
            "written-in training=True: model(x, training=False) moves them": wired["moved_by_call_with_training_false"],
            "trainable=False also means inference mode": _follows(each["trainable_false"]["TF2"]) == "moving",
            "… set after compile() and a fit: the next fit heeds it": not compiled["after_a_fit"]["parameters"],
            "… set after compile(), before any fit: fit heeds it": not compiled["before_the_first_fit"]["parameters"],
            "… set with run_eagerly=True: the next fit heeds it": not compiled["run_eagerly"]["parameters"],
            "… and compiled again: fit heeds it": not compiled["compiled_again"]["parameters"],
            "on a placeholder in a TF1-style graph it builds": each["tf1_graph"]["built"],
            "… and puts its updates into UPDATE_OPS": each["tf1_graph"].get("update_ops", 0) > 0,
            "… or into layer.updates": each["tf1_graph"].get("layer_updates", 0) > 0,
            "… and running its outputs moves its statistics": any(each["tf1_graph"].get("moving_mean", [])),
        }
        for question, answer in answers.items():
            found.setdefault(question, {})[library] = answer
    return found


def _follows(distances: dict) -> str:
    """Which statistics normalized: the nearer of the two, if it is near at all."""
    near = [name.removeprefix("from_") for name in ("from_batch", "from_moving") if distances[name] < 1e-4]
    return near[0] if len(near) == 1 else "neither"


def summarize(result: dict) -> str:
    answers = _answers(result)
    width = max(map(len, answers))
    versions = {library: each["version"] for library, each in result["libraries"].items()}
    lines = [f"{'':<{width}}  " + "  ".join(f"{name} {version}" for name, version in versions.items())]
    for question, answer in answers.items():
        lines.append(
            f"{question:<{width}}  " + "  ".join(f"{'yes' if answer[name] else 'no':<19}" for name in versions)
        )
    lines += [
        "",
        "The script of four predictions: largest difference from the first; the moving variance as a share of the rows'",
    ]
    for library, each in result["libraries"].items():
        for case, found in each["script"].items():
            second, third, fourth = found["largest_difference_from_first"][1:]
            share = found["share_of_sample_variance"]
            lines.append(
                f"  {library:<12}  {case:<20}  2nd {second:.4f}   3rd {third:.4f}   4th {fourth:.4f}"
                f"   share {'none, not moved' if share is None else f'{share:.2f}'}"
            )
    return "\n".join(lines)


def _by_library(result: dict, holds_in, measured: str, note: str) -> Verdict:
    """Holds in both libraries, in one (which is then the condition), or in none."""
    good = [library for library, each in result["libraries"].items() if holds_in(each)]
    if len(good) == len(result["libraries"]):
        return holds(measured, note)
    return holds_if(f"it is {good[0]}", measured, note) if good else does_not_hold(measured, note)


def _each(result: dict, text) -> str:
    """One text if the libraries agree, else one of each."""
    texts = {library: text(each) for library, each in result["libraries"].items()}
    if len(set(texts.values())) == 1:
        return f"both: {next(iter(texts.values()))}"
    return "; ".join(f"{library}: {said}" for library, said in texts.items())


def _pixel(values: list, digits: int = 4) -> str:
    return "[" + ", ".join(f"{value:.{digits}f}" for value in np.ravel(values)) + "]"


def judge_qa_08(result: dict) -> Verdict:
    def switches(each: dict) -> bool:
        found = each["learning_phase"]
        if not (found["learning_phase"] and found["set_learning_phase"]):
            return False
        off, on = (np.array(found["outputs_by_phase"][phase]) for phase in ("0", "1"))
        return bool(np.abs(off - on).max() > 1.0)

    def text(each: dict) -> str:
        found = each["learning_phase"]
        if not found["set_learning_phase"]:
            return "no set_learning_phase"
        return (
            f"phase 0 gives {_pixel(found['outputs_by_phase']['0'])}, phase 1 {_pixel(found['outputs_by_phase']['1'])}"
        )

    measured = _each(result, text)
    if not any(each["learning_phase"]["set_learning_phase"] for each in result["libraries"].values()):
        return dated(measured, "Both are gone: pass training= to the call.")
    gone = [
        library for library, each in result["libraries"].items() if not each["learning_phase"]["set_learning_phase"]
    ]
    note = (
        f"{' and '.join(gone)} has neither function: pass training= to the call."
        if gone
        else "Both have the two functions."
    )
    return _by_library(result, switches, measured, note)


def judge_qa_09(result: dict) -> Verdict:
    expected = np.array([3.0, 4.0]) / np.sqrt(1.001)
    return _by_library(
        result,
        lambda each: np.abs(np.array(each["one_layer"]["without_training"]) - expected).max() < 1e-5,
        _each(result, lambda each: f"[[3, 4]] gives {_pixel(each['one_layer']['without_training'])}"),
        f"Inference mode with moving statistics (0, 1) must give {_pixel(expected)}.",
    )


def judge_qa_10(result: dict) -> Verdict:
    return _by_library(
        result,
        lambda each: each["one_layer"]["one_example_printed"] == "[[0. 0.]]",
        _each(result, lambda each: each["one_layer"]["one_example_printed"]),
        "One example is its own mean, so every normalized input is 0.",
    )


def judge_qa_11(result: dict) -> Verdict:
    """The deviation is what the layer averaged: with momentum 0.99, 0.99·1 + 0.01·variance."""

    def variance(each: dict) -> float:
        return (each["one_layer"]["one_example_moving_variance"][0] - 0.99) / 0.01

    def undefined(each: dict) -> bool:
        return not np.isfinite(variance(each))

    measured = _each(
        result,
        lambda each: (
            f"variance of one example {abs(variance(each)):.3f}; with beta 0.7 the output is "
            f"{_pixel(each['one_layer']['one_example_with_beta'])}"
        ),
    )
    if any(undefined(each) for each in result["libraries"].values()):
        return _by_library(result, undefined, measured, "The layer's variance of one example is not a number.")
    values = [each["one_layer"]["one_example_with_beta"] for each in result["libraries"].values()]
    only_beta = np.abs(np.array(values) - 0.7).max() < 1e-4
    tail = "so 0/√(0+ε) = 0, and beta is all that comes out" if only_beta else "but the output is not beta alone"
    zero = all(abs(variance(each)) < 1e-4 for each in result["libraries"].values())
    said = "The biased variance of one example is 0" if zero else "The variance of one example is a number, not 0"
    return does_not_hold(
        measured, f"{said}, {tail}. Only Bessel's m/(m−1) is undefined for it, and that is not what normalizes."
    )


def judge_qa_12(result: dict) -> Verdict:
    return _two_values(result, "two_examples_printed")


def judge_qa_13(result: dict) -> Verdict:
    return _two_values(result, "axis_0_printed")


def _two_values(result: dict, key: str) -> Verdict:
    return _by_library(
        result,
        lambda each: each["one_layer"][key] == PRINTED_TWO,
        _each(result, lambda each: ", ".join(each["one_layer"][key])),
        f"In exact arithmetic they are {' and '.join(result['exact_two_examples'])}; "
        f"where digits differ from those, it is float32's rounding.",
    )


def judge_qa_14(result: dict) -> Verdict:
    def right(each: dict) -> bool:
        wired, open_ = each["hard_wired"]["hard_wired"], each["hard_wired"]["left_open"]
        return wired["moved_by_tape"] and not open_["moved_by_tape"] and wired["is_moving_mean"]

    def text(each: dict) -> str:
        wired, open_ = each["hard_wired"]["hard_wired"], each["hard_wired"]["left_open"]
        which = "is" if wired["is_moving_mean"] else "is not"
        return (
            f"moved with training=True: {_yes(wired['moved_by_tape'])}, without: {_yes(open_['moved_by_tape'])}; "
            f"weights[2] {which} moving_mean"
        )

    def predicts(each: dict) -> str:
        wired = each["hard_wired"]["hard_wired"]
        by = "the batch's statistics" if wired["alone_differs_by"] > 1e-4 else "the moving statistics"
        return (
            f"predict then normalizes by {by} and {'moves' if wired['moved_by_predict'] else 'keeps'} the moving ones"
        )

    texts = _each(result, predicts)
    by_call = all(
        each["hard_wired"]["left_open"]["moved_by_call_with_training"] for each in result["libraries"].values()
    )
    better = " model(x, training=True) moves them as well, with nothing written in." if by_call else ""
    return _by_library(
        result, right, _each(result, text), f"With training=True written into the model ({texts}).{better}"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def judge_qa_17(result: dict) -> Verdict:
    def moving(each: dict) -> set[str]:
        return {call for call, moved in each["which_calls_move"].items() if moved}

    def text(each: dict) -> str:
        still = [call for call, moved in each["which_calls_move"].items() if not moved]
        return f"move: {', '.join(sorted(moving(each)))}; stay: {', '.join(still)}"

    # A training=True that was written into the model is the exception; qa-14 has it.
    wired = [
        library for library, each in result["libraries"].items() if each["hard_wired"]["hard_wired"]["moved_by_predict"]
    ]
    note = (
        f"Exception: with training=True written into the model, predict moves them in {' and '.join(wired)}."
        if wired
        else ("predict never moves them, not with training=True written into the model either.")
    )
    return _by_library(result, lambda each: moving(each) == MOVE_IN_TRAINING, _each(result, text), note)


def judge_qa_18(result: dict) -> Verdict:
    calls = ("predict", "model(x)", "model(x, training=False)")

    def right(each: dict) -> bool:
        frozen = each["frozen"]
        by_population = all(frozen["distance_from_population"][call] < 1e-4 for call in calls)
        return not frozen["layer_changed_by_fit"] and frozen["next_layer_changed_by_fit"] and by_population

    def text(each: dict) -> str:
        frozen = each["frozen"]
        far = max(frozen["distance_from_population"][call] for call in calls)
        return (
            f"fit changed the frozen layer {_yes(frozen['layer_changed_by_fit'])}, the next one "
            f"{_yes(frozen['next_layer_changed_by_fit'])}; at most {far:.0e} from the moving averages' output"
        )

    also = [
        library
        for library, each in result["libraries"].items()
        if each["frozen"]["distance_from_population"]["model(x, training=True)"] < 1e-4
    ]
    note = (
        f"So does model(x, training=True) of the frozen layer in {' and '.join(also)}."
        if also
        else ("model(x, training=True) normalizes the frozen layer by the batch.")
    )
    return _by_library(result, right, _each(result, text), note)


def judge_qa_19(result: dict) -> Verdict:
    def right(each: dict) -> bool:
        second, third, fourth = each["script"]["as_printed"]["largest_difference_from_first"][1:]
        return second == 0 and fourth > 0 and third > VERY * fourth

    def text(each: dict) -> str:
        differences = each["script"]["as_printed"]["largest_difference_from_first"][1:]
        return "from the 1st: " + ", ".join(
            f"{name} {value:.3f}" for name, value in zip(("2nd", "3rd", "4th"), differences, strict=True)
        )

    name, found = next(iter(result["libraries"].items()))
    first = found["script"]
    gamma = np.mean(first["as_printed"]["gamma_and_beta"][0])
    titled = max(
        max(each["script"]["as_its_title"]["largest_difference_from_first"]) for each in result["libraries"].values()
    )
    ragged, even = (first[case]["share_of_sample_variance"] for case in ("as_printed", "no_ragged_batch"))
    note = (
        f"With the title's trainable=False the largest difference is {titled:.3f}. In {name} the default optimizer "
        f"({first['as_printed']['optimizer']}) also trains gamma (mean {gamma:.3f}), and batches of 3, 3, 3 and 1 rows average "
        f"a variance of {ragged:.2f} of the rows' own ({even:.2f} with batches of 5)."
    )
    return _by_library(result, right, _each(result, text), note)


def judge_flags_09(result: dict) -> Verdict:
    found = {"tf.layers": result["tf_layers_trainable_false"]}
    legacy = result["libraries"][LEGACY]["trainable_false"]
    found["TF1's Keras layer"] = legacy["TF1"]
    for library, each in result["libraries"].items():
        found[library] = each["trainable_false"]["TF2"]
    follows = {name: _follows(distances) for name, distances in found.items()}
    measured = "; ".join(f"{name}: by the {statistics} statistics" for name, statistics in follows.items())
    old, new = list(follows)[:2], list(follows)[2:]
    right_old = all(follows[name] == "batch" for name in old)
    right_new = all(follows[name] == "moving" for name in new)
    updates = sum(found[name]["updates"] for name in old)
    note = f"Asked with training=True and trainable=False; TF1's two layers make {updates} update ops then."
    if right_old and right_new:
        return holds(measured, note)
    wrong = [name for name in follows if follows[name] != ("batch" if name in old else "moving")]
    return does_not_hold(measured, f"{note} Otherwise than claimed: {', '.join(wrong)}.")


def judge_flags_10(result: dict) -> Verdict:
    def text(each: dict) -> str:
        inner, innermost, count = each["recursion"]["outer_false"]
        return f"outer False: inner {inner}, its layer {innermost}, {count} trainable variables"

    back = _each(result, lambda each: f"{each['recursion']['then_innermost_true'][2]} trainable variables")
    return _by_library(
        result,
        lambda each: (
            each["recursion"]["outer_false"] == [False, False, 0]
            and each["recursion"]["outer_true"][:2] == [True, True]
        ),
        _each(result, text),
        f"Setting the inner layer back to True inside the frozen model leaves it with {back.removeprefix('both: ')}.",
    )


def judge_flags_11(result: dict) -> Verdict:
    late = ("after_a_fit", "before_the_first_fit", "run_eagerly")
    names = {
        "after_a_fit": "after a fit (not run_eagerly)",
        "before_the_first_fit": "before the first fit",
        "run_eagerly": "with run_eagerly",
    }

    def ignored(each: dict) -> list[str]:
        return [case for case in late if all(each["after_compile"][case].values())]

    def obeys_compile(each: dict) -> bool:
        return not any(each["after_compile"]["compiled_again"].values())

    def text(each: dict) -> str:
        seen = [names[case] for case in late if case not in ignored(each)]
        said = f"no effect {', '.join(names[case] for case in ignored(each)) or 'never'}"
        said += f"; effect {', '.join(seen)}" if seen else ""
        return f"{said}; effect when compiled again {_yes(obeys_compile(each))}"

    measured = _each(result, text)
    direct = all(not any(each["after_compile"]["direct_call"].values()) for each in result["libraries"].values())
    note = "A direct call model(x, training=True) " + (
        "heeds the flag at once in both." if direct else "does not always heed it."
    )
    libraries = result["libraries"]
    if not all(obeys_compile(each) for each in libraries.values()):
        return does_not_hold(measured, note)
    common = [case for case in late if all(case in ignored(each) for each in libraries.values())]
    if len(common) == len(late):
        return holds(measured, note)
    whole = [library for library, each in libraries.items() if len(ignored(each)) == len(late)]
    conditions = [f"it is {' or '.join(whole)}"] if whole else []
    conditions += [f"the flag was set {' or '.join(names[case] for case in common)}"] if common else []
    return holds_if(", or ".join(conditions), measured, note) if conditions else does_not_hold(measured, note)


if __name__ == "__main__":
    harness.run(__name__)
