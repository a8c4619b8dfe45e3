"""`batch_norm_wrapper`: what each mode normalizes with, what it updates, and what it refuses."""

import numpy as np
import pytest

from bn_graph.layers.averages import MOVING_STATISTICS, moving_statistics
from bn_graph.layers.batch_norm import batch_norm_wrapper
from bn_graph.tf1 import legacy_layers, tf
from tests import oracle
from tests.conftest import COND_KINDS, USUAL_KINDS, VARIABLE_KINDS

CHANNELS = 3
MEAN, VARIANCE = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 9.0])
GAMMA, BETA = np.array([2.0, -1.0, 0.5]), np.array([0.25, 3.0, -4.0])


def by_short_name():
    """The only layer's variables: gamma, beta, moving_mean, moving_variance."""
    return {variable.op.name.split("/")[-1]: variable for variable in tf.global_variables()}


def load(session, **values):
    for name, value in values.items():
        variable = by_short_name()[name]
        variable.load(np.asarray(value).astype(variable.dtype.base_dtype.as_numpy_dtype), session)


def load_all(session):
    load(session, moving_mean=MEAN, moving_variance=VARIANCE, gamma=GAMMA, beta=BETA)


def all_values(session):
    return session.run(tf.global_variables())


def assert_bit_identical(before, after):
    assert len(before) == len(after) > 0
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


def assert_statistics(session, expected, rtol=1e-6):
    for value, wanted in zip(session.run(moving_statistics()), expected, strict=True):
        np.testing.assert_allclose(value, np.broadcast_to(wanted, value.shape), rtol=rtol, atol=1e-7)


def assign_ops(graph):
    return {operation for operation in graph.get_operations() if "Assign" in operation.type}


# Each form of the flag: what is passed to the wrapper for a value, and the value that is fed (None: nothing is fed).
FLAGS = {
    "python bool": lambda value: (value, None),
    "numpy bool": lambda value: (np.bool_(value), None),
    "constant": lambda value: (tf.constant(value), None),
    "placeholder": lambda value: (tf.placeholder(tf.bool, []), value),
    "placeholder of unknown shape": lambda value: (tf.placeholder(tf.bool), value),
    "default left alone": lambda value: (tf.placeholder_with_default(value, []), None),
    "default overruled": lambda value: (tf.placeholder_with_default(not value, []), value),
}
# The two that take different ways through the layer.
TWO_FLAGS = pytest.mark.parametrize("form", ["python bool", "placeholder"])


def flag_and_feed(form, value):
    flag, fed = FLAGS[form](value)
    return flag, {} if fed is None else {flag: fed}


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FLAGS)
def test_training_normalizes_by_the_batch_and_moves_the_statistics(graph, form, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = flag_and_feed(form, True)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.75)
    session, batch = start(), random.normal(3.0, 2.0, (6, CHANNELS)).astype(np.float32)
    load(session, gamma=GAMMA, beta=BETA)

    got = session.run(outputs, {inputs: batch, **feed})
    expected = oracle.normalized(batch, *oracle.statistics(batch), GAMMA, BETA)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    assert_statistics(session, oracle.moving([batch], 0.75))


@pytest.mark.parametrize("form", FLAGS)
def test_inference_normalizes_by_the_statistics_and_leaves_them_bit_identical(graph, form, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = flag_and_feed(form, False)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.75)
    session, batch = start(), random.normal(3.0, 2.0, (6, CHANNELS)).astype(np.float32)
    load_all(session)
    before = all_values(session)

    got = session.run(outputs, {inputs: batch, **feed})
    np.testing.assert_allclose(got, oracle.normalized(batch, MEAN, VARIANCE, GAMMA, BETA), rtol=1e-6, atol=1e-6)
    assert_bit_identical(before, all_values(session))


def test_inference_after_training_leaves_every_statistic_bit_identical(graph, start, random):
    inputs, flag = tf.placeholder(tf.float32, [None, CHANNELS]), tf.placeholder(tf.bool, [])
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5)
    session, batches = start(), [random.normal(3.0, 2.0, (4, CHANNELS)).astype(np.float32) for _ in range(3)]
    for batch in batches:
        session.run(outputs, {inputs: batch, flag: True})
    before = all_values(session)
    assert_statistics(session, oracle.moving(batches, 0.5))

    for batch in batches:
        got = session.run(outputs, {inputs: batch, flag: False})
        expected = oracle.normalized(batch, *oracle.moving(batches, 0.5))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
        assert_bit_identical(before, all_values(session))

    more = random.normal(size=(4, CHANNELS)).astype(np.float32)
    session.run(outputs, {inputs: more, flag: True})
    assert_statistics(session, oracle.moving([*batches, more], 0.5))


