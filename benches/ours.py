"""The contestants of rnncore: beside its peers, and beside itself under other conditions."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from cases import PEAK, Array, Case, Problem, vector_levels
from contestant import Answers, Contestant, UnsupportedError

import rnncore as rc
from rnncore import _core

PEAK_ROUNDS = 400_000  # two or three milliseconds of multiply-adds
REPEATS = 256  # steps in one call of the bare step
BFLOAT16_TOLERANCE = 0.02  # of the largest value; weights keep 8 bits
TAPE_CELLS: dict[str, Callable[..., Any]] = {
    "lstm": rc.LSTM,
    "gru": rc.GRU,
    "rnn": rc.RNN,
    "mgu": rc.MGU,
    "mgu, reset after": partial(rc.MGU, reset_after=True),
}
# Ends with the process that started it, whatever becomes of that.
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


def multiply_add_peak(case: Case) -> Contestant:
    """Return the contestant whose rate is the machine's peak: multiply-adds in registers alone."""
    run = partial(_core.multiply_add, PEAK_ROUNDS, case.dtype)
    with settings(threads=1):
        once = run()
    with settings(threads=case.threads):
        done = run()
    if done != case.threads * once:
        raise RuntimeError(f"the peak needs {case.threads} threads, which could not be had")
    return Contestant(PEAK, run, dict, 2.0 * done)


def contestants(problem: Problem, stack: ExitStack) -> list[Contestant]:
    """Return our own contestants of a case; the first one is what all others are held against.

    The stack ends what they started.
    """
    by_suite: dict[str, Callable[[Problem], list[Contestant]]] = {
        "overhead": _overhead,
        "bfloat16": _bfloat16,
        "checkpoint": _checkpoint,
        "denormals": _denormals,
        "sweep": _sweep,
        "scaling": _scaling,
        "neighbour": partial(_neighbour, stack),
        "prototype": _levels,
    }
    return by_suite.get(problem.case.suite, _plain)(problem)


def _plain(problem: Problem) -> list[Contestant]:
    if problem.case.work == "training":
        return [training(problem)]
    if problem.case.work == "inference":
        return [inference(problem), frozen_run(problem)]
    return [frozen_step(problem)]


def inference(problem: Problem, name: str = "rnncore") -> Contestant:
    """``layer(x)``."""
    layer, x = problem.layer, problem.x
    return Contestant(name, lambda: layer(x), lambda: {"y": layer(x)[0]}, problem.case.flops())


def training(problem: Problem, name: str = "rnncore", checkpoint: int | None = None) -> Contestant:
    """``layer.forward`` and ``layer.backward``: every gradient."""
    layer, x, dy, lengths = problem.layer, problem.x, problem.dy, problem.lengths

    def run() -> tuple[Array, rc.Gradients[Any]]:
        y, _, tape = layer.forward(x, lengths=lengths, checkpoint=checkpoint)
        return y, layer.backward(tape, dy)

    def answers() -> Answers:
        y, gradients = run()
        return {"y": y, "dx": gradients.x, **gradients.params}

    return Contestant(name, run, answers, problem.case.flops())


def frozen_run(problem: Problem, name: str = "frozen") -> Contestant:
    """``layer.freeze(B).run(x)``, packed once."""
    frozen, x = problem.layer.freeze(problem.case.shape.B), problem.x

    def answers() -> Answers:
        frozen.reset()
        return {"y": frozen.run(x)}

    return Contestant(name, lambda: frozen.run(x), answers, problem.case.flops())


def frozen_step(problem: Problem, name: str = "frozen", weights: str | None = None) -> Contestant:
    """``layer.freeze().step(x_t)``: one step, state inside, a fresh array out."""
    layer: Any = problem.layer
    frozen = layer.freeze(weights=weights)
    step = partial(frozen.step, problem.x[0])
    return Contestant(name, step, _stream(problem, frozen, frozen.step), problem.case.flops())


def _stream(problem: Problem, frozen: Any, step: Callable[[Array], Array]) -> Callable[[], Answers]:
    def answers() -> Answers:
        frozen.reset()
        # `step` may return the same array every time.
        return {"y": np.stack([step(problem.x[t]).copy() for t in range(problem.steps)])}

    return answers


# ---- Beside itself -------------------------------------------------------------------------------


@contextmanager
def settings(threads: int | None = None, level: str | None = None) -> Iterator[None]:
    """Run with other settings of rnncore."""
    before = rc.get_num_threads(), rc.get_level()
    rc.set_num_threads(before[0] if threads is None else threads)
    rc.set_level(level or before[1])
    try:
        yield
    finally:
        rc.set_num_threads(before[0])
        rc.set_level(before[1])


def _work(problem: Problem, name: str) -> Contestant:
    return (training if problem.case.work == "training" else inference)(problem, name)


