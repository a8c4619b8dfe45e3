"""What a graph reaches: the ops that running an op runs, and the variables those read and assign.

Everything here reads GraphDef protos. No session is opened and nothing is executed; each question costs time linear
in the nodes and edges it passes, without recursion on the graph, so a graph of 100,000 nodes is no trouble. Cycles (the
loops of control flow v1) and inputs that name no node (a pruned graph) are passed over.

=====================  ====================================================================================
question               answer
=====================  ====================================================================================
`upstream`             every node that runs when these are run, over data and control edges
`variables_read`       the variables whose values are read then
`variables_written`    the variables that are assigned then (`writers`: and by which nodes)
`assigned_by`          the variables that one update op is *for*, without those assigned on the way to it
=====================  ====================================================================================

Variables go by the names of their ops (``bn1/moving_mean``), whichever their kind: a ref variable's op is a
``VariableV2``, a resource variable's a ``VarHandleOp``.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bn_graph.tf1 import tf

__all__ = [
    "GraphIndex",
    "assigned_by",
    "global_variables_by_name",
    "index",
    "producer",
    "upstream",
    "variables",
    "variables_read",
    "variables_written",
    "writers",
]

_REF_VARIABLES = frozenset({"VariableV2", "Variable", "AutoReloadVariable"})
_VARIABLES = _REF_VARIABLES | {"VarHandleOp"}

_ASKS_IF_INITIALIZED = frozenset({"VarIsInitializedOp", "IsVariableInitialized"})
_OVERWRITES = frozenset({"Assign", "AssignVariableOp"})
"""The assigns that don't read the old value."""

_APPLIES = ("Apply", "SparseApply", "ResourceApply", "ResourceSparseApply")
"""The optimizers' ops; they assign a variable and its slots."""
_ASSIGNS = ("Assign", "Scatter", "ResourceScatter", "StridedSliceAssign", "ResourceStridedSliceAssign", "CountUpTo")
"""The ops that assign their first input."""
_ASSIGNS_NOTHING = frozenset({"ScatterNd", "ScatterNdNonAliasingAdd"})

_REF_FORWARDS = frozenset({"RefIdentity", "RefSwitch", "RefEnter", "RefExit", "RefMerge", "RefNextIteration"})
_VALUE_FORWARDS = frozenset({"Identity", "IdentityN", "Switch", "Enter", "Exit", "Merge", "NextIteration"})
"""They forward a resource's handle, and of a ref variable only the value: what comes out can't be assigned."""
_FORWARDS = _REF_FORWARDS | _VALUE_FORWARDS
_SWITCHES = frozenset({"Switch", "RefSwitch"})
_STAND_FOR_AN_UPDATE = _FORWARDS | {"NoOp", "Const", "ReadVariableOp"}
"""What stands between an update op and its assigns: groups, branches and the values read after them."""

_FIRST_ARGUMENT = {"If": 1, "StatelessIf": 1, "Case": 1, "StatelessCase": 1, "RemoteCall": 1, "For": 2}
_FIRST_ARGUMENT |= dict.fromkeys(["While", "StatelessWhile", "PartitionedCall", "StatefulPartitionedCall"], 0)
"""Which input of a calling op is its functions' argument 0. (``For`` hands on its counter there, and then input 3.)"""


class GraphIndex(NamedTuple):
    """A graph's nodes and functions by name, as `index` makes it.

    Attributes:
        nodes: name to NodeDef.
        functions: name to FunctionDef, of the graph's function library.
        assigned_in: function name to what its body assigns: argument numbers, and names of variables that it makes
            itself. Filled when a question first comes to the function.
    """

    nodes: dict[str, tf.NodeDef]
    functions: dict[str, object]
    assigned_in: dict[str, frozenset[int | str]]


