"""Recognizes batch statistics: tensors that are the mean, or the variance, of another over its examples.

The forms that people and libraries have used:

* port 1 or 2 of a ``FusedBatchNorm`` (V1 to V3) in training mode;
* ``Mean`` of x, ``Mean`` of a squared difference of x, as ``tf.nn.moments`` does and most people write them; also as
  a sum times one over the count, or divided by it, and either over one dimension after the other;
* mean and variance of all replicas, from sums of each one's mean and mean of squares over TPUs, Horovod or NCCL;
* mean and variance of all workers, from vectors of each one's that were gathered, as this library's synchronized layer
  has them;
* ``shift + Mean(x − shift)`` and ``Mean((x − shift)²) − Mean(x − shift)²``, as ``tf.nn.moments`` did in its first years;
  the latter also with norms of x for the squares, as this library's fused layer does of many values.
"""

import enum
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from bn_graph.graphs.graph import Graph, Ref
from bn_graph.graphs.ops import ABSENT, CLIPS, DIVISIONS, FUSED, REDUCTIONS, REPLICA_GATHERS, SCALINGS, SELECTS
from bn_graph.graphs.values import constant_node, few_integers, strip

__all__ = [
    "BatchStatistic",
    "Kind",
    "batch_variances",
    "is_training_kernel",
    "lacks_mode",
    "named_kind",
    "part_of_all_workers",
    "recognize",
    "shifted_parts",
    "unpadded",
]

_MOST_DIMENSIONS = 8


class Kind(enum.Enum):
    """Which statistic."""

    MEAN = "mean"
    VARIANCE = "variance"


class BatchStatistic(NamedTuple):
    """A batch statistic.

    Attributes:
        kind: mean or variance.
        ref: the tensor.
        inputs: what it may be the statistic of (more than one, where a squared difference doesn't say which is x).
        axes: dimensions averaged over; None where they are computed in the graph.
    """

    kind: Kind
    ref: Ref
    inputs: tuple[Ref, ...]
    axes: tuple[int, ...] | None

    @property
    def over_examples(self) -> bool:
        """Whether the first dimension is averaged over; not so for layer and instance normalization."""
        return self.axes is None or 0 in self.axes


def is_training_kernel(graph: Graph, node: int) -> bool:
    """Whether a node is a fused kernel that normalizes by the batch; the attribute is left out where it is True."""
    if graph.ops[node] not in FUSED or lacks_mode(graph, node):
        return False
    attributes = graph.protos[node].attr
    return "is_training" not in attributes or attributes["is_training"].b


def lacks_mode(graph: Graph, node: int) -> bool:
    """Whether a fused kernel's ``is_training`` was stripped, so that its mode is not in the file.

    TensorFlow leaves the attribute out where it is True, and the kernel then has no statistics to read. One that lacks
    it and has constants for them, or names nodes that are not there, was written by another program, such as OpenCV's.
    """
    attributes = graph.protos[node].attr
    if graph.ops[node] not in FUSED or "is_training" in attributes or len(graph.inputs[node]) < 5:
        return False
    if "exponential_avg_factor" in attributes and attributes["exponential_avg_factor"].f != 1:
        return False
    return any(_is_stripped_or_given(graph, ref) for ref in graph.inputs[node][3:5])


def _is_stripped_or_given(graph: Graph, ref: Ref) -> bool:
    node, _ = strip(graph, ref)
    if graph.ops[node] != "Const":
        return graph.ops[node] == ABSENT
    return all(dim.size for dim in graph.protos[node].attr["value"].tensor.tensor_shape.dim)


_STATISTIC_NAME = re.compile(r"(moving|running|pop|population)_(mean|var(iance)?)(_\d+)?")
_OF_ONE_VARIABLE = re.compile(r"read|ReadVariableOp(_\d+)?|part_\d+|_.*")


def named_kind(name: str) -> Kind | None:
    """Which statistic a variable, or the constant that it was frozen to, is by a name that people give to moving ones.

    Example:
        >>> from bn_graph.graphs.statistics import named_kind
        >>> names = ["bn/moving_mean", "bn/running_var/read", "bn/moving_variance/Initializer/ones"]
        >>> [named_kind(name) for name in names]
        [<Kind.MEAN: 'mean'>, <Kind.VARIANCE: 'variance'>, None]
    """
    if "_var" not in name and "_mean" not in name:
        return None
    path = name.split("/")
    while len(path) > 1 and _OF_ONE_VARIABLE.fullmatch(path[-1]):
        path.pop()
    named = _STATISTIC_NAME.fullmatch(path[-1])
    return None if named is None else Kind.MEAN if named[2] == "mean" else Kind.VARIANCE


