"""The document's two networks, on the bundled digits; and verdicts that change with the measurement."""

import copy
import json

import numpy as np
import pytest

from experiments import model_solver


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("results")
    assert model_solver.main(["--mode", "quick", "--output", str(output)]) == 0
    return json.loads((output / "model_solver" / "result.json").read_text()), output


@pytest.fixture
def result(finished):
    return copy.deepcopy(finished[0])


def verdict(result, claim):
    return model_solver.EXPERIMENT.claims[claim](result).verdict


def test_both_networks_have_a_value_for_each_of_ten_epochs(result):
    for name in model_solver.CURVES:
        for form in ("with", "without"):
            assert len(result["runs"][0][name][form]) == 10 == len(model_solver.DOCUMENT[name][form])


def test_exact_claims_come_out_the_same_on_every_machine(result):
    assert result["train_shape"] == {"shape": [55_000, 784], "steps": 1718, "left_out": 24}
    verdicts = {claim: result["claims"][claim]["verdict"] for claim in result["claims"]}
    assert verdicts["solver-01"] == verdicts["solver-08"] == "holds"
    assert verdicts["solver-05"] == "holds if μ and σ are those that inference uses"
    assert verdicts["solver-14"] == "holds if is_training is False"
    assert verdicts["solver-15"] == "holds if the last of the 2 values is meant"


def test_the_document_s_own_figures_satisfy_its_claims(result):
    result["runs"] = [
        {"test": model_solver.DOCUMENT_TEST, "shift": {"with": 0.1, "without": 0.1}} | model_solver.DOCUMENT
    ]
    assert verdict(result, "solver-06") == "holds"
    assert verdict(result, "solver-07") == "holds"


def test_an_activation_that_gets_the_dense_layer_contradicts_solver_01(result):
    result["what_the_activations_get"][1] = "batchnorm/layer1/dense/BiasAdd"
    assert verdict(result, "solver-01") == "does not hold"


def test_inputs_that_do_not_shift_contradict_solver_02(result):
    assert verdict(result, "solver-02") == "holds if it is called internal covariate shift"
    result["runs"][0]["shift"] = {"with": 0.0, "without": 0.0}
    assert verdict(result, "solver-02") == "does not hold"


def test_solver_05_depends_on_what_training_normalizes_with(result):
    result["statistics_in_use"]["training_changed_by_other_moving_statistics"] = 2.0
    assert verdict(result, "solver-05") == "holds"
    result["statistics_in_use"]["moved_by_inference"] = 0.1
    assert verdict(result, "solver-05") == "does not hold"


def test_solver_06_depends_on_both_networks_figures(result):
    result["runs"] = [{"test": {"with": [0.05, 0.985], "without": [0.2, 0.95]}}]
    assert verdict(result, "solver-06") == "holds if only the order of the two is meant"
    result["runs"] = [{"test": {"with": [0.3, 0.92], "without": [0.2, 0.95]}}]
    assert verdict(result, "solver-06") == "does not hold"


@pytest.mark.parametrize(
    ("higher_in", "expected"),
    [(["validation"], "holds if only train loss is meant"), (["train", "validation"], "does not hold")],
)
def test_one_epoch_with_a_higher_loss_changes_solver_07(result, higher_in, expected):
    result["runs"] = [copy.deepcopy(model_solver.DOCUMENT)]
    for part in higher_in:
        result["runs"][0][f"{part}_loss"]["with"][3] = 9.0
    assert verdict(result, "solver-07") == expected


def test_another_number_of_steps_contradicts_solver_08(result):
    result["train_shape"]["steps"] = 1719
    assert verdict(result, "solver-08") == "does not hold"


def test_solver_14_depends_on_both_phases(result):
    result["evaluation"]["training"] = result["evaluation"]["inference"]
    assert verdict(result, "solver-14") == "holds"
    result["evaluation"]["inference"]["weighted"][0] += 0.01
    assert verdict(result, "solver-14") == "does not hold"


def test_solver_15_depends_on_what_is_returned(result):
    result["returned_loss"]["values"] = 1
    assert verdict(result, "solver-15") == "holds"
    result["returned_loss"] |= {"equal_to_before": 3, "equal_to_after": 0}
    assert verdict(result, "solver-15") == "does not hold"


def test_a_finished_training_is_taken_up_and_not_repeated(finished, capsys):
    first, output = finished
    assert model_solver.main(["--mode", "quick", "--output", str(output)]) == 0
    assert "steps/s" not in capsys.readouterr().err
    again = json.loads((output / "model_solver" / "result.json").read_text())
    assert again["runs"] == first["runs"]


def test_a_training_that_stops_in_its_fourth_epoch_ends_with_the_same_numbers(finished, tmp_path, monkeypatch):
    first, _ = finished
    taken = []

    def stop_in_the_fourth(label):
        def wrap(steps):
            taken.append(steps)
            if len(taken) == 4:
                raise KeyboardInterrupt
            return steps

        return wrap

    monkeypatch.setattr(model_solver.harness, "progress_bar", stop_in_the_fourth)
    assert model_solver.main(["--mode", "quick", "--output", str(tmp_path)]) == 130
    assert model_solver.main(["--mode", "quick", "--output", str(tmp_path)]) == 0
    assert taken[4] == range(120, 160)  # the epoch that was cut off is the first to be repeated
    again = json.loads((tmp_path / "model_solver" / "result.json").read_text())
    for name in model_solver.CURVES:
        np.testing.assert_array_equal(again["runs"][0][name]["with"], first["runs"][0][name]["with"])


def test_the_figure_is_drawn_from_the_result_alone(result, tmp_path):
    model_solver.draw(result | {"data": "mnist"}, tmp_path)  # with the document's curves beside
    assert 10_000 < (tmp_path / "model_solver.png").stat().st_size < 300_000
