"""Calls of batch norm layers that only the audit's search finds, with the tensors of a live graph that they stand for.

`layer_calls` reads update ops backwards. The audit starts from where values are normalized, and so also knows layers that
no op updates (built for inference only) and statistics that are written in other ways (a sum times the reciprocal of the
count). What it says is told here in names: which tensor goes in, which axes are averaged over, by which variables.
"""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from bn_graph.graphs.errors import AuditError
from bn_graph.graphs.graph import Graph, Ref, Uses, build, uses
from bn_graph.graphs.layers import Layer, find_layers
from bn_graph.graphs.normalizations import Normalization, Origin, Source, find_normalizations
from bn_graph.graphs.ops import FORWARDS, FUSED
from bn_graph.graphs.values import strip, variable
from bn_graph.tf1 import tf

__all__ = ["AuditedCall", "find_audited_calls"]

_SAME_VALUES = frozenset({"Identity", "Switch", "RefSwitch", "StopGradient"})
_ARITHMETIC = frozenset({"Add", "AddV2", "Sub", "Mul", "RealDiv", "Div", "DivNoNan", "BiasAdd", "Neg"})
_MOST_STEPS = 64
_PARTS = {"//then//": "//then_branch//", "//else//": "//else_branch//", "//call//": "//f//"}
"""How the audit, and how `layer_calls`, call the parts of a graph that are laid out for a call."""


class AuditedCall(NamedTuple):
    """One place where a layer normalizes.

    Attributes:
        inputs, axes, mean, variance, updates: as those of `layer_calls.LayerCall`.
        statistics: the batch statistics that it may normalize by, as (tensor, ``"mean"`` or ``"variance"``); empty where
            it always normalizes by the variables.
    """

    inputs: tuple[str, int]
    axes: tuple[int, ...]
    mean: str
    variance: str
    updates: bool
    statistics: tuple[tuple[tuple[str, int], str], ...]


def find_audited_calls(graph: tf.Graph, known: Collection[str]) -> list[AuditedCall]:
    """The calls of layers that have a moving mean and variance, neither of them among `known`.

    Args:
        graph: a live graph; it is not changed.
        known: names of variables' ops whose layers are not wanted.

    Returns:
        The calls in the order of the graph. Of a layer that batches update, those that are only for inference are left
        out. So is what can't be computed apart: inputs inside a function or loop, or with channels that can't be told.

    Example:
        >>> from bn_graph.graphs.audited_calls import find_audited_calls
        >>> from bn_graph.tf1 import legacy_layers, tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 2], name="x")
        ...     _ = legacy_layers().batch_normalization(x, training=False, name="bn1")
        ...     [(call.inputs, call.axes, call.mean, call.updates) for call in find_audited_calls(graph, [])]
        [(('x', 0), (0,), 'bn1/moving_mean', False)]
    """
    try:
        audited = build(graph.as_graph_def(add_shapes=True))
    except AuditError:  # functions that call one another too often
        return []
    users = uses(audited)
    known, in_loops = set(known), _in_loops(audited, users)
    found = []
    for layer in find_layers(audited, find_normalizations(audited, users)):
        if not {audited.names[node] for node in layer.statistics} & known:
            calls = [_call(graph, audited, in_loops, layer, place) for place in layer.places]
            calls = [call for call in calls if call is not None]
            updated = any(call.updates for call in calls)
            found += [call for call in calls if call.statistics or not updated]
    return found


def _in_loops(audited: Graph, users: Uses) -> set[int]:
    """The nodes of loops of control flow v1."""
    reached: set[int] = set()
    pending = [node for node, op in enumerate(audited.ops) if op in ("Enter", "RefEnter")]
    while pending:
        node = pending.pop()
        if node not in reached and audited.ops[node] not in ("Exit", "RefExit"):
            reached.add(node)
            pending.extend(user for user, _, _ in users.data[node])
    return reached


def _call(
    graph: tf.Graph, audited: Graph, in_loops: Collection[int], layer: Layer, place: Normalization
) -> AuditedCall | None:
    mean, variance = _variable(place.mean, layer.means), _variable(place.variance, layer.variances)
    inputs = _inputs(audited, place)
    if None in (mean, variance, inputs) or inputs[0] in in_loops:
        return None
    if any(audited.callers[node] is not None for node in (mean, variance, inputs[0])):
        return None
    axes = _axes(graph, audited, place, inputs, mean)
    if axes is None:
        return None
    statistics = [(source.statistic.ref, source.statistic.kind.value) for source in place.sources() if source.statistic]
    taken_in = set().union(*(update.statistics for update in layer.updates))
    return AuditedCall(
        inputs=(audited.names[inputs[0]], inputs[1]),
        axes=axes,
        mean=audited.names[mean],
        variance=audited.names[variance],
        updates=any(ref in taken_in for ref, _ in statistics),
        statistics=tuple(((_flat_name(audited, node), port), kind) for (node, port), kind in statistics),
    )


