"""The audit of public graphs and checkpoints with known faults, where their folder lies beside the project."""

import json
from pathlib import Path

import pytest

from bn_graph.audit import audit

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "graphs"
LABELS = FOLDER / "labels.json"
ENTRIES = json.loads(LABELS.read_text(encoding="utf-8")) if LABELS.exists() else []
pytestmark = pytest.mark.skipif(not ENTRIES, reason="the public graphs are not here")


@pytest.fixture(scope="module")
def rows():
    """Of each graph audited: id, expected codes, codes at error level; printed as a table at the end."""
    table = []
    yield table
    print("\nid    expected                       reported")
    for entry, expected, errors in table:
        mark = "" if expected == errors else "   <-"
        print(f"{entry:5} {' '.join(sorted(expected)) or '-':30} {' '.join(sorted(errors)) or '-'}{mark}")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_every_expected_error_is_reported_and_no_other(entry, rows):
    report = audit(FOLDER / entry["id"] / entry["open"])
    expected, errors = set(entry["expected"]), {finding.code for finding in report.errors}
    rows.append((entry["id"], expected, errors))
    assert errors == expected, [*report.errors, *report.undetermined]
