"""Figure 1 of the batch norm paper: its own network, its three panels, and the same panels for r2rt's network.

Documents: Ioffe & Szegedy 2015 (BN2015), section 4.1; r2rt, "Implementing Batch Normalization in Tensorflow",
*Implementing batch normalization in Tensorflow*. Claim r2rt-02.

    make figure1        or        python -m experiments.figure1 --mode full

The paper's network: binary images, three hidden layers of 100 sigmoids, weights from a small Gaussian, batches of 60,
50,000 steps. Recorded are the accuracy on the test set, and over training the 15th, 50th and 85th percentiles of one
typical unit's input in the last hidden layer. r2rt's network (grey images, two hidden layers, N(0, 1)) is shown so too.

The paper gives neither the learning rate nor the deviation of the small Gaussian nor the optimizer. Gradient descent is
taken, the plain form of what its introduction describes; rate and deviation come from a search of 3,000 steps
in which the network *without* batch norm does best on validation images, so that batch norm gets no head start from the
choice. The result has the whole search. What the paper shows depends on that choice, so the network is trained, for fewer
steps, at the other end of the search too: where batch norm leads most though the network without it has begun to learn.

The paper draws the inputs of its training network, normalized by the batch's statistics. That is kept, and the moving
statistics' percentiles are drawn beside it.
"""

import itertools
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments import bn_vs_plain
from experiments.machinery import harness, kept_work, towers
from experiments.machinery.classifiers import layer_sizes, placeholders
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode, Settings
from experiments.machinery.results import column, data_name, spread
from experiments.machinery.towers import FORMS
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_with_a_trap

# The paper's, and r2rt's too.
BATCH_SIZE = 60
# The paper's.
HIDDEN_UNITS = (100, 100, 100)
# A pixel above it is 1 in the paper's binary image, which it does not say how it made.
WHITE = 0.5
EVALUATIONS = 100
# Of validation accuracy: two standard errors of 5,000 images.
TIE = 0.005
# Validation accuracy of a network that has begun to learn: the paper's accuracy axis starts there.
BEGUN = 0.7
# The two further networks get a fifth of the steps; for r2rt's that is the 10,000 of its second training.
SHARE = 5
# Times: what the eye would call much more stable starts somewhere above it.
STEADIER = 1.25
# Evaluations averaged for an accuracy "at the end".
LAST = 10
NETWORKS = {"paper": "paper's", "kind": "paper's, at the rate kindest to batch norm", "r2rt": "r2rt's"}

# What the paper's section 4.1 and the document have, for the note.
PAPER_NETWORK = {"hidden layers": "3", "start": "small Gaussian", "images": "binary", "steps": "50,000 steps"}
R2RT_NETWORK = {"hidden layers": "2 hidden layers", "start": "N(0, 1)", "images": "grey", "steps": "40,000"}

# The paper's steps; a seed takes a minute. The rates of the search are on the mean loss, the deviations are "small".
SEARCH = {"rates": (0.1, 0.3, 1.0, 3.0), "deviations": (0.01, 0.1), "search_steps": 3000}
FULL = Mode(data="mnist", steps=50_000, seeds=[0, 1, 2], own=SEARCH)
# Building graphs takes the time there.
QUICK = Mode(data="digits", steps=1500, own={"rates": (0.3, 1.0), "deviations": (0.1,), "search_steps": 500})


