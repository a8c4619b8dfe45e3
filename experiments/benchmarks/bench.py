"""What this library costs beside what people would use instead: training steps, an experiment, a layer, and how they grow.

    make bench        or        python -m experiments.benchmarks.bench [--quick]

1. A training step of r2rt's network and of the solver document's, both with batch norm: the loop in the graph, the
   document's loop (``next_batch``, ``feed_dict``, one ``session.run`` a network and step), ``fit`` of legacy Keras and of
   Keras 3, PyTorch, JAX's ``lax.scan``; and the floor, the step's matrix products alone, by whatever does them fastest.
   Both loops on the documents' *pairs* of networks too, with batch norm and without.
2. r2rt's whole experiment, with its evaluations on 10,000 test images, by both loops; and the peak memory of each.
3. One batch norm layer alone: each form of this library, tf.layers with its fused kernel and without, Keras 3, PyTorch.
4. A step against batch and width; audit time against nodes.
5. Recalibration beside a forward pass, ``update_bn`` of PyTorch and ``update_bn_stats`` of fvcore: the solver's network, and
   ResNet-50's shapes and depth.

Every contender is a process of its own. They are asked in turn, round after round, after a round that doesn't count;
what counts is the median. All have the same number of threads at their disposal (``--threads``). In full each is tried
with one and with all and keeps what is faster for it; in quick a single network has one, a pair and a layer all. Before it
is timed each trains `tasks.CHECK_STEPS` steps from the same weights on the same batches, and their losses must agree. The
data are made up, in MNIST's shapes.

It judges no claim of a document. It prints whether it keeps its own bounds, which are ratios: the machine cancels out.
Peers come from the extra ``bench`` of ``pyproject.toml``; what is not installed is left out, with a note.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import measuring, tasks
from experiments.benchmarks.measuring import COMPILED, DOCUMENT, FLOORS, IN_GRAPH, Extent
from experiments.machinery import programs, results
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure

NAME = "benchmark"

FULL = Extent(
    rounds=7,
    layer_rounds=25,
    steps=800,  # an epoch has 916 and 1,718
    whole_steps=2000,
    whole_rounds=20,  # 40,000 steps, the document's
    tries_threads=True,
    leaves_out=(),
    shapes=(
        (60, 100),  # r2rt's hidden layers
        (32, 32),  # the solver's
        (256, 1024),
        *((batch, *image) for image in ((8, 8, 512), (32, 32, 64), (112, 112, 64)) for batch in (32, 256)),
    ),
    layer_seconds=0.03,
    batches=(15, 60, 240, 960),
    widths=(25, 100, 400),
    audit_nodes=(10_000, 30_000, 100_000),
    recalibrated_images=32,
    recalibration_rounds=5,
)
QUICK = Extent(
    rounds=5,
    layer_rounds=15,
    steps=200,
    whole_steps=500,
    whole_rounds=4,
    tries_threads=False,
    leaves_out=(
        "legacy Keras, 50 steps an execution",
        "Keras 3, 50 steps an execution",
        "PyTorch, compiled",  # the compiler alone takes a minute
        "products by JAX",
        "products by PyTorch",
    ),
    shapes=((60, 100), (32, 8, 8, 512)),
    layer_seconds=0.01,
    batches=(240,),
    widths=(400,),
    audit_nodes=(10_000,),
    recalibrated_images=16,
    recalibration_rounds=2,
)

# What must be shown. All are ratios of times that were measured side by side.
LEAST_STEP_RATIO = 4.0  # the pair of networks: the document's loop to the loop in the graph
LEAST_WHOLE_RATIO = 2.0  # the whole experiment
MOST_OF_JAX = 1.15  # the loop in the graph to JAX's scan
MOST_OF_TF_LAYERS = 1.05  # the wrapper to the faster of tf.layers' kernels for that shape and mode
MOST_MEMORY = 1.3  # the loop in the graph to the document's
MOST_DISAGREEMENT = 0.01  # of the losses; PyTorch's moving variance, m/(m-1) times ours, makes a thousandth
LEAST_OF_FORWARD = 0.7  # examples a second of "paper" to those of a forward pass in training mode
MOST_PASSES = 3.0  # "pooled", in forward passes at inference, where what it keeps fits
MOST_APART = 1e-4  # of the first layer's means by us and by PyTorch: they are near 1
FASTER_THAN = ("legacy Keras", "Keras 3", "PyTorch")  # by more than nothing; each in the fastest way it has


class Check(NamedTuple):
    """One thing that must be shown: the bound, what was measured, and whether it is kept; None where nothing was measured."""

    what: str
    wanted: str
    measured: str
    kept: bool | None


def main(argv: list[str] | None = None) -> int:
    parser = programs.parser(__name__, __doc__)
    parser.add_argument("--quick", action="store_true", help="a share of the steps and shapes; under three minutes")
    parser.add_number("--threads", "threads", 1, os.cpu_count(), "of each contender")
    parser.add_output()
    return programs.run(parser, argv, _measure)


def _measure(given: argparse.Namespace) -> None:
    folder = given.output / NAME
    folder.mkdir(parents=True, exist_ok=True)
    result = run(QUICK if given.quick else FULL, given.threads) | {"mode": "quick" if given.quick else "full"}
    results.write_json(folder / "result.json", result)
    draw(result, folder)
    print(summarize(result))
    print(f"\nWritten: {folder / 'result.json'}")


def run(extent: Extent, threads: int) -> dict:
    """Measures all sections, one after the other, and checks the bounds.

    Args:
        extent: how much is measured.
        threads: of each contender.

    Returns:
        The result, ready for JSON.

    Raises:
        programs.UsageError: a contender failed.
    """
    started = time.monotonic()
    result = {
        "format": results.FORMAT,
        "experiment": NAME,
        "title": __doc__.splitlines()[0],
        "threads": threads,
        "rounds": extent.rounds,
        "versions": results.versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    result["steps"] = {
        task.network: _reported(f"steps of the {task.network} network", measuring.training_steps, task, extent, threads)
        for task in (tasks.R2RT, tasks.SOLVER)
    }
    result["whole"] = _reported("the whole of bn_vs_plain", measuring.whole, extent, threads)
    result["layers"] = [
        _reported(f"the layer alone, {_by(shape)}", measuring.layers, shape, extent, threads) for shape in extent.shapes
    ]
    result["scaling"] = _reported("scaling", measuring.scaling, extent, threads)
    result["recalibration"] = {
        network: _reported(f"recalibration of {network}", measuring.recalibration, network, extent, threads)
        for network in ("solver", "ResNet-50")
    }
    result["checks"] = [check._asdict() for check in checks(result)]
    result["seconds"] = round(time.monotonic() - started)
    return result


def _reported(what: str, measure: Callable[..., dict], *arguments) -> dict:
    print(f"{NAME}: {what}", file=sys.stderr, flush=True)
    return measure(*arguments)


def _by(shape: tuple[int, ...] | list[int]) -> str:
    return "×".join(map(str, shape))


def checks(result: dict) -> Iterator[Check]:
    """What must be shown, judged by what was measured."""
    for network, section in result["steps"].items():
        yield from _checks_of_steps(
            network, {name: each["microseconds"] for name, each in section["contenders"].items()}
        )
        yield _check_of_losses(network, [each["loss"] for each in section["contenders"].values()])
    seconds, megabytes = result["whole"]["seconds"], result["whole"]["megabytes"]
    whole = f"the whole of bn_vs_plain, {result['whole']['steps']:,} steps: the document's loop to ours"
    yield _at_least(whole, seconds[DOCUMENT] / seconds[IN_GRAPH], LEAST_WHOLE_RATIO)
    for mode in ("inference", "training"):
        yield _check_of_wrapper(mode, result["layers"])
    yield _at_most("peak memory: ours to the document's loop", megabytes[IN_GRAPH] / megabytes[DOCUMENT], MOST_MEMORY)
    for network, section in result["recalibration"].items():
        yield from _checks_of_recalibration(network, section)


def _checks_of_recalibration(network: str, section: dict) -> Iterator[Check]:
    seconds = section["seconds"]
    what = f'{network}: recalibration by "paper", examples a second to a forward pass\'s in training mode'
    yield _at_least(what, seconds["training"] / seconds["paper"], LEAST_OF_FORWARD)
    what = f'{network}: recalibration by "pooled", in forward passes'
    yield _at_most(what, seconds["pooled"] / seconds["inference"], MOST_PASSES)
    apart = section["means_apart"] if len(seconds) > 4 else None
    what = f'{network}: the first layer\'s means by "paper" and by PyTorch are apart by'
    measured = "not installed" if apart is None else f"{apart:.1e}"
    yield Check(what, f"at most {MOST_APART:g}", measured, None if apart is None else apart <= MOST_APART)


def _checks_of_steps(network: str, microseconds: dict[str, float]) -> Iterator[Check]:
    pair = microseconds[f"{DOCUMENT}, pair"] / microseconds[f"{IN_GRAPH}, pair"]
    check = _at_least(f"{network} pair: the document's loop to ours, bit for bit", pair, LEAST_STEP_RATIO)
    # Each network on a core of its own, and nothing but its matrix products: what no loop can be faster than.
    most = microseconds[f"{DOCUMENT}, pair"] / min(microseconds[name] for name in FLOORS if name in microseconds)
    yield check._replace(measured=f"{check.measured}, where the products alone on two cores would be {most:.2f}")
    ours = microseconds[IN_GRAPH]
    for peer in FASTER_THAN:
        ways = [value for name, value in microseconds.items() if name.split(",")[0] == peer]
        yield _at_least(f"{network}: {peer} to ours", min(ways) / ours if ways else None, 1.0)
    by_xla = microseconds.get(f"{COMPILED}, pair")
    pair = microseconds[f"{DOCUMENT}, pair"] / by_xla if by_xla else None
    yield _at_least(f"{network} pair: the document's loop to ours, compiled", pair, LEAST_STEP_RATIO)
    jax = microseconds.get("JAX, scan")
    for ours, what in ((microseconds[IN_GRAPH], "bit for bit"), (microseconds.get(COMPILED), "compiled")):
        ratio = ours / jax if jax and ours else None
        yield _at_most(f"{network}: ours to JAX's scan, {what}", ratio, MOST_OF_JAX)


def _at_least(what: str, ratio: float | None, bound: float) -> Check:
    return Check(what, f"at least {bound:g}", _ratio(ratio), None if ratio is None else ratio >= bound)


def _at_most(what: str, ratio: float | None, bound: float) -> Check:
    return Check(what, f"at most {bound:g}", _ratio(ratio), None if ratio is None else ratio <= bound)


def _ratio(value: float | None) -> str:
    return "not installed" if value is None else f"{value:.2f}"


def _check_of_losses(network: str, losses: list[float | None]) -> Check:
    measured = [loss for loss in losses if loss is not None]
    apart = (max(measured) - min(measured)) / min(measured)
    what = f"{network}: the losses after {tasks.CHECK_STEPS} steps are apart by"
    return Check(what, f"at most {MOST_DISAGREEMENT:.0%}", f"{apart:.3%}", apart <= MOST_DISAGREEMENT)


def _check_of_wrapper(mode: str, layers: list[dict]) -> Check:
    """The worst shape decides, and is named."""
    ratios = {}
    for each in layers:
        times = each["microseconds"]
        theirs = [value for name, value in times.items() if name.startswith("tf.layers") and name.endswith(f", {mode}")]
        if theirs:
            ratios[_by(each["shape"])] = times[f"wrapper, {mode}"] / min(theirs)
    worst = max(ratios, key=ratios.get)
    check = _at_most(f"the wrapper to the faster of tf.layers' kernels, {mode}", ratios[worst], MOST_OF_TF_LAYERS)
    return check._replace(measured=f"{check.measured} ({worst}, the worst)")


def summarize(result: dict) -> str:
    """The tables, and what must be shown."""
    lines = [
        f"{result['mode']}, {result['threads']} threads, medians of {result['rounds']} rounds, {result['seconds']} s"
    ]
    for network, section in result["steps"].items():
        lines += ["", f"A training step, {network}", *_table_of_steps(section)]
    lines += ["", *_lines_of_whole(result["whole"])]
    for each in result["layers"]:
        lines += ["", f"The layer alone, {_by(each['shape'])}, {each['megabytes']:g} MB", *_table_of_layer(each)]
    lines += ["", *_lines_of_scaling(result["scaling"])]
    for network, section in result["recalibration"].items():
        lines += ["", *_lines_of_recalibration(network, section)]
    lines += ["", "It must show"]
    for check in result["checks"]:
        lines.append(f"  {_KEPT[check['kept']]:<13}{check['what']}: {check['measured']} ({check['wanted']})")
    return "\n".join(lines)


_KEPT = {True: "yes", False: "NO", None: "not measured"}


def _table_of_steps(section: dict) -> list[str]:
    ranked = sorted(section["contenders"].items(), key=lambda pair: pair[1]["microseconds"])
    ours = section["contenders"][IN_GRAPH]["microseconds"]
    lines = [
        f"  {name:<38}{each['microseconds']:>9,.0f} µs{each['microseconds'] / ours:>7.2f}  {_with(each['threads'])}"
        for name, each in ranked
    ]
    return lines + [f"  {note}" for note in section["notes"]]


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
            f"  {each['nodes']:>8,} nodes{each['seconds']:>8.2f} s{each['nodes'] / each['seconds']:>12,.0f} nodes/s"
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
    """``steps.png``: both networks' steps, the floor marked. ``layers.png``: the layer alone, in copies."""
    with figure(folder / "steps.png", ncols=2, figsize=(12, 5)) as (drawing, axes):
        for axis, (network, section) in zip(axes, result["steps"].items(), strict=True):
            _draw_steps(axis, network, section["contenders"])
        drawing.suptitle(f"A training step with batch norm, median of {result['rounds']} rounds")
    shown = [each for each in result["layers"] if each["microseconds"]]
    with figure(folder / "layers.png", ncols=2, figsize=(12, 1.5 + 1.2 * len(shown)), sharey=True) as (drawing, axes):
        for axis, mode in zip(axes, ("inference", "training"), strict=True):
            _draw_layers(axis, mode, shown)
        axes[0].legend(loc="lower right")
        drawing.suptitle("One batch norm layer, in times of a copy of its inputs")


