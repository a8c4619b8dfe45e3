"""Reports as JSON, a line each, as they come: for many files. A line is a report as in `json_format`, or names a file
that was not audited: ``{"version": 1, "path", "lack": "unreadable" | "no model" | "internal error", "reason"}``.
"""

import json
from collections.abc import Iterable, Iterator

from bn_graph.audit.formats import Style
from bn_graph.audit.formats.json_format import VERSION, as_json
from bn_graph.audit.report import Report, Unread

__all__ = ["render"]


def render(results: Iterable[Report | Unread], style: Style) -> Iterator[str]:
    """The reports as lines of JSON, a piece for each."""
    for result in results:
        lack = {"lack": result.lack} if isinstance(result, Unread) else {}
        yield json.dumps({"version": VERSION, **lack, **as_json(result)}) + "\n"
