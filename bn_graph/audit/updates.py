"""Finds the ops that move a variable toward a batch statistic, however the average is written.

From every assign the search goes up over the arithmetic of averages, casts, conds and reads until it meets one of the
statistics that some layer normalizes by. An average of a loss, a weight or a gradient never meets one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from bn_graph.audit.graph import Graph, Ref
from bn_graph.audit.tensors import ASSIGNS, FORWARDS, variable

__all__ = ["Update", "find_updates", "targets"]

_PASSED = (
    frozenset({"Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Div", "DivNoNan", "Neg", "Maximum", "Relu", "Sqrt"})
    | frozenset({"Merge", "RefMerge", "Switch", "RefSwitch", "Select", "SelectV2", "IdentityN", "ConcatV2", "Pack"})
    | FORWARDS
    | ASSIGNS
)
_AVERAGES = frozenset({"Mean", "Sum"})
_MOST_STEPS = 400


class Update(NamedTuple):
    """An op that moves a variable toward a batch statistic.

    Attributes:
        node: the assign.
        variable: its target's node.
        kind: ``mean`` or ``variance``.
        statistics: the batch statistics it takes in.
        adds: whether it adds to what is there when it runs (``AssignSub``, ``AssignAdd``), and can't undo another's.
    """

    node: int
    variable: int
    kind: str
    statistics: frozenset[Ref]
    adds: bool


def targets(graph: Graph) -> dict[int, list[int]]:
    """The assigns to each variable, initializers included, by the variable's node."""
    found = {}
    for node, op in enumerate(graph.ops):
        if op in ASSIGNS and len(graph.inputs[node]) >= 2:
            assigned = variable(graph, graph.inputs[node][0])
            if assigned is not None:
                found.setdefault(assigned, []).append(node)
    return found


def find_updates(graph: Graph, assigns: Mapping[int, list[int]], statistics: Mapping[Ref, str]) -> list[Update]:
    """The assigns that take in one of `statistics`.

    Args:
        graph: the graph.
        assigns: from `targets`.
        statistics: the tensors to look for, each with its kind.
    """
    found = []
    for assigned, nodes in assigns.items():
        for node in nodes:
            taken_in = _taken_in(graph, assigns, node, assigned, statistics)
            kinds = {statistics[ref] for ref in taken_in}
            if kinds:
                # A variance may be averaged together with the mean that it was computed from.
                kind = "variance" if "variance" in kinds else "mean"
                of_kind = frozenset(ref for ref in taken_in if statistics[ref] == kind)
                adds = "Add" in graph.ops[node] or "Sub" in graph.ops[node]
                found.append(Update(node, assigned, kind, of_kind, adds))
    return sorted(found)


def _taken_in(
    graph: Graph, assigns: Mapping[int, list[int]], node: int, assigned: int, statistics: Mapping[Ref, str]
) -> set[Ref]:
    found, seen, variables = set(), set(), {assigned}
    pending = [graph.inputs[node][1]]
    while pending and len(seen) < _MOST_STEPS:
        ref = pending.pop()
        if ref in seen or ref[0] < 0:
            continue
        seen.add(ref)
        source, port = ref
        if ref in statistics:
            found.add(ref)
        elif source in graph.calls:
            pending.extend(call.results[port] for call in graph.calls[source] if port < len(call.results))
        elif graph.ops[source] in _PASSED:
            pending.extend(graph.inputs[source])
        elif graph.ops[source] in _AVERAGES and graph.inputs[source]:
            pending.extend(_averaged_statistic(graph, graph.inputs[source][0], statistics))
        elif source in assigns and source not in variables:  # the variable between: `biased` of zero-debiasing
            variables.add(source)
            pending.extend(graph.inputs[between][1] for between in assigns[source])
    return found


def _averaged_statistic(graph: Graph, ref: Ref, statistics: Mapping[Ref, str]) -> list[Ref]:
    """The statistic that is averaged once more, over ghost batches or towers; nothing if it is anything else."""
    for _ in range(10):
        if ref in statistics:
            return [ref]
        if ref[0] < 0 or graph.ops[ref[0]] not in FORWARDS | {"ConcatV2", "Pack"} or not graph.inputs[ref[0]]:
            return []
        ref = graph.inputs[ref[0]][0]
    return []
