"""Batch statistics, recognized in graphs made from protos alone: those summed over replicas, and those that are mixed."""

import pytest

from bn_graph.graphs.graph import build
from bn_graph.graphs.protos import GraphDef, NodeDef
from bn_graph.graphs.statistics import Kind, recognize
from bn_graph.graphs.values import leaves


def constant(name, *numbers):
    made = NodeDef(name=name, op="Const")
    tensor = made.attr["value"].tensor
    tensor.dtype = 3
    tensor.tensor_shape.dim.add(size=len(numbers))
    tensor.int_val.extend(numbers)
    return made


def graph_of(text):
    """A graph of lines such as ``mean = Mean(x, axes)``, with inputs ``x`` and constants ``axes`` and ``count``."""
    nodes = [NodeDef(name="x", op="Placeholder"), constant("axes", 0), constant("count", 2)]
    for line in text.split("; "):
        name, _, call = line.partition(" = ")
        op, _, inputs = call.rstrip(")").partition("(")
        nodes.append(NodeDef(name=name, op=op, input=inputs.split(", ")))
    return build(GraphDef(node=nodes))


MOMENTS = "mean = Mean(x, axes); squares = SquaredDifference(x, mean); var = Mean(squares, axes); "
REPLICAS = {
    "TPU": MOMENTS
    + "square = Square(mean); whole = AddV2(var, square); sum = CrossReplicaSum(mean); m = RealDiv(sum, count); "
    "sum2 = CrossReplicaSum(whole); w = RealDiv(sum2, count); m2 = Square(m); v = Sub(w, m2)",
    "Horovod": MOMENTS + "square = Square(mean); whole = AddV2(var, square); both = Pack(mean, whole); "
    "sum = HorovodAllreduce(both); all = RealDiv(sum, count); m = Unpack(all); m2 = Square(m); v = Sub(m:1, m2)",
    "NCCL": "mean = Mean(x, axes); square = Square(x); whole = Mean(square, axes); sum = NcclAllReduce(mean); "
    "m = Mul(sum, count); sum2 = NcclAllReduce(whole); w = Mul(sum2, count); m2 = Square(m); v = Sub(w, m2)",
}


@pytest.mark.parametrize("form", REPLICAS)
def test_statistics_summed_over_replicas_are_those_of_the_batch(form):
    graph = graph_of(REPLICAS[form])
    for name, kind in (("m", Kind.MEAN), ("v", Kind.VARIANCE)):
        (leaf,) = leaves(graph, (graph.ids[name], 0), lambda ref: recognize(graph, ref) is not None)
        statistic = recognize(graph, leaf.ref)
        assert statistic.kind is kind and (graph.ids["x"], 0) in statistic.inputs and statistic.axes == (0,)


def test_a_sum_of_a_variance_and_anything_else_less_a_square_is_no_variance():
    graph = graph_of(MOMENTS + "whole = AddV2(var, mean); square = Square(mean); v = Sub(whole, square)")
    assert recognize(graph, (graph.ids["v"], 0)) is None


def test_statistics_mixed_by_a_softmax_are_each_found():
    mixed = "soft = Softmax(count); w = StridedSlice(soft); u = StridedSlice(soft); "
    mixed += "p = Mul(w, var); q = Mul(mean, u); v = AddV2(p, q)"
    graph = graph_of(MOMENTS + mixed)
    found = leaves(graph, (graph.ids["v"], 0), lambda ref: recognize(graph, ref) is not None)
    assert {graph.names[leaf.ref[0]] for leaf in found} == {"mean", "var"}
    graph = graph_of(MOMENTS + mixed.replace("Softmax", "Relu"))
    (leaf,) = leaves(graph, (graph.ids["v"], 0), lambda ref: recognize(graph, ref) is not None)
    assert graph.names[leaf.ref[0]] == "v"
