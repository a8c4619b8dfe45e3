"""Keras' own files: their batch norm layers, as a checkpoint's without its graph."""

import io
import json
import sys
import zipfile

import numpy as np
import pytest

from bn_graph.audit import audit
from bn_graph.audit.report import AuditError, Level, State, SubjectKind
from bn_graph.audit.subject import iterate
from bn_graph.graphs.errors import NoModelError

h5py = pytest.importorskip("h5py")

MOVED, INITIAL = [0.5, 1.5, 2.5], {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}


def values(role, moved):
    return np.array(MOVED if moved else [INITIAL[role]] * 3, np.float32)


def write_legacy(path, layers, *, whole=True, joint="/"):
    """As Keras 1 and 2 do; `layers` is for each name its variables, each with whether it has moved."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        root.attrs["layer_names"] = [name.encode() for name in layers]
        if whole:
            config = [{"class_name": _class(name), "config": {"name": name}} for name in layers]
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": config}})
        for name, variables in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}{joint}{role}:0".encode() for role in variables]
            for role, moved in variables.items():
                group[f"{name}{joint}{role}:0"] = values(role.replace("running_std", "moving_variance"), moved)
    return path


def _class(name):
    return "LayerNormalization" if "layer" in name else "BatchNormalization"


def write_keras3(path, layers, *, archive=True):
    """As Keras 3 does: arrays by number below the class's name; `layers` is for each such path its arrays."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, arrays in layers.items():
            group = file.create_group(f"layers/{name}/vars")
            group.attrs["name"] = f"named_{name.rpartition('/')[2]}"
            for number, array in enumerate(arrays):
                group[str(number)] = np.array(array, np.float32)
    if not archive:
        path.write_bytes(stream.getvalue())
        return path
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": []}}))
        file.writestr("model.weights.h5", stream.getvalue())
    return path


ALL = ("gamma", "beta", "moving_mean", "moving_variance")
ONES, ZEROS = [1.0] * 3, [0.0] * 3


def codes(report):
    return [(finding.code, finding.level, finding.layers) for finding in report.findings]


@pytest.mark.parametrize("whole", [True, False])
def test_layers_of_a_legacy_file_and_their_states(tmp_path, whole):
    moved, stale = (
        dict.fromkeys(ALL, True),
        {"gamma": True, "beta": True, "moving_mean": False, "moving_variance": False},
    )
    report = audit(write_legacy(tmp_path / "model.h5", {"bn": moved, "batch_normalization_1": stale}, whole=whole))
    assert report.kind is SubjectKind.KERAS
    assert {row.name: row.statistics for row in report.layers} == {
        "bn": State.UPDATED,
        "batch_normalization_1": State.INITIAL,
    }
    assert report.layers[0].variables == {role: f"{report.layers[0].name}/{role}" for role in ALL}
    assert codes(report) == [("BN002", Level.ERROR, ("batch_normalization_1",))]


def test_names_of_keras_1(tmp_path):
    roles = ("gamma", "beta", "running_mean", "running_std")
    report = audit(write_legacy(tmp_path / "old.h5", {"batchnormalization_1": dict.fromkeys(roles, True)}, joint="_"))
    assert [(row.name, row.statistics) for row in report.layers] == [("batchnormalization_1", State.UPDATED)]


def test_an_untrained_file_is_undetermined(tmp_path):
    report = audit(write_legacy(tmp_path / "new.h5", {"bn": dict.fromkeys(ALL, False)}))
    assert not report.findings and [entry.code for entry in report.undetermined] == ["BN002"]


def test_a_layer_without_statistics_is_bn006_and_layer_normalization_is_none(tmp_path):
    trained = {"gamma": True, "beta": True}
    report = audit(write_legacy(tmp_path / "model.h5", {"bn": trained, "layer_normalization": trained}))
    assert codes(report) == [("BN006", Level.ERROR, ("bn",))]


@pytest.mark.parametrize("archive", [True, False])
def test_layers_of_keras_3_by_their_arrays(tmp_path, archive):
    layers = {
        "batch_normalization": [MOVED, MOVED, MOVED, MOVED],
        "sequential/layers/batch_normalization": [MOVED, MOVED, ZEROS, ONES],  # a model in a model
        "batch_normalization_1": [ZEROS, ONES],  # neither gamma nor beta
        "layer_normalization": [MOVED, MOVED],
        "dense": [np.ones((3, 3)), MOVED],
    }
    name = "model.keras" if archive else "model.weights.h5"
    report = audit(write_keras3(tmp_path / name, layers, archive=archive))
    states = {row.name: row.statistics for row in report.layers}
    assert states == {
        "named_batch_normalization": State.UPDATED,
        "named_batch_normalization_1": State.INITIAL,
        "sequential/named_batch_normalization": State.INITIAL,
    }
    assert [(code, len(names)) for code, _, names in codes(report)] == [("BN002", 2)]


def test_hdf5_and_zip_files_of_something_else_are_passed_over_in_a_directory(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = np.zeros((2, 3), np.float32)
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as file:
        file.writestr("a.txt", "text")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "data.h5").read_bytes()[:200])
    write_legacy(tmp_path / "model.h5", {"bn": dict.fromkeys(ALL, True)})
    subjects = [subject for subject in iterate(str(tmp_path)) if not isinstance(subject, AuditError)]
    assert [subject.path for subject in subjects] == [str(tmp_path / "model.h5")]


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_without_h5py_the_file_is_named_with_what_to_install(tmp_path, monkeypatch, name):
    layers = {"batch_normalization": [MOVED] * 4}
    write_keras3(tmp_path / name, layers, archive=name.endswith("keras"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    first, *_ = iterate(str(tmp_path))
    assert isinstance(first, NoModelError) == name.endswith(".h5")
    assert name in str(first) and "pip install 'bn_graph[keras]'" in str(first)


def test_a_damaged_keras_file_is_one_error(tmp_path):
    path = write_keras3(tmp_path / "model.keras", {"batch_normalization": [MOVED] * 4})
    data = path.read_bytes()
    for size in range(4, len(data), 97):
        path.write_bytes(data[:size])
        with pytest.raises(AuditError) as error:
            audit(path)
        assert "\n" not in str(error.value)
