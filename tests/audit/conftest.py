"""The zoo's cases, built once for all tests of a process."""

import pytest

from tests.audit import zoo


@pytest.fixture(scope="session")
def zoo_of(tmp_path_factory):
    """Builds a case, once in a process."""
    built = {}

    def of(name: str) -> zoo.Built:
        if name not in built:
            built[name] = zoo.build(zoo.CASES[name], tmp_path_factory.mktemp(name))
        return built[name]

    return of
