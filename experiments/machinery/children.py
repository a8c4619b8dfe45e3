"""Functions that are run in processes of their own: for what needs a fresh interpreter, or another TensorFlow setting.

A page calls ``children.ask(function, argument=value)``, where `function` is one of its own top-level functions. The child
imports the page and calls the function by its name. Arguments and answers are what JSON can hold: arguments go to the
child's stdin, and the answer is the last line of its stdout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.machinery import eras
from experiments.machinery.programs import UsageError, module_name

__all__ = ["ask", "ask_each", "ask_era"]

_ROOT = Path(__file__).parents[2]
# Imports nothing of the project by itself: a function that needs no TensorFlow doesn't wait for it.
_CHILD = """
import importlib, json, sys
module, name = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), name)(**json.load(sys.stdin))))
"""


def ask(function: Callable, *, environment: Mapping[str, str] | None = None, **arguments) -> object:
    """What `function` returns in a new process.

    Args:
        function: of a module's top level.
        environment: variables that are set for the child, beside this process's own.
        **arguments: for `function`.

    Raises:
        UsageError: the process failed; the message ends with the last line that it wrote.
    """
    module = module_name(function.__module__)
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", _CHILD, module, function.__name__]
    failed = f"the process of {module}.{function.__name__} failed"
    return _answer(command, arguments, os.environ | {"PYTHONPATH": path} | (environment or {}), failed)


def _answer(command: Sequence[str], arguments: Mapping, environment: Mapping[str, str], failed: str) -> object:
    finished = subprocess.run(command, input=json.dumps(arguments), env=environment, capture_output=True, text=True)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{failed}: {last}")
    return json.loads(finished.stdout.splitlines()[-1])


def ask_each(function: Callable, questions: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """`ask` for each of `questions`, all at the same time: most of what a child does is importing TensorFlow.

    Args:
        function: of a module's top level.
        questions: keyword arguments of `ask`, by the name that the answer gets.
    """
    with ThreadPoolExecutor(len(questions)) as pool:
        asked = {name: pool.submit(ask, function, **question) for name, question in questions.items()}
        return {name: answer.result() for name, answer in asked.items()}


def ask_era(version: str, function: str, **arguments) -> object | None:
    """What a function of `era_child` returns in the TensorFlow of that version; None, and a line on stderr, without it.

    Args:
        version: of an environment that `make eras` makes.
        function: its name.
        **arguments: for it, what JSON can hold.

    Raises:
        UsageError: the process failed; the message ends with the last line that it wrote.
    """
    python = eras.environment_python(version)
    if python is None:
        print(f"Without TensorFlow {version} (make eras): what it would be asked is left out.", file=sys.stderr)
        return None
    # Today's packages are not the old interpreter's, and 1.15 would run eagerly if TF2_BEHAVIOR were set.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TF_USE", "TF2_"))}
    command = [str(python), "-W", "ignore", str(Path(__file__).with_name("era_child.py")), function]
    return _answer(
        command, arguments, kept | {"TF_CPP_MIN_LOG_LEVEL": "3"}, f"{function} failed in TensorFlow {version}"
    )
