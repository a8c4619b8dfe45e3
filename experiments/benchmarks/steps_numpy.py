"""The floor by NumPy: the step's matrix products alone."""

from collections.abc import Callable

import numpy as np

from experiments.benchmarks import tasks

__all__ = ["products"]


def products(threads: int, **task) -> dict[str, Callable]:
    """``np.matmul`` into buffers that are there already. The parent has set the threads of its BLAS."""
    del threads
    pairs = tasks.products(tasks.made(task))
    buffers = [left @ right for left, right in pairs]

    def run(count: int) -> None:
        for _ in range(count):
            for (left, right), buffer in zip(pairs, buffers, strict=True):
                np.matmul(left, right, out=buffer)

    return {"run": run}
