import os

import numpy as np
import pytest

from bn_graph.checkpoints import meta_graphs
from bn_graph.checkpoints.files import CheckpointError
from bn_graph.checkpoints.meta_graphs import Key
from bn_graph.tf1 import tf
from tests.commands.broken import PUBLIC_GRAPHS


@pytest.fixture
def save(plain_graph, tmp_path):
    """Saves the default graph, by a Saver of the given names and variables; returns the prefix."""

    def saved(var_list=None, folder="old"):
        os.makedirs(tmp_path / folder)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            return tf.train.Saver(var_list).save(session, str(tmp_path / folder / "model"))

    return saved


def restore(prefix, checkpoint=None):
    meta = meta_graphs.read(f"{prefix}.meta")
    return meta_graphs.restore(meta_graphs.import_graph(meta), meta, checkpoint or prefix)


def variable(name, values):
    return tf.get_variable(name, initializer=np.array(values, np.float32))


def write_default(prefix):
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, str(prefix))


def one_line_of(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Graphs -----------------------------------------------------------------------------------------------------------


def test_a_collected_op_of_a_function_is_left_out_and_the_others_are_kept(plain_graph):
    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.no_op(name="update"))
    meta = tf.train.export_meta_graph()
    # As TensorFlow 2.12 writes the update op of a branch of cond v2.
    meta.collection_def["update_ops"].node_list.value.append("in_a_branch/AssignSubVariableOp")
    graph = meta_graphs.import_graph(meta)
    assert [op.name for op in graph.get_collection(tf.GraphKeys.UPDATE_OPS)] == ["update"]


def test_old_placeholders_keep_the_shape_that_only_output_shapes_holds(tmp_path):
    with tf.Graph().as_default():
        tf.placeholder(tf.float32, [None, 2], name="x")
        meta = tf.train.export_meta_graph()
    meta.graph_def.versions.producer = 21
    (node,) = meta.graph_def.node
    node.attr["_output_shapes"].list.shape.add().CopyFrom(node.attr["shape"].shape)
    node.attr["shape"].shape.Clear()
    (tmp_path / "m.meta").write_bytes(meta.SerializeToString())
    graph = meta_graphs.import_graph(meta_graphs.read(tmp_path / "m.meta"))
    assert graph.get_tensor_by_name("x:0").shape.as_list() == [None, 2]


def test_shapes_that_are_wrong_devices_and_colocations_do_not_hinder(tmp_path):
    with tf.Graph().as_default(), tf.device("/job:worker/gpu:7"):
        tf.identity(tf.constant([1.0, 2.0]), name="y")
        meta = tf.train.export_meta_graph()
    node = meta.graph_def.node[1]
    node.attr["_output_shapes"].list.shape.add().dim.add(size=3)
    node.attr["_class"].list.s.append(b"loc:@gone")
    meta.collection_def["queue_runners"].bytes_list.value.append(b"of another world")
    meta.collection_def["summaries"].node_list.value.append("gone:0")
    (tmp_path / "m.meta").write_bytes(meta.SerializeToString())
    graph = meta_graphs.import_graph(meta_graphs.read(tmp_path / "m.meta"))
    with tf.Session(graph=graph) as session:
        np.testing.assert_array_equal(session.run("y:0"), [1.0, 2.0])


def test_a_custom_op_is_named():
    meta = tf.MetaGraphDef()
    meta.graph_def.node.add(name="a", op="BilateralSliceApply")
    with pytest.raises(CheckpointError, match=r"BilateralSliceApply.*audited") as error:
        meta_graphs.import_graph(meta)
    one_line_of(error)


def test_a_graph_with_a_missing_node_is_refused_in_one_line():
    meta = tf.MetaGraphDef()
    meta.graph_def.node.add(name="a", op="Identity", input=["gone"])
    with pytest.raises(CheckpointError) as error:
        meta_graphs.import_graph(meta)
    assert "can't be imported" in one_line_of(error)


@pytest.mark.parametrize("content", [b"", b"text, no proto", b"\x0a\xff\xff\xff\xff"])
def test_files_of_other_kinds_are_refused(tmp_path, content):
    (tmp_path / "m.meta").write_bytes(content)
    with pytest.raises(CheckpointError, match="no meta graph"):
        meta_graphs.read(tmp_path / "m.meta")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.meta"):
        with pytest.raises(CheckpointError, match="can't be read"):
            meta_graphs.read(path)


