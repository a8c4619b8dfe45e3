"""What a path holds: a graph, a checkpoint or a directory of them, recognized by content and not by name alone."""

import itertools
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf import text_format

from bn_graph.audit.report import SubjectKind
from bn_graph.checkpoints import storage
from bn_graph.checkpoints.files import (
    base_name,
    checkpoint_state,
    first_bytes,
    has_tensors,
    latest_checkpoint,
    reading,
    without_step,
)
from bn_graph.checkpoints.index import Checkpoint, read_checkpoint
from bn_graph.checkpoints.keras_files import is_keras_file, read_keras
from bn_graph.checkpoints.table import is_table, varint
from bn_graph.graphs import protos
from bn_graph.graphs.errors import AuditError, NoModelError

__all__ = ["Source", "Subject", "find", "iterate", "load", "nothing_in", "read"]


class Subject(NamedTuple):
    """One thing to audit.

    Attributes:
        path: of the graph's file, or the checkpoint's; for one of several meta graphs of a SavedModel, with its tags.
        kind: what the file is.
        meta_graph: the graph, of a binary file with `protos.UnparsedNodeDef`; a bare GraphDef is the `graph_def` of an
            otherwise empty one; None for a checkpoint alone.
        checkpoint: the checkpoint that belongs to it, or None.
    """

    path: str
    kind: SubjectKind
    meta_graph: Any
    checkpoint: Checkpoint | None


def read(path: str, checkpoint: str | None = None) -> list[Subject]:
    """Reads every graph and checkpoint that a path stands for.

    A path is one of these, on this machine or behind a URL (`bn_graph.checkpoints.storage`):

    - a ``.meta``; the checkpoint of the same prefix beside it, if any, belongs to it;
    - a checkpoint's prefix, its ``.index``, or a V1 checkpoint; so does the ``.meta`` beside them to them;
    - a SavedModel's directory, or its ``saved_model.pb`` or ``.pbtxt``: a subject for each of its meta graphs;
    - a GraphDef, MetaGraphDef or SavedModel in a file of any name, binary or text;
    - a file of Keras: ``.h5``, ``.weights.h5``, ``.keras``;
    - a file named ``checkpoint``, where a Saver notes its latest;
    - a directory, searched with all below it except hidden ones. If it has a ``checkpoint`` file, of the steps of that
      model only the latest is read (and other models in the same directory as well): the one the file names, also if
      by its path on another machine; where that is gone, the highest step. Without such a file all steps are read.
      Files that are none of these are skipped; so are empty files, Git LFS pointers and pickles with a model's name,
      for which `iterate` has a `NoModelError`. What is meant to be one of these by its name or its first bytes, but
      can't be read, is an error.

    Args:
        path: the path.
        checkpoint: prefix, ``.index``, V1 checkpoint or directory of a checkpoint to use with every graph in place of
            the one beside it.

    Returns:
        The subjects, sorted by path; at least one.

    Raises:
        AuditError: something can't be read, or there is nothing to read; the message is one line and names the file.

    >>> read("no/such/model.ckpt")
    Traceback (most recent call last):
    bn_graph.graphs.errors.AuditError: no/such/model.ckpt: no file, directory or checkpoint of that name is there.
    """
    subjects = []
    for subject in iterate(path, checkpoint):
        if isinstance(subject, Subject):
            subjects.append(subject)
        elif not isinstance(subject, NoModelError):
            raise subject
    return subjects


def iterate(path: str, checkpoint: str | None = None) -> Iterator[Subject | AuditError]:
    """As `read`, one at a time, with the error in place of what can't be read; never raises an AuditError.

    Of a file with a damaged checkpoint beside it, the error comes first, and then the graph alone.

    >>> list(iterate("no/such/model.ckpt"))
    [AuditError('no/such/model.ckpt: no file, directory or checkpoint of that name is there.')]
    """
    only_notes = True
    for source in find(path):
        for subject in load(source, checkpoint):
            only_notes = only_notes and isinstance(subject, NoModelError)
            yield subject
    if only_notes:
        yield nothing_in(path)


def nothing_in(path: str) -> AuditError:
    """The error of a directory without a graph or checkpoint.

    >>> nothing_in("logs")
    AuditError('logs: no graph, SavedModel or checkpoint is in this directory.')
    """
    return AuditError(f"{path}: no graph, SavedModel or checkpoint is in this directory.")


