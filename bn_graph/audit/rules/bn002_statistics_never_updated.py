"""BN002 statistics-never-updated: the checkpoint's moving statistics still have their initial values."""

from collections.abc import Collection, Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, State
from bn_graph.audit.rules import ARTICLE, Rule, Undetermined, Verdict
from bn_graph.audit.rules.bn008_inference_mode_in_training import maybe_inherited
from bn_graph.audit.rules.bn009_single_value_statistics import behind_single_values
from bn_graph.audit.stored import StoredLayers, are_few
from bn_graph.graphs.graph import closure
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.normalizations import Origin
from bn_graph.graphs.values import has_no_content

RULE = Rule(
    code="BN002",
    name="statistics-never-updated",
    level=Level.ERROR,
    title="the checkpoint's moving statistics still have their initial values",
    what="""\
In the checkpoint the layer's moving mean is all 0 and its moving variance all 1 (or whatever else the graph initializes
them with). No training step has moved them: the train op leaves the update ops out, or there are none, as where
tf.layers gets trainable=False; or they were initialized anew before saving. The checksums in the .index file are enough
to see it; the .data file is not needed. A layer that no train op and no named output uses is no finding, and a few untouched
layers among many that moved are a warning, unless the graph shows the fault: published weights have such layers.""",
    why="""\
Weights and gamma may be trained as well as can be: at inference the layer does not normalize at all.""",
    document=f"{ARTICLE}, section Wrong use and its result",
    claims=("article-01", "flags-08"),
    experiment="missing-update-ops",
    shows="the statistics of the network trained without its update ops: still 0 and 1 after an epoch",
    example="""\
# The weights are trained: compute the statistics that belong to them over training data, and save a new checkpoint.
tf.train.Saver().restore(session, checkpoint)
bn_graph.recalibrate(session, batches)  # feed dicts, as [{x: images}, ...]
bn_graph.save(bn_graph.make_saver(), session, new_checkpoint)

# The same without the code that built the graph:
#   python -m bn_graph recalibrate --meta M --checkpoint C --data D.npz --out NEW
# And so that the next training does not end like this, the fix of BN001.""",
    undetermined="""\
where the layer's initial values are unknown (drawn at random, or no graph is at hand and the shapes do not show them),
and where the checkpoint was written before the first step, so that nothing in it is trained; and of a frozen graph whose
constants have shapes and no values.""",
    message="moving statistics are what they were initialized to: never updated",
    fix="run the update ops in training, or compute the statistics now: python -m bn_graph recalibrate",
)

_INHERITED = (
    "moving statistics are what they were initialized to, though most other layers' have moved: inherited or frozen?"
)
_FIX_INHERITED = (
    "nothing, if the layer's weights were trained with them as they are (as in some published models); else recalibrate"
)
_NO_VALUES = "the constants have shapes and no values here: the weights are in another file"
_UNTRAINED = "nothing here has been trained yet, gammas and betas included"


def check(model: Model) -> Iterator[Verdict | Undetermined]:
    """Reports layers in use whose statistics are initial ones, if they are of a trained network."""
    initial = [layer for layer in model.layers if model.states[layer.name] == State.INITIAL]
    known = [layer for layer in model.layers if model.states[layer.name] in (State.INITIAL, State.UPDATED)]
    used = closure(model.graph, model.named) | model.training.closure if initial and model.named else None
    behind, inherited = (behind_single_values(model), maybe_inherited(model)) if initial else (set(), set())
    for layer in initial:
        if not _is_used(model, layer, used) or _may_stay_initial(model, layer, behind):
            continue
        evidence = [_evidence(model, layer)]
        if model.is_untrained:
            yield Undetermined(layer.name, _UNTRAINED)
        elif are_few(len(initial), len(known)) and not _shows_fault(model, layer, inherited):
            yield Verdict(layer.name, evidence, Level.WARNING, _INHERITED, _FIX_INHERITED)
        else:
            yield Verdict(layer.name, evidence)
    for layer in model.layers:
        if model.states[layer.name] == State.UNKNOWN and _is_without_values(model, layer):
            yield Undetermined(layer.name, _NO_VALUES)


def _is_used(model: Model, layer: Layer, used: Collection[int] | None) -> bool:
    """Whether a train op or a named output uses what the layer computes; if no output is named, whether anything does."""
    if used is not None:
        return any(place.node in used for place in layer.places)
    return any(port == 0 for place in layer.places for _, _, port in model.uses.data[place.outputs[0]])


def _may_stay_initial(model: Model, layer: Layer, behind: Collection[int]) -> bool:
    """Whether its updates run, on values that never change: behind batch norm over a single value (BN009)."""
    is_updated = any(update.node in model.training.closure for update in layer.updates)
    return is_updated and any(place.node in behind for place in layer.places)


def _shows_fault(model: Model, layer: Layer, inherited: Collection[str]) -> bool:
    """Whether the graph shows why the statistics have not moved: no train op runs the updates, or there are none (BN008)."""
    if not model.in_training(layer) or any(update.node in model.training.closure for update in layer.updates):
        return False
    return bool(layer.updates) or (model.is_trained(layer) and layer.name not in inherited)


def _is_without_values(model: Model, layer: Layer) -> bool:
    sources = (source.node for place in layer.places for source in place.variance if source.origin is Origin.CONSTANT)
    return any(has_no_content(model.graph, node) for node in sources)


def _evidence(model: Model, layer: Layer) -> str:
    if model.stored is None or not layer.statistics:
        return "constants of the graph: mean 0, variance 1"
    keys = [model.stored.keys[node] for node in layer.statistics]
    return f"in {model.stored.checkpoint.prefix}: {', '.join(keys[:2])}, all as initialized"


def check_checkpoint(stored: StoredLayers) -> Iterator[Verdict | Undetermined]:
    """The same for layers that are known by the names of their statistics alone."""
    initial = [layer for layer in stored.layers if layer.state == State.INITIAL]
    for layer in initial:
        evidence = [f"{stored.prefix}: {layer.mean} is all 0, {layer.variance} as initialized"]
        if stored.is_untrained:
            yield Undetermined(layer.name, _UNTRAINED)
        elif are_few(len(initial), len(stored.layers)):
            yield Verdict(layer.name, evidence, Level.WARNING, _INHERITED, _FIX_INHERITED)
        else:
            yield Verdict(layer.name, evidence)