@TWO_FLAGS
def test_one_example_at_a_time_gets_at_inference_what_it_gets_in_a_batch(plain_graph, form, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = flag_and_feed(form, False)
    outputs = batch_norm_wrapper(inputs, flag)
    session, batch = start(), random.normal(size=(5, CHANNELS))
    load_all(session)
    together = session.run(outputs, {inputs: batch, **feed})
    alone = [session.run(outputs, {inputs: batch[i : i + 1], **feed}) for i in range(5)]
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=1e-6, atol=1e-6)


@TWO_FLAGS
def test_an_empty_batch_at_inference_gives_empty_outputs(plain_graph, form, start):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = flag_and_feed(form, False)
    outputs = batch_norm_wrapper(inputs, flag)
    session = start()
    before = all_values(session)
    assert session.run(outputs, {inputs: np.zeros((0, CHANNELS)), **feed}).shape == (0, CHANNELS)
    assert_bit_identical(before, all_values(session))


@pytest.mark.parametrize("form", ["python bool", "numpy bool", "constant"])
@pytest.mark.parametrize("key", [None, tf.GraphKeys.UPDATE_OPS])
@VARIABLE_KINDS
def test_a_flag_known_to_be_false_makes_no_assign_op_but_initializers(graph, form, key):
    flag, _ = flag_and_feed(form, False)
    batch_norm_wrapper(tf.placeholder(tf.float32, [None, CHANNELS]), flag, updates_collection=key)
    assert assign_ops(graph) == {variable.initializer for variable in tf.global_variables()}
    assert tf.get_collection(tf.GraphKeys.UPDATE_OPS) == []
    assert list(graph._functions) == []  # no branch of a cond v2 hides one


# --- shapes and dtypes ------------------------------------------------------------------------------------------------

SHAPES_AND_AXES = [
    ((5, 3), -1),
    ((3, 5), 0),
    ((5, 3), 1),
    ((4, 5, 3), -1),
    ((4, 3, 5), -2),
    ((2, 3, 4, 5), 1),
    ((3, 2, 4, 5), 0),
    ((2, 2, 2, 4, 3), -1),
    ((2, 3, 2, 2, 4), 1),
]
KNOWN = {
    "everything": lambda shape, axis: list(shape),
    "all but the batch": lambda shape, axis: [None if i == 0 != axis % len(shape) else n for i, n in enumerate(shape)],
    "the channels only": lambda shape, axis: [n if i == axis % len(shape) else None for i, n in enumerate(shape)],
}


@pytest.mark.parametrize(
    ("form", "is_training"), [("python bool", True), ("placeholder", True), ("placeholder", False)]
)
@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
def test_every_rank_axis_and_partly_known_shape(plain_graph, shape, axis, known, form, is_training, start, random):
    inputs = tf.placeholder(tf.float32, KNOWN[known](shape, axis))
    flag, feed = flag_and_feed(form, is_training)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5, axis=axis)
    assert outputs.shape.as_list() == inputs.shape.as_list()
    session, batch = start(), random.normal(3.0, 2.0, shape).astype(np.float32)
    load(session, gamma=GAMMA, beta=BETA)
    before = session.run(moving_statistics())

    got = session.run(outputs, {inputs: batch, **feed})
    statistics = oracle.statistics(batch, axis) if is_training else (0.0, 1.0)
    expected = oracle.normalized(batch, *statistics, GAMMA, BETA, axis=axis)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    if is_training:
        assert_statistics(session, oracle.moving([batch], 0.5, axis))
    else:
        assert_bit_identical(before, session.run(moving_statistics()))


@TWO_FLAGS
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "kept_in", "rtol"),
    [
        (tf.float16, tf.float32, 2.0**-11 + 1e-6),  # computed in float32, then rounded to 11 significant bits
        (tf.bfloat16, tf.float32, 2.0**-8 + 1e-6),  # the same, to 8 significant bits
        (tf.float32, tf.float32, 1e-6),
        (tf.float64, tf.float64, 1e-6),
    ],
)
def test_every_dtype(plain_graph, dtype, kept_in, rtol, form, is_training, start, random):
    inputs = tf.placeholder(dtype, [None, CHANNELS])
    flag, feed = flag_and_feed(form, is_training)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5)
    assert outputs.dtype == dtype
    assert [variable.dtype.base_dtype for variable in tf.global_variables()] == [kept_in] * 4

    session, batch = start(), random.normal(3.0, 2.0, (6, CHANNELS)).astype(dtype.as_numpy_dtype)
    load_all(session)
    before = all_values(session)
    got = session.run(outputs, {inputs: batch, **feed}).astype(np.float64)
    statistics = oracle.statistics(batch) if is_training else (MEAN, VARIANCE)
    # atol: near 0, where γ·x̂ and β cancel, a float32's error is no longer relative to the result.
    np.testing.assert_allclose(got, oracle.normalized(batch, *statistics, GAMMA, BETA), rtol=rtol, atol=1e-6)
    if is_training:
        batch_mean, batch_variance = oracle.statistics(batch)
        assert_statistics(session, (MEAN * 0.5 + batch_mean * 0.5, VARIANCE * 0.5 + batch_variance * 0.5))
    else:
        assert_bit_identical(before, all_values(session))


