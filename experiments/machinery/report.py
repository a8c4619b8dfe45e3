"""From results to what people read: ``results/report.html``, ``results/claims.json`` and the tables in the READMEs.

    make report            the page and claims.json, from this machine's results, beside the committed reference
    make reference         takes this machine's full results as the new reference, and brings the READMEs up to date
    python -m experiments.machinery.report --check-readme     exit 1 if a README's tables are out of date

An experiment without a result here is shown by its reference result, and the page says so. A figure that is not beside
its result is drawn from it. The page itself is made in `experiments.machinery.page`.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from bn_graph.audit import rules
from experiments.machinery import page, programs, register, results
from experiments.machinery.programs import UsageError
from experiments.machinery.results import write_json, write_text
from experiments.machinery.verbatim import summary as verbatim
from experiments.machinery.verdicts import counts, kind_of

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "experiments" / "reference"
READMES = tuple(ROOT / folder / "README.md" for folder in ("", "experiments", "bn_graph/audit"))
LARGEST = 300_000
"""Bytes that one committed file of the reference may have."""


def claims_of(loaded: Mapping[str, dict]) -> dict[str, dict]:
    """``{id: {verdict, document, measured, note, experiment, mode, data, seeds}}``, in the register's order."""
    table = {}
    for claim, entry in register.claims().items():
        result = loaded.get(entry["experiment"])
        if result is None or claim not in result["claims"]:
            continue
        how = {key: result[key] for key in ("experiment", "mode", "data", "seeds")}
        table[claim] = result["claims"][claim] | how
    return table


def counts_of(claims: Mapping[str, dict]) -> dict[str, int]:
    """How many claims have each kind of verdict."""
    return counts(claim["verdict"] for claim in claims.values())


# --- the READMEs ------------------------------------------------------------------------------------------------------


def readme_tables(loaded: Mapping[str, dict]) -> dict[str, str]:
    """What is generated in a README, by the name between its markers."""
    claims = claims_of(loaded)
    words = {
        "holds": "hold",
        "holds, with a trap": "hold with a trap outside of the document's own case",
        "does not hold": "do not hold",
        "dated": "are dated",
    }
    summary = ", ".join(f"**{number}** {words[kind]}" for kind, number in counts_of(claims).items())
    return {
        "counts": f"Of the {len(claims)} claims measured, {summary}.",
        "did not hold": "\n".join(
            ["What does not hold:"]
            + [
                f"- **{claim}** {register.claims()[claim]['claim']}"
                for claim, entry in claims.items()
                if kind_of(entry["verdict"]) == "does not hold"
            ]
        ),
        "experiments": _experiments_table(loaded),
        "verdicts": _verdicts(claims),
        "verbatim": verbatim.described(REFERENCE / "verbatim", loaded),
        "small batches": loaded.get("small_batches", {}).get("advice", ""),
        "rules": rules.table(),
    }


def _experiments_table(loaded: Mapping[str, dict]) -> str:
    rows = [
        (
            f"[`{register.target(name)}`]({name}.py)",
            register.title(name),
            f"{loaded[name]['seconds']:.0f} s" if name in loaded else "",
            ", ".join(register.claims_of(name)),
        )
        for name in register.experiments()
    ]
    return _table(("make", "what it shows", "in full", "claims"), rows)


def _verdicts(claims: Mapping[str, dict]) -> str:
    """A table a document."""
    parts = []
    for key, title in register.documents().items():
        of_document = {claim: entry for claim, entry in claims.items() if claim.partition("-")[0] == key}
        rows = [
            (claim, register.claims()[claim]["claim"], *(entry[each] for each in ("verdict", "measured", "experiment")))
            for claim, entry in of_document.items()
        ]
        parts.append(f"#### {title}\n\n" + _table(("id", "claim", "verdict", "measured", "experiment"), rows))
    return "\n\n".join(parts)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(tuple(header)), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """A README's `text` with each generated part that it has markers for replaced; the rest is left alone.

    Raises:
        UsageError: a marker stands there twice, or has no end.
    """
    for name, content in tables.items():
        start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        if text.count(start) == text.count(end) == 0:
            continue
        if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
            raise UsageError(f"A README must have the markers {start} and {end} once each, in this order.")
        before, rest = text.split(start)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


