"""Whole training programs: several networks and train ops, copies, towers, hooks, optimizers by hand, loops."""

from functools import partial

from tensorflow.python.framework import function

import bn_graph
from bn_graph.layers import slim
from bn_graph.tf1 import legacy_layers, tf
from tests.audit.zoo.forms import slim_collection, slim_in_place, tf_layers, wrapper_in_place
from tests.audit.zoo.harness import (
    UPDATES,
    Built,
    case,
    dense,
    feeds,
    finish,
    mode_placeholder,
    network,
    register,
    session,
    train_with_updates,
)


def _sgd():
    return tf.train.GradientDescentOptimizer(0.1)


# ------------------------------------------------------------------------------------------------------- GANs


def _generator(z, training, norm=tf_layers):
    with tf.variable_scope("generator", reuse=tf.AUTO_REUSE):
        return tf.tanh(dense(tf.nn.relu(norm(dense(z, 3, "in"), training, **_named(norm))), 3, "out", bias=True))


def _discriminator(x, training, norm=tf_layers):
    with tf.variable_scope("discriminator", reuse=tf.AUTO_REUSE):
        return dense(tf.nn.relu(norm(dense(x, 3, "in"), training, **_named(norm))), 1, "out", bias=True)


def _named(norm):
    return {"scope": "bn"} if norm in (slim_collection, slim_in_place) else {"name": "bn"}


class Gan:
    """Losses and variables of a small GAN whose networks are built in training mode."""

    def __init__(self, norm=tf_layers, discriminate=None, fake_mode=True):
        self.z = tf.placeholder(tf.float32, [None, 3], name="z")
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        discriminate = discriminate or partial(_discriminator, training=True, norm=norm)
        self.fake = _generator(self.z, fake_mode, norm)
        real, fake = discriminate(x), discriminate(self.fake)
        self.d_loss = tf.reduce_mean(tf.nn.softplus(-real)) + tf.reduce_mean(tf.nn.softplus(fake))
        self.g_loss = tf.reduce_mean(tf.nn.softplus(-fake))

    def train(self, who, updates=()):
        with tf.control_dependencies(list(updates)):
            scope = {"g": "generator", "d": "discriminator"}[who]
            loss = {"g": self.g_loss, "d": self.d_loss}[who]
            return _sgd().minimize(loss, var_list=tf.trainable_variables(scope))


@case(layers=2)
def gan_with_updates_by_scope(at):
    """Each network's train op takes its own scope's updates; the discriminator sees real and fake."""
    gan = Gan()
    train = [gan.train("d", tf.get_collection(UPDATES, "discriminator"))]
    train.append(gan.train("g", tf.get_collection(UPDATES, "generator")))
    return finish(at, train=train, outputs=[_generator(gan.z, False)])


@case()
def gan_with_all_updates_in_both(at):
    gan = Gan()
    updates = tf.get_collection(UPDATES)
    train = [gan.train("d", updates), gan.train("g", updates)]
    return finish(at, train=train, outputs=[_generator(gan.z, False)])


@case()
def gan_with_all_updates_in_one(at):
    gan = Gan()
    train = [gan.train("d", tf.get_collection(UPDATES)), gan.train("g")]
    return finish(at, train=train, outputs=[_generator(gan.z, False)])


@case("BN001 BN002")
def gan_without_updates(at):
    gan = Gan()
    return finish(at, train=[gan.train("d"), gan.train("g")], outputs=[_generator(gan.z, False)])


@case("BN001 BN002")
def gan_without_the_generators_updates(at):
    """The scope's name has a typo: the generator's updates are in no train op."""
    gan = Gan()
    train = [
        gan.train("d", tf.get_collection(UPDATES, "discriminator")),
        gan.train("g", tf.get_collection(UPDATES, "gen_")),
    ]
    return finish(at, train=train, outputs=[_generator(gan.z, False)])


@case("BN004")
def gan_whose_sampler_is_in_training_mode(at):
    gan = Gan()
    updates = tf.get_collection(UPDATES)
    train = [gan.train("d", updates), gan.train("g", updates)]
    return finish(at, train=train, outputs=[_generator(gan.z, True)])


@case("BN004 BN005")
def gan_whose_sampler_updates_in_place(at):
    gan = Gan(slim_in_place)
    train = [gan.train("d"), gan.train("g")]
    return finish(at, train=train, outputs=[_generator(gan.z, True, slim_in_place)])


@case()
def gan_in_place(at):
    gan = Gan(slim_in_place)
    return finish(at, train=[gan.train("d"), gan.train("g")], outputs=[_generator(gan.z, False, slim_in_place)])


@case("BN004", allowed="BN001 BN002")
def gan_sampled_by_its_training_output(at):
    """Only the discriminator's updates run; the user says that the training output is what is sampled."""
    gan = Gan()
    train = [gan.train("d", tf.get_collection(UPDATES)), gan.train("g")]
    return finish(at, train=train, outputs=[gan.fake], audit_outputs=[gan.fake.op.name])


