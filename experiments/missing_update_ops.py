"""Update ops that nothing runs: with and without the control dependency, and what the dependency orders.

Documents: article, *Wrong use and its result*, *tf.layers.batch_normalization* and *UPDATE_OPS*; solver, ``class Model``.
Claims article-01, 07, 13, solver-09. What the collection's entries look like, and which of them a scope takes, is the
page collected_update_ops.

    make missing-update-ops

The solver document's network with tf.layers is trained for one epoch twice, from the same weights on the same batches:
once with the train op made under ``tf.control_dependencies`` of ``UPDATE_OPS``, as both documents say, and once without,
as the article's author first did. Both are tested with is_training True and False, and their statistics are read. The
rest needs no training: what is in the collection and when, and which ops the dependency orders.

Changed from the documents: the article names no network, so the solver document's is taken.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.graphs import effects
from bn_graph.graphs.graph import build
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness, kept_work
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import data_name, seeds, spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap
from experiments.model_solver import BATCH_SIZE, EPOCH_STEPS, HIDDEN_UNITS, LEARNING_RATE, normalized_by_tf_layers

KEY = tf.GraphKeys.UPDATE_OPS
FORMS = {"with": "with the dependency", "without": "without"}
# Runs whose ops are timed, for the order of updates and training.
TRACED_RUNS = 50
# "badly" without further words: so many times the mistakes of the same network with is_training True.
BADLY = 2.0

# What the article's first snippet consists of, with gaps where the article leaves gaps.
SNIPPET = """
is_training = tf.placeholder(dtype=tf.bool)
outputs = tf.layers.batch_normalization(tf.ones([1, 2, 2, 3]), training=is_training)
loss = {loss}
train_op = optimizer.minimize(loss)
session.run(tf.global_variables_initializer())
session.run(train_op, {feed})
"""

FULL = Mode(data="mnist", steps=EPOCH_STEPS, seeds=[0, 1, 2, 3, 4])
# Ten epochs of the digits: after one the statistics would still hold 0.99⁴⁰ = 2/3 of their start.
QUICK = Mode(data="digits", steps=400, seeds=[0])


# The right form, which both documents give.
def with_dependency(optimizer: tf.train.Optimizer, loss: tf.Tensor) -> tf.Operation:
    with tf.control_dependencies(tf.get_collection(KEY)):
        return optimizer.minimize(loss)


# The form of the article's author at first.
def without_dependency(optimizer: tf.train.Optimizer, loss: tf.Tensor) -> tf.Operation:
    return optimizer.minimize(loss)


TRAIN_OPS = {"with": with_dependency, "without": without_dependency}


def run(settings: Settings) -> dict:
    def train_both(seed: int) -> dict:
        return {"seed": seed} | {form: train(settings, seed, form) for form in FORMS}

    identity = {"batch": BATCH_SIZE, "rate": LEARNING_RATE}
    return {
        # A seed that is done is not trained again.
        "runs": [
            kept_work.measured_once(settings, seed, "", lambda seed=seed: train_both(seed), **identity)
            for seed in settings.seeds
        ],
        "snippet": snippet_step_by_step(),
        "collected": entries_of_the_collection(),
        "in_the_graph": updates_in_the_graph(),
        "ordered": {form: ops_that_wait(make_train_op) for form, make_train_op in TRAIN_OPS.items()},
        "order_of_runs": {form: order_of_runs(make_train_op) for form, make_train_op in TRAIN_OPS.items()},
    }


def accuracies(result: dict, form: str, phase: str) -> list[float]:
    return [run[form][phase][1] for run in result["runs"]]


# --- article-01: True tests well and False badly ----------------------------------------------------------------------
def train(settings: Settings, seed: int, form: str) -> dict:
    split, test = settings.dataset.train, settings.dataset.test
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        inputs, classes = split.images.shape[1], split.labels.shape[1]
        model = bn_graph.Model("net", inputs, classes, HIDDEN_UNITS, hidden_layer=normalized_by_tf_layers, seed=seed)
        # Model's own train op would run the updates; here it is the documents' that is looked at.
        model.train_op = TRAIN_OPS[form](tf.train.AdamOptimizer(LEARNING_RATE), model.loss)
        solver = bn_graph.Solver(session, model)
        session.run(tf.global_variables_initializer())
        step = bn_graph.step_of(model)
        advance = harness.LOOPS[settings.loop](session, step, split, batch_size=BATCH_SIZE, seed=seed)
        for _ in harness.advance_with_progress(advance, range(settings.steps), f"seed {seed}, {FORMS[form]}"):
            # Nothing is looked at before the end.
            pass
        statistics = session.run(bn_graph.moving_statistics())
        means, variances = np.concatenate(statistics[0::2]), np.concatenate(statistics[1::2])
        return {
            "training_true": solver.evaluate(test.images, test.labels, is_training=True),
            "training_false": solver.evaluate(test.images, test.labels),
            "moving_mean": means.round(4).tolist(),
            "moving_variance": variances.round(4).tolist(),
            "unmoved": bool((means == 0.0).all() and (variances == 1.0).all()),
        }


def snippet_step_by_step() -> list[dict[str, str]]:
    """The article's snippet as it stands, and then with one gap after the other filled, until it runs."""
    given = {"optimizer": tf.train.GradientDescentOptimizer(0.1)}
    attempts = (
        ("as printed", "...", "{}", {}),
        ("with an optimizer", "...", "{}", given),
        ("and with a loss", "tf.reduce_sum(outputs)", "{}", given),
        ("and with is_training fed", "tf.reduce_sum(outputs)", "{is_training: True}", given),
    )
    found = []
    for what, loss, feed, names in attempts:
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            legacy_layers()
            try:
                exec(SNIPPET.format(loss=loss, feed=feed), {"tf": tf, "session": session} | names)
                statistics = [value.tolist() for value in session.run(bn_graph.moving_statistics())]
                outcome = f"runs; statistics {statistics}"
            except Exception as error:
                outcome = f"{type(error).__name__}: {reason(error)}"
        found.append({"attempt": what, "outcome": outcome})
    return found


