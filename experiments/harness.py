"""What every experiment shares: its command line, seeds, paths, progress, resuming, and results that are written whole.

An experiment calls `main` with its ``run`` function. `main` reads the command line, loads the data, keeps errors to one
line, and writes ``<output>/<name>/result.json``. A figure is drawn from that file and from nothing else.
"""

import argparse
import base64
import json
import os
import platform
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import bn_graph
from bn_graph.tf1 import tf

__all__ = ["Settings", "UsageError", "main", "progress_bar", "versions", "work_directory", "write_json"]


class UsageError(ValueError):
    """Something the user can mend: said in one line, with exit status 2."""


class Settings(NamedTuple):
    """What one run of an experiment was asked for."""

    name: str
    dataset: bn_graph.Dataset
    data_directory: str | None
    seeds: list[int]
    steps: int
    output: Path


class _OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line: no usage block between the reader and what was wrong."""

    def error(self, message: str):
        raise UsageError(f"{message} (see --help)")


def main(
    name: str,
    description: str,
    run: Callable[[Settings], dict],
    summarize: Callable[[dict, Path], str],
    draw: Callable[[dict, Path], None],
    *,
    default_steps: int,
    argv: list[str] | None = None,
) -> int:
    """Runs one experiment from the command line and returns the exit status.

    Args:
        name: of the results folder.
        description: first lines of ``--help``.
        run: computes the measurements; its dictionary becomes ``result.json``, beside what `main` knows itself.
        summarize: the text that a person reads at the end.
        draw: draws the figures into a folder, from the result alone.
        default_steps: of ``--steps``.
        argv: the command line; the process's own if None.

    Returns:
        0; 2 with one line on stderr for anything the user can mend; 130 after Ctrl-C.
    """
    try:
        settings, fresh = _settings(name, description, default_steps, argv)
        folder = settings.output / name
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        _make_writable(folder)
        print(bn_graph.datasets.describe(settings.dataset), flush=True)
        result = _common(settings) | run(settings)
        write_json(folder / "result.json", result)
        result = json.loads((folder / "result.json").read_text())
        draw(result, folder)
        print(summarize(result, folder))
        return 0
    except (UsageError, bn_graph.DataError, bn_graph.CheckpointError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130


def _settings(name: str, description: str, default_steps: int, argv: list[str] | None) -> tuple[Settings, bool]:
    parser = _OneLineParser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument("--data", default="auto", choices=("auto", "mnist", "digits"), help="default: %(default)s")
    parser.add_argument(
        "--data-directory", help="folder of the four MNIST files (default: $MNIST_DIR, else MNIST_data)"
    )
    parser.add_argument("--seed", type=_seed, nargs="+", default=[0], help="one run for each (default: 0)")
    parser.add_argument("--steps", type=_steps, default=default_steps, help="training steps (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    parser.add_argument(
        "--fresh", action="store_true", help="forget earlier results and checkpoints of this experiment"
    )
    given = parser.parse_args(argv)
    dataset = bn_graph.load(given.data, given.data_directory)
    return Settings(name, dataset, given.data_directory, given.seed, given.steps, given.output), given.fresh


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a seed is a whole number from 0 up, got {text!r}")
    return int(text)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"steps is a whole number from 1 up, got {text!r}")
    return int(text)


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


def _common(settings: Settings) -> dict:
    """The part of a result that says how it came about."""
    return {
        "experiment": settings.name,
        "data": settings.dataset.name,
        "data_sha256": settings.dataset.sha256,
        "seed": settings.seeds[0],
        "seeds": settings.seeds,
        "steps": settings.steps,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.version.VERSION,
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


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
    identity |= {"data_sha256": settings.dataset.sha256, "versions": versions()}
    record = folder / "settings.json"
    try:
        same = json.loads(record.read_text()) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(record, identity)
    return folder


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
