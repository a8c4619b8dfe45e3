"""Checkpoints read without TensorFlow, against the same ones read by TensorFlow, and against bytes made by hand."""

import math
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from bn_graph.checkpoints import table
from bn_graph.checkpoints.crc32c import crc32c, crc32c_of_repeated
from bn_graph.checkpoints.index import Entry, equals, is_filled_with, read_checkpoint
from bn_graph.graphs import protos
from bn_graph.graphs.errors import AuditError
from bn_graph.tf1 import tf

GRAPHS = Path(__file__).parents[2] / "../shared/graphs"
VALUES = {
    "zeros": np.zeros((3, 5), np.float32),
    "ones": np.ones(7, np.float64),
    "halves": np.full(9, 0.5, np.float16),
    "nearly": np.array([1, 1, 1.0000001], np.float32),
    "scope/integers": np.full((2, 2), -3, np.int64),
    "step": np.array(4, np.int32),
    "flags": np.ones(3, np.bool_),
}


def save(prefix, values, version=2, **options):
    """Writes a checkpoint with TensorFlow and returns its prefix."""
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in values.items():
            tf.get_variable(name, initializer=value)
        session.run(tf.global_variables_initializer())
        return tf.train.Saver(write_version=version, **options).save(session, str(prefix), write_state=False)


def save_partitioned(prefix, value, pieces, version=2):
    with tf.Graph().as_default(), tf.Session() as session:

        def initial(shape, dtype, partition_info):
            start = partition_info.var_offset
            return value[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]

        partitioner = tf.fixed_size_partitioner(pieces, axis=value.ndim - 1)
        tf.get_variable("split", value.shape, initializer=initial, partitioner=partitioner)
        session.run(tf.global_variables_initializer())
        return tf.train.Saver(write_version=version).save(session, str(prefix), write_state=False)


@pytest.fixture(scope="module", params=[1, 2])
def saved(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "model.ckpt-4", VALUES, request.param)


def test_names_shapes_and_dtypes_are_tensorflows_own(saved):
    theirs = tf.train.load_checkpoint(saved)
    ours = read_checkpoint(saved)
    assert ours.prefix == saved
    assert {name: list(entry.shape) for name, entry in ours.entries.items()} == theirs.get_variable_to_shape_map()
    dtypes = {name: dtype.name for name, dtype in theirs.get_variable_to_dtype_map().items()}
    assert {name: entry.dtype for name, entry in ours.entries.items()} == dtypes


@pytest.mark.parametrize("number", [0, 1, 0.5, -3, 4, math.nan, 1e300])
def test_filled_with_is_what_the_values_say(saved, number):
    for name, entry in read_checkpoint(saved).entries.items():
        assert is_filled_with(entry, number) is bool(np.all(VALUES[name].astype(np.float64) == number)), name


def test_an_entry_equals_its_own_values_and_no_others(saved):
    for name, entry in read_checkpoint(saved).entries.items():
        assert equals(entry, VALUES[name]) is True
        assert equals(entry, VALUES[name].astype(np.float64)) is True
        assert equals(entry, VALUES[name] + 1 if name != "flags" else ~VALUES[name]) is False
        assert equals(entry, VALUES[name].reshape(1, *VALUES[name].shape)) is False


@pytest.mark.parametrize("version", [1, 2])
def test_slices_of_a_partitioned_variable_are_one_entry(tmp_path, version):
    # 200 columns in 3 pieces: starts above 63 take two bytes in TensorFlow's code for numbers in keys.
    value = np.ones((2, 200), np.float32)
    entry = read_checkpoint(save_partitioned(tmp_path / "model", value, 3, version)).entries["split"]
    assert (entry.dtype, entry.shape) == ("float32", (2, 200))
    assert (is_filled_with(entry, 1), is_filled_with(entry, 0)) == (True, False)
    assert (equals(entry, value), equals(entry, value * 2)) == (True, False)


@pytest.mark.parametrize("version", [1, 2])
def test_one_different_slice_makes_a_tensor_not_filled(tmp_path, version):
    value = np.zeros((2, 200), np.float32)
    value[1, 150] = 1
    entry = read_checkpoint(save_partitioned(tmp_path / "model", value, 3, version)).entries["split"]
    assert is_filled_with(entry, 0) is False
    assert equals(entry, value) is True


