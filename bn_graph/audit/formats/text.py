"""Reports as text for a terminal: a table of the layers, then the findings, then what could not be determined."""

import os
import textwrap
from collections.abc import Sequence
from typing import TextIO

from bn_graph.audit.report import (
    Finding,
    LayerRow,
    Level,
    Report,
    count,
    names_in_brief,
    printable,
    summary,
)

__all__ = ["render", "wants_colour"]

WIDTH = 120  # columns
_NARROWEST_NAME = 24
_INDENT = "    "
_COLUMNS = LayerRow._fields[:-1]
_COLOURS = {Level.ERROR: "31", Level.WARNING: "33", Level.ADVICE: "36"}  # red, yellow, cyan
_BOLD = "1"


def render(reports: Sequence[Report], unread: Sequence[tuple[str, str]] = (), colour: bool = False) -> str:
    """The reports as text; what could not be read is left to stderr."""
    sections = ["\n".join(_report_lines(report, colour)) for report in reports]
    if len(reports) > 1:
        faulty = sum(bool(report.errors) for report in reports)
        sections.append(f"{len(reports)} reports, {faulty} with errors.")
    return "\n\n".join(sections)


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _styled(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if colour else text


def _report_lines(report: Report, colour: bool) -> list[str]:
    lines = [_styled(_heading(report), _BOLD, colour)]
    lines += ["", *_table(report.layers, colour)] if report.layers else ["No batch norm in it."]
    for finding in report.findings:
        lines += ["", *_finding_lines(finding, colour)]
    if report.undetermined:
        lines += ["", "Cannot tell:"]
        for entry in report.undetermined:
            where = f" {names_in_brief(entry.layers)}" if entry.layers else ""
            lines += _wrapped(f"{entry.code}{where}: {entry.reason}", _INDENT)
    if report.layers or report.findings or report.undetermined:
        lines += ["", summary(report)]
    return lines


def _heading(report: Report) -> str:
    checkpoint = f" with checkpoint {report.checkpoint}" if report.checkpoint else ""
    nodes = f", {count(report.nodes, 'node')}" if report.nodes else ""
    return printable(f"{report.path}: {report.kind}{checkpoint}{nodes}")


def _table(layers: Sequence[LayerRow], colour: bool) -> list[str]:
    titles = ("layer", *_COLUMNS[1:])
    rows = [tuple(map(printable, layer[: len(titles)])) for layer in layers]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    rest = sum(widths[1:]) + 2 * len(widths[1:])
    widths[0] = min(widths[0], max(WIDTH - rest, _NARROWEST_NAME))
    cells = [(_shortened(name, widths[0]), *others) for name, *others in rows]
    head, *lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in [titles, *cells]]
    return [_styled(head, _BOLD, colour), *lines]


def _shortened(text: str, width: int) -> str:
    """`text`, with its middle left out if it is longer than `width`."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _finding_lines(finding: Finding, colour: bool) -> list[str]:
    label = f"{finding.code} {finding.level}:"
    first, *more = _wrapped(f"{label} {finding.message}", "", _INDENT)
    lines = [first.replace(label, _styled(label, _COLOURS[finding.level], colour), 1), *more]
    if finding.layers:
        lines += _wrapped(f"layers: {names_in_brief(finding.layers)}", _INDENT)
    for line in finding.evidence:
        lines += _wrapped(f"- {line}", _INDENT * 2)
    return lines + _wrapped(f"fix: {finding.fix}", _INDENT)


def _wrapped(text: str, indent: str, further: str | None = None) -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + _INDENT if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )
