"""Savers that include the moving statistics, and restores that check them.

Two mistakes make a trained batch norm network predict nonsense, and neither need raise anything by itself: a Saver of
the trainable variables only (the statistics are not trainable), and statistics that no train op ever updated. Here the
first is refused, by name, and the second is warned of.

Checkpoints of other libraries, which call the same variables by other names, are read and written through a *name map*;
see `bn_graph.checkpoints.names`.
"""

import difflib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bn_graph.checkpoints.files import CheckpointError, checkpoint_prefix
from bn_graph.checkpoints.names import NameMap, checkpoint_names
from bn_graph.checkpoints.values import (
    WholeVariable,
    assign_values,
    check_fit,
    open_checkpoint,
    parts_of,
    whole_name,
    whole_shape,
    whole_variables,
)
from bn_graph.checkpoints.variables import inference_variables, layer_scope
from bn_graph.graphs.errors import one_line
from bn_graph.layers.averages import moving_statistics
from bn_graph.tf1 import tf

__all__ = [
    "CheckpointError",
    "UntrainedStatisticsWarning",
    "make_inference_saver",
    "make_saver",
    "restore",
    "save",
]

Conversions = Mapping[str, Callable[[np.ndarray], np.ndarray]]


class UntrainedStatisticsWarning(UserWarning):
    """Every restored moving statistic still holds its initial value."""


def make_saver(
    var_list: Sequence[tf.Variable] | None = None, *, name_map: NameMap | None = None, **saver_options
) -> tf.train.Saver:
    """A ``tf.train.Saver`` whose variables include the moving statistics of the graph.

    Args:
        var_list: the variables to save; all global variables of the default graph if None.
        name_map: what to call them in the checkpoint, as `bn_graph.checkpoints.names` says; their own names if None.
        **saver_options: passed on to ``tf.train.Saver`` (``max_to_keep``, ...).

    Returns:
        The Saver. It adds the save and restore ops to the default graph.

    Raises:
        ValueError: `var_list` has a batch norm layer's ``gamma`` or ``beta`` and leaves out its moving statistics, as
            ``tf.trainable_variables()`` does; or `name_map` gives two variables one name, or misspells a scope.

    Source: "tensorflow中的batchnorm", section on restoring from a checkpoint; r2rt, ``build_graph``.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     _ = bn_graph.batch_norm_wrapper(tf.placeholder(tf.float32, [None, 2]), is_training=True, name="bn1")
        ...     try:
        ...         bn_graph.make_saver(tf.trainable_variables())
        ...     except ValueError as error:
        ...         print(str(error).split(":")[0])
        The Saver would leave out moving statistics of layers whose gamma or beta it saves
    """
    if var_list is not None:
        _refuse_left_out_statistics(var_list)
    if name_map is not None:
        var_list = checkpoint_names(tf.global_variables() if var_list is None else var_list, name_map)
    return tf.train.Saver(var_list, **saver_options)


def make_inference_saver(
    outputs: tf.Tensor | Sequence[tf.Tensor], *, name_map: NameMap | None = None, **saver_options
) -> tf.train.Saver:
    """A Saver of what inference of `outputs` needs: trained weights and every statistic; no slots, no global step.

    Args:
        outputs: what inference will fetch, in the training or the inference graph. Their variables are found by what
            the outputs reach and not by name; `bn_graph.inference_variables` says how.
        name_map: what to call them in the checkpoint, as `bn_graph.checkpoints.names` says; their own names if None.
        **saver_options: passed on to ``tf.train.Saver``.

    Returns:
        The Saver. It adds the save and restore ops to the outputs' graph.

    Raises:
        ValueError: as `bn_graph.inference_variables` says; or the outputs need no variable.

    Example:
        >>> import tempfile, bn_graph
        >>> from bn_graph.checkpoints.savers import make_inference_saver
        >>> from bn_graph.tf1 import tf
        >>> with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        ...     network = bn_graph.build_graph(True, bn_graph.normal_weights([4, 3, 2], seed=0))
        ...     session.run(tf.global_variables_initializer())
        ...     path = make_inference_saver(network.prediction).save(session, f"{folder}/model")
        ...     [name for name, _ in tf.train.list_variables(path)]
        ['b2', 'bn1/beta', 'bn1/gamma', 'bn1/moving_mean', 'bn1/moving_variance', 'w1', 'w2']
    """
    variables = inference_variables(outputs)
    if not variables:
        raise ValueError("The outputs read no variable, so there is nothing to save.")
    with variables[0].graph.as_default():
        return tf.train.Saver(checkpoint_names(variables, name_map), **saver_options)


