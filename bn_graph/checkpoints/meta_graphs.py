"""Anybody's meta graph with its checkpoint: imported whatever TensorFlow 1 wrote it, its values read, and written anew.

Unlike ``tf.train.import_meta_graph`` and ``Saver.restore`` this gets by with what is there:

* stored shapes, colocations and devices, on which the import of old graphs fails, are left out, and so are queue runners
  and old savers; the shapes of old graphs' placeholders are kept, though 1.0 to 1.4 wrote them nowhere else;
* a variable's value is looked for under the name that the meta graph's own saver gives it, then under its own name, then
  under the names that other savers of the graph give it; what no name finds is initialized, and said.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.checkpoints.files import CheckpointError, checkpoint_prefix, written_beside
from bn_graph.checkpoints.values import assign_values, check_fit, open_checkpoint
from bn_graph.checkpoints.variables import global_variables_by_name
from bn_graph.graphs import effects
from bn_graph.graphs.calls import find_calls
from bn_graph.graphs.errors import one_line
from bn_graph.graphs.graph import build, producer
from bn_graph.graphs.notes import LAYERS, MOVING_STATISTICS
from bn_graph.layers.averages import moving_statistics
from bn_graph.tf1 import slice_info, tf

__all__ = ["Key", "Restored", "assign", "import_graph", "missing_weights", "read", "restore", "write"]

_NOT_NEEDED = ("savers", "queue_runners")
_PLAIN = ("variables", "trainable_variables", "local_variables", "update_ops", "train_op", "global_step")
_PLAIN += (LAYERS, MOVING_STATISTICS)
_UNKNOWN_SCALARS = 24
"""Before this GraphDef version the shape [] of a placeholder stood for an unknown one."""


class Key(NamedTuple):
    """Where a checkpoint holds a variable: the name, and the slice of it (empty for all) as savers write it."""

    name: str
    slice: str = ""


class Restored(NamedTuple):
    """What `restore` found.

    ``values`` of all variables of the graph, by the names of their ops; ``keys`` of those that the checkpoint holds;
    ``missing``: those that it lacks, whose values are initial ones.
    """

    values: dict[str, np.ndarray]
    keys: dict[str, Key]
    missing: list[str]


# --- Graphs -----------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> tf.MetaGraphDef:
    """The meta graph in a ``.meta`` file, without what keeps it from being imported.

    Args:
        path: of a binary MetaGraphDef, as ``Saver.save`` and ``tf.train.export_meta_graph`` write it.

    Raises:
        CheckpointError: there is no such file, or it is something else.
    """
    meta = tf.MetaGraphDef()
    try:
        with open(path, "rb") as file:
            meta.ParseFromString(file.read())
    except OSError as error:
        raise CheckpointError(f"The meta graph {os.fspath(path)} can't be read: {error.strerror}.") from error
    except Exception as error:  # protobuf's DecodeError, which its packages don't all export under one name
        raise CheckpointError(f"{os.fspath(path)} is no meta graph (.meta file), or a damaged one.") from error
    if not meta.graph_def.node:
        raise CheckpointError(f"{os.fspath(path)} is no meta graph (.meta file): it has no graph with nodes.")
    old = 0 < meta.graph_def.versions.producer < _UNKNOWN_SCALARS
    for node in meta.graph_def.node:
        if (
            old
            and node.op == "Placeholder"
            and not node.attr["shape"].shape.dim
            and node.attr["_output_shapes"].list.shape
        ):
            node.attr["shape"].shape.CopyFrom(node.attr["_output_shapes"].list.shape[0])
        for key in ("_output_shapes", "_class"):
            node.attr.pop(key, None)
        node.device = ""
    for key in _NOT_NEEDED:
        meta.collection_def.pop(key, None)
    return meta


def import_graph(meta: tf.MetaGraphDef) -> tf.Graph:
    """The graph of a meta graph, with its collections.

    Args:
        meta: as from `read`; its saver is looked at by `restore`, and not imported.

    Returns:
        A new graph. Collections that can't be imported are left out.

    Raises:
        CheckpointError: the graph has ops that this TensorFlow lacks, or is not well-formed.
    """
    try:
        return _imported(meta, set(meta.collection_def))
    except Exception as error:  # whatever a foreign graph makes TensorFlow raise
        _refuse_unknown_op(error)
    try:
        return _imported(meta, set(_PLAIN) & set(meta.collection_def))
    except Exception as error:
        raise CheckpointError(f"The graph can't be imported: {one_line(error)}") from error


def _imported(meta: tf.MetaGraphDef, collections: set[str]) -> tf.Graph:
    wanted = tf.MetaGraphDef()
    wanted.CopyFrom(meta)
    wanted.ClearField("saver_def")
    for key in set(meta.collection_def) - collections:
        wanted.collection_def.pop(key)
    names = {node.name for node in meta.graph_def.node}
    for collection in wanted.collection_def.values():
        if collection.WhichOneof("kind") == "node_list":  # it may list ops of a function, as in a branch of cond v2
            present = [name for name in collection.node_list.value if producer(name) in names]
            collection.node_list.value[:] = present
    with _without_warnings(), tf.Graph().as_default() as graph:  # of old releases, whatever the collection is for
        tf.train.import_meta_graph(wanted)
    return graph


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _refuse_unknown_op(error: Exception) -> None:
    text = str(getattr(error, "message", error))
    for mark in ("Op type not registered '", "No op named "):
        if mark in text:
            name = text.split(mark)[1].split("'")[0].split(" ")[0]
            raise CheckpointError(
                f"The graph uses the op {name}, which this TensorFlow doesn't have: a graph with custom ops can be audited, "
                "but not run here."
            ) from error


# --- Values -----------------------------------------------------------------------------------------------------------


def restore(graph: tf.Graph, meta: tf.MetaGraphDef, checkpoint: str | os.PathLike) -> Restored:
    """The values of all variables of `graph`: the checkpoint's, and initial ones where it has none.

    Args:
        graph: as from `import_graph` of `meta`.
        meta: tells the names that savers give to variables.
        checkpoint: a prefix, its ``.index``, or a directory, of which the latest is taken.

    Returns:
        `Restored`. Nothing is added to the graph.

    Raises:
        CheckpointError: the checkpoint can't be read; a value has another shape or dtype than its variable; it has nothing
            of the graph's; what it lacks can't be initialized.

    Example:
        >>> import tempfile
        >>> from bn_graph.checkpoints import meta_graphs
        >>> from bn_graph.tf1 import tf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tf.Graph().as_default(), tf.Session() as session:
        ...         w = tf.get_variable("w", initializer=[1.0, 2.0])
        ...         _ = tf.get_variable("moving_mean", initializer=[0.0])
        ...         session.run(tf.global_variables_initializer())
        ...         path = tf.train.Saver([w]).save(session, f"{folder}/model")
        ...     meta = meta_graphs.read(f"{path}.meta")
        ...     restored = meta_graphs.restore(meta_graphs.import_graph(meta), meta, path)
        >>> restored.values["w"], restored.missing
        (array([1., 2.], dtype=float32), ['moving_mean'])
    """
    prefix = checkpoint_prefix(checkpoint)
    variables = _variables(graph)
    reader = open_checkpoint(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    keys = _found(variables, meta, shapes)
    if not keys:
        raise CheckpointError(
            f"The checkpoint {prefix} holds none of the graph's {len(variables)} variables: it is of another graph."
        )
    for name, key in keys.items():
        check_fit(prefix, variables[name], key.name, None if key.slice else shapes[key.name], dtypes[key.name])
    values = _read_values(prefix, variables, keys)
    missing = [name for name in variables if name not in keys]
    return Restored(values | _initial(graph, variables, values, missing), keys, missing)


def missing_weights(graph: tf.Graph, restored: Restored, names: Iterable[str]) -> list[str]:
    """The variables that the checkpoint lacks and that running `names` reads, moving statistics aside.

    Args:
        graph: that of `restored`.
        restored: as from `restore`.
        names: of ops or tensors.
    """
    read_there = effects.variables_read(build(graph), names)
    statistics = statistics_of(graph)
    return [name for name in restored.missing if name in read_there and name not in statistics]


def statistics_of(graph: tf.Graph) -> set[str]:
    """Names of the variables that are moving statistics, by their names or by what updates them."""
    by_name = {variable.op.name for variable in moving_statistics(graph)}
    found = find_calls(graph)
    statistics = by_name.union(found.statistics(*found.calls))
    # What zero-debiasing keeps of a statistic stands in its scope.
    kept_of = {name for name in _variables(graph) if name.rpartition("/")[0] in statistics}
    return statistics | kept_of


def assign(session: tf.Session, values: Mapping[str, np.ndarray]) -> None:
    """Gives variables of the session's graph their `values`, by the names of their ops. Adds nothing to the graph."""
    variables = _variables(session.graph)
    assign_values(session, [(variables[name], value) for name, value in values.items()])


