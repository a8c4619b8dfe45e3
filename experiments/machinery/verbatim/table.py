"""What the documents' programs gave, as a table: printed in the document, its own program in each TensorFlow, our network.

Everything is read from the results in ``verbatim/<document>/<program>/<environment>.json`` and the experiments' reference.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.machinery import eras
from experiments.machinery.results import column

__all__ = [
    "COLUMNS",
    "REFERENCE",
    "ROWS",
    "TODAY",
    "Row",
    "after",
    "cell",
    "differences",
    "failures_table",
    "last_runs",
    "load_runs",
    "markdown",
    "printed",
    "results_table",
]

REFERENCE = Path(__file__).parents[2] / "reference"
"""The committed results: of the experiments, and in ``verbatim`` of the programs."""

TODAY = "2.21"
COLUMNS = (*eras.ERAS, TODAY)
"""Of the table: TensorFlow 1 oldest first, and today's, which for Keras's programs is two environments."""

CHANGED = "†"
"""Marks a value of a program that raised as printed, and ran after the changes in the second table."""


NOTHING = "nothing small: what it needs is not in this version"
"""In the second table, where no change of the rules helps."""


class Row(NamedTuple):
    """A figure that a program gives.

    Attributes:
        program: its key.
        what: the figure.
        read: from a run to the figure.
        document: from the readings of what the document prints to its figure; None if it prints none.
        ours: from the experiments' reference results, by name, to the project's own figures; None if there are none.
        digits: of a number that a run gives.
        why: the reason where the columns differ.
    """

    program: str
    what: str
    read: Callable[[dict], object]
    document: Callable[[list], object] | None = None
    ours: Callable[[Mapping[str, dict]], object] | None = None
    digits: int = 4
    why: str = ""


def after(words: str, place: int = -1) -> Callable[[list], list]:
    """Reads the numbers that were printed after those words, the last time or at another `place`."""
    return lambda readings: [numbers for label, numbers in readings if label.endswith(words)][place]


def printed(reading: Callable[[list], object]) -> Callable[[dict], object]:
    """The same reading of what a run printed."""
    return lambda run: reading(run["printed"])


def measured(*keys: str) -> Callable[[dict], object]:
    """What was measured under those keys, one inside the other."""

    def read(run: dict) -> object:
        value = run["measured"]
        for key in keys:
            value = value[key]
        return value

    return read


def accuracy(readings: list) -> float:
    """Of the predictions one by one."""
    return after("ACCURACY")(readings)[0]


def _classes(readings: list) -> str:
    classes = sorted(set(after("PREDICTIONS")(readings)))
    return f"{len(classes)} ({classes[0]})" if len(classes) == 1 else str(len(classes))


def _first_pixel(readings: list) -> list:
    return after("out", 0)(readings)[:4]


def _first(readings: list) -> list:
    return readings[0][1]


def unlabelled(place: int) -> Callable[[list], list]:
    """What a notebook shows of an expression, by its place among the numbers without words."""
    return lambda readings: [numbers for label, numbers in readings if not label][place]


def _epochs_ahead(split: str) -> Callable[[list], str]:
    """In how many epochs the loss with batch norm was the lower one, of those printed."""

    def read(readings: list) -> str:
        pairs = [
            (numbers[0], other[0])
            for (label, numbers), (_, other) in itertools.pairwise(readings)
            if label.startswith(split)
        ]
        return f"{sum(with_ < without for with_, without in pairs)} of {len(pairs)}"

    return read


def _ops(run: dict) -> str:
    """The kind of thing that UPDATE_OPS prints."""
    texts = run["variables"]["update_ops"]
    kinds = {
        text.split("type=")[-1].rstrip(">") if "Operation" in text else text.split()[-1].rstrip(">") for text in texts
    }
    return f"{len(texts)} × {' or '.join(sorted(kinds))}"


def _ops_of_the_document(readings: list) -> str:
    return f"{sum('AssignMovingAvg' in label for label, _ in readings)} × dtype=float32_ref"


def _extremes(run: dict) -> list:
    """Least and largest value of the moving mean, and of the moving variance."""
    moving = run["measured"]["moving statistics"]
    return [round(each, 3) for name in sorted(moving) for each in moving[name]]


def differences(name: str) -> Callable[[dict], str]:
    def read(run: dict) -> str:
        found = run["measured"][name]
        gone, new = found["printed and not there"], found["there and not printed"]
        parts = [f"lacks {', '.join(gone)}"] * bool(gone) + [f"has {', '.join(new)}"] * bool(new)
        return "; ".join(parts + [f"{each}={value}" for each, value in found["other defaults"].items()]) or "as printed"

    return read


def _averaged(run: dict) -> str:
    counts = run["measured"]["averaged"]
    return f"{counts['this step' + chr(39) + 's mean']} of {sum(counts.values())}"


def _flags(training: bool, trainable: bool) -> Callable[[Mapping[str, dict]], dict]:
    """The cell of the experiment's table for tf.layers."""
    return lambda reference: next(
        cell
        for cell in reference["training_vs_trainable"]["cells"]["tf.layers"]
        if (cell["training"], cell["trainable"]) == (training, trainable)
    )


