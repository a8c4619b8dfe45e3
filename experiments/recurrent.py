"""Recurrent batch norm: an LSTM with statistics for each time step, beside shared ones, other gammas, and a plain LSTM.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", the edit of 02/08/16, which speaks of Cooijmans et al.
2016, "Recurrent Batch Normalization" (arXiv 1603.09025). Claim r2rt-25. The paper's section 5.1 is the task.

    make recurrent        or        python -m experiments.recurrent --mode full

Each image is a sequence: its 28 rows; its 784 pixels in order; its pixels in one random order. An LSTM and the BN-LSTM
(`bn_graph.BatchNormLSTMCell`) are trained on each, with the paper's optimizer and its gamma, 0.1; on rows and on pixels
in order also with gamma 1; and on the pixels in order, which begin black, also from a state of zeros in place of the
paper's noise, where the first gradients overflow. Then the trained weights are scored with other population statistics:
those of each step, one set for all steps, and those of the first k steps with the k-th used for all that follow. Last,
what a first state of zeros does to the gradients.

Changed, for two cores and minutes: the paper has up to 200 epochs and early stopping; here training ends within an
epoch, when the curves have parted (`APART` says what counts). So the accuracies are far from converged and can't be held
against the paper's; what is compared is variants at equal steps.

In full it takes 13 to 15 minutes on one core. Training reads the sequences by loops that XLA compiles, and the LSTM by
TensorFlow's kernel (`experiments.machinery.lstm`), in half the time of `dynamic_rnn`: 0.4 s a step of 784 pixels, where
the products alone take 0.3. The numbers are the same but for rounding, which doesn't matter to the claim: variants that
are trained alike are compared, by hundredths of accuracy. Scores are those of the cells in `dynamic_rnn`.
"""

import functools
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import hide_deprecation_notices, legacy_layers, tf
from experiments.machinery import harness, kept_work, lstm
from experiments.machinery.classifiers import first_rows, losses
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.lstm import BATCH_SIZE, EPSILON, UNITS, Cell, Network, as_sequences, first_weights
from experiments.machinery.results import data_name, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds

# The paper's, and what feed-forward layers start with.
GAMMA, LARGE_GAMMA = 0.1, 1.0
# Standard deviation in the first state; of the paper's published commands.
NOISE = 0.1
# The paper's code's; networks are trained with the library's, and the first steps are shown with both.
PAPER_EPSILON = 1e-5
# Batches before each score, by the weights as they are: of older weights' statistics 0.8^8 = 17 % is left.
SETTLE = 8
# Points of a curve; of the validation set, at each; of the test set; of that, for the many scores of other statistics.
MARKS, CURVE_IMAGES, TEST_IMAGES, SCORED_IMAGES = 5, 500, 1000, 500
# Time steps whose variance is shown: the first in which images differ is about the 70th.
SHOWN_STEPS = 100
# Of accuracy. One standard error of 1000 images at 0.9 is 0.009 (of the 500 scored with other statistics 0.013, of the 360
# digits 0.016), and less than 0.02 is not taken for a difference. A guess is right one time in ten.
FAULT, LEARNED = 0.02, 0.5
# Curves have parted when their medians are so far apart at two marks in a row.
APART = 0.1
# Cooijmans et al. 2016, Table 1: 784 pixels, in order and permuted.
PAPER = {"pixels": {"LSTM": 98.9, "BN-LSTM": 99.0}, "permuted pixels": {"LSTM": 90.2, "BN-LSTM": 95.4}}


PLAIN, ZERO = "LSTM", "BN-LSTM, zero start"
SMALL, LARGE = (f"BN-LSTM, gamma {gamma:g}" for gamma in (GAMMA, LARGE_GAMMA))
VARIANTS = {PLAIN: Cell(None, 0.0), SMALL: Cell(GAMMA, NOISE), LARGE: Cell(LARGE_GAMMA, NOISE), ZERO: Cell(GAMMA, 0.0)}
PER_STEP, AVERAGED, POOLED = "per step", "shared, averaged", "shared, pooled"
STARTS = {0.0: "zero start", NOISE: "noisy start"}

# Steps are those of rows; of pixels, where each takes thirty times as long, a share, with which the curves part.
FULL = Mode(data="mnist", steps=400, seeds=[0, 1, 2], own={"rows": 1, "pixels": 0.15, "permuted pixels": 0.25})
# The task on which everything shows, for as long as it takes to show.
QUICK = Mode(data="digits", steps=50, own={"pixels": 1})


