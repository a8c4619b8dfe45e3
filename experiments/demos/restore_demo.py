"""Single images predicted from a checkpoint of single-example: rightly restored, and in the wrong ways of the article.

    make restore-demo        make restore-demo IMAGES="0 7 42"        make restore-demo CHECKPOINT=prefix

In a new process: the network is rebuilt with ``is_training=False`` and the checkpoint that ``make single-example`` left
is restored, with its moving statistics. Beside it stand the same weights restored as the article ("tensorflow中的
batchnorm", *Restoring from a checkpoint*) goes wrong: from the trainable variables alone. It judges no claim.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import programs
from experiments.single_example import HIDDEN_UNITS

FIRST = 10  # images that are shown if none are named
REMEDY = "run make single-example first"
RIGHT = "right"


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    return programs.run(_parser(), argv, lambda given: print(demo(given.output, given.images, given.checkpoint)))


def _parser() -> argparse.ArgumentParser:
    parser = programs.parser(__name__, __doc__)
    parser.add_argument(
        "--images", type=_place, nargs="+", help="places in the test set, from 0 (default: the first ten)"
    )
    parser.add_argument("--checkpoint", help="prefix (default: the newest that single-example left)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="where single-example wrote its results")
    return parser


def _place(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"an image is named by its place in the test set, from 0 up, not {text!r}")
    return int(text)


def demo(output: Path, images: list[int] | None, checkpoint: str | None) -> str:
    """The table, as text."""
    prefix = _newest(output) if checkpoint is None else checkpoint
    dataset = bn_graph.load(_data_of(prefix))
    places = list(range(FIRST)) if images is None else images
    outside = [place for place in places if place >= dataset.test.size]
    if outside:
        raise programs.UsageError(
            f"there is no image {outside[0]}: the test set of {dataset.name} has the images 0 to {dataset.test.size - 1}"
        )
    split = bn_graph.Split(dataset.test.images[places], dataset.test.labels[places])
    return _table(prefix, dataset, places, split.labels.argmax(1), _predict_each_way(prefix, split))


def _newest(output: Path) -> str:
    found = output.glob("single_example/checkpoints/*/wrapper/model.index")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        folder = output / "single_example" / "checkpoints"
        raise programs.UsageError(f"there is no checkpoint in {folder}: {REMEDY}, or name one with CHECKPOINT=prefix")
    return str(newest.with_suffix(""))


def _data_of(prefix: str) -> str:
    """Which data set the network was trained on: its first weights say how many pixels an image has."""
    try:
        shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError, OSError) as error:
        said = str(getattr(error, "message", error)).splitlines()[0]
        raise programs.UsageError(f"the checkpoint {prefix} can't be read ({said}): {REMEDY}") from error
    data = {784: "mnist", 64: "digits"}.get((shapes.get("w1") or [None])[0])
    if data is None:
        raise programs.UsageError(f"the checkpoint {prefix} is not one of single-example's: {REMEDY}")
    return data


def _predict_each_way(prefix: str, split: bn_graph.Split) -> dict[str, list[int] | str]:
    """For each way of restoring the predictions, one image at a time, or what was raised."""
    predictions = {RIGHT: _predict(lambda session: bn_graph.restore(session, prefix), split)}
    with tempfile.TemporaryDirectory() as folder:
        # What the article saves: the same network's trainable variables and nothing else.
        trainables = _save_trainables(prefix, split, f"{folder}/trainables")

        def by_all(session):
            tf.train.Saver().restore(session, trainables)

        def by_trainables(session):
            tf.train.Saver(tf.trainable_variables()).restore(session, trainables)

        def initialized(session):
            session.run(tf.global_variables_initializer())
            by_trainables(session)

        ways = {"wrong 1": by_all, "wrong 2": by_trainables, "wrong 3": initialized}
        predictions |= {way: _tried(restore, split) for way, restore in ways.items()}
    return predictions


def _network(split: bn_graph.Split) -> bn_graph.Network:
    sizes = (split.images.shape[1], *HIDDEN_UNITS, split.labels.shape[1])
    return bn_graph.build_graph(False, bn_graph.normal_weights(sizes, seed=0))


def _predict(restore: Callable[[tf.Session], None], split: bn_graph.Split) -> list[int]:
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = _network(split)
        restore(session)
        return [int(session.run(network.prediction, {network.x: [image]})[0]) for image in split.images]


def _tried(restore: Callable[[tf.Session], None], split: bn_graph.Split) -> list[int] | str:
    try:
        with _without_native_warnings():
            return _predict(restore, split)
    except (tf.errors.OpError, ValueError) as error:
        return type(error).__name__


@contextmanager
def _without_native_warnings() -> Iterator[None]:
    """Drops what native code writes to stderr: that a restore goes wrong is told in the table."""
    sys.stderr.flush()
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def _save_trainables(prefix: str, split: bn_graph.Split, path: str) -> str:
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        _network(split)
        bn_graph.restore(session, prefix)
        return tf.train.Saver(tf.trainable_variables()).save(session, path, write_meta_graph=False)


def _table(
    prefix: str,
    dataset: bn_graph.Dataset,
    places: list[int],
    labels: np.ndarray,
    predictions: dict[str, list[int] | str],
) -> str:
    lines = [f"Checkpoint: {prefix} ({dataset.name}). Each image is predicted alone.", ""]
    lines.append("image  label" + "".join(f"{way:>9}" for way in predictions))
    for row, (place, label) in enumerate(zip(places, labels, strict=True)):
        cells = ("error" if isinstance(each, str) else _marked(each[row], label) for each in predictions.values())
        lines.append(f"{place:>5}  {label:>5}" + "".join(f"{cell:>9}" for cell in cells))
    scores = (
        "-" if isinstance(each, str) else f"{np.sum(np.array(each) == labels)} of {len(labels)}"
        for each in predictions.values()
    )
    lines.append("right       " + "".join(f"{score:>9}" for score in scores))
    meanings = {
        RIGHT: "bn_graph.restore: all variables, moving statistics among them",
        "wrong 1": "saved the trainable variables only, restored by a Saver of all variables",
        "wrong 2": "saved the same, restored by a Saver of the trainable variables, nothing initialized",
        "wrong 3": "the same after the initializers were run: nothing is raised; mean 0 and variance 1 stand in",
    }
    lines.append("")
    for way, meaning in meanings.items():
        raised = f" -> {predictions[way]}" if isinstance(predictions[way], str) else ""
        lines.append(f"{way:<8}  {meaning}{raised}")
    return "\n".join(lines)


def _marked(predicted: int, label: int) -> str:
    return f"{predicted}" if predicted == label else f"{predicted} x"


if __name__ == "__main__":
    sys.exit(main())
