"""The library's tests with each TensorFlow that it works with, in an environment a version, and a table of the outcomes.

Run ``make test-versions``, or::

    python -m tests.versions [2.12.1 2.15.1 ...] [--tests tests/layers ...]
    python -m tests.versions --core        # what CI runs: the core tests with the oldest version (make test-oldest)

The environments are made once, under ``.eras`` (1 to 2 GB and one to two minutes each). They take Python 3.10 to 3.13,
which are looked for as `experiments.machinery.eras` says; what cannot be made is reported, and the others are tested all
the same. The experiments' tests are left out: those need the one TensorFlow of ``requirements.txt``.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.machinery.eras import FOLDER, EnvironmentFailed, Recipe, find_python, make_environment

ROOT = Path(__file__).parents[1]
README = ROOT / "bn_graph/layers/README.md"
_TESTING = ("pytest>=8,<10", "pytest-xdist>=3.5,<4", "hypothesis>=6.100,<7", "scikit-learn>=1", "tqdm", "h5py")

# The oldest and the newest version, and those that changed something: 2.15 is the last with legacy Keras built in, 2.16
# the first with Keras 3, 2.18 the first on NumPy 2. From 2.16 on tf.layers takes the package tf-keras.
VERSIONS = {
    recipe.tensorflow: recipe
    for recipe in (
        # Without the libraries for GPUs a third is left to download: CI waits for it.
        Recipe("2.12.1", "3.10", _TESTING, distribution="tensorflow-cpu"),
        Recipe("2.15.1", "3.11", _TESTING),
        Recipe("2.16.2", "3.11", ("tf-keras==2.16.*", *_TESTING)),
        Recipe("2.18.1", "3.12", ("tf-keras==2.18.*", *_TESTING)),
        Recipe("2.21.0", "3.13", ("tf-keras==2.21.*", *_TESTING)),
    )
}

OLDEST = next(iter(VERSIONS.values()))
OLDEST_PYTHONS = ("3.10", "3.11")
"""The versions of Python that have the oldest TensorFlow and can run this project."""

CORE_TESTS = (
    "tests/layers/test_batch_norm.py",
    "tests/training/test_train_op.py",
    "tests/checkpoints/test_savers.py",
    "tests/test_recalibration.py",
    "tests/recalibration/test_kept_values.py",
    "tests/audit/test_zoo.py",
    # Of the kinds of variable and cond, one; of the zoo, the graphs of two kinds of author.
    "-k=v2-resource or gan_ or assigned_",
)
CORE_SECONDS = 240
"""How long the installation for the core tests may take: CI has other work."""

DEFAULT_TESTS = ("bn_graph", "tests", "--ignore=tests/experiments", "--ignore=tests/audit/test_experiments.py")


class Outcome(NamedTuple):
    """What one version's tests came to."""

    passed: int
    failed: int
    skipped: int
    seconds: float


def run_tests(python: Path, tests: Sequence[str], processes: str) -> Outcome:
    """Runs pytest in an environment; its output goes to this program's.

    Args:
        python: the environment's interpreter.
        tests: pytest's arguments.
        processes: how many, or ``auto`` for as many as there are cores.

    Raises:
        EnvironmentFailed: pytest ended without having run the tests.
    """
    # A thread each: the processes share the cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-n", processes, "--dist", "worksteal", "-p", "no:cacheprovider", "--junitxml", str(report)]
        command = [str(python), "-m", "pytest", *options, *tests]
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if not report.exists():
            raise EnvironmentFailed(f"pytest ended with status {status} before it ran the tests")
        return outcome(report)


