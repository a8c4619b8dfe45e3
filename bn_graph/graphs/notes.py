"""The names of the graph collections in which this library's layers leave notes: written by `layers`, read by everybody.

Both hold strings, so that a meta graph carries them; a collection of strings comes back from a meta graph as bytes.
"""

__all__ = ["LAYERS", "MOVING_STATISTICS"]

LAYERS = "bn_graph_layers"
"""One JSON string a layer call: its scope, inputs, outputs, channel axis, epsilon and variables, by name."""

MOVING_STATISTICS = "bn_graph_moving_statistics"
"""The op name of every moving statistic."""
