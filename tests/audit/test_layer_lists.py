"""What the audit sees, `recalibrate` and ``inference-graph`` can repair: the same layers, by the same names."""

import json
from pathlib import Path

import pytest

from bn_graph.audit import audit
from bn_graph.checkpoints import meta_graphs
from bn_graph.checkpoints.files import CheckpointError
from bn_graph.graphs.calls import find_calls
from bn_graph.inference.switching import by_moving_statistics
from bn_graph.tf1 import tf
from tests.audit import zoo

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
PUBLIC = [
    path
    for folder in ("graphs", "graphs-wild")
    for labels in (SHARED / folder).glob("labels.json")
    for entry in json.loads(labels.read_text(encoding="utf-8"))
    if (path := SHARED / folder / entry["id"] / entry["open"]).suffix == ".meta"
]

NOT_RECALIBRATED = {
    f"{kind}{how}": {"bn": "it keeps a deviation, not a variance"}
    for kind in ("deviation_is_kept", "renormalized_by_hand")
    for how in ("", "_detached", "_with_its_output")
}
"""By case or public file: layers with moving statistics that can't be recalibrated, and why."""

BY_NOTES_ALONE = {
    # Nothing in the graph reads the moving mean, and what is averaged into it is no mean of the ghost batches' means.
    "wrapper_in_place_ghost_training_only": {"batch_normalization"},
}
"""By case: layers of this library of which ops alone show one moving statistic, and its note both."""

NOT_SWITCHED = {
    # An imported While has lost the shapes of what it returns.
    "updates_after_a_loop": {
        "batch_normalization": "the shape of its batch statistics batch_normalization/moments/mean:0 is unknown"
    },
}
"""By case or public file: layers that are recalibrated and can't be switched, and why."""


def check_lists(name, graph):
    rows = audit(graph).layers
    repairable = {row.name for row in rows if {"moving_mean", "moving_variance"} <= row.variables.keys()}
    repairable |= BY_NOTES_ALONE.get(name, set())
    found = find_calls(graph)
    unsupported = {layer: reason for layer, reason in found.unsupported.items() if layer in repairable}
    assert unsupported == NOT_RECALIBRATED.get(name, {})
    assert found.by_layer.keys() == repairable - unsupported.keys()
    assert by_moving_statistics(graph, found).unsupported == NOT_SWITCHED.get(name, {})
    for row in rows:  # the same variables, too
        for call in found.by_layer.get(row.name, ()):
            known = {row.variables.get("moving_mean"), row.variables.get("moving_variance")} - {None}
            assert known <= set(found.statistics(call))


@pytest.mark.parametrize("name", zoo.CASES)
def test_every_layer_of_the_zoo_that_the_audit_sees_can_be_repaired(name, zoo_of):
    subject = zoo_of(name).subject
    if not isinstance(subject, tf.Graph):
        if subject.suffix != ".meta" or subject.name == "text.meta":
            pytest.skip("the commands take meta graphs")
        subject = imported(subject)
    check_lists(name, subject)


def imported(path):
    try:
        return meta_graphs.import_graph(meta_graphs.read(path))
    except CheckpointError as error:
        pytest.skip(f"the commands can't import it: {error}")


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: path.parent.name)
def test_every_layer_of_a_public_graph_that_the_audit_sees_can_be_repaired(path):
    check_lists(path.parent.name, imported(path))
