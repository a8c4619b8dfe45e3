"""A graph's inference part by itself: pruned to its outputs, the training flag fixed to False, checked, with its values.

What `bn_graph.inference.export` writes is made here, in four steps:

1. `bn_graph.inference.branches`: the flag becomes a constant and every ``cond`` on it its False branch;
2. what the outputs do not need is left out;
3. what is left is refused if it still trains (`refuse_training`) or can't stand by itself;
4. it is built anew, in a graph of its own, with variables of the same names, kinds and values.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from bn_graph.checkpoints.values import assign_values, parts_of
from bn_graph.checkpoints.variables import batch_norm_layers, layer_scope
from bn_graph.graphs import effects
from bn_graph.graphs.errors import BnGraphError
from bn_graph.graphs.graph import Graph, Ref, build, node_named, of_types, producer, uses
from bn_graph.graphs.modes import modes, values_used
from bn_graph.graphs.ops import CONDS, LOOPS
from bn_graph.graphs.statistics import batch_variances
from bn_graph.inference.branches import without_training_branches
from bn_graph.layers.averages import is_ref_variable, moving_statistics
from bn_graph.tf1 import tf

__all__ = ["ExportError", "InferenceGraph", "extract", "open_session", "refuse_training"]


class ExportError(BnGraphError):
    """A graph that can't be exported for inference as it is."""


class InferenceGraph(NamedTuple):
    """A graph that only infers.

    ``inputs`` and ``outputs`` are its tensors by the names of the signature, ``variables`` what the outputs read, and
    ``values`` what they hold.
    """

    graph: tf.Graph
    inputs: dict[str, tf.Tensor]
    outputs: dict[str, tf.Tensor]
    variables: list[tf.Variable]
    values: list[np.ndarray]


def extract(
    session: tf.Session,
    inputs: Mapping[str, tf.Tensor],
    outputs: Mapping[str, tf.Tensor],
    is_training: tf.Tensor | None = None,
) -> InferenceGraph:
    """Builds the inference part of the session's graph as a graph of its own.

    Args:
        session: of the graph, with the variables' values. Neither is changed.
        inputs: what is fed, by the names of the signature. A tensor that is no placeholder is cut there, and a
            placeholder of that name stands in its place.
        outputs: what is fetched, by the names of the signature.
        is_training: the graph's training flag, a scalar bool tensor, to be fixed to False; None if it has none.

    Returns:
        `InferenceGraph`. Ops and variables keep their names.

    Raises:
        ExportError: `inputs` or `outputs` is empty, or a tensor of another graph; the outputs do not depend on an input,
            or need a placeholder that is not among them; they still train, as `refuse_training` says; they
            read a variable that is in no collection, or not initialized, or a lookup table.
    """
    _check_signature(session.graph, inputs, outputs, is_training)
    graph_def = session.graph.as_graph_def()
    placeholders = _placeholders(graph_def, inputs)
    graph_def = _pruned(graph_def, outputs)
    if is_training is not None:
        graph_def = _pruned(without_training_branches(graph_def, is_training.op.name), outputs)
    _refuse_incomplete(graph_def, placeholders, outputs)
    refuse_training(session.graph, graph_def, [output.op.name for output in outputs.values()])
    originals = _variables_in(session.graph, graph_def)
    values = _values(session, originals)

    with tf.Graph().as_default() as graph:
        variables = [_copy(original, value) for original, value in zip(originals, values, strict=True)]
        _import_around(graph_def, variables)
        inputs = {name: graph.get_tensor_by_name(f"{op_name}:0") for name, op_name in placeholders.items()}
        outputs = {name: graph.get_tensor_by_name(tensor.name) for name, tensor in outputs.items()}
    return InferenceGraph(graph, inputs, outputs, variables, values)


def open_session(extracted: InferenceGraph) -> tf.Session:
    """A session of the extracted graph in which its variables hold their values; to be closed by the caller."""
    session = tf.Session(graph=extracted.graph)
    assign_values(session, zip(extracted.variables, extracted.values, strict=True))
    return session


