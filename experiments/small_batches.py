"""Training batches of 1 to 64, mixed and of two classes: batch norm, and which remedy helps where.

Documents: Ioffe 2017, "Batch Renormalization", sections 4.2 and 4.3 (claims renorm-01, 02); Hoffer, Hubara & Soudry 2017,
"Train longer, generalize better", *Ghost Batch Normalization* (ghost-01); Wu & Johnson 2021, "Rethinking 'Batch' in
BatchNorm", sections 3 and 4 (precise-01, 02).

    make small-batches        or        python -m experiments.small_batches --mode full

r2rt's network is trained on as many examples at every batch size, with every remedy: renormalization; ghost batches;
statistics that are computed anew after training (`bn_graph.recalibrate`); and no normalization at all. A batch is drawn
from all classes, or from two. Everybody is scored by inference statistics on the whole test set; batch norm also by the
statistics of test batches that are of the size and the kind it was trained on.

Ghost batches make small batches out of large ones. They are no way out for who can only afford a small batch, and stand
here for the other question: what small statistics cost when the gradient is that of a large batch. All of them are cut
from batches of 64, and are shown at their own size.

Every remedy has a learning rate of its own at every batch size and for either kind of batch: of a few, the lowest that is
within one standard error of the best on the validation images, on a seed that is not measured. Rates are those of the
*summed* loss, a rate per example: with those, the same rate means the same length of way per example whatever the batch
(the linear scaling rule). They fall to 0 in a straight line, or else the last few batches would be what is compared.
Averages keep as many examples in memory at each size, and not as many steps.

Changed from the papers: their networks are convolutional and their data ImageNet and CIFAR; from r2rt: the weights start
as Glorot & Bengio have them for logistic units, since a network without normalization hardly learns from N(0, 1).
"""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import NullLocator

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness, kept_work, results
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# r2rt's.
HIDDEN_UNITS = (100, 100)
EPSILON = 1e-3
# r2rt has 60; a power of two can be cut into ghosts of any size.
LARGEST = 64
SIZES = {"full": (1, 2, 4, 8, 16, 32, LARGEST), "quick": (1, 4, 16, LARGEST)}
# At the start; r2rt's is 0.01; a factor of three apart.
RATES = {"full": (0.003, 0.01, 0.03, 0.1, 0.3), "quick": (0.01, 0.03)}
# Of batches of 64: 12,288 examples, which is as many steps in batches of one.
STEPS = 192
QUICK_STEPS = 40
# No seed that is measured chooses its own rate.
TUNING_SEED = 1000
# Of the training's examples, in the averages: e⁻⁸ = 0.03 % of the start (0, 1) is left at the end.
MEMORY = 1 / 8
# Of the recalibration: means to 1/√6,000 = 0.013 standard deviations.
PASS_IMAGES = 6000

# Ioffe's schedule, as shares of his 130,000 steps: batch norm up to 5,000, then r to 3 by 40,000 and d to 5 by 25,000.
RENORM_START, RENORM_R, RENORM_D = 5 / 130, (40 / 130, 3.0), (25 / 130, 5.0)

MIXED, TWO_CLASSES = SAMPLINGS = ("mixed", "two classes")
# What is trained.
FORMS = ("batch norm", "renorm", "ghost batches", "none")
BATCH_NORM, RENORM, GHOSTS, NONE = FORMS
RECALIBRATED = "recalibrated"
# What is compared.
REMEDIES = (BATCH_NORM, RECALIBRATED, RENORM, GHOSTS, NONE)
# Those that need no larger batch than batch norm's.
OTHER_WAYS = (RECALIBRATED, RENORM, NONE)

# Accuracy, of whose standard error over the test images less than one is not seen (`not_seen`).
USUAL = 0.95
# Standard errors; 0.01 on MNIST.
FAULT = 5
# "small" of the claims: Ioffe's microbatches have 4 examples, Wu & Johnson's 2 to 16.
SMALL = 8

FULL = Mode(data="mnist", steps=STEPS, seeds=[0, 1, 2])
QUICK = Mode(data="digits", steps=QUICK_STEPS, seeds=[0])


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


