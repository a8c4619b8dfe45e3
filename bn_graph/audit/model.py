"""Everything that the rules look at, worked out once: layers, training, modes, outputs, Savers, what is stored."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from bn_graph.audit.findings import LayerRow
from bn_graph.audit.stored import Stored, is_initial, look_up
from bn_graph.checkpoints.index import Checkpoint
from bn_graph.graphs.graph import Graph, Uses, build, node_named, uses
from bn_graph.graphs.layers import Layer, find_layers
from bn_graph.graphs.modes import Modes, alternatives, modes
from bn_graph.graphs.normalizations import Origin, find_normalizations
from bn_graph.graphs.protos import MetaGraphDef, VariableDef
from bn_graph.graphs.save_ops import Saver, find_savers
from bn_graph.graphs.train_ops import Training, find_training
from bn_graph.graphs.updates import targets
from bn_graph.graphs.values import constant, truth

__all__ = ["Model", "make_model"]


class Model(NamedTuple):
    """A graph, alone or with a checkpoint, and what was found out about it.

    Attributes:
        graph, uses, layers: the graph and its layers.
        training: what trains it.
        modes: how its switches stand at inference.
        outputs: nodes known to be inference outputs, by the caller or by a signature; empty if nobody says.
        savers: the main one first.
        stored: what the checkpoint has of its variables; None without a checkpoint.
        states: each layer's `LayerRow.statistics`.
    """

    graph: Graph
    uses: Uses
    layers: tuple[Layer, ...]
    training: Training
    modes: Modes
    outputs: tuple[int, ...]
    savers: tuple[Saver, ...]
    stored: Stored | None
    states: dict[str, str]

    def name(self, node: int) -> str:
        """A node's name."""
        return self.graph.names[node]

    def in_training(self, layer: Layer) -> bool:
        """Whether running a train op runs the layer."""
        return any(place.node in self.training.closure for place in layer.places)

    def is_trained(self, layer: Layer) -> bool:
        """Whether gradients are applied to its gamma or beta; of one with neither, whether it is in training."""
        return any(node in self.training.trained for node in layer.parameters) or (
            not layer.parameters and self.in_training(layer)
        )

    def trains_by_batch(self, layer: Layer) -> bool:
        """Whether it may normalize by the batch when a train op runs."""
        return any(way.by_batch and way.place.node in self.training.closure for way in alternatives(layer))

    def has_population_path(self, layer: Layer) -> bool:
        """Whether it normalizes by population statistics somewhere, as the switches stand at inference."""
        return any(not way.by_batch and self.modes.allows(way) for way in alternatives(layer))


def make_model(
    meta_graph: MetaGraphDef,
    checkpoint: Checkpoint | None,
    *,
    outputs: Sequence[str] = (),
    train_ops: Sequence[str] = (),
    feeds: Mapping[str, bool | float] | None = None,
) -> Model:
    """Works out what the rules need.

    Args:
        meta_graph: the graph, with collections and signatures if it has any.
        checkpoint: that belongs to it, or None.
        outputs, train_ops: names, where the caller knows them.
        feeds: values of placeholders at inference, by name.

    Raises:
        AuditError: a name that the graph does not have.
    """
    graph = build(meta_graph.graph_def)
    users = uses(graph)
    layers = tuple(find_layers(graph, find_normalizations(graph, users)))
    training = find_training(graph, users, _trainable(meta_graph), [node_named(graph, name) for name in train_ops])
    known = _defaults(graph, meta_graph) | {node_named(graph, name): value for name, value in (feeds or {}).items()}
    named = [node_named(graph, name) for name in outputs] or _signature_outputs(graph, meta_graph)
    savers = tuple(find_savers(graph, meta_graph.saver_def.save_tensor_name))
    stored = None if checkpoint is None else _stored(graph, checkpoint, layers, savers)
    states = {layer.name: _state(graph, layer, stored) for layer in layers}
    return Model(
        graph, users, layers, training, modes(graph, users, layers, known), tuple(named), savers, stored, states
    )


def _trainable(meta_graph: MetaGraphDef) -> Collection[str]:
    """Names of the trainable variables' ops, by the collection."""
    names = set()
    collection = meta_graph.collection_def.get("trainable_variables")
    for text in collection.bytes_list.value if collection is not None else ():
        try:
            names.add(VariableDef.FromString(text).variable_name.partition(":")[0])
        except ValueError:  # DecodeError is one
            continue
    return names


def _is_inference_signature(meta_graph: MetaGraphDef, key: str) -> bool:
    return "train" not in meta_graph.meta_info_def.tags and not key.startswith("__saved_model")


