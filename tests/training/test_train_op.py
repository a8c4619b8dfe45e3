"""Update ops: whose they are, that the train op runs them, and that one which doesn't is refused."""

import warnings

import numpy as np
import pytest
import tensorflow

import bn_graph
from bn_graph.checkpoints.variables import global_variables_by_name
from bn_graph.graphs import effects
from bn_graph.graphs.graph import build
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from bn_graph.training import train_op
from tests.conftest import USUAL_KINDS

UPDATES = tf.GraphKeys.UPDATE_OPS
BATCH = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]], np.float32)
NAN = np.full_like(BATCH, np.nan)
DECAY, RATE = 0.5, 0.1


@pytest.fixture
def graph_of_kind(variable_kind):
    """A fresh default graph for each kind of variable: for what has no `cond` in it."""
    with tf.Graph().as_default() as fresh, tf.variable_scope("", use_resource=variable_kind == "resource"):
        yield fresh


def wrapper_layer(x, training=True, name="bn", collection=UPDATES, **options):
    return bn_graph.batch_norm_wrapper(x, training, decay=DECAY, updates_collection=collection, name=name, **options)


def tf_layer(x, training=True, name="bn", **options):
    return legacy_layers().batch_normalization(x, training=training, momentum=DECAY, name=name, **options)


def placeholder() -> tf.Tensor:
    return tf.placeholder(tf.float32, [None, 2])


def loss_of(y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.square(y - 1.0))


def sgd() -> tf.train.Optimizer:
    return tf.train.GradientDescentOptimizer(RATE)


def variable(name: str) -> tf.Variable:
    return global_variables_by_name()[name]


def layers_of(entries) -> list[str]:
    """The layers that update ops are for, by the variables that they assign."""
    built = build(tf.get_default_graph())
    assigned = set().union(*(effects.assigned_by(built, entry) for entry in entries))
    return sorted({name.rpartition("/")[0] for name in assigned})


def run_and_see_changes(session: tf.Session, step, feed) -> set[str]:
    """The global variables that running `step` changed."""
    by_name = global_variables_by_name()
    before = session.run(by_name)
    session.run(step, feed)
    after = session.run(by_name)
    return {name for name in by_name if not np.array_equal(before[name], after[name])}


# --- collect ---


def test_a_scope_is_matched_component_by_component(plain_graph):
    x = placeholder()
    for name in ("bn", "bn2", "xbn", "b.n", "net/bn"):
        wrapper_layer(x, name=name)
    assert layers_of(train_op.collect("bn")) == ["bn"]
    assert layers_of(train_op.collect("bn/")) == ["bn"]
    assert layers_of(train_op.collect("net")) == ["net/bn"]
    assert layers_of(train_op.collect("b.n")) == ["b.n"]
    assert layers_of(train_op.collect(["bn2", "net"])) == ["bn2", "net/bn"]
    # What is avoided: the collection's own filter is a regex prefix.
    assert len(tf.get_collection(UPDATES, "bn")) > len(train_op.collect("bn"))


def test_no_scope_and_the_root_scope_are_all_each_once(plain_graph):
    wrapper_layer(placeholder(), name="a")
    wrapper_layer(placeholder(), name="b")
    entries = tf.get_collection(UPDATES)
    tf.add_to_collection(UPDATES, entries[0])
    assert train_op.collect() == entries
    assert train_op.collect("") == entries
    assert train_op.collect(tf.get_variable_scope()) == entries


def test_a_variable_scope_opened_twice_has_its_updates_whatever_their_names(plain_graph):
    with tf.variable_scope("net"):
        tf.get_variable("w", [2])
    with tf.variable_scope("net") as scope:
        y = wrapper_layer(placeholder())
    assert y.op.name.startswith("net_1/")  # the name scope is made unique, the variable scope is not
    assert layers_of(train_op.collect("net")) == ["net/bn"]
    assert layers_of(train_op.collect(scope)) == ["net/bn"]
    with pytest.raises(ValueError, match=r"scope 'net_1'\. There are: .*'net'"):
        train_op.collect("net_1")


@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_a_shared_layer_gives_the_updates_of_both_applications(graph_of_kind, layer):
    layer(placeholder())
    once = len(train_op.collect("bn"))
    with tf.variable_scope("", reuse=True):
        layer(placeholder())
    assert len(train_op.collect("bn")) == 2 * once
    assert layers_of(train_op.collect("bn")) == ["bn"]


def test_a_layer_object_is_taken_by_its_variables(plain_graph):
    layers = [legacy_layers().BatchNormalization(name=name) for name in ("bn", "bn_other")]
    for layer in layers:
        layer.apply(placeholder(), training=True)
    assert layers_of(train_op.collect(layers[0])) == ["bn"]
    assert layers_of(train_op.collect(layers)) == ["bn", "bn_other"]


