"""Something run in a graph or a session of its own."""

from collections.abc import Callable

import bn_graph
from bn_graph.tf1 import tf

__all__ = ["attempted", "evaluate"]


def attempted(call: Callable) -> tuple[str, object]:
    """Calls in a fresh graph: the error's type and first line, "" if there is none, and what is returned."""
    with tf.Graph().as_default():
        try:
            return "", call()
        except (ValueError, TypeError, tf.errors.OpError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", None


def evaluate(*tensors: tf.Tensor) -> list:
    """Their values, in a session of the default graph; its variables as they are initialized."""
    with tf.Session(config=bn_graph.session_config()) as session:
        session.run(tf.global_variables_initializer())
        return session.run(tensors)
