"""The main experiment, as a user runs it: in processes of its own, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import single_example

ROOT = Path(__file__).parents[2]
STEPS = 3000  # enough for the digits to be learned; the command's own default is the document's 10,000


def command(output: Path, *arguments: str) -> list[str]:
    base = [sys.executable, "-m", "experiments.single_example", "--data", "digits", "--steps", str(STEPS)]
    return [*base, "--output", str(output), *arguments]


def run(output: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(output, *arguments), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[dict, Path, str]:
    """The result of one uninterrupted run, its folder, and what it printed."""
    output = tmp_path_factory.mktemp("results")
    process = run(output)
    assert process.returncode == 0, process.stderr
    folder = output / "single_example"
    return json.loads((folder / "result.json").read_text()), folder, process.stdout


def test_before_the_fix_every_image_gets_the_class_that_beta_and_the_last_weights_foretell(finished):
    result, _, _ = finished
    assert set(result["predictions_before"]) == {result["predicted_class_from_parameters"]}
    share = np.mean(np.array(result["labels"]) == result["predicted_class_from_parameters"])
    assert result["accuracy_before"] == pytest.approx(share)
    assert result["test_accuracy_before_at_once"] > 0.9  # the same network is good on the whole test set at once


def test_after_the_fix_one_at_a_time_equals_all_at_once(finished):
    result, _, _ = finished
    right = np.mean(np.array(result["predictions_after"]) == np.array(result["labels"]))
    assert result["accuracy_after"] == pytest.approx(right)
    assert result["accuracy_after"] >= 0.9
    assert result["one_at_a_time_equals_at_once"]
    assert result["test_accuracy_after"] == result["test_accuracy_after_at_once"]
    assert result["largest_difference_of_logits"] < 1e-3  # float32 logits of size 10 from sums in different orders


def test_the_result_says_what_it_was_computed_with(finished):
    result, _, _ = finished
    assert (result["data"], result["seed"], result["steps"]) == ("digits", 0, STEPS)
    assert len(result["labels"]) == len(result["predictions_before"]) == len(result["predictions_after"]) == 100
    assert set(result["versions"]) >= {"python", "tensorflow", "numpy"}


def test_the_summary_names_both_accuracies_and_the_files(finished):
    result, folder, printed = finished
    for expected in (f"{result['accuracy_before']:.2f}", f"{result['accuracy_after']:.2f}", "result.json", ".png"):
        assert expected in printed
    assert (folder / "single_example.png").stat().st_size > 10_000


def test_the_figure_is_drawn_from_the_result_alone(finished, tmp_path):
    result, _, _ = finished
    single_example.draw(result, tmp_path)
    assert (tmp_path / "single_example.png").stat().st_size > 10_000


def test_a_summary_of_a_different_outcome_says_so(finished):
    result, folder, _ = finished
    contradicting = result | {
        "predictions_before": [1] * 50 + [2] * 50,
        "predicted_class_from_parameters": 7,
        "one_at_a_time_equals_at_once": False,
    }
    text = single_example.summarize(contradicting, folder)
    assert "2 different classes" in text and "IS NOT" in text and "NOT the same" in text


@pytest.mark.parametrize("form", ["batch_statistics", "wrapper"])
def test_kill_9_in_training_then_the_same_command_ends_with_the_same_numbers(finished, tmp_path, form):
    expected, _, _ = finished
    checkpoints = tmp_path / "single_example" / "checkpoints"
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob(f"*/{form}/step-*.index")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (tmp_path / "single_example" / "result.json").exists()

    assert run(tmp_path).returncode == 0
    resumed = json.loads((tmp_path / "single_example" / "result.json").read_text())
    for name in expected.keys() - {"checkpoint", "runs"}:
        assert resumed[name] == expected[name], name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "0"], "steps is a whole number from 1 up, got '0'"),
        (["--steps", "many"], "got 'many'"),
        (["--seed", "-1"], "--seed"),
        (["--data", "cifar"], "invalid choice: 'cifar'"),
        (["--data", "mnist", "--data-directory", "no/such/place"], "no/such/place"),
        (["--output", "/proc/nowhere"], "/proc/nowhere"),
        (["--sedd", "1"], "--sedd"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(tmp_path, capsys, arguments, says):
    argv = ["--data", "digits", "--output", str(tmp_path / "results"), *arguments]
    assert single_example.main(argv) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.mnist
@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR is not set")
def test_bug_and_fix_on_mnist_after_1000_steps(tmp_path):
    argv = ["--data", "mnist", "--steps", "1000", "--output", str(tmp_path)]
    assert single_example.main(argv) == 0
    result = json.loads((tmp_path / "single_example" / "result.json").read_text())
    assert set(result["predictions_before"]) == {result["predicted_class_from_parameters"]}
    assert result["one_at_a_time_equals_at_once"]
    # A tenth of the document's steps: the weights are trained (0.90 at once), the statistics still hold e⁻¹ of (0, 1).
    assert result["test_accuracy_before_at_once"] > 0.85
    assert result["accuracy_after"] > 3 * result["accuracy_before"]