def test_an_unknown_scope_is_refused_and_a_known_one_without_updates_is_empty(plain_graph):
    wrapper_layer(placeholder(), training=False, name="layer1/bn")
    assert train_op.collect("layer1") == []
    with pytest.raises(ValueError, match=r"scope 'layer_1'\. There are: 'layer1'"):
        train_op.collect("layer_1")
    with pytest.raises(ValueError, match="name scope 'tower_0'"):
        train_op.collect(name_scope="tower_0")


def test_an_empty_graph_has_no_scopes(plain_graph):
    assert train_op.collect() == []
    with pytest.raises(ValueError, match="no scopes at all"):
        train_op.collect("bn")


def test_another_collection_and_another_graph_can_be_asked(plain_graph):
    wrapper_layer(placeholder(), collection="mine")
    assert train_op.collect("bn") == []
    with tf.Graph().as_default():
        assert layers_in(plain_graph, train_op.collect("bn", collection="mine", graph=plain_graph)) == {"bn"}


def layers_in(graph, entries) -> set[str]:
    built = build(graph)
    return {name.rpartition("/")[0] for entry in entries for name in effects.assigned_by(built, entry)}


@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_one_towers_updates_run_alone(graph_of_kind, layer, start):
    towers = [placeholder() for _ in range(2)]
    for number, x in enumerate(towers):
        with tf.name_scope(f"tower_{number}"), tf.variable_scope("", reuse=number > 0):
            layer(x)
    updates = train_op.collect("bn", name_scope="tower_1")
    assert len(updates) * 2 == len(train_op.collect("bn"))
    session = start()
    session.run(updates, {towers[1]: BATCH})  # tower 0 is not even fed
    expected = 0.0 * DECAY + BATCH.mean(0) * (1 - DECAY)
    np.testing.assert_allclose(session.run(variable("bn/moving_mean")), expected, rtol=1e-6)


# --- train_op ---


@pytest.mark.parametrize("check_numerics", [False, True])
@pytest.mark.parametrize("flag_kind", ["bool", "tensor"])
@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_a_step_moves_statistics_and_parameters_and_inference_moves_nothing(
    graph, cond_kind, variable_kind, start, layer, flag_kind, check_numerics
):
    if layer is tf_layer and (flag_kind, cond_kind, variable_kind) == ("tensor", "v2", "ref"):
        pytest.skip("tf.layers can't assign a ref variable in a branch of cond v2: TypeError")
    x = placeholder()
    training = True if flag_kind == "bool" else tf.placeholder(tf.bool, [])
    feed = {x: BATCH} if training is True else {x: BATCH, training: True}
    y = layer(x, training)
    step = train_op.train_op(sgd(), loss_of(y), check_numerics=check_numerics)
    assert isinstance(step, tf.Operation)
    assert step.name == "train_op"
    train_op.check_train_op(step)
    session = start()
    assert run_and_see_changes(session, y, feed) == set()
    changed = run_and_see_changes(session, step, feed)
    assert changed == {"bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"}
    expected = 0.0 * DECAY + BATCH.mean(0) * (1 - DECAY)
    np.testing.assert_allclose(session.run(variable("bn/moving_mean")), expected, rtol=1e-6)
    # mean of (gamma·x̂ + beta − 1)² over 2 channels, at gamma 1, beta 0: its slope in each beta is −2/2
    np.testing.assert_allclose(session.run(variable("bn/beta")), [RATE, RATE], rtol=1e-5)
    if training is not True:
        assert run_and_see_changes(session, y, {x: BATCH, training: False}) == set()


@pytest.mark.parametrize("check_numerics", [False, True])
def test_parameters_are_assigned_after_the_updates(graph_of_kind, start, check_numerics):
    w, seen = tf.get_variable("w", [], initializer=tf.ones_initializer()), tf.get_variable("seen", [], trainable=False)
    # An update that notes what w is when it runs, and is slow to get there.
    chain = tf.ones([400, 400])
    for _ in range(20):
        chain = chain @ chain / 400.0
    with tf.control_dependencies([chain]):
        now = w.read_value() if hasattr(w, "handle") else tf.raw_ops.Add(x=w, y=0.0)
    tf.add_to_collection(UPDATES, tf.assign(seen, now))
    step = train_op.train_op(sgd(), tf.square(w), check_numerics=check_numerics)
    session = start()
    for _ in range(3):
        before = session.run(w)
        session.run(step)
        assert session.run(seen) == before
        np.testing.assert_allclose(session.run(w), before * (1 - 2 * RATE), rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [sgd, lambda: tf.train.AdamOptimizer(RATE)],
)
@pytest.mark.parametrize("flag_kind", ["bool", "tensor"])
@USUAL_KINDS
def test_a_loss_that_is_not_finite_raises_and_changes_no_variable(graph, start, optimizer, flag_kind):
    x = placeholder()
    training = True if flag_kind == "bool" else tf.placeholder(tf.bool, [])
    flags = {} if training is True else {training: True}
    y = wrapper_layer(wrapper_layer(x, training, "below") + 1.0, training)  # + 1: the layer below's outputs average 0
    step = train_op.train_op(
        optimizer(), loss_of(y), global_step=tf.train.get_or_create_global_step(), check_numerics=True
    )
    session = start()
    for bad in (NAN, np.full_like(BATCH, np.inf)):
        before = session.run(tf.global_variables())
        with pytest.raises(tf.errors.InvalidArgumentError, match="not finite; nothing was updated"):
            session.run(step, {x: bad, **flags})
        for now, then in zip(session.run(tf.global_variables()), before, strict=True):
            np.testing.assert_array_equal(now, then)
    changed = run_and_see_changes(session, step, {x: BATCH, **flags})
    assert changed == set(global_variables_by_name())
    assert session.run(tf.train.get_global_step()) == 1


