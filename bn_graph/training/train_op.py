"""Update ops: collected by layer, run by the train op, and missed when a train op leaves them out.

The moving statistics of a batch norm layer are updated by ops of their own. Where those are not dependencies of the
layer's output (``updates_collection=None``), they are in ``UPDATE_OPS`` and run only if something depends on them: the
train op. Without that nothing fails, training looks well, and prediction normalizes by mean 0 and variance 1.

An update op belongs to the layer whose variables it assigns, whatever its own name: the ops of a scope that is opened
twice are named ``bn_1/…``, and ``tf.get_collection(key, "bn")`` matches a regex prefix, so ``bn2/…`` as well.
"""

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

from bn_graph.graphs import effects
from bn_graph.graphs.conditional_updates import find_conditional_updates
from bn_graph.graphs.errors import BnGraphError
from bn_graph.graphs.graph import Graph, build, node_named, uses
from bn_graph.graphs.layers import find_layers
from bn_graph.graphs.normalizations import find_normalizations
from bn_graph.graphs.ops import SWITCHES
from bn_graph.graphs.train_ops import find_training
from bn_graph.graphs.updates import find_updates, targets
from bn_graph.layers.averages import is_ref_variable, moving_statistics
from bn_graph.tf1 import tf

__all__ = ["ConditionalUpdatesError", "DetachedUpdatesError", "check_train_op", "collect", "train_op"]

_Scope: TypeAlias = str | tf.VariableScope
_Op: TypeAlias = tf.Operation | tf.Tensor
_Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices
_Pairs: TypeAlias = list[tuple[_Gradient | None, tf.Variable]]


class DetachedUpdatesError(BnGraphError):
    """A train op that trains through layers and leaves their moving statistics as they are."""


class ConditionalUpdatesError(BnGraphError):
    """A train op outside of a branch or a loop's body that has to wait for update ops inside."""


def collect(
    scope: _Scope | Sequence[_Scope] | None = None,
    *,
    name_scope: str | None = None,
    collection: str = tf.GraphKeys.UPDATE_OPS,
    graph: tf.Graph | None = None,
) -> list[_Op]:
    """The update ops of the layers in a variable scope, each once, in the order in which they were collected.

    An update op belongs to a scope if a variable that it is for (`graphs.effects.assigned_by`) lies in it. So a layer
    that is applied twice gives the updates of both applications, whatever their ops are named; and ``bn`` has nothing
    to do with ``bn2`` or ``xbn``.

    Args:
        scope: variable scope (its path, or the object), several of them, or a layer object with ``variables``; all
            update ops if None. Paths are compared component by component and are not regular expressions.
        name_scope: only ops made under this *name* scope: one tower's (``tower_0``) among those that share variables.
        collection: the graph collection that the layers put their update ops into.
        graph: the default graph if None.

    Returns:
        Ops and tensors as they stand in the collection. Empty if the layers there have no update ops, as when they
        are built for inference or update in place.

    Raises:
        ValueError: the graph has no variable in `scope`, or no op in `name_scope`; the message names scopes like it.
        ConditionalUpdatesError: an op of the collection is in a branch or a loop's body of control flow v2.

    Example:
        >>> import bn_graph
        >>> from bn_graph.training import train_op
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     h = tf.placeholder(tf.float32, [None, 2])
        ...     for name in ("bn", "bn2"):
        ...         h = bn_graph.batch_norm_wrapper(h, True, updates_collection=tf.GraphKeys.UPDATE_OPS, name=name)
        ...     [op.name.startswith("bn/") for op in train_op.collect("bn")]
        [True, True]
    """
    graph = graph or tf.get_default_graph()
    entries = list({_op(entry): entry for entry in graph.get_collection(collection)}.values())
    _refuse_other_graphs(graph, entries)
    if scope is None and name_scope is None:
        return entries
    built = build(graph)
    if name_scope is not None:
        _check_known(name_scope, built.ids, "op", "name scope")
        entries = [entry for entry in entries if _lies_in(_op(entry).name, [_path(name_scope)])]
    if scope is not None:
        paths = _paths(scope, built)
        entries = [
            entry
            for entry in entries
            if any(_lies_in(variable, paths) for variable in effects.assigned_by(built, _op(entry)))
        ]
    return entries


