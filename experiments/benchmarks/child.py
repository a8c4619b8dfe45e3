"""The contender's side: makes what it was told to, then answers one request a line, until the parent closes the pipe.

Requests and answers are JSON. ``{"run": n}`` runs n steps and answers with their seconds; what else a contender can do
is in the dictionary that its function returns.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

__all__ = ["PEERS", "CannotRun", "main", "peak_megabytes", "serve", "served"]

PEERS = ("fvcore", "jax", "keras", "tf_keras", "torch")
"""Packages that may be missing: their contenders are left out, with a note."""


class CannotRun(Exception):
    """What a contender raises that is installed and lacks something else; it is left out too. The message says what."""


def main(function: str) -> None:
    """Calls `function`, ``"module:name"``, with the arguments in the first line of stdin, and serves what it returns."""
    # Frameworks print; the answers must not be in between.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = function.partition(":")
    arguments = json.loads(sys.stdin.readline())
    try:
        made = getattr(importlib.import_module(module), name)(**arguments)
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        return _answer(answers, {"missing": f"{error.name} is not installed"})
    except CannotRun as error:
        return _answer(answers, {"missing": str(error)})
    _answer(answers, {"ready": True})
    serve(made, answers)


def serve(made: Mapping[str, Callable], answers) -> None:
    """Answers each line of stdin: ``run`` is timed; other keys of `made` are called and their value is the answer."""
    loss = None
    for line in sys.stdin:
        ((what, argument),) = json.loads(line).items()
        if what == "run":
            start = time.perf_counter()
            made["run"](argument)
            _answer(answers, {"seconds": time.perf_counter() - start})
        elif what == "peak":
            _answer(answers, {"megabytes": peak_megabytes()})
        elif what == "check":  # from the initial weights, so the first time is the only one that tells
            loss = made[what](argument) if loss is None else loss
            _answer(answers, loss)
        else:
            _answer(answers, made[what](argument))


def served(runs: dict[str, Callable[[], object]]) -> dict[str, Callable]:
    """What a child serves, of functions that each run a layer once."""

    def run(asked: dict) -> None:
        once = runs[asked["what"]]
        for _ in range(asked["count"]):
            once()

    return {"run": run, "names": lambda _: {"names": list(runs)}}


def _answer(answers, content: Mapping) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def peak_megabytes() -> float:
    """The most memory that this process has had at once; ``ru_maxrss`` would be at least its parent's, where Linux tells it."""
    with suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
