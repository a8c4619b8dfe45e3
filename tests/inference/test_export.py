"""SavedModels and frozen graphs for serving: equal to the session, without training parts, whole or not there at all."""

import warnings

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.graphs import effects
from bn_graph.graphs.graph import build
from bn_graph.inference.branches import without_training_branches
from bn_graph.inference.export import ExportError, UnfoldedWarning, export_frozen_graph, export_saved_model
from bn_graph.inference.folding import fold_batch_norm
from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer
from bn_graph.tf1 import tf

TRAINING_OPS = {"If", "StatelessIf", "Switch", "RefSwitch", "Merge"}
ASSIGNING_OPS = {"AssignSub", "AssignAdd", "AssignSubVariableOp", "AssignAddVariableOp"}


def training_flag(kind):
    """The flag as a layer gets it, and as the export gets it."""
    if kind == "False":
        return False, None
    if kind == "placeholder with default":
        flag = tf.placeholder_with_default(True, [], name="flag")
        return flag, flag
    flag = tf.placeholder(tf.bool, [], name="flag")
    if kind == "negated":
        inference = tf.placeholder(tf.bool, [], name="is_inference")
        flag = tf.logical_not(inference)
    return flag, flag


def with_random_values(session, random):
    """Gives every variable a value that no initializer gives; variances stay above 0."""
    variables = tf.global_variables()
    values = [random.uniform(0.3, 2.0, variable.shape.as_list()) for variable in variables]
    assign_values(session, zip(variables, values, strict=True))


def network(is_training):
    """Two layers of batch norm after matmuls, one of them with a bias, and a linear last layer."""
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    w1, w2, w3 = (tf.get_variable(f"w{i}", shape) for i, shape in enumerate([(3, 4), (4, 5), (5, 2)], start=1))
    hidden = tf.nn.sigmoid(bn_graph.batch_norm_wrapper(x @ w1, is_training, name="bn1"))
    biased = hidden @ w2 + tf.get_variable("b2", [5])
    hidden = tf.nn.relu(bn_graph.batch_norm_wrapper(biased, is_training, name="bn2"))
    return x, tf.matmul(hidden, w3, name="logits")


def loaded(path):
    """A session of a fresh graph with the SavedModel in it, and the signature's tensor names."""
    session = tf.Session(graph=tf.Graph())
    signature = tf.saved_model.load(session, ["serve"], path).signature_def["serving_default"]
    return session, signature.inputs["x"].name, signature.outputs["y"].name


def imported(path):
    """A fresh graph with the frozen one in it."""
    graph_def = tf.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    return graph


def run_frozen(frozen, value, output="y"):
    with tf.Session(graph=imported(frozen.path)) as session:
        return session.run(frozen.outputs[output], {frozen.inputs["x"]: value})


def op_types(graph, output):
    built = build(graph)
    return [built.ops[built.ids[name]] for name in effects.upstream(built, output)]


def check_saved_model(session, x, y, exported_flag, feed, directory, random):
    """Exports, loads into a fresh graph, and demands the session's outputs; returns what was loaded and y's name there."""
    batch = random.normal(size=(6, 3))
    expected = session.run(y, {x: batch} | feed)
    before = session.run(tf.global_variables())
    path = export_saved_model(session, directory / "model", {"x": x}, {"y": y}, is_training=exported_flag)
    for now, then in zip(session.run(tf.global_variables()), before, strict=True):
        np.testing.assert_array_equal(now, then)
    served, x_name, y_name = loaded(path)
    with served:
        np.testing.assert_allclose(served.run(y_name, {x_name: batch}), expected, rtol=1e-6)
        alone = np.concatenate([served.run(y_name, {x_name: batch[[row]]}) for row in range(6)])
        np.testing.assert_allclose(alone, expected, rtol=1e-5)
    return served.graph, y_name


def test_saved_model_of_a_training_graph_infers_and_holds_no_training(graph, start, random, tmp_path):
    flag = tf.placeholder(tf.bool, [])
    x, y = network(flag)
    tf.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_sum(y), tf.train.get_or_create_global_step())
    session = start()
    with_random_values(session, random)
    served, y_name = check_saved_model(session, x, y, flag, {flag: False}, tmp_path, random)
    names = [variable.op.name for variable in served.get_collection("variables")]
    layers = [f"bn{i}/{leaf}" for i in (1, 2) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")]
    assert sorted(names) == sorted(["w1", "w2", "b2", "w3", *layers])
    types = {op.type for op in served.get_operations()}
    assert not types & (TRAINING_OPS | ASSIGNING_OPS | {"Mean"})
    assert not effects.variables_written(build(served), y_name)
    assert not served.as_graph_def().library.function


@pytest.mark.parametrize("flag_kind", ["False", "placeholder with default", "negated"])
def test_saved_model_with_other_kinds_of_flag(plain_graph, start, random, tmp_path, flag_kind):
    flag, exported_flag = training_flag(flag_kind)
    x, y = network(flag)
    session = start()
    with_random_values(session, random)
    feed = {"False": {}, "negated": {"is_inference:0": True}}.get(flag_kind, {flag: False})
    check_saved_model(session, x, y, exported_flag, feed, tmp_path, random)


def test_exports_need_no_default_graph(start, random, tmp_path):
    with tf.Graph().as_default():
        x, y = network(False)
        session = start()
        with_random_values(session, random)
    export_saved_model(session, tmp_path / "model", {"x": x}, {"y": y})
    export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y})