@case(layers=2)
def gan_saver_of_the_generator_and_a_full_one(at):
    gan = Gan()
    updates = tf.get_collection(UPDATES)
    train = [gan.train("d", updates), gan.train("g", updates)]
    sample = _generator(gan.z, False)
    tf.train.Saver([v for v in tf.global_variables() if v.op.name.startswith("generator")], name="generator_saver")
    return finish(at, train=train, outputs=[sample], saver=tf.train.Saver())


@case("BN003 BN006")
def gan_saver_of_the_generators_trainable_variables(at):
    """The saver that writes has the generator's weights alone."""
    gan = Gan()
    updates = tf.get_collection(UPDATES)
    train = [gan.train("d", updates), gan.train("g", updates)]
    saver = tf.train.Saver(tf.trainable_variables("generator"))
    return finish(at, train=train, outputs=[_generator(gan.z, False)], saver=saver)


@case()
def gan_saver_of_the_generators_variables(at):
    """Without the discriminator altogether: nothing of it is left out that would be used with the checkpoint."""
    gan = Gan()
    updates = tf.get_collection(UPDATES)
    train = [gan.train("d", updates), gan.train("g", updates)]
    saver = tf.train.Saver([v for v in tf.global_variables() if v.op.name.startswith("generator")])
    return finish(at, train=train, outputs=[_generator(gan.z, False)], saver=saver)


# ------------------------------------------------------------------------------------------ ways to run updates


def _switched(norm=tf_layers, **options):
    training = mode_placeholder()
    return network(lambda x: norm(x, training), **options)


@case(must="BN103", silent="BN002")
def updates_by_hand(at):
    """``sess.run([train_op, update_ops])``: no edge in the graph, and statistics that moved in the checkpoint."""
    net = _switched()
    return finish(at, train=[_sgd().minimize(net.loss)], by_hand=[tf.get_collection(UPDATES)], outputs=[net.logits])


@case(must="BN103")
def updates_in_a_group_by_hand(at):
    net = _switched()
    updates = tf.group(*tf.get_collection(UPDATES), name="update_ops")
    return finish(at, train=[_sgd().minimize(net.loss)], by_hand=[updates], outputs=[net.logits])


@case()
def updates_in_a_group_with_the_step(at):
    net = _switched()
    train_op = tf.group(_sgd().minimize(net.loss), *tf.get_collection(UPDATES), name="train_op")
    return finish(at, train=[train_op], outputs=[net.logits])


@case()
def updates_in_a_group_of_an_estimator(at):
    net = _switched()
    step = _sgd().minimize(net.loss, global_step=tf.train.get_or_create_global_step())
    train_op = tf.group(step, tf.group(*tf.get_collection(UPDATES)))
    tf.add_to_collection(tf.GraphKeys.TRAIN_OP, train_op)
    return finish(at, train=[train_op], outputs=[net.logits])


@case()
def updates_by_slims_train_op(at):
    """A barrier of updates before the loss; the train op is the loss behind the gradients' application."""
    net = _switched(slim_collection)
    with tf.control_dependencies(tf.get_collection(UPDATES)):
        barrier = tf.no_op(name="update_barrier")
    with tf.control_dependencies([barrier]):
        loss = tf.identity(net.loss)
    optimizer = _sgd()
    applied = optimizer.apply_gradients(optimizer.compute_gradients(loss), tf.train.get_or_create_global_step())
    with tf.name_scope("train_op"), tf.control_dependencies([applied]):
        train_op = tf.identity(tf.check_numerics(loss, "LossTensor is inf or nan"))
    tf.add_to_collection(tf.GraphKeys.TRAIN_OP, train_op)
    return finish(at, train=[train_op], outputs=[net.logits])


@case()
def updates_behind_the_step(at):
    """The updates depend on the step, and what is run depends on them."""
    net = _switched()
    step = _sgd().minimize(net.loss)
    with tf.control_dependencies([step, *tf.get_collection(UPDATES)]):
        train_op = tf.no_op(name="train")
    return finish(at, train=[train_op], outputs=[net.logits])


def _through_the_loss(net):
    """with_dependencies(updates, loss): the updates run when the loss's *value* is asked for."""
    with tf.control_dependencies(tf.get_collection(UPDATES)):
        return tf.identity(net.loss)


@case("BN001 BN002")
def updates_before_a_loss_whose_value_nobody_reads(at):
    """Gradients of an identity don't need its value: minimize(loss) alone runs no update."""
    net = _switched()
    return finish(at, train=[_sgd().minimize(_through_the_loss(net))], outputs=[net.logits])


@case(must="BN103", silent="BN002")
def updates_before_a_loss_that_is_fetched_too(at):
    net = _switched()
    loss = _through_the_loss(net)
    return finish(at, train=[_sgd().minimize(loss)], by_hand=[loss], outputs=[net.logits])


