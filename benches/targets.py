"""What is promised, as data, and how a run is held against it.

A target speaks of ratios to a peer: one for every shape, one for their geometric mean. A check is
any other number with a bound. Both count only what was timed, and say how much that was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ours
from cases import GATES, LAYERS, Case, Choice, Memory, Result, Shape, cases, vector_levels
from peers import PEERS

NOISE = 0.03  # what a floor of 1.0 allows
# Who packs its weights once is held against the frozen layer.
OPPONENTS = {
    "torch": "rnncore",
    "jax": "rnncore",
    "onnxruntime": "frozen",
    "openvino": "frozen",
}


def geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(ratios))))


def rivals(result: Result) -> list[str]:
    """Return the peers that were timed."""
    return [peer for peer in PEERS if peer in result.seconds and OPPONENTS[peer] in result.seconds]


# ---- Ratios to peers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A promise about ratios, peer time / our time."""

    work: str
    peer: str
    every: float
    mean: float
    suite: str = "grid"
    level: str = ""

    @property
    def label(self) -> str:
        """The row's name."""
        if self.suite in ("grid", "step"):
            return self.work
        return f"{self.work}, {self.level or self.suite}"

    def met(self, ratio: float) -> bool:
        """Whether one shape's ratio is enough."""
        return ratio >= self.every - (NOISE if self.every == 1.0 else 0.0)

    def named(self, threads: int) -> list[Case]:
        """Return the cases that the promise speaks of."""
        if self.suite == "prototype":
            choice = Choice(list(LAYERS), None, [threads], prototype=True)
            shapes = cases(self.suite, choice)
            return [case.of(cell, self.work) for case in shapes for cell in ("lstm", "gru")]
        found = cases(self.suite, Choice(list(LAYERS), None, [threads]))
        return [case for case in found if case.work == self.work]


def targets() -> list[Target]:
    """Return all of them; those beside a prototype are for each level of this machine."""
    return [
        Target("training", "torch", 1.0, 4.0),
        Target("training", "jax", 1.15, 2.2),
        Target("inference", "torch", 1.0, 3.5),
        Target("inference", "onnxruntime", 1.0, 1.9),
        Target("inference", "openvino", 1.0, 1.5),
        Target("training", "torch", 1.3, 3.0, "float64"),
        Target("training", "torch", 2.0, 5.0, "ragged"),
        Target("training", "torch", 1.1, 3.0, "bidirectional"),
        Target("step", "onnxruntime", 1.3, 4.0, "step"),
        *(
            Target(work, "prototype", 0.95, 1.0, "prototype", level)
            for level in vector_levels()
            for work in ("inference", "training")
        ),
    ]


def ratios(results: Iterable[Result], target: Target, threads: int) -> list[tuple[float, Case]]:
    """Return the ratio of every timed case that a target could speak of."""
    found = []
    for result in results:
        case = result.case
        if (case.suite, case.threads) != (target.suite, threads):
            continue
        if target.suite == "prototype":
            for cell in ("lstm", "gru"):
                name = f"{target.level} {cell} {target.work}"
                if name in result.seconds and f"prototype {name}" in result.seconds:
                    ratio = result.ratio(f"prototype {name}", name)
                    found.append((ratio, case.of(cell, target.work)))
        elif case.work == target.work and target.peer in rivals(result):
            found.append((result.ratio(target.peer, OPPONENTS[target.peer]), case))
    return found


@dataclass(frozen=True)
class Finding:
    """What became of a target at one number of threads."""

    target: Target
    threads: int
    named: int  # cases that the promise speaks of
    pairs: list[tuple[float, Case]]  # those that were timed

    @property
    def worst(self) -> tuple[float, Case]:
        """The least ratio, and where."""
        return min(self.pairs, key=lambda pair: pair[0])

    @property
    def below(self) -> int:
        """How many cases miss what every case needs."""
        return sum(not self.target.met(ratio) for ratio, _ in self.pairs)

    @property
    def mean(self) -> float:
        """The geometric mean."""
        return geometric_mean([ratio for ratio, _ in self.pairs])


