"""Which variables a checkpoint needs: saved four ways, restored three ways, each way in a new process.

Documents: article ("tensorflow中的batchnorm"), sections *UPDATE_OPS* (the code) and *Restoring from a checkpoint*, claims
article-11, 14, 15, 16, 17; r2rt, *An implementation that works at test time*, claims r2rt-21, 23.

    make checkpoint-variables

One network with tf.layers' batch norm and Adam is trained and saved by four Savers: of the trainable variables, of those
and what the article's filter finds by name, of all global variables, and by `bn_graph.make_inference_saver`. Three new
processes rebuild it to predict and restore each file: with a Saver of all the variables, with one of the trainable
variables, and with the latter after the initializers were run. What is not raised is measured, one image at a time.

Changed from the documents: the article gives no model of its own, so r2rt's network stands in, for 1,000 steps, with the
article's layer, Adam, and the decay of 0.99 that is that layer's default; r2rt's automatic names are tried apart.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.layers.slim import batch_norm as slim_batch_norm
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import checkpoint_child, children, harness
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# r2rt's.
BATCH_SIZE = 60
# The article trains a model that it does not give; this many suffice.
STEPS = {"full": 1000, "quick": 300}
# Predicted one at a time: the first of the test set.
IMAGES = {"full": 1000, "quick": 360}
# Where the article saves.
DOCUMENT_PATH = "batch_norm_layer/Model"
# Accuracies this close are the same for r2rt-21; batches in another order differ by more.
TOLERANCE = 0.005

TRAINABLES, FILTERED, EVERYTHING, INFERENCE = (
    "trainables only",
    "trainables and filter",
    "all variables",
    "inference saver",
)
WAYS = tuple(checkpoint_child.RESTORES)

FULL = Mode(data="mnist", steps=STEPS["full"], seeds=[0, 1, 2])
QUICK = Mode(data="digits", steps=STEPS["quick"], seeds=[0])


def run(settings: Settings) -> dict:
    with tempfile.TemporaryDirectory(prefix="checkpoints.", dir=settings.output / settings.name) as folder:
        folder = Path(folder).resolve()
        trained = {seed: _train_and_save(settings, seed, folder / f"seed{seed}") for seed in settings.seeds}
        first = settings.seeds[0]
        checkpoints = {f"{seed}/{saver}": path for seed, one in trained.items() for saver, path in one["paths"].items()}
        job = {
            "data": settings.dataset.name,
            "data_directory": settings.data_directory,
            "images": IMAGES[settings.mode],
            "checkpoints": checkpoints,
            "unnamed": _train_unnamed(settings, first, folder / "unnamed"),
            "returned": trained[first]["returned"],
        }
        questions = {way: {"way": way, **job} for way in WAYS}
        found = children.ask_each(checkpoint_child.run_job, questions)
        sizes = {saver: _bytes(path) for saver, path in trained[first]["paths"].items()}
    restored = {way: found[way]["restored"] for way in WAYS}
    last = found["all variables"]
    return {
        "images": IMAGES[settings.mode],
        "restored": restored,
        "resumed": last["resumed"],
        "names": last["names"],
        "returned": trained[first]["returned_kinds"] | {"restored": last["returned"]},
        "saved_names": trained[first]["saved_names"],
        "bytes": sizes,
        "own_accuracy": {str(seed): one["accuracy"] for seed, one in trained.items()},
        "one_graph": {str(seed): one["one_graph"] for seed, one in trained.items()},
        "new_directory": _save_into_new_directories(),
        "moving_average_collection": _moving_average_collection(),
        "filter": _what_the_filter_finds(),
    }


def document_filter() -> list[tf.Variable]:
    """The trainable variables and those that the article's two strings find among all global ones."""
    found = [each for each in tf.global_variables() if "moving_mean" in each.name or "moving_variance" in each.name]
    return tf.trainable_variables() + found


