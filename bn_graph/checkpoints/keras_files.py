"""The batch norm variables of Keras' own files, by the names that a checkpoint of TensorFlow would have for them.

==================  =========================================================================================
file                what is read
==================  =========================================================================================
``.h5``             a model or weights of Keras 1 and 2 and of tf.keras: the attribute ``weight_names`` of its groups
``.weights.h5``     weights of Keras 3: groups ``…/vars``, whose arrays are numbered
``.keras``          a zip archive of Keras 3 (and of 2.12 on): those, and ``config.json``, which says what each layer is
==================  =========================================================================================

h5py reads them (the extra ``keras``); neither Keras nor TensorFlow is imported, and nothing of the configuration is run.
"""

import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from bn_graph.checkpoints import storage
from bn_graph.checkpoints.index import Checkpoint, Entry
from bn_graph.graphs.errors import AuditError, NoModelError

__all__ = ["is_keras_file", "read_keras"]

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")
_OLD_NAME = re.compile(r"(.+)_(gamma|beta|running_mean|running_std)(_\d+)?")
_OLD_ROLES = {"running_mean": "moving_mean", "running_std": "moving_variance"}  # the latter holds the variance
_BATCH_NORM = re.compile(r"(sync_?)?batch_?norm(alization)?(_v[12])?(_\d+)?|bn(_?\d+)?|.*_bn", re.IGNORECASE)
_MOST_CHANNELS = 1 << 20


def is_keras_file(head: bytes) -> bool:
    """Whether a file that begins like this may be Keras': HDF5, or a zip archive.

    Example:
        >>> from bn_graph.checkpoints.keras_files import is_keras_file
        >>> is_keras_file(b"\\x89HDF\\r\\n\\x1a\\n..."), is_keras_file(b"\\n\\x04")
        (True, False)
    """
    return head.startswith((_HDF5, _ZIP))


def read_keras(path: str) -> Checkpoint:
    """Reads gamma, beta and the moving statistics of a file's batch norm layers; other variables are left out.

    Args:
        path: of an ``.h5`` or ``.keras`` file.

    Returns:
        `Checkpoint` with keys such as ``block1/bn/moving_mean``, and the values themselves.

    Raises:
        NoModelError: an HDF5 file or zip archive of something else; an HDF5 file without h5py.
        AuditError: the file is damaged, or h5py is not installed.
    """
    try:
        with _opened(path) as (weights, config):
            if weights is None:
                raise NoModelError(f"{path}: is no file of Keras' weights.")
            entries = dict(_entries(weights, config))
    except AuditError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise AuditError(f"{path}: can't be read as Keras' file: {' '.join(str(error).split())}.") from error
    return Checkpoint(path, dict(sorted(entries.items())))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The group that holds the weights, None if there is none, and the model's configuration so far as it is there."""
    config: Any = {}
    with contextlib.ExitStack() as opened:
        source: Any = opened.enter_context(storage.open_binary(path)) if storage.is_url(path) else path
        if zipfile.is_zipfile(source):
            archive = opened.enter_context(zipfile.ZipFile(source))
            if _WEIGHTS not in archive.namelist():
                yield None, {}
                return
            source = opened.enter_context(archive.open(_WEIGHTS))  # stored as it is, so that arrays can be sought
            config = json.loads(archive.read(_CONFIG)) if _CONFIG in archive.namelist() else {}
        file = opened.enter_context(_h5py(path).File(source, "r"))
        if "model_config" in file.attrs:
            config = json.loads(_text(file.attrs["model_config"]))
        root = file.get("model_weights", file)
        named = "layer_names" in root.attrs or any(name in root for name in _CONTAINERS)
        yield (root if named or "vars" in root else None), config if isinstance(config, dict) else {}