@case("BN001 BN002")
def updates_collected_too_early(at):
    """The collection was read before the layers were built."""
    updates = tf.get_collection(UPDATES)
    net = _switched()
    with tf.control_dependencies(updates):
        train_op = _sgd().minimize(net.loss)
    return finish(at, train=[train_op], outputs=[net.logits])


@case("BN001 BN002")
def updates_around_an_op_made_before(at):
    """Control dependencies reach only what is created inside them: here nothing is."""
    net = _switched()
    train_op = _sgd().minimize(net.loss)
    with tf.control_dependencies(tf.get_collection(UPDATES)):
        same = train_op
    return finish(at, train=[same], outputs=[net.logits])


@case()
def train_op_collection_that_names_the_bare_step(at):
    """The collection has the step; what is run is a group of the step and the updates."""
    net = _switched()
    step = _sgd().minimize(net.loss)
    tf.add_to_collection(tf.GraphKeys.TRAIN_OP, step)
    return finish(at, train=[tf.group(step, *tf.get_collection(UPDATES))], outputs=[net.logits])


@case("BN001 BN002")
def train_op_that_the_user_names(at):
    """Two train ops of the same loss; the user says which is run, and it is the one without updates."""
    net = _switched()
    train_with_updates(net.loss, name="good")
    bare = _sgd().minimize(net.loss, name="bare")
    return finish(at, train=[bare], outputs=[net.logits], train_ops=("bare",))


@case("BN007")
def updates_twice_a_step(at):
    """In place, and once more through the collection by a copy of the update."""
    training = mode_placeholder()
    with tf.variable_scope("net"):
        net = network(lambda x: _in_place_and_collected(x, training))
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits])


def _in_place_and_collected(x, training):
    """One layer whose batch is averaged by its own updates, and again by the ones that somebody added."""
    y = slim_in_place(x, training, scope="bn")
    mean, variance = tf.nn.moments(x, [0])
    with tf.variable_scope("bn", reuse=True):
        moving_mean = tf.get_variable("moving_mean", [3], trainable=False)
        moving_variance = tf.get_variable("moving_variance", [3], trainable=False)
    share = 0.1 * tf.cast(training, tf.float32)
    tf.add_to_collection(UPDATES, tf.assign_sub(moving_mean, share * (moving_mean - mean)))
    tf.add_to_collection(UPDATES, tf.assign_sub(moving_variance, share * (moving_variance - variance)))
    return y


# --------------------------------------------------------------------------------------------- copies and towers


def _copy(x, training, norm=tf_layers):
    with tf.variable_scope("net", reuse=tf.AUTO_REUSE):
        return dense(tf.nn.relu(norm(dense(x, 3, "in"), training, **_named(norm))), 2, "out", bias=True)


def _copies(at, norm, inference_mode, with_updates=True):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    loss = tf.reduce_mean(tf.square(_copy(x, True, norm) - 1.0))
    train_op = train_with_updates(loss) if with_updates else _sgd().minimize(loss)
    return finish(at, train=[train_op], outputs=[tf.identity(_copy(x, inference_mode, norm), name="prediction")])


for _norm in (tf_layers, slim_collection, slim_in_place, wrapper_in_place):
    _name = _norm.__name__
    register(f"copy_for_inference_{_name}", partial(_copies, norm=_norm, inference_mode=False), layers=1)
    _codes = "BN004" if _norm in (tf_layers, slim_collection) else "BN004 BN005"
    register(f"copy_in_training_mode_{_name}", partial(_copies, norm=_norm, inference_mode=True), _codes)
register(
    "copy_for_inference_detached",
    partial(_copies, norm=tf_layers, inference_mode=False, with_updates=False),
    "BN001 BN002",
)


def _towers(at, norm, updates_of):
    x = tf.placeholder(tf.float32, [4, 3], name="x")
    optimizer, gradients = _sgd(), []
    for tower, part in enumerate(tf.split(x, 2)):
        with tf.name_scope(f"tower_{tower}") as scope:
            loss = tf.reduce_mean(tf.square(_copy(part, True, norm) - 1.0))
            gradients.append(optimizer.compute_gradients(loss))
            if tower == 0:
                first = tf.get_collection(UPDATES, scope)
    averaged = [((a + b) / 2, v) for (a, v), (b, _) in zip(*gradients, strict=True)]
    updates = {"first": first, "all": tf.get_collection(UPDATES), "none": []}[updates_of]
    train_op = tf.group(optimizer.apply_gradients(averaged), *updates)
    return finish(at, train=[train_op], outputs=[_copy(x, False, norm)])


register("towers_with_updates_of_the_first", partial(_towers, norm=tf_layers, updates_of="first"), layers=1)
register("towers_with_updates_of_all", partial(_towers, norm=tf_layers, updates_of="all"), layers=1)
register("towers_in_place", partial(_towers, norm=slim_in_place, updates_of="none"), layers=1)
register("towers_without_updates", partial(_towers, norm=tf_layers, updates_of="none"), "BN001 BN002", layers=1)


