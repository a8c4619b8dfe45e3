"""Batch norm folded into the matmul or convolution before it, in a frozen graph.

At inference batch norm is one multiplication and one addition per channel, y·s + o. After a linear op the multiplication
can go into its weights: ``conv(x, W)·s + o = conv(x, W·s) + o``. So what follows each linear op (additions,
multiplications, a kernel of batch norm, the linear op's own bias) is multiplied out to one s and one o.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.graphs.graph import build, downstream, uses
from bn_graph.graphs.ops import ADDITIONS, FUSED, GLOBAL
from bn_graph.tf1 import tf

__all__ = ["Constants", "fold_batch_norm", "imported", "obstacles"]

_MATMULS = {"MatMul": "transpose_b", "BatchMatMul": "adj_y", "BatchMatMulV2": "adj_y"}
_TRANSPOSED = ("Conv2DBackpropInput", "Conv3DBackpropInputV2")
_LINEAR = (*_MATMULS, *_TRANSPOSED, "Conv2D", "Conv3D", "DepthwiseConv2dNative")
_QUOTIENTS = ("RealDiv", "Div")
_SCALING = ("Mul", *_QUOTIENTS, *FUSED, *GLOBAL)
_ARITHMETIC = ("Sub", "Mul", *_QUOTIENTS, *ADDITIONS)
_BATCH_TO_SPACE = ("BatchToSpace", "BatchToSpaceND")
"""End an atrous convolution that is written as a dense one, of batches that a ``SpaceToBatch`` made."""
_RESHAPES = ("Reshape", "Squeeze", "ExpandDims", *_BATCH_TO_SPACE)
_READS_THE_SHAPE = ("Shape", "ShapeN", "Size", "Rank")
_PASSES = ("Identity", "Snapshot", "StopGradient", "PreventGradient")
_ROUNDING = 2.0**-8
"""The largest error of rounding a weight, as a share of its channel's largest: twice bfloat16's own."""


class _Step(NamedTuple):
    """An op after a linear one: the input that the chain comes in by, and whether an Identity can take its place."""

    op: tf.Operation
    place: int
    is_replaced: bool


class _Chain(NamedTuple):
    """A linear op, and the ops after it that together are y·scale + offset per channel; ``end``: why it goes no further."""

    linear: tf.Operation
    steps: list[_Step]
    scale: np.ndarray
    offset: np.ndarray
    end: str


def fold_batch_norm(graph_def: tf.GraphDef, outputs: Sequence[str]) -> tf.GraphDef:
    """Folds every multiplication per channel that follows a matmul or convolution into its weights.

    Followed are ``MatMul``, ``Conv2D`` and ``Conv3D`` (``tf.nn.conv1d``, transposed and atrous ones too) and depthwise
    convolutions with constant weights, over additions and multiplications by constants of one value per channel, kernels
    of batch norm at inference, casts, and reshapes that keep the channel axis the last; as long as nothing else reads
    the values between, no output is one of them, and the weights' dtype can hold the product.

    Args:
        graph_def: frozen, without functions; not changed.
        outputs: names of the ops that must stay.

    Returns:
        The folded GraphDef, pruned to `outputs`. What could not be folded is in it as it was. The offset is one
        ``BiasAdd`` named as the linear op and ``_folded``.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", 3.2: w_fold = γ·w/√(σ² + ε).
    """
    rewritten = tf.GraphDef()
    rewritten.CopyFrom(graph_def)
    nodes = {node.name: node for node in rewritten.node}
    with imported(graph_def) as (graph, constants):
        for op in graph.get_operations():
            if op.type in _LINEAR and _no_constant_weights(op, constants) is None:
                chain = _chain(op, constants, set(outputs))
                weights = _scaled_weights(chain, constants)
                if weights is not None and any(step.op.type in _SCALING for step in chain.steps):
                    _put_in(rewritten, nodes, chain, weights)
    rewritten = tf.graph_util.extract_sub_graph(rewritten, list(outputs))
    pruned = tf.graph_util.remove_training_nodes(rewritten, protected_nodes=list(outputs))
    pruned.versions.CopyFrom(graph_def.versions)  # which decides what old ops mean
    return pruned


def obstacles(
    graph_def: tf.GraphDef, outputs: Sequence[str], places: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, list[str]]:
    """Why layers are not folded into what comes before them; normalizations that are folded give no reason.

    Args:
        graph_def, outputs: as for `fold_batch_norm`, before folding.
        places: by layer, of each of its normalizations the names of two ops: whose output is normalized, and what the
            result is.
    """
    with imported(graph_def) as (graph, constants):
        found = {
            layer: dict.fromkeys(_obstacle(graph, *ends, constants, set(outputs)) for ends in of_layer)
            for layer, of_layer in places.items()
        }
    return {layer: [reason for reason in reasons if reason is not None] for layer, reasons in found.items()}


class Constants:
    """Which tensors of a frozen graph are constant, and their values."""

    _SOURCES = ("Placeholder", "PlaceholderWithDefault", "PlaceholderV2")

    def __init__(self, session: tf.Session):
        self._session = session
        built = build(session.graph)
        sources = [op for op in session.graph.get_operations() if op.type in self._SOURCES or op.op_def.is_stateful]
        varying = downstream(uses(built), [built.ids[op.name] for op in sources], control=False)
        self._varying = {built.names[node] for node in varying}

    def has(self, tensor: tf.Tensor) -> bool:
        """Whether a tensor is constant."""
        return tensor.op.name not in self._varying

    def value(self, tensor: tf.Tensor) -> np.ndarray:
        """In float64, which holds the values of every dtype that weights have."""
        return np.asarray(self._session.run(tensor)).astype(np.float64)


@contextlib.contextmanager
def imported(graph_def: tf.GraphDef) -> Iterator[tuple[tf.Graph, Constants]]:
    """The graph of a frozen GraphDef, and its constants, as long as the block lasts."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    with tf.Session(graph=graph) as session:
        yield graph, Constants(session)


