"""Which layers normalize by the batch, or update their statistics, on the way to an inference output.

Where nobody names the outputs, they are looked for: a SavedModel has signatures; in a graph that doesn't train, whatever
is computed last is one; in a graph that does, a copy of a trained layer that no train op runs (a sampler, a validation
tower) leads to one. A graph that only trains has none, and what its inference graph does can't be told from it.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bn_graph.audit.model import Model, looks_untrained
from bn_graph.graphs.graph import Ref, downstream
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import alternatives, normalizing_by_batch, runs, sinks, values_used
from bn_graph.graphs.normalizations import Normalization, leads_on
from bn_graph.graphs.ops import FORWARDS, WEIGHTED

__all__ = ["InferencePath", "find_paths"]

_MOST_LOCAL = 5_000


class InferencePath(NamedTuple):
    """What the inference outputs use of one layer.

    Attributes:
        layer: its name.
        mode: ``batch``, ``population``, ``-`` where no inference path is in the graph, ``?`` where it can't be told.
        reason: for ``batch``, why it is no good; for ``?``, why it can't be told.
        evidence: lines: the output and where the layer normalizes by the batch.
        updates: the update nodes that running an output runs.
    """

    layer: str
    mode: str
    reason: str = ""
    evidence: tuple[str, ...] = ()
    updates: tuple[int, ...] = ()


def find_paths(model: Model) -> dict[str, InferencePath]:
    """For each layer, by name, what inference does with it."""
    if model.outputs:
        return {layer.name: path for layer, path in _of_outputs(model, model.outputs, "").items()}
    if not model.training.appliers:
        return _of_graph_without_training(model)
    return _of_training_graph(model)


def _of_outputs(model: Model, outputs: Sequence[int], reason: str) -> dict[Layer, InferencePath]:
    """Known outputs settle it."""
    used = values_used(model.graph, outputs, model.modes)
    run = runs(model.graph, outputs, model.modes)
    found = {}
    for layer in model.layers:
        by_batch = normalizing_by_batch(layer, used, model.modes)
        updates = tuple(sorted(update.node for update in layer.updates if update.node in run))
        mode = "batch" if by_batch else "population" if any(place.node in used for place in layer.places) else "-"
        why = (reason or _stuck(model, layer)) if by_batch else ""
        found[layer] = InferencePath(layer.name, mode, why, _evidence(model, by_batch, outputs), updates)
    return found


def _stuck(model: Model, layer: Layer) -> str:
    if not layer.statistics:
        return "there are no population statistics at all"
    switch = _fixed_switch(model, layer)
    return f"the switch {switch} stands on training" if switch else "no switch there, it was built in training mode"


def _fixed_switch(model: Model, layer: Layer) -> str:
    """The name of a switch of the layer that can't be turned; empty if there is none."""
    modes = model.modes
    choices = [node for way in alternatives(layer) if way.by_batch for node, _ in way.choices]
    return next((model.name(node) for node in choices if node in modes.known and node not in modes.chosen), "")


def _evidence(model: Model, places: Iterable[Normalization], outputs: Sequence[int]) -> tuple[str, ...]:
    at = [f"{model.name(place.node)} normalizes by the batch" for place in places]
    return (at[0], f"upstream of {', '.join(model.name(node) for node in outputs[:3])}") if at else ()


def _of_graph_without_training(model: Model) -> dict[str, InferencePath]:
    if model.training.has_gradients:
        why = "the graph computes gradients but applies none, so it can't be told what is run for inference; name an --output"
        return {
            layer.name: InferencePath(layer.name, "population" if model.has_population_path(layer) else "?", why)
            for layer in model.layers
        }
    outputs = sinks(model.graph, model.uses, _outputs_of(model, model.layers), frozenset())
    outputs = outputs or [place.outputs[0] for layer in model.layers for place in layer.places]
    found = {}
    for layer, path in _of_outputs(model, outputs, "").items():
        if path.mode == "batch" and model.has_population_path(layer):  # a training copy beside the inference copy
            path = path._replace(mode="population", reason="", evidence=(), updates=_leaking(model, layer))
        found[layer.name] = path
    return found


