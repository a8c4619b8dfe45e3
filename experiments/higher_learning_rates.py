"""Learning rates and training batch sizes with and without batch norm; and whether gamma and beta learn to undo it.

Documents: flags, "trainable against training", *Opening* and *Conclusion*, claims flags-12 and flags-13; and the Model
and Solver classes' *Introduction*, claim solver-16.

    make higher-learning-rates        or        python -m experiments.higher_learning_rates --mode full

None of the documents sweeps anything; the network is the solver's (inputs–32–32–10, ReLU, `tf.layers` batch norm before
it); for the recurrent half of flags-13 a plain recurrent layer reads the image in strips, and one batch norm serves all its
steps. Every pair of networks has the same weights and batches. Trainings are short, since it is early in training that rates
differ, and predictions are by moving statistics, as in use.

For solver-16 the layer is put where it is not needed in three ways: the loss asks for the layer's own inputs back; a
network that was trained without it gets it put in and is otherwise frozen; and ordinary training of everything.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work, swept
from experiments.machinery.classifiers import layer_sizes
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import data_name, listed, seeds, spread
from experiments.machinery.swept import Network, build, build_recurrent, initial_weights, score, train
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The solver document's; ε is tf.layers' default, which it has.
HIDDEN_UNITS, BATCH_SIZE, EPSILON = (32, 32), 32, 1e-3
# 0.01 of Adam is the solver document's.
RATES = {"gradient descent": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), "Adam": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)}
# The claim list's, and one above the document's.
BATCH_SIZES = (1, 2, 4, 8, 32, 128)
# Of Adam; each form is taken at the better of the two, so that neither is favoured.
BATCH_RATES = (0.001, 0.01)
# Of Adam, in the experiments on gamma and beta.
UNDO_RATE = 0.01
FORMS, OWN_STATISTICS = ("with", "without"), "by own statistics"

# A rate is usable if accuracy is at most this much below the form's own best.
USABLE = 0.05
# One standard error of 10,000 images at accuracy 0.95.
NOT_SEEN = 0.002
# Gamma and beta have undone the layer if a tenth of their distance, or less, is left.
UNDONE = 0.1

# 0.6 of an epoch at batch 32: enough for 0.9 and more where a rate is usable.
FULL = Mode(data="mnist", steps=1000, seeds=[0, 1, 2, 3, 4])
QUICK = Mode(data="digits", steps=300)


def run(settings: Settings) -> dict:
    identity = {"rates": RATES, "batches": [BATCH_SIZES, BATCH_RATES, BATCH_SIZE], "undo": UNDO_RATE}
    runs = []
    with contextlib.ExitStack() as opened:
        built = functools.cache(partial(build_once, settings, opened))
        parts = {"rates": partial(sweep_rates, built=built), "batches": partial(sweep_batches, built=built)}
        parts |= {"recurrent": sweep_recurrent, "undo": partial(undo, built=built)}
        for seed in settings.seeds:
            measured = {"seed": seed}
            for place in harness.progress_bar(f"seed {seed}: rates, batches, recurrent, undoing")(range(len(parts))):
                name, measure = list(parts.items())[place]
                measure = partial(measure, settings, seed)
                own = {"strips": [swept.RECURRENT_UNITS, swept.STRIPS]} if name == "recurrent" else {}
                measured[name] = kept_work.measured_once(settings, seed, name, measure, **identity, **own)
            runs.append(measured)
    return {"runs": runs}


def build_once(
    settings: Settings, opened: contextlib.ExitStack, form: str, optimizer: str, *, train_weights: bool = True
) -> tuple[tf.Session, Network]:
    """A network in a session of its own, for all rates, batch sizes and seeds, until `opened` is closed."""
    session = opened.enter_context(contextlib.closing(tf.Session(graph=tf.Graph(), config=bn_graph.session_config())))
    with session.graph.as_default():
        sizes = layer_sizes(settings.dataset, HIDDEN_UNITS)
        return session, build(sizes, form, optimizer, train_weights=train_weights)


# --- flags-12: higher learning rates ----------------------------------------------------------------------------------
def sweep_rates(settings: Settings, seed: int, built: Callable) -> dict:
    """Accuracy by optimizer, form and rate; with batch norm also by the test set's own statistics.

    Those tell apart what a high rate does to the weights and what it does to moving averages, which lag behind them.
    """
    dataset = settings.dataset
    weights = initial_weights(layer_sizes(dataset, HIDDEN_UNITS), seed)
    options = {"batch": BATCH_SIZE, "steps": settings.steps, "seed": seed, "loop": settings.loop}
    result = {}
    for optimizer, rates in RATES.items():
        accuracies = result[optimizer] = {"with": [], "without": [], OWN_STATISTICS: []}
        for form in FORMS:
            session, network = built(form, optimizer)
            for rate in rates:
                accuracies[form].append(train(session, network, weights, dataset, rate=rate, **options))
                if form == "with":
                    accuracies[OWN_STATISTICS].append(score(session, network, dataset, by_batch=True))
    return result


def median_accuracies(result: dict, optimizer: str, form: str) -> np.ndarray:
    """Over the seeds, for every rate."""
    return np.median([each["rates"][optimizer][form] for each in result["runs"]], axis=0)


def highest_usable(accuracies: Sequence[float], rates: Sequence[float]) -> float:
    """The highest rate that costs at most `USABLE` of accuracy against the best one."""
    return max(rate for rate, accuracy in zip(rates, accuracies, strict=True) if accuracy >= max(accuracies) - USABLE)


def judge_flags_12(result: dict) -> Verdict:
    kinds = (*FORMS, OWN_STATISTICS)
    accuracies = {optimizer: [median_accuracies(result, optimizer, kind) for kind in kinds] for optimizer in RATES}
    usable = {
        optimizer: [highest_usable(each, RATES[optimizer]) for each in accuracies[optimizer]] for optimizer in RATES
    }
    measured = "; ".join(
        f"with {optimizer} the highest usable rate is {having:g} with batch norm ({own:g} by the test set's own statistics) "
        f"and {lacking:g} without"
        for optimizer, (having, lacking, own) in usable.items()
    )
    measured = f"{measured[0].upper()}{measured[1:]}."
    best = "; ".join(
        f"{optimizer}, {max(having):.3f} with and {max(lacking):.3f} without"
        for optimizer, (having, lacking, _) in accuracies.items()
    )
    note = f"Usable is what costs at most {USABLE} of the form's best accuracy after {result['steps']:,} steps. Best: {best}."
    higher = [optimizer for optimizer, (having, lacking, _) in usable.items() if having > lacking]
    if len(higher) == len(RATES):
        return holds(measured, note)
    # The document names no optimizer; gradient descent is the paper's.
    if "gradient descent" in higher:
        return holds_with_a_trap("not with Adam", measured, note)
    return does_not_hold(measured, f"{note} True of {' and '.join(higher)}." if higher else note)


# --- flags-13: large batches ------------------------------------------------------------------------------------------
def sweep_batches(settings: Settings, seed: int, built: Callable) -> dict:
    """Accuracy by form and batch size, as many steps at each; at the better of two rates."""
    weights = initial_weights(layer_sizes(settings.dataset, HIDDEN_UNITS), seed)
    options = {"steps": settings.steps, "seed": seed, "loop": settings.loop}
    result = {form: [] for form in FORMS}
    for form in FORMS:
        train_at = partial(train, *built(form, "Adam"), weights, settings.dataset, **options)
        for batch in BATCH_SIZES:
            result[form].append(max(train_at(batch=batch, rate=rate) for rate in BATCH_RATES))
    return result


def sweep_recurrent(settings: Settings, seed: int) -> dict:
    """Accuracy by form of a recurrent network, at the better of two rates."""
    options = {"batch": BATCH_SIZE, "steps": settings.steps, "seed": seed, "loop": settings.loop}
    result = {}
    for form in FORMS:
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            network = build_recurrent(settings.dataset, form, seed)
            result[form] = max(
                train(session, network, [], settings.dataset, rate=rate, **options) for rate in BATCH_RATES
            )
    return result


def judge_flags_13(result: dict) -> Verdict:
    seeds_ahead = [np.subtract(each["batches"]["with"], each["batches"]["without"]) for each in result["runs"]]
    ahead = dict(zip(BATCH_SIZES, np.median(seeds_ahead, axis=0).tolist(), strict=True))
    recurrent = [each["recurrent"]["with"] - each["recurrent"]["without"] for each in result["runs"]]
    measured = (
        f"In a feed-forward network the accuracy with batch norm is ahead by "
        f"{listed(f'{value:+.3f}' for value in ahead.values())} in training batches of {listed(ahead)} examples; in a "
        f"recurrent one, with one layer for all steps, by {spread(recurrent, 3)} in batches of {BATCH_SIZE}."
    )
    large = [value for batch, value in ahead.items() if batch >= BATCH_SIZE]
    losing = [batch for batch, value in ahead.items() if value < -NOT_SEEN]
    note = (
        f"Each form at the better of Adam's {BATCH_RATES[0]} and {BATCH_RATES[1]}, {result['steps']:,} steps; batch norm loses "
        f"in batches of {', '.join(map(str, losing)) or 'no size'}. Read as what it is good for as it is: what else it takes "
        "in a recurrent network is r2rt-25's."
    )
    if min(large) < -NOT_SEEN:
        return does_not_hold(measured, note)
    if not losing:
        return does_not_hold(measured, f"Small batches suit it as well. {note}")
    if np.median(recurrent) >= -NOT_SEEN:
        return does_not_hold(measured, f"A recurrent network bears it as well. {note}")
    return holds(measured, note)


# --- solver-16: do gamma and beta learn to undo the layer? ------------------------------------------------------------
def undo(settings: Settings, seed: int, built: Callable) -> dict:
    """What is left, of 1, of the way from gamma = 1, beta = 0 to undoing the layer, in three settings."""
    sizes, dataset = layer_sizes(settings.dataset, HIDDEN_UNITS), settings.dataset
    options = {"batch": BATCH_SIZE, "rate": UNDO_RATE, "steps": settings.steps, "seed": seed, "loop": settings.loop}
    session, plain = built("without", "Adam")
    accuracy_plain = train(session, plain, initial_weights(sizes, seed), dataset, **options)
    trained = session.run(plain.weights)
    sums = session.run(plain.sums, {plain.x: dataset.train.images, plain.is_training: False})
    result = {"asked for": asked_for(sums[0], settings.steps, seed, settings.loop), "accuracy_plain": accuracy_plain}
    for name, weights, train_weights in (("put in", trained, False), ("ordinary", initial_weights(sizes, seed), True)):
        session, network = built("with", "Adam") if train_weights else built("with", "Adam", train_weights=False)
        after = train(session, network, weights, dataset, **options)
        result[name] = left_of(session, network, dataset) | {"accuracy_after": after}
    return result


def left_of(session: tf.Session, network: Network, dataset: bn_graph.Dataset) -> dict[str, float]:
    """How far gamma and beta are from √(σ² + ε) and μ, beside how far 1 and 0 are; σ and μ of all training images now.

    The images are run in training mode, since that is how the inputs of the second layer came about in training.
    """
    feeds = {network.x: dataset.train.images, network.is_training: True}
    rows = zip(session.run(network.sums, feeds), session.run(network.layers), strict=True)
    return distance_left([(values.mean(0), values.var(0), gamma, beta) for values, (gamma, beta) in rows])


def distance_left(layers: Sequence[tuple[np.ndarray, ...]]) -> dict[str, float]:
    """Of (mean, variance, gamma, beta) of each layer: the distance at the start and what share of it there is now."""
    start, now = [], []
    for mean, variance, gamma, beta in layers:
        deviation = np.sqrt(variance + EPSILON)
        start += [1 - deviation, 0 - mean]
        now += [gamma - deviation, beta - mean]
    first, last = (float(np.linalg.norm(np.concatenate(parts))) for parts in (start, now))
    return {"distance_before": float(f"{first:.5g}"), "distance_after": float(f"{last:.5g}"), "left": last / first}


def asked_for(values: np.ndarray, steps: int, seed: int, loop: str = "graph") -> dict[str, float]:
    """A layer that only has to hand its inputs on: gamma and beta are trained so that outputs equal inputs."""
    examples = bn_graph.Split(values, values)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x = tf.placeholder(tf.float32, [None, values.shape[1]])
        outputs = bn_graph.batch_norm_wrapper(x, True, epsilon=EPSILON, name="bn1")
        train_op = tf.train.AdamOptimizer(10 * UNDO_RATE).minimize(tf.reduce_mean(tf.square(outputs - x)))
        session.run(tf.global_variables_initializer())
        size = 10 * BATCH_SIZE  # larger: μ and σ of a batch differ less
        advance = harness.LOOPS[loop](session, bn_graph.Step(train_op, x, x), examples, batch_size=size, seed=seed)
        for chunk in bn_graph.chunks(0, steps):
            advance(chunk.start, chunk.stop)
        gamma, beta = session.run(tf.trainable_variables())
    return distance_left([(values.mean(0), values.var(0), gamma, beta)])


def judge_solver_16(result: dict) -> Verdict:
    asked, put_in, ordinary = (
        [each["undo"][name]["left"] for each in result["runs"]] for name in ("asked for", "put in", "ordinary")
    )
    measured = (
        f"Of the distance from the layer's start to its being undone, {spread(ordinary, 2)} is left in ordinary training, and "
        f"{spread(put_in, 2)} where it is put into a trained network that did without."
    )
    plain = float(np.median([each["undo"]["accuracy_plain"] for each in result["runs"]]))
    after = float(np.median([each["undo"]["put in"]["accuracy_after"] for each in result["runs"]]))
    undone = [np.median(values) <= UNDONE for values in (ordinary, put_in)]
    if all(undone):
        return holds(measured, "Gamma = √(σ² + ε) and beta = μ were learned in both.")
    note = (
        f"Put into a network that scores {plain:.3f}, they brought it to {after:.3f} in {result['steps']:,} steps, "
        f"{'by' if undone[1] else 'and not by'} undoing the layer."
    )
    if np.median(asked) <= UNDONE:
        note += f" True where the loss asks for the layer's own inputs: {spread(asked, 2)} is left."
    return does_not_hold(measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {
    "higher_learning_rates.png": "Test accuracy after a short training, with batch norm and without. Left and middle: "
    "how far to the right each curve stays up is how high a learning rate it bears. Right: small training batches, "
    "where batch norm fails."
}


def draw(result: dict, folder: Path) -> None:
    """Accuracy against rate, for each optimizer, and against the training batch."""
    with figure(folder / "higher_learning_rates.png", ncols=3, sharey=True, figsize=(12, 4.6)) as (drawing, axes):
        for axis, optimizer in zip(axes, RATES, strict=False):
            rates = RATES[optimizer]
            for form in FORMS:
                draw_curve(axis, rates, [each["rates"][optimizer][form] for each in result["runs"]], form)
            own = median_accuracies(result, optimizer, OWN_STATISTICS)
            axis.plot(rates, own, color=BLUE, linestyle=":", label="with, by the test set's own statistics")
            axis.set(xscale="log", xlabel="learning rate", title=optimizer[:1].upper() + optimizer[1:])
        for form in FORMS:
            draw_curve(axes[2], BATCH_SIZES, [each["batches"][form] for each in result["runs"]], form)
        axes[2].set(xscale="log", xlabel="examples in a training batch", title="Adam, the better of two rates")
        axes[2].set_xticks(BATCH_SIZES, map(str, BATCH_SIZES))
        axes[2].minorticks_off()
        axes[0].set(ylabel="test accuracy (by moving statistics)", ylim=(0, 1))
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        run = f"{data_name(result)}, {result['steps']:,} steps, {seeds(result)}"
        drawing.suptitle(f"{run}: medians, and from the least to the most", fontsize=10)


def draw_curve(axis, places: Sequence[float], values: Sequence[Sequence[float]], form: str) -> None:
    colour, marker = {"with": (BLUE, "o"), "without": (ORANGE, "s")}[form]
    axis.plot(places, np.median(values, axis=0), color=colour, marker=marker, label=f"{form} batch norm")
    axis.fill_between(places, np.min(values, axis=0), np.max(values, axis=0), color=colour, alpha=0.2, linewidth=0)


def summarize(result: dict) -> str:
    def row(name: str, values: Sequence[float], form: str) -> str:
        return f"{name:30}" + "".join(f"{value:>8{form}}" for value in values)

    lines = []
    for optimizer, rates in RATES.items():
        lines.append(row(f"{optimizer}, rate", rates, "g"))
        forms = ("with", OWN_STATISTICS, "without")
        lines += [row(f"  {form}", median_accuracies(result, optimizer, form), ".3f") for form in forms]
    lines.append(row("training batch", BATCH_SIZES, ""))
    for form in FORMS:
        lines.append(row(f"  {form}", np.median([run["batches"][form] for run in result["runs"]], axis=0), ".3f"))
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
