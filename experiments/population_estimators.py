"""Estimators of the population statistics: exponential averages, the cumulative average, and a pass over frozen weights.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", section *Fixing the model for test time*. Claims
r2rt-15, 16, 17.

    make population-estimators        or        python -m experiments.population_estimators --mode full

Training never reads the population statistics, so one training serves every estimator: each is told the same means and
variances of the same batches. At some steps the network is rebuilt for inference with the statistics of each estimator
in turn, and scored on the test set; and its weights are frozen for one pass over training images, which gives the
statistics that inference ought to have (`bn_graph.recalibrate`).

Added to the document, which has the average with decay 0.999 only: the other decays, the cumulative average, the pass.
"""

import contextlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work
from experiments.machinery.classifiers import layer_sizes
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import data_name, listed, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The document's; the rate is that of the summed loss.
HIDDEN_UNITS, BATCH_SIZE, LEARNING_RATE = (100, 100), 60, 0.01
EPSILON, DECAY = 1e-3, 0.999
# An order of magnitude to each side; memories of 10 to 10,000 batches.
DECAYS = (0.9, 0.99, DECAY, 0.9999)
# Steps after which all estimators are scored.
MARKS = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
# One memory of the document's average: 0.999^1000 = 37 % of the start is left.
EARLY = 1000
# Of the frozen pass: means to 1/sqrt(12,000) = 0.009 standard deviations.
PASS_IMAGES = 12_000
# Batches of frozen weights that the averages of claim r2rt-16 are compared on.
FROZEN_BATCHES = 2000

# Accuracy: one standard error of 10,000 images at 0.95 is 0.002. Less is not seen; more than five of them is a fault.
NOT_SEEN, FAULT = 0.002, 0.01

PASS = "frozen weights"
CUMULATIVE = "cumulative"

# The document's number of steps; and twice the memory of its average.
FULL = Mode(data="mnist", steps=10_000, seeds=[0, 1, 2, 3, 4])
QUICK = Mode(data="digits", steps=2_000)


def exponential(decay: float) -> str:
    return f"EMA {decay:g}"


ESTIMATORS = (*map(exponential, DECAYS), CUMULATIVE)


class Averages:
    """All estimators side by side, of any number of statistics at once; in float64, from the start (0, 1)."""

    def __init__(self, start: np.ndarray):
        self.count = 0
        self.values = {name: start.astype(np.float64) for name in ESTIMATORS}

    def update(self, batch: np.ndarray) -> None:
        self.count += 1
        for decay in DECAYS:
            self.values[exponential(decay)] *= decay
            self.values[exponential(decay)] += (1 - decay) * batch
        self.values[CUMULATIVE] += (batch - self.values[CUMULATIVE]) / self.count


def watched_wrapper(inputs, is_training, name):
    """The library's wrapper, with the document's settings; notes the moments of the batches it is given."""
    if is_training:
        tf.add_to_collection("batch_moments", tf.stack(tf.nn.moments(inputs, [0])))
    return bn_graph.batch_norm_wrapper(inputs, is_training, decay=DECAY, epsilon=EPSILON, name=name)


def run(settings: harness.Settings) -> dict:
    identity = {"batch": BATCH_SIZE, "rate": LEARNING_RATE, "decays": DECAYS, "marks": MARKS}
    identity |= {"images": PASS_IMAGES, "frozen": FROZEN_BATCHES}
    measures = {seed: partial(measure_seed, settings, seed) for seed in settings.seeds}
    runs = [kept_work.measured_once(settings, seed, "", measure, **identity) for seed, measure in measures.items()]
    return {"runs": runs, "start_left": start_left(settings.steps)}


