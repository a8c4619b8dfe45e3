"""The training and trainable flags: which statistics normalize, and whether the moving ones move.

Document: flags, "What is the significance of trainable and training flag in tf.layers.batch_normalization?", the
opening, *Two phases* and *Example code*. Claims flags-01 to flags-08.

    make training-vs-trainable

The document's example is run in all four combinations, two runs each as in its loop, with ``tf.layers`` (fused kernel
and not), this library's slim form and wrapper, and in processes of their own with legacy Keras, Keras 3 and, where
`make eras` has made it, TensorFlow 1.15's own contrib, tf.layers and tf.keras.

Changed from the document: its image is random and only its first pixel is printed. The printed moving averages pin the
channels' sums and sums of squares, and `IMAGE` is the one with those values, up to the order of the pixels. Statistics are
fetched through the variables, for ``moving_mean:0`` is a resource's handle today. Nothing is trained: both modes are one.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

import bn_graph
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import children, harness, keras_child
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import largest
from experiments.machinery.tables import Table
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# (2, 2, 4); a batch of this one image is fed.
IMAGE = [[[4, 5, 9, 0], [7, 8, 9, 6]], [[2, 1, 6, 5], [0, 0, 2, 0]]]
# The document's: with gamma 2 and beta 1 in place of 1 and 0 they show in the output.
START = {"gamma": 2.0, "beta": 1.0, "moving_mean": 0.0, "moving_variance": 1.0}
# The defaults, which the document leaves alone.
MOMENTUM, EPSILON = 0.99, 1e-3
# Its loop, and its four cases: (training, trainable).
RUNS, PAIRS = 2, [(False, False), (False, True), (True, False), (True, True)]
# What the document prints.
INFERENCE_PIXEL, TRAINING_PIXEL = [9.0, 11.0, 19.0, 1.0], [2.0, 2.0, 3.0, -1.0]
PRINTED_MEAN = "[0.03249997 0.03499997 0.06499994 0.02749997]"
PRINTED_VARIANCE = "[1.0791667 1.1266665 1.0999999 1.0925]"
# The last TensorFlow with contrib.
ERA = "1.15.5"
# Cases of flags-02.
BATCH_ALONE, DOCUMENTS_OWN = "training, gamma 1, beta 0", "training, gamma 2, beta 1"
# For the variance by rank; 6 to 48 values a channel, where m/(m−1) is well off 1.
SHAPES = {2: (6, 3), 3: (6, 2, 3), 4: (6, 2, 2, 3), 5: (6, 2, 2, 2, 3)}

FULL = QUICK = Mode()


# The document's form. What the variables start from is `initial`, by their names.
def tf_layers(inputs, training, trainable, momentum, initial, **options) -> tf.Tensor:
    options |= {"training": training, "trainable": trainable, "momentum": momentum}
    return legacy_layers().batch_normalization(inputs, **options, **initializers(initial))


# Ours: contrib's signature, whose default of scale is another, and the wrapper.
def slim_form(inputs, training, trainable, momentum, initial, **options) -> tf.Tensor:
    options |= {"is_training": training, "trainable": trainable, "decay": momentum, "scale": True}
    return slim.batch_norm(inputs, param_initializers=initializers(initial, suffix=""), **options)


def wrapper(inputs, training, trainable, momentum, initial, **options) -> tf.Tensor:
    options |= {"trainable": trainable, "decay": momentum}
    return bn_graph.batch_norm_wrapper(inputs, training, **options, **initializers(initial))


def initializers(initial: dict, suffix: str = "_initializer") -> dict:
    return {f"{name}{suffix}": tf.constant_initializer(value) for name, value in initial.items()}


FUSED, NOT_FUSED = "tf.layers", "tf.layers, fused=False"
GRAPH_LIBRARIES = {
    # At rank 4 its default is the fused kernel.
    FUSED: tf_layers,
    NOT_FUSED: partial(tf_layers, fused=False),
    "slim form": slim_form,
    "slim form, fused=False": partial(slim_form, fused=False),
    "batch_norm_wrapper": wrapper,
    "batch_norm_wrapper, unbiased_variance": partial(wrapper, unbiased_variance=True),
}


def run(settings: Settings) -> dict:
    # Seeded by the rank, so that each library gets the same batches.
    batches = [np.random.default_rng(rank).normal(2, 3, shape).astype(np.float32) for rank, shape in SHAPES.items()]
    cells = {name: [measure_cell(build, *pair) for pair in PAIRS] for name, build in GRAPH_LIBRARIES.items()}
    variances = {name: [one_step_variance(build, each) for each in batches] for name, build in GRAPH_LIBRARIES.items()}
    options = {"image": [IMAGE], "momentum": MOMENTUM, "batches": [each.tolist() for each in batches]}
    keras = keras_child.ask_both(keras_child.four_cells, gamma=START["gamma"], beta=START["beta"], **options)
    era = children.ask_era(ERA, "four_cells", start=START, **options) or {}
    for library, answer in (keras | {f"{name} of {ERA}": each for name, each in era.items()}).items():
        cells[library], variances[library] = answer["cells"], answer["variances"]
    return {
        "cells": {library: [describe(cell) for cell in four] for library, four in cells.items()},
        "variance_by_rank": {
            library: {str(batch.ndim): variance_kind(got, batch) for got, batch in zip(found, batches, strict=True)}
            for library, found in variances.items()
        },
        "parameters": parameters_of_a_layer(),
        "normalized": moments_of_the_outputs(),
        "other_statistics": outputs_with_other_statistics(),
        "what_moves": what_moves(),
        "ref_variables": describe(measure_cell(tf_layers, True, True, use_resource=False)),
    }


# --- The document's session, for each library -------------------------------------------------------------------------
def measure_cell(build: Callable, training, trainable, *, run_updates=True, use_resource=None, start=START) -> dict:
    """A fresh graph, the update ops and the output fetched together, the statistics read after."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        inputs = tf.placeholder(tf.float32, (1, 2, 2, 4))
        switch = tf.placeholder_with_default(True, []) if training == "fed True" else training
        with tf.variable_scope("", use_resource=use_resource):
            outputs = build(inputs, switch, trainable, MOMENTUM, start)
        update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        session.run(tf.global_variables_initializer())
        runs = []
        for _ in range(RUNS):
            _, got = session.run([update_ops if run_updates else [], outputs], {inputs: [IMAGE]})
            runs.append([got.tolist(), *(value.tolist() for value in session.run(bn_graph.moving_statistics()))])
    return {"training": training, "trainable": trainable, "runs": runs, "update_ops": len(update_ops)}


