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
averaged by 2×2 (196 steps), and training ends after two epochs (rows) or half of one (pixels). So the accuracies are far
from converged and can't be held against the paper's; what is compared is variants at equal steps.
"""

import itertools
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.layers.recurrent import BatchNormLSTMCell
from bn_graph.tf1 import hide_deprecation_notices, legacy_layers, tf
from experiments.machinery import harness, kept_work
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# The paper's.
UNITS = 100
# The paper's code's.
BATCH_SIZE = 100
# The paper's: RMSProp, clipped at 1.
LEARNING_RATE, MOMENTUM, CLIP = 1e-3, 0.9, 1.0
# The paper's code's.
RMS_DECAY = 0.9
# The paper's, and what feed-forward layers start with.
GAMMA, LARGE_GAMMA = 0.1, 1.0
# Standard deviation in the first state; of the paper's published commands.
NOISE = 0.1
# The library's, wherever a network is trained.
EPSILON = 1e-3
# The paper's code's; the first steps are shown with both.
PAPER_EPSILON = 1e-5
# The memory is ten batches, or 1000 sequences.
DECAY = 0.9
# Batches that the statistics see before each score, weights frozen: 0.9^20 = 12 % is left of older weights'.
SETTLE = 20
# Of rows; about two epochs, for the time.
STEPS = 1000
# Of these steps for pixels, each of which takes seven times as long.
PIXEL_SHARE = 0.25
# Of pixels, of which the digits have 16.
QUICK_STEPS = 150
# Points of a curve.
MARKS = 8
# Of the validation set, at each mark.
CURVE_IMAGES = 500
# Of the test set, for the many scores of other statistics.
SCORED_IMAGES = 1000
EVALUATION_BATCH = 1000
PERMUTATION_SEED = 1

# One standard error of 1000 images at 0.9 is 0.009 (of the 360 digits 0.016). Less than this is not taken for a difference.
FAULT = 0.02
# Accuracy; a guess is right one time in ten.
LEARNED = 0.5

# Cooijmans et al. 2016, Table 1: 784 pixels, in order and permuted.
PAPER = {"pixels": {"LSTM": 98.9, "BN-LSTM": 99.0}, "permuted pixels": {"LSTM": 90.2, "BN-LSTM": 95.4}}

PLAIN = "LSTM"
SMALL = f"BN-LSTM, gamma {GAMMA:g}"
LARGE = f"BN-LSTM, gamma {LARGE_GAMMA:g}"
ZERO = "BN-LSTM, zero start"

FULL = Mode(data="mnist", steps=STEPS, seeds=[0])
QUICK = Mode(data="digits", steps=QUICK_STEPS, seeds=[0])


class Cell(NamedTuple):
    """`gamma` is None for an LSTM without batch norm; `noise` is the standard deviation in the first state."""

    gamma: float | None
    noise: float


VARIANTS = {PLAIN: Cell(None, 0.0), SMALL: Cell(GAMMA, NOISE), LARGE: Cell(LARGE_GAMMA, NOISE), ZERO: Cell(GAMMA, 0.0)}

PER_STEP = "per step"
AVERAGED = "shared, averaged"
POOLED = "shared, pooled"


class _Network(NamedTuple):
    x: tf.Tensor
    labels: tf.Tensor
    loss: tf.Tensor
    accuracy: tf.Tensor
    train_op: tf.Operation | None


def sequences(images: np.ndarray, task: str) -> np.ndarray:
    """Flat square images as ``[n, steps, inputs]``: rows, or pixels averaged by 2×2, in order or permuted."""
    side = int(np.sqrt(images.shape[1]))
    if task == "rows":
        return images.reshape(-1, side, side)
    half = side // 2
    pixels = images.reshape(-1, half, 2, half, 2).mean((2, 4)).reshape(-1, half * half, 1)
    if task == "permuted pixels":
        pixels = pixels[:, np.random.RandomState(PERMUTATION_SEED).permutation(half * half)]
    return pixels


def tasks_of(settings: harness.Settings) -> dict[str, int]:
    """The tasks and their numbers of training steps. Quick has the one on which everything shows."""
    if settings.mode == "quick":
        return {"pixels": settings.steps}
    pixels = int(settings.steps * PIXEL_SHARE)
    return {"rows": settings.steps, "pixels": pixels, "permuted pixels": pixels}


def variants_of(task: str) -> list[str]:
    """The zero start is tried where it hurts most: where the images begin with black pixels."""
    return [variant for variant in VARIANTS if variant != ZERO or task == "pixels"]


def run(settings: harness.Settings) -> dict:
    hide_deprecation_notices()
    legacy_layers()  # tf.nn.rnn_cell is part of legacy Keras too; without it this says so in one sentence
    runs = [
        _trained_once(settings, task, steps, variant, seed)
        for task, steps in tasks_of(settings).items()
        for seed in settings.seeds
        for variant in variants_of(task)
    ]
    return {"runs": runs, "first_steps": _first_steps(settings), "paper": PAPER, "tasks": tasks_of(settings)}


def _trained_once(settings: harness.Settings, task: str, steps: int, variant: str, seed: int) -> dict:
    """The measurements of one training, from an earlier run that was stopped after it if there was one."""
    return kept_work.measured_once(
        settings,
        seed,
        f"{task}-{variant}".replace(" ", "-").replace(",", ""),
        partial(_trained, settings, task, steps, variant, seed),
        units=UNITS,
        batch=BATCH_SIZE,
        optimizer=[LEARNING_RATE, MOMENTUM, CLIP, RMS_DECAY],
        cell=[*VARIANTS[variant], EPSILON, DECAY],
        images=[MARKS, SETTLE, CURVE_IMAGES, SCORED_IMAGES],
        steps=steps,
    )


# --- The networks -----------------------------------------------------------------------------------------------------


def _orthogonal(rows: int, columns: int, generator: np.random.RandomState) -> np.ndarray:
    u, _, v = np.linalg.svd(generator.normal(size=(rows, columns)), full_matrices=False)
    return (u if u.shape == (rows, columns) else v).astype(np.float32)


def _first_weights(inputs: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    """As the paper's code: orthogonal; hidden to candidate the identity. Gates in the cell's order f, i, o, g."""
    generator = np.random.RandomState(seed)
    gates = _orthogonal(UNITS, 3 * UNITS, generator)
    return {
        "input": _orthogonal(inputs, 4 * UNITS, generator),
        "recurrent": np.concatenate([gates, np.eye(UNITS, dtype=np.float32)], axis=1),
        "head": _orthogonal(UNITS, classes, generator),
    }


def _last_hidden(x: tf.Tensor, variant: Cell, training: bool, weights: dict[str, np.ndarray], seed: int):
    if variant.gamma is None:
        forget, write, read, candidate = np.split(np.concatenate([weights["input"], weights["recurrent"]]), 4, axis=1)
        kernel = np.concatenate([write, candidate, forget, read], axis=1)  # tf's order
        cell = tf.nn.rnn_cell.LSTMCell(UNITS, initializer=tf.constant_initializer(kernel))  # its forget bias is 1 too
        return tf.nn.dynamic_rnn(cell, x, dtype=tf.float32)[1].h
    cell = BatchNormLSTMCell(
        UNITS,
        training,
        max_steps=x.shape.as_list()[1],
        gamma=variant.gamma,
        decay=DECAY,
        epsilon=EPSILON,
        input_initializer=tf.constant_initializer(weights["input"]),
        recurrent_initializer=tf.constant_initializer(weights["recurrent"]),
    )
    state = cell.noisy_state(tf.shape(x)[0], is_training=training, stddev=variant.noise, seed=seed)
    return tf.nn.dynamic_rnn(cell, x, initial_state=state)[1].h


def _network(shape: tuple[int, int], variant: Cell, training: bool, seed: int, classes: int = 10) -> _Network:
    x = tf.placeholder(tf.float32, [None, *shape])
    labels = tf.placeholder(tf.float32, [None, classes])
    weights = _first_weights(shape[1], classes, seed)
    hidden = _last_hidden(x, variant, training, weights, seed)
    head = tf.get_variable("head", [UNITS, classes], initializer=tf.constant_initializer(weights["head"]))
    logits = hidden @ head + tf.get_variable("head_bias", [classes], initializer=tf.zeros_initializer())
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits))
    right = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
    train_op = None
    if training:
        optimizer = tf.train.RMSPropOptimizer(LEARNING_RATE, RMS_DECAY, MOMENTUM)
        gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
        clipped, _ = tf.clip_by_global_norm(gradients, CLIP)
        train_op = optimizer.apply_gradients(zip(clipped, variables, strict=True))
    return _Network(x, labels, loss, tf.reduce_mean(tf.cast(right, tf.float32)), train_op)


# --- Training, and scores with other statistics -----------------------------------------------------------------------


def _trained(settings: harness.Settings, task: str, steps: int, variant: str, seed: int) -> dict:
    dataset, cell = settings.dataset, VARIANTS[variant]
    shape = sequences(dataset.test.images[:1], task).shape[1:]
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        training = _network(shape, cell, True, seed)
        with tf.variable_scope("", reuse=True):
            inference = _network(shape, cell, False, seed)
        session.run(tf.global_variables_initializer())
        curve = _train(session, settings, task, steps, (training, inference), (variant, seed))
        measured = {
            "task": task,
            "variant": variant,
            "seed": seed,
            "rows": shape[0],
            "curve": curve,
            "test": _score(session, inference, dataset.test, task),
            "statistics": {}
            if cell.gamma is None
            else _scores_with_other_statistics(session, inference, dataset, task),
        }
    return measured


def _train(
    session: tf.Session,
    settings: harness.Settings,
    task: str,
    steps: int,
    networks: tuple[_Network, _Network],
    which: tuple[str, int],
) -> list[dict]:
    (training, inference), (variant, seed) = networks, which
    batches = bn_graph.batches(settings.dataset.train, BATCH_SIZE, seed=seed)
    marks = {round(steps * (mark + 1) / MARKS) for mark in range(MARKS)}
    curve, losses = [], []
    for step in harness.progress_bar(f"{task}, {variant}, seed {seed}")(range(steps)):
        images, labels = next(batches)
        feed = {training.x: sequences(images, task), training.labels: labels}
        losses.append(float(session.run([training.loss, training.train_op], feed)[0]))
        if step + 1 in marks:
            _settle(session, settings.dataset, task, training, seed)
            accuracy = _score(session, inference, settings.dataset.validation, task, CURVE_IMAGES)
            curve.append({"step": step + 1, "loss": round(np.mean(losses), 5), "validation": accuracy})
            losses.clear()
    return curve


def _settle(session: tf.Session, dataset: bn_graph.Dataset, task: str, training: _Network, seed: int) -> None:
    """Lets the moving statistics catch up with the weights, as the paper's are averaged over the training set."""
    batches = bn_graph.batches(dataset.train, BATCH_SIZE, seed=seed + 1)
    for images, labels in itertools.islice(batches, SETTLE):
        session.run(training.loss, {training.x: sequences(images, task), training.labels: labels})


