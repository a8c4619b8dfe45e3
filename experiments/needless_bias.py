"""A bias just before batch norm: what it does to outputs and loss, and what an optimizer does to it.

Documents: r2rt, *The batch normalizing transform* (r2rt-05); solver, *class Model* (solver-12).

    make needless-bias

Inputs are drawn once from a seed: in float64 where an identity is asked for, in float32 where the optimizers run. Nothing
is read from a data set, so both modes are the same.
"""

from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.fresh import evaluate
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import largest
from experiments.machinery.verdicts import Verdict, does_not_hold, holds

# r2rt's.
EPSILON, BATCH, UNITS = 1e-3, 60, 100
# The solver's optimizer and rate.
ADAM_STEPS, ADAM_RATE = 500, 0.01

FULL = QUICK = Mode()


def run(settings: Settings) -> dict:
    # One generator for both, so the order of these calls is part of the numbers.
    generator = np.random.default_rng(settings.seeds[0])
    return {"bias": bias_before_the_layer(generator), "adam": adam_moves_the_bias(generator)}


def normalize(inputs: tf.Tensor) -> tf.Tensor:
    """By TensorFlow's own functions, as the documents call them; without gamma and beta."""
    return tf.nn.batch_normalization(inputs, *tf.nn.moments(inputs, [0]), None, None, EPSILON)


# --- r2rt-05: a bias before the layer ---------------------------------------------------------------------------------
def bias_before_the_layer(generator) -> dict:
    values, toward = generator.normal(size=(BATCH, UNITS)), generator.normal(size=(BATCH, UNITS))
    with tf.Graph().as_default():
        bias = tf.constant(generator.normal(0.0, 5.0, UNITS))
        plain, shifted = (normalize(tf.constant(values) + shift) for shift in (tf.zeros([UNITS], tf.float64), bias))
        # Any loss will do; this one weighs the outputs at random.
        (gradient,) = tf.gradients(tf.reduce_sum(shifted * toward), bias)
        without, with_bias, slope = evaluate(plain, shifted, gradient)
    return {"largest_difference": largest(without - with_bias), "largest_gradient": largest(slope)}


def judge_r2rt_05(result: dict) -> Verdict:
    difference, gradient = result["bias"]["largest_difference"], result["bias"]["largest_gradient"]
    measured = f"In float64 a bias changes the outputs by at most {difference:.0e}, and its gradient is at most {gradient:.0e}."
    if max(difference, gradient) >= 1e-9:
        return does_not_hold(measured, "More than rounding of the bias is left after the layer.")
    return holds(measured, "Both are rounding: the mean subtracts the bias again, and nothing is left to learn it by.")


# --- solver-12: Adam and a bias that nothing depends on ---------------------------------------------------------------
def adam_moves_the_bias(generator) -> dict:
    inputs = generator.normal(size=(32, 20)).astype(np.float32)
    toward = generator.normal(size=(32, 16)).astype(np.float32)
    found = {}
    for name, optimizer in (("Adam", tf.train.AdamOptimizer), ("gradient descent", tf.train.GradientDescentOptimizer)):
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            weights = tf.get_variable("w", initializer=generator.normal(size=(20, 16)).astype(np.float32) / 5)
            bias = tf.get_variable("b", [16], initializer=tf.zeros_initializer())
            outputs = bn_graph.batch_norm_wrapper(tf.constant(inputs) @ weights + bias, True)
            loss = tf.reduce_mean(tf.square(outputs - toward))
            gradient = tf.gradients(loss, bias)[0]
            step = optimizer(ADAM_RATE).minimize(loss)
            session.run(tf.global_variables_initializer())
            slopes, walked = [], []
            for _ in range(ADAM_STEPS):
                slopes.append(largest(session.run([gradient, step])[0]))
                walked.append(round(largest(session.run(bias)), 6))
        found[name] = {"largest_gradient": max(slopes), "walked": walked}
    return found


def judge_solver_12(result: dict) -> Verdict:
    adam, descent = result["adam"]["Adam"], result["adam"]["gradient descent"]
    by_adam, by_descent = adam["walked"][-1], descent["walked"][-1]
    measured = (
        f"The bias's gradient is at most {adam['largest_gradient']:.0e}, and after {ADAM_STEPS} steps at {ADAM_RATE:g} the "
        f"bias is {by_adam:.2g} with Adam and {by_descent:.1g} with gradient descent."
    )
    if adam["largest_gradient"] > 1e-4:
        return does_not_hold(measured, "The bias has a gradient, so the layer after it is no batch norm of the batch.")
    if by_adam > max(100 * by_descent, ADAM_RATE):
        note = "It changes no output. Adam divides the rounding by its own size and moves the bias all the same; at inference "
        return holds(measured, f"{note}the moving mean follows it.")
    return holds(measured, "It stands there and does nothing: neither outputs nor optimizer move it.")


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {"needless_bias.png": "A bias before batch norm has a gradient of rounding only, yet Adam walks it away."}


def draw(result: dict, folder: Path) -> None:
    with figure(folder / "needless_bias.png", figsize=(5.5, 4.4)) as (drawing, axis):
        for optimizer, color in (("Adam", ORANGE), ("gradient descent", BLUE)):
            axis.plot(result["adam"][optimizer]["walked"], color=color, label=optimizer)
        axis.set_xlabel("training steps")
        axis.set_ylabel("largest bias")
        axis.set_title("A bias that nothing depends on (solver-12)")
        drawing.legend(loc="outside lower center", ncols=2)


if __name__ == "__main__":
    harness.run(__name__)
