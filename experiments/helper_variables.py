"""The convolutional helper class's variables: the function it calls, the axes it averages over, what it keeps and stores.

Document: qa, *How could I use batch normalization in TensorFlow*, the previous answer with the helper class. Claims
qa-02, 03, 04, 05.

    make helper-variables

The helper is the one of the page conv_normalizer, whose recipe and averages are judged there. Here are the parts that fixed
inputs decide.
"""

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.conv_normalizer import (
    DECAY,
    EPSILON,
    TOLERANCE,
    DocumentsNormalizer,
    distance,
    example,
    global_normalization,
    normalized,
    open_session,
)
from experiments.machinery import harness
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.verdicts import Verdict, does_not_hold, holds

FULL = QUICK = Mode()


def run(settings: Settings) -> dict:
    return {
        "function": the_function(),
        "axes": averaged_axes(),
        "variables": variables_of_the_helper(),
        "training_step": training_step(),
    }


# --- qa-02: the old function, with moments that are not the batch's ---------------------------------------------------
def the_function() -> dict:
    x = example()
    mean, variance, beta = (np.array(values, np.float32) for values in ([5, -1, 0], [4, 0.5, 9], [0.5, 0, -2]))
    # Two gammas: whether another one changes anything is the question.
    gammas = [np.array(values, np.float32) for values in ([2, 3, 4], [-7, 11, 0.1])]
    with tf.Graph().as_default(), open_session() as session:
        with_gamma, without = (
            session.run([global_normalization(x, mean, variance, beta, gamma, scale) for gamma in gammas])
            for scale in (True, False)
        )
        modern = session.run(
            [tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON) for gamma in (gammas[0], None)]
        )
    return {
        "scaled_from_modern": distance(with_gamma[0], modern[0]),
        "unscaled_from_modern": distance(without[0], modern[1]),
        "unscaled_from_given_moments": distance(without[0], normalized(x, mean, variance) + beta),
        "gamma_changes_scaled": distance(*with_gamma),
        "gamma_changes_unscaled": distance(*without),
    }


def judge_qa_02(result: dict) -> Verdict:
    function = result["function"]
    distances = ("scaled_from_modern", "unscaled_from_modern", "unscaled_from_given_moments")
    furthest = max(function[key] for key in distances)
    measured = (
        f"It is at most {furthest:.1g} from tf.nn.batch_normalization and from the formula; another gamma changes the output "
        f"by {function['gamma_changes_unscaled']:g} without scaling, and by {function['gamma_changes_scaled']:.3g} with it."
    )
    if furthest > TOLERANCE:
        return does_not_hold(measured, "It does not compute what it is handed the moments for.")
    if function["gamma_changes_unscaled"] > 0:
        return does_not_hold(measured, "gamma has an effect even where scale_after_normalization is False.")
    return holds(measured, "The moments handed to it were not the batch's. compat.v1 still has the function.")


# --- qa-03: which examples share a mean, in the helper and in this library's layer for dense inputs -------------------
def averaged_axes() -> dict:
    image, flat = example(), example((7, 3))
    with tf.Graph().as_default(), open_session() as session:
        helper = DocumentsNormalizer(3, tf.train.ExponentialMovingAverage(DECAY))
        convolutional = helper.normalize(tf.constant(image), train=True)
        # With decay 0 the moving mean is the last batch's.
        dense = bn_graph.batch_norm_wrapper(tf.constant(flat), True, decay=0.0, name="dense")
        try:
            DocumentsNormalizer(3, helper.trainer, name="other").normalize(tf.constant(flat), train=True)
            refused = None
        except ValueError as error:
            refused = type(error).__name__
        session.run(tf.global_variables_initializer())
        session.run([convolutional, dense])
        stored, dense_mean = session.run([helper.mean, bn_graph.moving_statistics()[0]])
    return {
        "convolution_from_012": distance(stored, image.mean((0, 1, 2))),
        "convolution_statistics": int(stored.size),
        "axis_0_alone_statistics": int(np.prod(image.shape[1:])),
        "dense_from_0": distance(dense_mean, flat.mean(0)),
        "helper_on_dense_raises": refused,
    }


