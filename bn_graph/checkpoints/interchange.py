"""The same layers' values, to and from PyTorch and Keras.

What moves is four arrays a layer; what must agree besides is how they are used and how they go on moving:

=========================  =====================  ==============  ============================  =======================
library                    weight of the old      epsilon         new variance that moves in    normalizes in training
=========================  =====================  ==============  ============================  =======================
this one                   ``decay`` 0.999        1e-3            biased, or m/(m−1) by choice  by the biased one
PyTorch                    1 − ``momentum`` 0.9   1e-5            m/(m−1)                       by the biased one
Keras 3                    ``momentum`` 0.99      1e-3            biased                        by the biased one
legacy Keras, tf.layers    ``momentum`` 0.99      1e-3            m/(m−1) where it takes the    by the biased one
                                                                  fused kernel, else biased
=========================  =====================  ==============  ============================  =======================

So no stored value is changed here: each library normalizes at inference by the variance as it is stored. For the same
outputs at inference give this library's layer the other's epsilon; for the same statistics in further training also
``decay=decay_from_torch_momentum(momentum)`` and, for PyTorch, ``unbiased_variance=True``.

Every import is all or nothing: names and shapes are checked before the first value is assigned.
"""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from bn_graph.checkpoints.values import WholeVariable, assign_values, read_values, whole_name, whole_shape
from bn_graph.checkpoints.variables import LayerVariables, batch_norm_layers, global_variables_by_name
from bn_graph.tf1 import tf

__all__ = [
    "decay_from_torch_momentum",
    "export_keras_weights",
    "export_state_dict",
    "import_keras_weights",
    "import_state_dict",
]

_TORCH_LEAVES = LayerVariables("weight", "bias", "running_mean", "running_var")
_TORCH_COUNT = "num_batches_tracked"


def decay_from_torch_momentum(momentum: float | None) -> float:
    """This library's ``decay`` (weight of the old value) for PyTorch's ``momentum`` (weight of the new one).

    Args:
        momentum: in [0, 1]. PyTorch's None means the cumulative average, which no decay gives.

    Raises:
        ValueError: `momentum` is None or outside [0, 1].

    Source: PyTorch, ``torch.nn.BatchNorm1d``: x_new = (1 − momentum)·x + momentum·x_t.

    Example:
        >>> from bn_graph.checkpoints.interchange import decay_from_torch_momentum
        >>> decay_from_torch_momentum(0.1)
        0.9
    """
    if momentum is None:
        raise ValueError(
            "PyTorch's momentum=None is the cumulative average; no decay is that. Use average='cumulative'."
        )
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must be from 0 to 1, got {momentum!r}.")
    return 1.0 - momentum


def import_state_dict(
    session: tf.Session, state_dict: Mapping[str, object], layers: Mapping[str, str] | None = None
) -> None:
    """Gives batch norm layers of the session's graph the values of a PyTorch ``state_dict``.

    For each layer: ``{prefix}.weight`` to gamma, ``.bias`` to beta, ``.running_mean`` and ``.running_var`` to the moving
    statistics, as they are (the module says what to set for further training), and ``.num_batches_tracked`` to
    ``moving_count``, which only a layer with ``average="cumulative"`` has. Further statistics of a layer's own
    (``zero_debias``, ``renorm``) stay as they are: PyTorch has none of them. Weights of linear layers and convolutions
    are not this function's job: PyTorch lays them out otherwise ([out, in] against [in, out]; [out, in, h, w] against
    [h, w, in, out]).

    Args:
        session: whose graph's variables are assigned.
        state_dict: arrays of shape ``[channels]`` by name; NumPy's, or PyTorch tensors on any device. Entries of
            other modules are passed over.
        layers: scope in this graph to prefix in `state_dict`; every batch norm layer of the graph under its own scope
            with dots (``net/bn1`` as ``net.bn1``) if None.

    A layer with ``affine=False`` has neither weight nor bias: gamma becomes 1 and beta 0, which is what it computes. In the
    other direction, a graph without gamma (or beta) takes a weight of ones (a bias of zeros) and no other.

    Raises:
        ValueError: the graph has no such scope; `state_dict` lacks an entry (``track_running_stats=False`` has no
            statistics), or has one of weight and bias only; a shape differs; a weight or bias that the graph has no
            variable for is not one or zero. No variable has been assigned then.

    Source: PyTorch, ``torch.nn.modules.batchnorm``.

    Example:
        >>> import bn_graph, numpy as np
        >>> from bn_graph.checkpoints.interchange import import_state_dict
        >>> from bn_graph.tf1 import tf
        >>> trained = {"norm.running_mean": np.array([2.0]), "norm.running_var": np.array([4.0])}  # affine=False
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     y = bn_graph.batch_norm_wrapper(tf.constant([[6.0]]), is_training=False, epsilon=1e-5, name="bn1")
        ...     import_state_dict(session, trained, {"bn1": "norm"})
        ...     session.run(y).round(3)
        array([[2.]], dtype=float32)
    """
    values = []
    for scope, (prefix, layer) in _paired(session.graph, layers).items():
        arrays = _torch_arrays(state_dict, prefix)
        values += _checked(scope, layer, arrays, [f"{prefix}.{leaf}" for leaf in _TORCH_LEAVES])
        count = _count(session.graph, scope)
        if count is not None:
            if f"{prefix}.{_TORCH_COUNT}" not in state_dict:
                raise ValueError(f"The state_dict lacks {prefix}.{_TORCH_COUNT}, which {count.op.name} goes on from.")
            values.append((count, _array(state_dict[f"{prefix}.{_TORCH_COUNT}"])))
    assign_values(session, values)


