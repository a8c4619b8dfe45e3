"""From results to what people read: ``results/report.html``, ``results/claims.json`` and the tables in README.md.

    make report            the page and claims.json, from this machine's results, beside the committed reference
    make reference         takes this machine's full results as the new reference, and brings README's tables up to date
    python -m experiments.machinery.report --check-readme     exit 1 if README's tables are not those of the reference

An experiment without a result here is shown by its reference result, and the page says so.
"""

import base64
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import jinja2

from experiments.machinery import register
from experiments.machinery.harness import FORMAT, OneLineParser, UsageError, write_json

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "experiments" / "reference"
README = ROOT / "README.md"
LARGEST = 300_000
"""Bytes that one committed file of the reference may have."""

_GROUPS = ("does not hold", "holds if", "dated", "holds")
_MARKS = {"holds": "✓", "holds if": "◐", "does not hold": "✗", "dated": "○"}


def load_result(path: Path) -> dict:
    """One experiment's result; a file that is cut off or of another version is refused in one line."""
    remedy = f"Run `make {path.parent.name.replace('_', '-')} FRESH=1` again, or delete the file."
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no complete result: {error}. {remedy}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        found = result.get("format") if isinstance(result, dict) else type(result).__name__
        raise UsageError(f"{path} is of format {found!r}; this version reads format {FORMAT}. {remedy}")
    missing = {"experiment", "mode", "data", "seeds", "versions", "claims"} - result.keys()
    if missing:
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))}. {remedy}")
    return result


def load_results(folder: Path) -> dict[str, dict]:
    """Every experiment's result that `folder` holds, by the experiment's name."""
    found = {name: folder / name / "result.json" for name in register.experiments()}
    return {name: load_result(path) for name, path in found.items() if path.exists()}


def claims_of(results: Mapping[str, dict]) -> dict[str, dict]:
    """``{id: {verdict, document, measured, note, experiment, mode, data, seeds}}``, in the register's order."""
    table = {}
    for claim, entry in register.claims().items():
        result = results.get(entry["experiment"])
        if result is None or claim not in result["claims"]:
            continue
        how = {key: result[key] for key in ("experiment", "mode", "data", "seeds")}
        table[claim] = result["claims"][claim] | how
    return table


def group(verdict: str) -> str:
    """Which of the four kinds a verdict is; "holds if …" names its condition and is one kind."""
    return next(kind for kind in _GROUPS if verdict.startswith(kind))


def counts(claims: Mapping[str, dict]) -> dict[str, int]:
    """How many claims hold, hold if, do not hold, are dated."""
    counted = Counter(group(claim["verdict"]) for claim in claims.values())
    return {kind: counted[kind] for kind in ("holds", "holds if", "does not hold", "dated")}


# --- the page ---------------------------------------------------------------------------------------------------------


def page(results: Mapping[str, dict], reference: Mapping[str, dict], folders: Mapping[str, Path]) -> str:
    """The report as one self-contained HTML page."""
    claims = claims_of(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        documents=register.documents(),
        counts=counts(claims),
        missing=[claim for claim in register.claims() if claim not in claims],
        rows=[_row(claim, measured, reference) for claim, measured in claims.items()],
        sections=[_section(name, result, folders[name]) for name, result in results.items()],
        marks=_MARKS,
        total=len(register.claims()),
    )


def _row(claim: str, measured: dict, reference: Mapping[str, dict]) -> dict:
    entry = register.claims()[claim]
    before = claims_of(reference).get(claim)
    changed = None if before is None or before["verdict"] == measured["verdict"] else before["verdict"]
    return measured | {
        "id": claim,
        "key": claim.partition("-")[0],
        "group": group(measured["verdict"]),
        "claim": entry["claim"],
        "section": entry["section"],
        "kind": entry["kind"],
        "command": f"make {entry['experiment'].replace('_', '-')}"
        + (" MODE=full" if measured["mode"] == "full" else ""),
        "reference_verdict": changed,
    }


def _section(name: str, result: dict, folder: Path) -> dict:
    figures = [
        {"source": _data_url(folder / file), "caption": caption, "file": file}
        for file, caption in result.get("figures", {}).items()
        if (folder / file).exists()
    ]
    return {"name": name, "result": result, "figures": figures, "is_reference": REFERENCE in folder.parents}


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


