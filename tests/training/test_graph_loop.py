"""The loop inside the graph, held to the documents' loop: the same bits, and whatever else that loop can do."""

import itertools

import numpy as np
import pytest

import bn_graph
from bn_graph.layers.recurrent import BatchNormLSTMCell
from bn_graph.tf1 import tf
from bn_graph.training.graph_loop import RESIDENT, _Batches
from bn_graph.training.networks import biased_layer

DIGITS = bn_graph.load("digits")
WEIGHTS = bn_graph.normal_weights([64, 20, 20, 10], seed=3)
LOOPS = {"feed": bn_graph.feed_loop, "graph": bn_graph.graph_loop}
TRAIN = {"feed": bn_graph.train, "graph": bn_graph.train_in_graph}
OPTIMIZERS = {
    "gradient descent": tf.train.GradientDescentOptimizer,
    "momentum": lambda rate: tf.train.MomentumOptimizer(rate, 0.9),
    "Adam": tf.train.AdamOptimizer,
}
COLLECTIONS = {"in place": None, "UPDATE_OPS": tf.GraphKeys.UPDATE_OPS, "their own": "own_updates"}
# Pairwise: every optimizer with every collection, and each of both with either kind of cond.
PAIRS = [
    (optimizer, updates, "v1" if (row + column) % 2 else "v2")
    for row, optimizer in enumerate(OPTIMIZERS)
    for column, updates in enumerate(COLLECTIONS)
]


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


def normalized(collection):
    """A hidden layer whose updates go to `collection`."""

    def layer(inputs, units, is_training, kernel_initializer):
        z = tf.matmul(inputs, tf.get_variable("kernel", [inputs.shape[1], units], initializer=kernel_initializer))
        return bn_graph.batch_norm_wrapper(z, is_training, decay=0.9, updates_collection=collection, name="bn")

    return layer


def model_step(hidden_layer=biased_layer, name: str = "model", optimizer=OPTIMIZERS["Adam"]) -> bn_graph.Step:
    model = bn_graph.Model(name, 64, 10, [12, 8], hidden_layer=hidden_layer, optimizer=optimizer, seed=0)
    step = bn_graph.step_of(model, record_loss=True)
    own = tf.get_collection("own_updates")
    return step._replace(train_op=tf.group(step.train_op, *own)) if own else step


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def trained(loop: str, build, *, steps: int, batch_size: int, longest: int = 7) -> tuple[dict, list]:
    """All variables by name, and each network's recorded values, after `steps` in chunks of `longest`."""
    networks = 2 if loop == "graph" else 1
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config(networks=networks)) as session:
        built = build()
        variables = tf.global_variables()
        session.run(tf.global_variables_initializer())
        advance = LOOPS[loop](session, built, DIGITS.train, batch_size=batch_size, seed=1)
        parts = [advance(chunk.start, chunk.stop) for chunk in bn_graph.chunks(0, steps, longest=longest)]
        recorded = [
            [np.concatenate(each) for each in zip(*network, strict=True)] for network in zip(*parts, strict=True)
        ]
        values = session.run(variables)
    return {variable.op.name: value for variable, value in zip(variables, values, strict=True)}, recorded


# --- The same numbers as the documents' loop ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The train op will not run the update ops")  # of their own collection: it does here
@pytest.mark.parametrize(("optimizer", "updates", "cond_kind"), PAIRS, indirect=["cond_kind"])
def test_weights_slots_statistics_and_losses_are_the_fed_loops_bit_for_bit(optimizer, updates, cond_kind):
    def build():
        return model_step(normalized(COLLECTIONS[updates]), optimizer=OPTIMIZERS[optimizer])

    # 30 is no power of two: a division by the batch's size is then rounded, and a multiplication by its inverse otherwise.
    fed, fed_losses = trained("feed", build, steps=12, batch_size=30)
    looped, losses = trained("graph", build, steps=12, batch_size=30)
    assert_same(fed, looped)
    np.testing.assert_array_equal(fed_losses, losses)
    assert not np.array_equal(looped["model/layer0/bn/moving_mean"], np.zeros(12))  # the updates were run
    slots = {"gradient descent": 0, "momentum": 1, "Adam": 2}[optimizer]
    kernels = [name for name in looped if name.startswith("model/") and "layer0/kernel/" in name]
    assert len(kernels) == slots


