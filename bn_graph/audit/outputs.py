"""Which layers normalize by the batch, or update their statistics, on the way to an inference output.

Outputs that are not named are looked for: a SavedModel has signatures; in a graph that doesn't train, whatever is computed
last is one; in a graph that does, a copy of a trained layer that no train op runs (a sampler, a validation tower) leads to
one. A graph that only trains has none, and what its inference graph does is undetermined.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bn_graph.audit.report import Mode, State
from bn_graph.graphs.graph import Ref, downstream, needed, of_types, walk
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import alternatives, normalizing_by_batch, runs, sinks, values_used
from bn_graph.graphs.normalizations import Normalization, Origin, leads_on
from bn_graph.graphs.ops import FORWARDS, MANY_INPUTS, SWITCHES, WEIGHTED
from bn_graph.graphs.values import Choice

if TYPE_CHECKING:
    from bn_graph.audit.model import Model

__all__ = ["InferencePath", "find_paths"]

_MOST_LOCAL = 5_000
_MOST_PASSING_ON = 8
_SUM = "accu_variance"
_NO_STATISTICS = "there are no moving statistics at all"
_STRIPPED = (
    "its mode was stripped from the file, and maybe its statistics as well, as in graphs for OpenCV: the program or file "
    "that goes with this one decides"
)
_NAME_IT = "Name the --output to decide it"
_NO_OUTPUT_KNOWN = "the graph computes gradients but applies none, so its inference output is unknown; name an --output"


class InferencePath(NamedTuple):
    """What the inference outputs use of one layer.

    Attributes:
        layer: its name.
        mode: what it normalizes by; absent where the graph has no inference path.
        reason: of `Mode.BATCH`, the cause; of `Mode.UNKNOWN`, why it can't be determined.
        evidence: lines: the output and where the layer normalizes by the batch.
        updates: the update nodes that running an output runs.
        if_predicting: of `Mode.UNKNOWN`, why it is undetermined whether running an output updates the statistics; empty
            where it does not.
    """

    layer: str
    mode: Mode
    reason: str = ""
    evidence: tuple[str, ...] = ()
    updates: tuple[int, ...] = ()
    if_predicting: str = ""


def find_paths(model: "Model") -> dict[str, InferencePath]:
    """For each layer, by name, what inference does with it."""
    if model.outputs:
        return _upstream_of(model, model.outputs)
    if not model.training.appliers:
        return _in_graph_without_training(model)
    return _in_training_graph(model)


def _upstream_of(model: "Model", outputs: Sequence[int]) -> dict[str, InferencePath]:
    """What these outputs use."""
    used = values_used(model.graph, outputs, model.modes)
    run = runs(model.graph, outputs, model.modes)
    found = {}
    for layer in model.layers:
        by_batch = normalizing_by_batch(layer, used, model.modes)
        updates = tuple(sorted(update.node for update in layer.updates if update.node in run))
        is_used = any(place.node in used for place in layer.places)
        is_stripped = is_used and not by_batch and not model.has_moving_path(layer) and has_stripped_calls(layer)
        undecided = _undecided(model, layer) if by_batch else _STRIPPED if is_stripped else ""
        mode = Mode.UNKNOWN if undecided else Mode.BATCH if by_batch else Mode.MOVING if is_used else Mode.ABSENT
        reason = undecided or (_why_by_batch(model, layer) if by_batch else "")
        found[layer.name] = InferencePath(layer.name, mode, reason, _evidence(model, by_batch, outputs), updates)
    return found


def _undecided(model: "Model", layer: Layer) -> str:
    """Why it is unknown whether a layer normalizes by the batch: it does on one side of a switch, and something else uses
    its moving statistics on the other; empty if it is known."""
    ways = [call.choices for call in alternatives(layer) if call.by_batch]
    shared = sorted(frozenset.intersection(*ways)) if ways else []
    for node, taken in shared:
        if node not in model.modes.known and any(_is_read(model, one, (node, not taken)) for one in layer.statistics):
            return f"it normalizes by the batch where {model.name(node)} is {taken}; what it does otherwise is not understood"
    return ""


def _is_read(model: "Model", statistic: int, choice: Choice) -> bool:
    """Whether a variable is read under a choice."""

    def users(node: int) -> list[int]:
        passes_on = node == statistic or model.graph.ops[node] in FORWARDS | SWITCHES
        return [user for user, _, _ in model.uses.data[node]] if passes_on else []

    return any(choice in model.branches[node] for node in itertools.islice(walk([statistic], users), _MOST_LOCAL))


def has_stripped_calls(layer: Layer) -> bool:
    """Whether the file leaves out by what a call of the layer normalizes."""
    return any(source.origin is Origin.STRIPPED for place in layer.places for source in place.sources())


def _why_by_batch(model: "Model", layer: Layer) -> str:
    if not layer.statistics:
        return _NO_STATISTICS
    switch = _fixed_switch(model, layer)
    return f"the switch {switch} stands on training" if switch else "no switch there, it was built in training mode"


def _fixed_switch(model: "Model", layer: Layer) -> str:
    """The name of a switch of the layer that has a fixed value; empty if there is none."""
    switches = [node for call in alternatives(layer) if call.by_batch for node, _ in call.choices]
    known, chosen = model.modes.known, model.modes.chosen
    return next((model.name(node) for node in switches if node in known and node not in chosen), "")


def _evidence(model: "Model", places: Iterable[Normalization], outputs: Sequence[int]) -> tuple[str, ...]:
    at = [f"{model.name(place.node)} normalizes by the batch" for place in places]
    return (at[0], f"upstream of {', '.join(model.name(node) for node in outputs[:3])}") if at else ()


def _in_graph_without_training(model: "Model") -> dict[str, InferencePath]:
    has_path = {layer.name: model.has_moving_path(layer) for layer in model.layers}
    if model.training.has_gradients:
        modes = {name: Mode.MOVING if moving else Mode.UNKNOWN for name, moving in has_path.items()}
        return {name: InferencePath(name, mode, _NO_OUTPUT_KNOWN) for name, mode in modes.items()}
    found = _upstream_of(model, model.named)
    if all(path.mode == Mode.ABSENT for path in found.values()):
        outputs = sinks(model.graph, model.uses, _results(model.layers), frozenset())
        found = _upstream_of(model, outputs or [node for node, _ in _results(model.layers)])
    for layer in model.layers:
        if found[layer.name].mode == Mode.BATCH and has_path[layer.name]:  # a training copy beside the inference copy
            found[layer.name] = InferencePath(layer.name, Mode.MOVING, updates=_leaking_updates(model, layer))
    return found


def _results(layers: Iterable[Layer]) -> list[Ref]:
    return [place.outputs for layer in layers for place in layer.places]


# --- Graphs that train ------------------------------------------------------------------------------------------------


def _in_training_graph(model: "Model") -> dict[str, InferencePath]:
    found = _in_copies_outside_training(model)
    found |= _stuck_among_switched(model, [layer for layer in model.layers if layer.name not in found])
    switched = [layer for layer in model.layers if model.has_moving_path(layer)]
    unswitched = [layer for layer in model.layers if layer.name not in found and layer not in switched]
    for layer in switched:
        if layer.name not in found:
            found[layer.name] = InferencePath(layer.name, Mode.MOVING, updates=_leaking_updates(model, layer))
    places = [place for layer in unswitched for place in layer.places]
    predicting = _predicting(model, {node for place in places for node in _passing_on(model, place)})
    if switched:
        return found | _beside_switched(model, switched, unswitched, predicting)
    return found | {layer.name: _only_trained(model, layer, predicting) for layer in unswitched}


class _Predicting(NamedTuple):
    """What happens if a graph is used for predictions that shows no path for them: what runs, and what that changes."""

    run: Collection[int]
    changes: str


def _predicting(model: "Model", starts: Collection[int]) -> _Predicting:
    run = runs(model.graph, starts, model.modes)
    statistics = {node for layer in model.layers for node in layer.statistics}
    changed = {update.variable for layer in model.layers for update in layer.updates if update.node in run}
    changes = f"running an output changes {len(changed & statistics)} of {len(statistics)} moving statistics"
    return _Predicting(run, changes)


def _in_copies_outside_training(model: "Model") -> dict[str, InferencePath]:
    """Trained layers' calls that no train op runs and that normalize by the batch: samplers, validation copies."""
    closure = model.training.closure
    outside_training = [layer for layer in model.layers if any(place.node not in closure for place in layer.places)]
    if not outside_training:
        return {}
    # What uses the trained network's own values, such as a head that nothing trains, is no copy of it.
    weighted = {op for op in model.graph.by_op if op.startswith(WEIGHTED)}
    using = downstream(model.uses, closure.intersection(of_types(model.graph, weighted)), control=False)
    copies = {}
    for layer in outside_training:
        outside = [place for place in layer.places if place.node not in closure and place.node not in using]
        trained = model.in_training(layer) or model.is_trained(layer)
        if outside and trained and not model.has_moving_path(layer) and _leads_on(model, outside):
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
            found[layer.name] = InferencePath(layer.name, Mode.BATCH, _why_by_batch(model, layer), evidence, updates)
    return found


