"""``BatchNormLSTMCell``: an LSTM cell with batch normalization inside, whose statistics are kept for each time step.

==================  ==============================  ==================================  ==================
`is_training`       step t normalizes with          updates                             reads
==================  ==============================  ==================================  ==================
``True``            the batch's statistics at t     row t of the moving statistics,     gamma, beta
                                                    from inside the loop
``False``           row t of the moving statistics  nothing; there is no update op      all
bool tensor         by the value it is fed          only when it is fed True            all
==================  ==============================  ==================================  ==================

The state carries each example's time step, since ``tf.nn.dynamic_rnn`` doesn't tell a cell where in the sequence it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bn_graph.layers import arguments, averages, moments, transforms
from bn_graph.layers.averages import LayerVariables
from bn_graph.tf1 import tf

__all__ = ["BatchNormLSTMCell", "LSTMState"]

_GATES = 4  # forget, input, output, candidate: the paper's order
_DTYPES = (tf.float32, tf.float64)


class LSTMState(NamedTuple):
    """``c`` and ``h``, shape ``[batch, units]``; ``step``, shape ``[batch, 1]``: the steps that each example has taken.

    ``step`` is of the dtype of the others, as ``dynamic_rnn`` demands; float32 counts exactly to 2²⁴.
    """

    c: tf.Tensor
    h: tf.Tensor
    step: tf.Tensor


class _Weights(NamedTuple):
    input_kernel: tf.Variable
    recurrent_kernel: tf.Variable
    bias: tf.Variable
    bn_x: LayerVariables
    bn_h: LayerVariables
    bn_c: LayerVariables


class BatchNormLSTMCell:
    """An LSTM cell with batch normalization of the hidden-to-hidden and input-to-hidden terms and of the cell's output.

    At step t, with BN(x; γ, β) = γ·(x − μ)/√(σ² + epsilon) + β over the batch::

        f, i, o, g = BN(h·W_h; γ_h) + BN(x·W_x; γ_x) + b
        c ← σ(f)·c + σ(i)·tanh(g)                       not normalized, so that gradients flow through c as in any LSTM
        h ← σ(o)·tanh(BN(c; γ_c, β_c))

    γ and β serve all steps. μ and σ² are each step's own: in training the batch's, and at inference the moving
    statistics' row of that step. The last row stands for step max_steps − 1 *and all after it*: each of these steps
    moves it in training and reads it at inference. (So ``max_steps=1`` is one set of statistics for all steps, which is
    what the paper warns of.) Any other row moves once a run.

    Use it as any cell::

        cell = BatchNormLSTMCell(100, is_training, max_steps=28)
        start = cell.noisy_state(tf.shape(x)[0], is_training=is_training)
        outputs, state = tf.nn.dynamic_rnn(cell, x, initial_state=start)

    Updates are in place, dependencies of the cell's outputs: they are inside the loop, where ``UPDATE_OPS`` can't run
    them, and no train op can leave them out.

    Sequences that end early. Give the cell the ``sequence_length`` that ``dynamic_rnn`` is given: examples past their end
    then count neither in the batch's statistics nor in the moving ones, and what pads them may be NaN. (The cell can't see
    it: the state of an example that has just ended is like that of one that goes on. A training run in which the examples'
    steps differ is an error without it.) At a step that a single example reaches, a batch would say nothing, for its mean
    is that example: there the moving statistics normalize, and are not updated.

    A constant start. With a zero state every example has the same h·W_h at step 0, as it has the same x·W_x where images
    are black: variance 0. The outputs are then right (γ·0), and gradients are multiplied by γ/√epsilon at each such step.
    Begin with `noisy_state`, as the paper does.

    Variables (resource variables whatever the scope's default, as a loop of control flow v2 can't assign others; dtype of
    the inputs), in the scope `name`, which ``dynamic_rnn`` puts into its own (``rnn/bn_lstm_cell/...``):
        ``input_kernel`` ``[inputs, 4·units]`` (the scope's initializer), ``recurrent_kernel`` ``[units, 4·units]``
        (orthogonal), ``bias`` ``[4·units]`` (1 for the forget gate, else 0), ``bn_x/gamma``, ``bn_h/gamma``
        ``[4·units]``, ``bn_c/gamma``, ``bn_c/beta`` ``[units]``: in ``GLOBAL_VARIABLES`` and ``TRAINABLE_VARIABLES``.
        ``moving_mean`` (0) and ``moving_variance`` (1) in each of ``bn_x``, ``bn_h`` ``[max_steps, 4·units]`` and
        ``bn_c`` ``[max_steps, units]``: in ``GLOBAL_VARIABLES`` and `MOVING_STATISTICS`.

    Attributes:
        state_size, output_size: what ``dynamic_rnn`` asks of a cell.

    Source: Cooijmans et al. 2016 (arXiv 1603.09025), equations 6 to 8, sections 3, 4 and 5.1.

    Example:
        >>> import bn_graph
        >>> from bn_graph.layers.recurrent import BatchNormLSTMCell
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     x = tf.random.stateless_normal([8, 5, 2], seed=[0, 0])  # 8 examples of 5 steps
        ...     cell = BatchNormLSTMCell(3, is_training=True, max_steps=5)
        ...     outputs, state = tf.nn.dynamic_rnn(cell, x, initial_state=cell.noisy_state(8, is_training=True))
        ...     session.run(tf.global_variables_initializer())
        ...     for variable in bn_graph.moving_statistics()[:2]:
        ...         print(variable.op.name, variable.shape.as_list())
        ...     session.run([tf.shape(outputs), state.step[0]])
        rnn/bn_lstm_cell/bn_x/moving_mean [5, 12]
        rnn/bn_lstm_cell/bn_x/moving_variance [5, 12]
        [array([8, 5, 3], dtype=int32), array([5.], dtype=float32)]
    """

    def __init__(
        self,
        units: int,
        is_training: bool | tf.Tensor,
        max_steps: int,
        *,
        sequence_length: tf.Tensor | Sequence[int] | None = None,
        gamma: float = 0.1,
        decay: averages.Decay = 0.999,
        epsilon: float = 1e-3,
        input_initializer: averages.Initializer | None = None,
        recurrent_initializer: averages.Initializer | None = None,
        name: str = "bn_lstm_cell",
    ):
        """Keeps the settings; the variables are made when the cell is first called, and the inputs' size is known.

        Args:
            units: size of ``h`` and ``c``.
            is_training: Python bool, or scalar bool tensor that is fed at each run.
            max_steps: rows of the moving statistics: the longest sequence of the training data.
            sequence_length: of each example, int ``[batch]``, from 1 up, the same as ``dynamic_rnn`` is given; counted from
                the sequence's start where a state is carried on. None if all are as long as the batch.
            gamma: every gamma's first value. 1 saturates the gates' nonlinearities, and gradients vanish.
            decay: weight of the old value in the moving statistics, in [0, 1], or a schedule of it: see
                `bn_graph.batch_norm_wrapper`.
            epsilon: added to the variance inside the root, above 0.
            input_initializer: of ``input_kernel``; the variable scope's if None.
            recurrent_initializer: of ``recurrent_kernel``; orthogonal if None.
            name: variable scope. A second cell of this name in one scope needs ``reuse``, as any variable does.

        Raises:
            ValueError: `units` or `max_steps` is no whole number from 1 up; `is_training` is neither a bool nor a scalar
                bool tensor; `decay` or `epsilon` is out of its range.
        """
        for argument, value in (("units", units), ("max_steps", max_steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{argument} must be a whole number from 1 up, got {value!r}.")
        self._units = units
        self._training = arguments.checked_is_training(is_training)
        self._max_steps = max_steps
        self._sequence_length = sequence_length
        self._gamma = gamma
        (self._decay,) = arguments.checked_constants(epsilon=epsilon, decay=decay)
        self._epsilon = epsilon
        self._initializers = (input_initializer, recurrent_initializer or tf.orthogonal_initializer())
        self._name = name
        self._weights: _Weights | None = None
        arguments.check_graph_mode()

    @property
    def state_size(self) -> LSTMState:
        return LSTMState(c=self._units, h=self._units, step=1)

    @property
    def output_size(self) -> int:
        return self._units

    def zero_state(self, batch_size: int | tf.Tensor, dtype: tf.DType = tf.float32) -> LSTMState:
        """The state before step 0, with ``c`` and ``h`` zero: what ``dynamic_rnn`` begins with if it is given ``dtype=``.

        Args:
            batch_size: Python int or scalar int tensor.
            dtype: float32 or float64, that of the inputs.
        """
        return LSTMState(*(tf.zeros([batch_size, size], dtype) for size in self.state_size))

    def noisy_state(
        self,
        batch_size: int | tf.Tensor,
        dtype: tf.DType = tf.float32,
        *,
        is_training: bool | tf.Tensor,
        stddev: float = 0.1,
        seed: int | None = None,
    ) -> LSTMState:
        """`zero_state` with Gaussian noise in ``h`` in training, so that the hidden term varies from the first step on.

        At inference there is no noise, and the answer is the same each time: the noise's mean is 0, and so normalizes to
        what the zero state does.

        Args:
            batch_size, dtype: as in `zero_state`.
            is_training: as of the cell.
            stddev: of the noise. Its size hardly matters, for normalization takes it to gamma.
            seed: of the op.

        Source: Cooijmans et al. 2016, section 5.1; the standard deviation is that of the authors' published commands.

        Example:
            >>> from bn_graph.layers.recurrent import BatchNormLSTMCell
            >>> from bn_graph.tf1 import tf
            >>> with tf.Graph().as_default(), tf.Session() as session:
            ...     is_training = tf.placeholder(tf.bool, [])
            ...     cell = BatchNormLSTMCell(2, is_training, max_steps=5)
            ...     state = cell.noisy_state(1000, is_training=is_training, seed=0)
            ...     [bool(session.run(tf.math.reduce_std(state.h), {is_training: flag}) > 0) for flag in (True, False)]
            [True, False]
        """
        training = arguments.checked_is_training(is_training)
        state = self.zero_state(batch_size, dtype)
        noise = tf.random_normal([batch_size, self._units], 0.0, stddev, dtype, seed=seed)
        return state._replace(h=noise * tf.cast(training, dtype))

    def __call__(
        self, inputs: tf.Tensor, state: Sequence[tf.Tensor], scope: str | None = None
    ) -> tuple[tf.Tensor, LSTMState]:
        """One step; ``dynamic_rnn`` calls this.

        Args:
            inputs: ``[batch, inputs]``, float32 or float64, the last dimension known.
            state: as `LSTMState`, of the inputs' dtype.
            scope: variable scope in place of the cell's name.

        Returns:
            ``(h, the next state)``.

        Raises:
            ValueError: the rank is not 2 or the number of inputs is unknown; the state has other parts; or, with
                ``is_training=True``, a static batch of one example.
            TypeError: the dtype is another.
            tf.errors.InvalidArgumentError: at a training run with a batch of one example; or without ``sequence_length``
                and with examples that are not at the same step.
        """
        state = self._checked(inputs, state)
        with tf.variable_scope(scope or self._name):
            if self._weights is None:
                self._weights = self._create(inputs.shape.as_list()[1], inputs.dtype)
            weights = self._weights
            state = state._replace(step=self._checked_step(inputs, state.step))
            running = None
            if self._sequence_length is not None:
                length = tf.cast(self._sequence_length, state.step.dtype)
                running = tf.less(state.step, length[:, tf.newaxis], name="running")
                # What pads a sequence may be NaN, and 0·NaN is NaN, in the statistics and in the kernel's gradient.
                inputs = tf.where(tf.broadcast_to(running, tf.shape(inputs)), inputs, tf.zeros_like(inputs))
            hidden_term = self._normalize(
                tf.matmul(state.h, weights.recurrent_kernel), weights.bn_h, state.step, running
            )
            input_term = self._normalize(tf.matmul(inputs, weights.input_kernel), weights.bn_x, state.step, running)
            forget, write, read, candidate = tf.split(hidden_term + input_term + weights.bias, _GATES, axis=1)
            c = tf.sigmoid(forget) * state.c + tf.sigmoid(write) * tf.tanh(candidate)
            h = tf.sigmoid(read) * tf.tanh(self._normalize(c, weights.bn_c, state.step, running))
            # The next step finds its row by this count, so that it reads a row it shares after this step has moved it.
            with tf.control_dependencies([h]):
                step = state.step + 1.0
            return h, LSTMState(c, h, step)

    def _checked(self, inputs: tf.Tensor, state: Sequence[tf.Tensor]) -> LSTMState:
        if inputs.dtype not in _DTYPES:
            raise TypeError(
                f"BatchNormLSTMCell takes inputs of float32 or float64, got {inputs.dtype.name}; cast them."
            )
        if inputs.shape.rank != 2 or inputs.shape.as_list()[1] is None:
            raise ValueError(
                f"BatchNormLSTMCell takes inputs of shape [batch, inputs] a step, the last known, got {inputs.shape}."
            )
        if self._training is True and inputs.shape.as_list()[0] == 1:
            raise ValueError(
                "BatchNormLSTMCell needs two examples or more to train on: the mean of one is that one. Got inputs of "
                f"shape {inputs.shape} with is_training=True."
            )
        parts = tuple(state)
        if len(parts) != len(LSTMState._fields):
            raise ValueError(
                f"The state of a BatchNormLSTMCell is LSTMState(c, h, step), got {len(parts)} parts; make the first with "
                "the cell's zero_state or noisy_state."
            )
        return LSTMState(*parts)

    def _create(self, inputs: int, dtype: tf.DType) -> _Weights:
        width = _GATES * self._units
        input_initializer, recurrent_initializer = self._initializers
        with tf.variable_scope(tf.get_variable_scope(), use_resource=True, auxiliary_name_scope=False) as scope:
            scope.set_partitioner(None)  # a statistic in parts could neither be assigned nor be read by rows
            return _Weights(
                tf.get_variable("input_kernel", [inputs, width], dtype, input_initializer),
                tf.get_variable("recurrent_kernel", [self._units, width], dtype, recurrent_initializer),
                tf.get_variable("bias", [width], dtype, _forget_gate_open),
                self._create_layer("bn_x", width, dtype),
                self._create_layer("bn_h", width, dtype),
                self._create_layer("bn_c", self._units, dtype, center=True),
            )

    def _create_layer(self, name: str, channels: int, dtype: tf.DType, center: bool = False) -> LayerVariables:
        shape = [self._max_steps, channels]
        with tf.variable_scope(name, auxiliary_name_scope=False):
            gamma = tf.get_variable("gamma", [channels], dtype, tf.constant_initializer(self._gamma))
            beta = tf.get_variable("beta", [channels], dtype, tf.zeros_initializer()) if center else None
            mean = tf.get_variable("moving_mean", shape, dtype, tf.zeros_initializer(), trainable=False)
            variance = tf.get_variable("moving_variance", shape, dtype, tf.ones_initializer(), trainable=False)
        averages.register(mean)
        averages.register(variance)
        return LayerVariables(gamma, beta, mean, variance)

    def _normalize(
        self, inputs: tf.Tensor, layer: LayerVariables, step: tf.Tensor, running: tf.Tensor | None
    ) -> tf.Tensor:
        with tf.name_scope(layer.gamma.op.name.split("/")[-2]):
            return transforms.by_mode(
                self._training,
                lambda: self._by_batch(inputs, layer, step, running),
                lambda: self._by_moving_statistics(inputs, layer, step),
            )

    def _checked_step(self, inputs: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """`step` behind the checks of a training batch; the rows that are updated are found by it."""

        def checked() -> tf.Tensor:
            checks = [_assert_two_examples(inputs)]
            if self._sequence_length is None:
                checks.append(_assert_same_step(step))
            with tf.control_dependencies(checks):
                return tf.identity(step)

        return transforms.by_mode(self._training, checked, lambda: tf.identity(step))

    def _row(self, step: tf.Tensor) -> tf.Tensor:
        return tf.minimum(tf.cast(step, tf.int32), self._max_steps - 1)

    def _by_moving_statistics(self, inputs: tf.Tensor, layer: LayerVariables, step: tf.Tensor) -> tf.Tensor:
        # Each example by its own step, so that no answer depends on what else is in the batch.
        mean, variance = (tf.gather(statistic, self._row(step[:, 0])) for statistic in layer[2:])
        return moments.normalize(inputs - mean, variance, layer.gamma, layer.beta, self._epsilon)

    def _by_batch(
        self, inputs: tf.Tensor, layer: LayerVariables, step: tf.Tensor, running: tf.Tensor | None
    ) -> tf.Tensor:
        row = self._row(tf.reduce_max(step, axis=0))
        (decay,) = averages.decays_in_a_run(inputs.dtype, decay=self._decay)
        share = tf.convert_to_tensor(1.0 - decay, inputs.dtype)
        if self._sequence_length is None:
            centered, mean, variance, _ = moments.batch_statistics(inputs, [0])
            updates = _move_row(layer[2:], row, mean, variance, share)
        else:
            centered, mean, variance, count = moments.weighted_statistics(inputs, [0], running)
            alone = count < 2.0
            moving_mean, moving_variance = (tf.gather(statistic, row) for statistic in layer[2:])
            updates = _move_row(layer[2:], row, mean, variance, share * tf.cast(count > 1.0, share.dtype))
            centered += tf.where(alone, mean - moving_mean, tf.zeros_like(mean))
            variance = tf.where(alone, moving_variance, variance)
        with tf.control_dependencies(updates):
            return tf.identity(moments.normalize(centered, variance, layer.gamma, layer.beta, self._epsilon))


def _forget_gate_open(shape: Sequence[int], dtype: tf.DType = tf.float32, partition_info=None) -> tf.Tensor:
    units = shape[0] // _GATES
    return tf.concat([tf.ones([units], dtype), tf.zeros([shape[0] - units], dtype)], axis=0)


def _assert_two_examples(inputs: tf.Tensor) -> tf.Operation:
    message = "BatchNormLSTMCell needs two examples or more to train on: the mean of one is that one. The batch had"
    examples = tf.shape(inputs)[0]
    return _assert(examples > 1, message, examples)


def _assert_same_step(step: tf.Tensor) -> tf.Operation:
    message = (
        "BatchNormLSTMCell was given no sequence_length, and the examples of a training batch are at different steps. Give "
        "the cell the sequence_length that dynamic_rnn has, so that padding stays out of the statistics. Steps:"
    )
    return _assert(tf.equal(tf.reduce_min(step), tf.reduce_max(step)), message, step)


def _assert(condition: tf.Tensor, *data) -> tf.Operation:
    # The op itself: tf.debugging.Assert puts a cond around it, which costs more than the check.
    return tf.raw_ops.Assert(condition=condition, data=data)


def _move_row(
    statistics: Sequence[tf.Variable], row: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, share: tf.Tensor
) -> list[tf.Operation]:
    """``averages.exponential_average`` of one row: row ← row·decay + batch·(1 − decay), `share` being 1 − decay."""
    ops = []
    for variable, batch in zip(statistics, (mean, variance), strict=True):
        with tf.name_scope("AssignMovingAvg") as scope:
            step = (tf.gather(variable, row) - tf.stop_gradient(batch)) * share
            ops.append(tf.raw_ops.ResourceScatterSub(resource=variable.handle, indices=row, updates=step, name=scope))
    return ops
