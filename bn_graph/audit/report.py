"""Reports as text, JSON, SARIF 2.1.0 and GitHub's workflow commands.

The JSON is an object, and stays as it is while ``version`` is 1 (keys may be added)::

    {"version": 1,
     "summary": {"reports": 1, "layers": 2, "error": 1, "warning": 0, "advice": 0, "cannot_tell": 0, "unreadable": 0},
     "reports": [{"path", "kind", "checkpoint" (or null), "nodes",
                  "layers": [{"name", "kernel", "training", "inference", "updates", "saved", "statistics",
                              "variables": {role: name}}],
                  "findings": [{"code", "level", "layers": [name], "message", "evidence": [line], "fix"}],
                  "cannot_tell": [{"code", "layers": [name], "reason"}]}],
     "unreadable": [{"path", "reason"}]}

What the values mean is in `bn_graph.audit.findings`. In SARIF, findings are results (advice is a "note"), and what
could not be told or read are notifications of the run, since viewers count every result as an alert.

Names come from files that anybody may have written, so in text no control character of theirs reaches the terminal.
"""

import itertools
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.parse import quote

from bn_graph.audit.explanations import RULES, Explanation, help_texts
from bn_graph.audit.findings import ADVICE, ERROR, WARNING, Finding, LayerRow, Report

__all__ = ["FORMATS", "compact", "printable", "render", "wants_colour"]

FORMATS = ("text", "json", "sarif", "github")
JSON_VERSION = 1
WIDTH = 120  # columns of text
_NARROWEST_NAME = 24
_INDENT = "    "
_LEVELS = (ERROR, WARNING, ADVICE)
_COLOURS = {ERROR: "31", WARNING: "33", ADVICE: "36"}  # red, yellow, cyan
_SARIF_LEVELS = {ERROR: "error", WARNING: "warning", ADVICE: "note"}
_GITHUB_COMMANDS = {ERROR: "error", WARNING: "warning", ADVICE: "notice"}
_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

Unread = Sequence[tuple[str, str]]


class _Style(NamedTuple):
    """How text is made bold or coloured; both leave it alone without colour."""

    bold: Callable[[str], str]
    level: Callable[[str, str], str]


