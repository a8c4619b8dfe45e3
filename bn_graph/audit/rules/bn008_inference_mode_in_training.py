"""BN008 inference-mode-in-training: a layer built in inference mode is trained through, and nothing ever updates it."""

from collections.abc import Iterator, Sequence

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, State
from bn_graph.audit.rules import FLAGS, Rule, Verdict
from bn_graph.audit.stored import are_few
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import alternatives
from bn_graph.graphs.normalizations import Origin

RULE = Rule(
    code="BN008",
    name="inference-mode-in-training",
    level=Level.ERROR,
    title="a layer built in inference mode is trained through, and nothing ever updates it",
    what="""\
The layer normalizes by its moving statistics while gradients flow through it, and no op updates these. tf.layers builds a
layer like this when training= is left out, which is no error: its default is False. The gradients may be applied to another
copy's gamma and beta, as workers' are to the global network's. With gamma and beta not trained, or statistics that have
moved, there is no finding.""",
    why="""\
With statistics of 0 and 1 the layer is only a scale and an offset. A layer that is frozen on purpose, for fine-tuning, is
built in the same way, and is right if its statistics come with the checkpoint that it starts from: so without a
checkpoint the finding is a warning.""",
    document=f"{FLAGS}, section Two phases",
    claims=("flags-05", "flags-08", "article-08"),
    experiment="training-vs-trainable",
    shows="which statistics normalize and whether the averages move, for each setting of the two flags",
    example="""\
# tf.layers: training is False unless you say otherwise. And BN001's fix, for the update ops that it now has.
y = tf.layers.batch_normalization(x, training=is_training)

# bn_graph: is_training has no default.
y = bn_graph.batch_norm_wrapper(x, is_training, name="bn1")

# A layer frozen on purpose: say so for its gamma and beta too, and restore its statistics before the first step.
frozen = tf.layers.batch_normalization(x, training=False, trainable=False)""",
    undetermined="""\
never: without a checkpoint the finding is a warning, since the layer may be frozen on purpose, with statistics that were
trained before; so it is for a few untouched layers among frozen ones that came with published weights.""",
    message="gradients train through inference mode, and nothing ever updates the moving statistics",
    fix="pass training=True (or the switch) where the training graph calls it",
)

_INHERITED = "; those of most such layers came with weights trained before, and this one's may have as they are"
_MAY_BE_FROZEN = "; harmless only if they were trained before (frozen batch norm): no checkpoint is here to show it"


def check(model: Model) -> Iterator[Verdict]:
    """Reports trained layers that only ever use their moving statistics, unless the checkpoint has updated ones."""
    without_updates = {layer.name: layer for layer in model.layers if _is_never_updated(layer)}
    trained_by = _trained_by_copies(model, list(without_updates.values()))
    inherited = maybe_inherited(model)
    for layer in without_updates.values():
        other = without_updates.get(trained_by.get(layer.name, ""))
        is_trained = other is not None or (model.in_training(layer) and model.is_trained(layer))
        states = {model.states[one.name] for one in (layer, other) if one is not None}
        if not is_trained or State.UPDATED in states:
            continue
        call = next(alternatives(layer))
        evidence = [f"{model.name(call.place.node)} normalizes by {model.names(layer.statistics)}"]
        if other is not None:
            evidence.append(
                f"gradients that go through {layer.name} are applied to {other.name}, or the other way round"
            )
        if layer.name in inherited:
            yield Verdict(layer.name, evidence, Level.WARNING, RULE.message + _INHERITED)
        elif states <= {State.INITIAL, State.MISSING}:
            yield Verdict(layer.name, evidence)
        else:
            yield Verdict(layer.name, evidence, Level.WARNING, RULE.message + _MAY_BE_FROZEN)


def maybe_inherited(model: Model) -> set[str]:
    """The untouched layers, by name, if most others that nothing updates are not: all came with published weights."""
    states = {layer.name: model.states[layer.name] for layer in model.layers if _is_never_updated(layer)}
    untouched = {name for name, state in states.items() if state == State.INITIAL}
    moved = [name for name, state in states.items() if state == State.UPDATED]
    return untouched if are_few(len(untouched), len(untouched) + len(moved)) else set()


def _is_never_updated(layer: Layer) -> bool:
    """Whether it only ever normalizes by moving statistics, and nothing updates these."""
    calls = list(alternatives(layer))
    by_moving = all(call.by_moving and call.source.origin is not Origin.OTHER for call in calls)
    return bool(calls and layer.statistics) and not layer.updates and by_moving


def _trained_by_copies(model: Model, layers: Sequence[Layer]) -> dict[str, str]:
    """Layers of which one copy has the gradients and another copy gets them, as a worker's and the global network's in A3C.

    The copies' variables differ in one part of their names: ``worker_0/bn/gamma``, ``global/bn/gamma``.

    Returns:
        The name of each layer of such a pair, with the other's (of several workers, one).
    """
    by_pattern: dict[tuple[str, ...], list[Layer]] = {}
    for layer in layers:
        if model.in_training(layer) and layer.parameters and not model.is_trained(layer):
            for pattern in _patterns(model.name(layer.parameters[0])):
                by_pattern.setdefault(pattern, []).append(layer)
    pairs = {}
    for layer in layers:
        if model.is_trained(layer) and not model.in_training(layer):
            for pattern in _patterns(model.name(layer.parameters[0])):
                for other in by_pattern.get(pattern, ()):
                    pairs[layer.name], pairs[other.name] = other.name, layer.name
    return pairs


def _patterns(name: str) -> list[tuple[str, ...]]:
    """A path with each of its parts left out in turn, but for the last, the variable's own name."""
    path = name.split("/")
    return [(*path[:place], "", *path[place + 1 :]) for place in range(len(path) - 1)]
