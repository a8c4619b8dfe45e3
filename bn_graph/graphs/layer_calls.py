"""Which tensors a graph's batch norm layers normalize: each call's inputs, averaged axes and two statistics.

This library's layers leave a note of each call in the graph (collection ``bn_graph_layers``). For everybody else's the
update ops are read backwards, from the assign to a statistic up to where the batch's mean or variance is made:

* port 1 or 2 of a ``FusedBatchNorm`` (V1 to V3) in training mode: the mean, the variance of its input 0;
* ``Mean`` of x, ``Mean`` of a squared difference of x, as ``tf.nn.moments`` and most people write them;
* ``shift + Mean(x − shift)`` and ``Mean((x − shift)²) − square``, as ``tf.nn.moments`` did before TensorFlow 1.5.

On the way lie the averages' arithmetic, casts and reshapes, both kinds of ``cond``, function bodies, and other variables
(``biased`` of zero-debiasing; statistics that an ExponentialMovingAverage shadows). A mean and a variance of one x over
the same axes make a call. Only protos are read; nothing runs.

Layers whose statistics neither of these finds are looked for by the audit (`audited_calls`): those built for inference,
which nothing updates, and batch statistics written in yet other ways.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from bn_graph.graphs.audited_calls import AuditedCall, find_audited_calls
from bn_graph.graphs.notes import LAYERS
from bn_graph.tf1 import tf

__all__ = [
    "FUSED",
    "INSIDE",
    "REF_ASSIGNS",
    "RESOURCE_ASSIGNS",
    "FlatGraph",
    "FlatNode",
    "LayerCall",
    "TensorRef",
    "find_calls",
    "flatten",
    "normalizes_by_batch",
    "only_for_inference",
    "upstream_data",
]

INSIDE = "//"
"""Stands between a calling node, its function's role and a node of that body: ``cond//then_branch//Mean``."""

_CALLING = {"If": 1, "StatelessIf": 1, "PartitionedCall": 0, "StatefulPartitionedCall": 0}
"""Calling ops, and which input is their functions' first argument."""

_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
REF_ASSIGNS = frozenset({"Assign", "AssignAdd", "AssignSub"})
RESOURCE_ASSIGNS = frozenset({"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"})
_ASSIGNS = REF_ASSIGNS | RESOURCE_ASSIGNS
FUSED = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
_PORTS = {"batch_mean": 1, "batch_variance": 2, "output_true": 1}
"""Ports that a function body names; every other output that matters here is port 0 or the index of a list."""

_FORWARDS = frozenset(
    {"Identity", "Switch", "RefSwitch", "RefIdentity", "Enter", "RefEnter", "Exit", "StopGradient", "Cast"}
    | {"Squeeze", "Reshape", "ExpandDims", "Snapshot", "PreventGradient", "CheckNumerics", "ReadVariableOp"}
)
"""One value in (input 0), the same out, give or take dtype and dimensions of size 1."""
_RESHAPES = frozenset({"Squeeze", "Reshape", "ExpandDims"})
_ARITHMETIC = frozenset({"Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Div", "DivNoNan", "Neg"})
_SELECTIONS = frozenset({"Merge", "RefMerge", "Select", "SelectV2"})
_PASSED = _ARITHMETIC | _SELECTIONS | _ASSIGNS | {"Maximum", "Relu"}

TensorRef = tuple[str, int]
"""A tensor: the name of its node in a `FlatGraph`, and the port."""


class FlatNode(NamedTuple):
    """A node of a `FlatGraph`.

    Attributes:
        op: its type.
        inputs: data inputs only.
        proto: the NodeDef it stands for, in the graph or in a function.
        outcomes: for a calling node, by port, what each function it may call returns there; else empty.
    """

    op: str
    inputs: list[TensorRef]
    proto: tf.NodeDef
    outcomes: dict[int, list[TensorRef]]


FlatGraph = dict[str, FlatNode]
"""Nodes by name, those of called functions included, each named by the path to it (`INSIDE`)."""


