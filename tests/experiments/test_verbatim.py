"""The documents' programs: taken out of texts, indented and edited by rules, run, and kept. The texts here are made up."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bn_graph.tf1 import tf
from experiments.machinery import eras, report
from experiments.machinery.programs import UsageError
from experiments.machinery.verbatim import around, runner, shim, table, texts, timeline
from experiments.machinery.verbatim.runner import Environment
from experiments.machinery.verdicts import dated, holds, holds_with_a_trap, kind_of

# A page whose program has lost its indentation, between prose; lines 3 to 9.
PAGE = """A heading

def double(value):
if value > 3:
return value * 2
return -value
total = double(4) + double(1) * offset
print("total", total)
>>> total
total 7
"""
RULES = """
[documents]
page = "page.txt"

[[program]]
document = "page"
name = "double"
shows = "a function"
steps = ["lines 3-8", "example 9"]
sha256 = "{sha256}"
depths = "4:1 5:2 6:1 7:0"
printed = "10"
keep = ["total", "double"]
statistical = true
short = {{ "double(4)" = "double(5)" }}
[[program.change]]
why = "offset is not given"
error = "'offset'"
edits = [{{ line = 7, insert = "offset = 1" }}]
[[program.change]]
why = "a case that the page describes"
error = "never called for"
edits = [{{ line = 8, drop = true }}]
"""
HERE = Environment("9.9", Path(sys.executable), "as it stands")


@pytest.fixture
def rules(tmp_path):
    """Rules for the page, with its checksum; the page is in the same folder."""
    (tmp_path / "page.txt").write_text(PAGE)
    path = tmp_path / "rules.toml"
    path.write_text(RULES.format(sha256="?"))
    with pytest.raises(UsageError) as error:
        texts.steps(texts.programs(path)["page/double"], tmp_path)
    sha256 = str(error.value).split("begins ")[1].split(",")[0]
    path.with_name("checked.toml").write_text(RULES.format(sha256=sha256))
    return path.with_name("checked.toml")


@pytest.fixture
def program(rules):
    return texts.programs(rules)["page/double"]


def test_indentation_is_restored_by_the_rule_and_prompts_are_taken_off(program, tmp_path):
    source, example = texts.steps(program, tmp_path)
    assert source["line"] == 3 and example == {"kind": "source", "name": "", "text": "total", "line": 9}
    assert source["text"].splitlines()[:4] == [
        "def double(value):",
        "    if value > 3:",
        "        return value * 2",
        "    return -value",
    ]


def test_edits_replace_insert_and_drop_at_the_depth_of_their_line(program, tmp_path):
    edits = ({"line": 5, "insert": "value += 1"}, {"line": 5, "old": "* 2", "new": "* 3"}, {"line": 8, "drop": True})
    source = texts.steps(program, tmp_path, [texts.Change("for the test", edits)])[0]["text"].splitlines()
    assert source[2:4] == ["        value += 1", "        return value * 3"] and source[-1].startswith("total =")


@pytest.mark.parametrize(
    "text",
    [PAGE.replace("* 2", "* 3"), PAGE.replace("total 7", "total 8"), "\n" + PAGE, PAGE[:60]],
    ids=["another program", "another output", "moved by a line", "cut off"],
)
def test_another_text_is_refused(program, tmp_path, text):
    (tmp_path / "page.txt").write_text(text)
    with pytest.raises(UsageError, match=r"page\.txt: the lines of page/double \(3 to 10\) are not those .* expected"):
        texts.steps(program, tmp_path)


def test_a_folder_without_the_document_is_reported(program, tmp_path):
    with pytest.raises(UsageError, match=r"page\.txt: No such file.*page/double needs this document"):
        texts.steps(program, tmp_path / "elsewhere")


def test_prose_around_the_program_may_change(program, tmp_path):
    (tmp_path / "page.txt").write_text(PAGE.replace("A heading", "Another heading"))
    assert len(texts.steps(program, tmp_path)) == 2


@pytest.mark.parametrize(
    "printed, numbers",
    [
        ("ACCURACY: 0.02", [["ACCURACY", [0.02]]]),
        ("LIST: [np.int64(8), np.int64(-1)]", [["LIST", [8, -1]]]),
        ("out [[ 9. 11.]\n [ 1e-3  2.]]", [["out", [9.0, 11.0, 0.001, 2.0]]]),
        ("loss 0.5(94.19%) vs none 1.5\n\n(0.25, 3)", [["loss", [0.5, 94.19]], ["vs none", [1.5]], ["", [0.25, 3]]]),
        ("Extracting a-3.gz\n1/4 [=====] - ETA: 0s\nfloat32 v2:0", [["float32 v2", [0]]]),
    ],
    ids=["one", "NumPy 2's scalars", "over lines", "after an empty line", "progress and names"],
)
def test_numbers_are_read_with_the_words_before_them(printed, numbers):
    assert texts.readings(printed) == numbers


def test_a_program_is_run_as_printed_and_again_with_the_change_that_its_error_calls_for(program, tmp_path):
    first, second = runner.run_program(program, HERE, tmp_path, seed=0)
    assert first["changes"] == [] and first["error"] == {
        "type": "NameError",
        "message": "name 'offset' is not defined",
        "line": 7,
    }
    assert second["error"] is None and second["changes"] == [
        {"why": "offset is not given", "edits": ["before line 7: offset = 1"]}
    ]
    assert second["printed"] == [["total", [7]], ["", [7]]]  # printed by the program, and shown as a notebook shows it
    assert second["variables"]["total"] == 7 and "function double" in second["variables"]["double"]


def test_a_syntax_error_and_a_process_that_dies_are_results(program, tmp_path):
    broken = texts.Change("for the test", ({"line": 4, "old": ":", "new": ""},))
    (entry,) = runner.run_program(program._replace(changes=(broken,)), HERE, tmp_path, seed=0)
    assert entry["error"]["type"] == "SyntaxError" and entry["error"]["line"] == 4
    dying = program._replace(changes=(), steps=("code import os; os._exit(3)", *program.steps))
    (entry,) = runner.run_program(dying, HERE, tmp_path, seed=0)
    assert entry["error"]["message"].startswith("the interpreter ended with status 3")


def test_curves_are_thinned_and_pictures_written(program, tmp_path):
    drawing = "import matplotlib.pyplot as plt; curve = [i / 7 for i in range(800)]; _ = plt.plot(curve)"
    drawn = program._replace(changes=(), keep=("curve",), steps=(f"code {drawing}", "example 9"), sha256="", printed="")
    drawn = drawn._replace(steps=drawn.steps[:1])
    (entry,) = runner.run_program(drawn, HERE, tmp_path, seed=0, pictures=tmp_path / "pictures")
    curve = entry["variables"]["curve"]
    assert (
        curve["of"] == 800 and len(curve["values"]) == 81 and curve["at"][-1] == 799 and curve["values"][-1] == 114.14
    )
    assert entry["figures"] == [{"axes": 1, "points": [800]}] and (tmp_path / "pictures" / "figure1.png").exists()


def test_what_is_there_from_the_same_rules_is_kept(rules, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "environments", lambda folder: [HERE])
    monkeypatch.setattr(texts, "programs", lambda read=texts.programs: read(rules))
    arguments = ["--documents", str(tmp_path), "--output", str(tmp_path), "--seed", "0", "1"]
    assert runner.main(arguments) == 0
    assert capsys.readouterr().out.count("page/double") == 4  # two seeds, each as printed and with the change
    path = tmp_path / "verbatim" / "page" / "double" / "9.9.json"
    result = json.loads(path.read_text())
    assert [(entry["seed"], len(entry["changes"])) for entry in result["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert result["document_printed"] == [["total", [7]]]
    assert runner.main([*arguments, "2"]) == 0
    assert capsys.readouterr().out.count("page/double") == 2  # seed 2 alone
    rules.write_text(rules.read_text().replace("offset = 1", "offset = 2"))
    texts._rules.cache_clear()
    assert runner.main(arguments) == 0
    assert capsys.readouterr().out.count("page/double") == 4


def test_a_run_that_takes_too_long_is_reported_and_not_kept_as_the_programs_result(
    rules, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runner, "environments", lambda folder: [HERE])
    monkeypatch.setattr(texts, "programs", lambda read=texts.programs: read(rules))
    monkeypatch.setattr(runner, "SECONDS", 0.01)
    assert runner.main(["--documents", str(tmp_path), "--output", str(tmp_path / "out"), "--seed", "0"]) == 0
    assert "seed 0: not finished after 0.01 s, and not kept" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.json"))


def test_what_is_unknown_is_refused(rules, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "environments", lambda folder: [HERE])
    for option, name in (("--program", "page/none"), ("--version", "0.9")):
        assert runner.main(["--documents", str(tmp_path), option, name]) == 2
        assert f"{name}; there are: " in capsys.readouterr().err


def test_the_rules_quote_no_line_of_a_program_and_name_what_there_is():
    programs = texts.programs()
    assert {program.document for program in programs.values()} == {"qa", "solver", "r2rt", "flags", "article"}
    for program in programs.values():
        assert program.shows and all(change.why and change.edits for change in program.changes), program.key
        numbers = {number for step in program.steps for number in texts.line_numbers(_ranges(step))}
        edited = {edit["line"] for change in program.changes for edit in change.edits}
        assert edited <= numbers, program.key
        assert bool(program.sha256) == bool(numbers), program.key


def _ranges(step):
    return " ".join(word for word in step.split() if word[0].isdigit() and step.startswith(texts.LINES))


DOCUMENTS = Path(__file__).parents[3] / "shared" / "documents"


@pytest.mark.skipif(not DOCUMENTS.is_dir(), reason="the documents are not part of the project")
def test_every_program_of_the_documents_is_python_once_its_changes_are_made():
    for program in texts.programs().values():
        for step in texts.steps(program, DOCUMENTS, program.changes):
            if step["kind"] == "source":
                compile(step["text"], program.key, "exec")


def test_the_committed_results_are_whole_runs_by_these_rules():
    programs = texts.programs()
    for (key, environment), result in table.load_runs(report.REFERENCE / "verbatim").items():
        assert result["rules"] == runner.digest(programs[key]), (key, environment)
        assert not any(run["short"] for run in result["runs"])


def test_a_cell_shows_what_seeds_have_in_common_or_their_spread_and_marks_changed_programs():
    row = table.Row("page/double", "total", lambda run: run["variables"]["total"])

    def result(environment, *runs):
        return {"environment": environment, "runs": list(runs)}

    def run(seed, total, error=None):
        return {"seed": seed, "error": error, "variables": {"total": total}}

    raised = run(0, None, {"type": "NameError"})
    assert table.cell(row, [result("1.0.1", run(0, 0.5), run(1, 0.5))]) == "0.5"
    assert table.cell(row, [result("1.0.1", run(0, 0.5), run(1, 0.75))]) == "0.5000 ← 0.6250 → 0.7500"
    assert table.cell(row, [result("1.0.1", raised)]) == "raises NameError"
    assert table.cell(row, [result("1.0.1", raised, run(0, "text"))]) == "text †"
    assert (
        table.cell(row, [result("2.21 Keras 3", run(0, [1.0, 2])), result("2.21 legacy Keras", run(0, [1.0, 2]))])
        == "1 2"
    )
    assert table.cell(row, [result("2.21 Keras 3", run(0, 1)), result("2.21 legacy Keras", run(0, 2))]) == (
        "Keras 3: 1; legacy Keras: 2"
    )


def test_errors_are_listed_once_with_their_versions_and_what_helps():
    def result(*runs):
        return {"runs": [{"seed": 0} | run for run in runs]}

    raised = {"changes": [], "error": {"type": "NameError", "message": "name 'x' is not defined", "line": 3}}
    other = {"changes": [], "error": {"type": "ValueError", "message": "gone", "line": 5}}
    ran = {"changes": [{"why": "x is not given"}], "error": None}
    found = {
        ("a/b", "1.15.5"): result(raised, ran),
        ("a/b", "1.4.1"): result(raised, ran),
        ("a/b", "2.21"): result(other),
    }
    assert table.failures_table(found)[1] == [
        ["a/b", "1.4.1, 1.15.5", "NameError: name 'x' is not defined (line 3)", "x is not given"],
        ["a/b", "2.21", "ValueError: gone (line 5)", "nothing small: what it needs is not in this version"],
    ]


@pytest.mark.parametrize(
    "outcomes, words",
    [
        ("yyyy", "in all"),
        ("nnnn", "in none"),
        ("nnyy", "from 1.10.1 on (not in 1.9.0)"),
        ("ynnn", "up to 1.8.0 (not in 1.9.0)"),
        ("nyyn", "from 1.9.0 on (not in 1.8.0) and up to 1.10.1 (not in 1.11.0)"),
        ("ynny", "up to 1.8.0 (not in 1.9.0); from 1.11.0 on (not in 1.10.1)"),
    ],
)
def test_a_timeline_says_since_and_until_when_with_the_neighbours_that_were_run(outcomes, words):
    versions = ("1.8.0", "1.9.0", "1.10.1", "1.11.0")
    assert timeline.phrase(dict(zip(versions, (outcome == "y" for outcome in outcomes), strict=True))) == words


def test_a_fact_of_the_timeline_is_asked_of_each_version_in_the_order_of_their_releases():
    fact = timeline.Fact("flags-06", "it runs", "a/b", lambda result: result["runs"][0]["error"] is None, "")
    found = {
        ("a/b", place): {"runs": [{"error": error}]}
        for place, error in (("1.10.1", None), ("1.9.0", {}), ("2.21", None))
    }
    assert list(timeline.outcomes(fact, found | {("a/c", "1.0.1"): {}}).items()) == [
        ("1.9.0", False),
        ("1.10.1", True),
        ("2.21", True),
    ]


def ran_in(program, outcomes):
    """Results of a program, by version: whether it ran."""
    return {
        (program, version): {"runs": [{"error": None if ran else {}}], "mode": "as it stands"}
        for version, ran in outcomes.items()
    }


@pytest.fixture
def facts(monkeypatch):
    """One fact each of flags-06 and article-10, and one of article-08 that does not decide it."""

    def ran(result):
        return result["runs"][0]["error"] is None

    made = (
        timeline.Fact("flags-06", "it runs", "a/b", ran, "something came"),
        timeline.Fact("article-10", "it runs", "a/c", ran, "something went"),
        timeline.Fact("article-08", "it runs", "a/b", ran, "something came", decides=False),
    )
    monkeypatch.setattr(timeline, "FACTS", made)
    return ran_in("a/b", {"1.4.1": False, "1.5.1": True, "1.11.0": True, "2.21": True}) | ran_in(
        "a/c", {"1.4.1": True, "1.5.1": True, "1.11.0": True, "2.21": False}
    )


@pytest.mark.parametrize(
    "claim, judged, verdict, note",
    [
        ("flags-06", holds("m", "n."), "holds from TensorFlow 1.5 on", "n. In TensorFlow 1.5 something came."),
        (
            "flags-06",
            holds_with_a_trap("t", "m", "n."),
            "holds from TensorFlow 1.5 on, with a trap: t",
            "n. In TensorFlow 1.5 something came.",
        ),
        ("article-10", dated("m", "n."), "dated: held up to TensorFlow 1.11", "n. In TensorFlow 2 something went."),
        ("article-08", holds("m", "n."), "holds", "n. In TensorFlow 1.5 something came."),
        ("article-09", holds("m", "n."), "holds", "n."),
    ],
)
def test_a_verdict_says_since_or_until_which_tensorflow_it_holds_and_its_note_why(facts, claim, judged, verdict, note):
    with_versions = timeline.with_versions(claim, judged, facts)
    assert with_versions == (verdict, "m", note)
    assert kind_of(with_versions.verdict) == kind_of(judged.verdict)


def test_a_verdict_says_nothing_of_versions_where_all_are_alike(facts):
    alike = {key: {"runs": [{"error": None}]} for key in facts}
    assert timeline.with_versions("flags-06", holds("m", "n."), alike) == holds("m", "n.")


def test_a_documents_version_is_that_of_its_date_or_else_where_all_is_so_that_it_shows(facts):
    assert timeline.own_version("r2rt-23", facts) == "before TensorFlow 1.0, by its date, March 2016"
    assert timeline.own_version("article-01", facts) == "from TensorFlow 1.5 to 1.11, by what it shows"
    assert timeline.own_version("solver-01", facts) == ""


def test_every_change_in_the_committed_results_is_known_to_the_release_and_today_is_as_the_verdict_says():
    found = table.load_runs(report.REFERENCE / "verbatim")
    releases = [*sorted(eras.RELEASES, key=timeline.order), table.TODAY]
    verdicts = json.loads((report.REFERENCE / "claims.json").read_text())
    for fact in timeline.FACTS:
        outcomes = timeline.outcomes(fact, found)
        for before, after in itertools.pairwise(outcomes):
            if outcomes[before] != outcomes[after]:
                assert releases.index(after) == releases.index(before) + 1, (fact.claim, before, after)
        if fact.decides:
            assert outcomes[table.TODAY] == verdicts[fact.claim]["verdict"].startswith("holds"), fact.claim


def test_a_printed_call_is_compared_with_a_functions_own_defaults():
    zeros = tf.zeros_initializer()

    def function(inputs, axis=-1, momentum=0.9, kind=zeros, added=None, **others):
        pass

    names = {"tf": SimpleNamespace(layers=SimpleNamespace(function=function))}
    source = "tf.layers.function(inputs, axis=-1, momentum=0.99, kind=tf.zeros_initializer(), gone=None)"
    assert around.compare_signature(source, "tf.layers.function", names) == {
        "printed and not there": ["gone"],
        "there and not printed": ["added"],
        "other defaults": {"momentum": "0.9"},
    }


def test_the_shims_reader_shuffles_each_epoch_and_gives_an_epochs_rest_before_the_next():
    rows = np.arange(10)
    shuffled = shim._Shuffled(SimpleNamespace(images=rows, labels=-rows))
    np.random.seed(0)
    batches = [shuffled.next_batch(4) for _ in range(5)]
    images = np.concatenate([images for images, _ in batches])
    assert sorted(images[:10]) == sorted(images[10:]) == rows.tolist()
    assert (images[:10] != images[10:]).any() and all((images == -labels).all() for images, labels in batches)


def test_through_the_shim_a_program_of_tensorflow_1_runs_and_every_change_is_listed(program, tmp_path):
    steps = (
        "code import tensorflow as tf; from tensorflow.examples.tutorials.mnist import input_data",
        "code flat = tf.contrib.layers.flatten(tf.zeros([2, 3, 4])); normalized = tf.contrib.layers.batch_norm(flat)",
        "code updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)",
    )
    old = program._replace(steps=steps, changes=(), sha256="", printed="", keep=("normalized", "updates"))
    (entry,) = runner.run_program(old, HERE._replace(mode="shim"), tmp_path, seed=0)
    assert entry["error"] is None and len(entry["variables"]["updates"]) == 2
    assert "shape=(2, 12)" in entry["variables"]["normalized"]
    assert [each.split(":")[0].split(" ")[0] for each in entry["shim"]] == [
        "TensorFlow",
        "tf.contrib.layers.flatten",
        "tensorflow.examples.tutorials.mnist.input_data",
        "import",
    ]