# --- From a linear op down --------------------------------------------------------------------------------------------


def _no_constant_weights(op: tf.Operation, constants: Constants) -> str | None:
    """Why a linear op has no constant weights; None if it has."""
    values, weights = op.inputs[2 if op.type in _TRANSPOSED else 0], op.inputs[1]
    if constants.has(values) or not constants.has(weights) or not weights.dtype.is_floating:
        return f"{op.type} {op.name} has no constant weights as its second operand"
    if not weights.shape.is_fully_defined() or (op.type in _MATMULS and weights.shape.rank != 2):
        return f"the weights of {op.type} {op.name} have shape {weights.shape}"
    return None if op.outputs[0].shape.rank is not None else f"the rank of {op.name} is unknown"


def _weights_axes(linear: tf.Operation) -> list[int]:
    """The axes of the weights that the output's channels come from."""
    rank = linear.inputs[1].shape.rank
    if linear.type == "DepthwiseConv2dNative":
        return [rank - 2, rank - 1]
    is_transposed = linear.type in _TRANSPOSED or (linear.type in _MATMULS and linear.get_attr(_MATMULS[linear.type]))
    return [rank - 2 if is_transposed else rank - 1]


def _channel_axis(linear: tf.Operation) -> int:
    """-1, or 1 where the channels come first."""
    if linear.type in _MATMULS:
        return -1
    return 1 if linear.get_attr("data_format").startswith(b"NC") else -1


def _chain(linear: tf.Operation, constants: Constants, outputs: set[str]) -> _Chain:
    """Follows the ops after `linear` for as long as each is y·scale + offset with one value per channel."""
    tensor, axis = linear.outputs[0], _channel_axis(linear)
    channels = int(np.prod([linear.inputs[1].shape.as_list()[axis] for axis in _weights_axes(linear)]))
    chain = _Chain(linear, [], np.ones(channels), np.zeros(channels), "")
    while True:
        end = _only_one_reads(tensor, outputs)
        if end:
            return chain._replace(end=end)
        (op,) = _readers(tensor)
        place = _place(op, tensor)
        if op.type == "Cast" and op.outputs[0].dtype.is_floating:
            chain = chain._replace(steps=_with_cast(chain, op))
        elif op.type in (*_PASSES, "CheckNumerics") or _keeps_the_channels(op, place, axis, channels):
            chain.steps.append(_Step(op, place, op.type in _PASSES))
        else:
            affine = _affine(op, place, axis, channels, constants)
            if affine is None:
                return chain._replace(end=f"{op.type} {op.name} does more than scale and shift each channel")
            scale, offset = affine
            chain.steps.append(_Step(op, place, True))
            chain = chain._replace(scale=chain.scale * scale, offset=chain.offset * scale + offset)
        tensor = op.outputs[0]


