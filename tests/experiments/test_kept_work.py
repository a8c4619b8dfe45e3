"""Work that is kept: taken up where a run was stopped, with the same numbers, and begun anew for other settings."""

import fcntl
import itertools
import json

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf
from experiments import deep_sigmoid
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


def test_kept_work_carries_its_seconds(tmp_path, digits, monkeypatch):
    clock = itertools.count(100.0, 10.0)
    monkeypatch.setattr(kept_work.time, "monotonic", lambda: next(clock))
    first, later = (settings(tmp_path, digits, seconds_kept={}) for _ in range(2))
    for given in (first, later):
        kept_work.measured_once(given, 0, "part", dict)
    assert list(first.seconds_kept.values()) == [0.0] and list(later.seconds_kept.values()) == [10.0]


def test_a_stopped_training_carries_the_seconds_up_to_its_last_checkpoint(tmp_path, digits):
    stopped, resumed, finished = (settings(tmp_path, digits, seconds_kept={}) for _ in range(3))
    with pytest.raises(KeyboardInterrupt):
        train(stopped, stop_at=9)  # the last checkpoint is that of step 5
    train(resumed)
    train(finished)
    (none,), (part,), (whole,) = (given.seconds_kept.values() for given in (stopped, resumed, finished))
    assert none == 0.0 < part < whole


def test_the_seconds_of_a_result_are_those_of_all_its_runs(tmp_path):
    run = ["--seed", "0", "1", "--steps", "5", "--output", str(tmp_path)]
    assert harness.main(deep_sigmoid, run) == 0
    kept = sorted(tmp_path.glob("deep_sigmoid/checkpoints/**/seconds.json"))
    for path in kept:
        path.write_text("1000.0")  # far more than the second run, which trains nothing, can take itself
    assert harness.main(deep_sigmoid, run) == 0
    seconds = json.loads((tmp_path / "deep_sigmoid" / "result.json").read_text())["seconds"]
    assert kept and 0 < seconds - 1000 * len(kept) < 1000
