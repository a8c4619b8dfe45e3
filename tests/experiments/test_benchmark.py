"""The benchmark: its contenders compute the same thing, its parent asks them as it says, and its checks can say no.

No time is judged here. The contenders of other packages are tried where the package is installed.
"""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import (
    bench,
    child,
    measuring,
    presentation,
    recalibration,
    several_workers,
    steps_here,
    tasks,
    workers,
)
from experiments.benchmarks.measuring import COMPILED, DOCUMENT, IN_GRAPH
from experiments.benchmarks.several_workers import APART, ONE, WITH_SYNC, WITHOUT_SYNC
from experiments.machinery.programs import UsageError

EXAMPLES = 1500


@pytest.fixture
def few_examples(monkeypatch):
    data = tasks.data
    monkeypatch.setattr(tasks, "data", lambda examples=EXAMPLES: data(min(examples, EXAMPLES)))
    monkeypatch.setattr(tasks, "CHECK_STEPS", 10)


def loss_of(made) -> float:
    return made["check"](None)["loss"]


@pytest.mark.parametrize("task", [tasks.R2RT, tasks.SOLVER, tasks.IMAGES], ids=lambda task: task.network)
def test_both_loops_compute_the_same(few_examples, task):
    losses = [loss_of(loop(1, **task._asdict())) for loop in (steps_here.in_graph, steps_here.document)]
    assert losses[0] == pytest.approx(
        losses[1], rel=1e-5
    )  # the document's graph does not know the batch: other kernels


@pytest.mark.parametrize("task", [tasks.R2RT, tasks.SOLVER], ids=lambda task: task.network)
def test_of_a_pair_the_first_network_has_batch_norm_and_is_the_one_that_is_checked(few_examples, task):
    pair = task._replace(forms=tasks.FORMS)
    alone, first_of_two = (loss_of(steps_here.in_graph(1, **each._asdict())) for each in (task, pair))
    assert first_of_two == pytest.approx(alone, rel=1e-6)
    without = task._replace(forms=("without",))
    assert loss_of(steps_here.in_graph(1, **without._asdict())) != pytest.approx(alone, rel=0.001)


@pytest.mark.parametrize("task", [tasks.R2RT, tasks.SOLVER, tasks.IMAGES], ids=lambda task: task.network)
@pytest.mark.parametrize("peer", ["jax", "torch"])
def test_a_peer_computes_what_the_loops_do(few_examples, peer, task):
    pytest.importorskip(peer)
    from experiments.benchmarks import steps_jax, steps_torch

    made = {"jax": steps_jax.scan, "torch": steps_torch.eager}[peer](1, **task._asdict())
    ours = steps_here.in_graph(1, **task._asdict())
    assert loss_of(made) == pytest.approx(loss_of(ours), rel=bench.MOST_DISAGREEMENT)


