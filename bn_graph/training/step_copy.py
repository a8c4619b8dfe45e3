"""A training step copied into the body of a loop: the ops that its train op runs, with other tensors for what it is fed.

The copy works on the very variables of the original, slots included, and nothing is built anew. So whatever the step
does (any optimizer, updates in place or collected, either kind of ``cond``) the copy does too, no name changes, and no
collection gets an entry that would have to be removed again.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from bn_graph.graphs.effects import running, upstream
from bn_graph.graphs.graph import build, producer
from bn_graph.graphs.ops import SWITCHES, VARIABLES
from bn_graph.inference.branches import with_decided_branches
from bn_graph.layers.fused_kernel import HAS_MANY_VALUES, SHIFTS_INPUTS
from bn_graph.tf1 import tf

__all__ = ["calls_functions", "chooses", "copy_step", "decided_step"]

_Fetches: TypeAlias = Sequence[tf.Operation | tf.Tensor]


def copy_step(fetches: _Fetches, fed: Mapping[str, tf.Tensor], name: str, variables_of: tf.Graph | None = None) -> list:
    """Copies all that running `fetches` runs into the graph that is the default now, which may be a loop's body.

    Args:
        fetches: ops and tensors of one graph: a train op, its loss.
        fed: name of a placeholder's tensor → the tensor that takes its place.
        name: name scope of the copies.
        variables_of: the graph whose variables the copy works on, if `fetches` are of a `decided_step`.

    Returns:
        The copies of `fetches`, in their order.

    Raises:
        ValueError: the step has a placeholder that is not in `fed`, or a ref variable, which a loop can't assign.
    """
    graph = fetches[0].graph
    ops, shared = _ops_to_copy(fetches, [producer(name) for name in fed])
    shared = [(variables_of or graph).get_tensor_by_name(tensor.name) for tensor in shared]
    _refuse_what_a_loop_cannot_hold(ops)
    copied = _graph_def(graph, ops)
    _keep_counts_unknown(copied, ops)
    used = {_without_port_0(input_name) for node in copied.node for input_name in node.input}
    replacing = {**{tensor.name: tensor for tensor in shared}, **fed}
    input_map = {name: _here(tensor) for name, tensor in replacing.items() if _without_port_0(name) in used}
    # What waits for a placeholder waits for what takes its place.
    input_map |= {
        f"^{producer(name)}": _here(tensor).op for name, tensor in replacing.items() if f"^{producer(name)}" in used
    }
    return tf.import_graph_def(copied, input_map, [each.name for each in fetches], name=name)


def decided_step(fetches: _Fetches, flags: Mapping[str, bool]) -> list:
    """`fetches` in a graph of their own without the conds that `flags` decide, as XLA can compile it.

    XLA can't compile the gradient of a cond. A layer's own choices are decided too: to shift its inputs is always right,
    and XLA does it in passing; which statistics are within rounding is a matter of TensorFlow's kernel, not of XLA's.

    Args:
        fetches: ops and tensors of one graph, which is not changed.
        flags: names of ops and the value of each.
    """

    choices = {SHIFTS_INPUTS: True, HAS_MANY_VALUES: False}

    def value_of(node: tf.NodeDef) -> bool | None:
        return choices.get(node.name.rpartition("/")[2], flags.get(node.name))

    graph = fetches[0].graph
    part = _graph_def(graph, upstream(build(graph), fetches))
    with tf.Graph().as_default() as decided:
        tf.import_graph_def(_without_optionals(with_decided_branches(part, value_of)), name="")
        return [decided.as_graph_element(each.name) for each in fetches]


def _without_optionals(graph_def: tf.GraphDef) -> tf.GraphDef:
    """The graph with the values themselves where a cond v2 handed them to its gradient in an optional."""
    packed = {
        node.name: [edge for edge in node.input if not edge.startswith("^")]
        for node in graph_def.node
        if node.op == "OptionalFromValue"
    }
    values: dict[str, str] = {}
    for node in graph_def.node:
        if node.op == "OptionalGetValue" and node.input[0] in packed:
            outputs = [node.name, *(f"{node.name}:{port}" for port in range(1, len(packed[node.input[0]])))]
            values |= dict(zip(outputs, packed[node.input[0]], strict=False))
    for node in graph_def.node:
        node.input[:] = [values.get(edge, edge) for edge in node.input]
    return graph_def


def calls_functions(fetches: _Fetches) -> bool:
    """Whether running `fetches` calls a function of the graph's library, as the branches of a cond v2 are."""
    built = build(fetches[0].graph)
    attributes = (value for node in running(built, fetches) for value in built.protos[node].attr.values())
    return any(value.HasField("func") or value.list.func for value in attributes)


