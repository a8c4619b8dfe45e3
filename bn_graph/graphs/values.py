"""Where a tensor's value comes from: constants, variables, and the choices of switches on the way.

`leaves` goes up from a tensor through everything that hands a value on (identities, casts, reshapes, both kinds of cond,
``where``, reads of variables, scaling by a constant) to the tensors where values are made. Each `Leaf` says which
switches must stand how for the value to come from there.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.graphs.graph import Caller, Graph, Ref, of_types, walk
from bn_graph.graphs.ops import (
    ABSENT,
    CLIPS,
    CONDS,
    COUNTING,
    FORWARDS,
    MERGES,
    NEXT_ITERATIONS,
    PARTS,
    REF_ASSIGNS,
    SCALINGS,
    SELECTS,
    SIZES,
    SWITCHES,
    VARIABLES,
)
from bn_graph.graphs.protos import TensorProto

__all__ = [
    "Choice",
    "Leaf",
    "array",
    "branches",
    "choice",
    "constant",
    "constant_node",
    "few_integers",
    "has_no_content",
    "is_filled",
    "leaves",
    "predicate",
    "strip",
    "truth",
    "variable",
]

_NUMPY = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    19: np.float16,
}
_LISTS = {1: "float_val", 2: "double_val", 3: "int_val", 4: "int_val", 5: "int_val", 6: "int_val", 9: "int64_val"}
_LISTS |= {10: "bool_val"}
_PASSED_ON = FORWARDS | SWITCHES
_MOST_VALUES = 1 << 24
_LARGEST = 1 << 40  # values of a tensor; NumPy has another limit, beyond that
_MOST_DIMENSIONS = 32
_MOST_STEPS = 2_000
_MOST_SIZES = 60
_MOST_MIXED = 8
_BOOL = 10

Choice = tuple[int, bool]
"""A switch and how it stands: the number of the node of its predicate (see `predicate`), and that predicate's value."""


class Leaf(NamedTuple):
    """A tensor where a value is made, and the choices that lead to it."""

    ref: Ref
    choices: frozenset[Choice]


def array(proto: TensorProto) -> np.ndarray | None:
    """The values of a TensorProto; None for types and sizes that no statistic has."""
    dtype = _NUMPY.get(proto.dtype)
    if dtype is None or any(dim.size < 0 for dim in proto.tensor_shape.dim):
        return None
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = math.prod(shape)
    if len(shape) > _MOST_DIMENSIONS or count > _LARGEST:
        return None
    if proto.tensor_content:
        if len(proto.tensor_content) != count * np.dtype(dtype).itemsize:
            return None
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    if proto.dtype == 19:
        values = np.array(proto.half_val, np.uint16).view(np.float16)
    else:
        values = np.array(getattr(proto, _LISTS[proto.dtype]), dtype)
    if len(values) == count:
        return values.reshape(shape)
    if len(values) < 2:  # what is left out repeats the last value; a single one takes no room, however large the shape
        return np.broadcast_to(values[0] if len(values) else dtype(0), shape)
    if not len(values) <= count <= _MOST_VALUES:
        return None
    return np.concatenate([values, np.full(count - len(values), values[-1], dtype)]).reshape(shape)


def constant(graph: Graph, ref: Ref) -> np.ndarray | None:
    """The value of a ``Const`` or ``Fill`` of constants, through whatever hands it on; None for anything else."""
    node, _ = strip(graph, ref)
    if graph.ops[node] == "Const":
        return array(graph.protos[node].attr["value"].tensor)
    if graph.ops[node] == "Fill" and len(graph.inputs[node]) == 2:
        dims, value = (constant_node(graph, source) for source in graph.inputs[node])
        sizes = None if dims is None or value is None or value.size != 1 else few_integers(dims)
        if sizes is not None and min(sizes, default=0) >= 0 and math.prod(sizes) <= _LARGEST:
            return np.broadcast_to(value.reshape(()), sizes)
    return None


