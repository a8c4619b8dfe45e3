"""Finds the calls of batch norm layers: what each normalizes, over which axes, by which variables.

`layers.find_layers` says which layers there are and where they normalize. Here the same layers, by the same names, are
described so that their statistics can be computed anew and their calls switched to those: `recalibration` and
`inference` ask this. Ops alone can't tell everything about this library's own layers (batch renormalization, weights of
examples, synchronized statistics), so their calls come from the notes that they leave in the graph.
"""

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_graph.graphs.graph import Graph, Ref, Uses, build, of_types, reach, uses, walk
from bn_graph.graphs.layers import Layer, find_layers
from bn_graph.graphs.modes import value_sources
from bn_graph.graphs.normalizations import Normalization, Origin, Source, find_normalizations
from bn_graph.graphs.notes import LAYERS
from bn_graph.graphs.ops import (
    ARITHMETIC,
    AVERAGED,
    ENTERS,
    EXITS,
    FORWARDS,
    FUSED,
    LOOPS,
    REFERENCE_FORWARDS,
    ROW_READS,
    SAME_VALUES,
)
from bn_graph.graphs.shapes import Shape, stored_shape
from bn_graph.graphs.statistics import Kind, recognize, shifted_parts
from bn_graph.graphs.updates import Update, assigned_value, targets
from bn_graph.graphs.values import strip, variable

__all__ = [
    "RECURRENT",
    "BatchTensor",
    "FoundCalls",
    "LayerCall",
    "find_calls",
    "in_loops",
    "is_read_by_rows",
    "shape_of",
    "tensor_name",
]

RECURRENT = "it is a recurrent cell's, with statistics for each time step"
"""Why a layer is neither recalibrated nor folded."""

_MOST_STEPS = 64


class BatchTensor(NamedTuple):
    """A batch statistic that later ops read: `ref` is the mean or variance, less `shift` where that is not None."""

    ref: Ref
    kind: Kind
    shift: Ref | None = None


class LayerCall(NamedTuple):
    """One place where a batch norm layer normalizes.

    Attributes:
        layer: the layer's name, as the audit reports it. Calls that share statistics share it.
        inputs: the tensor that is normalized.
        axes: dimensions of `inputs` that are averaged over.
        mean, variance: the nodes of the statistics' variables.
        updates: whether some update op averages this call's batch into the statistics.
        batch: the batch statistics that it may normalize by; empty for one that always does by the variables, and for a
            noted one.
        outputs: the normalized tensor.
        epsilon: what is added to the variance, where that is a constant.
        gamma, beta: the nodes of their variables, or None.
        noted: whether this library's note told it.
    """

    layer: str
    inputs: Ref
    axes: tuple[int, ...]
    mean: int
    variance: int
    updates: bool
    batch: tuple[BatchTensor, ...]
    outputs: Ref
    epsilon: float | None
    gamma: int | None
    beta: int | None
    noted: bool = False


class FoundCalls(NamedTuple):
    """The calls of a graph's layers.

    Attributes:
        graph_def: the graph, with the shapes that TensorFlow knows.
        graph: the model of it.
        layers: as the audit finds them.
        calls: in the order of the variables of their means.
        unsupported: the reason, by name, for each layer whose statistics can't be computed apart.
    """

    graph_def: Any
    graph: Graph
    layers: tuple[Layer, ...]
    calls: tuple[LayerCall, ...]
    unsupported: dict[str, str]

    @property
    def by_layer(self) -> dict[str, list[LayerCall]]:
        """The calls of each layer."""
        found: dict[str, list[LayerCall]] = {}
        for call in self.calls:
            found.setdefault(call.layer, []).append(call)
        return found

    @property
    def only_for_inference(self) -> list[str]:
        """The layers, other than this library's, that were built for inference: no batch goes into their statistics.

        Their weights may have been trained by the statistics as they are, and then belong to them. So they are to be
        recalibrated only where somebody says so.
        """
        return [
            layer for layer, calls in self.by_layer.items() if not any(call.updates or call.noted for call in calls)
        ]

    def left_as_they_are(self, statistics: Iterable[str]) -> list[str]:
        """What to report of moving statistics that are not recalibrated: a sentence for each reason, with names.

        Args:
            statistics: the names of their ops.
        """
        owners = {self.graph.names[node]: layer.name for layer in self.layers for node in layer.statistics}
        by_reason: dict[str, list[str]] = {}
        for name in statistics:
            layer = owners.get(name)
            reason = self.unsupported.get(layer, "no update op shows what they are statistics of")
            by_reason.setdefault(reason, []).append(layer if layer in self.unsupported else name)
        return [
            f"Left as they are: {', '.join(dict.fromkeys(names))} ({reason})." for reason, names in by_reason.items()
        ]

    def inputs(self, call: LayerCall) -> str:
        """The name of the tensor that a call normalizes; one computed inside a function has ``//`` in it."""
        return tensor_name(self.graph, call.inputs)

    def statistics(self, *calls: LayerCall) -> tuple[str, ...]:
        """The names of the ops of the moving means and variances, in pairs."""
        return tuple(self.graph.names[node] for call in calls for node in (call.mean, call.variance))