def _score(session: tf.Session, network: _Network, split: bn_graph.datasets.Split, task: str, images: int = 0) -> float:
    """Accuracy of the first `images` of the split, or of all."""
    total, size = 0.0, min(images or split.size, split.size)
    for start in range(0, size, EVALUATION_BATCH):
        batch = slice(start, min(start + EVALUATION_BATCH, size))
        feed = {network.x: sequences(split.images[batch], task), network.labels: split.labels[batch]}
        total += float(session.run(network.accuracy, feed)) * (batch.stop - batch.start)
    return round(total / size, 5)


def shared(mean: np.ndarray, variance: np.ndarray, *, pooled: bool) -> tuple[np.ndarray, np.ndarray]:
    """One set of statistics for all steps: the averages of the steps', or with the variance between steps added."""
    between = mean.var(0) if pooled else 0.0
    return np.broadcast_to(mean.mean(0), mean.shape), np.broadcast_to(variance.mean(0) + between, variance.shape)


def first(steps: int, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first `steps` rows, and the last of them for all that follow."""
    rows = np.minimum(np.arange(len(mean)), steps - 1)
    return mean[rows], variance[rows]


def _scores_with_other_statistics(
    session: tf.Session, inference: _Network, dataset: bn_graph.Dataset, task: str
) -> dict[str, float]:
    """Accuracy of the same weights by each kind of population statistics; the session gets its own back."""
    layers = [(layer.moving_mean, layer.moving_variance) for layer in bn_graph.batch_norm_layers().values()]
    trained = session.run(layers)
    steps = len(trained[0][0])
    kinds = {
        PER_STEP: lambda mean, variance: (mean, variance),
        AVERAGED: lambda mean, variance: shared(mean, variance, pooled=False),
        POOLED: lambda mean, variance: shared(mean, variance, pooled=True),
    }
    for rows in _row_counts(steps):
        kinds[f"first {rows}"] = lambda mean, variance, rows=rows: first(rows, mean, variance)
    scores = {}
    for kind, replace in kinds.items():
        for variables, values in zip(layers, trained, strict=True):
            assign_values(session, zip(variables, replace(*values), strict=True))
        scores[kind] = _score(session, inference, dataset.test, task, SCORED_IMAGES)
    for variables, values in zip(layers, trained, strict=True):
        assign_values(session, zip(variables, values, strict=True))
    return scores


def _row_counts(steps: int) -> list[int]:
    """1, 4, 16, ... below the number of steps, and three quarters of it."""
    return sorted({rows for rows in (1, 2, 4, 8, 16, 64, steps * 3 // 4) if rows < steps})


# --- The first steps --------------------------------------------------------------------------------------------------


def _first_steps(settings: harness.Settings) -> list[dict]:
    """Gradients and the hidden term's variance at each step, of an untrained network, from a zero and a noisy state."""
    images, labels = (part[:BATCH_SIZE] for part in settings.dataset.train)
    x = sequences(images, "pixels")
    rows = []
    for epsilon in (EPSILON, PAPER_EPSILON):
        weights = _first_weights(x.shape[2], labels.shape[1], settings.seeds[0])
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            noise = tf.placeholder(tf.float32, [])
            cell = BatchNormLSTMCell(
                UNITS,
                True,
                max_steps=x.shape[1],
                decay=0.0,  # so that the moving statistics are this batch's
                epsilon=epsilon,
                input_initializer=tf.constant_initializer(weights["input"]),
                recurrent_initializer=tf.constant_initializer(weights["recurrent"]),
            )
            draws = np.random.RandomState(settings.seeds[0]).normal(size=(len(x), UNITS)).astype(np.float32)
            state = cell.zero_state(len(x))._replace(h=noise * tf.constant(draws))
            hidden = tf.nn.dynamic_rnn(cell, tf.constant(x), initial_state=state)[1].h
            logits = hidden @ tf.constant(weights["head"])
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits))
            gradient = tf.global_norm(tf.gradients(loss, tf.trainable_variables()))
            variance = bn_graph.batch_norm_layers()["rnn/bn_lstm_cell/bn_h"].moving_variance
            session.run(tf.global_variables_initializer())
            for stddev in (0.0, NOISE):
                norm = float(session.run(gradient, {noise: stddev}))
                by_step = session.run(variance).mean(1)
                rows.append(
                    {
                        "epsilon": epsilon,
                        "noise": stddev,
                        "gradient_norm": norm if np.isfinite(norm) else None,
                        "variance_by_step": [float(f"{value:.4g}") for value in by_step],
                    }
                )
    return rows


