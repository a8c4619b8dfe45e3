"""A benchmark's result as people read it: tables, figures, and the committed ones of this folder's README."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.benchmarks import several_workers
from experiments.benchmarks.measuring import COMPILED, DOCUMENT, FLOORS, IMAGE_FLOORS, IN_GRAPH
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.report import REFERENCE, with_tables

__all__ = ["by", "draw", "readme_tables", "summarize", "update_readme"]

README = Path(__file__).with_name("README.md")
COMMITTED = REFERENCE / "benchmark"
FIGURES = ("steps.png", "growth.png")  # that README shows
_LIMITS = FLOORS | IMAGE_FLOORS


def by(shape: Sequence[int]) -> str:
    """A shape as people write it.

    Example:
        >>> from experiments.benchmarks.presentation import by
        >>> by([60, 100])
        '60×100'
    """
    return "×".join(map(str, shape))


def summarize(result: dict) -> str:
    """The tables, and what must be shown."""
    lines = [
        f"{result['mode']}, {result['threads']} threads, medians of {result['rounds']} rounds, {result['seconds']} s, "
        f"load before {result['load']}"
    ]
    for network, section in result["steps"].items():
        lines += ["", f"A training step, {network}", *_table_of_steps(section)]
    lines += ["", *_lines_of_whole(result["whole"])]
    for each in result["layers"]:
        lines += ["", f"The layer alone, {by(each['shape'])}, {each['megabytes']:g} MB", *_table_of_layer(each)]
    lines += ["", *_lines_of_scaling(result["scaling"])]
    for network, section in result["recalibration"].items():
        lines += ["", *_lines_of_recalibration(network, section)]
    lines += ["", *several_workers.lines(result["workers"])]
    lines += ["", "It must show"]
    for check in result["checks"]:
        lines.append(f"  {_KEPT[check['kept']]:<13}{check['what']}: {check['measured']} ({check['wanted']})")
    return "\n".join(lines)


_KEPT = {True: "yes", False: "NO", None: "not measured"}


def _table_of_steps(section: dict) -> list[str]:
    """Microseconds, and in times of the limit: the products or convolutions alone."""
    limit = _limit(section["contenders"])
    ranked = sorted(section["contenders"].items(), key=lambda pair: pair[1]["microseconds"])
    lines = [f"  {'':<38}{'':>12}{'of limit':>10}"] + [
        f"  {name:<38}{each['microseconds']:>9,.0f} µs{each['microseconds'] / limit:>10.2f}  {_with(each['threads'])}"
        for name, each in ranked
    ]
    return lines + [f"  {note}" for note in section["notes"]]


def _limit(contenders: Mapping[str, dict]) -> float:
    return min(each["microseconds"] for name, each in contenders.items() if name in _LIMITS)


def _with(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _lines_of_whole(whole: dict) -> list[str]:
    lines = [f"The whole of bn_vs_plain, {whole['steps']:,} steps"]
    for name, seconds in whole["seconds"].items():
        count = whole["evaluations"][name]
        lines.append(f"  {name:<38}{seconds:>9,.1f} s{whole['megabytes'][name]:>8,} MB  {count} evaluations")
    return lines


def _table_of_layer(each: dict) -> list[str]:
    """Time, speed as of reading the inputs and writing the outputs once, and how many copies it is worth."""
    times = each["microseconds"]
    lines = [f"  {note}" for note in each["notes"]]
    if not times:
        return lines
    names = dict.fromkeys(name.rpartition(", ")[0] for name in times if name != "copy")
    table = [f"  {'':<34}{'inference':^30}{'training':^30}"]
    for name in names:
        row = f"  {name:<34}"
        for mode in ("inference", "training"):
            value = times[f"{name}, {mode}"]
            row += f"{value:>10,.0f} µs{_speed(each, value):>6.1f} GB/s{value / times['copy']:>5.1f} copies"
        table.append(row)
    return [*table, f"  {'copy':<34}{times['copy']:>10,.0f} µs{_speed(each, times['copy']):>6.1f} GB/s", *lines]


def _speed(each: dict, microseconds: float) -> float:
    return 2 * each["megabytes"] * 1e6 / microseconds / 1e3


def _lines_of_scaling(scaling: dict) -> list[str]:
    lines = []
    for what in ("batch", "width"):
        lines.append(f"A step of r2rt's network against {what}: the document's loop, ours")
        for each in scaling[what]:
            lines.append(f"  {each[what]:>8,}{each[DOCUMENT]:>10,.0f} µs{each[IN_GRAPH]:>10,.0f} µs")
    lines.append("The audit")
    for each in scaling["audit"]:
        lines.append(
            f"  {each['nodes']:>9,} nodes{each['audit']['seconds']:>8.2f} s{each['audit']['megabytes']:>8,} MB"
            f"{each['audit']['nodes_per_second']:>12,} nodes/s"
        )
    return lines


def _lines_of_recalibration(network: str, section: dict) -> list[str]:
    examples, training = section["examples"], section["seconds"]["training"]
    lines = [f"Recalibration of {network}, {examples:,} examples in batches of {section['batch']}"]
    for way, seconds in section["seconds"].items():
        start = f"  and {section['start'][way]:.2f} s to start" if way in section["start"] else ""
        rate = f"{examples / seconds:>12,.{seconds > examples / 100:d}f} examples/s{training / seconds:>7.2f} of training mode"
        lines.append(f"  {way:<26}{seconds:>8.2f} s{rate}{start}")
    return lines + [f"  {note}" for note in section["notes"]]


def draw(result: dict, folder: Path) -> None:
    """``steps.png``: all contenders beside the limit. ``growth.png``: what grows with what. ``layers.png``: in copies."""
    with figure(folder / "steps.png", ncols=len(result["steps"]), figsize=(15, 4.5)) as (drawing, axes):
        for axis, (network, section) in zip(axes, result["steps"].items(), strict=True):
            _draw_steps(axis, network, section["contenders"])
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center")
        drawing.suptitle(f"One training step with batch norm, median of {result['rounds']} rounds")
    with figure(folder / "growth.png", ncols=4, figsize=(15, 3.8)) as (drawing, axes):
        _draw_growth(axes, result)
        drawing.suptitle("What grows with what")
    shown = [each for each in result["layers"] if each["microseconds"]]
    with figure(folder / "layers.png", ncols=2, figsize=(12, 1.5 + 1.2 * len(shown)), sharey=True) as (drawing, axes):
        for axis, mode in zip(axes, ("inference", "training"), strict=True):
            _draw_layers(axis, mode, shown)
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_SHOWN_LAYERS))
        drawing.suptitle("One batch norm layer, in times of a copy of its inputs")


def _draw_steps(axis, network: str, contenders: dict) -> None:
    shown = _single(contenders)
    names = sorted(shown, key=shown.get, reverse=True)
    colours = [{IN_GRAPH: BLUE, COMPILED: BLUE, DOCUMENT: ORANGE}.get(name, GREY) for name in names]
    bars = axis.barh(names, [shown[name] for name in names], color=colours)
    axis.bar_label(bars, [f"{shown[name]:,.0f}" for name in names], padding=3, fontsize=8)
    axis.set_axisbelow(True)
    axis.axvline(_limit(contenders), color="black", linestyle="--", label="its matrix products or convolutions alone")
    axis.margins(x=0.2)
    axis.set_xlabel("µs")
    axis.set_title(_TITLES[network])


_TITLES = {"r2rt": "r2rt's network", "solver": "the solver's network", "images": "an image network"}


def _single(contenders: dict) -> dict[str, float]:
    """Microseconds of those that train one network."""
    return {
        name: each["microseconds"]
        for name, each in contenders.items()
        if name not in _LIMITS and not name.endswith(", pair")
    }


def _draw_growth(axes, result: dict) -> None:
    for axis, what in zip(axes, ("batch", "width"), strict=False):
        points = result["scaling"][what]
        for name, colour in ((DOCUMENT, ORANGE), (IN_GRAPH, BLUE)):
            axis.plot([each[what] for each in points], [each[name] for each in points], "o-", color=colour, label=name)
        _scale(axis, f"{what}, r2rt's network", "a step, µs")
    audits = result["scaling"]["audit"]
    seconds = [each["audit"]["seconds"] for each in audits]
    axes[2].plot([each["nodes"] for each in audits], seconds, "o-", color=BLUE, label="the audit")
    _scale(axes[2], "nodes of a graph", "s", across_ticks=(1,))
    exchanges, counts = result["workers"]["exchanges"], (2, *several_workers.MODELLED_WORKERS)
    for channels, line in zip(several_workers.CHANNELS, (":", "--", "-"), strict=True):
        modelled = [several_workers.modelled(exchanges, channels, count) for count in counts]
        axes[3].plot(counts, modelled, line, color=GREY, label=f"{channels:,} channels, modelled")
        axes[3].plot([2], [several_workers.exchanged(exchanges, channels)], "o", color=BLUE)
    axes[3].plot([], [], "o", color=BLUE, label="measured")
    _scale(axes[3], "workers", "a layer's two exchanges, ms")


def _scale(axis, across: str, up: str, across_ticks: Sequence[int] = (1, 2, 5)) -> None:
    axis.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    for side, ticks in ((axis.xaxis, across_ticks), (axis.yaxis, (1, 2, 5))):  # of a decade, as numbers
        side.set_major_locator(LogLocator(subs=ticks))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
        side.set_minor_locator(NullLocator())
    axis.legend(fontsize=8)


def _draw_layers(axis, mode: str, layers: list[dict]) -> None:
    for name, colour, marker in _SHOWN_LAYERS:
        values = [each["microseconds"].get(f"{name}, {mode}", float("nan")) for each in layers]
        copies = [value / each["microseconds"]["copy"] for value, each in zip(values, layers, strict=True)]
        axis.plot(copies, range(len(layers)), marker, color=colour, label=name)
    axis.set_yticks(range(len(layers)), [by(each["shape"]) for each in layers])
    axis.set_xscale("log")
    axis.set_xlabel("copies")
    axis.set_title(mode)


_SHOWN_LAYERS = (
    ("wrapper", BLUE, "o"),
    ("tf.layers fused", ORANGE, "s"),
    ("tf.layers not fused", ORANGE, "x"),
    ("Keras 3", GREY, "^"),
    ("PyTorch", GREY, "v"),
)


# --- README -----------------------------------------------------------------------------------------------------------


def update_readme(folder: Path) -> None:
    """Takes the result in `folder` as the committed one, with README's figures, and brings README's tables up to date."""
    COMMITTED.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", *FIGURES):
        shutil.copyfile(folder / name, COMMITTED / name)
    result = json.loads((COMMITTED / "result.json").read_text(encoding="utf-8"))
    README.write_text(with_tables(README.read_text(encoding="utf-8"), readme_tables(result)), encoding="utf-8")


def readme_tables(result: dict) -> dict[str, str]:
    """What is generated in README, by the name between its markers."""
    checks = [
        f"| {check['what']} | {check['measured']} | {check['wanted']} | {_KEPT[check['kept']]} |"
        for check in result["checks"]
    ]
    workers = ["```", *several_workers.lines(result["workers"]), "```"]
    return {
        "steps": "\n".join(
            [_shown("One training step of three networks, beside the limit", "steps.png"), *_readme_steps(result)]
        ),
        "growth": _shown(
            "A step against batch and width, the audit against nodes, exchanges against workers", "growth.png"
        ),
        "bounds": "\n".join(["| what | measured | wanted | kept |", "| --- | --- | --- | --- |", *checks]),
        "workers": "\n".join(workers),
    }


def _shown(what: str, figure: str) -> str:
    return f"![{what}](../reference/{COMMITTED.name}/{figure})\n"


def _readme_steps(result: dict) -> list[str]:
    steps = result["steps"]
    when = f"`make bench{' QUICK=1' * (result['mode'] == 'quick')}`, {result['date']}, {result['threads']} cores"
    lines = [f"| one training step, µs ({when}) | " + " | ".join(_TITLES[network] for network in steps) + " |"]
    lines.append("| --- |" + " --- |" * len(steps))
    limits = " | ".join(f"{_limit(section['contenders']):,.0f}" for section in steps.values())
    lines.append(f"| its matrix products or convolutions alone | {limits} |")
    columns = [
        {name: each["microseconds"] for name, each in section["contenders"].items() if name not in _LIMITS}
        for section in steps.values()
    ]
    names = sorted({name for column in columns for name in column}, key=lambda name: _first(columns, name))
    for name in names:
        cells = " | ".join(f"{column[name]:,.0f}" if name in column else "" for column in columns)
        lines.append(f"| {f'**{name}**' if name in (IN_GRAPH, COMPILED) else name} | {cells} |")
    return lines


def _first(columns: list[dict[str, float]], name: str) -> tuple[int, float]:
    """Networks in their order, and by time within."""
    return next((number, column[name]) for number, column in enumerate(columns) if name in column)