def initial_weights(sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Uniform in ±4·√(6/(rows + columns)): Glorot & Bengio 2010, for logistic units."""
    generator = np.random.default_rng(seed)
    limits = [(shape, 4 * math.sqrt(6 / sum(shape))) for shape in itertools.pairwise(sizes)]
    return [generator.uniform(-limit, limit, shape).astype(np.float32) for shape, limit in limits]


def batch_rows(labels: np.ndarray, batch: int, count: int, seed: int, sampling: str) -> np.ndarray:
    """Row numbers of `count` batches, ``[count, batch]``.

    Mixed: every epoch in a new order, so that all sizes see the same examples in the same order. Two classes: a pair of
    classes for every batch, whose examples alternate (so that ghosts have both), each drawn from all of its class.
    """
    if sampling == MIXED or batch == 1:
        rows = bn_graph.training.datasets.batch_rows(len(labels), batch, seed=seed)
        return np.stack(list(itertools.islice(rows, count)))
    classes = labels.argmax(1)
    members = [np.flatnonzero(classes == each) for each in range(labels.shape[1])]
    generator = np.random.default_rng([seed, batch])
    first = generator.integers(len(members), size=(count, 1))
    second = (first + generator.integers(1, len(members), size=(count, 1))) % len(members)
    chosen = np.where(np.arange(batch) % 2 == 0, first, second)
    starts = np.cumsum([0] + [len(each) for each in members[:-1]])
    sizes = np.array([len(each) for each in members])
    places = (generator.random((count, batch)) * sizes[chosen]).astype(int)
    return np.concatenate(members)[starts[chosen] + places]


# --- Training ---------------------------------------------------------------------------------------------------------


def clipping_at(done: float | tf.Tensor) -> dict[str, float | tf.Tensor]:
    """Renorm's bounds when the share `done` of the training is over. Ioffe 2017, section 4.1."""
    r = 1 + (RENORM_R[1] - 1) * _risen(done, RENORM_R[0])
    return {"rmin": 1 / r, "rmax": r, "dmax": RENORM_D[1] * _risen(done, RENORM_D[0])}


def _risen(done: float | tf.Tensor, end: float) -> float | tf.Tensor:
    share = (done - RENORM_START) / (end - RENORM_START)
    return tf.clip_by_value(share, 0.0, 1.0) if tf.is_tensor(share) else min(max(share, 0.0), 1.0)


def make_normalizer(training: Training, steps: int) -> Callable[..., tf.Tensor] | None:
    """What stands before the activations, for `bn_graph.build_graph`; None for no normalization."""
    if training.form == NONE:
        return None
    decay = 1 - 1 / max(steps * MEMORY, 1)

    def normalizer(z: tf.Tensor, is_training: bool, name: str) -> tf.Tensor:
        renorm = {}
        if training.form == RENORM:
            done = tf.cast(tf.train.get_or_create_global_step(), tf.float32) / steps
            renorm = {"renorm": True, "renorm_clipping": clipping_at(done)}
        if training.batch == 1:
            # tf.layers and not the library's wrapper, which refuses to train on a batch of one.
            renorm |= {"renorm_momentum": decay} if renorm else {}
            return legacy_layers().batch_normalization(
                z, training=True, momentum=decay, epsilon=EPSILON, name=name, **renorm
            )
        renorm |= {"renorm_decay": decay} if renorm else {}
        ghosts = training.size if training.form == GHOSTS else None
        return bn_graph.batch_norm_wrapper(
            z, is_training, decay=decay, epsilon=EPSILON, virtual_batch_size=ghosts, name=name, **renorm
        )

    return normalizer


class _Trainer:
    """The training graph of one form at one size; it serves every rate, seed and kind of batch."""

    def __init__(self, dataset: bn_graph.Dataset, training: Training, steps: int):
        self.dataset, self.training, self.steps = dataset, training, steps
        self.sizes = _layer_sizes(dataset)
        with tf.Graph().as_default() as graph:
            rate = tf.placeholder(tf.float32, [])
            normalizer = make_normalizer(training, steps)
            network = bn_graph.build_graph(
                True, initial_weights(self.sizes, 0), normalizer=normalizer, learning_rate=rate
            )
            self.variables = tf.global_variables()
            self.weights = [
                each for each in self.variables if each.op.name in [f"w{n}" for n in range(1, len(self.sizes))]
            ]
            self.initializer = tf.global_variables_initializer()
            updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)  # tf.layers'; the wrapper's are in its outputs
            train_op = tf.group(network.train_op, *updates)
        self.session = tf.Session(graph=graph, config=bn_graph.session_config())
        self.step = self.session.make_callable(train_op, [network.x, network.y_, rate])

    def train(self, sampling: str, rate: float, seed: int) -> dict[str, np.ndarray]:
        """Trains anew; returns every variable's value by its name."""
        split = self.dataset.train
        self.session.run(self.initializer)
        assign_values(self.session, zip(self.weights, initial_weights(self.sizes, seed), strict=True))
        rows = batch_rows(split.labels, self.training.batch, self.steps, seed, sampling)
        run_steps(self.step, split, rows, rate)
        values = self.session.run(self.variables)
        return {variable.op.name: value for variable, value in zip(self.variables, values, strict=True)}


