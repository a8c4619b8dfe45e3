"""``python -m bn_graph recalibrate``: a new checkpoint with the population statistics of trained weights."""

import argparse
import contextlib
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from bn_graph.commands import CommandError
from bn_graph.graphs.errors import BnGraphError

if TYPE_CHECKING:  # TensorFlow takes seconds to import, and the parser shall not wait for it
    from bn_graph.checkpoints.meta_graphs import Restored
    from bn_graph.graphs.calls import FoundCalls
    from bn_graph.recalibration import LayerStatistics
    from bn_graph.tf1 import tf
    from bn_graph.training import distributed

__all__ = ["add_arguments", "run"]

_BATCH = 100
_STATISTICS_RULES = ("BN002", "BN006")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to `parser`."""
    parser.add_argument("--meta", required=True, help="the graph: a .meta file")
    parser.add_argument("--checkpoint", required=True, help="prefix of the trained checkpoint; it is only read")
    parser.add_argument(
        "--data",
        required=True,
        help=".npz file, arrays named like the placeholders, first axis = examples; or a directory of such files, read one "
        "after the other in the order of their names, or of .npy files with the one input of the layers",
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
        "--cache",
        type=_bytes,
        default="1G",
        metavar="SIZE",
        help="how much pooled may keep of one depth level for the next, so that the data is gone through once: 500M, 4G "
        "(default: %(default)s); what doesn't fit is computed again",
    )
    parser.add_argument(
        "--cache-dir", metavar="DIR", help="keep it in a temporary file there, and not in memory; it never stays behind"
    )
    parser.add_argument(
        "--inference-layers",
        action="store_true",
        help="also layers built for inference only, whose statistics no batch ever updates: right if their weights were "
        "trained with batch statistics, wrong if with the statistics as they are",
    )
    parser.add_argument("--out", required=True, metavar="NEW", help="prefix of the new checkpoint; must not exist")
    parser.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="share the batches among N processes; the result is the same",
    )
    parser.add_argument("--launcher", type=int, help=argparse.SUPPRESS)


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of processes, 1 or more, got {text!r}")
    return int(text)


def _bytes(text: str) -> int:
    """``500M`` as a number of bytes."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        size = int(float(number) * 1024 ** ("", "K", "M", "G", "T").index(unit))
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise argparse.ArgumentTypeError(f"expected a size in bytes such as 500M or 4G, got {text!r}")
    return size


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
        if arguments.workers == 1:
            return _recalibrate(arguments)
        return _run_workers(arguments) if arguments.launcher is None else _end_as_worker(arguments)
    except KeyboardInterrupt:
        is_complete = os.path.exists(f"{arguments.out}.index")
        raise KeyboardInterrupt(f"{arguments.out} is complete" if is_complete else "nothing was written") from None


def _recalibrate(arguments: argparse.Namespace, cluster: "distributed.Cluster | None" = None) -> int:
    from bn_graph.checkpoints import meta_graphs
    from bn_graph.graphs.calls import find_calls
    from bn_graph.tf1 import tf

    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise CommandError(f"--batch-size must be at least 1, got {arguments.batch_size}.")
    meta_graphs.refuse_existing(arguments.out)
    meta = meta_graphs.read(arguments.meta)
    graph = meta_graphs.import_graph(meta)
    found = find_calls(graph)
    feed = _feed(graph, found, arguments)  # before the checkpoint, which may be large, is read
    restored = meta_graphs.restore(graph, meta, arguments.checkpoint)
    layers, left_out = _layers(graph, found, restored, arguments.inference_layers)
    _refuse_unfed(graph, found, layers, feed, arguments.method)
    with tf.Session(graph=graph) as session:
        meta_graphs.assign(session, restored.values)
        records = _recalibrated(session, feed, list(layers), arguments, cluster)
        if cluster is not None and not cluster.is_chief:
            return 0
        meta_graphs.write(session, arguments.out, restored.keys)
    _print_table(records, restored.missing)
    _print_rest(graph, found, restored, layers, left_out, feed)
    print(f"Written: {arguments.out} (.index, .data, .meta). {arguments.checkpoint} is as it was.")
    return _audited(arguments.out, left_out)


# --- Several processes ------------------------------------------------------------------------------------------------


def _run_workers(arguments: argparse.Namespace) -> int:
    from bn_graph.commands import workers
    from bn_graph.training import distributed

    given = {name: value for name, value in vars(arguments).items() if value is not None and value is not False}
    words = [f"--feed={pair}" for pair in given.pop("feed")]
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        words.append(option if value is True else f"{option}={value}")
    command = [sys.executable, "-m", "bn_graph", "recalibrate", *words, f"--launcher={os.getpid()}"]
    try:
        return workers.run_all(command, distributed.local_tf_configs(arguments.workers))
    except CommandError as error:
        if os.path.exists(f"{arguments.out}.index"):
            raise
        raise CommandError(f"{str(error).removesuffix('.')}. Nothing was written.") from error


