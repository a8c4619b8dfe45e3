"""Population statistics of trained weights over a data set ("precise" batch norm).

Moving averages are what training leaves behind: statistics of weights that have changed since, or, where the update ops
never ran, no statistics at all. `recalibrate` computes them anew, with the weights as they are, by one of two methods:

==========  ==============================  =========================================  =================================
`method`    normalizes the earlier layers   estimates                                  passes over the data
==========  ==============================  =========================================  =================================
"pooled"    by *their* new population       mean and variance of all values together   one a depth level: layers of which
            statistics, as inference does   (law of total variance)                    none is above another share a pass
"paper"     by each batch's statistics,     mean of the batches' means, mean of their  one
            as training does                variances times m/(m−1)
==========  ==============================  =========================================  =================================

"pooled" gives the same answer however the data is split into batches, and that of the values which the layer really gets
at inference. "paper" is Algorithm 2 of the paper, and like the paper's depends on the split: a deeper layer sees inputs
that were normalized batch by batch, and the variance between the batches' means is in no batch's variance.

All of it runs in a copy of the graph in a session of its own. So the given session changes once, at the end, or not at
all; its graph may be finalized; weights are only read; and during the call there is a second copy of them.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_graph.checkpoints.values import assign_values
from bn_graph.graphs import effects
from bn_graph.graphs.calls import FoundCalls, LayerCall, find_calls
from bn_graph.graphs.errors import BnGraphError, one_line
from bn_graph.graphs.graph import build, node_named, reach
from bn_graph.inference import switching
from bn_graph.layers import averages
from bn_graph.tf1 import tf

__all__ = ["AlgorithmTwo", "LayerStatistics", "PooledStatistics", "RecalibrationError", "recalibrate"]

Feeds = Mapping[Any, Any]
Batches = Sequence[Feeds] | Callable[[], Iterable[Feeds]]
Values = dict[str, np.ndarray]
"""Values of variables, by the names of their ops."""


class RecalibrationError(BnGraphError):
    """Statistics that can't be computed, for the reason and the layer in the message. Nothing has been changed."""


class LayerStatistics(NamedTuple):
    """What `recalibrate` did to one layer.

    Attributes:
        layer: the scope of its statistics.
        moving_mean, moving_variance: the variables, by the names of their ops.
        mean_before, variance_before, mean, variance: their values before and now, in the variables' dtypes.
        count: values per channel that were seen, over all calls of the layer.
    """

    layer: str
    moving_mean: str
    moving_variance: str
    mean_before: np.ndarray
    variance_before: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    count: int  # type: ignore[assignment]  # a tuple has a method of that name


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
        if count == 0:
            return
        total = self.count + count
        distance = np.asarray(mean, np.float64) - self._mean
        self._mean = self._mean + distance * (count / total)
        self._squares = (
            self._squares + np.asarray(variance, np.float64) * count + distance**2 * (self.count * count / total)
        )
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
        self.count += count
        self._means = self._means + np.asarray(mean, np.float64) * count
        self._biased = self._biased + np.asarray(variance, np.float64) * count
        self._unbiased = self._unbiased + np.asarray(variance, np.float64) * count * (count / (count - 1))

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


_METHODS: dict[str, Callable[[], PooledStatistics | AlgorithmTwo]] = {"pooled": PooledStatistics, "paper": AlgorithmTwo}


