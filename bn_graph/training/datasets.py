"""The data that the documents train on: MNIST from its four IDX files, or scikit-learn's bundled digits; and batches.

`load` takes MNIST where it is found and the bundled digits where it is not, so that everything runs on a machine
without a network. It never falls back in silence: files that are there but damaged, or a directory that you named and
that has no MNIST, are a `DataError`. `describe` says which data set a run used.

Nothing here downloads or writes anything (``python -m experiments.machinery.fetch_mnist`` does), and nothing needs TensorFlow.
"""

import gzip
import hashlib
import itertools
import math
import os
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bn_graph.graphs.errors import BnGraphError

__all__ = [
    "DEFAULT_DIRECTORY",
    "MNIST_FILES",
    "DataError",
    "Dataset",
    "IdxFile",
    "Split",
    "batch_rows",
    "batches",
    "describe",
    "load",
    "load_digits",
    "load_mnist",
    "parse_idx",
]

DEFAULT_DIRECTORY = "MNIST_data"
"""The directory that is searched for MNIST when neither an argument nor ``MNIST_DIR`` names one."""

CLASSES = 10


class DataError(BnGraphError):
    """Missing or damaged data. The message is one line: the file, what was expected, what was found, what to do."""


class IdxFile(NamedTuple):
    """What one IDX file of bytes must be: a big-endian header (magic number, then each dimension), then the array.

    Example:
        >>> from bn_graph.training.datasets import IdxFile
        >>> labels = IdxFile(shape=(60_000,), sha256="…")
        >>> labels.magic, labels.header_size, labels.size
        (2049, 8, 60008)
    """

    shape: tuple[int, ...]
    sha256: str

    @property
    def magic(self) -> int:
        """0x08 stands for unsigned bytes; the last byte is the number of dimensions."""
        return 0x0800 + len(self.shape)

    @property
    def header_size(self) -> int:
        return 4 * (1 + len(self.shape))

    @property
    def size(self) -> int:
        return self.header_size + math.prod(self.shape)


