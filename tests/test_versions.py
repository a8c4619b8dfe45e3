import pytest

from experiments.machinery.eras import EnvironmentFailed
from tests import versions

REPORT = """<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="12.345"/></testsuites>"""


def test_errors_count_as_failures_and_what_was_skipped_has_not_passed(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    assert versions.outcome(tmp_path / "report.xml") == versions.Outcome(passed=4, failed=3, skipped=3, seconds=12.345)


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 1)])
def test_a_failing_test_of_any_version_is_the_exit_status(failed, status, monkeypatch, capsys):
    monkeypatch.setattr(versions, "make_environment", lambda folder, recipe: folder)
    outcomes = iter([versions.Outcome(10, failed, 2, 3.4), versions.Outcome(11, 0, 1, 5.6)])
    monkeypatch.setattr(versions, "run_tests", lambda *_: next(outcomes))
    assert versions.main(["2.12.1", "2.21.0"]) == status
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"| 2.12.1 | 3.10 | TensorFlow | 10 | {failed} | 2 | 3 |",
        "| 2.21.0 | 3.13 | tf-keras | 11 | 0 | 1 | 6 |",
    ]


def test_a_version_that_cannot_be_had_is_in_the_table_and_the_next_is_tested(monkeypatch, capsys):
    def make_environment(folder, recipe):
        if recipe.python == "3.10":
            raise EnvironmentFailed("there is no Python 3.10")
        return folder

    monkeypatch.setattr(versions, "make_environment", make_environment)
    monkeypatch.setattr(versions, "run_tests", lambda *_: versions.Outcome(10, 0, 0, 1.0))
    assert versions.main(["2.12.1", "2.15.1"]) == 1
    printed = capsys.readouterr().out
    assert "| not tested: there is no Python 3.10 |" in printed and "| 2.15.1 | 3.11 | TensorFlow | 10 |" in printed


@pytest.mark.parametrize("processes", ["x", "0", "-1", ""])
def test_a_number_of_processes_that_can_not_be_is_one_line_and_no_environment_is_made(processes, monkeypatch, capsys):
    monkeypatch.setattr(versions, "make_environment", lambda *_: pytest.fail("it made an environment"))
    assert versions.main([f"--processes={processes}"]) == 2
    assert capsys.readouterr().err == f"versions: --processes is a number from 1 up, or auto; got {processes!r}\n"


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 1)])
def test_the_core_tests_run_with_the_oldest_version_on_the_first_python_that_is_here(failed, status, monkeypatch):
    def find_python(version):
        if version == "3.10":
            raise EnvironmentFailed("there is no Python 3.10")

    made, run = [], []
    monkeypatch.setattr(versions, "find_python", find_python)
    monkeypatch.setattr(versions, "make_environment", lambda folder, recipe, seconds: made.append(recipe))
    monkeypatch.setattr(
        versions, "run_tests", lambda _, tests, processes: run.append(tests) or versions.Outcome(9, failed, 0, 1.0)
    )
    assert versions.main(["--core"]) == status
    assert [(recipe.tensorflow, recipe.python) for recipe in made] == [("2.12.1", "3.11")]
    assert run == [versions.CORE_TESTS]


def test_where_the_oldest_version_cannot_be_had_ci_says_so_and_goes_on(monkeypatch, capsys):
    def find_python(version):
        raise EnvironmentFailed(f"there is no Python {version}")

    monkeypatch.setattr(versions, "find_python", find_python)
    assert versions.main(["--core"]) == 0
    assert capsys.readouterr().err == (
        "versions: NOT TESTED with TensorFlow 2.12.1, the oldest: there is no Python 3.10; there is no Python 3.11\n"
    )


README = """# Title

<!-- generated: versions -->
| TensorFlow | of an | older | form |
|---|---|---|---|
| 2.21.0 | 3.13 | tf-keras | 5 | 0 | 0 | 9 |
| 2.12.1 | 3.10 | TensorFlow | 1 | 2 | 3 | 4 |
<!-- end: versions -->

More.
"""


def test_the_readme_gets_the_lines_of_what_was_tested_and_keeps_the_others(monkeypatch, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    monkeypatch.setattr(versions, "README", readme)
    monkeypatch.setattr(versions, "make_environment", lambda folder, recipe: folder)
    monkeypatch.setattr(versions, "run_tests", lambda *_: versions.Outcome(10, 0, 2, 3.4))
    assert versions.main(["2.12.1", "2.15.1", "--update-readme"]) == 0
    assert readme.read_text() == "\n".join(
        [
            "# Title",
            "",
            "<!-- generated: versions -->",
            versions.HEADER,
            "| 2.12.1 | 3.10 | TensorFlow | 10 | 0 | 2 | 3 |",
            "| 2.15.1 | 3.11 | TensorFlow | 10 | 0 | 2 | 3 |",
            "| 2.21.0 | 3.13 | tf-keras | 5 | 0 | 0 | 9 |",
            "<!-- end: versions -->",
            "",
            "More.",
            "",
        ]
    )