def test_inputs_may_be_an_array(plain_graph, start, random):
    batch = random.normal(size=(4, CHANNELS))
    outputs = batch_norm_wrapper(batch, True)
    expected = oracle.normalized(batch, *oracle.statistics(batch))
    np.testing.assert_allclose(start().run(outputs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 0.5])
@TWO_FLAGS
def test_epsilon_is_added_to_the_variance_inside_the_root(plain_graph, epsilon, form, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    flag, feed = flag_and_feed(form, True)
    batch = random.normal(scale=0.1, size=(4, CHANNELS))
    outputs = batch_norm_wrapper(inputs, flag, epsilon=epsilon)
    expected = oracle.normalized(batch, *oracle.statistics(batch), epsilon=epsilon)
    np.testing.assert_allclose(start().run(outputs, {inputs: batch, **feed}), expected, rtol=1e-6)


# --- variables --------------------------------------------------------------------------------------------------------


@VARIABLE_KINDS
def test_variables_have_these_names_shapes_kinds_and_collections(graph, variable_kind):
    batch_norm_wrapper(tf.placeholder(tf.float32, [None, CHANNELS]), True, name="bn1")
    variables = tf.global_variables()
    names = ["bn1/gamma", "bn1/beta", "bn1/moving_mean", "bn1/moving_variance"]
    assert [variable.op.name for variable in variables] == names
    assert [variable.shape.as_list() for variable in variables] == [[CHANNELS]] * 4
    assert [variable.dtype != variable.dtype.base_dtype for variable in variables] == [variable_kind == "ref"] * 4
    assert [variable.op.name for variable in tf.trainable_variables()] == names[:2]
    assert graph.get_collection(MOVING_STATISTICS) == names[2:]
    assert [variable.op.name for variable in moving_statistics()] == names[2:]


def _described(build):
    with tf.Graph().as_default():
        build()
        trainable = [variable.op.name for variable in tf.trainable_variables()]
        described = [
            (variable.op.name, variable.shape, variable.dtype.base_dtype) for variable in tf.global_variables()
        ]
        return described, trainable


@pytest.mark.filterwarnings("ignore:.*tf.layers.batch_normalization. is deprecated:UserWarning")
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
@pytest.mark.parametrize("names", [["bn1", "bn2"], [None, None]])
def test_variables_are_those_of_tf_layers(dtype, names):
    def ours():
        for name in names:
            batch_norm_wrapper(tf.zeros([2, 5, CHANNELS], dtype), True, axis=1, name=name)

    def theirs():
        for name in names:
            legacy_layers().batch_normalization(tf.zeros([2, 5, CHANNELS], dtype), training=True, axis=1, name=name)

    assert _described(ours) == _described(theirs)


@pytest.mark.filterwarnings("ignore:.*tf.layers.batch_normalization. is deprecated:UserWarning")
def test_outputs_and_statistics_are_those_of_tf_layers_not_fused(plain_graph, start, random):
    inputs, flag = tf.placeholder(tf.float64, [None, CHANNELS]), tf.placeholder(tf.bool, [])
    ours = batch_norm_wrapper(inputs, flag, decay=0.9, name="ours")
    theirs = legacy_layers().batch_normalization(inputs, training=flag, momentum=0.9, name="theirs")
    session = start()
    for is_training in (True, True, False):
        feed = {inputs: random.normal(3.0, 2.0, (4, CHANNELS)), flag: is_training}
        (mine, other), _ = session.run([[ours, theirs], tf.get_collection(tf.GraphKeys.UPDATE_OPS)], feed)
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)
        statistics = session.run(moving_statistics())
        np.testing.assert_allclose(statistics[:2], statistics[2:], rtol=1e-6)


