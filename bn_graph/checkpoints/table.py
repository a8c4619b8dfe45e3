"""LevelDB's tables, the format of a checkpoint's ``.index`` and of V1 checkpoints: sorted keys with their values."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from bn_graph.checkpoints import storage
from bn_graph.checkpoints.crc32c import crc32c, unmasked

__all__ = ["is_table", "rows", "varint"]

_FOOTER = 48
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)


def is_table(path: str) -> bool:
    """Whether a file ends with the mark of LevelDB's tables, as every ``.index`` and V1 checkpoint does.

    Raises:
        OSError: it can't be opened.

    >>> is_table(__file__)
    False
    """
    with storage.open_binary(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size < _FOOTER:
            return False
        file.seek(size - len(_MAGIC))
        return file.read() == _MAGIC


def rows(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
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
    if unmasked(struct.unpack("<I", stored)[0]) != crc32c(data):
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
