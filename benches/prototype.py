"""A program of one's own to race: it times LSTM and GRU by itself and prints rates.

Asked ``PROGRAM final N 5``, N being the place of a shape in ``cases.SHAPES``, it must print one
line with, for each level and cell, GFLOP/s: forward with packed weights, forward with a tape,
training; each the median of five rounds, since the first round of a process is a cold one.

    final (100, 32, 64, 128) peak 115.7/115.5 | a2 L: 72.6(63%,max73) 63.8(..) 71.3(..) a2 G: ...

``PROGRAM check`` proves its answers, and prints BAD where one is wrong.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from cases import SHAPES, Case, vector_levels
from contestant import Clock

ROUNDS = 5  # of its own, each time it is asked
LEVELS = {"a2": "avx2", "a5": "avx512"}
CELLS = {"L": "lstm", "G": "gru"}
RATE = r"([\d.]+)\([^)]*\)"
GROUP = re.compile(rf"(a2|a5) ([LG]): {RATE} {RATE} {RATE}")


def ask(program: str, *words: str) -> str:
    """Return what the program prints."""
    done = subprocess.run([program, *words], capture_output=True, text=True, check=True)
    return done.stdout


def rates(line: str) -> dict[str, float]:
    """Return the GFLOP/s of a printed line, by "level cell work"."""
    found = {}
    for level, cell, packed, _, training in GROUP.findall(line):
        name = f"{LEVELS[level]} {CELLS[cell]}"
        found[f"{name} inference"] = float(packed)
        found[f"{name} training"] = float(training)
    return found


def clock(case: Case, program: str) -> Clock:
    """Return the program as a contestant of a case; it proves its answers first."""
    if "BAD" in ask(program, "check"):
        raise RuntimeError(f"{program} check: its answers are wrong")
    place = str(SHAPES.index(case.shape))
    flops = {
        f"prototype {level} {cell} {work}": case.of(cell, work).flops()
        for level in vector_levels()
        for cell in CELLS.values()
        for work in ("inference", "training")
    }

    def read() -> Mapping[str, float]:
        found = rates(ask(program, "final", place, str(ROUNDS)))
        return {name: flops[name] / found[name.split(" ", 1)[1]] / 1e9 for name in flops}

    return Clock(flops, read)
