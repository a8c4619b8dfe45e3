"""What a checkpoint holds of a graph's variables: there or not, still as initialized or not."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from bn_graph.checkpoints.index import Checkpoint, Entry, equals, is_filled_with
from bn_graph.graphs.graph import Graph
from bn_graph.graphs.values import constant

__all__ = ["Stored", "is_initial", "look_up"]


class Stored(NamedTuple):
    """The variables of a graph as a checkpoint has them.

    Attributes:
        checkpoint: the checkpoint.
        keys: of each variable's node, the key under which it is, or would be.
        initial: of each variable's node, its initial value, where that is a constant.
    """

    checkpoint: Checkpoint
    keys: dict[int, str]
    initial: dict[int, np.ndarray]

    def entry(self, variable: int) -> Entry | None:
        """What the checkpoint holds of a variable."""
        return self.checkpoint.entries.get(self.keys.get(variable, ""))


def look_up(
    graph: Graph,
    checkpoint: Checkpoint,
    variables: Iterable[int],
    assigns: Mapping[int, list[int]],
    saved_as: Mapping[int, str],
) -> Stored:
    """Pairs variables with a checkpoint's keys.

    Args:
        graph: the graph.
        checkpoint: the checkpoint.
        variables: nodes to look for.
        assigns: the assigns to each variable.
        saved_as: keys by the Savers of the graph; of others the name is the key, as in a Saver without names.
    """
    keys, initial = {}, {}
    for node in variables:
        keys[node] = _key(checkpoint, graph.names[node], saved_as.get(node))
        value = _initial_value(graph, node, assigns.get(node, ()))
        if value is not None:
            initial[node] = value
    return Stored(checkpoint, keys, initial)


def _key(checkpoint: Checkpoint, name: str, saved_as: str | None) -> str:
    """The key by the Saver if the checkpoint has it; else the variable's name, a partitioned one's without its part."""
    whole = name.rpartition("/part_")[0] or name
    tried = [key for key in (saved_as, name, whole) if key is not None]
    return next((key for key in tried if key in checkpoint.entries), tried[0])


def _initial_value(graph: Graph, variable: int, assigns: Iterable[int]) -> np.ndarray | None:
    name = graph.names[variable]
    named = [node for node in assigns if graph.names[node] == f"{name}/Assign"]
    for node in named or list(assigns)[:1]:
        value = constant(graph, graph.inputs[node][1])
        if value is not None:
            return value
    return None


def is_initial(entry: Entry, value: np.ndarray | None, by_convention: float) -> bool | None:
    """Whether a stored tensor still is what it was initialized to; None if that can't be told.

    Args:
        entry: of the checkpoint.
        value: the initial value, where the graph tells it.
        by_convention: what is filled in where it doesn't: 0 for a mean or beta, 1 for a variance or gamma.
    """
    if value is None or value.size == 0 or value.shape != entry.shape:
        number = by_convention if value is None or value.size == 0 else float(value.reshape(-1)[0])
        return is_filled_with(entry, number)
    first = value.reshape(-1)[0]
    if not any(value.strides) or bool((value == first).all()):
        return is_filled_with(entry, float(first))
    return equals(entry, value)
