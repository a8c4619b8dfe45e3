"""Writes a trained graph for serving: as a SavedModel, or as a frozen GraphDef with batch norm folded into the weights.

What is written computes one example's answer from that example alone: no update op and no batch statistic is in it. A
graph whose training flag is a tensor has it fixed to False; one that was built for training only is refused.
"""

import os
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from bn_graph.checkpoints.files import written_beside
from bn_graph.graphs.calls import RECURRENT, is_read_by_rows
from bn_graph.graphs.effects import variable_name
from bn_graph.graphs.graph import Graph, Uses, build, producer, uses
from bn_graph.graphs.layers import Layer, find_layers
from bn_graph.graphs.normalizations import find_normalizations
from bn_graph.graphs.ops import ENTERS, ROW_READS
from bn_graph.graphs.values import variable
from bn_graph.inference.extraction import ExportError, InferenceGraph, extract, open_session
from bn_graph.inference.far_means import with_far_means_subtracted
from bn_graph.inference.folding import fold_batch_norm, obstacles
from bn_graph.tf1 import tf

__all__ = ["ExportError", "FrozenGraph", "UnfoldedWarning", "export_frozen_graph", "export_saved_model"]


class UnfoldedWarning(UserWarning):
    """Batch norm layers of an exported graph are left as they were."""


class FrozenGraph(NamedTuple):
    """What `export_frozen_graph` wrote.

    ``path`` of the file; ``inputs`` and ``outputs``: tensor names in it, by the names of the signature; ``folded`` and
    ``unfolded``: scopes of batch norm layers.
    """

    path: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    folded: list[str]
    unfolded: list[str]


def export_saved_model(
    session: tf.Session,
    directory: str | os.PathLike,
    inputs: Mapping[str, tf.Tensor],
    outputs: Mapping[str, tf.Tensor],
    *,
    is_training: tf.Tensor | None = None,
) -> str:
    """Writes a SavedModel with one inference signature, ``serving_default``, tagged ``serve``.

    It holds what the outputs need and nothing else: no update op, no batch statistic, no training branch, no optimizer.

    Args:
        session: of the graph, with the variables' values. Neither is changed.
        directory: is made, parents included; must not exist yet.
        inputs: placeholders (or other tensors, at which the graph is cut) by their names in the signature.
        outputs: tensors by their names in the signature.
        is_training: the graph's training flag, a scalar bool tensor that is fixed to False; None for a graph that was
            built with ``is_training=False``.

    Returns:
        `directory`. It is there complete or not at all: the model is written next to it and then renamed.

    Raises:
        FileExistsError: `directory` exists.
        ExportError: the outputs still train with the flag at False, as in a graph built with ``is_training=True`` (the
            layers are named); inputs and outputs don't fit each other; a variable holds no value. More in
            `bn_graph.inference.extraction.extract`.
        OSError: it can't be written.

    Example:
        >>> import tempfile, bn_graph
        >>> from bn_graph.inference.export import export_saved_model
        >>> from bn_graph.tf1 import tf
        >>> folder = tempfile.TemporaryDirectory()
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     x, flag = tf.placeholder(tf.float32, [None, 1]), tf.placeholder(tf.bool, [])
        ...     y = bn_graph.batch_norm_wrapper(x, flag, epsilon=1.0, name="bn1")
        ...     session.run(tf.global_variables_initializer())
        ...     path = export_saved_model(session, f"{folder.name}/1", {"x": x}, {"y": y}, is_training=flag)
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     signature = tf.saved_model.load(session, ["serve"], path).signature_def["serving_default"]
        ...     session.run(signature.outputs["y"].name, {signature.inputs["x"].name: [[2.0]]}).round(3)
        array([[1.414]], dtype=float32)
        >>> folder.cleanup()
    """
    with written_beside(directory) as unfinished:
        extracted = extract(session, inputs, outputs, is_training)
        with extracted.graph.as_default(), open_session(extracted) as copied:
            signature = tf.saved_model.predict_signature_def(extracted.inputs, extracted.outputs)
            builder = tf.saved_model.Builder(unfinished)
            builder.add_meta_graph_and_variables(
                copied, ["serve"], {"serving_default": signature}, clear_devices=True, strip_default_attrs=True
            )
            builder.save()
    return os.fspath(directory)


