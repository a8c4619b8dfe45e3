"""The same network with batch norm and without, from the same weights on the same batches.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", introduction, *Building the graph*, *Improvements in
speed and accuracy*, *Illustration of input to activation functions over time*. Claims r2rt-01, 07, 08, 09.

    make bn-vs-plain        or        python -m experiments.bn_vs_plain --mode full

The document's network (inputs-100-100-10, sigmoids, weights N(0, 1)) is trained for 40,000 steps with batch norm and with
biases instead, and scored on the test set after steps 1, 51, 101, ... as in the document.

Changed from the document, and why: the loss is the stable form of the same summed cross-entropy (the document's can
become NaN). The network with batch norm is scored twice: by the test set's own statistics, which is what the document
does, and by the moving statistics (decay 0.999, the document's own) that a prediction would use. A second pair starts
from the same weights divided by the root of their layer's inputs: N(0, 1) saturates the sigmoids, and this tells what of
the gain is batch norm and what is the start. The activation figures are drawn as the document has them, and fairly.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# The document's.
HIDDEN_UNITS = (100, 100)
BATCH_SIZE = 60
# The document's; on the summed loss.
LEARNING_RATE = 0.01
# The document's.
EPSILON = 1e-3
# The document's, of its second half; here the moving statistics are watched, and not needed to train.
DECAY = 0.999
# The document's.
STEPS = 40_000
EVALUATE_EVERY = 50
# The pair from the scaled start is not the document's: fewer points will do.
SCALED_EVERY = 500
# The document's: the first five of the second layer.
SHOWN_UNITS = 5
# Evaluations averaged for an accuracy "at the end": one alone is noisy.
LAST = 20
# Those of BN2015's Figure 1.
PERCENTILES = (15, 50, 85)
# A sigmoid beyond ±4 has less than 1.8% of its range left and 7% of its greatest slope.
SATURATED = 4.0
# A difference in accuracy that the eye sees on an axis from 0.8 to 1.
NOTICEABLE = 0.005
# "steadier" should be a fifth less jitter at the least.
CLEAR = 0.8
# Batches in which one image is seen among 59 others.
COMPANIONS = 100
# Images so seen.
WATCHED = 10

# BN2015, Figure 3: steps to the accuracy that Inception ends with, 72.2%, and what each variant changes.
PAPER_CLAIMED = 14
PAPER_STEPS = {"Inception": 31.0e6, "BN-Baseline": 13.3e6, "BN-x5": 2.1e6, "BN-x30": 2.7e6}
# Batch norm and nothing else.
PAPER_ALONE = "BN-Baseline"
# 5 times the rate, no dropout, less L2, faster decay, no LRN, better shuffling (section 4.2.1).
PAPER_PACKAGE = "BN-x5"

# A seed takes minutes.
FULL = Mode(data="mnist", steps=STEPS, seeds=[0])
QUICK = Mode(data="digits", steps=1500, seeds=[0])


class Scored(NamedTuple):
    """One way to run a trained network on images: its accuracy, and what goes into the last hidden layer's sigmoids."""

    accuracy: tf.Tensor
    inputs: tf.Tensor


class Tower(NamedTuple):
    """One network among several in a graph: its training step, and the ways to score it, none of which updates anything."""

    train_op: tf.Operation
    scored: dict[str, Scored]
    beta: tf.Variable | None
    first: tf.Tensor


def biased(z: tf.Tensor, name: str) -> tf.Tensor:
    """What stands before a sigmoid without batch norm."""
    return z + tf.get_variable(f"{name}/bias", [z.shape[-1]], initializer=tf.zeros_initializer())


def normalized(z: tf.Tensor, name: str, is_training: bool) -> tf.Tensor:
    """The library's layer; the form for prediction shares the variables of the one for training, which comes first."""
    reuse = None if is_training else True
    return bn_graph.batch_norm_wrapper(z, is_training, decay=DECAY, epsilon=EPSILON, name=name, reuse=reuse)


