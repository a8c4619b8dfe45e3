"""A copy of a graph in which every batch norm layer normalizes by its population statistics, whatever its switch says.

How a layer is turned depends on how it was built:

* a call of this library's layers: its outputs are computed anew, gamma·(x − moving mean)/√(moving variance + ε) + beta;
* a fused kernel in training mode: ``is_training`` becomes False, and the kernel is given the statistics' variables;
* a kernel or moments inside a branch function (cond v2): the calling ``If`` takes its other branch either way;
* batch moments in the graph itself: what reads them reads the statistics' variables instead.

Nothing in the copy assigns a variable. The graph itself is not touched, and may be finalized.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bn_graph.graphs.layer_calls import (
    FUSED,
    INSIDE,
    REF_ASSIGNS,
    RESOURCE_ASSIGNS,
    FlatGraph,
    LayerCall,
    TensorRef,
    flatten,
    normalizes_by_batch,
    upstream_data,
)
from bn_graph.tf1 import tf

__all__ = ["PopulationMode", "in_population_mode", "still_by_batch"]


class PopulationMode(NamedTuple):
    """A rewritten graph.

    Attributes:
        graph_def: all nodes of the graph, and those that were added. Names are the graph's.
        stand_ins: for each tensor that another one stands in for, by name with port, that other's name.
        refused: layers that could not be turned, with the reason.
    """

    graph_def: tf.GraphDef
    stand_ins: dict[str, str]
    refused: dict[str, str]


class _CannotTurn(Exception):
    """The reason why a call can't be made to normalize by its population statistics."""


def in_population_mode(graph: tf.Graph, calls: Sequence[LayerCall]) -> PopulationMode:
    """Rewrites a copy of `graph` so that `calls` normalize by their layers' statistics.

    Args:
        graph: a live graph; it is not changed.
        calls: from `layer_calls.find_calls` of this graph.

    Returns:
        `PopulationMode`. Layers in its ``refused`` normalize as they did, by the batch or by their switch.

    Example:
        >>> import bn_graph
        >>> from bn_graph.graphs import layer_calls
        >>> from bn_graph.inference import switching
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 1], name="x")
        ...     y = bn_graph.batch_norm_wrapper(x, is_training=True, name="bn1")
        ...     turned = switching.in_population_mode(graph, layer_calls.find_calls(graph))
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     tf.import_graph_def(turned.graph_def, name="")
        ...     _ = session.run([f"bn1/{name}/Assign" for name in ("gamma", "beta", "moving_mean", "moving_variance")])
        ...     session.run(turned.stand_ins[y.name], {"x:0": [[2.0]]}).round(2)  # by mean 0 and variance 1
        array([[2.]], dtype=float32)
    """
    copy = graph.as_graph_def()
    flat = flatten(copy)
    _freeze(copy)
    stand_ins: dict[str, str] = {}
    refused = {}
    for call in calls:
        try:
            _turn(graph, copy, flat, call, stand_ins)
        except _CannotTurn as reason:
            refused[call.layer] = str(reason)
    _rewire(copy, stand_ins)
    return PopulationMode(copy, stand_ins, refused)


def _turn(graph: tf.Graph, copy: tf.GraphDef, flat: FlatGraph, call: LayerCall, stand_ins: dict[str, str]) -> None:
    if call.parameters is not None:
        _rebuild_outputs(graph, copy, call, stand_ins)
    elif any(INSIDE in name for name in call.reductions):
        _take_other_branch(flat, call)
    elif any(flat[name].op in FUSED for name in call.reductions):
        _turn_kernel(graph, copy, flat, call)
    else:
        _replace_moments(graph, copy, call, stand_ins)


def still_by_batch(flat: FlatGraph, calls: Sequence[LayerCall], tensor: TensorRef) -> list[str]:
    """The layers, or nodes of none of them, whose batch statistics go into `tensor` all the same.

    Args:
        flat: of the rewritten graph.
        calls: those that were to be turned.
        tensor: what must depend on population statistics only.

    Returns:
        Names; empty if all is well. Of what no layer accounts for, only what is used in any case: a switch may turn
        the rest off.
    """
    before = upstream_data(flat, tensor)
    by_reduction = {name: call.layer for call in calls for name in call.reductions}
    # A turned layer may have left behind the kernel's node, which now is in inference mode.
    unturned = {by_reduction[name] for name in before & by_reduction.keys() if _reduces(flat, name)}
    others = upstream_data(flat, tensor, past_choices=False) - by_reduction.keys()
    return sorted(unturned | {name for name in others if normalizes_by_batch(flat, name)})


def _reduces(flat: FlatGraph, name: str) -> bool:
    return flat[name].op == "Mean" or normalizes_by_batch(flat, name)


def _freeze(copy: tf.GraphDef) -> None:
    """Turns each assign but the initializers into what it would be without assigning."""
    for nodes in (copy.node, *(function.node_def for function in copy.library.function)):
        for node in nodes:
            if node.op not in REF_ASSIGNS | RESOURCE_ASSIGNS or node.name == f"{node.input[0]}/Assign":
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


def _rewire(copy: tf.GraphDef, stand_ins: Mapping[str, str]) -> None:
    """Every reader of a tensor with a stand-in reads that instead."""
    for node in copy.node:
        for place, name in enumerate(node.input):
            tensor = name if ":" in name else f"{name}:0"
            if tensor in stand_ins and not name.startswith("^"):
                node.input[place] = stand_ins[tensor]


