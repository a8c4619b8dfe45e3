"""The questions that legacy Keras and Keras 3 may answer differently, read from the result of `keras_modes`."""

from experiments.machinery.keras_child import LIBRARIES

LEGACY, KERAS_3 = LIBRARIES
# Outputs this close are by the same statistics: rounding is below 1e-6, and those by the others are 0.09 away or more.
NEAR = 1e-4


def yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def normalized_by(distances: dict) -> str:
    """Which statistics normalized: the nearer of the two, if it is near at all."""
    near = [name for name in ("batch", "moving") if distances[f"from_{name}"] < NEAR]
    return near[0] if len(near) == 1 else "neither"


def answers(each: dict) -> dict[str, bool]:
    """The yes-or-no questions, for one library."""
    wired, graph = each["hard_wired"]["hard_wired"], each["tf1_graph"]
    heeded = {case: not changed["parameters"] for case, changed in each["after_compile"].items()}
    return {
        "set_learning_phase exists": each["learning_phase"]["set_learning_phase"],
        "written-in training=True: predict normalizes by the batch": wired["alone_differs_by"] > NEAR,
        "written-in training=True: predict moves the statistics": wired["moved_by_predict"],
        "written-in training=True: model(x, training=False) moves them": wired["moved_by_call_with_training_false"],
        "trainable=False also means inference mode": normalized_by(each["trainable_false"]["TF2"]) == "moving",
        "… set after compile() and a fit: the next fit heeds it": heeded["after_a_fit"],
        "… set after compile(), before any fit: fit heeds it": heeded["before_the_first_fit"],
        "… set with run_eagerly=True: the next fit heeds it": heeded["run_eagerly"],
        "… and compiled again: fit heeds it": heeded["compiled_again"],
        "on a placeholder in a TF1-style graph it builds": graph["built"],
        "… and puts its updates into UPDATE_OPS": graph.get("update_ops", 0) > 0,
        "… or into layer.updates": graph.get("layer_updates", 0) > 0,
        "… and running its outputs moves its statistics": any(graph.get("moving_mean", [])),
    }


def answer_rows(result: dict) -> list[list[str]]:
    """Each question with the answer of legacy Keras and that of Keras 3."""
    legacy, keras_3 = (answers(result["libraries"][library]) for library in (LEGACY, KERAS_3))
    return [[question, yes_or_no(legacy[question]), yes_or_no(keras_3[question])] for question in legacy]
