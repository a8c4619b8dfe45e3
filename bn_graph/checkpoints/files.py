"""Files of checkpoints, without TensorFlow: which a path stands for, how they are read and how they are written."""

import contextlib
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from bn_graph.checkpoints import storage
from bn_graph.graphs import protos
from bn_graph.graphs.errors import AuditError, BnGraphError, NoModelError

__all__ = [
    "CheckpointError",
    "base_name",
    "check_writable",
    "checkpoint_files",
    "checkpoint_prefix",
    "checkpoint_state",
    "first_bytes",
    "has_tensors",
    "latest_checkpoint",
    "reading",
    "without_step",
    "written_beside",
]


class CheckpointError(BnGraphError):
    """A checkpoint that does not exist, can't be read, or lacks what the graph needs."""


# --- Which checkpoint a path stands for ---------------------------------------------------------------------------------


def checkpoint_prefix(path: str | os.PathLike) -> str:
    """The prefix of the checkpoint that a path stands for.

    Args:
        path: a prefix, its ``.index``, or a directory, which stands for its `latest_checkpoint`.

    Raises:
        CheckpointError: a directory has no checkpoint.
    """
    path = os.fspath(path)
    prefix = path.removesuffix(".index")
    if storage.exists(prefix + ".index") or not storage.is_dir(path):
        return prefix
    latest = latest_checkpoint(path)
    if latest is None:
        raise CheckpointError(f"The directory {path} holds no checkpoint.")
    return latest


def latest_checkpoint(directory: str) -> str | None:
    """The prefix that the file ``checkpoint`` of a directory names, by name or by its path on another machine.

    Where that is gone, or there is no such file: the highest step in the directory, or the newest. None if it has none.
    """
    state = checkpoint_state(directory)
    if state is None:
        return _highest_step(directory)
    name = state.model_checkpoint_path
    for prefix in (os.path.join(directory, name), os.path.join(directory, base_name(name))):
        if base_name(prefix) and (has_tensors(prefix) or storage.exists(prefix + ".meta")):
            return os.path.normpath(prefix) if os.path.isabs(name) else prefix
    return _highest_step(directory, without_step(base_name(name)))


def checkpoint_state(directory: str) -> "protos.CheckpointState | None":
    """What the file ``checkpoint`` of a directory says, or None if there is none that can be read."""
    path = os.path.join(directory, "checkpoint")
    state = protos.CheckpointState()
    try:
        with reading(path, "a checkpoint state"):
            if not storage.is_file(path) or storage.size(path) > 1 << 24:
                return None
            with storage.open_binary(path) as file:
                text_format.Parse(file.read().decode("utf-8"), state, allow_unknown_field=True)
    except AuditError:
        return None
    return state if state.model_checkpoint_path else None


def _highest_step(directory: str, stem: str | None = None) -> str | None:
    """The prefix with the highest step in a directory, or the newest; of that stem, if it has any of that stem."""
    names = {name.rpartition(".")[0] for name in storage.names_in(directory) if name.endswith((".index", ".meta"))}
    names = {name for name in names if without_step(name) == stem} or names

    def rank(name: str) -> tuple[int, float, str]:
        path = os.path.join(directory, name)
        step = re.search(r"-(\d+)$", name)
        files = [path + suffix for suffix in (".index", ".meta") if storage.exists(path + suffix)]
        return int(step[1]) if step else -1, max(map(storage.modified, files), default=0.0), name

    return os.path.join(directory, max(names, key=rank)) if names else None


def has_tensors(prefix: str) -> bool:
    """Whether there is a checkpoint of that prefix: an index, a V1 checkpoint or a shard of one."""
    if storage.exists(prefix + ".index") or storage.is_file(prefix):
        return True
    return bool(_shards(prefix))


def _shards(prefix: str) -> list[str]:
    """The shards of a V1 checkpoint, sorted."""
    directory, name = os.path.split(prefix)
    shard = re.compile(re.escape(name) + r"-\d{5}-of-\d{5}")
    with contextlib.suppress(OSError):
        near = [other for other in storage.names_in(directory) if other.startswith(name)]
        return [os.path.join(directory, other) for other in near if shard.fullmatch(other)]
    return []


def base_name(path: str) -> str:
    """The last part of a path of any machine, Windows' too."""
    return re.split(r"[\\/]", path)[-1]


def without_step(name: str) -> str:
    """A checkpoint's name without its step: ``model.ckpt`` of ``model.ckpt-100``."""
    return re.sub(r"-\d+$", "", name)