def _only_one_reads(tensor: tf.Tensor, outputs: set[str]) -> str | None:
    """Why an op's output must stay what it is; None if one op reads it, and nothing else."""
    if tensor.op.name in outputs:
        return f"{tensor.op.name} is an output itself"
    readers = [op.name for op in _readers(tensor)]
    if len(readers) != 1 or any(output.consumers() for output in tensor.op.outputs[1:]):
        return f"more than one op reads {tensor.op.name}: {', '.join(readers)}"
    return None


def _readers(tensor: tf.Tensor) -> list[tf.Operation]:
    """The ops that read its values, and not only its shape, as contrib's batch norm of rank 2 does beside the kernel."""
    return [op for op in tensor.consumers() if op.type not in _READS_THE_SHAPE]


def _place(op: tf.Operation, tensor: tf.Tensor) -> int:
    return [operand.name for operand in op.inputs].index(tensor.name)


def _keeps_the_channels(op: tf.Operation, place: int, axis: int, channels: int) -> bool:
    if op.type not in _RESHAPES or axis != -1 or place != 0:
        return False
    if op.type == "BatchToSpaceND":  # its blocks are of the axes after the first
        rank, blocks = op.inputs[0].shape.rank, op.inputs[1].shape.num_elements()
        return rank is not None and blocks is not None and blocks <= rank - 2
    shape = op.outputs[0].shape
    return op.type == "BatchToSpace" or (bool(shape.rank) and shape.as_list()[-1] == channels)


def _with_cast(chain: _Chain, cast: tf.Operation) -> list[_Step]:
    """The steps and a cast; one back to the weights' dtype takes the cast from it away, where nothing kept is between."""
    steps = [*chain.steps, _Step(cast, 0, False)]
    if cast.outputs[0].dtype != chain.linear.outputs[0].dtype:
        return steps
    start = len(steps) - 2
    while start > 0 and steps[start].is_replaced:
        start -= 1
    if start < 0 or steps[start].op.type != "Cast":
        return steps
    return [*steps[:start], *(step._replace(is_replaced=True) for step in steps[start:])]


def _affine(
    op: tf.Operation, place: int, axis: int, channels: int, constants: Constants
) -> tuple[np.ndarray, np.ndarray] | None:
    """The scale and the offset that `op` applies to its input `place`, per channel; None if it does something else."""
    if op.type in FUSED or op.type in GLOBAL:
        return _kernel(op, axis, constants) if place == 0 else None
    rank = op.inputs[place].shape.rank if op.type in _ARITHMETIC else None
    if rank is None or not constants.has(op.inputs[1 - place]):
        return None
    value = constants.value(op.inputs[1 - place])
    if op.type == "BiasAdd" and op.get_attr("data_format") == b"NCHW":
        value = value.reshape([-1] + [1] * (rank - 2))
    vector = _per_channel(value, rank, axis % rank, channels)
    if vector is None:
        return None
    if op.type in ADDITIONS:
        return np.ones(channels), vector
    if op.type == "Sub":
        return (np.ones(channels), -vector) if place == 0 else (-np.ones(channels), vector)
    if op.type == "Mul":
        return vector, np.zeros(channels)
    return (1.0 / vector, np.zeros(channels)) if place == 0 else None


def _kernel(op: tf.Operation, axis: int, constants: Constants) -> tuple[np.ndarray, np.ndarray] | None:
    """As `_affine`, of a kernel of batch norm."""
    if not all(constants.has(operand) for operand in op.inputs[1:]):
        return None
    values = [constants.value(operand) for operand in op.inputs[1:5]]
    if op.type in GLOBAL:
        mean, variance, beta, gamma = values
        epsilon, channels_first = op.get_attr("variance_epsilon"), False
        gamma = gamma if op.get_attr("scale_after_normalization") else np.ones_like(gamma)
    else:
        gamma, beta, mean, variance = values
        epsilon, channels_first = op.get_attr("epsilon"), op.get_attr("data_format").startswith(b"NC")
        if op.get_attr("is_training"):
            return None
    scale = gamma / np.sqrt(variance + epsilon)
    return (scale, beta - mean * scale) if channels_first == (axis == 1) else None


