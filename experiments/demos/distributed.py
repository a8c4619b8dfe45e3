"""Data-parallel training of r2rt's network, with batch statistics over all workers and without, against one process.

    make distributed WORKERS=2        make distributed WORKERS=3 DATA=mnist STEPS=1000

starts so many processes on the loopback, which train on equal parts of each batch, and writes one checkpoint. Then it
trains on the same batches in one process, in towers of one process (with TensorFlow's collectives and by
``MirroredStrategy``), and in workers without common statistics, and prints how far each ends from the one process.

With ``TF_CONFIG`` in the environment the same program is one worker of that cluster, on this host or on several::

    TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}' \\
        python -m experiments.demos.distributed

The first worker keeps the checkpoints, and is the only one that needs them to go on from. Exit status: 0; 1 when a worker
was lost in training (start all again: they go on from the last checkpoint); 2 for a user error. It judges no
claim.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.commands.workers import end_with_launcher, started_workers
from bn_graph.tf1 import tf
from bn_graph.training import distributed, train_op
from experiments.machinery import programs, results

NAME = "distributed"
HIDDEN_UNITS = [100, 100]  # the document's
LEARNING_RATE = 0.01  # the document's, of the summed loss
DECAY = 0.99  # the document has 0.999, which after 200 steps still holds 82 % of the initial values
BATCH_SIZE = 120  # of all workers together: the document's 60 at each of two
STEPS = 200  # so many that a difference would have grown, so few that float32 rounding has not
CHECKPOINT_EVERY = 50
PROGRAM = [sys.executable, "-m", "experiments.demos.distributed"]

STATISTICS = {
    "together": "all workers' examples, one batch (sync)",
    "population": "each worker's own, population of all (sync_population_only)",
    "alone": "each worker's own (no sync)",
}


class Run(NamedTuple):
    """What one training left: the total loss of each step, the variables by name, test accuracy, examples a second."""

    losses: list[float]
    variables: dict[str, np.ndarray]
    accuracy: float
    speed: float
    resumed_at: int = 0


def main(argv: list[str] | None = None) -> int:
    """Runs a worker if ``TF_CONFIG`` is set, else starts some and compares; returns the exit status."""
    stopped = "stopped. The same command goes on from the last checkpoint."
    return programs.run(_parser(), argv, _work, stopped=stopped)


def _work(given: argparse.Namespace) -> int:
    try:
        if "TF_CONFIG" in os.environ:
            return run_worker(given)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are stopped on the way out
        return compare(given)
    except distributed.ClusterError as error:
        raise programs.UsageError(str(error)) from error
    except distributed.WorkerLostError as error:
        print(f"{NAME}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = programs.parser(__name__, __doc__)
    parser.add_number("--workers", "workers", 1, 2, "local processes")
    parser.add_data()
    parser.add_number("--steps", "steps", 1, STEPS, "training steps")
    parser.add_number("--seed", "a seed", 0, 0, "of weights and batches")
    parser.add_number("--batch-size", "a batch", 2, BATCH_SIZE, "of all workers")
    parser.add_argument(
        "--statistics", choices=STATISTICS, default="together", help="of a worker (default: %(default)s)"
    )
    parser.add_number("--checkpoint-every", "an interval", 1, CHECKPOINT_EVERY, "steps")
    parser.add_number("--wait", "a wait", 1, 60, "seconds for a worker to come")
    parser.add_number("--timeout", "a timeout", 1, 20, "seconds for a step")
    parser.add_output()
    parser.add_argument("--fresh", action="store_true", help="forget earlier checkpoints of these workers")
    parser.add_argument("--launcher", type=int, help=argparse.SUPPRESS)
    return parser


# ---- one worker ------------------------------------------------------------------------------------------------------


def run_worker(given: argparse.Namespace) -> int:
    """Trains as one worker of the cluster of ``TF_CONFIG``. The chief leaves checkpoints and ``run.json``."""
    if given.launcher:
        end_with_launcher(given.launcher)
    cluster = distributed.cluster_from_tf_config()
    dataset = bn_graph.load(given.data)
    _check_batch_size(given.batch_size, len(cluster.addresses), dataset)
    folder = _folder(given.output, given.statistics)
    if cluster.is_chief and given.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        _train_part(given, cluster, dataset, folder)
    except distributed.WorkerLostError as error:
        latest = tf.train.latest_checkpoint(folder) if cluster.is_chief else None
        raise distributed.WorkerLostError(f"{error}{f' That is {latest}.' if latest else ''}") from error
    return 0


def _check_batch_size(batch_size: int, workers: int, dataset: bn_graph.Dataset) -> None:
    if not 2 * workers <= batch_size <= dataset.train.size:
        raise programs.UsageError(
            f"--batch-size is of all {workers} workers together: expected {2 * workers} to {dataset.train.size}, two "
            f"examples a worker and at most the training set, got {batch_size}."
        )


def _folder(output: Path, statistics: str) -> Path:
    return output / NAME / "checkpoints" / statistics


def _train_part(
    given: argparse.Namespace, cluster: distributed.Cluster, dataset: bn_graph.Dataset, folder: Path
) -> None:
    workers = cluster.workers(given.timeout)
    identity = {"data": dataset.sha256, "batch": given.batch_size, "seed": given.seed, "statistics": given.statistics}
    agree = json.dumps(identity | {"steps": given.steps})
    if cluster.is_chief:
        _refuse_other_settings(folder, identity | {"workers": workers.size})
    with tf.Graph().as_default():
        network = build(dataset, given.seed, _normalizer(given.statistics, distributed.gatherer(workers)))
        optimizer = tf.train.GradientDescentOptimizer(LEARNING_RATE)
        step, total = distributed.train_op(optimizer, network.loss, workers, network.global_step)
        equal = distributed.broadcast_op(tf.global_variables(), workers)
        saver = bn_graph.make_saver(max_to_keep=2)
        with distributed.session(cluster, agree=agree, wait=given.wait, timeout=given.timeout) as session:
            bn_graph.resume(session, folder if cluster.is_chief else None)
            session.run(equal)
            first = int(session.run(network.global_step))
            print(f"worker {cluster.index}: {workers.size} workers, from step {first}", flush=True)
            losses, started, seconds = [], time.monotonic(), 0.0
            for done, part in _parts(dataset, given, workers, first):
                feed = {network.x: dataset.train.images[part], network.y_: dataset.train.labels[part]}
                losses.append(float(session.run([total, step], feed)[0]))
                if done % given.checkpoint_every and done != given.steps:
                    continue
                seconds += time.monotonic() - started
                if cluster.is_chief:
                    bn_graph.save(saver, session, folder / "step", global_step=done, write_meta_graph=False)
                print(f"worker {cluster.index}: step {done}", flush=True)
                started = time.monotonic()
            session.run(equal)  # nobody goes before all are there
    if cluster.is_chief:
        speed = given.batch_size * len(losses) / seconds if losses else 0.0
        results.write_json(folder / "run.json", {"first": first, "losses": losses, "speed": speed})


def _refuse_other_settings(folder: Path, identity: dict) -> None:
    """Checkpoints of another training must not be taken for earlier ones of this."""
    record = folder / "settings.json"
    if not record.exists():
        results.write_json(record, identity)
    elif json.loads(record.read_text()) != identity:
        raise programs.UsageError(
            f"{folder} has checkpoints of another training (see {record.name} there): add --fresh."
        )


def _parts(
    dataset: bn_graph.Dataset, given: argparse.Namespace, workers: distributed.Workers, first: int
) -> Iterator[tuple[int, np.ndarray]]:
    """For each step to come the number of steps when it is done, and this worker's rows: of sizes that differ by 1."""
    rows = _batches(given, dataset, first)
    for done in range(first + 1, given.steps + 1):
        yield done, np.array_split(next(rows), workers.size)[workers.index]


