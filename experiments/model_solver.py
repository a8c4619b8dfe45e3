"""The document's Model and Solver: ten epochs of MNIST with and without batch norm.

Document: solver, all of it. Claims solver-01, 02, 06, 07, 14. What single steps use and return is the page solver_steps.

    make model-solver

Two networks of 784-32-32-10 units, one with batch norm before each ReLU, are trained side by side in one session, on the
same batches, and are evaluated on all training and validation images after each epoch: the document's four figures, and
its table beside this run's. `bn_graph.Model` and `bn_graph.Solver` do it, with tf.layers' layers and their defaults in
the hidden layers, since those defaults are the document's settings.

Changed from the document: both networks start from the same weights (each epoch's difference is then due to batch norm
and not to the draw); the training set is evaluated in batches of 5,000 and not of 32, which changes nothing but the
time, as is measured here for solver-14; the ragged tail of an epoch is dropped, where the tutorial's reader carried its
24 images over into the next.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness, kept_work
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import column, data_name, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The document's; the rate is Adam's.
HIDDEN_UNITS, BATCH_SIZE, LEARNING_RATE, EPOCHS = [32, 32], 32, 0.01, 10
# 55,000 // 32, and 1,300 // 32 of the bundled digits.
EPOCH_STEPS, DIGITS_EPOCH_STEPS = 1718, 40
# Eleven runs for the training set where the document's 32 takes 1,719.
EVALUATION_BATCH = 5000
# Validation images on which the inputs of the second hidden layer are watched.
SHIFT_IMAGES = 1000
# "as the document has it": within one point of accuracy and a quarter of the loss; it gives one run of a noisy training.
CLOSE_ACCURACY, CLOSE_LOSS = 0.01, 0.25

NETWORKS = {"with": "batchnorm", "without": "no_norm"}
CURVES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")

# The document's own log: what it printed after each epoch.
DOCUMENT = {
    "train_loss": {
        "with": [0.18456, 0.10349, 0.11239, 0.07526, 0.07339, 0.08164, 0.05879, 0.05014, 0.04956, 0.04351],
        "without": [0.31917, 0.16142, 0.17737, 0.15240, 0.15641, 0.15969, 0.18191, 0.23831, 0.12616, 0.12277],
    },
    "train_accuracy": {
        "with": [0.9419, 0.9678, 0.9643, 0.9769, 0.9768, 0.9738, 0.9810, 0.9838, 0.9841, 0.9861],
        "without": [0.9101, 0.9534, 0.9479, 0.9565, 0.9553, 0.9567, 0.9492, 0.9359, 0.9648, 0.9654],
    },
    "validation_loss": {
        "with": [0.19054, 0.11720, 0.12829, 0.09549, 0.10588, 0.11476, 0.09402, 0.08446, 0.08479, 0.08275],
        "without": [0.31920, 0.18348, 0.20401, 0.20025, 0.19816, 0.22123, 0.25907, 0.28310, 0.18636, 0.19641],
    },
    "validation_accuracy": {
        "with": [0.9410, 0.9648, 0.9630, 0.9712, 0.9696, 0.9652, 0.9730, 0.9758, 0.9748, 0.9766],
        "without": [0.9100, 0.9496, 0.9434, 0.9516, 0.9486, 0.9510, 0.9450, 0.9346, 0.9544, 0.9574],
    },
}
# The digits that it prints.
PRINTED_TO = 5e-5
# Its last two outputs.
DOCUMENT_TEST = {"with": (0.089340471, 0.97370011), "without": (0.20733583, 0.95130014)}

# Ioffe & Szegedy, 2015 (arXiv:1502.03167).
PAPER_PLACE = ("§3.2", "immediately before the nonlinearity")
# Of the inputs of the inner layers.
PAPER_LAYERS = ("§1 and §2", "internal covariate shift")
# Santurkar et al., 2018 (arXiv:1805.11604), §2.1: with noise that makes the shift worse put in *after* batch norm, the
# network still trains about as well as with plain batch norm, so the shift is not what batch norm's gain comes from.
LATER_WORK = ("Santurkar et al. 2018, §2.1", "the shift is not the cause of batch norm's gain")

FULL = Mode(data="mnist", steps=EPOCHS * EPOCH_STEPS, seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
QUICK = Mode(data="digits", steps=EPOCHS * DIGITS_EPOCH_STEPS, seeds=[0])


def normalized_by_tf_layers(inputs, units, is_training, kernel_initializer):
    """The document's hidden layer, with the defaults of tf.layers. The dense layer's bias is redundant, and the document's."""
    layers = legacy_layers()
    net = layers.dense(inputs, units, kernel_initializer=kernel_initializer)
    return layers.batch_normalization(net, training=is_training)


