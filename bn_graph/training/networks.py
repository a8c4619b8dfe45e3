"""The documents' networks, built for one mode at a time or for both.

`build_graph` is r2rt's fully connected network: inputs–100–100–10, sigmoids, weights drawn from N(0, 1), summed
cross-entropy, gradient descent. Whatever stands before the activations is handed in as `normalizer`, so that the
same graph can be had with `batch_norm_wrapper`, with biases only, or with a form of an experiment's own.

`Model` is the network of the document with Model and Solver classes: inputs–32–32–10, ReLU, Adam on the mean
cross-entropy, in a variable scope of its own and for training and inference at once. `Solver` runs it.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bn_graph.layers.batch_norm import batch_norm_wrapper
from bn_graph.tf1 import tf
from bn_graph.training import train_op

__all__ = ["Model", "Network", "Solver", "biased_layer", "build_graph", "normal_weights", "normalized_layer"]

Normalizer = Callable[..., tf.Tensor]
Initializer = Callable[..., tf.Tensor]
HiddenLayer = Callable[[tf.Tensor, int, tf.Tensor, Initializer], tf.Tensor]


class Network(NamedTuple):
    """The tensors and ops of one network that a caller runs.

    ``x`` float32 [batch, inputs], ``y_`` float32 one-hot [batch, classes], ``logits`` [batch, classes], ``prediction``
    int64 [batch], ``correct`` bool [batch], ``accuracy`` and ``loss`` scalars, ``train_op``, ``global_step``.
    """

    x: tf.Tensor
    y_: tf.Tensor
    logits: tf.Tensor
    prediction: tf.Tensor
    correct: tf.Tensor
    accuracy: tf.Tensor
    loss: tf.Tensor
    train_op: tf.Operation | None
    global_step: tf.Variable


def normal_weights(layer_sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """N(0, 1) weights for each pair of neighbouring layers, drawn in order; the same for every network that shares them.

    Args:
        layer_sizes: units of the inputs, each hidden layer and the outputs.
        seed: of NumPy's generator.

    Returns:
        float32 arrays of shape ``[layer_sizes[i], layer_sizes[i + 1]]``.

    Example:
        >>> from bn_graph import normal_weights
        >>> [weights.shape for weights in normal_weights([64, 100, 10], seed=0)]
        [(64, 100), (100, 10)]
    """
    generator = np.random.default_rng(seed)
    return [
        generator.standard_normal((rows, columns)).astype(np.float32)
        for rows, columns in itertools.pairwise(layer_sizes)
    ]


def build_graph(
    is_training: bool | tf.Tensor,
    weights: Sequence[np.ndarray] | None = None,
    *,
    normalizer: Normalizer | None = batch_norm_wrapper,
    learning_rate: float = 0.01,
) -> Network:
    """Builds r2rt's network in the default graph, for training or for inference.

    Args:
        is_training: passed to `normalizer`. With ``False`` no train op is made.
        weights: initial weights, one array per layer; `normal_weights` of 784-100-100-10 with seed 0 if None. At
            inference only their shapes matter, since the values come from a checkpoint.
        normalizer: called as ``normalizer(z, is_training, name="bn1")`` on the weighted sum of each hidden layer, which
            then has no bias (beta does that); None gives each hidden layer a bias and no batch norm.
        learning_rate: of gradient descent on the *summed* cross-entropy, so that the step grows with the batch.

    Returns:
        A `Network`. Variables: ``w1``, ``w2``, …, one bias ``b<last>`` for the logits, what `normalizer` makes in the
        scopes ``bn1``, ``bn2``, …, and ``global_step``. Every name is given, so the training graph and the inference
        graph agree whatever else their graphs hold.

    Differences from the document, each with its reason: the loss is ``softmax_cross_entropy_with_logits`` (its own,
    −Σ y·log(softmax), turns into NaN once a probability underflows); the last bias is used (the document makes one in
    ``build_graph`` and leaves it out); variables have names; with ``is_training=False`` there is no train op.

    Source: r2rt, ``build_graph``.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     network = bn_graph.build_graph(True, bn_graph.normal_weights([64, 100, 100, 10], seed=0))
        ...     [variable.op.name for variable in tf.trainable_variables()]
        ['w1', 'bn1/gamma', 'bn1/beta', 'w2', 'bn2/gamma', 'bn2/beta', 'w3', 'b3']
    """
    if weights is None:
        weights = normal_weights((784, 100, 100, 10), seed=0)
    x = tf.placeholder(tf.float32, [None, weights[0].shape[0]], name="x")
    y_ = tf.placeholder(tf.float32, [None, weights[-1].shape[1]], name="y_")

    layer = x
    for number, initial in enumerate(weights[:-1], start=1):
        z = tf.matmul(layer, _variable(f"w{number}", initial))
        layer = tf.nn.sigmoid(_shifted(z, number, is_training, normalizer))
    last = len(weights)
    logits = tf.matmul(layer, _variable(f"w{last}", weights[-1])) + _bias(last, weights[-1].shape[1])

    loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits_v2(labels=y_, logits=logits), name="loss")
    prediction = tf.argmax(logits, 1, name="prediction")
    correct = tf.equal(prediction, tf.argmax(y_, 1), name="correct")
    accuracy = tf.reduce_mean(tf.cast(correct, tf.float32), name="accuracy")
    global_step = tf.train.get_or_create_global_step()
    train_op = None
    if is_training is not False:
        train_op = tf.train.GradientDescentOptimizer(learning_rate).minimize(loss, global_step)
    return Network(x, y_, logits, prediction, correct, accuracy, loss, train_op, global_step)


def _shifted(z: tf.Tensor, number: int, is_training: bool | tf.Tensor, normalizer: Normalizer | None) -> tf.Tensor:
    """What goes into hidden layer `number`'s activation: the normalized sum, or the sum and a bias."""
    if normalizer is None:
        return z + _bias(number, z.shape.as_list()[1])
    return normalizer(z, is_training, name=f"bn{number}")


