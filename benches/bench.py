"""Time rnncore beside PyTorch, JAX, ONNX Runtime and OpenVINO, interleaved, answers proved first.

    make bench                                              everything; 30 to 40 minutes
    make bench ARGS=--quick                                 the same cases, fewer rounds
    make bench ARGS="--suites grid --cells lstm --threads 1"
    python benches/bench.py --help                          in an environment that has the peers

In each round of a case every contestant is timed once, in an order drawn anew, so that whatever
else the machine does meets all of them alike. A ratio is the median over the rounds
of the peer's time divided by ours in the same round. A contestant whose answers differ from ours is
named and not timed.

Each thread count has a process of its own, pinned to as many cores, with every framework told so;
this process only starts them and writes down what they say.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import peers
import report
from cases import LAYERS, SUITES, Case, Choice, Memory, Result, Shape, cases
from race import time_case, train_memory

ROOT = Path(__file__).parents[1]
PICTURE = "docs/bench.png"  # where the README shows it
SECONDS = 2.0
QUICK_SECONDS = 0.3


# ---- Worker processes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """On what terms cases are timed: beside whom, for how long, and a program to race."""

    peers: Sequence[str]
    seconds: float
    prototype: str | None


def worker() -> int:
    """Read a job from standard input; write one line of JSON for each case."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    job = json.load(sys.stdin)
    terms = Terms(**job["terms"])
    for packed in job["cases"]:
        case = unpack_case(packed)
        if case.suite == "memory":
            answer: Result | Memory = train_memory(case, terms.peers[0])
        else:
            answer = time_case(case, terms.peers, terms.seconds, terms.prototype)
        print(json.dumps(asdict(answer)), file=out, flush=True)
    return 0


def unpack_case(packed: dict[str, Any]) -> Case:
    """Return the case of its JSON form."""
    return Case(**{**packed, "shape": Shape(*packed["shape"])})


def environment(threads: int) -> dict[str, str]:
    """Return the environment in which every framework has so many threads."""
    names = ("OMP", "OPENBLAS", "MKL", "RNNCORE")
    eigen = "true" if threads > 1 else "false"
    return {
        **os.environ,
        **{f"{name}_NUM_THREADS": str(threads) for name in names},
        # Threads that wait for a BLAS call would take the next contestant's cores.
        "OPENBLAS_THREAD_TIMEOUT": "14",
        # ONNX Runtime reports its use over the network unless told not to, on a thread of its own.
        "ORT_DISABLE_TELEMETRY": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={threads}",
    }