def _per_channel(value: np.ndarray, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """`value`, as it broadcasts against a tensor of this rank, as a vector; None if it varies along other axes."""
    if value.ndim > rank:
        return None
    shape = [1] * (rank - value.ndim) + list(value.shape)
    if any(size != 1 for dimension, size in enumerate(shape) if dimension != axis):
        return None
    return np.broadcast_to(value.reshape(-1), [channels])


def _scaled_weights(chain: _Chain, constants: Constants) -> np.ndarray | None:
    """The weights times the scale of their channel, in their dtype; None if that can't hold them, or not the offset."""
    weights, axes = constants.value(chain.linear.inputs[1]), _weights_axes(chain.linear)
    shape = [size if axis in axes else 1 for axis, size in enumerate(weights.shape)]
    exact = weights * chain.scale.reshape(shape)
    dtype = chain.linear.inputs[1].dtype.as_numpy_dtype
    with np.errstate(over="ignore"):  # that is what is asked here
        rounded, offset = exact.astype(dtype), chain.offset.astype(dtype).astype(np.float64)
    others = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    error = np.abs(rounded.astype(np.float64) - exact)
    is_held = np.isfinite(offset).all() and (error <= _ROUNDING * np.abs(exact).max(others, keepdims=True)).all()
    return rounded if is_held else None


def _put_in(graph_def: tf.GraphDef, nodes: Mapping[str, tf.NodeDef], chain: _Chain, weights: np.ndarray) -> None:
    """Gives the linear op the new weights and a BiasAdd, and makes Identities of the ops that these two replace."""
    name, dtype = chain.linear.name, chain.linear.outputs[0].dtype
    consumer = nodes[chain.steps[0].op.name]
    consumer.input[:] = [f"{name}_folded" if edge == name else edge for edge in consumer.input]
    passed = dtype
    for op, place, is_replaced in chain.steps:
        if not is_replaced:
            passed = op.outputs[0].dtype
            continue
        node = nodes[op.name]
        edges = [node.input[place], *(edge for edge in node.input if edge.startswith("^"))]
        node.Clear()
        node.name, node.op = op.name, "Identity"
        node.input[:] = edges
        node.attr["T"].type = passed.as_datatype_enum
    nodes[name].input[1] = f"{name}_folded/weights"
    bias_add = graph_def.node.add(name=f"{name}_folded", op="BiasAdd", input=[name, f"{name}_folded/offset"])
    bias_add.attr["T"].type = dtype.as_datatype_enum
    bias_add.attr["data_format"].s = b"NHWC" if _channel_axis(chain.linear) == -1 else b"NCHW"
    for leaf, value in (("weights", weights), ("offset", chain.offset.astype(dtype.as_numpy_dtype))):
        constant = graph_def.node.add(name=f"{name}_folded/{leaf}", op="Const")
        constant.attr["dtype"].type = dtype.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


# --- From a layer up --------------------------------------------------------------------------------------------------


def _obstacle(graph: tf.Graph, normalized: str, result: str, constants: Constants, outputs: set[str]) -> str | None:
    op = graph.get_operation_by_name(normalized)
    while op.type not in _LINEAR:
        source = _values(op, constants)
        if source is None:
            return f"{op.type} {op.name} comes before it, and no matmul or convolution"
        op = source.op
    unfit = _no_constant_weights(op, constants)
    if unfit is not None:
        return unfit
    chain = _chain(op, constants, outputs)
    if _scaled_weights(chain, constants) is None:
        return f"{op.inputs[1].dtype.name} does not hold the folded weights of {op.type} {op.name}"
    return chain.end if result not in [step.op.name for step in chain.steps] else None


def _values(op: tf.Operation, constants: Constants) -> tf.Tensor | None:
    """The input that an op of a chain would be reached by; None for an op that is in no chain."""
    if op.type in (*_PASSES, *_RESHAPES, "Cast", "CheckNumerics", *FUSED, *GLOBAL):
        return op.inputs[0]
    varying = [operand for operand in op.inputs if not constants.has(operand)]
    return varying[0] if op.type in _ARITHMETIC and len(varying) == 1 else None
