"""Small batches: what is drawn, how a batch of one is trained, resuming, and verdicts and advice that follow the numbers."""

import copy
import json

import numpy as np
import pytest

import bn_graph
from bn_graph.tf1 import tf
from experiments import small_batches as experiment
from experiments.machinery import harness, remedies
from experiments.machinery.remedies import Scorer, Trainer, Training, batch_rows
from experiments.small_batches import (
    BATCH_NORM,
    GHOSTS,
    LARGEST,
    MIXED,
    NONE,
    RECALIBRATED,
    REMEDIES,
    RENORM,
    TWO_CLASSES,
)

STEPS = 10

PAGE = experiment


@pytest.fixture(scope="module")
def digits():
    return bn_graph.load("digits")


@pytest.fixture(scope="module")
def settings(digits):
    return harness.Settings("small_batches", "quick", digits, None, [0], STEPS, None)


# --- What is drawn ----------------------------------------------------------------------------------------------------


def test_mixed_batches_of_every_size_hold_the_same_examples_in_the_same_order(digits):
    labels = digits.train.labels
    ones, eights = (batch_rows(labels, size, 64 // size, 3, MIXED) for size in (1, 8))
    assert ones.shape == (64, 1) and eights.shape == (8, 8)
    assert ones.ravel().tolist() == eights.ravel().tolist()
    assert len(set(ones.ravel().tolist())) == 64


def test_a_batch_of_two_classes_alternates_them_and_all_classes_come(digits):
    classes = digits.train.labels.argmax(1)[batch_rows(digits.train.labels, 8, 200, 3, TWO_CLASSES)]
    assert all(len({*batch[0::2]}) == len({*batch[1::2]}) == 1 and batch[0] != batch[1] for batch in classes.tolist())
    assert set(classes.ravel().tolist()) == set(range(10))


def test_examples_of_two_classes_are_drawn_from_all_of_their_class(digits):
    rows = batch_rows(digits.train.labels, LARGEST, 400, 0, TWO_CLASSES)
    # 25,600 draws of 1,300 examples, some 20 each: e⁻²⁰ of being left out
    assert len(np.unique(rows)) == digits.train.size


def test_a_batch_of_one_is_the_same_either_way(digits):
    mixed, two = (batch_rows(digits.train.labels, 1, 50, 0, sampling) for sampling in experiment.SAMPLINGS)
    assert mixed.tolist() == two.tolist()


@pytest.mark.parametrize(
    ("step", "rmax", "dmax"),
    [(0, 1, 0), (5_000, 1, 0), (15_000, 1 + 2 * 10 / 35, 5 * 10 / 20), (25_000, 1 + 2 * 20 / 35, 5), (40_000, 3, 5)],
)
def test_renorm_is_clipped_as_the_papers_schedule_of_130_000_steps_says(step, rmax, dmax):
    with tf.Graph().as_default(), tf.Session() as session:
        clipping = session.run(remedies.clipping_at(tf.constant(step / 130_000)))
    # float32
    assert clipping == pytest.approx({"rmin": 1 / rmax, "rmax": rmax, "dmax": dmax}, rel=1e-5, abs=1e-6)


def test_ghosts_are_smaller_than_their_batch_and_more_than_one():
    sizes = [training.size for training in remedies.trainings((1, 2, 32, LARGEST)) if training.form == GHOSTS]
    assert sizes == [2, 32]
    assert Training(GHOSTS, 2).batch == LARGEST and Training(RENORM, 2).batch == 2


# --- Training and scoring ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [BATCH_NORM, RENORM])
def test_the_layer_that_trains_on_one_example_is_the_librarys_layer(digits, settings, form):
    """Both are given batches of 32: `tf.layers`, which stands in for the wrapper at one, must do the same."""
    rows = batch_rows(digits.train.labels, 32, STEPS, 0, MIXED)
    trained = []
    for size in (1, 32):
        trainer = Trainer(settings, Training(form, size), STEPS)
        trainer.start(0.003, seed=0)
        bn_graph.graph_loop(trainer.session, trainer.step, digits.train, batch_size=32, seed=0)(0, STEPS, rows)
        trained.append(trainer.session.run(trainer.variables))
        trainer.session.close()
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        np.testing.assert_allclose(
            value, trained[1][name], rtol=1e-3, atol=1e-4, err_msg=name
        )  # float32, over the steps


@pytest.mark.parametrize("form", [BATCH_NORM, RENORM])
def test_of_one_example_no_gradient_passes_the_layer(digits, settings, form):
    trainer = Trainer(settings, Training(form, 1), 100)
    values = trainer.train(MIXED, 0.03, seed=0)
    trainer.session.close()
    start = remedies.initial_weights(digits, 0)
    assert [bool((values[f"w{number}"] != start[number - 1]).any()) for number in (1, 2, 3)] == [False, False, True]
    # Renorm's outputs are gamma·d + beta, and d tells images apart; of batch norm's, beta is all that is left. What
    # lies below the upper layer learns from neither.
    assert [bool((values[f"bn{number}/gamma"] != 1).any()) for number in (1, 2)] == [False, form == RENORM]
    assert all(np.isfinite(value).all() for value in values.values())


def test_batch_norm_of_one_example_gives_every_image_the_same_answer(result, digits):
    labels = digits.test.labels.argmax(1)
    shares = [float((labels == digit).mean()) for digit in range(10)]
    found = experiment.values(result, MIXED, BATCH_NORM, 1, "as in training")[0]
    assert min(abs(found - share) for share in shares) < 1e-4  # five digits in the result


@pytest.mark.parametrize("size", [1, 2, 20])
def test_test_batches_are_normalized_by_their_own_statistics(digits, size):
    """Against the network written out, of the first layer's gamma and beta alone (the second's are 1 and 0)."""
    weights = remedies.initial_weights(digits, 0)
    generator = np.random.default_rng(0)
    gamma, beta = generator.uniform(0.5, 2, 100), generator.normal(size=100)
    values = {f"w{number}": weight for number, weight in enumerate(weights, start=1)} | {"b3": np.zeros(10)}
    values |= {"bn1/gamma": gamma, "bn1/beta": beta, "bn2/gamma": np.ones(100), "bn2/beta": np.zeros(100)}
    layer = digits.test.images[batch_rows(digits.test.labels, size, 360 // size, 0, MIXED)].astype(float)
    for number, (scale, shift) in enumerate([(gamma, beta), (1, 0)]):
        z = layer @ weights[number]
        z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + remedies.EPSILON)
        layer = 1 / (1 + np.exp(-(scale * z + shift)))
    rows = batch_rows(digits.test.labels, size, 360 // size, 0, MIXED)
    expected = np.mean((layer @ weights[2]).argmax(-1) == digits.test.labels[rows].argmax(-1))

    scorer = Scorer(digits, Training(BATCH_NORM, size))
    with scorer.session, scorer.grouped_session:
        found = scorer.as_in_training(values, MIXED)
    assert found == pytest.approx(expected, abs=1.5 / 360)  # one image may lie on the boundary


@pytest.fixture(scope="module")
def scored(digits, settings):
    """A scorer, and the values and scores of a short training of batch norm in batches of two."""
    trainer = Trainer(settings, Training(BATCH_NORM, 2), 50)
    values = trainer.train(MIXED, 0.03, seed=0)
    trainer.session.close()
    scorer = Scorer(digits, Training(BATCH_NORM, 2))
    with scorer.session, scorer.grouped_session:
        yield scorer, values, scorer.test(values, MIXED)


def variable(scorer: Scorer, name: str) -> np.ndarray:
    (found,) = [each for each in scorer.session.graph.get_collection("variables") if each.op.name == name]
    return scorer.session.run(found)


def test_recalibrated_are_the_statistics_of_training_images_for_the_same_weights(scored, digits):
    scorer, values, scores = scored
    scorer.score(values, digits.test)
    found = {name: variable(scorer, name) for name in ("bn1/moving_mean", "bn1/moving_variance", "w1")}
    z = digits.train.images[: remedies.PASS_IMAGES].astype(float) @ values["w1"]
    np.testing.assert_array_equal(found["w1"], values["w1"])
    np.testing.assert_allclose(found["bn1/moving_mean"], z.mean(0), atol=1e-5)  # float32
    np.testing.assert_allclose(found["bn1/moving_variance"], z.var(0, ddof=1), rtol=1e-4)
    assert scores.keys() == {"moving", "recalibrated", "unbiased", "as in training"}


@pytest.mark.parametrize(("size", "factor"), [(1, 1), (2, 2), (4, 4 / 3)])
def test_the_unbiased_variance_is_the_moving_one_times_m_by_m_less_1(scored, digits, size, factor):
    _, values, _ = scored
    scorer = Scorer(digits, Training(BATCH_NORM, size))
    with scorer.session, scorer.grouped_session:
        remedies.load(scorer.session, values)
        scorer.unbiased(values)
        found = variable(scorer, "bn2/moving_variance")
    np.testing.assert_allclose(found, values["bn2/moving_variance"] * factor, rtol=1e-6)


def test_other_forms_are_scored_by_their_moving_statistics_alone(scored, digits):
    _, values, scores = scored
    scorer = Scorer(digits, Training(RENORM, 2))
    with scorer.session, scorer.grouped_session:
        found = scorer.test(values, MIXED)
    assert found == {"moving": scores["moving"]}


def test_the_rate_falls_to_0_in_a_straight_line(digits, settings):
    trainer = Trainer(settings, Training(NONE, 1), 4)
    trainer.start(0.08, seed=0)
    ((rates,),) = bn_graph.graph_loop(trainer.session, trainer.step, digits.train, batch_size=1, seed=0)(0, 4)
    trainer.session.close()
    assert rates == pytest.approx([0.08, 0.06, 0.04, 0.02])


def test_every_remedy_has_the_lowest_rate_that_is_level_with_the_best(result, digits):
    assert {cell["remedy"] for cell in result["cells"]} == set(REMEDIES)
    for cell in result["cells"]:
        assert cell["rate"] == experiment.chosen_rate(result["rates"], cell["tuning"], digits.validation.size)
        assert len(cell["accuracy"]) == len(result["seeds"])


@pytest.mark.parametrize(
    ("tuning", "expected"),
    [([0.90, 0.94, 0.95], 0.3), ([0.90, 0.948, 0.95], 0.1), ([0.949, 0.90, 0.95], 0.03), ([0.95, 0.9, 0.1], 0.03)],
)
def test_one_standard_error_decides_between_rates(tuning, expected):
    # of 5,000 images at 0.95: √(0.95·0.05/5000) = 0.0031
    assert experiment.chosen_rate((0.03, 0.1, 0.3), tuning, 5000) == expected


def test_every_size_sees_as_many_examples():
    for training in remedies.trainings(experiment.FULL.own["sizes"]):
        assert STEPS * LARGEST % training.batch == 0


def test_a_second_run_takes_finished_trainings_from_the_first(finished, monkeypatch):
    result, folder, _ = finished
    monkeypatch.setattr(Trainer, "train", lambda *_: pytest.fail("trained again"))
    assert harness.main(experiment, ["--steps", str(STEPS), "--output", str(folder.parent)]) == 0
    assert json.loads((folder / "result.json").read_text())["cells"] == result["cells"]


def test_a_run_that_was_stopped_ends_with_the_same_numbers(finished):
    result, folder, _ = finished
    kept = {path: path.read_text() for path in folder.glob("checkpoints/*/renorm-*/measured.json")}
    assert len(kept) == 4
    for record in list(kept)[1:]:
        record.unlink()  # as if stopped before them
    assert harness.main(experiment, ["--steps", str(STEPS), "--output", str(folder.parent)]) == 0
    assert json.loads((folder / "result.json").read_text())["cells"] == result["cells"]
    assert {path: path.read_text() for path in kept} == kept


# --- The judges and the advice ----------------------------------------------------------------------------------------


def as_if(result: dict, accuracy: float = 0.9, **changes: dict) -> dict:
    """As if everything had one accuracy, but for `changes` to (sampling, remedy, size, what)."""
    other = copy.deepcopy(result)
    for cell in other["cells"]:
        for what in ("accuracy", "same weights", "unbiased", "as in training"):
            if what in cell:
                cell[what] = [accuracy] * len(cell[what])
    for (sampling, remedy, size, what), value in changes.get("to", {}).items():
        for cell in other["cells"]:
            if (cell["sampling"], cell["remedy"]) == (sampling, remedy) and size in (cell["size"], None):
                cell[what] = [value] * len(cell["accuracy"])
    return other


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "does not hold"),
        ({(MIXED, RENORM, 4, "accuracy"): 0.95}, "holds"),
        ({(MIXED, RENORM, 64, "accuracy"): 0.95}, "does not hold"),
        ({(MIXED, RENORM, 4, "accuracy"): 0.85}, "does not hold"),
    ],
)
def test_renorm_01_follows_the_small_batches(result, changes, expected, verdict):
    assert verdict(as_if(result, to=changes), "renorm-01") == expected


@pytest.mark.parametrize(
    ("batch_norm", "renorm", "expected"),
    [
        (0.9, 0.9, "does not hold"),  # two classes hurt nobody
        (0.6, 0.6, "does not hold"),
        (0.6, 0.9, "holds"),
        (0.6, 0.75, "holds"),  # half of it
        (0.6, 0.74, "does not hold"),
    ],
)
def test_renorm_02_follows_what_two_classes_cost(result, batch_norm, renorm, expected, verdict):
    changes = {
        (TWO_CLASSES, BATCH_NORM, None, "accuracy"): batch_norm,
        (TWO_CLASSES, RENORM, None, "accuracy"): renorm,
    }
    assert verdict(as_if(result, to=changes), "renorm-02") == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "does not hold"),
        (
            {(sampling, BATCH_NORM, None, "same weights"): 0.95 for sampling in experiment.SAMPLINGS},
            "holds",
        ),
        ({(MIXED, BATCH_NORM, 4, "same weights"): 0.95}, "does not hold"),
        ({(MIXED, RECALIBRATED, None, "accuracy"): 0.95}, "does not hold"),  # at a rate of its own: other weights
    ],
)
def test_precise_01_compares_statistics_of_the_same_weights(result, changes, expected, verdict):
    assert verdict(as_if(result, to=changes), "precise-01") == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "does not hold"),
        ({4: 0.5, 16: 0.8, 64: 0.9}, "holds"),
        ({4: 1.0, 16: 0.95, 64: 0.9}, "holds"),  # apart, whichever is better
        ({4: 0.8, 16: 0.5, 64: 0.9}, "holds, with a trap: not from each size to the next"),
        ({4: 0.9, 16: 0.9, 64: 0.5}, "does not hold"),
    ],
)
def test_precise_02_follows_how_far_apart_the_statistics_predict(result, own, expected, verdict):
    changes = {(MIXED, BATCH_NORM, size, "as in training"): value for size, value in own.items()}
    assert verdict(as_if(result, to=changes), "precise-02") == expected