def test_a_missing_slice_leaves_it_untold(tmp_path):
    prefix = save_partitioned(tmp_path / "model", np.ones((2, 200), np.float32), 3)
    entry = read_checkpoint(prefix).entries["split"]
    assert len(entry.slices) == 3
    unknown = entry._replace(slices=(*entry.slices[:2], entry.slices[2]._replace(crc32c=None)))
    assert is_filled_with(unknown, 1) is None
    assert is_filled_with(unknown, 0) is False
    assert is_filled_with(entry._replace(slices=entry.slices[:2]), 1) is None


def test_a_sharded_v1_checkpoint_is_read_whole_from_its_prefix_or_any_shard(tmp_path):
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        for device, name in enumerate(["first", "second"]):
            with tf.device(f"/cpu:{device}"):
                tf.get_variable(name, initializer=np.full(3, device, np.float32))
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(write_version=1, sharded=True)
        saver.save(session, str(tmp_path / "model.ckpt"), write_state=False)
    shards = sorted(tmp_path.glob("model.ckpt-*-of-00002"))
    assert len(shards) == 2
    for path in [tmp_path / "model.ckpt", *shards]:
        checkpoint = read_checkpoint(str(path))
        assert checkpoint.prefix == str(tmp_path / "model.ckpt")
        assert [is_filled_with(checkpoint.entries[name], 1) for name in ("first", "second")] == [False, True]
    shards[0].unlink()
    with pytest.raises(AuditError, match="1 of the checkpoint's 2 shards"):
        read_checkpoint(str(tmp_path / "model.ckpt"))


def test_large_tensors_of_a_v1_checkpoint_keep_no_value(tmp_path, monkeypatch):
    prefix = save(tmp_path / "model", {"large": np.zeros(200, np.float32), "small": np.zeros(20, np.float32)}, 1)
    monkeypatch.setattr("bn_graph.checkpoints.index._VALUES", 100)
    entries = read_checkpoint(prefix).entries
    assert (is_filled_with(entries["large"], 0), is_filled_with(entries["small"], 0)) == (None, True)
    assert entries["large"].shape == (200,)


def test_bfloat16_is_rounded_as_tensorflow_rounds_it(tmp_path):
    numbers = np.array([0, 1, -1, 1.00390625, 1.01171875, 3.14159, 1e-40, 3.4e38, np.inf], np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable("pi", initializer=tf.cast(tf.fill([5], np.float32(3.14159)), tf.bfloat16))
        tf.get_variable("numbers", initializer=tf.cast(numbers, tf.bfloat16))
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver().save(session, str(tmp_path / "model"))
    entries = read_checkpoint(prefix).entries
    assert entries["pi"].dtype == "bfloat16"
    assert (is_filled_with(entries["pi"], 3.14159), is_filled_with(entries["pi"], 3)) == (True, False)
    assert equals(entries["numbers"], numbers) is True
    assert equals(entries["numbers"], numbers.astype(tf.bfloat16.as_numpy_dtype)) is True


def test_keys_of_object_based_checkpoints_are_kept(tmp_path):
    with tf.Graph().as_default(), tf.Session() as session:
        module = tf.Module()
        module.moving_mean = tf.Variable(np.zeros(3, np.float32), use_resource=True)
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Checkpoint(layer=module).save(str(tmp_path / "ckpt"), session=session)
    entries = read_checkpoint(prefix).entries
    assert is_filled_with(entries["layer/moving_mean/.ATTRIBUTES/VARIABLE_VALUE"], 0) is True
    assert entries["_CHECKPOINTABLE_OBJECT_GRAPH"].dtype == "string"
    assert is_filled_with(entries["_CHECKPOINTABLE_OBJECT_GRAPH"], 0) is None


def test_a_prefix_an_index_and_a_data_file_mean_the_same(tmp_path):
    prefix = save(tmp_path / "model.ckpt-4", VALUES)
    data = prefix + ".data-00000-of-00001"
    assert read_checkpoint(prefix) == read_checkpoint(prefix + ".index") == read_checkpoint(data)
    Path(data).unlink()
    assert len(read_checkpoint(prefix).entries) == len(VALUES)


# The CRC.


def one_bit_at_a_time(data):
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 31, 8191, 8192, 8193, 20000])
def test_crc_is_that_of_its_definition(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == one_bit_at_a_time(data)


def test_crc_of_long_data_is_that_of_its_pieces(monkeypatch):
    data = np.random.default_rng(0).bytes(100_001)
    whole = crc32c(data)
    monkeypatch.setattr("bn_graph.checkpoints.crc32c._CHUNK", 10_007)
    assert crc32c(data) == whole == crc32c(np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint16", "complex64"])
@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000])
def test_the_crc_of_a_repeated_number_needs_no_array(dtype, size):
    entry = Entry(dtype, (size,), crc32c(np.full(size, 3, dtype).tobytes()))
    assert (is_filled_with(entry, 3), is_filled_with(entry, 2)) == (True, False)


