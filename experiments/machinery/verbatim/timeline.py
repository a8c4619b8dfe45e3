"""Since or until which TensorFlow a claim holds: facts that differ between versions, read from the programs' results.

Each fact is asked of a program of the document, in every environment that it was run in: `make verbatim` runs the six of the
documents' time and today's, and ``--version 1.6.0`` one of the releases between, to find the one that changed something.
`with_versions` puts what the committed results say into a verdict; nothing of it is typed in.
"""

import calendar
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from experiments.machinery import register, verdicts
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.verbatim.table import REFERENCE, after, differences, last_runs, load_runs, printed
from experiments.machinery.verdicts import Verdict

__all__ = ["FACTS", "Fact", "draw", "outcomes", "own_version", "phrase", "rows", "with_versions"]

RELEASED = {
    **{"1.0": "2017-02", "1.1": "2017-04", "1.2": "2017-06", "1.3": "2017-08", "1.4": "2017-11", "1.5": "2018-01"},
    **{"1.6": "2018-02", "1.7": "2018-03", "1.8": "2018-04", "1.9": "2018-07", "1.10": "2018-08", "1.11": "2018-09"},
    **{"1.12": "2018-11", "1.13": "2019-02", "1.14": "2019-06", "1.15": "2019-10"},
}
"""The month of each minor release, for a document that says when it was written."""


class Fact(NamedTuple):
    """Something that holds in some versions and not in others.

    Attributes:
        claim: the id of the claim that it is about.
        what: the fact, as a sentence.
        program: its key.
        holds: from a program's result in one environment to whether it holds there.
        reason: what the release did that changed it, to be read after "In TensorFlow 1.5".
        decides: whether the claim turns on it; if not, it stands in the note alone.
    """

    claim: str
    what: str
    program: str
    holds: Callable[[dict], bool]
    reason: str
    decides: bool = True


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


def _prints_what_the_document_does(result: dict) -> bool:
    last = last_runs(result)[0]
    return last["error"] is None and last["printed"][0][1] == result["document_printed"][0][1]


def _four_predictions(result: dict) -> bool:
    """The second prediction equals the first, the third is very different, the fourth a little."""
    last = last_runs(result)[0]
    if last["error"] is not None:
        return False
    first, *others = (numbers for _, numbers in last["printed"])  # means and variances of each
    second, third, fourth = (max(abs(a - b) for a, b in zip(first, each, strict=True)) for each in others)
    return second == 0 < fourth < third / 2


def _without_shim(result: dict) -> bool:
    return result["mode"] == "as it stands"


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
        "the weight of the new value, 1 − momentum, became a float32 difference (0.00999999)",
    ),
    Fact(
        "article-10",
        "UPDATE_OPS prints two tensors, not operations",
        "article/update-ops",
        _good(lambda run: all("Tensor" in text for text in run["variables"]["update_ops"])),
        "add_update began to keep the operation of the tensor that it is given, and the collection prints what it holds",
    ),
    Fact(
        "article-11",
        "saver.save makes the folder that it is to save into",
        "article/update-ops",
        _as_printed,
        "saver.save began to make the folder, which before had to be there",
    ),
    Fact(
        "r2rt-23",
        "A path without a folder can be saved to and restored from",
        "r2rt/second-half",
        _as_printed,
        "a path without a folder became one in the working directory: 1.0 saved to it and did not find it again, later "
        "releases refused it, its folder being the empty name (tensorflow#15832)",
    ),
    Fact(
        "article-06",
        "tf.layers.batch_normalization has the printed signature",
        "article/signatures",
        _good(lambda run: differences("tf.layers.batch_normalization")(run) == "as printed"),
        "tf.layers got the last of the printed arguments, virtual_batch_size and adjustment",
    ),
    Fact(
        "article-08",
        "contrib's batch_norm has the printed signature",
        "article/signatures",
        _good(lambda run: differences("tf.contrib.layers.batch_norm")(run) == "as printed"),
        "contrib's batch_norm got the last of its printed arguments, adjustment",
        decides=False,  # the claim is of two defaults; today's is the project's form of contrib's
    ),
    *(
        Fact(
            claim,
            f"{what} are there",
            program,
            _without_shim,
            "contrib and the tutorials are gone, and the old names are in tf.compat.v1",
        )
        for claim, what, program in (
            ("qa-01", "contrib's layers", "article/contrib-in-a-network"),
            ("solver-11", "contrib's flatten and the tutorial's reader", "solver/training"),
            ("r2rt-24", "The old calls and the tutorial's reader", "r2rt/second-half"),
        )
    ),
    *(
        Fact(
            claim,
            f"{what} printed as in the document",
            f"qa/keras-{program}",
            _prints_what_the_document_does,
            "a Keras layer that is called eagerly began to take NumPy's arrays",
        )
        for claim, what, program in (
            ("qa-10", "The output for one example is", "one-example"),
            ("qa-12", "The outputs for two examples are", "two-examples"),
            ("qa-13", "The outputs with the other axis are", "feature-axis"),
        )
    ),
    Fact(
        "qa-19",
        "The four predictions compare as the document says",
        "qa/keras-four-predictions",
        _four_predictions,
        "a Keras layer that is called eagerly began to take NumPy's float64",
    ),
)


def order(version: str) -> list[int]:
    """For sorting versions."""
    return [int(part) for part in version.split()[0].split(".")]


