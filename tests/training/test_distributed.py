"""Training by several processes: what they come to, and what happens when one is late, wrong, or killed.

The processes are real ones, on free ports of the loopback; every wait has a limit and every process is ended.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf
from bn_graph.training import distributed
from bn_graph.training.distributed import ClusterError, Workers, cluster_from_tf_config
from bn_graph.training.train_op import collect
from experiments.demos import distributed as program

PROGRAM = [sys.executable, "-m", "experiments.demos.distributed", "--data=digits"]
LIMIT = 100  # seconds that any process may take on a busy machine


@pytest.fixture
def started():
    """Starts processes of the program; whatever the test does, none is left."""
    processes = []

    def start(config, output, *options):
        environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
        environment |= {} if config is None else {"TF_CONFIG": config}
        processes.append(
            subprocess.Popen(
                [*PROGRAM, f"--output={output}", *options],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Runs the launcher in this process; its workers are processes of their own."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *options: program.main(["--data=digits", f"--output={tmp_path}", *options])
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def in_threads(monkeypatch):
    """Runs each worker in a thread of this process; their exit statuses. No process has to be started."""
    clusters = {}
    monkeypatch.setattr(distributed, "cluster_from_tf_config", lambda: clusters[threading.get_ident()])

    def statuses(configs, options):
        def work(index):
            clusters[threading.get_ident()] = cluster_from_tf_config(configs[index])
            return program.main(options[index])

        with monkeypatch.context() as environment, ThreadPoolExecutor(len(configs)) as threads:
            environment.setenv("TF_CONFIG", "each thread has its own")
            return list(threads.map(work, range(len(configs)), timeout=LIMIT))

    return statuses


def ended(process, limit=LIMIT):
    """Exit status, and what was said on both streams."""
    said, errors = process.communicate(timeout=limit)
    return SimpleNamespace(status=process.returncode, out=said, err=errors.strip())


def last_line(finished):
    """What the program says at its end; TensorFlow's native code may have warned of lost connections before it."""
    return finished.err.splitlines()[-1]


def wait_for_line(process, pattern):
    """Reads until a line of the pattern; the process's own limits (or the end of its output) end this."""
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"no line {pattern!r}; {process.stderr.read()}")


@contextmanager
def within(seconds):
    started_at = time.monotonic()
    yield
    assert time.monotonic() - started_at < seconds


def config_of(addresses, index, kind="worker"):
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": kind, "index": index}})


def latest_step(output):
    latest = tf.train.latest_checkpoint(output / "distributed" / "checkpoints" / "together")
    return 0 if latest is None else int(latest.rpartition("-")[2])


# ---- what they come to -----------------------------------------------------------------------------------------------


