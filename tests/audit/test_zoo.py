"""The audit of graphs as people write them: every error that is there, and no other.

The labels are not taken on trust: where a case can be run, what running shows must agree with them.
"""

import pytest

from bn_graph.audit import audit
from bn_graph.audit.rules import RULES
from tests.audit import zoo


@pytest.mark.parametrize("name", zoo.CASES)
def test_labels_agree_with_what_running_shows(name, zoo_of):
    case, facts = zoo.CASES[name], zoo_of(name).facts
    if facts is None:
        pytest.skip("this graph can't be run here, or is read without a run")
    unmoved = facts.statistics - facts.moved
    if "BN001" in case.errors:
        assert unmoved, "training moves all statistics"
    if not case.errors and not case.still and "BN103" not in case.must:
        assert not unmoved, "training leaves statistics alone in a case labelled healthy"
    if "BN002" in case.errors:
        assert facts.initial and facts.trained, "nothing was trained, or all statistics moved"
    if {"BN006", "BN003"} & case.errors:
        assert facts.unsaved, "all statistics are in the checkpoint"
    if facts.by_batch is not None:
        assert facts.by_batch == ("BN004" in case.errors), "the first row of the output depends on the others, or not"
    if facts.output_moves is not None:
        assert bool(facts.output_moves) == ("BN005" in case.errors), facts.output_moves


@pytest.mark.parametrize("name", zoo.CASES)
def test_the_audit_reports_the_errors_that_are_there_and_no_other(name, zoo_of):
    case, built = zoo.CASES[name], zoo_of(name)
    report = audit(built.subject, **built.options)
    errors = {finding.code for finding in report.errors}
    reported = {finding.code for finding in report.findings}
    assert case.errors <= errors, f"missing {case.errors - errors}: {report.findings} {report.undetermined}"
    assert errors <= case.errors | case.allowed, [f for f in report.errors if f.code not in case.errors]
    assert case.must <= reported, f"missing {case.must - reported}"
    assert not case.silent & reported, f"not to be reported: {case.silent & reported}"
    assert case.undetermined <= {entry.code for entry in report.undetermined}, report.undetermined
    if case.layers is not None:
        assert len(report.layers) == case.layers, [row.name for row in report.layers]
    assert len(report.not_understood) == case.not_understood, report.not_understood
    for row in report.layers:
        assert {column: getattr(row, column) for column, _ in case.columns} == dict(case.columns), row


@pytest.mark.parametrize("code", RULES)
def test_every_rule_has_a_case_that_it_must_report(code):
    assert any(code in case.errors | case.must for case in zoo.CASES.values())


def test_at_least_half_of_the_zoo_is_healthy():
    healthy = [case for case in zoo.CASES.values() if not case.errors]
    assert len(healthy) >= len(zoo.CASES) / 2