def _overhead(problem: Problem) -> list[Contestant]:
    """Return a step from Python, one into an array at hand, and the step alone, in Rust."""
    fresh = frozen_step(problem)
    frozen: Any = problem.layer.freeze()
    x_t, H = problem.x[0], problem.case.shape.H
    y_t = np.empty((1, H), x_t.dtype)
    into = partial(frozen.step, out=y_t)
    out = Contestant("frozen out=", partial(into, x_t), _stream(problem, frozen, into), fresh.flops)
    bare: Any = problem.layer.freeze()
    once = partial(bare._repeat_step, times=1)
    repeated = partial(bare._repeat_step, x_t, REPEATS)
    rust = Contestant("rust", repeated, _stream(problem, bare, once), fresh.flops, repeats=REPEATS)
    return [fresh, out, rust]


def _bfloat16(problem: Problem) -> list[Contestant]:
    try:
        short = frozen_step(problem, "bfloat16", "bfloat16")
    except ValueError as error:
        if not str(error).startswith("weights:"):
            raise
        raise UnsupportedError(str(error)) from error
    short.tolerance = BFLOAT16_TOLERANCE
    return [frozen_step(problem), short]


def _checkpoint(problem: Problem) -> list[Contestant]:
    kept = training(problem, "checkpoints", problem.case.checkpoint)
    kept.tolerance = 0.0
    return [training(problem), kept]


def _denormals(problem: Problem) -> list[Contestant]:
    entries = []
    for data, suffix in denormal(problem):
        entry = training(data, f"rnncore{suffix}")
        entry.expected = entry.answers()
        entries.append(entry)
    return entries


def denormal(problem: Problem) -> list[tuple[Problem, str]]:
    """Return the data that make denormals and those that make none, with a mark for the name.

    An input of the weights' sign makes the recurrence pass through the denormals.
    """
    return [(problem.constant(-0.1, -0.1), ""), (problem.constant(-0.1, 0.1), " (ordinary)")]


def _sweep(problem: Problem) -> list[Contestant]:
    """Every batch size up to B, each proved on the leading rows of the whole batch."""
    whole = _work(problem, "").answers()
    entries = []
    for rows in range(1, problem.case.shape.B + 1):
        entry = _work(problem.rows(rows), f"B={rows}")
        entry.expected = {name: whole[name][:, :rows] for name in ("y", "dx") if name in whole}
        entry.answers = _only(tuple(entry.expected), entry.answers)
        entries.append(entry)
    return entries


def _only(names: Sequence[str], answers: Callable[[], Answers]) -> Callable[[], Answers]:
    def some() -> Answers:
        found = answers()
        return {name: found[name] for name in names}

    return some


def _scaling(problem: Problem) -> list[Contestant]:
    """One thread, one for each core of the process, and more than there are cores."""
    entries = []
    for threads in (1, problem.case.threads, 4 * problem.case.threads):
        entry = _work(problem, f"threads={threads}")
        entry.around = partial(settings, threads=threads)
        entries.append(entry)
    return entries


def _neighbour(stack: ExitStack, problem: Problem) -> list[Contestant]:
    """One thread and one for each core, alone and while another process keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    stack.callback(process.wait)
    stack.callback(process.kill)
    process.send_signal(signal.SIGSTOP)

    @contextmanager
    def beside(threads: int, busy: bool) -> Iterator[None]:
        if busy:
            process.send_signal(signal.SIGCONT)
        try:
            with settings(threads=threads):
                yield
        finally:
            process.send_signal(signal.SIGSTOP)

    entries = []
    for busy, suffix in ((False, ""), (True, " (busy)")):
        for threads in (1, problem.case.threads):
            entry = _work(problem, f"threads={threads}{suffix}")
            entry.around = partial(beside, threads, busy)
            entries.append(entry)
    return entries


def _levels(problem: Problem) -> list[Contestant]:
    """LSTM and GRU, inference and training, on every level but the portable one."""
    entries = []
    for cell in ("lstm", "gru"):
        once, thrice = (Problem(problem.case.of(cell, work)) for work in ("inference", "training"))
        expected = {"y": once.layer(once.x)[0]}
        for level in vector_levels():
            with settings(level=level):
                run = frozen_run(once, f"{level} {cell} inference")
            for entry in (run, training(thrice, f"{level} {cell} training")):
                entry.expected = expected
                entry.answers = _only(("y",), entry.answers)
                entry.around = partial(settings, level=level)
                entries.append(entry)
    return entries


# ---- Memory --------------------------------------------------------------------------------------


def tape_bytes(problem: Problem, checkpoint: int | None) -> int:
    """Return what the tape of one call holds beside the copy of x."""
    tape = problem.layer.forward(problem.x, checkpoint=checkpoint)[2]
    return tape.nbytes - problem.x.nbytes


def tape_values(cell: str) -> float:
    """Return the values that a tape holds per unit, row and step: what a longer call adds."""
    T, B, I, H = 8, 3, 5, 16
    layer = TAPE_CELLS[cell](I, H, seed=0)
    held: list[int] = [
        layer.forward(np.zeros((steps, B, I), np.float32))[2].nbytes - 4 * steps * B * I
        for steps in (T, 2 * T)
    ]
    return (held[1] - held[0]) / (4 * T * B * H)
