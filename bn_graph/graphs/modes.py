"""What a graph does at inference: how its switches stand, what is dead then, which outputs there are, what they use.

A switch that chooses between batch and moving statistics is taken to stand on the moving ones; a constant, a fed or (in a
SavedModel) a defaulted predicate stands as it must. With that, the same rules as the runtime's hold: a node is dead if
an input is, a ``Merge`` passes on what lives, and everything upstream of an output that is not dead runs, wanted or not.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bn_graph.graphs.graph import Caller, Graph, Ref, Uses, closure, of_types, reach
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.normalizations import Normalization, Origin, Source
from bn_graph.graphs.ops import CONDS, LOOP_ENDS, LOOPS, MERGES, NEXT_ITERATIONS, NO_OUTPUTS, SELECTS, SWITCHES
from bn_graph.graphs.values import Choice, choice, predicate, truth

__all__ = [
    "Alternative",
    "Modes",
    "alternatives",
    "dead_nodes",
    "losing_port",
    "mode_switches",
    "modes",
    "normalizing_by_batch",
    "runs",
    "sinks",
    "value_sources",
    "values_used",
]


class Alternative(NamedTuple):
    """One way in which a layer may normalize at a place: by the batch or not, under these choices."""

    place: Normalization
    source: Source
    choices: frozenset[Choice]

    @property
    def by_batch(self) -> bool:
        """Whether by the batch's statistics."""
        return self.source.origin is Origin.BATCH

    @property
    def by_moving(self) -> bool:
        """Whether by moving statistics, or by what they are replaced with."""
        return self.source.origin not in (Origin.BATCH, Origin.STRIPPED)


class Modes(NamedTuple):
    """How the switches stand.

    Attributes:
        known: predicates' nodes and their values at inference.
        chosen: those of `known` that were taken to stand on the moving statistics, and could be otherwise.
        dead: nodes that can't run then.
        not_called: (node, part) of functions that are not called then.
    """

    known: dict[int, bool]
    chosen: frozenset[int]
    dead: frozenset[int]
    not_called: frozenset[Caller]

    def allows(self, alternative: Alternative) -> bool:
        """Whether an alternative is open when the switches stand so."""
        return all(self.known.get(node, value) == value for node, value in alternative.choices)


def alternatives(layer: Layer) -> Iterator[Alternative]:
    """All ways in which a layer may normalize; those that no switch can allow are left out."""
    for place in layer.places:
        for source in place.variance or place.mean:
            choices = place.choices | source.choices
            if len({node for node, _ in choices}) == len(choices):
                yield Alternative(place, source, choices)


def modes(graph: Graph, uses: Uses, layers: Iterable[Layer], feeds: Mapping[int, bool | float]) -> Modes:
    """Decides how the switches stand at inference.

    Args:
        graph, uses, layers: as found before.
        feeds: what is known of placeholders and other nodes, by the caller or by default.
    """
    votes = mode_switches(layers)
    fixed = {node: value for node in votes if (value := truth(graph, node, feeds)) is not None}
    chosen = {node: 2 * sum(values) > len(values) for node, values in votes.items() if node not in fixed}
    known = _all_known(graph, {**feeds, **chosen}) | fixed | chosen
    not_called = frozenset(_not_called(graph, known))
    return Modes(known, frozenset(chosen), dead_nodes(graph, uses, known), not_called)


def mode_switches(layers: Iterable[Layer]) -> dict[int, list[bool]]:
    """The predicates that choose between a layer's batch and its moving statistics.

    Returns:
        The predicate's node, and for each way in which a layer normalizes by its moving statistics under it, its value.
    """
    votes: dict[int, list[bool]] = {}
    for layer in layers:
        ways = list(alternatives(layer))
        by_batch = {taken for way in ways if way.by_batch for taken in way.choices}
        for way in ways:
            if not way.by_batch:
                for node, value in way.choices:
                    if (node, not value) in by_batch:
                        votes.setdefault(node, []).append(value)
    return votes


def _all_known(graph: Graph, known: Mapping[int, bool | float]) -> dict[int, bool]:
    """The values of all predicates of the graph that follow from what is known."""
    inputs = graph.inputs
    deciding = {inputs[node][1] for node in of_types(graph, SWITCHES) if len(inputs[node]) > 1}
    deciding.update(inputs[node][0] for node in of_types(graph, CONDS | SELECTS) if inputs[node])
    nodes = {decided[0] for ref in sorted(deciding) if (decided := predicate(graph, ref)) is not None}
    return {node: value for node in sorted(nodes) if (value := truth(graph, node, known)) is not None}


def _not_called(graph: Graph, known: Mapping[int, bool]) -> Iterator[Caller]:
    for node in graph.calls:
        if graph.ops[node] in CONDS and graph.inputs[node]:
            decided = choice(graph, graph.inputs[node][0], True)
            if decided is not None and decided[0] in known:
                yield node, "else" if known[decided[0]] == decided[1] else "then"


