"""BN001 detached-updates: no train op runs the layer's update ops."""

import itertools
from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, State
from bn_graph.audit.rules import ARTICLE, Rule, Verdict
from bn_graph.graphs.graph import downstream, needed, walk
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.ops import GROUPING

RULE = Rule(
    code="BN001",
    name="detached-updates",
    level=Level.ERROR,
    title="no train op runs the layer's update ops",
    what="""\
The layer normalizes by the batch in training and has ops that would update its moving statistics, but none of them is
upstream of a train op, over data or control edges. Where several train ops alternate, as in a GAN, it is enough that one
of them runs the updates.""",
    why="""\
tf.layers and slim put these ops into the collection UPDATE_OPS and leave it to the train op to depend on them. Without
that nothing fails: the loss falls, tests with is_training=True look well, and prediction normalizes by mean 0 and
variance 1, which the data never had.""",
    document=f"{ARTICLE}, section Wrong use and its result",
    claims=("article-01", "article-13", "solver-09"),
    experiment="missing-update-ops",
    shows="one network trained twice on the same batches, with and without the dependency, tested in both modes",
    example="""\
# tf.layers and slim: the train op must depend on the update ops. Collect them after the layers are built.
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train_op = optimizer.minimize(loss)

# bn_graph: train_op collects them itself; check_train_op raises if one of any origin is left out.
train_op = bn_graph.train_op(optimizer, loss)
bn_graph.check_train_op(train_op)

# tf.keras layers put nothing into UPDATE_OPS: depend on model.updates (or each layer's updates) in the same way.""",
    undetermined="""\
never. Where an op gathers the updates to be run by hand, or the checkpoint's statistics have moved though no train op
runs the updates, BN103 is reported instead. A graph in which no train op is found or named (--train-op) is not checked.""",
    message="a train op normalizes by batch statistics and runs none of the update ops of the moving statistics",
    fix="with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)): train_op = optimizer.minimize(loss)",
)

_MOST_GATHERED = 10_000


def check(model: Model) -> Iterator[Verdict]:
    """Reports detached layers, but for those whose updates something else runs (BN103)."""
    train_ops = ", ".join(model.name(node) for node in model.training.train_ops[:3])
    for layer in detached_layers(model):
        if model.states[layer.name] != State.UPDATED and not updates_are_gathered(model, layer):
            nodes = [update.node for update in layer.updates]
            yield Verdict(layer.name, [f"{model.names(nodes)}: not upstream of {train_ops}"])


def detached_layers(model: Model) -> list[Layer]:
    """Layers that train by the batch, with update ops of which no train op runs one."""
    return [
        layer
        for layer in model.layers
        if layer.updates
        and model.trains_by_batch(layer)
        and not any(update.node in model.training.closure for update in layer.updates)
    ]


def updates_are_gathered(model: Model, layer: Layer) -> bool:
    """Whether an op gathers the updates of this layer and others, to be run by itself, and no checkpoint belies it."""
    if model.states[layer.name] == State.INITIAL:
        return False
    own = {update.node for update in layer.updates}
    others = {update.node for other in model.layers if other is not layer for update in other.updates}
    groups = [node for node in downstream(model.uses, own) if model.graph.ops[node] == "NoOp"]
    return any(_gathers(model, node, others) for node in groups)


def _gathers(model: Model, group: int, wanted: set[int]) -> bool:
    """Whether a group has one of `wanted` among what it groups, groups of groups and reads after assigns included."""

    def grouped(node: int) -> list[int]:
        return needed(model.graph, node) if node == group or model.graph.ops[node] in GROUPING else []

    return any(node in wanted for node in itertools.islice(walk([group], grouped), _MOST_GATHERED))
