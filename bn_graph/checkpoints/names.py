"""Name maps: what this graph's variables are called in a checkpoint that another library wrote.

A *name map* is a dict, or a function from a variable's name to the checkpoint's. A dict's keys are of three kinds:

* a leaf, the last part of a name, as in `NAME_MAPS`: ``{"moving_mean": "pop_mean"}``;
* a scope, ending in ``/``: ``{"bn1/": "conv1/BatchNorm/"}``. The longest that fits is taken; ``""`` fits all;
* a whole name: ``{"bn1/gamma": "Variable_3"}``. It wins over the other two, which may both apply to one name.
"""

from collections.abc import Callable, Iterable, Mapping

from bn_graph.checkpoints.values import WholeVariable, whole_name, whole_variables

__all__ = ["NAME_MAPS", "checkpoint_name", "checkpoint_names"]

NameMap = Mapping[str, str] | Callable[[str], str]

_LEAVES = ("gamma", "beta", "moving_mean", "moving_variance")

NAME_MAPS: dict[str, dict[str, str]] = {
    "tf.layers": {},
    "keras": {},
    "contrib": {},
    "keras_object": {leaf: f"{leaf}/.ATTRIBUTES/VARIABLE_VALUE" for leaf in _LEAVES},
    "pytorch": dict(zip(_LEAVES, ("weight", "bias", "running_mean", "running_var"), strict=True)),
    "pop": dict(zip(_LEAVES, ("scale", "offset", "pop_mean", "pop_var"), strict=True)),
    "mu_sigma": {"moving_mean": "mu", "moving_variance": "sigma"},
    "ema": {leaf: f"{leaf}/ExponentialMovingAverage" for leaf in _LEAVES[2:]},
}
"""Leaf names by library; add scopes of your own: ``{**NAME_MAPS["contrib"], "bn1/": "conv1/BatchNorm/"}``.

=================  ==================================================================================================
``tf.layers``      the same leaves, in scopes such as ``batch_normalization``
``keras``          the same leaves, as a name-based checkpoint of a Keras layer in a v1 graph holds them
``contrib``        the same leaves (also slim's), in a scope of their own: ``conv1/BatchNorm/gamma``
``keras_object``   Keras under TF2, ``tf.train.Checkpoint``: ``layer_with_weights-0/gamma/.ATTRIBUTES/VARIABLE_VALUE``
``pytorch``        ``weight``, ``bias``, ``running_mean``, ``running_var``, in a checkpoint that was converted
``pop``            ``scale``, ``offset``, ``pop_mean``, ``pop_var``, of hand-made layers
``mu_sigma``       ``mu`` and ``sigma``. What is stored is taken for the variance; if it is the standard deviation, tell
                   `bn_graph.restore` by ``convert={"moving_variance": np.square}``
``ema``            ``ExponentialMovingAverage`` shadows of the two statistics
=================  ==================================================================================================
"""


def checkpoint_name(name: str, name_map: NameMap) -> str:
    """The name that the variable `name` has in the checkpoint.

    Args:
        name: of a variable's op, ``scope/leaf``.
        name_map: as the module says.

    Example:
        >>> from bn_graph.checkpoints.names import NAME_MAPS, checkpoint_name
        >>> checkpoint_name("net/bn1/moving_mean", {**NAME_MAPS["pop"], "net/": ""})
        'bn1/pop_mean'
        >>> checkpoint_name("bn1/gamma", lambda name: name.replace("/", "."))
        'bn1.gamma'
    """
    if callable(name_map):
        return name_map(name)
    if name in name_map:
        return name_map[name]
    _, slash, leaf = name.rpartition("/")
    scope = name.removesuffix(leaf) if slash else ""
    fitting = [key for key in name_map if _is_scope(key) and scope.startswith(key)]
    if fitting:
        longest = max(fitting, key=len)
        scope = name_map[longest] + scope.removeprefix(longest)
    return scope + name_map.get(leaf, leaf)


def checkpoint_names(variables: Iterable[WholeVariable], name_map: NameMap | None) -> dict[str, WholeVariable]:
    """The variables by their names in the checkpoint, in order; what ``tf.train.Saver`` takes.

    Parts of a partitioned variable are one there, by the name of the whole.

    Args:
        variables: of one graph.
        name_map: as the module says; None leaves every name as it is.

    Raises:
        ValueError: two variables would have the same name, or a scope or whole name among the dict's keys fits none
            of the variables, as when it is misspelt. (Leaves may fit none: a layer need not have gamma.)
    """
    named = whole_variables(variables)
    if isinstance(name_map, Mapping):
        _refuse_unused_keys(name_map, list(named))
    mapped = {}
    for own_name, variable in named.items():
        name = own_name if name_map is None else checkpoint_name(own_name, name_map)
        if name in mapped:
            raise ValueError(f"name_map gives both {whole_name(mapped[name])} and {own_name} the name {name!r}.")
        mapped[name] = variable
    return mapped


def _is_scope(key: str) -> bool:
    return not key or key.endswith("/")


def _refuse_unused_keys(name_map: Mapping[str, str], names: list[str]) -> None:
    unused = [
        key
        for key in name_map
        if "/" in key and not any(name.startswith(key) if _is_scope(key) else name == key for name in names)
    ]
    if unused:
        raise ValueError(
            f"name_map names {', '.join(unused)}, which fits none of the {len(names)} variables "
            f"(such as {', '.join(names[:3])}). A scope ends in '/', a whole name is the variable's op's."
        )
