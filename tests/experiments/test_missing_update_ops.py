"""With and without the update ops; and verdicts that change with the measurement."""

import copy

import pytest

from experiments import missing_update_ops

PAGE = missing_update_ops


def test_without_the_dependency_the_statistics_stand_where_they_began(result):
    run = result["runs"][0]
    assert run["without"]["unmoved"] and set(run["without"]["moving_variance"]) == {1.0}
    assert not run["with"]["unmoved"]


def test_without_the_dependency_only_is_training_false_suffers(result):
    run = result["runs"][0]
    # The updates don't touch the weights, so the two trainings are the same one.
    assert run["with"]["training_true"] == pytest.approx(run["without"]["training_true"], abs=1e-3)
    assert run["with"]["training_false"][1] > run["without"]["training_false"][1] + 0.1


def test_the_printed_snippet_has_three_gaps_before_it_runs(result):
    outcomes = [each["outcome"].split(":")[0] for each in result["snippet"]]
    assert outcomes[:3] == ["NameError", "AttributeError", "InvalidArgumentError"]
    assert outcomes[3] == "runs; statistics [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]"


def test_a_layer_applied_twice_in_training_has_four_updates_of_two_variables(result):
    found = result["collected"]
    assert found["train and train, one scope"] == 4 and found["train and train, one scope: variables"] == 2
    assert found["train and infer, one scope"] == 2


def test_article_01_depends_on_the_gap_between_the_phases(result, verdict):
    result["runs"].append(copy.deepcopy(result["runs"][0]))
    without = result["runs"][1]["without"]
    without["training_false"] = without["training_true"]
    assert verdict(result, "article-01") == "does not hold"
    mistakes = 1 - without["training_true"][1]
    without["training_false"] = [1.0, 1 - 2.1 * mistakes]
    assert verdict(result, "article-01") == "holds"


def test_statistics_that_moved_contradict_article_01(result, verdict):
    result["runs"][0]["without"]["unmoved"] = False
    assert verdict(result, "article-01") == "does not hold"


def test_updates_before_building_contradict_article_07(result, verdict):
    result["collected"]["before building"] = 2
    assert verdict(result, "article-07") == "does not hold"


def test_article_13_depends_on_what_waits(result, verdict):
    result["ordered"]["with"]["forward"] = [37, 37]
    assert verdict(result, "article-13") == "holds"
    result["order_of_runs"]["with"]["updates_first"] -= 1
    assert verdict(result, "article-13") == "does not hold"


def test_solver_09_depends_on_where_the_updates_are(result, verdict):
    result["in_the_graph"]["updates_in_the_graph"] = 0
    assert verdict(result, "solver-09") == "holds"
    result["in_the_graph"]["updates_above_the_train_op_without"] = 2
    assert verdict(result, "solver-09") == "does not hold"
