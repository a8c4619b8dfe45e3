"""What an audit reports: the layers that it found, its findings, and what it could not determine.

The words that JSON version 1 uses for modes and states are enumerations here; each is a string, equal to its value.
"""

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from bn_graph.graphs.errors import AuditError

__all__ = [
    "AuditError",
    "CannotTell",
    "Details",
    "Finding",
    "FindingsError",
    "Histogram",
    "Lack",
    "LayerDetails",
    "LayerRow",
    "Level",
    "Mode",
    "NotUnderstood",
    "Report",
    "Saved",
    "State",
    "SubjectKind",
    "Unread",
    "UpdateOp",
    "codes_by_layer",
    "count",
    "evidence_in_brief",
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
    KERAS = "Keras file"
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


class NotUnderstood(NamedTuple):
    """Something that may be a batch norm layer and is not recognized as one, or was not looked into.

    Attributes:
        name: of the statistic's op, or of the node that holds or calls what was not looked into.
        op: the type of what uses the statistic, or of the node.
        reason: why it is listed.
    """

    name: str
    op: str
    reason: str


class UpdateOp(NamedTuple):
    """An op that moves a variable toward a batch statistic, and the train ops that run it."""

    op: str
    variable: str
    run_by: tuple[str, ...]


class Histogram(NamedTuple):
    """How the values of a statistic are distributed: their smallest and largest, and counts of equal intervals between."""

    low: float
    high: float
    counts: tuple[int, ...]


class LayerDetails(NamedTuple):
    """The ops of a layer by name; what a drawing of it needs.

    Attributes:
        values: of ``moving_mean`` and ``moving_variance``, so far as the files have them.
        inputs: what it normalizes.
        switches: what decides which statistics it takes.
        batch_statistics: what computes the mean and variance of a batch.
        by_batch, by_moving: what normalizes by the batch, and by moving statistics.
        in_training: whether a train op runs it.
        updates: its update ops.
        inference_updates: those that running an inference output runs.
    """

    values: dict[str, Histogram]
    inputs: str = ""
    switches: tuple[str, ...] = ()
    batch_statistics: tuple[str, ...] = ()
    by_batch: tuple[str, ...] = ()
    by_moving: tuple[str, ...] = ()
    in_training: bool = False
    updates: tuple[UpdateOp, ...] = ()
    inference_updates: tuple[str, ...] = ()


class Details(NamedTuple):
    """What only a page shows: names of train ops, outputs (if any are known) and placeholders, and of each layer's ops."""

    train_ops: tuple[str, ...]
    outputs: tuple[str, ...]
    placeholders: tuple[str, ...]
    layers: dict[str, LayerDetails]


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
        accepted: findings that a baseline accepts; they are not among `findings`.
        not_understood: what may be batch norm, and is in none of `layers`.
        details: names of ops, where they were asked for.
    """

    path: str
    kind: SubjectKind
    checkpoint: str | None
    layers: tuple[LayerRow, ...]
    findings: tuple[Finding, ...]
    undetermined: tuple[CannotTell, ...]
    nodes: int = 0
    accepted: tuple[Finding, ...] = ()
    not_understood: tuple[NotUnderstood, ...] = ()
    details: Details | None = None

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


class Lack(_Word):
    """Why something was not audited."""

    UNREADABLE = "unreadable"
    NO_MODEL = "no model"
    INTERNAL_ERROR = "internal error"


class Unread(NamedTuple):
    """What was found and not audited.

    Attributes:
        path: of the file or directory.
        reason: one line.
        lack: only of `Lack.NO_MODEL`, a file that has a model's name and is none, nothing is lost: it is a note.
    """

    path: str
    reason: str
    lack: Lack = Lack.UNREADABLE


# --- What the formats share -------------------------------------------------------------------------------------------

_MOST_NAMES, _MOST_EVIDENCE = 3, 6
_LONG = 40  # letters
_NUMBERED = re.compile(r"(.*?)(_?\d{1,9})?", re.DOTALL)
"""A scope's name, and the number that it ends in."""


def printable(text: str) -> str:
    r"""`text` with an escape in place of every character that a terminal would obey or can't show.

    Names come from files that anybody may have written.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def names_in_brief(names: Sequence[str]) -> str:
    """Names of layers: all of up to three, if they are short; else those that differ by a number are one, three of these.

    >>> names_in_brief(["net/bn", "net/bn_1", "net/bn_2", "net/bn_3", "net/bn_5"])
    'net/bn[_1…_3,_5] (5 layers)'
    >>> names_in_brief(["conv1/bn", "conv2/bn", "conv4/bn", "logits/bn"])
    'conv[1,2,4]/bn, logits/bn (4 layers)'
    """
    if len(names) <= _MOST_NAMES and sum(map(len, names)) <= _LONG:
        return printable(", ".join(names))
    joined = _joined(names)
    shown = ", ".join(joined[:_MOST_NAMES]) + (", …" if len(joined) > _MOST_NAMES else "")
    return printable(shown) + (f" ({len(names)} layers)" if len(names) > _MOST_NAMES else "")


def _joined(names: Sequence[str]) -> list[str]:
    """Names with ranges in place of numbers, of the last scope first: ``block[1…4]/unit_[1…6]/bn``."""
    split = [[_NUMBERED.fullmatch(scope).groups("") for scope in name.split("/")] for name in dict.fromkeys(names)]
    for place in range(1, max(map(len, split), default=0) + 1):
        alike: dict[tuple, list[str]] = {}
        for scopes in split:
            position = max(len(scopes) - place, 0)
            stem, number = scopes[position]
            kind = "_" if number[:1] in ("", "_") else ""
            others = (*scopes[:position], (stem, None), *scopes[position + 1 :])
            alike.setdefault((position, kind, others), []).append(number)
        split = [
            [*others[:position], (others[position][0], _range(numbers, kind)), *others[position + 1 :]]
            for (position, kind, others), numbers in alike.items()
        ]
    return ["/".join(stem + number for stem, number in scopes) for scopes in split]


def _range(numbers: Sequence[str], kind: str) -> str:
    """The endings of scopes that are alike: ``_[1…3,5]``, and ``[_1…_3,_5]`` where one has no ending."""
    if len(numbers) == 1:
        return numbers[0]
    kept = sorted((number.removeprefix("_") for number in numbers if number), key=int)
    runs = [[kept[0]]]
    for number in kept[1:]:
        runs[-1].append(number) if int(number) == int(runs[-1][-1]) + 1 else runs.append([number])
    inner, outer = (kind, "") if "" in numbers else ("", kind)
    shown = [[run[0], run[-1]] if len(run) > 2 else run for run in runs]
    joints = ["…" if len(run) > 2 else "," for run in runs]
    return f"{outer}[{','.join(joint.join(inner + end for end in ends) for joint, ends in zip(joints, shown, strict=True))}]"


def evidence_in_brief(finding: Finding) -> tuple[str, ...]:
    """The first lines of evidence, and how many more there are."""
    more = len(finding.evidence) - _MOST_EVIDENCE
    return finding.evidence[:_MOST_EVIDENCE] + ((f"… and {more} more lines like these",) if more > 0 else ())


def codes_by_layer(report: Report) -> dict[str, list[str]]:
    """For each layer the codes of its findings, errors first, then of what is undetermined for it, as ``BN004?``."""
    codes: dict[str, list[str]] = {layer.name: [] for layer in report.layers}
    concerned = [(finding.code, finding.layers) for finding in report.findings]
    concerned += [(f"{entry.code}?", entry.layers) for entry in report.undetermined]
    for code, layers in concerned:
        for name in layers:
            if code not in codes.setdefault(name, []):
                codes[name].append(code)
    return codes


def level_counts(findings: Iterable[Finding]) -> dict[Level, int]:
    """How many findings there are of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in Level}


def summary(report: Report) -> str:
    """How many findings and undetermined rules there are, and layers: ``2 errors, 1 of advice in 9 layers``."""
    counts = level_counts(report.findings)
    parts = [count(counts[level], level) for level in (Level.ERROR, Level.WARNING) if counts[level]]
    if counts[Level.ADVICE]:
        parts.append(f"{counts[Level.ADVICE]} of advice")
    if report.undetermined:
        parts.append(f"{len(report.undetermined)} undetermined")
    if report.accepted:
        parts.append(f"{len(report.accepted)} accepted")
    if report.not_understood:
        parts.append(f"{len(report.not_understood)} not understood")
    if not parts and not report.layers:
        return "no batch norm in it"
    return f"{', '.join(parts) or 'nothing found'} in {count(len(report.layers), 'layer')}"


def count(number: int, noun: str) -> str:
    """``1 layer``, ``12,345 layers``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