def export_state_dict(session: tf.Session, layers: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """The batch norm layers' values, named and shaped as PyTorch's ``state_dict`` has them.

    Args:
        session: holds the values.
        layers: scope in the session's graph to prefix; every batch norm layer under its scope with dots if None.

    Returns:
        For each layer ``{prefix}.weight``, ``.bias``, ``.running_mean``, ``.running_var`` as arrays of shape ``[channels]``
        and the variables' dtype, and ``.num_batches_tracked`` as an int64 scalar: the ``moving_count`` of a layer with
        ``average="cumulative"``, else 0 (PyTorch uses it with ``momentum=None`` only). A layer without gamma *and* beta
        has no weight and bias (``affine=False``); with one of the two, the other is written as ones or zeros. To load
        it: ``module.load_state_dict({k: torch.as_tensor(v) for k, v in exported.items()})``, the module made with
        ``eps=epsilon`` and ``momentum=1 − decay``.

    Raises:
        ValueError: the graph has no such scope, or no batch norm layer, or a layer that keeps several axes.

    Example:
        >>> import bn_graph
        >>> from bn_graph.checkpoints.interchange import export_state_dict
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     _ = bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 1]), is_training=False, name="net/bn1")
        ...     session.run(tf.global_variables_initializer())
        ...     for name, value in export_state_dict(session).items():
        ...         print(name, value)
        net.bn1.weight [1.]
        net.bn1.bias [0.]
        net.bn1.running_mean [0.]
        net.bn1.running_var [1.]
        net.bn1.num_batches_tracked 0
    """
    exported = {}
    for scope, (prefix, layer) in _paired(session.graph, layers).items():
        arrays = _values(session, layer)
        if arrays.gamma is not None or arrays.beta is not None:
            arrays = _with_identity(arrays)
        named = zip(_TORCH_LEAVES, arrays, strict=True)
        exported |= {f"{prefix}.{leaf}": array for leaf, array in named if array is not None}
        count = _count(session.graph, scope)
        exported[f"{prefix}.{_TORCH_COUNT}"] = np.array(0 if count is None else session.run(count), np.int64)
    return exported


def import_keras_weights(session: tf.Session, scope: str, weights: Sequence[np.ndarray]) -> None:
    """Gives one layer of the session's graph what ``get_weights()`` of a Keras ``BatchNormalization`` returned.

    Args:
        session: whose graph's variables are assigned.
        scope: the layer's, as in `bn_graph.batch_norm_layers`.
        weights: ``[gamma, beta, moving_mean, moving_variance]``, each of shape ``[channels]``, without gamma for a layer
            with ``scale=False`` and without beta for ``center=False``; Keras 3 and legacy Keras have the same
            order. The list has no names: that the two layers agree in `scale` and `center` is seen by its length only.

    Raises:
        ValueError: the graph has no such layer; the list has not one array for each of the layer's variables; a shape
            differs. No variable has been assigned then.

    Source: Keras, ``BatchNormalization.build``.

    Example:
        >>> import bn_graph, numpy as np
        >>> from bn_graph.checkpoints.interchange import import_keras_weights
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     y = bn_graph.batch_norm_wrapper(tf.constant([[6.0]]), is_training=False, name="bn1")
        ...     import_keras_weights(session, "bn1", [np.array([v]) for v in (2.0, 1.0, 4.0, 3.999)])
        ...     session.run(y)
        array([[3.]], dtype=float32)
    """
    layer = _layer(session.graph, scope)
    present = [name for name in LayerVariables._fields if getattr(layer, name) is not None]
    if len(weights) != len(present):
        raise ValueError(
            f"The layer {scope!r} has {len(present)} variables ({', '.join(present)}), the list {len(weights)} arrays. Keras "
            "leaves gamma out with scale=False and beta with center=False: build both layers alike."
        )
    arrays = LayerVariables(
        **dict.fromkeys(LayerVariables._fields) | dict(zip(present, map(_array, weights), strict=True))
    )
    assign_values(session, _checked(scope, layer, arrays, LayerVariables._fields))


def export_keras_weights(session: tf.Session, scope: str) -> list[np.ndarray]:
    """What ``set_weights`` of a Keras ``BatchNormalization`` takes: gamma, beta, moving mean, moving variance.

    Args:
        session: holds the values.
        scope: the layer's, as in `bn_graph.batch_norm_layers`.

    Returns:
        Arrays of shape ``[channels]``; no gamma (beta) if the layer has none, as with Keras's ``scale=False``
        (``center=False``). Give the Keras layer ``momentum=decay`` and ``epsilon=epsilon``.

    Raises:
        ValueError: the graph has no such layer.

    Example:
        >>> import bn_graph
        >>> from bn_graph.checkpoints.interchange import export_keras_weights
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     _ = bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 1]), is_training=False, name="bn1")
        ...     session.run(tf.global_variables_initializer())
        ...     [float(array[0]) for array in export_keras_weights(session, "bn1")]
        [1.0, 0.0, 0.0, 1.0]
    """
    return [array for array in _values(session, _layer(session.graph, scope)) if array is not None]


def _layer(graph: tf.Graph, scope: str) -> LayerVariables:
    found = batch_norm_layers(graph)
    if scope not in found:
        raise ValueError(f"The graph has no batch norm layer {scope!r}; it has: {', '.join(found) or 'none'}.")
    return found[scope]


def _paired(graph: tf.Graph, layers: Mapping[str, str] | None) -> dict[str, tuple[str, LayerVariables]]:
    """Scope to prefix and variables, of the layers asked for or of all."""
    if layers is None:
        layers = {scope: scope.replace("/", ".") for scope in batch_norm_layers(graph)}
        if not layers:
            raise ValueError("The graph has no batch norm layer: no scope holds moving_mean and moving_variance.")
    paired = {scope: (prefix, _layer(graph, scope)) for scope, prefix in layers.items()}
    for scope, (_, layer) in paired.items():
        if layer.moving_mean.shape.rank not in (None, 1):
            raise ValueError(
                f"The layer {scope} keeps several axes, its variables have shape {layer.moving_mean.shape}, and PyTorch's "
                "layers keep one: name the other layers by `layers`."
            )
    return paired


def _count(graph: tf.Graph, scope: str) -> tf.Variable | None:
    return global_variables_by_name(graph).get(f"{scope}/moving_count")


def _values(session: tf.Session, layer: LayerVariables) -> LayerVariables:
    present = {name: variable for name, variable in layer._asdict().items() if variable is not None}
    values = zip(present, read_values(session, list(present.values())), strict=True)
    return LayerVariables(**dict.fromkeys(LayerVariables._fields) | dict(values))


def _array(value: object) -> np.ndarray:
    """A NumPy array of an array, a list or a PyTorch tensor (which this library does not import)."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()  # NumPy has no bfloat16; every float fits into a double
    return np.asarray(value)


def _torch_arrays(state_dict: Mapping[str, object], prefix: str) -> LayerVariables:
    arrays = LayerVariables(
        *(_array(state_dict[name]) if (name := f"{prefix}.{leaf}") in state_dict else None for leaf in _TORCH_LEAVES)
    )
    if arrays.moving_mean is None or arrays.moving_variance is None:
        known = _other_prefixes(state_dict, prefix)
        raise ValueError(f"The state_dict lacks {prefix}.running_mean or {prefix}.running_var; {known}.")
    if (arrays.gamma is None) != (arrays.beta is None):
        raise ValueError(
            f"The state_dict has only one of {prefix}.weight and {prefix}.bias; PyTorch writes both or neither."
        )
    return arrays if arrays.gamma is not None else _with_identity(arrays)


def _other_prefixes(state_dict: Mapping[str, object], prefix: str) -> str:
    prefixes = [name.removesuffix(".running_mean") for name in state_dict if name.endswith(".running_mean")]
    if not prefixes:
        return "no module in it has statistics (track_running_stats=False?)"
    nearest = difflib.get_close_matches(prefix, prefixes, n=3, cutoff=0.3) or prefixes[:3]
    return f"it has statistics of {', '.join(nearest)}. Say which is which by layers={{scope: prefix}}"


def _with_identity(arrays: LayerVariables) -> LayerVariables:
    """The same with a gamma of ones and a beta of zeros in place of None."""
    return arrays._replace(
        gamma=np.ones_like(arrays.moving_variance) if arrays.gamma is None else arrays.gamma,
        beta=np.zeros_like(arrays.moving_mean) if arrays.beta is None else arrays.beta,
    )


def _checked(
    scope: str, layer: LayerVariables, arrays: LayerVariables, names: Sequence[str]
) -> list[tuple[WholeVariable, np.ndarray]]:
    """Each variable of `layer` with its array, once all fit."""
    pairs = []
    for variable, array, name, neutral in zip(layer, arrays, names, (1.0, 0.0, None, None), strict=True):
        if variable is None:
            if array is not None and not np.all(array == neutral):
                raise ValueError(
                    f"The layer {scope!r} has no variable for {name}, which is not {neutral:g} throughout: build it with "
                    "scale=True and center=True."
                )
            continue
        if not whole_shape(variable).is_compatible_with(array.shape):
            raise ValueError(
                f"{name} has shape {list(array.shape)}; {whole_name(variable)} has {whole_shape(variable).as_list()}."
            )
        pairs.append((variable, array))
    return pairs
