"""The training loop: what it updates, and that it can be stopped anywhere."""

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf

DIGITS = bn_graph.load("digits")
WEIGHTS = bn_graph.normal_weights([64, 20, 20, 10], seed=3)


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


def train(
    folder, steps: int, *, killed_at: int | None = None, normalizer=bn_graph.batch_norm_wrapper
) -> list[np.ndarray]:
    """The values of all variables after a run, which starts from what `folder` holds."""

    def progress(steps_left: range):
        for step in steps_left:
            if step == killed_at:
                raise KilledError
            yield step

    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, WEIGHTS, normalizer=normalizer)
        bn_graph.resume(session, folder)
        bn_graph.train(
            session,
            network,
            DIGITS.train,
            steps=steps,
            batch_size=60,
            seed=1,
            directory=folder,
            checkpoint_every=10,
            progress=progress,
        )
        return session.run(tf.global_variables())


@pytest.mark.parametrize("killed_at", [1, 9, 10, 11, 34])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, killed_at):
    uninterrupted = train(tmp_path / "whole", 35)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", 35, killed_at=killed_at)
    resumed = train(tmp_path / "killed", 35)
    for one, other in zip(uninterrupted, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(tmp_path, 12)
    second = train(tmp_path, 12, killed_at=0)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_moves_the_statistics_toward_each_batch():
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, WEIGHTS)
        bn_graph.resume(session, None)
        bn_graph.train(session, network, DIGITS.train, steps=1, batch_size=60, seed=1)
        moved = session.run(bn_graph.moving_statistics())
    images, _ = next(bn_graph.batches(DIGITS.train, 60, seed=1))
    z1 = images.astype(np.float64) @ WEIGHTS[0].astype(np.float64)
    np.testing.assert_allclose(moved[0], 0.001 * z1.mean(0), rtol=1e-5, atol=1e-7)  # float32 sums of 64 products
    np.testing.assert_allclose(moved[1], 0.999 + 0.001 * z1.var(0), rtol=1e-6)


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    train(tmp_path, 10)
    with pytest.raises(bn_graph.CheckpointError, match="b1"):
        train(tmp_path, 20, normalizer=None)


def test_weights_of_one_seed_are_equal_and_of_two_seeds_differ():
    for same, again in zip(WEIGHTS, bn_graph.normal_weights([64, 20, 20, 10], seed=3), strict=True):
        np.testing.assert_array_equal(same, again)
    assert not np.array_equal(WEIGHTS[0], bn_graph.normal_weights([64, 20, 20, 10], seed=4)[0])


def test_inference_graph_has_no_train_op_and_the_training_graphs_variables():
    names = []
    for is_training in (True, False):
        with tf.Graph().as_default():
            network = bn_graph.build_graph(is_training, WEIGHTS)
            assert (network.train_op is None) == (not is_training)
            names.append([variable.op.name for variable in tf.global_variables()])
    assert names[0] == names[1]
