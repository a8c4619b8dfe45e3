"""BN007 statistics-updated-twice: the statistics are updated more than once a step."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from bn_graph.audit.model import Model
from bn_graph.audit.report import Level
from bn_graph.audit.rules import SOLVER, Rule, Verdict
from bn_graph.graphs.graph import closure
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.updates import Update
from bn_graph.graphs.values import Choice

RULE = Rule(
    code="BN007",
    name="statistics-updated-twice",
    level=Level.ERROR,
    title="the statistics are updated more than once a step",
    what="""\
One train op runs several updates of the same statistics. If they average the same batch, as where updates in place were
put into the collection too, it is an error. If they average several batches (a discriminator's real and generated images,
towers on shards of one batch) it is a warning.""",
    why="""\
With the same batch, the average forgets faster than its decay says. With several, it is an average over all of them, and
wrong only as far as they are not alike. Assigns that read and write apart (not assign_sub) may lose one another's
updates, and the message says so.""",
    document=f"{SOLVER}, section class Model",
    claims=("solver-10", "article-07"),
    experiment="missing-update-ops",
    shows="how many update ops one layer has that is applied twice, and what a scope's prefix collects",
    example="""\
# Towers: one tower's updates are enough. The scope is a regular expression; the slash keeps tower_10 out.
with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS, scope="tower_0/")):
    train_op = optimizer.minimize(loss)

# bn_graph: collected by component and not by regular expression; several networks, each with its own updates.
updates = bn_graph.training.train_op.collect(name_scope="tower_0")
train_op = bn_graph.train_op(optimizer, loss, update_ops=updates)
# A GAN: bn_graph.train_op(optimizer, d_loss, scope="discriminator", var_list=d_variables)""",
    undetermined="""\
never. Updates that a switch keeps from running in one step are not counted; nor are the turns of a loop.""",
    message="one step averages the same batch into the statistics more than once: the decay is not what it says",
    fix="update in place, or through the collection, not both",
)

_SEVERAL_INPUTS = "called on several inputs (towers, real and fake), each of which updates the statistics"
_MOST_TRAIN_OPS = 8


def check(model: Model) -> Iterator[Verdict]:
    """Reports layers with several updates of a statistic in one step that no switch keeps apart."""
    steps = _steps(model)
    for layer in model.layers:
        updates = _in_one_step(layer, steps)
        if not updates:
            continue
        pairs = [pair for pair in itertools.combinations(updates, 2) if _run_together(model.branches, *pair)]
        if not pairs:
            continue
        evidence = [
            f"{model.name(updates[0].variable)} is assigned by {model.names(update.node for update in updates)}"
        ]
        if any(one.inputs & other.inputs for one, other in pairs):
            yield Verdict(layer.name, evidence)
        else:
            plain = "" if all(update.adds for update in updates) else "; plain assigns may undo one another"
            fix = "update from one of them, if they differ in distribution"
            yield Verdict(layer.name, evidence, Level.WARNING, _SEVERAL_INPUTS + plain, fix)


def _steps(model: Model) -> list[frozenset[int]]:
    """What one step runs, for each train op; of a graph with many (a group that nobody made), all at once."""
    train_ops = model.training.train_ops
    if not 1 < len(train_ops) <= _MOST_TRAIN_OPS:
        return [model.training.closure]
    return [frozenset(closure(model.graph, [train_op])) for train_op in train_ops]


def _in_one_step(layer: Layer, steps: Iterable[frozenset[int]]) -> list[Update]:
    """The updates of one of the layer's statistics that run with one train op, if there are several."""
    for node in layer.statistics:
        updates = [update for update in layer.updates if update.variable == node and not update.holds]
        for run in steps if len(updates) > 1 else ():
            together = [update for update in updates if update.node in run]
            if len(together) > 1:
                return together
    return []


def _run_together(under: Sequence[frozenset[Choice]], one: Update, other: Update) -> bool:
    """Whether no switch runs one update or the other."""
    choices = under[one.node] | under[other.node]
    return len({node for node, _ in choices}) == len(choices)