def plain_by_tf_layers(inputs, units, is_training, kernel_initializer):
    """The same without batch norm."""
    del is_training
    return legacy_layers().dense(inputs, units, kernel_initializer=kernel_initializer)


def build_pair(session: tf.Session, split: bn_graph.datasets.Split, seed: int) -> dict[str, bn_graph.Solver]:
    """The two networks in one graph, from the same initial weights, each with its solver."""
    hidden_layers = {"with": normalized_by_tf_layers, "without": plain_by_tf_layers}
    sizes = (split.images.shape[1], split.labels.shape[1], HIDDEN_UNITS)
    options = {"learning_rate": LEARNING_RATE, "seed": seed}
    return {
        form: bn_graph.Solver(session, bn_graph.Model(name, *sizes, hidden_layer=hidden_layers[form], **options))
        for form, name in NETWORKS.items()
    }


@contextmanager
def trained_pair(settings: Settings, seed: int) -> Iterator[tuple[dict[str, bn_graph.Solver], dict]]:
    """Both networks after their training, begun or resumed, and by curve and form what was measured at each epoch.

    The work is kept as this page's, whichever page asks.
    """
    dataset = settings.dataset
    folder = kept_work.folder(settings._replace(name="model_solver"), seed, batch=BATCH_SIZE, rate=LEARNING_RATE)
    epoch = dataset.train.size // BATCH_SIZE
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        solvers = build_pair(session, dataset.train, seed)
        inputs_of_layer1 = {form: tensor(f"{name}/layer0/Relu") for form, name in NETWORKS.items()}

        def measure(finished: int) -> dict[str, np.ndarray]:
            if finished % epoch and finished != settings.steps:
                return {}
            return {
                f"{name} {form}": value
                for form, solver in solvers.items()
                for name, value in after_an_epoch(solver, dataset, inputs_of_layer1[form]).items()
            }

        options = {"batch_size": BATCH_SIZE, "seed": seed, "folder": folder, "label": f"seed {seed}"}
        options |= {"pause_after": lambda finished: finished % epoch == 0, "checkpoint_every": epoch}
        steps = [bn_graph.step_of(solver.model) for solver in solvers.values()]
        with kept_work.alone_in(folder):
            curves = kept_work.train_and_measure(settings, session, steps, dataset.train, measure, **options)
        names = (*CURVES, "layer1_mean", "layer1_deviation")
        yield solvers, {name: {form: curves[f"{name} {form}"].tolist() for form in NETWORKS} for name in names}


def after_an_epoch(solver: bn_graph.Solver, dataset: bn_graph.Dataset, inputs_of_layer1: tf.Tensor) -> dict:
    """Loss and accuracy, and where the second hidden layer's inputs are now."""
    measured = {}
    for part, split in (("train", dataset.train), ("validation", dataset.validation)):
        loss, accuracy = solver.evaluate(split.images, split.labels, EVALUATION_BATCH)
        measured |= {f"{part}_loss": round(loss, 5), f"{part}_accuracy": round(accuracy, 5)}
    # As in training, that is by the batch's own statistics: those are the inputs that the layer has to learn from.
    feed = {solver.model.x: dataset.validation.images[:SHIFT_IMAGES], solver.model.is_training: True}
    inputs = solver.session.run(inputs_of_layer1, feed)
    return measured | {"layer1_mean": inputs.mean(0).round(5), "layer1_deviation": inputs.std(0).round(5)}


def tensor(op_name: str) -> tf.Tensor:
    return tf.get_default_graph().get_tensor_by_name(f"{op_name}:0")