def judge_qa_03(result: dict) -> Verdict:
    axes = result["axes"]
    measured = (
        f"A convolution's mean differs from that over axes 0, 1, 2 by {axes['convolution_from_012']:.1g}, and a dense layer's "
        f"from that over axis 0 by {axes['dense_from_0']:.1g}."
    )
    note = (
        f"Axis 0 alone would keep {axes['axis_0_alone_statistics']} means of the example here, where there are "
        f"{axes['convolution_statistics']} channels."
    )
    if max(axes["convolution_from_012"], axes["dense_from_0"]) > TOLERANCE:
        return does_not_hold(measured, f"The stored means are those of other axes. {note}")
    if axes["helper_on_dense_raises"]:
        note += f" The helper itself refuses dense inputs ({axes['helper_on_dense_raises']})."
    return holds(measured, note)


# --- qa-04: each variable of the helper with its assigner, its start and its collections ------------------------------
def variables_of_the_helper() -> list[dict]:
    with tf.Graph().as_default(), open_session() as session:
        DocumentsNormalizer(3, tf.train.ExponentialMovingAverage(DECAY)).get_assigner()
        session.run(tf.global_variables_initializer())
        trainable, averaged = tf.trainable_variables(), tf.moving_average_variables()
        return [
            {
                "name": variable.op.name,
                "starts_at": sorted(set(session.run(variable).tolist())),
                "trainable": variable in trainable,
                "moving_average_variables": variable in averaged,
            }
            for variable in tf.global_variables()
        ]


def judge_qa_04(result: dict) -> Verdict:
    expected = {
        "bn/mean": ([0.0], False),
        "bn/variance": ([1.0], False),
        "bn/beta": ([0.0], True),
        "bn/gamma": ([1.0], True),
    }
    found = {each["name"]: (each["starts_at"], each["trainable"]) for each in result["variables"]}
    shadows = [name for name in found if name not in expected]
    of = sorted(name.rpartition("/")[0] for name in shadows)
    listed = [each["name"] for each in result["variables"] if each["moving_average_variables"]]
    kept = ", ".join(
        f"{name.removeprefix('bn/')} ({'/'.join(f'{start:g}' for start in starts)}{', trainable' if trainable else ''})"
        for name, (starts, trainable) in found.items()
    )
    measured = f"It keeps {kept}."
    wrong = [name for name, each in expected.items() if found.get(name) != each]
    if wrong:
        return does_not_hold(measured, f"Otherwise than the document says: {', '.join(wrong)}.")
    if of != ["bn/mean", "bn/variance"] or any(found[name][1] for name in shadows):
        return does_not_hold(measured, f"The shadows are {', '.join(shadows) or 'missing'}.")
    names = ", ".join(name.removeprefix("bn/") for name in listed) or "none of them"
    return holds(measured, f"tf.moving_average_variables() lists {names}; the shadows are plain global variables.")


# --- qa-05: one run of the training output, and what is stored by it --------------------------------------------------
def training_step() -> dict:
    x = example()
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    with tf.Graph().as_default(), open_session() as session:
        helper = DocumentsNormalizer(3, tf.train.ExponentialMovingAverage(DECAY))
        by_batch = helper.normalize(tf.constant(x), train=True)
        session.run(tf.global_variables_initializer())
        outputs = session.run(by_batch)
        stored_mean, stored_variance = session.run([helper.mean, helper.variance])
    return {
        "outputs_from_batch": distance(outputs, normalized(x, mean, variance)),
        "stored_mean_from_batch": distance(stored_mean, mean),
        "stored_variance_from_batch": distance(stored_variance, variance),
        "spread_of_batch_means": float(np.ptp(mean)),
    }


def judge_qa_05(result: dict) -> Verdict:
    step = result["training_step"]
    stored = max(step["stored_mean_from_batch"], step["stored_variance_from_batch"])
    measured = (
        f"The outputs differ from those normalized by the batch's moments by {step['outputs_from_batch']:.1g}, and the stored "
        f"moments from the batch's by {stored:.1g}."
    )
    if step["outputs_from_batch"] > TOLERANCE:
        return does_not_hold(measured, "The outputs are not normalized by the batch's moments.")
    if stored > TOLERANCE:
        return does_not_hold(measured, "What is stored is not the batch's moments.")
    return holds(measured, "Stored whole, not averaged: until the assigner runs, the variables hold the last batch.")


if __name__ == "__main__":
    harness.run(__name__)
