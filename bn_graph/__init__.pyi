"""The public names, each with the module it lives in: read by type checkers, and by `bn_graph` when a name is used."""

from bn_graph.checkpoints import (
    CheckpointError as CheckpointError,
)
from bn_graph.checkpoints import (
    UntrainedStatisticsWarning as UntrainedStatisticsWarning,
)
from bn_graph.checkpoints import (
    make_inference_saver as make_inference_saver,
)
from bn_graph.checkpoints import (
    make_saver as make_saver,
)
from bn_graph.checkpoints import (
    restore as restore,
)
from bn_graph.checkpoints import (
    save as save,
)
from bn_graph.checkpoints.interchange import (
    decay_from_torch_momentum as decay_from_torch_momentum,
)
from bn_graph.checkpoints.interchange import (
    export_keras_weights as export_keras_weights,
)
from bn_graph.checkpoints.interchange import (
    export_state_dict as export_state_dict,
)
from bn_graph.checkpoints.interchange import (
    import_keras_weights as import_keras_weights,
)
from bn_graph.checkpoints.interchange import (
    import_state_dict as import_state_dict,
)
from bn_graph.checkpoints.names import NAME_MAPS as NAME_MAPS
from bn_graph.checkpoints.variables import (
    batch_norm_layers as batch_norm_layers,
)
from bn_graph.checkpoints.variables import (
    inference_variables as inference_variables,
)
from bn_graph.inference.export import (
    ExportError as ExportError,
)
from bn_graph.inference.export import (
    export_frozen_graph as export_frozen_graph,
)
from bn_graph.inference.export import (
    export_saved_model as export_saved_model,
)
from bn_graph.layers.averages import moving_statistics as moving_statistics
from bn_graph.layers.batch_norm import batch_norm_wrapper as batch_norm_wrapper
from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer as ConvolutionalBatchNormalizer
from bn_graph.layers.recurrent import BatchNormLSTMCell as BatchNormLSTMCell
from bn_graph.layers.recurrent import LSTMState as LSTMState
from bn_graph.recalibration import RecalibrationError as RecalibrationError
from bn_graph.recalibration import recalibrate as recalibrate
from bn_graph.training import (
    Solver as Solver,
)
from bn_graph.training import (
    Step as Step,
)
from bn_graph.training import (
    chunks as chunks,
)
from bn_graph.training import (
    feed_loop as feed_loop,
)
from bn_graph.training import (
    graph_loop as graph_loop,
)
from bn_graph.training import (
    resume as resume,
)
from bn_graph.training import (
    session_config as session_config,
)
from bn_graph.training import (
    step_of as step_of,
)
from bn_graph.training import (
    train as train,
)
from bn_graph.training import (
    train_in_graph as train_in_graph,
)
from bn_graph.training.datasets import (
    DataError as DataError,
)
from bn_graph.training.datasets import (
    Dataset as Dataset,
)
from bn_graph.training.datasets import (
    Split as Split,
)
from bn_graph.training.datasets import (
    batches as batches,
)
from bn_graph.training.datasets import (
    load as load,
)
from bn_graph.training.distributed import ClusterError as ClusterError
from bn_graph.training.distributed import WorkerLostError as WorkerLostError
from bn_graph.training.networks import (
    Model as Model,
)
from bn_graph.training.networks import (
    Network as Network,
)
from bn_graph.training.networks import (
    build_graph as build_graph,
)
from bn_graph.training.networks import (
    normal_weights as normal_weights,
)
from bn_graph.training.train_op import (
    DetachedUpdatesError as DetachedUpdatesError,
)
from bn_graph.training.train_op import (
    check_train_op as check_train_op,
)
from bn_graph.training.train_op import (
    train_op as train_op,
)
