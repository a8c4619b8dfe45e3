"""The training and trainable flags: which statistics normalize, and whether the moving ones move.

Document: flags, "What is the significance of trainable and training flag in tf.layers.batch_normalization?", the
opening, *Two phases* and *Example code*. Claims flags-01 to flags-08.

    make training-vs-trainable        or        python -m experiments.training_vs_trainable

The document's example is run in all four combinations, two runs each as in its loop, with ``tf.layers`` (fused kernel
and not), this library's slim form and wrapper, and with legacy Keras and Keras 3 in processes of their own.

Changed from the document: its image is random and only its first pixel is printed. The printed moving averages pin the
channels' sums and sums of squares, and `IMAGE` is the one with those values, up to the order of the pixels. The
statistics are fetched through the variables, since ``moving_mean:0`` is today the handle of a resource. There is no
training, so both modes are the same.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness, keras_child
from experiments.machinery.figures import figure
from experiments.machinery.harness import Mode
from experiments.machinery.tables import draw_table
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# (2, 2, 4); a batch of this one image is fed.
IMAGE = [[[4, 5, 9, 0], [7, 8, 9, 6]], [[2, 1, 6, 5], [0, 0, 2, 0]]]
# The document's.
GAMMA, BETA = 2.0, 1.0
MOVING_MEAN, MOVING_VARIANCE = 0.0, 1.0
# The defaults, which the document leaves alone.
MOMENTUM, EPSILON = 0.99, 1e-3
# Its loop.
RUNS = 2
# Moving statistics that are not (0, 1): do they show in the output?
OTHER_MEAN, OTHER_VARIANCE = 3.0, 4.0

# What the document prints.
INFERENCE_PIXEL = [9.0, 11.0, 19.0, 1.0]
TRAINING_PIXEL = [2.0, 2.0, 3.0, -1.0]
PRINTED_MEAN = "[0.03249997 0.03499997 0.06499994 0.02749997]"
PRINTED_VARIANCE = "[1.0791667 1.1266665 1.0999999 1.0925]"

# For the variance by rank; 6 to 48 values a channel.
SHAPES = {2: (6, 3), 3: (6, 2, 3), 4: (6, 2, 2, 3), 5: (6, 2, 2, 2, 3)}

Build = Callable[..., tf.Tensor]

FULL = QUICK = Mode()


def tf_layers(**options) -> Build:
    def build(inputs, training, trainable, momentum, initial) -> tf.Tensor:
        return legacy_layers().batch_normalization(
            inputs,
            momentum=momentum,
            training=training,
            trainable=trainable,
            **{f"{name}_initializer": tf.constant_initializer(value) for name, value in initial.items()},
            **options,
        )

    return build


def slim_form(**options) -> Build:
    def build(inputs, training, trainable, momentum, initial) -> tf.Tensor:
        initializers = {name: tf.constant_initializer(value) for name, value in initial.items()}
        return slim.batch_norm(
            inputs,
            decay=momentum,
            scale=True,
            is_training=training,
            trainable=trainable,
            param_initializers=initializers,
            **options,
        )

    return build


def wrapper(**options) -> Build:
    def build(inputs, training, trainable, momentum, initial) -> tf.Tensor:
        return bn_graph.batch_norm_wrapper(
            inputs,
            training,
            decay=momentum,
            trainable=trainable,
            **{f"{name}_initializer": tf.constant_initializer(value) for name, value in initial.items()},
            **options,
        )

    return build


FUSED, NOT_FUSED = "tf.layers", "tf.layers, fused=False"
GRAPH_LIBRARIES = {
    FUSED: tf_layers(),  # at rank 4 its default is the fused kernel
    NOT_FUSED: tf_layers(fused=False),
    "slim form": slim_form(),
    "slim form, fused=False": slim_form(fused=False),
    "batch_norm_wrapper": wrapper(),
    "batch_norm_wrapper, unbiased_variance": wrapper(unbiased_variance=True),
}
START = {"gamma": GAMMA, "beta": BETA, "moving_mean": MOVING_MEAN, "moving_variance": MOVING_VARIANCE}


def run(settings: harness.Settings) -> dict:
    batches = {rank: _batch(rank) for rank in SHAPES}
    keras = keras_child.ask_both(
        keras_child.four_cells,
        image=[IMAGE],
        gamma=GAMMA,
        beta=BETA,
        momentum=MOMENTUM,
        batches=[batch.tolist() for batch in batches.values()],
    )
    cells, variances = {}, {}
    for library, build in GRAPH_LIBRARIES.items():
        cells[library] = [
            _cell(build, training, trainable) for training in (False, True) for trainable in (False, True)
        ]
        variances[library] = [_one_step_variance(build, batch) for batch in batches.values()]
    for library, answer in keras.items():
        cells[library], variances[library] = answer["cells"], answer["variances"]

    return {
        "cells": {library: [_described(cell) for cell in four] for library, four in cells.items()},
        "variance_by_rank": {library: _kinds_by_rank(variances[library], batches) for library in cells},
        "parameters": _parameters(),
        "normalized": _normalized(),
        "other_statistics": _with_other_statistics(),
        "what_moves": _what_moves(),
        "ref_variables": _described(_cell(tf_layers(), True, True, use_resource=False)),
        "keras_versions": {library: answer["version"] for library, answer in keras.items()},
    }


def _image() -> np.ndarray:
    return np.array([IMAGE], np.float32)


def _batch(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).normal(2.0, 3.0, SHAPES[rank]).astype(np.float32)


def _cell(build: Build, training, trainable: bool, *, update=True, use_resource=None, start: dict = START) -> dict:
    """The document's session: a fresh graph, the update ops and the output fetched together, the statistics read after."""
    with (
        tf.Graph().as_default(),
        tf.variable_scope("", use_resource=use_resource),
        tf.Session(config=bn_graph.session_config()) as session,
    ):
        inputs = tf.placeholder(tf.float32, (1, 2, 2, 4))
        fed = tf.placeholder_with_default(True, []) if training == "fed True" else training
        outputs = build(inputs, fed, trainable, MOMENTUM, start)
        update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        statistics = [_variable("moving_mean"), _variable("moving_variance")]
        session.run(tf.global_variables_initializer())
        runs = []
        for _ in range(RUNS):
            _, got = session.run([update_ops if update else [], outputs], {inputs: _image()})
            runs.append([got.tolist(), *(value.tolist() for value in session.run(statistics))])
    return {"training": training, "trainable": trainable, "runs": runs, "update_ops": len(update_ops)}