def chooses(fetches: _Fetches) -> bool:
    """Whether running `fetches` runs a ``tf.cond`` of either kind."""
    built = build(fetches[0].graph)
    return calls_functions(fetches) or any(built.ops[node] in SWITCHES for node in running(built, fetches))


def _without_port_0(name: str) -> str:
    return name.removesuffix(":0")


def _ops_to_copy(fetches: _Fetches, fed: Sequence[str]) -> tuple[dict[str, tf.Operation], list[tf.Tensor]]:
    """The ops to copy, by name; and the resources (variables, tables, iterators) that both steps share.

    A resource is known by its op: a copy of that would be another one.
    """
    graph = fetches[0].graph
    built = build(graph)
    names = upstream(built, fetches, [name for name in fed if name in built.ids]) - set(fed)
    ops = {name: graph.get_operation_by_name(name) for name in sorted(names)}
    shared = {name: op.outputs[0] for name, op in ops.items() if _makes_resource(op)}
    return {name: op for name, op in ops.items() if name not in shared}, list(shared.values())


def _makes_resource(op: tf.Operation) -> bool:
    return bool(op.outputs) and not op.inputs and op.outputs[0].dtype == tf.resource


def _refuse_what_a_loop_cannot_hold(ops: Mapping[str, tf.Operation]) -> None:
    fed = [name for name, op in ops.items() if op.type in ("Placeholder", "PlaceholderV2")]
    if fed:
        raise ValueError(
            f"The training step needs {', '.join(sorted(fed))} fed, which the loop has no value for: name it in the "
            "Step's `constants`, with the value that it is to have all through the training."
        )
    ref = [name for name, op in ops.items() if op.type in VARIABLES]
    if ref:
        raise ValueError(
            f"The loop trains resource variables, and {', '.join(sorted(ref))} is a ref variable: call "
            "tf.enable_resource_variables() before the network is built, or train it with bn_graph.train."
        )


def _graph_def(graph: tf.Graph, ops: Collection[str]) -> tf.GraphDef:
    whole = graph.as_graph_def()
    part = tf.GraphDef(versions=whole.versions, library=whole.library)
    for node in whole.node:
        if node.name in ops:
            copy = part.node.add()
            copy.CopyFrom(node)
            copy.attr.pop("_class", None)  # it asks to stand beside ops that are not copied
    return part


def _keep_counts_unknown(copied: tf.GraphDef, ops: Mapping[str, tf.Operation]) -> None:
    """Hides from TensorFlow's optimizer that numbers made of the batch's shape are constants in a loop.

    It would replace a division by such a count (the gradient of a mean has one) by a multiplication with its inverse,
    which is rounded otherwise than in the reference loop, where the count is known at each run only. Whole numbers may
    be folded; they are exact. A ``PlaceholderWithDefault`` is what it leaves alone.
    """
    kept = {}
    for name, op in ops.items():
        if op.type == "Cast" and op.inputs[0].dtype.is_integer and op.outputs[0].dtype.is_floating:
            kept[name] = f"{name}/at_run_time"
    for node in copied.node:
        for place, input_name in enumerate(node.input):
            node.input[place] = kept.get(_without_port_0(input_name), input_name)
    for name, kept_name in kept.items():
        value = ops[name].outputs[0]
        node = copied.node.add(name=kept_name, op="PlaceholderWithDefault", input=[name])
        node.attr["dtype"].type = value.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(value.shape.as_proto())


def _here(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor as it is known in the default graph: the body of a loop of control flow v2 is a graph of its own."""
    graph = tf.get_default_graph()
    return tensor if tensor.graph is graph or not hasattr(graph, "capture") else graph.capture(tensor)
