"""A line on the terminal that says how far a command is."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["with_progress"]

_EACH = 0.1  # seconds between changes of the line
_CLEAR = "\r\x1b[K"

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, with a line on stderr that counts them if that is a terminal; the line is gone while one is used.

    >>> list(with_progress("abc", 3))
    ['a', 'b', 'c']
    """
    if total < 2 or not sys.stderr.isatty():
        yield from items
        return
    start = time.monotonic()
    written, line = -math.inf, ""
    for number, item in enumerate(items, 1):
        print(end=_CLEAR, file=sys.stderr, flush=True)
        yield item
        now = time.monotonic()
        if now - written >= _EACH:
            left = (now - start) / number * (total - number)
            bar = "█" * (20 * number // total)
            written, line = now, f"{bar:░<20} {number:,} of {total:,} files, {left:.0f} s left"
        if number < total:
            print(end=line, file=sys.stderr, flush=True)