def _variable(name: str) -> tf.Variable:
    (variable,) = [each for each in tf.global_variables() if each.op.name.endswith(f"/{name}")]
    return variable


def _candidates(mean, variance) -> np.ndarray:
    """The first pixel's output in float64, had it been normalized by these moments."""
    return GAMMA * (np.array(IMAGE[0][0]) - mean) / np.sqrt(np.array(variance) + EPSILON) + BETA


def _described(cell: dict) -> dict:
    """A cell in short: the first pixel, which statistics it was normalized with, and what became of the moving ones."""
    values = np.array(IMAGE, np.float64).reshape(-1, 4)
    pixel = np.array(cell["runs"][0][0])[0, 0, 0]
    by_batch = _candidates(values.mean(0), values.var(0))
    by_moving = _candidates(MOVING_MEAN, MOVING_VARIANCE)
    distances = {"batch": np.abs(pixel - by_batch).max(), "moving": np.abs(pixel - by_moving).max()}
    nearest = min(distances, key=distances.get)
    after = np.array(cell["runs"][0][2])
    steps = {f"{kind}": 0.99 + 0.01 * values.var(0, ddof=ddof) for kind, ddof in (("biased", 0), ("unbiased", 1))}
    kinds = [kind for kind, expected in steps.items() if np.allclose(after, expected, rtol=1e-6)]
    moved = [run[1:] != [[MOVING_MEAN] * 4, [MOVING_VARIANCE] * 4] for run in cell["runs"]]
    return {
        "training": cell["training"],
        "trainable": cell["trainable"],
        "first_pixel": [round(float(value), 6) for value in pixel],
        "first_pixel_rounded": np.round(pixel).tolist(),
        "same_output_in_both_runs": cell["runs"][0][0] == cell["runs"][1][0],
        "distance_from_batch": round(float(distances["batch"]), 7),
        "distance_from_moving": round(float(distances["moving"]), 7),
        "normalizes_with": nearest if distances[nearest] < 1e-4 else "neither",
        "moved": moved[0],
        "update_ops": cell["update_ops"],
        "variance": kinds[0] if kinds else "other" if moved[0] else "not moved",
        "printed_mean": [_printed(run[1]) for run in cell["runs"]],
        "printed_variance": [_printed(run[2]) for run in cell["runs"]],
    }


