"""Reports as SARIF 2.1.0, which code scanning services read.

Findings are results (advice is a "note"). What could not be determined or read are notifications of the run, since
viewers count every result as an alert.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from bn_graph.audit.report import CannotTell, Finding, Level, Report, SubjectKind
from bn_graph.audit.rules import RULES, Rule, explanation, one_line

__all__ = ["render"]

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Level.ERROR: "error", Level.WARNING: "warning", Level.ADVICE: "note"}


def render(reports: Sequence[Report], unread: Sequence[tuple[str, str]], colour: bool = False) -> str:
    """The reports as a SARIF log of one run."""
    errors = [
        {"level": "error", "message": {"text": f"Could not be read: {reason}"}, "locations": [_file(path)]}
        for path, reason in unread
    ]
    notes = [_note(report, entry) for report in reports for entry in report.undetermined]
    run = {
        "tool": {"driver": {"name": "bn_graph audit", "rules": [_rule(rule) for rule in RULES.values()]}},
        "invocations": [{"executionSuccessful": not unread, "toolExecutionNotifications": [*errors, *notes]}],
        "columnKind": "unicodeCodePoints",
        "results": [_result(report, finding) for report in reports for finding in report.findings],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


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
    lines = [finding.message, *finding.evidence, f"Fix: {finding.fix}"]
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


def _location(report: Report, layers: Sequence[str]) -> dict:
    location = {} if report.kind == SubjectKind.LIVE_GRAPH else _file(report.path)
    names = dict.fromkeys(layers)  # the schema wants each once
    if names:
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "module"} for name in names]
    return location


def _file(path: str) -> dict:
    plain = Path(path)
    uri = plain.as_uri() if plain.is_absolute() else quote(os.fsencode(plain.as_posix()))
    return {"physicalLocation": {"artifactLocation": {"uri": uri}}}