# --- The training, and every estimator beside it ----------------------------------------------------------------------
def measure_seed(settings: harness.Settings, seed: int) -> dict:
    """One training. At the marks every estimator is scored; at its end come the averages over frozen weights."""
    dataset = settings.dataset
    weights = bn_graph.normal_weights(layer_sizes(dataset, HIDDEN_UNITS), seed)
    marks = [mark for mark in MARKS if mark < settings.steps] + [settings.steps]
    # [layer, mean or variance, unit]: every estimator starts at (0, 1), as the document's variables do.
    averages = Averages(np.stack([np.zeros((2, 100)), np.ones((2, 100))], axis=1))
    measured = []
    with (
        tf.Graph().as_default(),
        tf.Session(config=bn_graph.session_config()) as session,
        contextlib.closing(Scorer(dataset, weights)) as scorer,
    ):
        network = bn_graph.build_graph(True, weights, normalizer=watched_wrapper, learning_rate=LEARNING_RATE)
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        moments = tf.get_collection("batch_moments")
        session.run(tf.global_variables_initializer())
        step = bn_graph.step_of(network)._replace(recorded=moments)
        advance = harness.LOOPS[settings.loop](session, step, dataset.train, batch_size=BATCH_SIZE, seed=seed)
        chunks = harness.advance_with_progress(advance, range(settings.steps), f"seed {seed}", marks.__contains__)
        for finished, (recorded,) in chunks:
            # Step by step, the moments of each layer: the batches that the averages in the graph see too.
            for batch in zip(*recorded, strict=True):
                averages.update(np.stack(batch))
            if finished in marks:
                scorer.load(session.run(variables))
                measured.append({"step": finished} | score_all(scorer, averages))
        # [layer, mean or variance, unit] of the library's own average, which should be the one beside it.
        library = np.array(session.run(bn_graph.moving_statistics())).reshape(2, 2, -1)
        batches = bn_graph.batches(dataset.train, BATCH_SIZE, seed=seed, start=settings.steps)
        frozen = frozen_averages(session, network, moments[0], batches, averages, dataset)
    difference = np.abs(library - averages.values[exponential(DECAY)]) / (1 + np.abs(library))
    return {"seed": seed, "marks": measured, "frozen": frozen, "library_differs": float(difference.max())}


def computed_anew(session, feeds, method):
    """The statistics of the trained weights, which stand still, over batches that are fed; they take the averages' place."""
    return bn_graph.recalibrate(session, feeds, method=method, config=bn_graph.session_config())


class Scorer:
    """A second copy of the network, for training and for inference, into which weights and statistics are loaded."""

    def __init__(self, dataset: bn_graph.Dataset, weights: list[np.ndarray]):
        self.dataset = dataset
        self.images = dataset.train.images[:PASS_IMAGES]
        with tf.Graph().as_default() as graph:
            self.training = bn_graph.build_graph(True, weights, normalizer=watched_wrapper)
            with tf.variable_scope("", reuse=True):
                self.inference = bn_graph.build_graph(False, weights, normalizer=watched_wrapper)
            self.variables = {variable.op.name: variable for variable in tf.global_variables()}
            self.session = tf.Session(graph=graph, config=bn_graph.session_config())

    def close(self) -> None:
        self.session.close()

    def load(self, values: dict[str, np.ndarray]) -> None:
        assign_values(self.session, [(self.variables[name], value) for name, value in values.items()])

    def load_statistics(self, statistics: np.ndarray) -> None:
        names = [f"bn{layer}/moving_{kind}" for layer in (1, 2) for kind in ("mean", "variance")]
        self.load(dict(zip(names, statistics.reshape(4, -1).astype(np.float32), strict=True)))

    def score(self) -> dict[str, float]:
        test, network = self.dataset.test, self.inference
        feeds = {network.x: test.images, network.y_: test.labels}
        accuracy, loss = self.session.run([network.accuracy, network.loss], feeds)
        return {"accuracy": float(accuracy), "loss": float(loss) / test.size}

    def frozen_pass(self, method: str) -> np.ndarray:
        """Statistics of the frozen weights over training images; they are loaded afterwards."""
        starts = range(0, len(self.images) - BATCH_SIZE + 1, BATCH_SIZE)
        feeds = [{self.training.x: self.images[start : start + BATCH_SIZE]} for start in starts]
        if method == "pooled":
            feeds = [{self.training.x: self.images}]
        layers = computed_anew(self.session, feeds, method)
        return np.stack([np.stack([layer.mean, layer.variance]) for layer in layers])


