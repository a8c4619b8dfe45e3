"""What every experiment shares: its command line, seeds, paths, progress, resuming, verdicts, and results written whole.

An experiment is a module that ends in an `Experiment` and calls `main` with it. `main` reads the command line, loads the
data, runs, lets the experiment's own functions judge its claims, keeps errors to one line, and writes
``<output>/<name>/result.json``. Figures are drawn from that file and from nothing else.
"""

import argparse
import base64
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import register

__all__ = [
    "LOOPS",
    "Experiment",
    "Mode",
    "OneLineParser",
    "Settings",
    "UsageError",
    "Verdict",
    "advance_with_progress",
    "dated",
    "does_not_hold",
    "holds",
    "holds_if",
    "main",
    "pack_images",
    "progress_bar",
    "run_program",
    "session_config",
    "spread",
    "unpack_images",
    "versions",
    "whole_number",
    "work_directory",
    "write_json",
]

FORMAT = 1
"""Of result files. A reader refuses another, so that an old file is never read as if it were new."""


LOOPS = {"graph": bn_graph.graph_loop, "feed": bn_graph.feed_loop}
"""How an experiment trains: ``--loop``. Both give the same numbers, bit for bit (tests/test_training_in_graph.py)."""


class UsageError(ValueError):
    """Something the user can mend: said in one line, with exit status 2."""


class Verdict(NamedTuple):
    """What a measurement says of a claim: the verdict, the measured figure in short, and a note of two sentences at most."""

    verdict: str
    measured: str
    note: str


def holds(measured: str, note: str) -> Verdict:
    """The claim holds as it stands."""
    return Verdict("holds", measured, note)


def holds_if(condition: str, measured: str, note: str) -> Verdict:
    """The claim holds under a condition, which is named."""
    return Verdict(f"holds if {condition}", measured, note)


def does_not_hold(measured: str, note: str) -> Verdict:
    """The measurement contradicts the claim."""
    return Verdict("does not hold", measured, note)


def dated(measured: str, note: str) -> Verdict:
    """The API is gone; the note says what replaces it."""
    return Verdict("dated", measured, note)


class Mode(NamedTuple):
    """One way to run an experiment: ``full`` has the document's own settings, ``quick`` is for a laptop and CI.

    `data` is "mnist", "digits", "auto", or None for an experiment that makes its own inputs.
    """

    data: str | None
    steps: int
    seeds: Sequence[int]


class Experiment(NamedTuple):
    """An experiment, as its module declares it.

    Attributes:
        name: of the module and of the results folder.
        title: one line.
        full, quick: its two `Mode`.
        run: from `Settings` to measurements, a dictionary that JSON can hold.
        claims: for each claim id a function from the result (measurements and settings) to a `Verdict`.
        draw: draws the figures into a folder, from the result alone.
        summarize: from the result and its folder to the text that a person reads at the end.
        figures: file name and caption of each figure; the caption says what to see.
    """

    name: str
    title: str
    full: Mode
    quick: Mode
    run: Callable[["Settings"], dict]
    claims: Mapping[str, Callable[[dict], Verdict]]
    draw: Callable[[dict, Path], None]
    summarize: Callable[[dict, Path], str]
    figures: Mapping[str, str] = {}


class Settings(NamedTuple):
    """What one run was asked for. `dataset` is None for an experiment that makes its own inputs.

    `loop` ("graph" or "feed") and `threads` say how it is trained. No number depends on either, so no checkpoint asks.
    """

    name: str
    mode: str
    dataset: bn_graph.Dataset | None
    data_directory: str | None
    seeds: list[int]
    steps: int
    output: Path
    loop: str = "graph"
    threads: int = 1


class OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line: no usage block between the reader and what was wrong."""

    def error(self, message: str):
        raise UsageError(f"{message} (see --help)")


def whole_number(what: str, least: int) -> Callable[[str], int]:
    """A ``type`` for argparse: a whole number from `least` up; `what` begins the message about anything else."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{what} is a whole number from {least} up, got {text!r}")
        return int(text)

    return parse


def run_program(parser: argparse.ArgumentParser, argv: list[str] | None, work: Callable[..., object]) -> int:
    """Does the work of a program that judges no claim, and says in one line on stderr what kept it from its end.

    Args:
        parser: of its command line, with an ``--output``; its ``prog`` ends with the module's name.
        argv: the command line; the process's own if None.
        work: is called with what was parsed.

    Returns:
        0; 2 for anything the user can mend; 130 after Ctrl-C.
    """
    name = parser.prog.rpartition(".")[2]
    try:
        given = parser.parse_args(argv)
        work(given)
        return 0
    except (UsageError, bn_graph.DataError, bn_graph.CheckpointError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error.filename or given.output}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; no result was written.", file=sys.stderr)
        return 130


