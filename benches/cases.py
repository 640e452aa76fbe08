"""What is timed: the cases of every suite, their data, and what a measured case comes back as.

A case is plain data, so that it can travel to a process of its own; ``Problem`` makes the same
arrays from it wherever it arrives. Sizes: T steps, B batch rows, I input features, H hidden units,
G gates, L layers, D directions, M features of the merged output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import rnncore as rc

Array: TypeAlias = NDArray[Any]
Layer: TypeAlias = rc.LSTM | rc.GRU | rc.RNN

LAYERS: dict[str, type[Layer]] = {"lstm": rc.LSTM, "gru": rc.GRU, "rnn": rc.RNN}
PEAK = "peak"  # the contestant that measures the machine
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


class Shape(NamedTuple):
    """Steps, batch rows, input features, hidden units."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


SHAPES = (
    Shape(100, 1, 16, 32),
    Shape(100, 1, 64, 128),
    Shape(100, 1, 256, 512),
    Shape(100, 32, 64, 128),
    Shape(200, 16, 32, 32),
    Shape(100, 64, 256, 256),
    Shape(50, 64, 512, 512),
    Shape(20, 128, 1024, 1024),
)
STEP_SHAPES = tuple(Shape(1, 1, I, H) for I, H in ((16, 32), (64, 128), (256, 256), (256, 512)))
# Of larger steps the way in and out of Python is a part too small to be told from noise.
OVERHEAD_SHAPES = STEP_SHAPES[:2]
# One row of these reads more weights than the caches near a core hold.
WIDE_SHAPES = tuple(
    Shape(1, 1, I, H) for I, H in ((256, 256), (256, 512), (512, 512), (1024, 1024))
)
DENORMAL_SHAPES = (Shape(200, 1, 16, 64), Shape(200, 32, 16, 64))
NEIGHBOUR_SHAPES = (SHAPES[2], SHAPES[3], SHAPES[5], SHAPES[6])
SWEEP_SHAPE = Shape(20, 70, 64, 128)  # every batch size up to its B
# At so many rows backward makes segments between checkpoints again one by one, not in groups.
MEMORY_SHAPES = (Shape(100, 64, 256, 256), Shape(50, 64, 512, 512))
STREAM_STEPS = 20  # steps that a streaming contestant is proved on