def test_two_layers_have_statistics_of_their_own(plain_graph, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    flag = tf.placeholder(tf.bool, [])
    first = batch_norm_wrapper(inputs, flag, decay=0.5)
    second = batch_norm_wrapper(first * 3.0 + 7.0, flag, decay=0.25)
    assert len(moving_statistics()) == 4

    session, batch = start(), random.normal(-5.0, 2.0, (4, CHANNELS))
    session.run(second, {inputs: batch, flag: True})
    between = oracle.normalized(batch, *oracle.statistics(batch)) * 3.0 + 7.0
    assert_statistics(session, [*oracle.moving([batch], 0.5), *oracle.moving([between], 0.25)])


def test_running_one_layer_leaves_the_others_statistics_alone(plain_graph, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    first = batch_norm_wrapper(inputs, True, decay=0.5)
    batch_norm_wrapper(inputs, True, decay=0.5)
    session, batch = start(), random.normal(size=(4, CHANNELS))
    session.run(first, {inputs: batch})
    assert_statistics(session, [*oracle.moving([batch], 0.5), *oracle.moving([], 0.5)])


@pytest.mark.parametrize("name", ["bn", None])
def test_a_reusing_scope_shares_one_set_of_variables(plain_graph, name, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    outputs = []
    for is_training, reuse in ((True, False), (False, True)):
        with tf.variable_scope("model", reuse=reuse):
            outputs.append(batch_norm_wrapper(inputs, is_training, decay=0.5, name=name))
    assert len(tf.global_variables()) == 4
    assert len(plain_graph.get_collection(MOVING_STATISTICS)) == 2

    session, batch = start(), random.normal(3.0, 2.0, (4, CHANNELS))
    session.run(outputs[0], {inputs: batch})
    before = all_values(session)
    got = session.run(outputs[1], {inputs: batch})
    np.testing.assert_allclose(got, oracle.normalized(batch, *oracle.moving([batch], 0.5)), rtol=1e-6)
    assert_bit_identical(before, all_values(session))


# --- updates ----------------------------------------------------------------------------------------------------------


@TWO_FLAGS
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999, 1.0])
def test_training_steps_follow_the_recursion(plain_graph, decay, form, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    flag, feed = flag_and_feed(form, True)
    outputs = batch_norm_wrapper(inputs, flag, decay=decay)
    session, batches = start(), [random.normal(3.0, 2.0, (size, CHANNELS)) for size in (4, 2, 7)]
    for step, batch in enumerate(batches, 1):
        session.run(outputs, {inputs: batch, **feed})
        assert_statistics(session, oracle.moving(batches[:step], decay))


def test_decay_of_zero_keeps_the_last_batch_only_and_decay_of_one_keeps_the_start(plain_graph, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    outputs = [batch_norm_wrapper(inputs, True, decay=decay) for decay in (0, 1)]
    session, batches = start(), [random.normal(3.0, 2.0, (4, CHANNELS)) for _ in range(3)]
    start_values = session.run(moving_statistics()[2:])
    for batch in batches:
        session.run(outputs, {inputs: batch})
    assert_statistics(session, [*oracle.statistics(batches[-1]), 0.0, 1.0])
    assert_bit_identical(start_values, session.run(moving_statistics()[2:]))


@TWO_FLAGS
def test_updates_in_place_run_with_whatever_is_computed_from_the_outputs(graph, form, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    flag, feed = flag_and_feed(form, True)
    loss = tf.reduce_sum(batch_norm_wrapper(inputs, flag, decay=0.5) ** 2)
    train = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
    session, batch = start(), random.normal(3.0, 2.0, (4, CHANNELS))
    session.run(loss, {inputs: batch, **feed})
    assert_statistics(session, oracle.moving([batch], 0.5))
    session.run(train, {inputs: batch, **feed})
    assert_statistics(session, oracle.moving([batch] * 2, 0.5))


@TWO_FLAGS
@pytest.mark.parametrize("key", [tf.GraphKeys.UPDATE_OPS, "my_updates"])
@USUAL_KINDS
def test_with_a_collection_only_its_update_op_moves_the_statistics(graph, key, form, start, random):
    inputs = tf.placeholder(tf.float64, [None, CHANNELS])
    flag, feed = flag_and_feed(form, True)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5, updates_collection=key)
    updates = tf.get_collection(key)
    assert len(updates) == 2  # the mean's and the variance's, as tf.layers has it
    assert all(isinstance(update, tf.Operation) for update in updates)
    if key != tf.GraphKeys.UPDATE_OPS:
        assert tf.get_collection(tf.GraphKeys.UPDATE_OPS) == []

    session, batches = start(), [random.normal(3.0, 2.0, (4, CHANNELS)) for _ in range(3)]
    before = all_values(session)
    for step, batch in enumerate(batches, 1):
        got = session.run(outputs, {inputs: batch, **feed})
        np.testing.assert_allclose(got, oracle.normalized(batch, *oracle.statistics(batch)), rtol=1e-6, atol=1e-6)
        assert_bit_identical(before, all_values(session))
        session.run(updates, {inputs: batch, **feed})
        assert_statistics(session, oracle.moving(batches[:step], 0.5))
        before = all_values(session)


def test_an_update_op_whose_flag_is_fed_false_moves_nothing(graph, start, random):
    inputs, flag = tf.placeholder(tf.float64, [None, CHANNELS]), tf.placeholder(tf.bool, [])
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5, updates_collection=tf.GraphKeys.UPDATE_OPS)
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    session, batch = start(), random.normal(3.0, 2.0, (4, CHANNELS))
    load_all(session)
    before = all_values(session)
    session.run([updates, outputs], {inputs: batch, flag: False})
    session.run(updates, {inputs: batch, flag: False})
    assert_bit_identical(before, all_values(session))


@pytest.mark.parametrize("key", [None, tf.GraphKeys.UPDATE_OPS])
def test_a_flag_fed_false_does_not_even_assign_the_statistics_to_themselves(graph, key, start, random):
    # ∞ tells: a step of (∞ − ∞)·(1 − decay) from an update outside the branch would make it NaN.
    inputs, flag = tf.placeholder(tf.float64, [None, CHANNELS]), tf.placeholder(tf.bool, [])
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5, updates_collection=key)
    session = start()
    load(session, moving_mean=[np.inf, -np.inf, 1.0], moving_variance=[np.inf, 1.0, 1.0])
    before = all_values(session)
    session.run([outputs, tf.get_collection(tf.GraphKeys.UPDATE_OPS)], {inputs: np.ones((4, CHANNELS)), flag: False})
    assert_bit_identical(before, all_values(session))


def test_updates_in_place_add_nothing_to_the_collection_of_update_ops(plain_graph):
    batch_norm_wrapper(tf.placeholder(tf.float32, [None, CHANNELS]), True)
    batch_norm_wrapper(tf.placeholder(tf.float32, [None, CHANNELS]), tf.placeholder(tf.bool, []))
    assert tf.get_collection(tf.GraphKeys.UPDATE_OPS) == []


OPTIONS = {
    "exponential": {},
    "cumulative": {"average": "cumulative"},
    "zero debias": {"zero_debias": True},
    "renorm": {"renorm": True},
}


def looped(flag, dependent, **options):
    """The outputs of three turns of a loop on the rows 2 and 6: by way of the turn before, or in turns of their own."""
    inputs = tf.constant([[2.0], [6.0]], tf.float64)
    batch_norm_wrapper(inputs, False, name="bn", **options)  # makes the variables before the loop

    def body(step, previous):
        batch = inputs + 0.0 * previous if dependent else inputs
        with tf.variable_scope("", reuse=True):
            return step + 1, batch_norm_wrapper(batch, flag, decay=0.5, name="bn", **options)

    turns = {} if dependent else {"parallel_iterations": 1}
    return tf.while_loop(lambda step, _: step < 3, body, [0, inputs], **turns)


@COND_KINDS  # a loop's body can't assign a ref variable
@TWO_FLAGS
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("dependent", [True, False])
def test_each_turn_of_a_while_loop_updates_after_the_one_before(graph, dependent, form, is_training):
    flag, feed = flag_and_feed(form, is_training)
    fetches = looped(flag, dependent)
    batch = np.array([[2.0], [6.0]])
    expected = oracle.moving([batch] * 3 if is_training else [], 0.5)
    initialize = tf.global_variables_initializer()
    with tf.Session() as session:  # with threads as they come: one thread would hide a race
        for _ in range(100):
            session.run(initialize)
            turns, outputs = session.run(fetches, feed)
            assert turns == 3
            assert_statistics(session, expected)
    statistics = oracle.statistics(batch) if is_training else (0.0, 1.0)
    np.testing.assert_allclose(outputs, oracle.normalized(batch, *statistics), rtol=1e-6)


@COND_KINDS
@pytest.mark.parametrize("option", OPTIONS)
def test_every_average_in_a_while_loop_is_what_three_steps_give(graph, option):
    fetches = looped(True, True, **OPTIONS[option])
    with tf.variable_scope("steps"):
        step = batch_norm_wrapper(tf.constant([[2.0], [6.0]], tf.float64), True, decay=0.5, **OPTIONS[option])
    initialize = tf.global_variables_initializer()
    with tf.Session() as session:
        for _ in range(10):
            session.run(initialize)
            session.run(fetches)
            for _ in range(3):
                session.run(step)
            statistics = session.run(moving_statistics())
            half = len(statistics) // 2
            for by_loop, by_steps in zip(statistics[:half], statistics[half:], strict=True):
                np.testing.assert_allclose(by_loop, by_steps, rtol=1e-9)


# --- gradients --------------------------------------------------------------------------------------------------------


@TWO_FLAGS
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((4, CHANNELS), -1), ((2, CHANNELS, 2, 1), 1)])
@COND_KINDS
def test_gradients_are_the_numerical_ones(graph, shape, axis, form, is_training, start, random):
    inputs = tf.placeholder(tf.float64, [None, *shape[1:]])
    flag, feed = flag_and_feed(form, is_training)
    outputs = batch_norm_wrapper(inputs, flag, axis=axis)
    variables = by_short_name()
    weights, batch = random.normal(size=shape), random.normal(3.0, 2.0, shape)
    # Squared, so that the gradient depends on the outputs as well; weighted, because plain sums have gradient 0.
    loss = tf.reduce_sum(weights * outputs**2)
    gradients = tf.gradients(loss, [inputs, variables["gamma"], variables["beta"]])
    session = start()
    load_all(session)
    got = session.run(gradients, {inputs: batch, **feed})

    def expected_loss(values, gamma, beta):
        statistics = oracle.statistics(values, axis) if is_training else (MEAN, VARIANCE)
        return (weights * oracle.normalized(values, *statistics, gamma, beta, axis=axis) ** 2).sum()

    expected = [
        oracle.gradient(lambda values: expected_loss(values, GAMMA, BETA), batch),
        oracle.gradient(lambda gamma: expected_loss(batch, gamma, BETA), GAMMA),
        oracle.gradient(lambda beta: expected_loss(batch, GAMMA, beta), BETA),
    ]
    for mine, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-6, atol=1e-6)


