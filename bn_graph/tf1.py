"""The one place that imports TensorFlow, and hands out its graph-mode face as ``tf``.

Two things must be settled before TensorFlow is first imported, so they are settled here:

* ``TF_USE_LEGACY_KERAS=1``. ``tf.compat.v1.layers`` is part of legacy Keras (the package ``tf-keras``); with
  Keras 3 in its place every attribute of ``tf.compat.v1.layers`` raises. `legacy_layers` says so in one sentence.
* ``TF_CPP_MIN_LOG_LEVEL=1``, unless you chose one. It leaves out the runtime's INFO lines and keeps every warning.

Importing this module builds nothing, opens no session and flips none of TensorFlow's switches: eager execution,
control flow v2 and resource variables stay as the program has them.
"""

import logging
import os
import sys

_IMPORTED_BEFORE_US = "tensorflow" in sys.modules
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import tensorflow.compat.v1 as tf  # noqa: E402

__all__ = ["hide_deprecation_notices", "legacy_layers", "tf"]


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
