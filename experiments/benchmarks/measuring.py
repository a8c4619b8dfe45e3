"""What is measured, section by section: each function starts its contenders, asks them in turn, and returns plain numbers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from experiments.benchmarks import audit_cost, tasks, workers
from experiments.benchmarks.tasks import Task
from experiments.benchmarks.workers import Contender

__all__ = ["IN_GRAPH", "Extent", "layers", "of_an_epoch", "recalibration", "scaling", "training_steps", "whole"]

_HERE = "experiments.benchmarks"
IN_GRAPH = "the loop in the graph"
DOCUMENT = "the document's loop"
COMPILED = f"{IN_GRAPH}, compiled"
LOOPS = {IN_GRAPH: f"{_HERE}.steps_here:in_graph", DOCUMENT: f"{_HERE}.steps_here:document"}
XLA = {COMPILED: f"{_HERE}.steps_here:compiled"}
WHOLE = {IN_GRAPH: f"{_HERE}.steps_here:in_graph_whole", DOCUMENT: f"{_HERE}.steps_here:document_whole"}

# The peers, each as it comes, and with what it offers for exactly this case: many small steps.
PEERS = {
    "legacy Keras": (f"{_HERE}.steps_keras:legacy_keras", {}),
    "legacy Keras, 50 steps an execution": (f"{_HERE}.steps_keras:legacy_keras", {"steps_per_execution": 50}),
    "Keras 3": (f"{_HERE}.steps_keras:keras3", {}),
    "Keras 3, 50 steps an execution": (f"{_HERE}.steps_keras:keras3", {"steps_per_execution": 50}),
    "PyTorch": (f"{_HERE}.steps_torch:eager", {}),
    "PyTorch, compiled": (f"{_HERE}.steps_torch:compiled", {}),
    "JAX, scan": (f"{_HERE}.steps_jax:scan", {}),
}
# Of the image network. Outside of a loop XLA's convolutions on a CPU are many times as fast, so JAX has two ways.
IMAGE_PEERS = {
    "PyTorch": (f"{_HERE}.steps_torch:eager", {}),
    "JAX, scan": (f"{_HERE}.steps_jax:scan", {}),
    "JAX, jit of one step": (f"{_HERE}.steps_jax:stepwise", {}),
}
IMAGE_FLOORS = {"convolutions by TensorFlow": f"{_HERE}.steps_here:convolutions"}
# The least that a step can cost: its matrix products, by whichever of these is fastest at them.
FLOORS = {
    "products by NumPy": f"{_HERE}.steps_numpy:products",
    "products by TensorFlow": f"{_HERE}.steps_here:products",
    "products by PyTorch": f"{_HERE}.steps_torch:products",
    "products by JAX": f"{_HERE}.steps_jax:products",
}
_LAYERS = {
    "TensorFlow": f"{_HERE}.layer_tf:layers",
    "Keras 3": f"{_HERE}.layer_peers:keras3_layers",
    "PyTorch": f"{_HERE}.layer_peers:torch_layers",
}
_LARGE = 200e6  # bytes of a layer's inputs
FEWEST_ROUNDS = 5
MEMORY_PER_LAYER = 18  # times the tensor: what three processes have of inputs, gradients, outputs, and in between


class Extent(NamedTuple):
    """How much is measured. ``quick`` leaves out what takes long and shows the same.

    Attributes:
        rounds: that count, of which the median is taken.
        layer_rounds: likewise, of the layer alone: many short turns, as its ratios are near 1; of large inputs `FEWEST_ROUNDS`.
        examples: of the made-up data, at most.
        steps, image_steps: of a turn of training steps, at most: an epoch, of fewer examples if need be. At least
            `tasks.CHECK_STEPS`, for the peers have batches for one epoch.
        whole_steps, whole_rounds: of the whole experiment; their product is what is run.
        tries_threads: each contender of the training steps is tried with one thread and with all, and keeps the faster;
            otherwise one network has one thread, and a pair all.
        leaves_out: names of contenders.
        shapes: of the layer alone.
        layer_seconds: of one turn of one layer.
        batches, widths: of the scaling of a step.
        audit_nodes: of the audited graphs.
        recalibrated_images, recalibration_rounds: of ResNet-50's shapes, for recalibration; no images leave it out.
        worker_steps: of a turn of two workers, each of 20 ms and more.
    """

    rounds: int
    layer_rounds: int
    examples: int
    steps: int
    image_steps: int
    whole_steps: int
    whole_rounds: int
    tries_threads: bool
    leaves_out: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    layer_seconds: float
    batches: tuple[int, ...]
    widths: tuple[int, ...]
    audit_nodes: tuple[int, ...]
    recalibrated_images: int
    recalibration_rounds: int
    worker_steps: int


Started = Iterator[tuple[list[workers.Worker], list[str]]]
"""Contenders that are ready, and notes on those that are missing; when the block ends they are closed, whatever happens."""


@contextmanager
def _started(contenders: Sequence[Contender], threads: int, *, keeps_memory: bool = False) -> Started:
    """All of them at once, with so many threads each."""
    started = []
    try:
        started += (workers.start(each, threads, keeps_memory=keeps_memory) for each in contenders)
        yield workers.ready(started)
    finally:
        workers.close(started)


@contextmanager
def _tried(contenders: Sequence[Contender], threads: int) -> Started:
    """Each with one thread and with all, one contender after the other, of which the faster is kept."""
    started, kept, notes = [], [], []
    try:
        for contender in contenders:
            both = [workers.start(contender, number) for number in sorted({1, threads})]
            started += both
            present, missing = workers.ready(both)
            kept += _faster(present)
            notes += missing[:1]
        yield kept, notes
    finally:
        workers.close(started)


@contextmanager
def _untried(contenders: Sequence[Contender], threads: int) -> Started:
    """One network with one thread, which is nearly always what is faster for it; a pair of networks with all."""
    started = []
    try:
        for each in contenders:
            pair = each.arguments["forms"] == tasks.FORMS
            started.append(workers.start(each, threads if pair else 1))
        yield workers.ready(started)
    finally:
        workers.close(started)


def _faster(present: Sequence[workers.Worker]) -> list[workers.Worker]:
    """Of one contender with one thread and with all: the faster, by three turns each; the other is closed."""
    if len(present) < 2:
        return list(present)
    for worker in present:
        if worker.name not in FLOORS | IMAGE_FLOORS:
            workers.ask(worker, {"check": None})  # before any other step; asked again it answers the same
    seconds = workers.alternate(present, [{"run": 100}] * len(present), 3)
    ranked = [worker for _, worker in sorted(zip(seconds, present, strict=True), key=lambda pair: pair[0])]
    workers.close(ranked[1:])
    return ranked[:1]


def training_steps(task: Task, extent: Extent, threads: int) -> dict:
    """Microseconds of a step: both loops and all peers on the network with batch norm, the floor, both loops on the pair.

    Of the image network there is no pair.
    """
    of_images = task.network == "images"
    task, steps = of_an_epoch(task, extent, extent.image_steps if of_images else extent.steps)
    one = task._asdict()
    peers, floors = (IMAGE_PEERS, IMAGE_FLOORS) if of_images else (PEERS, FLOORS)
    contenders = [Contender(name, function, one) for name, function in (LOOPS | XLA).items()]
    contenders += [Contender(name, function, one | extra) for name, (function, extra) in peers.items()]
    contenders += [Contender(name, function, one) for name, function in floors.items()]
    if not of_images:
        pair = task._replace(forms=tasks.FORMS)._asdict()
        contenders += [Contender(f"{name}, pair", function, pair) for name, function in (LOOPS | XLA).items()]
    contenders = [each for each in contenders if each.name not in extent.leaves_out]
    with _tried(contenders, threads) if extent.tries_threads else _untried(contenders, threads) as (present, notes):
        computing = [worker for worker in present if worker.name not in floors]
        losses = {worker.name: workers.ask(worker, {"check": None})["loss"] for worker in computing}
        seconds = workers.alternate(present, [{"run": steps}] * len(present), extent.rounds)
        return {
            "contenders": {
                worker.name: {
                    "microseconds": _rounded(taken / steps * 1e6),
                    "threads": worker.threads,
                    "loss": losses.get(worker.name),
                }
                for worker, taken in zip(present, seconds, strict=True)
            },
            "notes": notes,
        }


def of_an_epoch(task: Task, extent: Extent, most_steps: int) -> tuple[Task, int]:
    """The task with so many examples that a turn of at most `most_steps` is an epoch, and the turn's steps.

    The documents' ``next_batch`` copies all images in a new order once an epoch, up to half a second for MNIST's. Of turns
    of another length some would have that and some not, and their median would be of either kind by chance.
    """
    steps = min(most_steps, extent.examples // task.batch)
    return task._replace(examples=steps * task.batch), steps


def whole(extent: Extent, threads: int) -> dict:
    """Seconds of r2rt's experiment by both loops, asked in turn for a share of the steps, and the peak memory of each."""
    contenders = [Contender(name, function) for name, function in WHOLE.items()]
    totals = dict.fromkeys(WHOLE, 0.0)
    with _started(contenders, threads) as (present, _):
        for worker in present:
            workers.ask(worker, {"run": 100})  # the first run of a graph compiles it
        for number in range(extent.whole_rounds):
            for worker in present if number % 2 else reversed(present):
                totals[worker.name] += workers.ask(worker, {"run": extent.whole_steps})["seconds"]
        curves = {worker.name: workers.ask(worker, {"curve": None})["accuracies"] for worker in present}
        megabytes = {worker.name: round(workers.ask(worker, {"peak": None})["megabytes"]) for worker in present}
    return {
        "steps": extent.whole_steps * extent.whole_rounds,
        "seconds": {name: round(total, 2) for name, total in totals.items()},
        "megabytes": megabytes,
        "evaluations": {name: len(curve) for name, curve in curves.items()},
        "last_accuracies": {name: curve[-2:] for name, curve in curves.items()},
    }