@TWO_FLAGS
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("shape", [(5, CHANNELS), (2, 4, 3, CHANNELS)])
def test_outputs_and_gradients_equal_those_of_tf_nn(plain_graph, shape, form, is_training, start, random):
    inputs = tf.placeholder(tf.float64, [None, *shape[1:]])
    flag, feed = flag_and_feed(form, is_training)
    ours = batch_norm_wrapper(inputs, flag)
    variables = by_short_name()
    gamma, beta = variables["gamma"], variables["beta"]
    moments = (
        tf.nn.moments(inputs, list(range(len(shape) - 1)))
        if is_training
        else (variables["moving_mean"], variables["moving_variance"])
    )
    theirs = tf.nn.batch_normalization(inputs, *moments, beta, gamma, 1e-3)
    weights = random.normal(size=shape)
    results = [[y, *tf.gradients(weights * y**2, [inputs, gamma, beta])] for y in (theirs, ours)]
    session = start()
    load_all(session)
    # One run each: a run of ours in training moves the statistics.
    feed = {inputs: random.normal(3.0, 2.0, shape), **feed}
    for expected, got in zip(*(session.run(result, feed) for result in results), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_no_gradient_flows_to_the_statistics_in_training(plain_graph):
    outputs = batch_norm_wrapper(tf.placeholder(tf.float32, [None, CHANNELS]), True)
    assert tf.gradients(outputs, moving_statistics()) == [None, None]


# --- numerics ---------------------------------------------------------------------------------------------------------


@TWO_FLAGS
@pytest.mark.parametrize("offset", [256.0, 1e6, -1e6])
@pytest.mark.parametrize("shape", [(64, CHANNELS), (8, 4, 4, CHANNELS)])
def test_float32_inputs_far_from_zero_keep_their_digits_in_training(plain_graph, offset, shape, form, start, random):
    # The oracle reads the same numbers as the layer: rounded to float32 first, which at 1e6 is to multiples of 1/16.
    batch = random.normal(offset, 1.0, shape).astype(np.float32)
    inputs = tf.placeholder(tf.float32, [None, *shape[1:]])
    flag, feed = flag_and_feed(form, True)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.0)
    session = start()
    got = session.run(outputs, {inputs: batch, **feed})
    expected = oracle.normalized(batch, *oracle.statistics(batch))
    # Over 20 seeds the largest error was 1.1e-6·(1 + |y|) at 1e6, and 4.8e-7·(1 + |y|) at 256.
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    # decay 0: the moving statistics are the batch's own. At 1e6 the variance was off by up to 2.7e-6 over 20 seeds.
    assert_statistics(session, oracle.statistics(batch), rtol=5e-6)


