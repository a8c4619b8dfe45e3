"""What is written of all results: the tables in Markdown, and the figures."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.results import load_all, write_text
from experiments.machinery.verbatim import table, texts, timeline

__all__ = ["FIGURES", "described", "draw", "write"]

FIGURES = ("verbatim.png", "timeline.png")


def described(folder: Path, reference: Mapping[str, dict]) -> str:
    """The tables of the results in `folder`, with what their reader must know.

    Args:
        folder: of the results, ``…/verbatim``.
        reference: the experiments' results by name, for the project's own figures.
    """
    found = table.load_runs(folder)
    if not found:
        return "There are no results yet."
    shim = next((run["shim"] for result in found.values() for run in result["runs"] if run["shim"]), [])
    return "\n\n".join(
        [
            table.markdown(*table.results_table(found, reference)),
            f"{table.CHANGED} raised as printed; what helped is below. Several seeds: least ← median → most. {_seeds(found)}",
            f"In TensorFlow {table.TODAY} through the shim, which does this and no more: {'; '.join(shim)}. "
            "Keras's programs run without it.",
            "What is not the same in all versions, and since or until which TensorFlow it is so:",
            table.markdown(["claim", "what", "TensorFlow", "reason"], timeline.rows(found)),
            f"Each document's own TensorFlow: {_own_versions(found)}.",
            "What does not run as printed, and the smallest change that helps:",
            table.markdown(*table.failures_table(found)),
        ]
    )


def _own_versions(found: Mapping[tuple[str, str], dict]) -> str:
    """As "article from TensorFlow 1.5 to 1.11, by what it shows", with the claims of one document that differ apart."""
    by_version: dict[tuple[str, str], list[str]] = {}
    for claim in dict.fromkeys(fact.claim for fact in timeline.FACTS):
        document = claim.partition("-")[0]
        by_version.setdefault((document, timeline.own_version(claim, found)), []).append(claim)
    documents = [document for document, _ in by_version]
    return "; ".join(
        f"{document if documents.count(document) == 1 else ', '.join(claims)} {version}"
        for (document, version), claims in by_version.items()
    )


def _seeds(found: Mapping[tuple[str, str], dict]) -> str:
    """Which seeds were run in the table's columns; the places only where they are not all of the program's."""
    found = {key: result for key, result in found.items() if key[1].split()[0] in table.COLUMNS}
    places: dict[tuple[int, ...], dict[str, list[str]]] = {}
    for (program, place), result in found.items():
        seeds = tuple(sorted({run["seed"] for run in result["runs"]}))
        places.setdefault(seeds, {}).setdefault(program, []).append(place)
    everywhere = Counter(program for program, _ in found)
    parts = [
        f"{', '.join(map(str, seeds))}: "
        + ", ".join(
            program
            if len(there) == everywhere[program]
            else f"{program} in {' and '.join(sorted(there, key=timeline.order))}"
            for program, there in programs.items()
        )
        for seeds, programs in sorted(places.items(), reverse=True)
        if seeds != (0,)
    ]
    return f"Seeds {'; '.join([*parts, '0: all else' if parts else '0'])}. {_not_run(found)}"


def _not_run(found: Mapping[tuple[str, str], dict]) -> str:
    """The programs without a result in some column, so that nobody takes an empty cell for an outcome."""
    there = {(program, place.split()[0]) for program, place in found}
    missing = {key: [column for column in table.COLUMNS if (key, column) not in there] for key in texts.programs()}
    parts = [
        key if columns == list(table.COLUMNS) else f"{key} in {', '.join(columns)}"
        for key, columns in missing.items()
        if columns
    ]
    return f"Not run: {'; '.join(parts)}." if parts else "All were run."


def draw(found: Mapping[tuple[str, str], dict], path: Path) -> None:
    """Accuracies by TensorFlow, a dot a seed; the document's own as a line."""
    final_accuracy = next(row for row in table.ROWS if row.what == "final accuracy")
    panels = {
        "r2rt, 40,000 steps: with and without": (
            "r2rt/first-half",
            [table.final("acc_BN"), table.final("acc")],
            [None, None],
        ),
        "r2rt, the first 100 images one by one: fixed, as it was": (
            ("r2rt/second-half", "r2rt/first-half"),
            [table.printed(table.accuracy), table.printed(table.accuracy)],
            [table.accuracy, table.accuracy],
        ),
        "r2rt, 10,000 steps: final accuracy": ("r2rt/second-half", [final_accuracy.read], [final_accuracy.document]),
        "Model and Solver, test accuracy: with and without": (
            "solver/training",
            [lambda run, place=place: table.unlabelled(place)(run["printed"])[1] for place in (-2, -1)],
            [lambda readings, place=place: table.unlabelled(place)(readings)[1] for place in (-2, -1)],
        ),
    }
    with figure(path, nrows=2, ncols=2, figsize=(10, 6.4)) as (_, axes):
        for axis, (title, (program, reads, documents)) in zip(axes.flat, panels.items(), strict=True):
            keys = program if isinstance(program, tuple) else [program] * len(reads)
            for key, read, document, colour in zip(keys, reads, documents, (BLUE, ORANGE), strict=False):
                there = {
                    place: result for (name, place), result in found.items() if name == key and place in table.COLUMNS
                }
                for place, result in there.items():
                    good = [read(run) for run in table.last_runs(result) if run["error"] is None]
                    axis.plot([table.COLUMNS.index(place)] * len(good), good, "o", color=colour, alpha=0.7)
                if document and there:
                    axis.axhline(
                        document(next(iter(there.values()))["document_printed"]), color=GREY, linestyle="--", zorder=1
                    )
            axis.set_visible(bool(axis.lines))  # of a program that has not been run there is no panel
            axis.set_title(title, fontsize=10)
            axis.set_xticks(range(len(table.COLUMNS)), table.COLUMNS)
            axis.set_xlim(-0.5, len(table.COLUMNS) - 0.5)


def write(folder: Path) -> None:
    """Writes ``table.md`` and the figures from the results in `folder`."""
    write_text(folder / "table.md", described(folder, load_all(table.REFERENCE)) + "\n")
    found = table.load_runs(folder)
    draw(found, folder / FIGURES[0])
    timeline.draw(found, folder / FIGURES[1])
