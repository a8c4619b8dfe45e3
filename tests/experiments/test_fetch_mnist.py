"""`experiments.machinery.fetch_mnist`: writes whole, checked files or none, and says what to do when there is no network."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from bn_graph.checkpoints.files import written_beside
from bn_graph.tf1 import tf
from bn_graph.training import datasets
from experiments.machinery import fetch_mnist

SHAPES = {
    "train-images-idx3-ubyte": (12, 28, 28),
    "train-labels-idx1-ubyte": (12,),
    "t10k-images-idx3-ubyte": (5, 28, 28),
    "t10k-labels-idx1-ubyte": (5,),
}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 10, shape, np.uint8) for name, shape in SHAPES.items()}


class Loader:
    """Stands for Keras's loader: counts its calls, and gives `arrays` or raises `error`."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays, self.calls, self.error = arrays, 0, None

    def __call__(self):
        self.calls += 1
        print("Downloading data …")
        if self.error is not None:
            raise self.error
        return tuple(
            (self.arrays[f"{part}-images-idx3-ubyte"], self.arrays[f"{part}-labels-idx1-ubyte"])
            for part in ("train", "t10k")
        )


@pytest.fixture
def loader(monkeypatch, arrays) -> Loader:
    expected = {
        name: datasets.IdxFile(array.shape, hashlib.sha256(fetch_mnist.idx_bytes(array)).hexdigest())
        for name, array in arrays.items()
    }
    monkeypatch.setattr(datasets, "MNIST_FILES", expected)
    monkeypatch.setattr(datasets, "MNIST_VALIDATION", 4)
    fake = Loader(arrays)
    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", fake)
    return fake


def run(directory: Path) -> int:
    return fetch_mnist.main(["--directory", str(directory)])


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_array_becomes_header_and_bytes():
    content = fetch_mnist.idx_bytes(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    assert content == bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))


def test_array_in_fortran_order_is_written_row_by_row():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert fetch_mnist.idx_bytes(np.asfortranarray(array)) == fetch_mnist.idx_bytes(array)


def test_array_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match="int64"):
        fetch_mnist.idx_bytes(np.zeros(3, np.int64))


def test_fetched_files_load_as_what_was_downloaded(tmp_path, loader, arrays, capsys):
    place = tmp_path / "new" / "MNIST_data"
    assert run(place) == 0
    assert names(place) == sorted(SHAPES)
    test = datasets.load_mnist(place).test
    np.testing.assert_array_equal(test.labels.argmax(1), arrays["t10k-labels-idx1-ubyte"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and str(place) in out and "downloaded and checked" in out


def test_valid_directory_is_left_alone_and_nothing_downloaded(tmp_path, loader, capsys):
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert loader.calls == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and "there already" in out


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_damaged_file_is_mended(tmp_path, loader, name):
    (tmp_path / name).write_bytes(b"damaged")
    assert run(tmp_path) == 0
    assert datasets.load_mnist(tmp_path).name == "mnist"


def test_without_a_network_it_says_what_to_do_and_leaves_nothing(tmp_path, loader, capsys):
    loader.error = Exception("URL fetch failure on https://…:\nNone -- no route")
    place = tmp_path / "MNIST_data"
    assert run(place) == 2
    assert not place.exists()
    captured = capsys.readouterr()
    message = captured.err.splitlines()[-1]
    assert captured.out == ""
    assert all(part in message for part in ("can't download", "no route", "MNIST_DIR", str(place), *SHAPES))


def test_download_that_is_not_mnist_is_not_written(tmp_path, loader, capsys):
    loader.arrays = loader.arrays | {"t10k-labels-idx1-ubyte": np.zeros(5, np.uint8)}
    assert run(tmp_path) == 2
    assert names(tmp_path) == []
    message = capsys.readouterr().err.splitlines()[-1]
    assert "t10k-labels-idx1-ubyte" in message and "nothing was written" in message


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file_and_no_temporary_one(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), written_beside(path, replace=True) as beside:
        Path(beside).write_bytes(b"half")
        raise error
    assert names(tmp_path) == ["file"] and path.read_bytes() == b"old"


def test_directory_that_cannot_be_written_is_an_error_of_one_line(tmp_path, loader, capsys):
    (tmp_path / "file").touch()
    assert run(tmp_path / "file") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "can't write" in message and "--directory" in message


@pytest.mark.mnist
@pytest.mark.skipif(not os.environ.get("MNIST_DIR"), reason="MNIST_DIR is not set")
def test_real_arrays_become_files_with_the_known_digests(tmp_path, monkeypatch):
    source = datasets.load_mnist(os.environ["MNIST_DIR"])

    def raw(*splits):
        images = np.concatenate([split.images for split in splits])
        pixels = np.rint(images * 255).astype(np.uint8).reshape(-1, 28, 28)
        return pixels, np.concatenate([split.labels for split in splits]).argmax(1).astype(np.uint8)

    loaded = raw(source.validation, source.train), raw(source.test)
    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", lambda: loaded)
    assert run(tmp_path) == 0
    assert names(tmp_path) == sorted(datasets.MNIST_FILES)
