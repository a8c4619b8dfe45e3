"""A loop that scores its training graph on the test set: what the document's second program does to its statistics.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", sections *Fixing the model for test time* and *An
implementation that works at test time*. Claims r2rt-18, 19, 22.

    make scoring-leak        or        python -m experiments.scoring_leak --mode full

The document's second network as it is (`machinery/r2rt.py`) is trained twice, from the same weights on the same batches.
The first is trained and nothing else; it is single_example's too. The second is trained by the document's own loop, which
scores the *training* graph on the test set every 50 steps, and so averages test statistics into the population's. Then two
looks at the graph itself: what one run of it updates, and what becomes of its last bias.

Changed from the document: the weights and batches are drawn by NumPy, variables have names, and steps are counted.
"""

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work
from experiments.machinery.classifiers import batches_in_order
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.r2rt import (
    BATCH_SIZE,
    DECAY,
    EPSILON,
    HIDDEN_UNITS,
    LEARNING_RATE,
    documents_network,
    first_weights,
)
from experiments.machinery.results import column, largest, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap
from experiments.single_example import STANDARD_ERRORS, STEPS, train_repaired_network

# The document's loop scores the test set after the steps 0, 50, 100, ...; the last is 9,950.
SCORED_EVERY = 50
# What the document prints at the end of its second training.
FINAL_ACCURACY = 0.9532

FULL = Mode(data="mnist", steps=STEPS, seeds=[0, 1, 2, 3, 4])
QUICK = Mode(data="auto", steps=STEPS, seeds=[0])


def run(settings: Settings) -> dict:
    # From the last seed to the first: single_example, which may train one of the networks beside it, begins with the first.
    runs = [run_seed(settings, seed) for seed in reversed(settings.seeds)]
    return {
        "runs": runs[::-1],
        "update": one_update(settings),
        "share_of_test_batches": share_of_test_batches(settings.steps),
        "last_bias": {
            form: last_bias(settings, used) for form, used in (("first graph", True), ("build_graph", False))
        },
    }


def run_seed(settings: Settings, seed: int) -> dict:
    weights, labels = first_weights(settings.dataset, seed), settings.dataset.test.labels.argmax(1)
    clean, predicted_clean = by_moving_statistics(
        settings, weights, train_repaired_network(settings, seed, weights, "document")
    )
    leak = training_that_scores(settings, seed, weights)
    leaking, predicted_leaking = by_moving_statistics(settings, weights, leak["checkpoint"])
    loop = {
        "last_scored_step": leak["last_scored_step"],
        "last_score": leak["scores"][-1],
        "scores": [round(score, 4) for score in leak["scores"]],
        "population_accuracy": float(np.mean(predicted_leaking == labels)),
        "predictions_changed": int(np.sum(predicted_leaking != predicted_clean)),
        "same_weights": all(np.array_equal(clean[name], leaking[name]) for name in ("w1", "w2", "w3")),
    }
    accuracy = float(np.mean(predicted_clean == labels))
    return {
        "seed": seed,
        "test_accuracy_after": accuracy,
        "document_loop": loop | distance_of_statistics(clean, leaking),
    }


# --- r2rt-18: the statistics are not trainable, and every run of the training graph updates them ----------------------
def training_that_scores(settings: Settings, seed: int, weights: list[np.ndarray]) -> dict:
    """The document's own loop: every 50 steps the training graph is run on the test set, to score it."""
    test = settings.dataset.test
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = documents_network(True, weights)

        def is_scored(finished: int) -> bool:
            return (finished - 1) % SCORED_EVERY == 0

        def measure(finished: int) -> dict[str, np.ndarray]:
            if not is_scored(finished):
                return {}
            # This run moves the moving statistics too: the leak.
            return {"score": session.run(network.accuracy, {network.x: test.images, network.y_: test.labels})}

        folder = kept_work.folder(settings, seed, "leak", batch=BATCH_SIZE, rate=LEARNING_RATE)
        curves = kept_work.train_and_measure(
            settings,
            session,
            bn_graph.step_of(network),
            settings.dataset.train,
            measure,
            batch_size=BATCH_SIZE,
            seed=seed,
            folder=folder,
            label=f"seed {seed}, document's loop",
            pause_after=is_scored,
            counts_steps=True,
        )
        checkpoint = tf.train.latest_checkpoint(str(folder))
    scores = curves["score"].tolist()
    return {"checkpoint": checkpoint, "scores": scores, "last_scored_step": int(curves["score_step"][-1]) - 1}


