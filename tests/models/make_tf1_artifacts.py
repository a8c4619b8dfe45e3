"""Writes graphs and checkpoints of real TensorFlow 1, and beside each what that TensorFlow computed with it.

It runs under the old versions themselves (Python 3.6 and 3.7; ``make eras`` installs them)::

    for version in 1.0.1 1.4.1 1.15.5; do .eras/$version/bin/python tests/models/make_tf1_artifacts.py; done

Each case is a directory ``tests/models/tf1/VERSION/CASE`` with a checkpoint and its ``.meta``, or with a SavedModel, and
``facts.json``:

``open``          what the audit opens: a file, or "." for the SavedModel
``checkpoint``    its prefix; None of a SavedModel
``errors``        codes of the audit's findings at error level, by the documents' words, with the layers of each
``cannot_tell``   codes of what the audit can't tell
``layers``        scope of each layer: gamma, beta (None if it has none), moving mean, moving variance
``weights``       the other variables of the network: of the convolution, the matmul and the logits
``input``         the tensor that is fed; ``feeds``: what the switch is fed at inference
``output``        the tensor that inference fetches
``trained``       the statistics that training moved, and that are so when it is saved
``outputs``       logits of the first examples by the checkpoint's statistics (initial ones where it has none)
``fetched``       what running ``output`` gave; ``moved``: the statistics that this changed
``population``    the statistics over all examples, a layer after the other; the variance is the unbiased one
``recalibrated``  logits of the first examples with those

The examples are in ``tests/models/tf1/examples.npz``. All values are float32, computed by a single thread.
"""

import collections
import contextlib
import glob
import json
import os
import shutil
import sys
import tempfile

import numpy as np
import tensorflow as tf

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tf1")
MINOR = int(tf.__version__.split(".")[1])
STEPS, EXAMPLES, SHOWN, DECAY, EPSILON = 20, 24, 5, 0.8, 1e-3
KERAS = ("bn1", "bn2")
BOTH, FIRST = ("net/bn1", "net/bn2"), ("net/bn1",)
TWO = BOTH if MINOR else FIRST  # in 1.0.1 they would be twice as large

Case = collections.namedtuple("Case", "make errors cannot_tell")
Graph = collections.namedtuple("Graph", "x labels training logits loss layer_inputs")
CASES = collections.OrderedDict()


def case(errors="", versions=(0, 4, 15), layers=FIRST, cannot_tell=()):
    """Registers a function that writes a case and returns its facts.

    Args:
        errors: codes, each of all `layers`.
        versions: which versions write it, by their minor numbers: one or two of each case, for the size of it all.
        layers: their scopes.
        cannot_tell: codes.
    """

    def register(make):
        if MINOR in versions:
            CASES[make.__name__] = Case(make, {code: list(layers) for code in errors.split()}, list(cannot_tell))
        return make

    return register


# ---- Examples, network, training


def examples():
    """Images of two channels, and the class of each, one-hot."""
    x = np.round(np.random.RandomState(0).normal(1, 2, [EXAMPLES, 4, 4, 2]) * [1, 3], 2).astype(np.float32)
    brightness = x.mean(axis=(1, 2, 3))
    return x, np.eye(2, dtype=np.float32)[(brightness > np.median(brightness)).astype(int)]


def weights(name, shape):
    values = np.random.RandomState(len(name)).normal(0, 0.5, shape)
    return tf.get_variable(name, initializer=values.astype(np.float32))


def network(x, training, norm, scopes, reuse=None):
    """A convolution, and a matmul if there are two layers, each followed by `norm(value, training, name)`.

    Returns:
        The logits, and the layers' inputs.
    """
    with tf.variable_scope("net", reuse=reuse):
        inputs = [tf.nn.conv2d(x, weights("conv", [3, 3, 2, 3]), [1, 1, 1, 1], "SAME")]
        hidden = tf.reshape(tf.nn.relu(norm(inputs[0], training, "bn1")), [-1, 48])
        if len(scopes) == 2:
            inputs.append(tf.matmul(hidden, weights("dense", [48, 4])))
            hidden = tf.tanh(norm(inputs[1], training, "bn2"))
        width = hidden.get_shape().as_list()[-1]
        return tf.matmul(hidden, weights("out", [width, 2]), name="logits"), inputs


