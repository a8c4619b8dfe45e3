"""The model of a graph: numbered nodes, data and control edges, the bodies of called functions in place.

A node is a number; a tensor is a `Ref`, the number of its node and its port. Bodies of the functions that a node calls
(``If``, ``While``, ``PartitionedCall``, ``Defun``) are laid out once a call, each argument standing for what the
caller passes in, so that a walk passes through calls as it passes through anything else. An input that names no node of
the graph gets a node of its own, of type `ops.ABSENT` and without inputs; so does each input that an op needs
(`ops.FEWEST_INPUTS`) and a damaged file lacks. Building a graph and each closure cost time
linear in nodes and edges; nothing recurses, and cycles are passed over.
"""

import bisect
import itertools
import re
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from bn_graph.graphs.errors import AuditError
from bn_graph.graphs.ops import ABSENT, EFFECTS, ENGINES, FEWEST_INPUTS, FUNCTIONS, PORTS, STATEFUL_CALLS
from bn_graph.graphs.protos import FunctionDef, GraphDef, NodeDef, UnparsedNodeDef

__all__ = [
    "Call",
    "Caller",
    "Graph",
    "Ref",
    "Uses",
    "build",
    "closure",
    "downstream",
    "needed",
    "node_named",
    "of_types",
    "producer",
    "reach",
    "uses",
    "walk",
]

Ref = tuple[int, int]
"""A tensor: its node's number and the port."""

Caller = tuple[int, str]
"""A calling node and the part that it calls, as `Call.part`."""

_LOWERED = "_lower_using_switch_merge"

_LARGEST_LAYOUT = 200_000
"""How many nodes laid out for calls are always all right; beyond, ten for each node of the file are."""

_T = TypeVar("_T", bound=Hashable)


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


class Protos:
    """The NodeDefs of a graph by the nodes' numbers, each taken out of the file's message when it is asked for.

    A list would keep an object for each, which takes more room than its name and edges.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._parts: list[Sequence[NodeDef]] = []
        self._length = 0

    def extend(self, nodes: Sequence[NodeDef]) -> None:
        """Adds nodes, which stay where they are."""
        self._starts.append(self._length)
        self._parts.append(nodes)
        self._length += len(nodes)

    def __getitem__(self, number: int) -> NodeDef:
        part = bisect.bisect_right(self._starts, number) - 1
        node = self._parts[part][number - self._starts[part]]
        if not isinstance(node, UnparsedNodeDef):
            return node
        try:
            return NodeDef.FromString(node.SerializeToString())
        except DecodeError as error:
            raise AuditError(f"the node {node.name} can't be read: the file is truncated or corrupted.") from error


class Graph(NamedTuple):
    """All lists go by a node's number.

    Attributes:
        names: in a called function, behind the caller's: ``cond//then//moments/mean``.
        ops, inputs, controls, protos: each node's type, data inputs, control inputs and NodeDef.
        callers: the node whose call laid this one out, and the part it is in; None in the graph itself.
        ids: the graph's own nodes (neither those of functions nor absent ones) by name.
        calls: what each calling node calls.
        by_op: the nodes of each type, in order; `of_types` asks it.
    """

    names: list[str]
    ops: list[str]
    inputs: list[tuple[Ref, ...]]
    controls: list[tuple[int, ...]]
    protos: Protos
    callers: list[Caller | None]
    ids: dict[str, int]
    calls: dict[int, list[Call]]
    by_op: dict[str, list[int]]

    @property
    def node_count(self) -> int:
        """How many nodes there are, those of called functions included and absent ones not."""
        return len(self.ops) - len(self.by_op.get(ABSENT, ()))


class Uses(NamedTuple):
    """Who uses each node: `data` holds (user, place among its inputs, port used), `control` the users' numbers."""

    data: list[Sequence[tuple[int, int, int]]]
    control: list[Sequence[int]]


class _Body(NamedTuple):
    """Nodes still to be laid out."""

    prefix: str
    nodes: Sequence[NodeDef]
    arguments: Mapping[str, Ref]
    caller: Caller | None
    function: object
    within: frozenset[str]


