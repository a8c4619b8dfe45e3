import os
import subprocess
import sys

import numpy as np
import pytest

from bn_graph.__main__ import main
from bn_graph.tf1 import tf
from tests import test_recalibration as forms
from tests.commands import broken


def run(network, out, *words):
    words = [*network.arguments, "--output", network.output, "--out", out, *words]
    return main(["inference-graph", *map(str, words)])


def save_all(folder, output):
    """Saves the default graph with all variables as they are initialized."""
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        prefix = str(folder / "old" / "model")
        (folder / "old").mkdir()
        if tf.global_variables():
            tf.train.Saver().save(session, prefix, write_state=False)
    return broken.Broken(prefix, [], output.name)


def refused(capfd, tmp_path, network, *words, says, status=2):
    before = broken.fingerprints(tmp_path)
    assert run(network, tmp_path / "served", *words) == status
    broken.assert_one_line(capfd, *says)
    assert broken.fingerprints(tmp_path) == before and not (tmp_path / "served").exists()


def initial_variance(form):
    """With a mean of 0: what a layer's statistics start from. Averages of tensors start from 0."""
    return 0.0 if form == "averages' shadows" else 1.0


def served_ops(directory):
    with tf.Graph().as_default() as graph, tf.Session() as session:
        tf.saved_model.load(session, ["serve"], str(directory))
        return {
            op.type
            for op in graph.get_operations()
            if not op.name.startswith("save/") and not op.name.endswith("/Assign")
        }


# --- What is written --------------------------------------------------------------------------------------------------


@broken.FORMS_AND_KINDS
def test_layers_built_for_training_only_use_their_statistics_and_update_nothing(graph, random, tmp_path, form):
    build, rank = broken.FORMS[form]
    network = broken.save(tmp_path, build, random, rank=rank, flag=True)
    assert run(network, tmp_path / "served") == 0
    batch = forms.examples(random, 6, rank)
    expected = batch.astype(np.float64)
    for matrix in network.weights:
        expected = np.tanh(expected @ matrix / np.sqrt(initial_variance(form) + forms.EPSILON))
    together, alone = broken.answers(tmp_path / "served", batch, batch[:1])
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(alone, expected[:1], atol=1e-5)
    ops = served_ops(tmp_path / "served")
    assert not ops & {"AssignSub", "AssignAdd", "AssignSubVariableOp", "AssignAddVariableOp", "Mean", "Switch", "If"}


@pytest.mark.parametrize("words", [[], ["--feed", "is_training=false"], ["--feed", "is_training=true"]])
@pytest.mark.parametrize("form", ["wrapper", "tf.layers fused", "averages' shadows"])
def test_whatever_the_switch_is_fixed_to_statistics_are_used(plain_graph, random, tmp_path, capfd, form, words):
    build, rank = broken.FORMS[form]
    network = broken.save(tmp_path, build, random, rank=rank, layers=1)
    assert run(network, tmp_path / "served", *words) == 0
    batch = forms.examples(random, 6, rank)
    expected = np.tanh(batch.astype(np.float64) @ network.weights[0] / np.sqrt(initial_variance(form) + forms.EPSILON))
    np.testing.assert_allclose(broken.answers(tmp_path / "served", batch)[0], expected, atol=1e-5)
    said = capfd.readouterr()
    assert ("is_training is fixed to false" in said.out) == (words == [])
    assert "bn1" in said.out and "differ by at most" in said.out
    assert said.err.count("\n") == 1 and "never updated" in said.err and "recalibrate" in said.err


def test_statistics_that_the_checkpoint_lacks_are_initial_ones_and_warned_of(plain_graph, random, tmp_path, capfd):
    network = broken.save(tmp_path, forms.tf_layers, random, flag=False, keep=lambda v: "moving" not in v.op.name)
    assert run(network, tmp_path / "served") == 0
    broken.assert_one_line(capfd, "bn1, bn2", "not in the checkpoint", "recalibrate")


def test_an_input_in_the_middle_of_the_graph_cuts_it(plain_graph, tmp_path):
    raw = tf.placeholder(tf.string, [None], name="raw")
    decoded = tf.identity(tf.reshape(tf.decode_raw(raw, tf.float32), [-1, 2]), name="decoded")
    network = save_all(tmp_path, forms.tf_layers(decoded, True, "bn1"))
    assert run(network, tmp_path / "served", "--input", "decoded") == 0
    expected = np.array([[2.0, 4.0]]) / np.sqrt(1 + forms.EPSILON)
    np.testing.assert_allclose(broken.answers(tmp_path / "served", [[2.0, 4.0]])[0], expected, rtol=1e-5)


def test_a_fixed_batch_size_is_checked_by_repeating_examples(plain_graph, tmp_path):
    network = save_all(tmp_path, forms.tf_layers(tf.placeholder(tf.float32, [4, 3], name="x"), True, "bn1"))
    assert run(network, tmp_path / "served") == 0
    assert broken.answers(tmp_path / "served", np.ones([4, 3]))[0].shape == (4, 3)


def test_sizes_that_cannot_be_guessed_are_taken_from_an_example(plain_graph, tmp_path, random, capfd):
    x = tf.placeholder(tf.float32, [None, None], name="x")
    network = save_all(tmp_path, forms.tf_layers(tf.reshape(x, [-1, 1, 6]), True, "bn1"))
    refused(capfd, tmp_path, network, says=["--example"])
    np.savez(tmp_path / "example.npz", x=random.randn(5, 6))
    assert run(network, tmp_path / "served", "--example", tmp_path / "example.npz") == 0


