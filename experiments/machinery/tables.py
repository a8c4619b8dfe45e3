"""Tables as figures, for experiments that compare libraries: a cell may be blue, orange or plain."""

from collections.abc import Mapping, Sequence

from experiments.machinery.figures import BLUE, ORANGE

__all__ = ["draw_table"]

# The figures' two colours, pale enough that black text is read on them.
_PALE = {"blue": "#d6e8f5", "orange": "#fbe3d6", "": "white"}
_EDGE = "#bbbbbb"


def draw_table(
    axis,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    colours: Mapping[tuple[int, int], str],
    widths: Sequence[float],
    height: float = 1.7,
    size: float = 9,
) -> None:
    """Draws `rows` under `header` into `axis`.

    Args:
        axis: to fill; its own lines are taken away.
        header: of each column.
        rows: the texts.
        colours: "blue" or "orange" for the cell (row, column) of `rows`.
        widths: of the columns, as shares of the axis.
        height: of a row, as a multiple of Matplotlib's own.
        size: of the text, in points.
    """
    axis.axis("off")
    fills = [[_PALE[colours.get((r, c), "")] for c in range(len(header))] for r in range(len(rows))]
    table = axis.table(
        rows, colLabels=header, cellColours=fills, colWidths=widths, cellLoc="center", loc="center", edges="closed"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(size)
    table.scale(1.0, height)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor(_EDGE)
        if row == 0:
            cell.set_text_props(weight="bold")
        if column == 0:
            cell.set_text_props(ha="left")
            cell.PAD = 0.03
        if row and colours.get((row - 1, column)):
            cell.set_text_props(color={"blue": BLUE, "orange": ORANGE}[colours[row - 1, column]])