def _train_and_save(settings: Settings, seed: int, folder: Path) -> dict:
    """Trains once, saves four ways, and says what the same network predicts where it was trained."""
    folder.mkdir()
    weights = _weights(settings, seed)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x, y_, logits, train_op = checkpoint_child.training_network(weights)
        session.run(tf.global_variables_initializer())
        _train(settings, session, seed, lambda images, labels: session.run(train_op, {x: images, y_: labels}))
        savers = {
            TRAINABLES: tf.train.Saver(tf.trainable_variables()),
            FILTERED: tf.train.Saver(document_filter()),
            EVERYTHING: tf.train.Saver(),
            INFERENCE: bn_graph.make_inference_saver(logits),
        }
        paths = {saver: savers[saver].save(session, str(folder / saver.replace(" ", "-"))) for saver in savers}
        returned, kinds = _returned(session, savers[EVERYTHING], folder)
        prediction = tf.argmax(logits, 1)
        by_batch = _alone(settings, lambda image: session.run(prediction, {x: image}))
    return {
        "paths": paths,
        "saved_names": {saver: [name for name, _ in tf.train.list_variables(path)] for saver, path in paths.items()},
        "returned": returned,
        "returned_kinds": kinds,
        "accuracy": {"training graph, one at a time": by_batch},
        "one_graph": _one_graph(settings, seed, weights),
    }


def _weights(settings: Settings, seed: int) -> list[np.ndarray]:
    test = settings.dataset.test
    return bn_graph.normal_weights((test.images.shape[1], *checkpoint_child.HIDDEN_UNITS, test.labels.shape[1]), seed)


def _train(settings: Settings, session: tf.Session, seed: int, step) -> None:
    # Fed, whatever --loop says: what is saved here includes the graph, which should be the document's and hold no loop.
    batches = bn_graph.batches(settings.dataset.train, BATCH_SIZE, seed=seed)
    for _ in harness.progress_bar(f"seed {seed}, training")(range(settings.steps)):
        step(*next(batches))


def _alone(settings: Settings, predict) -> float:
    """Accuracy over the images that the children predict too, each fed alone."""
    test, images = settings.dataset.test, IMAGES[settings.mode]
    predicted = np.concatenate([predict(image[np.newaxis]) for image in test.images[:images]])
    return float(np.mean(predicted == test.labels[:images].argmax(1)))


def _one_graph(settings: Settings, seed: int, weights: list[np.ndarray]) -> float:
    """r2rt-21: built once, with a bool tensor; trained and asked for single images in one session. The accuracy."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        is_training = tf.placeholder(tf.bool, [])
        x, logits = checkpoint_child.layers_network(is_training, weights)
        y_ = tf.placeholder(tf.float32, logits.shape)
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits_v2(labels=y_, logits=logits))
        train_op = bn_graph.train_op(tf.train.AdamOptimizer(checkpoint_child.LEARNING_RATE), loss)
        session.run(tf.global_variables_initializer())
        step = session.make_callable(train_op, [x, y_, is_training])
        _train(settings, session, seed, lambda images, labels: step(images, labels, True))
        predict = session.make_callable(tf.argmax(logits, 1), [x, is_training])
        return _alone(settings, lambda image: predict(image, False))


def _train_unnamed(settings: Settings, seed: int, folder: Path) -> str:
    """r2rt's network by its automatic names, trained as the other is, and saved whole."""
    folder.mkdir()
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x, logits = checkpoint_child.documents_names(True, _weights(settings, seed))
        y_ = tf.placeholder(tf.float32, logits.shape)
        loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits_v2(labels=y_, logits=logits))
        train_op = tf.train.GradientDescentOptimizer(0.01).minimize(loss)
        session.run(tf.global_variables_initializer())
        _train(settings, session, seed, lambda images, labels: session.run(train_op, {x: images, y_: labels}))
        return tf.train.Saver().save(session, str(folder / "model"))


def _returned(session: tf.Session, saver: tf.train.Saver, folder: Path) -> tuple[dict, dict]:
    """What three calls of `saver.save` return: an absolute prefix, a bare name as in the document, one with a step."""
    home = os.getcwd()
    os.chdir(folder)
    try:
        returned = {
            "absolute": saver.save(session, str(folder / "model")),
            "relative": saver.save(session, "temp-bn-save"),
            "with step": saver.save(session, "numbered", global_step=7),
        }
        kinds = {
            "type": type(returned["relative"]).__name__,
            "relative": returned["relative"],
            "with_step": returned["with step"],
            "a_file_of_that_name": os.path.exists(returned["relative"]),
            "endings": sorted(path.name.removeprefix("temp-bn-save") for path in folder.glob("temp-bn-save*")),
        }
    finally:
        os.chdir(home)
    return returned | {"folder": str(folder)}, kinds


def _bytes(prefix: str) -> int:
    """Of the checkpoint's tensors, without the graph that `save` writes beside them."""
    path = Path(prefix)
    return sum(file.stat().st_size for file in path.parent.glob(path.name + ".*") if ".meta" not in file.name)