def _exploded(result: dict, epsilon: float) -> float:
    """How many times the gradient of the noisy start that of the zero start is; infinite if it overflowed."""
    norms = {row["noise"]: row["gradient_norm"] for row in result["first_steps"] if row["epsilon"] == epsilon}
    return float("inf") if norms[0.0] is None else norms[0.0] / norms[NOISE]


def _steps_without_variance(result: dict) -> int:
    """Of the zero start; a variance of 1e-12 is what rounding leaves of none."""
    return sum(value < 1e-12 for value in result["first_steps"][0]["variance_by_step"])


# --- What the claim asks of it ----------------------------------------------------------------------------------------


def _tests(result: dict, task: str, variant: str) -> list[float]:
    return [run["test"] for run in result["runs"] if (run["task"], run["variant"]) == (task, variant)]


def _statistics(result: dict, task: str, kind: str, variant: str = SMALL) -> list[float]:
    return [run["statistics"][kind] for run in result["runs"] if (run["task"], run["variant"]) == (task, variant)]


def _learned(result: dict) -> list[str]:
    """The tasks that the BN-LSTM gets right more often than not: the others say nothing. All, if there is none."""
    learned = [task for task in result["tasks"] if np.median(_statistics(result, task, PER_STEP)) > LEARNED]
    return learned or list(result["tasks"])


