"""The rules of the audit. Adding a rule is one new file here and one case in ``tests/audit/zoo``.

A rule is a module ``bn001_detached_updates.py``: ``RULE`` holds its documentation, message and fix, ``check(model)`` decides
it on a graph (with its checkpoint, if there is one). Where it applies to a checkpoint without a graph as well,
``check_checkpoint(stored)`` does. The modules of this package are all the rules there are; ``--explain``, the help texts
of SARIF and the tables of READMEs are made from them.

A check yields a `Verdict` for each layer with that fault, or `Undetermined`; layers with the same one become one finding.
What does not apply (no train op, no checkpoint) yields nothing.
"""

import importlib
import pkgutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bn_graph.audit.report import AuditError, CannotTell, Finding, Level

if TYPE_CHECKING:
    from bn_graph.audit.model import Model
    from bn_graph.audit.stored import StoredLayers

__all__ = ["RULES", "Rule", "Undetermined", "Verdict", "collect", "explain", "explanation", "selected", "table"]

ARTICLE = "tensorflow中的batchnorm"
R2RT = "Implementing Batch Normalization in Tensorflow"
SOLVER = "Model and Solver classes: MNIST with and without batch norm"
FLAGS = "The trainable and training flags of tf.layers.batch_normalization"
QA = "How Could I Use Batch Normalization in Tensorflow"
"""Titles of the documents that rules come from."""

_WIDTH = 100  # columns of --explain


class Verdict(NamedTuple):
    """A layer with the rule's fault. Level, message and fix are the rule's own where they are left out."""

    layer: str
    evidence: Sequence[str] = ()
    level: Level | None = None
    message: str = ""
    fix: str = ""


class Undetermined(NamedTuple):
    """A layer of which the file does not show whether it has the fault, and why."""

    layer: str
    reason: str


class Rule(NamedTuple):
    """A rule.

    Attributes:
        code: as ``BN001``; ``BN1..`` are advice.
        name: words joined by hyphens; with the code, the name of the file.
        level: of its findings, unless a verdict has another.
        title: what is wrong, in a line.
        what: what the rule finds.
        why: why that is bad, and why nobody notices.
        document: title of the document that it comes from, and the section.
        claims: ids of that document's claims in ``experiments/claims.toml``.
        experiment: the make target that shows it.
        shows: what to look for in that experiment.
        example: the fix as Python for graph mode, with `tf` as ``tensorflow.compat.v1``: tf.layers first, then bn_graph.
        undetermined: when the rule is not decided.
        message: of its findings.
        fix: in a sentence.
        check: from what is known of a graph to verdicts.
        check_checkpoint: the same for a checkpoint without a graph; None for most rules.
    """

    code: str
    name: str
    level: Level
    title: str
    what: str
    why: str
    document: str
    claims: tuple[str, ...]
    experiment: str
    shows: str
    example: str
    undetermined: str
    message: str
    fix: str
    check: "Callable[[Model], Iterable[Verdict | Undetermined]] | None" = None
    check_checkpoint: "Callable[[StoredLayers], Iterable[Verdict | Undetermined]] | None" = None


def selected(select: Sequence[str], ignore: Sequence[str]) -> list[Rule]:
    """The rules whose codes begin with one of `select` (all, if it is empty) and with none of `ignore`.

    Raises:
        AuditError: a code, or beginning of one, that no rule has.
    """
    wanted, unwanted = (tuple(word.upper() for word in words) for words in (select, ignore))
    for word in wanted + unwanted:
        if not word or not any(code.startswith(word) for code in RULES):
            raise AuditError(f"No rule's code begins with {word!r}. There are: {', '.join(RULES)}.")
    chosen = [rule for code, rule in RULES.items() if not wanted or code.startswith(wanted)]
    return [rule for rule in chosen if not unwanted or not rule.code.startswith(unwanted)]


def collect(
    checked: Iterable[tuple[Rule, Iterable[Verdict | Undetermined]]],
) -> tuple[list[Finding], list[CannotTell]]:
    """Joins verdicts into findings, errors first and then by code; and what was left undetermined."""
    findings, undetermined = [], []
    for rule, verdicts in checked:
        alike: dict[tuple, list[Verdict]] = {}
        unknown: dict[str, list[str]] = {}
        for verdict in verdicts:
            if isinstance(verdict, Undetermined):
                unknown.setdefault(verdict.reason, []).append(verdict.layer)
            else:
                key = (verdict.level or rule.level, verdict.message or rule.message, verdict.fix or rule.fix)
                alike.setdefault(key, []).append(verdict)
        for (level, message, fix), same in alike.items():
            layers = tuple(verdict.layer for verdict in same)
            findings.append(Finding(rule.code, level, layers, message, _evidence(same), fix))
        undetermined += [CannotTell(rule.code, tuple(layers), reason) for reason, layers in unknown.items()]
    return sorted(findings, key=lambda finding: (list(Level).index(finding.level), finding.code)), undetermined


def _evidence(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line for verdict in verdicts for line in verdict.evidence))


# --- The documentation of rules ---------------------------------------------------------------------------------------


def explain(code: str) -> str:
    """What ``--explain`` prints of a rule.

    Args:
        code: as ``BN001``, in either case.

    Raises:
        AuditError: there is no such rule; the message lists those there are.
    """
    if code.upper() not in RULES:
        raise AuditError(f"There is no rule {code!r}. There are: {', '.join(RULES)}.")
    return explanation(RULES[code.upper()])


def explanation(rule: Rule) -> str:
    """A rule's documentation as text: what it finds, why that is bad, document, experiment, fix, when undetermined."""
    shown = f"make {rule.experiment}: {rule.shows} (claims {', '.join(rule.claims)})."
    return "\n\n".join(
        [
            f"{rule.code} {rule.name} ({rule.level})\n{rule.title[0].upper()}{rule.title[1:]}.",
            _paragraph(rule.what),
            _paragraph(f"Why it is bad: {rule.why}"),
            _labelled("Document", rule.document) + "\n" + _labelled("Experiment", shown),
            "Fix:\n\n" + textwrap.indent(rule.example, "    "),
            _paragraph(f"Undetermined: {rule.undetermined}"),
        ]
    )


def table() -> str:
    """All rules as a table in Markdown, a line each."""
    lines = [f"| {rule.code} | {rule.level} | {rule.title} | `make {rule.experiment}` |" for rule in RULES.values()]
    return "\n".join(["| rule | level | finds | shown by |", "|---|---|---|---|", *lines])


def one_line(text: str) -> str:
    """`text` without its line ends."""
    return " ".join(text.split())


def _paragraph(text: str) -> str:
    return textwrap.fill(one_line(text), _WIDTH, break_on_hyphens=False, break_long_words=False)


def _labelled(label: str, text: str) -> str:
    return textwrap.fill(
        f"{label + ':':<12}{text}", _WIDTH, subsequent_indent=" " * 12, break_on_hyphens=False, break_long_words=False
    )


def _load(name: str) -> Rule:
    module = importlib.import_module(f"{__name__}.{name}")
    return module.RULE._replace(check=module.check, check_checkpoint=getattr(module, "check_checkpoint", None))


# At the end, since the modules import the classes above.
RULES: dict[str, Rule] = {
    rule.code: rule for rule in map(_load, sorted(m.name for m in pkgutil.iter_modules(__path__)))
}
"""All rules by their codes, in the order of the codes."""
