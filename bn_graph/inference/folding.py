"""Batch norm folded into the matmul or convolution before it, in a frozen graph, by TensorFlow's constant folding.

At inference batch norm is one multiplication and one addition per channel, y·s + o. After a linear op the multiplication
can go into its weights: ``conv(x, W)·s + o = conv(x, W·s) + o``. TensorFlow's graph optimizer (Grappler) does that to a
``Conv2D`` that a ``Mul`` follows, and to nothing else. So what follows each linear op here (subtractions,
multiplications, a fused batch norm op, the linear op's own bias) is first written as one s and one o; every linear
op is shown to Grappler as the 1×1 convolution that it is per channel; and the weights that come back are put in.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.graphs.graph import build, downstream, producer, uses
from bn_graph.graphs.ops import FUSED
from bn_graph.tf1 import optimized_graph, tf

__all__ = ["fold_batch_norm"]

_MATMULS = {"MatMul": "transpose_b", "BatchMatMulV2": "adj_y"}
_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative")
_LINEAR = (*_MATMULS, *_CONVOLUTIONS)
_ADDS = ("Add", "AddV2", "BiasAdd")
_SCALING = ("Mul", "RealDiv", *FUSED)
_KEEP_THE_LAST_AXIS = ("Reshape", "Squeeze", "ExpandDims")
_READS_THE_SHAPE = ("Shape", "ShapeN", "Size", "Rank")
_PASSES = ("Identity", "Snapshot", "StopGradient", "CheckNumerics")


class _Chain(NamedTuple):
    """A linear op, the ops after it that together are y·scale + offset per channel, and where that leads."""

    linear: tf.Operation
    affine: list[tuple[tf.Operation, int]]  # each with the number of the input that the chain comes in by
    scale: np.ndarray
    offset: np.ndarray


def fold_batch_norm(graph_def: tf.GraphDef, outputs: Sequence[str]) -> tf.GraphDef:
    """Folds every multiplication per channel that follows a matmul or convolution into its weights.

    Followed are ``MatMul``, ``Conv2D`` (``tf.nn.conv1d`` and dilated ones too), ``Conv3D`` and depthwise convolutions with
    constant weights, over additions and multiplications by constants of one value per channel, ``FusedBatchNorm`` ops at
    inference, and reshapes that keep the channel axis the last; as long as nothing else reads the values between,
    and no output is one of them.

    Args:
        graph_def: frozen, without functions; not changed.
        outputs: names of the ops that must stay.

    Returns:
        The folded GraphDef, pruned to `outputs`. What could not be folded is in it as it was. The offset is one
        ``BiasAdd`` named as the linear op and ``_folded``.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", 3.2: w_fold = γ·w/√(σ² + ε).
    """
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    with tf.Session(graph=graph) as session:
        constants = _Constants(session)
        linear = [op for op in graph.get_operations() if _has_constant_weights(op, constants)]
        chains = [_chain(op, constants, set(outputs)) for op in linear]
        chains = [chain for chain in chains if any(op.type in _SCALING for op, _ in chain.affine)]
        weights = [constants.value(chain.linear.inputs[1]) for chain in chains]
    folded = _weights_by_grappler(weights, [chain.scale for chain in chains])
    rewritten = tf.GraphDef()
    rewritten.CopyFrom(graph_def)
    for chain, new_weights in zip(chains, folded, strict=True):
        _put_in(rewritten, chain, new_weights)
    rewritten = tf.graph_util.extract_sub_graph(rewritten, list(outputs))
    return tf.graph_util.remove_training_nodes(rewritten, protected_nodes=list(outputs))


class _Constants:
    """Which tensors of a frozen graph are constant, and their values."""

    _SOURCES = ("Placeholder", "PlaceholderWithDefault", "PlaceholderV2")

    def __init__(self, session: tf.Session):
        self._session = session
        built = build(session.graph)
        sources = [op for op in session.graph.get_operations() if op.type in self._SOURCES or op.op_def.is_stateful]
        varying = downstream(uses(built), [built.ids[op.name] for op in sources], control=False)
        self._varying = {built.names[node] for node in varying}

    def has(self, tensor: tf.Tensor) -> bool:
        return tensor.op.name not in self._varying

    def value(self, tensor: tf.Tensor) -> np.ndarray:
        return self._session.run(tensor)


def _has_constant_weights(op: tf.Operation, constants: _Constants) -> bool:
    if op.type not in _LINEAR or constants.has(op.inputs[0]) or not constants.has(op.inputs[1]):
        return False
    weights, is_matmul = op.inputs[1].shape, op.type in _MATMULS
    return weights.is_fully_defined() and not (is_matmul and (weights.rank != 2 or op.get_attr(_MATMULS[op.type])))


def _chain(linear: tf.Operation, constants: _Constants, outputs: set[str]) -> _Chain:
    """Follows the ops after `linear` for as long as each is y·scale + offset with one value per channel."""
    tensor = linear.outputs[0]
    axis, rank = _channel_axis(linear), tensor.shape.rank
    channels = tensor.shape.as_list()[axis] if rank is not None else None
    scale, offset, affine = np.ones(channels or 1), np.zeros(channels or 1), []
    while channels is not None and tensor.op.name not in outputs and len(_readers(tensor)) == 1:
        op = _readers(tensor)[0]
        if any(output.consumers() for output in op.outputs[1:]):
            break
        if op.type in _PASSES or _keeps_the_last_axis(op, tensor, axis, channels):
            tensor = op.outputs[0]
            continue
        step = _step(op, tensor, axis, channels, constants)
        if step is None:
            break
        scale, offset = scale * step[0], offset * step[0] + step[1]
        affine.append((op, _place(op, tensor)))
        tensor = op.outputs[0]
    return _Chain(linear, affine, scale, offset)


def _readers(tensor: tf.Tensor) -> list[tf.Operation]:
    """The ops that read its values, and not only its shape, as contrib's batch norm of rank 2 does beside the kernel."""
    return [op for op in tensor.consumers() if op.type not in _READS_THE_SHAPE]