class LayerCall(NamedTuple):
    """One place where a batch norm layer normalizes.

    Attributes:
        layer: the layer's name: the scope of its statistics. Calls that share the statistics share it.
        inputs: the tensor that is normalized.
        axes: dimensions of `inputs` that are averaged over.
        mean, variance: the statistics' variables, by the names of their ops.
        updates: whether some update op takes this call's batch into the statistics.
        reductions: the nodes that compute the batch's statistics (``Mean`` or fused kernel).
        replaced: batch statistics that later ops normalize by, as (tensor, ``"mean"`` or ``"variance"``, shift): the
            tensor is the mean less `shift` where that is not None. Empty for a noted call.
        outputs: the normalized tensor, where a note or the note's scope tells it, else None.
        parameters: ``epsilon``, and ``gamma`` and ``beta`` (names of variables' ops, or None), of a noted call.
    """

    layer: str
    inputs: TensorRef
    axes: tuple[int, ...]
    mean: str
    variance: str
    updates: bool
    reductions: frozenset[str]
    replaced: tuple[tuple[TensorRef, str, TensorRef | None], ...] = ()
    outputs: tuple[TensorRef, ...] = ()
    parameters: dict | None = None


class _Statistic(NamedTuple):
    """What an update takes in: the `kind` of batch statistic `tensor`, of one of `inputs`, over `axes`."""

    kind: str
    tensor: TensorRef
    inputs: tuple[TensorRef, ...]
    axes: tuple[int, ...]
    reductions: frozenset[str]
    shifted: tuple[TensorRef, TensorRef] | None = None  # the part without the shift, and the shift


def flatten(graph_def: tf.GraphDef) -> FlatGraph:
    """All nodes of `graph_def`, with the bodies of the functions that ``If`` and ``PartitionedCall`` nodes call in place.

    Args:
        graph_def: is referred to, not copied. Loops' bodies are left out.

    Returns:
        `FlatGraph`. An argument of a function is resolved to what the caller hands in.

    Example:
        >>> from bn_graph.graphs import layer_calls
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     _ = tf.negative(tf.constant(1.0, name="one"), name="minus")
        ...     layer_calls.flatten(graph.as_graph_def())["minus"].inputs
        [('one', 0)]
    """
    functions = {function.signature.name: function for function in graph_def.library.function}
    flat = {}
    bodies = [("", graph_def.node, {})]
    while bodies:
        prefix, nodes, arguments = bodies.pop()
        for node in nodes:
            inputs = [_reference(name, prefix, arguments) for name in node.input if not name.startswith("^")]
            flat[prefix + node.name] = FlatNode(node.op, inputs, node, {})
            if prefix.count(INSIDE) < 20:  # a function may call itself
                bodies.extend(_bodies_called(flat, prefix + node.name, functions))
    return flat


def _reference(name: str, prefix: str, arguments: dict[str, TensorRef]) -> TensorRef:
    node, *rest = name.split(":")
    if prefix and node in arguments and len(rest) < 2:
        return arguments[node]
    port = int(rest[-1]) if rest else 0
    return prefix + node, _PORTS.get(rest[0], port) if len(rest) == 2 else port


def _bodies_called(flat: FlatGraph, name: str, functions: dict) -> Iterator[tuple]:
    """For each function that node `name` may call: prefix, nodes and arguments; fills the node's outcomes."""
    node = flat[name]
    if node.op not in _CALLING:
        return
    given = node.inputs[_CALLING[node.op] :]
    for role in ("then_branch", "else_branch", "f"):
        function = functions.get(node.proto.attr[role].func.name) if role in node.proto.attr else None
        if function is None:
            continue
        prefix = f"{name}{INSIDE}{role}{INSIDE}"
        arguments = dict(zip((argument.name for argument in function.signature.input_arg), given, strict=False))
        for port, output in enumerate(function.signature.output_arg):
            node.outcomes.setdefault(port, []).append(_reference(function.ret[output.name], prefix, arguments))
        yield prefix, function.node_def, arguments


def upstream_data(
    flat: FlatGraph, start: TensorRef, stop: TensorRef | None = None, *, past_choices: bool = True
) -> set[str]:
    """Names of the nodes from which data flows into tensor `start`, its own included.

    Args:
        flat: the graph.
        start: a tensor.
        stop: a tensor beyond which not to go.
        past_choices: whether to go on beyond a ``cond`` or ``where``, of which a run takes one side only.

    Example:
        >>> from bn_graph.graphs import layer_calls
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     _ = tf.negative(tf.constant(1.0, name="one"), name="minus")
        ...     sorted(layer_calls.upstream_data(layer_calls.flatten(graph.as_graph_def()), ("minus", 0)))
        ['minus', 'one']
    """
    reached, seen, pending = set(), {stop}, [start]
    while pending:
        tensor = pending.pop()
        name, port = tensor
        if tensor in seen or name not in flat:
            continue
        seen.add(tensor)
        reached.add(name)
        node = flat[name]
        outcomes = node.outcomes.get(port, [])
        if not past_choices and (node.op in _SELECTIONS or len(outcomes) > 1):
            continue
        # What a call returns depends on what its body makes of the arguments, and on the predicate.
        pending.extend([*outcomes, *node.inputs[:1]] if outcomes else node.inputs)
    return reached


