"""Training batches of 1 to 64, mixed and of two classes: batch norm, and which remedy helps where.

Documents: Ioffe 2017, "Batch Renormalization", sections 4.2 and 4.3 (claims renorm-01, 02); Wu & Johnson 2021,
"Rethinking 'Batch' in BatchNorm", sections 3 and 4 (precise-01, 02).

    make small-batches        or        python -m experiments.small_batches --mode full

r2rt's network is trained on as many examples at every batch size, with every remedy: renormalization; ghost batches;
statistics that are computed anew after training (`bn_graph.recalibrate`); and no normalization at all
(`machinery/remedies.py` has the networks). A batch is drawn from all classes, or from two. Every network is scored by
inference statistics on the whole test set; batch norm also by the statistics of test batches as in its training.

Ghost batches are no remedy if only small batches fit into memory, and answer another question: what small statistics
cost when the gradient is that of a larger batch. All of them are cut from batches of 64, and are shown at their own
size; the page ghost_batches has them cut from large batches, where the paper says that they help.

Every remedy has a learning rate of its own at every batch size and for either kind of batch. Rates are those of the
*summed* loss, a rate per example: with those, the same rate means the same distance per example whatever the batch (the
linear scaling rule). They fall to 0 in a straight line, or else the last few batches would be what is compared. Averages
keep as many examples in memory at each size, and not as many steps.

Changed from the papers: their networks are convolutional and their data ImageNet and CIFAR; from r2rt: the weights start
as Glorot & Bengio have them for logistic units, since a network without normalization hardly learns from N(0, 1). In full
the loops are compiled; how that rounds is no matter to an accuracy.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import NullLocator

from experiments.machinery import harness, kept_work, remedies
from experiments.machinery.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.remedies import FORMS, LARGEST, RECALIBRATED, SAMPLINGS, Training
from experiments.machinery.results import data_name, listed, seeds, spread
from experiments.machinery.tables import Table
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

MIXED, TWO_CLASSES = SAMPLINGS
# What is trained; what is compared; and of that, what needs no larger batch than batch norm's.
BATCH_NORM, RENORM, GHOSTS, NONE = FORMS
REMEDIES, OTHER_WAYS = (BATCH_NORM, RECALIBRATED, RENORM, GHOSTS, NONE), (RECALIBRATED, RENORM, NONE)
# No seed that is measured chooses its own rate.
TUNING_SEED = 1000
# Accuracy, of whose standard error less than one is not seen (`not_seen`), and more than five is a fault: 0.01 on MNIST.
USUAL, FAULT = 0.95, 5
# "small" of the claims: Ioffe's microbatches have 4 examples, Wu & Johnson's 2 to 16.
SMALL = 8
# The paper's own: four examples normalized together (renorm-01), and 32 not drawn at random (renorm-02).
RENORM_SIZE, CLASSES_SIZE = 4, 32
# "Comes near what random batches give": of what batch norm loses, renorm loses half at most.
NEAR = 0.5

# Steps are those of batches of 64: 12,288 examples, which is as many steps in batches of one. The rates are those at the
# start, a factor of three apart around r2rt's 0.01.
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
FULL = Mode("mnist", 192, [0, 1, 2, 3, 4], {"sizes": (1, 2, 4, 8, 16, 32, LARGEST), "rates": RATES, "compiled": True})
QUICK = Mode("digits", 40, [0], {"sizes": (1, 4, 16, LARGEST), "rates": (0.01, 0.03), "compiled": False})


def run(settings: Settings) -> dict:
    identity = remedies.SETTINGS | {"seeds": settings.seeds} | settings.own
    every, cells = remedies.trainings(settings.own["sizes"]), []
    for place in harness.progress_bar("forms and sizes")(range(len(every))):
        part = "{}-{}".format(*every[place]).replace(" ", "_")
        measure = functools.partial(measure_cells, settings, every[place])
        cells += kept_work.measured_once(settings, None, part, measure, **identity)
    result = {**settings.own, "examples": settings.steps * LARGEST, "cells": cells}
    result["test_images"] = settings.dataset.test.size
    return result | {"advice": advice(result | {"seeds": settings.seeds})}


# --- The accuracies, each at a rate of its own ------------------------------------------------------------------------
def measure_cells(settings: Settings, training: Training) -> list[dict]:
    """For each kind of batch one remedy's accuracies, or two: the recalibrated statistics are batch norm's weights'."""
    dataset, rates = settings.dataset, settings.own["rates"]
    trainer = remedies.Trainer(settings, training, settings.steps * LARGEST // training.batch)
    scorer = remedies.Scorer(dataset, training)

    @functools.cache  # batch norm and its recalibration may choose the same rate
    def scores_of(sampling: str, rate: float, seed: int) -> dict[str, float]:
        trained = trainer.train(sampling, rate, seed)
        return scorer.score(trained, dataset.validation) if seed == TUNING_SEED else scorer.test(trained, sampling)

    cells = []
    with trainer.session, scorer.session, scorer.grouped_session:
        # A batch of one is of one class however it is drawn.
        for sampling in SAMPLINGS if training.batch > 1 else (MIXED,):
            for remedy in (BATCH_NORM, RECALIBRATED) if training.form == BATCH_NORM else (training.form,):
                statistics = RECALIBRATED if remedy == RECALIBRATED else "moving"
                tuning = [scores_of(sampling, rate, TUNING_SEED)[statistics] for rate in rates]
                rate = chosen_rate(rates, tuning, dataset.validation.size)
                scores = [scores_of(sampling, rate, seed) for seed in settings.seeds]
                cell = {"sampling": sampling, "remedy": remedy, "size": training.size, "rate": rate, "tuning": tuning}
                names = {"accuracy": statistics}
                if remedy == BATCH_NORM:
                    names |= {"as in training": "as in training", "unbiased": "unbiased", "same weights": RECALIBRATED}
                cells.append(cell | {what: [each[name] for each in scores] for what, name in names.items()})
    return cells + [cell | {"sampling": TWO_CLASSES} for cell in cells if training.batch == 1]


def chosen_rate(rates: Sequence[float], tuning: Sequence[float], images: int) -> float:
    """The lowest rate that is no more than one standard error of the validation accuracy behind the best."""
    # The best itself may be on the edge of diverging, and was lucky for one seed.
    least = max(tuning) - math.sqrt(USUAL * (1 - USUAL) / images)
    return min(rate for rate, accuracy in zip(rates, tuning, strict=True) if accuracy >= least)


# --- Reading the result -----------------------------------------------------------------------------------------------
def values(result: dict, sampling: str, remedy: str, size: int, what: str = "accuracy") -> np.ndarray:
    """One for each seed; NaN, which no comparison is true of, if the remedy does not exist at that size."""
    cells = {(cell["sampling"], cell["remedy"], cell["size"]): cell for cell in result["cells"]}
    return np.array(cells.get((sampling, remedy, size), {what: [math.nan]})[what])


def median(result: dict, sampling: str, remedy: str, size: int, what: str = "accuracy") -> float:
    return float(np.median(values(result, sampling, remedy, size, what)))


def gains(result: dict, sampling: str, remedy: str, size: int) -> np.ndarray:
    """Accuracy ahead of batch norm, seed by seed, in the batch that the remedy has: for ghosts all that they are cut from."""
    plain = values(result, sampling, BATCH_NORM, Training(remedy, size).batch)
    return values(result, sampling, remedy, size) - plain


def not_seen(result: dict) -> float:
    """The least difference in accuracy that counts: 0.002 for MNIST's 10,000 test images, 0.011 for the digits' 360."""
    return math.sqrt(USUAL * (1 - USUAL) / result["test_images"])


def is_seen(result: dict, differences: np.ndarray) -> bool:
    """Whether one thing is better than another: by more than `not_seen` in the median, and for every seed."""
    return np.median(differences) > not_seen(result) and differences.min() > 0


def by_size(ahead: Mapping[int, np.ndarray]) -> str:
    """The median at each size, and from the least to the most over the seeds."""
    return ", ".join(
        f"{np.median(each):+.4f} ({min(each):+.4f} to {max(each):+.4f}) at {n}" for n, each in ahead.items()
    )


def from_two(result: dict) -> list[int]:
    return [size for size in result["sizes"] if size > 1]


# --- The advice: what follows from the measurements, in a paragraph; every part of it depends on them -----------------
DOING = {BATCH_NORM: "keep batch norm", RECALIBRATED: "recalibrate"}
DOING |= {RENORM: "take renorm", NONE: "leave normalization out"}


def advice(result: dict) -> str:
    parts = [
        f"Test accuracies after {result['examples']:,} training examples, medians of {seeds(result)}; better is what is so "
        f"by {not_seen(result):.3f} or more, and for every seed."
    ]
    if 1 in result["sizes"]:
        accuracies = {remedy: median(result, MIXED, remedy, 1) for remedy in REMEDIES if remedy != GHOSTS}
        best = max(accuracies, key=accuracies.get)
        others = ", ".join(f"{remedy} {accuracy:.3f}" for remedy, accuracy in accuracies.items() if remedy != best)
        parts.append(f"Batches of one: {DOING[best]} ({accuracies[best]:.3f}; {others}).")
    sizes, large = from_two(result), result["sizes"][-1]
    for sampling, words in ((MIXED, "Mixed batches"), (TWO_CLASSES, "Batches of two classes")):
        # From which size on batch norm is as good as any remedy that the same batch allows.
        remedies_at = {size: helping(result, sampling, size, OTHER_WAYS) for size in sizes}
        start = next((size for size in sizes if not any(remedies_at[each] for each in sizes if each >= size)), None)
        enough = "at every size" if start == sizes[0] else f"from {start} examples on"
        enough += " plain batch norm needs no remedy"
        if start is None:
            enough = f"even at {large} a remedy is better than plain batch norm"
        parts.append(f"{words}: {enough} ({median(result, sampling, BATCH_NORM, large):.3f} at {large}).")
        # The best remedy at each size, and what is as good; and where no normalization is among them, what else helps.
        others = {size: helping(result, sampling, size, OTHER_WAYS[:-1]) for size in sizes if NONE in remedies_at[size]}
        titles = ("There is something better", "For a network that does not train without normalization")
        for title, found in zip(titles, (remedies_at, others), strict=True):
            helpful = [
                f"at {size} {' or '.join(DOING[remedy] for remedy in names)} "
                f"({median(result, sampling, BATCH_NORM, size):.3f} → {median(result, sampling, names[0], size):.3f})"
                for size, names in found.items()
                if names
            ]
            parts += [f"{title}: {'; '.join(helpful)}."] if helpful else []
    # What cutting a batch of 64 costs or gains.
    ghosts = {size: gains(result, MIXED, GHOSTS, size) for size in sizes if size < LARGEST}
    effects = []
    for word, sign in (("cost", -1), ("gain", 1)):
        if found := {size: np.median(sign * each) for size, each in ghosts.items() if is_seen(result, sign * each)}:
            effects.append(f"{word} up to {max(found.values()):.3f}, at {listed(found)}")
    effect = " and ".join(effects) or "cost nothing and gain nothing that is seen"
    whole = f"{median(result, MIXED, BATCH_NORM, LARGEST):.3f} whole"
    return " ".join([*parts, f"Ghosts cut from mixed batches of {LARGEST} ({whole}) {effect}."])


def helping(result: dict, sampling: str, size: int, among: Sequence[str]) -> list[str]:
    """The remedies that are better than batch norm, the best first, without those that another is clearly better than."""
    found = [remedy for remedy in among if is_seen(result, gains(result, sampling, remedy, size))]
    found.sort(key=lambda remedy: -np.median(gains(result, sampling, remedy, size)))
    accuracies = [values(result, sampling, remedy, size) for remedy in found]
    pairs = zip(found, accuracies, strict=True)
    return [remedy for remedy, each in pairs if not is_seen(result, accuracies[0] - each)]


# --- renorm-01: is renorm better in small batches? --------------------------------------------------------------------
def judge_renorm_01(result: dict) -> Verdict:
    ahead = {size: gains(result, MIXED, RENORM, size) for size in from_two(result) if size <= SMALL}
    smallest = next(iter(ahead))
    measured = f"In mixed batches renorm is ahead of batch norm by {by_size(ahead)} examples."
    of_one = {
        remedy: f"{median(result, MIXED, remedy, 1):.3f}" if 1 in result["sizes"] else "no measurement"
        for remedy in (RENORM, BATCH_NORM)
    }
    note = (
        f"In batches of {smallest}: renorm {spread(values(result, MIXED, RENORM, smallest))}, batch norm "
        f"{spread(values(result, MIXED, BATCH_NORM, smallest))}; at {LARGEST} batch norm has "
        f"{median(result, MIXED, BATCH_NORM, LARGEST):.4f}. Of one example renorm makes {of_one[RENORM]}, batch norm "
        f"{of_one[BATCH_NORM]}."
    )
    better = [size for size, differences in ahead.items() if is_seen(result, differences)]
    if len(better) == len(ahead):
        return holds(measured, note)
    if RENORM_SIZE in better:
        others = listed(size for size in ahead if size not in better)
        return holds_with_a_trap(f"not seen in batches of {others}", measured, note)
    return does_not_hold(measured, note)


# --- renorm-02: batches that are not drawn at random ------------------------------------------------------------------
def judge_renorm_02(result: dict) -> Verdict:
    sizes, most = from_two(result), FAULT * not_seen(result)

    def lost(remedy: str, size: int) -> float:
        return median(result, MIXED, remedy, size) - median(result, TWO_CLASSES, remedy, size)

    ahead = {size: gains(result, TWO_CLASSES, RENORM, size) for size in sizes}
    harmed = [size for size in sizes if lost(BATCH_NORM, size) > most]
    restored = [
        size for size in harmed if is_seen(result, ahead[size]) and lost(RENORM, size) <= NEAR * lost(BATCH_NORM, size)
    ]
    # The paper's batches have 32 examples, of 16 classes.
    own = min(sizes, key=lambda size: abs(size - CLASSES_SIZE))
    batch_norm, renorm = (
        f"{median(result, TWO_CLASSES, remedy, own):.4f} against {median(result, MIXED, remedy, own):.4f}"
        for remedy in (BATCH_NORM, RENORM)
    )
    measured = (
        f"In batches of {own} of two classes batch norm has {batch_norm} in mixed ones, and renorm {renorm}; a network "
        f"without normalization loses {lost(NONE, own):.4f} by them."
    )
    note = (
        f'"Badly" is read as {most:.3f} lost, "near" as half of it regained. By statistics of test batches of two classes '
        f"batch norm has {median(result, TWO_CLASSES, BATCH_NORM, own, 'as in training'):.4f}. Renorm gains {by_size(ahead)}."
    )
    if own not in restored:
        return does_not_hold(measured, note)
    behind = [size for size in harmed if size not in restored]
    if behind:
        trap = f"in batches of {listed(behind)} renorm leaves more than half of it lost"
        return holds_with_a_trap(trap, measured, note)
    return holds(measured, note)


# --- precise-01: are recalibrated statistics better than moving averages? ---------------------------------------------
def ahead_of(result: dict, sampling: str, what: str) -> dict[int, np.ndarray]:
    """By how much batch norm's weights predict better with recalibrated statistics, at each size."""
    cells = {size: (result, sampling, BATCH_NORM, size) for size in from_two(result)}
    return {size: values(*cell, "same weights") - values(*cell, what) for size, cell in cells.items()}


def judge_precise_01(result: dict) -> Verdict:
    ahead = {sampling: ahead_of(result, sampling, "accuracy") for sampling in SAMPLINGS}
    measured = "; ".join(
        f"in batches that are {sampling} by {by_size(each)} examples" for sampling, each in ahead.items()
    )
    measured = f"Recalibrated statistics are ahead of the moving averages {measured}."
    smallest = from_two(result)[0]
    note = (
        f"The averages' memory is 1/{1 / remedies.MEMORY:.0f} of the training's examples; where it is as long as the training, "
        f"it is otherwise (r2rt-15). In mixed batches of {smallest} the moving variance times m/(m−1) alone makes "
        f"{median(result, MIXED, BATCH_NORM, smallest, 'unbiased'):.4f} of {median(result, MIXED, BATCH_NORM, smallest):.4f}."
    )
    better = {
        sampling: [size for size, differences in each.items() if is_seen(result, differences)]
        for sampling, each in ahead.items()
    }
    if all(len(better[sampling]) == len(ahead[sampling]) for sampling in SAMPLINGS):
        return holds(measured, note)
    where = [f"{listed(sizes)} examples ({sampling})" for sampling, sizes in better.items() if sizes]
    return does_not_hold(measured, f"{note} Better it is with {' and '.join(where) or 'none'}.")


# --- precise-02: do a batch's own statistics and the population's drift apart in small batches? -----------------------
def judge_precise_02(result: dict) -> Verdict:
    ahead = ahead_of(result, MIXED, "as in training")
    sizes, apart = list(ahead), [abs(np.median(differences)) for differences in ahead.values()]
    measured = "Recalibrated statistics are ahead of the test batches' own, in mixed batches, "
    measured += f"by {by_size(ahead)} examples."
    note = (
        f"Test batches of the training's size. Of {sizes[0]}: "
        f"{median(result, MIXED, BATCH_NORM, sizes[0], 'as in training'):.4f} by own statistics, "
        f"{median(result, MIXED, BATCH_NORM, sizes[0], 'same weights'):.4f} recalibrated."
    )
    if apart[0] <= apart[-1] + not_seen(result):
        return does_not_hold(measured, note)
    if all(smaller >= larger - not_seen(result) for smaller, larger in itertools.pairwise(apart)):
        return holds(measured, note)
    return holds_with_a_trap("not from each size to the next", measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
LINES = {
    BATCH_NORM: (ORANGE, "o", "batch norm"),
    RECALIBRATED: (BLUE, "s", "batch norm, recalibrated"),
    RENORM: (GREEN, "^", "renorm"),
    GHOSTS: (PURPLE, "D", f"ghosts of batches of {LARGEST}"),
    NONE: (GREY, "x", "no normalization"),
}

FIGURES = {
    "small_batches.png": "The test error of each remedy against the number of examples that are normalized together, for "
    "batches of all classes and of two. Dotted: batch norm scored by the statistics of test batches of its training's "
    "size and kind, which is no way to predict, and shows how much of the error is the change of statistics."
}


def draw(result: dict, folder: Path) -> None:
    """Test error against the batch for each remedy, for either kind of batch."""
    with figure(folder / "small_batches.png", ncols=2, sharey=True, figsize=(12, 5.4)) as (drawing, axes):
        titles = ("Batches of all classes", "Batches of two classes")
        for axis, sampling, title in zip(axes, SAMPLINGS, titles, strict=True):
            draw_errors(axis, result, sampling)
            axis.set(title=title, xlabel="examples that are normalized together")
        axes[0].set_ylabel("test error, %")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        examples = f"{data_name(result)}, {result['examples']:,} training examples at every size"
        drawing.suptitle(f"{examples}, {seeds(result)}: medians, and from the least to the most", fontsize=10)


def draw_errors(axis, result: dict, sampling: str) -> None:
    curves = [(remedy, "accuracy", label, {"marker": marker}) for remedy, (_, marker, label) in LINES.items()]
    curves += [(BATCH_NORM, "as in training", "batch norm, by statistics of such test batches", {"linestyle": ":"})]
    for remedy, what, label, style in curves:
        color = LINES[remedy][0]
        sizes = [size for size in result["sizes"] if not np.isnan(median(result, sampling, remedy, size))]
        errors = np.array([[100 * (1 - each) for each in values(result, sampling, remedy, s, what)] for s in sizes])
        errors = np.maximum(errors, 0.01)  # none wrong can't be drawn on the axis
        axis.plot(sizes, np.median(errors, axis=1), markersize=5, color=color, label=label, **style)
        axis.fill_between(sizes, errors.min(1), errors.max(1), color=color, alpha=0.15, linewidth=0)
    axis.set(xscale="log", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
    axis.set_xticks(result["sizes"], result["sizes"])
    axis.xaxis.set_minor_locator(NullLocator())


def tables(result: dict) -> list[Table]:
    """The points of accuracy that each remedy gains on plain batch norm: a table for either kind of batch."""
    return [table_of_gains(result, *each) for each in ((MIXED, "all classes"), (TWO_CLASSES, "two classes"))]


def table_of_gains(result: dict, sampling: str, classes: str) -> Table:
    rows, colours = [], {}
    for row, remedy in enumerate(REMEDIES[1:]):
        rows.append([LINES[remedy][2]])
        for column, size in enumerate(result["sizes"], 1):
            differences = gains(result, sampling, remedy, size)
            if np.isnan(differences).any():
                rows[-1].append("–")
                continue
            best = " *" if remedy in helping(result, sampling, size, OTHER_WAYS) else ""
            rows[-1].append(f"{100 * np.median(differences):+.1f}{best}")
            if is_seen(result, differences) or is_seen(result, -differences):
                colours[row, column] = "blue" if np.median(differences) > 0 else "orange"
    caption = (
        f"Batches of {classes}: points of accuracy gained on plain batch norm of the same batch (ghosts: on {LARGEST} "
        "whole), by the number of examples that are normalized together. Blue is better, orange is worse, for every "
        "seed. A star marks the best and what is level with it."
    )
    return Table(caption, ["examples", *map(str, result["sizes"])], rows, colours)


def summarize(result: dict) -> str:
    lines = []
    for sampling in SAMPLINGS:
        lines += ["", f"{sampling + ': test accuracy':34}" + "".join(f"{size:>9}" for size in result["sizes"])]
        rows = {remedy: (remedy, "accuracy") for remedy in REMEDIES}
        rows |= {f"{BATCH_NORM}, {what}": (BATCH_NORM, what) for what in ("same weights", "unbiased", "as in training")}
        for label, (remedy, what) in rows.items():
            cells = [median(result, sampling, remedy, size, what) for size in result["sizes"]]
            lines.append(f"  {label:32}" + "".join(f"{cell:>9.4f}" for cell in cells))
    return "\n".join([*lines, "", result["advice"], ""])


if __name__ == "__main__":
    harness.run(__name__)