def recalibrate(
    session: tf.Session,
    batches: Batches,
    *,
    method: str = "pooled",
    unbiased: bool = True,
    layers: Sequence[str] | None = None,
    is_training: tf.Tensor | Sequence[tf.Tensor] | None = None,
    config: tf.ConfigProto | None = None,
    progress: Callable[[Iterable[Feeds]], Iterable[Feeds]] = iter,
) -> list[LayerStatistics]:
    """Sets each layer's moving statistics to the population statistics of its inputs over `batches`.

    Args:
        session: holds the trained variables. Its graph is this library's, or any graph in which
            `bn_graph.graphs.calls` finds layers: ``tf.layers``, contrib, Keras, hand-written.
        batches: feed dicts, keyed by tensors of the graph or their names, each with what the layers' inputs need; more
            does no harm. A sequence; or a callable that returns a fresh iterable of the same batches every time, which
            "pooled" needs once a depth level.
        method: ``"pooled"`` or ``"paper"``; see this module's docstring. "paper" needs at least two values per
            channel in every batch, and a graph that normalizes by the batch (or a switch, see `is_training`).
        unbiased: n/(n−1) in the pooled variance, and the paper's m/(m−1). The default is the paper's convention:
            what inference wants is an estimate of the population's variance. Over a data set the pooled ones differ
            by a share of 1/n. For the biased variance, which Keras and unfused ``tf.layers`` average, pass False.
        layers: names (as in the result) of those to recalibrate; the others keep their statistics. If None, all but the
            layers of other makers that were built for inference only: no batch goes into their statistics, and weights
            that were trained so belong to those as they are. Named here, they are done by "pooled" like any.
        is_training: the graph's switch or switches; fed False by "pooled" and True by "paper", over whatever
            `batches` feed. Under "pooled" batch norm layers normalize by their statistics in any case; but a
            placeholder must be fed, and dropout may depend on it.
        config: of the session in which it all runs. If None, TensorFlow's defaults, but without its graph optimizer,
            which would start anew for every level: a network of 60 layers and 10 batches then takes three times as long.
        progress: wraps the iterable of batches of each pass, as ``tqdm`` does.

    Returns:
        `LayerStatistics` of each layer, in the order of the graph. A layer that is called on several inputs (towers, a
        discriminator on real and fake) has the statistics of all of them together.

    Raises:
        RecalibrationError: an unknown `method`; no layer found, or not one of `layers`; an iterator in place of a
            callable; no batches, or not as many in every pass; too few values; NaN or infinity; a layer's inputs
            that can't be computed (a missing feed, a layer inside a branch or loop, a recurrent cell's); "pooled" and a
            layer that can't be switched to its moving statistics, or whose inputs depend on its own outputs. The message
            names the layer. Nothing has been assigned then, nor after any other exception, KeyboardInterrupt included.

    What else a layer may keep (``biased`` and ``local_step`` of zero-debiasing, renorm's, ``moving_count``) stays as it is,
    and a later training step averages on from there. Weights that a layer gives its examples are not looked at: every
    example that is fed counts alike.

    Source: Ioffe & Szegedy 2015, Algorithm 2; Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", *precise BN*.

    Example:
        >>> import bn_graph
        >>> from bn_graph.recalibration import recalibrate
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     x = tf.placeholder(tf.float32, [None, 1])
        ...     y = bn_graph.batch_norm_wrapper(x, is_training=True, name="bn1")
        ...     session.run(tf.global_variables_initializer())
        ...     (bn1,) = recalibrate(session, [{x: [[2.0], [4.0]]}, {x: [[6.0]]}])
        ...     bn1.layer, bn1.mean_before, bn1.mean, bn1.variance
        ('bn1', array([0.], dtype=float32), array([4.], dtype=float32), array([4.], dtype=float32))
    """
    if method not in _METHODS:
        raise RecalibrationError(f"method must be one of {', '.join(_METHODS)}, got {method!r}.")
    start = _starter(batches)
    found = find_calls(session.graph)
    wanted = _wanted(found, layers)
    plan = (
        _pooled_plan(session.graph, found, wanted) if method == "pooled" else _paper_plan(session.graph, found, wanted)
    )
    if layers is None:
        _warn_of_others(session.graph, found)
    variables = _variables(session.graph)
    before = _current_values(session, variables, plan)
    switches = is_training if isinstance(is_training, list | tuple) else [is_training]
    flags = {switch: method == "paper" for switch in switches if switch is not None}

    def passes() -> Iterator[Feeds]:
        return (_by_name(session.graph, {**feeds, **flags}) for feeds in progress(start()))

    with _running(plan, before, config) as copy:
        after, counts = _estimated(copy, plan, before, passes, _METHODS[method], unbiased)
    _assign(session, variables, before, after)
    return [
        LayerStatistics(
            layer, mean, variance, before[mean], before[variance], after[mean], after[variance], counts[layer]
        )
        for layer, (mean, variance) in plan.statistics.items()
    ]


