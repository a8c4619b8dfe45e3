"""What running an op does: the ops that run with it, the variables whose values it reads, and those it assigns.

=====================  ====================================================================================
question               answer
=====================  ====================================================================================
`upstream`             every op that runs when these are run, over data and control edges
`variables_read`       the variables whose values are read then
`variables_written`    the variables that are assigned then (`writers`: and by which ops)
`assigned_by`          the variables that one update op is *for*, without those assigned on the way to it
=====================  ====================================================================================

The questions are asked by name, of ops or tensors (an object with a ``name`` does as well), and answered by name.
Variables go by the names of their ops (``bn1/moving_mean``), whichever their kind: a ref variable's op is a
``VariableV2``, a resource variable's a ``VarHandleOp``. Each question costs time linear in the graph. Nothing is executed.
"""

from collections.abc import Iterable

from bn_graph.graphs.graph import Graph, Ref, closure, node_named
from bn_graph.graphs.ops import (
    ASSIGNING,
    BETWEEN_UPDATES,
    MANY_INPUTS,
    NOT_READING,
    OPTIMIZERS,
    REFERENCE_FORWARDS,
    SCATTERS_OF_VALUES,
    SWITCHES,
    VALUE_FORWARDS,
    VARIABLES,
)

__all__ = [
    "assigned",
    "assigned_by",
    "running",
    "upstream",
    "variable_name",
    "variables",
    "variables_read",
    "variables_written",
    "writers",
]

Names = Iterable[object] | object
"""Ops or tensors by name, or objects that have one; or a single one."""


def upstream(graph: Graph, names: Names, fed: Names = ()) -> set[str]:
    """Every op that runs when `names` are run, themselves included; ops of the graph, not of functions' bodies.

    Args:
        graph: the graph.
        names: what is run.
        fed: ops whose outputs are fed, so that nothing above them runs on their account.

    Raises:
        AuditError: the graph has no op of such a name.
    """
    return {graph.names[node] for node in running(graph, names, fed)} & graph.ids.keys()


def running(graph: Graph, names: Names, fed: Names = ()) -> set[int]:
    """As `upstream`, the numbers of the nodes, with those of the functions that are called.

    Raises:
        AuditError: the graph has no op of such a name.
    """
    return closure(_cut(graph, fed), _starts(graph, names))


def variables(graph: Graph) -> list[str]:
    """The names of all variables' ops in the graph, in the order of its nodes."""
    return [name for name, node in graph.ids.items() if graph.ops[node] in VARIABLES]


def variables_read(graph: Graph, names: Names, fed: Names = ()) -> set[str]:
    """The variables whose values go into running `names`, by the names of their ops.

    A variable that is only overwritten, or only asked whether it is initialized, is not read; one that is decremented
    is. A variable that is handed to a function (a branch of cond v2) counts as read there.

    Args:
        graph, names, fed: as for `upstream`.

    Raises:
        AuditError: the graph has no op of such a name.
    """
    read = [refs[1:] if op in NOT_READING else refs for op, refs in zip(graph.ops, graph.inputs, strict=True)]
    reached = running(graph._replace(inputs=read), names, fed)
    return {variable_name(graph, node) for node in reached if graph.ops[node] in VARIABLES}


def variables_written(graph: Graph, names: Names) -> set[str]:
    """The variables that running `names` assigns, or may assign, by the names of their ops.

    Counted are the assigns, scatters and optimizers' ops (with their slots) anywhere upstream, `names` included, in the
    graph and in the bodies of the functions it calls (both branches of a cond: which is taken, only a run can tell).

    Raises:
        AuditError: the graph has no op of such a name.
    """
    return set().union(*writers(graph, names).values())


def writers(graph: Graph, names: Names | None = None) -> dict[str, set[str]]:
    """The ops that assign variables when `names` are run, each with the variables it assigns.

    Args:
        graph: the graph.
        names: all ops of the graph if None.

    Returns:
        Op name to names of variables' ops. An op that calls a function which assigns is the writer itself.

    Raises:
        AuditError: the graph has no op of such a name.
    """
    found: dict[str, set[str]] = {}
    for node in closure(graph, graph.ids.values() if names is None else _starts(graph, names)):
        names_assigned = {variable_name(graph, variable) for variable in assigned(graph, node)}
        if names_assigned:
            found.setdefault(graph.names[_outermost(graph, node)], set()).update(names_assigned)
    return found