def variants_of(task: str) -> list[str]:
    """The zero start is tried where it hurts most: where the images begin with black pixels; gamma 1 there and on rows."""
    left_out = {"rows": [ZERO], "permuted pixels": [ZERO, LARGE]}
    return [variant for variant in VARIANTS if variant not in left_out.get(task, [])]


def run(settings: Settings) -> dict:
    hide_deprecation_notices()
    legacy_layers()  # tf.nn.rnn_cell is part of legacy Keras too; without it this says so in one sentence
    tasks, runs = {task: int(settings.steps * share) for task, share in settings.own.items()}, []
    identity = lstm.SETTINGS | {"images": [MARKS, SETTLE, CURVE_IMAGES, TEST_IMAGES, SCORED_IMAGES]}
    for (task, steps), batch_norm in itertools.product(tasks.items(), (False, True)):
        with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
            # One graph for all variants and seeds, and none if all of them are kept from an earlier run.
            prepared = functools.cache(partial(prepare, settings, session, task, batch_norm))
            variants = [each for each in variants_of(task) if (VARIANTS[each].gamma is not None) == batch_norm]
            for variant, seed in itertools.product(variants, settings.seeds):
                part = f"{task}-{variant}".replace(" ", "-").replace(",", "")
                identity |= {"cell": VARIANTS[variant], "steps": steps}
                measure = partial(measure_variant, prepared, task, steps, variant, seed)
                runs.append(kept_work.measured_once(settings, seed, part, measure, **identity))
    return {"runs": runs, "first_steps": first_steps(settings), "paper": PAPER, "tasks": tasks}


# --- r2rt-25: statistics of each step's own, against shared ones ------------------------------------------------------
class Prepared(NamedTuple):
    """The networks of a task, and the functions that train a step on each of the given rows, or only let statistics move."""

    session: tf.Session
    dataset: bn_graph.Dataset
    training: Network
    inference: Network
    train: Callable
    settle: Callable


def prepare(settings: Settings, session: tf.Session, task: str, batch_norm: bool) -> Prepared:
    dataset = as_sequences(settings.dataset, task)
    training, inference = lstm.build_networks(dataset.test.images.shape[1:], batch_norm=batch_norm)
    # The loss alone trains nothing: the moving statistics catch up with the weights, as the paper's are averaged over the
    # training set.
    steps = [
        bn_graph.Step(op, training.x, training.labels, recorded=[training.loss])
        for op in (training.train_op, training.loss.op)
    ]
    make_loop = partial(harness.LOOPS[settings.loop], session, split=dataset.train, batch_size=BATCH_SIZE, seed=0)
    return Prepared(session, dataset, training, inference, *map(make_loop, steps))


def measure_variant(prepared: Callable[[], Prepared], task: str, steps: int, variant: str, seed: int) -> dict:
    """One training; accuracies on the way, at its end, and with other statistics."""
    session, dataset, training, inference, train, settle = prepared()
    lstm.initialize(session, training, VARIANTS[variant], seed)
    rows = first_rows(dataset.train.size, BATCH_SIZE, steps, seed)
    settling = first_rows(dataset.train.size, BATCH_SIZE, SETTLE, seed + 1)
    marks = {round(steps * (mark + 1) / MARKS) for mark in range(MARKS)}
    curve, last_losses = [], []
    label = f"{task}, {variant}, seed {seed}"
    for finished, [[recorded]] in harness.advance_with_progress(
        lambda start, stop: train(start, stop, rows[start:stop]), range(steps), label, marks.__contains__
    ):
        last_losses.extend(recorded.tolist())
        if finished in marks:
            if variant != PLAIN:
                settle(0, SETTLE, settling)
            validation = score(session, inference, dataset.validation, CURVE_IMAGES)
            loss = round(np.mean(last_losses), 5)
            curve.append({"step": finished, "loss": loss if np.isfinite(loss) else None, "validation": validation})
            if not np.isfinite(loss):
                break  # the gradients overflowed, and weights that are NaN stay so
            last_losses.clear()
    measured = {"task": task, "variant": variant, "seed": seed, "rows": training.x.shape[1], "curve": curve}
    measured["test"] = score(session, inference, dataset.test, TEST_IMAGES)
    other = scores_with_other_statistics(session, inference, dataset.test) if variant == SMALL else {}
    return measured | {"statistics": other}


def score(session: tf.Session, network: Network, split: bn_graph.Split, images: int) -> float:
    """Accuracy of the first `images` of the split, or of all if it has fewer; a few hundred at a time."""
    right, size = 0.0, min(images, split.size)
    for start in range(0, size, 500):
        batch = slice(start, min(start + 500, size))
        feed = {network.x: split.images[batch], network.labels: split.labels[batch]}
        right += float(session.run(network.accuracy, feed)) * (batch.stop - batch.start)
    return round(right / size, 5)


