"""Finds the documented batch norm bugs in anybody's graph, checkpoint or SavedModel. Reads protos; runs nothing.

In the order of an audit: `subject` says what a path holds, `model` (with `outputs` and `stored`) works out what is known of
it, `rules` decide, `report` is the result, `formats` print it; `many` does that for many
files, `cache` keeps results. None of them imports TensorFlow.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bn_graph.audit import subject as subjects
from bn_graph.audit.details import details_of, stored_details
from bn_graph.audit.model import make_model, row
from bn_graph.audit.not_understood import find_not_understood, unpaired_variances
from bn_graph.audit.report import (
    AuditError,
    CannotTell,
    Finding,
    FindingsError,
    LayerRow,
    Mode,
    NotUnderstood,
    Report,
    Saved,
    SubjectKind,
)
from bn_graph.audit.rules import Rule, collect, selected
from bn_graph.audit.stored import StoredLayer, layers_by_name
from bn_graph.graphs.errors import NoModelError
from bn_graph.graphs.protos import MetaGraphDef, VariableDef

__all__ = [
    "AuditError",
    "CannotTell",
    "Finding",
    "FindingsError",
    "LayerRow",
    "Report",
    "audit",
    "audit_all",
]


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
        path_or_graph: a path that stands for one of them, as `subject.read` takes it; or a live ``tf.Graph``, or a
            GraphDef or MetaGraphDef, which is copied and not changed.
        checkpoint: prefix, ``.index`` or directory of a checkpoint to use in place of the one beside the graph.
        outputs: names of the inference outputs, where the audit can't determine them.
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


def audit_all(
    path_or_graph: Any,
    *,
    checkpoint: str | None = None,
    outputs: Sequence[str] = (),
    train_ops: Sequence[str] = (),
    feeds: Mapping[str, bool | float] | None = None,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> list[Report]:
    """Audits everything that a path stands for: as `audit`, with the same arguments, a report for each.

    Raises:
        AuditError: as `audit`, but for several graphs; the first file that can't be read ends it.

    Example:
        >>> from bn_graph.audit import audit_all
        >>> from bn_graph.graphs.protos import GraphDef, NodeDef
        >>> [len(report.layers) for report in audit_all(GraphDef(node=[NodeDef(name="x", op="Placeholder")]))]
        [0]
    """
    rules = selected(select, ignore)
    reports = []
    for subject in _subjects(path_or_graph, checkpoint):
        if isinstance(subject, subjects.Subject):
            reports.append(report_of(subject, rules, outputs=outputs, train_ops=train_ops, feeds=feeds))
        elif not isinstance(subject, NoModelError):
            raise subject
    return reports


def _subjects(path_or_graph: Any, checkpoint: str | None) -> Iterator[subjects.Subject | AuditError]:
    if isinstance(path_or_graph, str | os.PathLike):
        yield from subjects.iterate(os.fspath(path_or_graph), checkpoint)
        return
    stored = None if checkpoint is None else subjects.read(checkpoint)[0].checkpoint
    yield subjects.Subject(SubjectKind.LIVE_GRAPH.value, SubjectKind.LIVE_GRAPH, _meta_graph(path_or_graph), stored)


def _meta_graph(graph: Any) -> MetaGraphDef:
    """A live graph, or a proto of TensorFlow's own classes, as this package's."""
    meta_graph = MetaGraphDef()
    if hasattr(graph, "as_graph_def"):
        meta_graph.graph_def.ParseFromString(graph.as_graph_def(add_shapes=True).SerializeToString())
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


def report_of(
    subject: subjects.Subject,
    rules: Sequence[Rule],
    *,
    outputs: Sequence[str] = (),
    train_ops: Sequence[str] = (),
    feeds: Mapping[str, bool | float] | None = None,
    details: bool = False,
) -> Report:
    """The report of one subject; `rules` are from `rules.selected`, the other arguments are those of `audit`.

    `details` asks for `Report.details`, for which small tensors of a checkpoint's ``.data`` file are read.

    Raises:
        AuditError: the graph has no node of a name that is given.
    """
    try:
        with _without_collector():
            if subject.meta_graph is None:
                return _checkpoint_report(subject, rules, details)
            return _graph_report(subject, rules, details, outputs=outputs, train_ops=train_ops, feeds=feeds)
    except AuditError as error:
        raise AuditError(f"{subject.path}: {error}") from error


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


def _graph_report(subject: subjects.Subject, rules: Sequence[Rule], details: bool, **options: Any) -> Report:
    model = make_model(subject.meta_graph, subject.checkpoint, **options)
    findings, undetermined = collect((rule, rule.check(model)) for rule in rules)
    rows = [row(model, layer) for layer in model.layers]
    listed = find_not_understood(model.graph, model.uses, model.layers, subject.meta_graph.graph_def)
    report = _report(subject, rows, findings, undetermined, model.graph.node_count, listed)
    return report._replace(details=details_of(model)) if details else report


def _checkpoint_report(subject: subjects.Subject, rules: Sequence[Rule], details: bool) -> Report:
    stored = layers_by_name(subject.checkpoint, only_batch_norm=subject.kind == SubjectKind.KERAS)
    findings, undetermined = collect((rule, rule.check_checkpoint(stored)) for rule in rules if rule.check_checkpoint)
    rows = [_stored_row(layer) for layer in stored.layers]
    listed = unpaired_variances(subject.checkpoint, stored.layers)
    report = _report(subject, rows, findings, undetermined, not_understood=listed)
    return report._replace(details=stored_details(stored, subject.checkpoint)) if details else report


def _stored_row(layer: StoredLayer) -> LayerRow:
    parameters = {role.value: key for role, key in layer.parameters.items()}
    variables = {**parameters, "moving_mean": layer.mean, "moving_variance": layer.variance}
    return LayerRow(layer.name, "-", Mode.UNKNOWN, Mode.UNKNOWN, "-", Saved.ABSENT, layer.state, variables)


def _report(
    subject: subjects.Subject,
    rows: Sequence[LayerRow],
    findings: Sequence[Finding],
    undetermined: Sequence[CannotTell],
    nodes: int = 0,
    not_understood: tuple[NotUnderstood, ...] = (),
) -> Report:
    prefix = None if subject.checkpoint is None else subject.checkpoint.prefix
    report = Report(subject.path, subject.kind, prefix, tuple(rows), tuple(findings), tuple(undetermined), nodes)
    return report._replace(not_understood=not_understood)
