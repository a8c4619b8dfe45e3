"""Values of PyTorch's and Keras's batch norm, into this library's variables and back."""

import importlib

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints import interchange
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf
from tests import libraries, oracle

EPSILON = 1e-5
KERAS = {"Keras 3": "keras", "legacy Keras": libraries.LEGACY_KERAS}
EACH_KERAS = pytest.mark.parametrize(
    "library", [pytest.param("Keras 3", marks=libraries.needs_keras_3), "legacy Keras"]
)


def keras_layer(library, **options):
    return importlib.import_module(KERAS[library]).layers.BatchNormalization(epsilon=EPSILON, **options)


def torch_layer(random, channels, affine=True):
    """The state_dict of one BatchNorm module, as NumPy arrays."""
    leaves = ["weight", "bias", "running_mean", "running_var"] if affine else ["running_mean", "running_var"]
    layer = {leaf: random.uniform(0.5, 2.0, channels).astype(np.float32) for leaf in leaves}
    return layer | {"num_batches_tracked": np.array(7, np.int64)}


def prefixed(prefix, layer):
    return {f"{prefix}.{leaf}": array for leaf, array in layer.items()}


def torch_inference(layer, inputs):
    """What PyTorch's eval mode computes, in NumPy."""
    gamma, beta = layer.get("weight", 1.0), layer.get("bias", 0.0)
    return oracle.normalized(inputs, layer["running_mean"], layer["running_var"], gamma, beta, EPSILON)


def torch_training(layer, inputs, momentum):
    """What PyTorch's train mode computes in NumPy, and the buffers after it: the running variance takes m/(m−1)·σ²."""
    mean, variance = oracle.statistics(inputs)
    m = np.size(inputs) // np.shape(inputs)[-1]
    outputs = oracle.normalized(inputs, mean, variance, layer["weight"], layer["bias"], EPSILON)
    running_mean = (1 - momentum) * layer["running_mean"] + momentum * mean
    running_var = (1 - momentum) * layer["running_var"] + momentum * variance * m / (m - 1)
    return outputs, layer | {"running_mean": running_mean, "running_var": running_var}


def wrapper(channels=3, training=False, name="bn1", **options):
    x = tf.placeholder(tf.float32, [None, channels])
    return x, bn_graph.batch_norm_wrapper(x, training, epsilon=EPSILON, name=name, **options)


class FakeTensor:
    """What this library sees of a bfloat16 PyTorch tensor on another device, which takes three calls to get into NumPy."""

    def __init__(self, array, done=()):
        self.array, self.done = array, done

    def __array__(self, *_, **__):
        raise TypeError("can't convert device type tensor to numpy")

    def detach(self):
        return FakeTensor(self.array, (*self.done, "detach"))

    def cpu(self):
        return FakeTensor(self.array, (*self.done, "cpu"))

    def double(self):
        return FakeTensor(self.array.astype(np.float64), (*self.done, "double"))

    def numpy(self):
        assert set(self.done) == {"detach", "cpu", "double"}
        return self.array


def test_imported_state_dict_infers_as_pytorch_does(graph, start, random):
    layer, batch = torch_layer(random, 3), random.normal(size=(5, 3)).astype(np.float32)
    x, y = wrapper()
    session = start()
    interchange.import_state_dict(session, prefixed("features.1", layer), {"bn1": "features.1"})
    np.testing.assert_allclose(session.run(y, {x: batch}), torch_inference(layer, batch), rtol=1e-5, atol=1e-6)


def test_training_goes_on_as_in_pytorch_and_comes_back(graph, start, random):
    momentum, layer = 0.1, torch_layer(random, 3)
    decay = interchange.decay_from_torch_momentum(momentum)
    x, y = wrapper(training=True, decay=decay, unbiased_variance=True)
    session = start()
    interchange.import_state_dict(session, prefixed("bn1", layer))
    for _ in range(3):
        batch = random.normal(3.0, 2.0, size=(6, 3)).astype(np.float32)
        expected, layer = torch_training(layer, batch, momentum)
        np.testing.assert_allclose(session.run(y, {x: batch}), expected, rtol=1e-4, atol=1e-5)
    exported = interchange.export_state_dict(session)
    assert list(exported) == [f"bn1.{leaf}" for leaf in layer]
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        np.testing.assert_allclose(exported[f"bn1.{leaf}"], layer[leaf], rtol=1e-5, err_msg=leaf)
        assert exported[f"bn1.{leaf}"].dtype == np.float32
    assert exported["bn1.num_batches_tracked"].dtype == np.int64
    assert exported["bn1.num_batches_tracked"].shape == ()


def test_a_cumulative_average_goes_on_from_the_batches_tracked(plain_graph, start, random):
    layer, batch = torch_layer(random, 2), random.normal(size=(4, 2)).astype(np.float32)
    x, y = wrapper(2, True, average="cumulative", unbiased_variance=True)
    session = start()
    interchange.import_state_dict(session, prefixed("bn1", layer))
    session.run(y, {x: batch})
    _, expected = torch_training(layer, batch, momentum=1 / 8)  # the eighth batch counts an eighth
    exported = interchange.export_state_dict(session)
    np.testing.assert_allclose(exported["bn1.running_mean"], expected["running_mean"], rtol=1e-5)
    np.testing.assert_allclose(exported["bn1.running_var"], expected["running_var"], rtol=1e-5)
    assert exported["bn1.num_batches_tracked"] == 8


