"""Population statistics from those of batches: exact ("pooled"), and the paper's average over batches ("paper")."""

import numpy as np

__all__ = ["ESTIMATORS", "AlgorithmTwo", "Estimator", "PooledStatistics"]


class PooledStatistics:
    """Mean and variance of all values of all batches together, in float64.

    Exact, to rounding, for any values and any split into batches: the variance is the mean of the batches' variances
    plus the variance of their means, merged by Chan's form of it, which never subtracts two large numbers.

    Source: Chan, Golub & LeVeque 1979; Welford 1962.

    Example:
        >>> from bn_graph.recalibration import PooledStatistics
        >>> pooled = PooledStatistics()
        >>> pooled.update(1, 2.0, 0.0)  # the batch [2]
        >>> pooled.update(2, 5.0, 1.0)  # the batch [4, 6]
        >>> [float(each) for each in pooled.result(unbiased=True)]  # of [2, 4, 6]
        [4.0, 4.0]
    """

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, np.zeros([]), np.zeros([])

    def update(self, count: int, mean: np.ndarray, variance: np.ndarray) -> None:
        """Adds a batch of `count` values per channel with this mean and *biased* variance."""
        self.merge(count, np.asarray(mean, np.float64), np.asarray(variance, np.float64) * count)

    def parts(self) -> tuple[np.ndarray, ...]:
        """What `merge` of another one takes after the count: the mean, and the sum of squared distances from it."""
        return self._mean, self._squares

    def merge(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        """Adds what another one has seen."""
        if count == 0:
            return
        total = self.count + count
        distance = mean - self._mean
        self._mean = self._mean + distance * (count / total)
        self._squares = self._squares + squares + distance**2 * (self.count * count / total)
        self.count = total

    def result(self, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
        """The mean and variance; `unbiased` divides the squares by n − 1 and not n.

        Raises:
            ValueError: no values, or a single one for the unbiased variance.
        """
        _require(self.count, 2 if unbiased else 1)
        return self._mean, self._squares / (self.count - 1 if unbiased else self.count)


class AlgorithmTwo:
    """The paper's estimates from training-mode batches: E[μ_B] and m/(m−1)·E[σ²_B].

    With independent batches of size m from one distribution, and inputs that don't depend on the batch (a first
    layer's), both converge to the population's mean and variance as the batches get more. A deeper layer's inputs depend
    on the batch, and batches that are not drawn at random (sorted data) leave the variance between them out.

    Batches of different sizes weigh by their size, and each variance has the m of its own batch.

    Source: Ioffe & Szegedy 2015, Algorithm 2, step 10.

    Example:
        >>> from bn_graph.recalibration import AlgorithmTwo
        >>> paper = AlgorithmTwo()
        >>> paper.update(2, 5.0, 1.0)
        >>> paper.update(2, 1.0, 4.0)
        >>> [float(each) for each in paper.result(unbiased=True)]  # 2/(2−1)·(1 + 4)/2
        [3.0, 5.0]
    """

    def __init__(self) -> None:
        self.count, self._means, self._biased, self._unbiased = 0, np.zeros([]), np.zeros([]), np.zeros([])

    def update(self, count: int, mean: np.ndarray, variance: np.ndarray) -> None:
        """Adds a batch of `count` values per channel with this mean and *biased* variance.

        Raises:
            ValueError: fewer than two values, which have no variance.
        """
        _require(count, 2)
        mean, biased = np.asarray(mean, np.float64) * count, np.asarray(variance, np.float64) * count
        self.merge(count, mean, biased, biased * (count / (count - 1)))

    def parts(self) -> tuple[np.ndarray, ...]:
        """What `merge` of another one takes after the count: the sums of means, variances and unbiased variances."""
        return self._means, self._biased, self._unbiased

    def merge(self, count: int, means: np.ndarray, biased: np.ndarray, unbiased: np.ndarray) -> None:
        """Adds what another one has seen."""
        self.count += count
        self._means = self._means + means
        self._biased = self._biased + biased
        self._unbiased = self._unbiased + unbiased

    def result(self, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
        """The mean and variance; without `unbiased` the variance is E[σ²_B].

        Raises:
            ValueError: no batches.
        """
        _require(self.count, 1)
        return self._means / self.count, (self._unbiased if unbiased else self._biased) / self.count


def _require(count: int, least: int) -> None:
    if count < least:
        raise ValueError(f"{count} value{'s' * (count != 1)} per channel, where at least {least} are needed")


Estimator = PooledStatistics | AlgorithmTwo

ESTIMATORS: dict[str, type[Estimator]] = {"pooled": PooledStatistics, "paper": AlgorithmTwo}
"""By the names of the methods."""