# --- Values -----------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_meta_graphs_own_saver_then_the_variables_then_other_savers(save):
    a, b = variable("a", [1.0]), variable("b", [2.0])
    tf.train.Saver({"b": a, "a": b}, name="other")
    prefix = save({"first": a, "b": b})
    restored = restore(prefix)
    assert restored.keys == {"a": Key("first"), "b": Key("b")} and restored.missing == []
    np.testing.assert_array_equal(restored.values["a"], [1.0])


def test_slices_of_one_tensor_are_restored_and_written_together(save, tmp_path):
    whole = np.arange(10, dtype=np.float32)
    tf.get_variable("w", [10], initializer=lambda *_, **__: tf.zeros([5]), partitioner=tf.fixed_size_partitioner(2))
    prefix = save(folder="zeros")
    meta = meta_graphs.read(f"{prefix}.meta")
    with tf.Graph().as_default():  # the same tensor, in one piece
        tf.get_variable("w", initializer=whole)
        prefix = write_default(tmp_path / "whole")
    graph = meta_graphs.import_graph(meta)
    restored = meta_graphs.restore(graph, meta, prefix)
    np.testing.assert_array_equal(restored.values["w/part_1"], whole[5:])
    with tf.Session(graph=graph) as session:
        meta_graphs.assign(session, restored.values)
        new = meta_graphs.write(session, tmp_path / "new", restored.keys)
    np.testing.assert_array_equal(tf.train.load_checkpoint(new).get_tensor("w"), whole)


def test_a_directory_whose_checkpoint_file_names_another_machines_path_is_read(save, tmp_path):
    variable("a", [1.0])
    prefix = save()
    (tmp_path / "old" / "checkpoint").write_text('model_checkpoint_path: "/home/somebody/model"\n')
    assert restore(prefix, tmp_path / "old").missing == []
    assert restore(prefix, f"{prefix}.index").missing == []


def test_a_checkpoint_of_another_graph_or_shape_or_dtype_is_refused(save, tmp_path):
    variable("a", [1.0])
    prefix = save()
    others = {"nothing": {"other": [1.0]}, "shape": {"a": [1.0, 2.0]}, "dtype": {"a": np.float64([1.0])}}
    says = {"nothing": "another graph", "shape": r"a with shape \[2\].*\[1\]", "dtype": "a as float64.*float32"}
    for kind, held in others.items():
        with tf.Graph().as_default(), tf.Session() as session:
            for name, values in held.items():
                tf.get_variable(name, initializer=np.asarray(values, getattr(values, "dtype", np.float32)))
            session.run(tf.global_variables_initializer())
            other = tf.train.Saver().save(session, str(tmp_path / kind))
        with pytest.raises(CheckpointError, match=says[kind]) as error:
            restore(prefix, other)
        one_line_of(error)


def test_an_index_without_its_data_or_a_damaged_one_is_refused(save):
    variable("a", [1.0])
    prefix = save()
    os.unlink(f"{prefix}.data-00000-of-00001")
    with pytest.raises(CheckpointError, match="can't be read") as error:
        restore(prefix)
    one_line_of(error)
    with open(f"{prefix}.index", "wb") as file:
        file.write(b"no index")
    with pytest.raises(CheckpointError, match="can't be read") as error:
        restore(prefix)
    one_line_of(error)


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_a_write_that_fails_midway_leaves_nothing(plain_graph, tmp_path, monkeypatch):
    variable("a", [1.0])
    moves = []

    def fail_second(source, target):
        moves.append(target)
        if len(moves) == 2:
            raise OSError("disk full")
        os.rename(source, target)

    monkeypatch.setattr("bn_graph.checkpoints.files.os.replace", fail_second)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        with pytest.raises(CheckpointError, match="disk full"):
            meta_graphs.write(session, tmp_path / "new", {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["new", "new.index", "new.meta", "new.data-00000-of-00001"])
def test_what_exists_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(CheckpointError, match="exists"):
        meta_graphs.refuse_existing(tmp_path / "new")


# --- Public graphs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["B1", "E1", "J1", "J11", "J3", "J5", "J9", "L1", "M1", "P3", "S1", "U1", "W3"])
def test_public_graphs_of_tensorflow_1_are_imported(name):
    if not (PUBLIC_GRAPHS / name).exists():
        pytest.skip("the public graphs are not here")
    (path,) = (PUBLIC_GRAPHS / name).glob("*.meta")
    meta = meta_graphs.read(path)
    graph = meta_graphs.import_graph(meta)
    assert {node.name for node in meta.graph_def.node} <= {op.name for op in graph.get_operations()}
    assert len(graph.get_collection("variables")) == len(meta.collection_def["variables"].bytes_list.value)
