"""Every page is run once, however many tests and test processes read what it left."""

import contextlib
import copy
import fcntl
import importlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import bn_graph
from experiments.machinery import children, harness

# Where the quick mode trains for longer than its tests need.
OPTIONS = {
    "bn_vs_plain": ["--steps", "400"],  # every curve has points
    "figure1": ["--steps", "300"],
    "higher_learning_rates": ["--steps", "30"],  # too few to learn much: what is learned is no matter here
    "population_estimators": ["--steps", "1000"],
    "recurrent": ["--steps", "16"],
    "scoring_leak": ["--data", "digits", "--steps", "2000"],
    "single_example": ["--data", "digits", "--steps", "2000"],  # enough to learn the digits
    "small_batches": ["--steps", "10"],
}

# Of the pages' own settings: what takes the time and is judged alike by fewer.
SMALLER = {
    "conv_normalizer": {"sessions": 5},
    "control_dependencies": {"sessions": 25},
    "figure1": {"search_steps": 100},
}

# They open sessions without the harness.
MANY_GRAPHS = ("higher_learning_rates", "missing_update_ops", "population_estimators", "scoring_leak")


@pytest.fixture(scope="module", autouse=True)
def graphs_run_as_built():
    """The networks of pages are trained without TensorFlow's rewriting of graphs: it takes longer than their few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "session_config", _as_built(harness.session_config))
        yield


def _as_built(session_config: Callable) -> Callable:
    def config(*arguments, **options):
        made = session_config(*arguments, **options)
        made.graph_options.rewrite_options.disable_meta_optimizer = True
        return made

    return config


class Finished(NamedTuple):
    """A page's run: its result, the folder that it is in, and what was printed."""

    result: dict
    folder: Path
    printed: str


def _ask_here(function: Callable, questions: dict) -> dict:
    return {name: function(**question) for name, question in questions.items()}


def arguments(name: str, output: Path) -> list[str]:
    """The command line of a page's run for the tests."""
    return [*OPTIONS.get(name, []), "--output", str(output)]


@pytest.fixture(scope="session")
def run_page(tmp_path_factory) -> Callable[[str], Finished]:
    """Runs a page by its name, if no other test has; its folder is not to be changed."""
    base = tmp_path_factory.getbasetemp()
    output = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "results"
    output.mkdir(exist_ok=True)

    def finished(name: str) -> Finished:
        printed, result = output / f"{name}.txt", output / name / "result.json"
        with (output / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not printed.exists():
                page = importlib.import_module(f"experiments.{name}")
                with contextlib.redirect_stdout(io.StringIO()) as written, pytest.MonkeyPatch.context() as patch:
                    if name in SMALLER:
                        patch.setattr(page, "QUICK", page.QUICK._replace(own=page.QUICK.own | SMALLER[name]))
                    if name in MANY_GRAPHS:
                        patch.setattr(bn_graph, "session_config", _as_built(bn_graph.session_config))
                    if name == "checkpoint_variables":  # starting processes is tested by the pages that need them more
                        patch.setattr(children, "ask_each", _ask_here)
                    assert harness.main(page, arguments(name, output)) == 0
                printed.write_text(written.getvalue())
        return Finished(json.loads(result.read_text()), output / name, printed.read_text())

    return finished


@pytest.fixture(scope="module")
def finished(request, run_page) -> Finished:
    """The run of the page that the test module is about, its ``PAGE``; not to be changed."""
    return run_page(request.module.PAGE.__name__.rpartition(".")[2])


@pytest.fixture
def result(finished) -> dict:
    """A copy of the page's result, which a test may contradict."""
    return copy.deepcopy(finished.result)


def changed(result: dict, **fields) -> dict:
    """A copy in which every run's `fields` have other values."""
    other = copy.deepcopy(result)
    for each in other["runs"]:
        assert fields.keys() <= each.keys()
        each.update(fields)
    return other


@pytest.fixture(scope="session")
def contradict() -> Callable[[dict, str, object], None]:
    """Puts another value into a result, at a path of keys such as ``signatures/slim form/center``."""

    def put(part: dict, path: str, value: object) -> None:
        *folders, last = path.split("/")
        for folder in folders:
            part = part[folder]
        part[last] = value

    return put


@pytest.fixture(scope="module")
def verdict(request) -> Callable[[dict, str], str]:
    """The verdict of the page on a claim, computed from any result."""
    page: ModuleType = request.module.PAGE
    return lambda result, claim: harness.page_of(page).judges[claim](result).verdict


@pytest.fixture(scope="module")
def verdict_if(request) -> Callable[..., str]:
    """The page's verdict on a claim if `changes` had been measured, also in each of the runs that has such a field."""

    def judged(claim: str, result: dict, **changes) -> str:
        other = copy.deepcopy(result) | changes
        for each in other["runs"]:
            each |= {name: value for name, value in changes.items() if name in each}
        return harness.page_of(request.module.PAGE).judges[claim](other).verdict

    return judged
