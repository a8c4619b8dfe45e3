"""The document's Model and Solver: ten epochs of MNIST with and without batch norm.

Document: solver, all of it. Claims solver-01, 02, 05, 06, 07, 08, 14, 15.

    make model-solver        or        python -m experiments.model_solver --mode full

Two networks of 784-32-32-10 units, one with batch norm before each ReLU, are trained side by side in one session, on the
same batches, and are evaluated on all training and validation images after each epoch: the document's four figures, and
its table beside this run's. `bn_graph.Model` and `bn_graph.Solver` do it, with tf.layers' layers and their defaults in
the hidden layers, since those defaults are the document's settings.

Changed from the document: both networks start from the same weights (each epoch's difference is then due to batch norm
and not to the draw); the training set is evaluated in batches of 5,000 and not of 32, which changes nothing but the
time, as is measured here for solver-14; the ragged tail of an epoch is dropped, where the tutorial's reader carried its
24 images over into the next.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import legacy_layers, tf
from experiments.machinery import harness, kept_work
from experiments.machinery.figures import BLUE, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# The document's.
HIDDEN_UNITS = [32, 32]
BATCH_SIZE = 32
# The document's, of Adam.
LEARNING_RATE = 0.01
# The document's.
EPOCHS = 10
# 55,000 // 32.
EPOCH_STEPS = 1718
# 1,300 // 32: ten epochs of the bundled digits for the quick mode.
DIGITS_EPOCH_STEPS = 40
# Eleven runs for the training set where the document's 32 takes 1,719.
EVALUATION_BATCH = 5000
# Validation images on which the inputs of the second hidden layer are watched.
SHIFT_IMAGES = 1000
# "as the document has it": within one point of accuracy ...
CLOSE_ACCURACY = 0.01
# ... and a quarter of the loss; the document gives one run of a noisy training.
CLOSE_LOSS = 0.25

NETWORKS = {"with": "batchnorm", "without": "no_norm"}
CURVES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")

# The document's own log: what it printed after each epoch.
DOCUMENT = {
    "train_loss": {
        "with": [0.18456, 0.10349, 0.11239, 0.07526, 0.07339, 0.08164, 0.05879, 0.05014, 0.04956, 0.04351],
        "without": [0.31917, 0.16142, 0.17737, 0.15240, 0.15641, 0.15969, 0.18191, 0.23831, 0.12616, 0.12277],
    },
    "train_accuracy": {
        "with": [0.9419, 0.9678, 0.9643, 0.9769, 0.9768, 0.9738, 0.9810, 0.9838, 0.9841, 0.9861],
        "without": [0.9101, 0.9534, 0.9479, 0.9565, 0.9553, 0.9567, 0.9492, 0.9359, 0.9648, 0.9654],
    },
    "validation_loss": {
        "with": [0.19054, 0.11720, 0.12829, 0.09549, 0.10588, 0.11476, 0.09402, 0.08446, 0.08479, 0.08275],
        "without": [0.31920, 0.18348, 0.20401, 0.20025, 0.19816, 0.22123, 0.25907, 0.28310, 0.18636, 0.19641],
    },
    "validation_accuracy": {
        "with": [0.9410, 0.9648, 0.9630, 0.9712, 0.9696, 0.9652, 0.9730, 0.9758, 0.9748, 0.9766],
        "without": [0.9100, 0.9496, 0.9434, 0.9516, 0.9486, 0.9510, 0.9450, 0.9346, 0.9544, 0.9574],
    },
}
# Its last two outputs.
DOCUMENT_TEST = {"with": (0.089340471, 0.97370011), "without": (0.20733583, 0.95130014)}

# Ioffe & Szegedy, 2015 (arXiv:1502.03167).
PAPER_PLACE = ("§3.2", "immediately before the nonlinearity")
# Of the inputs of the inner layers.
PAPER_LAYERS = ("§1 and §2", "internal covariate shift")
# Of the inputs of the learning system as a whole (Shimodaira, 2000).
PAPER_WHOLE = ("§1", "covariate shift")
# Santurkar et al., 2018 (arXiv:1805.11604), §2.1: with noise that makes the shift worse put in *after* batch norm, the
# network still trains about as well as with plain batch norm, so the shift is not what batch norm's gain comes from.
LATER_WORK = ("Santurkar et al. 2018, §2.1", "the shift is not the cause of batch norm's gain")

FULL = Mode(data="mnist", steps=EPOCHS * EPOCH_STEPS, seeds=[0, 1, 2])
QUICK = Mode(data="digits", steps=EPOCHS * DIGITS_EPOCH_STEPS, seeds=[0])


def normalized_by_tf_layers(inputs, units, is_training, kernel_initializer):
    """The document's hidden layer, with the defaults of tf.layers. The dense layer's bias is redundant, and the document's."""
    layers = legacy_layers()
    net = layers.dense(inputs, units, kernel_initializer=kernel_initializer)
    return layers.batch_normalization(net, training=is_training)


