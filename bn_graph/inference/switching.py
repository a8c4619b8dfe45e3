"""A copy of a graph in which every batch norm layer normalizes by its moving statistics, whatever its switch says.

How a call is switched depends on how it was built:

* a call of this library's layers: its outputs are computed anew, gamma·(x − moving mean)/√(moving variance + ε) + beta;
* a fused kernel in training mode: ``is_training`` becomes False, and the kernel is given the statistics' variables;
* a kernel or moments inside a branch function (cond v2): the calling ``If`` takes its other branch either way;
* batch moments in the graph itself: what reads them reads the statistics' variables instead.

Nothing in the copy assigns a variable. The graph itself is not touched, and may be finalized.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from bn_graph.graphs.calls import BatchTensor, FoundCalls, LayerCall, shape_of, tensor_name
from bn_graph.graphs.graph import Graph, Ref, build, walk
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import mode_switches, value_sources
from bn_graph.graphs.ops import ASSIGNS, FUSED, MERGES, REF_ASSIGNS, SELECTS
from bn_graph.graphs.statistics import Kind, batch_variances, is_training_kernel
from bn_graph.layers.moments import normalize
from bn_graph.tf1 import tf

__all__ = ["Switched", "by_moving_statistics", "splice", "still_by_batch", "values_above"]


class Switched(NamedTuple):
    """A rewritten graph.

    Attributes:
        graph_def: all nodes of the graph, and those that were added. Names are the graph's.
        replacements: for each tensor that another one replaces, by name with port, that other's name.
        unsupported: layers that could not be switched, with the reason.
    """

    graph_def: tf.GraphDef
    replacements: dict[str, str]
    unsupported: dict[str, str]


class _Unsupported(Exception):
    """The reason why a call can't be made to normalize by its moving statistics."""


class _Copy(NamedTuple):
    """The graph, the copy that is rewritten, the model of that copy, and what replaces what in it."""

    live: tf.Graph
    graph_def: tf.GraphDef
    graph: Graph
    replacements: dict[str, str]

    def name(self, ref: Ref) -> str:
        """A tensor's name."""
        return tensor_name(self.graph, ref)


def by_moving_statistics(live: tf.Graph, found: FoundCalls) -> Switched:
    """Rewrites a copy of a graph so that its layers normalize by their moving statistics.

    Args:
        live: the graph; it is not changed.
        found: from `calls.find_calls` of this graph.

    Returns:
        `Switched`. Layers in its ``unsupported`` normalize as they did, by the batch or by their switch.

    Example:
        >>> import bn_graph
        >>> from bn_graph.graphs.calls import find_calls
        >>> from bn_graph.inference import switching
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 1], name="x")
        ...     y = bn_graph.batch_norm_wrapper(x, is_training=True, name="bn1")
        ...     switched = switching.by_moving_statistics(graph, find_calls(graph))
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     tf.import_graph_def(switched.graph_def, name="")
        ...     _ = session.run([f"bn1/{name}/Assign" for name in ("gamma", "beta", "moving_mean", "moving_variance")])
        ...     session.run(switched.replacements[y.name], {"x:0": [[2.0]]}).round(2)  # by mean 0 and variance 1
        array([[2.]], dtype=float32)
    """
    graph_def = tf.GraphDef()
    graph_def.CopyFrom(found.graph_def)
    for node in graph_def.node:
        node.attr.pop("_output_shapes", None)  # old graphs' are refused by import
    copy = _Copy(live, graph_def, build(graph_def), {})  # numbers nodes as `found` does
    _freeze(graph_def)
    unsupported = {}
    for call in found.calls:
        try:
            _switch(copy, call)
        except _Unsupported as reason:
            unsupported[call.layer] = str(reason)
    _rewire(graph_def, copy.replacements)
    return Switched(graph_def, copy.replacements, unsupported)


def _switch(copy: _Copy, call: LayerCall) -> None:
    nodes = [tensor.ref[0] for tensor in call.batch]
    if call.noted:
        _rebuild_outputs(copy, call)
    elif any(copy.graph.callers[node] is not None for node in nodes):
        _take_other_branch(copy, nodes)
    elif any(copy.graph.ops[node] in FUSED for node in nodes):
        _switch_kernels(copy, call, dict.fromkeys(nodes))
    else:
        for tensor in call.batch:
            _replace_moment(copy, call, tensor)


