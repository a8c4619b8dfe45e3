"""Finds the places of a graph where values are normalized by a mean and a variance: fused, global and written out.

The search starts at what no other code has: a fused kernel, or the root of a variance plus epsilon that something is
divided by. From the root it looks up for what the variance is (a batch statistic, a variable, a choice between them) and
down for what is normalized, by which mean, gamma and beta. Layer, instance and group normalization reduce other
dimensions than the examples and have no moving statistics; `layers.find_layers` leaves them out.
"""

import enum
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.graphs.graph import Graph, Ref, Uses, of_types, walk
from bn_graph.graphs.ops import (
    ADDITIONS,
    DIVISIONS,
    FORWARDS,
    FUSED,
    GLOBAL,
    MERGES,
    SCALINGS,
    SELECTS,
    SWITCHES,
    VARIABLES,
    WEIGHTED,
)
from bn_graph.graphs.shapes import rank
from bn_graph.graphs.statistics import (
    BatchStatistic,
    Kind,
    is_training_kernel,
    lacks_mode,
    named_kind,
    recognize,
    unpadded,
)
from bn_graph.graphs.values import Choice, Leaf, branches, constant, constant_node, leaves, strip, variable

__all__ = ["Normalization", "Origin", "Source", "constant_parameters", "find_normalizations", "leads_on"]

_MOST_STEPS = 64
_MOST_FOLLOWING = 5_000

_ROOTS = frozenset({"Rsqrt", "Sqrt", "Pow"})
_SEARCHED = _ROOTS | FUSED.keys() | GLOBAL

Branches = Sequence[frozenset[Choice]]
"""Of each node, the choices under which it runs."""


class Origin(enum.Enum):
    """What makes the value of a statistic."""

    BATCH = "batch"
    VARIABLE = "variable"
    CONSTANT = "constant"
    OTHER = "other"
    STRIPPED = "stripped"
    """The file does not say: the kernel's mode was left out, and its statistics may have been as well."""


class Source(NamedTuple):
    """One of the places that a statistic may come from.

    Attributes:
        origin: what makes the value.
        node: the variable's, or the one that makes the value.
        choices: how switches must stand for it.
        statistic: of a batch source, which.
    """

    origin: Origin
    node: int
    choices: frozenset[Choice]
    statistic: BatchStatistic | None = None


class Normalization(NamedTuple):
    """A place where values are normalized.

    Attributes:
        node: the kernel, or the root.
        kernel: as `LayerRow.kernel`.
        inputs, outputs: tensors.
        mean, variance: where its statistics may come from.
        gamma, beta: variables' nodes, or None.
        epsilon: or None where it is no constant.
        choices: the switches that decide whether it runs at all.
        keeps_deviation: whether its variance's variable is its root, as ``moving_std`` is.
        needs_updates: whether it is a layer only if its batch statistics are averaged: a loss may look the same.
    """

    node: int
    kernel: str
    inputs: Ref
    outputs: Ref
    mean: tuple[Source, ...]
    variance: tuple[Source, ...]
    gamma: int | None
    beta: int | None
    epsilon: float | None
    choices: frozenset[Choice]
    needs_updates: bool = False
    keeps_deviation: bool = False

    @property
    def over_examples(self) -> bool:
        """Whether its statistics, where they are computed, are over the first dimension.

        Those of layer and instance normalization are not; nor are those of ghost batches, which layers average again.
        """
        return all(source.statistic is None or source.statistic.over_examples for source in self.sources())

    def sources(self) -> Iterator[Source]:
        """Of both statistics."""
        yield from self.mean
        yield from self.variance


def find_normalizations(graph: Graph, uses: Uses, under: Branches | None = None) -> list[Normalization]:
    """All batch normalizations of a graph, in its order.

    Args:
        graph, uses: as made by `graph.build` and `graph.uses`.
        under: from `values.branches`, where the caller has it.
    """
    found = []
    under = branches(graph) if under is None else under
    for node in of_types(graph, _SEARCHED):
        op = graph.ops[node]
        if op in FUSED and len(graph.inputs[node]) >= 3:
            if not _scales_examples(graph, node):
                found.append(_fused(graph, node, under))
        elif op in GLOBAL and len(graph.inputs[node]) >= 5:
            found.append(_global(graph, node, under))
        elif op in _ROOTS:
            normalization = _written_out(graph, uses, node, under)
            if normalization is not None:
                found.append(normalization)
    return found