def describe(cell: dict) -> dict:
    """A cell in short: the first pixel, which statistics it was normalized with, and what became of the moving ones."""
    values = np.array(IMAGE, np.float64).reshape(-1, 4)
    outputs, means, variances = zip(*cell["runs"], strict=True)
    pixel = np.array(outputs[0])[0, 0, 0]
    distances = {}
    # The first pixel's output in float64, had it been normalized by these moments.
    for kind, mean, variance in (("batch", values.mean(0), values.var(0)), ("moving", 0.0, 1.0)):
        expected = START["gamma"] * (values[0] - mean) / np.sqrt(variance + EPSILON) + START["beta"]
        distances[kind] = largest(pixel - expected)
    nearest = min(distances, key=distances.get)
    moved = (means[0], variances[0]) != ([0.0] * 4, [1.0] * 4)
    found = {key: cell[key] for key in ("training", "trainable", "update_ops")}
    # As ``print`` shows the float32 array, without the blanks that align its columns.
    for name, values_of_runs in (("printed_mean", means), ("printed_variance", variances)):
        arrays = [str(np.array(each, np.float32)).strip("[]").split() for each in values_of_runs]
        found[name] = [f"[{' '.join(numbers)}]" for numbers in arrays]
    return found | {
        "first_pixel": [round(float(value), 6) for value in pixel],
        "first_pixel_rounded": np.round(pixel).tolist(),
        "same_output_in_both_runs": outputs[0] == outputs[1],
        "distance_from_batch": round(distances["batch"], 7),
        "distance_from_moving": round(distances["moving"], 7),
        "normalizes_with": nearest if distances[nearest] < 1e-4 else "neither",
        "moved": moved,
        "variance": variance_kind(variances[0], values, MOMENTUM, 1e-6) if moved else "not moved",
    }


def variance_kind(moving: list[float], values: np.ndarray, momentum: float = 0.0, rtol: float = 1e-4) -> str:
    """Which variance of `values` the moving variance, 1 at first, has averaged in one step."""
    for kind, ddof in (("biased", 0), ("unbiased", 1)):
        variance = values.var(tuple(range(values.ndim - 1)), ddof=ddof)
        if np.allclose(moving, momentum + (1 - momentum) * variance, rtol=rtol):
            return kind
    return "other"


