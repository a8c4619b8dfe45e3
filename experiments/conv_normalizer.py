"""The convolutional helper class: what it keeps, what its recipe orders, and what its averages hold.

Document: qa, *How could I use batch normalization in TensorFlow*, the previous answer with the helper class. Claims
qa-02, 03, 04, 05, 06, 07.

    make conv-normalizer

The helper is written anew here, with the fault of its recipe: one op assigns the batch's moments to two variables, and
another averages these variables, made where nothing orders it after the first. How the average comes out is counted over
fresh sessions for both kinds of variable, beside two other orders: the averaging op made under a control dependency on
the train op, and `bn_graph.ConvolutionalBatchNormalizer`, whose averaging op gets the moments themselves. Then a small
convolutional network with each is trained on real digits.

Changed from the document: it gives no network and no data; the recipe's op, which its docstring makes of the optimizer,
is made of the train op of one step of gradient descent; scopes have names.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# The document's.
EPSILON = 0.001
DECAY = 0.99
# Fresh ones for each order and kind; a 1% outcome escapes 300 with 5%.
SESSIONS = {"full": 300, "quick": 20}
# With one thread the executor has one order, and a race can't show.
THREADS = 2
# Half of the new and half of the old: any mixture of the two is plain to see.
RACE_DECAY = 0.5
# Of the two convolutions; small, so that a few hundred steps take seconds.
CHANNELS = (8, 16)
BATCH_SIZE = 50
# Of sums in float32 of values around 1.
TOLERANCE = 1e-5
KINDS = {"ref": False, "resource": True}
SUGGESTED, INSIDE, LIBRARY = "as suggested", "averaging op made under the dependency", "bn_graph's"
FRESH, STALE, MIXED, OTHER = "this step's", "the step before's", "one of each", "neither"


# About half an epoch: enough for 0.95 and more.
FULL = Mode(data="mnist", steps=500, seeds=[0, 1, 2])
QUICK = Mode(data="digits", steps=100, seeds=[0])


class DocumentsNormalizer:
    """The document's helper, in our words: moments kept by assignment, averaged by an op that is asked for apart."""

    def __init__(self, depth, trainer, *, scale_after=True, use_resource=True, name="bn"):
        self.trainer, self.scale_after = trainer, scale_after
        with tf.variable_scope(name, use_resource=use_resource):
            zeros, ones = tf.zeros_initializer(), tf.ones_initializer()
            self.mean = tf.get_variable("mean", [depth], initializer=zeros, trainable=False)
            self.variance = tf.get_variable("variance", [depth], initializer=ones, trainable=False)
            self.beta = tf.get_variable("beta", [depth], initializer=zeros)
            self.gamma = tf.get_variable("gamma", [depth], initializer=ones)

    def get_assigner(self):
        return self.trainer.apply([self.mean, self.variance])

    def normalize(self, x, train):
        if not train:
            averages = [self.trainer.average(self.mean), self.trainer.average(self.variance)]
            return global_normalization(x, *averages, self.beta, self.gamma, self.scale_after)
        moments = tf.nn.moments(x, [0, 1, 2])
        stored = [tf.assign(self.mean, moments[0]), tf.assign(self.variance, moments[1])]
        with tf.control_dependencies(stored):
            return global_normalization(x, *moments, self.beta, self.gamma, self.scale_after)


def global_normalization(x, mean, variance, beta, gamma, scale_after):
    """The call that the document makes, by the name under which compat.v1 still has it."""
    return tf.nn.batch_norm_with_global_normalization(x, mean, variance, beta, gamma, EPSILON, scale_after)


def run(settings: Settings) -> dict:
    return {
        "sessions": SESSIONS[settings.mode],
        "function": _the_function(),
        "axes": _axes(),
        "variables": _variables(),
        "training_step": _training_step(),
        "ordered": _what_is_ordered(),
        "race": _race(settings, SESSIONS[settings.mode]),
        "average": _averages(),
        "trained": [_train_each(settings, seed) for seed in settings.seeds],
    }


def _example(shape=(6, 4, 5, 3), seed=0) -> np.ndarray:
    """Values whose channels differ in mean and spread."""
    channels = np.arange(1, shape[-1] + 1)
    return (np.random.default_rng(seed).standard_normal(shape) * channels + channels).astype(np.float32)


def _session(threads: int = 1) -> tf.Session:
    return tf.Session(config=bn_graph.session_config(threads))


