"""Many files: what is said of each, in which order, in how many processes, and what is kept of them."""

import os
import pickle
from pathlib import Path

import pytest

from bn_graph.audit import cache, many
from bn_graph.audit.many import audit_tasks, find_tasks
from bn_graph.audit.report import Lack, Report, Unread
from tests.audit.frozen import frozen


@pytest.fixture
def folder(tmp_path):
    """A directory of good and bad files."""
    folder = tmp_path / "models"
    for number in range(9):
        (folder / f"run{number}").mkdir(parents=True)
        (folder / f"run{number}" / "frozen.pb").write_bytes(frozen((1.0, float(number))))
    (folder / "run2" / "batches.meta").write_bytes(pickle.dumps({"num_cases_per_batch": 10000}, protocol=2))
    (folder / "run4" / "frozen.pb").write_bytes(frozen()[:-9])
    (folder / "run5" / "frozen.pb").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "run6" / "frozen.pb").write_bytes(frozen((0.0, 0.0)))
    (folder / "run7" / "labels.pb").write_bytes(b"")
    (folder / "run8" / "notes.txt").write_text("nothing")
    return folder


def results(*paths, options=None, **how):
    tasks = find_tasks([str(path) for path in paths])
    return [result for _, found in audit_tasks(tasks, options or {}, **how) for result in found]


def brief(results, folder):
    return [
        (os.path.relpath(result.path, folder), result.lack if isinstance(result, Unread) else len(result.layers))
        for result in results
    ]


def test_every_file_of_a_directory_is_reported_or_said_to_be_unreadable_or_no_model(folder):
    found = results(folder)
    assert brief(found, folder) == [
        ("run0/frozen.pb", 1),
        ("run1/frozen.pb", 1),
        ("run2/batches.meta", "no model"),
        ("run2/frozen.pb", 1),
        ("run3/frozen.pb", 1),
        ("run4/frozen.pb", "unreadable"),
        ("run5/frozen.pb", "no model"),
        ("run6/frozen.pb", 1),
        ("run7/frozen.pb", 1),
        ("run7/labels.pb", "no model"),
        ("run8/frozen.pb", 1),
    ]
    reasons = [result.reason for result in found if isinstance(result, Unread)]
    assert reasons[0].startswith("is a Python pickle") and "truncated" in reasons[1]
    assert reasons[2].startswith("is a Git LFS pointer") and reasons[3] == "is empty."


def test_processes_give_the_same_in_the_same_order(folder):
    assert results(folder, jobs=3) == results(folder, jobs=1)


def test_any_number_of_processes_may_be_asked_for(folder):
    assert results(folder, jobs=10**30) == results(folder)


def test_a_file_that_is_named_must_be_a_model(folder):
    path = folder / "run2" / "batches.meta"
    assert results(path) == [Unread(str(path), "is a Python pickle, no graph or checkpoint.")]
    (missing,) = results(folder / "gone.pb")
    assert missing.lack == Lack.UNREADABLE and missing.path == str(folder / "gone.pb")


def test_a_directory_without_a_model_is_unreadable_also_after_another(folder):
    (folder / "empty").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "batches.meta").write_bytes(b"")
    (folder / "notes" / "labels.pbtxt").write_text("item { id: 1 }")
    found = results(folder / "empty", folder / "run0", folder / "notes")
    assert brief(found, folder) == [
        ("empty", "unreadable"),
        ("run0/frozen.pb", 1),
        ("notes/batches.meta", "no model"),
        ("notes", "unreadable"),
    ]


def broken(*arguments, **options):
    raise ZeroDivisionError("division\nby zero")


def test_a_bug_in_the_audit_of_one_file_is_a_line_and_the_others_go_on(folder, monkeypatch):
    right = many.report_of
    monkeypatch.setattr(many, "report_of", lambda subject, *rest, **options: (
        broken if "run1" in subject.path else right)(subject, *rest, **options))  # fmt: skip
    found = results(folder)
    assert brief(found, folder)[1] == ("run1/frozen.pb", "internal error")
    assert found[1].reason.startswith(
        "internal error, please report: ZeroDivisionError: division by zero (test_many.py:"
    )
    assert sum(isinstance(result, Report) for result in found) == 6


def kill_at_run3(run, task):
    if task.source.graph and "run3" in task.source.graph:
        os._exit(9)
    return [Unread(task.source.graph, "seen")]


