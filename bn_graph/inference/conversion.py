"""Writes anybody's graph for serving, with every batch norm layer normalizing by its moving statistics.

`bn_graph.inference.export` refuses a graph that was built for training only. Here such a graph is converted first:

1. placeholders with a given value become constants, and each ``cond`` that this decides the branch it takes;
2. `bn_graph.inference.switching` switches the layers that are left in training mode, whatever their switch says;
3. what the output doesn't need is left out, the batch's statistics among it; `export` writes and checks the rest;
4. what was written is loaded and run: examples one at a time must get the answers that they get together.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.checkpoints import meta_graphs
from bn_graph.checkpoints.files import written_beside
from bn_graph.graphs import effects
from bn_graph.graphs.calls import FoundCalls, find_calls
from bn_graph.graphs.errors import BnGraphError
from bn_graph.graphs.graph import build, node_named
from bn_graph.graphs.notes import LAYERS, MOVING_STATISTICS
from bn_graph.graphs.ops import RANDOM, SWITCHES
from bn_graph.inference import switching
from bn_graph.inference.branches import without_training_branches
from bn_graph.inference.export import export_saved_model
from bn_graph.tf1 import tf

__all__ = [
    "CheckFailed",
    "Converted",
    "NeedsExample",
    "PopulationExportError",
    "convert",
    "largest_difference",
    "write",
]

_OUTPUT = "population_output"
_EXAMPLES = 8
_TOLERANCE = 1e-4
"""Of the largest value: batches of other sizes are summed in another order, so float32 differs in its last digits."""
_COLLECTIONS = ("variables", "trainable_variables", "local_variables", LAYERS, MOVING_STATISTICS)


class PopulationExportError(BnGraphError):
    """A graph that can't be written so; the message is one line."""


class NeedsExample(PopulationExportError):
    """The inputs that the check needs can't be made up."""


class CheckFailed(AssertionError):
    """One at a time, examples get other answers than together. What was written has been removed."""


class Converted(NamedTuple):
    """A graph whose `output` normalizes by moving statistics; ``statistics``: of each layer, (mean, variance) that it reads."""

    graph: tf.Graph
    output: tf.Tensor
    statistics: dict[str, tuple[str, str]]


def convert(graph: tf.Graph, output: tf.Tensor, fixed: Mapping[str, np.ndarray]) -> Converted:
    """A copy of the part of `graph` that `output` needs, in which every layer uses its moving statistics.

    Args:
        graph: as from `meta_graphs.import_graph`; it is not changed.
        output: a tensor of it.
        fixed: values of placeholders, by names of tensors, which become constants.

    Raises:
        PopulationExportError: a fixed tensor is no placeholder; layers that can't be switched are on the path, each with the
            reason.

    Example:
        >>> from bn_graph.inference.conversion import convert
        >>> from bn_graph.tf1 import legacy_layers, tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 2], name="x")
        ...     y = legacy_layers().batch_normalization(x, training=True, name="bn1")
        >>> convert(graph, y, {}).statistics
        {'bn1': ('bn1/moving_mean', 'bn1/moving_variance')}
    """
    with graph.as_default():
        meta = tf.train.export_meta_graph(graph=graph, collection_list=list(_COLLECTIONS))
    _fix(meta.graph_def, fixed)
    made = meta.graph_def.node.add(name=_OUTPUT, op="Identity", input=[output.name.removesuffix(":0")])
    made.attr["T"].type = output.dtype.base_dtype.as_datatype_enum
    meta.graph_def.CopyFrom(without_training_branches(meta.graph_def, flag=""))  # what constants decide
    decided = meta_graphs.import_graph(meta)
    found = find_calls(decided)
    switched = switching.by_moving_statistics(decided, found)
    _check_switched(switched, found)
    meta.graph_def.CopyFrom(_without_moments(switched.graph_def, _variables_own(decided)))
    result = meta_graphs.import_graph(meta)
    read = effects.variables_read(build(result.as_graph_def()), _OUTPUT)
    statistics = {layer: found.statistics(calls[0]) for layer, calls in found.by_layer.items()}
    used = {layer: pair for layer, pair in statistics.items() if read & set(pair)}
    return Converted(result, result.get_tensor_by_name(f"{_OUTPUT}:0"), used)


def _fix(graph_def: tf.GraphDef, fixed: Mapping[str, np.ndarray]) -> None:
    nodes = {node.name: node for node in graph_def.node}
    for name, value in fixed.items():
        node = nodes[name.partition(":")[0]]
        if not node.op.startswith("Placeholder"):
            raise PopulationExportError(
                f"{node.name} is no placeholder but a {node.op}, and can't be fixed to a value."
            )
        dtype = node.attr["dtype"].type
        node.op = "Const"
        node.ClearField("input")
        node.ClearField("attr")
        node.attr["dtype"].type = dtype
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.as_dtype(dtype)))


