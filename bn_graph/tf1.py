"""The one place that imports TensorFlow and calls its private names; hands out its graph-mode face as ``tf``.

Two things must be settled before TensorFlow is first imported, so they are settled here:

* ``TF_USE_LEGACY_KERAS=1`` where the package ``tf-keras`` is installed. From TensorFlow 2.16 on ``tf.compat.v1.layers`` is
  part of it; with Keras 3 in its place every attribute of ``tf.compat.v1.layers`` raises. `legacy_layers` says so in one
  sentence. Up to 2.15 TensorFlow's own Keras has them.
* ``TF_CPP_MIN_LOG_LEVEL=1``, unless you chose one. It leaves out the runtime's INFO lines and keeps every warning.

Importing this module builds nothing, opens no session and flips none of TensorFlow's switches: eager execution,
control flow v2 and resource variables stay as the program has them.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

_IMPORTED_BEFORE_US = "tensorflow" in sys.modules
if importlib.util.find_spec("tf_keras"):
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

try:
    import tensorflow.compat.v1 as tf
except ModuleNotFoundError as error:
    if error.name != "tensorflow":
        raise
    raise ImportError(
        "bn_graph's layers, checkpoints and training need TensorFlow, 2.12 to 2.21, which is not installed here: "
        "pip install 'bn_graph[tensorflow]'. The audit (bn-graph audit) does without it."
    ) from error

__all__ = [
    "constant_predicate",
    "control_flow_context",
    "function_body",
    "hide_deprecation_notices",
    "is_compiled",
    "legacy_layers",
    "may_run_in_turns",
    "replace_input",
    "slice_info",
    "tf",
    "with_gradient",
]


class _DeprecationFilter(logging.Filter):
    """Drops TensorFlow's deprecation notices and nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return (
            "deprecated and will be removed" not in message
            and "non-resource variables are not supported" not in message
        )


def hide_deprecation_notices() -> None:
    """Keeps TensorFlow's deprecation notices out of the log; every other warning still gets through.

    The commands of this project call it. The library never does: the log belongs to the program that imports it.
    Calling it twice is the same as calling it once.

    Example:
        >>> from bn_graph.tf1 import hide_deprecation_notices
        >>> hide_deprecation_notices()
    """
    logger = tf.get_logger()
    if not any(isinstance(present, _DeprecationFilter) for present in logger.filters):
        logger.addFilter(_DeprecationFilter())


def legacy_layers():
    """Returns ``tf.compat.v1.layers``, or says in one sentence why it can't be had.

    Returns:
        The module that has ``batch_normalization``, ``dense`` and their kin.

    Raises:
        ImportError: TensorFlow was set to Keras 3, or the package ``tf-keras`` is missing.

    Example:
        >>> from bn_graph.tf1 import legacy_layers
        >>> legacy_layers().batch_normalization.__name__
        'batch_normalization'
    """
    try:
        _ = tf.layers.batch_normalization
    except (AttributeError, ImportError) as error:
        cause = (
            "TensorFlow was imported before bn_graph, and without TF_USE_LEGACY_KERAS=1"
            if _IMPORTED_BEFORE_US and os.environ.get("TF_USE_LEGACY_KERAS") == "1"
            else f"TF_USE_LEGACY_KERAS is {os.environ.get('TF_USE_LEGACY_KERAS')!r}"
        )
        raise ImportError(
            f"tf.compat.v1.layers needs legacy Keras, but {cause} or the package tf-keras is missing: "
            "pip install tf-keras, and set TF_USE_LEGACY_KERAS=1 in the environment before TensorFlow is imported."
        ) from error
    return tf.layers


# --- What TensorFlow has no public name for ---------------------------------------------------------------------------


def constant_predicate(predicate: tf.Tensor) -> bool | None:
    """The value of a boolean tensor that constants alone decide, else None; finds more than ``tf.get_static_value``."""
    from tensorflow.python.framework.smart_cond import smart_constant_value

    return smart_constant_value(predicate)


def is_compiled(graph: tf.Graph) -> bool:
    """Whether ops that are being made are for XLA: in a ``tf.function(jit_compile=True)``."""
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return GraphOrParentsInXlaContext(graph)


def function_body(function) -> tuple[tf.GraphDef, dict[str, str]]:
    """The body of a FunctionDef as a graph of plain nodes, and the names there of the names in the body."""
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

    return function_def_to_graph_def(function)


def control_flow_context(graph: tf.Graph) -> Any | None:
    """The ``cond`` or ``while_loop`` of control flow v1 in which ops are being made, or None outside of any."""
    return graph._get_control_flow_context()


def may_run_in_turns(graph: tf.Graph) -> bool:
    """Whether what is built in `graph` now may run more than once in a run: in a loop's body, or in a function."""
    while graph.building_function:
        if type(graph).__name__ != "CondBranchFuncGraph":  # a branch runs as often as what it is in
            return True
        graph = graph.outer_graph
    context = control_flow_context(graph)
    while context is not None:
        if context.IsWhileContext():
            return True
        context = context.outer_context
    return False


def replace_input(op: tf.Operation, index: int, tensor: tf.Tensor) -> None:
    """Exchanges an input of an op that exists, as TensorFlow's own while loops do."""
    op._update_input(index, tensor)


def slice_info(variable: tf.Variable) -> tuple[str, Sequence[int], Sequence[int]] | None:
    """Of a part of a partitioned variable: the whole's name and shape, and where in it the part starts; else None."""
    info = getattr(variable, "_save_slice_info", None)
    return None if info is None else (info.full_name, list(info.full_shape), list(info.var_offset))


def with_gradient(
    value: tf.Tensor, sources: Sequence[tf.Tensor], gradients: Callable[..., Sequence[tf.Tensor]]
) -> tf.Tensor:
    """`value`, whose gradient goes to `sources` as `gradients` has it, past all that made `value` of them.

    For what has a gradient that costs less than TensorFlow's, or that, unlike TensorFlow's, can be compiled and
    vectorized. A graph that was imported has TensorFlow's own: through what made `value`. So both must be the same.

    Args:
        value: a tensor.
        sources: the tensors that it was made of.
        gradients: from the gradient of `value`, and the sources, to one of each of them. The sources are handed in since
            a branch of a cond v2 knows an outer ref variable's value by its own input only.
    """
    passed = tf.identity_n([*sources, value])[-1]
    passed.op._gradient_function = lambda op, *received: (*gradients(received[-1], *op.inputs[:-1]), None)
    return passed
