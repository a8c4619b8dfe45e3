"""What installing the package brings."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_experiments_extra_is_requirements_txt():
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    required = [line.replace('"', "'") for line in lines if line]
    assert [re.sub(r"\s+", " ", line) for line in required] == extras["experiments"]
