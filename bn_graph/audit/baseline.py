"""A baseline: a file of findings that are known and accepted, so that only new ones count.

It is JSON, ``{"version": 1, "findings": [{"path", "code", "layers": [name]}]}``; paths are as seen from its own directory.
A finding is known by its file, its rule and its layers: one for a further layer is new.
"""

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from bn_graph.audit.report import Finding, Report
from bn_graph.checkpoints import files
from bn_graph.checkpoints.storage import is_url
from bn_graph.graphs.errors import AuditError

__all__ = ["Known", "check_writable", "known_findings", "read", "with_accepted", "write"]

VERSION = 1
Known = Collection[tuple[str, str, str]]
"""Path, code and layer (empty for a finding without any)."""


def read(path: str) -> Known:
    """The findings that a baseline accepts.

    Raises:
        AuditError: the file can't be read, or is no baseline.
    """
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
        if whole["version"] != VERSION:
            raise AuditError(f"{path}: is a baseline of version {whole['version']}; expected {VERSION}.")
        entries = [(each["path"], each["code"], list(each["layers"])) for each in whole["findings"]]
    except OSError as error:
        raise AuditError(f"{path}: can't be read: {error.strerror}. Make one with --write-baseline.") from error
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, AuditError):
            raise
        raise AuditError(f"{path}: is no baseline; make one with --write-baseline.") from error
    return frozenset((file, code, layer) for file, code, layers in entries for layer in layers or [""])


def check_writable(path: str) -> None:
    """Tries whether a baseline can be written, before the work that it is to be written of.

    Raises:
        AuditError: no; the message is one line.
    """
    if not path or os.path.isdir(path) or is_url(path):
        raise AuditError(f"{path or repr(path)}: is no file to write a baseline to.")
    files.check_writable(os.path.dirname(os.path.abspath(path)))


def write(path: str, known: Iterable[tuple[str, str, str]]) -> None:
    """Writes a baseline of what `known_findings` gave."""
    layers: dict[tuple[str, str], list[str]] = {}
    for file, code, layer in sorted(set(known)):
        layers.setdefault((file, code), []).extend([layer] if layer else [])
    entries = [{"path": file, "code": code, "layers": names} for (file, code), names in layers.items()]
    with files.written_beside(path, replace=True) as beside:
        whole = json.dumps({"version": VERSION, "findings": entries}, indent=1)
        Path(beside).write_text(whole + "\n", encoding="utf-8")


def known_findings(report: Report, path: str) -> list[tuple[str, str, str]]:
    """What a baseline at `path` would accept of a report."""
    return [
        (_seen_from(path, report.path), finding.code, layer)
        for finding in report.findings
        for layer in finding.layers or ("",)
    ]


def with_accepted(report: Report, known: Known, path: str) -> Report:
    """The report with its known findings moved to `Report.accepted`; of one that is known in part, those layers."""
    file = _seen_from(path, report.path)
    new: list[Finding] = []
    accepted: list[Finding] = []
    for finding in report.findings:
        is_known = [(file, finding.code, layer) in known for layer in finding.layers or ("",)]
        if all(is_known):
            accepted.append(finding)
        elif not any(is_known):
            new.append(finding)
        else:
            paired = list(zip(finding.layers, is_known, strict=True))
            accepted.append(finding._replace(layers=tuple(layer for layer, known_one in paired if known_one)))
            new.append(finding._replace(layers=tuple(layer for layer, known_one in paired if not known_one)))
    return report._replace(findings=tuple(new), accepted=tuple(accepted))


def _seen_from(baseline: str, path: str) -> str:
    if is_url(path):
        return path
    return Path(os.path.relpath(path, os.path.dirname(os.path.abspath(baseline)))).as_posix()
