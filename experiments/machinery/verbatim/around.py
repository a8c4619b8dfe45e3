"""What is put around programs of the documents that are parts of one: a network, its data, a measurement.

Each function gets the names that the program's steps have defined and may define more; what it returns is kept as measured.
It runs in the environment's own interpreter and TensorFlow (Python 3.6 and up, TensorFlow 1.0 and up), through no shim but
the one that the program itself has.
"""

import ast
import gzip
import inspect
import os
import re

import numpy as np

# One network for all parts that need one: 784-100-10, ReLU, Adam, batches of 60. A thousand steps are enough for 0.97.
UNITS, CLASSES, BATCH, STEPS, RATE = 100, 10, 60, 1000, 0.01
# The convolutional one of the helper class is slower and learns faster.
CONVOLUTIONAL_STEPS = 500
FOLDER = "MNIST_data"


class Data:
    """MNIST, as the tutorial split has it, without its validation images; pixels from 0 to 1, one-hot labels."""

    def __init__(self):
        train, labels = _idx("train-images-idx3-ubyte"), _idx("train-labels-idx1-ubyte")
        test, test_labels = _idx("t10k-images-idx3-ubyte"), _idx("t10k-labels-idx1-ubyte")
        self.train, self.labels = _flat(train[5000:]), np.eye(CLASSES, dtype=np.float32)[labels[5000:]]
        self.test, self.test_labels = _flat(test), np.eye(CLASSES, dtype=np.float32)[test_labels]

    def batches(self, steps, seed):
        """So many batches drawn without order, the same for the same seed in every environment."""
        random = np.random.RandomState(seed)
        for _ in range(steps):
            rows = random.randint(0, len(self.train), BATCH)
            yield self.train[rows], self.labels[rows]


def _idx(name):
    with gzip.open(os.path.join(FOLDER, name + ".gz")) as file:
        content = file.read()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)


def _flat(images):
    return images.reshape(len(images), -1).astype(np.float32) / 255


# --- a network around one layer of batch norm ----------------------------------------------------------------------------
def hidden_layer(names, seed):
    """Placeholders and the input of the hidden layer's batch norm, under the names that the article's snippets take."""
    tf = names["tf"]
    names["images"] = tf.placeholder(tf.float32, [None, 784])
    names["labels"] = tf.placeholder(tf.float32, [None, CLASSES])
    weights = tf.Variable(np.random.RandomState(seed).normal(size=(784, UNITS)).astype(np.float32) / 28)
    names["input"] = names["x"] = tf.matmul(names["images"], weights)
    if "is_traing" not in names:
        names["is_traing"] = names["training"] = tf.placeholder(tf.bool)


def loss_of_output(names, seed):
    """Everything after the batch norm: ReLU, the last layer, the loss, the accuracy; and the optimizer."""
    tf = names["tf"]
    normalized = names["output"] if "output" in names else names["x_norm"]
    weights = tf.Variable(np.random.RandomState(seed + 1).normal(size=(UNITS, CLASSES)).astype(np.float32) / 10)
    logits = tf.matmul(tf.nn.relu(normalized), weights) + tf.Variable(tf.zeros([CLASSES]))
    losses = tf.nn.softmax_cross_entropy_with_logits(labels=names["labels"], logits=logits)
    names["loss"] = tf.reduce_mean(losses)
    right = tf.equal(tf.argmax(logits, 1), tf.argmax(names["labels"], 1))
    names["accuracy"] = tf.reduce_mean(tf.cast(right, tf.float32))
    names["optimizer"] = tf.train.AdamOptimizer(RATE)


def train_and_score(names, seed):
    """Trains with the program's train op; the test accuracy with the flag True and False, and the statistics."""
    tf = names["tf"]
    data, session = Data(), tf.Session()
    names["sess"] = session
    session.run(tf.global_variables_initializer())
    for images, labels in data.batches(STEPS, seed):
        session.run(names["train_op"], {names["images"]: images, names["labels"]: labels, names["is_traing"]: True})
    return dict(_scores(names, session, data), steps=STEPS, **moving_statistics(names, seed))


def _scores(names, session, data):
    feed = {names["images"]: data.test, names["labels"]: data.test_labels}
    flags = {"accuracy, training=True": True, "accuracy, training=False": False}
    fed = {name: dict(feed, **{}) for name in flags}
    for name, flag in flags.items():
        fed[name][names["is_traing"]] = flag
    return {name: float(session.run(names["accuracy"], feed)) for name, feed in sorted(fed.items())}


