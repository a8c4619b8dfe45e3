"""Runs a page: its command line, its settings, its result, its verdicts, its figures.

A page is a module of `experiments` with fixed names (`Page` has the list; ``experiments/README.md`` says how to write
one) and ends in ``harness.run(__name__)``. The page measures (`run`); everything else is done here: ``result.json``,
which has all that was measured, is written whole, and then judged, drawn and summarized from that file alone.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import programs, register
from experiments.machinery.programs import UsageError, whole_number
from experiments.machinery.results import FORMAT, versions, write_json
from experiments.machinery.tables import Table
from experiments.machinery.verbatim import timeline
from experiments.machinery.verdicts import Verdict

__all__ = [
    "LOOPS",
    "Mode",
    "Page",
    "Settings",
    "advance_with_progress",
    "control_flow",
    "judge",
    "main",
    "page_of",
    "progress_bar",
    "run",
    "session_config",
    "train_on_rows",
]

LOOPS = {"graph": bn_graph.graph_loop, "feed": bn_graph.feed_loop}
"""How an experiment trains: ``--loop``. Both give the same numbers, bit for bit (tests/training/test_graph_loop.py)."""

_JUDGE = "judge_"


class Mode(NamedTuple):
    """What a page runs with: ``FULL`` has the document's own settings, ``QUICK`` is for a laptop and CI.

    Attributes:
        data: "mnist", "digits" or "auto"; None for a page that makes its own inputs.
        steps: of training; None for a page that trains nothing.
        seeds: one run for each.
        own: what else differs between the modes, by the page's own names; it reads them in ``settings.own``.
    """

    data: str | None = None
    steps: int | None = None
    seeds: Sequence[int] = (0,)
    own: Mapping[str, object] = {}


class Page(NamedTuple):
    """An experiment, as it is read off its module.

    Attributes:
        name: of the module, and of the folder of results.
        title: the first line of the docstring.
        full, quick: the module's ``FULL`` and ``QUICK``.
        run: from `Settings` to measurements, a dictionary that JSON can hold.
        judges: for each claim id a function from the result (measurements and settings) to a `Verdict`: ``judge_r2rt_03``
            for r2rt-03. They are the claims that ``claims.toml`` gives to this experiment, no more and no fewer.
        figures: the module's ``FIGURES``: file name and caption of each; the caption says what to see. May be left out.
        draw: draws the figures into a folder, from the result alone; needed where there are figures.
        tables: from the result to the tables that the report shows; may be left out.
        summarize: from the result to the text that a person reads first; None if the verdicts are all there is to say.
    """

    name: str
    title: str
    full: Mode
    quick: Mode
    run: Callable[["Settings"], dict]
    judges: Mapping[str, Callable[[dict], Verdict]]
    figures: Mapping[str, str]
    draw: Callable[[dict, Path], None]
    tables: Callable[[dict], list[Table]]
    summarize: Callable[[dict], str] | None


class Settings(NamedTuple):
    """What one run was asked for. `dataset` and `steps` are None for a page that has none.

    `loop` ("graph" or "feed") and `threads` say how it is trained. No number depends on either, so no checkpoint asks.
    `seconds_kept` is what earlier runs spent on the work that this one takes up, by its folder (`kept_work.folder`).
    """

    name: str
    mode: str
    dataset: bn_graph.Dataset | None
    data_directory: str | None
    seeds: list[int]
    steps: int | None
    output: Path
    loop: str = "graph"
    threads: int = 1
    own: Mapping[str, object] = {}
    seconds_kept: dict[Path, float] | None = None


def page_of(module: ModuleType) -> Page:
    """The page that a module is.

    Raises:
        TypeError: a name is missing, or a claim of the register has no judge here, or a judge no claim.
    """
    name = programs.module_name(module.__name__).rpartition(".")[2]
    needed = ("__doc__", "FULL", "QUICK", "run", *(("draw",) if hasattr(module, "FIGURES") else ()))
    missing = [each for each in needed if not hasattr(module, each)]
    if missing:
        raise TypeError(f"The page {name} lacks {', '.join(missing)} (experiments/README.md has the list).")
    judges = {
        each.removeprefix(_JUDGE).replace("_", "-"): function
        for each, function in inspect.getmembers(module, inspect.isfunction)
        if each.startswith(_JUDGE)
    }
    claims = register.claims_of(name)
    if set(judges) != set(claims):
        without, unknown = sorted(set(claims) - set(judges)), sorted(set(judges) - set(claims))
        raise TypeError(
            f"The page {name} does not judge what claims.toml gives it: no function judges {', '.join(without) or 'none'}"
            f", and no claim is registered for {', '.join(unknown) or 'none'}."
        )
    return Page(
        name,
        module.__doc__.splitlines()[0],
        module.FULL,
        module.QUICK,
        module.run,
        {claim: judges[claim] for claim in claims},
        getattr(module, "FIGURES", {}),
        getattr(module, "draw", lambda result, folder: None),
        getattr(module, "tables", lambda result: []),
        getattr(module, "summarize", None),
    )


def run(name: str) -> None:
    """Runs the page whose ``__name__`` this is, from the process's command line, and ends the process."""
    # By its own name and not as "__main__", so that it is imported once, whoever else imports it.
    sys.exit(main(importlib.import_module(programs.module_name(name))))


