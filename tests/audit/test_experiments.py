"""The experiments' own faulty graphs and checkpoints are caught by the rule named for them; repaired ones are clean.

Nothing is rebuilt here: the experiments' functions run, with few steps, and each session that they close leaves a
checkpoint and its meta graph, where the experiment itself keeps none.
"""

from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple

import pytest

import bn_graph
from bn_graph.audit import audit
from bn_graph.tf1 import tf
from experiments import (
    checkpoint_variables,
    conditional_updates,
    control_dependencies,
    conv_normalizer,
    higher_learning_rates,
    missing_update_ops,
    model_solver,
    population_estimators,
    single_example,
    training_vs_trainable,
)
from experiments.demos import repaired_checkpoint, restore_demo
from experiments.machinery import checkpoint_child, harness, r2rt
from experiments.machinery.classifiers import layer_sizes

STEPS = 20  # enough to move weights, gamma, beta and every average
CLEAN: set[str] = set()
# Of a graph that only trains, and leaves no statistics for another to normalize by, the words of BN004 may be read either
# way: it has no inference output, and whatever is predicted with it, or from it, goes by the batch. Where an expectation
# says "- ONLY_TRAINS", both readings pass.
ONLY_TRAINS = {"BN004"}


class Recorded(NamedTuple):
    """A session that an experiment opened and closed.

    Attributes:
        graph: as the experiment left it.
        checkpoint: of the session's end, with a meta graph that has one Saver more, of all variables.
    """

    graph: tf.MetaGraphDef
    checkpoint: str


@pytest.fixture
def recorded(monkeypatch, tmp_path) -> list[Recorded]:
    """The sessions closed since the test began, in that order; those without values to save are left out."""
    sessions: list[Recorded] = []
    seen: list[tf.Graph] = []

    class RecordingSession(tf.Session):
        def close(self):
            with self.graph.as_default():
                if tf.global_variables() and self.graph not in seen:
                    seen.append(self.graph)
                    left = tf.train.export_meta_graph()
                    prefix = str(tmp_path / f"session{len(sessions)}" / "model")
                    with suppress(bn_graph.CheckpointError):  # of variables that nothing initialized
                        sessions.append(Recorded(left, bn_graph.save(tf.train.Saver(), self, prefix)))
            super().close()

    monkeypatch.setattr(tf, "Session", RecordingSession)
    return sessions


@pytest.fixture(scope="module")
def digits() -> bn_graph.Dataset:
    return bn_graph.load("digits")


@pytest.fixture
def settings(tmp_path, digits) -> harness.Settings:
    return harness.Settings("audited", "quick", digits, None, [0], STEPS, tmp_path, loop="feed")


@pytest.fixture
def weights(digits) -> list:
    sizes = (digits.train.images.shape[1], *single_example.HIDDEN_UNITS, digits.train.labels.shape[1])
    return bn_graph.normal_weights(sizes, 0)


def errors(graph, **options) -> set[str]:
    """The codes at error level; that any layer was found is asserted too, since of none there is nothing to find."""
    report = audit(graph, **options)
    assert report.layers, "no batch norm layer was found"
    return {finding.code for finding in report.errors}


def network_graph(normalizer, is_training: bool, weights) -> tf.Graph:
    with tf.Graph().as_default() as graph:
        bn_graph.build_graph(is_training, weights, normalizer=normalizer)
    return graph


# ---- single_example


@pytest.mark.parametrize("is_training", [True, False])
def test_batch_statistics_always_is_bn004_in_the_graph_of_either_mode(weights, is_training):
    # It makes no statistics, so there is nothing else to be wrong: no updates, no state, nothing to save.
    assert errors(network_graph(single_example.batch_statistics_always, is_training, weights)) == {"BN004"}


def test_the_checkpoint_of_the_faulty_network_is_bn004(settings, weights, recorded):
    single_example.batch_statistics_network(settings, 0, weights)
    (trained,) = recorded
    assert errors(trained.checkpoint) == {"BN004"}


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("form", [r2rt.documents_wrapper, single_example.wrapper])
def test_the_wrappers_are_clean_in_the_graph_of_either_mode(weights, form, is_training):
    assert errors(network_graph(form, is_training, weights)) == CLEAN


