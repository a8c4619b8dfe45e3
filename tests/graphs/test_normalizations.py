"""The places where a graph normalizes, however they are written: what is found of each, and that nothing is made up."""

import itertools

import pytest

from bn_graph.audit import audit
from bn_graph.graphs.protos import GraphDef, NodeDef
from bn_graph.tf1 import tf


def by_function(x, mean, variance, beta, gamma):
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def by_quotient(x, mean, variance, beta, gamma):
    return _scaled_and_shifted((x - mean) / tf.sqrt(variance + 1e-3), beta, gamma)


def by_epsilon_outside_the_root(x, mean, variance, beta, gamma):
    return _scaled_and_shifted((x - mean) / (tf.sqrt(variance) + 1e-3), beta, gamma)


def by_gamma_first(x, mean, variance, beta, gamma):
    scaled = x - mean if gamma is None else gamma * (x - mean)
    return _scaled_and_shifted(scaled / tf.sqrt(variance + 1e-3), beta, None)


def by_power(x, mean, variance, beta, gamma):
    return _scaled_and_shifted((x - mean) * tf.pow(variance + 1e-3, -0.5), beta, gamma)


def _scaled_and_shifted(normalized, beta, gamma):
    scaled = normalized if gamma is None else normalized * gamma
    return scaled if beta is None else scaled + beta


FORMS = [by_function, by_quotient, by_epsilon_outside_the_root, by_gamma_first, by_power]
STATISTICS = ["batch", "population"]


def _variable(name):
    return tf.get_variable(name, [3], initializer=tf.ones_initializer())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("parameters", list(itertools.product([False, True], repeat=2)), ids=lambda flags: f"{flags}")
def test_each_way_to_write_it_is_found_with_its_variables(form, statistics, parameters):
    with tf.Graph().as_default() as graph:
        x = tf.matmul(tf.placeholder(tf.float32, [None, 4]), tf.get_variable("w1", [4, 3]))
        stored = {"moving_mean": _variable("mean"), "moving_variance": _variable("variance")}
        used = tf.nn.moments(x, [0]) if statistics == "batch" else stored.values()
        own = {name: _variable(name) for name, there in zip(("beta", "gamma"), parameters, strict=True) if there}
        outputs = form(x, *used, own.get("beta"), own.get("gamma"))
        tf.matmul(outputs, tf.get_variable("w2", [3, 2]))
        report = audit(graph)

    (row,) = report.layers
    expected = {name: name for name in own} | {
        name: variable.op.name for name, variable in stored.items() if statistics == "population"
    }
    assert (row.inference, row.variables) == (statistics, expected)
    assert {finding.code for finding in report.errors} == ({"BN004"} if statistics == "batch" else set())


@pytest.mark.parametrize("divided", [False, True])
def test_means_over_one_dimension_after_the_other_are_the_batchs_statistics(divided):
    def mean_of_means(values):
        count = tf.cast(tf.size(values) // 3, tf.float32)
        for axis in (2, 1, 0):
            values = (tf.reduce_sum if divided else tf.reduce_mean)(values, axis, keepdims=True)
        return values / count if divided else values

    with tf.Graph().as_default() as graph:
        x = tf.nn.conv2d(tf.placeholder(tf.float32, [None, 8, 8, 1]), tf.get_variable("w1", [3, 3, 1, 3]), 1, "SAME")
        mean = mean_of_means(x)
        outputs = by_function(x, mean, mean_of_means(tf.square(x - mean)), _variable("beta"), _variable("gamma"))
        tf.nn.conv2d(outputs, tf.get_variable("w2", [3, 3, 3, 2]), 1, "SAME")
        report = audit(graph)

    (row,) = report.layers
    assert (row.inference, row.variables) == ("batch", {"beta": "beta", "gamma": "gamma"})
    assert {finding.code for finding in report.errors} == {"BN004"}


def test_a_loss_that_standardizes_over_the_batch_is_no_layer():
    with tf.Graph().as_default() as graph:
        x = tf.matmul(tf.placeholder(tf.float32, [None, 4]), tf.get_variable("w", [4, 3]))
        mean, variance = tf.nn.moments(x, [0])
        tf.reduce_mean((x - mean) / tf.sqrt(variance + 1e-6))
        assert audit(graph).layers == ()


def test_a_damaged_product_of_three_is_no_layer():
    graph = GraphDef(
        node=[
            *(NodeDef(name=name, op="VariableV2") for name in ("variance", "gamma")),
            NodeDef(name="x", op="Placeholder"),
            NodeDef(name="root", op="Rsqrt", input=["variance"]),
            NodeDef(name="scaled", op="Mul", input=["x", "gamma", "x"]),
            NodeDef(name="normalized", op="Mul", input=["scaled", "root"]),
        ]
    )
    assert audit(graph).layers == ()
