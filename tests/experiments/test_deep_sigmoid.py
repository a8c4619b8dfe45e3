"""Deep networks of sigmoids: one short run, and a verdict that follows from the accuracies."""

import pytest

from experiments import deep_sigmoid

PAGE = deep_sigmoid


def test_every_form_is_trained_at_every_depth(result):
    (run,) = result["runs"]
    for form in deep_sigmoid.FORMS:
        assert [each["depth"] for each in run[form]] == result["depths"]
        assert {each["rate"] for each in run[form]} <= set(result["rates"])
    # After 60 steps the shallow network with batch norm is far above a guess.
    assert run[deep_sigmoid.WITH][0]["accuracy"] > 0.3 > result["guess"]


@pytest.mark.parametrize(
    ("deepest", "expected"),
    [
        ((0.95, 0.11, 0.11), "holds"),
        ((0.95, 0.11, 0.95), "holds, with a trap: networks whose weights start four times as large train without it"),
        ((0.95, 0.50, 0.95), "does not hold"),
        ((0.50, 0.11, 0.11), "does not hold"),
    ],
)
def test_bn2015_01_compares_the_deepest_networks_with_a_guess(result, verdict, deepest, expected):
    result["guess"] = 0.11
    for form, accuracy in zip(deep_sigmoid.FORMS, deepest, strict=True):
        result["runs"][0][form][-1]["accuracy"] = accuracy
    assert verdict(result, "bn2015-01") == expected