def dead_nodes(graph: Graph, uses: Uses, known: Mapping[int, bool]) -> frozenset[int]:
    """Nodes that decided switches of control flow v1 keep from running, as TensorFlow's executor has it.

    Deadness passes on over data and control edges, and ends at a ``Merge`` that has a live input. (The input by which a
    loop comes back to its Merge is not counted: the loop lives by the other.)

    Args:
        graph, uses: as made by `graph.build` and `graph.uses`.
        known: predicates' nodes (as `values.predicate` finds them) and their values.
    """
    dead: set[int] = set()
    pending = []
    for node in of_types(graph, SWITCHES):
        losing = losing_port(graph, node, known)
        pending += [user for user, place, port in uses.data[node] if place >= 0 and port == losing]
    live_inputs: dict[int, int] = {}
    while pending:
        node = pending.pop()
        if node in dead:
            continue
        if graph.ops[node] in MERGES:
            live_inputs.setdefault(node, _entries(graph, node))
            live_inputs[node] -= 1
            if live_inputs[node] > 0:
                continue
        dead.add(node)
        pending += [user for user, place, _ in uses.data[node] if place >= 0]
        pending += [user for user in uses.control[node] if graph.ops[user] not in MERGES]
    return frozenset(dead)


def losing_port(graph: Graph, switch: int, known: Mapping[int, bool]) -> int | None:
    """The output of a ``Switch`` that gets no value; None where its predicate is not known."""
    decided = choice(graph, graph.inputs[switch][1], True) if len(graph.inputs[switch]) > 1 else None
    if decided is None or decided[0] not in known:
        return None
    return 0 if known[decided[0]] == decided[1] else 1


def _entries(graph: Graph, merge: int) -> int:
    """The inputs of a Merge, without the one by which a loop comes back."""
    return sum(graph.ops[source] not in NEXT_ITERATIONS for source, _ in graph.inputs[merge])


def normalizing_by_batch(layer: Layer, used: Collection[int], modes: Modes) -> list[Normalization]:
    """The places where a layer normalizes by the batch, as the switches stand.

    Args:
        layer: the layer.
        used: nodes whose values matter, from `values_used` of the outputs.
        modes: how the switches stand.
    """
    ways = [way for way in alternatives(layer) if way.by_batch and modes.allows(way)]
    return [way.place for way in ways if way.place.node in used and way.source.node in used]


def runs(graph: Graph, starts: Iterable[int], modes: Modes) -> set[int]:
    """Every node that runs at inference when `starts` are run."""
    return closure(graph, starts, modes.not_called) - modes.dead


def values_used(graph: Graph, starts: Iterable[int], modes: Modes) -> set[int]:
    """Every node whose value goes into that of `starts` at inference: over data edges, the dead side of choices left out."""
    refs = [(node, port) for node in starts for port in _ports(graph, node)]
    return {node for node, _ in reach(refs, lambda ref: value_sources(graph, ref, modes))} - modes.dead


def _ports(graph: Graph, node: int) -> range:
    return range(max([len(call.results) for call in graph.calls.get(node, ())], default=1))


_UNDECIDED = Modes({}, frozenset(), frozenset(), frozenset())


def value_sources(graph: Graph, ref: Ref, modes: Modes = _UNDECIDED) -> Sequence[Ref]:
    """The tensors that a tensor's value comes from, so far as the switches that are known leave them."""
    node, port = ref
    if node in modes.dead:
        return []
    sources = graph.inputs[node]
    if node in graph.calls:
        called = [call for call in graph.calls[node] if (node, call.part) not in modes.not_called]
        results = [call.results[port] for call in called if port < len(call.results)]
        loops = [source for source in sources if graph.ops[node] in LOOPS]
        return [*results, *loops, *(sources[:1] if len(called) > 1 else ())]
    if graph.ops[node] in SELECTS and len(sources) == 3:
        decided = choice(graph, sources[0], True)
        if decided is not None and decided[0] in modes.known:
            return [sources[1] if modes.known[decided[0]] == decided[1] else sources[2]]
    return sources


def sinks(graph: Graph, uses: Uses, starts: Sequence[Ref], passed_over: frozenset[int]) -> list[int]:
    """The last nodes that the values of `starts` go into: what a program would fetch.

    Assigns, summaries, savers, shapes and gradients are no outputs, nor is anything in `passed_over`, nor a value that
    is only assigned. A loop's end is one if there is no other.
    """
    found, seen = [], set()
    pending = [user for node, port in starts for user, _, used in uses.data[node] if used == port]
    while pending:
        node = pending.pop()
        if node in seen or node in passed_over or _is_no_output(graph, node):
            continue
        seen.add(node)
        users = [user for user, _, _ in uses.data[node] if user not in passed_over]
        going_on = [user for user in users if not _is_no_output(graph, user)]
        pending.extend(going_on)
        if not going_on and not any(graph.ops[user].startswith("Assign") for user in users):
            found.append(node)
    return sorted([node for node in found if graph.ops[node] not in LOOP_ENDS] or found)


def _is_no_output(graph: Graph, node: int) -> bool:
    op, name = graph.ops[node], graph.names[node]
    return op.startswith(NO_OUTPUTS) or "Summary" in op or "Grad" in op or "gradients" in name