def findings(results: Sequence[Result]) -> Iterator[Finding]:
    """Hold every target against what was timed for it."""
    for target in targets():
        for threads in thread_counts(results):
            named = target.named(threads)
            # Shapes that the user brought are shown elsewhere; the promise does not speak of them.
            pairs = [pair for pair in ratios(results, target, threads) if pair[1] in named]
            if pairs:
                yield Finding(target, threads, len(named), pairs)


def thread_counts(results: Iterable[Result]) -> list[int]:
    """Return the thread counts that were run."""
    return sorted({result.case.threads for result in results})


# ---- Everything else -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A number with a bound, and the case that it is of."""

    promise: str
    place: str
    found: float
    needed: float
    at_most: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it holds; a NaN does not."""
        return self.found <= self.needed if self.at_most else self.found >= self.needed

    @property
    def bound(self) -> str:
        """What is needed, in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.needed:g}{self.unit}"


@dataclass(frozen=True)
class Share:
    """A promise about the share of the multiply-add peak, for LSTM and GRU."""

    shape: Shape
    inference: float  # of the frozen layer
    training: float


SHARES = (
    Share(Shape(50, 64, 512, 512), 0.90, 0.88),
    Share(Shape(20, 128, 1024, 1024), 0.90, 0.88),
    Share(Shape(100, 32, 64, 128), 0.75, 0.75),
)
# Microseconds of one step of an LSTM (I, H) = (16, 32), in Rust.
RUST_STEP = {"avx2": 0.30, "avx512": 0.25}
OVERHEAD = 0.7  # microseconds that a step takes more from Python
# Values that a tape holds per unit, row and step.
TAPE_VALUES = {"lstm": 6, "gru": 5, "rnn": 1, "mgu": 4, "mgu, reset after": 4}


def checks(results: Iterable[Result], level: str) -> Iterator[Check]:
    """Hold every case against what was promised of its suite; ``level`` is the one in use."""
    by_suite = {
        "grid": _share_checks,
        "bfloat16": _bfloat16_checks,
        "checkpoint": _checkpoint_checks,
        "denormals": _denormal_checks,
        "sweep": _sweep_checks,
        "scaling": _scaling_checks,
        "neighbour": _neighbour_checks,
    }
    for result in results:
        if result.case.suite == "overhead":
            yield from _overhead_checks(result, result.case.level or level)
        elif result.case.suite in by_suite:
            yield from by_suite[result.case.suite](result)


def place(case: Case) -> str:
    """Return the case in a few words, without its suite."""
    return f"{case.work} {case.cell} {case.shape} {case.threads} thread(s)"


def _share_checks(result: Result) -> Iterator[Check]:
    case = result.case
    for share in SHARES:
        if case.shape == share.shape and case.cell != "rnn":
            name, what = {
                "inference": ("frozen", "frozen forward"),
                "training": ("rnncore", "training"),
            }[case.work]
            needed = getattr(share, case.work)
            yield Check(f"{what}, share of the peak", place(case), result.share(name), needed)


def _overhead_checks(result: Result, level: str) -> Iterator[Check]:
    case, where = result.case, f"{place(result.case)} {level}"
    for name, what in (("frozen", "a step from Python"), ("frozen out=", "the same with out=")):
        if name in result.seconds and "rust" in result.seconds:
            more = result.difference(name, "rust") * 1e6
            yield Check(f"{what}, over the Rust step", where, more, OVERHEAD, True, " us")
    smallest = (case.cell, case.shape.I, case.shape.H) == ("lstm", 16, 32)
    if smallest and level in RUST_STEP and "rust" in result.seconds:
        took = result.median("rust") * 1e6
        title = f"a step of a frozen LSTM (16, 32) in Rust, {level}"
        yield Check(title, where, took, RUST_STEP[level], True, " us")


def _race(
    promise: str, result: Result, over: str, under: str, needed: float, *, at_most: bool = False
) -> Iterator[Check]:
    """Yield the check of one time over another; none when one of the two was not timed."""
    if over in result.seconds and under in result.seconds:
        ratio = result.ratio(over, under)
        yield Check(promise, place(result.case), ratio, needed, at_most)


