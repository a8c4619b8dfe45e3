"""Recurrent batch norm: an LSTM with statistics for each time step, beside shared ones, other gammas, and a plain LSTM.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", the edit of 02/08/16, which speaks of Cooijmans et al.
2016, "Recurrent Batch Normalization" (arXiv 1603.09025). Claim r2rt-25. The paper's section 5.1 is the task.

    make recurrent        or        python -m experiments.recurrent --mode full

Each image is a sequence: its rows; its pixels in order; its pixels in one random order. Three networks are trained on
each, with the paper's optimizer: an LSTM, and the BN-LSTM (`bn_graph.BatchNormLSTMCell`) with gamma 0.1 and 1; on the
pixels in order, which begin black, also the BN-LSTM from a state of zeros in place of the paper's noise. Then the
same trained weights are scored with other population statistics: those of each step, one set for all steps, and those
of the first k steps with the k-th used for all that follow. Last, what a first state of zeros does to the gradients.

Changed, for two cores and minutes: the paper has 784 pixels, up to 200 epochs and early stopping; here pixels are
averaged by 2×2 (196 steps), and training ends within an epoch, when the curves have parted. So the accuracies are far
from converged and can't be held against the paper's; what is compared is variants at equal steps. What a step at the
paper's length takes is measured too, and the summary tells what as many would. XLA can't compile the gradients of
`dynamic_rnn` (the lengths of its lists must be constants), so the loop is the bit-for-bit one.
"""

import itertools
import time
from functools import partial
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import hide_deprecation_notices, legacy_layers, tf
from experiments.machinery import harness, kept_work, lstm
from experiments.machinery.classifiers import losses
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.lstm import (
    BATCH_SIZE,
    EPSILON,
    UNITS,
    Cell,
    Network,
    as_sequences,
    bn_lstm,
    build_network,
    first_weights,
)
from experiments.machinery.results import data_name, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds

# The paper's, and what feed-forward layers start with.
GAMMA, LARGE_GAMMA = 0.1, 1.0
# Standard deviation in the first state; of the paper's published commands.
NOISE = 0.1
# The paper's code's; networks are trained with the library's, and the first steps are shown with both.
PAPER_EPSILON = 1e-5
# Batches before each score, by the weights as they are: of older weights' statistics 0.9^20 = 12 % is left.
SETTLE = 20
# Of the steps, for pixels, each of which takes seven times as long.
PIXEL_SHARE = 0.25
# Points of a curve; of the validation set, at each; of the test set; of that, for the many scores of other statistics.
MARKS, CURVE_IMAGES, TEST_IMAGES, SCORED_IMAGES = 5, 500, 2000, 1000
# Of the paper's length, after one that is not timed.
TIMED_STEPS = 3
# Of accuracy. One standard error of 1000 images at 0.9 is 0.009 (of the 360 digits 0.016), and less than 0.02 is not taken
# for a difference. A guess is right one time in ten.
FAULT, LEARNED = 0.02, 0.5
# Cooijmans et al. 2016, Table 1: 784 pixels, in order and permuted.
PAPER = {"pixels": {"LSTM": 98.9, "BN-LSTM": 99.0}, "permuted pixels": {"LSTM": 90.2, "BN-LSTM": 95.4}}


PLAIN, ZERO = "LSTM", "BN-LSTM, zero start"
SMALL, LARGE = (f"BN-LSTM, gamma {gamma:g}" for gamma in (GAMMA, LARGE_GAMMA))
VARIANTS = {PLAIN: Cell(None, 0.0), SMALL: Cell(GAMMA, NOISE), LARGE: Cell(LARGE_GAMMA, NOISE), ZERO: Cell(GAMMA, 0.0)}
PER_STEP, AVERAGED, POOLED = "per step", "shared, averaged", "shared, pooled"
STARTS = {0.0: "zero start", NOISE: "noisy start"}

# Steps are those of rows, for the time; the tasks' own are shares of them.
FULL = Mode(
    data="mnist", steps=400, seeds=[0, 1, 2], own={"rows": 1, "pixels": PIXEL_SHARE, "permuted pixels": PIXEL_SHARE}
)
# The task on which everything shows. The digits have 16 pixels.
QUICK = Mode(data="digits", steps=150, own={"pixels": 1})


def variants_of(task: str) -> list[str]:
    """The zero start is tried where it hurts most: where the images begin with black pixels."""
    return [variant for variant in VARIANTS if variant != ZERO or task == "pixels"]


def run(settings: Settings) -> dict:
    hide_deprecation_notices()
    legacy_layers()  # tf.nn.rnn_cell is part of legacy Keras too; without it this says so in one sentence
    tasks, runs = {task: int(settings.steps * share) for task, share in settings.own.items()}, []
    identity = lstm.SETTINGS | {"images": [MARKS, SETTLE, CURVE_IMAGES, TEST_IMAGES, SCORED_IMAGES]}
    for (task, steps), seed in itertools.product(tasks.items(), settings.seeds):
        for variant in variants_of(task):
            part = f"{task}-{variant}".replace(" ", "-").replace(",", "")
            identity |= {"cell": VARIANTS[variant], "steps": steps}
            measure = partial(measure_variant, settings, task, steps, variant, seed)
            runs.append(kept_work.measured_once(settings, seed, part, measure, **identity))
    measure = partial(time_at_the_papers_length, settings)
    length = kept_work.measured_once(settings, None, "all-pixels", measure, **lstm.SETTINGS)
    return {"runs": runs, "first_steps": first_steps(settings), "paper": PAPER, "tasks": tasks, "paper_length": length}


