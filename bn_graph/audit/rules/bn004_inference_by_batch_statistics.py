"""BN004 inference-by-batch-statistics: an inference output normalizes with batch statistics."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, Mode
from bn_graph.audit.rules import R2RT, Rule, Undetermined, Verdict

RULE = Rule(
    code="BN004",
    name="inference-by-batch-statistics",
    level=Level.ERROR,
    title="an inference output normalizes with batch statistics",
    what="""\
On the way to an inference output the layer normalizes by the batch: it has no switch, or the switch is stuck on
training, or there are no moving statistics to switch to.""",
    why="""\
The answer for one example depends on what else is in the batch, and a batch of a single example is its own mean: every
normalized input is 0, and the network answers the same whatever it is shown. Tests in large mixed batches look well,
since those estimate the population's statistics.""",
    document=f"{R2RT}, section Making predictions",
    claims=("r2rt-12", "r2rt-13", "r2rt-21"),
    experiment="single-example",
    shows="the first 100 test images, each predicted alone, before and after the fix",
    example="""\
# A switch that predicts unless it is set to training, so that serving can't forget it.
is_training = tf.placeholder_with_default(False, [], name="is_training")
hidden = tf.layers.batch_normalization(x, training=is_training)  # and BN001's fix, for its update ops

# bn_graph: the updates are dependencies of the output when it trains.
hidden = bn_graph.batch_norm_wrapper(x, is_training, name="bn1")

# A graph that exists, with every layer on the path switched to its moving statistics whatever the switch was:
#   python -m bn_graph inference-graph --meta M --checkpoint C --output NAME --out DIR""",
    undetermined="""\
where the graph only trains, and its statistics may be good: what another graph, built for inference, does with them is
not in the file; where the graph computes gradients and applies none; and where is_training was stripped, as from text graphs
for OpenCV. The reason says what happens if you predict with this very graph. Name the op that is the output with --output, and
the position of a switch with --feed NAME=false. A switch that can be fed is assumed to be fed right.""",
    message="inference normalizes by the statistics of whatever batch is given",
    fix="training=False (or the switch fed False) on updated statistics, or python -m bn_graph inference-graph",
)


def check(model: Model) -> Iterator[Verdict | Undetermined]:
    """Reports what the inference paths show."""
    for layer in model.layers:
        path = model.inference[layer.name]
        if path.mode == Mode.UNKNOWN:
            yield Undetermined(layer.name, path.reason)
        elif path.mode == Mode.BATCH:
            yield Verdict(layer.name, path.evidence, message=f"{RULE.message}: {path.reason}")
