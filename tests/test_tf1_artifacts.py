"""The library and the commands on what TensorFlow 1.0.1, 1.4.1 and 1.15.5 wrote, against what those computed with it.

`tests/models/make_tf1_artifacts.py` made the files under those versions and says what the facts beside them are.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import bn_graph
from bn_graph.__main__ import main
from bn_graph.audit import audit
from bn_graph.checkpoints import meta_graphs
from bn_graph.layers import slim
from bn_graph.tf1 import tf
from tests.commands import broken

FOLDER = Path(__file__).parent / "models" / "tf1"
EXAMPLES = np.load(FOLDER / "examples.npz")["x"]


class Artifact(NamedTuple):
    """A case's directory and its facts."""

    at: Path
    facts: Mapping

    @property
    def name(self):
        return f"{self.at.parent.name}/{self.at.name}"

    @property
    def prefix(self):
        return str(self.at / self.facts["checkpoint"])

    @property
    def flags(self):
        """What the graph's switch is fed at inference, by tensor."""
        return {f"{name}:0": value for name, value in self.facts["feeds"].items()}

    @property
    def statistics(self):
        """Moving mean and variance of each layer."""
        return [names[2:] for names in self.facts["layers"].values()]


ARTIFACTS = [Artifact(path.parent, json.loads(path.read_text())) for path in sorted(FOLDER.glob("*/*/facts.json"))]
CHECKPOINTS = [artifact for artifact in ARTIFACTS if artifact.facts["checkpoint"]]


def each(artifacts):
    return pytest.mark.parametrize("artifact", artifacts, ids=lambda artifact: artifact.name)


def is_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def fed(artifact, examples):
    return {artifact.facts["input"]: examples, **artifact.flags}


def shown(artifact):
    """The examples whose logits are known."""
    return EXAMPLES[: len(artifact.facts["outputs"])]


def lacks_statistics(artifact):
    return "BN006" in artifact.facts["errors"]


def opened(artifact):
    """The saved graph in a session, with the checkpoint's values."""
    meta = meta_graphs.read(f"{artifact.prefix}.meta")
    graph = meta_graphs.import_graph(meta)
    session = tf.Session(graph=graph, config=broken.AS_BUILT)
    meta_graphs.assign(session, meta_graphs.restore(graph, meta, artifact.prefix).values)
    return session


def values(session, names):
    by_name = {variable.op.name: variable for variable in session.graph.get_collection("variables")}
    return session.run({name: by_name[name] for name in names})


def test_there_are_artifacts_of_each_version_and_of_each_fault():
    assert {artifact.facts["tensorflow"] for artifact in ARTIFACTS} == {"1.0.1", "1.4.1", "1.15.5"}
    codes = {code for artifact in ARTIFACTS for code in artifact.facts["errors"]}
    assert codes == {f"BN00{number}" for number in range(1, 9)}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 2e6


# --- The graphs themselves --------------------------------------------------------------------------------------------


@each([artifact for artifact in CHECKPOINTS if "fetched" in artifact.facts])
def test_the_graph_computes_and_updates_here_what_it_did_there(artifact):
    with opened(artifact) as session:
        names = [name for pair in artifact.statistics for name in pair]
        before = values(session, names)
        is_close(session.run(artifact.facts["output"], fed(artifact, shown(artifact))), artifact.facts["fetched"])
        after = values(session, names)
    assert sorted(name for name in names if (before[name] != after[name]).any()) == artifact.facts["moved"]


@each(ARTIFACTS)
def test_the_audit_reports_the_faults_and_no_other(artifact):
    report = audit(artifact.at / artifact.facts["open"])
    layers = [row.name for row in report.layers]
    assert sorted(layers) == sorted(artifact.facts["layers"])
    reported = {finding.code: sorted(finding.layers) for finding in report.errors}
    assert reported == dict.fromkeys(artifact.facts["errors"], sorted(layers)), report.undetermined
    assert set(artifact.facts["cannot_tell"]) <= {untold.code for untold in report.undetermined}


@each([artifact for artifact in ARTIFACTS if not lacks_statistics(artifact)])
def test_the_audit_tells_from_the_checkpoint_which_statistics_training_moved(artifact):
    report = audit(artifact.at / artifact.facts["open"])
    moved = [set(pair) <= set(artifact.facts["trained"]) for pair in artifact.statistics]
    assert [row.statistics == "updated" for row in report.layers] == moved


# --- Into the library's forms -----------------------------------------------------------------------------------------


