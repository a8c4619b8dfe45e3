"""Checkpoints: written, restored and checked, read without TensorFlow, exchanged with other libraries.

Savers and restores are here by name; they are imported when they are first used, since `index`, which the audit reads
checkpoints with, needs no TensorFlow.
"""

import importlib

_SAVERS = ["CheckpointError", "UntrainedStatisticsWarning", "make_inference_saver", "make_saver", "restore", "save"]
__all__ = [*_SAVERS]


def __getattr__(name: str):
    if name in _SAVERS:
        return getattr(importlib.import_module("bn_graph.checkpoints.savers"), name)
    raise AttributeError(f"module 'bn_graph.checkpoints' has no attribute {name!r}")
