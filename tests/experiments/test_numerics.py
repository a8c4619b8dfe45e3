"""The algebraic claims: their verdicts, and that each verdict would change with the measurement."""

import copy

import pytest

from experiments import numerics

PAGE = numerics


def test_the_documents_loss_breaks_at_the_end_of_float32(result):
    # exp(−g) is a subnormal float32 from g = 87.34 on, and 0 from 103.97 on; softmax adds the 1 of the other class.
    assert result["claims"]["r2rt-11"]["verdict"].startswith("holds, with a trap: it becomes NaN or infinite where")
    broken = [row["gap"] for row in result["log_softmax"] if numerics.is_broken(row["gradient"])]
    # The kernel's exp is 0 a little earlier, and the place is found to a hundredth.
    assert 86 < min(broken) < 88
    finite = [row["gap"] for row in result["log_softmax"] if not numerics.is_broken(row["gradient"])]
    assert 0 < min(broken) - max(finite) <= numerics.GAP_TO
    assert not any(numerics.is_broken(row["stable"]) for row in result["log_softmax"])


def changed(result: dict, part: str, **values) -> dict:
    contradicting = copy.deepcopy(result)
    target = contradicting[part]
    for each in target if isinstance(target, list) else [target]:
        each.update(values)
    return contradicting


@pytest.mark.parametrize(
    ("judge", "part", "values", "verdict"),
    [
        (numerics.judge_r2rt_03, "normalized", {"variance": 1.0}, "holds"),
        (numerics.judge_r2rt_03, "normalized", {"largest_mean": 0.1}, "does not hold"),
        (numerics.judge_r2rt_04, "shape", {"skewness": [2.0, 0.0], "kurtosis": [9.0, 3.0]}, "holds"),
        (numerics.judge_r2rt_06, "formulas", {"difference": 1e-7}, "holds"),
        (numerics.judge_r2rt_06, "formulas", {"difference": 1.0}, "does not hold"),
        (
            numerics.judge_r2rt_11,
            "log_softmax",
            {"loss": "1.0", "loss_if_right": "1.0", "loss_with_gradient": "1.0", "gradient": "1.0"},
            "holds",
        ),
        (numerics.judge_solver_03, "dead_relu", {"gradient_bare": 0.5}, "does not hold"),
        (numerics.judge_solver_04, "identity", {"another_batch": 1e-9}, "holds"),
        (numerics.judge_solver_04, "identity", {"same_batch": 1.0}, "does not hold"),
        (numerics.judge_article_02, "channels", {"constant_channel_is_nan": False}, "holds"),
        (numerics.judge_article_02, "channels", {"largest_difference": 0.1}, "does not hold"),
        (numerics.judge_article_03, "recursion", {"tf.layers": 0.5}, "does not hold"),
    ],
)
def test_a_contradicting_measurement_changes_the_verdict(result, judge, part, values, verdict):
    assert judge(changed(result, part, **values)).verdict == verdict
