"""Batch norm that people wrote themselves: recipes from answers and posts, with their faults and repaired."""

import itertools
from functools import partial
from pathlib import Path

from tensorflow.python.training import moving_averages

from bn_graph.tf1 import tf
from tests.audit.zoo.harness import (
    CONDS,
    UPDATES,
    VARIABLES,
    Built,
    case,
    feeds,
    finish,
    mode_placeholder,
    network,
    register,
    session,
    train_with_updates,
)


def _minimize(loss):
    return tf.train.GradientDescentOptimizer(0.1).minimize(loss)


def _weights(size=3):
    gamma = tf.get_variable("gamma", [size], initializer=tf.ones_initializer())
    return gamma, tf.get_variable("beta", [size], initializer=tf.zeros_initializer())


def _population(size=3, names=("pop_mean", "pop_var")):
    mean = tf.get_variable(names[0], [size], initializer=tf.zeros_initializer(), trainable=False)
    return mean, tf.get_variable(names[1], [size], initializer=tf.ones_initializer(), trainable=False)


def _axes(x):
    return list(range(x.shape.rank - 1))


# ------------------------------------------------------------------- averages kept by ExponentialMovingAverage


def averaged(x, phase_train, *, leak=False, averages=True):
    """The recipe with ``phase_train``: moments, their averages by an EMA, and a cond that chooses."""
    with tf.variable_scope("bn"):
        gamma, beta = _weights()
        batch_mean, batch_var = tf.nn.moments(x, _axes(x), name="moments")
        ema = tf.train.ExponentialMovingAverage(decay=0.9)
        applied = ema.apply([batch_mean, batch_var]) if leak or not averages else None

        def mean_var_with_update():
            if not averages:
                return tf.identity(batch_mean), tf.identity(batch_var)
            with tf.control_dependencies([applied if leak else ema.apply([batch_mean, batch_var])]):
                return tf.identity(batch_mean), tf.identity(batch_var)

        if leak or not averages:
            shadows = lambda: (ema.average(batch_mean), ema.average(batch_var))  # noqa: E731  (as the recipe has it)
        else:
            shadows = lambda: (tf.identity(ema.average(batch_mean)), tf.identity(ema.average(batch_var)))  # noqa: E731
        mean, var = tf.cond(phase_train, mean_var_with_update, shadows)
        return tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-3)


def _shadowed(at, rank=2, **options):
    training = mode_placeholder()
    net = network(lambda x: averaged(x, training, **options), rank=rank)
    return finish(at, train=[_minimize(net.loss)], outputs=[net.logits])


register("ema_in_a_cond_rank2", partial(_shadowed, rank=2), layers=1)
register("ema_in_a_cond_rank4", partial(_shadowed, rank=4), layers=1)
register("ema_in_a_cond_resource", partial(_shadowed, rank=4), layers=1, variables="resource")
register("ema_in_a_cond_v2", partial(_shadowed, rank=4), layers=1, variables="resource", cond="v2")
for _variables, _cond in itertools.product(VARIABLES, CONDS):
    register(
        f"ema_outside_its_cond_{_variables}_{_cond}",
        partial(_shadowed, leak=True),
        "BN005",
        variables=_variables,
        cond=_cond,
    )
register("ema_never_applied_in_training", partial(_shadowed, averages=False), "BN001 BN002", layers=1)


# ----------------------------------------------------------------- assigns under control dependencies (r2rt's form)


def assigned(x, is_training, *, decay=0.9, updates=True):
    """The wrapper with a Python bool, tf.assign and control dependencies."""
    with tf.variable_scope("bn", reuse=tf.AUTO_REUSE):
        scale, beta = _weights()
        pop_mean, pop_var = _population()
    if not is_training:
        return tf.nn.batch_normalization(x, pop_mean, pop_var, beta, scale, 1e-3)
    batch_mean, batch_var = tf.nn.moments(x, _axes(x))
    if not updates:
        return tf.nn.batch_normalization(x, batch_mean, batch_var, beta, scale, 1e-3)
    train_mean = tf.assign(pop_mean, pop_mean * decay + batch_mean * (1 - decay))
    train_var = tf.assign(pop_var, pop_var * decay + batch_var * (1 - decay))
    with tf.control_dependencies([train_mean, train_var]):
        return tf.nn.batch_normalization(x, batch_mean, batch_var, beta, scale, 1e-3)


def _training_graph(at, norm=assigned, **options):
    net = network(lambda x: norm(x, True))
    return finish(at, train=[_minimize(net.loss)], **options)


def _inference_graph(at, norm=assigned):
    (at / "training").mkdir()
    with tf.Graph().as_default():
        trained = _training_graph(at / "training", norm)
    net = network(lambda x: norm(x, False))
    return finish(at, restore=trained.subject, outputs=[net.logits])


