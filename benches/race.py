"""One race: whoever takes part in a case is proved, and then timed in turns.

In each round every contestant is timed once, in an order drawn anew, so that whatever else the
machine does, and whatever a contestant leaves in the caches, meets all of them alike. Who gives
other answers is named and not timed.
"""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import ours
import peers
import prototype
from cases import Case, Memory, Problem, Result
from contestant import Answers, Clock, Contestant, UnsupportedError

MAX_ROUNDS = 61
MIN_ROUNDS = 5
FEW_ROUNDS = 3  # of those that last
LONG_ROUND_SECONDS = 4.0
SAMPLE_SECONDS = 0.003  # a sample repeats a short call for about so long
# Beside a busy neighbour a sample is many slices of the scheduler's, or it is luck.
NEIGHBOUR_SAMPLE_SECONDS = 0.1
LONG_CALL_SECONDS = 0.02  # from here on a call warms itself: no untimed call before a sample
THREADS = Path("/proc/self/task")  # what every thread does, where the system is Linux
QUIET_SECONDS = 0.2  # the longest wait for the contestant before to come to rest
ORDER_SEED = 3  # the orders of the rounds are the same in every run
CROWD = 7  # a case of more contestants has more time


@dataclass
class Field:
    """Who takes part, how far their answers were off, and why the others do not."""

    entries: list[Contestant] = field(default_factory=list)
    clocks: list[Clock] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def admit(self, name: str, make: Callable[[], Sequence[Contestant]], truth: Truth) -> None:
        """Take in who is made, if the answers hold."""
        # A peer may fail in any way of its own; that is a finding, not the end of the run.
        try:
            for entry in make():
                name = entry.name
                with entry.around():
                    answers = entry.answers()
                error, where = disagreement(answers, entry.expected or truth.answers)
                allowed = truth.tolerance if entry.tolerance is None else entry.tolerance
                if error > allowed:
                    text = f"off by {error:.1e} of the largest value, allowed {allowed:.0e}"
                    self.refused[name] = f"{where}: {text}"
                else:
                    self.errors[name] = error
                    self.entries.append(entry)
        except Exception as error:
            self.refused[name] = f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Truth:
    """What the answers of a case must be."""

    answers: Answers
    tolerance: float


def disagreement(answers: Answers, expected: Answers) -> tuple[float, str]:
    """Return how far answers are off, and which is the worst.

    The distance is relative to each array's largest value (at least 1), and infinite at a NaN.
    """
    worst = (0.0, "")
    for name, want in expected.items():
        got = answers[name]
        if got.shape != want.shape:
            raise ValueError(f"{name}: shape {got.shape}, expected {want.shape}")
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        error = float(np.abs(got - want).max(initial=0)) / scale
        worst = max(worst, (np.inf if np.isnan(error) else error, name))
    return worst


def assemble(case: Case, peer_names: Sequence[str], program: str | None, stack: ExitStack) -> Field:
    """Return the field of a case; the stack ends what it started."""
    problem = Problem(case)
    own = ours.contestants(problem, stack)
    with own[0].around():
        truth = Truth(own[0].answers(), case.tolerance)
    found = Field()
    for entry in own:
        found.admit(entry.name, lambda entry=entry: [entry], truth)  # type: ignore[misc]
    for peer in peers.rivals(case):
        if peer in peer_names:
            found.admit(peer, lambda peer=peer: peers.sent(problem, peer), truth)  # type: ignore[misc]
    if case.suite == "prototype" and program:
        found.clocks.append(prototype.clock(case, program))
    found.entries.append(ours.multiply_add_peak(case))
    return found


def quiesce() -> None:
    """Wait until no other thread of this process runs: some spin for 100 ms after their work."""
    end = time.perf_counter() + QUIET_SECONDS
    while others_run() and time.perf_counter() < end:
        time.sleep(0.001)