def test_the_advice_changes_with_the_measurements(result):
    level = experiment.advice(as_if(result))
    assert "Mixed batches: at every size plain batch norm needs no remedy (0.900 at 64)." in level
    assert "Ghosts cut from mixed batches of 64 (0.900 whole) cost nothing and gain nothing that is seen." in level

    changes = {(MIXED, NONE, 1, "accuracy"): 0.95, (MIXED, NONE, 4, "accuracy"): 0.95}
    changes |= {(TWO_CLASSES, RENORM, None, "accuracy"): 0.96, (MIXED, GHOSTS, 4, "accuracy"): 0.8}
    text = experiment.advice(as_if(result, to=changes))
    assert (
        "Batches of one: leave normalization out (0.950; batch norm 0.900, recalibrated 0.900, renorm 0.900)." in text
    )
    assert "Mixed batches: from 16 examples on plain batch norm needs no remedy" in text
    assert "at 4 leave normalization out (0.900 → 0.950)" in text
    assert "Batches of two classes: even at 64 a remedy is better than plain batch norm (0.900 at 64)." in text
    assert "at 16 take renorm (0.900 → 0.960); at 64 take renorm (0.900 → 0.960)" in text
    assert "cost up to 0.100, at 4." in text


def test_where_no_normalization_is_best_the_best_with_normalization_is_named_too(result):
    changes = {(MIXED, NONE, 4, "accuracy"): 0.95, (MIXED, RENORM, 4, "accuracy"): 0.93}
    text = experiment.advice(as_if(result, to=changes))
    assert "For a network that does not train without normalization: at 4 take renorm (0.900 → 0.930)." in text
    assert text.count("take renorm") == 1
    del changes[MIXED, RENORM, 4, "accuracy"]
    assert "For a network" not in experiment.advice(as_if(result, to=changes))