def train_op(
    optimizer: tf.train.Optimizer,
    loss: tf.Tensor,
    *,
    scope: _Scope | Sequence[_Scope] | None = None,
    update_ops: Sequence[_Op] | None = None,
    var_list: Sequence[tf.Variable] | None = None,
    global_step: tf.Variable | Literal["default"] | None = "default",
    transform_gradients: Callable[[list[_Gradient], list[tf.Variable]], Sequence[_Gradient]] | None = None,
    check_numerics: bool = False,
    return_loss: bool = False,
    name: str = "train_op",
) -> _Op:
    """One training step that takes the update ops with it.

    What is ordered: every update op has finished before any parameter, slot or `global_step` is assigned, and the
    returned op is done when all of them are. What is not: the forward and backward pass run beside the updates. They
    share the batch's statistics with them; a layer that reads its moving statistics while it trains (renorm) may read
    them before or after, as it would with ``optimizer.minimize`` under ``tf.control_dependencies``.

    Args:
        optimizer: of ``tf.train``, or anything with its ``compute_gradients`` and ``apply_gradients``; or one of
            ``tf.keras.optimizers.legacy``, on resource variables, which counts its own ``iterations`` as well.
        loss: what to minimize.
        scope: runs the update ops of these variable scopes only (as `collect` takes them): with several networks in
            a graph (a GAN), those of the network that this op trains.
        update_ops: the ops to run instead of collected ones; ``collect(name_scope="tower_0")``, say.
        var_list: the variables to train; all trainable ones if None.
        global_step: incremented by each step. ``"default"`` is the graph's (``tf.train.get_or_create_global_step``) if it
            has one when this is called and no op increments it yet: with several train ops, the first one counts, unless
            you give it to others too. None increments nothing.
        transform_gradients: given the gradients and their variables (those that have a gradient), returns the gradients
            to apply, in the same order: to clip, scale, or add noise.
        check_numerics: a loss that is NaN or infinite raises, and then *nothing* is assigned: no weight, slot or
            `global_step`, and no moving statistic (for that the update ops are copied behind the check). Gradients
            are not looked at: they may overflow where the loss doesn't.
        return_loss: returns the loss, a scalar tensor that is there when the step is done, in place of the op. It is the
            loss that the step's gradients are of, before any variable was assigned.
        name: of the op or tensor that is returned.

    Returns:
        The op (or tensor, with `return_loss`) to run. It and all it needs (slots too) exist when this returns, so that
        the graph may be finalized. It joins the collection ``TRAIN_OP``, where optimizers of ``tf.train`` put their own
        op, which runs no updates.

    Raises:
        TypeError: `optimizer` is of another kind (``tf.keras.optimizers`` but for the legacy ones); or a legacy Keras
            optimizer is to train ref variables.
        ValueError: both `scope` and `update_ops` are given; `scope` is unknown; no variable gets a gradient;
            `transform_gradients` does not return a gradient for each variable; or, with
            `check_numerics`, running `loss` itself assigns variables (updates in place), which no check of the loss
            can delay, or an update stands in a ``tf.while_loop``.
        ConditionalUpdatesError: update ops are in a branch of a ``tf.cond``, or in the body of a ``tf.while_loop``, and
            this op is outside: a step that does not take that branch would silently train nothing. A ``tf.cond`` between
            training and inference mode is allowed; feed it True.
        tf.errors.InvalidArgumentError: at a run whose loss is not finite, with `check_numerics`.

    Warns:
        UserWarning: the updates that run leave out moving statistics of layers that `loss` goes through, named in the
            message. Layers outside `scope` are left out on purpose, as are those whose gamma and beta are not in
            `var_list` when that is given.

    Source: "tensorflow中的batchnorm", section on the update ops; the contract of tf-slim's ``create_train_op``.

    Example:
        >>> import bn_graph
        >>> from bn_graph.training import train_op
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default(), tf.Session() as session:
        ...     x, collection = tf.constant([[2.0], [6.0]]), tf.GraphKeys.UPDATE_OPS
        ...     y = bn_graph.batch_norm_wrapper(x, True, decay=0.5, updates_collection=collection, name="bn1")
        ...     step = train_op.train_op(tf.train.GradientDescentOptimizer(0.1), tf.reduce_mean(y))
        ...     session.run(tf.global_variables_initializer())
        ...     session.run(step)
        ...     session.run(bn_graph.moving_statistics()[0])  # 0·0.5 + 4·0.5
        array([2.], dtype=float32)

        With gradients clipped to a global norm of 5::

            clip = lambda gradients, variables: tf.clip_by_global_norm(gradients, 5.0)[0]
            step = train_op.train_op(optimizer, loss, transform_gradients=clip)
    """
    if scope is not None and update_ops is not None:
        raise ValueError("scope says which update ops to collect, update_ops which to run: give one of them.")
    graph = loss.graph
    with graph.as_default():
        updates = collect(scope, graph=graph) if update_ops is None else list(update_ops)
        _refuse_other_graphs(graph, updates)
        built = build(graph)
        _warn_of_left_out(graph, built, loss, updates, scope, var_list)
        gradients = _gradients(optimizer, loss, var_list)
        if transform_gradients is not None:
            gradients = _transformed(gradients, transform_gradients)
        with tf.name_scope(f"{name}_updates"):
            if check_numerics:
                finite = _checked(built, loss)
                updates = [finite, *_delayed_until(finite, built, updates, graph)]
            updated = tf.group(*updates, name="done")
        with tf.control_dependencies([updated]):
            counted = _default_step(graph, built) if isinstance(global_step, str) else global_step
            applied = _applied(optimizer, gradients, counted)
        if return_loss:
            with tf.control_dependencies([applied, updated]):
                step = tf.identity(loss, name=name)
        else:
            step = tf.group(applied, updated, name=name)
        if not SWITCHES.isdisjoint(built.ops):
            _refuse_conditional_updates(graph, build(graph), [step])
        tf.add_to_collection(tf.GraphKeys.TRAIN_OP, step)
        return step