def _leads_on(model: "Model", places: Iterable[Normalization]) -> bool:
    """Whether further layers follow; a call whose result nothing uses is no output."""
    closure = model.training.closure
    return any(leads_on(model.graph, model.uses, place.outputs[0], closure) for place in places)


def _stuck_among_switched(model: "Model", layers: Iterable[Layer]) -> dict[str, InferencePath]:
    """Layers by the batch on the way to an output on which others, trained by the same train op, were switched."""
    stuck = [layer for layer in layers if not model.has_moving_path(layer) and model.trains_by_batch(layer)]
    switched = [layer for layer in model.layers if model.has_moving_path(layer)]
    if not stuck or not switched:
        return {}
    found = {}
    outputs = sinks(model.graph, model.uses, _results(stuck), model.training.closure)
    for output in outputs[:3]:
        used = values_used(model.graph, [output], model.modes)
        beside = [layer for layer in switched if any(place.node in used for place in layer.places)]
        # One train op applies gradients to both: not so for a generator and its discriminator.
        optimizers = set().union(*(_optimizers(model, layer) for layer in beside))
        for layer in stuck:
            by_batch = normalizing_by_batch(layer, used, model.modes)
            if by_batch and optimizers & _optimizers(model, layer):
                reason = f"{_why_by_batch(model, layer)}, though {beside[0].name} on the same path is switched"
                found[layer.name] = InferencePath(layer.name, Mode.BATCH, reason, _evidence(model, by_batch, [output]))
    return found


