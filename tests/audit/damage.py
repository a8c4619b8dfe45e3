"""Audits of damaged graphs: whatever is wrong with a file, the audit reports or raises an AuditError, and soon.

The suite does a few (`test_fuzz`); many are done by a command, whose failures can be repeated by their seeds::

    python -m tests.audit.damage --cases 10000 --seed 0 GRAPH…

Each case copies a graph, damages it as editors, converters and bad disks do, and audits it with its checkpoint.
"""

import argparse
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bn_graph.audit import AuditError, report_of, subject
from bn_graph.audit.formats import FORMATS, Style, render
from bn_graph.audit.report import SubjectKind
from bn_graph.audit.rules import RULES
from bn_graph.graphs import ops
from bn_graph.graphs.protos import MetaGraphDef

SLOWEST = 5.0
"""Seconds that a case may take."""

_TYPES = sorted(
    {op for words in (ops.FEWEST_INPUTS, ops.FUNCTIONS, ops.FUSED, ops.AVERAGED, ops.COUNTING) for op in words}
    | ops.VARIABLES
    | {
        "Const",
        "Fill",
        "ConcatV2",
        "Pack",
        "NoOp",
        "Case",
        "Placeholder",
        "ApplyAdam",
        "SaveV2",
        "TRTEngineOp",
        "MatMul",
    }
)
_NAMES = ("", "x", "^", ":", "^:1", "a:b:c", "x:99999999999999999999", "é/moving_variance", "a" * 500)


def damaged(graph: Any, chance: random.Random) -> Any:
    """A copy of a meta graph, as files are read, with one to six things broken."""
    copy = MetaGraphDef.FromString(graph.SerializeToString())
    for _ in range(chance.randint(1, 6)):
        chance.choice(_DAMAGES)(copy, chance)
    return type(graph).FromString(copy.SerializeToString())


def _node(graph: Any, chance: random.Random) -> Any:
    """A node of the graph or of one of its functions; half of the time one that batch norm is made of."""
    nodes = graph.graph_def.node
    if graph.graph_def.library.function and chance.random() < 0.5:
        nodes = chance.choice(graph.graph_def.library.function).node_def or nodes
    if not nodes:
        return graph.graph_def.node.add(name="only", op="NoOp")
    tried = [chance.choice(nodes) for _ in range(20 if chance.random() < 0.5 else 1)]
    return next((node for node in tried if node.op in _TYPES), tried[0])


def _delete(graph: Any, chance: random.Random) -> None:
    nodes = graph.graph_def.node
    if nodes:
        start = chance.randrange(len(nodes))
        del nodes[start : start + chance.choice((1, 1, 1, 2, 10, 100))]


def _rewire(graph: Any, chance: random.Random) -> None:
    node, other = _node(graph, chance), _node(graph, chance)
    port = chance.choice(("", ":0", ":1", ":7", ":-1", ":x", ":output:0", ":output_true:0"))
    name = chance.choice((other.name + port, "^" + other.name, node.name, chance.choice(_NAMES)))
    if node.input:
        node.input[chance.randrange(len(node.input))] = name
    else:
        node.input.append(name)


def _cut_inputs(graph: Any, chance: random.Random) -> None:
    node = _node(graph, chance)
    del node.input[chance.randint(0, len(node.input)) :]


def _swap_inputs(graph: Any, chance: random.Random) -> None:
    node = _node(graph, chance)
    shuffled = list(node.input) * chance.choice((1, 1, 2))
    chance.shuffle(shuffled)
    node.input[:] = shuffled


def _rename(graph: Any, chance: random.Random) -> None:
    _node(graph, chance).name = chance.choice((_node(graph, chance).name, *_NAMES))


def _retype(graph: Any, chance: random.Random) -> None:
    _node(graph, chance).op = chance.choice(_TYPES)


def _drop_attribute(graph: Any, chance: random.Random) -> None:
    node = _node(graph, chance)
    if node.attr:
        del node.attr[chance.choice(sorted(node.attr))]


def _change_attribute(graph: Any, chance: random.Random) -> None:
    node, other = _node(graph, chance), _node(graph, chance)
    values = [other.attr[name] for name in sorted(other.attr)]
    names = [*sorted(node.attr), "value", "shape", "data_format", "_output_shapes", "is_training", "shared_name", "f"]
    value = node.attr[chance.choice(names)]
    if values and chance.random() < 0.6:
        value.CopyFrom(chance.choice(values))
    else:
        value.Clear()
        value.s = chance.choice((b"", b"\xff\xfe", b"NCHW", b"C" * 20))