def _splice(
    copy: tf.GraphDef,
    prefix: str,
    build: Callable[..., tf.Tensor],
    given: Mapping[str, tuple],
    after: str | None = None,
) -> str:
    """Adds the ops that `build` makes to `copy`.

    Args:
        copy: is added to.
        prefix: of the new nodes' names.
        build: called with one placeholder for each of `given`, by keyword; returns the one tensor wanted.
        given: keyword to (dtype, shape, name of the tensor in `copy`).
        after: a node of `copy` on which the result shall depend, that it be dead where that one is: both results of a
            cond v1 would reach its Merge otherwise.

    Returns:
        The name of the result in `copy`, as ``prefix/name:0``.
    """
    with tf.Graph().as_default() as scratch:
        handed = {key: tf.placeholder(dtype, shape, name=f"given_{key}") for key, (dtype, shape, _) in given.items()}
        result = tf.identity(build(**handed), name="result")
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
        copy.node.append(node)
    return f"{prefix}/{result.op.name}:0"


def _variable(graph: tf.Graph, name: str) -> tuple:
    """What `_splice` is to be given of a variable: its handle, or the reference that reads as its value."""
    tensor = graph.get_tensor_by_name(f"{name}:0")
    return tensor.dtype.base_dtype, tensor.shape, tensor.name


def _value(given: tf.Tensor, dtype: tf.DType, resource_dtype: tf.DType = tf.float32) -> tf.Tensor:
    if given.dtype == tf.resource:
        given = tf.raw_ops.ReadVariableOp(resource=given, dtype=resource_dtype)
    return tf.cast(given, dtype)


def _stored_dtype(graph: tf.Graph, name: str) -> tf.DType:
    """The dtype of a variable's values."""
    op = graph.get_operation_by_name(name)
    return tf.as_dtype(op.get_attr("dtype")).base_dtype


def _rebuild_outputs(graph: tf.Graph, copy: tf.GraphDef, call: LayerCall, stand_ins: dict[str, str]) -> None:
    epsilon, axis = call.parameters["epsilon"], call.parameters["axis"]
    if not call.outputs or epsilon is None:
        raise _CannotTurn("its outputs or epsilon can't be found in the graph")
    inputs = graph.get_tensor_by_name("{}:{}".format(*call.inputs))
    dtype = _stored_dtype(graph, call.mean)
    along = [-1 if place == axis else 1 for place in range(inputs.shape.rank)]
    names = {"mean": call.mean, "variance": call.variance}
    names |= {key: call.parameters[key] for key in ("gamma", "beta") if call.parameters[key] is not None}

    def build(x: tf.Tensor, **variables: tf.Tensor) -> tf.Tensor:
        value = {key: tf.reshape(_value(given, dtype, dtype), along) for key, given in variables.items()}
        outputs = (tf.cast(x, dtype) - value["mean"]) * tf.rsqrt(value["variance"] + epsilon)
        outputs = outputs * value["gamma"] if "gamma" in value else outputs
        return tf.cast(outputs + value["beta"] if "beta" in value else outputs, inputs.dtype)

    given = {key: _variable(graph, name) for key, name in names.items()}
    given["x"] = (inputs.dtype, inputs.shape, inputs.name)
    for name, port in call.outputs:
        tensor = f"{name}:{port}"
        if tensor not in stand_ins:
            stand_ins[tensor] = _splice(copy, f"{name}/population", build, given)


def _take_other_branch(flat: FlatGraph, call: LayerCall) -> None:
    for name in call.reductions:
        steps = name.split(INSIDE)  # caller, role, caller, role, ..., node
        for depth in range(len(steps) - 1, 0, -2):
            role, caller = steps[depth - 1], flat[INSIDE.join(steps[: depth - 1])]
            other = {"then_branch": "else_branch", "else_branch": "then_branch"}.get(role)
            if other is not None:
                caller.proto.attr[role].CopyFrom(caller.proto.attr[other])
                break
        else:
            raise _CannotTurn(f"it normalizes inside the function that {steps[0]} calls")


def _turn_kernel(graph: tf.Graph, copy: tf.GraphDef, flat: FlatGraph, call: LayerCall) -> None:
    for name in call.reductions:
        node = flat[name].proto
        for place, variable in ((3, call.mean), (4, call.variance)):
            stored = _stored_dtype(graph, variable)

            def build(variable: tf.Tensor, stored: tf.DType = stored) -> tf.Tensor:
                return tf.reshape(_value(variable, tf.float32, stored), [-1])

            given = {"variable": _variable(graph, variable)}
            node.input[place] = _splice(copy, f"{name}/population_{place}", build, given)
        node.attr["is_training"].b = False
        if "exponential_avg_factor" in node.attr:
            node.attr["exponential_avg_factor"].f = 1.0


def _replace_moments(graph: tf.Graph, copy: tf.GraphDef, call: LayerCall, stand_ins: dict[str, str]) -> None:
    for (name, port), kind, shift in call.replaced:
        tensor = graph.get_tensor_by_name(f"{name}:{port}")
        if tensor.shape.rank is None:
            raise _CannotTurn(f"the shape of its batch statistics {tensor.name} is unknown")
        variable = call.mean if kind == "mean" else call.variance
        stored = _stored_dtype(graph, variable)
        shape = [1 if size == 1 else -1 for size in tensor.shape.as_list()]
        given = {"variable": _variable(graph, variable)}
        if shift is not None:
            taken_off = graph.get_tensor_by_name("{}:{}".format(*shift))
            given["shift"] = (taken_off.dtype, taken_off.shape, taken_off.name)

        def build(variable, shift=None, *, tensor=tensor, stored=stored, shape=shape):
            value = tf.reshape(_value(variable, tensor.dtype, stored), shape)
            return value if shift is None else value - tf.cast(shift, tensor.dtype)

        stand_ins[tensor.name] = _splice(copy, f"{name}/population", build, given, after=name)
