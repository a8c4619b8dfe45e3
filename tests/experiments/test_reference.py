"""The committed reference: all claims, README's tables made from it, and what needs no data measured again."""

import json

import pytest

from experiments.machinery import register, report

REFERENCE = json.loads((report.REFERENCE / "claims.json").read_text())
WITHOUT_DATA = [
    name
    for name in register.experiments()
    if __import__(f"experiments.{name}", fromlist=["EXPERIMENT"]).EXPERIMENT.quick.data is None
]


def test_the_reference_has_every_claim_in_full_with_a_verdict():
    assert list(REFERENCE) == list(register.claims())
    assert {entry["mode"] for entry in REFERENCE.values()} == {"full"}
    assert all(report.group(entry["verdict"]) for entry in REFERENCE.values())


def test_the_references_files_agree_with_its_claims_and_are_small():
    assert report.claims_of(report.load_results(report.REFERENCE)) == REFERENCE
    assert all(path.stat().st_size <= report.LARGEST for path in report.REFERENCE.rglob("*") if path.is_file())


def test_the_tables_in_readme_are_the_references():
    assert report.main(["--check-readme"]) == 0


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_claims_that_need_no_data_get_the_same_verdict_again(name, tmp_path):
    module = __import__(f"experiments.{name}", fromlist=["main"])
    assert module.main(["--output", str(tmp_path)]) == 0
    measured = json.loads((tmp_path / name / "result.json").read_text())["claims"]
    for claim, entry in measured.items():
        if register.claims()[claim]["kind"] in ("exact", "api"):
            assert entry["verdict"] == REFERENCE[claim]["verdict"], claim