# --- README -----------------------------------------------------------------------------------------------------------


def readme_tables(results: Mapping[str, dict]) -> dict[str, str]:
    """The generated parts of README.md, by the name between their markers."""
    claims = claims_of(results)
    counted = counts(claims)
    said = {"holds": "hold", "holds if": "hold under a condition", "does not hold": "do not hold", "dated": "are dated"}
    summary = ", ".join(f"**{number}** {said[kind]}" for kind, number in counted.items())
    wrong = {claim: entry for claim, entry in claims.items() if group(entry["verdict"]) == "does not hold"}
    return {
        "counts": f"Of the {len(claims)} claims measured, {summary}.",
        "did not hold": _table(wrong, ("claim", "measured", "note")),
        "verdicts": _table(claims, ("verdict", "document", "measured", "experiment")),
        "small batches": results.get("small_batches", {}).get("advice", ""),
    }


def _table(claims: Mapping[str, dict], columns: Iterable[str]) -> str:
    lines = [f"| id | {' | '.join(columns)} |", "|---" * (len(list(columns)) + 1) + "|"]
    for claim, entry in claims.items():
        full = entry | {"claim": register.claims()[claim]["claim"]}
        cells = [str(full[column]).replace("|", "\\|").replace("\n", " ") for column in columns]
        lines.append(f"| {claim} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """README's `text` with each generated part replaced; what stands outside the markers is left alone."""
    for name, content in tables.items():
        start, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise UsageError(f"README.md must have the markers {start} and {end}, once each.")
        before, rest = text.split(start)
        text = f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"
    return text


# --- the reference ----------------------------------------------------------------------------------------------------


def update_reference(results: Path, reference: Path) -> None:
    """Copies the full results, and the figures that README shows, where git keeps them; refuses other modes and sizes."""
    loaded = load_results(results)
    missing = [name for name in register.experiments() if loaded.get(name, {}).get("mode") != "full"]
    if missing:
        raise UsageError(
            f"The reference needs full results of every experiment; missing: {', '.join(missing)} (make reproduce)."
        )
    shown = README.read_text(encoding="utf-8")
    for name, result in loaded.items():
        files = ["result.json"] + [file for file in result["figures"] if f"reference/{name}/{file}" in shown]
        for file in files:
            source = results / name / file
            if source.stat().st_size > LARGEST:
                raise UsageError(
                    f"{source} has {source.stat().st_size:,} bytes; a file of the reference has at most {LARGEST:,}."
                )
            (reference / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, reference / name / file)
    write_json(reference / "claims.json", claims_of(loaded))


def write_text(path: Path, text: str) -> None:
    """Writes `text` so that `path` holds either all of it or what it held before."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _write_report(results: Path) -> None:
    own, reference = load_results(results), load_results(REFERENCE)
    everything = reference | own
    if not everything:
        raise UsageError(f"There is no result in {results} yet. Run `make reproduce-quick`, or one experiment.")
    everything = {name: everything[name] for name in register.experiments() if name in everything}
    folders = {name: (results if name in own else REFERENCE) / name for name in everything}
    results.mkdir(parents=True, exist_ok=True)
    write_text(results / "report.html", page(everything, reference, folders))
    write_json(results / "claims.json", claims_of(everything))
    judged = counts(claims_of(everything))
    print(f"{results / 'report.html'}: " + ", ".join(f"{number} {kind}" for kind, number in judged.items()))


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m experiments.machinery.report", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    parser.add_argument("--update-reference", action="store_true", help="take the full results as the reference")
    parser.add_argument("--check-readme", action="store_true", help="exit 1 if README's tables are not the reference's")
    try:
        given = parser.parse_args(argv)
        if given.update_reference:
            update_reference(given.output, REFERENCE)
            write_text(README, with_tables(README.read_text(encoding="utf-8"), readme_tables(load_results(REFERENCE))))
            return 0
        if given.check_readme:
            text = README.read_text(encoding="utf-8")
            current = with_tables(text, readme_tables(load_results(REFERENCE))) == text
            print(
                "README's tables are current."
                if current
                else "README's tables are not the reference's: make reference."
            )
            return 0 if current else 1
        _write_report(given.output)
        return 0
    except (UsageError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
