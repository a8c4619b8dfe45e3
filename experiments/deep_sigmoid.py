"""Deep networks of sigmoids: with batch norm they train; without it, how deep may they be?

Document: bn2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
section 4.2 in small. Claim bn2015-01.

    make deep-sigmoid        or        python -m experiments.deep_sigmoid --mode full

The paper trains Inception with sigmoids in place of ReLUs: with batch norm it gets to 69.8 %, and without it never above a
guess. Here networks of two to eight hidden layers of sigmoids are trained on MNIST by plain gradient descent at several
rates, with batch norm and without, from the same weights on the same batches; each is taken at the rate that its validation
images choose. So that no one can say the start was at fault, the network without is also started as Glorot & Bengio have it for
logistic units, with weights four times as large.

Changed from the paper: fully connected layers, MNIST and a short training in place of Inception and ImageNet.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work
from experiments.machinery.classifiers import accuracy, first_rows, glorot_weights, layer_sizes, losses, placeholders
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import data_name, listed, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# r2rt's.
UNITS, BATCH_SIZE, EPSILON = 100, 60, 1e-3
# A memory of 100 steps.
DECAY = 0.99
# What is trained: batch norm or none, and how many times Glorot's uniform range the weights start in.
WITH, WITHOUT, LOGISTIC = "with batch norm", "without", "without, started for logistic units"
FORMS = {WITH: 1.0, WITHOUT: 1.0, LOGISTIC: 4.0}
# A network has trained that gets nine of ten right; it is at a guess within a point of always naming the commonest class.
TRAINED, GUESS_WITHIN = 0.9, 0.01

# Hidden layers; and rates of gradient descent on the mean loss, to each side of r2rt's 0.6.
FULL = Mode("mnist", 1000, [0, 1, 2], {"depths": [2, 4, 8], "rates": [0.2, 1.0]})
QUICK = Mode("digits", 60, [0], {"depths": [1, 2], "rates": [1.0]})


def run(settings: Settings) -> dict:
    runs = []
    with trainings(settings) as train:
        for seed in settings.seeds:
            found = {"seed": seed}
            for form in FORMS:
                identity = settings.own | {"units": UNITS, "decay": DECAY}
                measure = functools.partial(train, seed, form)
                found[form] = kept_work.measured_once(settings, seed, form.replace(" ", "-"), measure, **identity)
            runs.append(found)
    return settings.own | {"guess": float(settings.dataset.test.labels.mean(0).max()), "runs": runs}


# --- The networks: all depths and rates of a form, side by side -------------------------------------------------------
def network(x: tf.Tensor, weights: list[tf.Variable], form: str, is_training: bool) -> tf.Tensor:
    """Logits."""
    layer = x
    for number, matrix in enumerate(weights[:-1], start=1):
        z = tf.matmul(layer, matrix)
        if form == WITH:
            z = bn_graph.batch_norm_wrapper(z, is_training, decay=DECAY, epsilon=EPSILON, name=f"bn{number}")
        else:
            z += tf.get_variable(f"b{number}", z.shape[1:], initializer=tf.zeros_initializer())
        layer = tf.nn.sigmoid(z)
    bias = tf.get_variable("bias", [weights[-1].shape[1]], initializer=tf.zeros_initializer())
    return tf.matmul(layer, weights[-1]) + bias


class Networks(NamedTuple):
    """Those of all depths and rates: the weights of each, its step, and its accuracy."""

    weights: list[list[tf.Variable]]
    steps: list[bn_graph.Step]
    scores: list[tf.Tensor]


def build_networks(settings: Settings, x: tf.Tensor, y_: tf.Tensor, form: str) -> Networks:
    networks = Networks([], [], [])
    for depth, rate in itertools.product(settings.own["depths"], settings.own["rates"]):
        with tf.variable_scope(f"{form.split()[0]}/depth{depth}_rate{rate:g}") as scope:
            shapes = itertools.pairwise(layer_sizes(settings.dataset, [UNITS] * depth))
            weights = [tf.get_variable(f"w{number}", shape) for number, shape in enumerate(shapes)]
            loss = tf.reduce_mean(losses(network(x, weights, form, True), y_))
            own = tf.trainable_variables(scope=f"{scope.name}/")
            train_op = tf.train.GradientDescentOptimizer(rate).minimize(loss, var_list=own)
            scope.reuse_variables()
            networks.weights.append(weights)
            networks.steps.append(bn_graph.Step(train_op, x, y_))
            networks.scores.append(accuracy(network(x, weights, form, False), y_))
    return networks


@contextlib.contextmanager
def trainings(settings: Settings) -> Iterator[Callable[[int, str], list[dict]]]:
    """Builds all networks, which takes as long as a training; gives the function that trains a form's with any seed."""
    dataset, depths, rates = settings.dataset, settings.own["depths"], settings.own["rates"]
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        x, y_ = placeholders(layer_sizes(dataset, ()))
        # Started for logistic units, the networks without batch norm are the same ones.
        networks = {form: build_networks(settings, x, y_, form) for form in (WITH, WITHOUT)}
        networks[LOGISTIC] = networks[WITHOUT]
        initialize = tf.global_variables_initializer()
        loops = {
            form: harness.LOOPS[settings.loop](
                session, networks[form].steps, dataset.train, batch_size=BATCH_SIZE, seed=0
            )
            for form in (WITH, WITHOUT)
        }
        loops[LOGISTIC] = loops[WITHOUT]

        def train(seed: int, form: str) -> list[dict]:
            """For each depth the test accuracy at the rate that the validation images choose, and that rate."""
            session.run(initialize)
            for weights in networks[form].weights:
                units = [UNITS] * (len(weights) - 1)
                start = glorot_weights(layer_sizes(dataset, units), seed, FORMS[form])
                assign_values(session, zip(weights, start, strict=True))
            rows = first_rows(dataset.train.size, BATCH_SIZE, settings.steps, seed)
            harness.train_on_rows(loops[form], rows, f"seed {seed}, {form}")
            validation, test = (
                np.reshape(session.run(networks[form].scores, {x: split.images, y_: split.labels}), (len(depths), -1))
                for split in (dataset.validation, dataset.test)
            )
            best = validation.argmax(1)
            rows = zip(depths, best, test, strict=True)
            return [{"depth": depth, "rate": rates[place], "accuracy": float(row[place])} for depth, place, row in rows]

        yield train