def test_layers_are_found_by_their_scopes_and_other_modules_are_passed_over(plain_graph, start, random):
    wrapper(3, name="net/bn1")
    wrapper(2, name="net/bn2")
    state_dict = {"net.conv.weight": random.normal(size=(3, 3, 1, 1))}
    state_dict |= prefixed("net.bn1", torch_layer(random, 3)) | prefixed("net.bn2", torch_layer(random, 2))
    session = start()
    interchange.import_state_dict(session, state_dict)
    exported = interchange.export_state_dict(session)
    assert set(exported) == set(state_dict) - {"net.conv.weight"}
    for name, array in exported.items():
        if not name.endswith("tracked"):
            np.testing.assert_array_equal(array, state_dict[name])


def test_pytorch_tensors_are_taken_without_pytorch(plain_graph, start, random):
    wrapper()
    layer = torch_layer(random, 3)
    session = start()
    interchange.import_state_dict(session, {name: FakeTensor(v) for name, v in prefixed("bn1", layer).items()})
    np.testing.assert_array_equal(interchange.export_state_dict(session)["bn1.running_var"], layer["running_var"])


def test_real_pytorch_agrees_both_ways(plain_graph, start, random):
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(3).train()
    for _ in range(3):
        module(torch.as_tensor(random.normal(2.0, 3.0, size=(8, 3)), dtype=torch.float32))
    module.eval()
    batch = random.normal(size=(5, 3)).astype(np.float32)
    x, y = wrapper()
    session = start()
    interchange.import_state_dict(session, {f"bn1.{name}": value for name, value in module.state_dict().items()})
    expected = module(torch.as_tensor(batch)).detach().numpy()
    np.testing.assert_allclose(session.run(y, {x: batch}), expected, rtol=1e-5, atol=1e-6)
    back = torch.nn.BatchNorm1d(3)
    exported = interchange.export_state_dict(session, {"bn1": "m"})
    back.load_state_dict({name.removeprefix("m."): torch.as_tensor(value) for name, value in exported.items()})
    np.testing.assert_allclose(back.eval()(torch.as_tensor(batch)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"center": False, "scale": False}])
def test_affine_false_is_gamma_one_and_beta_zero(plain_graph, start, random, options):
    layer, batch = torch_layer(random, 3, affine=False), random.normal(size=(5, 3)).astype(np.float32)
    x, y = wrapper(**options)
    session = start()
    assign_values(session, [(variable, np.full(3, 5.0)) for variable in tf.trainable_variables()])
    interchange.import_state_dict(session, prefixed("bn1", layer))
    np.testing.assert_allclose(session.run(y, {x: batch}), torch_inference(layer, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "leaves"),
    [
        ({"center": False, "scale": False}, []),
        ({"scale": False}, ["weight", "bias"]),
        ({"center": False}, ["weight", "bias"]),
    ],
)
def test_export_writes_weight_and_bias_both_or_neither_and_imports_again(plain_graph, start, options, leaves):
    wrapper(**options)
    session = start()
    exported = interchange.export_state_dict(session)
    assert [name for name in exported if name in ("bn1.weight", "bn1.bias")] == [f"bn1.{leaf}" for leaf in leaves]
    if leaves:
        np.testing.assert_array_equal(exported["bn1.weight"], np.ones(3))
        np.testing.assert_array_equal(exported["bn1.bias"], np.zeros(3))
    interchange.import_state_dict(session, exported)


