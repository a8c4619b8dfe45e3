"""BN002 statistics-never-updated: the checkpoint's moving statistics still have their initial values."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, State
from bn_graph.audit.rules import ARTICLE, Rule, Undetermined, Verdict
from bn_graph.audit.stored import StoredLayers
from bn_graph.graphs.layers import Layer

RULE = Rule(
    code="BN002",
    name="statistics-never-updated",
    level=Level.ERROR,
    title="the checkpoint's moving statistics still have their initial values",
    what="""\
In the checkpoint the layer's moving mean is all 0 and its moving variance all 1 (or whatever else the graph initializes
them with). No training step has moved them: the train op leaves the update ops out, or there are none, as where
tf.layers gets trainable=False; or they were initialized anew before saving. The checksums in the .index file are enough
to see it; the .data file is not needed.""",
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
and where the checkpoint was written before the first step, so that nothing in it is trained.""",
    message="moving statistics are what they were initialized to: never updated",
    fix="run the update ops in training, or compute the statistics now: python -m bn_graph recalibrate",
)

_UNTRAINED = "nothing in the checkpoint has been trained yet, gammas and betas included"


def check(model: Model) -> Iterator[Verdict | Undetermined]:
    """Reports layers in use whose statistics are initial ones, if the checkpoint is of a trained network."""
    for layer in model.layers:
        if model.states[layer.name] != State.INITIAL or not _is_used(model, layer):
            continue
        yield (
            Undetermined(layer.name, _UNTRAINED)
            if model.is_untrained
            else Verdict(layer.name, [_evidence(model, layer)])
        )


def _is_used(model: Model, layer: Layer) -> bool:
    """Whether anything uses what the layer computes, in training or after it."""
    return any(used == 0 for place in layer.places for _, _, used in model.uses.data[place.outputs[0]])


def _evidence(model: Model, layer: Layer) -> str:
    if model.stored is None or not layer.statistics:
        return "constants of the graph: mean 0, variance 1"
    keys = [model.stored.keys[node] for node in layer.statistics]
    return f"in {model.stored.checkpoint.prefix}: {', '.join(keys[:2])}, all as initialized"


def check_checkpoint(stored: StoredLayers) -> Iterator[Verdict | Undetermined]:
    """The same for layers that are known by the names of their statistics alone."""
    for layer in stored.layers:
        if layer.state == State.INITIAL:
            yield (
                Undetermined(layer.name, _UNTRAINED)
                if stored.is_untrained
                else Verdict(layer.name, [f"{stored.prefix}: {layer.mean} is all 0, {layer.variance} as initialized"])
            )
