"""Update ops that nothing runs: with and without the control dependency, and the traps of collecting them by scope.

Documents: article, *Wrong use and its result*, *tf.layers.batch_normalization* and *UPDATE_OPS*; solver, ``class Model``.
Claims article-01, 07, 10, 13, solver-09, 10.

    make missing-update-ops        or        python -m experiments.missing_update_ops --mode full

The solver document's network with tf.layers is trained for one epoch twice, from the same weights on the same batches:
once with the train op made under ``tf.control_dependencies`` of ``UPDATE_OPS``, as both documents say, and once without,
as the article's author first did. Both are tested with is_training True and False, and their statistics are read. The
rest needs no training: what is in the collection and when, how it prints today, which ops the dependency orders, and
what ``get_collection(key, scope)`` takes for a name.

Changed from the documents: the article names no network, so the solver document's is taken.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.graphs import effects
from bn_graph.graphs.graph import build
from bn_graph.tf1 import legacy_layers, tf
from bn_graph.training import train_op
from experiments.machinery import harness, kept_work
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, dated, does_not_hold, holds, holds_if
from experiments.model_solver import BATCH_SIZE, EPOCH_STEPS, HIDDEN_UNITS, LEARNING_RATE, normalized_by_tf_layers

# Ten epochs of the digits: after one the statistics would still hold 0.99⁴⁰ = 2/3 of their start.
QUICK_STEPS = 400
# Runs whose ops are timed, for the order of updates and training.
TRACED_RUNS = 50
# "badly" without further words: ten points of accuracy below the same network's with is_training True.
BADLY = 0.1

KEY = tf.GraphKeys.UPDATE_OPS
FORMS = {"with": "with the dependency", "without": "without"}
DOCUMENT_PRINTS = [
    "<tf.Tensor 'batch_normalization/AssignMovingAvg:0' shape=(3,) dtype=float32_ref>",
    "<tf.Tensor 'batch_normalization/AssignMovingAvg_1:0' shape=(3,) dtype=float32_ref>",
]

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
QUICK = Mode(data="digits", steps=QUICK_STEPS, seeds=[0])


def run(settings: harness.Settings) -> dict:
    return {
        "runs": [_train_both(settings, seed) for seed in settings.seeds],
        "snippet": _snippet_step_by_step(),
        "collected": _what_is_collected_when(),
        "printed": _how_it_prints(),
        "in_the_graph": _what_is_in_the_graph(),
        "ordered": {form: _what_is_ordered(train_op) for form, train_op in _TRAIN_OPS.items()},
        "order_of_runs": {form: _order_of_runs(train_op) for form, train_op in _TRAIN_OPS.items()},
        "scopes": _what_a_scope_takes(),
        "consequences": _what_a_wrong_scope_does(),
    }


def _train_both(settings: harness.Settings, seed: int) -> dict:
    """Both trainings of one seed; a seed that is done is not trained again."""
    return kept_work.measured_once(
        settings,
        seed,
        "",
        lambda: {"seed": seed} | {form: _train(settings, seed, form) for form in FORMS},
        batch=BATCH_SIZE,
        rate=LEARNING_RATE,
    )


def _train(settings: harness.Settings, seed: int, form: str) -> dict:
    train, test = settings.dataset.train, settings.dataset.test
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        inputs, classes = train.images.shape[1], train.labels.shape[1]
        model = bn_graph.Model("net", inputs, classes, HIDDEN_UNITS, hidden_layer=normalized_by_tf_layers, seed=seed)
        # Model's own train op would run the updates; here it is the documents' that is looked at.
        model.train_op = _TRAIN_OPS[form](tf.train.AdamOptimizer(LEARNING_RATE), model.loss)
        solver = bn_graph.Solver(session, model)
        session.run(tf.global_variables_initializer())
        advance = harness.LOOPS[settings.loop](
            session, bn_graph.step_of(model), train, batch_size=BATCH_SIZE, seed=seed
        )
        for _ in harness.advance_with_progress(advance, range(settings.steps), f"seed {seed}, {FORMS[form]}"):
            pass  # nothing is looked at before the end
        statistics = session.run(bn_graph.moving_statistics())
        means, variances = np.concatenate(statistics[0::2]), np.concatenate(statistics[1::2])
        return {
            "training_true": solver.evaluate(test.images, test.labels, is_training=True),
            "training_false": solver.evaluate(test.images, test.labels),
            "moving_mean": means.round(4).tolist(),
            "moving_variance": variances.round(4).tolist(),
            "unmoved": bool((means == 0.0).all() and (variances == 1.0).all()),
        }


def _with_dependency(optimizer: tf.train.Optimizer, loss: tf.Tensor) -> tf.Operation:
    with tf.control_dependencies(tf.get_collection(KEY)):
        return optimizer.minimize(loss)


def _without_dependency(optimizer: tf.train.Optimizer, loss: tf.Tensor) -> tf.Operation:
    return optimizer.minimize(loss)


_TRAIN_OPS: dict[str, Callable[[tf.train.Optimizer, tf.Tensor], tf.Operation]] = {
    "with": _with_dependency,
    "without": _without_dependency,
}


def _snippet_step_by_step() -> list[dict[str, str]]:
    """The article's snippet as it stands, and then with one gap after the other filled, until it runs."""
    with_optimizer = {"optimizer": tf.train.GradientDescentOptimizer(0.1)}
    attempts = (
        ("as printed", "...", "{}", {}),
        ("with an optimizer", "...", "{}", with_optimizer),
        ("and with a loss", "tf.reduce_sum(outputs)", "{}", with_optimizer),
        ("and with is_training fed", "tf.reduce_sum(outputs)", "{is_training: True}", with_optimizer),
    )
    found = []
    for what, loss, feed, given in attempts:
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            legacy_layers()
            try:
                exec(SNIPPET.format(loss=loss, feed=feed), {"tf": tf, "session": session} | given)
                outcome = "runs; statistics " + str(
                    [value.tolist() for value in session.run(bn_graph.moving_statistics())]
                )
            except Exception as error:
                outcome = f"{type(error).__name__}: {_telling_line(error)}"
        found.append({"attempt": what, "outcome": outcome})
    return found