def _sources(graph: Graph, ref: Ref, under: Branches) -> tuple[Source, ...]:
    found = leaves(graph, ref, lambda inner: recognize(graph, inner) is not None, under)
    sources = [_source(graph, leaf) for leaf in found]
    # Switchable normalization mixes those of the batch with those of each example.
    over_examples = [source for source in sources if source.statistic is None or source.statistic.over_examples]
    return tuple(over_examples if any(source.statistic for source in over_examples) else sources)


def _source(graph: Graph, leaf: Leaf) -> Source:
    statistic = recognize(graph, leaf.ref)
    if statistic is not None:
        return Source(Origin.BATCH, leaf.ref[0], leaf.choices, statistic)
    op = graph.ops[leaf.ref[0]]
    origin = Origin.VARIABLE if op in VARIABLES else Origin.CONSTANT if op == "Const" else Origin.OTHER
    return Source(origin, leaf.ref[0], leaf.choices)


def _scales_examples(graph: Graph, node: int) -> bool:
    """Whether a kernel's channels are really examples, as where layer normalization uses it: their number is computed."""
    scale, _ = strip(graph, graph.inputs[node][1])
    return graph.ops[scale] in ("Fill", "OnesLike") and constant(graph, (scale, 0)) is None


def _fused(graph: Graph, node: int, under: Branches) -> Normalization:
    sources = graph.inputs[node]
    if lacks_mode(graph, node):
        statistics = [(Source(Origin.STRIPPED, strip(graph, ref)[0], frozenset()),) for ref in sources[3:5]]
    elif is_training_kernel(graph, node):
        mean, variance = (recognize(graph, (node, port)) for port in (1, 2))
        statistics = [(Source(Origin.BATCH, node, frozenset(), statistic),) for statistic in (mean, variance)]
    else:
        statistics = [_sources(graph, ref, under) for ref in sources[3:5]] if len(sources) >= 5 else [(), ()]
    epsilon = graph.protos[node].attr["epsilon"].f if "epsilon" in graph.protos[node].attr else 1e-4
    return Normalization(
        node,
        FUSED[graph.ops[node]],
        strip(graph, sources[0]),
        (node, 0),
        *statistics,
        variable(graph, sources[1]),
        variable(graph, sources[2]),
        epsilon,
        under[node],
    )


def _global(graph: Graph, node: int, under: Branches) -> Normalization:
    inputs, mean, variance, beta, gamma = graph.inputs[node][:5]
    return Normalization(
        node,
        "global",
        strip(graph, inputs),
        (node, 0),
        _sources(graph, mean, under),
        _sources(graph, variance, under),
        variable(graph, gamma),
        variable(graph, beta),
        graph.protos[node].attr["variance_epsilon"].f,
        under[node],
    )


# --- Written out with a root ------------------------------------------------------------------------------------------


class _Use(NamedTuple):
    """What is done with the reciprocal root: the product (or quotient), and what went into it beside the root.

    `chosen` is a choice between the root and a deviation that is kept in a variable.
    """

    inputs: Ref
    mean: Ref | None
    gamma: int | None
    outputs: Ref
    beta: int | None
    chosen: Ref | None = None


def _written_out(graph: Graph, uses: Uses, node: int, under: Branches) -> Normalization | None:
    squared = _under_root(graph, node)
    if squared is None:
        return None
    variance, epsilon = squared
    of_variance = _sources(graph, variance, under)
    if not _may_be_variance(graph, of_variance):
        return None
    use = _use(graph, uses, node, of_variance)
    if use is None:
        return None
    mean = _sources(graph, use.mean, under) if use.mean is not None else ()
    if use.chosen is not None:
        of_variance = _with_kept_deviation(of_variance, _sources(graph, use.chosen, under))
    found = Normalization(
        node,
        "moments",
        use.inputs,
        use.outputs,
        mean,
        of_variance,
        use.gamma,
        use.beta,
        epsilon,
        under[node] | under[use.outputs[0]],  # the root may be taken outside of the branch that uses it
    )
    found = found._replace(keeps_deviation=use.chosen is not None)
    return _judged(graph, uses, _without_shift(graph, found))