def recognize(graph: Graph, ref: Ref) -> BatchStatistic | None:
    """What batch statistic a tensor is, if it is made in one of the ways this module's docstring lists."""
    node, port = ref
    op = graph.ops[node]
    if op in FUSED:
        return _of_kernel(graph, ref) if port in (1, 2) and is_training_kernel(graph, node) else None
    if op in ("Add", "AddV2") and len(graph.inputs[node]) == 2:
        first, second = graph.inputs[node]
        return _shifted_mean(graph, ref, first, second) or _shifted_mean(graph, ref, second, first)
    if op == "Sum" and graph.inputs[node]:
        return _of_all_workers(graph, ref)
    if op == "Sub" and len(graph.inputs[node]) == 2:
        return _less_square(graph, ref)
    if op == "Unpack":  # Horovod's sum of both statistics
        inner = _of_one_replica(graph, ref)
        statistic = recognize(graph, inner) if graph.ops[inner[0]] != op else None
        return statistic._replace(ref=ref) if statistic is not None and statistic.kind is Kind.MEAN else None
    return _average(graph, ref) if strip(graph, ref) == ref else None


def _of_kernel(graph: Graph, ref: Ref) -> BatchStatistic:
    node, port = ref
    layout = graph.protos[node].attr["data_format"].s.decode("ascii", "replace") or "NHWC"
    axes = tuple(place for place, letter in enumerate(layout) if letter != "C")
    return BatchStatistic(Kind.MEAN if port == 1 else Kind.VARIANCE, ref, (strip(graph, graph.inputs[node][0]),), axes)


def _averaged(graph: Graph, ref: Ref) -> tuple[Ref, tuple[int, ...] | None] | None:
    """What ``Mean``, or ``Sum`` over its count, averages, and over which dimensions."""
    node, _ = strip(graph, ref)
    if len(graph.inputs[node]) < 2:
        return None
    op, sources = graph.ops[node], graph.inputs[node]
    if op in ("Mean", "Sum"):
        axes = constant_node(graph, sources[1])
        if axes is not None and few_integers(axes) is None:
            return None
        return _over_all_axes(graph, "Mean", strip(graph, sources[0]), _sorted_axes(axes)) if op == "Mean" else None
    if op == "Mul" or op in DIVISIONS:
        for source in sources if op == "Mul" else sources[:1]:
            total, _ = strip(graph, source)
            if graph.ops[total] == "Sum" and len(graph.inputs[total]) == 2:
                axes = constant_node(graph, graph.inputs[total][1])
                summed, axes = _over_all_axes(graph, "Sum", strip(graph, graph.inputs[total][0]), _sorted_axes(axes))
                return (summed if op == "Mul" else _without_weights(graph, summed, sources[1])), axes
    return None


def _without_weights(graph: Graph, product: Ref, count: Ref) -> Ref:
    """What is averaged with weights, given their product and what its sum is divided by: the weights' sum, if it is one."""
    node, (total, _) = product[0], strip(graph, count)
    if graph.ops[total] in SELECTS and len(graph.inputs[total]) == 3:  # NaN where a weight is negative
        total, _ = strip(graph, graph.inputs[total][2])
    if graph.ops[node] != "Mul" or graph.ops[total] != "Sum" or not graph.inputs[total]:
        return product
    weights, _ = _over_all_axes(graph, "Sum", strip(graph, graph.inputs[total][0]), ())
    others = [factor for source in graph.inputs[node] if (factor := strip(graph, source)) != weights]
    return others[0] if len(others) == 1 else product


def unpadded(graph: Graph, ref: Ref) -> Ref:
    """`ref` stripped, and without the 0 or mean that stands in for values that don't count, as weights of 0 have it."""
    node, port = strip(graph, ref)
    if graph.ops[node] in SELECTS and len(graph.inputs[node]) == 3:
        condition, _ = strip(graph, graph.inputs[node][0])
        if graph.ops[condition] in ("Greater", "LogicalOr"):
            return strip(graph, graph.inputs[node][1])
    return node, port


def _over_all_axes(graph: Graph, op: str, ref: Ref, axes: tuple[int, ...] | None) -> tuple[Ref, tuple[int, ...] | None]:
    """What is reduced, and over which dimensions, where `ref`, which such an `op` may have made too, is over `axes`.

    Only ops that keep their dimensions count, whose `axes` are those of what they reduce; and one for each dimension.
    """
    for _ in range(_MOST_DIMENSIONS):
        node, _ = ref
        if graph.ops[node] != op or not graph.protos[node].attr["keep_dims"].b or len(graph.inputs[node]) != 2:
            break
        inner = _sorted_axes(constant_node(graph, graph.inputs[node][1]))
        axes = None if axes is None or inner is None else tuple(sorted({*axes, *inner}))
        ref = strip(graph, graph.inputs[node][0])
    return ref, axes


