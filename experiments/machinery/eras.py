"""Makes virtual environments of TensorFlow 1, as the documents' readers had it: one a version, under ``.eras``.

Run ``make eras``, or::

    python -m experiments.machinery.eras [1.0.1 1.4.1 ...]

Nothing needs them but the comparisons with the old versions, which are left out where an environment is missing. They
take Python 3.6 and 3.7, which are looked for in ``PYTHON36`` and ``PYTHON37``, on the PATH, and in pyenv. What cannot be
made is reported, and the others are made all the same; what is there already is kept. Each takes about 1 GB of disk
and two minutes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ERAS",
    "FOLDER",
    "RELEASES",
    "EnvironmentFailed",
    "Recipe",
    "environment_python",
    "find_python",
    "make_environment",
]

FOLDER = Path(os.environ.get("ERAS_DIR") or Path(__file__).parents[2] / ".eras")
"""Where the environments are (``ERAS_DIR`` names another place); each is named for its version of TensorFlow."""

SECONDS = 1800
"""How long one installation may take, if nothing else is said."""


class EnvironmentFailed(Exception):
    """An environment could not be made. The message is one line and says what to do."""


@dataclass(frozen=True)
class Recipe:
    """What one environment is made of.

    Attributes:
        tensorflow: its version, which names the environment.
        python: major and minor version of the interpreter.
        packages: what pip installs beside TensorFlow; the pins are of the packages that dropped this Python or NumPy's
            old interface later on.
        installer: what replaces pip itself first.
        distribution: the package that TensorFlow comes in.
    """

    tensorflow: str
    python: str
    packages: tuple[str, ...]
    installer: tuple[str, ...] = ()
    distribution: str = "tensorflow"

    @property
    def requirements(self) -> tuple[str, ...]:
        """TensorFlow and the packages, as pip takes them."""
        return (f"{self.distribution}=={self.tensorflow}", *self.packages)


_OLD_PIP = ("pip==21.3.1", "wheel==0.37.1")
_OLD_PACKAGES = ("protobuf<3.20", "numpy<1.17", "matplotlib<3.4")

ERAS = {
    era.tensorflow: era
    for era in (
        Recipe("1.0.1", "3.6", _OLD_PACKAGES, _OLD_PIP),
        Recipe("1.4.1", "3.6", _OLD_PACKAGES, _OLD_PIP),
        Recipe("1.8.0", "3.6", _OLD_PACKAGES, _OLD_PIP),
        Recipe("1.12.3", "3.6", (*_OLD_PACKAGES, "h5py<3", "keras==2.2.4"), _OLD_PIP),
        Recipe("1.15.5", "3.7", ("protobuf<3.21", "numpy<1.19", "matplotlib<3.6")),
    )
}
"""The versions of TensorFlow 1 that can still be installed and that the documents' time spans, oldest first."""

_KERAS_WEIGHTS = (*_OLD_PACKAGES, "h5py<3")
RELEASES = ERAS | {
    era.tensorflow: era
    for era in (
        *(
            Recipe(version, "3.6", _OLD_PACKAGES, _OLD_PIP)
            for version in ("1.1.0", "1.2.1", "1.3.0", "1.5.1", "1.6.0", "1.7.1")
        ),
        *(
            Recipe(version, "3.6", _KERAS_WEIGHTS, _OLD_PIP)
            for version in ("1.9.0", "1.10.1", "1.11.0", "1.13.2", "1.14.0")
        ),
    )
}
"""The releases between them too, which are made only where they are named: for the release that changed something."""


def environment_python(version: str, folder: Path = FOLDER) -> Path | None:
    """The interpreter of the environment of that version, or None if it was not made or not finished."""
    recipe = RELEASES[version]
    return _interpreter(folder / version) if _is_finished(folder / version, recipe) else None