MNIST_FILES = {
    "train-images-idx3-ubyte": IdxFile(
        (60_000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte": IdxFile((60_000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": IdxFile(
        (10_000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte": IdxFile((10_000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
"""MNIST's four files; the SHA-256 is that of the decompressed content."""

MNIST_VALIDATION = 5_000
"""How many of the first training images are the validation split, as in the tutorial loader that the documents used."""

DIGITS_SEED = 0
DIGITS_TEST = 360
DIGITS_VALIDATION = 137


class Split(NamedTuple):
    """Examples that belong together. (``len`` of it is 2, a tuple's; the number of examples is `size`.)

    Attributes:
        images: float32 ``[n, d]``, in [0, 1].
        labels: float32 ``[n, 10]``, one-hot.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.images)


class Dataset(NamedTuple):
    """A data set in its three splits, and where it came from.

    Attributes:
        name: "mnist" or "digits".
        train, validation, test: `Split`; no example is in two of them.
        image_shape: rows and columns of an image, ``(28, 28)`` or ``(8, 8)``.
        source: the directory, or "scikit-learn's bundled digits".
        sha256: file name → hex digest of the (decompressed) content that was loaded. The digits have no files of
            ours: their one entry, "digits", is the digest of the pixels and then the labels, as bytes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    image_shape: tuple[int, int]
    source: str
    sha256: dict[str, str]


def load(name: str = "auto", directory: str | os.PathLike | None = None) -> Dataset:
    """Loads MNIST or the bundled digits.

    Args:
        name: "mnist", "digits", or "auto": MNIST if `directory` has at least one of its files, else the digits.
        directory: where MNIST is. None stands for ``$MNIST_DIR`` or, if that is not set or empty, for
            ``./MNIST_data``. The digits need none.

    Returns:
        `Dataset`.

    Raises:
        DataError: `name` is none of the three; MNIST is asked for and missing; files of it are there but incomplete or
            damaged, "auto" or not; or "auto" finds no MNIST in a directory that was *named*, by `directory` or by
            ``MNIST_DIR``: if you name a directory, no other data set is taken in its place.

    Example:
        >>> from bn_graph.training import datasets
        >>> digits = datasets.load("digits")
        >>> digits.train.size, digits.validation.size, digits.test.size
        (1300, 137, 360)
    """
    if name not in ("auto", "mnist", "digits"):
        raise DataError(f'data set: expected "auto", "mnist" or "digits", found {name!r}; choose one of the three')
    if name == "digits":
        return load_digits()
    given = (os.environ.get("MNIST_DIR") or None) if directory is None else directory
    folder = Path(DEFAULT_DIRECTORY if given is None else given)
    if name == "auto" and given is None and not _mnist_paths(folder):
        return load_digits()
    return load_mnist(folder)


def describe(dataset: Dataset) -> str:
    """One line that says which data set is used and, if it is the digits, how to get MNIST.

    Example:
        >>> from bn_graph.training import datasets
        >>> print(datasets.describe(datasets.load("digits")).split(";")[0])
        Data: scikit-learn's bundled digits, 8×8 pixels (1300 training, 137 validation, 360 test), not MNIST
    """
    rows, columns = dataset.image_shape
    sizes = f"{dataset.train.size} training, {dataset.validation.size} validation, {dataset.test.size} test"
    if dataset.name == "mnist":
        return _one_line(f"Data: MNIST, {rows}×{columns} pixels ({sizes}), from {dataset.source}")
    return (
        f"Data: {dataset.source}, {rows}×{columns} pixels ({sizes}), not MNIST; "
        "for MNIST run `make mnist`, or set MNIST_DIR=<directory of its four IDX files>"
    )


def load_mnist(directory: str | os.PathLike) -> Dataset:
    """Loads MNIST from its four IDX files, each plain or with ``.gz`` after its name.

    If both forms of a file exist, the plain one is read: it needs no decompressing, and it is what
    ``experiments.machinery.fetch_mnist`` writes to repair a directory with a damaged ``.gz``.

    Args:
        directory: of the four files.

    Returns:
        `Dataset` of 55,000 training, 5,000 validation (the first of the training file) and 10,000 test images of 784
        pixels, each pixel divided by 255.

    Raises:
        DataError: a file is missing, can't be read or decompressed, or is not, byte for byte, MNIST's (`parse_idx`).

    Example:
        >>> from bn_graph.training import datasets
        >>> try:
        ...     datasets.load_mnist("no/such/place")
        ... except datasets.DataError as error:
        ...     print(str(error).split(" (")[0])
        no/such/place/train-images-idx3-ubyte: expected this file or the same with .gz, found no such directory
    """
    directory = Path(directory)
    paths = _mnist_paths(directory)
    missing = [name for name in MNIST_FILES if name not in paths]
    if missing:
        found = "neither" if directory.is_dir() else "no such directory"
        expected = "this file or the same with .gz"
        raise _bad(directory / missing[0], expected, f"{found} (missing in all: {', '.join(missing)})")
    arrays = {}
    for name, expected_file in MNIST_FILES.items():
        # One byte more than expected shows that a file is too long, and no gzip bomb is decompressed beyond it.
        arrays[name] = parse_idx(_read_at_most(paths[name], expected_file.size + 1), name, paths[name])
    training = _split(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"], white=255)
    return Dataset(
        name="mnist",
        train=_part(training, MNIST_VALIDATION, None),
        validation=_part(training, 0, MNIST_VALIDATION),
        test=_split(arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"], white=255),
        image_shape=arrays["train-images-idx3-ubyte"].shape[1:],
        source=str(directory),
        # `parse_idx` accepts no other digest.
        sha256={name: expected_file.sha256 for name, expected_file in MNIST_FILES.items()},
    )


def load_digits() -> Dataset:
    """Loads the handwritten digits that come with scikit-learn, 1797 images of 8×8 pixels.

    The examples come from 13 writers in blocks, so they are mixed once, by a fixed seed; a split by position would test
    on writers that training never saw. (The accuracies are therefore those for *known* writers.)

    The test set has 360 examples, 20 % of 1797 rounded up, as scikit-learn's own ``train_test_split`` would take.
    Training has 1300, a multiple of 10, 13, 20, 50, 65 and 100, so that an epoch in such batches uses every example.
    The other 137 are for validation.

    Returns:
        `Dataset` with 64 inputs, each pixel (0 to 16) divided by 16.

    Example:
        >>> from bn_graph.training import datasets
        >>> datasets.load_digits().train.images.shape
        (1300, 64)
    """
    import sklearn.datasets  # only here: the import takes a second, and MNIST does not need it

    raw = sklearn.datasets.load_digits()
    pixels, labels = raw.data.astype(np.uint8), raw.target.astype(np.uint8)
    # RandomState and not default_rng: NumPy promises its stream for good, so the splits are the same under any NumPy.
    order = np.random.RandomState(DIGITS_SEED).permutation(len(labels))
    mixed = _split(pixels[order], labels[order], white=16)
    after_validation = DIGITS_TEST + DIGITS_VALIDATION
    return Dataset(
        name="digits",
        train=_part(mixed, after_validation, None),
        validation=_part(mixed, DIGITS_TEST, after_validation),
        test=_part(mixed, 0, DIGITS_TEST),
        image_shape=raw.images.shape[1:],
        source="scikit-learn's bundled digits",
        sha256={"digits": hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()},
    )


def parse_idx(content: bytes, name: str, path: str | os.PathLike) -> np.ndarray:
    """The array in an IDX file's content, which must be that of MNIST's file `name`.

    Args:
        content: the decompressed bytes.
        name: a key of `MNIST_FILES`.
        path: where the content is from, for the messages.

    Returns:
        uint8, read-only, of the shape that `MNIST_FILES` gives.

    Raises:
        DataError: in this order, the content is too short for a header; the magic number, the number of items or the
            images' size is wrong; the length is; a label is above 9; the SHA-256 is not the known one.

    Example:
        >>> from bn_graph.training import datasets
        >>> try:
        ...     datasets.parse_idx(b"", "t10k-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
        ... except datasets.DataError as error:
        ...     print(str(error).split(";")[0])
        t10k-labels-idx1-ubyte: expected a header of 8 bytes, found 0 bytes
    """
    path, expected = Path(path), MNIST_FILES[name]
    _check_header(content, expected, path)
    if len(content) != expected.size:
        # `_read_at_most` stops one byte past the end, so the length of a file that is too long is unknown.
        found = f"{len(content)} bytes (truncated)" if len(content) < expected.size else f"{len(content)} bytes or more"
        raise _bad(path, f"{expected.size} bytes", found)
    array = np.frombuffer(content, np.uint8, offset=expected.header_size).reshape(expected.shape)
    if array.ndim == 1:
        _check_labels(array, path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected.sha256:
        raise _bad(path, f"SHA-256 {expected.sha256} (of the decompressed content)", digest)
    return array


def _check_header(content: bytes, expected: IdxFile, path: Path) -> None:
    if len(content) < expected.header_size:
        raise _bad(path, f"a header of {expected.header_size} bytes", f"{len(content)} bytes")
    magic, count, *image_shape = np.frombuffer(content[: expected.header_size], ">u4").tolist()
    if magic != expected.magic:
        raise _bad(path, f"magic number {expected.magic}", str(magic))
    if count != expected.shape[0]:
        raise _bad(path, f"{expected.shape[0]} items", str(count))
    if tuple(image_shape) != expected.shape[1:]:
        raise _bad(path, f"images of {_by(expected.shape[1:])} pixels", _by(image_shape))


def _by(shape: tuple[int, ...] | list[int]) -> str:
    return "×".join(map(str, shape))


def _check_labels(labels: np.ndarray, path: Path) -> None:
    wrong = np.flatnonzero(labels >= CLASSES)
    if wrong.size:
        position = int(wrong[0])
        raise _bad(path, f"labels from 0 to {CLASSES - 1}", f"{labels[position]} at position {position} (from 0)")


def _mnist_paths(directory: Path) -> dict[str, Path]:
    """File name → path, of those of MNIST's files that `directory` has; empty if there is no such directory."""
    try:
        present = set(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _bad(directory, "a directory that can be read", error.strerror or str(error)) from error
    paths = {}
    for name in MNIST_FILES:
        form = next((form for form in (name, f"{name}.gz") if form in present), None)
        if form is not None:
            paths[name] = directory / form
    return paths


def _read_at_most(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of a file, decompressed if its name ends in .gz."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(limit)
    except gzip.BadGzipFile as error:
        raise _bad(path, "a whole gzip file", f"damage or another format ({error})") from error
    except EOFError as error:
        raise _bad(path, "a whole gzip file", "a truncated one") from error
    except zlib.error as error:
        raise _bad(path, "a whole gzip file", f"damaged data ({error})") from error
    except OSError as error:
        raise _bad(path, "a file that can be read", error.strerror or str(error)) from error


def _bad(path: Path, expected: str, found: str) -> DataError:
    directory = path.parent if path.name.removesuffix(".gz") in MNIST_FILES else path
    remedy = (
        "copy MNIST's four IDX files there, set MNIST_DIR to where they are, or run "
        f"`python -m experiments.machinery.fetch_mnist --directory {shlex.quote(str(directory))}`"
    )
    return DataError(_one_line(f"{path}: expected {expected}, found {found}; {remedy}"))


def _one_line(text: str) -> str:
    # The name of a directory may contain a line feed.
    return " ".join(text.splitlines())


def _split(images: np.ndarray, labels: np.ndarray, white: int) -> Split:
    flat = images.reshape(len(images), -1)
    # The dtype makes it divide in float32; without it MNIST would be 376 MB of float64 in between.
    scaled = np.divide(flat, np.float32(white), out=_aligned(flat.shape), dtype=np.float32)
    return Split(scaled, np.eye(CLASSES, dtype=np.float32)[labels])


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array at a multiple of 64 bytes: TensorFlow takes such a feed as it is, and copies any other."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def _part(split: Split, start: int, stop: int | None) -> Split:
    return Split(split.images[start:stop], split.labels[start:stop])


def batches(split: Split, batch_size: int, *, seed: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of a training run, from its step `start` on, without end.

    Which examples are in a step's batch depends on the number of examples, `batch_size`, `seed` and the step, and on
    nothing else. So a run that is stopped and resumed at step k gets the same batches as one that is not stopped.

    Args:
        split: the examples.
        batch_size: examples a batch, from 1 to ``split.size``.
        seed: of the order, not negative.
        start: the step of the first batch, counted from 0.

    Returns:
        Iterator of ``(images, labels)``, float32 ``[batch_size, d]`` and ``[batch_size, 10]``, copies of the split's
        rows. For the order see `batch_rows`.

    Raises:
        ValueError: an argument is out of its range; at the call, not at the first batch.

    Example:
        >>> from bn_graph.training import datasets
        >>> images, labels = next(datasets.batches(datasets.load("digits").train, 60, seed=0, start=5))
        >>> images.shape, labels.shape
        ((60, 64), (60, 10))
    """
    rows = batch_rows(split.size, batch_size, seed=seed, start=start)
    return ((split.images[chosen], split.labels[chosen]) for chosen in rows)


def batch_rows(size: int, batch_size: int, *, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """The row numbers of each batch of a training run, from its step `start` on, without end.

    Every epoch is shuffled anew, by ``np.random.default_rng([seed, 1 + epoch])``, and cut into ``size // batch_size``
    batches; the examples left over are dropped, so that all batches have one size (each epoch drops other examples).

    Args:
        size: the number of examples.
        batch_size, seed, start: as for `batches`.

    Returns:
        Iterator of int64 ``[batch_size]``, in which no row of an epoch comes twice.

    Raises:
        ValueError: `batch_size` is not from 1 to `size`, or `seed` or `start` is negative; at the call.

    Example:
        >>> from itertools import islice
        >>> from bn_graph.training.datasets import batch_rows
        >>> one_epoch = list(islice(batch_rows(6, 2, seed=0), 3))
        >>> sorted(int(row) for rows in one_epoch for row in rows)
        [0, 1, 2, 3, 4, 5]
    """
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size must be from 1 to {size}, the number of examples, not {batch_size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, but is {seed}")
    if start < 0:
        raise ValueError(f"start must not be negative, but is {start}")
    return _rows(size, batch_size, seed, start)


def _rows(size: int, batch_size: int, seed: int, start: int) -> Iterator[np.ndarray]:
    steps = size // batch_size
    first_epoch, first_step = divmod(start, steps)
    for epoch in itertools.count(first_epoch):
        # 1 + epoch: [seed, 0] would be the same stream as [seed], which draws the weights.
        order = np.random.default_rng([seed, 1 + epoch]).permutation(size)
        for step in range(first_step if epoch == first_epoch else 0, steps):
            yield order[step * batch_size : (step + 1) * batch_size]
