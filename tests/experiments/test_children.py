"""Functions that are run in processes of their own."""

import os

import pytest

from experiments.machinery import children
from experiments.machinery.programs import UsageError


def test_each_answer_comes_from_a_process_with_its_own_environment():
    questions = {name: {"environment": {"NAME": name}, "key": "NAME"} for name in ("one", "other")}
    assert children.ask_each(os.getenv, questions) == {"one": "one", "other": "other"}


def test_a_process_that_fails_is_one_line():
    with pytest.raises(UsageError, match=r"listdir failed: FileNotFoundError.*no/such/place") as error:
        children.ask(os.listdir, path="no/such/place")
    assert "\n" not in str(error.value)
