"""BN008 inference-mode-in-training: a layer built in inference mode is trained through, and nothing ever updates it."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, State
from bn_graph.audit.rules import FLAGS, Rule, Verdict
from bn_graph.graphs.modes import alternatives

RULE = Rule(
    code="BN008",
    name="inference-mode-in-training",
    level=Level.ERROR,
    title="a layer built in inference mode is trained through, and nothing ever updates it",
    what="""\
The layer normalizes by its moving statistics while gradients flow through it, and no op updates these. tf.layers builds a
layer like this when training= is left out, which is no error: its default is False. With gamma and beta not trained, or
statistics that have moved, there is no finding.""",
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
trained before.""",
    message="gradients train through inference mode, and nothing ever updates the moving statistics",
    fix="pass training=True (or the switch) where the training graph calls it",
)

_MAY_BE_FROZEN = "; harmless only if they were trained before (frozen batch norm): no checkpoint is here to show it"


def check(model: Model) -> Iterator[Verdict]:
    """Reports trained layers that only ever use their moving statistics, unless the checkpoint has updated ones."""
    for layer in model.layers:
        calls = list(alternatives(layer))
        if layer.updates or not layer.statistics or any(call.by_batch for call in calls):
            continue
        state = model.states[layer.name]
        if state == State.UPDATED or not model.in_training(layer) or not model.is_trained(layer):
            continue
        evidence = [f"{model.name(calls[0].place.node)} normalizes by {model.names(layer.statistics)}"]
        if state in (State.INITIAL, State.MISSING):
            yield Verdict(layer.name, evidence)
        else:
            yield Verdict(layer.name, evidence, Level.WARNING, RULE.message + _MAY_BE_FROZEN)
