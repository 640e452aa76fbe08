"""Time `import rnncore` over NumPy, in fresh interpreters, and fail when it takes too long.

The limit holds for processor time, which a busy machine does not change much; the time on the clock
is printed beside it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

RUNS = 15
LIMIT_MS = 15.0

PROGRAM = """
import numpy, time
clock, processor = time.perf_counter(), time.process_time()
import rnncore
print((time.process_time() - processor) * 1e3, (time.perf_counter() - clock) * 1e3)
"""


def measured() -> tuple[float, float]:
    """Return the milliseconds of one import, of the processor and on the clock."""
    # With the bytecode that every installation has, even where the caller writes none.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    program = [sys.executable, "-c", PROGRAM]
    processor, clock = subprocess.check_output(program, env=env).split()
    return float(processor), float(clock)


def main() -> str | None:
    """Return what is wrong, None when the median import is quick enough."""
    measured()  # compiles the bytecode
    processor, clock = map(statistics.median, zip(*(measured() for _ in range(RUNS)), strict=True))
    print(f"import rnncore over numpy, median of {RUNS}: {processor:.1f} ms, clock {clock:.1f} ms")
    if processor > LIMIT_MS:
        return f"expected at most {LIMIT_MS} ms"
    return None


if __name__ == "__main__":
    sys.exit(main())
