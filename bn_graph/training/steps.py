"""What a loop has to know of one network's training step."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bn_graph.tf1 import tf
from bn_graph.training.networks import Model, Network

__all__ = ["Step", "step_of"]


class Step(NamedTuple):
    """One training step of one network, as `graph_loop` and `feed_loop` take it.

    Attributes:
        train_op: what the reference loop would run once a step.
        images, labels: the placeholders that it feeds the batch to.
        constants: what else it feeds, the same value at every step: ``{model.is_training: True}``. A variable may stand
            for a value that is to change from chunk to chunk; then `graph_loop` reads it, and `feed_loop` takes its value.
        recorded: tensors whose value at each step is wanted, such as the loss.
    """

    train_op: tf.Operation
    images: tf.Tensor
    labels: tf.Tensor
    constants: Mapping[tf.Tensor, object] = {}
    recorded: Sequence[tf.Tensor] = ()


def step_of(network: Network | Model, *, record_loss: bool = False) -> Step:
    """The training step of one of this library's networks.

    Args:
        network: a `Network` with a train op, or a `Model`, whose ``is_training`` is True then.
        record_loss: whether the loop gives the loss of every step (`Solver.train`'s).

    Raises:
        ValueError: the network was built for inference and has no train op.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     model = bn_graph.Model("model", 64, 10)
        ...     step = bn_graph.training.step_of(model)
        ...     step.train_op.name, step.constants == {model.is_training: True}
        ('model/train_op', True)
    """
    if network.train_op is None:
        raise ValueError("The network has no train op: it was built with is_training=False. Build it for training.")
    constants = {network.is_training: True} if isinstance(network, Model) else {}
    return Step(network.train_op, network.x, network.y_, constants, (network.loss,) if record_loss else ())