def run(settings: Settings) -> dict:
    grey, binary = settings.dataset, binarized(settings.dataset)
    found = search(settings, binary)
    few = max(1, settings.steps // SHARE)
    runs, curves = [], None
    for seed in settings.seeds:
        r2rt_weights = bn_graph.normal_weights(layer_sizes(grey, bn_vs_plain.HIDDEN_UNITS), seed)
        measured = {}
        for name, part, steps in (("paper", "fair", settings.steps), ("kind", "kind", few)):
            weights, rate = small_weights(binary, found[part]["deviation"], seed), found[part]["rate"] / BATCH_SIZE
            measured[name] = measure_pair(settings, binary, weights, rate, steps, seed, name)
        rate = bn_vs_plain.LEARNING_RATE
        measured["r2rt"] = measure_pair(settings, grey, r2rt_weights, rate, few, seed, "r2rt")
        figures = {f"{name}_{key}": value for name, each in measured.items() for key, value in figures_of(each).items()}
        runs.append({"seed": seed} | figures)
        curves = curves or {name: curves_for_figures(each) for name, each in measured.items()}
    return found | {"runs": runs, "curves": curves}


# --- The paper's network, and the search for what the paper does not give ---------------------------------------------
def binarized(dataset: bn_graph.Dataset) -> bn_graph.Dataset:
    """The data set with each pixel 0 or 1."""
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    ones = {name: split._replace(images=np.float32(split.images > WHITE)) for name, split in splits.items()}
    return dataset._replace(**ones)


def small_weights(dataset: bn_graph.Dataset, deviation: float, seed: int) -> list[np.ndarray]:
    weights = bn_graph.normal_weights(layer_sizes(dataset, HIDDEN_UNITS), seed)
    return [np.float32(deviation) * each for each in weights]


def search(settings: Settings, binary: bn_graph.Dataset) -> dict:
    """Trains every rate and deviation, both networks, at once and on the same batches; scores the validation images."""
    grid = list(itertools.product(settings.own["rates"], settings.own["deviations"]))
    seed, steps = settings.seeds[0], min(settings.own["search_steps"], settings.steps)
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        feed = placeholders(layer_sizes(binary, HIDDEN_UNITS))
        networks = {}
        for place, (rate, deviation) in enumerate(grid):
            weights = small_weights(binary, deviation, seed)
            for form in ("with", "without"):
                options = {"batch_norm": form == "with", "rate": rate / BATCH_SIZE}
                networks[place, form] = towers.build_tower(f"search{place}_{form}", *feed, weights, **options)
        options = {"part": "search", "seed": seed, "stop": steps, "every": 0, "identity": {"grid": grid}}
        train(settings, session, networks.values(), feed, binary, lambda step: {}, **options)
        scored = {key: next(iter(network.scored.values())).accuracy for key, network in networks.items()}
        accuracy = session.run(scored, dict(zip(feed, binary.validation, strict=True)))
    table = [
        {"rate": rate, "deviation": deviation}
        | {form: round(float(accuracy[place, form]), 5) for form in ("without", "with")}
        for place, (rate, deviation) in enumerate(grid)
    ]
    best = max(row["without"] for row in table)
    # Of what can't be told apart, the lowest rate: it is the least likely to become unstable in the steps that follow.
    fair = min((row for row in table if row["without"] >= best - TIE), key=lambda row: (row["rate"], -row["without"]))
    begun = [row for row in table if row["without"] >= BEGUN] or table
    kind = max(begun, key=lambda row: row["with"] - row["without"])
    return {"search": table, "search_steps": steps, "fair": fair, "kind": kind}


# --- r2rt-02: are the distributions as much steadier as in the paper's figure? ----------------------------------------
def measure_pair(settings, dataset, weights, rate, steps, seed, part) -> dict[str, np.ndarray]:
    """The curves of one network with batch norm and without."""
    every = max(1, steps // EVALUATIONS)
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        feed = placeholders((weights[0].shape[0], weights[-1].shape[1]))
        with_, without = (
            towers.build_tower(name, *feed, weights, batch_norm=name == "with", rate=rate)
            for name in ("with", "without")
        )

        def measure(finished: int) -> dict[str, np.ndarray]:
            if not is_measured(finished, every) and finished != steps:
                return {}
            test = dict(zip(feed, dataset.test, strict=True))
            scored, beta = session.run((without.scored | with_.scored, with_.beta), test)
            measured = {f"accuracy_{form}": each.accuracy for form, each in scored.items()}
            measured |= {f"percentiles_{form}": towers.percentiles(each.inputs) for form, each in scored.items()}
            measured["mean_minus_beta"] = np.max(np.abs(scored["batch"].inputs.mean(0, np.float64) - beta))
            return {name: np.float32(value) for name, value in measured.items()}

        options = {"part": part, "seed": seed, "stop": steps, "every": every, "identity": {"rate": rate}}
        return train(settings, session, [with_, without], feed, dataset, measure, **options)


def is_measured(finished: int, every: int) -> bool:
    return every > 0 and finished % every == 1 % every


def train(
    settings, session, networks, feed, dataset, measure, *, part, seed, stop, every, identity
) -> dict[str, np.ndarray]:
    """`kept_work.train_and_measure`, with the work kept in `part`; `measure` is called every `every` steps."""
    folder = kept_work.folder(settings, seed, part, batch=BATCH_SIZE, format=1, **identity)
    options = {"batch_size": BATCH_SIZE, "seed": seed, "folder": folder, "label": f"seed {seed}, {part}", "stop": stop}
    options["pause_after"] = lambda finished: is_measured(finished, every)
    steps = [bn_graph.Step(network.train_op, *feed) for network in networks]
    return kept_work.train_and_measure(settings, session, steps, dataset.train, measure, **options)


def band_movement(bands: np.ndarray) -> np.ndarray:
    """How far each unit's band [time, percentile, unit] lies from where it ends, on average, in widths of its last."""
    final = bands[-1].astype(np.float64)
    width = np.maximum(final[-1] - final[0], 1e-6)
    return np.abs(bands - final).mean((0, 1)) / width


def band_noise(bands: np.ndarray) -> np.ndarray:
    """What changes in each unit's median from one evaluation to the next without drift, in widths of its last band."""
    final = bands[-1].astype(np.float64)
    return towers.jitter(bands[:, 1]) / np.maximum(final[-1] - final[0], 1e-6)


def typical_unit(bands: np.ndarray) -> int:
    """The unit whose movement is the median of all."""
    movement = band_movement(bands)
    return int(np.argsort(movement)[len(movement) // 2])


def figures_of(curves: dict[str, np.ndarray]) -> dict:
    figures = {"mean_minus_beta": float(curves["mean_minus_beta"].max())}
    for form in FORMS:
        accuracy = curves[f"accuracy_{form}"]
        figures[f"final_{form}"] = float(accuracy[-LAST:].mean(dtype=np.float64))
        figures[f"steps_to_90_{form}"] = towers.first_step(curves[f"accuracy_{form}_step"], accuracy, 0.9)
        figures[f"movement_{form}"] = float(np.median(band_movement(curves[f"percentiles_{form}"])))
        figures[f"noise_{form}"] = float(np.median(band_noise(curves[f"percentiles_{form}"])))
    return figures


def curves_for_figures(curves: dict[str, np.ndarray]) -> dict:
    """What the panels need: accuracies, and the percentiles of one typical unit of each network."""
    kept = {"step": towers.written_curve(curves["accuracy_plain_step"])}
    kept |= {f"accuracy_{form}": towers.written_curve(curves[f"accuracy_{form}"]) for form in FORMS}
    units = {"plain": typical_unit(curves["percentiles_plain"]), "batch": typical_unit(curves["percentiles_batch"])}
    units["population"] = units["batch"]  # the same unit of the same network, seen otherwise
    kept |= {
        f"percentiles_{form}": towers.written_curve(curves[f"percentiles_{form}"][:, :, units[form]]) for form in FORMS
    }
    return kept | {f"unit_{form}": unit for form, unit in units.items()}


def judge_r2rt_02(result: dict) -> Verdict:
    moved, noise = (
        {network: times_steadier(result, network, name) for network in NETWORKS} for name in ("movement", "noise")
    )
    spreads = {network: spread(ratios_by_seed(result, network, "movement"), 1) for network in NETWORKS}
    figures = "; ".join(
        f"in {place} it stays {spreads[network]} times as near its end, with {noise[network]:.1f} times less noise"
        for network, place in zip(
            NETWORKS, ("the paper's network", "that at its rate kindest to batch norm", "r2rt's"), strict=True
        )
    )
    measured = f"Of the distribution of a unit's inputs, with batch norm against without: {figures}."
    differences = ", ".join(f"{R2RT_NETWORK[name]} for {there}" for name, there in PAPER_NETWORK.items())
    is_beta = float(np.max(column(result, "r2rt_mean_minus_beta"))) < 1e-3
    drawn = "The document draws means, and with batch norm that mean is beta" if is_beta else "The document draws means"
    papers = max(moved["paper"], moved["kind"])
    if papers < STEADIER:
        note = f"With batch norm the paper's own distributions are only {papers:.1f} times steadier. {drawn}."
        return does_not_hold(measured, note)
    note = f"Similar is read as what the paper's panels show, a distribution that moves less. {drawn}; "
    note += f"its network has {differences}."
    if moved["r2rt"] >= STEADIER:
        if is_beta:
            return holds_with_a_trap("the means that it draws are beta, whatever the images", measured, note)
        return holds(measured, note)
    if noise["r2rt"] >= STEADIER:
        note += " True of the noise alone."
    return does_not_hold(measured, note)


def times_steadier(result: dict, network: str, name: str) -> float:
    return float(np.median(ratios_by_seed(result, network, name)))


def ratios_by_seed(result: dict, network: str, name: str) -> np.ndarray:
    """How many times as much without batch norm as with it, one for each seed."""
    plain, batch = (np.array(column(result, f"{network}_{name}_{form}")) for form in ("plain", "batch"))
    return plain / np.maximum(batch, 1e-9)


# --- The figure -------------------------------------------------------------------------------------------------------
FIGURES = {
    "figure1.png": "The paper's own network at the rate that suits it best without batch norm, and at one that suits batch "
    "norm; below, r2rt's. See the accuracies, and the 15th, 50th and 85th percentiles of one typical sigmoid's input: "
    "how much steadier they are with batch norm depends on the rate and the start. With batch norm the band is "
    "that of the test set's own statistics, as in the paper; dashed is what the moving statistics make of it."
}


def draw(result: dict, folder: Path) -> None:
    """A row for each network: accuracy; a typical unit's input without batch norm; one with."""
    rows = {
        name: f"The paper's network, N(0, {result[part]['deviation']:g}²),\nrate {result[part]['rate']:g}: {why}"
        for name, part, why in (("paper", "fair", "best without"), ("kind", "kind", "kindest to batch norm"))
    }
    rows["r2rt"] = "r2rt's network: 2 hidden layers, N(0, 1),\ngrey images, rate 0.6 (0.01 on the sum of 60)"
    with figure(folder / "figure1.png", nrows=3, ncols=3, figsize=(10.2, 8.8)) as (drawing, axes):
        for row, (name, title) in zip(axes, rows.items(), strict=True):
            curves = {
                key: towers.read_curve(each) for key, each in result["curves"][name].items() if isinstance(each, list)
            }
            draw_accuracy(row[0], curves, title)
            draw_bands(row[1:], curves, result["curves"][name])
            for axis in row:
                axis.set_xlabel("training steps")
                axis.set_xlim(0, curves["step"][0][-1])
                axis.locator_params(axis="x", nbins=5)
        handles = {
            label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        drawing.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
        drawing.suptitle(f"Figure 1 of BN2015, on {data_name(result)} (seed {result['seed']}, batches of {BATCH_SIZE})")


def draw_accuracy(axis, curves: dict, title: str) -> None:
    steps = curves["step"][0]
    axis.plot(steps, curves["accuracy_plain"][0], color=ORANGE, label="accuracy without")
    axis.plot(steps, curves["accuracy_batch"][0], color=BLUE, label="accuracy with, test set's own statistics")
    axis.plot(steps, curves["accuracy_population"][0], color=BLUE, ls=":", label="accuracy with, moving statistics")
    axis.set(ylim=(0.7, 1.0), ylabel="accuracy on the test set")
    axis.set_title(title, fontsize=9)


def draw_bands(axes, curves: dict, units: dict) -> None:
    steps = curves["step"][0]
    panels = (("plain", ORANGE, "without batch norm"), ("batch", BLUE, "with batch norm"))
    for axis, (form, color, title) in zip(axes, panels, strict=True):
        low, middle, high = curves[f"percentiles_{form}"]
        axis.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
        axis.plot(steps, middle, color=color, label=f"{title}: 15th, 50th, 85th percentile")
        axis.set_title(
            f"{title.capitalize()}: input of unit {units[f'unit_{form}'] + 1}\nof the last hidden layer", fontsize=9
        )
    for place, curve in enumerate(curves["percentiles_population"]):
        label = None if place else "the same, by moving statistics"
        axes[1].plot(steps, curve, color=GREY, lw=0.8, ls="--", label=label)
    # One axis for both, as in the paper, and no wider than the bands: the moving statistics start far out.
    shown = np.concatenate([curves["percentiles_plain"], curves["percentiles_batch"]])
    margin = 0.15 * np.ptp(shown)
    for axis in axes:
        axis.set_ylim(shown.min() - margin, shown.max() + margin)
    axes[0].set_ylabel("sigmoid's input")


def summarize(result: dict) -> str:
    lines = [f"Search ({result['search_steps']:,} steps)   rate   deviation   without   with (validation accuracy)"]
    for row in result["search"]:
        kind = "  <- kindest to batch norm" if row == result["kind"] else ""
        kind = "  <- best without" if row == result["fair"] else kind
        numbers = f"{row['rate']:>6}   {row['deviation']:>9}   {row['without']:>7.4f}   {row['with']:.4f}"
        lines.append(f"{'':<22} {numbers}{kind}")
    for network, name in NETWORKS.items():
        lines += ["", f"The network: {name}"]
        lines.append(f"{'':<22} {'accuracy at the end':<20} {'distance from its end':<24} noise (in widths)")
        for form, label in zip(FORMS, ("without", "with, own statistics", "with, moving"), strict=True):
            figures = [column(result, f"{network}_{key}_{form}") for key in ("final", "movement", "noise")]
            cells = [spread(values, digits) for values, digits in zip(figures, (4, 2, 3), strict=True)]
            lines.append(f"  {label:<20} {cells[0]:<20} {cells[1]:<24} {cells[2]}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
