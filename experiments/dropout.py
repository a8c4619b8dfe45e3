"""Dropout beside batch norm: a network with either, with both and with neither, at several dropout rates.

Document: flags, "What is the significance of trainable and training flag in tf.layers.batch_normalization?", *Opening*.
Claim flags-14.

    make dropout        or        python -m experiments.dropout --mode full

A network is trained on few images, which it can learn by heart, and on ten times as many: with batch norm before its ReLUs
and without, and with dropout of each rate behind them, from the same weights on the same batches. It predicts by the moving
statistics and without dropout. The rate is chosen on the validation images and scored on the test images.

The document trains nothing: the network, its data and the rates are ours, and so are the masks, drawn from the seed and the
step, so that one graph serves all seeds. Regularizing is read as a gap from training to test accuracy that is narrower with at
least one number of images (r2rt-01 finds such a gap, in another network), and "often" as: not behind dropout alone with both
numbers.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work
from experiments.machinery.classifiers import accuracy, first_rows, glorot_weights, layer_sizes, losses, placeholders
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import data_name, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# r2rt's sizes; the solver document's ReLU.
HIDDEN_UNITS, BATCH_SIZE = (100, 100), 60
# A memory of 100 steps; Adam's default rate.
DECAY, LEARNING_RATE = 0.99, 1e-3
FORMS = WITH, WITHOUT = ("with", "without")
# One standard error of 10,000 images at accuracy 0.95: less is not seen.
NOT_SEEN = 0.002

# 60 passes over the fewer images, six over the more; and the share of each hidden layer's units that is dropped.
FULL = Mode("mnist", 1000, [0, 1, 2, 3, 4], {"images": [1000, 10_000], "dropped": [0, 0.1, 0.2, 0.35, 0.5]})
QUICK = Mode("digits", 60, [0], {"images": [600], "dropped": [0, 0.35]})


def run(settings: Settings) -> dict:
    runs = []
    with trainings(settings) as train:
        for seed in settings.seeds:
            found = {"seed": seed}
            for images in settings.own["images"]:
                identity = {
                    "dropped": settings.own["dropped"],
                    "decay": DECAY,
                    "rate": LEARNING_RATE,
                    "masks": "stateless",
                }
                measure = functools.partial(train, seed, images)
                found[images] = kept_work.measured_once(settings, seed, f"images-{images}", measure, **identity)
            runs.append(found)
    return {**settings.own, "runs": runs}


# --- The networks: all forms and rates side by side -------------------------------------------------------------------
def network(x: tf.Tensor, weights: list[tf.Variable], form: str, dropped: float, draw: tf.Tensor | None) -> tf.Tensor:
    """Logits: weighted sum, batch norm or a bias, ReLU, dropout; twice, and a last weighted sum.

    In training the masks depend on `draw` alone, int32 [2]; None is for prediction.
    """
    layer = x
    for number, matrix in enumerate(weights[:-1], start=1):
        z = tf.matmul(layer, matrix)
        if form == WITH:
            z = bn_graph.batch_norm_wrapper(z, draw is not None, decay=DECAY, name=f"bn{number}")
        else:
            z += tf.get_variable(f"b{number}", z.shape[1:], initializer=tf.zeros_initializer())
        layer = tf.nn.relu(z)
        if draw is not None and dropped:
            layer = tf.nn.experimental.stateless_dropout(layer, dropped, [number + 10 * draw[0], draw[1]])
    bias = tf.get_variable("bias", [weights[-1].shape[1]], initializer=tf.zeros_initializer())
    return tf.matmul(layer, weights[-1]) + bias


@contextlib.contextmanager
def trainings(settings: Settings) -> Iterator[Callable[[int, int], dict]]:
    """Builds all networks, which takes as long as a training; gives the function that trains them with any seed."""
    dataset, sizes, most = settings.dataset, layer_sizes(settings.dataset, HIDDEN_UNITS), max(settings.own["images"])
    first = bn_graph.Split(dataset.train.images[:most], dataset.train.labels[:most])
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        x, y_ = placeholders(sizes)
        seed_in_use = tf.get_variable("seed", [], tf.int32, trainable=False)
        matrices, steps, scores = [], [], []
        for number, (form, dropped) in enumerate(itertools.product(FORMS, settings.own["dropped"])):
            with tf.variable_scope(f"network{number}") as scope:
                weights = [tf.get_variable(f"w{place}", shape) for place, shape in enumerate(itertools.pairwise(sizes))]
                count = tf.get_variable("count", [], tf.int32, tf.zeros_initializer(), trainable=False)
                logits = network(x, weights, form, dropped, tf.stack([seed_in_use, count]))
                own = tf.trainable_variables(scope=f"{scope.name}/")
                optimizer = tf.train.AdamOptimizer(LEARNING_RATE)
                step = optimizer.minimize(tf.reduce_mean(losses(logits, y_)), count, var_list=own)
                scope.reuse_variables()
                matrices.append(weights)
                steps.append(bn_graph.Step(step, x, y_))
                scores.append(accuracy(network(x, weights, form, dropped, None), y_))
        initialize = tf.global_variables_initializer()
        advance = harness.LOOPS[settings.loop](session, steps, first, batch_size=BATCH_SIZE, seed=0)

        def train(seed: int, images: int) -> dict:
            """Of each form, by the rates: accuracy on the images it was trained on, and on those of validation and test."""
            session.run(initialize)
            start = glorot_weights(sizes, seed)
            values = [(seed_in_use, seed), *(pair for weights in matrices for pair in zip(weights, start, strict=True))]
            assign_values(session, values)
            rows = first_rows(images, BATCH_SIZE, settings.steps, seed)
            harness.train_on_rows(advance, rows, f"seed {seed}, {images:,} images")
            known = bn_graph.Split(first.images[:images], first.labels[:images])
            splits = {"training": known, "validation": dataset.validation, "test": dataset.test}
            found = {
                name: np.reshape(session.run(scores, {x: split.images, y_: split.labels}), (len(FORMS), -1))
                for name, split in splits.items()
            }
            return {form: {name: found[name][place].tolist() for name in found} for place, form in enumerate(FORMS)}

        yield train


# --- flags-14: does batch norm regularize, so that dropout can go? ----------------------------------------------------
def of_seeds(result: dict, images: int, form: str, scored: str) -> np.ndarray:
    """Accuracies [seed, rate]; JSON has made the numbers of images texts."""
    return np.array([run[str(images)][form][scored] for run in result["runs"]])


def with_the_best_dropout(result: dict, images: int, form: str) -> np.ndarray:
    """Of each seed the test accuracy at the rate, 0 left out, that its validation images choose."""
    chosen = of_seeds(result, images, form, "validation")[:, 1:].argmax(1)
    return np.take_along_axis(of_seeds(result, images, form, "test")[:, 1:], chosen[:, None], axis=1)[:, 0]


def judge_flags_14(result: dict) -> Verdict:
    sentences, gaps, narrower, behind, helps = [], [], [], [], []
    for images in result["images"]:
        test = {form: of_seeds(result, images, form, "test")[:, 0] for form in FORMS}
        gap = {form: of_seeds(result, images, form, "training")[:, 0] - test[form] for form in FORMS}
        dropout, both = (with_the_best_dropout(result, images, form) for form in (WITHOUT, WITH))
        sentences.append(
            f"trained on {images:,} images the accuracy is {spread(test[WITH])} with batch norm, {np.median(dropout):.4f} with "
            f"dropout, {np.median(both):.4f} with both, {np.median(test[WITHOUT]):.4f} with neither"
        )
        gaps.append(f"{np.median(gap[WITH]):.4f} with it and {np.median(gap[WITHOUT]):.4f} without")
        narrower.append(np.median(gap[WITHOUT] - gap[WITH]) > NOT_SEEN)
        behind += [f"{images:,}"] if np.median(test[WITH] - dropout) <= -NOT_SEEN else []
        helps += [f"{images:,}"] if np.median(both - test[WITH]) > NOT_SEEN else []
    measured = "; ".join(sentences).capitalize() + "."
    note = f"Training accuracy less test accuracy, without dropout: {'; '.join(gaps)}. Dropout is that of the rate that the "
    note += "validation images choose."
    if len(behind) == len(narrower):
        return does_not_hold(measured, f"Batch norm alone is behind dropout alone. {note}")
    if not any(narrower):
        where = f" With {' and '.join(behind)} images it is behind dropout alone." if behind else ""
        return does_not_hold(measured, f"The gap from training to test is no narrower with it.{where} {note}")
    if behind:
        return holds_with_a_trap(f"with {' and '.join(behind)} images it is behind dropout alone", measured, note)
    if helps:
        return holds_with_a_trap(f"with {' and '.join(helps)} images dropout still helps beside it", measured, note)
    return holds(measured, note)


FIGURES = {
    "dropout.png": "Test accuracy against the share of units that is dropped, with batch norm and without. Where the blue "
    "line falls from the left, dropout can go; dotted is the accuracy on the images of the training."
}


def draw(result: dict, folder: Path) -> None:
    """Accuracy against the dropout rate, for the fewer and the more images."""
    with figure(folder / "dropout.png", ncols=len(result["images"]), figsize=(10.5, 4.6)) as (drawing, axes):
        for axis, images in zip(np.atleast_1d(axes), result["images"], strict=True):
            for form, colour, marker in ((WITH, BLUE, "o"), (WITHOUT, ORANGE, "s")):
                values = of_seeds(result, images, form, "test")
                axis.plot(
                    result["dropped"],
                    np.median(values, axis=0),
                    color=colour,
                    marker=marker,
                    label=f"{form} batch norm",
                )
                axis.fill_between(result["dropped"], values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
                known = np.median(of_seeds(result, images, form, "training"), axis=0)
                axis.plot(
                    result["dropped"], known, color=colour, linestyle=":", label=f"{form}, on the training images"
                )
            axis.set(xlabel="share of the hidden units that is dropped", title=f"{images:,} training images")
            axis.set_xticks(result["dropped"])
            axis.set_ylabel("accuracy, by moving statistics")
        drawing.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        run = f"{data_name(result)}, {result['steps']:,} steps, {seeds(result)}"
        drawing.suptitle(f"{run}: medians, and from the least to the most", fontsize=10)


def summarize(result: dict) -> str:
    lines = []
    for images in result["images"]:
        lines.append(f"{f'{images:,} images; dropout':26}" + "".join(f"{rate:>8g}" for rate in result["dropped"]))
        for form, scored in itertools.product(FORMS, ("test", "training")):
            values = np.median(of_seeds(result, images, form, scored), axis=0)
            lines.append(f"  {f'{form} batch norm, {scored}':24}" + "".join(f"{value:>8.4f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
