"""What looks like batch norm and is none: no layer may be seen, and nothing be reported."""

from functools import partial

from bn_graph.tf1 import tf
from tests.audit.zoo.harness import Built, case, dense, feeds, finish, network, register, session


def _minimize(loss, **options):
    return tf.train.GradientDescentOptimizer(0.1).minimize(loss, **options)


def _scale(shape, name="gamma", value=1.0):
    return tf.get_variable(name, shape, initializer=tf.constant_initializer(value))


def layer_norm(x):
    axes = list(range(1, x.shape.rank))
    mean, variance = tf.nn.moments(x, axes, keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, _scale([3], "beta", 0.0), _scale([3]), 1e-5)


def layer_norm_last_axis(x):
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return _scale([3]) * (x - mean) / tf.sqrt(variance + 1e-5) + _scale([3], "beta", 0.0)


def layer_norm_with_deviation(x):
    mean = tf.reduce_mean(x, -1, keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(tf.square(x - mean), -1, keepdims=True))
    return _scale([3]) * (x - mean) / (deviation + 1e-6) + _scale([3], "beta", 0.0)


def instance_norm(x):
    mean, variance = tf.nn.moments(x, [1, 2], keepdims=True)
    return _scale([3]) * (x - mean) * tf.rsqrt(variance + 1e-5) + _scale([3], "beta", 0.0)


def group_norm(x):
    grouped = tf.reshape(x, [-1, 2, 2, 1, 3])
    mean, variance = tf.nn.moments(grouped, [1, 2, 4], keepdims=True)
    grouped = (grouped - mean) / tf.sqrt(variance + 1e-5)
    return tf.reshape(grouped, [-1, 2, 2, 3]) * _scale([1, 1, 1, 3]) + _scale([1, 1, 1, 3], "beta", 0.0)


def layer_norm_by_the_fused_kernel(x):
    """How Keras' LayerNormalization does it: each example a channel, scale and offset made of constants."""
    flat = tf.reshape(x, [1, tf.shape(x)[0], -1, 1])
    ones = tf.ones([tf.shape(x)[0]])
    out, _, _ = tf.nn.fused_batch_norm(flat, ones, tf.zeros_like(ones), epsilon=1e-3, data_format="NCHW")
    return tf.reshape(out, tf.shape(x)) * _scale([3])


def weight_norm(x):
    v = tf.get_variable("v", [3, 3], initializer=tf.random_normal_initializer(seed=2))
    return tf.matmul(x, _scale([3], "g") * tf.nn.l2_normalize(v, 0))


def weight_standardization(x):
    w = tf.get_variable("v", [3, 3], initializer=tf.random_normal_initializer(seed=2))
    mean, variance = tf.nn.moments(w, [0], keepdims=True)
    return tf.matmul(x, _scale([3]) * (w - mean) / tf.sqrt(variance + 1e-5))


def spectral_norm(x):
    w = tf.get_variable("v", [3, 3], initializer=tf.random_normal_initializer(seed=2))
    u = tf.get_variable("u", [1, 3], initializer=tf.random_normal_initializer(seed=3), trainable=False)
    v = tf.nn.l2_normalize(tf.matmul(u, w, transpose_b=True))
    new_u = tf.nn.l2_normalize(tf.matmul(v, w))
    sigma = tf.matmul(tf.matmul(v, w), new_u, transpose_b=True)
    with tf.control_dependencies([tf.assign(u, new_u)]):
        return tf.matmul(x, w / sigma)


def constants_z_score(x):
    return (x - tf.constant([0.485, 0.456, 0.406])) / tf.constant([0.229, 0.224, 0.225])


def lrn(x):
    return tf.nn.lrn(x, 2, bias=1.0, alpha=1e-4, beta=0.75)