def _telling_line(error: Exception) -> str:
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines() if line.strip()]
    return next((line for line in lines if "must feed" in line), lines[0])


def _what_is_collected_when() -> dict[str, int]:
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


def _how_it_prints() -> dict[str, list[str]]:
    """The collection's entries as `print` shows them, for each rank and each kind of variable."""
    printed = {}
    for variables, resource in (("resource variables", True), ("ref variables", False)):
        for rank, shape in ((4, [1, 2, 2, 3]), (2, [4, 3])):
            with tf.Graph().as_default(), tf.variable_scope("", use_resource=resource):
                try:
                    legacy_layers().batch_normalization(tf.ones(shape), training=tf.placeholder(tf.bool))
                    entries = [repr(entry) for entry in tf.get_collection(KEY)]
                except TypeError as error:  # a branch of today's cond can't assign a ref variable
                    entries = [f"{type(error).__name__}: {_telling_line(error)}"]
            printed[f"rank {rank}, {variables}"] = entries
    return printed


def _small_network() -> tuple[tf.Tensor, tf.Tensor]:
    """A dense layer, a batch norm layer and a loss, small enough to list its ops; the switch fixed to training."""
    inputs = tf.constant(np.random.default_rng(0).normal(size=[64, 16]).astype(np.float32))
    net = legacy_layers().dense(inputs, 8)
    net = legacy_layers().batch_normalization(net, training=True)
    return inputs, tf.reduce_mean(tf.square(legacy_layers().dense(tf.nn.relu(net), 4)))