class Source(NamedTuple):
    """Files that make up a subject: the graph's, the checkpoint's prefix; one of them may be None.

    `searched` says that nobody named them: if they turn out to be something else, that is no error.
    """

    graph: str | None
    prefix: str | None
    searched: bool = False


def find(path: str) -> list[Source | AuditError]:
    """The sources that a path stands for, sorted, by names and first bytes alone; errors where one can't be read.

    A `NoModelError` is of a file in a directory, which nobody named.

    >>> find("no/such/model.ckpt")
    [AuditError('no/such/model.ckpt: no file, directory or checkpoint of that name is there.')]
    """
    path = os.fspath(path)
    try:
        with reading(path, "a graph or checkpoint"):
            if not storage.is_dir(path):
                return _named(path)
            return [each if isinstance(each, AuditError) else each._replace(searched=True) for each in _search(path)]
    except AuditError as error:
        return [AuditError(str(error))]


def load(source: Source | AuditError, checkpoint: str | None = None) -> Iterator[Subject | AuditError]:
    """Reads what `find` found: several subjects for a SavedModel of several graphs, none for what is something else."""
    if isinstance(source, AuditError):
        yield source
        return
    try:
        other = None if checkpoint is None else _other_checkpoint(os.fspath(checkpoint))
        if source.graph is None:
            yield _checkpoint_alone(source.prefix, other)
            return
        if is_keras_file(first_bytes(source.graph)):
            yield Subject(source.graph, SubjectKind.KERAS, None, read_keras(source.graph))
            return
        kind, graphs = _parse(source.graph)
    except AuditError as error:
        if not source.searched or isinstance(error, NoModelError) or _meant(source):
            yield error
        return
    try:
        stored = other or (read_checkpoint(source.prefix) if source.prefix else None)
    except AuditError as error:
        yield error
        stored = None
    for graph in graphs:
        tags = f" (tags: {', '.join(graph.meta_info_def.tags) or 'none'})" if len(graphs) > 1 else ""
        yield Subject(source.graph + tags, kind, graph, stored)


def _checkpoint_alone(prefix: str, other: Checkpoint | None) -> Subject:
    if other:
        raise AuditError(f"{prefix}: is a checkpoint without a .meta; pair the other checkpoint with a graph.")
    index = prefix + ".index"
    return Subject(index if storage.exists(index) else prefix, SubjectKind.CHECKPOINT, None, read_checkpoint(prefix))


# From a path to files.


def _named(path: str) -> list[Source]:
    """The files that a path stands for that is no directory."""
    if not storage.exists(path):
        if not _is_there(path):
            raise AuditError(f"{path}: no file, directory or checkpoint of that name is there.")
        return [_with_graph(path)]
    directory, name = os.path.split(path)
    state = checkpoint_state(directory) if name == "checkpoint" else None
    if state is not None:
        latest = latest_checkpoint(directory)
        if latest is None:
            raise AuditError(f"{path}: names {state.model_checkpoint_path!r}, which is not there, nor is another.")
        return [_with_graph(latest)]
    source = _source(path)
    if source is None and name.endswith(".index"):
        return [Source(None, path.removesuffix(".index"))]  # reading it will say what is wrong with it
    if source is None:
        raise AuditError(
            f"{path}: is no graph, SavedModel or checkpoint (expected a .meta, .index, .pb, .pbtxt, .h5, "
            ".keras or V1 checkpoint)."
        )
    return [source]


def _search(top: str) -> list[Source | AuditError]:
    found: dict[str, Source | AuditError] = {}
    seen = set()
    directories = [top]
    while directories:
        directory = directories.pop()
        try:
            with reading(directory, "a directory"):
                identity = storage.identity(directory)
                if identity in seen:
                    continue
                seen.add(identity)
                names = storage.names_in(directory)
                directories += _below(directory, names)
                found.update(_in_directory(directory, names))
        except AuditError as error:
            found[directory] = error
    return [found[path] for path in sorted(found)]


def _below(directory: str, names: list[str]) -> list[str]:
    # A SavedModel's variables belong to it.
    own = {"variables"} if {"saved_model.pb", "saved_model.pbtxt"} & set(names) else set()
    paths = [
        os.path.join(directory, name) for name in names if not name.startswith(".") and name.rstrip("/") not in own
    ]
    return [path for path in paths if storage.is_dir(path)]