for _variables in VARIABLES:
    register(f"assigned_training_graph_{_variables}", _training_graph, layers=1, variables=_variables)
    register(f"assigned_inference_graph_{_variables}", _inference_graph, layers=1, variables=_variables, still=True)


@case("BN004 BN005")
def assigned_training_graph_used_for_predictions(at):
    net = network(lambda x: assigned(x, True))
    train_op = _minimize(net.loss)
    return finish(at, train=[train_op], outputs=[net.prediction], audit_outputs=[net.prediction.op.name])


@case("BN004", allowed="BN002", still=True, not_understood=1)
def assigned_without_the_assigns(at):
    """The population variables exist, nothing reads or writes them."""
    return _training_graph(at, partial(assigned, updates=False))


@case("BN002", allowed="BN008", still=True)
def assigned_without_the_assigns_inference_graph(at):
    return _inference_graph(at, partial(assigned, updates=False))


@case()
def assigned_train_and_inference_copies(at):
    x = tf.placeholder(tf.float32, [None, 3])
    y = tf.placeholder(tf.float32, [None, 3])
    loss = tf.reduce_mean(tf.square(assigned(x, True) - y))
    return finish(at, train=[_minimize(loss)], outputs=[assigned(x, False)])


# ------------------------------------------------------------------------------------------ a cond or a select


def chosen(x, is_training, *, by, eps=1e-3, updates=True):
    """Statistics chosen by tf.where (both are computed); updates in the collection, weighted by the mode."""
    with tf.variable_scope("bn"):
        gamma, beta = _weights()
        pop_mean, pop_var = _population(names=("running_mean", "running_var"))
        batch_mean, batch_var = tf.nn.moments(x, _axes(x))
        if by == "where":
            mean, var = (tf.where(is_training, a, b) for a, b in ((batch_mean, pop_mean), (batch_var, pop_var)))
        elif by == "arithmetic":
            share = tf.cast(is_training, tf.float32)
            mean = share * batch_mean + (1 - share) * pop_mean
            var = share * batch_var + (1 - share) * pop_var
        else:
            mean, var = tf.cond(
                is_training,
                lambda: (tf.identity(batch_mean), tf.identity(batch_var)),
                lambda: (tf.identity(pop_mean), tf.identity(pop_var)),
            )
        if updates:
            tf.add_to_collection(UPDATES, tf.assign(pop_mean, 0.9 * pop_mean + 0.1 * mean))
            tf.add_to_collection(UPDATES, tf.assign(pop_var, 0.9 * pop_var + 0.1 * var))
        return (x - mean) * tf.rsqrt(var + eps) * gamma + beta


def _chosen(at, by, with_updates, **options):
    training = mode_placeholder()
    net = network(lambda x: chosen(x, training, by=by, **options))
    train_op = train_with_updates(net.loss) if with_updates else _minimize(net.loss)
    return finish(at, train=[train_op], outputs=[net.logits])


for _by, _variables in itertools.product(("where", "arithmetic", "cond"), VARIABLES):
    register(f"chosen_by_{_by}_{_variables}", partial(_chosen, by=_by, with_updates=True), variables=_variables)
for _by in ("where", "cond"):
    register(f"chosen_by_{_by}_detached", partial(_chosen, by=_by, with_updates=False), "BN001 BN002")
register("chosen_by_cond_v2", partial(_chosen, by="cond", with_updates=True), variables="resource", cond="v2")
register(
    "chosen_by_cond_never_updated",
    partial(_chosen, by="cond", with_updates=False, updates=False),
    "BN002",
    allowed="BN008 BN004",
)


# ------------------------------------------------------------------------------------------ no population at all


def without_population(x, how):
    with tf.variable_scope("bn", reuse=tf.AUTO_REUSE):
        gamma, beta = _weights(x.shape.as_list()[-1])
        mean, var = tf.nn.moments(x, _axes(x))
        if how == "moments":
            return tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-3)
        if how == "sqrt":
            return gamma * (x - mean) / tf.sqrt(var + 1e-3) + beta
        mean = tf.reduce_mean(x, _axes(x), keepdims=True)
        var = tf.reduce_mean(tf.square(x - mean), _axes(x), keepdims=True)
        return gamma * ((x - mean) / tf.sqrt(var + 1e-3)) + beta


def _without_population(at, how, rank=2):
    net = network(lambda x: without_population(x, how), rank=rank)
    return finish(at, train=[_minimize(net.loss)], outputs=[net.logits])


for _how, _rank in (("moments", 2), ("moments", 4), ("sqrt", 2), ("by_hand", 4)):
    register(f"no_population_{_how}_rank{_rank}", partial(_without_population, how=_how, rank=_rank), "BN004", layers=1)


