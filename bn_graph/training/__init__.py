"""Training: the documents' loop, which is the reference, and the same training with whole steps inside the graph.

==================  ==========================================================  ======================================
loop                a step is                                                   for
==================  ==========================================================  ======================================
`train`,            one ``session.run`` with a ``feed_dict``, as in the         reading, and as the reference
`feed_loop`,        documents
`Solver`
`train_in_graph`,   one turn of a ``tf.while_loop``: a chunk of steps is one    every other training: several times
`graph_loop`        ``session.run``, and the examples lie in the session        as fast, and the same numbers
==================  ==========================================================  ======================================

The batch of a step depends on the seed and the step alone (`datasets.batch_rows`), and a checkpoint holds every
variable and the step. So a run that was stopped, by Ctrl-C or by kill -9, and started again ends with the same numbers,
bit for bit on one machine, as one that was not. The two loops keep the same checkpoints: what one wrote, the other goes
on from.
"""

from bn_graph.training.graph_loop import chunks, graph_loop, train_in_graph
from bn_graph.training.loops import Step, feed_loop, resume, session_config, step_of, train
from bn_graph.training.networks import Solver

__all__ = [
    "Solver",
    "Step",
    "chunks",
    "feed_loop",
    "graph_loop",
    "resume",
    "session_config",
    "step_of",
    "train",
    "train_in_graph",
]
