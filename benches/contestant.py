"""Who takes part in a race: a call to time, or a program that times itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

from cases import Array

Answers: TypeAlias = dict[str, Array]


@dataclass
class Contestant:
    """One call to time.

    ``answers`` does the work afresh and names what came out; ``expected`` is what they must be,
    None for the answers of the first contestant, within ``tolerance``, None for that of the case.
    A call does the work ``repeats`` times. ``around`` is what every sample happens in, untimed
    itself: it sets something for this contestant and sets it back.
    """

    name: str
    run: Callable[[], object]
    answers: Callable[[], Answers]
    flops: float
    expected: Answers | None = None
    tolerance: float | None = None
    repeats: int = 1
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass
class Clock:
    """A program that times itself: seconds per call, by name, of one round."""

    flops: Mapping[str, float]
    read: Callable[[], Mapping[str, float]]


class UnsupportedError(Exception):
    """What rnncore cannot do, or not yet: the case is skipped, and the reason printed."""
