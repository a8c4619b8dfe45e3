"""Runs one program of the documents in this interpreter, and writes down what it gave.

It is started in the program's working folder, by the interpreter of an environment (Python 3.6 and up, TensorFlow 1.0 and up)::

    python child.py < request.json

The request has ``steps`` (from `texts.steps`), ``file`` (the document's, for the numbers of lines in errors), ``seed``,
``keep`` (names of variables), ``mode`` ("as it stands", "shim", "legacy Keras" or "Keras 3"), ``pictures`` (the folder for
figures) and ``answer`` (the file to write). A step is run as a notebook runs a cell: the value of an expression at its
end is printed.
"""

import ast
import contextlib
import io
import json
import os
import platform
import re
import sys
import time
import traceback

import numpy as np

_TRACE = re.compile(
    r"Graph execution error|Detected at|\s+|File |Traceback|Node:|.*error\(s\) found|Errors may have originated"
)

MOST_POINTS = 81
"""Of a curve that is kept; r2rt's has 800."""


def run(request):
    """The answer to a request: what was printed, measured, kept and drawn; the error, if there was one."""
    names = {"__name__": "__main__"}
    answer = {"printed": "", "error": None, "measured": {}, "shim": []}
    if request["mode"] == "shim":
        import shim

        shim.install(answer["shim"])
    started, printed = time.time(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        for step in request["steps"]:
            try:
                _take(step, names, request, answer)
            except BaseException as error:  # whatever a program of somebody else's raises is its result
                answer["error"] = _described(error, request["file"])
                break
    answer["seconds"] = round(time.time() - started, 1)
    answer["printed"] = printed.getvalue()
    answer["variables"] = {name: _plain(names[name]) for name in request["keep"] if name in names}
    answer["figures"] = _figures(request["pictures"])
    tensorflow = sys.modules.get("tensorflow")
    answer["versions"] = {"python": platform.python_version(), "numpy": np.__version__}
    answer["versions"]["tensorflow"] = getattr(tensorflow, "__version__", "not imported")
    return answer


def _take(step, names, request, answer):
    """Runs one step."""
    if step["kind"] == "seed":
        set_seeds(request["seed"], request["mode"])
    elif step["kind"] == "source":
        text = step["text"]
        if request["mode"] == "shim":
            text = sys.modules["shim"].rewritten(text, answer["shim"])
        _run_cell(text, step["line"], request["file"], names)
    else:
        import around

        if step["kind"] == "signature":
            found = around.compare_signature(step["text"], step["name"], names)
            answer["measured"][step["name"]] = found
        else:
            answer["measured"].update(getattr(around, step["text"])(names, request["seed"]) or {})


def _run_cell(text, line, file, names):
    """Runs Python code as a notebook's cell; `line` is the number of its first line in the document."""
    tree = ast.parse("\n" * (line - 1) + text, file)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, file, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), file, "eval"), names)
        if value is not None:
            print("\n" + repr(value))


def set_seeds(seed, mode):
    """Seeds NumPy and the TensorFlow that there is; where the document's readers had chance."""
    np.random.seed(seed)
    import tensorflow as tf

    if mode in ("as it stands", "shim"):
        tf.compat.v1.set_random_seed(seed) if mode == "shim" else tf.set_random_seed(seed)
    else:
        tf.keras.utils.set_random_seed(seed)


def _described(error, file):
    """Type, first line of the message, and the line of the document: no text of the program, no path of the machine."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    # Today's TensorFlow puts the program's own lines before the message.
    spoken = [each for each in message.strip().splitlines() if each.strip() and not _TRACE.match(each)]
    message = (spoken or ["no message"])[0][:300]
    for path in sorted({os.getcwd(), sys.prefix, sys.base_prefix}, key=len, reverse=True):
        message = message.replace(path, "…")
    return {"type": type(error).__name__, "message": message, "line": lines[-1] if lines else None}


def _plain(value):
    """A kept value as JSON: numbers, curves of `MOST_POINTS` points at most, five columns at most, texts of the rest."""
    if isinstance(value, (list, tuple)) and value and not all(_is_number(each) for each in np.ravel(_array(value))):
        return [repr(each) for each in value]
    array = _array(value)
    if array.dtype == object or array.ndim > 4:
        return repr(value)[:300]
    if array.ndim == 0:
        return array.item()
    points = np.unique(np.linspace(0, len(array) - 1, min(len(array), MOST_POINTS)).astype(int))
    thinned = array[points][:, :5] if array.ndim == 2 else array[points]
    return {"of": len(array), "at": points.tolist() if len(points) < len(array) else "all", "values": _rounded(thinned)}


def _array(value):
    try:
        return np.array(value)
    except (ValueError, TypeError, NotImplementedError):  # a symbolic tensor
        return np.array(None)


def _is_number(value):
    return isinstance(value, (int, float, np.number))


def _rounded(array):
    if array.dtype.kind != "f":
        return array.tolist()
    return [_rounded(each) for each in array] if array.ndim > 1 else [float(format(each, ".5g")) for each in array]


def _figures(folder):
    """The figures that the program has drawn, by their curves' points; each also as a picture in `folder`."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    found = []
    for number in pyplot.get_fignums() if pyplot else []:
        figure = pyplot.figure(number)
        os.makedirs(folder, exist_ok=True)
        figure.savefig(os.path.join(folder, f"figure{number}.png"))
        found.append({"axes": len(figure.axes), "points": [len(x.get_xdata()) for a in figure.axes for x in a.lines]})
    return found


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    got = run(wanted)
    with open(wanted["answer"], "w") as file:
        json.dump(got, file)
    sys.stdout.flush()
    os._exit(0)  # threads of old TensorFlows may keep the interpreter from ending