@case()
def one_layer_on_two_inputs(at):
    """Siamese: one set of variables, two inputs, both take part in the statistics (harmless)."""
    a, b = (tf.placeholder(tf.float32, [None, 3]) for _ in "ab")
    loss = tf.reduce_mean(tf.square(_copy(a, True) - _copy(b, True))) + tf.reduce_mean(tf.square(_copy(a, True) - 1))
    return finish(at, train=[train_with_updates(loss)], outputs=[_copy(a, False)])


@case(layers=2)
def target_network_with_soft_updates(at):
    """Reinforcement learning: a copy of the network, inference only, that follows the other's variables, all of them."""
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    outs = {}
    for scope, training in (("main", True), ("target", False)):
        with tf.variable_scope(scope):
            outs[scope] = _copy(x, training)
    loss = tf.reduce_mean(tf.square(outs["main"] - tf.stop_gradient(outs["target"]) - 1))
    with tf.control_dependencies(tf.get_collection(UPDATES)):
        train_op = _sgd().minimize(loss, var_list=tf.trainable_variables("main"))
    pairs = zip(tf.global_variables("target"), tf.global_variables("main"), strict=True)
    soft = tf.group(*[tf.assign(t, 0.9 * t + 0.1 * m) for t, m in pairs], name="soft_update")
    built = finish(at, train=[tf.group(train_op, name="step")], by_hand=[soft], outputs=[outs["target"]])
    return built


@case(layers=2)
def target_network_with_hard_updates(at):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    outs = {}
    for scope in ("main", "target"):
        with tf.variable_scope(scope):
            outs[scope] = _copy(x, scope == "main")
    loss = tf.reduce_mean(tf.square(outs["main"] - tf.stop_gradient(outs["target"]) - 1))
    with tf.control_dependencies(tf.get_collection(UPDATES)):
        train_op = _sgd().minimize(loss, var_list=tf.trainable_variables("main"))
    pairs = zip(tf.global_variables("target"), tf.global_variables("main"), strict=True)
    hard = [tf.assign(t, m) for t, m in pairs]
    return finish(at, train=[train_op], by_hand=hard, outputs=[outs["target"]])


@case()
def average_of_all_weights_with_its_saver(at):
    """variables_to_restore in a graph for evaluation; here the saver of the training graph, with everything."""
    net = _switched()
    step = train_with_updates(net.loss)
    with tf.control_dependencies([step]):
        train_op = tf.train.ExponentialMovingAverage(0.9).apply()
    return finish(at, train=[train_op], outputs=[net.logits])


@case(still=True)
def evaluation_graph_that_restores_averages(at):
    """A Saver with ``variables_to_restore()``: weights come from their averages, statistics from themselves."""
    (at / "training").mkdir()
    with tf.Graph().as_default():
        trained = average_of_all_weights_with_its_saver(at / "training")
    net = network(lambda x: tf_layers(x, False))
    saver = tf.train.Saver(tf.train.ExponentialMovingAverage(0.9).variables_to_restore())
    prefix = str(trained.subject)[: -len(".meta")]
    with session() as s:
        saver.restore(s, prefix)
        assert s.run(net.logits, feeds(training=False)).shape == (4, 2)
    saver.export_meta_graph(str(at / "evaluation.meta"))
    return Built(at / "evaluation.meta", options={"checkpoint": prefix})


@case(layers=1)
def averages_of_trainable_weights_with_statistics(at):
    net = _switched(slim_in_place)
    step = _sgd().minimize(net.loss)
    with tf.control_dependencies([step]):
        train_op = tf.train.ExponentialMovingAverage(0.9).apply(
            tf.trainable_variables() + tf.moving_average_variables()
        )
    return finish(at, train=[train_op], outputs=[net.logits])


# ------------------------------------------------------------------------------ layers that are not to be trained


def _pretrained(at):
    (at / "pretrained").mkdir()
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        loss = tf.reduce_mean(tf.square(_copy(x, True) - 1.0))
        return finish(at / "pretrained", train=[train_with_updates(loss)]).subject


def _frozen(at, var_list, stop=False):
    """A restored network in inference mode, and a new layer that is trained on top."""
    restore = _pretrained(at)
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    features = tf.stop_gradient(_copy(x, False)) if stop else _copy(x, False)
    y = dense(features, 2, "new", bias=True)
    variables = tf.trainable_variables("new") if var_list else None
    train_op = _sgd().minimize(tf.reduce_mean(tf.square(y - 1.0)), var_list=variables)
    return finish(at, restore=restore, train=[train_op], outputs=[y])


register("frozen_features_with_a_list_of_variables", partial(_frozen, var_list=True), still=True)
register("frozen_features_behind_stop_gradient", partial(_frozen, var_list=False, stop=True), still=True)
register("fine_tuning_with_frozen_statistics", partial(_frozen, var_list=False), still=True)


@case(must="BN008", still=True)
def fine_tuning_read_without_its_checkpoint(at):
    built = _frozen(at, var_list=False)
    for file in at.glob("model.ckpt.*"):
        if file.suffix != ".meta":
            file.unlink()
    (at / "checkpoint").unlink()
    return Built(built.subject)


