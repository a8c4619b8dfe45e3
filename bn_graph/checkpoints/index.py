"""Checkpoints read without TensorFlow, and without the ``.data`` file where the ``.index`` is enough.

A checkpoint's ``.index`` is a table in LevelDB's format: sorted keys, each with a `BundleEntryProto` that says dtype,
shape and the CRC-32C of the tensor's bytes. The CRC of a constant repeated n times takes O(log n) steps to compute, so
whether a tensor is all 0 or all 1 is known without its data (`is_filled_with`). Checkpoints of TensorFlow before 0.12
(V1) are tables too, with the values in them.
"""

import contextlib
import functools
import glob
import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from bn_graph.graphs import protos
from bn_graph.graphs.errors import AuditError

__all__ = [
    "Checkpoint",
    "Entry",
    "Slice",
    "crc32c",
    "equals",
    "first_bytes",
    "is_filled_with",
    "is_table",
    "read_checkpoint",
    "reading",
    "varint",
]


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
    """

    dtype: str
    shape: tuple[int, ...]
    crc32c: int | None = None
    value: np.ndarray | None = None
    slices: tuple[Slice, ...] = ()


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
    bn_graph.audit.findings.AuditError: no/such/model.ckpt: no checkpoint is there (neither that file nor an .index).
    """
    path = os.fspath(path)
    with reading(path, "a checkpoint"):
        prefix, files = _locate(path)
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
        True or False (a wrong True has a chance of 1 in 4 billion), or None if it can't be told: no CRC and no value,
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
    if not entry.slices:
        return None if entry.crc32c is None else entry.crc32c == _crc_of_repeated(pattern, math.prod(entry.shape))
    return _all(
        entry,
        lambda part: None if part.crc32c is None else part.crc32c == _crc_of_repeated(pattern, math.prod(part.shape)),
    )


def equals(entry: Entry, array: np.ndarray) -> bool | None:
    """Whether a tensor is bit for bit this array, told from its CRC.

    Args:
        entry: of a checkpoint.
        array: is converted to the entry's dtype first.

    Returns:
        True or False; False if the shapes differ; None if it can't be told, as `is_filled_with`.

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
    if not entry.slices:
        return None if entry.crc32c is None else entry.crc32c == crc32c(data)
    return _all(entry, functools.partial(_slice_equals, array, entry.dtype))


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of bytes, or of anything with a contiguous buffer.

    Long data are cut into lanes that NumPy takes through the table side by side; the CRC is linear, so the lanes'
    remainders are then shifted and added.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    array = np.frombuffer(data, np.uint8) if memoryview(data).nbytes else np.zeros(0, np.uint8)
    state = 0xFFFFFFFF
    for start in range(0, array.size, _CHUNK):
        chunk = array[start : start + _CHUNK]
        if chunk.size < _FEW:
            state = _bytewise(chunk.tobytes(), state)
        else:
            state = _multiply(state, _power(8 * chunk.size)) ^ _remainder(chunk)
    return state ^ 0xFFFFFFFF


@contextlib.contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Turns every error that reading a bad file can raise into an `AuditError` of one line that names the file.

    >>> with reading("model.index", "a checkpoint's table"):
    ...     raise EOFError("it ends early")
    Traceback (most recent call last):
    bn_graph.audit.findings.AuditError: model.index: can't be read as a checkpoint's table: it ends early.
    """
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
        AuditError: it is missing, a symbolic link to nowhere, no regular file, empty, a Git LFS pointer or gzipped.

    >>> len(first_bytes(__file__))
    4096
    """
    with reading(path, "a file"):
        if os.path.islink(path) and not os.path.exists(path):
            raise AuditError(f"{path}: is a symbolic link to {os.readlink(path)}, which is not there.")
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise AuditError(f"{path}: is no regular file.")
        with open(path, "rb") as file:
            head = file.read(4096)
        if not head:
            raise AuditError(f"{path}: is empty.")
        if head.startswith(b"version https://git-lfs"):
            raise AuditError(f"{path}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`.")
        if head.startswith(b"\x1f\x8b"):
            raise AuditError(f"{path}: is compressed by gzip; unpack it first.")
        return head


def is_table(path: str) -> bool:
    """Whether a file ends with the mark of LevelDB's tables, as every ``.index`` and V1 checkpoint does.

    Raises:
        OSError: it can't be opened.

    >>> is_table(__file__)
    False
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _FOOTER:
            return False
        file.seek(size - len(_MAGIC))
        return file.read() == _MAGIC


# Where a checkpoint's files are.


