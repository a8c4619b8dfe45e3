"""`BatchNormLSTMCell`: its recurrence, its statistics step by step, and what it refuses; beside NumPy in float64."""

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.inference.export import ExportError, UnfoldedWarning, export_frozen_graph, export_saved_model
from bn_graph.layers.recurrent import BatchNormLSTMCell, LSTMState
from bn_graph.tf1 import tf
from tests import oracle

INPUTS, UNITS, STEPS, BATCH = 3, 2, 4, 5
EPSILON, DECAY = 1e-3, 0.75
SCOPE = "rnn/bn_lstm_cell/"
LAYERS = ("bn_x", "bn_h", "bn_c")


@pytest.fixture
def loops(cond_kind, request):
    """A fresh default graph, once with the loops and conds of control flow v1 and once with v2."""
    with tf.Graph().as_default() as graph:
        yield graph


def sequences(random, batch=BATCH, steps=STEPS):
    return random.normal(0.5, 2.0, (batch, steps, INPUTS))


def start_state(random, batch=BATCH):
    return random.normal(0.0, 0.5, (batch, UNITS)), random.normal(0.0, 0.5, (batch, UNITS))


def unrolled(cell, x, c, h, dtype=tf.float64, **options):
    batch = tf.shape(x)[0]
    state = LSTMState(tf.constant(c, dtype), tf.constant(h, dtype), tf.zeros([batch, 1], dtype))
    return tf.nn.dynamic_rnn(cell, x, initial_state=state, **options)


def cell_of(is_training, max_steps=STEPS, **options):
    return BatchNormLSTMCell(UNITS, is_training, max_steps, **{"decay": DECAY, "epsilon": EPSILON, **options})


def flag_of(form, value):
    """`is_training` as a Python bool or as a placeholder, and what to feed."""
    if form == "bool":
        return value, {}
    flag = tf.placeholder(tf.bool, [])
    return flag, {flag: value}


FORMS = pytest.mark.parametrize("form", ["bool", "tensor"])


def by_name(session):
    return {variable.op.name.removeprefix(SCOPE): session.run(variable) for variable in tf.global_variables()}


def scramble(session, random):
    """Every variable gets a value that is none of the initial ones; variances stay above 0."""
    values = [
        (variable, random.uniform(0.3, 1.5, variable.shape.as_list()).astype(variable.dtype.as_numpy_dtype))
        for variable in tf.global_variables()
    ]
    assign_values(session, values)


# --- The recurrence, written out --------------------------------------------------------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def recurrence(x, c, h, values, *, training, lengths=None):
    """Outputs ``[batch, step, unit]``, the last state, and for each layer and step the ``(mean, variance)`` of the batch."""
    lengths = np.full(len(x), x.shape[1]) if lengths is None else np.asarray(lengths)
    batch_statistics = {layer: [] for layer in LAYERS}
    outputs = np.zeros((*x.shape[:2], UNITS))

    def normalized(layer, inputs, step, running):
        row = min(step, len(values[f"{layer}/moving_mean"]) - 1)
        population = values[f"{layer}/moving_mean"][row], values[f"{layer}/moving_variance"][row]
        batch = oracle.statistics(inputs[running])
        batch_statistics[layer].append(batch if running.sum() > 1 else None)
        mean, variance = batch if training and running.sum() > 1 else population
        beta = values.get(f"{layer}/beta", 0.0)
        return oracle.normalized(inputs, mean, variance, values[f"{layer}/gamma"], beta, EPSILON)

    for step in range(max(lengths)):
        running = lengths > step
        hidden = normalized("bn_h", h @ values["recurrent_kernel"], step, running)
        inputs = normalized("bn_x", x[:, step] @ values["input_kernel"], step, running)
        f, i, o, g = np.split(hidden + inputs + values["bias"], 4, axis=1)
        new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        new_h = sigmoid(o) * np.tanh(normalized("bn_c", new_c, step, running))
        outputs[running, step] = new_h[running]
        c, h = np.where(running[:, None], new_c, c), np.where(running[:, None], new_h, h)
    return outputs, (c, h), batch_statistics


