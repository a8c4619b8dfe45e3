"""A hook for ``tf.train.MonitoredTrainingSession`` that watches over the moving statistics of a training run."""

import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

import bn_graph.audit
from bn_graph.audit import FindingsError
from bn_graph.checkpoints.variables import layer_scope
from bn_graph.graphs import effects
from bn_graph.graphs.graph import Graph, build
from bn_graph.graphs.values import strip
from bn_graph.layers.averages import moving_statistics
from bn_graph.tf1 import tf
from bn_graph.training import train_op

__all__ = ["StatisticsHook", "StuckStatisticsWarning"]

_Op: TypeAlias = tf.Operation | tf.Tensor | str

_FROM_OUTSIDE = ("RestoreV2", "RestoreSlice", "Restore", "Placeholder")


class StuckStatisticsWarning(UserWarning):
    """Moving statistics that should move and have not, after as many steps as the hook was told to wait."""


class StatisticsHook(tf.train.SessionRunHook):
    """Refuses to start a run whose update ops are detached, and warns once if statistics have not moved after N steps.

    ======================  =============================================================================================
    when                    what
    ======================  =============================================================================================
    before the session      raises if a train op leaves out layers' update ops, or waits for them in a branch
    session created         reads the statistics that some op of the graph updates (a frozen layer's are not watched)
    after step N            reads them again, and warns of those that are what they were in every element
    any other step          nothing
    ======================  =============================================================================================

    The graph is only looked at, so that it may be finalized; steps are runs of the session, counted anew if it is
    created anew. It works with ref and resource variables, in a chief and in workers.

    Example:
        >>> import bn_graph
        >>> from bn_graph.training.hook import StatisticsHook
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     x, collection = tf.constant([[2.0], [6.0]]), tf.GraphKeys.UPDATE_OPS
        ...     y = bn_graph.batch_norm_wrapper(x, True, updates_collection=collection, name="bn1")
        ...     _ = tf.train.get_or_create_global_step()
        ...     step = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(y))
        ...     try:
        ...         tf.train.MonitoredTrainingSession(hooks=[StatisticsHook(step)])
        ...     except bn_graph.DetachedUpdatesError as error:
        ...         print(str(error).split(".")[0])
        The train op runs these layers on a batch and not their update ops: bn1
    """

    def __init__(self, train_op: _Op | Sequence[_Op] | None = None, *, steps: int = 100) -> None:
        """Makes the hook; it looks at the graph in `begin`.

        Args:
            train_op: what training runs, an op, tensor or name, or several that take turns (as in a GAN). If None,
                `bn_graph.audit` looks for the train ops in the graph itself.
            steps: after how many runs of the session statistics must have moved.

        Raises:
            ValueError: `steps` is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        self._train_op, self._steps = train_op, steps
        self._watched: list[tf.Variable] = []
        self._start: list[np.ndarray] = []
        self._runs = 0

    def begin(self) -> None:
        """Looks at the default graph, before there is a session.

        Raises:
            bn_graph.DetachedUpdatesError: names the layers whose update ops training would not run.
            bn_graph.training.train_op.ConditionalUpdatesError: names those whose update ops training waits for in a branch.
            ValueError: the graph has no op of the name given as `train_op`.
        """
        graph = tf.get_default_graph()
        if self._train_op is None:
            _refuse_detached(graph)
        else:
            train_op.check_train_op(self._train_op, graph=graph)
        self._watched = _updated_statistics(graph, self._train_op)

    def after_create_session(self, session: tf.Session, coord: tf.train.Coordinator) -> None:
        """Reads where the statistics start: initialized, or restored."""
        del coord
        self._start, self._runs = session.run(self._watched), 0

    def after_run(self, run_context: tf.train.SessionRunContext, run_values: tf.train.SessionRunValues) -> None:
        """Counts a step; at the last that is waited for, compares.

        Warns:
            StuckStatisticsWarning: names the layers of which a statistic has not moved.
        """
        del run_values
        self._runs += 1
        if self._runs != self._steps or not self._watched:
            return
        now = run_context.session.run(self._watched)
        compared = zip(self._watched, self._start, now, strict=True)
        stuck = [variable.op.name for variable, before, after in compared if np.array_equal(before, after)]
        self._start = []
        if stuck:
            warnings.warn(_message(stuck, self._steps), StuckStatisticsWarning, stacklevel=2)


def _refuse_detached(graph: tf.Graph) -> None:
    report = bn_graph.audit.audit(graph, select=("BN001", "BN010"))
    detached = any(finding.code == "BN001" for finding in report.errors)
    try:
        report.raise_for_errors()
    except FindingsError as error:
        kind = train_op.DetachedUpdatesError if detached else train_op.ConditionalUpdatesError
        raise kind(str(error)) from error


def _updated_statistics(graph: tf.Graph, train_op: _Op | Sequence[_Op] | None) -> list[tf.Variable]:
    """The moving statistics that `train_op`, or if it is None any op but initializers and restores, assigns."""
    statistics = moving_statistics(graph)
    built = build(graph)
    if train_op is not None:
        ops = [train_op] if isinstance(train_op, str) or hasattr(train_op, "name") else list(train_op)
        updated = effects.variables_written(built, ops)
    else:
        initializers = {variable.initializer.name for variable in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)}
        written = effects.writers(built)
        updated = set().union(
            *(
                variables
                for name, variables in written.items()
                if name not in initializers and not _sets_from_outside(built, built.ids[name])
            )
        )
    return [variable for variable in statistics if variable.op.name in updated]


def _sets_from_outside(graph: Graph, node: int) -> bool:
    """Whether an assign takes its value straight from a checkpoint or a feed."""
    if graph.ops[node] not in ("Assign", "AssignVariableOp") or len(graph.inputs[node]) < 2:
        return False
    source, _ = strip(graph, graph.inputs[node][1])
    return graph.ops[source] in _FROM_OUTSIDE


def _message(stuck: Sequence[str], steps: int) -> str:
    layers = list(dict.fromkeys(layer_scope(name, stuck) or name for name in stuck))
    return (
        f"After {steps} steps these layers have moving statistics that have not moved at all: {', '.join(layers)} "
        f"({', '.join(stuck)}). Prediction will normalize by what they started with. See that the steps run the update "
        "ops, with is_training fed True; python -m bn_graph audit tells which are detached."
    )
