"""The audit itself: a path, a GraphDef or a live graph in, reports out."""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bn_graph.audit import subject as files
from bn_graph.audit.checkpoint_alone import audit_checkpoint
from bn_graph.audit.findings import AuditError, Report
from bn_graph.audit.model import make_model, row
from bn_graph.audit.paths import find_paths
from bn_graph.audit.rules import RULES, apply_rules
from bn_graph.checkpoints.index import Checkpoint
from bn_graph.graphs.protos import MetaGraphDef, VariableDef

__all__ = ["audit", "audit_all", "iterate", "selected"]


def audit(
    path_or_graph: Any,
    *,
    checkpoint: str | None = None,
    outputs: Sequence[str] = (),
    train_ops: Sequence[str] = (),
    feeds: Mapping[str, bool | float] | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Report:
    """Audits one graph or checkpoint.

    Args:
        path_or_graph: a path that stands for one of them, as `files.read` takes it; or a live ``tf.Graph``, or a
            GraphDef or MetaGraphDef, which is copied and not changed.
        checkpoint: prefix, ``.index`` or directory of a checkpoint to use in place of the one beside the graph.
        outputs: names of the inference outputs, where the audit can't tell them.
        train_ops: names of the train ops, if not everything that applies gradients is one.
        feeds: values of placeholders at inference, by name: which way a mode switch stands.
        select, ignore: codes of rules, or beginnings of codes (``"BN1"``); all rules if `select` is empty.

    Returns:
        `Report`. Of a SavedModel with several meta graphs, use `audit_all`.

    Raises:
        AuditError: the file can't be read or is none of these; it stands for several graphs; the graph has no node of a
            name that is given; an unknown rule.

    Example:
        >>> import bn_graph
        >>> from bn_graph.audit import audit
        >>> from bn_graph.tf1 import legacy_layers, tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 2])
        ...     y = legacy_layers().batch_normalization(x, training=True, name="bn1")
        ...     train_op = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_sum(y))  # without update ops
        >>> [(finding.code, finding.layers) for finding in audit(graph).errors if finding.code == "BN001"]
        [('BN001', ('bn1',))]
    """
    reports = audit_all(
        path_or_graph,
        checkpoint=checkpoint,
        outputs=outputs,
        train_ops=train_ops,
        feeds=feeds,
        select=select,
        ignore=ignore,
    )
    if len(reports) > 1:
        raise AuditError(
            f"{path_or_graph}: {len(reports)} graphs and checkpoints are there, where one was expected; name one of them, "
            "or use audit_all."
        )
    return reports[0]


def audit_all(path_or_graph: Any, **options: Any) -> list[Report]:
    """Audits everything that a path stands for: as `audit`, with the same arguments, a report for each.

    Raises:
        AuditError: as `audit`, but for several graphs; the first thing that can't be read ends it. `iterate` goes on.

    Example:
        >>> from bn_graph.audit import audit_all
        >>> from bn_graph.graphs.protos import GraphDef, NodeDef
        >>> [len(report.layers) for report in audit_all(GraphDef(node=[NodeDef(name="x", op="Placeholder")]))]
        [0]
    """
    reports = []
    for report in iterate(path_or_graph, **options):
        if isinstance(report, AuditError):
            raise report
        reports.append(report)
    return reports


def iterate(
    path_or_graph: Any,
    *,
    checkpoint: str | None = None,
    outputs: Sequence[str] = (),
    train_ops: Sequence[str] = (),
    feeds: Mapping[str, bool | float] | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> Iterator[Report | AuditError]:
    """As `audit_all`, a report at a time, and the error in place of a report on what can't be read."""
    codes = selected(select, ignore)
    for subject in _subjects(path_or_graph, checkpoint):
        if isinstance(subject, AuditError):
            yield subject
            continue
        try:
            with _without_collector():
                report = _report(subject, codes, outputs, train_ops, feeds)
            yield report
        except AuditError as error:
            yield AuditError(f"{subject.path}: {error}")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps Python's collector of cycles from searching a graph's many lists again and again: a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def selected(select: Iterable[str], ignore: Iterable[str]) -> list[str]:
    """The codes of the rules to apply.

    Raises:
        AuditError: a code, or beginning of one, that no rule has.

    Example:
        >>> from bn_graph.audit.auditing import selected
        >>> selected(["BN1"], ["BN103"])
        ['BN101', 'BN102']
    """
    for wanted in (*select, *ignore):
        if not wanted or not any(code.startswith(wanted) for code in RULES):
            raise AuditError(f"there is no rule {wanted!r}; the rules are {', '.join(RULES)}")
    chosen = [code for code in RULES if not select or code.startswith(tuple(select))]
    return [code for code in chosen if not ignore or not code.startswith(tuple(ignore))]


def _subjects(path_or_graph: Any, checkpoint: str | None) -> Iterator[files.Subject | AuditError]:
    if isinstance(path_or_graph, str | os.PathLike):
        yield from files.iterate(os.fspath(path_or_graph), checkpoint)
        return
    stored = None
    if checkpoint is not None:
        stored = files.read(checkpoint)[0].checkpoint
    yield files.Subject("live graph", "live graph", _meta_graph(path_or_graph), stored)


def _meta_graph(graph: Any) -> MetaGraphDef:
    """A live graph, or a proto of TensorFlow's own classes, as this package's."""
    meta_graph = MetaGraphDef()
    if hasattr(graph, "as_graph_def"):
        meta_graph.graph_def.ParseFromString(graph.as_graph_def().SerializeToString())
        trainable = meta_graph.collection_def["trainable_variables"].bytes_list
        for variable in graph.get_collection("trainable_variables"):
            trainable.value.append(VariableDef(variable_name=variable.name).SerializeToString())
    elif hasattr(graph, "graph_def"):
        meta_graph.ParseFromString(graph.SerializeToString())
    elif hasattr(graph, "node"):
        meta_graph.graph_def.ParseFromString(graph.SerializeToString())
    else:
        raise AuditError(f"expected a path, a tf.Graph, a GraphDef or a MetaGraphDef, got {type(graph).__name__}")
    return meta_graph


def _report(
    subject: files.Subject,
    codes: Sequence[str],
    outputs: Sequence[str],
    train_ops: Sequence[str],
    feeds: Mapping[str, bool | float] | None,
) -> Report:
    checkpoint: Checkpoint | None = subject.checkpoint
    prefix = None if checkpoint is None else checkpoint.prefix
    if subject.meta_graph is None:
        rows, findings, untold = audit_checkpoint(checkpoint, codes)
        return Report(subject.path, subject.kind, prefix, tuple(rows), tuple(findings), tuple(untold))
    model = make_model(subject.meta_graph, checkpoint, outputs=outputs, train_ops=train_ops, feeds=feeds)
    paths = find_paths(model)
    findings, untold = apply_rules(model, paths, codes)
    rows = tuple(row(model, layer, paths[layer.name].mode) for layer in model.layers)
    return Report(subject.path, subject.kind, prefix, rows, tuple(findings), tuple(untold), model.graph.node_count)