def moved(values, batch_statistics):
    """The moving statistics after these steps: row ← row·decay + batch·(1 − decay), steps beyond the last row at the last."""
    expected = {}
    for layer, steps in batch_statistics.items():
        mean, variance = (values[f"{layer}/moving_{kind}"].copy() for kind in ("mean", "variance"))
        for step, batch in enumerate(steps):
            row = min(step, len(mean) - 1)
            if batch is not None:
                mean[row] = mean[row] * DECAY + batch[0] * (1 - DECAY)
                variance[row] = variance[row] * DECAY + batch[1] * (1 - DECAY)
        expected |= {f"{layer}/moving_mean": mean, f"{layer}/moving_variance": variance}
    return expected


def assert_statistics(session, expected):
    values = by_name(session)
    for name, wanted in expected.items():
        np.testing.assert_allclose(values[name], wanted, rtol=1e-6, atol=1e-9, err_msg=name)


# --- Training ---------------------------------------------------------------------------------------------------------


@FORMS
def test_training_is_the_paper_s_recurrence_and_moves_each_step_s_row_once(loops, form, start, random):
    x, (c, h) = sequences(random), start_state(random)
    flag, feed = flag_of(form, True)
    outputs, state = unrolled(cell_of(flag), tf.constant(x), c, h)
    session = start()
    scramble(session, random)
    before = by_name(session)

    got, last = session.run([outputs, state], feed)
    expected, (last_c, last_h), batch_statistics = recurrence(x, c, h, before, training=True)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(last.c, last_c, rtol=1e-6)
    np.testing.assert_allclose(last.h, last_h, rtol=1e-6)
    np.testing.assert_array_equal(last.step, np.full((BATCH, 1), STEPS))
    assert_statistics(session, moved(before, batch_statistics))


@pytest.mark.parametrize("fetched", ["outputs", "last h", "gradients"])
def test_statistics_move_once_whatever_of_the_loop_is_fetched(loops, fetched, start, random):
    x, (c, h) = sequences(random), start_state(random)
    outputs, state = unrolled(cell_of(True), tf.constant(x), c, h)
    gradients = tf.gradients(tf.reduce_sum(outputs**2), tf.trainable_variables())
    session = start()
    before = by_name(session)
    session.run({"outputs": outputs, "last h": state.h, "gradients": gradients}[fetched])
    assert_statistics(session, moved(before, recurrence(x, c, h, before, training=True)[2]))


def test_steps_beyond_the_last_row_share_it_one_after_the_other(loops, start, random):
    x, (c, h) = sequences(random), start_state(random)
    outputs, _ = unrolled(cell_of(True, max_steps=2), tf.constant(x), c, h)
    session = start()
    for _ in range(2):
        before = by_name(session)
        session.run(outputs)
        expected = moved(before, recurrence(x, c, h, before, training=True)[2])
        assert expected["bn_x/moving_mean"].shape == (2, 4 * UNITS)
        assert_statistics(session, expected)