@case(still=True)
def test_graph_with_a_train_op(at):
    """The evaluation script builds the whole model with is_training=False and never runs the train op."""
    restore = _pretrained(at)
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = _copy(x, False)
    train_with_updates(tf.reduce_mean(tf.square(y - 1.0)))
    return finish(at, restore=restore, steps=0, outputs=[y])


@case()
def dropout_on_the_inference_path(at):
    """Outputs never repeat, and it has nothing to do with batch norm."""
    net = _switched(lambda x, training: tf.nn.dropout(tf_layers(x, training), rate=0.5))
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits])._replace(facts=None)


@case()
def dropout_before_the_layer_on_the_inference_path(at):
    net = _switched(lambda x, training: tf_layers(tf.nn.dropout(x, rate=0.5), training))
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits])._replace(facts=None)


@case(still=True)
def dead_layer(at):
    """A layer whose output nothing uses: its statistics never move, and no harm comes of it."""

    def norm(x, training):
        tf_layers(x, training, name="dead")
        return slim_in_place(x, training, scope="alive")

    net = _switched(norm)
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


@case()
def summaries_of_a_training_graph(at):
    """Histograms, accuracy and predictions beside the loss are no inference outputs: this graph only trains."""
    net = network(lambda x: tf_layers(x, True))
    tf.summary.histogram("logits", net.logits)
    labels = tf.get_default_graph().get_tensor_by_name("labels:0")
    hit = tf.equal(tf.cast(tf.argmax(net.logits, 1), tf.int32), labels)
    tf.summary.scalar("accuracy", tf.reduce_mean(tf.cast(hit, tf.float32), name="accuracy"))
    tf.summary.merge_all()
    return finish(at, train=[train_with_updates(net.loss)])


# ----------------------------------------------------------------------------------------------- optimizers by hand


def _clipped(net):
    optimizer = tf.train.AdamOptimizer(0.1)
    gradients, variables = zip(*optimizer.compute_gradients(net.loss), strict=True)
    clipped, _ = tf.clip_by_global_norm(gradients, 1.0)
    return optimizer.apply_gradients(zip(clipped, variables, strict=True))


def _lars(net):
    steps = []
    for variable in tf.trainable_variables():
        (gradient,) = tf.gradients(net.loss, [variable])
        ratio = tf.norm(variable) / (tf.norm(gradient) + 1e-9)
        slot = tf.get_variable(f"{variable.op.name}/velocity", initializer=tf.zeros_like(variable), trainable=False)
        velocity = tf.assign(slot, 0.9 * slot + (0.01 * ratio + 1e-3) * gradient)
        steps.append(tf.assign_sub(variable, velocity))
    return tf.group(*steps)


def _accumulated(net):
    """Gradients are added up, and applied behind a cond every second step."""
    optimizer = _sgd()
    pairs = optimizer.compute_gradients(net.loss)
    sums = [
        tf.get_variable(f"sum_{i}", initializer=tf.zeros_like(v), trainable=False) for i, (_, v) in enumerate(pairs)
    ]
    count = tf.get_variable("steps", [], tf.int32, tf.zeros_initializer(), trainable=False)
    added = [tf.assign_add(total, gradient) for total, (gradient, _) in zip(sums, pairs, strict=True)]
    with tf.control_dependencies([*added, tf.assign_add(count, 1)]):

        def apply():
            applied = optimizer.apply_gradients([(s / 2, v) for s, (_, v) in zip(sums, pairs, strict=True)])
            with tf.control_dependencies([applied]):
                return tf.group(*[tf.assign(total, tf.zeros_like(total)) for total in sums])

        return tf.cond(tf.equal(count % 2, 0), apply, tf.no_op)


def _by_hand(at, make, with_updates):
    net = _switched()
    train_op = make(net)
    if with_updates:
        train_op = tf.group(train_op, *tf.get_collection(UPDATES))
    return finish(at, train=[train_op], outputs=[net.logits])


for _make in (_clipped, _lars, _accumulated):
    register(f"optimizer{_make.__name__}", partial(_by_hand, make=_make, with_updates=True), layers=1)
    _detached = partial(_by_hand, make=_make, with_updates=False)
    register(f"optimizer{_make.__name__}_detached", _detached, "BN001 BN002", layers=1)


@case()
def monitored_training_session(at):
    """The graph that MonitoredTrainingSession leaves in its directory."""
    net = _switched()
    train_op = train_with_updates(net.loss, global_step=tf.train.get_or_create_global_step())
    with tf.train.MonitoredTrainingSession(
        checkpoint_dir=str(at), save_summaries_steps=None, log_step_count_steps=None
    ) as s:
        for step in range(2):
            s.run(train_op, feeds(training=True, seed=step))
    return Built(next(iter(sorted(at.glob("model.ckpt-2.meta")))))


