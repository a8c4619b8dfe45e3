"""Makes today's TensorFlow look like that of the documents' time. Every change is listed, as text, where it is made.

What is not listed is as it was: the programs' lines are run as they stand.
"""

import re
import sys
import types

import numpy as np
import tensorflow
import tensorflow.compat.v1 as tf

import bn_graph
from bn_graph.layers import slim

__all__ = ["install", "rewritten"]

_IMPORT = re.compile(r"\bimport tensorflow as tf\b")


def install(changes: list[str]) -> None:
    """Sets today's TensorFlow up as TensorFlow 1, and supplies the modules that are gone.

    Args:
        changes: gets a line for each thing that was done.
    """
    tf.disable_v2_behavior()
    changes.append(f"TensorFlow {tensorflow.__version__}: tf.disable_v2_behavior(), legacy Keras for tf.layers")
    layers = types.SimpleNamespace(flatten=tf.layers.flatten, batch_norm=slim.batch_norm)
    tf.contrib = types.SimpleNamespace(layers=layers)
    changes.append("tf.contrib.layers.flatten is tf.layers.flatten; batch_norm is the project's form of slim's")
    _supply_reader()
    changes.append("tensorflow.examples.tutorials.mnist.input_data reads the same files by the project's reader")


def rewritten(source: str, changes: list[str]) -> str:
    """The program's source with its import of TensorFlow led to ``tensorflow.compat.v1``."""
    source, count = _IMPORT.subn("import tensorflow.compat.v1 as tf", source)
    text = "import of tensorflow: tensorflow.compat.v1"
    if count and text not in changes:
        changes.append(text)
    return source


def _supply_reader() -> None:
    for name in ("examples", "examples.tutorials", "examples.tutorials.mnist", "examples.tutorials.mnist.input_data"):
        module = types.ModuleType(f"tensorflow.{name}")
        sys.modules[module.__name__] = module
        parent, _, own = module.__name__.rpartition(".")
        setattr(sys.modules[parent], own, module)
    module.read_data_sets = _read_data_sets


def _read_data_sets(directory: str, one_hot: bool = False):
    """The tutorial's ``read_data_sets``, of one-hot labels."""
    dataset = bn_graph.datasets.load_mnist(directory)
    splits = {name: _Shuffled(getattr(dataset, name)) for name in ("train", "validation", "test")}
    if not one_hot:
        raise NotImplementedError("the documents ask for one-hot labels")
    return types.SimpleNamespace(**splits)


class _Shuffled:
    """A split that gives batches as the tutorial's does: each epoch shuffled anew, and the rest of one before the next."""

    def __init__(self, split):
        self.images, self.labels = split.images, split.labels
        self._left = np.array([], int)

    def next_batch(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `size` images and labels, by NumPy's global generator."""
        rows = self._left
        if len(rows) < size:
            rows = np.concatenate([rows, np.random.permutation(len(self.images))])
        taken, self._left = rows[:size], rows[size:]
        return self.images[taken], self.labels[taken]
