import argparse
import os
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

import bn_graph.audit
from bn_graph.__main__ import main
from bn_graph.audit.report import Finding, Level, Report
from bn_graph.checkpoints import meta_graphs
from bn_graph.commands import recalibrate
from bn_graph.recalibration import RecalibrationError
from bn_graph.tf1 import tf
from tests import test_recalibration as forms
from tests.commands import broken


@pytest.fixture
def audited(monkeypatch):
    """What the audit is to say; and the paths that it was asked about."""
    findings, asked = [], []

    def audit(path, *, checkpoint=None, **_):
        asked.append((path, checkpoint))
        return Report(path, "meta graph", checkpoint, (), tuple(findings), ())

    monkeypatch.setattr(bn_graph.audit, "audit", audit, raising=False)
    return findings, asked


@pytest.fixture
def saved(plain_graph, random, tmp_path, audited):
    """A broken checkpoint of the wrapper's network, and data for it."""
    network = broken.save(tmp_path, forms.wrapper, random)
    return network, broken.write_examples(tmp_path, random)[0], str(tmp_path / "new" / "model")


def run(network, data, out, *words):
    return main(["recalibrate", *map(str, [*network.arguments, "--data", data, "--out", out, *words])])


def values(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


# --- It repairs ---------------------------------------------------------------------------------------------------------


@broken.FORMS_AND_KINDS
def test_population_statistics_are_written_and_served_and_the_old_checkpoint_is_as_it_was(
    graph, random, tmp_path, audited, form
):
    build, rank = broken.FORMS[form]
    network = broken.save(tmp_path, build, random, rank=rank)
    data, array = broken.write_examples(tmp_path, random, rank=rank)
    old = broken.fingerprints(tmp_path / "old")
    out = str(tmp_path / "new" / "model")

    assert run(network, data, out, "--feed", "is_training=false", "--batch-size", "25") == 0

    assert broken.fingerprints(tmp_path / "old") == old
    before, after = values(network.prefix), values(out)
    assert before.keys() == after.keys()
    expected = forms.expected_pooled(array, network.weights)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(changed) == 4
    for name in changed:
        mean_and_variance = expected[int(name.split("bn")[1][0]) - 1]
        assert any(np.allclose(after[name], value, rtol=1e-5, atol=1e-5) for value in mean_and_variance), name

    served = tmp_path / "served"
    words = ["--meta", f"{out}.meta", "--checkpoint", out, "--output", network.output, "--out", served]
    assert main(["inference-graph", *map(str, words)]) == 0
    batch = array[:5]
    expected = broken.expected_answers(array, network.weights, batch)
    together, *alone = broken.answers(served, batch, *np.split(batch, 5))
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(alone), expected, atol=1e-5)