@case("BN001 BN002")
def monitored_training_session_detached(at):
    net = _switched()
    train_op = _sgd().minimize(net.loss, global_step=tf.train.get_or_create_global_step())
    with tf.train.MonitoredTrainingSession(
        checkpoint_dir=str(at), save_summaries_steps=None, log_step_count_steps=None
    ) as s:
        for step in range(2):
            s.run(train_op, feeds(training=True, seed=step))
    return Built(at)


# ------------------------------------------------------------------------------------------- loops and functions


def _in_a_loop(at):
    """Batch norm in the body of a while loop, population statistics fed from outside the loop, updates in place."""
    training = mode_placeholder()
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    with tf.variable_scope("cell", reuse=tf.AUTO_REUSE):
        gamma = tf.get_variable("gamma", [3], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [3], initializer=tf.zeros_initializer())
        mean = tf.get_variable("moving_mean", [3], initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable("moving_variance", [3], initializer=tf.ones_initializer(), trainable=False)
        w = tf.get_variable("w", [3, 3], initializer=tf.random_normal_initializer(seed=1))

    def body(i, state):
        h = tf.matmul(state, w)
        batch = tf.nn.moments(h, [0])
        population = tf.identity(mean), tf.identity(variance)
        used = tf.cond(training, lambda: batch, lambda: population)
        return i + 1, tf.nn.batch_normalization(h, *used, beta, gamma, 1e-3)

    _, y = tf.while_loop(lambda i, _: i < 2, body, [tf.constant(0), x])
    batch_mean, batch_variance = tf.nn.moments(tf.matmul(x, w), [0])
    tf.add_to_collection(UPDATES, tf.assign_sub(mean, 0.1 * (mean - batch_mean)))
    tf.add_to_collection(UPDATES, tf.assign_sub(variance, 0.1 * (variance - batch_variance)))
    loss = tf.reduce_mean(tf.square(y - 1.0))
    return finish(at, train=[train_with_updates(loss)], outputs=[y])


register("in_a_while_loop_v1", _in_a_loop)


# --------------------------------------------------------------------------------------- layers in a branch of a cond


def _auxiliary_branch(norm):
    """A network with a layer that only some steps use."""
    use_branch = tf.placeholder(tf.bool, [], name="use_branch")
    return use_branch, network(lambda x: tf.cond(use_branch, lambda: norm(x, True), lambda: tf.identity(x)))


def _waiting_for_a_branch(at, norm=tf_layers, group=False):
    """The step waits for updates in a branch: where it is not taken, nothing trains."""
    use_branch, net = _auxiliary_branch(norm)
    if group:
        with tf.control_dependencies([tf.group(tf.group(*tf.get_collection(UPDATES)), tf.no_op())]):
            train_op = _sgd().minimize(net.loss)
    else:
        train_op = train_with_updates(net.loss)
    with session() as s:
        s.run(tf.global_variables_initializer())
        before = s.run(tf.global_variables())
        s.run(train_op, feeds(training=True) | {use_branch: False})
        assert all((a == b).all() for a, b in zip(before, s.run(tf.global_variables()), strict=True))
    return finish(at, train=[train_op])


for _norm in (tf_layers, slim_collection):
    register(f"step_that_waits_for_a_branch_{_norm.__name__}", partial(_waiting_for_a_branch, norm=_norm), "BN010")
register("step_that_waits_for_a_group_in_a_branch", partial(_waiting_for_a_branch, group=True), "BN010")
register("step_that_waits_for_a_branch_resource", _waiting_for_a_branch, "BN010", variables="resource")


@case("BN010", variables="resource")
def gan_whose_step_waits_for_both_branches(at):
    """Real or generated images by a cond, one layer for both: no step takes both branches, so none trains."""
    x, z = (tf.placeholder(tf.float32, [None, 3]) for _ in "xz")
    real = tf.placeholder(tf.bool, [], name="real")
    y = tf.cond(real, lambda: _discriminator(x, True), lambda: _discriminator(z, True))
    train_with_updates(tf.reduce_mean(tf.nn.softplus(-y)))
    return Built(tf.get_default_graph())


def _detached_in_a_branch(at, norm=tf_layers):
    _, net = _auxiliary_branch(norm)
    return finish(at, train=[_sgd().minimize(net.loss)])


register("updates_of_a_branch_nobody_runs", _detached_in_a_branch, "BN001 BN002 BN004")
register(
    "updates_of_a_v2_branch_nobody_runs",
    _detached_in_a_branch,
    "BN001 BN002 BN004",
    variables="resource",
    cond="v2",
)


@case(silent="BN010", still=True)
def updates_in_place_in_a_branch(at):
    _, net = _auxiliary_branch(slim_in_place)
    return finish(at, train=[_sgd().minimize(net.loss)])


@case(silent="BN010")
def step_inside_the_branch(at):
    use_branch = tf.placeholder(tf.bool, [], name="use_branch")
    x = tf.placeholder(tf.float32, [None, 3], name="x")

    def branch():
        return train_with_updates(tf.reduce_mean(tf.square(tf_layers(dense(x, 3, "in"), True) - 1.0)))

    return finish(at, train=[tf.cond(use_branch, branch, tf.no_op)])


@case(silent="BN010")
def updates_in_the_branch_of_the_training_mode(at):
    """A whole network in each branch; every training step takes the one whose updates it waits for."""
    training = mode_placeholder()
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = tf.cond(training, lambda: _copy(x, True), lambda: _copy(x, False))
    return finish(at, train=[train_with_updates(tf.reduce_mean(tf.square(y - 1.0)))], outputs=[y])


@case(silent="BN010")
def updates_grouped_beside_the_step_in_a_branch(at):
    """The group is left out where the branch is not taken; the step is not."""
    _, net = _auxiliary_branch(tf_layers)
    return finish(at, train=[tf.group(_sgd().minimize(net.loss), *tf.get_collection(UPDATES))])


@case(silent="BN010")
def updates_after_a_loop(at):
    """The gradients don't come from the loop, and the step waits for updates behind it."""
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    _, looped = tf.while_loop(lambda i, _: i < 2, lambda i, h: (i + 1, 0.9 * h), [tf.constant(0), dense(x, 3, "in")])
    y = tf_layers(looped, True)
    loss = tf.reduce_mean(tf.square(y - 1.0)) + tf.reduce_mean(tf.square(dense(x, 2, "beside")))
    return finish(at, train=[train_with_updates(loss, var_list=tf.trainable_variables("beside"))])


register("in_a_while_loop_v2", _in_a_loop, variables="resource", cond="v2")


def _loop_without_population(at):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    with tf.variable_scope("cell"):
        gamma = tf.get_variable("gamma", [3], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [3], initializer=tf.zeros_initializer())

    def body(i, state):
        mean, variance = tf.nn.moments(state, [0])
        return i + 1, tf.nn.batch_normalization(state, mean, variance, beta, gamma, 1e-3)

    _, y = tf.while_loop(lambda i, _: i < 2, body, [tf.constant(0), x])
    train_op = _sgd().minimize(tf.reduce_mean(tf.square(y - 1.0)))
    return finish(at, train=[train_op], outputs=[y])


register("in_a_while_loop_without_population_v1", _loop_without_population, "BN004")
register("in_a_while_loop_without_population_v2", _loop_without_population, "BN004", variables="resource", cond="v2")


@case()
def unrolled_recurrent_network(at):
    """One layer a time step, each with statistics of its own."""
    training = mode_placeholder()
    x = tf.placeholder(tf.float32, [None, 2, 3], name="x")
    state = tf.zeros_like(x[:, 0])
    for step in range(2):
        joined = dense(tf.concat([x[:, step], state], 1), 3, "cell")
        state = tf.tanh(bn_graph.batch_norm_wrapper(joined, training, decay=0.9, name=f"bn_{step}"))
    loss = tf.reduce_mean(tf.square(state - 1.0))
    return finish(at, train=[_sgd().minimize(loss)], outputs=[state])


@case("BN004", variables="resource")
def in_a_called_function_without_population(at):
    """tf.function in a graph: PartitionedCall, the layer is in a function of the library."""
    with tf.variable_scope("bn"):
        gamma = tf.get_variable("gamma", [3], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [3], initializer=tf.zeros_initializer())

    @tf.function
    def norm(x):
        mean, variance = tf.nn.moments(x, [0])
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    net = network(norm)
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


@case("BN004", variables="ref")
def in_a_defun_without_population(at):
    """The functions of TensorFlow 1: Defun, called by its own name."""

    @function.Defun(tf.float32, tf.float32, tf.float32)
    def norm(x, gamma, beta):
        mean, variance = tf.nn.moments(x, [0])
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def layer(x):
        with tf.variable_scope("bn"):
            gamma = tf.get_variable("gamma", [3], initializer=tf.ones_initializer())
            beta = tf.get_variable("beta", [3], initializer=tf.zeros_initializer())
        y = norm(x, gamma, beta)
        y.set_shape(x.shape)
        return y

    net = network(layer)
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


def _in_a_function(at, with_updates=True):
    """Layer and switch in a tf.function that is called from the graph; its updates run by the call."""
    training = mode_placeholder()
    with tf.variable_scope("bn"):
        fixed = partial(tf.get_variable, shape=[3], trainable=False)
        mean = fixed("moving_mean", initializer=tf.zeros_initializer())
        variance = fixed("moving_variance", initializer=tf.ones_initializer())
        gamma = tf.get_variable("gamma", [3], initializer=tf.ones_initializer())
        beta = tf.get_variable("beta", [3], initializer=tf.zeros_initializer())

    @tf.function
    def norm(x, training):
        def train():
            batch = tf.nn.moments(x, [0])
            if with_updates:
                mean.assign_sub(0.1 * (mean - batch[0]))
                variance.assign_sub(0.1 * (variance - batch[1]))
            return batch

        used = tf.cond(training, train, lambda: (mean.read_value(), variance.read_value()))
        return tf.nn.batch_normalization(x, *used, beta, gamma, 1e-3)

    net = network(lambda x: norm(x, training))
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


register("in_a_called_function", _in_a_function, variables="resource", cond="v2")
register(
    "in_a_called_function_never_updated",
    partial(_in_a_function, with_updates=False),
    "BN002",
    allowed="BN004 BN008",
    variables="resource",
    cond="v2",
)


# --------------------------------------------------------------------------------------------------- the rest


@case()
def partitioned_variables(at):
    """Weights and statistics in slices."""
    training = mode_placeholder()
    with tf.variable_scope("", partitioner=tf.fixed_size_partitioner(2)):
        net = network(
            lambda x: slim.batch_norm(x, decay=0.9, scale=True, is_training=training, updates_collections=None)
        )
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


@case(must="BN101", layers=1)
def advice_bias_before_the_layer(at):
    training = mode_placeholder()
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = tf_layers(dense(x, 3, "in", bias=True), training)
    return finish(at, train=[train_with_updates(tf.reduce_mean(tf.square(y - 1.0)))], outputs=[y])


@case(must="BN101", layers=1)
def advice_bias_add_of_a_convolution(at):
    training = mode_placeholder()

    def norm(x):
        bias = tf.get_variable("bias", [3], initializer=tf.zeros_initializer())
        return slim_in_place(tf.nn.bias_add(x, bias), training)

    net = network(norm, rank=4)
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


@case(silent="BN101", layers=1)
def advice_no_bias_behind_a_relu(at):
    """The bias is before a relu, so it is of use."""
    training = mode_placeholder()
    net = network(lambda x: tf_layers(tf.nn.relu(x + tf.get_variable("bias", [3])), training))
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits])


