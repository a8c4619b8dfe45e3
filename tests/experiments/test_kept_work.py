"""Work that is kept: taken up where a run was stopped, with the same numbers, and begun anew for other settings."""

import fcntl

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness, kept_work
from experiments.machinery.programs import UsageError

STEPS = 12


@pytest.fixture(scope="module")
def digits():
    return bn_graph.load("digits")


def settings(output, digits, **changes) -> harness.Settings:
    return harness.Settings("page", "quick", digits, None, [0], STEPS, output, **changes)


def train(settings, stop_at=None, counts_steps=True):
    """Trains r2rt's network; its accuracy is measured by the training graph, which moves its statistics."""
    dataset = settings.dataset
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, bn_graph.normal_weights([64, 20, 10], seed=0))
        step = bn_graph.step_of(network)
        if not counts_steps:
            loss = bn_graph.train_op(tf.train.GradientDescentOptimizer(0.01), network.loss)
            step = step._replace(train_op=loss)

        def measure(finished):
            if finished == stop_at:
                raise KeyboardInterrupt
            if finished % 3:
                return {}
            feed = {network.x: dataset.test.images, network.y_: dataset.test.labels}
            return {"accuracy": session.run(network.accuracy, feed)}

        curves = kept_work.train_and_measure(
            settings,
            session,
            step,
            dataset.train,
            measure,
            batch_size=60,
            seed=0,
            folder=kept_work.folder(settings, 0),
            label="training",
            pause_after=lambda finished: finished % 3 == 0,
            checkpoint_every=5,
            counts_steps=counts_steps,
        )
        return curves, session.run(tf.global_variables())


@pytest.mark.parametrize("loop", harness.LOOPS)
@pytest.mark.parametrize("counts_steps", [True, False])
def test_a_training_that_is_stopped_between_checkpoints_ends_with_the_same_numbers(
    tmp_path, digits, loop, counts_steps
):
    curves, variables = train(settings(tmp_path / "whole", digits, loop=loop), counts_steps=counts_steps)
    assert curves["accuracy_step"].tolist() == [3, 6, 9, 12]
    stopped = settings(tmp_path / "stopped", digits, loop=loop)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, stop_at=9, counts_steps=counts_steps)  # the last checkpoint is that of step 5
    again, variables_again = train(stopped, counts_steps=counts_steps)
    for name, curve in curves.items():
        np.testing.assert_array_equal(again[name], curve)
    for one, other in zip(variables, variables_again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_damaged_curves_are_an_error_that_says_what_to_do(tmp_path, digits):
    train(settings(tmp_path, digits))
    (curves,) = tmp_path.rglob("curves.npz")
    curves.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UsageError, match="--fresh"):
        train(settings(tmp_path, digits))


def test_a_measurement_is_made_once_for_each_identity(tmp_path, digits):
    made = []

    def measure():
        made.append(1)
        return {"runs": len(made)}

    given = settings(tmp_path, digits)
    first = kept_work.measured_once(given, 0, "part", measure, sizes=(1, 2))
    assert kept_work.measured_once(given, 0, "part", measure, sizes=(1, 2)) == first == {"runs": 1}
    assert kept_work.measured_once(given, 1, "part", measure, sizes=(1, 2)) == {"runs": 2}
    assert kept_work.measured_once(given, 0, "other", measure, sizes=(1, 2)) == {"runs": 3}
    assert kept_work.measured_once(given, 0, "part", measure, sizes=(1, 3)) == {"runs": 4}
    assert kept_work.measured_once(given, 0, "part", measure, sizes=(1, 2)) == {
        "runs": 5
    }  # the other settings' is gone


def test_who_asks_for_a_folder_that_another_is_in_waits(tmp_path):
    with kept_work.alone_in(tmp_path), open(tmp_path / "lock", "w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