def export_frozen_graph(
    session: tf.Session,
    path: str | os.PathLike,
    inputs: Mapping[str, tf.Tensor],
    outputs: Mapping[str, tf.Tensor],
    *,
    is_training: tf.Tensor | None = None,
    fold: bool = True,
) -> FrozenGraph:
    """Writes a binary GraphDef with the variables' values as constants, and batch norm folded into the weights before it.

    A layer that directly follows a matmul or convolution costs nothing then: its scale is in the weights, its offset
    in one ``BiasAdd``. (A folded layer adds its offset to sums of the inputs' own size. Where the moving mean is a million
    times the standard deviation, float32 keeps no digit of the result; export with ``fold=False`` then. A layer that is left
    keeps its digits: `bn_graph.inference.far_means`.)

    Args:
        session, inputs, outputs, is_training: as for `export_saved_model`.
        path: of the file, made with its parents; must not exist yet.
        fold: whether to fold, as `bn_graph.inference.folding` says.

    Returns:
        `FrozenGraph`. Its tensor names are those of the session's graph, except that an input which was no placeholder
        is called by its name in `inputs`.

    Raises:
        FileExistsError, ExportError, OSError: as `export_saved_model`. ExportError also for a recurrent cell (or anything
            else that reads rows of a variable) in a loop of control flow v2, which TensorFlow can't freeze.

    Warns:
        UnfoldedWarning: layers could not be folded: they are named with the reason, and computed as before. No matmul
            or convolution with constant weights comes directly before (a nonlinearity does, as in pre-activation
            networks), something else reads its output too, or a half-precision dtype can't hold the folded weights.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", 3.2.

    Example:
        >>> import tempfile, bn_graph
        >>> from bn_graph.inference.export import export_frozen_graph
        >>> from bn_graph.tf1 import tf
        >>> with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        ...     network = bn_graph.build_graph(False, bn_graph.normal_weights([4, 3, 2], seed=0))
        ...     session.run(tf.global_variables_initializer())
        ...     frozen = export_frozen_graph(session, f"{folder}/net.pb", {"x": network.x}, {"class": network.prediction})
        ...     frozen.folded, frozen.unfolded, frozen.inputs
        (['bn1'], [], {'x': 'x:0'})
    """
    with written_beside(path) as unfinished:
        extracted = extract(session, inputs, outputs, is_training)
        model = build(extracted.graph)
        frozen = graph_def = _frozen(extracted, model)
        output_ops = [tensor.op.name for tensor in extracted.outputs.values()]
        if fold:
            graph_def = fold_batch_norm(frozen, output_ops)
        graph_def = with_far_means_subtracted(graph_def)
        with open(unfinished, "wb") as file:
            file.write(graph_def.SerializeToString())
    users = uses(model)
    layers = [layer for layer in find_layers(model, users, find_normalizations(model, users)) if layer.statistics]
    left = {node.name for node in graph_def.node}
    unfolded = [layer for layer in layers if left & {model.names[node] for node in layer.statistics}]
    if fold and unfolded:
        reasons = _reasons(model, users, unfolded, frozen, output_ops)
        warnings.warn(
            f"Not folded: {'; '.join(f'{scope} ({reason})' for scope, reason in reasons.items())}. Computed as before.",
            UnfoldedWarning,
            stacklevel=2,
        )
    named_inputs, named_outputs = (
        {name: tensor.name for name, tensor in side.items()} for side in (extracted.inputs, extracted.outputs)
    )
    folded = [layer.name for layer in layers if layer not in unfolded]
    return FrozenGraph(os.fspath(path), named_inputs, named_outputs, folded, [layer.name for layer in unfolded])


def _frozen(extracted: InferenceGraph, model: Graph) -> tf.GraphDef:
    """The extracted graph with constants for variables."""
    outputs = [tensor.op.name for tensor in extracted.outputs.values()]
    _refuse_rows_in_functions(model)
    with open_session(extracted) as session:
        frozen = tf.graph_util.convert_variables_to_constants(session, extracted.graph.as_graph_def(), outputs)
    _put_axes_into_loops(frozen)
    return frozen


def _put_axes_into_loops(frozen: tf.GraphDef) -> None:
    """Of a row read in a loop of control flow v1, TensorFlow makes the new constant of its axis outside of the loop."""
    nodes = {node.name: node for node in frozen.node}
    for node in frozen.node:
        if node.op == "GatherV2" and len(node.input) >= 3 and producer(node.input[0]) in nodes:
            values, axis = nodes[producer(node.input[0])], nodes.get(node.input[2])
            if values.op in ENTERS and axis is not None and axis.op == "Const" and not axis.input:
                axis.input.append(f"^{values.name}")


def _refuse_rows_in_functions(model: Graph) -> None:
    """TensorFlow makes constants of such variables and leaves the reads as they are: the file would not run."""
    rows = [node for node, op in enumerate(model.ops) if op in ROW_READS and model.callers[node] is not None]
    variables = [variable(model, model.inputs[node][0]) for node in rows]
    names = dict.fromkeys(variable_name(model, node) for node in variables if node is not None)
    if names:
        raise ExportError(
            f"These variables are read by rows inside a loop or function of control flow v2, which can't be frozen: "
            f"{', '.join(names)}. Write a SavedModel (export_saved_model), or build the graph after "
            "tf.disable_control_flow_v2()."
        )


def _reasons(model: Graph, users: Uses, layers: list[Layer], frozen: tf.GraphDef, outputs: list[str]) -> dict[str, str]:
    """Why layers could not be folded, by their names."""
    recurrent = {
        layer.name for layer in layers if any(is_read_by_rows(model, users, node) for node in layer.statistics)
    }
    places = {
        layer.name: [(model.names[place.inputs[0]], model.names[place.outputs[0]]) for place in layer.places]
        for layer in layers
        if layer.name not in recurrent
    }
    found = obstacles(frozen, outputs, places)
    return {layer.name: "; ".join(found.get(layer.name, [RECURRENT])) for layer in layers}