def _what_is_in_the_graph() -> dict:
    """Where the moving averages are: in the graph, among its variables, and above the train op or not."""
    found = {}
    for form, make_train_op in _TRAIN_OPS.items():
        with tf.Graph().as_default() as graph:
            _, loss = _small_network()
            updates = [entry.name for entry in tf.get_collection(KEY)]
            train_op = make_train_op(tf.train.GradientDescentOptimizer(0.1), loss)
            built = build(graph)
            names = {op.name for op in graph.get_operations()}
            found["variables"] = sum(variable in tf.global_variables() for variable in bn_graph.moving_statistics())
            found["updates"] = len(updates)
            found["updates_in_the_graph"] = sum(update in names for update in updates)
            above = effects.upstream(built, [train_op.name])
            found[f"updates_above_the_train_op_{form}"] = sum(update in above for update in updates)
    return found


def _what_is_ordered(make_train_op: Callable) -> dict[str, list[int]]:
    """For the forward pass, the gradients, and the ops that apply them: how many wait for all updates, of how many."""
    with tf.Graph().as_default() as graph:
        _, loss = _small_network()
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


def _order_of_runs(make_train_op: Callable) -> dict[str, int]:
    """Timed runs of the train op and the updates in one call: in how many every update had ended when applying began."""
    first = 0
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config(threads=2)) as session:
        _, loss = _small_network()
        updates = tf.get_collection(KEY)
        train_op = make_train_op(tf.train.GradientDescentOptimizer(0.1), loss)
        session.run(tf.global_variables_initializer())
        for _ in range(TRACED_RUNS):
            starts, ends = _traced(session, [train_op, *updates])
            applied = [start for name, start in starts.items() if "ResourceApply" in name]
            first += max(ends[update.name] for update in updates) <= min(applied)
    return {"runs": TRACED_RUNS, "updates_first": first}


def _traced(session: tf.Session, fetches: list[tf.Operation]) -> tuple[dict[str, int], dict[str, int]]:
    """Start and end of each op in one run, in nanoseconds."""
    metadata = tf.RunMetadata()
    session.run(fetches, options=tf.RunOptions(trace_level=tf.RunOptions.SOFTWARE_TRACE), run_metadata=metadata)
    nodes = [node for device in metadata.step_stats.dev_stats for node in device.node_stats]
    starts = {node.node_name: node.all_start_nanos for node in nodes}
    return starts, {node.node_name: node.all_start_nanos + node.op_end_rel_nanos for node in nodes}


@contextmanager
def _added_updates() -> Iterator[list]:
    """The update ops that are added within the block."""
    before, added = len(tf.get_collection(KEY)), []
    yield added
    added += tf.get_collection(KEY)[before:]


def _layer_of(inputs: tf.Tensor, name: str, normalized: bool = True) -> tf.Tensor:
    """A model of one layer in a scope of its own, with its own switch as in the documents."""
    with tf.variable_scope(name):
        is_training = tf.placeholder(tf.bool, name="train_mode")
        net = legacy_layers().dense(inputs, 3)
        return legacy_layers().batch_normalization(net, training=is_training, name="norm") if normalized else net


def _what_a_scope_takes() -> list[dict]:
    """Pairs of models in one graph; what `get_collection` takes for the first one's scope, and what it should."""
    found = []
    pairs = (("batchnorm", "no_norm", False), ("left", "right", True), ("bn", "bn2", True), ("net.1", "net_1", True))
    for name, other, normalized in pairs:
        with tf.Graph().as_default():
            inputs = tf.ones([4, 2])
            with _added_updates() as own:
                _layer_of(inputs, name)
            _layer_of(inputs, other, normalized)
            found.append({"models": f"{name}, {other}", "scope": name} | _taken(name, own, name))
    for scope in ("bn", "bn/"):
        with tf.Graph().as_default():
            inputs = tf.ones([4, 2])
            with _added_updates() as own:
                for layer in ("first", "second"):
                    with tf.variable_scope("bn"):
                        legacy_layers().batch_normalization(inputs, training=True, name=layer)
            found.append({"models": "bn, opened twice", "scope": scope} | _taken(scope, own, "bn"))
    return found


