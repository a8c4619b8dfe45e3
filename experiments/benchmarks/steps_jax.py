"""Training steps by JAX: ``jit`` of a ``lax.scan`` over the steps, ``jit`` of one step, and the matrix products alone."""

from collections.abc import Callable

import numpy as np

from experiments.benchmarks import tasks
from experiments.benchmarks.tasks import Task

__all__ = ["products", "scan", "stepwise"]


def scan(threads: int, **task) -> dict[str, Callable]:
    """All steps in one compiled loop, the data on the device, its batches gathered inside."""
    del threads  # its pools read the environment, which the parent has set
    return _contender(tasks.made(task), in_loop=True)


def stepwise(threads: int, **task) -> dict[str, Callable]:
    """One compiled step, called by a Python loop: outside of a loop XLA's CPU convolutions are many times as fast."""
    del threads
    return _contender(tasks.made(task), in_loop=False)


def _contender(task: Task, *, in_loop: bool) -> dict[str, Callable]:
    import jax

    split = tasks.data(task.examples)
    images, labels = jax.device_put(split.images), jax.device_put(split.labels)
    order = jax.device_put(tasks.rows(task, split.size // task.batch, split.size))
    step = _make_step(task)

    @jax.jit
    def steps(state, rows, images, labels):
        return jax.lax.scan(lambda state, chosen: (step(state, images[chosen], labels[chosen]), None), state, rows)[0]

    @jax.jit
    def one_step(state, chosen, images, labels):
        return step(state, images[chosen], labels[chosen])

    states = [_start(task)]

    def run(count: int) -> None:
        if in_loop:
            states[0] = steps(states[0], order[:count], images, labels)
        else:
            for chosen in order[:count]:
                states[0] = one_step(states[0], chosen, images, labels)
        jax.block_until_ready(states[0])

    def logits(batch: np.ndarray) -> np.ndarray:
        parameters, statistics, _ = states[0]
        return _forward(task, parameters, statistics, batch, training=False)[0]

    return {"run": run, "check": lambda _: tasks.agreement(run, logits, split)}


def _start(task: Task) -> tuple:
    import jax
    import jax.numpy as jnp

    *hidden, last = tasks.initial_weights(task)
    parameters = {"last": jnp.asarray(last), "bias": jnp.zeros(last.shape[1]), "hidden": []}
    statistics = []
    for matrix in hidden:
        units = matrix.shape[-1]
        parameters["hidden"].append((jnp.asarray(matrix), jnp.ones(units), jnp.zeros(units)))
        statistics.append((jnp.zeros(units), jnp.ones(units)))
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    return parameters, statistics, (jnp.zeros([]), zeros, zeros)


def _forward(task: Task, parameters: dict, statistics: list, images, *, training: bool) -> tuple:
    """Logits, and the moving statistics after this batch."""
    import jax
    import jax.numpy as jnp

    layer, moved = images, []
    if task.network == "images":
        layer = images.reshape(-1, tasks.SIDE, tasks.SIDE, 1)
    for (matrix, gamma, beta), (moving_mean, moving_variance) in zip(parameters["hidden"], statistics, strict=True):
        z = layer @ matrix if layer.ndim == 2 else _convolved(layer, matrix)
        axes = tuple(range(z.ndim - 1))
        mean, variance = (z.mean(axes), z.var(axes)) if training else (moving_mean, moving_variance)
        kept = task.decay
        moved.append((kept * moving_mean + (1 - kept) * mean, kept * moving_variance + (1 - kept) * variance))
        z = gamma * (z - mean) * jax.lax.rsqrt(variance + tasks.EPSILON) + beta
        layer = jax.nn.sigmoid(z) if task.network == "r2rt" else jnp.maximum(z, 0.0)
    layer = layer if layer.ndim == 2 else layer.mean((1, 2))
    return layer @ parameters["last"] + parameters["bias"], moved


def _convolved(layer, kernel):
    import jax

    return jax.lax.conv_general_dilated(layer, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _make_step(task: Task) -> Callable:
    import jax
    import jax.numpy as jnp

    def loss(parameters, statistics, images, labels):
        logits, moved = _forward(task, parameters, statistics, images, training=True)
        losses = -(labels * jax.nn.log_softmax(logits)).sum(1)
        return losses.sum() if task.network == "r2rt" else losses.mean(), moved

    def step(state, images, labels):
        parameters, statistics, slots = state
        gradients, statistics = jax.grad(loss, has_aux=True)(parameters, statistics, images, labels)
        parameters, slots = (_sgd if task.network == "r2rt" else _adam)(jax, jnp, parameters, gradients, slots)
        return parameters, statistics, slots

    return step


def _sgd(jax, jnp, parameters, gradients, slots) -> tuple:
    del jnp
    return jax.tree.map(lambda value, gradient: value - tasks.LEARNING_RATE * gradient, parameters, gradients), slots


def _adam(jax, jnp, parameters, gradients, slots) -> tuple:
    """As ``tf.train.AdamOptimizer`` has it: the bias correction in the rate, epsilon 1e-8 beside the root."""
    count, first, second = slots
    count += 1
    first = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, first, gradients)
    second = jax.tree.map(lambda old, new: 0.999 * old + 0.001 * new * new, second, gradients)
    rate = tasks.LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
    moved = jax.tree.map(lambda value, m, v: value - rate * m / (jnp.sqrt(v) + 1e-8), parameters, first, second)
    return moved, (count, first, second)


def products(threads: int, **task) -> dict[str, Callable]:
    """The floor by JAX: the step's matrix products alone, in a compiled loop."""
    import jax

    del threads
    operands = [(jax.device_put(left), jax.device_put(right)) for left, right in tasks.products(tasks.made(task))]

    @jax.jit
    def steps(results, numbers, operands):
        # What does not depend on the step would be multiplied once.
        def body(_, number):
            return [(left + number * 1e-30) @ right for left, right in operands], None

        return jax.lax.scan(body, results, numbers)[0]

    start = [left @ right for left, right in operands]

    def run(count: int) -> None:
        jax.block_until_ready(steps(start, np.arange(count, dtype=np.float32), operands))

    return {"run": run}