def _refuse_left_out_statistics(var_list: Sequence[tf.Variable]) -> None:
    saved = whole_variables(var_list)
    graph = parts_of(next(iter(saved.values())))[0].graph if saved else tf.get_default_graph()
    layers = {scope for scope, _, leaf in (name.rpartition("/") for name in saved) if leaf in ("gamma", "beta")}
    statistics = [variable.op.name for variable in moving_statistics(graph)]
    left_out = [name for name in statistics if name not in saved and layer_scope(name, statistics) in layers]
    if left_out:
        raise ValueError(
            f"The Saver would leave out moving statistics of layers whose gamma or beta it saves: {', '.join(left_out)}. "
            "Without them the restored network can't predict. Leave out var_list, or add bn_graph.moving_statistics()."
        )


def save(saver: tf.train.Saver, session: tf.Session, prefix: str | os.PathLike, **save_options) -> str:
    """``saver.save``, into a directory that is made if need be; returns the path to restore from.

    TensorFlow writes the tensors under temporary names and moves them into place, and names the checkpoint in the
    ``checkpoint`` file last; a kill in between leaves the earlier checkpoint the latest, as long as each save has a
    prefix of its own (pass ``global_step``).

    Args:
        saver: as from `make_saver`.
        session: holds the variables.
        prefix: path and beginning of the file names.
        **save_options: passed on to ``Saver.save`` (``global_step``, ``write_meta_graph``, ...).

    Raises:
        CheckpointError: the directory can't be made or written.

    Example:
        >>> import tempfile, bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        ...     _ = tf.get_variable("w", [2])
        ...     session.run(tf.global_variables_initializer())
        ...     bn_graph.save(bn_graph.make_saver(), session, f"{folder}/new/model")[len(folder):]
        '/new/model'
    """
    prefix = os.fspath(prefix)
    directory = os.path.dirname(os.path.abspath(prefix))
    try:
        os.makedirs(directory, exist_ok=True)
        return saver.save(session, prefix, **save_options)
    except (OSError, tf.errors.OpError, ValueError) as error:
        raise CheckpointError(f"The checkpoint {prefix} could not be written: {one_line(error)}") from error


def restore(
    session: tf.Session,
    checkpoint: str | os.PathLike,
    *,
    var_list: Sequence[tf.Variable] | None = None,
    name_map: NameMap | None = None,
    convert: Conversions | None = None,
) -> None:
    """Restores variables of the session's graph from `checkpoint`, after checking that their values are there.

    Args:
        session: whose graph's variables are assigned.
        checkpoint: prefix as returned by `save`, its ``.index``, or a directory, of which the latest checkpoint is taken: the
            one that its file ``checkpoint`` names or, where that is gone, the one of the highest step.
        var_list: the variables to restore; all global variables of the graph if None.
        name_map: what the checkpoint calls them, as `bn_graph.checkpoints.names` says, such as ``NAME_MAPS["pop"]``.
        convert: functions of the stored arrays, by a variable's name or its last part:
            ``{"moving_variance": np.square}`` where the checkpoint holds the standard deviation.

    Raises:
        CheckpointError: there is no such checkpoint, it can't be read, a variable's shape or dtype differs, or it lacks
            variables; missing moving statistics are named first and apart, and then the nearest names that it has.
            No variable has been assigned then.
        ValueError: `name_map` gives two variables one name, or misspells a scope; `convert` changes a shape.

    Warns:
        UntrainedStatisticsWarning: all restored moving statistics equal their initial values, as when the train op
            did not run the update ops. Predictions with them normalize by mean 0 and variance 1.

    Source: "tensorflow中的batchnorm", section on restoring from a checkpoint.

    Example:
        >>> import tempfile, bn_graph
        >>> from bn_graph.tf1 import tf
        >>> with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        ...     _ = tf.get_variable("w", [2], initializer=tf.ones_initializer())
        ...     session.run(tf.global_variables_initializer())
        ...     path = bn_graph.save(bn_graph.make_saver(), session, f"{folder}/model")
        ...     bn_graph.restore(session, path)
    """
    with session.graph.as_default():
        variables = checkpoint_names(tf.global_variables() if var_list is None else var_list, name_map)
    prefix = checkpoint_prefix(checkpoint)
    reader = _checked_reader(prefix, variables)
    converted = _converted(reader, variables, convert or {})
    with session.graph.as_default():
        # A Saver keeps its path tensor under the graph; each restore makes one, which is why restoring is not for loops.
        tf.train.Saver(variables, save_relative_paths=True).restore(session, prefix)
    assign_values(session, converted)
    _warn_if_untrained(session, prefix, list(variables.values()))