def score_all(scorer: Scorer, averages: Averages) -> dict:
    """Accuracy, loss and distance from the population for every estimator, at the weights that are loaded."""
    population = scorer.frozen_pass("pooled")
    scores = {PASS: scorer.score() | {"distance": 0.0}}
    paper = scorer.frozen_pass("paper")
    scores["frozen, paper's"] = scorer.score() | {"distance": distance(paper, population)}
    for name, statistics in averages.values.items():
        scorer.load_statistics(statistics)
        scores[name] = scorer.score() | {"distance": distance(statistics, population)}
    return {name: {key: float(f"{value:.5g}") for key, value in score.items()} for name, score in scores.items()}


def distance(statistics: np.ndarray, population: np.ndarray) -> float:
    """Of the means, in standard deviations of the population; mean over units (and layers)."""
    deviation = np.sqrt(population[..., 1, :] + EPSILON)
    return float(np.mean(np.abs(statistics[..., 0, :] - population[..., 0, :]) / deviation))


# --- Reading the result -----------------------------------------------------------------------------------------------
def scores(result: dict, name: str, key: str, step: int) -> list[float]:
    """Of every seed, at the mark."""
    return [mark[name][key] for each in result["runs"] for mark in each["marks"] if mark["step"] == step]


def _steps(result: dict) -> list[int]:
    return [mark["step"] for mark in result["runs"][0]["marks"]]


def _advantage(result: dict, name: str, other: str, step: int) -> float:
    """By how much of accuracy one estimator is ahead of another; the median over the seeds."""
    pairs = zip(scores(result, name, "accuracy", step), scores(result, other, "accuracy", step), strict=True)
    return float(np.median([a - b for a, b in pairs]))


# --- r2rt-15: is it better to estimate them after the training? -------------------------------------------------------
def judge_r2rt_15(result: dict) -> Verdict:
    average, last = exponential(DECAY), _steps(result)[-1]
    early = max(step for step in _steps(result) if step <= EARLY)
    ahead = {decay: [_advantage(result, PASS, exponential(decay), step) for step in (early, last)] for decay in DECAYS}
    ahead_early, ahead_late = ahead[DECAY]
    away = float(np.median(scores(result, average, "distance", last)))
    measured = (
        f"At step {last:,} the average's means lie {away:.3f} standard deviations from those of frozen weights, and the "
        f"accuracy is {spread(scores(result, PASS, 'accuracy', last))} with frozen weights and "
        f"{spread(scores(result, average, 'accuracy', last))} with the average."
    )
    at_early, at_late = (", ".join(f"{each[k]:+.4f}" for each in ahead.values()) for k in (0, 1))
    note = (
        f"Frozen weights are ahead of averages of decay {', '.join(f'{decay:g}' for decay in DECAYS)} by {at_early} at step "
        f"{early:,}, and by {at_late} at step {last:,}: what counts is the average's memory against the training."
    )
    if min(ahead_early, ahead_late) < -NOT_SEEN or away == 0:
        return does_not_hold(measured, f"The pass over frozen weights is no better. {note}")
    if ahead_late > FAULT:
        return does_not_hold(measured, f"At the end doing both at once still costs {ahead_late:.3f}. {note}")
    if ahead_early > FAULT:
        trap = f"in a training of {early:,} steps doing both at once costs {ahead_early:.2f} of accuracy"
        return holds_with_a_trap(trap, measured, note)
    return holds(measured, note)


