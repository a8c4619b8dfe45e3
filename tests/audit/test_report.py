"""Reports as text, JSON, SARIF and GitHub's commands: everything that was found is there, and nothing breaks the form."""

import io
import json
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree

import pytest

from bn_graph.audit.formats import FORMATS, Style, render
from bn_graph.audit.formats.json_format import as_json, from_json
from bn_graph.audit.formats.text import wants_colour
from bn_graph.audit.report import (
    CannotTell,
    Details,
    Finding,
    Histogram,
    LayerDetails,
    LayerRow,
    Level,
    Mode,
    NotUnderstood,
    Report,
    Saved,
    State,
    SubjectKind,
    UpdateOp,
    names_in_brief,
    printable,
)
from bn_graph.audit.rules import RULES

ADVICE, ERROR, WARNING = Level.ADVICE, Level.ERROR, Level.WARNING

NAMES = tuple(f"conv{number}/bn" for number in range(1, 10))


def row(name="bn", **changed):
    row = LayerRow(name, "fused V3", "batch", "population", "none", "yes", "initial", {"gamma": f"{name}/gamma"})
    return row._replace(**changed)


def finding(code="BN001", level=ERROR, layers=NAMES, **changed):
    found = Finding(code, level, layers, "No train op runs the updates.", ("Adam ← gradients",), "Depend on them.")
    return found._replace(**changed)


def report(path="logs/model.meta", kind="meta graph", **changed):
    whole = Report(
        path,
        kind,
        "logs/model",
        tuple(map(row, NAMES)),
        (finding(), finding("BN007", WARNING, NAMES[:2]), finding("BN101", ADVICE, NAMES[:1])),
        (CannotTell("BN004", NAMES[:1], "The switch is a placeholder."),),
        nodes=12345,
    )
    return whole._replace(**changed)


def test_what_is_not_understood_is_in_text_and_json_and_comes_back():
    listed = tuple(NotUnderstood(f"bn_{number}/moving_variance", "Rsqrt", "read by r") for number in range(5))
    whole = report(layers=(), findings=(), undetermined=(), not_understood=listed)
    text = render([whole], "text")
    assert "5 not understood" in text.splitlines()[0]
    assert "not understood, and maybe batch norm: bn_2/moving_variance (Rsqrt), read by r" in text
    assert "… and 2 more that are not understood" in text
    assert "bn_4/moving_variance" in render([whole], "text", style=Style(verbose=True))
    assert json.loads(render([whole], "json"))["reports"][0]["not_understood"][4] == listed[4]._asdict()
    assert from_json(json.loads(json.dumps(as_json(whole)))) == whole


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_has_what_is_wrong_then_the_table_with_codes_then_findings_and_undetermined():
    expected = """\
logs/model.meta: 1 error, 1 warning, 1 of advice, 1 undetermined in 9 layers (meta graph with its checkpoint, 12,345 nodes)

layer     kernel    training  inference   updates  saved  statistics  findings
conv1/bn  fused V3  batch     population  none     yes    initial     BN001 BN007 BN101 BN004?
conv2/bn  fused V3  batch     population  none     yes    initial     BN001 BN007
conv3/bn  fused V3  batch     population  none     yes    initial     BN001
"""
    text = render([report()], "text")
    assert text.startswith(expected)
    assert text.splitlines()[12:] == [
        "",
        "BN001 error: No train op runs the updates.",
        "    in all 9 layers: Adam ← gradients",
        "    fix: Depend on them.",
        "BN007 warning: No train op runs the updates.",
        "    in conv1/bn, conv2/bn: Adam ← gradients",
        "    fix: Depend on them.",
        "BN101 advice: No train op runs the updates.",
        "    in conv1/bn: Adam ← gradients",
        "    fix: Depend on them.",
        "BN004 cannot tell: conv1/bn: The switch is a placeholder.",
    ]


def test_a_finding_shows_one_line_of_evidence_and_all_if_it_is_to_be_verbose():
    evidence = ("a is not upstream of Adam", "b is not upstream of Adam")
    whole = report(findings=(finding(evidence=evidence),))
    brief, verbose = (render([whole], "text", style=Style(verbose=verbose)) for verbose in (False, True))
    assert evidence[0] in brief and evidence[1] not in brief and "--verbose" in brief
    assert all(line in verbose for line in evidence) and "--verbose" not in verbose
    assert ", ".join(NAMES) in verbose