def _channel_axis(linear: tf.Operation) -> int:
    """-1, or 1 where the channels come first."""
    if linear.type in _MATMULS:
        return -1
    return 1 if linear.get_attr("data_format").startswith(b"NC") else -1


def _keeps_the_last_axis(op: tf.Operation, tensor: tf.Tensor, axis: int, channels: int) -> bool:
    if op.type not in _KEEP_THE_LAST_AXIS or axis != -1 or _place(op, tensor) != 0:
        return False
    shape = op.outputs[0].shape
    return bool(shape.rank) and shape.as_list()[-1] == channels


def _step(
    op: tf.Operation, tensor: tf.Tensor, axis: int, channels: int, constants: _Constants
) -> tuple[np.ndarray, np.ndarray] | None:
    """The scale and the offset that `op` applies to `tensor`, per channel; None if it does something else."""
    if op.type in FUSED:
        return _fused_step(op, tensor, axis, constants)
    if op.type not in (*_ADDS, "Sub", "Mul", "RealDiv") or tensor.shape.rank is None:
        return None
    place = _place(op, tensor)
    other = op.inputs[1 - place]
    if not constants.has(other):
        return None
    rank, value = tensor.shape.rank, constants.value(other)
    if op.type == "BiasAdd" and op.get_attr("data_format") == b"NCHW":
        value = value.reshape([-1] + [1] * (rank - 2))
    value = _per_channel(value, rank, axis % rank, channels)
    if value is None:
        return None
    if op.type in _ADDS:
        return np.ones(channels), value
    if op.type == "Sub":
        return (np.ones(channels), -value) if place == 0 else (-np.ones(channels), value)
    if op.type == "Mul":
        return value, np.zeros(channels)
    return (1.0 / value, np.zeros(channels)) if place == 0 else None


def _place(op: tf.Operation, tensor: tf.Tensor) -> int:
    return [operand.name for operand in op.inputs].index(tensor.name)


def _fused_step(
    op: tf.Operation, tensor: tf.Tensor, axis: int, constants: _Constants
) -> tuple[np.ndarray, np.ndarray] | None:
    channels_first = op.get_attr("data_format").startswith(b"NC")
    if _place(op, tensor) != 0 or op.get_attr("is_training") or channels_first != (axis == 1):
        return None
    if not all(constants.has(operand) for operand in op.inputs[1:]):
        return None
    gamma, beta, mean, variance = (constants.value(operand).astype(np.float64) for operand in op.inputs[1:])
    scale = gamma / np.sqrt(variance + op.get_attr("epsilon"))
    return scale, beta - mean * scale


