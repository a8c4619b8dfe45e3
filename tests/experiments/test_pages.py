"""What every page has in common: it runs, judges its claims, draws its figures from the result alone, says what was wrong."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from experiments.machinery import harness, register, report, results
from experiments.machinery.verdicts import KINDS, kind_of

NAMES = register.experiments()


def module_of(name: str):
    return importlib.import_module(f"experiments.{name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_runs_and_judges_its_claims(name, run_page):
    result, folder, printed = run_page(name)
    assert list(result["claims"]) == register.claims_of(name)
    for claim, verdict in result["claims"].items():
        assert kind_of(verdict["verdict"]) in KINDS
        assert verdict["measured"] and verdict["note"]
        assert "\n" not in verdict["note"] and len(verdict["note"]) < 450
        assert f"{claim}  {verdict['verdict']}" in printed
    assert result["experiment"] == name and result["title"] == register.title(name)
    assert set(result["versions"]) >= {"python", "tensorflow", "numpy"}
    assert (folder / "result.json").stat().st_size < report.LARGEST
    assert str(folder / "result.json") in printed


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_from_the_result_alone_and_are_small(name, run_page, tmp_path):
    result, folder, _ = run_page(name)
    harness.page_of(module_of(name)).draw(results.load(folder / "result.json"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(result["figures"])
    for figure, caption in result["figures"].items():
        assert 5_000 < (tmp_path / figure).stat().st_size < report.LARGEST
        assert (folder / figure).exists() and caption.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_made_to_be_read(name):
    text = inspect.getsource(module_of(name))
    assert f"make {register.target(name)}" in text.split('"""')[1]
    documents = {claim.partition("-")[0] for claim in register.claims_of(name)}
    assert all(re.search(rf"\b{key}", text.split('"""')[1]) for key in documents)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_one_line_and_exit_2(name, tmp_path, capsys):
    for arguments, message in (
        (["--steps", "0"], "steps is a whole number from 1 up, got '0'"),
        (["--steps", "many"], "got 'many'"),
        (["--seed", "-1"], "--seed"),
        (["--data", "cifar"], "invalid choice: 'cifar'"),
        (["--sedd", "1"], "--sedd"),
        (["--output", "/proc/nowhere"], "/proc/nowhere"),
    ):
        assert harness.main(module_of(name), ["--output", str(tmp_path / "results"), *arguments]) == 2
        written = capsys.readouterr().err
        assert message in written and written.startswith(f"{name}: ")
        assert written.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_data_set_that_is_not_there_is_one_line_and_exit_2(tmp_path, capsys):
    arguments = ["--data", "mnist", "--data-directory", "no/such/place", "--output", str(tmp_path)]
    assert harness.main(module_of("single_example"), arguments) == 2
    written = capsys.readouterr().err
    assert "no/such/place" in written and written.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: delattr(page, "judge_article_09"), "no function judges article-09"),
        (lambda page: setattr(page, "judge_article_99", lambda result: None), "no claim is registered for article-99"),
        (lambda page: delattr(page, "draw"), "lacks draw"),
    ],
)
def test_a_page_that_lacks_a_judge_or_a_drawing_is_refused(change, message):
    source = Path(module_of("control_dependencies").__file__)
    specification = importlib.util.spec_from_file_location("experiments.control_dependencies", source)
    page = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(page)
    change(page)
    with pytest.raises(TypeError, match=message):
        harness.page_of(page)
