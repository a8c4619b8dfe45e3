"""Runs the documents' programs in every TensorFlow there is, each in a process of its own, and keeps what they gave.

    make verbatim DOCUMENTS=folder        or        python -m experiments.machinery.verbatim --documents folder

A program is run as printed. Where it raises, the first change of its rules that the error calls for is made, and it is run
again, from its start; every run is kept, with its error. What is there already from the same text and rules is not run again.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import bn_graph
from experiments.machinery import eras, programs, results
from experiments.machinery.programs import UsageError
from experiments.machinery.verbatim import summary, table, texts
from experiments.machinery.verbatim.texts import Program

__all__ = ["Environment", "environments", "main", "run_program"]

SECONDS = 900
"""How long one program may take."""

TODAY = "2.21"
LEGACY, KERAS3 = "2.21 legacy Keras", "2.21 Keras 3"


class Environment(NamedTuple):
    """Where a program is run: `name` heads its column, `mode` is `child`'s."""

    name: str
    python: Path
    mode: str


def environments(folder: Path) -> list[Environment]:
    """TensorFlow 1 as far as `make eras` has made it in `folder`, and today's in three modes."""
    old = {version: eras.environment_python(version, folder) for version in eras.RELEASES}
    today = [(TODAY, "shim"), (LEGACY, "legacy Keras"), (KERAS3, "Keras 3")]
    return [Environment(version, python, "as it stands") for version, python in old.items() if python] + [
        Environment(name, Path(sys.executable), mode) for name, mode in today
    ]


def runs_in(program: Program, environment: Environment) -> bool:
    """Whether the program is one for that environment: Keras's are run in today's Keras and not through the shim."""
    return environment.mode == "as it stands" or program.keras == (environment.mode != "shim")


def run_program(
    program: Program,
    environment: Environment,
    folder: Path,
    seed: int,
    *,
    data: str | None = None,
    short: bool = False,
    pictures: Path | None = None,
) -> list[dict]:
    """Runs a program as printed, and again with a change as long as an error calls for one.

    Args:
        program: its rules.
        environment: where.
        folder: of the documents.
        seed: of the random generators.
        data: folder of MNIST, for a program that reads it.
        short: whether to make the program's short replacements.
        pictures: folder for the figures that it draws; they are dropped if None.

    Returns:
        An entry a run: ``{seed, short, changes, error, printed, variables, measured, figures, seconds, versions, shim}``.

    Raises:
        subprocess.TimeoutExpired: a run was not finished after `SECONDS`.
    """
    changes = [change for change in program.changes if change.error is None]
    entries = []
    while True:
        steps = texts.steps(program, folder, changes, short)
        entry = _run_once(program, environment, steps, seed, data, pictures)
        made = [{"why": change.why, "edits": [_edit(edit) for edit in change.edits]} for change in changes]
        entries.append({"seed": seed, "short": short, "changes": made} | entry)
        called = _called_for(program, changes, entry["error"])
        if called is None:
            return entries
        changes = [*changes, called]


def _edit(edit: dict) -> str:
    """An edit as it is reported; no line of the document is."""
    if "insert" in edit:
        return f"before line {edit['line']}: {' / '.join(str(edit['insert']).strip().splitlines())}"
    return f"line {edit['line']}: " + ("left out" if "drop" in edit else f"{edit['old']} → {edit['new']}")


def _called_for(program: Program, made: list, error: dict | None) -> texts.Change | None:
    """The first change not made yet that the error calls for."""
    if error is None:
        return None
    text = f"{error['type']}: {error['message']}"
    wanted = (each for each in program.changes if each.error and each not in made and re.search(each.error, text))
    return next(wanted, None)