def _signature_outputs(graph: Graph, meta_graph: MetaGraphDef) -> list[int]:
    names = [
        info.name
        for key, signature in meta_graph.signature_def.items()
        if _is_inference_signature(meta_graph, key)
        for info in signature.outputs.values()
    ]
    return sorted({graph.ids[name.partition(":")[0]] for name in names if name.partition(":")[0] in graph.ids})


def _defaults(graph: Graph, meta_graph: MetaGraphDef) -> dict[int, bool | float]:
    """In a graph with signatures, placeholders that none of them feeds have their defaults."""
    if not meta_graph.signature_def:
        return {}
    fed = {info.name.partition(":")[0] for one in meta_graph.signature_def.values() for info in one.inputs.values()}
    defaults = {}
    for node, op in enumerate(graph.ops):
        if op == "PlaceholderWithDefault" and graph.names[node] not in fed and graph.inputs[node]:
            value = truth(graph, graph.inputs[node][0][0], {})
            if value is not None:
                defaults[node] = value
    return defaults


def _stored(graph: Graph, checkpoint: Checkpoint, layers: Sequence[Layer], savers: Sequence[Saver]) -> Stored:
    saved_as = {node: key for saver in reversed(savers) for node, key in saver.keys.items()}
    wanted = {node for layer in layers for node in layer.statistics + layer.parameters} | set(saved_as)
    return look_up(graph, checkpoint, wanted, targets(graph), saved_as)


def _state(graph: Graph, layer: Layer, stored: Stored | None) -> str:
    """What is known of a layer's statistics: see `LayerRow.statistics`."""
    if not layer.statistics:
        return _state_of_constants(graph, layer)
    if stored is None:
        return "-"
    entries = [stored.entry(node) for node in layer.statistics]
    if None in entries:
        return "missing"
    verdicts = [
        is_initial(entry, stored.initial.get(node), 0.0 if node in layer.means else 1.0)
        for node, entry in zip(layer.statistics, entries, strict=True)
    ]
    if False in verdicts:
        return "updated"
    return "?" if None in verdicts else "initial"


def _state_of_constants(graph: Graph, layer: Layer) -> str:
    """In a frozen graph the statistics are constants of it."""
    values = {
        kind: [constant(graph, (source.node, 0)) for source in sources if source.origin is Origin.CONSTANT]
        for place in layer.places
        for kind, sources in (("mean", place.mean), ("variance", place.variance))
    }
    if not values.get("mean") or not values.get("variance"):
        return "-"
    if any(value is None or value.size == 0 for found in values.values() for value in found):
        return "?"
    initial = all((value == 0).all() for value in values["mean"]) and all(
        (value == 1).all() for value in values["variance"]
    )
    return "initial" if initial else "updated"


def looks_untrained(model: Model) -> bool:
    """Whether nothing in the checkpoint shows that it was ever trained: gammas, betas and slots as initialized."""
    if model.stored is None:
        return False
    seen = False
    statistics = {node for layer in model.layers for node in layer.statistics}
    of_layers = {
        node: number
        for layer in model.layers
        for group, number in ((layer.gammas, 1.0), (layer.betas, 0.0))
        for node in group
    }
    for node in model.stored.keys.keys() - statistics:
        entry = model.stored.entry(node)
        if entry is None or (node not in of_layers and node not in model.stored.initial):
            continue
        verdict = is_initial(entry, model.stored.initial.get(node), of_layers.get(node, 0.0))
        if verdict is False:
            return False
        seen = seen or bool(verdict)
    return seen


def row(model: Model, layer: Layer, inference_mode: str) -> LayerRow:
    """A layer as the report's table has it."""
    ways = list(alternatives(layer))
    upstream = {update.node for update in layer.updates} & model.training.closure
    total = len({update.node for update in layer.updates})
    roles = (
        ("gamma", layer.gammas),
        ("beta", layer.betas),
        ("moving_mean", layer.means),
        ("moving_variance", layer.variances),
    )
    return LayerRow(
        name=layer.name,
        kernel=", ".join(dict.fromkeys(place.kernel for place in layer.places)),
        training="batch" if any(way.by_batch for way in ways) else "population" if ways else "?",
        inference=inference_mode,
        updates=f"{len(upstream)} of {total}" if total else "none",
        saved=_saved(model, layer),
        statistics=model.states[layer.name],
        variables={role: model.name(nodes[0]) for role, nodes in roles if nodes},
    )


def _saved(model: Model, layer: Layer) -> str:
    if not model.savers or not layer.statistics:
        return "-"
    saved = [node for node in layer.statistics if any(node in saver.keys for saver in model.savers)]
    return "yes" if len(saved) == len(layer.statistics) else "some" if saved else "no"
