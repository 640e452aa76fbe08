"""What the benchmark says: lines while it runs, then a CSV, a Markdown page and a picture.

The targets stand here as data, one entry for each row of the table that they are printed as.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cases import LAYERS, PEAK, SHAPES, STEP_SHAPES, Case, Choice, Memory, Result, Shape, cases
from peers import OPPONENTS, PEERS

import rnncore as rc

NOISE = 0.03  # what a floor of 1.0 allows
LOSING_LINES = 40
BUSY_LOAD = 0.5  # other work at the start, in cores, from which on the page warns
CSV_HEAD = (
    "suite", "work", "cell", "T", "B", "I", "H", "dtype", "threads",
    "contestant", "flops", "round", "seconds",
)  # fmt: skip


# ---- Targets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A promise about ratios: one for every shape, one for their geometric mean."""

    work: str
    peer: str
    every: float
    mean: float
    suite: str = "grid"

    @property
    def label(self) -> str:
        """The row's name."""
        return self.work if self.suite in ("grid", "step") else f"{self.work}, {self.suite}"

    def met(self, ratio: float) -> bool:
        """Whether one shape's ratio is enough."""
        return ratio >= self.every - (NOISE if self.every == 1.0 else 0.0)


TARGETS = (
    Target("training", "torch", 1.0, 4.0),
    Target("training", "jax", 1.15, 2.2),
    Target("inference", "torch", 1.0, 3.5),
    Target("inference", "onnxruntime", 1.0, 1.9),
    Target("inference", "openvino", 1.0, 1.5),
    Target("training", "torch", 1.3, 3.0, "float64"),
    Target("training", "torch", 2.0, 5.0, "ragged"),
    Target("training", "torch", 1.1, 3.0, "bidirectional"),
    Target("step", "onnxruntime", 1.3, 4.0, "step"),
)


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


@dataclass(frozen=True)
class Check:
    """A promise held against what was found."""

    name: str
    found: float
    needed: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.found <= self.needed if self.at_most else self.found >= self.needed

    @property
    def row(self) -> list[str]:
        """Its cells in a table."""
        bound = f"{'at most' if self.at_most else 'at least'} {self.needed:g}"
        return [self.name, f"{self.found:.2f}", bound, verdict(self.met)]


def verdict(met: bool) -> str:
    """Say it in a word."""
    return "met" if met else "**missed**"


def geometric_mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(ratios))))


def ours(case: Case) -> str:
    """Return our contestant that stands for the case in a table."""
    return "frozen" if case.work == "step" else "rnncore"


def rivals(result: Result) -> list[str]:
    """Return the peers that were timed."""
    return [peer for peer in PEERS if peer in result.seconds and OPPONENTS[peer] in result.seconds]


def ratios(results: Iterable[Result], target: Target, threads: int) -> list[tuple[float, Case]]:
    """Return the ratio of every case that a target speaks of."""
    return [
        (result.ratio(target.peer, OPPONENTS[target.peer]), result.case)
        for result in results
        if (result.case.suite, result.case.work) == (target.suite, target.work)
        and result.case.threads == threads
        and target.peer in rivals(result)
    ]


def target_rows(results: Sequence[Result]) -> Iterator[list[str]]:
    """Yield the table of targets: what each needs, what was found, met or missed."""
    for target in TARGETS:
        for threads in thread_counts(results):
            named = cases(target.suite, Choice(list(LAYERS), None, [threads]))
            named = [case for case in named if case.work == target.work]
            # Shapes that the user brought are shown elsewhere; the promise does not speak of them.
            found = [pair for pair in ratios(results, target, threads) if pair[1] in named]
            if not found:
                continue
            worst, case = min(found, key=lambda pair: pair[0])
            below = sum(not target.met(ratio) for ratio, _ in found)
            mean = geometric_mean([ratio for ratio, _ in found])
            yield [
                target.label,
                target.peer,
                str(threads),
                f"{len(found)} of {len(named)}",
                f"{worst:.2f} ({case.cell} {case.shape})",
                f"{target.every:g}",
                verdict(not below) + (f" ({below} below)" if below else ""),
                f"{mean:.2f}",
                f"{target.mean:g}",
                verdict(mean >= target.mean),
            ]