def reason(error: Exception) -> str:
    """The line of the message that names a placeholder to feed, or else the first."""
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines() if line.strip()]
    return next((line for line in lines if "must feed" in line), lines[0])


def judge_article_01(result: dict) -> Verdict:
    runs = result["runs"]
    true, false = (accuracies(result, "without", phase) for phase in ("training_true", "training_false"))
    repaired = accuracies(result, "with", "training_false")
    times = [(1 - other) / (1 - one) for one, other in zip(true, false, strict=True)]
    measured = (
        f"Without the dependency the accuracy is {spread(true)} with True and {spread(false)} with False, which makes "
        f"{spread(times, 1)} times as many mistakes; with it, False gives {spread(repaired)}."
    )
    stages = [attempt["outcome"].split(":")[0] for attempt in result["snippet"]]
    gaps = sum(not stage.startswith("runs") for stage in stages)
    losses = [run["without"]["training_false"][0] / run["without"]["training_true"][0] for run in runs]
    unmoved = sum(run["without"]["unmoved"] for run in runs)
    note = (
        f'"Badly" is read as at least {BADLY:g} times the mistakes, in every run; the loss is {min(losses):.0f} to '
        f"{max(losses):.0f} times that of True. The statistics were still 0 and 1 in {unmoved} of {len(runs)} runs; {gaps} "
        f"gaps of the printed snippet had to be filled before it ran ({', '.join(stages[:-1])})."
    )
    if unmoved < len(runs):
        return does_not_hold(measured, "The statistics were updated all the same.")
    return (holds if min(times) >= BADLY else does_not_hold)(measured, note)


# --- article-07: an empty list before the layer is built --------------------------------------------------------------
def entries_of_the_collection() -> dict[str, int]:
    """How many update ops the collection has before a layer is built, after, and with two layers of one scope."""
    layer = legacy_layers().batch_normalization
    found = {}
    with tf.Graph().as_default():
        inputs, is_training = tf.ones([1, 2, 2, 3]), tf.placeholder(tf.bool)
        found["before building"] = len(tf.get_collection(KEY))
        layer(inputs, training=is_training)
        found["after building"] = len(tf.get_collection(KEY))
    for name, second in (("train and infer, one scope", False), ("train and train, one scope", True)):
        with tf.Graph().as_default():
            layer(tf.ones([1, 2, 2, 3]), training=True, name="bn")
            layer(tf.ones([1, 2, 2, 3]), training=second, name="bn", reuse=True)
            found[name] = len(tf.get_collection(KEY))
            found[f"{name}: variables"] = len(bn_graph.moving_statistics())
    return found


