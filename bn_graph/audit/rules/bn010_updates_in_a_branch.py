"""BN010 updates-in-a-branch: the train op waits for update ops that only run where a branch is taken."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level
from bn_graph.audit.rules import ARTICLE, Rule, Verdict
from bn_graph.graphs.conditional_updates import find_conditional_updates

RULE = Rule(
    code="BN010",
    name="updates-in-a-branch",
    level=Level.ERROR,
    title="the train op waits for update ops in a branch that may not be taken",
    what="""\
The layer is built inside a tf.cond of control flow v1 (or the body of a tf.while_loop), its update ops are collected
there, and the train op outside has them as control dependencies, directly or through groups. A switch between the layer's
own training and inference mode is no fault, nor is a train op that is made inside the same branch.""",
    why="""\
An op that waits for one in a branch that is not taken does not run either, and session.run says nothing: no weight moves
in such a step, not even those of the rest of the network. With a loop's body every step raises. (TensorFlow's
issue 14699.)""",
    document=f"{ARTICLE}, section tf.nn.batch_normalization, the wrapper",
    claims=("article-05",),
    experiment="conditional-updates",
    shows="updates in a branch and outside of it: which of them run, whichever branch is taken",
    example="""\
# tf.layers: let the branch's own result wait for the updates, so that they run exactly where it is taken.
def branch():
    collected = tf.get_collection_ref(tf.GraphKeys.UPDATE_OPS)
    before = len(collected)
    y = tf.layers.batch_normalization(x, training=is_training, name="bn")
    updates, collected[before:] = collected[before:], []
    with tf.control_dependencies(updates):
        return tf.identity(y)

outputs = tf.cond(use_branch, branch, lambda: tf.identity(x))

# bn_graph: updates in place, the default.
outputs = tf.cond(
    use_branch, lambda: bn_graph.batch_norm_wrapper(x, is_training, name="bn1"), lambda: tf.identity(x)
)""",
    undetermined="""\
never. Branches that a constant decides are taken as they stand. With control flow v2 no train op can wait for what is
inside a branch.""",
    message="the train op waits for update ops in a branch: a step that does not take it trains nothing, and says nothing",
    fix="update in place inside the branch: updates_collection=None, or return tf.identity(y) there under"
    " tf.control_dependencies(update_ops)",
)

_IN_LOOP = "the train op waits for update ops in the body of a loop, which no op outside can: every step raises"


def check(model: Model) -> Iterator[Verdict]:
    """Reports layers for whose updates gradients wait outside of their branch."""
    for found in find_conditional_updates(model.graph, model.layers, model.training, model.branches):
        evidence = [f"{model.name(found.applier)} waits for {model.name(found.update)}, in {found.where(model.graph)}"]
        yield Verdict(found.layer, evidence, message=_IN_LOOP if found.in_loop else "")
