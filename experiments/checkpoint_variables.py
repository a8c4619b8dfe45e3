"""Which variables a checkpoint needs: saved four ways, restored three ways, each way in a new process.

Documents: article ("tensorflow中的batchnorm"), sections *UPDATE_OPS* (the code) and *Restoring from a checkpoint*, claims
article-11, 14, 15, 16, 17; r2rt, *An implementation that works at test time*, claims r2rt-21, 23.

    make checkpoint-variables        or        python -m experiments.checkpoint_variables --mode full

One network with tf.layers' batch norm and Adam is trained and saved by four Savers: of the trainable variables, of those
and what the article's filter finds by name, of all global variables, and by `bn_graph.make_inference_saver`. Three new
processes rebuild it to predict and restore each file: with a Saver of all the variables, with one of the trainable
variables, and with the latter after the initializers were run (`machinery/checkpoint_child.py` has networks and
processes). What is not raised is measured, one image at a time.

Changed from the documents: the article gives no model of its own, so r2rt's network is used, for 1,000 steps, with the
article's layer, Adam, and the decay of 0.99 that is that layer's default; r2rt's automatic names are tried apart.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import checkpoint_child, children, harness
from experiments.machinery.checkpoint_child import accuracy_alone, error_text, first_images, first_weights
from experiments.machinery.classifiers import losses
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# r2rt's; its rate is that of the summed loss and of gradient descent.
BATCH_SIZE, R2RT_RATE = 60, 0.01
# Where the article saves, and the same some directories deeper.
DOCUMENT_PATH, DEEPER_PATH = "batch_norm_layer/Model", "not/there/batch_norm_layer/Model"
# Accuracies this close are the same for r2rt-21; batches in another order differ by more.
TOLERANCE = 0.005

# The article trains a model that it does not give; so many steps suffice. The images are the first of the test set.
FULL = Mode(data="mnist", steps=1000, seeds=[0, 1, 2], own={"images": 1000})
QUICK = Mode(data="digits", steps=300, own={"images": 360})


def document_filter() -> list[tf.Variable]:
    """The trainable variables and those that the article's two strings find among all global ones."""
    found = [each for each in tf.global_variables() if "moving_mean" in each.name or "moving_variance" in each.name]
    return tf.trainable_variables() + found


TRAINABLES, FILTERED = "trainables only", "trainables and filter"
EVERYTHING, INFERENCE = "all variables", "inference saver"
# The article's Saver that forgets the statistics, its two remedies, and ours.
SAVERS = {
    TRAINABLES: lambda logits: tf.train.Saver(tf.trainable_variables()),
    FILTERED: lambda logits: tf.train.Saver(document_filter()),
    EVERYTHING: lambda logits: tf.train.Saver(),
    INFERENCE: bn_graph.make_inference_saver,
}
WAYS = tuple(checkpoint_child.RESTORES)


def run(settings: Settings) -> dict:
    with tempfile.TemporaryDirectory(prefix="checkpoints.", dir=settings.output / settings.name) as folder:
        folder = Path(folder).resolve()
        trained = {seed: train_and_save(settings, seed, folder / f"seed{seed}") for seed in settings.seeds}
        first = trained[settings.seeds[0]]
        paths, kinds = first["returned"]
        job = {
            "data": settings.dataset.name,
            "data_directory": settings.data_directory,
            "images": settings.own["images"],
            "checkpoints": {f"{seed}/{saver}": trained[seed]["paths"][saver] for seed in trained for saver in SAVERS},
            "unnamed": train_unnamed(settings, settings.seeds[0], folder / "unnamed"),
            "returned": paths,
        }
        found = children.ask_each(checkpoint_child.run_job, {way: {"way": way, **job} for way in WAYS})
    last = found["all variables"]
    return {
        "images": settings.own["images"],
        "restored": {way: found[way]["restored"] for way in WAYS},
        "resumed": last["resumed"],
        "names": last["names"],
        "returned": kinds | {"restored": last["returned"]},
        "saved_names": first["saved_names"],
        "bytes": first["bytes"],
        "own_accuracy": {str(seed): each["accuracy"] for seed, each in trained.items()},
        "one_graph": {str(seed): train_in_one_graph(settings, seed) for seed in settings.seeds},
        "new_directory": save_into_new_directories(),
        "moving_average_collection": moving_average_collection(),
        "filter": checkpoint_child.statistics_missed(document_filter),
    }