@case("BN004", layers=1)
def no_population_in_a_gan(at):
    """A DCGAN of notebooks: moments by hand in the generator, whose samples are what inference is."""
    z = tf.placeholder(tf.float32, [None, 3], name="z")

    def generator(z):
        with tf.variable_scope("generator", reuse=tf.AUTO_REUSE):
            w = tf.get_variable("w", [3, 3], initializer=tf.random_normal_initializer(seed=3))
            return tf.tanh(without_population(tf.matmul(z, w), "moments"))

    loss = tf.reduce_mean(tf.square(generator(z) - 1.0))
    return finish(at, train=[_minimize(loss)], outputs=[generator(z)])


# ------------------------------------------------------------------ tf.nn.batch_norm_with_global_normalization


def documented_normalizer(x, phase):
    """The documents' class: two variables for the batch's moments, an EMA of the variables, an assigner op."""
    with tf.variable_scope("bn"):
        gamma, beta = _weights()
        mean, variance = _population(names=("mean", "variance"))
        ewma = tf.train.ExponentialMovingAverage(decay=0.9)
        assigner = ewma.apply([mean, variance])
        tf.add_to_collection("assigners", assigner)

        def train():
            batch_mean, batch_var = tf.nn.moments(x, _axes(x))
            assigned = [tf.assign(mean, batch_mean), tf.assign(variance, batch_var)]
            with tf.control_dependencies(assigned):
                return tf.nn.batch_norm_with_global_normalization(x, batch_mean, batch_var, beta, gamma, 0.001, True)

        def infer():
            averages = tf.identity(ewma.average(mean)), tf.identity(ewma.average(variance))
            return tf.nn.batch_norm_with_global_normalization(x, *averages, beta, gamma, 0.001, True)

        return train() if phase is True else infer() if phase is False else tf.cond(phase, train, infer)


def _documented(at, phase="fed", run_assigner=True):
    training = mode_placeholder() if phase == "fed" else phase
    net = network(lambda x: documented_normalizer(x, training), rank=4)
    train_op = _minimize(net.loss)
    if run_assigner:
        train_op = tf.group(train_op, *tf.get_collection("assigners"))
    return finish(at, train=[train_op], outputs=[net.logits] if phase == "fed" else [])


register("documented_normalizer", _documented, layers=1, columns={"updates": "2 of 2"})  # its initializers are none
register("documented_normalizer_training_only", partial(_documented, phase=True), layers=1)
register(
    "documented_normalizer_without_its_assigner",
    partial(_documented, run_assigner=False),
    # The variables ``mean`` and ``variance`` move; the averages, which inference reads, are as they began.
    "BN001 BN002",
)


# ---------------------------------------------------------------------------------- tensorpack's form, and others


def _tensorpack(at, with_updates):
    """Fused kernel, averages through assign_moving_average, into the collection."""

    def norm(x):
        with tf.variable_scope("bn"):
            gamma, beta = _weights()
            mean, var = _population(names=("mean/EMA", "variance/EMA"))
            y, batch_mean, batch_var = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=1e-3, is_training=True)
            for variable, value in ((mean, batch_mean), (var, batch_var)):
                update = moving_averages.assign_moving_average(variable, value, 0.9, zero_debias=False)
                tf.add_to_collection(UPDATES, update.op if hasattr(update, "op") else update)
            return y

    net = network(norm, rank=4)
    train_op = train_with_updates(net.loss) if with_updates else _minimize(net.loss)
    return finish(at, train=[train_op], statistics=["bn/mean/EMA", "bn/variance/EMA"])


register("tensorpack_training_only", partial(_tensorpack, with_updates=True), layers=1)
register("tensorpack_detached", partial(_tensorpack, with_updates=False), "BN001 BN002 BN004", layers=1)


@case(undetermined="BN004", layers=1)
def switch_fixed_in_a_training_graph(at):
    """As in programs that build one graph to train, and another with False to predict; nobody says which outputs count."""
    fixed = tf.constant(True, name="is_training")
    net = network(lambda x: chosen(x, fixed, by="cond"))
    return finish(at, train=[train_with_updates(net.loss)])


@case("BN004", layers=1)
def switch_stuck_on_training_for_the_output_that_the_user_names(at):
    stuck = tf.constant(True, name="is_training")
    net = network(lambda x: chosen(x, stuck, by="cond"))
    train_op = train_with_updates(net.loss)
    return finish(at, train=[train_op], outputs=[net.logits], audit_outputs=[net.logits.op.name])


@case(layers=1, silent="BN101 BN102")
def mode_by_an_integer(at):
    """The predicate is an Equal op on an integer placeholder."""
    mode = tf.placeholder_with_default(0, [], name="mode")
    training = tf.equal(mode, 1)
    net = network(lambda x: chosen(x, training, by="cond"))
    train_op = train_with_updates(net.loss)
    with session() as s:
        s.run(tf.global_variables_initializer())
        s.run(train_op, feeds(training=True) | {mode: 1})
        prefix = tf.train.Saver().save(s, str(at / "model.ckpt"))
    return Built(Path(f"{prefix}.meta"))
