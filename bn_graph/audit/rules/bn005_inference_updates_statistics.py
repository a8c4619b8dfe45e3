"""BN005 inference-updates-statistics: running an inference output updates the moving statistics."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level
from bn_graph.audit.rules import ARTICLE, Rule, Undetermined, Verdict

RULE = Rule(
    code="BN005",
    name="inference-updates-statistics",
    level=Level.ERROR,
    title="running an inference output updates the moving statistics",
    what="""\
Running an inference output runs update ops of the layer. Two causes are common: assigns that are made outside of a
tf.cond and named as control dependencies inside a branch (they run whichever branch is taken), and updates in place in a
copy of the network that is meant for sampling or testing and was built in training mode.""",
    why="""\
The model drifts toward whatever it is asked about, and its answers depend on what was asked before.""",
    document=f"{ARTICLE}, section tf.nn.batch_normalization, the wrapper",
    claims=("article-05", "article-12", "r2rt-18"),
    experiment="conditional-updates",
    shows="statistics before and after runs for inference, for each kind of variable and of cond",
    example="""\
# An assign belongs to a branch only if it is made inside it.
def by_batch():
    batch_mean, batch_variance = tf.nn.moments(x, [0])
    moved = [
        tf.assign(mean, mean * 0.99 + batch_mean * 0.01),
        tf.assign(variance, variance * 0.99 + batch_variance * 0.01),
    ]
    with tf.control_dependencies(moved):
        return tf.nn.batch_normalization(x, batch_mean, batch_variance, beta, gamma, 1e-3)

def by_moving_statistics():
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

y = tf.cond(is_training, by_batch, by_moving_statistics)  # mean and variance made with use_resource=True

# tf.layers decides by the flag itself, and a copy for sampling or testing is built with training=False.
with tf.variable_scope("", reuse=tf.AUTO_REUSE):
    y = tf.layers.batch_normalization(x, training=is_training, name="bn")
    sample = tf.layers.batch_normalization(x, training=False, name="bn")

# bn_graph, with ref and with resource variables.
y = bn_graph.batch_norm_wrapper(x, is_training, name="bn1")""",
    undetermined="""\
where a graph without a switch trains, with updates that run whenever its layers do: whether it also predicts is not in
the file. Name its output with --output. A switch that can be fed is assumed to be set to inference; give --feed NAME=value
for one that is not.""",
    message="running an inference output changes moving statistics",
    fix="build the inference copy with training=False; make update ops inside the training branch of the cond",
)


def check(model: Model) -> Iterator[Verdict | Undetermined]:
    """Reports layers with updates on an inference path."""
    for layer in model.layers:
        path = model.inference[layer.name]
        if path.updates:
            yield Verdict(layer.name, [f"runs {model.names(path.updates)}"])
        elif path.if_predicting:
            yield Undetermined(layer.name, path.if_predicting)