def index(graph: tf.Graph | tf.GraphDef) -> GraphIndex:
    """Indexes a graph for the questions of this module, in one pass.

    Args:
        graph: a live graph, of which the present state is taken, or a GraphDef.

    Returns:
        `GraphIndex`. It refers to the GraphDef's protos and doesn't copy them.

    Example:
        >>> from bn_graph.graphs import reachability
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     _ = tf.constant(1.0, name="one")
        ...     reachability.index(graph).nodes["one"].op
        'Const'
    """
    graph_def = graph.as_graph_def() if isinstance(graph, tf.Graph) else graph
    return GraphIndex(
        {node.name: node for node in graph_def.node},
        {function.signature.name: function for function in graph_def.library.function},
        {},
    )


def producer(input_name: str) -> str:
    """The node behind an input or tensor name: without the ``^`` of a control edge and without the port.

    Example:
        >>> from bn_graph.graphs.reachability import producer
        >>> producer("^bn1/update"), producer("bn1/cond:2"), producer("in_a_function:output:0")
        ('bn1/update', 'bn1/cond', 'in_a_function')
    """
    return input_name.removeprefix("^").partition(":")[0]


def upstream(index: GraphIndex, names: Iterable[str] | str) -> set[str]:
    """Every node that runs when `names` are run, themselves included.

    Args:
        index: as from `index`.
        names: ops or tensors by name, or a single one; `tf.Operation`, `tf.Tensor` and variables do as well.

    Returns:
        Names of nodes of the graph (not of its functions' bodies), reached over data and control edges.

    Raises:
        ValueError: the graph has no node of such a name.

    Example:
        >>> from bn_graph.graphs import reachability
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     a, b = tf.constant(1.0, name="a"), tf.constant(2.0, name="b")
        ...     with tf.control_dependencies([a]):
        ...         c = tf.negative(b, name="c")
        ...     sorted(reachability.upstream(reachability.index(graph), ["c:0"]))
        ['a', 'b', 'c']
    """
    reached = set()
    pending = _starts(index, names)
    while pending:
        name = pending.pop()
        if name not in reached and name in index.nodes:
            reached.add(name)
            pending.extend(producer(input_name) for input_name in index.nodes[name].input)
    return reached


def variables(index: GraphIndex) -> list[str]:
    """The names of all variables' ops in the graph, in the order of its nodes.

    Example:
        >>> from bn_graph.graphs import reachability
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     _ = tf.get_variable("w", [2])
        ...     reachability.variables(reachability.index(graph))
        ['w']
    """
    return [name for name, node in index.nodes.items() if node.op in _VARIABLES]


def variables_read(index: GraphIndex, names: Iterable[str] | str) -> set[str]:
    """The variables whose values go into running `names`, by the names of their ops.

    A variable that is only overwritten, or only asked whether it is initialized, is not read; one that is
    decremented is. A variable that is handed to a function (a branch of cond v2) counts as read there.

    Args:
        index: as from `index`.
        names: as for `upstream`.

    Raises:
        ValueError: the graph has no node of such a name.

    Example:
        >>> import bn_graph
        >>> from bn_graph.graphs import reachability
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     y = bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 2]), is_training=False, name="bn1")
        ...     sorted(reachability.variables_read(reachability.index(graph), [y.name]))
        ['bn1/beta', 'bn1/gamma', 'bn1/moving_mean', 'bn1/moving_variance']
    """
    reached, read = set(), set()
    pending = _starts(index, names)
    while pending:
        name = pending.pop()
        node = index.nodes.get(name)
        if node is None or name in reached:
            continue
        reached.add(name)
        if node.op in _VARIABLES:
            read.add(name)
        without_reading = node.op in _OVERWRITES or node.op in _ASKS_IF_INITIALIZED
        pending.extend(producer(input_name) for input_name in (node.input[1:] if without_reading else node.input))
    return read