def _batches(given: argparse.Namespace, dataset: bn_graph.Dataset, first: int = 0) -> Iterator[np.ndarray]:
    return bn_graph.training.datasets.batch_rows(dataset.train.size, given.batch_size, seed=given.seed, start=first)


def build(dataset: bn_graph.Dataset, seed: int, normalizer: Callable) -> bn_graph.Network:
    """r2rt's network for this data, in the default graph. Its own train op knows of no other worker."""
    return bn_graph.build_graph(True, _weights(dataset, seed), normalizer=normalizer, learning_rate=LEARNING_RATE)


def _weights(dataset: bn_graph.Dataset, seed: int) -> list[np.ndarray]:
    return bn_graph.normal_weights([dataset.train.images.shape[1], *HIDDEN_UNITS, 10], seed)


def _normalizer(statistics: str, sync=None, **options):
    only = {"sync_population_only": True} if statistics == "population" else {}
    sync = None if statistics == "alone" else sync
    return partial(bn_graph.batch_norm_wrapper, decay=DECAY, sync=sync, **only, **options)


# ---- the comparison --------------------------------------------------------------------------------------------------


def compare(given: argparse.Namespace) -> int:
    """Trains with local processes and in every other way, prints the table, and writes ``result.json``."""
    dataset = bn_graph.load(given.data)
    _check_batch_size(given.batch_size, given.workers, dataset)
    print(bn_graph.datasets.describe(dataset), flush=True)
    runs = {}
    for statistics in dict.fromkeys([given.statistics, *STATISTICS]):
        runs[f"{given.workers} processes, {STATISTICS[statistics]}"] = run_processes(given, dataset, statistics)
    print("one process, towers, MirroredStrategy ...", flush=True)
    reference = run_single(given, dataset)
    for statistics in ("together", "alone"):
        label = STATISTICS[statistics]
        runs[f"towers, {label}, update ops of tower 0"] = run_towers(given, dataset, statistics)
        runs[f"MirroredStrategy, {label}"] = run_mirrored(given, dataset, statistics)
    rows = {"one process": _row(reference, reference)} | {name: _row(run, reference) for name, run in runs.items()}
    result = {
        "experiment": NAME,
        "data": dataset.name,
        "settings": {
            "workers": given.workers,
            "batch_size": given.batch_size,
            "steps": given.steps,
            "seed": given.seed,
            "decay": DECAY,
        },
        "versions": results.versions(),
        "runs": rows,
    }
    results.write_json(given.output / NAME / "result.json", result)
    print(summarize(result))
    print(f"checkpoint: {tf.train.latest_checkpoint(_folder(given.output, given.statistics))}")
    return 0


