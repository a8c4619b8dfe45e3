"""What a path is: every kind of file and directory, read from files that TensorFlow writes, and those that are none."""

import gzip
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest

from bn_graph.audit.report import AuditError
from bn_graph.audit.subject import Subject, iterate, read
from bn_graph.graphs.errors import NoModelError
from bn_graph.tf1 import tf


def build():
    images = tf.placeholder(tf.float32, [None, 3], name="images")
    scale = tf.get_variable("scale", [3], initializer=tf.ones_initializer())
    return tf.multiply(images, scale, name="logits")


def save(prefix, steps=(None,), version=2, **options):
    """Writes checkpoints of a small graph, with their meta graphs; returns the last one's prefix."""
    Path(prefix).parent.mkdir(exist_ok=True)
    with tf.Graph().as_default(), tf.Session() as session:
        build()
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(write_version=version, max_to_keep=None)
        for step in steps:
            written = saver.save(session, str(prefix), global_step=step, **options)
    return written


def save_model(directory, as_text=False, tags=(("serve",),)):
    builder = tf.saved_model.Builder(str(directory))
    for number, group in enumerate(tags):
        with tf.Graph().as_default(), tf.Session() as session:
            build()
            session.run(tf.global_variables_initializer())
            (builder.add_meta_graph(group) if number else builder.add_meta_graph_and_variables(session, group))
    builder.save(as_text=as_text)
    return str(directory)


def write_graph(path, as_text=False):
    with tf.Graph().as_default() as graph:
        build()
    tf.io.write_graph(graph, str(path.parent), path.name, as_text=as_text)
    return str(path)


def nodes(subject):
    return {node.name for node in subject.meta_graph.graph_def.node}


def only(path, **options):
    (subject,) = read(str(path), **options)
    return subject


def names(path):
    return [Path(subject.path).name for subject in read(str(path))]


@pytest.fixture
def checkpoint(tmp_path):
    return save(tmp_path / "model.ckpt", [7])


# One model.


@pytest.mark.parametrize("suffix", ["", ".meta", ".index"])
def test_a_meta_graph_and_its_checkpoint_find_each_other(checkpoint, suffix):
    subject = only(checkpoint + suffix)
    assert (subject.path, subject.kind) == (checkpoint + ".meta", "meta graph")
    assert {"images", "logits"} <= nodes(subject)
    assert subject.checkpoint.prefix == checkpoint
    assert list(subject.checkpoint.entries) == ["scale"]


@pytest.mark.parametrize("suffix", ["", ".meta"])
def test_so_do_those_of_a_v1_checkpoint(tmp_path, suffix):
    prefix = save(tmp_path / "model.ckpt", [7], version=1)
    subject = only(prefix + suffix)
    assert (subject.path, subject.kind, subject.checkpoint.prefix) == (prefix + ".meta", "meta graph", prefix)


def test_a_meta_graph_alone_has_no_checkpoint(checkpoint):
    os.remove(checkpoint + ".index")
    for path in (checkpoint + ".meta", checkpoint):
        assert only(path).checkpoint is None


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_alone_has_no_graph(tmp_path, version):
    prefix = save(tmp_path / "model.ckpt", version=version, write_meta_graph=False)
    for path in (prefix, tmp_path):
        subject = only(path)
        assert (subject.kind, subject.meta_graph) == ("checkpoint", None)
        assert subject.path == prefix + (".index" if version == 2 else "")
        assert list(subject.checkpoint.entries) == ["scale"]


@pytest.mark.parametrize("as_text", [False, True])
def test_a_saved_model_is_read_with_its_variables(tmp_path, as_text):
    directory = save_model(tmp_path / "export", as_text)
    file = f"{directory}/saved_model.pb{'txt' * as_text}"
    for path in (directory, file, tmp_path):
        subject = only(path)
        assert (subject.path, subject.kind) == (file, "saved model")
        assert "logits" in nodes(subject)
        assert list(subject.checkpoint.entries) == ["scale"]
    shutil.rmtree(f"{directory}/variables")
    assert only(file).checkpoint is None