def refuse_training(graph: tf.Graph, graph_def: tf.GraphDef, outputs: Iterable[str]) -> None:
    """Raises if the outputs still normalize by the batch or assign variables, and names the layers.

    The evidence: a variable is assigned upstream; a variance over the examples goes into the outputs
    (`graphs.statistics.batch_variances`); or a layer's gamma or beta is read, but not its moving statistics.

    Args:
        graph: where the layers' variables are.
        graph_def: pruned to what the outputs need.
        outputs: names of ops in it.

    Raises:
        ExportError: as said.
    """
    built, outputs = build(graph_def), list(outputs)
    layers = batch_norm_layers(graph)
    read = effects.variables_read(built, outputs)
    statistics = {statistic.op.name for statistic in moving_statistics(graph)}
    evidence = {layer_scope(name, statistics) or name for name in effects.variables_written(built, outputs)}
    computed = _batch_statistics(graph, built, outputs)
    evidence |= {scope for scope in layers if any(name.startswith(f"{scope}/") for name in computed)}
    for scope, layer in layers.items():
        weights, own = (
            {part.op.name for variable in variables for part in parts_of(variable)}
            for variables in (layer[:2], layer[2:])
        )
        if weights & read and not own <= read:
            evidence.add(scope)
    if evidence or computed:
        where = sorted(evidence) or sorted({name.rpartition("/")[0] or name for name in computed})
        raise ExportError(
            f"The outputs still train in {', '.join(where)}: they normalize by their batch, or assign variables. "
            "Export from a graph that is built with is_training=False, restored from the checkpoint; or, if the training "
            f"flag is a tensor, pass it as is_training=.{_IN_LOOP if _has_conds_in_loops(built) else ''}"
        )


_IN_LOOP = (
    " (In a loop of control flow v2, such as tf.nn.dynamic_rnn's, no flag can be fixed; after "
    "tf.disable_control_flow_v2() it can.)"
)


def _has_conds_in_loops(graph: Graph) -> bool:
    for node in of_types(graph, CONDS):
        while (caller := graph.callers[node]) is not None:
            node = caller[0]
            if graph.ops[node] in LOOPS:
                return True
    return False


def _check_signature(graph: tf.Graph, inputs: Mapping, outputs: Mapping, is_training: tf.Tensor | None) -> None:
    for what, tensors in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(tensors, Mapping) or not tensors:
            raise ExportError(f"{what} must be a dict from the signature's names to tensors, got {tensors!r}.")
    flags = {} if is_training is None else {"is_training": is_training}
    for name, tensor in [*inputs.items(), *outputs.items(), *flags.items()]:
        if not isinstance(tensor, tf.Tensor) or tensor.graph is not graph:
            raise ExportError(f"{name} must be a tensor of the session's graph, got {tensor!r}.")
    if is_training is not None and (is_training.dtype != tf.bool or len(is_training.op.outputs) != 1):
        raise ExportError(f"is_training must be the graph's own bool flag, got {is_training!r}.")


def _placeholders(graph_def: tf.GraphDef, inputs: Mapping[str, tf.Tensor]) -> dict[str, str]:
    """The op that each input is fed at; made in `graph_def`, and put in the input's place, where it is no placeholder."""
    taken = {node.name for node in graph_def.node}
    placeholders = {}
    for name, tensor in inputs.items():
        if tensor.op.type.startswith("Placeholder"):
            placeholders[name] = tensor.op.name
            continue
        placeholders[name] = f"{name}_input" if name in taken else name
        for node in graph_def.node:
            # An op's input 0 is written without its number.
            node.input[:] = [placeholders[name] if e == tensor.name.removesuffix(":0") else e for e in node.input]
        made = graph_def.node.add(name=placeholders[name], op="Placeholder")
        made.attr["dtype"].type = tensor.dtype.as_datatype_enum
        made.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())
    return placeholders


def _pruned(graph_def: tf.GraphDef, outputs: Mapping[str, tf.Tensor]) -> tf.GraphDef:
    """The nodes and functions that the outputs need, in their old order."""
    needed = effects.upstream(build(graph_def), [tensor.op.name for tensor in outputs.values()])
    pruned = tf.GraphDef(versions=graph_def.versions)
    pruned.node.extend(node for node in graph_def.node if node.name in needed)
    for node in pruned.node:
        node.attr.pop("_class", None)  # placed together with another node, which may not be left
    _add_called_functions(pruned, graph_def.library)
    return pruned


def _add_called_functions(graph_def: tf.GraphDef, library) -> None:
    functions = {function.signature.name: function for function in library.function}
    called: set[str] = set()
    pending = list(_names_called(graph_def.node))
    while pending:
        name = pending.pop()
        if name in functions and name not in called:
            called.add(name)
            pending += _names_called(functions[name].node_def)
    graph_def.library.function.extend(function for name, function in functions.items() if name in called)


