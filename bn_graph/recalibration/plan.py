"""What is to be computed, and of which graph: the calls of each layer, in levels that can be done one after the other."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from bn_graph.graphs import effects
from bn_graph.graphs.calls import FoundCalls, LayerCall
from bn_graph.graphs.graph import Graph, build, node_named, reach
from bn_graph.inference import switching
from bn_graph.layers import averages
from bn_graph.recalibration.errors import RecalibrationError
from bn_graph.tf1 import tf

__all__ = ["Plan", "make_plan", "warn_of_others"]


class Plan(NamedTuple):
    """What is to be computed.

    Attributes:
        graph_def: the ops that the layers' inputs need.
        calls: of each layer, the tensors that it normalizes, each with the axes that are averaged over.
        statistics: of each layer, its moving mean and variance, by the names of their ops.
        levels: names of layers, to be done together and in this order.
    """

    graph_def: tf.GraphDef
    calls: dict[str, list[tuple[str, tuple[int, ...]]]]
    statistics: dict[str, tuple[str, ...]]
    levels: list[list[str]]

    def inputs(self, number: int) -> list[str]:
        """The names of the tensors that the layers of level `number` normalize."""
        return [name for layer in self.levels[number] for name, _ in self.calls[layer]]


def make_plan(live: tf.Graph, found: FoundCalls, layers: Sequence[str] | None, method: str) -> Plan:
    """The plan of a recalibration.

    Args:
        live: the graph.
        found: from `bn_graph.graphs.calls.find_calls` of this graph.
        layers, method: as for `bn_graph.recalibrate`.

    Raises:
        RecalibrationError: no layer, or not one of `layers`, can be done by this method.
    """
    wanted = _wanted(found, layers)
    return _pooled_plan(live, found, wanted) if method == "pooled" else _paper_plan(found, wanted)


def _wanted(found: FoundCalls, layers: Sequence[str] | None) -> dict[str, list[LayerCall]]:
    """The calls of each wanted layer: those whose batches update its statistics, else those that use a batch's, else all."""
    by_layer = found.by_layer
    of_inference = found.only_for_inference if layers is None else []
    unknown = [name for name in layers or [] if name not in by_layer]
    if unknown or len(by_layer) == len(of_inference):
        known = f"Those found are {', '.join(by_layer)}." if unknown and by_layer else "None was found."
        reasons = {name: found.unsupported[name] for name in unknown or found.unsupported if name in found.unsupported}
        known += "".join(f" {name}: {reason}." for name, reason in reasons.items())
        if of_inference:
            known = f"Built for inference only, and to be named in layers= if wanted: {', '.join(of_inference)}."
        what = f"No layer {', '.join(unknown)}" if unknown else "No batch norm layer"
        raise RecalibrationError(f"{what} whose statistics could be computed is in the graph. {known}")
    return {
        name: [call for call in calls if call.updates] or [call for call in calls if call.batch] or calls
        for name, calls in by_layer.items()
        if name not in of_inference and (layers is None or name in layers)
    }


def warn_of_others(graph: tf.Graph, found: FoundCalls) -> None:
    """Warns of moving statistics that stay as they are, because no layer that can be recalibrated has them."""
    of_inference = found.only_for_inference
    done = [call for call in found.calls if call.layer not in of_inference]
    scopes = tuple(f"{call.layer}/" for call in done)
    left = [variable.op.name for variable in averages.moving_statistics(graph)]
    left = [name for name in left if name not in found.statistics(*done) and not name.startswith(scopes)]
    if left:
        warnings.warn(" ".join(found.left_as_they_are(left)), stacklevel=3)


def _plan(
    graph_def: tf.GraphDef,
    graph: Graph,
    found: FoundCalls,
    wanted: Mapping[str, Sequence[LayerCall]],
    replacements: Mapping[str, str],
) -> Plan:
    """A plan of one level; `graph` is the model of `graph_def`."""
    for layer, calls in wanted.items():
        if any("//" in found.inputs(call) for call in calls):
            raise RecalibrationError(
                f"The inputs of layer {layer} are computed inside a branch or function of the graph."
            )
    tensors = {
        layer: [(replacements.get(name, name), call.axes) for call in calls for name in [found.inputs(call)]]
        for layer, calls in wanted.items()
    }
    statistics = {layer: found.statistics(calls[0]) for layer, calls in wanted.items()}
    needed = effects.upstream(graph, [name for calls in tensors.values() for name, _ in calls])
    return Plan(_part(graph_def, needed), tensors, statistics, [list(wanted)])


def _part(graph_def: tf.GraphDef, needed: Collection[str]) -> tf.GraphDef:
    """The `needed` nodes of a graph, so that they can be imported."""
    part = tf.GraphDef(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name in needed:
            kept = part.node.add()
            kept.CopyFrom(node)
            kept.device = ""
            # Colocation may name a node that is left out; the stored shapes of old graphs are refused by import.
            for key in ("_class", "_output_shapes"):
                kept.attr.pop(key, None)
    return part


def _paper_plan(found: FoundCalls, wanted: Mapping[str, Sequence[LayerCall]]) -> Plan:
    for layer, calls in wanted.items():
        if not any(call.updates or call.batch for call in calls):
            raise RecalibrationError(f'Layer {layer} is built for inference only; use method="pooled".')
    return _plan(found.graph_def, found.graph, found, wanted, {})


def _pooled_plan(live: tf.Graph, found: FoundCalls, wanted: Mapping[str, Sequence[LayerCall]]) -> Plan:
    switched = switching.by_moving_statistics(live, found)
    graph = build(switched.graph_def)
    plan = _plan(switched.graph_def, graph, found, wanted, switched.replacements)
    above: dict[str, set[str]] = {}
    for layer, tensors in plan.calls.items():
        above[layer] = set()
        for name, _ in tensors:
            tensor = (node_named(graph, name), int(name.rpartition(":")[2]))
            before = {graph.names[node] for node in switching.values_above(graph, tensor)}
            _check_switched(layer, switched, found, switching.still_by_batch(graph, found, tensor), before)
            above[layer] |= {other for other, names in plan.statistics.items() if before & set(names)}
    return plan._replace(levels=_levels(above))


def _check_switched(
    layer: str, switched: switching.Switched, found: FoundCalls, by_batch: Sequence[str], before: set[str]
) -> None:
    """Raises if something above `layer` normalizes by the batch all the same."""
    above = [call.layer for call in found.calls if call.outputs and found.graph.names[call.outputs[0]] in before]
    stuck = [name for name in above if name in switched.unsupported] + list(by_batch)
    if stuck:
        reason = switched.unsupported.get(stuck[0]) or found.unsupported.get(
            stuck[0], "its batch statistics reach further than its outputs"
        )
        raise RecalibrationError(
            f"{stuck[0]}, above layer {layer}, can't be made to normalize by its moving statistics: {reason}. "
            'Use method="paper".'
        )


def _levels(above: Mapping[str, set[str]]) -> list[list[str]]:
    """The layers in the order in which they can be done; those of one level don't depend on each other."""
    levels: list[list[str]] = []
    done: set[str] = set()
    while len(done) < len(above):
        level = [layer for layer in above if layer not in done and above[layer] <= done]
        if not level:
            waiting = [layer for layer in above if layer not in done]
            stuck = next(layer for layer in waiting if layer in reach(above[layer], above.__getitem__))
            raise RecalibrationError(
                f"The inputs of layer {stuck} depend on its own outputs (it is called more than once in a row), so it has "
                'no statistics that follow from the data alone. Use method="paper".'
            )
        levels.append(level)
        done |= set(level)
    return levels
