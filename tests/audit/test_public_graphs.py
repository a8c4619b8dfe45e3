"""The audit of public graphs and checkpoints with known faults, where their folder lies beside the project."""

import json
from pathlib import Path

import pytest

from bn_graph.audit import audit

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "graphs"
LABELS = FOLDER / "labels.json"
ENTRIES = json.loads(LABELS.read_text(encoding="utf-8")) if LABELS.exists() else []
pytestmark = pytest.mark.skipif(not ENTRIES, reason="the public graphs are not here")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_every_expected_error_is_reported_and_no_other(entry):
    report = audit(FOLDER / entry["id"] / entry["open"])
    expected, errors = set(entry["expected"]), {finding.code for finding in report.errors}
    assert errors == expected, [*report.errors, *report.undetermined]
