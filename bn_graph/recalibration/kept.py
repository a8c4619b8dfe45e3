"""Values of batches, kept from one level to the next within a number of bytes, in memory or in temporary files."""

import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.graphs.errors import one_line
from bn_graph.recalibration.errors import RecalibrationError

__all__ = ["Kept", "KeptValues"]


class _File:
    """A temporary file without a name: the system removes it with this process, however that ends."""

    def __init__(self, folder: str) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by `KeptValues`
        self.size = self.entries = 0

    def append(self, array: np.ndarray) -> tuple[int, np.dtype, tuple[int, ...]]:
        """Where it begins, its dtype and its shape."""
        start = self.size
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.size += array.nbytes
        return start, array.dtype, array.shape

    def read(self, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, dtype)
        self._file.seek(start)
        self._file.readinto(array.reshape(-1).view(np.uint8).data)
        return array

    def close(self) -> None:
        self._file.close()


class Kept(NamedTuple):
    """The values of one batch: the arrays or, with a `file`, where they are in it."""

    nbytes: int
    arrays: list
    file: _File | None


class KeptValues:
    """At most `limit` bytes of arrays at any time, in memory or, with a `folder`, in unnamed files there.

    A level's values are written to a file of their own while the previous level's are read, and both count.

    Example:
        >>> import numpy as np
        >>> from bn_graph.recalibration.kept import KeptValues
        >>> values = KeptValues(100, None)
        >>> first = values.keep([np.zeros(20, np.float32)])
        >>> values.keep([np.zeros(20, np.float32)]) is None  # 80 and 80 bytes are more than 100
        True
        >>> values.drop(first)
        >>> values.get(values.keep([np.ones(2)]))
        [array([1., 1.])]
    """

    def __init__(self, limit: int, folder: str | None) -> None:
        self.limit, self._folder, self._used = limit, folder, 0
        self._files: list[_File] = []

    def start_level(self) -> None:
        """What is kept from now on has a file of its own."""
        if self._folder is None:
            return
        try:
            self._files.append(_File(self._folder))
        except OSError as error:
            raise RecalibrationError(f"No temporary file can be made in {self._folder}: {one_line(error)}") from error

    def keep(self, arrays: Sequence[np.ndarray]) -> Kept | None:
        """Keeps the arrays, which must not change; None if that would be more than the limit.

        Raises:
            RecalibrationError: they can't be written.
        """
        nbytes = sum(array.nbytes for array in arrays)
        if self._used + nbytes > self.limit:
            return None
        self._used += nbytes
        if not self._files:
            return Kept(nbytes, list(arrays), None)
        file = self._files[-1]
        try:
            kept = Kept(nbytes, [file.append(array) for array in arrays], file)
        except OSError as error:
            raise RecalibrationError(
                f"A temporary file in {self._folder} can't be written: {one_line(error)}"
            ) from error
        file.entries += 1
        return kept

    def get(self, kept: Kept) -> list[np.ndarray]:
        """The arrays."""
        return kept.arrays if kept.file is None else [kept.file.read(*each) for each in kept.arrays]

    def drop(self, kept: Kept) -> None:
        """Forgets the arrays. A file's bytes are free when nothing in it is needed any more."""
        if kept.file is None:
            self._used -= kept.nbytes
            return
        kept.file.entries -= 1
        self._close_unneeded()

    def _close_unneeded(self) -> None:
        for file in [each for each in self._files[:-1] if not each.entries]:
            self._used -= file.size
            self._files.remove(file)
            file.close()

    def close(self) -> None:
        """Removes the files."""
        for file in self._files:
            file.close()
        self._files.clear()