def minibatch_stddev(x):
    """The last layer of a progressive GAN's discriminator: the batch's deviation as one more feature."""
    mean = tf.reduce_mean(x, 0, keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(tf.square(x - mean), 0) + 1e-8)
    return tf.concat([x, tf.fill([tf.shape(x)[0], 1], tf.reduce_mean(deviation))], 1)


def pixel_norm(x):
    return x * tf.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-8)


def per_image(x):
    return tf.image.per_image_standardization(x)


def _layer(at, norm, rank):
    net = network(norm, rank=rank)
    return finish(at, train=[_minimize(net.loss)], statistics=[])


for _norm, _rank in [
    (layer_norm, 2),
    (layer_norm, 4),
    (layer_norm_last_axis, 2),
    (layer_norm_last_axis, 4),
    (layer_norm_with_deviation, 2),
    (instance_norm, 4),
    (group_norm, 4),
    (weight_norm, 2),
    (weight_standardization, 2),
    (spectral_norm, 2),
    (constants_z_score, 4),
    (lrn, 4),
    (minibatch_stddev, 2),
    (pixel_norm, 4),
    (per_image, 4),
]:
    register(f"not_{_norm.__name__}_rank{_rank}", partial(_layer, norm=_norm, rank=_rank), layers=0)
    if _norm in (layer_norm, instance_norm):
        _make = partial(_layer, norm=_norm, rank=_rank)
        register(f"not_{_norm.__name__}_rank{_rank}_resource", _make, layers=0, variables="resource")


@case(layers=0)
def not_layer_norm_by_the_fused_kernel(at):
    """Graph only: no CPU kernel takes NCHW."""
    net = network(layer_norm_by_the_fused_kernel, rank=4)
    _minimize(net.loss)
    tf.train.Saver().export_meta_graph(str(at / "layer_norm.meta"))
    return Built(at / "layer_norm.meta")


@case(layers=0)
def not_layer_norm_of_keras(at):
    net = network(lambda x: tf.keras.layers.LayerNormalization()(x))
    return finish(at, train=[_minimize(net.loss)], statistics=[])


@case(layers=0)
def not_normalized_advantages(at):
    """Policy gradient: advantages are standardized over the batch, for the loss alone."""
    net = network(lambda x: x)
    advantages = tf.placeholder(tf.float32, [None], name="advantages")
    mean, variance = tf.nn.moments(advantages, [0])
    advantages = (advantages - mean) / (tf.sqrt(variance) + 1e-8)
    loss = tf.reduce_mean(advantages * tf.reduce_max(net.logits, 1)) + net.loss
    return finish(at, train=[_minimize(loss)], statistics=[])


@case(layers=0)
def not_advantages_with_epsilon_in_the_root(at):
    net = network(lambda x: x)
    values = dense(net.x, 1, "value")
    mean, variance = tf.nn.moments(values, [0, 1])
    scaled = tf.stop_gradient((values - mean) * tf.rsqrt(variance + 1e-8))
    loss = tf.reduce_mean(scaled[:, 0] * tf.reduce_max(net.logits, 1)) + net.loss
    return finish(at, train=[_minimize(loss)], statistics=[])


@case(layers=0)
def not_average_of_the_loss(at):
    net = network(lambda x: x)
    ema = tf.train.ExponentialMovingAverage(0.9)
    averaged = ema.apply([net.loss])
    tf.summary.scalar("loss_average", ema.average(net.loss))
    return finish(at, train=[tf.group(_minimize(net.loss), averaged)], statistics=[])


@case(layers=0)
def not_average_of_the_loss_never_run(at):
    net = network(lambda x: x)
    tf.train.ExponentialMovingAverage(0.9).apply([net.loss])
    return finish(at, train=[_minimize(net.loss)], statistics=[])


@case(layers=0)
def not_average_of_weights(at):
    net = network(lambda x: x)
    step = _minimize(net.loss, global_step=tf.train.get_or_create_global_step())
    with tf.control_dependencies([step]):
        train_op = tf.train.ExponentialMovingAverage(0.9).apply(tf.trainable_variables())
    return finish(at, train=[train_op], statistics=[])


