"""bn_graph: the executable reference for batch normalization in TensorFlow's graph mode.

The conventions, once: y = gamma·(x − μ)/√(σ² + epsilon) + beta; σ² is the biased variance (1/m) when normalizing; decay
is the weight of the old value in the moving statistics (PyTorch's momentum is 1 − decay).

Importing this package builds nothing, opens no session and flips no switch of TensorFlow's. Names are imported when they
are first used, so that what needs no TensorFlow starts without it.
"""

import importlib

_HOMES = {
    "bn_graph.checkpoints": [
        "CheckpointError",
        "UntrainedStatisticsWarning",
        "make_inference_saver",
        "make_saver",
        "restore",
        "save",
    ],
    "bn_graph.training.datasets": ["DataError", "Dataset", "Split", "batches", "load"],
    "bn_graph.training.distributed": ["ClusterError", "WorkerLostError"],
    "bn_graph.inference.export": ["ExportError", "export_frozen_graph", "export_saved_model"],
    "bn_graph.checkpoints.interchange": [
        "decay_from_torch_momentum",
        "export_keras_weights",
        "export_state_dict",
        "import_keras_weights",
        "import_state_dict",
    ],
    "bn_graph.layers.batch_norm": ["batch_norm_wrapper"],
    "bn_graph.layers.convolutional": ["ConvolutionalBatchNormalizer"],
    "bn_graph.layers.averages": ["moving_statistics"],
    "bn_graph.layers.recurrent": ["BatchNormLSTMCell", "LSTMState"],
    "bn_graph.checkpoints.names": ["NAME_MAPS"],
    "bn_graph.training.networks": ["Model", "Network", "build_graph", "normal_weights"],
    "bn_graph.recalibration": ["RecalibrationError", "recalibrate"],
    "bn_graph.training": [
        "Solver",
        "Step",
        "chunks",
        "feed_loop",
        "graph_loop",
        "resume",
        "session_config",
        "step_of",
        "train",
        "train_in_graph",
    ],
    "bn_graph.training.train_op": ["DetachedUpdatesError", "check_train_op", "train_op"],
    "bn_graph.checkpoints.variables": ["batch_norm_layers", "inference_variables"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {
    "audit": "bn_graph.audit",
    "checkpoints": "bn_graph.checkpoints",
    "datasets": "bn_graph.training.datasets",
    "distributed": "bn_graph.training.distributed",
    "export": "bn_graph.inference.export",
    "inference": "bn_graph.inference",
    "interchange": "bn_graph.checkpoints.interchange",
    "layers": "bn_graph.layers",
    "networks": "bn_graph.training.networks",
    "recalibration": "bn_graph.recalibration",
    "tf1": "bn_graph.tf1",
    "training": "bn_graph.training",
    "update_ops": "bn_graph.training.train_op",
}

__all__ = sorted([*_HOME_OF, *_MODULES])


def __getattr__(name: str):
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module 'bn_graph' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