@TWO_FLAGS
@pytest.mark.parametrize("offset", [256.0, 1e6])
def test_float32_inputs_far_from_zero_keep_their_digits_at_inference(plain_graph, offset, form, start, random):
    batch = random.normal(offset, 1.0, (64, CHANNELS)).astype(np.float32)
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = flag_and_feed(form, False)
    outputs = batch_norm_wrapper(inputs, flag)
    session = start()
    load(session, moving_mean=np.full(CHANNELS, offset), moving_variance=VARIANCE)
    got = session.run(outputs, {inputs: batch, **feed})
    np.testing.assert_allclose(got, oracle.normalized(batch, offset, VARIANCE), rtol=1e-6, atol=1e-6)


@TWO_FLAGS
def test_float16_inputs_whose_sum_and_variance_overflow_float16(plain_graph, form, start):
    batch = np.tile(np.array([[30000.0], [20000.0]], np.float16), (32, 1))
    largest = np.finfo(np.float16).max
    assert batch.astype(np.float64).sum() > largest and batch.astype(np.float64).var() > largest
    inputs = tf.placeholder(tf.float16, [None, 1])
    flag, feed = flag_and_feed(form, True)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5)
    session = start()
    got = session.run(outputs, {inputs: batch, **feed}).astype(np.float64)
    # 2**-11: the result is rounded to float16.
    np.testing.assert_allclose(got, oracle.normalized(batch, *oracle.statistics(batch)), rtol=2.0**-11 + 1e-6)
    assert_statistics(session, oracle.moving([batch], 0.5))


