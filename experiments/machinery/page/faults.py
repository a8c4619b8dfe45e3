"""The faults that cost accuracy: the documents' wrong forms beside the right ones, and what each costs."""

import difflib
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import (
    checkpoint_variables,
    conditional_updates,
    conv_normalizer,
    evaluation_batch_size,
    missing_update_ops,
    population_estimators,
    single_example,
)
from experiments.machinery import r2rt

__all__ = ["FAULTS", "Fault", "by_cost", "marked_lines"]


class Fault(NamedTuple):
    """A fault that one of the documents has or warns of.

    Attributes:
        title: what is wrong, in a line.
        text: what happens, and why nobody notices.
        experiment: that measures it; its figures are the fault's picture.
        wrong, right: the experiment's own functions.
        rule: the audit's; None of a fault that no graph shows.
        claims: that are judged on it, the one that says it first.
        accuracies: from the result to the accuracies of the wrong form and of the right one, one for each seed.
    """

    title: str
    text: str
    experiment: str
    wrong: Callable
    right: Callable
    rule: str | None
    claims: Sequence[str]
    accuracies: Callable[[dict], tuple[Sequence[float], Sequence[float]]]

    def cost(self, result: dict) -> tuple[float, float]:
        """The median accuracy of the wrong form and that of the right one; NaN where none was measured."""
        wrong, right = (float(np.median(each)) if each else np.nan for each in self.accuracies(result))
        return wrong, right


def _alone(result: dict) -> tuple[Sequence[float], Sequence[float]]:
    return tuple([run[f"accuracy_{when}"] for run in result["runs"]] for when in ("before", "after"))


def _restored(result: dict) -> tuple[Sequence[float], Sequence[float]]:
    wrong, right = (
        checkpoint_variables.outcomes_of(result, way, saver)
        for way, saver in (
            ("trainables, initialized", checkpoint_variables.TRAINABLES),
            ("all variables", checkpoint_variables.EVERYTHING),
        )
    )
    return [each["accuracy"] for each in wrong], [each["accuracy"] for each in right]


def _in_inference_mode(result: dict) -> tuple[Sequence[float], Sequence[float]]:
    return tuple(missing_update_ops.accuracies(result, form, "training_false") for form in ("without", "with"))


def _averaged(result: dict) -> tuple[Sequence[float], Sequence[float]]:
    forms = (conv_normalizer.SUGGESTED, conv_normalizer.LIBRARY)
    return tuple([run[form]["accuracy"] for run in result["trained"]] for form in forms)


def _sorted_by_class(result: dict) -> tuple[Sequence[float], Sequence[float]]:
    place = result["sizes"].index(evaluation_batch_size.MIDDLE_SIZE)
    wrong = [run["phase_true"]["sorted"]["accuracy"][place] for run in result["runs"]]
    return wrong, [run["phase_false"][evaluation_batch_size.ACCURACY] for run in result["runs"]]


def _early(result: dict) -> tuple[Sequence[float], Sequence[float]]:
    names = population_estimators.exponential(population_estimators.DECAY), population_estimators.PASS
    return tuple(population_estimators.scores(result, name, "accuracy", population_estimators.EARLY) for name in names)


def _in_service(result: dict) -> tuple[Sequence[float], Sequence[float]]:
    """After the last request, where each asks for one image."""
    scores = (
        conditional_updates.served(result, form, 1, conditional_updates.MIXED) for form in conditional_updates.SERVED
    )
    return tuple(each[:, -1].tolist() for each in scores)