def build(norm, training=None, scopes=BOTH):
    """The whole graph; `training` is a bool, or None for a placeholder."""
    tf.set_random_seed(0)
    x = tf.placeholder(tf.float32, [None, 4, 4, 2], name="x")
    labels = tf.placeholder(tf.float32, [None, 2], name="labels")
    if training is None:
        training = tf.placeholder(tf.bool, [], name="is_training")
    logits, layer_inputs = network(x, training, norm, scopes)
    return Graph(x, labels, training, logits, loss_of(logits, labels), layer_inputs)


def loss_of(logits, labels):
    return tf.nn.l2_loss(logits - labels, name="loss")


def minimize(loss, rate=0.01, **options):
    return tf.train.GradientDescentOptimizer(rate).minimize(loss, **options)


def minimize_with_updates(loss, **options):
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        return minimize(loss, **options)


def one_thread():
    return tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)


def fed(graph, x, training):
    """Feeds of the input and of the switch, where there is one."""
    feeds = {graph.x: x}
    if not isinstance(graph.training, bool):
        feeds[graph.training] = training
    return feeds


def train(session, graph, train_op, steps=STEPS):
    """Some steps, each on a third of the examples."""
    x, labels = examples()
    for step in range(steps):
        part = slice(step % 3, None, 3)
        feeds = fed(graph, x[part], True)
        feeds[graph.labels] = labels[part]
        session.run(train_op, feeds)


# ---- What is written, and the facts


def write(at, norm, train_op=minimize_with_updates, training=None, **options):
    """Trains a network, saves it, and returns the facts.

    Args:
        at: the case's directory.
        norm: of `network`.
        train_op: makes the train op of a loss.
        training: as in `build`. If True, what infers is another graph, with False.
        options: scopes: of the layers; steps: how many are trained; output(graph): makes the tensor that inference
            fetches, if not the logits; saver(): makes the Saver; before_saving(session): changes values;
            inference_norm: the `norm` of another graph that infers.
    """
    prefix, scopes = os.path.join(at, "model"), options.get("scopes", FIRST)
    with tf.Graph().as_default(), tf.Session(config=one_thread()) as session:
        graph = build(norm, training, scopes)
        step = train_op(graph.loss)
        output = options.get("output", lambda graph: graph.logits)(graph)
        saver = options.get("saver", tf.train.Saver)()
        session.run(tf.global_variables_initializer())
        start = values(session)
        train(session, graph, step, options.get("steps", STEPS))
        options.get("before_saving", lambda session: None)(session)
        trained = changed(start, values(session))
        saver.save(session, prefix, write_state=False)
        facts = fetched(session, prefix, graph, output)
        if training is None and "inference_norm" not in options:
            facts.update(answers(session, prefix, graph, scopes))
    if training is not None or "inference_norm" in options:
        facts.update(inferred(prefix, options.get("inference_norm", norm), training and False, scopes))
    return dict(facts, open="model.meta", checkpoint="model", trained=trained)


def inferred(prefix, norm, training, scopes):
    """`answers` of a graph that is built to infer with a checkpoint."""
    with tf.Graph().as_default(), tf.Session(config=one_thread()) as session:
        return answers(session, prefix, build(norm, training, scopes), scopes)


def fetched(session, prefix, graph, output):
    """What fetching `output` at inference gives, with the values of the checkpoint, and what it changes."""
    restore(session, prefix)
    before = values(session)
    got = session.run(output, fed(graph, examples()[0][:SHOWN], False))
    feeds = {} if isinstance(graph.training, bool) else {graph.training.op.name: False}
    facts = {"input": graph.x.name, "output": output.name, "feeds": feeds}
    return dict(facts, fetched=numbers(got), moved=changed(before, values(session)))


