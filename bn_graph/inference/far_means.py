"""A frozen graph's kernels of batch norm written out where their means lie far from 0, so that no digits are lost.

Where all that a fused kernel takes beside its inputs is constant, TensorFlow computes ``x·s + (β − μ·s)`` in its place, when
it optimizes the graph. Both terms are larger than the result by as many times as μ is larger than σ, and so is its rounding:
at 10⁵ times, the result is 10⁻² off. What is written out here is ``(x − μ)·s + β``, which TensorFlow leaves as it is.
"""

import numpy as np

from bn_graph.graphs.ops import FUSED
from bn_graph.inference.folding import Constants, imported
from bn_graph.inference.switching import splice
from bn_graph.layers.fused_kernel import FAR
from bn_graph.layers.moments import normalize
from bn_graph.tf1 import tf

__all__ = ["with_far_means_subtracted"]


def with_far_means_subtracted(graph_def: tf.GraphDef) -> tf.GraphDef:
    """The graph with plain arithmetic for its kernels of batch norm whose mean lies far from 0 in some channel.

    "Far" is more than `fused_kernel.FAR` standard deviations. All other kernels stay, which run faster and are known to
    converters.

    Args:
        graph_def: frozen, without functions; not changed. Its kernels are of inference.

    Returns:
        The rewritten GraphDef. The kernel's name is that of an ``Identity`` of the result, and begins the new ops' names.
    """
    rewritten = tf.GraphDef()
    rewritten.CopyFrom(graph_def)
    nodes = {node.name: node for node in rewritten.node}
    with imported(graph_def) as (graph, constants):
        for op in graph.get_operations():
            if op.type in FUSED and _only_normalizes(op) and _is_far(op, constants):
                _write_out(rewritten, nodes[op.name], op)
    return rewritten


def _only_normalizes(op: tf.Operation) -> bool:
    """Whether nothing reads the kernel's other results; half precision is left to it too."""
    return op.inputs[0].dtype == tf.float32 and not any(result.consumers() for result in op.outputs[1:])


def _is_far(op: tf.Operation, constants: Constants) -> bool:
    if not all(constants.has(tensor) for tensor in op.inputs[1:5]):
        return False
    mean, variance = (constants.value(tensor) for tensor in op.inputs[3:5])
    return bool(np.any(np.square(mean) > FAR**2 * (variance + op.get_attr("epsilon"))))


def _write_out(graph_def: tf.GraphDef, node: tf.NodeDef, op: tf.Operation) -> None:
    along = [-1 if letter == "C" else 1 for letter in op.get_attr("data_format").decode()]

    def make(x: tf.Tensor, **parameters: tf.Tensor) -> tf.Tensor:
        gamma, beta, mean, variance = (tf.reshape(value, along) for value in parameters.values())
        return normalize(x - mean, variance, gamma, beta, op.get_attr("epsilon"))

    keys = ("x", "gamma", "beta", "mean", "variance")
    given = {key: (tensor.dtype, tensor.shape, tensor.name) for key, tensor in zip(keys, op.inputs, strict=False)}
    result = splice(graph_def, f"{node.name}/written_out", make, given)
    waits_for = [name for name in node.input if name.startswith("^")]
    node.Clear()
    node.name, node.op = op.name, "Identity"
    node.input.extend([result, *waits_for])
    node.attr["T"].type = op.inputs[0].dtype.as_datatype_enum