def test_evidence_too_long_for_a_line_loses_its_middle():
    text = render([report(findings=(finding(evidence=("x" * 130 + " is not upstream of Adam",)),))], "text")
    (line,) = [line for line in text.splitlines() if line.endswith("is not upstream of Adam")]
    assert len(line) == 120 and line.startswith("    in all 9 layers: xxx") and "…" in line


def test_of_many_layers_those_with_the_same_share_a_row():
    names = [f"block{block}/conv{conv}/bn" for block in (1, 2, 3, 4) for conv in (1, 2, 3, 4)]
    layers = tuple(row(name, statistics="updated" if "block3" in name else "initial") for name in names)
    whole = report(layers=layers, findings=(), undetermined=())
    lines = render([whole], "text").splitlines()[2:]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "block[1,2,4]/conv[1…4]/bn (12 layers)",
        "block3/conv[1…4]/bn (4 layers)",
    ]
    assert [line.split()[0] for line in render([whole], "text", style=Style(verbose=True)).splitlines()[3:]] == names


@pytest.mark.parametrize(
    ("path", "checkpoint", "heading"),
    [
        ("/home/me/run/m.meta", "/home/me/run/m", "run/m.meta: 1 error in 9 layers (meta graph with its checkpoint"),
        ("/home/me/run/m.meta", "/home/me/old/m-1", "run/m.meta: 1 error in 9 layers (meta graph with checkpoint old/m-1"),
        ("/data/model.meta", None, "/data/model.meta: 1 error in 9 layers (meta graph,"),
        ("run/model.meta", None, "run/model.meta: 1 error in 9 layers (meta graph,"),
    ],
)  # fmt: skip
def test_files_are_named_from_where_the_reader_stands(path, checkpoint, heading):
    found = finding(evidence=(f"in {checkpoint}: a key",))
    whole = report(path, checkpoint=checkpoint, findings=(found,), undetermined=())
    text = render([whole], "text", style=Style(start="/home/me"))
    assert text.startswith(heading)
    if checkpoint:
        assert f"in {checkpoint.removeprefix('/home/me/')}: a key" in text


def test_columns_line_up_whatever_is_in_them():
    layers = (row("a", updates="2 of 2"), row("much/longer", kernel="moments", saved="some"))
    lines = render([report(layers=layers, findings=(), undetermined=())], "text").splitlines()
    head, *rows = lines[2:5]
    for title, field in (("kernel", 1), ("training", 2), ("updates", 4), ("saved", 5), ("statistics", 6)):
        start = head.index(title)
        for line, layer in zip(rows, layers, strict=True):
            assert line[start - 1] == " " and line[start:].startswith(layer[field])


def test_long_names_lose_their_middle_and_lines_fit():
    name = "tower/" * 30 + "batch_normalization_7"
    text = render([report(layers=(row(name), row("bn")), findings=(finding(layers=(name,)),))], "text")
    (shortened,) = [line for line in text.splitlines() if line.startswith("tower/") and "…" in line]
    assert len(shortened) <= 120
    start, end = shortened.split("  ")[0].split("…")
    assert name.startswith(start) and name.endswith(end)
    assert name in text  # in full with the finding, to search for


def test_shortened_names_in_the_table_still_differ():
    scopes = [f"discriminator/downsampling_block_{number}/convolution_{number}" for number in (1, 2, 3)]
    for names in (
        [f"{scope}/batch_normalization" for scope in scopes],  # shown without the scope that all end in
        [f"net/{'x' * 40}{number}{'y' * 80}" for number in (1, 2, 3)],  # differ in the middle alone
    ):
        lines = render([report(layers=tuple(map(row, names)), findings=(), undetermined=())], "text").splitlines()
        shown = [line.split("  ")[0] for line in lines[3:]]
        assert len(set(shown)) == 3
    assert scopes[0] + "/…" in render(
        [report(layers=tuple(row(f"{each}/batch_normalization") for each in scopes))], "text"
    )


def test_names_that_fit_are_not_shortened():
    assert "…" not in render([report(layers=(row("x" * 60),), findings=(), undetermined=())], "text")


def test_prose_is_wrapped_and_keeps_its_indent():
    message = " ".join(["word"] * 60)
    text = render(
        [report(findings=(finding(message=message, evidence=(message,), fix=message),))],
        "text",
        style=Style(verbose=True),
    )
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("word") == 180


def test_a_graph_without_batch_norm_says_so_in_one_line():
    text = render([Report("a.pb", "graph", None, (), (), (), nodes=1)], "text")
    assert text == "a.pb: no batch norm in it (graph, 1 node)"


