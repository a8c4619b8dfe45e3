"""Command lines: options checked in one line, errors reported in one line, the exit status that goes with them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import bn_graph

__all__ = ["Parser", "UsageError", "module_name", "parser", "run", "whole_number"]

STOPPED = "stopped; no result was written."


class UsageError(ValueError):
    """A user's mistake: reported in one line, with exit status 2."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line: no usage block between the reader and what was wrong."""

    def error(self, message: str):
        raise UsageError(f"{message} (see --help)")

    def add_number(self, option: str, what: str, least: int, default: int, text: str) -> None:
        """An option that takes a whole number from `least` up."""
        self.add_argument(
            option, type=whole_number(what, least), default=default, help=f"{text} (default: %(default)s)"
        )

    def add_data(self) -> None:
        self.add_argument("--data", choices=("auto", "mnist", "digits"), default="auto", help="default: %(default)s")

    def add_output(self) -> None:
        text = "folder of results (default: %(default)s)"
        self.add_argument("--output", type=Path, default=Path("results"), help=text)


def module_name(name: str) -> str:
    """The importable name of the module whose ``__name__`` this is; of the program's own, that it was started by."""
    return sys.modules["__main__"].__spec__.name if name == "__main__" else name


def parser(name: str, documentation: str) -> Parser:
    """A parser for the module `name`, described by the first line of its docstring."""
    return Parser(prog=f"python -m {module_name(name)}", description=documentation.splitlines()[0])


def whole_number(what: str, least: int) -> Callable[[str], int]:
    """A ``type`` for argparse: a whole number from `least` up; `what` begins the message about anything else."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{what} is a whole number from {least} up, got {text!r}")
        return int(text)

    return parse


def run(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    work: Callable[[argparse.Namespace], int | None],
    *,
    stopped: str = STOPPED,
) -> int:
    """Does a program's work, and reports in one line on stderr what ended it early.

    Args:
        parser: of its command line; its ``prog`` ends with the module's name.
        argv: the command line; the process's own if None.
        work: is called with the parsed options; returns the exit status, or None for 0.
        stopped: what to report after Ctrl-C.

    Returns:
        The exit status: `work`'s; 2 for a user's mistake or a file that can't be read or written; 130 after Ctrl-C.
    """
    name = parser.prog.rpartition(".")[2]
    try:
        return work(parser.parse_args(argv)) or 0
    except (UsageError, bn_graph.DataError, bn_graph.CheckpointError) as error:
        return _report(name, str(error), 2)
    except OSError as error:
        return _report(name, f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the terminal's line has ^C in it, or a progress bar
        return _report(name, stopped, 130)


def _report(name: str, message: str, status: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status
