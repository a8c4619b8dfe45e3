"""Results of audits kept in a directory, by what was audited: the files' contents, the options and this program itself.

A result is kept without the names of its files, so that it serves a copy elsewhere as well.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bn_graph.audit.formats.json_format import as_json, from_json
from bn_graph.audit.report import Report, Unread
from bn_graph.audit.subject import Source, Subject
from bn_graph.checkpoints import storage
from bn_graph.checkpoints.files import checkpoint_files, latest_checkpoint, reading, written_beside
from bn_graph.graphs.errors import AuditError

__all__ = ["through"]

_PATH, _PREFIX = "\ue000path\ue000", "\ue000prefix\ue000"
"""What stands for the names of files in what is kept; no file is named so."""


def through(
    directory: str, source: Source, options: Mapping[str, Any], audited: Callable[..., Iterator[Report | Unread]]
) -> list[Report | Unread]:
    """The results of a source: the kept ones, or else those of `audited`, which are kept if all is well with them.

    Args:
        directory: where results are kept.
        source: from `subject.find`.
        options: the keyword arguments of the audit.
        audited: called with the source, its path, what to do with each subject before its audit, and the options.

    A kept result that can't be read is audited again, and one that can't be written is not kept.
    """
    base = source.graph or source.prefix
    try:
        prefix, files = _files(source, options.get("checkpoint"))
        path = os.path.join(directory, f"{_key(files, source, options)}.json")
    except AuditError:  # what is wrong with the file is the audit's to say
        return list(audited(source, base, **options))
    names = ((base, _PATH), (prefix or base, _PREFIX))  # a file of Keras is its own checkpoint
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return _named(Path(path).read_text(encoding="ascii"), names)
    results = list(audited(source, base, functools.partial(_without_names, base), **options))
    if not all(isinstance(result, Report) for result in results):
        return list(audited(source, base, **options))
    kept = json.dumps([as_json(result) for result in results])
    with contextlib.suppress(OSError), written_beside(path, replace=True) as beside:
        Path(beside).write_text(kept, encoding="ascii")
    return _named(kept, names)


def _named(kept: str, names: Iterable[tuple[str, str]]) -> list[Report | Unread]:
    """The reports of a kept result, with names of files in the place of what stands for them."""
    for name, stands_for in names:
        kept = kept.replace(json.dumps(stands_for)[1:-1], json.dumps(name)[1:-1])
    return [from_json(each) for each in json.loads(kept)]


def _files(source: Source, other: str | None) -> tuple[str, list[str]]:
    """The prefix of the checkpoint, empty without one; and the files that the audit reads."""
    graph = [source.graph] if source.graph else []
    checkpoint = other or source.prefix
    if checkpoint is None:
        return "", graph
    with reading(checkpoint, "a checkpoint"):
        if other and storage.is_dir(other):
            checkpoint = latest_checkpoint(other) or other
        prefix, files = checkpoint_files(checkpoint)
    return prefix, graph + files


def _key(files: list[str], source: Source, options: Mapping[str, Any]) -> str:
    others = {name: value for name, value in options.items() if name != "checkpoint"}
    about = [bool(source.graph), bool(source.prefix), bool(options.get("checkpoint")), others]
    digest = hashlib.sha256(f"{_version()} {json.dumps(about, sort_keys=True)}".encode())
    for file in files:
        with reading(file, "a graph or checkpoint"), storage.open_binary(file) as opened:
            content = opened.read()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


@functools.cache
def _version() -> str:
    """What this program is: a hash of the code that an audit runs."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for room in ("audit", "checkpoints", "graphs"):
        for file in sorted((package / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _without_names(base: str, subject: Subject) -> Subject:
    stored = subject.checkpoint and subject.checkpoint._replace(prefix=_PREFIX)
    return subject._replace(path=subject.path.replace(base, _PATH, 1), checkpoint=stored)
