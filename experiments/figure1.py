"""Figure 1 of the batch norm paper: its own network, its three panels, and the same panels for r2rt's network.

Documents: Ioffe & Szegedy 2015 (BN2015), section 4.1; r2rt, "Implementing Batch Normalization in Tensorflow",
*Implementing batch normalization in Tensorflow*. Claim r2rt-02.

    make figure1        or        python -m experiments.figure1 --mode full

The paper's network: binary images, three hidden layers of 100 sigmoids, weights from a small Gaussian, batches of 60,
50,000 steps. Recorded are the accuracy on the test set, and over training the 15th, 50th and 85th percentiles of one
typical unit's input in the last hidden layer. r2rt's network (grey images, two hidden layers, N(0, 1)) is shown so too.

The paper gives neither the learning rate nor the deviation of the small Gaussian nor the optimizer. Gradient descent is
taken, the plain form of what its introduction describes; rate and deviation come from a search of `SEARCH_STEPS` steps
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
from experiments.bn_vs_plain import (
    BATCH_SIZE,
    build_tower,
    data_name,
    first_step,
    jitter,
    percentiles,
    placeholders,
    read,
    written,
)
from experiments.machinery import harness, kept_work
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.machinery.harness import Mode
from experiments.machinery.results import spread
from experiments.machinery.verdicts import Verdict, does_not_hold, holds, holds_if

# The paper's.
HIDDEN_UNITS = (100, 100, 100)
STEPS = 50_000
# A pixel above it is 1 in the paper's binary image, which it does not say how it made.
WHITE = 0.5
EVALUATIONS = 100
# On the mean loss.
RATES = (0.1, 0.3, 1.0, 3.0)
# "small".
DEVIATIONS = (0.01, 0.1)
SEARCH_STEPS = 3000
# Building graphs takes the time there.
QUICK_RATES, QUICK_DEVIATIONS, QUICK_SEARCH_STEPS = (0.3, 1.0), (0.1,), 500
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
FORMS = ("plain", "batch", "population")
NETWORKS = {"paper": "paper's", "kind": "paper's, at the rate kindest to batch norm", "r2rt": "r2rt's"}

# What the paper's section 4.1 and the document have, for the note.
PAPER_NETWORK = {"hidden layers": "3", "start": "small Gaussian", "images": "binary", "steps": "50,000 steps"}
R2RT_NETWORK = {"hidden layers": "2 hidden layers", "start": "N(0, 1)", "images": "grey", "steps": "40,000"}

# A seed takes minutes.
FULL = Mode(data="mnist", steps=STEPS, seeds=[0])
QUICK = Mode(data="digits", steps=1500, seeds=[0])


def run(settings: harness.Settings) -> dict:
    binary = binarized(settings.dataset)
    chosen = search(settings, binary)
    runs, curves = [], None
    for seed in settings.seeds:
        networks = {
            "paper": _paper_network(settings, binary, chosen["fair"], seed, settings.steps, "paper"),
            "kind": _paper_network(settings, binary, chosen["kind"], seed, max(1, settings.steps // SHARE), "kind"),
            "r2rt": _r2rt_network(settings, seed),
        }
        figures = {f"{name}_{key}": value for name, each in networks.items() for key, value in _figures(each).items()}
        runs.append({"seed": seed} | figures)
        curves = curves or {name: _written(each) for name, each in networks.items()}
    return chosen | {"runs": runs, "curves": curves}


def binarized(dataset: bn_graph.Dataset) -> bn_graph.Dataset:
    """The data set with each pixel 0 or 1."""
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    ones = {name: split._replace(images=np.float32(split.images > WHITE)) for name, split in splits.items()}
    return dataset._replace(**ones)


def _sizes(dataset: bn_graph.Dataset, hidden: tuple[int, ...]) -> tuple[int, ...]:
    return (dataset.test.images.shape[1], *hidden, dataset.test.labels.shape[1])


def _small(dataset: bn_graph.Dataset, deviation: float, seed: int) -> list[np.ndarray]:
    return [np.float32(deviation) * each for each in bn_graph.normal_weights(_sizes(dataset, HIDDEN_UNITS), seed)]


def search(settings: harness.Settings, binary: bn_graph.Dataset) -> dict:
    """Trains every rate and deviation, both networks, at once and on the same batches; scores the validation images."""
    full = settings.mode == "full"
    grid = list(itertools.product(*((RATES, DEVIATIONS) if full else (QUICK_RATES, QUICK_DEVIATIONS))))
    seed = settings.seeds[0]
    steps = min(SEARCH_STEPS if full else QUICK_SEARCH_STEPS, settings.steps)
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        feed = placeholders(binary)
        towers = {
            (place, batch_norm): build_tower(
                f"search{place}_{'with' if batch_norm else 'without'}",
                *feed,
                _small(binary, deviation, seed),
                batch_norm=batch_norm,
                rate=rate / BATCH_SIZE,
            )
            for place, (rate, deviation) in enumerate(grid)
            for batch_norm in (True, False)
        }
        _train(
            settings, session, list(towers.values()), feed, binary, "search", seed, steps, lambda step: {}, 0, grid=grid
        )
        scored = {key: next(iter(tower.scored.values())).accuracy for key, tower in towers.items()}
        accuracy = session.run(scored, dict(zip(feed, binary.validation, strict=True)))
    table = [
        {
            "rate": rate,
            "deviation": deviation,
            "without": round(float(accuracy[place, False]), 5),
            "with": round(float(accuracy[place, True]), 5),
        }
        for place, (rate, deviation) in enumerate(grid)
    ]
    best = max(row["without"] for row in table)
    # Of what can't be told apart, the lowest rate: it is the least likely to become unstable in the steps that follow.
    taken = min((row for row in table if row["without"] >= best - TIE), key=lambda row: (row["rate"], -row["without"]))
    begun = [row for row in table if row["without"] >= BEGUN] or table
    kind = max(begun, key=lambda row: row["with"] - row["without"])
    return {"search": table, "search_steps": steps, "fair": taken, "kind": kind}


def _paper_network(settings, binary: bn_graph.Dataset, chosen: dict, seed: int, steps: int, part: str) -> dict:
    weights = _small(binary, chosen["deviation"], seed)
    return _pair(settings, binary, weights, chosen["rate"] / BATCH_SIZE, steps, seed, part)


def _r2rt_network(settings: harness.Settings, seed: int) -> dict:
    weights = bn_graph.normal_weights(_sizes(settings.dataset, bn_vs_plain.HIDDEN_UNITS), seed)
    steps = max(1, settings.steps // SHARE)
    return _pair(settings, settings.dataset, weights, bn_vs_plain.LEARNING_RATE, steps, seed, "r2rt")


def _pair(settings, dataset, weights, rate, steps, seed, part) -> dict[str, np.ndarray]:
    """The curves of one network with batch norm and without."""
    every = max(1, steps // EVALUATIONS)
    test = dataset.test
    with tf.Graph().as_default(), tf.Session(config=harness.session_config(settings)) as session:
        feed = placeholders(dataset)
        with_, without = (
            build_tower(name, *feed, weights, batch_norm=name == "with", rate=rate) for name in ("with", "without")
        )
        scored = without.scored | with_.scored

        def measure(finished: int) -> dict[str, np.ndarray]:
            if not _is_measured(finished, every) and finished != steps:
                return {}
            got, beta = session.run((scored, with_.beta), dict(zip(feed, test, strict=True)))
            measured = {f"accuracy_{form}": each.accuracy for form, each in got.items()}
            measured |= {f"percentiles_{form}": percentiles(each.inputs) for form, each in got.items()}
            difference = np.abs(got["batch"].inputs.mean(0, np.float64) - beta)
            measured["mean_minus_beta"] = np.max(difference)
            return {name: np.float32(value) for name, value in measured.items()}

        return _train(settings, session, [with_, without], feed, dataset, part, seed, steps, measure, every, rate=rate)


def _is_measured(finished: int, every: int) -> bool:
    return every > 0 and finished % every == 1 % every


def _train(
    settings, session, towers, feed, dataset, part, seed, steps, measure, every, **identity
) -> dict[str, np.ndarray]:
    return kept_work.train_and_measure(
        settings,
        session,
        [bn_graph.Step(tower.train_op, *feed) for tower in towers],
        dataset.train,
        measure,
        batch_size=BATCH_SIZE,
        seed=seed,
        folder=kept_work.folder(settings, seed, part, batch=BATCH_SIZE, format=1, **identity),
        label=f"seed {seed}, {part}",
        pause_after=lambda finished: _is_measured(finished, every),
        stop=steps,
    )


def band_movement(bands: np.ndarray) -> np.ndarray:
    """How far each unit's band [time, percentile, unit] lies from where it ends, on average, in widths of its last."""
    final = bands[-1].astype(np.float64)
    width = np.maximum(final[-1] - final[0], 1e-6)
    return np.abs(bands - final).mean((0, 1)) / width


