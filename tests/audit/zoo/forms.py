"""Each API's layer: with its updates run and without, under a switch, in training only, at inference only."""

import itertools
from functools import partial
from pathlib import Path

import bn_graph
from bn_graph.layers import slim
from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer
from bn_graph.tf1 import legacy_layers, tf
from tests.audit.zoo.harness import (
    CONDS,
    UPDATES,
    VARIABLES,
    Built,
    case,
    finish,
    mode_placeholder,
    network,
    register,
    train_with_updates,
)


def tf_layers(x, training, **options):
    return legacy_layers().batch_normalization(x, training=training, momentum=0.9, **options)


def tf_layers_nchw(x, training):
    return tf_layers(x, training, axis=1)


def slim_collection(x, training, **options):
    return slim.batch_norm(x, decay=0.9, scale=True, is_training=training, **options)


def slim_in_place(x, training, **options):
    return slim_collection(x, training, updates_collections=None, **options)


def wrapper_collection(x, training, **options):
    return bn_graph.batch_norm_wrapper(x, training, decay=0.9, updates_collection=UPDATES, **options)


def wrapper_in_place(x, training, **options):
    return bn_graph.batch_norm_wrapper(x, training, decay=0.9, **options)


def raw_fused(version: int):
    """A layer over `tf.raw_ops`, with its own statistics and their updates in the collection."""

    def layer(x, training):
        kernel = getattr(tf.raw_ops, f"FusedBatchNorm{'' if version == 1 else f'V{version}'}")
        with tf.variable_scope("bn"):
            gamma = tf.get_variable("gamma", [3], initializer=tf.ones_initializer())
            beta = tf.get_variable("beta", [3], initializer=tf.zeros_initializer())
            fixed = partial(tf.get_variable, shape=[3], trainable=False)
            mean = fixed("running_mean", initializer=tf.zeros_initializer())
            variance = fixed("running_var", initializer=tf.ones_initializer())

        def train():
            out = kernel(x=x, scale=gamma, offset=beta, mean=[], variance=[], is_training=True)
            return out[0], out[1], out[2]

        def infer():
            out = kernel(x=x, scale=gamma, offset=beta, mean=mean + 0.0, variance=variance + 0.0, is_training=False)
            return out[0], mean + 0.0, variance + 0.0

        y, new_mean, new_variance = tf.cond(training, train, infer)
        tf.add_to_collection(UPDATES, tf.assign_sub(mean, 0.1 * (mean - new_mean)).op)
        tf.add_to_collection(UPDATES, tf.assign_sub(variance, 0.1 * (variance - new_variance)).op)
        return y

    return layer


# Name: the layer, the rank of its inputs.
COLLECTED = {
    "tf_layers": (tf_layers, 2),
    "tf_layers_fused": (tf_layers, 4),
    "tf_layers_unfused": (partial(tf_layers, fused=False), 4),
    "tf_layers_renorm": (partial(tf_layers, renorm=True), 2),
    "slim": (slim_collection, 2),
    "slim_fused": (slim_collection, 4),
    "slim_zero_debias": (partial(slim_collection, zero_debias_moving_mean=True), 2),
    "wrapper": (wrapper_collection, 2),
    "wrapper_fused": (wrapper_collection, 4),
    "wrapper_zero_debias": (partial(wrapper_collection, zero_debias=True), 2),
    "wrapper_cumulative": (partial(wrapper_collection, average="cumulative"), 2),
    "wrapper_renorm": (partial(wrapper_collection, renorm=True), 2),
}
IN_PLACE = {
    "slim_in_place": (slim_in_place, 2),
    "slim_in_place_fused": (slim_in_place, 4),
    "slim_in_place_zero_debias": (partial(slim_in_place, zero_debias_moving_mean=True), 2),
    "wrapper_in_place": (wrapper_in_place, 2),
    "wrapper_in_place_fused": (wrapper_in_place, 4),
    "wrapper_in_place_ghost": (partial(wrapper_in_place, virtual_batch_size=2), 2),
    "wrapper_in_place_cumulative": (partial(wrapper_in_place, average="cumulative"), 2),
}
EVERYWHERE = {"tf_layers_fused", "slim", "slim_in_place", "wrapper", "wrapper_in_place"}


def switched(norm, rank, with_updates, at: Path, *, kind="fed") -> Built:
    """One graph for training and inference, with a switch."""
    training = mode_placeholder(kind)
    net = network(lambda x: norm(x, training), rank=rank)
    optimizer = tf.train.GradientDescentOptimizer(0.1)
    train_op = train_with_updates(net.loss) if with_updates else optimizer.minimize(net.loss)
    return finish(at, train=[train_op], outputs=[net.logits])


def training_only(norm, rank, with_updates, at: Path) -> Built:
    """A graph for training alone: the mode is a Python bool."""
    net = network(lambda x: norm(x, True), rank=rank)
    optimizer = tf.train.GradientDescentOptimizer(0.1)
    train_op = train_with_updates(net.loss) if with_updates else optimizer.minimize(net.loss)
    return finish(at, train=[train_op])


def inference_only(norm, rank, with_updates, at: Path) -> Built:
    """The graph for inference alone, with the checkpoint of the one for training alone."""
    (at / "training").mkdir()
    with tf.Graph().as_default():
        trained = training_only(norm, rank, with_updates, at / "training")
    net = network(lambda x: norm(x, False), rank=rank)
    return finish(at, restore=trained.subject, outputs=[net.logits])


