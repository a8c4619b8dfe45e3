"""``python -m bn_graph audit PATH…``: what is wrong with the batch norm of a graph or checkpoint.

Nothing here imports TensorFlow, and nothing of the files is executed.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence

import bn_graph.audit
from bn_graph.audit.formats import FORMATS, Style, render
from bn_graph.audit.formats.text import wants_colour
from bn_graph.audit.report import AuditError, Report, printable
from bn_graph.audit.rules import RULES, explain, selected
from bn_graph.commands import CommandError

__all__ = ["add_arguments", "run"]

CLEAN, FAULTY, UNREADABLE = 0, 1, 2

_DESCRIPTION = """\
Find faults of batch norm in TensorFlow 1 graphs and checkpoints: update ops that no train op runs, moving statistics
that were never updated or never saved, predictions that depend on the rest of the batch. Files are parsed and never
executed; TensorFlow is not imported."""

_EXAMPLES = """\
examples:
  %(prog)s model.ckpt.meta                      a graph, with the checkpoint beside it
  %(prog)s logs/ --format json                  every graph and checkpoint in a directory
  %(prog)s frozen.pb --output logits --feed is_training=false
  %(prog)s model.meta --checkpoint other/model.ckpt-1000 --select BN0 --ignore BN007
  %(prog)s --explain BN001                      what a rule means, what shows it, and the fix

exit status: 0 no finding of error level, 1 some, 2 something could not be read"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments and its description."""
    rules = "\n".join(f"  {rule.code}  {rule.level:<8} {rule.title}" for rule in RULES.values())
    parser.description, parser.epilog = _DESCRIPTION, f"rules:\n{rules}\n\n{_EXAMPLES}"
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help=".meta, checkpoint prefix, .index, SavedModel, .pb, .pbtxt, or a directory of them",
    )
    about_graph = parser.add_argument_group("about the graph")
    about_graph.add_argument("--checkpoint", metavar="PREFIX", help="look at the graph with this checkpoint")
    about_graph.add_argument(
        "--output", metavar="NAME", action="append", default=[], help="an op that inference fetches (repeatable)"
    )
    about_graph.add_argument(
        "--train-op", metavar="NAME", action="append", default=[], help="an op that training runs (repeatable)"
    )
    about_graph.add_argument(
        "--feed",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_feed,
        help="what a placeholder is fed at inference: true, false or a number (repeatable)",
    )
    about_report = parser.add_argument_group("about the report")
    for option, what in (("--select", "report only these rules"), ("--ignore", "do not report these rules")):
        about_report.add_argument(
            option,
            metavar="RULE",
            action="append",
            default=[],
            help=f"{what}: codes or their beginnings, as BN1 (repeatable, or with commas)",
        )
    about_report.add_argument(
        "--format", choices=FORMATS, default="text", help="how to print the report (default: %(default)s)"
    )
    about_report.add_argument("--verbose", action="store_true", help="text with every layer and all evidence")
    about_report.add_argument("--explain", metavar="RULE", help="explain a rule and exit")


def run(arguments: argparse.Namespace) -> int:
    """Audits the paths and prints the report on stdout; a line on stderr for each path that can't be read.

    Args:
        arguments: as parsed by a parser with `add_arguments`.

    Returns:
        0 without findings of error level, 1 with some, 2 if a path could not be read, whatever was found in others.

    Raises:
        CommandError: no path; two values for one placeholder.
        AuditError: an unknown rule.
    """
    if arguments.explain is not None:
        print(explain(arguments.explain))
        return CLEAN
    if not arguments.paths:
        raise CommandError("name a PATH to audit, or a rule to --explain (see --help)")
    select, ignore = _words(arguments.select), _words(arguments.ignore)
    selected(select, ignore)  # raises what is wrong with them once, and not for each path
    options = {
        "checkpoint": arguments.checkpoint,
        "outputs": tuple(arguments.output),
        "train_ops": tuple(arguments.train_op),
        "feeds": _feeds(arguments.feed),
        "select": select,
        "ignore": ignore,
    }
    many = len(arguments.paths) > 1 or os.path.isdir(arguments.paths[0])
    style = Style(wants_colour(sys.stdout), arguments.verbose, os.getcwd(), many)
    reports, unread = _audit_each(arguments.paths, options)
    print(render(reports, arguments.format, unread=unread, style=style))
    if unread:
        return UNREADABLE
    return FAULTY if any(each.errors for each in reports) else CLEAN


def _audit_each(paths: Sequence[str], options: dict) -> tuple[list[Report], list[tuple[str, str]]]:
    reports: list[Report] = []
    unread: list[tuple[str, str]] = []
    for path in paths:
        try:
            reports += bn_graph.audit.audit_all(path, **options)
        except (AuditError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            unread.append((path, printable(" ".join(reason.split()).removeprefix(f"{path}: "))))
            print(f"bn_graph audit: {printable(path)}: {unread[-1][1]}", file=sys.stderr)
    return reports, unread


def _feed(text: str) -> tuple[str, bool | int | float]:
    name, _, value = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, as is_training=false, got {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if math.isfinite(number):
            return name, number
    raise argparse.ArgumentTypeError(f"the value of {name} must be true, false or a number, got {value!r}")


def _feeds(pairs: Sequence[tuple[str, bool | int | float]]) -> dict[str, bool | int | float] | None:
    feeds = dict(pairs)
    if len(feeds) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CommandError(f"--feed gives {twice} twice; one value can be fed at a time.")
    return feeds or None


def _words(given: Sequence[str]) -> tuple[str, ...]:
    return tuple(word.strip() for words in given for word in words.split(","))