def test_two_processes_end_where_one_ends_and_without_sync_they_do_not(launched, in_threads, monkeypatch, tmp_path):
    start_processes = program._run_all

    def run_all(command, configs):
        # The first are processes, as always; to start more of them would take longer than all the rest.
        if "--statistics=together" in command:
            return start_processes(command, configs)
        options = [each for each in command[len(program.PROGRAM) :] if not each.startswith("--launcher=")]
        assert in_threads(configs, [options] * len(configs)) == [0, 0]

    monkeypatch.setattr(program, "_run_all", run_all)
    # 200 steps of 120 = 2×60; and every other way to the same
    assert launched("--workers=2") == 0
    runs = json.loads((tmp_path / "distributed" / "result.json").read_text())["runs"]
    quantities = ("losses", "weights", "moving_mean", "moving_variance")
    together = {name: row for name, row in runs.items() if "(sync)" in name}
    alone = {name: row for name, row in runs.items() if "(no sync)" in name}
    assert len(together) == len(alone) == 3  # processes, towers, MirroredStrategy
    for row in together.values():
        assert all(row[quantity] < 1e-4 for quantity in quantities)
        assert row["accuracy"] == runs["one process"]["accuracy"]
    for row in alone.values():
        assert all(row[quantity] > 1e-3 for quantity in quantities)
    # The checkpoint is one like any other.
    digits = bn_graph.load("digits")
    with tf.Graph().as_default(), tf.Session() as session:
        network = bn_graph.build_graph(False, bn_graph.normal_weights([64, 100, 100, 10], seed=0))
        bn_graph.restore(session, tmp_path / "distributed" / "checkpoints" / "together")
        assert session.run(network.global_step) == 200
        feed = {network.x: digits.test.images, network.y_: digits.test.labels}
        assert session.run(network.accuracy, feed) == pytest.approx(runs["one process"]["accuracy"])


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1])
def test_a_late_worker_is_waited_for_and_a_killed_one_stops_the_other_and_the_run_goes_on(started, tmp_path, victim):
    # The batch of 61 makes unequal parts. No worker comes to the end of so many steps.
    options = ["--steps=1000000", "--batch-size=61", "--checkpoint-every=20", "--timeout=5", f"--wait={LIMIT}"]
    configs = distributed.local_tf_configs(2)
    workers = [started(configs[0], tmp_path, *options)]
    if victim == 0:  # waiting is the same whoever is killed, and takes its time
        wait_until_serving(json.loads(configs[0])["cluster"]["worker"][0])
        time.sleep(2)
        assert workers[0].poll() is None
    workers.append(started(configs[1], tmp_path, *options))
    wait_for_line(workers[0], "step 40$")
    workers[victim].send_signal(signal.SIGKILL)
    with within(30):  # 5 s for the sum, 10 more for what is no sum, and the end of a process on a busy machine
        survivor = ended(workers[1 - victim])
    assert survivor.status == 1
    assert re.fullmatch(
        rf"distributed: Worker {1 - victim} lost another worker: .* go on from the .*", last_line(survivor)
    )
    kept = latest_step(tmp_path)
    assert kept >= 40
    if victim == 0:  # going on is the same whoever was killed, and takes its time
        return
    options[0] = f"--steps={kept + 20}"
    workers = [started(config, tmp_path, *options) for config in distributed.local_tf_configs(2)]
    again = [ended(worker) for worker in workers]
    assert [each.status for each in again] == [0, 0], again
    assert all(f"from step {kept}\n" in each.out for each in again)
    assert latest_step(tmp_path) == kept + 20
    assert_equals_one_process(tmp_path, kept + 20, batch_size=61)


def assert_equals_one_process(output, steps, batch_size):
    digits = bn_graph.load("digits")
    reader = tf.train.load_checkpoint(output / "distributed" / "checkpoints" / "together")
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        weights = bn_graph.normal_weights([64, 100, 100, 10], seed=0)

        def normalizer(z, is_training, name):
            return bn_graph.batch_norm_wrapper(z, is_training, decay=0.99, name=name)

        network = bn_graph.build_graph(True, weights, normalizer=normalizer)
        bn_graph.resume(session, None)
        for (images, labels), _ in zip(bn_graph.batches(digits.train, batch_size, seed=0), range(steps), strict=False):
            session.run(network.train_op, {network.x: images, network.y_: labels})
        for variable in tf.global_variables():
            expected = session.run(variable.read_value())
            # Of float32 rounding, over so many steps; relative to the variable's size.
            error = np.max(np.abs(reader.get_tensor(variable.op.name) - expected))
            assert error < 1e-4 * np.max(np.abs(expected))


def test_a_launcher_that_loses_a_worker_stops_the_rest_and_says_so(launched, tmp_path, capfd):
    killed = []

    def kill_one_after_some_steps():
        until = time.monotonic() + LIMIT
        while latest_step(tmp_path) < 20 and time.monotonic() < until:
            time.sleep(0.1)
        killed.extend(children_of(os.getpid()))
        os.kill(killed[1], signal.SIGKILL)

    killer = threading.Thread(target=kill_one_after_some_steps)
    killer.start()
    assert launched("--steps=1000000", "--checkpoint-every=20") == 1
    killer.join()
    assert re.search(
        r"worker \d was killed by signal 9; the others were stopped\. The same command goes on", capfd.readouterr().err
    )
    assert len(killed) == 2 and not any(is_running(child) for child in killed)


