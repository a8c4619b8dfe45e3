"""The report's page: one self-contained file of HTML, made from results. The templates stand beside this module.

It opens with the bug in the reader's hands: `demo.js` computes with the two networks that ``make single-example`` wrote.
"""

import base64
import importlib
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from bn_graph.audit.rules import RULES
from experiments.machinery import harness, register, results
from experiments.machinery.page import own_programs
from experiments.machinery.page.faults import Fault, by_cost, marked_lines
from experiments.machinery.verbatim import timeline
from experiments.machinery.verdicts import KINDS, MARKS, counts, kind_of

__all__ = ["demo", "render"]


def render(
    loaded: Mapping[str, dict],
    claims: Mapping[str, dict],
    before: Mapping[str, dict],
    folders: Mapping[str, Path],
    reference: Path,
) -> str:
    """The page.

    Args:
        loaded: the results, by the experiment's name.
        claims: what was judged, by claim id, in the register's order.
        before: the same of the committed reference.
        folders: where each result and its figures are; figures that are not there are drawn.
        reference: the folder of the committed reference.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["slug"] = lambda text: text.replace(",", "").replace(" ", "-")
    programs = own_programs.sentences(reference / "verbatim", loaded)
    return environment.get_template("page.html.jinja").render(
        documents=register.documents(),
        counts=counts(claim["verdict"] for claim in claims.values()),
        missing=[claim for claim in register.claims() if claim not in claims],
        rows=[
            _row(claim, measured, before.get(claim), loaded) | {"programs": programs.get(claim, [])}
            for claim, measured in claims.items()
        ],
        own_programs={
            "tables": own_programs.tables(reference / "verbatim", loaded),
            "figures": _own_programs_figures(reference / "verbatim"),
            "title": "The documents' own programs.",
        },
        kinds=sorted(KINDS, key=lambda kind: (kind == "holds", kind == "dated", kind != "does not hold")),
        sections=[_section(name, result, folders[name], reference) for name, result in loaded.items()],
        faults=[_fault(*each) for each in by_cost(loaded)],
        marks=MARKS,
        total=len(register.claims()),
        demo=_demo_of(folders.get("single_example")) or _demo_of(reference / "single_example"),
    )


def command(experiment: str, mode: str) -> str:
    """The command that measures it again."""
    return f"make {register.target(experiment)}" + (" MODE=full" if mode == "full" else "")


# --- The demo ---------------------------------------------------------------------------------------------------------


def _demo_of(folder: Path | None) -> dict | None:
    """That of the result in `folder`, if there is one: a result of an earlier version has no networks beside it."""
    path = folder and folder / "result.json"
    return demo(results.load(path), folder) if path and path.exists() else None


def demo(result: dict, folder: Path) -> dict | None:
    """What `demo.js` computes with, or None for a result without networks.

    Returns:
        ``images`` (bytes) and the arrays of both ``networks`` (float16), each as base64 with its ``shape``; ``labels``.
    """
    files = {when: folder / file for when, file in result.get("networks", {}).items()}
    if not files or not all(file.exists() for file in files.values()):
        return None
    shape = (len(result["labels"]), *result["image_shape"])
    networks = {}
    for when, file in files.items():
        with np.load(file) as arrays:
            networks[when] = {name: _packed(values) for name, values in arrays.items()}
    run = result["runs"][0]
    data = {"images": _packed(results.unpack_images(result["images"], shape)), "labels": run["labels"]}
    return {
        "json": json.dumps(data | {"networks": networks}, separators=(",", ":")),
        "at_once": run["test_accuracy_before_at_once"],
        "after": run["test_accuracy_after"],
        "classes": sorted(set(run["predictions_before"])),
        "data": results.data_name(result),
    }


def _packed(values: np.ndarray) -> dict:
    little = values.astype(values.dtype.newbyteorder("<"))
    return {"shape": values.shape, "values": base64.b64encode(little.tobytes()).decode()}


# --- The faults -------------------------------------------------------------------------------------------------------


def _fault(fault: Fault, wrong: float, right: float) -> dict:
    codes = marked_lines(fault.wrong, fault.right)
    return fault._asdict() | {
        "name": f"fault-{register.target(fault.experiment)}",
        "rule": fault.rule and RULES[fault.rule],
        "accuracy": None if np.isnan(wrong) else (wrong, right),
        "command": command(fault.experiment, "full"),
        "codes": [
            {"title": title, "kind": kind, "lines": lines}
            for title, kind, lines in zip(("Wrong", "Right"), ("orange", "blue"), codes, strict=True)
        ],
    }


# --- The claims -------------------------------------------------------------------------------------------------------


def _row(claim: str, measured: dict, before: dict | None, loaded: Mapping[str, dict]) -> dict:
    entry = register.claims()[claim]
    changed = before is not None and before["verdict"] != measured["verdict"]
    page = _page(entry["experiment"])
    return measured | {
        "id": claim,
        "key": claim.partition("-")[0],
        "group": kind_of(measured["verdict"]),
        "claim": entry["claim"],
        "section": entry["section"],
        "kind": entry["kind"],
        "command": command(entry["experiment"], measured["mode"]),
        "source": f"experiments/{entry['experiment']}.py",
        "pictured": bool(page.figures or page.tables(loaded[entry["experiment"]])),
        "own_version": timeline.own_version(claim),
        "rules": [rule for rule in RULES.values() if claim in rule.claims],
        "reference_verdict": before["verdict"] if changed else None,
    }


# --- The experiments --------------------------------------------------------------------------------------------------


def _page(name: str) -> harness.Page:
    return harness.page_of(importlib.import_module(f"experiments.{name}"))


def _section(name: str, result: dict, folder: Path, reference: Path) -> dict:
    page = _page(name)
    return {
        "name": name,
        "title": page.title,
        "command": command(name, result["mode"]),
        "result": result,
        "figures": _figures(page, result, folder),
        "tables": page.tables(result),
        "claims": register.claims_of(name),
        "is_reference": reference in folder.parents,
    }


def _figures(page: harness.Page, result: dict, folder: Path) -> list[dict]:
    """Each figure as a URL of data, with its size in pixels and its caption."""
    with tempfile.TemporaryDirectory() as drawn:
        if any(not (folder / file).exists() for file in page.figures):
            folder = Path(drawn)
            page.draw(result, folder)
        return [_picture(folder / file) | {"caption": caption} for file, caption in page.figures.items()]


def _own_programs_figures(folder: Path) -> list[dict]:
    with tempfile.TemporaryDirectory() as drawn:
        return [
            _picture(path) | {"caption": caption} for path, caption in own_programs.draw(folder, Path(drawn)).items()
        ]


def _picture(path: Path) -> dict:
    """Without loss, and half as large as the PNG that Matplotlib writes."""
    with Image.open(path) as image, io.BytesIO() as packed:
        image.convert("RGB").save(packed, "WEBP", lossless=True)
        url = "data:image/webp;base64," + base64.b64encode(packed.getvalue()).decode()
        return {"url": url, "width": image.width, "height": image.height, "name": path.stem}