def few_integers(value: np.ndarray | None) -> tuple[int, ...] | None:
    """A constant list of axes or sizes; None of one that is unknown, or no such list."""
    if value is None or value.dtype.kind not in "iu" or value.size > _MOST_DIMENSIONS:
        return None
    return tuple(int(number) for number in value.reshape(-1))


def is_filled(value: np.ndarray, number: float) -> bool:
    """Whether every element is the same number; of one that was broadcast from a single value, that is looked at."""
    looked_at = value if any(value.strides) else value[(slice(0, 1),) * value.ndim]
    return bool((looked_at == number).all())


def has_no_content(graph: Graph, node: int) -> bool:
    """Whether a ``Const`` has a shape and no values: TensorFlow writes zeros so, and TF.js what is in another file."""
    tensor = graph.protos[node].attr["value"].tensor
    field = "half_val" if tensor.dtype == 19 else _LISTS.get(tensor.dtype)
    return (
        not tensor.tensor_content and bool(tensor.tensor_shape.dim) and field is not None and not getattr(tensor, field)
    )


def constant_node(graph: Graph, ref: Ref) -> np.ndarray | None:
    """As `constant`, of a ``Const`` only."""
    node, _ = strip(graph, ref)
    return array(graph.protos[node].attr["value"].tensor) if graph.ops[node] == "Const" else None


def strip(graph: Graph, ref: Ref) -> Ref:
    """`ref` without the identities, casts, reshapes, switches and calls with one outcome that it went through."""
    ops, inputs, calls = graph.ops, graph.inputs, graph.calls
    for _ in range(_MOST_STEPS):
        node, port = ref
        if node in calls:
            outcomes = [call.results for call in calls[node] if call.part != "condition"]
            if len(outcomes) != 1 or port >= len(outcomes[0]):
                return ref
            ref = outcomes[0][port]
        elif ops[node] in _PASSED_ON and inputs[node]:
            ref = inputs[node][0]
        elif ops[node] == "IdentityN" and port < len(inputs[node]):
            ref = inputs[node][port]
        else:
            return ref
    return ref


def variable(graph: Graph, ref: Ref) -> int | None:
    """The variable whose handle, reference or value a tensor is; the first part of a partitioned one."""
    for _ in range(_MOST_STEPS):
        node, _ = strip(graph, ref)
        if graph.ops[node] in VARIABLES:
            return node
        # An assign to a ref variable returns the reference; a partitioned variable is put together from its parts.
        if (graph.ops[node] not in REF_ASSIGNS and graph.ops[node] != "ConcatV2") or not graph.inputs[node]:
            return None
        ref = graph.inputs[node][0]
    return None


def predicate(graph: Graph, ref: Ref) -> Choice | None:
    """The node that decides a switch whose predicate is `ref`, and its value where the predicate is True."""
    wanted = True
    for _ in range(_MOST_STEPS):
        node, _ = strip(graph, ref)
        if graph.ops[node] != "LogicalNot" or not graph.inputs[node]:
            return node, wanted
        ref, wanted = graph.inputs[node][0], not wanted
    return None


def choice(graph: Graph, ref: Ref, taken: bool) -> Choice | None:
    """The choice under which predicate `ref` is `taken`."""
    decided = predicate(graph, ref)
    return None if decided is None else (decided[0], decided[1] == taken)


def truth(graph: Graph, node: int, feeds: Mapping[int, bool | float]) -> bool | None:
    """The value of a predicate, so far as constants and `feeds` tell it. (A placeholder's default may be fed over.)"""
    value = _evaluated(graph, (node, 0), feeds, 0)
    return None if value is None else bool(value)


