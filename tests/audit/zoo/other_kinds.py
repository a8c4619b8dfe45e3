"""Other kinds of batch norm than the layers': synchronized, switchable, conditional, renormalized and written by hand."""

from functools import partial

from bn_graph.tf1 import tf
from tests.audit.zoo.harness import (
    UPDATES,
    Built,
    case,
    finish,
    mode_placeholder,
    network,
    register,
    train_with_updates,
)


def _kept(name, start, shape=3):
    return tf.get_variable(name, shape, initializer=tf.constant_initializer(start), trainable=False)


def _weights(shape=3):
    ones, zeros = tf.ones_initializer(), tf.zeros_initializer()
    return tf.get_variable("gamma", shape, initializer=ones), tf.get_variable("beta", shape, initializer=zeros)


def _averaged(batch, kept):
    for statistic, variable in zip(batch, kept, strict=True):
        tf.add_to_collection(UPDATES, tf.assign(variable, 0.9 * variable + 0.1 * statistic))


def _switched(training, batch, kept):
    return tf.cond(training, lambda: tuple(map(tf.identity, batch)), lambda: tuple(map(tf.identity, kept)))


def _trained(at, norm, with_updates=True, rank=2, **options) -> Built:
    """A network with `norm`, which is given its inputs and the mode; trained with its updates or without."""
    training = mode_placeholder()
    with tf.variable_scope("bn"):
        net = network(lambda x: norm(x, training), rank=rank)
    train_op = (
        train_with_updates(net.loss) if with_updates else tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    )
    names = [v.op.name for v in tf.global_variables() if v not in tf.trainable_variables()]
    return finish(at, train=[train_op], outputs=[net.prediction], statistics=names, **options)


def _register(name, norm, *, rank=2, **labels):
    register(name, partial(_trained, norm=norm, rank=rank), layers=1, **labels)
    register(f"{name}_detached", partial(_trained, norm=norm, rank=rank, with_updates=False), "BN001 BN002", layers=1)


# ------------------------------------------------------------------------------------- statistics of all replicas


def _tpu(x, reduced):
    """``TpuBatchNormalization`` of EfficientNet: a sum over replicas of the mean and of the mean of squares."""
    mean, var = tf.nn.moments(x, [0])
    of_squares = reduced(var + tf.square(mean)) / tf.cast(1, tf.float32)
    mean = reduced(mean) / tf.cast(1, tf.float32)
    return mean, of_squares - tf.square(mean)


def _horovod(x, reduced):
    """``hvd.SyncBatchNormalization``: one sum over workers, of both."""
    mean, var = tf.nn.moments(x, [0])
    mean, of_squares = tf.unstack(reduced(tf.stack([mean, var + tf.square(mean)])) / 1.0)
    return mean, of_squares - tf.square(mean)


def _nccl(x, reduced):
    """tensorpack's ``BatchNorm(sync_statistics="nccl")``."""
    mean, of_squares = tf.reduce_mean(x, 0), tf.reduce_mean(tf.square(x), 0)
    mean, of_squares = reduced(mean) * 1.0, reduced(of_squares) * 1.0
    return mean, of_squares - tf.square(mean)


def _synchronized(at, moments, op, with_updates=True):
    """Run with one replica, where an identity is the sum; then with the op's own name in the file."""

    def norm(x, training):
        gamma, beta = _weights()
        kept = _kept("moving_mean", 0), _kept("moving_variance", 1)
        batch = moments(x, lambda statistic: tf.identity(statistic, "over_replicas"))
        _averaged(batch, kept)
        return tf.nn.batch_normalization(x, *_switched(training, batch, kept), beta, gamma, 1e-3)

    built = _trained(at, norm, with_updates)
    meta_graph = tf.MetaGraphDef.FromString(built.subject.read_bytes())
    for node in meta_graph.graph_def.node:
        if node.op == "Identity" and "/over_replicas" in node.name:
            node.op = op
    built.subject.write_bytes(meta_graph.SerializeToString())
    return built


for _moments, _op in ((_tpu, "CrossReplicaSum"), (_horovod, "HorovodAllreduce"), (_nccl, "NcclAllReduce")):
    _make = partial(_synchronized, moments=_moments, op=_op)
    _columns = {"training": "batch", "inference": "population", "updates": "2 of 2"}
    register(f"synchronized{_moments.__name__}", _make, layers=1, columns=_columns)
    register(f"synchronized{_moments.__name__}_detached", partial(_make, with_updates=False), "BN001 BN002", layers=1)