def judge_article_07(result: dict) -> Verdict:
    found = result["collected"]
    before, after = found["before building"], found["after building"]
    infer, train = found["train and infer, one scope"], found["train and train, one scope"]
    measured = (
        f"The collection has {before} ops before the layer is built and {after} after; of one layer applied twice, to train "
        f"and to infer, {infer}, and to train both times, {train}."
    )
    if (before, after) != (0, 2):
        return does_not_hold(measured, "Two were to be expected after building, and none before.")
    if train == after:
        return holds(measured, "However often the layer is applied.")
    note = f"Applied twice in training, a layer leaves {train} ops for its {found['train and train, one scope: variables']} "
    return holds_with_a_trap("a layer applied twice in training moves twice a step", measured, f"{note}statistics.")


# --- article-13: the updates before the train op ----------------------------------------------------------------------
def small_network() -> tf.Tensor:
    """The loss of a dense layer and a batch norm layer, small enough to list its ops; the switch fixed to training."""
    inputs = tf.constant(np.random.default_rng(0).normal(size=[64, 16]).astype(np.float32))
    net = legacy_layers().batch_normalization(legacy_layers().dense(inputs, 8), training=True)
    return tf.reduce_mean(tf.square(legacy_layers().dense(tf.nn.relu(net), 4)))


def ops_that_wait(make_train_op: Callable) -> dict[str, list[int]]:
    """For the forward pass, the gradients, and the ops that apply them: how many wait for all updates, of how many."""
    with tf.Graph().as_default() as graph:
        loss = small_network()
        updates = {entry.name for entry in tf.get_collection(KEY)}
        forward = effects.upstream(build(graph), [loss.op.name])
        earlier = {op.name for op in graph.get_operations()}
        train_op = make_train_op(tf.train.GradientDescentOptimizer(0.1), loss)
        built = build(graph)
        later = [op for op in graph.get_operations() if op.name not in earlier]
        kinds = {
            "forward": sorted(forward),
            "gradients": [op.name for op in later if op.name.startswith("gradients/")],
            "applies": [op.name for op in later if op.type.startswith("ResourceApply")],
            "train_op": [train_op.name],
        }
        return {
            kind: [sum(updates <= effects.upstream(built, [name]) for name in names), len(names)]
            for kind, names in kinds.items()
        }


def order_of_runs(make_train_op: Callable) -> dict[str, int]:
    """Timed runs of the train op and the updates in one call: in how many every update had ended when applying began."""
    first = 0
    options = tf.RunOptions(trace_level=tf.RunOptions.SOFTWARE_TRACE)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config(threads=2)) as session:
        loss = small_network()
        updates = tf.get_collection(KEY)
        train_op = make_train_op(tf.train.GradientDescentOptimizer(0.1), loss)
        session.run(tf.global_variables_initializer())
        for _ in range(TRACED_RUNS):
            metadata = tf.RunMetadata()
            session.run([train_op, *updates], options=options, run_metadata=metadata)
            nodes = [node for device in metadata.step_stats.dev_stats for node in device.node_stats]
            ends = {node.node_name: node.all_start_nanos + node.op_end_rel_nanos for node in nodes}
            applied = [node.all_start_nanos for node in nodes if "ResourceApply" in node.node_name]
            first += max(ends[update.name] for update in updates) <= min(applied)
    return {"runs": TRACED_RUNS, "updates_first": first}


def judge_article_13(result: dict) -> Verdict:
    ordered, timed = result["ordered"], result["order_of_runs"]
    counts = {kind: "{} of {}".format(*pair) for kind, pair in ordered["with"].items()}
    measured = (
        f"{counts['applies']} applying ops, {counts['gradients']} gradient ops and {counts['forward']} forward ops wait for "
        f"the updates, which came first in {timed['with']['updates_first']} of {timed['with']['runs']} timed runs."
    )
    applies, forward = ordered["with"]["applies"], ordered["with"]["forward"]
    if applies[0] < applies[1] or timed["with"]["updates_first"] < timed["with"]["runs"]:
        return does_not_hold(measured, "Some weights are assigned before the updates have run.")
    if forward[0] == forward[1]:
        return holds(measured, "The whole step waits, forward pass included.")
    note = (
        "Read of the ops made inside the block, which compute gradients and apply them. The forward pass was built before it: "
        "the updates need its batch statistics themselves. With nothing to order them, the updates came first in "
        f"{timed['without']['updates_first']} runs."
    )
    return holds_with_a_trap("the forward pass is not ordered by it", measured, note)


