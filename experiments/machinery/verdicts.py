"""What a measurement says of a claim: `Verdict`, its four kinds, and their counts. The words are defined here only."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["KINDS", "MARKS", "Verdict", "counts", "dated", "does_not_hold", "holds", "holds_if", "kind_of"]

MARKS = {"holds": "✓", "holds if": "◐", "does not hold": "✗", "dated": "○"}
"""The kinds of verdicts, each with the sign that the report gives it."""

KINDS = tuple(MARKS)


class Verdict(NamedTuple):
    """The verdict, the measured figure in short, and a note of two sentences at most."""

    verdict: str
    measured: str
    note: str


def holds(measured: str, note: str) -> Verdict:
    """The claim holds as it stands."""
    return Verdict("holds", measured, note)


def holds_if(condition: str, measured: str, note: str) -> Verdict:
    """The claim holds under a condition, which is named."""
    return Verdict(f"holds if {condition}", measured, note)


def does_not_hold(measured: str, note: str) -> Verdict:
    """The measurement contradicts the claim."""
    return Verdict("does not hold", measured, note)


def dated(measured: str, note: str) -> Verdict:
    """The API is gone; the note says what replaces it."""
    return Verdict("dated", measured, note)


def kind_of(verdict: str) -> str:
    """Which of `KINDS` a verdict is: "holds if …" names its condition."""
    return max((kind for kind in KINDS if verdict.startswith(kind)), key=len)


def counts(verdicts: Iterable[str]) -> dict[str, int]:
    """How many verdicts are of each kind."""
    counted = Counter(map(kind_of, verdicts))
    return {kind: counted[kind] for kind in KINDS}
