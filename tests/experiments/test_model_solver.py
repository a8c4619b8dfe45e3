"""The document's two networks, on the bundled digits; and verdicts that change with the measurement."""

import copy
import json
import re
import shutil

import pytest

from bn_graph.tf1 import legacy_layers, tf
from experiments import model_solver
from experiments.machinery import harness

PAGE = model_solver


def test_both_networks_have_a_value_for_each_of_ten_epochs(result):
    for name in model_solver.CURVES:
        for form in ("with", "without"):
            assert len(result["runs"][0][name][form]) == 10 == len(model_solver.DOCUMENT[name][form])


def test_exact_claims_come_out_the_same_on_every_machine(result):
    verdicts = {claim: result["claims"][claim]["verdict"] for claim in result["claims"]}
    assert verdicts["solver-01"] == "holds"
    assert verdicts["solver-14"] == "holds, with a trap: with is_training True each batch size gives another loss"


def test_the_document_s_own_figures_satisfy_its_claims(result, verdict):
    result["runs"] = [
        {"test": model_solver.DOCUMENT_TEST, "shift": {"with": 0.1, "without": 0.1}} | model_solver.DOCUMENT
    ]
    assert verdict(result, "solver-06") == "holds"
    assert verdict(result, "solver-07") == "holds"


def test_an_activation_that_gets_the_dense_layer_contradicts_solver_01(result, verdict):
    result["what_the_activations_get"][1] = "batchnorm/layer1/dense/BiasAdd"
    assert verdict(result, "solver-01") == "does not hold"


def test_a_network_with_batch_norm_after_the_activation_contradicts_solver_01(result, verdict):
    with tf.Graph().as_default() as graph, tf.variable_scope("batchnorm"):
        hidden = tf.nn.relu(legacy_layers().dense(tf.ones([4, 3]), 2))
        legacy_layers().batch_normalization(hidden, training=True)
    result["what_the_activations_get"] = model_solver.what_the_activations_get(graph, "batchnorm")
    assert result["what_the_activations_get"] == ["batchnorm/dense/BiasAdd"]
    assert verdict(result, "solver-01") == "does not hold"


def test_inputs_that_do_not_shift_contradict_solver_02(result, verdict):
    assert verdict(result, "solver-02") == "holds, with a trap: the term for it is internal covariate shift"
    result["runs"][0]["shift"] = {"with": 0.0, "without": 0.0}
    assert verdict(result, "solver-02") == "does not hold"


def test_solver_06_depends_on_both_networks_figures(result, verdict):
    result["runs"] = [{"test": {"with": [0.05, 0.985], "without": [0.2, 0.95]}}]
    assert verdict(result, "solver-06") == "does not hold"
    result["runs"] = [{"test": {"with": [0.3, 0.92], "without": [0.2, 0.95]}}]
    assert verdict(result, "solver-06") == "does not hold"


@pytest.mark.parametrize(
    ("higher_in", "expected"),
    [(["validation"], "does not hold"), (["train", "validation"], "does not hold"), ([], "holds")],
)
def test_one_epoch_with_a_higher_loss_changes_solver_07(result, higher_in, expected, verdict):
    result["runs"] = [copy.deepcopy(model_solver.DOCUMENT)]
    for part in higher_in:
        result["runs"][0][f"{part}_loss"]["with"][3] = 9.0
    assert verdict(result, "solver-07") == expected


def test_solver_14_depends_on_both_phases(result, verdict):
    result["evaluation"]["training"] = result["evaluation"]["inference"]
    assert verdict(result, "solver-14") == "holds"
    result["evaluation"]["inference"]["weighted"][0] += 0.01
    assert verdict(result, "solver-14") == "does not hold"


def test_a_finished_training_is_taken_up_and_not_repeated(finished, tmp_path, capsys):
    shutil.copytree(finished.folder, tmp_path / "model_solver")
    assert harness.main(model_solver, ["--mode", "quick", "--output", str(tmp_path)]) == 0
    # The progress bar starts where the training stopped, and times no step.
    assert re.search(r"\d steps/s", capsys.readouterr().err) is None
    again = json.loads((tmp_path / "model_solver" / "result.json").read_text())
    assert again["runs"] == finished.result["runs"]
