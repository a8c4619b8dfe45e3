"""``batch_norm_wrapper``: batch normalization of one layer's inputs, in training and at inference.

==================  =======================  =============================================
`is_training`       normalizes with          updates
==================  =======================  =============================================
``True``            the batch's statistics   the moving statistics, at each run
``False``           the moving statistics    nothing; the graph has no update op
bool tensor         by the value it is fed   only when it is fed True, inside the branch
==================  =======================  =============================================

What each further argument changes is in `batch_norm_wrapper`'s docstring; how a batch is normalized, in `transforms`;
how the statistics move, in `averages`; what is refused, in `arguments`. The other forms (`slim`, `convolutional`) end
in the same steps.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from bn_graph.graphs.notes import LAYERS
from bn_graph.layers import arguments, averages, fused_kernel, moments, synchronized, transforms
from bn_graph.layers.arguments import Average, Method
from bn_graph.layers.averages import LayerVariables
from bn_graph.layers.transforms import Normalized
from bn_graph.tf1 import tf

__all__ = ["LAYERS", "attach_updates", "batch_norm_wrapper", "record_call"]


def batch_norm_wrapper(
    inputs: tf.Tensor,
    is_training: bool | tf.Tensor,
    *,
    decay: averages.Decay = 0.999,
    epsilon: float = 1e-3,
    axis: int | Sequence[int] = -1,
    center: bool = True,
    scale: bool = True,
    beta_initializer: averages.Initializer | None = None,
    gamma_initializer: averages.Initializer | None = None,
    moving_mean_initializer: averages.Initializer | None = None,
    moving_variance_initializer: averages.Initializer | None = None,
    beta_regularizer: averages.Regularizer | None = None,
    gamma_regularizer: averages.Regularizer | None = None,
    trainable: bool = True,
    updates_collection: str | None = None,
    average: str = "exponential",
    zero_debias: bool = False,
    unbiased_variance: bool = False,
    fused: bool | None = None,
    virtual_batch_size: int | None = None,
    renorm: bool = False,
    renorm_clipping: Mapping[str, float] | None = None,
    renorm_decay: averages.Decay = 0.99,
    weights: tf.Tensor | None = None,
    sync: synchronized.Gather | None = None,
    sync_population_only: bool = False,
    update_statistics: bool | tf.Tensor = True,
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
        is_training: Python bool, or scalar bool tensor that is fed at each run. It has no default: a wrong
            one would raise no error.
        decay: weight of the old value in the moving statistics, in [0, 1]. Nearer to 1 with more data.
            PyTorch's ``momentum`` is 1 − decay. A scalar tensor, or a function of no arguments that returns either of
            these (a schedule; called once, when the layer is built), is checked at each update. A placeholder must be
            fed wherever `is_training` is.
        epsilon: added to the variance inside the root, above 0.
        axis: the channel axis, the one that is kept. All others are averaged over. A list of axes keeps each of them, as
            in tf.layers; not with `weights` or `sync`.
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
        zero_debias: subtracts the share of the start values from the exponential average, for mean and variance.
        unbiased_variance: the moving variance averages m/(m−1)·σ² (Bessel's correction), as PyTorch, tf.layers' fused
            kernel and the paper's Algorithm 2 do, and not σ², as Keras 3 and tf.layers without the kernel do. It is
            never used for normalizing the batch itself.
        fused: TensorFlow's fused kernel, for rank 4 with the channels last and at most float32; None takes it where
            it applies, since it is faster. The results are the same up to float rounding. The kernel's own statistics are
            too low by 10⁻³ where it adds up millions of values; of more than 65,536 a channel they are summed beside it,
            which makes them right to 2·10⁻⁵ and a training step of the layer 1.0 to 1.2 times as long. With `sync` it
            normalizes by statistics summed in that way, whatever their number.
        virtual_batch_size: in training, each run of that many neighbouring examples (0 to n − 1, n to 2n − 1, …) is
            normalized by its own statistics (ghost batches; tf.layers takes every (batch/n)-th example instead). The
            batch must be a multiple of it. The moving statistics are those of whole batches, variance *between* virtual
            batches included (tf.layers leaves it out), and inference has no virtual batches.
        renorm: batch renormalization: training corrects the batch's statistics toward moving ones.
        renorm_clipping: ``{"rmin", "rmax", "dmax"}``, any of them; unclipped if left out.
        renorm_decay: weight of the old value in the statistics that renorm corrects toward; as `decay`.
        weights: how much each example counts in the statistics: a bool mask, or numbers from 0 up, of shape
            ``[batch]``, or of any leading dimensions of `inputs` (``[batch, time]``), or of their rank and
            broadcastable to them. All are normalized, whatever their weight; a value of weight 0 that is not finite
            gives beta, and reaches no gradient.
        sync: for training on several workers (processes or towers): puts all workers' vectors together, as
            `bn_graph.training.distributed.gatherer` makes it. "The batch" is then that of all workers together, each
            example counted alike however many a worker has; gradients flow through the exchange, and the moving
            statistics are at every worker what one process would have on the whole batch. All workers must run the layer
            together, in the same mode. With None each worker normalizes by its own examples (ghost batches of a worker's
            size), and its moving variance lacks the variance *between* workers.
        sync_population_only: with `sync`, normalizes by the worker's own examples; only the moving statistics are those
            of all workers' examples, variance between workers included. Only the updates wait for the exchange.
        update_statistics: whether training updates the moving statistics: Python bool, or scalar bool tensor that is
            fed at each run. With False a training batch is normalized by its own statistics and leaves no trace (a GAN's
            generator step, an inner loop of meta-learning). Inference never updates.
        name: variable scope; ``batch_normalization``, made unique, if None.
        reuse: as in ``tf.variable_scope``. Layers that share a scope share **one** set of variables, and each that is
            run in training updates it.

    Returns:
        A tensor of the shape and dtype of `inputs`.

    Variables (shape ``[channels]``, or with several kept axes that of `inputs` with 1 in all others; float32 for
    half-precision inputs, else the inputs' dtype):
        ``gamma`` (1), ``beta`` (0): in ``GLOBAL_VARIABLES`` and, if `trainable`, ``TRAINABLE_VARIABLES``.
        ``moving_mean`` (0), ``moving_variance`` (1): in ``GLOBAL_VARIABLES`` and `MOVING_STATISTICS`; likewise
        ``moving_count`` (cumulative), ``moving_mean/biased``, ``moving_mean/local_step`` and the variance's
        (zero_debias), ``renorm_mean``, ``renorm_stddev``, ``moving_stddev`` (renorm).
        The names and shapes are those of ``tf.compat.v1.layers.batch_normalization``.

    Raises:
        RuntimeError: eager execution is on and no graph is being built.
        ValueError: unknown rank or channel dimension, rank outside 2 to 5, `axis` outside the rank, twice in a list or
            leaving none to average over; `is_training`
            neither a bool nor a scalar bool tensor; `decay` or `renorm_decay` outside [0, 1]; `epsilon` not above 0;
            an `average` or a key of `renorm_clipping` that does not exist; `weights` of a shape that does not fit; a custom
            getter that returns no variable for a statistic; arguments that exclude each other (fused
            with what the kernel can't do; two of virtual_batch_size, renorm, weights and sync, but for weights with sync;
            zero_debias with another average; sync_population_only without sync); a static batch that is no multiple of
            `virtual_batch_size`; or, with ``is_training=True`` and without sync, a static shape with fewer than two
            values per channel.
        TypeError: `inputs` are not floats, or `weights` neither bools nor numbers.
        tf.errors.InvalidArgumentError: at a training run that is fed fewer than two values per channel. The mean
            of one value is that value, so every output would be beta whatever the input, and an empty batch would
            turn the moving statistics into NaN. (PyTorch refuses the same.) Likewise weights of a shape that does not
            fit, that are negative, that sum to 0 (with `sync`, at all workers together), or to at most 1 with
            `unbiased_variance`; a batch that is no multiple of `virtual_batch_size`; and a decay outside [0, 1]. Nothing
            is updated.

    Caveats:
        1. A bias just before the layer is redundant: the batch's mean subtracts it, and beta adds one. Leave it out
           (``use_bias=False``); otherwise it gets no gradient but rounding errors.
        2. In training the examples of a batch are not independent: each output depends on the whole batch. Statistics of
           batches whose examples resemble each other (one class, frames of one clip, padding) are not the population's.
        3. In a ``tf.while_loop`` a turn updates the statistics after the turns that its inputs depend on. Where the turns
           don't depend on each other, order them by ``parallel_iterations=1``; otherwise updates may get lost.
        4. Updating in place (the default) delays the outputs until both updates are done, at every run in training,
           also one that only wants a loss. A collected update runs beside the rest of the step, and only with the train op.
           In a branch of a ``tf.cond`` or the body of a loop, update in place: a train op outside can't run updates there.

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
    inputs, axis, training, weights = arguments.checked_tensors(inputs, axis, is_training, weights)
    updating = arguments.both(training, arguments.checked_is_training(update_statistics, "update_statistics"))
    method = arguments.resolve_method(
        inputs, axis, fused, virtual_batch_size, renorm, weights, sync, sync_population_only
    )
    average = arguments.resolve_average(average, zero_debias=zero_debias, renorm=renorm)
    decay, renorm_decay = arguments.checked_constants(epsilon=epsilon, decay=decay, renorm_decay=renorm_decay)
    clipping = arguments.checked_clipping(renorm_clipping)
    arguments.refuse_static_single_value(inputs, axis, training, method)

    shape, dtype = transforms.parameter_shape(inputs, axis), moments.compute_dtype(inputs.dtype)
    initializers = (gamma_initializer, beta_initializer, moving_mean_initializer, moving_variance_initializer)
    parameters, regularizers = {"gamma": scale, "beta": center}, (gamma_regularizer, beta_regularizer)
    with tf.variable_scope(name, default_name="batch_normalization", reuse=reuse):
        variables = averages.create(shape, dtype, parameters, initializers, regularizers, trainable)
        reference = averages.create_renorm(shape, dtype) if renorm else None
        update = _estimator(average, variables, reference, decay, renorm_decay, epsilon)
        normalize_batch = _transform(
            method, unbiased_variance, virtual_batch_size, weights, sync, sync_population_only, reference, clipping
        )
        batch = transforms.by_mode(
            training,
            lambda: normalize_batch(inputs, axis, variables.gamma, variables.beta, epsilon),
            lambda: transforms.by_moving_statistics(inputs, axis, variables, epsilon, method in arguments.FUSED),
        )
        updates = averages.run_when(updating, lambda: update(batch.mean, batch.variance), variables.statistics)
        outputs = attach_updates(batch.outputs, updates, updates_collection)
        return record_call(outputs, inputs, axis, variables, epsilon)


def _estimator(
    average: Average,
    variables: LayerVariables,
    reference: averages.RenormStatistics | None,
    decay: float | tf.Tensor,
    renorm_decay: float | tf.Tensor,
    epsilon: float,
) -> averages.Updates:
    """What moves the statistics, with its own variables made."""
    if average is Average.RENORM:
        return averages.renorm_average(variables, reference, decay, renorm_decay, epsilon)
    if average is Average.CUMULATIVE:
        return averages.cumulative_average(variables)
    debias = average is Average.DEBIASED
    return averages.exponential_average(variables, decay, zero_debias=(debias, debias))


def _transform(
    method: Method,
    unbiased: bool,
    virtual_batch_size: int | None,
    weights: tf.Tensor | None,
    sync: synchronized.Gather | None,
    sync_population_only: bool,
    reference: averages.RenormStatistics | None,
    clipping: Mapping[str, float],
) -> Callable[..., Normalized]:
    """The transform of a training batch, ``(inputs, axis, gamma, beta, epsilon)``, behind the batch's checks."""
    if method is Method.KERNELS_OF_ALL_WORKERS:
        return partial(synchronized.by_all_workers_with_kernels, gather=sync, unbiased=unbiased)
    if method is Method.ALL_WORKERS:  # the values of all workers are checked there, where they are known
        return partial(synchronized.by_all_workers, gather=sync, unbiased=unbiased, weights=weights)
    if method is Method.RENORM:
        by_batch = partial(transforms.with_renorm, reference=reference[:2], clipping=clipping)
    elif method is Method.VIRTUAL_BATCHES:
        by_batch = partial(transforms.by_virtual_batches, size=virtual_batch_size, unbiased=unbiased)
    else:
        kernel = method is Method.FUSED_KERNEL
        by_batch = fused_kernel.by_fused_kernel if kernel else partial(transforms.by_moments, weights=weights)
        by_batch = partial(by_batch, unbiased=unbiased and not sync_population_only)
    if sync_population_only:
        by_batch = synchronized.with_moving_statistics_of_all_workers(
            by_batch, sync, unbiased=unbiased, weights=weights
        )
    checked = partial(
        arguments.with_run_time_checks, weights=weights, virtual_batch_size=virtual_batch_size, unbiased=unbiased
    )
    return lambda inputs, axis, *parameters: by_batch(checked(inputs, axis), axis, *parameters)