def _sorted_axes(axes: np.ndarray | None) -> tuple[int, ...] | None:
    known = few_integers(axes)
    return None if known is None else tuple(sorted(known))


def _average(graph: Graph, ref: Ref) -> BatchStatistic | None:
    averaged = _averaged(graph, ref)
    if averaged is None:
        return None
    squared = _squared(graph, averaged[0])
    if squared is None:
        return BatchStatistic(Kind.MEAN, ref, (averaged[0],), averaged[1])
    return BatchStatistic(Kind.VARIANCE, ref, squared, averaged[1])


def _squared(graph: Graph, ref: Ref) -> tuple[Ref, ...] | None:
    """What a tensor may be a squared deviation of; None if it is no square."""
    node, _ = ref
    op, sources = graph.ops[node], [strip(graph, source) for source in graph.inputs[node]]
    if op == "SquaredDifference" and len(sources) == 2:
        return tuple(sources)
    is_square = op == "Square" and len(sources) == 1
    is_square = is_square or (op == "Mul" and len(sources) == 2 and sources[0] == sources[1])
    if op == "Pow" and len(sources) == 2:
        exponent = constant_node(graph, sources[1])
        is_square = exponent is not None and exponent.size == 1 and exponent.reshape(-1)[0] == 2
    if not is_square:
        return None
    base = sources[0]
    if graph.ops[base[0]] == "Sub":
        return (base, *(strip(graph, source) for source in graph.inputs[base[0]]), *_padded(graph, base))
    return (base,)


def _padded(graph: Graph, ref: Ref) -> tuple[Ref, ...]:
    """The x of x − shift − mean, where values that don't count are replaced in it; else nothing."""
    for _ in range(2):
        ref = strip(graph, graph.inputs[ref[0]][0]) if graph.ops[ref[0]] == "Sub" else ref
    values = unpadded(graph, ref)
    return () if values == ref else (values,)


def shifted_parts(graph: Graph, mean: Ref) -> tuple[Ref | None, Ref | None]:
    """Of a mean about a shift: the mean of x − shift, which may be `mean` itself, and the shift; (None, None) of others."""
    node, _ = mean
    if graph.ops[node] in ("Add", "AddV2") and len(graph.inputs[node]) == 2:
        first, second = graph.inputs[node]
        for part, shift in ((first, second), (second, first)):
            if _shifted_mean(graph, mean, part, shift) is not None:
                return part, shift
    averaged = _averaged(graph, mean)
    if averaged is not None and graph.ops[averaged[0][0]] == "Sub":
        return mean, graph.inputs[averaged[0][0]][1]
    return None, None


def _shifted_mean(graph: Graph, ref: Ref, part: Ref, shift: Ref) -> BatchStatistic | None:
    """shift + Mean(x − shift)."""
    averaged = _averaged(graph, part)
    if averaged is None or graph.ops[averaged[0][0]] != "Sub":
        return None
    values, subtracted = graph.inputs[averaged[0][0]][:2]
    if strip(graph, subtracted) != strip(graph, shift):
        return None
    return BatchStatistic(Kind.MEAN, ref, (strip(graph, values),), averaged[1])


def _less_square(graph: Graph, ref: Ref) -> BatchStatistic | None:
    """Mean((x − shift)²) − Mean(x − shift)², shift 0 included; also with variance + mean² in the place of the first."""
    whole, square = graph.inputs[ref[0]]
    if _squared(graph, strip(graph, square)) is None:
        return None
    of_one = _of_one_replica(graph, whole)
    averaged = _averaged(graph, whole) or _averaged(graph, of_one)
    squared = None if averaged is None else _squared(graph, averaged[0])
    if squared is not None:
        return BatchStatistic(Kind.VARIANCE, ref, squared, averaged[1])
    by_norms = None if averaged is None else _by_norms(graph, ref, *averaged)
    if by_norms is not None:
        return by_norms
    terms = graph.inputs[of_one[0]] if graph.ops[of_one[0]] in ("Add", "AddV2") else []
    for term in terms if any(_squared(graph, strip(graph, term)) for term in terms) else []:
        variance = _average(graph, strip(graph, term))
        if variance is not None and variance.kind is Kind.VARIANCE:
            return variance._replace(ref=ref)
    return None


def _of_one_replica(graph: Graph, ref: Ref) -> Ref:
    """A tensor before it was summed over replicas, stacked with another for that, and divided by their number."""
    start, place = ref, None
    for _ in range(_MOST_DIMENSIONS):
        ref = strip(graph, ref)
        node, port = ref
        op, sources = graph.ops[node], graph.inputs[node]
        scaled = [source for source in sources if constant_node(graph, source) is None] if op in SCALINGS else []
        if op == "Unpack" and place is None and sources:
            place, ref = port, sources[0]
        elif op == "Pack" and place is not None and place < len(sources):
            place, ref = None, sources[place]
        elif len(scaled) == 1:
            ref = scaled[0]
        else:
            break
    return start if place is not None else ref


