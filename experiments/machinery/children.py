"""Functions that are run in processes of their own: for what needs a fresh interpreter, or another TensorFlow setting.

A page calls ``children.ask(function, argument=value)``, where `function` is one of its own top-level functions. The child
imports the page and calls the function by its name. Arguments and answers are what JSON can hold.

Importing TensorFlow takes seconds, so most children are forked off a server that has imported it and done nothing else
(`fresh_processes`). A child with an environment of its own is a new interpreter: its arguments go to its stdin, and the
answer is the last line of its stdout.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from experiments.machinery import eras
from experiments.machinery.programs import UsageError, module_name

__all__ = ["ask", "ask_each", "ask_era", "fresh_processes"]

# What takes long to import: TensorFlow, the drawing of figures, the legacy Keras of tf.layers, the bundled digits.
_IMPORTED_ONCE = ["experiments.machinery.harness", "experiments.machinery.figures", "tf_keras", "sklearn.datasets"]
_ROOT = Path(__file__).parents[2]
# Imports nothing of the project by itself: a function that needs no TensorFlow doesn't wait for it.
_CHILD = """
import importlib, json, sys
module, name = sys.argv[1:]
print(json.dumps(getattr(importlib.import_module(module), name)(**json.load(sys.stdin))))
"""


def fresh_processes(*also: str) -> ForkServerContext:
    """Makes processes in which TensorFlow has just been imported: no graph, no session, no thread of it is there yet.

    Args:
        *also: modules to import beforehand.

    Returns:
        A context of `multiprocessing`. Its server takes this process's environment when the first process is started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_IMPORTED_ONCE, *also])
    return context


def ask(function: Callable, *, environment: Mapping[str, str] | None = None, **arguments) -> object:
    """What `function` returns in a new process.

    Args:
        function: of a module's top level.
        environment: variables that are set for the child, beside this process's own; it is a new interpreter then.
        **arguments: for `function`.

    Raises:
        UsageError: the process failed; the message ends with the last line that it wrote.
    """
    module = module_name(function.__module__)
    failed = f"the process of {module}.{function.__name__} failed"
    if environment is None:
        return _forked_answer(function, arguments, failed)
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", _CHILD, module, function.__name__]
    return _answer(command, arguments, os.environ | {"PYTHONPATH": path} | environment, failed)


def _forked_answer(function: Callable, arguments: Mapping, failed: str) -> object:
    received, sent = multiprocessing.Pipe(duplex=False)
    process = fresh_processes().Process(target=_send_answer, args=(sent, function, json.dumps(arguments)))
    process.start()
    sent.close()
    try:
        answered, answer = received.recv()
    except EOFError:
        answered, answer = False, "it ended without an answer"
    process.join()
    if not answered:
        raise UsageError(f"{failed}: {answer}")
    return json.loads(answer)


def _send_answer(sent: Connection, function: Callable, arguments: str) -> None:
    """What the forked process does; what it prints is dropped."""
    with open(os.devnull, "w") as dropped:
        for stream in (1, 2):
            os.dup2(dropped.fileno(), stream)
    try:
        sent.send((True, json.dumps(function(**json.loads(arguments)))))
    except Exception as error:
        sent.send((False, " ".join(f"{type(error).__name__}: {error}".split())))


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