def answers(session, prefix, graph, scopes):
    """The logits by the checkpoint's statistics, the statistics over all examples, and the logits by those."""
    x, _ = examples()
    restore(session, prefix)
    facts = {"outputs": numbers(session.run(graph.logits, fed(graph, x[:SHOWN], False)))}
    facts.update(layers=collections.OrderedDict(), population=collections.OrderedDict())
    for layer, layer_input in zip(scopes, graph.layer_inputs):  # noqa: B905  (Python 3.6 has no strict=)
        value = session.run(layer_input, fed(graph, x, False)).astype(np.float64)
        value = value.reshape([-1, value.shape[-1]])
        mean, variance = statistics(layer)
        for variable, computed in ((mean, value.mean(axis=0)), (variance, value.var(axis=0, ddof=1))):
            facts["population"][variable.op.name] = numbers(computed)
            give(session, variable, computed)
        facts["layers"][layer] = [*parameters(layer), mean.op.name, variance.op.name]
    facts["weights"] = [v.op.name for v in tf.trainable_variables() if not v.op.name.startswith(scopes)]
    facts["recalibrated"] = numbers(session.run(graph.logits, fed(graph, x[:SHOWN], False)))
    return facts


def restore(session, prefix):
    """The checkpoint's values, and initial ones for what it lacks."""
    session.run(tf.global_variables_initializer())
    there = tf.train.NewCheckpointReader(prefix).get_variable_to_shape_map()
    tf.train.Saver([v for v in tf.global_variables() if v.op.name in there]).restore(session, prefix)


def give(session, variable, value):
    start = variable.initializer.inputs[1]
    session.run(variable.initializer, {start: np.reshape(value, start.get_shape().as_list())})


def all_statistics():
    """The untrained variables of the layers, without what zero-debiasing keeps."""
    trainable = [v.op.name for v in tf.trainable_variables()]
    kept = [v for v in tf.global_variables() if "bn" in v.op.name and v.op.name not in trainable]
    return [v for v in kept if not v.op.name.endswith(("/biased", "/local_step", "/SGD", "/Momentum"))]


def statistics(layer):
    """The moving mean and the moving variance of a layer: in the order that they were made in."""
    mean, variance = [v for v in all_statistics() if v.op.name.startswith(layer + "/")]
    return mean, variance


def parameters(layer):
    """Names of gamma and beta, or None."""
    own = [v.op.name for v in tf.trainable_variables() if v.op.name.startswith(layer + "/")]
    pairs = (("/gamma", "/scale"), ("/beta", "/offset"))
    return [next((name for name in own if name.endswith(endings)), None) for endings in pairs]


def values(session):
    return {v.op.name: session.run(v) for v in all_statistics()}


def changed(before, after):
    return sorted(name for name in before if not np.array_equal(before[name], after[name]))


def numbers(array):
    """Lists that JSON keeps exactly to float32's precision."""
    if not np.all(np.isfinite(array)):
        raise ValueError("the network has diverged")
    return [numbers(row) for row in array] if np.ndim(array) else float("%.9g" % array)  # noqa: UP031


# ---- Layers


def layers(x, training, name):
    return tf.layers.batch_normalization(x, training=training, momentum=DECAY, name=name)


def contrib(x, training, name, **options):
    return tf.contrib.layers.batch_norm(x, decay=DECAY, scale=True, is_training=training, scope=name, **options)


def contrib_in_place(x, training, name):
    return contrib(x, training, name, updates_collections=None)


def slim(x, training, name):
    """slim's own defaults but for the decay: no gamma."""
    return tf.contrib.slim.batch_norm(x, decay=DECAY, is_training=training, scope=name)


def scale_and_offset(x):
    size = x.get_shape().as_list()[-1]
    scale = tf.get_variable("scale", [size], initializer=tf.ones_initializer())
    return scale, tf.get_variable("offset", [size], initializer=tf.zeros_initializer())


