"""The branch that a ``cond`` takes, in place of the cond, where its predicate is known: a training flag that is fixed."""

from collections.abc import Callable, Iterator, Mapping

from bn_graph.graphs.graph import build, producer, uses
from bn_graph.graphs.modes import dead_nodes
from bn_graph.graphs.ops import CONDS, MERGES, SWITCHES
from bn_graph.graphs.values import choice
from bn_graph.tf1 import constant_predicate, function_body, tf

__all__ = ["with_decided_branches", "without_training_branches"]


def without_training_branches(graph_def: tf.GraphDef, flag: str) -> tf.GraphDef:
    """`with_decided_branches` for the op named `flag` fixed to False: what is left of a graph at inference."""
    return with_decided_branches(graph_def, lambda node: False if node.name == flag else None)


def with_decided_branches(graph_def: tf.GraphDef, value_of: Callable[[tf.NodeDef], bool | None]) -> tf.GraphDef:
    """The graph with some ops fixed, and each ``cond`` that this decides replaced by the branch it takes.

    Both kinds of cond: of v1's the Switches and Merges become Identities and the other branch's nodes are left out; in
    place of v2's op stand the nodes of the one branch's function, in a scope of their own. Predicates may be computed
    from what is fixed (``logical_not``). A cond in the body of another function, such as that of a v2 loop, stays as it is.

    Args:
        graph_def: is not changed.
        value_of: the value of a node with one bool output, None of those that are not to be fixed. It is asked about
            the nodes of the branches too.

    Returns:
        A GraphDef whose remaining nodes have the names they had.
    """
    while True:  # a cond in a cond is decided when the outer one is gone
        fixed = tf.GraphDef(versions=graph_def.versions, library=graph_def.library)
        fixed.node.extend(_fixed(node, value_of(node)) for node in graph_def.node)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(fixed, name="")
            known = _known_predicates(graph)
            if not known:
                return fixed
            graph_def = _decided(fixed, known)


def _fixed(node: tf.NodeDef, value: bool | None) -> tf.NodeDef:
    if value is None:
        return node
    constant = tf.NodeDef(name=node.name, op="Const", device=node.device)
    constant.attr["dtype"].type = tf.bool.as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return constant


def _known_predicates(graph: tf.Graph) -> dict[str, bool]:
    """The values of the predicates of Switches and Ifs, by the names of those, where constants alone decide them."""
    values, known = {}, {}
    for op in graph.get_operations():
        if op.type in SWITCHES or op.type in CONDS:
            predicate = op.inputs[1 if op.type in SWITCHES else 0]
            if predicate.name not in values:
                values[predicate.name] = constant_predicate(predicate) if predicate.dtype == tf.bool else None
            if values[predicate.name] is not None:
                known[op.name] = bool(values[predicate.name])
    return known


def _decided(graph_def: tf.GraphDef, known: Mapping[str, bool]) -> tf.GraphDef:
    """The graph without the branches that the known predicates don't take."""
    alive = _alive_inputs(graph_def, known)
    functions = {function.signature.name: function for function in graph_def.library.function}
    # Of a decided Switch one output is left, which is output 0 of the Identity in its place.
    moved = {f"{node.name}:1": [node.name] for node in graph_def.node if node.op in SWITCHES and node.name in known}
    decided = tf.GraphDef(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name not in alive:
            continue
        if node.op in CONDS and node.name in known:
            branch = node.attr["then_branch" if known[node.name] else "else_branch"].func.name
            body, results = _inlined(node, functions[branch])
            decided.node.extend(body)
            moved |= results
        else:
            decided.node.append(_without_choice(node, alive[node.name], known))
    for node in decided.node:
        edges = [new for edge in node.input for new in _followed(edge, moved)]
        data = [edge for edge in edges if not edge.startswith("^")]  # one may come twice: x·x
        node.input[:] = data + list(dict.fromkeys(edge for edge in edges if edge.startswith("^")))
    return decided


def _alive_inputs(graph_def: tf.GraphDef, known: Mapping[str, bool]) -> dict[str, list[str]]:
    """The nodes that may run, by name, each with those of its inputs that get a value."""
    graph = build(graph_def)
    losing = {
        graph.ids[name]: int(not taken) for name, taken in known.items() if graph.ops[graph.ids[name]] in SWITCHES
    }
    choices = (choice(graph, graph.inputs[node][1], port == 0) for node, port in losing.items())
    dead = dead_nodes(graph, uses(graph), dict(found for found in choices if found is not None))
    alive = {}
    for node in graph_def.node:
        number = graph.ids[node.name]
        data = [edge for edge in node.input if not edge.startswith("^")]
        data = [
            edge
            for edge, (source, port) in zip(data, graph.inputs[number], strict=True)
            if source not in dead and losing.get(source) != port
        ]
        controls = [edge for edge in node.input if edge.startswith("^") and graph.ids.get(edge[1:]) not in dead]
        if number not in dead:
            alive[node.name] = data + controls
    return alive


def _followed(edge: str, moved: Mapping[str, list[str]]) -> Iterator[str]:
    """What stands now where `edge` stood; what that stood for may have moved too."""
    if edge not in moved:
        yield edge
    for new in moved.get(edge, []):
        yield from _followed(new, moved)


def _inlined(cond: tf.NodeDef, function) -> tuple[list[tf.NodeDef], dict[str, list[str]]]:
    """The body of a branch as nodes of the cond's graph, and what stands for the cond's outputs and control edges."""
    body, flat_names = function_body(function)
    scope = f"{cond.name}/{function.signature.name}"
    control = [edge for edge in cond.input if edge.startswith("^")]
    given = [edge for edge in cond.input[1:] if not edge.startswith("^")]
    arguments = dict(zip((argument.name for argument in function.signature.input_arg), given, strict=True))

    def outside(edge: str) -> str:
        name, _, port = edge.removeprefix("^").partition(":")
        if name in arguments:
            return f"^{producer(arguments[name])}" if edge.startswith("^") else arguments[name]
        renamed = f"{scope}/{name}" + (f":{port}" if port not in ("", "0") else "")
        return f"^{renamed}" if edge.startswith("^") else renamed

    nodes = []
    for node in body.node:
        if node.name not in arguments:
            node.input[:] = [outside(edge) for edge in node.input] + control
            node.name = f"{scope}/{node.name}"
            node.attr.pop("_class", None)  # to be placed with a node by its name in the function
            nodes.append(node)
    returned = [outside(flat_names[function.ret[output.name]]) for output in function.signature.output_arg]
    moved = {cond.name + (f":{number}" if number else ""): [edge] for number, edge in enumerate(returned)}
    run = [producer(edge) for edge in returned] + [f"{scope}/{n}" for n in function.control_ret.values()]
    return nodes, moved | {f"^{cond.name}": [f"^{name}" for name in run] + control}


def _without_choice(node: tf.NodeDef, alive: list[str], known: Mapping[str, bool]) -> tf.NodeDef:
    """The node with its live inputs; an Identity in place of one that chose a branch and has no choice left."""
    control = [edge for edge in alive if edge.startswith("^")]
    data = [edge for edge in alive if not edge.startswith("^")]
    chosen = tf.NodeDef(name=node.name, op=node.op, device=node.device)
    if (node.op in SWITCHES and node.name in known) or (node.op in MERGES and len(data) == 1):
        chosen.op, data = "Identity", data[:1]
        chosen.attr["T"].CopyFrom(node.attr["T"])
    else:
        chosen.CopyFrom(node)
        if node.op in MERGES:
            chosen.attr["N"].i = len(data)
    chosen.input[:] = data + control
    return chosen
