"""Reports as JUnit XML, which most CI systems show: a suite for each file, a test for each rule.

A rule fails where it has findings of error level; warnings and advice are its output; what could not be determined is
skipped. A file that could not be read is a suite with an error.
"""

from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree

from bn_graph.audit.formats import Style
from bn_graph.audit.report import Finding, Lack, Level, Report, Unread, evidence_in_brief, names_in_brief, printable
from bn_graph.audit.rules import RULES

__all__ = ["render"]


def render(results: Iterable[Report | Unread], style: Style) -> Iterator[str]:
    """The reports as JUnit XML, a piece for each suite."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="bn_graph audit">\n'
    for result in results:
        suite = _suite(result, style.codes or tuple(RULES))
        cases = list(suite)
        counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
        suite.set("tests", str(len(cases)))
        for name, tag in counts.items():
            suite.set(name, str(sum(case.find(tag) is not None for case in cases)))
        ElementTree.indent(suite)
        yield ElementTree.tostring(suite, "unicode") + "\n"
    yield "</testsuites>\n"


def _suite(result: Report | Unread, codes: Sequence[str]) -> ElementTree.Element:
    path = printable(result.path)
    suite = ElementTree.Element("testsuite", name=path)
    if isinstance(result, Unread):
        case = ElementTree.SubElement(suite, "testcase", classname=path, name="read")
        is_note = result.lack == Lack.NO_MODEL
        ElementTree.SubElement(case, "skipped" if is_note else "error", message=printable(result.reason))
        return suite
    for code in codes:
        case = ElementTree.SubElement(suite, "testcase", classname=path, name=f"{code} {RULES[code].name}")
        findings = [finding for finding in result.findings if finding.code == code]
        errors = [finding for finding in findings if finding.level == Level.ERROR]
        reasons = [entry.reason for entry in result.undetermined if entry.code == code]
        if errors:
            failure = ElementTree.SubElement(case, "failure", type=code, message=printable(errors[0].message))
            failure.text = "\n\n".join(map(_text, errors))
        elif reasons and not findings:
            ElementTree.SubElement(case, "skipped", message=printable(f"cannot tell: {'; '.join(reasons)}"))
        others = [finding for finding in findings if finding.level != Level.ERROR]
        if others:
            ElementTree.SubElement(case, "system-out").text = "\n\n".join(map(_text, others))
    return suite


def _text(finding: Finding) -> str:
    lines = [f"{finding.level}: {finding.message}", f"layers: {names_in_brief(finding.layers)}"]
    return "\n".join(map(printable, [*lines, *evidence_in_brief(finding), f"fix: {finding.fix}"]))