@pytest.mark.parametrize("form", [r2rt.documents_wrapper, single_example.wrapper])
def test_scoring_the_training_graph_as_the_documents_loop_does_is_bn004_and_bn005(weights, form):
    graph = network_graph(form, True, weights)
    assert errors(graph, outputs=["accuracy"]) == {"BN004", "BN005"}


def test_the_mended_network_is_clean_where_it_was_trained_and_where_it_predicts(settings, weights, recorded):
    checkpoint = single_example.train_repaired_network(settings, 0, weights, "wrapper")
    (trained,) = recorded
    assert errors(trained.checkpoint) == errors(checkpoint) == CLEAN
    assert errors(network_graph(single_example.wrapper, False, weights), checkpoint=checkpoint) == CLEAN


# ---- missing_update_ops


@pytest.mark.parametrize(("form", "expected"), [("without", {"BN001", "BN002"}), ("with", CLEAN)])
def test_a_training_without_its_update_ops_is_bn001_and_its_checkpoint_bn002(
    settings, monkeypatch, recorded, form, expected
):
    made = []

    def make_train_op(optimizer, loss, make=missing_update_ops.TRAIN_OPS[form]):
        made.append(make(optimizer, loss))
        return made[-1]

    monkeypatch.setitem(missing_update_ops.TRAIN_OPS, form, make_train_op)
    measured = missing_update_ops.train(settings, 0, form)
    assert measured["unmoved"] == ("BN002" in expected)
    (trained,) = recorded
    run = {"train_ops": [made[0].name]}
    assert errors(trained.checkpoint, **run) == expected
    assert errors(trained.graph, **run) == expected - {"BN002"}  # of values the graph alone knows nothing
    # `bn_graph.Model` has made a train op of its own there, which runs the updates, and which this experiment doesn't
    # run. The graph doesn't tell so; the checkpoint does.
    assert errors(trained.checkpoint) == expected - {"BN001"}


def test_the_articles_snippet_is_bn001_and_bn002_once_it_runs(recorded):
    attempts = missing_update_ops.snippet_step_by_step()
    assert attempts[-1]["outcome"].startswith("runs")
    assert errors(recorded[-1].checkpoint) == {"BN001", "BN002"}


def test_where_the_dependency_is_missing_no_update_is_above_the_train_op_and_that_is_bn001():
    counted = missing_update_ops.updates_in_the_graph()
    for form, make_train_op in missing_update_ops.TRAIN_OPS.items():
        with tf.Graph().as_default() as graph:
            loss = missing_update_ops.small_network()
            make_train_op(tf.train.GradientDescentOptimizer(0.1), loss)
        unreached = counted[f"updates_above_the_train_op_{form}"] == 0
        assert unreached == (form == "without")
        assert errors(graph) - ONLY_TRAINS == ({"BN001"} if unreached else CLEAN), form


@pytest.mark.parametrize(
    ("form", "expected"), [(repaired_checkpoint.detached, {"BN001"}), (repaired_checkpoint.attached, CLEAN)]
)
def test_the_network_of_the_mending_demo_is_bn001_with_detached_updates_and_clean_with_attached(
    weights, form, expected
):
    assert errors(network_graph(form, True, weights)) - ONLY_TRAINS == expected


# ---- conditional_updates


@pytest.mark.parametrize("form", conditional_updates.FORMS)
@pytest.mark.parametrize("kind", conditional_updates.KINDS)
def test_a_wrapper_is_bn005_exactly_where_running_it_for_inference_moves_its_statistics(
    monkeypatch, recorded, form, kind
):
    monkeypatch.setattr(conditional_updates, "TRAINING_STEPS", 3)
    monkeypatch.setattr(conditional_updates, "INFERENCE_RUNS", 2)
    measured = conditional_updates._measure(conditional_updates.FORMS[form], *conditional_updates.KINDS[kind], seed=0)
    if "error" in measured:
        pytest.skip(f"can't be built: {measured['error']}")
    assert measured["moved_at_inference"] == (form == "article")
    (layer,) = recorded
    assert errors(layer.checkpoint) == ({"BN005"} if measured["moved_at_inference"] else CLEAN)


# ---- checkpoint_variables