def _in_directory(directory: str, names: list[str]) -> dict[str, Source | AuditError]:
    found: dict[str, Source | AuditError] = {}
    for name in names:
        path = os.path.join(directory, name)
        try:
            source = _source_in_search(path, names)
        except AuditError as error:
            source = error if _meant_by_name(name) or name.endswith(".pb") else None
        if source is not None:
            key = path if isinstance(source, AuditError) else source.graph or source.prefix
            found[key] = source
    state = checkpoint_state(directory)
    latest = latest_checkpoint(directory) if state else None
    return _without_older(found, latest, state) if latest else found


def _source_in_search(path: str, names: list[str]) -> Source | None:
    """The source a file belongs to; None for the many files that are something else."""
    name = os.path.basename(path)
    if re.search(r"\.(data-\d{5}-of-\d{5}|ldb|sst)$", name):  # the last two are tables of LevelDB itself
        return None
    if not storage.exists(path) or storage.is_dir(path):
        return None
    with reading(path, "a graph or checkpoint"):
        if not storage.is_url(path) and os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            return None
        source = _source(path)
    prefix = name.removesuffix(".index")
    if source is None and prefix != name and any(other.startswith(prefix + ".data-") for other in names):
        return _with_graph(os.path.join(os.path.dirname(path), prefix))  # reading it will say what is wrong with it
    if source is None and name.endswith(".meta") and not _is_text(first_bytes(path)):
        return Source(path, None)
    return source


def _without_older(found: dict[str, Source | AuditError], latest: str, state: Any) -> dict[str, Source | AuditError]:
    """Of the steps of one model, only the latest."""
    noted = {base_name(path) for path in state.all_model_checkpoint_paths}
    kept: dict[str, Source | AuditError] = {}
    for path, source in found.items():
        prefix = None if isinstance(source, AuditError) else _prefix(source)
        name = os.path.basename(prefix or "")
        if prefix is None or (without_step(name) != without_step(os.path.basename(latest)) and name not in noted):
            kept[path] = source
    source = _with_graph(latest)
    if source.graph:  # MonitoredTrainingSession and estimators write the same graph as text beside it
        kept.pop(os.path.join(os.path.dirname(latest), "graph.pbtxt"), None)
    return {**kept, source.graph or source.prefix: source}


def _prefix(source: Source) -> str | None:
    if source.prefix and not (source.graph and os.path.basename(source.graph).startswith("saved_model.")):
        return source.prefix
    graph = source.graph or ""
    return graph.removesuffix(".meta") if graph.endswith(".meta") else None


def _source(path: str) -> Source | None:
    """What a file is part of; None if it is none of what is read here."""
    kinds = _kinds(path)
    if kinds == (SubjectKind.CHECKPOINT,):
        return _with_graph(re.sub(r"\.index$|-\d{5}-of-\d{5}$", "", path))
    if not kinds:
        return None
    prefix = path.removesuffix(".meta")
    if kinds == (SubjectKind.SAVED_MODEL,):
        prefix = os.path.join(os.path.dirname(path), "variables", "variables")
    return Source(path, prefix if prefix != path and has_tensors(prefix) else None)


def _with_graph(prefix: str) -> Source:
    meta = prefix + ".meta"
    return Source(meta if storage.exists(meta) else None, prefix if has_tensors(prefix) else None)


def _is_there(prefix: str) -> bool:
    return storage.exists(prefix + ".meta") or has_tensors(prefix)


def _meant(source: Source | AuditError) -> bool:
    """Whether a file that can't be read is meant to be read; if not, a search passes over it."""
    if isinstance(source, AuditError) or source.graph is None:
        return True
    return _meant_by_name(source.graph) or _starts_with_node(source.graph)


def _meant_by_name(path: str) -> bool:
    name = os.path.basename(path)
    return name.endswith((".meta", ".index", ".keras")) or name in ("saved_model.pb", "saved_model.pbtxt")


def _starts_with_node(path: str) -> bool:
    try:
        return bool(_FIRST_NODE.match(first_bytes(path)))
    except AuditError:
        return False


def _other_checkpoint(path: str) -> Checkpoint:
    if not storage.is_dir(path):
        return read_checkpoint(path)
    with reading(path, "a checkpoint directory"):
        prefix = latest_checkpoint(path)
    if prefix is None:
        raise AuditError(f"{path}: no checkpoint is in this directory.")
    return read_checkpoint(prefix)


# From a file to what is in it.


