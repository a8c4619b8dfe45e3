"""ResNet-50 as far as time goes (He et al. 2015): its convolutions and 53 batch norms on 224×224 images, the same in TensorFlow
and PyTorch. The weights are He's, drawn from a seed; there is no classifier, since no batch norm stands above one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.benchmarks import tasks

__all__ = ["SIZE", "in_tensorflow", "in_torch", "load_weights"]

SIZE = 224
_STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, channels, stride of the first block
_EXPANSION = 4  # the last convolution of a block has so many times the channels


def _network(x: Any, convolved: Callable, pooled: Callable, relu: Callable) -> Any:
    """The network, whatever its tensors are; `convolved` is a convolution and a batch norm."""
    hidden = pooled(relu(convolved(x, 7, 64, 2)))
    for blocks, channels, first_stride in _STAGES:
        for block in range(blocks):
            stride = 1 if block else first_stride
            shortcut = hidden if block else convolved(hidden, 1, _EXPANSION * channels, stride)
            inner = relu(convolved(hidden, 1, channels, stride))
            inner = relu(convolved(inner, 3, channels, 1))
            hidden = relu(convolved(inner, 1, _EXPANSION * channels, 1) + shortcut)
    return hidden


def _kernel(number: int, size: int, inputs: int, outputs: int) -> np.ndarray:
    """He's weights of convolution `number`, ``[size, size, inputs, outputs]``."""
    drawn = np.random.default_rng([tasks.SEED, number]).standard_normal((size, size, inputs, outputs), np.float32)
    return drawn * np.float32(np.sqrt(2.0 / (size * size * inputs)))


def in_tensorflow(is_training: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The images' placeholder and the outputs, in the default graph."""
    x = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3], name="x")
    made = []

    def convolved(inputs: tf.Tensor, size: int, channels: int, stride: int) -> tf.Tensor:
        made.append(inputs)
        kernel = tf.get_variable(f"w{len(made)}", [size, size, inputs.shape.as_list()[-1], channels])
        around = [size // 2, size // 2]
        z = tf.nn.conv2d(inputs, kernel, strides=stride, padding=[[0, 0], around, around, [0, 0]])
        return bn_graph.batch_norm_wrapper(z, is_training, epsilon=tasks.EPSILON, name=f"bn{len(made)}")

    def pooled(inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.max_pool2d(tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")

    return x, _network(x, convolved, pooled, tf.nn.relu)


def load_weights(session: tf.Session) -> None:
    """Puts the weights into the variables of `in_tensorflow`; as constants they would be part of the graph."""
    kernels = [variable for variable in session.graph.get_collection("variables") if variable.op.name.startswith("w")]
    for number, variable in enumerate(kernels, start=1):
        size, _, inputs, outputs = variable.shape.as_list()
        variable.load(_kernel(number, size, inputs, outputs), session)


def in_torch(torch: Any) -> Any:
    """The network as a module of PyTorch's, with the images' channels second."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList()
            self.forward(torch.zeros(1, 3, SIZE, SIZE))
            for layer in self.layers:
                layer[1].reset_running_stats()

        def forward(self, x):
            number = 0

            def convolved(inputs, size, channels, stride):
                nonlocal number
                number += 1
                if number > len(self.layers):
                    self.layers.append(_convolution(torch, number, size, inputs.shape[1], channels, stride))
                return self.layers[number - 1](inputs)

            def pooled(inputs):
                return torch.nn.functional.max_pool2d(inputs, 3, 2, 1)

            return _network(x, convolved, pooled, torch.relu)

    return Network()


def _convolution(torch: Any, number: int, size: int, inputs: int, channels: int, stride: int) -> Any:
    convolution = torch.nn.Conv2d(inputs, channels, size, stride, size // 2, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.from_numpy(_kernel(number, size, inputs, channels).transpose(3, 2, 0, 1).copy()))
    return torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(channels, eps=tasks.EPSILON))