def run_processes(given: argparse.Namespace, dataset: bn_graph.Dataset, statistics: str) -> Run:
    """Starts the workers, waits for them, and restores what the chief saved in this one process.

    Raises:
        programs.UsageError: a worker ended with status 2; it has said why.
        WorkerLostError: a worker ended otherwise. The others have been stopped.
    """
    folder = _folder(given.output, statistics)
    latest = tf.train.latest_checkpoint(folder)
    fresh = given.fresh or (latest is not None and int(latest.rpartition("-")[2]) >= given.steps)
    options = {
        "data": given.data,
        "steps": given.steps,
        "seed": given.seed,
        "batch-size": given.batch_size,
        "statistics": statistics,
        "checkpoint-every": given.checkpoint_every,
        "wait": given.wait,
        "timeout": given.timeout,
        "output": given.output,
        "launcher": os.getpid(),
    }
    arguments = [f"--{name}={value}" for name, value in options.items()] + ["--fresh"] * fresh
    print(f"{given.workers} processes: {STATISTICS[statistics]}", flush=True)
    _run_all([*PROGRAM, *arguments], distributed.local_tf_configs(given.workers))
    left = json.loads((folder / "run.json").read_text())
    variables, accuracy = _restored(given, dataset, folder)
    return Run(left["losses"], variables, accuracy, left["speed"], left["first"])


def _run_all(command: list[str], configs: list[str]) -> None:
    """Runs a process for each ``TF_CONFIG``; when one fails, or this process is stopped, none is left behind."""
    # TensorFlow's native code warns of every collective that it cleans up; its errors still come through.
    with started_workers(command, configs, TF_CPP_MIN_LOG_LEVEL="2") as processes:
        ends = [None]
        while None in ends and not any(ends):
            time.sleep(0.05)
            ends = [process.poll() for process in processes]
    failed = next((index for index, end in enumerate(ends) if end), None)
    if failed is None:
        return
    if ends[failed] == 2:
        raise programs.UsageError(f"worker {failed} could not go on, for the reason above; all were stopped.")
    how = f"was killed by signal {-ends[failed]}" if ends[failed] < 0 else f"ended with status {ends[failed]}"
    raise distributed.WorkerLostError(
        f"worker {failed} {how}; the others were stopped. The same command goes on from the last checkpoint."
    )


def _restored(
    given: argparse.Namespace, dataset: bn_graph.Dataset, folder: Path
) -> tuple[dict[str, np.ndarray], float]:
    """The checkpoint's variables, and the test accuracy of the inference network that they are restored into."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = _inference(dataset, given.seed)
        bn_graph.restore(session, folder)
        return _values(session), _accuracy(session, network, dataset)


def _inference(dataset: bn_graph.Dataset, seed: int) -> bn_graph.Network:
    return bn_graph.build_graph(False, _weights(dataset, seed))


def _values(session: tf.Session) -> dict[str, np.ndarray]:
    variables = tf.global_variables()
    values = session.run([variable.read_value() for variable in variables])
    return {variable.op.name: value for variable, value in zip(variables, values, strict=True)}


def _accuracy(session: tf.Session, network: bn_graph.Network, dataset: bn_graph.Dataset) -> float:
    feed = {network.x: dataset.test.images, network.y_: dataset.test.labels}
    return float(session.run(network.accuracy, feed))


def run_single(given: argparse.Namespace, dataset: bn_graph.Dataset) -> Run:
    """One process that sees each batch whole: what all other ways are measured against."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = build(dataset, given.seed, _normalizer("alone"))
        return _trained(given, dataset, session, [network], network.loss, network.train_op)


