"""BN003 statistics-not-saved: a Saver saves gamma or beta and leaves the moving statistics out."""

from collections.abc import Iterator

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level, State
from bn_graph.audit.rules import ARTICLE, Rule, Verdict
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.save_ops import Saver

RULE = Rule(
    code="BN003",
    name="statistics-not-saved",
    level=Level.ERROR,
    title="a Saver saves gamma or beta and leaves the moving statistics out",
    what="""\
A Saver of the graph saves a layer's gamma or beta, and not its moving statistics. Moving statistics are not trainable, so
a Saver of tf.trainable_variables() leaves them out. It is a warning where another Saver of the graph, or the checkpoint
at hand, has the statistics.""",
    why="""\
If you restore its checkpoint and are lucky, you get an error that they are missing or uninitialized; if the initializers
were run first, prediction silently normalizes by mean 0 and variance 1.""",
    document=f"{ARTICLE}, section Restoring from a checkpoint",
    claims=("article-14", "article-16", "article-17"),
    experiment="checkpoint-variables",
    shows="one network saved by four Savers and restored in three ways, each in a new process",
    example="""\
# Without a list of variables the Saver saves them all.
saver = tf.train.Saver()

# bn_graph: make_saver refuses a list that leaves statistics out. For a small file, make_inference_saver takes
# what inference of an output needs, statistics included, and no optimizer slots.
saver = bn_graph.make_saver()
saver = bn_graph.make_inference_saver(prediction)""",
    undetermined="""\
never. A Saver whose names are fed or computed can't be read, and is ignored.""",
    message="a Saver saves gamma or beta and leaves the moving statistics out",
    fix="tf.train.Saver(tf.global_variables()), or bn_graph.make_saver(); never tf.trainable_variables() alone",
)


def check(model: Model) -> Iterator[Verdict]:
    """Reports a layer with the first Saver that leaves its statistics out."""
    for layer in model.layers:
        saver = next((saver for saver in model.savers if _leaves_out(saver, layer)), None)
        if saver is None:
            continue
        kept = [model.name(node) for node in layer.parameters if node in saver.keys]
        lost = [node for node in layer.statistics if node not in saver.keys]
        evidence = [f"{model.name(saver.node)} saves {', '.join(kept[:2])}, not {model.names(lost)}"]
        if _are_elsewhere(model, layer, saver):
            message = f"{RULE.message}; another Saver, or the checkpoint, has them"
            yield Verdict(layer.name, evidence, Level.WARNING, message)
        else:
            yield Verdict(layer.name, evidence)


def _leaves_out(saver: Saver, layer: Layer) -> bool:
    """Whether it saves a parameter, and no mean or no variance (of several, as towers keep them, one will do)."""
    saved = saver.keys.keys()
    left_out = any(kind and not saved & set(kind) for kind in (layer.means, layer.variances))
    return left_out and bool(saved & set(layer.parameters))


def _are_elsewhere(model: Model, layer: Layer, leaving_out: Saver) -> bool:
    """Whether the statistics that a Saver leaves out are in the checkpoint, or another Saver is for them."""
    if model.stored is not None and model.states[layer.name] in (State.UPDATED, State.INITIAL, State.UNKNOWN):
        return True
    complete = any(set(layer.statistics) <= saver.keys.keys() for saver in model.savers)
    return complete and not leaving_out.is_main
