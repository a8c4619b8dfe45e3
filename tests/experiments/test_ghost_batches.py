"""Ghosts of a large batch: one short run, and a verdict that follows from the accuracies."""

import pytest

from experiments import ghost_batches

PAGE = ghost_batches


def test_every_form_is_trained_and_learns(result):
    (run,) = result["runs"]
    assert list(run["accuracy"]) == ["0", "128", "64", "16"]
    assert min(run["accuracy"].values()) > 0.2  # twice a guess, after 20 steps


@pytest.mark.parametrize(
    ("ghosts", "expected"),
    [
        ((0.95, 0.95, 0.95), "holds"),
        ((0.901, 0.95, 0.95), "holds, with a trap: with ghosts of 128 it is not seen"),
        ((0.9, 0.9, 0.9), "does not hold"),
        ((0.8, 0.8, 0.8), "does not hold"),
    ],
)
def test_ghost_01_compares_every_size_with_the_whole_batch(result, verdict, ghosts, expected):
    result["runs"] = [{"accuracy": {"0": 0.9} | dict(zip(("128", "64", "16"), ghosts, strict=True))}] * 2
    assert verdict(result, "ghost-01") == expected


def test_one_seed_that_is_behind_makes_ghost_01_not_hold(result, verdict):
    ahead = {"0": 0.9, "128": 0.95, "64": 0.95, "16": 0.95}
    result["runs"] = [{"accuracy": ahead}, {"accuracy": ahead}, {"accuracy": ahead | {"0": 0.96}}]
    assert verdict(result, "ghost-01") == "does not hold"
