"""CRC-32C (Castagnoli), the checksum of checkpoints: of bytes, and of a pattern repeated n times in O(log n) steps.

A CRC is the remainder of a polynomial over GF(2); bit 31 of a number is the coefficient of x⁰.
"""

import functools
import math

import numpy as np

__all__ = ["crc32c", "crc32c_of_repeated", "unmasked"]

_POLYNOMIAL = 0x82F63B78
_CHUNK, _LANE, _FEW = 1 << 20, 128, 1 << 13


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
def crc32c_of_repeated(pattern: bytes, times: int) -> int:
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


def unmasked(masked: int) -> int:
    """Tables store CRCs rotated by 15 bits and with a constant added, lest a CRC be taken of a CRC."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
