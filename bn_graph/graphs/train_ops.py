"""Finds a graph's train ops and everything they run, from what applies gradients and not from names or collections.

A train op is whatever can't run without applying gradients: the optimizer's own op, a group of it with update ops, a
``group_deps`` after both. (The collection ``train_op`` often names something else.) What applies gradients is an
optimizer's kernel, or an assign to a trainable variable that gradients flow into, as hand-written optimizers have it.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from bn_graph.graphs.graph import Graph, Uses, closure, downstream, of_types, reach
from bn_graph.graphs.ops import ASSIGNS, OPTIMIZER_ACCUMULATORS, OPTIMIZERS
from bn_graph.graphs.values import variable

__all__ = ["Training", "find_training", "is_applier"]


class Training(NamedTuple):
    """The training part of a graph.

    Attributes:
        appliers: nodes that apply gradients; none in a graph that doesn't train.
        train_ops: the last nodes that can't run without one: what a program would run.
        closure: everything that runs with any train op.
        trained: the variables that gradients are applied to.
        has_gradients: whether the graph computes gradients, applied or not.
    """

    appliers: frozenset[int]
    train_ops: tuple[int, ...]
    closure: frozenset[int]
    trained: frozenset[int]
    has_gradients: bool


def is_applier(op: str) -> bool:
    """Whether an op type applies gradients to a variable.

    Example:
        >>> from bn_graph.graphs.train_ops import is_applier
        >>> is_applier("ResourceApplyAdam"), is_applier("AssignSub")
        (True, False)
    """
    return op.startswith(OPTIMIZERS) or op in OPTIMIZER_ACCUMULATORS


def find_training(graph: Graph, uses: Uses, trainable: Collection[str], named: Sequence[int] = ()) -> Training:
    """Finds what trains.

    Args:
        graph, uses: as made by `graph.build` and `graph.uses`.
        trainable: names of the trainable variables' ops, so far as the file says.
        named: the train ops, where the caller knows them; they then are the only ones.
    """
    appliers = set(of_types(graph, filter(is_applier, graph.by_op)))
    appliers |= _written_out(graph, uses, trainable)
    after = downstream(uses, appliers)
    train_ops = tuple(named) or tuple(sorted(node for node in after if not uses.data[node] and not uses.control[node]))
    run = closure(graph, named or after)
    trained = {found for node in appliers & run for found in _targets(graph, node)}
    has_gradients = any(_is_gradient(graph, node) for node in range(len(graph.names)))
    return Training(frozenset(appliers), train_ops, frozenset(run), frozenset(trained), has_gradients)


def _is_gradient(graph: Graph, node: int) -> bool:
    """Whether a node computes gradients: a gradient kernel, or what ``tf.gradients`` puts under its scope."""
    op, name = graph.ops[node], graph.names[node]
    is_kernel = (
        op.endswith(("Grad", "GradV2", "GradV3", "BackpropFilter", "BackpropInput")) and op != "Conv2DBackpropInput"
    )
    return is_kernel or "gradients/" in name or name.startswith("gradients")


def _written_out(graph: Graph, uses: Uses, trainable: Collection[str]) -> set[int]:
    """Assigns to trainable variables of what gradients flow into."""
    assigns = [node for node in of_types(graph, ASSIGNS) if len(graph.inputs[node]) >= 2]
    values = {node: graph.inputs[node][1][0] for node in assigns if _assigns_one_of(graph, node, trainable)}

    def sources(node: int) -> list[int]:
        returned = [source for call in graph.calls.get(node, ()) for source, _ in call.results]
        return [source for source, _ in graph.inputs[node]] + returned

    # Most are initializers and restoring ops, which have little above them.
    gradients = [node for node in reach(values.values(), sources) if _is_gradient(graph, node)]
    flowing = downstream(uses, gradients, control=False)
    return {node for node, value in values.items() if value in flowing}


def _assigns_one_of(graph: Graph, node: int, names: Collection[str]) -> bool:
    assigned = variable(graph, graph.inputs[node][0])
    return assigned is not None and graph.names[assigned] in names


def _targets(graph: Graph, node: int) -> set[int]:
    """The variables that an applier assigns, its slots included."""
    assigned = (
        {variable(graph, ref) for ref in graph.inputs[node]}
        if graph.ops[node] not in ASSIGNS
        else {variable(graph, graph.inputs[node][0])}
    )
    return {found for found in assigned if found is not None}