def _taken(scope: str, own: list, path: str) -> dict[str, int]:
    taken = tf.get_collection(KEY, scope=scope)
    by_library = train_op.collect(path)
    return {
        "own": len(own),
        "taken": len(taken),
        "missed": sum(op not in taken for op in own),
        "foreign": sum(op not in own for op in taken),
        "library_right": int({op.name for op in by_library} == {op.name for op in own}),
    }


def _what_a_wrong_scope_does() -> dict[str, str]:
    """Training one model alone with the update ops of both: an error where the other must be fed, silence where not."""
    found = {}
    cases = (("the document's two, with scope", "no_norm"), ("the document's two, without scope", None))
    for case, scope in cases:
        with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
            inputs = tf.ones([4, 2])
            _layer_of(inputs, "batchnorm")
            loss = tf.reduce_mean(_layer_of(inputs, "no_norm", normalized=False))
            with tf.control_dependencies(tf.get_collection(KEY, scope=scope)):
                train_op = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
            session.run(tf.global_variables_initializer())
            try:
                session.run(train_op)
                found[case] = "runs"
            except tf.errors.InvalidArgumentError as error:
                found[case] = f"InvalidArgumentError: {_telling_line(error)}"
    found["bn beside bn2, both in training"] = _statistics_moved_by_another_model()
    return found


def _statistics_moved_by_another_model() -> str:
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        outputs = {}
        for name in ("bn", "bn2"):
            with tf.variable_scope(name):
                outputs[name] = legacy_layers().batch_normalization(tf.ones([4, 2]), training=True, name="norm")
        with tf.control_dependencies(tf.get_collection(KEY, scope="bn")):
            train_op = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(outputs["bn"]))
        session.run(tf.global_variables_initializer())
        session.run(train_op)
        moved = [variable for variable in bn_graph.moving_statistics() if variable.op.name.startswith("bn2/")]
        means = session.run(moved[0])
    return "runs; moves bn2's statistics" if np.any(means != 0.0) else "runs; leaves bn2's statistics alone"


def _accuracies(result: dict, form: str, phase: str) -> list[float]:
    return [run[form][phase][1] for run in result["runs"]]


def judge_article_01(result: dict) -> Verdict:
    runs = result["runs"]
    true, false = (_accuracies(result, "without", phase) for phase in ("training_true", "training_false"))
    mended = _accuracies(result, "with", "training_false")
    measured = (
        f"without: True {spread(true)}, False {spread(false)}; with: False {spread(mended)}; statistics still 0 and 1 in "
        f"{sum(run['without']['unmoved'] for run in runs)} of {len(runs)} runs without"
    )
    stages = [attempt["outcome"].split(":")[0] for attempt in result["snippet"]]
    gaps = f"{sum(not stage.startswith('runs') for stage in stages)} gaps of the printed snippet had to be filled before it ran"
    falls = [one - other for one, other in zip(true, false, strict=True)]
    ordinary = max(abs(a - b) for a, b in zip(_accuracies(result, "with", "training_true"), mended, strict=True))
    losses = [run["without"]["training_false"][0] / run["without"]["training_true"][0] for run in runs]
    fallen = f"{100 * min(falls):.1f} to {100 * max(falls):.1f} points"
    note = (
        f"False is worse by {fallen} of accuracy, and its loss {min(losses):.0f} to {max(losses):.0f} times that of True; "
        f"{gaps} ({', '.join(stages[:-1])})."
    )
    if not all(run["without"]["unmoved"] for run in runs):
        return does_not_hold(measured, "The statistics were updated all the same.")
    if min(falls) >= BADLY:
        return holds(measured, note)
    if min(falls) > ordinary:
        return holds_if(f'"badly" means {fallen} of accuracy lower', measured, note)
    if max(falls) >= BADLY:
        return holds_if("the seed is unlucky", measured, note)
    return does_not_hold(measured, note)


