"""The report: what it reads, what it refuses, and that README's tables are the reference's."""

import json
import sys
import time
from pathlib import Path

import pytest

from experiments import control_dependencies
from experiments.machinery import register, rejudge, report, reproduce
from experiments.machinery.results import load, write_json
from experiments.machinery.verdicts import counts, in_versions, kind_of

REFERENCE = report.REFERENCE


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with the result of one experiment, as its quick mode writes it; the reference has that one alone."""
    name = "control_dependencies"
    monkeypatch.setattr(report, "REFERENCE", tmp_path / "reference")
    result = load(REFERENCE / name / "result.json")
    write_json(tmp_path / "reference" / name / "result.json", result)
    result["mode"] = "quick"
    write_json(tmp_path / name / "result.json", result)
    control_dependencies.draw(result, tmp_path / name)
    return tmp_path


def test_the_register_has_the_91_claims_of_the_documents_and_six_of_papers_and_each_has_an_experiment():
    claims = register.claims()
    assert len(claims) == 97
    counted = {key: sum(claim.startswith(f"{key}-") for claim in claims) for key in register.documents()}
    assert counted == {
        "qa": 19,
        "solver": 16,
        "r2rt": 25,
        "flags": 14,
        "article": 17,
        "bn2015": 1,
        "renorm": 2,
        "ghost": 1,
        "precise": 2,
    }
    assert all(claim["kind"] in ("exact", "statistical", "api", "source") for claim in claims.values())


def test_the_page_stands_alone_and_has_every_claim_that_was_measured(results, capsys):
    assert report.main(["--output", str(results)]) == 0
    page = (results / "report.html").read_text()
    assert "article-09" in page
    assert "data:image/webp;base64," in page
    assert 'src="http' not in page and 'href="http' not in page
    claims = json.loads((results / "claims.json").read_text())
    expected = {"verdict", "document", "measured", "note", "experiment", "mode", "data", "seeds"}
    assert set(claims["article-09"]) == expected
    assert claims["article-09"]["mode"] == "quick"


def test_text_of_a_result_can_not_break_the_page(results):
    path = results / "control_dependencies" / "result.json"
    result = json.loads(path.read_text())
    result["claims"]["article-09"]["note"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(result))
    assert report.main(["--output", str(results)]) == 0
    assert "<script>alert(1)" not in (results / "report.html").read_text()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "is no complete result"),
        (lambda text: text.replace('"format": 1', '"format": 0'), "is of format 0; this version reads format 1"),
        (lambda text: "[]", "is of format 'list'"),
        (lambda text: '{"format": 1}', "lacks claims, data, experiment, mode, seeds, versions"),
    ],
)
def test_a_damaged_result_is_one_line_and_earlier_reports_stay(results, capsys, damage, says):
    assert report.main(["--output", str(results)]) == 0
    before = (results / "report.html").read_bytes()
    path = results / "control_dependencies" / "result.json"
    path.write_text(damage(path.read_text()))
    capsys.readouterr()
    assert report.main(["--output", str(results)]) == 2
    message = capsys.readouterr().err
    assert says in message and str(path) in message and "make control-dependencies" in message
    assert message.count("\n") == 1
    assert (results / "report.html").read_bytes() == before


def test_a_reference_without_every_full_result_is_refused(results):
    with pytest.raises(report.UsageError, match="missing: single_example, "):
        report.update_reference(results, results / "reference")
    assert not (results / "reference" / "claims.json").exists()


def test_a_changed_verdict_is_shown_beside_the_reference(results):
    path = results / "reference" / "control_dependencies" / "result.json"
    text = path.read_text()
    for verdict, shown in (("does not hold", True), (None, False)):
        reference = json.loads(text)
        if verdict:
            reference["claims"]["article-09"]["verdict"] = verdict
        write_json(path, reference)
        assert report.main(["--output", str(results)]) == 0
        page = (results / "report.html").read_text()
        assert ("the committed reference run says: does not hold" in page) == shown


def test_tables_go_between_their_markers_and_nowhere_else():
    text = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb\n"
    assert report.with_tables(text, {"x": "new"}) == "a\n<!-- generated: x -->\nnew\n<!-- end: x -->\nb\n"
    assert report.with_tables("no markers", {"x": "new"}) == "no markers"
    for wrong in (text + text, text.replace("<!-- end: x -->", "")):
        with pytest.raises(report.UsageError, match="must have the markers"):
            report.with_tables(wrong, {"x": "new"})


def test_a_table_that_no_readme_has_markers_for_is_one_line_and_exit_2(monkeypatch, tmp_path, capsys):
    (tmp_path / "README.md").write_text("<!-- generated: counts -->\n<!-- end: counts -->\n")
    monkeypatch.setattr(report, "READMES", (tmp_path / "README.md",))
    assert report.main(["--check-readme"]) == 2
    message = capsys.readouterr().err
    assert "<!-- generated: verdicts -->" in message and message.count("\n") == 1


def test_an_outdated_table_is_named(monkeypatch, tmp_path, capsys):
    texts = {path: path.read_text() for path in report.READMES}
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "READMES", tuple(tmp_path / f"{number}.md" for number in range(len(texts))))
    for path, text in zip(report.READMES, texts.values(), strict=True):
        path.write_text(text)
    assert report.main(["--check-readme"]) == 0
    report.READMES[1].write_text(report.READMES[1].read_text().replace("claims measured", "claims"))
    assert report.main(["--check-readme"]) == 1
    assert "1.md" in capsys.readouterr().out


def test_verdicts_fall_into_four_kinds_by_how_they_begin():
    verdicts = ("holds", "holds, with a trap: only if big", "does not hold", "dated")
    kinds = ["holds", "holds, with a trap", "does not hold", "dated"]
    assert [kind_of(verdict) for verdict in verdicts] == kinds
    assert [kind_of(in_versions(verdict, "up to TensorFlow 1.5")) for verdict in verdicts] == kinds
    assert counts(verdicts) == dict.fromkeys(kinds, 1)


def test_rejudging_an_unknown_experiment_is_one_line_that_names_those_there_are(capsys):
    assert rejudge.main(["single_example", "nosuch"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("rejudge: there is no experiment nosuch; there are single_example, old_calls, ")
    assert message.count("\n") == 1


def test_an_unknown_experiment_is_one_line_and_exit_2(capsys):
    assert reproduce.main(["single-exmple"]) == 2
    message = capsys.readouterr().err
    assert "there is no experiment single_exmple" in message and message.count("\n") == 1


def test_reproduce_leaves_out_what_is_done_and_runs_what_is_broken(results):
    assert reproduce.is_done("control_dependencies", "quick", results)
    assert not reproduce.is_done("control_dependencies", "full", results)
    path = results / "control_dependencies" / "result.json"
    path.write_text(path.read_text()[:100])
    assert not reproduce.is_done("control_dependencies", "quick", results)


def stub(name: str, mode: str, output: Path, written: str) -> None:
    """In place of an experiment's process: writes when it begins and ends. One is to fail, one to be stopped."""
    Path(written).write_text(f"printed by {name}")
    with (output / "events").open("a", buffering=1) as events:
        events.write(f"begin {name}\n")
        if status := {"failing": 3, "stopped": 130}.get(name):
            sys.exit(status)
        time.sleep(5 if name == "long" else 0.3)
        events.write(f"end {name}\n")


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """Stubs in place of experiments; gives what they wrote."""
    monkeypatch.setattr(reproduce, "run_experiment", stub)
    monkeypatch.setattr(reproduce, "cores", lambda: 2)
    seconds = {"middle": 20.0, "longest": 30.0}
    monkeypatch.setattr(reproduce, "expected_seconds", lambda name, mode: seconds.get(name, 10.0))
    return lambda: (tmp_path / "events").read_text().splitlines()