def by_wrapper(x, name, scale):
    return bn_graph.batch_norm_wrapper(x, is_training=False, epsilon=1e-3, scale=scale, name=name)


def by_slim(x, name, scale):
    return slim.batch_norm(x, is_training=False, epsilon=1e-3, scale=scale, scope=name)


def rebuilt(artifact, norm):
    """The artifact's network for inference with `norm`; input, logits, and each variable's name in the checkpoint."""
    names = {}

    def weights(stored, shape):
        variable = tf.get_variable(f"w{len(names)}", shape)
        names[variable.op.name] = stored
        return variable

    layers, stored = list(artifact.facts["layers"].values()), artifact.facts["weights"]
    x = tf.placeholder(tf.float32, [None, 4, 4, 2])
    value = tf.nn.conv2d(x, weights(stored[0], [3, 3, 2, 3]), 1, "SAME")
    for number, layer in enumerate(layers):
        if number:
            value = tf.matmul(value, weights(stored[number], [48, 4]))
        value = (tf.tanh if number else tf.nn.relu)(norm(value, f"bn{number}", layer[0] is not None))
        value = value if number else tf.reshape(value, [-1, 48])
        leaves = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), layer, strict=True))
        names |= {f"bn{number}/{leaf}": name for leaf, name in leaves.items() if name is not None}
    return x, tf.matmul(value, weights(stored[-1], [value.shape[1], 2])), names


@pytest.mark.filterwarnings("ignore::bn_graph.UntrainedStatisticsWarning")
@pytest.mark.parametrize("norm", [by_wrapper, by_slim])
@each([artifact for artifact in CHECKPOINTS if not lacks_statistics(artifact)])
def test_its_checkpoint_restored_into_a_layer_of_the_library_gives_its_outputs(artifact, norm, plain_graph):
    x, logits, names = rebuilt(artifact, norm)
    with tf.Session(config=broken.AS_BUILT) as session:
        bn_graph.restore(session, artifact.prefix, name_map=names)
        is_close(session.run(logits, {x: shown(artifact)}), artifact.facts["outputs"])


@each([artifact for artifact in CHECKPOINTS if lacks_statistics(artifact)])
def test_a_checkpoint_without_statistics_is_refused_by_their_names(artifact, plain_graph):
    _, _, names = rebuilt(artifact, by_wrapper)
    with tf.Session() as session, pytest.raises(bn_graph.CheckpointError, match="moving_mean"):
        bn_graph.restore(session, artifact.prefix, name_map=names)


@each([artifact for artifact in CHECKPOINTS if "BN002" in artifact.facts["errors"]])
def test_statistics_that_were_never_updated_are_warned_of(artifact, plain_graph):
    _, _, names = rebuilt(artifact, by_wrapper)
    with tf.Session() as session, pytest.warns(bn_graph.UntrainedStatisticsWarning):
        bn_graph.restore(session, artifact.prefix, name_map=names)


# --- Statistics over the examples -------------------------------------------------------------------------------------


def only_infers(artifact):
    """Whether the layers are in inference mode even in the train op's graph, so that they must be asked for."""
    return "BN008" in artifact.facts["errors"]


def copies(artifact):
    """How many copies of the network, or calls of its layers, the graph has: each counts the examples once more."""
    return 2 if "prediction" in artifact.at.name or "twice" in artifact.at.name else 1


def values_seen(artifact):
    """How many values of a channel one copy sees, by layer."""
    return [len(EXAMPLES) * positions for positions in (16, 1)[: len(artifact.statistics)]]


def expected_population(artifact):
    """The population statistics, with Bessel's correction for all copies and not for one."""
    population = {name: np.array(value) for name, value in artifact.facts["population"].items()}
    for (_, variance), once in zip(artifact.statistics, values_seen(artifact), strict=True):
        count = copies(artifact) * once
        population[variance] *= (once - 1) / once * count / (count - 1)
    return population


def logits_by_population(artifact):
    """What the old TensorFlow computed; with more than the one copy that it counted, what the library's layers compute.

    These give the old outputs by the checkpoint's own statistics, as tested above.
    """
    if copies(artifact) == 1:
        return artifact.facts["recalibrated"]
    with tf.Graph().as_default(), tf.Session(config=broken.AS_BUILT) as session:
        x, logits, names = rebuilt(artifact, by_wrapper)
        bn_graph.restore(session, artifact.prefix, name_map=names)
        own = {stored: name for name, stored in names.items()}
        meta_graphs.assign(session, {own[name]: value for name, value in expected_population(artifact).items()})
        return session.run(logits, {x: shown(artifact)})


