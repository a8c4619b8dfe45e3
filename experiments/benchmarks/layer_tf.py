"""One batch norm layer alone, by TensorFlow's graph mode: each form of this library, and tf.layers with and without its kernel.

Also a copy of the same tensor, which is the least that writing an output of that size costs.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

import bn_graph
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from experiments.benchmarks.child import served

__all__ = ["FORMS", "layers"]

DECAY = 0.99


def _in_collection(inputs: tf.Tensor, is_training: bool) -> tf.Tensor:
    updates = tf.GraphKeys.UPDATE_OPS
    return bn_graph.batch_norm_wrapper(inputs, is_training, decay=DECAY, updates_collection=updates)


def _slim(inputs: tf.Tensor, is_training: bool) -> tf.Tensor:
    return slim.batch_norm(inputs, is_training=is_training, decay=DECAY, scale=True)


def _convolutional(inputs: tf.Tensor, is_training: bool) -> tf.Tensor:
    average = tf.train.ExponentialMovingAverage(DECAY)
    normalizer = bn_graph.ConvolutionalBatchNormalizer(inputs.shape.as_list()[-1], 1e-3, average, True)
    assigner = normalizer.get_assigner()
    outputs = normalizer.normalize(inputs, train=is_training)
    if is_training:
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, assigner)
    return outputs


def _tf_layers(inputs: tf.Tensor, is_training: bool, *, fused: bool) -> tf.Tensor:
    return legacy_layers().batch_normalization(inputs, training=is_training, momentum=DECAY, fused=fused)


FORMS: dict[str, Callable[[tf.Tensor, bool], tf.Tensor]] = {
    "wrapper": partial(bn_graph.batch_norm_wrapper, decay=DECAY),
    "wrapper, updates in a collection": _in_collection,
    "slim": _slim,
    "ConvolutionalBatchNormalizer": _convolutional,
    "tf.layers fused": partial(_tf_layers, fused=True),
    "tf.layers not fused": partial(_tf_layers, fused=False),
}
"""Called with inputs and ``is_training``; what is not updated in place is in ``UPDATE_OPS``."""

RANK_4_ONLY = ("ConvolutionalBatchNormalizer", "tf.layers fused")


def layers(threads: int, shape: Sequence[int]) -> dict[str, Callable]:
    """``run`` is asked for ``{"what": "<form>, <mode>", "count": n}``, or for "copy"; ``names`` tells what there is."""
    with tf.Graph().as_default() as graph:
        # The tensors are in the graph already, for feeding would copy them; the graph does not know the batch.
        inputs, gradient = (
            tf.get_variable(name, initializer=tf.random.normal(shape, seed=0), trainable=False, use_resource=True)
            for name in ("inputs", "gradient")
        )
        x = tf.placeholder_with_default(inputs.read_value(), [None, *shape[1:]])
        fetches = {
            f"{form}, {mode}": _fetches(form, x, gradient if mode == "training" else None)
            for form in FORMS
            for mode in ("inference", "training")
            if len(shape) == 4 or form not in RANK_4_ONLY
        }
        session = tf.Session(graph=graph, config=bn_graph.session_config(threads))
        session.run(tf.global_variables_initializer())
        runs = {name: session.make_callable(each) for name, each in fetches.items()}
    original = session.run(inputs)
    return served(runs | {"copy": partial(np.copyto, np.empty_like(original), original)})


def _fetches(form: str, x: tf.Tensor, gradient: tf.Variable | None) -> list:
    """The outputs; in training also the gradients of the inputs, gamma and beta, and the updates."""
    before = len(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    with tf.variable_scope(None, default_name="form") as scope:
        fetches = [FORMS[form](x, gradient is not None)]
    if gradient is not None:
        own = tf.trainable_variables(f"{scope.name}/")
        fetches += tf.gradients(fetches[0], [x, *own], gradient.read_value())
    return [*fetches, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)[before:]]
