"""The networks of `checkpoint_variables`, and what its child processes do: restore in one way, report how it went.

Every restore has a graph and a session of its own; nothing but the files comes from the process that trained.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.layers.slim import batch_norm as slim_batch_norm
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery.classifiers import layer_sizes, losses, variable

# r2rt's.
HIDDEN_UNITS = (100, 100)
# Of Adam, which has slots: variables that a Saver of everything holds and prediction has no use for.
LEARNING_RATE = 0.01


def first_weights(dataset: bn_graph.Dataset, seed: int) -> list[np.ndarray]:
    """r2rt's, from N(0, 1)."""
    return bn_graph.normal_weights(layer_sizes(dataset, HIDDEN_UNITS), seed)


def layers_network(is_training: bool | tf.Tensor, weights: list[np.ndarray]) -> tuple[tf.Tensor, tf.Tensor]:
    """r2rt's network with the article's layer, tf.layers.batch_normalization: images and logits."""
    layers = legacy_layers()
    x = layer = tf.placeholder(tf.float32, [None, weights[0].shape[0]], name="x")
    for number, initial in enumerate(weights[:-1], start=1):
        z = tf.matmul(layer, variable(f"w{number}", initial))
        layer = tf.nn.sigmoid(layers.batch_normalization(z, training=is_training, name=f"bn{number}"))
    return x, tf.matmul(layer, variable(f"w{len(weights)}", weights[-1]))


def training_network(
    weights: list[np.ndarray], is_training: bool | tf.Tensor = True
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Operation]:
    """The same for training: images, labels, logits and a train op that runs the update ops."""
    x, logits = layers_network(is_training, weights)
    y_ = tf.placeholder(tf.float32, logits.shape, name="y_")
    optimizer, step = tf.train.AdamOptimizer(LEARNING_RATE), tf.train.get_or_create_global_step()
    train_op = bn_graph.train_op(optimizer, tf.reduce_mean(losses(logits, y_)), global_step=step)
    return x, y_, logits, train_op


def documents_names(
    is_training: bool,
    weights: list[np.ndarray],
    *,
    extra_before: bool = False,
    swapped: bool = False,
    without_last_bias: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """r2rt's network as that document names it, not at all: every tf.Variable is called Variable, Variable_1, ...

    Args:
        extra_before: one more variable is made first, so that every other name moves on by one.
        swapped: offset and scale of each layer are made in the other order.
        without_last_bias: b3, which the document makes and never uses, is tidied away.
    """
    x = layer = tf.placeholder(tf.float32, [None, weights[0].shape[0]])
    if extra_before:
        tf.Variable(tf.zeros([HIDDEN_UNITS[0]]))
    for initial in weights[:-1]:
        z = tf.matmul(layer, tf.Variable(tf.constant(initial)))
        units = initial.shape[1]
        starts = [tf.zeros([units]), tf.ones([units])] if swapped else [tf.ones([units]), tf.zeros([units])]
        pair = [tf.Variable(start) for start in starts]
        scale, offset = reversed(pair) if swapped else pair
        population = [tf.Variable(tf.zeros([units]), trainable=False), tf.Variable(tf.ones([units]), trainable=False)]
        layer = tf.nn.sigmoid(_document_wrapper(z, is_training, scale, offset, population))
    last = tf.Variable(tf.constant(weights[-1]))
    if not without_last_bias:
        tf.Variable(tf.zeros([weights[-1].shape[1]]))
    return x, tf.matmul(layer, last)


def _document_wrapper(z, is_training, scale, offset, population, decay=0.99):
    if not is_training:
        return tf.nn.batch_normalization(z, *population, offset, scale, 1e-3)
    batch = tf.nn.moments(z, [0])
    updates = [tf.assign(old, old * decay + new * (1 - decay)) for old, new in zip(population, batch, strict=True)]
    with tf.control_dependencies(updates):
        return tf.nn.batch_normalization(z, *batch, offset, scale, 1e-3)


# How a checkpoint is restored into the graph that predicts.
def restore_all(session: tf.Session, prefix: str) -> None:
    tf.train.Saver().restore(session, prefix)


def restore_trainables(session: tf.Session, prefix: str) -> None:
    tf.train.Saver(tf.trainable_variables()).restore(session, prefix)


def restore_trainables_after_initializing(session: tf.Session, prefix: str) -> None:
    session.run(tf.global_variables_initializer())
    restore_trainables(session, prefix)


RESTORES = {
    "all variables": restore_all,
    "trainables, not initialized": restore_trainables,
    "trainables, initialized": restore_trainables_after_initializing,
}


def outcome(
    build: Callable[[], tuple[tf.Tensor, tf.Tensor]],
    restore: Callable[[tf.Session, str], None],
    prefix: str,
    split: bn_graph.Split,
) -> dict:
    """Builds, restores and predicts each image alone: the error and where it came, or the accuracy."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x, logits = build()
        when = "restoring"
        try:
            restore(session, prefix)
            when = "predicting"
            alone = session.make_callable(tf.argmax(logits, 1), [x])
            return {"raised": None, "accuracy": accuracy_alone(alone, split)}
        except (tf.errors.OpError, ValueError) as error:
            return {"raised": type(error).__name__, "when": when, "message": error_text(error)}


def statistics_missed(found_by: Callable[[], list[tf.Variable]]) -> dict[str, dict]:
    """The statistics that each kind of layer makes, and those that are not `found_by` a filter of the graph's variables."""
    inputs, layer = np.ones([4, 3], np.float32), legacy_layers().batch_normalization
    average = tf.train.ExponentialMovingAverage(0.99)

    def population(*names: str) -> list[tf.Variable]:
        return [tf.get_variable(f"bn/{name}", [3], trainable=False) for name in names]

    makers = {
        "tf.layers": lambda: layer(tf.constant(inputs), training=True),
        "tf.layers, renorm": lambda: layer(tf.constant(inputs), training=True, renorm=True),
        "contrib / slim signature": lambda: slim_batch_norm(tf.constant(inputs), is_training=True),
        "the article's own wrapper": lambda: population("pop_mean", "pop_var"),
        "a layer that says mu and sigma": lambda: population("mu", "sigma"),
        "EWMA helper": lambda: bn_graph.ConvolutionalBatchNormalizer(3, 1e-3, average, True, "bn").get_assigner(),
    }
    found = {}
    for label, make in makers.items():
        with tf.Graph().as_default():
            make()
            kept = {variable.op.name for variable in found_by()}
            statistics = [each.op.name for each in tf.global_variables() if each not in tf.trainable_variables()]
        found[label] = {"statistics": statistics, "missed": [name for name in statistics if name not in kept]}
    return found


def first_images(dataset: bn_graph.Dataset, images: int) -> bn_graph.Split:
    """The first of the test set, the same in every process."""
    return bn_graph.Split(dataset.test.images[:images], dataset.test.labels[:images])


def accuracy_alone(predict: Callable[[np.ndarray], np.ndarray], split: bn_graph.Split) -> float:
    """Of `predict`, from a batch to its classes, given one image at a time."""
    predicted = np.concatenate([predict(image[np.newaxis]) for image in split.images])
    return float(np.mean(predicted == split.labels.argmax(1)))


@contextlib.contextmanager
def working_directory(folder: str | Path) -> Iterator[None]:
    """For paths that have no directory, as the documents' have none. (`contextlib.chdir` came with Python 3.11.)"""
    home = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)


