"""Checkpoints read without TensorFlow, and without the ``.data`` file where the ``.index`` is enough.

A checkpoint's ``.index`` is a table in LevelDB's format: sorted keys, each with a `BundleEntryProto` that says dtype,
shape and the CRC-32C of the tensor's bytes. The CRC of a constant repeated n times takes O(log n) steps to compute, so
whether a tensor is all 0 or all 1 is known without its data (`is_filled_with`). Checkpoints of TensorFlow before 0.12
(V1) are tables too, with the values in them.
"""

import glob
import math
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bn_graph.checkpoints import storage, table
from bn_graph.checkpoints.crc32c import crc32c, crc32c_of_repeated, unmasked
from bn_graph.checkpoints.files import checkpoint_files, first_bytes, reading
from bn_graph.graphs import protos
from bn_graph.graphs.errors import AuditError

__all__ = ["Checkpoint", "Entry", "Slice", "equals", "is_filled_with", "read_checkpoint", "read_value"]


_VALUES = 1_000_000
"""Tensors of V1 checkpoints with more elements than this keep no value: no statistics have as many channels."""

_NUMERIC = re.compile(r"float(16|32|64)|u?int(8|16|32|64)|bool|complex(64|128)")
_OVERFLOWS = {"float16": 65520.0, "bfloat16": 2.0**128 - 2.0**119, "float32": 2.0**128 - 2.0**103}
"""The smallest number that is rounded to infinity."""

_NAMES = {"float": "float32", "double": "float64", "half": "float16"}
_DTYPES = {
    number: _NAMES.get(name.lower(), name.lower()) for number, name in enumerate(protos._DTYPES.split()) if number
}