def still_by_batch(graph: Graph, found: FoundCalls, tensor: Ref) -> list[str]:
    """The layers, or nodes of none of them, whose batch statistics go into `tensor` all the same.

    Args:
        graph: of the rewritten graph.
        found: the calls that were to be switched, of the graph as it was.
        tensor: what must depend on moving statistics only.

    Returns:
        Names; empty if all is well. Of what no layer accounts for, only what is used in any case: a switch may turn
        the rest off.
    """
    numbers = {name: node for node, name in enumerate(graph.names)}
    layers = {found.graph.names[batch.ref[0]]: call.layer for call in found.calls for batch in call.batch}
    # A branch that is no longer taken is not in the rewritten graph.
    by_node = {numbers[name]: layer for name, layer in layers.items() if name in numbers}
    before = values_above(graph, tensor)
    # A switched layer may have left behind the kernel's node, which now is in inference mode.
    left = {by_node[node] for node in before & by_node.keys() if _is_by_batch(graph, node)}
    always = {node for node, _ in walk([tensor], lambda ref: _without_choices(graph, ref))} - by_node.keys()

    def rank_of(ref: Ref) -> int | None:
        node = found.graph.ids.get(graph.names[ref[0]])
        sizes = None if node is None else shape_of(found.graph, (node, ref[1]))
        return None if sizes is None else len(sizes)

    others = {graph.names[node] for node in batch_variances(graph, always, rank_of)}
    names = {graph.names[node] for node in before}
    left |= {
        layer.name
        for layer in found.layers
        if layer.name in found.unsupported
        and _is_always_by_batch(found.graph, layer)
        and _uses_batch(found, layer, names)
    }
    return sorted(left | {_layer_of(found, name) or name for name in others})


def _is_always_by_batch(graph: Graph, layer: Layer) -> bool:
    """Whether no flag switches a layer to its moving statistics; a recurrent cell reads them for a single example too."""
    return all(graph.ops[node] == "Less" for node in mode_switches([layer]))


def _uses_batch(found: FoundCalls, layer: Layer, names: Collection[str]) -> bool:
    statistics = [source.statistic for place in layer.places for source in place.sources()]
    return any(statistic and found.graph.names[statistic.ref[0]] in names for statistic in statistics)


def _layer_of(found: FoundCalls, name: str) -> str | None:
    """The layer that normalizes by a batch statistic which node `name` computes."""
    return next((layer.name for layer in found.layers if _uses_batch(found, layer, [name])), None)


def values_above(graph: Graph, tensor: Ref) -> set[int]:
    """The nodes from whose values that of `tensor` may be computed, its own included."""
    return {node for node, _ in walk([tensor], lambda ref: value_sources(graph, ref))}


def _is_by_batch(graph: Graph, node: int) -> bool:
    return graph.ops[node] not in FUSED or is_training_kernel(graph, node)


def _without_choices(graph: Graph, ref: Ref) -> Sequence[Ref]:
    """The tensors that a tensor's value comes from, unless a run takes one of them only."""
    node, _ = ref
    is_choice = graph.ops[node] in MERGES | SELECTS or len(graph.calls.get(node, ())) > 1
    return [] if is_choice else value_sources(graph, ref)


def _freeze(graph_def: tf.GraphDef) -> None:
    """Makes each assign but the initializers what it would be without assigning."""
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        for node in nodes:
            if node.op not in ASSIGNS or node.name == f"{node.input[0]}/Assign":
                continue
            # A ref variable's assign returns the reference, and somebody may read it.
            returned = [node.input[0]] if node.op in REF_ASSIGNS else []
            controls = [name for name in node.input if name.startswith("^")]
            dtype = tf.AttrValue.FromString(node.attr["T"].SerializeToString())
            node.ClearField("input")
            node.input.extend(returned + controls)
            node.ClearField("attr")
            node.op = "Identity" if returned else "NoOp"
            if returned:
                node.attr["T"].CopyFrom(dtype)


def _rewire(graph_def: tf.GraphDef, replacements: Mapping[str, str]) -> None:
    """Every reader of a tensor that has a replacement reads that instead."""
    for node in graph_def.node:
        for place, name in enumerate(node.input):
            tensor = name if ":" in name else f"{name}:0"
            if tensor in replacements and not name.startswith("^"):
                node.input[place] = replacements[tensor]


def splice(
    graph_def: tf.GraphDef,
    prefix: str,
    make: Callable[..., tf.Tensor],
    given: Mapping[str, tuple],
    after: str | None = None,
) -> str:
    """Adds the ops that `make` makes to a GraphDef.

    Args:
        graph_def: is added to.
        prefix: of the new nodes' names.
        make: called with one placeholder for each of `given`, by keyword; returns the one tensor wanted.
        given: keyword to (dtype, shape, name of the tensor there).
        after: a node on which the result shall depend, so that it is dead where that one is: both results
            of a cond v1 would reach its Merge otherwise.

    Returns:
        The name of the result there, as ``prefix/name:0``.
    """
    with tf.Graph().as_default() as scratch:
        arguments = {key: tf.placeholder(dtype, shape, name=f"given_{key}") for key, (dtype, shape, _) in given.items()}
        result = tf.identity(make(**arguments), name="result")
    names = {f"given_{key}": name for key, (_, _, name) in given.items()}
    for node in scratch.as_graph_def().node:
        if node.name in names:
            continue
        inputs = [names.get(name, f"{prefix}/{name}") for name in node.input]
        node.ClearField("input")
        node.input.extend(inputs)
        if node.name == result.op.name and after is not None:
            node.input.append(f"^{after}")
        node.name = f"{prefix}/{node.name}"
        graph_def.node.append(node)
    return f"{prefix}/{result.op.name}:0"