def find_python(version: str) -> Path:
    """The interpreter of a version of Python.

    Args:
        version: major and minor, as ``"3.6"``.

    Returns:
        What ``PYTHON36`` names if that is set; otherwise the first that works of ``python3.6`` on the PATH and pyenv's
        newest 3.6.

    Raises:
        EnvironmentFailed: there is none, or ``PYTHON36`` names something else.
    """
    variable = "PYTHON" + version.replace(".", "")
    named = os.environ.get(variable)
    if named:
        if not _is_python(Path(named), version):
            raise EnvironmentFailed(f"{variable}={named} is not a Python {version}")
        return Path(named)
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    newest_first = sorted(pyenv.glob(f"{version}.*"), key=lambda folder: (len(folder.name), folder.name), reverse=True)
    for candidate in [*([Path(on_path)] if on_path else []), *(folder / "bin" / "python" for folder in newest_first)]:
        if _is_python(candidate, version):
            return candidate
    raise EnvironmentFailed(
        f"there is no Python {version} on the PATH or in {pyenv}; name one: {variable}=/path/to/python"
    )


def make_environment(folder: Path, recipe: Recipe, seconds: float = SECONDS) -> Path:
    """Sees to it that `folder` is an environment of that recipe, with a TensorFlow that can be imported.

    Args:
        folder: kept if it is a finished environment of this very recipe; otherwise removed and made.
        recipe: Python, TensorFlow and the packages.
        seconds: how long each installation may take.

    Returns:
        The environment's interpreter.

    Raises:
        EnvironmentFailed: no such Python, or the installation or the import of TensorFlow failed.
    """
    python = _interpreter(folder)
    if _is_finished(folder, recipe):
        return python
    base = find_python(recipe.python)
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([base, "-m", "venv", folder])
    # Not compiled: that takes a third of the time, and most of it is never imported.
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    for packages in filter(None, (recipe.installer, recipe.requirements)):
        _run([*pip, *packages], seconds)
    found = _run([python, "-c", "import tensorflow as tf; print(tf.__version__)"]).split()[-1]
    if found != recipe.tensorflow:
        raise EnvironmentFailed(f"pip installed TensorFlow {found} in place of {recipe.tensorflow}")
    _stamp(folder).write_text(_content(recipe), encoding="utf-8")
    return python


def _interpreter(folder: Path) -> Path:
    return folder.absolute() / "bin" / "python"


def _stamp(folder: Path) -> Path:
    return folder / "finished"


def _content(recipe: Recipe) -> str:
    return "\n".join([f"Python {recipe.python}", *recipe.installer, *recipe.requirements, ""])


def _is_finished(folder: Path, recipe: Recipe) -> bool:
    stamp = _stamp(folder)
    return _interpreter(folder).exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == _content(recipe)


def _is_python(path: Path, version: str) -> bool:
    """Whether it runs and is of that version: a shim of pyenv may be on the PATH and still refuse to run."""
    try:
        return _run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip() == version
    except EnvironmentFailed:
        return False


def _run(command: Sequence[object], seconds: float = SECONDS) -> str:
    """What a command prints; raises with its last line if it fails."""
    command = [str(each) for each in command]
    # An environment of ours must not see packages of the one that started this program.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(f"{command[0]}: {error}") from error
    if finished.returncode:
        lines = (finished.stderr or finished.stdout).strip().splitlines()
        last = (
            lines[-1] if lines else f"ended by signal {-finished.returncode}; this CPU may lack what the package needs"
        )
        raise EnvironmentFailed(f"{' '.join(command[1:])}: {last}")
    return finished.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the environments asked for; returns 0 if all are there, 1 if some could not be made."""
    parser = argparse.ArgumentParser(prog="python -m experiments.machinery.eras", description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="*", help=f"of {', '.join(RELEASES)} (default: {', '.join(ERAS)})")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: .eras")
    given = parser.parse_args(arguments)
    unknown = [version for version in given.version if version not in RELEASES]
    if unknown:
        print(
            f"eras: there is no recipe for TensorFlow {', '.join(unknown)}; there are: {', '.join(RELEASES)}",
            file=sys.stderr,
        )
        return 2
    missing = []
    for recipe in [RELEASES[version] for version in given.version or ERAS]:
        name, started = f"TensorFlow {recipe.tensorflow:7} Python {recipe.python}", time.monotonic()
        try:
            python = make_environment(given.folder / recipe.tensorflow, recipe)
        except EnvironmentFailed as error:
            missing.append(recipe.tensorflow)
            print(f"{name}  cannot be made: {error}", flush=True)
        else:
            print(f"{name}  {python} ({time.monotonic() - started:.0f} s)", flush=True)
    if missing:
        print(f"eras: without {', '.join(missing)}; what compares with them is left out", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