@FORMS
def test_gradients_are_those_of_the_recurrence(loops, form, start, random):
    x, (c, h) = sequences(random), start_state(random)
    flag, feed = flag_of(form, True)
    outputs, _ = unrolled(cell_of(flag), tf.constant(x), c, h)
    weights = tf.trainable_variables()
    assert [weight.op.name.removeprefix(SCOPE) for weight in weights] == [
        *("input_kernel", "recurrent_kernel", "bias"),
        *("bn_x/gamma", "bn_h/gamma", "bn_c/gamma", "bn_c/beta"),
    ]
    gradients = tf.gradients(tf.reduce_sum(outputs**2), weights)
    session = start()
    scramble(session, random)
    values = by_name(session)
    for weight, gradient in zip(weights, session.run(gradients, feed), strict=True):
        name = weight.op.name.removeprefix(SCOPE)

        def loss(point, name=name):
            return (recurrence(x, c, h, values | {name: point}, training=True)[0] ** 2).sum()

        # Central differences are good to step² and rounding/step: about 1e-8 of sums around 10.
        np.testing.assert_allclose(gradient, oracle.gradient(loss, values[name]), rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_train_op_moves_statistics_and_weights_together(loops, start, random):
    x = tf.constant(sequences(random), tf.float32)
    cell = cell_of(True)
    outputs, _ = tf.nn.dynamic_rnn(cell, x, initial_state=cell.noisy_state(BATCH, is_training=True))
    train_op = bn_graph.train_op(tf.train.GradientDescentOptimizer(0.1), tf.reduce_sum(outputs))
    bn_graph.check_train_op(train_op)
    session = start()
    before = by_name(session)
    session.run(train_op)
    after = by_name(session)
    assert all((after[name] != before[name]).any() for name in before)


# --- Sequences that end early -----------------------------------------------------------------------------------------


@FORMS
def test_examples_past_their_end_are_in_no_statistics_even_if_they_are_nan(loops, form, start, random):
    x, (c, h) = sequences(random), start_state(random)
    lengths = [4, 2, 3, 1, 3]  # at the last step a single example is left
    padded = np.where(np.arange(STEPS)[None, :, None] < np.array(lengths)[:, None, None], x, np.nan)
    flag, feed = flag_of(form, True)
    outputs, state = unrolled(
        cell_of(flag, sequence_length=lengths), tf.constant(padded), c, h, sequence_length=lengths
    )
    gradients = tf.gradients(tf.reduce_sum(outputs), tf.trainable_variables())
    session = start()
    scramble(session, random)
    before = by_name(session)
    got, last, slopes = session.run([outputs, state, gradients], feed)
    expected, (_, last_h), batch_statistics = recurrence(x, c, h, before, training=True, lengths=lengths)
    assert [batch is None for batch in batch_statistics["bn_x"]] == [False, False, False, True]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(last.h, last_h, rtol=1e-6)
    np.testing.assert_array_equal(last.step[:, 0], lengths)
    assert_statistics(session, moved(before, batch_statistics))
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_training_with_lengths_that_the_cell_was_not_told_is_refused(loops, start, random):
    x, (c, h) = sequences(random), start_state(random)
    outputs, _ = unrolled(cell_of(True), tf.constant(x), c, h, sequence_length=[4, 2, 4, 4, 4])
    session = start()
    with pytest.raises(tf.errors.InvalidArgumentError, match="Give the cell the sequence_length that dynamic_rnn has"):
        session.run(outputs)


# --- Inference --------------------------------------------------------------------------------------------------------


@FORMS
def test_inference_reads_each_step_s_row_the_last_beyond_and_updates_nothing(loops, form, start, random):
    x, (c, h) = sequences(random, steps=STEPS + 3), start_state(random)
    flag, feed = flag_of(form, False)
    outputs, _ = unrolled(cell_of(flag), tf.constant(x), c, h)
    session = start()
    scramble(session, random)
    before = by_name(session)
    got = session.run(outputs, feed)
    np.testing.assert_allclose(got, recurrence(x, c, h, before, training=False)[0], rtol=1e-6)
    after = by_name(session)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_the_rows_beyond_the_last_are_the_last_one(plain_graph, start, random):
    """As the recurrence above, but against a longer cell whose further rows hold the same."""
    x, (c, h) = sequences(random), start_state(random)
    short, _ = unrolled(cell_of(False, max_steps=2), tf.constant(x), c, h)
    with tf.variable_scope("long"):
        long, _ = unrolled(cell_of(False, max_steps=STEPS), tf.constant(x), c, h)
    session = start()
    scramble(session, random)
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    values = by_name(session)
    assign_values(
        session,
        [
            (variables[f"long/{SCOPE}{name}"], np.concatenate([value, value[-1:], value[-1:]]))
            if "moving" in name
            else (variables[f"long/{SCOPE}{name}"], value)
            for name, value in values.items()
            if not name.startswith("long/")
        ],
    )
    np.testing.assert_array_equal(*session.run([short, long]))


@FORMS
def test_an_example_gets_the_same_answer_alone_as_in_a_batch_of_several_lengths(loops, form, start, random):
    x, (c, h) = sequences(random), start_state(random)
    lengths = np.array([4, 2, 3, 1, 3])
    flag, feed = flag_of(form, False)
    given, starts, ends = tf.placeholder(tf.float64, [None, None, INPUTS]), [], tf.placeholder(tf.int32, [None])
    starts = [tf.placeholder(tf.float64, [None, size]) for size in (UNITS, UNITS, 1)]
    outputs, _ = tf.nn.dynamic_rnn(cell_of(flag), given, initial_state=LSTMState(*starts), sequence_length=ends)
    session = start()
    scramble(session, random)

    def run(chosen, length):
        values = [c[chosen], h[chosen], np.zeros((len(chosen), 1))]
        return session.run(
            outputs,
            {given: x[chosen, :length], ends: lengths[chosen], **dict(zip(starts, values, strict=True)), **feed},
        )

    together = run(np.arange(BATCH), STEPS)
    for example, length in enumerate(lengths):
        alone = run(np.array([example]), length)
        np.testing.assert_allclose(alone[0], together[example, :length], rtol=1e-12)


def test_a_sequence_in_two_pieces_with_the_state_carried_is_the_sequence(loops, start, random):
    x, (c, h) = sequences(random), start_state(random)
    cell = cell_of(False)
    whole, _ = unrolled(cell, tf.constant(x), c, h)
    first, state = unrolled(cell, tf.constant(x[:, :3]), c, h)
    second, _ = tf.nn.dynamic_rnn(cell, tf.constant(x[:, 3:]), initial_state=state)
    session = start()
    scramble(session, random)
    expected, *pieces = session.run([whole, first, second])
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, rtol=1e-12)