def test_saved_model_keeps_each_kind_of_variable(plain_graph, start, variable_kind, tmp_path):
    with tf.variable_scope("", use_resource=variable_kind == "resource"):
        x, y = network(False)
    path = export_saved_model(start(), tmp_path / "model", {"x": x}, {"y": y})
    served, _, _ = loaded(path)
    with served:
        kinds = {op.type for op in served.graph.get_operations()} & {"VariableV2", "VarHandleOp"}
    assert kinds == {"ref": {"VariableV2"}, "resource": {"VarHandleOp"}}[variable_kind]


def test_saved_model_is_cut_at_an_input_that_is_no_placeholder(plain_graph, start, random, tmp_path):
    features, _ = tf.data.make_one_shot_iterator(
        tf.data.Dataset.from_tensors((np.ones((4, 3), np.float32), 1))
    ).get_next()
    w, flag = tf.get_variable("w", [3, 2]), tf.placeholder_with_default(False, [])
    y = bn_graph.batch_norm_wrapper(features @ w, flag, name="bn1")
    session = start()
    with_random_values(session, random)
    path = export_saved_model(session, tmp_path / "model", {"x": features}, {"y": y}, is_training=flag)
    served, x_name, y_name = loaded(path)
    with served:
        assert x_name == "x:0"
        np.testing.assert_allclose(served.run(y_name, {x_name: np.ones((4, 3))}), session.run(y), rtol=1e-6)
        assert not [op.name for op in served.graph.get_operations() if "Iterator" in op.type]


@pytest.mark.parametrize("policy", [None, "update_ops"])
@pytest.mark.parametrize("maker", ["wrapper", "tf.layers", "tf.layers fused", "by hand"])
def test_a_training_only_graph_is_refused_by_layer_and_nothing_is_written(plain_graph, start, tmp_path, policy, maker):
    x = tf.placeholder(tf.float32, [None, 4, 4, 3] if maker == "tf.layers fused" else [None, 3], name="x")
    if maker == "wrapper":
        y = bn_graph.batch_norm_wrapper(x, True, updates_collection=policy, name="net/bn1")
    elif maker == "by hand":
        with tf.variable_scope("net/bn1"):
            y = (x - tf.reduce_mean(x, 0)) / tf.sqrt(tf.nn.moments(x, [0])[1] + 1e-3)
    else:
        y = tf.layers.batch_normalization(x, training=True, name="net/bn1")
    session = start()
    with pytest.raises(ExportError, match=r"still train in net/bn1.*is_training=False") as refusal:
        export_saved_model(session, tmp_path / "model", {"x": x}, {"y": y})
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_without_gamma_or_statistics_by_name_is_refused_for_its_batch_variance(plain_graph, start, tmp_path):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = tf.layers.batch_normalization(x, training=True, center=False, scale=False, name="bn1")
    with pytest.raises(ExportError, match="still train in bn1"):
        export_frozen_graph(start(), tmp_path / "model.pb", {"x": x}, {"y": y})


def test_a_layer_whose_gamma_is_read_without_its_statistics_is_refused(plain_graph, start, tmp_path):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = bn_graph.batch_norm_wrapper(
        x, True, weights=tf.ones([4]), updates_collection="mine", name="bn1"
    )  # no Mean in it
    with pytest.raises(ExportError, match="still train in bn1:"):
        export_saved_model(start(), tmp_path / "model", {"x": x}, {"y": y})


def test_a_flag_that_is_not_named_is_asked_for(plain_graph, start, tmp_path):
    x, y = network(tf.placeholder(tf.bool, [], name="flag"))
    with pytest.raises(ExportError, match=r"need flag to be fed.*pass it as is_training="):
        export_saved_model(start(), tmp_path / "model", {"x": x}, {"y": y})


