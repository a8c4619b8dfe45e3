"""Recurrent batch norm: one short run, the statistics that are put in place of a cell's own, and the judge."""

import copy
import json
import os

import numpy as np
import pytest

import bn_graph
from experiments import recurrent as experiment
from experiments.machinery import harness, lstm

STEPS = 16

PAGE = experiment


def test_every_variant_is_trained_and_the_small_gamma_scored_with_every_kind_of_statistics(finished):
    runs = finished[0]["runs"]
    assert [(run["task"], run["variant"]) for run in runs] == [("pixels", variant) for variant in experiment.VARIANTS]
    for run in runs:
        kinds = {experiment.PER_STEP, experiment.AVERAGED, experiment.POOLED}
        rows = {f"first {count}" for count in (1, 8, 48)}
        assert run["statistics"].keys() == (kinds | rows if run["variant"] == experiment.SMALL else set())
        assert run["curve"][-1]["step"] == STEPS


def test_scores_with_other_statistics_leave_the_cell_s_own_in_place(finished):
    """Else the test accuracy, taken before, would not be the one of the first kind, which are the cell's own."""
    for run in finished[0]["runs"]:
        if run["variant"] == experiment.SMALL:
            assert run["statistics"][experiment.PER_STEP] == run["test"]  # the digits' test set is scored in whole


def test_the_loss_falls_with_batch_norm(finished):
    # Of the first state that is not drawn: sixteen steps are few.
    curve = next(run["curve"] for run in finished[0]["runs"] if run["variant"] == experiment.ZERO)
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_the_first_steps_are_measured_from_both_states(finished):
    rows = finished[0]["first_steps"]
    assert [(row["epsilon"], row["noise"]) for row in rows] == [
        (epsilon, noise) for epsilon in (experiment.EPSILON, experiment.PAPER_EPSILON) for noise in (0.0, 0.1)
    ]
    for row in rows:
        assert (row["variance_by_step"][0] == 0.0) == (row["noise"] == 0.0)


def test_a_second_run_takes_finished_trainings_from_the_first(finished, monkeypatch):
    result, folder, _ = finished
    monkeypatch.setattr(experiment, "measure_variant", lambda *_: pytest.fail("a network was trained again"))
    monkeypatch.setattr(experiment, "first_steps", lambda _: result["first_steps"])
    assert harness.main(experiment, ["--mode", "quick", "--steps", str(STEPS), "--output", str(folder.parent)]) == 0
    assert json.loads((folder / "result.json").read_text())["runs"] == result["runs"]


# --- Parts ------------------------------------------------------------------------------------------------------------


def test_full_mode_has_all_three_tasks_and_the_zero_start_on_one(monkeypatch):
    monkeypatch.setattr(experiment, "measure_variant", lambda *of: {"task": of[1], "steps": of[2], "variant": of[3]})
    monkeypatch.setattr(experiment.kept_work, "measured_once", lambda *of, **_: of[3]())
    monkeypatch.setattr(experiment, "first_steps", lambda _: [])
    full = experiment.FULL
    result = experiment.run(harness.Settings("recurrent", "full", None, None, [0], 100, None, own=full.own))
    assert result["tasks"] == {"rows": 100, "pixels": 15, "permuted pixels": 25}
    assert all(run["steps"] == result["tasks"][run["task"]] for run in result["runs"])
    assert [run["task"] for run in result["runs"] if run["variant"] == experiment.ZERO] == ["pixels"]
    assert len(result["runs"]) == 9


def test_pixels_are_in_order_or_permuted_alike_for_all_images():
    images = np.arange(32.0).reshape(2, 16)  # two images of 4×4
    pixels = lstm.sequences(images, "pixels")
    np.testing.assert_array_equal(pixels[:, :, 0], images)
    permuted = lstm.sequences(images, "permuted pixels")
    assert permuted.shape == pixels.shape == (2, 16, 1)
    assert sorted(permuted[0, :, 0]) == sorted(images[0])
    assert permuted[0, :, 0].tolist() != images[0].tolist()
    np.testing.assert_allclose(permuted[1] - permuted[0], 16.0)
    np.testing.assert_array_equal(lstm.sequences(images, "rows")[1, 3], [28, 29, 30, 31])


