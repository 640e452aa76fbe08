"""Does it learn what the field says it can? Ten seeds of each task, beside the published figures.

    make tasks                                        every task, ten seeds: half an hour
    make tasks ARGS="--tasks copying --seeds 0 1 2"
    make tasks ARGS="--budget 2"                      twice the sequences for everyone
    python benches/tasks.py --help                    in an environment that has what it needs

What is learnt, how, and when it counts as solved is in ``learners.py``; the data are in
``sequences.py``. A seed that is done is written down at once, and not run again when the command is
given again: a long run can be cut into pieces. Written into ``--out`` are ``tasks.csv`` (every
seed), ``tasks-curves.csv``, ``tasks.png`` and ``tasks.md``, the page. A task that fails is shown as
failed and does not change the exit status, which is 1 where a task could not be run.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# One row after the other is short work: threads of a BLAS would only be in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import learners
import numpy as np
import report
from learners import Learner, Outcome

import rnncore as rc

ROOT = Path(__file__).parents[1]
SEEDS = 10
CURVE_POINTS = 60  # of each seed, kept
RESULT_HEAD = ("task", "seed", "budget", "solved", "figure", "sequences", "seconds", "version")
CURVE_HEAD = ("task", "seed", "sequences", "value")
PAGE_HEAD = (
    "task", "published", "figure", "ours: median (quartiles)", "after (quartiles)", "time",
    "solved", "",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    ``budget`` counts in ``unit``; ``figure`` says what the outcome's figure is, ``shape`` how it is
    written; ``fails`` marks a net that, as published, cannot do it.
    """

    name: str
    title: str
    learn: Learner
    budget: int
    protocol: str
    differences: str
    criterion: str
    published: str
    figure: str
    curve: str
    unit: str = "sequences"
    shape: str = "{:.4g}"
    fails: bool = False


# ---- The tasks -----------------------------------------------------------------------------------

_1997 = "Hochreiter and Schmidhuber 1997"
_ADAM = "Adam and mini-batches instead of one sequence at a time by gradient descent"
_MODERN = f"an LSTM with forget gates, biases by Tallec and Ollivier 2018; {_ADAM}"


def _adding(steps: int, budget: int, published: str, more: str = "") -> Task:
    return Task(
        f"adding-{steps}",
        f"Adding problem, T = {steps}",
        partial(learners.adding, steps=steps),
        budget,
        f"Experiment 4 of {_1997}: {steps} to {steps + steps // 10} steps of a number from [-1, 1] "
        "and a mark; two numbers are marked, one within the first ten steps, the other within the "
        f"first {steps // 2 - 1}; at the end their sum is asked for, as 0.5 + (X1 + X2) / 4. "
        "Sequences are drawn without end, none is seen twice.",
        f"16 units instead of two blocks of two cells; {_MODERN}; batches of 32; the rate 0.01 "
        f"falls with the error.{more}",
        "mean squared error below 0.01, and the 2000 latest sequences all within 0.04",
        published,
        "wrong of 2560 new ones",
        "mean squared error",
        shape="{:.0f}",
    )


_STREAMS = (
    "Gers, Schmidhuber and Cummins 2000: strings of the embedded Reber grammar, one behind the "
    "other and without a mark or a reset between them. A stream that is trained on ends where the "
    "net makes a mistake."
)
_STREAM_DIFFERENCES = (
    f"16 units; softmax over the next symbol; {_ADAM}: 16 streams side by side, 32 steps at a time "
    "with the state carried on; rate 0.005. A net is tested after every 128,000 symbols, first on "
    "2,000 symbols of ten streams."
)
_STREAM_CRITERION = (
    "ten new streams of 100,000 symbols without a mistake: the possible symbols are always the "
    "most active outputs"
)

