"""The document's ``Solver``: a model and its session, one training step at a time, and evaluation."""

import numpy as np

from bn_graph.tf1 import tf
from bn_graph.training.networks import Model

__all__ = ["Solver"]


class Solver:
    """A model and the session that it runs in: one training step at a time, and evaluation in whole or in batches.

    Attributes:
        session: of the model's graph; the caller initializes its variables.
        model: a `bn_graph.Model`, or anything with its ``x``, ``y_``, ``is_training``, ``loss``, ``accuracy`` and
            ``train_op``.

    Example:
        >>> import itertools, bn_graph
        >>> from bn_graph.tf1 import tf
        >>> digits = bn_graph.load("digits")
        >>> with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        ...     solver = bn_graph.Solver(session, bn_graph.Model("model", 64, 10, seed=0))
        ...     session.run(tf.global_variables_initializer())
        ...     for images, labels in itertools.islice(bn_graph.batches(digits.train, 32, seed=0), 200):
        ...         loss = solver.train(images, labels)
        ...     loss, accuracy = solver.evaluate(digits.test.images, digits.test.labels, batch_size=100)
        ...     accuracy > 0.9
        True
    """

    def __init__(self, session: tf.Session, model: Model):
        self.session = session
        self.model = model

    def train(self, x: np.ndarray, y_: np.ndarray) -> float:
        """Takes one step.

        Args:
            x: examples, as ``model.x``.
            y_: their one-hot labels.

        Returns:
            The loss of this batch by its own statistics, *before* the step: it is what the gradients are of.
        """
        _, loss = self.session.run([self.model.train_op, self.model.loss], self._feed(x, y_, is_training=True))
        return float(loss)

    def evaluate(
        self, x: np.ndarray, y_: np.ndarray, batch_size: int | None = None, *, is_training: bool = False
    ) -> tuple[float, float]:
        """Loss and accuracy, the mean over all examples. Nothing is updated, whatever `is_training` says.

        Args:
            x: examples, at least one.
            y_: their one-hot labels.
            batch_size: examples a run, for what does not fit into memory; all at once if None. The last batch may be
                smaller, and each counts by its size, so the result is that of all at once to float rounding, as long
                as the examples are normalized by population statistics (`is_training` False).
            is_training: True normalizes each batch by its own statistics, for those who want to see what comes of it.

        Returns:
            ``(loss, accuracy)``.

        Raises:
            ValueError: there is no example, or `batch_size` is not positive.
        """
        size = len(x)
        batch_size = size if batch_size is None else batch_size
        if size == 0 or batch_size < 1:
            raise ValueError(f"Expected an example at least and a positive batch_size, not {size} and {batch_size}.")
        total = np.zeros(2)
        for start in range(0, size, batch_size):
            batch = slice(start, start + batch_size)
            feed = self._feed(x[batch], y_[batch], is_training)
            total += len(x[batch]) * np.array(self.session.run([self.model.loss, self.model.accuracy], feed))
        loss, accuracy = total / size
        return float(loss), float(accuracy)

    def _feed(self, x: np.ndarray, y_: np.ndarray, is_training: bool) -> dict[tf.Tensor, np.ndarray | bool]:
        return {self.model.x: x, self.model.y_: y_, self.model.is_training: is_training}
