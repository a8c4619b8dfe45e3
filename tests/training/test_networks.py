"""Model and Solver: whose updates a train op runs, what an evaluation leaves alone, and what is returned."""

import itertools

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from bn_graph.training.networks import biased_layer

DIGITS = bn_graph.load("digits")
IMAGES, LABELS = DIGITS.train.images[:40], DIGITS.train.labels[:40]


def by_tf_layers(inputs, units, is_training, kernel_initializer):
    net = legacy_layers().dense(inputs, units, use_bias=False, kernel_initializer=kernel_initializer)
    return legacy_layers().batch_normalization(net, training=is_training)


@pytest.fixture
def solver(plain_graph, start):
    model = bn_graph.Model("model", 64, 10, seed=0)
    return bn_graph.Solver(start(), model)


def statistics_of(name):
    return [variable for variable in bn_graph.moving_statistics() if variable.op.name.startswith(f"{name}/")]


def test_a_model_trains_as_the_same_network_of_tf_layers(plain_graph, start):
    models = [bn_graph.Model("ours", 64, 10, seed=1)]
    models += [bn_graph.Model("theirs", 64, 10, hidden_layer=by_tf_layers, seed=1)]
    session = start()
    solvers = [bn_graph.Solver(session, model) for model in models]
    for images, labels in itertools.islice(bn_graph.batches(DIGITS.train, 32, seed=0), 30):
        losses = [solver.train(images, labels) for solver in solvers]
        assert losses[0] == pytest.approx(
            losses[1], rel=1e-3
        )  # float32, and Adam divides small gradients by each other
    for ours, theirs in zip(statistics_of("ours"), statistics_of("theirs"), strict=True):
        np.testing.assert_allclose(*session.run([ours, theirs]), rtol=2e-3, atol=2e-3)


def test_models_of_one_seed_start_alike_and_their_layers_do_not(plain_graph, start):
    for name in ("one", "other"):
        bn_graph.Model(name, 10, 10, hidden_dims=[10], seed=4)
    bn_graph.Model("third", 10, 10, hidden_dims=[10], seed=5)
    kernels = start().run([variable for variable in tf.trainable_variables() if variable.op.name.endswith("/kernel")])
    np.testing.assert_array_equal(kernels[0], kernels[2])
    np.testing.assert_array_equal(kernels[1], kernels[3])
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[4])


@pytest.mark.parametrize("names", [("bn", "bn2"), ("net.1", "net_1"), ("left", "right")])
def test_training_one_model_leaves_the_other_alone_whatever_they_are_called(plain_graph, start, names):
    models = [bn_graph.Model(name, 64, 10, seed=0) for name in names]
    session = start()
    trained, other = ([v for v in tf.global_variables() if v.op.name.startswith(f"{name}/")] for name in names)
    before = session.run([trained, other])
    bn_graph.Solver(session, models[0]).train(IMAGES, LABELS)
    after = session.run([trained, other])
    assert not any(np.array_equal(*pair) for pair in zip(*(each[0][:4] for each in (before, after)), strict=True))
    for was, still in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(was, still)


def test_train_returns_the_loss_before_the_step(solver):
    before, _ = solver.evaluate(IMAGES, LABELS, is_training=True)
    assert solver.train(IMAGES, LABELS) == pytest.approx(before, rel=1e-6)
    after, _ = solver.evaluate(IMAGES, LABELS, is_training=True)
    assert after != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("is_training", [False, True])
def test_evaluating_moves_nothing(solver, is_training):
    solver.train(IMAGES, LABELS)
    before = solver.session.run(tf.global_variables())
    solver.evaluate(IMAGES, LABELS, 7, is_training=is_training)
    for was, still in zip(before, solver.session.run(tf.global_variables()), strict=True):
        np.testing.assert_array_equal(was, still)


def test_batches_with_a_smaller_last_one_give_what_all_at_once_gives(solver):
    solver.train(IMAGES, LABELS)
    at_once = solver.evaluate(IMAGES, LABELS)
    for batch_size in (1, 7, 39, 40, 1000):
        assert solver.evaluate(IMAGES, LABELS, batch_size) == pytest.approx(at_once, rel=1e-6)


@pytest.mark.parametrize(("examples", "batch_size"), [(0, None), (40, 0), (40, -3)])
def test_nothing_to_evaluate_is_an_error_and_not_a_nan(solver, examples, batch_size):
    with pytest.raises(ValueError, match="positive batch_size"):
        solver.evaluate(IMAGES[:examples], LABELS[:examples], batch_size)


def test_a_model_without_batch_norm_has_biases_and_no_statistics(plain_graph, start):
    model = bn_graph.Model("plain", 64, 10, hidden_dims=[5], hidden_layer=biased_layer)
    names = [variable.op.name for variable in tf.trainable_variables()]
    assert names == ["plain/layer0/kernel", "plain/layer0/bias", "plain/outputs/kernel", "plain/outputs/bias"]
    assert not bn_graph.moving_statistics()
    assert bn_graph.Solver(start(), model).train(IMAGES, LABELS) > 0


def test_a_name_can_be_had_once(plain_graph):
    bn_graph.Model("model", 4, 2)
    with pytest.raises(ValueError, match="already exists"):
        bn_graph.Model("model", 4, 2)


def test_is_training_must_be_fed(plain_graph, start):
    model = bn_graph.Model("model", 64, 10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must feed"):
        start().run(model.loss, {model.x: IMAGES, model.y_: LABELS})


def test_a_model_checks_under_both_kinds_of_variable_and_cond(graph, start):
    model = bn_graph.Model("model", 64, 10, hidden_dims=[8], seed=0)
    session = start()
    before = session.run(bn_graph.moving_statistics())
    bn_graph.Solver(session, model).train(IMAGES, LABELS)
    assert not any(
        np.array_equal(*pair) for pair in zip(before, session.run(bn_graph.moving_statistics()), strict=True)
    )