TASKS = (
    Task(
        "embedded-reber",
        "Embedded Reber grammar",
        learners.embedded_reber,
        60_000,
        f"Experiment 1 of {_1997}: predict the next symbol of strings of the embedded Reber "
        "grammar; 256 strings to train on, 256 others to test.",
        f"12 units, with forget gates, instead of 3 or 4 blocks; softmax; {_ADAM}: batches of 4, "
        "rate 0.01. No test string is a training string. Looked at after every 256 strings.",
        "in all strings, of both sets, the possible symbols are always the most active outputs",
        f"after 8,440 to 39,740 sequences in 97 to 100 % of the trials, by size and rate ({_1997})",
        "sequences until solved",
        "share of test strings with a mistake",
        shape="{:,.0f}",
    ),
    _adding(100, 200_000, f"after 74,000 sequences; 1 of 2560 wrong ({_1997})"),
    _adding(
        400,
        200_000,
        f"T = 500: after 209,000 sequences; 0 of 2560 wrong ({_1997})",
        " The paper has T = 500; 400 is the length of later papers.",
    ),
    _adding(1000, 150_000, f"after 853,000 sequences; 1 of 2560 wrong ({_1997})"),
    Task(
        "temporal-order",
        "Temporal order, task 6a",
        learners.temporal_order,
        100_000,
        f"Experiment 6a of {_1997}: 100 to 110 symbols, among them X or Y at a place from 10 to 20 "
        "and again at one from 50 to 60; which of the four orders was it? Drawn without end.",
        f"16 units instead of two blocks of two cells; softmax; {_MODERN}; batches of 32; the rate "
        "0.01 falls with the error.",
        "mean error below 0.1, and in the 2000 latest sequences every output within 0.3",
        f"after 31,390 sequences; 1 of 2560 wrong ({_1997})",
        "wrong of 2560 new ones",
        "cross-entropy",
        shape="{:.0f}",
    ),
    Task(
        "continual-reber",
        "Continual Reber grammar, with forget gate",
        learners.continual_reber,
        2_000_000,
        _STREAMS,
        _STREAM_DIFFERENCES,
        _STREAM_CRITERION,
        "18 % of the trials solved at a constant rate, 62 % at a falling one (Gers et al. 2000)",
        "symbols before the first mistake",
        "symbols before the first mistake",
        unit="symbols",
        shape="{:,.0f}",
    ),
    Task(
        "continual-reber-1997",
        "Continual Reber grammar, without forget gate",
        partial(learners.continual_reber, forget=False),
        2_000_000,
        _STREAMS,
        f"{_STREAM_DIFFERENCES} The forget gate is held at 1: its bias is 50, its weights are 0, "
        "and in float32 its gradients are exactly 0.",
        _STREAM_CRITERION,
        "0 % of the trials solved (Gers et al. 2000)",
        "symbols before the first mistake",
        "symbols before the first mistake",
        unit="symbols",
        shape="{:,.0f}",
        fails=True,
    ),
    Task(
        "copying",
        "Copying, T = 100",
        learners.copying,
        200_000,
        "Arjovsky, Shah and Bengio 2016: ten symbols of eight kinds, 99 blanks, a sign, ten "
        "blanks; after the sign the symbols are to be repeated. Drawn without end.",
        "A GRU of 96 units, its update gate's biases log U(1, 120) (Tallec and Ollivier 2018); "
        "Adam instead of RMSprop, batches of 16, a rate of 0.006 that falls with the error. The "
        "paper draws curves and names no threshold.",
        "99 % of the symbols of 512 new sequences repeated",
        "a unitary net comes near 0 cross-entropy; an LSTM of 40 units beats the 0.173 of knowing "
        "nothing, and does not come near 0 (Arjovsky et al. 2016, figure 1)",
        "share of symbols repeated",
        "cross-entropy",
        shape="{:.3f}",
    ),
    Task(
        "digits",
        "8 x 8 digits, pixel by pixel",
        learners.digits,
        350,
        "scikit-learn's digits in its own order, first half to train and second half to test, as "
        "in its example of a classifier; a net reads the 64 pixels one by one.",
        "No paper states this task. A GRU of 96 units, its update gate's biases log U(1, 63) "
        "(Tallec and Ollivier 2018), dropout 0.2 on what it carries and 0.3 on its last output; "
        "images shifted by up to a pixel; AdamW with a weight decay of 0.1, batches of 32, a rate "
        "of 0.005 that falls to 0 along a cosine. The best of a dozen settings on the last quarter "
        "of the training half.",
        "as accurate as the support vector machine of scikit-learn's example, which sees all "
        "pixels at once: 0.969",
        "0.969 by a support vector machine on all pixels at once (scikit-learn's documentation)",
        "accuracy",
        "cross-entropy, training",
        unit="epochs",
        shape="{:.3f}",
    ),
    Task(
        "japanese-vowels",
        "JapaneseVowels",
        learners.japanese_vowels,
        40,
        "Kudo, Toyama and Shimbo 1999: nine men say two vowels, 7 to 29 steps of 12 coefficients; "
        "who is it? The 270 utterances to train and 370 to test of the archive.",
        "A bidirectional LSTM of 48 units, mean over time, dropout 0.2 and 0.5; Adam, batches of "
        "16, a rate of 0.005 that falls to 0 along a cosine.",
        "as accurate as the best of the paper: 0.962",
        "0.941 by the paper's method, 0.962 by a hidden Markov model (Kudo et al. 1999)",
        "accuracy",
        "cross-entropy, training",
        unit="epochs",
        shape="{:.3f}",
    ),
    Task(
        "sunspots",
        "Sunspots of the next year",
        learners.sunspots,
        200,
        "Weigend, Huberman and Rumelhart 1990: yearly sunspot numbers, trained up to 1920, said "
        "one year ahead for 1921 to 1955; mean squared error over 1535, the variance of 1700 to "
        "1979.",
        "A GRU of 16 units reads year after year, where the papers have a window of 12 years; "
        "roots of the numbers, noise on the input, AdamW; sizes chosen on 1881 to 1920 with other "
        "seeds, but after a dozen settings had been looked at on 1921 to 1955: the figure is "
        "flattered",
        "at most the 0.097 of the threshold autoregressive model",
        "0.097 by a threshold autoregressive model (Tong and Lim 1980), 0.086 by a net (Weigend et "
        "al. 1990)",
        "relative variance 1921-1955",
        "mean squared error, training",
        unit="updates",
        shape="{:.3f}",
    ),
    Task(
        "mackey-glass",
        "Mackey-Glass, six steps ahead",
        learners.mackey_glass,
        2000,
        "Jang 1993: delay 17, x(t + 6) to be said, t = 118 to 617 to train and the next 500 to "
        "test; root mean squared error over the standard deviation of the test part.",
        "A GRU of 32 units reads x(t) step by step, where the paper gives x(t), x(t - 6), x(t - "
        "12) and x(t - 18); Adam, windows of 60 steps in batches of 32, a rate of 0.01 that falls "
        "to 0.",
        "at most the 0.02 of a feed-forward net",
        "0.02 by a feed-forward net, 0.06 by cascade correlation, 0.007 by ANFIS (Jang 1993, "
        "table)",
        "relative error",
        "mean squared error, training",
        unit="updates",
        shape="{:.4f}",
    ),
)
BY_NAME = {task.name: task for task in TASKS}


