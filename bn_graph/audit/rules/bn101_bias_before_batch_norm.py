"""BN101 bias-before-batch-norm: a bias just before batch norm."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level
from bn_graph.audit.rules import R2RT, Rule, Verdict
from bn_graph.graphs.normalizations import Normalization
from bn_graph.graphs.ops import ADDITIONS
from bn_graph.graphs.values import variable

RULE = Rule(
    code="BN101",
    name="bias-before-batch-norm",
    level=Level.ADVICE,
    title="a bias just before batch norm",
    what="""\
A variable is added to the layer's input, a value for each channel.""",
    why="""\
The mean subtracts the bias again, so that its gradient is 0 but for rounding: it costs memory and a little time, and an
optimizer that divides by the gradient's size, such as Adam, lets it walk at random. The output is right all the same.""",
    document=f"{R2RT}, section Building the graph",
    claims=("r2rt-05", "solver-12"),
    experiment="needless-bias",
    shows="outputs with and without the bias, its gradient, and how far Adam moves it",
    example="""\
# beta does what the bias would.
h = tf.layers.dense(x, 32, use_bias=False)
h = tf.layers.batch_normalization(h, training=is_training)

# bn_graph
h = bn_graph.batch_norm_wrapper(tf.layers.dense(x, 32, use_bias=False), is_training, name="bn1")""",
    undetermined="""\
where the layer's input can't be followed to an op that adds a bias; nothing is reported then.""",
    message="a bias is added just before, and subtracted again with the mean",
    fix="use_bias=False; beta does its work",
)


def check(model: Model) -> Iterator[Verdict]:
    """Reports each layer once, with its first call that has a bias."""
    for layer in model.layers:
        evidence = next(filter(None, (_evidence(model, place) for place in layer.places)), None)
        if evidence is not None:
            yield Verdict(layer.name, [evidence])


def _evidence(model: Model, place: Normalization) -> str | None:
    node = place.inputs[0]
    if model.graph.ops[node] not in ADDITIONS | {"BiasAddV1"}:
        return None
    # A sum of a variable with something else; the bias, being a vector of channels, is the second term.
    terms = [variable(model.graph, ref) for ref in model.graph.inputs[node]]
    if len(terms) != 2 or terms[0] is not None or terms[1] is None:
        return None
    return f"{model.name(terms[1])} is added by {model.name(node)}"