def _save_into_new_directories() -> dict[str, dict]:
    """article-11: the document's own call, where its directory does not exist; and one directory deeper."""
    found = {}
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        legacy_layers().batch_normalization(tf.ones([1, 2, 2, 3]), training=tf.placeholder(tf.bool))
        session.run(tf.global_variables_initializer())
        os.chdir(folder)
        try:
            for path in (DOCUMENT_PATH, "not/there/" + DOCUMENT_PATH):
                try:
                    prefix = tf.train.Saver().save(session, path)
                    found[path] = {"raised": None, "variables": len(tf.train.list_variables(prefix))}
                except (OSError, ValueError, tf.errors.OpError) as error:
                    found[path] = {"raised": type(error).__name__, "message": checkpoint_child.said(error)}
        finally:
            os.chdir(home)
        found["variables_of_the_layer"] = len(tf.global_variables())
    return found


def _moving_average_collection() -> dict[str, list[str]]:
    """article-15: what tf.moving_average_variables() lists, after each of several makers of moving averages."""
    found = {}
    for label, make in {
        "tf.layers.batch_normalization": lambda: legacy_layers().batch_normalization(tf.ones([4, 3]), training=True),
        "bn_graph.batch_norm_wrapper": lambda: bn_graph.batch_norm_wrapper(tf.ones([4, 3]), True, name="bn"),
        "ExponentialMovingAverage.apply([w])": lambda: tf.train.ExponentialMovingAverage(0.99).apply(
            [tf.get_variable("w", [3])]
        ),
    }.items():
        with tf.Graph().as_default():
            make()
            found[label] = [variable.op.name for variable in tf.moving_average_variables()]
    return found


def _what_the_filter_finds() -> dict[str, dict]:
    """article-16: the statistics that each kind of layer makes, and those that the article's two strings miss."""
    x = np.ones([4, 3], np.float32)
    makers = {
        "tf.layers": lambda: legacy_layers().batch_normalization(tf.constant(x), training=True),
        "tf.layers, renorm": lambda: legacy_layers().batch_normalization(tf.constant(x), training=True, renorm=True),
        "contrib / slim signature": lambda: slim_batch_norm(tf.constant(x), is_training=True),
        "the article's own wrapper": lambda: _population("pop_mean", "pop_var"),
        "a layer that says mu and sigma": lambda: _population("mu", "sigma"),
        "EWMA helper": _helper,
    }
    found = {}
    for label, make in makers.items():
        with tf.Graph().as_default():
            make()
            kept = {variable.op.name for variable in document_filter()}
            statistics = [each.op.name for each in tf.global_variables() if each not in tf.trainable_variables()]
            found[label] = {
                "statistics": statistics,
                "missed": [name for name in statistics if name not in kept],
            }
    return found


def _population(*names: str) -> None:
    with tf.variable_scope("bn"):
        for name in names:
            tf.get_variable(name, [3], trainable=False)


def _helper() -> None:
    trainer = tf.train.ExponentialMovingAverage(0.99)
    bn_graph.ConvolutionalBatchNormalizer(3, 1e-3, trainer, True, name="bn").get_assigner()


# ---- judging


def _each(result: dict, way: str, saver: str) -> list[dict]:
    """The outcome of one way of restoring one kind of file, for each seed."""
    return [result["restored"][way][f"{seed}/{saver}"] for seed in result["seeds"]]


def _said(outcomes: list[dict]) -> str:
    raised = sorted({each["raised"] for each in outcomes if each["raised"]})
    accuracies = [each["accuracy"] for each in outcomes if not each["raised"]]
    return " / ".join(raised + ([f"accuracy {spread(accuracies, 3)}"] if accuracies else []))


def _median(outcomes: list[dict]) -> float:
    """Median accuracy; that of a restore that raises is not there to be had, and counts as 0."""
    return float(np.median([each.get("accuracy", 0.0) for each in outcomes]))


def judge_article_11(result: dict) -> Verdict:
    there, deeper = (result["new_directory"][path] for path in (DOCUMENT_PATH, "not/there/" + DOCUMENT_PATH))
    measured = "; ".join(
        f"{label}: {each['raised'] or str(each['variables']) + ' variables saved'}"
        for label, each in (("one new directory", there), ("three", deeper))
    )
    if there["raised"]:
        return does_not_hold(measured, f"It raises: {there['message']}. bn_graph.save makes the directory first.")
    if there["variables"] != result["new_directory"]["variables_of_the_layer"]:
        return does_not_hold(measured, "The file does not have all of the layer's variables.")
    note = "TensorFlow makes the missing directory itself"
    note += ", several levels of it too." if not deeper["raised"] else f", but one level only ({deeper['raised']})."
    return holds(measured, note)