def one_step_variance(build: Callable, batch: np.ndarray) -> list[float]:
    """The moving variance after one step with momentum 0: the batch's variance as the library averages it."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = build(tf.constant(batch), True, True, 0.0, {})
        session.run(tf.global_variables_initializer())
        session.run([outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)])
        return session.run(bn_graph.moving_statistics()[1]).tolist()


def find(result: dict, library: str, training: bool, trainable: bool) -> dict:
    return result["cells"][library][PAIRS.index((training, trainable))]


def rounded(cell: dict) -> str:
    return str([round(value) for value in cell["first_pixel_rounded"]])


# --- flags-01: two trainable parameters? ------------------------------------------------------------------------------
def parameters_of_a_layer() -> dict:
    """The variables of one layer, by whether they are trainable, for either value of the flag."""
    found = {}
    for trainable in (True, False):
        with tf.Graph().as_default():
            GRAPH_LIBRARIES[FUSED](tf.placeholder(tf.float32, (1, 2, 2, 4)), True, trainable, MOMENTUM, START)
            shapes = {each.op.name: each.shape.as_list() for each in tf.trainable_variables()}
            others = [each.op.name for each in tf.global_variables() if each.op.name not in shapes]
        found[f"trainable_{trainable}".lower()] = {
            "trainable": [name.split("/")[-1] for name in shapes],
            "not_trainable": [name.split("/")[-1] for name in others],
            "trainable_numbers": int(sum(map(np.prod, shapes.values()))),
        }
    return found


def judge_flags_01(result: dict) -> Verdict:
    on, off = result["parameters"]["trainable_true"], result["parameters"]["trainable_false"]
    measured = f"It adds {len(on['trainable'])} trainable variables ({', '.join(on['trainable'])})"
    measured += f" and {len(on['not_trainable'])} that are not ({', '.join(on['not_trainable'])})."
    note = f"Each trainable variable has one number a channel, {on['trainable_numbers']} in all for the 4 channels"
    note += f" here. With trainable=False the layer has {len(off['trainable'])} trainable variables."
    return holds(measured, note) if len(on["trainable"]) == 2 else does_not_hold(measured, note)


# --- flags-02: mean 0 and deviation 1? --------------------------------------------------------------------------------
def moments_of_the_outputs() -> dict[str, dict[str, list[float]]]:
    """Mean and deviation of each channel's output over the image: with and without gamma and beta, in both phases."""
    plain = START | {"gamma": 1.0, "beta": 0.0}
    found = {}
    for phase, training, start in (("training", True, plain), ("training", True, START), ("inference", False, plain)):
        outputs = np.array(measure_cell(tf_layers, training, True, start=start)["runs"][0][0]).reshape(-1, 4)
        name = f"{phase}, gamma {start['gamma']:g}, beta {start['beta']:g}"
        found[name] = {"mean": outputs.mean(0).round(6).tolist(), "deviation": outputs.std(0).round(6).tolist()}
    return found