def _per_channel(value: np.ndarray, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """`value`, as it broadcasts against a tensor of this rank, as a float64 vector; None if it varies along other axes."""
    if value.ndim > rank:
        return None
    shape = [1] * (rank - value.ndim) + list(value.shape)
    if any(size != 1 for dimension, size in enumerate(shape) if dimension != axis):
        return None
    return np.broadcast_to(value.reshape(-1).astype(np.float64), [channels])


def _weights_by_grappler(weights: Sequence[np.ndarray], scales: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The weights times their scales, along the last axis (the last two of a depthwise convolution), folded by Grappler."""
    if not weights:
        return []
    with tf.Graph().as_default() as graph:
        inputs = {}
        for number, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
            kernel = weight.reshape([1, 1, -1, scale.size])
            x = inputs[f"x{number}"] = tf.placeholder(kernel.dtype, [None, 1, 1, kernel.shape[2]])
            scaled = tf.nn.conv2d(x, tf.constant(kernel), 1, "VALID") * tf.constant(scale.astype(kernel.dtype))
            tf.identity(scaled, name=f"y{number}")
    outputs = [f"y{number}" for number in range(len(weights))]
    nodes = {node.name: node for node in _constant_folded(graph, inputs, outputs).node}
    return [
        _folded_kernel(nodes, output).reshape(weight.shape) for output, weight in zip(outputs, weights, strict=True)
    ]


def _constant_folded(graph: tf.Graph, inputs: Mapping[str, tf.Tensor], outputs: Sequence[str]) -> tf.GraphDef:
    """What Grappler's constant folding, and no other of its passes, makes of a graph of plain ops."""
    with graph.as_default():
        meta_graph = tf.train.export_meta_graph()
        fetched = {name: graph.get_operation_by_name(name).outputs[0] for name in outputs}
        signature = tf.saved_model.predict_signature_def(dict(inputs), fetched)
    meta_graph.signature_def["serving_default"].CopyFrom(signature)
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1  # do not pass over small graphs
    config.graph_options.rewrite_options.optimizers.append("constfold")
    return optimized_graph(config, meta_graph)


def _folded_kernel(nodes: Mapping[str, tf.NodeDef], output: str) -> np.ndarray:
    node = nodes[output]
    while node.op == "Identity":
        node = nodes[producer(node.input[0])]
    kernel = nodes[producer(node.input[1])] if node.op == "Conv2D" else None
    if kernel is None or kernel.op != "Const":
        raise RuntimeError(f"Grappler did not fold a multiplication into a 1×1 convolution; it left {node.op}.")
    return tf.make_ndarray(kernel.attr["value"].tensor)


def _put_in(graph_def: tf.GraphDef, chain: _Chain, weights: np.ndarray) -> None:
    """Gives the linear op the new weights and a BiasAdd, and makes Identities of the ops that these two replace."""
    nodes = {node.name: node for node in graph_def.node}
    name, dtype = chain.linear.name, chain.linear.outputs[0].dtype
    consumer = nodes[_readers(chain.linear.outputs[0])[0].name]
    consumer.input[:] = [f"{name}_folded" if edge == name else edge for edge in consumer.input]
    for op, place in chain.affine:
        node = nodes[op.name]
        edges = [node.input[place], *(edge for edge in node.input if edge.startswith("^"))]
        node.Clear()
        node.name, node.op = op.name, "Identity"
        node.input[:] = edges
        node.attr["T"].type = dtype.as_datatype_enum
    nodes[name].input[1] = f"{name}_folded/weights"
    bias_add = graph_def.node.add(name=f"{name}_folded", op="BiasAdd", input=[name, f"{name}_folded/offset"])
    bias_add.attr["T"].type = dtype.as_datatype_enum
    bias_add.attr["data_format"].s = b"NHWC" if _channel_axis(chain.linear) == -1 else b"NCHW"
    for leaf, value in (("weights", weights), ("offset", chain.offset.astype(dtype.as_numpy_dtype))):
        constant = graph_def.node.add(name=f"{name}_folded/{leaf}", op="Const")
        constant.attr["dtype"].type = dtype.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
