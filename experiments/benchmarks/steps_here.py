"""Training steps of this project: the documents' loop, written as they have it, and the loop inside the graph."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments import bn_vs_plain
from experiments.benchmarks import tasks
from experiments.benchmarks.tasks import Task
from experiments.machinery.towers import Tower, build_tower

__all__ = [
    "compiled",
    "convolutions",
    "document",
    "document_of_several",
    "document_whole",
    "in_graph",
    "in_graph_of_several",
    "in_graph_whole",
    "next_batches",
    "products",
    "two_towers",
]


def next_batches(split: bn_graph.Split, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tutorial's ``next_batch``: each epoch a shuffled copy of all images, and each batch a slice of it."""
    steps = split.size // batch_size
    first = 0
    while True:
        order = np.concatenate([*_rows(split, batch_size, first, steps)])
        images, labels = split.images[order], split.labels[order]
        for start in range(0, len(order), batch_size):
            yield images[start : start + batch_size], labels[start : start + batch_size]
        first += steps


def _rows(split: bn_graph.Split, batch_size: int, first: int, steps: int) -> Iterator[np.ndarray]:
    rows = bn_graph.training.datasets.batch_rows(split.size, batch_size, seed=tasks.SEED, start=first)
    return (next(rows) for _ in range(steps))


class Built(NamedTuple):
    """One network: what a step fetches, the placeholders that it feeds, and the same for logits at inference."""

    step: list
    images: tf.Tensor
    labels: tf.Tensor
    switch: tf.Tensor | None
    inference_images: tf.Tensor
    logits: tf.Tensor


def document(threads: int, **task) -> dict[str, Callable]:
    """The documents' loop: ``next_batch``, a ``feed_dict``, one ``session.run`` a network and step."""
    task = tasks.made(task)
    split = tasks.data(task.examples)
    session = tf.Session(graph=tf.Graph(), config=bn_graph.session_config(threads))
    with session.graph.as_default():
        networks = [_BUILT[task.network](task, form) for form in task.forms]
        _initialize(session, task)
    batches = next_batches(split, task.batch)

    def run(count: int) -> None:
        for _ in range(count):
            images, labels = next(batches)
            for network in networks:
                session.run(network.step, _feed(network, images, labels))

    logits = partial(_logits, session, networks[0])
    return {"run": run, "check": lambda _: tasks.agreement(run, logits, split)}


def in_graph(threads: int, *, by_xla: bool = False, **task) -> dict[str, Callable]:
    """The loop in the graph, `bn_graph.graph_loop`, one ``session.run`` for all the steps it is asked for."""
    task = tasks.made(task)
    split = tasks.data(task.examples)
    session = tf.Session(graph=tf.Graph(), config=_config(threads, len(task.forms)))
    # The peers have no switch: the network is then built for training alone.
    build = (_BUILT | {"solver": _solver_without_switch} if by_xla else _BUILT)[task.network]
    with session.graph.as_default():
        networks = [build(task, form) for form in task.forms]
        _initialize(session, task)
        steps = [_step(network) for network in networks]
        options = {"batch_size": task.batch, "seed": tasks.SEED, "compiled": by_xla}
        advance = bn_graph.training.graph_loop(session, steps, split, **options)
    run = _advancing(advance)
    return {"run": run, "check": lambda _: tasks.agreement(run, partial(_logits, session, networks[0]), split)}


def compiled(threads: int, **task) -> dict[str, Callable]:
    """The loop in the graph, compiled."""
    return in_graph(threads, by_xla=True, **task)


def document_of_several(threads: int, networks: list[dict]) -> dict[str, Callable]:
    """`document` for several networks, of which ``run`` is asked for ``{"network": its place, "count": n}``."""
    return _several(document, threads, networks)


def in_graph_of_several(threads: int, networks: list[dict]) -> dict[str, Callable]:
    """`in_graph`, likewise."""
    return _several(in_graph, threads, networks)


def _several(loop: Callable, threads: int, networks: list[dict]) -> dict[str, Callable]:
    runs = [loop(threads, **network)["run"] for network in networks]
    return {"run": lambda asked: runs[asked["network"]](asked["count"])}


def _config(threads: int, networks: int) -> tf.ConfigProto:
    """Several networks share the threads among them; one has them all to itself."""
    return bn_graph.session_config(networks=threads) if networks > 1 else bn_graph.session_config(threads)


def _step(network: Built) -> bn_graph.training.Step:
    """What the document's loop runs and feeds, and what it fetches beside the train op."""
    train_op, *recorded = network.step
    constants = {} if network.switch is None else {network.switch: True}
    return bn_graph.training.Step(train_op, network.images, network.labels, constants, recorded)


def _advancing(advance: Callable[[int, int], object]) -> Callable[[int], None]:
    """From "these steps" to "so many more steps"."""
    starts = [0]

    def run(count: int) -> None:
        first, starts[0] = starts[0], starts[0] + count
        for chunk in bn_graph.training.chunks(first, first + count):
            advance(chunk.start, chunk.stop)

    return run


