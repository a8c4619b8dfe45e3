"""The convolutional helper: what its recipe orders, and that the verdicts follow from the measurements."""

import pytest

from experiments import conv_normalizer as experiment
from experiments.conv_normalizer import FRESH, INSIDE, KINDS, LIBRARY, STALE, SUGGESTED

PAGE = experiment


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_orders_the_suggested_averages_after_the_assigns(result, kind):
    assert result["ordered"][f"{SUGGESTED}, {kind}"] == {"stores": 2, "writes": 2, "writes_after_stores": 0}
    assert result["ordered"][f"{INSIDE}, {kind}"]["writes_after_stores"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_helper_always_averages_the_present_batch(result, kind):
    assert result["race"][LIBRARY][kind]["outcomes"] == {FRESH: result["sessions"]}


def test_resource_variables_averaged_inside_the_dependency_are_the_present_steps(result):
    assert result["race"][INSIDE]["resource"]["outcomes"] == {FRESH: result["sessions"]}


def test_average_is_none_before_apply_and_starts_at_the_variables_start(result):
    assert result["average"]["before_apply"] == "None"
    assert result["average"]["starts_at"] == [[0.0], [1.0]]
    assert result["average"]["share_of_batch_after_one_step"] == pytest.approx(1 - experiment.DECAY, abs=1e-6)


def test_trained_networks_predict_real_digits(result):
    assert all(each[order]["accuracy"] > 0.8 for each in result["trained"] for order in (SUGGESTED, LIBRARY))


def test_the_recipe_does_not_hold_as_suggested_and_averages_need_the_assigner(result):
    verdicts = {claim: each["verdict"] for claim, each in result["claims"].items()}
    assert verdicts["qa-06"] == "does not hold"
    assert verdicts["qa-07"] == "holds, with a trap: there is no average before get_assigner has been called"


def test_qa_06_follows_the_counted_outcomes(result):
    for kind in KINDS:
        result["race"][SUGGESTED][kind]["outcomes"] = {FRESH: result["sessions"]}
    assert experiment.judge_qa_06(result).verdict == "holds, with a trap: nothing in the graph orders it"
    result["ordered"][f"{SUGGESTED}, resource"]["writes_after_stores"] = 2
    assert experiment.judge_qa_06(result).verdict == "holds"
    for order in (SUGGESTED, INSIDE):
        for kind in KINDS:
            result["race"][order][kind]["outcomes"] = {STALE: result["sessions"]}
    assert experiment.judge_qa_06(result).verdict == "does not hold"


def test_qa_07_follows_what_average_returns_and_what_inference_uses(result):
    result["average"]["before_apply"] = "<tf.Variable>"
    assert experiment.judge_qa_07(result).verdict == "holds"
    result["average"]["inference_from_averages"] = 1.0
    assert experiment.judge_qa_07(result).verdict == "does not hold"