def usable_cores() -> list[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def pinned(count: int) -> Iterator[None]:
    """Pin this process, and so what it starts, to its last cores, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def ask(jobs: Sequence[Case], terms: Terms) -> Iterator[Any]:
    """Run cases of one thread count in a process of their own; yield its answers as they come."""
    threads = jobs[0].threads
    with pinned(threads):
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(threads),
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        job = {"cases": [asdict(case) for case in jobs], "terms": asdict(terms)}
        json.dump(job, process.stdin)
        process.stdin.close()
        for line in process.stdout:
            packed = json.loads(line)
            yield {**packed, "case": unpack_case(packed["case"])}
    if process.returncode != 0:
        # What the others found is kept; the cases that lack make the exit status.
        print(f"a worker of {threads} thread(s) ended with {process.returncode}", file=sys.stderr)


def time_all(todo: Sequence[Case], terms: Terms, log: TextIO) -> tuple[list[Result], list[Memory]]:
    """Run every case; say each result as it comes."""
    results: list[Result] = []
    memory: list[Memory] = []
    timed = [case for case in todo if case.suite != "memory"]
    for threads in sorted({case.threads for case in timed}):
        left = [case for case in timed if case.threads == threads]
        while left:
            for packed in ask(left, terms):
                results.append(Result(**packed))
                left.remove(results[-1].case)
                place = f"[{len(results)}/{len(timed)}]"
                print(place, report.line(results[-1]), file=log, flush=True)
            # Whatever ended a worker, it was in the case that comes next: go on behind it.
            left = left[1:]
    for case in (case for case in todo if case.suite == "memory"):
        others = [peer for peer in peers.rivals(case) if peer in terms.peers]
        for name in (*case.distances, *others):
            for packed in ask([case], replace(terms, peers=[name])):
                memory.append(Memory(**packed))
                print(report.memory_line(memory[-1]), file=log, flush=True)
    return results, memory


# ---- The command ---------------------------------------------------------------------------------


def shape(text: str) -> Shape:
    """Read T,B,I,H."""
    try:
        found = Shape(*(int(word) for word in text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected T,B,I,H, got {text!r}") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected positive sizes, got {text!r}")
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cells", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    add("--shapes", nargs="+", type=shape, metavar="T,B,I,H", help="default: all of each suite")
    cores = len(usable_cores())
    usual = [threads for threads in (1, 2) if threads <= cores]
    add("--threads", nargs="+", type=int, default=usual, help="default: 1 2")
    add("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    add("--peers", nargs="*", choices=list(peers.PEERS), help="default: those installed")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"per case; default: {SECONDS:g}"
    )
    length.add_argument(
        "--quick",
        dest="seconds",
        action="store_const",
        const=QUICK_SECONDS,
        help=f"the same as --seconds {QUICK_SECONDS:g}: noisier, for a look",
    )
    add("--prototype", metavar="PROGRAM", help="a program that times itself: see prototype.py")
    add("--readme", action="store_true", help=f"put the tables in README.md, and {PICTURE}")
    add("--out", type=Path, default=Path("target/bench"), help="folder; default: target/bench")
    options = parser.parse_args()
    if not 1 <= min(options.threads) <= max(options.threads) <= cores:
        parser.error(f"--threads: expected 1 to {cores}, the usable cores, got {options.threads}")
    lacking = {peer: peers.missing(peer) for peer in options.peers or peers.PEERS}
    lacking = {peer: modules for peer, modules in lacking.items() if modules}
    if options.peers and lacking:
        parser.error(f"--peers: not installed: {lacking}")
    options.absent = sorted(lacking)
    if options.peers is None:
        options.peers = [peer for peer in peers.PEERS if peer not in lacking]
    return options


def main() -> int:
    """Time what was asked for, write it down, and return the exit status."""
    options = arguments()
    choice = Choice(options.cells, options.shapes, options.threads, options.prototype is not None)
    todo = [case for suite in options.suites for case in cases(suite, choice)]
    if not todo:
        print("no case is left: the options exclude each other", file=sys.stderr)
        return 2
    words = [Path(word).name if word == options.prototype else word for word in sys.argv[1:]]
    command = shlex.join(["python", "benches/bench.py", *words])
    machine = report.machine(command, len(usable_cores()), options.peers, options.absent)
    print(machine, flush=True)
    if "prototype" in options.suites and not options.prototype:
        print("not timed: the suite prototype, which needs --prototype PROGRAM")
    print(f"{len(todo)} cases", flush=True)
    terms = Terms(options.peers, options.seconds, options.prototype)
    results, memory = time_all(todo, terms, sys.stdout)
    options.out.mkdir(parents=True, exist_ok=True)
    report.write_csv(options.out / "bench.csv", results)
    text = report.markdown(machine, results, memory)
    (options.out / "bench.md").write_text(text, encoding="utf-8")
    print(report.summary(results, memory))
    print(f"wrote bench.csv and bench.md in {options.out}")
    picture = options.out / "bench.png"
    print(report.draw(picture, results))
    if options.readme:
        write_readme(machine, results, memory, picture)
    complete = len({*(r.case for r in results), *(m.case for m in memory)}) == len(todo)
    return 0 if complete and not any(result.refused for result in results) else 1


def write_readme(
    machine: str, results: Sequence[Result], memory: Sequence[Memory], picture: Path
) -> None:
    """Put the tables of a run, and its picture, into the README of this checkout."""
    shown = None
    if picture.exists():
        shown = PICTURE
        (ROOT / PICTURE).parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, ROOT / PICTURE)
    page = ROOT / "README.md"
    section = report.readme_section(machine, results, memory, shown)
    text = report.between_markers(page.read_text(encoding="utf-8"), section)
    page.write_text(text, encoding="utf-8")
    print(f"wrote README.md{' and ' + PICTURE if shown else ''}")


if __name__ == "__main__":
    sys.exit(worker() if sys.argv[1:] == ["--worker"] else main())