@pytest.mark.parametrize("saver", checkpoint_variables.SAVERS)
def test_a_checkpoint_of_the_trainables_is_bn003_and_bn006_and_those_of_the_other_savers_are_clean(
    digits, weights, tmp_path, saver
):
    with tf.Graph().as_default() as graph, tf.Session(config=bn_graph.session_config()) as session:
        x, y_, logits, train_op = checkpoint_child.training_network(weights)
        made = checkpoint_variables.SAVERS[saver](logits)
        session.run(tf.global_variables_initializer())
        for images, labels in (next(bn_graph.batches(digits.train, 60, seed=seed)) for seed in range(STEPS)):
            session.run(train_op, {x: images, y_: labels})
        prefix = made.save(session, str(tmp_path / "model"))
    saved = {name for name, _ in tf.train.list_variables(prefix)}
    left_out = not {f"bn1/moving_{kind}" for kind in ("mean", "variance")} <= saved
    assert left_out == (saver == checkpoint_variables.TRAINABLES)
    assert errors(prefix) - ONLY_TRAINS == ({"BN003", "BN006"} if left_out else CLEAN)
    assert errors(graph) == ({"BN003"} if left_out else CLEAN)  # the Saver is in the graph, what it wrote is not
    with tf.Graph().as_default() as inference:
        checkpoint_child.layers_network(False, weights)
    assert errors(inference, checkpoint=prefix) == ({"BN006"} if left_out else CLEAN)


def test_the_articles_filter_misses_statistics_of_other_names_which_is_bn003():
    missed = checkpoint_child.statistics_missed(checkpoint_variables.document_filter)
    assert missed["the article's own wrapper"]["missed"] and missed["EWMA helper"]["missed"]

    with tf.Graph().as_default() as article:
        inputs = tf.placeholder(tf.float32, [None, 3])
        conditional_updates.article_wrapper(inputs, tf.placeholder(tf.bool, []), "layer")
        tf.train.Saver(checkpoint_variables.document_filter())
    assert errors(article) == {"BN003", "BN005"}  # its own fault is still there

    with tf.Graph().as_default() as helped:
        images = tf.placeholder(tf.float32, [None, 4, 4, 3])
        trainer = tf.train.ExponentialMovingAverage(0.99)
        helper = bn_graph.ConvolutionalBatchNormalizer(3, 1e-3, trainer, True, name="bn")
        helper.get_assigner()
        helper.normalize(images, train=False)
        tf.train.Saver(checkpoint_variables.document_filter())
    assert errors(helped) == {"BN003"}


def test_r2rts_automatic_names_are_clean(settings, weights, recorded, tmp_path):
    prefix = checkpoint_variables.train_unnamed(settings, 0, tmp_path / "unnamed")
    assert errors(prefix) == CLEAN
    with tf.Graph().as_default() as inference:
        checkpoint_child.documents_names(False, weights)
    assert errors(inference, checkpoint=prefix) == CLEAN


# ---- restore_demo


def test_the_wrong_ways_to_restore_are_caught_and_the_right_way_is_clean(settings, weights, digits, recorded, tmp_path):
    prefix = single_example.train_repaired_network(settings, 0, weights, "wrapper")
    split = bn_graph.Split(digits.test.images[:2], digits.test.labels[:2])
    recorded.clear()
    predictions = restore_demo._predict_each_way(prefix, split)
    assert [isinstance(each, str) for each in predictions.values()] == [False, True, True, False]

    # Wrong 1 and wrong 2 raise, with nothing to save; the sessions that get through are the other three.
    right, saving_trainables, initialized = recorded
    assert errors(right.graph) == errors(right.checkpoint) == CLEAN
    # Restored with statistics by a Saver that knows them, and saved by one that doesn't: worth a warning.
    assert {finding.code for finding in audit(saving_trainables.graph).findings} == {"BN003"}
    # Restored from the trainables alone after the initializers: statistics of 0 and 1 beside trained weights.
    assert errors(initialized.graph) == {"BN003"}
    assert errors(initialized.checkpoint) == {"BN002"}

    trainables = restore_demo._save_trainables(prefix, split, str(tmp_path / "trainables"))
    inference = network_graph(bn_graph.batch_norm_wrapper, False, weights)
    assert errors(inference, checkpoint=trainables) == {"BN006"}
    assert errors(inference, checkpoint=prefix) == CLEAN


# ---- training_vs_trainable