def _the_function() -> dict:
    """qa-02: the old function beside tf.nn.batch_normalization, with moments that are not the batch's."""
    x = _example()
    mean, variance, beta = (np.array(values, np.float32) for values in ([5, -1, 0], [4, 0.5, 9], [0.5, 0, -2]))
    gammas = [np.array(values, np.float32) for values in ([2, 3, 4], [-7, 11, 0.1])]
    with tf.Graph().as_default(), _session() as session:
        with_gamma, without = (
            session.run([global_normalization(x, mean, variance, beta, gamma, scale) for gamma in gammas])
            for scale in (True, False)
        )
        modern = session.run(
            [tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON) for gamma in (gammas[0], None)]
        )
    by_hand = (x - mean) / np.sqrt(variance + EPSILON) + beta
    return {
        "scaled_from_modern": float(np.abs(with_gamma[0] - modern[0]).max()),
        "unscaled_from_modern": float(np.abs(without[0] - modern[1]).max()),
        "unscaled_from_given_moments": float(np.abs(without[0] - by_hand).max()),
        "gamma_changes_scaled": float(np.abs(with_gamma[0] - with_gamma[1]).max()),
        "gamma_changes_unscaled": float(np.abs(without[0] - without[1]).max()),
    }


def _axes() -> dict:
    """qa-03: which examples share a mean, in the helper and in this library's layer for dense inputs."""
    image, flat = _example(), _example((7, 3))
    with tf.Graph().as_default(), _session() as session:
        helper = DocumentsNormalizer(3, tf.train.ExponentialMovingAverage(DECAY))
        convolutional = helper.normalize(tf.constant(image), train=True)
        dense = bn_graph.batch_norm_wrapper(tf.constant(flat), True, decay=0.0, name="dense")
        try:
            DocumentsNormalizer(3, helper.trainer, name="other").normalize(tf.constant(flat), train=True)
            refused = None
        except ValueError as error:
            refused = type(error).__name__
        session.run(tf.global_variables_initializer())
        session.run([convolutional, dense])
        stored = session.run(helper.mean)
        dense_mean = session.run(bn_graph.moving_statistics()[0])
    return {
        "convolution_from_012": float(np.abs(stored - image.mean((0, 1, 2))).max()),
        "convolution_statistics": int(stored.size),
        "axis_0_alone_statistics": int(np.prod(image.shape[1:])),
        "dense_from_0": float(np.abs(dense_mean - flat.mean(0)).max()),
        "helper_on_dense_raises": refused,
    }


def _variables() -> list[dict]:
    """qa-04: each variable of the helper with its assigner, its start and its collections."""
    with tf.Graph().as_default(), _session() as session:
        DocumentsNormalizer(3, tf.train.ExponentialMovingAverage(DECAY)).get_assigner()
        variables = tf.global_variables()
        session.run(tf.global_variables_initializer())
        trainable, averaged = tf.trainable_variables(), tf.moving_average_variables()
        return [
            {
                "name": variable.op.name,
                "starts_at": sorted(set(session.run(variable).tolist())),
                "trainable": variable in trainable,
                "moving_average_variables": variable in averaged,
            }
            for variable in variables
        ]


def _training_step() -> dict:
    """qa-05: one run of the training output, and what is stored by it."""
    x = _example()
    with tf.Graph().as_default(), _session() as session:
        helper = DocumentsNormalizer(3, tf.train.ExponentialMovingAverage(DECAY))
        normalized = helper.normalize(tf.constant(x), train=True)
        session.run(tf.global_variables_initializer())
        outputs = session.run(normalized)
        mean, variance = session.run([helper.mean, helper.variance])
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPSILON)
    return {
        "outputs_from_batch": float(np.abs(outputs - expected).max()),
        "stored_mean_from_batch": float(np.abs(mean - x.mean((0, 1, 2))).max()),
        "stored_variance_from_batch": float(np.abs(variance - x.var((0, 1, 2))).max()),
        "spread_of_batch_means": float(np.ptp(x.mean((0, 1, 2)))),
    }


def _grouped_as_suggested(train_op: tf.Operation, assigner: Callable[[], tf.Operation]) -> tf.Operation:
    """The docstring's recipe: the updates are made first, and only the group stands under the dependency."""
    updates = tf.group(assigner())
    with tf.control_dependencies([train_op]):
        return tf.group(updates)


def _made_inside(train_op: tf.Operation, assigner: Callable[[], tf.Operation]) -> tf.Operation:
    with tf.control_dependencies([train_op]):
        return tf.group(assigner())


