"""The networks of `small_batches`: trained with each remedy in batches of each size, and scored by several statistics.

The network is r2rt's, except that the weights start as Glorot & Bengio have them for logistic units.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness
from experiments.machinery.classifiers import first_rows, glorot_weights, layer_sizes

__all__ = [
    "FORMS",
    "LARGEST",
    "RECALIBRATED",
    "SAMPLINGS",
    "SETTINGS",
    "Scorer",
    "Trainer",
    "Training",
    "batch_rows",
    "trainings",
]

# r2rt's.
HIDDEN_UNITS, EPSILON = (100, 100), 1e-3
# Examples in the batches that ghosts are cut from. r2rt has 60; a power of two can be cut into ghosts of any size.
LARGEST = 64
# Of the training's examples, in the averages: e⁻⁸ = 0.03 % of the start (0, 1) is left at the end.
MEMORY = 1 / 8
# Of the recalibration: means to 1/√6,000 = 0.013 standard deviations.
PASS_IMAGES = 6000
# Ioffe's schedule, as shares of his 130,000 steps: batch norm up to 5,000, then r to 3 by 40,000 and d to 5 by 25,000.
RENORM_START, RENORM_R, RENORM_D = 5 / 130, (40 / 130, 3.0), (25 / 130, 5.0)
# What kept work depends on.
SETTINGS = {"network": [HIDDEN_UNITS, EPSILON], "memory": MEMORY, "schedule": "linear", "images": PASS_IMAGES}
SETTINGS |= {"renorm": [RENORM_START, RENORM_R, RENORM_D]}

MIXED, TWO_CLASSES = SAMPLINGS = ("mixed", "two classes")
FORMS = BATCH_NORM, RENORM, GHOSTS, NONE = ("batch norm", "renorm", "ghost batches", "none")
RECALIBRATED = "recalibrated"


class Training(NamedTuple):
    """A form, and how many examples are normalized together."""

    form: str
    size: int

    @property
    def batch(self) -> int:
        """Examples a step."""
        return LARGEST if self.form == GHOSTS else self.size


def trainings(sizes: Sequence[int]) -> list[Training]:
    """Every form at every size it can have. Ghosts of one example would be beta, and ghosts of 64 are the batch itself."""
    return [Training(form, size) for form in FORMS for size in sizes if form != GHOSTS or 1 < size < LARGEST]


# --- The training -----------------------------------------------------------------------------------------------------
def batch_rows(labels: np.ndarray, batch: int, count: int, seed: int, sampling: str) -> np.ndarray:
    """Row numbers of `count` batches, ``[count, batch]``.

    Mixed: every epoch in a new order, so that all sizes see the same examples in the same order. Two classes: a pair of
    classes for every batch, whose examples alternate (so that ghosts have both), each drawn from all of its class.
    """
    if sampling == MIXED or batch == 1:
        return first_rows(len(labels), batch, count, seed)
    classes = labels.argmax(1)
    members = [np.flatnonzero(classes == each) for each in range(labels.shape[1])]
    generator = np.random.default_rng([seed, batch])
    first = generator.integers(len(members), size=(count, 1))
    second = (first + generator.integers(1, len(members), size=(count, 1))) % len(members)
    chosen = np.where(np.arange(batch) % 2 == 0, first, second)
    sizes = np.array([len(each) for each in members])
    places = (generator.random((count, batch)) * sizes[chosen]).astype(int)
    return np.concatenate(members)[(np.cumsum(sizes) - sizes)[chosen] + places]


def initial_weights(dataset: bn_graph.Dataset, seed: int) -> list[np.ndarray]:
    # Four times the usual range: Glorot & Bengio 2010, for logistic units.
    return glorot_weights(layer_sizes(dataset, HIDDEN_UNITS), seed, scale=4)


def clipping_at(done: tf.Tensor) -> dict[str, tf.Tensor]:
    """Renorm's bounds when the share `done` of the training is over. Ioffe 2017, section 4.1."""
    by_r, by_d = (
        tf.clip_by_value((done - RENORM_START) / (end - RENORM_START), 0.0, 1.0) for end, _ in (RENORM_R, RENORM_D)
    )
    r = 1 + (RENORM_R[1] - 1) * by_r
    return {"rmin": 1 / r, "rmax": r, "dmax": RENORM_D[1] * by_d}


def normalizer(z: tf.Tensor, is_training: bool, name: str, training: Training, steps: int) -> tf.Tensor:
    """What stands before the activations, for `bn_graph.build_graph`."""
    decay = 1 - 1 / max(steps * MEMORY, 1)
    options = {"epsilon": EPSILON, "name": name}
    if training.form == RENORM:
        done = tf.cast(tf.train.get_or_create_global_step(), tf.float32) / steps
        options |= {"renorm": True, "renorm_clipping": clipping_at(done)}
        options["renorm_momentum" if training.batch == 1 else "renorm_decay"] = decay
    if training.batch == 1:
        # tf.layers and not the library's wrapper, which refuses to train on a batch of one.
        return legacy_layers().batch_normalization(z, training=True, momentum=decay, **options)
    ghosts = training.size if training.form == GHOSTS else None
    return bn_graph.batch_norm_wrapper(z, is_training, decay=decay, virtual_batch_size=ghosts, **options)


