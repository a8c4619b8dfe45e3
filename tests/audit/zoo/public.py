"""Found in public files: stripped graphs, engines, frozen unfused layers, dead branches, batches of one, workers' copies."""

from functools import partial

from bn_graph.tf1 import tf
from tests.audit.zoo.exported import _frozen_inference
from tests.audit.zoo.forms import slim_in_place, tf_layers
from tests.audit.zoo.handwritten import averaged
from tests.audit.zoo.harness import (
    Built,
    case,
    dense,
    finish,
    mode_placeholder,
    network,
    register,
    session,
    train_with_updates,
)

_KERNELS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def _sgd():
    return tf.train.GradientDescentOptimizer(0.1)


def _read(built):
    graph = tf.GraphDef()
    graph.ParseFromString(built.subject.read_bytes())
    return graph


def _written(at, graph):
    (at / "changed.pb").write_bytes(graph.SerializeToString())
    return Built(at / "changed.pb")


# ----------------------------------------------------------------------------------- what is not in the file


def _stripped(at, training, statistics):
    """A frozen graph without is_training, as in text graphs for OpenCV; with `statistics`, its constants are kept."""
    graph = _read(_frozen_inference(at, training))
    kept = [node for node in graph.node if statistics or node.op != "Const"]
    del graph.node[:]
    graph.node.extend(kept)
    for node in graph.node:
        if node.op in _KERNELS:
            del node.attr["is_training"]
    return _written(at, graph)


_UNKNOWN = {"training": "?", "inference": "?", "statistics": "?"}
for _statistics in (False, True):
    register(
        f"kernel_without_its_mode_{'with' if _statistics else 'without'}_statistics",
        partial(_stripped, training=False, statistics=_statistics),
        undetermined="BN004",
        layers=1,
        columns=_UNKNOWN,
    )


@case("BN004", layers=1)
def kernel_in_training_mode_by_default(at):
    """TensorFlow 1 itself leaves the attribute out where it is True; the kernel then has empty statistics."""
    graph = _read(_frozen_inference(at, True))
    empty = graph.node.add(name="empty", op="Const")
    empty.attr["dtype"].type = empty.attr["value"].tensor.dtype = tf.float32.as_datatype_enum
    empty.attr["value"].tensor.tensor_shape.dim.add(size=0)
    for node in graph.node:
        if node.op in _KERNELS:
            del node.attr["is_training"]
            node.input[3:5] = ["empty", "empty"]
    return _written(at, graph)


@case(undetermined="BN002", layers=1, columns={"statistics": "?", "inference": "population"})
def frozen_graph_whose_values_are_in_another_file(at):
    """As TF.js writes it: constants have a type and a shape."""
    graph = _read(_frozen_inference(at, False))
    for node in graph.node:
        if node.op == "Const":
            node.attr["value"].tensor.ClearField("tensor_content")
            node.attr["value"].tensor.ClearField("float_val")
    return _written(at, graph)


def _engine(at, training, kept):
    """Everything between the placeholder and the output compiled by TensorRT, with what it was made of, or without."""
    part = _read(_frozen_inference(at, training))
    placeholder = next(node for node in part.node if node.op == "Placeholder")
    graph = tf.GraphDef(node=[placeholder])
    engine = graph.node.add(name="TRTEngineOp_0", op="TRTEngineOp", input=[placeholder.name])
    engine.attr["serialized_segment"].s = b"ptrt\x00\x00 the compiled engine"
    graph.node.add(name="y", op="Identity", input=["TRTEngineOp_0"])
    if kept == "function":
        function = graph.library.function.add()
        function.signature.name = engine.attr["segment_func"].func.name = "TRTEngineOp_0_native_segment"
        function.signature.input_arg.add(name=placeholder.name)
        function.signature.output_arg.add(name="y")
        function.node_def.extend(node for node in part.node if node is not placeholder)
        function.ret["y"] = "prediction:softmax:0"
    elif kept == "graph":
        segment = tf.GraphDef.FromString(part.SerializeToString())
        for node in segment.node:
            node.name = "TensorRTInputPH_0" if node.name == placeholder.name else node.name
            node.input[:] = ["TensorRTInputPH_0" if name == placeholder.name else name for name in node.input]
        segment.node.add(name="TensorRTOutputPH_0", op="Identity", input=["prediction"])
        engine.attr["serialized_segment"].s = segment.SerializeToString()
    return _written(at, graph)