def shared(mean: np.ndarray, variance: np.ndarray, *, pooled: bool) -> tuple[np.ndarray, np.ndarray]:
    """One set of statistics for all steps: the averages of the steps', or with the variance between steps added."""
    between = mean.var(0) if pooled else 0.0
    return np.broadcast_to(mean.mean(0), mean.shape), np.broadcast_to(variance.mean(0) + between, variance.shape)


def first(steps: int, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first `steps` rows, and the last of them for all that follow."""
    rows = np.minimum(np.arange(len(mean)), steps - 1)
    return mean[rows], variance[rows]


def scores_with_other_statistics(session, inference: Network, test: bn_graph.Split) -> dict[str, float]:
    """Accuracy of the same weights by each kind of population statistics."""
    layers = [(layer.moving_mean, layer.moving_variance) for layer in bn_graph.batch_norm_layers().values()]
    trained = session.run(layers)
    steps = len(trained[0][0])
    kinds = {PER_STEP: partial(first, steps)}
    kinds |= {name: partial(shared, pooled=name == POOLED) for name in (AVERAGED, POOLED)}
    counts = sorted({rows for rows in (1, 8, 64, steps * 3 // 4) if rows < steps})
    kinds |= {f"first {rows}": partial(first, rows) for rows in counts}
    scores = {}
    for kind, replace in kinds.items():
        for variables, values in zip(layers, trained, strict=True):
            assign_values(session, zip(variables, replace(*values), strict=True))
        scores[kind] = score(session, inference, test, SCORED_IMAGES)
    return scores


# --- r2rt-25, the first steps: what a state of zeros does to the gradients --------------------------------------------
def first_steps(settings: Settings) -> list[dict]:
    """Gradients and the hidden term's variance at each step, of an untrained network, from a zero and a noisy state."""
    images, labels = (part[:BATCH_SIZE] for part in settings.dataset.train)
    x, seed = lstm.sequences(images, "pixels"), settings.seeds[0]
    weights = first_weights(x.shape[2], labels.shape[1], seed)
    rows = []
    for epsilon in (EPSILON, PAPER_EPSILON):
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            noise = tf.placeholder(tf.float32, [])
            # Decay 0, so that the moving statistics are this batch's.
            first = {f"{name}_initializer": tf.constant_initializer(weights[name]) for name in ("input", "recurrent")}
            cell = bn_graph.BatchNormLSTMCell(UNITS, True, x.shape[1], decay=0.0, epsilon=epsilon, **first)
            draws = np.random.RandomState(seed).normal(size=(len(x), UNITS)).astype(np.float32)
            state = cell.zero_state(len(x))._replace(h=noise * tf.constant(draws))
            hidden = tf.nn.dynamic_rnn(cell, tf.constant(x), initial_state=state)[1].h
            loss = tf.reduce_mean(losses(hidden @ tf.constant(weights["head"]), labels))
            gradient = tf.global_norm(tf.gradients(loss, tf.trainable_variables()))
            variance = bn_graph.batch_norm_layers()["rnn/bn_lstm_cell/bn_h"].moving_variance
            session.run(tf.global_variables_initializer())
            for stddev in (0.0, NOISE):
                norm = float(session.run(gradient, {noise: stddev}))
                row = {"epsilon": epsilon, "noise": stddev, "gradient_norm": norm if np.isfinite(norm) else None}
                row["variance_by_step"] = [
                    float(f"{value:.4g}") for value in session.run(variance)[:SHOWN_STEPS].mean(1)
                ]
                rows.append(row)
    return rows


def times_exploded(result: dict, epsilon: float) -> float:
    """How many times the gradient of the noisy start that of the zero start is; infinite if it overflowed."""
    norms = {row["noise"]: row["gradient_norm"] for row in result["first_steps"] if row["epsilon"] == epsilon}
    return float("inf") if norms[0.0] is None else norms[0.0] / norms[NOISE]


# --- r2rt-25: the verdict ---------------------------------------------------------------------------------------------
def runs_of(result: dict, task: str, variant: str) -> list[dict]:
    return [run for run in result["runs"] if (run["task"], run["variant"]) == (task, variant)]


def scores_of(result: dict, task: str, variant: str, kind: str | None = None) -> list[float]:
    """Test accuracies, one for each seed; by another kind of statistics on fewer images."""
    return [run["statistics"][kind] if kind else run["test"] for run in runs_of(result, task, variant)]


def lost_by_sharing(result: dict, task: str) -> np.ndarray:
    """Accuracy that shared statistics cost the same weights, the better of the two ways to share; one for each seed."""
    own = scores_of(result, task, SMALL, PER_STEP)
    return min((np.subtract(own, scores_of(result, task, SMALL, way)) for way in (AVERAGED, POOLED)), key=np.median)


def medians(result: dict, task: str, variant: str) -> np.ndarray:
    """Validation accuracy at each mark, the median of the seeds; up to where a training ended with weights that are NaN."""
    curves = [[point["validation"] for point in run["curve"]] for run in runs_of(result, task, variant)]
    return np.median(list(zip(*curves, strict=False)), axis=1)


def steps_of(result: dict, task: str) -> list[int]:
    """Of training, at the marks."""
    return [point["step"] for point in runs_of(result, task, PLAIN)[0]["curve"]]


def parted(result: dict, task: str) -> int | None:
    """The steps after which the BN-LSTM is ahead of the LSTM by `APART`, and still so at the next mark."""
    pairs = zip(medians(result, task, SMALL), medians(result, task, PLAIN), strict=False)
    far = np.array([normalized - plain > APART for normalized, plain in pairs])
    both = np.flatnonzero(far[:-1] & far[1:])
    return steps_of(result, task)[both[0]] if both.size else None


def parting_of(result: dict, task: str) -> str:
    step = parted(result, task)
    return f"nowhere on {task}" if step is None else f"from step {step} on {task}"


def ahead(result: dict, task: str, variant: str, other: str) -> np.ndarray:
    return np.subtract(scores_of(result, task, variant), scores_of(result, task, other))


def with_spread(values: np.ndarray) -> str:
    extent = f" ({values.min():+.3f} to {values.max():+.3f})" if len(values) > 1 else ""
    return f"{np.median(values):+.3f}{extent}"


def judge_r2rt_25(result: dict) -> Verdict:
    def by_task(values: dict[str, np.ndarray]) -> str:
        return ", ".join(f"{with_spread(each)} on {task}" for task, each in values.items())

    tasks = list(result["tasks"])
    lost = {task: lost_by_sharing(result, task) for task in tasks}
    small_gamma = {task: ahead(result, task, SMALL, LARGE) for task in tasks if LARGE in variants_of(task)}
    plain = {task: ahead(result, task, SMALL, PLAIN) for task in tasks}
    zero_start = ahead(result, "pixels", SMALL, ZERO)
    measured = (
        f"Sharing statistics between the steps costs {by_task(lost)} of accuracy; a gamma of {GAMMA:g} in place of "
        f"{LARGE_GAMMA:g} brings {by_task(small_gamma)}, and a noisy first state in place of zero "
        f"{with_spread(zero_start)} on pixels."
    )
    # The tasks that the BN-LSTM gets right more often than not: the others tell nothing. All, if there is none.
    learned = [task for task in tasks if np.median(scores_of(result, task, SMALL, PER_STEP)) > LEARNED]
    needed = max(np.median(lost[task]) for task in learned or tasks) > FAULT
    also = ["a noisy first state"] * bool(np.median(zero_start) > FAULT)
    also += ["a small gamma"] * bool(max(map(np.median, small_gamma.values())) > FAULT)
    # Of the zero start, which comes first; a variance of 1e-12 is what rounding leaves of none.
    constant = sum(value < 1e-12 for value in result["first_steps"][0]["variance_by_step"])
    note = (
        f"BN-LSTM against LSTM at equal steps: {by_task(plain)}; ahead by {APART:g} at two marks in a row "
        f"{', '.join(parting_of(result, task) for task in tasks)}. From a zero state {constant} first steps have no variance, "
        f"and the first gradient is {times_exploded(result, EPSILON):.3g} times that of a noisy start."
    )
    if not needed:
        return does_not_hold(measured, f"One set of statistics serves all steps as well. {note}")
    if also:
        return does_not_hold(
            measured, f"Needed it is, but not alone: so {'are' if len(also) > 1 else 'is'} {' and '.join(also)}. {note}"
        )
    return holds(measured, note)


# --- The figures ------------------------------------------------------------------------------------------------------
LINES = {PLAIN: {"color": GREY, "marker": "^"}, SMALL: {"color": BLUE, "marker": "o"}}
LINES |= {LARGE: {"color": ORANGE, "marker": "s"}, ZERO: {"color": BLUE, "marker": "x", "linestyle": "--"}}

FIGURES = {
    "recurrent.png": "Above, validation accuracy of an LSTM and of the BN-LSTM with two first values of gamma. Below, "
    "the trained BN-LSTM of the small gamma with statistics of their own for the first steps only, the last reused for all "
    "that follow; dotted, with one average for all steps. A curve ends where the weights are no longer numbers: the zero "
    "start's at its first point.",
    "recurrent_first_steps.png": "Left, from a zero state the hidden term has no variance over the batch until the "
    "images differ. Right, each such step multiplies the gradients by gamma/√epsilon; noise in the first state ends it.",
}


def draw(result: dict, folder: Path) -> None:
    """The curves and what other statistics give; and the first steps."""
    draw_first_steps(result, folder / "recurrent_first_steps.png")
    tasks = list(result["tasks"])
    options = {"nrows": 2, "ncols": len(tasks), "figsize": (max(6, 4 * len(tasks)), 7), "squeeze": False}
    with figure(folder / "recurrent.png", **options) as (drawing, axes):
        for task, upper, lower in zip(tasks, *axes, strict=True):
            for variant in variants_of(task):
                curve = medians(result, task, variant)
                upper.plot(steps_of(result, task)[: len(curve)], curve, label=variant, markersize=4, **LINES[variant])
            draw_by_rows(lower, runs_of(result, task, SMALL), LINES[SMALL])
            upper.set(title=task, xlabel="training steps", ylim=(0, 1))
            lower.set(xscale="log", xlabel="steps with statistics of their own", ylim=(0, 1))
        axes[0][0].set_ylabel("validation accuracy")
        axes[1][0].set_ylabel("test accuracy, same weights")
        axes[0][tasks.index("pixels")].plot([], [], color=GREY, linestyle=":", label="one average for all steps")
        handles = axes[0][tasks.index("pixels")].get_legend_handles_labels()
        drawing.legend(*handles, loc="outside lower center", ncols=5 if len(tasks) > 1 else 2)
        drawing.suptitle(f"{data_name(result)}, {seeds(result)}, medians", fontsize=10)


def draw_by_rows(axis, runs: list[dict], style: dict) -> None:
    """Accuracy against the number of rows, the last reused; dotted, with one average for all."""
    medians = {kind: np.median([run["statistics"][kind] for run in runs]) for kind in runs[0]["statistics"]}
    scores = {int(kind.split()[1]): value for kind, value in medians.items() if kind.startswith("first")}
    scores[runs[0]["rows"]] = medians[PER_STEP]
    axis.plot(list(scores), list(scores.values()), markersize=4, **style)
    axis.axhline(medians[AVERAGED], color=style["color"], linestyle=":")


def draw_first_steps(result: dict, path: Path) -> None:
    with figure(path, ncols=2, figsize=(10, 4.3)) as (drawing, (left, right)):
        rows = [row for row in result["first_steps"] if row["epsilon"] == PAPER_EPSILON]
        for row, color in zip(rows, (ORANGE, BLUE), strict=True):
            values = np.maximum(row["variance_by_step"], 1e-14)
            left.plot(np.arange(1, len(values) + 1), values, color=color, label=STARTS[row["noise"]])
        left.axhline(PAPER_EPSILON, color=GREY, linestyle=":")
        left.annotate("epsilon", (1, PAPER_EPSILON), xytext=(0, 3), textcoords="offset points", color=GREY)
        left.set(yscale="log", xlabel="time step", ylabel="variance over the batch", title="Hidden term, mean of units")
        drawing.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        labels = [f"{STARTS[row['noise']]}\nepsilon {row['epsilon']:g}" for row in result["first_steps"]]
        # float32's largest, where it overflowed.
        norms = [3e38 if row["gradient_norm"] is None else row["gradient_norm"] for row in result["first_steps"]]
        right.bar(labels, norms, color=[ORANGE if row["noise"] == 0.0 else BLUE for row in result["first_steps"]])
        right.tick_params(axis="x", labelsize=8)
        right.set(yscale="log", ylabel="norm of all gradients, untrained (3e38: overflow)", axisbelow=True)
        right.set_title("What it does to the gradients")


def summarize(result: dict) -> str:
    lines = []
    for task, steps in result["tasks"].items():
        lines.append(f"{task}, {steps:,} steps: test accuracy")
        for variant in variants_of(task):
            lines.append(f"  {variant:22}{spread(scores_of(result, task, variant))}")
        for kind in (PER_STEP, AVERAGED, POOLED):
            lines.append(f"    {SMALL} with statistics {kind:18}{spread(scores_of(result, task, SMALL, kind))}")
        if paper := result["paper"].get(task):
            lines.append(f"  the paper, 784 pixels, converged: {', '.join(f'{k} {v}' for k, v in paper.items())}")
    for row in result["first_steps"]:
        lines.append(
            f"  gradient, {STARTS[row['noise']]}, epsilon {row['epsilon']:g}: {row['gradient_norm'] or 'overflows'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
