"""The statistics, level by level, in a copy of the graph that goes on from what reached the previous level.

Each batch goes on from the values that are kept of it (`cuts`, `kept`), or starts from the data again where there are none.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_graph.graphs.errors import one_line
from bn_graph.recalibration.assign import Values
from bn_graph.recalibration.cuts import find_cuts
from bn_graph.recalibration.errors import RecalibrationError
from bn_graph.recalibration.estimators import Estimator
from bn_graph.recalibration.kept import Kept, KeptValues
from bn_graph.recalibration.moments import count_mean_variance
from bn_graph.recalibration.plan import Plan
from bn_graph.tf1 import tf

__all__ = ["Passes", "RunningCopy", "estimate", "running"]

Fed = dict[str, Any]
"""What a batch feeds, by names of tensors."""


class RunningCopy(NamedTuple):
    """A running copy: `fetches` are count, mean and variance of each call of a layer; `assigns`, op and placeholder.

    `ops`: the names of the plan's. The copy has more, whose names the caller's graph may have for others.
    """

    session: tf.Session
    plan: Plan
    ops: frozenset[str]
    fetches: dict[str, list[list[tf.Tensor]]]
    assigns: dict[str, tuple[tf.Operation, tf.Tensor]]

    def load(self, values: Values) -> None:
        """Assigns those variables that the copy has."""
        known = [name for name in values if name in self.assigns]
        feeds = {self.assigns[name][1]: values[name] for name in known}
        self.session.run([self.assigns[name][0] for name in known], feeds)

    def known(self, feeds: Fed) -> Fed:
        """The feeds of tensors that the copy has."""
        return {name: value for name, value in feeds.items() if name.partition(":")[0] in self.ops}


class Passes(NamedTuple):
    """How the data is gone through.

    Attributes:
        start: begins a pass over the data: what each batch feeds.
        progress: wraps what a pass goes through instead, if all batches are kept.
        gather: of a vector, the vectors of all workers; None if there are no others.
    """

    start: Callable[[], Iterable[Fed]]
    progress: Callable[[Iterable], Iterable]
    gather: Callable[[np.ndarray], np.ndarray] | None = None


@contextlib.contextmanager
def running(plan: Plan, values: Values, config: tf.ConfigProto | None) -> Iterator[RunningCopy]:
    """The plan's graph in a session of its own that holds `values`."""
    with tf.Graph().as_default() as graph:
        try:
            tf.import_graph_def(plan.graph_def, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise RecalibrationError(f"The graph can't be copied: {one_line(error)}") from error
        fetches = {
            layer: [count_mean_variance(graph.get_tensor_by_name(name), axes) for name, axes in tensors]
            for layer, tensors in plan.calls.items()
        }
        ops = frozenset(node.name for node in plan.graph_def.node)
        assigns = {name: _assign_op(graph, name) for name in values if name in ops}
    with tf.Session(graph=graph, config=_without_optimizer(config)) as session:
        copy = RunningCopy(session, plan, ops, fetches, assigns)
        copy.load(values)
        yield copy


def _without_optimizer(config: tf.ConfigProto | None) -> tf.ConfigProto:
    """`config`, without the graph optimizer if it says nothing of it, which would start anew for every level."""
    if config is not None and config.graph_options.HasField("rewrite_options"):
        return config
    changed = tf.ConfigProto() if config is None else tf.ConfigProto.FromString(config.SerializeToString())
    changed.graph_options.rewrite_options.disable_meta_optimizer = True
    return changed


def _assign_op(graph: tf.Graph, name: str) -> tuple[tf.Operation, tf.Tensor]:
    variable = graph.get_tensor_by_name(f"{name}:0")
    value = tf.placeholder(tf.as_dtype(variable.op.get_attr("dtype")).base_dtype)
    if variable.dtype == tf.resource:
        return tf.raw_ops.AssignVariableOp(resource=variable, value=value), value
    return tf.assign(variable, value, validate_shape=False).op, value


def estimate(
    copy: RunningCopy,
    before: Values,
    passes: Passes,
    make_estimator: Callable[[], Estimator],
    unbiased: bool,
    kept: KeptValues,
) -> tuple[Values, dict[str, int]]:
    """The new statistics, level by level, each level's loaded into the copy before the next; and each layer's count."""
    after: Values = {}
    counts = {}
    batches = _Batches(copy, passes, kept)
    for number, level in enumerate(copy.plan.levels):
        estimators = {layer: make_estimator() for layer in level}
        batches.add_to(estimators, number)
        if passes.gather is not None:
            channels = {layer: before[copy.plan.statistics[layer][0]].size for layer in level}
            for layer, estimator in estimators.items():
                if estimator.count:
                    _check_channels(layer, copy.plan.statistics[layer][0], estimator.parts()[0].size, channels[layer])
            estimators = _merged_with_all_workers(estimators, channels, passes.gather, make_estimator)
        new: Values = {}
        for layer, estimator in estimators.items():
            new |= _in_dtypes_of(layer, copy.plan.statistics[layer], _result(layer, estimator, unbiased), before)
            counts[layer] = estimator.count
        after |= new
        if level is not copy.plan.levels[-1]:
            copy.load(new)
    return after, counts


def _merged_with_all_workers(
    estimators: Mapping[str, Estimator],
    channels: Mapping[str, int],
    gather: Callable[[np.ndarray], np.ndarray],
    make_estimator: Callable[[], Estimator],
) -> dict[str, Estimator]:
    """The estimators of all workers' batches together, the same at each worker."""
    rows = [
        np.broadcast_to(part, [channels[layer]])
        for layer, estimator in estimators.items()
        for part in (np.array(float(estimator.count)), *estimator.parts())
    ]
    merged = {layer: make_estimator() for layer in estimators}
    for vector in gather(np.concatenate(rows)):
        start = 0
        for layer, estimator in merged.items():
            parts = []
            for _ in range(1 + len(estimator.parts())):
                parts.append(vector[start : start + channels[layer]])
                start += channels[layer]
            estimator.merge(round(parts[0][0]), *parts[1:])
    return merged


class _KeptBatch(NamedTuple):
    """What a batch goes on from: the values of tensors of an earlier level, and where later levels can be cut."""

    names: tuple[str, ...]
    kept: Kept
    cuts: list[tuple[str, ...]]


class _Batches:
    """The batches, level by level, each from what is kept of it."""

    def __init__(self, copy: RunningCopy, passes: Passes, kept: KeptValues) -> None:
        self._copy, self._passes, self._kept = copy, passes, kept
        self._kept_batches: list[_KeptBatch | None] = []
        self._cuts: dict[frozenset[str], list[tuple[str, ...]]] = {}
        self._has_warned = False

    def add_to(self, estimators: Mapping[str, Estimator], number: int) -> None:
        """Adds every batch to the estimators of level `number`."""
        self._kept.start_level()
        needed, fitting, count = 0, 0, 0
        for batch, kept_batch, feeds in self._starts(number):
            count = batch + 1
            if count > len(self._kept_batches):
                continue  # more than in the first pass, which is reported with their number
            cuts = kept_batch.cuts if kept_batch is not None else self._cuts_of(feeds)
            names = cuts[number] if cuts else ()
            values = self._add(estimators, batch, feeds, names)
            if values:
                needed += sum(value.nbytes for value in values)
                fitting += self._keep(batch, names, values, cuts)
        if count != len(self._kept_batches) or (count == 0 and self._passes.gather is None):
            raise RecalibrationError(
                f"Pass {number + 1} over the data had {count} batches, the first {len(self._kept_batches)}; every pass must "
                "see the same batches, and at least one. A callable must return a fresh iterable each time."
            )
        if needed and fitting < count and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"What reached level {number + 1} of {len(self._copy.plan.levels)} takes {needed:,} bytes, more than the "
                f"{self._kept.limit:,} of cache_bytes: {count - fitting} of {count} batches are computed again from the data, "
                "or from an earlier level, until they fit. The statistics are the same.",
                stacklevel=4,
            )

    def _starts(self, number: int) -> Iterator[tuple[int, _KeptBatch | None, Fed]]:
        """Of each batch its number, what is kept of it, and what is fed to go on with it."""
        if number and None not in self._kept_batches:
            for batch, kept_batch in enumerate(self._passes.progress(self._kept_batches)):
                yield batch, kept_batch, self._kept_feeds(kept_batch)
            return
        for batch, data in enumerate(self._passes.start()):
            if number == 0:
                self._kept_batches.append(None)
            kept_batch = self._kept_batches[batch] if batch < len(self._kept_batches) else None
            yield batch, kept_batch, self._copy.known(data) if kept_batch is None else self._kept_feeds(kept_batch)

    def _kept_feeds(self, kept_batch: _KeptBatch) -> Fed:
        return dict(zip(kept_batch.names, self._kept.get(kept_batch.kept), strict=True))

    def _cuts_of(self, feeds: Fed) -> list[tuple[str, ...]]:
        levels = self._copy.plan.levels
        if len(levels) == 1 or not self._kept.limit:
            return []
        names = frozenset(feeds)
        if names not in self._cuts:
            plan = self._copy.plan
            inputs = [plan.inputs(number) for number in range(len(levels))]
            self._cuts[names] = [*find_cuts(self._copy.session.graph, plan.graph_def, inputs, names), ()]
        return self._cuts[names]

    def _add(
        self, estimators: Mapping[str, Estimator], batch: int, feeds: Fed, names: Sequence[str]
    ) -> list[np.ndarray]:
        """Adds a batch to the estimators; returns the values of the tensors `names`."""
        fetches = {layer: self._copy.fetches[layer] for layer in estimators}
        try:
            results, values = self._copy.session.run([fetches, list(names)], feeds)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise RecalibrationError(
                f"The inputs of {', '.join(estimators)} can't be computed from batch {batch + 1}: {one_line(error)}"
            ) from error
        for layer, calls in results.items():
            for count, mean, variance in calls:
                _add(estimators[layer], layer, batch + 1, int(count), mean, variance)
        fed = (
            [value for value in feeds.values() if isinstance(value, np.ndarray)]
            if self._kept_batches[batch] is None
            else []
        )
        # The caller's iterator may fill the same array again.
        return [
            np.array(value) if any(np.may_share_memory(value, each) for each in fed) else np.asarray(value)
            for value in values
        ]

    def _keep(self, batch: int, names: tuple[str, ...], values: list[np.ndarray], cuts: list[tuple[str, ...]]) -> bool:
        """Keeps the values in place of the batch's older ones, if there is room; whether there was."""
        kept = self._kept.keep(values)
        if kept is None:
            return False
        old = self._kept_batches[batch]
        self._kept_batches[batch] = _KeptBatch(names, kept, cuts)
        if old is not None:
            self._kept.drop(old.kept)
        return True


def _add(
    estimator: Estimator,
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


def _result(layer: str, estimator: Estimator, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
    try:
        return estimator.result(unbiased)
    except ValueError as error:
        raise RecalibrationError(f"Layer {layer}, all batches together: {error}.") from error


def _check_channels(layer: str, name: str, found: int, expected: int) -> None:
    if found != expected:
        raise RecalibrationError(
            f"Layer {layer}: its inputs have {found} channels, but {name} has {expected}. Its reduced axes were misread; "
            "please report the graph."
        )


def _in_dtypes_of(layer: str, names: Sequence[str], new: Sequence[np.ndarray], before: Values) -> Values:
    """`new` in the shapes and dtypes of the variables."""
    values = {}
    for name, value in zip(names, new, strict=True):
        old = before[name]
        _check_channels(layer, name, value.size, old.size)
        values[name] = value.reshape(old.shape).astype(old.dtype)
        if not np.isfinite(values[name]).all():
            raise RecalibrationError(f"Layer {layer}: the new values of {name} don't fit into {old.dtype.name}.")
    return values