def _step(order: str, use_resource: bool, x: np.ndarray) -> tuple[tf.Operation, list[tf.Variable], tf.Operation]:
    """One layer and one step of descent in the given order: the step, the two averages, and the op that applies gradients."""
    trainer = tf.train.ExponentialMovingAverage(RACE_DECAY)
    if order == LIBRARY:
        with tf.variable_scope("", use_resource=use_resource):
            helper = bn_graph.ConvolutionalBatchNormalizer(x.shape[-1], EPSILON, trainer, True, name="bn")
    else:
        helper = DocumentsNormalizer(x.shape[-1], trainer, use_resource=use_resource)
    outputs = helper.normalize(tf.constant(x), train=True)
    train_op = tf.train.GradientDescentOptimizer(0.01).minimize(tf.reduce_sum(tf.square(outputs)))
    group = _made_inside if order == INSIDE else _grouped_as_suggested
    step = group(train_op, helper.get_assigner)
    return step, [trainer.average(helper.mean), trainer.average(helper.variance)], train_op


def _ancestors(op: tf.Operation) -> set[str]:
    """Names of all ops that must run before `op`, over data and control edges."""
    seen, waiting = set(), [op]
    while waiting:
        here = waiting.pop()
        for before in [tensor.op for tensor in here.inputs] + list(here.control_inputs):
            if before.name not in seen:
                seen.add(before.name)
                waiting.append(before)
    return seen


def _what_is_ordered() -> dict:
    """qa-06, from the graph: do the ops that write the averages come after those that store the batch's moments?"""
    found = {}
    for order in (SUGGESTED, INSIDE):
        for kind, use_resource in KINDS.items():
            with tf.Graph().as_default() as graph:
                _step(order, use_resource, _example())
                ops = graph.get_operations()
                # What the helper stores has no scope of a variable's, as the initializers' assigns have.
                stores = {op.name for op in ops if op.type in ("Assign", "AssignVariableOp") and "/" not in op.name}
                writes = [op for op in ops if op.type in ("AssignSub", "AssignSubVariableOp")]
                found[f"{order}, {kind}"] = {
                    "stores": len(stores),
                    "writes": len(writes),
                    "writes_after_stores": sum(bool(stores & _ancestors(op)) for op in writes),
                }
    return found


def _race(settings: Settings, sessions: int) -> dict[str, dict[str, dict]]:
    """qa-06, counted: what the two averages hold after one step of a fresh session."""
    x = settings.dataset.train.images[:BATCH_SIZE].reshape(-1, *settings.dataset.image_shape, 1)
    x = np.concatenate([x, 1 - x], axis=3)
    moments = [x.mean((0, 1, 2)), x.var((0, 1, 2))]
    starts = [np.zeros(2), np.ones(2)]
    return {
        order: {kind: _count(order, use_resource, x, starts, moments, sessions) for kind, use_resource in KINDS.items()}
        for order in (SUGGESTED, INSIDE, LIBRARY)
    }


def _count(order, use_resource, x, starts, moments, sessions) -> dict:
    counter, raised = Counter(), 0
    with tf.Graph().as_default():
        step, averages, _ = _step(order, use_resource, x)
        initialize = tf.global_variables_initializer()
        label = f"{order}, {'resource' if use_resource else 'ref'}"
        for _ in harness.progress_bar(label)(range(sessions)):
            with _session(THREADS) as session:
                raised += not _initialized(session, initialize)
                session.run(step)
                counter[_outcome(session.run(averages), starts, moments)] += 1
    return {"outcomes": dict(counter), "initializer_raised": raised}


def _initialized(session: tf.Session, initialize: tf.Operation) -> bool:
    """Runs the initializers, one after the other if they won't run together; says whether they did.

    A shadow starts at its variable's value, or at that one's initial value if it has none yet. For ref variables the value
    is read before that choice is made, and reading what is not there yet raises.
    """
    try:
        session.run(initialize)
        return True
    except tf.errors.FailedPreconditionError:
        for variable in tf.global_variables():  # a shadow comes after the variable that it averages
            session.run(variable.initializer)
        return False


def _outcome(averages, starts, moments) -> str:
    """Which moments were averaged. At the first step the step before's are the start's: 0 and 1."""
    took = set()
    for average, start, moment in zip(averages, starts, moments, strict=True):
        if np.allclose(average, start, atol=1e-4):
            took.add(STALE)
        elif np.allclose(average, RACE_DECAY * start + (1 - RACE_DECAY) * moment, atol=1e-4):
            took.add(FRESH)
        else:
            took.add(OTHER)
    return took.pop() if len(took) == 1 else MIXED