def _outputs_of(model: Model, layers: Iterable[Layer]) -> list[Ref]:
    return [place.outputs for layer in layers for place in layer.places]


# --- Graphs that train ------------------------------------------------------------------------------------------------


def _of_training_graph(model: Model) -> dict[str, InferencePath]:
    found = _of_copies(model)
    found |= _stuck_among_switched(model, [layer for layer in model.layers if layer.name not in found])
    has_path = any(model.has_population_path(layer) for layer in model.layers)
    for layer in model.layers:
        if layer.name in found:
            continue
        if model.has_population_path(layer):
            found[layer.name] = InferencePath(layer.name, "population", updates=_leaking(model, layer))
        else:
            found[layer.name] = InferencePath(layer.name, "-") if has_path else _only_trained(model, layer)
    return found


def _of_copies(model: Model) -> dict[str, InferencePath]:
    """Trained layers' places that no train op runs, where they normalize by the batch: samplers, validation copies."""
    closure = model.training.closure
    # What hangs off the trained network itself, such as a head that nobody used, is no copy of it.
    weighted = [node for node in closure if model.graph.ops[node].startswith(WEIGHTED)]
    hanging = downstream(model.uses, weighted, control=False)
    copies = {}
    for layer in model.layers:
        outside = [place for place in layer.places if place.node not in closure and place.node not in hanging]
        trained = model.in_training(layer) or model.is_trained(layer)
        if outside and trained and not model.has_population_path(layer) and _leads_on(model, outside):
            copies[layer] = outside
    starts = [place.outputs for places in copies.values() for place in places]
    outputs = sinks(model.graph, model.uses, starts, closure)
    used = values_used(model.graph, outputs, model.modes)
    found = {}
    for layer, outside in copies.items():
        by_batch = [place for place in normalizing_by_batch(layer, used, model.modes) if place in outside]
        if by_batch:
            run = _local(model, by_batch)
            updates = tuple(sorted(update.node for update in layer.updates if update.node in run))
            evidence = _evidence(model, by_batch, outputs)
            found[layer.name] = InferencePath(layer.name, "batch", _stuck(model, layer), evidence, updates)
    return found


def _leads_on(model: Model, places: Iterable[Normalization]) -> bool:
    """Whether further layers follow; a call whose result nobody wanted is no output."""
    closure = model.training.closure
    return any(leads_on(model.graph, model.uses, place.outputs[0], closure) for place in places)


def _stuck_among_switched(model: Model, layers: Iterable[Layer]) -> dict[str, InferencePath]:
    """Layers by the batch on the way to an output on which others, trained by the same train op, were switched."""
    stuck = [layer for layer in layers if not model.has_population_path(layer) and model.trains_by_batch(layer)]
    switched = [layer for layer in model.layers if model.has_population_path(layer)]
    if not stuck or not switched:
        return {}
    found = {}
    outputs = sinks(model.graph, model.uses, _outputs_of(model, stuck), model.training.closure)
    for output in outputs[:3]:
        used = values_used(model.graph, [output], model.modes)
        beside = [layer for layer in switched if any(place.node in used for place in layer.places)]
        for layer in stuck:
            by_batch = normalizing_by_batch(layer, used, model.modes)
            if by_batch and any(_trained_together(model, layer, other) for other in beside):
                reason = f"{_stuck(model, layer)}, though {beside[0].name} on the same path is switched"
                found[layer.name] = InferencePath(layer.name, "batch", reason, _evidence(model, by_batch, [output]))
    return found


def _trained_together(model: Model, first: Layer, second: Layer) -> bool:
    """Whether one train op applies gradients to both: not so for a generator and its discriminator."""
    optimizers = [_optimizers(model, layer) for layer in (first, second)]
    return bool(optimizers[0] & optimizers[1])