def find_calls(graph: tf.Graph) -> list[LayerCall]:
    """Every call of a batch norm layer whose inputs can be told, in the order of the graph.

    Args:
        graph: of this library or of anybody; a meta graph that was imported will do. It is not changed.

    Returns:
        The calls noted by this library's layers, with or without updates, then those found from update ops, then those
        that only the audit finds, without updates (`only_for_inference`) or with.

    Source: this reads what ``tf.layers.batch_normalization``, contrib, Keras and hand-written wrappers (r2rt,
    ``batch_norm_wrapper``) leave in a graph.

    Example:
        >>> from bn_graph.graphs import layer_calls
        >>> from bn_graph.tf1 import legacy_layers, tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 2], name="x")
        ...     _ = legacy_layers().batch_normalization(x, training=True, name="bn1")
        ...     [(call.layer, call.inputs, call.axes) for call in layer_calls.find_calls(graph)]
        [('bn1', ('x', 0), (0,))]
    """
    flat = flatten(graph.as_graph_def())
    assigned = _assigned_values(flat)
    noted = list(_noted_calls(graph, flat, assigned))
    scopes = tuple(f"{call.layer}/" for call in noted)
    others = {
        name: values
        for name, values in assigned.items()
        if not (scopes and name.startswith(scopes)) and _is_vector(flat[name].proto)
    }
    calls = _named_apart(noted + _paired(flat, _statistics_by_variable(flat, assigned, others)))
    return calls + _audited_calls(graph, flat, calls, scopes)


def _audited_calls(
    graph: tf.Graph, flat: FlatGraph, calls: Sequence[LayerCall], scopes: tuple[str, ...]
) -> list[LayerCall]:
    """Those that only the audit finds, with names that are not among those of `calls`."""
    known = {name for call in calls for name in (call.mean, call.variance)}
    audited = [_audited(call) for call in find_audited_calls(graph, known) if not call.mean.startswith(scopes)]
    audited = _named_apart([call for call in audited if call.reductions <= flat.keys()])
    taken = {call.layer for call in calls}
    return [call._replace(layer=call.mean) if call.layer in taken else call for call in audited]


def only_for_inference(calls: Iterable[LayerCall]) -> list[str]:
    """The layers, other than this library's, that were built for inference: no batch goes into their statistics.

    Their weights may have been trained by the statistics as they are, and then belong to them. So they are to be
    recalibrated only where somebody says so.

    Example:
        >>> from bn_graph.graphs import layer_calls
        >>> from bn_graph.tf1 import legacy_layers, tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 2], name="x")
        ...     x = legacy_layers().batch_normalization(x, training=True, name="bn1")
        ...     x = legacy_layers().batch_normalization(x, training=False, name="bn2")
        ...     layer_calls.only_for_inference(layer_calls.find_calls(graph))
        ['bn2']
    """
    by_layer: dict[str, list[LayerCall]] = {}
    for call in calls:
        by_layer.setdefault(call.layer, []).append(call)
    return [
        layer
        for layer, of_layer in by_layer.items()
        if not any(call.updates or call.parameters is not None for call in of_layer)
    ]


def _audited(call: AuditedCall) -> LayerCall:
    return LayerCall(
        layer=_common_scope(call.mean, call.variance),
        inputs=call.inputs,
        axes=call.axes,
        mean=call.mean,
        variance=call.variance,
        updates=call.updates,
        reductions=frozenset(name for (name, _), _ in call.statistics),
        replaced=tuple((tensor, kind, None) for tensor, kind in call.statistics),
    )


def _named_apart(calls: list[LayerCall]) -> list[LayerCall]:
    """Where one scope holds the statistics of several layers, each goes by the name of its mean."""
    means = {}
    for call in calls:
        means.setdefault(call.layer, set()).add(call.mean)
    return [call._replace(layer=call.mean) if len(means[call.layer]) > 1 else call for call in calls]


def _is_vector(variable: tf.NodeDef) -> bool:
    shape = variable.attr["shape"].shape
    return shape.unknown_rank or len(shape.dim) > 0  # averages of losses are scalars