def _locate(path: str) -> tuple[str, list[str]]:
    prefix = re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path)
    if prefix + ".index" == path or os.path.lexists(prefix + ".index"):
        return prefix, [prefix + ".index"]
    shard = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", path)
    prefix = shard[1] if shard and os.path.lexists(path) else path
    if not shard and os.path.lexists(path):
        return path, [path]
    shards = sorted(glob.glob(f"{glob.escape(prefix)}-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"))
    if shard:
        shards = [file for file in shards if file.endswith(shard[2])]
    if not shards:
        raise AuditError(f"{path}: no checkpoint is there (neither that file nor an .index).")
    if len(shards) != int(shards[0][-5:]):
        raise AuditError(f"{prefix}: {len(shards)} of the checkpoint's {int(shards[0][-5:])} shards are there.")
    return prefix, shards


def _read_file(path: str, entries: dict[str, Entry], parts: dict[str, list["_Part"]]) -> None:
    first_bytes(path)
    with open(path, "rb") as file:
        rows = _rows(file)
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
        entries[key.decode()] = Entry(dtype, shape, crc, slices=tuple(slices))
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
    return _unmasked(message.crc32c)


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
        value[tuple(slice(a, a + n) for a, n in zip(part.start, part.value.shape, strict=True))] = part.value
    return entry._replace(value=value)


# LevelDB's tables.


