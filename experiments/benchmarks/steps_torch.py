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
    split = tasks.data()
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
            if isinstance(layer, torch.nn.BatchNorm1d):
                layer.reset_running_stats()  # that was one batch too many
    optimizer = {"r2rt": torch.optim.SGD, "solver": torch.optim.Adam}[task.network](
        network.parameters(), tasks.LEARNING_RATE
    )

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
    layers = []
    for matrix in hidden:
        layers.append(_linear(torch, matrix, bias=False))
        layers.append(torch.nn.BatchNorm1d(matrix.shape[1], eps=tasks.EPSILON, momentum=1 - task.decay))
        layers.append(torch.nn.Sigmoid() if task.network == "r2rt" else torch.nn.ReLU())
    return torch.nn.Sequential(*layers, _linear(torch, last, bias=True))


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
