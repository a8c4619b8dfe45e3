"""Finds the update ops that keep a train op from training: those in a branch or a loop's body that it waits for.

TensorFlow's executor passes deadness on along control edges as along data edges. An op made inside a ``tf.cond`` of
control flow v1 runs only where its branch is taken; whatever outside waits for it (an optimizer's op, made under
``tf.control_dependencies(update_ops)``) is left out with it, and ``session.run`` says nothing. Of an op in the body of a
``tf.while_loop`` of control flow v1 nothing outside can wait at all: each run raises. An op that is itself inside the
same branch takes its inputs there, through the same switch, so data edges tell where an op is and control edges what it
waits for besides.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from bn_graph.graphs.effects import assigned
from bn_graph.graphs.graph import Graph, walk
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import mode_switches
from bn_graph.graphs.ops import BETWEEN_UPDATES, SWITCHES
from bn_graph.graphs.train_ops import Training
from bn_graph.graphs.values import Choice, branches, truth

__all__ = ["ConditionalUpdate", "find_conditional_updates"]

_LOOP = "LoopCond"


class ConditionalUpdate(NamedTuple):
    """An update op in a branch, and what outside of that branch waits for it.

    Attributes:
        layer: the name of the layer.
        update: the assign's node.
        choice: the predicate's node, and the value by which the branch is taken.
        applier: an op that applies gradients, and runs only where that branch does.
        in_loop: whether the branch is the body of a loop.
    """

    layer: str
    update: int
    choice: Choice
    applier: int
    in_loop: bool

    def where(self, graph: Graph) -> str:
        """The branch, in words."""
        node, taken = self.choice
        name = graph.names[node]
        return f"the body of the tf.while_loop at {name}" if self.in_loop else f"a tf.cond, where {name} is {taken}"


def find_conditional_updates(
    graph: Graph, layers: Iterable[Layer], training: Training, under: list[frozenset[Choice]] | None = None
) -> list[ConditionalUpdate]:
    """The update ops in branches that gradients are applied outside of, and after.

    Not among them are branches that are always taken, and those of a switch between a layer's training and inference
    mode: that is fed True in every training step.

    Args:
        graph, layers, training: as found before.
        under: from `values.branches`, where the caller has it.
    """
    layers = list(layers)
    owners = {update.node: layer.name for layer in layers for update in layer.updates}
    appliers = sorted(training.appliers & training.closure)
    if not appliers or owners.keys().isdisjoint(training.closure) or SWITCHES.isdisjoint(graph.by_op):
        return []
    under = branches(graph) if under is None else under
    switches = mode_switches(layers)
    choices = frozenset().union(*(under[applier] for applier in appliers))
    choices = {each for each in choices if each[0] not in switches and not _is_always_taken(graph, each)}
    if not choices:
        return []
    inside = branches(graph._replace(controls=[()] * len(graph.names)))
    waiting: dict[Choice, int] = {}
    for applier in appliers:
        for choice in (under[applier] - inside[applier]) & choices:
            waiting.setdefault(choice, applier)
    found = []
    for node in _waited_for(graph, waiting, under, inside, owners):
        for choice in sorted(under[node] & waiting.keys())[:1]:
            in_loop = graph.ops[choice[0]] == _LOOP
            found.append(ConditionalUpdate(owners[node], node, choice, waiting[choice], in_loop))
    return sorted(found, key=lambda each: each.update)


def _is_always_taken(graph: Graph, choice: Choice) -> bool:
    node, taken = choice
    if graph.ops[node] == _LOOP:
        return not taken  # what comes after a loop: every loop ends
    return truth(graph, node, {}) is taken


def _waited_for(
    graph: Graph,
    waiting: dict[Choice, int],
    under: list[frozenset[Choice]],
    inside: list[frozenset[Choice]],
    updates: Collection[int],
) -> Iterator[int]:
    """The nodes among `updates` for which appliers wait: upstream over what waits too, and then over groups of updates."""

    def sources(node: int) -> list[int]:
        in_branch = not (under[node] - inside[node]) & waiting.keys()
        if node in updates or (in_branch and (graph.ops[node] not in BETWEEN_UPDATES or assigned(graph, node))):
            return []
        above = [*(source for source, _ in graph.inputs[node]), *graph.controls[node]]
        return [source for source in above if under[source] & waiting.keys()]

    return (node for node in walk(waiting.values(), sources) if node in updates)