class Slice(NamedTuple):
    """A block of a partitioned variable: where it starts, its shape, and the CRC of its bytes (None: not known)."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    crc32c: int | None


class Entry(NamedTuple):
    """A tensor of a checkpoint.

    Attributes:
        dtype: its type as NumPy would name it: ``float32``, ``int64``, ``bfloat16``, ``string``, …
        shape: of the whole tensor, also where it is stored in slices.
        crc32c: unmasked CRC-32C of its bytes; None where the file has none (slices, strings, V1).
        value: the tensor, where the file itself holds it and it is small (V1 checkpoints); else None.
        slices: the blocks that a partitioned variable is stored in; empty for others.
        at: number of the ``.data`` file and the offset in it; None for slices, and in V1.
    """

    dtype: str
    shape: tuple[int, ...]
    crc32c: int | None = None
    value: np.ndarray | None = None
    slices: tuple[Slice, ...] = ()
    at: tuple[int, int] | None = None


class Checkpoint(NamedTuple):
    """A checkpoint's prefix, as a Saver's `restore` takes it, and its entries by their keys, sorted."""

    prefix: str
    entries: dict[str, Entry]


def read_checkpoint(path: str) -> Checkpoint:
    """Reads what a checkpoint holds: names, dtypes, shapes and CRCs; values only of small tensors of V1 checkpoints.

    Args:
        path: a checkpoint's prefix, its ``.index``, one of its ``.data-…`` files (the ``.index`` beside it is read), a
            V1 checkpoint, or one of a V1 checkpoint's shards ``…-00000-of-00002`` (all of them are read).

    Returns:
        The `Checkpoint`. Keys are as they are in the file: those of object-based checkpoints of TensorFlow 2 look like
        ``layer/moving_mean/.ATTRIBUTES/VARIABLE_VALUE``. A partitioned variable is one entry.

    Raises:
        AuditError: nothing is there, or it can't be read, or it is no checkpoint, is truncated, corrupted or big-endian.

    >>> read_checkpoint("no/such/model.ckpt")
    Traceback (most recent call last):
    bn_graph.graphs.errors.AuditError: no/such/model.ckpt: no checkpoint is there (neither that file nor an .index).
    """
    path = os.fspath(path)
    with reading(path, "a checkpoint"):
        prefix, files = checkpoint_files(path)
    entries: dict[str, Entry] = {}
    parts: dict[str, list[_Part]] = {}
    for file in files:
        with reading(file, "a checkpoint's table"):
            _read_file(file, entries, parts)
    for name, entry in entries.items():
        if name in parts:
            entries[name] = _assembled(entry, parts[name])
    return Checkpoint(prefix, dict(sorted(entries.items())))


def is_filled_with(entry: Entry, number: float) -> bool | None:
    """Whether every element of a tensor is the same number, told from its CRC.

    Args:
        entry: of a checkpoint.
        number: is rounded to the entry's dtype first; one that an integer dtype can't hold fills nothing.

    Returns:
        True or False (a wrong True has a chance of 1 in 4 billion), or None if it is undetermined: no CRC and no value,
        a slice missing, no elements, or a type that has no numbers.

    >>> is_filled_with(Entry("float32", (2,), crc32c(np.zeros(2, np.float32))), 0)
    True
    """
    pattern = _bytes_of(np.asarray(number, np.float64).reshape(1), entry.dtype)
    if pattern is None or 0 in entry.shape:
        return None
    if not _holds(number, entry.dtype):
        return False
    if entry.value is not None:
        return _bytes_of(entry.value, entry.dtype) == pattern * entry.value.size
    return _has_crcs(entry, lambda part: crc32c_of_repeated(pattern, math.prod(part.shape)))


def equals(entry: Entry, array: np.ndarray) -> bool | None:
    """Whether a tensor is bit for bit this array, told from its CRC.

    Args:
        entry: of a checkpoint.
        array: is converted to the entry's dtype first.

    Returns:
        True or False; False if the shapes differ; None if it is undetermined, as `is_filled_with`.

    >>> equals(Entry("float32", (2,), crc32c(np.float32([3, 4]))), np.array([3, 4]))
    True
    """
    array = np.asarray(array)
    if entry.shape != array.shape:
        return False
    data = _bytes_of(array, entry.dtype)
    if data is None:
        return None
    if entry.value is not None:
        return _bytes_of(entry.value, entry.dtype) == data
    return _has_crcs(entry, lambda part: crc32c(_bytes_of(array[_block(part.start, part.shape)], entry.dtype)))


def read_value(checkpoint: Checkpoint, key: str) -> np.ndarray | None:
    """A small tensor's value, from the checkpoint itself (V1) or from its ``.data`` file.

    Returns:
        The array; None if there is no such key, the file is not there or is another's (its CRC differs), or the tensor is
        stored in slices, has no numbers or more than a million.

    >>> read_value(Checkpoint("no/such/model.ckpt", {}), "bn/moving_mean") is None
    True
    """
    entry = checkpoint.entries.get(key)
    if entry is None or entry.value is not None or entry.at is None:
        return None if entry is None else entry.value
    if not _NUMERIC.fullmatch(entry.dtype) or math.prod(entry.shape) > _VALUES:
        return None
    shard, offset = entry.at
    files = glob.glob(f"{glob.escape(checkpoint.prefix)}.data-{shard:05d}-of-*")
    if len(files) != 1:
        return None
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    with reading(files[0], "a checkpoint's data"), open(files[0], "rb") as file:
        file.seek(offset)
        data = file.read(math.prod(entry.shape) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(entry.shape) if crc32c(data) == entry.crc32c else None


def _has_crcs(entry: Entry, expected: Callable[[Slice], int]) -> bool | None:
    """False if a slice has another CRC than expected; True if all have it and make up the tensor; else None."""
    slices = entry.slices or (Slice((0,) * len(entry.shape), entry.shape, entry.crc32c),)
    if any(part.crc32c is not None and part.crc32c != expected(part) for part in slices):
        return False
    complete = sum(math.prod(part.shape) for part in slices) == math.prod(entry.shape)
    return True if complete and all(part.crc32c is not None for part in slices) else None


def _block(start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))


def _read_file(path: str, entries: dict[str, Entry], parts: dict[str, list["_Part"]]) -> None:
    first_bytes(path)
    with storage.open_binary(path) as file:
        rows = table.rows(file)
        key, header = next(rows, (None, b""))
        if key != b"":
            raise ValueError("it is a table, but none of a checkpoint")
        if header[:1] == b"\n":
            return _read_v1(header, rows, entries, parts)
        if protos.BundleHeaderProto.FromString(header).endianness:
            raise AuditError(f"{path}: the checkpoint was written on a big-endian machine; its CRCs can't be compared.")
        entries.update(_read_v2(dict(rows)))


# V2: an index of entries; the tensors are elsewhere.


def _read_v2(rows: dict[bytes, bytes]) -> dict[str, Entry]:
    entries = {}
    for key, value in rows.items():
        if key.startswith(b"\0"):
            continue  # a slice: read with the entry that lists it
        message = protos.BundleEntryProto.FromString(value)
        dtype, shape = _dtype(message.dtype), _shape(message.shape)
        slices = [_slice(key, proto, shape, rows) for proto in message.slices]
        crc = None if slices else _entry_crc(message)
        at = None if slices else (message.shard_id, message.offset)
        entries[key.decode()] = Entry(dtype, shape, crc, slices=tuple(slices), at=at)
    return entries


def _slice(name: bytes, proto, shape: tuple[int, ...], rows: dict[bytes, bytes]) -> Slice:
    start, lengths = _extents(proto, shape)
    value = rows.get(_slice_key(name, proto))
    crc = None if value is None else _entry_crc(protos.BundleEntryProto.FromString(value))
    return Slice(start, lengths, crc)


def _extents(proto, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(proto.extent) != len(shape):
        raise ValueError("a slice has another rank than its tensor")
    start = tuple(extent.start for extent in proto.extent)
    # An extent without a length is all of its dimension.
    lengths = tuple(extent.length or size for extent, size in zip(proto.extent, shape, strict=True))
    if any(a < 0 or n < 0 or a + n > size for a, n, size in zip(start, lengths, shape, strict=True)):
        raise ValueError("a slice lies outside its tensor")
    return start, lengths


def _entry_crc(message) -> int | None:
    """The unmasked CRC; None for types whose CRC is not of their bytes, and where the field is absent."""
    if not message.crc32c or _dtype(message.dtype) in ("string", "resource", "variant"):
        return None
    return unmasked(message.crc32c)


def _slice_key(name: bytes, proto) -> bytes:
    """The key of a slice: TensorFlow's `EncodeTensorNameSlice`, in its code that sorts as the numbers do."""
    escaped = re.sub(rb"[\0\xff]", lambda match: b"\0\xff" if match[0] == b"\0" else b"\xff\0", name)
    key = b"\0" + escaped + b"\0\1" + _unsigned_code(len(proto.extent))
    for extent in proto.extent:
        # -1 stands for all of a dimension.
        key += _signed_code(extent.start) + _signed_code(extent.length or -1)
    return key