def _h5py(path: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        reason = "needs h5py to be read: pip install 'bn_graph[keras]'."
        if path.endswith(".keras"):
            raise AuditError(f"{path}: {reason}") from error
        raise NoModelError(f"{path}: is an HDF5 file, and if it is Keras', it {reason}") from error  # or it is data
    return h5py


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _entries(weights: Any, config: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    """The variables of batch norm layers, by their keys."""
    import h5py

    types = dict(_layer_types(config))
    groups: list[tuple[str, Any]] = [("", weights)]
    while groups:
        name, group = groups.pop()
        if "weight_names" in group.attrs:
            yield from _named_weights(name, group, types)
            continue
        children = [(key, group[key]) for key in group if group.get(key, getclass=True) is h5py.Group]
        for key, child in children:
            if key == "vars":
                yield from _numbered_weights(name, child)
            elif (name, key) != ("", "optimizer"):
                groups.append((f"{name}/{key}" if name else key, child))


def _layer_types(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each layer's name and class, of layers in layers as well."""
    pending: list[Any] = [config]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            inner = one.get("config")
            if (
                isinstance(one.get("class_name"), str)
                and isinstance(inner, dict)
                and isinstance(inner.get("name"), str)
            ):
                yield inner["name"], one["class_name"]
            pending += [value for value in one.values() if isinstance(value, dict | list)]


def _named_weights(layer: str, group: Any, types: Mapping[str, str]) -> Iterator[tuple[str, Entry]]:
    """Of a group whose arrays have the names of variables: ``bn/gamma:0``, in Keras 1 ``batchnormalization_1_gamma``."""
    for weight in map(_text, group.attrs["weight_names"]):
        plain = weight.partition(":")[0]
        old = _OLD_NAME.fullmatch(plain)
        scope, _, role = plain.rpartition("/")
        if role not in _ROLES and old:
            scope, role = old[1], _OLD_ROLES.get(old[2], old[2])
        role = re.sub(r"_\d+$", "", role) if role not in _ROLES else role
        scope = scope or layer
        known = types.get(layer) or types.get(scope.rpartition("/")[2])
        is_batch_norm = "BatchNorm" in known if known in _SINGLE else _BATCH_NORM.fullmatch(scope.rpartition("/")[2])
        if role in _ROLES[2:] or (role in _ROLES and is_batch_norm):
            entry = _entry(group.get(weight))
            if entry is not None:
                yield f"{scope}/{role}", entry


_SINGLE = frozenset(
    {"BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization"}
) | {
    "LayerNormalization",
    "GroupNormalization",
    "InstanceNormalization",
}
"""Classes of layers with a gamma and a beta; of another class, such as a model in a model, the variables' names tell."""


def _numbered_weights(path: str, variables: Any) -> Iterator[tuple[str, Entry]]:
    """Of a group of Keras 3: gamma, beta (where it has them), moving mean, moving variance, in this order."""
    entries = [_entry(variables.get(str(number))) for number in range(len(variables))]
    if None in entries or not 2 <= len(entries) <= 4 or len({entry.shape for entry in entries}) != 1:
        return
    scopes = [scope for scope in path.split("/") if scope not in _CONTAINERS]
    of_class = _BATCH_NORM.fullmatch(scopes[-1]) if scopes else None
    if "name" in variables.attrs:  # the path has the class and a number, as layers/batch_normalization_1
        scopes[-1:] = [_text(variables.attrs["name"])]
    # Only batch norm has three or four vectors of one length. Two may be layer normalization's gamma and beta.
    if len(entries) == 2 and not of_class:
        return
    roles = _ROLES if len(entries) == 4 else _ROLES[2:]
    for role, entry in zip(roles, entries[-len(roles) :], strict=True):
        yield "/".join([*scopes, role]), entry


_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


def _entry(dataset: Any) -> Entry | None:
    """A vector of channels, read; None of anything else."""
    if dataset is None or len(getattr(dataset, "shape", ())) != 1 or dataset.shape[0] > _MOST_CHANNELS:
        return None
    if dataset.dtype.kind != "f":
        return None
    return Entry(dataset.dtype.name, dataset.shape, value=dataset[()])
