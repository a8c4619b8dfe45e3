"""``batch_norm_wrapper``: batch normalization of one layer's inputs, in training and at inference.

==================  =======================  =============================================  =====================
`is_training`       normalizes with          updates                                        reads
==================  =======================  =============================================  =====================
``True``            the batch's statistics   the moving statistics, at each run             gamma, beta
``False``           the moving statistics    nothing; the graph has no update op            all four variables
bool tensor         by the value it is fed   only when it is fed True, inside the branch    all four variables
==================  =======================  =============================================  =====================

What each further argument changes is in `batch_norm_wrapper`'s docstring; how a batch is normalized, in `transforms`;
how the statistics move, in `population`; what is refused, in `arguments`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from bn_graph.layers import arguments, averages, moments, synchronized, transforms
from bn_graph.tf1 import tf

__all__ = ["LAYERS", "Parameters", "batch_norm_wrapper", "connect"]

LAYERS = "bn_graph_layers"
"""Graph collection of one JSON string a layer call: its scope, inputs, channel axis and statistics, by name."""


class Parameters(NamedTuple):
    """The variables of one layer; `gamma` or `beta` is None where the layer has none."""

    gamma: tf.Variable | None
    beta: tf.Variable | None
    statistics: averages.MovingStatistics


def batch_norm_wrapper(
    inputs: tf.Tensor,
    is_training: bool | tf.Tensor,
    *,
    decay: float = 0.999,
    epsilon: float = 1e-3,
    axis: int = -1,
    center: bool = True,
    scale: bool = True,
    beta_initializer: averages.Initializer | None = None,
    gamma_initializer: averages.Initializer | None = None,
    moving_mean_initializer: averages.Initializer | None = None,
    moving_variance_initializer: averages.Initializer | None = None,
    beta_regularizer: Callable[[tf.Tensor], tf.Tensor] | None = None,
    gamma_regularizer: Callable[[tf.Tensor], tf.Tensor] | None = None,
    trainable: bool = True,
    updates_collection: str | None = None,
    average: str = "exponential",
    zero_debias: bool = False,
    unbiased_variance: bool = False,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, float] | None = None,
    renorm_decay: float = 0.99,
    weights: tf.Tensor | None = None,
    sync: synchronized.Gather | None = None,
    sync_population_only: bool = False,
    name: str | None = None,
    reuse: bool | None = None,
) -> tf.Tensor:
    """Normalizes `inputs` per channel: y = gamma·(x − μ)/√(σ² + epsilon) + beta.

    In training μ and σ² are the batch's own (σ² biased, 1/m), and the moving statistics take one step toward them:
    moving ← moving·decay + batch·(1 − decay). At inference μ and σ² are the moving statistics, so that one example
    gets the same answer alone as in any batch.

    Args:
        inputs: float16, bfloat16, float32 or float64 tensor of rank 2 to 5 with a known channel dimension; the
            others may be unknown. At inference the batch may be empty.
        is_training: Python bool, or scalar bool tensor that is fed at each run. It has no default: the wrong one
            is silent.
        decay: weight of the old value in the moving statistics, in [0, 1]. Nearer to 1 with more data.
            PyTorch's ``momentum`` is 1 − decay.
        epsilon: added to the variance inside the root, above 0.
        axis: the channel axis, the one that is kept. All others are averaged over.
        center, scale: whether there is a ``beta``, a ``gamma``.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: zeros, ones, zeros
            and ones if None.
        beta_regularizer, gamma_regularizer: add their term to ``REGULARIZATION_LOSSES``.
        trainable: whether ``gamma`` and ``beta`` are. The statistics follow `is_training`, whatever this says.
        updates_collection: None (the default) makes the updates dependencies of the returned tensor, so that they
            can't be forgotten. A key, such as ``tf.GraphKeys.UPDATE_OPS``, puts the two update ops (mean's and
            variance's) into that collection instead, and the train op must depend on them (`bn_graph.train_op` does).
        average: ``"exponential"``, or ``"cumulative"``: every batch since the start counts alike, decay is unused
            (PyTorch's ``momentum=None``).
        zero_debias: takes the share of the start values out of the exponential average, for mean and variance.
        unbiased_variance: the moving variance averages m/(m−1)·σ² (Bessel's correction), as PyTorch, tf.layers' fused
            kernel and the paper's Algorithm 2 do, and not σ², as Keras 3 and tf.layers without the kernel do. It is
            never used for normalizing the batch itself.
        fused: TensorFlow's fused kernel, for rank 4 with the channels last and at most float32; None takes it where
            it applies, since it is faster. Results are those of the other way to float rounding.
        virtual_batch_size: in training, each run of that many examples is normalized by its own statistics (ghost
            batches). The batch must be a multiple of it. The moving statistics are those of whole batches, variance
            *between* virtual batches included (tf.layers leaves it out), and inference knows no virtual batches.
        renorm: batch renormalization: training corrects the batch's statistics toward moving ones.
        renorm_clipping: ``{"rmin", "rmax", "dmax"}``, any of them; unclipped if left out.
        renorm_decay: weight of the old value in the statistics that renorm corrects toward.
        weights: how much each example counts in the statistics: a bool mask, or numbers from 0 up, of shape
            ``[batch]``, or of any leading dimensions of `inputs` (``[batch, time]``), or of their rank and
            broadcastable to them. All are normalized, whatever their weight.
        sync: for training on several workers (processes or towers): puts all workers' vectors together, as
            `bn_graph.training.distributed.gatherer` makes it. Then the batch of which all of this speaks is that of all workers
            together, each example counted alike however many a worker has; gradients flow through the exchange, and the
            moving statistics are at every worker what one process would have on the whole batch. All workers must run
            the layer together, in the same mode. None knows no other worker: each normalizes by its own examples (ghost
            batches of a worker's size), and its moving variance lacks the variance *between* workers.
        sync_population_only: with `sync`, normalizes by the worker's own examples all the same; only the moving
            statistics are those of all workers' examples, variance between workers included. Nothing waits for the
            exchange but the updates.
        name: variable scope; ``batch_normalization``, made unique, if None.
        reuse: as in ``tf.variable_scope``. Layers that share a scope share **one** set of variables, and each that is
            run in training updates it.

    Returns:
        A tensor of the shape and dtype of `inputs`.

    Variables (shape ``[channels]``; float32 for half-precision inputs, else the inputs' dtype):
        ``gamma`` (1), ``beta`` (0): in ``GLOBAL_VARIABLES`` and, if `trainable`, ``TRAINABLE_VARIABLES``.
        ``moving_mean`` (0), ``moving_variance`` (1): in ``GLOBAL_VARIABLES`` and `MOVING_STATISTICS`; likewise
        ``moving_count`` (cumulative), ``moving_mean/biased``, ``moving_mean/local_step`` and the variance's
        (zero_debias), ``renorm_mean``, ``renorm_stddev``, ``moving_stddev`` (renorm).
        The names and shapes are those of ``tf.compat.v1.layers.batch_normalization``.

    Raises:
        ValueError: unknown rank or channel dimension, rank outside 2 to 5, `axis` outside the rank; `is_training`
            neither a bool nor a scalar bool tensor; `decay` or `renorm_decay` outside [0, 1]; `epsilon` not above 0;
            an `average` or a key of `renorm_clipping` that does not exist; arguments that exclude each other (fused
            with what the kernel can't do; two of virtual_batch_size, renorm, weights and sync; zero_debias with another
            average; sync_population_only without sync); a static batch that is no multiple of `virtual_batch_size`; or,
            with ``is_training=True`` and without sync, a static shape with fewer than two values per channel.
        TypeError: `inputs` are not floats.
        tf.errors.InvalidArgumentError: at a training run that is fed fewer than two values per channel. The mean
            of one value is that value, so every output would be beta whatever the input, and an empty batch would
            turn the moving statistics into NaN. (PyTorch refuses the same.) Likewise weights that sum to
            0, or to at most 1 with `unbiased_variance`, and a batch that is no multiple of `virtual_batch_size`. Nothing
            is updated.

    Source: r2rt, "Implementing Batch Normalization in Tensorflow", *Fixing the model for test time*; Ioffe &
    Szegedy 2015, Algorithms 1 and 2; Ioffe 2017 (renorm); Hoffer et al. 2017 (virtual batches).

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
    weights = None if weights is None else tf.convert_to_tensor(weights, name="weights")
    axis = arguments.checked_axis(inputs, axis)
    training = arguments.checked_is_training(is_training)
    arguments.check_constants(decay=decay, renorm_decay=renorm_decay, epsilon=epsilon)
    clipping = arguments.checked_clipping(renorm_clipping)
    arguments.check_average(average, zero_debias=zero_debias, renorm=renorm)
    arguments.check_one_way(virtual_batch_size=virtual_batch_size, renorm=renorm, weights=weights, sync=sync)
    arguments.check_sync(sync, population_only=sync_population_only)
    together = sync is not None and not sync_population_only
    plain = virtual_batch_size is None and not renorm and weights is None and not together
    arguments.check_virtual_batches(inputs, axis, virtual_batch_size)
    fused = arguments.checked_fused(fused, inputs, axis, plain=plain)
    if training is True and not together:
        arguments.refuse_static_single_value(inputs, axis)

    channels, dtype = inputs.shape.as_list()[axis], moments.compute_dtype(inputs.dtype)
    with tf.variable_scope(name, default_name="batch_normalization", reuse=reuse):
        gamma = _parameter("gamma", scale, channels, dtype, gamma_initializer, gamma_regularizer, trainable)
        beta = _parameter("beta", center, channels, dtype, beta_initializer, beta_regularizer, trainable)
        initializers = (moving_mean_initializer, moving_variance_initializer)
        layer = Parameters(gamma, beta, averages.create(channels, dtype, initializers=initializers))

        if renorm:
            reference = averages.create_renorm(channels, dtype)
            update = averages.renorm_average(layer.statistics, reference, decay, renorm_decay, epsilon)
            by_batch = partial(transforms.with_renorm, reference=reference[:2], clipping=clipping)
        else:
            update = _plain_average(layer.statistics, average, decay, zero_debias)
            if sync is None:
                by_batch = _plain_transform(fused, virtual_batch_size, weights, unbiased_variance)
            else:
                by_batch = _synchronized_transform(fused, sync, sync_population_only, unbiased_variance)
        return connect(
            inputs,
            axis,
            training,
            layer,
            by_batch=by_batch,
            update=update,
            epsilon=epsilon,
            fused=fused,
            checked=_not_checked  # what must hold, must hold of all workers' values, and is checked when they are known
            if together
            else partial(
                arguments.with_run_time_checks,
                weights=weights,
                virtual_batch_size=virtual_batch_size,
                unbiased=unbiased_variance,
            ),
            updates_collections=None if updates_collection is None else [updates_collection],
        )


def connect(
    inputs: tf.Tensor,
    axis: int,
    training: bool | tf.Tensor,
    layer: Parameters,
    *,
    by_batch: Callable[..., transforms.Normalized],
    update: averages.Updates,
    epsilon: float,
    fused: bool,
    checked: Callable[[tf.Tensor, int], tf.Tensor],
    updates_collections: Sequence[str] | None,
    scope: str | None = None,
) -> tf.Tensor:
    """Wires a layer's variables, its way of normalizing a batch and its estimator into the graph; every form ends here.

    Args:
        inputs, axis: float tensor and its channel axis, counted from the front.
        training: True, False, or a scalar bool tensor.
        layer: the variables.
        by_batch: called as ``by_batch(inputs, axis, gamma, beta, epsilon)`` in the training branch.
        update: makes the update ops from the batch's mean and variance, in the training branch too.
        epsilon, fused: for normalizing by the population.
        checked: called as ``checked(inputs, axis)``; gives the inputs behind run-time checks of a training batch.
        updates_collections: keys for the two update ops; None makes them dependencies of the outputs.
        scope: the layer's variable scope, for the note in `LAYERS`; that of the moving mean if None.

    Returns:
        The outputs, of the shape and dtype of `inputs`.
    """
    gamma, beta, statistics = layer

    def train() -> transforms.Normalized:
        return by_batch(checked(inputs, axis), axis, gamma, beta, epsilon)

    def infer() -> transforms.Normalized:
        moments_of_population = [variable.read_value() for variable in statistics]
        return transforms.by_population(inputs, axis, gamma, beta, epsilon, *moments_of_population, fused=fused)

    update_ops = []
    if training is False:
        outputs = infer().outputs
    elif training is True:
        outputs, mean, variance = train()
        update_ops = update(mean, variance)
    else:
        outputs, mean, variance = tf.cond(training, train, infer)
        update_ops = averages.run_when(training, lambda: update(mean, variance), statistics)

    for key in updates_collections or ():
        for op in update_ops:
            tf.add_to_collection(key, op)
    with tf.control_dependencies(update_ops if updates_collections is None else []):
        outputs = tf.identity(outputs, name="outputs")
    outputs.set_shape(inputs.shape)
    _record(inputs, outputs, axis, layer, epsilon, scope)
    return outputs


def _parameter(
    name: str,
    wanted: bool,
    channels: int,
    dtype: tf.DType,
    initializer: averages.Initializer | None,
    regularizer: Callable[[tf.Tensor], tf.Tensor] | None,
    trainable: bool,
) -> tf.Variable | None:
    if not wanted:
        return None
    if initializer is None:
        initializer = tf.ones_initializer() if name == "gamma" else tf.zeros_initializer()
    return tf.get_variable(name, [channels], dtype, initializer, regularizer=regularizer, trainable=trainable)


def _plain_average(
    statistics: averages.MovingStatistics, average: str, decay: float, zero_debias: bool
) -> averages.Updates:
    if average == "cumulative":
        return averages.cumulative_average(statistics)
    return averages.exponential_average(statistics, decay, zero_debias=(zero_debias, zero_debias))


def _plain_transform(
    fused: bool, virtual_batch_size: int | None, weights: tf.Tensor | None, unbiased: bool
) -> Callable[..., transforms.Normalized]:
    if virtual_batch_size is not None:
        return partial(transforms.by_virtual_batches, size=virtual_batch_size, unbiased=unbiased)
    if fused:
        return partial(transforms.by_fused_kernel, unbiased=unbiased)
    return partial(transforms.by_moments, unbiased=unbiased, weights=weights)


def _synchronized_transform(
    fused: bool, sync: synchronized.Gather, population_only: bool, unbiased: bool
) -> Callable[..., transforms.Normalized]:
    if not population_only:
        return partial(synchronized.by_all_workers, gather=sync, unbiased=unbiased)
    by_own_batch = _plain_transform(fused, None, None, unbiased=False)
    return synchronized.with_population_of_all_workers(by_own_batch, sync, unbiased=unbiased)


def _not_checked(inputs: tf.Tensor, axis: int) -> tf.Tensor:
    del axis
    return inputs


def _record(
    inputs: tf.Tensor, outputs: tf.Tensor, axis: int, layer: Parameters, epsilon: float, scope: str | None
) -> None:
    """Leaves a note of this call in the graph, as a string, so that it outlives a meta graph."""
    variables = {
        "gamma": layer.gamma,
        "beta": layer.beta,
        "moving_mean": layer.statistics.mean,
        "moving_variance": layer.statistics.variance,
    }
    note = {
        "scope": layer.statistics.mean.op.name.rpartition("/")[0] if scope is None else scope,
        "inputs": inputs.name,
        "outputs": outputs.name,
        "axis": axis,
        "epsilon": float(epsilon),
    }
    # `name` and not `op.name`: a scope's partitioner may have cut gamma and beta into parts, which have no op in common.
    note |= {name: variable.name.partition(":")[0] for name, variable in variables.items() if variable is not None}
    tf.add_to_collection(LAYERS, json.dumps(note))
