"""Testing with phase True: loss and accuracy against the size, and the mixture, of the test batches.

Document: qa, *How to use BatchNormalization with tensorflow?*. Claims qa-15, 16.

    make test-batch-size        or        python -m experiments.evaluation_batch_size --mode full

The solver document's two networks (784-32-32-10, with and without batch norm) are trained as `model_solver` trains them.
Then the whole test set is evaluated with phase False, by the moving statistics, and with phase True, by each test
batch's own, in batches of 1, 2, 4, ... 10,000 images: once in mixed order, and once sorted by class, so that a batch
holds few classes. Nothing is updated while testing.

Changed from the document: it names no network, batch size or number of epochs, so the solver document's are taken; its
one comparison of the phases becomes one for each size of the test batch. Batches of up to 4 are evaluated in a compiled
loop (`bn_graph.graph_loop`), whose losses agree with those of single runs but for rounding.
"""

from pathlib import Path

import numpy as np

import bn_graph
from experiments.machinery import harness
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import data_name, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds
from experiments.model_solver import DIGITS_EPOCH_STEPS, EPOCH_STEPS, EPOCHS, trained_pair

ORDERS = ("mixed", "sorted")
# Of the mixed order; the test files have their own order, in which the first half is easier.
ORDER_SEED = 0
# A usual training batch, whose loss the measured text shows (qa-16).
MIDDLE_SIZE = 32
# Up to it batches are many, and a run of its own for each takes most of the time; the sizes divide the test sets.
LOOPED = 4
# In a result an evaluation is a pair.
LOSS, ACCURACY = 0, 1