def _evaluated(graph: Graph, ref: Ref, feeds: Mapping[int, bool | float], depth: int) -> bool | float | None:
    node, _ = strip(graph, ref)
    if depth > 20:
        return None
    if node in feeds:
        return feeds[node]
    value = constant_node(graph, (node, 0))
    if value is not None:
        return value.reshape(-1)[0].item() if value.size == 1 else None
    sources = graph.inputs[node]
    operation = _PREDICATES.get((graph.ops[node], len(sources)))
    if operation is None:
        return None
    values = [_evaluated(graph, source, feeds, depth + 1) for source in sources]
    if graph.ops[node] == "LogicalAnd" and False in values:
        return False
    if graph.ops[node] == "LogicalOr" and True in values:
        return True
    return None if None in values else operation(*values)


_PREDICATES: dict[tuple[str, int], Callable] = {
    ("LogicalAnd", 2): lambda a, b: a and b,
    ("LogicalOr", 2): lambda a, b: a or b,
    ("LogicalNot", 1): lambda a: not a,
    ("Equal", 2): lambda a, b: a == b,
    ("NotEqual", 2): lambda a, b: a != b,
    ("Greater", 2): lambda a, b: a > b,
    ("GreaterEqual", 2): lambda a, b: a >= b,
    ("Less", 2): lambda a, b: a < b,
    ("LessEqual", 2): lambda a, b: a <= b,
}


def leaves(
    graph: Graph, start: Ref, is_leaf: Callable[[Ref], bool], branches: Sequence[frozenset[Choice]] | None = None
) -> list[Leaf]:
    """The tensors where the value of `start` may be made.

    Args:
        graph: the graph.
        start: a tensor.
        is_leaf: of a tensor, whether to stop there though more lies above.
        branches: from `branches`; without them, only the choices between `start` and a leaf are told.

    Returns:
        Leaves, each once for each set of choices that leads to it; variables' own nodes for what is read from one.
    """
    found, seen = [], set()
    pending = [Leaf(start, frozenset())]
    while pending and len(seen) < _MOST_STEPS:
        leaf = pending.pop()
        if leaf in seen or graph.ops[leaf.ref[0]] == ABSENT:
            continue
        seen.add(leaf)
        above = None if is_leaf(leaf.ref) else _above(graph, leaf)
        if above is None:
            around = frozenset() if branches is None else branches[leaf.ref[0]]
            found.append(leaf._replace(choices=leaf.choices | around))
        else:
            pending.extend(above)
    return found


def _above(graph: Graph, leaf: Leaf) -> list[Leaf] | None:
    """One step up from a leaf; None where its value is made."""
    (node, port), choices = leaf
    op, sources = graph.ops[node], graph.inputs[node]
    if node in graph.calls:
        return _outcomes(graph, leaf)
    if op in SWITCHES and len(sources) == 2:
        taken = choice(graph, sources[1], port == 1)
        return [Leaf(sources[0], choices | {taken} if taken else choices)]
    if op in MERGES:
        return [Leaf(source, choices) for source in sources]
    if op in SELECTS and len(sources) == 3:
        sides = [(sources[1], choice(graph, sources[0], True)), (sources[2], choice(graph, sources[0], False))]
        return [Leaf(source, choices | {taken} if taken else choices) for source, taken in sides]
    if op in FORWARDS or op in REF_ASSIGNS:
        return [Leaf(source, choices) for source in sources[:1]]
    if op == "IdentityN":
        return [Leaf(source, choices) for source in sources[port : port + 1]]
    if op == "ConcatV2" and _are_parts(graph, sources[:-1]):
        return [Leaf(source, choices) for source in sources[:-1]]
    if op in SCALINGS or op in CLIPS:
        return _scaled(graph, leaf)
    return (_weighted(graph, leaf) or _mixed(graph, leaf)) if op in ("Add", "AddV2") else None