def test_a_clean_report_says_that_nothing_was_found():
    text = render([report(findings=(), undetermined=())], "text")
    assert text.startswith("logs/model.meta: nothing found in 9 layers (")


def test_among_many_a_clean_report_is_a_line():
    clean = report(findings=(), undetermined=())
    text = render([clean, report(), clean], "text", style=Style(many=True))
    assert [line for line in text.splitlines() if "nothing found" in line] == [text.splitlines()[0]] * 2
    assert text.count("conv3/bn") == 1


def test_several_reports_end_with_how_many_are_faulty():
    clean = report(findings=())
    assert render([report(), clean, clean], "text").endswith("\n\n3 reports, 1 with errors.")


def test_colour_comes_only_when_it_is_asked_for():
    plain, coloured = (render([report()], "text", style=Style(colour)) for colour in (False, True))
    assert "\x1b" not in plain
    assert "\x1b[31mBN001 error:\x1b[0m" in coloured
    assert "initial     \x1b[31mBN001\x1b[0m \x1b[33mBN007\x1b[0m" in coloured
    for sign in ("\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[36m"):
        coloured = coloured.replace(sign, "")
    assert coloured == plain


@pytest.mark.parametrize(
    ("terminal", "environment", "wanted"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),  # no-color.org: "when present and not an empty string"
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(terminal, environment, wanted, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    assert wants_colour(stream) is wanted


def test_control_characters_of_a_file_do_not_reach_the_terminal():
    evil = "bn\x1b[2J\r\n\u202e"
    whole = report(
        evil, checkpoint=evil, layers=(row(evil),), findings=(finding(layers=(evil,) * 4, evidence=(evil,)),)
    )
    for form in ("text", "github"):
        text = render([whole], form)
        assert all(line.isprintable() for line in text.split("\n")) and "bn\\x1b[2J" in text


def test_lone_surrogates_of_a_path_can_be_printed():
    printable("bad\udcff name").encode("utf-8")


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ((), ""),
        (("a", "b", "c"), "a, b, c"),
        (("a", "b", "c", "d"), "a, b, c, … (4 layers)"),
        (("d/bn", "d/bn_1", "d/bn_2", "d/bn_3", "d/bn_4"), "d/bn[_1…_4] (5 layers)"),
        (("bn_1", "bn_2", "bn_3", "bn_7"), "bn_[1…3,7] (4 layers)"),
        (("bn1", "bn2", "bn3"), "bn1, bn2, bn3"),
        (("long" * 9 + "/bn", "long" * 9 + "/bn_1", "long" * 9 + "/bn_2"), "long" * 9 + "/bn[_1,_2]"),
        (("bn", "bn1", "bn2", "bn3"), "bn, bn[1…3] (4 layers)"),
        (NAMES, "conv[1…9]/bn (9 layers)"),
        (tuple(f"b{b}/u_{u}/bn" for b in (1, 2) for u in (1, 2, 3)), "b[1,2]/u_[1…3]/bn (6 layers)"),
        (("a", "a/b_1", "a/b_2", "c"), "a, a/b_[1,2], c (4 layers)"),
    ],
)
def test_many_layers_are_named_in_few_words(names, text):
    assert names_in_brief(names) == text


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_holds_everything_of_a_report():
    whole = report()
    document = json.loads(render([whole], "json", unread=[("bad.meta", "cut short")]))
    assert document["version"] == 1
    assert document["summary"] == {
        "reports": 1,
        "layers": 9,
        "error": 1,
        "warning": 1,
        "advice": 1,
        "cannot_tell": 1,
        "unreadable": 1,
    }
    assert document["unreadable"] == [{"path": "bad.meta", "reason": "cut short"}]
    (one,) = document["reports"]
    assert {key: one[key] for key in ("path", "kind", "checkpoint", "nodes")} == {
        "path": whole.path,
        "kind": whole.kind,
        "checkpoint": whole.checkpoint,
        "nodes": whole.nodes,
    }
    as_lists = json.loads(json.dumps([layer._asdict() for layer in whole.layers]))
    assert one["layers"] == as_lists
    assert [each["code"] for each in one["findings"]] == ["BN001", "BN007", "BN101"]
    assert one["findings"][0]["layers"] == list(NAMES) and one["findings"][0]["evidence"] == ["Adam ← gradients"]
    assert one["cannot_tell"] == [{"code": "BN004", "layers": [NAMES[0]], "reason": "The switch is a placeholder."}]