# The solver document's ten epochs; the digits' are shorter.
FULL = Mode(data="mnist", steps=EPOCHS * EPOCH_STEPS, seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
QUICK = Mode(data="digits", steps=EPOCHS * DIGITS_EPOCH_STEPS)


def run(settings: Settings) -> dict:
    test = settings.dataset.test
    sizes = batch_sizes(test.size)
    runs = []
    # From the last seed to the first: model_solver, which may train the same networks beside it, begins with the first.
    for seed in reversed(settings.seeds):
        with trained_pair(settings, seed) as (solvers, _):
            # One trained network is evaluated in every way, so what differs is the phase and the batch alone.
            evaluated = {"without": solvers["without"].evaluate(test.images, test.labels)}
            evaluated["phase_false"] = with_phase_false(solvers["with"], test, test.size)
            evaluated["phase_true"] = evaluate_by_batch(solvers["with"], test, sizes)
        runs.append({"seed": seed} | evaluated)
    return {"sizes": sizes, "test_images": test.size, "runs": runs[::-1]}


def losses_and_accuracies(evaluations: list[list[float]]) -> str:
    """Of one network, over the seeds."""
    losses, accuracies = zip(*evaluations, strict=True)
    return f"loss {spread(losses)}, accuracy {spread(accuracies)}"


# --- qa-15: phase False, with batch norm and without ------------------------------------------------------------------
def judge_qa_15(result: dict) -> Verdict:
    runs = result["runs"]
    lower = sum(run["phase_false"][LOSS] < run["without"][LOSS] for run in runs)
    higher = sum(run["phase_false"][ACCURACY] > run["without"][ACCURACY] for run in runs)
    having, lacking = (losses_and_accuracies([run[key] for run in runs]) for key in ("phase_false", "without"))
    measured = f"With batch norm the test set has {having}; without, {lacking}."
    note = (
        f"Phase False, {result['test_images']:,} test images: with batch norm the loss is lower in {lower} and the accuracy "
        f"higher in {higher} of {len(runs)} runs. One small network on one data set; more than this it does not show."
    )
    return (holds if lower == higher == len(runs) else does_not_hold)(measured, note)


# --- qa-16: is the loss lower with phase True? ------------------------------------------------------------------------
def batch_sizes(examples: int) -> list[int]:
    """1, 2, 4, ... and the whole test set."""
    sizes = [1]
    while 2 * sizes[-1] < examples:
        sizes.append(2 * sizes[-1])
    return [*sizes, examples]


def in_order(split: bn_graph.Split, order: str) -> np.ndarray:
    """The numbers of the images in that order."""
    chosen = np.random.default_rng(ORDER_SEED).permutation(split.size)
    if order == "sorted":
        # A stable sort of the mixed images, so that nothing but the classes orders them.
        chosen = chosen[np.argsort(split.labels[chosen].argmax(1), kind="stable")]
    return chosen


def with_phase_true(solver: bn_graph.Solver, split: bn_graph.Split, size: int) -> tuple[float, float]:
    """Loss and accuracy in batches of that size; the last may be smaller, and each counts by its size."""
    return solver.evaluate(split.images, split.labels, size, is_training=True)


def with_phase_false(solver: bn_graph.Solver, split: bn_graph.Split, size: int) -> tuple[float, float]:
    """The same by the moving statistics: the size is a matter of memory alone."""
    return solver.evaluate(split.images, split.labels, size, is_training=False)


def evaluate_by_batch(solver: bn_graph.Solver, split: bn_graph.Split, sizes: list[int]) -> dict:
    """By order, loss and accuracy with phase True for each size."""
    found = {order: {"loss": [], "accuracy": []} for order in ORDERS}
    for size in sizes:
        evaluate = in_one_run if size <= LOOPED else in_single_runs
        for order, means in evaluate(solver, split, size).items():
            for name, mean in zip(("loss", "accuracy"), means, strict=True):
                found[order][name].append(round(mean, 5))
    return found


def in_single_runs(solver: bn_graph.Solver, split: bn_graph.Split, size: int) -> dict:
    orders = {order: in_order(split, order) for order in ORDERS}
    splits = {order: bn_graph.Split(split.images[rows], split.labels[rows]) for order, rows in orders.items()}
    return {order: with_phase_true(solver, each, size) for order, each in splits.items()}


def in_one_run(solver: bn_graph.Solver, split: bn_graph.Split, size: int) -> dict:
    """By a training loop whose step fetches the loss and assigns nothing."""
    model = solver.model
    fetched = [model.loss, model.accuracy]
    step = bn_graph.Step(model.loss.op, model.x, model.y_, {model.is_training: True}, fetched)
    advance = bn_graph.graph_loop(solver.session, step, split, batch_size=size, seed=0, compiled=True)
    batches = {order: in_order(split, order).reshape(-1, size) for order in ORDERS}
    return {
        order: [float(np.mean(values, dtype=np.float64)) for values in advance(0, len(rows), rows)[0]]
        for order, rows in batches.items()
    }


def median_by_size(result: dict, order: str, quantity: str) -> dict[int, float]:
    """With phase True, over the seeds."""
    medians = np.median([run["phase_true"][order][quantity] for run in result["runs"]], axis=0)
    return dict(zip(result["sizes"], medians, strict=True))


def judge_qa_16(result: dict) -> Verdict:
    sizes, runs = result["sizes"], result["runs"]

    def wins(order: str, quantity: str) -> np.ndarray:
        """For each size: in how many runs phase True does better."""
        sign, place = {"loss": (-1, LOSS), "accuracy": (1, ACCURACY)}[quantity]
        pairs = [(run["phase_true"][order][quantity], run["phase_false"][place]) for run in runs]
        return np.sum([np.greater(sign * np.array(by_batch), sign * other) for by_batch, other in pairs], axis=0)

    lower = {order: wins(order, "loss") for order in ORDERS}
    losses = median_by_size(result, "mixed", "loss")
    middle = MIDDLE_SIZE if MIDDLE_SIZE in losses else sizes[len(sizes) // 2]
    sorted_worst = max(median_by_size(result, "sorted", "loss").values())
    measured = (
        f"With phase False the loss is {spread([run['phase_false'][LOSS] for run in runs])}; with phase True its median is "
        f"{losses[1]:.2f} in batches of 1, {losses[middle]:.4f} of {middle}, {losses[sizes[-1]]:.4f} of {sizes[-1]:,}, and up "
        f"to {sorted_worst:.2f} in batches sorted by class."
    )
    compared = len(sizes) * len(runs)
    note = (
        f"Phase True has the lower loss in {sum(lower['mixed'])} of {compared} comparisons in mixed batches and in "
        f"{sum(lower['sorted'])} in sorted ones. Nor is it more accurate: it has more images right in "
        f"{sum(wins('mixed', 'accuracy'))} and {sum(wins('sorted', 'accuracy'))}."
    )
    if all(count == len(runs) for counts in lower.values() for count in counts):
        return holds(measured, note)
    large = [size for place, size in enumerate(sizes) if min(lower["mixed"][place:]) == len(runs)]
    if large:
        note += f" In every run the loss is lower in mixed batches of {large[0]:,} or more."
    return does_not_hold(measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {
    "evaluation_batch_size.png": "A trained network tested with phase True (orange), in batches of one image to the whole "
    "test set, and with phase False (blue), which no batch size changes. See that alone every image gets the same "
    "answer, that large mixed batches come level and hardly below, and what batches of few classes do."
}


def draw(result: dict, folder: Path) -> None:
    """Loss and accuracy against the size of the test batch, for both phases and both orders."""
    with figure(folder / "evaluation_batch_size.png", ncols=2, figsize=(11, 4.6)) as (drawing, axes):
        for axis, quantity, place in zip(axes, ("loss", "accuracy"), (LOSS, ACCURACY), strict=True):
            draw_quantity(axis, result, quantity, place)
        axes[0].set(yscale="log", ylabel="mean cross-entropy on the test set")
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[1].set_ylabel("share right of the test set")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        lines = "lines: median, shaded: lowest to highest"
        drawing.suptitle(f"{data_name(result)}, {result['test_images']:,} test images, {seeds(result)} ({lines})")


def draw_quantity(axis, result: dict, quantity: str, place: int) -> None:
    sizes, runs = result["sizes"], result["runs"]
    styles = {"mixed": ("-", "o", "phase True, mixed batches"), "sorted": ("--", "s", "phase True, sorted by class")}
    for order, (line, marker, label) in styles.items():
        values = np.array([run["phase_true"][order][quantity] for run in runs])
        axis.plot(sizes, np.median(values, 0), color=ORANGE, linestyle=line, marker=marker, markersize=4, label=label)
        axis.fill_between(sizes, values.min(0), values.max(0), color=ORANGE, alpha=0.15, linewidth=0)
    levels = (("phase_false", BLUE, "-", "phase False"), ("without", GREY, ":", "without batch norm"))
    for key, colour, line, label in levels:
        values = [run[key][place] for run in runs]
        axis.axhline(np.median(values), color=colour, linestyle=line, label=label)
        axis.axhspan(min(values), max(values), color=colour, alpha=0.15, linewidth=0)
    axis.set_xscale("log", base=2)
    ticks = [size for size in sizes if size in (1, 4, 16, 64, 256, 1024, 4096)]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xlabel("images in a test batch")


def summarize(result: dict) -> str:
    runs = result["runs"]
    lines = ["Phase False       " + losses_and_accuracies([run["phase_false"] for run in runs])]
    lines += ["Without batch norm  " + losses_and_accuracies([run["without"] for run in runs]), ""]
    lines.append("phase True: loss (accuracy), median    mixed                sorted by class")
    by_order = [[median_by_size(result, order, quantity) for quantity in ("loss", "accuracy")] for order in ORDERS]
    for size in result["sizes"]:
        mixed, by_class = (f"{losses[size]:.4f} ({accuracies[size]:.2%})" for losses, accuracies in by_order)
        lines.append(f"  batches of {size:>6,}                   {mixed:<20} {by_class}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