def test_the_cell_works_unrolled_and_stacked(plain_graph, start, random):
    x = tf.unstack(tf.constant(sequences(random), tf.float32), axis=1)
    stack = tf.nn.rnn_cell.MultiRNNCell([cell_of(True, name=name) for name in ("below", "above")])
    outputs, state = tf.nn.static_rnn(stack, x, dtype=tf.float32)
    session = start()
    last, states = session.run([outputs[-1], state])
    np.testing.assert_array_equal(last, states[1].h)
    statistics = [variable.op.name for variable in bn_graph.moving_statistics()]
    assert len(statistics) == 12 and any("above/bn_h/moving_mean" in name for name in statistics)


# --- The first state --------------------------------------------------------------------------------------------------


def test_a_zero_state_multiplies_gradients_by_the_root_of_epsilon_and_noise_does_not(plain_graph, start, random):
    """With all examples alike at step 0 the hidden term's variance is 0, and dBN/dx of a deviation is gamma/√epsilon."""
    x = tf.constant(np.repeat(random.normal(size=(1, 1, INPUTS)), BATCH, axis=0))  # one step, the same for all
    cell = cell_of(True, gamma=1.0, epsilon=1e-8)
    noise = tf.placeholder(tf.float64, [])
    h = noise * tf.constant(random.normal(size=(BATCH, UNITS)))
    state = LSTMState(tf.ones([BATCH, UNITS], tf.float64), h, tf.zeros([BATCH, 1], tf.float64))
    outputs, _ = tf.nn.dynamic_rnn(cell, x, initial_state=state)
    (gradient,) = tf.gradients(tf.reduce_sum(outputs[:, 0] * tf.constant(random.normal(size=(BATCH, UNITS)))), h)
    session = start()
    scramble(session, random)
    without, with_noise = (np.abs(session.run(gradient, {noise: stddev})).max() for stddev in (0.0, 0.1))
    assert without > 100 * with_noise  # 1/√epsilon = 10⁴ against about 1/0.1


