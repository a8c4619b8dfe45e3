"""Something tried in a graph of its own."""

from collections.abc import Callable

from bn_graph.tf1 import tf

__all__ = ["attempted"]


def attempted(call: Callable) -> tuple[str, object]:
    """Calls in a fresh graph: the error's type and first line, "" if there is none, and what is returned."""
    with tf.Graph().as_default():
        try:
            return "", call()
        except (ValueError, TypeError, tf.errors.OpError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", None
