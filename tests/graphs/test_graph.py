"""The model of a graph, made from protos alone: what damaged files lack, static shapes, outputs, initializers."""

import pytest

from bn_graph.graphs import graph, shapes
from bn_graph.graphs.errors import AuditError
from bn_graph.graphs.modes import sinks
from bn_graph.graphs.ops import ABSENT
from bn_graph.graphs.protos import GraphDef, MetaGraphDef, NodeDef, UnparsedMetaGraphDef
from bn_graph.graphs.statistics import Kind, named_kind
from bn_graph.graphs.updates import find_updates, targets
from bn_graph.graphs.values import branches


def node(name, op, *inputs, **attributes):
    made = NodeDef(name=name, op=op, input=inputs)
    for attribute, sizes in attributes.items():
        shape = made.attr[attribute].tensor.tensor_shape if attribute == "value" else made.attr[attribute].shape
        for size in sizes:
            shape.dim.add(size=size)
    return made


def constant(name, *numbers):
    made = NodeDef(name=name, op="Const")
    tensor = made.attr["value"].tensor
    tensor.dtype = 3
    tensor.tensor_shape.dim.add(size=len(numbers))
    tensor.int_val.extend(numbers)
    return made


def built(*nodes):
    return graph.build(GraphDef(node=nodes))


def as_read(*nodes):
    """The graph of these nodes as a file has it."""
    return UnparsedMetaGraphDef.FromString(MetaGraphDef(graph_def=GraphDef(node=nodes)).SerializeToString()).graph_def


def test_the_attributes_of_a_file_are_those_that_were_written():
    nodes = [node("x", "Placeholder", shape=[2, 3]), constant("axes", 0, 1), node("mean", "Mean", "x", "axes:0")]
    made, read = graph.build(GraphDef(node=nodes)), graph.build(as_read(*nodes))
    assert [read.protos[number] for number in range(3)] == nodes
    assert read._replace(protos=None) == made._replace(protos=None)


def test_an_attribute_that_is_damaged_is_an_error_that_names_the_node():
    read = as_read(node("x", "Placeholder"))
    read.node[0].MergeFromString(b"\x2a\x01\xff")  # field 5, of one byte, which is no attribute
    with pytest.raises(AuditError, match="node x can't be read"):
        graph.build(read).protos[0]


def test_choices_reach_nodes_that_stand_before_what_they_use():
    switch = node("switch", "Switch", "x", "training")
    users = [node("last", "Neg", "first"), node("first", "Neg", "switch:1"), node("neither", "Neg", "x")]
    made = built(*users, switch, node("x", "Placeholder"), node("training", "Placeholder"))
    taken = frozenset({(made.ids["training"], True)})
    assert [branches(made)[made.ids[name]] for name in ("last", "first", "neither")] == [taken, taken, frozenset()]


@pytest.mark.parametrize(
    ("op", "fewest"), [("Sub", 2), ("Rsqrt", 1), ("Select", 3), ("FusedBatchNormV3", 5), ("Assign", 2)]
)
def test_inputs_that_a_damaged_file_lacks_are_absent_nodes(op, fewest):
    made = built(node("one", op))
    inputs = made.inputs[made.ids["one"]]
    assert [made.ops[source] for source, _ in inputs] == [ABSENT] * fewest
    assert len({source for source, _ in inputs}) == fewest  # no two are taken for the same tensor
    assert made.node_count == 1


def test_what_is_there_stays_in_its_place():
    made = built(node("x", "Placeholder"), node("less", "Sub", "x", "^x"))
    first, second = made.inputs[made.ids["less"]]
    assert first == (made.ids["x"], 0) and made.ops[second[0]] == ABSENT


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("y", "Placeholder", shape=[1, -1])], [1, None]),
        ([node("y", "VariableV2", shape=[3])], [3]),
        ([node("y", "Const", value=[2, 3])], [2, 3]),
        ([node("x", "Mystery"), constant("to", -1, 4), node("y", "Reshape", "x", "to")], [None, 4]),
        ([node("x", "Placeholder", shape=[5, 2]), node("y", "Relu", "x")], [5, 2]),
        (
            [
                node("x", "Placeholder", shape=[1, 3]),
                node("v", "VariableV2", shape=[3, 7]),
                node("w", "VariableV2", shape=[7, 2]),
                node("b", "VariableV2", shape=[2]),
                node("h", "MatMul", "x", "v"),
                node("xw", "MatMul", "h", "w"),
                node("y", "BiasAdd", "xw", "b"),
            ],
            [1, 2],
        ),
        (
            [
                node("x", "Placeholder", shape=[1, 2]),
                node("z", "Placeholder", shape=[9, 2]),
                node("y", "Add", "x", "z"),
            ],
            None,
        ),
        ([node("y", "Identity", "y")], None),  # a cycle
    ],
)
def test_static_shapes_are_those_that_ops_state_or_imply(nodes, shape):
    made = built(*nodes)
    assert shapes.static_shape(made, (made.ids["y"], 0)) == shape


def test_the_end_of_a_loop_is_an_output_only_if_there_is_no_other():
    loop = [node("x", "Placeholder"), node("in", "Enter", "x"), node("out", "Exit", "in")]
    for more, names in (([], ["out"]), ([node("y", "Softmax", "x")], ["y"])):
        made = built(*loop, *more)
        ends = sinks(made, graph.uses(made), [(made.ids["x"], 0)], frozenset())
        assert [made.names[end] for end in ends] == names


def test_an_initializer_from_a_batch_is_no_update():
    made = built(
        node("x", "Placeholder", shape=[-1, 3]),
        constant("axes", 0),
        node("mean", "Mean", "x", "axes"),
        node("moving_mean", "VariableV2", shape=[3]),
        node("moving_mean/Assign", "Assign", "moving_mean", "mean"),
        node("Assign", "Assign", "moving_mean", "mean"),
    )
    statistics = {(made.ids["mean"], 0): Kind.MEAN}
    updates = find_updates(made, targets(made), statistics, ())
    assert [made.names[update.node] for update in updates] == ["Assign"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bn/moving_variance", Kind.VARIANCE),
        ("bn/moving_variance/part_0", Kind.VARIANCE),
        ("bn/running_var/read/_12__cf__12", Kind.VARIANCE),
        ("pop_var_1", Kind.VARIANCE),
        ("bn/moving_variance/Adam", None),
        ("bn/moving_variance/Initializer/ones", None),
        ("bn/moving_mean", Kind.MEAN),
        ("bn/population_mean/read", Kind.MEAN),
        ("bn/moving_mean/biased", None),
        ("loss_mean", None),
    ],
)
def test_names_of_moving_statistics(name, kind):
    assert named_kind(name) is kind