def test_two_billion_elements_take_no_time():
    started = time.perf_counter()
    # 2³¹ zero bytes, by squaring: what follows n zeros is what follows n/2, twice.
    entry = Entry("float32", (2**31,), crc32c_of_repeated(b"\0" * 4, 2**31))
    assert entry.crc32c == crc32c_of_repeated(b"\0" * 4096, 2**21)
    assert (is_filled_with(entry, 0), is_filled_with(entry, 1)) == (True, False)
    assert time.perf_counter() - started < 0.5


def test_numbers_a_type_cannot_hold_fill_nothing():
    entry = Entry("int8", (2,), crc32c(np.array([44, 44], np.int8).tobytes()))
    assert [is_filled_with(entry, number) for number in (44, 300, 44.5, math.inf)] == [True, False, False, False]


@pytest.mark.parametrize("entry", [Entry("float32", (3,)), Entry("float32", (0, 3), 0), Entry("string", (3,), 5)])
def test_what_has_no_crc_elements_or_numbers_is_untold(entry):
    assert is_filled_with(entry, 0) is None


# Snappy and tables, byte by byte.


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"\x05" + b"\x10hello", b"hello"),
        (b"\x46" + b"\xf0\x45" + b"x" * 70, b"x" * 70),  # a literal whose length has a byte of its own
        (b"\xac\x02" + b"\xf4\x2b\x01" + b"y" * 300, b"y" * 300),  # and one with two
        (b"\x0a" + b"\x04ab" + b"\x11\x02", b"ab" * 5),  # copy of 8 from 2 back: offset in tag and one byte
        (b"\x16" + b"\x04ab" + b"\x4e\x02\x00", b"ab" * 11),  # copy of 20, offset in two bytes
        (b"\x16" + b"\x04ab" + b"\x4f\x02\x00\x00\x00", b"ab" * 11),  # and in four
        (b"\x0a" + b"\x04ab" + b"\x10cdefg" + b"\x0a\x07\x00", b"abcdefgabc"),
        (b"\x00", b""),
    ],
)
def test_snappy_by_hand(stream, expected):
    assert table._unsnappy(stream) == expected


def test_a_snappy_copy_reaches_back_more_than_a_byte():
    text = bytes(range(256)) * 2
    # Copy of 4 from 0x1ff back: three high bits of the offset are in the tag.
    assert table._unsnappy(b"\x84\x04" + b"\xf4\xff\x01" + text + b"\x21\xff") == text + text[1:5]


@pytest.mark.parametrize(
    "stream",
    [
        b"\xff\xff\xff\xff\x0f\x00a",
        b"\x05\x10hell",
        b"\x05\x00a\x11",
        b"\x05\x00a\x11\x02",
        b"\x02\x10hello",
        b"\x09\x00a",
        b"",
    ],
)
def test_a_bad_snappy_stream_is_an_error(stream):
    with pytest.raises((ValueError, EOFError, IndexError)):
        table._unsnappy(stream)


