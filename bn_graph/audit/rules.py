"""The rules, a function each: from what was worked out of a graph and its checkpoint to findings.

A rule returns a `Verdict` for each layer it has something to say of: a finding, or that it cannot tell and why. Layers of
which it says the same become one `Finding`. A rule that does not apply (no train op, no checkpoint) returns nothing.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bn_graph.audit.findings import ADVICE, ERROR, WARNING, CannotTell, Finding
from bn_graph.audit.model import Model, looks_untrained
from bn_graph.audit.paths import InferencePath
from bn_graph.graphs.graph import closure, downstream
from bn_graph.graphs.layers import Layer
from bn_graph.graphs.modes import alternatives
from bn_graph.graphs.save_ops import Saver
from bn_graph.graphs.updates import Update, assigned_value
from bn_graph.graphs.values import Choice, branches, constant_node, leaves, strip, variable

__all__ = ["RULES", "apply_rules"]

CANNOT_TELL = "cannot tell"
_MOST_EVIDENCE = 6
_MOST_TRAIN_OPS = 8


class Verdict(NamedTuple):
    """What a rule says of a layer; of level `CANNOT_TELL`, `message` is the reason."""

    layer: str
    level: str
    message: str
    evidence: tuple[str, ...] = ()
    fix: str = ""


Paths = Mapping[str, InferencePath]
Rule = Callable[[Model, Paths], Iterable[Verdict]]


def detached_updates(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN001: a train op exists, the layer trains by the batch, and none of its update ops runs with it."""
    for layer in _detached(model):
        if model.states[layer.name] == "updated" or _grouped_by_hand(model, layer):
            continue  # BN103
        train_ops = ", ".join(model.name(node) for node in model.training.train_ops[:3])
        nodes = [update.node for update in layer.updates]
        yield Verdict(
            layer.name,
            ERROR,
            "a train op normalizes by batch statistics and runs none of the update ops of the population statistics",
            (f"{_names(model, nodes)}: not upstream of {train_ops}",),
            "with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)): train_op = optimizer.minimize(loss)"
            " – or bn_graph.train_op(optimizer, loss)",
        )


def _detached(model: Model) -> list[Layer]:
    return [
        layer
        for layer in model.layers
        if layer.updates
        and model.trains_by_batch(layer)
        and not any(update.node in model.training.closure for update in layer.updates)
    ]


def _grouped_by_hand(model: Model, layer: Layer) -> bool:
    """Whether an op gathers the updates of this layer and others, to be run by itself, and no checkpoint belies it."""
    if model.states[layer.name] == "initial":
        return False
    own = {update.node for update in layer.updates}
    others = {update.node for other in model.layers if other is not layer for update in other.updates}
    gathering = [node for node in downstream(model.uses, own) if model.graph.ops[node] == "NoOp"]
    return any(_gathers(model, node, others) for node in gathering)


def _gathers(model: Model, node: int, wanted: set[int]) -> bool:
    """Whether a group has one of `wanted` among what it groups, groups of groups and reads after assigns included."""
    pending, seen = [node], set()
    while pending and len(seen) < 10_000:
        inner = pending.pop()
        if inner in wanted:
            return True
        if inner in seen:
            continue
        seen.add(inner)
        if inner == node or model.graph.ops[inner] in ("NoOp", "Identity", "ReadVariableOp"):
            pending.extend(model.graph.controls[inner])
            pending.extend(source for source, _ in model.graph.inputs[inner])
    return False


