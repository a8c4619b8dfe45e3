"""The layers' checks of their arguments, when the graph is built and when it runs, and the messages of both."""

import enum
import math
from collections.abc import Callable, Mapping, Sequence

from bn_graph.layers.averages import Decay
from bn_graph.layers.transforms import Axis, kept_axes, reduced_axes
from bn_graph.tf1 import tf

__all__ = [
    "FUSED",
    "Average",
    "Method",
    "both",
    "check_graph_mode",
    "checked_axis",
    "checked_clipping",
    "checked_constants",
    "checked_fused",
    "checked_is_training",
    "checked_tensors",
    "refuse_static_single_value",
    "resolve_average",
    "resolve_method",
    "weights_shape_checks",
    "with_run_time_checks",
]

_CLIPPING_KEYS = ("rmin", "rmax", "dmax")
_ONE_VALUE = (
    "Batch normalization in training needs at least two values per channel: the mean of one value is that value, so "
    "every output would be beta whatever the input. To predict, build or feed is_training=False; in training, use a "
    "larger batch"
)
_NO_VALUE = "Batch normalization in training needs a value per channel: an empty batch has neither mean nor variance"


def check_graph_mode() -> None:
    """Raises in eager mode, where there is no graph to build the layer in."""
    if tf.executing_eagerly():
        raise RuntimeError(
            "The layers of bn_graph are built in a graph, and eager execution is on. Build inside `with "
            "tf.Graph().as_default():` and run in a tf.compat.v1.Session, wrap the building function by "
            "tf.compat.v1.wrap_function, or call tf.compat.v1.disable_eager_execution() when the program starts."
        )


class Method(enum.Enum):
    """How a training batch is normalized; what excludes each other is one of these."""

    MOMENTS = "by its moments, weighted or not"
    FUSED_KERNEL = "by its moments, with TensorFlow's fused kernel"
    VIRTUAL_BATCHES = "each virtual batch by its own moments"
    RENORM = "by its moments, corrected toward moving ones"
    ALL_WORKERS = "by the moments of all workers' batches"
    KERNELS_OF_ALL_WORKERS = "by the moments of all workers' batches, with TensorFlow's fused kernels"


FUSED = (Method.FUSED_KERNEL, Method.KERNELS_OF_ALL_WORKERS)
"""Those that normalize by TensorFlow's fused kernel, at inference too."""


class Average(enum.Enum):
    """How the moving statistics follow the batches'."""

    EXPONENTIAL = "exponential"
    DEBIASED = "exponential, without the share of the start values"
    CUMULATIVE = "cumulative"
    RENORM = "exponential, of mean and standard deviation"


def checked_axis(inputs: tf.Tensor, axis: int | Sequence[int]) -> Axis:
    """The kept axis counted from the front, or all if several are; raises where the layer can't work with `inputs`."""
    if not inputs.dtype.is_floating:
        raise TypeError(
            f"inputs must be a float tensor (float16, bfloat16, float32, float64), got {inputs.dtype.name}."
        )
    rank = inputs.shape.rank
    if rank is None or not 2 <= rank <= 5:
        raise ValueError(f"inputs must have a known rank from 2 to 5, got shape {inputs.shape}.")
    axes = list(axis) if isinstance(axis, list | tuple) else [axis]
    if not axes or any(
        isinstance(each, bool) or not isinstance(each, int) or not -rank <= each < rank for each in axes
    ):
        raise ValueError(
            f"axis must be an integer from {-rank} to {rank - 1} for inputs of rank {rank}, or a list of such, got {axis!r}."
        )
    kept = tuple(sorted({each % rank for each in axes}))
    if len(kept) < len(axes) or len(kept) == rank:
        raise ValueError(f"axis must list each kept axis once and leave one to average over, got {axis!r}.")
    if any(inputs.shape.as_list()[each] is None for each in kept):
        raise ValueError(
            f"inputs must have a known size in the channel axis (axis={axis}), got shape {inputs.shape}. "
            "Set it with inputs.set_shape(...) or name another axis."
        )
    return kept if len(kept) > 1 else kept[0]


