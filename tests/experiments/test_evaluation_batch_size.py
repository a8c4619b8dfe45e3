"""Both phases against the size of the test batch; and verdicts that change with the measurement."""

import pytest

import bn_graph
from experiments import evaluation_batch_size as experiment

PAGE = experiment


def test_the_sizes_are_the_powers_of_two_and_the_whole_test_set(result):
    assert result["sizes"] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360]
    assert experiment.batch_sizes(10_000)[-3:] == [4096, 8192, 10_000]


def test_the_order_makes_no_difference_to_batches_of_one_and_to_the_whole_set(result):
    mixed, by_class = (result["runs"][0]["phase_true"][order]["loss"] for order in ("mixed", "sorted"))
    for place in (0, -1):
        assert mixed[place] == pytest.approx(by_class[place], abs=2e-5)  # rounded to five digits in the result


def test_alone_every_image_gets_one_answer(result):
    labels = bn_graph.load("digits").test.labels.argmax(1)
    shares = {round(float((labels == digit).mean()), 5) for digit in range(10)}
    assert result["runs"][0]["phase_true"]["mixed"]["accuracy"][0] in shares


def test_sorted_means_that_no_class_comes_back():
    test = bn_graph.load("digits").test
    classes = test.labels[experiment.in_order(test, "sorted")].argmax(1).tolist()
    assert classes == sorted(test.labels.argmax(1).tolist())


def test_small_batches_contradict_that_phase_true_always_has_the_lower_loss(result):
    assert result["claims"]["qa-16"]["verdict"] == "does not hold"
    assert result["runs"][0]["phase_true"]["mixed"]["loss"][0] > result["runs"][0]["phase_false"][0]


def test_qa_15_depends_on_both_loss_and_accuracy(result, verdict):
    run = result["runs"][0]
    for with_, expected in (
        ([0.1, 0.98], "holds"),
        ([0.1, 0.94], "does not hold"),
        ([0.3, 0.96], "does not hold"),
        ([0.3, 0.9], "does not hold"),
    ):
        run["phase_false"], run["without"] = with_, [0.2, 0.95]
        assert verdict(result, "qa-15") == expected


def test_qa_16_holds_only_if_phase_true_is_lower_at_every_size_in_every_order(result, verdict):
    run, sizes = result["runs"][0], result["sizes"]
    run["phase_false"] = [0.5, 0.9]
    for order in ("mixed", "sorted"):
        run["phase_true"][order]["loss"] = [0.1] * len(sizes)
    assert verdict(result, "qa-16") == "holds"
    run["phase_true"]["mixed"]["loss"][:5] = [0.9] * 5
    judged = experiment.judge_qa_16(result)
    assert judged.verdict == "does not hold"
    assert "In every run the loss is lower in mixed batches of 32 or more." in judged.note
    run["phase_true"]["mixed"]["loss"][-1] = 0.9
    assert "In every run" not in experiment.judge_qa_16(result).note
