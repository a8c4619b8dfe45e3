"""Drawings of a layer as inline SVG: its path in training, its path at inference, and how its statistics are spread."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from bn_graph.audit.report import Histogram, LayerDetails, LayerRow, Mode, State, printable

__all__ = ["histogram", "inference_path", "training_path"]

_WIDTH, _HEIGHT, _GAP = 340, 284, 6
_HALF = (_WIDTH - 3 * _GAP) // 2
_ROWS = (6, 66, 146, 224)  # where boxes start
_HEIGHTS = (40, 58, 54, 54)
_LETTER = 6.7  # width of a letter in the names, in units of the drawing
_BATCH = "mean and variance of the batch"
_MOVING = "moving statistics"


def training_path(row: LayerRow, details: LayerDetails) -> Element:
    """What normalizes the layer in training, and whether that updates its moving statistics."""
    svg = _svg(f"{row.name} in training")
    if not details.in_training:
        return _single(svg, "No train op of this file runs the layer.")
    _box(svg, 0, "inputs", [details.inputs])
    _arrow(svg, _WIDTH // 2, 0)
    by_batch = row.training == Mode.BATCH
    if not by_batch:
        _box(svg, 1, _MOVING, _statistics(row))
        _arrow(svg, _WIDTH // 2, 1)
        _box(svg, 2, "normalizes", details.by_moving)
        _box(
            svg,
            3,
            "update ops: none in training" if not details.updates else "update ops: not on this path",
            (),
            "absent",
        )
        return svg
    _box(svg, 1, _BATCH, details.batch_statistics)
    _arrow(svg, _GAP + _HALF // 2, 1)
    _box(svg, 2, "normalizes", details.by_batch, half=0)
    run = [update for update in details.updates if update.run_by]
    kind = "good" if run else "bad"
    train_ops = sorted({op for update in run for op in update.run_by})
    label = "no train op runs these" if details.updates else "no update ops"
    _arrow(svg, 2 * _GAP + _HALF + _HALF // 2, 1, kind)
    more = ", …" if len(train_ops) > 1 else ""
    label = f"updates by {_shortened(train_ops[0], 8)}{more}" if run else label
    _box(svg, 2, label, [update.op for update in run or details.updates], kind, half=1)
    if row.statistics != State.ABSENT or "moving_mean" in row.variables:
        _arrow(svg, 2 * _GAP + _HALF + _HALF // 2, 2, kind)
        _box(svg, 3, f"{_MOVING}{'' if run else ': not updated'}", _statistics(row), kind)
    else:
        _box(svg, 3, "no moving statistics", (), "bad")
    return svg


def inference_path(row: LayerRow, details: LayerDetails) -> Element:
    """What normalizes the layer at inference, and whether that changes anything."""
    svg = _svg(f"{row.name} at inference")
    if row.inference not in (Mode.BATCH, Mode.MOVING):
        known = row.inference == Mode.ABSENT
        return _single(svg, "No inference path is in this file." if known else "Undetermined: see “cannot tell”.")
    by_batch = row.inference == Mode.BATCH
    _box(svg, 0, "inputs", [details.inputs])
    _arrow(svg, _WIDTH // 2, 0)
    fault = {State.INITIAL: ": never updated", State.MISSING: ": not in the checkpoint"}.get(row.statistics, "")
    kind = "bad" if by_batch or fault else "good"
    if by_batch:
        _box(svg, 1, "mean and variance of whatever batch is given", details.batch_statistics, kind)
    else:
        _box(svg, 1, _MOVING + fault, _statistics(row), kind)
    _arrow(svg, _WIDTH // 2, 1, "wrong" if kind == "bad" else kind)
    _box(svg, 2, "normalizes", details.by_batch if by_batch else details.by_moving)
    if details.inference_updates:
        _arrow(svg, _WIDTH // 2, 2, "wrong")
        _box(svg, 3, "running an output updates the statistics", details.inference_updates, "bad")
    elif by_batch:
        _box(svg, 3, f"{_MOVING}{fault or ': not used'}", _statistics(row), "absent")
    return svg


def histogram(name: str, values: Histogram) -> Element:
    """A small histogram with its smallest and largest value."""
    width, height = 160, 44
    svg = Element("svg", {"viewBox": f"0 0 {width} {height + 14}", "class": "histogram", "role": "img"})
    svg.set("aria-label", f"{name}: {values.low:.4g} to {values.high:.4g}")
    step = width / len(values.counts)
    for place, number in enumerate(values.counts):
        tall = height * number / max(values.counts)
        at = {
            "x": f"{place * step:.1f}",
            "y": f"{height - tall:.1f}",
            "width": f"{step - 1:.1f}",
            "height": f"{tall:.1f}",
        }
        SubElement(svg, "rect", at)
    low, high = f"{values.low:.3g}", f"{values.high:.3g}"
    SubElement(svg, "text", {"x": "0", "y": str(height + 12)}).text = low if low != high else f"all {low}"
    if low != high:
        SubElement(svg, "text", {"x": str(width), "y": str(height + 12), "text-anchor": "end"}).text = high
    return svg


def _statistics(row: LayerRow) -> list[str]:
    return [row.variables[role] for role in ("moving_mean", "moving_variance") if role in row.variables] or [
        "constants"
    ]


def _svg(label: str) -> Element:
    return Element(
        "svg", {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "class": "path", "role": "img", "aria-label": printable(label)}
    )


def _single(svg: Element, text: str) -> Element:
    _box(svg, 1, text, (), "absent")
    return svg


def _box(
    svg: Element, row: int, label: str, names: Sequence[str], kind: str = "plain", half: int | None = None
) -> None:
    """A box with a label and up to two names, the full ones as its title; `half` puts it left (0) or right (1)."""
    width = _WIDTH - 2 * _GAP if half is None else _HALF
    x = _GAP if not half else 2 * _GAP + _HALF
    group = SubElement(svg, "g", {"class": kind})
    SubElement(group, "title").text = printable("\n".join([label, *names]).replace("\n", "; "))
    SubElement(group, "rect", {
        "x": str(x), "y": str(_ROWS[row]), "width": str(width), "height": str(_HEIGHTS[row]), "rx": "5",
    })  # fmt: skip
    lines = [("label", label), *(("name", name) for name in names[:2])]
    first = _ROWS[row] + 16
    for number, (style, text) in enumerate(lines):
        shown = _shortened(printable(text), int((width - 14) / _LETTER))
        at = {"x": str(x + 7), "y": str(first + 16 * number), "class": style}
        SubElement(group, "text", at).text = text if style == "label" else shown


def _arrow(svg: Element, x: int, row: int, kind: str = "plain") -> None:
    """An arrow down from the boxes of a row to the next row's: crossed out if ``bad``, only red if ``wrong``."""
    start, end = _ROWS[row] + _HEIGHTS[row], _ROWS[row + 1]
    group = SubElement(svg, "g", {"class": f"arrow {kind}"})
    SubElement(group, "path", {"d": f"M{x} {start}V{end - 6}"})
    if kind == "bad":
        middle = (start + end) // 2 - 2
        SubElement(group, "path", {"d": f"M{x - 6} {middle - 5}l12 10m0 -10l-12 10", "class": "cross"})
    SubElement(group, "polygon", {"points": f"{x - 5},{end - 7} {x + 5},{end - 7} {x},{end}"})


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 3  # the end of an op's name says more than its beginning
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
