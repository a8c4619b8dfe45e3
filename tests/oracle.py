"""What batch normalization should give: NumPy in float64, short enough to be checked by eye."""

import numpy as np


def statistics(inputs, axis=-1):
    """The mean and the biased variance of each channel."""
    values = np.asarray(inputs).astype(np.float64)
    reduced = tuple(dimension for dimension in range(values.ndim) if dimension != axis % values.ndim)
    return values.mean(reduced), values.var(reduced)


def normalized(inputs, mean, variance, gamma=1.0, beta=0.0, epsilon=1e-3, axis=-1):
    """gamma·(inputs − mean)/√(variance + epsilon) + beta."""
    channels_last = np.moveaxis(np.asarray(inputs).astype(np.float64), axis, -1)
    return np.moveaxis(gamma * (channels_last - mean) / np.sqrt(variance + epsilon) + beta, -1, axis)


def moving(batches, decay, axis=-1):
    """The moving mean and variance after training on `batches`, from 0 and 1: moving·decay + batch·(1 − decay)."""
    mean, variance = 0.0, 1.0
    for batch in batches:
        batch_mean, batch_variance = statistics(batch, axis)
        mean = mean * decay + batch_mean * (1 - decay)
        variance = variance * decay + batch_variance * (1 - decay)
    return mean, variance


def gradient(function, point, step=1e-5):
    """Central differences of a scalar `function` at `point`; the error is of the order of step² (and 1e-16/step)."""
    slopes = np.zeros(point.shape)
    for index in np.ndindex(point.shape):
        above, below = point.copy(), point.copy()
        above[index] += step
        below[index] -= step
        slopes[index] = (function(above) - function(below)) / (2 * step)
    return slopes