@FORMS
def test_noise_is_of_training_only_and_new_at_each_run(loops, form, start):
    cell = cell_of(True)
    flag, feed = flag_of(form, True)
    training = cell.noisy_state(1000, is_training=flag, stddev=0.2)
    inference_flag, inference_feed = flag_of(form, False)
    inference = cell.noisy_state(1000, is_training=inference_flag)
    session = start()
    first, second = (session.run(training, feed) for _ in range(2))
    # 2000 draws: the standard deviation is within 0.2/√4000 = 0.003, four times of which is 0.013.
    assert np.std(first.h) == pytest.approx(0.2, abs=0.013)
    assert not np.array_equal(first.h, second.h)
    assert not np.any(first.c) and not np.any(first.step)
    assert not any(np.any(part) for part in session.run(inference, inference_feed))


# --- Variables and checkpoints ----------------------------------------------------------------------------------------


def network(is_training):
    x = tf.placeholder(tf.float32, [None, STEPS, INPUTS], name="x")
    cell = cell_of(is_training)
    _, state = tf.nn.dynamic_rnn(cell, x, initial_state=cell.noisy_state(tf.shape(x)[0], is_training=is_training))
    return x, tf.layers.dense(state.h, 1, name="head")


def test_variables_have_the_documented_shapes_values_and_collections(loops, start):
    network(True)
    values = by_name(start())
    wide = 4 * UNITS
    assert {name: value.shape for name, value in values.items() if "head" not in name} == {
        "input_kernel": (INPUTS, wide),
        "recurrent_kernel": (UNITS, wide),
        "bias": (wide,),
        **{f"{layer}/gamma": (wide,) for layer in ("bn_x", "bn_h")},
        **{f"{layer}/moving_{kind}": (STEPS, wide) for layer in ("bn_x", "bn_h") for kind in ("mean", "variance")},
        **{f"bn_c/{name}": (UNITS,) for name in ("gamma", "beta")},
        **{f"bn_c/moving_{kind}": (STEPS, UNITS) for kind in ("mean", "variance")},
    }
    np.testing.assert_array_equal(values["bias"], [1, 1, 0, 0, 0, 0, 0, 0])
    for layer in LAYERS:
        np.testing.assert_allclose(values[f"{layer}/gamma"], 0.1, rtol=1e-6)
        assert (values[f"{layer}/moving_mean"] == 0).all() and (values[f"{layer}/moving_variance"] == 1).all()
    trainable = {variable.op.name for variable in tf.trainable_variables()}
    assert trainable.isdisjoint(variable.op.name for variable in bn_graph.moving_statistics())
    assert len(bn_graph.moving_statistics()) == 6
    assert list(bn_graph.batch_norm_layers()) == [SCOPE + layer for layer in LAYERS]


@pytest.mark.parametrize("saver_of", ["all", "inference"])
def test_a_trained_cell_predicts_alike_from_a_checkpoint(cond_kind, saver_of, random, tmp_path, start):
    x_value = sequences(random).astype(np.float32)
    with tf.Graph().as_default():
        flag = tf.placeholder(tf.bool, [])
        x, prediction = network(flag)
        train_op = tf.train.AdamOptimizer(0.01).minimize(tf.reduce_sum(prediction**2))
        saver = bn_graph.make_saver() if saver_of == "all" else bn_graph.make_inference_saver(prediction)
        session = start()
        for _ in range(3):
            session.run(train_op, {x: x_value, flag: True})
        expected = session.run(prediction, {x: x_value, flag: False})
        path = bn_graph.save(saver, session, tmp_path / "model")
    with tf.Graph().as_default():
        x, prediction = network(False)
        session = start()
        bn_graph.restore(session, path)
        np.testing.assert_allclose(session.run(prediction, {x: x_value}), expected, rtol=1e-6)
        assert not [op.name for op in session.graph.get_operations() if "ResourceScatter" in op.type]
        names = {name for name, _ in tf.train.list_variables(path)}
        assert {f"{SCOPE}{layer}/moving_{kind}" for layer in LAYERS for kind in ("mean", "variance")} <= names
        assert any("Adam" in name for name in names) == (saver_of == "all")