def main(module: ModuleType, argv: list[str] | None = None) -> int:
    """Runs a page.

    Args:
        module: the page.
        argv: the command line; the process's own if None.

    Returns:
        The exit status: 0; 2 with one line on stderr for a user's mistake; 130 after Ctrl-C.
    """
    page = page_of(module)
    stopped = "stopped. The same command goes on from the last checkpoint."
    return programs.run(_parser(page), argv, lambda given: _run(page, given), stopped=stopped)


def _run(page: Page, given: argparse.Namespace) -> None:
    settings = _settings(page, given)
    folder = settings.output / page.name
    if given.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    _make_writable(folder)
    if settings.dataset is not None:
        print(bn_graph.datasets.describe(settings.dataset), flush=True)
    started = time.monotonic()
    result = _common(page, settings) | page.run(settings)
    result["seconds"] = round(time.monotonic() - started + sum((settings.seconds_kept or {}).values()), 1)
    result = json.loads(json.dumps(result))  # judged as everybody else reads it
    result["claims"] = judge(page, result)
    write_json(folder / "result.json", result)
    page.draw(result, folder)
    print(_summary(page, result, folder))


def judge(page: Page, result: dict) -> dict[str, dict]:
    """Each claim's verdict, computed from `result` by the page's own function, beside the document's figure.

    Where it is not the same in all versions of TensorFlow, the verdict says since or until which it holds (`timeline`).
    """
    known = register.claims()
    return {
        claim: {"document": known[claim]["figure"], **timeline.with_versions(claim, verdict_of(result))._asdict()}
        for claim, verdict_of in page.judges.items()
    }


def _summary(page: Page, result: dict, folder: Path) -> str:
    """The page's own summary, every verdict, and the files."""
    lines = [] if page.summarize is None else ["", page.summarize(result)]
    for claim, verdict in result["claims"].items():
        lines += ["", f"{claim}  {verdict['verdict']}", f"  {verdict['measured']}", f"  {verdict['note']}"]
    files = "   ".join(str(folder / file) for file in ("result.json", *page.figures))
    return "\n".join([*lines, "", f"Files  {files}"])


def _settings(page: Page, given: argparse.Namespace) -> Settings:
    mode = {"full": page.full, "quick": page.quick}[given.mode]
    return Settings(
        name=page.name,
        mode=given.mode,
        dataset=None if mode.data is None else bn_graph.load(given.data or mode.data, given.data_directory),
        data_directory=given.data_directory,
        seeds=list(given.seed or mode.seeds),
        steps=mode.steps and (given.steps or mode.steps),
        output=given.output,
        loop=given.loop,
        threads=given.threads,
        own=mode.own,
        seconds_kept={},
    )


def _parser(page: Page) -> argparse.ArgumentParser:
    parser = programs.Parser(prog=f"python -m experiments.{page.name}", description=page.title)
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
    parser.add_output()
    parser.add_argument(
        "--loop", default="graph", choices=tuple(LOOPS), help="steps inside the graph, or fed one by one (same numbers)"
    )
    text = "networks trained at the same time, each on one core, with the same numbers"
    parser.add_number("--threads", "threads", 1, min(2, os.cpu_count() or 1), text)
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


def _common(page: Page, settings: Settings) -> dict:
    """The part of a result that says how it came about."""
    dataset = settings.dataset
    return {
        "format": FORMAT,
        "experiment": page.name,
        "title": page.title,
        "mode": settings.mode,
        "data": "none" if dataset is None else dataset.name,
        "data_sha256": {} if dataset is None else dataset.sha256,
        "seed": settings.seeds[0],
        "seeds": settings.seeds,
        "steps": settings.steps,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "figures": dict(page.figures),
    }


def session_config(settings: Settings) -> tf.ConfigProto:
    """One thread for each kernel, so that every sum is made in one order; ``--threads`` networks trained at a time."""
    return bn_graph.session_config(networks=settings.threads)


@contextlib.contextmanager
def control_flow(version: str) -> Iterator[None]:
    """While it is open, `tf.cond` builds control flow "v1" or "v2". Ref variables had v1 only."""
    was_v2 = tf.control_flow_v2_enabled()
    (tf.enable_control_flow_v2 if version == "v2" else tf.disable_control_flow_v2)()
    try:
        yield
    finally:
        (tf.enable_control_flow_v2 if was_v2 else tf.disable_control_flow_v2)()


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


def train_on_rows(advance: Callable, rows: np.ndarray, label: str) -> None:
    """Trains a step on each batch of row numbers ``[steps, batch]``, with a progress bar; `advance` as in `graph_loop`."""
    steps = range(len(rows))
    for _ in advance_with_progress(lambda start, stop: advance(start, stop, rows[start:stop]), steps, label):
        pass


def progress_bar(label: str) -> Callable:
    """Wraps a range in a progress bar on stderr that starts at the range's start, so that a resumed run shows it."""

    def wrap(steps: range):
        return tqdm(
            steps, desc=label, initial=steps.start, total=steps.stop, unit=" steps", mininterval=0.3, dynamic_ncols=True
        )

    return wrap