def judge_article_07(result: dict) -> Verdict:
    found = result["collected"]
    before, after = found["before building"], found["after building"]
    infer, train = found["train and infer, one scope"], found["train and train, one scope"]
    measured = (
        f"{before} before building, {after} after; one layer twice: train and infer {infer}, train and train {train}"
    )
    if before == 0 and after == 2:
        return holds(
            measured,
            f"A layer applied twice in training leaves {train} ops for its two statistics: they move twice a step.",
        )
    return does_not_hold(measured, "Two were to be expected after building, and none before.")


def judge_article_10(result: dict) -> Verdict:
    printed = result["printed"]
    today = printed["rank 4, resource variables"]
    measured = "; ".join(today)
    as_printed = [kind for kind, entries in printed.items() if entries == DOCUMENT_PRINTS]
    if "rank 4, resource variables" in as_printed:
        return holds(measured, "Digit for digit.")
    if as_printed:
        return holds_if(f"built with {' or '.join(as_printed)}", measured, "Today's default prints something else.")
    rank2 = printed["rank 2, resource variables"]
    if len(today) == 2 and all("AssignMovingAvg" in entry for entry in today):
        note = (
            "There are two still, but no float32_ref tensors: today they are operations on resource variables. "
            f"For inputs of rank 2 the name is gone as well: {rank2[0]}."
        )
        return dated(measured, note)
    return does_not_hold(measured, f"{len(today)} entries, and not all of them AssignMovingAvg.")


def judge_article_13(result: dict) -> Verdict:
    ordered, timed = result["ordered"], result["order_of_runs"]
    counts = {kind: "{} of {}".format(*pair) for kind, pair in ordered["with"].items()}
    measured = (
        f"wait for the updates: {counts['applies']} applying ops, {counts['gradients']} gradient ops, {counts['forward']} "
        f"forward ops; updates first in {timed['with']['updates_first']} of {timed['with']['runs']} timed runs, "
        f"{timed['without']['updates_first']} where both were run with nothing to order them"
    )
    applies, forward = ordered["with"]["applies"], ordered["with"]["forward"]
    if applies[0] < applies[1] or timed["with"]["updates_first"] < timed["with"]["runs"]:
        return does_not_hold(measured, "Some weights are assigned before the updates have run.")
    if forward[0] == forward[1]:
        return holds(measured, "The whole step waits, forward pass included.")
    note = (
        "Ordered are the ops made inside the block, those that compute gradients and those that apply them. The forward "
        "pass was built before it and isn't ordered: the updates need its batch statistics themselves."
    )
    return holds_if("the train op means gradients and their applying", measured, note)


def judge_solver_09(result: dict) -> Verdict:
    found = result["in_the_graph"]
    without, with_ = (found[f"updates_above_the_train_op_{form}"] for form in ("without", "with"))
    false = {form: _accuracies(result, form, "training_false") for form in FORMS}
    true = _accuracies(result, "without", "training_true")
    measured = (
        f"{found['updates_in_the_graph']} of {found['updates']} updates are in the graph, {without} above the train op "
        f"({with_} with the dependency); left out: True {spread(true)}, False {spread(false['without'])}"
    )
    if without == found["updates"]:
        return does_not_hold(measured, "The train op runs the updates without being told to.")
    if found["updates_in_the_graph"] == 0:
        return holds(measured, "They are not in the graph.")
    note = (
        "Added they must be, but not for the given reason: the statistics and their updates are in the graph, and the train "
        f"op doesn't depend on them. With the dependency, False gives {spread(false['with'])}."
    )
    return holds_if('"in the graph" means above the train op', measured, note)


