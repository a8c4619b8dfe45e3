"""Fetches MNIST with Keras's own loader and writes it as the four plain IDX files that `bn_graph.training.datasets` reads.

Run ``make mnist``, or::

    python -m experiments.machinery.fetch_mnist [--directory MNIST_data]

It downloads 11 MB (Keras keeps them in ``~/.keras/datasets``) and writes 55 MB. If the directory has MNIST already, in
good order, nothing is downloaded. What arrives is checked against the known SHA-256 *before* anything is written, and
each file appears whole or not at all.
"""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bn_graph.checkpoints.files import written_beside
from bn_graph.training import datasets
from experiments.machinery import programs
from experiments.machinery.programs import UsageError

DOWNLOAD_TIMEOUT = 60
"""Seconds without a byte after which the download is given up; Keras alone would wait for ever."""


class FetchError(UsageError):
    """MNIST can't be had or can't be stored. The message is one line and says what to do instead."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line; ``sys.argv``'s if None.

    Returns:
        The exit status: 0 if the directory holds a valid MNIST now, 2 if not, with one line on stderr.
    """
    parser = programs.parser(__name__, __doc__)
    parser.add_argument("--directory", type=Path, default=Path(datasets.DEFAULT_DIRECTORY), help="default: %(default)s")
    return programs.run(parser, arguments, lambda given: print(fetch(given.directory)))


def fetch(directory: Path) -> str:
    """Sees to it that `directory` holds a valid MNIST.

    Args:
        directory: made if need be. Damaged or missing files are written anew, as plain files, which
            `datasets.load_mnist` prefers to ``.gz``; a ``.gz`` is left as it is.

    Returns:
        One line that says what was done.

    Raises:
        FetchError: the download failed or is not MNIST (nothing is written then), or a file can't be written.
        DataError: what was written does not read back as MNIST.
    """
    with contextlib.suppress(datasets.DataError):
        return f"{datasets.describe(datasets.load_mnist(directory))}; it was there already, nothing downloaded"
    contents = idx_files(_download_or_explain(directory))
    _check(contents)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with written_beside(directory / name, replace=True) as beside:
                Path(beside).write_bytes(content)
    except OSError as error:
        raise FetchError(_one_line(f"can't write to {directory} ({error}); name another one: --directory")) from error
    return f"{datasets.describe(datasets.load_mnist(directory))}; downloaded and checked"


def download() -> dict[str, np.ndarray]:
    """MNIST's arrays by file name, as ``tf.keras.datasets.mnist.load_data`` gives them, uint8."""
    from bn_graph.tf1 import tf  # here, for a directory that is in order needs no TensorFlow

    # Keras reports its progress on stdout, which is for this command's one line.
    with contextlib.redirect_stdout(sys.stderr), _socket_timeout(DOWNLOAD_TIMEOUT):
        training, test = tf.keras.datasets.mnist.load_data()
    return {
        "train-images-idx3-ubyte": training[0],
        "train-labels-idx1-ubyte": training[1],
        "t10k-images-idx3-ubyte": test[0],
        "t10k-labels-idx1-ubyte": test[1],
    }


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download_or_explain(directory: Path) -> dict[str, np.ndarray]:
    try:
        return download()
    except Exception as error:  # Keras wraps every failure to download in a bare Exception
        raise FetchError(
            _one_line(
                f"can't download MNIST ({error}); instead copy its four files ({', '.join(datasets.MNIST_FILES)}, "
                f"plain or .gz) by hand into {directory}, or set MNIST_DIR to a directory that has them"
            )
        ) from error


def _check(contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        try:
            datasets.parse_idx(content, name, name)
        except datasets.DataError as error:
            raise FetchError(
                f"what Keras delivered as {name} is not MNIST's, nothing was written; "
                "delete ~/.keras/datasets/mnist.npz and run this again"
            ) from error


def idx_files(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The content of each IDX file, by name (`idx_bytes`)."""
    return {name: idx_bytes(array) for name, array in arrays.items()}


def idx_bytes(array: np.ndarray) -> bytes:
    """An array as the content of an IDX file.

    Args:
        array: uint8, of any shape.

    Returns:
        The header (0x0800 + rank, then each dimension, big-endian uint32), then the bytes of the array in C order.

    Raises:
        ValueError: the array is not uint8.

    Example:
        >>> import numpy as np
        >>> from experiments.machinery.fetch_mnist import idx_bytes
        >>> idx_bytes(np.array([7, 2], np.uint8)).hex(" ", 4)
        '0000 08010000 00020702'
    """
    if array.dtype != np.uint8:
        raise ValueError(f"an IDX file of bytes takes uint8, not {array.dtype}")
    return np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes() + array.tobytes()


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