def _variables(graph: tf.Graph) -> dict[str, tf.Variable]:
    keys = (tf.GraphKeys.LOCAL_VARIABLES, tf.GraphKeys.GLOBAL_VARIABLES)
    members = [variable for key in keys for variable in graph.get_collection(key)]
    return {variable.op.name: variable for variable in members if hasattr(variable, "initializer")}


def _found(variables: Mapping[str, tf.Variable], meta: tf.MetaGraphDef, held: Mapping) -> dict[str, Key]:
    """For each variable that the checkpoint holds: where."""
    savers = _saver_keys(meta.graph_def)
    own = meta.saver_def.restore_op_name.rpartition("/")[0]
    found = {}
    for name in variables:
        candidates = [keys[name] for scope, keys in savers.items() if scope == own and name in keys]
        candidates += [Key(name)]
        candidates += [keys[name] for scope, keys in savers.items() if scope != own and name in keys]
        present = [key for key in candidates if key.name in held]
        if present:
            found[name] = present[0]
    return found


def _saver_keys(graph_def: tf.GraphDef) -> dict[str, dict[str, Key]]:
    """For each saver, by its scope: the variables that it restores, each with its place in the checkpoint."""
    nodes = {node.name: node for node in graph_def.node}
    savers: dict[str, dict[str, Key]] = {}
    for node in graph_def.node:
        if node.op not in ("Assign", "AssignVariableOp") or len(node.input) < 2:
            continue
        source, port = _behind_identities(nodes, node.input[1])
        variable, _ = _behind_identities(nodes, node.input[0])
        if source in nodes and nodes[source].op == "RestoreV2":
            names, slices = (_strings(nodes.get(producer(edge))) for edge in nodes[source].input[1:3])
            if port < min(len(names), len(slices)):
                scope = node.name.rpartition("/")[0]
                savers.setdefault(scope, {})[variable] = Key(names[port], slices[port])
    return savers


