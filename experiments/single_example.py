"""The single-example bug and its fix.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", sections *Making predictions with the model*, *Fixing
the model for test time* and *An implementation that works at test time*. Claims r2rt-12, 13, 14, 17, 19, 20.

    make single-example        or        python -m experiments.single_example --data mnist --seed 0 1 2 3 4

The same network is trained twice, from the same weights on the same batches. The first normalizes with the statistics
of whatever batch it is given, always: it is good on the whole test set at once, and predicts one and the same class for
every image that it is given alone. The second is `bn_graph.batch_norm_wrapper`: it is saved, rebuilt in another process
with ``is_training=False``, restored, and predicts an image alone as it does among ten thousand.

Changed from the document: the loss is the stable form of the same cross-entropy (the document's can become NaN), and the
test set is never run through the training graph (there it would move the population statistics).
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments import harness
from experiments.figures import BLUE, ORANGE, figure
from experiments.predict_from_checkpoint import HIDDEN_UNITS

BATCH_SIZE = 60  # the document's
LEARNING_RATE = 0.01  # the document's; on the summed loss, so 0.6 on the mean over the batch
EPSILON = 1e-3  # the document's
DECAY = 0.999  # the document's
STEPS = 10_000  # the document's, of its second training; its first ran 40,000 for another purpose
SHOWN = 100  # the document predicts the first 100 test images


def batch_statistics_always(inputs, is_training, name):
    """Batch norm as in the document's first network: by the batch's own statistics, in training and in prediction."""
    del is_training  # that it makes no difference is the bug
    units = inputs.shape.as_list()[-1]
    with tf.variable_scope(name):
        gamma = tf.get_variable("gamma", [units], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [units], initializer=tf.zeros_initializer())
        mean, variance = tf.nn.moments(inputs, [0])
        return gamma * ((inputs - mean) / tf.sqrt(variance + EPSILON)) + beta


def wrapper(inputs, is_training, name):
    """The library's wrapper with the document's settings."""
    return bn_graph.batch_norm_wrapper(inputs, is_training, decay=DECAY, epsilon=EPSILON, name=name)


def run(settings: harness.Settings) -> dict:
    runs = [_run_seed(settings, seed) for seed in settings.seeds]
    images = {
        "images": harness.pack_images(settings.dataset.test.images[:SHOWN]),
        "image_shape": list(settings.dataset.image_shape),
    }
    return runs[0] | {"runs": runs} | images


def _run_seed(settings: harness.Settings, seed: int) -> dict:
    dataset = settings.dataset
    test = dataset.test
    labels = test.labels.argmax(1)
    sizes = (test.images.shape[1], *HIDDEN_UNITS, test.labels.shape[1])
    weights = bn_graph.normal_weights(sizes, seed)

    before = _batch_statistics_network(settings, seed, weights)
    checkpoint = _train_wrapper_network(settings, seed, weights)
    after = _predict_in_new_process(settings, checkpoint)

    alone = np.array(after["one_at_a_time"])
    return {
        "seed": seed,
        "labels": labels[:SHOWN].tolist(),
        "predictions_before": before["one_at_a_time"],
        "accuracy_before": float(np.mean(before["one_at_a_time"] == labels[:SHOWN])),
        "test_accuracy_before_at_once": before["test_accuracy_at_once"],
        "predicted_class_from_parameters": before["class_from_parameters"],
        "predictions_after": alone[:SHOWN].tolist(),
        "accuracy_after": float(np.mean(alone[:SHOWN] == labels[:SHOWN])),
        "test_accuracy_after": float(np.mean(alone == labels)),
        "test_accuracy_after_at_once": float(np.mean(np.array(after["at_once"]) == labels)),
        "one_at_a_time_equals_at_once": after["one_at_a_time"] == after["at_once"],
        "largest_difference_of_logits": after["largest_difference_of_logits"],
        "checkpoint": checkpoint,
    }


def _batch_statistics_network(settings: harness.Settings, seed: int, weights: list[np.ndarray]) -> dict:
    """Trains the faulty network, scores the test set at once, and predicts the first images one at a time."""
    test = settings.dataset.test
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, weights, normalizer=batch_statistics_always, learning_rate=LEARNING_RATE)
        _train(settings, session, network, seed, "batch_statistics")

        test_accuracy = session.run(network.accuracy, {network.x: test.images, network.y_: test.labels})
        one_at_a_time = [int(session.run(network.prediction, {network.x: [image]})[0]) for image in test.images[:SHOWN]]
        with tf.variable_scope("", reuse=True):
            parameters = [tf.get_variable(name) for name in (f"bn{len(HIDDEN_UNITS)}/beta", "w3", "b3")]
        beta, last_weights, last_bias = session.run(parameters)

    # A batch of one has its own value for mean, so the normalized sum is 0 and beta alone goes into the last hidden
    # layer's sigmoid. What comes out of the network is then a constant, and here it is, without any image:
    logits = 1.0 / (1.0 + np.exp(-beta)) @ last_weights + last_bias
    return {
        "one_at_a_time": one_at_a_time,
        "test_accuracy_at_once": float(test_accuracy),
        "class_from_parameters": int(logits.argmax()),
    }


def _train_wrapper_network(settings: harness.Settings, seed: int, weights: list[np.ndarray]) -> str:
    """Trains the mended network, saves it with its moving statistics, and returns the path to restore from."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, weights, normalizer=wrapper, learning_rate=LEARNING_RATE)
        folder = _train(settings, session, network, seed, "wrapper")
        return bn_graph.save(bn_graph.make_saver(), session, folder / "model")