def test_a_graph_that_only_trains_is_repaired_by_the_papers_method_too(plain_graph, random, tmp_path, audited):
    network = broken.save(tmp_path, forms.tf_layers, random, flag=True)
    data, array = broken.write_examples(tmp_path, random)
    out = str(tmp_path / "new")
    assert run(network, data, out, "--method", "paper", "--batch-size", "20") == 0
    after = values(out)
    expected = forms.expected_paper(np.split(array, 3), network.weights)
    for layer, (mean, variance) in zip(("bn1", "bn2"), expected, strict=True):
        np.testing.assert_allclose(after[f"{layer}/moving_mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after[f"{layer}/moving_variance"], variance, rtol=1e-4)


def test_missing_statistics_and_slots_are_initialized_and_named(plain_graph, random, tmp_path, audited, capfd):
    weights = forms.weights(random, 1)
    _, y = forms.network(forms.tf_layers, True, weights)
    tf.train.AdamOptimizer().minimize(tf.reduce_sum(y), tf.train.get_or_create_global_step())
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver(tf.trainable_variables()).save(session, str(tmp_path / "old"), write_state=False)
    data, _ = broken.write_examples(tmp_path, random)
    assert run(broken.Broken(prefix, weights, y.name), data, str(tmp_path / "new")) == 0
    after = values(str(tmp_path / "new"))
    assert {"bn1/moving_mean", "global_step", "beta1_power", "w1/Adam"} <= after.keys()
    assert after["global_step"] == 0 and np.abs(after["bn1/moving_mean"]).max() > 0
    printed = capfd.readouterr().out
    assert "before  missing" in printed
    initialized = next(line for line in printed.splitlines() if line.startswith("Not in the checkpoint"))
    assert "global_step" in initialized and "w1/Adam" in initialized and "moving_mean" not in initialized


def test_the_new_checkpoint_keeps_the_names_that_the_old_ones_saver_gave(plain_graph, random, tmp_path, audited):
    weights = forms.weights(random, 1)
    _, y = forms.network(forms.wrapper, True, weights)
    renamed = {f"old_{variable.op.name}": variable for variable in tf.global_variables()}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver(renamed).save(session, str(tmp_path / "old"), write_state=False)
        data, array = broken.write_examples(tmp_path, random)
        assert run(broken.Broken(prefix, weights, y.name), data, str(tmp_path / "new")) == 0
        tf.train.Saver(renamed).restore(session, str(tmp_path / "new"))
        held = session.run(renamed["old_bn1/moving_mean"])
    np.testing.assert_allclose(held, (array @ weights[0]).mean(axis=0), rtol=1e-5)


def test_the_new_meta_graph_restores_by_itself(saved):
    network, data, out = saved
    assert run(network, data, out, "--feed", "is_training=false") == 0
    with tf.Graph().as_default(), tf.Session() as session:
        saver = tf.train.import_meta_graph(f"{out}.meta")
        saver.restore(session, out)
        (mean,) = [v for v in tf.global_variables() if v.op.name == "bn1/moving_mean"]
        np.testing.assert_array_equal(session.run(mean), values(out)["bn1/moving_mean"])
    assert sorted(os.listdir(os.path.dirname(out))) == ["model.data-00000-of-00001", "model.index", "model.meta"]


@pytest.mark.parametrize("rank", [2, 4])
def test_a_graph_for_inference_only_is_repaired_if_asked_for(
    variable_kind, plain_graph, random, tmp_path, audited, rank
):
    with tf.variable_scope("", use_resource=variable_kind == "resource"):
        network = broken.save(tmp_path, forms.tf_layers, random, flag=False, rank=rank)
    data, array = broken.write_examples(tmp_path, random, rank=rank)
    out = str(tmp_path / "new")
    assert run(network, data, out, "--inference-layers", "--batch-size", 25) == 0
    after = values(out)
    for number, (mean, variance) in enumerate(forms.expected_pooled(array, network.weights), start=1):
        np.testing.assert_allclose(after[f"bn{number}/moving_mean"], mean, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(after[f"bn{number}/moving_variance"], variance, rtol=2e-6, atol=2e-6)


def test_layers_for_inference_beside_others_are_left_and_named_and_repaired_if_asked_for(
    plain_graph, random, tmp_path, audited, capfd
):
    network = broken.save(tmp_path, lambda z, _, name: forms.tf_layers(z, name == "bn1", name), random)
    data, array = broken.write_examples(tmp_path, random)
    first, second = forms.expected_pooled(array, network.weights)
    for out, words, expected in (("left", [], np.ones(5)), ("repaired", ["--inference-layers"], second[1])):
        assert run(network, data, str(tmp_path / out), *words) == 0
        after = values(str(tmp_path / out))
        np.testing.assert_allclose(after["bn1/moving_variance"], first[1], rtol=2e-6)
        np.testing.assert_allclose(after["bn2/moving_variance"], expected, rtol=2e-6)
        named = "built for inference: bn2/moving_mean, bn2/moving_variance" in capfd.readouterr().out
        assert named == (out == "left")


def test_the_table_shows_before_and_after(saved, capfd):
    network, data, out = saved
    run(network, data, out, "--feed", "is_training=0")
    lines = capfd.readouterr().out.splitlines()
    after = values(out)["bn1/moving_mean"].astype(np.float64)
    assert lines[1].split()[:7] == ["bn1", "before", "0", "/", "0", "/", "0"]
    assert lines[2].split()[1:6] == [f"{after.min():.4g}", "/", f"{np.median(after):.4g}", "/", f"{after.max():.4g}"]
    assert lines[2].endswith(" 60")


def test_a_batch_size_that_the_graph_fixes_is_used_and_the_rest_left_out(plain_graph, random, tmp_path, audited, capfd):
    x = tf.placeholder(tf.float32, [8, 4], name="x")
    y = forms.tf_layers(x, True, "bn1")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver().save(session, str(tmp_path / "old"), write_state=False)
    array = random.randn(20, 4)  # float64, which a float32 placeholder takes
    data, _ = broken.write_examples(tmp_path, random, x=array)
    network = broken.Broken(prefix, [], y.name)
    assert run(network, data, str(tmp_path / "new")) == 0
    mean = values(str(tmp_path / "new"))["bn1/moving_mean"]
    np.testing.assert_allclose(mean, array[:16].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert "the last 4 examples were left out" in capfd.readouterr().out
    assert run(network, data, str(tmp_path / "other"), "--batch-size", "5") == 2
    broken.assert_one_line(capfd, "x (float32, [8, 4])", "5")


# --- Data in several files ----------------------------------------------------------------------------------------------


def write_shards(folder, array, ends, suffix=".npz"):
    folder.mkdir()
    for number, part in enumerate(np.split(array, ends)):
        path = folder / f"shard_{number:02}{suffix}"
        np.savez(path, x=part) if suffix == ".npz" else np.save(path, part)
    (folder / "README.txt").write_text("no data")
    return str(folder)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("method", ["pooled", "paper"])
def test_a_directory_of_files_gives_what_one_file_gives(saved, tmp_path, suffix, method):
    network, data, out = saved
    array = np.load(data)["x"]
    words = ["--feed", f"is_training={method == 'paper'}", "--method", method, "--batch-size", 7]
    assert run(network, data, out, *words) == 0
    folder = write_shards(tmp_path / "shards", array, [1, 20, 22, 50], suffix)
    assert run(network, folder, f"{out}_of_shards", *words) == 0
    expected, found = values(out), values(f"{out}_of_shards")
    for name in expected:  # the batches are the same, over the ends of the files
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_one_file_is_in_memory_at_a_time(plain_graph, tmp_path):
    tf.placeholder(tf.float32, [None, 1000], name="x")
    array = np.zeros([500, 1000], np.float32)  # 2 MB
    folder = write_shards(tmp_path / "shards", np.concatenate([array] * 8), range(500, 4000, 500))
    parser = argparse.ArgumentParser()
    recalibrate.add_arguments(parser)
    words = ["--meta", "", "--checkpoint", "", "--out", "", "--data", folder, "--batch-size", "60"]
    feed = recalibrate._feed(plain_graph, None, parser.parse_args(words))
    tracemalloc.start()
    try:
        held = [None]
        for batch in feed.batches():
            held[0] = batch["x:0"].mean(0)
            assert tracemalloc.get_traced_memory()[0] < 1.6 * array.nbytes
        assert tracemalloc.get_traced_memory()[1] < 2.9 * array.nbytes  # zipfile reads and joins a file's parts
    finally:
        tracemalloc.stop()


def test_the_rest_of_several_files_is_left_out_where_the_graph_fixes_the_batch_size(
    plain_graph, random, tmp_path, audited, capfd
):
    x = tf.placeholder(tf.float32, [8, 4], name="x")
    y = forms.tf_layers(x, True, "bn1")
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver().save(session, str(tmp_path / "old"), write_state=False)
    array = random.randn(20, 4).astype(np.float32)
    folder = write_shards(tmp_path / "shards", array, [3, 5])
    assert run(broken.Broken(prefix, [], y.name), folder, str(tmp_path / "new")) == 0
    np.testing.assert_allclose(
        values(str(tmp_path / "new"))["bn1/moving_mean"], array[:16].mean(0), rtol=1e-5, atol=1e-6
    )
    assert "the last 4 examples were left out" in capfd.readouterr().out


def test_a_bad_directory_is_refused(saved, capfd, tmp_path):
    network, _, out = saved
    words = ["--feed", "is_training=0"]
    (tmp_path / "empty").mkdir()
    refused(capfd, tmp_path, network, tmp_path / "empty", out, *words, says=["empty", "no .npz or .npy files"])
    folder = tmp_path / "mixed"
    folder.mkdir()
    np.savez(folder / "a.npz", x=np.ones([30, 4]))
    np.savez(folder / "b.npz", Tanh=np.ones([30, 5]))
    refused(capfd, tmp_path, network, folder, out, *words, says=["b.npz has Tanh:0, where", "a.npz has x:0"])
    np.save(folder / "a.npy", np.ones([30, 5]))
    refused(capfd, tmp_path, network, folder, out, *words, says=["a.npy", "[30, 5]", "x (float32, [?, 4])"])
    refused(capfd, tmp_path, network, folder, out, says=["a.npy", "[30, 5]"])  # the layers don't need is_training


def test_what_does_not_fit_into_the_cache_is_said_and_a_wrong_size_is_refused(saved, capfd, tmp_path):
    network, data, out = saved
    words = ["--feed", "is_training=0", "--batch-size", "20"]
    assert run(network, data, out, *words, "--cache", "0.1K", "--cache-dir", tmp_path) == 0
    assert "more than the 102 of cache_bytes: 3 of 3 batches" in capfd.readouterr().out
    refused(capfd, tmp_path, network, data, f"{out}_2", *words, "--cache", "many", says=["500M or 4G", "many"])
    refused(capfd, tmp_path, network, data, f"{out}_2", *words, "--cache=-1G", says=["500M or 4G"])


# --- The audit of the result ------------------------------------------------------------------------------------------


def test_the_result_is_audited_and_its_remaining_errors_are_printed(saved, audited, capfd):
    network, data, out = saved
    findings, asked = audited
    findings.append(Finding("BN002", Level.ERROR, ("other",), "never updated", (), "train"))
    findings.append(Finding("BN001", Level.ERROR, ("bn1",), "detached", (), "attach"))
    assert run(network, data, out, "--feed", "is_training=false") == 1
    assert asked == [(f"{out}.meta", out)]
    printed = capfd.readouterr().out
    assert "BN002 other: never updated" in printed and "BN001" not in printed


# --- Stopping ---------------------------------------------------------------------------------------------------------


def stop(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "at", ["tqdm.tqdm", "bn_graph.checkpoints.files.os.replace", "bn_graph.checkpoints.meta_graphs.restore"]
)
def test_control_c_leaves_nothing(saved, tmp_path, monkeypatch, capfd, at):
    network, data, out = saved
    before = broken.fingerprints(tmp_path)
    monkeypatch.setattr(at, stop)
    assert run(network, data, out, "--feed", "is_training=false") == 130
    assert broken.fingerprints(tmp_path) == before
    broken.assert_one_line(capfd, "stopped; nothing was written")


# --- Refusals ---------------------------------------------------------------------------------------------------------


def refused(capfd, tmp_path, network, data, out, *words, says):
    before = broken.fingerprints(tmp_path)
    assert run(network, data, out, *words) == 2
    broken.assert_one_line(capfd, *says)
    assert broken.fingerprints(tmp_path) == before


def test_an_existing_out_is_refused(saved, capfd, tmp_path):
    network, data, _ = saved
    refused(capfd, tmp_path, network, data, network.prefix, says=["model", "exists"])


def test_a_placeholder_that_is_not_fed_is_named_with_dtype_and_shape(saved, capfd, tmp_path):
    network, data, out = saved
    words = ["--method", "paper"]  # pooled statistics of this library's layers don't need the switch
    refused(capfd, tmp_path, network, data, out, *words, says=["is_training (bool, [])", "--feed"])


@pytest.mark.parametrize(
    "words, says",
    [
        (["--feed", "is_training"], ["NAME=VALUE"]),
        (["--feed", "is_training=maybe"], ["is_training (bool, [])", "true or false", "maybe"]),
        (["--feed", "keep_prob=1"], ["keep_prob", "x (float32, [?, 4])", "is_training (bool, [])"]),
        (["--feed", "x=1"], ["x (float32, [?, 4])", "no scalar"]),
        (["--feed", "is_training=0", "--feed", "is_training:0=1"], ["already"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
    ],
)
def test_bad_feeds_are_refused(saved, capfd, tmp_path, words, says):
    network, data, out = saved
    refused(capfd, tmp_path, network, data, out, *words, says=says)


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"y": np.zeros([3, 4])}, ["no tensor named y", "x (float32, [?, 4])"]),
        ({"x": np.zeros([3, 5])}, ["[3, 5]", "x (float32, [?, 4])"]),
        ({"x": np.zeros([0, 4])}, ["empty", "[0, 4]"]),
        ({"x": np.float32(1.0)}, ["single value"]),
        ({"x": np.array([["a"] * 4])}, ["<U1", "x (float32, [?, 4])"]),
        ({"x": np.array([[None] * 4])}, ["plain arrays", "allow_pickle"]),
        ({"x": np.ones([2, 4], complex)}, ["complex128", "x (float32, [?, 4])"]),
        ({"x": np.zeros([3, 4]), "Tanh": np.zeros([4, 5])}, ["different numbers", "x 3", "Tanh 4"]),
        ({"x": np.zeros([3, 4]), "x:0": np.zeros([3, 4])}, ["twice"]),
        ({"x": np.full([3, 4], np.nan)}, ["NaN", "bn1"]),
    ],
)
def test_arrays_that_the_graph_does_not_take_are_refused(saved, capfd, tmp_path, random, arrays, says):
    network, _, out = saved
    data, _ = broken.write_examples(tmp_path, random, **arrays)
    refused(capfd, tmp_path, network, data, out, "--feed", "is_training=false", says=says)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_a_data_file_of_another_kind_is_refused(saved, capfd, tmp_path, content):
    network, _, out = saved
    (tmp_path / "data.npz").write_bytes(content)
    refused(capfd, tmp_path, network, tmp_path / "data.npz", out, says=["data.npz"])


def test_an_npz_with_something_else_than_arrays_or_a_lone_array_is_refused(saved, capfd, tmp_path):
    network, _, out = saved
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.txt", "text")
    refused(capfd, tmp_path, network, tmp_path / "other.npz", out, says=["no array"])
    np.save(tmp_path / "lone.npy", np.zeros([3, 4]))
    refused(capfd, tmp_path, network, tmp_path / "lone.npy", out, says=["single array"])
    refused(capfd, tmp_path, network, tmp_path / "none.npz", out, says=["No such file"])


def test_a_checkpoint_that_lacks_a_weight_below_a_layer_is_refused(plain_graph, random, tmp_path, audited, capfd):
    network = broken.save(tmp_path, forms.wrapper, random, keep=lambda variable: variable.op.name != "w2")
    data, _ = broken.write_examples(tmp_path, random)
    out = str(tmp_path / "new")
    refused(capfd, tmp_path, network, data, out, "--feed", "is_training=0", says=["lacks w2", "bn2"])


def test_a_graph_that_no_batch_updates_is_refused(plain_graph, random, tmp_path, audited, capfd):
    network = broken.save(tmp_path, forms.tf_layers, random, flag=False)
    data, _ = broken.write_examples(tmp_path, random)
    says = ["bn1/moving_mean", "inference", "--inference-layers"]
    refused(capfd, tmp_path, network, data, str(tmp_path / "new"), says=says)


def test_what_the_library_refuses_is_one_line(saved, capfd, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RecalibrationError("no good\nat all")

    network, data, out = saved
    monkeypatch.setattr("bn_graph.recalibration.recalibrate", fail)
    refused(capfd, tmp_path, network, data, out, "--feed", "is_training=0", says=["recalibrate: no good at all"])


# --- As a program, and on public files --------------------------------------------------------------------------------


def test_as_a_command(saved, tmp_path):
    network, data, out = saved
    words = [*network.arguments, "--data", data, "--out", out, "--method", "paper"]
    command = [sys.executable, "-m", "bn_graph", "recalibrate", *words]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "is_training (bool, [])" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_public_gan_whose_layers_were_built_for_inference_and_not_saved(tmp_path, random, audited, capfd):
    folder = broken.PUBLIC_GRAPHS / "B1"
    if not folder.exists():
        pytest.skip("the public graphs are not here")
    network = broken.Broken(str(folder / "model.ckpt"), [], "")
    arrays = {"Placeholder_1": random.randn(64, 10), "Placeholder_2": random.randn(64, 100)}
    data, _ = broken.write_examples(tmp_path, random, **arrays)
    out = str(tmp_path / "new")
    refused(capfd, tmp_path, network, data, out, says=["built for inference", "--inference-layers"])
    assert run(network, data, out, "--inference-layers") == 0
    after = values(out)
    for layer in ("gen/batch_normalization", "gen/batch_normalization_1"):
        assert np.abs(after[f"{layer}/moving_mean"]).min() > 0
    assert "Issue encountered" not in capfd.readouterr().err


def test_a_public_gan_with_sums_for_means_is_repaired_from_the_names_and_shapes_of_its_checkpoint(
    tmp_path, random, audited
):
    folder = broken.PUBLIC_GRAPHS / "J1"
    if not folder.exists():
        pytest.skip("the public graphs are not here")
    # Only the index is here: the weights are drawn at random.
    with meta_graphs.import_graph(meta_graphs.read(folder / "generator.ckpt.meta")).as_default():
        tf.set_random_seed(0)
        network = _saved_as_initialized(tmp_path)
    data, _ = broken.write_examples(
        tmp_path, random, z_input=random.randn(32, 100), real_input=random.randn(32, 28, 28, 1)
    )
    out = str(tmp_path / "new")
    words = ["--meta", folder / "generator.ckpt.meta", "--checkpoint", network, "--data", data, "--out", out]
    assert main(["recalibrate", *map(str, words)]) == 0
    after = values(out)
    variances = {name: value for name, value in after.items() if name.endswith("/moving_variance")}
    assert len(variances) == 5 and all((value != 1).all() for value in variances.values())


def _saved_as_initialized(folder):
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, str(folder / "old" / "model"), write_meta_graph=False, write_state=False)


def test_a_public_gan_whose_checkpoint_holds_the_generators_weights_only(tmp_path, random, audited, capfd):
    folder = broken.PUBLIC_GRAPHS / "W3"
    if not folder.exists():
        pytest.skip("the public graphs are not here")
    network = broken.Broken(str(folder / "generator.ckpt"), [], "generator/generator_imgs/imgs:0")
    arrays = {"Placeholder": random.randn(256, 100), "Placeholder_1": random.randn(256, 32, 32, 1)}
    data, _ = broken.write_examples(tmp_path, random, **arrays)
    out = str(tmp_path / "new")
    assert run(network, data, out) == 0
    after = values(out)
    layers = {name.rpartition("/")[0] for name in after if name.endswith("/moving_variance")}
    updated = {layer for layer in layers if np.any(after[f"{layer}/moving_variance"] != 1)}
    assert updated == {layer for layer in layers if layer.startswith("generator/")} and len(updated) == 3
    printed = capfd.readouterr().out
    assert "has nothing of theirs: discriminator/conv2d_0/batch_normalization" in printed

    words = ["--meta", f"{out}.meta", "--checkpoint", out, "--output", network.output, "--out", tmp_path / "served"]
    assert main(["inference-graph", *map(str, words)]) == 0
    first, second = broken.answers(tmp_path / "served", *_same_first(random))
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    assert np.abs(first[1:] - second[1:]).max() > 0.01


def _same_first(random):
    """Two batches that share their first example."""
    one, other = random.randn(2, 128, 100)
    other[0] = one[0]
    return one, other