def judge_flags_02(result: dict) -> Verdict:
    def extent(values: list[float]) -> str:
        # Adding 0 makes −0 a 0.
        low, high = (f"{value + 0.0:.4f}" for value in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"

    texts, failing = [], []
    for case, moments in result["normalized"].items():
        mean, deviation = moments["mean"], moments["deviation"]
        texts.append(f"{case}: the mean is {extent(mean)} and the deviation {extent(deviation)}")
        if max(map(abs, mean)) >= 1e-3 or max(abs(each - 1) for each in deviation) >= 1e-3:
            failing.append(case)
    measured = "; ".join(texts).capitalize() + "."
    if not failing:
        return holds(measured, "In training and at inference, whatever gamma and beta are.")
    if BATCH_ALONE in failing:
        return does_not_hold(measured, "Not even the batch's own statistics give it, before gamma and beta.")
    if DOCUMENTS_OWN in failing:
        return does_not_hold(measured, "The document's own gamma is 2, its beta 1. It is so before them, in training.")
    return holds_with_a_trap(f"not in {' or '.join(failing)}", measured, "It is so in the document's own script.")


# --- flags-03: do the moving statistics normalize in training? --------------------------------------------------------
def outputs_with_other_statistics() -> dict[str, dict]:
    """The same image with moving statistics (3, 4) in place of (0, 1): how far does the output of each phase move?"""
    other = START | {"moving_mean": 3.0, "moving_variance": 4.0}
    # Gamma and beta, and nothing else.
    scaled = START["gamma"] * np.array([IMAGE], np.float32) + START["beta"]
    found = {}
    for name, training in (("training", True), ("inference", False)):
        outputs = [measure_cell(tf_layers, training, True, start=each)["runs"][0][0] for each in (START, other)]
        found[name] = {
            "changes_by": round(largest(np.subtract(*outputs)), 6),
            "from_gamma_and_beta_alone": [round(largest(np.subtract(each, scaled)), 6) for each in outputs],
        }
    return found


def judge_flags_03(result: dict) -> Verdict:
    cell = find(result, FUSED, True, True)
    change = result["other_statistics"]["training"]["changes_by"]
    measured = (
        f"The first pixel, {rounded(cell)}, is {cell['distance_from_batch']:.1e} from the one normalized by the batch, and "
        f"{cell['distance_from_moving']:.1f} from the one normalized by the moving statistics."
    )
    if cell["normalizes_with"] == "moving":
        return holds(measured, f"Other moving statistics change the output by {change:g}.")
    as_printed = cell["first_pixel_rounded"] == TRAINING_PIXEL
    note = f"The document's own output {rounded(cell)} is the batch's, as is this one; " if as_printed else ""
    return does_not_hold(measured, f"{note}moving statistics of (3, 4) for (0, 1) change it by {change:g}.")


# --- flags-04: nothing but gamma and beta at inference? ---------------------------------------------------------------
def judge_flags_04(result: dict) -> Verdict:
    start, other = result["other_statistics"]["inference"]["from_gamma_and_beta_alone"]
    measured = f"With moving statistics (0, 1) it is up to {start:.3g} from gamma·x + beta, with (3, 4) {other:.3g}."
    # Beta and gamma alone leave no more than what ε changes: x/√(1 + ε), of the document's pixels up to 9.
    by_epsilon = START["gamma"] * np.max(IMAGE) * (1 - 1 / np.sqrt(1 + EPSILON)) + 1e-5
    if start > by_epsilon:
        return does_not_hold(measured, "The output is not even that of a fresh layer's gamma and beta.")
    if other <= by_epsilon:
        return holds(measured, "Inference does not depend on the moving statistics.")
    note = "Inference normalizes by the moving statistics, and then applies gamma and beta. "
    return does_not_hold(
        measured, f"{note}The claim is true of a layer that never trained, whose (0, 1) change nothing."
    )


# --- flags-05: the pixel at inference ---------------------------------------------------------------------------------
def judge_flags_05(result: dict) -> Verdict:
    cells = {library: find(result, library, False, False) for library in (FUSED, NOT_FUSED)}
    measured = f"The first pixel is {' and '.join(f'{rounded(cell)} with {name}' for name, cell in cells.items())}."
    right = all(cell["first_pixel_rounded"] == INFERENCE_PIXEL for cell in cells.values())
    unrounded = ", ".join(f"{value:.4f}" for value in cells[FUSED]["first_pixel"])
    return (holds if right else does_not_hold)(measured, f"Unrounded with the fused kernel: [{unrounded}].")


# --- flags-06: training without trainable -----------------------------------------------------------------------------
def judge_flags_06(result: dict) -> Verdict:
    every = {library: find(result, library, True, False) for library in result["cells"]}
    cells = {library: every[library] for library in (FUSED, NOT_FUSED)}
    kept = {True: "moves", False: "keeps"}
    measured = "; ".join(
        f"{name} gives {rounded(cell)}, has {cell['update_ops']} update ops and {kept[cell['moved']]} its averages"
        for name, cell in cells.items()
    )
    note = "The document's own call does so."
    if not all(cell["first_pixel_rounded"] == TRAINING_PIXEL and not cell["moved"] for cell in cells.values()):
        return does_not_hold(f"{measured}.", "The document's own call does otherwise.")
    move = [name for name, cell in every.items() if cell["moved"]]
    differ = [name for name, cell in every.items() if cell["normalizes_with"] != "batch"]
    if not move and not differ:
        return holds(f"{measured}.", f"{note} So does every other library tried.")
    note += f" The averages move all the same in {', '.join(move) or 'no other'}; the moving statistics normalize in "
    note += f"{', '.join(differ) or 'no other'}."
    return holds_with_a_trap("other libraries take trainable=False otherwise", f"{measured}.", note)


# --- flags-07: the printed averages -----------------------------------------------------------------------------------
def judge_flags_07(result: dict) -> Verdict:
    fused, plain = (find(result, library, True, True) for library in (FUSED, NOT_FUSED))
    printed = list(zip(fused["printed_mean"], fused["printed_variance"], strict=True))
    measured = f"The first run prints {printed[0][0]} and {printed[0][1]}."
    note = f"Its second run prints the mean {printed[1][0]}. Without the fused kernel the first prints the variance "
    note += f"{plain['printed_variance'][0]} ({plain['variance']}; the kernel's is {fused['variance']})."
    # The document's loop runs twice, and what it shows is the first; at rank 4 the fused kernel is the default.
    if printed[0] != (PRINTED_MEAN, PRINTED_VARIANCE):
        return does_not_hold(measured, note)
    if plain["printed_variance"][0] == PRINTED_VARIANCE:
        return holds(measured, note)
    return holds_with_a_trap("without the fused kernel the variance is another", measured, note)


# --- flags-08: trainable=True for the moving statistics to move -------------------------------------------------------
def what_moves() -> dict[str, bool]:
    """tf.layers: do the moving statistics move, with the update ops of the collection fetched and not?"""
    cases = [(True, True, True), (True, True, False), (True, False, True)]
    cases += [("fed True", True, True), ("fed True", False, True), (False, True, True)]
    found = {}
    for training, trainable, run_updates in cases:
        switch = f"training{' ' if training == 'fed True' else '='}{training}, trainable={trainable}"
        name = f"{switch}, update ops {'run' if run_updates else 'not run'}"
        found[name] = describe(measure_cell(tf_layers, training, trainable, run_updates=run_updates))["moved"]
    return found


def judge_flags_08(result: dict) -> Verdict:
    moves = result["what_moves"]
    moving = [case for case, moved in moves.items() if moved]
    measured = f"The statistics move in {len(moving)} of {len(moves)} cases: {'; '.join(moving) or 'none'}."
    others = [name for name in result["cells"] if find(result, name, True, False)["moved"]]
    if any("trainable=False" in case for case in moving):
        return does_not_hold(measured, "With trainable=False they moved too.")
    if not moving:
        return does_not_hold(measured, "They never moved, with trainable=True either.")
    not_enough = [case for case, moved in moves.items() if "trainable=True" in case and not moved]
    note = "It is enough." if not not_enough else f"It is not enough: they stay with {' and with '.join(not_enough)}."
    if not others:
        return holds(measured, note)
    note += f" With trainable=False they still move in {', '.join(others)}."
    return holds_with_a_trap("other libraries move them with trainable=False as well", measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
def tables(result: dict) -> list[Table]:
    """Libraries by (training, trainable); and which variance they average, by rank."""
    flags, flag_colours, variances, variance_colours = [], {}, [], {}
    for row, (library, cells) in enumerate(result["cells"].items()):
        kinds = list(result["variance_by_rank"][library].values())
        statistics = [f"by {cell['normalizes_with']}, they {'move' if cell['moved'] else 'stay'}" for cell in cells]
        flags.append([library, *statistics])
        variances.append([library, *({"unbiased": "m/(m−1)·σ²", "biased": "σ²"}.get(kind, kind) for kind in kinds)])
        flag_colours |= {(row, place): "blue" for place, cell in enumerate(cells, 1) if cell["moved"]}
        # Asked to train, and normalized by the moving statistics all the same.
        asked = [cell["training"] and cell["normalizes_with"] != "batch" for cell in cells]
        flag_colours |= {(row, place): "orange" for place, each in enumerate(asked, 1) if each}
        variance_colours |= {(row, place): "blue" for place, kind in enumerate(kinds, 1) if kind == "unbiased"}
    caption = (
        "Which statistics normalize the document's image, the batch's or the moving ones, and whether these move. "
    )
    caption += "Blue: they move. Orange: by the moving ones although training=True; that is where the libraries part."
    header = ["library", *(f"training={training}, trainable={trainable}" for training, trainable in PAIRS)]
    by_rank = "The variance that is averaged, by the rank of the inputs. Blue: with Bessel's correction."
    ranks = ["library", *(f"rank {rank}" for rank in SHAPES)]
    return [Table(caption, header, flags, flag_colours), Table(by_rank, ranks, variances, variance_colours)]


def summarize(result: dict) -> str:
    width = max(map(len, result["cells"]))
    lines = [f"{'':<{width}}  training  trainable  first pixel [4, 5, 9, 0]    normalized by  moving statistics"]
    for library, cells in result["cells"].items():
        for cell in cells:
            flags = f"{cell['training']!s:<8}  {cell['trainable']!s:<9}"
            pixel = " ".join(f"{value:6.3f}" for value in cell["first_pixel"])
            moving = f"variance {cell['variance']}" if cell["moved"] else "stay"
            lines.append(f"{library:<{width}}  {flags}  {pixel:<27}  {cell['normalizes_with']:<13}  {moving}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