def test_one_layer_left_in_training_is_named_though_the_others_follow_the_flag(plain_graph, start, tmp_path):
    flag = tf.placeholder(tf.bool, [])
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = bn_graph.batch_norm_wrapper(bn_graph.batch_norm_wrapper(x, flag, name="bn1"), True, name="bn2")
    with pytest.raises(ExportError, match="still train in bn2:"):
        export_saved_model(start(), tmp_path / "model", {"x": x}, {"y": y}, is_training=flag)


def test_an_input_that_the_outputs_do_not_need_is_refused(plain_graph, start, tmp_path):
    x, y = network(False)
    labels = tf.placeholder(tf.int64, [None], name="labels")
    with pytest.raises(ExportError, match="do not depend on labels"):
        export_saved_model(start(), tmp_path / "model", {"x": x, "labels": labels}, {"y": y})


@pytest.mark.parametrize(("inputs", "outputs"), [({}, "y"), ("x", {}), ({"x": "x:0"}, "y"), (["x"], "y")])
def test_inputs_and_outputs_are_dicts_of_tensors(plain_graph, start, tmp_path, inputs, outputs):
    x, y = network(False)
    inputs, outputs = ({"x": x} if inputs == "x" else inputs), ({"y": y} if outputs == "y" else outputs)
    with pytest.raises(ExportError, match=r"must be a (dict|tensor)"):
        export_saved_model(start(), tmp_path / "model", inputs, outputs)


def test_variables_without_values_are_refused(plain_graph, tmp_path):
    x, y = network(False)
    with tf.Session() as session, pytest.raises(ExportError, match="hold no values yet"):
        export_saved_model(session, tmp_path / "model", {"x": x}, {"y": y})


@pytest.mark.parametrize("axis", [None, 1])
def test_a_mean_of_squares_that_ends_in_a_scalar_or_an_example_is_no_batch_norm(plain_graph, start, tmp_path, axis):
    x, y = network(False)
    losses = {"of vectors": tf.reduce_mean(tf.square(y), axis), "of numbers": tf.reduce_mean(tf.square(y[:, 0]))}
    export_saved_model(start(), tmp_path / "model", {"x": x}, losses)


@pytest.mark.parametrize("axes", [[0], [0, 1], [-3, -2]])
def test_a_variance_over_examples_is_batch_norm_whatever_the_rank(plain_graph, start, tmp_path, axes):
    x = tf.placeholder(tf.float32, [None, 5, 3], name="x")
    y = x * tf.rsqrt(tf.reduce_mean(tf.square(x), axes) + 1e-3, name="by_hand/scale")
    with pytest.raises(ExportError, match="still train"):
        export_saved_model(start(), tmp_path / "model", {"x": x}, {"y": y})


def test_a_scale_of_exactly_one_is_folded_too(plain_graph, start, random, tmp_path):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    y = bn_graph.batch_norm_wrapper(x @ tf.get_variable("w", [3, 4]), False, epsilon=0.75, name="bn1")
    session = start()
    variance = next(variable for variable in tf.global_variables() if variable.op.name == "bn1/moving_variance")
    assign_values(session, [(variance, np.full(4, 0.25))])
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y})
    assert frozen.folded == ["bn1"]
    assert "Mul" not in op_types(imported(frozen.path), frozen.outputs["y"])


@pytest.mark.parametrize("export", [export_saved_model, export_frozen_graph])
def test_what_exists_is_not_overwritten(plain_graph, start, tmp_path, export):
    x, y = network(False)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists"):
        export(start(), tmp_path / "there", {"x": x}, {"y": y})
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("export", [export_saved_model, export_frozen_graph])
def test_a_failure_while_writing_leaves_nothing_behind(plain_graph, start, tmp_path, export, monkeypatch):
    x, y = network(False)
    session = start()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("bn_graph.checkpoints.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export(session, tmp_path / "model", {"x": x}, {"y": y})
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_made_with_its_parents(plain_graph, start, tmp_path):
    x, y = network(False)
    frozen = export_frozen_graph(start(), tmp_path / "a" / "b" / "model.pb", {"x": x}, {"y": y})
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["model.pb"]
    assert frozen.inputs == {"x": "x:0"}
    assert frozen.outputs == {"y": "logits:0"}


def test_frozen_network_is_matmuls_and_biases_only_and_equals_the_session(graph, start, random, tmp_path):
    flag = tf.placeholder(tf.bool, [])
    x, y = network(flag)
    session = start()
    with_random_values(session, random)
    batch = random.normal(size=(6, 3))
    expected = session.run(y, {x: batch, flag: False})
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y}, is_training=flag)
    assert (frozen.folded, frozen.unfolded) == (["bn1", "bn2"], [])
    left = sorted(
        kind for kind in op_types(imported(frozen.path), "logits") if kind not in ("Const", "NoOp", "Identity")
    )
    assert left == ["BiasAdd"] * 2 + ["MatMul"] * 3 + ["Placeholder", "Relu", "Sigmoid"]
    np.testing.assert_allclose(run_frozen(frozen, batch), expected, rtol=1e-5, atol=1e-5)
    alone = np.concatenate([run_frozen(frozen, batch[[row]]) for row in range(6)])
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)