def build(graph_def: GraphDef) -> Graph:
    """Numbers the nodes of a graph and lays out the functions it calls.

    Args:
        graph_def: is referred to, not copied; of this package's classes or of TensorFlow's. A live ``tf.Graph`` will do
            as well: its present state is taken.

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
    graph_def = graph_def.as_graph_def() if hasattr(graph_def, "as_graph_def") else graph_def
    functions = {function.signature.name: function for function in graph_def.library.function}
    graph = Graph([], [], [], [], Protos(), [], {}, {}, {})
    in_file = len(graph_def.node) + sum(len(function.node_def) for function in functions.values())
    limit = len(graph_def.node) + max(_LARGEST_LAYOUT, 10 * in_file)
    pending = [_Body("", graph_def.node, {}, None, None, frozenset())]
    first_ports: list[Ref] = []
    while pending:
        body = pending.pop()
        ids = _lay_out(graph, body, first_ports)
        pending.extend(_called(graph, functions, ids.values(), body.within))
        if len(graph.names) + sum(len(body.nodes) for body in pending) > limit:
            raise AuditError(f"its functions call one another so often that they come to more than {limit:,} nodes")
    return graph


class _Inputs:
    """Reads the names of a body's inputs.

    Attributes:
        absent: numbers of nodes that inputs name and the body does not have, by name.
    """

    def __init__(self, body: _Body, ids: Mapping[str, int], first_ports: Sequence[Ref], end: int) -> None:
        self._arguments, self._ids, self._first_ports, self._end = body.arguments, ids, first_ports, end
        self.absent: dict[str, int] = {}

    def ref(self, name: str) -> Ref:
        """The tensor of that name."""
        if name in self._ids:
            return self._first_ports[self._ids[name]]
        if name in self._arguments:
            return self._arguments[name]
        node, *rest = name.split(":")
        if node in self._arguments and node not in self._ids:
            return self._arguments[node]
        port = int(rest[-1]) if rest and rest[-1].isdigit() else 0
        return self.number(node), PORTS.get(rest[0], port) if len(rest) == 2 else port

    def number(self, name: str) -> int:
        """The number of the node of that name."""
        return self._ids[name] if name in self._ids else self.absent.setdefault(name, self._end + len(self.absent))

    def lacking(self, name: str, first: int, fewest: int) -> tuple[Ref, ...]:
        """What a node must have as inputs and has not; no name of a node has a space."""
        return tuple((self.number(f"{name} input {place}"), 0) for place in range(first, fewest))

    def separated(self, names: Sequence[str], found: Sequence[int | None]) -> tuple[tuple[Ref, ...], tuple[int, ...]]:
        """Data and control inputs; `found` are the nodes of those that name a node and nothing else."""
        data, controls = [], []
        for name, node in zip(names, found, strict=True):
            if node is not None:
                data.append(self._first_ports[node])
            elif name[:1] == "^":
                controls.append(self.number(name[1:]))
            else:
                data.append(self.ref(name))
        return tuple(data), tuple(controls)


def _lay_out(graph: Graph, body: _Body, first_ports: list[Ref]) -> dict[str, int]:
    """Adds the nodes of a body, and what its caller gets of them.

    Args:
        graph: is added to.
        body: what to add.
        first_ports: the first output of each node, one object for all that use it; is added to as well.

    Returns:
        The nodes' numbers by their own names.
    """
    start = len(graph.names)
    names, ops = [], []
    for node in body.nodes:  # each of which is an object only while it is looked at, as its fields are
        names.append(node.name)
        ops.append(sys.intern(node.op))
    numbers = list(range(start, start + len(names)))
    ids = graph.ids if body.caller is None else {}
    ids.update(zip(names, numbers, strict=True))
    first_ports.extend(zip(numbers, itertools.repeat(0)))
    inputs = _Inputs(body, ids, first_ports, start + len(names))
    number_of, first_port = ids.get, first_ports.__getitem__
    for name, op, node in zip(names, ops, body.nodes, strict=True):
        sources = node.input[:]
        found = list(map(number_of, sources))
        if None not in found:  # first ports of nodes: the usual case, and the fast one
            data, controls = tuple(map(first_port, found)), ()
        else:
            data, controls = inputs.separated(sources, found)
        if len(data) < FEWEST_INPUTS.get(op, 0):
            data += inputs.lacking(name, len(data), FEWEST_INPUTS[op])
        graph.inputs.append(data)
        graph.controls.append(controls)
    for op, place in zip(ops, numbers, strict=True):
        graph.by_op.setdefault(op, []).append(place)
    graph.names.extend([body.prefix + name for name in names] if body.prefix else names)
    graph.ops.extend(ops)
    graph.protos.extend(body.nodes)
    graph.callers.extend([body.caller] * len(names))
    if body.caller is not None:
        returned = [body.function.ret.get(output.name, "") for output in body.function.signature.output_arg]
        results = [inputs.ref(name) for name in returned]
        effects = _effects(body, ids, graph.protos[body.caller[0]])
        graph.calls.setdefault(body.caller[0], []).append(Call(body.caller[1], results, effects))
    _add_absent(graph, body, inputs.absent, first_ports)
    return ids


def _add_absent(graph: Graph, body: _Body, names: Collection[str], first_ports: list[Ref]) -> None:
    """Adds nodes that a body refers to and does not have."""
    numbers = range(len(graph.names), len(graph.names) + len(names))
    first_ports.extend(zip(numbers, itertools.repeat(0)))
    graph.by_op.setdefault(ABSENT, []).extend(numbers)
    graph.names.extend(body.prefix + name for name in names)
    graph.ops.extend([ABSENT] * len(names))
    graph.inputs.extend([()] * len(names))
    graph.controls.extend([()] * len(names))
    graph.protos.extend([NodeDef(name=name) for name in names])
    graph.callers.extend([body.caller] * len(names))


def _effects(body: _Body, ids: Mapping[str, int], caller: NodeDef) -> list[int]:
    effects = {ids[name] for name in body.function.control_ret.values() if name in ids}
    # Functions of before TensorFlow 1.14 list no effects; their stateful nodes run all the same. Not so those of a cond
    # that is lowered to a Switch and a Merge before it runs: what nothing asks for is dropped there.
    if _LOWERED in caller.attr and caller.attr[_LOWERED].b:
        return sorted(effects)
    effects.update(ids[node.name] for node in body.nodes if node.op.startswith(EFFECTS) or node.op in STATEFUL_CALLS)
    return sorted(effects)


def _called(graph: Graph, functions: Mapping[str, object], nodes: Iterable[int], within: frozenset[str]) -> list[_Body]:
    """The bodies that nodes call, to be laid out; a function that calls itself adds nothing by that."""
    bodies = []
    calling = {*functions, *FUNCTIONS, *ENGINES, "Case", "StatelessCase"}
    for node in (node for node in nodes if graph.ops[node] in calling):
        op = graph.ops[node]
        if op in functions:
            bodies.append(_body(graph, functions[op], (node, "call"), 0))
        elif op in FUNCTIONS:
            first, attributes = FUNCTIONS[op]
            for attribute, part in attributes.items():
                function = functions.get(graph.protos[node].attr[attribute].func.name)
                if function is not None:
                    bodies.append(_body(graph, function, (node, part), first))
        elif op in ENGINES:
            function = _engine_body(graph.protos[node], functions)
            if function is not None:
                bodies.append(_body(graph, function, (node, "call"), 0))
        else:
            branches = graph.protos[node].attr["branches"].list.func
            for number, branch in enumerate(branches):
                if branch.name in functions:
                    bodies.append(_body(graph, functions[branch.name], (node, f"case {number}"), 1))
    called = [(body, body.function.signature.name) for body in bodies]
    return [body._replace(within=within | {name}) for body, name in called if name not in within]


def _engine_body(node: NodeDef, functions: Mapping[str, object]) -> object | None:
    """The part of the graph that an engine was compiled from: a function of the file, or a GraphDef in the node."""
    attributes = node.attr
    names = attributes["segment_func"].func.name, attributes["segment_funcdef_name"].s.decode("utf-8", "replace")
    found = next((functions[name] for name in names if name in functions), None)
    data = attributes["serialized_segment"].s
    if found is not None or not data:
        return found
    try:
        part = GraphDef.FromString(data)
    except DecodeError:  # the compiled engine
        return None
    if not part.node or not all(one.name and one.op for one in part.node):
        return None
    function = FunctionDef(node_def=[one for one in part.node if one.op != "Placeholder"])
    function.signature.name = node.name
    for prefix, arguments in (
        (_ENGINE_INPUT, function.signature.input_arg),
        (_ENGINE_OUTPUT, function.signature.output_arg),
    ):
        numbered = [one.name for one in part.node if re.fullmatch(rf"{prefix}\d+", one.name)]
        for name in sorted(numbered, key=lambda name: int(name.removeprefix(prefix))):
            arguments.add(name=name)
    function.ret.update({output.name: output.name for output in function.signature.output_arg})
    return function


_ENGINE_INPUT, _ENGINE_OUTPUT = "TensorRTInputPH_", "TensorRTOutputPH_"
"""How TensorRT's converter names what an engine's GraphDef takes and returns, before the number."""


def _body(graph: Graph, function: object, caller: Caller, first: int) -> _Body:
    node, part = caller
    given = graph.inputs[node][first:]
    arguments = dict(zip((argument.name for argument in function.signature.input_arg), given, strict=False))
    return _Body(f"{graph.names[node]}//{part}//", function.node_def, arguments, caller, function, frozenset())


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
    data: list[Any] = [()] * len(graph.names)
    control: list[Any] = [()] * len(graph.names)

    def add(users: list[Any], node: int, user: Any) -> None:
        if users[node]:
            users[node].append(user)
        else:
            users[node] = [user]

    for user, inputs in enumerate(graph.inputs):
        for place, (node, port) in enumerate(inputs):
            if data[node]:  # as `add` has it; the calls would take longer than all else
                data[node].append((user, place, port))
            else:
                data[node] = [(user, place, port)]
        for node in graph.controls[user]:
            add(control, node, user)
    for caller, calls in graph.calls.items():
        for call in calls:
            for node, port in call.results:
                add(data, node, (caller, -1, port))
            for node in call.effects:
                add(control, node, caller)
    return Uses(data, control)


def walk(starts: Iterable[_T], neighbours: Callable[[_T], Iterable[_T]]) -> Iterator[_T]:
    """Yields everything that is reached from `starts`, themselves included, each once, as soon as it is reached.

    Args:
        starts: nodes, tensors or anything else.
        neighbours: of one of them, those that are reached from it; none where the search is to stop.

    Example:
        >>> from bn_graph.graphs.graph import walk
        >>> list(walk([8], lambda number: [number // 2]))
        [8, 4, 2, 1, 0]
    """
    reached: set[_T] = set()
    pending = list(starts)
    while pending:
        item = pending.pop()
        if item not in reached:
            reached.add(item)
            yield item
            pending.extend(neighbours(item))


def reach(starts: Iterable[_T], neighbours: Callable[[_T], Iterable[_T]]) -> set[_T]:
    """Everything that `walk` yields; half a graph at a time, often, and so without a generator's cost for each."""
    reached: set[_T] = set()
    pending = list(starts)
    while pending:
        item = pending.pop()
        if item not in reached:
            reached.add(item)
            pending += neighbours(item)
    return reached


def closure(graph: Graph, starts: Iterable[int], not_called: Collection[Caller] = frozenset()) -> set[int]:
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
    inputs, controls, calls = graph.inputs, graph.controls, graph.calls
    reached: set[int] = set()
    pending = list(starts)
    while pending:  # as `reach` has it of `needed`, whose calls would take longer than all else
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            if node in calls:
                pending += needed(graph, node, not_called)
            else:
                for source, _ in inputs[node]:
                    pending.append(source)
                pending += controls[node]
    return reached


def needed(graph: Graph, node: int, not_called: Collection[Caller] = frozenset()) -> list[int]:
    """The nodes that run when a node is run, next before it: its inputs, and what the functions that it calls return."""
    found = [source for source, _ in graph.inputs[node]]
    found += graph.controls[node]
    for call in graph.calls.get(node, ()):
        if (node, call.part) not in not_called:
            found += [source for source, _ in call.results] + call.effects
    return found


def downstream(uses: Uses, starts: Iterable[int], *, control: bool = True) -> set[int]:
    """Every node that can't run without one of `starts`, themselves included; over data edges only without `control`."""

    by_data, by_control = uses

    def users(node: int) -> list[int]:
        found = [user for user, _, _ in by_data[node]]
        if control:
            found += by_control[node]
        return found

    return reach(starts, users)


def of_types(graph: Graph, types: Iterable[str]) -> list[int]:
    """The nodes of these types, in the graph's order.

    Example:
        >>> from bn_graph.graphs import graph
        >>> from bn_graph.graphs.protos import GraphDef, NodeDef
        >>> nodes = [NodeDef(name="x", op="Placeholder"), NodeDef(name="y", op="Neg", input=["x"])]
        >>> graph.of_types(graph.build(GraphDef(node=nodes)), {"Neg", "Abs"})
        [1]
    """
    return sorted(itertools.chain.from_iterable(graph.by_op.get(op, ()) for op in types))


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
    plain = producer(name)
    if plain in graph.ids:
        return graph.ids[plain]
    alike = [other for other in graph.ids if other.endswith(f"/{plain}") or plain in other][:5]
    hint = f"; like it are {', '.join(alike)}" if alike else ""
    raise AuditError(f"the graph has no node named {plain!r}{hint}")


def producer(name: str) -> str:
    """The op behind an input's or tensor's name: without the ``^`` of a control edge and without the port."""
    return name.removeprefix("^").partition(":")[0]
