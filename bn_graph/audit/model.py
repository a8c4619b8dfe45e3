"""Everything that rules look at, worked out once: layers, training, modes, inference, Savers, what is stored."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from bn_graph.audit import outputs as inference_outputs
from bn_graph.audit.report import LayerRow, Mode, Saved, State
from bn_graph.audit.stored import Role, Stored, is_initial, look_up, statistics_state
from bn_graph.checkpoints.index import Checkpoint
from bn_graph.graphs.graph import Graph, Uses, build, node_named, of_types, uses
from bn_graph.graphs.layers import Layer, find_layers
from bn_graph.graphs.modes import Modes, alternatives, modes
from bn_graph.graphs.normalizations import Origin, constant_parameters, find_normalizations
from bn_graph.graphs.protos import MetaGraphDef, VariableDef
from bn_graph.graphs.save_ops import Saver, find_savers
from bn_graph.graphs.train_ops import Training, find_training
from bn_graph.graphs.updates import targets
from bn_graph.graphs.values import Choice, branches, constant, has_no_content, is_filled, truth

__all__ = ["Model", "make_model", "row"]


class Model(NamedTuple):
    """A graph, alone or with a checkpoint, and what was found out about it.

    Attributes:
        graph, uses, layers: the graph and its layers.
        branches: of each node, the choices under which it runs, from `values.branches`.
        training: what trains it.
        modes: how its switches stand at inference.
        outputs: nodes known to be inference outputs, by the caller or by a signature; empty if neither names any.
        named: `outputs`, or else those that a collection or a well-known name suggests.
        savers: the main one first.
        stored: what the checkpoint has of its variables; None without a checkpoint.
        states: of each layer's statistics, by its name.
        is_untrained: whether the checkpoint was written before the first step: all but statistics is as initialized.
        inference: what inference does with each layer, by its name.
    """

    graph: Graph
    uses: Uses
    layers: tuple[Layer, ...]
    branches: list[frozenset[Choice]]
    training: Training
    modes: Modes
    outputs: tuple[int, ...]
    named: tuple[int, ...]
    savers: tuple[Saver, ...]
    stored: Stored | None
    states: dict[str, State]
    is_untrained: bool
    inference: dict[str, "inference_outputs.InferencePath"]

    def name(self, node: int) -> str:
        """A node's name."""
        return self.graph.names[node]

    def names(self, nodes: Iterable[int]) -> str:
        """The names of the first two nodes, and how many more there are."""
        names = [self.name(node) for node in dict.fromkeys(nodes)]
        return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

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
        return any(call.by_batch and call.place.node in self.training.closure for call in alternatives(layer))

    def has_moving_path(self, layer: Layer) -> bool:
        """Whether it normalizes by its moving statistics somewhere, as the switches stand at inference."""
        return any(call.by_moving and self.modes.allows(call) for call in alternatives(layer))


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
    under = branches(graph)
    layers = tuple(find_layers(graph, users, find_normalizations(graph, users, under)))
    training = find_training(graph, users, _trainable(meta_graph), [node_named(graph, name) for name in train_ops])
    known = _defaults(graph, meta_graph) | {node_named(graph, name): value for name, value in (feeds or {}).items()}
    known_outputs = [node_named(graph, name) for name in outputs] or _signature_outputs(graph, meta_graph)
    savers = tuple(find_savers(graph, meta_graph.saver_def.save_tensor_name))
    stored = None if checkpoint is None else _stored(graph, checkpoint, layers, savers)
    states = {layer.name: _state(graph, layer, stored) for layer in layers}
    is_untrained = State.INITIAL in states.values() and (
        _constants_are_untrained(graph, users, layers, states) if stored is None else _is_untrained(layers, stored)
    )
    switches = modes(graph, users, layers, known)
    outputs, suggested = tuple(known_outputs), tuple(known_outputs or _suggested_outputs(graph, users, meta_graph))
    model = Model(
        graph=graph,
        uses=users,
        layers=layers,
        branches=under,
        training=training,
        modes=switches,
        outputs=outputs,
        named=suggested,
        savers=savers,
        stored=stored,
        states=states,
        is_untrained=is_untrained,
        inference={},
    )
    return model._replace(inference=inference_outputs.find_paths(model))


def _trainable(meta_graph: MetaGraphDef) -> Collection[str]:
    """Names of the trainable variables' ops, by the collection."""
    names = set()
    collection = meta_graph.collection_def.get("trainable_variables")
    for text in collection.bytes_list.value if collection is not None else ():
        try:
            names.add(VariableDef.FromString(text).variable_name.partition(":")[0])
        except DecodeError:
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


_OUTPUT_COLLECTION = re.compile(
    r"(fetch(es)?|outputs?|pred(ict(ion)?s?)?|inference|logits|probs?|probabilit(y|ies)|softmax)(_(ops?|tensors?|network))?"
)
_OUTPUT_NAME = re.compile(
    r"(raw_)?detection_\w+|num_detections|(final_result|outputs?|predictions?|probabilit(y|ies))(_(node|tensor))?"
)
"""What people, and the Object Detection API, call what inference fetches."""


def _suggested_outputs(graph: Graph, users: Uses, meta_graph: MetaGraphDef) -> list[int]:
    """The ops that a collection of outputs lists; else those that nothing uses, with a name that outputs have."""
    lists = [
        collection.node_list.value
        for name, collection in meta_graph.collection_def.items()
        if _OUTPUT_COLLECTION.fullmatch(name)
    ]
    names = {name.partition(":")[0] for values in lists for name in values}
    listed = [graph.ids[name] for name in names if name in graph.ids]
    own_names = (name for name in graph.ids if "/" not in name and _OUTPUT_NAME.fullmatch(name))
    return sorted(listed or [graph.ids[name] for name in own_names if not users.data[graph.ids[name]]])