TARGET_HEAD = (
    "work", "against", "threads", "cases", "worst", "needed", "", "mean", "needed", "",
)  # fmt: skip


def share_checks(results: Iterable[Result]) -> Iterator[Check]:
    """Hold the share of the peak against what was promised."""
    wanted = {share.shape: share for share in SHARES}
    for result in results:
        case = result.case
        if case.suite != "grid" or case.shape not in wanted or case.cell == "rnn":
            continue
        name = "frozen" if case.work == "inference" else "rnncore"
        needed = getattr(wanted[case.shape], case.work)
        label = f"share of peak, {case.work}, {case.cell} {case.shape}, {case.threads} thread(s)"
        yield Check(label, result.share(name), needed)


def own_checks(results: Iterable[Result]) -> Iterator[Check]:
    """Hold the suites in which rnncore races itself against what was promised."""
    for result in results:
        case = result.case
        label = f"{case.work}, {case.cell} {case.shape}"
        if case.suite == "denormals":
            for name in ("rnncore", "torch"):
                title = f"{name}: denormals over ordinary, {label}"
                yield from _race(title, result, name, f"{name} (ordinary)", 1.5, at_most=True)
        elif case.suite == "sweep":
            found, rows = sweep_dip(result)
            place = f"{case.work}, {case.cell}, {case.threads} thread(s), worst at B = {rows}"
            yield Check(f"throughput per row over its neighbours', {place}", found, 0.7)
        elif case.suite == "scaling":
            few, many = f"threads={case.threads}", f"threads={4 * case.threads}"
            if case.shape == Shape(100, 1, 256, 512):
                yield from _race(f"gain of {few}, {label}", result, "threads=1", few, 1.5)
            for name, most in ((few, 1.05), (many, 2.0)):
                title = f"time of {name} over one, {label}"
                yield from _race(title, result, name, "threads=1", most, at_most=True)


def _race(
    title: str, result: Result, over: str, under: str, needed: float, *, at_most: bool = False
) -> Iterator[Check]:
    """Yield the check of one time over another; none when one of the two was not timed."""
    if over in result.seconds and under in result.seconds:
        yield Check(title, result.ratio(over, under), needed, at_most)


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


# ---- Text ----------------------------------------------------------------------------------------


def machine(command: str, cores: int, present: Sequence[str], absent: Sequence[str]) -> str:
    """Return what was run, and on what."""
    config = rc.show_config(mode="dicts")
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", *present))
    lines = [
        f"command: {command}",
        f"processor: {processor()}, {cores} usable core(s) of {os.cpu_count()}",
        f"rnncore {config['version']}, level {config['level']} of {', '.join(config['levels'])}",
        f"Python {platform.python_version()}, {packages}",
        f"system: {platform.system()} {platform.machine()}",
    ]
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        lines.append(f"WARNING: the machine is busy: load average {load:.1f} at the start")
    if absent:
        lines.append(f"not installed, so not timed: {', '.join(absent)}")
    return "\n".join(lines)