def judge_solver_10(result: dict) -> Verdict:
    cases = result["scopes"]
    wrong = [case for case in cases if case["missed"] or case["foreign"]]
    measured = "; ".join(
        f"{case['models']}: '{case['scope']}' takes {case['taken']}, own {case['own']}" for case in cases
    )
    unscoped = result["consequences"]["the document's two, without scope"].split(":")[0]
    silent = result["consequences"]["bn beside bn2, both in training"].removeprefix("runs; ")
    note = (
        f"The scope is the beginning of a regular expression: {len(wrong)} of {len(cases)} cases go wrong, and a step of bn "
        f"beside bn2 {silent}. With no scope, training the document's no_norm alone: {unscoped}."
    )
    if not wrong:
        return holds(measured, note)
    if wrong and not (cases[0]["missed"] or cases[0]["foreign"]):
        return holds_if("no name, read as a regular expression, begins another's", measured, note)
    return does_not_hold(measured, note)


FIGURES = {
    "missing_update_ops.png": "One training with and one without the dependency on UPDATE_OPS. Left: with is_training "
    "True both look well, and False gives the missing dependency away. Right: without it the statistics of every unit "
    "stand where they began, at mean 0 and variance 1."
}


def draw(result: dict, folder: Path) -> None:
    """Left the accuracies of both trainings in both phases, right what their statistics hold."""
    with figure(folder / "missing_update_ops.png", ncols=2, figsize=(11, 4.6)) as (drawing, axes):
        _draw_accuracies(axes[0], result)
        _draw_statistics(axes[1], result["runs"][0])
        count = len(result["runs"])
        drawing.suptitle(
            f"{result['data'].replace('mnist', 'MNIST')}, {result['steps']:,} steps, {count} seed{'s' * (count > 1)}"
        )


def _draw_accuracies(axis, result: dict) -> None:
    bars = list(itertools.product(FORMS, ("training_true", "training_false")))
    for place, (form, phase) in enumerate(bars):
        values = _accuracies(result, form, phase)
        colour = BLUE if form == "with" else ORANGE
        axis.bar(place, np.median(values), color=colour, alpha=0.85, width=0.65)
        axis.plot([place] * len(values), values, "k.", markersize=5)
        axis.text(place, max(values) + 0.02, f"{np.median(values):.3f}", ha="center")
    labels = [f"{form},\n{phase.removeprefix('training_').capitalize()}" for form, phase in bars]
    axis.set_xticks(range(len(bars)), labels)
    axis.set_xlabel("train op with or without the dependency, is_training while testing")
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
    axis.set_ylim(0, 1.1)
    axis.set_ylabel("share right of the test set")
    axis.set_title("Accuracy (bar: median, dots: seeds)")


def _draw_statistics(axis, run: dict) -> None:
    for form, colour, marker in (("with", BLUE, "o"), ("without", ORANGE, "X")):
        values = run[form]
        label = f"{FORMS[form]} (all {len(values['moving_mean'])} in one place)" if values["unmoved"] else FORMS[form]
        size = 110 if values["unmoved"] else 22
        axis.scatter(values["moving_mean"], values["moving_variance"], c=colour, marker=marker, s=size, label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_xlabel("moving_mean")
    axis.set_ylabel("moving_variance")
    axis.set_title(f"The statistics of every hidden unit (seed {run['seed']})")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def summarize(result: dict) -> str:
    lines = ["Test accuracy          is_training True            is_training False"]
    for form, label in FORMS.items():
        cells = [spread(_accuracies(result, form, phase)) for phase in ("training_true", "training_false")]
        lines.append(f"{label:<22} {cells[0]:<27} {cells[1]}")
    lines += ["", "The article's snippet", *(f"  {each['attempt']}: {each['outcome']}" for each in result["snippet"])]
    lines += ["UPDATE_OPS prints", *(f"  {kind}: {', '.join(entries)}" for kind, entries in result["printed"].items())]
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