def masked(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def number(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def block(rows, compression=0):
    body = b"".join(b"\0" + number(len(key)) + number(len(value)) + key + value for key, value in rows)
    body += struct.pack("<II", 0, 1)
    if compression:  # one literal, its length in four bytes
        body = number(len(body)) + b"\xfc" + struct.pack("<I", len(body) - 1) + body
    body += bytes([compression])
    return body + struct.pack("<I", masked(crc32c(body)))


def table_of(rows, compression=0):
    """A table as LevelDB writes it: a data block, an empty meta index, an index of the one block, the footer."""
    data, meta = block(rows, compression), block([])
    index = block([(b"\xff", number(0) + number(len(data) - 5))])
    handles = number(len(data)) + number(len(meta) - 5) + number(len(data + meta)) + number(len(index) - 5)
    return data + meta + index + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry_of(array):
    entry = protos.BundleEntryProto(dtype=1, size=array.nbytes, crc32c=masked(crc32c(array.tobytes())))
    for size in array.shape:
        entry.shape.dim.add(size=size)
    return entry.SerializeToString()


HEADER = protos.BundleHeaderProto(num_shards=1).SerializeToString()


@pytest.mark.parametrize("compression", [0, 1])
def test_a_table_by_hand_is_read(tmp_path, compression):
    path = tmp_path / "model.index"
    path.write_bytes(table_of([(b"", HEADER), (b"mean", entry_of(np.zeros(3, np.float32)))], compression))
    assert is_filled_with(read_checkpoint(str(path)).entries["mean"], 0) is True


def test_a_big_endian_checkpoint_is_refused(tmp_path):
    path = tmp_path / "model.index"
    path.write_bytes(table_of([(b"", protos.BundleHeaderProto(num_shards=1, endianness=1).SerializeToString())]))
    with pytest.raises(AuditError, match="big-endian"):
        read_checkpoint(str(path))


def _flipped(data):
    return data[:3] + bytes([data[3] ^ 1]) + data[4:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: data[:20], "fewer than a table's footer"),
        (lambda data: data[:-1], "does not end with a table's mark"),
        (lambda data: data[:-8] + b"\0" * 8, "does not end with a table's mark"),
        (_flipped, "checksum is wrong"),
        (lambda data: data[30:], "is said to end|checksum is wrong"),
        (lambda data: table_of([(b"key", b"value")]), "none of a checkpoint"),
        (lambda data: table_of([(b"", HEADER), (b"mean", b"\xff\xff")]), "truncated or corrupted"),
        (lambda data: table_of([(b"", HEADER), (b"\xff", b"")]), "can't decode|codec"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (lambda data: b"\x1f\x8b\x08\x00", "gzip"),
    ],
)
def test_a_damaged_index_is_one_line_that_names_the_file(tmp_path, damage, message):
    path = tmp_path / "model.index"
    path.write_bytes(damage(table_of([(b"", HEADER), (b"mean", entry_of(np.zeros(3, np.float32)))])))
    with pytest.raises(AuditError, match=message) as caught:
        read_checkpoint(str(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_keys_that_share_long_prefixes_cannot_fill_the_memory(tmp_path):
    # Each entry is 4 bytes and asks for the whole first key again.
    body = b"\0\0" + number(len(HEADER)) + HEADER
    body += b"\0" + number(100_000) + b"\0" + b"k" * 100_000
    body += (number(100_000) + b"\0\0") * 20_000
    body += struct.pack("<II", 0, 1) + b"\0"
    data = body + struct.pack("<I", masked(crc32c(body)))
    index = block([(b"\xff", number(0) + number(len(data) - 5))])
    footer = (number(0) + number(0) + number(len(data)) + number(len(index) - 5)).ljust(40, b"\0")
    path = tmp_path / "model.index"
    path.write_bytes(data + index + footer + struct.pack("<Q", 0xDB4775248B80FB57))
    with pytest.raises(AuditError, match="absurdly long"):
        read_checkpoint(str(path))


def test_missing_and_unreadable_places_are_errors(tmp_path):
    dangling = tmp_path / "model.ckpt.index"
    dangling.symlink_to("/nowhere/model.ckpt.index")
    with pytest.raises(AuditError, match="symbolic link to /nowhere"):
        read_checkpoint(str(tmp_path / "model.ckpt"))
    for path in (tmp_path / "other", tmp_path / "other.index", tmp_path, tmp_path / "nul\0byte", "nul\0byte/other"):
        with pytest.raises(AuditError):
            read_checkpoint(str(path))


def test_a_real_snappy_compressed_index_is_read():
    path = GRAPHS / "K2/mobilenet_v2_0.5_224.ckpt.index"
    if not path.exists():
        pytest.skip("the public graphs are not here")
    entries = read_checkpoint(str(path)).entries
    assert entries["MobilenetV2/Conv/BatchNorm/moving_mean"].shape == entries["MobilenetV2/Conv/BatchNorm/gamma"].shape
    assert is_filled_with(entries["MobilenetV2/Conv/BatchNorm/moving_mean"], 0) is False
