"""Which variables a checkpoint needs: what each way of saving and restoring comes to, and that verdicts follow from it."""

import pytest

from experiments import checkpoint_variables as experiment
from experiments.checkpoint_variables import EVERYTHING, FILTERED, INFERENCE, TRAINABLES, WAYS

PAGE = experiment


def test_a_file_of_trainables_comes_to_three_outcomes_one_of_them_silent(result):
    by_all, uninitialized, initialized = (result["restored"][way][f"0/{TRAINABLES}"] for way in WAYS)
    assert (by_all["raised"], by_all["when"]) == ("NotFoundError", "restoring")
    assert (uninitialized["raised"], uninitialized["when"]) == ("FailedPreconditionError", "predicting")
    assert initialized["raised"] is None and initialized["accuracy"] < 0.9


@pytest.mark.parametrize("saver", [FILTERED, EVERYTHING, INFERENCE])
def test_the_other_three_files_predict_alike(result, saver):
    restored = result["restored"][WAYS[0]]
    assert restored[f"0/{saver}"] == restored[f"0/{EVERYTHING}"]
    assert restored[f"0/{saver}"]["accuracy"] > 0.9


def test_training_goes_on_from_the_file_of_everything_alone(result):
    resumed = result["resumed"]
    assert resumed[f"0/{EVERYTHING}"] == {"raised": None, "step": result["steps"]}
    assert all(resumed[f"0/{saver}"]["raised"] == "NotFoundError" for saver in (TRAINABLES, FILTERED, INFERENCE))


def test_automatic_names_break_with_an_error_or_in_silence(result):
    names = result["names"]
    assert names["the same build"]["accuracy"] > 0.9
    assert names["one variable more, before"]["raised"] == "NotFoundError"
    assert names["offset made before scale"]["accuracy"] < names["the same build"]["accuracy"] - 0.1


def test_a_save_that_raises_makes_article_11_not_hold(result):
    result["new_directory"][experiment.DOCUMENT_PATH] = {"raised": "ValueError", "message": "no such directory"}
    assert experiment.judge_article_11(result).verdict == "does not hold"


def test_article_14_without_a_silent_way_holds_and_without_an_error_does_not(result):
    result["restored"][WAYS[2]][f"0/{TRAINABLES}"] = {"raised": "NotFoundError", "when": "restoring", "message": ""}
    assert experiment.judge_article_14(result).verdict == "holds"
    result["restored"][WAYS[0]][f"0/{TRAINABLES}"] = {"raised": None, "accuracy": 0.9}
    assert experiment.judge_article_14(result).verdict == "does not hold"


def test_a_listed_statistic_makes_article_15_not_hold(result):
    result["moving_average_collection"]["tf.layers.batch_normalization"] = ["bn/moving_mean"]
    assert experiment.judge_article_15(result).verdict == "does not hold"


def test_article_16_follows_what_the_filter_misses(result):
    for each in result["filter"].values():
        each["missed"] = []
    assert experiment.judge_article_16(result).verdict == "holds"
    result["filter"]["tf.layers"]["missed"] = ["bn/moving_mean"]
    assert experiment.judge_article_16(result).verdict == "does not hold"


def test_article_17_follows_what_predicts_and_what_resumes(result):
    result["resumed"][f"0/{FILTERED}"] = {"raised": None, "step": 1}
    assert experiment.judge_article_17(result).verdict == "does not hold"
    result["resumed"][f"0/{FILTERED}"] = {"raised": "NotFoundError"}
    assert experiment.judge_article_17(result).verdict == "holds"
    result["restored"][WAYS[0]][f"0/{EVERYTHING}"] = {"raised": "NotFoundError", "when": "restoring", "message": ""}
    assert experiment.judge_article_17(result).verdict == "does not hold"


def test_r2rt_21_follows_the_one_graph_and_the_training_graph(result):
    assert "a bool tensor does it in one graph" in experiment.judge_r2rt_21(result).note
    result["one_graph"]["0"] = 0.1
    assert "a bool tensor" not in experiment.judge_r2rt_21(result).note
    result["names"] = {"the same build": result["names"]["the same build"]}
    assert experiment.judge_r2rt_21(result).verdict == "holds"
    result["own_accuracy"]["0"]["training graph, one at a time"] = 1.0
    assert experiment.judge_r2rt_21(result).verdict == "does not hold"


def test_a_returned_path_that_does_not_restore_makes_r2rt_23_not_hold(result):
    result["returned"]["restored"]["relative, there"] = {"raised": "ValueError", "when": "restoring", "message": ""}
    assert experiment.judge_r2rt_23(result).verdict == "does not hold"