def _given(copy: _Copy, ref: Ref) -> tuple:
    """What `splice` is to be given of a tensor; of a variable, its handle or the reference that reads as its value."""
    tensor = copy.live.get_tensor_by_name(copy.name(ref))
    return tensor.dtype.base_dtype, tensor.shape, tensor.name


def _value(given: tf.Tensor, dtype: tf.DType, stored: tf.DType) -> tf.Tensor:
    """The value of a variable whose values are of dtype `stored`."""
    if given.dtype == tf.resource:
        given = tf.raw_ops.ReadVariableOp(resource=given, dtype=stored)
    return tf.cast(given, dtype)


def _stored_dtype(copy: _Copy, variable: int) -> tf.DType:
    return tf.as_dtype(copy.graph.protos[variable].attr["dtype"].type).base_dtype


def _rebuild_outputs(copy: _Copy, call: LayerCall) -> None:
    if call.outputs is None or call.epsilon is None:
        raise _Unsupported("its outputs or epsilon can't be found in the graph")
    epsilon = call.epsilon
    inputs = copy.live.get_tensor_by_name(copy.name(call.inputs))
    dtype = _stored_dtype(copy, call.mean)
    along = [1 if axis in call.axes else -1 for axis in range(inputs.shape.rank)]
    variables = {"mean": call.mean, "variance": call.variance, "gamma": call.gamma, "beta": call.beta}

    def make(x: tf.Tensor, **handles: tf.Tensor) -> tf.Tensor:
        value = {key: tf.reshape(_value(handle, dtype, dtype), along) for key, handle in handles.items()}
        centered = tf.cast(x, dtype) - value["mean"]
        outputs = normalize(centered, value["variance"], value.get("gamma"), value.get("beta"), epsilon)
        return tf.cast(outputs, inputs.dtype)

    given = {key: _given(copy, (variable, 0)) for key, variable in variables.items() if variable is not None}
    given["x"] = _given(copy, call.inputs)
    tensor = copy.name(call.outputs)
    if tensor not in copy.replacements:
        copy.replacements[tensor] = splice(
            copy.graph_def, f"{copy.graph.names[call.outputs[0]]}/population", make, given
        )


def _take_other_branch(copy: _Copy, nodes: Iterable[int]) -> None:
    others = {"then": ("then_branch", "else_branch"), "else": ("else_branch", "then_branch")}
    for node in nodes:
        caller = copy.graph.callers[node]
        while caller is not None and caller[1] not in others:
            node, caller = caller[0], copy.graph.callers[caller[0]]
        if caller is None:
            raise _Unsupported(f"it normalizes inside the function that {copy.graph.names[node]} calls")
        branch, other = others[caller[1]]
        attributes = copy.graph.protos[caller[0]].attr
        attributes[branch].CopyFrom(attributes[other])


def _switch_kernels(copy: _Copy, call: LayerCall, nodes: Iterable[int]) -> None:
    for number in nodes:
        node = copy.graph.protos[number]
        for place, variable in ((3, call.mean), (4, call.variance)):
            stored = _stored_dtype(copy, variable)

            def make(variable: tf.Tensor, stored: tf.DType = stored) -> tf.Tensor:
                return tf.reshape(_value(variable, tf.float32, stored), [-1])

            given = {"variable": _given(copy, (variable, 0))}
            node.input[place] = splice(copy.graph_def, f"{node.name}/population_{place}", make, given)
        node.attr["is_training"].b = False
        if "exponential_avg_factor" in node.attr:
            node.attr["exponential_avg_factor"].f = 1.0


def _replace_moment(copy: _Copy, call: LayerCall, batch: BatchTensor) -> None:
    tensor = copy.live.get_tensor_by_name(copy.name(batch.ref))
    if tensor.name in copy.replacements:
        return
    if tensor.shape.rank is None:
        raise _Unsupported(f"the shape of its batch statistics {tensor.name} is unknown")
    variable = call.mean if batch.kind is Kind.MEAN else call.variance
    stored = _stored_dtype(copy, variable)
    shape = [1 if size == 1 else -1 for size in tensor.shape.as_list()]
    given = {"variable": _given(copy, (variable, 0))}
    if batch.shift is not None:
        given["shift"] = _given(copy, batch.shift)

    def make(variable: tf.Tensor, shift: tf.Tensor | None = None) -> tf.Tensor:
        value = tf.reshape(_value(variable, tensor.dtype, stored), shape)
        return value if shift is None else value - tf.reshape(tf.cast(shift, tensor.dtype), shape)

    name = tensor.op.name
    copy.replacements[tensor.name] = splice(copy.graph_def, f"{name}/population", make, given, after=name)
