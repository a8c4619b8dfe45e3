"""The page of an audit: nothing from outside, no markup from names, drawings that say what runs and what does not."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bn_graph.__main__ import main
from bn_graph.audit.formats import render
from bn_graph.audit.report import Details, Finding, Histogram, LayerDetails, LayerRow, Level, Report, State, UpdateOp
from tests.audit.frozen import frozen

VOID = {"meta", "br", "hr", "img", "link", "input"}
VARIABLES = {"moving_mean": "bn/moving_mean", "moving_variance": "bn/moving_variance"}


class Page(HTMLParser):
    """Checks that tags are closed; collects text, tags and each group's class of the drawings."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.tags, self.attributes = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self):
        return " ".join(data for tag, data in self.texts if tag != "style")


def details(run_by=("Adam",), updates=True, **changed):
    names = (("bn/AssignMovingAvg", "bn/moving_mean"), ("bn/AssignMovingAvg_1", "bn/moving_variance"))
    layer = LayerDetails(
        values={"moving_mean": Histogram(-1.0, 3.0, (1, 4, 2))},
        inputs="dense/BiasAdd",
        batch_statistics=("bn/moments/mean", "bn/moments/variance"),
        by_batch=("bn/batchnorm/Rsqrt",),
        by_moving=("bn/batchnorm_1/Rsqrt",),
        in_training=True,
        updates=tuple(UpdateOp(*each, run_by) for each in names) if updates else (),
    )
    return Details(("Adam",), ("logits",), ("images", "is_training"), {"bn": layer._replace(**changed)})


def report(
    path="run/model.meta", findings=(), training="batch", inference="population", statistics="updated", **changed
):
    row = LayerRow("bn", "moments", training, inference, "2 of 2", "yes", statistics, VARIABLES)
    whole = Report(path, "meta graph", "run/model", (row,), tuple(findings), (), 9, details=details())
    return whole._replace(**changed)


def finding(code, level=Level.ERROR, layers=("bn",)):
    return Finding(code, level, layers, f"What {code} says.", ("some evidence",), "Do so.")


def drawn(whole):
    """For each labelled box of the two drawings, its kind."""
    page = render([whole], "html")
    boxes = re.findall(
        r'<g class="(\w+)"><title>[^<]*</title><rect[^>]*></rect><text[^>]*class="label"[^>]*>([^<]*)', page
    )
    return {label: kind for kind, label in boxes}


def test_a_page_needs_nothing_from_outside_and_its_tags_are_closed():
    page = render([report(findings=[finding("BN001")]), report("b.pb")], "html", unread=[("bad.meta", "cut short")])
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>") and 'charset="utf-8"' in page
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags) and "url(" not in page and "@import" not in page
    links = [given["href"] for tag, given in parsed.attributes if tag == "a"]
    assert links and all(re.fullmatch(r"#file\d+", link) for link in links)
    assert "cut short" in parsed.text


def test_what_is_wrong_is_at_the_top_and_faulty_files_come_first():
    faulty = report("z.meta", findings=[finding("BN001")])
    text = Page(render([report("a.meta"), faulty], "html", unread=[("bad.meta", "cut short")])).text
    assert text.index("2 files, 1 with errors, 1 unreadable.") < text.index("z.meta") < text.index("a.meta")
    alone = Page(render([faulty], "html")).text
    assert alone.index("1 error in 1 layer.") < alone.index("z.meta") < alone.index("What BN001 says.")


def test_names_of_a_file_are_no_markup():
    evil = '</code><script>alert("1")</script>\x1b[2J&amp;'
    row = LayerRow(evil, "moments", "batch", "batch", "none", "no", "?", {"moving_mean": evil})
    found = Finding("BN001", Level.ERROR, (evil,), evil, (evil,), evil)
    whole = Details((evil,), (evil,), (evil,), {evil: details().layers["bn"]._replace(inputs=evil, by_batch=(evil,))})
    page = render([report(evil, layers=(row,), findings=(found,), details=whole)], "html", unread=[(evil, evil)])
    assert "script" not in Page(page).tags and "\x1b" not in page
    assert '</code><script>alert("1")</script>' in Page(page).text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"updates by Adam": "good", "moving statistics": "good"}),
        ({"run_by": ()}, {"no train op runs these": "bad", "moving statistics: not updated": "bad"}),
        ({"updates": False}, {"no update ops": "bad", "moving statistics: not updated": "bad"}),
        ({"in_training": False}, {"No train op of this file runs the layer.": "absent"}),
        ({"inference_updates": ("bn/Assign",)}, {"running an output updates the statistics": "bad"}),
    ],
)
def test_the_drawing_says_where_the_update_is_or_is_not(changes, expected):
    boxes = drawn(report(details=details(**changes)))
    assert expected.items() <= boxes.items()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"inference": "population"}, {"moving statistics": "good"}),
        ({"inference": "population", "statistics": "initial"}, {"moving statistics: never updated": "bad"}),
        (
            {"inference": "batch"},
            {"mean and variance of whatever batch is given": "bad", "moving statistics: not used": "absent"},
        ),
        ({"inference": "-"}, {"No inference path is in this file.": "absent"}),
        ({"inference": "?"}, {"Undetermined: see “cannot tell”.": "absent"}),
    ],
)
def test_the_drawing_says_what_inference_takes(row, expected):
    assert expected.items() <= drawn(report(**row)).items()


def test_labels_fit_their_boxes():
    rows = [{"inference": inference, "statistics": state} for inference in ("batch", "population") for state in State]
    pages = [render([report(**row)], "html") for row in rows]
    pages += [
        render([report(details=details(run_by=run_by))], "html")
        for run_by in ((), ("GradientDescent",), ("Adam", "Adam_1"))
    ]
    for width, label in re.findall(
        r'<rect[^>]* width="(\d+)"[^>]*></rect><text[^>]*class="label">([^<]*)', "".join(pages)
    ):
        assert len(label) * 6.6 + 14 <= int(width), label  # of a bold letter on average


def test_statistics_are_a_histogram_between_their_smallest_and_largest_value():
    page = render([report()], "html")
    assert 'aria-label="moving_mean: -1 to 3"' in page and ">-1</text>" in page and ">3</text>" in page
    assert page.count("<rect") - len(drawn(report())) >= 3


@pytest.mark.parametrize(
    ("code", "command"),
    [
        ("BN002", "python -m bn_graph recalibrate --meta 'my run/m.meta' --checkpoint 'my run/m' --data D.npz --out"),
        (
            "BN004",
            "python -m bn_graph inference-graph --meta 'my run/m.meta' --checkpoint 'my run/m' --output logits --out",
        ),
    ],
)
def test_commands_have_the_names_of_the_file(code, command):
    whole = report("my run/m.meta", findings=[finding(code)], checkpoint="my run/m")
    text = Page(render([whole], "html")).text
    assert command in text
    assert ("images, is_training" in text) == (code == "BN002")
    assert command not in Page(render([whole._replace(checkpoint=None)], "html")).text


def test_the_command_writes_the_page_of_a_file_with_its_values(tmp_path, capsys):
    (tmp_path / "frozen.pb").write_bytes(frozen((1.5, 2.5)))
    assert main(["audit", str(tmp_path), "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert Page(page) and 'aria-label="moving_mean: 1.5 to 2.5"' in page and 'aria-label="bn at inference"' in page


def test_the_page_s_style_is_installed_with_the_package():
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"audit/formats/html_format/page.css"' in settings
