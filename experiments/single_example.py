"""The single-example bug and its fix.

Document: r2rt, "Implementing Batch Normalization in Tensorflow", sections *Making predictions with the model*, *Fixing
the model for test time* and *An implementation that works at test time*. Claims r2rt-12, 13, 14, 18, 19, 20, 22.

    make single-example        or        python -m experiments.single_example --data mnist --seed 0 1 2 3 4

The same network is trained three times, from the same weights on the same batches. The first normalizes with the
statistics of whatever batch it is given, always: it is good on the whole test set at once, and predicts one and the same
class for every image that it is given alone. The second is `bn_graph.batch_norm_wrapper`: it is saved, rebuilt in
another process with ``is_training=False``, restored, and predicts an image alone as it does among ten thousand. The
third is trained by the document's own loop, which scores the *training* graph on the test set every 50 steps and so
averages test statistics into the population's.

Changed from the document: the loss is the stable form of the same cross-entropy (the document's can become NaN), and
but for the third training the test set is never run through the training graph.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import children, harness, kept_work, results
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# The document's.
HIDDEN_UNITS = (100, 100)
BATCH_SIZE = 60
# The document's; on the summed loss, so 0.6 on the mean over the batch.
LEARNING_RATE = 0.01
# The document's.
EPSILON = 1e-3
DECAY = 0.999
# The document's, of its second training; its first ran 40,000 for another purpose.
STEPS = 10_000
# The document predicts the first 100 test images.
SHOWN = 100
# The document's loop scores the test set after the steps 0, 50, 100, ...; the last is 9,950.
SCORED_EVERY = 50

# What the document prints at the end of its second training.
FINAL_ACCURACY = 0.9532
# What it prints for the first 100 test images, one by one, after restoring.
FINAL_SHARE = 0.99

# The list that the document prints with it, and the labels of MNIST's first 100 test images (a run on MNIST checks them).
DOCUMENT_PREDICTIONS = (
    "7210414969069015973496654074013134727121174235124463556041957893746430702917329776278473613693141769"
)
MNIST_LABELS = "7210414959069015973496654074013134727121174235124463556041957893746430702917329776278473613693141769"

# Sampling error of a share p of n images: sqrt(p(1-p)/n). Figures further than two of them from the document's disagree.
STANDARD_ERRORS = 2
# r2rt-14: as good as with population statistics, to one point of accuracy.
WORKS_WITHIN = 0.01
# r2rt-14: means of the test set less than a tenth of a standard deviation from the training set's.
ESTIMATES_WITHIN = 0.1

FULL = Mode(data="mnist", steps=STEPS, seeds=[0, 1, 2, 3, 4])
QUICK = Mode(data="auto", steps=STEPS, seeds=[0])


def batch_statistics_always(inputs, is_training, name):
    """Batch norm as in the document's first network: by the batch's own statistics, in training and in prediction."""
    del is_training  # that it makes no difference is the bug
    units = inputs.shape.as_list()[-1]
    with tf.variable_scope(name):
        gamma = tf.get_variable("gamma", [units], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [units], initializer=tf.zeros_initializer())
        mean, variance = tf.nn.moments(inputs, [0])
        normalized = (inputs - mean) / tf.sqrt(variance + EPSILON)
        outputs = gamma * normalized + beta
        # The document writes layer 1 out, as here, and has TensorFlow's function on layer 2: x·s + (beta − mean·s).
        by_function = tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, EPSILON)
    watched = {"normalized": normalized, "outputs": outputs, "by_function": by_function, "beta": beta.read_value()}
    for key, tensor in (watched | {"mean": mean, "variance": variance}).items():
        tf.add_to_collection(f"watched_{key}", tensor)
    return outputs


def documents_wrapper(inputs, is_training, name):
    """The document's wrapper: assigns that the output depends on. The variables are named as the library's are."""
    units = inputs.shape.as_list()[-1]
    with tf.variable_scope(name):
        gamma = tf.get_variable("gamma", [units], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [units], initializer=tf.zeros_initializer())
        ones, zeros = tf.ones_initializer(), tf.zeros_initializer()
        population = [
            tf.get_variable("moving_mean", [units], initializer=zeros, trainable=False),
            tf.get_variable("moving_variance", [units], initializer=ones, trainable=False),
        ]
        if not is_training:
            return tf.nn.batch_normalization(inputs, *population, beta, gamma, EPSILON)
        batch = tf.nn.moments(inputs, [0])
        updates = [tf.assign(old, old * DECAY + new * (1 - DECAY)) for old, new in zip(population, batch, strict=True)]
        with tf.control_dependencies(updates):
            return tf.nn.batch_normalization(inputs, *batch, beta, gamma, EPSILON)


def wrapper(inputs, is_training, name):
    """The library's wrapper with the document's settings."""
    return bn_graph.batch_norm_wrapper(inputs, is_training, decay=DECAY, epsilon=EPSILON, name=name)


def run(settings: harness.Settings) -> dict:
    runs = [_run_seed(settings, seed) for seed in settings.seeds]
    images = {
        "images": results.pack_images(settings.dataset.test.images[:SHOWN]),
        "image_shape": list(settings.dataset.image_shape),
    }
    exact = {
        "document_list": _document_list(settings),
        "update": _one_update(settings),
        "share_of_test_batches": share_of_test_batches(settings.steps),
        "last_bias": {
            form: _last_bias(settings, used) for form, used in (("first graph", True), ("build_graph", False))
        },
    }
    return runs[0] | {"runs": runs} | images | exact


def _run_seed(settings: harness.Settings, seed: int) -> dict:
    dataset = settings.dataset
    test = dataset.test
    labels = test.labels.argmax(1)
    sizes = (test.images.shape[1], *HIDDEN_UNITS, test.labels.shape[1])
    weights = bn_graph.normal_weights(sizes, seed)

    before = _batch_statistics_network(settings, seed, weights)
    checkpoint = _train_wrapper_network(settings, seed, weights)
    after = children.ask(
        predict, checkpoint=checkpoint, data=settings.dataset.name, data_directory=settings.data_directory
    )
    clean, predicted_clean = _population(settings, weights, checkpoint)
    leak = _leaking_training(settings, seed, weights)
    leaking, predicted_leaking = _population(settings, weights, leak["checkpoint"])

    alone = np.array(after["one_at_a_time"])
    return {
        "seed": seed,
        "labels": labels[:SHOWN].tolist(),
        "predictions_before": before["one_at_a_time"],
        "accuracy_before": float(np.mean(before["one_at_a_time"] == labels[:SHOWN])),
        "test_accuracy_before_at_once": before["test_accuracy_at_once"],
        "test_accuracy_before_in_batches": before["test_accuracy_in_batches"],
        "activation_inputs": before["activation_inputs"],
        "distance_of_means": before["distance_of_means"],
        "predicted_class_from_parameters": before["class_from_parameters"],
        "predictions_after": alone[:SHOWN].tolist(),
        "accuracy_after": float(np.mean(alone[:SHOWN] == labels[:SHOWN])),
        "test_accuracy_after": float(np.mean(alone == labels)),
        "test_accuracy_after_at_once": float(np.mean(np.array(after["at_once"]) == labels)),
        "one_at_a_time_equals_at_once": after["one_at_a_time"] == after["at_once"],
        "largest_difference_of_logits": after["largest_difference_of_logits"],
        "checkpoint": os.path.relpath(checkpoint, settings.output),
        "document_loop": {
            "last_scored_step": leak["last_scored_step"],
            "last_score": leak["scores"][-1],
            "scores": [round(score, 4) for score in leak["scores"]],
            "population_accuracy": float(np.mean(predicted_leaking == labels)),
            "predictions_changed": int(np.sum(predicted_leaking != predicted_clean)),
            "same_weights": all(np.array_equal(clean[name], leaking[name]) for name in ("w1", "w2", "w3")),
        }
        | _difference(clean, leaking),
    }


def _batch_statistics_network(settings: harness.Settings, seed: int, weights: list[np.ndarray]) -> dict:
    """Trains the faulty network, scores the test set at once, and predicts the first images one at a time."""
    test = settings.dataset.test
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, weights, normalizer=batch_statistics_always, learning_rate=LEARNING_RATE)
        _train(settings, session, network, seed, "batch_statistics")

        test_accuracy = session.run(network.accuracy, {network.x: test.images, network.y_: test.labels})
        in_batches = [
            session.run(network.correct, {network.x: images, network.y_: labels}) for images, labels in _cut(test)
        ]
        activation_inputs = _activation_inputs(session, network, test.images[:SHOWN])
        distances = _distance_of_means(session, network, settings.dataset)
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
        "test_accuracy_in_batches": float(np.mean(np.concatenate(in_batches))),
        "activation_inputs": activation_inputs,
        "distance_of_means": distances,
        "class_from_parameters": int(logits.argmax()),
    }


def _train_wrapper_network(settings: harness.Settings, seed: int, weights: list[np.ndarray]) -> str:
    """Trains the mended network, saves it with its moving statistics, and returns the path to restore from."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, weights, normalizer=wrapper, learning_rate=LEARNING_RATE)
        folder = _train(settings, session, network, seed, "wrapper")
        return bn_graph.save(bn_graph.make_saver(), session, folder / "model")


