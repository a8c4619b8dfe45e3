"""What an audit costs: seconds, memory and nodes per second on graphs of up to a million nodes.

    make audit-cost        make audit-cost FULL=1

Deep networks of about 10,000 and 100,000 nodes, and in full of 1,000,000, are written as ``.meta`` files: residual
blocks of convolutions, dense layers and batch norm of both kinds with a switch, their gradients, Adam, and a Saver. Each
is audited by ``bn_graph.audit.audit`` in a fresh process, three times; beside it protobuf alone parses the same file, and
``tf.train.import_meta_graph`` reads it, each in a process of its own. It judges no claim; it prints whether the audit keeps
within its bounds.

The networks are made once and multiplied: TensorFlow builds one block, whose copies are chained by renaming, the
activations forward and the gradients back.
"""

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import programs, results

NAME = "audit_cost"
SIZES = (10_000, 100_000)
FULL_SIZES = (*SIZES, 1_000_000)
ROUNDS = 3  # of which the median counts; other programs on the machine disturb one of them at most, one hopes
IMPORTS_UP_TO = 200_000  # nodes; for a million TensorFlow takes minutes and many gigabytes

BOUNDS = {100_000: (3.0, 500), 1_000_000: (8.0, 1200)}  # nodes: seconds and megabytes
MOST_GROWTH = 12  # times the time, for 10 times the nodes

CHANNELS, IMAGE = 8, 8  # too small to be of use, and no node less for it
SHARED = ("is_training",)  # nodes that the copies have in common

# Seconds are the processor's, in which both are busy from beginning to end: what else runs on the machine hardly counts.
# Peak memory is the high-water mark of the process's own memory where Linux tells it. `ru_maxrss`, the usual source, is
# inherited over exec: it would be at least that of this process, which has TensorFlow in it.
_PREAMBLE = """
import json, resource, sys, time
def peak():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
"""
_MEASURED = {
    "audit": """
from bn_graph.audit import audit
start = time.process_time()
report = audit(sys.argv[1])
seconds = time.process_time() - start
found = {"layers": len(report.layers), "codes": sorted({finding.code for finding in report.findings})}
""",
    "parse": """
from bn_graph.graphs.protos import MetaGraphDef
start = time.process_time()
with open(sys.argv[1], "rb") as file:
    meta_graph = MetaGraphDef.FromString(file.read())
seconds = time.process_time() - start
found = {}
""",
    "import": """
from bn_graph.tf1 import tf
start = time.process_time()
with tf.Graph().as_default() as graph:
    tf.train.import_meta_graph(sys.argv[1])
seconds = time.process_time() - start
found = {"nodes": len(graph.get_operations())}
""",
}
_ENDING = """
print(json.dumps({"seconds": seconds, "megabytes": peak()} | found))
"""


class Block(NamedTuple):
    """What is multiplied: the nodes of a residual block and its training, and how copies are chained.

    Attributes:
        nodes: all but those that stand for the neighbours (`inputs`, `gradient_in`).
        inputs, outputs: names of the placeholder that the block before fills, and of what the next one gets.
        gradient_in, gradient_out: likewise for gradients, which go the other way.
        apply: the op that applies the block's gradients and runs its update ops.
        variables: their VariableDef protos, by the names of the collections ``trainable_variables`` and ``variables``.
        saved: for each variable its name, what a Saver reads, its handle, and the number of its dtype.
    """

    nodes: list
    inputs: str
    outputs: str
    gradient_in: str
    gradient_out: str
    apply: str
    variables: dict[str, list]
    saved: list[tuple[str, str, str, int]]


def main(argv: list[str] | None = None) -> int:
    parser = programs.parser(__name__, __doc__)
    parser.add_argument("--full", action="store_true", help="a graph of a million nodes too")
    parser.add_output()
    return programs.run(parser, argv, _measure_and_write)


def _measure_and_write(given: argparse.Namespace) -> None:
    (given.output / NAME).mkdir(parents=True, exist_ok=True)
    result = run(given.full)
    results.write_json(given.output / NAME / "result.json", result)
    print(summarize(result))
    print(f"\nWritten: {given.output / NAME / 'result.json'}")


def run(full: bool) -> dict:
    """Writes the graphs, measures, and checks the bounds.

    Args:
        full: `FULL_SIZES` and not `SIZES`.

    Returns:
        The result, ready for JSON. The checks of the bounds are of the sizes that they are for.

    Raises:
        programs.UsageError: a measuring process failed, for lack of memory for instance.
    """
    found = measured(FULL_SIZES if full else SIZES)
    return {
        "format": results.FORMAT,
        "experiment": NAME,
        "title": __doc__.splitlines()[0],
        "rounds": ROUNDS,
        "versions": results.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "measured": found,
        "checks": checks(found),
    }