def _with_kept_deviation(of_variance: tuple[Source, ...], chosen: tuple[Source, ...]) -> tuple[Source, ...]:
    """The sources of a variance whose root is one choice, and a variable or constant that keeps a deviation the other."""
    kept = tuple(source for source in chosen if source.origin in (Origin.VARIABLE, Origin.CONSTANT))
    of_root = frozenset().union(*(source.choices for source in chosen if source not in kept))
    return tuple(source._replace(choices=source.choices | of_root) for source in of_variance) + kept


def _under_root(graph: Graph, node: int) -> tuple[Ref, float | None] | None:
    """The variance and epsilon of a root √(variance + epsilon), or of its reciprocal."""
    sources = graph.inputs[node]
    if graph.ops[node] == "Pow":
        exponent = constant_node(graph, sources[1]) if len(sources) == 2 else None
        if exponent is None or exponent.size != 1 or abs(exponent.reshape(-1)[0]) != 0.5:
            return None
    if not sources:
        return None
    inner = strip(graph, sources[0])
    terms = graph.inputs[inner[0]]
    if graph.ops[inner[0]] in ("Add", "AddV2", "Maximum") and len(terms) == 2 and recognize(graph, inner) is None:
        for term, other in (terms, terms[::-1]):
            value = constant_node(graph, other)
            if value is not None and value.size == 1:
                return term, float(value.reshape(-1)[0])
    return sources[0], 0.0 if graph.ops[node] == "Rsqrt" else None


def _may_be_variance(graph: Graph, sources: Iterable[Source]) -> bool:
    """A variable, a constant for each channel, or a variance; not the scale of a gradient, nor a variance of weights."""
    return any(
        source.origin is Origin.VARIABLE
        or _is_sum_over_count(graph, source)
        or _channels(graph, source)
        or (
            source.origin is Origin.BATCH
            and source.statistic.kind is Kind.VARIANCE
            and not _of_weights(graph, source.statistic)
        )
        for source in sources
    )


def _is_sum_over_count(graph: Graph, source: Source) -> bool:
    """Whether a variable's sums are divided by another's count, as the standing statistics of BigGAN."""
    sources = graph.inputs[source.node] if graph.ops[source.node] in DIVISIONS else []
    return len(sources) == 2 and all(variable(graph, ref) is not None for ref in sources)


def _channels(graph: Graph, source: Source) -> int:
    """How many values a constant of a frozen graph has, a scalar counting as none; 0 for any other source."""
    return _size(graph, source.node) if source.origin is Origin.CONSTANT else 0


def _size(graph: Graph, constant: int) -> int:
    sizes = [dim.size for dim in graph.protos[constant].attr["value"].tensor.tensor_shape.dim]
    return math.prod(sizes) if sizes else 0


def _of_weights(graph: Graph, statistic: BatchStatistic) -> bool:
    return any(variable(graph, ref) is not None for ref in statistic.inputs)


def _use(graph: Graph, uses: Uses, root: int, of_variance: tuple[Source, ...]) -> _Use | None:
    """Follows the reciprocal root down to what it multiplies, or the root to what it divides.

    Gradients multiply by the root too. They are made after what they are gradients of, so the first product it is.
    """
    products, means, gammas = [], [], []
    is_factor = _factors(graph, of_variance)
    divides = graph.ops[root] == "Sqrt" or (graph.ops[root] == "Pow" and _exponent(graph, root) > 0)
    pending, seen, chosen = [((root, 0), divides)], set(), None
    while pending and len(seen) < _MOST_STEPS:
        ref, divides = pending.pop()
        if ref in seen:
            continue
        seen.add(ref)
        for user, place, port in uses.data[ref[0]]:
            if port != ref[1]:
                continue
            onward = _onward(graph, user, place, divides)
            if onward:
                pending.extend(onward)
                chosen = (user, 0) if graph.ops[user] in MERGES | SELECTS else chosen
            elif _takes_root(graph, user, place, divides):
                other = graph.inputs[user][1 - place]
                negated = _negated(graph, other)
                if not divides and (negated is not None or _is_mean_term(graph, uses, user)):
                    means.append((user, negated or other))
                elif is_factor(other):
                    gammas.append((user, other))
                    pending.append(((user, 0), False))
                else:
                    products.append((user, other))
    if not products:
        return None
    mean = min(means)[1] if means else None
    gamma = _parameter(graph, min(gammas)[1]) if gammas else None
    use = _completed(graph, uses, min(products), mean, gamma)
    return None if use is None else use._replace(chosen=chosen)


