"""What stops a recalibration."""

from bn_graph.graphs.errors import BnGraphError

__all__ = ["RecalibrationError"]


class RecalibrationError(BnGraphError):
    """Statistics that can't be computed, for the reason and the layer in the message. Nothing has been changed."""
