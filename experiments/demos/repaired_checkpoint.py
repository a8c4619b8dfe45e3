"""A broken real checkpoint repaired end to end: accuracy before and after ``recalibrate``, without retraining.

    make mend-demo        make mend-demo DATA=mnist STEPS=2000 SEED=1

r2rt's network is trained with the commonest fault: its update ops stand in ``UPDATE_OPS`` and the train op doesn't run
them. Nothing shows in training; the checkpoint is worth little in prediction, since its moving statistics are still
the initial 0 and 1. ``python -m bn_graph audit`` says so, ``python -m bn_graph recalibrate`` computes the statistics
from training images, and the same weights predict as they should. It judges no claim.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import bn_graph
from bn_graph.tf1 import tf
from experiments.machinery import harness, programs, results
from experiments.machinery.figures import BLUE, GREY, ORANGE, figure
from experiments.single_example import HIDDEN_UNITS

NAME = "repaired_checkpoint"
# The document's; a training takes less than ten seconds on an idle machine.
BATCH_SIZE, LEARNING_RATE, DECAY, STEPS = 60, 0.01, 0.999, 10_000
# Training images: their means are within 1/100 of a standard deviation of the whole set's, in a file of 31 MB and not 172.
RECALIBRATED_ON = 10_000
# Test images that are predicted one at a time; the document shows as many.
ALONE = 100


def detached(inputs, is_training, name):
    """Batch norm whose update ops go into ``UPDATE_OPS``, as in tf.layers; `build_graph`'s train op never runs those."""
    return bn_graph.batch_norm_wrapper(
        inputs, is_training, decay=DECAY, updates_collection=tf.GraphKeys.UPDATE_OPS, name=name
    )


def attached(inputs, is_training, name):
    """The same with updates that the outputs depend on, so that they can't be forgotten."""
    return bn_graph.batch_norm_wrapper(inputs, is_training, decay=DECAY, name=name)


def main(argv: list[str] | None = None) -> int:
    return programs.run(_parser(), argv, _demonstrate)


def _demonstrate(given: argparse.Namespace) -> None:
    folder = _emptied(given.output / NAME)
    dataset = bn_graph.load(given.data)
    print(bn_graph.datasets.describe(dataset), flush=True)
    result = run(dataset, given.steps, given.seed, folder)
    results.write_json(folder / "result.json", result)
    result = json.loads((folder / "result.json").read_text())
    draw(result, folder)
    print(summarize(result, folder))


def _parser() -> argparse.ArgumentParser:
    parser = programs.parser(__name__, __doc__)
    parser.add_data()
    parser.add_number("--steps", "steps", 1, STEPS, "training steps")
    parser.add_number("--seed", "a seed", 0, 0, "of weights and batches")
    parser.add_output()
    return parser