def processor() -> str:
    """Return the processor's name."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for entry in table.read_text(encoding="utf-8").splitlines():
            if entry.startswith("model name"):
                return entry.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def line(result: Result) -> str:
    """Say one result while the run goes on."""
    parts = [result.case.label + ":"]
    if result.case.suite == "sweep":
        dip, rows = sweep_dip(result)
        parts.append(f"throughput per row at worst {dip:.2f} of its neighbours', at B = {rows}")
    names = [name for name in result.seconds if name != PEAK and not name.startswith("B=")]
    for name in names:
        parts.append(f"{name} {duration(result.median(name))} ({result.share(name):.0%})")
    parts += [f"x{result.ratio(peer, OPPONENTS[peer]):.2f} {peer}" for peer in rivals(result)]
    parts += [f"REFUSED {name}: {why}" for name, why in result.refused.items()]
    parts.append(f"[{len(result.seconds[PEAK])} rounds]")
    return "  ".join(parts)


def memory_line(memory: Memory) -> str:
    """Say what one process took."""
    mib = 2**20
    return (
        f"{memory.case.label}: {memory.name} peak {memory.peak / mib:.0f} MiB, "
        f"{(memory.peak - memory.before) / mib:.0f} MiB over the arrays and the import"
    )


def duration(seconds: float) -> str:
    """Write a time in the unit that fits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def losing_rows(results: Iterable[Result]) -> list[list[str]]:
    """Return every case where a peer is faster, the worst first."""
    found = [
        (result.ratio(peer, OPPONENTS[peer]), peer, result.case)
        for result in results
        for peer in rivals(result)
    ]
    lost = sorted((entry for entry in found if entry[0] < 1), key=lambda entry: entry[0])
    return [[f"{ratio:.2f}", peer, case.label] for ratio, peer, case in lost]


def refused_rows(results: Iterable[Result]) -> list[list[str]]:
    """Return who was not timed, and why."""
    return [
        [name, result.case.label, why.splitlines()[0]]
        for result in results
        for name, why in result.refused.items()
    ]


def detail_rows(results: Sequence[Result]) -> Iterator[list[str]]:
    """Yield the rows of one suite and work: our time, rate and share, then the ratios."""
    for result in results:
        name = ours(result.case)
        row = [str(result.case.threads), result.case.cell, str(result.case.shape)]
        for own in dict.fromkeys((name, "frozen")):
            if own in result.seconds:
                row += [
                    f"{duration(result.median(own))} (best {duration(result.best(own))})",
                    f"{result.rate(own):.1f}",
                    f"{result.share(own):.0%}",
                ]
        for peer in columns(results):
            timed = peer in rivals(result)
            row.append(f"{result.ratio(peer, OPPONENTS[peer]):.2f}" if timed else "-")
        yield row


def columns(results: Iterable[Result]) -> list[str]:
    """Return the peers that a table has columns for."""
    timed = {peer for result in results for peer in rivals(result)}
    return [peer for peer in PEERS if peer in timed]


def thread_counts(results: Iterable[Result]) -> list[int]:
    """Return the thread counts that were run."""
    return sorted({result.case.threads for result in results})


def peak_lines(results: Sequence[Result]) -> Iterator[str]:
    """Say the peak of every thread count and type, as the median over the cases."""
    kinds = sorted({(result.case.threads, result.case.dtype) for result in results})
    for threads, dtype in kinds:
        rates = [
            result.rate(PEAK)
            for result in results
            if (result.case.threads, result.case.dtype) == (threads, dtype)
        ]
        yield (
            f"peak, {dtype}, {threads} thread(s): {np.median(rates):.1f} GFLOP/s "
            f"(a large matrix product by NumPy's BLAS; median of {len(rates)} cases, "
            f"{min(rates):.1f} to {max(rates):.1f})"
        )


def summary(results: Sequence[Result]) -> str:
    """Return the targets, the other promises and the losing rows."""
    parts = ["\n".join(peak_lines(results))]
    rows = list(target_rows(results))
    if rows:
        parts.append("## Targets\n\n" + table(TARGET_HEAD, rows))
    checks = [*share_checks(results), *own_checks(results)]
    if checks:
        head = ("promise", "found", "needed", "")
        parts.append("## Other promises\n\n" + table(head, [check.row for check in checks]))
    lost = losing_rows(results)
    shown = "Nowhere." if any(map(rivals, results)) else "No peer was timed."
    if lost:
        shown = table(("ratio", "against", "case"), lost[:LOSING_LINES])
    more = f"\n\nand {len(lost) - LOSING_LINES} more" if len(lost) > LOSING_LINES else ""
    parts.append(f"## Where rnncore loses\n\n{shown}{more}")
    refused = refused_rows(results)
    if refused:
        parts.append("## Not timed\n\n" + table(("who", "case", "why"), refused))
    return "\n\n".join(parts)