def _optimizers(model: "Model", layer: Layer) -> set[int]:
    """The nodes next after the layer's appliers, in which one optimizer's all meet."""
    found = set()
    for node in layer.parameters:
        for applier in model.training.appliers & {user for user, _, _ in model.uses.data[node]}:
            found.update(model.uses.control[applier])
            found.update(user for user, _, _ in model.uses.data[applier])
    return found


def _beside_switched(
    model: "Model", switched: Iterable[Layer], unswitched: Sequence[Layer], predicting: _Predicting
) -> dict[str, InferencePath]:
    """Layers without a switch in a graph where others have one.

    Undetermined is what leads to an output beside the loss, or is trained by one optimizer with a switched layer. The
    rest only trains, as the discriminator of a generator does.
    """
    ends = sinks(model.graph, model.uses, _results(unswitched), frozenset())
    used = values_used(model.graph, [node for node in ends if node not in model.training.closure], model.modes)
    optimizers = set().union(*(_optimizers(model, layer) for layer in switched))
    found = {}
    for layer in unswitched:
        leads_out = any(place.node in used for place in layer.places) or bool(optimizers & _optimizers(model, layer))
        if has_stripped_calls(layer):
            found[layer.name] = InferencePath(layer.name, Mode.UNKNOWN, _STRIPPED)
        elif leads_out and model.trains_by_batch(layer):
            found[layer.name] = _undetermined(
                layer, predicting, f"{_why_by_batch(model, layer)}, though other layers are switched"
            )
        else:
            found[layer.name] = InferencePath(layer.name, Mode.ABSENT)
    return found


def _only_trained(model: "Model", layer: Layer, predicting: _Predicting) -> InferencePath:
    """A graph without any inference path: harmless where the inference graph, in another file, has good statistics."""
    if has_stripped_calls(layer):
        return InferencePath(layer.name, Mode.UNKNOWN, _STRIPPED)
    undecided = _undecided(model, layer)
    if undecided:
        return InferencePath(layer.name, Mode.UNKNOWN, undecided)
    fault = _faulty_statistics(model, layer)
    if fault is None:
        switch = _fixed_switch(model, layer)
        return _undetermined(
            layer, predicting, f"the graph only trains{f', its switch {switch} being fixed' if switch else ''}"
        )
    calls = [call.place for call in alternatives(layer) if call.by_batch]
    evidence = tuple(f"{model.name(call.node)} normalizes by the batch, whatever is fed" for call in calls[:1])
    return InferencePath(layer.name, Mode.BATCH if calls else Mode.ABSENT, fault, evidence)


