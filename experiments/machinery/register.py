"""The register of claims, ``claims.toml``: what each claim says, where, and which experiment judges it."""

import functools
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["claims", "documents", "experiments"]

_FILE = Path(__file__).parents[1] / "claims.toml"


@functools.cache
def _register() -> dict:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def claims() -> dict[str, dict[str, str]]:
    """For each claim id: section, claim, figure (the document's own, or empty), kind, experiment."""
    return _register()["claims"]


def documents() -> dict[str, str]:
    """The title of each document, by the key that its claims' ids begin with."""
    return _register()["documents"]


def experiments() -> list[str]:
    """The experiments that judge a claim, the single-example bug first, then in the register's order."""
    return list(dict.fromkeys(["single_example", *(claim["experiment"] for claim in claims().values())]))