def by_own_statistics(z: tf.Tensor, name: str) -> tf.Tensor:
    """The document's first form: normalized by whatever batch there is, the whole test set for one. Updates nothing."""
    with tf.variable_scope(name, reuse=True):
        gamma, beta = (tf.get_variable(each, [z.shape[-1]]) for each in ("gamma", "beta"))
        return tf.nn.batch_normalization(z, *tf.nn.moments(z, [0]), beta, gamma, EPSILON)


def build_tower(
    name: str,
    images: tf.Tensor,
    labels: tf.Tensor,
    weights: Sequence[np.ndarray],
    *,
    batch_norm: bool,
    rate: float = LEARNING_RATE,
) -> Tower:
    """One network with its gradient descent of `rate` on the summed cross-entropy, in a variable scope of its own."""
    with tf.variable_scope(name):
        matrices = [_variable(f"w{number}", initial) for number, initial in enumerate(weights, start=1)]
        bias = _variable("bias", np.zeros(weights[-1].shape[1], np.float32))
        first = tf.matmul(images, matrices[0])  # the largest product: the forms below share it
        forward = partial(_forward, first, matrices, bias)
        if batch_norm:
            _, logits = forward(partial(normalized, is_training=True))
            forms = {"batch": by_own_statistics, "population": partial(normalized, is_training=False)}
            outputs = {form: forward(before_sigmoid) for form, before_sigmoid in forms.items()}
        else:
            outputs = {"plain": forward(biased)}
            _, logits = outputs["plain"]
        loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits))
        own = tf.trainable_variables(scope=f"{name}/")
        train_op = tf.train.GradientDescentOptimizer(rate).minimize(loss, var_list=own)
    scored = {form: Scored(_accuracy(scores, labels), inputs) for form, (inputs, scores) in outputs.items()}
    last_beta = f"{name}/hidden{len(weights) - 1}/beta"
    return Tower(train_op, scored, next((each for each in own if each.op.name == last_beta), None), first)


def _forward(first, matrices, bias, before_sigmoid) -> tuple[tf.Tensor, tf.Tensor]:
    """From the first weighted sum to the last hidden layer's sigmoid inputs and the logits."""
    z = first
    for number, following in enumerate(matrices[1:], start=1):
        inputs = before_sigmoid(z, name=f"hidden{number}")
        z = tf.matmul(tf.nn.sigmoid(inputs), following)
    return inputs, z + bias


def _variable(name: str, initial: np.ndarray) -> tf.Variable:
    return tf.get_variable(name, initial.shape, initializer=tf.constant_initializer(initial))


def _accuracy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1)), tf.float32))


def placeholders(dataset: bn_graph.Dataset) -> tuple[tf.Tensor, tf.Tensor]:
    test = dataset.test
    shapes = ([None, test.images.shape[1]], [None, test.labels.shape[1]])
    return tuple(tf.placeholder(tf.float32, shape) for shape in shapes)


def run(settings: harness.Settings) -> dict:
    runs, curves = [], None
    for seed in settings.seeds:
        figures, of_seed = _run_seed(settings, seed)
        runs.append(figures)
        curves = curves or of_seed
    return {"runs": runs, "curves": curves, "paper_steps": PAPER_STEPS}


def _run_seed(settings: harness.Settings, seed: int) -> tuple[dict, dict]:
    dataset = settings.dataset
    sizes = (dataset.test.images.shape[1], *HIDDEN_UNITS, dataset.test.labels.shape[1])
    weights = bn_graph.normal_weights(sizes, seed)
    scaled = [each / np.float32(np.sqrt(len(each))) for each in weights]

    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        feed = placeholders(dataset)
        towers = {
            "with": build_tower("with", *feed, weights, batch_norm=True),
            "without": build_tower("without", *feed, weights, batch_norm=False),
            "scaled_with": build_tower("scaled_with", *feed, scaled, batch_norm=True),
            "scaled_without": build_tower("scaled_without", *feed, scaled, batch_norm=False),
        }
        curves = _train(settings, seed, session, towers, feed)
        noise = companion_noise(session, towers["with"], feed, dataset, seed)
        generalization = {
            f"train_accuracy_{name}": score(session, towers[name], feed, dataset.train) for name in ("with", "without")
        }
    start = _start(weights, dataset.train) | _one_step(weights, dataset.train, seed)
    figures = start | noise | generalization | _accuracies(curves) | _steadiness(curves)
    return {"seed": seed} | figures, _written(curves)