def check_train_op(train_op: _Op | str | Sequence[_Op | str], *, graph: tf.Graph | None = None) -> None:
    """Raises if running `train_op` trains through batch norm layers whose update ops it doesn't run.

    Looked at is every op of the graph that would move a moving statistic by what a batch says, in whatever collection
    it is or in none. If the forward pass that it takes the batch's statistics from is part of `train_op`, then
    `train_op` must assign that statistic. Updates in place do, being dependencies of the output. Not complained of are
    layers of which `train_op` runs nothing, or only an inference copy, and layers that have no update op at all.

    Args:
        train_op: an op or tensor (or name of one), or several, which together run all updates: a GAN's discriminator
            is part of the generator's step too, and its own step moves its statistics.
        graph: whose ops are named by strings; the default graph if None.

    Raises:
        DetachedUpdatesError: names the layers (variable scopes) whose moving statistics stay as they are.
        ConditionalUpdatesError: gradients are applied outside of a branch, or a loop's body, and wait for update ops inside.
        ValueError: the graph has no op of that name.

    Example:
        >>> import bn_graph
        >>> from bn_graph.training import train_op
        >>> from bn_graph.tf1 import tf
        >>> with tf.Graph().as_default():
        ...     x, collection = tf.constant([[2.0], [6.0]]), tf.GraphKeys.UPDATE_OPS
        ...     y = bn_graph.batch_norm_wrapper(x, True, updates_collection=collection, name="bn1")
        ...     step = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(y))
        ...     try:
        ...         train_op.check_train_op(step)
        ...     except train_op.DetachedUpdatesError as error:
        ...         print(str(error).split(".")[0])
        The train op runs these layers on a batch and not their update ops: bn1
    """
    ops = [train_op] if isinstance(train_op, str) or hasattr(train_op, "name") else list(train_op)
    graph = graph or next((op.graph for op in ops if not isinstance(op, str)), tf.get_default_graph())
    built = build(graph)
    missed = _missed(graph, built, ops, effects.variables_written(built, ops))
    if missed:
        raise DetachedUpdatesError(
            f"The train op runs these layers on a batch and not their update ops: {_layers(missed)}. Their moving "
            "statistics stay as they are, and prediction will be wrong. Make the train op with "
            "bn_graph.train_op, or under tf.control_dependencies(update_ops)."
        )
    _refuse_conditional_updates(graph, built, ops)