# --- one value per channel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["python bool", "numpy bool", "constant"])
@pytest.mark.parametrize("shape", [(1, CHANNELS), (1, 1, CHANNELS), (1, 1, 1, CHANNELS), (1, 1, 1, 1, CHANNELS)])
def test_a_static_single_value_is_refused_when_the_graph_is_built(plain_graph, form, shape):
    flag, _ = flag_and_feed(form, True)
    says = ["at least two values per channel", "is_training=False", f"Got inputs of shape {shape}"]
    assert_refused(ValueError, says, tf.zeros(shape), flag)


@TWO_FLAGS
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("key", [None, tf.GraphKeys.UPDATE_OPS])
@USUAL_KINDS
def test_a_batch_too_small_fails_the_training_run_and_updates_nothing(graph, size, key, form, start, random):
    inputs = tf.placeholder(tf.float32, [None, CHANNELS])
    flag, feed = flag_and_feed(form, True)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5, updates_collection=key)
    loss = tf.reduce_mean(outputs**2)
    train = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
    session = start()
    session.run(outputs, {inputs: random.normal(size=(4, CHANNELS)), **feed})
    before = all_values(session)
    for fetch in (outputs, loss, train, *tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="at least two values per channel"):
            session.run(fetch, {inputs: random.normal(size=(size, CHANNELS)), **feed})
        assert_bit_identical(before, all_values(session))


@TWO_FLAGS
@pytest.mark.parametrize(
    ("static", "fed"),
    [
        ((None, None, None, CHANNELS), (1, 1, 1, CHANNELS)),
        ((None, 1, 1, CHANNELS), (1, 1, 1, CHANNELS)),
        ((1, None, CHANNELS), (1, 1, CHANNELS)),
        ((1, None, CHANNELS), (1, 0, CHANNELS)),
        ((None, 4, CHANNELS), (0, 4, CHANNELS)),
        ((0, CHANNELS), (0, CHANNELS)),
        ((0, 4, CHANNELS), (0, 4, CHANNELS)),
        ((0, 2, 2, CHANNELS), (0, 2, 2, CHANNELS)),
    ],
)
def test_fewer_than_two_values_per_channel_are_refused_at_every_rank(plain_graph, static, fed, form, start):
    inputs = tf.placeholder(tf.float32, static)
    flag, feed = flag_and_feed(form, True)
    try:
        outputs = batch_norm_wrapper(inputs, flag)
    except ValueError as error:  # the static shape tells
        assert "at least two values per channel" in str(error)
        return
    session = start()
    before = all_values(session)
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least two values per channel"):
        session.run(outputs, {inputs: np.zeros(fed), **feed})
    assert_bit_identical(before, all_values(session))


@TWO_FLAGS
def test_one_example_with_several_positions_trains(plain_graph, form, start, random):
    inputs = tf.placeholder(tf.float64, [None, None, None, CHANNELS])
    flag, feed = flag_and_feed(form, True)
    outputs = batch_norm_wrapper(inputs, flag, decay=0.5)
    session, batch = start(), random.normal(3.0, 2.0, (1, 1, 2, CHANNELS))
    got = session.run(outputs, {inputs: batch, **feed})
    np.testing.assert_allclose(got, oracle.normalized(batch, *oracle.statistics(batch)), rtol=1e-6)
    assert_statistics(session, oracle.moving([batch], 0.5))


@pytest.mark.parametrize("static_size", [1, None])
def test_one_example_predicts_where_the_flag_is_fed_false_and_fails_where_it_is_fed_true(graph, static_size, start):
    inputs, flag = tf.placeholder(tf.float32, [static_size, CHANNELS]), tf.placeholder(tf.bool, [])
    outputs = batch_norm_wrapper(inputs, flag)
    session, example = start(), np.array([[3.0, 4.0, 5.0]])
    load_all(session)
    before = all_values(session)
    got = session.run(outputs, {inputs: example, flag: False})
    np.testing.assert_allclose(got, oracle.normalized(example, MEAN, VARIANCE, GAMMA, BETA), rtol=1e-6, atol=1e-6)
    assert_bit_identical(before, all_values(session))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least two values per channel"):
        session.run(outputs, {inputs: example, flag: True})
    assert_bit_identical(before, all_values(session))


