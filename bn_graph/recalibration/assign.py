"""Values in and out of the caller's session, which changes once, at the end, or not at all."""

from collections.abc import Mapping

import numpy as np

from bn_graph.checkpoints.values import assign_values
from bn_graph.graphs.errors import one_line
from bn_graph.recalibration.errors import RecalibrationError
from bn_graph.recalibration.plan import Plan
from bn_graph.tf1 import tf

__all__ = ["Values", "assign_or_restore", "current_values", "global_and_local_variables"]

Values = dict[str, np.ndarray]
"""Values of variables, by the names of their ops."""


def global_and_local_variables(graph: tf.Graph) -> dict[str, tf.Variable]:
    """Global and local variables by the names of their ops."""
    keys = (tf.GraphKeys.LOCAL_VARIABLES, tf.GraphKeys.GLOBAL_VARIABLES)
    return {variable.op.name: variable for key in keys for variable in graph.get_collection(key)}


def current_values(session: tf.Session, variables: Mapping[str, tf.Variable], plan: Plan) -> Values:
    """The values that the copy needs, and those of the statistics."""
    statistics = {name for names in plan.statistics.values() for name in names}
    strange = sorted(statistics - variables.keys())
    if strange:
        raise RecalibrationError(
            f"These moving statistics can't be assigned, being in neither GLOBAL_VARIABLES nor LOCAL_VARIABLES: "
            f"{', '.join(strange)}. Add them to one of the two, or choose other layers with layers=."
        )
    above = {node.name for node in plan.graph_def.node}
    needed = [name for name in variables if name in above | statistics]
    try:
        return dict(zip(needed, session.run([variables[name] for name in needed]), strict=True))
    except tf.errors.FailedPreconditionError as error:
        raise RecalibrationError(
            f"The session's variables must be initialized or restored first: {one_line(error)}"
        ) from error


def assign_or_restore(session: tf.Session, variables: Mapping[str, tf.Variable], before: Values, after: Values) -> None:
    """Assigns all of `after` or, if that fails, none of it. Adds nothing to the graph, which may be finalized."""
    try:
        assign_values(session, [(variables[name], value) for name, value in after.items()])
    except BaseException:
        assign_values(session, [(variables[name], before[name]) for name in after])
        raise
