"""Work that a stopped run leaves behind, and that the same command takes up: measurements, checkpoints, curves."""

import contextlib
import fcntl
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.checkpoints.files import written_beside
from bn_graph.tf1 import tf
from experiments.machinery import harness
from experiments.machinery.programs import UsageError
from experiments.machinery.results import versions, write_json

__all__ = ["alone_in", "folder", "measured_once", "seconds_in", "timed", "train_and_measure", "write_network"]

CHECKPOINT_EVERY = 1000


def folder(settings: harness.Settings, seed: int | None = None, part: str = "", **identity) -> Path:
    """The folder for one piece of work of one experiment; emptied if an earlier run left other settings there.

    What the work that is there took goes into the run's `seconds_kept`.

    Args:
        settings: of the run; the data set, the number of steps and the versions are part of the identity.
        seed: of the work, if it has one.
        part: name below the seed's folder, ``<output>/<name>/checkpoints/<data>-seed<n>-steps<n>``.
        **identity: whatever else the numbers depend on: what JSON can hold.
    """
    data = "none" if settings.dataset is None else settings.dataset.name
    of_seed = "" if seed is None else f"-seed{seed}"
    path = settings.output / settings.name / "checkpoints" / f"{data}{of_seed}-steps{settings.steps}" / part
    sha256 = {} if settings.dataset is None else settings.dataset.sha256
    identity |= {"data_sha256": sha256, "versions": versions()}
    record = path / "settings.json"
    try:
        same = json.loads(record.read_text()) == json.loads(json.dumps(identity))
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(path, ignore_errors=True)
        write_json(record, identity)
    if settings.seconds_kept is not None:
        settings.seconds_kept.setdefault(path, seconds_in(path))
    return path


def seconds_in(folder: Path) -> float:
    """How long the work in the folder took, in all runs that had a part in it."""
    path = folder / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else 0.0


@contextlib.contextmanager
def timed(folder: Path) -> Iterator[Callable[[], None]]:
    """Gives the function to call when work has been written: it counts what that took among the folder's seconds."""
    seconds, started = seconds_in(folder), time.monotonic()
    yield lambda: write_json(folder / "seconds.json", round(seconds + time.monotonic() - started, 2))


def measured_once(
    settings: harness.Settings, seed: int | None, part: str, measure: Callable[[], dict], **identity
) -> dict:
    """What `measure` returns, as JSON gives it back; from an earlier run if that got so far.

    Args:
        settings, seed, part, **identity: as for `folder`.
        measure: takes no arguments; its result is what JSON can hold.
    """
    record = folder(settings, seed, part, **identity) / "measured.json"
    if not record.exists():
        with timed(record.parent) as count_seconds:
            write_json(record, measure())
            count_seconds()
    return json.loads(record.read_text())


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[Path]:
    """While it is open, another process that asks for the folder waits: two pages may want the same training."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def train_and_measure(
    settings: harness.Settings,
    session: tf.Session,
    steps: bn_graph.Step | Sequence[bn_graph.Step],
    split: bn_graph.Split,
    measure: Callable[[int], dict[str, np.ndarray]],
    *,
    batch_size: int,
    seed: int,
    folder: Path,
    label: str,
    pause_after: Callable[[int], bool],
    stop: int | None = None,
    counts_steps: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> dict[str, np.ndarray]:
    """Trains on the same batches, measures in the pauses, and keeps both, so that a stopped run goes on.

    The default graph's variables are initialized, or restored from the last checkpoint. The curves are written before
    the checkpoint, so that they reach at least as far; what they have beyond it is measured again.

    Args:
        settings: of the run.
        session: of the default graph.
        steps: of each network.
        split: the training examples.
        measure: takes the number of finished steps; returns values by name, or nothing.
        batch_size, seed: of the batches.
        folder: of checkpoints and curves, as `folder` gives it.
        label: of the progress bar.
        pause_after: the numbers of steps after which `measure` has something to do. It is also called for a checkpoint,
            and at the end.
        stop: number of steps at the end, where it is not the run's.
        checkpoint_every: steps between two checkpoints.
        counts_steps: whether a train op counts in the global step itself, as `bn_graph.build_graph`'s does.

    Returns:
        For each name the values stacked, ``[pause, …]``, and as ``<name>_step`` the numbers of steps.
    """
    stop = settings.steps if stop is None else stop
    global_step = tf.train.get_or_create_global_step()
    saver = bn_graph.make_saver(max_to_keep=2)
    bn_graph.resume(session, folder)
    done = int(session.run(global_step))
    curves = _read_curves(folder, done)

    def is_saved(finished: int) -> bool:
        return finished % checkpoint_every == 0 or finished == stop

    def pauses(finished: int) -> bool:
        return pause_after(finished) or is_saved(finished)

    advance = harness.LOOPS[settings.loop](
        session, steps, split, batch_size=batch_size, seed=seed, global_step=None if counts_steps else global_step
    )
    with timed(folder) as count_seconds:
        for finished, _ in harness.advance_with_progress(advance, range(done, stop), label, pauses):
            for name, value in measure(finished).items():
                curves.setdefault(name, []).append((finished, np.asarray(value)))
            if is_saved(finished):
                _write_curves(folder, curves)
                bn_graph.save(saver, session, folder / "step", global_step=finished, write_meta_graph=False)
                count_seconds()
    return _stacked(curves)


def _stacked(curves: dict[str, list[tuple[int, np.ndarray]]]) -> dict[str, np.ndarray]:
    stacked = {name: np.array([value for _, value in curve]) for name, curve in curves.items()}
    return stacked | {f"{name}_step": np.array([step for step, _ in curve]) for name, curve in curves.items()}


def _write_curves(folder: Path, curves: dict[str, list[tuple[int, np.ndarray]]]) -> None:
    with written_beside(folder / "curves.npz", replace=True) as beside:
        np.savez(beside, **_stacked(curves))


def _read_curves(folder: Path, done: int) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The curves up to the step `done`, that the checkpoint is of."""
    if not done:
        return {}
    path = folder / "curves.npz"
    try:
        with np.load(path) as kept:
            arrays = dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read; start anew with --fresh") from error
    names = [name for name in arrays if not name.endswith("_step")]
    pairs = {name: zip(arrays[f"{name}_step"].tolist(), arrays[name], strict=True) for name in names}
    return {name: [(step, value) for step, value in each if step <= done] for name, each in pairs.items()}


def write_network(settings: harness.Settings, seed: int, file: str, session: tf.Session) -> None:
    """Writes the first seed's network beside the result, by its variables' names; float16 (three digits) halves it."""
    if seed != settings.seeds[0]:
        return
    variables = {variable.op.name: variable for variable in tf.global_variables() if variable.dtype.is_floating}
    halves = {name: value.astype(np.float16) for name, value in session.run(variables).items()}
    with written_beside(settings.output / settings.name / file, replace=True) as beside, open(beside, "wb") as opened:
        np.savez_compressed(opened, **halves)
