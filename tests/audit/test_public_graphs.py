"""The audit of public graphs and checkpoints with known faults, where their folders lie beside the project."""

import json
from pathlib import Path

import pytest

from bn_graph.audit import audit
from bn_graph.audit.formats import Style, render
from bn_graph.audit.report import Level

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
ENTRIES = [
    (folder, entry)
    for folder in ("graphs", "graphs-wild")
    for labels in (SHARED / folder).glob("labels.json")
    for entry in json.loads(labels.read_text(encoding="utf-8"))
]
pytestmark = pytest.mark.skipif(not ENTRIES, reason="the public graphs are not here")


def check(report, label):
    expected, either = set(label.get("expected", ())), set(label.get("either", ()))
    errors = {finding.code for finding in report.errors}
    undetermined = {entry.code for entry in report.undetermined}
    assert expected <= errors <= expected | either, [*report.errors, *report.undetermined]
    assert either <= errors | undetermined
    assert set(label.get("undetermined", ())) <= undetermined
    warnings = {finding.code for finding in report.findings if finding.level is Level.WARNING}
    assert set(label.get("warning", ())) <= warnings
    if label.get("layers") is not None:
        assert len(report.layers) == label["layers"]
    assert not report.not_understood


@pytest.mark.parametrize(
    ("folder", "entry"), ENTRIES, ids=lambda value: value["id"] if isinstance(value, dict) else value
)
def test_what_the_label_says_is_reported_and_no_other_error(folder, entry):
    report = audit(SHARED / folder / entry["id"] / entry["open"])
    check(report, entry)
    lines = render([report], "text", style=Style(start=str(SHARED / folder))).splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= max(120, len(lines[0]))  # a heading is not wrapped


@pytest.mark.parametrize(("folder", "entry"), [pair for pair in ENTRIES if "with_output" in pair[1]])
def test_a_named_output_decides(folder, entry):
    path = SHARED / folder / entry["id"] / entry["open"]
    check(audit(path, outputs=["Output_Layer/Softmax"]), entry["with_output"])


def test_the_text_of_a_faulty_graph_fits_a_screen():
    path = SHARED / "graphs" / "L1" / "generator.ckpt.meta"
    text = render([audit(path)], "text", style=Style(start=str(SHARED / "graphs")))
    assert len(text.splitlines()) <= 30 and max(map(len, text.splitlines())) <= 120
    assert text.startswith("L1/generator.ckpt.meta: 3 errors")