def _averages() -> dict:
    """qa-07: average() before apply and after, and what inference normalizes with."""
    x = _example()
    with tf.Graph().as_default(), _session() as session:
        trainer = tf.train.ExponentialMovingAverage(DECAY)
        helper = DocumentsNormalizer(3, trainer)
        before = trainer.average(helper.mean)
        try:
            helper.normalize(tf.constant(x), train=False)
            without = "nothing"
        except (TypeError, ValueError) as error:
            without = type(error).__name__
        output = helper.normalize(tf.constant(x), train=True)
        step = _made_inside(output.op, helper.get_assigner)
        inference = helper.normalize(tf.constant(x), train=False)
        averages = [trainer.average(helper.mean), trainer.average(helper.variance)]
        session.run(tf.global_variables_initializer())
        starts = session.run(averages)
        session.run(step)
        after, outputs = session.run([averages, inference])
    return {
        "before_apply": repr(before),
        "inference_before_apply_raises": without,
        "starts_at": [sorted(set(start.tolist())) for start in starts],
        "share_of_batch_after_one_step": float(np.mean(after[0] / x.mean((0, 1, 2)))),
        "inference_from_averages": float(np.abs(outputs - (x - after[0]) / np.sqrt(after[1] + EPSILON)).max()),
        "inference_from_batch": float(
            np.abs(outputs - (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPSILON)).max()
        ),
    }


def _train_each(settings: Settings, seed: int) -> dict:
    """A short training with the recipe and with the library's helper, from the same weights on the same batches."""
    return {"seed": seed} | {order: _train(settings, seed, order) for order in (SUGGESTED, LIBRARY)}


def _train(settings: Settings, seed: int, order: str) -> dict:
    dataset = settings.dataset
    with tf.Graph().as_default(), _session() as session:
        x = tf.placeholder(tf.float32, [None, dataset.test.images.shape[1]])
        y_ = tf.placeholder(tf.float32, [None, dataset.test.labels.shape[1]])
        images = tf.reshape(x, [-1, *dataset.image_shape, 1])
        trainer = tf.train.ExponentialMovingAverage(DECAY)
        helpers = [_helper(order, depth, trainer, f"bn{number}") for number, depth in enumerate(CHANNELS)]
        logits = _network(images, helpers, seed, train=True)
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=y_, logits=logits))
        train_op = tf.train.AdamOptimizer(0.01).minimize(loss)
        step = _grouped_as_suggested(train_op, lambda: tf.group(*[helper.get_assigner() for helper in helpers]))
        prediction = tf.argmax(_network(images, helpers, seed, train=False), 1)
        session.run(tf.global_variables_initializer())
        # Fed, whatever --loop says: the recipe's order of ops is what is looked at, run as the recipe is run.
        batches = bn_graph.batches(dataset.train, BATCH_SIZE, seed=seed)
        for _ in harness.progress_bar(f"seed {seed}, {order}")(range(settings.steps)):
            batch, labels = next(batches)
            session.run(step, {x: batch, y_: labels})
        test, right = dataset.test, dataset.test.labels.argmax(1)
        parts = range(0, test.size, 1000)
        predicted = np.concatenate([session.run(prediction, {x: test.images[at : at + 1000]}) for at in parts])
        alone = [int(session.run(prediction, {x: [image]})[0]) for image in test.images[:100]]
    return {"accuracy": float(np.mean(predicted == right)), "alone_agree": int(np.sum(alone == predicted[:100]))}


def _helper(order: str, depth: int, trainer: tf.train.ExponentialMovingAverage, name: str):
    if order == LIBRARY:
        return bn_graph.ConvolutionalBatchNormalizer(depth, EPSILON, trainer, True, name=name)
    return DocumentsNormalizer(depth, trainer, name=name)


def _network(images: tf.Tensor, helpers: list, seed: int, train: bool) -> tf.Tensor:
    """Two convolutions of stride 2, each normalized, and a dense layer."""
    with tf.variable_scope("network", reuse=tf.AUTO_REUSE):
        net = images
        for number, (helper, depth) in enumerate(zip(helpers, CHANNELS, strict=True)):
            shape = [3, 3, net.shape.as_list()[3], depth]
            kernel = tf.get_variable(f"kernel{number}", shape, initializer=_glorot(seed, number))
            net = tf.nn.relu(helper.normalize(tf.nn.conv2d(net, kernel, strides=2, padding="SAME"), train=train))
        net = tf.reshape(net, [-1, int(np.prod(net.shape.as_list()[1:]))])
        weights = tf.get_variable("weights", [net.shape.as_list()[1], 10], initializer=_glorot(seed, len(helpers)))
        return tf.matmul(net, weights) + tf.get_variable("bias", [10], initializer=tf.zeros_initializer())


