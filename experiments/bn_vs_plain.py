"""The same network with batch norm and without, from the same weights on the same batches.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", introduction, *Building the graph*, *Improvements in
speed and accuracy*, *Illustration of input to activation functions over time*. Claims r2rt-01, 07, 08, 09.

    make bn-vs-plain        or        python -m experiments.bn_vs_plain --mode full

The document's network (inputs-100-100-10, sigmoids, weights N(0, 1)) is trained for 40,000 steps with batch norm and with
biases instead (`machinery/towers.py` has both), and scored on the test set after steps 1, 51, 101, ... as it is there.

Changed from the document, and why: the loss is the stable form of the same summed cross-entropy (the document's can
become NaN). The network with batch norm is scored twice: by the test set's own statistics, which is what the document
does, and by the moving statistics (decay 0.999, the document's own) that a prediction would use. A second pair starts
from the same weights divided by the root of their layer's inputs: N(0, 1) saturates the sigmoids, and this tells what of
the gain is batch norm and what is the start. The activation figures are drawn as the document has them, and fairly.
"""

from functools import partial
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work, r2rt, towers
from experiments.machinery.classifiers import layer_sizes, losses, placeholders
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import column, data_name, medians, spread
from experiments.machinery.towers import EPSILON, FORMS, PERCENTILES, Tower
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The document's; the rate is that of the summed loss.
HIDDEN_UNITS, BATCH_SIZE, LEARNING_RATE, EVALUATE_EVERY = (100, 100), 60, 0.01, 50
# The document's: the first five of the second layer.
SHOWN_UNITS = 5
# The pair from the scaled start is not the document's: fewer points will do.
SCALED_EVERY = 500
# Evaluations averaged for an accuracy "at the end": one alone is noisy.
LAST = 20
# A sigmoid beyond ±4 has less than 1.8% of its range left and 7% of its greatest slope.
SATURATED = 4.0
# A difference in accuracy that the eye sees on an axis from 0.8 to 1; "steadier" should be a fifth less jitter at least.
NOTICEABLE, CLEAR = 0.005, 0.8
# Images that are seen in training batches, and batches in which each is seen among 59 others.
WATCHED, COMPANIONS = 10, 100

# BN2015, Figure 3: steps to the accuracy that Inception ends with, 72.2%. BN-Baseline has batch norm and nothing else,
# BN-x5 also 5 times the rate, no dropout, less L2, faster decay, no LRN, better shuffling (section 4.2.1).
PAPER_STEPS = {"Inception": 31.0e6, "BN-Baseline": 13.3e6, "BN-x5": 2.1e6, "BN-x30": 2.7e6}
PAPER_CLAIMED, PAPER_ALONE, PAPER_PACKAGE = 14, "BN-Baseline", "BN-x5"

# The document's steps. A seed takes a minute.
FULL = Mode(data="mnist", steps=40_000, seeds=[0, 1, 2, 3, 4])
QUICK = Mode(data="digits", steps=1500)


def run(settings: Settings) -> dict:
    measured = [measure_seed(settings, seed) for seed in settings.seeds]
    # The figures are those of the first seed.
    return {"runs": [each for each, _ in measured], "curves": measured[0][1], "paper_steps": PAPER_STEPS}