def outcomes(fact: Fact, found: Mapping[tuple[str, str], dict]) -> dict[str, bool]:
    """Whether a fact holds in each version that its program was run in, oldest first: in all of its environments."""
    by_version: dict[str, bool] = {}
    for (program, place), result in found.items():
        if program == fact.program:
            version = place.split()[0]
            by_version[version] = by_version.get(version, True) and bool(fact.holds(result))
    return {version: by_version[version] for version in sorted(by_version, key=order)}


def _stretches(by_version: Mapping[str, bool]) -> list[tuple[str, str]]:
    """First and last of each row of neighbours in which it holds."""
    groups = itertools.groupby(by_version, key=by_version.__getitem__)
    rows = [list(versions) for holds, versions in groups if holds]
    return [(row[0], row[-1]) for row in rows]


def phrase(by_version: Mapping[str, bool]) -> str:
    """As "from 1.5.1 on", "up to 1.12.3", "1.4.1 to 1.12.3", "in all", with the neighbours that were run."""
    versions = list(by_version)
    parts = []
    for first, last in _stretches(by_version):
        since = "" if first == versions[0] else f"from {first} on (not in {versions[versions.index(first) - 1]})"
        until = "" if last == versions[-1] else f"up to {last} (not in {versions[versions.index(last) + 1]})"
        parts.append(" and ".join(filter(None, (since, until))) or "in all")
    return "; ".join(parts) or "in none"


def _minor(version: str) -> str:
    """The release as people name it: 1.5 for 1.5.1, and 2 for today's, since it was 2.0 that followed 1.15."""
    major, minor = version.split(".")[:2]
    return f"{major}.{minor}" if major == "1" else major


def _span(by_version: Mapping[str, bool]) -> str:
    """As "from TensorFlow 1.5 on", "up to TensorFlow 1.11"; empty if it is the same in all."""
    if len(set(by_version.values())) < 2:
        return ""
    oldest, *_, newest = by_version
    parts = []
    for first, last in _stretches(by_version):
        if first == oldest:
            parts.append(f"up to TensorFlow {_minor(last)}")
        elif last == newest:
            parts.append(f"from TensorFlow {_minor(first)} on")
        else:
            parts.append(f"from TensorFlow {_minor(first)} to {_minor(last)}")
    return " and ".join(parts)


def _why(fact: Fact, by_version: Mapping[str, bool]) -> str:
    """The reason, with the releases that changed the outcome; empty if none did."""
    changed = [after for before, after in itertools.pairwise(by_version) if by_version[before] != by_version[after]]
    return f"In TensorFlow {' and '.join(map(_minor, changed))} {fact.reason}." if changed else ""


def _where_all_hold(facts: Iterable[Fact], found: Mapping[tuple[str, str], dict]) -> dict[str, bool]:
    """For each version in which one of them was asked, whether all hold that were."""
    asked = [outcomes(fact, found) for fact in facts]
    versions = sorted({version for each in asked for version in each}, key=order)
    return {version: all(each.get(version, True) for each in asked) for version in versions}


@functools.cache
def _committed() -> dict[tuple[str, str], dict]:
    return load_runs(REFERENCE / "verbatim")


def with_versions(claim: str, verdict: Verdict, found: Mapping[tuple[str, str], dict] | None = None) -> Verdict:
    """A verdict that says since or until which TensorFlow it holds, where that is not the same in all.

    Args:
        claim: its id.
        verdict: as measured in today's TensorFlow.
        found: the programs' results by program and environment; the committed ones if None.

    Returns:
        The verdict, as "holds from TensorFlow 1.5 on", with the reasons in its note.
    """
    found = _committed() if found is None else found
    facts = [fact for fact in FACTS if fact.claim == claim]
    span = _span(_where_all_hold((fact for fact in facts if fact.decides), found))
    reasons = [_why(fact, outcomes(fact, found)) for fact in facts]
    return verdict._replace(
        verdict=verdicts.in_versions(verdict.verdict, span) if span else verdict.verdict,
        note=" ".join(filter(None, (verdict.note, *reasons))),
    )


def own_version(claim: str, found: Mapping[tuple[str, str], dict] | None = None) -> str:
    """Which TensorFlow the claim's document is of: by its date, or if it has none by what is as it shows it.

    Returns:
        As "from TensorFlow 1.5 to 1.11, by what it shows"; empty for one without a date that shows nothing that changed.
    """
    written = register.written(claim)
    if written:
        year, month = map(int, written.split("-"))
        before = [minor for minor, released in RELEASED.items() if released <= written]
        version = f"TensorFlow {before[-1]}" if before else f"before TensorFlow {next(iter(RELEASED))}"
        return f"{version}, by its date, {calendar.month_name[month]} {year}"
    same = [fact for fact in FACTS if _document(fact.claim) == _document(claim) and not register.written(fact.claim)]
    span = _span(_where_all_hold(same, _committed() if found is None else found))
    return span and f"{span}, by what it shows"


def _document(claim: str) -> str:
    return claim.partition("-")[0]


def rows(found: Mapping[tuple[str, str], dict]) -> list[list[str]]:
    """Claim, fact, since or until when, reason; of the facts whose programs were run."""
    asked = [(fact, outcomes(fact, found)) for fact in FACTS]
    return [[fact.claim, fact.what, phrase(each), _why(fact, each)] for fact, each in asked if each]


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
        axis.set_xticks(range(len(versions)), [".".join(version.split(".")[:2]) for version in versions], fontsize=8)
        axis.set_xlim(-0.5, len(versions) - 0.5)
        axis.invert_yaxis()
        axis.grid(False)