def _unsigned_code(number: int) -> bytes:
    length = (number.bit_length() + 7) // 8
    return bytes([length]) + number.to_bytes(length, "big")


def _signed_code(number: int) -> bytes:
    """As many leading ones as bytes, then the number in two's complement, all bits flipped below zero."""
    length = (~number if number < 0 else number).bit_length() // 7 + 1
    header = ((1 << length) - 1) << 7 * length
    return ((number & ((1 << 8 * length) - 1)) ^ header).to_bytes(length, "big")


def _dtype(number: int) -> str:
    return _DTYPES.get(number % 100, f"type {number}")


def _shape(proto) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in proto.dim)
    if len(shape) > 254 or any(size < 0 for size in shape):
        raise ValueError("a tensor has an impossible shape")
    return shape


# V1: the values are in the table.


class _Part(NamedTuple):
    """A slice of a tensor of a V1 checkpoint, with its values."""

    start: tuple[int, ...]
    value: np.ndarray


def _read_v1(header: bytes, rows, entries: dict[str, Entry], parts: dict[str, list[_Part]]) -> None:
    for tensor in protos.SavedTensorSlices.FromString(header).meta.tensor:
        entries[tensor.name] = Entry(_dtype(tensor.type), _shape(tensor.shape))
    for _, value in rows:
        if len(value) > _VALUES * 10:
            continue  # 10 bytes are the longest varint: too many elements for a value that is kept
        data = protos.SavedTensorSlices.FromString(value).data
        entry = entries.get(data.name)
        if entry is None:
            raise ValueError("it has a tensor that its list of tensors lacks")
        start, lengths = _extents(data.slice, entry.shape)
        values = _values(data.data, entry.dtype)
        if values is not None and values.size == math.prod(lengths) and values.size <= _VALUES:
            parts.setdefault(data.name, []).append(_Part(start, values.reshape(lengths)))


def _values(tensor, dtype: str) -> np.ndarray | None:
    if dtype in ("float16", "bfloat16"):
        bits = np.array(tensor.half_val, np.int64).astype(np.uint16)
        return bits.view(np.float16) if dtype == "float16" else (bits.astype(np.uint32) << 16).view(np.float32)
    field = {"float32": "float_val", "float64": "double_val", "int64": "int64_val", "bool": "bool_val"}.get(dtype)
    if field is None and dtype in ("int32", "int16", "int8", "uint16", "uint8"):
        field = "int_val"
    return None if field is None else np.array(getattr(tensor, field), dtype)


def _assembled(entry: Entry, parts: list[_Part]) -> Entry:
    """The entry with its value, if its parts are all there."""
    if sum(part.value.size for part in parts) != math.prod(entry.shape):
        return entry
    value = np.zeros(entry.shape, parts[0].value.dtype)
    for part in parts:
        value[_block(part.start, part.value.shape)] = part.value
    return entry._replace(value=value)


# Numbers as bytes.


def _bytes_of(array: np.ndarray, dtype: str) -> bytes | None:
    """The array's bytes as a checkpoint of that dtype has them; None for types without numbers."""
    if dtype == "bfloat16":
        if array.dtype.name == "bfloat16":
            return array.tobytes()
        bits = array.astype("<f4").view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16  # to the nearest, ties to even
        return np.where(np.isnan(array), 0x7FC0, rounded).astype("<u2").tobytes()
    if not _NUMERIC.fullmatch(dtype):
        return None
    with np.errstate(all="ignore"):
        return array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def _holds(number: float, dtype: str) -> bool:
    """Whether a dtype has the number: always, rounded, for a float within its range."""
    if dtype == "bool":
        return number in (0, 1)
    if "int" not in dtype:
        return not math.isfinite(number) or abs(number) < _OVERFLOWS.get(dtype, math.inf)
    limits = np.iinfo(dtype)
    return math.isfinite(number) and number == int(number) and limits.min <= number <= limits.max
