"""The audit's command: what it hands to the audit, what it prints, and how it ends."""

import itertools
import json
import os
import sys

import pytest

from bn_graph.__main__ import main
from bn_graph.audit.many import Task
from bn_graph.audit.report import Finding, Lack, LayerRow, Level, Report, Unread
from bn_graph.audit.rules import RULES, selected
from bn_graph.audit.subject import Source
from bn_graph.commands import audit as command
from bn_graph.commands import progress

ADVICE, ERROR, WARNING = Level.ADVICE, Level.ERROR, Level.WARNING

LAYER = LayerRow("bn", "fused", "batch", "population", "none", "yes", "initial", {"moving_mean": "bn/moving_mean"})


def report(path="model.meta", *levels):
    findings = tuple(
        Finding("BN001", level, ("bn",), "No train op runs it.", ("bn/Assign",), "Do.") for level in levels
    )
    return Report(path, "meta graph", None, (LAYER,), findings, (), nodes=7)


@pytest.fixture
def audited(monkeypatch):
    """Puts results in the place of the audit of each path; returns how it was called."""
    calls = []

    def put(**results):
        def audit_tasks(tasks, options, **how):
            for task in tasks:
                calls.append((task.path, options))
                yield task, results[task.path]

        monkeypatch.setattr(command, "find_tasks", lambda paths: [Task(path, Source(path, None)) for path in paths])
        monkeypatch.setattr(command, "audit_tasks", audit_tasks)
        return calls

    return put


@pytest.mark.parametrize(
    ("levels", "status"), [((), 0), ((ADVICE,), 0), ((WARNING, ADVICE), 0), ((ERROR,), 1), ((WARNING, ERROR), 1)]
)
def test_the_status_is_1_only_for_findings_of_error_level(levels, status, audited):
    audited(a=[report("a", *levels)])
    assert main(["audit", "a"]) == status


def test_without_options_the_audit_is_asked_for_everything(audited):
    calls = audited(a=[report()])
    main(["audit", "a"])
    nothing = {"checkpoint": None, "outputs": (), "train_ops": (), "feeds": None, "select": (), "ignore": ()}
    assert calls == [("a", nothing)]


def test_options_about_the_graph_are_handed_on(audited):
    calls = audited(a=[report()], b=[report()])
    feeds = ["--feed", "is_training=false", "--feed", "phase:0=True", "--feed", "keep=0.5", "--feed", "n=1"]
    graph = ["--checkpoint", "c/model", "--output", "x", "--output", "y:0", "--train-op", "adam"]
    assert main(["audit", "a", "b", *graph, *feeds]) == 0
    assert [path for path, _ in calls] == ["a", "b"]
    for _, options in calls:
        assert (options["checkpoint"], options["outputs"], options["train_ops"]) == ("c/model", ("x", "y:0"), ("adam",))
        assert options["feeds"] == {"is_training": False, "phase:0": True, "keep": 0.5, "n": 1}
        assert [type(value) for value in options["feeds"].values()] == [bool, bool, float, int]