def _printed(values: list[float]) -> str:
    """As ``print`` shows the float32 array, without the blanks that align its columns."""
    return f"[{' '.join(str(np.array(values, np.float32)).strip('[]').split())}]"


def _one_step_variance(build: Build, batch: np.ndarray) -> list[float]:
    """The moving variance after one step with momentum 0: the batch's variance as the library averages it."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = build(tf.constant(batch), True, True, 0.0, {})
        session.run(tf.global_variables_initializer())
        session.run([outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)])
        return session.run(_variable("moving_variance")).tolist()


def _kinds_by_rank(variances: list, batches: dict[int, np.ndarray]) -> dict[str, str]:
    kinds = {}
    for got, (rank, batch) in zip(variances, batches.items(), strict=True):
        axes = tuple(range(rank - 1))
        expected = {"biased": 0, "unbiased": 1}
        close = [kind for kind, ddof in expected.items() if np.allclose(got, batch.var(axes, ddof=ddof), rtol=1e-4)]
        kinds[str(rank)] = close[0] if close else "other"
    return kinds


def _parameters() -> dict:
    """The variables of one layer, by whether they are trainable, for either value of the flag."""
    found = {}
    for trainable in (True, False):
        with tf.Graph().as_default():
            GRAPH_LIBRARIES[FUSED](tf.placeholder(tf.float32, (1, 2, 2, 4)), True, trainable, MOMENTUM, START)
            trained = tf.trainable_variables()
            others = [each for each in tf.global_variables() if each.op.name not in {v.op.name for v in trained}]
            found["trainable_true" if trainable else "trainable_false"] = {
                "trainable": [variable.op.name.split("/")[-1] for variable in trained],
                "not_trainable": [variable.op.name.split("/")[-1] for variable in others],
                "trainable_numbers": int(sum(np.prod(variable.shape.as_list()) for variable in trained)),
            }
    return found


def _normalized() -> dict[str, dict[str, list[float]]]:
    """Mean and deviation of each channel's output over the image: with and without gamma and beta, in both phases."""
    plain = START | {"gamma": 1.0, "beta": 0.0}
    cases = {
        "training, gamma 1, beta 0": (True, plain),
        "training, gamma 2, beta 1": (True, START),
        "inference, gamma 1, beta 0": (False, plain),
    }
    found = {}
    for name, (training, start) in cases.items():
        outputs = np.array(_cell(tf_layers(), training, True, start=start)["runs"][0][0]).reshape(-1, 4)
        found[name] = {"mean": outputs.mean(0).round(6).tolist(), "deviation": outputs.std(0).round(6).tolist()}
    return found