def _lost_by_sharing(result: dict, task: str) -> float:
    """Accuracy that shared statistics cost the same weights, the better of the two ways to share; median over seeds."""
    ways = [
        [
            own - other
            for own, other in zip(_statistics(result, task, PER_STEP), _statistics(result, task, way), strict=True)
        ]
        for way in (AVERAGED, POOLED)
    ]
    return float(min(np.median(way) for way in ways))


def _ahead(result: dict, task: str, variant: str, other: str) -> float:
    pairs = zip(_tests(result, task, variant), _tests(result, task, other), strict=True)
    return float(np.median([a - b for a, b in pairs]))


def judge_r2rt_25(result: dict) -> Verdict:
    tasks = list(result["tasks"])
    lost = {task: _lost_by_sharing(result, task) for task in tasks}
    small_gamma = {task: _ahead(result, task, SMALL, LARGE) for task in tasks}
    plain = {task: _ahead(result, task, SMALL, PLAIN) for task in tasks}
    zero_start = _ahead(result, "pixels", SMALL, ZERO)
    measured = (
        f"shared statistics cost {_by_task(lost)}; gamma {GAMMA:g} against {LARGE_GAMMA:g} {_by_task(small_gamma)}; "
        f"a noisy first state against zero {zero_start:+.3f} (pixels)"
    )
    needed = max(lost[task] for task in _learned(result)) > FAULT
    also = ["a noisy first state"] * (zero_start > FAULT) + ["a small gamma"] * (max(small_gamma.values()) > FAULT)
    note = (
        f"BN-LSTM against LSTM at equal steps: {_by_task(plain)}. From a zero state {_steps_without_variance(result)} first "
        f"steps have no variance, and the first gradient is {_exploded(result, EPSILON):.3g} times that of a noisy start."
    )
    if not needed:
        return does_not_hold(measured, f"One set of statistics serves all steps as well. {note}")
    if also:
        return holds_if(f"{' and '.join(also)} {'are' if len(also) > 1 else 'is'} seen to as well", measured, note)
    return holds(measured, note)


