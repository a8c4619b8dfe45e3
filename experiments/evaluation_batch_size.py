"""Testing with phase True: loss and accuracy against the size, and the mixture, of the test batches.

Document: qa, *How to use BatchNormalization with tensorflow?*. Claims qa-15, 16.

    make test-batch-size        or        python -m experiments.evaluation_batch_size --mode full

The solver document's two networks (784-32-32-10, with and without batch norm) are trained as `model_solver` trains them.
Then the whole test set is evaluated with phase False, by population statistics, and with phase True, by each test
batch's own, in batches of 1, 2, 4, ... 10,000 images: once in mixed order, and once sorted by class, so that a batch
holds few classes. Nothing is updated while testing.

Changed from the document: it names no network, batch size or number of epochs, so the solver document's are taken; its
one comparison of the phases becomes one for each size of the test batch.
"""

from pathlib import Path

import numpy as np

import bn_graph
from experiments.machinery import harness
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if
from experiments.model_solver import DIGITS_EPOCH_STEPS, EPOCH_STEPS, EPOCHS, trained_pair

ORDERS = ("mixed", "sorted")
# Of the mixed order; the test files have their own order, in which the first half is easier.
ORDER_SEED = 0

FULL = Mode(data="mnist", steps=EPOCHS * EPOCH_STEPS, seeds=[0, 1, 2])
QUICK = Mode(data="digits", steps=EPOCHS * DIGITS_EPOCH_STEPS, seeds=[0])


def run(settings: harness.Settings) -> dict:
    test = settings.dataset.test
    sizes = _sizes(test.size)
    runs = []
    for seed in settings.seeds:
        with trained_pair(settings, seed) as (solvers, _):
            plain = solvers["without"].evaluate(test.images, test.labels)
            population = solvers["with"].evaluate(test.images, test.labels)
            by_batch = {order: _sweep(solvers["with"], _ordered(test, order), sizes) for order in ORDERS}
        runs.append({"seed": seed, "without": plain, "phase_false": population, "phase_true": by_batch})
    return {"sizes": sizes, "test_images": test.size, "runs": runs}


def _sizes(examples: int) -> list[int]:
    """1, 2, 4, ... and the whole test set."""
    sizes = [1]
    while 2 * sizes[-1] < examples:
        sizes.append(2 * sizes[-1])
    return [*sizes, examples]


def _ordered(split: bn_graph.datasets.Split, order: str) -> bn_graph.datasets.Split:
    mixed = np.random.default_rng(ORDER_SEED).permutation(split.size)
    chosen = mixed if order == "mixed" else mixed[np.argsort(split.labels[mixed].argmax(1), kind="stable")]
    return bn_graph.datasets.Split(split.images[chosen], split.labels[chosen])


def _sweep(solver: bn_graph.Solver, split: bn_graph.datasets.Split, sizes: list[int]) -> dict[str, list[float]]:
    """Loss and accuracy with phase True for each size; the last batch may be smaller, and each counts by its size."""
    found = [solver.evaluate(split.images, split.labels, size, is_training=True) for size in sizes]
    return {"loss": [round(loss, 5) for loss, _ in found], "accuracy": [round(share, 5) for _, share in found]}


def judge_qa_15(result: dict) -> Verdict:
    runs = result["runs"]
    lower = sum(run["phase_false"][0] < run["without"][0] for run in runs)
    higher = sum(run["phase_false"][1] > run["without"][1] for run in runs)
    measured = "; ".join(
        f"{form}: loss {spread([run[key][0] for run in runs])}, accuracy {spread([run[key][1] for run in runs])}"
        for form, key in (("with", "phase_false"), ("without", "without"))
    )
    note = (
        f"Phase False, {result['test_images']:,} test images: with batch norm the loss is lower in {lower} and the accuracy "
        f"higher in {higher} of {len(runs)} runs. One small network on one data set; more than this it does not show."
    )
    if lower == higher == len(runs):
        return holds(measured, note)
    if lower == len(runs) or higher == len(runs):
        return holds_if(f"only {'loss' if lower == len(runs) else 'accuracy'} counts", measured, note)
    return does_not_hold(measured, note)