def test_the_words_for_modes_and_states_are_those_of_json_version_1_in_every_format():
    layers = (row(training=Mode.BATCH, inference=Mode.MOVING, saved=Saved.SOME, statistics=State.MISSING),)
    whole = report(kind=SubjectKind.META_GRAPH, layers=layers, findings=())
    (layer,) = json.loads(render([whole], "json"))["reports"][0]["layers"]
    expected = {"training": "batch", "inference": "population", "saved": "some", "statistics": "missing"}
    assert {column: layer[column] for column in expected} == expected
    text = render([whole], "text")
    assert "batch     population  none     some   missing" in text and "(meta graph with" in text


def test_a_report_can_be_made_again_from_its_json():
    layers = (row(training=Mode.BATCH, inference=Mode.MOVING, saved=Saved.SOME, statistics=State.MISSING),)
    whole = report(kind=SubjectKind.META_GRAPH, layers=layers, accepted=(finding("BN101"),))
    layer = LayerDetails(
        {"moving_mean": Histogram(0.0, 1.0, (2, 3))}, "x", ("switch",), updates=(UpdateOp("a", "b", ("Adam",)),)
    )
    whole = whole._replace(details=Details(("Adam",), ("logits",), ("x",), {"bn": layer}))
    again = from_json(json.loads(json.dumps(as_json(whole))))
    assert again == whole
    assert isinstance(again.kind, SubjectKind) and isinstance(again.findings[0].level, Level)


def test_json_lines_have_a_report_or_a_file_without_one_each():
    lines = render([report(), report("b.pb")], "jsonl", unread=[("bad.meta", "cut short")]).splitlines()
    first, second, third = map(json.loads, lines)
    (alone,) = json.loads(render([report()], "json"))["reports"]
    assert first == {"version": 1, **alone} and second["path"] == "b.pb"
    assert third == {"version": 1, "lack": "unreadable", "path": "bad.meta", "reason": "cut short"}


# --- SARIF: the required properties of the 2.1.0 schema, and the constraints on those that are used ------------------


def check_sarif(log):
    assert log["version"] == "2.1.0" and urlparse(log["$schema"]).scheme == "https"
    assert set(log) <= {"$schema", "version", "runs"}
    for run in log["runs"]:
        rules = run["tool"]["driver"]["rules"]
        assert run["tool"]["driver"]["name"]
        assert len({rule["id"] for rule in rules}) == len(rules)
        for rule in rules:
            assert rule["defaultConfiguration"]["level"] in {"none", "note", "warning", "error"}
            assert all(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))
        for result in run["results"]:
            assert result["message"]["text"]
            assert result["level"] in {"none", "note", "warning", "error"}
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            check_locations(result["locations"])
        assert run["columnKind"] in {"utf16CodeUnits", "unicodeCodePoints"}
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
            for note in invocation["toolExecutionNotifications"]:
                assert note["message"]["text"] and note["level"] in {"none", "note", "warning", "error"}
                assert "associatedRule" not in note or note["associatedRule"]["id"] in RULES
                check_locations(note["locations"])


def check_locations(locations):
    for location in locations:
        assert set(location) <= {"physicalLocation", "logicalLocations"}
        if "physicalLocation" in location:
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert uri.isascii() and not set(uri) & set(' "<>\\^`{|}#?') and urlparse(uri).scheme in ("", "file")
        logical = location.get("logicalLocations", [])
        assert len({json.dumps(each, sort_keys=True) for each in logical}) == len(logical)  # uniqueItems
        assert all(each["fullyQualifiedName"] for each in logical)


@pytest.mark.parametrize(
    "whole",
    [
        report(),
        report(findings=(), undetermined=(), layers=()),
        report("with space, a#b?c:d/µ.meta"),
        report("/absolute/model.meta", "checkpoint"),
        report("my graph", "live graph"),
        report(findings=tuple(finding(code, RULES[code].level) for code in RULES)),
        report(findings=(finding(layers=()), finding(layers=("bn", "bn")))),
        report(findings=(), accepted=(finding(),)),
    ],
)
def test_sarif_is_valid(whole):
    check_sarif(json.loads(render([whole, whole], "sarif", unread=[("bad\udcff.meta", "cut short")])))


def test_sarif_locates_findings_in_the_file_and_its_layers():
    path = "with space/model:1.meta"
    log = json.loads(render([report(path)], "sarif"))
    result = log["runs"][0]["results"][0]
    (location,) = result["locations"]
    assert unquote(location["physicalLocation"]["artifactLocation"]["uri"]) == path
    assert [each["fullyQualifiedName"] for each in location["logicalLocations"]] == list(NAMES)
    assert "Adam ← gradients" in result["message"]["text"] and "Depend on them." in result["message"]["text"]
    assert [each["level"] for each in log["runs"][0]["results"]] == ["error", "warning", "note"]