FAULTS = (
    Fault(
        "Prediction normalizes by the batch that it is given",
        "One image alone is its own mean: every normalized input is 0, and the network answers the same whatever it is "
        "shown. Tests in large mixed batches look well.",
        "single_example",
        single_example.batch_statistics_always,
        r2rt.documents_wrapper,
        "BN004",
        ("r2rt-12", "r2rt-13", "r2rt-14", "r2rt-20"),
        _alone,
    ),
    Fault(
        "A test runs with phase True",
        f"Each test batch is normalized by its own statistics. Mixed, it looks well; sorted by class, as folders of images "
        f"are and as requests may come, a batch of {evaluation_batch_size.MIDDLE_SIZE} holds one or two classes, and what "
        "they have in common is subtracted.",
        "evaluation_batch_size",
        evaluation_batch_size.with_phase_true,
        evaluation_batch_size.with_phase_false,
        "BN004",
        ("qa-16", "qa-15"),
        _sorted_by_class,
    ),
    Fault(
        "The decay is too long for the training",
        f"After {population_estimators.EARLY:,} steps an average of decay {population_estimators.DECAY} still holds "
        f"{population_estimators.DECAY**population_estimators.EARLY:.0%} of the values that it started with. The loss, "
        "which is of batch statistics, shows nothing; predictions are off. A shorter decay does as well as statistics "
        "that are computed anew.",
        "population_estimators",
        population_estimators.watched_wrapper,
        population_estimators.computed_anew,
        None,
        ("r2rt-15", "r2rt-17"),
        _early,
    ),
    Fault(
        "The Saver leaves out the moving statistics",
        "They are no trainable variables. A program that runs the initializers and restores the rest predicts with mean 0 "
        "and variance 1, and nothing is raised.",
        "checkpoint_variables",
        checkpoint_variables.SAVERS[checkpoint_variables.TRAINABLES],
        checkpoint_variables.SAVERS[checkpoint_variables.EVERYTHING],
        "BN003",
        ("article-14", "article-17", "article-16"),
        _restored,
    ),
    Fault(
        "The train op does not run the update ops",
        "tf.layers puts its updates into the collection UPDATE_OPS, and nothing runs them unless the train op waits for "
        "them. The loss falls as it should; the statistics stay at 0 and 1 until somebody predicts with them.",
        "missing_update_ops",
        missing_update_ops.without_dependency,
        missing_update_ops.with_dependency,
        "BN001",
        ("article-01", "solver-09", "article-13"),
        _in_inference_mode,
    ),
    Fault(
        "The averages are updated by an op that waits for nothing",
        "The helper stores each batch's moments in variables, and averages those. Made before the dependency, the averaging "
        "op may read them before or after this step's were stored: after one step the averages hold a mixture. A training "
        "whose statistics change slowly forgives it.",
        "conv_normalizer",
        conv_normalizer.grouped_as_suggested,
        conv_normalizer.made_inside,
        "BN103",
        ("qa-06", "qa-07"),
        _averaged,
    ),
    Fault(
        "Predictions update the statistics",
        "The assigns stand outside both branches of the tf.cond, so they run whichever is taken: the layer learns from the "
        "requests that it is served. Requests like the training data do no harm; others move the statistics to "
        "themselves.",
        "conditional_updates",
        conditional_updates.article_wrapper,
        conditional_updates.tf_layers,
        "BN005",
        ("article-05", "article-12"),
        _in_service,
    ),
)


def by_cost(results: Mapping[str, dict]) -> list[tuple[Fault, float, float]]:
    """The faults that `results` measure, with both accuracies: what costs most first, what has none (NaN) last."""
    measured = [(fault, *fault.cost(results[fault.experiment])) for fault in FAULTS if fault.experiment in results]
    return sorted(measured, key=lambda each: (np.isnan(each[1]), each[1] - each[2]))


def marked_lines(wrong: Callable, right: Callable) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The source of two functions as lines, each with whether it differs from the other's."""
    sources = [textwrap.dedent(inspect.getsource(each)).rstrip().splitlines() for each in (wrong, right)]
    stripped = [[line.strip() for line in lines] for lines in sources]
    same = [set(), set()]
    for block in difflib.SequenceMatcher(None, *stripped, autojunk=False).get_matching_blocks():
        same[0].update(range(block.a, block.a + block.size))
        same[1].update(range(block.b, block.b + block.size))
    return tuple(
        [(line, number not in kept and bool(line.strip())) for number, line in enumerate(lines)]
        for lines, kept in zip(sources, same, strict=True)
    )