def _by_task(values: dict[str, float]) -> str:
    return ", ".join(f"{value:+.3f} ({task})" for task, value in values.items())


# --- What a reader sees -----------------------------------------------------------------------------------------------

_LINES = {
    PLAIN: {"color": GREY, "marker": "^"},
    SMALL: {"color": BLUE, "marker": "o"},
    LARGE: {"color": ORANGE, "marker": "s"},
    ZERO: {"color": BLUE, "marker": "x", "linestyle": "--"},
}


FIGURES = {
    "recurrent.png": "Above, validation accuracy of an LSTM and of the BN-LSTM with two first values of gamma. Below, "
    "the trained BN-LSTMs with statistics of their own for the first steps only, the last reused for all that "
    "follow; dotted, with one average for all steps.",
    "recurrent_first_steps.png": "Left, from a zero state the hidden term has no variance over the batch until the "
    "images differ. Right, each such step multiplies the gradients by gamma/√epsilon; noise in the first state ends it.",
}


def draw(result: dict, folder: Path) -> None:
    """The curves and what other statistics give; and the first steps."""
    _draw_accuracies(result, folder)
    _draw_first_steps(result, folder)


def _runs(result: dict, task: str, variant: str) -> list[dict]:
    return [run for run in result["runs"] if (run["task"], run["variant"]) == (task, variant)]