def test_the_saver_of_a_training_graph_for_inference_takes_the_statistics(loops):
    _, prediction = network(True)
    names = {variable.op.name for variable in bn_graph.inference_variables(prediction)}
    assert {variable.op.name for variable in bn_graph.moving_statistics()} <= names


def test_training_then_inference_in_one_graph_share_their_variables(loops, start, random):
    network(True)
    made = len(tf.global_variables())
    with tf.variable_scope("", reuse=True):
        network(False)
    assert len(tf.global_variables()) == made


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"units": 0}, "units must be a whole number from 1 up, got 0"),
        ({"units": True}, "units must be"),
        ({"max_steps": 2.5}, "max_steps must be a whole number from 1 up, got 2.5"),
        ({"is_training": None}, "is_training must be a Python bool"),
        ({"decay": 1.5}, "decay is the weight"),
        ({"epsilon": 0.0}, "epsilon keeps"),
    ],
)
def test_settings_out_of_range_are_refused_when_the_cell_is_made(changed, message):
    settings = {"units": 2, "is_training": True, "max_steps": 3, **changed}
    with pytest.raises(ValueError, match=message):
        BatchNormLSTMCell(**settings)


def test_other_states_inputs_and_dtypes_are_refused(plain_graph):
    cell = cell_of(True)
    pair = (tf.zeros([BATCH, UNITS]), tf.zeros([BATCH, UNITS]))
    with pytest.raises(ValueError, match=r"is LSTMState\(c, h, step\), got 2 parts"):
        cell(tf.zeros([BATCH, INPUTS]), pair)
    with pytest.raises(ValueError, match=r"shape \[batch, inputs\]"):
        cell(tf.placeholder(tf.float32, [BATCH, None]), cell.zero_state(BATCH))
    with pytest.raises(TypeError, match="float32 or float64, got float16"):
        cell(tf.zeros([BATCH, INPUTS], tf.float16), cell.zero_state(BATCH, tf.float16))
    with pytest.raises(ValueError, match="two examples or more"):
        cell(tf.zeros([1, INPUTS]), cell.zero_state(1))


@FORMS
def test_a_training_batch_of_one_is_refused_at_the_run_and_nothing_is_updated(loops, form, start, random):
    x = tf.placeholder(tf.float32, [None, STEPS, INPUTS])
    flag, feed = flag_of(form, True)
    outputs, _ = tf.nn.dynamic_rnn(cell_of(flag), x, dtype=tf.float32)
    session = start()
    before = by_name(session)
    with pytest.raises(tf.errors.InvalidArgumentError, match="two examples or more"):
        session.run(outputs, {x: sequences(random, batch=1), **feed})
    after = by_name(session)
    assert all(np.array_equal(before[name], after[name]) for name in before)


# --- Recalibration, export and folding -------------------------------------------------------------------------------

IN_ANY_ORDER = ", ".join([rf"{SCOPE}bn_[chx]"] * 3)


def classifier(is_training):
    """A cell and a layer above it, whose variables have some values; inputs, outputs and a session."""
    x = tf.placeholder(tf.float32, [None, STEPS, INPUTS], name="x")
    cell = BatchNormLSTMCell(UNITS, is_training, STEPS, epsilon=EPSILON)
    outputs, _ = tf.nn.dynamic_rnn(cell, x, dtype=tf.float32)
    last = tf.identity(outputs[:, -1], name="last")
    return x, tf.identity(bn_graph.batch_norm_wrapper(last, is_training, name="above"), name="y")


