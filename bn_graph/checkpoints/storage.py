"""Files on this machine or behind a URL (``gs://``, ``s3://``, ``http://``, ``memory://`` and whatever else fsspec reads).

These are the few questions that reading graphs and checkpoints asks of files. Behind a URL only the parts are fetched that
are read, unless an HTTP server can't give parts.
"""

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from bn_graph.graphs.errors import AuditError

__all__ = ["exists", "identity", "is_dir", "is_file", "is_url", "modified", "names_in", "open_binary", "size"]

_BLOCK = 1 << 18  # bytes that are fetched at once


def is_url(path: str) -> bool:
    """Whether a path is a URL.

    >>> is_url("gs://bucket/model.ckpt.meta"), is_url("logs/model.ckpt.meta")
    (True, False)
    """
    return "://" in path


def exists(path: str) -> bool:
    """Whether there is a file, directory or symbolic link of that name."""
    return _info(path) is not None or is_dir(path) if is_url(path) else os.path.lexists(path)


def is_file(path: str) -> bool:
    """Whether that is a file."""
    return (_info(path) or {}).get("type") == "file" if is_url(path) else os.path.isfile(path)


def is_dir(path: str) -> bool:
    """Whether that is a directory; over HTTP, where nothing else tells, a URL that ends with a slash."""
    if not is_url(path):
        return os.path.isdir(path)
    return path.endswith("/") or (not _is_http(path) and (_info(path) or {}).get("type") == "directory")


def size(path: str) -> int:
    """The size of a file in bytes."""
    if not is_url(path):
        return os.path.getsize(path)
    with open_binary(path) as file:
        return file.seek(0, os.SEEK_END)


def modified(path: str) -> float:
    """When a file was last written, in seconds; 0 behind URLs, which do not all tell."""
    return 0.0 if is_url(path) else os.path.getmtime(path)


def identity(directory: str) -> Any:
    """What two names of one directory have in common."""
    if is_url(directory):
        return directory
    status = os.stat(directory)
    return status.st_dev, status.st_ino


def names_in(directory: str) -> list[str]:
    """The names in a directory, sorted; behind URLs, those of directories end with a slash."""
    if not is_url(directory):
        return sorted(os.listdir(directory or "."))
    with _errors_of_files(directory):
        files, inner = _file_system(directory)
        found = files.ls(inner, detail=True)
    names = {each["name"].rstrip("/").rpartition("/")[2] + "/" * (each["type"] == "directory") for each in found}
    # A directory may list itself, and pages that list files have links for their order.
    own = inner.rstrip("/").rpartition("/")[2]
    return sorted(name for name in names if name.strip("/") not in ("", own) and "?" not in name)


def open_binary(path: str) -> BinaryIO:
    """The file, open for reading.

    Raises:
        OSError: it is not there, or can't be reached.
    """
    if not is_url(path):
        return open(path, "rb")
    with _errors_of_files(path):
        files, inner = _file_system(path)
        if not _is_http(path):
            return files.open(inner, "rb", block_size=_BLOCK)
        info = files.info(inner)
        if info.get("partial"):
            return files.open(inner, "rb", block_size=_BLOCK, size=info["size"])
        return io.BytesIO(_content(path, str(sorted(info.items(), key=str))))


@functools.lru_cache(maxsize=2)
def _content(path: str, stamp: str) -> bytes:
    """All of a file, kept while `stamp` says that it is the same."""
    files, inner = _file_system(path)
    return files.cat_file(inner)


def _is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _info(path: str) -> dict | None:
    try:
        with _errors_of_files(path):
            files, inner = _file_system(path)
            return files.info(inner)
    except FileNotFoundError:
        return None


def _file_system(path: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise AuditError(f"{path}: reading URLs needs fsspec: pip install 'bn_graph[remote]'.") from error
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:  # the package for this kind of URL
        raise AuditError(f"{path}: {error}.") from error


@contextlib.contextmanager
def _errors_of_files(path: str) -> Iterator[None]:
    """Every error that a file system's own package may raise, as an OSError."""
    try:
        yield
    except (OSError, AuditError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