def _default_step(graph: tf.Graph, built: Graph) -> tf.Variable | None:
    """The graph's global step, unless something increments it already."""
    steps = graph.get_collection(tf.GraphKeys.GLOBAL_STEP)
    if len(steps) != 1:
        return None
    assigns = targets(built).get(built.ids.get(steps[0].op.name), ())
    return None if any("Add" in built.ops[node] for node in assigns) else steps[0]


def _is_of_keras(optimizer: object) -> bool:
    """Whether `optimizer` is a legacy Keras one, and not of tf.train; raises if it is neither."""
    compute = getattr(optimizer, "compute_gradients", None)
    if compute is not None and "tape" not in inspect.signature(compute).parameters:
        return False
    if compute is None and hasattr(optimizer, "get_gradients") and hasattr(optimizer, "apply_gradients"):
        return True
    raise TypeError(
        "optimizer must be of tf.train or of tf.keras.optimizers.legacy, got "
        f"{type(optimizer).__module__}.{type(optimizer).__qualname__}, which can't train a graph's loss tensor."
    )


def _gradients(optimizer: tf.train.Optimizer, loss: tf.Tensor, var_list: Sequence[tf.Variable] | None) -> _Pairs:
    if not _is_of_keras(optimizer):
        return optimizer.compute_gradients(loss, var_list=var_list)
    variables = loss.graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES) if var_list is None else list(var_list)
    ref = [variable.op.name for variable in variables if is_ref_variable(variable)]
    if ref:
        raise TypeError(
            f"A Keras optimizer trains resource variables, and these are ref variables: {', '.join(ref)}. Call "
            "tf.enable_resource_variables() before the network is built, or take an optimizer of tf.train."
        )
    return list(zip(tf.gradients(loss, variables), variables, strict=True))


def _transformed(pairs: _Pairs, transform: Callable[..., Sequence[_Gradient]]) -> _Pairs:
    """The pairs that have a gradient, with what `transform` makes of it."""
    known = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    if not known:
        return pairs  # which the optimizer refuses
    gradients, variables = map(list, zip(*known, strict=True))
    returned = list(transform(gradients, variables))
    if len(returned) != len(variables) or any(isinstance(each, list | tuple) for each in returned):
        raise ValueError(
            f"transform_gradients must return a list of {len(variables)} gradients, one for each variable in their order, "
            f"got {returned}. (tf.clip_by_global_norm returns the list and the norm: take its [0].)"
        )
    return list(zip(returned, variables, strict=True))


def _applied(optimizer: tf.train.Optimizer, pairs: _Pairs, global_step: tf.Variable | None) -> tf.Operation:
    if not _is_of_keras(optimizer):
        return optimizer.apply_gradients(pairs, global_step=global_step)
    applied = optimizer.apply_gradients(pairs)
    if global_step is None:
        return applied
    with tf.control_dependencies([applied]):
        return tf.assign_add(global_step, 1).op


def _op(entry: _Op | tf.Variable) -> tf.Operation:
    return entry if isinstance(entry, tf.Operation) else entry.op


