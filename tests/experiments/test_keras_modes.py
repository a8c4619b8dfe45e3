"""Both Kerases in their modes: the documents' digits, where the two differ, and judges that can be contradicted."""

import pytest

from experiments import keras_modes as experiment

LEGACY, KERAS_3 = "legacy Keras", "Keras 3"

PAGE = experiment


@pytest.mark.parametrize("library", [LEGACY, KERAS_3])
def test_two_examples_give_the_documents_digits_along_either_axis(finished, library):
    found = finished[0]["libraries"][library]["one_layer"]
    assert found["two_examples_printed"] == found["axis_0_printed"] == ["-0.99800634", "0.99800587"]
    assert finished[0]["exact_two_examples"] == ["-0.99800598", "0.99800598"]  # ½/√(¼ + 0.001)


@pytest.mark.parametrize("library", [LEGACY, KERAS_3])
def test_one_example_has_variance_0_and_gives_beta(finished, library):
    found = finished[0]["libraries"][library]["one_layer"]
    assert found["one_example"] == [[0.0, 0.0]]
    assert found["one_example_moving_variance"] == pytest.approx([0.99, 0.99])
    assert found["one_example_with_beta"] == [pytest.approx([0.7, 0.7], abs=1e-5)]


def test_a_written_in_training_true_reaches_predict_in_legacy_keras_only(finished):
    wired = {name: each["hard_wired"]["hard_wired"] for name, each in finished[0]["libraries"].items()}
    assert wired[LEGACY]["moved_by_predict"] and wired[LEGACY]["alone_differs_by"] > 1e-3
    assert not wired[KERAS_3]["moved_by_predict"] and wired[KERAS_3]["alone_differs_by"] < 1e-5


@pytest.mark.parametrize("library", [LEGACY, KERAS_3])
def test_in_a_tf1_graph_the_layer_builds_and_update_ops_stays_empty(finished, library):
    found = finished[0]["libraries"][library]["tf1_graph"]
    assert found["built"] and found["runs"]
    assert found["update_ops"] == 0
    assert found["moving_mean"] == [0.0] * 5  # running the outputs moves nothing
    assert found["layer_updates"] == (2 if library == LEGACY else 0)


@pytest.mark.parametrize("library", [LEGACY, KERAS_3])
def test_the_scripts_optimizer_trains_gamma_and_its_title_shows_nothing(finished, library):
    script = finished[0]["libraries"][library]["script"]
    assert script["as_printed"]["optimizer"] == "rmsprop"
    assert all(gamma != 1.0 for gamma in script["as_printed"]["gamma_and_beta"][0])
    assert script["no_training_of_gamma"]["gamma_and_beta"] == []
    assert script["as_its_title"]["largest_difference_from_first"] == [0.0] * 4


@pytest.mark.parametrize(
    ("claim", "path", "value", "expected"),
    [
        ("qa-08", "learning_phase/outputs_by_phase/1", [[3.0], [4.0]], "does not hold"),
        ("qa-08", "learning_phase/set_learning_phase", False, "dated"),
        ("qa-09", "one_layer/without_training", [[0.0, 0.0]], "does not hold"),
        ("qa-10", "one_layer/one_example_printed", "[[nan nan]]", "does not hold"),
        ("qa-11", "one_layer/one_example_moving_variance", [float("nan")] * 2, "holds, with a trap: not in Keras 3"),
        ("qa-12", "one_layer/two_examples_printed", ["-0.998006", "0.998006"], "does not hold"),
        ("qa-13", "one_layer/axis_0_printed", ["0.0", "0.0"], "does not hold"),
        ("qa-14", "hard_wired/hard_wired/moved_by_tape", False, "does not hold"),
        ("qa-17", "which_calls_move/predict", True, "does not hold"),
        ("qa-18", "frozen/layer_changed_by_fit", True, "does not hold"),
        ("qa-19", "script/as_printed/largest_difference_from_first", [0.0, 0.0, 0.1, 0.09], "does not hold"),
        ("flags-09", "trainable_false/TF2", {"from_batch": 0.0, "from_moving": 6.0}, "does not hold"),
        ("flags-10", "recursion/outer_false", [False, True, 2], "does not hold"),
        ("flags-11", "after_compile/compiled_again", {"parameters": True, "statistics": True}, "does not hold"),
    ],
)
def test_a_contradicting_measurement_changes_the_verdict(result, claim, path, value, expected, verdict, contradict):
    contradict(result["libraries"][LEGACY], path, value)
    assert verdict(result, claim) == expected


def test_a_flag_that_is_never_heeded_before_compile_makes_flags_11_hold(result, verdict):
    for each in result["libraries"].values():
        for case in ("after_a_fit", "before_the_first_fit", "run_eagerly"):
            each["after_compile"][case] = {"parameters": True, "statistics": True}
    assert verdict(result, "flags-11") == "holds"