def _with_other_statistics() -> dict[str, dict]:
    """The same image with moving statistics (3, 4) in place of (0, 1): how far does the output of each phase move?"""
    other = START | {"moving_mean": OTHER_MEAN, "moving_variance": OTHER_VARIANCE}
    found = {}
    for name, training in (("training", True), ("inference", False)):
        outputs = [np.array(_cell(tf_layers(), training, True, start=start)["runs"][0][0]) for start in (START, other)]
        scaled = GAMMA * _image() + BETA  # gamma and beta, and nothing else
        found[name] = {
            "changes_by": round(float(np.abs(outputs[1] - outputs[0]).max()), 6),
            "from_gamma_and_beta_alone": [round(float(np.abs(each - scaled).max()), 6) for each in outputs],
        }
    return found


def _what_moves() -> dict[str, bool]:
    """tf.layers: do the moving statistics move, with the update ops of the collection fetched and not?"""
    cases = {
        "training=True, trainable=True, update ops run": (True, True, True),
        "training=True, trainable=True, update ops not run": (True, True, False),
        "training=True, trainable=False, update ops run": (True, False, True),
        "training fed True, trainable=True, update ops run": ("fed True", True, True),
        "training fed True, trainable=False, update ops run": ("fed True", False, True),
        "training=False, trainable=True, update ops run": (False, True, True),
    }
    return {
        name: _described(_cell(tf_layers(), training, trainable, update=update))["moved"]
        for name, (training, trainable, update) in cases.items()
    }


FIGURES = {
    "training_vs_trainable.png": "What each library does with the two flags on the document's image, and which variance "
    "it averages by rank. Look at the column training=True, trainable=False: that is where the libraries part."
}


def draw(result: dict, folder: Path) -> None:
    """One table: libraries by (training, trainable), and which variance they average, by rank."""
    pairs = [(False, False), (False, True), (True, False), (True, True)]
    header = ["", *(f"training={a}\ntrainable={b}" for a, b in pairs)]
    header += [f"rank {rank}" for rank in SHAPES]
    rows, colours = [], {}
    for row, (library, cells) in enumerate(result["cells"].items()):
        kinds = result["variance_by_rank"][library]
        texts = [f"by {cell['normalizes_with']}\nthey {'move' if cell['moved'] else 'stay'}" for cell in cells]
        shown = library.replace(", ", ",\n")
        rows.append([shown, *texts, *({"unbiased": "m/(m−1)·σ²", "biased": "σ²"}.get(k, k) for k in kinds.values())])
        colours |= {(row, 1 + c): "blue" if cell["moved"] else "" for c, cell in enumerate(cells)}
        # Orange: asked to train, and normalized by the moving statistics all the same.
        wrong = [c for c, cell in enumerate(cells) if cell["training"] and cell["normalizes_with"] != "batch"]
        colours |= {(row, 1 + c): "orange" for c in wrong}
        colours |= {(row, 5 + c): "blue" for c, kind in enumerate(kinds.values()) if kind == "unbiased"}
    with figure(folder / "training_vs_trainable.png", figsize=(12.5, 6.2)) as (drawing, axis):
        draw_table(axis, header, rows, colours, [0.19, *[0.115] * 4, *[0.087] * 4], height=2.75)
        axis.set_title(
            "Statistics that normalize the document's image (batch or moving), and whether the moving ones move      |      "
            "variance that is averaged, by rank",
            fontsize=10,
        )
        drawing.supxlabel(
            "blue: the moving statistics move, or take Bessel's correction; orange: training=True, yet normalized by the "
            "moving statistics",
            fontsize=9,
        )


def summarize(result: dict) -> str:
    width = max(len(library) for library in result["cells"])
    lines = [f"{'':<{width}}  training  trainable  first pixel [4, 5, 9, 0]    normalized by  moving statistics"]
    for library, cells in result["cells"].items():
        for cell in cells:
            pixel = " ".join(f"{value:6.3f}" for value in cell["first_pixel"])
            lines.append(
                f"{library:<{width}}  {cell['training']!s:<8}  {cell['trainable']!s:<9}  {pixel:<27}  "
                f"{cell['normalizes_with']:<13}  {'variance ' + cell['variance'] if cell['moved'] else 'stay'}"
            )
    lines += ["", "tf.layers, training=True, trainable=True, as printed after each of the two runs:"]
    for library in (FUSED, NOT_FUSED):
        cell = _find(result, library, True, True)
        for run_, (mean, variance) in enumerate(zip(cell["printed_mean"], cell["printed_variance"], strict=True), 1):
            lines.append(f"  {library:<22}  run {run_}  {mean}  {variance}")
    lines += [f"  {'the document':<22}         {PRINTED_MEAN}  {PRINTED_VARIANCE}", ""]
    return "\n".join(lines)


