"""Takes the documents' programs out of their text files, by the rules in ``programs.toml``.

A program is a list of steps. ``lines 37-40`` are lines of its document, and ``example 41`` is the same without the
interpreter's prompt; ``signature NAME 169-194`` is a call as documentation prints it, for comparison with NAME. ``code …`` is a
line that is supplied, ``call …`` a function of `around`, and at ``seed`` the random generators are seeded.

Lines whose indentation the text lost get it back from the rule ``depths``: ``"18:0 19:1"`` says that line 18 stands at depth 0,
and those from 19 on at depth 1. A checksum of the lines refuses a text that the rules were not written for.
"""

import hashlib
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from experiments.machinery.programs import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Change", "Program", "line_numbers", "printed_text", "programs", "readings", "steps"]

RULES = Path(__file__).with_name("programs.toml")
INDENT, PROMPT = "    ", ">>> "
_PROGRESS = re.compile(r"\x08|\x1b|━|={5}|\bETA\b|^Epoch \d+/|^Train on|^Extracting ")
LINES = ("lines", "example", "signature")
"""The kinds of steps that end in numbers of lines."""
DIGITS = 16
"""So many hexadecimal digits of a SHA-256 identify a program's lines."""


class Change(NamedTuple):
    """What makes a program run, or show the case that the document describes and does not print.

    Attributes:
        why: the reason, for readers.
        edits: each ``{line, old, new}`` (replaced in that line), ``{line, insert}`` (a line put before it, at its depth) or
            ``{line, drop = true}``.
        error: of the error that calls for the change, a regular expression; None for a change that is always made.
    """

    why: str
    edits: tuple[Mapping[str, object], ...]
    error: str | None = None


class Program(NamedTuple):
    """The rules of one program.

    Attributes:
        document: its key.
        file: the document's.
        name: of the program.
        shows: what it is, in a few words.
        steps: as in the module's docstring, in their order.
        sha256: the first digits, of the lines of `steps` and `printed`.
        depths: indentation, as in the module's docstring; "" if the text has kept it.
        printed: the lines that give what the program printed for the document's author.
        keep: the names of variables whose values are kept when it ends.
        statistical: whether what it gives depends on the seed.
        data: whether it reads MNIST.
        keras: whether it is of Keras: run in today's TensorFlow without the shim, in legacy Keras and in Keras 3.
        changes: tried one after the other, as errors call for them.
        short: replacements in the lines (old to new) that make the program short, for tests.
    """

    document: str
    file: str
    name: str
    shows: str
    steps: tuple[str, ...]
    sha256: str = ""
    depths: str = ""
    printed: str = ""
    keep: tuple[str, ...] = ()
    statistical: bool = False
    data: bool = False
    keras: bool = False
    changes: tuple[Change, ...] = ()
    short: Mapping[str, str] = {}

    @property
    def key(self) -> str:
        """Document and name, as ``r2rt/second-half``."""
        return f"{self.document}/{self.name}"