def outcome(report: Path) -> Outcome:
    """The numbers of a JUnit report; errors in fixtures and at collection count as failures."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    tests, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
    return Outcome(tests - failures - errors - skipped, failures + errors, skipped, float(suite.get("time")))


HEADER = (
    "| TensorFlow | Python | tf.layers from | passed | failed | skipped | seconds |\n|---|---|---|---:|---:|---:|---:|"
)


def row(version: str, outcome: Outcome | str) -> str:
    """The line of a Markdown table: the outcome of a version, or why there is none."""
    keras = "tf-keras" if any("tf-keras" in package for package in VERSIONS[version].packages) else "TensorFlow"
    numbers = [outcome, "", "", ""] if isinstance(outcome, str) else [*outcome[:3], f"{outcome.seconds:.0f}"]
    return f"| {version} | {VERSIONS[version].python} | {keras} | {' | '.join(map(str, numbers))} |"


def updated_readme(text: str, rows: Mapping[str, str]) -> str:
    """A README with new lines in its table of versions; those of other versions stay."""
    start, end = "<!-- generated: versions -->\n", "<!-- end: versions -->"
    before, _, rest = text.partition(start)
    old, _, after = rest.partition(end)
    lines = {line.strip("| ").split()[0]: line for line in old.splitlines()} | rows
    table = "\n".join([HEADER, *(lines[version] for version in VERSIONS if version in lines)])
    return f"{before}{start}{table}\n{end}{after}"


def run_core_tests(folder: Path, processes: str) -> int:
    """Runs the core tests with the oldest TensorFlow; returns 0 if none failed, or, with a note, if it can't be had."""
    try:
        recipe = _with_an_interpreter_that_is_here(OLDEST)
        python = make_environment(folder / recipe.tensorflow, recipe, CORE_SECONDS)
    except EnvironmentFailed as error:
        print(f"versions: NOT TESTED with TensorFlow {OLDEST.tensorflow}, the oldest: {error}", file=sys.stderr)
        return 0
    print(f"== TensorFlow {recipe.tensorflow}, Python {recipe.python}: the core tests", flush=True)
    try:
        return int(run_tests(python, CORE_TESTS, processes).failed > 0)
    except EnvironmentFailed as error:
        print(f"versions: {error}", file=sys.stderr)
        return 1


def _with_an_interpreter_that_is_here(recipe: Recipe) -> Recipe:
    missing = []
    for python in OLDEST_PYTHONS:
        try:
            find_python(python)
            return dataclasses.replace(recipe, python=python)
        except EnvironmentFailed as error:
            missing.append(str(error))
    raise EnvironmentFailed("; ".join(missing))


def main(arguments: Sequence[str] | None = None) -> int:
    """Tests the versions asked for; returns 0 if all were tested and no test failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="*", help=f"of {', '.join(VERSIONS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the environments (default: .eras)")
    parser.add_argument("--processes", default="auto", help="how many run tests at a time (default: the cores)")
    parser.add_argument("--tests", nargs="+", default=DEFAULT_TESTS, help="pytest's paths and options in place of all")
    parser.add_argument("--update-readme", action="store_true", help="write the outcomes into README's table")
    parser.add_argument("--core", action="store_true", help="the core tests with the oldest version, if it can be had")
    given = parser.parse_args(arguments)
    if given.processes != "auto" and not (given.processes.isdecimal() and int(given.processes)):
        print(f"versions: --processes is a number from 1 up, or auto; got {given.processes!r}", file=sys.stderr)
        return 2
    if given.core:
        return run_core_tests(given.folder, given.processes)
    if given.update_readme and given.tests is not DEFAULT_TESTS:
        parser.error("README's table is of all tests: leave out --tests")
    unknown = [version for version in given.version if version not in VERSIONS]
    if unknown:
        print(
            f"versions: no recipe for TensorFlow {', '.join(unknown)}; there are: {', '.join(VERSIONS)}",
            file=sys.stderr,
        )
        return 2
    outcomes: dict[str, Outcome | str] = {}
    for version in given.version or VERSIONS:
        print(f"== TensorFlow {version}, Python {VERSIONS[version].python}", flush=True)
        try:
            python = make_environment(given.folder / version, VERSIONS[version])
            outcomes[version] = run_tests(python, given.tests, given.processes)
        except EnvironmentFailed as error:
            outcomes[version] = f"not tested: {error}"
    rows = {version: row(version, outcome) for version, outcome in outcomes.items()}
    print("\n".join([HEADER, *rows.values()]))
    if given.update_readme:
        tested = {version: rows[version] for version, outcome in outcomes.items() if not isinstance(outcome, str)}
        README.write_text(updated_readme(README.read_text(encoding="utf-8"), tested), encoding="utf-8")
    return int(any(isinstance(outcome, str) or outcome.failed for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
