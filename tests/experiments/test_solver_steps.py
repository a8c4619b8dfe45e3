"""What single steps of the document's Solver use and return; and verdicts that change with the measurement."""

from experiments import solver_steps

PAGE = solver_steps


def test_the_shape_of_the_training_set_is_mnists(result):
    assert result["train_shape"] == {"shape": [55_000, 784], "steps": 1718, "left_out": 24}


def test_solver_05_depends_on_what_training_normalizes_with(result, verdict):
    result["statistics_in_use"]["training_changed_by_other_moving_statistics"] = 2.0
    assert verdict(result, "solver-05") == "holds"
    result["statistics_in_use"]["moved_by_inference"] = 0.1
    assert verdict(result, "solver-05") == "does not hold"


def test_another_number_of_steps_contradicts_solver_08(result, verdict):
    result["train_shape"]["steps"] = 1719
    assert verdict(result, "solver-08") == "does not hold"


def test_solver_15_depends_on_what_is_returned(result, verdict):
    result["returned_loss"]["values"] = 1
    assert verdict(result, "solver-15") == "holds"
    result["returned_loss"] |= {"equal_to_before": 3, "equal_to_after": 0}
    assert verdict(result, "solver-15") == "does not hold"
