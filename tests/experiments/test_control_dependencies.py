"""What a control dependency orders: the experiment's outcomes, and that its verdict follows from them."""

import copy

import pytest

from experiments import control_dependencies

PAGE = control_dependencies


@pytest.mark.parametrize("kind", ["ref", "resource"])
def test_the_two_sums_of_the_document_never_vary(result, kind):
    assert result["outcomes"][kind]["alone"] == {"3": result["sessions"]}
    assert result["outcomes"][kind]["after"] == {"12": result["sessions"]}


def test_a_resource_variable_read_before_the_block_can_keep_its_old_value(result):
    # Nothing orders the read: on a busy machine it may, now and then, come after the assign.
    assert result["outcomes"]["resource"]["read before"].get("3", 0) > result["sessions"] / 2


def test_one_session_that_comes_out_otherwise_makes_the_claim_not_hold(result):
    contradicting = copy.deepcopy(result)
    contradicting["outcomes"]["ref"]["after"] = {"12": 99, "3": 1}
    assert control_dependencies.judge_article_09(contradicting).verdict == "does not hold"


def test_reads_that_always_see_the_assign_make_it_hold_without_a_trap(result):
    contradicting = copy.deepcopy(result)
    for kind in contradicting["outcomes"]:
        contradicting["outcomes"][kind]["read before"] = {"12": result["sessions"]}
    assert control_dependencies.judge_article_09(contradicting).verdict == "holds"
