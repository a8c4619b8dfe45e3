"""The experiments' own faulty graphs and checkpoints are caught by the rule that is named for them; the mended are clean.

Nothing is rebuilt here: the experiments' functions run, with few steps, and each session that they close leaves a
checkpoint and its meta graph, where the experiment itself keeps none.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

import bn_graph
from bn_graph.audit import audit
from bn_graph.tf1 import tf
from experiments import (
    checkpoint_child,
    checkpoint_variables,
    conditional_updates,
    control_dependencies,
    conv_normalizer,
    harness,
    higher_learning_rates,
    missing_update_ops,
    model_solver,
    population_estimators,
    restore_demo,
    single_example,
    training_vs_trainable,
)

STEPS = 20  # enough to move weights, gamma, beta and every average


class Recorded(NamedTuple):
    """A session that an experiment opened and closed: its graph, and the checkpoint of its end with the meta graph."""

    graph: tf.Graph
    checkpoint: str


@pytest.fixture
def recorded(monkeypatch, tmp_path) -> list[Recorded]:
    """The sessions closed since the test began, in that order; those without variables are left out."""
    sessions: list[Recorded] = []

    class RecordingSession(tf.Session):
        def close(self):
            with self.graph.as_default():
                if tf.global_variables() and not any(self.graph is each.graph for each in sessions):
                    prefix = str(tmp_path / f"session{len(sessions)}" / "model")
                    sessions.append(Recorded(self.graph, bn_graph.save(tf.train.Saver(), self, prefix)))
            super().close()

    monkeypatch.setattr(tf, "Session", RecordingSession)
    return sessions


@pytest.fixture(scope="module")
def digits() -> bn_graph.Dataset:
    return bn_graph.load("digits")


@pytest.fixture
def settings(tmp_path, digits) -> harness.Settings:
    return harness.Settings("audited", "quick", digits, None, [0], STEPS, tmp_path)


@pytest.fixture
def weights(digits) -> list:
    sizes = (digits.train.images.shape[1], *single_example.HIDDEN_UNITS, digits.train.labels.shape[1])
    return bn_graph.normal_weights(sizes, 0)


def errors(graph, **options) -> set[str]:
    """The codes at error level; that any layer was found, and that batch norm of all of them, is asserted too."""
    report = audit(graph, **options)
    assert report.layers, "no batch norm layer was found"
    return {finding.code for finding in report.errors}


# ---- single_example
