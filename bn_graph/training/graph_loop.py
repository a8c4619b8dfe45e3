"""Whole training steps inside the graph: a chunk of steps is one ``session.run`` of a ``tf.while_loop``.

The examples lie in the session; what is fed is the row numbers of a chunk's batches. The body of the loop is a copy of
the network's own train op (`bn_graph.training.step_copy`), so the loop computes what the reference loop (`train`)
computes, with the same kernels in the same order. Several networks are trained at once, each in a loop of its own: on
two cores two of them take the time of one.

What is measured against the reference after 1,000 steps stands in tests/training/test_graph_loop.py: weights, slots and
moving statistics are equal bit for bit.
"""

import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from bn_graph.graphs import effects
from bn_graph.graphs.graph import Graph, build
from bn_graph.tf1 import tf
from bn_graph.training import datasets
from bn_graph.training.loops import Step, checked_rows, refuse_counting_twice, saving, step_of
from bn_graph.training.networks import Network
from bn_graph.training.step_copy import calls_functions, chooses, copy_step, decided_step

__all__ = ["LONGEST_CHUNK", "chunks", "graph_loop", "train_in_graph"]

LONGEST_CHUNK = 500
"""Steps that a chunk has at most: Ctrl-C and the progress bar wait for its end, and no time is gained by longer ones."""