class _Unsupported(Exception):
    """The reason why a call can't be described."""


def find_calls(live: Any) -> FoundCalls:
    """Every call of a batch norm layer that has variables for its statistics.

    Args:
        live: a ``tf.Graph`` of this library or of anybody; one that was imported from a meta graph will do. It is not
            changed.

    Returns:
        `FoundCalls`. Of a layer that batches update, the calls that are only for inference are left out.

    Raises:
        AuditError: the graph's functions call one another too often.
    """
    graph_def = live.as_graph_def(add_shapes=True)
    graph = build(graph_def)
    users = uses(graph)
    layers = find_layers(graph, users, find_normalizations(graph, users))
    looping = in_loops(graph, users)
    notes = [json.loads(text) for text in live.get_collection(LAYERS)]
    noted = _noted_calls(graph, layers, notes)
    calls, unsupported = list(noted), {}
    own = {node for call in noted for node in (call.mean, call.variance)}
    for layer in layers:
        if not own & set(layer.statistics):
            found, reason = _calls_of(graph, users, looping, layer)
            calls.extend(found)
            if not found:
                unsupported[layer.name] = reason
    calls.sort(key=lambda call: call.mean)  # the order in which the layers were made
    return FoundCalls(graph_def, graph, tuple(layers), tuple(calls), unsupported)


def tensor_name(graph: Graph, ref: Ref) -> str:
    """The name of a tensor of the graph itself, with its port."""
    return f"{graph.names[ref[0]]}:{ref[1]}"


def shape_of(graph: Graph, ref: Ref) -> Shape | None:
    """The sizes of a tensor of the graph itself, as its ``_output_shapes`` have them; None where its rank is unknown."""
    return None if graph.callers[ref[0]] is not None else stored_shape(graph, ref)


def in_loops(graph: Graph, users: Uses) -> set[int]:
    """The nodes of loops of either kind of control flow."""

    def within(node: int) -> list[int]:
        return [user for user, _, _ in users.data[node] if graph.ops[user] not in EXITS]

    inside = reach(of_types(graph, ENTERS), within)
    for node, caller in enumerate(graph.callers):  # a caller stands before the nodes of the function that it calls
        if caller is not None and (caller[0] in inside or graph.ops[caller[0]] in LOOPS):
            inside.add(node)
    return inside


# --- This library's notes ---------------------------------------------------------------------------------------------


def _noted_calls(graph: Graph, layers: Sequence[Layer], notes: Iterable[dict]) -> list[LayerCall]:
    by_statistic = {node: layer for layer in layers for node in layer.statistics}
    assigns = targets(graph) if notes else {}
    found = []
    for note in notes:
        inputs = _ref(graph, note["inputs"])
        mean, variance = (graph.ids.get(note[key]) for key in ("moving_mean", "moving_variance"))
        sizes = None if inputs is None else shape_of(graph, inputs)
        if None in (inputs, mean, variance, sizes):
            continue  # imported under another scope: the names are not this graph's
        layer = by_statistic.get(mean)
        place = next((place for place in layer.places if place.inputs == strip(graph, inputs)), None) if layer else None
        outputs = _ref(graph, note["outputs"]) if "outputs" in note else place.outputs if place else None
        gamma, beta = (graph.ids.get(note.get(key, f"{note['scope']}/{key}")) for key in ("gamma", "beta"))
        initializer = f"{note['moving_mean']}/Assign"
        values = [assigned_value(graph, node) for node in assigns.get(mean, ()) if graph.names[node] != initializer]
        found.append(
            LayerCall(
                layer=layer.name if layer is not None else note["scope"] or note["moving_mean"],
                inputs=inputs,
                axes=tuple(axis for axis in range(len(sizes)) if axis not in np.atleast_1d(note["axis"])),
                mean=mean,
                variance=variance,
                updates=inputs in walk(values, lambda ref: value_sources(graph, ref)),
                batch=(),
                outputs=outputs,
                epsilon=note.get("epsilon", place.epsilon if place else None),
                gamma=gamma,
                beta=beta,
                noted=True,
            )
        )
    return found