def test_what_is_too_small_to_be_seen_is_no_advice(result):
    changes = {(MIXED, NONE, 4, "accuracy"): 0.9 + 0.9 * experiment.not_seen(result)}
    assert "at every size plain batch norm needs no remedy" in experiment.advice(as_if(result, to=changes))


def test_what_one_seed_denies_is_no_advice_and_no_verdict(result, verdict):
    other = as_if(result)
    for cell in other["cells"]:
        cell["accuracy"] = [0.9] * 3
        if (cell["remedy"], cell["sampling"], cell["size"]) == (RENORM, MIXED, 4):
            cell["accuracy"] = [0.95, 0.95, 0.89]
    assert "Mixed batches: at every size plain batch norm needs no remedy" in experiment.advice(other)
    assert verdict(other, "renorm-01") == "does not hold"


def test_a_remedy_that_another_is_better_than_is_not_named(result):
    changes = {(MIXED, NONE, 4, "accuracy"): 0.95, (MIXED, RENORM, 4, "accuracy"): 0.93}
    assert "at 4 leave normalization out (0.900 → 0.950)" in experiment.advice(as_if(result, to=changes))
    changes[MIXED, RENORM, 4, "accuracy"] = 0.949
    assert "at 4 leave normalization out or take renorm" in experiment.advice(as_if(result, to=changes))