def test_sarif_has_the_undetermined_as_notifications_and_not_as_alerts():
    whole = report(findings=())
    run = json.loads(render([whole], "sarif"))["runs"][0]
    (invocation,) = run["invocations"]
    (note,) = invocation["toolExecutionNotifications"]
    assert run["results"] == [] and invocation["executionSuccessful"]
    assert note["associatedRule"] == {"id": "BN004"} and "placeholder" in note["message"]["text"]


@pytest.mark.parametrize("form", ["sarif", "html"])
def test_what_is_not_understood_is_named(form):
    entry = NotUnderstood("block/moving_variance", "Mul", "nothing normalizes by it")
    text = render([report(not_understood=(entry,))], form)
    assert all(part in text for part in entry)


def test_sarif_has_accepted_findings_as_suppressed():
    (result,) = json.loads(render([report(findings=(), accepted=(finding(),))], "sarif"))["runs"][0]["results"]
    assert result["ruleId"] == "BN001" and result["suppressions"][0]["kind"] == "external"


def test_sarif_says_what_could_not_be_read():
    run = json.loads(render([], "sarif", unread=[("bad.meta", "cut short")]))["runs"][0]
    (invocation,) = run["invocations"]
    assert not invocation["executionSuccessful"]
    assert "cut short" in invocation["toolExecutionNotifications"][0]["message"]["text"]


# --- JUnit ------------------------------------------------------------------------------------------------------------


def junit(*reports, codes=("BN001", "BN004", "BN007", "BN101"), unread=()):
    return ElementTree.fromstring(render(reports, "junit", unread=unread, style=Style(codes=codes)).encode())


def test_junit_has_a_suite_for_each_file_and_a_test_for_each_rule():
    suites = junit(report(), report("b.pb", findings=(), undetermined=()), unread=[("bad.meta", "cut short")])
    first, clean, bad = suites
    assert [suite.get("name") for suite in suites] == ["logs/model.meta", "b.pb", "bad.meta"]
    assert [case.get("name").split()[0] for case in first] == ["BN001", "BN004", "BN007", "BN101"]
    failed, undetermined, warned, advised = first
    assert "Adam ← gradients" in failed.find("failure").text and "fix: Depend on them." in failed.find("failure").text
    assert "placeholder" in undetermined.find("skipped").get("message")
    assert "warning: No train op" in warned.find("system-out").text and warned.find("failure") is None
    assert "advice: " in advised.find("system-out").text
    assert not any(list(case) for case in clean)
    assert bad[0].find("error").get("message") == "cut short"
    counts = [[int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")] for suite in suites]
    assert counts == [[4, 1, 0, 1], [4, 0, 0, 0], [1, 0, 1, 0]]


def test_junit_is_xml_whatever_names_there_are():
    evil = 'bn\x1b[2J\x00\udcff<&>"]]>\n'
    whole = report(evil, layers=(row(evil),), findings=(finding(layers=(evil,), evidence=(evil,), message=evil),))
    assert "]]>" in junit(whole)[0][0].find("failure").text


# --- GitHub -----------------------------------------------------------------------------------------------------------


def test_github_has_a_command_for_each_finding():
    lines = render([report()], "github").splitlines()
    start = "file=logs/model.meta,title="
    assert [line.partition(" ")[0] for line in lines[:3]] == ["::error", "::warning", "::notice"]
    assert lines[0].startswith(f"::error {start}BN001%3A ")
    assert "%0ALayers: conv[1…9]/bn (9 layers)%0A" in lines[0]
    assert len(lines) == 4 and not lines[3].startswith("::")


def test_github_escapes_what_would_end_a_property_or_a_message():
    whole = report("50%, a:b\n.meta", findings=(finding(message="half\r\n::error::50%: a, b", evidence=()),))
    command, *rest = render([whole], "github").splitlines()
    assert command.startswith("::error file=50%25%2C a%3Ab%0A.meta,title=")
    assert "::half%0D%0A::error::50%25: a, b" in command
    assert not any(line.startswith("::") for line in rest)


def test_github_names_no_file_for_a_live_graph():
    line = render([report("my graph", "live graph")], "github").splitlines()[0]
    assert line.startswith("::error title=BN001%3A ")


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"github, html, json, jsonl, junit, sarif, text, got 'xml'"):
        render([], "xml")


@pytest.mark.parametrize("form", FORMATS)
def test_no_report_at_all_can_be_rendered(form):
    render([], form)