def main(experiment: Experiment, argv: list[str] | None = None) -> int:
    """Runs one experiment from the command line and returns the exit status.

    Args:
        experiment: to run.
        argv: the command line; the process's own if None.

    Returns:
        0; 2 with one line on stderr for anything the user can mend; 130 after Ctrl-C.
    """
    name = experiment.name
    try:
        settings, fresh = _settings(experiment, argv)
        folder = settings.output / name
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        _make_writable(folder)
        if settings.dataset is not None:
            print(bn_graph.datasets.describe(settings.dataset), flush=True)
        result = _result(experiment, settings)
        write_json(folder / "result.json", result)
        result = json.loads((folder / "result.json").read_text())
        experiment.draw(result, folder)
        print(experiment.summarize(result, folder))
        return 0
    except (UsageError, bn_graph.DataError, bn_graph.CheckpointError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130


def _result(experiment: Experiment, settings: Settings) -> dict:
    """Runs, times and judges."""
    started = time.monotonic()
    result = _common(experiment, settings) | experiment.run(settings)
    result["seconds"] = round(time.monotonic() - started, 1)
    result["claims"] = judge(experiment, result)
    return result


def judge(experiment: Experiment, result: dict) -> dict[str, dict]:
    """Each claim's verdict, computed from `result` by the experiment's own function, beside the document's figure."""
    known = register.claims()
    return {
        claim: {"document": known[claim]["figure"], **verdict_of(result)._asdict()}
        for claim, verdict_of in experiment.claims.items()
    }


def _settings(experiment: Experiment, argv: list[str] | None) -> tuple[Settings, bool]:
    given = _parser(experiment).parse_args(argv)
    mode = {"full": experiment.full, "quick": experiment.quick}[given.mode]
    data = given.data or mode.data
    dataset = None if mode.data is None else bn_graph.load(data, given.data_directory)
    settings = Settings(
        name=experiment.name,
        mode=given.mode,
        dataset=dataset,
        data_directory=given.data_directory,
        seeds=list(given.seed or mode.seeds),
        steps=given.steps or mode.steps,
        output=given.output,
        loop=given.loop,
        threads=given.threads,
    )
    return settings, given.fresh


def _parser(experiment: Experiment) -> argparse.ArgumentParser:
    parser = OneLineParser(prog=f"python -m experiments.{experiment.name}", description=experiment.title)
    parser.add_argument(
        "--mode", default="quick", choices=("quick", "full"), help="full: the document's own settings, MNIST"
    )
    parser.add_argument("--data", choices=("auto", "mnist", "digits"), help="default: the mode's own")
    parser.add_argument(
        "--data-directory", help="folder of the four MNIST files (default: $MNIST_DIR, else MNIST_data)"
    )
    parser.add_argument(
        "--seed", type=whole_number("a seed", 0), nargs="+", help="one run for each (default: the mode's own)"
    )
    parser.add_argument("--steps", type=whole_number("steps", 1), help="training steps (default: the mode's own)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    parser.add_argument(
        "--loop", default="graph", choices=tuple(LOOPS), help="steps inside the graph, or fed one by one (same numbers)"
    )
    parser.add_argument(
        "--threads",
        type=whole_number("threads", 1),
        default=min(2, os.cpu_count() or 1),
        help="networks trained at the same time, each on one core (same numbers; default: %(default)s)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget earlier results and checkpoints of this experiment"
    )
    return parser


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"results can't be written to {folder}: {reason}. Name another folder with --output."
        ) from error


def _common(experiment: Experiment, settings: Settings) -> dict:
    """The part of a result that says how it came about."""
    dataset = settings.dataset
    return {
        "format": FORMAT,
        "experiment": settings.name,
        "title": experiment.title,
        "mode": settings.mode,
        "data": "none" if dataset is None else dataset.name,
        "data_sha256": {} if dataset is None else dataset.sha256,
        "seed": settings.seeds[0],
        "seeds": settings.seeds,
        "steps": settings.steps,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "figures": dict(experiment.figures),
    }


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.version.VERSION,
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def spread(values: Sequence[float], digits: int = 4) -> str:
    """How a statistical figure is reported: min ← median → max over the seeds, or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (1 seed)"
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{low:.{digits}f} ← {middle:.{digits}f} → {high:.{digits}f} ({len(values)} seeds)"


def write_json(path: Path, content: dict) -> None:
    """Writes `content` so that `path` holds either all of it or what it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def work_directory(settings: Settings, part: str, **identity) -> Path:
    """The folder of checkpoints for one training of one experiment; emptied if an earlier run left other settings there.

    Args:
        settings: of the run; the data set, the number of steps and the versions are part of the identity.
        part: name of the folder below ``<output>/<name>/checkpoints``.
        **identity: whatever else the numbers depend on.
    """
    folder = settings.output / settings.name / "checkpoints" / part
    sha256 = {} if settings.dataset is None else settings.dataset.sha256
    identity |= {"data_sha256": sha256, "versions": versions()}
    record = folder / "settings.json"
    try:
        same = json.loads(record.read_text()) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(record, identity)
    return folder


def session_config(settings: Settings) -> tf.ConfigProto:
    """One thread for each kernel, so that every sum is made in one order; ``--threads`` networks trained at a time."""
    return bn_graph.session_config(networks=settings.threads)


def advance_with_progress(
    advance: Callable[[int, int], list], steps: range, label: str, pause_after: Callable[[int], bool] | None = None
) -> Iterator[tuple[int, list]]:
    """Trains `steps` in chunks, with a progress bar; yields after each the number of steps taken and what was recorded.

    Args:
        advance: as `bn_graph.graph_loop` gives it.
        steps: to take.
        label: of the bar.
        pause_after: the numbers of steps after which the caller has something to do; a chunk ends there.
    """
    stops = {chunk.start: chunk.stop for chunk in bn_graph.chunks(steps.start, steps.stop, pause_after=pause_after)}
    for step in progress_bar(label)(steps):
        if step in stops:  # the others are trained with the chunk that they are in
            yield stops[step], advance(step, stops[step])


def progress_bar(label: str) -> Callable:
    """Wraps a range in a progress bar on stderr that starts at the range's start, so that a resumed run shows it."""

    def wrap(steps: range):
        return tqdm(
            steps, desc=label, initial=steps.start, total=steps.stop, unit=" steps", mininterval=0.3, dynamic_ncols=True
        )

    return wrap


def pack_images(images: np.ndarray) -> str:
    """Images with values in [0, 1] as compressed text, so that ``result.json`` has all that its figures need."""
    return base64.b64encode(zlib.compress(np.round(images * 255).astype(np.uint8).tobytes(), 9)).decode()


def unpack_images(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack_images`, with values from 0 to 255."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)
