"""Time rnncore beside PyTorch, JAX, ONNX Runtime and OpenVINO, interleaved, answers proved first.

    make bench                                              everything; half an hour
    make bench ARGS="--suites grid --cells lstm --threads 1"
    python benches/bench.py --help                          in an environment that has the peers

Every case is a round robin: in each round every contestant is timed once, in rotating order, so
that whatever else the machine does meets all of them alike. A ratio is the median over the rounds
of the peer's time divided by ours in the same round. A contestant whose answers differ from ours is
named and not timed.

Each thread count has a process of its own, pinned to as many cores, with every framework told so;
this process only starts them and writes down what they say.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import peers
import report
from cases import LAYERS, PEAK, SUITES, Case, Choice, Memory, Problem, Result, Shape, cases
from peers import Answers, Contestant

MIN_ROUNDS = 5
MAX_ROUNDS = 61
SAMPLE_SECONDS = 0.003  # a sample repeats a short call for about so long
LONG_CALL_SECONDS = 0.02  # from here on a call warms itself: no untimed call before a sample
CROWD = 7  # a case of more contestants has more time
PEAK_SIDE = 768


# ---- One case, in a worker -----------------------------------------------------------------------


def multiply_add_peak(case: Case) -> Contestant:
    """Return the probe whose rate stands for the machine's multiply-add peak; replaceable.

    It is a large matrix product by NumPy's BLAS on the case's threads: a GEMM figure, which lies
    some per cent under what the multiply-add units could do without memory.
    """
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, PEAK_SIDE, PEAK_SIDE)).astype(case.dtype)
    out = np.empty_like(a)
    return Contestant(PEAK, lambda: np.matmul(a, b, out=out), dict, 2.0 * PEAK_SIDE**3)


def disagreement(answers: Answers, expected: Answers, tolerance: float) -> str | None:
    """Return where answers leave the tolerance, None where they hold."""
    for name, want in expected.items():
        if name not in answers:
            return f"{name}: no answer"
        got = answers[name]
        if got.shape != want.shape:
            return f"{name}: shape {got.shape}, expected {want.shape}"
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        error = float(np.abs(got - want).max(initial=0)) / scale
        if not error <= tolerance:
            return f"{name}: off by {error:.1e} of the largest value, allowed {tolerance:.0e}"
    return None


def field(case: Case, peer_names: Sequence[str]) -> tuple[list[Contestant], dict[str, str]]:
    """Return the contestants that agree with ours, and why the others do not run."""
    problem = Problem(case)
    own = peers.contestants(problem, peer_names)
    expected = own[0].answers()
    agreed = own[:1]
    refused: dict[str, str] = {}

    def admit(name: str, make: Callable[[], Contestant]) -> None:
        # A peer may fail in any way of its own; that is a finding, not the end of the run.
        try:
            entry = make()
            wanted = expected if entry.expected is None else entry.expected
            fault = disagreement(entry.answers(), wanted, case.tolerance)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if fault is None:
            agreed.append(entry)
        else:
            refused[name] = fault

    for entry in own[1:]:
        admit(entry.name, lambda entry=entry: entry)  # type: ignore[misc]
    for peer in peers.rivals(case):
        if peer in peer_names:
            admit(peer, lambda peer=peer: peers.rival(problem, peer))  # type: ignore[misc]
    return agreed, refused


def quiesce() -> None:
    """Wait until the threads of the contestant before have stopped to spin, 50 ms at most."""
    for _ in range(50):
        busy = time.process_time()
        time.sleep(0.001)
        if time.process_time() - busy < 0.0003:
            return


def sample(entry: Contestant, calls: int, warm: bool) -> float:
    """Return the seconds of one call, averaged over so many."""
    if entry.prepare is not None:
        entry.prepare()
    quiesce()
    run = entry.run
    if warm:
        run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def measure(entries: Sequence[Contestant], seconds: float) -> dict[str, list[float]]:
    """Return seconds per call, round by round, within a budget that MIN_ROUNDS may exceed."""
    once = {entry.name: min(sample(entry, 1, True) for _ in range(2)) for entry in entries}
    calls = {name: max(1, int(SAMPLE_SECONDS / one)) for name, one in once.items()}
    warm = {name: one < LONG_CALL_SECONDS for name, one in once.items()}
    cost = sum(one * (calls[name] + warm[name]) + 0.001 for name, one in once.items())
    seconds *= max(1.0, len(entries) / CROWD)
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / cost)))
    times: dict[str, list[float]] = {entry.name: [] for entry in entries}
    gc.collect()
    gc.disable()
    for turn in range(rounds):
        first = turn % len(entries)
        for entry in (*entries[first:], *entries[:first]):
            times[entry.name].append(sample(entry, calls[entry.name], warm[entry.name]))
    gc.enable()
    return times


def time_case(case: Case, peer_names: Sequence[str], seconds: float) -> Result:
    """Prove and time one case."""
    entries, refused = field(case, peer_names)
    entries.append(multiply_add_peak(case))
    flops = {entry.name: entry.flops for entry in entries}
    return Result(case, measure(entries, seconds), flops, refused)


def train_memory(case: Case, name: str) -> Memory:
    """Train three times in this process and return what it took, at its peak."""
    problem = Problem(case)
    entry = peers.contestants(problem, [])[0] if name == "rnncore" else peers.rival(problem, name)
    before = resident_peak()
    for _ in range(3):
        entry.run()
    return Memory(case, name, before, resident_peak())


def resident_peak() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


# ---- Worker processes ----------------------------------------------------------------------------


def worker() -> int:
    """Read a job from standard input; write one line of JSON for each case."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    job = json.load(sys.stdin)
    for packed in job["cases"]:
        case = unpack_case(packed)
        if case.suite == "memory":
            answer: Result | Memory = train_memory(case, job["peers"][0])
        else:
            answer = time_case(case, job["peers"], job["seconds"])
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