def run(settings: Settings) -> dict:
    dataset = settings.dataset
    runs = []
    for seed in settings.seeds:
        with trained_pair(settings, seed) as (solvers, curves):
            test = {form: solver.evaluate(dataset.test.images, dataset.test.labels) for form, solver in solvers.items()}
            runs.append({"seed": seed, "test": test, "shift": shift(curves)} | {name: curves[name] for name in CURVES})
            # One network is enough for what does not depend on the seed.
            if seed == settings.seeds[0]:
                evaluation = evaluate_in_batches(solvers["with"], dataset.train)
                sources = what_the_activations_get(tf.get_default_graph(), NETWORKS["with"])
    return {"runs": runs, "evaluation": evaluation, "what_the_activations_get": sources}


# --- solver-01: batch norm before the activation ----------------------------------------------------------------------
def what_the_activations_get(graph: tf.Graph, scope: str) -> list[str]:
    """The name of the op that each ReLU of the scope takes its input from."""
    relus = [op for op in graph.get_operations() if op.type == "Relu" and op.name.startswith(f"{scope}/")]
    return [relu.inputs[0].op.name for relu in relus]


def judge_solver_01(result: dict) -> Verdict:
    found = result["what_the_activations_get"]
    before = [name for name in found if "/batch_normalization/" in name]
    measured = f"{len(before)} of the {len(found)} ReLUs get what batch norm puts out ({', '.join(found)})."
    if len(before) < len(found):
        return does_not_hold(measured, "The others get something else.")
    section, place = PAPER_PLACE
    return holds(measured, f"Read of the graph. BN2015 {section} puts it {place}, z = g(BN(Wu)).")


# --- solver-02: covariate shift ---------------------------------------------------------------------------------------
def shift(curves: dict) -> dict[str, float]:
    """How far the means of the second hidden layer's inputs move from epoch to epoch, in their standard deviations."""
    shifts = {}
    for form in NETWORKS:
        means, deviations = np.array(curves["layer1_mean"][form]), np.array(curves["layer1_deviation"][form])
        moved = np.abs(np.diff(means, axis=0)).sum(1) / deviations[:-1].sum(1)
        shifts[form] = round(float(moved.mean()), 5) if len(moved) else 0.0
    return shifts


def judge_solver_02(result: dict) -> Verdict:
    shifts = {form: [each[form] for each in column(result, "shift")] for form in NETWORKS}
    measured = (
        f"The means of the second layer's inputs move {np.median(shifts['without']):.2f} standard deviations an epoch without "
        f"batch norm, and {np.median(shifts['with']):.2f} with it."
    )
    if max(shifts["without"]) == 0.0:
        return does_not_hold(measured, "The inputs of the layer did not shift.")
    section, term = PAPER_LAYERS
    trap = "the term for it is internal covariate shift"
    note = (
        f"Read of the paper: BN2015 {section} extends covariate shift, which is of a whole system's inputs, to its layers, and "
        f"calls that {term}. {LATER_WORK[1].capitalize()} ({LATER_WORK[0]})."
    )
    return holds_with_a_trap(trap, measured, note)


# --- solver-06: the document's test figures ---------------------------------------------------------------------------
def judge_solver_06(result: dict) -> Verdict:
    found = {form: np.array([test[form] for test in column(result, "test")]) for form in NETWORKS}
    measured = "; ".join(
        f"{form} batch norm the loss is {spread(values[:, 0])} and the accuracy {spread(values[:, 1])}"
        for form, values in found.items()
    )
    measured = f"{measured[0].upper()}{measured[1:]}."
    apart = {}
    for form, values in found.items():
        loss, accuracy = DOCUMENT_TEST[form]
        apart[form] = abs(np.median(values[:, 0]) / loss - 1), abs(np.median(values[:, 1]) - accuracy)
    inside = sum(
        is_between(values[:, place], DOCUMENT_TEST[form][place]) for form, values in found.items() for place in range(2)
    )
    note = (
        f"Of the document's 4 figures {inside} lie between the least and the most; the medians are {apart['with'][0]:.0%} of "
        f"the loss and {100 * apart['with'][1]:.1f} points from them with batch norm, {apart['without'][0]:.0%} and "
        f"{100 * apart['without'][1]:.1f} without ({result['data']})."
    )
    if all(loss <= CLOSE_LOSS and accuracy <= CLOSE_ACCURACY for loss, accuracy in apart.values()):
        return holds(measured, f"{note} {epochs_inside(result)}")
    better = (found["with"][:, 0] < found["without"][:, 0]) & (found["with"][:, 1] > found["without"][:, 1])
    return does_not_hold(measured, f"{note} With batch norm both are better in {better.sum()} of {len(better)} runs.")