def _emptied(folder: Path) -> Path:
    """The folder, without an earlier run's checkpoints: ``recalibrate`` writes over nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in ("result.json", f"{NAME}.png"):
        (folder / earlier).unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "checkpoints").mkdir()
    return folder


def run(dataset: bn_graph.Dataset, steps: int, seed: int, folder: Path) -> dict:
    """Breaks, scores, audits, repairs, audits and scores again.

    Args:
        dataset: to train and test on.
        steps: of both trainings.
        seed: of weights and batches, the same for both.
        folder: of results; the checkpoints go into ``checkpoints`` there, which is there and empty.

    Returns:
        The result, ready for JSON.

    Raises:
        programs.UsageError: one of the commands failed.
        CheckpointError: a checkpoint can't be written or read.
    """
    started = time.monotonic()
    broken, repaired, trained = (
        str(folder / "checkpoints" / name) for name in ("broken", "repaired", "trained_properly")
    )
    data = folder / "checkpoints" / "train.npz"

    # Break it, and keep what the training graph itself scores on the test set at once: batch statistics of 10,000
    # images are near the population's, which is why nobody notices.
    batch_statistics = _train(dataset, steps, seed, detached, broken)["accuracy_at_once"]
    before = _score(dataset, broken)
    audit_before = _audit(broken)

    # Mend it: the weights as they are, new statistics from training images.
    np.savez(data, x=dataset.train.images[:RECALIBRATED_ON])
    options = ["--meta", f"{broken}.meta", "--checkpoint", broken, "--data", str(data), "--out", repaired]
    recalibration = _command(["recalibrate", *options], expected=(0,))
    audit_after = _audit(repaired)
    after = _score(dataset, repaired)

    # What it might have been: the same weights on the same batches, with updates.
    _train(dataset, steps, seed, attached, trained)
    return {
        "format": results.FORMAT,
        "experiment": NAME,
        "title": __doc__.splitlines()[0],
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "seed": seed,
        "steps": steps,
        "settings": {
            "hidden_units": list(HIDDEN_UNITS),
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "decay": DECAY,
            "recalibrated_on": len(dataset.train.images[:RECALIBRATED_ON]),
        },
        "versions": results.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "accuracy_before": before["accuracy"],
        "accuracy_after": after["accuracy"],
        "accuracy_of_batch_statistics": batch_statistics,
        "accuracy_trained_properly": _score(dataset, trained)["accuracy"],
        "weights_unchanged": _same_weights(broken, repaired),
        "weights_as_trained_properly": _same_weights(broken, trained),
        "alone": {"before": before["alone"], "after": after["alone"]},
        "audit_before": audit_before,
        "recalibration": recalibration,
        "audit_after": audit_after,
        "checkpoints": {"broken": broken, "repaired": repaired, "trained_properly": trained},
        "seconds": round(time.monotonic() - started, 1),
    }


def _network(dataset: bn_graph.Dataset, seed: int, is_training: bool, normalizer) -> bn_graph.Network:
    sizes = (dataset.train.images.shape[1], *HIDDEN_UNITS, dataset.train.labels.shape[1])
    weights = bn_graph.normal_weights(sizes, seed)
    return bn_graph.build_graph(is_training, weights, normalizer=normalizer, learning_rate=LEARNING_RATE)


def _train(dataset: bn_graph.Dataset, steps: int, seed: int, normalizer, prefix: str) -> dict[str, float]:
    """Trains, saves all variables and the graph, and then scores the test set at once in the training graph."""
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = _network(dataset, seed, True, normalizer)
        saver = tf.train.Saver()
        bn_graph.resume(session, None)
        bar = harness.progress_bar(f"training, updates {normalizer.__name__}")
        bn_graph.train(session, network, dataset.train, steps=steps, batch_size=BATCH_SIZE, seed=seed, progress=bar)
        saver.save(session, prefix)
        test = {network.x: dataset.test.images, network.y_: dataset.test.labels}
        return {"accuracy_at_once": float(session.run(network.accuracy, test))}


def _score(dataset: bn_graph.Dataset, prefix: str) -> dict:
    """In a fresh graph with ``is_training=False``: the test set at once, and its first images one at a time."""
    test = dataset.test
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = _network(dataset, 0, False, attached)  # the seed's weights are replaced by the checkpoint's
        with warnings.catch_warnings():  # which is the audit's to say here
            warnings.simplefilter("ignore", bn_graph.UntrainedStatisticsWarning)
            bn_graph.restore(session, prefix)
        logits = session.run(network.logits, {network.x: test.images})
        shown = test.images[:ALONE]
        alone = np.concatenate([session.run(network.logits, {network.x: [image]}) for image in shown])
    at_once = logits[:ALONE]
    return {
        "accuracy": float(np.mean(logits.argmax(1) == test.labels.argmax(1))),
        "alone": {
            "images": len(alone),
            "right": int(np.sum(alone.argmax(1) == test.labels[:ALONE].argmax(1))),
            "same_predictions_at_once": bool(np.array_equal(alone.argmax(1), at_once.argmax(1))),
            "largest_difference_of_logits": results.largest(alone - at_once),
        },
    }


def _audit(prefix: str) -> dict:
    """What the audit finds in a checkpoint and the graph beside it: status, and the layers of each finding."""
    ended = _command(["audit", f"{prefix}.meta", "--format", "json"], expected=(0, 1))
    report = json.loads(ended["printed"])["reports"][0]
    findings = [{key: each[key] for key in ("code", "level", "layers", "message")} for each in report["findings"]]
    return {"command": _shown(["audit", f"{prefix}.meta"]), "status": ended["status"], "findings": findings}


def _command(arguments: list[str], expected: tuple[int, ...]) -> dict:
    """Runs a command of ``python -m bn_graph`` in a process of its own."""
    ended = subprocess.run([sys.executable, "-m", "bn_graph", *arguments], capture_output=True, text=True)
    if ended.returncode not in expected:
        said = ended.stderr.strip().splitlines() or [ended.stdout.strip()]
        raise programs.UsageError(f"`{_shown(arguments)}` ended with status {ended.returncode}: {said[-1]}")
    return {"command": _shown(arguments), "status": ended.returncode, "printed": ended.stdout}


def _shown(arguments: list[str]) -> str:
    return shlex.join(["python", "-m", "bn_graph", *arguments])


def _same_weights(one: str, other: str) -> bool:
    """Whether two checkpoints hold the same values, bit for bit, of all but the moving statistics."""
    readers = [tf.train.load_checkpoint(prefix) for prefix in (one, other)]
    names = [set(reader.get_variable_to_shape_map()) for reader in readers]
    weights = [name for name in names[0] if not name.endswith(("moving_mean", "moving_variance"))]
    return names[0] == names[1] and all(
        np.array_equal(*(reader.get_tensor(name) for reader in readers)) for name in weights
    )


def draw(result: dict, folder: Path) -> None:
    """Two bars: before and after; and a line at what training with updates gives."""
    before, after = result["accuracy_before"], result["accuracy_after"]
    with figure(folder / f"{NAME}.png", figsize=(5.2, 3.8)) as (_, axis):
        bars = axis.bar(["before", "after recalibrate"], [before, after], color=[ORANGE, BLUE], width=0.55)
        axis.bar_label(bars, [_percent(before), _percent(after)], padding=3)
        trained = result["accuracy_trained_properly"]
        axis.axhline(trained, color=GREY, linestyle="--", linewidth=1)
        # From the left edge of the first bar: there is room up to the second.
        axis.text(
            bars[0].get_x(), trained + 0.015, f"trained with updates: {_percent(trained)}", color=GREY, va="bottom"
        )
        axis.set(ylim=(0, 1.09), ylabel="test accuracy in inference mode", axisbelow=True)
        axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axis.grid(axis="x", visible=False)
        data = result["data"].replace("mnist", "MNIST")
        axis.set_title(f"One checkpoint, the same weights ({data}, {result['steps']:,} steps)", fontsize=10)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def summarize(result: dict, folder: Path) -> str:
    """The story in a dozen lines."""
    alone = result["alone"]["after"]
    same = "the same predictions as at once" if alone["same_predictions_at_once"] else "NOT as at once"
    lines = [
        f"r2rt's network, {result['data']}, {result['steps']:,} steps, seed {result['seed']}, update ops detached",
        "",
        f"  accuracy before  {result['accuracy_before']:.4f}   statistics still 0 and 1",
        f"  audit            {_in_short(result['audit_before'])}",
        f"  recalibrate      on {result['settings']['recalibrated_on']:,} training images; weights "
        + ("unchanged, bit for bit" if result["weights_unchanged"] else "CHANGED"),
        f"  audit            {_in_short(result['audit_after'])}",
        f"  accuracy after   {result['accuracy_after']:.4f}   {alone['images']} images one at a time: {same} "
        f"(logits within {alone['largest_difference_of_logits']:.1g})",
        "",
        f"  for comparison   {result['accuracy_of_batch_statistics']:.4f}   batch statistics of the whole test set",
        f"                   {result['accuracy_trained_properly']:.4f}   trained with its updates"
        + (", to the same weights" if result["weights_as_trained_properly"] else ""),
        "",
        "What was run:",
        *(f"  {result[part]['command']}" for part in ("audit_before", "recalibration", "audit_after")),
        f"Written: {folder / 'result.json'}, {folder / NAME}.png, {folder / 'checkpoints'} ({result['seconds']} s)",
    ]
    return "\n".join(lines)


def _in_short(audit: dict) -> str:
    found = [f"{each['code']} {each['level']} ({', '.join(each['layers'])})" for each in audit["findings"]]
    return f"exit {audit['status']}: {', '.join(found) or 'no finding'}"


if __name__ == "__main__":
    sys.exit(main())
