"""A checkpoint without its graph: layers by the names that their statistics go by, and whether they were ever updated."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bn_graph.audit.findings import ERROR, CannotTell, Finding, LayerRow
from bn_graph.checkpoints.index import Checkpoint, Entry, is_filled_with

__all__ = ["audit_checkpoint"]

_STATISTICS = {
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

_GAMMAS, _BETAS = ("gamma", "scale", "weight"), ("beta", "offset", "bias", "shift")
_SHADOW, _OBJECT = "/ExponentialMovingAverage", "/.ATTRIBUTES/VARIABLE_VALUE"
_NEEDS_SHADOW = ("moments/Squeeze", "moments/mean", "batch_mean")
"""Tensors, of which only an average is a variable."""


class _Stored(NamedTuple):
    scope: str
    mean: str
    variance: str
    parameters: dict[str, str]
    is_initial: bool | None


def audit_checkpoint(
    checkpoint: Checkpoint, codes: Iterable[str]
) -> tuple[list[LayerRow], list[Finding], list[CannotTell]]:
    """Audits a checkpoint by itself: BN002 is all that can be asked of it.

    Args:
        checkpoint: as read.
        codes: of the rules to apply.

    Returns:
        Rows, findings, and what can't be told.
    """
    layers = list(_layers(checkpoint))
    rows = [_row(layer) for layer in layers]
    initial = [layer for layer in layers if layer.is_initial]
    if "BN002" not in codes or not initial:
        return rows, [], []
    names = tuple(layer.scope for layer in initial)
    if _untrained(checkpoint, layers):
        reason = "nothing in the checkpoint has been trained yet, gammas and betas included"
        return rows, [], [CannotTell("BN002", names, reason)]
    evidence = [f"{checkpoint.prefix}: {layer.mean} is all 0, {layer.variance} as initialized" for layer in initial]
    finding = Finding(
        "BN002",
        ERROR,
        names,
        "population statistics are what they were initialized to: never updated",
        tuple(evidence[:6]),
        "run the update ops in training, or compute the statistics now: python -m bn_graph recalibrate",
    )
    return rows, [finding], []


def _layers(checkpoint: Checkpoint) -> Iterator[_Stored]:
    for key in checkpoint.entries:
        plain = key.removesuffix(_OBJECT)
        shadow = _SHADOW if plain.endswith(_SHADOW) else ""
        leaf = next((leaf for leaf in _STATISTICS if _is_leaf(plain.removesuffix(_SHADOW), leaf)), None)
        if leaf is None or (leaf in _NEEDS_SHADOW) != bool(shadow):
            continue  # the shadow of a moving mean is the average of an average, and tells nothing more
        scope = plain.removesuffix(shadow).removesuffix(leaf).rstrip("/")
        ending = key[len(plain) - len(shadow) :]
        variances = [f"{key.removesuffix(leaf + ending)}{name}{ending}" for name in _STATISTICS[leaf]]
        variance = next((name for name in variances if name in checkpoint.entries), None)
        if variance is not None:
            yield _stored(checkpoint, scope or key, key, variance, key.removesuffix(leaf + ending), ending)


def _is_leaf(name: str, leaf: str) -> bool:
    return name == leaf or name.endswith(f"/{leaf}")


def _stored(checkpoint: Checkpoint, scope: str, mean: str, variance: str, prefix: str, ending: str) -> _Stored:
    parameters = {}
    for role, leaves in (("gamma", _GAMMAS), ("beta", _BETAS)):
        tried = [f"{prefix}{leaf}{end}" for leaf in leaves for end in (ending, "")]
        found = next((key for key in tried if key in checkpoint.entries), None)
        if found is not None:
            parameters[role] = found
    return _Stored(
        scope, mean, variance, parameters, _is_initial(checkpoint.entries[mean], checkpoint.entries[variance])
    )


def _is_initial(mean: Entry, variance: Entry) -> bool | None:
    """Mean 0 and variance 1; averages of tensors (shadows) start from 0 and 0."""
    verdicts = [is_filled_with(mean, 0.0), is_filled_with(variance, 1.0) or is_filled_with(variance, 0.0)]
    return False if False in verdicts else None if None in verdicts else True


def _untrained(checkpoint: Checkpoint, layers: Iterable[_Stored]) -> bool:
    """Whether every gamma is 1 and every beta 0."""
    expected = {"gamma": 1.0, "beta": 0.0}
    verdicts = [
        is_filled_with(checkpoint.entries[key], expected[role])
        for layer in layers
        for role, key in layer.parameters.items()
    ]
    return bool(verdicts) and all(verdicts)


def _row(layer: _Stored) -> LayerRow:
    state = "?" if layer.is_initial is None else "initial" if layer.is_initial else "updated"
    variables = {**layer.parameters, "moving_mean": layer.mean, "moving_variance": layer.variance}
    return LayerRow(layer.scope, "-", "?", "?", "-", "-", state, variables)