def r2rt_pair() -> list[bn_graph.Step]:
    steps = []
    for name, normalizer in (("with", bn_graph.batch_norm_wrapper), ("without", None)):
        with tf.variable_scope(name):
            network = bn_graph.build_graph(True, WEIGHTS, normalizer=normalizer)
        # Not the network's own train op, for both count with the graph's one global step.
        optimizer = tf.train.GradientDescentOptimizer(0.01)
        train_op = optimizer.minimize(network.loss, var_list=tf.trainable_variables(scope=f"{name}/"))
        steps.append(bn_graph.Step(train_op, network.x, network.y_, recorded=[network.loss]))
    return steps


def solver_pair() -> list[bn_graph.Step]:
    return [model_step(normalized(tf.GraphKeys.UPDATE_OPS), "with"), model_step(biased_layer, "without")]


@pytest.mark.parametrize("build", [r2rt_pair, solver_pair])
def test_after_a_thousand_steps_two_networks_at_once_have_the_fed_loops_bits(build):
    fed, fed_losses = trained("feed", build, steps=1000, batch_size=60)
    looped, losses = trained("graph", build, steps=1000, batch_size=60, longest=300)
    assert_same(fed, looped)
    np.testing.assert_array_equal(fed_losses, losses)


def test_the_losses_are_those_that_solver_train_returns_before_each_step():
    losses = []
    for looped in (False, True):
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            model = bn_graph.Model("model", 64, 10, [8], seed=0)
            session.run(tf.global_variables_initializer())
            if looped:
                step = bn_graph.step_of(model, record_loss=True)
                losses += bn_graph.graph_loop(session, step, DIGITS.train, batch_size=32, seed=1)(0, 5)[0]
            else:
                solver, batches = bn_graph.Solver(session, model), bn_graph.batches(DIGITS.train, 32, seed=1)
                losses.append(np.float32([solver.train(*next(batches)) for _ in range(5)]))
    np.testing.assert_array_equal(*losses)


def test_a_constant_may_be_a_variable_that_changes_between_chunks():
    weights = {}
    for name, build_loop in LOOPS.items():
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            x, y_, rate = (tf.placeholder(tf.float32, shape) for shape in ([None, 64], [None, 10], []))
            w = tf.get_variable("w", [64, 10], initializer=tf.zeros_initializer())
            loss = tf.reduce_mean(tf.square(tf.matmul(x, w) - y_))
            train_op = tf.train.GradientDescentOptimizer(rate).minimize(loss)
            in_use = tf.Variable(0.5, trainable=False, collections=[], use_resource=True)
            session.run([w.initializer, in_use.initializer])
            step = bn_graph.Step(train_op, x, y_, {rate: in_use})
            advance = build_loop(session, step, DIGITS.train, batch_size=30, seed=0)
            advance(0, 3)
            first = session.run(w)
            session.run(in_use.assign(0.0))
            advance(3, 6)
            np.testing.assert_array_equal(session.run(w), first)
            weights[name] = first
    np.testing.assert_array_equal(weights["feed"], weights["graph"])


@pytest.mark.parametrize("build_loop", LOOPS.values(), ids=LOOPS)
def test_rows_may_be_given_in_place_of_those_of_the_seed(build_loop):
    rows = np.random.default_rng(0).integers(DIGITS.train.size, size=(6, 4))
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        step = model_step()
        session.run(tf.global_variables_initializer())
        step = step._replace(recorded=[tf.identity(step.images)])
        advance = build_loop(session, step, DIGITS.train, batch_size=4, seed=0)
        ((images,),) = advance(0, 6, rows)
        np.testing.assert_array_equal(images, DIGITS.train.images[rows])
        for wrong in (rows[:5], rows[:, :3], rows.astype(float)):
            with pytest.raises(ValueError, match=r"integers \[6, 4\], got"):
                advance(0, 6, wrong)