def _variable_behind(flat: FlatGraph, tensor: TensorRef) -> str | None:
    """The variable whose handle, reference or value `tensor` is."""
    for _ in range(len(flat)):
        node = flat.get(tensor[0])
        if node is None:
            return None
        if node.op in _VARIABLES:
            return tensor[0]
        if node.op not in _FORWARDS or node.op in _RESHAPES or not node.inputs:
            return None
        tensor = node.inputs[0]
    return None


def _assigned_values(flat: FlatGraph) -> dict[str, list[TensorRef]]:
    """For each variable, what is assigned to it, added or subtracted, other than by its initializer."""
    assigned = {}
    for name, node in flat.items():
        if node.op not in _ASSIGNS or len(node.inputs) < 2:
            continue
        variable = _variable_behind(flat, node.inputs[0])
        if variable is not None and name != f"{variable}/Assign":
            assigned.setdefault(variable, []).append(node.inputs[1])
    return assigned


# --- This library's notes ---------------------------------------------------------------------------------------------


def _noted_calls(graph: tf.Graph, flat: FlatGraph, assigned: dict[str, list[TensorRef]]) -> Iterator[LayerCall]:
    for text in graph.get_collection(LAYERS):
        note = json.loads(tf.compat.as_str(text))
        inputs = _reference(note["inputs"], "", {})
        if not {inputs[0], note["moving_mean"], note["moving_variance"]} <= flat.keys():
            continue  # imported under another scope: the names are not this graph's
        rank = graph.get_tensor_by_name(note["inputs"]).shape.rank
        updates = any(inputs[0] in upstream_data(flat, value) for value in assigned.get(note["moving_mean"], []))
        outputs = _noted_outputs(flat, note, inputs)
        epsilon = note.get("epsilon") or _epsilon(flat, outputs, inputs)
        names = {key: note.get(key, f"{note['scope']}/{key}") for key in ("gamma", "beta")}
        yield LayerCall(
            layer=note["scope"] or note["moving_mean"],
            inputs=inputs,
            axes=tuple(axis for axis in range(rank) if axis != note["axis"]),
            mean=note["moving_mean"],
            variance=note["moving_variance"],
            updates=updates,
            reductions=frozenset(),
            outputs=outputs,
            parameters={"axis": note["axis"], "epsilon": epsilon}
            | {key: name if name in flat else None for key, name in names.items()},
        )


def _noted_outputs(flat: FlatGraph, note: dict, inputs: TensorRef) -> tuple[TensorRef, ...]:
    """The identities named ``outputs`` in which this library's layers end, in the name scope that the note's became."""
    if "outputs" in note:
        return (_reference(note["outputs"], "", {}),)
    leaf = re.escape(note["scope"].rpartition("/")[2])
    ending = re.compile(rf"(^|/){leaf}(_\d+)?/outputs(_\d+)?$")
    return tuple(
        (name, 0)
        for name, node in flat.items()
        if node.op == "Identity" and ending.search(name) and inputs[0] in upstream_data(flat, (name, 0))
    )


def _epsilon(flat: FlatGraph, outputs: Iterable[TensorRef], inputs: TensorRef) -> float | None:
    """What is added to the variance between `inputs` and `outputs`."""
    for output in outputs:
        for name in upstream_data(flat, output, stop=inputs):
            node = flat[name]
            if node.op in FUSED:
                return node.proto.attr["epsilon"].f
            if node.op == "Rsqrt" and flat[node.inputs[0][0]].op in ("Add", "AddV2"):
                added = [_constant(flat, term) for term in flat[node.inputs[0][0]].inputs]
                known = [value for value in added if value is not None]
                if known:
                    return float(known[0])
    return None


def _constant(flat: FlatGraph, tensor: TensorRef):
    """The value of a ``Const``, through identities; None for anything else."""
    node = flat.get(_stripped(flat, tensor)[0])
    return tf.make_ndarray(node.proto.attr["value"].tensor) if node is not None and node.op == "Const" else None


# --- Everybody's update ops -------------------------------------------------------------------------------------------


def _stripped(flat: FlatGraph, tensor: TensorRef) -> TensorRef:
    """`tensor` without the identities, switches and casts that it went through."""
    while (node := flat.get(tensor[0])) is not None and node.op in _FORWARDS - _RESHAPES and node.inputs:
        tensor = node.inputs[0]
    return tensor