def test_without_folding_the_arithmetic_stays(plain_graph, start, random, tmp_path):
    x, y = network(False)
    session = start()
    with_random_values(session, random)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y}, fold=False)
    assert (frozen.folded, frozen.unfolded) == ([], ["bn1", "bn2"])
    assert op_types(imported(frozen.path), "logits").count("Rsqrt") == 2
    batch = random.normal(size=(6, 3))
    np.testing.assert_allclose(run_frozen(frozen, batch), session.run(y, {x: batch}), rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda x: bn_graph.batch_norm_wrapper(x, False, name="bn1"), [6, 3]),
        (lambda x: bn_graph.batch_norm_wrapper(x, False, name="bn1"), [6, 5, 5, 3]),
        (lambda x: tf.layers.batch_normalization(x, training=False, name="bn1"), [6, 5, 5, 3]),
    ],
    ids=["the wrapper", "the wrapper's kernel", "tf.layers' kernel"],
)
def test_a_frozen_layer_keeps_the_digits_of_inputs_far_from_0(plain_graph, start, random, tmp_path, layer, shape):
    x = tf.placeholder(tf.float32, [None, *shape[1:]], name="x")
    y = layer(x)
    session = start()
    with_random_values(session, random)
    (moving_mean,) = (each for each in tf.global_variables() if each.op.name.endswith("moving_mean"))
    moving_mean.load(np.full(3, 1e5, np.float32), session)
    values = {each.op.name.rpartition("/")[2]: session.run(each).astype(np.float64) for each in tf.global_variables()}
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y}, fold=False)
    inputs = (1e5 + random.normal(size=shape)).astype(np.float32)
    deviation = np.sqrt(values["moving_variance"] + 1e-3)
    expected = values["gamma"] * (inputs.astype(np.float64) - 1e5) / deviation + values["beta"]
    np.testing.assert_allclose(run_frozen(frozen, inputs), expected, rtol=1e-6, atol=1e-6)


def test_a_frozen_kernel_stays_where_its_mean_is_near_0(plain_graph, start, random, tmp_path):
    x = image()
    y = bn_graph.batch_norm_wrapper(x, False, name="bn1")
    session = start()
    with_random_values(session, random)
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y}, fold=False)
    assert "FusedBatchNormV3" in op_types(imported(frozen.path), y.op.name)


def image():
    return tf.placeholder(tf.float32, [None, 6, 6, 3], name="x")


def conv2d_transpose(x):
    """With an output shape that only running tells, its number of channels included."""
    w = tf.get_variable("w", [3, 3, 4, 3])
    channels = tf.reduce_max(tf.where(tf.equal(x[:1, 0, 0, 0], 123.0), [0], [4]))
    y = tf.nn.conv2d_transpose(x, w, tf.stack([tf.shape(x)[0], 12, 12, channels]), 2)
    assert y.shape.as_list() == [None, 12, 12, None]
    return tf.nn.bias_add(y, tf.get_variable("b", [4]))


LINEAR = {
    "conv2d": lambda: tf.nn.conv2d(image(), tf.get_variable("w", [3, 3, 3, 4]), [1, 2, 2, 1], "SAME"),
    "dilated conv2d": lambda: tf.nn.conv2d(image(), tf.get_variable("w", [2, 2, 3, 4]), 1, "VALID", dilations=2),
    "transposed conv2d": lambda: tf.layers.conv2d_transpose(image(), 4, 3, strides=2, name="conv"),
    "transposed conv2d of a computed shape": lambda: conv2d_transpose(image()),
    "atrous conv2d": lambda: tf.nn.atrous_conv2d(image(), tf.get_variable("w", [3, 3, 3, 4]), 2, "SAME"),
    "atrous depthwise": lambda: tf.nn.depthwise_conv2d(
        image(), tf.get_variable("w", [3, 3, 3, 2]), [1, 1, 1, 1], "SAME", rate=[2, 2]
    ),
    "depthwise": lambda: tf.nn.depthwise_conv2d(image(), tf.get_variable("w", [3, 3, 3, 2]), [1, 1, 1, 1], "SAME"),
    "layer with bias": lambda: tf.layers.conv2d(image(), 4, 3, name="conv"),
    "dense": lambda: tf.layers.dense(tf.placeholder(tf.float32, [None, 3], name="x"), 4, name="dense"),
    "dense of rank 3": lambda: tf.layers.dense(tf.placeholder(tf.float32, [None, 5, 3], name="x"), 4, name="dense"),
    "conv1d": lambda: tf.layers.conv1d(tf.placeholder(tf.float32, [None, 6, 3], name="x"), 4, 3, name="conv"),
    "atrous conv1d": lambda: tf.layers.conv1d(
        tf.placeholder(tf.float32, [None, 8, 3], name="x"), 4, 3, dilation_rate=2, name="conv"
    ),
    "conv3d": lambda: tf.layers.conv3d(tf.placeholder(tf.float32, [None, 4, 4, 4, 2], name="x"), 3, 2, name="conv"),
    "transposed conv3d": lambda: tf.layers.conv3d_transpose(
        tf.placeholder(tf.float32, [None, 3, 3, 3, 2], name="x"), 3, 2, name="conv"
    ),
    "transposed weights": lambda: tf.matmul(
        tf.placeholder(tf.float32, [None, 3], name="x"), tf.get_variable("w", [4, 3]), transpose_b=True
    ),
}
NORMS = {
    "wrapper": lambda y: bn_graph.batch_norm_wrapper(y, False, name="bn1"),
    "tf.layers": lambda y: tf.layers.batch_normalization(y, training=False, name="bn1"),
    "tf.layers not fused": lambda y: tf.layers.batch_normalization(y, training=False, name="bn1", fused=False),
    "tf.layers without gamma": lambda y: tf.layers.batch_normalization(y, training=False, name="bn1", scale=False),
}


