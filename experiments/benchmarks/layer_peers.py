"""One batch norm layer alone, by Keras 3 and by PyTorch."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.benchmarks.child import served

__all__ = ["keras3_layers", "torch_layers"]


def keras3_layers(threads: int, shape: Sequence[int]) -> dict[str, Callable]:
    """``keras.layers.BatchNormalization`` in a ``tf.function``, as `fit` and `predict` call it."""
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    layer = keras.layers.BatchNormalization()
    x, gradient = tf.random.normal(shape), tf.random.normal(shape)
    layer.build(x.shape)
    parameters = [layer.gamma.value, layer.beta.value]
    batches = tf.TensorSpec([None, *shape[1:]])

    @tf.function(input_signature=[batches])
    def inference(x):
        return layer(x, training=False)

    @tf.function(input_signature=[batches, batches])
    def training(x, gradient):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=True)
        return outputs, tape.gradient(outputs, [x, *parameters], gradient)

    return served({"Keras 3, inference": lambda: inference(x), "Keras 3, training": lambda: training(x, gradient)})


def torch_layers(threads: int, shape: Sequence[int]) -> dict[str, Callable]:
    """``torch.nn.BatchNorm1d`` or ``2d``, eager, the channels second, as PyTorch has them."""
    import torch

    torch.set_num_threads(threads)
    shape = [shape[0], shape[-1], *shape[1:-1]]
    layer = {2: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[len(shape)](shape[1], eps=1e-3)
    generator = np.random.default_rng(0)
    x, gradient = (torch.from_numpy(generator.standard_normal(shape, np.float32)) for _ in range(2))
    x.requires_grad_()

    def inference():
        layer.eval()
        with torch.no_grad():
            return layer(x)

    def training():
        layer.train()
        outputs = layer(x)
        return outputs, torch.autograd.grad(outputs, [x, *layer.parameters()], gradient)

    return served({"PyTorch, inference": inference, "PyTorch, training": training})
