"""The committed reference: all claims, judged again by the pages' own functions; the READMEs' tables; exact claims anew."""

import importlib
import json

import pytest

from experiments.machinery import harness, register, report, results
from experiments.machinery.verdicts import kind_of

REFERENCE = json.loads((report.REFERENCE / "claims.json").read_text())
NAMES = register.experiments()


def test_the_reference_has_every_claim_in_full_with_a_verdict():
    assert list(REFERENCE) == list(register.claims())
    assert {entry["mode"] for entry in REFERENCE.values()} == {"full"}
    assert all(kind_of(entry["verdict"]) for entry in REFERENCE.values())


def test_the_references_files_agree_with_its_claims_and_are_small():
    assert report.claims_of(results.load_all(report.REFERENCE)) == REFERENCE
    assert all(path.stat().st_size <= report.LARGEST for path in report.REFERENCE.rglob("*") if path.is_file())


def test_the_tables_in_the_readmes_are_the_references():
    assert report.main(["--check-readme"]) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_measurements_of_the_reference_are_judged_as_they_were(name):
    result = results.load(report.REFERENCE / name / "result.json")
    committed = result.pop("claims")
    page = harness.page_of(importlib.import_module(f"experiments.{name}"))
    assert harness.judge(page, result) == committed


# Their claims are decided by the digits as by MNIST, and by few steps as by many.
DECIDED_BY_DIGITS = ("checkpoint_variables", "conditional_updates", "missing_update_ops", "solver_steps")


@pytest.mark.parametrize("name", NAMES)
def test_claims_that_a_quick_run_decides_get_the_references_verdict_again(name, run_page):
    page = harness.page_of(importlib.import_module(f"experiments.{name}"))
    if page.quick.data is not None and name not in DECIDED_BY_DIGITS:
        pytest.skip("needs all the data")
    verdicts = {claim: entry["verdict"] for claim, entry in run_page(name).result["claims"].items()}
    assert verdicts == {claim: REFERENCE[claim]["verdict"] for claim in verdicts}
