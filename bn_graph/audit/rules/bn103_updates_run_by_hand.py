"""BN103 updates-run-by-hand: update ops that only a hook or the caller can run."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, State
from bn_graph.audit.rules import QA, Rule, Verdict
from bn_graph.audit.rules.bn001_detached_updates import detached_layers, updates_are_gathered

RULE = Rule(
    code="BN103",
    name="updates-run-by-hand",
    level=Level.ADVICE,
    title="update ops that only a hook or the caller can run",
    what="""\
No train op depends on the layer's update ops, but something shows that they are run: an op gathers them, to be run beside
the train op as in session.run([train_op, updates]) or by a hook; or the checkpoint's statistics have moved.""",
    why="""\
That may be right, and the graph can't prove it: if you copy only the train op, you have BN001. Beside the train op the
two also run in no fixed order.""",
    document=f"{QA}, section Previous answer, the helper's docstring",
    claims=("qa-06", "qa-07", "article-09"),
    experiment="conv-normalizer",
    shows="how often an averaging op that is run beside the train op saves this step's statistics, in two orders",
    example="""\
# Let the train op run them, and nobody has to remember.
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
    train_op = optimizer.minimize(loss)

# bn_graph
train_op = bn_graph.train_op(optimizer, loss)

# Where it has to stay by hand: a hook that warns when statistics have not moved after some steps.
from bn_graph.training.hook import StatisticsHook

with tf.train.MonitoredTrainingSession(hooks=[StatisticsHook(train_op)]) as session:
    session.run(train_op)""",
    undetermined="""\
never: this is what is reported where BN001 can't be told from updates that are run by hand.""",
    message="update ops are upstream of no train op",
    fix="make them dependencies of the train op; what must be remembered at every session.run is forgotten at one",
)


def check(model: Model) -> Iterator[Verdict]:
    """Reports the detached layers that BN001 leaves out."""
    for layer in detached_layers(model):
        if model.states[layer.name] == State.UPDATED:
            shown = "the checkpoint's statistics have moved"
        elif updates_are_gathered(model, layer):
            shown = "an op of the graph gathers them"
        else:
            continue
        message = f"{RULE.message}, but {shown}: run by hand or by a hook, or left from an earlier training"
        nodes = [update.node for update in layer.updates]
        yield Verdict(layer.name, [f"update ops: {model.names(nodes)}"], message=message)