def moving_statistics(names, seed):
    """What the moving statistics hold, as far as they are: least and largest value of each."""
    tf, found = names["tf"], {}
    session = names["sess"]
    for variable in tf.global_variables():
        if "moving_" in variable.name:
            values = session.run(variable)
            found[variable.op.name] = [float(values.min()), float(values.max())]
    return {"moving statistics": found}


# --- the article's wrapper -----------------------------------------------------------------------------------------------
def _build_wrapper_network(names, seed):
    hidden_layer(names, seed)
    names["output"] = names["batch_norm"](names["input"], "hidden", names["is_traing"])
    loss_of_output(names, seed)
    names["train_op"] = names["optimizer"].minimize(names["loss"])


def train_wrapper(names, seed):
    """Trains and saves a network with the article's wrapper."""
    tf = names["tf"]
    _build_wrapper_network(names, seed)
    measured = train_and_score(names, seed)
    # Whether asking for predictions moves the population, as the assigns outside the branches suggest.
    session, data = names["sess"], Data()
    before = _population(names, session)
    path = tf.train.Saver().save(session, os.path.join(os.getcwd(), "wrapper"))
    feed = {names["images"]: data.test[:1], names["labels"]: data.test_labels[:1], names["is_traing"]: False}
    for _ in range(10):
        session.run(names["accuracy"], feed)
    moved = float(np.abs(_population(names, session) - before).max())
    names["saved"] = path
    session.close()
    measured["population moved by ten predictions"] = moved
    return {"trained": measured}


def _population(names, session):
    return np.array(session.run([each for each in names["tf"].global_variables() if "pop_" in each.name]))


def rebuild_wrapper(names, seed):
    """The same network in a new graph, restored: its accuracy by the population's statistics."""
    tf = names["tf"]
    tf.reset_default_graph()
    for name in ("is_traing", "output"):
        del names[name]
    _build_wrapper_network(names, seed + 100)
    with tf.Session() as session:
        tf.train.Saver().restore(session, names["saved"])
        return {"restored": _scores(names, session, Data())}


# --- contrib -------------------------------------------------------------------------------------------------------------
def train_contrib(names, seed):
    """The network with contrib's batch_norm as it is by default, trained with its update ops."""
    tf = names["tf"]
    hidden_layer(names, seed)
    names["output"] = tf.contrib.layers.batch_norm(names["input"], is_training=names["is_traing"])
    loss_of_output(names, seed)
    updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    with tf.control_dependencies(updates):
        names["train_op"] = names["optimizer"].minimize(names["loss"])
    measured = train_and_score(names, seed)
    measured["trainable variables"] = sorted(each.op.name for each in tf.trainable_variables())
    measured["update ops"] = len(updates)
    return measured


def compare_signature(source, name, names):
    """A printed call with its defaults, against the function's own: what it lacks, has beside, and has otherwise."""
    function = names["tf"]
    for part in name.split(".")[1:]:
        function = getattr(function, part)
    live = inspect.signature(inspect.unwrap(function)).parameters
    call = ast.parse(source.strip()).body[0].value
    printed = {each.id: None for each in call.args}
    printed.update((each.arg, each.value) for each in call.keywords)
    differ = [each for each in printed if each in live and not _same_default(printed[each], live[each].default)]
    return {
        "printed and not there": [each for each in printed if each not in live],
        "there and not printed": [
            each for each in live if each not in printed and live[each].kind.name != "VAR_KEYWORD"
        ],
        "other defaults": {each: repr(live[each].default)[:80] for each in differ},
    }


def _same_default(node, default):
    if node is None:
        return default is inspect.Parameter.empty
    try:
        return ast.literal_eval(node) == default
    except ValueError:
        word = next(each for each in ast.walk(node) if isinstance(each, (ast.Attribute, ast.Name)))
        word = (getattr(word, "attr", None) or word.id).lower().replace("data_format_", "")
        return word.replace("_", "").replace("initializer", "") in repr(default).lower().replace("_", "")


# --- the article's Savers ------------------------------------------------------------------------------------------------
def train_layers(names, seed):
    """Trains a network with tf.layers' batch norm and its update ops; the session stays open."""
    _build_layers(names, seed)
    return {"trained": train_and_score(names, seed)}


