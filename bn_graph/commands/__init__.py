"""The commands of ``python -m bn_graph``, a module each, imported when it is asked for.

Each offers ``add_arguments(parser)`` and ``run(arguments) -> int``, the exit status. What a user can mend is raised as
`CommandError` (or `bn_graph.audit.findings.AuditError`); `bn_graph.__main__` makes a line of it, and exit status 2.
"""

from bn_graph.graphs.errors import BnGraphError

__all__ = ["CommandError"]


class CommandError(BnGraphError):
    """What a user can mend: one line saying what was wrong, what was expected and what to do."""