@pytest.mark.parametrize(
    ("linear", "norm"),
    [(linear, "wrapper") for linear in LINEAR]
    + [(linear, norm) for linear in ("conv2d", "dense", "conv1d") for norm in list(NORMS)[1:]],
)
def test_batch_norm_folds_into_what_precedes_it(plain_graph, start, random, tmp_path, linear, norm):
    y = tf.nn.relu(NORMS[norm](LINEAR[linear]()), name="y")
    session = start()
    with_random_values(session, random)
    x = plain_graph.get_tensor_by_name("x:0")
    batch = random.normal(size=[5, *x.shape.as_list()[1:]])
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y})
    assert frozen.folded == ["bn1"]
    left = [op for op in imported(frozen.path).get_operations() if op.name.startswith("bn1/")]
    assert {op.type for op in left} <= {"Identity", "Reshape", "Const"}
    assert not frozen.unfolded
    np.testing.assert_allclose(run_frozen(frozen, batch), session.run(y, {x: batch}), rtol=1e-5, atol=1e-5)


def test_two_convolutions_that_share_their_weights_are_folded_apart(plain_graph, start, random, tmp_path):
    x, w = image(), tf.get_variable("w", [3, 3, 3, 4])
    branches = [bn_graph.batch_norm_wrapper(tf.nn.conv2d(x, w, 1, "SAME"), False, name=f"bn{i}") for i in (1, 2)]
    y = tf.nn.relu(branches[0]) + tf.nn.elu(branches[1])
    session = start()
    with_random_values(session, random)
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y})
    assert frozen.folded == ["bn1", "bn2"]
    batch = random.normal(size=(2, 6, 6, 3))
    np.testing.assert_allclose(run_frozen(frozen, batch), session.run(y, {x: batch}), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2.0**-11), ("bfloat16", 2.0**-9)])
@pytest.mark.parametrize("norm", ["wrapper", "tf.layers"])
def test_half_precision_dense_layers_are_folded(plain_graph, start, random, tmp_path, dtype, rounding, norm):
    x = tf.placeholder(dtype, [None, 3], name="x")
    y = NORMS[norm](tf.layers.dense(x, 4, name="dense"))
    session = start()
    with_random_values(session, random)
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y})
    assert (frozen.folded, frozen.unfolded) == (["bn1"], [])
    left = {op.type for op in imported(frozen.path).get_operations()}
    assert left <= {"Placeholder", "Const", "MatMul", "BiasAdd", "Identity"}  # the casts to float32 are gone too
    batch = random.normal(size=(5, 3)).astype(x.dtype.as_numpy_dtype)
    names = [
        "dense/kernel",
        "dense/bias",
        *(f"bn1/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance")),
    ]
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    kernel, bias, gamma, beta, mean, variance = (
        np.float64(value) for value in session.run([variables[name] for name in names])
    )
    scale = gamma / np.sqrt(variance + 1e-3)
    exact = (np.float64(batch) @ kernel + bias - mean) * scale + beta
    # Each product, the sum and the offset are rounded once, and the weights were once more.
    size = np.abs(np.float64(batch)) @ np.abs(kernel * scale) + np.abs((bias - mean) * scale + beta)
    assert (np.abs(np.float64(run_frozen(frozen, batch)) - exact) <= 6 * rounding * size).all()


