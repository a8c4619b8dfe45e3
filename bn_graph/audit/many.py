"""Audits of many files: in several processes, in the order of their names, with what can't be read in its place."""

import itertools
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from bn_graph.audit import cache, report_of
from bn_graph.audit import subject as subjects
from bn_graph.audit.report import Lack, Report, Unread
from bn_graph.audit.rules import selected
from bn_graph.graphs.errors import AuditError, NoModelError

__all__ = ["Task", "audit_tasks", "find_tasks"]

_FEW = 8  # files; starting processes takes longer than auditing these
_AHEAD = 4  # files that wait for each process, which bounds the memory


class Task(NamedTuple):
    """A source to audit, and the path under which it was found."""

    path: str
    source: subjects.Source | AuditError


def find_tasks(paths: Sequence[str]) -> list[Task]:
    """What paths stand for, each as `subject.read` takes it; nothing is parsed yet.

    >>> find_tasks(["no/such/model.ckpt"])[0].source
    AuditError('no/such/model.ckpt: no file, directory or checkpoint of that name is there.')
    """
    return [Task(path, source) for path in paths for source in subjects.find(path) or [subjects.nothing_in(path)]]


def audit_tasks(
    tasks: Sequence[Task], options: Mapping[str, Any], *, jobs: int | None = 1, cache_in: str | None = None
) -> Iterator[tuple[Task, list[Report | Unread]]]:
    """The results of each task, in the order of the tasks.

    Args:
        tasks: from `find_tasks`.
        options: the keyword arguments of `bn_graph.audit.audit`.
        jobs: processes; None for as many as there are cores, if there are enough files to be worth it.
        cache_in: directory that keeps results by the files' contents; None for no such.

    Yields:
        Each task with a report for each of its graphs; an `Unread` for what can't be read, is no model, or meets an
        error of this program: those of other files are not lost. Nothing for what turns out to be something else.
    """
    run = _Run(dict(options), cache_in)
    if jobs is None:
        jobs = 1 if len(tasks) < _FEW else _cores()
    jobs = min(jobs, len(tasks))
    if any(task.path.startswith("memory://") for task in tasks):
        jobs = 1  # of this process's memory
    results = map(run, tasks) if jobs < 2 else _in_processes(run, tasks, jobs)
    found: set[str] = set()
    for (task, each), following in zip(zip(tasks, results, strict=True), [*tasks[1:], None], strict=True):
        if any(isinstance(result, Report) or result.lack != Lack.NO_MODEL for result in each):
            found.add(task.path)
        is_last = following is None or following.path != task.path
        nothing = [_unread(task.path, subjects.nothing_in(task.path))] if is_last and task.path not in found else []
        yield task, each + nothing


def _name(task: Task) -> str:
    return task.path if isinstance(task.source, AuditError) else task.source.graph or task.source.prefix


class _Run(NamedTuple):
    """Audits a task; can be sent to another process."""

    options: dict[str, Any]
    cache_in: str | None

    def __call__(self, task: Task) -> list[Report | Unread]:
        where = _name(task)
        try:
            if self.cache_in is None or isinstance(task.source, AuditError):
                return list(_audited(task.source, where, **self.options))
            return cache.through(self.cache_in, task.source, self.options, _audited)
        except Exception as error:  # a bug: the other files are audited all the same
            return [Unread(where, _bug(error), Lack.INTERNAL_ERROR)]


def _audited(
    source: subjects.Source | AuditError, where: str, adapted: Callable = lambda subject: subject, **options: Any
) -> Iterator[Report | Unread]:
    """Reports and errors of a source; `adapted` is applied to each subject before its audit."""
    rules = selected(options.get("select", ()), options.get("ignore", ()))
    about_graph = {key: options[key] for key in ("outputs", "train_ops", "feeds", "details") if key in options}
    for subject in subjects.load(source, options.get("checkpoint")):
        try:
            if isinstance(subject, AuditError):
                raise subject
            yield report_of(adapted(subject), rules, **about_graph)
        except AuditError as error:
            yield _unread(where, error)


def _unread(path: str, error: AuditError) -> Unread:
    """What an error says, whose text begins with its file's name: `path` or that of a file beside it."""
    lack = Lack.NO_MODEL if isinstance(error, NoModelError) else Lack.UNREADABLE
    text = str(error)
    if text.startswith((f"{path}: ", f"{path} (")):
        return Unread(path, " ".join(text.removeprefix(f"{path}: ").removeprefix(path).split()), lack)
    named, separator, reason = text.partition(": ")
    return Unread(named if separator else path, " ".join((reason or text).split()), lack)


def _bug(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, MemoryError):
        return "not enough memory to audit it."
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"internal error, please report: {what} ({os.path.basename(last.filename)}:{last.lineno})"


# --- Processes --------------------------------------------------------------------------------------------------------


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(run: _Run, tasks: Sequence[Task], jobs: int) -> Iterator[list[Report | Unread]]:
    """The results in order. A task whose process dies is tried alone, so that it takes no other with it."""
    todo = deque(tasks)
    while todo:
        pool = _pool(min(jobs, len(todo)))
        try:
            waiting = iter(list(todo))
            running = deque(pool.submit(run, task) for task in itertools.islice(waiting, jobs * _AHEAD))
            while running:
                results = running.popleft().result()
                running.extend(pool.submit(run, task) for task in itertools.islice(waiting, 1))
                todo.popleft()
                yield results
        except BrokenProcessPool:
            yield _alone(run, todo.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _alone(run: _Run, task: Task) -> list[Report | Unread]:
    with _pool(1) as pool:
        try:
            return pool.submit(run, task).result()
        except BrokenProcessPool:
            reason = "the process that audited it was killed; perhaps memory ran out."
            return [Unread(_name(task), reason, Lack.INTERNAL_ERROR)]


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Not forked from this process, which may have threads of its own.
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(jobs, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
