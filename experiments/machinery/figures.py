"""The look that all figures share: one style, and colours that colour-blind readers can tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bn_graph.checkpoints.files import written_beside

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "figure"]

# From the palette of Okabe and Ito. Blue is right or "with", orange (vermilion) is wrong or "without", everywhere. Those
# that are text, or have white text on them, have a contrast of 4.5 to white or more, so their orange is darker here.
BLUE = "#0072B2"
ORANGE = "#BC5000"
GREEN = "#007A59"
PURPLE = "#A3507D"
GREY = "#666666"

_STYLE = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
    "svg.hashsalt": "bn_graph",
}


@contextmanager
def figure(path: Path, **subplots) -> Iterator[tuple]:
    """Gives ``(figure, axes)`` as ``plt.subplots`` does, and writes the picture whole when the block ends well."""
    with plt.rc_context(_STYLE):
        drawing, axes = plt.subplots(layout="constrained", **subplots)
        try:
            yield drawing, axes
            with written_beside(path, replace=True) as beside:
                drawing.savefig(beside, pil_kwargs={"optimize": True})
        finally:
            plt.close(drawing)
