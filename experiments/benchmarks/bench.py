"""What this library costs beside what people would use instead: training steps, an experiment, a layer, and how they grow.

    make bench        or        python -m experiments.benchmarks.bench [--quick]

1. A training step of r2rt's network and of the solver document's, both with batch norm: the loop in the graph, the
   document's loop (``next_batch``, ``feed_dict``, one ``session.run`` a network and step), ``fit`` of legacy Keras and of
   Keras 3, PyTorch, JAX's ``lax.scan``; and the limit, the step's matrix products alone, by whatever does them fastest.
   Both loops on the documents' *pairs* of networks too, with batch norm and without. And a step of an image network,
   beside PyTorch and JAX, whose limit is its convolutions alone.
2. r2rt's whole experiment, with its evaluations on 10,000 test images, by both loops; and the peak memory of each.
3. One batch norm layer alone: each form of this library, tf.layers with its fused kernel and without, Keras 3, PyTorch.
   The limit is the memory: a copy of the inputs.
4. A step against batch and width; audit time against nodes.
5. Recalibration beside a forward pass, ``update_bn`` of PyTorch and ``update_bn_stats`` of fvcore: the solver's network, and
   ResNet-50's shapes and depth.
6. Two workers beside one process, each on a core of its own, with batch statistics of all workers and without.

Every contender is a process of its own. They are asked in turn, round after round, after a round that doesn't count;
what counts is the median. All have the same number of threads at their disposal (``--threads``). In full each is tried
with one and with all and keeps what is faster for it; in quick a single network has one, a pair and a layer all. Before it
is timed each trains `tasks.CHECK_STEPS` steps from the same weights on the same batches, and their losses must agree. The
data are made up, in MNIST's shapes.

It judges no claim of a document. It prints whether it keeps its own bounds, which are ratios: the machine cancels out
(the audit's are seconds and megabytes).
Peers come from the extra ``bench`` of ``pyproject.toml``; what is not installed is left out, with a note.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from experiments.benchmarks import audit_cost, measuring, presentation, several_workers, tasks
from experiments.benchmarks.measuring import COMPILED, DOCUMENT, FLOORS, IN_GRAPH, Extent
from experiments.machinery import programs, results

NAME = "benchmark"

FULL = Extent(
    rounds=7,
    layer_rounds=25,
    examples=tasks.EXAMPLES,
    steps=2000,  # more than an epoch: all examples, as the documents have them
    image_steps=tasks.CHECK_STEPS,
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
    audit_nodes=(10_000, 100_000, 1_000_000),
    recalibrated_images=16,
    recalibration_rounds=3,
    worker_steps=several_workers.STEPS,
)
QUICK = Extent(
    rounds=5,
    layer_rounds=15,
    examples=20_000,  # a dozen processes make them, and hold them
    steps=200,
    image_steps=tasks.CHECK_STEPS,
    whole_steps=500,
    whole_rounds=2,
    tries_threads=False,
    leaves_out=(
        "legacy Keras, 50 steps an execution",
        "Keras 3, 50 steps an execution",
        "PyTorch, compiled",  # the compiler alone takes a minute
        "products by TensorFlow",
        "products by JAX",
        "products by PyTorch",
    ),
    shapes=((60, 100), (32, 8, 8, 512)),
    layer_seconds=0.01,
    batches=(15, 60, 240),
    widths=(25, 100, 200),
    audit_nodes=(10_000, 100_000),
    recalibrated_images=0,
    recalibration_rounds=2,
    worker_steps=5,
)

# What must be shown. All but the audit's are ratios of times that were measured side by side.
LEAST_PAIR = {"r2rt": 4.0, "solver": 4.4}  # the pair of networks, the document's loop to ours, bit for bit
LEAST_PAIR_COMPILED = {"r2rt": 4.3, "solver": 10.0}
LEAST_WHOLE_RATIO = 2.0  # the whole experiment
MOST_OF_JAX = 1.15  # the loop in the graph to JAX's scan
MOST_OF_JAX_IMAGES = 1.0  # likewise on the image network, by the faster of our loops
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
    parser.add_argument(
        "--update-readme", action="store_true", help="commit the result: README's table and its figures"
    )
    return programs.run(parser, argv, _measure)


def _measure(given: argparse.Namespace) -> None:
    folder = given.output / NAME
    folder.mkdir(parents=True, exist_ok=True)
    result = run(QUICK if given.quick else FULL, given.threads) | {"mode": "quick" if given.quick else "full"}
    results.write_json(folder / "result.json", result)
    presentation.draw(result, folder)
    print(presentation.summarize(result))
    if given.update_readme:
        presentation.update_readme(folder)
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
        "load": _load(),
    }
    result["workers"] = _reported(
        "two workers beside one process", several_workers.measure, extent.rounds, extent.worker_steps
    )
    result["steps"] = {
        task.network: _reported(f"steps of the {task.network} network", measuring.training_steps, task, extent, threads)
        for task in (tasks.R2RT, tasks.SOLVER, tasks.IMAGES)
    }
    result["whole"] = _reported("the whole of bn_vs_plain", measuring.whole, extent, threads)
    result["layers"] = [
        _reported(f"the layer alone, {_by(shape)}", measuring.layers, shape, extent, threads) for shape in extent.shapes
    ]
    result["scaling"] = _reported("scaling", measuring.scaling, extent, threads)
    result["recalibration"] = {
        network: _reported(f"recalibration of {network}", measuring.recalibration, network, extent, threads)
        for network in ("solver", *["ResNet-50"] * bool(extent.recalibrated_images))
    }
    result["checks"] = [check._asdict() for check in checks(result)]
    result["seconds"] = round(time.monotonic() - started)
    return result


def _reported(what: str, measure: Callable[..., dict], *arguments) -> dict:
    started = time.monotonic()
    found = measure(*arguments)
    print(f"{NAME}: {what}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def _by(shape: tuple[int, ...] | list[int]) -> str:
    return presentation.by(shape)


def _load() -> float | None:
    """How many processes ran on average in the minute before: on a quiet machine less than one."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def checks(result: dict) -> Iterator[Check]:
    """What must be shown, judged by what was measured."""
    for network, section in result["steps"].items():
        microseconds = {name: each["microseconds"] for name, each in section["contenders"].items()}
        yield from (_checks_of_images if network == "images" else _checks_of_steps)(network, microseconds)
        yield _check_of_losses(network, [each["loss"] for each in section["contenders"].values()])
    seconds, megabytes = result["whole"]["seconds"], result["whole"]["megabytes"]
    whole = f"the whole of bn_vs_plain, {result['whole']['steps']:,} steps: the document's loop to ours"
    yield _at_least(whole, seconds[DOCUMENT] / seconds[IN_GRAPH], LEAST_WHOLE_RATIO)
    for mode in ("inference", "training"):
        yield _check_of_wrapper(mode, result["layers"])
    yield _at_most("peak memory: ours to the document's loop", megabytes[IN_GRAPH] / megabytes[DOCUMENT], MOST_MEMORY)
    for network, section in result["recalibration"].items():
        yield from _checks_of_recalibration(network, section)
    for name in (several_workers.WITHOUT_SYNC, several_workers.WITH_SYNC):
        ratio = several_workers.gain(result["workers"], name)
        check = _at_least(f"examples a second of {name}, to one process's", ratio, several_workers.LEAST_GAIN)
        apart = several_workers.gain(result["workers"], several_workers.APART)
        yield check._replace(measured=f"{check.measured}, where {several_workers.APART} reach {apart:.2f}")
    yield from _checks_of_audit(result["scaling"]["audit"])


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
    # Each network on a core of its own, and nothing but its matrix products: what no loop can be faster than.
    document = microseconds[f"{DOCUMENT}, pair"]
    most = document / min(microseconds[name] for name in FLOORS if name in microseconds)
    loops = ((IN_GRAPH, "bit for bit", LEAST_PAIR), (COMPILED, "compiled", LEAST_PAIR_COMPILED))
    for ours, what, least in loops:
        pair = document / microseconds[f"{ours}, pair"]
        check = _at_least(f"{network} pair: the document's loop to ours, {what}", pair, least[network])
        yield check._replace(measured=f"{check.measured}, where the products alone on two cores would be {most:.2f}")
    ours, jax = microseconds[IN_GRAPH], microseconds.get("JAX, scan")
    for peer in FASTER_THAN:
        ways = [value for name, value in microseconds.items() if name.split(",")[0] == peer]
        yield _at_least(f"{network}: {peer} to ours", min(ways) / ours if ways else None, 1.0)
    for ours, what, _ in loops:
        yield _at_most(f"{network}: ours to JAX's scan, {what}", jax and microseconds[ours] / jax, MOST_OF_JAX)