def _glorot(seed: int, number: int):
    return tf.glorot_uniform_initializer(seed=1000 * seed + number)


# ---- judging


def judge_qa_02(result: dict) -> Verdict:
    function = result["function"]
    furthest = max(
        function[key] for key in ("scaled_from_modern", "unscaled_from_modern", "unscaled_from_given_moments")
    )
    measured = (
        f"at most {furthest:.1g} from tf.nn.batch_normalization and from the formula; another gamma changes "
        f"{function['gamma_changes_unscaled']:g} without scaling, {function['gamma_changes_scaled']:.3g} with it"
    )
    if furthest > TOLERANCE:
        return does_not_hold(measured, "It does not compute what it is handed the moments for.")
    if function["gamma_changes_unscaled"] > 0:
        return does_not_hold(measured, "gamma has an effect even where scale_after_normalization is False.")
    return holds(measured, "The moments handed to it were not the batch's. compat.v1 still has the function.")


def judge_qa_03(result: dict) -> Verdict:
    axes = result["axes"]
    measured = (
        f"mean over axes 0, 1, 2 to {axes['convolution_from_012']:.1g}; dense over axis 0 to {axes['dense_from_0']:.1g}"
    )
    note = (
        f"Axis 0 alone would keep {axes['axis_0_alone_statistics']} means of the example here, where there are "
        f"{axes['convolution_statistics']} channels."
    )
    if max(axes["convolution_from_012"], axes["dense_from_0"]) > TOLERANCE:
        return does_not_hold(measured, f"The stored means are those of other axes. {note}")
    if axes["helper_on_dense_raises"]:
        note += f" The helper itself refuses dense inputs ({axes['helper_on_dense_raises']})."
    return holds(measured, note)


def judge_qa_04(result: dict) -> Verdict:
    expected = {
        "bn/mean": ([0.0], False),
        "bn/variance": ([1.0], False),
        "bn/beta": ([0.0], True),
        "bn/gamma": ([1.0], True),
    }
    found = {each["name"]: (each["starts_at"], each["trainable"]) for each in result["variables"]}
    shadows = [name for name in found if name not in expected]
    of = sorted(name.rpartition("/")[0] for name in shadows)
    listed = [each["name"] for each in result["variables"] if each["moving_average_variables"]]
    measured = "; ".join(
        f"{name.removeprefix('bn/')} {'/'.join(f'{start:g}' for start in starts)}{' trainable' if trainable else ''}"
        for name, (starts, trainable) in found.items()
    )
    wrong = [name for name, each in expected.items() if found.get(name) != each]
    if wrong:
        return does_not_hold(measured, f"Otherwise than the document says: {', '.join(wrong)}.")
    if of != ["bn/mean", "bn/variance"] or any(found[name][1] for name in shadows):
        return does_not_hold(measured, f"The shadows are {', '.join(shadows) or 'missing'}.")
    names = ", ".join(name.removeprefix("bn/") for name in listed) or "none of them"
    return holds(measured, f"tf.moving_average_variables() lists {names}; the shadows are plain global variables.")


def judge_qa_05(result: dict) -> Verdict:
    step = result["training_step"]
    stored = max(step["stored_mean_from_batch"], step["stored_variance_from_batch"])
    measured = f"outputs to {step['outputs_from_batch']:.1g} by the batch; stored moments to {stored:.1g}"
    if step["outputs_from_batch"] > TOLERANCE:
        return does_not_hold(measured, "The outputs are not normalized by the batch's moments.")
    if stored > TOLERANCE:
        return does_not_hold(measured, "What is stored is not the batch's moments.")
    return holds(measured, "Stored whole, not averaged: until the assigner runs, the variables hold the last batch.")


def _fresh(result: dict, order: str, kind: str) -> bool:
    return set(result["race"][order][kind]["outcomes"]) == {FRESH}


