"""The public names, each with the module it lives in: read by type checkers, and by `bn_graph` when a name is used."""

from bn_graph import (
    audit as audit,
    checkpoints as checkpoints,
    inference as inference,
    layers as layers,
    recalibration as recalibration,
    tf1 as tf1,
    training as training,
)
from bn_graph.checkpoints import interchange as interchange
from bn_graph.checkpoints.files import CheckpointError as CheckpointError
from bn_graph.checkpoints.interchange import (
    decay_from_torch_momentum as decay_from_torch_momentum,
    export_keras_weights as export_keras_weights,
    export_state_dict as export_state_dict,
    import_keras_weights as import_keras_weights,
    import_state_dict as import_state_dict,
)
from bn_graph.checkpoints.names import NAME_MAPS as NAME_MAPS
from bn_graph.checkpoints.savers import (
    UntrainedStatisticsWarning as UntrainedStatisticsWarning,
    make_inference_saver as make_inference_saver,
    make_saver as make_saver,
    restore as restore,
    save as save,
)
from bn_graph.checkpoints.variables import (
    batch_norm_layers as batch_norm_layers,
    inference_variables as inference_variables,
)
from bn_graph.inference import export as export
from bn_graph.inference.export import (
    ExportError as ExportError,
    export_frozen_graph as export_frozen_graph,
    export_saved_model as export_saved_model,
)
from bn_graph.layers.averages import moving_statistics as moving_statistics
from bn_graph.layers.batch_norm import batch_norm_wrapper as batch_norm_wrapper
from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer as ConvolutionalBatchNormalizer
from bn_graph.layers.recurrent import (
    BatchNormLSTMCell as BatchNormLSTMCell,
    LSTMState as LSTMState,
)
from bn_graph.recalibration import (
    RecalibrationError as RecalibrationError,
    recalibrate as recalibrate,
)
from bn_graph.training import (
    Solver as Solver,
    Step as Step,
    chunks as chunks,
    feed_loop as feed_loop,
    graph_loop as graph_loop,
    resume as resume,
    session_config as session_config,
    step_of as step_of,
    train as train,
    train_in_graph as train_in_graph,
    # modules
    datasets as datasets,
    distributed as distributed,
    networks as networks,
    train_op as update_ops,  # noqa: F401  # its name before it moved
)
from bn_graph.training.datasets import (
    DataError as DataError,
    Dataset as Dataset,
    Split as Split,
    batches as batches,
    load as load,
)
from bn_graph.training.distributed import (
    ClusterError as ClusterError,
    WorkerLostError as WorkerLostError,
)
from bn_graph.training.networks import (
    Model as Model,
    Network as Network,
    build_graph as build_graph,
    normal_weights as normal_weights,
)
from bn_graph.training.train_op import (
    DetachedUpdatesError as DetachedUpdatesError,
    check_train_op as check_train_op,
    train_op as train_op,
)