def test_no_worker_outlives_its_launcher(started, tmp_path):
    launcher = started(None, tmp_path, "--steps=1000000", "--checkpoint-every=20")
    wait_for_line(launcher, "worker 1: step 20$")
    children = children_of(launcher.pid)
    launcher.kill()
    until = time.monotonic() + 15
    while any(is_running(child) for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(children) == 2
    assert not any(is_running(child) for child in children)


def children_of(pid):
    """The workers that a launcher started, in that order."""
    children = sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return [child for child in children if PROGRAM[2] in Path(f"/proc/{child}/cmdline").read_text().split("\0")]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_serving(address):
    host, _, port = address.rpartition(":")
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nobody serves at {address}")


@pytest.fixture
def refused(monkeypatch, capfd, tmp_path):
    """The line that a worker of a cluster ends with that can't start; it runs in this process."""

    def line(config, *options):
        monkeypatch.setenv("TF_CONFIG", config)
        assert program.main(["--data=digits", f"--output={tmp_path}", *options]) == 2
        return capfd.readouterr().err.strip().splitlines()[-1]

    return line


def test_a_port_that_is_taken_is_one_line(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        mine = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused(config_of([mine, "127.0.0.1:9"], 0))
    assert re.fullmatch(rf"distributed: Worker 0 can't serve at {mine}: Address already in use.*", line)


def test_a_worker_that_does_not_come_is_waited_for_up_to_a_limit(refused):
    config = distributed.local_tf_configs(2)[0]
    with within(LIMIT):
        line = refused(config, "--steps=2", "--wait=1")
    missing = json.loads(config)["cluster"]["worker"][1]
    assert re.fullmatch(rf"distributed: Worker 0 waited 1 s for worker 1 at {missing}, and it did not start\. .*", line)


def test_workers_that_do_not_agree_both_say_so(in_threads, capfd, tmp_path):
    options = [["--data=digits", f"--output={tmp_path / seed}", "--steps=2", f"--seed={seed}"] for seed in "01"]
    assert in_threads(distributed.local_tf_configs(2), options) == [2, 2]
    said = re.findall(r"distributed: Worker (\d) and worker (\d) do not agree: ", capfd.readouterr().err)
    assert sorted(said) == [("0", "1"), ("1", "0")]


def test_a_wrong_cluster_is_one_line_and_status_2(refused):
    line = refused(config_of(["a:1", "b:2"], 5))
    assert re.fullmatch(r"distributed: TF_CONFIG: .* found the task 'worker' 5, which a cluster of 2 workers .*", line)


# ---- without other processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"cluster": {"worker": ["a:1"]}}', "KeyError: 'task'"),
        (config_of(["a:1"], 1), "a cluster of 1 worker doesn't have"),
        (config_of(["a:1"], -1), "doesn't have"),
        (config_of(["a:1"], "0"), "the task 'worker' '0'"),
        (config_of(["a:1"], 0, "evaluator"), "the task 'evaluator' 0"),
        (config_of(["a"], 0), "'a', which is not host:port"),
        (config_of(["a:0"], 0), "'a:0', which is not host:port"),
        (config_of(["a:x"], 0), "'a:x', which is not host:port"),
        (config_of([7], 0), "7, which is not host:port"),
        (config_of(["a:1", "a:1"], 0), "'a:1' twice"),
        (
            '{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
            "the jobs ps, worker",
        ),
    ],
)
def test_what_is_no_cluster_is_refused_in_one_line(text, found):
    with pytest.raises(ClusterError, match=re.escape(found)) as raised:
        distributed.cluster_from_tf_config(text)
    assert "\n" not in str(raised.value)


def test_the_chief_is_the_first_worker():
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    texts = [
        json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})
        for kind, index in (("chief", 0), ("worker", 0), ("worker", 1))
    ]
    found = [distributed.cluster_from_tf_config(text) for text in texts]
    assert [each.index for each in found] == [0, 1, 2]
    assert {each.addresses for each in found} == {("a:1", "b:1", "c:1")}
    assert [each.is_chief for each in found] == [True, False, False]


@pytest.fixture
def two_cpus():
    config = tf.ConfigProto(device_count={"CPU": 2}, operation_timeout_in_ms=30_000)
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        yield session


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.int64])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3)])
def test_all_sum_sums_any_shape(two_cpus, dtype, shape):
    values = [np.full(shape, value, dtype.as_numpy_dtype) for value in (3, 4)]
    sums = []
    for index, value in enumerate(values):
        with tf.device(f"/cpu:{index}"):
            sums.append(distributed.all_sum(tf.constant(value), Workers(2, index)))
    for found in two_cpus.run(sums):
        np.testing.assert_array_equal(found, values[0] + values[1])


