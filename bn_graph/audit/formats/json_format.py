"""Reports as JSON: an object that stays as it is while ``version`` is 1 (keys may be added)::

    {"version": 1,
     "summary": {"reports": 1, "layers": 2, "error": 1, "warning": 0, "advice": 0, "cannot_tell": 0, "unreadable": 0},
     "reports": [{"path", "kind", "checkpoint" (or null), "nodes",
                  "layers": [{"name", "kernel", "training", "inference", "updates", "saved", "statistics",
                              "variables": {role: name}}],
                  "findings": [{"code", "level", "layers": [name], "message", "evidence": [line], "fix"}],
                  "cannot_tell": [{"code", "layers": [name], "reason"}]}],
     "unreadable": [{"path", "reason"}]}

What the values mean is in `bn_graph.audit.report`.
"""

import json
from collections.abc import Sequence

from bn_graph.audit.report import Report, level_counts

__all__ = ["render"]

VERSION = 1


def render(reports: Sequence[Report], unread: Sequence[tuple[str, str]], colour: bool = False) -> str:
    """The reports as JSON."""
    summary = {
        "reports": len(reports),
        "layers": sum(len(report.layers) for report in reports),
        **level_counts(finding for report in reports for finding in report.findings),
        "cannot_tell": sum(len(report.undetermined) for report in reports),
        "unreadable": len(unread),
    }
    whole = {
        "version": VERSION,
        "summary": summary,
        "reports": [_report(report) for report in reports],
        "unreadable": [{"path": path, "reason": reason} for path, reason in unread],
    }
    return json.dumps(whole, indent=2)


def _report(report: Report) -> dict:
    return {
        "path": report.path,
        "kind": report.kind,
        "checkpoint": report.checkpoint,
        "nodes": report.nodes,
        "layers": [layer._asdict() for layer in report.layers],
        "findings": [finding._asdict() for finding in report.findings],
        "cannot_tell": [entry._asdict() for entry in report.undetermined],
    }
