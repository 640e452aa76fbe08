"""What every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import rnncore as rc


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("random layers")
    group.addoption("--cases", type=int, default=2000, help="how many random layers to draw")
    group.addoption("--first-case", type=int, default=0, help="number of the first of them")


@pytest.fixture(autouse=True)
def _settings_stay_in_their_test() -> Iterator[None]:
    """Put the process-wide level and number of threads back after every test."""
    level, threads = rc.get_level(), rc.get_num_threads()
    yield
    rc.set_level(level)
    rc.set_num_threads(threads)


@pytest.fixture(params=rc.levels())
def level(request: pytest.FixtureRequest, _settings_stay_in_their_test: None) -> str:
    """Force each instruction level that this machine has."""
    name: str = request.param
    rc.set_level(name)
    assert rc.get_level() == name
    return name
