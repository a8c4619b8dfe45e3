"""Reports as text for a terminal: what is wrong, a table of the layers, the findings, and what could not be determined.

One faulty graph fits a screen: long tables and lists are shortened, a finding has one line of evidence. `Style.verbose`
leaves nothing out.
"""

import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from bn_graph.audit.formats import Style
from bn_graph.audit.report import (
    Finding,
    Level,
    Report,
    SubjectKind,
    Unread,
    codes_by_layer,
    count,
    names_in_brief,
    printable,
    summary,
)

__all__ = ["render", "wants_colour"]

WIDTH = 120  # columns
MOST_ROWS = 12  # layers with a row each; of more, those with equal rows share one
_MOST_NOT_UNDERSTOOD = 3
_NARROWEST_NAME = 24
_SHORT = 24  # letters beside which evidence has its line, where that must be shortened anyway
_INDENT = "    "
_COLUMNS = ("kernel", "training", "inference", "updates", "saved", "statistics")
_COLOURS = {Level.ERROR: "31", Level.WARNING: "33", Level.ADVICE: "36"}  # red, yellow, cyan
_BOLD = "1"


def render(results: Iterable[Report | Unread], style: Style) -> Iterator[str]:
    """The reports as text, a piece for each; what could not be read is left to stderr."""
    number = faulty = 0
    for result in results:
        if isinstance(result, Report):
            lines = _report_lines(result, style)
            yield "\n".join(["", *lines, ""] if number and len(lines) > 1 else [*lines, ""])
            number, faulty = number + 1, faulty + bool(result.errors)
    if number > 1:
        yield f"\n{number:,} reports, {faulty:,} with errors.\n"


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _styled(text: str, code: str, style: Style) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if style.colour else text


def _report_lines(report: Report, style: Style) -> list[str]:
    heading = _styled(printable(_heading(report, style)), _BOLD, style)
    nothing = not report.findings and not report.undetermined and not report.not_understood
    if nothing and (not report.layers or (style.many and not style.verbose)):
        return [heading]
    lines = [heading, "", *([*_table(report, style), ""] if report.layers else [])]
    for finding in report.findings:
        lines += _finding_lines(report, finding, style)
    for entry in report.undetermined:
        where = f"{_where(report, entry.layers, style)}: " if entry.layers else ""
        label, text = f"{entry.code} cannot tell:", _with_near_paths(f"{where}{entry.reason}", report, style)
        first, *more = _wrapped(f"{label} {text}", "", _INDENT)
        lines += [first.replace(label, _styled(label, _BOLD, style), 1), *more]
    shown = report.not_understood if style.verbose else report.not_understood[:_MOST_NOT_UNDERSTOOD]
    for one in shown:
        lines += _wrapped(f"not understood, and maybe batch norm: {one.name} ({one.op}), {one.reason}", "", _INDENT)
    if len(shown) < len(report.not_understood):
        lines.append(f"… and {len(report.not_understood) - len(shown):,} more that are not understood")
    if not style.verbose and any(len(finding.evidence) > 1 for finding in report.findings):
        lines.append("(--verbose shows all evidence, --explain RULE what a rule means)")
    return lines if lines[-1] else lines[:-1]


def _heading(report: Report, style: Style) -> str:
    nodes = f", {count(report.nodes, 'node')}" if report.nodes else ""
    return f"{_near(report.path, style)}: {summary(report)} ({report.kind}{_with_checkpoint(report, style)}{nodes})"


def _with_checkpoint(report: Report, style: Style) -> str:
    if not report.checkpoint or report.kind in (SubjectKind.CHECKPOINT, SubjectKind.KERAS):
        return ""
    folder = os.path.dirname(report.path)
    own = report.checkpoint in (report.path.removesuffix(".meta"), os.path.join(folder, "variables", "variables"))
    return " with its checkpoint" if own else f" with checkpoint {_near(report.checkpoint, style)}"


def _near(path: str, style: Style) -> str:
    """A file's name from where the reader stands, if that is shorter."""
    if not style.start or not os.path.isabs(path):
        return path
    try:
        return min(os.path.relpath(path, style.start), path, key=len)
    except ValueError:  # another drive
        return path


def _with_near_paths(text: str, report: Report, style: Style) -> str:
    for path in filter(None, (report.checkpoint, report.path)):
        text = text.replace(path, _near(path, style))
    return text