def markdown(machine: str, results: Sequence[Result], memory: Sequence[Memory]) -> str:
    """Return the whole page."""
    parts = ["# rnncore beside its peers", f"```text\n{machine}\n```", summary(results)]
    kinds = dict.fromkeys((result.case.suite, result.case.work) for result in results)
    for suite, work in kinds:
        if suite in ("denormals", "sweep", "scaling"):
            continue
        mine = [r for r in results if (r.case.suite, r.case.work) == (suite, work)]
        parts.append(_detail(suite, work, mine))
    if memory:
        parts.append("## Memory\n\n```text\n" + "\n".join(map(memory_line, memory)) + "\n```")
    return "\n\n".join(parts) + "\n"


def _detail(suite: str, work: str, results: Sequence[Result]) -> str:
    owns = ["layer(x)", "frozen run"] if work == "inference" else [work]
    head = ["threads", "cell", "T,B,I,H"]
    for own in owns:
        head += [own, "GFLOP/s", "of peak"]
    head += [f"x {peer}" for peer in columns(results)]
    title = "streaming steps" if suite == "step" else f"{suite}, {work}"
    note = "Ratios are peer time / our time, medians of paired rounds."
    if work == "inference":
        note += " PyTorch and JAX race `layer(x)`, the others `layer.freeze(B).run(x)`."
    return f"## {title.capitalize()}\n\n{note}\n\n{table(head, detail_rows(results))}"


# ---- Files ---------------------------------------------------------------------------------------


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """Write every sample: seconds per call, by contestant and round."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEAD)
        for result in results:
            case = result.case
            key = (case.suite, case.work, case.cell, *case.shape, case.dtype, case.threads)
            for name, times in result.seconds.items():
                for turn, seconds in enumerate(times):
                    writer.writerow((*key, name, int(result.flops[name]), turn, f"{seconds:.9g}"))


def draw(path: Path, results: Sequence[Result]) -> str:
    """Draw the ratios of every target, one plot each; return what was done."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed"
    found = [
        (target, threads, ratios(results, target, threads))
        for target in TARGETS
        for threads in thread_counts(results)
    ]
    found = [entry for entry in found if entry[2]]
    if not found:
        return "no picture: no case was timed beside a peer"
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    wide = min(4, len(found))
    tall = -(-len(found) // wide)
    figure, grid = plt.subplots(
        tall, wide, figsize=(4.2 * wide, 3.4 * tall), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(found) :]:
        axes.remove()
    for axes, (target, threads, pairs) in zip(grid.flat, found, strict=False):
        _draw_target(axes, target, threads, pairs)
    figure.suptitle("peer time / rnncore time (above 1: rnncore is faster)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"drew {path}"


def _draw_target(
    axes: Any, target: Target, threads: int, pairs: Sequence[tuple[float, Case]]
) -> None:
    order = list(dict.fromkeys(case.shape for _, case in pairs))
    order.sort(key=lambda shape: _place(shape))
    for marker, cell in zip("osD", LAYERS, strict=True):
        points = [(order.index(case.shape), r) for r, case in pairs if case.cell == cell]
        if points:
            axes.plot(*zip(*points, strict=True), marker, label=cell, markersize=5, alpha=0.8)
    mean = geometric_mean([ratio for ratio, _ in pairs])
    axes.axhline(1, color="black", linewidth=1)
    axes.axhline(mean, color="tab:gray", linestyle=":", label=f"mean {mean:.2f}")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(range(len(order)), [str(shape) for shape in order], rotation=40, ha="right")
    axes.tick_params(labelsize=7)
    axes.set_title(f"{target.label} / {target.peer}, {threads} thread(s)", fontsize=9)
    axes.legend(fontsize=7)


def _place(shape: Shape) -> tuple[int, Shape]:
    known = (*SHAPES, *STEP_SHAPES)
    return (known.index(shape) if shape in known else len(known), shape)