def judge_article_14(result: dict) -> Verdict:
    outcomes = {way: _each(result, way, TRAINABLES) for way in WAYS}
    measured = "; ".join(f"{way}: {_said(each)}" for way, each in outcomes.items())
    named = all(
        each["raised"] and "moving_" in each["message"] for way in WAYS[:1] for each in outcomes[way]
    )  # the Saver that looks for everything
    silent = [way for way in WAYS if any(each["raised"] is None for each in outcomes[way])]
    right = _median(_each(result, WAYS[0], EVERYTHING))
    if not named:
        return does_not_hold(measured, "A Saver of all variables raises no error that names the statistics.")
    if not silent:
        return holds(measured, "Every one of the three ways raises.")
    wrong = min(_median(outcomes[way]) for way in silent)
    return holds_if(
        "the restoring Saver looks for them",
        measured,
        f"With the trainables' Saver and the initializers run nothing is raised: the statistics stay 0 and 1, and single "
        f"images get {wrong:.3f} where {right:.3f} is right.",
    )


def judge_article_15(result: dict) -> Verdict:
    listed = result["moving_average_collection"]
    layer = listed["tf.layers.batch_normalization"]
    averaged = listed["ExponentialMovingAverage.apply([w])"]
    measured = f"tf.layers: {layer}; after ExponentialMovingAverage.apply([w]): {averaged}"
    note = f"ExponentialMovingAverage.apply fills it, with the averaged variable ({', '.join(averaged) or 'none'})"
    note += " and not with the average." if averaged == ["w"] else "."
    return (holds if not layer else does_not_hold)(measured, note)


def judge_article_16(result: dict) -> Verdict:
    found = result["filter"]
    missed = {label: each["missed"] for label, each in found.items() if each["missed"]}
    restored = _each(result, WAYS[0], FILTERED)
    good = _median(restored) >= _median(_each(result, WAYS[0], EVERYTHING))
    measured = (
        f"tf.layers: {len(found['tf.layers']['missed'])} of {len(found['tf.layers']['statistics'])} missed, restored "
        f"{_said(restored)}; other layers: {sum(map(len, missed.values()))} missed"
    )
    if found["tf.layers"]["missed"] or not good:
        return does_not_hold(measured, "The filter does not save what tf.layers' own batch norm predicts with.")
    if not missed:
        return holds(measured, "Every layer tried has its statistics under those two names.")
    names = "; ".join(
        f"{label}: {', '.join(name.rpartition('bn/')[2].rpartition('normalization/')[2] for name in each)}"
        for label, each in missed.items()
    )
    return holds_if("the statistics have those names", measured, f"It misses, without a word, {names}.")


def judge_article_17(result: dict) -> Verdict:
    savers = (TRAINABLES, FILTERED, EVERYTHING, INFERENCE)
    predicts = [saver for saver in savers if all(each["raised"] is None for each in _each(result, WAYS[0], saver))]
    resumes = [
        saver
        for saver in savers
        if all(result["resumed"][f"{seed}/{saver}"]["raised"] is None for seed in result["seeds"])
    ]
    best = max(_median(_each(result, WAYS[0], saver)) for saver in savers)
    measured = f"predict: {', '.join(predicts) or 'none'}; training goes on from: {', '.join(resumes) or 'none'}"
    larger = result["bytes"][EVERYTHING] / result["bytes"][INFERENCE]
    price = f"The price, with Adam, is a file {larger:.1f} times as large as what prediction needs."
    if EVERYTHING not in predicts or _median(_each(result, WAYS[0], EVERYTHING)) < best:
        return does_not_hold(measured, "The file of all variables does not predict best.")
    if resumes == [EVERYTHING]:
        return holds(measured, f"It is the only one of the four from which training goes on too. {price}")
    return holds_if("the file is used as it is here", measured, f"Others serve as well: {', '.join(resumes)}. {price}")