def _train(settings: harness.Settings, session: tf.Session, network: bn_graph.Network, seed: int, form: str) -> Path:
    folder = harness.work_directory(
        settings,
        f"{settings.dataset.name}-seed{seed}-steps{settings.steps}/{form}",
        batch=BATCH_SIZE,
        rate=LEARNING_RATE,
    )
    bn_graph.resume(session, folder)
    bn_graph.train(
        session,
        network,
        settings.dataset.train,
        steps=settings.steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        directory=folder,
        progress=harness.progress_bar(f"seed {seed}, {form.replace('_', ' ')}"),
    )
    return folder


def _predict_in_new_process(settings: harness.Settings, checkpoint: str) -> dict:
    output = Path(checkpoint).with_name("predictions.json")
    command = [sys.executable, "-m", "experiments.predict_from_checkpoint", "--checkpoint", checkpoint]
    command += ["--data", settings.dataset.name, "--output", str(output)]
    if settings.data_directory is not None:
        command += ["--data-directory", settings.data_directory]
    finished = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if finished.returncode:
        raise harness.UsageError(f"the predicting process failed: {finished.stderr.strip().splitlines()[-1]}")
    return json.loads(output.read_text())


def draw(result: dict, folder: Path) -> None:
    """The first 100 test images with both predictions: what a batch of one does, and what population statistics do."""
    shape = (SHOWN, *result["image_shape"])
    images = 255 - harness.unpack_images(result["images"], shape)
    panels = (("before", "batch statistics, always"), ("after", "batch_norm_wrapper, population statistics"))
    with figure(folder / "single_example.png", ncols=2, figsize=(13, 4.9)) as (drawing, axes):
        for axis, (when, title) in zip(axes, panels, strict=True):
            predictions, accuracy = result[f"predictions_{when}"], result[f"accuracy_{when}"]
            _draw_grid(axis, images, predictions, result["labels"])
            axis.set_title(f"{when.capitalize()}: {title}\n{accuracy:.0%} of the 100 are right", fontsize=12)
        drawing.get_layout_engine().set(wspace=0.06)
        drawing.suptitle(
            f"The first 100 test images of {result['data'].replace('mnist', 'MNIST')}, each predicted alone   "
            f"(seed {result['seed']}, {result['steps']:,} steps; blue: right, orange with a cross: wrong)",
            fontsize=11,
        )


def _draw_grid(axis, images: np.ndarray, predictions: list[int], labels: list[int]) -> None:
    size = images.shape[1]
    cell = size * 2.0  # the image, and beside it the prediction
    for place, (image, predicted, label) in enumerate(zip(images, predictions, labels, strict=True)):
        row, column = divmod(place, 10)
        left, top = column * cell, row * size * 1.15
        axis.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(left, left + size, top + size, top))
        right = predicted == label
        text = str(predicted) if right else f"{predicted}×"
        axis.text(left + size * 1.12, top + size / 2, text, color=BLUE if right else ORANGE, va="center", fontsize=12)
    axis.set_xlim(0, 10 * cell)
    axis.set_ylim(10 * size * 1.15, 0)
    axis.axis("off")


def summarize(result: dict, folder: Path) -> str:
    classes = Counter(result["predictions_before"])
    (only, times), *others = classes.most_common()
    wrong = f"the class {only} all {times} times" if not others else f"{len(classes)} different classes"
    agrees = "is" if only == result["predicted_class_from_parameters"] else "IS NOT"
    lines = [
        "",
        f"What went wrong  The network that normalizes with its batch's statistics scores "
        f"{result['test_accuracy_before_at_once']:.4f} on the whole test set at once.",
        f"                 Given the first {SHOWN} test images one at a time, it predicts {wrong}: "
        f"accuracy {result['accuracy_before']:.2f}.",
        "Why              One example is its own mean, so every normalized input is 0 and only beta is left. From beta and",
        f"                 the last weights alone the class must be {result['predicted_class_from_parameters']}, "
        f"and it {agrees}.",
        "What fixed it    batch_norm_wrapper keeps population statistics while training, the Saver saves them, and a new",
        "                 process rebuilds with is_training=False and restores them.",
        f"                 The same {SHOWN} images, one at a time: accuracy {result['accuracy_after']:.2f}. "
        f"Whole test set: {result['test_accuracy_after']:.4f},",
        f"                 and one at a time gives {'the same' if result['one_at_a_time_equals_at_once'] else 'NOT the same'}"
        " predictions as all at once.",
    ]
    if len(result["runs"]) > 1:
        lines += ["", "seed   class before   right before   right after   test set after"]
        lines += [
            f"{each['seed']:>4}   {'/'.join(map(str, sorted(set(each['predictions_before'])))):>12}   "
            f"{each['accuracy_before']:>12.2f}   {each['accuracy_after']:>11.2f}   {each['test_accuracy_after']:>14.4f}"
            for each in result["runs"]
        ]
    lines += ["", f"Files            {folder / 'result.json'}   {folder / 'single_example.png'}"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    title = __doc__.splitlines()[0]
    return harness.main("single_example", title, run, summarize, draw, default_steps=STEPS, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