def _mixed(graph: Graph, leaf: Leaf) -> list[Leaf] | None:
    """Past w₀·a + w₁·b + …, whose weights are parts of a softmax, as switchable normalization mixes statistics."""
    found, pending = [], [leaf.ref]
    for _ in range(2 * _MOST_MIXED):
        if not pending:
            return found
        node, _ = strip(graph, pending.pop())
        op, sources = graph.ops[node], graph.inputs[node]
        mixed = [source for source in sources if not _is_part_of_softmax(graph, source)]
        if op in ("Add", "AddV2"):
            pending.extend(sources)
        elif op == "Mul" and len(mixed) == len(sources) - 1 == 1:
            found.append(Leaf(mixed[0], leaf.choices))
        else:
            break
    return None


def _is_part_of_softmax(graph: Graph, ref: Ref) -> bool:
    node, _ = strip(graph, ref)
    if graph.ops[node] not in PARTS or not graph.inputs[node]:
        return False
    return any(graph.ops[strip(graph, source)[0]] == "Softmax" for source in graph.inputs[node])


def _weighted(graph: Graph, leaf: Leaf) -> list[Leaf] | None:
    """Past flag·a + (1 − flag)·b, where a bool was cast to be the flag."""
    terms = [graph.inputs[node] if graph.ops[node] == "Mul" else [] for node, _ in graph.inputs[leaf.ref[0]]]
    for one, other in itertools.permutations(terms, 2):
        for (flag, a), (rest, b) in itertools.product(itertools.permutations(one, 2), itertools.permutations(other, 2)):
            predicate = _cast_bool(graph, flag)
            if predicate is not None and graph.ops[rest[0]] == "Sub":
                whole, subtracted = graph.inputs[rest[0]][:2]
                one = constant_node(graph, whole)
                if _cast_bool(graph, subtracted) == predicate and one is not None and one.size == 1 and one == 1:
                    sides = ((a, True), (b, False))
                    return [Leaf(side, leaf.choices | {choice(graph, predicate, taken)}) for side, taken in sides]
    return None


def _cast_bool(graph: Graph, ref: Ref) -> Ref | None:
    """The bool tensor that was cast to a number."""
    node, _ = ref
    is_cast = graph.ops[node] == "Cast" and graph.protos[node].attr["SrcT"].type == _BOOL
    return graph.inputs[node][0] if is_cast and graph.inputs[node] else None


def _are_parts(graph: Graph, sources: Sequence[Ref]) -> bool:
    """Whether these are the parts of a partitioned variable."""
    return bool(sources) and all(graph.ops[strip(graph, source)[0]] in VARIABLES for source in sources)


def _outcomes(graph: Graph, leaf: Leaf) -> list[Leaf]:
    (node, port), choices = leaf
    above = []
    for call in graph.calls[node]:
        if call.part == "condition" or port >= len(call.results):
            continue
        taken = choice(graph, graph.inputs[node][0], call.part == "then") if call.part in ("then", "else") else None
        above.append(Leaf(call.results[port], choices | {taken} if taken else choices))
        if call.part == "body" and port < len(graph.inputs[node]):
            above.append(Leaf(graph.inputs[node][port], choices))
    return above


def _scaled(graph: Graph, leaf: Leaf) -> list[Leaf] | None:
    """Past a factor that is constant or computed from sizes alone, such as Bessel's m/(m − 1)."""
    sources = graph.inputs[leaf.ref[0]]
    if graph.ops[leaf.ref[0]] in ("Relu", "Abs"):
        return [Leaf(source, leaf.choices) for source in sources[:1]]
    if len(sources) != 2:
        return None
    kept = [source for source in sources if not _is_of_sizes(graph, source)]
    if not kept:  # in a frozen graph, sums for each channel and their count
        values = [(source, constant_node(graph, source)) for source in sources]
        kept = [source for source, value in values if value is not None and value.size > 1]
    return [Leaf(kept[0], leaf.choices)] if len(kept) == 1 else None


def _is_of_sizes(graph: Graph, ref: Ref) -> bool:
    """Whether a tensor is computed from constants and shapes alone."""

    def sources(node: int) -> list[int]:
        return [source for source, _ in graph.inputs[node]] if graph.ops[node] in COUNTING else []

    above = list(itertools.islice(walk([ref[0]], sources), _MOST_SIZES))
    return len(above) < _MOST_SIZES and all(graph.ops[node] in SIZES | COUNTING for node in above)


