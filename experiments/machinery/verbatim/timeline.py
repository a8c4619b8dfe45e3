"""Since or until which TensorFlow a claim holds: facts that differ between versions, read from the programs' results.

Each fact is asked of a program of the document, in every environment that it was run in: `make verbatim` runs the six of the
documents' time and today's, and ``--version 1.6.0`` one of the releases between, to find the one that changed something.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.verbatim.table import TODAY, after, differences, last_runs, printed

__all__ = ["FACTS", "Fact", "draw", "outcomes", "phrase", "rows"]


class Fact(NamedTuple):
    """Something that holds in some versions and not in others.

    Attributes:
        claim: the id of the claim that turns on it.
        what: the fact, as a sentence.
        program: its key.
        holds: from a program's result in one environment to whether it holds there.
        reason: of the change, or what was changed.
    """

    claim: str
    what: str
    program: str
    holds: Callable[[dict], bool]
    reason: str


def _good(read: Callable[[dict], bool]) -> Callable[[dict], bool]:
    """The fact of the run that ended well."""
    return lambda result: read(last_runs(result)[0])


def _as_printed(result: dict) -> bool:
    """Whether the program runs as printed."""
    return result["runs"][0]["error"] is None


def _moved(run: dict) -> bool:
    return any(printed(after("moving_avg", 0))(run))


def _as_the_document_prints(words: str) -> Callable[[dict], bool]:
    return lambda result: printed(after(words, 0))(last_runs(result)[0]) == after(words)(result["document_printed"])


def _near_the_documents_variance(result: dict) -> bool:
    """To 1e-4: Bessel's correction of four values makes more than 0.02, float32 less than 1e-6."""
    prints = last_runs(result)[0]["printed"], result["document_printed"]
    variance, document = (after("moving_variance", 0)(each) for each in prints)
    return max(abs(value - other) for value, other in zip(variance, document, strict=True)) < 1e-4


_TRAINABLE = "flags/training-true-trainable-true"

FACTS = (
    Fact(
        "flags-06",
        "With trainable=False the moving statistics are not updated",
        "flags/training-true-trainable-false",
        _good(lambda run: not _moved(run)),
        "a layer's `updates`, which go into UPDATE_OPS, became empty where it is not trainable",
    ),
    Fact(
        "flags-07",
        "The moving variance has Bessel's correction (rank 4, by default)",
        _TRAINABLE,
        _near_the_documents_variance,
        "tf.layers took up the fused kernel, for rank 4 by default; it corrects, the other does not",
    ),
    Fact(
        "flags-07",
        "The moving mean is printed digit for digit as in the document",
        _TRAINABLE,
        _as_the_document_prints("moving_avg"),
        "1 − momentum became a float32 difference (0.00999999); before, it was taken in double precision",
    ),
    Fact(
        "article-10",
        "UPDATE_OPS prints two tensors, not operations",
        "article/update-ops",
        _good(lambda run: all("Tensor" in text for text in run["variables"]["update_ops"])),
        "add_update keeps the operation of the tensor that it is given, and the collection prints what it holds",
    ),
    Fact(
        "article-11",
        "saver.save makes the folder that it is to save into",
        "article/update-ops",
        _as_printed,
        "before, the folder had to be there",
    ),
    Fact(
        "r2rt-23",
        "A path without a folder can be saved to and restored from",
        "r2rt/second-half",
        _as_printed,
        "in 1.0 saved and then not found; from then on refused, its folder being the empty name (tensorflow#15832)",
    ),
    Fact(
        "article-06",
        "tf.layers.batch_normalization has the printed signature",
        "article/signatures",
        _good(lambda run: differences("tf.layers.batch_normalization")(run) == "as printed"),
        "arguments came one after the other; virtual_batch_size and adjustment last",
    ),
    Fact(
        "article-08",
        "contrib's batch_norm has the printed signature",
        "article/signatures",
        _good(lambda run: differences("tf.contrib.layers.batch_norm")(run) == "as printed"),
        f"arguments came one after the other, adjustment last; in {TODAY} it is this project's form of slim's",
    ),
)


def order(version: str) -> list[int]:
    """For sorting versions."""
    return [int(part) for part in version.split()[0].split(".")]


def outcomes(fact: Fact, found: Mapping[tuple[str, str], dict]) -> dict[str, bool]:
    """Whether a fact holds in each environment that its program was run in, oldest first."""
    there = {place: result for (program, place), result in found.items() if program == fact.program}
    return {place: bool(fact.holds(there[place])) for place in sorted(there, key=order)}


def phrase(by_version: Mapping[str, bool]) -> str:
    """As "from 1.5.1 on", "up to 1.12.3", "1.4.1 to 1.12.3", "in all", with the neighbours that were run."""
    versions = list(by_version)
    runs, start = [], None
    for version in [*versions, None]:
        if version is not None and by_version[version]:
            start = start or version
        elif start is not None:
            runs.append((start, versions[(versions.index(version) if version else len(versions)) - 1]))
            start = None
    if not runs:
        return "in none"
    parts = []
    for first, last in runs:
        since = "" if first == versions[0] else f"from {first} on (not in {versions[versions.index(first) - 1]})"
        until = "" if last == versions[-1] else f"up to {last} (not in {versions[versions.index(last) + 1]})"
        parts.append(" and ".join(filter(None, (since, until))) or "in all")
    return "; ".join(parts)


def rows(found: Mapping[tuple[str, str], dict]) -> list[list[str]]:
    """Claim, fact, since or until when, reason; of the facts whose programs were run."""
    asked = [(fact, outcomes(fact, found)) for fact in FACTS]
    return [[fact.claim, fact.what, phrase(by_version), fact.reason] for fact, by_version in asked if by_version]


def draw(found: Mapping[tuple[str, str], dict], path: Path) -> None:
    """A row a fact, a column a version: blue where it holds, orange where not; empty where the program was not run."""
    asked = [(fact, outcomes(fact, found)) for fact in FACTS]
    asked = [(fact, by_version) for fact, by_version in asked if by_version]
    versions = sorted({version for _, by_version in asked for version in by_version}, key=order)
    with figure(path, figsize=(10, 0.45 * len(asked) + 1)) as (_, axis):
        for line, (_, by_version) in enumerate(asked):
            for version, holds in by_version.items():
                place, colour = versions.index(version), BLUE if holds else ORANGE
                axis.barh(line, 0.94, left=place - 0.47, height=0.8, color=colour)
                axis.text(place, line, "yes" if holds else "no", color="white", ha="center", va="center", fontsize=8)
        axis.set_yticks(range(len(asked)), [f"{fact.what} ({fact.claim})" for fact, _ in asked], fontsize=8)
        axis.set_xticks(range(len(versions)), versions, fontsize=8)
        axis.invert_yaxis()
        axis.grid(False)