BAD = {
    "another prefix": (lambda d: {n.replace("bn2", "norm2"): a for n, a in d.items()}, r"lacks bn2\.running.*norm2"),
    "no statistics": (lambda d: {n: a for n, a in d.items() if "running" not in n}, "track_running_stats=False"),
    "no variance": (lambda d: {n: a for n, a in d.items() if n != "bn2.running_var"}, r"lacks .*bn2\.running_var"),
    "weight only": (
        lambda d: {n: a for n, a in d.items() if n != "bn2.bias"},
        r"only one of bn2\.weight and bn2\.bias",
    ),
    "a shape": (lambda d: d | {"bn2.bias": np.zeros(4)}, r"bn2\.bias has shape \[4\]; bn2/beta has \[3\]"),
    "a column": (lambda d: d | {"bn2.running_mean": np.zeros((3, 1))}, r"shape \[3, 1\]; bn2/moving_mean has \[3\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_state_dict_is_refused_in_one_line_and_changes_nothing(plain_graph, start, random, case):
    wrapper(name="bn1")
    wrapper(name="bn2")
    session = start()
    good = prefixed("bn1", torch_layer(random, 3)) | prefixed("bn2", torch_layer(random, 3))
    before = session.run(tf.global_variables())
    spoil, message = BAD[case]
    with pytest.raises(ValueError, match=message) as refusal:
        interchange.import_state_dict(session, spoil(good))
    assert "\n" not in str(refusal.value)
    for now, then in zip(session.run(tf.global_variables()), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_weight_that_the_graph_has_no_gamma_for_is_refused_unless_it_is_ones(plain_graph, start, random):
    wrapper(scale=False)
    session = start()
    layer = torch_layer(random, 3)
    with pytest.raises(ValueError, match=r"no variable for bn1\.weight, which is not 1 throughout"):
        interchange.import_state_dict(session, prefixed("bn1", layer))
    interchange.import_state_dict(session, prefixed("bn1", layer | {"weight": np.ones(3)}))


def test_an_unknown_scope_is_refused_and_the_layers_are_listed(plain_graph, start):
    wrapper(name="net/bn1")
    session = start()
    for call in (
        lambda: interchange.import_state_dict(session, {}, {"bn1": "bn1"}),
        lambda: interchange.export_state_dict(session, {"bn1": "bn1"}),
        lambda: interchange.import_keras_weights(session, "bn1", []),
        lambda: interchange.export_keras_weights(session, "bn1"),
    ):
        with pytest.raises(ValueError, match=r"no batch norm layer 'bn1'; it has: net/bn1\."):
            call()


def test_a_graph_without_batch_norm_says_so(plain_graph, start):
    tf.get_variable("w", [1])
    with pytest.raises(ValueError, match="has no batch norm layer"):
        interchange.export_state_dict(start())


@pytest.mark.parametrize(("momentum", "decay"), [(0.1, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_torchs_momentum_is_one_less_decay(momentum, decay):
    assert interchange.decay_from_torch_momentum(momentum) == pytest.approx(decay)


@pytest.mark.parametrize(("momentum", "message"), [(None, "cumulative"), (1.5, "from 0 to 1"), (-0.1, "from 0 to 1")])
def test_no_decay_is_made_of_a_momentum_that_has_none(momentum, message):
    with pytest.raises(ValueError, match=message):
        interchange.decay_from_torch_momentum(momentum)


KERAS_OPTIONS = [{}, {"scale": False}, {"center": False}, {"center": False, "scale": False}, {"trainable": False}]


@pytest.mark.parametrize("options", KERAS_OPTIONS)
@EACH_KERAS
def test_keras_weights_go_both_ways_and_infer_the_same(start, random, library, options):
    layer = keras_layer(library, **options)
    layer.build((None, 3))
    layer.set_weights([random.uniform(0.5, 2.0, 3).astype(np.float32) for _ in layer.get_weights()])
    batch = random.normal(size=(5, 3)).astype(np.float32)
    expected, weights = np.asarray(layer(batch, training=False)), layer.get_weights()
    with tf.Graph().as_default():
        x, y = wrapper(**options)
        session = start()
        interchange.import_keras_weights(session, "bn1", weights)
        np.testing.assert_allclose(session.run(y, {x: batch}), expected, rtol=1e-5, atol=1e-6)
        exported = interchange.export_keras_weights(session, "bn1")
    other = keras_layer(library, **options)
    other.build((None, 3))
    other.set_weights(exported)
    np.testing.assert_allclose(np.asarray(other(batch, training=False)), expected, rtol=1e-6)


@EACH_KERAS
def test_training_goes_on_as_in_keras(start, random, library):
    layer = keras_layer(library, momentum=0.9)
    layer.build((None, 3))
    before = layer.get_weights()
    batches = [random.normal(2.0, 3.0, size=(6, 3)).astype(np.float32) for _ in range(3)]
    expected = [np.asarray(layer(batch, training=True)) for batch in batches]
    after = layer.get_weights()
    with tf.Graph().as_default():
        x, y = wrapper(training=True, decay=0.9)
        session = start()
        interchange.import_keras_weights(session, "bn1", before)
        for batch, outputs in zip(batches, expected, strict=True):
            np.testing.assert_allclose(session.run(y, {x: batch}), outputs, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(interchange.export_keras_weights(session, "bn1"), after, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([np.ones(3)] * 3, r"has 4 variables \(gamma, beta, moving_mean, moving_variance\), the list 3 arrays"),
        ([np.ones(3)] * 3 + [np.ones(2)], r"moving_variance has shape \[2\]; bn1/moving_variance has \[3\]"),
    ],
)
def test_bad_keras_weights_are_refused_and_change_nothing(plain_graph, start, weights, message):
    wrapper()
    session = start()
    before = interchange.export_keras_weights(session, "bn1")
    with pytest.raises(ValueError, match=message):
        interchange.import_keras_weights(session, "bn1", weights)
    for now, then in zip(interchange.export_keras_weights(session, "bn1"), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_imports_work_on_a_finalized_graph(graph, start, random):
    wrapper()
    session = start()
    graph.finalize()
    interchange.import_state_dict(session, prefixed("bn1", torch_layer(random, 3)))
    interchange.export_keras_weights(session, "bn1")