def _bfloat16_checks(result: Result) -> Iterator[Check]:
    yield from _race("bfloat16 weights, gain over float32", result, "frozen", "bfloat16", 1.5)


def _checkpoint_checks(result: Result) -> Iterator[Check]:
    title = "checkpoints every root of T steps, time"
    yield from _race(title, result, "checkpoints", "rnncore", 1.4, at_most=True)


def _denormal_checks(result: Result) -> Iterator[Check]:
    title = "denormals over ordinary numbers, time"
    yield from _race(title, result, "rnncore", "rnncore (ordinary)", 1.5, at_most=True)


def _sweep_checks(result: Result) -> Iterator[Check]:
    if any(f"B={rows}" in result.seconds for rows in range(8, result.case.shape.B + 1)):
        found, rows = sweep_dip(result)
        where = f"{place(result.case)} at B = {rows}"
        yield Check("throughput per row over its neighbours'", where, found, 0.7)


def _scaling_checks(result: Result) -> Iterator[Check]:
    case = result.case
    few, many = f"threads={case.threads}", f"threads={4 * case.threads}"
    if case.shape == Shape(100, 1, 256, 512):
        title = f"one row, wide: gain from {case.threads} threads"
        yield from _race(title, result, "threads=1", few, 1.5)
    for name, what, most in (
        (few, "a thread for each core", 1.05),
        (many, "four threads for each core", 2.0),
    ):
        yield from _race(f"{what}, time over one", result, name, "threads=1", most, at_most=True)


def _neighbour_checks(result: Result) -> Iterator[Check]:
    few = f"threads={result.case.threads} (busy)"
    title = "a thread for each core beside a busy neighbour, time over one alone"
    yield from _race(title, result, few, "threads=1", 2.0, at_most=True)


def sweep_dip(result: Result, reach: int = 4) -> tuple[float, int]:
    """Return the least throughput per row over its neighbours' trend from B = 8 on, and its B.

    The trend at B is the median of the throughputs from B - reach to B + reach, B left out.
    """
    sizes = [rows for rows in range(1, result.case.shape.B + 1) if f"B={rows}" in result.seconds]
    rate = {rows: rows / result.median(f"B={rows}") for rows in sizes}

    def relative(rows: int) -> float:
        near = [rate[other] for other in sizes if 0 < abs(other - rows) <= reach]
        return rate[rows] / float(np.median(near))

    return min((relative(rows), rows) for rows in sizes if rows >= 8)


def memory_checks(memory: Sequence[Memory]) -> Iterator[Check]:
    """Hold the tapes against what was promised."""
    if memory:
        for cell, most in TAPE_VALUES.items():
            title = f"values on the tape per unit, row and step, {cell}"
            yield Check(title, "any shape", ours.tape_values(cell), most, True)
    own: dict[Case, dict[str, Memory]] = {}
    for entry in memory:
        own.setdefault(entry.case, {})[entry.name] = entry
    for case, found in own.items():
        if found.keys() >= case.distances.keys():
            T, k = case.shape.T, case.checkpoint
            title = f"steps' worth of gates with checkpoint={k}, T = {T}"
            yield Check(title, place(case), gate_steps(case, found), T / k + k, True)


def gate_steps(case: Case, found: Mapping[str, Memory]) -> float:
    """Return for how many steps backward holds gates, with checkpoints, by the resident memory.

    Beside what the tape holds, a step of the segment made again counts for as much as each step
    adds to the peak when segments are longer. That would miss segments that stay once made again,
    of whatever length; so it is no less than T without the steps saved beside the whole tape.
    """
    T, _, I, H = case.shape
    whole, kept, halves = (found[name] for name in case.distances)
    step = whole.tape / T

    def more(one: Memory, other: Memory) -> float:
        return ((one.peak - one.before) - (other.peak - other.before)) / step

    held, held_by_halves = kept.tape / step, halves.tape / step
    longer = case.half - case.checkpoint
    each = (more(halves, kept) - (held_by_halves - held)) / longer
    # Whoever makes steps again holds the packed weights of both passes.
    weights = GATES[case.cell] * H * (I + H) * np.dtype(case.dtype).itemsize / step
    return max(held + case.checkpoint * each, T - more(whole, kept) - weights)
