"""The networks whose steps are timed, and the data: MNIST's shapes, made up, since time does not depend on the pixels."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

import bn_graph

__all__ = [
    "CHECK_STEPS",
    "FORMS",
    "IMAGES",
    "R2RT",
    "SEED",
    "SIDE",
    "SOLVER",
    "Task",
    "agreement",
    "data",
    "initial_weights",
    "made",
    "products",
    "rows",
]

SEED = 0
EXAMPLES, TEST_EXAMPLES, INPUTS, CLASSES = 55_000, 10_000, 784, 10  # MNIST's, less its validation images
SIDE = 28  # of an image
CHECK_STEPS = 100  # after so many steps all contenders must have about the same loss: they compute the same thing
CHECK_EXAMPLES = 2000


class Task(NamedTuple):
    """A network and its training, as its document has them.

    ``network`` "r2rt": N(0, 1) weights, sigmoids, SGD of 0.01 on the summed cross-entropy, decay 0.999. "solver": Glorot's
    weights, ReLU, Adam of 0.01 on the mean, decay 0.99. "images": trained as the solver's; its hidden layers are
    convolutions of 3×3 with strides of 2, and the last one has the mean of each channel. All: batch norm with epsilon
    0.001 before each hidden activation and no bias there. ``forms``: "with" batch norm, "without" it, or both, which are
    two networks. ``examples``: of the data.
    """

    network: str
    hidden: tuple[int, ...]
    batch: int
    forms: tuple[str, ...] = ("with",)
    examples: int = EXAMPLES

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of the inputs, the hidden layers and the outputs; channels, of images."""
        return (1 if self.network == "images" else INPUTS, *self.hidden, CLASSES)

    @property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Of each layer's matrix, or convolution kernel."""
        *hidden, last = itertools.pairwise(self.sizes)
        kernel = (3, 3) if self.network == "images" else ()
        return [*((*kernel, *shape) for shape in hidden), last]

    @property
    def decay(self) -> float:
        """Of the moving statistics."""
        return 0.999 if self.network == "r2rt" else 0.99


R2RT = Task("r2rt", (100, 100), 60)
SOLVER = Task("solver", (32, 32), 32)
IMAGES = Task("images", (16, 32), 32)
EPSILON = 1e-3
LEARNING_RATE = 0.01


FORMS = ("with", "without")


def made(fields: Mapping) -> Task:
    """A `Task` that came as JSON, which has no tuples."""
    return Task(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def products(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """The operands of one step's matrix products: forward, and back to every matrix and to all inputs but the images."""
    generator = np.random.default_rng(SEED)

    def drawn(*shape: int) -> np.ndarray:
        return generator.random(shape, np.float32)

    operands = []
    for number, (rows, columns) in enumerate(itertools.pairwise(task.sizes)):
        operands.append((drawn(task.batch, rows), drawn(rows, columns)))
        operands.append((drawn(task.batch, rows).T, drawn(task.batch, columns)))
        if number:
            operands.append((drawn(task.batch, columns), drawn(rows, columns).T))
    return operands


def data(examples: int = EXAMPLES) -> bn_graph.Split:
    """Pixels in [0, 1], a fifth of them lit as in MNIST, and labels that can be learned: a fixed linear map's largest."""
    generator = np.random.default_rng(SEED)
    images = generator.random((examples, INPUTS), np.float32)
    images *= 5.0  # in place: a dozen processes hold this at once
    images -= 4.0
    np.maximum(images, 0.0, out=images)
    teacher = generator.standard_normal((INPUTS, CLASSES)).astype(np.float32)
    labels = np.argmax(images @ teacher - 0.1 * teacher.sum(0), axis=1)  # 0.1 is the mean pixel
    return bn_graph.Split(images, np.eye(CLASSES, dtype=np.float32)[labels])


def initial_weights(task: Task) -> list[np.ndarray]:
    """The same for every contender."""
    if task.network == "r2rt":
        return bn_graph.normal_weights(task.sizes, seed=SEED)
    generator = np.random.default_rng(SEED)
    return [
        generator.uniform(-1, 1, shape).astype(np.float32)
        * np.sqrt(6 / (math.prod(shape[:-2]) * sum(shape[-2:])), dtype=np.float32)  # of the fans in and out
        for shape in task.weight_shapes
    ]


def rows(task: Task, steps: int, examples: int) -> np.ndarray:
    """Which of so many `examples` are in the first `steps` batches, int32 [steps, batch], in this library's order."""
    batches = bn_graph.training.datasets.batch_rows(examples, task.batch, seed=SEED)
    return np.stack(list(itertools.islice(batches, steps))).astype(np.int32)


def agreement(run: Callable[[int], None], logits: Callable[[np.ndarray], np.ndarray], split: bn_graph.Split) -> dict:
    """Trains `CHECK_STEPS` steps and tells the mean cross-entropy by population statistics: the same of all contenders."""
    run(CHECK_STEPS)
    scores = np.asarray(logits(split.images[:CHECK_EXAMPLES]), np.float64)
    scores -= scores.max(1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return {"loss": float(-(log_probabilities * split.labels[:CHECK_EXAMPLES]).sum(1).mean())}
