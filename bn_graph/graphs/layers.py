"""Puts a graph's normalizations and updates together into layers: what shares statistics is one layer.

A layer may normalize in many places: in both branches of a cond, in a training copy and a sampler of a generator, in
each tower. Places belong together when they read the same moving statistics, or when their batches go into the same
ones; a place that does neither belongs to the layer whose gamma or beta it uses.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bn_graph.graphs.graph import Graph, Ref, Uses, walk
from bn_graph.graphs.normalizations import Normalization, Origin, Source
from bn_graph.graphs.ops import ADDITIONS, DIVISIONS, FORWARDS
from bn_graph.graphs.statistics import BatchStatistic, Kind
from bn_graph.graphs.updates import Update, find_updates, targets
from bn_graph.graphs.values import variable

__all__ = ["Layer", "find_layers"]

_RENORM = ("renorm_", "moving_stddev")
"""Beginnings of the names of batch renormalization's own averages."""

_MOST_COMPARED = 40
_BEFORE_COMPARISON = FORWARDS | ADDITIONS | {"Sqrt", "Maximum"}


class Layer(NamedTuple):
    """A batch norm layer.

    Attributes:
        name: the scope of its statistics, else of its gamma and beta, else of its ops.
        places: where it normalizes.
        means, variances: the variables of its moving statistics; more than one of each where towers keep their own.
        gammas, betas: its other variables.
        updates: the ops that move `means` and `variances` (or a helper of theirs) toward batch statistics.
    """

    name: str
    places: tuple[Normalization, ...]
    means: tuple[int, ...]
    variances: tuple[int, ...]
    gammas: tuple[int, ...]
    betas: tuple[int, ...]
    updates: tuple[Update, ...]

    @property
    def statistics(self) -> tuple[int, ...]:
        """The variables of its moving statistics."""
        return self.means + self.variances

    @property
    def parameters(self) -> tuple[int, ...]:
        """The variables of gamma and beta."""
        return self.gammas + self.betas


def find_layers(graph: Graph, uses: Uses, normalizations: Sequence[Normalization]) -> list[Layer]:
    """The layers of a graph, in its order, with names that differ.

    Args:
        graph, uses: as made by `graph.build` and `graph.uses`.
        normalizations: from `normalizations.find_normalizations`.
    """
    kinds = _statistics(normalizations)
    moved: dict[Ref, set[int]] = {}
    updates: dict[object, list[Update]] = {}
    for update in find_updates(graph, targets(graph), kinds, _read(normalizations)):
        for ref in update.statistics:
            moved.setdefault(ref, set()).add(update.variable)
        for key in (update.variable, *update.statistics):
            updates.setdefault(key, []).append(update)
    groups = _grouped([place for place in normalizations if _belongs_to_layer(graph, place, moved)], moved)
    return _named_apart(graph, [_layer(graph, uses, places, updates) for places in groups])


def _read(normalizations: Iterable[Normalization]) -> set[int]:
    """The variables that anything is normalized by."""
    return {source.node for place in normalizations for source in place.sources() if source.origin is Origin.VARIABLE}


def _belongs_to_layer(graph: Graph, place: Normalization, moved: Mapping[Ref, set[int]]) -> bool:
    """Whether a place is batch norm's: it may take the averages of its statistics to tell.

    Moving statistics average those of ghost batches, never those of layer normalization; and never, as vectors, those of
    a loss that standardizes.
    """
    if place.needs_updates:
        return all(_is_averaged(graph, sources, moved) for sources in (place.mean, place.variance))
    refs = [source.statistic.ref for source in place.sources() if source.statistic is not None]
    return place.over_examples or any(ref in moved for ref in refs)


def _is_averaged(graph: Graph, sources: Iterable[Source], moved: Mapping[Ref, set[int]]) -> bool:
    """Whether one of these statistics is averaged in a vector."""
    refs = [source.statistic.ref for source in sources if source.statistic is not None]
    shapes = [graph.protos[node].attr["shape"].shape for ref in refs for node in moved.get(ref, ())]
    return any(shape.unknown_rank or shape.dim for shape in shapes)


