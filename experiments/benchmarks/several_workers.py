"""What two workers gain over one process, with batch statistics of all workers and without, and what exchanges cost.

    make distributed        or        python -m experiments.benchmarks.several_workers

An image network, whose step takes 20 ms and more, is trained by one process and by two workers, each on a core of its own
with a batch of the same size; and by two processes that exchange nothing, which is the limit: cores share memory,
caches, and whatever else the machine does. Then exchanges alone are timed, of as many floats as layers of 32, 256 and
2,048 channels have. What more than two workers would take is a model of that, not a measurement, and is said to be.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bn_graph.training import distributed
from experiments.benchmarks import steps_workers, workers
from experiments.benchmarks.workers import Contender
from experiments.machinery import programs, results

__all__ = ["LEAST_GAIN", "exchanged", "gain", "lines", "main", "measure", "modelled"]

ONE, APART = "one process", "two processes that exchange nothing"
WITHOUT_SYNC, WITH_SYNC = "two workers, without sync", "two workers, with sync"
LEAST_GAIN = 1.7  # two workers' examples a second, to one process's
ROUNDS = 7
STEPS, EXCHANGES = 10, 10  # of a turn
CHANNELS, MODELLED_WORKERS = (32, 256, 2048), (4, 8, 16)


def main(argv: list[str] | None = None) -> int:
    parser = programs.parser(__name__, __doc__)
    parser.add_output()
    return programs.run(parser, argv, _measure_and_write)


def _measure_and_write(given: argparse.Namespace) -> None:
    if len(available_cores()) < 2:
        raise programs.UsageError("two workers are compared with one on two cores, and this process may use one only.")
    measured = measure(ROUNDS)
    path = given.output / "distributed" / "throughput.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write_json(path, {"versions": results.versions(), "rounds": ROUNDS} | measured)
    print("\n".join(lines(measured)))


def available_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def measure(rounds: int, count: int = STEPS) -> dict:
    """Milliseconds of a step in each way, and of exchanges by their floats: medians of `rounds` of `count` steps, in turn.

    Raises:
        programs.UsageError: a process failed.
    """
    sizes = sorted({size for channels in CHANNELS for size in floats_of_layer(channels)})
    function = "experiments.benchmarks.steps_workers:worker"
    started = []
    try:
        for core, config in zip(available_cores(), distributed.local_tf_configs(2), strict=False):
            arguments = {"core": core, "config": config, "floats": sizes}
            started.append(workers.start(Contender(f"the worker on core {core}", function, arguments), 1))
        workers.ready(started)
        kinds = {ONE: (started[:1], "alone"), APART: (started, "alone")}
        kinds |= {WITHOUT_SYNC: (started, "without sync"), WITH_SYNC: (started, "with sync")}
        steps = _in_turn(kinds, count, rounds)
        gathers = _in_turn({size: (started, f"gather {size}") for size in sizes}, EXCHANGES, rounds)
    finally:
        workers.close(started)
    exchanges = {size: taken / steps_workers.EXCHANGES_OF_A_CHAIN for size, taken in gathers.items()}
    return {
        "batch": steps_workers.BATCH,
        "milliseconds": {name: _rounded(taken) for name, taken in steps.items()},
        "exchanges": [{"floats": size, "milliseconds": _rounded(taken)} for size, taken in exchanges.items()],
    }


def floats_of_layer(channels: int) -> tuple[int, int]:
    """That a worker sends forward (means in two parts, variances, two numbers) and backward."""
    return 3 * channels + 2, 2 * channels


def _in_turn(kinds: Mapping[Any, tuple[Sequence[workers.Worker], str]], count: int, rounds: int) -> dict[Any, float]:
    """Milliseconds of each kind: who together are asked, for what. The median of the rounds after one that doesn't count."""
    taken = {kind: [] for kind in kinds}
    for number in range(rounds + 1):
        for kind, (together, what) in kinds.items():
            seconds = workers.ask_together(together, {"run": {"what": what, "count": count}})["seconds"]
            if number:
                taken[kind].append(seconds / count * 1e3)
    return {kind: statistics.median(each) for kind, each in taken.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def gain(measured: Mapping, name: str) -> float:
    """Examples a second of the two processes `name` to those of the one; each has a batch of the same size."""
    return 2 * measured["milliseconds"][ONE] / measured["milliseconds"][name]


def exchanged(exchanges: Sequence[Mapping], channels: int) -> float:
    """Milliseconds of a layer's two exchanges between two workers, as measured."""
    taken = {each["floats"]: each["milliseconds"] for each in exchanges}
    return sum(taken[size] for size in floats_of_layer(channels))


def modelled(exchanges: Sequence[Mapping], channels: int, count: int) -> float:
    """Milliseconds of a layer's two exchanges between `count` workers, from those measured between two.

    A gather goes round a ring in `count` − 1 turns. Each takes what the one turn of two workers takes: a part for a
    message and a part for each float, by least squares.
    """
    sizes, taken = ([each[key] for each in exchanges] for key in ("floats", "milliseconds"))
    for_a_float, for_a_message = np.polyfit(sizes, taken, 1)
    return (count - 1) * sum(for_a_message + for_a_float * size for size in floats_of_layer(channels))


def lines(measured: Mapping) -> list[str]:
    """The tables."""
    found = [f"A step of an image network, {measured['batch']} examples a worker, each worker on a core of its own"]
    for name, taken in measured["milliseconds"].items():
        found.append(
            f"  {name:<40}{taken:>7.1f} ms{gain(measured, name) / (1 + (name == ONE)):>7.2f} times the examples"
        )
    found.append("A layer's two exchanges, ms; 2 workers measured, more modelled from that (turns round a ring)")
    counts = (2, *MODELLED_WORKERS)
    found.append(f"  {'channels':<16}" + "".join(f"{count:>6} workers" for count in counts))
    for channels in CHANNELS:
        both = exchanged(measured["exchanges"], channels)
        row = [both, *(modelled(measured["exchanges"], channels, count) for count in MODELLED_WORKERS)]
        found.append(f"  {channels:<16,}" + "".join(f"{each:>14.2f}" for each in row))
    return found


if __name__ == "__main__":
    sys.exit(main())