def _cut(split: bn_graph.Split) -> list[tuple[np.ndarray, np.ndarray]]:
    """The examples in order, in batches of the training's size; the ragged rest, of fewer, is left out."""
    starts = range(0, split.size - BATCH_SIZE + 1, BATCH_SIZE)
    return [(split.images[start : start + BATCH_SIZE], split.labels[start : start + BATCH_SIZE]) for start in starts]


def _activation_inputs(session: tf.Session, network: bn_graph.Network, images: np.ndarray) -> list[dict]:
    """For each layer, over images that are fed alone: how far from 0 and from beta the sigmoid's inputs are, at most."""
    keys = ("normalized", "outputs", "by_function", "beta")
    watched = {key: tf.get_collection(f"watched_{key}") for key in keys}
    rounds = [session.run(watched, {network.x: [image]}) for image in images]
    layers = []
    for number in range(len(HIDDEN_UNITS)):
        normalized, outputs, by_function, beta = (np.stack([each[key][number] for each in rounds]) for key in keys)
        beta = beta[:, np.newaxis]
        layers.append(
            {
                "layer": number + 1,
                "largest_normalized": float(np.abs(normalized).max()),
                "largest_input": float(np.abs(outputs).max()),
                "largest_beta": float(np.abs(beta).max()),
                "written_out_from_beta": float(np.abs(outputs - beta).max()),
                "by_function_from_beta": float(np.abs(by_function - beta).max()),
                "by_function_exact_share": float(np.mean(by_function == beta)),
            }
        )
    return layers