def _statistics(normalizations: Iterable[Normalization]) -> dict[Ref, Kind]:
    """The batch statistics that anything is normalized by, with their kinds."""
    found = {}
    for place in normalizations:
        for sources, kind in ((place.mean, Kind.MEAN), (place.variance, Kind.VARIANCE)):
            found.update({source.statistic.ref: kind for source in sources if source.statistic is not None})
    return found


class _Groups:
    """Sets of keys that are joined step by step (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[object, object] = {}

    def root(self, key: object) -> object:
        """The key that stands for all that are joined to `key`."""
        parent = self._parent
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def join(self, first: object, second: object) -> None:
        """Makes one set of two."""
        self._parent[self.root(second)] = self.root(first)


def _grouped(normalizations: Sequence[Normalization], moved: Mapping[Ref, set[int]]) -> list[list[Normalization]]:
    """Places that share a statistic's variable; then those without any, by gamma and beta."""
    groups, owners, without = _Groups(), {}, []
    for number, place in enumerate(normalizations):
        variables = _variables(place, moved)
        for found in variables:
            groups.join(("variable", found), number)
        if not variables:
            without.append(number)
            continue
        for parameter in (place.gamma, place.beta):
            owners.setdefault(parameter, []).append(number)
    for number in without:
        place = normalizations[number]
        parameter = place.gamma if place.gamma is not None else place.beta
        if parameter is None:
            groups.join(("inputs", place.inputs), number)  # both sides of a frozen cond
            continue
        owning = {groups.root(owner) for owner in owners.get(parameter, ())}
        # A gamma that several layers share (the steps of a recurrent network) tells nothing.
        groups.join(owning.pop() if len(owning) == 1 else ("parameter", parameter), number)
    members: dict[object, list[Normalization]] = {}
    for number, place in enumerate(normalizations):
        members.setdefault(groups.root(number), []).append(place)
    return list(members.values())


def _variables(place: Normalization, moved: Mapping[Ref, set[int]]) -> set[int]:
    """The statistics' variables of a place: those it reads, and those its batches go into."""
    read = {source.node for source in place.sources() if source.origin is Origin.VARIABLE}
    refs = [source.statistic.ref for source in place.sources() if source.statistic is not None]
    return read.union(*(moved.get(ref, set()) for ref in refs))


def _layer(graph: Graph, uses: Uses, places: Sequence[Normalization], updates: Mapping[object, list[Update]]) -> Layer:
    """A layer of these places; `updates` by the variable they assign, and by each statistic they take in."""
    own = {source.statistic.ref for place in places for source in place.sources() if source.statistic is not None}
    read = {
        kind: list(
            dict.fromkeys(
                source.node for place in places for source in sides(place) if source.origin is Origin.VARIABLE
            )
        )
        for kind, sides in ((Kind.MEAN, lambda place: place.mean), (Kind.VARIANCE, lambda place: place.variance))
    }
    keys = [*own, *read[Kind.MEAN], *read[Kind.VARIANCE]]
    of_layer = sorted({update for key in keys for update in updates.get(key, ())})
    moved = {kind: _primary(graph, [u for u in of_layer if u.kind is kind]) for kind in Kind}
    if not any([*read.values(), *moved.values()]):
        moved = _compared(graph, uses, places)
    means, variances = (tuple(read[kind] or moved[kind]) for kind in Kind)
    # What else takes the batch in (a variable between, an optimizer's norm of the weights) is no update of these.
    of_layer = [update for update in of_layer if update.variable in means + variances] or of_layer
    gammas, betas = (
        tuple(dict.fromkeys(value for place in places if (value := getattr(place, name)) is not None))
        for name in ("gamma", "beta")
    )
    name = _name(graph, means[:1] + variances[:1]) or _name(graph, gammas[:1] + betas[:1])
    name = name or graph.names[places[0].node].rpartition("/")[0]
    return Layer(name or graph.names[places[0].node], tuple(places), means, variances, gammas, betas, tuple(of_layer))


