"""The (training, trainable) table of the flags document: its digits, and judges that can be contradicted."""

import numpy as np
import pytest

from experiments import training_vs_trainable as experiment

PAGE = experiment


def cell(result: dict, library: str, training: bool, trainable: bool) -> dict:
    return next(c for c in result["cells"][library] if (c["training"], c["trainable"]) == (training, trainable))


def test_the_image_is_the_one_that_the_documents_moving_averages_pin():
    values = np.array(experiment.IMAGE, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(0.01 * values.mean(0), [0.0325, 0.035, 0.065, 0.0275], atol=1e-9)
    unbiased = 0.99 + 0.01 * values.var(0, ddof=1)
    np.testing.assert_allclose(unbiased, [1.0791667, 1.1266665, 1.0999999, 1.0925], rtol=3e-7)
    assert values[0].tolist() == [4, 5, 9, 0]


@pytest.mark.parametrize("library", ["tf.layers", "tf.layers, fused=False"])
def test_pixels_of_both_phases_are_the_documents(finished, library):
    for trainable in (True, False):
        assert cell(finished[0], library, False, trainable)["first_pixel_rounded"] == [9, 11, 19, 1]
        assert cell(finished[0], library, True, trainable)["first_pixel_rounded"] == [2, 2, 3, -1]


def test_only_the_first_run_of_the_fused_kernel_prints_the_documents_variance(finished):
    fused, plain = (cell(finished[0], name, True, True) for name in ("tf.layers", "tf.layers, fused=False"))
    assert fused["printed_variance"][0] == "[1.0791667 1.1266665 1.0999999 1.0925]"
    assert fused["printed_mean"][0] == "[0.03249997 0.03499997 0.06499994 0.02749997]"
    assert (fused["variance"], plain["variance"]) == ("unbiased", "biased")
    assert fused["printed_variance"][1] != fused["printed_variance"][0]


def test_ref_variables_print_the_same(finished):
    assert finished[0]["ref_variables"] == cell(finished[0], "tf.layers", True, True)


@pytest.mark.parametrize(
    ("library", "expected"),
    {
        "tf.layers": ("batch", False),
        "slim form": ("batch", True),
        "batch_norm_wrapper": ("batch", True),
        "legacy Keras": ("moving", False),
        "Keras 3": ("moving", False),
    }.items(),
)
def test_training_with_trainable_false_is_where_the_libraries_part(finished, library, expected):
    found = cell(finished[0], library, True, False)
    assert (found["normalizes_with"], found["moved"]) == expected


def test_the_variance_by_rank_is_the_table_of_test_libraries(finished):
    by_rank = finished[0]["variance_by_rank"]
    assert by_rank["tf.layers"] == {"2": "biased", "3": "biased", "4": "unbiased", "5": "unbiased"}
    assert by_rank["legacy Keras"] == by_rank["tf.layers"]
    assert set(by_rank["Keras 3"].values()) == {"biased"}
    assert by_rank["slim form"] == {"2": "unbiased", "3": "biased", "4": "unbiased", "5": "biased"}


def test_a_third_trainable_parameter_contradicts_flags_01(result, verdict):
    result["parameters"]["trainable_true"]["trainable"].append("more")
    assert verdict(result, "flags-01") == "does not hold"


def test_flags_02_follows_the_outputs(result, verdict):
    good = {"mean": [0.0] * 4, "deviation": [1.0] * 4}
    result["normalized"] = dict.fromkeys(result["normalized"], good)
    assert verdict(result, "flags-02") == "holds"
    result["normalized"]["inference, gamma 1, beta 0"] = {"mean": [3.0] * 4, "deviation": [1.0] * 4}
    assert verdict(result, "flags-02") == "holds, with a trap: not in inference, gamma 1, beta 0"
    result["normalized"]["training, gamma 1, beta 0"] = {"mean": [3.0] * 4, "deviation": [1.0] * 4}
    assert verdict(result, "flags-02") == "does not hold"


def test_flags_03_would_hold_if_the_output_were_that_of_the_moving_statistics(result, verdict):
    cell(result, "tf.layers", True, True)["normalizes_with"] = "moving"
    assert verdict(result, "flags-03") == "holds"


def test_flags_04_follows_whether_other_statistics_show(result, verdict):
    result["other_statistics"]["inference"]["from_gamma_and_beta_alone"] = [0.00899, 0.00899]
    assert verdict(result, "flags-04") == "holds"
    result["other_statistics"]["inference"]["from_gamma_and_beta_alone"] = [5.0, 5.0]
    assert verdict(result, "flags-04") == "does not hold"


def test_other_pixels_contradict_flags_05_and_06(result, verdict):
    cell(result, "tf.layers", False, False)["first_pixel_rounded"] = [2, 2, 3, -1]
    cell(result, "tf.layers", True, False)["moved"] = True
    assert verdict(result, "flags-05") == verdict(result, "flags-06") == "does not hold"


def test_flags_07_is_judged_by_the_first_run_of_the_default_kernel(result, verdict):
    fused, plain = (cell(result, name, True, True) for name in ("tf.layers", "tf.layers, fused=False"))
    plain["printed_variance"] = fused["printed_variance"]
    assert verdict(result, "flags-07") == "holds"
    fused["printed_mean"] = fused["printed_mean"][::-1]
    assert verdict(result, "flags-07") == "does not hold"


def test_statistics_that_move_with_trainable_false_contradict_flags_08(result, verdict):
    result["what_moves"]["training=True, trainable=False, update ops run"] = True
    assert verdict(result, "flags-08") == "does not hold"