# --- Training and saving ----------------------------------------------------------------------------------------------
def train_and_save(settings: Settings, seed: int, folder: Path) -> dict:
    """Trains once, saves four ways, and reports what the same network predicts where it was trained."""
    folder.mkdir()
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x, y_, logits, train_op = checkpoint_child.training_network(first_weights(settings.dataset, seed))
        train(settings, seed, session, lambda images, labels: session.run(train_op, {x: images, y_: labels}))
        savers = {name: make(logits) for name, make in SAVERS.items()}
        paths = {name: saver.save(session, str(folder / name.replace(" ", "-"))) for name, saver in savers.items()}
        # Of the tensors (article-17), without the graph that `save` writes beside them.
        files = {name: [*folder.glob(f"{Path(path).name}.[di]*")] for name, path in paths.items()}
        returned = what_save_returns(session, savers[EVERYTHING], folder)
        predict = session.make_callable(tf.argmax(logits, 1), [x])
        accuracy = accuracy_alone(predict, first_images(settings.dataset, settings.own["images"]))
    return {
        "paths": paths,
        "saved_names": {saver: [name for name, _ in tf.train.list_variables(path)] for saver, path in paths.items()},
        "bytes": {name: sum(file.stat().st_size for file in each) for name, each in files.items()},
        "returned": returned,
        "accuracy": {"training graph, one at a time": accuracy},
    }


def train(settings: Settings, seed: int, session: tf.Session, step: Callable[[np.ndarray, np.ndarray], object]) -> None:
    session.run(tf.global_variables_initializer())
    # Fed, whatever --loop says: what is saved here includes the graph, which should be the document's and hold no loop.
    batches = bn_graph.batches(settings.dataset.train, BATCH_SIZE, seed=seed)
    for _ in harness.progress_bar(f"seed {seed}, training")(range(settings.steps)):
        step(*next(batches))


# What the judges read: the outcomes of one way of restoring one kind of file, one for each seed.
def outcomes_of(result: dict, way: str, saver: str) -> list[dict]:
    return [result["restored"][way][f"{seed}/{saver}"] for seed in result["seeds"]]


def outcomes_text(outcomes: list[dict]) -> str:
    raised = sorted({each["raised"] for each in outcomes if each["raised"]})
    accuracies = [each["accuracy"] for each in outcomes if not each["raised"]]
    return " / ".join(raised + ([f"accuracy {spread(accuracies, 3)}"] if accuracies else []))


def median_accuracy(outcomes: list[dict]) -> float:
    """A restore that raises has no accuracy and counts as 0."""
    return float(np.median([each.get("accuracy", 0.0) for each in outcomes]))


# --- article-11: saving into a directory that does not exist ----------------------------------------------------------
def save_into_new_directories() -> dict[str, dict]:
    found = {}
    with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default(), tf.Session() as session:
        legacy_layers().batch_normalization(tf.ones([1, 2, 2, 3]), training=tf.placeholder(tf.bool))
        session.run(tf.global_variables_initializer())
        with checkpoint_child.working_directory(folder):
            for path in (DOCUMENT_PATH, DEEPER_PATH):
                try:
                    prefix = tf.train.Saver().save(session, path)
                    found[path] = {"raised": None, "variables": len(tf.train.list_variables(prefix))}
                except (OSError, ValueError, tf.errors.OpError) as error:
                    found[path] = {"raised": type(error).__name__, "message": error_text(error)}
        found["variables_of_the_layer"] = len(tf.global_variables())
    return found


def judge_article_11(result: dict) -> Verdict:
    found = result["new_directory"]
    there, deeper = found[DOCUMENT_PATH], found[DEEPER_PATH]
    outcomes = [
        f"raises {each['raised']}" if each["raised"] else f"saves {each['variables']} variables"
        for each in (there, deeper)
    ]
    measured = f"Into one new directory it {outcomes[0]}; into one three levels deep it {outcomes[1]}."
    if there["raised"]:
        return does_not_hold(measured, f"It raises: {there['message']}. bn_graph.save makes the directory first.")
    if there["variables"] != found["variables_of_the_layer"]:
        return does_not_hold(measured, "The file does not have all of the layer's variables.")
    if not deeper["raised"]:
        return holds(measured, "TensorFlow makes the missing directory itself, several levels of it too.")
    note = "TensorFlow makes the missing directory itself; bn_graph.save makes all levels."
    return holds_with_a_trap(f"of several missing levels it makes none ({deeper['raised']})", measured, note)