def run_steps(step: Callable[..., None], split: bn_graph.Split, rows: np.ndarray, rate: float) -> None:
    """One step for every row of `rows`, at a rate that falls from `rate` to 0 in a straight line."""
    images, labels = split
    for chosen, each in zip(rows, np.linspace(rate, 0, len(rows), endpoint=False), strict=True):
        step(images[chosen], labels[chosen], each)


def _layer_sizes(dataset: bn_graph.Dataset) -> tuple[int, ...]:
    return (dataset.train.images.shape[1], *HIDDEN_UNITS, dataset.train.labels.shape[1])


# --- Scoring ----------------------------------------------------------------------------------------------------------


class _Scorer:
    """The inference network, and one that normalizes groups of test images, into which trained values are loaded."""

    def __init__(self, dataset: bn_graph.Dataset, normalized: bool):
        self.dataset, self.normalized = dataset, normalized
        weights = initial_weights(_layer_sizes(dataset), 0)
        with tf.Graph().as_default() as graph:
            normalizer = _inference_wrapper if normalized else None
            self.inference = bn_graph.build_graph(False, weights, normalizer=normalizer)
            self.variables = {variable.op.name: variable for variable in tf.global_variables()}
            self.session = tf.Session(graph=graph, config=bn_graph.session_config())
        with tf.Graph().as_default() as graph:
            self.group = tf.placeholder(tf.int32, [])
            self.grouped = bn_graph.build_graph(False, weights, normalizer=self._by_groups)
            self.grouped_variables = {variable.op.name: variable for variable in tf.global_variables()}
            self.grouped_session = tf.Session(graph=graph, config=bn_graph.session_config())

    def _by_groups(self, z: tf.Tensor, is_training: bool, name: str) -> tf.Tensor:
        """Each run of `group` examples by its own statistics; of one example too, which the library refuses to train on."""
        units = z.shape.as_list()[1]
        grouped = tf.reshape(z, tf.stack([-1, self.group, units]))
        mean, variance = tf.nn.moments(grouped, [1], keepdims=True)
        with tf.variable_scope(name):
            gamma, beta = tf.get_variable("gamma", [units]), tf.get_variable("beta", [units])
        return tf.reshape(tf.nn.batch_normalization(grouped, mean, variance, beta, gamma, EPSILON), tf.shape(z))

    def score(self, values: Mapping[str, np.ndarray], training: Training, sampling: str) -> dict[str, float]:
        """Accuracies, by the inference statistics that there are, and by those of test batches as in training."""
        _load(self.session, self.variables, values)
        scores = self._both("moving")
        if training.form == BATCH_NORM:
            scores["unbiased"] = self._unbiased(values, training.size)
            feeds = [{self.inference.x: self.dataset.train.images[:PASS_IMAGES]}]
            bn_graph.recalibrate(self.session, feeds, config=bn_graph.session_config())
            scores |= self._both(RECALIBRATED)
            scores["as in training"] = self._as_in_training(values, training.size, sampling)
        return {name: float(f"{score:.5g}") for name, score in scores.items()}

    def _both(self, name: str) -> dict[str, float]:
        return {
            f"{name}, validation": self._accuracy(self.dataset.validation),
            f"{name}, test": self._accuracy(self.dataset.test),
        }

    def _accuracy(self, split: bn_graph.Split) -> float:
        network = self.inference
        return self.session.run(network.accuracy, {network.x: split.images, network.y_: split.labels})

    def _unbiased(self, values: Mapping[str, np.ndarray], size: int) -> float:
        """Test accuracy with the moving variance as Algorithm 2 of the paper has it; of one value there is none."""
        bessel = size / max(size - 1, 1)
        corrected = {name: value * bessel for name, value in values.items() if name.endswith("moving_variance")}
        _load(self.session, self.variables, corrected)
        return self._accuracy(self.dataset.test)

    def _as_in_training(self, values: Mapping[str, np.ndarray], size: int, sampling: str) -> float:
        test = self.dataset.test
        rows = batch_rows(test.labels, size, test.size // size, 0, sampling).reshape(-1)
        _load(self.grouped_session, self.grouped_variables, values)
        feeds = {self.grouped.x: test.images[rows], self.grouped.y_: test.labels[rows], self.group: size}
        return self.grouped_session.run(self.grouped.accuracy, feeds)

    def close(self) -> None:
        self.session.close()
        self.grouped_session.close()


def _inference_wrapper(z: tf.Tensor, is_training: bool, name: str) -> tf.Tensor:
    return bn_graph.batch_norm_wrapper(z, is_training, epsilon=EPSILON, name=name)


def _load(session: tf.Session, variables: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray]) -> None:
    assign_values(session, [(variables[name], value) for name, value in values.items() if name in variables])


