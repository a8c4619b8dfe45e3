"""Tables that the report shows as tables: a page makes them from its result, as it draws its figures."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Table"]


class Table(NamedTuple):
    """A table of a page.

    Attributes:
        caption: what it shows, and what its colours mean.
        header: of each column.
        rows: the texts; the first of each row is its header.
        colours: "blue" or "orange" for the cell (row, column) of `rows`; the others are plain.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    colours: Mapping[tuple[int, int], str] = {}