def is_between(values: Sequence[float], printed: float) -> bool:
    """Whether a figure of the document, of float32 and in four digits, lies between the least and the most."""
    return min(values) - PRINTED_TO <= printed <= max(values) + PRINTED_TO


def epochs_inside(result: dict) -> str:
    """Where the document's table of epochs lies among the runs, in a sentence; empty without such a table."""
    if not all(name in each for each in result["runs"] for name in CURVES):
        return ""
    inside = np.array(
        [
            [is_between(values, printed) for values, printed in zip(runs, DOCUMENT[name][form], strict=True)]
            for name in CURVES
            for form in NETWORKS
            for runs in [np.transpose([each[name][form] for each in result["runs"]])]
        ]
    )
    return (
        f"Of its table of {inside.shape[1]} epochs {inside.sum()} of {inside.size} figures do, and of the first epoch "
        f"{inside[:, 0].sum()} of {len(inside)}."
    )


# --- solver-07: a lower loss at every epoch ---------------------------------------------------------------------------
def judge_solver_07(result: dict) -> Verdict:
    # How many times the loss with batch norm that without it is, at each epoch of each run.
    ratios = {
        part: [
            other / one
            for losses in column(result, f"{part}_loss")
            for one, other in zip(losses["with"], losses["without"], strict=True)
        ]
        for part in ("train", "validation")
    }
    lower = {part: [ratio > 1 for ratio in each] for part, each in ratios.items()}
    counts = " and ".join(f"at {sum(each)} of {len(each)} epochs on {part} data" for part, each in lower.items())
    measured = f"With batch norm the loss is lower {counts}."
    gaps = ratios["validation"]
    note = (
        f"Over {len(result['runs'])} seeds, both networks from the same weights on the same batches. "
        f"Without batch norm the validation loss is {min(gaps):.2f} to {max(gaps):.2f} times that with it."
    )
    return (holds if all(map(all, lower.values())) else does_not_hold)(measured, note)


