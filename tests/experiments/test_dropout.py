"""Dropout beside batch norm: one short run, and a verdict that follows from the accuracies."""

import pytest

from experiments import dropout

PAGE = dropout


def accuracies(alone: float, dropped: float, training: float) -> dict:
    """Of one form: without dropout, and at two rates of it."""
    scored = [alone, dropped, dropped]
    return {"training": [training] * 3, "validation": scored, "test": scored}


def measured(*with_and_without: tuple[tuple, tuple]) -> dict:
    """A result of two seeds that agree; for the fewer and the more images each form's accuracies."""
    forms = [dict(zip(dropout.FORMS, (accuracies(*each) for each in pair), strict=True)) for pair in with_and_without]
    run = dict(zip(("300", "1200"), forms, strict=True))
    return {"images": [300, 1200], "runs": [run, run]}


def test_every_network_learns_and_dropout_changes_what_it_learns(result):
    (run,) = result["runs"]
    for form in dropout.FORMS:
        scores = run["600"][form]
        assert len(scores["test"]) == len(result["dropped"]) and min(scores["test"]) > 0.3
        assert len(set(scores["training"])) > 1


WITHOUT = (0.93, 0.94, 0.99)


@pytest.mark.parametrize(
    ("fewer", "more", "expected"),
    [
        ((0.95, 0.95, 0.97), (0.95, 0.95, 0.97), "holds"),
        ((0.95, 0.96, 0.97), (0.95, 0.95, 0.97), "holds, with a trap: with 300 images dropout still helps beside it"),
        ((0.92, 0.92, 0.97), (0.95, 0.95, 0.97), "holds, with a trap: with 300 images it is behind dropout alone"),
        ((0.92, 0.92, 0.97), (0.92, 0.92, 0.97), "does not hold"),
        ((0.95, 0.95, 1.02), (0.95, 0.95, 1.02), "does not hold"),
    ],
)
def test_flags_14_compares_batch_norm_alone_with_dropout_and_both_gaps(verdict, fewer, more, expected):
    assert verdict(measured((fewer, WITHOUT), (more, WITHOUT)), "flags-14") == expected