def _feed(network: Built, images: np.ndarray, labels: np.ndarray) -> dict:
    feed = {network.images: images, network.labels: labels}
    return feed if network.switch is None else feed | {network.switch: True}


def _logits(session: tf.Session, network: Built, images: np.ndarray) -> np.ndarray:
    feed = {network.inference_images: images}
    return session.run(network.logits, feed if network.switch is None else feed | {network.switch: False})


def _r2rt(task: Task, form: str) -> Built:
    layer = partial(bn_graph.batch_norm_wrapper, decay=task.decay, epsilon=tasks.EPSILON) if form == "with" else None
    weights = tasks.initial_weights(task)
    # Each network counts steps of its own: two that are trained side by side can't share a variable.
    tf.get_default_graph().clear_collection(tf.GraphKeys.GLOBAL_STEP)
    with tf.variable_scope(form):
        network = bn_graph.build_graph(True, weights, normalizer=layer, learning_rate=tasks.LEARNING_RATE)
    with tf.variable_scope(form, reuse=True):
        inference = bn_graph.build_graph(False, weights, normalizer=layer)
    return Built([network.train_op], network.x, network.y_, None, inference.x, inference.logits)


def _solver(task: Task, form: str) -> Built:
    hidden_layer = {
        "with": bn_graph.networks.normalized_layer,
        "without": bn_graph.networks.biased_layer,
    }[form]
    ends = (task.sizes[0], task.sizes[-1])
    model = bn_graph.Model(form, *ends, task.hidden, hidden_layer=hidden_layer, learning_rate=tasks.LEARNING_RATE)
    return Built([model.train_op, model.loss], model.x, model.y_, model.is_training, model.x, model.logits)


def _solver_without_switch(task: Task, form: str) -> Built:
    """`_solver`, trained by a graph with the Python bool True; a second one on the same variables is for inference."""
    hidden_layer = {
        "with": bn_graph.networks.normalized_layer,
        "without": bn_graph.networks.biased_layer,
    }[form]
    ends = (task.sizes[0], task.sizes[-1])

    def for_training(inputs, units, is_training, kernel_initializer):
        del is_training  # the placeholder
        return hidden_layer(inputs, units, True, kernel_initializer)

    options = {"learning_rate": tasks.LEARNING_RATE}
    model = bn_graph.Model(form, *ends, task.hidden, hidden_layer=for_training, **options)
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        other = bn_graph.Model(form, *ends, task.hidden, hidden_layer=hidden_layer, **options)
    return Built([model.train_op, model.loss], model.x, model.y_, other.is_training, other.x, other.logits)


def _images(task: Task, form: str) -> Built:
    with tf.variable_scope(form):
        x, logits = _image_logits(task, is_training=True)
        y_ = tf.placeholder(tf.float32, [None, tasks.CLASSES])
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=y_, logits=logits))
        train_op = bn_graph.train_op(tf.train.AdamOptimizer(tasks.LEARNING_RATE), loss)
    with tf.variable_scope(form, reuse=True):
        inference_x, inference_logits = _image_logits(task, is_training=False)
    return Built([train_op, loss], x, y_, None, inference_x, inference_logits)