def _takes(name: str, variables: str, cond: str, kind: str) -> bool:
    """Whether TensorFlow can: tf.layers assigns in a cond (rank 2), and cond v2 can't assign a ref variable."""
    refused = kind == "switched" and (variables, cond) == ("ref", "v2") and name.startswith("tf_layers")
    return not (refused and name != "tf_layers_fused")


def _register_forms() -> None:
    for name, (norm, rank) in (COLLECTED | IN_PLACE).items():
        kinds = itertools.product(VARIABLES, CONDS) if name in EVERYWHERE else [("ref", "v1")]
        for variables, cond in kinds:
            if _takes(name, variables, cond, "switched"):
                make, where = partial(switched, norm, rank), {"variables": variables, "cond": cond, "layers": 1}
                register(f"{name}_{variables}_{cond}", partial(make, True), **where)
                if name in COLLECTED and (variables, cond) in (("ref", "v1"), ("resource", "v2")):
                    register(f"{name}_{variables}_{cond}_detached", partial(make, False), "BN001 BN002", **where)
        where = {"layers": 1, "variables": "ref"}
        register(f"{name}_training_only", partial(training_only, norm, rank, True), **where)
        register(f"{name}_inference_only", partial(inference_only, norm, rank, True), **where, still=True)
        if name in COLLECTED:
            # Nothing of such a graph is fit for inference: its statistics can't be used, and there are no others.
            labels = "BN001 BN002 BN004"
            register(f"{name}_training_only_detached", partial(training_only, norm, rank, False), labels, **where)
        if name in EVERYWHERE and name in COLLECTED:
            make = partial(inference_only, norm, rank, False)
            register(f"{name}_inference_only_detached", make, "BN002", **where, still=True)


_register_forms()

for _kind in ("default_false", "default_true"):
    register(f"tf_layers_{_kind}", partial(switched, tf_layers, 2, True, kind=_kind))
    register(f"slim_in_place_{_kind}", partial(switched, slim_in_place, 4, True, kind=_kind))
    register(f"tf_layers_{_kind}_detached", partial(switched, tf_layers, 2, False, kind=_kind), "BN001 BN002")

for _version, _variables in itertools.product((1, 2, 3), VARIABLES):
    _make = partial(switched, raw_fused(_version), 4)
    register(f"raw_fused_v{_version}_{_variables}", partial(_make, True), variables=_variables, layers=1)
    register(f"raw_fused_v{_version}_{_variables}_detached", partial(_make, False), "BN001 BN002", variables=_variables)


@case("BN001", allowed="BN004", layers=1)
def tf_layers_nchw_graph_only_detached(at):
    """The fused kernel for NCHW has no CPU implementation: a graph that was built for a GPU, read without one."""
    net = network(lambda x: tf_layers_nchw(x, mode_placeholder()), rank=4, data_format="NCHW")
    tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    tf.train.Saver().export_meta_graph(str(at / "nchw.meta"))
    return Built(at / "nchw.meta")


@case(layers=1)
def tf_layers_nchw_graph_only(at):
    net = network(lambda x: tf_layers_nchw(x, mode_placeholder()), rank=4, data_format="NCHW")
    train_with_updates(net.loss)
    tf.train.Saver().export_meta_graph(str(at / "nchw.meta"))
    return Built(at / "nchw.meta")


@case(layers=1)
def tf_layers_virtual_batches(at):
    training = mode_placeholder()
    net = network(lambda x: tf_layers(x, training, virtual_batch_size=2), rank=4)
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits])


@case(still=True)
def tf_layers_not_trainable_normalizes_by_population(at):
    """Transfer learning: the layer of a restored network keeps its statistics and weights."""
    (at / "training").mkdir()
    with tf.Graph().as_default():
        trained = training_only(tf_layers, 2, True, at / "training")
    net = network(lambda x: tf_layers(x, False, trainable=False))
    weights = [v for v in tf.trainable_variables() if v.op.name.startswith("logits")]
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss, var_list=weights)
    return finish(at, restore=trained.subject, train=[train_op], outputs=[net.logits])


@case("BN004", allowed="BN001 BN002", still=True)
def tf_layers_not_trainable_in_training_mode(at):
    """trainable=False keeps the updates out of the collection and goes on normalizing by the batch."""
    net = network(lambda x: tf_layers(x, True, trainable=False))
    train_op = train_with_updates(net.loss)
    return finish(at, train=[train_op], outputs=[net.logits])


@case("BN001 BN002")
def convolutional_normalizer_without_its_assigner(at):
    ewma = tf.train.ExponentialMovingAverage(0.9)
    bn = ConvolutionalBatchNormalizer(3, 0.001, ewma, True)
    bn.get_assigner()
    training = mode_placeholder()
    net = network(lambda x: bn.normalize(x, training), rank=4)
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    shadows = [ewma.average(bn.mean).op.name, ewma.average(bn.variance).op.name]
    return finish(at, train=[train_op], outputs=[net.logits], statistics=shadows)


@case()
def convolutional_normalizer(at):
    bn = ConvolutionalBatchNormalizer(3, 0.001, tf.train.ExponentialMovingAverage(0.9), True)
    assigner = bn.get_assigner()
    training = mode_placeholder()
    net = network(lambda x: bn.normalize(x, training), rank=4)
    train_op = tf.group(tf.train.GradientDescentOptimizer(0.1).minimize(net.loss), assigner)
    return finish(at, train=[train_op], outputs=[net.logits])


@case()
def the_librarys_network(at):
    net = bn_graph.build_graph(mode_placeholder(), bn_graph.normal_weights([4, 3, 2], seed=0))
    train_op = bn_graph.train_op(tf.train.GradientDescentOptimizer(0.1), net.loss)
    return finish(at, train=[train_op], outputs=[net.logits])
