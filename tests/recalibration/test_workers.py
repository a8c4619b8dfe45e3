"""Recalibration by several workers: the statistics of all their batches, and one line when one of them is lost."""

import json
import os
import sys
import threading
import time

import numpy as np
import pytest

from bn_graph.__main__ import main
from bn_graph.commands import CommandError
from bn_graph.commands import workers as processes
from bn_graph.recalibration import recalibrate, workers
from bn_graph.tf1 import tf
from bn_graph.training import distributed
from tests.commands import broken
from tests.test_recalibration import assert_statistics, examples, network, split, weights, wrapper


def in_threads(count, work):
    """What ``work(index)`` returns in a thread each; the first error, if one fails."""
    found, errors = [None] * count, []

    def run(index):
        try:
            found[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[index], daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return found


def gathering(count):
    """A gather function for so many threads."""
    vectors, barrier = [None] * count, threading.Barrier(count, timeout=60)

    def of_worker(index):
        def gather(vector):
            vectors[index] = vector
            barrier.wait()
            rows = np.stack(vectors)
            barrier.wait()
            return rows

        return gather

    return of_worker


@pytest.mark.parametrize("method", ["pooled", "paper"])
@pytest.mark.parametrize("count", [2, 5])  # of 5 workers one has no batch
def test_statistics_are_those_of_all_workers_batches(random, method, count):
    matrices, data = weights(random), examples(random)
    batches = split(data, [20, 6, 30, 4])
    gather = gathering(count)

    def work(index, share, **options):
        with tf.Graph().as_default(), tf.Session() as session:
            x, _ = network(wrapper, True, matrices)
            session.run(tf.global_variables_initializer())
            return recalibrate(session, [{x: batch} for batch in share], method=method, **options)

    expected = work(0, batches)
    found = in_threads(count, lambda index: work(index, batches[index::count], gather=gather(index)))
    for records in found:
        assert_statistics(records, [(record.mean, record.variance) for record in expected], tolerance=1e-6)
        assert [record.count for record in records] == [len(data)] * 3


def test_vectors_of_any_length_are_exchanged(random):
    rows = [random.randn(20_001), random.randn(20_001)]
    configs = [distributed.cluster_from_tf_config(text) for text in distributed.local_tf_configs(2)]

    def work(index):
        with workers.exchange(configs[index], agree="the same", timeout=30) as gather:
            return gather(rows[index]), gather(rows[index][:3])

    for long, short in in_threads(2, work):
        np.testing.assert_array_equal(long, rows)
        np.testing.assert_array_equal(short, np.stack(rows)[:, :3])


# --- The processes of the command -----------------------------------------------------------------------------------------

PROCESS = """
import json, os, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])
print("worker", index, flush=True)
what = sys.argv[1 + index]
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "waits":
    time.sleep(60)
if what == "fails":
    print("a notice\\nthe reason.", file=sys.stderr)
sys.exit({"fails": 2, "finds": 1}.get(what, 0))
"""


def run_all(*whats):
    command = [sys.executable, "-c", PROCESS, *whats]
    return processes.run_all(command, [json.dumps(index) for index in range(len(whats))])


@pytest.mark.parametrize(("whats", "status"), [(["ends", "ends"], 0), (["finds", "ends"], 1)])
def test_the_first_ones_status_and_output_count(capfd, whats, status):
    assert run_all(*whats) == status
    assert capfd.readouterr() == ("worker 0\n", "")


@pytest.mark.parametrize(
    ("whats", "message"),
    [
        (["waits", "killed"], "^worker 2 of 2 was killed by signal 9; the others were stopped.$"),
        (["waits", "waits", "fails"], "^worker 3 of 3: the reason.$"),
        (["fails", "waits"], "^worker 1 of 2: the reason.$"),
    ],
)
def test_a_lost_worker_stops_the_others_and_is_said_in_one_line(whats, message):
    before = time.monotonic()
    with pytest.raises(CommandError, match=message):
        run_all(*whats)
    assert time.monotonic() - before < 30  # those that wait do so for 60 s


def test_two_processes_write_what_one_does(plain_graph, random, tmp_path, capfd):
    saved = broken.save(tmp_path, wrapper, random)
    data, _ = broken.write_examples(tmp_path, random)
    command = ["recalibrate", *saved.arguments, "--data", data, "--feed", "is_training=false", "--batch-size", "9"]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    capfd.readouterr()
    assert main([*command, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    written = capfd.readouterr()
    assert written.err == "" and "Written: " in written.out and written.out.count("bn1") >= 1
    one, two = (tf.train.load_checkpoint(str(tmp_path / name)) for name in ("one", "two"))
    for name in one.get_variable_to_shape_map():
        np.testing.assert_allclose(two.get_tensor(name), one.get_tensor(name), rtol=1e-6, atol=1e-6)
    assert not [name for name in os.listdir(tmp_path) if "temp" in name]