def test_jax_step_by_step_computes_what_its_scan_does(few_examples):
    pytest.importorskip("jax")
    from experiments.benchmarks import steps_jax

    losses = [loss_of(loop(1, **tasks.IMAGES._asdict())) for loop in (steps_jax.scan, steps_jax.stepwise)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # XLA has other convolutions in a loop, and Adam enlarges


def test_several_networks_of_one_process_are_trained_each_for_itself(few_examples):
    narrow = tasks.R2RT._replace(hidden=(5, 5))
    both = steps_here.in_graph_of_several(1, networks=[tasks.R2RT._asdict(), narrow._asdict()])
    both["run"]({"network": 0, "count": 2})
    both["run"]({"network": 1, "count": 3})


def test_the_tutorials_next_batch_gives_the_librarys_batches_over_several_epochs(few_examples):
    split = tasks.data()
    task = tasks.R2RT
    steps = 2 * (EXAMPLES // task.batch) + 3
    rows = tasks.rows(task, steps, EXAMPLES)
    for (images, labels), chosen in zip(steps_here.next_batches(split, task.batch), rows, strict=False):
        np.testing.assert_array_equal(images, split.images[chosen])
        np.testing.assert_array_equal(labels, split.labels[chosen])


@pytest.mark.parametrize("extent", [bench.FULL, bench.QUICK], ids=["full", "quick"])
@pytest.mark.parametrize("task", [tasks.R2RT, tasks.SOLVER, tasks.IMAGES], ids=lambda task: task.network)
def test_a_turn_is_one_epoch_with_batches_enough_for_the_check(extent, task):
    most = extent.image_steps if task is tasks.IMAGES else extent.steps
    of_turn, steps = measuring.of_an_epoch(task, extent, most)
    assert of_turn.examples // task.batch == steps
    assert of_turn.examples <= extent.examples
    assert tasks.CHECK_STEPS <= steps <= most


def test_recalibration_beside_forward_passes_and_pytorch(few_examples):
    made = [recalibration.ours(1, "solver", 500, EXAMPLES)]
    assert all(made[0]["pass"](way)["seconds"] > 0 for way in measuring.RECALIBRATIONS["ours"])
    assert made[0]["start"]("paper")["seconds"] > 0
    ours = made[0]["mean"](None)["mean"]
    batches = tasks.data().images @ tasks.initial_weights(tasks.SOLVER)[0]
    np.testing.assert_allclose(ours, batches.mean(0), atol=1e-5)
    for peer in ("torch", "fvcore"):
        pytest.importorskip(peer)
        theirs = getattr(recalibration, peer)(1, "solver", 500, EXAMPLES)
        theirs["pass"](measuring.RECALIBRATIONS[peer][-1])
        np.testing.assert_allclose(theirs["mean"](None)["mean"], ours, atol=bench.MOST_APART)


def test_the_products_are_those_of_a_step_and_its_gradients():
    # Of layers i: forward, and back to the matrix; back to the inputs too, but for the images, which nobody trains.
    sizes = tasks.R2RT.sizes
    layers = len(sizes) - 1
    products = tasks.products(tasks.R2RT)
    assert len(products) == 3 * layers - 1
    multiplications = sum(left.shape[0] * left.shape[1] * right.shape[1] for left, right in products)
    forward = tasks.R2RT.batch * sum(rows * columns for rows, columns in itertools.pairwise(sizes))
    assert multiplications == 3 * forward - tasks.R2RT.batch * sizes[0] * sizes[1]


# --- Parent and child -------------------------------------------------------------------------------------------------


CONTENDERS = """
def counting(threads, **arguments):
    asked = []
    told = {"threads": threads, "arguments": arguments, "asked": asked}
    return {"run": asked.append, "check": lambda _: {"loss": len(asked)}, "told": lambda _: told}

def broken(threads):
    raise RuntimeError("first line\\nlast line: the reason")

def without_package(threads):
    raise ModuleNotFoundError("No module named 'torch'", name="torch")

def without_compiler(threads):
    from experiments.benchmarks.child import CannotRun
    raise CannotRun("there is no compiler")
"""


@pytest.fixture
def contender(tmp_path, monkeypatch):
    """Makes contenders of the functions above, which a child can import and which need no TensorFlow."""
    (tmp_path / "contenders_of_test.py").write_text(CONTENDERS)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, **arguments: workers.Contender(name, f"contenders_of_test:{name}", arguments)


def test_each_is_asked_once_more_than_rounds_count_knows_its_threads_and_what_is_missing_is_a_note(contender):
    there = [contender("counting", place=place) for place in (1, 2)]
    missing = [contender("without_package"), contender("without_compiler")]
    with measuring._started([*there, *missing], 3) as (present, notes):
        medians = workers.alternate(present, [{"run": 5}, {"run": 6}], 2)
        told = [workers.ask(worker, {"told": None}) for worker in present]
    assert notes == ["without_package: torch is not installed", "without_compiler: there is no compiler"]
    assert len(medians) == 2 and all(seconds >= 0 for seconds in medians)
    assert told == [
        {"threads": 3, "arguments": {"place": 1}, "asked": [5] * 3},
        {"threads": 3, "arguments": {"place": 2}, "asked": [6] * 3},
    ]
    assert all(worker.process.end() == 0 for worker in present)  # nobody is left behind


def test_a_failure_is_one_line_with_its_reason(contender):
    with pytest.raises(UsageError) as raised, measuring._started([contender("broken")], 1):
        pass
    assert str(raised.value) == "broken failed: last line: the reason"


def test_of_the_projects_own_modules_none_may_be_missing():
    assert not any(name.startswith(("bn_graph", "experiments")) for name in child.PEERS)


def test_of_two_numbers_of_threads_the_faster_is_kept(contender):
    with measuring._tried([contender("counting")], 2) as (present, _):
        (kept,) = present
        assert kept.threads in (1, 2)
        assert workers.ask(kept, {"told": None})["asked"][0] == 100  # it is the very process that was tried,
        assert workers.ask(kept, {"check": None}) == {"loss": 0}  # and what was checked is its first steps


def test_peak_memory_goes_up_by_what_is_held():
    # In a small process: in a large one it must be more than there was in all, whatever of that has been freed.
    code = "import runpy, sys; peak = runpy.run_path(sys.argv[1])['peak_megabytes']; before = peak(); "
    code += "held = b'.' * (100 << 20); print(peak() - before)"
    ended = subprocess.run([sys.executable, "-c", code, child.__file__], capture_output=True, text=True, check=True)
    assert 50 < float(ended.stdout) < 110  # some of the 100 may have been there before


# --- Checks, tables and files -----------------------------------------------------------------------------------------

SHAPES = ([60, 100], [32, 8, 8, 512])


def contenders(network: str, value: dict) -> dict[str, dict]:
    microseconds = {IN_GRAPH: 100, DOCUMENT: 250, "products by NumPy": 80, COMPILED: 100, f"{DOCUMENT}, pair": 1000}
    microseconds[f"{IN_GRAPH}, pair"] = 1000 / (bench.LEAST_PAIR[network] * value["pair"])
    microseconds[f"{COMPILED}, pair"] = 1000 / (bench.LEAST_PAIR_COMPILED[network] * value["compiled"])
    for peer in bench.FASTER_THAN:
        # The way it comes is slow; what counts is the faster one.
        microseconds |= {peer: 900, f"{peer}, 50 steps an execution": 100 * value["peer"]}
    if value["jax"]:
        microseconds["JAX, scan"] = 100 / value["jax"]
    return timed(microseconds, value)


def contenders_of_images(value: dict) -> dict[str, dict]:
    microseconds = {IN_GRAPH: 100, DOCUMENT: 120, COMPILED: 900, "convolutions by TensorFlow": 50}
    if value["jax"]:
        microseconds |= {"JAX, scan": 100 / value["images"], "JAX, jit of one step": 90}
    return timed(microseconds, value)


def timed(microseconds: dict[str, float], value: dict) -> dict[str, dict]:
    losses = {"PyTorch": value["loss"], "products by NumPy": None, "convolutions by TensorFlow": None}
    return {
        name: {"microseconds": each, "threads": 1, "loss": losses.get(name, 2.0)} for name, each in microseconds.items()
    }


def audited(nodes: int, seconds: float) -> dict:
    cost = {"seconds": seconds, "megabytes": 100, "nodes_per_second": round(nodes / seconds)}
    return {"nodes": nodes, "audit": cost}


def made_result(**changed) -> dict:
    """A result in which everything is shown, a little better than the bounds, but for what is `changed`."""
    value = {
        "pair": 1.01,  # to the network's own bound, and so is the compiled one's
        "compiled": 1.01,
        "peer": 1.01,
        "jax": bench.MOST_OF_JAX * 0.99,
        "images": bench.MOST_OF_JAX_IMAGES * 0.99,
        "paper": bench.LEAST_OF_FORWARD * 1.01,
        "pooled": bench.MOST_PASSES * 0.99,
        "apart": bench.MOST_APART * 0.99,
        "torch": True,
        "gain": several_workers.LEAST_GAIN * 1.01,
        "seconds": 0.99,  # of the audit, to its bound
        "loss": 2.0 * (1 + 0.99 * bench.MOST_DISAGREEMENT),
        "whole": bench.LEAST_WHOLE_RATIO * 1.01,
        "memory": bench.MOST_MEMORY * 0.99,
        "wrapper": bench.MOST_OF_TF_LAYERS * 0.99,
    } | changed
    steps = {network: {"contenders": contenders(network, value), "notes": []} for network in ("r2rt", "solver")}
    steps["solver"]["notes"] = ["PyTorch: a note"]
    steps["images"] = {"contenders": contenders_of_images(value), "notes": []}
    times = {f"{form}, {mode}": 50.0 for form in ("tf.layers not fused", "PyTorch") for mode in MODES} | {"copy": 10.0}
    layers = [
        {"shape": shape, "megabytes": 1.0, "notes": [], "microseconds": times | wrapper}
        for shape, wrapper in zip(
            SHAPES,
            (
                {f"wrapper, {mode}": 40.0 for mode in MODES},
                {f"wrapper, {mode}": 50 * value["wrapper"] for mode in MODES},
            ),
            strict=True,
        )
    ]
    both = {DOCUMENT: 200.0, IN_GRAPH: 100.0}
    result = {
        "threads": 2,
        "rounds": 5,
        "seconds": 60,
        "mode": "quick",
        "load": 0.5,
        "date": "2026-11-21",
        "steps": steps,
        "whole": {
            "steps": 2000,
            "seconds": {DOCUMENT: 10 * value["whole"], IN_GRAPH: 10.0},
            "megabytes": {DOCUMENT: 100, IN_GRAPH: 100 * value["memory"]},
            "evaluations": {DOCUMENT: 40, IN_GRAPH: 40},
        },
        "layers": [*layers, {"shape": [9, 9], "megabytes": 9.0, "notes": ["left out: no memory"], "microseconds": {}}],
        "scaling": {
            "batch": [{"batch": 60} | both],
            "width": [{"width": 100} | both],
            "audit": [audited(10_000, 0.1), audited(100_200, 3.0 * value["seconds"]), audited(1_000_300, 7.9)],
        },
        "workers": {
            "batch": 64,
            "milliseconds": {ONE: 50.0, APART: 52.0, WITHOUT_SYNC: 52.0, WITH_SYNC: 100.0 / value["gain"]},
            "exchanges": [
                {"floats": floats, "milliseconds": 0.4 + floats * 1e-6}
                for channels in several_workers.CHANNELS
                for floats in several_workers.floats_of_layer(channels)
            ],
        },
        "recalibration": {network: made_recalibration(**value) for network in ("solver", "ResNet-50")},
    }
    return result | {"checks": [check._asdict() for check in bench.checks(result)]}


def made_recalibration(paper, pooled, apart, torch, **_) -> dict:
    seconds = {"inference": 2.0, "training": 3.0, "paper": 3.0 / paper, "pooled": 2.0 * pooled}
    return {
        "examples": 100,
        "batch": 10,
        "seconds": seconds | ({"swa_utils.update_bn": 3.0} if torch else {}),
        "start": {"paper": 0.5, "pooled": 0.7},
        "means_apart": apart,
        "notes": ["fvcore: a note"],
    }


MODES = ("inference", "training")


def kept(result: dict) -> dict[str, bool | None]:
    return {check["what"]: check["kept"] for check in result["checks"]}


def test_all_bounds_are_kept_by_a_result_a_little_better_than_they_are():
    assert set(kept(made_result()).values()) == {True}


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"pair": 0.99}, 2),  # of both networks
        ({"compiled": 0.99}, 2),
        ({"peer": 0.99}, 2 * len(bench.FASTER_THAN)),
        ({"jax": bench.MOST_OF_JAX * 1.01}, 4),
        ({"images": bench.MOST_OF_JAX_IMAGES * 1.01}, 1),
        ({"gain": several_workers.LEAST_GAIN * 0.99}, 1),
        ({"seconds": 1.01}, 1),
        ({"loss": 2.0 * (1 + 1.01 * bench.MOST_DISAGREEMENT)}, 2),
        ({"whole": bench.LEAST_WHOLE_RATIO * 0.99}, 1),
        ({"memory": bench.MOST_MEMORY * 1.01}, 1),
        ({"wrapper": bench.MOST_OF_TF_LAYERS * 1.01}, 2),  # inference and training
        ({"paper": bench.LEAST_OF_FORWARD * 0.99}, 2),  # of both networks, and so
        ({"pooled": bench.MOST_PASSES * 1.01}, 2),
        ({"apart": bench.MOST_APART * 1.01}, 2),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_result_a_little_worse_than_a_bound_fails_it_and_no_other(changed, number):
    verdicts = list(kept(made_result(**changed)).values())
    assert verdicts.count(False) == number
    assert verdicts.count(True) == len(verdicts) - number