def _checked_reader(prefix: str, variables: Mapping[str, WholeVariable]):
    """The checkpoint's reader, once all `variables` (by their names in the checkpoint) are there and fit."""
    reader = open_checkpoint(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    missing = {name: variable for name, variable in variables.items() if name not in shapes}
    if missing:
        message = _missing_message(prefix, missing)
        raise CheckpointError(message + _nearest(missing, sorted(set(shapes) - set(variables))))
    for name, variable in variables.items():
        check_fit(prefix, variable, name, shapes[name], dtypes[name])
    return reader


def _missing_message(prefix: str, missing: Mapping[str, WholeVariable]) -> str:
    graph = parts_of(next(iter(missing.values())))[0].graph
    known = {statistic.op.name for statistic in moving_statistics(graph)}
    statistics = [_both_names(*item) for item in missing.items() if whole_name(item[1]) in known]
    others = [_both_names(*item) for item in missing.items() if whole_name(item[1]) not in known]
    message = f"The checkpoint {prefix} lacks"
    if statistics:
        message += f" moving statistics that the graph needs: {', '.join(statistics)}"
        message += "; it was probably saved from tf.trainable_variables() only" if not others else "; and"
    if others:
        message += f" variables of the graph: {', '.join(others)}"
    return message + ". Save all of them (bn_graph.make_saver()), or restore a part with var_list=."


def _both_names(name: str, variable: WholeVariable) -> str:
    return name if name == whole_name(variable) else f"{name} (for {whole_name(variable)})"


def _nearest(missing: Mapping[str, WholeVariable], unclaimed: Sequence[str], most: int = 6) -> str:
    """A sentence about names of the checkpoint that may be what is missing under another name; empty if none is."""
    nearest = {}
    for name in missing:
        alike = difflib.get_close_matches(name, unclaimed, n=2, cutoff=0.6)
        leaf = name.rpartition("/")[2]
        nearest |= dict.fromkeys(alike + [held for held in unclaimed if held.rpartition("/")[2] == leaf][:2])
    if not nearest:
        return ""
    return f" The nearest names that it has: {', '.join(list(nearest)[:most])}; to take those, pass name_map=."


def _converted(reader, variables: Mapping[str, WholeVariable], convert: Conversions) -> list:
    """The variables that `convert` speaks of, with their converted values."""
    converted = []
    for name, variable in variables.items():
        own_name = whole_name(variable)
        function = convert.get(own_name) or convert.get(own_name.rpartition("/")[2])
        if function is None:
            continue
        value = np.asarray(function(reader.get_tensor(name)))
        if not whole_shape(variable).is_compatible_with(value.shape):
            raise ValueError(
                f"convert turns {name} into shape {list(value.shape)}; the graph's has {whole_shape(variable)}."
            )
        converted.append((variable, value))
    return converted


def _warn_if_untrained(session: tf.Session, prefix: str, variables: Sequence[WholeVariable]) -> None:
    with session.graph.as_default():
        among_statistics = {variable.op.name for variable in moving_statistics()}
    statistics = [variable for variable in variables if whole_name(variable) in among_statistics]
    if not statistics:
        return
    held, initial = session.run([statistics, [variable.initial_value for variable in statistics]])
    if all(np.array_equal(now, start) for now, start in zip(held, initial, strict=True)):
        warnings.warn(
            f"All {len(statistics)} moving statistics in {prefix} still hold their initial values: no training step "
            "updated them. Did the train op depend on the update ops?",
            UntrainedStatisticsWarning,
            stacklevel=3,
        )