def _run_once(
    program: Program, environment: Environment, steps: list[dict], seed: int, data: str | None, pictures: Path | None
) -> dict:
    with tempfile.TemporaryDirectory() as working:
        if program.data:
            _supply_mnist(Path(working) / "MNIST_data", data)
        answer = Path(working) / "answer.json"
        request = {"steps": steps, "file": program.file, "seed": seed, "keep": program.keep}
        request |= {"mode": environment.mode, "answer": str(answer)}
        request["pictures"] = str((pictures or Path(working) / "pictures").absolute())
        command = [str(environment.python), str(Path(__file__).with_name("child.py"))]
        finished = subprocess.run(
            command,
            input=json.dumps(request),
            cwd=working,
            env=_variables(environment),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if not answer.exists():
            last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
            return _without_answer(f"the interpreter ended with status {finished.returncode}: {last}")
        entry = json.loads(answer.read_text(encoding="utf-8"))
    entry["printed"] = texts.readings(entry["printed"])
    return entry


def _without_answer(message: str) -> dict:
    error = {"type": "ProcessError", "message": message, "line": None}
    return {"error": error, "printed": [], "measured": {}, "variables": {}, "figures": [], "shim": []}


def _variables(environment: Environment) -> dict[str, str]:
    """The process's own, without what would lead an old Python to this project's packages; figures are not shown."""
    # Today's TensorFlow sets TF2_BEHAVIOR when it is imported, and 1.15 would run eagerly by it.
    left_out = ("PYTHON", "TF_USE_LEGACY", "TF2_BEHAVIOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    kept |= {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    if environment.mode == "shim":
        kept["PYTHONPATH"] = str(Path(__file__).parents[3])
    if environment.mode in ("shim", "legacy Keras"):
        kept["TF_USE_LEGACY_KERAS"] = "1"
    return kept


def _supply_mnist(folder: Path, data: str | None) -> None:
    """The four files where the programs look for them, compressed as they expect them."""
    source = Path(data or os.environ.get("MNIST_DIR") or bn_graph.datasets.DEFAULT_DIRECTORY).absolute()
    folder.mkdir()
    for name in bn_graph.datasets.MNIST_FILES:
        if (source / f"{name}.gz").exists():
            (folder / f"{name}.gz").symlink_to(source / f"{name}.gz")
        elif (source / name).exists():
            (folder / f"{name}.gz").write_bytes(gzip.compress((source / name).read_bytes(), 1))
        else:
            raise UsageError(
                f"{source} has neither {name} nor {name}.gz; name MNIST's folder in MNIST_DIR (make mnist)."
            )


# --- what is kept ----------------------------------------------------------------------------------------------------------
def result_path(output: Path, program: Program, environment: str) -> Path:
    """Of a program's results in an environment."""
    return output / "verbatim" / program.document / program.name / f"{environment.replace(' ', '-')}.json"


def _kept(path: Path, rules: str) -> dict[tuple[int, bool], list[dict]]:
    """The runs that a result file has from these very rules, by seed and shortness."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kept: dict[tuple[int, bool], list[dict]] = {}
    for entry in result["runs"] if result.get("rules") == rules else []:
        kept.setdefault((entry["seed"], entry["short"]), []).append(entry)
    return kept


def digest(program: Program) -> str:
    """Of all rules that decide what a program gives; a reason may be worded anew."""
    edits = [(change.error, change.edits) for change in program.changes]
    rules = (program.steps, program.sha256, program.depths, program.keep, edits, program.short)
    return hashlib.sha256(repr(rules).encode()).hexdigest()[: texts.DIGITS]


def _run_seeds(program: Program, environment: Environment, given: argparse.Namespace) -> Iterator[str]:
    """Runs what is not kept yet, writes the result after each seed, and yields a line about each run."""
    path, rules = result_path(given.output, program, environment.name), digest(program)
    kept = {} if given.fresh else _kept(path, rules)
    for seed in given.seed if program.statistical else given.seed[:1]:
        if (seed, given.short) in kept:
            continue
        how = {"data": given.data_directory, "short": given.short, "pictures": path.with_suffix("")}
        try:
            entries = run_program(program, environment, given.documents, seed, **how)
        except subprocess.TimeoutExpired:  # says nothing of the program, but that the machine is busy or slow
            yield f"{program.key:40} {environment.name:18} seed {seed}: not finished after {SECONDS} s, and not kept"
            continue
        kept[seed, given.short] = entries
        _write(
            path,
            {
                "format": results.FORMAT,
                "document": program.document,
                "program": program.name,
                "shows": program.shows,
                "environment": environment.name,
                "mode": environment.mode,
                "rules": rules,
                "supplied": [each.partition(" ")[2] for each in program.steps if each.startswith(("code", "call"))],
                "document_printed": texts.readings(texts.printed_text(program, given.documents)),
                "runs": [entry for key in sorted(kept) for entry in kept[key]],
            },
        )
        for entry in entries:
            yield _line(program, environment, entry)


def _write(path: Path, content: dict) -> None:
    """As JSON, with a list of numbers on one line."""
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(content, indent=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(path, text + "\n")


def take_reference(output: Path, reference: Path) -> int:
    """Copies the results of whole runs, the table and the figure to where git keeps them; returns how many results.

    Raises:
        UsageError: one of the results is of a short run.
    """
    found = sorted((output / "verbatim").glob("*/*/*.json"))
    for path in found:
        if any(run["short"] for run in json.loads(path.read_text(encoding="utf-8"))["runs"]):
            raise UsageError(f"{path} has short runs; the reference takes whole ones only.")
    for path in [*found, *(output / "verbatim" / name for name in summary.FIGURES)]:
        target = reference / path.relative_to(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return len(found)


def _line(program: Program, environment: Environment, entry: dict) -> str:
    error = entry["error"]
    where = "" if error is None or error["line"] is None or entry["changes"] else f" (line {error['line']})"
    outcome = "ran" if error is None else f"{error['type']}: {error['message'][:110]}{where}"
    count = len(entry["changes"])
    changed = f", {count} change{'s' * (count > 1)}" if count else ", as printed"
    took = f"{entry.get('seconds', 0):.0f} s"
    lines = [f"{program.key:40} {environment.name:18} seed {entry['seed']}{changed}: {outcome} ({took})"]
    if entry["changes"] and error is None:
        lines += [f"    {change['why']}: {edit}" for change in entry["changes"] for edit in change["edits"]]
    return "\n".join([*lines, *(f"    shim: {each}" for each in entry["shim"] if error is None)])


def _chosen(names: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    """Those of `known` that equal one of `names` or begin with one and a slash; all if there are none."""
    names, known = list(names), list(known)
    unknown = [name for name in names if not any(each == name or each.startswith(f"{name}/") for each in known)]
    if unknown:
        raise UsageError(f"there is no {what} {', '.join(unknown)}; there are: {', '.join(known)}")
    return [each for each in known if not names or any(each == name or each.startswith(f"{name}/") for name in names)]


def _work(given: argparse.Namespace) -> int | None:
    every, there = texts.programs(), {each.name: each for each in environments(given.eras)}
    missing = [version for version in eras.ERAS if version not in there]
    if missing:
        print(
            f"verbatim: without TensorFlow {', '.join(missing)}; `make eras` makes their environments", file=sys.stderr
        )
    chosen = [every[key] for key in _chosen(given.program or (), every, "program")]
    # The releases between the documents' are run where they are named.
    usual = [name for name in there if name in eras.ERAS or name not in eras.RELEASES]
    places = [there[name] for name in (_chosen(given.version, there, "environment") if given.version else usual)]
    for program in chosen:  # before the first of them trains for a minute
        texts.steps(program, given.documents)
    for program in chosen:
        for environment in places:
            if runs_in(program, environment):
                for line in _run_seeds(program, environment, given):
                    print(line, flush=True)
    folder = given.output / "verbatim"
    summary.write(folder)
    print(f"Files  {folder / 'table.md'}   {folder / 'verbatim.png'}")
    if given.take_reference:
        print(f"{take_reference(given.output, table.REFERENCE)} results are the reference now.")
    return None


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    whole = programs.whole_number("a seed", 0)
    parser = programs.Parser(prog="python -m experiments.machinery.verbatim", description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=Path, required=True, help="folder of the five text files")
    parser.add_argument(
        "--program", nargs="+", help="as r2rt/second-half, or r2rt for all of a document (default: all)"
    )
    parser.add_argument("--version", nargs="+", help="as 1.15.5 or 2.21 (default: 1.0.1 to 1.15.5 and today's)")
    parser.add_argument("--seed", type=whole, nargs="+", default=[0], help="of programs that train (default: 0)")
    parser.add_argument(
        "--eras", type=Path, default=eras.FOLDER, help="folder of the old environments (default: .eras)"
    )
    parser.add_argument(
        "--data-directory", help="folder of the four MNIST files (default: $MNIST_DIR, else MNIST_data)"
    )
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="a few steps in place of all, to see whether it runs")
    parser.add_argument("--take-reference", action="store_true", help="keep the results as the committed reference")
    parser.add_argument("--fresh", action="store_true", help="run again what has been run")
    return programs.run(parser, argv, _work, stopped="stopped. The same command goes on with what is missing.")
