"""The commands of ``python -m bn_graph``, a module each, imported when it is asked for.

Each offers ``add_arguments(parser)`` and ``run(arguments) -> int``, the exit status. What stops a command is raised:
`CommandError` or another `BnGraphError`, an OSError, or KeyboardInterrupt, whose text says what is left. `bn_graph.__main__`
makes a line of it on stderr, and the exit status.
"""

from bn_graph.graphs.errors import BnGraphError

__all__ = ["CommandError"]


class CommandError(BnGraphError):
    """A command that can't do what it was asked: one line saying what was wrong, what was expected and what to do."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status
