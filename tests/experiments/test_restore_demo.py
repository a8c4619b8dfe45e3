"""The restore demo: its table from a checkpoint like single-example's, and one line for what it can't do."""

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf
from experiments.demos import restore_demo
from experiments.single_example import HIDDEN_UNITS


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A results folder with a short training's checkpoint where single-example leaves its own."""
    output = tmp_path_factory.mktemp("results")
    digits = bn_graph.load("digits")
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, bn_graph.normal_weights((64, *HIDDEN_UNITS, 10), seed=0))
        bn_graph.resume(session, None)
        bn_graph.train(session, network, digits.train, steps=1500, batch_size=60, seed=0)
        folder = output / "single_example" / "checkpoints" / "digits-seed0-steps1500" / "wrapper"
        bn_graph.save(bn_graph.make_saver(), session, folder / "model")
    return output


def _rows(text: str) -> list[list[str]]:
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("image"))
    end = next(number for number, line in enumerate(lines) if number > start and line.startswith("right"))
    return [line.split() for line in lines[start + 1 : end]]


def test_the_first_ten_images_are_predicted_rightly_and_beside_it_wrongly(output, capsys):
    assert restore_demo.main(["--output", str(output)]) == 0
    text = capsys.readouterr().out
    rows = _rows(text)
    labels = bn_graph.load("digits").test.labels[:10].argmax(1)
    assert [int(row[0]) for row in rows] == list(range(10))
    assert [int(row[1]) for row in rows] == labels.tolist()
    assert np.mean([row[1] == row[2] for row in rows]) > 0.7
    assert text.count("error") == 20
    assert "NotFoundError" in text and "FailedPreconditionError" in text


def test_named_images_and_a_named_checkpoint(output, tmp_path, capsys):
    prefix = next(output.glob("single_example/checkpoints/*/wrapper")) / "model"
    arguments = ["--output", str(tmp_path), "--checkpoint", str(prefix), "--images", "7", "359", "7"]
    assert restore_demo.main(arguments) == 0
    assert [row[0] for row in _rows(capsys.readouterr().out)] == ["7", "359", "7"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "360"], "0 to 359"),
        (["--images", "-1"], "--images"),
        (["--images", "seven"], "from 0 up, not 'seven'"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(output, capsys, arguments, said):
    assert restore_demo.main(["--output", str(output), *arguments]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and len(complaint.splitlines()) == 1


def test_no_checkpoint_says_which_command_makes_one(tmp_path, capsys):
    assert restore_demo.main(["--output", str(tmp_path)]) == 2
    complaint = capsys.readouterr().err
    assert "run make single-example first" in complaint and len(complaint.splitlines()) == 1


def test_a_damaged_checkpoint_and_another_networks_are_one_line(tmp_path, capsys):
    (tmp_path / "damaged.index").write_bytes(b"not a checkpoint")
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable("other", [3])
        session.run(tf.global_variables_initializer())
        other = tf.train.Saver().save(session, str(tmp_path / "other"))
    for prefix in (str(tmp_path / "damaged"), other):
        assert restore_demo.main(["--checkpoint", prefix]) == 2
        complaint = capsys.readouterr().err
        assert "run make single-example first" in complaint and len(complaint.splitlines()) == 1