for _kept in ("function", "graph"):
    register(f"engine_with_its_{_kept}", partial(_engine, training=False, kept=_kept), layers=1)
    register(
        f"engine_with_its_{_kept}_in_training_mode", partial(_engine, training=True, kept=_kept), "BN004", layers=1
    )
register("engine_alone", partial(_engine, training=False, kept=None), layers=0, not_understood=1)


# ------------------------------------------------------------------------------------- frozen, written out


def _frozen_unfused(at, mode=False, *, update=True, train=True, norm=tf_layers):
    """Variables made constants, of a layer without a kernel."""
    training = mode if isinstance(mode, bool) else mode_placeholder(mode)
    net = network(lambda x: norm(x, training))
    with session() as s:
        s.run(tf.global_variables_initializer())
        for variable in tf.global_variables():
            if "moving" in variable.op.name and update:
                s.run(tf.assign(variable, [0.5, 1.5, 2.5]))
            if "gamma" in variable.op.name and train:
                s.run(tf.assign(variable, [1.5, 0.5, 1.0]))
        graph = tf.get_default_graph().as_graph_def()
        frozen = tf.graph_util.convert_variables_to_constants(s, graph, [net.prediction.op.name])
    return _written(at, frozen)


_initial = {"statistics": "initial", "inference": "population"}
register("frozen_unfused", _frozen_unfused, layers=1, columns={"statistics": "updated", "inference": "population"})
register("frozen_unfused_with_its_switch", partial(_frozen_unfused, mode="fed"), layers=1)
register("frozen_unfused_never_updated", partial(_frozen_unfused, update=False), "BN002", layers=1, columns=_initial)
register(
    "frozen_unfused_never_trained",
    partial(_frozen_unfused, update=False, train=False),
    undetermined="BN002",
    layers=1,
    columns=_initial,
)


@case(layers=0)
def frozen_standardization_of_inputs(at):
    """Data prepared by constants, as many as there are channels, is no layer."""
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    prepared = (x - tf.constant([0.0, 0.0, 0.0])) / tf.sqrt(tf.constant([1.0, 1.0, 1.0]) + 1e-3)
    tf.nn.softmax(tf.matmul(prepared, tf.ones([3, 2])), name="prediction")
    tf.io.write_graph(tf.get_default_graph(), str(at), "graph.pb", as_text=False)
    return Built(at / "graph.pb")


@case(layers=0, not_understood=1)
def statistic_read_by_another_op(at):
    """A kernel that is not TensorFlow's own."""
    graph = _read(_frozen_inference(at, False))
    for node in graph.node:
        if node.op in _KERNELS:
            node.op = "InPlaceBatchNorm"
    return _written(at, graph)


# ---------------------------------------------------------------------------------- untouched among many that moved


def _five_layers(at, untouched, dead=0, named=True, collected=False, train=False, by_batch=()):
    """An export of five layers in a row, some of whose statistics never moved; `dead` more that no named output uses.

    With `train`, a graph that trains on from there; `by_batch` are the layers that it has in training mode.
    """
    value = x = tf.placeholder(tf.float32, [None, 3], name="x")
    for number in range(5):
        value = tf.nn.relu(tf_layers(dense(value, 3, f"dense_{number}"), number in by_batch, name=f"bn_{number}"))
    branch = x
    for number in range(dead):
        branch = tf.nn.relu(tf_layers(dense(branch, 3, f"dead_{number}"), False, name=f"dead_bn_{number}"))
    tf.identity(value, name="detection_boxes" if named else "last")
    if collected:
        tf.add_to_collection("predict_op", value)
    if train:
        train_with_updates(tf.reduce_mean(tf.square(value - 1.0)))
    with session() as s:
        s.run(tf.global_variables_initializer())
        for variable in tf.global_variables():
            if "dead" not in variable.op.name and not any(f"bn_{n}/moving" in variable.op.name for n in untouched):
                s.run(tf.assign_add(variable, tf.fill(variable.shape, 0.5)))
        tf.train.Saver().save(s, str(at / "model.ckpt"))
    return Built(at / "model.ckpt.meta")


register("dead_branch_beside_a_named_output", partial(_five_layers, untouched=(), dead=3), silent="BN002", layers=8)
register(
    "dead_branch_beside_a_collected_output",
    partial(_five_layers, untouched=(), dead=3, named=False, collected=True),
    silent="BN002",
    layers=8,
)
register("one_untouched_layer_of_five", partial(_five_layers, untouched=(0,)), must="BN002", layers=5)
register("two_untouched_layers_of_five", partial(_five_layers, untouched=(0, 3)), "BN002", layers=5)
register("dead_layer_beside_an_unnamed_output", partial(_five_layers, untouched=(), dead=1, named=False), must="BN002")


