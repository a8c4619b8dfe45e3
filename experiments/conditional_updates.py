"""Updates that leak out of a ``tf.cond``: the article's wrapper beside the right one.

Document: article ("tensorflow中的batchnorm"), sections *tf.nn.batch_normalization* and *Thoughts on the wrong use*.
Claims article-05 and article-12.

    make conditional-updates        or        python -m experiments.conditional_updates --mode full

The article's wrapper makes its two assigns first, and names them as control dependencies inside the training branch of
a ``tf.cond``. Ops made outside a branch belong to no branch: whichever is taken, they have run. Three layers are built
for each kind of variable and each kind of ``cond``: the article's, tf.layers', and this library's. Each is trained for
some steps, then run for inference on data from elsewhere, and its statistics are read before and after.

What that costs is shown in service: a network is trained with the article's wrapper, and one with this library's, and both
answer requests of one image or of many, in which the classes are mixed or come one after the other. After some of the
requests the network is scored on the whole test set, by the statistics as they are then.

Changed from the document: the inputs are random numbers and not ones, since with constant inputs the batch's variance is
0 and half of what leaks can't be seen. It trains no network: the one in service is r2rt's.
"""

import functools
import itertools
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness
from experiments.machinery.classifiers import layer_sizes
from experiments.machinery.figures import BLUE, GREEN, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import data_name, largest, seeds
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The article's.
DECAY = 0.99
EPSILON = 1e-3
# The article's.
CHANNELS = 3
BATCH = 16
TRAINING_STEPS = 50
INFERENCE_RUNS = 200
# How far the data of the inference runs lie from those of training, in standard deviations.
SHIFT = 5.0

# In service: images of a request; the requests after which it is scored, half as many again each time.
REQUEST_SIZES, SCORED_AFTER = (1, 32), (0, 1, 2, 3, 5, 8, 12, 18, 30, 45, 70, 100, 150, 225, 300)
MIXED, SORTED = ORDERS = ("mixed", "sorted by class")
# r2rt's network, batch and rate.
HIDDEN_UNITS, BATCH_SIZE, LEARNING_RATE = (100, 100), 60, 0.01

KINDS = {f"{variables}, cond {cond}": (variables, cond) for variables in ("ref", "resource") for cond in ("v1", "v2")}

# A fifth of r2rt's steps, twenty times the memory of the article's average.
FULL = Mode("mnist", 2000, [0, 1, 2, 3, 4])
QUICK = Mode("digits", 100)


