"""The report in a browser: the demo computes as TensorFlow does, filters work, nothing overflows, nothing is requested.

Where no Chromium is installed, what needs one is skipped.
"""

import base64
import fcntl
import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bn_graph
from bn_graph.checkpoints.values import assign_values
from bn_graph.tf1 import tf
from experiments import single_example
from experiments.machinery import harness, page, register, report, results
from experiments.machinery.page.faults import FAULTS, by_cost, marked_lines
from experiments.machinery.verbatim import summary as verbatim

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BATCHES = (1, 60)
# What needs a browser is done there by this script, added to the page; it writes what it found into the page.
SCRIPT = Path(__file__).with_name("report_in_browser.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> str:
    """The page of a fresh clone, where there is no result but the committed ones; made once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    output = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "report"
    output.mkdir(exist_ok=True)
    with (output / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (output / "report.html").exists():
            assert report.main(["--output", str(output)]) == 0
    return (output / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def in_browser(made, tmp_path_factory):
    """What the script finds in a window of that many pixels."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_text(made.replace("</body>", f"<script>{SCRIPT}</script></body>"), encoding="utf-8")

    def open_page(width: int, address: str = "") -> dict:
        # A window has a least width of its own; a frame has none.
        frame = f'<iframe src="report.html{address}" width="{width}" height="800" style="border:0"></iframe>'
        (folder / "frame.html").write_text(f"<!doctype html><body>{frame}", encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
        options += ["--virtual-time-budget=20000", "--dump-dom", (folder / "frame.html").as_uri()]
        printed = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120).stdout
        found = re.search(r"<pre>(.*?)</pre>", printed, re.DOTALL)
        assert found, printed[-500:]
        return json.loads(found[1])

    return open_page


@pytest.fixture(scope="module")
def phone(in_browser):
    return in_browser(390)


@pytest.fixture(scope="module")
def desktop(in_browser):
    return in_browser(1280)


def by_tensorflow(when: str) -> dict[int, np.ndarray]:
    """The logits of the reference's 100 images, each in a batch of 1 and of 60, from the same values."""
    folder = report.REFERENCE / "single_example"
    result = results.load(folder / "result.json")
    with np.load(folder / result["networks"][when]) as kept:
        values = {name: value.astype(np.float32) for name, value in kept.items()}
    images = results.unpack_images(result["images"], (100, -1)).astype(np.float32) / np.float32(255)
    weights = [values[f"w{number}"] for number in (1, 2, 3)]
    normalizer = {"before": single_example.batch_statistics_always, "after": single_example.wrapper}[when]
    with tf.Graph().as_default(), tf.Session(config=bn_graph.session_config()) as session:
        network = bn_graph.build_graph(False, weights, normalizer=normalizer)
        variables = [variable for variable in tf.global_variables() if variable.op.name in values]
        assert {variable.op.name for variable in variables} == set(values)
        assign_values(session, [(variable, values[variable.op.name]) for variable in variables])
        ask = session.make_callable(network.logits, [network.x])
        around = np.concatenate([images, images])
        return {
            size: np.stack([ask(around[place : place + size])[0] for place in range(len(images))]) for size in BATCHES
        }


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_demos_logits_are_tensorflows(desktop, when):
    expected = by_tensorflow(when)
    for size in BATCHES:
        computed = np.array(desktop["logits"][when][str(size)])
        np.testing.assert_allclose(computed, expected[size], rtol=0, atol=1e-4)


def test_the_demo_answers_as_the_experiment_did(desktop):
    result = results.load(report.REFERENCE / "single_example" / "result.json")
    alone = {when: np.array(desktop["logits"][when]["1"]).argmax(1).tolist() for when in ("before", "after")}
    assert alone == {when: result[f"predictions_{when}"] for when in alone}


def test_a_picked_image_is_answered_wrongly_alone_rightly_among_others_and_rightly_after_the_fix(desktop):
    # The first test image is a 7, and so is the answer, except for the network without statistics asked about it alone.
    alone, among = desktop["answers"]["1"], desktop["answers"]["60"]
    only = results.load(report.REFERENCE / "single_example" / "result.json")["predictions_before"][0]
    assert alone["before"] == str(only) != "7"
    assert alone["after"] == among["before"] == among["after"] == "7"


def test_the_demo_is_used_by_keyboard(desktop):
    assert desktop["keyboard"] == {"right": 1, "down": 11, "focused": 11}


def test_a_drawn_digit_is_read(desktop):
    assert desktop["drawn"]["after"] == "1"


def test_filters_choose_claims_and_are_kept_in_the_address(desktop):
    mine = register.claims_of("single_example")
    of_document = [claim for claim in register.claims() if claim.startswith("flags-")]
    assert desktop["filtered"] == {"shown": sorted(of_document), "address": "#claims?document=flags"}
    assert desktop["linked"] == {mine[0]: True}


def test_an_address_with_filters_shows_the_same_claims(in_browser, desktop):
    assert sorted(in_browser(1280, "#claims?document=flags")["at_start"]) == desktop["filtered"]["shown"]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(phone, desktop, width):
    found = {390: phone, 1280: desktop}[width]
    assert found["inner_width"] == width
    assert found["overflowing"] == []


def test_nothing_is_requested_and_no_script_fails(phone, desktop):
    for found in (phone, desktop):
        assert found["requests"] == found["errors"] == []


def test_text_has_the_contrast_that_is_asked(desktop):
    assert desktop["faint"] == []


def test_every_figure_is_described_and_there_from_a_fresh_clone(made):
    images = re.findall(r"<img [^>]*>", made)
    pages = [harness.page_of(importlib.import_module(f"experiments.{name}")) for name in register.experiments()]
    assert len(images) == sum(len(each.figures) for each in pages) + len(verbatim.FIGURES)
    assert all(re.search(r'alt="[^"]{40,}"', image) for image in images)


def test_the_page_is_self_contained_and_small(made):
    assert len(made.encode()) < 5_000_000
    assert not re.search(r'(src|href)="(?!#|data:)', made)
    assert "default-src 'none'" in made


def test_every_claim_has_an_anchor_and_every_link_a_target(made):
    targets = set(re.findall(r' id="([^"]+)"', made))
    assert set(register.claims()) <= targets
    assert {link for link in re.findall(r'href="#([^"]+)"', made)} <= targets


def test_faults_stand_in_order_of_the_accuracy_that_they_cost():
    ordered = by_cost(results.load_all(report.REFERENCE))
    assert len(ordered) == len(FAULTS)
    lost = [right - wrong for _, wrong, right in ordered if not np.isnan(wrong)]
    assert lost == sorted(lost, reverse=True) and lost[0] > 0.5
    assert all(claim in register.claims() for fault in FAULTS for claim in fault.claims)


def test_the_lines_in_which_two_functions_differ_are_marked():
    def wrong(x):
        y = x + 1
        return y

    def right(x):
        y = x + 2
        return y

    for lines, name, number in zip(marked_lines(wrong, right), ("wrong", "right"), (1, 2), strict=True):
        assert lines == [(f"def {name}(x):", True), (f"    y = x + {number}", True), ("    return y", False)]


def test_a_result_without_networks_has_no_demo(tmp_path):
    result = results.load(report.REFERENCE / "single_example" / "result.json")
    assert page.demo(result, tmp_path) is None
    del result["networks"]
    assert page.demo(result, report.REFERENCE / "single_example") is None


def test_networks_are_embedded_in_full(tmp_path):
    folder = report.REFERENCE / "single_example"
    result = results.load(folder / "result.json")
    embedded = json.loads(page.demo(result, folder)["json"])
    with np.load(folder / result["networks"]["after"]) as kept:
        for name, values in kept.items():
            packed = embedded["networks"]["after"][name]
            read = np.frombuffer(base64.b64decode(packed["values"]), "<f2").reshape(packed["shape"])
            np.testing.assert_array_equal(read, values)