# ---- Records -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One seed of one task, as it stands in the files."""

    task: str
    seed: int
    budget: int
    outcome: Outcome
    version: str = rc.__version__

    @property
    def row(self) -> tuple[Any, ...]:
        """The line of ``tasks.csv``."""
        one = self.outcome
        found = (int(one.solved), f"{one.figure:.9g}", one.sequences, f"{one.seconds:.3f}")
        return (self.task, self.seed, self.budget, *found, self.version)


class Notebook:
    """The records of a folder: read when it is opened, written after every seed.

    Parameters
    ----------
    folder
        Where ``tasks.csv`` and ``tasks-curves.csv`` are; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._results, self._curves = folder / "tasks.csv", folder / "tasks-curves.csv"
        self.records = {(one.task, one.seed): one for one in self._read()}

    def has(self, task: str, seed: int, budget: int) -> bool:
        """Whether a seed is done, with this budget."""
        found = self.records.get((task, seed))
        return found is not None and found.budget == budget

    def add(self, record: Record) -> None:
        """Take in a record, in place of one of the same seed, and write all of them down."""
        record.outcome.curve = thinned(record.outcome.curve)
        # Another process may have written since.
        self.records = {(one.task, one.seed): one for one in self._read()}
        self.records[record.task, record.seed] = record
        ordered = [self.records[key] for key in sorted(self.records)]
        write_rows(self._results, RESULT_HEAD, (one.row for one in ordered))
        write_rows(
            self._curves,
            CURVE_HEAD,
            ((one.task, one.seed, n, f"{v:.5g}") for one in ordered for n, v in one.outcome.curve),
        )

    def of(self, task: str) -> list[Record]:
        """Return the records of a task, by seed."""
        return [self.records[key] for key in sorted(self.records) if key[0] == task]

    def _read(self) -> Iterator[Record]:
        curves: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for line in read_rows(self._curves):
            key = line["task"], int(line["seed"])
            curves.setdefault(key, []).append((int(line["sequences"]), float(line["value"])))
        for line in read_rows(self._results):
            task, seed = line["task"], int(line["seed"])
            outcome = Outcome(
                line["solved"] == "1",
                float(line["figure"]),
                int(line["sequences"]),
                curves.get((task, seed), []),
                float(line["seconds"]),
            )
            yield Record(task, seed, int(line["budget"]), outcome, line["version"])


def thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Keep some points of a curve, evenly, the last one among them.

    >>> len(thinned([(n, 0.0) for n in range(1000)])), thinned([(1, 0.5)])
    (60, [(1, 0.5)])
    """
    places = np.linspace(0, len(curve) - 1, min(len(curve), CURVE_POINTS)).round().astype(int)
    return [curve[place] for place in places]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file; one that is not there has no rows."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all."""
    fresh = path.with_suffix(".part")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
    fresh.replace(path)