@dataclass(frozen=True)
class Case:
    """One thing to time; every contestant does the same work."""

    suite: str
    cell: str
    work: str  # "inference", "training" or "step"
    shape: Shape
    threads: int
    dtype: str = "float32"
    num_layers: int = 1
    bidirectional: bool = False
    level: str = ""  # the instruction level; empty: the one in use at the start

    @property
    def ragged(self) -> bool:
        """Whether the rows have lengths of their own."""
        return self.suite == "ragged"

    @property
    def tolerance(self) -> float:
        """How far an answer may lie from ours, relative to the largest value (at least 1)."""
        return 1e-4 if self.dtype == "float32" else 1e-10

    @property
    def label(self) -> str:
        """The case in one line."""
        if self.suite == "prototype":  # which is all cells, works and levels at once
            return f"{self.suite} {self.shape}"
        level = f" {self.level}" if self.level else ""
        return f"{self.suite} {self.work} {self.cell} {self.shape} {self.threads} thread(s){level}"

    @property
    def checkpoint(self) -> int:
        """The distance of checkpoints that keeps least: the root of T."""
        return max(1, round(math.sqrt(self.shape.T)))

    @property
    def half(self) -> int:
        """The distance of checkpoints that makes two segments."""
        return -(-self.shape.T // 2)

    @property
    def distances(self) -> dict[str, int | None]:
        """Of our processes whose memory is taken, by name: the distance of checkpoints."""
        return {"rnncore": None, "checkpoints": self.checkpoint, "two segments": self.half}

    def of(self, cell: str, work: str) -> Case:
        """Return the case of another cell and work."""
        return replace(self, cell=cell, work=work)

    def lengths(self) -> NDArray[np.int64] | None:
        """Return (B,) lengths, uniform between T/5 and T, or None when all rows are full."""
        if not self.ragged:
            return None
        T, B = self.shape.T, self.shape.B
        return np.random.default_rng(T + B).integers(T // 5, T, B, endpoint=True)

    def flops(self, rows: int | None = None) -> float:
        """Floating-point operations of one call: those of the products over valid steps.

        A forward step of a row multiplies G*H x (I + H); training is three times that: dx, dh'
        and the gradients of the weights are as much again, twice.
        """
        T, B, I, H = self.shape
        lengths = self.lengths()
        steps = T * (B if rows is None else rows) if lengths is None else int(lengths.sum())
        directions = 2 if self.bidirectional else 1
        inputs = I + (self.num_layers - 1) * directions * H
        products = directions * GATES[self.cell] * H * (inputs + self.num_layers * H)
        return 2.0 * steps * products * (3 if self.work == "training" else 1)


@dataclass
class Result:
    """A measured case: seconds per call of every contestant, round by round."""

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # of the largest value, when proved
    refused: dict[str, str] = field(default_factory=dict)  # contestant to why it was not timed
    skipped: str = ""  # why nobody was timed, where rnncore cannot do the work yet

    def median(self, name: str) -> float:
        """Return the median seconds per call of a contestant."""
        return float(np.median(self.seconds[name]))

    def best(self, name: str) -> float:
        """Return the least seconds per call of a contestant."""
        return min(self.seconds[name])

    def rate(self, name: str) -> float:
        """Return the GFLOP/s of a contestant's median call."""
        return self.flops[name] / self.median(name) / 1e9

    def ratio(self, peer: str, ours: str) -> float:
        """Return the median over the rounds of the peer's time over ours in the same round."""
        return float(np.median(np.divide(self.seconds[peer], self.seconds[ours])))

    def difference(self, name: str, other: str) -> float:
        """Return the median over the rounds of the seconds that a contestant takes more."""
        return float(np.median(np.subtract(self.seconds[name], self.seconds[other])))

    def share(self, name: str) -> float:
        """Return the median over the rounds of a rate over the peak's in the same round."""
        return self.flops[name] / self.flops[PEAK] * self.ratio(PEAK, name)


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process that trains, in bytes."""

    case: Case
    name: str
    before: int  # with the framework imported and the arrays made
    peak: int
    tape: int = 0  # of rnncore: bytes that the tape holds beside the copy of x


class Problem:
    """The arrays of a case, the same in every process: weights, inputs, output gradients."""

    def __init__(self, case: Case) -> None:
        T, B, I, H = case.shape
        rng = np.random.default_rng(1)
        self.case = case
        self.layer: Layer = LAYERS[case.cell](
            I,
            H,
            num_layers=case.num_layers,
            bidirectional=case.bidirectional,
            dtype=case.dtype,
            init="pytorch",
            seed=2,
        )
        self.steps = STREAM_STEPS if case.work == "step" else T
        self.lengths = case.lengths()
        self.x: Array = rng.standard_normal((self.steps, B, I)).astype(case.dtype)
        M = self.layer.output_size
        self.dy: Array = rng.standard_normal((self.steps, B, M)).astype(case.dtype)

    @property
    def params(self) -> dict[str, Array]:
        """The layer's parameters by name."""
        return dict(self.layer.params)

    def rows(self, rows: int) -> Problem:
        """Return the same problem with the first rows of the batch alone."""
        part = self._changed(self.x[:, :rows], self.dy[:, :rows])
        part.case = replace(self.case, shape=self.case.shape._replace(B=rows))
        return part

    def constant(self, weight: float, value: float) -> Problem:
        """Return the problem that makes denormals: one weight everywhere, one value as input.

        The gradient enters at the last step alone: only then does it decay undisturbed over all
        of time. At I = 16, H = 64 a tenth of the steps of dh are denormal when weight and value
        are both -0.1, and none when the value is 0.1. (A wider layer of equal weights amplifies
        rounding until float32 has no answer to prove.)
        """
        dy = np.zeros_like(self.dy)
        dy[-1] = 1
        problem = self._changed(np.full_like(self.x, value), dy)
        problem.layer = LAYERS[self.case.cell](
            self.case.shape.I, self.case.shape.H, dtype=self.case.dtype, seed=0
        )
        for name, array in problem.layer.params.items():
            array[...] = weight if name.startswith("weight") else 0
        return problem

    def _changed(self, x: Array, dy: Array) -> Problem:
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        other.x, other.dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
        return other


# ---- Suites --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What the user narrowed the run down to."""

    cells: Sequence[str]
    shapes: Sequence[Shape] | None  # None: those of each suite; the grids take any
    threads: Sequence[int]
    prototype: bool = False  # whether there is a program to race

    def of(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes of a suite that are wanted."""
        return [shape for shape in shapes if self.shapes is None or shape in self.shapes]


def _grid(choice: Choice, suite: str, works: Sequence[str], **options: Any) -> Iterator[Case]:
    for threads in choice.threads:
        for work in works:
            for cell in choice.cells:
                for shape in choice.shapes or SHAPES:
                    yield Case(suite, cell, work, shape, threads, **options)


def _bidirectional(choice: Choice) -> Iterator[Case]:
    two = replace(choice, threads=[threads for threads in choice.threads if threads == 2])
    yield from _grid(two, "bidirectional", ["training"], num_layers=2, bidirectional=True)


def _special(
    choice: Choice,
    suite: str,
    works: Sequence[str],
    shapes: Sequence[Shape],
    cells: Sequence[str],
    threads: Sequence[int],
    level: str = "",
) -> Iterator[Case]:
    for n in (n for n in threads if n in choice.threads):
        for work in works:
            for cell in (cell for cell in cells if cell in choice.cells):
                for shape in choice.of(shapes):
                    yield Case(suite, cell, work, shape, n, level=level)


def vector_levels() -> list[str]:
    """Return the levels that somebody runs layers on: all but the portable one, if there are."""
    return rc.levels()[1:] or rc.levels()


def _overhead(choice: Choice, suite: str) -> Iterator[Case]:
    yield from _special(choice, suite, ["step"], OVERHEAD_SHAPES, ["lstm", "gru"], [1])
    # The step of the smallest LSTM has a bound on each level.
    for level in vector_levels():
        if level != rc.get_level():
            yield from _special(choice, suite, ["step"], STEP_SHAPES[:1], ["lstm"], [1], level)


def _prototype(choice: Choice, suite: str) -> Iterator[Case]:
    if choice.prototype:
        yield from _special(choice, suite, ["training"], SHAPES, ["lstm"], [1])


SUITES = (
    "grid",
    "float64",
    "ragged",
    "bidirectional",
    "step",
    "overhead",
    "bfloat16",
    "checkpoint",
    "denormals",
    "sweep",
    "scaling",
    "neighbour",
    "memory",
    "prototype",
)


def cases(suite: str, choice: Choice) -> list[Case]:
    """Return the cases of a suite, as narrowed by the user's choice."""
    both = ["inference", "training"]
    gated = ["lstm", "gru"]
    several = [threads for threads in choice.threads if threads > 1]
    found = {
        "grid": lambda: _grid(choice, suite, both),
        "float64": lambda: _grid(choice, suite, ["training"], dtype="float64"),
        "ragged": lambda: _grid(choice, suite, ["training"]),
        "bidirectional": lambda: _bidirectional(choice),
        "step": lambda: _special(choice, suite, ["step"], STEP_SHAPES, gated, [1]),
        "overhead": lambda: _overhead(choice, suite),
        "bfloat16": lambda: _special(choice, suite, ["step"], WIDE_SHAPES, gated, [1]),
        "checkpoint": lambda: _special(choice, suite, ["training"], SHAPES, gated, [1, 2]),
        "denormals": lambda: _special(choice, suite, ["training"], DENORMAL_SHAPES, ["lstm"], [1]),
        "sweep": lambda: _special(choice, suite, both, [SWEEP_SHAPE], ["lstm"], [1, 2]),
        "scaling": lambda: _special(choice, suite, both, SHAPES, list(LAYERS), several),
        "neighbour": lambda: _special(
            choice, suite, both, NEIGHBOUR_SHAPES, ["lstm", "rnn"], several
        ),
        "prototype": lambda: _prototype(choice, suite),
        "memory": lambda: _special(choice, suite, ["training"], MEMORY_SHAPES, gated, [1]),
    }
    return list(found[suite]())