# --- Stopping, resuming, checkpoints --------------------------------------------------------------------------------------


def train(folder, steps: int, *, loop: str = "graph", killed_at: int | None = None, batch_size: int = 60) -> dict:
    """The values of all variables after a run, which starts from what `folder` holds."""

    def progress(left: range):
        return (step for step in left if step != killed_at or kill())

    def kill():
        raise KilledError

    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, WEIGHTS)
        variables = tf.global_variables()
        bn_graph.resume(session, folder)
        options = {"directory": folder, "checkpoint_every": 10, "progress": progress}
        TRAIN[loop](session, network, DIGITS.train, steps=steps, batch_size=batch_size, seed=1, **options)
        values = session.run(variables)
    return {variable.op.name: value for variable, value in zip(variables, values, strict=True)}


@pytest.mark.parametrize("killed_at", [9, 10, 11, 34])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path, killed_at):
    uninterrupted = train(tmp_path / "whole", 35)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", 35, killed_at=killed_at)
    assert_same(uninterrupted, train(tmp_path / "killed", 35))
    assert uninterrupted["global_step"] == 35


@pytest.mark.parametrize(("first", "second"), [("feed", "graph"), ("graph", "feed")])
def test_either_loop_goes_on_from_the_others_checkpoint(tmp_path, first, second):
    expected = train(tmp_path / "alone", 26, loop="feed")
    train(tmp_path / "both", 13, loop=first)
    assert_same(expected, train(tmp_path / "both", 26, loop=second))


def test_a_checkpoint_holds_the_same_entries_whichever_loop_wrote_it(tmp_path):
    entries = []
    for loop in LOOPS:
        train(tmp_path / loop, 3, loop=loop)
        entries.append(tf.train.list_variables(tf.train.latest_checkpoint(str(tmp_path / loop))))
    assert entries[0] == entries[1]


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = train(tmp_path, 12)
    assert_same(first, train(tmp_path, 12, killed_at=0))


def test_the_progress_sees_every_step_that_is_left_once(tmp_path):
    train(tmp_path, 10)
    seen = []

    def progress(left: range):
        for step in left:
            seen.append(step)
            yield step

    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, WEIGHTS)
        bn_graph.resume(session, tmp_path)
        bn_graph.train_in_graph(session, network, DIGITS.train, steps=25, batch_size=60, seed=1, progress=progress)
    assert seen == list(range(10, 25))


def test_chunks_end_where_there_is_something_to_do_and_leave_no_step_out():
    found = list(bn_graph.chunks(3, 240, pause_after=lambda finished: finished % 50 == 1, longest=40))
    assert [step for chunk in found for step in chunk] == list(range(3, 240))
    assert {51, 101, 151, 201, 240} <= {chunk.stop for chunk in found}
    assert max(map(len, found)) == 40
    assert list(bn_graph.chunks(5, 5)) == []


def test_the_rows_are_those_of_batch_rows_wherever_one_starts():
    batches = _Batches(100, 30, seed=4)
    every = list(itertools.islice(bn_graph.training.datasets.batch_rows(100, 30, seed=4), 12))
    for start, stop in ((0, 2), (2, 5), (7, 12), (1, 4)):  # across epochs of three batches; jumps; back
        np.testing.assert_array_equal(batches.rows(start, stop), every[start:stop])


# --- What the loop leaves alone -------------------------------------------------------------------------------------------


