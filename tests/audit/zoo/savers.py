"""Savers and checkpoints: what is left out, what was never trained, what lies beside."""

from functools import partial
from pathlib import Path

from bn_graph.layers import slim
from bn_graph.tf1 import tf
from tests.audit.zoo.forms import slim_in_place, tf_layers
from tests.audit.zoo.harness import Built, case, finish, mode_placeholder, network, register, train_with_updates


def _net():
    training = mode_placeholder()
    net = network(lambda x: tf_layers(x, training))
    return net, train_with_updates(net.loss)


def _trained(at, saver=None, **options):
    net, train_op = _net()
    return finish(at, train=[train_op], outputs=[net.logits], saver=saver and saver(), **options)


for _variables in ("ref", "resource"):
    register(
        f"saver_of_trainable_variables_{_variables}",
        partial(_trained, saver=lambda: tf.train.Saver(tf.trainable_variables())),
        "BN003 BN006",
        variables=_variables,
        columns={"saved": "no", "statistics": "missing"},
    )


@case("BN003", columns={"saved": "no"})
def saver_of_trainable_variables_graph_only(at):
    _net()
    tf.train.Saver(tf.trainable_variables()).export_meta_graph(str(at / "model.meta"))
    return Built(at / "model.meta")


@case("BN003 BN006")
def saver_that_forgets_the_variances(at):
    net, train_op = _net()
    kept = [v for v in tf.global_variables() if "moving_variance" not in v.op.name]
    return finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver(kept))


@case(columns={"saved": "yes"})
def saver_of_trainable_and_moving_variables(at):
    net, train_op = _net()
    moving = [v for v in tf.global_variables() if "moving_" in v.op.name]
    return finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver(tf.trainable_variables() + moving))


@case(silent="BN006")
def partial_saver_beside_a_full_one(at):
    """A Saver of the trainable variables to restore a pretrained net, and the full one that writes checkpoints."""
    net, train_op = _net()
    tf.train.Saver(tf.trainable_variables(), name="pretrained")
    return finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver())


@case("BN003 BN006")
def full_saver_beside_the_partial_one_that_writes(at):
    net, train_op = _net()
    tf.train.Saver(name="full")
    return finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver(tf.trainable_variables()))


@case()
def partitioned_saver(at):
    """Sharded checkpoints: several SaveV2 ops that together save everything."""
    net, train_op = _net()
    return finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver(sharded=True))


@case()
def saver_under_other_names(at):
    """A map from the checkpoint's names to variables."""
    net, train_op = _net()
    names = {f"old/{v.op.name}": v for v in tf.global_variables()}
    built = finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver(names))
    return built._replace(facts=None)  # the checkpoint's names are not the variables'


@case("BN003 BN006")
def slim_in_place_saver_of_trainable_variables(at):
    training = mode_placeholder()
    net = network(lambda x: slim_in_place(x, training), rank=4)
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    return finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver(tf.trainable_variables()))


@case("BN003 BN006")
def library_saver_that_forgets_a_layer(at):
    training = mode_placeholder()
    net = network(lambda x: slim_in_place(tf.nn.relu(slim_in_place(x, training, scope="one")), training, scope="two"))
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    kept = [v for v in tf.global_variables() if not v.op.name.startswith("two/moving_")]
    return finish(at, train=[train_op], outputs=[net.logits], saver=tf.train.Saver(kept))


@case()
def slim_model_variables(at):
    """slim.get_model_variables() has the statistics, unlike the trainable variables."""
    training = mode_placeholder()
    net = network(lambda x: slim.batch_norm(x, decay=0.9, is_training=training, updates_collections=None))
    train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    others = [v for v in tf.trainable_variables() if v not in tf.get_collection("model_variables")]
    saver = tf.train.Saver(tf.get_collection("model_variables") + others)
    return finish(at, train=[train_op], outputs=[net.logits], saver=saver)


# ------------------------------------------------------------------------------------------ checkpoints


@case(undetermined="BN002", still=True)
def checkpoint_of_an_untrained_network(at):
    _, train_op = _net()
    return finish(at, train=[train_op], steps=0)._replace(facts=None)