@case(layers=0)
def not_adams_slots(at):
    net = network(lambda x: x)
    return finish(at, train=[tf.train.AdamOptimizer(0.1).minimize(net.loss)], statistics=[])


@case(layers=0)
def not_centered_rmsprop(at):
    """Its slots are a running mean and mean square of gradients."""
    net = network(lambda x: x)
    optimizer = tf.train.RMSPropOptimizer(0.1, centered=True, momentum=0.9)
    return finish(at, train=[optimizer.minimize(net.loss)], statistics=[])


@case(layers=0)
def not_running_mean_of_observations(at):
    """Reinforcement learning: inputs are standardized by sums that another op keeps, by hand."""
    total = tf.get_variable("runningsum", [3], initializer=tf.zeros_initializer(), trainable=False)
    squares = tf.get_variable("runningsumsq", [3], initializer=tf.constant_initializer(0.01), trainable=False)
    count = tf.get_variable("count", [], initializer=tf.constant_initializer(0.01), trainable=False)
    new = tf.placeholder(tf.float32, [None, 3], name="observations")
    tf.group(
        tf.assign_add(total, tf.reduce_sum(new, 0)),
        tf.assign_add(squares, tf.reduce_sum(tf.square(new), 0)),
        tf.assign_add(count, tf.cast(tf.shape(new)[0], tf.float32)),
        name="update_observations",
    )
    mean = total / count
    deviation = tf.sqrt(tf.maximum(squares / count - tf.square(mean), 1e-2))
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = dense(tf.clip_by_value((x - mean) / deviation, -5.0, 5.0), 1, "policy")
    return finish(at, train=[_minimize(tf.reduce_mean(tf.square(y)))], outputs=[y], statistics=[])


@case(layers=0)
def not_inputs_standardized_by_fixed_variables(at):
    """Mean and deviation of the data set, computed outside and assigned once."""
    mean = tf.get_variable("data_mean", [3], initializer=tf.constant_initializer(0.4), trainable=False)
    deviation = tf.get_variable("data_std", [3], initializer=tf.constant_initializer(0.2), trainable=False)
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = dense((x - mean) / deviation, 1, "regression")
    return finish(at, train=[_minimize(tf.reduce_mean(tf.square(y)))], outputs=[y], statistics=[])


@case(layers=0)
def not_metrics_streaming_means(at):
    net = network(lambda x: x)
    _, update = tf.metrics.mean(net.loss)
    train_op = _minimize(net.loss)
    built = finish(at, train=[tf.group(train_op, update)], statistics=[])
    return built


@case(layers=0)
def not_summaries_of_mean_and_deviation(at):
    net = network(lambda x: x)
    for variable in tf.trainable_variables():
        mean = tf.reduce_mean(variable)
        tf.summary.scalar("mean", mean)
        tf.summary.scalar("stddev", tf.sqrt(tf.reduce_mean(tf.square(variable - mean))))
    return finish(at, train=[_minimize(net.loss)], statistics=[])


@case(layers=0)
def not_correlation_loss(at):
    """A loss that standardizes predictions and targets over the batch (Pearson's correlation)."""
    net = network(lambda x: x)

    def standard(values):
        mean, variance = tf.nn.moments(values, [0])
        return (values - mean) / tf.sqrt(variance + 1e-6)

    target = tf.placeholder(tf.float32, [None, 2], name="target")
    loss = -tf.reduce_mean(standard(net.logits) * standard(target))
    with session() as s:
        train_op = _minimize(loss)
        s.run(tf.global_variables_initializer())
        s.run(train_op, feeds(training=True))
        prefix = tf.train.Saver().save(s, str(at / "model.ckpt"))
    return Built(at / f"{prefix.rpartition('/')[2]}.meta", options={"outputs": (net.logits.op.name,)})