def test_without_the_check_a_loss_that_is_not_finite_spoils_the_statistics(graph_of_kind, start):
    x = placeholder()
    step = train_op.train_op(sgd(), loss_of(wrapper_layer(x)))
    session = start()
    session.run(step, {x: NAN})
    assert np.isnan(session.run(variable("bn/moving_mean"))).all()


def test_the_check_holds_back_the_weights_where_there_are_no_updates(graph_of_kind, start):
    x, w = tf.placeholder(tf.float32, []), tf.get_variable("w", [], initializer=tf.ones_initializer())
    step = train_op.train_op(sgd(), w * x, check_numerics=True)
    session = start()
    with pytest.raises(tf.errors.InvalidArgumentError):
        session.run(step, {x: np.nan})
    assert session.run(w) == 1.0
    session.run(step, {x: 2.0})
    np.testing.assert_allclose(session.run(w), 1.0 - RATE * 2.0)


def test_an_update_in_a_loop_of_control_flow_v1_can_not_be_held_back(graph, cond_kind, variable_kind):
    if (cond_kind, variable_kind) == ("v2", "ref"):
        pytest.skip("a body of control flow v2 can't assign a ref variable")
    w, count = tf.get_variable("w", []), tf.get_variable("count", [], initializer=tf.zeros_initializer())

    def body(i):
        with tf.control_dependencies([tf.assign_add(count, 1.0)]):
            return tf.identity(i) + 1

    tf.add_to_collection(UPDATES, tf.while_loop(lambda i: i < 3, body, [tf.constant(0)]))
    if cond_kind == "v1":
        with pytest.raises(ValueError, match="in a while loop"):
            train_op.train_op(sgd(), w * w, check_numerics=True)
    else:
        train_op.train_op(sgd(), w * w, check_numerics=True)


def test_the_check_leaves_the_layers_own_update_ops_free_of_the_loss(graph_of_kind, start):
    x, target = placeholder(), placeholder()
    y = wrapper_layer(x)
    train_op.train_op(sgd(), loss_of(y - target), check_numerics=True)
    session = start()
    changed = run_and_see_changes(session, train_op.collect("bn"), {x: BATCH})  # target is not fed
    assert changed == {"bn/moving_mean", "bn/moving_variance"}


