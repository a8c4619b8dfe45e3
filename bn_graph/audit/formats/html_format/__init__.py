"""Reports as one HTML page without anything from outside: what is wrong first, then each file.

Of each file: its findings with the fix, and commands filled in with its names; its layers in a table, and under it each
layer's two paths and statistics as a drawing. Elements are built, not pasted together, so no name of a file is markup.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from bn_graph.audit.formats import Style
from bn_graph.audit.formats.html_format.drawing import histogram, inference_path, training_path
from bn_graph.audit.report import (
    CannotTell,
    Finding,
    Lack,
    LayerDetails,
    LayerRow,
    Level,
    Report,
    Unread,
    codes_by_layer,
    count,
    evidence_in_brief,
    level_counts,
    names_in_brief,
    printable,
    summary,
)
from bn_graph.audit.rules import RULES

__all__ = ["render"]

_COLUMNS = ("kernel", "training", "inference", "updates", "saved", "statistics")
_BAD_CELLS = {"inference": ("batch",), "saved": ("no", "some"), "statistics": ("initial", "missing")}
_MOST_SUMMED = 500  # files in the list at the top


def render(results: Iterable[Report | Unread], style: Style) -> Iterator[str]:
    """The reports as a page, in one piece: what is wrong in all of them stands at its top."""
    reports: list[Report] = []
    unread: list[Unread] = []
    for result in results:
        unread.append(result) if isinstance(result, Unread) else reports.append(result)
    reports.sort(key=lambda report: (not report.errors, not report.findings))
    titles = [_title(reports, unread), _unread(unread), _files(reports) if len(reports) > 1 else ""]
    sections = [_section(number, report, len(reports) == 1) for number, report in enumerate(reports)]
    body = _e("body", _e("main", *filter(lambda part: part != "", titles), *sections))
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = _e(
        "head",
        _e("meta", charset="utf-8"),
        _e("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _e("title", "Audit of batch norm"),
        _e("style", css),
    )
    yield "<!DOCTYPE html>\n" + tostring(_e("html", head, body, lang="en"), "unicode", method="html") + "\n"


def _e(tag: str, *children: Element | str, **attributes: str) -> Element:
    """An element with children and text; ``class_`` is ``class``."""
    element = Element(tag, {key.rstrip("_"): value for key, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child
    return element


# --- The top ----------------------------------------------------------------------------------------------------------


def _title(reports: Sequence[Report], unread: Sequence[Unread]) -> Element:
    faulty = sum(bool(report.errors) for report in reports)
    unreadable = sum(each.lack != Lack.NO_MODEL for each in unread)
    if len(reports) == 1:
        words = f"{summary(reports[0])}."
    else:
        words = (
            f"{count(len(reports), 'file')}, {faulty:,} with errors{f', {unreadable:,} unreadable' * bool(unreadable)}."
        )
    verdict = "bad" if faulty or unreadable else "good"
    return _e("header", _e("h1", "Audit of batch norm"), _e("p", words, class_=f"verdict {verdict}"))


def _unread(unread: Sequence[Unread]) -> Element | str:
    if not unread:
        return ""
    items = [_e("li", _e("code", printable(each.path)), f" – {each.lack}: {printable(each.reason)}") for each in unread]
    return _e("section", _e("h2", "Not audited"), _e("ul", *items))


def _files(reports: Sequence[Report]) -> Element:
    rows = []
    for number, report in enumerate(reports[:_MOST_SUMMED]):
        codes = dict.fromkeys((finding.code, finding.level) for finding in report.findings)
        link = _e("a", printable(report.path), href=f"#file{number}")
        rows.append(
            _e("tr", _e("td", link, class_="file"), _e("td", str(len(report.layers))), _e("td", *_badges(codes)))
        )
    head = _e("tr", _e("th", "file"), _e("th", "layers"), _e("th", "findings"))
    return _e(
        "section", _e("h2", "Files"), _e("div", _e("table", _e("thead", head), _e("tbody", *rows)), class_="wide")
    )


def _badges(codes: Iterable[tuple[str, str]]) -> list[Element | str]:
    badges: list[Element | str] = []
    for code, level in codes:
        badges += [_e("span", code, class_=f"badge {level}"), " "]
    return badges or ["–"]


# --- A file -----------------------------------------------------------------------------------------------------------


def _section(number: int, report: Report, is_only: bool) -> Element:
    counts = level_counts(report.findings)
    kind = "bad" if counts[Level.ERROR] else "good"
    nodes = f", {count(report.nodes, 'node')}" if report.nodes else ""
    checkpoint = f" with checkpoint {report.checkpoint}" if report.checkpoint else ""
    parts: list[Element] = [
        _e("h2", _e("code", printable(report.path))),
        _e(
            "p",
            "" if is_only else f"{summary(report)}. ",
            _e("small", printable(f"{report.kind}{checkpoint}{nodes}")),
            class_=kind,
        ),
    ]
    parts += [_finding(report, finding) for finding in report.findings]
    parts += [_undetermined(entry) for entry in report.undetermined]
    if report.not_understood:
        listed = [_e("li", _e("code", printable(f"{each.name} ({each.op})")), f": {printable(each.reason)}")
                  for each in report.not_understood]  # fmt: skip
        parts.append(_e("details", _e("summary", "Not understood, and maybe batch norm"), _e("ul", *listed)))
    if report.accepted:
        accepted = [_e("li", f"{each.code}: {names_in_brief(each.layers)}") for each in report.accepted]
        parts.append(_e("details", _e("summary", "Accepted by the baseline"), _e("ul", *accepted)))
    if report.layers:
        parts += [_e("h3", "Layers"), _table(report), *_drawings(report)]
    return _e("section", *parts, id=f"file{number}")


def _finding(report: Report, finding: Finding) -> Element:
    rule = RULES.get(finding.code)
    evidence = _e("ul", *(_e("li", _e("code", printable(line))) for line in evidence_in_brief(finding)))
    parts = [
        _e("h3", _e("span", finding.code, class_=f"badge {finding.level}"), f" {printable(finding.message)}"),
        _e("p", "Layers: ", _e("code", names_in_brief(finding.layers)) if finding.layers else "–"),
        _e("details", _e("summary", "Evidence"), evidence),
        _e("p", _e("b", "Fix: "), printable(finding.fix)),
    ]
    commands = _commands(report, finding)
    if commands:
        parts.append(_e("pre", "\n".join(commands)))
    if rule is not None:
        parts.append(
            _e("details", _e("summary", "The fix in code, and why"), _e("p", rule.why), _e("pre", rule.example))
        )
    return _e("article", *parts, class_=f"finding {finding.level}")


def _commands(report: Report, finding: Finding) -> list[str]:
    """What repairs it, with the names of this file filled in; nothing where a repair needs the program that made it."""
    if not report.path.endswith(".meta") or not report.checkpoint:
        return []
    meta, checkpoint = shlex.quote(report.path), shlex.quote(report.checkpoint)
    files = f"--meta {meta} --checkpoint {checkpoint}"
    details = report.details
    if finding.code in ("BN002", "BN006"):
        names = ", ".join(details.placeholders[:6]) if details else ""
        note = f"# D.npz: arrays named like the placeholders that the network needs, of {names}" if names else ""
        command = f"python -m bn_graph recalibrate {files} --data D.npz --out {checkpoint}-recalibrated"
        return [printable(line) for line in (note, command) if line]
    if finding.code in ("BN004", "BN005"):
        output = shlex.quote(details.outputs[0]) if details and details.outputs else "NAME"
        note = "# NAME: the op that you fetch to predict" if output == "NAME" else ""
        command = f"python -m bn_graph inference-graph {files} --output {output} --out {checkpoint}-inference"
        return [printable(line) for line in (note, command) if line]
    return []


def _undetermined(entry: CannotTell) -> Element:
    where = f" {names_in_brief(entry.layers)}" if entry.layers else ""
    text = f" cannot tell:{where}: {printable(entry.reason)}"
    return _e("p", _e("span", f"{entry.code}?", class_="badge undetermined"), text, class_="finding undetermined")


# --- Layers -----------------------------------------------------------------------------------------------------------


def _table(report: Report) -> Element:
    codes = codes_by_layer(report)
    levels = {finding.code: finding.level for finding in reversed(report.findings)}
    rows = []
    for layer in report.layers:
        cells = [_e("td", _e("code", printable(layer.name)))]
        bad = _BAD_CELLS | {"updates": (layer.updates,) if {"BN001", "BN010"} & set(codes[layer.name]) else ()}
        cells += [_cell(getattr(layer, column), bad.get(column, ())) for column in _COLUMNS]
        badges = _badges((code, levels.get(code, "undetermined")) for code in codes[layer.name])
        rows.append(_e("tr", *cells, _e("td", *badges)))
    head = _e("tr", *(_e("th", column) for column in ("layer", *_COLUMNS, "findings")))
    return _e("div", _e("table", _e("thead", head), _e("tbody", *rows)), class_="wide")


def _cell(value: str, bad: Sequence[str]) -> Element:
    return _e("td", printable(value), **({"class_": "bad"} if value in bad else {}))


def _drawings(report: Report) -> list[Element]:
    """Of each layer, closed but for the first one with a finding."""
    if report.details is None:
        return []
    concerned = {name for finding in report.findings for name in finding.layers}
    first = next((layer.name for layer in report.layers if layer.name in concerned), None)
    return [
        _drawing(layer, report.details.layers[layer.name], is_open=layer.name == first)
        for layer in report.layers
        if layer.name in report.details.layers
    ]


def _drawing(row: LayerRow, details: LayerDetails, is_open: bool) -> Element:
    parts = [_e("summary", _e("code", printable(row.name)))]
    if details.inputs:
        lanes = (("Training", training_path(row, details)), ("Inference", inference_path(row, details)))
        parts.append(_e("div", *(_e("figure", _e("figcaption", title), svg) for title, svg in lanes), class_="lanes"))
    if details.values:
        small = [
            _e("figure", _e("figcaption", role), histogram(role, values)) for role, values in details.values.items()
        ]
        parts.append(_e("div", *small, class_="lanes"))
    parts.append(_names(row, details))
    return _e("details", *parts, class_="layer", **({"open": "open"} if is_open else {}))


def _names(row: LayerRow, details: LayerDetails) -> Element:
    """The names in full, to be copied."""
    updates = [f"{update.op}: {f'run by {_listed(update.run_by)}' if update.run_by else 'no train op runs it'}"
               for update in details.updates]  # fmt: skip
    entries = [
        ("variables", list(row.variables.values())),
        ("update ops", updates),
        ("switches", details.switches),
        ("normalizing by the batch", details.by_batch),
        ("normalizing by moving statistics", details.by_moving),
    ]
    items: list[Element] = []
    for term, names in entries:
        if names:
            items += [_e("dt", term), *(_e("dd", _e("code", printable(name))) for name in names)]
    return _e("dl", *items)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