def judge_qa_06(result: dict) -> Verdict:
    sessions = result["sessions"]

    def said(order: str) -> str:
        return ", ".join(f"{kind} {_counted(result['race'][order][kind]['outcomes'])}" for kind in KINDS)

    measured = f"{SUGGESTED}: {said(SUGGESTED)}; of {sessions} sessions each"
    inside = [kind for kind in KINDS if _fresh(result, INSIDE, kind)]
    ordered = result["ordered"][f"{SUGGESTED}, resource"]["writes_after_stores"]
    accuracy = {
        order: spread([each[order]["accuracy"] for each in result["trained"]], 3) for order in (SUGGESTED, LIBRARY)
    }
    effect = f"Trained so, test accuracy is {accuracy[SUGGESTED]}; in bn_graph's order {accuracy[LIBRARY]}."
    if all(_fresh(result, SUGGESTED, kind) for kind in KINDS):
        if ordered:
            return holds(measured, effect)
        return holds_if("the threads happen to run so", measured, f"Nothing in the graph orders it. {effect}")
    if inside:
        both = "" if len(inside) == len(KINDS) else f" and variables are {inside[0]} variables"
        return holds_if(
            f"the averaging op is made under the dependency{both}",
            measured,
            f"As suggested, {ordered} of 2 averaging ops come after the assigns; made inside it is {said(INSIDE)}. {effect}",
        )
    return does_not_hold(measured, f"Made under the dependency: {said(INSIDE)}. {effect}")


def _counted(counter: dict[str, int]) -> str:
    return " + ".join(f"{label} {times}×" for label, times in sorted(counter.items()))


def judge_qa_07(result: dict) -> Verdict:
    average = result["average"]
    measured = (
        f"before apply: {average['before_apply']}; shadows start at {average['starts_at'][0]} and {average['starts_at'][1]}; "
        f"after one step {average['share_of_batch_after_one_step']:.2f} of the batch's mean"
    )
    if average["inference_from_averages"] > TOLERANCE * 10:
        return does_not_hold(
            measured, f"Inference is {average['inference_from_averages']:.1g} away from using the averages."
        )
    if average["before_apply"] == "None":
        raised = average["inference_before_apply_raises"]
        failed = result["race"][SUGGESTED]["ref"]["initializer_raised"]
        note = f"Before it average() returns None, and building inference raises {raised}."
        if failed:
            note += (
                f" With ref variables the initializers of variables and averages, run together, raised in {failed} of "
                f"{result['sessions']} sessions."
            )
        return holds_if("get_assigner was called before", measured, note)
    return holds(measured, "average() gives a variable even before apply.")


# ---- showing


FIGURES = {
    "conv_normalizer.png": "In the order that the helper's docstring suggests, what the average takes in is left to the "
    "threads. Made under the dependency, or given the moments themselves, it is the present step's."
}


def draw(result: dict, folder: Path) -> None:
    """Each order of updates as a bar of what its averages took in."""
    bars = [(order, kind) for order in result["race"] for kind in KINDS]
    colors = {FRESH: BLUE, STALE: ORANGE, MIXED: "#B07AA1", OTHER: GREY}
    seen = {label for kinds in result["race"].values() for each in kinds.values() for label in each["outcomes"]}
    colors = {label: color for label, color in colors.items() if label in seen}
    with figure(folder / "conv_normalizer.png", figsize=(8.5, 3.9)) as (_, axis):
        for place, (order, kind) in enumerate(bars):
            left = 0.0
            for label, color in colors.items():
                share = result["race"][order][kind]["outcomes"].get(label, 0) / result["sessions"]
                axis.barh(place, share, left=left, color=color, height=0.7, label=label if place == 0 else None)
                if share > 0.06:
                    axis.text(left + share / 2, place, f"{share:.0%}", ha="center", va="center", color="white")
                left += share
        axis.set_yticks(range(len(bars)), [f"{order}\n({kind} variables)" for order, kind in bars])
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_xlabel(f"share of {result['sessions']} fresh sessions")
        axis.grid(False)
        axis.legend(
            title="after one step the averages hold moments that are",
            ncols=3,
            loc="lower center",
            bbox_to_anchor=(0.4, 1),
        )


def summarize(result: dict) -> str:
    lines = [f"What the averages took in after one step, over {result['sessions']} fresh sessions each"]
    for order, kinds in result["race"].items():
        lines += [f"  {order:<42}{kind:<10}{_counted(each['outcomes'])}" for kind, each in kinds.items()]
    lines += ["", f"Test accuracy after {result['steps']} steps, by the averages"]
    for order in (SUGGESTED, LIBRARY):
        lines.append(f"  {order:<42}{spread([each[order]['accuracy'] for each in result['trained']])}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
