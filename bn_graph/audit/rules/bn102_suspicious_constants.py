"""BN102 suspicious-constants: a decay or an epsilon that is probably a slip."""

import itertools
from collections.abc import Iterator, Sequence

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level
from bn_graph.audit.rules import R2RT, Rule, Verdict
from bn_graph.graphs.graph import Graph, Ref, walk
from bn_graph.graphs.ops import ADDITIONS
from bn_graph.graphs.updates import Update, assigned_value
from bn_graph.graphs.values import constant_node, leaves, strip, variable

RULE = Rule(
    code="BN102",
    name="suspicious-constants",
    level=Level.ADVICE,
    title="a decay or an epsilon that is probably a slip",
    what="""\
A decay below 0.5, an epsilon of 0, or one above 0.1.""",
    why="""\
A decay below 0.5, or exactly 0.1, is often PyTorch's momentum, which is the weight of the *new* value and here 1 − decay:
with a decay of 0.1 the statistics are those of the last batch or two. An epsilon of 0 divides by 0 where a channel is
constant, which gives NaN; one above 0.1 keeps the variance of ordinary activations well below 1.""",
    document=f"{R2RT}, section Fixing the model",
    claims=("r2rt-03", "r2rt-17", "article-02"),
    experiment="population-estimators",
    shows="accuracy against decay and step; make numerics shows epsilon against the variance, and NaN without it",
    example="""\
# momentum is the weight of the old value; these are tf.layers' defaults.
y = tf.layers.batch_normalization(x, momentum=0.99, epsilon=1e-3, training=is_training)

# bn_graph, with PyTorch's numbers
decay = bn_graph.decay_from_torch_momentum(0.1)  # 0.9
y = bn_graph.batch_norm_wrapper(x, is_training, decay=decay, epsilon=1e-5, name="bn1")""",
    undetermined="""\
where the constant is no constant in the graph: it is computed or fed.""",
    message="unusual constants",
    fix="decay is the weight of the old value: 0.9 to 0.999 (PyTorch's momentum is 1 − decay); epsilon about 1e-3",
)

_MOST_TERMS = 40


def check(model: Model) -> Iterator[Verdict]:
    """Reports layers with all their unusual constants."""
    for layer in model.layers:
        epsilons = {place.epsilon for place in layer.places if place.epsilon is not None}
        decays = {decay for update in layer.updates if (decay := _decay(model.graph, update)) is not None}
        unusual = [f"epsilon is {epsilon:g}" for epsilon in sorted(epsilons) if epsilon == 0 or epsilon > 0.1]
        unusual += [f"decay is {decay:g}" for decay in sorted(decays) if decay < 0.5]
        if unusual:
            yield Verdict(layer.name, message=f"{RULE.message}: {', '.join(unusual)}")


def _decay(graph: Graph, update: Update) -> float | None:
    """The weight of the old value, where it is a constant in one of the usual forms of the average."""

    def terms(ref: Ref) -> Sequence[Ref]:
        node, _ = strip(graph, ref)
        return graph.inputs[node] if graph.ops[node] in ADDITIONS | {"Sub"} else []

    for ref in itertools.islice(walk([assigned_value(graph, update.node)], terms), _MOST_TERMS):
        node, _ = strip(graph, ref)
        if graph.ops[node] == "Mul":
            for factor, other in itertools.permutations(graph.inputs[node], 2):
                weight = _number(graph, factor)
                if weight is not None and 0 <= weight <= 1:
                    return _weight_of_old_value(graph, update, weight, other)
    return None


def _weight_of_old_value(graph: Graph, update: Update, weight: float, weighted: Ref) -> float | None:
    if variable(graph, weighted) == update.variable:
        return weight
    inner = strip(graph, weighted)
    is_new_value = inner in update.statistics or graph.ops[inner[0]] == "Sub"
    return 1 - weight if is_new_value else None


def _number(graph: Graph, ref: Ref) -> float | None:
    """A constant, or a difference of constants, as 1 − decay."""
    node, _ = strip(graph, ref)
    if graph.ops[node] == "Sub" and len(graph.inputs[node]) == 2:
        terms = [_constant(graph, source) for source in graph.inputs[node]]
        return None if None in terms else terms[0] - terms[1]
    return _constant(graph, ref)


def _constant(graph: Graph, ref: Ref) -> float | None:
    """A constant; of a choice between constants, the one that isn't 1, which is for steps that update nothing."""
    values = [constant_node(graph, leaf.ref) for leaf in leaves(graph, ref, lambda _: False)]
    if not values or any(value is None or value.size != 1 for value in values):
        return None
    numbers = {float(value.reshape(-1)[0]) for value in values}
    numbers = numbers - {1.0} or numbers
    return numbers.pop() if len(numbers) == 1 else None
