"""The document's Solver, step by step: which statistics a step uses, what it returns, how many make an epoch.

Document: solver, *Introduction*, ``class Solver`` and *Training*. Claims solver-05, 08, 15.

    make solver-steps

One batch norm layer is run with its moving statistics overwritten, in training and at inference. The network of the page
model_solver is trained for twenty steps, and what each hands back is compared with the batch's loss before the step and
after it. And the batches of an epoch are counted. On the bundled digits the shape of the training set is worked out from
MNIST's file header, which the loader checks.
"""

import itertools

import numpy as np

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap
from experiments.model_solver import BATCH_SIZE, build_pair

# Whose loss is looked at; enough for a loss that moves with each.
STEPS = 20
# The default of tf.layers; its momentum is 0.99.
EPSILON = 1e-3
# Far from (0, 1) and from the batch's own, so that they show in the output.
OTHER_MEAN, OTHER_VARIANCE = 5.0, 9.0

FULL = Mode(data="mnist")
QUICK = Mode(data="digits")


def run(settings: Settings) -> dict:
    return {
        "statistics_in_use": statistics_in_use(),
        "returned_loss": returned_loss(settings.dataset, settings.seeds[0]),
        "train_shape": train_shape(settings.dataset),
    }


# --- solver-05: the moving statistics in training, fixed at inference -------------------------------------------------
def statistics_in_use() -> dict[str, float]:
    """What one tf.layers batch norm normalizes with, in training and at inference, shown by overwriting its statistics."""
    inputs = np.random.default_rng(0).normal(2.0, 3.0, [8, 3]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        is_training = tf.placeholder(tf.bool, [])
        outputs = legacy_layers().batch_normalization(tf.constant(inputs), training=is_training)
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        mean, variance = bn_graph.moving_statistics()
        session.run(tf.global_variables_initializer())

        training, inference = {is_training: True}, {is_training: False}
        before = session.run(outputs, training)
        session.run([mean.assign([OTHER_MEAN] * 3), variance.assign([OTHER_VARIANCE] * 3)])
        after = session.run(outputs, training)
        at_inference = session.run(outputs, inference)
        after_inference = session.run([mean, variance])
        session.run(updates, training)
        updated = session.run([mean, variance])
    by_batch = (inputs - inputs.mean(0)) / np.sqrt(inputs.var(0) + EPSILON)
    by_moving = (inputs - OTHER_MEAN) / np.sqrt(OTHER_VARIANCE + EPSILON)
    averages = [0.99 * OTHER_MEAN + 0.01 * inputs.mean(0), 0.99 * OTHER_VARIANCE + 0.01 * inputs.var(0)]

    def largest(*differences: np.ndarray) -> float:
        return max(float(np.abs(each).max()) for each in differences)

    return {
        "training_less_batch_statistics": largest(before - by_batch),
        "training_changed_by_other_moving_statistics": largest(after - before),
        "inference_less_moving_statistics": largest(at_inference - by_moving),
        "moved_by_inference": largest(after_inference[0] - OTHER_MEAN, after_inference[1] - OTHER_VARIANCE),
        "update_less_moving_average": largest(updated[0] - averages[0], updated[1] - averages[1]),
    }


def judge_solver_05(result: dict) -> Verdict:
    found = result["statistics_in_use"]
    changed = found["training_changed_by_other_moving_statistics"]
    fixed = found["moved_by_inference"] == 0.0 and found["inference_less_moving_statistics"] < 1e-5
    averaged = found["update_less_moving_average"] < 1e-5
    measured = (
        f"Training averages the batches' statistics (to {found['update_less_moving_average']:.0e}); inference normalizes with "
        f"the averages (to {found['inference_less_moving_statistics']:.0e}) and moves them by "
        f"{found['moved_by_inference']:.1g}; overwriting them changes training's output by {changed:.1g}."
    )
    if not (fixed and averaged):
        return does_not_hold(measured, "The moving statistics are not averaged in training, or not fixed at inference.")
    if changed > 1e-3:
        return holds(measured, "Training normalizes with the moving statistics, and inference keeps them fixed.")
    note = "Read as the μ and σ that the test uses. Training itself normalizes with the batch's own mean and deviation."
    return holds_with_a_trap("training does not normalize with the moving averages", measured, note)


# --- solver-08: (55000, 784) and 1718 steps an epoch ------------------------------------------------------------------
def train_shape(dataset: bn_graph.Dataset) -> dict:
    """The training images of MNIST, and how many batches there are before the first image comes again."""
    images, rows, columns = bn_graph.training.datasets.MNIST_FILES["train-images-idx3-ubyte"].shape
    shape = [images - bn_graph.training.datasets.MNIST_VALIDATION, rows * columns]
    if dataset.name == "mnist":
        shape = list(dataset.train.images.shape)
    seen, steps = np.zeros(shape[0], bool), 0
    for chosen in bn_graph.training.datasets.batch_rows(shape[0], BATCH_SIZE, seed=0):
        if seen[chosen].any():
            break
        seen[chosen] = True
        steps += 1
    return {"shape": shape, "steps": steps, "left_out": int((~seen).sum())}


def judge_solver_08(result: dict) -> Verdict:
    found = result["train_shape"]
    measured = f"The training images are {tuple(found['shape'])}, and an epoch has {found['steps']:,} steps."
    if found["shape"] == [55_000, 784] and found["steps"] == 1718:
        return holds(measured, f"The {found['left_out']} images that are left do not fill a batch.")
    return does_not_hold(measured, "The document has (55000, 784) and 1718.")


# --- solver-15: the loss that `train` returns -------------------------------------------------------------------------
def returned_loss(dataset: bn_graph.Dataset, seed: int) -> dict:
    """What the document's `train` hands back, beside the same batch's loss before the step and after it."""
    returned, before, after = [], [], []
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        solver = build_pair(session, dataset.train, seed)["with"]
        model = solver.model
        session.run(tf.global_variables_initializer())
        for images, labels in itertools.islice(bn_graph.batches(dataset.train, BATCH_SIZE, seed=seed), STEPS):
            before.append(solver.evaluate(images, labels, is_training=True)[0])
            feed = {model.x: images, model.y_: labels, model.is_training: True}
            # As the document does, which returns this list.
            fetched = session.run([model.train_op, model.loss], feed)
            returned.append(float(fetched[-1]))
            after.append(solver.evaluate(images, labels, is_training=True)[0])
    return {
        "steps": STEPS,
        "values": len(fetched),
        "nothing_first": fetched[0] is None,
        "equal_to_before": int(np.isclose(returned, before, rtol=1e-6).sum()),
        "equal_to_after": int(np.isclose(returned, after, rtol=1e-6).sum()),
        "first": [round(loss, 5) for loss in (returned[0], before[0], after[0])],
    }


def judge_solver_15(result: dict) -> Verdict:
    found = result["returned_loss"]
    steps = found["steps"]
    measured = (
        f"It returns {found['values']} values; the last equals the batch's loss before the update in "
        f"{found['equal_to_before']} of {steps} steps, and the loss after it in {found['equal_to_after']}."
    )
    if found["equal_to_before"] == steps:
        when = "before the update, by the batch's own statistics"
    elif found["equal_to_after"] == steps:
        when = "after the update"
    else:
        return does_not_hold(measured, "What is returned is neither the loss before the update nor the one after it.")
    if found["values"] == 1:
        return holds(measured, f"It is the loss {when}.")
    first = "None for the train op" if found["nothing_first"] else "the train op's value"
    note = f"The list holds {first} and the loss {when}; the document's loop unpacks it."
    return holds_with_a_trap(f"the loss is the last of the {found['values']} values in a list", measured, note)


if __name__ == "__main__":
    harness.run(__name__)