def _bias(number: int, units: int) -> tf.Variable:
    return tf.get_variable(f"b{number}", [units], initializer=tf.zeros_initializer())


def _variable(name: str, initial: np.ndarray) -> tf.Variable:
    return tf.get_variable(name, initial.shape, initializer=tf.constant_initializer(initial))


def normalized_layer(
    inputs: tf.Tensor, units: int, is_training: bool | tf.Tensor, kernel_initializer: Initializer
) -> tf.Tensor:
    """A weighted sum, normalized: what goes into the activation of `Model`'s hidden layers.

    Args:
        inputs: float tensor [batch, inputs].
        units: of the layer.
        is_training: passed to `batch_norm_wrapper`.
        kernel_initializer: of the weights.

    Returns:
        Tensor [batch, units]. Variables, in the current scope: ``kernel`` and the four in ``bn``; no bias, which the
        normalization would take out again (beta does that). The two update ops are in ``UPDATE_OPS``.

    Example:
        >>> from bn_graph.training.networks import normalized_layer
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     z = normalized_layer(tf.zeros([5, 3]), 4, True, tf.glorot_uniform_initializer())
        ...     z.shape.as_list(), len(tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        ([5, 4], 2)
    """
    z = tf.matmul(inputs, tf.get_variable("kernel", [inputs.shape.as_list()[1], units], initializer=kernel_initializer))
    return batch_norm_wrapper(z, is_training, decay=0.99, updates_collection=tf.GraphKeys.UPDATE_OPS, name="bn")


def biased_layer(
    inputs: tf.Tensor, units: int, is_training: bool | tf.Tensor, kernel_initializer: Initializer
) -> tf.Tensor:
    """A weighted sum and a bias: `Model`'s hidden layers without batch norm, and its outputs.

    Args, returns: as `normalized_layer`; `is_training` makes no difference. Variables: ``kernel``, ``bias`` (0).

    Example:
        >>> from bn_graph.training.networks import biased_layer
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     biased_layer(tf.zeros([5, 3]), 4, True, tf.glorot_uniform_initializer()).shape.as_list()
        [5, 4]
    """
    del is_training
    kernel = tf.get_variable("kernel", [inputs.shape.as_list()[1], units], initializer=kernel_initializer)
    return tf.matmul(inputs, kernel) + tf.get_variable("bias", [units], initializer=tf.zeros_initializer())