# --- article-14: a Saver of the trainable variables -------------------------------------------------------------------
def judge_article_14(result: dict) -> Verdict:
    outcomes = {way: outcomes_of(result, way, TRAINABLES) for way in WAYS}
    texts = "; ".join(f"{outcomes_text(each)} with {way}" for way, each in outcomes.items())
    measured = f"Restoring from the trainables' file gives {texts}."
    # The first way is the Saver that looks for everything.
    named = all(each["raised"] and "moving_" in each["message"] for each in outcomes[WAYS[0]])
    silent = [way for way in WAYS if any(each["raised"] is None for each in outcomes[way])]
    if not named:
        return does_not_hold(measured, "A Saver of all variables raises no error that names the statistics.")
    if not silent:
        return holds(measured, "Every one of the three ways raises.")
    wrong = min(median_accuracy(outcomes[way]) for way in silent)
    right = median_accuracy(outcomes_of(result, WAYS[0], EVERYTHING))
    note = "With the trainables' Saver and the initializers run nothing is raised: the statistics stay 0 and 1, and single "
    note += f"images get {wrong:.3f} where {right:.3f} is right."
    return holds_with_a_trap("a Saver of the trainables restores without a word, and wrongly", measured, note)


# --- article-15: tf.moving_average_variables() ------------------------------------------------------------------------
def moving_average_collection() -> dict[str, list[str]]:
    """What it lists after each of several makers of moving averages."""
    average = tf.train.ExponentialMovingAverage(0.99)
    makers = {
        "tf.layers.batch_normalization": lambda: legacy_layers().batch_normalization(tf.ones([4, 3]), training=True),
        "bn_graph.batch_norm_wrapper": lambda: bn_graph.batch_norm_wrapper(tf.ones([4, 3]), True, name="bn"),
        "ExponentialMovingAverage.apply([w])": lambda: average.apply([tf.get_variable("w", [3])]),
    }
    found = {}
    for label, make in makers.items():
        with tf.Graph().as_default():
            make()
            found[label] = [variable.op.name for variable in tf.moving_average_variables()]
    return found


def judge_article_15(result: dict) -> Verdict:
    listed = result["moving_average_collection"]
    layer = listed["tf.layers.batch_normalization"]
    averaged = listed["ExponentialMovingAverage.apply([w])"]
    lists = [", ".join(each) or "nothing" for each in (layer, averaged)]
    measured = f"After tf.layers it lists {lists[0]}, after ExponentialMovingAverage.apply([w]) {lists[1]}."
    note = f"ExponentialMovingAverage.apply fills it, with the averaged variable ({', '.join(averaged) or 'none'})"
    note += " and not with the average." if averaged == ["w"] else "."
    return (holds if not layer else does_not_hold)(measured, note)


# --- article-16: finding the statistics by name -----------------------------------------------------------------------
def judge_article_16(result: dict) -> Verdict:
    found, layer = result["filter"], result["filter"]["tf.layers"]
    missed = {label: each["missed"] for label, each in found.items() if each["missed"]}
    restored = outcomes_of(result, WAYS[0], FILTERED)
    good = median_accuracy(restored) >= median_accuracy(outcomes_of(result, WAYS[0], EVERYTHING))
    measured = (
        f"The filter finds {len(layer['statistics']) - len(layer['missed'])} of {len(layer['statistics'])} statistics of "
        f"tf.layers, and restoring them gives {outcomes_text(restored)}; of other layers it misses "
        f"{sum(map(len, missed.values()))}."
    )
    if layer["missed"] or not good:
        return does_not_hold(measured, "The filter does not save what tf.layers' own batch norm predicts with.")
    if not missed:
        return holds(measured, "Every layer tried has its statistics under those two names.")
    names = "; ".join(
        f"{label}: {', '.join(name.rpartition('bn/')[2].rpartition('normalization/')[2] for name in each)}"
        for label, each in missed.items()
    )
    return holds_with_a_trap("it misses statistics of other names without a word", measured, f"It misses {names}.")


