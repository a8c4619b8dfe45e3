"""Rates, batch sizes and undoing: one short run, the parts that are exact, and judges fed with contradictions."""

import copy
import json

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf
from experiments import higher_learning_rates as experiment
from experiments.machinery import harness

STEPS = 30  # too few to learn much: what is learned is no matter here
SIZES = (64, 32, 32, 10)

PAGE = experiment


def test_every_rate_and_batch_size_is_run_in_both_forms(finished):
    (run,) = finished[0]["runs"]
    for optimizer, rates in experiment.RATES.items():
        lengths = {form: len(values) for form, values in run["rates"][optimizer].items()}
        assert lengths == dict.fromkeys([*experiment.FORMS, "by own statistics"], len(rates))
    assert {form: len(values) for form, values in run["batches"].items()} == dict.fromkeys(experiment.FORMS, 6)
    assert set(run["recurrent"]) == set(experiment.FORMS) and min(run["recurrent"].values()) > 0


def test_a_second_run_takes_finished_parts_from_the_first(finished, monkeypatch):
    result, folder, _ = finished
    monkeypatch.setattr(experiment, "train", lambda *_, **__: pytest.fail("it was trained again"))
    assert harness.main(experiment, ["--mode", "quick", "--steps", str(STEPS), "--output", str(folder.parent)]) == 0
    assert json.loads((folder / "result.json").read_text())["runs"] == result["runs"]


def test_with_a_batch_of_one_no_weight_below_the_layer_gets_a_gradient():
    digits = bn_graph.load("digits")
    weights = experiment.initial_weights(SIZES, seed=0)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = experiment.build(SIZES, "with", "gradient descent")
        experiment.train(session, network, weights, digits, batch=1, rate=0.1, steps=5, seed=0)
        trained = session.run(network.weights)
    for place in range(4):  # w1, b1, w2, b2: the layer above them puts out beta, whatever they say
        np.testing.assert_array_equal(trained[place], weights[place])
    assert np.abs(trained[-1]).max() > 0


def test_both_forms_start_from_the_same_weights():
    first, second = experiment.initial_weights(SIZES, seed=3), experiment.initial_weights(SIZES, seed=3)
    assert [value.shape for value in first] == [(64, 32), (32,), (32, 32), (32,), (32, 10), (10,)]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_where_the_loss_asks_for_it_the_layer_is_undone():
    values = np.random.default_rng(0).normal([5.0, -3.0, 0.5], [2.0, 0.3, 1.0], (2000, 3)).astype(np.float32)
    assert experiment.asked_for(values, steps=400, seed=0)["left"] < experiment.UNDONE


def test_the_distance_left_is_0_for_an_undone_layer_and_1_at_the_start():
    mean, variance = np.array([5.0, -3.0]), np.array([4.0, 0.09])
    undone = np.sqrt(variance + experiment.EPSILON)
    assert experiment.distance_left([(mean, variance, undone, mean)])["left"] == 0
    assert experiment.distance_left([(mean, variance, np.ones(2), np.zeros(2))])["left"] == 1


def test_the_highest_usable_rate_is_the_last_within_a_twentieth_of_the_best():
    assert experiment.highest_usable([0.9, 0.95, 0.91, 0.2], [1, 2, 3, 4]) == 3
    assert experiment.highest_usable([0.9, 0.95, 0.89, 0.2], [1, 2, 3, 4]) == 2


# --- The judges -------------------------------------------------------------------------------------------------------

HIGH, LOW = [0.9] * 7, [0.9] * 4 + [0.1] * 3


@pytest.mark.parametrize(
    ("descent", "adam", "expected"),
    [
        ((HIGH, LOW), (HIGH, LOW), "holds"),
        ((HIGH, LOW), (LOW, LOW), "holds, with a trap: not with Adam"),
        ((LOW, LOW), (HIGH, LOW), "does not hold"),
        ((LOW, HIGH), (LOW, LOW), "does not hold"),
    ],
)
def test_flags_12_follows_the_highest_usable_rates(finished, descent, adam, expected):
    result = copy.deepcopy(finished[0])
    for optimizer, (having, lacking) in (("gradient descent", descent), ("Adam", adam)):
        result["runs"][0]["rates"][optimizer] = {"with": having, "without": lacking, "by own statistics": HIGH}
    assert experiment.judge_flags_12(result).verdict == expected


@pytest.mark.parametrize(
    ("having", "recurrent", "expected"),
    [
        ([0.1, 0.5, 0.8, 0.9, 0.95, 0.95], 0.8, "holds"),
        ([0.1, 0.5, 0.8, 0.9, 0.95, 0.95], 0.9, "does not hold"),
        ([0.1, 0.5, 0.8, 0.8, 0.80, 0.95], 0.8, "does not hold"),
        ([0.9, 0.9, 0.9, 0.95, 0.95, 0.95], 0.8, "does not hold"),
    ],
)
def test_flags_13_needs_large_batches_to_win_and_small_ones_and_a_recurrent_network_to_lose(
    finished, having, recurrent, expected
):
    result = copy.deepcopy(finished[0])
    result["runs"][0]["batches"] = {"with": having, "without": [0.9] * 6}
    result["runs"][0]["recurrent"] = {"with": recurrent, "without": 0.9}
    assert experiment.judge_flags_13(result).verdict == expected


@pytest.mark.parametrize(
    ("asked", "put_in", "ordinary", "expected"),
    [
        (0.01, 0.01, 0.01, "holds"),
        (0.01, 0.01, 1.5, "does not hold"),
        (0.01, 0.9, 1.5, "does not hold"),
        (0.9, 0.9, 1.5, "does not hold"),
    ],
)
def test_solver_16_follows_what_is_left_of_the_distance(finished, asked, put_in, ordinary, expected):
    result = copy.deepcopy(finished[0])
    for name, left in (("asked for", asked), ("put in", put_in), ("ordinary", ordinary)):
        result["runs"][0]["undo"][name]["left"] = left
    assert experiment.judge_solver_16(result).verdict == expected
