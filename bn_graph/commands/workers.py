"""A command done by several processes of this machine together: what starts them, and what each of them does about the end."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from bn_graph.commands import CommandError
from bn_graph.commands.quiet import write_without_notices

__all__ = ["end_with_launcher", "run_all", "started_workers"]


@contextmanager
def started_workers(
    command: Sequence[str],
    configs: Sequence[str],
    streams: Sequence[Mapping[str, IO | int | None]] | None = None,
    **variables: str,
) -> Iterator[list[subprocess.Popen]]:
    """A process for each ``TF_CONFIG``. At the end none is left behind, whatever happens.

    Args:
        command: of every process.
        configs: the values of ``TF_CONFIG``.
        streams: for each process its ``stdout`` and ``stderr``, as `subprocess.Popen` takes them; this process's if None.
        **variables: of the environment, set beside this process's own.
    """
    processes: list[subprocess.Popen] = []
    try:
        for config, given in zip(configs, streams or [{}] * len(configs), strict=True):
            environment = os.environ | variables | {"TF_CONFIG": config}
            processes.append(subprocess.Popen(command, env=environment, **given))
        yield processes
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has ended
            process.wait()


def run_all(command: Sequence[str], configs: Sequence[str]) -> int:
    """Runs a process for each ``TF_CONFIG``; only the first one's output is shown. None is left behind, whatever happens.

    Args:
        command: of every process.
        configs: the values of ``TF_CONFIG``.

    Returns:
        The first one's exit status, 0 or 1.

    Raises:
        CommandError: one was killed or ended with an error, which is said with its number; the others have been stopped.
    """
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in configs]
        streams = [{"stdout": subprocess.DEVNULL if index else None, "stderr": each} for index, each in enumerate(said)]
        processes = stack.enter_context(started_workers(command, configs, streams))
        while True:
            ends = [process.poll() for process in processes]
            failed = _failed(ends)
            if failed is not None:
                raise CommandError(_reason(failed, processes, said[failed]))
            if ends[0] is not None:
                said[0].seek(0)
                write_without_notices(said[0])
                return ends[0]
            time.sleep(0.05)


def _failed(ends: Sequence[int | None]) -> int | None:
    """The worker that failed; one that was killed before those which then missed it. The first may end with 1."""
    failed = [(end > 0, index) for index, end in enumerate(ends) if end and (index or end != 1)]
    return min(failed)[1] if failed else None


def _reason(index: int, processes: Sequence[subprocess.Popen], stderr: IO[str]) -> str:
    who, end = f"worker {index + 1} of {len(processes)}", processes[index].returncode
    if end < 0:
        return f"{who} was killed by signal {-end}; the others were stopped."
    stderr.seek(0)
    lines = stderr.read().split("\n")
    last = next((line for line in reversed(lines) if line.strip()), f"it ended with status {end}.")
    return f"{who}: {last}"


def end_with_launcher(launcher: int) -> None:
    """From now on this process ends when its launcher is gone, even by kill -9: nobody would read what it says."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
