"""What of a graph the audit does not understand: statistics that belong to no layer it found, bodies it did not look into.

Whatever is listed here may be a batch norm layer, of which the report says nothing else.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from bn_graph.audit.report import NotUnderstood
from bn_graph.audit.stored import OBJECT_ENDING, StoredLayer
from bn_graph.checkpoints.index import Checkpoint
from bn_graph.graphs.graph import Graph, Uses, of_types, walk
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.ops import ASSIGNING, ENGINES, FORWARDS, FUSED, MERGES, SWITCHES, VARIABLES
from bn_graph.graphs.protos import GraphDef
from bn_graph.graphs.statistics import Kind, named_kind

__all__ = ["find_not_understood", "unpaired_variances"]

_MOST_READERS = 40
_WITHOUT = {
    Kind.VARIANCE: "no moving mean of a name that goes with it is there",
    Kind.MEAN: "no moving variance of a name that goes with it is there",
}
_NOT_READERS = ("Save", "Restore", "VarIsInitialized", "DisableCopyOnRead", "IsVariableInitialized", "NoOp", *ASSIGNING)


def find_not_understood(
    graph: Graph, uses: Uses, layers: Sequence[Layer], graph_def: GraphDef
) -> tuple[NotUnderstood, ...]:
    """Lists moving statistics, by their names, that no layer has, and functions and engines that were not looked into.

    Of a moving mean and a moving variance that belong together only the variance is listed.

    Args:
        graph, uses: as made by `graph.build` and `graph.uses`.
        layers: that were found in it.
        graph_def: from which it was built.
    """
    return (*_statistics(graph, uses, layers), *_bodies(graph, layers, graph_def))


def unpaired_variances(checkpoint: Checkpoint, layers: Iterable[StoredLayer]) -> tuple[NotUnderstood, ...]:
    """Lists the moving statistics of a checkpoint without a graph, by their names, that are in no layer.

    Args:
        checkpoint: the checkpoint.
        layers: those found in it by names.
    """
    kinds = {key: named_kind(key.removesuffix(OBJECT_ENDING)) for key in checkpoint.entries}
    known = {key for layer in layers for key in (layer.mean, layer.variance)}
    return tuple(
        NotUnderstood(key, "variable", _WITHOUT[kind])
        for key, kind in kinds.items()
        if kind is not None and key not in known and checkpoint.entries[key].shape
    )


def _statistics(graph: Graph, uses: Uses, layers: Iterable[Layer]) -> Iterator[NotUnderstood]:
    known = {node for layer in layers for node in layer.statistics}
    known.update(update.variable for layer in layers for update in layer.updates)
    known.update(source.node for layer in layers for place in layer.places for source in place.sources())
    kernels = {place.node for layer in layers for place in layer.places}
    scopes = {graph.names[node].rpartition("/")[0] for node in known}
    candidates = of_types(graph, VARIABLES | {"Const"})
    names = (graph.names[node] for node in candidates)
    paired = scopes | {name.rpartition("/")[0] for name in names if named_kind(name) is Kind.VARIANCE}
    for node in candidates:
        name = graph.names[node]
        kind, scope = named_kind(name), name.rpartition("/")[0]
        if node in known or kind is None or (kind is Kind.MEAN and (scope in paired or _is_scalar(graph, node))):
            continue
        readers = _readers(graph, uses, node)
        # A kernel in training mode is given statistics that it does not read; Keras exports a variable twice.
        if kernels & set(readers) or (not readers and scope in scopes):
            continue
        types = ", ".join(dict.fromkeys(graph.ops[reader] for reader in readers))
        unread = "nothing but savers and assigns uses it"
        yield NotUnderstood(name, types or graph.ops[node], f"read by {graph.names[readers[0]]}" if readers else unread)


def _is_scalar(graph: Graph, node: int) -> bool:
    """Whether a variable, or constant, is a single number: an average of losses or rewards."""
    attributes = graph.protos[node].attr
    shape = attributes["value"].tensor.tensor_shape if graph.ops[node] == "Const" else attributes["shape"].shape
    return not shape.dim and not shape.unknown_rank


def _readers(graph: Graph, uses: Uses, statistic: int) -> list[int]:
    """The nodes that compute with a statistic, the first few."""

    def passes_on(node: int) -> bool:
        return node == statistic or graph.ops[node] in FORWARDS | SWITCHES | MERGES

    def following(node: int) -> list[int]:
        return [user for user, place, _ in uses.data[node] if place >= 0] if passes_on(node) else []

    reached = itertools.islice(walk([statistic], following), _MOST_READERS)
    computing = (node for node in reached if not passes_on(node) and node not in graph.calls)
    return [node for node in computing if not graph.ops[node].startswith(_NOT_READERS)]


def _bodies(graph: Graph, layers: Sequence[Layer], graph_def: GraphDef) -> Iterator[NotUnderstood]:
    fused = {
        function.signature.name: number
        for function in graph_def.library.function
        if (number := sum(node.op in FUSED for node in function.node_def))
    }
    listed = set()
    for node, op in enumerate(graph.ops):
        if node in graph.calls:
            continue
        if op in ENGINES:
            yield NotUnderstood(
                graph.names[node], op, "a compiled engine, and the graph that it was made of is not there"
            )
        elif fused:
            names = {attribute.func.name for attribute in graph.protos[node].attr.values()} & fused.keys()
            for name in sorted(names):
                yield NotUnderstood(
                    graph.names[node], op, f"{fused[name]} fused batch norms in {name} were not looked into"
                )
            listed |= names
    rest = fused.keys() - listed
    if rest and not layers and not graph.calls:
        reason = f"{sum(fused[name] for name in rest)} fused batch norms in {len(rest)} functions that no node calls"
        yield NotUnderstood(min(rest), "function", reason)