@pytest.mark.parametrize(
    ("given", "codes"),
    [
        (["BN001"], ["BN001"]),
        (["bn001, BN003"], ["BN001", "BN003"]),
        (["BN1"], [code for code in RULES if code[2] == "1"]),
        (["BN1", "BN101"], [code for code in RULES if code[2] == "1"]),
        (["BN"], list(RULES)),
    ],
)
@pytest.mark.parametrize("option", ["select", "ignore"])
def test_rules_are_chosen_by_code_or_beginning(option, given, codes, audited):
    calls = audited(a=[report()])
    main(["audit", "a", *(word for each in given for word in (f"--{option}", each))])
    chosen = [rule.code for rule in selected(calls[0][1]["select"], calls[0][1]["ignore"])]
    assert chosen == (codes if option == "select" else [code for code in RULES if code not in codes])


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["a", "--select", "BN9"], "BN9"),
        (["a", "--ignore", "BN001,E5"], "E5"),
        (["a", "--select", "BN001,"], "''"),
        (["--explain", "BN099"], "BN099"),
    ],
)
def test_an_unknown_rule_is_one_line_that_lists_the_known(argv, named, audited, capsys):
    assert not audited(a=[report()]) and main(["audit", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line and all(code in line for code in RULES)


@pytest.mark.parametrize("feed", ["is_training", "=true", "is_training=", "x=maybe", "x=nan", "x=inf"])
def test_a_feed_that_is_no_value_is_refused(feed, audited, capsys):
    assert not audited(a=[report()]) and main(["audit", "a", "--feed", feed]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_placeholder_fed_twice_is_refused(audited, capsys):
    assert not audited(a=[report()]) and main(["audit", "a", "--feed", "x=true", "--feed", "x=false"]) == 2
    assert "x twice" in capsys.readouterr().err


def test_without_a_path_it_says_what_to_do(capsys):
    assert main(["audit"]) == 2
    assert "PATH" in capsys.readouterr().err


BAD = Unread("bad", "It ends in a node.")
NOTE = Unread("data/batches.meta", "is a Python pickle, no graph or checkpoint.", Lack.NO_MODEL)
BUG = Unread("odd", "internal error, please report: ZeroDivisionError", Lack.INTERNAL_ERROR)


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([report("good", ERROR), BAD], 1),
        ([report("good", WARNING), BAD], 2),
        ([report("good", ERROR), BUG], 1),
        ([report("good"), BUG], 2),
        ([report("good"), NOTE], 0),
        ([NOTE, BAD], 2),
        ([report("good", ERROR), NOTE], 1),
    ],
)
def test_the_status_is_that_of_errors_before_that_of_what_could_not_be_read(results, status, audited, capsys):
    audited(folder=results)
    assert main(["audit", "folder"]) == status
    out, err = capsys.readouterr()
    assert ("good: " in out) == any(isinstance(result, Report) for result in results)
    assert len(err.splitlines()) == sum(isinstance(result, Unread) for result in results)


def test_what_is_unreadable_and_what_is_no_model_have_a_line_each(audited, capsys):
    audited(a=[BAD, NOTE], b=[NOTE, BUG])
    main(["audit", "a", "b"])
    assert capsys.readouterr().err.splitlines() == [
        "bn_graph audit: bad: It ends in a node.",
        "bn_graph audit: note: data/batches.meta: is a Python pickle, no graph or checkpoint.",
        "bn_graph audit: odd: internal error, please report: ZeroDivisionError",
    ]


def test_json_lists_what_could_not_be_read(audited, capsys):
    audited(bad=[BAD], good=[report("good"), NOTE])
    assert main(["audit", "bad", "good", "--format", "json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["unreadable"] == [{"path": "bad", "reason": "It ends in a node."}]
    assert document["notes"] == [{"path": NOTE.path, "reason": NOTE.reason}]
    assert [each["path"] for each in document["reports"]] == ["good"]


def test_control_characters_of_a_path_do_not_reach_the_terminal(audited, capsys):
    path = "a\x1b[2J"
    audited(**{path: [Unread(path, "cut\x1b[31m short")]})
    assert main(["audit", path]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_reports_are_printed_as_they_come(audited, capsys, monkeypatch):
    def audit_tasks(tasks, options, **how):
        for number, task in enumerate(tasks):
            assert capsys.readouterr().out.count("\n") == min(number, 1)  # the one before was printed
            yield task, [report(task.path)]

    audited()
    monkeypatch.setattr(command, "audit_tasks", audit_tasks)
    assert main(["audit", "a", "b", "c", "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "c"


@pytest.mark.parametrize("jobs", ["0", "-1", "two", ""])
def test_a_number_of_processes_that_is_none_is_refused(jobs, audited, capsys):
    assert not audited(a=[report()]) and main(["audit", "a", f"--jobs={jobs}"]) == 2
    assert "1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "where"),
    [
        *itertools.product(
            ["--cache", "--write-baseline"], ["/proc/nothing/here", "a_file/here", "gs://bucket/here", ""]
        ),
        ("--cache", "a_file"),
        ("--write-baseline", "a_directory"),
    ],
)
def test_where_nothing_can_be_written_is_one_line_before_anything_is_audited(
    option, where, audited, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "a_directory").mkdir()
    calls = audited(a=[report("a", ERROR)])
    assert main(["audit", "a", f"{option}={where}"]) == 2
    printed = capsys.readouterr()
    assert not calls and not printed.out and len(printed.err.splitlines()) == 1
    assert (where or "''") in printed.err or os.path.dirname(where) in printed.err


def test_progress_is_shown_on_a_terminal_only_and_is_gone_in_the_end(audited, capsys, monkeypatch):
    paths = [f"p{number}" for number in range(4)]
    audited(**{path: [report(path)] for path in paths})
    main(["audit", *paths])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "_EACH", 0)
    main(["audit", *paths])
    err = capsys.readouterr().err
    assert "█████" in err and "1 of 4 files" in err and "4 of 4" not in err
    assert err.endswith(progress._CLEAR)


def test_text_has_no_colour_unless_it_goes_to_a_terminal(audited, capsys):
    audited(a=[report("a", ERROR)])
    main(["audit", "a"])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("code", RULES)
def test_explain_prints_a_rule(code, capsys):
    assert main(["audit", "--explain", code]) == 0
    out = capsys.readouterr().out
    assert out.startswith(code) and f"make {RULES[code].experiment}" in out


def test_help_names_every_option_rule_and_status(capsys):
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    out = capsys.readouterr().out
    options = (
        "--checkpoint",
        "--output",
        "--train-op",
        "--feed",
        "--select",
        "--ignore",
        "--format",
        "--verbose",
        "--explain",
    )
    assert all(word in out for word in (*options, *RULES, "exit status"))
    assert max(map(len, out.splitlines())) <= 120