# ------------------------------------------------------------------------------------- mixed with other statistics


def _switchable(x, training, moving=True):
    """Switchable normalization: batch, instance and layer statistics, mixed by a softmax."""
    gamma, beta = _weights()
    batch, instance, layer = (tf.nn.moments(x, axes, keepdims=True) for axes in ([0, 1, 2], [1, 2], [1, 2, 3]))
    if moving:
        kept = _kept("moving_mean", 0, [1, 1, 1, 3]), _kept("moving_variance", 1, [1, 1, 1, 3])
        _averaged(batch, kept)
        batch = _switched(training, batch, kept)
    mixed = []
    for name, parts in zip(("mean", "var"), zip(batch, instance, layer, strict=True), strict=True):
        weights = tf.nn.softmax(tf.get_variable(f"{name}_weight", 3, initializer=tf.ones_initializer()))
        mixed.append(weights[0] * parts[0] + weights[1] * parts[1] + weights[2] * parts[2])
    return (x - mixed[0]) / tf.sqrt(mixed[1] + 1e-5) * gamma + beta


_register("switchable", _switchable, rank=4)
register(
    "switchable_by_the_batch_alone",
    partial(_trained, norm=partial(_switchable, moving=False), rank=4),
    "BN004",
    layers=1,
)


@case("BN004", layers=1)
def batch_and_instance_mixed(at):
    """Batch-instance normalization."""

    def norm(x, _):
        gamma, beta = _weights()
        rho = tf.clip_by_value(tf.get_variable("rho", 3, initializer=tf.constant_initializer(0.5)), 0.0, 1.0)
        (mean, var), instance = (tf.nn.moments(x, axes, keepdims=True) for axes in ([0, 1, 2], [1, 2]))
        by_batch = rho * (x - mean) / tf.sqrt(var + 1e-5)
        by_instance = (1 - rho) * (x - instance[0]) / tf.sqrt(instance[1] + 1e-5)
        return (by_batch + by_instance) * gamma + beta

    return _trained(at, norm, rank=4)


# ------------------------------------------------------------------------------------- gathered, weighted, masked


def _conditional(x, training):
    """Conditional batch norm: gamma and beta are a row of each class."""
    gamma, beta = _weights([2, 3])
    classes = tf.cast(x[:, 0] > 0, tf.int32)
    kept, batch = (_kept("moving_mean", 0), _kept("moving_variance", 1)), tf.nn.moments(x, [0])
    _averaged(batch, kept)
    rows = tf.nn.embedding_lookup(gamma, classes), tf.nn.embedding_lookup(beta, classes)
    return tf.nn.batch_normalization(x, *_switched(training, batch, kept), rows[1], rows[0], 1e-3)


def _by(moments):
    def norm(x, training):
        gamma, beta = _weights()
        kept, batch = (_kept("moving_mean", 0), _kept("moving_variance", 1)), moments(x)
        _averaged(batch, kept)
        return tf.nn.batch_normalization(x, *_switched(training, batch, kept), beta, gamma, 1e-3)

    return norm


def _sufficient(x):
    count, total, of_squares, shift = tf.nn.sufficient_statistics(x, [0])
    return tf.nn.normalize_moments(count, total, of_squares, shift)


def _weighted(x):
    return tf.nn.weighted_moments(x, [0], tf.cast(tf.reduce_sum(x, 1, keepdims=True) > -5.0, tf.float32))


def _masked(x):
    return tf.nn.moments(tf.boolean_mask(x, tf.reduce_sum(x, 1) > -5.0), [0])


_register("conditional_batch_norm", _conditional)
_register("sufficient_statistics", _by(_sufficient))
for _name, _moments in (("weighted_moments", _weighted), ("moments_of_a_masked_batch", _masked)):
    register(_name, partial(_trained, norm=_by(_moments)), layers=0, not_understood=1)


# ------------------------------------------------------------------------------------- a deviation is kept