def judge_r2rt_21(result: dict) -> Verdict:
    seeds = [str(seed) for seed in result["seeds"]]
    once = [result["one_graph"][seed] for seed in seeds]
    twice = [each.get("accuracy", 0.0) for each in _each(result, WAYS[0], EVERYTHING)]
    training = [result["own_accuracy"][seed]["training graph, one at a time"] for seed in seeds]
    names = result["names"]
    broken = {label: each for label, each in names.items() if label != "the same build"}
    measured = (
        f"one at a time: built twice {spread(twice, 3)}, once with a bool tensor {spread(once, 3)}, in the training graph "
        f"{spread(training, 3)}"
    )
    fails = sum(each["raised"] is not None for each in broken.values())
    silent = [
        f"{label} ({each['accuracy']:.3f})"
        for label, each in broken.items()
        if each["raised"] is None and each["accuracy"] < names["the same build"].get("accuracy", 1) - TOLERANCE
    ]
    late = sum(each.get("when") == "predicting" for each in broken.values())
    note = f"With automatic names, {fails} of {len(broken)} slightly different second builds raise"
    note += f" ({late} of them not before predicting)" if late else ""
    note += f" and silently wrong is: {', '.join(silent)}." if silent else "."
    if max(training) >= min(twice) - TOLERANCE:
        return does_not_hold(measured, f"The training graph itself predicts single images as well. {note}")
    if np.median(once) >= np.median(twice) - TOLERANCE:
        return holds_if("is_training is a Python bool", measured, f"A bool tensor does it in one graph. {note}")
    return holds(measured, note)


def judge_r2rt_23(result: dict) -> Verdict:
    returned = result["returned"]
    there = {key: each for key, each in returned["restored"].items() if key.endswith(", there")}
    elsewhere = returned["restored"]["relative, elsewhere"]["raised"]
    failed = [key for key, each in there.items() if each["raised"]]
    measured = (
        f"{returned['type']} {returned['relative']!r}, with global_step=7 {returned['with_step']!r}; restored: "
        + (f"{len(there) - len(failed)} of {len(there)}")
    )
    if failed or returned["type"] != "str":
        return does_not_hold(measured, f"Not restored: {', '.join(failed) or 'what is returned is no path'}.")
    note = "It is the prefix of the files and not a file" if not returned["a_file_of_that_name"] else "It is a file"
    note += f"; a relative one stays relative, and from another directory gives {elsewhere}." if elsewhere else "."
    return holds(measured, note)


# ---- showing


FIGURES = {
    "checkpoint_variables.png": "Four ways of saving, three of restoring. Two of the three notice that the statistics are "
    "missing from a file of trainable variables; the third, after the initializers, predicts wrongly and says nothing."
}


def draw(result: dict, folder: Path) -> None:
    """Every way of saving against every way of restoring: the accuracy, or the name of the error."""
    savers = (TRAINABLES, FILTERED, EVERYTHING, INFERENCE)
    right = _median(_each(result, WAYS[0], EVERYTHING))
    with figure(folder / "checkpoint_variables.png", figsize=(9, 3.9)) as (_, axis):
        for row, saver in enumerate(savers):
            for column, way in enumerate(WAYS):
                outcomes = _each(result, way, saver)
                raised = outcomes[0]["raised"]
                text = f"{raised}\nwhen {outcomes[0]['when']}" if raised else f"{_median(outcomes):.3f}"
                wrong = not raised and _median(outcomes) < right - TOLERANCE
                color = GREY if raised else (ORANGE if wrong else BLUE)
                axis.barh(row, 0.94, left=column + 0.03, height=0.88, color=color)
                text += "\nsilently wrong" if wrong else ("" if raised else "\nright")
                axis.text(column + 0.5, row, text, ha="center", va="center", color="white", fontsize=9)
        axis.set_yticks(range(len(savers)), [f"saved: {saver}" for saver in savers])
        titles = (
            "Saver of\nall variables",
            "Saver of the trainables,\nnothing initialized",
            "Saver of the trainables,\ninitialized",
        )
        axis.set_xticks([place + 0.5 for place in range(len(WAYS))], titles)
        axis.xaxis.tick_top()
        axis.set_xlim(0, len(WAYS))
        axis.invert_yaxis()
        axis.tick_params(length=0)
        axis.grid(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
        axis.set_xlabel(f"accuracy of {result['images']} images of the test set, each predicted alone in a new process")


def summarize(result: dict) -> str:
    lines = [f"{'saved':<24}" + "".join(f"{way:<34}" for way in WAYS)]
    for saver in (TRAINABLES, FILTERED, EVERYTHING, INFERENCE):
        lines.append(f"{saver:<24}" + "".join(f"{_said(_each(result, way, saver)):<34}" for way in WAYS))
    lines += ["", "r2rt's automatic names, restored into"]
    lines += [f"  {label:<44}{_said([each])}" for label, each in result["names"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
