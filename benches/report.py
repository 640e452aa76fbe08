"""What the benchmark says: lines while it runs, then a CSV, a Markdown page and a picture."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cases import LAYERS, PEAK, SHAPES, STEP_SHAPES, Case, Memory, Result, Shape
from peers import PEERS
from targets import (
    OPPONENTS,
    Check,
    Finding,
    Target,
    checks,
    findings,
    geometric_mean,
    memory_checks,
    ratios,
    rivals,
    sweep_dip,
    targets,
    thread_counts,
)

import rnncore as rc

LOSING_LINES = 40
README_LINES = 3  # cases that the README names as lost
COLOURS = 32
# Suites that have a table of their own; the others are said in lines.
TABLED = ("grid", "float64", "ragged", "bidirectional", "step")
MARKERS = ("<!-- bench -->\n", "<!-- /bench -->\n")
BUSY_LOAD = 0.5  # other work at the start, in cores, from which on the page warns
CSV_HEAD = (
    "suite", "work", "cell", "T", "B", "I", "H", "num_layers", "bidirectional", "dtype", "threads",
    "level", "contestant", "flops", "round", "seconds",
)  # fmt: skip


# ---- Tables of promises --------------------------------------------------------------------------


def verdict(met: bool) -> str:
    """Say it in a word."""
    return "met" if met else "**missed**"


TARGET_HEAD = (
    "work", "against", "threads", "cases", "worst", "needed", "", "mean", "needed", "",
)  # fmt: skip


def target_rows(found: Iterable[Finding]) -> Iterator[list[str]]:
    """Yield the table of targets: what each needs, what was found, met or missed."""
    for one in found:
        target, (worst, case) = one.target, one.worst
        yield [
            target.label,
            target.peer,
            str(one.threads),
            f"{len(one.pairs)} of {one.named}",
            f"{worst:.2f} ({case.cell} {case.shape})",
            f"{target.every:g}",
            verdict(not one.below) + (f" ({one.below} below)" if one.below else ""),
            f"{one.mean:.2f}",
            f"{target.mean:g}",
            verdict(one.mean >= target.mean),
        ]


PROMISE_HEAD = ("promise", "cases", "worst", "needed", "")
CHECK_HEAD = ("promise", "case", "found", "needed", "")


def promise_rows(found: Iterable[Check]) -> Iterator[list[str]]:
    """Yield one row for all checks of one promise: the worst of them, and how many are missed."""
    groups: dict[tuple[str, float], list[Check]] = {}
    for check in found:
        groups.setdefault((check.promise, check.needed), []).append(check)
    for group in groups.values():
        worst = (max if group[0].at_most else min)(group, key=lambda check: check.found)
        missed = sum(not check.met for check in group)
        count = f" ({missed} of {len(group)})" if missed else ""
        where = f"{worst.found:.2f}{worst.unit} ({worst.place})"
        yield [worst.promise, str(len(group)), where, worst.bound, verdict(not missed) + count]


def check_rows(found: Iterable[Check]) -> Iterator[list[str]]:
    """Yield a row for each check."""
    for check in found:
        number = f"{check.found:.2f}{check.unit}"
        yield [check.promise, check.place, number, check.bound, verdict(check.met)]


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


def ours(case: Case) -> str:
    """Return our contestant that stands for the case in a table."""
    return "frozen" if case.work == "step" else "rnncore"


def line(result: Result) -> str:
    """Say one result while the run goes on."""
    parts = [result.case.label + ":"]
    if result.skipped:
        return f"{parts[0]} SKIPPED: {result.skipped}"
    if result.case.suite == "sweep":
        dip, rows = sweep_dip(result)
        parts.append(f"throughput per row at worst {dip:.2f} of its neighbours', at B = {rows}")
    names = [name for name in result.seconds if name != PEAK and not name.startswith("B=")]
    for name in names:
        parts.append(f"{name} {duration(result.median(name))} ({result.share(name):.0%})")
    if "bfloat16" in result.errors:
        parts.append(f"bfloat16 off by {result.errors['bfloat16']:.1e} of the largest value")
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
        + (f", tape {memory.tape / mib:.0f} MiB beside the copy of x" if memory.tape else "")
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
        for name, why in ({"all": result.skipped} if result.skipped else result.refused).items()
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


def peak_lines(results: Sequence[Result]) -> Iterator[str]:
    """Say the peak of every thread count and type, as the median over the cases."""
    measured = [result for result in results if PEAK in result.seconds and not result.case.level]
    kinds = sorted({(result.case.threads, result.case.dtype) for result in measured})
    for threads, dtype in kinds:
        rates = [
            result.rate(PEAK)
            for result in measured
            if (result.case.threads, result.case.dtype) == (threads, dtype)
        ]
        yield (
            f"peak, {dtype}, {threads} thread(s): {np.median(rates):.1f} GFLOP/s "
            f"(multiply-adds in registers; median of {len(rates)} cases, "
            f"{min(rates):.1f} to {max(rates):.1f})"
        )


def all_checks(results: Iterable[Result], memory: Sequence[Memory]) -> list[Check]:
    """Return every number with a bound."""
    return [*checks(results, rc.get_level()), *memory_checks(memory)]


def summary(results: Sequence[Result], memory: Sequence[Memory]) -> str:
    """Return the targets, the other promises and the losing rows."""
    parts = ["\n".join(f"- {said}" for said in peak_lines(results))]
    rows = list(target_rows(findings(results)))
    if rows:
        parts.append("## Targets\n\n" + table(TARGET_HEAD, rows))
    found = all_checks(results, memory)
    if found:
        parts.append("## Other promises\n\n" + table(PROMISE_HEAD, promise_rows(found)))
    missed = [check for check in found if not check.met]
    if missed:
        parts.append("## Missed among them\n\n" + table(CHECK_HEAD, check_rows(missed)))
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
    parts = ["# rnncore beside its peers", _block([machine]), summary(results, memory)]
    kinds = dict.fromkeys((result.case.suite, result.case.work) for result in results)
    for suite, work in kinds:
        if suite in TABLED:
            mine = [r for r in results if (r.case.suite, r.case.work) == (suite, work)]
            parts.append(_detail(suite, work, mine))
    alone = [line(result) for result in results if result.case.suite not in TABLED]
    if alone:
        parts.append("## Beside itself\n\n" + _block(alone))
    if memory:
        parts.append("## Memory\n\n" + _block(map(memory_line, memory)))
    found = all_checks(results, memory)
    if found:
        parts.append("## Every number with a bound\n\n" + table(CHECK_HEAD, check_rows(found)))
    return "\n\n".join(parts) + "\n"


def _block(lines: Iterable[str]) -> str:
    return "```text\n" + "\n".join(lines) + "\n```"


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


# ---- The README ----------------------------------------------------------------------------------


def readme_section(
    machine: str, results: Sequence[Result], memory: Sequence[Memory], picture: str | None
) -> str:
    """Return what the README says of a run: the command, the machine, and the tables in short."""
    parts = [_block([machine, *peak_lines(results)])]
    rows = list(target_rows(findings(results)))
    if rows:
        parts.append(table(TARGET_HEAD, rows))
    compared = [result.ratio(p, OPPONENTS[p]) for result in results for p in rivals(result)]
    lost = losing_rows(results)
    if compared:
        text = f"A peer is faster in {len(lost)} of {len(compared)} comparisons"
        some = "; ".join(f"{ratio}, {peer}, {label}" for ratio, peer, label in lost[:README_LINES])
        parts.append(f"{text}: {some}." if lost else f"{text}.")
    found = all_checks(results, memory)
    if found:
        parts.append(table(PROMISE_HEAD, promise_rows(found)))
    if picture:
        parts.append(f"![peer time / rnncore time, shape by shape]({picture})")
    return "\n\n".join(parts)


def between_markers(text: str, section: str) -> str:
    """Return a page with the section in the place of what stands between its markers."""
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected one {begin.strip()} and, below it, one {end.strip()}")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{section}\n\n{end}{rest.split(end)[1]}"


# ---- Files ---------------------------------------------------------------------------------------


def case_key(case: Case) -> tuple[object, ...]:
    """Return the columns that tell a case from every other; an empty level is the one in use."""
    stack = (case.num_layers, int(case.bidirectional))
    what = (case.suite, case.work, case.cell)
    return (*what, *case.shape, *stack, case.dtype, case.threads, case.level)


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """Write every sample: seconds per call, by contestant and round."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEAD)
        for result in results:
            key = case_key(result.case)
            for name, times in result.seconds.items():
                for turn, seconds in enumerate(times):
                    writer.writerow((*key, name, int(result.flops[name]), turn, f"{seconds:.9g}"))


def draw(path: Path, results: Sequence[Result]) -> str:
    """Draw the ratios of every target, one plot each; return what was done."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed"
    found = [
        (target, threads, ratios(results, target, threads))
        for target in targets()
        if target.peer in PEERS
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
    fewer_colours(path)
    return f"drew {path}"


def fewer_colours(path: Path) -> None:
    """Make a picture that is kept in the repository a fifth of its bytes."""
    image = importlib.import_module("PIL.Image").open(path).convert("RGB")
    image.quantize(COLOURS).save(path, optimize=True)


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
