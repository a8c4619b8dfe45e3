"""Finds the documented batch norm bugs in anybody's graph, checkpoint or SavedModel. Reads protos; runs nothing."""

from bn_graph.audit.auditing import audit, audit_all
from bn_graph.audit.findings import AuditError, CannotTell, Finding, FindingsError, LayerRow, Report

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
