"""Calls of old versions: what is there, what trains, and judges that can be contradicted."""

import pytest

from experiments import old_calls as experiment

PAGE = experiment


def test_qa_01_is_dated_without_contrib_and_says_of_each_library_what_came_of_it(finished):
    assert finished[0]["claims"]["qa-01"]["verdict"] == "dated: held up to TensorFlow 1.15"
    for name in experiment.EASIEST:
        assert name in finished[0]["claims"]["qa-01"]["measured"]


def test_qa_01_follows_what_trains(result, verdict):
    trains = {"found": "", "2": "", "4": ""}
    result["easiest"]["contrib"] = trains
    assert verdict(result, "qa-01") == "holds, with a trap: not slim, tflearn"
    result["easiest"]["slim"] = trains | {"4": "AttributeError: no such module"}
    assert "slim raises AttributeError for inputs of rank 4" in experiment.judge_qa_01(result).measured
    result["easiest"] = dict.fromkeys(experiment.EASIEST, trains)
    assert verdict(result, "qa-01") == "holds"


def test_one_step_trains_with_a_layer_that_is_there_and_names_the_error_of_one_that_is_not():
    assert experiment.one_step("bn_graph.layers.slim", "batch_norm") == {"found": "", "2": "", "4": ""}
    assert experiment.one_step("no_such_module", "batch_norm")["found"].startswith("ModuleNotFoundError")
    assert experiment.one_step("math", "sqrt")["2"].startswith("TypeError")


def test_is_0_warns_and_picks_by_identity(finished):
    found = finished[0]["step_test"]
    assert found["warning"].startswith("SyntaxWarning")
    assert found["same_steps"] and found["picked"] == 200
    assert found["picked_of_numpy_integers"] == 0
    assert found["picked_beyond_the_cache"] == 0


def test_a_model_name_with_a_blank_is_refused(finished):
    assert "not a valid" in finished[0]["model_names"]["Batch Norm"]
    assert finished[0]["model_names"]["BatchNorm"] == ""


@pytest.mark.parametrize(
    ("claim", "path", "value", "expected"),
    [
        ("r2rt-10", "step_test/same_steps", False, "does not hold"),
        ("r2rt-10", "step_test/picked_of_numpy_integers", 200, "holds"),
        ("solver-13", "model_names/Batch Norm", "", "holds"),
    ],
)
def test_a_contradicting_measurement_changes_the_verdict(result, claim, path, value, expected, verdict, contradict):
    contradict(result, path, value)
    assert verdict(result, claim) == expected


def test_what_is_still_there_is_not_dated(result, verdict):
    result["modules_found"] = dict.fromkeys(result["modules_found"], True)
    result["attributes"] = {name: {"tensorflow": True, "compat.v1": True} for name in result["attributes"]}
    for claim in ("r2rt-24", "solver-11"):
        assert verdict(result, claim) == "holds"
