"""``ConvolutionalBatchNormalizer``: the helper class of the documents, whose averages are kept by an
``ExponentialMovingAverage``, in a defined order of updates.

The documented recipe assigns each batch's moments to two variables, and averages these variables by another op, which
nothing orders after the assigns: the average gets the present batch or the one before, as the threads happen to run. Here
the averaging op gets the moments themselves from the forward pass, so it needs no order and averages the present batch.
"""

from typing import NamedTuple

from bn_graph.layers import arguments, averages, fused_kernel, moments, transforms
from bn_graph.layers.averages import LayerVariables
from bn_graph.layers.batch_norm import attach_updates, record_call
from bn_graph.tf1 import control_flow_context, replace_input, tf

__all__ = ["ConvolutionalBatchNormalizer"]

_CHANNEL_AXIS = 3


class _TrainingCall(NamedTuple):
    """One call's batch: ``mean`` and ``variance``, the ``count`` of values per channel, and whether it trains in a run."""

    mean: tf.Tensor
    variance: tf.Tensor
    count: tf.Tensor
    flag: tf.Tensor


class ConvolutionalBatchNormalizer:
    """Batch normalization of a convolution's outputs, whose statistics an ``ExponentialMovingAverage`` keeps.

    ==================  =======================  ============================================================
    `train`             normalizes with          updates
    ==================  =======================  ============================================================
    ``True``            the batch's statistics   ``mean``, ``variance`` ← the batch's, at each run of the
                                                 outputs; the averages ← one step, at each run of the assigner
    ``False``           the averages             nothing
    bool tensor         by the value it is fed   the same if it is fed True; if False nothing, by the assigner
                                                 neither
    ==================  =======================  ============================================================

    The documented recipe works as it stands, and in any other order::

        ewma = tf.train.ExponentialMovingAverage(decay=0.99)
        bn = ConvolutionalBatchNormalizer(depth, 0.001, ewma, True)
        update_assignments = bn.get_assigner()
        x = bn.normalize(y, train=is_training)
        ...
        train_op = tf.group(optimizer.minimize(loss), update_assignments)

    A graph that only predicts makes the same calls, ``get_assigner()`` included: it creates the averages, which a
    Saver then restores. It has no use for the op itself.

    Variables (float32, shape ``[depth]``, in ``GLOBAL_VARIABLES``), under the scope `name`:
        ``beta`` (0), ``gamma`` (1): in ``TRAINABLE_VARIABLES``. Gamma exists, and is unused, without `scale_after_norm`.
        ``mean`` (0), ``variance`` (1): the last training batch's; in `MOVING_STATISTICS`. They are resource variables
        whatever the program's default: a ref variable is read from a copy which may be older than the assign.
        ``mean/<ewma's name>`` (0), ``variance/<ewma's name>`` (1): their averages, made by `get_assigner` with the
        variables' initial values, and what inference reads; in `MOVING_STATISTICS`. ``ewma_trainer.average(bn.mean)``
        gives the variable. (If the initializers are run a second time, the averages may start at the last batch's
        statistics: that is how ``ExponentialMovingAverage`` initializes.)

    Attributes:
        mean, variance, beta, gamma: the variables.
        ewma_trainer, epsilon, scale_after_norm: as given.

    Differences from the documents' class:
        1. `get_assigner` averages the present batch, and depends on it; asked for again it returns the same op.
        2. Inference without averages is an error, where the documents' class goes on with None.
        3. `train` may be a tensor; then running the assigner in a run that is fed False changes nothing.
        4. Variables have stable names, `name` makes them distinct, and moments are safe far from 0.
        5. Several training calls in one graph (towers, two inputs) count as *one* batch: see `get_assigner`.
        6. A training batch with a single value per channel is refused, as everywhere in this library.

    Source: "How could I use batch normalization in TensorFlow?", the class ``ConvolutionalBatchNormalizer``.

    Example:
        >>> from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     bn = ConvolutionalBatchNormalizer(1, 0.001, tf.train.ExponentialMovingAverage(decay=0.5), True)
        ...     assigner = bn.get_assigner()
        ...     x = bn.normalize(tf.constant([2.0, 6.0], shape=[2, 1, 1, 1]), train=True)
        ...     session.run(tf.global_variables_initializer())
        ...     session.run(assigner)
        ...     session.run([bn.ewma_trainer.average(bn.mean), bn.ewma_trainer.average(bn.variance)])
        [array([2.], dtype=float32), array([2.5], dtype=float32)]
    """

    def __init__(
        self,
        depth: int,
        epsilon: float,
        ewma_trainer: tf.train.ExponentialMovingAverage,
        scale_after_norm: bool,
        name: str | None = None,
    ):
        """Makes the variables ``mean``, ``variance``, ``beta`` and ``gamma``.

        Args:
            depth: number of channels.
            epsilon: added to the variance inside the root, above 0.
            ewma_trainer: keeps the averages; its decay, and ``num_updates`` if it has them, apply. May serve several
                normalizers.
            scale_after_norm: whether gamma multiplies.
            name: variable scope; ``ConvolutionalBatchNormalizer``, made unique, if None. In a reusing scope the
                variables are found instead of made.

        Raises:
            ValueError: `depth` is no whole number from 1 up, or `epsilon` is not above 0.
        """
        arguments.check_graph_mode()
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be a whole number from 1 up, got {depth!r}.")
        arguments.checked_constants(epsilon=epsilon)
        self.ewma_trainer = ewma_trainer
        self.epsilon = epsilon
        self.scale_after_norm = scale_after_norm
        with tf.variable_scope(name or None, default_name="ConvolutionalBatchNormalizer") as scope:
            self._scope = scope.name
            self.mean = _statistic("mean", depth, tf.zeros_initializer())
            self.variance = _statistic("variance", depth, tf.ones_initializer())
            self.beta = tf.get_variable("beta", [depth], tf.float32, tf.zeros_initializer())
            self.gamma = tf.get_variable("gamma", [depth], tf.float32, tf.ones_initializer())
        self._training_calls: list[_TrainingCall] = []
        self._assigner: tf.Operation | None = None
        self._present: tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None = None

    def get_assigner(self) -> tf.Operation:
        """Returns the op that averages the present batch; makes the averages when first called.

        It may be called before or after `normalize`, and run anywhere in a step: it depends on the moments of the
        step's batch itself. All training calls of `normalize` in the graph, later ones too, are one batch to it: their
        moments are pooled by the number of values, ``mean`` and ``variance`` get them, and the averages take one step.
        So towers on parts of a batch give what one tower on all of it gives, and running the op needs the feeds of all.
        Make these calls before a session first runs the op: a session does not see what is connected to an op later.

        Returns:
            The op, the same at every call.

        Raises:
            tf.errors.InvalidArgumentError: when the op is run in a graph without a training call of `normalize`.
        """
        if self._assigner is None:
            # The averages' names must not depend on the scope in which the assigner is asked for, so: the root scope.
            root = tf.VariableScope(reuse=False, name="")
            with tf.variable_scope(root, auxiliary_name_scope=False), tf.name_scope(f"{self._scope}/assigner/"):
                self._present = self._inputs_of_the_assigner()
                self._connect_training_calls()
                mean, variance, flag = self._present
                self._assigner = tf.group(
                    *averages.run_when(flag, lambda: self._average(mean, variance), [self.mean, self.variance])
                )
            for averaged in (self.mean, self.variance):
                averages.register(self.ewma_trainer.average(averaged))
        return self._assigner

    def normalize(self, x: tf.Tensor, train: bool | tf.Tensor = True) -> tf.Tensor:
        """Returns a batch-normalized version of `x`.

        Args:
            x: tensor of shape ``[N, H, W, depth]``, float32 or half precision; N, H and W may be unknown.
            train: Python bool or scalar bool tensor. True by default, as in the documents.

        Returns:
            A tensor of the shape and dtype of `x`. Training normalizes by mean and biased variance over N, H and W.

        Raises:
            ValueError: `x` is not of rank 4, or its last dimension is not `depth`; `train` is neither; inference, by a
                tensor too, is asked for and the averages don't exist (call `get_assigner` first); a training call
                inside ``tf.cond`` or ``tf.while_loop`` (pass the flag as `train` instead), or with a static shape
                of one value per channel.
            TypeError: `x` is of another dtype.
            tf.errors.InvalidArgumentError: at a training run with fewer than two values per channel.
        """
        x = tf.convert_to_tensor(x, name="x")
        self._check_inputs(x)
        train = arguments.checked_is_training(train)
        statistics = (self.mean, self.variance) if train is True else self._averages()
        arguments.refuse_static_single_value(x, _CHANNEL_AXIS, train)
        if train is not False:
            self._check_outside_branches(x)
        gamma = self.gamma if self.scale_after_norm else None
        variables = LayerVariables(gamma, self.beta, *statistics)

        def by_batch() -> transforms.Normalized:
            batch = arguments.with_run_time_checks(x, _CHANNEL_AXIS)
            return fused_kernel.by_fused_kernel(batch, _CHANNEL_AXIS, gamma, self.beta, self.epsilon, unbiased=False)

        with tf.name_scope(f"{self._scope}/"):
            batch = transforms.by_mode(
                train,
                by_batch,
                lambda: transforms.by_moving_statistics(x, _CHANNEL_AXIS, variables, self.epsilon, fused=True),
            )
            stores = averages.run_when(train, lambda: self._store(batch.mean, batch.variance), statistics)
            outputs = attach_updates(batch.outputs, stores, None)
            record_call(outputs, x, _CHANNEL_AXIS, variables, self.epsilon, self._scope)
            if train is not False:
                self._training_calls.append(_after(outputs, x, batch.mean, batch.variance, train))
                self._connect_training_calls()
        return outputs

    def _store(self, mean: tf.Tensor, variance: tf.Tensor) -> list[tf.Operation]:
        return [tf.assign(self.mean, mean).op, tf.assign(self.variance, variance).op]

    def _check_inputs(self, x: tf.Tensor) -> None:
        depth = self.mean.shape.as_list()[0]
        if not x.dtype.is_floating or moments.compute_dtype(x.dtype) != tf.float32:
            raise TypeError(
                f"x must be float32, float16 or bfloat16, as the variables are float32; got {x.dtype.name}."
            )
        if x.shape.rank != 4 or x.shape.as_list()[_CHANNEL_AXIS] != depth:
            raise ValueError(f"x must have the shape [N, H, W, depth] with depth = {depth}, got {x.shape}.")

    def _check_outside_branches(self, x: tf.Tensor) -> None:
        graph = self.mean.graph
        if x.graph is not graph or tf.get_default_graph() is not graph or control_flow_context(graph):
            raise ValueError(
                "normalize in training can't be called inside tf.cond, tf.while_loop or a function: the assigner, "
                "outside, could not get the batch's moments. Call it once, outside, with the flag as train=."
            )

    def _averages(self) -> tuple[tf.Variable, tf.Variable]:
        found = [self.ewma_trainer.average(variable) for variable in (self.mean, self.variance)]
        if any(average is None for average in found):
            raise ValueError(
                f"The averages of {self._scope} don't exist yet, and inference normalizes by them. Call get_assigner() "
                "before normalize(train=False): it creates them, in a graph that only predicts as well."
            )
        return tuple(found)

    def _inputs_of_the_assigner(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """What the assigner works on: mean, variance, and whether to. Defaults, until a training call is connected."""
        message = f"The assigner of {self._scope} has no batch: the graph has no call of normalize(train=True)."
        with tf.control_dependencies(None):
            with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
                flag = tf.identity(False)
            defaults = (tf.zeros(self.mean.shape), tf.ones(self.mean.shape), flag)
            return tuple(tf.identity(tensor) for tensor in defaults)

    def _connect_training_calls(self) -> None:
        """Makes all training calls so far what the assigner works on, if there is an assigner yet.

        The recipe asks for the assigner before there is a batch, so its inputs must be exchanged later. TensorFlow has
        no public call for that; this one is what its own while loops are closed with.
        """
        if self._present is not None and self._training_calls:
            for present, now in zip(self._present, _pooled(self._training_calls), strict=True):
                replace_input(present.op, 0, now)

    def _average(self, mean: tf.Tensor, variance: tf.Tensor) -> list[tf.Operation]:
        assigns = self._store(mean, variance)
        with tf.control_dependencies(assigns):  # a resource variable is read where it is used: here, after them
            return [tf.group(*assigns), self.ewma_trainer.apply([self.mean, self.variance])]


def _statistic(name: str, depth: int, initializer: averages.Initializer) -> tf.Variable:
    variable = tf.get_variable(name, [depth], tf.float32, initializer, trainable=False, use_resource=True)
    averages.register(variable)
    return variable


def _after(
    outputs: tf.Tensor, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, train: bool | tf.Tensor
) -> _TrainingCall:
    """The call's batch as the assigner may use it: once this call has stored its own moments."""
    with tf.control_dependencies([outputs]):
        flag = tf.identity(train)
        values = tf.cast(tf.reduce_prod(tf.shape(x)[:_CHANNEL_AXIS]), tf.float32)
        mean, variance = (tf.stop_gradient(moment) for moment in (mean, variance))
        return _TrainingCall(mean, variance, values * tf.cast(flag, tf.float32), flag)


def _pooled(calls: list[_TrainingCall]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean and variance of the calls' batches pooled, and whether any trains in the run."""
    if len(calls) == 1:
        return calls[0].mean, calls[0].variance, calls[0].flag
    counts = tf.stack([call.count for call in calls])
    shares = tf.math.divide_no_nan(counts, tf.reduce_sum(counts))[:, tf.newaxis]
    means, variances = tf.stack([call.mean for call in calls]), tf.stack([call.variance for call in calls])
    mean = tf.reduce_sum(shares * means, 0)
    variance = tf.reduce_sum(shares * (variances + tf.square(means - mean)), 0)
    return mean, variance, tf.reduce_any(tf.stack([call.flag for call in calls]))