# --- solver-09: not in the graph? -------------------------------------------------------------------------------------
def updates_in_the_graph() -> dict:
    """Where the moving averages are: in the graph, among its variables, and above the train op or not."""
    found = {}
    for form, make_train_op in TRAIN_OPS.items():
        with tf.Graph().as_default() as graph:
            loss = small_network()
            updates = [entry.name for entry in tf.get_collection(KEY)]
            train_op = make_train_op(tf.train.GradientDescentOptimizer(0.1), loss)
            names = {op.name for op in graph.get_operations()}
            found["variables"] = sum(variable in tf.global_variables() for variable in bn_graph.moving_statistics())
            found["updates"] = len(updates)
            found["updates_in_the_graph"] = sum(update in names for update in updates)
            above = effects.upstream(build(graph), [train_op.name])
            found[f"updates_above_the_train_op_{form}"] = sum(update in above for update in updates)
    return found


def judge_solver_09(result: dict) -> Verdict:
    found = result["in_the_graph"]
    without, with_ = (found[f"updates_above_the_train_op_{form}"] for form in ("without", "with"))
    false = {form: accuracies(result, form, "training_false") for form in FORMS}
    measured = (
        f"{found['updates_in_the_graph']} of {found['updates']} updates are in the graph, and the train op depends on "
        f"{without} of them ({with_} with the dependency); left out, the accuracy with False is {spread(false['without'])}."
    )
    if without == found["updates"]:
        return does_not_hold(measured, "The train op runs the updates without being told to.")
    if found["updates_in_the_graph"] == 0:
        return holds(measured, "They are not in the graph.")
    note = (
        "Added by hand they must be, but the reason is another: the statistics and their updates are in the graph, and the "
        f"train op doesn't depend on them. With the dependency, False gives {spread(false['with'])}."
    )
    return does_not_hold(measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {
    "missing_update_ops.png": "One training with and one without the dependency on UPDATE_OPS. Left: with is_training "
    "True both look well, and False gives the missing dependency away. Right: without it the statistics of every unit "
    "stand where they began, at mean 0 and variance 1."
}


def draw(result: dict, folder: Path) -> None:
    """Left the accuracies of both trainings in both phases, right what their statistics hold."""
    with figure(folder / "missing_update_ops.png", ncols=2, figsize=(11, 4.6)) as (drawing, axes):
        draw_accuracies(axes[0], result)
        draw_statistics(axes[1], result["runs"][0])
        drawing.suptitle(f"{data_name(result)}, {result['steps']:,} steps, {seeds(result)}")


def draw_accuracies(axis, result: dict) -> None:
    bars = list(itertools.product(FORMS, ("training_true", "training_false")))
    for place, (form, phase) in enumerate(bars):
        values = accuracies(result, form, phase)
        axis.bar(place, np.median(values), color=BLUE if form == "with" else ORANGE, alpha=0.85, width=0.65)
        axis.plot([place] * len(values), values, "k.", markersize=5)
        axis.text(place, max(values) + 0.02, f"{np.median(values):.3f}", ha="center")
    labels = [f"{form},\n{phase.removeprefix('training_').capitalize()}" for form, phase in bars]
    axis.set_xticks(range(len(bars)), labels)
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
    label = "train op with or without the dependency, is_training while testing"
    axis.set(ylim=(0, 1.1), xlabel=label, ylabel="share right of the test set")
    axis.set_title("Accuracy (bar: median, dots: seeds)")


def draw_statistics(axis, run: dict) -> None:
    for form, colour, marker in (("with", BLUE, "o"), ("without", ORANGE, "X")):
        values = run[form]
        label = f"{FORMS[form]} (all {len(values['moving_mean'])} in one place)" if values["unmoved"] else FORMS[form]
        size = 110 if values["unmoved"] else 22
        axis.scatter(values["moving_mean"], values["moving_variance"], c=colour, marker=marker, s=size, label=label)
    axis.set(yscale="log", xlabel="moving_mean", ylabel="moving_variance")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_title(f"The statistics of every hidden unit (seed {run['seed']})")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def summarize(result: dict) -> str:
    lines = ["Test accuracy          is_training True            is_training False"]
    for form, label in FORMS.items():
        cells = [spread(accuracies(result, form, phase)) for phase in ("training_true", "training_false")]
        lines.append(f"{label:<22} {cells[0]:<27} {cells[1]}")
    lines += ["", "The article's snippet", *(f"  {each['attempt']}: {each['outcome']}" for each in result["snippet"])]
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