def error_text(error: Exception) -> str:
    """The part of TensorFlow's message that says what is wrong, without the paths and the graph's traceback."""
    text = " ".join(str(getattr(error, "message", error)).split())
    for beginning in ("Key ", "Assign requires", "Could not find variable", "Attempting to use", "Error while reading"):
        if beginning in text:
            text = text[text.index(beginning) :]
            break
    return text.partition(" [[{{node")[0][:120]


def resumes(prefix: str, weights: list[np.ndarray]) -> dict:
    """Whether the training graph, optimizer and all, restores from it."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        training_network(weights)
        try:
            restore_all(session, prefix)
        except (tf.errors.OpError, ValueError) as error:
            return {"raised": type(error).__name__, "message": error_text(error)}
        return {"raised": None, "step": int(session.run(tf.train.get_global_step()))}


def run_job(
    way: str,
    data: str,
    data_directory: str | None,
    images: int,
    checkpoints: dict[str, str],
    unnamed: str,
    returned: dict[str, str],
) -> dict:
    """What one way of restoring makes of each checkpoint; the way that restores all also does the rest.

    Args:
        way: of `RESTORES`.
        data, data_directory: of the images that are predicted, the first `images` of the test set.
        checkpoints: prefixes by any key.
        unnamed: the prefix of r2rt's network by its automatic names.
        returned: what `saver.save` returned, and the folder that it was called in.
    """
    dataset = bn_graph.load(data, data_directory)
    # Only the shapes matter; another seed than the trainings', so that a value that was not restored shows.
    weights, split = first_weights(dataset, 99), first_images(dataset, images)
    found = {
        "restored": {
            key: outcome(lambda: layers_network(False, weights), RESTORES[way], prefix, split)
            for key, prefix in checkpoints.items()
        }
    }
    if way == "all variables":
        found["resumed"] = {key: resumes(prefix, weights) for key, prefix in checkpoints.items()}
        found["names"] = names_outcomes(unnamed, weights, split)
        found["returned"] = returned_path(returned, weights, split)
    return found


def names_outcomes(prefix: str, weights: list[np.ndarray], split: bn_graph.Split) -> dict:
    """The checkpoint of automatic names, into builds that differ a little from the one that was saved."""

    def second_in_one_graph():
        documents_names(True, weights)
        return documents_names(False, weights)

    builds = {
        "the same build": lambda: documents_names(False, weights),
        "one variable more, before": lambda: documents_names(False, weights, extra_before=True),
        "one more before, unused b3 left out": lambda: documents_names(
            False, weights, extra_before=True, without_last_bias=True
        ),
        "offset made before scale": lambda: documents_names(False, weights, swapped=True),
        "a second build in one graph, all restored": second_in_one_graph,
    }
    return {label: outcome(build, restore_all, prefix, split) for label, build in builds.items()}


def returned_path(saved: dict, weights: list[np.ndarray], split: bn_graph.Split) -> dict:
    """What `saver.save` returned, restored from, in the working directory of the save and in another."""
    found = {}
    for label, folder in (("there", saved["folder"]), ("elsewhere", os.getcwd())):
        with working_directory(folder):
            for key in ("absolute", "relative", "with step"):
                build = lambda: layers_network(False, weights)  # noqa: E731
                found[f"{key}, {label}"] = outcome(build, restore_all, saved[key], split)
    return found