def averaged(x, training, name, leaking=False):
    """Batch moments, averaged by an ExponentialMovingAverage in the training branch; or, `leaking`, outside of it."""
    with tf.variable_scope(name):
        scale, offset = scale_and_offset(x)
        mean, variance = tf.nn.moments(x, list(range(x.get_shape().ndims - 1)))
        average = tf.train.ExponentialMovingAverage(DECAY)
        applied = average.apply([mean, variance]) if leaking else None

        def by_batch():
            with tf.control_dependencies([applied or average.apply([mean, variance])]):
                return tf.identity(mean), tf.identity(variance)

        def by_average():
            if not leaking:
                return tf.identity(average.average(mean)), tf.identity(average.average(variance))
            with tf.control_dependencies([applied]):
                return tf.identity(average.average(mean)), tf.identity(average.average(variance))

        used = tf.cond(training, by_batch, by_average)
        return tf.nn.batch_normalization(x, used[0], used[1], offset, scale, EPSILON)


def leaking_average(x, training, name):
    return averaged(x, training, name, leaking=True)


def assigned(x, training, name):
    """Statistics in variables, assigned where the layer is built for training."""
    with tf.variable_scope(name):
        scale, offset = scale_and_offset(x)
        shape = scale.get_shape().as_list()
        mean = tf.get_variable("pop_mean", shape, initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable("pop_var", shape, initializer=tf.ones_initializer(), trainable=False)
        if not training:
            return tf.nn.batch_normalization(x, mean, variance, offset, scale, EPSILON)
        batch = tf.nn.moments(x, list(range(x.get_shape().ndims - 1)))
        updates = [
            tf.assign(old, old * DECAY + new * (1 - DECAY)) for old, new in ((mean, batch[0]), (variance, batch[1]))
        ]
        with tf.control_dependencies(updates):
            return tf.nn.batch_normalization(x, batch[0], batch[1], offset, scale, EPSILON)


# ---- Healthy cases


@case()
def tf_layers(at):
    return write(at, layers, scopes=BOTH if MINOR == 15 else FIRST)


@case(versions=[15])
def contrib_collected(at):
    return write(at, contrib)


@case(versions=[0, 4])
def contrib_updates_in_place(at):
    return write(at, contrib_in_place, minimize, scopes=TWO)


@case()
def slim_train_op(at):
    """Trained by slim's own train op, in a graph that is built for training only."""

    def train_op(loss):
        return tf.contrib.slim.learning.create_train_op(loss, tf.train.GradientDescentOptimizer(0.01))

    return write(at, slim, train_op, training=True, scopes=TWO)


@case(versions=[0, 15])
def moving_averages_in_a_cond(at):
    return write(at, averaged, minimize)


@case()
def assigns_of_a_training_graph(at):
    return write(at, assigned, minimize, training=True)


@case(versions=[4, 15])
def monitored_training_session(at):
    """What MonitoredTrainingSession leaves in its directory: a training graph with the session's own ops in it."""
    with tf.Graph().as_default(), tempfile_directory() as run:
        graph = build(layers, True, FIRST)
        step = minimize_with_updates(graph.loss, global_step=tf.contrib.framework.get_or_create_global_step())
        with tf.train.MonitoredTrainingSession(
            checkpoint_dir=run, save_summaries_steps=None, config=one_thread()
        ) as session:
            train(session, graph, step)
        names = {"input": graph.x.name, "output": graph.logits.name, "feeds": {}}
        return dict(latest(run, at), **dict(names, **inferred(os.path.join(at, "model"), layers, False, FIRST)))


def latest(run, at):
    """Takes the latest checkpoint of a run's directory to `at`; what its files are called, and what has trained."""
    prefix = tf.train.latest_checkpoint(run)
    for path in glob.glob(prefix + ".*"):
        shutil.copy(path, os.path.join(at, "model" + path[len(prefix) :]))
    reader = tf.train.NewCheckpointReader(prefix)
    moving = [name for name in reader.get_variable_to_shape_map() if "/moving_" in name]
    trained = [name for name in moving if len(np.unique(reader.get_tensor(name))) > 1]
    return {"open": "model.meta", "checkpoint": "model", "trained": sorted(trained)}


@contextlib.contextmanager
def tempfile_directory():
    path = tempfile.mkdtemp()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def estimator(run, minimize_loss):
    """An Estimator that has been trained in the directory `run`, and its serving input."""
    seen = {}

    def model_fn(features, labels, mode):
        training = mode == tf.estimator.ModeKeys.TRAIN
        logits, _ = network(features["x"], training, layers, FIRST)
        if not training:
            outputs = {"logits": logits}
            exported = {"serving_default": tf.estimator.export.PredictOutput(outputs)}
            return tf.estimator.EstimatorSpec(mode, predictions=outputs, export_outputs=exported)
        seen.update(input=features["x"].name, output=logits.name, feeds={})
        loss = loss_of(logits, labels)
        step = minimize_loss(loss, global_step=tf.train.get_global_step())
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=step)

    def input_fn():
        x, labels = examples()
        data = tf.data.Dataset.from_tensor_slices(({"x": x}, labels)).repeat().batch(8)
        return data.make_one_shot_iterator().get_next()

    config = tf.estimator.RunConfig().replace(session_config=one_thread(), tf_random_seed=0)
    trained = tf.estimator.Estimator(model_fn, run, config)
    trained.train(input_fn, steps=STEPS)
    return trained, seen


