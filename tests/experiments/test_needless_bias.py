"""A bias before batch norm: the verdicts, and that each would change with the measurement."""

from experiments import needless_bias

PAGE = needless_bias


def test_adam_walks_the_bias_and_gradient_descent_does_not(result):
    walked = {name: each["walked"][-1] for name, each in result["adam"].items()}
    assert walked["Adam"] > needless_bias.ADAM_RATE > 100 * walked["gradient descent"]


def test_a_bias_with_a_gradient_makes_neither_hold(result, verdict):
    result["bias"]["largest_gradient"] = result["adam"]["Adam"]["largest_gradient"] = 0.1
    assert [verdict(result, claim) for claim in ("r2rt-05", "solver-12")] == ["does not hold"] * 2