def _build_layers(names, seed):
    tf = names["tf"]
    hidden_layer(names, seed)
    names["output"] = tf.layers.batch_normalization(names["input"], training=names["is_traing"])
    loss_of_output(names, seed)
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        names["train_op"] = names["optimizer"].minimize(names["loss"])


def save_and_rebuild(names, seed):
    """Saves by the program's Saver, and builds the network anew in an empty graph."""
    tf = names["tf"]
    names["saved"] = names["saver"].save(names["sess"], os.path.join(os.getcwd(), "saved"))
    saved = sorted(each.op.name for each in names["var_list"])
    names["sess"].close()
    tf.reset_default_graph()
    for name in ("is_traing", "training", "output"):
        names.pop(name, None)
    _build_layers(names, seed + 100)
    return {"variables in the list": saved}


def restore_three_ways(names, seed):
    """A Saver of all variables; the program's Saver; and the program's after the initializer: accuracy or error."""
    tf, data = names["tf"], Data()
    everything = tf.train.Saver(max_to_keep=5)

    def accuracy(saver, initialized):
        with tf.Session() as session:
            if initialized:
                session.run(tf.global_variables_initializer())
            try:
                saver.restore(session, names["saved"])
                return _scores(names, session, data)["accuracy, training=False"]
            except tf.errors.OpError as error:
                return type(error).__name__

    return {
        "by a Saver of all variables": accuracy(everything, False),
        "by this Saver": accuracy(names["saver"], False),
        "by this Saver, after the initializer": accuracy(names["saver"], True),
    }


# --- the quoted source of tf.layers --------------------------------------------------------------------------------------
class Layer:
    """As much of a layer as the quoted source asks for: its settings, its variables, its updates."""

    scale = center = True
    momentum, epsilon = 0.99, 1e-3
    gamma_regularizer = beta_regularizer = gamma_constraint = beta_constraint = None

    def __init__(self, tf):
        self.tf, self.updates = tf, []
        self.gamma_initializer = self.moving_variance_initializer = tf.ones_initializer()
        self.beta_initializer = self.moving_mean_initializer = tf.zeros_initializer()

    def add_variable(self, name, shape, dtype, initializer, trainable, regularizer=None, constraint=None):
        return self.tf.get_variable(name, shape, dtype, initializer, trainable=trainable)

    _add_tower_local_variable = add_variable

    def add_update(self, update, inputs):
        self.updates.append(update)


def supply_to_the_source(names):
    """Adds what the quoted source takes from its module and its methods' arguments; in training, on a batch of four rows."""
    tf = _tensorflow()

    class WithMethod(Layer):
        """The source has this method as a function of its own."""

        def _assign_moving_average(self, *arguments):
            return names["_assign_moving_average"](self, *arguments)

    inputs = tf.constant(np.arange(12, dtype=np.float32).reshape(4, 3) ** 2)
    names.update(self=WithMethod(tf), param_shape=[3], param_dtype=tf.float32, _broadcast=lambda value: value)
    names.update(inputs=inputs, training=True, reduction_axes=[0], keep_dims=False)
    names.update(nn=tf.nn, math_ops=tf, state_ops=tf, context=_Names(executing_eagerly=lambda: False))
    names["ops"] = _Names(name_scope=tf.name_scope, convert_to_tensor=tf.convert_to_tensor)
    names["utils"] = _Names(constant_value=lambda flag: flag, smart_cond=lambda flag, yes, no: yes() if flag else no())


def outputs_of_the_source(names, seed):
    """What the quoted source computes: means and variances of the channels, and the moving mean after its updates."""
    tf, layer = names["self"].tf, names["self"]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        outputs, _ = session.run([names["outputs"], layer.updates])
        moving = session.run(layer.moving_mean)
    measured = {"means": outputs.mean(axis=0), "variances": outputs.var(axis=0), "moving mean": moving}
    return {name: [float(each) for each in value] for name, value in measured.items()}


def _tensorflow():
    import tensorflow as tf

    return tf.compat.v1 if tf.__version__.startswith("2.") else tf


class _Names:
    """A module of so many names."""

    def __init__(self, **names):
        self.__dict__.update(names)