@case(versions=[4])
def estimator_run(at):
    """The training graph that an Estimator leaves, fed by a dataset."""
    with tempfile_directory() as run:
        _, seen = estimator(run, minimize_with_updates)
        facts = latest(run, at)
    return dict(facts, **dict(seen, **inferred(os.path.join(at, "model"), layers, False, FIRST)))


def exported(at, minimize_loss):
    with tempfile_directory() as run:
        trained, _ = estimator(run, minimize_loss)

        def serving():
            x = tf.placeholder(tf.float32, [None, 4, 4, 2], name="x")
            return tf.estimator.export.ServingInputReceiver({"x": x}, {"x": x})

        export = trained.export_savedmodel(os.path.join(run, "export"), serving)
        for entry in os.listdir(export):
            shutil.move(os.path.join(export, entry), os.path.join(at, entry.decode()))
        facts = latest(run, at)
        facts.update(inferred(os.path.join(at, "model"), layers, False, FIRST), open=".", checkpoint=None)
        for path in glob.glob(os.path.join(at, "model.*")):
            os.remove(path)
    return dict(facts, input="x:0", output="net/logits:0", feeds={})


@case(versions=[4, 15])
def estimator_export(at):
    return exported(at, minimize_with_updates)


def keras(at, scopes, own_train_op):
    """A network of tf.keras, trained by the model itself or by a train op of one's own; saved by a Saver."""
    k, prefix = tf.keras.layers, os.path.join(at, "model")
    with tf.Graph().as_default(), tf.Session(config=one_thread()) as session:
        tf.set_random_seed(0)
        tf.keras.backend.set_session(session)
        x = value = k.Input([4, 4, 2], name="x")
        inputs = []
        for linear, name, activation in (
            (k.Conv2D(3, 3, padding="same", use_bias=False, name="conv"), "bn1", "relu"),
            (k.Dense(4, use_bias=False, name="dense"), "bn2", "tanh"),
        )[: len(scopes)]:
            inputs.append(linear(value))
            value = k.BatchNormalization(momentum=DECAY, name=name)(inputs[-1])
            value = k.Activation(activation)(value)
            value = k.Flatten()(value)
        model = tf.keras.models.Model(x, k.Dense(2, use_bias=False, name="logits")(value))
        labels = tf.placeholder(tf.float32, [None, 2], name="labels")
        graph = Graph(x, labels, tf.keras.backend.learning_phase(), model.output, loss_of(model.output, labels), inputs)
        if not own_train_op:
            model.compile("sgd", "mse")
        step = minimize(graph.loss) if own_train_op else None
        session.run(tf.global_variables_initializer())
        start = values(session)
        if own_train_op:
            train(session, graph, step)
        else:
            images, classes = examples()
            for batch in range(STEPS):
                part = slice(batch % 3, None, 3)
                model.train_on_batch(images[part], classes[part])
        trained = changed(start, values(session))
        tf.train.Saver().save(session, prefix, write_state=False)
        facts = fetched(session, prefix, graph, model.output)
        facts.update(answers(session, prefix, graph, scopes))
    return dict(facts, open="model.meta", checkpoint="model", trained=trained)