def _optimizers(model: Model, layer: Layer) -> set[int]:
    """The nodes next after the layer's appliers, in which one optimizer's all meet."""
    found = set()
    for node in layer.parameters:
        for applier in model.training.appliers & {user for user, _, _ in model.uses.data[node]}:
            found.update(model.uses.control[applier])
            found.update(user for user, _, _ in model.uses.data[applier])
    return found


def _only_trained(model: Model, layer: Layer) -> InferencePath:
    """A graph without any inference path: harmless where good statistics wait for one elsewhere."""
    state = model.states[layer.name]
    if not layer.statistics:
        reason = "there are no population statistics at all"
    elif state == "missing":
        reason = "nothing in the graph normalizes by population statistics, and the checkpoint lacks them"
    elif state == "initial" and not looks_untrained(model):
        reason = "nothing in the graph normalizes by population statistics, and they were never updated"
    elif state == "-" and layer.updates and not any(update.node in model.training.closure for update in layer.updates):
        reason = "nothing in the graph normalizes by population statistics, and no train op updates them"
    else:
        switch = _fixed_switch(model, layer)
        fixed = f", its switch {switch} being fixed" if switch else ""
        why = f"the graph only trains{fixed}; what the graph used for inference does is not in this file"
        return InferencePath(layer.name, "?", why)
    places = [way.place for way in alternatives(layer) if way.by_batch]
    evidence = tuple(f"{model.name(place.node)} normalizes by the batch, whatever is fed" for place in places[:1])
    return InferencePath(layer.name, "batch" if places else "-", reason, evidence)


def _leaking(model: Model, layer: Layer) -> tuple[int, ...]:
    """Updates that run though the layer's switch stands on population: assigns outside the branch that names them."""
    places = [
        way.place
        for way in alternatives(layer)
        if way.choices and any(node in model.modes.chosen for node, _ in way.choices)
    ]
    if not places:
        places = [way.place for way in alternatives(layer) if not way.by_batch]
    run = _local(model, places) - model.modes.dead
    return tuple(sorted(update.node for update in layer.updates if update.node in run))


def _local(model: Model, places: Sequence[Normalization]) -> set[int]:
    """What runs for these places' outputs, without what runs for their inputs."""
    graph = model.graph
    stops = {place.inputs[0] for place in places}
    reached: set[int] = set()
    pending = [node for place in places for node in _handed_on(model, place)]
    while pending and len(reached) < _MOST_LOCAL:
        node = pending.pop()
        if node in reached or node in stops or node < 0:
            continue
        reached.add(node)
        pending.extend(source for source, _ in graph.inputs[node])
        pending.extend(graph.controls[node])
        for call in graph.calls.get(node, ()):
            if (node, call.part) not in model.modes.not_called:
                pending.extend(source for source, _ in call.results)
                pending.extend(call.effects)
    return reached - model.modes.dead


def _handed_on(model: Model, place: Normalization) -> set[int]:
    """A place's output and the nodes that only hand it on, where updates in place hang."""
    found, pending = set(), [place.outputs[0]]
    for _ in range(8):
        following = []
        for node in pending:
            found.add(node)
            users = model.uses.data[node]
            following += [user for user, at, _ in users if _hands_on(model, user, at)]
        pending = [node for node in following if node not in found]
    return {node for node in found if _is_called(model, node)}


def _is_called(model: Model, node: int) -> bool:
    """Whether a node lies in no function that a decided switch leaves out."""
    caller = model.graph.callers[node]
    while caller is not None:
        if caller in model.modes.not_called:
            return False
        caller = model.graph.callers[caller[0]]
    return True


def _hands_on(model: Model, user: int, at: int) -> bool:
    """Whether a user hands a value on as it is, or is the caller whose function returns it.

    A loop that TensorFlow built a second time, to keep what the gradients need, is called for those alone.
    """
    if at >= 0:
        return model.graph.ops[user] in FORWARDS | {"Merge"}
    callers = [model.name(other) for other, _, _ in model.uses.data[user]]
    return not callers or not all("gradients" in name for name in callers)
