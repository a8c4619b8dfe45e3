"""A checkpoint is broken and repaired on the digits: what must hold whatever the machine."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf
from experiments.demos import repaired_checkpoint
from experiments.machinery.programs import UsageError

STEPS = 300  # of digits; the moving averages' memory is a thousand, so trained properly is not yet as good as repaired


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("results")
    assert repaired_checkpoint.main(["--data", "digits", "--steps", str(STEPS), "--output", str(output)]) == 0
    return output / repaired_checkpoint.NAME


@pytest.fixture(scope="module")
def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def errors(audit: dict) -> set[str]:
    return {finding["code"] for finding in audit["findings"] if finding["level"] == "error"}


def test_the_audit_finds_what_was_broken_and_nothing_after_the_repair(result):
    assert result["audit_before"]["status"] == 1
    assert {"BN001", "BN002"} <= errors(result["audit_before"])
    assert all(finding["layers"] == ["bn1", "bn2"] for finding in result["audit_before"]["findings"])
    assert result["audit_after"]["status"] == 0
    assert not errors(result["audit_after"])


def test_the_repair_gives_the_accuracy_that_batch_statistics_have_with_the_weights_as_they_were(result):
    images = 360  # of the test set; two standard errors of their share is how far two estimates of a population may be
    chance = 2 * np.sqrt(result["accuracy_after"] * (1 - result["accuracy_after"]) / images)
    assert result["accuracy_before"] < result["accuracy_after"] - chance
    assert result["accuracy_after"] == pytest.approx(result["accuracy_of_batch_statistics"], abs=chance)
    assert result["weights_unchanged"] and result["weights_as_trained_properly"]


def test_an_image_alone_is_predicted_as_among_all(result):
    assert result["alone"]["after"]["images"] == repaired_checkpoint.ALONE
    assert result["alone"]["after"]["same_predictions_at_once"]


def test_the_new_statistics_are_those_of_the_training_images_and_the_old_checkpoint_is_as_it_was(result):
    broken, repaired = (tf.train.load_checkpoint(result["checkpoints"][name]) for name in ("broken", "repaired"))
    assert np.all(broken.get_tensor("bn1/moving_mean") == 0.0) and np.all(broken.get_tensor("bn1/moving_variance") == 1)
    images = bn_graph.load("digits").train.images[: repaired_checkpoint.RECALIBRATED_ON].astype(np.float64)
    inputs = images @ repaired.get_tensor("w1")
    # Relative: sums of up to 64 products in float32, over batches.
    np.testing.assert_allclose(repaired.get_tensor("bn1/moving_mean"), inputs.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(repaired.get_tensor("bn1/moving_variance"), inputs.var(0), rtol=1e-2)


def test_the_figure_is_drawn_from_the_result_alone(folder, result, tmp_path):
    name = f"{repaired_checkpoint.NAME}.png"
    repaired_checkpoint.draw(result, tmp_path)
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_summary_says_what_went_wrong_if_anything_did(result, tmp_path):
    assert "CHANGED" not in repaired_checkpoint.summarize(result, tmp_path)
    other = result | {"weights_unchanged": False, "audit_after": result["audit_before"]}
    other["alone"] = {"after": result["alone"]["after"] | {"same_predictions_at_once": False}}
    said = repaired_checkpoint.summarize(other, tmp_path)
    assert "weights CHANGED" in said and "NOT as at once" in said and said.count("exit 1: BN001") == 2


def test_checkpoints_of_an_earlier_run_are_removed(tmp_path):
    folder = tmp_path / repaired_checkpoint.NAME
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("result.json", "checkpoints/repaired.index"):
        (folder / name).write_text("old")
    assert repaired_checkpoint._emptied(folder) == folder
    assert [path.name for path in folder.rglob("*")] == ["checkpoints"]


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path):
    with pytest.raises(
        UsageError, match=r"`python -m bn_graph audit .*nothing.meta` ended with status 2: .*nothing.meta"
    ):
        repaired_checkpoint._command(["audit", str(tmp_path / "nothing.meta")], expected=(0, 1))


@pytest.mark.mnist
@pytest.mark.skipif(not os.environ.get("MNIST_DIR"), reason="MNIST_DIR is not set")
def test_on_mnist_the_repair_takes_a_useless_checkpoint_to_what_proper_training_gives(tmp_path):
    assert repaired_checkpoint.main(["--data", "mnist", "--steps", "3000", "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / repaired_checkpoint.NAME / "result.json").read_text())
    assert result["accuracy_before"] < 0.7
    assert result["accuracy_after"] > 0.9
