"""The audit's command: what it hands to the audit, what it prints, and how it ends."""

import json

import pytest

import bn_graph.audit
from bn_graph.__main__ import main
from bn_graph.audit.report import AuditError, Finding, LayerRow, Level, Report
from bn_graph.audit.rules import RULES, selected

ADVICE, ERROR, WARNING = Level.ADVICE, Level.ERROR, Level.WARNING

LAYER = LayerRow("bn", "fused", "batch", "population", "none", "yes", "initial", {"moving_mean": "bn/moving_mean"})


def report(path="model.meta", *levels):
    findings = tuple(
        Finding("BN001", level, ("bn",), "No train op runs it.", ("bn/Assign",), "Do.") for level in levels
    )
    return Report(path, "meta graph", None, (LAYER,), findings, (), nodes=7)


@pytest.fixture
def audited(monkeypatch):
    """Puts reports, or an exception, in the place of the audit of each path; returns how it was called."""
    calls = []

    def put(**results):
        def audit_all(path, **options):
            calls.append((path, options))
            result = results[path]
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(bn_graph.audit, "audit_all", audit_all, raising=False)
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
        (["--explain", "BN009"], "BN009"),
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


@pytest.mark.parametrize("error", [AuditError("bad: It ends in a node."), FileNotFoundError(2, "It ends", "bad")])
def test_unreadable_paths_are_reported_and_the_others_printed(error, audited, capsys):
    audited(bad=error, good=[report("good", ERROR)])
    assert main(["audit", "bad", "good"]) == 2
    out, err = capsys.readouterr()
    assert "good: 1 error in 1 layer (meta graph" in out and "BN001 error" in out
    assert len(err.splitlines()) == 1 and err.startswith("bn_graph audit: bad: It ends")


def test_every_unreadable_path_has_a_line_of_its_own(audited, capsys):
    audited(a=AuditError("one\ntwo"), b=AuditError("three"))
    assert main(["audit", "a", "b"]) == 2
    assert capsys.readouterr().err.splitlines() == ["bn_graph audit: a: one two", "bn_graph audit: b: three"]


def test_json_lists_what_could_not_be_read(audited, capsys):
    audited(bad=AuditError("cut short"), good=[report("good")])
    assert main(["audit", "bad", "good", "--format", "json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["unreadable"] == [{"path": "bad", "reason": "cut short"}]
    assert [each["path"] for each in document["reports"]] == ["good"]


def test_control_characters_of_a_path_do_not_reach_the_terminal(audited, capsys):
    path = "a\x1b[2J"
    audited(**{path: AuditError("cut\x1b[31m short")})
    assert main(["audit", path]) == 2
    assert "\x1b" not in capsys.readouterr().err


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