@pytest.mark.parametrize("scaled", [False, True])
def test_the_kernel_of_the_first_year_is_folded(random, scaled):
    weights = random.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mean, variance, beta, gamma = random.uniform(0.5, 2.0, (4, 4)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 6, 6, 3], name="x")
        z = tf.nn.conv2d(x, weights, 1, "SAME", name="z")
        operands = [tf.constant(value) for value in (mean, variance, beta, gamma)]
        graph_def = graph.as_graph_def()
    node = graph_def.node.add(
        name="y", op="BatchNormWithGlobalNormalization", input=[z.op.name, *(operand.op.name for operand in operands)]
    )
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["variance_epsilon"].f = 0.001
    node.attr["scale_after_normalization"].b = scaled
    graph_def.versions.producer = 8  # from 9 on TensorFlow makes it no more
    folded = fold_batch_norm(graph_def, ["y"])
    assert {node.op for node in folded.node} == {"Placeholder", "Const", "Conv2D", "BiasAdd", "Identity"}
    batch = random.normal(size=(2, 6, 6, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(folded, name="")
        z, y = session.run(["z:0", "y:0"], {"x:0": batch})
    with graph.as_default(), tf.Session() as session:
        z = session.run("z:0", {"x:0": batch})
    expected = (z - mean) / np.sqrt(variance + 0.001) * (gamma if scaled else 1.0) + beta
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def not_foldable(case):
    if case == "float16 does not hold the weights":
        x = tf.placeholder(tf.float16, [None, 3], name="x")
        return x, NORMS["wrapper"](tf.layers.dense(x, 4, name="dense") * 1e-3 * 1e-3)
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    # Some weights are computed from the inputs.
    weights = tf.reduce_sum(x) * tf.ones([3, 4]) if case == "weights are computed" else tf.get_variable("w", [3, 4])
    z = tf.matmul(x, weights, name="z")
    if case == "first layer":
        return x, bn_graph.batch_norm_wrapper(x, False, name="bn1")
    if case == "after a nonlinearity":
        return x, bn_graph.batch_norm_wrapper(tf.nn.relu(z, name="r") + 1.0, False, name="bn1")
    if case == "its input is read elsewhere":
        return x, bn_graph.batch_norm_wrapper(z, False, name="bn1") + tf.nn.relu(z, name="r")
    if case == "scaled by a tensor":
        return x, bn_graph.batch_norm_wrapper(tf.multiply(z, tf.sigmoid(x[:, :1]), name="m"), False, name="bn1")
    if case == "scaled by example":
        return x, bn_graph.batch_norm_wrapper(tf.multiply(z, np.ones([5, 1], "f"), name="m"), False, name="bn1")
    return x, bn_graph.batch_norm_wrapper(z, False, name="bn1")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("first layer", "Placeholder x comes before it, and no matmul or convolution"),
        ("after a nonlinearity", "Relu r comes before it, and no matmul or convolution"),
        ("its input is read elsewhere", "more than one op reads z: bn1/sub, r"),
        ("scaled by a tensor", "Mul m comes before it, and no matmul or convolution"),
        ("scaled by example", "Mul m does more than scale and shift each channel"),
        ("weights are computed", "MatMul z has no constant weights as its second operand"),
        ("float16 does not hold the weights", "float16 does not hold the folded weights of MatMul dense/MatMul"),
    ],
)
def test_a_layer_that_can_not_be_folded_is_reported_with_the_reason_and_computed(
    plain_graph, start, random, tmp_path, case, reason
):
    x, y = not_foldable(case)
    session = start()
    with_random_values(session, random)
    with pytest.warns(UnfoldedWarning) as warned:
        frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y})
    assert str(warned[0].message) == f"Not folded: bn1 ({reason}). Computed as before."
    assert (frozen.folded, frozen.unfolded) == ([], ["bn1"])
    batch = random.normal(size=(5, 3))
    np.testing.assert_allclose(run_frozen(frozen, batch), session.run(y, {x: batch}), rtol=1e-5, atol=1e-5)


def test_of_a_layer_used_twice_the_reason_is_of_the_use_that_is_not_folded(plain_graph, start, random, tmp_path):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    layer = tf.layers.BatchNormalization(name="bn1")
    y = tf.nn.elu(layer(x @ tf.get_variable("w", [3, 3]))) + layer(x)
    with pytest.warns(
        UnfoldedWarning, match=r"^Not folded: bn1 \(Placeholder x comes before it, and no matmul or conv"
    ):
        frozen = export_frozen_graph(start(), tmp_path / "model.pb", {"x": x}, {"y": y})
    assert frozen.unfolded == ["bn1"]