# --- Running ----------------------------------------------------------------------------------------------------------


def run(settings: harness.Settings) -> dict:
    sizes, rates = SIZES[settings.mode], RATES[settings.mode]
    folder = kept_work.folder(
        settings,
        None,
        settings.mode,
        network=[list(HIDDEN_UNITS), EPSILON],
        memory=MEMORY,
        schedule="linear",
        images=PASS_IMAGES,
        renorm=[RENORM_START, list(RENORM_R), list(RENORM_D)],
    )
    every = trainings(sizes)
    cells = []
    with (
        contextlib.closing(_Scorer(settings.dataset, True)) as normalized,
        contextlib.closing(_Scorer(settings.dataset, False)) as plain,
    ):
        for place in harness.progress_bar("forms and sizes")(range(len(every))):
            scorer = plain if every[place].form == NONE else normalized
            cells += _cells(settings, folder, every[place], scorer)
    result = {"sizes": list(sizes), "rates": list(rates), "examples": settings.steps * LARGEST, "cells": cells}
    result["test_images"] = settings.dataset.test.size
    return result | {"advice": advice(result)}


def _cells(settings: harness.Settings, folder: Path, training: Training, scorer: _Scorer) -> list[dict]:
    """For each kind of batch one remedy's accuracies, or two: the recalibrated statistics are batch norm's weights'."""
    with _recorded_trainings(settings, folder, training, scorer) as scores_of:
        cells = []
        # A batch of one is of one class however it is drawn.
        for sampling in SAMPLINGS if training.batch > 1 else (MIXED,):
            for remedy in (BATCH_NORM, RECALIBRATED) if training.form == BATCH_NORM else (training.form,):
                statistics = RECALIBRATED if remedy == RECALIBRATED else "moving"
                tuning = [
                    scores_of(sampling, rate, TUNING_SEED)[f"{statistics}, validation"] for rate in RATES[settings.mode]
                ]
                rate = chosen_rate(RATES[settings.mode], tuning, settings.dataset.validation.size)
                scores = [scores_of(sampling, rate, seed) for seed in settings.seeds]
                cell = {"sampling": sampling, "remedy": remedy, "size": training.size, "rate": rate, "tuning": tuning}
                cell["accuracy"] = [each[f"{statistics}, test"] for each in scores]
                if remedy == BATCH_NORM:
                    names = {
                        "as in training": "as in training",
                        "unbiased": "unbiased",
                        "recalibrated, test": "same weights",
                    }
                    cell |= {label: [each[name] for each in scores] for name, label in names.items()}
                cells.append(cell)
        copies = [] if training.batch > 1 else [cell | {"sampling": TWO_CLASSES} for cell in cells]
        return cells + copies


def chosen_rate(rates: Sequence[float], tuning: Sequence[float], images: int) -> float:
    """The lowest rate that is no more than one standard error of the validation accuracy behind the best.

    The plain best may be a rate on the edge of diverging that was lucky for one seed.
    """
    least = max(tuning) - math.sqrt(USUAL * (1 - USUAL) / images)
    return min(rate for rate, accuracy in zip(rates, tuning, strict=True) if accuracy >= least)


@contextlib.contextmanager
def _recorded_trainings(settings: harness.Settings, folder: Path, training: Training, scorer: _Scorer):
    """A function from kind of batch, rate and seed to scores, which trains what no earlier run has left on disk."""
    record = folder / f"{training.form.replace(' ', '_')}-{training.size}.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    made = []

    def scores_of(sampling: str, rate: float, seed: int) -> dict[str, float]:
        key = f"{sampling}, rate {rate:g}, seed {seed}"
        if key not in known:
            if not made:
                steps = settings.steps * LARGEST // training.batch
                made.append(_Trainer(settings.dataset, training, steps))
            known[key] = scorer.score(made[0].train(sampling, rate, seed), training, sampling)
            results.write_json(record, known)
        return known[key]

    try:
        yield scores_of
    finally:
        for trainer in made:
            trainer.session.close()


# --- Reading the result -----------------------------------------------------------------------------------------------


def values(result: dict, sampling: str, remedy: str, size: int, what: str = "accuracy") -> list[float]:
    """One for each seed; empty if the remedy does not exist at that size."""
    return [
        value
        for cell in result["cells"]
        if (cell["sampling"], cell["remedy"], cell["size"]) == (sampling, remedy, size)
        for value in cell[what]
    ]


