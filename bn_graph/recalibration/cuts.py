"""Where a graph can be cut between two levels: the tensors from whose values all later levels can be computed."""

from collections.abc import Callable, Collection, Sequence

from bn_graph.graphs.calls import in_loops
from bn_graph.graphs.graph import Graph, Ref, build, downstream, reach, uses, walk
from bn_graph.graphs.ops import VARIABLES
from bn_graph.graphs.values import branches
from bn_graph.tf1 import tf

__all__ = ["find_cuts"]

_CONTROL = -1
_MAY_RUN_AGAIN = VARIABLES | {
    "ReadVariableOp",
    "VarIsInitializedOp",
    "IsVariableInitialized",
    "Assert",
    "Print",
    "PrintV2",
}
"""Stateful for TensorFlow, and all the same when they run again, since nothing assigns during a pass."""


class _NoCut(Exception):
    """Something would run again that must run once a batch, or its value can't be kept."""


def find_cuts(
    live: tf.Graph, graph_def: tf.GraphDef, levels: Sequence[Sequence[str]], fed: Collection[str]
) -> list[tuple[str, ...]]:
    """For each level but the last, the tensors that it or an earlier level computes and a later one needs.

    Given their values, a later level runs nothing again that an earlier one ran, but for what no batch goes into (reads of
    variables) and what can't be fetched (the inside of a cond of control flow v1). What is fed and needed again is
    among them.

    Args:
        live: the graph.
        graph_def: its definition, without what has been added to it since.
        levels: names of the tensors that each level computes; none depends on a later level.
        fed: names of the tensors that are fed.

    Returns:
        Names of tensors; none where a level can't be cut off, since an op whose value may be another the next time (a random
        one, a queue's) would run twice for one batch, or since values can't be kept (strings, resources).
    """
    graph = build(graph_def)
    given = {_ref(graph, name) for name in fed}
    refs = [[_ref(graph, name) for name in names] for names in levels]
    once = {node for name, node in graph.ids.items() if _runs_once(live.get_operation_by_name(name))}
    users = uses(graph)
    of_batch = downstream(users, once | {node for node, _ in given}, control=False)
    fetchable = (of_batch & _certain(graph, in_loops(graph, users))) - {node for node, _ in given}

    def above(ref: Ref) -> list[Ref]:
        node, _ = ref
        controls = [(source, 0 if (source, 0) in given else _CONTROL) for source in graph.controls[node]]
        return [] if ref in given else [*graph.inputs[node], *controls]

    done: set[int] = set()

    def not_done(ref: Ref) -> list[Ref]:
        return [] if ref[0] in done else above(ref)

    found: list[tuple[str, ...]] = []
    for number, level in enumerate(refs[:-1]):
        done.update([ref[0] for ref in reach(level, not_done) if ref not in given])
        later = [ref for refs_of_level in refs[number + 1 :] for ref in refs_of_level]
        found.append(_cut(live, graph, later, above, given, done & fetchable, done & once))
    return found


def _cut(
    live: tf.Graph,
    graph: Graph,
    later: Sequence[Ref],
    above: Callable[[Ref], list[Ref]],
    given: Collection[Ref],
    fetchable: Collection[int],
    once: Collection[int],
) -> tuple[str, ...]:
    """What is fed or `fetchable`, next above the tensors `later`; none if one of `once` would run again."""
    kept: list[str] = []

    def neighbours(ref: Ref) -> list[Ref]:
        node, port = ref
        if ref in given or (port != _CONTROL and node in fetchable):
            name = f"{graph.names[node]}:{port}"
            if _can_be_kept(live.get_tensor_by_name(name)):
                kept.append(name)
                return []
            if ref in given:
                raise _NoCut
        if node in once:
            raise _NoCut
        return above(ref)

    try:
        for _ in walk(later, neighbours):
            pass
    except _NoCut:
        return ()
    return tuple(kept)


def _ref(graph: Graph, name: str) -> Ref:
    op, _, port = name.partition(":")
    return graph.ids[op], int(port)


def _runs_once(op: tf.Operation) -> bool:
    return op.op_def.is_stateful and op.type not in _MAY_RUN_AGAIN


def _can_be_kept(tensor: tf.Tensor) -> bool:
    is_reference = tensor.dtype != tensor.dtype.base_dtype
    return not is_reference and tensor.dtype not in (tf.string, tf.resource, tf.variant)


def _certain(graph: Graph, looping: Collection[int]) -> set[int]:
    """The nodes that run in any case, and once: in no branch and no loop of control flow v1."""
    around = branches(graph)
    return {
        node
        for node in graph.ids.values()
        if node not in looping and all(predicate in looping for predicate, _ in around[node])
    }