def _kinds(path: str) -> tuple[SubjectKind, ...]:
    """What a file can be by its first and last bytes: kinds to try, in order."""
    head = first_bytes(path)
    with reading(path, "a graph or checkpoint"):
        if is_table(path):
            return (SubjectKind.CHECKPOINT,)
        if is_keras_file(head):
            return (SubjectKind.KERAS,)
        return _text_kinds(head) if _is_text(head) else _binary_kinds(path, storage.size(path))


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a sign is cut off at the end of what was read
            return False
    return not re.search(rb"[\0-\x08\x0b\x0e-\x1f\x7f]", head)


def _text_kinds(head: bytes) -> tuple[SubjectKind, ...]:
    first = re.match(rb"(?:\xef\xbb\xbf)?(?:\s|#[^\n]*\n)*(\w+)\s*[:{<]", head)
    return next((kinds for names, kinds in _FIRST_FIELDS.items() if first and first[1].decode() in names.split()), ())


def _binary_kinds(path: str, size: int) -> tuple[SubjectKind, ...]:
    """Tells TensorFlow's messages apart by the numbers and wire types of their first fields."""
    with storage.open_binary(path) as file:
        fields = list(itertools.islice(_fields(file, size), 64))
    if not fields or None in fields:
        return ()
    numbers = [number for number, _ in fields]
    if fields[0] == (1, 0):
        return (SubjectKind.SAVED_MODEL,) if set(fields[1:]) <= {(2, 2)} else ()
    if not set(fields) <= {(1, 2), (2, 2), (3, 0), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 2)}:
        return ()
    return (
        (SubjectKind.META_GRAPH, SubjectKind.GRAPH) if 2 in numbers and numbers.count(1) <= 1 else (SubjectKind.GRAPH,)
    )


def _fields(file, size: int) -> Iterator[tuple[int, int] | None]:
    """Number and wire type of a message's fields; None where it is no message. What is beyond the end is not missed:
    a truncated graph is to be told from what is no graph."""
    position = 0
    while position < size:
        file.seek(position)
        data = file.read(20)
        try:
            tag, end = varint(data, 0)
            value, end = varint(data, end)
        except IndexError:
            return
        except ValueError:
            tag = value = 0
        number, wire = tag >> 3, tag & 7
        if not number or wire not in (0, 2):
            yield None
            return
        yield number, wire
        position += end + (value if wire == 2 else 0)


def _parse(path: str) -> tuple[SubjectKind, list[Any]]:
    """A graph file's kind and meta graphs."""
    kinds = _kinds(path)
    if storage.size(path) >= 1 << 31:
        raise AuditError(f"{path}: is larger than 2 GB, which no protobuf message can be.")
    errors = []
    for kind in kinds:
        try:
            with reading(path, f"a {kind}"):
                return kind, _parse_as(kind, path)
        except AuditError as error:
            errors.append(error)
    raise errors[0] if errors else AuditError(f"{path}: is no graph or SavedModel.")


def _parse_as(kind: SubjectKind, path: str) -> list[Any]:
    with storage.open_binary(path) as file:
        data = file.read()
    is_text = _is_text(data[:4096])
    saved = protos.SavedModel() if is_text else protos.UnparsedSavedModel()
    single = protos.MetaGraphDef() if is_text else protos.UnparsedMetaGraphDef()
    message = {SubjectKind.SAVED_MODEL: saved, SubjectKind.META_GRAPH: single, SubjectKind.GRAPH: single.graph_def}[
        kind
    ]
    if is_text:
        text_format.Parse(data.decode("utf-8-sig"), message, allow_unknown_field=True)
    else:
        message.ParseFromString(data)
    graphs = list(saved.meta_graphs) if kind == SubjectKind.SAVED_MODEL else [single]
    if not any(graph.graph_def.node for graph in graphs):
        raise ValueError("it has no nodes")
    for graph in graphs:
        # A look at the first is enough to tell a graph from other messages, and costs nothing in one of a million nodes.
        if not all(node.name and node.op for node in graph.graph_def.node[:1000]):
            raise ValueError("it has nodes without a name or an op")
    return graphs


_FIRST_FIELDS = {
    "node library version versions": (SubjectKind.GRAPH,),
    "meta_info_def graph_def saver_def collection_def signature_def": (SubjectKind.META_GRAPH,),
    "saved_model_schema_version meta_graphs": (SubjectKind.SAVED_MODEL,),
}
_FIRST_NODE = re.compile(rb"\n[\x80-\xff]{0,4}[\0-\x7f]\n.[\w.\\/>-]+\x12.[A-Z_]\w*", re.DOTALL)
"""How a GraphDef starts: a node with a name and an op."""
