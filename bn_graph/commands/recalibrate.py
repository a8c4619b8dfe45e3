"""``python -m bn_graph recalibrate``: a new checkpoint with the population statistics of trained weights."""

import argparse
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bn_graph.commands import CommandError

if TYPE_CHECKING:  # TensorFlow takes seconds to import, and the parser shall not wait for it
    from bn_graph.checkpoints.meta_graphs import Restored
    from bn_graph.graphs.calls import FoundCalls
    from bn_graph.recalibration import LayerStatistics
    from bn_graph.tf1 import tf

__all__ = ["add_arguments", "run"]

_BATCH = 100
_STATISTICS_RULES = ("BN002", "BN006")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to `parser`."""
    parser.add_argument("--meta", required=True, help="the graph: a .meta file")
    parser.add_argument("--checkpoint", required=True, help="prefix of the trained checkpoint; it is only read")
    parser.add_argument(
        "--data", required=True, help=".npz file; arrays named like the placeholders, first axis = examples"
    )
    parser.add_argument(
        "--feed", action="append", default=[], metavar="NAME=VALUE", help="a scalar placeholder: keep_prob=1.0"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help=f"examples a batch ({_BATCH}, or the graph's)")
    parser.add_argument(
        "--method",
        choices=("pooled", "paper"),
        default="pooled",
        help="pooled: over all values, earlier layers as at inference; paper: its Algorithm 2, over training batches",
    )
    parser.add_argument(
        "--inference-layers",
        action="store_true",
        help="also layers built for inference only, whose statistics no batch ever updates: right if their weights were "
        "trained with batch statistics, wrong if with the statistics as they are",
    )
    parser.add_argument("--out", required=True, metavar="NEW", help="prefix of the new checkpoint; must not exist")


def run(arguments: argparse.Namespace) -> int:
    """Recalibrates as the arguments say, and prints what it did.

    Args:
        arguments: as `add_arguments` defines them.

    Returns:
        The exit status: 0; 1 if the audit of the new checkpoint still finds statistics that were never updated or are
        missing.

    Raises:
        BnGraphError: an argument, the data, the graph or the checkpoint can't be used; nothing was written. With status 1,
            the new checkpoint can't be audited.
        KeyboardInterrupt: says whether the new checkpoint was written.
    """
    from bn_graph.commands.quiet import start_tensorflow_quietly

    try:
        # What goes wrong while ops run is raised, and reported in one line; the runtime's own log of it would repeat it.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        start_tensorflow_quietly()
        return _recalibrate(arguments)
    except KeyboardInterrupt:
        is_complete = os.path.exists(f"{arguments.out}.index")
        raise KeyboardInterrupt(f"{arguments.out} is complete" if is_complete else "nothing was written") from None


def _recalibrate(arguments: argparse.Namespace) -> int:
    from bn_graph.checkpoints import meta_graphs
    from bn_graph.graphs.calls import find_calls
    from bn_graph.tf1 import tf

    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise CommandError(f"--batch-size must be at least 1, got {arguments.batch_size}.")
    meta_graphs.refuse_existing(arguments.out)
    meta = meta_graphs.read(arguments.meta)
    graph = meta_graphs.import_graph(meta)
    feed = _feed(graph, arguments)  # before the checkpoint, which may be large, is read
    restored = meta_graphs.restore(graph, meta, arguments.checkpoint)
    found = find_calls(graph)
    layers, left_out = _layers(graph, found, restored, arguments.inference_layers)
    _refuse_unfed(graph, found, layers, feed, arguments.method)
    with tf.Session(graph=graph) as session:
        meta_graphs.assign(session, restored.values)
        records = _recalibrated(session, feed, list(layers), arguments.method)
        meta_graphs.write(session, arguments.out, restored.keys)
    _print_table(records, restored.missing)
    _print_rest(graph, found, restored, layers, left_out, feed)
    print(f"Written: {arguments.out} (.index, .data, .meta). {arguments.checkpoint} is as it was.")
    return _audited(arguments.out, left_out)


# --- The data ---------------------------------------------------------------------------------------------------------


class _Feed(NamedTuple):
    """Examples and single values by names of tensors; `whole`: the graph takes batches of just `size`."""

    data: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    size: int
    whole: bool

    @property
    def dropped(self) -> int:
        return len(next(iter(self.data.values()))) % self.size if self.whole else 0


def _feed(graph: "tf.Graph", arguments: argparse.Namespace) -> _Feed:
    from bn_graph.commands import feeds

    values = feeds.singles(graph, arguments.feed)
    data = feeds.examples(graph, arguments.data)
    both = sorted(data.keys() & values.keys())
    if both:
        raise CommandError(f"{both[0]} is both in {arguments.data} and in --feed.")
    size = feeds.batch_size_of(graph, data, arguments.batch_size, _BATCH)
    shapes = [graph.get_tensor_by_name(name).shape for name in data]
    return _Feed(data, values, size, any(shape.rank and shape.as_list()[0] is not None for shape in shapes))


def _refuse_unfed(
    graph: "tf.Graph", found: "FoundCalls", layers: Mapping[str, Sequence], feed: _Feed, method: str
) -> None:
    from bn_graph.commands import feeds
    from bn_graph.graphs import effects
    from bn_graph.graphs.graph import build
    from bn_graph.inference import switching

    inputs = [found.inputs(call) for calls in layers.values() for call in calls]
    graph_def, names = graph, [name for name in inputs if "//" not in name]
    if method == "pooled":
        switched = switching.by_moving_statistics(graph, found)
        graph_def, names = switched.graph_def, [switched.replacements.get(name, name) for name in names]
    needed = effects.upstream(build(graph_def), names)
    missing = feeds.unfed(graph, needed, [*feed.data, *feed.values])
    if missing:
        scalar = missing[0].shape.rank in (0, None)
        raise CommandError(
            f"The layers' inputs need the placeholder {', '.join(map(feeds.describe, missing))}: "
            + ("give --feed NAME=VALUE, or put it into the data." if scalar else "put it into the data.")
        )


# --- The layers -------------------------------------------------------------------------------------------------------


def _layers(
    graph: "tf.Graph", found: "FoundCalls", restored: "Restored", inference_layers: bool
) -> tuple[dict[str, list], dict[str, list[str]]]:
    """The calls of each layer that can be computed; and the layers of which the checkpoint has nothing, with why."""
    from bn_graph.checkpoints import meta_graphs

    of_inference = found.only_for_inference
    layers = {name: calls for name, calls in found.by_layer.items() if inference_layers or name not in of_inference}
    if not layers:
        raise CommandError(_why_none(graph, of_inference))
    left_out = {}
    for layer, own in layers.items():
        names = [found.inputs(call).partition("//")[0] for call in own]
        lacking = meta_graphs.missing_weights(graph, restored, names)
        if lacking:
            left_out[layer] = lacking
    partly = [layer for layer in left_out if any(name.startswith(f"{layer}/") for name in restored.keys)]
    if partly or len(left_out) == len(layers):
        layer = (partly or list(left_out))[0]
        raise CommandError(
            f"The checkpoint lacks {', '.join(left_out[layer][:5])}, on which the inputs of layer {layer} depend: "
            "its statistics can't be computed without those weights."
        )
    return {layer: calls for layer, calls in layers.items() if layer not in left_out}, left_out


def _why_none(graph: "tf.Graph", of_inference: Sequence[str]) -> str:
    from bn_graph.layers.averages import moving_statistics

    statistics = [variable.op.name for variable in moving_statistics(graph)]
    if not statistics and not of_inference:
        return "No batch norm layer with moving statistics was found in the graph."
    wanted = " If they were trained with batch statistics, give --inference-layers." if of_inference else ""
    return (
        f"No op of the graph averages a batch's statistics into {', '.join(statistics[:4] or of_inference[:4])}: the layers "
        f"were built for inference, and if they were trained so, the weights belong to the statistics as they are.{wanted}"
    )


def _recalibrated(session: "tf.Session", feed: _Feed, layers: Sequence[str], method: str) -> "list[LayerStatistics]":
    from bn_graph.commands import feeds
    from bn_graph.recalibration import recalibrate

    def start():
        return ({**batch, **feed.values} for batch in feeds.batches(feed.data, feed.size, feed.whole))

    total = sum(1 for _ in feeds.batches(feed.data, feed.size, feed.whole))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return recalibrate(session, start, method=method, layers=layers, progress=_progress_bar(total))


def _progress_bar(total: int) -> Callable[[Iterable], Iterable]:
    try:
        from tqdm import tqdm
    except ImportError:  # the library is installed without it
        return iter
    return functools.partial(tqdm, total=total, unit="batch", desc="recalibrate", leave=False, disable=None)


# --- The report -------------------------------------------------------------------------------------------------------


def _print_table(records: "Sequence[LayerStatistics]", missing: Sequence[str]) -> None:
    width = max(len("layer"), *(len(record.layer) for record in records))
    triple = "min / median / max"
    print(f"{'layer':<{width}}          {'mean: ' + triple:<36}{'variance: ' + triple:<36}values a channel")
    for record in records:
        before = ["missing" if name in missing else None for name in (record.moving_mean, record.moving_variance)]
        mean = before[0] or _summary(record.mean_before)
        variance = before[1] or _summary(record.variance_before)
        print(f"{record.layer:<{width}}  before  {mean:<36}{variance}")
        mean, variance = _summary(record.mean), _summary(record.variance)
        print(f"{'':<{width}}  after   {mean:<36}{variance:<36}{record.count}")


def _summary(values: np.ndarray) -> str:
    values = np.asarray(values, np.float64)
    return f"{values.min():.4g} / {np.median(values):.4g} / {values.max():.4g}"


def _print_rest(
    graph: "tf.Graph",
    found: "FoundCalls",
    restored: "Restored",
    layers: Mapping[str, Sequence],
    left_out: Mapping[str, Sequence[str]],
    feed: _Feed,
) -> None:
    from bn_graph.layers.averages import moving_statistics

    known = {name for calls in layers.values() for name in found.statistics(*calls)}
    if left_out:
        print(f"Left as they are, since the checkpoint has nothing of theirs: {', '.join(left_out)}.")
    scopes = tuple(f"{layer}/" for layer in [*layers, *left_out])
    others = [variable.op.name for variable in moving_statistics(graph)]
    others = [name for name in others if name not in known and not name.startswith(scopes)]
    built_so = {name for layer in found.only_for_inference for name in found.statistics(*found.by_layer[layer])}
    of_inference = [name for name in others if name in built_so]
    others = [name for name in others if name not in of_inference]
    if of_inference:
        print(
            f"Left as they are, since their layers were built for inference: {', '.join(of_inference)}. "
            "If the weights were trained with batch statistics, give --inference-layers."
        )
    for sentence in found.left_as_they_are(others):
        print(sentence)
    initialized = [name for name in restored.missing if name not in known]
    if initialized:
        print(f"Not in the checkpoint, and so initialized: {', '.join(initialized)}.")
    if feed.dropped:
        print(f"The graph takes batches of {feed.size}: the last {feed.dropped} examples were left out.")


def _audited(prefix: str, left_out: Mapping[str, Sequence[str]]) -> int:
    """Prints what the audit of the new checkpoint finds about its statistics; the exit status."""
    from bn_graph.audit import AuditError, audit

    try:
        report = audit(f"{prefix}.meta", checkpoint=prefix)
    except AuditError as error:
        raise CommandError(f"the new checkpoint can't be audited: {error}", status=1) from error
    findings = [finding for finding in report.errors if finding.code in _STATISTICS_RULES]
    for finding in findings:
        print(f"{finding.code} {', '.join(finding.layers)}: {finding.message}")
    wrong = [finding for finding in findings if set(finding.layers) - set(left_out)]
    if not wrong:
        print(f"Audit: the statistics of {'the other layers' if findings else 'all layers'} are there, and updated.")
    return 1 if wrong else 0