def test_no_collection_of_the_graph_gets_an_entry():
    with tf.Graph().as_default() as graph, tf.Session(config=bn_graph.session_config()) as session:
        steps = solver_pair()
        before = {key: list(graph.get_collection(key)) for key in graph.get_all_collection_keys()}
        bn_graph.graph_loop(session, steps, DIGITS.train, batch_size=30, seed=0)
        after = {key: list(graph.get_collection(key)) for key in graph.get_all_collection_keys()}
    assert len(before[tf.GraphKeys.UPDATE_OPS]) == 4
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys() <= {RESIDENT, "while_context"}


def test_the_examples_are_held_once_and_are_no_constant_of_the_graph():
    with tf.Graph().as_default() as graph, tf.Session(config=bn_graph.session_config()) as session:
        steps = solver_pair()
        for size in (30, 20):
            bn_graph.graph_loop(session, steps, DIGITS.train, batch_size=size, seed=0)
        assert len(graph.get_collection(RESIDENT)) == 2  # images and labels
        largest = max(node.ByteSize() for node in graph.as_graph_def().node)
    assert largest < 0.1 * DIGITS.train.images.nbytes


def test_evaluation_between_chunks_moves_nothing():
    def run(evaluate: bool) -> dict:
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            model = bn_graph.Model("model", 64, 10, [8], seed=0)
            solver = bn_graph.Solver(session, model)
            variables = tf.global_variables()
            session.run(tf.global_variables_initializer())
            advance = bn_graph.graph_loop(session, bn_graph.step_of(model), DIGITS.train, batch_size=30, seed=0)
            for chunk in bn_graph.chunks(0, 9, longest=3):
                advance(chunk.start, chunk.stop)
                if evaluate:
                    solver.evaluate(*DIGITS.test)
                    solver.evaluate(*DIGITS.test, batch_size=100, is_training=True)
            return {variable.op.name: value for variable, value in zip(variables, session.run(variables), strict=True)}

    assert_same(run(evaluate=False), run(evaluate=True))


# --- What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build_loop", LOOPS.values())
def test_a_batch_larger_than_the_split_is_refused_before_anything_is_built(build_loop):
    with tf.Graph().as_default(), tf.Session() as session, pytest.raises(ValueError, match="from 1 to 1300"):
        build_loop(session, model_step(), DIGITS.train, batch_size=1301, seed=0)


def test_a_placeholder_without_a_value_is_named():
    with tf.Graph().as_default(), tf.Session() as session:
        step = model_step(normalized(None))._replace(constants={})
        with pytest.raises(ValueError, match=r"model/is_training .*constants"):
            bn_graph.graph_loop(session, step, DIGITS.train, batch_size=30, seed=0)


def test_ref_variables_are_refused_and_the_fed_loop_takes_them():
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        with tf.variable_scope("", use_resource=False):
            step = model_step()
        session.run(tf.global_variables_initializer())
        with pytest.raises(ValueError, match=r"ref variable.*enable_resource_variables"):
            bn_graph.graph_loop(session, step, DIGITS.train, batch_size=30, seed=0)
        bn_graph.feed_loop(session, step, DIGITS.train, batch_size=30, seed=0)(0, 1)


def test_train_ops_that_share_what_one_assigns_are_refused_and_named():
    with tf.Graph().as_default(), tf.Session() as session:
        networks = []
        for name in ("one", "other"):
            with tf.variable_scope(name):
                networks.append(bn_graph.step_of(bn_graph.build_graph(True, WEIGHTS)))
        with pytest.raises(ValueError, match=r"side by side.*both use \S+, which the first assigns"):
            bn_graph.graph_loop(session, networks, DIGITS.train, batch_size=30, seed=0)


def test_a_network_for_inference_has_no_step():
    with tf.Graph().as_default(), pytest.raises(ValueError, match="is_training=False"):
        bn_graph.step_of(bn_graph.build_graph(False, WEIGHTS))


def test_a_global_step_that_no_train_op_counts_counts_the_steps():
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        global_step, steps = tf.train.get_or_create_global_step(), solver_pair()
        session.run(tf.global_variables_initializer())
        for build_loop in LOOPS.values():
            options = {"batch_size": 30, "seed": 0, "global_step": global_step}
            build_loop(session, steps, DIGITS.train, **options)(0, 4)
        assert session.run(global_step) == 8


