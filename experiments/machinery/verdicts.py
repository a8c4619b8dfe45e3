"""What a measurement says of a claim: `Verdict`, its kinds, and their counts. The words are defined here only.

A claim is judged as its sentence reads, in the document's own case first. Words with two readings are taken in the one
that most people take, and the note says so.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "KINDS",
    "MARKS",
    "Verdict",
    "counts",
    "dated",
    "does_not_hold",
    "holds",
    "holds_with_a_trap",
    "in_versions",
    "kind_of",
]

MARKS = {"holds": "✓", "holds, with a trap": "⚠", "does not hold": "✗", "dated": "○"}
"""The kinds of verdicts, each with the sign that the report gives it."""

KINDS = tuple(MARKS)


class Verdict(NamedTuple):
    """The verdict, the measured figures in a sentence, and a note of two sentences at most."""

    verdict: str
    measured: str
    note: str


def holds(measured: str, note: str) -> Verdict:
    """In the document's own case, and wherever it was tried."""
    return Verdict("holds", measured, note)


def holds_with_a_trap(trap: str, measured: str, note: str) -> Verdict:
    """In the document's own case; outside of it there is a trap, which is named."""
    return Verdict(f"holds, with a trap: {trap}", measured, note)


def does_not_hold(measured: str, note: str) -> Verdict:
    """Not in the document's own case, or false as said; the note names what would make it true, if anything does."""
    return Verdict("does not hold", measured, note)


def dated(measured: str, note: str) -> Verdict:
    """The interface is gone; the note names its successor."""
    return Verdict("dated", measured, note)


def in_versions(verdict: str, versions: str) -> str:
    """As "holds from TensorFlow 1.5 on, with a trap: …", or "dated: held up to TensorFlow 1.11"."""
    if verdict.startswith("holds"):
        return verdict.replace("holds", f"holds {versions}", 1)
    return f"{verdict}: held {versions}"


def kind_of(verdict: str) -> str:
    """Which of `KINDS` a verdict is: its trap and its versions may be named in it."""
    if verdict.startswith("holds"):
        return "holds, with a trap" if ", with a trap: " in verdict else "holds"
    return next(kind for kind in KINDS if verdict.startswith(kind))


def counts(verdicts: Iterable[str]) -> dict[str, int]:
    """How many verdicts are of each kind."""
    counted = Counter(map(kind_of, verdicts))
    return {kind: counted[kind] for kind in KINDS}