def _ref(graph: Graph, name: str) -> Ref | None:
    op, _, port = name.partition(":")
    return (graph.ids[op], int(port or 0)) if op in graph.ids else None


# --- Everybody's layers -----------------------------------------------------------------------------------------------


def _calls_of(graph: Graph, users: Uses, looping: Collection[int], layer: Layer) -> tuple[list[LayerCall], str]:
    """The calls of a layer, and a reason in case that there are none."""
    if not layer.means or not layer.variances:
        return [], "it has no variables for its statistics"
    if any(place.keeps_deviation for place in layer.places) or any(_averages_root(graph, one) for one in layer.updates):
        return [], "it keeps a deviation, not a variance"
    if any(is_read_by_rows(graph, users, node) for node in layer.statistics):
        return [], RECURRENT
    calls, reason = {}, ""
    for place in layer.places:
        try:
            call = _call(graph, looping, layer, place)
            calls.setdefault((call.inputs, call.axes, call.batch), call)
        except _Unsupported as error:
            reason = str(error)
    found = list(calls.values()) or _calls_of_updates(graph, looping, layer)
    if not any(call.updates for call in found):  # somebody may have computed the batch's statistics a second time
        averaged = {ref for update in layer.updates for ref in update.inputs}
        found = [call._replace(updates=strip(graph, call.inputs) in averaged) for call in found]
    if any(call.updates for call in found):
        found = [call for call in found if call.batch or call.updates]
    return found, reason


def _averages_root(graph: Graph, update: Update) -> bool:
    """Whether what an update averages is the root of a variance."""

    def terms(ref: Ref) -> list[Ref]:
        sources = graph.inputs[ref[0]] if graph.ops[ref[0]] in AVERAGED and ref not in update.statistics else []
        is_square = graph.ops[ref[0]] == "Square" or (len(sources) == 2 and sources[0] == sources[1])
        return [] if is_square else sources

    averaged = itertools.islice(walk([assigned_value(graph, update.node)], terms), _MOST_STEPS)
    return any(graph.ops[node] in ("Sqrt", "Rsqrt") for node, _ in averaged)


def is_read_by_rows(graph: Graph, users: Uses, variable: int) -> bool:
    """Whether a variable has a row for each time step, as a recurrent cell's statistics have."""

    def forwards(node: int) -> list[int]:
        return [user for user, _, _ in users.data[node] if graph.ops[user] in REFERENCE_FORWARDS]

    readers = (user for node in walk([variable], forwards) for user, _, _ in users.data[node])
    return any(graph.ops[reader] in ROW_READS for reader in readers)


def _call(graph: Graph, looping: Collection[int], layer: Layer, place: Normalization) -> LayerCall:
    if place.node in looping:
        raise _Unsupported("it normalizes inside a loop")
    mean = _variable(layer, place.mean, layer.means)
    variance = _variable(layer, place.variance, layer.variances)
    if graph.callers[mean] is not None or graph.callers[variance] is not None:
        raise _Unsupported("its statistics are known inside a function only")
    inputs = _inputs(graph, place)
    batch = tuple(_batch_tensors(graph, place))
    averaged = {ref for update in layer.updates for ref in update.statistics}
    return LayerCall(
        layer=layer.name,
        inputs=inputs,
        axes=_axes(graph, place, inputs, mean),
        mean=mean,
        variance=variance,
        updates=any(tensor.ref in averaged for tensor in batch),
        batch=batch,
        outputs=place.outputs,
        epsilon=place.epsilon,
        gamma=place.gamma,
        beta=place.beta,
    )


def _calls_of_updates(graph: Graph, looping: Collection[int], layer: Layer) -> list[LayerCall]:
    """Of a layer that normalizes inside a loop: the inputs outside of it whose statistics its update ops average."""
    averaged = [(update, recognize(graph, ref)) for update in layer.updates for ref in update.statistics]
    found = {}
    for (one, mean), (other, variance) in itertools.permutations(averaged, 2):
        if (mean.kind, variance.kind) == (Kind.MEAN, Kind.VARIANCE) and mean.inputs[0] in variance.inputs and mean.axes:
            inputs = mean.inputs[0]
            if inputs[0] not in looping and graph.callers[one.variable] is graph.callers[other.variable] is None:
                place = layer.places[0]
                found[inputs] = LayerCall(
                    layer.name,
                    inputs,
                    mean.axes,
                    one.variable,
                    other.variable,
                    True,
                    (),
                    place.outputs,
                    None,
                    None,
                    None,
                )
    return list(found.values())


