"""A graph as the audit walks it: numbered nodes, data and control edges, the bodies of called functions in place.

A node is a number; a tensor is a `Ref`, the number of its node and its port. Bodies of the functions that a node calls
(``If``, ``While``, ``PartitionedCall``, ``Defun``) are laid out once a call, each argument standing for what the
caller hands in, so that a walk passes through calls as it passes through anything else. Building a graph and each
closure cost time linear in nodes and edges; nothing recurses, cycles and missing nodes are passed over.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bn_graph.graphs.errors import AuditError
from bn_graph.graphs.protos import GraphDef, NodeDef

__all__ = ["ABSENT", "VARIABLES", "Call", "Graph", "Ref", "Uses", "build", "closure", "node_named", "uses"]

Ref = tuple[int, int]
"""A tensor: its node's number and the port."""

ABSENT: Ref = (-1, 0)
"""Stands for an input that names no node of the graph."""

VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable", "AutoReloadVariable"})

_FUNCTION_ATTRIBUTES = {
    "If": (1, {"then_branch": "then", "else_branch": "else"}),
    "StatelessIf": (1, {"then_branch": "then", "else_branch": "else"}),
    "While": (0, {"body": "body", "cond": "condition"}),
    "StatelessWhile": (0, {"body": "body", "cond": "condition"}),
    "PartitionedCall": (0, {"f": "call"}),
    "StatefulPartitionedCall": (0, {"f": "call"}),
    "TPUPartitionedCall": (0, {"f": "call"}),
    "RemoteCall": (1, {"f": "call"}),
    "XlaLaunch": (0, {"function": "call"}),
}
"""Calling ops: which input is their functions' argument 0, and the part that each function attribute plays."""

_PORTS = {"output_false": 0, "output_true": 1, "value_index": 1, "batch_mean": 1, "batch_variance": 2}
"""Ports that function bodies name, other than the first; a number after the name counts within a list."""

_LARGEST_LAYOUT = 200_000
"""How many nodes laid out for calls are always all right; beyond, ten for each node of the file are."""

_ASSIGNS = ("Assign", "ResourceApply", "Apply", "SparseApply", "ResourceSparseApply", "ScatterAdd", "ResourceScatter")


class Call(NamedTuple):
    """One function that a node may call.

    Attributes:
        part: ``then`` or ``else`` of a cond, ``body`` or ``condition`` of a loop, ``call``, or ``case 0`` and so on.
        results: what it returns, by port.
        effects: nodes that run whenever it is called, returned or not.
    """

    part: str
    results: list[Ref]
    effects: list[int]


class Graph(NamedTuple):
    """All lists go by a node's number.

    Attributes:
        names: in a called function, behind the caller's: ``cond//then//moments/mean``.
        ops, inputs, controls, protos: each node's type, data inputs, control inputs and NodeDef.
        callers: the node whose call laid this one out, and the part it is in; (-1, "") in the graph itself.
        ids: the graph's own nodes (not those of functions) by name.
        calls: what each calling node calls.
    """

    names: list[str]
    ops: list[str]
    inputs: list[list[Ref]]
    controls: list[list[int]]
    protos: list[NodeDef]
    callers: list[tuple[int, str]]
    ids: dict[str, int]
    calls: dict[int, list[Call]]


class Uses(NamedTuple):
    """Who uses each node: `data` holds (user, place among its inputs, port used), `control` the users' numbers."""

    data: list[list[tuple[int, int, int]]]
    control: list[list[int]]


class _Body(NamedTuple):
    """Nodes still to be laid out."""

    prefix: str
    nodes: Iterable[NodeDef]
    arguments: Mapping[str, Ref]
    caller: int
    part: str
    function: object
    within: frozenset[str]


