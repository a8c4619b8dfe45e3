"""The hook of a monitored session: a detached run is refused, stuck statistics are warned of, and all else is silent."""

import warnings

import numpy as np
import pytest

import bn_graph
import bn_graph.audit
from bn_graph.audit.report import Finding, Level, Report
from bn_graph.tf1 import legacy_layers, tf
from bn_graph.training.hook import StatisticsHook, StuckStatisticsWarning
from bn_graph.training.train_op import ConditionalUpdatesError

BATCH = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]], np.float32)
STEPS = 3


@pytest.fixture
def graph_of_kind(variable_kind):
    """A fresh default graph with a global step, for each kind of variable."""
    with tf.Graph().as_default() as fresh, tf.variable_scope("", use_resource=variable_kind == "resource"):
        tf.train.get_or_create_global_step()
        yield fresh


def layer(name="bn", training=True):
    return legacy_layers().batch_normalization(tf.constant(BATCH), training=training, momentum=0.5, name=name)


def minimize(y):
    loss = tf.reduce_mean(tf.square(y - 1.0))
    return tf.train.GradientDescentOptimizer(0.1).minimize(loss, global_step=tf.train.get_global_step())


def sound(y):
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        return minimize(y)


def stuck_layer(name="stuck"):
    """Statistics whose update ops assign the very values that they have."""
    with tf.variable_scope(name):
        mean = tf.get_variable("moving_mean", [2], initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable("moving_variance", [2], initializer=tf.ones_initializer(), trainable=False)
        gamma = tf.get_variable("gamma", [2], initializer=tf.ones_initializer())
    for variable in (mean, variance):
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign(variable, variable + 0.0).op)
    batch_mean, batch_variance = tf.nn.moments(tf.constant(BATCH), [0])
    return tf.nn.batch_normalization(tf.constant(BATCH), batch_mean, batch_variance, None, gamma, 1e-3)


class CountingHook(tf.train.SessionRunHook):
    """Counts the runs that a session begins."""

    runs = 0

    def before_run(self, run_context):
        self.runs += 1


def train(train_op, *hooks, steps=STEPS, **options):
    with tf.train.MonitoredTrainingSession(hooks=list(hooks), **options) as session:
        for _ in range(steps):
            session.run(train_op)