def checked_tensors(
    inputs: tf.Tensor, axis: int | Sequence[int], is_training: bool | tf.Tensor, weights: tf.Tensor | None
) -> tuple[tf.Tensor, Axis, bool | tf.Tensor, tf.Tensor | None]:
    """The four, converted and checked: see `checked_axis` and `checked_is_training`."""
    check_graph_mode()
    inputs = tf.convert_to_tensor(inputs, name="inputs")
    weights = None if weights is None else tf.convert_to_tensor(weights, name="weights")
    axis, training = checked_axis(inputs, axis), checked_is_training(is_training)
    if weights is not None:
        _check_weights(weights, inputs)
    return inputs, axis, training, weights


def checked_is_training(is_training: bool | tf.Tensor, argument: str = "is_training") -> bool | tf.Tensor:
    """True or False where the flag is known while the graph is built, else a scalar bool tensor."""
    if isinstance(is_training, bool):
        return is_training
    dtype = getattr(is_training, "dtype", None)
    if dtype is None or tf.as_dtype(dtype).base_dtype != tf.bool:
        raise ValueError(
            f"{argument} must be a Python bool or a scalar bool tensor, "
            f"got {is_training!r}{'' if dtype is None else f' of dtype {tf.as_dtype(dtype).name}'}."
        )
    flag = tf.convert_to_tensor(is_training)
    if flag.shape.rank not in (None, 0):
        raise ValueError(f"{argument} must be a scalar, got a bool tensor of shape {flag.shape}.")
    known = tf.get_static_value(flag)
    return flag if known is None else bool(known)


def both(one: bool | tf.Tensor, other: bool | tf.Tensor) -> bool | tf.Tensor:
    """Whether both flags are True; a bool where that is known while the graph is built."""
    if one is False or other is False:
        return False
    if one is True or other is True:
        return other if one is True else one
    return tf.logical_and(one, other)


def checked_constants(*, epsilon: float, **decays: Decay) -> list[float | tf.Tensor]:
    """The decays in their order, each in [0, 1] as far as that is known before a run; epsilon must be above 0."""
    if not epsilon > 0.0:
        raise ValueError(f"epsilon keeps the root away from 0 and must be above 0, got {epsilon!r}.")
    return [_checked_decay(name, decay) for name, decay in decays.items()]


def _checked_decay(name: str, decay: Decay) -> float | tf.Tensor:
    value = decay() if callable(decay) else decay
    if not isinstance(value, float | int):
        if not _is_number(value):
            wanted = "a number, a scalar tensor of floats, or a function of no arguments that returns one of these"
            raise ValueError(f"{name} must be {wanted}, got {value!r}.")
        tensor = tf.convert_to_tensor(value, name=name)
        known = tf.get_static_value(tensor)
        if known is None:
            return tensor  # averages.decays_in_a_run checks it
        value = float(known)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is the weight of the old value and must be from 0 to 1, got {value!r}.")
    return value


def _check_weights(weights: tf.Tensor, inputs: tf.Tensor) -> None:
    if not (weights.dtype.is_bool or weights.dtype.is_floating or weights.dtype.is_integer):
        raise TypeError(f"weights must be a mask of bools, or real numbers, got a tensor of {weights.dtype.name}.")
    wanted = "weights must have the shape of the leading dimensions of inputs, such as [batch], or 1 in their place"
    if weights.shape.rank is None:
        raise ValueError(
            f"{wanted}, and a known rank; got a shape of unknown rank. Set it with weights.set_shape(...)."
        )
    pairs = list(zip(weights.shape.as_list(), inputs.shape.as_list(), strict=False))
    if weights.shape.rank > inputs.shape.rank or not all(w in (1, None) or x in (w, None) for w, x in pairs):
        raise ValueError(f"{wanted}; got weights of shape {weights.shape} for inputs of shape {inputs.shape}.")


def checked_clipping(clipping: Mapping[str, float] | None) -> Mapping[str, float]:
    """The clipping of renorm; a key that means nothing is a typing error and would clip nothing."""
    unknown = set(clipping or {}) - set(_CLIPPING_KEYS)
    if unknown:
        raise ValueError(
            f"renorm_clipping may have the keys {', '.join(_CLIPPING_KEYS)}, got {', '.join(sorted(unknown))}."
        )
    for key, bound in (clipping or {}).items():
        if not _is_number(bound):
            raise ValueError(f"renorm_clipping[{key!r}] must be a number or a scalar tensor of numbers, got {bound!r}.")
    return clipping or {}