def _compared(graph: Graph, uses: Uses, places: Iterable[Normalization]) -> dict[Kind, list[int]]:
    """The variables that batch statistics are compared with, as r = σ_batch/σ and d = (μ_batch − μ)/σ of batch
    renormalization; none unless there are some for both."""
    found: dict[Kind, list[int]] = {kind: [] for kind in Kind}
    for source in (source for place in places for source in place.sources()):
        if source.statistic is not None:
            found[source.statistic.kind] += _compared_with(graph, uses, source.statistic)
    return {kind: list(dict.fromkeys(nodes)) if all(found.values()) else [] for kind, nodes in found.items()}


def _compared_with(graph: Graph, uses: Uses, statistic: BatchStatistic) -> list[int]:
    comparing = {"Sub"} if statistic.kind is Kind.MEAN else DIVISIONS

    def following(ref: Ref) -> list[Ref]:
        users = [user for user, _, port in uses.data[ref[0]] if port == ref[1]]
        return [(user, 0) for user in users if graph.ops[user] in _BEFORE_COMPARISON]

    found = []
    for node, port in itertools.islice(walk([statistic.ref], following), _MOST_COMPARED):
        for user, place, used in uses.data[node]:
            if used == port and place == 0 and graph.ops[user] in comparing and len(graph.inputs[user]) == 2:
                found.append(variable(graph, graph.inputs[user][1]))
    return [node for node in found if node is not None]


def _primary(graph: Graph, updates: Sequence[Update]) -> list[int]:
    """The variables that average, if any do; without helpers, such as ``moving_mean/biased`` and batch renormalization's."""
    averaging = list(dict.fromkeys(update.variable for update in updates if not update.holds))
    every = list(dict.fromkeys(update.variable for update in updates))
    for variables in (averaging, every):
        names = {node: graph.names[node] for node in variables}
        own = [node for node, name in names.items() if not _is_helper(name, names.values())]
        if own:
            return own
    return averaging or every


def _is_helper(name: str, others: Iterable[str]) -> bool:
    is_inside = any(f"/{other}/" in f"/{name}" for other in others if other != name)
    return is_inside or name.rpartition("/")[2].startswith(_RENORM)


def _name(graph: Graph, variables: Sequence[int]) -> str:
    """The scope that variables share; of a single one, its own."""
    paths = [_own_scope(graph.names[node].split("/")) for node in variables]
    if not paths:
        return ""
    shared = paths[0]
    for path in paths[1:]:
        same = [a == b for a, b in zip(shared, path, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    return "/".join(shared)


def _own_scope(path: list[str]) -> list[str]:
    """The scope of a variable; of an average that ``ExponentialMovingAverage`` keeps, of what it was made in.

    It names the average of ``a/b/moments/Squeeze``, made in the scope ``a/b``, ``a/b/a/b/moments/Squeeze/Exponential…``.
    """
    if path[-1].startswith("ExponentialMovingAverage"):
        for length in range(len(path) // 2, 0, -1):
            if path[:length] == path[length : 2 * length]:
                return path[:length]
    return path[:-1]


def _named_apart(graph: Graph, layers: Sequence[Layer]) -> list[Layer]:
    """Layers whose variables share one scope go by the scopes of their ops, or by a variable."""
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.name] = counts.get(layer.name, 0) + 1
    named, taken = [], set()
    for layer in layers:
        name = layer.name
        if counts[name] > 1:
            first = (layer.means + layer.parameters)[:1]
            name = graph.names[first[0]] if first else graph.names[layer.places[0].node]
        while name in taken:
            name += "'"
        taken.add(name)
        named.append(layer._replace(name=name))
    return named