def _distance_of_means(session: tf.Session, network: bn_graph.Network, dataset: bn_graph.Dataset) -> dict:
    """How well a batch's means estimate the training set's: mean distance, in standard deviations, over units and layers.

    The training set's are those of all of it at once in the same network, so that the two differ in their examples only.
    """
    fetches = {key: tf.get_collection(f"watched_{key}") for key in ("mean", "variance")}

    def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = session.run(fetches, {network.x: images})
        return np.concatenate(values["mean"]), np.concatenate(values["variance"])

    mean, variance = moments(dataset.train.images)
    whole = moments(dataset.test.images)[0]
    batches = np.stack([moments(images)[0] for images, _ in _cut(dataset.test)[:20]])
    deviation = np.sqrt(variance + EPSILON)
    return {
        "test set": float(np.mean(np.abs(whole - mean) / deviation)),
        "batches of 60": float(np.mean(np.abs(batches - mean) / deviation)),
    }


def _leaking_training(settings: harness.Settings, seed: int, weights: list[np.ndarray]) -> dict:
    """The document's own loop: every 50 steps the training graph is run on the test set, to score it."""
    test = settings.dataset.test
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        # The library's wrapper in training moves its statistics at each run, as the document's does: see _one_update.
        network = bn_graph.build_graph(True, weights, normalizer=wrapper, learning_rate=LEARNING_RATE)

        def is_scored(finished: int) -> bool:
            return (finished - 1) % SCORED_EVERY == 0

        def measure(finished: int) -> dict[str, np.ndarray]:
            if not is_scored(finished):
                return {}
            # This run moves the population statistics too: the leak.
            return {"score": session.run(network.accuracy, {network.x: test.images, network.y_: test.labels})}

        folder = _folder(settings, seed, "leak")
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