def median(result: dict, sampling: str, remedy: str, size: int, what: str = "accuracy") -> float:
    """Of `values`; NaN if there are none, which no comparison is true of."""
    found = values(result, sampling, remedy, size, what)
    return float(np.median(found)) if found else math.nan


def gains(result: dict, sampling: str, remedy: str, size: int) -> np.ndarray:
    """Accuracy ahead of batch norm with its moving averages, seed by seed; empty if the remedy does not exist there.

    Batch norm has the batch that the remedy has: for ghosts the one that they are cut from.
    """
    these = values(result, sampling, remedy, size)
    return _ahead(these, values(result, sampling, BATCH_NORM, Training(remedy, size).batch))


def _ahead(these: Sequence[float], those: Sequence[float]) -> np.ndarray:
    return np.subtract(these, those) if these and those else np.array([])


def _middle(differences: np.ndarray) -> float:
    return float(np.median(differences)) if len(differences) else math.nan


def not_seen(result: dict) -> float:
    """The least difference in accuracy that counts: 0.002 for MNIST's 10,000 test images, 0.011 for the digits' 360."""
    return math.sqrt(USUAL * (1 - USUAL) / result["test_images"])


def is_seen(result: dict, differences: np.ndarray) -> bool:
    """Whether one thing is better than another: by more than `not_seen` in the median, and for every seed."""
    return len(differences) > 0 and _middle(differences) > not_seen(result) and differences.min() > 0


def _batches(sizes: Iterable[int]) -> str:
    """As "2", "2 and 4", "2, 4 and 8"."""
    texts = [str(size) for size in sizes]
    return " and ".join([", ".join(texts[:-1])] * (len(texts) > 1) + texts[-1:])


def _from_two(result: dict) -> list[int]:
    return [size for size in result["sizes"] if size > 1]


def _small(result: dict) -> list[int]:
    return [size for size in _from_two(result) if size <= SMALL]


def advice(result: dict) -> str:
    """What follows from the measurements, in a paragraph; every part of it depends on them."""
    seeds = len(result["cells"][0]["accuracy"])
    parts = [
        f"Test accuracies after {result['examples']:,} training examples, medians of {seeds} seed{'s' * (seeds > 1)}; better "
        f"is what is so by {not_seen(result):.3f} or more, and for every seed."
    ]
    parts.append(_advice_for_one(result))
    for sampling, words in ((MIXED, "Mixed batches"), (TWO_CLASSES, "Batches of two classes")):
        parts += [
            _where_batch_norm_is_enough(result, sampling, words),
            _what_helps(result, sampling, "There is something better", OTHER_WAYS),
            _what_helps(result, sampling, "For a network that does not train without normalization", OTHER_WAYS[:-1]),
        ]
    parts.append(_advice_on_ghosts(result))
    return " ".join(part for part in parts if part)


def _advice_for_one(result: dict) -> str:
    if 1 not in result["sizes"]:
        return ""
    accuracies = {remedy: median(result, MIXED, remedy, 1) for remedy in REMEDIES if remedy != GHOSTS}
    best = max(accuracies, key=accuracies.get)
    others = ", ".join(f"{remedy} {accuracy:.3f}" for remedy, accuracy in accuracies.items() if remedy != best)
    return f"Batches of one: {_doing(best)} ({accuracies[best]:.3f}; {others})."


def _doing(remedy: str) -> str:
    return {
        BATCH_NORM: "keep batch norm",
        RECALIBRATED: "recalibrate",
        RENORM: "take renorm",
        GHOSTS: "take ghost batches",
        NONE: "leave normalization out",
    }[remedy]


def _where_batch_norm_is_enough(result: dict, sampling: str, words: str) -> str:
    """From which size on batch norm is as good as any remedy that the same batch allows."""
    sizes = _from_two(result)
    enough = [size for size in sizes if not _helping(result, sampling, size, OTHER_WAYS)]
    onwards = [size for size in sizes if set(sizes[sizes.index(size) :]) <= set(enough)]
    large = sizes[-1]
    known = f"{median(result, sampling, BATCH_NORM, large):.3f} at {large}"
    if not onwards:
        return f"{words}: even at {large} a remedy is better than plain batch norm ({known})."
    start = "at every size" if onwards[0] == sizes[0] else f"from {onwards[0]} examples on"
    return f"{words}: {start} plain batch norm needs no remedy ({known})."