def _check_switched(switched: switching.Switched, found: FoundCalls) -> None:
    graph = build(switched.graph_def)
    output = (node_named(graph, _OUTPUT), 0)
    before = {graph.names[node] for node in switching.values_above(graph, output)}
    reasons = {}
    for call in found.calls:
        own = {found.graph.names[node] for node, _ in [call.outputs, *(batch.ref for batch in call.batch)]}
        if call.layer in switched.unsupported and before & own:
            reasons[call.layer] = switched.unsupported[call.layer]
    for layer in switching.still_by_batch(graph, found, output):
        reason = "it has no moving statistics"
        if layer in found.by_layer:
            reason = "its batch statistics reach further than its outputs"
        reasons.setdefault(layer, found.unsupported.get(layer, reason))
    if reasons:
        listed = "; ".join(f"{layer}: {reason}" for layer, reason in reasons.items())
        raise PopulationExportError(f"These can't be made to normalize by moving statistics: {listed}.")


def _without_moments(graph_def: tf.GraphDef, variables: Sequence[str]) -> tf.GraphDef:
    """What the output needs, without the batch statistics that only the order of running still holds."""
    graph = build(graph_def)
    for node in graph_def.node:
        if node.name.endswith("/population/result"):
            control = [edge for edge in node.input if edge.startswith("^")]
            above = effects.upstream(graph, control) if control else set()
            # In a branch of a cond that is left, a result must be dead where what it replaces is.
            if not any(graph.ops[graph.ids[name]] in SWITCHES for name in above):
                node.input[:] = [edge for edge in node.input if not edge.startswith("^")]
    needed = effects.upstream(build(graph_def), [_OUTPUT, *variables])
    left = tf.GraphDef(versions=graph_def.versions, library=graph_def.library)
    left.node.extend(node for node in graph_def.node if node.name in needed)
    return left


def _variables_own(graph: tf.Graph) -> list[str]:
    """The ops that a variable can't be imported without: itself, its initializer, its read."""
    members = [variable for key in _COLLECTIONS[:3] for variable in graph.get_collection(key)]
    with graph.as_default():
        protos = [variable.to_proto() for variable in members]
    names = [
        name for proto in protos for name in (proto.variable_name, proto.initializer_name, proto.snapshot_name) if name
    ]
    return names + [proto.initial_value_name for proto in protos if proto.initial_value_name]


# --- Writing and checking ---------------------------------------------------------------------------------------------


def write(
    converted: Converted,
    values: Mapping[str, np.ndarray],
    directory: str | os.PathLike,
    inputs: Mapping[str, tf.Tensor],
    output: str,
    examples: Mapping[str, np.ndarray] | None = None,
) -> float:
    """Writes the converted graph as a SavedModel, and checks it.

    Args:
        converted: as from `convert`.
        values: of its variables, by names of their ops.
        directory: is made; must not exist. It is there complete and checked, or not at all.
        inputs: tensors of the converted graph by names in the signature ``serving_default``.
        output: name of the output in the signature.
        examples: arrays of examples for the check, by names in the signature; random ones if None.

    Returns:
        The largest difference between the outputs of examples alone and in a batch.

    Raises:
        CheckFailed: it is more than rounding.
        NeedsExample: the inputs' shapes or dtypes don't tell what random inputs would be.
        FileExistsError, OSError, bn_graph.ExportError: as `bn_graph.inference.export.export_saved_model`.

    Example:
        >>> import numpy as np, tempfile
        >>> from bn_graph.inference.conversion import convert, write
        >>> from bn_graph.tf1 import legacy_layers, tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 1], name="x")
        ...     y = legacy_layers().batch_normalization(x, training=True, name="bn1")
        >>> converted = convert(graph, y, {})
        >>> names = ("gamma", "beta", "moving_mean", "moving_variance")
        >>> values = {f"bn1/{name}": np.ones(1, "float32") for name in names}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(converted, values, f"{folder}/1", {"x": converted.graph.get_tensor_by_name("x:0")}, "y") < 1e-6
        True
    """
    with written_beside(directory) as unfinished:
        with tf.Session(graph=converted.graph) as session:
            read = effects.variables_read(build(converted.graph.as_graph_def()), _OUTPUT)
            meta_graphs.assign(session, {name: values[name] for name in read if name in values})
            export_saved_model(session, unfinished, inputs, {output: converted.output})
        return largest_difference(unfinished, examples)


