"""Runs every experiment, each in a process of its own and on one core; goes on where it was stopped.

    make reproduce          all in full, on MNIST
    make reproduce-quick    all in quick mode

As many run side by side as this process may use cores, the longest first. Their processes are forked off one that has
imported TensorFlow, which takes as long as some experiments. What an experiment prints comes when it has finished. One
whose result of this mode, data directory and version is there already is not run again. The time left is guessed from the
committed reference's own times.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.machinery import children, programs, register, results
from experiments.machinery.programs import UsageError
from experiments.machinery.report import REFERENCE

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
_QUICK_SECONDS = 8.0
_FULL_SECONDS = 120.0


def is_done(name: str, mode: str, output: Path) -> bool:
    """Whether `output` holds the result of that experiment in that mode; a broken or foreign file is not one."""
    path = output / name / "result.json"
    try:
        return path.exists() and results.load(path)["mode"] == mode
    except UsageError:
        return False


def expected_seconds(name: str, mode: str) -> float:
    """From the reference's run in full; a fixed guess for quick ones, and where there is no reference."""
    if mode == "quick":
        return _QUICK_SECONDS
    path = REFERENCE / name / "result.json"
    return float(results.load(path).get("seconds", _FULL_SECONDS)) if path.exists() else _FULL_SECONDS


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reproduce(names: list[str], mode: str, output: Path) -> int:
    """Runs what is left of `names`; returns 0, or the first failing experiment's exit status after all have run."""
    waiting = [name for name in names if not is_done(name, mode, output)]
    # The longest first, or it would be the last one and run alone. Quick modes are short in about the same order.
    waiting.sort(key=lambda name: -expected_seconds(name, "full"))
    if len(waiting) < len(names):
        print(f"{len(names) - len(waiting)} of {len(names)} experiments are there already (FRESH=1 runs them again).")
    started, status, running = time.monotonic(), 0, []
    try:
        while waiting or running:
            while waiting and len(running) < cores():
                running.append(_Running(waiting.pop(0), mode, output))
                minutes = _minutes_left(waiting, running, mode)
                number = len(names) - len(waiting)
                print(f"[{number}/{len(names)}] {running[-1].name}   about {minutes:.0f} min left in all", flush=True)
            time.sleep(0.05)
            for each in [each for each in running if not each.process.is_alive()]:
                running.remove(each)
                each.print_what_it_wrote()
                if each.process.exitcode == 130:
                    return 130
                status = status or each.process.exitcode
    finally:
        for each in running:
            each.process.terminate()
            each.process.join()
    print(f"\nAll {len(names)} experiments, {(time.monotonic() - started) / 60:.1f} min. Now: make report")
    return status


def run_experiment(name: str, mode: str, output: Path, written: str) -> None:
    """What an experiment's process does: ``python -m experiments.<name>``, its output into the file `written`."""
    with open(written, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from experiments.machinery import harness

    sys.exit(harness.main(importlib.import_module(f"experiments.{name}"), ["--mode", mode, "--output", str(output)]))


class _Running:
    """An experiment's process, whose output is kept until it ends."""

    def __init__(self, name: str, mode: str, output: Path):
        self.name, self.expected, self.started = name, expected_seconds(name, mode), time.monotonic()
        self.written = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        arguments = (name, mode, output, self.written.name)
        self.process = children.fresh_processes().Process(target=run_experiment, args=arguments)
        self.process.start()

    def print_what_it_wrote(self) -> None:
        seconds = time.monotonic() - self.started
        print(f"\n--- {self.name}, {seconds:.0f} s ---\n{self.written.read()}", flush=True)
        self.written.close()


def _minutes_left(waiting: Sequence[str], running: Sequence[_Running], mode: str) -> float:
    now = time.monotonic()
    seconds = sum(expected_seconds(name, mode) for name in waiting)
    seconds += sum(max(0.0, each.started + each.expected - now) for each in running)
    return seconds / cores() / 60


def _work(given: argparse.Namespace) -> int:
    by_target = {register.target(name): name for name in register.experiments()}
    names = [by_target.get(name, name.replace("-", "_")) for name in given.experiment] or register.experiments()
    unknown = [name for name in names if name not in register.experiments()]
    if unknown:
        known = ", ".join(register.experiments())
        raise UsageError(f"there is no experiment {', '.join(unknown)}; there are: {known}")
    if given.fresh:
        for name in names:
            (given.output / name / "result.json").unlink(missing_ok=True)
    # One core an experiment, and no progress bars: what their processes are forked off begins with this environment.
    os.environ.update(dict.fromkeys(_THREADS, "1"), TQDM_DISABLE="1")
    return reproduce(names, given.mode, given.output)


def main(argv: list[str] | None = None) -> int:
    parser = programs.parser(__name__, __doc__)
    parser.add_argument("experiment", nargs="*", help="only these (default: all)")
    parser.add_argument("--mode", choices=("quick", "full"), default="quick")
    parser.add_argument("--output", type=Path, default=Path("results"))
    parser.add_argument("--fresh", action="store_true", help="run those that are there already, too")
    return programs.run(parser, argv, _work, stopped="stopped. The same command goes on from here.")


if __name__ == "__main__":
    sys.exit(main())
