"""Training steps by PyTorch: eager, compiled, and the matrix products alone."""

from collections.abc import Callable

import numpy as np

from experiments.benchmarks import tasks
from experiments.benchmarks.child import CannotRun
from experiments.benchmarks.tasks import Task

__all__ = ["compiled", "eager", "model", "products"]


def eager(threads: int, **task) -> dict[str, Callable]:
    """PyTorch as it comes: a Python loop over batches gathered from tensors in memory."""
    return _contender(threads, tasks.made(task), compile_loss=False)


def compiled(threads: int, **task) -> dict[str, Callable]:
    """The same, its forward and backward pass through ``torch.compile``, which needs a C++ compiler."""
    return _contender(threads, tasks.made(task), compile_loss=True)


def _contender(threads: int, task: Task, *, compile_loss: bool) -> dict[str, Callable]:
    import torch

    torch.set_num_threads(threads)
    split = tasks.data(task.examples)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    order = torch.from_numpy(tasks.rows(task, split.size // task.batch, split.size)).long()
    network = model(torch, task)
    reduction = "sum" if task.network == "r2rt" else "mean"

    def loss_of(batch, wanted):
        return torch.nn.functional.cross_entropy(network(batch), wanted, reduction=reduction)

    if compile_loss:
        loss_of = torch.compile(loss_of)
        network.train()
        try:
            loss_of(images[order[0]], labels[order[0]]).backward()
        except Exception as error:  # no compiler, or one that it can't use
            raise CannotRun(f"torch.compile failed: {str(error).splitlines()[0][:150]}") from error
        for layer in network:
            if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                layer.reset_running_stats()  # that was one batch too many
    optimizer = torch.optim.SGD if task.network == "r2rt" else torch.optim.Adam
    optimizer = optimizer(network.parameters(), tasks.LEARNING_RATE)

    def run(count: int) -> None:
        network.train()
        for rows in order[:count]:
            optimizer.zero_grad(set_to_none=True)
            loss_of(images[rows], labels[rows]).backward()
            optimizer.step()

    def logits(batch: np.ndarray) -> np.ndarray:
        network.eval()
        with torch.no_grad():
            return network(torch.from_numpy(batch)).numpy()

    return {"run": run, "check": lambda _: tasks.agreement(run, logits, split)}


def model(torch, task: Task):
    """The network of a task, with the weights that all contenders have."""
    *hidden, last = tasks.initial_weights(task)
    of_images = task.network == "images"
    layers = [torch.nn.Unflatten(1, (1, tasks.SIDE, tasks.SIDE))] if of_images else []
    for weights in hidden:
        layers += _convolution(torch, weights) if of_images else [_linear(torch, weights, bias=False)]
        normalization = torch.nn.BatchNorm2d if of_images else torch.nn.BatchNorm1d
        layers.append(normalization(weights.shape[-1], eps=tasks.EPSILON, momentum=1 - task.decay))
        layers.append(torch.nn.Sigmoid() if task.network == "r2rt" else torch.nn.ReLU())
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()] if of_images else []
    return torch.nn.Sequential(*layers, _linear(torch, last, bias=True))


def _convolution(torch, kernel: np.ndarray) -> list:
    """Of stride 2, padded as TensorFlow pads an even number of pixels: behind the last one only."""
    layer = torch.nn.Conv2d(*kernel.shape[2:], 3, stride=2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
    return [torch.nn.ZeroPad2d((0, 1, 0, 1)), layer]


def _linear(torch, matrix: np.ndarray, *, bias: bool):
    layer = torch.nn.Linear(*matrix.shape, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(matrix.T.copy()))
        if bias:
            layer.bias.zero_()
    return layer


def products(threads: int, **task) -> dict[str, Callable]:
    """The floor by PyTorch: ``torch.mm`` into buffers that are there already."""
    import torch

    torch.set_num_threads(threads)
    pairs = [(torch.from_numpy(left), torch.from_numpy(right)) for left, right in tasks.products(tasks.made(task))]
    buffers = [left @ right for left, right in pairs]

    def run(count: int) -> None:
        for _ in range(count):
            for (left, right), buffer in zip(pairs, buffers, strict=True):
                torch.mm(left, right, out=buffer)

    return {"run": run}
