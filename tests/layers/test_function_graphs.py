"""The layers without a plain graph: eager mode refuses them, and functions build, train and update them."""

import numpy as np
import pytest

from bn_graph.layers import slim
from bn_graph.layers.averages import moving_statistics
from bn_graph.layers.batch_norm import batch_norm_wrapper
from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer
from bn_graph.layers.recurrent import BatchNormLSTMCell
from bn_graph.tf1 import legacy_layers, tf
from tests import oracle

BATCH = np.array([[2.0, -1.0], [6.0, 0.0], [1.0, 4.0]])
UPDATES = tf.GraphKeys.UPDATE_OPS

FORMS = {
    "wrapper": lambda x, flag: batch_norm_wrapper(x, flag, decay=0.5, name="bn"),
    "wrapper, collected": lambda x, flag: batch_norm_wrapper(x, flag, decay=0.5, updates_collection=UPDATES, name="bn"),
    "slim": lambda x, flag: slim.batch_norm(x, 0.5, scale=True, fused=False, is_training=flag, scope="bn"),
    "tf.layers": lambda x, flag: legacy_layers().batch_normalization(x, training=flag, momentum=0.5, name="bn"),
}
EAGER = {
    "wrapper": lambda: batch_norm_wrapper(BATCH, True),
    "slim": lambda: slim.batch_norm(tf.constant(BATCH)),
    "convolutional": lambda: ConvolutionalBatchNormalizer(2, 1e-3, tf.train.ExponentialMovingAverage(0.5), True),
    "recurrent": lambda: BatchNormLSTMCell(2, True, max_steps=3),
}


@pytest.mark.parametrize("form", EAGER)
def test_eager_mode_is_one_error_that_says_what_to_do(form):
    assert tf.executing_eagerly()
    with pytest.raises(RuntimeError, match=r"eager execution is on.*tf\.Graph\(\)\.as_default.*wrap_function"):
        EAGER[form]()


def step(form):
    """A function of a batch and a flag: the outputs, after the updates and a descent of Σy² by 0.1."""

    def build(inputs, flag):
        with tf.variable_scope("net"):
            outputs = FORMS[form](inputs, flag)
        gamma, beta = tf.trainable_variables()
        with tf.control_dependencies([outputs, *tf.get_collection(UPDATES)]):
            descents = [
                tf.assign_sub(variable, 0.1 * gradient)
                for variable, gradient in zip((gamma, beta), tf.gradients(outputs**2, [gamma, beta]), strict=True)
            ]
        with tf.control_dependencies(descents):
            return tf.identity(outputs)

    return build


SIGNATURE = [tf.TensorSpec([None, 2], tf.float64), tf.TensorSpec([], tf.bool)]


@pytest.mark.filterwarnings("ignore:.*tf.layers.batch_normalization. is deprecated:UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_under_wrap_function_it_trains_and_updates_as_tf_layers_does(form):
    function = tf.wrap_function(step(form), SIGNATURE)
    values = {variable.name.partition(":")[0]: variable for variable in function.variables}
    assert set(values) == {f"net/bn/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")}

    mean, variance = oracle.statistics(BATCH)
    outputs = function(tf.constant(BATCH), tf.constant(True))
    np.testing.assert_allclose(outputs, oracle.normalized(BATCH, mean, variance), rtol=1e-9)
    np.testing.assert_allclose(values["net/bn/moving_mean"], mean * 0.5, rtol=1e-9)
    np.testing.assert_allclose(values["net/bn/moving_variance"], 0.5 + variance * 0.5, rtol=1e-9)
    gamma = 1.0 - 0.1 * 2.0 * (oracle.normalized(BATCH, mean, variance) ** 2).sum(0)
    np.testing.assert_allclose(values["net/bn/gamma"], gamma, rtol=1e-9)

    outputs = function(tf.constant(BATCH[:1]), tf.constant(False))
    np.testing.assert_allclose(
        outputs, oracle.normalized(BATCH[:1], mean * 0.5, 0.5 + variance * 0.5, gamma), rtol=1e-9
    )
    np.testing.assert_allclose(values["net/bn/moving_mean"], mean * 0.5, rtol=1e-9)


def test_under_wrap_function_the_statistics_are_listed():
    function = tf.wrap_function(step("wrapper"), SIGNATURE)
    names = [variable.name for variable in moving_statistics(function.graph)]
    assert names == ["net/bn/moving_mean:0", "net/bn/moving_variance:0"]


@pytest.mark.parametrize("form", ["wrapper", "wrapper, collected", "slim"])
def test_in_a_function_of_a_graph_it_trains_and_updates(form, start):
    with tf.Graph().as_default():
        inputs, flag = tf.placeholder(tf.float64, [None, 2]), tf.placeholder(tf.bool, [])
        outputs = tf.wrap_function(step(form), SIGNATURE)(inputs, flag)
        session = start()
        mean, variance = oracle.statistics(BATCH)
        got = session.run(outputs, {inputs: BATCH, flag: True})
        np.testing.assert_allclose(got, oracle.normalized(BATCH, mean, variance), rtol=1e-9)
        moving_mean, moving_variance = session.run(moving_statistics())
        np.testing.assert_allclose(moving_mean, mean * 0.5, rtol=1e-9)
        np.testing.assert_allclose(moving_variance, 0.5 + variance * 0.5, rtol=1e-9)