def _table(report: Report, style: Style) -> list[str]:
    rows = [tuple(map(printable, cells)) for cells in _rows(report, style)]
    titles = ("layer", *_COLUMNS, "findings" if any(codes for *_, codes in rows) else "")
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    rest = sum(widths[1:]) + 2 * len(list(filter(None, titles[1:])))
    widths[0] = min(widths[0], max(WIDTH - rest, _NARROWEST_NAME))
    names = _fitting([name for name, *_ in rows], widths[0])
    widths[0] = max(map(len, [titles[0], *names]))
    cells = [(name, *others) for name, (_, *others) in zip(names, rows, strict=True)]
    head, *lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in [titles, *cells]]
    return [_styled(head, _BOLD, style), *(_with_coloured_codes(line, report, style) for line in lines)]


def _fitting(names: list[str], width: int) -> list[str]:
    """Names that fit a column and still differ: without the scopes that all end in, else without their middle."""
    if max(map(len, names)) <= width:
        return names
    split = [name.split("/") for name in names]
    while min(map(len, split)) > 1 and len({scopes[-1] for scopes in split}) == 1:
        split = [scopes[:-1] for scopes in split]
    if len(split[0]) < len(names[0].split("/")):
        names = ["/".join([*scopes, "…"]) for scopes in split]
    shorter = [_shortened(name, width) for name in names]
    return shorter if len(set(shorter)) == len(set(names)) else names


def _rows(report: Report, style: Style) -> list[tuple[str, ...]]:
    """The table's cells; where there are many layers, those that have the same share a row."""
    codes = codes_by_layer(report)
    alike: dict[tuple[str, ...], list[str]] = {}
    for layer in report.layers:
        cells = (*(getattr(layer, column) for column in _COLUMNS), " ".join(codes[layer.name]))
        alone = (layer.name,) if style.verbose or len(report.layers) <= MOST_ROWS else ()
        alike.setdefault(cells + alone, []).append(layer.name)
    return [(names_in_brief(names), *cells[: len(_COLUMNS) + 1]) for cells, names in alike.items()]


def _with_coloured_codes(line: str, report: Report, style: Style) -> str:
    if not style.colour:
        return line
    levels = {finding.code: finding.level for finding in reversed(report.findings)}

    def coloured(match: re.Match) -> str:
        return _styled(match[0], _COLOURS[levels[match[0]]], style) if match[0] in levels else match[0]

    return re.sub(r"(?<= )BN\d+(?= |$)", coloured, line)


def _shortened(text: str, width: int) -> str:
    """`text`, with its middle left out if it is longer than `width`."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _finding_lines(report: Report, finding: Finding, style: Style) -> list[str]:
    label = f"{finding.code} {finding.level}:"
    first, *more = _wrapped(f"{label} {finding.message}", "", _INDENT)
    lines = [first.replace(label, _styled(label, _COLOURS[finding.level], style), 1), *more]
    where = [f"in {_where(report, finding.layers, style)}"] if finding.layers else []
    shown = finding.evidence if style.verbose else finding.evidence[:1]
    evidence = [printable(_with_near_paths(line, report, style)) for line in shown]
    width = WIDTH - len(_INDENT)
    if style.verbose:
        lines += [line for text in where for line in _wrapped(text, _INDENT)]
        lines += [line for text in evidence for line in _wrapped(f"- {text}", _INDENT * 2)]
    elif len(": ".join([*where, *evidence])) <= width or (
        where and len(where[0]) <= _SHORT and len(evidence[0]) > width
    ):
        lines.append(_INDENT + _shortened(": ".join([*where, *evidence]), width))
    else:
        lines += [line for text in where for line in _wrapped(text, _INDENT)]
        lines += [_INDENT + _shortened(text, width) for text in evidence]
    return lines + _wrapped(f"fix: {finding.fix}", _INDENT)


def _where(report: Report, layers: Sequence[str], style: Style) -> str:
    if style.verbose:
        return ", ".join(layers)
    if len(layers) > 3 and set(layers) == {layer.name for layer in report.layers}:
        return f"all {len(layers)} layers"
    return names_in_brief(layers)


def _wrapped(text: str, indent: str, further: str | None = None) -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + _INDENT if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )
