"""Which variables a graph's batch norm layers and outputs have."""

from collections.abc import Collection, Mapping, Sequence

from bn_graph.checkpoints.values import WholeVariable, whole_variables
from bn_graph.graphs import effects
from bn_graph.graphs.graph import Graph, build
from bn_graph.layers.averages import LayerVariables, moving_statistics
from bn_graph.tf1 import tf

__all__ = ["LayerVariables", "batch_norm_layers", "inference_variables", "layer_scope"]


def batch_norm_layers(graph: tf.Graph | None = None) -> dict[str, LayerVariables]:
    """The batch norm layers of a graph by their scopes, in the order of creation.

    Args:
        graph: the default graph if None.

    Returns:
        For each scope that holds both ``moving_mean`` and ``moving_variance`` (this library, tf.layers, slim, Keras),
        the variables there.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> from bn_graph.checkpoints.variables import batch_norm_layers
        >>> with tf.Graph().as_default() as graph:
        ...     _ = bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 2]), is_training=False, name="bn1")
        ...     layers = batch_norm_layers(graph)
        ...     list(layers), layers["bn1"].gamma.op.name
        (['bn1'], 'bn1/gamma')
    """
    graph = graph or tf.get_default_graph()
    scopes: dict[str, dict[str, WholeVariable]] = {}
    for name, variable in whole_variables(graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)).items():
        scope, _, leaf = name.rpartition("/")
        if leaf in LayerVariables._fields:
            scopes.setdefault(scope, {})[leaf] = variable
    return {
        scope: LayerVariables(*(leaves.get(leaf) for leaf in LayerVariables._fields))
        for scope, leaves in scopes.items()
        if {"moving_mean", "moving_variance"} <= leaves.keys()
    }


def global_variables_by_name(graph: tf.Graph | None = None) -> dict[str, tf.Variable]:
    """The global variables of a graph (the default graph if None) by the names of their ops, in the order of creation."""
    graph = graph or tf.get_default_graph()
    return {variable.op.name: variable for variable in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)}


def layer_scope(variable: str, statistics: Collection[str]) -> str:
    """The scope of the layer that a variable belongs to.

    Args:
        variable: name of its op.
        statistics: names of the graph's statistics. What is kept of one of them, such as its average, is in its scope
            and so in its layer.
    """
    scope = variable.rpartition("/")[0]
    return layer_scope(scope, statistics) if scope in statistics else scope


def inference_variables(
    outputs: tf.Tensor | Sequence[tf.Tensor | str] | Mapping[str, tf.Tensor] | str, graph: tf.Graph | None = None
) -> list[tf.Variable]:
    """What must be saved so that `outputs` can be computed at inference: trained weights and statistics, nothing else.

    Found by what the outputs reach, whatever the names: ``pop_mean``, ``mu`` or an EMA shadow are found like
    ``moving_mean``. Optimizers' slots are not reached, nor are other networks of the graph.

    In a *training* graph the outputs normalize by the batch and need not read the statistics that their inference will
    read. So these are added:

    1. what update ops of the outputs' own layers assign: ops in any collection that start from what the outputs
       compute and read no variable besides the outputs' and those they assign (another head's updates read its weights);
    2. `bn_graph.moving_statistics` in the scope of a variable that is already in the list, and averages kept of those.

    Updates in place need neither rule, because the outputs depend on them.

    Args:
        outputs: the tensors (or names) that inference will fetch, in the training or the inference graph.
        graph: where names are looked up; that of the tensors, or the default graph, if None.

    Returns:
        Global variables in the order of their creation. ``global_step`` is among them only where the outputs of an
        inference graph really read it.

    Raises:
        ValueError: `outputs` is empty or names what the graph lacks; or computing the outputs runs an optimizer, as a
            train op's do.

    Source: "tensorflow中的batchnorm", section on restoring from a checkpoint: ``tf.trainable_variables()`` is not enough.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> from bn_graph.checkpoints.variables import inference_variables
        >>> with tf.Graph().as_default():
        ...     network = bn_graph.build_graph(True, bn_graph.normal_weights([4, 3, 2], seed=0))
        ...     [variable.op.name for variable in inference_variables(network.prediction)]
        ['w1', 'bn1/gamma', 'bn1/beta', 'bn1/moving_mean', 'bn1/moving_variance', 'w2', 'b2']
    """
    graph, names = _graph_and_names(outputs, graph)
    built = build(graph)
    variables = global_variables_by_name(graph)
    read = effects.variables_read(built, names) & variables.keys()
    written = effects.variables_written(built, names)
    trained = sorted(written & _trainable(graph))
    if trained:
        raise ValueError(
            f"Computing the outputs trains {', '.join(trained[:3])}: they depend on a train op. Name the predictions."
        )
    wanted = read | _updated_for(graph, built, names, read)
    scopes = {name.rpartition("/")[0] for name in wanted}
    for statistic in map(_op_name, moving_statistics(graph)):  # in the order of creation: averages of one come after it
        if statistic.rpartition("/")[0] in scopes | wanted:
            wanted.add(statistic)
    if written:
        # An update op may count steps for its decay; an inference graph doesn't update.
        wanted -= {_op_name(step) for step in graph.get_collection(tf.GraphKeys.GLOBAL_STEP)}
    return [variable for name, variable in variables.items() if name in wanted]


def _graph_and_names(outputs, graph: tf.Graph | None) -> tuple[tf.Graph, list[str]]:
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    elif isinstance(outputs, str) or hasattr(outputs, "name"):
        outputs = [outputs]
    outputs = list(outputs)
    if not outputs:
        raise ValueError("outputs is empty: name the tensors that inference will fetch.")
    graphs = [output.graph for output in outputs if hasattr(output, "graph")]
    graph = graph or (graphs[0] if graphs else tf.get_default_graph())
    return graph, [getattr(output, "name", output) for output in outputs]


def _updated_for(graph: tf.Graph, built: Graph, outputs: list[str], read: set[str]) -> set[str]:
    """The variables assigned by update ops, of any collection, of the layers that `outputs` pass through."""
    computed = {name for name in effects.upstream(built, outputs) if built.ops[built.ids[name]] != "Const"}
    trainable = _trainable(graph)
    updated = set()
    for op in _ops_in_collections(graph):
        assigned = effects.assigned_by(built, op)
        if not assigned or assigned & trainable or computed.isdisjoint(effects.upstream(built, op)):
            continue
        if effects.variables_read(built, op) <= read | assigned:
            updated |= assigned
    return updated


def _ops_in_collections(graph: tf.Graph) -> list[str]:
    members = [member for key in graph.get_all_collection_keys() for member in graph.get_collection(key)]
    # Besides ops and tensors: an assign of a resource variable returns a kind of variable, whose op is the assign.
    ops = [getattr(member, "op", member) for member in members]
    return sorted({op.name for op in ops if isinstance(op, tf.Operation)})


def _trainable(graph: tf.Graph) -> set[str]:
    return {variable.op.name for variable in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)}


def _op_name(variable: tf.Variable) -> str:
    return variable.op.name
