"""Signatures and defaults: what was read from the live libraries, and judges that can be contradicted."""

import pytest

from experiments import layer_defaults as experiment

PAGE = experiment


def test_contribs_defaults_differ_in_three_and_center_is_not_one(finished):
    measured = finished[0]["claims"]["article-08"]["measured"]
    for expected in (
        "momentum 0.99 and decay 0.999",
        "scale True and False",
        "training False and is_training True",
        "center is True in tf.layers and True there",
    ):
        assert expected in measured


@pytest.mark.parametrize("option", ["renorm", "virtual_batch_size", "adjustment"])
def test_each_option_of_tf_layers_does_what_it_says(finished, option):
    found = finished[0]["options"][option]
    assert found["largest_error"] < 1e-5
    assert found["differs_from_plain_by"] > 0.1
    assert finished[0]["combinations"][f"fused=True with {option}"]["same_as"] == [option]


def test_virtual_batches_of_tf_layers_are_not_of_neighbours(finished):
    assert finished[0]["options"]["virtual_batch_size"]["error_if_of_neighbours"] > 0.1


@pytest.mark.parametrize(
    ("claim", "path", "value", "expected"),
    [
        ("article-04", "made_by/tf.nn.batch_normalization/update_ops", 2, "does not hold"),
        ("article-04", "signatures/tf.nn.batch_normalization/offset", "None", "does not hold"),
        ("article-06", "signatures/tf.layers.batch_normalization/momentum", "0.9", "does not hold"),
        ("article-06", "signatures/tf.layers.batch_normalization/synchronized", "False", "does not hold"),
        ("article-08", "signatures/slim form/center", "False", "does not hold"),
    ],
)
def test_a_contradicting_measurement_changes_the_verdict(result, claim, path, value, expected, verdict, contradict):
    for name in list(result["signatures"]):
        if name.endswith(experiment.ERA):  # as on a machine without it
            del result["signatures"][name]
    contradict(result, path, value)
    assert verdict(result, claim) == expected


def test_tensorflow_1s_own_functions_are_judged_where_they_were_asked(result, verdict):
    layers, contrib = (f"{name} of {experiment.ERA}" for name in (experiment.LAYERS, experiment.CONTRIB))
    for name, today in ((layers, experiment.LAYERS), (contrib, "slim form")):
        result["signatures"][name] = dict(result["signatures"][today])
        result["made_by"][name] = result["made_by"][today]
    assert f"contrib, both of TensorFlow {experiment.ERA}" in experiment.judge_article_08(result).measured
    result["signatures"][experiment.LAYERS]["momentum"] = "0.9"
    assert verdict(result, "article-06") == "holds, with a trap: today's differs: momentum=0.9, listed as 0.99"
    result["signatures"][layers]["momentum"] = "0.9"
    assert verdict(result, "article-06") == "does not hold"
    result["signatures"][contrib]["center"] = "False"
    assert verdict(result, "article-08") == "does not hold"


def test_article_08_would_hold_if_scale_alone_differed(result, verdict):
    result["signatures"].pop(f"{experiment.CONTRIB} of {experiment.ERA}", None)
    contrib = result["signatures"]["slim form"]
    contrib |= {"decay": "0.99", "is_training": "False"}
    assert verdict(result, "article-08") == "holds"
