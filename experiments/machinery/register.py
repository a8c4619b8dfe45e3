"""The register of claims, ``claims.toml``: what each claim says, where, and which experiment judges it."""

import ast
import functools
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["claims", "claims_of", "documents", "experiments", "target", "title", "written"]

_PAGES = Path(__file__).parents[1]


@functools.cache
def _register() -> dict:
    return tomllib.loads((_PAGES / "claims.toml").read_text(encoding="utf-8"))


def claims() -> dict[str, dict[str, str]]:
    """For each claim id: section, claim, figure (the document's own, or empty), kind, experiment."""
    return _register()["claims"]


def claims_of(experiment: str) -> list[str]:
    """The ids of the claims that an experiment judges."""
    return [claim for claim, entry in claims().items() if entry["experiment"] == experiment]


def documents() -> dict[str, str]:
    """The title of each document, by the key that its claims' ids begin with."""
    return _register()["documents"]


def written(claim: str) -> str:
    """The month that the claim's document, or its part of it, says it is of, as "2016-03"; empty if it says none."""
    dates = _register()["written"]
    return dates.get(claim, dates.get(claim.partition("-")[0], ""))


def experiments() -> list[str]:
    """The experiments that judge a claim, the single-example bug first, then in the register's order."""
    return list(dict.fromkeys(["single_example", *(claim["experiment"] for claim in claims().values())]))


def target(experiment: str) -> str:
    """The make target that runs an experiment."""
    # pytest takes test_*.py for its own, so the module has another name than the target.
    return {"evaluation_batch_size": "test-batch-size"}.get(experiment, experiment.replace("_", "-"))


def title(experiment: str) -> str:
    """The first line of the page's docstring, without importing the page."""
    page = ast.parse((_PAGES / f"{experiment}.py").read_text(encoding="utf-8"))
    return ast.get_docstring(page).splitlines()[0]