def _helping(result: dict, sampling: str, size: int, among: Sequence[str]) -> list[str]:
    """The remedies that are better than batch norm, the best first, without those that another is clearly better than."""
    found = [remedy for remedy in among if is_seen(result, gains(result, sampling, remedy, size))]
    found.sort(key=lambda remedy: -_middle(gains(result, sampling, remedy, size)))
    best = values(result, sampling, found[0], size) if found else []
    return [remedy for remedy in found if not is_seen(result, _ahead(best, values(result, sampling, remedy, size)))]


def _what_helps(result: dict, sampling: str, words: str, among: Sequence[str]) -> str:
    """For each size at which something does: the best remedy, and what is as good. Nothing is said twice."""
    said = []
    for size in _from_two(result):
        helping = _helping(result, sampling, size, among)
        if helping and (among == OTHER_WAYS or NONE in _helping(result, sampling, size, OTHER_WAYS)):
            names = " or ".join(_doing(remedy) for remedy in helping)
            before, after = (median(result, sampling, remedy, size) for remedy in (BATCH_NORM, helping[0]))
            said.append(f"at {size} {names} ({before:.3f} → {after:.3f})")
    return f"{words}: {'; '.join(said)}." if said else ""


def _advice_on_ghosts(result: dict) -> str:
    """What cutting a batch of 64 costs or gains."""
    ahead = {size: gains(result, MIXED, GHOSTS, size) for size in _from_two(result) if size < LARGEST}
    costly = {size: -_middle(each) for size, each in ahead.items() if is_seen(result, -each)}
    better = {size: _middle(each) for size, each in ahead.items() if is_seen(result, each)}
    told = [f"cost up to {max(costly.values()):.3f}, at {_batches(costly)}"] if costly else []
    told += [f"gain up to {max(better.values()):.3f}, at {_batches(better)}"] if better else []
    whole = f"{median(result, MIXED, BATCH_NORM, LARGEST):.3f} whole"
    said = " and ".join(told) if told else "cost nothing and gain nothing that is seen"
    return f"Ghosts cut from mixed batches of {LARGEST} ({whole}) {said}."


# --- What the claims ask of it ----------------------------------------------------------------------------------------


def _told(ahead: Mapping[int, np.ndarray]) -> str:
    return ", ".join(f"{_middle(differences):+.4f} at {size}" for size, differences in ahead.items())


def judge_renorm_01(result: dict) -> Verdict:
    ahead = {size: gains(result, MIXED, RENORM, size) for size in _from_two(result) if size <= SMALL}
    better = [size for size, differences in ahead.items() if is_seen(result, differences)]
    smallest = next(iter(ahead))
    measured = f"renorm ahead of batch norm, mixed batches: {_told(ahead)}"
    note = (
        f"In batches of {smallest}: renorm {spread(values(result, MIXED, RENORM, smallest))}, batch norm "
        f"{spread(values(result, MIXED, BATCH_NORM, smallest))}; at {LARGEST} batch norm has "
        f"{median(result, MIXED, BATCH_NORM, LARGEST):.4f}. Of one example renorm makes {_at_one(result, RENORM)}, batch norm "
        f"{_at_one(result, BATCH_NORM)}."
    )
    if len(better) == len(ahead):
        return holds(measured, note)
    if better:
        return holds_if(f"the batch has {_batches(better)} examples", measured, note)
    return does_not_hold(measured, note)


def _at_one(result: dict, remedy: str) -> str:
    return f"{median(result, MIXED, remedy, 1):.3f}" if 1 in result["sizes"] else "no measurement"


def judge_renorm_02(result: dict) -> Verdict:
    sizes = _from_two(result)
    lost = {
        remedy: {
            size: median(result, MIXED, remedy, size) - median(result, TWO_CLASSES, remedy, size) for size in sizes
        }
        for remedy in (BATCH_NORM, RENORM, NONE)
    }
    hurt = [size for size in sizes if lost[BATCH_NORM][size] > FAULT * not_seen(result)]
    ahead = {size: gains(result, TWO_CLASSES, RENORM, size) for size in sizes}
    helped = [size for size in hurt if is_seen(result, ahead[size])]
    restored = [size for size in helped if lost[RENORM][size] <= FAULT * not_seen(result)]
    large = sizes[-1]
    measured = (
        f"two classes a batch against mixed, batches of {large}: batch norm "
        f"{median(result, TWO_CLASSES, BATCH_NORM, large):.4f} against {median(result, MIXED, BATCH_NORM, large):.4f}, renorm "
        f"{median(result, TWO_CLASSES, RENORM, large):.4f} against {median(result, MIXED, RENORM, large):.4f}"
    )
    note = (
        f"By statistics of test batches of two classes that batch norm has "
        f"{median(result, TWO_CLASSES, BATCH_NORM, large, 'as in training'):.4f}. The order of the examples alone costs a "
        f"network without normalization {lost[NONE][large]:.4f}. Renorm's gain: {_told(ahead)}."
    )
    if not helped:
        return does_not_hold(measured, note)
    if restored == sizes:
        return holds(measured, note)
    if restored:
        return holds_if(f"the batch has {_batches(restored)} examples", measured, note)
    return holds_if("it need not come near what mixed batches give", measured, note)