def _behind_identities(nodes: Mapping[str, tf.NodeDef], edge: str) -> tuple[str, int]:
    for _ in range(len(nodes)):
        name, _, port = edge.partition(":")
        if name not in nodes or nodes[name].op != "Identity":
            break
        edge = nodes[name].input[0]
    return name, int(port or 0)


def _strings(node: tf.NodeDef | None) -> list[str]:
    if node is None or node.op != "Const":
        return []
    return [tf.compat.as_str(value) for value in tf.make_ndarray(node.attr["value"].tensor).reshape(-1)]


def _read_values(prefix: str, variables: Mapping[str, tf.Variable], keys: Mapping[str, Key]) -> dict[str, np.ndarray]:
    with tf.Graph().as_default(), tf.Session() as session:
        tensors = tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=[key.name for key in keys.values()],
            shape_and_slices=[key.slice for key in keys.values()],
            dtypes=[variables[name].dtype.base_dtype for name in keys],
        )
        try:
            return dict(zip(keys, session.run(tensors), strict=True))
        except tf.errors.OpError as error:
            raise CheckpointError(f"The values of the checkpoint {prefix} can't be read: {one_line(error)}") from error


def _initial(
    graph: tf.Graph, variables: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray], missing: Sequence[str]
) -> dict[str, np.ndarray]:
    if not missing:
        return {}
    with tf.Session(graph=graph) as session:
        try:
            assign(session, values)
            session.run([variables[name].initializer for name in missing])
            return dict(zip(missing, session.run([variables[name] for name in missing]), strict=True))
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"The checkpoint lacks {', '.join(missing[:3])}, and initializing what it lacks fails: {one_line(error)}"
            ) from error


