"""Finds the ops that move a variable toward a batch statistic, however the average is written.

From every assign the search goes up over the arithmetic of averages, casts, conds and reads until it meets one of the
statistics that some layer normalizes by. An average of a loss, a weight or a gradient never meets one. Of variables that
layers read as moving statistics it is known what they are, so any batch statistic will do: of a second call's
inputs, or computed anew by code that updates them by hand.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from bn_graph.graphs.graph import Graph, Ref, of_types, walk
from bn_graph.graphs.ops import ASSIGNS, AVERAGED, FORWARDS, REDUCTIONS, ROW_ASSIGNS
from bn_graph.graphs.statistics import Kind, part_of_all_workers, recognize
from bn_graph.graphs.values import leaves, strip, variable

__all__ = ["Update", "assigned_value", "find_updates", "targets"]

_MOST_STEPS = 400
_MOST_TERMS = 40


class Update(NamedTuple):
    """An op that moves a variable toward a batch statistic.

    Attributes:
        node: the assign.
        variable: its target's node.
        kind: mean or variance.
        statistics: the batch statistics that it averages.
        inputs: what those are statistics of, before a shift as after it.
        adds: whether it adds to what is there when it runs (``AssignSub``, ``AssignAdd``), and can't undo another's.
        holds: whether it puts the statistic itself there, not averaged, as for an ``ExponentialMovingAverage`` to follow.
    """

    node: int
    variable: int
    kind: Kind
    statistics: frozenset[Ref]
    inputs: frozenset[Ref]
    adds: bool
    holds: bool


def targets(graph: Graph) -> dict[int, list[int]]:
    """The assigns to each variable, initializers included, by the variable's node."""
    found = {}
    for node in of_types(graph, ASSIGNS | ROW_ASSIGNS):
        if len(graph.inputs[node]) >= (3 if graph.ops[node] in ROW_ASSIGNS else 2):
            assigned = variable(graph, graph.inputs[node][0])
            if assigned is not None:
                found.setdefault(assigned, []).append(node)
    return found


def assigned_value(graph: Graph, node: int) -> Ref:
    """What an assign puts into its variable, or adds to it."""
    return graph.inputs[node][2 if graph.ops[node] in ROW_ASSIGNS else 1]


def find_updates(
    graph: Graph, assigns: Mapping[int, list[int]], statistics: Mapping[Ref, Kind], known: Collection[int]
) -> list[Update]:
    """The assigns that average one of `statistics`; of the variables `known`, any batch statistic.

    Args:
        graph: the graph.
        assigns: from `targets`.
        statistics: the tensors to look for, each with its kind.
        known: variables that are moving statistics.
    """
    found = []
    for assigned, nodes in assigns.items():
        initializer = f"{graph.names[assigned]}/Assign"
        for node in nodes:
            if graph.names[node] == initializer:  # from a batch it may be, but it is no update
                continue
            averaged = _averaged_by(graph, assigns, node, assigned, statistics, statistics.get)
            if not averaged and assigned in known:
                averaged = _averaged_by(graph, assigns, node, assigned, statistics, _any_kind(graph))
            if averaged:
                # A variance may be averaged together with the mean that it was computed from.
                kind = Kind.VARIANCE if Kind.VARIANCE in averaged.values() else Kind.MEAN
                of_kind = frozenset(ref for ref, its_kind in averaged.items() if its_kind == kind)
                inputs, adds, holds = _inputs(graph, of_kind), _adds(graph, node), _holds(graph, node, of_kind)
                found.append(Update(node, assigned, kind, of_kind, inputs, adds, holds))
    return sorted(found, key=lambda update: update.node)


def _adds(graph: Graph, node: int) -> bool:
    return "Add" in graph.ops[node] or "Sub" in graph.ops[node]


def _holds(graph: Graph, node: int, statistics: Collection[Ref]) -> bool:
    if _adds(graph, node):
        return False
    found = leaves(graph, assigned_value(graph, node), lambda ref: ref in statistics)
    return bool(found) and any(leaf.ref in statistics for leaf in found)


def _inputs(graph: Graph, statistics: Collection[Ref]) -> frozenset[Ref]:
    recognized = [recognize(graph, ref) for ref in statistics]
    refs = {ref for statistic in recognized if statistic is not None for ref in statistic.inputs}
    shifted = [graph.inputs[node][0] for node, _ in refs if graph.ops[node] == "Sub"]
    return frozenset(refs | {strip(graph, ref) for ref in shifted})


def _any_kind(graph: Graph) -> Callable[[Ref], Kind | None]:
    def kind_of(ref: Ref) -> Kind | None:
        statistic = recognize(graph, ref)
        return statistic.kind if statistic is not None and statistic.over_examples else None

    return kind_of


def _averaged_by(
    graph: Graph,
    assigns: Mapping[int, list[int]],
    node: int,
    assigned: int,
    statistics: Mapping[Ref, Kind],
    kind_of: Callable[[Ref], Kind | None],
) -> dict[Ref, Kind]:
    """The batch statistics that go into an assign, with their kinds."""
    found, seen, variables = {}, set(), {assigned}
    pending = [assigned_value(graph, node)]
    while pending and len(seen) < _MOST_STEPS:
        ref = pending.pop()
        if ref in seen:
            continue
        seen.add(ref)
        source, port = ref
        averaged = _averaged_again(graph, ref, statistics)
        if averaged:
            pending.extend(averaged)
        elif (kind := kind_of(ref)) is not None:
            found[ref] = kind
        elif source in graph.calls:
            pending.extend(call.results[port] for call in graph.calls[source] if port < len(call.results))
        elif graph.ops[source] in AVERAGED:
            pending.extend(graph.inputs[source])
        elif source in assigns and source not in variables:
            variables.add(source)
            if _leads_on(graph, assigns[source], source, assigned):
                pending.extend(assigned_value(graph, between) for between in assigns[source])
    return found


def _leads_on(graph: Graph, assigns: Collection[int], between: int, assigned: int) -> bool:
    """Whether what a variable `between` averages is averaged in the variable `assigned` as well.

    Zero-debiasing's ``biased`` has the variable's own name in its path; a variable that holds or sums up batch statistics
    is there for an average to follow. Another network's moving average, which is copied, is neither.
    """
    if f"/{graph.names[assigned]}/" in f"/{graph.names[between]}":
        return True

    def terms(ref: Ref) -> Sequence[Ref]:
        return graph.inputs[ref[0]] if graph.ops[ref[0]] in AVERAGED else []

    averaged = itertools.islice(walk([assigned_value(graph, node) for node in assigns], terms), _MOST_TERMS)
    return all(source != between for source, _ in averaged)


def _averaged_again(graph: Graph, ref: Ref, statistics: Mapping[Ref, Kind]) -> list[Ref]:
    """What a tensor averages, over ghost batches, towers or workers; nothing if it is anything else."""
    if ref in statistics or graph.ops[ref[0]] not in REDUCTIONS or not graph.inputs[ref[0]]:
        return []
    of_worker = part_of_all_workers(graph, ref)
    if of_worker is not None:
        return [of_worker[0]]
    ref = graph.inputs[ref[0]][0]
    for _ in range(10):
        if ref in statistics:
            return [ref]
        if graph.ops[ref[0]] in ("Add", "AddV2"):  # a mean about a shift
            return [term for source in graph.inputs[ref[0]] if (term := strip(graph, source)) in statistics]
        if graph.ops[ref[0]] not in FORWARDS | {"ConcatV2", "Pack", "Sub"} or not graph.inputs[ref[0]]:
            return []
        ref = graph.inputs[ref[0]][0]
    return []