def _end_as_worker(arguments: argparse.Namespace) -> NoReturn:
    """Recalibrates as the worker that ``TF_CONFIG`` says, and ends the process: a TensorFlow server has no clean end."""
    from bn_graph.commands import workers
    from bn_graph.training import distributed

    workers.end_with_launcher(arguments.launcher)
    try:
        status = _recalibrate(arguments, distributed.cluster_from_tf_config())
    except (BnGraphError, OSError, distributed.WorkerLostError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        status = getattr(error, "status", 2)
    except Exception:
        traceback.print_exc()
        status = 3  # 1 is what the audit of the new checkpoint may say
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# --- The data ---------------------------------------------------------------------------------------------------------


class _Feed(NamedTuple):
    """What the batches are made of.

    `shards` reads the examples, a file at a time, by the names of tensors, `names`; `values` are single ones. `lengths`: how
    many examples there are in each file that has been read. `whole`: the graph takes batches of just `size`.
    """

    shards: Callable[[], Iterable[dict[str, np.ndarray]]]
    names: list[str]
    values: dict[str, np.ndarray]
    lengths: dict[str, int]
    size: int
    whole: bool

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """What each batch feeds."""
        from bn_graph.commands import feeds

        return ({**batch, **self.values} for batch in feeds.batches(self.shards(), self.size, self.whole))

    @property
    def dropped(self) -> int:
        return sum(self.lengths.values()) % self.size if self.whole else 0


def _feed(graph: "tf.Graph", found: "FoundCalls", arguments: argparse.Namespace) -> _Feed:
    from bn_graph.commands import feeds

    values = feeds.singles(graph, arguments.feed)
    files = feeds.files(arguments.data)
    is_one = files == [arguments.data]
    lone = None if is_one or not any(file.endswith(".npy") for file in files) else _only_input(graph, found, values)
    first = {files[0]: feeds.examples(graph, files[0], lone)}
    names = list(first[files[0]])
    both = sorted(values.keys() & names)
    if both:
        raise CommandError(f"{both[0]} is both in {arguments.data} and in --feed.")
    size = feeds.batch_size_of(graph, first[files[0]], arguments.batch_size, _BATCH, is_all=is_one)
    shapes = [graph.get_tensor_by_name(name).shape for name in names]
    whole = any(shape.rank and shape.as_list()[0] is not None for shape in shapes)
    lengths: dict[str, int] = {}
    if not is_one:
        first.clear()  # one file is in memory at a time

    def shards() -> Iterator[dict[str, np.ndarray]]:
        for file in files:
            shard = first.get(file) or feeds.examples(graph, file, lone)
            if sorted(shard) != sorted(names):
                raise CommandError(f"{file} has {', '.join(shard)}, where {files[0]} has {', '.join(names)}.")
            lengths[file] = len(shard[names[0]])
            yield shard
            del shard

    return _Feed(shards, names, values, lengths, size, whole)


def _only_input(graph: "tf.Graph", found: "FoundCalls", values: Mapping[str, np.ndarray]) -> str:
    """The name of the placeholder of examples that the layers' inputs need, if it is the only one."""
    from bn_graph.commands import feeds
    from bn_graph.graphs import effects

    inputs = [name for name in map(found.inputs, found.calls) if "//" not in name]
    needed = feeds.unfed(graph, effects.upstream(found.graph, inputs), list(values))
    needed = [tensor for tensor in needed if tensor.shape.rank != 0]
    if len(needed) != 1:
        listed = ", ".join(map(feeds.describe, needed)) or "none"
        raise CommandError(f".npy files are for the one input of the layers; they need {listed}: use .npz files.")
    return needed[0].name


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
    missing = feeds.unfed(graph, needed, [*feed.names, *feed.values])
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


def _recalibrated(
    session: "tf.Session",
    feed: _Feed,
    layers: Sequence[str],
    arguments: argparse.Namespace,
    cluster: "distributed.Cluster | None",
) -> "list[LayerStatistics]":
    """Recalibrates, with a share of the batches in a cluster; what the library warns of is printed as a line."""
    from bn_graph.recalibration import recalibrate

    count, index = (1, 0) if cluster is None else (len(cluster.addresses), cluster.index)
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        records = recalibrate(
            session,
            lambda: itertools.islice(feed.batches(), index, None, count),
            method=arguments.method,
            layers=layers,
            config=_config(count),
            progress=_progress_bar,
            cache_bytes=arguments.cache // count,
            cache_dir=arguments.cache_dir,
            gather=None if cluster is None else stack.enter_context(_exchange(cluster, arguments.method, layers)),
        )
    for warning in caught:
        if warning.category is UserWarning:
            print(warning.message)
    return records


def _config(count: int) -> "tf.ConfigProto | None":
    """Each process's part of the cores."""
    from bn_graph.tf1 import tf

    if count == 1:
        return None
    threads = max(1, (os.cpu_count() or 1) // count)
    return tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)


def _exchange(cluster: "distributed.Cluster", method: str, layers: Sequence[str]) -> contextlib.AbstractContextManager:
    from bn_graph.recalibration import workers

    return workers.exchange(cluster, agree=" ".join([method, *layers]))


def _progress_bar(batches: Iterable) -> Iterable:
    try:
        from tqdm import tqdm
    except ImportError:  # the library is installed without it
        return batches
    return tqdm(batches, unit="batch", desc="recalibrate", leave=False, disable=None)


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
