"""``batch_norm_wrapper``: batch normalization of one layer's inputs, in training and at inference.

==================  =======================  =============================================  =====================
`is_training`       normalizes with          updates                                        reads
==================  =======================  =============================================  =====================
``True``            the batch's statistics   the moving statistics, at each run             gamma, beta
``False``           the moving statistics    nothing; the graph has no update op            all four variables
bool tensor         by the value it is fed   only when it is fed True, inside the branch    all four variables
==================  =======================  =============================================  =====================
"""

import math

from bn_graph.layers import moments, population
from bn_graph.tf1 import tf

__all__ = ["batch_norm_wrapper"]


def batch_norm_wrapper(
    inputs: tf.Tensor,
    is_training: bool | tf.Tensor,
    *,
    decay: float = 0.999,
    epsilon: float = 1e-3,
    axis: int = -1,
    updates_collection: str | None = None,
    name: str | None = None,
) -> tf.Tensor:
    """Normalizes `inputs` per channel: y = gamma·(x − μ)/√(σ² + epsilon) + beta.

    In training μ and σ² are the batch's own (σ² biased, 1/m), and the moving statistics take one step toward them:
    moving ← moving·decay + batch·(1 − decay). At inference μ and σ² are the moving statistics, so that one example
    gets the same answer alone as in any batch.

    Args:
        inputs: float16, bfloat16, float32 or float64 tensor of rank 2 to 5 with a known channel dimension; the
            others may be unknown.
        is_training: Python bool, or scalar bool tensor that is fed at each run. It has no default: the wrong one
            is silent.
        decay: weight of the old value in the moving statistics, in [0, 1]. Nearer to 1 with more data.
            PyTorch's ``momentum`` is 1 − decay.
        epsilon: added to the variance inside the root, above 0.
        axis: the channel axis, the one that is kept. All others are averaged over.
        updates_collection: None (the default) makes the update a dependency of the returned tensor, so that it can't
            be forgotten. A key, such as ``tf.GraphKeys.UPDATE_OPS``, puts the update op into that collection
            instead, and the train op must then depend on it.
        name: variable scope; ``batch_normalization``, made unique, if None.

    Returns:
        A tensor of the shape and dtype of `inputs`.

    Variables (shape ``[channels]``; float32 for half-precision inputs, else the inputs' dtype):
        ``gamma`` (1), ``beta`` (0): in ``GLOBAL_VARIABLES`` and ``TRAINABLE_VARIABLES``.
        ``moving_mean`` (0), ``moving_variance`` (1): in ``GLOBAL_VARIABLES`` and `MOVING_STATISTICS`.
        The names and shapes are those of ``tf.compat.v1.layers.batch_normalization``.

    Raises:
        ValueError: unknown rank or channel dimension, rank outside 2 to 5, `axis` outside the rank; `is_training`
            neither a bool nor a scalar bool tensor; `decay` outside [0, 1]; `epsilon` not above 0; or, with
            ``is_training=True``, a static shape with fewer than two values per channel.
        TypeError: `inputs` are not floats.
        tf.errors.InvalidArgumentError: at a training run that is fed fewer than two values per channel. The mean
            of one value is that value, so every output would be beta whatever the input, and an empty batch would
            turn the moving statistics into NaN. (PyTorch refuses the same.) Nothing is updated.

    Source: r2rt, "Implementing Batch Normalization in Tensorflow", *Fixing the model for test time*; Ioffe &
    Szegedy 2015, Algorithms 1 and 2.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     x = tf.placeholder(tf.float32, [None, 1])
        ...     is_training = tf.placeholder(tf.bool, [])
        ...     y = bn_graph.batch_norm_wrapper(x, is_training, decay=0.5, name="bn1")
        ...     session.run(tf.global_variables_initializer())
        ...     _ = session.run(y, {x: [[2.0], [6.0]], is_training: True})
        ...     session.run(bn_graph.moving_statistics())  # 0·0.5 + 4·0.5 and 1·0.5 + 4·0.5
        [array([2.], dtype=float32), array([2.5], dtype=float32)]
    """
    inputs = tf.convert_to_tensor(inputs, name="inputs")
    axis = _checked_axis(inputs, axis)
    training = _checked_is_training(is_training)
    _check_constants(decay, epsilon)
    if training is True:
        _refuse_static_single_value(inputs, axis)

    channels = inputs.shape.as_list()[axis]
    dtype = moments.compute_dtype(inputs.dtype)
    with tf.variable_scope(name, default_name="batch_normalization"):
        gamma = tf.get_variable("gamma", [channels], dtype, tf.ones_initializer())
        beta = tf.get_variable("beta", [channels], dtype, tf.zeros_initializer())
        statistics = population.create(channels, dtype)

        def normalize(centered: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
            shaped = [_along(axis, inputs, vector) for vector in (variance, gamma, beta)]
            return tf.cast(moments.normalize(centered, *shaped, epsilon), inputs.dtype)

        def by_batch() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            checked = _with_run_time_check(inputs, axis)
            centered, mean, variance = moments.batch_statistics(checked, _reduced_axes(inputs, axis))
            mean, variance = tf.reshape(mean, [channels]), tf.reshape(variance, [channels])
            return normalize(centered, variance), mean, variance

        def by_population() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            mean, variance = (variable.read_value() for variable in statistics)
            centered = tf.cast(inputs, dtype) - _along(axis, inputs, mean)
            return normalize(centered, variance), mean, variance

        if training is False:
            outputs, _, _ = by_population()
            return _shaped_like(inputs, outputs)
        outputs, mean, variance = by_batch() if training is True else tf.cond(training, by_batch, by_population)

        def update() -> tf.Operation:
            return population.exponential_update(statistics, mean, variance, decay)

        update_op = update() if training is True else population.run_when(training, update, statistics)
        if updates_collection is not None:
            tf.add_to_collection(updates_collection, update_op)
            return _shaped_like(inputs, outputs)
        with tf.control_dependencies([update_op]):
            return _shaped_like(inputs, outputs)


def _checked_axis(inputs: tf.Tensor, axis: int) -> int:
    """The channel axis counted from the front; raises where the wrapper can't work with `inputs`."""
    if not inputs.dtype.is_floating:
        raise TypeError(
            f"inputs must be a float tensor (float16, bfloat16, float32, float64), got {inputs.dtype.name}."
        )
    rank = inputs.shape.rank
    if rank is None or not 2 <= rank <= 5:
        raise ValueError(f"inputs must have a known rank from 2 to 5, got shape {inputs.shape}.")
    if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
        raise ValueError(f"axis must be an integer from {-rank} to {rank - 1} for inputs of rank {rank}, got {axis!r}.")
    if inputs.shape.as_list()[axis] is None:
        raise ValueError(
            f"inputs must have a known size in the channel axis (axis={axis}), got shape {inputs.shape}. "
            "Set it with inputs.set_shape(...) or name another axis."
        )
    return axis % rank


def _checked_is_training(is_training: bool | tf.Tensor) -> bool | tf.Tensor:
    """True or False where the flag is known while the graph is built, else a scalar bool tensor."""
    if isinstance(is_training, bool):
        return is_training
    dtype = getattr(is_training, "dtype", None)
    if dtype is None or tf.as_dtype(dtype).base_dtype != tf.bool:
        raise ValueError(
            "is_training must be a Python bool or a scalar bool tensor, "
            f"got {is_training!r}{'' if dtype is None else f' of dtype {tf.as_dtype(dtype).name}'}."
        )
    flag = tf.convert_to_tensor(is_training)
    if flag.shape.rank not in (None, 0):
        raise ValueError(f"is_training must be a scalar, got a bool tensor of shape {flag.shape}.")
    known = tf.get_static_value(flag)
    return flag if known is None else bool(known)


def _check_constants(decay: float, epsilon: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is the weight of the old value and must be from 0 to 1, got {decay!r}.")
    if not epsilon > 0.0:
        raise ValueError(f"epsilon keeps the root away from 0 and must be above 0, got {epsilon!r}.")


def _reduced_axes(inputs: tf.Tensor, axis: int) -> list[int]:
    return [dimension for dimension in range(inputs.shape.rank) if dimension != axis]


def _along(axis: int, inputs: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    """`vector` of shape [channels], shaped to broadcast along `axis`; the last axis needs no reshaping."""
    rank = inputs.shape.rank
    if axis == rank - 1:
        return tf.convert_to_tensor(vector)
    return tf.reshape(vector, [-1 if dimension == axis else 1 for dimension in range(rank)])


def _shaped_like(inputs: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    outputs = tf.identity(outputs, name="outputs")
    outputs.set_shape(inputs.shape)
    return outputs


_ONE_VALUE = (
    "batch_norm_wrapper in training needs at least two values per channel: the mean of one value is that value, so every "
    "output would be beta whatever the input. To predict, build or feed is_training=False; in training, use a larger batch"
)


def _refuse_static_single_value(inputs: tf.Tensor, axis: int) -> None:
    sizes = [inputs.shape.as_list()[dimension] for dimension in _reduced_axes(inputs, axis)]
    if None not in sizes and math.prod(sizes) < 2:
        raise ValueError(f"{_ONE_VALUE}. Got inputs of shape {inputs.shape} with is_training=True.")


def _with_run_time_check(inputs: tf.Tensor, axis: int) -> tf.Tensor:
    """`inputs`, behind an assertion where only a run can tell how many values per channel there are."""
    reduced = _reduced_axes(inputs, axis)
    sizes = [inputs.shape.as_list()[dimension] for dimension in reduced]
    if None not in sizes and math.prod(sizes) > 1:
        return inputs
    shape = tf.shape(inputs)
    values = tf.reduce_prod(tf.gather(shape, reduced))
    with tf.control_dependencies([tf.debugging.Assert(values > 1, [f"{_ONE_VALUE}. The inputs' shape was", shape])]):
        return tf.identity(inputs)