# --- The training, and the scores while it lasts ----------------------------------------------------------------------
def measure_seed(settings: Settings, seed: int) -> tuple[dict, dict]:
    """What the claims ask of one training, and its curves for the figures."""
    dataset = settings.dataset
    sizes = layer_sizes(dataset, HIDDEN_UNITS)
    weights = bn_graph.normal_weights(sizes, seed)
    scaled = [each / np.float32(np.sqrt(len(each))) for each in weights]
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        feed = placeholders(sizes)
        networks = {
            f"{start}{form}": towers.build_tower(f"{start}{form}", *feed, initial, batch_norm=form == "with")
            for start, initial in (("", weights), ("scaled_", scaled))
            for form in ("with", "without")
        }
        test = dict(zip(feed, dataset.test, strict=True))
        every = [EVALUATE_EVERY, SCALED_EVERY]
        options = {"batch_size": BATCH_SIZE, "seed": seed, "label": f"seed {seed}, with and without"}
        identity = {"batch": BATCH_SIZE, "rate": LEARNING_RATE, "every": every, "format": 1}
        options["folder"] = kept_work.folder(settings, seed, **identity)
        options["pause_after"] = lambda finished: any(finished % each == 1 for each in every)
        steps = [bn_graph.Step(network.train_op, *feed) for network in networks.values()]
        score = partial(measure, session, networks, test, settings.steps)
        curves = kept_work.train_and_measure(settings, session, steps, dataset.train, score, **options)
        measured = {"seed": seed} | saturation(weights, dataset.train) | step_lengths(weights, dataset.train, seed)
        measured |= companion_noise(session, networks["with"], feed, dataset, seed)
        # As a prediction would be made. 10,000 are as many as there are in MNIST's test set.
        examples = dict(zip(feed, (part[:10_000] for part in dataset.train), strict=True))
        for name, form in (("with", "population"), ("without", "plain")):
            measured[f"train_accuracy_{name}"] = float(session.run(networks[name].scored[form].accuracy, examples))
    return measured | accuracies(curves) | steadiness(curves), curves_for_figures(curves)


def measure(session: tf.Session, networks: dict, test: dict, steps: int, finished: int) -> dict[str, np.ndarray]:
    """After the steps at which the document evaluates (1, 51, ...) and the last: one run of the test set."""
    measured = {}
    if finished % EVALUATE_EVERY == 1 or finished == steps:
        with_, without = networks["with"], networks["without"]
        scored, measured["beta"] = session.run((without.scored | with_.scored, with_.beta), test)
        for form, (accuracy, inputs) in scored.items():
            measured |= {f"accuracy_{form}": accuracy, f"mean_{form}": inputs.mean(0, np.float64)}
            measured[f"percentiles_{form}"] = towers.percentiles(inputs[:, :SHOWN_UNITS])
            # Of all units, the spread: jitter means little without the scale it is on.
            measured[f"deviation_{form}"] = inputs.std(0)
    if finished % SCALED_EVERY == 1 or finished == steps:
        scored = networks["scaled_without"].scored | networks["scaled_with"].scored
        measured |= session.run({f"accuracy_scaled_{form}": each.accuracy for form, each in scored.items()}, test)
    return {name: np.float32(value) for name, value in measured.items()}