def _rows(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order; keeps one block in memory at a time."""
    size = file.seek(0, os.SEEK_END)
    key_bytes = 0
    end = 0
    for _, handle in _block_rows(_block(file, size, *_index_handle(file, size))):
        offset, length, _ = _handle(handle, 0)
        if offset < end:
            raise ValueError("its blocks overlap")
        end = offset + length
        for key, value in _block_rows(_block(file, size, offset, length)):
            # Keys are stored by what they differ in: a few bytes of file could ask for megabytes each.
            key_bytes += len(key)
            if key_bytes > 64 * size:
                raise ValueError("its keys are absurdly long")
            yield key, value


def _index_handle(file: BinaryIO, size: int) -> tuple[int, int]:
    if size < _FOOTER:
        raise ValueError(f"it has {size} bytes, fewer than a table's footer")
    file.seek(size - _FOOTER)
    footer = file.read(_FOOTER)
    if not footer.endswith(_MAGIC):
        raise ValueError("it does not end with a table's mark; it is truncated, or is something else")
    *_, position = _handle(footer, 0)
    offset, length, _ = _handle(footer, position)
    return offset, length


def _handle(data: bytes, position: int) -> tuple[int, int, int]:
    offset, position = varint(data, position)
    length, position = varint(data, position)
    return offset, length, position


def _block(file: BinaryIO, size: int, offset: int, length: int) -> bytes:
    if offset + length + 5 > size - _FOOTER:
        raise ValueError(f"a block is said to end at byte {offset + length + 5} of {size}")
    file.seek(offset)
    data = file.read(length + 5)
    if len(data) != length + 5:
        raise EOFError("it ends within a block")
    _check(memoryview(data)[:-4], data[-4:])
    compression, data = data[length], data[:length]
    if compression > 1:
        raise ValueError(f"a block is compressed by an unknown method ({compression})")
    return _unsnappy(data) if compression else data


def _check(data: memoryview, stored: bytes) -> None:
    if _unmasked(struct.unpack("<I", stored)[0]) != crc32c(data):
        raise ValueError("a block's checksum is wrong; it is corrupted")


def _block_rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise EOFError("a block is too short")
    end = len(block) - 4 - 4 * struct.unpack_from("<I", block, len(block) - 4)[0]
    if end < 0:
        raise ValueError("a block has more restarts than it has room for")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        unshared, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or position + unshared + length > end:
            raise ValueError("a block has an entry that is longer than the block")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def varint(data: bytes, position: int) -> tuple[int, int]:
    """A number as protobuf and LevelDB store it, and the position after it.

    Raises:
        IndexError: the data end within it.
        ValueError: it has more than ten bytes.

    >>> varint(bytes([0xAC, 2]), 0)
    (300, 2)
    """
    number = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ValueError("a number has more than ten bytes")


def _unsnappy(data: bytes) -> bytes:
    """Snappy's block format: a length, then literals and copies of what is already there."""
    length, position = varint(data, 0)
    # No element makes more than 64 bytes out of 3.
    if length > 22 * len(data):
        raise ValueError(f"a compressed block of {len(data)} bytes claims to hold {length}")
    out = bytearray()
    while position < len(data):
        position = _literal(data, position, out) if not data[position] & 3 else _copy(data, position, out)
        if len(out) > length:
            break
    if len(out) != length:
        raise ValueError("a compressed block has another length than it claims")
    return bytes(out)


def _literal(data: bytes, position: int, out: bytearray) -> int:
    length = data[position] >> 2
    position += 1
    if length >= 60:
        width = length - 59
        length = int.from_bytes(data[position : position + width], "little")
        position += width
    end = position + length + 1
    if end > len(data):
        raise EOFError("a compressed block ends within a literal")
    out += data[position:end]
    return end


def _copy(data: bytes, position: int, out: bytearray) -> int:
    tag = data[position]
    kind = tag & 3
    width = (1, 2, 4)[kind - 1]
    position += 1 + width
    if position > len(data):
        raise EOFError("a compressed block ends within a copy")
    offset = int.from_bytes(data[position - width : position], "little")
    length = (tag >> 2) + 1
    if kind == 1:
        offset, length = offset | (tag & 0xE0) << 3, (tag >> 2 & 7) + 4
    if not 0 < offset <= len(out):
        raise ValueError("a compressed block copies from before its start")
    # A copy longer than its offset repeats what it has itself written.
    source = bytes(out[len(out) - offset : len(out) - offset + length])
    out += (source * (length // len(source) + 1))[:length]
    return position


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


def _slice_equals(array: np.ndarray, dtype: str, part: Slice) -> bool | None:
    block = array[tuple(slice(a, a + n) for a, n in zip(part.start, part.shape, strict=True))]
    return None if part.crc32c is None else part.crc32c == crc32c(_bytes_of(block, dtype))


def _all(entry: Entry, verdict) -> bool | None:
    """False if a slice says False; True if all say True and they make up the tensor; else None."""
    verdicts = [verdict(part) for part in entry.slices]
    if False in verdicts:
        return False
    complete = sum(math.prod(part.shape) for part in entry.slices) == math.prod(entry.shape)
    return None if None in verdicts or not complete else True


# CRC-32C. A CRC is the remainder of a polynomial over GF(2); bit 31 of a number is the coefficient of x⁰.


def _multiply(a, b: int):
    """a·b modulo the CRC's polynomial; `a` may be an array of them."""
    product = a & 0
    for bit in range(31, -1, -1):
        product ^= (a >> bit & 1) * b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(1 << 12)
def _power(exponent: int) -> int:
    """x to that power."""
    result, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        exponent >>= 1
    return result


@functools.lru_cache(1 << 12)
def _crc_of_repeated(pattern: bytes, times: int) -> int:
    """The CRC of `pattern` that many times over, in O(log times)."""
    step = _power(8 * len(pattern))
    # From the highest bit of `times` down: total = 1 + step + … + step^(n-1), and whole = step^n.
    total, whole = 0, 1 << 31
    for bit in bin(times)[2:]:
        total, whole = total ^ _multiply(total, whole), _multiply(whole, whole)
        if bit == "1":
            total, whole = total ^ whole, _multiply(whole, step)
    return _multiply(total, _bytewise(pattern, 0)) ^ _multiply(0xFFFFFFFF, whole) ^ 0xFFFFFFFF


def _bytewise(data: bytes, state: int) -> int:
    table = _tables()[0]
    for byte in data:
        state = table[(state ^ byte) & 255] ^ state >> 8
    return state


def _remainder(data: np.ndarray) -> int:
    """The remainder from a start of zero: zeros before the data do not change it, so all lanes can be equally long."""
    lanes = 1 << max(0, math.ceil(math.log2(data.size / _LANE)))
    padded = np.zeros(lanes * _LANE, np.uint8)
    padded[padded.size - data.size :] = data
    columns = np.ascontiguousarray(padded.view("<u2").reshape(lanes, -1).T)
    table = _tables()[1]
    state = np.zeros(lanes, np.uint32)
    for column in columns:
        state = table[(state & 0xFFFF) ^ column] ^ state >> 16
    width = _LANE
    while state.size > 1:
        state = _multiply(state[0::2], np.uint32(_power(8 * width))) ^ state[1::2]
        width *= 2
    return int(state[0])


@functools.cache
def _tables() -> tuple[list[int], np.ndarray]:
    """What a byte, and what two, do to a remainder."""
    one = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        one = one >> 1 ^ (one & 1) * np.uint32(_POLYNOMIAL)
    two = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        two = one[two & 255] ^ two >> 8
    return one.tolist(), two


def _unmasked(masked: int) -> int:
    """Tables store CRCs rotated by 15 bits and with a constant added, lest a CRC be taken of a CRC."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


_POLYNOMIAL = 0x82F63B78
_CHUNK, _LANE, _FEW = 1 << 20, 128, 1 << 13
_FOOTER = 48
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_VALUES = 1_000_000
"""Tensors of V1 checkpoints with more elements than this keep no value: no statistics have as many channels."""

_NUMERIC = re.compile(r"float(16|32|64)|u?int(8|16|32|64)|bool|complex(64|128)")
_OVERFLOWS = {"float16": 65520.0, "bfloat16": 2.0**128 - 2.0**119, "float32": 2.0**128 - 2.0**103}
"""The smallest number that is rounded to infinity."""

_NAMES = {"float": "float32", "double": "float64", "half": "float16"}
_DTYPES = {
    number: _NAMES.get(name.lower(), name.lower()) for number, name in enumerate(protos._DTYPES.split()) if number
}