def _is_number(value: object) -> bool:
    if isinstance(value, int | float):
        return not isinstance(value, bool)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return False
    dtype = tf.as_dtype(value.dtype)
    return (dtype.is_floating or dtype.is_integer) and tf.TensorShape(value.shape).rank in (0, None)


def resolve_average(average: str, *, zero_debias: bool, renorm: bool) -> Average:
    """The estimator; raises where it does not exist or the options ask for two."""
    if average not in ("exponential", "cumulative"):
        raise ValueError(f"average must be one of exponential, cumulative, got {average!r}.")
    if average == "cumulative" and (zero_debias or renorm):
        raise ValueError("average='cumulative' has no start to debias and goes with neither zero_debias nor renorm.")
    if zero_debias and renorm:
        raise ValueError("zero_debias and renorm exclude each other: renorm has an estimator of its own.")
    if average == "cumulative":
        return Average.CUMULATIVE
    return Average.RENORM if renorm else Average.DEBIASED if zero_debias else Average.EXPONENTIAL


def resolve_method(
    inputs: tf.Tensor,
    axis: Axis,
    fused: bool | None,
    virtual_batch_size: int | None,
    renorm: bool,
    weights: tf.Tensor | None,
    sync: Callable | None,
    sync_population_only: bool,
) -> Method:
    """How training batches are normalized; raises where the options ask for two methods, or for an impossible one."""
    options = {
        "virtual_batch_size": virtual_batch_size is not None,
        "renorm": renorm,
        "weights": weights is not None,
        "sync": sync is not None,
    }
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1 and given != ["weights", "sync"]:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them.")
    if isinstance(axis, tuple) and (weights is not None or sync is not None):
        raise ValueError(
            f"{given[0]} needs one channel axis, and axis={list(axis)} keeps several: put these into one by tf.reshape "
            f"(and tf.transpose) before the layer, or leave out {given[0]}."
        )
    _check_virtual_batches(inputs, axis, virtual_batch_size)
    _check_sync(sync, sync_population_only)
    plain = given in ([], ["sync"])
    if checked_fused(fused, inputs, axis, plain=plain):
        return Method.FUSED_KERNEL if sync is None or sync_population_only else Method.KERNELS_OF_ALL_WORKERS
    if sync is not None and not sync_population_only:
        return Method.ALL_WORKERS
    return Method.RENORM if renorm else Method.VIRTUAL_BATCHES if virtual_batch_size else Method.MOMENTS


def _check_sync(sync: Callable | None, population_only: bool) -> None:
    if sync is not None and not callable(sync):
        raise ValueError(
            "sync must be a function that puts all workers' vectors together, as "
            f"bn_graph.training.distributed.gatherer makes it; got {sync!r}."
        )
    if population_only and sync is None:
        raise ValueError(
            "sync_population_only restricts what sync is for, and there is no sync: give it, or leave out both."
        )


def _check_virtual_batches(inputs: tf.Tensor, axis: Axis, size: int | None) -> None:
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"virtual_batch_size must be a whole number from 1 up, got {size!r}.")
    if 0 in kept_axes(axis):
        raise ValueError("virtual_batch_size cuts axis 0 into virtual batches, so the channel axis can't be axis 0.")
    batch = inputs.shape.as_list()[0]
    if batch is not None and batch % size:
        raise ValueError(
            f"The batch must be a multiple of virtual_batch_size={size}, got inputs of shape {inputs.shape}."
        )


def checked_fused(fused: bool | None, inputs: tf.Tensor, axis: Axis, *, plain: bool) -> bool:
    """Whether to use the fused kernel (`plain`: no option that it lacks); raises where it is asked for and can't do it."""
    reasons = []
    if inputs.shape.rank != 4 or axis != 3:
        reasons.append(f"inputs of rank 4 with the channels last, not rank {inputs.shape.rank} with axis {axis}")
    if inputs.dtype == tf.float64:
        reasons.append("at most float32, not float64")
    if not plain:
        reasons.append("neither virtual_batch_size nor renorm nor weights")
    if fused and reasons:
        raise ValueError(f"fused=True needs {'; '.join(reasons)}. Leave fused out to have it where it applies.")
    return not reasons if fused is None else fused