def layers(shape: Sequence[int], extent: Extent, threads: int) -> dict:
    """Microseconds of one layer on inputs of `shape`, by form and mode, and of a copy of the inputs."""
    size = 4 * math.prod(shape)
    found = {"shape": list(shape), "megabytes": _rounded(size / 1e6), "notes": []}
    if size * MEMORY_PER_LAYER > _free_memory():
        return found | {"microseconds": {}, "notes": ["left out: there is not enough free memory"]}
    contenders = [Contender(name, function, {"shape": list(shape)}) for name, function in _LAYERS.items()]
    microseconds = {}
    with _started(contenders, threads, keeps_memory=True) as (present, notes):
        turns = [(worker, name) for worker in present for name in workers.ask(worker, {"names": None})["names"]]
        requests = [{"run": {"what": name, "count": _count(worker, name, extent)}} for worker, name in turns]
        # Of large inputs even one run takes long, and is the less disturbed for it.
        rounds = extent.layer_rounds if size < _LARGE else FEWEST_ROUNDS
        seconds = workers.alternate([worker for worker, _ in turns], requests, rounds)
        for (_, name), request, taken in zip(turns, requests, seconds, strict=True):
            microseconds[name] = _rounded(taken / request["run"]["count"] * 1e6)
    return found | {"microseconds": microseconds, "notes": notes}


