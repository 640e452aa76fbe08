"""What every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import rnncore as rc


@pytest.fixture(autouse=True)
def _settings_stay_in_their_test() -> Iterator[None]:
    """Put the process-wide level and number of threads back after every test."""
    level, threads = rc.get_level(), rc.get_num_threads()
    yield
    rc.set_level(level)
    rc.set_num_threads(threads)
