"""What a checkpoint has of batch norm: there or not, still as initialized or not; with a graph's variables, or by names."""

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

import numpy as np

from bn_graph.audit.report import State
from bn_graph.checkpoints.index import Checkpoint, Entry, equals, is_filled_with
from bn_graph.graphs.graph import Graph
from bn_graph.graphs.values import constant

__all__ = [
    "OBJECT_ENDING",
    "Role",
    "Stored",
    "StoredLayer",
    "StoredLayers",
    "are_few",
    "is_initial",
    "layers_by_name",
    "look_up",
    "statistics_state",
]


class Role(str, Enum):
    """What a variable is to its layer."""

    GAMMA = "gamma"
    BETA = "beta"
    MEAN = "moving_mean"
    VARIANCE = "moving_variance"


_CONVENTIONAL = {Role.GAMMA: (1.0,), Role.BETA: (0.0,), Role.MEAN: (0.0,), Role.VARIANCE: (1.0, 0.0)}
"""What variables are filled with at first; averages of tensors, variances too, start from 0."""


def is_initial(entry: Entry, role: Role | None, initial: np.ndarray | None = None) -> bool | None:
    """Whether a stored tensor still is what it was initialized to; None if that can't be determined.

    Args:
        entry: of the checkpoint.
        role: says what the initial value is by convention, where no graph has it; None for other variables, by 0.
        initial: the initial value, where a graph has it.
    """
    if initial is None or initial.size == 0:
        verdicts = [is_filled_with(entry, number) for number in _CONVENTIONAL.get(role, (0.0,))]
        return True if True in verdicts else None if None in verdicts else False
    first = initial.reshape(-1)[0]
    # Of a partitioned variable the graph has the initial values of parts.
    if initial.shape != entry.shape or not any(initial.strides) or bool((initial == first).all()):
        return is_filled_with(entry, float(first))
    return equals(entry, initial)


def statistics_state(statistics: Iterable[tuple[Entry, Role, np.ndarray | None]]) -> State:
    """The state of a layer's statistics: updated if one of them is.

    Args:
        statistics: each with its role, and its initial value where a graph has it.
    """
    verdicts = [is_initial(*statistic) for statistic in statistics]
    if False in verdicts:
        return State.UPDATED
    return State.UNKNOWN if None in verdicts else State.INITIAL


def are_few(untouched: int, known: int) -> bool:
    """Whether so few layers are untouched, of those whose state is known, that they are inherited rather than a fault.

    Example:
        >>> from bn_graph.audit.stored import are_few
        >>> are_few(1, 69), are_few(2, 5)
        (True, False)
    """
    return untouched <= known / 4