def _starter(batches: Batches) -> Callable[[], Iterable[Feeds]]:
    """What starts a pass over the data."""
    if callable(batches):
        return batches
    if not isinstance(batches, Sequence):
        raise RecalibrationError(
            "batches must be a sequence of feed dicts, or a callable that returns a fresh iterable of them for each pass; "
            f"got {type(batches).__name__}, which can be read once only."
        )
    return lambda: batches


# --- Plan: what to compute, of which graph ----------------------------------------------------------------------------


class _Plan(NamedTuple):
    """`levels`: names of layers, to be done together and in this order; `calls`: for each, tensors and reduced axes."""

    graph_def: tf.GraphDef
    calls: dict[str, list[tuple[str, tuple[int, ...]]]]
    statistics: dict[str, tuple[str, ...]]
    levels: list[list[str]]


def _wanted(found: FoundCalls, layers: Sequence[str] | None) -> dict[str, list[LayerCall]]:
    """The calls of each wanted layer: those whose batches update its statistics, else those that use a batch's, else all."""
    by_layer = found.by_layer
    of_inference = found.only_for_inference if layers is None else []
    unknown = [name for name in layers or [] if name not in by_layer]
    if unknown or len(by_layer) == len(of_inference):
        known = f"Those found are {', '.join(by_layer)}." if unknown and by_layer else "None was found."
        reasons = {name: found.unsupported[name] for name in unknown or found.unsupported if name in found.unsupported}
        known += "".join(f" {name}: {reason}." for name, reason in reasons.items())
        if of_inference:
            known = f"Built for inference only, and to be named in layers= if wanted: {', '.join(of_inference)}."
        what = f"No layer {', '.join(unknown)}" if unknown else "No batch norm layer"
        raise RecalibrationError(f"{what} whose statistics could be computed is in the graph. {known}")
    return {
        name: [call for call in calls if call.updates] or [call for call in calls if call.batch] or calls
        for name, calls in by_layer.items()
        if name not in of_inference and (layers is None or name in layers)
    }


def _warn_of_others(graph: tf.Graph, found: FoundCalls) -> None:
    of_inference = found.only_for_inference
    done = [call for call in found.calls if call.layer not in of_inference]
    scopes = tuple(f"{call.layer}/" for call in done)
    left = [variable.op.name for variable in averages.moving_statistics(graph)]
    left = [name for name in left if name not in found.statistics(*done) and not name.startswith(scopes)]
    if left:
        warnings.warn(" ".join(found.left_as_they_are(left)), stacklevel=3)


def _plan(
    graph_def: tf.GraphDef,
    found: FoundCalls,
    wanted: Mapping[str, Sequence[LayerCall]],
    replacements: Mapping[str, str],
) -> _Plan:
    """A plan of one level."""
    for layer, calls in wanted.items():
        if any("//" in found.inputs(call) for call in calls):
            raise RecalibrationError(
                f"The inputs of layer {layer} are computed inside a branch or function of the graph."
            )
    tensors = {
        layer: [(replacements.get(name, name), call.axes) for call in calls for name in [found.inputs(call)]]
        for layer, calls in wanted.items()
    }
    statistics = {layer: found.statistics(calls[0]) for layer, calls in wanted.items()}
    return _Plan(graph_def, tensors, statistics, [list(wanted)])