# --- Of all workers: `layers.synchronized` ----------------------------------------------------------------------------
_SHIFT, _REMAINDER, _VARIANCE, _PARTS = 2, 3, 4, 5  # places in a worker's vector, and their number


def part_of_all_workers(graph: Graph, ref: Ref) -> tuple[Ref, Kind] | None:
    """One worker's mean or variance, where `ref` is the sum of what all have, by their shares of the examples."""
    product, _ = strip(graph, graph.inputs[ref[0]][0])
    for factor in graph.inputs[product] if graph.ops[product] == "Mul" else []:
        node, _ = strip(graph, factor)
        for term in graph.inputs[node] if graph.ops[node] in ("Add", "AddV2") else [factor]:
            split, place = strip(graph, term)
            if graph.ops[split] == "SplitV" and place in (_SHIFT, _REMAINDER, _VARIANCE):
                part = _part_of_vector(graph, graph.inputs[split][0], place)
                return None if part is None else (part, Kind.VARIANCE if place == _VARIANCE else Kind.MEAN)
    return None


def _of_all_workers(graph: Graph, ref: Ref) -> BatchStatistic | None:
    found = part_of_all_workers(graph, ref)
    statistic = None if found is None else recognize(graph, found[0])
    return None if statistic is None else _of_all(graph, ref, found[1], statistic)


def _of_all(graph: Graph, ref: Ref, kind: Kind, of_one: BatchStatistic) -> BatchStatistic:
    """The statistic of all workers' x, given one worker's of its x − shift, or of x."""
    whole = (graph.inputs[node][0] if graph.ops[node] == "Sub" else (node, port) for node, port in of_one.inputs)
    return BatchStatistic(kind, ref, tuple(unpadded(graph, each) for each in whole), of_one.axes)


def _part_of_vector(graph: Graph, ref: Ref, place: int) -> Ref | None:
    """What a worker put at that place of the vector that it exchanges, given the rows of all."""
    for _ in range(_MOST_DIMENSIONS):
        node, _ = strip(graph, ref)
        if not graph.inputs[node]:
            return None
        if graph.ops[node] == "ConcatV2":
            return _unclipped(graph, graph.inputs[node][place]) if len(graph.inputs[node]) == _PARTS + 1 else None
        if graph.ops[node] not in REPLICA_GATHERS and graph.ops[node] not in ("AddN", "Pad", "StridedSlice"):
            return None
        ref = graph.inputs[node][0]
    return None


def _unclipped(graph: Graph, ref: Ref) -> Ref:
    """`ref` stripped, and of what is at least 0 what was before that."""
    node, port = strip(graph, ref)
    return strip(graph, graph.inputs[node][0]) if graph.ops[node] in CLIPS and graph.inputs[node] else (node, port)


def _by_norms(graph: Graph, ref: Ref, squares: Ref, axes: tuple[int, ...] | None) -> BatchStatistic | None:
    """The variance where the squares that are averaged over `axes` are a norm's, over the other dimensions, by its count."""
    square, _ = strip(graph, graph.inputs[squares[0]][0]) if graph.ops[squares[0]] in DIVISIONS else squares
    norm, _ = strip(graph, graph.inputs[square][0]) if graph.ops[square] == "Square" else squares
    if graph.ops[norm] != "EuclideanNorm" or len(graph.inputs[norm]) != 2:
        return None
    values, own = graph.inputs[norm]
    own = _sorted_axes(constant_node(graph, own))
    over = None if axes is None or own is None else tuple(sorted({*axes, *own}))
    return BatchStatistic(Kind.VARIANCE, ref, (strip(graph, values),), over)


def batch_variances(graph: Graph, used: Iterable[int], rank_of: Callable[[Ref], int | None]) -> list[int]:
    """The nodes among `used` that compute a variance over the examples; what normalizes by the batch needs one.

    Args:
        graph: the graph.
        used: nodes whose values matter, such as `modes.values_used` of the outputs.
        rank_of: how many dimensions a tensor has; None where that is unknown.
    """
    return sorted(node for node in used if is_training_kernel(graph, node) or _is_batch_variance(graph, node, rank_of))


def _is_batch_variance(graph: Graph, node: int, rank_of: Callable[[Ref], int | None]) -> bool:
    statistic = recognize(graph, (node, 0))
    if statistic is None or statistic.kind is not Kind.VARIANCE or rank_of((node, 0)) == 0:
        return False  # a squared error's mean over all axes ends in a scalar, and is no statistic of channels
    rank = rank_of(graph.inputs[node][0])
    return statistic.over_examples or (graph.ops[node] in REDUCTIONS and rank is not None and -rank in statistic.axes)