def variables_written(index: GraphIndex, names: Iterable[str] | str) -> set[str]:
    """The variables that running `names` assigns, or may assign, by the names of their ops.

    Counted are the assigns, scatters and optimizers' ops (with their slots) anywhere upstream, `names` included, in the
    graph and in the bodies of the functions it calls (both branches of a cond: which is taken, only a run can tell).

    Args:
        index: as from `index`.
        names: as for `upstream`.

    Raises:
        ValueError: the graph has no node of such a name.

    Example:
        >>> import bn_graph
        >>> from bn_graph.graphs import reachability
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph:
        ...     y = bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 2]), is_training=True, name="bn1")
        ...     sorted(reachability.variables_written(reachability.index(graph), [y.name]))
        ['bn1/moving_mean', 'bn1/moving_variance']
    """
    return set().union(*writers(index, names).values())


def writers(index: GraphIndex, names: Iterable[str] | str) -> dict[str, set[str]]:
    """The nodes that assign variables when `names` are run, each with the variables it assigns.

    Args:
        index: as from `index`.
        names: as for `upstream`.

    Returns:
        Node name to names of variables' ops. A node that calls a function which assigns is the writer itself.

    Raises:
        ValueError: the graph has no node of such a name.

    Example:
        >>> from bn_graph.graphs import reachability
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default() as graph, tf.variable_scope("", use_resource=False):
        ...     update = tf.assign_add(tf.get_variable("w", [2]), [1.0, 2.0], name="update")
        ...     reachability.writers(reachability.index(graph), [update])
        {'update': {'w'}}
    """
    assigned = {name: _assigned_at(index, index.nodes[name]) for name in upstream(index, names)}
    return {name: variables for name, variables in assigned.items() if variables}


def assigned_by(index: GraphIndex, name: str) -> set[str]:
    """The variables that one update op is for: those it assigns last, by the names of their ops.

    An entry of ``UPDATE_OPS`` may be an assign, a group of assigns, the value read after one, or the result of a
    ``tf.cond`` with one in its branch. From such an op the search goes up and stops at the first assign on each path:
    beyond it lie the batch's statistics, the layers before this one, and the assigns that *those* do in place.

    Args:
        index: as from `index`.
        name: the op (or tensor) by name; the object itself does as well.

    Returns:
        Names of variables' ops; empty if the op assigns nothing. Of an op that computes with the result of an
        assign, those which are nearest to it on every path.

    Raises:
        ValueError: the graph has no such node.

    Example:
        >>> from bn_graph.graphs import reachability
        >>> from bn_graph.tf1 import legacy_layers, tf
        >>> with tf.Graph().as_default() as graph:
        ...     x = tf.placeholder(tf.float32, [None, 2])
        ...     _ = legacy_layers().batch_normalization(x, training=True, name="bn1")
        ...     entries = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        ...     [reachability.assigned_by(reachability.index(graph), entry) for entry in entries]
        [{'bn1/moving_mean'}, {'bn1/moving_variance'}]
    """
    (start,) = _starts(index, name)
    return _first_assigned(index, start, _STAND_FOR_AN_UPDATE) or _first_assigned(index, start, None)


def global_variables_by_name(graph: tf.Graph | None = None) -> dict[str, tf.Variable]:
    """The global variables of a live graph by the names of their ops, in the order of their creation.

    Args:
        graph: the default graph if None.

    Example:
        >>> from bn_graph.graphs.reachability import global_variables_by_name
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     _ = tf.get_variable("w", [2])
        ...     list(global_variables_by_name())
        ['w']
    """
    graph = graph or tf.get_default_graph()
    return {variable.op.name: variable for variable in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)}


def _starts(index: GraphIndex, names: Iterable[str] | str) -> list[str]:
    names = [names] if isinstance(names, str) or hasattr(names, "name") else names
    starts = [producer(getattr(name, "name", name)) for name in names]
    unknown = [name for name in starts if name not in index.nodes]
    if unknown:
        raise ValueError(f"The graph has no node named {', '.join(map(repr, unknown))}.")
    return starts


def _first_assigned(index: GraphIndex, start: str, passed: frozenset[str] | None) -> set[str]:
    """What the first assigns above `start` assign, over nodes of the `passed` ops only, or over any if None."""
    found, reached = set(), set()
    pending = [start]
    while pending:
        name = pending.pop()
        node = index.nodes.get(name)
        if node is None or name in reached:
            continue
        reached.add(name)
        assigned = _assigned_at(index, node)
        found |= assigned
        if assigned:
            continue
        if passed is None or node.op in passed:
            pending.extend(producer(input_name) for input_name in _without_predicate(node))
        elif name == start:
            pending.extend(producer(input_name) for input_name in node.input if input_name.startswith("^"))
    return found


