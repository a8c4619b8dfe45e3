"""What an audit reports: the layers that it found, its findings, and what it could not determine.

The words that JSON version 1 uses for modes and states are enumerations here; each is a string, equal to its value.
"""

import itertools
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from bn_graph.graphs.errors import AuditError

__all__ = [
    "AuditError",
    "CannotTell",
    "Finding",
    "FindingsError",
    "LayerRow",
    "Level",
    "Mode",
    "Report",
    "Saved",
    "State",
    "SubjectKind",
    "count",
    "level_counts",
    "names_in_brief",
    "printable",
    "summary",
]


class _Word(str, Enum):
    """A string of the report's vocabulary."""

    __str__ = str.__str__


class Level(_Word):
    """How bad a finding is, the worst first; only `ERROR` changes the exit status."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"


class Mode(_Word):
    """What a layer normalizes by."""

    BATCH = "batch"
    MOVING = "population"
    ABSENT = "-"
    UNKNOWN = "?"


class State(_Word):
    """What is known of a layer's moving statistics from a checkpoint, or from the constants of a frozen graph."""

    UPDATED = "updated"
    INITIAL = "initial"
    MISSING = "missing"
    UNKNOWN = "?"
    ABSENT = "-"


class Saved(_Word):
    """How many of a layer's moving statistics the graph's Savers include."""

    YES = "yes"
    SOME = "some"
    NO = "no"
    ABSENT = "-"


class SubjectKind(_Word):
    """What was audited."""

    META_GRAPH = "meta graph"
    SAVED_MODEL = "saved model"
    GRAPH = "graph"
    CHECKPOINT = "checkpoint"
    LIVE_GRAPH = "live graph"


class FindingsError(AssertionError):
    """Raised by `Report.raise_for_errors`: the findings of error level, a line each."""


class LayerRow(NamedTuple):
    """A batch norm layer of the graph or checkpoint.

    Attributes:
        name: the scope of its statistics, or of its ops where it has none.
        kernel: what normalizes: ``fused``, ``fused V2``, ``fused V3``, ``moments``, ``global``; ``-`` in a checkpoint alone.
        training: what it normalizes by in training: ``batch``, ``population`` (its moving statistics), ``?`` if it can't
            be determined.
        inference: what it normalizes by at inference; ``-`` if no inference path is in the graph.
        updates: update ops upstream of a train op, of all: ``2 of 2``, ``none``; ``-`` without a graph.
        saved: whether the savers of the graph include the statistics: ``yes``, ``no``, ``some``, ``-`` without a saver.
        statistics: what the checkpoint has of them: ``updated``, ``initial``, ``missing``, ``?``; ``-`` without a checkpoint.
        variables: the names of its variables' ops, by role (``gamma``, ``beta``, ``moving_mean``, ``moving_variance``).
    """

    name: str
    kernel: str
    training: Mode
    inference: Mode
    updates: str
    saved: Saved
    statistics: State
    variables: dict[str, str]


class Finding(NamedTuple):
    """Something that is wrong, or might be better.

    Attributes:
        code: the rule's, as ``BN001``.
        level: how bad it is.
        layers: names of the layers concerned.
        message: one sentence: what is wrong with them.
        evidence: lines that show it: op names, a path from op to op, keys of the checkpoint.
        fix: one sentence, or a line of code.
    """

    code: str
    level: Level
    layers: tuple[str, ...]
    message: str
    evidence: tuple[str, ...]
    fix: str


class CannotTell(NamedTuple):
    """A rule that could not be decided for some layers, and why; never counted as a finding."""

    code: str
    layers: tuple[str, ...]
    reason: str


class Report(NamedTuple):
    """The audit of one graph, checkpoint or pair of them.

    Attributes:
        path: of the file, or the name of a live graph.
        kind: what it is.
        checkpoint: prefix of the checkpoint that was read with it, or None.
        layers: the batch norm layers, in the graph's order.
        findings: errors first, then by code.
        undetermined: the rules that could not be decided.
        nodes: how many nodes the graph has, bodies of called functions included.
    """

    path: str
    kind: SubjectKind
    checkpoint: str | None
    layers: tuple[LayerRow, ...]
    findings: tuple[Finding, ...]
    undetermined: tuple[CannotTell, ...]
    nodes: int = 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of error level."""
        return tuple(finding for finding in self.findings if finding.level == Level.ERROR)

    def raise_for_errors(self) -> None:
        """Raises if something is wrong.

        Raises:
            FindingsError: there are findings of error level; the message has a line for each.
        """
        if self.errors:
            lines = [f"{finding.code} {', '.join(finding.layers)}: {finding.message}" for finding in self.errors]
            raise FindingsError("\n".join([f"{self.path}: {len(self.errors)} findings of error level.", *lines]))


# --- What the formats share -------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    r"""`text` with an escape in place of every character that a terminal would obey or can't show.

    Names come from files that anybody may have written.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def names_in_brief(names: Sequence[str]) -> str:
    """Names of layers: all of up to three; of more, the first and the last and how many."""
    if len(names) <= 3:
        return printable(", ".join(names))
    scopes = zip(*(name.split("/")[:-1] for name in names), strict=False)
    prefix = "/".join(parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, scopes))
    start = len(prefix) + 1 if prefix else 0
    ends = f"{names[0][start:]} … {names[-1][start:]}"
    return printable(f"{prefix}/{{{ends}}}" if prefix else ends) + f" ({len(names)} layers)"


def level_counts(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many findings there are of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in Level}


def summary(report: Report) -> str:
    """How many layers, findings and undetermined rules there are, in a line."""
    counts = level_counts(report.findings)
    parts = [count(counts[level], level) for level in (Level.ERROR, Level.WARNING) if counts[level]]
    if counts[Level.ADVICE]:
        parts.append(f"{counts[Level.ADVICE]} of advice")
    if report.undetermined:
        parts.append(f"{len(report.undetermined)} undetermined")
    return f"{count(len(report.layers), 'layer')}: {', '.join(parts) or 'nothing found'}."


def count(number: int, noun: str) -> str:
    """``1 layer``, ``12,345 layers``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
