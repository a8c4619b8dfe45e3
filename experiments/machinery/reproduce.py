"""Runs every experiment, one after the other, each in a process of its own; goes on where it was stopped.

    make reproduce          all in full, on MNIST
    make reproduce-quick    all in quick mode

An experiment whose result of this mode, data directory and version is there already is not run again. The time left is
guessed from the committed reference's own times.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from experiments.machinery import programs, register, results
from experiments.machinery.programs import UsageError
from experiments.machinery.report import REFERENCE

_QUICK_SECONDS = 20.0
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


def reproduce(names: list[str], mode: str, output: Path) -> int:
    """Runs what is left of `names`; returns 0, or the first failing experiment's exit status after all have run."""
    left = [name for name in names if not is_done(name, mode, output)]
    if len(left) < len(names):
        print(f"{len(names) - len(left)} of {len(names)} experiments are there already (FRESH=1 runs them again).")
    started, status = time.monotonic(), 0
    while left:
        name = left[0]
        minutes = sum(expected_seconds(each, mode) for each in left) / 60
        print(f"\n[{len(names) - len(left) + 1}/{len(names)}] {name}   about {minutes:.0f} min left in all", flush=True)
        command = [sys.executable, "-m", f"experiments.{name}", "--mode", mode, "--output", str(output)]
        finished = subprocess.run(command)
        if finished.returncode == 130:
            return 130
        status = status or finished.returncode
        left.pop(0)
    print(f"\nAll {len(names)} experiments, {(time.monotonic() - started) / 60:.1f} min. Now: make report")
    return status


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