def never_updated(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN002: the stored statistics are what they were initialized to."""
    untrained = None
    for layer in model.layers:
        if model.states[layer.name] != "initial" or _is_dead(model, layer):
            continue
        untrained = looks_untrained(model) if untrained is None else untrained
        if untrained:
            yield Verdict(
                layer.name, CANNOT_TELL, "nothing in the checkpoint has been trained yet, gammas and betas included"
            )
            continue
        yield Verdict(
            layer.name,
            ERROR,
            "population statistics are what they were initialized to: never updated",
            (_initial_evidence(model, layer),),
            "run the update ops in training, or compute the statistics now: python -m bn_graph recalibrate",
        )


def _is_dead(model: Model, layer: Layer) -> bool:
    """Whether nothing uses the layer, in training or after it."""
    return all(not any(used == 0 for _, _, used in model.uses.data[place.outputs[0]]) for place in layer.places)


def _initial_evidence(model: Model, layer: Layer) -> str:
    if model.stored is None or not layer.statistics:
        return "constants of the graph: mean 0, variance 1"
    keys = [model.stored.keys[node] for node in layer.statistics]
    return f"in {model.stored.checkpoint.prefix}: {', '.join(keys[:2])}, all as initialized"


def left_out_by_saver(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN003: a Saver saves gamma or beta, and not the statistics."""
    for layer in model.layers:
        leaving = [saver for saver in model.savers if _leaves_out(saver, layer)]
        if not leaving:
            continue
        complete = [saver for saver in model.savers if set(layer.statistics) <= saver.keys.keys()]
        has_stored = model.states[layer.name] in ("updated", "initial", "?") and model.stored is not None
        harmless = has_stored or (complete and not leaving[0].is_main)
        message = "a Saver saves gamma or beta and leaves the population statistics out"
        if harmless:
            message += "; another Saver, or the checkpoint, has them"
        kept = [model.name(node) for node in layer.parameters if node in leaving[0].keys]
        lost = [node for node in layer.statistics if node not in leaving[0].keys]
        yield Verdict(
            layer.name,
            WARNING if harmless else ERROR,
            message,
            (f"{model.name(leaving[0].node)} saves {', '.join(kept[:2])}, not {_names(model, lost)}",),
            "tf.train.Saver(tf.global_variables()), or bn_graph.make_saver(); never tf.trainable_variables() alone",
        )


def _leaves_out(saver: Saver, layer: Layer) -> bool:
    """Whether it saves a parameter, and no mean or no variance (of several, as towers keep them, one will do)."""
    saved = saver.keys.keys()
    left_out = any(kind and not saved & set(kind) for kind in (layer.means, layer.variances))
    return left_out and bool(saved & set(layer.parameters))


def inference_by_batch(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN004: an inference output normalizes with batch statistics."""
    for layer in model.layers:
        path = paths[layer.name]
        if path.mode == "?":
            yield Verdict(layer.name, CANNOT_TELL, path.reason)
        elif path.mode == "batch":
            yield Verdict(
                layer.name,
                ERROR,
                f"inference normalizes by the statistics of whatever batch is given: {path.reason}",
                path.evidence,
                "build the inference graph with training=False (or feed the switch False) on updated statistics; for a trained"
                " graph: python -m bn_graph inference-graph",
            )


def inference_updates(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN005: running an inference output updates statistics."""
    for layer in model.layers:
        if paths[layer.name].updates:
            yield Verdict(
                layer.name,
                ERROR,
                "running an inference output changes population statistics",
                (f"runs {_names(model, paths[layer.name].updates)}",),
                "build the inference copy with training=False; make update ops inside the training branch of the cond",
            )


def missing_from_checkpoint(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN006: the checkpoint has the layer, and not its statistics."""
    if model.stored is None:
        return
    for layer in model.layers:
        absent = [node for node in layer.statistics if model.stored.entry(node) is None]
        present = [node for node in layer.parameters if model.stored.entry(node) is not None]
        if not absent:
            continue
        if present:
            yield Verdict(
                layer.name,
                ERROR,
                "the checkpoint has gamma or beta and lacks the population statistics",
                (
                    f"{model.stored.checkpoint.prefix} has {model.stored.keys[present[0]]}, "
                    f"not {', '.join(model.stored.keys[node] for node in absent[:2])}",
                ),
                "save them (BN003), or compute them from data: python -m bn_graph recalibrate",
            )
        elif not layer.parameters:
            reason = (
                "the checkpoint lacks the statistics, and without gamma and beta it can't be told if it has the layer"
            )
            yield Verdict(layer.name, CANNOT_TELL, reason)


def updated_twice(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN007: one step of a train op updates a statistic more than once."""
    steps, under = _steps(model), None
    for layer in model.layers:
        updates = _several_in_a_step(layer, steps)
        if not updates:
            continue
        assigning = _names(model, [update.node for update in updates])
        evidence = (f"{model.name(updates[0].variable)} is assigned by {assigning}",)
        under = branches(model.graph) if under is None else under
        pairs = [pair for pair in itertools.combinations(updates, 2) if _run_together(under, *pair)]
        if not pairs:
            continue
        if any(one.inputs & other.inputs for one, other in pairs):
            message = "one step takes the same batch into the statistics more than once: the decay is not what it says"
            fix = "update in place, or through the collection, not both"
            yield Verdict(layer.name, ERROR, message, evidence, fix)
            continue
        message = "called on several inputs (towers, real and fake), each of which updates the statistics"
        if not all(update.adds for update in updates):
            message += "; plain assigns may undo one another"
        yield Verdict(layer.name, WARNING, message, evidence, "update from one of them, if they differ in distribution")


def _run_together(under: Sequence[frozenset[Choice]], one: Update, other: Update) -> bool:
    """Whether no switch runs one update or the other."""
    choices = under[one.node] | under[other.node]
    return len({node for node, _ in choices}) == len(choices)


def _steps(model: Model) -> list[frozenset[int]]:
    """What one step runs, for each train op; of a graph with many (a group that nobody made), all at once."""
    train_ops = model.training.train_ops
    if not 1 < len(train_ops) <= _MOST_TRAIN_OPS:
        return [model.training.closure]
    return [frozenset(closure(model.graph, [train_op])) for train_op in train_ops]


def _several_in_a_step(layer: Layer, steps: Iterable[frozenset[int]]) -> list[Update]:
    """The updates of one of the layer's statistics that run with one train op, if there are several."""
    for node in layer.statistics:
        updates = [update for update in layer.updates if update.variable == node and not update.holds]
        for run in steps if len(updates) > 1 else ():
            together = [update for update in updates if update.node in run]
            if len(together) > 1:
                return together
    return []


def never_in_training_mode(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN008: built in inference mode in a training graph, trained through, never updated."""
    for layer in model.layers:
        ways = list(alternatives(layer))
        if layer.updates or not layer.statistics or any(way.by_batch for way in ways):
            continue
        if not model.in_training(layer) or not model.is_trained(layer) or model.states[layer.name] == "updated":
            continue
        known = model.states[layer.name] in ("initial", "missing")
        message = "gradients train through inference mode, and nothing ever updates the population statistics"
        if not known:
            message += (
                "; harmless only if they were trained before (frozen batch norm): the checkpoint is not here to tell"
            )
        yield Verdict(
            layer.name,
            ERROR if known else WARNING,
            message,
            (f"{model.name(ways[0].place.node)} normalizes by {_names(model, layer.statistics)}",),
            "pass training=True (or the switch) where the training graph calls it",
        )


# --- Advice -----------------------------------------------------------------------------------------------------------


def bias_before(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN101: a bias just before batch norm, which takes it out again."""
    for layer in model.layers:
        for place in layer.places:
            node = place.inputs[0]
            if node < 0 or model.graph.ops[node] not in ("BiasAdd", "BiasAddV1", "Add", "AddV2"):
                continue
            biases = [variable(model.graph, ref) for ref in model.graph.inputs[node]]
            # A sum of a variable with something else; the bias, being a vector of channels, is the second term.
            if len(biases) == 2 and biases[0] is None and biases[1] is not None:
                evidence = (f"{model.name(biases[1])} is added by {model.name(node)}",)
                message = "a bias is added just before, and taken out again with the mean"
                yield Verdict(layer.name, ADVICE, message, evidence, "use_bias=False; beta does its work")
                break


def suspicious_constants(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN102: a decay below 0.5, an epsilon of 0 or above 0.1."""
    for layer in model.layers:
        said = []
        epsilons = {place.epsilon for place in layer.places if place.epsilon is not None}
        said += [f"epsilon is {epsilon:g}" for epsilon in sorted(epsilons) if epsilon == 0 or epsilon > 0.1]
        decays = {decay for update in layer.updates if (decay := _decay(model, update)) is not None}
        said += [f"decay is {decay:g}" for decay in sorted(decays) if decay < 0.5]
        if said:
            fix = "decay is the weight of the old value: 0.9 to 0.999 (PyTorch's momentum is 1 − decay); epsilon about 1e-3"
            yield Verdict(layer.name, ADVICE, f"unusual constants: {', '.join(said)}", (), fix)


def _decay(model: Model, update: Update) -> float | None:
    """The weight of the old value, where it is a constant in one of the usual forms of the average."""
    graph = model.graph
    pending, seen = [(assigned_value(graph, update.node), update.adds)], 0
    while pending and seen < 40:
        ref, is_difference = pending.pop(0)
        seen += 1
        node, _ = strip(graph, ref)
        if node < 0 or graph.ops[node] not in ("Mul", "Add", "AddV2", "Sub"):
            continue
        sources = graph.inputs[node]
        if graph.ops[node] != "Mul" or len(sources) != 2:
            pending.extend((source, is_difference) for source in sources)
            continue
        for source, other in (sources, sources[::-1]):
            weight = _number(model, source)
            if weight is None or not 0 <= weight <= 1:
                continue
            inner = strip(graph, other)
            if variable(graph, other) == update.variable:
                return weight
            takes_statistic = inner in update.statistics or (inner[0] >= 0 and graph.ops[inner[0]] == "Sub")
            return 1 - weight if takes_statistic else None
    return None


def _number(model: Model, ref: tuple[int, int]) -> float | None:
    """A constant, or 1 less a constant; of a choice between constants, the one that isn't 1, which is there to rest."""
    node, _ = strip(model.graph, ref)
    if node < 0:
        return None
    if model.graph.ops[node] == "Sub" and len(model.graph.inputs[node]) == 2:
        terms = [_number_or_choice(model, source) for source in model.graph.inputs[node]]
        return None if None in terms else terms[0] - terms[1]
    return _number_or_choice(model, ref)


def _number_or_choice(model: Model, ref: tuple[int, int]) -> float | None:
    values = [constant_node(model.graph, leaf.ref) for leaf in leaves(model.graph, ref, lambda _: False)]
    if not values or any(value is None or value.size != 1 for value in values):
        return None
    numbers = {float(value.reshape(-1)[0]) for value in values}
    numbers = numbers - {1.0} or numbers
    return numbers.pop() if len(numbers) == 1 else None


def updated_by_hand(model: Model, paths: Paths) -> Iterator[Verdict]:
    """BN103: the updates are outside of every train op, yet something shows that they are run."""
    for layer in _detached(model):
        if model.states[layer.name] == "updated":
            shown = "the checkpoint's statistics have moved"
        elif _grouped_by_hand(model, layer):
            shown = "an op of the graph gathers them"
        else:
            continue
        nodes = [update.node for update in layer.updates]
        yield Verdict(
            layer.name,
            ADVICE,
            f"update ops are upstream of no train op, but {shown}: run by hand or by a hook, or left from an earlier training",
            (f"update ops: {_names(model, nodes)}",),
            "make them dependencies of the train op; what must be remembered at every session.run is forgotten at one",
        )


RULES: dict[str, Rule] = {
    "BN001": detached_updates,
    "BN002": never_updated,
    "BN003": left_out_by_saver,
    "BN004": inference_by_batch,
    "BN005": inference_updates,
    "BN006": missing_from_checkpoint,
    "BN007": updated_twice,
    "BN008": never_in_training_mode,
    "BN101": bias_before,
    "BN102": suspicious_constants,
    "BN103": updated_by_hand,
}


def apply_rules(model: Model, paths: Paths, codes: Iterable[str]) -> tuple[list[Finding], list[CannotTell]]:
    """Applies the rules of these codes.

    Returns:
        Findings with errors first, then by code; and what could not be told.
    """
    findings, untold = [], []
    for code in codes:
        by_message: dict[tuple[str, str, str], list[Verdict]] = {}
        for verdict in RULES[code](model, paths):
            by_message.setdefault((verdict.level, verdict.message, verdict.fix), []).append(verdict)
        for (level, message, fix), verdicts in by_message.items():
            layers = tuple(verdict.layer for verdict in verdicts)
            if level == CANNOT_TELL:
                untold.append(CannotTell(code, layers, message))
            else:
                findings.append(Finding(code, level, layers, message, _evidence(verdicts), fix))
    order = {ERROR: 0, WARNING: 1, ADVICE: 2}
    return sorted(findings, key=lambda finding: (order[finding.level], finding.code)), untold


def _evidence(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    lines = list(dict.fromkeys(line for verdict in verdicts for line in verdict.evidence))
    more = len(lines) - _MOST_EVIDENCE
    return tuple(lines[:_MOST_EVIDENCE] + ([f"… and {more} more lines like these"] if more > 0 else []))


def _names(model: Model, nodes: Iterable[int]) -> str:
    names = [model.name(node) for node in dict.fromkeys(nodes)]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