def test_recalibration_of_other_layers_names_the_cells_that_it_leaves(plain_graph, cond_kind, start, random):
    flag = tf.placeholder(tf.bool, [])
    x, _ = classifier(flag)
    session = start()
    scramble(session, random)
    before = by_name(session)
    data = sequences(random)
    expected = session.run("last:0", {x: data, flag: False})
    with pytest.warns(UserWarning, match=rf"Left as they are: {IN_ANY_ORDER} \(it is a recurrent cell's"):
        (above,) = bn_graph.recalibrate(session, [{x: data}], is_training=flag)
    assert above.layer == "above"
    np.testing.assert_allclose(above.mean, expected.mean(0), rtol=1e-5)  # the cell normalized by its moving statistics
    after = by_name(session)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"above/moving_mean", "above/moving_variance"}


def test_recalibration_refuses_the_cell_and_what_is_above_one_that_always_trains(plain_graph, cond_kind, start, random):
    x, _ = classifier(True)
    session, data = start(), sequences(random)
    with pytest.raises(bn_graph.RecalibrationError, match=f"{SCOPE}bn_x: it is a recurrent cell's"):
        bn_graph.recalibrate(session, [{x: data}], layers=[f"{SCOPE}bn_x"])
    with pytest.raises(bn_graph.RecalibrationError, match=f"{SCOPE}bn_c, above layer above.*recurrent cell's"):
        bn_graph.recalibrate(session, [{x: data}])


def test_a_saved_model_of_a_cell_predicts_as_the_graph_did(plain_graph, cond_kind, start, random, tmp_path):
    x, y = classifier(False)
    session = start()
    scramble(session, random)
    data = sequences(random)
    expected = session.run(y, {x: data})
    path = export_saved_model(session, tmp_path / "model", {"x": x}, {"y": y})
    with tf.Graph().as_default(), tf.Session() as restored:
        tf.saved_model.load(restored, ["serve"], path)
        np.testing.assert_allclose(restored.run("y:0", {"x:0": data}), expected, rtol=1e-6, atol=1e-6)


def test_a_flag_inside_a_loop_can_be_fixed_under_control_flow_v1_only(plain_graph, cond_kind, start, random, tmp_path):
    flag = tf.placeholder(tf.bool, [])
    x, y = classifier(flag)
    session = start()
    scramble(session, random)
    if cond_kind == "v2":
        with pytest.raises(ExportError, match=rf"still train in {SCOPE}bn_c.*tf.disable_control_flow_v2\(\) it can"):
            export_saved_model(session, tmp_path / "model", {"x": x}, {"y": y}, is_training=flag)
        return
    export_saved_model(session, tmp_path / "model", {"x": x}, {"y": y}, is_training=flag)
    data = sequences(random)
    with tf.Graph().as_default(), tf.Session() as restored:
        tf.saved_model.load(restored, ["serve"], str(tmp_path / "model"))
        expected = session.run(y, {x: data, flag: False})
        np.testing.assert_allclose(restored.run("y:0", {"x:0": data}), expected, rtol=1e-6, atol=1e-6)


def test_a_frozen_cell_predicts_as_the_graph_did_and_is_named_as_not_folded(
    plain_graph, cond_kind, start, random, tmp_path
):
    x, y = classifier(False)
    session = start()
    scramble(session, random)
    if cond_kind == "v2":
        with pytest.raises(ExportError, match=rf"can't be frozen: .*{SCOPE}bn_h/moving_mean.*export_saved_model"):
            export_frozen_graph(session, tmp_path / "net.pb", {"x": x}, {"y": y})
        return
    with pytest.warns(
        UnfoldedWarning, match=rf"{SCOPE}bn_h \(it is a recurrent cell's, with statistics for each time step"
    ):
        frozen = export_frozen_graph(session, tmp_path / "net.pb", {"x": x}, {"y": y})
    assert sorted(name.removeprefix(SCOPE) for name in frozen.unfolded if name.startswith(SCOPE)) == sorted(LAYERS)
    data = sequences(random)
    expected = session.run(y, {x: data})
    with tf.Graph().as_default(), tf.Session() as restored:
        tf.import_graph_def(tf.GraphDef.FromString((tmp_path / "net.pb").read_bytes()), name="")
        np.testing.assert_allclose(restored.run("y:0", {"x:0": data}), expected, rtol=1e-5, atol=1e-6)