def _constants(at, **options):
    training = mode_placeholder()
    options = {"momentum": 0.9, "epsilon": 1e-3} | options
    net = network(lambda x: legacy_layers().batch_normalization(x, training=training, **options), rank=4)
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits])


register("advice_decay_of_pytorch", partial(_constants, momentum=0.1), must="BN102")
register("advice_large_epsilon", partial(_constants, epsilon=0.5), must="BN102")
register("advice_usual_constants", _constants, silent="BN102")


@case()
def two_graphs_in_one_trained_each(at):
    """Two models with batch norm, two train ops, each with its own updates."""
    outputs, train = [], []
    for scope in ("first", "second"):
        with tf.variable_scope(scope):
            x = tf.placeholder(tf.float32, [None, 3])
            loss = tf.reduce_mean(tf.square(_copy(x, True) - 1.0))
            outputs.append(_copy(x, False))
        with tf.control_dependencies(tf.get_collection(UPDATES, scope)):
            train.append(_sgd().minimize(loss, var_list=tf.trainable_variables(scope)))
    return finish(at, train=train, outputs=outputs)


@case("BN001 BN002", layers=2)
def two_layers_one_detached(at):
    training = mode_placeholder()
    net = network(lambda x: slim_in_place(tf.nn.relu(tf_layers(x, training, name="bare")), training, scope="good"))
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