def _population(
    settings: harness.Settings, weights: list[np.ndarray], checkpoint: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A checkpoint's values, and the class of each test image by its population statistics."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(False, weights, normalizer=wrapper)
        bn_graph.restore(session, checkpoint)
        values = session.run({variable.op.name: variable for variable in tf.global_variables()})
        return values, session.run(network.prediction, {network.x: settings.dataset.test.images})


def _difference(clean: dict[str, np.ndarray], leaking: dict[str, np.ndarray]) -> dict[str, float]:
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


def _document_list(settings: harness.Settings) -> dict:
    """The document's printed list against the labels, which need no training."""
    wrong = [
        {"image": place, "printed": int(printed), "label": int(label)}
        for place, (printed, label) in enumerate(zip(DOCUMENT_PREDICTIONS, MNIST_LABELS, strict=True))
        if printed != label
    ]
    labels = "".join(map(str, settings.dataset.test.labels[:SHOWN].argmax(1)))
    return {
        "share": 1 - len(wrong) / SHOWN,
        "wrong": wrong,
        "labels_checked": settings.dataset.name == "mnist",
        "labels_agree": settings.dataset.name != "mnist" or labels == MNIST_LABELS,
    }


def _one_update(settings: harness.Settings) -> dict:
    """One run of the document's training graph that fetches nothing but the prediction: what of the variables moves?"""
    train = settings.dataset.train
    weights = bn_graph.normal_weights((train.images.shape[1], *HIDDEN_UNITS, train.labels.shape[1]), seed=0)
    batch = train.images[:BATCH_SIZE]
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, weights, normalizer=documents_wrapper)
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
        "ratio_to_biased": _ratio(found, inputs.var(0)),
        "ratio_to_unbiased": _ratio(found, inputs.var(0, ddof=1)),
    }


def _ratio(found: np.ndarray, expected: np.ndarray) -> float:
    """Median over the units; 1 says that this is what was averaged. (Rounding of the average itself: about 1e-6.)"""
    return float(np.median(found / expected))


def _last_bias(settings: harness.Settings, used: bool) -> dict:
    """The document's last layer with its b3, which its first graph adds and its build_graph leaves out; 20 steps of it."""
    train = settings.dataset.train
    sizes = (train.images.shape[1], *HIDDEN_UNITS, train.labels.shape[1])
    weights = bn_graph.normal_weights(sizes, seed=0)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x, y_ = (tf.placeholder(tf.float32, [None, width]) for width in (sizes[0], sizes[-1]))
        layer = x
        for number, initial in enumerate(weights[:-1], start=1):
            z = tf.matmul(layer, tf.Variable(initial))
            layer = tf.nn.sigmoid(documents_wrapper(z, True, f"bn{number}"))
        bias = tf.Variable(tf.zeros([sizes[-1]]))
        logits = tf.matmul(layer, tf.Variable(weights[-1])) + (bias if used else 0.0)
        loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits_v2(labels=y_, logits=logits))
        train_step = tf.train.GradientDescentOptimizer(LEARNING_RATE).minimize(loss)
        session.run(tf.global_variables_initializer())
        for images, labels in _cut(train)[:20]:
            session.run(train_step, {x: images, y_: labels})
        return {
            "trainable": bias in tf.trainable_variables(),
            "has_gradient": tf.gradients(loss, bias)[0] is not None,
            "largest_after_20_steps": float(np.abs(session.run(bias)).max()),
        }