# --- r2rt-16: is the simple average better? ---------------------------------------------------------------------------
def frozen_averages(session, network, moments, batches: Iterable, trained: Averages, dataset) -> dict[str, float]:
    """The averages over batches of weights that stand still: how far from the population does each end?

    Of the first layer, whose inputs don't depend on how the batch is normalized: there the population is no matter of
    choice. One exponential average starts at (0, 1) and one goes on from training.
    """
    inputs = (dataset.train.images @ session.run(tf.trainable_variables()[0])).astype(np.float64)
    population = np.stack([inputs.mean(0), inputs.var(0)])
    fresh = Averages(np.stack([np.zeros(100), np.ones(100)]))
    going_on = trained.values[exponential(DECAY)][0].copy()
    for _ in range(FROZEN_BATCHES):
        batch = session.run(moments, {network.x: next(batches)[0]}).astype(np.float64)
        fresh.update(batch)
        going_on = going_on * DECAY + batch * (1 - DECAY)
    return {
        "simple average": distance(fresh.values[CUMULATIVE], population),
        "EMA from (0, 1)": distance(fresh.values[exponential(DECAY)], population),
        "EMA from training": distance(going_on, population),
        "at the end of training": distance(trained.values[exponential(DECAY)][0], population),
        "cumulative since the start": distance(trained.values[CUMULATIVE][0], population),
    }


def judge_r2rt_16(result: dict) -> Verdict:
    average, last = exponential(DECAY), _steps(result)[-1]
    ahead = _advantage(result, CUMULATIVE, average, last)
    simple, exponentially, trained, since_start = (
        float(np.median([each["frozen"][key] for each in result["runs"]]))
        for key in ("simple average", "EMA from training", "at the end of training", "cumulative since the start")
    )
    measured = (
        f"Taken during training, the simple average's means lie {since_start:.3f} standard deviations from the population's "
        f"and the exponential one's {trained:.3f}, and its accuracy is {ahead:+.4f} ahead; taken over frozen weights, "
        f"{simple:.4f} and {exponentially:.4f}."
    )
    better_frozen, better_training = simple < exponentially, since_start < trained and ahead > -NOT_SEEN
    if better_training and better_frozen:
        return holds(measured, "In both cases the simple average is the nearer one.")
    if better_training:
        return holds_with_a_trap(
            "over frozen weights the exponential one is nearer", measured, "Judged during training."
        )
    note = "The document's averages are taken during training, where a simple one counts batches of weights long gone."
    if better_frozen:
        note += f" Over {FROZEN_BATCHES:,} batches of weights that stand still it is true."
    return does_not_hold(measured, note)


# --- r2rt-17: decay 0.999, and closer to 1 with more data -------------------------------------------------------------
def start_left(steps: int) -> list[dict]:
    """How much of the start value the library's wrapper still holds after n updates, beside decay^n; for every decay.

    The batch is ever the same, with mean 1: what the mean lacks of 1 is what is left of its start, 0. The variance is 0,
    and so what is left of its start, 1, is what it holds.
    """
    marks = [mark for mark in (100, 1000, 10_000) if mark <= max(steps, EARLY)]
    rows = []
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        batch = tf.ones([2, 1])
        named = {f"d{place}": decay for place, decay in enumerate(DECAYS)}
        outputs = [bn_graph.batch_norm_wrapper(batch, True, decay=decay, name=name) for name, decay in named.items()]
        statistics = bn_graph.moving_statistics()
        every, initializer = tf.group(*outputs), tf.global_variables_initializer()
        session.run(initializer)
        update = session.make_callable(every)
        for step in range(1, marks[-1] + 1):
            update()
            if step in marks:
                values = np.array(session.run(statistics)).reshape(len(DECAYS), 2)
                for decay, (mean, variance) in zip(DECAYS, values, strict=True):
                    left = {"mean": float(1 - mean), "variance": float(variance), "expected": decay**step}
                    rows.append({"decay": decay, "step": step} | left)
    return rows