def _find(result: dict, library: str, training: bool, trainable: bool) -> dict:
    (cell,) = [
        each for each in result["cells"][library] if each["training"] is training and each["trainable"] is trainable
    ]
    return cell


def _numbers(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.0f}" for value in values) + "]"


def judge_flags_01(result: dict) -> Verdict:
    on, off = result["parameters"]["trainable_true"], result["parameters"]["trainable_false"]
    measured = f"{len(on['trainable'])} trainable ({', '.join(on['trainable'])})"
    measured += f", {len(on['not_trainable'])} not ({', '.join(on['not_trainable'])})"
    note = (
        f"Each trainable variable has one number a channel, {on['trainable_numbers']} in all for the 4 channels here. "
        f"With trainable=False the layer has {len(off['trainable'])} trainable variables."
    )
    return holds(measured, note) if len(on["trainable"]) == 2 else does_not_hold(measured, note)


def judge_flags_02(result: dict) -> Verdict:
    def near(case: str) -> bool:
        moments = result["normalized"][case]
        return max(map(abs, moments["mean"])) < 1e-3 and max(abs(d - 1) for d in moments["deviation"]) < 1e-3

    def figures(case: str) -> str:
        moments = result["normalized"][case]
        return f"mean {_range(moments['mean'])}, deviation {_range(moments['deviation'])} ({case})"

    def _range(values: list[float]) -> str:
        low, high = (f"{value + 0.0:.4f}" for value in (min(values), max(values)))
        return low if low == high else f"{low} … {high}"

    plain, scaled, inference = result["normalized"]
    measured = "; ".join(map(figures, (plain, scaled, inference)))
    if not near(plain):
        return does_not_hold(
            measured, "Not even the batch's own statistics give mean 0 and deviation 1 before gamma and beta."
        )
    if near(scaled) and near(inference):
        return holds(measured, "In training and at inference, whatever gamma and beta are.")
    failing = " and ".join(case for case in (scaled, inference) if not near(case))
    return holds_if(
        "the batch's own statistics normalize, before gamma and beta", measured, f"It fails for: {failing}."
    )


def judge_flags_03(result: dict) -> Verdict:
    cell = _find(result, FUSED, True, True)
    change = result["other_statistics"]["training"]["changes_by"]
    measured = (
        f"first pixel {_numbers(cell['first_pixel_rounded'])}: {cell['distance_from_batch']:.1e} from normalizing by the "
        f"batch, {cell['distance_from_moving']:.1f} from normalizing by the moving statistics"
    )
    if cell["normalizes_with"] == "moving":
        return holds(measured, f"Other moving statistics change the output by {change:g}.")
    note = (
        f"The document's own output {_numbers(TRAINING_PIXEL)} is the batch's, as is this one; "
        if cell["first_pixel_rounded"] == TRAINING_PIXEL
        else "The output is not that of the moving statistics; "
    )
    return does_not_hold(measured, f"{note}moving statistics of (3, 4) in place of (0, 1) change it by {change:g}.")


def judge_flags_04(result: dict) -> Verdict:
    start, other = result["other_statistics"]["inference"]["from_gamma_and_beta_alone"]
    measured = f"largest distance from gamma·x + beta: {start:.3g} with moving (0, 1), {other:.3g} with moving (3, 4)"
    if start < 0.01 and other < 0.01:
        return holds(measured, "Inference does not depend on the moving statistics.")
    if start < 0.01:
        return holds_if(
            "the moving statistics are still (0, 1)",
            measured,
            "Inference normalizes by the moving mean and variance, and gamma and beta come after; "
            "the example's (0, 1) hide that.",
        )
    return does_not_hold(measured, "The output is not gamma·x + beta.")


