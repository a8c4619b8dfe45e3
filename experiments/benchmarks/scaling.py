"""What grows with what, in this project: audit time with nodes."""

from collections.abc import Callable
from pathlib import Path

from bn_graph.audit import audit

__all__ = ["audits"]


def audits(threads: int, path: str) -> dict[str, Callable]:
    """``run`` audits the meta graph at `path`, so many times."""
    del threads  # the audit is Python

    def run(count: int) -> None:
        for _ in range(count):
            audit(Path(path))

    return {"run": run}