def _draw_steps(axis, network: str, contenders: dict) -> None:
    floor = min(each["microseconds"] for name, each in contenders.items() if name in FLOORS)
    shown = {
        name: each["microseconds"] for name, each in contenders.items() if name not in FLOORS and "pair" not in name
    }
    names = sorted(shown, key=shown.get, reverse=True)
    colours = [{IN_GRAPH: BLUE, DOCUMENT: ORANGE}.get(name, GREY) for name in names]
    axis.barh(names, [shown[name] for name in names], color=colours)
    axis.set_axisbelow(True)
    axis.axvline(floor, color="black", linestyle="--", label="its matrix products alone")
    axis.set_xlabel("µs")
    axis.set_title(network)
    axis.legend(loc="upper right")


def _draw_layers(axis, mode: str, layers: list[dict]) -> None:
    for name, colour, marker in _SHOWN_LAYERS:
        values = [each["microseconds"].get(f"{name}, {mode}", float("nan")) for each in layers]
        copies = [value / each["microseconds"]["copy"] for value, each in zip(values, layers, strict=True)]
        axis.plot(copies, range(len(layers)), marker, color=colour, label=name)
    axis.set_yticks(range(len(layers)), [_by(each["shape"]) for each in layers])
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


if __name__ == "__main__":
    sys.exit(main())