def test_an_output_between_convolution_and_batch_norm_keeps_its_values(plain_graph, start, random, tmp_path):
    x = tf.placeholder(tf.float32, [None, 3], name="x")
    z = x @ tf.get_variable("w", [3, 4])
    y = bn_graph.batch_norm_wrapper(z, False, name="bn1")
    session = start()
    with_random_values(session, random)
    with pytest.warns(UnfoldedWarning):
        frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y, "z": z})
    batch = random.normal(size=(5, 3))
    for name, tensor in (("y", y), ("z", z)):
        np.testing.assert_allclose(run_frozen(frozen, batch, name), session.run(tensor, {x: batch}), rtol=1e-5)


def test_gamma_of_zeros_folds_to_the_constant_beta(plain_graph, start, random, tmp_path):
    x, y = network(False)
    session = start()
    with_random_values(session, random)
    gamma = next(variable for variable in tf.global_variables() if variable.op.name == "bn1/gamma")
    assign_values(session, [(gamma, np.zeros(4))])
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y})
    batch = random.normal(size=(5, 3))
    assert frozen.folded == ["bn1", "bn2"]
    np.testing.assert_allclose(run_frozen(frozen, batch), session.run(y, {x: batch}), rtol=1e-5, atol=1e-5)


def test_fixing_the_flag_decides_a_cond_in_a_cond(cond_kind, plain_graph):
    flag, other = tf.placeholder(tf.bool, [], name="flag"), tf.placeholder(tf.bool, [], name="other")
    y = tf.cond(
        other,
        lambda: tf.constant(1.0),
        lambda: tf.cond(flag, lambda: tf.constant(2.0), lambda: tf.constant(3.0)),
    )
    fixed = without_training_branches(plain_graph.as_graph_def(), "flag")
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(fixed, name="")
        assert [session.run(y.name, {"other:0": value}) for value in (True, False)] == [1.0, 3.0]


def test_fixing_the_flag_decides_what_is_computed_from_it(cond_kind, plain_graph):
    flag = tf.placeholder(tf.bool, [], name="flag")
    y = tf.cond(tf.logical_not(flag), lambda: tf.constant(2.0), lambda: tf.constant(3.0))
    fixed = without_training_branches(plain_graph.as_graph_def(), "flag")
    assert not {node.op for node in fixed.node} & {"Switch", "Merge", "If", "StatelessIf"}
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(fixed, name="")
        assert session.run(y.name) == 2.0


def test_fixing_the_flag_leaves_an_op_that_takes_one_tensor_twice_as_it_is(cond_kind, plain_graph):
    flag, x = tf.placeholder(tf.bool, [], name="flag"), tf.placeholder(tf.float32, [], name="x")
    y = tf.cond(flag, lambda: tf.constant(2.0), lambda: x + 1.0)
    squared = y * y
    fixed = without_training_branches(plain_graph.as_graph_def(), "flag")
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(fixed, name="")
        assert session.run(squared.name, {"x:0": 2.0}) == 9.0


def test_fixing_the_flag_removes_a_loop_of_the_training_branch(cond_kind, plain_graph):
    flag = tf.placeholder(tf.bool, [], name="flag")
    x = tf.placeholder(tf.float32, [], name="x")
    y = tf.cond(flag, lambda: tf.while_loop(lambda i: i < 10.0, lambda i: i + 1.0, [x]), lambda: x + 0.5)
    fixed = tf.graph_util.extract_sub_graph(without_training_branches(plain_graph.as_graph_def(), "flag"), [y.op.name])
    assert not {node.op for node in fixed.node} & {"Switch", "Merge", "NextIteration", "While", "If"}
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(fixed, name="")
        assert session.run(y.name, {"x:0": 1.0}) == 1.5


def normalizer(inputs, is_training):
    """The documents' class, by its recipe."""
    layer = ConvolutionalBatchNormalizer(
        inputs.shape.as_list()[-1], 0.001, tf.train.ExponentialMovingAverage(0.9), True, name="bn1"
    )
    layer.get_assigner()
    return layer.normalize(inputs, train=is_training)


def of_wrapper(**options):
    return lambda inputs, is_training: bn_graph.batch_norm_wrapper(inputs, is_training, name="bn1", **options)