def test_one_example_predicts_with_is_training_false(plain_graph, start):
    example = np.array([[3.0, 4.0, 5.0]])
    outputs = batch_norm_wrapper(tf.constant(example), False)
    session = start()
    load_all(session)
    expected = oracle.normalized(example, MEAN, VARIANCE, GAMMA, BETA)
    np.testing.assert_allclose(session.run(outputs), expected, rtol=1e-6, atol=1e-6)


# --- what is refused --------------------------------------------------------------------------------------------------


def assert_refused(exception, says, *args, **kwargs):
    """Raised with every part of the message, and before anything was added to the graph's variables."""
    with pytest.raises(exception) as error:
        batch_norm_wrapper(*args, **kwargs)
    assert [part for part in says if part not in str(error.value)] == [], str(error.value)
    assert tf.global_variables() == []


@pytest.mark.parametrize(
    ("shape", "axis", "says"),
    [
        ([None, None], -1, ["inputs", "known size", "axis=-1", "(None, None)"]),
        ([None, 3], 0, ["inputs", "known size", "axis=0", "(None, 3)"]),
        ([2, None, 4, 3], 1, ["inputs", "known size", "axis=1", "(2, None, 4, 3)"]),
        (None, -1, ["inputs", "known rank", "2 to 5", "<unknown>"]),
        ([], -1, ["inputs", "rank", "2 to 5", "()"]),
        ([3], -1, ["inputs", "rank", "2 to 5", "(3,)"]),
        ([2, 2, 2, 2, 2, 3], -1, ["inputs", "rank", "2 to 5", "(2, 2, 2, 2, 2, 3)"]),
        ([2, 3], 2, ["axis", "-2 to 1", "got 2"]),
        ([2, 3], -3, ["axis", "-2 to 1", "got -3"]),
        ([2, 4, 4, 3], 4, ["axis", "-4 to 3", "got 4"]),
        ([2, 3], True, ["axis", "integer", "-2 to 1", "got True"]),
        ([2, 3], 1.0, ["axis", "integer", "-2 to 1", "got 1.0"]),
        ([2, 3], None, ["axis", "integer", "-2 to 1", "got None"]),
        ([2, 3], ["channels"], ["axis", "integer", "-2 to 1", "got ['channels']"]),
    ],
)
@pytest.mark.parametrize("is_training", [True, False])
def test_shapes_and_axes_that_it_cannot_work_with(plain_graph, shape, axis, says, is_training):
    assert_refused(ValueError, says, tf.placeholder(tf.float32, shape), is_training, axis=axis)


@pytest.mark.parametrize(
    ("flag", "received"),
    [
        (lambda: 1, ["got 1"]),
        (lambda: 0, ["got 0"]),
        (lambda: "yes", ["got 'yes'"]),
        (lambda: None, ["got None"]),
        (lambda: [True], ["got [True]"]),
        (lambda: np.float32(1.0), ["float32"]),
        (lambda: tf.placeholder(tf.float32, []), ["float32"]),
        (lambda: tf.constant(1), ["int32"]),
        (lambda: np.array([True, False]), ["shape (2,)"]),
        (lambda: tf.constant([True, False]), ["shape (2,)"]),
        (lambda: tf.placeholder(tf.bool, [None]), ["shape (None,)"]),
    ],
)
def test_flags_that_are_not_one_bool(plain_graph, flag, received):
    assert_refused(ValueError, ["is_training", "bool", "scalar", *received], tf.zeros([2, 3]), flag())


def test_the_flag_has_no_default(plain_graph):
    with pytest.raises(TypeError, match="is_training"):
        batch_norm_wrapper(tf.zeros([2, 3]))


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan"), float("inf")])
def test_decays_outside_zero_to_one(plain_graph, decay, is_training):
    says = ["decay", "from 0 to 1", f"got {decay!r}"]
    assert_refused(ValueError, says, tf.zeros([2, 3]), is_training, decay=decay)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("epsilon", [0.0, 0, -1.0, float("nan")])
def test_epsilons_not_above_zero(plain_graph, epsilon, is_training):
    says = ["epsilon", "above 0", f"got {epsilon!r}"]
    assert_refused(ValueError, says, tf.zeros([2, 3]), is_training, epsilon=epsilon)


@pytest.mark.parametrize("dtype", [tf.int32, tf.uint8, tf.int64, tf.bool, tf.complex64, tf.string])
def test_inputs_that_are_not_floats(plain_graph, dtype):
    says = ["inputs", "float16, bfloat16, float32, float64", f"got {dtype.name}"]
    assert_refused(TypeError, says, tf.placeholder(dtype, [2, 3]), True)