def judge_ghost_01(result: dict) -> Verdict:
    ahead = {size: gains(result, MIXED, GHOSTS, size) for size in _from_two(result) if size < LARGEST}
    better = [size for size, differences in ahead.items() if is_seen(result, differences)]
    measured = f"ghosts ahead of the whole batch of {LARGEST}: {_told(ahead)}"
    note = (
        f"The whole batch: {spread(values(result, MIXED, BATCH_NORM, LARGEST))}. The paper's batches of 4,096 are cut into "
        "128 and trained to the end, where a gap in generalization is to be closed; "
        f"{result['examples']:,} examples in batches of {LARGEST} leave little of one."
    )
    if len(better) == len(ahead):
        return holds(measured, note)
    if better:
        return holds_if(f"ghosts have {_batches(better)} examples", measured, note)
    return does_not_hold(measured, note)


def judge_precise_01(result: dict) -> Verdict:
    ahead = {
        sampling: {
            size: _ahead(*(values(result, sampling, BATCH_NORM, size, what) for what in ("same weights", "accuracy")))
            for size in _from_two(result)
        }
        for sampling in SAMPLINGS
    }
    measured = "; ".join(f"{sampling}: {_told(each)}" for sampling, each in ahead.items())
    smallest = _from_two(result)[0]
    note = (
        f"The same weights, recalibrated against their moving averages, whose memory is 1/{1 / MEMORY:.0f} of the "
        f"training's examples. "
        f"At {smallest} mixed, the moving variance times m/(m−1) alone makes "
        f"{median(result, MIXED, BATCH_NORM, smallest, 'unbiased'):.4f} of "
        f"{median(result, MIXED, BATCH_NORM, smallest):.4f}."
    )
    better = {
        sampling: [size for size, differences in each.items() if is_seen(result, differences)]
        for sampling, each in ahead.items()
    }
    if not any(better.values()):
        return does_not_hold(measured, note)
    if all(len(better[sampling]) == len(ahead[sampling]) for sampling in SAMPLINGS):
        return holds(measured, note)
    where = [f"{_batches(sizes)} examples ({sampling})" for sampling, sizes in better.items() if sizes]
    return holds_if(f"the batch has {' or '.join(where)}", measured, note)


