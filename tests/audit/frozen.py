"""A small frozen graph, made from protos alone, for tests of what is done with files."""

from bn_graph.graphs.protos import GraphDef

NAMES = ("moving_mean", "moving_variance", "gamma", "beta")


def frozen(mean=(1.0, 2.0), name="bn"):
    """A frozen graph with one layer, whose statistics are constants."""
    graph = GraphDef()
    graph.node.add(name="x", op="Placeholder").attr["dtype"].type = 1
    for each, values in zip(NAMES, (mean, (1.0, 1.0), (1.5, 0.5), (0.0, 0.1)), strict=True):
        node = graph.node.add(name=f"{name}/{each}", op="Const")
        node.attr["dtype"].type = node.attr["value"].tensor.dtype = 1
        node.attr["value"].tensor.tensor_shape.dim.add(size=len(values))
        node.attr["value"].tensor.float_val.extend(values)
    inputs = [f"{name}/{each}" for each in ("gamma", "beta", "moving_mean", "moving_variance")]
    node = graph.node.add(name=f"{name}/FusedBatchNorm", op="FusedBatchNorm", input=["x", *inputs])
    node.attr["T"].type, node.attr["is_training"].b, node.attr["data_format"].s = 1, False, b"NHWC"
    graph.node.add(name="logits", op="Identity", input=[f"{name}/FusedBatchNorm"]).attr["T"].type = 1
    return graph.SerializeToString()