def _train(settings: harness.Settings, seed: int, session: tf.Session, towers: dict, feed) -> dict[str, np.ndarray]:
    dataset = settings.dataset
    folder = kept_work.folder(
        settings, seed, batch=BATCH_SIZE, rate=LEARNING_RATE, every=[EVALUATE_EVERY, SCALED_EVERY], format=1
    )
    test = dict(zip(feed, dataset.test, strict=True))
    return kept_work.train_and_measure(
        settings,
        session,
        [bn_graph.Step(tower.train_op, *feed) for tower in towers.values()],
        dataset.train,
        partial(_measure, session, towers, test, settings.steps),
        batch_size=BATCH_SIZE,
        seed=seed,
        folder=folder,
        label=f"seed {seed}, with and without",
        pause_after=lambda finished: finished % EVALUATE_EVERY == 1 or finished % SCALED_EVERY == 1,
    )


def _measure(session: tf.Session, towers: dict, test: dict, steps: int, finished: int) -> dict[str, np.ndarray]:
    """After the steps at which the document evaluates (1, 51, ...) and the last: one run of the test set."""
    measured = {}
    if finished % EVALUATE_EVERY == 1 or finished == steps:
        scored = {"plain": towers["without"].scored["plain"]} | towers["with"].scored
        got, beta = session.run((scored, towers["with"].beta), test)
        measured = {f"accuracy_{form}": each.accuracy for form, each in got.items()}
        measured |= {f"mean_{form}": each.inputs.mean(0, np.float64) for form, each in got.items()}
        measured |= {f"percentiles_{form}": percentiles(each.inputs[:, :SHOWN_UNITS]) for form, each in got.items()}
        # Of all units, the spread: jitter means little without the scale it is on.
        measured |= {f"deviation_{form}": each.inputs.std(0) for form, each in got.items()}
        measured["beta"] = beta
    if finished % SCALED_EVERY == 1 or finished == steps:
        pair = {"scaled_plain": towers["scaled_without"].scored["plain"], **_prefixed(towers["scaled_with"].scored)}
        accuracies = session.run({form: each.accuracy for form, each in pair.items()}, test)
        measured |= {f"accuracy_{form}": accuracy for form, accuracy in accuracies.items()}
    return {name: np.float32(value) for name, value in measured.items()}


def _prefixed(scored: dict[str, Scored]) -> dict[str, Scored]:
    return {f"scaled_{form}": each for form, each in scored.items()}


def percentiles(inputs: np.ndarray) -> np.ndarray:
    """[percentile, unit] of the inputs [image, unit]."""
    return np.percentile(np.ascontiguousarray(inputs.T), PERCENTILES, axis=1)


def score(session: tf.Session, tower: Tower, feed, split: bn_graph.Split, most: int = 10_000) -> float:
    """Accuracy on up to `most` examples, by population statistics where there are any."""
    form = tower.scored.get("population", tower.scored.get("plain"))
    return float(session.run(form.accuracy, {feed[0]: split.images[:most], feed[1]: split.labels[:most]}))


def companion_noise(session: tf.Session, tower: Tower, feed, dataset: bn_graph.Dataset, seed: int) -> dict:
    """How much the input of one sigmoid for one image moves with the 59 other images of its training batch.

    Without batch norm it does not move at all. The unit is the input's own deviation over many images.
    """
    inputs = tower.scored["batch"].inputs
    generator = np.random.default_rng([seed, 0])
    noise = []
    for image in dataset.validation.images[:WATCHED]:
        seen = []
        for _ in range(COMPANIONS):
            rows = generator.choice(dataset.train.size, BATCH_SIZE - 1, replace=False)
            batch = np.concatenate([image[None], dataset.train.images[rows]])
            seen.append(session.run(inputs, {feed[0]: batch})[0])
        noise.append(np.std(seen, axis=0))
    many = session.run(inputs, {feed[0]: dataset.validation.images})
    return {"companion_noise": float(np.median(noise / many.std(0)))}