def judge_flags_05(result: dict) -> Verdict:
    cells = {library: _find(result, library, False, False) for library in (FUSED, NOT_FUSED)}
    measured = "; ".join(f"{name}: {_numbers(cell['first_pixel_rounded'])}" for name, cell in cells.items())
    right = all(cell["first_pixel_rounded"] == INFERENCE_PIXEL for cell in cells.values())
    unrounded = ", ".join(f"{value:.4f}" for value in cells[FUSED]["first_pixel"])
    return (holds if right else does_not_hold)(measured, f"Unrounded with the fused kernel: [{unrounded}].")


def judge_flags_06(result: dict) -> Verdict:
    cells = {library: _find(result, library, True, False) for library in (FUSED, NOT_FUSED)}
    measured = "; ".join(
        f"{name}: {_numbers(cell['first_pixel_rounded'])}, {cell['update_ops']} update ops, "
        f"averages {'moved' if cell['moved'] else 'not moved'}"
        for name, cell in cells.items()
    )
    right = all(cell["first_pixel_rounded"] == TRAINING_PIXEL and not cell["moved"] for cell in cells.values())
    move = [name for name in result["cells"] if _find(result, name, True, False)["moved"]]
    differ = [name for name in result["cells"] if _find(result, name, True, False)["normalizes_with"] != "batch"]
    note = f"Elsewhere: the averages move all the same in {'; '.join(move) or 'none of the others'}. "
    note += f"The moving statistics normalize in {'; '.join(differ) or 'none of the others'}."
    return (holds if right else does_not_hold)(measured, note)


def judge_flags_07(result: dict) -> Verdict:
    kernels = {"the fused kernel": FUSED, "fused=False": NOT_FUSED}
    matches = [
        (kernel, number)
        for kernel, library in kernels.items()
        for number in range(RUNS)
        if _find(result, library, True, True)["printed_mean"][number] == PRINTED_MEAN
        and _find(result, library, True, True)["printed_variance"][number] == PRINTED_VARIANCE
    ]
    fused, plain = (_find(result, library, True, True) for library in kernels.values())
    measured = f"fused, run 1: {fused['printed_mean'][0]}; {fused['printed_variance'][0]}"
    note = (
        f"Without the kernel run 1 prints the variance {plain['printed_variance'][0]} ({plain['variance']}; the kernel's is "
        f"{fused['variance']}). The second run of the document's loop prints the mean {fused['printed_mean'][1]}."
    )
    if not matches:
        return does_not_hold(measured, note)
    if len(matches) == len(kernels) * RUNS:
        return holds(measured, note)
    condition = " or ".join(f"{kernel} is used and it is run {number + 1} of the two" for kernel, number in matches)
    return holds_if(condition, measured, note)


def judge_flags_08(result: dict) -> Verdict:
    moves = result["what_moves"]
    needed = not any(moved for case, moved in moves.items() if "trainable=False" in case)
    moving = [case for case, moved in moves.items() if moved]
    measured = f"moved: {'; '.join(moving) or 'never'}; {len(moves) - len(moving)} other cases stay"
    not_enough = [case for case, moved in moves.items() if "trainable=True" in case and not moved]
    others = [name for name in result["cells"] if _find(result, name, True, False)["moved"]]
    elsewhere = f" With trainable=False they still move in {'; '.join(others)}." if others else ""
    if not needed:
        return does_not_hold(measured, f"With trainable=False they moved too.{elsewhere}")
    if not moving:
        return does_not_hold(measured, "They never moved, with trainable=True either.")
    note = "It is enough." if not not_enough else f"It is not enough: they stay with {' and with '.join(not_enough)}."
    return holds(measured, note + elsewhere)


if __name__ == "__main__":
    harness.run(__name__)
