"""`bn_graph.training.datasets`: files are read strictly, nothing falls back in silence, batches depend on the step alone."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bn_graph.training import datasets
from bn_graph.training.datasets import DataError, IdxFile, Split, batch_rows, batches

TRAINING, TEST, VALIDATION = 12, 5, 4
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
REAL_MNIST = pytest.mark.skipif(not os.environ.get("MNIST_DIR"), reason="MNIST_DIR is not set")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(autouse=True)
def no_mnist_around(monkeypatch, tmp_path, request):
    """Every test but those on the real MNIST sees no ``MNIST_DIR`` and an empty current directory."""
    if request.node.get_closest_marker("mnist") is None:
        monkeypatch.delenv("MNIST_DIR", raising=False)
        current = tmp_path / "current"
        current.mkdir()
        monkeypatch.chdir(current)


@pytest.fixture
def arrays(monkeypatch) -> dict[str, np.ndarray]:
    """A small MNIST, which the module is made to expect in place of the real one."""
    rng = np.random.default_rng(0)
    made = {}
    for prefix, count in (("train", TRAINING), ("t10k", TEST)):
        made[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        made[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, count, np.uint8)
    expected = {name: IdxFile(array.shape, hashlib.sha256(idx(array)).hexdigest()) for name, array in made.items()}
    monkeypatch.setattr(datasets, "MNIST_FILES", expected)
    monkeypatch.setattr(datasets, "MNIST_VALIDATION", VALIDATION)
    return made


@pytest.fixture(params=["plain", "gz"])
def form(request) -> str:
    return request.param


def put(directory: Path, name: str, content: bytes, form: str) -> Path:
    path = directory / (name if form == "plain" else f"{name}.gz")
    path.write_bytes(content if form == "plain" else gzip.compress(content))
    return path


@pytest.fixture
def directory(tmp_path, arrays, form) -> Path:
    place = tmp_path / "some where"
    place.mkdir()
    for name, array in arrays.items():
        put(place, name, idx(array), form)
    return place


def assert_refused(directory: Path, *parts: str) -> None:
    """Loading fails with one line that has all `parts` and a remedy, and "auto" does not hide it."""
    for load in (datasets.load_mnist, lambda place: datasets.load("auto", place)):
        with pytest.raises(DataError) as caught:
            load(directory)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        for part in (*parts, "expected", "found", f"experiments.machinery.fetch_mnist --directory '{directory}'"):
            assert part in message


# MNIST from its files


def test_pixels_are_divided_by_255_and_labels_one_hot(directory, arrays):
    test = datasets.load_mnist(directory).test
    np.testing.assert_array_equal(test.images, arrays["t10k-images-idx3-ubyte"].reshape(TEST, 784) / np.float32(255))
    np.testing.assert_array_equal(test.labels.argmax(1), arrays["t10k-labels-idx1-ubyte"])
    np.testing.assert_array_equal(test.labels.sum(1), np.ones(TEST))
    assert test.images.dtype == test.labels.dtype == np.float32
    assert test.labels.shape == (TEST, 10)


def test_first_training_images_are_for_validation_and_the_rest_for_training(directory, arrays):
    mnist = datasets.load_mnist(directory)
    assert (mnist.validation.size, mnist.train.size, mnist.test.size) == (VALIDATION, TRAINING - VALIDATION, TEST)
    both = np.concatenate([mnist.validation.images, mnist.train.images]) * 255
    np.testing.assert_allclose(both, arrays[IMAGES].reshape(TRAINING, 784), rtol=1e-6)
    both_labels = np.concatenate([mnist.validation.labels, mnist.train.labels])
    np.testing.assert_array_equal(both_labels.argmax(1), arrays[LABELS])


def test_images_begin_where_tensorflow_need_not_copy_them():
    dataset = datasets.load("digits")
    assert all(split.images.ctypes.data % 64 == 0 for split in (dataset.train, dataset.validation, dataset.test))


def test_dataset_says_what_it_is_and_where_from(directory, arrays):
    mnist = datasets.load_mnist(directory)
    assert (mnist.name, mnist.image_shape, mnist.source) == ("mnist", (28, 28), str(directory))
    assert mnist.sha256 == {name: hashlib.sha256(idx(array)).hexdigest() for name, array in arrays.items()}


def test_loading_writes_nothing(directory):
    before = {path: path.stat().st_mtime_ns for path in directory.parent.rglob("*")}
    datasets.load_mnist(directory)
    assert {path: path.stat().st_mtime_ns for path in directory.parent.rglob("*")} == before


@pytest.mark.parametrize("form", ["plain"])
def test_plain_file_is_preferred_to_a_gz_beside_it(directory):
    (directory / f"{IMAGES}.gz").write_bytes(b"not read")
    assert datasets.load_mnist(directory).name == "mnist"


@pytest.mark.parametrize("form", ["gz"])
def test_damaged_plain_file_does_not_fall_back_to_the_gz_beside_it(directory):
    (directory / IMAGES).write_bytes(b"")
    assert_refused(directory, str(directory / IMAGES), "found 0 bytes")


def test_plain_and_gz_may_be_mixed(tmp_path, arrays):
    for number, (name, array) in enumerate(arrays.items()):
        put(tmp_path, name, idx(array), "plain" if number % 2 else "gz")
    assert datasets.load_mnist(tmp_path).test.size == TEST


# each way that a file can be bad


def test_missing_file_is_named(directory, form):
    (directory / (LABELS if form == "plain" else f"{LABELS}.gz")).unlink()
    assert_refused(directory, str(directory / LABELS), ".gz", f"found neither (missing in all: {LABELS})")


def test_missing_directory_names_every_file(tmp_path, arrays):
    place = tmp_path / "no such"
    assert_refused(place, "no such directory", *arrays)
    assert not place.exists()


@pytest.mark.parametrize("form", ["plain"])
def test_directory_in_place_of_a_file_cannot_be_read(directory):
    (directory / LABELS).unlink()
    (directory / LABELS).mkdir()
    assert_refused(directory, str(directory / LABELS), "expected a file that can be read", "Is a directory")


def test_plain_content_under_a_gz_name_is_not_gzip(directory, arrays):
    (directory / LABELS).unlink(missing_ok=True)
    (directory / f"{LABELS}.gz").write_bytes(idx(arrays[LABELS]))
    assert_refused(directory, f"{LABELS}.gz", "expected a whole gzip file", "Not a gzipped file")


@pytest.mark.parametrize("form", ["gz"])
@pytest.mark.parametrize("kept", [5, 30, -1])
def test_truncated_gzip_is_refused(directory, kept):
    path = directory / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(directory, str(path), "expected a whole gzip file", "found a truncated one")


@pytest.mark.parametrize("form", ["gz"])
def test_gzip_with_a_wrong_checksum_is_refused(directory):
    path = directory / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert_refused(directory, str(path), "expected a whole gzip file", "CRC")


@pytest.mark.parametrize("form", ["gz"])
def test_gzip_with_damaged_data_is_refused(directory):
    path = directory / f"{LABELS}.gz"
    content = bytearray(path.read_bytes())
    content[10] |= 0b110  # block type 3 does not exist
    path.write_bytes(content)
    assert_refused(directory, str(path), "expected a whole gzip file", "damaged data", "invalid block type")


@pytest.mark.parametrize(("name", "size", "header"), [(IMAGES, 15, 16), (IMAGES, 0, 16), (LABELS, 7, 8)])
def test_file_too_short_for_its_header_is_refused(directory, arrays, form, name, size, header):
    path = put(directory, name, idx(arrays[name])[:size], form)
    assert_refused(directory, str(path), f"expected a header of {header} bytes", f"found {size} bytes")


@pytest.mark.parametrize(("name", "right", "wrong"), [(IMAGES, 2051, 2049), (LABELS, 2049, 2051)])
def test_wrong_magic_number_is_refused(directory, arrays, form, name, right, wrong):
    path = put(directory, name, struct.pack(">I", wrong) + idx(arrays[name])[4:], form)
    assert_refused(directory, str(path), f"expected magic number {right}", f"found {wrong}")


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_wrong_count_is_refused(directory, arrays, form, name):
    path = put(directory, name, idx(arrays[name][:-1]), form)
    assert_refused(directory, str(path), f"expected {TRAINING} items", f"found {TRAINING - 1}")


def test_wrong_image_size_is_refused(directory, arrays, form):
    path = put(directory, IMAGES, idx(arrays[IMAGES].reshape(TRAINING, 14, 56)), form)
    assert_refused(directory, str(path), "expected images of 28×28 pixels", "found 14×56")


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_truncated_body_is_refused(directory, arrays, form, name):
    whole = idx(arrays[name])
    path = put(directory, name, whole[:-1], form)
    assert_refused(directory, str(path), f"expected {len(whole)} bytes", f"found {len(whole) - 1} bytes (truncated)")


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_trailing_bytes_are_refused(directory, arrays, form, name):
    whole = idx(arrays[name])
    path = put(directory, name, whole + b"\0\0", form)
    assert_refused(directory, str(path), f"expected {len(whole)} bytes", f"found {len(whole) + 1} bytes or more")


def test_label_out_of_range_is_refused_with_its_position(directory, arrays, form):
    labels = arrays[LABELS].copy()
    labels[[3, 7]] = 10, 255
    path = put(directory, LABELS, idx(labels), form)
    assert_refused(directory, str(path), "expected labels from 0 to 9", "found 10 at position 3")


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_one_changed_byte_is_refused_by_its_digest(directory, arrays, form, name):
    changed = arrays[name].copy()
    changed.flat[-1] = (int(changed.flat[-1]) + 1) % 10
    path = put(directory, name, idx(changed), form)
    digests = (hashlib.sha256(idx(arrays[name])).hexdigest(), hashlib.sha256(idx(changed)).hexdigest())
    assert_refused(directory, str(path), f"expected SHA-256 {digests[0]}", f"found {digests[1]}")


@pytest.mark.parametrize("form", ["gz"])
def test_gzip_bomb_is_refused_without_being_unpacked(directory, arrays):
    bomb = 64 << 20
    path = put(directory, LABELS, idx(arrays[LABELS]) + bytes(bomb), "gz")
    tracemalloc.start()
    with pytest.raises(DataError, match="or more"):
        datasets.load_mnist(directory)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size < bomb / 500
    assert peak < bomb / 10


def test_message_is_one_line_even_if_the_path_is_not(tmp_path):
    with pytest.raises(DataError) as caught:
        datasets.load_mnist(tmp_path / "two\nlines")
    assert len(str(caught.value).splitlines()) == 1


def test_real_table_is_that_of_mnist():
    shapes = {name: expected.shape for name, expected in datasets.MNIST_FILES.items()}
    assert shapes[IMAGES] == (60_000, 28, 28) and shapes[LABELS] == (60_000,)
    assert [expected.magic for expected in datasets.MNIST_FILES.values()] == [2051, 2049, 2051, 2049]
    assert {len(expected.sha256) for expected in datasets.MNIST_FILES.values()} == {64}


# which data set


def test_auto_takes_the_digits_where_there_is_no_mnist():
    assert datasets.load().name == "digits"


def test_auto_takes_mnist_from_the_default_directory(arrays):
    Path("MNIST_data").mkdir()
    for name, array in arrays.items():
        put(Path("MNIST_data"), name, idx(array), "plain")
    mnist = datasets.load()
    assert (mnist.name, mnist.source) == ("mnist", "MNIST_data")


def test_auto_takes_the_digits_where_the_default_directory_has_other_files_only():
    Path("MNIST_data").mkdir()
    Path("MNIST_data", "notes.txt").touch()
    assert datasets.load().name == "digits"


def test_auto_refuses_an_incomplete_default_directory(arrays):
    Path("MNIST_data").mkdir()
    put(Path("MNIST_data"), IMAGES, idx(arrays[IMAGES]), "gz")
    with pytest.raises(DataError, match=f"missing in all: {LABELS}"):
        datasets.load()


def test_mnist_dir_is_used_and_an_argument_goes_before_it(directory, monkeypatch):
    monkeypatch.setenv("MNIST_DIR", str(directory))
    assert datasets.load().source == str(directory)
    with pytest.raises(DataError, match="elsewhere"):
        datasets.load(directory="elsewhere")


@pytest.mark.parametrize("name", ["auto", "mnist"])
@pytest.mark.parametrize("exists", [False, True])
def test_mnist_dir_without_mnist_is_refused(tmp_path, monkeypatch, name, exists):
    place = tmp_path / "typo"
    if exists:
        place.mkdir()
    monkeypatch.setenv("MNIST_DIR", str(place))
    with pytest.raises(DataError, match=str(place)):
        datasets.load(name)


def test_empty_mnist_dir_is_as_good_as_none(monkeypatch):
    monkeypatch.setenv("MNIST_DIR", "")
    assert datasets.load().name == "digits"


def test_mnist_by_name_never_becomes_the_digits():
    with pytest.raises(DataError, match="MNIST_data"):
        datasets.load("mnist")


def test_digits_by_name_need_no_mnist_dir(monkeypatch):
    monkeypatch.setenv("MNIST_DIR", "/no/such/place")
    assert datasets.load("digits").name == "digits"


def test_unknown_name_is_refused_with_what_is_allowed():
    with pytest.raises(DataError) as caught:
        datasets.load("cifar")
    assert all(name in str(caught.value) for name in ('"auto"', '"mnist"', '"digits"', "'cifar'"))


def test_description_of_the_digits_says_how_to_get_mnist():
    line = datasets.describe(datasets.load("digits"))
    assert len(line.splitlines()) == 1
    assert all(part in line for part in ("scikit-learn", "1300", "137", "360", "make mnist", "MNIST_DIR="))


def test_description_of_mnist_says_where_it_is_from(directory):
    line = datasets.describe(datasets.load_mnist(directory))
    assert len(line.splitlines()) == 1
    assert "MNIST" in line and str(directory) in line and "make mnist" not in line


# the digits


def test_digits_are_split_into_all_of_their_examples_once():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    splits = (digits.train, digits.validation, digits.test)
    assert [split.size for split in splits] == [1300, 137, 360]
    assert digits.image_shape == (8, 8)

    def rows(images, labels):
        return sorted(map(tuple, np.column_stack([images, labels]).tolist()))

    raw = sklearn_datasets.load_digits()
    loaded = [(split.images * 16, split.labels.argmax(1)) for split in splits]
    assert rows(*map(np.concatenate, zip(*loaded, strict=True))) == rows(raw.data, raw.target)


def test_digits_are_in_range_float32_and_the_same_each_time():
    first, second = datasets.load_digits(), datasets.load_digits()
    for split, again in zip(first[1:4], second[1:4], strict=True):
        assert split.images.dtype == split.labels.dtype == np.float32
        assert split.images.min() == 0 and split.images.max() == 1
        np.testing.assert_array_equal(split.images, again.images)
    assert first.sha256 == second.sha256 and len(first.sha256["digits"]) == 64


def test_digits_are_mixed():
    # In the raw order a block of 137 runs through few writers; here every part has about a tenth of each class.
    for split in datasets.load_digits()[1:4]:
        np.testing.assert_allclose(split.labels.mean(0), 0.1, atol=0.06)


def test_module_itself_imports_neither_tensorflow_nor_sklearn():
    # The package does import TensorFlow, so the module is run from its file.
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print({'tensorflow', 'sklearn'} & set(sys.modules))"
    command = [sys.executable, "-c", code, datasets.__file__]
    root = Path(__file__).parents[2]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.strip() == "set()"


# batches


def take(count: int, *arguments, **options) -> list[np.ndarray]:
    return list(islice(batch_rows(*arguments, **options), count))


@pytest.mark.parametrize(("size", "batch_size"), [(12, 3), (11, 3), (5, 5), (7, 1), (7, 4)])
def test_epoch_repeats_no_row_and_drops_the_ragged_tail(size, batch_size):
    steps = size // batch_size
    rows = take(3 * steps, size, batch_size, seed=1)
    for epoch in range(3):
        of_epoch = np.concatenate(rows[epoch * steps : (epoch + 1) * steps])
        assert len(of_epoch) == len(set(of_epoch.tolist())) == steps * batch_size
        assert set(of_epoch.tolist()) <= set(range(size))


def test_epoch_is_the_permutation_of_its_seed_and_number():
    rows = take(6, 7, 2, seed=5)
    for epoch in range(2):
        permutation = np.random.default_rng([5, 1 + epoch]).permutation(7)
        np.testing.assert_array_equal(np.concatenate(rows[3 * epoch : 3 * epoch + 3]), permutation[:6])


def test_epochs_and_seeds_have_different_orders():
    first, second = np.reshape(take(2, 50, 50, seed=0), (2, 50))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, take(1, 50, 50, seed=1)[0])


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 6, 7, 100])
def test_resuming_at_a_step_goes_on_as_the_uninterrupted_run(start):
    uninterrupted = take(start + 8, 11, 3, seed=2)
    np.testing.assert_array_equal(take(8, 11, 3, seed=2, start=start), uninterrupted[start:])


def test_batches_are_the_rows_of_the_split():
    split = Split(np.arange(22, dtype=np.float32).reshape(11, 2), np.eye(11, 10, dtype=np.float32))
    rows = take(7, 11, 3, seed=4, start=2)
    for chosen, (images, labels) in zip(rows, batches(split, 3, seed=4, start=2), strict=False):
        np.testing.assert_array_equal(images, split.images[chosen])
        np.testing.assert_array_equal(labels, split.labels[chosen])


def test_changing_a_batch_leaves_the_split_alone():
    split = Split(np.zeros((4, 2), np.float32), np.zeros((4, 10), np.float32))
    for array in next(batches(split, 4, seed=0)):
        array += 1
    assert not split.images.any() and not split.labels.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size must be from 1 to 4.*not 0"),
        ({"batch_size": 5}, "batch_size must be from 1 to 4.*not 5"),
        ({"seed": -1}, "seed must not be negative.*-1"),
        ({"start": -1}, "start must not be negative.*-1"),
    ],
)
def test_bad_arguments_of_batches_are_refused_at_the_call(wrong, message):
    split = Split(np.zeros((4, 2), np.float32), np.zeros((4, 10), np.float32))
    arguments = {"batch_size": 2, "seed": 0, "start": 0} | wrong
    with pytest.raises(ValueError, match=message):
        batches(split, **arguments)
    with pytest.raises(ValueError, match=message):
        batch_rows(4, **arguments)


# the real MNIST


@pytest.mark.mnist
@REAL_MNIST
def test_real_mnist_has_its_known_sizes_and_first_labels():
    mnist = datasets.load("auto")
    assert (mnist.name, mnist.source) == ("mnist", os.environ["MNIST_DIR"])
    assert (mnist.train.size, mnist.validation.size, mnist.test.size) == (55_000, 5_000, 10_000)
    assert mnist.test.labels[:10].argmax(1).tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    for split in (mnist.train, mnist.validation, mnist.test):
        assert split.images.shape == (split.size, 784) and split.labels.shape == (split.size, 10)
        assert split.images.dtype == split.labels.dtype == np.float32
        assert split.images.min() == 0 and split.images.max() == 1
