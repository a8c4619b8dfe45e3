"""Judges the committed reference again by the pages' functions as they are now, and brings the READMEs up to date.

python -m experiments.machinery.rejudge            all pages, after a change of verdicts; nothing is measured
python -m experiments.machinery.rejudge numerics   some
"""

import argparse
import importlib
import sys

from experiments.machinery import harness, programs, register, report, results
from experiments.machinery.programs import UsageError
from experiments.machinery.results import write_json


def rejudge(name: str) -> dict[str, tuple[str, str]]:
    """Rewrites the reference's verdicts of one experiment; returns those that changed, each before and after."""
    path = report.REFERENCE / name / "result.json"
    result = results.load(path)
    before = result.pop("claims")
    result["claims"] = harness.judge(harness.page_of(importlib.import_module(f"experiments.{name}")), result)
    write_json(path, result)
    old, new = ({claim: entry["verdict"] for claim, entry in claims.items()} for claims in (before, result["claims"]))
    return {claim: (old.get(claim, "none"), new[claim]) for claim in new if old.get(claim) != new[claim]}


def _work(given: argparse.Namespace) -> None:
    unknown = [name for name in given.experiment if name not in register.experiments()]
    if unknown:
        raise UsageError(
            f"there is no experiment {', '.join(unknown)}; there are {results.listed(register.experiments())}."
        )
    for name in given.experiment or register.experiments():
        for claim, (before, after) in rejudge(name).items():
            print(f"{claim}: {before} → {after}")
    write_json(report.REFERENCE / "claims.json", report.claims_of(results.load_all(report.REFERENCE)))
    report.main(["--update-readme"])


def main(argv: list[str] | None = None) -> int:
    parser = programs.parser(__name__, __doc__)
    parser.add_argument("experiment", nargs="*", help="only these (default: all)")
    return programs.run(parser, argv, _work)


if __name__ == "__main__":
    sys.exit(main())