def _draw_accuracies(result: dict, folder: Path) -> None:
    tasks = list(result["tasks"])
    with figure(
        folder / "recurrent.png", nrows=2, ncols=len(tasks), figsize=(max(6, 4 * len(tasks)), 7), squeeze=False
    ) as (
        drawing,
        axes,
    ):
        for task, upper, lower in zip(tasks, *axes, strict=True):
            for variant in variants_of(task):
                style = _LINES[variant]
                runs = _runs(result, task, variant)
                steps = [point["step"] for point in runs[0]["curve"]]
                medians = np.median([[point["validation"] for point in run["curve"]] for run in runs], axis=0)
                upper.plot(steps, medians, label=variant, markersize=4, **style)
                if variant in (SMALL, LARGE):
                    _draw_by_rows(lower, runs, style)
            upper.set(title=task, xlabel="training steps", ylim=(0, 1))
            lower.set(xscale="log", xlabel="steps with statistics of their own", ylim=(0, 1))
        axes[0][0].set_ylabel("validation accuracy")
        axes[1][0].set_ylabel("test accuracy, same weights")
        handles, labels = axes[0][tasks.index("pixels")].get_legend_handles_labels()
        dotted = axes[1][0].plot([], [], color=GREY, linestyle=":")
        drawing.legend(
            [*handles, *dotted],
            [*labels, "one average for all steps"],
            loc="outside lower center",
            ncols=5 if len(tasks) > 1 else 2,
        )
        seeds = len(result["seeds"])
        drawing.suptitle(
            f"{result['data'].replace('mnist', 'MNIST')}, {seeds} seed{'s' * (seeds > 1)}, medians", fontsize=10
        )


def _draw_by_rows(axis, runs: list[dict], style: dict) -> None:
    """Accuracy against the number of rows, the last reused; dotted, with one average for all."""
    counts = {int(kind.split()[1]): kind for kind in runs[0]["statistics"] if kind.startswith("first")}
    scores = [np.median([run["statistics"][kind] for run in runs]) for kind in counts.values()]
    every = np.median([run["statistics"][PER_STEP] for run in runs])
    most = runs[0]["rows"]
    axis.plot([*counts, most], [*scores, every], markersize=4, **style)
    axis.axhline(np.median([run["statistics"][AVERAGED] for run in runs]), color=style["color"], linestyle=":")


# float32's largest, for a bar.
_OVERFLOW = 3e38


def _draw_first_steps(result: dict, folder: Path) -> None:
    with figure(folder / "recurrent_first_steps.png", ncols=2, figsize=(10, 4)) as (_, (left, right)):
        rows = [row for row in result["first_steps"] if row["epsilon"] == PAPER_EPSILON]
        for row, color in zip(rows, (ORANGE, BLUE), strict=True):
            values = np.maximum(row["variance_by_step"], 1e-14)
            left.plot(np.arange(1, len(values) + 1), values, color=color, label=_start(row))
        left.axhline(PAPER_EPSILON, color=GREY, linestyle=":")
        left.annotate("epsilon", (1, PAPER_EPSILON), xytext=(0, 3), textcoords="offset points", color=GREY)
        left.set(yscale="log", xlabel="time step", ylabel="variance over the batch")
        left.set_title("The hidden term, mean over units")
        left.legend()
        labels = [f"{_start(row)}\nepsilon {row['epsilon']:g}" for row in result["first_steps"]]
        norms = [_OVERFLOW if row["gradient_norm"] is None else row["gradient_norm"] for row in result["first_steps"]]
        right.set_axisbelow(True)
        right.bar(labels, norms, color=[ORANGE if row["noise"] == 0.0 else BLUE for row in result["first_steps"]])
        right.tick_params(axis="x", labelsize=8)
        right.set(yscale="log", ylabel="norm of all gradients, untrained (3e38: overflow)")
        right.set_title("What it does to the gradients")


def _start(row: dict) -> str:
    return "noisy start" if row["noise"] else "zero start"


def summarize(result: dict) -> str:
    lines = []
    for task, steps in result["tasks"].items():
        lines.append(f"{task}, {steps:,} steps: test accuracy")
        for variant in variants_of(task):
            lines.append(f"  {variant:22}{spread(_tests(result, task, variant))}")
        for kind in (PER_STEP, AVERAGED, POOLED):
            lines.append(f"    {SMALL} with statistics {kind:18}{spread(_statistics(result, task, kind))}")
        paper = result["paper"].get(task)
        if paper:
            lines.append(f"  the paper, 784 pixels, converged: {', '.join(f'{k} {v}' for k, v in paper.items())}")
    for row in result["first_steps"]:
        lines.append(f"  gradient, {_start(row)}, epsilon {row['epsilon']:g}: {row['gradient_norm']}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
