"""Population statistics of trained weights over a data set ("precise" batch norm).

Moving averages are what training leaves behind: statistics of weights that have changed since, or, where the update ops
never ran, no statistics at all. `recalibrate` computes them anew, with the weights as they are, by one of two methods:

==========  ==============================  =========================================  =================================
`method`    normalizes the earlier layers   estimates                                  passes over the data
==========  ==============================  =========================================  =================================
"pooled"    by *their* new population       mean and variance of all values together   one, if what reached each depth
            statistics, as inference does   (law of total variance)                    level can be kept; else up to one a
                                                                                       level
"paper"     by each batch's statistics,     mean of the batches' means, mean of their  one
            as training does                variances times m/(m−1)
==========  ==============================  =========================================  =================================

A level is the layers of which none is above another. "pooled" does level after level, and keeps of each batch the values
that the next level goes on from, in memory or in a temporary file, as long as they fit (``cache_bytes``); what doesn't
fit is computed from the data again. The memory that is used besides doesn't depend on the size of the data.

"pooled" gives the same answer however the data is split into batches, and that of the values which the layer really gets
at inference. "paper" is Algorithm 2 of the paper, and like the paper's depends on the split: a deeper layer sees inputs
that were normalized batch by batch, and the variance between the batches' means is in no batch's variance.

All of it runs in a copy of the graph in a session of its own. So the given session changes once, at the end, or not at
all; its graph may be finalized; weights are only read; and during the call there is a second copy of them.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bn_graph.graphs.calls import find_calls
from bn_graph.graphs.errors import one_line
from bn_graph.recalibration.assign import assign_or_restore, current_values, global_and_local_variables
from bn_graph.recalibration.errors import RecalibrationError
from bn_graph.recalibration.estimators import ESTIMATORS, AlgorithmTwo, PooledStatistics
from bn_graph.recalibration.kept import KeptValues
from bn_graph.recalibration.plan import make_plan, warn_of_others
from bn_graph.recalibration.run import Passes, estimate, running
from bn_graph.tf1 import tf

__all__ = ["CACHE_BYTES", "AlgorithmTwo", "LayerStatistics", "PooledStatistics", "RecalibrationError", "recalibrate"]

Feeds = Mapping[Any, Any]
Batches = Iterable[Feeds] | Callable[[], Iterable[Feeds]]

CACHE_BYTES = 1 << 30
"""How much is kept between levels, unless `recalibrate` is given another number."""


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


def recalibrate(
    session: tf.Session,
    batches: Batches,
    *,
    method: str = "pooled",
    unbiased: bool = True,
    layers: Sequence[str] | None = None,
    is_training: tf.Tensor | Sequence[tf.Tensor] | None = None,
    config: tf.ConfigProto | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    cache_bytes: int = CACHE_BYTES,
    cache_dir: str | os.PathLike | None = None,
    gather: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[LayerStatistics]:
    """Sets each layer's moving statistics to the population statistics of its inputs over `batches`.

    Args:
        session: holds the trained variables. Its graph is this library's, or any graph in which
            `bn_graph.graphs.calls` finds layers: ``tf.layers``, contrib, Keras, hand-written.
        batches: feed dicts, keyed by tensors of the graph or their names, each with what the layers' inputs need; more
            does no harm. An iterable that can be read again, such as a list; or a callable that returns a fresh iterable of
            the same batches every time, such as a generator function. An iterator, which can be read once, does for
            "paper", and for "pooled" as long as all that has to be kept fits.
        method: ``"pooled"`` or ``"paper"``; see this module's docstring. "paper" needs at least two values per
            channel in every batch, and a graph that normalizes by the batch (or a switch, see `is_training`).
        unbiased: n/(n−1) in the pooled variance, and the paper's m/(m−1). The default is the paper's convention:
            what inference wants is an estimate of the population's variance. Over a data set the pooled ones differ
            by a share of 1/n. For the biased variance, which Keras and unfused ``tf.layers`` average, pass False.
        layers: names (as in the result) of those to recalibrate; the others keep their statistics. If None, all but the
            layers, not of this library, that no batch ever updates: their weights may have been trained with the
            statistics they have. Name them here to include them; only "pooled" can.
        is_training: the graph's switch or switches; fed False by "pooled" and True by "paper", over whatever
            `batches` feed. Under "pooled" batch norm layers normalize by their statistics in any case; but a
            placeholder must be fed, and dropout may depend on it.
        config: of the session in which it all runs. If None, TensorFlow's defaults. Where it doesn't set
            ``rewrite_options``, the graph optimizer is off: it would start anew for every level, and takes longer than it
            saves (ResNet-50: 6 s to start).
        progress: wraps the iterable of batches of each pass, as ``tqdm`` does.
        cache_bytes: how much "pooled" may keep between levels. With 0 every level starts from the data. If it is too
            little for all batches, a warning says how much a level takes; the statistics are the same.
        cache_dir: a directory for what is kept, in unnamed temporary files, which are gone when the call ends, however it
            ends; those of a level and of the previous one both count. In memory if None.
        gather: of several workers that have a share of the batches each: called by all of them, with a vector of the same
            length, and returns all their vectors, ``[workers, n]``, the same at each. The statistics are then those of all
            batches together at every worker (`bn_graph.recalibration.workers`).

    Returns:
        `LayerStatistics` of each layer, in the order of the graph. A layer that is called on several inputs (towers, a
        discriminator on real and fake) has the statistics of all of them together.

    Raises:
        RecalibrationError: an unknown `method`; no layer found, or not one of `layers`; an iterator that would have to be
            read again; no batches, or not as many in every pass; too few values; NaN or infinity; a layer's inputs
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
    if method not in ESTIMATORS:
        raise RecalibrationError(f"method must be one of {', '.join(ESTIMATORS)}, got {method!r}.")
    start = _starter(batches)
    found = find_calls(session.graph)
    plan = make_plan(session.graph, found, layers, method)
    if layers is None:
        warn_of_others(session.graph, found)
    variables = global_and_local_variables(session.graph)
    before = current_values(session, variables, plan)
    switches = is_training if isinstance(is_training, list | tuple) else [is_training]
    flags = {switch: method == "paper" for switch in switches if switch is not None}

    def fed() -> Iterator[dict[str, Any]]:
        return (_by_name(session.graph, {**feeds, **flags}) for feeds in progress(start()))

    passes = Passes(fed, progress, gather)
    kept = KeptValues(cache_bytes, None if cache_dir is None else os.fspath(cache_dir))
    with contextlib.closing(kept), running(plan, before, config) as copy:
        after, counts = estimate(copy, before, passes, ESTIMATORS[method], unbiased, kept)
    assign_or_restore(session, variables, before, after)
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
    if not isinstance(batches, Iterable):
        raise RecalibrationError(
            "batches must be an iterable of feed dicts, or a callable that returns a fresh one for each pass; "
            f"got {type(batches).__name__}."
        )
    if not isinstance(batches, Iterator):
        return lambda: batches
    unread = [batches]

    def start() -> Iterable[Feeds]:
        if not unread:
            raise RecalibrationError(
                "The batches are needed again, since the values that the next level starts from were not all kept (more than "
                f"cache_bytes, or of a kind that can't be kept), and got {type(batches).__name__}, which can be read once "
                "only. Give a sequence, or a callable that returns a fresh iterable for each pass."
            )
        return unread.pop()

    return start


def _by_name(graph: tf.Graph, feeds: Feeds) -> dict[str, object]:
    try:
        return {graph.as_graph_element(_full_name(key), allow_operation=False).name: feeds[key] for key in feeds}
    except (KeyError, TypeError, ValueError) as error:
        raise RecalibrationError(
            f"The batches feed something that is no tensor of the graph: {one_line(error)}"
        ) from error


def _full_name(key: object) -> object:
    return f"{key}:0" if isinstance(key, str) and ":" not in key else key
