"""Baselines: what was known is accepted, what is new counts."""

import json

import pytest

from bn_graph.__main__ import main
from bn_graph.audit.baseline import known_findings, read, with_accepted, write
from bn_graph.audit.report import AuditError, Finding, Level, Report
from tests.audit.frozen import frozen


def finding(code, *layers, level=Level.ERROR):
    return Finding(code, level, layers, "It is wrong.", ("evidence",), "Do.")


def report(path, *findings):
    return Report(str(path), "graph", None, (), findings, ())


@pytest.fixture
def baseline(tmp_path):
    return str(tmp_path / "ci" / "known.json")


def test_what_was_written_is_accepted_and_nothing_else(tmp_path, baseline):
    old = report(tmp_path / "a.pb", finding("BN001", "bn1", "bn2"), finding("BN101", "bn1", level=Level.ADVICE))
    write(baseline, known_findings(old, baseline))
    known = read(baseline)
    now = with_accepted(old, known, baseline)
    assert now.findings == () and now.accepted == old.findings

    further = report(tmp_path / "a.pb", finding("BN001", "bn1", "bn3"), finding("BN002", "bn1"))
    now = with_accepted(further, known, baseline)
    assert [(each.code, each.layers) for each in now.findings] == [("BN001", ("bn3",)), ("BN002", ("bn1",))]
    assert [(each.code, each.layers) for each in now.accepted] == [("BN001", ("bn1",))]

    elsewhere = report(tmp_path / "b.pb", finding("BN001", "bn1"))
    assert with_accepted(elsewhere, known, baseline) == elsewhere


def test_a_finding_without_layers_is_known_by_its_file_and_rule(tmp_path, baseline):
    old = report(tmp_path / "a.pb", finding("BN003"))
    write(baseline, known_findings(old, baseline))
    assert with_accepted(old, read(baseline), baseline).findings == ()


def test_paths_are_as_seen_from_the_baseline(tmp_path, baseline, monkeypatch):
    write(baseline, known_findings(report(tmp_path / "models" / "a.pb", finding("BN001", "bn")), baseline))
    (entry,) = json.loads((tmp_path / "ci" / "known.json").read_text())["findings"]
    assert entry == {"path": "../models/a.pb", "code": "BN001", "layers": ["bn"]}
    monkeypatch.chdir(tmp_path)
    named_otherwise = report("models/a.pb", finding("BN001", "bn"))
    assert with_accepted(named_otherwise, read("ci/known.json"), "ci/known.json").findings == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "findings": []}', '{"version": 1, "findings": [3]}'])
def test_what_is_no_baseline_is_one_line(tmp_path, text, capsys):
    path = tmp_path / "known.json"
    path.write_text(text)
    with pytest.raises(AuditError, match=r"known\.json: is "):
        read(str(path))
    assert main(["audit", str(tmp_path), "--baseline", str(path)]) == 2
    assert main(["audit", str(tmp_path), "--baseline", str(tmp_path / "gone.json")]) == 2
    assert "--write-baseline" in capsys.readouterr().err.splitlines()[-1]


def test_the_command_fails_for_new_findings_only(tmp_path, baseline, capsys):
    (tmp_path / "a.pb").write_bytes(frozen((0.0, 0.0)))
    assert main(["audit", str(tmp_path)]) == 1
    assert main(["audit", str(tmp_path), "--write-baseline", baseline]) == 0
    capsys.readouterr()
    assert main(["audit", str(tmp_path), "--baseline", baseline]) == 0
    assert "1 accepted in 1 layer" in capsys.readouterr().out
    (tmp_path / "b.pb").write_bytes(frozen((0.0, 0.0)))
    assert main(["audit", str(tmp_path), "--baseline", baseline]) == 1
    out = capsys.readouterr().out
    assert "a.pb: 1 accepted" in out and "b.pb: 1 error" in out