def test_a_saved_model_of_two_meta_graphs_is_two_subjects_named_by_their_tags(tmp_path):
    directory = save_model(tmp_path / "export", tags=(("train",), ("serve", "gpu")))
    assert [Path(subject.path).name for subject in read(directory)] == [
        "saved_model.pb (tags: train)",
        "saved_model.pb (tags: serve, gpu)",
    ]


@pytest.mark.parametrize("name", ["frozen.pb", "graph.pbtxt", "no_suffix", "model.meta"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_graph_is_told_by_its_content(tmp_path, name, as_text):
    subject = only(write_graph(tmp_path / name, as_text))
    assert (subject.kind, subject.checkpoint) == ("graph", None)
    assert {"images", "logits"} <= nodes(subject)


def test_a_graph_of_one_node_and_a_function_is_no_meta_graph(tmp_path):
    graph = tf.GraphDef()
    graph.node.add(name="call", op="twice")
    graph.library.function.add().signature.name = "twice"
    graph.versions.producer = 21
    (tmp_path / "graph.pb").write_bytes(graph.SerializeToString())
    assert only(tmp_path / "graph.pb").kind == "graph"
    meta = tf.MetaGraphDef(graph_def=graph)
    (tmp_path / "graph.pb").write_bytes(meta.SerializeToString())
    assert only(tmp_path / "graph.pb").kind == "meta graph"


def test_a_meta_graph_may_be_text(tmp_path):
    with tf.Graph().as_default():
        build()
        tf.train.export_meta_graph(str(tmp_path / "graph.txt"), as_text=True)
    subject = only(tmp_path / "graph.txt")
    assert subject.kind == "meta graph" and "logits" in nodes(subject)


def test_unknown_ops_and_fields_in_text_are_let_in(tmp_path):
    path = tmp_path / "graph.pbtxt"
    path.write_text('# exported\nnode { name: "a" op: "MyCustomOp" future_field { x: 1 } }\nversions { producer: 9 }\n')
    assert nodes(only(path)) == {"a"}


def test_another_checkpoint_can_be_paired(tmp_path, checkpoint):
    other = save(tmp_path / "other" / "model.ckpt", [9])
    for path in (other, other + ".index", str(tmp_path / "other")):
        assert only(checkpoint + ".meta", checkpoint=path).checkpoint.prefix == other
        assert only(write_graph(tmp_path / "frozen" / "graph.pb"), checkpoint=path).checkpoint.prefix == other


def test_a_checkpoint_alone_cannot_be_paired_with_another(tmp_path, checkpoint):
    alone = save(tmp_path / "alone", write_meta_graph=False)
    with pytest.raises(AuditError, match=r"without a \.meta"):
        read(alone, checkpoint=checkpoint)
    with pytest.raises(AuditError, match="no checkpoint is there"):
        read(checkpoint, checkpoint=str(tmp_path / "missing"))


# Directories.


def test_of_the_steps_in_a_directory_the_latest_is_read(tmp_path):
    save(tmp_path / "model.ckpt", [9, 10, 100])
    assert names(tmp_path) == ["model.ckpt-100.meta"]
    assert names(tmp_path / "checkpoint") == ["model.ckpt-100.meta"]
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    assert names(tmp_path) == ["model.ckpt-9.meta"]


def test_without_a_state_file_all_steps_are_read_in_order_of_their_names(tmp_path):
    save(tmp_path / "model.ckpt", [9, 10, 100])
    (tmp_path / "checkpoint").unlink()
    assert names(tmp_path) == ["model.ckpt-10.meta", "model.ckpt-100.meta", "model.ckpt-9.meta"]


def test_the_state_of_one_model_does_not_hide_another(tmp_path):
    save(tmp_path / "generator.ckpt", [1, 2])
    save(tmp_path / "critic.ckpt", [2, 3])
    assert names(tmp_path) == [
        "critic.ckpt-3.meta", "generator.ckpt-1.meta", "generator.ckpt-2.meta",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "named", ["/home/someone/model.ckpt-9", r"D:\\runs\\model.ckpt-9", "./model.ckpt-9", "runs/model.ckpt-9"]
)
def test_a_state_file_of_another_machine_finds_the_checkpoint_here(tmp_path, named):
    save(tmp_path / "model.ckpt", [9, 10])
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\n')
    assert names(tmp_path) == ["model.ckpt-9.meta"]


def test_a_state_file_that_names_what_is_gone_gives_the_highest_step(tmp_path):
    save(tmp_path / "model.ckpt", [9, 10, 100])
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-2000"\n')
    assert names(tmp_path) == ["model.ckpt-100.meta"]
    for file in tmp_path.glob("model*"):
        file.unlink()
    with pytest.raises(AuditError, match=r"model\.ckpt-2000"):
        read(str(tmp_path / "checkpoint"))
    with pytest.raises(AuditError, match="no graph"):
        read(str(tmp_path))


def test_a_state_file_may_name_a_checkpoint_elsewhere(tmp_path):
    prefix = save(tmp_path / "runs" / "model.ckpt", [9])
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "checkpoint").write_text(f'model_checkpoint_path: "{prefix}"\n')
    assert only(tmp_path / "latest").path == prefix + ".meta"


@pytest.mark.parametrize(
    "state", [b"", b"\xff\xfe\0", b"not a state", b'model_checkpoint_path: ""', b'model_checkpoint_path: "/"']
)
def test_a_state_file_that_says_nothing_is_ignored(tmp_path, state):
    save(tmp_path / "model.ckpt", [9])
    (tmp_path / "checkpoint").write_bytes(state)
    assert names(tmp_path) == ["model.ckpt-9.meta"]


def test_a_directory_of_many_is_searched_in_a_fixed_order(tmp_path):
    save(tmp_path / "b" / "model.ckpt", [1])
    save_model(tmp_path / "a" / "export")
    write_graph(tmp_path / "frozen.pb")
    save(tmp_path / "c" / "old.ckpt", version=1)
    save(tmp_path / "d" / "bare", write_meta_graph=False)
    expected = [
        ("a/export/saved_model.pb", "saved model"),
        ("b/model.ckpt-1.meta", "meta graph"),
        ("c/old.ckpt.meta", "meta graph"),
        ("d/bare.index", "checkpoint"),
        ("frozen.pb", "graph"),
    ]
    found = [(str(Path(subject.path).relative_to(tmp_path)), subject.kind) for subject in read(str(tmp_path))]
    assert found == expected


def test_files_that_are_something_else_are_skipped_in_a_search_and_refused_by_name(tmp_path):
    others = {
        "labels.pbtxt": b'item {\n  id: 1\n  name: "cat"\n}\n',
        "pipeline.config": b"model { ssd { num_classes: 90 } }\n",
        "mediapipe.pbtxt": b'node { calculator: "PassThrough" input_stream: "in" }\n',
        "random.pb": bytes(range(256)) * 8,
        "scene.meta": b"fileFormatVersion: 2\nguid: 0123\n",
        "labels.pb": b"\x0a\x07\x0a\x03cat\x10\x01",
        "faiss.index": b"IxFI" + bytes(100),
        "image.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "notes.txt": b"node of the network: see the paper\n",
    }
    write_graph(tmp_path / "frozen.pb")
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.pb")
    assert names(tmp_path) == ["frozen.pb"]
    for name in [*others, "pipe.pb"]:
        with pytest.raises(AuditError, match=name):
            read(str(tmp_path / name))


def test_a_search_follows_links_but_not_in_circles(tmp_path):
    save(tmp_path / "real" / "model.ckpt", [1])
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "top")
    assert names(tmp_path / "top") == ["model.ckpt-1.meta"]