def _start(weights: list[np.ndarray], split: bn_graph.Split) -> dict:
    """How saturated both networks start: the share of the sigmoids' inputs beyond ±4, layer by layer, in float64."""
    images = split.images[:2000].astype(np.float64)
    shares = {}
    for name, standardize in (("without", False), ("with", True)):
        layer = images
        for number, matrix in enumerate(weights[:-1], start=1):
            z = layer @ matrix
            if standardize:
                z = (z - z.mean(0)) / np.sqrt(z.var(0) + EPSILON)
            shares[f"saturated_{name}_{number}"] = float(np.mean(np.abs(z) > SATURATED))
            layer = 1.0 / (1.0 + np.exp(-z))
    drawn = np.concatenate([each.ravel() for each in weights])
    return shares | {"weights_mean": float(drawn.mean()), "weights_deviation": float(drawn.std())}


def _one_step(weights: list[np.ndarray], split: bn_graph.Split, seed: int) -> dict:
    """What 0.01 on the summed loss amounts to: its first step beside steps on the mean loss, as lengths and as a difference."""
    images, labels = next(bn_graph.batches(split, BATCH_SIZE, seed=seed))
    steps = {}
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        feed = (tf.constant(images), tf.constant(labels))
        z = tf.matmul(feed[0], tf.constant(weights[0]))
        for number, matrix in enumerate(weights[1:], start=1):
            mean, variance = tf.nn.moments(z, [0])
            hidden = tf.nn.sigmoid(tf.nn.batch_normalization(z, mean, variance, None, None, EPSILON))
            last = _variable(f"w{number}", matrix)
            z = tf.matmul(hidden, last)
        each = tf.nn.softmax_cross_entropy_with_logits_v2(labels=feed[1], logits=z)
        losses = {
            "summed": (tf.reduce_sum(each), LEARNING_RATE),
            "mean": (tf.reduce_mean(each), LEARNING_RATE),
            "mean_times_batch": (tf.reduce_mean(each), LEARNING_RATE * BATCH_SIZE),
        }
        train_ops = {
            name: tf.train.GradientDescentOptimizer(rate).minimize(loss, var_list=[last])
            for name, (loss, rate) in losses.items()
        }
        initialize = tf.global_variables_initializer()
        for name, train_op in train_ops.items():
            session.run(initialize)
            session.run(train_op)
            steps[name] = session.run(last).astype(np.float64) - weights[-1]
    lengths = {name: np.linalg.norm(step) for name, step in steps.items()}
    difference = np.linalg.norm(steps["summed"] - steps["mean_times_batch"])
    return {
        "effective_rate": float(LEARNING_RATE * lengths["summed"] / lengths["mean"]),
        "summed_step_differs_from_mean_step_by": float(difference / lengths["summed"]),
    }


