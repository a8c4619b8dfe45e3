"""The look that all figures share: one style, and colours that colour-blind readers can tell apart."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

__all__ = ["BLUE", "GREY", "ORANGE", "figure"]

# From the palette of Okabe and Ito. Blue is right or "with", orange (vermilion) is wrong or "without", everywhere.
BLUE = "#0072B2"
ORANGE = "#D55E00"
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
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
            os.close(descriptor)
            drawing.savefig(temporary, pil_kwargs={"optimize": True})
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            plt.close(drawing)
