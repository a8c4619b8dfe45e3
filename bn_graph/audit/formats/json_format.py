"""Reports as JSON: an object that stays as it is while ``version`` is 1 (keys may be added)::

    {"version": 1,
     "summary": {"reports": 1, "layers": 2, "error": 1, "warning": 0, "advice": 0, "cannot_tell": 0, "unreadable": 0},
     "reports": [{"path", "kind", "checkpoint" (or null), "nodes",
                  "layers": [{"name", "kernel", "training", "inference", "updates", "saved", "statistics",
                              "variables": {role: name}}],
                  "findings": [{"code", "level", "layers": [name], "message", "evidence": [line], "fix"}],
                  "cannot_tell": [{"code", "layers": [name], "reason"}],
                  "accepted": [as findings: what a baseline accepts],
                  "not_understood": [{"name", "op", "reason"}]}],
     "unreadable": [{"path", "reason"}],
     "notes": [{"path", "reason"}]}

What the values mean is in `bn_graph.audit.report`. A file that has a model's name and is none is in ``notes``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from bn_graph.audit.formats import Style
from bn_graph.audit.report import (
    CannotTell,
    Details,
    Finding,
    Histogram,
    Lack,
    LayerDetails,
    LayerRow,
    Level,
    Mode,
    NotUnderstood,
    Report,
    Saved,
    State,
    SubjectKind,
    Unread,
    UpdateOp,
)

__all__ = ["as_json", "from_json", "render"]

VERSION = 1


def render(results: Iterable[Report | Unread], style: Style) -> Iterator[str]:
    """The reports as one JSON object."""
    reports: list[dict] = []
    unread: list[Unread] = []
    for result in results:
        unread.append(result) if isinstance(result, Unread) else reports.append(as_json(result))
    levels = Counter(finding["level"] for report in reports for finding in report["findings"])
    unreadable = [as_json(each) for each in unread if each.lack != Lack.NO_MODEL]
    whole = {
        "version": VERSION,
        "summary": {
            "reports": len(reports),
            "layers": sum(len(report["layers"]) for report in reports),
            **{level: levels[level] for level in Level},
            "cannot_tell": sum(len(report["cannot_tell"]) for report in reports),
            "unreadable": len(unreadable),
        },
        "reports": reports,
        "unreadable": unreadable,
        "notes": [as_json(each) for each in unread if each.lack == Lack.NO_MODEL],
    }
    yield json.dumps(whole, indent=2) + "\n"


def as_json(result: Report | Unread) -> dict:
    """A report, or a file without one, as dictionaries and lists."""
    if isinstance(result, Unread):
        return {"path": result.path, "reason": result.reason}
    details = {} if result.details is None else {"details": _details(result.details)}
    return {
        "path": result.path,
        "kind": result.kind,
        "checkpoint": result.checkpoint,
        "nodes": result.nodes,
        "layers": [layer._asdict() for layer in result.layers],
        "findings": [finding._asdict() for finding in result.findings],
        "cannot_tell": [entry._asdict() for entry in result.undetermined],
        "accepted": [finding._asdict() for finding in result.accepted],
        "not_understood": [entry._asdict() for entry in result.not_understood],
        **details,
    }


def _details(details: Details) -> dict:
    layers = {}
    for name, layer in details.layers.items():
        values = {role: histogram._asdict() for role, histogram in layer.values.items()}
        layers[name] = layer._asdict() | {"updates": [update._asdict() for update in layer.updates], "values": values}
    return details._asdict() | {"layers": layers}


def from_json(whole: dict) -> Report:
    """The report that `as_json` made a dictionary of."""
    layers = [
        layer
        | {mode: Mode(layer[mode]) for mode in ("training", "inference")}
        | {"saved": Saved(layer["saved"]), "statistics": State(layer["statistics"])}
        for layer in whole["layers"]
    ]
    return Report(
        whole["path"],
        SubjectKind(whole["kind"]),
        whole["checkpoint"],
        tuple(LayerRow(**layer) for layer in layers),
        _findings(whole["findings"]),
        tuple(CannotTell(**_with_tuples(entry)) for entry in whole["cannot_tell"]),
        whole["nodes"],
        _findings(whole["accepted"]),
        tuple(NotUnderstood(**entry) for entry in whole["not_understood"]),
        _details_from(whole["details"]) if "details" in whole else None,
    )


def _details_from(details: dict) -> Details:
    layers = {}
    for name, layer in details["layers"].items():
        updates = tuple(UpdateOp(**_with_tuples(update)) for update in layer["updates"])
        values = {role: Histogram(**_with_tuples(histogram)) for role, histogram in layer["values"].items()}
        layers[name] = LayerDetails(**_with_tuples(layer) | {"updates": updates, "values": values})
    return Details(**_with_tuples(details) | {"layers": layers})


def _findings(found: list[dict]) -> tuple[Finding, ...]:
    return tuple(Finding(**_with_tuples(each) | {"level": Level(each["level"])}) for each in found)


def _with_tuples(values: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
