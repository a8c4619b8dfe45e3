"""Reports as GitHub's workflow commands, which annotate a pull request: a command a finding, then a summary."""

from collections.abc import Iterable, Iterator

from bn_graph.audit.formats import Style
from bn_graph.audit.report import (
    Finding,
    Level,
    Report,
    SubjectKind,
    Unread,
    evidence_in_brief,
    names_in_brief,
    printable,
    summary,
)
from bn_graph.audit.rules import RULES

__all__ = ["render"]

_COMMANDS = {Level.ERROR: "error", Level.WARNING: "warning", Level.ADVICE: "notice"}


def render(results: Iterable[Report | Unread], style: Style) -> Iterator[str]:
    """The reports as workflow commands, a piece for each report; what could not be read is left to stderr."""
    for result in results:
        if isinstance(result, Report):
            yield "".join(f"{line}\n" for line in _lines(result))


def _lines(report: Report) -> list[str]:
    file = "" if report.kind == SubjectKind.LIVE_GRAPH else f"file={_property(report.path)},"
    commands = [_command(file, finding) for finding in report.findings]
    return [*commands, f"bn_graph audit: {printable(report.path)}: {summary(report)}."]


def _command(file: str, finding: Finding) -> str:
    title = _property(f"{finding.code}: {RULES[finding.code].title}")
    layers = [f"Layers: {names_in_brief(finding.layers)}"] if finding.layers else []
    text = "\n".join(
        [finding.message, *layers, *(f"  {line}" for line in evidence_in_brief(finding)), f"Fix: {finding.fix}"]
    )
    return f"::{_COMMANDS[finding.level]} {file}title={title}::{_data(text)}"


def _data(text: str) -> str:
    """`text` as the message of a workflow command, which ends at a newline."""
    return printable(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    """`text` as a property of a workflow command, which also ends at a comma or colon."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