def curves_for_figures(curves: dict[str, np.ndarray]) -> dict:
    """Accuracies and five units' means at every evaluation, percentiles and beta at 200 of them at most."""
    kept = {name: curve for name, curve in curves.items() if name.startswith("accuracy_")}
    kept |= {f"mean_{form}": curves[f"mean_{form}"][:, :SHOWN_UNITS] for form in ("plain", "batch")}
    thinned = {"beta": curves["beta"][:, :SHOWN_UNITS], "thinned_step": curves["beta_step"]}
    for form in ("plain", "population"):
        shown = curves[f"percentiles_{form}"]
        thinned |= {f"p{percent}_{form}": shown[:, place] for place, percent in enumerate(PERCENTILES)}
    stride = -(-len(curves["beta"]) // 200)
    kept |= {name: curve[::stride] for name, curve in thinned.items()}
    return {name: towers.written_curve(curve) for name, curve in kept.items()}


# --- r2rt-01: 14 times fewer steps, and regularization ----------------------------------------------------------------
def speed_ups(result: dict) -> list[float]:
    """How many times fewer steps than the plain network's to the plain network's best accuracy; 0 if never reached."""
    pairs = zip(*(column(result, f"steps_to_best_plain_{form}") for form in ("plain", "batch")), strict=True)
    return [plain / reached if reached else 0.0 for plain, reached in pairs]


def times_fewer(factor: float) -> str:
    return f"{factor:.1f} times fewer steps" if factor else "it never came"


def judge_r2rt_01(result: dict) -> Verdict:
    steps = result["paper_steps"]
    alone, package = (steps["Inception"] / steps[name] for name in (PAPER_ALONE, PAPER_PACKAGE))
    here = speed_ups(result)
    gap_with, gap_without = (
        np.subtract(column(result, f"train_accuracy_{name}"), column(result, f"final_{form}"))
        for name, form in (("with", "population"), ("without", "plain"))
    )
    measured = (
        f"Here it is {times_fewer(float(np.median(here)))}, and training accuracy less test accuracy is {spread(gap_with, 3)} "
        f"with batch norm and {spread(gap_without, 3)} without."
    )
    note = (
        f"Read in the paper's table: {PAPER_PACKAGE}, which is meant, takes {package:.1f} times fewer steps, and also has 5 "
        f"times the rate, faster decay, less L2 and no dropout; batch norm alone {alone:.1f} times fewer. Rates: flags-12."
    )
    if np.min(here) <= 1:
        return does_not_hold(measured, f"It does not speed up this network's training. {note}")
    if package < PAPER_CLAIMED:
        return does_not_hold(measured, f"The paper's table has no {PAPER_CLAIMED} times. {note}")
    if np.median(gap_with) >= np.median(gap_without):
        return does_not_hold(measured, f"It does not regularize this network. {note}")
    if np.median(here) >= PAPER_CLAIMED or alone >= PAPER_CLAIMED:
        return holds(measured, note)
    return holds_with_a_trap(f"batch norm alone is not {PAPER_CLAIMED} times as fast", measured, note)


# --- r2rt-07: weights N(0, 1) and a rate of 0.01 ----------------------------------------------------------------------
def saturation(weights: list[np.ndarray], split: bn_graph.Split) -> dict:
    """How saturated both networks start: the share of the sigmoids' inputs beyond ±4, layer by layer, in float64."""
    found = {}
    for name in ("without", "with"):
        layer = split.images[:2000].astype(np.float64)
        for number, matrix in enumerate(weights[:-1], start=1):
            z = layer @ matrix
            if name == "with":
                z = (z - z.mean(0)) / np.sqrt(z.var(0) + EPSILON)
            found[f"saturated_{name}_{number}"] = float(np.mean(np.abs(z) > SATURATED))
            layer = 1.0 / (1.0 + np.exp(-z))
    drawn = np.concatenate([each.ravel() for each in weights])
    return found | {"weights_mean": float(drawn.mean()), "weights_deviation": float(drawn.std())}


def step_lengths(weights: list[np.ndarray], split: bn_graph.Split, seed: int) -> dict:
    """The first step of the document's own program beside steps on the mean loss: as lengths and as a difference."""
    images, labels = next(bn_graph.batches(split, BATCH_SIZE, seed=seed))
    steps = {}
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = r2rt.documents_network(True, weights)
        last = tf.trainable_variables(scope=f"w{len(weights)}")[0]
        mean = tf.reduce_mean(losses(network.logits, network.y_))
        kinds = {"summed": network.train_op}
        for name, times in (("mean", 1), ("scaled", BATCH_SIZE)):
            kinds[name] = tf.train.GradientDescentOptimizer(LEARNING_RATE * times).minimize(mean, var_list=[last])
        for name, step in kinds.items():
            session.run(tf.global_variables_initializer())
            session.run(step, {network.x: images, network.y_: labels})
            steps[name] = session.run(last).astype(np.float64) - weights[-1]
    lengths = {name: np.linalg.norm(step) for name, step in steps.items()}
    difference = np.linalg.norm(steps["summed"] - steps["scaled"])
    found = {"effective_rate": float(LEARNING_RATE * lengths["summed"] / lengths["mean"])}
    return found | {"summed_step_differs_from_mean_step_by": float(difference / lengths["summed"])}


def judge_r2rt_07(result: dict) -> Verdict:
    names = ("weights_deviation", "effective_rate", "summed_step_differs_from_mean_step_by")
    deviation, rate, difference = medians(result, *names)
    without, with_ = (medians(result, f"saturated_{name}_1", f"saturated_{name}_2") for name in ("without", "with"))
    measured = (
        f"The weights' deviation is {deviation:.3f}, and a step on the loss summed over {BATCH_SIZE} is that of the rate "
        f"{rate:.2f} on its mean; at the start {without[0]:.0%} and {without[1]:.0%} of the sigmoids are beyond ±4 without "
        f"batch norm, {with_[0]:.1%} and {with_[1]:.1%} with it."
    )
    if abs(deviation - 1.0) > 0.02:
        return does_not_hold(measured, f"The weights' deviation is {deviation:.3f} and not 1.")
    if difference > 1e-3 or abs(rate / (LEARNING_RATE * BATCH_SIZE) - 1.0) > 1e-3:
        return does_not_hold(measured, f"The step on the summed loss is that of the rate {rate:.3f} on the mean loss.")
    note = "Measured of the first step of the document's own program, whose loss is a sum over the batch; today's are means."
    return holds_with_a_trap(f"0.01 is the rate {rate:.2f} in today's terms", measured, note)


# --- r2rt-08: faster, and more accurate -------------------------------------------------------------------------------
def accuracies(curves: dict[str, np.ndarray]) -> dict:
    """Accuracy at the end, and steps to an accuracy, of each way to score."""
    found = {}
    for form in (*FORMS, *(f"scaled_{form}" for form in FORMS)):
        accuracy, steps = curves[f"accuracy_{form}"], curves[f"accuracy_{form}_step"]
        last = LAST if not form.startswith("scaled") else max(1, LAST * EVALUATE_EVERY // SCALED_EVERY)
        found[f"final_{form}"] = float(accuracy[-last:].mean(dtype=np.float64))
        found[f"best_{form}"] = float(accuracy.max())
        found[f"steps_to_90_{form}"] = towers.first_step(steps, accuracy, 0.9)
    for form in FORMS:
        accuracy, steps = curves[f"accuracy_{form}"], curves["accuracy_plain_step"]
        found[f"steps_to_best_plain_{form}"] = towers.first_step(steps, accuracy, found["best_plain"])
        if form != "plain":
            found[f"ahead_{form}"] = float(np.mean(accuracy > curves["accuracy_plain"]))
    return found


def judge_r2rt_08(result: dict) -> Verdict:
    plain, batch, population = (column(result, f"final_{form}") for form in FORMS)
    gain, faster = np.subtract(batch, plain), speed_ups(result)
    scaled = np.subtract(column(result, "final_scaled_batch"), column(result, "final_scaled_plain"))
    measured = (
        f"At the end the accuracy is {spread(batch)} with batch norm and {spread(plain)} without, a gain of {spread(gain)}; by "
        f"moving statistics it is {np.median(population):.4f}. The plain network's best took {spread(faster, 1)} times fewer "
        "steps."
    )
    (start,) = medians(result, "final_scaled_plain")
    note = f"A gain of {NOTICEABLE} is seen on the document's axis. From weights scaled by 1/√inputs it is {spread(scaled)}, "
    note += f"and without batch norm they give {start:.4f}."
    if np.min(gain) < NOTICEABLE or np.min(faster) <= 1.0:
        return does_not_hold(measured, note)
    if np.median(scaled) < NOTICEABLE:
        return holds_with_a_trap("weights scaled by 1/√inputs do as well without batch norm", measured, note)
    return holds(measured, note)


# --- r2rt-09: are the inputs of the sigmoids steadier? ----------------------------------------------------------------
def steadiness(curves: dict[str, np.ndarray]) -> dict:
    """Noise and drift of the mean input over all units of the second layer: medians, in its own unit and per deviation."""
    found = {"largest_difference_of_mean_and_beta": float(np.max(np.abs(curves["mean_batch"] - curves["beta"])))}
    found["largest_beta"] = float(np.max(np.abs(curves["beta"])))
    for form in FORMS:
        means, deviations = curves[f"mean_{form}"], curves[f"deviation_{form}"].mean(0)
        noise, drift = towers.jitter(means), np.std(means, axis=0)
        of_units = {"jitter": noise, "jitter_shown": noise[:SHOWN_UNITS], "relative_jitter": noise / deviations}
        of_units |= {"relative_drift": drift / deviations, "deviation": deviations}
        of_units["width"] = np.diff(curves[f"percentiles_{form}"][:, [0, 2]], axis=1)[:, 0]
        found |= {f"{name}_{form}": float(np.median(values)) for name, values in of_units.items()}
    return found


def companion_noise(session: tf.Session, tower: Tower, feed, dataset: bn_graph.Dataset, seed: int) -> dict:
    """How much the input of one sigmoid for one image moves with the 59 other images of its training batch."""
    # Without batch norm it does not move at all. The unit is the input's own deviation over many images.
    run = session.make_callable(tower.scored["batch"].inputs, [feed[0]])
    generator = np.random.default_rng([seed, 0])
    noise = []
    for image in dataset.validation.images[:WATCHED]:
        rows = (generator.choice(dataset.train.size, BATCH_SIZE - 1, replace=False) for _ in range(COMPANIONS))
        seen = [run(np.concatenate([image[None], dataset.train.images[each]]))[0] for each in rows]
        noise.append(np.std(seen, axis=0))
    many = run(dataset.validation.images)
    return {"companion_noise": float(np.median(noise / many.std(0)))}


def judge_r2rt_09(result: dict) -> Verdict:
    difference, size = (max(column(result, f"largest_{name}")) for name in ("difference_of_mean_and_beta", "beta"))
    shown, shown_with = medians(result, "jitter_shown_plain", "jitter_shown_batch")
    plain, population = medians(result, "relative_jitter_plain", "relative_jitter_population")
    drift, drift_with = medians(result, "relative_drift_plain", "relative_drift_population")
    (noise,) = medians(result, "companion_noise")
    gain, scaled = (
        float(np.median(np.subtract(column(result, f"final_{start}batch"), column(result, f"final_{start}plain"))))
        for start in ("", "scaled_")
    )
    measured = (
        f"As the document draws them, the means have a noise of {shown_with:.4f} with batch norm and {shown:.3f} without. By "
        f"moving statistics they have {population / plain:.2f} times the plain network's noise per deviation and "
        f"{drift_with / drift:.1f} times its drift; each image gains a noise of {noise:.2f} from the others of its batch."
    )
    is_beta = difference < 1e-3 * max(1.0, size)
    curve = (
        "The document's curve with batch norm is beta, whatever the images." if is_beta else "The curve is not beta."
    )
    if shown_with >= shown:
        return does_not_hold(measured, f"The mean is no steadier with batch norm. {curve}")
    # What comes of it without batch norm, where the start alone has been changed, speaks against its being the cause.
    cause = f"The gain in accuracy, {gain:+.4f}, is {scaled:+.4f} from weights scaled by 1/√inputs"
    if scaled < NOTICEABLE <= gain:
        return does_not_hold(
            measured, f"{curve} {cause}: less noise is not what is responsible. True of the curves' noise."
        )
    if population >= CLEAR * plain or drift_with >= drift:
        trap = "by moving statistics the inputs are no steadier"
        return holds_with_a_trap(trap, measured, f"{curve} {cause}.")
    return holds(measured, f"{curve} {cause}.")


# --- The figures ------------------------------------------------------------------------------------------------------
FIGURES = {
    "accuracy.png": "Test accuracy with batch norm and without, from the same weights on the same batches. Left, the "
    "document's start, N(0, 1); right, the same weights divided by the root of their layer's inputs: see how much "
    "of the distance on the left is the start's doing.",
    "inputs.png": "Inputs of the first five sigmoids of the second layer. The two left columns are the document's: the "
    "mean over the test set; with batch norm it is beta (dashed) and says nothing of the images. The two right "
    "columns compare like with like: percentiles over the test set, with batch norm by its moving statistics.",
}


def draw(result: dict, folder: Path) -> None:
    """The document's figure, and beside it the pair that starts unsaturated; and the inputs."""
    curves = {name: towers.read_curve(strings) for name, strings in result["curves"].items()}
    draw_inputs(result, curves, folder / "inputs.png")
    styles = {
        "plain": ("without: biases", {"color": ORANGE, "lw": 1.1}),
        "batch": ("with, by the test set's own statistics (as the document)", {"color": BLUE, "lw": 1.1}),
        "population": ("with, by moving statistics (as in prediction)", {"color": BLUE, "ls": ":", "lw": 1.8}),
    }
    with figure(folder / "accuracy.png", ncols=2, sharey=True, figsize=(12, 4.6)) as (drawing, axes):
        starts = (("", "Weights N(0, 1): the document's"), ("scaled_", "The same weights / √(inputs of the layer)"))
        for axis, (prefix, title) in zip(axes, starts, strict=True):
            for form, (label, style) in styles.items():
                name = f"accuracy_{prefix}{form}"
                axis.plot(curves[f"{name}_step"][0], curves[name][0], label=label, **style)
            axis.set(ylim=(0.8, 1.0), xlim=(0, result["steps"]), xlabel="training steps", title=title)
            axis.locator_params(axis="x", nbins=5)
        axes[0].set_ylabel("accuracy on the test set")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        drawing.suptitle(f"{data_name(result)}, seed {result['runs'][0]['seed']}, batches of {BATCH_SIZE}", fontsize=11)


def draw_inputs(result: dict, curves: dict[str, np.ndarray], path: Path) -> None:
    """Four columns for each of five units: the document's two, and the fair two."""
    steps, few = curves["accuracy_plain_step"][0], curves["thinned_step"][0]
    titles = ["Document, without:\nmean of z2", "Document, with: mean of BN2\nby the test set's own statistics"]
    titles += ["Fair, without:\n15th, 50th, 85th percentile", "Fair, with: percentiles,\nmoving statistics"]
    with figure(path, nrows=SHOWN_UNITS, ncols=4, sharex=True, figsize=(12, 11)) as (drawing, axes):
        for unit, row in enumerate(axes):
            row[0].plot(steps, curves["mean_plain"][unit], color=ORANGE, lw=0.9)
            row[1].plot(steps, curves["mean_batch"][unit], color=BLUE, lw=2.6, label="mean of BN2")
            row[1].plot(few, curves["beta"][unit], color="black", lw=1, ls=(0, (4, 4)), label="beta")
            row[0].set_ylabel(f"unit {unit + 1}\nsigmoid's input")
        for places, form, color in ((axes[:, 2], "plain", ORANGE), (axes[:, 3], "population", BLUE)):
            low, middle, high = (curves[f"p{percent}_{form}"] for percent in PERCENTILES)
            # One axis for all units, so that they can be compared. The first steps start far out, and may be cut off.
            bottom, top = np.percentile(low, 2), np.percentile(high, 98)
            margin = 0.1 * (top - bottom)
            for unit, axis in enumerate(places):
                axis.fill_between(few, low[unit], high[unit], color=color, alpha=0.25, lw=0)
                axis.plot(few, middle[unit], color=color, lw=0.9)
                axis.set_ylim(bottom - margin, top + margin)
        drawing.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        for axis, below, title in zip(axes[0], axes[-1], titles, strict=True):
            axis.set_title(title, fontsize=10)
            below.set_xlabel("training steps")
            below.locator_params(axis="x", nbins=4)
        drawing.suptitle(f"Inputs of five sigmoids of the second layer over the test set of {data_name(result)}")


def summarize(result: dict) -> str:
    lines = [f"{'':<36} {'without':>10} {'with, own statistics':>22} {'with, moving':>14}"]
    rows = {"accuracy at the end": "final", "best accuracy": "best", "steps to 0.9": "steps_to_90"}
    rows |= {
        "steps to the plain one's best": "steps_to_best_plain",
        "at the end, from the scaled start": "final_scaled",
    }
    rows |= {"noise of the mean input": "jitter", "the same per deviation": "relative_jitter"}
    first = result["runs"][0]
    for label, name in rows.items():
        values = [first[f"{name}_{form}"] for form in FORMS]
        cells = [f"{value:.4f}" if isinstance(value, float) else str(value or "never") for value in values]
        lines.append(f"{label:<36} {cells[0]:>10} {cells[1]:>22} {cells[2]:>14}")
    difference = first["largest_difference_of_mean_and_beta"]
    return "\n".join(
        [*lines, "", f"The document's curve with batch norm differs from beta by {difference:.1e} at most."]
    )


if __name__ == "__main__":
    harness.run(__name__)
