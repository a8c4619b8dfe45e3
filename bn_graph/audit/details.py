"""The ops of each layer by name, and the values of its statistics: what the page of ``--format html`` draws."""

from collections.abc import Iterable, Sequence

import numpy as np

from bn_graph.audit.model import Model
from bn_graph.audit.report import Details, Histogram, LayerDetails, UpdateOp
from bn_graph.audit.stored import StoredLayers
from bn_graph.checkpoints.index import Checkpoint, read_value
from bn_graph.graphs.graph import closure
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import alternatives
from bn_graph.graphs.normalizations import Origin
from bn_graph.graphs.values import constant

__all__ = ["details_of", "stored_details"]

_MOST_TRAIN_OPS = 8  # that are told apart
_BINS = 16


def details_of(model: Model) -> Details:
    """The details of a graph's layers."""
    train_ops = model.training.train_ops[:_MOST_TRAIN_OPS]
    run = {model.name(node): closure(model.graph, [node]) for node in train_ops}
    placeholders = [name for name, op in zip(model.graph.names, model.graph.ops, strict=True) if op == "Placeholder"]
    return Details(
        tuple(run),
        tuple(model.name(node) for node in model.outputs),
        tuple(placeholders),
        {layer.name: _layer(model, layer, run) for layer in model.layers},
    )


def stored_details(stored: StoredLayers, checkpoint: Checkpoint) -> Details:
    """The details of a checkpoint without a graph: the values of statistics."""
    layers = {}
    for layer in stored.layers:
        keys = [("moving_mean", layer.mean), ("moving_variance", layer.variance)]
        layers[layer.name] = LayerDetails(values=_values(checkpoint, keys))
    return Details((), (), (), layers)


def _layer(model: Model, layer: Layer, run: dict[str, set[int]]) -> LayerDetails:
    calls = list(alternatives(layer))
    names = model.graph.names
    statistics = [source for call in calls for source in call.place.sources() if source.statistic is not None]
    updates = {update.node: update for update in layer.updates}
    return LayerDetails(
        inputs=names[layer.places[0].inputs[0]],
        switches=_unique(names[node] for call in calls for node, _ in call.choices),
        batch_statistics=_unique(names[source.statistic.ref[0]] for source in statistics),
        by_batch=_unique(names[call.place.node] for call in calls if call.by_batch),
        by_moving=_unique(names[call.place.node] for call in calls if not call.by_batch),
        in_training=model.in_training(layer),
        updates=tuple(
            UpdateOp(names[node], names[update.variable], tuple(op for op, nodes in run.items() if node in nodes))
            for node, update in updates.items()
        ),
        inference_updates=_unique(names[node] for node in model.inference[layer.name].updates),
        values=_stored_values(model, layer) or _constants(model, layer),
    )


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _stored_values(model: Model, layer: Layer) -> dict[str, Histogram]:
    if model.stored is None:
        return {}
    keys = {role: model.stored.keys.get(nodes[0], "") for role, nodes in _by_role(layer) if nodes}
    return _values(model.stored.checkpoint, keys.items())


def _by_role(layer: Layer) -> list[tuple[str, Sequence[int]]]:
    return [("moving_mean", layer.means), ("moving_variance", layer.variances)]


def _values(checkpoint: Checkpoint, keys: Iterable[tuple[str, str]]) -> dict[str, Histogram]:
    arrays = {role: read_value(checkpoint, key) for role, key in keys}
    return {role: made for role, array in arrays.items() if (made := _histogram(array)) is not None}


def _constants(model: Model, layer: Layer) -> dict[str, Histogram]:
    found = {}
    for role, statistic in (("moving_mean", "mean"), ("moving_variance", "variance")):
        sources = [source for place in layer.places for source in getattr(place, statistic)]
        for source in sources:
            if source.origin is Origin.CONSTANT and role not in found:
                made = _histogram(constant(model.graph, (source.node, 0)))
                found |= {role: made} if made is not None else {}
    return found


def _histogram(array: np.ndarray | None) -> Histogram | None:
    """The histogram of the finite values; None where there are none."""
    if array is None or array.dtype.kind not in "fiu":
        return None
    values = np.asarray(array, np.float64).reshape(-1)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, _BINS, (low, high)) if high > low else ([values.size], None)
    return Histogram(low, high, tuple(int(number) for number in counts))