def render(reports: Sequence[Report], form: str, *, unread: Unread = (), colour: bool = False) -> str:
    """The reports in one of `FORMATS`, without a newline at the end.

    Args:
        reports: in the order in which they are to appear.
        form: ``text``, ``json``, ``sarif`` or ``github``.
        unread: paths that could not be read, each with the reason. JSON and SARIF say so; text leaves it to stderr.
        colour: whether text may have escape sequences for colours; the other formats never do.

    Raises:
        ValueError: `form` is none of `FORMATS`.

    Example:
        >>> from bn_graph.audit.findings import Report
        >>> from bn_graph.audit.report import render
        >>> print(render([Report("frozen.pb", "graph", None, (), (), (), nodes=12)], "text"))
        frozen.pb: graph, 12 nodes
        No batch norm in it.
    """
    if form == "text":
        return _text(reports, colour)
    if form == "json":
        return json.dumps(_json(reports, unread), indent=2)
    if form == "sarif":
        return json.dumps(_sarif(reports, unread), indent=2)
    if form == "github":
        return "\n".join(line for report in reports for line in _github(report))
    raise ValueError(f"form must be one of {', '.join(FORMATS)}, got {form!r}.")


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that shows colours, and NO_COLOR is not set.

    Example:
        >>> import io
        >>> from bn_graph.audit.report import wants_colour
        >>> wants_colour(io.StringIO())
        False
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    r"""`text` with an escape in place of every character that a terminal would obey or can't show.

    Example:
        >>> from bn_graph.audit.report import printable
        >>> printable("conv\x1b[2J\nµ")
        'conv\\x1b[2J\\nµ'
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


# --- text -------------------------------------------------------------------------------------------------------------


def _text(reports: Sequence[Report], colour: bool) -> str:
    style = _style(colour)
    sections = ["\n".join(_report_lines(report, style)) for report in reports]
    if len(reports) > 1:
        faulty = sum(bool(report.errors) for report in reports)
        sections.append(f"{len(reports)} reports, {faulty} with errors.")
    return "\n\n".join(sections)


def _style(colour: bool) -> _Style:
    if not colour:
        return _Style(lambda text: text, lambda text, level: text)
    return _Style(
        lambda text: f"\x1b[1m{text}\x1b[0m", lambda text, level: f"\x1b[{_COLOURS.get(level, '1')}m{text}\x1b[0m"
    )


def _report_lines(report: Report, style: _Style) -> list[str]:
    lines = [style.bold(_heading(report))]
    if not report.layers:
        lines.append("No batch norm in it.")
    else:
        lines += ["", *_table(report.layers, style)]
    for finding in report.findings:
        lines += ["", *_finding_lines(finding, style)]
    if report.untold:
        lines += ["", "Cannot tell:"]
        for untold in report.untold:
            where = f" {compact(untold.layers)}" if untold.layers else ""
            lines += _wrapped(f"{untold.code}{where}: {untold.reason}", _INDENT)
    if report.layers or report.findings or report.untold:
        lines += ["", _summary(report)]
    return lines


def _heading(report: Report) -> str:
    checkpoint = f" with checkpoint {report.checkpoint}" if report.checkpoint else ""
    nodes = f", {_count(report.nodes, 'node')}" if report.nodes else ""
    return printable(f"{report.path}: {report.kind}{checkpoint}{nodes}")


def _table(layers: Sequence[LayerRow], style: _Style) -> list[str]:
    titles = ("layer", "kernel", "training", "inference", "updates", "saved", "statistics")
    rows = [tuple(map(printable, layer[: len(titles)])) for layer in layers]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    rest = sum(widths[1:]) + 2 * len(widths[1:])
    widths[0] = min(widths[0], max(WIDTH - rest, _NARROWEST_NAME))
    cells = [(_shortened(name, widths[0]), *others) for name, *others in rows]
    head, *lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in [titles, *cells]]
    return [style.bold(head), *lines]


def _shortened(text: str, width: int) -> str:
    """`text`, with its middle left out if it is longer than `width`."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def compact(names: Sequence[str]) -> str:
    """Names of layers in a few words: all of up to three, else the first and the last of them and how many.

    Example:
        >>> from bn_graph.audit.report import compact
        >>> compact(["a/bn", "b/bn"]), compact([f"conv{number}/bn" for number in range(1, 10)])
        ('a/bn, b/bn', 'conv1/bn … conv9/bn (9 layers)')
        >>> compact([f"resnet/block/conv{number}/bn" for number in range(1, 10)])
        'resnet/block/{conv1/bn … conv9/bn} (9 layers)'
    """
    if len(names) <= 3:
        return printable(", ".join(names))
    scopes = zip(*(name.split("/")[:-1] for name in names), strict=False)
    prefix = "/".join(parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, scopes))
    start = len(prefix) + 1 if prefix else 0
    ends = f"{names[0][start:]} … {names[-1][start:]}"
    return printable(f"{prefix}/{{{ends}}}" if prefix else ends) + f" ({len(names)} layers)"


def _finding_lines(finding: Finding, style: _Style) -> list[str]:
    first, *more = _wrapped(f"{finding.code} {finding.level}: {finding.message}", "", _INDENT)
    label = f"{finding.code} {finding.level}:"
    lines = [first.replace(label, style.level(label, finding.level), 1), *more]
    if finding.layers:
        lines += _wrapped(f"layers: {compact(finding.layers)}", _INDENT)
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


def _summary(report: Report) -> str:
    counts = _counts(report.findings)
    found = [_count(counts[level], level) for level in (ERROR, WARNING) if counts[level]]
    if counts[ADVICE]:
        found.append(f"{counts[ADVICE]} of advice")
    if report.untold:
        found.append(f"{len(report.untold)} that can't be told")
    return f"{_count(len(report.layers), 'layer')}: {', '.join(found) or 'nothing found'}."


