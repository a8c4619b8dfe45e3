"""The convolutional helper class: what its recipe orders, and what its averages hold.

Document: qa, *How could I use batch normalization in TensorFlow*, the previous answer with the helper class. Claims
qa-06, 07. (Its variables and its function: qa-02 to 05, on the page helper_variables.)

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
from bn_graph.graphs.graph import build, closure
from bn_graph.tf1 import tf
from experiments.machinery import harness
from experiments.machinery.classifiers import losses, placeholders
from experiments.machinery.figures import BLUE, GREY, ORANGE, PURPLE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import largest, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The document's.
EPSILON, DECAY = 0.001, 0.99
# With one thread the executor has one order, and a race can't show.
THREADS = 2
# Half of the new and half of the old: any mixture of the two is plain to see.
RACE_DECAY = 0.5
# Of the two convolutions; small, so that a few hundred steps take seconds.
CHANNELS, BATCH_SIZE = (8, 16), 50
# Of sums in float32 of values around 1.
TOLERANCE = 1e-5

# 500 steps are about half an epoch, enough for 0.95 and more. Of 300 sessions for each order and kind of variable, an
# outcome of 1% is missed with probability 5%.
FULL = Mode(data="mnist", steps=500, seeds=[0, 1, 2], own={"sessions": 300})
QUICK = Mode(data="digits", steps=100, seeds=[0], own={"sessions": 20})

KINDS = {"ref": False, "resource": True}
# The orders in which a step may average, and what its averages may then hold.
SUGGESTED, INSIDE, LIBRARY = "as suggested", "averaging op made under the dependency", "bn_graph's"
FRESH, STALE, MIXED, OTHER = "this step's", "the step before's", "one of each", "neither"


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


def grouped_as_suggested(train_op: tf.Operation, assigner: Callable[[], tf.Operation]) -> tf.Operation:
    """The docstring's recipe: the updates are made first, and only the group stands under the dependency."""
    updates = tf.group(assigner())
    with tf.control_dependencies([train_op]):
        return tf.group(updates)


def made_inside(train_op: tf.Operation, assigner: Callable[[], tf.Operation]) -> tf.Operation:
    """The repaired recipe: the averaging op is made where the dependency holds for it."""
    with tf.control_dependencies([train_op]):
        return tf.group(assigner())


def helper_of(order: str, depth: int, trainer: tf.train.ExponentialMovingAverage, name: str, use_resource: bool = True):
    """The document's helper or, for the order `LIBRARY`, this library's."""
    if order != LIBRARY:
        return DocumentsNormalizer(depth, trainer, use_resource=use_resource, name=name)
    with tf.variable_scope("", use_resource=use_resource):
        return bn_graph.ConvolutionalBatchNormalizer(depth, EPSILON, trainer, True, name=name)


def run(settings: Settings) -> dict:
    sessions = settings.own["sessions"]
    return {
        "sessions": sessions,
        "ordered": what_is_ordered(),
        "race": race(settings, sessions),
        "average": averages_before_and_after(),
        "trained": [
            {"seed": seed} | {o: train(settings, seed, o) for o in (SUGGESTED, LIBRARY)} for seed in settings.seeds
        ],
    }


def example(shape=(6, 4, 5, 3), seed=0) -> np.ndarray:
    """Values whose channels differ in mean and spread."""
    channels = np.arange(1, shape[-1] + 1)
    return (np.random.default_rng(seed).standard_normal(shape) * channels + channels).astype(np.float32)


def open_session(threads: int = 1) -> tf.Session:
    return tf.Session(config=bn_graph.session_config(threads))


def distance(values: np.ndarray, expected: np.ndarray) -> float:
    return largest(values - expected)