# --- With a graph -----------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """The variables of a graph as a checkpoint has them.

    Attributes:
        checkpoint: the checkpoint.
        keys: of each variable's node, the key under which it is, or would be.
        initial: of each variable's node, its initial value, where that is a constant.
    """

    checkpoint: Checkpoint
    keys: dict[int, str]
    initial: dict[int, np.ndarray]

    def entry(self, variable: int) -> Entry | None:
        """What the checkpoint has of a variable."""
        return self.checkpoint.entries.get(self.keys.get(variable, ""))


def look_up(
    graph: Graph,
    checkpoint: Checkpoint,
    variables: Iterable[int],
    assigns: Mapping[int, list[int]],
    saved_as: Mapping[int, str],
) -> Stored:
    """Pairs variables with a checkpoint's keys.

    Args:
        graph: the graph.
        checkpoint: the checkpoint.
        variables: nodes to look for.
        assigns: the assigns to each variable.
        saved_as: keys by the Savers of the graph; of others the name is the key, as in a Saver without names.
    """
    keys, initial = {}, {}
    for node in variables:
        keys[node] = _key(checkpoint, graph.names[node], saved_as.get(node))
        value = _initial_value(graph, node, assigns.get(node, ()))
        if value is not None:
            initial[node] = value
    return Stored(checkpoint, keys, initial)


def _key(checkpoint: Checkpoint, name: str, saved_as: str | None) -> str:
    """The key by the Saver if the checkpoint has it; else the variable's name, a partitioned one's without its part."""
    whole = name.rpartition("/part_")[0] or name
    tried = [key for key in (saved_as, name, whole) if key is not None]
    return next((key for key in tried if key in checkpoint.entries), tried[0])


def _initial_value(graph: Graph, variable: int, assigns: Iterable[int]) -> np.ndarray | None:
    name = graph.names[variable]
    named = [node for node in assigns if graph.names[node] == f"{name}/Assign"]
    values = (constant(graph, graph.inputs[node][1]) for node in named or list(assigns)[:1])
    return next((value for value in values if value is not None), None)


# --- Without a graph --------------------------------------------------------------------------------------------------


class StoredLayer(NamedTuple):
    """A layer known by its names in a checkpoint.

    Attributes:
        name: its scope.
        mean, variance: the keys of its statistics.
        parameters: the keys of gamma and beta, where it has them.
        state: of its statistics.
    """

    name: str
    mean: str
    variance: str
    parameters: dict[Role, str]
    state: State


class StoredLayers(NamedTuple):
    """A checkpoint without its graph.

    Attributes:
        prefix: of the checkpoint.
        layers: those with statistics.
        is_untrained: whether none of their gammas and betas was trained.
        lacking: of each layer known to be batch norm that has no statistics, by its name, a key that it has.
    """

    prefix: str
    layers: tuple[StoredLayer, ...]
    is_untrained: bool
    lacking: Mapping[str, str]


_VARIANCE_NAMES = {
    "moving_mean": ("moving_variance", "moving_var"),
    "running_mean": ("running_var", "running_variance"),
    "pop_mean": ("pop_var", "pop_variance"),
    "population_mean": ("population_variance", "population_var"),
    "mean/EMA": ("variance/EMA",),
    "mu": ("sigma", "var"),
    "moments/Squeeze": ("moments/Squeeze_1",),
    "moments/mean": ("moments/variance",),
    "batch_mean": ("batch_var", "batch_variance"),
}
"""What people and libraries call a mean, and the variance that goes with it."""

_ONLY_AVERAGED = ("moments/Squeeze", "moments/mean", "batch_mean")
"""Names of tensors, of which only an average is a variable."""

_PARAMETER_NAMES = {Role.GAMMA: ("gamma", "scale", "weight"), Role.BETA: ("beta", "offset", "bias", "shift")}
_AVERAGE, OBJECT_ENDING = "/ExponentialMovingAverage", "/.ATTRIBUTES/VARIABLE_VALUE"
"""What keys end in: of an average of a variable, and in an object-based checkpoint."""


def layers_by_name(checkpoint: Checkpoint, *, only_batch_norm: bool = False) -> StoredLayers:
    """The layers of a checkpoint, by the names that people and libraries give to statistics.

    Args:
        checkpoint: the checkpoint.
        only_batch_norm: whether nothing else is in it, as of a file of Keras, so that what lacks statistics is known.
    """
    layers = tuple(_layers(checkpoint))
    parameters = [(checkpoint.entries[key], role) for layer in layers for role, key in layer.parameters.items()]
    is_untrained = bool(parameters) and all(is_initial(entry, role) for entry, role in parameters)
    return StoredLayers(
        checkpoint.prefix, layers, is_untrained, _lacking(checkpoint, layers) if only_batch_norm else {}
    )


def _lacking(checkpoint: Checkpoint, layers: Iterable[StoredLayer]) -> dict[str, str]:
    complete = {layer.name for layer in layers}
    scopes = {key.rpartition("/")[0]: key for key in reversed(checkpoint.entries)}
    return {scope: key for scope, key in sorted(scopes.items()) if scope not in complete}


def _layers(checkpoint: Checkpoint) -> Iterator[StoredLayer]:
    for key in checkpoint.entries:
        plain = key.removesuffix(OBJECT_ENDING)
        average = _AVERAGE if plain.endswith(_AVERAGE) else ""
        path = plain.removesuffix(average)
        name = next((name for name in _VARIANCE_NAMES if path == name or path.endswith(f"/{name}")), None)
        # The average of a moving mean is the average of an average, and shows nothing more.
        if name is None or (name in _ONLY_AVERAGED) != bool(average):
            continue
        scope, ending = path.removesuffix(name), key[len(path) :]
        variance = _first_key(checkpoint, scope, _VARIANCE_NAMES[name], [ending])
        if variance is not None:
            tried = {
                role: _first_key(checkpoint, scope, names, [ending, ""]) for role, names in _PARAMETER_NAMES.items()
            }
            parameters = {role: found for role, found in tried.items() if found is not None}
            entries = [(checkpoint.entries[key], Role.MEAN, None), (checkpoint.entries[variance], Role.VARIANCE, None)]
            yield StoredLayer(scope.rstrip("/") or key, key, variance, parameters, statistics_state(entries))


def _first_key(checkpoint: Checkpoint, scope: str, names: Iterable[str], endings: Iterable[str]) -> str | None:
    tried = (f"{scope}{name}{ending}" for name in names for ending in endings)
    return next((key for key in tried if key in checkpoint.entries), None)
