"""What the zoo's cases are made with: a registry, tiny networks, and a run that measures what the labels claim.

A case is a function that builds a graph in the way people do, trains it for a few steps and saves it. `finish` does the
running and, while the session is open, measures what is true of the graph: which statistics training moves, whether an
output depends on the rest of the batch, whether running it moves statistics. The tests hold the labels against that.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bn_graph.tf1 import tf

__all__ = [
    "CASES",
    "CONDS",
    "UPDATES",
    "VARIABLES",
    "Built",
    "Case",
    "Facts",
    "build",
    "case",
    "conv",
    "dense",
    "feeds",
    "finish",
    "mode_placeholder",
    "network",
    "register",
    "session",
    "switches",
    "train_with_updates",
]

UPDATES = tf.GraphKeys.UPDATE_OPS
VARIABLES, CONDS = ("ref", "resource"), ("v1", "v2")
_STATISTICS = re.compile(r"moving_|pop_|running_|/ExponentialMovingAverage|(^|/)(mean|variance|var|mu|sigma2?)$")
_WEIGHT = re.compile(r"(^|/)(gamma|beta|scale|offset)$")
_CONFIG = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
_CONFIG.graph_options.rewrite_options.disable_meta_optimizer = True  # these graphs run a handful of times


class Facts(NamedTuple):
    """What running the graph showed; None where it was not asked.

    Attributes:
        moved: statistics that a run of the train ops changes, of `statistics`.
        statistics: names of all variables that hold statistics.
        initial: statistics whose value in the checkpoint is the one they started with.
        trained: gammas and betas whose value in the checkpoint is another than the one they started with.
        unsaved: statistics that are not in the checkpoint.
        by_batch: whether an output's first row changes with the other rows of the batch.
        output_moves: statistics that running an output changes.
    """

    moved: frozenset[str]
    statistics: frozenset[str]
    initial: frozenset[str]
    trained: frozenset[str]
    unsaved: frozenset[str]
    by_batch: bool | None = None
    output_moves: frozenset[str] | None = None


class Built(NamedTuple):
    """What a case gives to the audit, and what is known of it."""

    subject: Path | tf.Graph
    facts: Facts | None = None
    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)


class Case(NamedTuple):
    """A graph and the findings that must come out.

    Attributes:
        name: of the case.
        make: builds it in a directory, in a fresh default graph.
        errors: the codes at error level, all of them.
        must: codes that must be reported at whatever level (warning, advice).
        undetermined: codes that must be among what can't be told.
        silent: codes that must not be reported at any level.
        allowed: codes at error level that may be reported or not: the rule's words admit both.
        layers: how many layers there are, where that is the point; None if not asked.
        not_understood: how many statistics, functions and engines must be listed as not understood.
        columns: attributes of the layers' rows that every row must have.
        still: whether statistics that training leaves alone are intended in this case.
        variables, cond: kind of variable and of cond.
    """

    name: str
    make: Callable[[Path], Built]
    errors: frozenset[str] = frozenset()
    must: frozenset[str] = frozenset()
    undetermined: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()
    layers: int | None = None
    not_understood: int = 0
    columns: tuple[tuple[str, str], ...] = ()
    still: bool = False
    variables: str = "ref"
    cond: str = "v1"


CASES: dict[str, Case] = {}


def register(name: str, make: Callable[[Path], Built], errors: str = "", **labels) -> None:
    """Adds a case. Codes are given as words in a string."""
    for key in ("must", "undetermined", "silent", "allowed"):
        labels[key] = frozenset(labels.get(key, "").split())
    if name in CASES:
        raise ValueError(f"There are two cases named {name!r}.")
    labels["columns"] = tuple(sorted(labels.get("columns", {}).items()))
    CASES[name] = Case(name, make, frozenset(errors.split()), **labels)


def case(errors: str = "", **labels) -> Callable:
    """Registers a function as a case, under its own name."""

    def decorate(make: Callable[[Path], Built]) -> Callable[[Path], Built]:
        register(make.__name__, make, errors, **labels)
        return make

    return decorate


def build(case: Case, at: Path) -> Built:
    """Builds a case in the directory `at`."""
    with switches(case.variables, case.cond), tf.Graph().as_default():
        tf.set_random_seed(0)
        return case.make(at)


@contextlib.contextmanager
def switches(variables: str, cond: str) -> Iterator[None]:
    """TensorFlow's process-wide switches for the kinds of variable and cond, put back whatever happens."""
    resource, v2 = tf.resource_variables_enabled(), tf.control_flow_v2_enabled()
    try:
        _switch(variables == "resource", cond == "v2")
        yield
    finally:
        _switch(resource, v2)


