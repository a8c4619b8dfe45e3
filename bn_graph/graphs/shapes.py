"""Static shapes: how many dimensions a tensor has and how long they are, so far as the file says or ops imply it."""

from typing import Any

from bn_graph.graphs.graph import Graph, Ref
from bn_graph.graphs.ops import ARITHMETIC, RANKS, SAME_RANK, VARIABLES
from bn_graph.graphs.values import constant_node, few_integers, strip

__all__ = ["Shape", "rank", "static_shape", "stored_shape"]

_MOST_STEPS = 20
_SAME_SHAPE = SAME_RANK - ARITHMETIC - {"Maximum"} | {"BiasAdd"}  # the rest broadcasts

Shape = list[int | None]
"""The length of each dimension; None where it is unknown."""


def stored_shape(graph: Graph, ref: Ref) -> Shape | None:
    """A tensor's shape as the node's ``_output_shapes`` have it; None where they are left out, or its rank is unknown."""
    node, port = ref
    attributes = graph.protos[node].attr
    shapes = attributes["_output_shapes"].list.shape if "_output_shapes" in attributes else ()
    return _sizes(shapes[port]) if port < len(shapes) else None


def static_shape(graph: Graph, ref: Ref) -> Shape | None:
    """As `stored_shape`; where shapes are left out, also by constants, placeholders, variables, reshapes and products.

    Example:
        >>> from bn_graph.graphs import graph, shapes
        >>> from bn_graph.graphs.protos import GraphDef, NodeDef
        >>> x = NodeDef(name="x", op="Placeholder")
        >>> for size in (1, 8):
        ...     _ = x.attr["shape"].shape.dim.add(size=size)
        >>> built = graph.build(GraphDef(node=[x, NodeDef(name="y", op="Relu", input=["x"])]))
        >>> shapes.static_shape(built, (built.ids["y"], 0))
        [1, 8]
    """
    columns: Shape = []  # of the last product on the way up, of which the rows are still to be found
    for _ in range(_MOST_STEPS):
        node, _ = ref
        op, inputs = graph.ops[node], graph.inputs[node]
        found = stored_shape(graph, ref)
        if found is None:
            found = _shape_of_source(graph, node)
        if found is not None:
            return found[:1] + columns if columns and len(found) == 2 else None if columns else found
        if op == "MatMul" and len(inputs) > 1 and not graph.protos[node].attr["transpose_a"].b:
            columns = columns or [_columns(graph, node)]
        elif op not in _SAME_SHAPE or not inputs:
            return None
        ref = inputs[0]
    return None


def _sizes(shape: Any) -> Shape | None:
    return None if shape.unknown_rank else [None if dim.size < 0 else dim.size for dim in shape.dim]


def _shape_of_source(graph: Graph, node: int) -> Shape | None:
    """The shape that an op itself states."""
    op, attributes = graph.ops[node], graph.protos[node].attr
    if op.startswith("Placeholder") or op in VARIABLES:
        return _sizes(attributes["shape"].shape) or None  # a placeholder of unknown shape may be written like a scalar
    if op == "Const":
        return _sizes(attributes["value"].tensor.tensor_shape)
    if op == "Reshape" and len(graph.inputs[node]) > 1:
        sizes = few_integers(constant_node(graph, graph.inputs[node][1]))
        return None if sizes is None else [None if size < 0 else size for size in sizes]
    return None


def _columns(graph: Graph, product: int) -> int | None:
    weights, _ = strip(graph, graph.inputs[product][1])
    sizes = _shape_of_source(graph, weights)
    if sizes is None or len(sizes) != 2:
        return None
    return sizes[0 if graph.protos[product].attr["transpose_b"].b else 1]


def rank(graph: Graph, ref: Ref) -> int | None:
    """How many dimensions a tensor has, where its op, its ``_output_shapes`` or a placeholder's shape says so."""
    for _ in range(_MOST_STEPS):
        sizes = stored_shape(graph, ref)
        if sizes is not None:
            return len(sizes)
        node, _ = ref
        if graph.ops[node] in RANKS:
            return RANKS[graph.ops[node]]
        if graph.ops[node].startswith("Placeholder"):
            return len(graph.protos[node].attr["shape"].shape.dim) or None
        if graph.ops[node] not in SAME_RANK or not graph.inputs[node]:
            return None
        ref = graph.inputs[node][0]
    return None