def branches(graph: Graph) -> list[frozenset[Choice]]:
    """Of each node, the choices under which it runs, as the switches above it and the calls around it tell.

    A node runs where all its inputs do; what a ``Merge`` joins, it no longer depends on.
    """
    nowhere: frozenset[Choice] = frozenset()
    found = [nowhere] * len(graph.names)
    switches = set(of_types(graph, SWITCHES))
    if not switches and CONDS.isdisjoint(graph.by_op):
        return found
    around: dict[Caller | None, frozenset[Choice]] = {None: nowhere}
    # Most nodes have the choices of their inputs: one set for all of them, and little to join.
    shared = {nowhere: nowhere}
    merges = set(of_types(graph, MERGES))
    inputs, controls, callers = graph.inputs, graph.controls, graph.callers
    for node in _in_order(graph):
        choices = nowhere if callers[node] is None else _around(graph, callers[node], around, found)
        if node in merges:
            arriving = [_arriving(graph, ref, found) for ref in inputs[node]]
            choices |= frozenset.intersection(*arriving) if arriving else nowhere
        else:
            for ref in inputs[node]:
                source = ref[0]
                more = _arriving(graph, ref, found) if source in switches else found[source]
                if more and more is not choices:
                    choices = choices | more if choices else more
            for source in controls[node]:
                more = found[source]
                if more and more is not choices:
                    choices = choices | more if choices else more
        if choices and len(choices) <= _MOST_CHOICES:
            found[node] = shared.setdefault(choices, choices)
    return found


_MOST_CHOICES = 16


def _arriving(graph: Graph, ref: Ref, found: list[frozenset[Choice]]) -> frozenset[Choice]:
    """The choices under which a tensor is there."""
    node, port = ref
    if graph.ops[node] not in SWITCHES or len(graph.inputs[node]) != 2:
        return found[node]
    taken = choice(graph, graph.inputs[node][1], port == 1)
    return found[node] | {taken} if taken else found[node]


def _around(
    graph: Graph,
    caller: Caller | None,
    known: dict[Caller | None, frozenset[Choice]],
    found: list[frozenset[Choice]],
) -> frozenset[Choice]:
    """The choices under which a part that a node calls runs."""
    chain = []
    while caller not in known:
        chain.append(caller)
        caller = graph.callers[caller[0]]
    for node, part in reversed(chain):
        taken = choice(graph, graph.inputs[node][0], part == "then") if part in ("then", "else") else None
        known[node, part] = known[graph.callers[node]] | found[node] | ({taken} if taken else set())
    return known[chain[0]] if chain else known[caller]


def _in_order(graph: Graph) -> Iterator[int]:
    """Nodes after their inputs and after those that call them, as they mostly stand in files.

    The edges that close loops, from a ``NextIteration`` to a ``Merge``, don't count.
    """
    ops, inputs, controls, callers = graph.ops, graph.inputs, graph.controls, graph.callers
    done, entered = bytearray(len(ops)), bytearray(len(ops))
    for start in range(len(ops)):
        pending = [start]
        while pending:
            node = pending.pop()
            if done[node]:
                continue
            if not entered[node]:
                entered[node] = True
                waiting = [source for source, _ in inputs[node] if not entered[source]]
                if controls[node]:
                    waiting += [source for source in controls[node] if not entered[source]]
                if callers[node] is not None and not entered[callers[node][0]]:
                    waiting.append(callers[node][0])
                if waiting and ops[node] in MERGES:
                    waiting = [source for source in waiting if ops[source] not in NEXT_ITERATIONS]
                if waiting:
                    pending.append(node)
                    pending += waiting
                    continue
            done[node] = True  # what it still waits for waits for it
            yield node