def test_hidden_directories_are_not_searched(tmp_path):
    write_graph(tmp_path / ".cache" / "graph.pb")
    write_graph(tmp_path / "graph.pb")
    assert len(read(str(tmp_path))) == 1


# What can't be read.


def refused(path, message):
    with pytest.raises(AuditError, match=message) as caught:
        read(str(path))
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path):
    refused(tmp_path / "missing.meta", "no file, directory or checkpoint")
    refused(tmp_path, "no graph, SavedModel or checkpoint is in this directory")
    refused(f"{tmp_path}/nul\0byte", "no file")
    refused("", "no file")


def test_links_to_nowhere(tmp_path):
    for name in ("model.ckpt.meta", "model.ckpt.index", "frozen.pb"):
        (tmp_path / name).symlink_to("/nowhere/file")
        refused(tmp_path / name, "symbolic link to /nowhere/file")
    refused(tmp_path, "symbolic link to /nowhere/file")


@pytest.mark.parametrize("name", ["model.ckpt-7.meta", "model.ckpt-7.index", "model.ckpt-7"])
def test_a_damaged_file_beside_a_good_one_is_not_passed_over(tmp_path, checkpoint, name):
    damaged = tmp_path / ("model.ckpt-7.index" if name == "model.ckpt-7" else name)
    whole = damaged.read_bytes()
    for content, message in [
        (whole[: len(whole) // 2], "can't be read as"),
        (gzip.compress(whole), "compressed by gzip"),
    ]:
        damaged.write_bytes(content)
        refused(tmp_path / name, message)
        refused(tmp_path, message)


NO_MODELS = {
    "is empty": b"",
    "is a Git LFS pointer, not the file": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "is a Python pickle": pickle.dumps({"label_names": ["airplane"]}, protocol=2),
}


@pytest.mark.parametrize("message", NO_MODELS)
def test_what_has_a_model_s_name_and_is_none_is_a_note_in_a_directory_and_refused_by_name(tmp_path, message):
    good = write_graph(tmp_path / "good.pb")
    bad = tmp_path / "batches.meta"
    bad.write_bytes(NO_MODELS[message])
    note, subject = iterate(str(tmp_path))
    assert isinstance(note, NoModelError) and f"{bad}: {message}" in str(note) and subject.path == good
    assert names(tmp_path) == ["good.pb"]
    refused(bad, message)
    os.remove(good)
    refused(tmp_path, "no graph")


@pytest.mark.parametrize("content", [*NO_MODELS.values(), b"\0\1\2", b"IxFI" + bytes(99)])
def test_a_graph_with_an_index_that_cannot_be_read_is_there_without_a_checkpoint(tmp_path, checkpoint, content):
    Path(f"{checkpoint}.index").write_bytes(content)
    for path in (tmp_path, f"{checkpoint}.meta"):
        *errors, subject = iterate(str(path))
        assert errors and all(f"{checkpoint}.index" in str(error) for error in errors)
        assert (subject.path, subject.checkpoint) == (f"{checkpoint}.meta", None)


def test_a_truncated_graph_is_an_error_also_in_a_search(tmp_path):
    path = Path(write_graph(tmp_path / "frozen.pb"))
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "truncated or corrupted")
    refused(tmp_path, "truncated or corrupted")


@pytest.mark.parametrize(
    "content", [b"\x08\x01", b"\x08", b"\n", b"\x12\x00", b"node {", b'node { name: "a" }', b"graph_def {}"]
)
def test_what_only_starts_like_a_graph_is_refused(tmp_path, content):
    (tmp_path / "saved_model.pb").write_bytes(content)
    refused(tmp_path / "saved_model.pb", "saved_model.pb")


def test_text_nested_without_end_is_refused(tmp_path):
    (tmp_path / "graph.pbtxt").write_text('node { name: "a" op: "b" unknown ' + "{ a " * 20_000)
    refused(tmp_path / "graph.pbtxt", "nested too deep|can't be read")


def test_a_huge_file_that_is_no_graph_is_not_read():
    with tempfile.NamedTemporaryFile(suffix=".pb") as file:
        file.write(b"\n\x05\n\x01a\x12\x00")
        file.truncate(50 << 30)  # a sparse file: takes no room
        file.flush()
        refused(file.name, "larger than 2 GB|is no graph")


def test_iterate_goes_on_after_an_error(tmp_path):
    save(tmp_path / "b" / "model.ckpt", [1])
    save(tmp_path / "a" / "model.ckpt", [1])
    (tmp_path / "a" / "model.ckpt-1.meta").write_bytes(b"\0\1\2")
    first, second = iterate(str(tmp_path))
    assert isinstance(first, AuditError) and isinstance(second, Subject)
    with pytest.raises(AuditError):
        read(str(tmp_path))
