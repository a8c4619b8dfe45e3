"""``python -m bn_graph audit PATH…``: what is wrong with the batch norm of a graph or checkpoint.

Nothing here imports TensorFlow, and nothing of the files is executed.
"""

import argparse
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from bn_graph.audit import baseline
from bn_graph.audit.formats import FORMATS, Style
from bn_graph.audit.formats.text import wants_colour
from bn_graph.audit.many import Task, audit_tasks, find_tasks
from bn_graph.audit.report import Lack, Report, Unread, printable
from bn_graph.audit.rules import RULES, explain, selected
from bn_graph.checkpoints.files import check_writable
from bn_graph.commands import CommandError
from bn_graph.commands.progress import with_progress

__all__ = ["add_arguments", "run"]

CLEAN, FAULTY, UNREADABLE = 0, 1, 2

_DESCRIPTION = """\
Find faults of batch norm in TensorFlow 1 graphs and checkpoints: update ops that no train op runs, moving statistics
that were never updated or never saved, predictions that depend on the rest of the batch. Files are parsed and never
executed; TensorFlow is not imported."""

_EXAMPLES = """\
examples:
  %(prog)s model.ckpt.meta                      a graph, with the checkpoint beside it
  %(prog)s logs/ --format jsonl --cache .bn     every graph and checkpoint in a directory
  %(prog)s frozen.pb --output logits --feed is_training=false
  %(prog)s model.meta --checkpoint other/model.ckpt-1000 --select BN0 --ignore BN007
  %(prog)s models/ --baseline known.json        fails for findings that known.json does not have
  %(prog)s --explain BN001                      what a rule means, what shows it, and the fix

exit status: 0 no finding of error level, 1 some, 2 none, but something could not be read"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments and its description."""
    rules = "\n".join(f"  {rule.code}  {rule.level:<8} {rule.title}" for rule in RULES.values())
    parser.description, parser.epilog = _DESCRIPTION, f"rules:\n{rules}\n\n{_EXAMPLES}"
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help=".meta, checkpoint prefix, .index, SavedModel, .pb, .pbtxt, .h5, .keras, or a directory of them",
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
    about_many = parser.add_argument_group("many files")
    about_many.add_argument(
        "--jobs", metavar="N", type=_at_least_one, help="audit in N processes (default: one for each core)"
    )
    about_many.add_argument("--cache", metavar="DIR", help="keep results there, and take those of unchanged files")
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
    about_report.add_argument(
        "--baseline", metavar="FILE", help="accept the findings that FILE has: only new ones count"
    )
    about_report.add_argument("--write-baseline", metavar="FILE", help="write the findings to FILE, to be accepted")
    about_report.add_argument("--explain", metavar="RULE", help="explain a rule and exit")


def run(arguments: argparse.Namespace) -> int:
    """Audits the paths and prints the report on stdout; a line on stderr for each path that can't be read.

    Args:
        arguments: as parsed by a parser with `add_arguments`.

    Returns:
        1 with findings of error level; 2 without, if something could not be read; 0 otherwise.

    Raises:
        CommandError: no path; two values for one placeholder.
        AuditError: an unknown rule; a baseline that can't be read; a baseline or results that can't be written there.
    """
    if arguments.explain is not None:
        print(explain(arguments.explain))
        return CLEAN
    if not arguments.paths:
        raise CommandError("name a PATH to audit, or a rule to --explain (see --help)")
    select, ignore = _words(arguments.select), _words(arguments.ignore)
    rules = selected(select, ignore)  # raises what is wrong with them once, and not for each path
    known = baseline.read(arguments.baseline) if arguments.baseline else ()
    if arguments.cache is not None:
        check_writable(arguments.cache)
    if arguments.write_baseline is not None:
        baseline.check_writable(arguments.write_baseline)
    options = {
        "checkpoint": arguments.checkpoint,
        "outputs": tuple(arguments.output),
        "train_ops": tuple(arguments.train_op),
        "feeds": _feeds(arguments.feed),
        "select": select,
        "ignore": ignore,
    }
    if arguments.format == "html":
        options["details"] = True
    tasks = find_tasks(arguments.paths)
    codes = tuple(rule.code for rule in rules)
    style = Style(wants_colour(sys.stdout), arguments.verbose, os.getcwd(), len(tasks) > 1, codes)
    audited = with_progress(audit_tasks(tasks, options, jobs=arguments.jobs, cache_in=arguments.cache), len(tasks))
    status = _Status(known, arguments.baseline, arguments.write_baseline)
    for piece in FORMATS[arguments.format](status.watching(audited), style):
        sys.stdout.write(piece)
        sys.stdout.flush()
    if arguments.write_baseline:
        baseline.write(arguments.write_baseline, status.to_accept)
    return status.exit_status


class _Status:
    """What an audit of many ends with: accepts what is known, counts the rest, says what could not be read."""

    def __init__(self, known: baseline.Known, baseline_path: str | None, to_write: str | None) -> None:
        self.errors = self.unreadable = False
        self.to_accept: list[tuple[str, str, str]] = []
        self._known, self._baseline_path, self._to_write = known, baseline_path, to_write
        self._complaints: set[Unread] = set()

    @property
    def exit_status(self) -> int:
        """1 if there were errors, unless they were written to be accepted; else 2 if something could not be read."""
        errors = self.errors and not self._to_write
        return FAULTY if errors else UNREADABLE if self.unreadable else CLEAN

    def watching(self, audited: Iterable[tuple[Task, list[Report | Unread]]]) -> Iterator[Report | Unread]:
        """The results, each `Unread` once."""
        for result in itertools.chain.from_iterable(results for _, results in audited):
            if isinstance(result, Report):
                if self._to_write:
                    self.to_accept += baseline.known_findings(result, self._to_write)
                if self._baseline_path:
                    result = baseline.with_accepted(result, self._known, self._baseline_path)
                self.errors = self.errors or bool(result.errors)
            elif result in self._complaints:
                continue
            else:
                self._complaints.add(result)
                self.unreadable = self.unreadable or result.lack != Lack.NO_MODEL
                note = "note: " if result.lack == Lack.NO_MODEL else ""
                print(f"bn_graph audit: {note}{printable(result.path)}: {printable(result.reason)}", file=sys.stderr)
            yield result


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of processes, 1 or more, got {text!r}")
    return int(text)


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
