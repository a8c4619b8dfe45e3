"""``python -m bn_graph COMMAND …``, also installed as ``bn-graph``.

A command's module is imported only when that command is asked for: the audit needs no TensorFlow and starts at once.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from bn_graph.commands import CommandError
from bn_graph.graphs.errors import BnGraphError

__all__ = ["main"]

_COMMANDS = {
    "audit": "find faults of batch norm in graphs and checkpoints",
    "recalibrate": "compute a checkpoint's moving statistics anew, over data",
    "inference-graph": "write a SavedModel that uses moving statistics",
}
_USER_ERROR, _INTERRUPTED, _CLOSED_PIPE = 2, 130, 141  # the last two as shells report SIGINT and SIGPIPE


class _OneLineParser(argparse.ArgumentParser):
    """argparse, with errors of one line: no usage block between the reader and what was wrong."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command from the command line.

    Args:
        argv: the command's name and its arguments; the process's own if None.

    Returns:
        The exit status: the command's own; 2 (or what a `CommandError` says) with one line on stderr for an error that
        the user can repair; 130 after Ctrl-C; 141 if the reader of the output has closed it.

    Raises:
        SystemExit: with status 0, after ``--help``.

    Example:
        >>> from bn_graph.__main__ import main
        >>> main(["audit", "--explain", "BN001"])  # doctest: +ELLIPSIS
        BN001 detached-updates (error)
        ...
        0
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = f"bn_graph {argv[0]}" if argv and argv[0] in _COMMANDS else "bn_graph"
    try:
        _never_fail_to_write()
        status = _run(argv)
        sys.stdout.flush()  # so that a closed pipe shows here and not at the interpreter's end
        return status
    except (BnGraphError, ImportError) as error:  # what is not installed is said like any other lack
        return _complain(name, str(error), getattr(error, "status", _USER_ERROR))
    except BrokenPipeError:
        _drop_what_is_left()
        return _CLOSED_PIPE
    except OSError as error:
        return _complain(name, f"{error.filename}: {error.strerror}" if error.filename else str(error), _USER_ERROR)
    except KeyboardInterrupt as stop:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal has shown ^C
        return _complain(name, "; ".join(["stopped", *map(str, stop.args)]) + ".", _INTERRUPTED)


def _run(argv: list[str]) -> int:
    if not argv:
        raise CommandError(f"name a command: {', '.join(_COMMANDS)} (see --help)")
    if argv[0] not in _COMMANDS:
        _overview().parse_args(argv)  # prints the help, or says what is wrong
        raise CommandError(f"name a command first: {', '.join(_COMMANDS)} (see --help)")
    command = importlib.import_module(f"bn_graph.commands.{argv[0].replace('-', '_')}")
    parser = _OneLineParser(
        prog=f"{_program()} {argv[0]}",
        description=f"{_COMMANDS[argv[0]].capitalize()}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv[1:]))


def _overview() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<17}{line}" for name, line in _COMMANDS.items())
    parser = _OneLineParser(
        prog=_program(),
        usage="%(prog)s COMMAND ...",
        description="Find the faults of batch norm in TensorFlow 1 graphs and checkpoints, and repair them.",
        epilog=f"commands:\n{commands}\n\n{_program()} COMMAND --help says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", metavar="COMMAND", choices=_COMMANDS, help="one of those below")
    return parser


def _program() -> str:
    return "bn-graph" if os.path.basename(sys.argv[0]).startswith("bn-graph") else "python -m bn_graph"


def _complain(name: str, message: str, status: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _never_fail_to_write() -> None:
    """Writes an escape in place of a character of a layer's name that the terminal can't show; nothing where it is closed."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_what_is_left() -> None:
    # The interpreter flushes stdout once more at its end, which would raise again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