@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_checked_and_unchecked_steps_do_the_same(graph_of_kind, start, layer):
    x = placeholder()
    loss = loss_of(layer(x))
    steps = [train_op.train_op(sgd(), loss, check_numerics=check) for check in (False, True)]
    results = []
    for step in steps:
        session = start()
        session.run(step, {x: BATCH})
        results.append(session.run(tf.global_variables()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("flag_kind", ["bool", "tensor"])
def test_in_place_updates_run_by_themselves_and_can_not_wait_for_the_loss(graph, start, flag_kind):
    x = placeholder()
    training = True if flag_kind == "bool" else tf.placeholder(tf.bool, [])
    loss = loss_of(wrapper_layer(x, training, collection=None))
    with pytest.raises(ValueError, match=r"can't delay .*bn/moving_mean.*updates_collection"):
        train_op.train_op(sgd(), loss, check_numerics=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = train_op.train_op(sgd(), loss)
    train_op.check_train_op(step)
    session = start()
    feed = {x: BATCH} if training is True else {x: BATCH, training: True}
    assert run_and_see_changes(session, step, feed) >= {"bn/moving_mean", "bn/moving_variance"}


def test_scope_and_update_ops_exclude_each_other(plain_graph):
    loss = loss_of(wrapper_layer(placeholder()))
    with pytest.raises(ValueError, match="give one of them"):
        train_op.train_op(sgd(), loss, scope="bn", update_ops=[])
    with pytest.raises(ValueError, match="scope 'typo'"):
        train_op.train_op(sgd(), loss, scope="typo")


@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_too_few_update_ops_are_warned_of_by_layer(plain_graph, layer):
    loss = loss_of(layer(layer(placeholder(), name="one"), name="two"))
    with pytest.warns(UserWarning, match=r"goes through: two\. "):
        train_op.train_op(sgd(), loss, update_ops=train_op.collect("one"))
    with pytest.warns(UserWarning, match=r"goes through: one, two\. "):
        train_op.train_op(sgd(), loss, update_ops=[])
    with pytest.warns(UserWarning, match=r"goes through: one\. "):  # half of its updates are too few
        train_op.train_op(sgd(), loss, update_ops=train_op.collect("two") + train_op.collect("one")[:1])


def test_updates_in_a_collection_of_ones_own_are_missed_and_can_be_given(plain_graph):
    loss = loss_of(wrapper_layer(placeholder(), collection="mine"))
    with pytest.warns(UserWarning, match=r"goes through: bn\. "):
        train_op.train_op(sgd(), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_op.train_op(sgd(), loss, update_ops=train_op.collect(collection="mine"))


def test_layers_outside_the_scope_are_left_out_on_purpose(plain_graph):
    loss = loss_of(wrapper_layer(wrapper_layer(placeholder(), name="one"), name="two"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step = train_op.train_op(sgd(), loss, scope="one")
    with pytest.raises(train_op.DetachedUpdatesError, match=r"ops: two\. "):
        train_op.check_train_op(step)


def build_gan():
    """A generator and a discriminator that sees real and generated examples, each with one batch norm layer."""
    noise, real = placeholder(), placeholder()
    with tf.variable_scope("generator"):
        fake = wrapper_layer(noise * tf.get_variable("w", [2], initializer=tf.ones_initializer()))

    def discriminate(x, reuse):
        with tf.variable_scope("discriminator", reuse=reuse):
            return tf.reduce_mean(
                wrapper_layer(x) * tf.get_variable("w", [2], initializer=tf.constant_initializer([1.0, 2.0]))
            )

    on_real, on_fake = discriminate(real, False), discriminate(fake, True)
    own = {
        name: [v for v in tf.trainable_variables() if v.op.name.startswith(f"{name}/")]
        for name in ("generator", "discriminator")
    }
    return noise, real, tf.square(on_fake - 1.0), tf.square(on_real - 1.0) + tf.square(on_fake + 1.0), own


@pytest.mark.parametrize("check_numerics", [False, True])
def test_each_network_of_a_gan_moves_only_its_own_statistics(graph_of_kind, start, check_numerics):
    noise, real, generator_loss, discriminator_loss, own = build_gan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the other network's updates are left out on purpose
        generator, discriminator = (
            train_op.train_op(sgd(), loss, scope=name, var_list=own[name], check_numerics=check_numerics)
            for name, loss in (("generator", generator_loss), ("discriminator", discriminator_loss))
        )
    train_op.check_train_op([generator, discriminator])
    with pytest.raises(train_op.DetachedUpdatesError, match=r"not their update ops: discriminator/bn\. "):
        train_op.check_train_op(generator)
    session = start()
    feed = {noise: BATCH, real: BATCH * 2 + 1}
    for step, name in ((generator, "generator"), (discriminator, "discriminator")):
        changed = run_and_see_changes(session, step, feed)
        assert {n.split("/")[0] for n in changed} == {name}
        assert {f"{name}/bn/moving_mean", f"{name}/bn/moving_variance"} <= changed


def test_given_updates_of_the_network_that_is_trained_are_enough(plain_graph):
    _, _, generator_loss, _, own = build_gan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_op.train_op(sgd(), generator_loss, update_ops=train_op.collect("generator"), var_list=own["generator"])


@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_several_towers_train_with_the_updates_of_one(graph_of_kind, start, layer):
    towers, losses = [placeholder() for _ in range(2)], []
    for number, x in enumerate(towers):
        with tf.name_scope(f"tower_{number}"), tf.variable_scope("", reuse=number > 0):
            losses.append(loss_of(layer(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updates = train_op.collect(name_scope="tower_0")
        step = train_op.train_op(sgd(), tf.add_n(losses), update_ops=updates)
    train_op.check_train_op(step)
    session = start()
    session.run(step, dict(zip(towers, (BATCH, BATCH * 7), strict=True)))
    expected = 0.0 * DECAY + BATCH.mean(0) * (1 - DECAY)
    np.testing.assert_allclose(session.run(variable("bn/moving_mean")), expected, rtol=1e-6)


@pytest.mark.parametrize("check_numerics", [False, True])
def test_a_monitored_session_runs_it_in_a_finalized_graph(graph_of_kind, tmp_path, check_numerics):
    x = tf.constant(BATCH)
    step = train_op.train_op(
        tf.train.AdamOptimizer(RATE),
        loss_of(wrapper_layer(x)),
        global_step=tf.train.get_or_create_global_step(),
        check_numerics=check_numerics,
    )
    mean = variable("bn/moving_mean")
    with tf.train.MonitoredTrainingSession(
        checkpoint_dir=str(tmp_path), hooks=[tf.train.StopAtStepHook(3)], log_step_count_steps=None
    ) as session:
        while not session.should_stop():
            session.run(step)
    expected = np.zeros(2)
    for _ in range(3):
        expected = expected * DECAY + BATCH.mean(0) * (1 - DECAY)
    saved = tf.train.load_checkpoint(str(tmp_path))
    assert saved.get_tensor("global_step") == 3
    np.testing.assert_allclose(saved.get_tensor(mean.op.name), expected, rtol=1e-6)


# --- what create_train_op has ---


def two_weights():
    """A loss whose gradients are 3 and 4, of global norm 5, and a variable beside that has none."""
    a, b = (tf.get_variable(name, [], initializer=tf.ones_initializer()) for name in "ab")
    tf.get_variable("beside", [])
    return 3.0 * a + 4.0 * b


def test_gradients_are_transformed_before_they_are_applied(graph_of_kind, start):
    seen = []

    def clip(gradients, variables):
        seen.extend(variable.op.name for variable in variables)
        return tf.clip_by_global_norm(gradients, 1.0)[0]

    step = train_op.train_op(sgd(), two_weights(), transform_gradients=clip)
    session = start()
    session.run(step)
    assert seen == ["a", "b"]  # without the variable that has no gradient
    np.testing.assert_allclose(session.run(variable("a")), 1.0 - RATE * 3.0 / 5.0, rtol=1e-6)
    np.testing.assert_allclose(session.run(variable("b")), 1.0 - RATE * 4.0 / 5.0, rtol=1e-6)


@pytest.mark.parametrize("transform", [lambda g, v: tf.clip_by_global_norm(g, 1.0), lambda g, v: g[:1]])
def test_what_is_no_gradient_for_each_variable_is_refused(plain_graph, transform):
    with pytest.raises(ValueError, match=r"a list of 2 gradients.*take its \[0\]"):
        train_op.train_op(sgd(), two_weights(), transform_gradients=transform)


def test_a_loss_that_no_variable_has_a_gradient_of_is_the_optimizers_error(plain_graph):
    tf.get_variable("w", [])
    with pytest.raises(ValueError, match="No gradients provided"):
        train_op.train_op(sgd(), tf.constant(1.0), transform_gradients=lambda gradients, variables: gradients)


def test_the_graphs_global_step_counts_unless_told_otherwise(graph_of_kind, start):
    default, own = tf.train.get_or_create_global_step(), tf.get_variable("own", [], tf.int32, tf.zeros_initializer())
    loss = two_weights()
    weights = [v for v in tf.trainable_variables() if v.dtype.base_dtype.is_floating]
    steps = {
        "default": train_op.train_op(sgd(), loss, var_list=weights),
        "none": train_op.train_op(sgd(), loss, var_list=weights, global_step=None),
        "own": train_op.train_op(sgd(), loss, var_list=weights, global_step=own),
    }
    session = start()
    counts = []
    for step in steps.values():
        session.run(step)
        counts.append(session.run([default, own]))
    assert counts == [[1, 0], [1, 0], [1, 1]]


@pytest.mark.parametrize("by", ["the program", "another train op"])
def test_a_global_step_that_is_incremented_already_is_left_alone(graph_of_kind, start, by):
    count, loss = tf.train.get_or_create_global_step(), two_weights()
    if by == "the program":
        tf.assign_add(count, 1)
    else:
        train_op.train_op(sgd(), loss)
    steps = [train_op.train_op(sgd(), loss), train_op.train_op(sgd(), loss, global_step=count)]
    session = start()
    counts = []
    for step in steps:
        session.run(step)
        counts.append(session.run(count))
    assert counts == [0, 1]


def test_without_a_global_step_none_is_made(plain_graph):
    train_op.train_op(sgd(), two_weights())
    assert {v.op.name for v in tf.global_variables()} == {"a", "b", "beside"}


def test_the_step_is_in_the_collection_of_train_ops(plain_graph):
    loss = two_weights()
    steps = [train_op.train_op(sgd(), loss), train_op.train_op(sgd(), loss, return_loss=True)]
    assert set(steps) < set(tf.get_collection(tf.GraphKeys.TRAIN_OP))  # beside the optimizers' own ops


@pytest.mark.parametrize("check_numerics", [False, True])
def test_the_loss_of_the_step_can_be_returned_when_all_is_done(graph_of_kind, start, check_numerics):
    x = placeholder()
    w = tf.get_variable("w", [2], initializer=tf.ones_initializer())
    loss = loss_of(wrapper_layer(x) * w)
    step = train_op.train_op(sgd(), loss, return_loss=True, check_numerics=check_numerics)
    train_op.check_train_op(step)
    assert step.name == "train_op:0"
    session = start()
    expected = session.run(loss, {x: BATCH})
    before = session.run(tf.global_variables())
    np.testing.assert_array_equal(session.run(step, {x: BATCH}), expected)
    for then, now in zip(before, session.run(tf.global_variables()), strict=True):
        assert not np.array_equal(then, now)


# --- optimizers of Keras ---


def keras_optimizers():
    legacy_layers()  # skips nothing: says what is missing where there is no legacy Keras
    return tf.keras.optimizers


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_legacy_keras_optimizers_train_as_those_of_tf_train(name, start):
    results = []
    for kind in ("keras", "tf.train"):
        with tf.Graph().as_default(), tf.variable_scope("", use_resource=True):
            steps, x = tf.train.get_or_create_global_step(), placeholder()
            tf.get_variable("beside", [2])
            y = wrapper_layer(x)
            if kind == "keras":
                optimizer = getattr(keras_optimizers().legacy, name)(RATE, clipnorm=1e9)
            else:
                optimizer = {"SGD": tf.train.GradientDescentOptimizer, "Adam": tf.train.AdamOptimizer}[name](RATE)
            step = train_op.train_op(optimizer, loss_of(y))
            train_op.check_train_op(step)
            session = start()
            for _ in range(3):
                session.run(step, {x: BATCH})
            names = ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
            results.append(session.run([*map(variable, names), steps]))
    for keras, plain in zip(*results, strict=True):
        np.testing.assert_allclose(keras, plain, rtol=1e-5)  # Adam's epsilon is 1e-7 there, 1e-8 here
    assert results[0][-1] == 3


def test_legacy_keras_optimizers_do_not_take_ref_variables():
    with tf.Graph().as_default(), tf.variable_scope("", use_resource=False):
        optimizer, loss = keras_optimizers().legacy.SGD(RATE), two_weights()
        with pytest.raises(TypeError, match=r"ref variables: a, b, beside\. .*enable_resource_variables"):
            train_op.train_op(optimizer, loss)


@pytest.mark.parametrize("make", [lambda: tensorflow.keras.optimizers.SGD(RATE), lambda: "adam"])
def test_other_optimizers_are_refused_by_their_class(plain_graph, make):
    with pytest.raises(TypeError, match=r"of tf.train or of tf.keras.optimizers.legacy, got .*(SGD|str)"):
        train_op.train_op(make(), two_weights())


# --- update ops in branches ---


def in_a_branch(layer, wait=True):
    """A step on a network of which a branch has a layer; without `wait`, its update ops are not waited for."""
    x, use_layer = placeholder(), tf.placeholder(tf.bool, [], name="use_layer")
    h = x * tf.get_variable("w", [2], initializer=tf.ones_initializer())
    loss = loss_of(tf.cond(use_layer, lambda: layer(h), lambda: tf.identity(h)))
    with tf.control_dependencies(tf.get_collection(UPDATES) if wait else []):
        return x, use_layer, loss, sgd().minimize(loss, name="by_hand")


@pytest.mark.parametrize("cond_kind", ["v1"], indirect=True)
@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer, lambda x: slim.batch_norm(x, scope="bn")])
def test_updates_in_a_branch_that_the_step_waits_for_are_refused_for_such_a_step_trains_nothing(graph, layer, start):
    x, use_layer, loss, by_hand = in_a_branch(layer)
    names = r"bn \(in a tf.cond, where use_layer is True\)\..*updates_collection=None"
    for refused in (lambda: train_op.check_train_op(by_hand), lambda: train_op.train_op(sgd(), loss)):
        with pytest.raises(train_op.ConditionalUpdatesError, match=names):
            refused()
    session = start()
    assert run_and_see_changes(session, by_hand, {x: BATCH, use_layer: False}) == set()
    assert "w" in run_and_see_changes(session, by_hand, {x: BATCH, use_layer: True})


def test_updates_in_place_in_a_branch_train_whichever_is_taken(graph, start):
    x, use_layer, loss, _ = in_a_branch(lambda x: wrapper_layer(x, collection=None))
    step = train_op.train_op(sgd(), loss)
    train_op.check_train_op(step)
    session = start()
    assert run_and_see_changes(session, step, {x: BATCH, use_layer: False}) == {"w"}
    statistics = {"bn/moving_mean", "bn/moving_variance"}
    assert run_and_see_changes(session, step, {x: BATCH, use_layer: True}) >= statistics


@pytest.mark.parametrize("cond_kind", ["v1"], indirect=True)
def test_a_step_inside_the_same_branch_may_wait_for_its_updates(graph, start):
    x, use_layer = placeholder(), tf.placeholder(tf.bool, [])
    step = tf.cond(use_layer, lambda: train_op.train_op(sgd(), loss_of(wrapper_layer(x))), tf.no_op)
    train_op.check_train_op(step)
    session = start()
    trained = {"bn/moving_mean", "bn/moving_variance", "bn/beta", "bn/gamma"}
    assert run_and_see_changes(session, step, {x: BATCH, use_layer: True}) == trained
    assert run_and_see_changes(session, step, {x: BATCH, use_layer: False}) == set()


@pytest.mark.parametrize("cond_kind", ["v1"], indirect=True)
@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_updates_in_the_branch_of_the_training_mode_may_be_waited_for(graph, start, layer):
    x, training = placeholder(), tf.placeholder(tf.bool, [])

    def mode(value):
        with tf.variable_scope("", reuse=tf.AUTO_REUSE):
            return layer(x, value)

    step = train_op.train_op(sgd(), loss_of(tf.cond(training, lambda: mode(True), lambda: mode(False))))
    train_op.check_train_op(step)
    assert "bn/moving_mean" in run_and_see_changes(start(), step, {x: BATCH, training: True})


def test_a_step_that_does_not_wait_for_updates_in_a_branch_is_detached(plain_graph):
    *_, by_hand = in_a_branch(wrapper_layer, wait=False)
    with pytest.raises(train_op.DetachedUpdatesError, match=r"ops: bn\. "):
        train_op.check_train_op(by_hand)


def in_a_loop(layer):
    h = placeholder() * tf.get_variable("w", [2])

    def body(i, state):
        with tf.variable_scope("", reuse=tf.AUTO_REUSE):
            return i + 1, layer(state)

    return loss_of(tf.while_loop(lambda i, _: i < 3, body, [tf.constant(0), h])[1])


@pytest.mark.parametrize("cond_kind", ["v1"], indirect=True)
def test_updates_in_the_body_of_a_loop_are_refused(graph):
    loss = in_a_loop(wrapper_layer)
    with tf.control_dependencies(tf.get_collection(UPDATES)):
        by_hand = sgd().minimize(loss)
    for refused in (lambda: train_op.check_train_op(by_hand), lambda: train_op.train_op(sgd(), loss)):
        with pytest.raises(train_op.ConditionalUpdatesError, match=r"bn \(in the body of the tf.while_loop .*raises"):
            refused()


def test_updates_before_and_after_a_loop_or_in_place_within_may_be_waited_for(graph, cond_kind, variable_kind):
    if (cond_kind, variable_kind) == ("v2", "ref"):
        pytest.skip("a body of control flow v2 can't assign a ref variable")
    loss = in_a_loop(lambda x: wrapper_layer(x, collection=None))
    after = wrapper_layer(loss + placeholder(), name="after")
    elsewhere = tf.get_variable("elsewhere", [2])
    for each in (loss_of(after), loss_of(elsewhere)):
        train_op.check_train_op(train_op.train_op(sgd(), each))


@pytest.mark.parametrize("make", [lambda layer: in_a_branch(layer, wait=False)[2], in_a_loop])
def test_updates_in_a_branch_of_control_flow_v2_are_refused_by_name(make, cond_kind):
    if cond_kind == "v1":
        pytest.skip("control flow v1 has no graph of its own for a branch")
    with tf.Graph().as_default(), tf.variable_scope("", use_resource=True):
        loss = make(wrapper_layer)
        for refused in (
            lambda: train_op.train_op(sgd(), loss),
            lambda: train_op.train_op(sgd(), loss, update_ops=tf.get_collection(UPDATES)),
            lambda: train_op.collect("bn"),
        ):
            with pytest.raises(train_op.ConditionalUpdatesError, match=r"bn/AssignMovingAvg.*updates_collection=None"):
                refused()


# --- check_train_op ---


@pytest.mark.parametrize("flag_kind", ["bool", "tensor"])
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
@USUAL_KINDS
def test_a_train_op_without_the_updates_is_refused_by_layer(graph, layer, flag_kind, rank):
    training = True if flag_kind == "bool" else tf.placeholder(tf.bool, [])
    x = tf.placeholder(tf.float32, [None, 4, 5, 3] if rank == 4 else [None, 3])
    with tf.variable_scope("net"):
        y = layer(layer(x, training, "one"), training, "two")
    step = sgd().minimize(loss_of(y))
    with pytest.raises(train_op.DetachedUpdatesError, match=r"not their update ops: net/one, net/two\. "):
        train_op.check_train_op(step)
    with pytest.raises(ValueError, match="net/one, net/two"):
        train_op.check_train_op(step.name, graph=graph)
    with tf.control_dependencies(train_op.collect("net/one")):
        half = sgd().minimize(loss_of(y))
    with pytest.raises(train_op.DetachedUpdatesError, match=r"not their update ops: net/two\. "):
        train_op.check_train_op(half)
    train_op.check_train_op([half, *train_op.collect("net/two")])


def test_a_refused_train_op_indeed_leaves_the_statistics(graph_of_kind, start):
    x = placeholder()
    step = sgd().minimize(loss_of(wrapper_layer(x)))
    with pytest.raises(train_op.DetachedUpdatesError):
        train_op.check_train_op(step)
    assert run_and_see_changes(start(), step, {x: BATCH}) == {"bn/gamma", "bn/beta"}


def test_updates_that_stand_in_no_collection_are_missed_all_the_same(plain_graph):
    loss = loss_of(tf_layer(placeholder()))
    plain_graph.clear_collection(UPDATES)
    with pytest.raises(train_op.DetachedUpdatesError, match=r"ops: bn\. "):
        train_op.check_train_op(sgd().minimize(loss))


@pytest.mark.parametrize("zero_debias", [False, True])
def test_a_layer_made_by_hand_with_an_exponential_average_is_known_by_its_update_op(graph_of_kind, zero_debias, start):
    x = placeholder()
    with tf.variable_scope("hand"):
        mean, variance = tf.nn.moments(x, [0])
        average = tf.train.ExponentialMovingAverage(DECAY, zero_debias=zero_debias)
        tf.add_to_collection(UPDATES, average.apply([mean, variance]))
        beta, gamma = tf.get_variable("beta", [2]), tf.get_variable("gamma", [2])
        loss = loss_of(tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3))
    assert train_op.collect("hand") == tf.get_collection(UPDATES)
    with pytest.raises(train_op.DetachedUpdatesError, match=r"ops: hand/hand/moments\. "):
        train_op.check_train_op(sgd().minimize(loss))
    step = train_op.train_op(sgd(), loss, check_numerics=True)
    train_op.check_train_op(step)
    session = start()
    with pytest.raises(tf.errors.InvalidArgumentError):
        session.run(step, {x: NAN})
    session.run(step, {x: BATCH})
    expected = BATCH.mean(0) if zero_debias else 0.0 * DECAY + BATCH.mean(0) * (1 - DECAY)
    np.testing.assert_allclose(session.run(average.average(mean)), expected, rtol=1e-6)


@pytest.mark.parametrize("flag_kind", ["bool", "tensor"])
@pytest.mark.parametrize("option", [{"virtual_batch_size": 2}, {"renorm": True}])
@USUAL_KINDS
def test_layers_with_options_are_missed_too(graph, flag_kind, option):
    training = True if flag_kind == "bool" else tf.placeholder(tf.bool, [])
    loss = loss_of(wrapper_layer(placeholder(), training, **option))
    with pytest.raises(train_op.DetachedUpdatesError, match=r"ops: bn\. "):
        train_op.check_train_op(sgd().minimize(loss))
    train_op.check_train_op(train_op.train_op(sgd(), loss, check_numerics=True))


def test_a_number_shared_with_the_train_op_is_not_a_forward_pass(plain_graph):
    x = placeholder()
    rate = tf.placeholder(tf.float32, []) * 0.1
    w, other = tf.get_variable("w", [2]), tf.get_variable("elsewhere/moving_mean", [2], trainable=False)
    tf.assign_sub(other, (other.read_value() - tf.reduce_mean(x * 2.0, 0)) * rate)
    train_op.check_train_op(tf.train.GradientDescentOptimizer(rate).minimize(loss_of(x * w)))


def test_layers_that_the_train_op_does_not_go_through_are_not_complained_of(plain_graph):
    x = placeholder()
    with tf.variable_scope("trunk"):
        trunk = x * tf.get_variable("w", [2])
    with tf.variable_scope("other"):
        wrapper_layer(trunk)
        tf_layer(trunk, name="bn2")
    with tf.variable_scope("mine"):
        step = sgd().minimize(loss_of(wrapper_layer(trunk, collection=None)))
    train_op.check_train_op(step)


@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_training_through_an_inference_copy_of_a_layer_is_no_fault(graph_of_kind, layer):
    x = placeholder()
    w = tf.get_variable("w", [2])
    layer(x)
    with tf.variable_scope("", reuse=True):
        frozen = layer(x * w, training=False)
    train_op.check_train_op(sgd().minimize(loss_of(frozen), var_list=[w]))


@pytest.mark.parametrize("layer", [wrapper_layer, tf_layer])
def test_layers_built_for_inference_have_no_updates_to_miss(graph_of_kind, layer):
    step = sgd().minimize(loss_of(layer(placeholder(), training=False)))
    tf.global_variables_initializer()
    tf.train.Saver()
    tf.assign(variable("bn/moving_mean"), tf.placeholder(tf.float32, [2]))  # as a recalibration does
    train_op.check_train_op(step)


def test_one_channel_and_no_gamma_or_beta_are_told_apart_too(graph_of_kind):
    x = tf.placeholder(tf.float32, [None, 1])
    w = tf.get_variable("w", [1])
    tf_layer(x * w, name="elsewhere", center=False, scale=False)
    here = tf_layer(x * w, name="here", center=False, scale=False)
    with pytest.raises(train_op.DetachedUpdatesError, match=r"ops: here\. "):
        train_op.check_train_op(sgd().minimize(loss_of(here)))


def test_an_unknown_train_op_is_named(plain_graph):
    with pytest.raises(ValueError, match="no node named 'typo'"):
        train_op.check_train_op("typo")


def test_checking_adds_nothing_to_the_graph(plain_graph):
    step = train_op.train_op(sgd(), loss_of(wrapper_layer(placeholder())))
    plain_graph.finalize()
    train_op.check_train_op(step)
    train_op.collect("bn")