class Trainer:
    """The training graph of one form at one size, and its loop; they serve every rate, seed and kind of batch.

    Attributes:
        session: of the graph; the caller closes it.
        step: of the network; it records the rate.
        variables: by their names.
    """

    def __init__(self, settings: harness.Settings, training: Training, steps: int):
        self.split, self.training, self.steps = settings.dataset.train, training, steps
        layer = None if training.form == NONE else functools.partial(normalizer, training=training, steps=steps)
        with tf.Graph().as_default() as graph:
            self._rates = tf.Variable(tf.zeros([steps]), trainable=False, collections=[], name="rates")
            rate = tf.gather(self._rates, tf.train.get_or_create_global_step())
            self._weights = functools.partial(initial_weights, settings.dataset)
            network = bn_graph.build_graph(True, self._weights(0), normalizer=layer, learning_rate=rate)
            self.variables = {variable.op.name: variable for variable in tf.global_variables()}
            self._initializer = tf.global_variables_initializer()
            # tf.layers' update ops; the wrapper's are in its outputs.
            train_op = tf.group(network.train_op, *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        self.step = bn_graph.Step(train_op, network.x, network.y_, recorded=[rate])
        self.session = tf.Session(graph=graph, config=harness.session_config(settings))
        build_loop = harness.LOOPS[settings.loop]
        if settings.own.get("compiled") and settings.loop == "graph":
            build_loop = functools.partial(bn_graph.graph_loop, compiled=True)
        self._advance = build_loop(self.session, self.step, self.split, batch_size=training.batch, seed=0)

    def start(self, rate: float, seed: int) -> None:
        """Gives every variable its first value; the rate falls from `rate` to 0 in a straight line."""
        weights = enumerate(self._weights(seed), start=1)
        self.session.run(self._initializer)
        load(self.session, {f"w{number}": value for number, value in weights})
        assign_values(self.session, [(self._rates, np.linspace(rate, 0, self.steps, endpoint=False))])

    def train(self, sampling: str, rate: float, seed: int) -> dict[str, np.ndarray]:
        """Trains anew; returns every variable's value by its name."""
        self.start(rate, seed)
        self._advance(0, self.steps, batch_rows(self.split.labels, self.training.batch, self.steps, seed, sampling))
        return self.session.run(self.variables)


def load(session: tf.Session, values: Mapping[str, np.ndarray]) -> None:
    """Assigns to the variables of the session's graph what `values` has by their names."""
    variables = session.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
    assign_values(session, [(each, values[each.op.name]) for each in variables if each.op.name in values])


# --- Scores with inference statistics, and with those of test batches -------------------------------------------------
def by_groups(z: tf.Tensor, is_training: bool, name: str, size: int) -> tf.Tensor:
    """Each run of `size` examples by its own statistics; of one example too, which the library refuses to train on."""
    units = z.shape.as_list()[1]
    grouped = tf.reshape(z, [-1, size, units])
    mean, variance = tf.nn.moments(grouped, [1], keepdims=True)
    with tf.variable_scope(name):
        gamma, beta = tf.get_variable("gamma", [units]), tf.get_variable("beta", [units])
    return tf.reshape(tf.nn.batch_normalization(grouped, mean, variance, beta, gamma, EPSILON), tf.shape(z))


def rounded(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{score:.5g}") for name, score in scores.items()}


class Scorer:
    """The inference network, and one that normalizes groups of test images, into which trained values are loaded."""

    def __init__(self, dataset: bn_graph.Dataset, training: Training):
        self.dataset, self.training = dataset, training
        by_moving_statistics = functools.partial(bn_graph.batch_norm_wrapper, epsilon=EPSILON)
        self.network, self.session = self.open(None if training.form == NONE else by_moving_statistics)
        self.grouped, self.grouped_session = self.open(functools.partial(by_groups, size=training.size))

    def open(self, layer: Callable[..., tf.Tensor] | None) -> tuple[bn_graph.Network, tf.Session]:
        with tf.Graph().as_default() as graph:
            network = bn_graph.build_graph(False, initial_weights(self.dataset, 0), normalizer=layer)
        return network, tf.Session(graph=graph, config=bn_graph.session_config())

    def score(self, values: Mapping[str, np.ndarray], split: bn_graph.Split) -> dict[str, float]:
        """Accuracies by the inference statistics that there are: "moving", and of batch norm `RECALIBRATED`."""
        load(self.session, values)
        scores = {"moving": self.accuracy(split)}
        if self.training.form == BATCH_NORM:
            feeds = [{self.network.x: self.dataset.train.images[:PASS_IMAGES]}]
            bn_graph.recalibrate(self.session, feeds, config=bn_graph.session_config())
            scores[RECALIBRATED] = self.accuracy(split)
        return rounded(scores)

    def test(self, values: Mapping[str, np.ndarray], sampling: str) -> dict[str, float]:
        """`score` on the test set; of batch norm also "unbiased", and "as in training" by test batches' statistics."""
        scores = self.score(values, self.dataset.test)
        if self.training.form == BATCH_NORM:
            scores |= {"unbiased": self.unbiased(values), "as in training": self.as_in_training(values, sampling)}
        return rounded(scores)

    def accuracy(self, split: bn_graph.Split) -> float:
        feeds = {self.network.x: split.images, self.network.y_: split.labels}
        return self.session.run(self.network.accuracy, feeds)

    def unbiased(self, values: Mapping[str, np.ndarray]) -> float:
        """Test accuracy with the moving variance as Algorithm 2 of the paper has it; of one value there is none."""
        bessel = self.training.size / max(self.training.size - 1, 1)
        load(
            self.session,
            {name: each * (bessel if name.endswith("moving_variance") else 1) for name, each in values.items()},
        )
        return self.accuracy(self.dataset.test)

    def as_in_training(self, values: Mapping[str, np.ndarray], sampling: str) -> float:
        test, size = self.dataset.test, self.training.size
        rows = batch_rows(test.labels, size, test.size // size, 0, sampling).reshape(-1)
        load(self.grouped_session, values)
        feeds = {self.grouped.x: test.images[rows], self.grouped.y_: test.labels[rows]}
        return self.grouped_session.run(self.grouped.accuracy, feeds)