@each(CHECKPOINTS)
def test_recalibrate_computes_the_population_statistics(artifact):
    batches = [{artifact.facts["input"]: EXAMPLES[part::5]} for part in range(5)]
    with opened(artifact) as session:
        layers = list(artifact.facts["layers"]) if only_infers(artifact) else None
        result = bn_graph.recalibrate(session, batches, is_training=list(artifact.flags) or None, layers=layers)
        assert [layer.count for layer in result] == [copies(artifact) * once for once in values_seen(artifact)]
        expected = expected_population(artifact)
        for name, value in values(session, expected).items():
            is_close(value, expected[name])


def run(command, artifact, *words, prefix=None):
    meta = ["--meta", f"{prefix or artifact.prefix}.meta", "--checkpoint", prefix or artifact.prefix]
    feeds = [word for name in artifact.facts["feeds"] for word in ("--feed", f"{name}=false")]
    assert main([command, *map(str, (*meta, *feeds, *words))]) == 0


def serve(artifact, folder, prefix=None):
    """Runs the command `inference-graph`; what the SavedModel answers."""
    name = artifact.facts["input"]
    cut = ["--input", name] if artifact.at.name == "estimator_run" else []
    run("inference-graph", artifact, "--output", artifact.facts["output"], *cut, "--out", folder, prefix=prefix)
    return broken.answers(folder, shown(artifact))[0]


@each(CHECKPOINTS)
def test_the_commands_write_the_old_outputs_and_those_by_population_statistics(artifact, tmp_path):
    is_close(serve(artifact, tmp_path / "as it is"), artifact.facts["outputs"])

    data, out = str(tmp_path / "data.npz"), str(tmp_path / "recalibrated" / "model")
    np.savez(data, **{artifact.facts["input"]: EXAMPLES})
    run("recalibrate", artifact, "--data", data, "--out", out, *["--inference-layers"] * only_infers(artifact))
    is_close(serve(artifact, tmp_path / "by population", out), logits_by_population(artifact))


# --- Exports ----------------------------------------------------------------------------------------------------------


def exported(artifact, session, write, path, **options):
    """Exports the graph of a session; what the written file answers."""
    graph = session.graph
    ends = (
        {"x": graph.get_tensor_by_name(artifact.facts["input"])},
        {"y": graph.get_tensor_by_name(artifact.facts["output"])},
    )
    (flag,) = artifact.flags or [None]
    return write(session, path, *ends, is_training=flag and graph.get_tensor_by_name(flag), **options)


def can_be_exported(artifact):
    """Whether its output is of inference alone once the switch is fed, if there is one."""
    return bool(artifact.flags or only_infers(artifact)) and not artifact.facts["moved"]


@each([artifact for artifact in CHECKPOINTS if can_be_exported(artifact)])
def test_exported_and_folded_it_answers_as_it_did(artifact, tmp_path):
    with opened(artifact) as session:
        exported(artifact, session, bn_graph.export_saved_model, tmp_path / "served")
        frozen = exported(artifact, session, bn_graph.export_frozen_graph, tmp_path / "folded.pb")
    is_close(broken.answers(tmp_path / "served", shown(artifact))[0], artifact.facts["outputs"])

    graph_def = tf.GraphDef.FromString((tmp_path / "folded.pb").read_bytes())
    assert frozen.unfolded == []
    assert not {node.op for node in graph_def.node} & {
        "FusedBatchNorm",
        "FusedBatchNormV2",
        "FusedBatchNormV3",
        "Rsqrt",
    }
    with tf.Graph().as_default() as graph, tf.Session(config=broken.AS_BUILT) as session:
        tf.import_graph_def(graph_def, name="")
        x, y = (graph.get_tensor_by_name(name) for name in (frozen.inputs["x"], frozen.outputs["y"]))
        is_close(session.run(y, {x: shown(artifact)}), artifact.facts["outputs"])


@each([artifact for artifact in CHECKPOINTS if not can_be_exported(artifact)])
def test_a_graph_that_trains_or_updates_at_inference_is_not_exported(artifact, tmp_path):
    with opened(artifact) as session, pytest.raises(bn_graph.ExportError, match="net/bn1"):
        exported(artifact, session, bn_graph.export_saved_model, tmp_path / "served")
    assert not (tmp_path / "served").exists()


@each([artifact for artifact in ARTIFACTS if not artifact.facts["checkpoint"]])
def test_a_saved_model_of_an_estimator_answers_as_it_did(artifact):
    is_close(broken.answers(artifact.at, shown(artifact))[0], artifact.facts["outputs"])