def _onward(graph: Graph, user: int, place: int, divides: bool) -> list[tuple[Ref, bool]]:
    """Where the root, or its reciprocal, goes on as such: handed on, chosen, with an epsilon added, inverted."""
    op = graph.ops[user]
    if place == 0 and op in SWITCHES:
        return [((user, 0), divides), ((user, 1), divides)]
    if (place == 0 and op in FORWARDS) or (op in MERGES | SELECTS and _keeps_deviation(graph, (user, 0))):
        return [((user, 0), divides)]
    if divides and op in ("Reciprocal", "Inv"):
        return [((user, 0), False)]
    return [((user, 0), True)] if divides and _adds_epsilon(graph, user, place) else []


def _keeps_deviation(graph: Graph, ref: Ref) -> bool:
    """Whether one of the values that a choice is between is a variable's, or a constant of a channel each, no zeros."""
    ways = (leaf.ref[0] for leaf in leaves(graph, ref, lambda inner: recognize(graph, inner) is not None))
    return any(
        graph.ops[node] in VARIABLES
        or (graph.ops[node] == "Const" and _size(graph, node) and _is_positive(graph, node))
        for node in ways
    )


def _is_positive(graph: Graph, node: int) -> bool:
    value = constant_node(graph, (node, 0))
    return value is None or bool((value > 0).any())


def _takes_root(graph: Graph, user: int, place: int, divides: bool) -> bool:
    """Whether `user` divides by the root, or multiplies by its reciprocal."""
    if len(graph.inputs[user]) != 2 or place < 0:
        return False
    return (graph.ops[user] in DIVISIONS and place == 1) if divides else graph.ops[user] == "Mul"


def _adds_epsilon(graph: Graph, user: int, place: int) -> bool:
    """Whether an epsilon is added outside of the root, as √variance + epsilon."""
    if graph.ops[user] not in ("Add", "AddV2", "Maximum") or place not in (0, 1):
        return False
    value = constant_node(graph, graph.inputs[user][1 - place])
    return value is not None and value.size == 1


def _exponent(graph: Graph, node: int) -> float:
    return float(constant_node(graph, graph.inputs[node][1]).reshape(-1)[0])


def _factors(graph: Graph, of_variance: tuple[Source, ...]) -> Callable[[Ref], bool]:
    """Tells whether what is multiplied by the root is a gamma, and not yet what is normalized.

    With a batch's variance it is known what is normalized: what the variance is of. Anything else is a gamma, be it
    computed, as the r·gamma of batch renormalization is. Without one, a gamma is a variable or a constant.
    """
    normalized = {ref for source in of_variance if source.statistic for ref in source.statistic.inputs}

    def is_factor(ref: Ref) -> bool:
        return not _is_values(graph, ref, normalized) if normalized else _is_scale(graph, ref)

    return is_factor


def _is_values(graph: Graph, ref: Ref, normalized: Collection[Ref]) -> bool:
    """Whether a tensor is what is normalized: x itself, x − mean, or gamma·(x − mean)."""
    ref = unpadded(graph, ref)
    node, _ = ref
    if ref in normalized:
        return True
    sources = graph.inputs[node]
    if graph.ops[node] == "Sub":  # of x, or of x − shift
        return strip(graph, sources[0]) in normalized or _is_centred(graph, sources[0], normalized)
    return graph.ops[node] == "Mul" and any(
        strip(graph, source) in normalized or _is_centred(graph, source, normalized) for source in sources
    )


def _is_centred(graph: Graph, ref: Ref, normalized: Collection[Ref]) -> bool:
    node, _ = strip(graph, ref)
    return graph.ops[node] == "Sub" and unpadded(graph, graph.inputs[node][0]) in normalized