def test_all_sum_sums_tensors_whose_size_is_known_at_a_run_only(two_cpus):
    # These go round a ring and are summed on the way; small ones are gathered and summed by everybody.
    inputs = [tf.placeholder(tf.float32, [None, 2]) for _ in range(2)]
    sums = []
    for index, each in enumerate(inputs):
        with tf.device(f"/cpu:{index}"):
            sums.append(distributed.all_sum(each, Workers(2, index)))
    assert sum(op.type == "CollectiveReduce" for op in tf.get_default_graph().get_operations()) == 2
    found = two_cpus.run(sums, {each: [[1.0 + index, 2.0]] for index, each in enumerate(inputs)})
    np.testing.assert_array_equal(found, [[[3.0, 4.0]]] * 2)


def test_a_sum_that_lacks_a_partner_ends_at_its_timeout(two_cpus):
    lonely = distributed.all_sum(tf.constant([1.0]), Workers(2, 0, timeout=1.0))
    with within(20), pytest.raises(tf.errors.DeadlineExceededError):
        two_cpus.run(lonely)


def test_broadcast_gives_everybody_the_chiefs_values(two_cpus):
    ops = []
    for index in range(2):
        with tf.device(f"/cpu:{index}"), tf.variable_scope(f"worker_{index}"):
            weights = tf.get_variable("w", initializer=tf.constant([index + 1.0, 5.0 * index]))
            step = tf.get_variable("step", initializer=tf.constant(7 * (1 - index), tf.int64))
            ops.append(distributed.broadcast_op([weights, step], Workers(2, index)))
    two_cpus.run(tf.global_variables_initializer())
    two_cpus.run(ops)
    w_0, step_0, w_1, step_1 = two_cpus.run([variable.read_value() for variable in tf.global_variables()])
    np.testing.assert_array_equal([w_0, w_1], [[1.0, 0.0]] * 2)
    assert (step_0, step_1) == (7, 7)


def test_train_op_steps_on_the_sum_of_all_losses(two_cpus):
    results = []
    for index, value in enumerate((2.0, 5.0)):
        with tf.device(f"/cpu:{index}"), tf.variable_scope(f"worker_{index}"):
            weight = tf.get_variable("w", initializer=tf.constant(3.0))
            step = tf.get_variable("step", initializer=tf.constant(0, tf.int64), trainable=False)
            optimizer, workers = tf.train.GradientDescentOptimizer(0.1), Workers(2, index)
            results.append(distributed.train_op(optimizer, value * weight, workers, step, var_list=[weight]))
    two_cpus.run(tf.global_variables_initializer())
    found = two_cpus.run(results)
    assert [total for _, total in found] == [3.0 * (2.0 + 5.0)] * 2
    w_0, step_0, w_1, step_1 = two_cpus.run([variable.read_value() for variable in tf.global_variables()])
    np.testing.assert_allclose([w_0, w_1], [3.0 - 0.1 * (2.0 + 5.0)] * 2, rtol=1e-6)
    assert (step_0, step_1) == (1, 1)


@pytest.mark.parametrize("given", [False, True])
def test_train_op_runs_the_collected_updates_of_every_worker(two_cpus, given):
    parts, results = ([[1.0], [3.0]], [[8.0]]), []
    for index, part in enumerate(parts):
        with tf.device(f"/cpu:{index}"), tf.name_scope(f"tower_{index}"):
            scope, workers = f"worker_{index}", Workers(2, index)
            y = bn_graph.batch_norm_wrapper(
                tf.constant(part),
                True,
                decay=0.5,
                sync=distributed.gatherer(workers),
                updates_collection=tf.GraphKeys.UPDATE_OPS,
                name=scope,
            )
            updates = collect(name_scope=f"tower_{index}") if given else None
            optimizer, variables = tf.train.GradientDescentOptimizer(0.1), tf.trainable_variables(scope)
            loss = tf.reduce_sum(y)
            results.append(distributed.train_op(optimizer, loss, workers, update_ops=updates, var_list=variables))
    two_cpus.run(tf.global_variables_initializer())
    two_cpus.run(results)
    means = two_cpus.run([v for v in tf.global_variables() if "moving_mean" in v.op.name])
    np.testing.assert_allclose(means, [[0.0 * 0.5 + 4.0 * 0.5]] * 2, rtol=1e-6)
    betas = two_cpus.run([v for v in tf.global_variables() if v.op.name.endswith("beta")])
    np.testing.assert_allclose(betas, [[-0.1 * 3]] * 2, rtol=1e-6)  # 3 examples, each with slope 1