# --- solver-14: evaluating in batches or at once ----------------------------------------------------------------------
def evaluate_in_batches(solver: bn_graph.Solver, split: bn_graph.datasets.Split) -> dict:
    """The training set at once, in the document's batches weighted by size, and in the same batches not weighted."""
    tail = split.size % BATCH_SIZE
    whole = split.size - tail
    found = {"examples": split.size, "last_batch": tail or BATCH_SIZE}
    for phase, is_training in (("inference", False), ("training", True)):

        def evaluate(rows: slice, *batch_size: int, is_training: bool = is_training) -> tuple[float, float]:
            return solver.evaluate(split.images[rows], split.labels[rows], *batch_size, is_training=is_training)

        at_once, weighted = evaluate(slice(None)), evaluate(slice(None), BATCH_SIZE)
        batches = [evaluate(slice(whole), BATCH_SIZE)] + [evaluate(slice(whole, None))] * bool(tail)
        # Each batch counted alike: the mean of the whole ones stands for all of them, and the tail for one.
        counts = np.array([whole // BATCH_SIZE] + [1] * bool(tail))[:, None]
        unweighted = (np.array(batches) * counts).sum(0) / counts.sum()
        found[phase] = {"at_once": at_once, "weighted": weighted, "unweighted": unweighted.tolist()}
    return found


def judge_solver_14(result: dict) -> Verdict:
    found = result["evaluation"]
    by_phase = {
        phase: [float(abs(a - b)) for a, b in zip(found[phase]["at_once"], found[phase]["weighted"], strict=True)]
        for phase in ("inference", "training")
    }
    (loss, accuracy), (training_loss, training_accuracy) = by_phase.values()
    equal = {phase: each[0] < 1e-5 and each[1] < 1e-6 for phase, each in by_phase.items()}
    unweighted = abs(found["inference"]["at_once"][0] - found["inference"]["unweighted"][0])
    measured = (
        f"{found['examples']:,} images in batches of {BATCH_SIZE}, the last of {found['last_batch']}, have a loss that differs "
        f"by {loss:.2g} from that at once and an accuracy that differs by {accuracy:.2g}; not weighted, the loss differs by "
        f"{unweighted:.2g}."
    )
    if not equal["inference"]:
        return does_not_hold(measured, "Even by moving statistics the two differ by more than float rounding.")
    if equal["training"]:
        return holds(measured, "It makes no difference, whatever is_training says.")
    note = (
        "The document evaluates with is_training False. By the batches' own statistics the loss differs by "
        f"{training_loss:.2g} and the accuracy by {training_accuracy:.2g}."
    )
    return holds_with_a_trap("with is_training True each batch size gives another loss", measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {
    "model_solver.png": "The document's four figures. Solid: this run, the median over the seeds, shaded from lowest "
    "to highest; dotted: the document's own numbers. See whether blue stays below orange in loss at every epoch. The "
    "axes are cut to where the curves are; the document's accuracy figures run from 0 to 1 and show two flat lines."
}


def draw(result: dict, folder: Path) -> None:
    """The document's four figures as panels: loss and accuracy after each epoch, training and validation."""
    with figure(folder / "model_solver.png", nrows=2, ncols=2, figsize=(11, 7.5), sharex=True) as (drawing, axes):
        for axis, name in zip(axes.T.flat, CURVES, strict=True):
            draw_panel(axis, result, name)
        axes[1, 0].set_xlabel("epoch")
        axes[1, 1].set_xlabel("epoch")
        drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        sizes = "784-32-32-10 ReLU, Adam 0.01, batch 32, on " if result["data"] == "mnist" else "On "
        drawing.suptitle(sizes + data_name(result))


def draw_panel(axis, result: dict, name: str) -> None:
    part, quantity = name.split("_")
    runs = result["runs"]
    epochs = range(1, len(runs[0][name]["with"]) + 1)
    for form, colour in (("with", BLUE), ("without", ORANGE)):
        values = np.array([run[name][form] for run in runs])
        axis.plot(epochs, np.median(values, 0), color=colour, marker="o", markersize=4, label=f"{form} batch norm")
        if len(runs) > 1:
            axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        # The document's numbers are MNIST's.
        if result["data"] == "mnist":
            dotted = {"color": colour, "linestyle": ":", "linewidth": 1.5, "label": f"the document's, {form}"}
            axis.plot(range(1, EPOCHS + 1), DOCUMENT[name][form], **dotted)
    axis.set_title(f"{part.replace('train', 'training')} {quantity}, {seeds(result)}")
    axis.set_ylabel("mean cross-entropy" if quantity == "loss" else "share right")
    axis.set_xticks(list(epochs))


def summarize(result: dict) -> str:
    lines = [
        "After each epoch: loss (accuracy), the median over the seeds, and the document's on MNIST in brackets",
        "",
    ]

    def cell(part: str, form: str, epoch: int) -> str:
        names = [f"{part}_{quantity}" for quantity in ("loss", "accuracy")]
        ours = [np.median([curves[form][epoch] for curves in column(result, name)]) for name in names]
        text = "{:.5f} ({:.2%})".format(*ours)
        if epoch < EPOCHS:
            text += " [{:.5f} ({:.2%})]".format(*(DOCUMENT[name][form][epoch] for name in names))
        return text

    for part in ("train", "validation"):
        lines.append(f"{part:<10}   {'with batch norm':<38}   without")
        for epoch in range(len(result["runs"][0]["train_loss"]["with"])):
            lines.append(f"  epoch {epoch + 1:>2}   {cell(part, 'with', epoch):<38}   {cell(part, 'without', epoch)}")
        lines.append("")
    for form in NETWORKS:
        values = np.array([test[form] for test in column(result, "test")])
        ours = f"loss {spread(values[:, 0])}, accuracy {spread(values[:, 1])}"
        lines.append(f"Test, {form + ':':<9} {ours}; the document's {'{:.4f}, {:.4f}'.format(*DOCUMENT_TEST[form])}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