def attach_updates(
    outputs: tf.Tensor, updates: Sequence[tf.Operation], collections: str | Sequence[str] | None
) -> tf.Tensor:
    """`outputs`, named so, that depend on the update ops if `collections` is None; else these join the collections."""
    if collections is not None:
        for key in [collections] if isinstance(collections, str) else collections:
            for op in updates:
                tf.add_to_collection(key, op)
    with tf.control_dependencies(updates if collections is None else []):
        return tf.identity(outputs, name="outputs")


def record_call(
    outputs: tf.Tensor,
    inputs: tf.Tensor,
    axis: transforms.Axis,
    variables: LayerVariables,
    epsilon: float,
    scope: str | None = None,
) -> tf.Tensor:
    """`outputs`, of the inputs' static shape, with a note of this call in the graph's collection `LAYERS`.

    The note is a string, so that it outlives a meta graph. `scope` is that of the moving mean if None.
    """
    outputs.set_shape(inputs.shape)
    note = {
        "scope": averages.op_name(variables.moving_mean).rpartition("/")[0] if scope is None else scope,
        "inputs": inputs.name,
        "outputs": outputs.name,
        "axis": axis,
        "epsilon": float(epsilon),
    }
    present = {name: variable for name, variable in variables._asdict().items() if variable is not None}
    note |= {name: averages.op_name(variable) for name, variable in present.items()}
    tf.add_to_collection(LAYERS, json.dumps(note))
    return outputs
