"""bn_graph: the executable reference for batch normalization in TensorFlow's graph mode.

The conventions, once: y = gamma·(x − μ)/√(σ² + epsilon) + beta; σ² is the biased variance (1/m) when normalizing; decay
is the weight of the old value in the moving statistics (PyTorch's momentum is 1 − decay).

Importing this package builds nothing, opens no session and flips no switch of TensorFlow's. Names are imported when they
are first used, so that what needs no TensorFlow starts without it.
"""

import ast
import importlib
import os


def _read_stub() -> dict[str, tuple[str, str]]:
    """For each public name the module or package that it comes from, and its name there."""
    with open(os.path.splitext(__file__)[0] + ".pyi", encoding="utf-8") as stub:
        imports = [node for node in ast.parse(stub.read()).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}


_HOMES = _read_stub()
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'bn_graph' has no attribute {name!r}")
    home, own_name = _HOMES[name]
    if home != __name__ and hasattr(importlib.import_module(home), own_name):
        return getattr(importlib.import_module(home), own_name)
    return importlib.import_module(f"{home}.{own_name}")


def __dir__() -> list[str]:
    return __all__
