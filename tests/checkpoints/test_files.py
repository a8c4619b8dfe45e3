"""Which checkpoint a path stands for, and files that are written whole or not at all."""

import os

import pytest

from bn_graph.checkpoints.files import CheckpointError, checkpoint_prefix, written_beside


@pytest.fixture
def folder(tmp_path):
    """A directory with checkpoints of steps 9 and 10 (which sorts first by name)."""
    for step in (9, 10):
        (tmp_path / f"model-{step}.index").touch()
    return tmp_path


def state(folder, path):
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')


def test_a_prefix_and_its_index_stand_for_the_prefix(folder):
    prefix = str(folder / "model-9")
    assert checkpoint_prefix(prefix) == checkpoint_prefix(f"{prefix}.index") == prefix


def test_a_prefix_is_one_though_a_directory_has_its_name(folder):
    (folder / "model-9").mkdir()
    assert checkpoint_prefix(folder / "model-9") == str(folder / "model-9")


@pytest.mark.parametrize("named", ["model-9", "/home/somebody/model-9", "C:\\\\runs\\\\model-9"])
def test_a_directory_stands_for_the_checkpoint_that_its_state_names_on_whatever_machine(folder, named):
    state(folder, named)
    assert checkpoint_prefix(folder) == str(folder / "model-9")


def test_where_the_named_one_is_gone_or_none_is_named_the_highest_step_is_taken(folder):
    assert checkpoint_prefix(folder) == str(folder / "model-10")
    state(folder, "model-11")
    assert checkpoint_prefix(folder) == str(folder / "model-10")


def test_a_directory_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint_prefix(tmp_path)


def test_what_exists_is_replaced_only_if_asked(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="exists"), written_beside(path):
        pass
    with written_beside(path, replace=True) as unfinished:
        with open(unfinished, "w") as file:
            file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.json"]


def test_what_is_interrupted_leaves_what_was_there(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_beside(path, replace=True) as unfinished:
        with open(unfinished, "w") as file:
            file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_checkpoints_files_are_moved_together_its_index_last(tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (moved.append(os.path.basename(paths[1])), replace(*paths)))
    with written_beside(tmp_path / "model") as unfinished:
        for suffix in (".meta", ".index", ".data-00000-of-00001"):
            with open(unfinished + suffix, "w"):
                pass
    assert moved == ["model.data-00000-of-00001", "model.meta", "model.index"]