def _change_constant(graph: Any, chance: random.Random) -> None:
    constants = [node for node in (_node(graph, chance) for _ in range(30)) if node.op == "Const"]
    for node in constants[:1]:
        tensor = node.attr["value"].tensor
        match chance.randrange(5):
            case 0:
                tensor.tensor_shape.dim.add(size=chance.choice((-1, 0, 2, 10**6, 2**62)))
            case 1:
                tensor.dtype = chance.choice((0, 1, 3, 7, 9, 10, 19, 20, 101))
            case 2:
                tensor.tensor_content = tensor.tensor_content[:-1]
            case 3:
                tensor.ClearField("tensor_shape")
            case 4:
                tensor.float_val.extend([float("nan"), float("inf"), 1e30])


def _cut_collection(graph: Any, chance: random.Random) -> None:
    keys = sorted(graph.collection_def)
    if keys:
        collection = graph.collection_def[chance.choice(keys)]
        values = collection.bytes_list.value
        if values and chance.random() < 0.8:
            place = chance.randrange(len(values))
            values[place] = chance.choice((b"", b"\xff", values[place][:-3], bytes(chance.randbytes(12))))
        else:
            graph.collection_def[chance.choice(keys)].Clear()


def _change_function(graph: Any, chance: random.Random) -> None:
    functions = graph.graph_def.library.function
    if not functions:
        return
    function = chance.choice(functions)
    match chance.randrange(5):
        case 0:
            function.signature.name = chance.choice((chance.choice(functions).signature.name, ""))
        case 1:
            function.ret.clear()
        case 2:
            del function.signature.input_arg[chance.randint(0, len(function.signature.input_arg)) :]
        case 3:
            for name in function.ret:
                function.ret[name] = chance.choice(_NAMES)
        case 4:
            function.signature.output_arg.add(name=chance.choice(_NAMES))


def _change_signature(graph: Any, chance: random.Random) -> None:
    for key in sorted(graph.signature_def)[:1]:
        for info in graph.signature_def[key].outputs.values():
            info.name = chance.choice((*_NAMES, _node(graph, chance).name))


_DAMAGES: list[Callable[[Any, random.Random], None]] = [
    _delete,
    _rewire,
    _rewire,
    _cut_inputs,
    _swap_inputs,
    _rename,
    _retype,
    _retype,
    _drop_attribute,
    _change_attribute,
    _change_constant,
    _cut_collection,
    _change_function,
    _change_signature,
]


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The bytes of a file with some flipped, cut out or cut off."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(changed)) if changed else 0
        match chance.randrange(8):
            case 0:
                del changed[place : place + chance.randint(1, 50)]
            case 1:
                changed[place:place] = chance.randbytes(3)
            case _ if changed:
                changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def try_case(one: subject.Subject, seed: int) -> float:
    """Audits a damaged copy of a subject and prints the report in one of the formats; returns the seconds that took.

    Raises:
        Exception: whatever the audit should not have raised.
    """
    chance = random.Random(seed)
    if chance.random() < 0.25:
        graph = type(one.meta_graph)()
        try:
            graph.ParseFromString(flipped(one.meta_graph.SerializeToString(), chance))
        except Exception:  # protobuf's own, which reading a file turns into an AuditError: `test_fuzz` has those
            return 0.0
    else:
        graph = damaged(one.meta_graph, chance)
    form, style = chance.choice(sorted(FORMATS)), Style(colour=chance.random() < 0.5, verbose=chance.random() < 0.5)
    start = time.perf_counter()
    try:
        report = report_of(one._replace(meta_graph=graph), list(RULES.values()), details=form == "html")
        render([report], form, style=style)
    except AuditError as error:
        assert "\n" not in str(error)
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs many cases; the exit status is 1 if one failed or was too slow."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("paths", nargs="+", help="graphs, each with the checkpoint beside it")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--largest", type=int, default=3_000_000, help="bytes of a graph; larger ones are left out")
    options = parser.parse_args(arguments)
    subjects = [
        one
        for path in options.paths
        for one in subject.read(path)
        if one.kind != SubjectKind.CHECKPOINT and one.meta_graph.ByteSize() <= options.largest
    ]
    failures, slowest, places = 0, (0.0, -1), set()
    before, start = _peak_megabytes(), time.perf_counter()
    for seed in range(options.seed, options.seed + options.cases):
        one = subjects[seed % len(subjects)]
        try:
            slowest = max(slowest, (try_case(one, seed), seed))
        except Exception as error:
            failures += 1
            place = "".join(traceback.format_tb(error.__traceback__)[-1:])
            if place not in places:  # each place once
                places.add(place)
                print(f"seed {seed}, {Path(one.path).parent.name}:\n{traceback.format_exc()}")
    seconds = time.perf_counter() - start
    print(
        f"{options.cases} cases, {seconds:.0f} s, {failures} failures, slowest {slowest[0]:.2f} s (seed {slowest[1]}), "
        f"peak {before} MB with {len(subjects)} graphs read, {_peak_megabytes()} MB after all cases"
    )
    return int(failures > 0 or slowest[0] > SLOWEST)


def _peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    sys.exit(main())