# --- article-17: saving everything ------------------------------------------------------------------------------------
def judge_article_17(result: dict) -> Verdict:
    outcomes = {saver: outcomes_of(result, WAYS[0], saver) for saver in SAVERS}
    resumed = {saver: [result["resumed"][f"{seed}/{saver}"] for seed in result["seeds"]] for saver in SAVERS}
    predicts = [saver for saver in SAVERS if not any(each["raised"] for each in outcomes[saver])]
    resumes = [saver for saver in SAVERS if not any(each["raised"] for each in resumed[saver])]
    measured = (
        f"Of the {len(SAVERS)} files, {len(predicts)} predict ({', '.join(predicts) or 'none'}), and training goes on from "
        f"{len(resumes)} ({', '.join(resumes) or 'none'})."
    )
    larger = result["bytes"][EVERYTHING] / result["bytes"][INFERENCE]
    price = f"The price, with Adam, is a file {larger:.1f} times as large as what prediction needs."
    accuracies = {saver: median_accuracy(each) for saver, each in outcomes.items()}
    if EVERYTHING not in predicts or accuracies[EVERYTHING] < max(accuracies.values()):
        return does_not_hold(measured, "The file of all variables does not predict best.")
    if resumes == [EVERYTHING]:
        return holds(measured, f"It is the only one of the four from which training goes on too. {price}")
    others = ", ".join(saver for saver in resumes if saver != EVERYTHING)
    return does_not_hold(measured, f"Others do as well, or all do not: {others or 'none resumes'}. {price}")


# --- r2rt-21: must the graph be built twice? --------------------------------------------------------------------------
def train_in_one_graph(settings: Settings, seed: int) -> float:
    """Built once, with a bool tensor; trained and asked for single images in one session. The accuracy."""
    split = first_images(settings.dataset, settings.own["images"])
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        is_training = tf.placeholder(tf.bool, [])
        x, y_, logits, train_op = checkpoint_child.training_network(first_weights(settings.dataset, seed), is_training)
        step = session.make_callable(train_op, [x, y_, is_training])
        train(settings, seed, session, lambda images, labels: step(images, labels, True))
        predict = session.make_callable(tf.argmax(logits, 1), [x, is_training])
        return accuracy_alone(lambda image: predict(image, False), split)


def train_unnamed(settings: Settings, seed: int, folder: Path) -> str:
    """r2rt's network by its automatic names, which a second build must make again in the same order."""
    folder.mkdir()
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        x, logits = checkpoint_child.documents_names(True, first_weights(settings.dataset, seed))
        y_ = tf.placeholder(tf.float32, logits.shape)
        train_op = tf.train.GradientDescentOptimizer(R2RT_RATE).minimize(tf.reduce_sum(losses(logits, y_)))
        train(settings, seed, session, lambda images, labels: session.run(train_op, {x: images, y_: labels}))
        return tf.train.Saver().save(session, str(folder / "model"))


def judge_r2rt_21(result: dict) -> Verdict:
    once = list(result["one_graph"].values())
    twice = [each.get("accuracy", 0.0) for each in outcomes_of(result, WAYS[0], EVERYTHING)]
    training = [each["training graph, one at a time"] for each in result["own_accuracy"].values()]
    measured = (
        f"One image at a time, a second graph gets {spread(twice, 3)}, the training graph itself {spread(training, 3)}, and "
        f"one graph whose is_training is a bool tensor {spread(once, 3)}."
    )
    same = result["names"]["the same build"]
    broken = {label: each for label, each in result["names"].items() if label != "the same build"}
    works = {label: each["accuracy"] for label, each in broken.items() if each["raised"] is None}
    late = sum(each.get("when") == "predicting" for each in broken.values())
    wrong = {label: accuracy for label, accuracy in works.items() if accuracy < same.get("accuracy", 1) - TOLERANCE}
    silent = ", ".join(f"{label} ({accuracy:.3f})" for label, accuracy in wrong.items())
    note = f"With automatic names, {len(broken) - len(works)} of {len(broken)} slightly different second builds raise"
    note += f" ({late} of them not before predicting)" if late else ""
    note += f", and one is wrong without a word: {silent}." if silent else "."
    if max(training) >= min(twice) - TOLERANCE:
        return does_not_hold(measured, f"The training graph itself predicts single images as well. {note}")
    if np.median(once) >= np.median(twice) - TOLERANCE:
        note = f"Read of the document's wrapper, whose is_training is a Python bool; a bool tensor does it in one graph. {note}"
    if broken:
        return holds_with_a_trap("a second graph that is built differently may restore wrongly", measured, note)
    return holds(measured, note)


