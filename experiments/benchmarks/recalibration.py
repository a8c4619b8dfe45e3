"""Recalibration: both methods of this library beside a forward pass, and what PyTorch's users have for the same.

A contender makes its network and its data; ``pass`` goes over the data in one of its ways and answers with seconds,
``mean`` with the first layer's moving mean after "paper" or what PyTorch has for it.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.benchmarks import resnet50, steps_torch, tasks

__all__ = ["NETWORKS", "fvcore", "ours", "torch"]

NETWORKS = ("solver", "ResNet-50")
_CACHE = 4 << 30  # ResNet-50 keeps 6.4 MB an example where it keeps most
_FIRST_LAYER = {"solver": "model/layer0/bn", "ResNet-50": "bn1"}


def _images(network: str, examples: int) -> np.ndarray:
    if network == "solver":
        return tasks.data(examples).images
    shape = (examples, resnet50.SIZE, resnet50.SIZE, 3)
    return np.random.default_rng(tasks.SEED).standard_normal(shape, np.float32)


def _network(network: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Placeholders of images and of the training flag, and the outputs, in the default graph."""
    if network == "solver":
        model = bn_graph.Model("model", tasks.INPUTS, tasks.CLASSES, tasks.SOLVER.hidden, seed=tasks.SEED)
        return model.x, model.is_training, model.logits
    is_training = tf.placeholder(tf.bool, [], name="is_training")
    x, outputs = resnet50.in_tensorflow(is_training)
    return x, is_training, outputs


def _load_weights(network: str, session: tf.Session) -> None:
    """Those that PyTorch's network has."""
    if network != "solver":
        return resnet50.load_weights(session)
    kernels = [variable for variable in tf.trainable_variables() if variable.op.name.endswith("/kernel")]
    for variable, weights in zip(kernels, tasks.initial_weights(tasks.SOLVER), strict=True):
        variable.load(weights, session)


def ours(threads: int, network: str, batch: int, examples: int) -> dict[str, Callable]:
    """``pass`` goes over the data in one way: "inference" or "training", a forward pass; "paper" or "pooled".

    Of a recalibration the seconds don't count what it takes to look at the graph, copy it and, under "paper", make
    TensorFlow ready with the first batch, as it must be for any graph: that doesn't grow with the data, and is what
    ``start`` answers. "pooled" has a first batch at every level, and they count.
    """
    images = _images(network, examples)
    with tf.Graph().as_default() as graph:
        x, is_training, outputs = _network(network)
        session = tf.Session(graph=graph, config=bn_graph.session_config(threads))
        session.run(tf.global_variables_initializer())
        _load_weights(network, session)
    starts: dict[str, float] = {}
    first: dict[str, np.ndarray] = {}

    def batches() -> Iterator[dict]:
        for start in range(0, len(images), batch):
            yield {x: images[start : start + batch], is_training: False}

    def forward(training: bool) -> dict:
        begin = time.perf_counter()
        for feeds in batches():
            session.run(outputs.op, feeds | {is_training: training})
        return {"seconds": time.perf_counter() - begin}

    def recalibrated(method: str) -> dict:
        asked: list[float] = []

        def noted(each: Iterable) -> Iterator:
            for one in each:
                asked.append(time.perf_counter())
                yield one

        begin = time.perf_counter()
        config = bn_graph.session_config(threads)
        records = bn_graph.recalibrate(
            session, batches, method=method, is_training=is_training, config=config, progress=noted, cache_bytes=_CACHE
        )
        end = time.perf_counter()
        # Under "paper" as if the first batch took no longer than the others.
        since, share = (asked[0], 1.0) if method == "pooled" else (asked[1], len(asked) / (len(asked) - 1))
        seconds = (end - since) * share
        starts[method] = end - begin - seconds
        first[method] = next(record.mean for record in records if record.layer == _FIRST_LAYER[network])
        return {"seconds": seconds}

    def gone_through(way: str) -> dict:
        return recalibrated(way) if way in ("paper", "pooled") else forward(way == "training")

    return {
        "pass": gone_through,
        "start": lambda way: {"seconds": starts[way]},
        "mean": lambda _: {"mean": [float(value) for value in first["paper"]]},
    }


def torch(threads: int, network: str, batch: int, examples: int) -> dict[str, Callable]:
    """A forward pass in training mode, and ``torch.optim.swa_utils.update_bn``."""
    import torch

    model, batches = _torch_network(torch, threads, network, batch, examples)

    def forward() -> None:
        model.train()
        with torch.no_grad():
            for images in batches:
                model(images)

    return _timed(
        model,
        {"PyTorch, training": forward, "swa_utils.update_bn": lambda: torch.optim.swa_utils.update_bn(batches, model)},
    )


def fvcore(threads: int, network: str, batch: int, examples: int) -> dict[str, Callable]:
    """``fvcore.nn.update_bn_stats``."""
    import torch
    from fvcore.nn import update_bn_stats

    model, batches = _torch_network(torch, threads, network, batch, examples)

    def update() -> None:
        model.train()
        with torch.no_grad():
            update_bn_stats(model, batches, len(batches))

    return _timed(model, {"fvcore's update_bn_stats": update})


def _torch_network(torch, threads: int, network: str, batch: int, examples: int) -> tuple:
    torch.set_num_threads(threads)
    images = _images(network, examples)
    if network == "solver":
        model = steps_torch.model(torch, tasks.SOLVER)
    else:
        model, images = resnet50.in_torch(torch), np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return model, list(torch.from_numpy(images).split(batch))


def _timed(model, ways: dict[str, Callable[[], object]]) -> dict[str, Callable]:
    means: dict[str, list[float]] = {}

    def gone_through(way: str) -> dict:
        begin = time.perf_counter()
        ways[way]()
        seconds = time.perf_counter() - begin
        means[way] = next(each for each in model.modules() if hasattr(each, "running_mean")).running_mean.tolist()
        return {"seconds": seconds}

    return {"pass": gone_through, "mean": lambda _: {"mean": means[list(ways)[-1]]}}
