"""The parent's side: contenders in processes of their own, asked in turn, so that whatever slows the machine slows them alike.

A contender is a process because the peers can't share one: legacy Keras and Keras 3 each want TensorFlow to themselves,
and every framework has thread pools of its own. All are started before the first round and stay; the parent asks one
at a time for some steps, in turn, round after round, and takes medians.
"""

import ctypes
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple, TextIO

from threadpoolctl import threadpool_limits

from experiments.benchmarks import child
from experiments.machinery import children
from experiments.machinery.programs import UsageError

__all__ = ["Contender", "Missing", "Worker", "alternate", "ask", "ask_together", "close", "ready", "start"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "TF_NUM_INTEROP_THREADS")
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt, in malloc.h


class Missing(Exception):
    """A contender whose package isn't installed, or that can't run here; the message says which and why."""


class Worker(NamedTuple):
    """A contender's name, the threads it was given, and its process."""

    name: str
    threads: int
    process: "_Process"
    stderr: TextIO


class Contender(NamedTuple):
    """What to start: a name for people, ``"module:function"``, and the function's arguments beside ``threads``.

    The function returns what `experiments.benchmarks.child.serve` takes; the arguments are what JSON can hold.
    """

    name: str
    function: str
    arguments: Mapping = {}


def start(contender: Contender, threads: int, *, keeps_memory: bool = False) -> Worker:
    """Starts a contender, which makes itself ready meanwhile; its first answer waits for that.

    Args:
        contender: what to start.
        threads: of every pool the process has.
        keeps_memory: big blocks stay with the process when they are freed (glibc): else every step gives them back to
            the system and waits for fresh, zeroed pages, which has nothing to do with the contender.
    """
    # A file and not a pipe, which would fill up unread.
    stderr = tempfile.NamedTemporaryFile("w+", errors="replace")  # noqa: SIM115
    worker = Worker(contender.name, threads, _Process(contender.function, threads, keeps_memory, stderr.name), stderr)
    _send(worker, {"threads": threads, **contender.arguments})
    return worker


class _Process:
    """A contender's process, forked off one that has imported TensorFlow, which takes seconds; with pipes to and from it."""

    def __init__(self, function: str, threads: int, keeps_memory: bool, stderr: str):
        context = children.fresh_processes("experiments.benchmarks.presentation")
        requests, stdin = context.Pipe(duplex=False)
        stdout, answers = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_serve, args=(function, threads, keeps_memory, requests, answers, stderr)
        )
        self._process.start()
        # The child's ends have to be its own, or the end of one process would not be seen by the other.
        requests.close()
        answers.close()
        self.stdin, self.stdout = os.fdopen(os.dup(stdin.fileno()), "w"), os.fdopen(os.dup(stdout.fileno()))
        stdin.close()
        stdout.close()

    def end(self) -> int | None:
        """Waits for it; if it doesn't end by itself it is killed. Its exit code."""
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.stdout.close()
        return self._process.exitcode


def _serve(
    function: str, threads: int, keeps_memory: bool, requests: Connection, answers: Connection, stderr: str
) -> None:
    os.environ.update(_environment(function, threads))
    threadpool_limits(threads, "blas")  # NumPy has read its environment already
    if keeps_memory:
        _keep_memory()
    with open(stderr, "w") as errors:
        for stream, file in enumerate((requests, answers, errors)):
            os.dup2(file.fileno(), stream)
    requests.close()
    answers.close()
    sys.stdin = os.fdopen(0)
    child.main(function)


def _keep_memory() -> None:
    """Of glibc's allocator: no block of its own for what is large, and none given back; elsewhere nothing is done."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)) if mallopt else ():
        mallopt(option, value)


def ready(workers: Sequence[Worker]) -> tuple[list[Worker], list[str]]:
    """Waits for workers that were started: those that are ready, and a note on each that is missing.

    Raises:
        UsageError: one failed. All are closed then.
    """
    present, notes = [], []
    for worker in workers:
        try:
            _answer(worker)
            present.append(worker)
        except Missing as missing:
            notes.append(str(missing))
        except UsageError:
            close(workers)
            raise
    return present, notes


def _environment(function: str, threads: int) -> dict[str, str]:
    environment = {key: str(threads) for key in _THREADS}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["TF_USE_LEGACY_KERAS"] = "0" if "keras3" in function else "1"
    # JAX's CPU client has as many threads as the process may use; this is the flag that says one.
    environment["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'}"
    return environment


def ask(worker: Worker, request: Mapping) -> dict:
    """One request, one answer.

    Raises:
        UsageError: the contender failed.
    """
    _send(worker, request)
    return _answer(worker)


def ask_together(workers: Sequence[Worker], request: Mapping) -> dict:
    """One request to all, which work on it at the same time; the answer of the slowest.

    Raises:
        UsageError: a contender failed.
    """
    for worker in workers:
        _send(worker, request)
    return max((_answer(worker) for worker in workers), key=lambda answer: answer["seconds"])


def _send(worker: Worker, request: Mapping) -> None:
    with suppress(BrokenPipeError):  # it has ended, and its answer, which isn't there, will say why
        worker.process.stdin.write(json.dumps(request) + "\n")
        worker.process.stdin.flush()


def _answer(worker: Worker) -> dict:
    line = worker.process.stdout.readline()
    if not line:
        worker.stderr.seek(0)
        said = worker.stderr.read().strip().splitlines() or ["it ended without a word; perhaps memory ran out"]
        raise UsageError(f"{worker.name} failed: {said[-1]}")
    answer = json.loads(line)
    if "missing" in answer:
        close([worker])
        raise Missing(f"{worker.name}: {answer['missing']}")
    return answer


def close(workers: Sequence[Worker]) -> None:
    """Ends the processes; those that don't end by themselves are killed. Twice is as good as once."""
    for worker in workers:
        with suppress(BrokenPipeError):
            worker.process.stdin.close()
    for worker in workers:
        worker.process.end()
        worker.stderr.close()


def alternate(workers: Sequence[Worker], requests: Sequence[Mapping], rounds: int) -> list[float]:
    """Asks in turn, `rounds` times, after one round that doesn't count; the median of each one's seconds.

    Every other round goes backwards, so that none always follows the same one.

    Args:
        workers, requests: whom to ask for what; a worker may be there more than once.
        rounds: at least 1.
    """
    seconds = [[] for _ in workers]
    turns = list(zip(workers, requests, seconds, strict=True))
    for number in range(rounds + 1):
        for worker, request, taken in turns if number % 2 else reversed(turns):
            answer = ask(worker, request)["seconds"]
            if number:
                taken.append(answer)
    return [statistics.median(taken) for taken in seconds]