@case(versions=[15])
def keras_model(at):
    return keras(at, KERAS, own_train_op=False)


# ---- Cases with a fault


@case("BN001 BN002 BN004")
def tf_layers_detached(at):
    """As in the next ones, ``training=True`` stands in the program: the only output normalizes by the batch."""
    return write(at, layers, minimize, training=True)


@case("BN001 BN002", versions=[4])
def contrib_detached(at):
    return write(at, contrib, minimize)


@case("BN001 BN002", versions=[4], layers=KERAS[:1])
def keras_with_a_train_op_of_ones_own(at):
    return keras(at, KERAS[:1], own_train_op=True)


@case("BN004", versions=[4, 15])
def tf_layers_prediction_in_training_mode(at):
    """The copy that predicts is built with training=True as well."""
    return write(at, layers, training=True, output=lambda graph: network(graph.x, True, layers, FIRST, reuse=True)[0])


@case("BN004 BN005", versions=[4, 15])
def contrib_prediction_in_training_mode(at):
    def predicted(graph):
        return network(graph.x, True, contrib_in_place, FIRST, reuse=True)[0]

    return write(at, contrib_in_place, minimize, training=True, output=predicted)


@case("BN003 BN004 BN006", versions=[4, 15])
def tf_layers_saver_of_trainables(at):
    return write(at, layers, training=True, saver=lambda: tf.train.Saver(tf.trainable_variables()))


@case("BN002 BN004", versions=[15])
def tf_layers_initialized_again(at):
    """The weights were trained; the statistics were not in what was restored, and were initialized and saved again."""
    return write(
        at,
        layers,
        training=True,
        before_saving=lambda session: session.run(tf.variables_initializer(all_statistics())),
    )


@case(versions=[4], cannot_tell=["BN002"])
def tf_layers_never_trained(at):
    """A train op that has not run yet."""
    return write(at, layers, training=True, steps=0)


@case("BN005", versions=[15])
def moving_averages_outside_of_the_cond(at):
    return write(at, leaking_average, minimize, inference_norm=averaged)


@case("BN007", versions=[15])
def tf_layers_called_twice(at):
    """Each layer is called twice on the same values, and both calls' updates run."""

    def twice(x, training, name):
        layers(x, training, name)
        return tf.layers.batch_normalization(x, training=training, momentum=DECAY, name=name, reuse=True)

    return write(at, twice)


@case("BN002 BN008")
def tf_layers_in_their_default_mode(at):
    """``training=`` is left out: the layers infer while they are trained."""

    def default_mode(x, training, name):
        return tf.layers.batch_normalization(x, momentum=DECAY, name=name)

    return write(at, default_mode, lambda loss: minimize(loss, rate=1e-5))


@case("BN002", versions=[15])
def estimator_export_detached(at):
    return exported(at, minimize)


def main(names):
    folder = os.path.join(FOLDER, tf.__version__)
    for name in names or CASES:
        at = os.path.join(folder, name)
        shutil.rmtree(at, ignore_errors=True)
        os.makedirs(at)
        chosen = CASES[name]
        facts = dict(chosen.make(at), tensorflow=tf.__version__, errors=chosen.errors, cannot_tell=chosen.cannot_tell)
        with open(os.path.join(at, "facts.json"), "w") as file:
            json.dump(facts, file, sort_keys=True)
            file.write("\n")
        print(f"{name:45} {sum(os.path.getsize(path) for path in files(at)):7d} bytes")
    path = os.path.join(FOLDER, "examples.npz")
    if not os.path.exists(path):
        np.savez_compressed(path, x=examples()[0])


def files(at):
    return [os.path.join(folder, name) for folder, _, names in os.walk(at) for name in names]


if __name__ == "__main__":
    main(sys.argv[1:])