# --- r2rt-23: what saver.save returns ---------------------------------------------------------------------------------
def what_save_returns(session: tf.Session, saver: tf.train.Saver, folder: Path) -> tuple[dict, dict]:
    """From three calls: with an absolute prefix, with a bare name as in the document, and with a step."""
    with checkpoint_child.working_directory(folder):
        absolute, relative = (saver.save(session, prefix) for prefix in (str(folder / "model"), "temp-bn-save"))
        returned = {"absolute": absolute, "relative": relative}
        returned |= {"with step": saver.save(session, "numbered", global_step=7), "folder": str(folder)}
        kinds = {"type": type(relative).__name__, "relative": relative, "with_step": returned["with step"]}
        kinds["a_file_of_that_name"] = Path(relative).exists()
    kinds["endings"] = sorted(path.name.removeprefix("temp-bn-save") for path in folder.glob("temp-bn-save*"))
    return returned, kinds


def judge_r2rt_23(result: dict) -> Verdict:
    returned = result["returned"]
    there = {key: each for key, each in returned["restored"].items() if key.endswith(", there")}
    elsewhere = returned["restored"]["relative, elsewhere"]["raised"]
    failed = [key for key, each in there.items() if each["raised"]]
    measured = (
        f"It returns the {returned['type']} {returned['relative']!r}, and with global_step=7 {returned['with_step']!r}; "
        f"{len(there) - len(failed)} of {len(there)} such paths can be restored from."
    )
    if failed or returned["type"] != "str":
        return does_not_hold(measured, f"Not restored: {', '.join(failed) or 'what is returned is no path'}.")
    note = "It is a file." if returned["a_file_of_that_name"] else "It is the prefix of the files and not a file."
    if elsewhere:
        return holds_with_a_trap(f"a relative path gives {elsewhere} from another directory", measured, note)
    return holds(measured, note)


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {
    "checkpoint_variables.png": "Four ways of saving, three of restoring. Two of the three notice that the statistics are "
    "missing from a file of trainable variables; the third, after the initializers, predicts wrongly and says nothing."
}


def draw(result: dict, folder: Path) -> None:
    """Every way of saving against every way of restoring: the accuracy, or the name of the error."""
    right = median_accuracy(outcomes_of(result, WAYS[0], EVERYTHING))
    titles = ("all variables", "the trainables,\nnothing initialized", "the trainables,\ninitialized")
    with figure(folder / "checkpoint_variables.png", figsize=(9, 3.9)) as (_, axis):
        for row, saver in enumerate(SAVERS):
            for column, way in enumerate(WAYS):
                outcomes = outcomes_of(result, way, saver)
                accuracy = median_accuracy(outcomes)
                if outcomes[0]["raised"]:
                    color, text = GREY, f"{outcomes[0]['raised']}\nwhen {outcomes[0]['when']}"
                elif accuracy < right - TOLERANCE:
                    color, text = ORANGE, f"{accuracy:.3f}\nsilently wrong"
                else:
                    color, text = BLUE, f"{accuracy:.3f}\nright"
                axis.barh(row, 0.94, left=column + 0.03, height=0.88, color=color)
                axis.text(column + 0.5, row, text, ha="center", va="center", color="white", fontsize=9)
        axis.set_yticks(range(len(SAVERS)), [f"saved: {saver}" for saver in SAVERS])
        axis.set_xticks([place + 0.5 for place in range(len(WAYS))], [f"Saver of {title}" for title in titles])
        axis.xaxis.tick_top()
        axis.invert_yaxis()
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[["left", "bottom"]].set_visible(False)
        what = f"accuracy of {result['images']} images of the test set, each predicted alone in a new process"
        axis.set(xlim=(0, len(WAYS)), xlabel=what)


def summarize(result: dict) -> str:
    lines = [f"{'saved':<24}" + "".join(f"{way:<34}" for way in WAYS)]
    for saver in SAVERS:
        lines.append(f"{saver:<24}" + "".join(f"{outcomes_text(outcomes_of(result, way, saver)):<34}" for way in WAYS))
    lines += ["", "r2rt's automatic names, restored into"]
    lines += [f"  {label:<44}{outcomes_text([each])}" for label, each in result["names"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