_HELD: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Session → the arrays that it holds, each with its variable."""

RESIDENT = "bn_graph_resident_data"
"""Collection of the variables that hold the examples. They are in no other, so no Saver and no initializer has them."""


def graph_loop(
    session: tf.Session,
    steps: Step | Sequence[Step],
    split: datasets.Split,
    *,
    batch_size: int,
    seed: int,
    global_step: tf.Variable | None = None,
    compiled: bool = False,
) -> Callable[..., list[list[np.ndarray]]]:
    """Builds the loop and puts the examples into the session; gives the function that trains from one step to another.

    Args:
        session: of the networks' graph, not finalized. Variables may be initialized or restored before or after; as
            many networks are trained at the same time as its inter-op pool has threads (``session_config(networks=2)``).
        steps: of each network. Each step gets the same batch; what one network assigns no other may touch.
        split: the training examples. The session holds a copy of them until it is closed, one for all loops over the
            same arrays.
        batch_size: examples a step; the last, ragged batch of an epoch is dropped.
        seed: of the order of the batches.
        global_step: a variable that the train ops leave alone and that is to count steps: the loop adds to it what it
            has trained. (A train op that counts by itself needs nothing here.)
        compiled: whether XLA compiles each network's loop, once for all chunks of up to `LONGEST_CHUNK` steps, and once
            for each length beyond (seconds). That is up to twice as fast for small networks, and the numbers are no
            longer the reference loop's bits, since fused kernels round otherwise: after 1,000 steps on MNIST losses were
            within 3·10⁻⁶ and weights within 1.5·10⁻⁵ of their largest (the solver network, Adam), or both within 2·10⁻⁶
            (r2rt's). Convolutions are slow so: XLA has no fast kernel for them in a loop on a CPU (two on 32 images of
            28×28: 80 ms a step for 4.5; JAX's scan 76).

    Returns:
        ``advance(start, stop)``: trains the steps from `start` to before `stop`, counted from 0, in one
        ``session.run``, and returns for each of `steps` the list of its `recorded` tensors' values, stacked
        ``[stop − start, …]``. Any start will do: the batches depend on seed and step alone. Or they are given:
        ``advance(start, stop, rows)``, integers ``[stop − start, batch_size]``, each the number of an example in `split`.

    Variables: the examples and labels, outside of all of TensorFlow's collections (no checkpoint holds them).

    The graph holds the loop from then on, and with it a second copy of each step. To export or audit a meta graph, take
    it from before, or build the network anew.

    Raises:
        ValueError: `batch_size` is not from 1 to ``split.size``; `seed` is negative; a train op needs a placeholder
            without a value; a variable is a ref variable; a train op counts in `global_step` too; two steps share
            a variable that one of them assigns; or a step is to be compiled that has a ``tf.cond`` whose predicate
            `Step.constants` doesn't decide, or a ``tf.while_loop``. And from ``advance``, if rows of another shape are
            given.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> digits = bn_graph.load("digits")
        >>> with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        ...     model = bn_graph.Model("model", 64, 10, seed=0)
        ...     session.run(tf.global_variables_initializer())
        ...     step = bn_graph.step_of(model, record_loss=True)
        ...     advance = bn_graph.graph_loop(session, step, digits.train, batch_size=32, seed=0)
        ...     ((losses,),) = advance(0, 200)
        ...     losses.shape, bool(losses[-1] < 0.5 * losses[0])
        ((200,), True)
    """
    steps = [steps] if isinstance(steps, Step) else list(steps)
    datasets.batch_rows(split.size, batch_size, seed=seed)  # says what is wrong with its arguments, before all else
    built = build(session.graph)
    refuse_counting_twice(built, steps, global_step)
    _refuse_shared(built, steps)
    make_loop = _compiled_loop if compiled else _loop
    with session.graph.as_default(), tf.name_scope("graph_loop"), tf.control_dependencies(None):
        resident = [_resident(session, values) for values in (split.images, split.labels)]
        rows = tf.placeholder(tf.int32, [None, batch_size], name="rows")
        count = tf.placeholder(tf.int32, [], name="count")  # of rows that are trained
        recorded = [make_loop(step, rows, count, resident) for step in steps]
        with tf.control_dependencies([tensor for each in recorded for tensor in each]):
            counted = None if global_step is None else tf.cast(count, global_step.dtype.base_dtype)
            finished = tf.no_op() if global_step is None else global_step.assign_add(counted).op
    batches = _Batches(split.size, batch_size, seed)

    def advance(start: int, stop: int, given: np.ndarray | None = None) -> list[list[np.ndarray]]:
        chosen = batches.rows(start, stop) if given is None else checked_rows(given, [stop - start, batch_size])
        if compiled and len(chosen) < LONGEST_CHUNK:  # all shorter chunks have one shape, and one compilation
            chosen = np.pad(chosen, [(0, LONGEST_CHUNK - len(chosen)), (0, 0)])
        values, _ = session.run((recorded, finished), {rows: chosen, count: stop - start})
        return [[series[: stop - start] for series in each[1:]] for each in values]

    return advance


def chunks(
    start: int, stop: int, *, pause_after: Callable[[int], bool] | None = None, longest: int = LONGEST_CHUNK
) -> Iterator[range]:
    """Cuts the steps from `start` to before `stop` into runs of `graph_loop`, without a pause inside any of them.

    Args:
        start, stop: steps, counted from 0.
        pause_after: whether something is to be done when so many steps have been taken in all: an evaluation, a
            summary, a checkpoint. None for never.
        longest: steps a chunk at most.

    Returns:
        Iterator of ranges, each of one step at least, one after the other.

    Example:
        >>> from bn_graph.training import chunks
        >>> list(chunks(0, 120, pause_after=lambda finished: finished % 50 == 1))
        [range(0, 1), range(1, 51), range(51, 101), range(101, 120)]
    """
    first = start
    for finished in range(start + 1, stop + 1):
        if finished == stop or finished - first == longest or (pause_after is not None and pause_after(finished)):
            yield range(first, finished)
            first = finished


def train_in_graph(
    session: tf.Session,
    network: Network,
    split: datasets.Split,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    directory: str | os.PathLike | None = None,
    checkpoint_every: int = 1000,
    progress: Callable[[range], Iterable[int]] = iter,
) -> None:
    """`bn_graph.train` with the steps inside the graph: same arguments, same batches, same checkpoints, same numbers.

    Args:
        session, network, split, steps, batch_size, seed, directory, checkpoint_every, progress: as for `train`.
            The progress moves by chunks.

    Raises:
        CheckpointError: a checkpoint can't be written.
        ValueError: as for `graph_loop`.

    Source: r2rt, *Training the network*.

    Example:
        >>> import bn_graph
        >>> from bn_graph.tf1 import tf
        >>> digits = bn_graph.load("digits")
        >>> with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        ...     network = bn_graph.build_graph(True, bn_graph.normal_weights([64, 100, 100, 10], seed=0))
        ...     bn_graph.resume(session, None)
        ...     bn_graph.train_in_graph(session, network, digits.train, steps=30, batch_size=60, seed=0)
        ...     int(session.run(network.global_step))
        30
    """
    done = int(session.run(network.global_step))
    if done >= steps:
        return
    save_if_due = saving(session, directory, steps=steps, every=checkpoint_every)
    advance = graph_loop(session, step_of(network), split, batch_size=batch_size, seed=seed)
    stops = {
        chunk.start: chunk.stop
        for chunk in chunks(done, steps, pause_after=lambda finished: finished % checkpoint_every == 0)
    }
    for step in progress(range(done, steps)):
        if step not in stops:
            continue  # trained with the chunk that it is in
        advance(step, stops[step])
        save_if_due(stops[step])


class _Batches:
    """The row numbers of any run of steps; cheap where one run follows on the other."""

    def __init__(self, size: int, batch_size: int, seed: int):
        self._arguments = {"size": size, "batch_size": batch_size, "seed": seed}
        self._next = -1
        self._rows: Iterator[np.ndarray] = iter(())

    def rows(self, start: int, stop: int) -> np.ndarray:
        """int32 [stop − start, batch_size]."""
        if start != self._next:
            self._rows = datasets.batch_rows(**self._arguments, start=start)
        self._next = stop
        return np.array(list(itertools.islice(self._rows, stop - start)), np.int32)


def _refuse_shared(built: Graph, steps: Sequence[Step]) -> None:
    """Two loops run side by side, so what one assigns the other must not touch."""
    fetched = [[step.train_op.name, *(tensor.name for tensor in step.recorded)] for step in steps]
    touched = [effects.variables_read(built, names) for names in fetched]
    written = [effects.variables_written(built, names) for names in fetched]
    for one, other in itertools.permutations(range(len(steps)), 2):
        both = sorted(written[one] & (touched[other] | written[other]))
        if both:
            raise ValueError(
                f"The train ops {steps[one].train_op.name} and {steps[other].train_op.name} are to be run side by side, "
                f"and both use {both[0]}, which the first assigns: group them into one train op (tf.group), give each "
                "its own, or count steps with graph_loop's global_step instead."
            )


def _resident(session: tf.Session, values: np.ndarray) -> tf.Variable:
    """A variable of the session that holds `values`, and no constant in the graph that does."""
    held = _HELD.setdefault(session, [])
    for array, variable in held:
        if array is values:
            return variable
    initial = tf.placeholder(values.dtype, values.shape)
    variable = tf.Variable(initial, trainable=False, collections=[RESIDENT], use_resource=True, name="resident")
    session.run(variable.initializer, {initial: values})
    held.append((values, variable))
    return variable


def _loop(step: Step, rows: tf.Tensor, count: tf.Tensor, resident: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """One network's loop over the first `count` rows; its count of steps, and the values recorded."""
    # Where the shapes are known, TensorFlow works with them once and not at every step. In the functions of a cond v2 it
    # would go on to round otherwise than the reference loop does (`copy_step` prevents that outside of functions).
    static = not calls_functions([step.train_op, *step.recorded])
    series = [
        tf.TensorArray(tensor.dtype, size=tf.shape(rows)[0], element_shape=tensor.shape, clear_after_read=False)
        for tensor in step.recorded
    ]

    def body(number: tf.Tensor, *recorded: tf.TensorArray) -> list[tf.Tensor | tf.TensorArray]:
        chosen = tf.gather(rows, number)
        fed = {
            placeholder.name: tf.convert_to_tensor(value, placeholder.dtype)
            for placeholder, value in step.constants.items()
        }
        batch = [_batch(variable, chosen, static) for variable in resident]
        fed |= {step.images.name: batch[0], step.labels.name: batch[1]}
        done, *values = copy_step([step.train_op, *step.recorded], fed, "step", variables_of=resident[0].graph)
        # The next step begins when this one has assigned all that it assigns.
        with tf.control_dependencies([done]):
            return [number + 1, *(each.write(number, value) for each, value in zip(recorded, values, strict=True))]

    number, *series = tf.while_loop(
        lambda number, *_: number < count,
        body,
        [tf.constant(0), *series],
        parallel_iterations=1,
        back_prop=False,
        return_same_structure=True,
    )
    return [number, *(each.stack() for each in series)]


def _compiled_loop(step: Step, rows: tf.Tensor, count: tf.Tensor, resident: Sequence[tf.Variable]) -> list[tf.Tensor]:
    if chooses([step.train_op, *step.recorded]):
        flags = {
            flag.op.name: bool(value) for flag, value in step.constants.items() if isinstance(value, bool | np.bool_)
        }
        train_op, *recorded = decided_step([step.train_op, *step.recorded], flags)
        if chooses([train_op, *recorded]):
            raise ValueError(
                f"The train op {step.train_op.name} has a tf.cond or a tf.while_loop that the Step's `constants` don't "
                "decide, and XLA can't compile its gradients: give its predicate as a Python bool, or leave `compiled` out."
            )
        step = step._replace(train_op=train_op, recorded=recorded)
    loop = tf.function(lambda rows, count: _loop(step, rows, count, resident), jit_compile=True, autograph=False)
    return list(loop(rows, count))


def _batch(resident: tf.Variable, chosen: tf.Tensor, static: bool) -> tf.Tensor:
    if not static:
        chosen = tf.placeholder_with_default(chosen, [None])
    examples = tf.raw_ops.ResourceGather(resource=resident.handle, indices=chosen, dtype=resident.dtype)
    return tf.reshape(examples, [chosen.shape[0], *resident.shape[1:]]) if static else examples