FORMS = {
    "plain": of_wrapper(fused=False),
    "fused": of_wrapper(fused=True),
    "no gamma, no beta": of_wrapper(center=False, scale=False),
    "in a collection": of_wrapper(updates_collection="mine", center=False),
    "virtual batches": of_wrapper(virtual_batch_size=2),
    "renorm": of_wrapper(renorm=True),
    "cumulative": of_wrapper(average="cumulative"),
    "zero-debiased": of_wrapper(zero_debias=True),
    "tf.layers": lambda inputs, flag: tf.layers.batch_normalization(inputs, training=flag, name="bn1"),
    "ConvolutionalBatchNormalizer": normalizer,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_with_a_flag_is_frozen_and_folded(cond_kind, plain_graph, start, random, tmp_path, form):
    x, flag = image(), tf.placeholder(tf.bool, [])
    y = tf.nn.relu(FORMS[form](tf.nn.conv2d(x, tf.get_variable("w", [3, 3, 3, 4]), 1, "SAME"), flag))
    session = start()
    with_random_values(session, random)
    batch = random.normal(size=(4, 6, 6, 3))
    expected = session.run(y, {x: batch, flag: False})
    frozen = export_frozen_graph(session, tmp_path / "model.pb", {"x": x}, {"y": y}, is_training=flag)
    assert (frozen.folded, frozen.unfolded) == (["bn1"], [])
    np.testing.assert_allclose(run_frozen(frozen, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_trains_is_refused(plain_graph, start, tmp_path, form):
    x = image()
    y = FORMS[form](tf.nn.conv2d(x, tf.get_variable("w", [3, 3, 3, 4]), 1, "SAME"), True)
    with pytest.raises(ExportError, match="still train in bn1"):
        export_saved_model(start(), tmp_path / "model", {"x": x}, {"y": y})


def test_the_saved_model_is_a_function_in_tensorflow_2(start, random, tmp_path):
    import tensorflow

    with tf.Graph().as_default():
        x, y = network(False)
        session = start()
        with_random_values(session, random)
        batch = random.normal(size=(4, 3)).astype(np.float32)
        expected = session.run(y, {x: batch})
        path = export_saved_model(session, tmp_path / "model", {"x": x}, {"y": y})
    function = tensorflow.saved_model.load(path).signatures["serving_default"]
    np.testing.assert_allclose(function(x=tensorflow.constant(batch))["y"].numpy(), expected, rtol=1e-6)


def check_folded(linear, arithmetic, left, batch):
    """Folds `arithmetic` on a linear op in a graph of constants, and demands the ops that are left and the numbers."""
    with tf.Graph().as_default() as graph, tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, *batch.shape[1:]], name="x")
        tf.identity(arithmetic(linear(x)), name="y")
        expected = session.run("y:0", {"x:0": batch})
        folded = fold_batch_norm(graph.as_graph_def(), ["y"])
    assert sorted(node.op for node in folded.node if node.op not in ("Const", "Placeholder", "Identity")) == left
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(folded, name="")
        np.testing.assert_allclose(session.run("y:0", {"x:0": batch}), expected, rtol=1e-5, atol=1e-5)


PER_CHANNEL = np.array([2.0, -3.0, 0.5], np.float32)


@pytest.mark.parametrize(
    "arithmetic",
    [
        lambda z: z * PER_CHANNEL + 1.0,
        lambda z: PER_CHANNEL - z * PER_CHANNEL,
        lambda z: (z - PER_CHANNEL) / PER_CHANNEL,
        lambda z: PER_CHANNEL[None] * (7.0 - z),
        lambda z: tf.nn.bias_add(z, PER_CHANNEL) * 2.0,
        lambda z: tf.stop_gradient(z) * (PER_CHANNEL * tf.rsqrt(tf.constant(PER_CHANNEL) ** 2 + 1e-3)),
    ],
)
def test_any_arithmetic_by_constants_per_channel_is_folded(random, arithmetic):
    weights = random.normal(size=(4, 3)).astype(np.float32)
    check_folded(lambda x: x @ weights, arithmetic, ["BiasAdd", "MatMul"], random.normal(size=(5, 4)))


@pytest.mark.parametrize(
    ("arithmetic", "left"),
    [
        (lambda z: z * tf.reduce_sum(z), ["MatMul", "Mul", "Sum"]),
        (lambda z: z * np.float32([[1.0], [2.0], [3.0], [4.0], [5.0]]), ["MatMul", "Mul"]),  # by example
        (lambda z: PER_CHANNEL / z, ["MatMul", "RealDiv"]),
        (lambda z: z + PER_CHANNEL, ["AddV2", "MatMul"]),  # a bias alone is none of our business
        (lambda z: z * z, ["MatMul", "Mul"]),
    ],
)
def test_other_arithmetic_is_left_as_it_is(random, arithmetic, left):
    weights = random.normal(size=(4, 3)).astype(np.float32)
    check_folded(lambda x: x @ weights, arithmetic, left, random.normal(size=(5, 4)))


def test_exports_are_not_tied_to_the_devices_of_training(plain_graph, start, tmp_path):
    with tf.device("/cpu:0"):
        x, y = network(False)
    path = export_saved_model(start(), tmp_path / "model", {"x": x}, {"y": y})
    served, _, _ = loaded(path)
    with served:
        assert {op.device for op in served.graph.get_operations()} == {""}
