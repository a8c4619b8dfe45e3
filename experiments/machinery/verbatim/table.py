"""The table and the figure of what the documents' programs gave."""

from pathlib import Path


def write(folder: Path) -> None:
    """Writes ``table.md`` and ``verbatim.png`` from the results in `folder`."""