@pytest.mark.parametrize("build_loop", LOOPS.values())
def test_a_global_step_that_a_train_op_counts_is_not_counted_again(build_loop):
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(True, WEIGHTS)
        with pytest.raises(ValueError, match=r"increments global_step itself.*global_step=None"):
            build_loop(
                session,
                bn_graph.step_of(network),
                DIGITS.train,
                batch_size=30,
                seed=0,
                global_step=network.global_step,
            )


def without_a_switch(inputs, units, is_training, kernel_initializer):
    """A hidden layer that trains, whatever the model's switch says."""
    del is_training
    return normalized(None)(inputs, units, True, kernel_initializer)


def image_step(flag_is_fed: bool) -> bn_graph.Step:
    """A network of two convolutions with batch norm; the second's inputs lie far from 0."""
    is_training = tf.placeholder(tf.bool, [], name="is_training") if flag_is_fed else True
    images, labels = tf.placeholder(tf.float32, [None, 64]), tf.placeholder(tf.float32, [None, 10])
    hidden = tf.reshape(images, [-1, 8, 8, 1])
    with tf.variable_scope("", use_resource=True):
        for number, (channels, offset) in enumerate([(4, 0.0), (6, 32.0)]):
            shape = [3, 3, hidden.shape[3], channels]
            kernel = tf.get_variable(f"kernel{number}", shape, initializer=tf.glorot_uniform_initializer(seed=number))
            hidden = tf.nn.conv2d(hidden, kernel, strides=[1, 2, 2, 1], padding="SAME") + offset
            hidden = tf.nn.relu(bn_graph.batch_norm_wrapper(hidden, is_training, decay=0.9, name=f"bn{number}"))
        hidden = tf.reshape(hidden, [-1, 24])
        weights = tf.get_variable("weights", [24, 10], initializer=tf.glorot_uniform_initializer(seed=2))
    loss = tf.losses.softmax_cross_entropy(labels, hidden @ weights)
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
    return bn_graph.Step(train_op, images, labels, {is_training: True} if flag_is_fed else {}, [loss])


# Over how many steps rounding stays rounding. In the networks of images a rectified value comes out on the other side of
# 0 sooner or later, and the losses part from there: by 10⁻² after 75 steps compiled with TensorFlow 2.16, and as much in
# the uncompiled loop with 2.21, if the first kernel starts 3·10⁻⁷ larger.
COMPILED = {
    "r2rt pair": (r2rt_pair, 200),
    "model": (lambda: [model_step(without_a_switch)], 200),
    "model with a flag": (lambda: [model_step(normalized(None))], 200),
    "images": (lambda: [image_step(False)], 40),
    "images with a flag": (lambda: [image_step(True)], 40),
}
# The conds are a flag's, and the one with which a layer of images chooses by its values.
COMPILED_WITH_CONDS = [
    *(("r2rt pair", "v2"), ("model", "v2"), ("model with a flag", "v1"), ("model with a flag", "v2")),
    *(("images", "v1"), ("images with a flag", "v2")),
]


def lstm_step() -> bn_graph.Step:
    """A recurrent network of the images' rows, whose statistics move inside its own loop."""
    images, labels = tf.placeholder(tf.float32, [None, 64]), tf.placeholder(tf.float32, [None, 10])
    cell = BatchNormLSTMCell(6, True, max_steps=8, input_initializer=tf.glorot_uniform_initializer(seed=0))
    hidden = tf.nn.dynamic_rnn(cell, tf.reshape(images, [-1, 8, 8]), dtype=tf.float32)[1].h
    weights = tf.get_variable("weights", [6, 10], initializer=tf.glorot_uniform_initializer(seed=1), use_resource=True)
    loss = tf.losses.softmax_cross_entropy(labels, hidden @ weights)
    return bn_graph.Step(tf.train.GradientDescentOptimizer(0.1).minimize(loss), images, labels, {}, [loss])