class Model:
    """A classifier in a variable scope of its own, with a switch between training and inference.

    Several models can stand in one graph: each one's train op runs the update ops of its own layers and no others,
    found by the variables that they assign, so one name may be the beginning of another.

    Attributes:
        name: of the scope.
        x: float32 placeholder [batch, input_dim].
        y_: float32 placeholder [batch, output_dim], one-hot labels.
        is_training: scalar bool placeholder. It has no default: who forgets it gets an error, not the wrong mode.
        logits: [batch, output_dim].
        prediction: int64 [batch].
        loss: mean softmax cross-entropy, a scalar.
        accuracy: share of right predictions, a scalar.
        train_op: one optimizer step on `loss`, and the update ops with it.

    Example:
        >>> from bn_graph import Model
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     model = Model("small", 64, 10, hidden_dims=[8], seed=0)
        ...     [variable.op.name for variable in tf.trainable_variables()]
        ['small/layer0/kernel', 'small/layer0/bn/gamma', 'small/layer0/bn/beta', 'small/outputs/kernel', 'small/outputs/bias']
    """

    def __init__(
        self,
        name: str,
        input_dim: int,
        output_dim: int,
        hidden_dims: Sequence[int] = (32, 32),
        *,
        hidden_layer: HiddenLayer = normalized_layer,
        activation: Callable[[tf.Tensor], tf.Tensor] = tf.nn.relu,
        optimizer: Callable[[float], tf.train.Optimizer] = tf.train.AdamOptimizer,
        learning_rate: float = 0.01,
        seed: int | None = None,
    ):
        """Builds the network in the default graph.

        Args:
            name: of the variable scope, new to the graph.
            input_dim: inputs an example.
            output_dim: classes.
            hidden_dims: units of each hidden layer.
            hidden_layer: called as ``hidden_layer(inputs, units, is_training, kernel_initializer)`` in the scope
                ``layer<i>``, for what goes into the activation: `normalized_layer`, `biased_layer` for none of batch
                norm, or another; its update ops, if any, go to ``UPDATE_OPS`` or are made in place.
            activation: of the hidden layers.
            optimizer: called with `learning_rate`.
            learning_rate: of the *mean* loss.
            seed: of the initial weights (Glorot's uniform, as tf.layers has it): models of one seed and one shape start
                from the same ones. New ones at each run of the initializers if None.

        Raises:
            ValueError: the graph has a model of that name already, or the name can't be a scope's.

        Source: the document with Model and Solver classes, ``class Model``. Unlike it, the update ops are collected by
        their variables and not by the regular expression that ``get_collection`` makes of a name; a normalized layer
        has no bias; only the applying of gradients waits for the updates, not their computing.
        """
        self.name = name
        with tf.variable_scope(name) as scope:
            self.x = tf.placeholder(tf.float32, [None, input_dim], name="x")
            self.y_ = tf.placeholder(tf.float32, [None, output_dim], name="y_")
            self.is_training = tf.placeholder(tf.bool, [], name="is_training")

            net = self.x
            for number, units in enumerate(hidden_dims):
                with tf.variable_scope(f"layer{number}"):
                    net = activation(hidden_layer(net, units, self.is_training, _glorot(seed, number)))
            with tf.variable_scope("outputs"):
                self.logits = biased_layer(net, output_dim, self.is_training, _glorot(seed, len(hidden_dims)))

            losses = tf.nn.softmax_cross_entropy_with_logits_v2(labels=self.y_, logits=self.logits)
            self.loss = tf.reduce_mean(losses, name="loss")
            self.prediction = tf.argmax(self.logits, 1, name="prediction")
            correct = tf.equal(self.prediction, tf.argmax(self.y_, 1))
            self.accuracy = tf.reduce_mean(tf.cast(correct, tf.float32), name="accuracy")
            self.train_op = train_op.train_op(optimizer(learning_rate), self.loss, scope=scope, global_step=None)


def _glorot(seed: int | None, number: int) -> Initializer:
    # Another seed for each layer: two layers of one shape must not start with the same weights.
    return tf.glorot_uniform_initializer(seed=None if seed is None else 1000 * seed + number)


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
                as the examples are normalized by moving statistics (`is_training` False).
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