def final(name: str) -> Callable[[dict], float]:
    """The last value of a list that the program leaves."""
    return lambda run: run["variables"][name]["values"][-1]


def _sums(reference: Mapping[str, dict], way: str) -> str:
    """The sums that came out over all sessions, for ref variables."""
    return " or ".join(reference["control_dependencies"]["outcomes"]["ref"][way])


def _restored(reference: Mapping[str, dict], how: str, saved: str) -> object:
    """What restoring gave: the error, or the accuracy of each seed."""
    outcomes = [
        each for key, each in reference["checkpoint_variables"]["restored"][how].items() if key.endswith(f"/{saved}")
    ]
    errors = [each["raised"] for each in outcomes if each["raised"]]
    return errors[0] if errors else [each["accuracy"] for each in outcomes]


_FF, _TF, _TT = _flags(False, False), _flags(True, False), _flags(True, True)
_MOVING = "training-true-trainable-true"

_CHANCE = "chance: another seed, or another order of sums"


def _printed_row(program: str, what: str, reading: Callable[[list], object], *rest, **named) -> Row:
    """A figure that the document prints as its program does."""
    return Row(program, what, printed(reading), reading, *rest, **named)


ROWS = (
    Row(
        "r2rt/first-half",
        "accuracy without batch norm",
        final("acc"),
        None,
        lambda r: column(r["bn_vs_plain"], "final_plain"),
        why=_CHANCE,
    ),
    Row(
        "r2rt/first-half",
        "accuracy with batch norm",
        final("acc_BN"),
        None,
        lambda r: column(r["bn_vs_plain"], "final_batch"),
        why=_CHANCE,
    ),
    _printed_row(
        "r2rt/first-half",
        "classes predicted for 100 images alone",
        _classes,
        lambda r: [_classes([["PREDICTIONS", each]]) for each in column(r["single_example"], "predictions_before")],
        why="which class depends on the weights drawn",
    ),
    _printed_row(
        "r2rt/first-half",
        "their accuracy",
        accuracy,
        lambda r: column(r["single_example"], "accuracy_before"),
    ),
    _printed_row(
        "r2rt/second-half",
        "final accuracy",
        lambda readings: after("Final accuracy")(readings)[0],
        lambda r: [each["document_loop"]["last_score"] for each in r["scoring_leak"]["runs"]],
        why=_CHANCE,
    ),
    _printed_row(
        "r2rt/second-half",
        "accuracy one by one, restored",
        accuracy,
        lambda r: column(r["single_example"], "accuracy_after"),
        why="chance: the standard error of 100 images is 0.01 to 0.02",
    ),
    _printed_row(
        "solver/training",
        "test loss and accuracy with batch norm",
        unlabelled(-2),
        lambda r: [each["test"]["with"] for each in r["model_solver"]["runs"]],
        why=_CHANCE,
    ),
    _printed_row(
        "solver/training",
        "the same without",
        unlabelled(-1),
        lambda r: [each["test"]["without"] for each in r["model_solver"]["runs"]],
        why=_CHANCE,
    ),
    _printed_row(
        "solver/training",
        "epochs with the lower training loss",
        _epochs_ahead("TRAIN"),
    ),
    _printed_row(
        "solver/training",
        "epochs with the lower validation loss",
        _epochs_ahead("VALID"),
    ),
    _printed_row(
        "flags/training-false-trainable-false",
        "first pixel",
        _first_pixel,
        lambda r: [_FF(r)["first_pixel_rounded"]],
    ),
    _printed_row(
        "flags/training-true-trainable-false",
        "first pixel",
        _first_pixel,
        lambda r: [_TF(r)["first_pixel_rounded"]],
    ),
    Row(
        "flags/training-true-trainable-false",
        "moving mean after a run",
        printed(after("moving_avg", 0)),
        None,
        None,
        9,
        why="updates of a frozen layer were left out later; see the next table",
    ),
    Row(
        f"flags/{_MOVING}",
        "moving mean after a run",
        printed(after("moving_avg", 0)),
        after("moving_avg"),
        lambda r: _TT(r)["printed_mean"][0],
        9,
        why="1 − momentum in float32 or not; see the next table",
    ),
    Row(
        f"flags/{_MOVING}",
        "moving variance",
        printed(after("moving_variance", 0)),
        after("moving_variance"),
        lambda r: _TT(r)["printed_variance"][0],
        9,
        why="Bessel's correction by the fused kernel; see the next table",
    ),
    Row(
        "article/wrong-use-in-a-network",
        "accuracy with training=True",
        measured("accuracy, training=True"),
        None,
        lambda r: [each["without"]["training_true"][1] for each in r["missing_update_ops"]["runs"]],
    ),
    Row(
        "article/wrong-use-in-a-network",
        "accuracy with training=False",
        measured("accuracy, training=False"),
        None,
        lambda r: [each["without"]["training_false"][1] for each in r["missing_update_ops"]["runs"]],
        why="the project's network is Model and Solver's, with two such layers, after an epoch",
    ),
    Row("article/wrong-use-in-a-network", "moving mean and variance, least to largest", _extremes),
    Row(
        "article/right-use-in-a-network",
        "accuracy with training=False",
        measured("accuracy, training=False"),
        None,
        lambda r: [each["with"]["training_false"][1] for each in r["missing_update_ops"]["runs"]],
    ),
    Row("article/contrib-in-a-network", "accuracy with is_training=False", measured("accuracy, training=False")),
    Row(
        "article/wrapper-in-a-network",
        "accuracy by the population, restored",
        measured("restored", "accuracy, training=False"),
        why="its offset starts at random values by default",
    ),
    Row(
        "article/wrapper-in-a-network",
        "moved by ten predictions",
        measured("trained", "population moved by ten predictions"),
    ),
    _printed_row(
        "article/control-dependency",
        "sum without the dependency",
        after("Add"),
        lambda r: _sums(r, "alone"),
    ),
    _printed_row(
        "article/control-dependency",
        "sum with it",
        after("Add_with_dependency"),
        lambda r: _sums(r, "after"),
    ),
    Row("article/update-ops", "what UPDATE_OPS prints", _ops, _ops_of_the_document, why="see the next table"),
    Row(
        "article/saver-of-trainables",
        "restored by a Saver of all",
        measured("by a Saver of all variables"),
        None,
        lambda r: _restored(r, "all variables", "trainables only"),
    ),
    Row(
        "article/saver-of-trainables",
        "by the same Saver",
        measured("by this Saver"),
        None,
        lambda r: _restored(r, "trainables, not initialized", "trainables only"),
    ),
    Row(
        "article/saver-of-trainables",
        "by the same Saver, initialized",
        measured("by this Saver, after the initializer"),
        None,
        lambda r: _restored(r, "trainables, initialized", "trainables only"),
        why="the project's network has two such layers, and weights from N(0, 1)",
    ),
    Row(
        "article/saver-by-name",
        "restored by the same Saver",
        measured("by this Saver"),
        None,
        lambda r: _restored(r, "all variables", "trainables and filter"),
    ),
    Row(
        "article/signatures",
        "tf.layers against the list",
        differences("tf.layers.batch_normalization"),
        why="arguments were added over the releases",
    ),
    Row("article/signatures", "contrib against the list", differences("tf.contrib.layers.batch_norm"), why="the same"),
    Row(
        "qa/helper-in-a-network",
        "accuracy by its averages",
        measured("accuracy by the averages"),
        None,
        lambda r: [each["as suggested"]["accuracy"] for each in r["conv_normalizer"]["trained"]],
        why="the kernels are of 5 × 5 here, of 3 × 3 in the project",
    ),
    Row(
        "qa/helper-in-a-network",
        "steps whose own mean was averaged",
        _averaged,
        why="left to chance: the averaging is made outside of the dependency, and each executor has its own order",
    ),
    _printed_row(
        "qa/keras-one-example",
        "output",
        _first,
        lambda r: r["keras_modes"]["libraries"]["Keras 3"]["one_layer"]["one_example"],
        9,
        why="TensorFlow 1.0 has no tf.keras, and 1.4 no eager execution",
    ),
    _printed_row(
        "qa/keras-two-examples",
        "output",
        _first,
        lambda r: [r["keras_modes"]["libraries"]["Keras 3"]["one_layer"]["two_examples_printed"]],
        9,
    ),
    _printed_row(
        "qa/keras-feature-axis",
        "output",
        _first,
        lambda r: [r["keras_modes"]["libraries"]["Keras 3"]["one_layer"]["axis_0_printed"]],
        9,
    ),
    Row(
        "qa/keras-hard-wired-training",
        "moved by a call",
        measured("moved by a call"),
        why="in a TensorFlow 1 graph a call moves nothing",
    ),
    Row(
        "qa/keras-hard-wired-training",
        "prediction, alone against among ten",
        measured("predict, alone against among ten"),
        why="Keras 3 predicts by the moving statistics all the same",
    ),
)