def _parameter(graph: Graph, ref: Ref) -> int | None:
    """The variable that a gamma or beta is, or is computed from with one product or sum: r·gamma, d·gamma + beta."""
    direct = variable(graph, ref)
    node, _ = strip(graph, ref)
    if direct is not None or graph.ops[node] not in ("Mul", *ADDITIONS):
        return direct
    return next((found for source in graph.inputs[node] if (found := variable(graph, source)) is not None), None)


def _is_scale(graph: Graph, ref: Ref) -> bool:
    """Whether a factor is a variable or a constant of a channel each, and so a gamma and no activation."""
    value = constant_node(graph, ref)
    return variable(graph, ref) is not None or (value is not None and sum(size > 1 for size in value.shape) < 2)


def _negated(graph: Graph, ref: Ref) -> Ref | None:
    """The mean of −mean·gamma/√…, as ``tf.nn.batch_normalization`` writes it where there is no beta."""
    node, _ = strip(graph, ref)
    return graph.inputs[node][0] if graph.ops[node] == "Neg" and graph.inputs[node] else None


def _is_mean_term(graph: Graph, uses: Uses, node: int) -> bool:
    """Whether a product is subtracted from something: mean·gamma/√… of ``tf.nn.batch_normalization``."""
    users = [(graph.ops[user], place) for user, place, _ in uses.data[node]]
    return any((op == "Sub" and place == 1) or op == "Neg" for op, place in users)


def _completed(graph: Graph, uses: Uses, product: tuple[int, Ref], mean: Ref | None, gamma: int | None) -> _Use | None:
    """From the product on: the centred inputs before it, gamma and beta after it."""
    node, values = product
    inputs = unpadded(graph, values)
    if graph.ops[inputs[0]] == "Mul" and len(graph.inputs[inputs[0]]) == 2 and mean is None:  # gamma·(x − mean)/√…
        for source, other in (graph.inputs[inputs[0]], graph.inputs[inputs[0]][::-1]):
            factor = _clipped_variable(graph, source)
            if factor is not None and gamma is None:
                gamma, inputs = factor, strip(graph, other)
    if graph.ops[inputs[0]] in ("Sub", "SquaredDifference") and mean is None:
        inputs, mean = graph.inputs[inputs[0]][:2]
        inputs = strip(graph, inputs)
    if mean is None:
        return None
    outputs, beta = (node, 0), None
    for _ in range(6):
        step = _next_parameter(graph, uses, outputs[0])
        if step is None:
            break
        user, role, parameter = step
        outputs = (user, 0)
        gamma = parameter if role == "gamma" and gamma is None else gamma
        beta = parameter if role == "beta" and beta is None else beta
        if beta is not None:
            break
    return _Use(inputs, mean, gamma, outputs, beta)


def _clipped_variable(graph: Graph, ref: Ref) -> int | None:
    """The variable that a factor is, also between bounds, as the gate of batch-instance normalization."""
    for _ in range(3):
        node, _ = strip(graph, ref)
        found = variable(graph, ref)
        if found is not None or graph.ops[node] not in ("Minimum", "Maximum", "Sigmoid") or not graph.inputs[node]:
            return found
        ref = graph.inputs[node][0]
    return None


def _next_parameter(graph: Graph, uses: Uses, node: int) -> tuple[int, str, int | None] | None:
    """The next scaling or offset after `node`, if that is what follows."""
    for user, place, _ in uses.data[node]:
        op, sources = graph.ops[user], graph.inputs[user]
        if place == 0 and op in FORWARDS - {"Transpose"} and len(uses.data[node]) <= 2:
            return user, "", None
        if len(sources) != 2 or place < 0:
            continue
        other = sources[1 - place]
        if op == "Mul" and (parameter := variable(graph, other)) is not None:
            return user, "gamma", parameter
        if op in ADDITIONS or (op == "Sub" and place == 0):
            if (parameter := variable(graph, other)) is not None:
                return user, "beta", parameter
            term, _ = strip(graph, other)
            if graph.ops[term] == "Sub" and len(graph.inputs[term]) == 2:  # beta − mean·…
                return user, "beta", _parameter(graph, graph.inputs[term][0])
            if graph.ops[term] in ("Neg", "Mul"):  # −mean·…
                return user, "beta", None
    return None