def _image_logits(task: Task, is_training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    x = tf.placeholder(tf.float32, [None, tasks.INPUTS])
    layer, (*kernels, last) = tf.reshape(x, [-1, tasks.SIDE, tasks.SIDE, 1]), tasks.initial_weights(task)
    for number, initial in enumerate(kernels):
        kernel = tf.get_variable(f"kernel{number}", initializer=initial)
        layer = tf.nn.conv2d(layer, kernel, strides=2, padding="SAME")
        options = {"decay": task.decay, "epsilon": tasks.EPSILON, "name": f"bn{number}"}
        layer = tf.nn.relu(bn_graph.batch_norm_wrapper(layer, is_training, **options))
    bias = tf.get_variable("bias", [tasks.CLASSES], initializer=tf.zeros_initializer())
    return x, tf.reduce_mean(layer, [1, 2]) @ tf.get_variable("last", initializer=last) + bias


_BUILT = {"r2rt": _r2rt, "solver": _solver, "images": _images}


def _initialize(session: tf.Session, task: Task) -> None:
    """Initial values for all variables, and `tasks.initial_weights` for the solver's matrices, which it draws itself."""
    session.run(tf.global_variables_initializer())
    if task.network == "solver":
        for form in task.forms:
            kernels = [each for each in tf.trainable_variables(f"{form}/") if each.op.name.endswith("/kernel")]
            for kernel, value in zip(kernels, tasks.initial_weights(task), strict=True):
                kernel.load(value, session)


def document_whole(threads: int) -> dict[str, Callable]:
    """The experiment as r2rt has it: two networks trained, and after steps 1, 51, ... both scored on the test images."""
    split, test = tasks.data(), tasks.data(tasks.TEST_EXAMPLES)
    session = tf.Session(graph=tf.Graph(), config=bn_graph.session_config(threads))
    with session.graph.as_default():
        images, labels = (tf.placeholder(tf.float32, [None, units]) for units in (tasks.INPUTS, tasks.CLASSES))
        towers = two_towers(images, labels)
        session.run(tf.global_variables_initializer())
    scored = [towers[0].scored["batch"], towers[1].scored["plain"]]
    batches, evaluation = next_batches(split, bn_vs_plain.BATCH_SIZE), {images: test.images, labels: test.labels}
    curves, done = [], itertools.count()

    def run(count: int) -> None:
        for step in itertools.islice(done, count):
            feed = dict(zip((images, labels), next(batches), strict=True))
            for tower in towers:
                session.run(tower.train_op, feed)
            if step % bn_vs_plain.EVALUATE_EVERY == 0:
                for form in scored:
                    accuracy, inputs = session.run([form.accuracy, form.inputs], evaluation)
                    curves.append((accuracy, inputs.mean(0)))

    return {"run": run, "curve": lambda _: {"accuracies": [float(accuracy) for accuracy, _ in curves]}}


def in_graph_whole(threads: int) -> dict[str, Callable]:
    """The same with the loop in the graph, which trains up to the next evaluation, and both networks scored together."""
    split, test = tasks.data(), tasks.data(tasks.TEST_EXAMPLES)
    session = tf.Session(graph=tf.Graph(), config=_config(threads, len(tasks.FORMS)))
    with session.graph.as_default():
        images, labels = (tf.placeholder(tf.float32, [None, units]) for units in (tasks.INPUTS, tasks.CLASSES))
        towers = two_towers(images, labels)
        session.run(tf.global_variables_initializer())
        steps = [bn_graph.training.Step(tower.train_op, images, labels) for tower in towers]
        batch_size = bn_vs_plain.BATCH_SIZE
        advance = bn_graph.training.graph_loop(session, steps, split, batch_size=batch_size, seed=tasks.SEED)
    scored = [towers[0].scored["batch"], towers[1].scored["plain"]]
    fetches, evaluation = [list(form) for form in scored], {images: test.images, labels: test.labels}
    curves, starts = [], [0]

    def run(count: int) -> None:
        first, starts[0] = starts[0], starts[0] + count
        for chunk in bn_graph.training.chunks(first, first + count, pause_after=_is_evaluated):
            advance(chunk.start, chunk.stop)
            if _is_evaluated(chunk.stop):
                curves.extend((accuracy, inputs.mean(0)) for accuracy, inputs in session.run(fetches, evaluation))

    return {"run": run, "curve": lambda _: {"accuracies": [float(accuracy) for accuracy, _ in curves]}}


def _is_evaluated(finished: int) -> bool:
    """After steps 1, 51, 101, ..., as in the document."""
    return finished % bn_vs_plain.EVALUATE_EVERY == 1


def two_towers(images: tf.Tensor, labels: tf.Tensor) -> list[Tower]:
    """r2rt's networks, with batch norm and without, as the experiment builds them."""
    weights = tasks.initial_weights(tasks.R2RT)
    return [build_tower(form, images, labels, weights, batch_norm=form == "with") for form in tasks.FORMS]


def convolutions(threads: int, **task) -> dict[str, Callable]:
    """The floor of the image network: a step's convolutions and their gradients alone."""
    task = tasks.made(task)
    config = bn_graph.session_config(threads)
    config.graph_options.rewrite_options.disable_meta_optimizer = True  # it leaves out what nobody reads
    session = tf.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        done, side, channels = [], tasks.SIDE, 1
        for number, initial in enumerate(tasks.initial_weights(task)[:-1]):
            images, kernel = (
                tf.get_variable(f"images{number}", initializer=tf.random.normal([task.batch, side, side, channels])),
                tf.get_variable(f"kernel{number}", initializer=initial),
            )
            outputs = tf.nn.conv2d(images, kernel, strides=2, padding="SAME")
            # The pixels have no gradient.
            done += [outputs, *tf.gradients(outputs, [kernel, images][: 1 + bool(number)])]
            side, channels = side // 2, initial.shape[-1]
        step = session.make_callable(tf.group(*done))
        session.run(tf.global_variables_initializer())

    def run(count: int) -> None:
        for _ in range(count):
            step()

    return {"run": run}


def products(threads: int, **task) -> dict[str, Callable]:
    """The floor by TensorFlow: the step's matrix products alone, in a `tf.while_loop`."""
    task = tasks.made(task)
    session = tf.Session(graph=tf.Graph(), config=bn_graph.session_config(threads))
    with session.graph.as_default():
        count = tf.placeholder(tf.int32, [])
        operands = [(tf.constant(left), tf.constant(right)) for left, right in tasks.products(task)]

        def body(step: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            # A constant outside the loop would be multiplied once: the left operand depends on the step.
            shift = tf.cast(step, tf.float32) * 1e-30
            return [step + 1, *(tf.matmul(left + shift, right) for left, right in operands)]

        starts = [tf.matmul(left, right) for left, right in operands]
        loop = tf.while_loop(lambda step, *_: step < count, body, [0, *starts], parallel_iterations=1)
        total = tf.add_n([tf.reduce_sum(each) for each in loop[1:]])
    return {"run": lambda steps: session.run(total, {count: steps})}