def normalized(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return (x - mean) / np.sqrt(variance + EPSILON)


# --- qa-06: do the averages take in this step's moments? --------------------------------------------------------------
def step_of(order: str, use_resource: bool, x: np.ndarray) -> tuple[tf.Operation, list[tf.Variable]]:
    """One layer and one step of descent in the given order: the step, and the two averages."""
    trainer = tf.train.ExponentialMovingAverage(RACE_DECAY)
    helper = helper_of(order, x.shape[-1], trainer, "bn", use_resource)
    outputs = helper.normalize(tf.constant(x), train=True)
    train_op = tf.train.GradientDescentOptimizer(0.01).minimize(tf.reduce_sum(tf.square(outputs)))
    group = made_inside if order == INSIDE else grouped_as_suggested
    step = group(train_op, helper.get_assigner)
    return step, [trainer.average(helper.mean), trainer.average(helper.variance)]


def what_is_ordered() -> dict:
    """From the graph: do the ops that write the averages come after those that store the batch's moments?"""
    found = {}
    for order in (SUGGESTED, INSIDE):
        for kind, use_resource in KINDS.items():
            with tf.Graph().as_default() as live:
                step_of(order, use_resource, example())
            graph = build(live.as_graph_def())
            # What the helper stores has no scope of a variable's, as the initializers' assigns have.
            stores = {
                node
                for name, node in graph.ids.items()
                if graph.ops[node] in ("Assign", "AssignVariableOp") and "/" not in name
            }
            writes = [node for node in graph.ids.values() if graph.ops[node] in ("AssignSub", "AssignSubVariableOp")]
            found[f"{order}, {kind}"] = {
                "stores": len(stores),
                "writes": len(writes),
                "writes_after_stores": sum(bool(stores & closure(graph, [node])) for node in writes),
            }
    return found


def race(settings: Settings, sessions: int) -> dict[str, dict[str, dict]]:
    """Counted: what the two averages hold after one step of a fresh session."""
    x = settings.dataset.train.images[:BATCH_SIZE].reshape(-1, *settings.dataset.image_shape, 1)
    # A second channel, so that there are two means to tell apart.
    x = np.concatenate([x, 1 - x], axis=3)
    return {
        order: {kind: count_outcomes(order, use_resource, x, sessions) for kind, use_resource in KINDS.items()}
        for order in (SUGGESTED, INSIDE, LIBRARY)
    }


def count_outcomes(order: str, use_resource: bool, x: np.ndarray, sessions: int) -> dict:
    counter, raised = Counter(), 0
    with tf.Graph().as_default():
        step, averages = step_of(order, use_resource, x)
        initialize = tf.global_variables_initializer()
        averaged = tf.group(*[each.initializer for each in tf.global_variables() if each not in averages])
        label = f"{order}, {'resource' if use_resource else 'ref'}"
        for _ in harness.progress_bar(label)(range(sessions)):
            with open_session(THREADS) as session:
                raised += not initialized_together(session, initialize, averaged)
                session.run(step)
                counter[outcome(session.run(averages), x)] += 1
    return {"outcomes": dict(counter), "initializer_raised": raised}


def initialized_together(session: tf.Session, initialize: tf.Operation, averaged: tf.Operation) -> bool:
    """Runs all initializers, those of what is averaged first if they won't run together; returns whether they did.

    A shadow starts at its variable's value, or at that one's initial value if it has none yet. For ref variables the value
    is read before that choice is made, and reading what is not there yet raises.
    """
    try:
        session.run(initialize)
        return True
    except tf.errors.FailedPreconditionError:
        session.run(averaged)
        session.run(initialize)
        return False


def outcome(averages: list[np.ndarray], x: np.ndarray) -> str:
    """Which moments were averaged. At the first step the step before's are the start's: 0 and 1."""
    kinds = set()
    for average, start, moment in zip(averages, (0, 1), (x.mean((0, 1, 2)), x.var((0, 1, 2))), strict=True):
        is_stale = np.allclose(average, start, atol=1e-4)
        is_fresh = np.allclose(average, RACE_DECAY * start + (1 - RACE_DECAY) * moment, atol=1e-4)
        kinds.add(STALE if is_stale else FRESH if is_fresh else OTHER)
    return kinds.pop() if len(kinds) == 1 else MIXED


def train(settings: Settings, seed: int, order: str) -> dict:
    """A short training with the recipe or the library's helper, from the same weights on the same batches."""
    dataset = settings.dataset
    with tf.Graph().as_default(), open_session() as session:
        x, y_ = placeholders((dataset.test.images.shape[1], dataset.test.labels.shape[1]))
        images = tf.reshape(x, [-1, *dataset.image_shape, 1])
        trainer = tf.train.ExponentialMovingAverage(DECAY)
        helpers = [helper_of(order, depth, trainer, f"bn{number}") for number, depth in enumerate(CHANNELS)]
        loss = tf.reduce_mean(losses(network(images, helpers, seed, train=True), y_))
        train_op = tf.train.AdamOptimizer(0.01).minimize(loss)
        step = grouped_as_suggested(train_op, lambda: tf.group(*[helper.get_assigner() for helper in helpers]))
        prediction = tf.argmax(network(images, helpers, seed, train=False), 1)
        session.run(tf.global_variables_initializer())
        # Fed, whatever --loop says: the recipe's order of ops is what is looked at, run as the recipe is run.
        batches = bn_graph.batches(dataset.train, BATCH_SIZE, seed=seed)
        for _ in harness.progress_bar(f"seed {seed}, {order}")(range(settings.steps)):
            batch, labels = next(batches)
            session.run(step, {x: batch, y_: labels})
        test = dataset.test
        parts = range(0, test.size, 1000)
        predicted = np.concatenate([session.run(prediction, {x: test.images[at : at + 1000]}) for at in parts])
        alone = [int(session.run(prediction, {x: [image]})[0]) for image in test.images[:100]]
    right = test.labels.argmax(1)
    return {"accuracy": float(np.mean(predicted == right)), "alone_agree": int(np.sum(alone == predicted[:100]))}


def network(images: tf.Tensor, helpers: list, seed: int, train: bool) -> tf.Tensor:
    """Two convolutions of stride 2, each normalized, and a dense layer; logits."""

    def weights(name: str, shape: list[int], number: int) -> tf.Variable:
        return tf.get_variable(name, shape, initializer=tf.glorot_uniform_initializer(seed=1000 * seed + number))

    with tf.variable_scope("network", reuse=tf.AUTO_REUSE):
        net = images
        for number, (helper, depth) in enumerate(zip(helpers, CHANNELS, strict=True)):
            kernel = weights(f"kernel{number}", [3, 3, net.shape.as_list()[3], depth], number)
            net = tf.nn.relu(helper.normalize(tf.nn.conv2d(net, kernel, strides=2, padding="SAME"), train=train))
        net = tf.reshape(net, [-1, int(np.prod(net.shape.as_list()[1:]))])
        last = weights("weights", [net.shape.as_list()[1], 10], len(helpers))
        return tf.matmul(net, last) + tf.get_variable("bias", [10], initializer=tf.zeros_initializer())


def counted(counter: dict[str, int]) -> str:
    return " + ".join(f"{label} {times}×" for label, times in sorted(counter.items()))


def judge_qa_06(result: dict) -> Verdict:
    sessions, race = result["sessions"], result["race"]

    def fresh(order: str) -> dict[str, int]:
        return {kind: race[order][kind]["outcomes"].get(FRESH, 0) for kind in KINDS}

    def counts(order: str) -> str:
        return " and ".join(
            f"{count} of {sessions} sessions with {kind} variables" for kind, count in fresh(order).items()
        )

    ordered = result["ordered"][f"{SUGGESTED}, resource"]["writes_after_stores"]
    accuracy = {
        order: spread([each[order]["accuracy"] for each in result["trained"]], 3) for order in (SUGGESTED, LIBRARY)
    }
    measured = (
        f"Grouped as suggested, both averages hold this step's moments in {counts(SUGGESTED)}; trained so, the accuracy is "
        f"{accuracy[SUGGESTED]}, and in bn_graph's order {accuracy[LIBRARY]}."
    )
    if set(fresh(SUGGESTED).values()) == {sessions}:
        if ordered:
            return holds(measured, "The graph orders it.")
        return holds_with_a_trap("nothing in the graph orders it", measured, "It came out so in every session.")
    note = f"The graph puts {ordered} of the 2 averaging ops after the assigns."
    if any(count == sessions for count in fresh(INSIDE).values()):
        note += f" True where the averaging op is made under the control dependency: {counts(INSIDE)}."
    return does_not_hold(measured, note)


# --- qa-07: average() before apply and after, and what inference normalizes with --------------------------------------
def averages_before_and_after() -> dict:
    x = example()
    with tf.Graph().as_default(), open_session() as session:
        trainer = tf.train.ExponentialMovingAverage(DECAY)
        helper = DocumentsNormalizer(3, trainer)
        before = trainer.average(helper.mean)
        try:
            helper.normalize(tf.constant(x), train=False)
            without = "nothing"
        except (TypeError, ValueError) as error:
            without = type(error).__name__
        output = helper.normalize(tf.constant(x), train=True)
        step = made_inside(output.op, helper.get_assigner)
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
        "inference_from_averages": distance(outputs, normalized(x, *after)),
        "inference_from_batch": distance(outputs, normalized(x, x.mean((0, 1, 2)), x.var((0, 1, 2)))),
    }