def plain_by_tf_layers(inputs, units, is_training, kernel_initializer):
    """The same without batch norm."""
    del is_training
    return legacy_layers().dense(inputs, units, kernel_initializer=kernel_initializer)


def build_pair(session: tf.Session, split: bn_graph.datasets.Split, seed: int) -> dict[str, bn_graph.Solver]:
    """The two networks in one graph, from the same initial weights, each with its solver."""
    hidden_layers = {"with": normalized_by_tf_layers, "without": plain_by_tf_layers}
    return {
        form: bn_graph.Solver(
            session,
            bn_graph.Model(
                name,
                split.images.shape[1],
                split.labels.shape[1],
                HIDDEN_UNITS,
                hidden_layer=hidden_layers[form],
                learning_rate=LEARNING_RATE,
                seed=seed,
            ),
        )
        for form, name in NETWORKS.items()
    }


@contextmanager
def trained_pair(settings: harness.Settings, seed: int) -> Iterator[tuple[dict[str, bn_graph.Solver], dict]]:
    """Both networks after their training, begun or resumed, and by curve and form what was measured at each epoch."""
    dataset = settings.dataset
    epoch = dataset.train.size // BATCH_SIZE
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        solvers = build_pair(session, dataset.train, seed)
        inputs_of_layer1 = {form: _tensor(f"{name}/layer0/Relu") for form, name in NETWORKS.items()}

        def measure(finished: int) -> dict[str, np.ndarray]:
            if finished % epoch and finished != settings.steps:
                return {}
            return {
                f"{name} {form}": value
                for form, solver in solvers.items()
                for name, value in _after_an_epoch(solver, dataset, inputs_of_layer1[form]).items()
            }

        curves = kept_work.train_and_measure(
            settings,
            session,
            [bn_graph.step_of(solver.model) for solver in solvers.values()],
            dataset.train,
            measure,
            batch_size=BATCH_SIZE,
            seed=seed,
            folder=kept_work.folder(settings, seed, batch=BATCH_SIZE, rate=LEARNING_RATE),
            label=f"seed {seed}",
            pause_after=lambda finished: finished % epoch == 0,
            checkpoint_every=epoch,
        )
        names = (*CURVES, "layer1_mean", "layer1_deviation")
        yield solvers, {name: {form: curves[f"{name} {form}"].tolist() for form in NETWORKS} for name in names}


def _after_an_epoch(solver: bn_graph.Solver, dataset: bn_graph.Dataset, inputs_of_layer1: tf.Tensor) -> dict:
    """Loss and accuracy, and where the second hidden layer's inputs are now."""
    measured = {}
    for part, split in (("train", dataset.train), ("validation", dataset.validation)):
        loss, accuracy = solver.evaluate(split.images, split.labels, EVALUATION_BATCH)
        measured |= {f"{part}_loss": round(loss, 5), f"{part}_accuracy": round(accuracy, 5)}
    # As in training, that is by the batch's own statistics: those are the inputs that the layer has to learn from.
    feed = {solver.model.x: dataset.validation.images[:SHIFT_IMAGES], solver.model.is_training: True}
    inputs = solver.session.run(inputs_of_layer1, feed)
    return measured | {"layer1_mean": inputs.mean(0).round(5), "layer1_deviation": inputs.std(0).round(5)}


def _tensor(op_name: str) -> tf.Tensor:
    return tf.get_default_graph().get_tensor_by_name(f"{op_name}:0")