# ---- The page ------------------------------------------------------------------------------------


def quartiles(values: Sequence[float], shape: str) -> str:
    """Write a median and the quartiles.

    >>> quartiles([1, 2, 3, 4, 5], "{:.1f}")
    '3.0 (2.0 to 4.0)'
    """
    low, middle, high = (shape.format(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{middle} ({low} to {high})"


def verdict(task: Task, records: Sequence[Record]) -> str:
    """Say what became of a task."""
    solved = sum(one.outcome.solved for one in records)
    if task.fails:
        most = "" if not solved else " by most seeds"
        against = solved > len(records) / 2
        return "solved, against the paper" if against else f"**failed**{most}, as published"
    if solved == len(records):
        return "solved"
    return "solved by most seeds" if solved > len(records) / 2 else "**failed**"


def row(task: Task, records: Sequence[Record]) -> list[str]:
    """Return the line of a task in the table."""
    outcomes = [one.outcome for one in records]
    after = quartiles([one.sequences for one in outcomes], "{:,.0f}")
    return [
        task.title,
        task.published,
        task.figure,
        quartiles([one.figure for one in outcomes], task.shape),
        f"{after} {task.unit}",
        report.duration(float(np.median([one.seconds for one in outcomes]))),
        f"{sum(one.solved for one in outcomes)} of {len(outcomes)}",
        verdict(task, records),
    ]


def absent(notebook: Notebook) -> list[str]:
    """Return a sentence on the tasks that have no rows, if there are any."""
    names = [task.title for task in TASKS if not notebook.of(task.name)]
    return [f"Not run: {'; '.join(names)}."] if names else []


def page(machine: str, notebook: Notebook, picture: bool) -> str:
    """Return the page: the table, the curves, the protocols."""
    done = [(task, notebook.of(task.name)) for task in TASKS if notebook.of(task.name)]
    parts = [
        "# What it learns",
        "The tasks by which recurrent nets have been judged, ten seeds each: medians and quartiles "
        "beside the published figures. All of it is computed by `benches/tasks.py` (`make tasks`), "
        "on one thread. A seed is solved when it meets the criterion within its budget; one that "
        "does not counts with all of its budget. Means of a paper and our medians are not the same "
        "thing, and the nets and their training are of another time: what differs is said below.",
        "The published figures were written down from memory and have not been held against the "
        "papers, but for temporal order; settings were tried on the same tasks before these runs.",
        *absent(notebook),
        report.table(PAGE_HEAD, (row(*one) for one in done)),
    ]
    if picture:
        parts.append("![The curves of every seed](tasks.png)")
        parts.append("A line is a seed; a dot is where it was solved.")
    parts += [protocol(task, records[0].budget) for task, records in done]
    said = "Seeds that were done before, and their times, may be of another machine."
    parts.append(f"## The last run\n\n{said}\n\n```text\n{machine}\n```")
    return "\n\n".join(parts) + "\n"


def protocol(task: Task, budget: int) -> str:
    """Return what was done for a task, in words."""
    said = [
        f"## {task.title}",
        task.protocol,
        f"- Solved: {task.criterion}.",
        f"- Differences: {task.differences.removesuffix('.')}.",
        f"- Budget: {budget:,} {task.unit}.",
    ]
    return "\n\n".join(said[:2]) + "\n\n" + "\n".join(said[2:])


def draw(path: Path, notebook: Notebook) -> str:
    """Draw the curves of every task, one plot each; return what was done."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed (pip install matplotlib)"
    figures: Any = importlib.import_module("matplotlib.figure")
    done = [task for task in TASKS if notebook.of(task.name)]
    tall = -(-len(done) // 3)
    figure = figures.Figure(figsize=(12, 2.9 * tall), layout="constrained")
    for place, task in enumerate(done, start=1):
        _draw_task(figure.add_subplot(tall, 3, place), task, notebook.of(task.name))
    figure.savefig(path, dpi=80)
    report.fewer_colours(path)
    return f"drew {path}"


def _draw_task(axes: Any, task: Task, records: Sequence[Record]) -> None:
    for one in records:
        read, values = zip(*one.outcome.curve, strict=True)
        (line,) = axes.plot(read, values, linewidth=0.8, alpha=0.8)
        if one.outcome.solved:
            axes.plot(read[-1], values[-1], "o", markersize=3, color=line.get_color())
    axes.set_yscale("linear" if task.curve.startswith("share") else "log")
    axes.set_title(task.title, fontsize=9)
    axes.set_xlabel(task.unit, fontsize=8)
    axes.set_ylabel(task.curve, fontsize=8)
    axes.tick_params(labelsize=7)


# ---- The command ---------------------------------------------------------------------------------


def seed(text: str) -> int:
    """Read a seed."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**31, got {text!r}")
    return int(text)


def factor(text: str) -> float:
    """Read a factor."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number greater than 0, got {text!r}")
    return value


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", choices=list(BY_NAME), default=list(BY_NAME), metavar="NAME",
        help=f"default: all of {', '.join(BY_NAME)}")  # fmt: skip
    add("--seeds", nargs="+", type=seed, default=list(range(SEEDS)), help="default: 0 to 9")
    add("--budget", type=factor, default=1.0, help="times the budget of each task; default: 1")
    add("--out", type=Path, default=ROOT / "benches/results",
        help="folder; default: benches/results")  # fmt: skip
    add("--docs", action="store_true", help="also put the page and the picture into docs")
    return parser.parse_args(argv)


def run(task: Task, seeds: Sequence[int], budget: int, notebook: Notebook) -> str | None:
    """Let the seeds learn that are not done; return why not, where it cannot be run."""
    for number in seeds:
        if notebook.has(task.name, number, budget):
            print(f"{task.name} {number}: done before", flush=True)
            continue
        try:
            outcome = learners.timed(task.learn, number, budget)
        except ImportError as error:
            return str(error)
        notebook.add(Record(task.name, number, budget, outcome))
        print(
            f"{task.name} {number}: {'solved' if outcome.solved else 'FAILED'}, {task.figure} "
            f"{task.shape.format(outcome.figure)}, after {outcome.sequences:,} {task.unit}, "
            f"{report.duration(outcome.seconds)}",
            flush=True,
        )
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, write it down, and return the exit status."""
    options = arguments(argv)
    rc.set_num_threads(1)
    words = sys.argv[1:] if argv is None else argv
    machine = report.machine(shlex.join(["python", "benches/tasks.py", *words]), 1, (), ())
    print(machine, flush=True)
    notebook = Notebook(options.out)
    refused = {}
    for name in options.tasks:
        task = BY_NAME[name]
        budget = max(1, round(task.budget * options.budget))
        why = run(task, options.seeds, budget, notebook)
        if why is not None:
            refused[name] = why
            print(f"{name}: NOT RUN: {why}", flush=True)
    if notebook.records:
        write_page(machine, notebook, options.out, options.docs)
    return 1 if refused else 0


def write_page(machine: str, notebook: Notebook, folder: Path, docs: bool) -> None:
    """Write page and picture into the folder, and into the docs of this checkout."""
    picture = folder / "tasks.png"
    print(draw(picture, notebook))
    text = page(machine, notebook, picture.exists())
    (folder / "tasks.md").write_text(text, encoding="utf-8")
    print(f"wrote tasks.csv, tasks-curves.csv and tasks.md in {folder}")
    if docs:
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs/tasks.md").write_text(text, encoding="utf-8")
        if picture.exists():
            shutil.copyfile(picture, ROOT / "docs/tasks.png")
        print("wrote docs/tasks.md")


if __name__ == "__main__":
    sys.exit(main())