# --- Writing ----------------------------------------------------------------------------------------------------------


def write(session: tf.Session, prefix: str | os.PathLike, keys: Mapping[str, Key]) -> str:
    """Writes all global variables as a new checkpoint, with a ``.meta`` whose saver restores it.

    Args:
        session: holds the values. Save and restore ops are added to its graph.
        prefix: of the new files; its directory is made. A ``checkpoint`` file is neither written nor changed.
        keys: what to call variables in the checkpoint, by the names of their ops; their own names else.

    Returns:
        `prefix`. The files are there complete or not at all, whatever happens meanwhile.

    Raises:
        CheckpointError: something of that name exists, or can't be written.

    Example:
        >>> import os, tempfile
        >>> from bn_graph.checkpoints import meta_graphs
        >>> from bn_graph.tf1 import tf
        >>> with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        ...     _ = tf.get_variable("w", [2])
        ...     session.run(tf.global_variables_initializer())
        ...     path = meta_graphs.write(session, f"{folder}/new", {})
        ...     sorted(os.listdir(folder))
        ['new.data-00000-of-00001', 'new.index', 'new.meta']
    """
    prefix = os.fspath(prefix)
    refuse_existing(prefix)
    try:
        with session.graph.as_default(), written_beside(prefix) as unfinished:
            saver = tf.train.Saver(_names_to_save(session.graph, keys), write_version=tf.train.SaverDef.V2)
            with _without_warnings():  # of old collections that TensorFlow reads and can't write
                saver.save(session, unfinished, write_state=False)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(f"The checkpoint {prefix} could not be written: {one_line(error)}") from error
    return prefix


def refuse_existing(prefix: str | os.PathLike) -> None:
    """Raises if there are files of a checkpoint `prefix`, or one of just that name.

    Raises:
        CheckpointError: as said.
    """
    parent, base = os.path.split(os.path.abspath(prefix))
    ending = (f"{base}.index", f"{base}.meta", base)
    names = os.listdir(parent) if os.path.isdir(parent) else []
    taken = sorted(name for name in names if name in ending or name.startswith(f"{base}.data-"))
    if taken:
        raise CheckpointError(f"{os.path.join(parent, taken[-1])} exists; name another --out, or remove it first.")
    if not base:
        raise CheckpointError(
            f"{os.fspath(prefix)} names a directory; a checkpoint needs the beginning of a file name."
        )


def _names_to_save(graph: tf.Graph, keys: Mapping[str, Key]) -> dict[str, object]:
    """Variables by their names in the checkpoint; those of which it holds slices of one tensor together."""
    groups: dict[str, list[tf.Variable]] = {}
    for name, variable in global_variables_by_name(graph).items():
        groups.setdefault(keys.get(name, Key(name)).name, []).append(variable)
    names = {}
    for key, variables in groups.items():
        sliced = all(slice_info(variable) is not None for variable in variables)
        if sliced or len(variables) == 1:
            names[key] = variables if sliced else variables[0]
        else:  # one value was restored into several variables, which may hold different ones from here on
            names |= {variable.op.name: variable for variable in variables}
    return names
