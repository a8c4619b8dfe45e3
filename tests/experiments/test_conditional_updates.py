"""Updates outside the branches of a cond: what leaks, what does not, and that the verdicts follow from it."""

import copy

import pytest

from experiments import conditional_updates

PAGE = conditional_updates


@pytest.mark.parametrize("kind", conditional_updates.KINDS)
def test_the_articles_wrapper_moves_the_population_at_inference(result, kind):
    assert result["forms"]["article"][kind]["moved_at_inference"]


@pytest.mark.parametrize("kind", conditional_updates.KINDS)
def test_the_librarys_wrapper_moves_it_in_training_and_not_at_inference(result, kind):
    run = result["forms"]["batch_norm_wrapper"][kind]
    assert run["moved_in_training"]
    assert set(run["drift"]) == {0.0}


def test_the_articles_offset_does_not_start_at_zero(result):
    assert any(any(run["offset_at_start"]) for run in result["forms"]["article"].values())


def test_both_claims_do_not_hold(result):
    assert {verdict["verdict"] for verdict in result["claims"].values()} == {"does not hold"}


def test_a_wrapper_that_did_not_leak_would_make_both_claims_hold(result):
    contradicting = copy.deepcopy(result)
    for form in ("article", "tf.layers"):
        contradicting["forms"][form] = copy.deepcopy(result["forms"]["batch_norm_wrapper"])
    assert conditional_updates.judge_article_05(contradicting).verdict == "holds"
    assert conditional_updates.judge_article_12(contradicting).verdict == "holds"


def test_a_wrapper_that_only_some_kinds_update_holds_under_a_condition(result):
    contradicting = copy.deepcopy(result)
    contradicting["forms"]["article"] = copy.deepcopy(result["forms"]["batch_norm_wrapper"])
    contradicting["forms"]["article"]["ref, cond v1"]["moved_in_training"] = False
    assert conditional_updates.judge_article_05(contradicting).verdict.startswith("holds if")
