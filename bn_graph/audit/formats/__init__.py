"""The formats of a report, a module each with one function ``render(results, style)``, which yields pieces of text.

Adding a format is one new module here: ``--format`` lists what the package holds (``json_format`` is ``json``). Where a
format allows it, a piece is yielded as soon as its report is there, so that many are never held at once.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from bn_graph.audit.report import Report, Unread

__all__ = ["FORMATS", "Style", "render"]


class Style(NamedTuple):
    """How reports are to look; each format takes what it has a use for.

    Attributes:
        colour: whether text may have escape sequences for colours; the other formats never do.
        verbose: whether text has every layer and every line of evidence, or fits a screen.
        start: directory from which text names files; empty: as they were given.
        many: whether several reports are to be expected; text then has a line for each without a finding.
        codes: of the rules that were checked; empty: all.
    """

    colour: bool = False
    verbose: bool = False
    start: str = ""
    many: bool = False
    codes: tuple[str, ...] = ()


def render(
    reports: Sequence[Report], form: str, *, unread: Sequence[tuple[str, str]] = (), style: Style | None = None
) -> str:
    """The reports in one of `FORMATS`, without a newline at the end.

    Args:
        reports: in the order in which they are to appear.
        form: one of `FORMATS`.
        unread: paths that could not be read, each with the reason. JSON, SARIF, JUnit and HTML list them.
        style: how they are to look.

    Raises:
        ValueError: `form` is none of `FORMATS`.

    Example:
        >>> from bn_graph.audit.formats import render
        >>> from bn_graph.audit.report import SubjectKind, Report
        >>> print(render([Report("frozen.pb", SubjectKind.GRAPH, None, (), (), (), nodes=12)], "text"))
        frozen.pb: no batch norm in it (graph, 12 nodes)
    """
    if form not in FORMATS:
        raise ValueError(f"form must be one of {', '.join(FORMATS)}, got {form!r}.")
    results = [*reports, *(Unread(*each) for each in unread)]
    return "".join(FORMATS[form](results, style or Style())).rstrip("\n")


# At the end, since the modules import the class above.
FORMATS: dict[str, Callable[[Iterable[Report | Unread], Style], Iterator[str]]] = {
    module.name.removesuffix("_format"): importlib.import_module(f"{__name__}.{module.name}").render
    for module in pkgutil.iter_modules(__path__)
}
"""The function of each format, by its name."""