def said(train_op, *hooks, **options):
    """The warnings of the hook in a run of training."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(train_op, *hooks, **options)
    return [str(each.message) for each in caught if issubclass(each.category, StuckStatisticsWarning)]


def test_detached_updates_are_refused_before_the_first_step(graph_of_kind):
    train_op, counting = minimize(layer("bn1")), CountingHook()
    with pytest.raises(bn_graph.DetachedUpdatesError, match="bn1"):
        train(train_op, counting, StatisticsHook(train_op))
    assert counting.runs == 0


def test_a_train_op_may_be_given_by_name(plain_graph):
    train_op = minimize(layer("bn1"))
    with pytest.raises(bn_graph.DetachedUpdatesError, match="bn1"):
        train(train_op, StatisticsHook(train_op.name))


def test_without_a_train_op_the_audit_is_asked(plain_graph, monkeypatch):
    asked = []

    def audit(graph, *, select):
        asked.append((graph, select))
        return Report(
            "graph", "live graph", None, (), (Finding("BN001", Level.ERROR, ("bn1",), "Detached.", (), ""),), ()
        )

    monkeypatch.setattr(bn_graph.audit, "audit", audit, raising=False)
    train_op = minimize(layer("bn1"))
    with pytest.raises(bn_graph.DetachedUpdatesError, match="bn1"):
        train(train_op, StatisticsHook())
    assert asked == [(plain_graph, ("BN001", "BN010"))]


def test_without_a_train_op_the_audit_finds_it_in_the_graph(plain_graph):
    y = legacy_layers().batch_normalization(tf.random.normal([4, 2]), training=True, name="bn1")
    minimize(y)
    with pytest.raises(bn_graph.DetachedUpdatesError, match="BN001 bn1"):
        StatisticsHook().begin()


@pytest.mark.parametrize("cond_kind", ["v1"], indirect=True)
@pytest.mark.parametrize("named", [True, False], ids=["train op given", "train op looked for"])
def test_a_train_op_that_waits_for_updates_in_a_branch_is_refused(graph, named):
    w = tf.get_variable("w", [2])
    train_op = sound(tf.cond(tf.placeholder(tf.bool, []), lambda: layer("bn1"), lambda: w * BATCH))
    with pytest.raises(ConditionalUpdatesError, match="bn1"):
        StatisticsHook(train_op if named else None).begin()


def test_without_a_train_op_a_sound_graph_is_let_through(graph_of_kind):
    y = legacy_layers().batch_normalization(tf.random.normal([4, 2]), training=True, name="bn1")
    assert said(sound(y), StatisticsHook(steps=STEPS)) == []


@pytest.fixture
def clean_audit(monkeypatch):
    monkeypatch.setattr(
        bn_graph.audit, "audit", lambda graph, *, select: Report("graph", "live graph", None, (), (), ()), raising=False
    )


given = pytest.mark.parametrize("named", [True, False], ids=["train op given", "train op looked for"])


@given
def test_statistics_that_move_are_passed_in_silence(named, graph_of_kind, clean_audit):
    train_op = sound(layer())
    assert said(train_op, StatisticsHook(train_op if named else None, steps=STEPS)) == []


@given
def test_updates_in_place_are_passed_in_silence(named, graph_of_kind, clean_audit):
    train_op = minimize(bn_graph.batch_norm_wrapper(tf.constant(BATCH), True, name="bn"))
    assert said(train_op, StatisticsHook(train_op if named else None, steps=STEPS)) == []


@given
def test_stuck_statistics_are_warned_of_by_layer(named, graph_of_kind, clean_audit):
    train_op = sound(layer("moves") + stuck_layer("stuck"))
    (warning,) = said(train_op, StatisticsHook(train_op if named else None, steps=STEPS))
    assert "stuck (stuck/moving_mean, stuck/moving_variance)" in warning and "moves" not in warning
    assert f"After {STEPS} steps" in warning


def test_a_single_stuck_statistic_is_enough(graph_of_kind, clean_audit):
    y = layer()
    updates = tf.get_collection_ref(tf.GraphKeys.UPDATE_OPS)
    (variance,) = [variable for variable in tf.global_variables() if variable.op.name == "bn/moving_variance"]
    updates[1:] = [tf.assign(variance, variance + 0.0).op]
    (warning,) = said(sound(y), StatisticsHook(steps=STEPS))
    assert "bn (bn/moving_variance)" in warning


def test_the_warning_waits_for_its_step_and_comes_once(plain_graph):
    train_op = sound(stuck_layer())
    assert said(train_op, StatisticsHook(train_op, steps=STEPS + 1)) == []
    assert len(said(train_op, StatisticsHook(train_op, steps=STEPS), steps=3 * STEPS)) == 1


def test_a_frozen_layer_is_not_expected_to_move(graph_of_kind, clean_audit):
    train_op = sound(layer("moves") + layer("frozen", training=False))
    assert said(train_op, StatisticsHook(steps=STEPS)) == []


def test_a_frozen_layer_that_is_restored_is_not_expected_to_move(graph_of_kind, clean_audit, tmp_path):
    train_op = sound(layer("moves") + layer("frozen", training=False))
    tf.train.Saver()  # assigns every variable, from a file
    assert said(train_op, StatisticsHook(steps=STEPS), checkpoint_dir=str(tmp_path), save_summaries_steps=None) == []


@given
def test_a_graph_without_batch_norm_is_passed_in_silence(named, plain_graph, clean_audit):
    w = tf.get_variable("w", [2], initializer=tf.ones_initializer())
    train_op = minimize(w)
    assert said(train_op, StatisticsHook(train_op if named else None, steps=STEPS)) == []


def test_movement_counts_from_the_restored_values(graph_of_kind, tmp_path):
    train_op = sound(layer())
    options = {"checkpoint_dir": str(tmp_path), "save_summaries_steps": None}
    train(train_op, **options)
    mean = bn_graph.moving_statistics()[0]
    hook = StatisticsHook(train_op, steps=STEPS)
    with tf.train.MonitoredTrainingSession(hooks=[hook], **options) as session:
        expected = BATCH.mean(0) * (1 - 0.5**STEPS)  # momentum 0.5 from 0
        np.testing.assert_allclose(session.run(mean), expected, rtol=1e-6)
        np.testing.assert_array_equal(hook._start[0], session.run(mean))


def test_the_statistics_are_read_at_the_start_and_at_the_last_step_only(plain_graph):
    train_op = sound(layer())
    hook = StatisticsHook(train_op, steps=STEPS)
    read = []

    class Session:
        def run(self, fetches):
            read.append(steps)
            return [np.zeros(2, np.float32) for _ in fetches]

    class Context:
        session = Session()

    steps = 0  # the number of the step that is being run
    hook.begin()
    hook.after_create_session(Context.session, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StuckStatisticsWarning)
        for steps in range(1, 3 * STEPS):  # noqa: B007 (Session reads it)
            assert hook.before_run(Context) is None  # nothing is added to the step's own fetches
            hook.after_run(Context, None)
    assert read == [0, STEPS]


def test_nothing_is_added_to_the_graph(plain_graph, clean_audit):
    train_op = sound(layer())
    plain_graph.finalize()
    StatisticsHook(train_op).begin()
    StatisticsHook().begin()


def test_steps_must_be_at_least_one():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        StatisticsHook(steps=0)
