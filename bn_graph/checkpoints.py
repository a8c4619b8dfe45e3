"""Savers that include the moving statistics, and restores that check them.

Two mistakes make a trained batch norm network predict nonsense, and neither need raise anything by itself: a Saver of
the trainable variables only (the statistics are not trainable), and statistics that no train op ever updated. Here the
first is refused, by name, and the second is warned of.
"""

import os
import warnings
from collections.abc import Sequence

import numpy as np

from bn_graph.layers.population import moving_statistics
from bn_graph.tf1 import tf

__all__ = ["CheckpointError", "UntrainedStatisticsWarning", "make_saver", "restore", "save"]


class CheckpointError(ValueError):
    """A checkpoint that does not exist, can't be read, or lacks what the graph needs."""


class UntrainedStatisticsWarning(UserWarning):
    """Every restored moving statistic still holds its initial value."""


def make_saver(var_list: Sequence[tf.Variable] | None = None, **saver_options) -> tf.train.Saver:
    """A ``tf.train.Saver`` whose variables include the moving statistics of the graph.

    Args:
        var_list: the variables to save; all global variables of the default graph if None.
        **saver_options: passed on to ``tf.train.Saver`` (``max_to_keep``, ...).

    Returns:
        The Saver. It adds the save and restore ops to the default graph.

    Raises:
        ValueError: `var_list` has a batch norm layer's ``gamma`` or ``beta`` and leaves out its moving statistics, as
            ``tf.trainable_variables()`` does.

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
    return tf.train.Saver(var_list, **saver_options)


def _refuse_left_out_statistics(var_list: Sequence[tf.Variable]) -> None:
    saved = {variable.op.name for variable in var_list}
    layers = {name.rpartition("/")[0] for name in saved if name.rpartition("/")[2] in ("gamma", "beta")}
    left_out = [
        name
        for name in (variable.op.name for variable in moving_statistics())
        if name.rpartition("/")[0] in layers and name not in saved
    ]
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
        raise CheckpointError(f"The checkpoint {prefix} could not be written: {_first_line(error)}") from error


def restore(
    session: tf.Session, checkpoint: str | os.PathLike, *, var_list: Sequence[tf.Variable] | None = None
) -> None:
    """Restores variables of the session's graph from `checkpoint`, after checking that their values are there.

    Args:
        session: whose graph's variables are assigned.
        checkpoint: prefix as returned by `save`, or a directory, of which the latest checkpoint is taken.
        var_list: the variables to restore; all global variables of the graph if None.

    Raises:
        CheckpointError: there is no such checkpoint, it can't be read, a variable's shape differs, or it lacks
            variables; missing moving statistics are named first and apart. No variable has been assigned then.

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
        variables = list(tf.global_variables() if var_list is None else var_list)
    prefix = _resolve(checkpoint)
    _check_holds(prefix, variables)
    with session.graph.as_default():
        # A Saver keeps its path tensor under the graph; each restore makes one, which is why restoring is not for loops.
        tf.train.Saver(variables, save_relative_paths=True).restore(session, prefix)
    _warn_if_untrained(session, prefix, variables)


def _resolve(checkpoint: str | os.PathLike) -> str:
    path = os.fspath(checkpoint)
    if os.path.isdir(path):
        latest = tf.train.latest_checkpoint(path)
        if latest is None:
            raise CheckpointError(f"The directory {path} holds no checkpoint that its file 'checkpoint' names.")
        return latest
    return path


def _check_holds(prefix: str, variables: Sequence[tf.Variable]) -> None:
    try:
        shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(f"The checkpoint {prefix} can't be read: {_first_line(error)}") from error
    missing = [variable.op.name for variable in variables if variable.op.name not in shapes]
    if missing:
        raise CheckpointError(_missing_message(prefix, missing))
    for variable in variables:
        expected, found = variable.shape.as_list(), list(shapes[variable.op.name])
        if expected != found:
            raise CheckpointError(
                f"The checkpoint {prefix} holds {variable.op.name} with shape {found}; the graph's has {expected}."
            )


def _missing_message(prefix: str, missing: Sequence[str]) -> str:
    known = {variable.op.name for variable in moving_statistics()}
    statistics = [name for name in missing if name in known]
    others = [name for name in missing if name not in known]
    message = f"The checkpoint {prefix} lacks"
    if statistics:
        message += f" moving statistics that the graph needs: {', '.join(statistics)}"
        message += "; it was probably saved from tf.trainable_variables() only" if not others else "; and"
    if others:
        message += f" variables of the graph: {', '.join(others)}"
    return message + ". Save all of them (bn_graph.make_saver()), or restore a part with var_list=."


def _warn_if_untrained(session: tf.Session, prefix: str, variables: Sequence[tf.Variable]) -> None:
    with session.graph.as_default():
        among_statistics = {variable.op.name for variable in moving_statistics()}
    statistics = [variable for variable in variables if variable.op.name in among_statistics]
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


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", error)).strip().splitlines()[0]
