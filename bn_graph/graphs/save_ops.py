"""What a graph's Savers save, and under which keys."""

from typing import NamedTuple

from bn_graph.graphs.graph import Graph, closure, of_types
from bn_graph.graphs.values import strip, variable

__all__ = ["Saver", "find_savers"]


class Saver(NamedTuple):
    """One Saver.

    Attributes:
        node: its save op; of a sharded Saver, the first.
        keys: what it saves, by the variables' nodes.
        is_main: whether the meta graph names it as its own, or there is no other.
    """

    node: int
    keys: dict[int, str]
    is_main: bool


def find_savers(graph: Graph, save_tensor_name: str = "") -> list[Saver]:
    """All Savers of a graph, the main one first.

    Args:
        graph: the graph.
        save_tensor_name: of the meta graph's ``saver_def``; may be empty, or name nothing of the graph.
    """
    ops = {node: keys for node in of_types(graph, _TENSORS) if (keys := _saved_by(graph, node)) is not None}
    main_op = graph.ids.get(save_tensor_name.partition(":")[0])
    of_main = sorted(closure(graph, [main_op]) & ops.keys()) if main_op is not None else []
    savers = []
    if of_main:
        merged = {variable: key for node in of_main for variable, key in ops[node].items()}
        savers.append(Saver(of_main[0], merged, True))
    scopes: dict[str, Saver] = {}
    for node in sorted(ops.keys() - set(of_main)):
        scope = graph.names[node].partition("/")[0]  # the shards of one Saver share its scope: save_1/SaveV2_3
        if scope in scopes:
            scopes[scope].keys.update(ops[node])
        else:
            scopes[scope] = Saver(node, dict(ops[node]), False)
    savers.extend(scopes.values())
    return [savers[0]._replace(is_main=True)] if len(savers) == 1 else savers


_TENSORS = {"SaveV2": 3, "SaveSlices": 3, "Save": 2}
"""Saving ops, and which input is the first tensor that is saved."""


def _saved_by(graph: Graph, node: int) -> dict[int, str] | None:
    """What a save op saves: ``SaveV2`` has prefix, names, slices, tensors; ``SaveSlices`` and ``Save`` likewise."""
    first = _TENSORS[graph.ops[node]]
    if len(graph.inputs[node]) < first:
        return None
    names, _ = strip(graph, graph.inputs[node][1])
    if graph.ops[names] != "Const":
        return None
    keys = [key.decode("utf-8", "replace") for key in graph.protos[names].attr["value"].tensor.string_val]
    saved = {}
    for key, ref in zip(keys, graph.inputs[node][first:], strict=False):
        found = variable(graph, ref)
        if found is not None:
            saved[found] = key
    return saved