def _without_shift(graph: Graph, found: Normalization) -> Normalization:
    """(x − shift) − Mean(x − shift), with a variance of x, normalizes x."""
    node, _ = found.inputs
    values = {ref for source in found.variance if source.statistic is not None for ref in source.statistic.inputs}
    if graph.ops[node] == "Sub" and found.inputs not in values:
        inputs = unpadded(graph, graph.inputs[node][0])
        return found._replace(inputs=inputs) if inputs in values else found
    return found


def _judged(graph: Graph, uses: Uses, found: Normalization) -> Normalization | None:
    """Tells batch norm from other things that are centred and scaled; None for those.

    A variance from variables alone must come with a mean from variables (an optimizer's accumulator does not), one from
    constants with a mean of as many constants, and with more than ``(x − mean)/√variance``, as data are prepared. Batch
    statistics must be of what is normalized, and leave a dimension for the channels. What has neither parameters nor
    stored statistics must lead to further layers, or else be averaged: losses standardize too.
    """
    whole = recognize(graph, found.inputs)
    if whole is not None and whole.axes is not None and whole.over_examples:
        return None  # a batch's mean, standardized, as for batch renormalization's d
    batch = [source for source in found.variance if source.origin is Origin.BATCH]
    stored = [source for source in found.variance if source.origin is Origin.VARIABLE]
    frozen = {channels for source in found.variance if (channels := _channels(graph, source))}
    if not batch:
        is_stored = bool(stored) and any(source.origin is Origin.VARIABLE for source in found.mean)
        is_summed = all(any(_is_sum_over_count(graph, source) for source in of) for of in (found.mean, found.variance))
        is_stored = is_stored or (is_summed and (found.gamma is not None or found.beta is not None))
        return found if is_stored or _is_frozen_layer(graph, uses, found, frozen) else None
    if not any(found.inputs in source.statistic.inputs for source in batch):
        return None
    if stored or frozen or found.gamma is not None or found.beta is not None:
        return found
    axes = batch[0].statistic.axes
    ndims = rank(graph, found.inputs)
    has_channels = ndims is not None and axes is not None and len(axes) < ndims
    return found._replace(needs_updates=not (has_channels and leads_on(graph, uses, found.outputs[0])))


def _is_frozen_layer(graph: Graph, uses: Uses, found: Normalization, channels: Collection[int]) -> bool:
    """Whether constants are a layer's statistics: by their names, or by a scale or an offset with them."""
    if not any(_channels(graph, source) in channels for source in found.mean):
        return False
    if any(named_kind(graph.names[source.node]) is Kind.VARIANCE for source in found.variance):
        return True
    return any(value.size in channels for value in constant_parameters(graph, uses, found))


def constant_parameters(graph: Graph, uses: Uses, place: Normalization) -> list[np.ndarray]:
    """The gamma and beta of a frozen graph: constants, other than scalars, that a place scales and shifts by."""
    if place.kernel != "moments":
        refs = graph.inputs[place.node][1:3] if place.kernel in FUSED.values() else graph.inputs[place.node][3:5]
    else:
        products = [user for user, _, _ in uses.data[place.node] if graph.ops[user] in SCALINGS]
        after = [user for node in products for user, _, _ in uses.data[node]]
        scaling = [node for node in products + after if graph.ops[node] in ADDITIONS | {"Mul", "Sub"}]
        refs = [ref for node in dict.fromkeys(scaling) for ref in graph.inputs[node]]
    statistics = {source.node for source in place.sources()}
    values = [constant_node(graph, ref) for ref in refs if strip(graph, ref)[0] not in statistics]
    return [value for value in values if value is not None and value.ndim]


def leads_on(graph: Graph, uses: Uses, start: int, stops: Collection[int] = ()) -> bool:
    """Whether anything with weights follows a node, other than the gradients of what follows.

    Args:
        graph, uses: as made by `graph.build` and `graph.uses`.
        start: the node.
        stops: nodes that are not passed.
    """

    def followers(node: int) -> list[int]:
        users = (user for user, _, _ in uses.data[node])
        return [user for user in users if user not in stops and "gradients" not in graph.names[user]]

    following = itertools.islice(walk([start], followers), _MOST_FOLLOWING)
    return any(graph.ops[node].startswith(WEIGHTED) for node in following)