def _statistics_by_variable(
    flat: FlatGraph, assigned: dict[str, list[TensorRef]], wanted: Iterable[str]
) -> dict[str, set[_Statistic]]:
    """For each of `wanted` that is moved toward batch statistics: which; without those that only lead to another."""
    found, intermediate = {}, {}
    for variable in wanted:
        statistics, passed = _taken_in(flat, assigned, variable)
        if statistics:
            found[variable] = statistics
            intermediate[variable] = passed
    # `biased` leads to the debiased statistic, and a plain copy of the batch's mean to its moving average. But two
    # that lead to each other (each reads the other) both stay.
    dropped = {
        name
        for variable, passed in intermediate.items()
        for name in passed
        if name in found and variable not in intermediate[name] and found[name] <= found[variable]
    }
    return {name: statistics for name, statistics in found.items() if name not in dropped}


def _taken_in(flat: FlatGraph, assigned: dict[str, list[TensorRef]], variable: str) -> tuple[set[_Statistic], set[str]]:
    """The batch statistics that `variable`'s updates take in, and the other variables on the way to them."""
    found, passed, seen = set(), {variable}, set()
    pending = list(assigned[variable])
    while pending:
        tensor = pending.pop()
        if tensor in seen or tensor[0] not in flat:
            continue
        seen.add(tensor)
        node = flat[tensor[0]]
        statistic = _recognized(flat, tensor)
        if statistic is not None:
            found.add(statistic)
        elif node.op in _VARIABLES:
            if tensor[0] not in passed:
                passed.add(tensor[0])
                pending.extend(assigned.get(tensor[0], []))
        elif tensor[1] in node.outcomes:
            pending.extend(node.outcomes[tensor[1]])
        elif node.op in _FORWARDS:
            pending.extend(node.inputs[:1])
        elif node.op in _PASSED:
            pending.extend(node.inputs)
    return found, passed - {variable}


def _recognized(flat: FlatGraph, tensor: TensorRef) -> _Statistic | None:
    """What batch statistic `tensor` is, if it is made in one of the ways this module's docstring lists."""
    node = flat[tensor[0]]
    if node.op in FUSED:
        return _from_kernel(node, tensor)
    if node.op == "Mean":
        return _from_mean(flat, tensor)
    if node.op in ("Add", "AddV2") and len(node.inputs) == 2:
        return _with_shift(flat, tensor, *node.inputs) or _with_shift(flat, tensor, *reversed(node.inputs))
    if node.op == "Sub":
        return _less_square(flat, tensor, *node.inputs)
    return None


def _from_kernel(node: FlatNode, tensor: TensorRef) -> _Statistic | None:
    if tensor[1] not in (1, 2) or not _trains(node):
        return None
    layout = node.proto.attr["data_format"].s.decode() or "NHWC"
    axes = tuple(place for place, letter in enumerate(layout) if letter != "C")
    kind = "mean" if tensor[1] == 1 else "variance"
    return _Statistic(kind, tensor, (node.inputs[0],), axes, frozenset({tensor[0]}))


def normalizes_by_batch(flat: FlatGraph, name: str) -> bool:
    """Whether a node is a fused kernel in training mode, or the ``Mean`` over the examples of squared deviations.

    Example:
        >>> from bn_graph.graphs import layer_calls
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     mean, variance = tf.nn.moments(tf.placeholder(tf.float32, [None, 2]), [0])
        ...     flat = layer_calls.flatten(graph.as_graph_def())
        >>> [name for name in flat if layer_calls.normalizes_by_batch(flat, name)]
        ['moments/variance']
    """
    node = flat[name]
    if node.op in FUSED:
        return _trains(node)
    statistic = _from_mean(flat, (name, 0)) if node.op == "Mean" else None
    # Averages that leave out the first axis are each example's own: layer and instance normalization.
    return statistic is not None and statistic.kind == "variance" and 0 in statistic.axes


def _trains(node: FlatNode) -> bool:
    """Whether a fused kernel normalizes by the batch; the attribute is left out of a proto where it is True."""
    return "is_training" not in node.proto.attr or node.proto.attr["is_training"].b


def _from_mean(flat: FlatGraph, tensor: TensorRef) -> _Statistic | None:
    node = flat[tensor[0]]
    axes = _constant(flat, node.inputs[1])
    if axes is None:
        return None
    axes = tuple(sorted(int(axis) for axis in axes.reshape(-1)))
    averaged = _stripped(flat, node.inputs[0])
    squared = _squared(flat, averaged)
    if squared is None:
        return _Statistic("mean", tensor, (averaged,), axes, frozenset({tensor[0]}))
    return _Statistic("variance", tensor, tuple(squared), axes, frozenset({tensor[0]}))


