"""Batch normalization layers of a graph, and what they are made of."""

from bn_graph.layers.averages import moving_statistics
from bn_graph.layers.batch_norm import batch_norm_wrapper
from bn_graph.layers.convolutional import ConvolutionalBatchNormalizer
from bn_graph.layers.recurrent import BatchNormLSTMCell, LSTMState

__all__ = ["BatchNormLSTMCell", "ConvolutionalBatchNormalizer", "LSTMState", "batch_norm_wrapper", "moving_statistics"]