def _deviation(x, training):
    gamma, beta = _weights()
    kept = _kept("moving_mean", 0), _kept("moving_std", 1)
    batch = tf.reduce_mean(x, 0), tf.math.reduce_std(x, 0)
    _averaged(batch, kept)
    mean, deviation = _switched(training, batch, kept)
    return (x - mean) / (deviation + 1e-5) * gamma + beta


_register("deviation_is_kept", _deviation)


def _renormalized(at, with_updates=True, has_updates=True, **options):
    """Batch renormalization by hand: no root is taken where the kept mean and deviation are used."""

    def norm(x, training):
        gamma, beta = _weights()
        kept = _kept("moving_mean", 0), _kept("moving_std", 1)
        mean, var = tf.nn.moments(x, [0])
        deviation = tf.sqrt(var + 1e-3)
        if has_updates:
            _averaged((mean, deviation), kept)
        r = tf.stop_gradient(tf.clip_by_value(deviation / kept[1], 0.5, 2.0))
        d = tf.stop_gradient(tf.clip_by_value((mean - kept[0]) / kept[1], -1.0, 1.0))
        by_batch = lambda: ((x - mean) / deviation * r + d) * gamma + beta  # noqa: E731
        return tf.cond(training, by_batch, lambda: (x - kept[0]) / kept[1] * gamma + beta)

    return _trained(at, norm, with_updates, **options)


register("renormalized_by_hand", _renormalized, undetermined="BN004", layers=1)
_named = partial(_renormalized, audit_outputs=["bn/prediction"])
register("renormalized_by_hand_with_its_output", _named, undetermined="BN004", layers=1)
_detached = partial(_renormalized, with_updates=False)
register("renormalized_by_hand_detached", _detached, "BN001 BN002", undetermined="BN004", layers=1)
_without_updates = partial(_renormalized, has_updates=False)
register("renormalized_by_hand_without_updates", _without_updates, "BN002", undetermined="BN004", layers=1)


# ------------------------------------------------------------------------------------- sums and their count are kept


@case(layers=1, columns={"inference": "population"}, still=True)
def standing_statistics(at):
    """A graph that samples from BigGAN, with sums over batches that are made before; as compare_gan has it."""

    def norm(x):
        gamma, beta = _weights()
        mean, var = tf.nn.moments(x, [0])
        sums, count = (_kept("accu_mean", 3), _kept("accu_variance", 3)), _kept("accu_counter", 1, [])
        asked = tf.get_variable("update_accus", [], tf.int32, tf.zeros_initializer(), trainable=False)
        added = [(sums[0], mean), (sums[1], var), (count, 1.0)]
        updates = tf.cond(tf.equal(asked, 1), lambda: tf.group(*(tf.assign_add(*pair) for pair in added)), tf.no_op)
        with tf.control_dependencies([updates]):
            mean, var = (total / count for total in sums)
        return tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-5)

    with tf.variable_scope("bn"):
        net = network(norm)
    return finish(at, outputs=[net.prediction], statistics=["bn/accu_mean", "bn/accu_variance"])


@case(undetermined="BN004", layers=1, still=True)
def standing_statistics_in_training(at):
    """The same in training: by the batch, with the variables there that another graph sums up in."""

    def norm(x):
        gamma, beta = _weights()
        with tf.variable_scope("accu"):
            for name, shape in (("accu_mean", 3), ("accu_variance", 3), ("accu_counter", []), ("update_accus", [])):
                _kept(name, 0, shape)
        return tf.nn.batch_normalization(x, *tf.nn.moments(x, [0]), beta, gamma, 1e-5)

    with tf.variable_scope("bn"):
        net = network(norm)
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    return finish(at, train=[train_op], statistics=["bn/accu/accu_mean", "bn/accu/accu_variance"])


# ------------------------------------------------------------------------------------- the mean alone


def _mean_only(x, training):
    """Mean-only batch norm, as it goes with weight normalization."""
    bias, kept = tf.get_variable("bias", 3, initializer=tf.zeros_initializer()), _kept("moving_mean", 0)
    mean = tf.reduce_mean(x, [0])
    tf.add_to_collection(UPDATES, tf.assign_sub(kept, 0.1 * (kept - mean)))
    return x - tf.cond(training, lambda: tf.identity(mean), lambda: tf.identity(kept)) + bias


register("mean_only", partial(_trained, norm=_mean_only), layers=0, not_understood=1)