def largest_difference(directory: str | os.PathLike, examples: Mapping[str, np.ndarray] | None = None) -> float:
    """Runs a SavedModel on a batch, and on its examples one at a time; the largest difference between the two.

    Where the batch size is fixed, an example is alone when the batch holds nothing but copies of it.

    Args:
        directory: of a SavedModel with the signature ``serving_default`` and one output.
        examples, Raises: as for `write`.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        signature = tf.saved_model.load(session, ["serve"], os.fspath(directory)).signature_def["serving_default"]
        (output,) = signature.outputs.values()
        fixed = _fixed_batch(signature)
        given = examples if examples is not None else _made_up(signature, fixed or _EXAMPLES)
        count = fixed or min(_EXAMPLES, min(len(array) for array in given.values()))
        feeds = {signature.inputs[name].name: array[:count] for name, array in given.items()}
        together, again, alone = _answers(session, output.name, feeds, fixed, examples is None)
        if not _equal(together, again):
            raise CheckFailed(_random_message(session.graph))
        return _compared(together, alone)


def _fixed_batch(signature) -> int | None:
    sizes = {info.tensor_shape.dim[0].size for info in signature.inputs.values() if info.tensor_shape.dim} - {-1}
    return sizes.pop() if len(sizes) == 1 else None


def _made_up(signature, count: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(0)
    made = {}
    for name, info in signature.inputs.items():
        dtype, shape = tf.as_dtype(info.dtype), info.tensor_shape
        if shape.unknown_rank or not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
            what = "shape is unknown" if shape.unknown_rank else f"values are of dtype {dtype.name}"
            raise NeedsExample(
                f"{name}'s {what}: give some with --example D.npz for the check, or fix it with --feed {name}=VALUE."
            )
        size = [count, *(1 if dim.size < 0 else dim.size for dim in shape.dim[1:])]
        drawn = random.standard_normal(size) if dtype.is_floating else random.randint(0, 2, size)
        made[name] = drawn.astype(dtype.as_numpy_dtype)
    return made


def _answers(
    session: tf.Session, output: str, feeds: Mapping[str, np.ndarray], fixed: int | None, made_up: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The batch's answers, the same again, and those of each example alone, in one array each."""
    count = len(next(iter(feeds.values())))
    try:
        together, again = (np.asarray(session.run(output, feeds)) for _ in range(2))
        if together.ndim == 0 or len(together) % count:
            raise PopulationExportError(
                f"The output has shape {list(together.shape)} for {count} examples: its first axis isn't the examples', so "
                "it can't be checked."
            )
        rows = len(together) // count
        alone = []
        for number in range(count):
            one = {name: array[number : number + 1] for name, array in feeds.items()}
            one = {name: np.repeat(array, fixed or 1, axis=0) for name, array in one.items()}
            alone.append(np.asarray(session.run(output, one))[:rows])
    except (tf.errors.OpError, ValueError) as error:
        if isinstance(error, PopulationExportError):
            raise
        hint = "Inputs were drawn at random, unknown sizes as 1: give examples with --example D.npz." if made_up else ""
        kind = NeedsExample if made_up else PopulationExportError
        raise kind(f"The check can't run the model: {meta_graphs.one_line(error)} {hint}".strip()) from error
    return together, again, np.concatenate(alone)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


def _compared(together: np.ndarray, alone: np.ndarray) -> float:
    if together.shape != alone.shape:
        raise CheckFailed(
            f"One at a time the outputs have shape {list(alone.shape)} together, in a batch {list(together.shape)}."
        )
    if together.dtype.kind not in "fciub":
        difference, allowed = float((together != alone).any()), 0.0
    else:
        together, alone = together.astype(np.complex128), alone.astype(np.complex128)
        if not np.array_equal(np.isfinite(together), np.isfinite(alone)):
            raise CheckFailed(
                "One at a time, examples get infinity or NaN where in a batch they don't, or the reverse."
            )
        difference = float(np.abs(together - alone)[np.isfinite(together)].max(initial=0.0))
        allowed = _TOLERANCE * max(1.0, float(np.abs(together[np.isfinite(together)]).max(initial=0.0)))
    if difference > allowed:
        raise CheckFailed(
            f"One at a time, examples get other answers than in a batch: they differ by up to {difference:.3g} (allowed "
            f"{allowed:.3g}). Something besides batch norm mixes the examples."
        )
    return difference


def _random_message(graph: tf.Graph) -> str:
    ops = [op.name for op in graph.get_operations() if op.type.startswith(RANDOM)]
    return (
        f"The same input gives another answer each time: {', '.join(ops[:3]) or 'something'} is random on the way to the "
        "output, as dropout is in training; switch it off with --feed (keep_prob=1.0, is_training=false)."
    )
