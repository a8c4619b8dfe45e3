"""Whatever a file holds, reading it gives subjects or an AuditError of one line: nothing else, and soon."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bn_graph.audit import subject as files
from bn_graph.audit.report import AuditError
from bn_graph.checkpoints import table
from bn_graph.checkpoints.index import equals, is_filled_with, read_checkpoint
from bn_graph.tf1 import tf
from tests.audit.damage import SLOWEST, try_case
from tests.audit.zoo.forms import tf_layers
from tests.audit.zoo.handwritten import averaged
from tests.audit.zoo.harness import mode_placeholder, network, switches, train_with_updates

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
quickly = settings(
    max_examples=EXAMPLES,
    deadline=5000,
    derandomize=EXAMPLES < 1000,  # a longer run is to find new cases, the short one to be the same everywhere
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
NAMES = ["model.ckpt.meta", "model.ckpt.index", "model.ckpt", "saved_model.pb", "graph.pbtxt", "checkpoint", "any.pb"]


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A valid file of each kind, small, as bytes."""
    folder = tmp_path_factory.mktemp("valid")
    with tf.Graph().as_default() as graph, tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 2], name="x")
        scale = tf.get_variable("scale", [2, 100], initializer=tf.ones_initializer(),
                                partitioner=tf.fixed_size_partitioner(2, axis=1))  # fmt: skip
        tf.get_variable("moving_mean", [4], initializer=tf.zeros_initializer())
        tf.matmul(x, scale, name="y")
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(folder / "model.ckpt"))
        tf.train.Saver(write_version=1).save(session, str(folder / "old.ckpt"), write_meta_graph=False)
        for text in (False, True):
            builder = tf.saved_model.Builder(str(folder / f"saved{text}"))
            builder.add_meta_graph_and_variables(session, ["serve"])
            builder.save(as_text=text)
        tf.io.write_graph(graph, str(folder), "graph.pb", as_text=False)
        tf.io.write_graph(graph, str(folder), "graph.pbtxt")
    kinds = ["model.ckpt.meta", "model.ckpt.index", "old.ckpt", "graph.pb", "graph.pbtxt", "checkpoint"]
    kinds += ["savedFalse/saved_model.pb", "savedTrue/saved_model.pbtxt"]
    return [(folder / kind).read_bytes() for kind in kinds]


def try_to_read(path):
    """Reads a path; everything but an AuditError of one line is a bug."""
    try:
        subjects = files.read(str(path))
    except AuditError as error:
        assert str(path).split("\0")[0] in str(error) and "\n" not in str(error)
        return
    assert subjects
    for subject in subjects:
        for entry in subject.checkpoint.entries.values() if subject.checkpoint else ():
            assert is_filled_with(entry, 0) in (True, False, None)
            assert equals(entry, np.zeros((4,), np.float32)) in (True, False, None)


def mutated(data, draw):
    """The bytes with some overwritten, cut out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(1, 30))
        match draw(st.sampled_from(["overwrite", "cut out", "double", "cut off", "flip"])):
            case "overwrite":
                data[start : start + length] = draw(st.binary(max_size=length))
            case "cut out":
                del data[start : start + length]
            case "double":
                data[start:start] = data[start : start + length]
            case "cut off":
                del data[start:]
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@quickly
@given(content=st.binary(max_size=300), name=st.sampled_from(NAMES), whole=st.booleans())
def test_random_bytes(tmp_path, content, name, whole):
    (tmp_path / name).write_bytes(content)
    try_to_read(tmp_path if whole else tmp_path / name)
    (tmp_path / name).unlink()


@quickly
@given(data=st.data())
def test_mutated_files_of_every_kind(tmp_path, valid, data):
    path = tmp_path / data.draw(st.sampled_from(NAMES))
    path.write_bytes(mutated(data.draw(st.sampled_from(valid)), data.draw))
    try_to_read(path)
    path.unlink()


@quickly
@given(data=st.data())
def test_mutated_tables_whose_checksums_are_not_looked_at(tmp_path, valid, data):
    # Checksums stop most damage at the door; without them the parsers behind must hold too.
    path = tmp_path / "model.ckpt"
    path.write_bytes(mutated(data.draw(st.sampled_from(valid[1:3])), data.draw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_check", lambda data, stored: None)
        try_to_read(path)


@quickly
@given(stream=st.binary(max_size=200), length=st.integers(0, 2000))
def test_random_snappy_streams(stream, length):
    try:
        out = table._unsnappy(bytes([length & 127 | 128, length >> 7]) + stream)
    except (ValueError, EOFError, IndexError):
        return
    assert len(out) == length


@quickly
@given(st.text("\\/.:D-0123456789abmodelckpt\0\n\"'{}", max_size=40))
def test_random_state_files(tmp_path, name):
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n')
    try_to_read(tmp_path)
    try_to_read(tmp_path / "checkpoint")


@quickly
@given(st.text(max_size=30))
def test_random_paths(name):
    try:
        assert isinstance(next(files.iterate("no such directory/" + name)), AuditError)
        read_checkpoint("no such directory/" + name)
    except AuditError:
        pass


def test_every_truncation_of_an_index_is_an_error(tmp_path, valid):
    path = tmp_path / "model.ckpt.index"
    for size in range(len(valid[1])):
        path.write_bytes(valid[1][:size])
        with pytest.raises(AuditError):
            read_checkpoint(str(path))


def test_audits_of_damaged_graphs_report_or_say_what_is_wrong(tmp_path):
    """More of them, and of other graphs: ``python -m tests.audit.damage --cases 100000 GRAPH…``."""
    with tf.Graph().as_default(), switches("resource", "v2"):
        training = mode_placeholder()
        net = network(lambda x: averaged(tf_layers(x, training), training))
        train_with_updates(net.loss)
        tf.train.Saver()
        subject = (
            tf.train.export_meta_graph(str(tmp_path / "model.meta")) and files.read(str(tmp_path / "model.meta"))[0]
        )
    for seed in range(EXAMPLES * 5):
        assert try_case(subject, seed) < SLOWEST, seed


def test_memory_stays_within_a_few_times_the_file(tmp_path):
    path = tmp_path / "graph.pb"
    graph = tf.GraphDef()
    for number in range(20_000):
        graph.node.add(name=f"node_{number}", op="NoOp", input=[f"node_{number - 1}"] if number else [])
    path.write_bytes(graph.SerializeToString())
    tracemalloc.start()
    assert len(files.read(str(path))) == 1
    assert tracemalloc.get_traced_memory()[1] < 5 * Path(path).stat().st_size
    tracemalloc.stop()
