"""The document's loop, which scores its training graph on the test set: what leaks, and what the verdicts follow from."""

import pytest

from experiments import scoring_leak

PAGE = scoring_leak
STEPS = 2000  # of the run that the tests share


def test_the_share_of_test_batches_is_the_sum_of_their_weights(finished):
    result, _, _ = finished
    # The k-th scoring from the last is followed by 49 + 51·k updates of 0.999 each.
    expected = sum(0.001 * 0.999 ** (49 + 51 * k) for k in range(STEPS // 50))
    assert result["share_of_test_batches"] == pytest.approx(expected)
    assert 0.017 < scoring_leak.share_of_test_batches(10_000) < 0.02


def test_the_documents_loop_moves_the_statistics_and_not_the_weights(finished):
    loop = finished[0]["runs"][0]["document_loop"]
    assert loop["same_weights"]
    assert 0 < loop["means_moved"] < loop["means_moved_at_most"] < 0.1
    assert loop["last_scored_step"] == STEPS - 50
    assert len(loop["scores"]) == STEPS // 50


def test_the_update_is_a_dependency_and_averages_the_biased_variance(finished):
    update = finished[0]["update"]
    assert (len(update["statistics"]), update["trainable"], update["moved"]) == (4, 0, 4)
    assert update["ratio_to_biased"] == pytest.approx(1, abs=1e-3)
    assert update["ratio_to_unbiased"] == pytest.approx(59 / 60, abs=1e-3)
    assert finished[0]["claims"]["r2rt-18"]["verdict"].startswith("holds, with a trap: scoring the training graph")


def test_the_last_bias_of_build_graph_is_left_out(finished):
    result, _, _ = finished
    assert result["last_bias"]["build_graph"] == {"trainable": True, "has_gradient": False, "largest_after_20_steps": 0}
    assert result["last_bias"]["first graph"]["has_gradient"]
    assert result["claims"]["r2rt-22"]["verdict"] == "does not hold"


def test_r2rt_18_falls_with_a_trainable_and_with_a_resting_statistic(finished, verdict_if):
    result, _, _ = finished
    for change in ({"trainable": 1}, {"moved": 0}):
        assert verdict_if("r2rt-18", result, update=result["update"] | change) == "does not hold"
    paper = result["update"] | {"ratio_to_biased": 60 / 59, "ratio_to_unbiased": 1.0}
    assert "the paper's, with m/(m−1)" in scoring_leak.judge_r2rt_18(result | {"update": paper}).note


@pytest.mark.parametrize(
    ("printed", "population", "expected"),
    [
        (0.9540, 0.9510, "holds"),
        (0.9540, 0.9400, "holds, with a trap: with moving statistics it is another"),
        (0.9700, 0.9532, "does not hold"),
        (0.9700, 0.9400, "does not hold"),
    ],
)
def test_r2rt_19_depends_on_both_figures(finished, printed, population, expected, verdict_if):
    result, _, _ = finished
    loop = result["runs"][0]["document_loop"] | {"last_score": printed}
    assert verdict_if("r2rt-19", result, document_loop=loop, test_accuracy_after=population) == expected


def test_r2rt_22_holds_with_a_bias_that_moves(finished, verdict_if):
    result, _, _ = finished
    used = result["last_bias"] | {"build_graph": result["last_bias"]["first graph"]}
    assert verdict_if("r2rt-22", result, last_bias=used) == "holds"