def _path(scope: _Scope) -> str:
    return (scope if isinstance(scope, str) else scope.name).strip("/")


def _paths(scope: _Scope | Sequence[_Scope], built: Graph) -> list[str]:
    """The scopes' paths; of a layer object, the names of its variables."""
    scopes = [scope] if isinstance(scope, str) or hasattr(scope, "name") else scope
    names = effects.variables(built)
    paths = []
    for each in scopes:
        if hasattr(each, "variables"):
            paths += [variable.op.name for variable in each.variables]
        else:
            _check_known(_path(each), names, "variable", "scope")
            paths.append(_path(each))
    return paths


def _lies_in(name: str, paths: Sequence[str]) -> bool:
    return any(path == "" or f"{name}/".startswith(f"{path}/") for path in paths)


def _check_known(path: str, names: Iterable[str], kind: str, what: str) -> None:
    names = list(names)
    if any(_lies_in(name, [_path(path)]) for name in names):
        return
    scopes = sorted({name[: place.start()] for name in names for place in re.finditer("/", name)})
    near = difflib.get_close_matches(path, scopes, n=5, cutoff=0.5) or scopes[:5]
    there = f"There are: {', '.join(map(repr, sorted(near)))}." if near else "There are no scopes at all."
    raise ValueError(f"No {kind} of the graph lies in the {what} {path!r}. {there}")


def _warn_of_left_out(
    graph: tf.Graph,
    built: Graph,
    loss: tf.Tensor,
    updates: Sequence[_Op],
    scope: _Scope | Sequence[_Scope] | None,
    var_list: Sequence[tf.Variable] | None,
) -> None:
    missed = _missed(graph, built, [loss.op], effects.variables_written(built, [loss.op, *map(_op, updates)]))
    if scope is not None:
        paths = _paths(scope, built)
        missed = [name for name in missed if _lies_in(name, paths)]
    if var_list is not None:
        trained = {_layer(variable.op.name) for variable in var_list}
        trainable = {_layer(variable.op.name) for variable in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)}
        missed = [name for name in missed if _layer(name) in trained or _layer(name) not in trainable]
    if missed:
        warnings.warn(
            f"The train op will not run the update ops of layers that the loss goes through: {_layers(missed)}. "
            "Their moving statistics stay as they are, and prediction will be wrong. Leave out scope= and update_ops=, or "
            "include these layers' update ops in them; if it is meant so, build the layers with update_statistics=False.",
            UserWarning,
            stacklevel=3,
        )


_REMEDY = "Build the layers there with updates_collection=None, or make the train op there too."


def _refuse_other_graphs(graph: tf.Graph, updates: Sequence[_Op]) -> None:
    """A branch of control flow v2 is a graph of its own that shares the collections of the graph around it."""
    inside = [f"{_op(entry).name} (in {entry.graph.name})" for entry in updates if entry.graph is not graph]
    if inside:
        raise ConditionalUpdatesError(
            f"These update ops are in a branch of a tf.cond, or the body of a tf.while_loop, and no train op outside can "
            f"run them: {', '.join(inside)}. {_REMEDY}"
        )


def _refuse_conditional_updates(graph: tf.Graph, built: Graph, ops: Sequence[_Op | str]) -> None:
    """Refuses what gradients wait for in branches of control flow v1."""
    users = uses(built)
    nodes = [node_named(built, getattr(op, "name", op)) for op in ops]
    layers = find_layers(built, users, find_normalizations(built, users))
    trainable = {variable.op.name for variable in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)}
    found = find_conditional_updates(built, layers, find_training(built, users, trainable, nodes))
    if found:
        places = dict.fromkeys(f"{each.layer} (in {each.where(built)})" for each in found)
        consequence = (
            "every step raises" if found[0].in_loop else "a step that does not take that branch trains nothing"
        )
        raise ConditionalUpdatesError(
            f"The train op waits for update ops of layers in branches: {', '.join(places)}. So {consequence}. {_REMEDY}"
        )


