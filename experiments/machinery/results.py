"""Result files: written whole, read with a check, and the figures that verdicts and tables take from them."""

import base64
import json
import os
import platform
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bn_graph.checkpoints.files import written_beside
from bn_graph.tf1 import tf
from experiments.machinery import register
from experiments.machinery.programs import UsageError

__all__ = [
    "FORMAT",
    "column",
    "data_name",
    "largest",
    "listed",
    "load",
    "load_all",
    "medians",
    "pack_images",
    "seeds",
    "spread",
    "unpack_images",
    "versions",
    "write_json",
    "write_text",
]

FORMAT = 1
"""Of result files. Another format is refused, so that an old file is never read as if it were new."""


def load(path: Path) -> dict:
    """One experiment's ``result.json``.

    Raises:
        UsageError: the file is cut off, of another format, or incomplete; the message names the command that repairs it.
    """
    remedy = f"Run `make {register.target(path.parent.name)} FRESH=1` again, or delete the file."
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no complete result: {error}. {remedy}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        found = result.get("format") if isinstance(result, dict) else type(result).__name__
        raise UsageError(f"{path} is of format {found!r}; this version reads format {FORMAT}. {remedy}")
    missing = {"experiment", "mode", "data", "seeds", "versions", "claims"} - result.keys()
    if missing:
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))}. {remedy}")
    return result


def load_all(folder: Path) -> dict[str, dict]:
    """Every experiment's result that `folder` holds, by the experiment's name; what else is there is not read."""
    found = {name: folder / name / "result.json" for name in register.experiments()}
    return {name: load(path) for name, path in found.items() if path.exists()}


def column(result: dict, name: str) -> list:
    """The value `name` of every run (one for each seed)."""
    return [each[name] for each in result["runs"]]


def medians(result: dict, *names: str) -> list[float]:
    """The median over the runs of each of `names`."""
    return [float(np.median(column(result, name))) for name in names]


def spread(values: Sequence[float], digits: int = 4) -> str:
    """How a statistical figure is reported: min ← median → max over the seeds, or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (1 seed)"
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{low:.{digits}f} ← {middle:.{digits}f} → {high:.{digits}f} ({len(values)} seeds)"


def data_name(result: dict) -> str:
    """The data set's name as a figure's title has it."""
    return {"mnist": "MNIST", "digits": "scikit-learn's digits"}.get(result["data"], result["data"])


def seeds(result: dict) -> str:
    """As "1 seed" or "3 seeds"."""
    count = len(result["seeds"])
    return f"{count} seed{'s' * (count > 1)}"


def listed(items: Iterable) -> str:
    """As "2", "2 and 4", "2, 4 and 8"."""
    *texts, last = map(str, items)
    return f"{', '.join(texts)} and {last}" if texts else last


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.version.VERSION,
        "numpy": np.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }


def pack_images(images: np.ndarray) -> str:
    """Images with values in [0, 1] as compressed text, so that ``result.json`` has all that its figures need."""
    return base64.b64encode(zlib.compress(np.round(images * 255).astype(np.uint8).tobytes(), 9)).decode()


def unpack_images(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack_images`, with values from 0 to 255."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


def write_json(path: Path, content: object) -> None:
    """Writes `content` as JSON, as `write_text` does; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` so that `path` holds either all of it or what it held before."""
    with written_beside(path, replace=True) as beside, open(beside, "w", encoding="utf-8") as file:
        file.write(text)


def largest(values: np.ndarray) -> float:
    """Of their sizes, without the sign."""
    return float(np.abs(values).max())