def judge_precise_02(result: dict) -> Verdict:
    sizes = _from_two(result)
    ahead = {
        size: _ahead(*(values(result, MIXED, BATCH_NORM, size, what) for what in ("same weights", "as in training")))
        for size in sizes
    }
    apart = [abs(_middle(differences)) for differences in ahead.values()]
    measured = f"recalibrated statistics ahead of the test batches' own, mixed: {_told(ahead)}"
    note = (
        f"Test batches of the training's size. Of {sizes[0]}: "
        f"{median(result, MIXED, BATCH_NORM, sizes[0], 'as in training'):.4f} by own statistics, "
        f"{median(result, MIXED, BATCH_NORM, sizes[0], 'same weights'):.4f} recalibrated."
    )
    if apart[0] <= apart[-1] + not_seen(result):
        return does_not_hold(measured, note)
    if all(smaller >= larger - not_seen(result) for smaller, larger in itertools.pairwise(apart)):
        return holds(measured, note)
    return holds_if(f"it is {sizes[0]} examples against {sizes[-1]}", measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------

_LINES = {
    BATCH_NORM: {"color": ORANGE, "marker": "o"},
    RECALIBRATED: {"color": BLUE, "marker": "s"},
    RENORM: {"color": "#009E73", "marker": "^"},
    GHOSTS: {"color": "#CC79A7", "marker": "D"},
    NONE: {"color": GREY, "marker": "x"},
}
_LABELS = {
    RECALIBRATED: "batch norm, recalibrated",
    GHOSTS: f"ghosts of batches of {LARGEST}",
    NONE: "no normalization",
}


FIGURES = {
    "small_batches.png": "Above, the test error of each remedy against the number of examples that are normalized "
    "together, for batches of all classes and of two; below, what each gains on plain batch norm of the same batch, in "
    "bold the best and what is level with it. Dotted: batch norm "
    "scored by the statistics of test batches of its training's size and kind, which is no way to predict, and shows "
    "how much of the error is the change of statistics."
}


def draw(result: dict, folder: Path) -> None:
    """Above: test error against the batch for each remedy; below: accuracy that each gains on batch norm, in points."""
    options = {"nrows": 2, "ncols": 2, "figsize": (12, 7.4), "height_ratios": (1.7, 1)}
    with figure(folder / "small_batches.png", **options) as (drawing, axes):
        titles = {MIXED: "Batches of all classes", TWO_CLASSES: "Batches of two classes"}
        for column, sampling in enumerate(SAMPLINGS):
            _draw_errors(axes[0, column], result, sampling)
            _draw_gains(axes[1, column], result, sampling)
            axes[0, column].set_title(titles[sampling])
        limits = [limit for axis in axes[0] for limit in axis.get_ylim()]
        for axis in axes[0]:
            axis.set_ylim(min(limits), max(limits))
        axes[0, 0].set_ylabel("test error, %")
        drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        seeds = len(result["seeds"])
        drawing.suptitle(
            f"{result['data'].replace('mnist', 'MNIST')}, {result['examples']:,} training examples at every size, "
            f"{seeds} seed{'s' * (seeds > 1)}: medians, and from the least to the most",
            fontsize=10,
        )


def _draw_errors(axis, result: dict, sampling: str) -> None:
    for remedy, style in _LINES.items():
        _curve(axis, result, sampling, remedy, "accuracy", label=_LABELS.get(remedy, remedy), **style)
    label = "batch norm, by statistics of such test batches"
    _curve(axis, result, sampling, BATCH_NORM, "as in training", color=ORANGE, linestyle=":", label=label)
    axis.set(xscale="log", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
    axis.set_xticks(result["sizes"], result["sizes"])
    axis.xaxis.set_minor_locator(NullLocator())


def _curve(axis, result: dict, sampling: str, remedy: str, what: str, **style) -> None:
    sizes = [size for size in result["sizes"] if values(result, sampling, remedy, size)]
    errors = np.array([[100 * (1 - value) for value in values(result, sampling, remedy, size, what)] for size in sizes])
    errors = np.maximum(errors, 0.01)  # none wrong has no place on the axis
    axis.plot(sizes, np.median(errors, axis=1), markersize=5, **style)
    axis.fill_between(sizes, errors.min(1), errors.max(1), color=style["color"], alpha=0.15, linewidth=0)


def _draw_gains(axis, result: dict, sampling: str) -> None:
    """A table in colours: blue is better than batch norm, orange is worse, for every seed."""
    remedies, sizes = REMEDIES[1:], result["sizes"]
    axis.set(xlim=(-0.5, len(sizes) - 0.5), ylim=(len(remedies) - 0.5, -0.5))
    axis.grid(False)
    for row, column in itertools.product(range(len(remedies)), range(len(sizes))):
        differences = gains(result, sampling, remedies[row], sizes[column])
        if not len(differences):
            axis.text(column, row, "–", ha="center", va="center", color=GREY)
            continue
        points = 100 * _middle(differences)
        colour = BLUE if is_seen(result, differences) else ORANGE if is_seen(result, -differences) else "white"
        strength = min(0.15 + 0.1 * math.log2(1 + abs(points)), 0.6)
        axis.fill_between((column - 0.5, column + 0.5), row - 0.5, row + 0.5, color=colour, alpha=strength, linewidth=0)
        weight = "bold" if remedies[row] in _helping(result, sampling, sizes[column], OTHER_WAYS) else "normal"
        axis.text(column, row, f"{points:+.1f}", ha="center", va="center", fontsize=9, fontweight=weight)
    axis.set_xticks(range(len(sizes)), sizes)
    names = [_LABELS.get(remedy, remedy) for remedy in remedies] if sampling == MIXED else [""] * len(remedies)
    axis.set_yticks(range(len(remedies)), names)
    axis.set_xlabel("examples that are normalized together")
    axis.set_title(f"points of accuracy gained on batch norm (ghosts: of {LARGEST} whole)", fontsize=9)


def summarize(result: dict) -> str:
    lines = []
    for sampling in SAMPLINGS:
        lines += ["", f"{sampling + ': test accuracy':34}" + "".join(f"{size:>9}" for size in result["sizes"])]
        rows = [(remedy, "accuracy") for remedy in REMEDIES]
        rows += [(BATCH_NORM, what) for what in ("same weights", "unbiased", "as in training")]
        for remedy, what in rows:
            label = remedy if what == "accuracy" else f"{remedy}, {what}"
            cells = [median(result, sampling, remedy, size, what) for size in result["sizes"]]
            lines.append(f"  {label:32}" + "".join(f"{cell:>9.4f}" for cell in cells))
    lines += ["", result["advice"], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