def test_what_is_not_installed_is_neither_kept_nor_failed():
    verdicts = list(kept(made_result(jax=None)).values())
    assert verdicts.count(None) == 5 and False not in verdicts
    assert list(kept(made_result(torch=False)).values()).count(None) == 2
    assert "not measured" in presentation.summarize(made_result(jax=None))


def test_an_audit_of_a_million_nodes_is_not_measured_where_no_graph_has_them():
    checks = {check.what: check for check in bench._checks_of_audit([audited(100_200, 2.9)])}
    assert [check.kept for check in checks.values()] == [True, None]


def test_of_exchanges_the_model_is_the_measurement_for_two_workers_and_turns_round_a_ring_for_more():
    exchanges = made_result()["workers"]["exchanges"]
    for channels in several_workers.CHANNELS:
        expected = 2 * 0.4 + (3 * channels + 2 + 2 * channels) * 1e-6
        assert several_workers.exchanged(exchanges, channels) == pytest.approx(expected)
        assert several_workers.modelled(exchanges, channels, 2) == pytest.approx(expected)
        assert several_workers.modelled(exchanges, channels, 16) == pytest.approx(15 * expected)


def test_the_wrappers_worst_shape_is_named():
    (check,) = [
        each for each in made_result()["checks"] if "the wrapper" in each["what"] and "training" in each["what"]
    ]
    assert check["measured"] == "1.04 (32×8×8×512, the worst)"  # 1.05·0.99; at the other shape it is 40/50


def test_the_command_writes_a_result_figures_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run", lambda extent, threads: made_result(pair=0.5) | {"threads": threads})
    assert bench.main(["--quick", "--threads", "1", "--output", str(tmp_path)]) == 0
    folder = tmp_path / bench.NAME
    result = json.loads((folder / "result.json").read_text())
    assert (result["mode"], result["threads"]) == ("quick", 1)
    assert all((folder / name).stat().st_size > 10_000 for name in ("steps.png", "growth.png", "layers.png"))
    said = capsys.readouterr().out
    half = "NO           r2rt pair: the document's loop to ours, bit for bit: 2.00, where the products alone"
    assert half in said
    assert "left out: no memory" in said and "PyTorch: a note" in said


def test_readme_shows_the_committed_result():
    text = presentation.README.read_text()
    if not presentation.COMMITTED.exists():
        pytest.skip("no result is committed yet: make bench README=1")
    result = json.loads((presentation.COMMITTED / "result.json").read_text())
    assert presentation.with_tables(text, presentation.readme_tables(result)) == text
    assert all((presentation.COMMITTED / name).exists() and name in text for name in presentation.FIGURES)