def _checks_of_images(network: str, microseconds: dict[str, float]) -> Iterator[Check]:
    """The faster of our loops decides; what each of them is to each way of JAX's is said."""
    ways = {name: value for name, value in microseconds.items() if name.startswith("JAX")}
    loops = {"bit for bit": microseconds[IN_GRAPH], "compiled": microseconds[COMPILED]}
    scan = ways.get("JAX, scan")
    check = _at_most(
        f"{network}: the faster of our loops to JAX's scan", scan and min(loops.values()) / scan, MOST_OF_JAX_IMAGES
    )
    if not scan:
        yield check
        return
    said = [f"{what} to {way} {ours / value:.2f}" for what, ours in loops.items() for way, value in ways.items()]
    yield check._replace(measured=f"{check.measured} ({'; '.join(said)})")


def _checks_of_audit(measured: list[dict]) -> Iterator[Check]:
    kept = {each["nodes"]: each["kept"] for each in audit_cost.checks(measured)["bounds"]}
    found = {round(each["nodes"], -5): each["audit"] for each in measured}
    for nodes, (seconds, megabytes) in audit_cost.BOUNDS.items():
        cost = found.get(nodes)
        said = f"{cost['seconds']:.2f} s, {cost['megabytes']:,} MB" if cost else "in full only"
        what = f"the audit of {nodes:,} nodes"
        yield Check(what, f"less than {seconds:g} s and {megabytes:,} MB", said, kept.get(nodes))


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


if __name__ == "__main__":
    sys.exit(main())