def outdated_readmes() -> dict[Path, str]:
    """The READMEs whose tables are not the reference's, each with its text as it ought to be.

    Raises:
        UsageError: no README has a marker for one of the tables.
    """
    tables = readme_tables(results.load_all(REFERENCE))
    texts = {path: path.read_text(encoding="utf-8") for path in READMES}
    missing = [name for name in tables if not any(f"<!-- generated: {name} -->" in text for text in texts.values())]
    if missing:
        raise UsageError(f"No README has the marker {', '.join(f'<!-- generated: {name} -->' for name in missing)}.")
    current = {path: with_tables(text, tables) for path, text in texts.items()}
    return {path: text for path, text in current.items() if text != texts[path]}


# --- the reference ----------------------------------------------------------------------------------------------------


def update_reference(source: Path, reference: Path) -> None:
    """Copies the full results, their networks, and the figures that a README shows, where git keeps them.

    Raises:
        UsageError: an experiment has no full result, or a file is too large.
    """
    loaded = results.load_all(source)
    missing = [name for name in register.experiments() if loaded.get(name, {}).get("mode") != "full"]
    if missing:
        raise UsageError(
            f"The reference needs full results of every experiment; missing: {', '.join(missing)} (make reproduce)."
        )
    shown = "".join(path.read_text(encoding="utf-8") for path in READMES)
    for name, result in loaded.items():
        figures = [file for file in result["figures"] if f"reference/{name}/{file}" in shown]
        for file in ["result.json", *result.get("networks", {}).values(), *figures]:
            size = (source / name / file).stat().st_size
            if size > LARGEST:
                raise UsageError(
                    f"{source / name / file} has {size:,} bytes; a file of the reference has at most {LARGEST:,}."
                )
            (reference / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name / file, reference / name / file)
    write_json(reference / "claims.json", claims_of(loaded))


def _write_report(output: Path) -> None:
    own, reference = results.load_all(output), results.load_all(REFERENCE)
    everything = reference | own
    if not everything:
        raise UsageError(f"There is no result in {output} yet. Run `make reproduce-quick`, or one experiment.")
    everything = {name: everything[name] for name in register.experiments() if name in everything}
    folders = {name: (output if name in own else REFERENCE) / name for name in everything}
    output.mkdir(parents=True, exist_ok=True)
    claims = claims_of(everything)
    write_text(output / "report.html", page.render(everything, claims, claims_of(reference), folders, REFERENCE))
    write_json(output / "claims.json", claims)
    judged = counts_of(claims)
    print(f"{output / 'report.html'}: " + ", ".join(f"{number} {kind}" for kind, number in judged.items()))


def _work(given: argparse.Namespace) -> int | None:
    if given.check_readme:
        outdated = outdated_readmes()
        for path in outdated:
            print(f"The tables of {path.relative_to(ROOT)} are out of date: make readmes.")
        return 1 if outdated else print("The READMEs' tables are current.")
    if not (given.update_reference or given.update_readme):
        return _write_report(given.output)
    if given.update_reference:
        update_reference(given.output, REFERENCE)
    for path, text in outdated_readmes().items():
        write_text(path, text)
    return None


def main(argv: list[str] | None = None) -> int:
    parser = programs.parser(__name__, __doc__)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    parser.add_argument("--update-reference", action="store_true", help="take the full results as the reference")
    parser.add_argument("--update-readme", action="store_true", help="bring the READMEs' tables up to date")
    parser.add_argument("--check-readme", action="store_true", help="exit 1 if a README's tables are out of date")
    return programs.run(parser, argv, _work)


if __name__ == "__main__":
    sys.exit(main())
