"""Functions that are run in processes of their own."""

import os
import sys

import pytest

from experiments.machinery import children, eras
from experiments.machinery.programs import UsageError


def test_each_answer_comes_from_a_process_with_its_own_environment():
    questions = {name: {"environment": {"NAME": name}, "key": "NAME"} for name in ("one", "other")}
    assert children.ask_each(os.getenv, questions) == {"one": "one", "other": "other"}


def state() -> dict:
    """Of the process that calls it."""
    graph = sys.modules["tensorflow"].compat.v1.get_default_graph()
    return {"pid": os.getpid(), "ops": len(graph.get_operations())}


def test_children_begin_with_tensorflow_imported_and_nothing_built():
    one, other = (children.ask(state) for _ in range(2))
    assert len({os.getpid(), one["pid"], other["pid"]}) == 3
    assert one["ops"] == other["ops"] == 0


def test_a_process_that_fails_is_one_line():
    with pytest.raises(UsageError, match=r"listdir failed: FileNotFoundError.*no/such/place") as error:
        children.ask(os.listdir, path="no/such/place")
    assert "\n" not in str(error.value)


def test_without_the_environment_of_a_tensorflow_nothing_is_asked_and_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(children.eras, "environment_python", lambda version: None)
    assert children.ask_era("1.15.5", "signatures") is None
    written = capsys.readouterr().err
    assert "Without TensorFlow 1.15.5 (make eras)" in written and written.count("\n") == 1


@pytest.mark.skipif(eras.environment_python("1.15.5") is None, reason="there is no environment of TensorFlow 1.15.5")
def test_contrib_itself_trains_and_has_its_arguments():
    assert children.ask_era("1.15.5", "contrib_trains", values=[[1.0, 2.0], [3.0, 5.0]])
    signatures = children.ask_era("1.15.5", "signatures")
    assert signatures["contrib's batch_norm"]["signature"]["decay"] == "0.999"