def run_towers(given: argparse.Namespace, dataset: bn_graph.Dataset, statistics: str) -> Run:
    """Towers on logical CPUs of one process that share their variables; the update ops of the first are run."""
    networks, gradients = [], []
    optimizer = tf.train.GradientDescentOptimizer(LEARNING_RATE)
    with tf.Graph().as_default(), tf.Session(config=_logical_cpus(given.workers)) as session:
        for index in range(given.workers):
            sync = distributed.gatherer(distributed.Workers(given.workers, index))
            normalizer = _normalizer(statistics, sync, updates_collection=tf.GraphKeys.UPDATE_OPS)
            with (
                tf.device(f"/cpu:{index}"),
                tf.name_scope(f"tower_{index}"),
                tf.variable_scope(tf.get_variable_scope(), reuse=index > 0, auxiliary_name_scope=False),
            ):
                networks.append(build(dataset, given.seed, normalizer))
                gradients.append(optimizer.compute_gradients(networks[-1].loss))
        # Every tower runs its own layers, so each layer's exchange has all its partners; the variables move once.
        summed = [(tf.add_n([each for each, _ in pairs]), pairs[0][1]) for pairs in zip(*gradients, strict=True)]
        with tf.control_dependencies(train_op.collect(name_scope="tower_0")):
            step = optimizer.apply_gradients(summed, networks[0].global_step)
        total = tf.add_n([network.loss for network in networks])
        return _trained(given, dataset, session, networks, total, step)


def run_mirrored(given: argparse.Namespace, dataset: bn_graph.Dataset, statistics: str) -> Run:
    """`MirroredStrategy` over logical CPUs: a copy of the variables at each, which its optimizers keep equal."""
    networks = []

    def replica() -> tf.Tensor:
        network = build(dataset, given.seed, _normalizer(statistics, distributed.across_replicas))
        networks.append(network)
        with tf.control_dependencies([network.train_op]):
            return tf.identity(network.loss)

    with tf.Graph().as_default(), tf.Session(config=_logical_cpus(given.workers)) as session:
        strategy = tf.distribute.MirroredStrategy([f"/cpu:{index}" for index in range(given.workers)])
        with strategy.scope():
            total = strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(replica), axis=None)
        return _trained(given, dataset, session, networks, total, tf.no_op())


def _logical_cpus(count: int) -> tf.ConfigProto:
    config = bn_graph.session_config()
    config.device_count["CPU"] = count
    return config


def _trained(
    given: argparse.Namespace,
    dataset: bn_graph.Dataset,
    session: tf.Session,
    networks: list[bn_graph.Network],
    total: tf.Tensor,
    step: tf.Operation,
) -> Run:
    session.run(tf.global_variables_initializer())
    losses, started = [], time.monotonic()
    for rows in itertools.islice(_batches(given, dataset), given.steps):
        feed = {}
        for network, part in zip(networks, np.array_split(rows, len(networks)), strict=True):
            feed |= {network.x: dataset.train.images[part], network.y_: dataset.train.labels[part]}
        losses.append(float(session.run([total, step], feed)[0]))
    speed = given.batch_size * given.steps / (time.monotonic() - started)
    values = _values(session)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as predicting:
        network = _inference(dataset, given.seed)
        assign_values(predicting, [(variable, values[variable.op.name]) for variable in tf.global_variables()])
        return Run(losses, values, _accuracy(predicting, network, dataset), speed)


def _row(run: Run, reference: Run) -> dict[str, float]:
    """How far `run` is from `reference`; differences of variables relative to the variable's largest value."""

    def apart(*leaves: str) -> float:
        names = [name for name in reference.variables if name.endswith(leaves)]
        return max(_relative(run.variables[name], reference.variables[name]) for name in names)

    losses = np.array(reference.losses[run.resumed_at :])
    return {
        "losses": float(np.max(np.abs(np.array(run.losses) / losses - 1.0), initial=0.0)),
        "weights": apart("w1", "w2", "w3", "b3", "gamma", "beta"),
        "moving_mean": apart("moving_mean"),
        "moving_variance": apart("moving_variance"),
        "accuracy": run.accuracy,
        "examples_per_second": run.speed,
    }


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def summarize(result: dict) -> str:
    """The table: a line a way of training, with its largest relative difference from the one process."""
    settings = result["settings"]
    lines = [
        f"{settings['steps']} steps on batches of {settings['batch_size']}, {result['data']}; largest relative "
        "differences from one process, test accuracy, examples a second",
        f"{'':72} {'losses':>8} {'weights':>8} {'mean':>8} {'variance':>8} {'accuracy':>8} {'speed':>7}",
    ]
    for name, row in result["runs"].items():
        apart = " ".join(f"{row[key]:8.0e}" for key in ("losses", "weights", "moving_mean", "moving_variance"))
        lines.append(f"{name:72} {apart} {row['accuracy']:8.4f} {row['examples_per_second']:7.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # TensorFlow's servers have no clean end; waiting for one can hang