def _count(worker: workers.Worker, name: str, extent: Extent) -> int:
    """So many runs as take about `Extent.layer_seconds`; the first two runs are for warming up."""
    once = [workers.ask(worker, {"run": {"what": name, "count": 1}})["seconds"] for _ in range(3)][-1]
    return max(1, min(2000, int(extent.layer_seconds / once)))


def _free_memory() -> float:
    """Bytes; without bound where the system does not tell."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):
        return float("inf")


def scaling(extent: Extent, threads: int) -> dict:
    """A step against batch and width by both loops, audit time against nodes."""
    by_batch = [tasks.R2RT._replace(batch=batch) for batch in extent.batches]
    by_width = [tasks.R2RT._replace(hidden=(width, width)) for width in extent.widths]
    microseconds = _both_loops([*by_batch, *by_width], extent, threads)
    return {
        "batch": [{"batch": task.batch} | microseconds[task] for task in by_batch],
        "width": [{"width": task.hidden[0]} | microseconds[task] for task in by_width],
        "audit": audit_cost.measured(extent.audit_nodes, ("audit",), min(audit_cost.ROUNDS, extent.rounds - 2)),
    }


def _both_loops(of: Sequence[Task], extent: Extent, threads: int) -> dict[Task, dict[str, float]]:
    """Microseconds of a step of each network by each loop, which has all of them in one process."""
    each_once = list(dict.fromkeys(of))
    turns = [of_an_epoch(task, extent, min(200, extent.steps)) for task in each_once]
    arguments = {"networks": [task._asdict() for task, _ in turns]}
    contenders = [Contender(name, f"{function}_of_several", arguments) for name, function in LOOPS.items()]
    found = {}
    with _started(contenders, threads) as (both, _):
        for number, (task, (_, steps)) in enumerate(zip(each_once, turns, strict=True)):
            request = {"run": {"network": number, "count": steps}}
            seconds = workers.alternate(both, [request] * len(both), extent.rounds)
            found[task] = {
                worker.name: _rounded(taken / steps * 1e6) for worker, taken in zip(both, seconds, strict=True)
            }
    return found


RECALIBRATIONS = {
    "ours": ("inference", "training", "paper", "pooled"),
    "torch": ("PyTorch, training", "swa_utils.update_bn"),
    "fvcore": ("fvcore's update_bn_stats",),
}
"""What is timed, by the function in ``recalibration`` that makes its contender."""


def recalibration(network: str, extent: Extent, threads: int) -> dict:
    """Seconds of a recalibration, of a forward pass and of what PyTorch's users have, over the same images.

    Args:
        network: "solver" or "ResNet-50".
        extent, threads: as for the others.
    """
    is_small = network == "solver"
    batch, examples = (500, extent.examples) if is_small else (4, extent.recalibrated_images)
    arguments = {"network": network, "batch": batch, "examples": examples}
    contenders = [Contender(name, f"{_HERE}.recalibration:{name}", arguments) for name in RECALIBRATIONS]
    with _started(contenders, threads, keeps_memory=True) as (present, notes):
        turns = [(worker, way) for worker in present for way in RECALIBRATIONS[worker.name]]
        rounds = extent.rounds if is_small else extent.recalibration_rounds
        seconds = workers.alternate([worker for worker, _ in turns], [{"pass": way} for _, way in turns], rounds)
        starts = {way: workers.ask(present[0], {"start": way})["seconds"] for way in ("paper", "pooled")}
        means = [workers.ask(worker, {"mean": None})["mean"] for worker in present]
    apart = max(abs(one - other) for one, *others in zip(*means, strict=True) for other in (one, *others))
    return {
        "examples": examples,
        "batch": batch,
        "seconds": {way: _rounded(taken) for (_, way), taken in zip(turns, seconds, strict=True)},
        "start": {way: _rounded(taken) for way, taken in starts.items()},
        "means_apart": apart,
        "notes": notes,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