def run(settings: harness.Settings) -> dict:
    dataset = settings.dataset
    runs = []
    for seed in settings.seeds:
        with trained_pair(settings, seed) as (solvers, curves):
            test = {form: solver.evaluate(dataset.test.images, dataset.test.labels) for form, solver in solvers.items()}
            runs.append({"seed": seed, "test": test, "shift": _shift(curves)} | {name: curves[name] for name in CURVES})
            if seed == settings.seeds[0]:
                evaluation = _evaluate_two_ways(solvers["with"], dataset.train)
                place = _what_the_activations_get()
    return {
        "runs": runs,
        "evaluation": evaluation,
        "what_the_activations_get": place,
        "statistics_in_use": _statistics_in_use(),
        "returned_loss": _returned_loss(dataset, settings.seeds[0]),
        "train_shape": _train_shape(dataset),
    }


def _shift(curves: dict) -> dict[str, float]:
    """How far the means of the second hidden layer's inputs move from epoch to epoch, in their standard deviations."""
    shifts = {}
    for form in NETWORKS:
        means, deviations = np.array(curves["layer1_mean"][form]), np.array(curves["layer1_deviation"][form])
        moved = np.abs(np.diff(means, axis=0)).sum(1) / deviations[:-1].sum(1)
        shifts[form] = round(float(moved.mean()), 5) if len(moved) else 0.0
    return shifts


