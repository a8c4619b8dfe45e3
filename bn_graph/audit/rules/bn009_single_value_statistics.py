"""BN009 single-value-statistics: a training graph normalizes each channel by the statistics of a single value."""

import math
from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level
from bn_graph.audit.rules import R2RT, Rule, Verdict
from bn_graph.graphs.graph import downstream
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import Alternative, alternatives
from bn_graph.graphs.ops import FUSED, REDUCTIONS
from bn_graph.graphs.shapes import Shape, static_shape
from bn_graph.graphs.values import strip

RULE = Rule(
    code="BN009",
    name="single-value-statistics",
    level=Level.ERROR,
    title="a training graph normalizes each channel by the statistics of a single value",
    what="""\
When a train op runs, the layer averages over dimensions that by their static shapes have a single value for each channel:
a batch of one after the spatial dimensions are gone, as behind a global pooling or at the bottleneck of a U-Net.""",
    why="""\
A single value is its own mean, and its variance is 0: the layer's output is beta, whatever the input. What comes before it
gets no gradient and is not trained. Layers behind it see the same input at each step, and their statistics may never
move.""",
    document=f"{R2RT}, section Making predictions",
    claims=("r2rt-12", "r2rt-13"),
    experiment="single-example",
    shows="a single example normalized by its own batch: every image gets the same class",
    example="""\
# More than one example, or position, for each channel: leave the batch's size open and feed several.
x = tf.placeholder(tf.float32, [None, 2], name="x")
hidden = tf.layers.batch_normalization(x, training=is_training)

# bn_graph: refuses a single value for each channel in training, when the graph is built or when it runs.
hidden = bn_graph.batch_norm_wrapper(x, is_training, name="bn1")""",
    undetermined="""\
never: where a dimension's length is not in the file, nothing is reported. Batch renormalization is left out, since it
normalizes by its moving statistics in effect.""",
    message="batch statistics of a single value for each channel: the output is beta, whatever the input",
    fix="train on more than one example at a time, or leave batch norm out where a channel has a single value",
)

_RENORM = ("renorm_mean", "renorm_stddev", "moving_stddev")


def check(model: Model) -> Iterator[Verdict]:
    """Reports layers with a call in training whose batch statistics are over one value."""
    for layer in model.layers:
        call = single_value_call(model, layer)
        if call is not None:
            statistic = call.source.statistic
            shape = _reduced_shape(model, call)
            sizes = ", ".join("?" if size is None else str(size) for size in shape)
            axes = ", ".join(str(axis) for axis in statistic.axes)
            name = model.name(statistic.ref[0])
            yield Verdict(layer.name, [f"{name} averages a tensor of shape [{sizes}] over the axes [{axes}]"])


def single_value_call(model: Model, layer: Layer) -> Alternative | None:
    """A call of the layer that a train op runs, and that normalizes by the statistics of one value for each channel."""
    if _is_renormalized(model, layer):
        return None
    return next((call for call in alternatives(layer) if _is_of_one_value(model, call)), None)


def _is_renormalized(model: Model, layer: Layer) -> bool:
    """Whether the layer has the variables of batch renormalization, as tf.layers and this library name them."""
    scopes = {model.name(node).rpartition("/")[0] for node in layer.statistics + layer.parameters}
    return any(f"{scope}/{name}" in model.graph.ids for scope in scopes for name in _RENORM)


def behind_single_values(model: Model) -> set[int]:
    """The nodes that layers of this kind lead to, themselves included: what they compute may be the same in every step."""
    calls = (single_value_call(model, layer) for layer in model.layers)
    return downstream(model.uses, {call.place.node for call in calls if call is not None}, control=False)


def _is_of_one_value(model: Model, call: Alternative) -> bool:
    if not call.by_batch or call.place.node not in model.training.closure:
        return False
    shape, axes = _reduced_shape(model, call), call.source.statistic.axes
    if shape is None or not axes or not all(-len(shape) <= axis < len(shape) for axis in axes):
        return False
    sizes = [shape[axis] for axis in axes]
    return None not in sizes and math.prod(sizes) == 1 and len({axis % len(shape) for axis in axes}) < len(shape)


def _reduced_shape(model: Model, call: Alternative) -> Shape | None:
    """The shape of what a batch statistic is averaged from, before it was averaged."""
    graph, (node, _) = model.graph, call.source.statistic.ref
    for _ in range(3):  # a mean about a shift, or one less a square, is computed from one
        if graph.ops[node] in FUSED or graph.ops[node] in REDUCTIONS:
            return static_shape(graph, graph.inputs[node][0])
        nearer = [strip(graph, ref)[0] for ref in graph.inputs[node]]
        node = next((other for other in nearer if graph.ops[other] in REDUCTIONS), node)
    return None