def judge_qa_16(result: dict) -> Verdict:
    sizes, runs = result["sizes"], result["runs"]
    lower = {order: [_runs_with_lower_loss(result, order, place) for place in range(len(sizes))] for order in ORDERS}
    every = {
        order: [size for size, count in zip(sizes, lower[order], strict=True) if count == len(runs)] for order in ORDERS
    }
    losses = {
        size: np.median([run["phase_true"]["mixed"]["loss"][place] for run in runs]) for place, size in enumerate(sizes)
    }
    middle = 32 if 32 in losses else sizes[len(sizes) // 2]
    sorted_worst = max(np.median([run["phase_true"]["sorted"]["loss"] for run in runs], axis=0))
    measured = (
        f"phase False: loss {spread([run['phase_false'][0] for run in runs])}; phase True, median: {losses[1]:.2f} in "
        f"batches of 1, {losses[middle]:.4f} of {middle}, {losses[sizes[-1]]:.4f} of {sizes[-1]:,}; sorted by class up to "
        f"{sorted_worst:.2f}"
    )
    totals = {order: sum(lower[order]) for order in ORDERS}
    gain = max(run["phase_false"][0] - min(run["phase_true"]["mixed"]["loss"]) for run in runs)
    note = (
        f"Phase True has the lower loss in {totals['mixed']} of {len(sizes) * len(runs)} comparisons with mixed batches"
        f"{f', by {gain:.4f} at most' if gain > 0 else ''}, and in {totals['sorted']} with batches sorted by class."
    )
    if all(len(every[order]) == len(sizes) for order in ORDERS):
        return holds(measured, note)
    large = [size for place, size in enumerate(sizes) if set(sizes[place:]) <= set(every["mixed"])]
    if large:
        return holds_if(f"test batches are mixed and hold {large[0]:,} images or more", measured, note)
    return does_not_hold(measured, f"{note} At no size is it lower in all {len(runs)} runs from there on.")


def _runs_with_lower_loss(result: dict, order: str, place: int) -> int:
    return sum(run["phase_true"][order]["loss"][place] < run["phase_false"][0] for run in result["runs"])


FIGURES = {
    "evaluation_batch_size.png": "A trained network tested with phase True (orange), in batches of one image to the whole "
    "test set, and with phase False (blue), which no batch size changes. See that alone every image gets the same "
    "answer, that large mixed batches come level and hardly below, and what batches of few classes do."
}


def draw(result: dict, folder: Path) -> None:
    """Loss and accuracy against the size of the test batch, for both phases and both orders."""
    with figure(folder / "evaluation_batch_size.png", ncols=2, figsize=(11, 4.6)) as (drawing, axes):
        for axis, quantity, place in zip(axes, ("loss", "accuracy"), (0, 1), strict=True):
            _draw_quantity(axis, result, quantity, place)
        axes[0].set_yscale("log")
        axes[0].set_ylabel("mean cross-entropy on the test set")
        axes[1].set_ylabel("share right of the test set")
        axes[0].yaxis.set_major_formatter("{x:g}")
        handles, labels = axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=4)
        count = len(result["runs"])
        drawing.suptitle(
            f"{result['data'].replace('mnist', 'MNIST')}, {result['test_images']:,} test images, "
            f"{count} seed{'s' * (count > 1)} (lines: median, shaded: lowest to highest)"
        )


def _draw_quantity(axis, result: dict, quantity: str, place: int) -> None:
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
    lines = ["Phase False       " + _both([run["phase_false"] for run in runs])]
    lines += ["Without batch norm  " + _both([run["without"] for run in runs]), ""]
    lines.append("phase True: loss (accuracy), median    mixed                sorted by class")
    for place, size in enumerate(result["sizes"]):
        cells = []
        for order in ORDERS:
            loss = np.median([run["phase_true"][order]["loss"][place] for run in runs])
            accuracy = np.median([run["phase_true"][order]["accuracy"][place] for run in runs])
            cells.append(f"{loss:.4f} ({accuracy:.2%})")
        lines.append(f"  batches of {size:>6,}                   {cells[0]:<20} {cells[1]}")
    return "\n".join(lines)


def _both(values: list[list[float]]) -> str:
    return f"loss {spread([value[0] for value in values])}, accuracy {spread([value[1] for value in values])}"


if __name__ == "__main__":
    harness.run(__name__)
