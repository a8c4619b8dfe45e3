"""Reports as SARIF 2.1.0, which code scanning services read.

Findings are results (advice is a "note"). What could not be determined or read are notifications of the run, since
viewers count every result as an alert.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from bn_graph.audit.formats import Style
from bn_graph.audit.report import (
    CannotTell,
    Finding,
    Lack,
    Level,
    NotUnderstood,
    Report,
    SubjectKind,
    Unread,
    evidence_in_brief,
)
from bn_graph.audit.rules import RULES, Rule, explanation, one_line
from bn_graph.checkpoints.storage import is_url

__all__ = ["render"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Level.ERROR: "error", Level.WARNING: "warning", Level.ADVICE: "note"}
_ACCEPTED = {"suppressions": [{"kind": "external", "justification": "accepted by the baseline"}]}


def render(results: Iterable[Report | Unread], style: Style) -> Iterator[str]:
    """The reports as a SARIF log of one run."""
    found: list[dict] = []
    notes: list[dict] = []
    lacks = []
    for result in results:
        if isinstance(result, Unread):
            lacks.append(result)
        else:
            found += [_result(result, finding) for finding in result.findings]
            found += [_result(result, finding) | _ACCEPTED for finding in result.accepted]
            notes += [_note(result, entry) for entry in result.undetermined]
            notes += [_not_understood(result, entry) for entry in result.not_understood]
    run = {
        "tool": {"driver": {"name": "bn_graph audit", "rules": [_rule(rule) for rule in RULES.values()]}},
        "invocations": [
            {
                "executionSuccessful": all(lack.lack == Lack.NO_MODEL for lack in lacks),
                "toolExecutionNotifications": [*map(_lack, lacks), *notes],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": found,
    }
    yield json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _lack(unread: Unread) -> dict:
    is_note = unread.lack == Lack.NO_MODEL
    text = f"Not audited: {unread.reason}" if is_note else f"Could not be read: {unread.reason}"
    return {"level": "note" if is_note else "error", "message": {"text": text}, "locations": [_file(unread.path)]}


def _rule(rule: Rule) -> dict:
    meaning = one_line(f"{rule.what} {rule.why}")
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": f"{rule.title[0].upper()}{rule.title[1:]}."},
        "fullDescription": {"text": meaning},
        "help": {"text": explanation(rule), "markdown": _markdown(rule, meaning)},
        "defaultConfiguration": {"level": _LEVELS[rule.level]},
    }


def _markdown(rule: Rule, meaning: str) -> str:
    return "\n\n".join(
        [
            meaning,
            f"Document: {rule.document}.",
            f"Experiment: `make {rule.experiment}`: {rule.shows}.",
            f"```python\n{rule.example}\n```",
            f"Undetermined: {one_line(rule.undetermined)}",
        ]
    )


def _result(report: Report, finding: Finding) -> dict:
    lines = [finding.message, *evidence_in_brief(finding), f"Fix: {finding.fix}"]
    return {
        "ruleId": finding.code,
        "ruleIndex": list(RULES).index(finding.code),
        "level": _LEVELS[finding.level],
        "message": {"text": "\n".join(lines)},
        "locations": [_location(report, finding.layers)],
    }


def _note(report: Report, entry: CannotTell) -> dict:
    return {
        "level": "note",
        "message": {"text": f"Cannot tell: {entry.reason}"},
        "associatedRule": {"id": entry.code},
        "locations": [_location(report, entry.layers)],
    }


def _not_understood(report: Report, entry: NotUnderstood) -> dict:
    text = f"Not understood, and maybe batch norm: {entry.name} ({entry.op}), {entry.reason}"
    return {"level": "note", "message": {"text": text}, "locations": [_location(report, (entry.name,))]}


def _location(report: Report, layers: Sequence[str]) -> dict:
    location = {} if report.kind == SubjectKind.LIVE_GRAPH else _file(report.path)
    names = dict.fromkeys(layers)  # the schema wants each once
    if names:
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "module"} for name in names]
    return location


def _file(path: str) -> dict:
    plain = Path(path)
    if is_url(path):
        return {"physicalLocation": {"artifactLocation": {"uri": quote(os.fsencode(path), safe="/:")}}}
    uri = plain.as_uri() if plain.is_absolute() else quote(os.fsencode(plain.as_posix()))
    return {"physicalLocation": {"artifactLocation": {"uri": uri}}}
