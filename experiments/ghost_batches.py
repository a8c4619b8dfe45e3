"""Ghost batches where the batch is large: one batch normalized whole, or in groups of 128, 64 and 16.

Document: Hoffer, Hubara & Soudry 2017, "Train longer, generalize better", *Ghost Batch Normalization*. Claim ghost-01.

    make ghost-batches        or        python -m experiments.ghost_batches --mode full

r2rt's network is trained on few images in large batches, which is where a large batch generalizes worse: once each batch
is normalized whole, and once in ghost batches of every size, from the same weights on the same batches. It is scored on
the test set by its moving statistics, which are those of whole batches in every form.

Changed from the paper: its networks are convolutional, its data CIFAR and ImageNet, its batches 4,096; from r2rt: the
weights start as Glorot & Bengio have them for logistic units, and the batch is large. The rate grows with the square root
of the batch, as the paper has it. What ghosts do in batches of 64 is on the page small_batches.
"""

import functools

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work, remedies
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import listed, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# Ghosts of so many examples; 0 is the whole batch. 128 is the paper's.
WHOLE, GHOSTS = 0, (128, 64, 16)
EPSILON = 1e-3
# A memory of 100 of the 600 steps.
DECAY = 0.99
# r2rt's batch and rate on the mean loss; the rate is scaled up from there.
R2RT_BATCH, R2RT_RATE = 60, 0.6
# One standard error of 10,000 images at accuracy 0.95: less is not seen.
NOT_SEEN = 0.002

# 5,000 images, so that there is something to overfit.
FULL = Mode("mnist", 600, [0, 1, 2, 3, 4], {"batch": 1024, "images": 5000})
QUICK = Mode("digits", 20, [0], {"batch": 256, "images": 1000})


def run(settings: Settings) -> dict:
    runs = []
    for seed in settings.seeds:
        accuracies = {}
        for size in (WHOLE, *GHOSTS):
            measure = functools.partial(trained_accuracy, settings, seed, size)
            identity = settings.own | {"decay": DECAY, "rate": R2RT_RATE}
            accuracies[size] = kept_work.measured_once(settings, seed, f"ghosts-{size}", measure, **identity)[
                "accuracy"
            ]
        runs.append({"seed": seed, "accuracy": accuracies})
    return {**settings.own, "runs": runs}


def trained_accuracy(settings: Settings, seed: int, size: int) -> dict:
    """Trains one network whose batches are normalized in groups of `size`, and scores it by its moving statistics."""
    batch, images = settings.own["batch"], settings.own["images"]
    train, test = settings.dataset.train, settings.dataset.test
    split = bn_graph.Split(train.images[:images], train.labels[:images])
    weights = remedies.initial_weights(settings.dataset, seed)
    # build_graph's rate is that of the summed loss.
    rate = R2RT_RATE * np.sqrt(batch / R2RT_BATCH) / batch

    def normalizer(inputs, is_training, name):
        ghosts = {"virtual_batch_size": size} if size and is_training else {}
        return bn_graph.batch_norm_wrapper(inputs, is_training, decay=DECAY, epsilon=EPSILON, name=name, **ghosts)

    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, weights, normalizer=normalizer, learning_rate=float(rate))
        with tf.variable_scope("", reuse=True):
            inference = bn_graph.build_graph(False, weights, normalizer=normalizer)
        session.run(tf.global_variables_initializer())
        advance = harness.LOOPS[settings.loop](session, bn_graph.step_of(network), split, batch_size=batch, seed=seed)
        for _ in harness.advance_with_progress(advance, range(settings.steps), f"seed {seed}, {size or 'whole'}"):
            pass
        accuracy = session.run(inference.accuracy, {inference.x: test.images, inference.y_: test.labels})
    return {"accuracy": float(accuracy)}


# --- ghost-01: do they generalize better? -----------------------------------------------------------------------------
def accuracies(result: dict, size: int) -> np.ndarray:
    """Of every seed; JSON has made the sizes texts."""
    return np.array([run["accuracy"][str(size)] for run in result["runs"]])


def judge_ghost_01(result: dict) -> Verdict:
    whole = accuracies(result, WHOLE)
    ahead = {size: accuracies(result, size) - whole for size in GHOSTS}
    figures = ", ".join(f"{np.median(each):+.4f} in ghosts of {size}" for size, each in ahead.items())
    measured = f"Batches of {result['batch']:,} normalized whole give {spread(whole)}; "
    measured += f"the accuracy is ahead by {figures}."
    better = [size for size, each in ahead.items() if np.median(each) > NOT_SEEN and each.min() > 0]
    counts = ", ".join(f"{int((each > 0).sum())} with {size}" for size, each in ahead.items())
    note = (
        f"Trained on {result['images']:,} images for {result['steps']:,} steps. Better is what is so by {NOT_SEEN} and for "
        f"every seed; of {len(result['runs'])} seeds the ghosts are ahead in {counts}."
    )
    if len(better) == len(ahead):
        return holds(measured, note)
    if better:
        rest = listed(size for size in GHOSTS if size not in better)
        return holds_with_a_trap(f"with ghosts of {rest} it is not seen", measured, note)
    return does_not_hold(measured, note)


def summarize(result: dict) -> str:
    lines = [f"Test accuracy after batches of {result['batch']:,}, normalized"]
    lines += [
        f"  {'whole' if size == WHOLE else f'in {size}':<8} {spread(accuracies(result, size))}"
        for size in (WHOLE, *GHOSTS)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