def refuse_static_single_value(
    inputs: tf.Tensor, axis: Axis, training: bool | tf.Tensor, method: Method = Method.MOMENTS
) -> None:
    """Raises where training is sure and the static shape allows no output but beta; other workers may have more values."""
    sizes = [inputs.shape.as_list()[dimension] for dimension in reduced_axes(inputs, axis)]
    of_all_workers = method in (Method.ALL_WORKERS, Method.KERNELS_OF_ALL_WORKERS)
    if training is True and not of_all_workers and None not in sizes and math.prod(sizes) < 2:
        raise ValueError(f"{_ONE_VALUE}. Got inputs of shape {inputs.shape} with is_training=True.")


def with_run_time_checks(
    inputs: tf.Tensor,
    axis: Axis,
    *,
    weights: tf.Tensor | None = None,
    virtual_batch_size: int | None = None,
    unbiased: bool = False,
    may_be_single: bool = False,
) -> tf.Tensor:
    """`inputs` of a training batch, behind assertions of what is only known in a run.

    `may_be_single`: one value per channel is enough, as it is to contrib.
    """
    checks = [
        *_values_checks(inputs, axis, virtual_batch_size, may_be_single),
        *([] if weights is None else _weights_checks(inputs, axis, weights, unbiased)),
    ]
    if not checks:
        return inputs
    with tf.control_dependencies(checks):
        return tf.identity(inputs)


def _values_checks(
    inputs: tf.Tensor, axis: Axis, virtual_batch_size: int | None, may_be_single: bool
) -> list[tf.Operation]:
    """Two values per channel and statistic, or one; a whole number of virtual batches."""
    least, message = (1, _NO_VALUE) if may_be_single else (2, _ONE_VALUE)
    checks = []
    reduced = reduced_axes(inputs, axis)
    sizes = [inputs.shape.as_list()[dimension] for dimension in reduced]
    shape = tf.shape(inputs)
    per_statistic = [virtual_batch_size, *sizes[1:]] if virtual_batch_size else sizes
    if None in per_statistic or math.prod(per_statistic) < least:
        values = tf.reduce_prod(tf.gather(shape, reduced))
        if virtual_batch_size:
            values = values // tf.maximum(shape[0] // virtual_batch_size, 1)
            message = message.replace("larger batch", "larger virtual_batch_size")
        checks.append(tf.debugging.Assert(values >= least, [f"{message}. The inputs' shape was", shape]))
    if virtual_batch_size and sizes[0] is None:
        message = f"batch_norm_wrapper needs a batch that is a multiple of virtual_batch_size={virtual_batch_size}, got"
        whole = tf.equal(shape[0] % virtual_batch_size, 0)
        checks.append(tf.debugging.Assert(tf.logical_and(whole, shape[0] > 0), [message, shape]))
    return checks


def weights_shape_checks(inputs: tf.Tensor, weights: tf.Tensor) -> list[tf.Operation]:
    """An assertion that the weights' shape fits, where that is only known in a run."""
    if None in weights.shape.as_list() or None in inputs.shape.as_list()[: weights.shape.rank]:
        sizes, wanted = tf.shape(weights), tf.shape(inputs)[: weights.shape.rank]
        fits = tf.reduce_all(tf.logical_or(tf.equal(sizes, wanted), tf.equal(sizes, 1)))
        message = (
            "weights must have the shape of the leading dimensions of inputs, or 1 in their place; their shapes were"
        )
        return [tf.debugging.Assert(fits, [message, sizes, tf.shape(inputs)])]
    return []


def _weights_checks(inputs: tf.Tensor, axis: Axis, weights: tf.Tensor, unbiased: bool) -> list[tf.Operation]:
    """A shape that fits; no negative weight; a sum that the mean, and Bessel's correction, can divide by."""
    checks = weights_shape_checks(inputs, weights)
    message = "batch_norm_wrapper needs weights that are not negative and do not all vanish; their sum and least were"
    weights = tf.cast(weights, tf.float32)
    total, least = tf.reduce_sum(weights), tf.reduce_min(weights)
    checks.append(tf.debugging.Assert(tf.logical_and(total > 0, least >= 0), [message, total, least]))
    if unbiased:
        values_per_weight = tf.cast(tf.size(inputs), tf.float32) / tf.cast(tf.size(weights), tf.float32)
        enough = total * values_per_weight / inputs.shape.as_list()[axis] > 1.0
        message = (
            "unbiased_variance divides by the weights' sum less 1, so they must sum to more than 1 per channel; got"
        )
        checks.append(tf.debugging.Assert(enough, [message, total]))
    return checks