def assigned_by(graph: Graph, name: object) -> set[str]:
    """The variables that one update op is for: those it assigns last, by the names of their ops.

    An entry of ``UPDATE_OPS`` may be an assign, a group of assigns, the value read after one, or the result of a
    ``tf.cond`` with one in its branch. From such an op the search goes up and stops at the first assign on each path:
    beyond it lie the batch's statistics, the layers before this one, and the assigns that *those* do in place.

    Args:
        graph: the graph.
        name: of the op or tensor; the object itself does as well.

    Returns:
        Names of variables' ops; empty if the op assigns nothing. Of an op that computes with the result of an assign,
        those which are nearest to it on every path.

    Raises:
        AuditError: the graph has no such op.
    """
    (start,) = _starts(graph, name)
    first = _first_assigned(graph, start, BETWEEN_UPDATES) or _first_assigned(graph, start, None)
    return {variable_name(graph, variable) for variable in first}


def assigned(graph: Graph, node: int) -> set[int]:
    """The variables that this very node assigns: an optimizer's op its variable and slots, any other its input 0."""
    op = graph.ops[node]
    if op.startswith(OPTIMIZERS):
        return set().union(*(_assignable(graph, ref) for ref in graph.inputs[node]))
    if op.startswith(ASSIGNING) and op not in SCATTERS_OF_VALUES and graph.inputs[node]:
        return _assignable(graph, graph.inputs[node][0])
    return set()


def variable_name(graph: Graph, variable: int) -> str:
    """The name that a variable's op has in the graph; a function's body knows it by its shared name."""
    if graph.callers[variable] is None:
        return graph.names[variable]
    proto = graph.protos[variable]
    return proto.attr["shared_name"].s.decode() or proto.name


def _starts(graph: Graph, names: Names) -> list[int]:
    names = [names] if isinstance(names, str) or hasattr(names, "name") else names
    return [node_named(graph, getattr(name, "name", name)) for name in names]


def _cut(graph: Graph, fed: Names) -> Graph:
    """The graph without what goes into the ops `fed`."""
    nodes = set(_starts(graph, fed))
    if not nodes:
        return graph
    return graph._replace(
        inputs=[() if node in nodes else inputs for node, inputs in enumerate(graph.inputs)],
        controls=[() if node in nodes else controls for node, controls in enumerate(graph.controls)],
        calls={node: calls for node, calls in graph.calls.items() if node not in nodes},
    )


def _outermost(graph: Graph, node: int) -> int:
    """The node of the graph itself whose call runs `node`."""
    while graph.callers[node] is not None:
        node = graph.callers[node][0]
    return node


def _assignable(graph: Graph, ref: Ref) -> set[int]:
    """The variables that an op is given at an input to assign: by handle or reference, not by value."""
    found, seen, pending = set(), set(), [(ref[0], False)]
    while pending:
        node, is_value = step = pending.pop()
        if step in seen:
            continue
        seen.add(step)
        op = graph.ops[node]
        if op in VARIABLES:
            if op == "VarHandleOp" or not is_value:
                found.add(node)
        elif op in REFERENCE_FORWARDS or op.startswith(ASSIGNING):  # a ref variable's assign returns the reference
            sources = graph.inputs[node] if op in MANY_INPUTS else graph.inputs[node][:1]
            pending.extend((source, is_value or op in VALUE_FORWARDS) for source, _ in sources)
    return found


def _first_assigned(graph: Graph, start: int, passed: frozenset[str] | None) -> set[int]:
    """What the first assigns above `start` assign, over nodes of the `passed` ops only, or over any if None."""
    found, seen, pending = set(), set(), [start]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        variables = assigned(graph, node)
        found |= variables
        if variables:
            continue
        calls = graph.calls.get(node, ())
        pending.extend(source for call in calls for source, _ in call.results)
        pending.extend(source for call in calls for source in call.effects)
        if passed is None or graph.ops[node] in passed:
            pending.extend(_without_predicate(graph, node))
        elif node == start:
            pending.extend(graph.controls[node])
    return found


def _without_predicate(graph: Graph, node: int) -> list[int]:
    # A cond of control flow v1 also switches its predicate by itself, to have something that its branches depend on.
    inputs = graph.inputs[node]
    predicate = inputs[1] if graph.ops[node] in SWITCHES and len(inputs) > 1 else None
    return [*(ref[0] for ref in inputs if ref != predicate), *graph.controls[node]]