# --- the helper class ----------------------------------------------------------------------------------------------------
def build_helper(names, seed):
    """Two convolutions with the helper's batch norm, in training; `optimizer` is what the docstring's recipe takes."""
    tf = names["tf"]
    names["images"] = tf.placeholder(tf.float32, [None, 784])
    names["labels"] = tf.placeholder(tf.float32, [None, CLASSES])
    averages = tf.train.ExponentialMovingAverage(0.99)
    names["bn1"], names["bn2"] = (
        names["ConvolutionalBatchNormalizer"](depth, 0.001, averages, True) for depth in (8, 16)
    )
    random = np.random.RandomState(seed)
    shapes = [(5, 5, 1, 8), (5, 5, 8, 16), (7 * 7 * 16, CLASSES)]
    values = [random.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for shape in shapes]
    names["weights"] = [tf.Variable(value.astype(np.float32)) for value in values]
    loss, _ = _helper_network(names, train=True)
    names["optimizer"] = tf.train.AdamOptimizer(RATE).minimize(loss)


def _helper_network(names, train):
    tf, weights = names["tf"], names["weights"]
    values = tf.reshape(names["images"], [-1, 28, 28, 1])
    for number, layer in enumerate((names["bn1"], names["bn2"])):
        values = tf.nn.conv2d(values, weights[number], strides=[1, 2, 2, 1], padding="SAME")
        values = tf.nn.relu(layer.normalize(values, train=train))
    logits = tf.matmul(tf.reshape(values, [-1, 7 * 7 * 16]), weights[-1])
    losses = tf.nn.softmax_cross_entropy_with_logits(labels=names["labels"], logits=logits)
    right = tf.equal(tf.argmax(logits, 1), tf.argmax(names["labels"], 1))
    return tf.reduce_mean(losses), tf.reduce_mean(tf.cast(right, tf.float32))


def train_helper(names, seed):
    """Trains by the recipe's grouped op; the accuracy by the averages and by the batch; how far the averages lag."""
    tf, data = names["tf"], Data()
    _, by_averages = _helper_network(names, train=False)
    _, by_batch = _helper_network(names, train=True)
    bn1 = names["bn1"]
    shadow = bn1.ewma_trainer.average(bn1.mean)
    outcomes = {"this step's mean": 0, "the mean of the step before": 0, "neither": 0}
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        means = [session.run(bn1.mean)]
        average = session.run(shadow)
        for images, labels in data.batches(CONVOLUTIONAL_STEPS, seed):
            session.run(names["optimizer"], {names["images"]: images, names["labels"]: labels})
            mean, new = session.run([bn1.mean, shadow])
            distances = [np.abs(new - (0.99 * average + 0.01 * each)).max() for each in (mean, means[-1])]
            which = int(np.argmin(distances)) if min(distances) < 1e-6 else 2
            outcomes[["this step's mean", "the mean of the step before", "neither"][which]] += 1
            means, average = [mean], new
        feed = {names["images"]: data.test, names["labels"]: data.test_labels}
        by = session.run({"averages": by_averages}, feed)["averages"]
        scores = {"accuracy by the averages": float(by), "accuracy by the batch": float(session.run(by_batch, feed))}
    return dict(scores, steps=CONVOLUTIONAL_STEPS, averaged=outcomes)


# --- Keras ---------------------------------------------------------------------------------------------------------------
def must_have_values(names, seed):
    """In graph mode the snippet prints a symbolic tensor: that is an error here, since the document prints numbers."""
    if not hasattr(names["out"], "numpy"):
        raise ValueError("the call gives a symbolic tensor, which prints no number")


def run_the_model(names, seed):
    """Calls the document's model on ten random images; whether `predict` uses or moves the statistics is measured too."""
    import tensorflow as tf

    model = names["model"]
    images = np.random.RandomState(seed).normal(size=(10, 64, 64, 3)).astype(np.float32)
    moving = [each for each in model.layers[2].weights if "moving" in (getattr(each, "path", "") or each.name)]
    eager = getattr(tf, "executing_eagerly", lambda: False)()

    def values():
        return np.array([np.array(each) for each in (moving if eager else tf.keras.backend.batch_get_value(moving))])

    before = values()
    model(images) if eager else model.predict(images)
    after = values()
    alone = model.predict(images[:1])[0]
    among = model.predict(images)[0]
    return {
        "moved by a call": float(np.abs(after - before).max()),
        "weights": [re.sub(r":0$", "", getattr(each, "path", "") or each.name) for each in model.layers[2].weights],
        "predict, alone against among ten": float(np.abs(alone - among).max()),
    }
