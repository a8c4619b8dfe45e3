"""This library's layer, with each option that changes how its statistics are computed, as the audit sees it."""

import pytest

import bn_graph
from bn_graph.audit import audit
from bn_graph.tf1 import tf
from bn_graph.training.distributed import Workers, gatherer
from tests.conftest import COND_KINDS

OPTIONS = {
    "plain": {},
    "not_fused": {"fused": False},
    "renorm": {"renorm": True},
    "virtual_batches": {"virtual_batch_size": 4},
    "cumulative": {"average": "cumulative"},
    "zero_debias": {"zero_debias": True},
    "unbiased": {"unbiased_variance": True},
    "weights": {"weights": True},
    "sync": {"sync": True},
    "sync_with_weights": {"sync": True, "weights": True},
    "sync_population_only": {"sync": True, "sync_population_only": True},
    "sync_population_only_with_weights": {"sync": True, "sync_population_only": True, "weights": True},
}


def audited(folder, shape, training, sync=False, weights=False, **options):
    """The report on a network with the layer, its Saver and its train op."""
    if sync:
        options["sync"] = gatherer(Workers(2, 0))
    if weights:
        options["weights"] = tf.placeholder(tf.float32, [None])
    inputs = tf.tensordot(tf.placeholder(tf.float32, shape), tf.get_variable("weights", [3, 3]), 1)
    outputs = bn_graph.batch_norm_wrapper(inputs, training, name="bn", **options)
    logits = tf.tensordot(tf.nn.relu(outputs), tf.get_variable("last", [3, 2]), 1)
    bn_graph.train_op(tf.train.GradientDescentOptimizer(0.1), tf.reduce_mean(tf.square(logits)))
    bn_graph.make_saver().export_meta_graph(str(folder / "model.meta"))
    return audit(folder / "model.meta")


def check_switch(report):
    (layer,) = report.layers
    assert (layer.training, layer.inference, layer.updates) == ("batch", "population", "2 of 2")
    assert report.findings == () and report.undetermined == () and report.not_understood == ()


@COND_KINDS
@pytest.mark.parametrize("option", OPTIONS)
def test_nothing_is_found_in_a_layer_with_a_switch(graph, tmp_path, option):
    check_switch(audited(tmp_path, [None, 3], tf.placeholder(tf.bool, []), **OPTIONS[option]))


@pytest.mark.parametrize("option", OPTIONS)
def test_nothing_is_found_in_a_layer_of_images_with_a_switch(plain_graph, tmp_path, option):
    check_switch(audited(tmp_path, [None, 4, 4, 3], tf.placeholder(tf.bool, []), **OPTIONS[option]))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_layer_that_only_trains_is_seen_with_its_updates(plain_graph, tmp_path, option):
    report = audited(tmp_path, [16, 3], True, **OPTIONS[option])
    (layer,) = report.layers
    assert (layer.training, layer.updates) == ("batch", "2 of 2")
    assert report.findings == () and report.not_understood == ()