def others_run() -> bool:
    """Return whether a thread beside the calling one is running, or would if it had a core.

    Elsewhere than on Linux, which says what each thread does, the process's clock tells it. That
    counts the work of another core only at its ticks, 4 to 10 ms apart.
    """
    if not THREADS.exists():
        busy = time.process_time()
        time.sleep(0.02)
        return time.process_time() - busy > 0.004
    own = str(threading.get_native_id())
    for thread in THREADS.iterdir():
        # "id (name) state ...", where a name may hold anything; an ended thread has no file.
        with suppress(FileNotFoundError, ProcessLookupError):
            state = (thread / "stat").read_text().rpartition(") ")[2][0]
            if state == "R" and thread.name != own:
                return True
    return False


def sample(entry: Contestant, calls: int, warm: bool) -> float:
    """Return the seconds of one piece of work, averaged over so many calls."""
    with entry.around():
        quiesce()
        run = entry.run
        if warm:
            run()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / (calls * entry.repeats)


def first_look(entry: Contestant) -> float:
    """Return about how long a call takes; its answers have warmed it up."""
    once = sample(entry, 1, False)
    if once * entry.repeats < LONG_CALL_SECONDS:
        once = min(once, sample(entry, 1, True))
    return once * entry.repeats


def count_rounds(cost: float, seconds: float) -> int:
    """Return how many rounds of that cost make a race of about so many seconds."""
    least = FEW_ROUNDS if cost > LONG_ROUND_SECONDS else MIN_ROUNDS
    return min(MAX_ROUNDS, max(least, int(seconds / cost)))


def orders(count: int, rounds: int) -> Iterator[list[int]]:
    """Yield the order of each round, drawn so that nobody always follows the same contestant."""
    rng = np.random.default_rng(ORDER_SEED)
    for _ in range(rounds):
        yield rng.permutation(count).tolist()


def measure(found: Field, seconds: float, sample_seconds: float) -> dict[str, list[float]]:
    """Return seconds per piece of work, round by round."""
    entries, clocks = found.entries, found.clocks
    once = {entry.name: first_look(entry) for entry in entries}
    calls = {name: max(1, int(sample_seconds / one)) for name, one in once.items()}
    warm = {name: one < LONG_CALL_SECONDS for name, one in once.items()}
    times: dict[str, list[float]] = {entry.name: [] for entry in entries}
    times.update({name: [] for clock in clocks for name in clock.flops})

    def turn(entry: Contestant) -> Mapping[str, float]:
        return {entry.name: sample(entry, calls[entry.name], warm[entry.name])}

    turns: list[Callable[[], Mapping[str, float]]] = [partial(turn, entry) for entry in entries]
    turns += [clock.read for clock in clocks]
    gc.collect()
    gc.disable()
    rounds = MAX_ROUNDS
    for done, order in enumerate(orders(len(turns), MAX_ROUNDS)):
        if done == rounds:
            break
        start = time.perf_counter()
        for place in order:
            for name, one in turns[place]().items():
                times[name].append(one)
        if done == 0:
            cost = time.perf_counter() - start
            rounds = count_rounds(cost, seconds * max(1.0, len(times) / CROWD))
    gc.enable()
    return times


def time_case(
    case: Case, peer_names: Sequence[str], seconds: float, program: str | None = None
) -> Result:
    """Prove and time one case."""
    busy = case.suite == "neighbour"
    with ExitStack() as stack:
        stack.enter_context(ours.settings(level=case.level))
        try:
            found = assemble(case, peer_names, program, stack)
        except UnsupportedError as reason:
            return Result(case, skipped=str(reason))
        times = measure(found, seconds, NEIGHBOUR_SAMPLE_SECONDS if busy else SAMPLE_SECONDS)
    flops = {entry.name: entry.flops for entry in found.entries}
    for clock in found.clocks:
        flops.update(clock.flops)
    return Result(case, times, flops, found.errors, found.refused)


def train_memory(case: Case, name: str) -> Memory:
    """Train three times in this process and return what it took, at its peak."""
    problem = Problem(case)
    own = case.distances
    if name in own:
        entry = ours.training(problem, checkpoint=own[name])
    else:
        entry = peers.sent(problem, name)[0]
    before = resident_peak()
    for _ in range(3):
        entry.run()
    peak = resident_peak()
    return Memory(
        case, name, before, peak, ours.tape_bytes(problem, own[name]) if name in own else 0
    )


def resident_peak() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
