"""The formats of a report, a module each with one function ``render(reports, unread, colour) -> str``.

Adding a format is one new module here: ``--format`` lists what the package holds (``json_format`` is ``json``).
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence

from bn_graph.audit.report import Report

__all__ = ["FORMATS", "render"]

FORMATS: dict[str, Callable[..., str]] = {
    module.name.removesuffix("_format"): importlib.import_module(f"{__name__}.{module.name}").render
    for module in pkgutil.iter_modules(__path__)
}
"""The function of each format, by its name."""


def render(
    reports: Sequence[Report], form: str, *, unread: Sequence[tuple[str, str]] = (), colour: bool = False
) -> str:
    """The reports in one of `FORMATS`, without a newline at the end.

    Args:
        reports: in the order in which they are to appear.
        form: one of `FORMATS`.
        unread: paths that could not be read, each with the reason. JSON and SARIF list them.
        colour: whether text may have escape sequences for colours; the other formats never do.

    Raises:
        ValueError: `form` is none of `FORMATS`.

    Example:
        >>> from bn_graph.audit.formats import render
        >>> from bn_graph.audit.report import SubjectKind, Report
        >>> print(render([Report("frozen.pb", SubjectKind.GRAPH, None, (), (), (), nodes=12)], "text"))
        frozen.pb: graph, 12 nodes
        No batch norm in it.
    """
    if form not in FORMATS:
        raise ValueError(f"form must be one of {', '.join(FORMATS)}, got {form!r}.")
    return FORMATS[form](reports, unread, colour)