def judge_r2rt_17(result: dict) -> Verdict:
    rows = result["start_left"]
    error = max(abs(row[key] - row["expected"]) for row in rows for key in ("mean", "variance"))
    best = _best_decays(result)
    last, decay = list(best.items())[-1]
    left = listed(f"{row['mean']:.2g} after {row['step']:,}" for row in rows if row["decay"] == DECAY)
    nearest = listed(f"{each:g} after {step:,}" for step, each in best.items())
    measured = (
        f"The decay that comes nearest to the population is {nearest} steps; of its start, an average of decay {DECAY:g} "
        f"still holds {left} steps."
    )
    behind = max(_advantage(result, exponential(each), exponential(DECAY), last) for each in DECAYS)
    note = (
        f"More data is read as more steps: what counts is updates, not examples. At {last:,} steps the nearest is {decay:g}, "
        f"and {DECAY:g} is {max(behind, 0):.4f} of accuracy behind the best."
    )
    if error > 1e-3:
        return does_not_hold(measured, f"What is left of the start differs from decay^n by up to {error:.2g}.")
    if list(best.values()) != sorted(best.values()) or len(set(best.values())) == 1:
        return does_not_hold(measured, f"The best decay doesn't grow with the number of steps. {note}")
    return (does_not_hold if behind > FAULT else holds)(measured, note)


def _best_decays(result: dict) -> dict[int, float]:
    """At marks a factor of ten apart, and the last: the decay whose means are nearest to the population's."""
    steps = [step for step in _steps(result) if step in (20, 100, 1000)] + [_steps(result)[-1]]
    return {
        step: min(DECAYS, key=lambda decay: np.median(scores(result, exponential(decay), "distance", step)))
        for step in dict.fromkeys(steps)
    }


# --- The figure -------------------------------------------------------------------------------------------------------

_LINES = {
    PASS: {"color": BLUE, "linewidth": 2.4, "marker": "o"},
    # From pale to dark as the memory grows; each has a marker too. The document's is the broad one.
    "EMA 0.9": {"color": "#F0B27A", "marker": "v"},
    "EMA 0.99": {"color": "#DD8A3C", "marker": "D"},
    "EMA 0.999": {"color": ORANGE, "linewidth": 2.4, "marker": "s"},
    "EMA 0.9999": {"color": "#6B2D00", "marker": "x"},
    CUMULATIVE: {"color": GREY, "marker": "^"},
}


FIGURES = {
    "population_estimators.png": "Left, test accuracy of one training with the statistics of each estimator; right, "
    "how far their means are from those of the frozen weights. A long average holds its start (0, 1) for thousands of "
    "steps, and predicts badly until it has forgotten it; the pass over frozen weights has no such time."
}


def draw(result: dict, folder: Path) -> None:
    """Accuracy and distance from the population against the step, for every estimator."""
    steps = _steps(result)
    with figure(folder / "population_estimators.png", ncols=2, figsize=(11, 4.7)) as (drawing, (left, right)):
        for name, style in _LINES.items():
            curves = {
                key: [np.median(scores(result, name, key, step)) for step in steps] for key in ("accuracy", "distance")
            }
            left.plot(steps, curves["accuracy"], label=_label(name), markersize=4, **style)
            if name != PASS:
                right.plot(steps, curves["distance"], markersize=4, **style)
        left.set(xscale="log", xlabel="training steps", ylabel="test accuracy with these statistics", ylim=(0, 1))
        right.set(
            xscale="log", yscale="log", xlabel="training steps", ylabel="distance of the means (standard deviations)"
        )
        left.set_title("What the network predicts with them")
        right.set_title("How far they are from the frozen pass")
        drawing.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6)
        drawing.suptitle(f"{data_name(result)}, {seeds(result)}, medians", fontsize=10)


def _label(name: str) -> str:
    return {PASS: "pass over frozen weights", CUMULATIVE: "average of all batches so far"}.get(name, name)


def summarize(result: dict) -> str:
    steps = _steps(result)
    shown = [step for step in steps if step in (100, 1000)] + [steps[-1]]
    lines = [f"{'test accuracy after':28}" + "".join(f"{step:>10,}" for step in shown) + "  steps"]
    for name in (*_LINES, "frozen, paper's"):
        accuracies = [np.median(scores(result, name, "accuracy", step)) for step in shown]
        lines.append(f"{_label(name):28}" + "".join(f"{accuracy:>10.4f}" for accuracy in accuracies))
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