def build(graph_def: GraphDef) -> Graph:
    """Numbers the nodes of a graph and lays out the functions it calls.

    Args:
        graph_def: is referred to, not copied.

    Returns:
        `Graph`.

    Raises:
        AuditError: the functions' calls of one another take more nodes than ten times the file's.

    Example:
        >>> from bn_graph.graphs import graph
        >>> from bn_graph.graphs import protos
        >>> one = protos.NodeDef(name="one", op="Const")
        >>> minus = protos.NodeDef(name="minus", op="Neg", input=["one"])
        >>> built = graph.build(protos.GraphDef(node=[one, minus]))
        >>> built.ops[built.inputs[built.ids["minus"]][0][0]]
        'Const'
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    graph = Graph([], [], [], [], [], [], {}, {})
    in_file = len(graph_def.node) + sum(len(function.node_def) for function in functions.values())
    limit = len(graph_def.node) + max(_LARGEST_LAYOUT, 10 * in_file)
    pending = [_Body("", graph_def.node, {}, -1, "", None, frozenset())]
    while pending:
        body = pending.pop()
        ids = _lay_out(graph, body)
        if body.function is None:
            graph.ids.update(ids)
        else:
            graph.calls.setdefault(body.caller, []).append(_call(graph, body, ids))
        pending.extend(_called(graph, functions, ids.values(), body.within))
        if len(graph.names) + sum(len(body.nodes) for body in pending) > limit:
            raise AuditError(f"its functions call one another so often that they come to more than {limit:,} nodes")
    return graph


def _lay_out(graph: Graph, body: _Body) -> dict[str, int]:
    """Adds the nodes of a body; returns their numbers by their own names."""
    start = len(graph.names)
    ids = {node.name: start + place for place, node in enumerate(body.nodes)}
    for node in body.nodes:
        data, controls = [], []
        for name in node.input:
            if name.startswith("^"):
                controls.append(ids.get(name[1:], -1))
            else:
                data.append(_ref(name, ids, body.arguments))
        graph.names.append(body.prefix + node.name)
        graph.ops.append(node.op)
        graph.inputs.append(data)
        graph.controls.append([node for node in controls if node >= 0])
        graph.protos.append(node)
        graph.callers.append((body.caller, body.part))
    return ids


def _ref(name: str, ids: Mapping[str, int], arguments: Mapping[str, Ref]) -> Ref:
    if name in ids:  # the usual case, and the fast one
        return ids[name], 0
    if name in arguments:
        return arguments[name]
    node, *rest = name.split(":")
    if node not in ids:
        return arguments.get(node, ABSENT)
    port = int(rest[-1]) if rest and rest[-1].isdigit() else 0
    return ids[node], _PORTS.get(rest[0], port) if len(rest) == 2 else port


def _called(graph: Graph, functions: Mapping[str, object], nodes: Iterable[int], within: frozenset[str]) -> list[_Body]:
    """The bodies that nodes call, to be laid out; a function that calls itself adds nothing by that."""
    bodies = []
    for node in nodes:
        op = graph.ops[node]
        if op in functions:
            bodies.append(_body(graph, functions[op], node, "call", 0))
        elif op in _FUNCTION_ATTRIBUTES:
            first, attributes = _FUNCTION_ATTRIBUTES[op]
            for attribute, part in attributes.items():
                function = functions.get(graph.protos[node].attr[attribute].func.name)
                if function is not None:
                    bodies.append(_body(graph, function, node, part, first))
        elif op in ("Case", "StatelessCase"):
            branches = graph.protos[node].attr["branches"].list.func
            for number, branch in enumerate(branches):
                if branch.name in functions:
                    bodies.append(_body(graph, functions[branch.name], node, f"case {number}", 1))
    called = [(body, body.function.signature.name) for body in bodies]
    return [body._replace(within=within | {name}) for body, name in called if name not in within]


def _body(graph: Graph, function: object, caller: int, part: str, first: int) -> _Body:
    given = graph.inputs[caller][first:]
    arguments = dict(zip((argument.name for argument in function.signature.input_arg), given, strict=False))
    return _Body(f"{graph.names[caller]}//{part}//", function.node_def, arguments, caller, part, function, frozenset())


def _call(graph: Graph, body: _Body, ids: Mapping[str, int]) -> Call:
    signature = body.function.signature
    results = [_ref(body.function.ret[output.name], ids, body.arguments) for output in signature.output_arg]
    effects = {ids[name] for name in body.function.control_ret.values() if name in ids}
    # Functions of before TensorFlow 1.14 list no effects; their stateful nodes run all the same.
    effects.update(node for node in ids.values() if graph.ops[node].startswith(_ASSIGNS))
    effects.update(node for node in ids.values() if graph.ops[node] in ("StatefulPartitionedCall", "If", "While"))
    return Call(body.part, results, sorted(effects))


def uses(graph: Graph) -> Uses:
    """Turns the edges of a graph round.

    Returns:
        `Uses`. A function's results and effects are used by the node that calls it, at place -1.

    Example:
        >>> from bn_graph.graphs import graph
        >>> from bn_graph.graphs.protos import GraphDef, NodeDef
        >>> nodes = [NodeDef(name="x", op="Placeholder"), NodeDef(name="y", op="Neg", input=["x"])]
        >>> built = graph.build(GraphDef(node=nodes))
        >>> graph.uses(built).data[built.ids["x"]]  # by node 1, as its input 0, port 0
        [(1, 0, 0)]
    """
    data = [[] for _ in graph.names]
    control = [[] for _ in graph.names]
    for user, inputs in enumerate(graph.inputs):
        for place, (node, port) in enumerate(inputs):
            if node >= 0:
                data[node].append((user, place, port))
        for node in graph.controls[user]:
            control[node].append(user)
    for caller, calls in graph.calls.items():
        for call in calls:
            for node, port in call.results:
                if node >= 0:
                    data[node].append((caller, -1, port))
            for node in call.effects:
                control[node].append(caller)
    return Uses(data, control)


def closure(graph: Graph, starts: Iterable[int], not_called: frozenset[tuple[int, str]] = frozenset()) -> set[int]:
    """Every node that runs when `starts` are run, themselves included: upstream over data, control and calls.

    Args:
        graph: the graph.
        starts: numbers of nodes.
        not_called: (calling node, part) of functions known not to be taken.

    Example:
        >>> from bn_graph.graphs import graph
        >>> from bn_graph.graphs.protos import GraphDef, NodeDef
        >>> nodes = [NodeDef(name="x", op="Placeholder"), NodeDef(name="y", op="Neg", input=["x"])]
        >>> built = graph.build(GraphDef(node=nodes))
        >>> sorted(built.names[node] for node in graph.closure(built, [built.ids["y"]]))
        ['x', 'y']
    """
    reached = set()
    pending = list(starts)
    while pending:
        node = pending.pop()
        if node in reached or node < 0:
            continue
        reached.add(node)
        pending.extend(source for source, _ in graph.inputs[node])
        pending.extend(graph.controls[node])
        for call in graph.calls.get(node, ()):
            if (node, call.part) not in not_called:
                pending.extend(source for source, _ in call.results)
                pending.extend(call.effects)
    return reached


def downstream(uses: Uses, starts: Iterable[int], *, control: bool = True) -> set[int]:
    """Every node that can't run without one of `starts`, themselves included; over data edges only without `control`."""
    reached = set()
    pending = list(starts)
    while pending:
        node = pending.pop()
        if node in reached:
            continue
        reached.add(node)
        pending.extend(user for user, _, _ in uses.data[node])
        if control:
            pending.extend(uses.control[node])
    return reached


def node_named(graph: Graph, name: str) -> int:
    """The number of the node behind an op's or tensor's name.

    Raises:
        AuditError: the graph has no such node; the message lists some whose names are like it.

    Example:
        >>> from bn_graph.graphs import graph
        >>> from bn_graph.graphs.protos import GraphDef, NodeDef
        >>> nodes = [NodeDef(name="x", op="Placeholder"), NodeDef(name="y", op="Neg", input=["x"])]
        >>> built = graph.build(GraphDef(node=nodes))
        >>> graph.node_named(built, "y:0")
        1
    """
    plain = name.removeprefix("^").partition(":")[0]
    if plain in graph.ids:
        return graph.ids[plain]
    alike = [other for other in graph.ids if other.endswith(f"/{plain}") or plain in other][:5]
    hint = f"; like it are {', '.join(alike)}" if alike else ""
    raise AuditError(f"the graph has no node named {plain!r}{hint}")