def checkpoint_files(path: str) -> tuple[str, list[str]]:
    """The prefix of the checkpoint that a file belongs to, and the files with its table: one, or a V1 checkpoint's shards.

    Raises:
        AuditError: nothing is there, or some of the shards are not.
    """
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path)
    if prefix + ".index" == path or storage.exists(prefix + ".index"):
        return prefix, [prefix + ".index"]
    shard = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", path)
    prefix = shard[1] if shard and storage.exists(path) else path
    if not shard and storage.exists(path):
        return path, [path]
    shards = _shards(prefix)
    if shard:
        shards = [file for file in shards if file.endswith(shard[2])]
    if not shards:
        raise AuditError(f"{path}: no checkpoint is there (neither that file nor an .index).")
    if len(shards) != int(shards[0][-5:]):
        raise AuditError(f"{prefix}: {len(shards)} of the checkpoint's {int(shards[0][-5:])} shards are there.")
    return prefix, shards


# --- Reading and writing ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turns every error that reading a bad file can raise into an `AuditError` of one line that names the file."""
    try:
        yield
    except AuditError:
        raise
    except MemoryError as error:
        raise AuditError(f"{path}: not enough memory to read it as {what}.") from error
    except RecursionError as error:
        raise AuditError(f"{path}: can't be read as {what}: messages nested too deep.") from error
    except OSError as error:
        raise AuditError(f"{path}: can't be read: {error.strerror or error}.") from error
    except DecodeError as error:
        raise AuditError(f"{path}: can't be read as {what}: it is truncated or corrupted.") from error
    except (text_format.Error, ArithmeticError, EOFError, LookupError, TypeError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise AuditError(f"{path}: can't be read as {what}: {reason}.") from error


def first_bytes(path: str) -> bytes:
    """Up to 4096 bytes from the start of a file, if these are of the file itself.

    Raises:
        NoModelError: it is empty, a Git LFS pointer or a pickle.
        AuditError: it is missing, a symbolic link to nowhere, no regular file, or gzipped.
    """
    with reading(path, "a file"):
        if not storage.is_url(path):
            if os.path.islink(path) and not os.path.exists(path):
                raise AuditError(f"{path}: is a symbolic link to {os.readlink(path)}, which is not there.")
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise AuditError(f"{path}: is no regular file.")
        with storage.open_binary(path) as file:
            head = file.read(4096)
        if not head:
            raise NoModelError(f"{path}: is empty.")
        if head.startswith(b"version https://git-lfs"):
            raise NoModelError(f"{path}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`.")
        if re.match(rb"\x80[\2-\5]", head):
            raise NoModelError(f"{path}: is a Python pickle, no graph or checkpoint.")
        if head.startswith(b"\x1f\x8b"):
            raise AuditError(f"{path}: is compressed by gzip; unpack it first.")
        return head


def check_writable(directory: str) -> None:
    """Makes a directory if it is not there, and tries whether a file can be made in it.

    Raises:
        AuditError: no; the message is one line.
    """
    if storage.is_url(directory):
        raise AuditError(f"{directory}: can't be written to: expected a directory of this machine, not a URL.")
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise AuditError(f"{directory or repr(directory)}: can't be written to: {error.strerror}.") from error


@contextlib.contextmanager
def written_beside(path: str | os.PathLike, *, replace: bool = False) -> Iterator[str]:
    """A path to write to, in a hidden directory beside `path`; what is written there is moved to its place at the end.

    If writing fails, or is interrupted, nothing of it is left and nothing that was there has changed.

    Args:
        path: of a file or directory; its own directory is made. Files whose names begin like it, as a checkpoint's do,
            may be written beside it and are moved along, an ``.index`` last: without it there is no checkpoint.
        replace: a file of that name may exist, and is replaced.

    Yields:
        A path with the same last part.

    Raises:
        FileExistsError: `path` exists, unless it may be replaced.
        OSError: as writing and moving raise it.
    """
    path = os.path.abspath(path)
    if not replace and os.path.lexists(path):
        raise FileExistsError(f"{path} exists; name another, or remove it first.")
    parent, base = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    moved: list[str] = []
    with tempfile.TemporaryDirectory(prefix=f".{base}.", dir=parent) as beside:
        yield os.path.join(beside, base)
        try:
            for name in sorted(os.listdir(beside), key=lambda name: name.endswith(".index")):
                os.replace(os.path.join(beside, name), os.path.join(parent, name))
                moved.append(os.path.join(parent, name))
        except BaseException:
            for done in moved:
                os.unlink(done)
            raise