def load_runs(folder: Path) -> dict[tuple[str, str], dict]:
    """The results in `folder`, by program and environment."""
    found = {}
    for path in sorted(folder.glob("*/*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[f"{result['document']}/{result['program']}", result["environment"]] = result
    return found


def last_runs(result: dict) -> list[dict]:
    """The run of each seed that ended well, or the last that did not."""
    return list({run["seed"]: run for run in result["runs"]}.values())


def _called_changes(result: dict) -> bool:
    """Whether a program of that result raised and was changed."""
    return any(run["error"] for run in result["runs"]) and not any(run["error"] for run in last_runs(result))


def cell(row: Row, results: Iterable[dict]) -> str:
    """What a program gave in the environments of one column."""
    texts = {}
    for result in results:
        runs = last_runs(result)
        good = [run for run in runs if run["error"] is None]
        text = shown([row.read(run) for run in good], row.digits) if good else f"raises {runs[-1]['error']['type']}"
        texts[result["environment"]] = text + f" {CHANGED}" * _called_changes(result)
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{environment.removeprefix(TODAY).strip()}: {text}" for environment, text in texts.items())


def shown(values: Sequence, digits: int) -> str:
    """Values of several seeds: what they have in common, or min ← median → max of numbers (of each number of a list)."""
    if isinstance(values, str):
        return values.strip("[]")
    values = [value if isinstance(value, list) else [value] for value in values]
    if all(value == values[0] for value in values):
        return " ".join(_number(each, digits) for each in values[0])
    if any(isinstance(each, str) for value in values for each in value):
        return ", ".join(" ".join(map(str, value)) for value in values)
    spreads = [
        f"{np.min(each):.{digits}f} ← {np.median(each):.{digits}f} → {np.max(each):.{digits}f}"
        for each in np.transpose(values)
    ]
    return ", ".join(spreads)


def _number(value: object, digits: int) -> str:
    return f"{round(value, digits):g}" if isinstance(value, float) and digits < 9 else str(value)


def _ours(row: Row, reference: Mapping[str, dict]) -> str:
    try:
        return "" if row.ours is None else shown(row.ours(reference), row.digits)
    except (KeyError, StopIteration):  # no such experiment in this reference
        return ""


def results_table(
    found: Mapping[tuple[str, str], dict], reference: Mapping[str, dict]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first table; programs that were not run are left out."""
    lines = []
    for row in ROWS:
        columns = [
            [result for (key, place), result in found.items() if key == row.program and place.split()[0] == each]
            for each in COLUMNS
        ]
        there = [result for each in columns for result in each]
        if not there:
            continue
        document = "" if row.document is None else shown([row.document(there[0]["document_printed"])], 9)
        cells = [cell(row, each) if each else "" for each in columns]
        lines.append([row.program, row.what, document, *cells, _ours(row, reference), row.why])
    return ["program", "figure", "printed", *COLUMNS, "the project's", "where they differ"], lines


def failures_table(found: Mapping[tuple[str, str], dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the second table: each error, where it is raised, and what helps."""
    grouped: dict[tuple, dict] = {}
    for (program, place), result in found.items():
        first = [run for run in result["runs"] if run["seed"] == result["runs"][0]["seed"]]
        for run, after_it in zip(first, [*first[1:], None], strict=True):
            if run["error"] is None:
                continue
            error = run["error"] | ({"line": None} if run["changes"] else {})  # lines that were put in count too
            same_again = after_it and after_it["error"] and after_it["error"]["message"] == error["message"]
            helps = NOTHING if after_it is None or same_again else after_it["changes"][-1]["why"]
            entry = grouped.setdefault(
                (program, error["type"], error["message"][:40], helps), {"error": error, "places": set()}
            )
            entry["places"].add(place)
            if error["line"] and not entry["error"]["line"]:
                entry["error"] = error
    rows = []
    for (program, kind, _, helps), entry in grouped.items():
        places = sorted(entry["places"], key=lambda place: [int(part) for part in place.split()[0].split(".")])
        everywhere = {place.split()[0] for place in places} == {
            place.split()[0] for key, place in found if key == program
        }
        error = entry["error"]
        message = f"{kind}: {error['message'][:100]}" + (f" (line {error['line']})" if error["line"] else "")
        rows.append([program, "all" if everywhere else ", ".join(places), message, helps])
    return ["program", "TensorFlow", "raises", "what helps"], rows


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [
        [str(each).replace("|", "\\|").replace("\n", " ") for each in line]
        for line in [header, ["---"] * len(header), *rows]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