def test_reproduce_runs_as_many_as_there_are_cores_the_longest_first(tmp_path, stubs, capsys):
    assert reproduce.reproduce(["short", "middle", "longest"], "full", tmp_path) == 0
    lines = stubs()
    assert set(lines[:2]) == {"begin longest", "begin middle"} and lines[2].startswith("end")
    assert lines.index("begin short") > 2 and len(lines) == 6
    printed = capsys.readouterr().out
    assert all(f"printed by {name}" in printed for name in ("short", "middle", "longest"))


def test_reproduce_goes_on_after_a_failure_and_gives_its_status(tmp_path, stubs):
    assert reproduce.reproduce(["failing", "short", "middle"], "full", tmp_path) == 3
    assert {"end short", "end middle"} <= set(stubs())


def test_reproduce_ends_the_others_where_one_was_stopped(tmp_path, stubs):
    assert reproduce.reproduce(["stopped", "long", "short"], "full", tmp_path) == 130
    assert not any(line.startswith("end") for line in stubs())


@pytest.mark.parametrize("module", [report, reproduce])
def test_wrong_arguments_are_one_line_and_exit_2(module, capsys):
    assert module.main(["--no-such-option"]) == 2
    message = capsys.readouterr().err
    assert "--no-such-option" in message and message.count("\n") == 1


def test_a_report_that_can_not_be_written_is_one_line_and_exit_2(capsys):
    assert report.main(["--output", "/proc/nowhere"]) == 2
    message = capsys.readouterr().err
    assert "/proc/nowhere" in message and message.count("\n") == 1
