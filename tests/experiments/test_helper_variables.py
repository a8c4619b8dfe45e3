"""The convolutional helper's variables: that the verdicts follow from the measurements."""

import copy

import pytest

from experiments import helper_variables as experiment

PAGE = experiment


def test_the_four_claims_hold(result):
    assert {each["verdict"] for each in result["claims"].values()} == {"holds"}


@pytest.mark.parametrize("key", ["scaled_from_modern", "unscaled_from_given_moments", "gamma_changes_unscaled"])
def test_qa_02_does_not_hold_if_gamma_acts_or_the_formula_differs(result, key):
    result["function"][key] = 0.5
    assert experiment.judge_qa_02(result).verdict == "does not hold"


@pytest.mark.parametrize("key", ["convolution_from_012", "dense_from_0"])
def test_qa_03_does_not_hold_for_moments_over_other_axes(result, key):
    result["axes"][key] = 0.5
    assert experiment.judge_qa_03(result).verdict == "does not hold"


def test_qa_04_does_not_hold_for_another_start_or_a_missing_shadow(result):
    without_shadow = copy.deepcopy(result)
    without_shadow["variables"] = without_shadow["variables"][:-1]
    assert experiment.judge_qa_04(without_shadow).verdict == "does not hold"
    result["variables"][0]["trainable"] = True
    assert experiment.judge_qa_04(result).verdict == "does not hold"


@pytest.mark.parametrize("key", ["outputs_from_batch", "stored_variance_from_batch"])
def test_qa_05_does_not_hold_if_the_batch_is_not_what_is_used_and_stored(result, key):
    result["training_step"][key] = 0.5
    assert experiment.judge_qa_05(result).verdict == "does not hold"