def _paper_plan(graph: tf.Graph, found: FoundCalls, wanted: Mapping[str, Sequence[LayerCall]]) -> _Plan:
    for layer, calls in wanted.items():
        if not any(call.updates or call.batch for call in calls):
            raise RecalibrationError(f'Layer {layer} is built for inference only; use method="pooled".')
    return _plan(graph.as_graph_def(), found, wanted, {})


def _pooled_plan(live: tf.Graph, found: FoundCalls, wanted: Mapping[str, Sequence[LayerCall]]) -> _Plan:
    switched = switching.by_moving_statistics(live, found)
    plan = _plan(switched.graph_def, found, wanted, switched.replacements)
    graph = build(switched.graph_def)
    above: dict[str, set[str]] = {}
    for layer, tensors in plan.calls.items():
        above[layer] = set()
        for name, _ in tensors:
            tensor = (node_named(graph, name), int(name.rpartition(":")[2]))
            before = {graph.names[node] for node in switching.values_above(graph, tensor)}
            _check_switched(layer, switched, found, switching.still_by_batch(graph, found, tensor), before)
            above[layer] |= {other for other, names in plan.statistics.items() if before & set(names)}
    return plan._replace(levels=_levels(above))


def _check_switched(
    layer: str, switched: switching.Switched, found: FoundCalls, by_batch: Sequence[str], before: set[str]
) -> None:
    """Raises if something above `layer` normalizes by the batch all the same."""
    above = [call.layer for call in found.calls if call.outputs and found.graph.names[call.outputs[0]] in before]
    stuck = [name for name in above if name in switched.unsupported] + list(by_batch)
    if stuck:
        reason = switched.unsupported.get(stuck[0]) or found.unsupported.get(
            stuck[0], "its batch statistics reach further than its outputs"
        )
        raise RecalibrationError(
            f"{stuck[0]}, above layer {layer}, can't be made to normalize by its moving statistics: {reason}. "
            'Use method="paper".'
        )


def _levels(above: Mapping[str, set[str]]) -> list[list[str]]:
    """The layers in the order in which they can be done; those of one level don't depend on each other."""
    levels: list[list[str]] = []
    done: set[str] = set()
    while len(done) < len(above):
        level = [layer for layer in above if layer not in done and above[layer] <= done]
        if not level:
            waiting = [layer for layer in above if layer not in done]
            stuck = next(layer for layer in waiting if layer in reach(above[layer], above.__getitem__))
            raise RecalibrationError(
                f"The inputs of layer {stuck} depend on its own outputs (it is called more than once in a row), so it has "
                'no statistics that follow from the data alone. Use method="paper".'
            )
        levels.append(level)
        done |= set(level)
    return levels


# --- Run: in a copy of the graph --------------------------------------------------------------------------------------


class _Copy(NamedTuple):
    """A running copy: `fetches` are count, mean and variance of each call of a layer; `assigns`, op and placeholder."""

    session: tf.Session
    fetches: dict[str, list[list[tf.Tensor]]]
    assigns: dict[str, tuple[tf.Operation, tf.Tensor]]


@contextlib.contextmanager
def _running(plan: _Plan, values: Values, config: tf.ConfigProto | None) -> Iterator[_Copy]:
    """The part of the plan's graph that the layers' inputs need, in a session of its own that holds `values`."""
    with tf.Graph().as_default() as graph:
        try:
            tf.import_graph_def(_part_above_inputs(plan), name="")
        except (ValueError, tf.errors.OpError) as error:
            raise RecalibrationError(f"The graph can't be copied: {one_line(error)}") from error
        fetches = {
            layer: [_moments(graph.get_tensor_by_name(name), axes) for name, axes in tensors]
            for layer, tensors in plan.calls.items()
        }
        present = [name for name in values if _has(graph, name)]
        assigns = {name: _assign_op(graph, name) for name in present}
    with tf.Session(graph=graph, config=config or _without_optimizer()) as session:
        copy = _Copy(session, fetches, assigns)
        _load(copy, values)
        yield copy


