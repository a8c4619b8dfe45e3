"""What may be batch norm and is in no layer is listed: statistics that nothing known reads, and what was not looked into."""

import pytest

from bn_graph.audit import audit, report_of
from bn_graph.audit.report import SubjectKind
from bn_graph.audit.rules import RULES
from bn_graph.audit.subject import Subject
from bn_graph.checkpoints.index import Checkpoint, Entry
from bn_graph.graphs.protos import GraphDef, NodeDef


@pytest.mark.parametrize(
    ("keys", "listed"),
    [
        (["bn/moving_mean", "bn/moving_variance"], []),
        (["bn/average", "bn/moving_variance"], ["bn/moving_variance"]),
        (["bn/moving_variance/.ATTRIBUTES/VARIABLE_VALUE"], ["bn/moving_variance/.ATTRIBUTES/VARIABLE_VALUE"]),
        (["bn/moving_mean", "bn/moving_variance", "bn/moving_variance/Adam"], []),
        (["norm/moving_mean", "bn/moving_mean", "bn/moving_variance"], ["norm/moving_mean"]),
    ],
)
def test_a_checkpoints_statistic_without_the_other(keys, listed):
    checkpoint = Checkpoint("model.ckpt", {key: Entry("float32", (3,), 1) for key in keys})
    report = report_of(Subject("model.ckpt.index", SubjectKind.CHECKPOINT, None, checkpoint), list(RULES.values()))
    assert [entry.name for entry in report.not_understood] == listed


@pytest.mark.parametrize(
    ("reader", "op", "reason"),
    [
        (NodeDef(name="mine", op="MyNorm", input=["x", "bn/moving_variance/read"]), "MyNorm", "read by mine"),
        (
            NodeDef(name="saved", op="SaveV2", input=["x", "x", "x", "bn/moving_variance"]),
            "VariableV2",
            "nothing but savers",
        ),
    ],
)
def test_a_graphs_variance_that_no_layer_has(reader, op, reason):
    variable = NodeDef(name="bn/moving_variance", op="VariableV2")
    read = NodeDef(name="bn/moving_variance/read", op="Identity", input=["bn/moving_variance"])
    (entry,) = audit(GraphDef(node=[NodeDef(name="x", op="Placeholder"), variable, read, reader])).not_understood
    assert (entry.name, entry.op) == ("bn/moving_variance", op) and entry.reason.startswith(reason)


def test_a_function_that_another_op_maps_over_data_is_listed_with_what_is_in_it():
    graph = GraphDef(node=[NodeDef(name="data", op="MapDataset")])
    graph.node[0].attr["f"].func.name = "preprocess"
    function = graph.library.function.add()
    function.signature.name = "preprocess"
    function.node_def.add(name="bn", op="FusedBatchNorm", input=["x", "g", "b", "m", "v"])
    (entry,) = audit(graph).not_understood
    assert (entry.name, entry.op) == ("data", "MapDataset")
    assert entry.reason == "1 fused batch norms in preprocess were not looked into"