@pytest.mark.parametrize("library", training_vs_trainable.GRAPH_LIBRARIES)
@pytest.mark.parametrize("trainable", [True, False])
def test_a_layer_of_inference_mode_is_clean_whatever_its_trainable_flag(recorded, library, trainable):
    build = training_vs_trainable.GRAPH_LIBRARIES[library]
    cell = training_vs_trainable.describe(training_vs_trainable.measure_cell(build, False, trainable))
    assert cell["normalizes_with"] == "moving"
    assert errors(recorded[-1].graph) == CLEAN


@pytest.mark.parametrize("library", [training_vs_trainable.FUSED, training_vs_trainable.NOT_FUSED])
def test_training_without_trainable_makes_no_updates_and_is_bn004(recorded, library):
    build = training_vs_trainable.GRAPH_LIBRARIES[library]
    cell = training_vs_trainable.describe(training_vs_trainable.measure_cell(build, True, False))
    assert cell["normalizes_with"] == "batch" and not cell["update_ops"]
    assert errors(recorded[-1].graph) == {"BN004"}


# ---- the others, which are right, or no batch norm at all


@pytest.mark.parametrize("order", [conv_normalizer.SUGGESTED, conv_normalizer.LIBRARY])
def test_the_convolutional_helper_is_clean_in_the_documents_order_and_in_the_librarys(settings, recorded, order):
    conv_normalizer.train(settings, 0, order)
    (trained,) = recorded
    assert len(audit(trained.checkpoint).layers) == len(conv_normalizer.CHANNELS)
    assert errors(trained.checkpoint) == CLEAN


@pytest.mark.parametrize("order", [conv_normalizer.SUGGESTED, conv_normalizer.INSIDE, conv_normalizer.LIBRARY])
@pytest.mark.parametrize("kind", conv_normalizer.KINDS)
def test_one_step_of_the_helper_is_clean_in_every_order_and_for_both_kinds_of_variable(order, kind):
    with tf.Graph().as_default() as graph:
        conv_normalizer.step_of(order, conv_normalizer.KINDS[kind], conv_normalizer.example())
    assert errors(graph) == CLEAN


def test_the_control_dependencies_experiment_has_no_batch_norm(monkeypatch, recorded):
    control_dependencies.count_sums(use_resource=True, sessions=1)
    report = audit(recorded[-1].checkpoint)
    assert (report.layers, report.findings) == ((), ())


def test_model_and_solver_are_clean_but_for_the_documents_redundant_biases(settings, recorded):
    with model_solver.trained_pair(settings, 0):
        pass
    (trained,) = recorded
    report = audit(trained.checkpoint)
    assert len(report.layers) == len(model_solver.HIDDEN_UNITS)  # those of the network without batch norm are none
    assert {finding.code for finding in report.findings} == {"BN101"}


def test_the_population_estimators_are_clean_in_training_and_in_the_scorers_pair_of_graphs(
    settings, monkeypatch, recorded
):
    monkeypatch.setattr(population_estimators, "FROZEN_BATCHES", 2)
    monkeypatch.setattr(population_estimators, "PASS_IMAGES", 300)
    population_estimators.measure_seed(settings, 0)
    scorer, training = recorded  # the scorer is opened last and closed first
    assert errors(training.checkpoint) == CLEAN
    assert errors(scorer.checkpoint) == CLEAN


def test_the_networks_of_higher_learning_rates_are_clean_also_where_the_layer_is_put_into_a_frozen_one(
    settings, recorded
):
    with ExitStack() as opened:
        higher_learning_rates.undo(settings, 0, partial(higher_learning_rates.build_once, settings, opened))
    identity, ordinary, put_in, plain = recorded  # the first is closed at once, the others when all is done
    assert audit(plain.checkpoint).layers == ()
    assert [errors(each.checkpoint) for each in (identity, put_in, ordinary)] == [CLEAN, CLEAN, CLEAN]


@pytest.mark.parametrize("optimizer", higher_learning_rates.RATES)
def test_the_swept_networks_are_clean(digits, optimizer):
    sizes = layer_sizes(digits, higher_learning_rates.HIDDEN_UNITS)
    with tf.Graph().as_default() as graph:
        higher_learning_rates.build(sizes, "with", optimizer)
    assert errors(graph) == CLEAN
