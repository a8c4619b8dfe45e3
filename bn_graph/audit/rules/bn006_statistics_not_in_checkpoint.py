"""BN006 statistics-not-in-checkpoint: the checkpoint lacks moving statistics that the graph has."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level
from bn_graph.audit.rules import ARTICLE, Rule, Undetermined, Verdict
from bn_graph.audit.stored import StoredLayers

RULE = Rule(
    code="BN006",
    name="statistics-not-in-checkpoint",
    level=Level.ERROR,
    title="the checkpoint lacks moving statistics that the graph has",
    what="""\
The graph has moving statistics that are not in the checkpoint, though the layer's gamma or beta is: it was saved without
them (BN003), or under other names.""",
    why="""\
Restoring with a Saver of all variables fails; restoring what is there and initializing the rest succeeds, and predicts
with mean 0 and variance 1.""",
    document=f"{ARTICLE}, section Restoring from a checkpoint",
    claims=("article-14", "article-17"),
    experiment="checkpoint-variables",
    shows="what each way of restoring raises or, worse, does not raise; make restore-demo shows single images",
    example="""\
# If the training still runs, save again, with a Saver of all variables.
saver = tf.train.Saver()

# If only this checkpoint is left: restore what it has, and compute its weights' statistics over training data.
there = {name for name, _ in tf.train.list_variables(checkpoint)}
session.run(tf.global_variables_initializer())
tf.train.Saver([v for v in tf.global_variables() if v.op.name in there]).restore(session, checkpoint)
bn_graph.recalibrate(session, batches)  # feed dicts, as [{x: images}, ...]
bn_graph.save(bn_graph.make_saver(), session, new_checkpoint)

# bn_graph.restore refuses a checkpoint that lacks statistics; statistics under other names are found by a name map:
#   bn_graph.restore(session, checkpoint, name_map=bn_graph.NAME_MAPS["pop"])""",
    undetermined="""\
where the layer has neither gamma nor beta, so that nothing shows whether the checkpoint is of a graph that has it.""",
    message="the checkpoint has gamma or beta and lacks the moving statistics",
    fix="save them (BN003), or compute them from data: python -m bn_graph recalibrate",
)

_UNKNOWN = "the checkpoint lacks the statistics; without gamma and beta nothing shows whether it has the layer"


def check(model: Model) -> Iterator[Verdict | Undetermined]:
    """Reports layers that the checkpoint has a part of."""
    if model.stored is None:
        return
    keys = model.stored.keys
    for layer in model.layers:
        absent = [keys[node] for node in layer.statistics if model.stored.entry(node) is None]
        present = [keys[node] for node in layer.parameters if model.stored.entry(node) is not None]
        if absent and present:
            prefix = model.stored.checkpoint.prefix
            yield Verdict(layer.name, [f"{prefix} has {present[0]}, not {', '.join(absent[:2])}"])
        elif absent and not layer.parameters:
            yield Undetermined(layer.name, _UNKNOWN)


def check_checkpoint(stored: StoredLayers) -> Iterator[Verdict]:
    """The same for a file that says without a graph which layers it has."""
    for layer, key in stored.lacking.items():
        yield Verdict(layer, [f"{stored.prefix} has {key}, not {layer}/moving_mean"])