# Fine-tuning with batch norm frozen but for gamma and beta: one layer of the published weights is untouched.
register(
    "one_untouched_layer_of_five_frozen_ones",
    partial(_five_layers, untouched=(0,), named=False, train=True),
    must="BN002 BN008",
    layers=5,
)
register(
    "one_layer_of_five_in_inference_mode",
    partial(_five_layers, untouched=(0,), named=False, train=True, by_batch=(1, 2, 3, 4)),
    "BN002 BN008",
    layers=5,
)


# --------------------------------------------------------------------------------------------- batches of one


def _fixed_batch(at, shape, **options):
    """A network whose placeholder has a fixed batch size."""
    training = mode_placeholder()
    x = tf.placeholder(tf.float32, shape, name="x")
    hidden = tf_layers(x, training, **options)
    if len(shape) == 2:
        hidden = tf.nn.relu(averaged(dense(hidden, 3, "second"), training))
    loss = tf.reduce_mean(tf.square(hidden - 1.0), name="loss")
    return finish(at, train=[train_with_updates(loss)])


# The second layer's input is beta in every step; its averages start from 0, and 0 is what they average.
register("batch_of_one", partial(_fixed_batch, shape=[1, 3]), "BN009", layers=2, silent="BN002", still=True)
register("batch_of_one_image", partial(_fixed_batch, shape=[1, 2, 2, 3]), layers=1, silent="BN009")
register("batch_of_one_pixel", partial(_fixed_batch, shape=[1, 1, 1, 3]), "BN009", layers=1, still=True)
register("batch_of_two", partial(_fixed_batch, shape=[2, 3]), layers=2, silent="BN009")
register("batch_of_any_size", partial(_fixed_batch, shape=[None, 3]), layers=2, silent="BN009")
register(
    "batch_of_one_pixel_renormalized",
    partial(_fixed_batch, shape=[1, 1, 1, 3], renorm=True),
    layers=1,
    silent="BN009",
    still=True,
)


# -------------------------------------------------------------------------- training graphs that may also predict


def _switchless(at, norm, outputs):
    net = network(lambda x: norm(x, True))
    built = finish(at, train=[train_with_updates(net.loss)], outputs=[net.prediction] if outputs else ())
    return built._replace(options={"outputs": ("prediction",)} if outputs else {})


register("switchless_in_place", partial(_switchless, norm=slim_in_place, outputs=False), undetermined="BN004 BN005")
register("switchless_in_place_named", partial(_switchless, norm=slim_in_place, outputs=True), "BN004 BN005")
register("switchless_collected", partial(_switchless, norm=tf_layers, outputs=False), undetermined="BN004")
register("switchless_collected_named", partial(_switchless, norm=tf_layers, outputs=True), "BN004")


@case(undetermined="BN004", layers=2, columns={"training": "batch"})
def one_layer_switched_and_one_not(at):
    """The second never leaves training mode, on the way to an accuracy."""
    training = mode_placeholder()
    net = network(lambda x: tf_layers(dense(tf_layers(x, training, name="first"), 3, "between"), True, name="second"))
    tf.reduce_mean(tf.cast(tf.equal(tf.argmax(net.logits, 1), 0), tf.float32), name="accuracy")
    return finish(at, train=[train_with_updates(net.loss)])


# ----------------------------------------------------------------------------------------------- workers


def _asynchronous(at, training):
    """A3C: each worker's gradients are applied to the global network, whose variables are copied to the worker."""
    losses = {}
    for scope in ("global", "worker_0", "worker_1"):
        with tf.variable_scope(scope):
            net = network(lambda x: tf_layers(x, training, name="bn"))
            losses[scope] = net.loss
    shared = tf.trainable_variables("global")
    steps = []
    for worker in ("worker_0", "worker_1"):
        own = tf.trainable_variables(worker)
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS, worker)):
            gradients = tf.gradients(losses[worker], own)
        steps.append(_sgd().apply_gradients(zip(gradients, shared, strict=True), name=f"{worker}_step"))
        tf.group(*[tf.assign(mine, theirs) for mine, theirs in zip(own, shared, strict=True)], name=f"{worker}_pull")
    return finish(at, train=steps)


register("workers_in_inference_mode", partial(_asynchronous, training=False), "BN008 BN002", layers=3, still=True)