def _without_optimizer() -> tf.ConfigProto:
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config


def _part_above_inputs(plan: _Plan) -> tf.GraphDef:
    needed = _above_inputs(plan)
    part = tf.GraphDef(versions=plan.graph_def.versions, library=plan.graph_def.library)
    for node in plan.graph_def.node:
        if node.name in needed:
            kept = part.node.add()
            kept.CopyFrom(node)
            kept.device = ""
            # Colocation may name a node that is left out; the stored shapes of old graphs are refused by import.
            for key in ("_class", "_output_shapes"):
                kept.attr.pop(key, None)
    return part


def _above_inputs(plan: _Plan) -> set[str]:
    """The ops that the layers' inputs need."""
    return effects.upstream(build(plan.graph_def), [name for tensors in plan.calls.values() for name, _ in tensors])


def _has(graph: tf.Graph, name: str) -> bool:
    try:
        return graph.get_operation_by_name(name) is not None
    except KeyError:
        return False


def _moments(inputs: tf.Tensor, axes: Sequence[int]) -> list[tf.Tensor]:
    """Count, mean and biased variance per channel, in float64 from the values themselves, whatever kernel the layer has."""
    values = tf.cast(inputs, tf.float64)
    mean = tf.reduce_mean(values, axes, keepdims=True)
    variance = tf.reduce_mean(tf.squared_difference(values, mean), axes)
    count = tf.size(values, out_type=tf.int64) // tf.maximum(tf.size(mean, out_type=tf.int64), 1)
    return [count, tf.reshape(mean, [-1]), tf.reshape(variance, [-1])]


def _assign_op(graph: tf.Graph, name: str) -> tuple[tf.Operation, tf.Tensor]:
    variable = graph.get_tensor_by_name(f"{name}:0")
    value = tf.placeholder(tf.as_dtype(variable.op.get_attr("dtype")).base_dtype)
    if variable.dtype == tf.resource:
        return tf.raw_ops.AssignVariableOp(resource=variable, value=value), value
    return tf.assign(variable, value, validate_shape=False).op, value


def _load(copy: _Copy, values: Values) -> None:
    known = [name for name in values if name in copy.assigns]
    copy.session.run([copy.assigns[name][0] for name in known], {copy.assigns[name][1]: values[name] for name in known})


def _estimated(
    copy: _Copy,
    plan: _Plan,
    before: Values,
    passes: Callable[[], Iterable[Feeds]],
    make_estimator: Callable[[], PooledStatistics | AlgorithmTwo],
    unbiased: bool,
) -> tuple[Values, dict[str, int]]:
    """The new statistics, level by level, each level's loaded into the copy before the next; and each layer's count."""
    after: Values = {}
    counts, sizes = {}, []
    for level in plan.levels:
        estimators = {layer: make_estimator() for layer in level}
        sizes.append(_one_pass(copy, estimators, passes()))
        if sizes[-1] != sizes[0] or not sizes[0]:
            raise RecalibrationError(
                f"Pass {len(sizes)} over the data had {sizes[-1]} batches, the first {sizes[0]}; every pass must see the "
                "same batches, and at least one. A callable must return a fresh iterable each time."
            )
        for layer, estimator in estimators.items():
            after |= _in_dtypes_of(layer, plan.statistics[layer], _result(layer, estimator, unbiased), before)
            counts[layer] = estimator.count
        if level is not plan.levels[-1]:
            _load(copy, {name: after[name] for layer in level for name in plan.statistics[layer]})
    return after, counts


