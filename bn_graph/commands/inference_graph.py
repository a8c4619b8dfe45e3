"""``python -m bn_graph inference-graph``: a SavedModel in which every layer uses its moving statistics."""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bn_graph.commands import CommandError

if TYPE_CHECKING:  # TensorFlow takes seconds to import, and the parser shall not wait for it
    from bn_graph.checkpoints.meta_graphs import Restored
    from bn_graph.inference.conversion import Converted
    from bn_graph.tf1 import tf

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to `parser`."""
    parser.add_argument("--meta", required=True, help="the graph: a .meta file")
    parser.add_argument("--checkpoint", required=True, help="prefix of the checkpoint; it is only read")
    parser.add_argument("--output", required=True, metavar="NAME", help="the tensor to serve")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME",
        help="a tensor to feed; the placeholders that the output needs, if none is given",
    )
    parser.add_argument(
        "--feed",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="makes a scalar placeholder a constant: keep_prob=1.0; switches (bool) that aren't named are fixed to false",
    )
    parser.add_argument("--example", metavar="D.npz", help="examples for the check, where random ones can't be made up")
    parser.add_argument("--out", required=True, metavar="DIR", help="the SavedModel's directory; must not exist")


def run(arguments: argparse.Namespace) -> int:
    """Writes the SavedModel as the arguments say, checks it, and prints what it did.

    Args:
        arguments: as `add_arguments` defines them.

    Returns:
        The exit status 0.

    Raises:
        BnGraphError: an argument, the graph or the checkpoint can't be used; or, with status 1, examples get other answers
            alone than in a batch. Nothing is left at ``--out``.
        KeyboardInterrupt: likewise.
    """
    from bn_graph.commands.quiet import start_tensorflow_quietly

    try:
        # What goes wrong while ops run is raised, and reported in one line; the runtime's own log of it would repeat it.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        start_tensorflow_quietly()
        return _write(arguments)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was written") from None


def _write(arguments: argparse.Namespace) -> int:
    from bn_graph.checkpoints import meta_graphs
    from bn_graph.commands import feeds
    from bn_graph.inference import conversion as population_export

    if os.path.lexists(arguments.out):
        raise CommandError(f"{arguments.out} exists; name another --out, or remove it first.")
    meta = meta_graphs.read(arguments.meta)
    graph = meta_graphs.import_graph(meta)
    output = feeds.resolve(graph, arguments.output)
    cut = [feeds.resolve(graph, name).name for name in arguments.input]
    fixed = feeds.singles(graph, arguments.feed)
    switches = _open_switches(graph, output, {*fixed, *cut})
    converted = population_export.convert(graph, output, fixed | {name: np.array(False) for name in switches})
    inputs = _inputs(converted, cut)
    restored = meta_graphs.restore(graph, meta, arguments.checkpoint)
    _refuse_missing(converted, restored, inputs)
    examples = _examples(converted, arguments.example, inputs)
    signature = {tensor.name.removesuffix(":0"): tensor for tensor in inputs}
    try:
        difference = population_export.write(
            converted, restored.values, arguments.out, signature, output.name.removesuffix(":0"), examples
        )
    except population_export.CheckFailed as error:
        raise CommandError(f"{error} Nothing was written.", status=1) from error
    _warn_of_statistics(converted, restored)
    for name in switches:
        flag = name.removesuffix(":0")
        print(f"{flag} is fixed to false; if it must be true, give --feed {flag}=true.")
    print(f"Written: {arguments.out}: {', '.join(map(feeds.describe, inputs))} → {arguments.output}.")
    print(f"Layers that use their moving statistics: {', '.join(converted.statistics) or 'none'}.")
    print(f"One at a time and in a batch, outputs differ by at most {difference:.3g}.")
    return 0


def _open_switches(graph: "tf.Graph", output: "tf.Tensor", taken: set[str]) -> list[str]:
    """Scalar bool placeholders on the way to the output without a given value: they switch between modes."""
    from bn_graph.commands import feeds
    from bn_graph.graphs import effects
    from bn_graph.graphs.graph import build

    needed = effects.upstream(build(graph), [output])
    return [
        tensor.name
        for tensor in feeds.placeholders(graph)
        if tensor.op.name in needed
        and tensor.name not in taken
        and tensor.dtype.base_dtype.is_bool
        and tensor.shape.rank in (0, None)
    ]


def _inputs(converted: "Converted", cut: list[str]) -> "list[tf.Tensor]":
    """The tensors to feed: `cut`, or every placeholder that the output needs."""
    from bn_graph.commands import feeds
    from bn_graph.graphs import effects
    from bn_graph.graphs.graph import build

    built = build(converted.graph)
    gone = [name for name in cut if name.partition(":")[0] not in effects.upstream(built, [converted.output])]
    if gone:
        raise CommandError(f"The output doesn't depend on --input {', '.join(gone)}.")
    open_ones = feeds.unfed(converted.graph, effects.upstream(built, [converted.output], fed=cut), cut)
    if cut and open_ones:
        listed = ", ".join(map(feeds.describe, open_ones))
        raise CommandError(f"The output needs {listed} too: name it with --input, or fix it with --feed NAME=VALUE.")
    scalars = [tensor for tensor in open_ones if tensor.shape.rank == 0]
    if scalars:
        raise CommandError(f"The output needs the scalar {feeds.describe(scalars[0])}: fix it with --feed NAME=VALUE.")
    inputs = [converted.graph.get_tensor_by_name(name) for name in cut] or open_ones
    if not inputs:
        raise CommandError("The output needs no placeholder: name the tensor to feed with --input NAME.")
    return inputs


def _refuse_missing(converted: "Converted", restored: "Restored", inputs: "list[tf.Tensor]") -> None:
    from bn_graph.checkpoints import meta_graphs
    from bn_graph.graphs import effects
    from bn_graph.graphs.graph import build

    statistics = {name for pair in converted.statistics.values() for name in pair}
    read = effects.variables_read(build(converted.graph), [converted.output], fed=inputs)
    lacking = [
        name for name in restored.missing if name in read - statistics - meta_graphs.statistics_of(converted.graph)
    ]
    if lacking:
        raise CommandError(f"The checkpoint lacks {', '.join(lacking[:5])}, which the output needs.")


def _examples(converted: "Converted", path: str | None, inputs: "list[tf.Tensor]") -> dict[str, np.ndarray] | None:
    from bn_graph.commands import feeds

    if path is None:
        return None
    data = feeds.examples(converted.graph, path)
    lacking = [tensor for tensor in inputs if tensor.name not in data]
    if lacking:
        raise CommandError(f"{path} has no array for the input {feeds.describe(lacking[0])}.")
    wanted = {tensor.name: data[tensor.name] for tensor in inputs}
    feeds.batch_size_of(converted.graph, wanted, None, default=1)
    return {name.removesuffix(":0"): array for name, array in wanted.items()}


def _warn_of_statistics(converted: "Converted", restored: "Restored") -> None:
    """One line each for statistics that the checkpoint lacks, and for those that were never updated."""
    missing = [layer for layer, pair in converted.statistics.items() if set(pair) & set(restored.missing)]
    initial = [
        layer
        for layer, pair in converted.statistics.items()
        if layer not in missing and _are_initial(restored.values, *pair)
    ]
    for layers, what in (
        (missing, "are not in the checkpoint"),
        (initial, "were never updated (means 0, variances all 1 or 0)"),
    ):
        if layers:
            print(
                f"bn_graph inference-graph: warning: the statistics of {', '.join(layers)} {what}; if the "
                "network was trained on batch statistics, run `python -m bn_graph recalibrate` first.",
                file=sys.stderr,
            )


def _are_initial(values: Mapping[str, np.ndarray], mean: str, variance: str) -> bool:
    from bn_graph.audit.report import State
    from bn_graph.audit.stored import Role, statistics_state
    from bn_graph.checkpoints.index import Entry

    entries = [Entry(values[name].dtype.name, values[name].shape, value=values[name]) for name in (mean, variance)]
    return statistics_state(zip(entries, (Role.MEAN, Role.VARIANCE), (None, None), strict=True)) == State.INITIAL