def _evaluate_two_ways(solver: bn_graph.Solver, split: bn_graph.datasets.Split) -> dict:
    """The training set at once, in the document's batches weighted by size, and in the same batches not weighted."""
    found = {"examples": split.size, "last_batch": split.size % BATCH_SIZE or BATCH_SIZE}
    for is_training in (False, True):
        at_once = solver.evaluate(split.images, split.labels, is_training=is_training)
        weighted = solver.evaluate(split.images, split.labels, BATCH_SIZE, is_training=is_training)
        whole, tail = split.size - split.size % BATCH_SIZE, split.size % BATCH_SIZE
        batches = np.array(
            [solver.evaluate(split.images[:whole], split.labels[:whole], BATCH_SIZE, is_training=is_training)]
            + [solver.evaluate(split.images[whole:], split.labels[whole:], is_training=is_training)] * bool(tail)
        )
        # Each batch counted alike: the mean of the whole ones stands for all of them, and the tail for one.
        counts = np.array([whole // BATCH_SIZE] + [1] * bool(tail))[:, None]
        unweighted = (batches * counts).sum(0) / counts.sum()
        phase = "training" if is_training else "inference"
        found[phase] = {"at_once": at_once, "weighted": weighted, "unweighted": unweighted.tolist()}
    return found


def _what_the_activations_get() -> list[str]:
    """For each ReLU of the normalized network of the default graph: the name of the op that its input comes from."""
    relus = [f"{NETWORKS['with']}/layer{number}/Relu" for number in range(len(HIDDEN_UNITS))]
    return [_tensor(relu).op.inputs[0].op.name for relu in relus]


def _statistics_in_use() -> dict[str, float]:
    """What one tf.layers batch norm normalizes with, in training and at inference, told by overwriting its statistics."""
    inputs = np.random.default_rng(0).normal(2.0, 3.0, [8, 3]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        is_training = tf.placeholder(tf.bool, [])
        outputs = legacy_layers().batch_normalization(tf.constant(inputs), training=is_training)
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        mean, variance = bn_graph.moving_statistics()
        session.run(tf.global_variables_initializer())

        training, inference = {is_training: True}, {is_training: False}
        before = session.run(outputs, training)
        session.run([mean.assign([5.0] * 3), variance.assign([9.0] * 3)])
        after = session.run(outputs, training)
        at_inference = session.run(outputs, inference)
        held = session.run([mean, variance])
        session.run(updates, training)
        moved = session.run([mean, variance])
    by_batch = (inputs - inputs.mean(0)) / np.sqrt(inputs.var(0) + 1e-3)
    by_moving = (inputs - 5.0) / np.sqrt(9.0 + 1e-3)
    return {
        "training_less_batch_statistics": _largest(before - by_batch),
        "training_changed_by_other_moving_statistics": _largest(after - before),
        "inference_less_moving_statistics": _largest(at_inference - by_moving),
        "moved_by_inference": max(_largest(held[0] - 5.0), _largest(held[1] - 9.0)),
        "update_less_moving_average": max(
            _largest(moved[0] - (0.99 * 5.0 + 0.01 * inputs.mean(0))),
            _largest(moved[1] - (0.99 * 9.0 + 0.01 * inputs.var(0))),
        ),
    }


def _largest(differences: np.ndarray) -> float:
    return float(np.abs(differences).max())


def _returned_loss(dataset: bn_graph.Dataset, seed: int, steps: int = 20) -> dict:
    """What the document's `train` hands back, beside the same batch's loss before the step and after it."""
    values, returned, before, after = 0, [], [], []
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        solver = build_pair(session, dataset.train, seed)["with"]
        model = solver.model
        session.run(tf.global_variables_initializer())
        for images, labels in itertools.islice(bn_graph.batches(dataset.train, BATCH_SIZE, seed=seed), steps):
            before.append(solver.evaluate(images, labels, is_training=True)[0])
            feed = {model.x: images, model.y_: labels, model.is_training: True}
            fetched = session.run([model.train_op, model.loss], feed)  # as the document does, which returns this list
            values = len(fetched)
            returned.append(float(fetched[-1]))
            after.append(solver.evaluate(images, labels, is_training=True)[0])
    return {
        "steps": steps,
        "values": values,
        "nothing_first": fetched[0] is None,
        "equal_to_before": int(np.isclose(returned, before, rtol=1e-6).sum()),
        "equal_to_after": int(np.isclose(returned, after, rtol=1e-6).sum()),
        "first": [round(loss, 5) for loss in (returned[0], before[0], after[0])],
    }


def _train_shape(dataset: bn_graph.Dataset) -> dict:
    """The training images of MNIST, and how many batches there are before the first image comes again.

    On the bundled digits the shape is worked out from MNIST's file header, which the loader checks.
    """
    images, rows, columns = bn_graph.training.datasets.MNIST_FILES["train-images-idx3-ubyte"].shape
    shape = [images - bn_graph.training.datasets.MNIST_VALIDATION, rows * columns]
    if dataset.name == "mnist":
        shape = list(dataset.train.images.shape)
    seen, steps = np.zeros(shape[0], bool), 0
    for chosen in bn_graph.training.datasets.batch_rows(shape[0], BATCH_SIZE, seed=0):
        if seen[chosen].any():
            break
        seen[chosen] = True
        steps += 1
    return {"shape": shape, "steps": steps, "left_out": int((~seen).sum())}


def judge_solver_01(result: dict) -> Verdict:
    section, place = PAPER_PLACE
    found = result["what_the_activations_get"]
    measured = f"each ReLU's input comes from: {', '.join(found)}"
    if "before" in place and all("/batch_normalization/" in name for name in found):
        return holds(measured, f"BN2015 {section} puts it {place}, z = g(BN(Wu)), and so does the document's network.")
    return does_not_hold(measured, f"BN2015 {section} says: {place}. The network's activations get something else.")


def judge_solver_02(result: dict) -> Verdict:
    section, term = PAPER_LAYERS
    shift = {form: [run["shift"][form] for run in result["runs"]] for form in NETWORKS}
    measured = (
        f"means of the second layer's inputs move {np.median(shift['with']):.2f} deviations an epoch with batch norm, "
        f"{np.median(shift['without']):.2f} without"
    )
    if max(shift["without"]) == 0.0:
        return does_not_hold(measured, "The inputs of the layer did not shift.")
    if term == PAPER_WHOLE[1]:
        return holds(measured, f"BN2015 {section} calls it so.")
    whole_section, whole = PAPER_WHOLE
    note = (
        f"BN2015 {section} calls the shift inside the network {term}; {whole} ({whole_section}) is that of the whole "
        f"system's inputs. Whether it is why batch norm helps is another matter: {LATER_WORK[1]} ({LATER_WORK[0]})."
    )
    return holds_if(f"it is called {term}", measured, note)


def judge_solver_05(result: dict) -> Verdict:
    found = result["statistics_in_use"]
    changed = found["training_changed_by_other_moving_statistics"]
    fixed = found["moved_by_inference"] == 0.0 and found["inference_less_moving_statistics"] < 1e-5
    averaged = found["update_less_moving_average"] < 1e-5
    measured = (
        f"training output changed by {changed:.1g} when the moving statistics were overwritten; inference used them "
        f"(difference {found['inference_less_moving_statistics']:.1g}) and moved them by {found['moved_by_inference']:.1g}"
    )
    if not (fixed and averaged):
        return does_not_hold(measured, "The moving statistics are not averaged in training, or not fixed at inference.")
    if changed > 1e-3:
        return holds(measured, "Training normalizes with the moving statistics, and inference keeps them fixed.")
    return holds_if(
        "μ and σ are those that inference uses",
        measured,
        "Training normalizes with the batch's own mean and deviation; the moving averages are only kept for inference.",
    )


def judge_solver_06(result: dict) -> Verdict:
    runs = result["runs"]
    found = {form: np.array([run["test"][form] for run in runs]) for form in NETWORKS}
    measured = "; ".join(
        f"{form}: loss {spread(values[:, 0])}, accuracy {spread(values[:, 1])}" for form, values in found.items()
    )
    apart = {
        form: (
            abs(np.median(values[:, 0]) / DOCUMENT_TEST[form][0] - 1),
            abs(np.median(values[:, 1]) - DOCUMENT_TEST[form][1]),
        )
        for form, values in found.items()
    }
    close = all(loss <= CLOSE_LOSS and accuracy <= CLOSE_ACCURACY for loss, accuracy in apart.values())
    differences = (
        f"The medians are {apart['with'][0]:.0%} of the loss and {100 * apart['with'][1]:.1f} points of accuracy from the "
        f"document's with batch norm, {apart['without'][0]:.0%} and {100 * apart['without'][1]:.1f} points without"
    )
    if close:
        return holds(measured, f"{differences}, on {result['data']}.")
    better = (found["with"][:, 0] < found["without"][:, 0]) & (found["with"][:, 1] > found["without"][:, 1])
    if better.all():
        note = f"{differences}, on {result['data']}. With batch norm both are better in {better.sum()} of {len(runs)} runs."
        return holds_if("only the order of the two is meant", measured, note)
    return does_not_hold(
        measured, f"{differences}. With batch norm both are better in {better.sum()} of {len(runs)} runs."
    )


def judge_solver_07(result: dict) -> Verdict:
    lower = {
        part: [
            one < other
            for run in result["runs"]
            for one, other in zip(run[f"{part}_loss"]["with"], run[f"{part}_loss"]["without"], strict=True)
        ]
        for part in ("train", "validation")
    }
    measured = "; ".join(f"{part}: lower at {sum(each)} of {len(each)} epochs" for part, each in lower.items())
    gaps = [
        other / one
        for run in result["runs"]
        for one, other in zip(run["validation_loss"]["with"], run["validation_loss"]["without"], strict=True)
    ]
    note = (
        f"Over {len(result['runs'])} seeds, both networks from the same weights on the same batches. "
        f"Without batch norm the validation loss is {min(gaps):.2f} to {max(gaps):.2f} times that with it."
    )
    if all(map(all, lower.values())):
        return holds(measured, note)
    every = [part for part, each in lower.items() if all(each)]
    if every:
        return holds_if(f"only {every[0]} loss is meant", measured, note)
    return does_not_hold(measured, note)


def judge_solver_08(result: dict) -> Verdict:
    found = result["train_shape"]
    measured = f"{tuple(found['shape'])}; {found['steps']}"
    if found["shape"] == [55_000, 784] and found["steps"] == 1718:
        return holds(measured, f"The {found['left_out']} images that are left do not fill a batch.")
    return does_not_hold(measured, "The document has (55000, 784) and 1718.")


def judge_solver_14(result: dict) -> Verdict:
    found = result["evaluation"]
    by_phase = {
        phase: [float(abs(a - b)) for a, b in zip(found[phase]["at_once"], found[phase]["weighted"], strict=True)]
        for phase in ("inference", "training")
    }
    (loss, accuracy), (training_loss, training_accuracy) = by_phase["inference"], by_phase["training"]
    equal = {phase: each[0] < 1e-5 and each[1] < 1e-6 for phase, each in by_phase.items()}
    unweighted = abs(found["inference"]["at_once"][0] - found["inference"]["unweighted"][0])
    measured = (
        f"{found['examples']:,} images in batches of {BATCH_SIZE} (the last of {found['last_batch']}): loss differs by "
        f"{loss:.1e}, accuracy by {accuracy:.1e}; not weighted {unweighted:.1e}; by batch statistics {training_loss:.1e} "
        f"and {training_accuracy:.1e}"
    )
    if equal["inference"] and equal["training"]:
        return holds(measured, "It makes no difference, whatever is_training says.")
    if equal["inference"]:
        note = (
            "With is_training False, as the document evaluates, equal to float rounding. By the batches' own statistics "
            "each batch size gives another loss."
        )
        return holds_if("is_training is False", measured, note)
    return does_not_hold(measured, "Even by population statistics the two differ by more than float rounding.")


def judge_solver_15(result: dict) -> Verdict:
    found = result["returned_loss"]
    steps = found["steps"]
    measured = (
        f"{found['values']} values; the last equals the batch's loss before the update in {found['equal_to_before']} of "
        f"{steps} steps, after it in {found['equal_to_after']}"
    )
    if found["equal_to_before"] == steps:
        when = "before the update, by the batch's own statistics"
    elif found["equal_to_after"] == steps:
        when = "after the update"
    else:
        return does_not_hold(measured, "What is returned is neither the loss before the update nor the one after it.")
    if found["values"] == 1:
        return holds(measured, f"It is the loss {when}.")
    first = "None for the train op" if found["nothing_first"] else "the train op's value"
    note = f"The list holds {first} and the loss {when}."
    return holds_if(f"the last of the {found['values']} values is meant", measured, note)


FIGURES = {
    "model_solver.png": "The document's four figures. Solid: this run, the median over the seeds, shaded from lowest "
    "to highest; dotted: the document's own numbers. See whether blue stays below orange in loss at every epoch. The "
    "axes are cut to where the curves are; the document's accuracy figures run from 0 to 1 and show two flat lines."
}


def draw(result: dict, folder: Path) -> None:
    """The document's four figures as panels: loss and accuracy after each epoch, training and validation."""
    with figure(folder / "model_solver.png", nrows=2, ncols=2, figsize=(11, 7.5), sharex=True) as (drawing, axes):
        for axis, name in zip(axes.T.flat, CURVES, strict=True):
            _draw_panel(axis, result, name)
        for axis in axes[1]:
            axis.set_xlabel("epoch")
        axes[0, 0].legend(loc="upper right")
        data = result["data"].replace("mnist", "MNIST")
        drawing.suptitle(f"784-32-32-10 ReLU, Adam 0.01, batch 32, on {data}" if data == "MNIST" else f"On {data}")


def _draw_panel(axis, result: dict, name: str) -> None:
    part, quantity = name.split("_")
    runs = result["runs"]
    epochs = range(1, len(runs[0][name]["with"]) + 1)
    for form, colour in (("with", BLUE), ("without", ORANGE)):
        values = np.array([run[name][form] for run in runs])
        axis.plot(epochs, np.median(values, 0), color=colour, marker="o", markersize=4, label=f"{form} batch norm")
        if len(runs) > 1:
            axis.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        if result["data"] == "mnist":  # the document's numbers are MNIST's
            label = f"the document's, {form}"
            axis.plot(
                range(1, EPOCHS + 1), DOCUMENT[name][form], color=colour, linestyle=":", linewidth=1.5, label=label
            )
    axis.set_title(f"{part.replace('train', 'training')} {quantity}, {len(runs)} seed{'s' * (len(runs) > 1)}")
    axis.set_ylabel("mean cross-entropy" if quantity == "loss" else "share right")
    axis.set_xticks(list(epochs))


def summarize(result: dict) -> str:
    runs = result["runs"]
    lines = [
        "After each epoch: loss (accuracy), the median over the seeds, and the document's on MNIST in brackets",
        "",
    ]
    for part in ("train", "validation"):
        lines.append(f"{part:<10}   {'with batch norm':<38}   without")
        for epoch in range(len(runs[0]["train_loss"]["with"])):
            cells = [_cell(result, part, form, epoch) for form in NETWORKS]
            lines.append(f"  epoch {epoch + 1:>2}   {cells[0]:<38}   {cells[1]}")
        lines.append("")
    for form in NETWORKS:
        values = np.array([run["test"][form] for run in runs])
        loss, accuracy = DOCUMENT_TEST[form]
        lines.append(
            f"Test, {form + ':':<9} loss {spread(values[:, 0])}, accuracy {spread(values[:, 1])}; "
            f"the document's {loss:.4f}, {accuracy:.4f}"
        )
    return "\n".join(lines)


def _cell(result: dict, part: str, form: str, epoch: int) -> str:
    loss, accuracy = (
        np.median([run[f"{part}_{quantity}"][form][epoch] for run in result["runs"]])
        for quantity in ("loss", "accuracy")
    )
    text = f"{loss:.5f} ({accuracy:.2%})"
    if epoch < EPOCHS:
        theirs = (DOCUMENT[f"{part}_{quantity}"][form][epoch] for quantity in ("loss", "accuracy"))
        text += " [{:.5f} ({:.2%})]".format(*theirs)
    return text


if __name__ == "__main__":
    harness.run(__name__)