def _accuracies(curves: dict[str, np.ndarray]) -> dict:
    """Accuracy at the end, and steps to an accuracy, of each way to score."""
    figures = {}
    for form in ("plain", "batch", "population", "scaled_plain", "scaled_batch", "scaled_population"):
        accuracy, steps = curves[f"accuracy_{form}"], curves[f"accuracy_{form}_step"]
        last = LAST if not form.startswith("scaled") else max(1, LAST * EVALUATE_EVERY // SCALED_EVERY)
        figures[f"final_{form}"] = float(accuracy[-last:].mean(dtype=np.float64))
        figures[f"best_{form}"] = float(accuracy.max())
        figures[f"steps_to_90_{form}"] = first_step(steps, accuracy, 0.9)
    steps = curves["accuracy_plain_step"]
    best = figures["best_plain"]
    figures["steps_to_best_plain_plain"] = first_step(steps, curves["accuracy_plain"], best)
    for form in ("batch", "population"):
        figures[f"steps_to_best_plain_{form}"] = first_step(steps, curves[f"accuracy_{form}"], best)
        figures[f"ahead_{form}"] = float(np.mean(curves[f"accuracy_{form}"] > curves["accuracy_plain"]))
    return figures


def first_step(steps: np.ndarray, accuracy: np.ndarray, wanted: float) -> int | None:
    """The first step after which the accuracy is at least `wanted`; None if there is none."""
    reached = np.flatnonzero(accuracy >= wanted)
    return int(steps[reached[0]]) if len(reached) else None


def jitter(curve: np.ndarray) -> np.ndarray:
    """For each column, the size of what changes between neighbouring evaluations: noise, without the slow drift.

    It is √⅙ of the deviation of the second differences, which is σ for independent noise of deviation σ and 0 for a line.
    """
    return np.std(np.diff(curve.astype(np.float64), n=2, axis=0), axis=0) / np.sqrt(6.0)


def _steadiness(curves: dict[str, np.ndarray]) -> dict:
    """Noise and drift of the mean input over all units of the second layer: medians, in its own unit and per deviation."""
    figures = {"largest_difference_of_mean_and_beta": float(np.max(np.abs(curves["mean_batch"] - curves["beta"])))}
    figures["largest_beta"] = float(np.max(np.abs(curves["beta"])))
    for form in ("plain", "batch", "population"):
        means, deviations = curves[f"mean_{form}"], curves[f"deviation_{form}"].mean(0)
        noise, drift = jitter(means), np.std(means, axis=0)
        widths = np.diff(curves[f"percentiles_{form}"][:, [0, 2]], axis=1)[:, 0]
        figures |= {
            f"jitter_{form}": float(np.median(noise)),
            f"jitter_shown_{form}": float(np.median(noise[:SHOWN_UNITS])),
            f"relative_jitter_{form}": float(np.median(noise / deviations)),
            f"relative_drift_{form}": float(np.median(drift / deviations)),
            f"deviation_{form}": float(np.median(deviations)),
            f"width_{form}": float(np.median(widths)),
        }
    return figures


def written(curve: np.ndarray) -> list[str]:
    """A curve [point, unit] as one string of numbers a unit: a tenth of what JSON's lists would take."""
    return [" ".join(f"{value:.5g}" for value in column) for column in np.atleast_2d(np.transpose(curve))]


def read(strings: list[str]) -> np.ndarray:
    """The inverse of `written`: [unit, point]."""
    return np.array([[float(number) for number in string.split()] for string in strings])


def _written(curves: dict[str, np.ndarray]) -> dict:
    """What the figures need: accuracies and five units' means at every evaluation, percentiles and beta at fewer."""
    accuracies = {name: curve for name, curve in curves.items() if name.startswith("accuracy_")}
    kept = {name: written(curve) for name, curve in accuracies.items()}
    stride = -(-len(curves["beta"]) // 200)
    kept |= {f"mean_{form}": written(curves[f"mean_{form}"][:, :SHOWN_UNITS]) for form in ("plain", "batch")}
    thinned = {"beta": curves["beta"][:, :SHOWN_UNITS], "thinned_step": curves["beta_step"]}
    for form in ("plain", "population"):
        shown = curves[f"percentiles_{form}"]
        thinned |= {f"p{percent}_{form}": shown[:, place] for place, percent in enumerate(PERCENTILES)}
    return kept | {name: written(curve[::stride]) for name, curve in thinned.items()}


FIGURES = {
    "accuracy.png": "Test accuracy with batch norm and without, from the same weights on the same batches. Left, the "
    "document's start, N(0, 1); right, the same weights divided by the root of their layer's inputs: see how much "
    "of the distance on the left is the start's doing.",
    "inputs.png": "Inputs of the first five sigmoids of the second layer. The two left columns are the document's: the "
    "mean over the test set; with batch norm it is beta (dashed) and says nothing of the images. The two right "
    "columns compare like with like: percentiles over the test set, with batch norm by its moving statistics.",
}


def draw(result: dict, folder: Path) -> None:
    draw_accuracy(result, folder / "accuracy.png")
    draw_inputs(result, folder / "inputs.png")


def draw_accuracy(result: dict, path: Path) -> None:
    """The document's figure, and beside it the pair that starts unsaturated."""
    curves = {name: read(strings)[0] for name, strings in result["curves"].items() if name.startswith("accuracy_")}
    styles = {
        "plain": ("without: biases", {"color": ORANGE}),
        "batch": ("with, by the test set's own statistics (as the document)", {"color": BLUE}),
        "population": ("with, by moving statistics (as in prediction)", {"color": BLUE, "ls": ":", "lw": 1.8}),
    }
    with figure(path, ncols=2, sharey=True, figsize=(12, 4.6)) as (drawing, axes):
        starts = (("", "Weights N(0, 1): the document's"), ("scaled_", "The same weights / √(inputs of the layer)"))
        for axis, (prefix, title) in zip(axes, starts, strict=True):
            for form, (label, style) in styles.items():
                name = f"accuracy_{prefix}{form}"
                axis.plot(curves[f"{name}_step"], curves[name], label=label, **({"lw": 1.1} | style))
            axis.set(ylim=(0.8, 1.0), xlim=(0, result["steps"]), xlabel="training steps", title=title)
            axis.locator_params(axis="x", nbins=5)
        axes[0].set_ylabel("accuracy on the test set")
        axes[0].legend(loc="lower right")
        drawing.suptitle(f"{data_name(result)}, seed {result['runs'][0]['seed']}, batches of {BATCH_SIZE}", fontsize=11)


def draw_inputs(result: dict, path: Path) -> None:
    """Four columns for each of five units: the document's two, and the fair two."""
    curves = {name: read(strings) for name, strings in result["curves"].items()}
    steps, few = curves["accuracy_plain_step"][0], curves["thinned_step"][0]
    titles = (
        "Document, without:\nmean of z2",
        "Document, with: mean of BN2\nby the test set's own statistics",
        "Fair, without:\n15th, 50th, 85th percentile",
        "Fair, with: percentiles,\nmoving statistics",
    )
    limits = [_limits(curves, form) for form in ("plain", "population")]
    with figure(path, nrows=SHOWN_UNITS, ncols=4, sharex=True, figsize=(12, 11)) as (drawing, axes):
        for unit, row in enumerate(axes):
            row[0].plot(steps, curves["mean_plain"][unit], color=ORANGE, lw=0.9)
            row[1].plot(steps, curves["mean_batch"][unit], color=BLUE, lw=2.6, label="mean of BN2")
            row[1].plot(few, curves["beta"][unit], color="black", lw=1, ls=(0, (4, 4)), label="beta")
            for axis, form, color, limit in zip(row[2:], ("plain", "population"), (ORANGE, BLUE), limits, strict=True):
                low, middle, high = (curves[f"p{percent}_{form}"][unit] for percent in PERCENTILES)
                axis.fill_between(few, low, high, color=color, alpha=0.25, lw=0)
                axis.plot(few, middle, color=color, lw=0.9)
                axis.set_ylim(limit)
            row[0].set_ylabel(f"unit {unit + 1}\nsigmoid's input")
        axes[0, 1].legend(fontsize=8)
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title, fontsize=10)
        for axis in axes[-1]:
            axis.set_xlabel("training steps")
            axis.locator_params(axis="x", nbins=4)
        drawing.suptitle(f"Inputs of five sigmoids of the second layer over the test set of {data_name(result)}")


def _limits(curves: dict, form: str) -> tuple[float, float]:
    """One axis for all five units, so that they can be compared; it may cut off the first evaluations."""
    low, high = (curves[f"p{percent}_{form}"] for percent in (PERCENTILES[0], PERCENTILES[-1]))
    bottom, top = np.percentile(low, 2), np.percentile(high, 98)  # the first steps start far out, and soon come in
    margin = 0.1 * (top - bottom)
    return float(bottom - margin), float(top + margin)


def data_name(result: dict) -> str:
    return result["data"].replace("mnist", "MNIST").replace("digits", "scikit-learn's digits")


def column(result: dict, name: str) -> list:
    return [each[name] for each in result["runs"]]


def medians(result: dict, *names: str) -> list[float]:
    return [float(np.median(column(result, name))) for name in names]


def speed_ups(result: dict, form: str) -> list[float]:
    """How many times fewer steps than the plain network's to the plain network's best accuracy; 0 if never reached."""
    pairs = zip(column(result, "steps_to_best_plain_plain"), column(result, f"steps_to_best_plain_{form}"), strict=True)
    return [plain / reached if reached else 0.0 for plain, reached in pairs]


def _times_fewer(factor: float) -> str:
    return f"{factor:.1f} times fewer steps" if factor else "it never came"


def judge_r2rt_01(result: dict) -> Verdict:
    steps = result["paper_steps"]
    alone, package = (steps["Inception"] / steps[name] for name in (PAPER_ALONE, PAPER_PACKAGE))
    here = float(np.median(speed_ups(result, "batch")))
    gaps = {
        name: float(np.median(np.subtract(column(result, f"train_accuracy_{name}"), column(result, f"final_{form}"))))
        for name, form in (("with", "population"), ("without", "plain"))
    }
    measured = (
        f"paper: {package:.1f} times ({PAPER_PACKAGE}), {alone:.1f} with batch norm alone; here: {_times_fewer(here)}"
    )
    gap = (
        f"Training minus test accuracy of the small network is {gaps['with']:.3f} with batch norm and {gaps['without']:.3f} "
        f"without{', so here it did not regularize' if gaps['with'] >= gaps['without'] else ''}."
    )
    if alone >= PAPER_CLAIMED:
        return holds(measured, f"The paper's table gives {alone:.1f} times for batch norm alone. {gap}")
    if package >= PAPER_CLAIMED:
        note = (
            f"The factor {PAPER_CLAIMED} is the paper's {PAPER_PACKAGE}, which also has 5 times the rate, faster decay, less "
            f"L2 and no dropout; with batch norm alone its table gives {alone:.1f}. {gap}"
        )
        return holds_if("the paper's other changes to training are made too", measured, note)
    return does_not_hold(measured, f"The paper's table gives {package:.1f} times at the most. {gap}")


def judge_r2rt_07(result: dict) -> Verdict:
    deviation, rate, difference = medians(
        result, "weights_deviation", "effective_rate", "summed_step_differs_from_mean_step_by"
    )
    saturated = medians(result, *(f"saturated_{name}_{layer}" for layer in (1, 2) for name in ("without", "with")))
    measured = (
        f"weights' deviation {deviation:.3f}; 0.01 on the sum over {BATCH_SIZE} is {rate:.2f} on the mean; "
        f"saturated at the start: {saturated[0]:.0%} and {saturated[2]:.0%} without, "
        f"{saturated[1]:.1%} and {saturated[3]:.1%} with"
    )
    if abs(deviation - 1.0) > 0.02:
        return does_not_hold(measured, f"The weights' deviation is {deviation:.3f} and not 1.")
    if difference > 1e-3 or abs(rate / (LEARNING_RATE * BATCH_SIZE) - 1.0) > 1e-3:
        return does_not_hold(measured, f"The step on the summed loss is that of the rate {rate:.3f} on the mean loss.")
    note = (
        f"These are the settings, but 0.01 is the rate {rate:.2f} in today's terms, since the loss is summed over the batch. "
        f"Of the plain network's sigmoids {saturated[0]:.0%} (first layer) and {saturated[2]:.0%} (second) start beyond ±4."
    )
    return holds(measured, note)


def judge_r2rt_08(result: dict) -> Verdict:
    plain, batch, population = (column(result, f"final_{form}") for form in ("plain", "batch", "population"))
    gain = float(np.min(np.subtract(batch, plain)))
    faster = float(np.min(speed_ups(result, "batch")))
    scaled = float(np.median(np.subtract(column(result, "final_scaled_batch"), column(result, "final_scaled_plain"))))
    measured = (
        f"at the end {spread(batch)} with, {spread(plain)} without; by moving statistics {spread(population)}; "
        f"{_times_fewer(faster)} to the plain network's best"
    )
    start = medians(result, "final_scaled_plain")[0]
    beside = (
        f"from weights scaled by 1/√inputs it is {scaled:+.4f}, and without batch norm the accuracy is then {start:.4f}"
    )
    if gain < NOTICEABLE or faster <= 1.0:
        return does_not_hold(measured, f"The gain is {gain:+.4f}{' at worst' if len(plain) > 1 else ''}; {beside}.")
    moved = float(np.median(np.subtract(population, batch)))
    kept = f"Moving statistics instead of the test set's own change its accuracy with batch norm by {moved:+.4f}"
    if scaled < NOTICEABLE:
        note = f"From the document's weights the gain is {gain:+.4f}, but {beside}."
        return holds_if("the weights start at N(0, 1)", measured, f"{note} {kept}.")
    return holds(measured, f"The gain is {gain:+.4f}, and {beside}. {kept}.")


def judge_r2rt_09(result: dict) -> Verdict:
    difference = float(np.max(column(result, "largest_difference_of_mean_and_beta")))
    size = float(np.max(column(result, "largest_beta")))
    shown, shown_with = medians(result, "jitter_shown_plain", "jitter_shown_batch")
    plain, batch, population = medians(
        result, *(f"relative_jitter_{form}" for form in ("plain", "batch", "population"))
    )
    noise = medians(result, "companion_noise")[0]
    drift, drift_with = medians(result, "relative_drift_plain", "relative_drift_batch")
    measured = (
        f"noise of the mean: {shown:.3f} without, {shown_with:.4f} with; per deviation {plain:.4f} without, {batch:.4f} with, "
        f"{population:.4f} with moving statistics; drift {drift:.2f} and {drift_with:.2f}; "
        f"|mean of BN2 − beta| ≤ {difference:.0e}"
    )
    training = (
        f"in training each image's input gains a noise of {noise:.2f} deviations from the other {BATCH_SIZE - 1} images"
    )
    is_beta = difference < 1e-3 * max(1.0, size)
    curve = "The document's curve with batch norm is beta, whatever the images" if is_beta else "The curve is not beta"
    if shown_with >= shown:
        return does_not_hold(measured, f"The mean is no steadier with batch norm. {curve}; {training}.")
    fair = (
        f"by moving statistics the mean has {population / plain:.2f} times the noise per deviation, "
        f"while beta drifts {drift_with / drift:.1f} times as far as the plain mean"
    )
    if population >= CLEAR * plain:
        return does_not_hold(measured, f"{curve}; {fair}. And {training}.")
    if noise < CLEAR * plain:
        return holds(measured, f"{curve}; {fair}. And {training}.")
    return holds_if("the mean over many images is meant", measured, f"{curve}; {fair}. But {training}.")


def summarize(result: dict) -> str:
    lines = [
        f"                                     {'without':>10} {'with, own statistics':>22} {'with, moving':>14}",
    ]
    rows = {
        "accuracy at the end": ("final_{}", ".4f"),
        "best accuracy": ("best_{}", ".4f"),
        "steps to 0.9": ("steps_to_90_{}", "d"),
        "steps to the plain one's best": ("steps_to_best_plain_{}", "d"),
        "at the end, from the scaled start": ("final_scaled_{}", ".4f"),
        "noise of the mean input": ("jitter_{}", ".4f"),
        "the same per deviation": ("relative_jitter_{}", ".4f"),
    }
    first = result["runs"][0]
    for label, (name, digits) in rows.items():
        values = [first[name.format(form)] for form in ("plain", "batch", "population")]
        cells = ["never" if value is None else format(value, digits) for value in values]
        lines.append(f"{label:<36} {cells[0]:>10} {cells[1]:>22} {cells[2]:>14}")
    lines += [
        "",
        "The document's curve with batch norm differs from beta by "
        f"{first['largest_difference_of_mean_and_beta']:.1e} at most.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