def _train(settings: harness.Settings, session: tf.Session, network: bn_graph.Network, seed: int, form: str) -> Path:
    folder = _folder(settings, seed, form)
    bn_graph.resume(session, folder)
    train = {"graph": bn_graph.train_in_graph, "feed": bn_graph.train}[settings.loop]
    train(
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


def _folder(settings: harness.Settings, seed: int, form: str) -> Path:
    return kept_work.folder(settings, seed, form, batch=BATCH_SIZE, rate=LEARNING_RATE)


def predict(checkpoint: str, data: str, data_directory: str | None) -> dict:
    """Rebuilds the network for inference, restores it, and predicts the test images all at once and one at a time.

    It runs in a process of its own, which has nothing but the checkpoint, as a program that serves predictions does.
    """
    test = bn_graph.load(data, data_directory).test
    sizes = (test.images.shape[1], *HIDDEN_UNITS, test.labels.shape[1])
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        # The values of these weights don't matter: restore replaces them all, and refuses if it can't.
        network = bn_graph.build_graph(False, bn_graph.normal_weights(sizes, seed=0))
        bn_graph.restore(session, checkpoint)
        at_once = session.run(network.logits, {network.x: test.images})
        alone = session.make_callable(network.logits, [network.x])
        one_at_a_time = np.concatenate([alone(image[np.newaxis]) for image in test.images])
    return {
        "at_once": at_once.argmax(1).tolist(),
        "one_at_a_time": one_at_a_time.argmax(1).tolist(),
        "largest_difference_of_logits": float(np.abs(at_once - one_at_a_time).max()),
    }


FIGURES = {
    "single_example.png": "The first 100 test images, each predicted alone. Left, with the batch's own statistics, every "
    "image gets the same class; right, with population statistics restored from a checkpoint, nearly all are right."
}


def draw(result: dict, folder: Path) -> None:
    """The first 100 test images with both predictions: what a batch of one does, and what population statistics do."""
    shape = (SHOWN, *result["image_shape"])
    images = 255 - results.unpack_images(result["images"], shape)
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


def summarize(result: dict) -> str:
    classes = Counter(result["predictions_before"])
    (only, times), *others = classes.most_common()
    wrong = f"the class {only} all {times} times" if not others else f"{len(classes)} different classes"
    agrees = "is" if only == result["predicted_class_from_parameters"] else "IS NOT"
    lines = [
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
    loop = result["document_loop"]
    lines += [
        "",
        f"The document's own loop scores the training graph on the test set every {SCORED_EVERY} steps, which moves the "
        "population statistics:",
        f"test batches have {result['share_of_test_batches']:.1%} of their weight, and {loop['predictions_changed']} "
        f"of the test predictions change (accuracy {loop['population_accuracy']:.4f}).",
    ]
    return "\n".join(lines)


def judge_r2rt_12(result: dict) -> Verdict:
    runs = result["runs"]
    single = [run for run in runs if len(set(run["predictions_before"])) == 1]
    foretold = [run for run in single if run["predictions_before"][0] == run["predicted_class_from_parameters"]]
    measured = (
        f"one class in {len(single)} of {len(runs)} runs ({', '.join(str(run['predictions_before'][0]) for run in runs)}); "
        f"accuracy {spread([run['accuracy_before'] for run in runs], 2)}"
    )
    if len(single) < len(runs):
        return does_not_hold(measured, f"In {len(runs) - len(single)} runs more than one class was predicted.")
    classes = sorted({run["predictions_before"][0] for run in runs})
    which = f"Every seed gives {classes[0]}" if len(classes) == 1 else f"Which class depends on the seed ({classes})"
    note = f"{which}; beta and the last layer's weights alone foretold it in {len(foretold)} of {len(runs)} runs."
    return holds(measured, note)


def judge_r2rt_13(result: dict) -> Verdict:
    layers = [layer for run in result["runs"] for layer in run["activation_inputs"]]
    normalized, inputs, beta, written, function = (
        max(layer[key] for layer in layers)
        for key in (
            "largest_normalized",
            "largest_input",
            "largest_beta",
            "written_out_from_beta",
            "by_function_from_beta",
        )
    )
    measured = (
        f"normalized {normalized:g}; into the sigmoid up to {inputs:.3g}; "
        f"tf.nn.batch_normalization up to {function:.1g} from beta"
    )
    if normalized > 0:
        return does_not_hold(measured, f"Even the normalized value is up to {normalized:.1g} away from 0.")
    if inputs == 0:
        return holds(measured, "The normalized values and the sigmoid's inputs are exactly 0.")
    if written == 0:
        note = (
            f"The normalized value is exactly 0, so the sigmoid gets beta, which training had moved up to {beta:.2g} from 0. "
            f"tf.nn.batch_normalization computes x·s + (beta − μ·s) and lands up to {function:.1g} from beta."
        )
        return holds_if("beta is still 0", measured, note)
    return does_not_hold(measured, f"The sigmoid's inputs are up to {inputs:.3g}, and {written:.1g} away from beta.")


def judge_r2rt_14(result: dict) -> Verdict:
    runs = result["runs"]
    at_once, batches, population = (
        np.median([run[key] for run in runs])
        for key in ("test_accuracy_before_at_once", "test_accuracy_before_in_batches", "test_accuracy_after")
    )
    distance, of_60 = (
        np.median([run["distance_of_means"][key] for run in runs]) for key in ("test set", "batches of 60")
    )
    measured = (
        f"at once {spread([run['test_accuracy_before_at_once'] for run in runs])}, population {population:.4f}, "
        f"in batches of {BATCH_SIZE} {batches:.4f}"
    )
    estimate = (
        f"The test set's means lie {distance:.3f} standard deviations from the training set's; those of batches of "
        f"{BATCH_SIZE}, {of_60:.3f}."
    )
    note = f"{estimate} Predicting in these changes the accuracy by {batches - at_once:+.4f}."
    if at_once < population - WORKS_WITHIN:
        return does_not_hold(measured, note)
    if distance > ESTIMATES_WITHIN:
        return does_not_hold(measured, f"It works, but not for that reason. {estimate}")
    return holds(measured, note)


def judge_r2rt_18(result: dict) -> Verdict:
    update, loops = result["update"], [run["document_loop"] for run in result["runs"]]
    variance = "biased, not the paper's m/(m−1)"
    if abs(update["ratio_to_unbiased"] - 1) < abs(update["ratio_to_biased"] - 1):
        variance = "the paper's, with m/(m−1)"
    number = len(update["statistics"])
    measured = (
        f"{update['trainable']} of {number} trainable, {update['moved']} moved by one prediction; "
        f"{result['share_of_test_batches']:.2%} of the average is test batches"
    )
    changes = [
        loop["population_accuracy"] - run["test_accuracy_after"]
        for loop, run in zip(loops, result["runs"], strict=True)
    ]
    moved = np.median([loop["means_moved"] for loop in loops])
    note = (
        f"So scoring the training graph on the test set leaks: it moved the means by {moved:.1e} standard deviations and the "
        f"accuracy by {min(changes):+.4f} to {max(changes):+.4f}. The averaged variance is {variance}."
    )
    if update["trainable"]:
        return does_not_hold(measured, f"{update['trainable']} of the statistics are trainable.")
    if update["moved"] < number:
        return does_not_hold(
            measured, f"A run that fetches the prediction alone moves {update['moved']} of {number} statistics."
        )
    return holds(measured, note)


def _agrees(values: list[float], figure: float, examples: int) -> bool:
    """Whether the median is within two sampling errors of the document's figure."""
    return bool(abs(np.median(values) - figure) <= STANDARD_ERRORS * np.sqrt(figure * (1 - figure) / examples))


def judge_r2rt_19(result: dict) -> Verdict:
    runs, examples = result["runs"], 10_000
    step = runs[0]["document_loop"]["last_scored_step"]
    printed = [run["document_loop"]["last_score"] for run in runs]
    population = [run["test_accuracy_after"] for run in runs]
    measured = f"as printed there {spread(printed)}; by population statistics at the end {spread(population)}"
    note = (
        f"acc[-1] is step {step:,}, by the test set's own batch statistics. The restored network that the text goes on to use "
        f"has population statistics and a median of {np.median(population):.4f}."
    )
    as_printed, as_restored = _agrees(printed, FINAL_ACCURACY, examples), _agrees(population, FINAL_ACCURACY, examples)
    if as_printed and as_restored:
        return holds(measured, note)
    if as_printed:
        return holds_if("the test set's own statistics normalize it", measured, note)
    if as_restored:
        return holds_if("population statistics normalize it", measured, note)
    return does_not_hold(measured, f"{note} ({result['data']}, {result['steps']:,} steps.)")


def judge_r2rt_20(result: dict) -> Verdict:
    listed, runs = result["document_list"], result["runs"]
    shares = [run["accuracy_after"] for run in runs]
    measured = f"the printed list: {listed['share']:.2f}; here {spread(shares, 2)}"
    wrong = ", ".join(
        f"image {each['image']}, a {each['label']}, read as {each['printed']}" for each in listed["wrong"]
    )
    note = (
        f"The printed list has {len(listed['wrong'])} of {SHOWN} wrong ({wrong or 'none'}). A hundred images say little: "
        f"the same networks have {spread([run['test_accuracy_after'] for run in runs])} on the whole test set."
    )
    if not listed["labels_agree"]:
        return does_not_hold(
            measured, "The labels of the data set are not those that the printed list was compared with."
        )
    if round(listed["share"], 2) != FINAL_SHARE:
        return does_not_hold(measured, note)
    if not all(run["one_at_a_time_equals_at_once"] for run in runs):
        return does_not_hold(measured, "One at a time and all at once don't give the same predictions.")
    if min(shares) <= FINAL_SHARE <= max(shares):
        return holds(measured, note)
    # Two standard errors of a hundred images, at the share found here.
    chance = STANDARD_ERRORS * np.sqrt(np.median(shares) * (1 - np.median(shares)) / SHOWN)
    if abs(np.median(shares) - FINAL_SHARE) <= chance:
        return holds_if(f"it is read to ±{chance:.2f}", measured, note)
    return does_not_hold(measured, note)


def judge_r2rt_22(result: dict) -> Verdict:
    first, second = result["last_bias"]["first graph"], result["last_bias"]["build_graph"]
    measured = (
        f"b3 after 20 steps: {second['largest_after_20_steps']:g} in build_graph, "
        f"{first['largest_after_20_steps']:.2g} in the first graph"
    )
    if second["has_gradient"] and second["largest_after_20_steps"] > 0:
        return holds(measured, "The loss has a gradient in b3, and training moves it.")
    note = (
        "build_graph makes b3, counts it as trainable and saves it, but its softmax leaves it out: b3 has no gradient."
    )
    if first["has_gradient"]:
        note += " In the first graph it is used."
    return does_not_hold(measured, note)


if __name__ == "__main__":
    harness.run(__name__)