def _variable(sources: Iterable[Source], of_layer: Iterable[int]) -> int | None:
    """The one variable that a place reads or, where it reads none, its layer has; None if there are several."""
    variables = {source.node for source in sources if source.origin is Origin.VARIABLE} or set(of_layer)
    return variables.pop() if len(variables) == 1 else None


def _flat_name(audited: Graph, node: int) -> str:
    name = audited.names[node]
    for part, role in _PARTS.items():
        name = name.replace(part, role)
    return name


def _inputs(audited: Graph, place: Normalization) -> Ref | None:
    """The tensor that is normalized, in the shape in which it is: the audit's is that before all reshapes."""
    if place.kernel != "moments":
        found = audited.inputs[place.node][0]
    else:
        found = _entering(audited, place, lambda ref: strip(audited, ref) == place.inputs)
    while found is not None and found[0] >= 0 and audited.ops[found[0]] in _SAME_VALUES:
        found = audited.inputs[found[0]][0]
    return found if found is not None and found[0] >= 0 else None


def _entering(audited: Graph, place: Normalization, wanted: Callable[[Ref], bool]) -> Ref | None:
    """The `wanted` tensor that is nearest above the outputs of a place whose arithmetic is written out."""
    seen, pending = set(), [place.outputs[0]]
    while pending and len(seen) < _MOST_STEPS:
        node = pending.pop(0)
        if node in seen or node < 0:
            continue
        seen.add(node)
        for ref in audited.inputs[node]:
            if wanted(ref):
                return ref
        if audited.ops[node] in _ARITHMETIC | FORWARDS:
            pending.extend(source for source, _ in audited.inputs[node])
    return None


def _axes(graph: tf.Graph, audited: Graph, place: Normalization, inputs: Ref, mean: int) -> tuple[int, ...] | None:
    """All axes of the inputs but the channels'; None if that can't be told or isn't as long as the mean."""
    shape = _shape(graph, audited, inputs)
    if place.kernel in FUSED.values():
        layout = audited.protos[place.node].attr["data_format"].s.decode("ascii", "replace") or "NHWC"
        rank, channels = len(layout), [layout.index("C")]
    elif shape.rank is None:
        return None
    else:
        rank, channels = shape.rank, _channels(graph, audited, place, shape.rank, mean)
    held = tf.TensorShape(graph.get_operation_by_name(audited.names[mean]).get_attr("shape")).num_elements()
    sizes = [None] * rank if shape.rank is None else shape.as_list()
    channels = [axis for axis in channels if axis >= 0 and (None in (sizes[axis], held) or sizes[axis] == held)]
    return tuple(axis for axis in range(rank) if axis not in channels) if len(channels) == 1 else None


def _channels(graph: tf.Graph, audited: Graph, place: Normalization, rank: int, mean: int) -> list[int]:
    """The axes that may be the channels': that statistics of the batch leave, or along which the variable is laid."""
    reduced = {
        source.statistic.axes for source in place.sources() if source.statistic and source.statistic.axes is not None
    }
    if len(reduced) == 1:
        axes = {axis % rank for axis in reduced.pop()}
        return [axis for axis in range(rank) if axis not in axes]
    laid = _entering(audited, place, lambda ref: variable(audited, ref) == mean)
    sizes = None if laid is None else _shape(graph, audited, laid)
    if sizes is None or sizes.rank is None:
        return []
    first = rank - sizes.rank  # arithmetic puts the last axes of both together
    return [first + axis for axis, size in enumerate(sizes.as_list()) if size != 1] or [rank - 1]


def _shape(graph: tf.Graph, audited: Graph, ref: Ref) -> tf.TensorShape:
    if audited.callers[ref[0]] is not None:
        return tf.TensorShape(None)
    tensor = graph.get_tensor_by_name(f"{audited.names[ref[0]]}:{ref[1]}")
    return tf.TensorShape(None) if tensor.dtype == tf.resource else tensor.shape