def _without_predicate(node: tf.NodeDef) -> list[str]:
    # A cond of control flow v1 also switches its predicate by itself, to have something that its branches depend on.
    predicate = node.input[1] if node.op in _SWITCHES and len(node.input) > 1 else None
    return [name for name in node.input if name != predicate]


def _assigned_at(index: GraphIndex, node: tf.NodeDef) -> set[str]:
    """The variables which this very node assigns, itself or in a function that it calls."""
    targets = _targets(index, index.nodes, node)
    return {target for target in targets if target in index.nodes and index.nodes[target].op in _VARIABLES}


def _targets(index: GraphIndex, nodes: Mapping[str, tf.NodeDef], node: tf.NodeDef) -> set[str]:
    """What a node of a graph or function body assigns: names of its variables, or of nothing that is in `nodes`."""
    if node.op.startswith(_APPLIES):
        return set().union(*(_behind(nodes, name) for name in node.input))
    if node.op.startswith(_ASSIGNS) and node.op not in _ASSIGNS_NOTHING:
        return _behind(nodes, node.input[0]) if node.input else set()
    targets = set()
    data = [name for name in node.input if not name.startswith("^")]
    for function, first in _called(index, node):
        for target in _assigned_in(index, function):
            if isinstance(target, str):
                targets.add(target)
            elif target + first < len(data):
                targets |= _behind(nodes, data[target + first])
    return targets


def _behind(nodes: Mapping[str, tf.NodeDef], input_name: str) -> set[str]:
    """The variables (or, in a function body, the arguments) that an op is given at an input to assign."""
    found, reached = set(), set()
    pending = [(producer(input_name), False)]
    while pending:
        name, is_value = step = pending.pop()
        if step in reached:
            continue
        reached.add(step)
        node = nodes.get(name)
        if node is None:
            found.add(name)
        elif node.op in _VARIABLES:
            if not (is_value and node.op in _REF_VARIABLES):
                found.add(name)
        elif node.op in _FORWARDS or node.op.startswith(_ASSIGNS):  # a ref variable's assign returns the ref
            inputs = node.input if node.op in ("Merge", "RefMerge", "IdentityN") else node.input[:1]
            is_value = is_value or node.op in _VALUE_FORWARDS
            pending.extend((producer(name), is_value) for name in inputs if not name.startswith("^"))
    return found


def _called(index: GraphIndex, node: tf.NodeDef) -> Iterator[tuple[str, int]]:
    """The functions that a node calls, each with the number of the input that is its argument 0."""
    if node.op in index.functions:
        yield node.op, 0
    elif node.op in _FIRST_ARGUMENT:
        for value in node.attr.values():
            for function in [value.func, *value.list.func]:
                if function.name in index.functions:
                    yield function.name, _FIRST_ARGUMENT[node.op]


def _assigned_in(index: GraphIndex, name: str) -> frozenset[int | str]:
    """What a function's body assigns: numbers of its arguments, and names of variables that it makes itself."""
    if name not in index.assigned_in:
        index.assigned_in[name] = frozenset()  # a function that calls itself adds nothing by that
        body = index.functions[name]
        nodes = {node.name: node for node in body.node_def}
        numbers = {argument.name: number for number, argument in enumerate(body.signature.input_arg)}
        targets = set().union(*(_targets(index, nodes, node) for node in body.node_def))
        index.assigned_in[name] = frozenset(
            numbers[target] if target in numbers else _shared_name(nodes[target])
            for target in targets
            if target in numbers or target in nodes
        )
    return index.assigned_in[name]


def _shared_name(variable: tf.NodeDef) -> str:
    return tf.compat.as_str(variable.attr["shared_name"].s) or variable.name