@case(undetermined="BN002", still=True)
def checkpoint_alone_of_an_untrained_network(at):
    _, train_op = _net()
    finish(at, train=[train_op], steps=0)
    return Built(at / "model.ckpt")


def _alone(at, with_updates, saver=None, suffix=".index"):
    training = mode_placeholder()
    net = network(lambda x: tf_layers(x, training))
    train_op = (
        train_with_updates(net.loss) if with_updates else tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
    )
    built = finish(at, train=[train_op], saver=saver and saver())
    (at / "model.ckpt.meta").unlink()
    if suffix == ".index":
        (at / "model.ckpt.data-00000-of-00001").unlink()
    return built._replace(subject=Path(f"{at / 'model.ckpt'}{suffix}"))


register("index_alone", partial(_alone, with_updates=True), layers=1, columns={"statistics": "updated"})
register("index_alone_never_updated", partial(_alone, with_updates=False), "BN002", columns={"statistics": "initial"})
register("checkpoint_alone", partial(_alone, with_updates=True, suffix=""), layers=1)
register("checkpoint_alone_never_updated", partial(_alone, with_updates=False, suffix=""), "BN002")


@case("BN002")
def directory_of_checkpoints_alone(at):
    """The latest of a directory."""
    return _alone(at, with_updates=False, suffix="")._replace(subject=at)


def _index_without_statistics(at):
    return _alone(at, with_updates=True, saver=lambda: tf.train.Saver(tf.trainable_variables()))


# Of a checkpoint alone nobody knows whether the graph has moving statistics: gamma and beta are of layer norm too.
register("index_alone_without_statistics", _index_without_statistics, allowed="BN006")


@case()
def other_checkpoint_is_healthy(at):
    """The graph's own checkpoint was never updated, the one the user names was."""
    built = _trained(at)
    (at / "bare").mkdir()
    with tf.Graph().as_default():
        _, train_op = _net()
        bare = finish(at / "bare", train=[train_op], steps=0)
    return Built(bare.subject, built.facts, {"checkpoint": str(at / "model.ckpt")})


@case("BN002")
def other_checkpoint_was_never_updated(at):
    built = _trained(at)
    (at / "bare").mkdir()
    with tf.Graph().as_default():
        training = mode_placeholder()
        net = network(lambda x: tf_layers(x, training))
        train_op = tf.train.GradientDescentOptimizer(0.1).minimize(net.loss)
        bare = finish(at / "bare", train=[train_op])
    return Built(built.subject, bare.facts, {"checkpoint": str(at / "bare" / "model.ckpt")})


@case("BN006")
def other_checkpoint_lacks_the_statistics(at):
    """The graph would save all; the checkpoint was written by a Saver that does not."""
    built = _trained(at)
    (at / "bare").mkdir()
    with tf.Graph().as_default():
        _, train_op = _net()
        bare = finish(at / "bare", train=[train_op], saver=tf.train.Saver(tf.trainable_variables()))
    return Built(built.subject, bare.facts, {"checkpoint": str(at / "bare" / "model.ckpt")})


@case()
def saver_of_the_old_format(at):
    """Checkpoints of TensorFlow before 0.12: one file, a table of slices."""
    _, train_op = _net()
    return finish(at, train=[train_op], saver=tf.train.Saver(write_version=tf.train.SaverDef.V1))._replace(facts=None)


@case("BN002 BN008", still=True)
def one_layer_in_inference_mode_in_a_training_graph(at):
    """The other layer is as it should be: the verdict is a layer's."""
    training = mode_placeholder()
    net = network(lambda x: tf_layers(tf.nn.relu(tf_layers(x, training, name="good")), False, name="forgotten"))
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits])


@case(must="BN008", still=True)
def one_layer_in_inference_mode_in_a_training_graph_without_checkpoint(at):
    net = network(lambda x: tf_layers(x, False))
    train_with_updates(net.loss)
    tf.train.Saver().export_meta_graph(str(at / "model.meta"))
    return Built(at / "model.meta")


@case("BN003 BN006 BN008", still=True)
def inference_mode_in_training_and_a_saver_of_trainables(at):
    net = network(lambda x: tf_layers(x, False))
    saver = tf.train.Saver(tf.trainable_variables())
    return finish(at, train=[train_with_updates(net.loss)], outputs=[net.logits], saver=saver)