def band_noise(bands: np.ndarray) -> np.ndarray:
    """What changes in each unit's median from one evaluation to the next without drift, in widths of its last band."""
    final = bands[-1].astype(np.float64)
    return jitter(bands[:, 1]) / np.maximum(final[-1] - final[0], 1e-6)


def typical_unit(bands: np.ndarray) -> int:
    """The unit whose movement is the median of all."""
    movement = band_movement(bands)
    return int(np.argsort(movement)[len(movement) // 2])


def _figures(curves: dict[str, np.ndarray]) -> dict:
    figures = {"mean_minus_beta": float(curves["mean_minus_beta"].max())}
    for form in FORMS:
        accuracy = curves[f"accuracy_{form}"]
        figures[f"final_{form}"] = float(accuracy[-LAST:].mean(dtype=np.float64))
        figures[f"steps_to_90_{form}"] = first_step(curves[f"accuracy_{form}_step"], accuracy, 0.9)
        figures[f"movement_{form}"] = float(np.median(band_movement(curves[f"percentiles_{form}"])))
        figures[f"noise_{form}"] = float(np.median(band_noise(curves[f"percentiles_{form}"])))
    return figures


def _written(curves: dict[str, np.ndarray]) -> dict:
    """What the panels need: accuracies, and the percentiles of one typical unit of each network."""
    kept = {"step": written(curves["accuracy_plain_step"])}
    kept |= {f"accuracy_{form}": written(curves[f"accuracy_{form}"]) for form in FORMS}
    units = {"plain": typical_unit(curves["percentiles_plain"]), "batch": typical_unit(curves["percentiles_batch"])}
    units["population"] = units["batch"]  # the same unit of the same network, seen otherwise
    kept |= {f"percentiles_{form}": written(curves[f"percentiles_{form}"][:, :, units[form]]) for form in FORMS}
    return kept | {f"unit_{form}": unit for form, unit in units.items()}


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
            curves = {key: read(each) for key, each in result["curves"][name].items() if isinstance(each, list)}
            _draw_accuracy(row[0], curves, title)
            _draw_bands(row[1:], curves, result["curves"][name])
            for axis in row:
                axis.set_xlabel("training steps")
                axis.set_xlim(0, curves["step"][0][-1])
                axis.locator_params(axis="x", nbins=5)
        drawing.suptitle(f"Figure 1 of BN2015, on {data_name(result)} (seed {result['seed']}, batches of {BATCH_SIZE})")


def _draw_accuracy(axis, curves: dict, title: str) -> None:
    steps = curves["step"][0]
    axis.plot(steps, curves["accuracy_plain"][0], color=ORANGE, label="without")
    axis.plot(steps, curves["accuracy_batch"][0], color=BLUE, label="with, test set's own statistics")
    axis.plot(steps, curves["accuracy_population"][0], color=BLUE, ls=":", label="with, moving statistics")
    axis.set(ylim=(0.7, 1.0), ylabel="accuracy on the test set")
    axis.set_title(title, fontsize=9)
    axis.legend(loc="lower right", fontsize=8)


def _draw_bands(axes, curves: dict, units: dict) -> None:
    steps = curves["step"][0]
    panels = (("plain", ORANGE, "without batch norm"), ("batch", BLUE, "with batch norm"))
    for axis, (form, color, title) in zip(axes, panels, strict=True):
        low, middle, high = curves[f"percentiles_{form}"]
        axis.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
        axis.plot(steps, middle, color=color, label="15th, 50th, 85th percentile")
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
        axis.legend(loc="lower right", fontsize=7, frameon=True, framealpha=0.85, edgecolor="none")
    axes[0].set_ylabel("sigmoid's input")


def _column(result: dict, name: str) -> list:
    return [each[name] for each in result["runs"]]


def judge_r2rt_02(result: dict) -> Verdict:
    moved, noise = (
        {network: _times_steadier(result, network, figure_) for network in NETWORKS}
        for figure_ in ("movement", "noise")
    )
    measured = "steadier with batch norm, in distance from the end and in noise: " + "; ".join(
        f"{name} {moved[network]:.1f} and {noise[network]:.1f} times" for network, name in NETWORKS.items()
    )
    differences = ", ".join(f"{R2RT_NETWORK[name]} for {there}" for name, there in PAPER_NETWORK.items())
    is_beta = float(np.max(_column(result, "r2rt_mean_minus_beta"))) < 1e-3
    drawn = "The document draws means, and with batch norm that mean is beta" if is_beta else "The document draws means"
    papers = max(moved["paper"], moved["kind"])
    if papers < STEADIER:
        note = f"With batch norm the paper's own distributions are only {papers:.1f} times steadier. {drawn}."
        return does_not_hold(measured, note)
    both = (
        f"In the paper's network the distribution is {papers:.1f} times steadier with batch norm at the rate that shows most "
        f"({min(moved['paper'], moved['kind']):.1f} at the other), in r2rt's ({differences}) {moved['r2rt']:.1f} times"
    )
    if moved["r2rt"] >= STEADIER:
        note = f"{both}. {drawn}."
        return (
            holds_if("percentiles are drawn, as the paper does", measured, note) if is_beta else holds(measured, note)
        )
    if noise["r2rt"] >= STEADIER:
        note = f"{both}, though its noise is {noise['r2rt']:.1f} times less. {drawn}."
        return holds_if("steadier means less noise, not less drift", measured, note)
    return does_not_hold(measured, f"{both}. {drawn}.")


def _times_steadier(result: dict, network: str, name: str) -> float:
    plain, batch = (np.median(_column(result, f"{network}_{name}_{form}")) for form in ("plain", "batch"))
    return float(plain / max(batch, 1e-9))


def summarize(result: dict) -> str:
    lines = [f"Search ({result['search_steps']:,} steps)   rate   deviation   without   with (validation accuracy)"]
    for row in result["search"]:
        chosen = (
            "  <- best without"
            if row == result["fair"]
            else "  <- kindest to batch norm"
            if row == result["kind"]
            else ""
        )
        numbers = f"{row['rate']:>6}   {row['deviation']:>9}   {row['without']:>7.4f}   {row['with']:.4f}"
        lines.append(f"{'':<22} {numbers}{chosen}")
    for network, name in NETWORKS.items():
        lines += [
            "",
            f"The network: {name}",
            f"{'':<22} {'accuracy at the end':<20} {'distance from its end':<24} noise (in widths)",
        ]
        for form, label in zip(FORMS, ("without", "with, own statistics", "with, moving"), strict=True):
            columns = [_column(result, f"{network}_{key}_{form}") for key in ("final", "movement", "noise")]
            cells = [spread(column, digits) for column, digits in zip(columns, (4, 2, 3), strict=True)]
            lines.append(f"  {label:<20} {cells[0]:<20} {cells[1]:<24} {cells[2]}")
    return "\n".join(lines)


if __name__ == "__main__":
    harness.run(__name__)