def _counts(findings: Iterable[Finding]) -> dict[str, int]:
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in _LEVELS}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json(reports: Sequence[Report], unread: Unread) -> dict:
    summary = {
        "reports": len(reports),
        "layers": sum(len(report.layers) for report in reports),
        **_counts(finding for report in reports for finding in report.findings),
        "cannot_tell": sum(len(report.untold) for report in reports),
        "unreadable": len(unread),
    }
    return {
        "version": JSON_VERSION,
        "summary": summary,
        "reports": [_json_report(report) for report in reports],
        "unreadable": [{"path": path, "reason": reason} for path, reason in unread],
    }


def _json_report(report: Report) -> dict:
    return {
        "path": report.path,
        "kind": report.kind,
        "checkpoint": report.checkpoint,
        "nodes": report.nodes,
        "layers": [layer._asdict() for layer in report.layers],
        "findings": [finding._asdict() for finding in report.findings],
        "cannot_tell": [untold._asdict() for untold in report.untold],
    }


# --- SARIF ------------------------------------------------------------------------------------------------------------


def _sarif(reports: Sequence[Report], unread: Unread) -> dict:
    driver = {"name": "bn_graph audit", "rules": [_sarif_rule(rule) for rule in RULES.values()]}
    notes = [note for report in reports for note in _sarif_untold(report)]
    errors = [
        {"level": "error", "message": {"text": f"Could not be read: {reason}"}, "locations": [_sarif_file(path)]}
        for path, reason in unread
    ]
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": not unread, "toolExecutionNotifications": [*errors, *notes]}],
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(report, finding) for report in reports for finding in report.findings],
    }
    return {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _sarif_rule(rule: Explanation) -> dict:
    text, markdown = help_texts(rule)
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": f"{rule.title[0].upper()}{rule.title[1:]}."},
        "fullDescription": {"text": " ".join(rule.meaning.split())},
        "help": {"text": text, "markdown": markdown},
        "defaultConfiguration": {"level": _SARIF_LEVELS[rule.level]},
    }


def _sarif_result(report: Report, finding: Finding) -> dict:
    lines = [finding.message, *finding.evidence, f"Fix: {finding.fix}"]
    return {
        "ruleId": finding.code,
        "ruleIndex": list(RULES).index(finding.code),
        "level": _SARIF_LEVELS[finding.level],
        "message": {"text": "\n".join(lines)},
        "locations": [_sarif_location(report, finding.layers)],
    }


def _sarif_untold(report: Report) -> list[dict]:
    return [
        {
            "level": "note",
            "message": {"text": f"Cannot tell: {untold.reason}"},
            "associatedRule": {"id": untold.code},
            "locations": [_sarif_location(report, untold.layers)],
        }
        for untold in report.untold
    ]


def _sarif_location(report: Report, layers: Sequence[str]) -> dict:
    location = {} if report.kind == "live graph" else _sarif_file(report.path)
    names = dict.fromkeys(layers)  # the schema wants each once
    if names:
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "module"} for name in names]
    return location


def _sarif_file(path: str) -> dict:
    return {"physicalLocation": {"artifactLocation": {"uri": _uri(path)}}}


def _uri(path: str) -> str:
    plain = Path(path)
    return plain.as_uri() if plain.is_absolute() else quote(os.fsencode(plain.as_posix()))


# --- GitHub -----------------------------------------------------------------------------------------------------------


def _github(report: Report) -> list[str]:
    file = "" if report.kind == "live graph" else f"file={_property(report.path)},"
    lines = []
    for finding in report.findings:
        title = _property(f"{finding.code}: {_title(finding)}")
        layers = [f"Layers: {compact(finding.layers)}"] if finding.layers else []
        text = "\n".join([finding.message, *layers, *(f"  {line}" for line in finding.evidence), f"Fix: {finding.fix}"])
        lines.append(f"::{_GITHUB_COMMANDS[finding.level]} {file}title={title}::{_data(text)}")
    return [*lines, f"bn_graph audit: {printable(report.path)}: {_summary(report)}"]


def _title(finding: Finding) -> str:
    return RULES[finding.code].title if finding.code in RULES else finding.message


def _data(text: str) -> str:
    """`text` as the message of a workflow command, which ends at a newline."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return printable(text)


def _property(text: str) -> str:
    """`text` as a property of a workflow command, which also ends at a comma or colon."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