# --- The check --------------------------------------------------------------------------------------------------------


def test_what_mixes_examples_besides_batch_norm_fails_the_check_and_is_removed(plain_graph, tmp_path, capfd):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = forms.tf_layers(x, True, "bn1")
    network = save_all(tmp_path, y - tf.reduce_max(y, axis=0))
    refused(capfd, tmp_path, network, says=["One at a time", "differ by up to"], status=1)
    assert os.listdir(tmp_path) == ["old"]


def test_dropout_left_on_fails_the_check_and_names_the_op(plain_graph, tmp_path, capfd):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    keep = tf.placeholder(tf.float32, [], name="keep_prob")
    network = save_all(tmp_path, tf.nn.dropout(forms.tf_layers(x, True, "bn1"), keep))
    refused(capfd, tmp_path, network, says=["keep_prob (float32, [])", "--feed"])
    words = ["--feed", "keep_prob=0.5"]
    refused(capfd, tmp_path, network, *words, says=["random", "random_uniform", "keep_prob=1.0"], status=1)
    assert run(network, tmp_path / "served", "--feed", "keep_prob=1.0") == 0


def test_an_output_without_examples_is_refused(plain_graph, tmp_path, capfd):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    network = save_all(tmp_path, tf.reduce_max(forms.tf_layers(x, True, "bn1")))
    refused(capfd, tmp_path, network, says=["first axis"])


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_a_layer_without_population_statistics_is_named_with_the_reason(plain_graph, tmp_path, capfd):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    with tf.variable_scope("by_hand"):
        y = tf.nn.batch_normalization(x, *tf.nn.moments(x, [0]), tf.get_variable("beta", [3]), None, 1e-3)
    network = save_all(tmp_path, y)
    refused(capfd, tmp_path, network, says=["by_hand: it has no variables for its statistics"])


@pytest.mark.parametrize(
    "words, says",
    [
        (["--output", "nowhere"], ["no tensor named nowhere"]),
        (["--input", "nowhere"], ["no tensor named nowhere"]),
        (["--input", "w1/Assign"], ["w1/Assign"]),
        (["--input", "is_training"], ["x (float32, [?, 4])", "--input"]),
        (["--feed", "x=1"], ["no scalar"]),
        (["--example", "none.npz"], ["none.npz", "No such file"]),
        (["--checkpoint", "none"], ["none"]),
        (["--meta", "none.meta"], ["none.meta", "No such file"]),
    ],
)
def test_bad_arguments_are_refused(plain_graph, random, tmp_path, capfd, words, says):
    network = broken.save(tmp_path, forms.tf_layers_unfused, random)
    refused(capfd, tmp_path, network, *words, says=says)


def test_an_existing_directory_is_refused_and_left_alone(plain_graph, random, tmp_path, capfd):
    network = broken.save(tmp_path, forms.wrapper, random)
    before = broken.fingerprints(tmp_path)
    assert run(network, tmp_path / "old") == 2
    broken.assert_one_line(capfd, "old exists")
    assert broken.fingerprints(tmp_path) == before


def test_missing_weights_are_refused(plain_graph, random, tmp_path, capfd):
    network = broken.save(tmp_path, forms.wrapper, random, keep=lambda variable: variable.op.name != "w2")
    refused(capfd, tmp_path, network, says=["lacks w2"])


def test_control_c_leaves_nothing(plain_graph, random, tmp_path, monkeypatch, capfd):
    def stop(*_, **__):
        raise KeyboardInterrupt

    network = broken.save(tmp_path, forms.wrapper, random)
    monkeypatch.setattr("bn_graph.inference.conversion.largest_difference", stop)
    refused(capfd, tmp_path, network, says=["bn_graph inference-graph: stopped; nothing was written."], status=130)
    assert os.listdir(tmp_path) == ["old"]


# --- As a program, and on a public file -------------------------------------------------------------------------------


def test_as_a_command(plain_graph, random, tmp_path):
    network = broken.save(tmp_path, forms.wrapper, random)
    words = [*network.arguments, "--output", network.output, "--out", tmp_path / "served"]
    command = [sys.executable, "-m", "bn_graph", "inference-graph", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "never updated" in done.stderr
    assert broken.answers(tmp_path / "served", np.ones([2, 4]))[0].shape[0] == 2


def test_a_public_gan_trained_in_inference_mode_keeps_the_statistics_it_was_trained_by(tmp_path, random, capfd):
    folder = broken.PUBLIC_GRAPHS / "B1"
    if not folder.exists():
        pytest.skip("the public graphs are not here")
    network = broken.Broken(str(folder / "model.ckpt"), [], "gen/Tanh:0")
    assert run(network, tmp_path / "served") == 0
    broken.assert_one_line(capfd, "gen/batch_normalization, gen/batch_normalization_1", "not in the checkpoint")
    noise = random.randn(3, 100).astype(np.float32)
    served, alone = broken.answers(tmp_path / "served", noise, noise[:1])
    assert np.ptp(served) > 0.01
    np.testing.assert_allclose(served[:1], alone, atol=1e-6)