def article_wrapper(inputs, is_training, name: str):
    """The article's wrapper in its shape: the assigns stand outside both branches."""
    channels = inputs.shape.as_list()[-1]
    with tf.variable_scope(name):
        scale = tf.get_variable("scale", [channels], initializer=tf.constant_initializer(0.1))
        offset = tf.get_variable("offset", [channels])  # no initializer given, as in the article
        mean = tf.get_variable("pop_mean", [channels], initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable("pop_var", [channels], initializer=tf.ones_initializer(), trainable=False)
        batch_mean, batch_variance = tf.nn.moments(inputs, list(range(inputs.shape.rank - 1)))
        move_mean = tf.assign(mean, mean * DECAY + batch_mean * (1 - DECAY))
        move_variance = tf.assign(variance, variance * DECAY + batch_variance * (1 - DECAY))

        def by_batch():
            with tf.control_dependencies([move_mean, move_variance]):
                return tf.nn.batch_normalization(inputs, batch_mean, batch_variance, offset, scale, EPSILON)

        def by_population():
            return tf.nn.batch_normalization(inputs, mean, variance, offset, scale, EPSILON)

        return tf.cond(is_training, by_batch, by_population)


def tf_layers(inputs, is_training, name: str):
    """tf.layers, whose updates are run by a control dependency on UPDATE_OPS, as its documentation says."""
    outputs = legacy_layers().batch_normalization(
        inputs, momentum=DECAY, epsilon=EPSILON, training=is_training, name=name
    )
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        return tf.identity(outputs)


def wrapper(inputs, is_training, name: str):
    """This library's."""
    return bn_graph.batch_norm_wrapper(inputs, is_training, decay=DECAY, epsilon=EPSILON, name=name)


# What the document's readers had.
DOCUMENTS_KIND = "ref, cond v1"
FORMS = {"article": article_wrapper, "tf.layers": tf_layers, "batch_norm_wrapper": wrapper}


def run(settings: Settings) -> dict:
    measured = {
        form: {kind: _measure(build, *choice, settings.seeds[0]) for kind, choice in KINDS.items()}
        for form, build in FORMS.items()
    }
    service = [{"seed": seed} | {form: in_service(settings, seed, form) for form in SERVED} for seed in settings.seeds]
    return {"forms": measured, "service": service, "inference_runs": INFERENCE_RUNS, "shift": SHIFT, "decay": DECAY}


def _measure(build, variables: str, cond: str, seed: int) -> dict:
    """Trains one layer, then runs it for inference on shifted data, and says what its statistics did meanwhile."""
    is_resource = variables == "resource"
    try:
        with harness.control_flow(cond), tf.Graph().as_default(), tf.variable_scope("", use_resource=is_resource):
            return _run_layer(build, np.random.default_rng(seed))
    except (TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def _run_layer(build, generator: np.random.Generator) -> dict:
    inputs, is_training = tf.placeholder(tf.float32, [None, CHANNELS]), tf.placeholder(tf.bool, [])
    outputs = build(inputs, is_training, "layer")
    mean = next(v for v in tf.global_variables() if v.op.name.endswith("mean"))
    shift = next(v for v in tf.global_variables() if v.op.name.endswith(("offset", "beta")))
    with tf.Session(config=bn_graph.session_config()) as session:
        session.run(tf.global_variables_initializer())
        start = session.run(shift)
        for _ in range(TRAINING_STEPS):
            session.run(outputs, {inputs: generator.normal(size=(BATCH, CHANNELS)), is_training: True})
        trained = session.run(mean)
        drift = []
        for _ in range(INFERENCE_RUNS):
            session.run(outputs, {inputs: generator.normal(SHIFT, 1.0, (BATCH, CHANNELS)), is_training: False})
            drift.append(largest(session.run(mean) - trained))
    return {
        "moved_in_training": bool(np.any(trained != 0.0)),
        "moved_at_inference": drift[-1] > 0.0,
        "drift": [round(value, 5) for value in drift],
        "offset_at_start": [round(float(value), 5) for value in start],
    }


# --- article-05: what inference does to a network in service ----------------------------------------------------------
def article_at_rest(inputs, is_training, name: str):
    """The article's population branch alone, to score by the statistics as they are."""
    with tf.variable_scope(name):
        names = ("pop_mean", "pop_var", "offset", "scale")
        variables = [tf.get_variable(each, inputs.shape[-1:]) for each in names]
        return tf.nn.batch_normalization(inputs, *variables, EPSILON)


# The layer that is trained and asked, and how it is scored.
SERVED = {"article": (article_wrapper, article_at_rest), "batch_norm_wrapper": (wrapper, wrapper)}


def in_service(settings: Settings, seed: int, form: str) -> dict[str, list[float]]:
    """The test accuracy after 0, 1, 2, … requests, by their size and order; in the mode of the document's readers."""
    layer, at_rest = SERVED[form]
    weights = bn_graph.normal_weights(layer_sizes(settings.dataset, HIDDEN_UNITS), seed)
    with (
        harness.control_flow("v1"),
        tf.Graph().as_default(),
        tf.variable_scope("", use_resource=False) as scope,
        tf.Session(config=bn_graph.session_config()) as session,
    ):
        tf.set_random_seed(seed)  # of the article's offsets
        is_training = tf.placeholder(tf.bool, [])
        network = bn_graph.build_graph(is_training, weights, normalizer=layer, learning_rate=LEARNING_RATE)
        scope.reuse_variables()
        resting = bn_graph.build_graph(False, weights, normalizer=at_rest)
        session.run(tf.global_variables_initializer())
        train_step = session.make_callable(network.train_op, [network.x, network.y_, is_training])
        batches = bn_graph.batches(settings.dataset.train, BATCH_SIZE, seed=seed)
        for images, labels in itertools.islice(batches, settings.steps):
            train_step(images, labels, True)
        trained = [(each, session.run(each)) for each in tf.global_variables()]
        predict = session.make_callable(network.prediction, [network.x, is_training])
        test, found = settings.dataset.test, {}
        score = functools.partial(session.run, resting.accuracy, {resting.x: test.images, resting.y_: test.labels})
        for size, order in itertools.product(REQUEST_SIZES, ORDERS):
            assign_values(session, trained)
            scores = found[f"{order}, {size}"] = [float(score())]
            for number, rows in enumerate(requests(test, size, order, seed), start=1):
                predict(test.images[rows], False)
                if number in SCORED_AFTER:
                    scores.append(float(score()))
    return found


def requests(test: bn_graph.Split, size: int, order: str, seed: int) -> np.ndarray:
    """Rows of the test images that each request asks for; sorted, they begin with class 0 and end with the last."""
    count = SCORED_AFTER[-1] * size
    rows = np.random.default_rng(seed).permutation(np.arange(count) % test.size)
    if order == SORTED:
        rows = rows[np.argsort(test.labels[rows].argmax(1), kind="stable")]
    return rows.reshape(-1, size)


def served(result: dict, form: str, size: int, order: str) -> np.ndarray:
    """Accuracies [seed, score]."""
    return np.array([run[form][f"{order}, {size}"] for run in result["service"]])


def judge_article_05(result: dict) -> Verdict:
    runs = result["forms"]["article"]
    built = {kind: run for kind, run in runs.items() if "error" not in run}
    trains = [kind for kind, run in built.items() if run["moved_in_training"]]
    leaks = [kind for kind, run in built.items() if run["moved_at_inference"]]
    offsets = [value for run in built.values() for value in run["offset_at_start"]]
    drift = max((run["drift"][-1] for run in built.values()), default=0.0)
    measured = (
        f"Training updates the population in {len(trains)} of {len(runs)} kinds of graph, and inference moves it too in "
        f"{len(leaks)}, by up to {drift:.2f} in {result['inference_runs']} runs on data {result['shift']:g} deviations away."
    )
    start = "random values, its initializer being left out" if any(offsets) else "0"
    before = np.median(served(result, "article", 1, MIXED)[:, 0])
    ends = {
        (size, order): np.median(served(result, "article", size, order)[:, -1])
        for size in REQUEST_SIZES
        for order in ORDERS
    }
    measured += f" A network that scores {before:.3f} scores, after {SCORED_AFTER[-1]} requests, "
    measured += f"{', '.join(f'{end:.3f} (of {size}, {order})' for (size, order), end in ends.items())}."
    if leaks:
        note = (
            "The assigns are made outside the branches, so they run whichever is taken; made inside the training branch, the "
            f"claim is true. Its offset starts at {start}."
        )
        return does_not_hold(measured, note)
    if len(trains) == len(runs):
        return holds(measured, f"No kind of variable or cond leaks. Its offset starts at {start}.")
    note = f"Its offset starts at {start}."
    if DOCUMENTS_KIND not in trains:
        return does_not_hold(measured, note)
    missing = ", ".join(kind for kind in runs if kind not in trains)
    return holds_with_a_trap(f"nothing is updated with {missing}", measured, note)


def judge_article_12(result: dict) -> Verdict:
    article, layers = (result["forms"][form] for form in ("article", "tf.layers"))
    # tf.layers can't be built of ref variables with control flow v2, a mixture that nobody has.
    kinds = [kind for kind in article if "error" not in article[kind] and "error" not in layers[kind]]
    forms = {"the wrapper": article, "tf.layers with its update ops": layers}

    def moving(runs: dict, when: str) -> list[str]:
        return [kind for kind in kinds if runs[kind][when]]

    training, inference = "moved_in_training", "moved_at_inference"
    measured = "Of the {} kinds of graph that both can be built in, {}.".format(
        len(kinds),
        " and ".join(
            f"{name} moves the population in {len(moving(runs, training))} in training and in "
            f"{len(moving(runs, inference))} at inference"
            for name, runs in forms.items()
        ),
    )
    if moving(article, training) != moving(layers, training):
        return does_not_hold(measured, "They differ in training already.")
    if moving(article, inference) == moving(layers, inference):
        return holds(measured, "Both do the same, for both kinds of variable and of cond.")
    note = (
        "The document says that their logic is similar, and in training it is. tf.layers decides the value or the step by "
        "the flag before it assigns; the wrapper assigns whatever the flag says (article-05)."
    )
    return holds_with_a_trap("at inference only the wrapper moves its population", measured, note)


FIGURES = {
    "conditional_updates.png": "The article's wrapper learns from the data that it is asked to predict: its moving mean "
    "walks toward them. The other two stay where training left them.",
    "wrapper_in_service.png": "Test accuracy of a trained network while it answers requests. With the article's wrapper every "
    "prediction moves the statistics: requests of one image, or sorted by class, undo the training. The library's stays.",
}


def draw(result: dict, folder: Path) -> None:
    """How far the moving mean drifts while the layers are only asked for predictions."""
    with figure(folder / "conditional_updates.png", figsize=(8, 4.6)) as (drawing, axis):
        # The two that stay lie on one line: the broad one is seen on both sides of the dashed one.
        styles = {
            "article": {"color": ORANGE},
            "tf.layers": {"color": GREEN, "linewidth": 6, "alpha": 0.45},
            "batch_norm_wrapper": {"color": BLUE, "linestyle": "--"},
        }
        for form, style in styles.items():
            runs = [run for run in result["forms"][form].values() if "error" not in run]
            for place, measured in enumerate(runs):
                axis.plot(measured["drift"], label=form if place == 0 else None, **style)
        axis.set_xlabel("inference runs (batches of 16) after training")
        axis.set_ylabel("largest change of the moving mean\n(standard deviations of the data)")
        axis.set_title(f"What inference on data {result['shift']:g} deviations away does to the population's mean")
        drawing.legend(loc="outside lower center", ncols=3)
    with figure(folder / "wrapper_in_service.png", ncols=2, sharey=True, figsize=(10.5, 4.6)) as (drawing, axes):
        styles = {
            ("article", MIXED): (ORANGE, "--"),
            ("article", SORTED): (ORANGE, "-"),
            ("batch_norm_wrapper", SORTED): (BLUE, "-"),
        }
        for axis, size in zip(axes, REQUEST_SIZES, strict=True):
            for (form, order), (colour, line) in styles.items():
                values = served(result, form, size, order)
                label = "batch_norm_wrapper, either order" if form != "article" else f"the article's wrapper, {order}"
                axis.plot(SCORED_AFTER, np.median(values, axis=0), color=colour, linestyle=line, label=label)
                axis.fill_between(SCORED_AFTER, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            title = "requests of one image" if size == 1 else f"requests of {size} images"
            axis.set(xscale="symlog", xlim=(0, SCORED_AFTER[-1]), ylim=(0, 1), xlabel="requests answered", title=title)
        axes[0].set_ylabel("accuracy on the test set, by the\nstatistics as they are then")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        trained = f"{result['steps']:,} steps of training, {seeds(result)}"
        drawing.suptitle(f"{data_name(result)}, {trained}: medians, and from the least to the most", fontsize=10)


def summarize(result: dict) -> str:
    lines = [f"{'':<22}" + "".join(f"{kind:<20}" for kind in KINDS)]
    for form, runs in result["forms"].items():
        cells = [
            run.get("error", "").split(":")[0] or ("LEAKS" if run["moved_at_inference"] else "still")
            for run in runs.values()
        ]
        lines.append(f"{form:<22}" + "".join(f"{cell:<20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