def _variable(layer: Layer, sources: Iterable[Source], of_layer: Iterable[int]) -> int:
    """The one variable that a place reads or, where it reads none, that its batch goes into."""
    sources = list(sources)
    variables = {source.node for source in sources if source.origin is Origin.VARIABLE}
    refs = {source.statistic.ref for source in sources if source.statistic is not None}
    variables = variables or {u.variable for u in layer.updates if u.statistics & refs} & set(of_layer) or set(of_layer)
    if len(variables) != 1:
        raise _Unsupported("several variables hold its mean or its variance")
    return variables.pop()


def _batch_tensors(graph: Graph, place: Normalization) -> Iterator[BatchTensor]:
    for source in place.sources():
        if source.statistic is not None:
            ref, kind = source.statistic.ref, source.statistic.kind
            part, shift = shifted_parts(graph, ref) if kind is Kind.MEAN else (None, None)
            is_less_shift = part == ref and place.inputs not in source.statistic.inputs
            yield BatchTensor(ref, kind, shift if is_less_shift else None)
            if part is not None and part != ref:
                yield BatchTensor(part, kind, shift)


def _inputs(graph: Graph, place: Normalization) -> Ref:
    """The tensor that is normalized, in the shape in which it is; `Normalization.inputs` is that before all reshapes."""
    if place.kernel != "moments":
        found = graph.inputs[place.node][0]
    else:
        found = _entering(graph, place, lambda ref: strip(graph, ref) == place.inputs)
    if found is None:
        raise _Unsupported("its inputs can't be found")
    while graph.ops[found[0]] in SAME_VALUES and graph.inputs[found[0]]:
        found = graph.inputs[found[0]][0]
    return found


def _entering(graph: Graph, place: Normalization, wanted: Callable[[Ref], bool]) -> Ref | None:
    """The `wanted` tensor that is nearest above the outputs of a place whose arithmetic is written out."""
    seen: set[int] = set()
    pending = [place.outputs[0]]
    while pending and len(seen) < _MOST_STEPS:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        for ref in graph.inputs[node]:
            if wanted(ref):
                return ref
        if graph.ops[node] in ARITHMETIC | FORWARDS:
            pending.extend(source for source, _ in graph.inputs[node])
    return None


def _axes(graph: Graph, place: Normalization, inputs: Ref, mean: int) -> tuple[int, ...]:
    """The axes of the inputs that are averaged over: those that leave as many values as the mean holds."""
    sizes, held = shape_of(graph, inputs), _size(graph, mean)
    for axes in _possible_axes(graph, place, inputs, mean):
        if sizes is None:
            return axes
        kept = [size for axis, size in enumerate(sizes) if axis not in axes]
        fits = len(kept) == 1 if None in (*kept, held) else np.prod(kept, dtype=int) == held
        if max(axes, default=0) < len(sizes) and kept and fits:
            return axes
    raise _Unsupported("which of its inputs' axes holds the channels can't be determined")


def _possible_axes(graph: Graph, place: Normalization, inputs: Ref, mean: int) -> Iterator[tuple[int, ...]]:
    if place.kernel in FUSED.values():
        layout = graph.protos[place.node].attr["data_format"].s.decode("ascii", "replace") or "NHWC"
        yield tuple(axis for axis, letter in enumerate(layout) if letter != "C")
        return
    sizes = shape_of(graph, inputs)
    reduced = {source.statistic.axes for source in place.sources() if source.statistic is not None} - {None}
    if len(reduced) == 1:
        axes = reduced.pop()
        if sizes is not None:
            yield tuple(sorted(axis % len(sizes) for axis in axes)) if sizes else ()
        elif min(axes, default=0) >= 0:
            yield axes
    laid = _entering(graph, place, lambda ref: variable(graph, ref) == mean)
    along = None if laid is None else shape_of(graph, laid)
    if sizes and along is not None and len(along) <= len(sizes):
        first = len(sizes) - len(along)  # arithmetic puts the last axes of both together
        channels = [first + axis for axis, size in enumerate(along) if size != 1] or [len(sizes) - 1]
        yield tuple(axis for axis in range(len(sizes)) if axis not in channels)


def _size(graph: Graph, variable: int) -> int | None:
    """How many values a variable holds, where its op says so."""
    shape = graph.protos[variable].attr["shape"].shape
    sizes = [dim.size for dim in shape.dim]
    return None if shape.unknown_rank or -1 in sizes else int(np.prod(sizes, dtype=int))