def test_a_step_with_a_loop_of_its_own_has_the_fed_loops_bits():
    ends = {}
    for name in LOOPS:
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            tf.set_random_seed(0)  # the recurrent kernel's first values
            step = lstm_step()
            session.run(tf.global_variables_initializer())
            ((losses,),) = LOOPS[name](session, step, DIGITS.train, batch_size=30, seed=1)(0, 20)
            ends[name] = session.run({each.op.name: each for each in tf.global_variables()}) | {"losses": losses}
    assert ends["feed"]["rnn/bn_lstm_cell/bn_h/moving_mean"].any()
    assert_same(ends["feed"], ends["graph"])


def test_a_step_with_a_loop_of_its_own_can_not_be_compiled_and_the_error_says_so(cond_kind):
    with tf.Graph().as_default(), tf.Session() as session:
        step = lstm_step()
        with pytest.raises(ValueError, match=r"a tf.cond or a tf.while_loop"):
            bn_graph.graph_loop(session, step, DIGITS.train, batch_size=30, seed=1, compiled=True)


def test_a_compiled_loop_ends_with_the_same_bits_however_it_is_cut_into_chunks():
    ends = []
    for longest in (7, 20):
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            step, counter = r2rt_pair()[0], tf.train.get_or_create_global_step()
            session.run(tf.global_variables_initializer())
            options = {"batch_size": 30, "seed": 1, "global_step": counter, "compiled": True}
            advance = bn_graph.graph_loop(session, step, DIGITS.train, **options)
            losses = [advance(chunk.start, chunk.stop)[0][0] for chunk in bn_graph.chunks(0, 20, longest=longest)]
            ends.append({each.op.name: each for each in tf.global_variables()})
            ends[-1] = session.run(ends[-1]) | {"losses": np.concatenate(losses)}
    assert ends[0]["losses"].shape == (20,) and ends[0][counter.op.name] == 20
    assert_same(*ends)


@pytest.mark.parametrize(("network", "cond_kind"), COMPILED_WITH_CONDS, indirect=["cond_kind"])
def test_a_compiled_loop_comes_to_the_fed_loops_numbers_but_for_rounding(network, cond_kind):
    build, steps_to_compare = COMPILED[network]
    half = steps_to_compare // 2
    ends = {}
    for compiled in (False, True):
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config(networks=2)) as session:
            steps = build()
            session.run(tf.global_variables_initializer())
            advance = bn_graph.graph_loop(session, steps, DIGITS.train, batch_size=30, seed=1, compiled=compiled)
            losses = [[values for (values,) in advance(start, start + half)] for start in (0, half)]
            ends[compiled] = session.run({each.op.name: each for each in tf.global_variables()}), np.array(losses)
    assert ends[False][0].keys() == ends[True][0].keys()
    # XLA's kernels add up in another order, and the steps carry the difference on.
    np.testing.assert_allclose(ends[True][1], ends[False][1], rtol=1e-4)
    for name, value in ends[False][0].items():
        np.testing.assert_allclose(ends[True][0][name], value, rtol=0, atol=1e-4 * max(1.0, np.abs(value).max()))


def test_a_cond_that_nothing_decides_can_not_be_compiled_and_the_error_says_what_can(cond_kind):
    def chosen_by_the_batch(inputs, units, is_training, kernel_initializer):
        outputs = biased_layer(inputs, units, is_training, kernel_initializer)
        return tf.cond(tf.reduce_sum(inputs) > 0.0, lambda: outputs, lambda: 2.0 * outputs)

    with tf.Graph().as_default(), tf.Session() as session:
        step = model_step(chosen_by_the_batch)
        with pytest.raises(ValueError, match=r"has a tf.cond.*constants.*don't decide"):
            bn_graph.graph_loop(session, step, DIGITS.train, batch_size=30, seed=1, compiled=True)