def measured(
    sizes: Sequence[int], what: Sequence[str] = ("audit", "parse", "import"), rounds: int | None = None
) -> list[dict]:
    """Writes graphs of about so many nodes and measures `what` is done with them; what TensorFlow can't import isn't."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / f"{size}.meta"
            print(f"{NAME}: a graph of about {size:,} nodes", file=sys.stderr, flush=True)
            nodes = write_graph(path, size)
            record = {"nodes": nodes, "bytes": path.stat().st_size}
            possible = [each for each in what if each != "import" or size <= IMPORTS_UP_TO]
            found.append(record | {each: _median(each, path, nodes, rounds or ROUNDS) for each in possible})
    return found


def _median(what: str, path: Path, nodes: int, rounds: int) -> dict:
    found = [_measure(what, path) for _ in range(rounds)]
    seconds = statistics.median(each.pop("seconds") for each in found)
    megabytes = statistics.median(each.pop("megabytes") for each in found)
    figures = {"seconds": round(seconds, 3), "megabytes": round(megabytes), "nodes_per_second": round(nodes / seconds)}
    return figures | found[0]


def _measure(what: str, path: Path) -> dict:
    """One round in a fresh process."""
    code = _PREAMBLE + _MEASURED[what] + _ENDING
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"killed by signal {-ended.returncode}; perhaps memory ran out"]
        raise programs.UsageError(f"the {what} of {path.name} failed: {said[-1]}")
    return json.loads(ended.stdout.splitlines()[-1])


def checks(measured: list[dict]) -> dict[str, list[dict]]:
    """The bounds of the sizes that were measured, and the growth from each size to the next."""
    bounds = []
    for nodes, (seconds, megabytes) in BOUNDS.items():
        for each in measured:
            if abs(each["nodes"] / nodes - 1) < 0.05:
                kept = each["audit"]["seconds"] < seconds and each["audit"]["megabytes"] < megabytes
                promise = {"nodes": nodes, "seconds": seconds, "megabytes": megabytes}
                bounds.append(promise | {"kept": kept})
    growth = [
        {
            "nodes": larger["nodes"],
            "times_the_nodes": round(larger["nodes"] / smaller["nodes"], 2),
            "times_the_time": round(larger["audit"]["seconds"] / smaller["audit"]["seconds"], 2),
        }
        for smaller, larger in itertools.pairwise(measured)
    ]
    for each in growth:
        each["kept"] = each["times_the_time"] * 10 / each["times_the_nodes"] <= MOST_GROWTH
    return {"bounds": bounds, "growth": growth}


def summarize(result: dict) -> str:
    """The table, and the checks."""
    lines = [f"{'nodes':>10}{'file':>9}   {'audit':^33}   {'parse':^18}   {'import_meta_graph':^21}"]
    of_audit, of_parse = f"{'seconds':>9}{'MB':>8}{'nodes/second':>16}", f"{'seconds':>9}{'MB':>9}"
    lines.append(f"{'':>19}   {of_audit}   {of_parse}   {'seconds':>11}{'MB':>10}")
    for each in result["measured"]:
        audit, parse, imported = each["audit"], each["parse"], each.get("import")
        beside = f"{imported['seconds']:>11.2f}{imported['megabytes']:>10,}" if imported else f"{'not imported':>21}"
        lines.append(
            f"{each['nodes']:>10,}{each['bytes'] / 1e6:>6.0f} MB   {audit['seconds']:>9.2f}{audit['megabytes']:>8,}"
            f"{audit['nodes_per_second']:>16,}   {parse['seconds']:>9.2f}{parse['megabytes']:>9,}   {beside}"
        )
    lines.append("")
    for each in result["checks"]["bounds"]:
        promise = f"{each['nodes']:,} nodes in less than {each['seconds']:g} s and {each['megabytes']:,} MB"
        lines.append(f"{promise}: {_kept(each)}")
    for each in result["checks"]["growth"]:
        lines.append(
            f"to {each['nodes']:,} nodes: {each['times_the_nodes']:g} times the nodes, {each['times_the_time']:g} times "
            f"the time (at most {MOST_GROWTH} for 10): {_kept(each)}"
        )
    return "\n".join(lines)


def _kept(check: dict) -> str:
    return "yes" if check["kept"] else "NO"


# --- The graphs -------------------------------------------------------------------------------------------------------


def write_graph(path: Path, size: int) -> int:
    """Writes a meta graph of about `size` nodes, at least one block, and returns how many it has.

    A message's serialized parts, one after the other, are the serialized message: so the file is written a block at a
    time, and never is in memory as a whole.

    Example:
        >>> import tempfile
        >>> from experiments.benchmarks.audit_cost import write_graph
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     500 < write_graph(Path(folder) / "one.meta", 1) < 2000
        True
    """
    block = make_block()
    of_saver = 2 * len(block.saved)  # an Identity and an Assign for each variable
    copies = max(1, round(size / (len(block.nodes) + of_saver)))
    written = 0
    with path.open("wb") as file:
        for part in _parts(block, copies):
            written += len(part.graph_def.node)
            file.write(part.SerializeToString())
    return written


@functools.cache
def make_block() -> Block:
    """Builds the block with TensorFlow, with conds as TensorFlow 1 made them: Switch and Merge."""
    was_v2 = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            return _build_block(graph)
    finally:
        if was_v2:
            tf.enable_control_flow_v2()


def _build_block(graph: tf.Graph) -> Block:
    shape = [None, IMAGE, IMAGE, CHANNELS]
    is_training = tf.placeholder(tf.bool, [], name="is_training")
    inputs, gradient = tf.placeholder(tf.float32, shape, name="inputs"), tf.placeholder(tf.float32, shape, name="dy")
    outputs = tf.identity(_residual_block(inputs, is_training), name="outputs")
    variables = tf.trainable_variables()
    *gradients, to_inputs = tf.gradients(outputs, [*variables, inputs], gradient)
    to_inputs = tf.identity(to_inputs, name="dx")
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        apply = tf.train.AdamOptimizer().apply_gradients(zip(gradients, variables, strict=True), name="apply")
    collections = {
        key: [variable.to_proto() for variable in tf.get_collection(key)]
        for key in (tf.GraphKeys.TRAINABLE_VARIABLES, tf.GraphKeys.GLOBAL_VARIABLES)
    }
    saved = []
    for variable in tf.global_variables():
        read = tf.identity(variable.read_value(), name=f"saved/{variable.op.name}")
        saved.append((variable.op.name, read.op.name, variable.handle.op.name, variable.dtype.as_datatype_enum))
    nodes = [node for node in graph.as_graph_def().node if node.name not in (*SHARED, "inputs", "dy")]
    return Block(nodes, "inputs", "outputs", "dy", to_inputs.op.name, apply.name, collections, saved)


def _residual_block(inputs: tf.Tensor, is_training: tf.Tensor) -> tf.Tensor:
    """Two convolutions with fused batch norm, and a dense gate with batch norm of rank 2, which is written out."""
    layers = legacy_layers()
    net = inputs
    for number in (1, 2):
        net = layers.conv2d(net, CHANNELS, 3, padding="same", use_bias=False, name=f"conv{number}")
        net = tf.nn.relu(layers.batch_normalization(net, training=is_training, name=f"bn{number}"))
    gate = layers.dense(tf.reduce_mean(net, [1, 2]), CHANNELS, use_bias=False, name="gate")
    gate = tf.sigmoid(layers.batch_normalization(gate, training=is_training, name="gate_bn"))
    return inputs + net * tf.reshape(gate, [-1, 1, 1, CHANNELS])


def _parts(block: Block, copies: int) -> Iterator[tf.MetaGraphDef]:
    """The whole graph, in parts that add up to it."""
    yield _head(block, copies)
    for number in range(copies):
        part = tf.MetaGraphDef()
        renamed = _renamer(block, number, copies)
        for node in block.nodes:
            _copy_node(node, part.graph_def.node.add(), renamed)
        yield part
    yield _tail(block, copies)


def _renamer(block: Block, number: int, copies: int) -> Callable[[str], str]:
    """From a node's name in the block to its name in the graph: its copy, or the neighbour's node it stands for."""
    neighbours = {name: name for name in SHARED}
    neighbours[block.inputs] = _copied(block.outputs, number - 1) if number else "inputs"
    neighbours[block.gradient_in] = _copied(block.gradient_out, number + 1) if number + 1 < copies else "gradient"

    def renamed(name: str) -> str:
        return neighbours.get(name) or _copied(name, number)

    return renamed


def _copied(name: str, number: int) -> str:
    return f"block{number}/{name}"


def _copy_node(node, copy, renamed: Callable[[str], str]) -> None:
    copy.CopyFrom(node)
    copy.name = renamed(node.name)
    for place, name in enumerate(node.input):
        control, (source, *port) = name.startswith("^"), name.removeprefix("^").split(":")
        copy.input[place] = ":".join(["^" * control + renamed(source), *port])
    for place, label in enumerate(node.attr["_class"].list.s if "_class" in node.attr else ()):
        copy.attr["_class"].list.s[place] = b"loc:@" + renamed(label.decode().removeprefix("loc:@")).encode()
    if "shared_name" in node.attr and node.attr["shared_name"].s:
        copy.attr["shared_name"].s = renamed(node.attr["shared_name"].s.decode()).encode()


def _head(block: Block, copies: int) -> tf.MetaGraphDef:
    """Placeholders, the loss, and the gradient that starts the way back."""
    with tf.Graph().as_default() as graph:
        shape = [None, IMAGE, IMAGE, CHANNELS]
        tf.placeholder(tf.bool, [], name="is_training")
        tf.placeholder(tf.float32, shape, name="inputs")
        outputs = tf.placeholder(tf.float32, shape, name="outputs")
        loss = tf.reduce_mean(tf.square(outputs), name="loss")
        tf.identity(tf.gradients(loss, outputs)[0], name="gradient")
        head = tf.train.export_meta_graph(graph=graph, clear_devices=True)
    head.ClearField("collection_def")
    # Of nodes that refer to each other the order is free, and so the head's refer to the last block's.
    node = next(node for node in head.graph_def.node if node.name == "outputs")
    node.op = "Identity"
    node.ClearField("attr")
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.input.append(_copied(block.outputs, copies - 1))
    return head


def _tail(block: Block, copies: int) -> tf.MetaGraphDef:
    """The train op, the collections, and a Saver of all variables."""
    tail = tf.MetaGraphDef()
    train = tail.graph_def.node.add(name="train_op", op="NoOp")
    train.input.extend(f"^{_copied(block.apply, number)}" for number in range(copies))
    tail.collection_def["train_op"].node_list.value.append("train_op")
    for key, protos in block.variables.items():
        for number in range(copies):
            tail.collection_def[key].bytes_list.value.extend(_variable(proto, number) for proto in protos)
    _add_saver(tail, block, copies)
    return tail


def _variable(proto, number: int) -> bytes:
    copy = type(proto)()
    copy.CopyFrom(proto)
    for field in ("variable_name", "initializer_name", "snapshot_name", "initial_value_name"):
        setattr(copy, field, _copied(getattr(proto, field), number))
    return copy.SerializeToString()


def _add_saver(tail: tf.MetaGraphDef, block: Block, copies: int) -> None:
    """What ``tf.train.Saver()`` adds to a graph."""
    saved = [
        (*(_copied(name, number) for name in names), dtype) for number in range(copies) for *names, dtype in block.saved
    ]
    add = functools.partial(_add_node, tail.graph_def)
    dtypes = [dtype for *_, dtype in saved]
    add("save/Const", "Const", [], dtype=tf.string, value="model")
    add("save/names", "Const", [], dtype=tf.string, value=[name for name, *_ in saved])
    add("save/slices", "Const", [], dtype=tf.string, value=[""] * len(saved))
    named = ["save/Const", "save/names", "save/slices"]
    add("save/SaveV2", "SaveV2", [*named, *(read for _, read, *_ in saved)], dtypes=dtypes)
    add("save/control_dependency", "Identity", ["save/Const", "^save/SaveV2"], T=tf.string)
    add("save/RestoreV2", "RestoreV2", named, dtypes=dtypes)
    for place, (*_, handle, dtype) in enumerate(saved):
        add(f"save/Identity_{place}", "Identity", [f"save/RestoreV2:{place}"], T=tf.as_dtype(dtype))
        add(f"save/Assign_{place}", "AssignVariableOp", [handle, f"save/Identity_{place}"], dtype=tf.as_dtype(dtype))
    add("save/restore_all", "NoOp", [f"^save/Assign_{place}" for place in range(len(saved))])
    tail.saver_def.version = tf.train.SaverDef.V2
    tail.saver_def.filename_tensor_name = "save/Const:0"
    tail.saver_def.save_tensor_name = "save/control_dependency:0"
    tail.saver_def.restore_op_name = "save/restore_all"


def _add_node(graph_def: tf.GraphDef, name: str, op: str, inputs: list[str], **attributes) -> None:
    node = graph_def.node.add(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        if isinstance(value, tf.DType):
            node.attr[key].type = value.as_datatype_enum
        elif key == "dtypes":
            node.attr[key].list.type.extend(value)
        else:
            node.attr[key].tensor.CopyFrom(tf.make_tensor_proto(value, tf.string))


if __name__ == "__main__":
    sys.exit(main())
