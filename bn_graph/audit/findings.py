"""What an audit says: the layers it found, its findings, and what it could not tell."""

from typing import NamedTuple

from bn_graph.graphs.errors import AuditError

__all__ = ["ADVICE", "ERROR", "WARNING", "AuditError", "CannotTell", "Finding", "FindingsError", "LayerRow", "Report"]

ERROR, WARNING, ADVICE = "error", "warning", "advice"


class FindingsError(AssertionError):
    """Raised by `Report.raise_for_errors`: the findings of error level, a line each."""


class LayerRow(NamedTuple):
    """A batch norm layer of the graph or checkpoint, as a report shows it.

    Attributes:
        name: the scope of its statistics, or of its ops where it has none.
        kernel: what normalizes: ``fused``, ``fused V2``, ``fused V3``, ``moments``, ``global``; ``-`` in a checkpoint alone.
        training: what it normalizes by in training: ``batch``, ``population``, ``-`` if it is in no training path,
            ``?`` if it can't be told.
        inference: what it normalizes by at inference; ``-`` if no inference path is in the graph.
        updates: update ops upstream of a train op, of all: ``2 of 2``, ``none``; ``-`` without a graph.
        saved: whether the savers of the graph include the statistics: ``yes``, ``no``, ``some``, ``-`` without a saver.
        statistics: what the checkpoint holds: ``updated``, ``initial``, ``missing``, ``?``; ``-`` without a checkpoint.
        variables: the names of its variables' ops, by role (``gamma``, ``beta``, ``moving_mean``, ``moving_variance``).
    """

    name: str
    kernel: str
    training: str
    inference: str
    updates: str
    saved: str
    statistics: str
    variables: dict[str, str]


class Finding(NamedTuple):
    """One thing that is wrong, or might be better.

    Attributes:
        code: the rule's, as ``BN001``.
        level: `ERROR`, `WARNING` or `ADVICE`.
        layers: names of the layers concerned.
        message: one sentence: what is wrong with them.
        evidence: lines that show it: op names, a path from op to op, keys of the checkpoint.
        fix: one sentence, or a line of code.
    """

    code: str
    level: str
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
        path: of the file, or the name the caller gave a live graph.
        kind: ``meta graph``, ``saved model``, ``graph``, ``checkpoint`` or ``live graph``.
        checkpoint: path of the checkpoint that was looked at with it, or None.
        layers, findings, untold: what was found; `findings` with errors first.
        nodes: how many nodes the graph has, bodies of called functions included.
    """

    path: str
    kind: str
    checkpoint: str | None
    layers: tuple[LayerRow, ...]
    findings: tuple[Finding, ...]
    untold: tuple[CannotTell, ...]
    nodes: int = 0

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of error level."""
        return tuple(finding for finding in self.findings if finding.level == ERROR)

    def raise_for_errors(self) -> None:
        """Raises if something is wrong.

        Raises:
            FindingsError: there are findings of error level; the message has a line for each.
        """
        if self.errors:
            lines = [f"{finding.code} {', '.join(finding.layers)}: {finding.message}" for finding in self.errors]
            raise FindingsError("\n".join([f"{self.path}: {len(self.errors)} findings of error level.", *lines]))