def test_a_file_whose_audit_kills_its_process_takes_no_other_with_it(folder, monkeypatch):
    monkeypatch.setattr(many._Run, "__call__", kill_at_run3)
    tasks = [task for task in find_tasks([str(folder)]) if isinstance(task.source, many.subjects.Source)]
    monkeypatch.setattr(many, "_pool", forking_pool)
    found = [result for _, each in audit_tasks(tasks, {}, jobs=2) for result in each]
    assert [result.path for result in found] == [task.source.graph for task in tasks]
    assert [result.lack for result in found].count(Lack.INTERNAL_ERROR) == 1
    (killed,) = [result for result in found if result.lack == Lack.INTERNAL_ERROR]
    assert "run3" in killed.path and "was killed" in killed.reason


def forking_pool(jobs):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"))  # with what the test has replaced


def test_no_more_files_wait_than_the_processes_need(folder, monkeypatch):
    asked = []

    class Pool:
        def submit(self, run, task):
            asked.append(task)
            return self

        def result(self):
            return []

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(many, "_pool", lambda jobs: Pool())
    task = find_tasks([str(folder / "run0")])[0]
    for number, _ in enumerate(many._in_processes(None, [task] * 100, 2)):
        assert len(asked) <= number + 1 + 2 * many._AHEAD


# --- The cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def audited(monkeypatch):
    """The paths that were really audited."""
    paths = []
    right = many.report_of

    def report_of(subject, *rest, **options):
        paths.append(subject.path)
        return right(subject, *rest, **options)

    monkeypatch.setattr(many, "report_of", report_of)
    return paths


def test_a_cached_result_is_the_same_and_is_not_computed_again(folder, tmp_path, audited):
    plain = results(folder)
    audited.clear()
    first = results(folder, cache_in=str(tmp_path / "cache"))
    assert len(audited) == 7
    again = results(folder, cache_in=str(tmp_path / "cache"))
    assert len(audited) == 7
    assert plain == first == again


def test_a_copy_elsewhere_has_the_same_result_under_its_own_name(folder, tmp_path, audited):
    results(folder / "run6", cache_in=str(tmp_path / "cache"))
    copy = tmp_path / 'copy "of" it.pb'
    copy.write_bytes((folder / "run6" / "frozen.pb").read_bytes())
    audited.clear()
    (report,) = results(copy, cache_in=str(tmp_path / "cache"))
    assert not audited and report.path == str(copy)
    assert report == results(copy)[0] and report.findings


@pytest.mark.parametrize("options", [{"select": ("BN1",)}, {"outputs": ("logits",)}, {"feeds": {"x": 0.5}}])
def test_other_contents_options_or_programs_are_audited_anew(folder, tmp_path, audited, options, monkeypatch):
    path, where = folder / "run0" / "frozen.pb", str(tmp_path / "cache")
    results(path, cache_in=where)
    results(path, options=options, cache_in=where)
    assert len(audited) == 2
    path.write_bytes(frozen((3.0, 4.0)))
    results(path, cache_in=where)
    assert len(audited) == 3
    monkeypatch.setattr(cache, "_version", lambda: "another")
    results(path, cache_in=where)
    assert len(audited) == 4


@pytest.mark.parametrize("text", ["", "[{", "[{}]", "3"])
def test_a_kept_result_that_is_damaged_is_audited_again(folder, tmp_path, audited, text):
    where = tmp_path / "cache"
    first = results(folder / "run6", cache_in=str(where))
    (kept,) = where.iterdir()
    kept.write_text(text)
    assert results(folder / "run6", cache_in=str(where)) == first and len(audited) == 2
    assert results(folder / "run6", cache_in=str(where)) == first and len(audited) == 2


def test_a_result_that_cannot_be_kept_is_reported_all_the_same(folder, tmp_path):
    (tmp_path / "cache").write_text("a file, where the directory was")
    assert results(folder / "run6", cache_in=str(tmp_path / "cache")) == results(folder / "run6")


def test_what_could_not_be_read_is_not_kept(folder, tmp_path):
    where = tmp_path / "cache"
    assert results(folder / "run4", cache_in=str(where)) == results(folder / "run4")
    assert not list(where.glob("*")) and not list(Path(where.parent).glob(".*"))


def test_a_file_of_keras_is_kept_under_its_own_name(tmp_path, audited):
    pytest.importorskip("h5py")
    from tests.audit.test_keras_files import write_keras3

    for name in ("a.keras", "b.keras"):
        path = write_keras3(tmp_path / name, {"bn": [[1.5], [0.5], [0.0], [1.0]]})
        assert results(path, cache_in=str(tmp_path / "cache")) == results(path)
    assert len(audited) == 3