def _switch(resource: bool, cond_v2: bool) -> None:
    (tf.enable_resource_variables if resource else tf.disable_resource_variables)()
    (tf.enable_control_flow_v2 if cond_v2 else tf.disable_control_flow_v2)()


# ---------------------------------------------------------------------------------------------- tiny networks


def mode_placeholder(kind: str = "fed") -> tf.Tensor:
    """The usual ways to ask for training: a placeholder that must be fed, or one with a default."""
    if kind == "fed":
        return tf.placeholder(tf.bool, [], name="is_training")
    return tf.placeholder_with_default(kind == "default_true", [], name="is_training")


def dense(x: tf.Tensor, units: int, name: str, *, bias: bool = False) -> tf.Tensor:
    """A dense layer, without bias unless asked."""
    with tf.variable_scope(name, reuse=tf.AUTO_REUSE):
        w = tf.get_variable("w", [x.shape.as_list()[-1], units], initializer=tf.random_normal_initializer(seed=1))
        out = tf.matmul(x, w)
        return out + tf.get_variable("b", [units], initializer=tf.zeros_initializer()) if bias else out


def conv(x: tf.Tensor, filters: int, name: str, data_format: str = "NHWC") -> tf.Tensor:
    """A 1×1 convolution without bias."""
    with tf.variable_scope(name, reuse=tf.AUTO_REUSE):
        depth = x.shape.as_list()[1 if data_format == "NCHW" else -1]
        w = tf.get_variable("w", [1, 1, depth, filters], initializer=tf.random_normal_initializer(seed=1))
        return tf.nn.conv2d(x, w, strides=[1, 1, 1, 1], padding="SAME", data_format=data_format)


class Network(NamedTuple):
    """A classifier with one layer to be judged: its inputs, logits, loss and the prediction beside the loss."""

    x: tf.Tensor
    logits: tf.Tensor
    loss: tf.Tensor
    prediction: tf.Tensor


def network(norm: Callable[[tf.Tensor], tf.Tensor], *, rank: int = 2, data_format: str = "NHWC") -> Network:
    """Inputs → linear layer → `norm` → relu → logits → cross entropy."""
    if rank == 2:
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        hidden = tf.nn.relu(norm(dense(x, 3, "hidden")))
    else:
        shape = [None, 3, 2, 2] if data_format == "NCHW" else [None, 2, 2, 3]
        x = tf.placeholder(tf.float32, shape, name="x")
        hidden = tf.nn.relu(norm(conv(x, 3, "hidden", data_format)))
        hidden = tf.reduce_mean(hidden, [2, 3] if data_format == "NCHW" else [1, 2])
    return head(x, hidden)


def head(x: tf.Tensor, hidden: tf.Tensor) -> Network:
    """The logits and the loss on top of `hidden`."""
    labels = tf.placeholder(tf.int32, [None], name="labels")
    logits = dense(hidden, 2, "logits", bias=True)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return Network(x, logits, tf.reduce_mean(losses, name="loss"), tf.nn.softmax(logits, name="prediction"))


def train_with_updates(loss: tf.Tensor, **minimize) -> tf.Operation:
    """The train op as the documentation has it."""
    with tf.control_dependencies(tf.get_collection(UPDATES)):
        return tf.train.GradientDescentOptimizer(0.1).minimize(loss, **minimize)


# ---------------------------------------------------------------------------------------------- running


def session() -> tf.Session:
    """A session with one thread."""
    return tf.Session(config=_CONFIG)


def feeds(training: bool, seed: int = 0) -> dict[tf.Tensor, np.ndarray]:
    """Random values for the placeholders of the default graph that have no default, and the mode for all modes."""
    random = np.random.RandomState(seed)
    fed = {}
    for op in tf.get_default_graph().get_operations():
        value = op.outputs[0] if op.type in ("Placeholder", "PlaceholderWithDefault") else None
        if value is None or (op.type == "PlaceholderWithDefault" and value.dtype != tf.bool):
            continue
        if value.dtype == tf.bool:
            fed[value] = training
        elif value.dtype.is_floating:
            fed[value] = random.normal(1, 2, _static(value)).astype(value.dtype.as_numpy_dtype)
        elif value.dtype.is_integer:
            fed[value] = random.randint(0, 2, _static(value))
    return fed