def test_shared_statistics_are_those_of_all_steps_values_if_pooled():
    values = np.random.RandomState(0).normal(np.arange(3.0)[:, None, None], 2.0, (3, 50, 4))  # [step, example, unit]
    mean, variance = experiment.shared(values.mean(1), values.var(1), pooled=True)
    np.testing.assert_allclose(mean, np.broadcast_to(values.mean((0, 1)), (3, 4)))
    np.testing.assert_allclose(variance, np.broadcast_to(values.var((0, 1)), (3, 4)))
    averaged = experiment.shared(values.mean(1), values.var(1), pooled=False)[1]
    np.testing.assert_allclose(averaged[1], values.var(1).mean(0))


def test_the_first_rows_are_followed_by_the_last_of_them():
    mean = np.arange(8.0).reshape(4, 2)
    got, _ = experiment.first(2, mean, mean)
    np.testing.assert_array_equal(got, [[0, 1], [2, 3], [2, 3], [2, 3]])


# --- The judge --------------------------------------------------------------------------------------------------------


def made_up(*, lost=0.3, small_gamma=0.2, zero_start=0.1, learned=True):
    """A result in which shared statistics, gamma 1 and a zero state cost as much as is said, on one task."""
    own = 0.9 if learned else 0.2

    def trained(variant, test):
        kinds = {experiment.PER_STEP: own, experiment.AVERAGED: own - lost, experiment.POOLED: own - lost - 0.1}
        statistics = {} if variant == experiment.PLAIN else kinds
        curve = [{"step": step, "validation": test} for step in (5, 10)]
        return {"task": "pixels", "variant": variant, "test": test, "statistics": statistics, "curve": curve}

    rows = [
        {"epsilon": epsilon, "noise": noise, "gradient_norm": norm, "variance_by_step": [0.0, 1.0]}
        for epsilon in (experiment.EPSILON, experiment.PAPER_EPSILON)
        for noise, norm in ((0.0, None), (experiment.NOISE, 1.0))
    ]
    return {
        "tasks": {"pixels": 10},
        "runs": [
            trained(experiment.PLAIN, own - 0.1),
            trained(experiment.SMALL, own),
            trained(experiment.LARGE, own - small_gamma),
            trained(experiment.ZERO, own - zero_start),
        ],
        "first_steps": rows,
    }


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        ({}, "does not hold"),
        ({"small_gamma": 0.0}, "does not hold"),
        ({"zero_start": 0.01}, "does not hold"),
        ({"zero_start": -0.1, "small_gamma": -0.1}, "holds"),
        ({"lost": 0.001}, "does not hold"),
    ],
)
def test_the_verdict_follows_the_measurements(result, verdict):
    assert experiment.judge_r2rt_25(made_up(**result)).verdict == verdict


@pytest.mark.parametrize(
    ("lead", "step"),
    [
        ([0.3, 0.0, 0.2, 0.2], 30),
        ([0.2, 0.2, 0.2, 0.2], 10),
        ([0.2, 0.05, 0.2, 0.05], None),
        ([-0.3, -0.3, 0.0, 0.2], None),
    ],
)
def test_the_curves_have_parted_where_the_bn_lstm_is_ahead_at_two_marks_in_a_row(lead, step):
    runs = [
        {
            "task": "pixels",
            "variant": variant,
            "curve": [{"step": 10 * mark, "validation": 0.5 + value} for mark, value in enumerate(values, 1)],
        }
        for variant, values in ((experiment.PLAIN, [0.0] * 4), (experiment.SMALL, lead))
    ]
    assert experiment.parted({"runs": runs}, "pixels") == step


def test_a_gradient_that_overflowed_is_reported_as_infinite():
    assert "is inf times" in experiment.judge_r2rt_25(made_up()).note


def test_a_task_that_was_not_learned_has_no_say_unless_all_were_not():
    result = made_up(lost=0.0)
    unlearned = copy.deepcopy(made_up(lost=0.15, learned=False)["runs"])
    result["runs"] += [run | {"task": "rows"} for run in unlearned]
    result["tasks"]["rows"] = 10
    assert experiment.judge_r2rt_25(result).verdict == "does not hold"
    assert experiment.judge_r2rt_25(made_up(lost=0.15, learned=False)).note.startswith("Needed it is")


@pytest.mark.mnist
@pytest.mark.skipif(not os.environ.get("MNIST_DIR"), reason="MNIST_DIR is not set")
def test_black_first_pixels_have_no_variance_and_multiply_the_gradients():
    data = bn_graph.load("mnist")
    settings = harness.Settings("recurrent", "full", data, None, [0], 1, None)
    result = {"first_steps": experiment.first_steps(settings)}
    assert max(result["first_steps"][0]["variance_by_step"][:6]) < 1e-12
    assert experiment.times_exploded(result, experiment.EPSILON) > 100  # 10⁵ was measured