def ask(jobs: Sequence[Case], peer_names: Sequence[str], seconds: float) -> Iterator[Any]:
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
        job = {"cases": [asdict(case) for case in jobs], "peers": peer_names, "seconds": seconds}
        json.dump(job, process.stdin)
        process.stdin.close()
        for line in process.stdout:
            packed = json.loads(line)
            yield {**packed, "case": unpack_case(packed["case"])}
    if process.returncode != 0:
        # What the others found is kept; the cases that lack make the exit status.
        print(f"a worker of {threads} thread(s) ended with {process.returncode}", file=sys.stderr)


def time_all(
    todo: Sequence[Case], peer_names: Sequence[str], seconds: float, log: TextIO
) -> tuple[list[Result], list[Memory]]:
    """Run every case; say each result as it comes."""
    results: list[Result] = []
    memory: list[Memory] = []
    timed = [case for case in todo if case.suite != "memory"]
    for threads in sorted({case.threads for case in timed}):
        mine = [case for case in timed if case.threads == threads]
        for packed in ask(mine, peer_names, seconds):
            results.append(Result(**packed))
            place = f"[{len(results)}/{len(timed)}]"
            print(place, report.line(results[-1]), file=log, flush=True)
    for case in (case for case in todo if case.suite == "memory"):
        for name in ("rnncore", *(peer for peer in peers.rivals(case) if peer in peer_names)):
            for packed in ask([case], [name], seconds):
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
    add("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    add("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    add("--peers", nargs="*", choices=list(peers.PEERS), help="default: those installed")
    add("--seconds", type=float, default=2.0, help="per case; default: 2")
    add("--out", type=Path, default=Path("target/bench"), help="folder; default: target/bench")
    options = parser.parse_args()
    cores = len(usable_cores())
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
    choice = Choice(options.cells, options.shapes, options.threads)
    todo = [case for suite in options.suites for case in cases(suite, choice)]
    if not todo:
        print("no case is left: the options exclude each other", file=sys.stderr)
        return 2
    command = shlex.join(["python", "benches/bench.py", *sys.argv[1:]])
    machine = report.machine(command, len(usable_cores()), options.peers, options.absent)
    print(machine, flush=True)
    print(f"{len(todo)} cases", flush=True)
    results, memory = time_all(todo, options.peers, options.seconds, sys.stdout)
    options.out.mkdir(parents=True, exist_ok=True)
    report.write_csv(options.out / "bench.csv", results)
    text = report.markdown(machine, results, memory)
    (options.out / "bench.md").write_text(text, encoding="utf-8")
    print(report.summary(results))
    print(f"wrote bench.csv and bench.md in {options.out}")
    print(report.draw(options.out / "bench.png", results))
    complete = len({*(r.case for r in results), *(m.case for m in memory)}) == len(todo)
    return 0 if complete and not any(result.refused for result in results) else 1


if __name__ == "__main__":
    sys.exit(worker() if sys.argv[1:] == ["--worker"] else main())
