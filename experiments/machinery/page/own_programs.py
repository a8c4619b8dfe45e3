"""What the documents' own programs gave in each TensorFlow (`experiments.machinery.verbatim`), for a claim and as tables."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from experiments.machinery.tables import Table
from experiments.machinery.verbatim import summary, table, timeline

__all__ = ["draw", "sentences", "tables"]

# The claims that a program's figures are about. Of `timeline` each fact names its own.
CLAIMS = {
    "r2rt/first-half": {"accuracy": ("r2rt-01",), "classes": ("r2rt-12",), "their": ("r2rt-12",)},
    "r2rt/second-half": {"final": ("r2rt-19",), "accuracy": ("r2rt-20",)},
    "solver/training": {"test": ("solver-06",), "the": ("solver-06",), "epochs": ("solver-07",)},
    "flags/training-false-trainable-false": {"": ("flags-05",)},
    "flags/training-true-trainable-false": {"": ("flags-06",)},
    "flags/training-true-trainable-true": {"": ("flags-07",)},
    "article/wrong-use-in-a-network": {"": ("article-01",)},
    "article/right-use-in-a-network": {"": ("article-01",)},
    "article/wrapper-in-a-network": {"": ("article-05",)},
    "article/control-dependency": {"": ("article-09",)},
    "article/update-ops": {"": ("article-10",)},
    "article/saver-of-trainables": {"": ("article-14",)},
    "article/saver-by-name": {"": ("article-16",)},
    "article/signatures": {"": ("article-06",)},
    "qa/helper-in-a-network": {"": ("qa-06",)},
    "qa/keras-one-example": {"": ("qa-10",)},
    "qa/keras-two-examples": {"": ("qa-12",)},
    "qa/keras-feature-axis": {"": ("qa-13",)},
}


def _claims_of(program: str, what: str) -> tuple[str, ...]:
    words = CLAIMS.get(program, {})
    return words.get(what.partition(" ")[0], words.get("", ()))


def _by_version(cells: Mapping[str, str]) -> str:
    """As "0.9544 in 1.0.1 to 1.15.5; 0.9541 in 2.21": neighbours with one value together."""
    parts = []
    for value, group in itertools.groupby(
        ((cell, version) for version, cell in cells.items() if cell), lambda each: each[0]
    ):
        versions = [version for _, version in group]
        parts.append(f"{value} in {versions[0]}{f' to {versions[-1]}' if len(versions) > 1 else ''}")
    return "; ".join(parts)


def sentences(folder: Path, loaded: Mapping[str, dict]) -> dict[str, list[str]]:
    """For each claim what the document's own programs gave in each TensorFlow, and since or until when something holds.

    Args:
        folder: of the programs' results.
        loaded: the experiments' results by name.
    """
    found, said = table.load_runs(folder), {}
    if not found:
        return {}
    header, rows = table.results_table(found, loaded)
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        versions = _by_version({version: cells.get(version, "") for version in table.COLUMNS})
        for claim in _claims_of(row[0], row[1]):
            said.setdefault(claim, []).append(f"{row[0]}, {row[1]}: {versions}.")
    for claim, what, versions, reason in timeline.rows(found):
        said.setdefault(claim, []).append(f"{what}: {versions}. {reason}")
    return said


def tables(folder: Path, loaded: Mapping[str, dict]) -> list[Table]:
    """The programs' figures, the timeline, and what does not run as printed; none where nothing was run."""
    found = table.load_runs(folder)
    if not found:
        return []
    return [
        Table(
            "What each document prints, what its own program gives in each TensorFlow, and what the project's network gives. "
            f"{table.CHANGED} raised as printed; what helped is below. Several seeds: least ← median → most.",
            *table.results_table(found, loaded),
        ),
        Table(
            "What is not the same in all versions, and since or until which TensorFlow it is so.",
            ["claim", "what", "TensorFlow", "reason"],
            timeline.rows(found),
        ),
        Table(
            "What does not run as printed, and the smallest change that helps.",
            *table.failures_table(found),
        ),
    ]


def draw(folder: Path, into: Path) -> dict[Path, str]:
    """Draws the programs' figures from the results in `folder`; returns their files, each with its caption."""
    found = table.load_runs(folder)
    if not found:
        return {}
    captions = (
        "The accuracies of the documents' own programs by TensorFlow, a dot a seed; dashed what the document prints. Blue "
        "is with batch norm, or fixed; orange is without, or as it was.",
        "Since or until which TensorFlow a claim holds: blue where it does, orange where it does not, empty where it was "
        "not run.",
    )
    for name, make in zip(summary.FIGURES, (summary.draw, timeline.draw), strict=True):
        make(found, into / name)
    return dict(zip((into / name for name in summary.FIGURES), captions, strict=True))