@case()
def cross_replica_like_moments(at):
    """Mean and mean of squares, as synchronized batch norm has it: variance = E[x²] − E[x]²."""
    training = mode_placeholder()

    def norm(x):
        with tf.variable_scope("sync_bn"):
            gamma = tf.get_variable("gamma", [3], initializer=tf.ones_initializer())
            beta = tf.get_variable("beta", [3], initializer=tf.zeros_initializer())
            mean = tf.get_variable("moving_mean", [3], initializer=tf.zeros_initializer(), trainable=False)
            variance = tf.get_variable("moving_variance", [3], initializer=tf.ones_initializer(), trainable=False)
        batch_mean, square = tf.reduce_mean(x, 0), tf.reduce_mean(tf.square(x), 0)
        batch_variance = square - tf.square(batch_mean)

        def train():
            updates = [
                tf.assign_sub(mean, 0.1 * (mean - batch_mean)),
                tf.assign_sub(variance, 0.1 * (variance - batch_variance)),
            ]
            with tf.control_dependencies(updates):
                return tf.identity(batch_mean), tf.identity(batch_variance)

        used = tf.cond(training, train, lambda: (tf.identity(mean), tf.identity(variance)))
        return tf.nn.batch_normalization(x, *used, beta, gamma, 1e-3)

    net = network(norm)
    return finish(at, train=[_sgd().minimize(net.loss)], outputs=[net.logits])


def _dqn_that_acts_on_batches(at):
    """An agent that acts with batch size 1 on the training output."""
    net = network(lambda x: tf_layers(x, True))
    train_op = _sgd().minimize(net.loss)
    action = tf.argmax(net.logits, 1, name="action")
    return finish(at, train=[train_op], audit_outputs=[action.op.name])


register("agent_that_acts_on_batch_statistics", _dqn_that_acts_on_batches, "BN001 BN002 BN004")