def _one_pass(copy: _Copy, estimators: Mapping[str, PooledStatistics | AlgorithmTwo], batches: Iterable[Feeds]) -> int:
    """Adds every batch to the estimators; returns how many there were."""
    number = 0
    fetches = {layer: copy.fetches[layer] for layer in estimators}
    for number, feeds in enumerate(batches, start=1):
        known = {name: value for name, value in feeds.items() if _has(copy.session.graph, name.partition(":")[0])}
        try:
            results = copy.session.run(fetches, known)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise RecalibrationError(
                f"The inputs of {', '.join(estimators)} can't be computed from batch {number}: {one_line(error)}"
            ) from error
        for layer, calls in results.items():
            for count, mean, variance in calls:
                _add(estimators[layer], layer, number, int(count), mean, variance)
    return number


def _add(
    estimator: PooledStatistics | AlgorithmTwo,
    layer: str,
    number: int,
    count: int,
    mean: np.ndarray,
    variance: np.ndarray,
) -> None:
    if count and not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        raise RecalibrationError(f"The inputs of layer {layer} hold NaN or infinity in batch {number}.")
    try:
        estimator.update(count, mean, variance)
    except ValueError as error:
        raise RecalibrationError(f"Layer {layer}, batch {number}: {error}.") from error


def _result(layer: str, estimator: PooledStatistics | AlgorithmTwo, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        return estimator.result(unbiased)
    except ValueError as error:
        raise RecalibrationError(f"Layer {layer}, all batches together: {error}.") from error


def _in_dtypes_of(layer: str, names: Sequence[str], new: Sequence[np.ndarray], before: Values) -> Values:
    """`new` in the shapes and dtypes of the variables."""
    values = {}
    for name, value in zip(names, new, strict=True):
        held = before[name]
        if held.size != value.size:
            raise RecalibrationError(
                f"Layer {layer}: its inputs have {value.size} channels, but {name} has {held.size}. Its reduced axes were "
                "misread; please report the graph."
            )
        values[name] = value.reshape(held.shape).astype(held.dtype)
        if not np.isfinite(values[name]).all():
            raise RecalibrationError(f"Layer {layer}: the new values of {name} don't fit into {held.dtype.name}.")
    return values


# --- Assign: values in and out of the caller's session ----------------------------------------------------------------


def _variables(graph: tf.Graph) -> dict[str, tf.Variable]:
    """Global and local variables by the names of their ops."""
    keys = (tf.GraphKeys.LOCAL_VARIABLES, tf.GraphKeys.GLOBAL_VARIABLES)
    return {variable.op.name: variable for key in keys for variable in graph.get_collection(key)}


def _current_values(session: tf.Session, variables: Mapping[str, tf.Variable], plan: _Plan) -> Values:
    """The values that the copy needs, and those of the statistics."""
    statistics = {name for names in plan.statistics.values() for name in names}
    strange = sorted(statistics - variables.keys())
    if strange:
        raise RecalibrationError(
            f"Not among the graph's global variables, and so can't be assigned: {', '.join(strange)}."
        )
    above = _above_inputs(plan)
    needed = [name for name in variables if name in above | statistics]
    try:
        return dict(zip(needed, session.run([variables[name] for name in needed]), strict=True))
    except tf.errors.FailedPreconditionError as error:
        raise RecalibrationError(
            f"The session's variables must be initialized or restored first: {one_line(error)}"
        ) from error


def _by_name(graph: tf.Graph, feeds: Feeds) -> dict[str, object]:
    try:
        return {graph.as_graph_element(_full_name(key), allow_operation=False).name: feeds[key] for key in feeds}
    except (KeyError, TypeError, ValueError) as error:
        raise RecalibrationError(
            f"The batches feed something that is no tensor of the graph: {one_line(error)}"
        ) from error


def _full_name(key: object) -> object:
    return f"{key}:0" if isinstance(key, str) and ":" not in key else key


def _assign(session: tf.Session, variables: Mapping[str, tf.Variable], before: Values, after: Values) -> None:
    """Assigns all of `after` or, if that fails, none of it. Adds nothing to the graph, which may be finalized."""
    try:
        assign_values(session, [(variables[name], value) for name, value in after.items()])
    except BaseException:
        assign_values(session, [(variables[name], before[name]) for name in after])
        raise