def _names_called(nodes: Iterable[tf.NodeDef]) -> Iterator[str]:
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            yield from (function.name for function in [value.func, *value.list.func])


def _refuse_incomplete(
    graph_def: tf.GraphDef, placeholders: Mapping[str, str], outputs: Mapping[str, tf.Tensor]
) -> None:
    """Raises where the outputs need what is not given, or do not need what is."""
    present = {node.name for node in graph_def.node}
    given = set(placeholders.values())
    unfed = [node.name for node in graph_def.node if node.op == "Placeholder" and node.name not in given]
    if unfed:
        raise ExportError(
            f"The outputs need {', '.join(unfed)} to be fed, which is not among inputs. Add it there; or, if it is the "
            "training flag, pass it as is_training=."
        )
    unused = [name for name, op_name in placeholders.items() if op_name not in present]
    if unused:
        raise ExportError(
            f"The outputs {', '.join(outputs)} do not depend on {', '.join(unused)}; leave it out of inputs."
        )
    tables = [node.name for node in graph_def.node if "HashTable" in node.op]
    if tables:
        raise ExportError(
            f"The outputs read the lookup table {tables[0]}, which can't be exported here: look up before inputs."
        )


def _batch_statistics(graph: tf.Graph, built: Graph, outputs: Iterable[str]) -> list[str]:
    """The names of the nodes whose batch statistics go into the outputs."""
    standing = modes(built, uses(built), (), {})
    used = values_used(built, [node_named(built, name) for name in outputs], standing)
    ranks = {output.name: output.shape.rank for op in graph.get_operations() for output in op.outputs}

    def rank_of(ref: Ref) -> int | None:
        return ranks.get(f"{built.names[ref[0]]}:{ref[1]}")

    return [built.names[node] for node in batch_variances(built, used, rank_of)]


def _variables_in(graph: tf.Graph, graph_def: tf.GraphDef) -> list[tf.Variable]:
    keys = (tf.GraphKeys.GLOBAL_VARIABLES, tf.GraphKeys.LOCAL_VARIABLES)
    known = {variable.op.name: variable for key in keys for variable in graph.get_collection(key)}
    names = [node.name for node in graph_def.node if node.op in ("VarHandleOp", "VariableV2", "Variable")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ExportError(f"The outputs read {', '.join(unknown)}, which is in no collection of the graph's variables.")
    return [known[name] for name in names]


def _values(session: tf.Session, variables: list[tf.Variable]) -> list[np.ndarray]:
    try:
        return session.run(variables)
    except tf.errors.FailedPreconditionError as error:
        message = str(error.message).splitlines()[0]
        raise ExportError(
            f"The outputs read variables that hold no values yet; restore them first: {message}"
        ) from error


def _copy(original: tf.Variable, value: np.ndarray) -> tf.Variable:
    """A variable of the same name, kind and shape in the default graph."""
    variable = tf.get_variable(
        original.op.name,
        value.shape,
        original.dtype.base_dtype,
        tf.zeros_initializer(),
        trainable=original.trainable,
        use_resource=not is_ref_variable(original),
    )
    return variable


def _import_around(graph_def: tf.GraphDef, variables: Iterable[tf.Variable]) -> None:
    """Imports `graph_def` around the variables, which are in the default graph already, under their own names."""
    graph = tf.get_default_graph()
    made = {name for variable in variables for name in _own_ops(variable)}
    rest = tf.GraphDef(versions=graph_def.versions, library=graph_def.library)
    rest.node.extend(node for node in graph_def.node if node.name not in made)
    input_map = {}
    for edge in {edge for node in rest.node for edge in node.input if producer(edge) in made}:
        op = graph.get_operation_by_name(producer(edge))
        input_map[edge if edge.startswith("^") else f"{op.name}:0"] = op if edge.startswith("^") else op.outputs[0]
    tf.import_graph_def(rest, input_map=input_map, name="")


def _own_ops(variable: tf.Variable) -> list[str]:
    """The variable's op, and the read that TensorFlow makes with it."""
    return [variable.op.name, f"{variable.op.name}/{'read' if is_ref_variable(variable) else 'Read/ReadVariableOp'}"]