def _squared(flat: FlatGraph, tensor: TensorRef) -> list[TensorRef] | None:
    """What `tensor` may be a squared deviation of; None if it is no square."""
    node = flat.get(tensor[0])
    if node is None:
        return None
    if node.op == "SquaredDifference":
        return [_stripped(flat, node.inputs[0]), _stripped(flat, node.inputs[1])]
    is_square = node.op == "Square"
    is_square = is_square or (node.op == "Mul" and _stripped(flat, node.inputs[0]) == _stripped(flat, node.inputs[1]))
    is_square = is_square or (node.op == "Pow" and _constant(flat, node.inputs[1]) == 2)
    if not is_square:
        return None
    base = _stripped(flat, node.inputs[0])
    candidates = [base]
    if base[0] in flat and flat[base[0]].op == "Sub":
        candidates += [_stripped(flat, term) for term in flat[base[0]].inputs]
    return candidates


def _with_shift(flat: FlatGraph, tensor: TensorRef, part: TensorRef, shift: TensorRef) -> _Statistic | None:
    """shift + Mean(x − shift)."""
    rest = _stripped(flat, part)
    if rest[0] not in flat or flat[rest[0]].op != "Mean":
        return None
    mean = _from_mean(flat, rest)
    if mean is None or mean.kind != "mean" or flat[mean.inputs[0][0]].op != "Sub":
        return None
    values, taken_off = flat[mean.inputs[0][0]].inputs
    if _stripped(flat, taken_off) != _stripped(flat, shift):
        return None
    return mean._replace(tensor=tensor, inputs=(_stripped(flat, values),), shifted=(part, shift))


def _less_square(flat: FlatGraph, tensor: TensorRef, whole: TensorRef, square: TensorRef) -> _Statistic | None:
    """Mean((x − shift)²) − Mean(x − shift)², shift 0 included."""
    whole, square = _stripped(flat, whole), _stripped(flat, square)
    if whole[0] not in flat or flat[whole[0]].op != "Mean" or _squared(flat, square) is None:
        return None
    variance = _from_mean(flat, whole)
    if variance is None or variance.kind != "variance":
        return None
    return variance._replace(tensor=tensor)


def _paired(flat: FlatGraph, by_variable: dict[str, set[_Statistic]]) -> list[LayerCall]:
    """A call for each mean that has a variance of the same inputs and axes; of several, the one named most alike."""
    entries = [(name, statistic) for name, statistics in by_variable.items() for statistic in statistics]
    variances = [entry for entry in entries if entry[1].kind == "variance"]
    calls = {}
    for name, mean in entries:
        if mean.kind != "mean":
            continue
        of_same = [
            entry
            for entry in variances
            if entry[1].axes == mean.axes
            and _inputs_of(flat, mean) in {_stripped(flat, tensor) for tensor in entry[1].inputs}
        ]
        if of_same:
            call = _call(flat, name, mean, *max(of_same, key=lambda entry: _likeness(name, mean, *entry)))
            calls[call.mean, call.inputs, call.reductions] = call
    order = {name: place for place, name in enumerate(flat)}
    return sorted(calls.values(), key=lambda call: order[call.mean])


def _inputs_of(flat: FlatGraph, statistic: _Statistic) -> TensorRef:
    return _stripped(flat, statistic.inputs[0])


def _likeness(name: str, mean: _Statistic, other: str, variance: _Statistic) -> tuple[int, int]:
    return (
        len(_shared_start(mean.tensor[0], variance.tensor[0])),
        len(_shared_start(name, other)),
    )


def _shared_start(first: Sequence[str], second: Sequence[str]) -> list[str]:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return [one for one, _ in pairs]


def _call(flat: FlatGraph, name: str, mean: _Statistic, other: str, variance: _Statistic) -> LayerCall:
    replaced = [(mean.tensor, "mean", None), (variance.tensor, "variance", None)]
    if mean.shifted is not None:
        part, shift = mean.shifted
        replaced.append((part, "mean", shift))
    return LayerCall(
        layer=_common_scope(name, other),
        inputs=_inputs_of(flat, mean),
        axes=mean.axes,
        mean=name,
        variance=other,
        updates=True,
        reductions=mean.reductions | variance.reductions,
        replaced=tuple(replaced),
    )


def _common_scope(name: str, other: str) -> str:
    """The scope that both variables are in; the mean's own name where they share none."""
    return "/".join(_shared_start(name.split("/")[:-1], other.split("/")[:-1])) or name