def by_moving_statistics(
    settings: Settings, weights: list, checkpoint: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A checkpoint's values, and the class of each test image by its moving statistics."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = documents_network(False, weights)
        bn_graph.restore(session, checkpoint)
        values = session.run({variable.op.name: variable for variable in tf.global_variables()})
        return values, session.run(network.prediction, {network.x: settings.dataset.test.images})


def distance_of_statistics(clean: dict[str, np.ndarray], leaking: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the leak moved the statistics: the means in standard deviations, the variances as shares; both layers."""
    layers = [f"bn{number}" for number in range(1, len(HIDDEN_UNITS) + 1)]
    mean, variance, other_mean, other_variance = (
        np.concatenate([values[f"{layer}/{name}"] for layer in layers])
        for values in (clean, leaking)
        for name in ("moving_mean", "moving_variance")
    )
    means = np.abs(other_mean - mean) / np.sqrt(variance + EPSILON)
    variances = np.abs(other_variance - variance) / (variance + EPSILON)
    return {
        "means_moved": float(means.mean()),
        "means_moved_at_most": float(means.max()),
        "variances_moved": float(variances.mean()),
        "variances_moved_at_most": float(variances.max()),
    }


def share_of_test_batches(steps: int) -> float:
    """The weight, of 1, that runs on the test set have in the moving average at the end of the document's loop."""
    share = 0.0
    for step in range(steps):
        share *= DECAY
        if step % SCORED_EVERY == 0:
            share = share * DECAY + (1 - DECAY)
    return share


def one_update(settings: Settings) -> dict:
    """One run of the document's training graph that fetches nothing but the prediction: what of the variables moves?"""
    train = settings.dataset.train
    weights = first_weights(settings.dataset, seed=0)
    batch = train.images[:BATCH_SIZE]
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = documents_network(True, weights)
        statistics = bn_graph.moving_statistics()
        trainable = [variable for variable in statistics if variable in tf.trainable_variables()]
        session.run(tf.global_variables_initializer())
        before = session.run(statistics)
        session.run(network.prediction, {network.x: batch})
        after = session.run(statistics)
    inputs = batch.astype(np.float64) @ weights[0]
    found = (after[1] - DECAY) / (1 - DECAY)  # layer 1's variance started at 1
    return {
        "statistics": [variable.op.name for variable in statistics],
        "trainable": len(trainable),
        "moved": int(sum(not np.array_equal(*pair) for pair in zip(before, after, strict=True))),
        "ratio_to_biased": ratio(found, inputs.var(0)),
        "ratio_to_unbiased": ratio(found, inputs.var(0, ddof=1)),
    }


def ratio(found: np.ndarray, expected: np.ndarray) -> float:
    """Median over the units; 1 says that this is what was averaged. (Rounding of the average itself: about 1e-6.)"""
    return float(np.median(found / expected))


def judge_r2rt_18(result: dict) -> Verdict:
    update, loops = result["update"], [run["document_loop"] for run in result["runs"]]
    variance = "biased, not the paper's m/(m−1)"
    if abs(update["ratio_to_unbiased"] - 1) < abs(update["ratio_to_biased"] - 1):
        variance = "the paper's, with m/(m−1)"
    number = len(update["statistics"])
    share = result["share_of_test_batches"]
    measured = (
        f"{update['trainable']} of {number} statistics are trainable, and a run that fetches the prediction alone moves "
        f"{update['moved']}; at the end test batches make {share:.2%} of the average."
    )
    changes = [
        loop["population_accuracy"] - run["test_accuracy_after"]
        for loop, run in zip(loops, result["runs"], strict=True)
    ]
    moved = np.median([loop["means_moved"] for loop in loops])
    note = (
        f"In the document's loop that moves the means by {moved:.1e} standard deviations and the accuracy by "
        f"{min(changes):+.4f} to {max(changes):+.4f}. The averaged variance is {variance}."
    )
    if update["trainable"]:
        return does_not_hold(measured, f"{update['trainable']} of the statistics are trainable.")
    if update["moved"] < number:
        return does_not_hold(measured, f"It moves {update['moved']} of {number} statistics.")
    if share == 0:
        return holds(measured, note)
    return holds_with_a_trap("scoring the training graph on the test set updates them too", measured, note)


# --- r2rt-19: the accuracy that the document prints -------------------------------------------------------------------
def judge_r2rt_19(result: dict) -> Verdict:
    runs, examples = result["runs"], 10_000  # of MNIST's test set
    step = runs[0]["document_loop"]["last_scored_step"]
    printed, population = [run["document_loop"]["last_score"] for run in runs], column(result, "test_accuracy_after")
    measured = (
        f"The figure that the document prints is {spread(printed)} here; by moving statistics at the end it is "
        f"{spread(population)}."
    )
    note = (
        f"acc[-1] is step {step:,}, by the test set's own batch statistics. The restored network that the text goes on to use "
        f"has moving statistics and a median of {np.median(population):.4f}."
    )
    if not agrees(printed, FINAL_ACCURACY, examples):
        return does_not_hold(measured, f"{note} ({result['data']}, {result['steps']:,} steps.)")
    if agrees(population, FINAL_ACCURACY, examples):
        return holds(measured, note)
    return holds_with_a_trap("with moving statistics it is another", measured, note)


def agrees(values: list[float], figure: float, examples: int) -> bool:
    """Whether the median is within two sampling errors of the document's figure."""
    return bool(abs(np.median(values) - figure) <= STANDARD_ERRORS * np.sqrt(figure * (1 - figure) / examples))


# --- r2rt-22: the last layer's bias -----------------------------------------------------------------------------------
def last_bias(settings: Settings, used: bool) -> dict:
    """The document's last layer with its b3, which its first graph adds and its build_graph leaves out; 20 steps of it."""
    train = settings.dataset.train
    weights = first_weights(settings.dataset, seed=0)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = documents_network(True, weights, b3_used=used)
        with tf.variable_scope("", reuse=True):
            bias = tf.get_variable("b3")
        session.run(tf.global_variables_initializer())
        for images, labels in batches_in_order(train, BATCH_SIZE)[:20]:
            session.run(network.train_op, {network.x: images, network.y_: labels})
        return {
            "trainable": bias in tf.trainable_variables(),
            "has_gradient": tf.gradients(network.loss, bias)[0] is not None,
            "largest_after_20_steps": largest(session.run(bias)),
        }


def judge_r2rt_22(result: dict) -> Verdict:
    first, second = result["last_bias"]["first graph"], result["last_bias"]["build_graph"]
    measured = (
        f"After 20 steps b3 is {second['largest_after_20_steps']:g} in build_graph, and up to "
        f"{first['largest_after_20_steps']:.2g} in the document's first graph."
    )
    if second["has_gradient"] and second["largest_after_20_steps"] > 0:
        return holds(measured, "The loss has a gradient in b3, and training moves it.")
    note = (
        "Judged of build_graph, the program of this section: it makes b3, counts it as trainable and saves it, but its "
        "softmax leaves it out."
    )
    if first["has_gradient"]:
        note += " Of the first graph, in the section before, it is true."
    return does_not_hold(measured, note)


def summarize(result: dict) -> str:
    loop = result["runs"][0]["document_loop"]
    return (
        f"The document's own loop scores the training graph on the test set every {SCORED_EVERY} steps, which moves the "
        f"moving statistics:\ntest batches have {result['share_of_test_batches']:.1%} of their weight, and "
        f"{loop['predictions_changed']} of the test predictions change (accuracy {loop['population_accuracy']:.4f})."
    )


if __name__ == "__main__":
    harness.run(__name__)
