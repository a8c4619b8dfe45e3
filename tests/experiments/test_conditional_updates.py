"""Updates outside the branches of a cond: what leaks, what does not, and that the verdicts follow from it."""

import copy

import pytest

import bn_graph
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


@pytest.mark.parametrize("order", conditional_updates.ORDERS)
@pytest.mark.parametrize("size", conditional_updates.REQUEST_SIZES)
def test_in_service_the_articles_wrapper_changes_what_the_network_answers_and_the_librarys_does_not(
    result, size, order
):
    (article,), (library,) = (
        conditional_updates.served(result, form, size, order) for form in ("article", "batch_norm_wrapper")
    )
    assert len(article) == len(conditional_updates.SCORED_AFTER)
    assert len(set(article)) > 2
    assert set(library) == {library[0]} and library[0] > 0.5


def test_sorted_requests_begin_with_the_first_class_and_end_with_the_last():
    split = bn_graph.load("digits").test
    rows = conditional_updates.requests(split, 32, conditional_updates.SORTED, seed=0)
    classes = split.labels[rows].argmax(2)
    assert rows.shape == (300, 32)
    assert set(classes[0]) == {0} and set(classes[-1]) == {9}


def test_a_wrapper_that_did_not_leak_would_make_both_claims_hold(result):
    contradicting = copy.deepcopy(result)
    for form in ("article", "tf.layers"):
        contradicting["forms"][form] = copy.deepcopy(result["forms"]["batch_norm_wrapper"])
    assert conditional_updates.judge_article_05(contradicting).verdict == "holds"
    assert conditional_updates.judge_article_12(contradicting).verdict == "holds"


def test_article_12_falls_if_they_differ_in_training(result):
    contradicting = copy.deepcopy(result)
    contradicting["forms"]["article"]["ref, cond v1"]["moved_in_training"] = False
    assert conditional_updates.judge_article_12(contradicting).verdict == "does not hold"


def test_a_wrapper_that_only_some_kinds_update_holds_if_the_documents_is_among_them(result):
    contradicting = copy.deepcopy(result)
    contradicting["forms"]["article"] = copy.deepcopy(result["forms"]["batch_norm_wrapper"])
    contradicting["forms"]["article"]["resource, cond v2"]["moved_in_training"] = False
    expected = "holds, with a trap: nothing is updated with resource, cond v2"
    assert conditional_updates.judge_article_05(contradicting).verdict == expected
    contradicting["forms"]["article"]["ref, cond v1"]["moved_in_training"] = False
    assert conditional_updates.judge_article_05(contradicting).verdict == "does not hold"