def _undetermined(layer: Layer, predicting: _Predicting, reason: str) -> InferencePath:
    """A layer that always normalizes by the batch, in a graph of which nothing says whether it also predicts."""
    reason = f"{reason}; the graph used for inference may be in another file. If you predict with this graph:"
    by_batch = f"{reason} an answer depends on the rest of its batch. {_NAME_IT}"
    updates = any(update.node in predicting.run for update in layer.updates)
    if_predicting = f"{reason} {predicting.changes}. {_NAME_IT}" if updates else ""
    return InferencePath(layer.name, Mode.UNKNOWN, by_batch, if_predicting=if_predicting)


def _faulty_statistics(model: "Model", layer: Layer) -> str | None:
    """Why the statistics of a layer that only trains are no good for any inference graph; None if they may be good."""
    if not layer.statistics:
        return None if _has_sums(model, layer) else _NO_STATISTICS
    unused, state = "nothing in the graph normalizes by moving statistics", model.states[layer.name]
    if state == State.MISSING:
        return f"{unused}, and the checkpoint lacks them"
    if state == State.INITIAL and not model.is_untrained:
        return f"{unused}, and they were never updated"
    run = any(update.node in model.training.closure for update in layer.updates)
    if state == State.ABSENT and layer.updates and not run:
        return f"{unused}, and no train op updates them"
    return None


def _has_sums(model: "Model", layer: Layer) -> bool:
    """Whether another graph sums up statistics for the layer, as BigGAN's standing ones, by compare_gan's names for them."""
    scopes = [name.removesuffix(_SUM).removesuffix("accu/") for name in model.graph.ids if name.endswith(_SUM)]
    return any(model.name(place.node).startswith(scope) for scope in scopes for place in layer.places)


def _leaking_updates(model: "Model", layer: Layer) -> tuple[int, ...]:
    """Updates that run though the layer's switch selects its moving statistics: assigns outside the branch."""
    calls = list(alternatives(layer))
    places = [call.place for call in calls if any(node in model.modes.chosen for node, _ in call.choices)]
    places = places or [call.place for call in calls if not call.by_batch]
    run = _local(model, places)
    return tuple(sorted(update.node for update in layer.updates if update.node in run))


def _local(model: "Model", places: Sequence[Normalization]) -> set[int]:
    """What runs for these calls' outputs, without what runs for their inputs."""
    stops = {place.inputs[0] for place in places}

    def inner(node: int) -> list[int]:
        return [source for source in needed(model.graph, node, model.modes.not_called) if source not in stops]

    starts = {node for place in places for node in _passing_on(model, place)} - stops
    return set(itertools.islice(walk(starts, inner), _MOST_LOCAL)) - model.modes.dead


def _passing_on(model: "Model", place: Normalization) -> set[int]:
    """A call's output and the nodes that only pass it on; updates in place are their control inputs."""

    def following(step: tuple[int, int]) -> list[tuple[int, int]]:
        node, distance = step
        if distance == _MOST_PASSING_ON:
            return []
        return [(user, distance + 1) for user, at, _ in model.uses.data[node] if _passes_on(model, user, at)]

    return {node for node, _ in walk([(place.outputs[0], 0)], following) if _is_called(model, node)}


def _is_called(model: "Model", node: int) -> bool:
    """Whether a node is in no function that a decided switch leaves out."""
    caller = model.graph.callers[node]
    while caller is not None:
        if caller in model.modes.not_called:
            return False
        caller = model.graph.callers[caller[0]]
    return True


def _passes_on(model: "Model", user: int, at: int) -> bool:
    """Whether a user passes a value on as it is, or is the caller whose function returns it.

    A loop that TensorFlow built a second time, to keep what the gradients need, is called for those alone.
    """
    if at >= 0:
        return model.graph.ops[user] in FORWARDS | MANY_INPUTS
    callers = [model.name(other) for other, _, _ in model.uses.data[user]]
    return not callers or not all("gradients" in name for name in callers)