def _defaults(graph: Graph, meta_graph: MetaGraphDef) -> dict[int, bool | float]:
    """In a graph with signatures, placeholders that none of them feeds have their defaults."""
    if not meta_graph.signature_def:
        return {}
    fed = {info.name.partition(":")[0] for one in meta_graph.signature_def.values() for info in one.inputs.values()}
    defaults = {}
    for node in of_types(graph, ["PlaceholderWithDefault"]):
        if graph.names[node] not in fed and graph.inputs[node]:
            value = truth(graph, graph.inputs[node][0][0], {})
            if value is not None:
                defaults[node] = value
    return defaults


# --- What is stored ---------------------------------------------------------------------------------------------------


def _stored(graph: Graph, checkpoint: Checkpoint, layers: Sequence[Layer], savers: Sequence[Saver]) -> Stored:
    saved_as = {node: key for saver in reversed(savers) for node, key in saver.keys.items()}
    wanted = {node for layer in layers for node in layer.statistics + layer.parameters} | set(saved_as)
    return look_up(graph, checkpoint, wanted, targets(graph), saved_as)


def _state(graph: Graph, layer: Layer, stored: Stored | None) -> State:
    if not layer.statistics:
        return _state_of_constants(graph, layer)
    if stored is None:
        return State.ABSENT
    entries = {node: stored.entry(node) for node in layer.statistics}
    if None in entries.values():
        return State.MISSING
    return statistics_state(
        (entry, Role.MEAN if node in layer.means else Role.VARIANCE, stored.initial.get(node))
        for node, entry in entries.items()
    )


def _state_of_constants(graph: Graph, layer: Layer) -> State:
    """In a frozen graph the statistics are constants of it."""
    constants = {
        role: [source.node for place in layer.places for source in sources(place) if source.origin is Origin.CONSTANT]
        for role, sources in ((Role.MEAN, lambda place: place.mean), (Role.VARIANCE, lambda place: place.variance))
    }
    means, variances = ([constant(graph, (node, 0)) for node in nodes] for nodes in constants.values())
    if any(source.origin is Origin.STRIPPED for place in layer.places for source in place.sources()):
        return State.UNKNOWN
    if not means or not variances:
        return State.ABSENT
    if any(value is None or value.size == 0 for value in means + variances):
        return State.UNKNOWN
    if any(has_no_content(graph, node) for node in constants[Role.VARIANCE]):
        return State.UNKNOWN  # a mean's zeros may be left out, but no variance is 0 in all channels
    initial = all(is_filled(value, 0) for value in means) and all(is_filled(value, 1) for value in variances)
    return State.INITIAL if initial else State.UPDATED


def _constants_are_untrained(graph: Graph, users: Uses, layers: Sequence[Layer], states: Mapping[str, State]) -> bool:
    """Whether a frozen graph was never trained: all statistics are as initialized, and so are all gammas and betas."""
    if set(states.values()) != {State.INITIAL}:
        return False
    places = [place for layer in layers for place in layer.places]
    values = [value for place in places for value in constant_parameters(graph, users, place)]
    return bool(values) and all(is_filled(value, 0) or is_filled(value, 1) for value in values)


def _is_untrained(layers: Sequence[Layer], stored: Stored) -> bool:
    """Whether gammas, betas, slots and other variables are as initialized, so far as their initial values are known."""
    roles = {node: Role.GAMMA for layer in layers for node in layer.gammas}
    roles |= {node: Role.BETA for layer in layers for node in layer.betas}
    statistics = {node for layer in layers for node in layer.statistics}
    any_known = False
    for node in stored.keys.keys() - statistics:
        entry = stored.entry(node)
        if entry is None or (node not in roles and node not in stored.initial):
            continue
        verdict = is_initial(entry, roles.get(node), stored.initial.get(node))
        if verdict is False:
            return False
        any_known = any_known or bool(verdict)
    return any_known


# --- The report's table -----------------------------------------------------------------------------------------------


def row(model: Model, layer: Layer) -> LayerRow:
    """A layer as the report's table has it."""
    calls = list(alternatives(layer))
    updates = {update.node for update in layer.updates}
    roles = {
        Role.GAMMA: layer.gammas,
        Role.BETA: layer.betas,
        Role.MEAN: layer.means,
        Role.VARIANCE: layer.variances,
    }
    by_batch = any(call.by_batch for call in calls)
    by_moving = any(call.by_moving for call in calls) and all(call.source.origin is not Origin.OTHER for call in calls)
    return LayerRow(
        name=layer.name,
        kernel=", ".join(dict.fromkeys(place.kernel for place in layer.places)),
        training=Mode.BATCH if by_batch else Mode.MOVING if by_moving else Mode.UNKNOWN,
        inference=model.inference[layer.name].mode,
        updates=f"{len(updates & model.training.closure)} of {len(updates)}" if updates else "none",
        saved=_saved(model, layer),
        statistics=model.states[layer.name],
        variables={role.value: model.name(nodes[0]) for role, nodes in roles.items() if nodes},
    )


def _saved(model: Model, layer: Layer) -> Saved:
    if not model.savers or not layer.statistics:
        return Saved.ABSENT
    saved = [node for node in layer.statistics if any(node in saver.keys for saver in model.savers)]
    return Saved.YES if len(saved) == len(layer.statistics) else Saved.SOME if saved else Saved.NO