@cache
def _rules(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def programs(rules: Path = RULES) -> dict[str, Program]:
    """The programs of the rules, by their keys."""
    found, files = {}, _rules(rules)["documents"]
    for entry in _rules(rules)["program"]:
        changes = tuple(
            Change(each["why"], tuple(each["edits"]), each.get("error")) for each in entry.get("change", [])
        )
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
        fields |= {"file": files[entry["document"]], "changes": changes}
        program = Program(**{name: value for name, value in fields.items() if name != "change"})
        found[program.key] = program
    return found


def line_numbers(ranges: str) -> list[int]:
    """The numbers in ``"37-39 42"``: 37, 38, 39, 42."""
    numbers = []
    for each in ranges.split():
        first, _, last = each.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def steps(program: Program, folder: Path, changes: Iterable[Change] = (), short: bool = False) -> list[dict]:
    """A program, ready for `child`.

    Args:
        program: its rules.
        folder: of the documents.
        changes: those to be made.
        short: whether to make the program's short replacements too.

    Returns:
        For each step ``{kind, text, line}``: kind "source" (Python code whose first line has the number `line`), "call",
        "seed", or "signature" (with the ``name`` to compare it with).

    Raises:
        UsageError: the document is not in `folder`, or its lines are others than those the rules were written for.
    """
    lines = _lines(program, folder)
    edits = [edit for change in changes for edit in change.edits]
    if short:
        for number, (old, new) in ((n, pair) for n in lines for pair in program.short.items()):
            lines[number] = lines[number].replace(old, new)
    taken = []
    for step in program.steps:
        kind, _, rest = step.partition(" ")
        entry = {"kind": kind, "text": rest, "line": 1}
        if kind in LINES:
            name, _, ranges = rest.rpartition(" ") if kind == "signature" else ("", "", rest)
            numbers = line_numbers(ranges)
            source = _source(numbers, lines, program.depths, edits)
            entry = {"kind": kind, "name": name, "text": source, "line": numbers[0]}
            if kind == "example":
                entry["text"] = source.replace(PROMPT, "")
        entry["kind"] = {"lines": "source", "example": "source", "code": "source"}.get(kind, kind)
        taken.append(entry)
    return taken


def printed_text(program: Program, folder: Path) -> str:
    """What the document says that the program printed; an empty line between the places where it says so."""
    lines = _lines(program, folder)
    return "\n\n".join("\n".join(lines[number] for number in line_numbers(each)) for each in program.printed.split())


def readings(text: str) -> list[list]:
    """The numbers in a text that was printed, each group with the words before it: ``[["ACCURACY", [0.02]]]``.

    Numbers on lines of their own belong to the group before, as an array's rows do; after an empty line they are a group
    without words. Progress bars and the data reader's lines are left out.
    """
    text = re.sub(r"\bnp\.\w+\(([^()]*)\)", r"\1", text)  # NumPy 2 prints np.int64(8) where a list has a scalar
    found: list[list] = []
    for line in text.replace("\r", "\n").split("\n"):
        if not line.strip():
            found.append(["", []])
        if _PROGRESS.search(line):
            continue
        words: list[str] = []
        for word, number in re.findall(r"([^\W\d]\w*)|([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", line):
            if word:
                words.append(word)
                continue
            if words or not found:
                found.append([" ".join(words[-6:]), []])
                words = []
            found[-1][1].append(float(number) if re.search(r"[.eE]", number) else int(number))
    return [group for group in found if group[1]]


def _lines(program: Program, folder: Path) -> dict[int, str]:
    """The document's lines that belong to the program, by their numbers from 1; checked."""
    path = Path(folder) / program.file
    try:
        every = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}. {program.key} needs this document; name the folder of the five documents."
        ) from error
    words = [
        word for step in program.steps if step.startswith(LINES) for word in step.split()
    ] + program.printed.split()
    numbers = sorted(set(line_numbers(" ".join(word for word in words if word[0].isdigit()))))
    if not numbers:
        return {}
    lines = {number: every[number - 1].rstrip() for number in numbers if number <= len(every)}
    digest = hashlib.sha256("\n".join(lines.values()).encode()).hexdigest()[:DIGITS]
    if digest != program.sha256:
        raise UsageError(
            f"{path}: the lines of {program.key} ({numbers[0]} to {numbers[-1]}) are not those that programs.toml was written "
            f"for: their SHA-256 begins {digest}, expected {program.sha256}. Take the text as it was published, or bring "
            "the rules up to date."
        )
    return lines


def _source(numbers: list[int], lines: Mapping[int, str], depths: str, edits: list[Mapping]) -> str:
    """The lines with those numbers as Python code: indented, and edited."""
    points = [tuple(map(int, point.split(":"))) for point in depths.split()]
    source = []
    for number in numbers:
        depth = max((point for point in points if point[0] <= number), default=(0, 0))[1]
        line = lines[number]
        for edit in (edit for edit in edits if edit["line"] == number):
            if "insert" in edit:
                source += [INDENT * depth + each for each in str(edit["insert"]).splitlines()]
            elif "drop" in edit:
                line = ""
            else:
                line = line.replace(str(edit["old"]), str(edit["new"]))
        source.append(INDENT * depth + line if line else "")
    return textwrap.dedent("\n".join(source))