# --- bn2015-01: sigmoids that train only with batch norm --------------------------------------------------------------
def accuracies(result: dict, form: str) -> np.ndarray:
    """[seed, depth]."""
    return np.array([[each["accuracy"] for each in run[form]] for run in result["runs"]])


def judge_bn2015_01(result: dict) -> Verdict:
    deepest = {form: accuracies(result, form)[:, -1] for form in FORMS}
    figures = "; ".join(f"{spread(values, 3)} {form}" for form, values in deepest.items())
    measured = f"With {result['depths'][-1]} hidden layers of sigmoids the test accuracy is {figures}."
    ends = []
    for form in (WITHOUT, LOGISTIC):
        best = zip(result["depths"], accuracies(result, form).max(0), strict=True)
        guessing = [depth for depth, accuracy in best if stuck(accuracy, result)]
        where = f"stays at a guess with {listed(guessing)} layers" if guessing else "is above a guess at every depth"
        ends.append(f"{form} it {where}")
    note = f"Always naming one class gives {result['guess']:.3f}; {'; '.join(ends)}. "
    note += f"Each at the best of the rates {listed(result['rates'])} on its mean loss, {result['steps']:,} steps."
    if np.min(deepest[WITH]) < TRAINED:
        return does_not_hold(measured, f"With batch norm it does not train either. {note}")
    if not stuck(np.max(deepest[WITHOUT]), result):
        return does_not_hold(measured, f"Without batch norm it gets above a guess. {note}")
    if not stuck(np.max(deepest[LOGISTIC]), result):
        return holds_with_a_trap("networks whose weights start four times as large train without it", measured, note)
    return holds(measured, note)


def stuck(value: float, result: dict) -> bool:
    return bool(value <= result["guess"] + GUESS_WITHIN)


FIGURES = {
    "deep_sigmoid.png": "Test accuracy of networks of sigmoids against their depth. Blue: with batch norm. Orange: without, "
    "from the usual start and (dashed) from one for logistic units. Grey: a guess."
}


def draw(result: dict, folder: Path) -> None:
    """Accuracy against depth, for each form."""
    with figure(folder / "deep_sigmoid.png", figsize=(7.5, 4.8)) as (drawing, axis):
        styles = {WITH: (BLUE, "o", "-"), WITHOUT: (ORANGE, "s", "-"), LOGISTIC: (ORANGE, "^", "--")}
        for form, (colour, marker, line) in styles.items():
            values = accuracies(result, form)
            axis.plot(
                result["depths"], np.median(values, axis=0), color=colour, marker=marker, linestyle=line, label=form
            )
            axis.fill_between(result["depths"], values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        axis.axhline(result["guess"], color=GREY, linestyle=":", label="always the commonest class")
        axis.set(xlabel="hidden layers", ylabel="test accuracy, at the best rate", ylim=(0, 1))
        axis.set_xticks(result["depths"])
        drawing.legend(loc="outside lower center", ncols=2)
        run = f"{data_name(result)}, {result['steps']:,} steps, {seeds(result)}"
        axis.set_title(f"{run}: medians, and from the least to the most", fontsize=10)


def summarize(result: dict) -> str:
    lines = [f"{'hidden layers':36}" + "".join(f"{depth:>8}" for depth in result["depths"])]
    for form in FORMS:
        lines.append(f"{form:36}" + "".join(f"{each:>8.3f}" for each in np.median(accuracies(result, form), axis=0)))
        rates = [[each["rate"] for each in run[form]] for run in result["runs"]]
        lines.append(f"{'  its rate':36}" + "".join(f"{each:>8g}" for each in np.median(rates, axis=0)))
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