def _static(value: tf.Tensor) -> list[int]:
    return [4 if size is None else size for size in (value.shape.as_list() if value.shape.rank is not None else [])]


def finish(
    at: Path,
    *,
    train: Iterable = (),
    by_hand: Iterable = (),
    outputs: Iterable[tf.Tensor] = (),
    statistics: Iterable[str] | None = None,
    saver: tf.train.Saver | None = None,
    restore: Path | None = None,
    steps: int = 3,
    save: bool = True,
    subject: Path | None = None,
    audit_outputs: Iterable[str] = (),
    **options,
) -> Built:
    """Initializes (or restores), trains, saves, and measures.

    Args:
        at: directory to write ``model.ckpt`` to.
        train: train ops; each is run by itself, `steps` times, with the mode fed True.
        by_hand: ops that the training program runs beside them, without an edge in the graph.
        outputs: what inference fetches; the mode is fed False for them.
        statistics: names of the variables that hold statistics; found by their usual names if None.
        saver: one of all variables if None.
        restore: ``.meta`` file of a trained model to start from.
        steps: how many.
        save: whether there is to be a checkpoint.
        subject: what the audit shall be given; the ``.meta`` file if None.
        audit_outputs: names that the user of the audit gives as outputs.
        options: more of the audit's arguments.
    """
    saver = saver or (tf.train.Saver() if tf.global_variables() else None)
    names = _statistics(statistics)
    weights = [v for v in tf.trainable_variables() if _WEIGHT.search(v.op.name)]
    with session() as s:
        s.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        start, weights_at_start = s.run(names), s.run(weights)
        if restore:
            known = {name for name, _ in tf.train.list_variables(str(restore)[: -len(".meta")])}
            tf.train.Saver([v for v in tf.global_variables() if v.op.name in known]).restore(s, str(restore)[:-5])
        before = s.run(names)
        for step in range(steps):
            for op in train:
                s.run([op, *by_hand], feeds(training=True, seed=step))
        trained = s.run(names)
        prefix = None
        if saver and save:
            prefix = saver.save(s, str(at / "model.ckpt"))
        saved = {name for name, _ in tf.train.list_variables(prefix)} if prefix else set()
        facts = Facts(
            moved=_changed(names, before, trained),
            statistics=frozenset(names),
            initial=frozenset(names) - _changed(names, start, trained),
            trained=_changed([v.op.name for v in weights], weights_at_start, s.run(weights)),
            unsaved=frozenset(names) - saved if prefix else frozenset(),
            by_batch=any([_depends_on_batch(s, output) for output in outputs]) if outputs else None,
            output_moves=_moved_by(s, list(outputs), names) if outputs else None,
        )
    subject = subject or (Path(f"{prefix}.meta") if prefix else tf.get_default_graph())
    return Built(subject, facts, options | ({"outputs": tuple(audit_outputs)} if audit_outputs else {}))


def _statistics(names: Iterable[str] | None) -> dict[str, tf.Variable]:
    trainable = {v.op.name for v in tf.trainable_variables()}
    variables = {v.op.name: v for v in [*tf.global_variables(), *tf.local_variables()]}
    if names is not None:
        return {name: variables[name] for name in names}
    return {name: v for name, v in variables.items() if name not in trainable and _STATISTICS.search(name)}


def _changed(names: Iterable[str], before, after) -> frozenset[str]:
    if isinstance(before, dict):
        before, after = [before[name] for name in names], [after[name] for name in names]
    return frozenset(name for name, a, b in zip(names, before, after, strict=True) if not np.array_equal(a, b))


def _depends_on_batch(s: tf.Session, output: tf.Tensor) -> bool | None:
    """Whether the first row of `output` changes with the others; None where it doesn't repeat itself (dropout)."""
    one, other = feeds(training=False, seed=0), feeds(training=False, seed=1)
    for value, batch in other.items():
        if value.dtype.is_floating and np.ndim(batch):
            batch[0] = one[value][0]
    first = s.run(output, one)
    if not np.array_equal(first[0], s.run(output, one)[0]):
        return None
    return not np.allclose(first[0], s.run(output, other)[0], atol=1e-5)


def _moved_by(s: tf.Session, outputs: list[tf.Tensor], names: dict[str, tf.Variable]) -> frozenset[str]:
    before = s.run(names)
    s.run(outputs, feeds(training=False, seed=2))
    return _changed(names, before, s.run(names))