# --- r2rt-25: statistics of each step's own, against shared ones ------------------------------------------------------
def measure_variant(settings: Settings, task: str, steps: int, variant: str, seed: int) -> dict:
    """One training; accuracies on the way, at its end, and with other statistics."""
    cell, dataset = VARIANTS[variant], as_sequences(settings.dataset, task)
    shape = dataset.test.images.shape[1:]
    marks = {round(steps * (mark + 1) / MARKS) for mark in range(MARKS)}
    curve, last_losses = [], []
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        training = build_network(shape, cell, True, seed)
        with tf.variable_scope("", reuse=True):
            inference = build_network(shape, cell, False, seed)
        session.run(tf.global_variables_initializer())
        advance = loop_of(settings, session, training, training.train_op, dataset.train, seed)
        # A step that trains nothing: the moving statistics catch up with the weights, as the paper's are averaged over
        # the training set.
        settle = loop_of(settings, session, training, training.loss.op, dataset.train, seed + 1) if cell.gamma else None
        label = f"{task}, {variant}, seed {seed}"
        for finished, [[recorded]] in harness.advance_with_progress(advance, range(steps), label, marks.__contains__):
            last_losses.extend(recorded.tolist())
            if finished in marks:
                if settle is not None:
                    settle(0, SETTLE)
                validation = score(session, inference, dataset.validation, CURVE_IMAGES)
                curve.append({"step": finished, "loss": round(np.mean(last_losses), 5), "validation": validation})
                last_losses.clear()
        measured = {"task": task, "variant": variant, "seed": seed, "rows": shape[0], "curve": curve}
        measured["test"] = score(session, inference, dataset.test, TEST_IMAGES)
        other = {} if cell.gamma is None else scores_with_other_statistics(session, inference, dataset.test)
    return measured | {"statistics": other}


def loop_of(settings: Settings, session, network: Network, op: tf.Operation, split: bn_graph.Split, seed: int):
    """The function that runs `op` on batch after batch, and gives the losses."""
    step = bn_graph.Step(op, network.x, network.labels, recorded=[network.loss])
    return harness.LOOPS[settings.loop](session, step, split, batch_size=BATCH_SIZE, seed=seed)


def time_at_the_papers_length(settings: Settings) -> dict:
    """How long a training step of the BN-LSTM takes on every pixel of an image; the batches are of the first images."""
    split = bn_graph.Split(*(part[: 2 * BATCH_SIZE] for part in settings.dataset.train))
    split = split._replace(images=lstm.sequences(split.images, "all pixels"))
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        network = build_network(split.images.shape[1:], VARIANTS[SMALL], True, 0)
        session.run(tf.global_variables_initializer())
        advance = loop_of(settings, session, network, network.train_op, split, 0)
        advance(0, 1)
        started = time.monotonic()
        advance(1, 1 + TIMED_STEPS)
        seconds = (time.monotonic() - started) / TIMED_STEPS
    return {"pixels": len(split.images[0]), "seconds_a_step": round(seconds, 4)}


def score(session: tf.Session, network: Network, split: bn_graph.Split, images: int) -> float:
    """Accuracy of the first `images` of the split, or of all if it has fewer; a thousand at a time."""
    right, size = 0.0, min(images, split.size)
    for start in range(0, size, 1000):
        batch = slice(start, min(start + 1000, size))
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
    counts = sorted({rows for rows in (1, 2, 4, 8, 16, 64, steps * 3 // 4) if rows < steps})
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
            cell = bn_lstm(x.shape[1], True, weights, decay=0.0, epsilon=epsilon)
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
                row["variance_by_step"] = [float(f"{value:.4g}") for value in session.run(variance).mean(1)]
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
    small_gamma = {task: ahead(result, task, SMALL, LARGE) for task in tasks}
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
        f"BN-LSTM against LSTM at equal steps: {by_task(plain)}. From a zero state {constant} first steps have no variance, "
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
    "the trained BN-LSTMs with statistics of their own for the first steps only, the last reused for all that "
    "follow; dotted, with one average for all steps.",
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
                runs = runs_of(result, task, variant)
                steps = [point["step"] for point in runs[0]["curve"]]
                medians = np.median([[point["validation"] for point in run["curve"]] for run in runs], axis=0)
                upper.plot(steps, medians, label=variant, markersize=4, **LINES[variant])
                if variant in (SMALL, LARGE):
                    draw_by_rows(lower, runs, LINES[variant])
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
    length, steps = result["paper_length"], result["tasks"]["pixels"]
    trainings = len(result["seeds"]) * sum(len(variants_of(task)) for task in PAPER)
    hours = trainings * steps * length["seconds_a_step"] / 3600
    lines.append(
        f"  a step at {length['pixels']} pixels takes {length['seconds_a_step']:.2f} s: {steps:,} of each network and seed, in "
        f"order and permuted, {hours:.1f} h"
    )
    for row in result["first_steps"]:
        lines.append(f"  gradient, {STARTS[row['noise']]}, epsilon {row['epsilon']:g}: {row['gradient_norm']}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