def _checked(built: Graph, loss: tf.Tensor) -> tf.Operation:
    """The op that fails if `loss` is not finite."""
    written = sorted(effects.variables_written(built, [loss.op]))
    if written:
        raise ValueError(
            f"check_numerics can't delay what is assigned before the loss is known: {', '.join(written)}. Give the "
            "layers updates_collection=tf.GraphKeys.UPDATE_OPS instead of updates in place."
        )
    return tf.debugging.check_numerics(
        loss, f"The loss {loss.name} is not finite; nothing was updated", name="finite"
    ).op


def _delayed_until(check: tf.Operation, built: Graph, updates: Sequence[_Op], graph: tf.Graph) -> list[tf.Operation]:
    """`updates`, of which every assign waits for `check`.

    An op that exists can't be given a control input, so the assigns are copied, and what depends on them with them.
    (Adding one to the user's own ops would also make them wait for this loss wherever else they are run.)
    """
    updates = [_op(update) for update in updates]
    writers = effects.writers(built, updates)
    running = effects.upstream(built, updates)
    copies: dict[tf.Operation, tf.Operation] = {}
    for op in (op for op in graph.get_operations() if op.name in running):  # in the order of creation: inputs first
        sources = {tensor.op for tensor in op.inputs} | set(op.control_inputs)
        if op.name in writers or sources & copies.keys():
            if op.type in ("Enter", "RefEnter", "NextIteration", "RefNextIteration", "Exit", "RefExit"):
                raise ValueError(f"check_numerics can't delay an update in a while loop: {op.name}.")
            copies[op] = _copy(op, copies, [check] if op.name in writers else [])
    return [copies.get(op, op) for op in updates]


def _copy(op: tf.Operation, copies: dict[tf.Operation, tf.Operation], also: Sequence[tf.Operation]) -> tf.Operation:
    """A copy of `op` that takes the copies of its inputs where there are any, and waits for the ops in `also`."""
    inputs = [copies[x.op].outputs[x.value_index] if x.op in copies else x for x in op.inputs]
    attributes = {key: value for key, value in op.node_def.attr.items() if key != "_class"}
    with tf.control_dependencies([*(copies.get(x, x) for x in op.control_inputs), *also]), tf.device(op.device):
        return op.graph.create_op(op.type, inputs, [x.dtype for x in op.outputs], name=op.name, attrs=attributes)


def _layer(variable: str) -> str:
    """The layer that a variable belongs to: the scope it is in, or itself if it is in none.

    The shadow of an average and the like are variables *under* the name of the statistic that they belong to.
    """
    parts = variable.split("/")
    while len(parts) > 1 and parts[-1] in ("ExponentialMovingAverage", "biased", "local_step"):
        parts.pop()
    return "/".join(parts[:-1]) or variable


def _layers(variables: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(map(_layer, variables)))


def _missed(graph: tf.Graph, built: Graph, ops: Sequence[_Op | str], written: set[str]) -> list[str]:
    """The statistics that should average a batch statistic which `ops` computes, and that are not in `written`."""
    statistics = dict.fromkeys(variable.op.name for variable in moving_statistics(graph))
    for entry in graph.get_collection(tf.GraphKeys.UPDATE_OPS):
        if entry.graph is graph:
            statistics |= dict.fromkeys(effects.assigned_by(built, _op(entry)))
    candidates = {built.ids[name] for name in statistics if name not in written}
    if not candidates:
        return []
    running = effects.running(built, ops)
    places = find_normalizations(built, uses(built))
    batch = {s.statistic.ref: s.statistic.kind for place in places for s in place.sources() if s.statistic is not None}
    updates = find_updates(built, targets(built), batch, candidates)
    missed = {update.variable for update in updates if any(node in running for node, _ in update.statistics)}
    return [name for name in statistics if built.ids[name] in missed & candidates]