def judge_qa_07(result: dict) -> Verdict:
    average = result["average"]
    measured = (
        f"Inference is {average['inference_from_averages']:.1g} from normalizing with the averages, which start at "
        f"{' and '.join(f'{start:g}' for starts in average['starts_at'] for start in starts)} and hold "
        f"{average['share_of_batch_after_one_step']:.2f} of the batch's mean after one step."
    )
    if average["inference_from_averages"] > TOLERANCE * 10:
        return does_not_hold(measured, "Inference does not use the averages.")
    if average["before_apply"] == "None":
        raised = average["inference_before_apply_raises"]
        note = f"The document calls it first. Before it average() returns None, and building inference raises {raised}."
        return holds_with_a_trap("there is no average before get_assigner has been called", measured, note)
    return holds(measured, "average() gives a variable even before apply.")


FIGURES = {
    "conv_normalizer.png": "In the order that the helper's docstring suggests, what the average takes in is left to the "
    "threads. Made under the dependency, or given the moments themselves, it is the present step's."
}


def draw(result: dict, folder: Path) -> None:
    """Each order of updates as a bar of what its averages took in."""
    bars = [(order, kind) for order in result["race"] for kind in KINDS]
    colors = {FRESH: BLUE, STALE: ORANGE, MIXED: PURPLE, OTHER: GREY}
    seen = {label for kinds in result["race"].values() for each in kinds.values() for label in each["outcomes"]}
    colors = {label: color for label, color in colors.items() if label in seen}
    with figure(folder / "conv_normalizer.png", figsize=(8.5, 4.2)) as (drawing, axis):
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
        title = "after one step the averages hold moments that are"
        drawing.legend(title=title, loc="outside lower center", ncols=3)


def summarize(result: dict) -> str:
    lines = [f"What the averages took in after one step, over {result['sessions']} fresh sessions each"]
    for order, kinds in result["race"].items():
        lines += [f"  {order:<42}{kind:<10}{counted(each['outcomes'])}" for kind, each in kinds.items()]
    lines += ["", f"Test accuracy after {result['steps']} steps, by the averages"]
    for order in (SUGGESTED, LIBRARY):
        lines.append(f"  {order:<42}{spread([each[order]['accuracy'] for each in result['trained']])}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
