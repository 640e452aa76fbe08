"""Race whole models against PyTorch, from the first update to the last: time and what is learnt.

    make bench-models                              both models, on a quiet machine: some minutes
    make bench-models ARGS="--models digits --seeds 0 1 2"
    python benches/models.py --help                in an environment that has torch and scikit-learn

Two models, as one trains them: the character model of ``examples/char_lm.py`` (embedding, two
layers of LSTM of 160 units, linear; truncated backpropagation over pydoc's topics), and a
classifier of scikit-learn's digits (8 steps of 8 pixels, LSTM of 64 units, linear). Both sides
begin with the same weights and are given the same batches in the same order, the same Adam, the
same rate, the same clipping. The gradients of the first batch must agree before anything is timed.

Both run in one process, in turns: some updates of one, as many of the other, and the other way
round in the next turn. An update is everything from the batch to the new weights. A ratio is the
median over the turns of PyTorch's time over ours. Validation is not timed.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

# Threads of a BLAS that wait by spinning take the cores from the others: before NumPy comes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "examples"))

import char_lm
import numpy as np
import peers
import report
import sequences
from bench import pinned, usable_cores
from cases import Array
from numpy.typing import NDArray
from race import disagreement, quiesce
from tasks import factor, quartiles, seed, write_rows

import rnncore as rc

ROOT = Path(__file__).parents[1]
SIDES = ("rnncore", "torch")
NEEDED = 1.5  # PyTorch's time over ours
# Two trainings that round differently end a little apart: within this share they are equal.
EQUAL = 0.005
TOLERANCE = 1e-4  # of the largest value of a gradient, float32
CLIP = 1.0
CHUNK = 16  # updates of one side in a turn
TIMES_HEAD = ("model", "threads", "seed", "turn", "side", "updates", "seconds")
FIGURES_HEAD = ("model", "threads", "seed", "epoch", "side", "figure")
PAGE_HEAD = (
    "model", "threads", "ratio", "needed", "", "rnncore", "torch", "rnncore", "torch", "figure", "",
)  # fmt: skip


class Step(NamedTuple):
    """The arrays of one update; a fresh one begins with a state of zeros."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    fresh: bool = True


class Side(ABC):
    """One of the two that train: weights, optimizer, carried state."""

    @abstractmethod
    def ready(self, step: Step) -> Any:
        """Return the arrays of a step as this side takes them; not timed."""

    @abstractmethod
    def gradients(self, step: Any) -> dict[str, Array]:
        """Return the gradients of a step, by name, and change nothing."""

    @abstractmethod
    def update(self, step: Any, lr: float) -> None:
        """Make one step of the optimizer."""

    @abstractmethod
    def logits(self, x: Any, state: Any) -> tuple[Array, Any]:
        """Return what the model says, and its state."""


# ---- rnncore -------------------------------------------------------------------------------------


class OurText(Side):
    """The character model, trained as its example trains it."""

    def __init__(self, model: char_lm.Model) -> None:
        self.chain = model.chain
        self._optimizer = rc.Adam(self.chain)
        self._state: Any = None

    def ready(self, step: Step) -> Step:
        """As they are."""
        return step

    def gradients(self, step: Any) -> dict[str, Array]:
        """By layer and parameter."""
        return dict(self._backward(step, None)[0].params)

    def _backward(self, step: Step, state: Any) -> tuple[Any, Any]:
        logits, tape = self.chain.forward(step.x, state)
        _, d_logits = rc.softmax_cross_entropy(logits, step.y)
        return self.chain.backward(tape, d_logits), tape.state

    def update(self, step: Any, lr: float) -> None:
        """Forward, backward, clip, Adam."""
        found, self._state = self._backward(step, None if step.fresh else self._state)
        rc.clip_grad_norm(found, CLIP)
        self._optimizer.lr = lr
        self._optimizer.step(found)

    def logits(self, x: Any, state: Any) -> tuple[Array, Any]:
        """Call the model."""
        return self.chain(x, state, return_state=True)


class OurDigits(Side):
    """The classifier as a chain of layers."""

    def __init__(self, model: rc.Sequential) -> None:
        self.model = model
        self._optimizer = rc.Adam(model)

    def ready(self, step: Step) -> Step:
        """As they are."""
        return step

    def _backward(self, step: Step) -> Any:
        logits, tape = self.model.forward(step.x)
        _, d_logits = rc.softmax_cross_entropy(logits, step.y)
        return self.model.backward(tape, d_logits)

    def gradients(self, step: Any) -> dict[str, Array]:
        """By the names of the chain."""
        return dict(self._backward(step).params)

    def update(self, step: Any, lr: float) -> None:
        """Forward, backward, clip, Adam."""
        found = self._backward(step)
        rc.clip_grad_norm(found, CLIP)
        self._optimizer.lr = lr
        self._optimizer.step(found)

    def logits(self, x: Any, state: Any) -> tuple[Array, Any]:
        """Call the chain."""
        return self.model(x), None


# ---- PyTorch -------------------------------------------------------------------------------------


class Torch(Side):
    """The same parts in PyTorch, eager: an embedding or none, LSTM, linear.

    Adam is the fused one, the fastest that it has for the CPU.

    Parameters
    ----------
    params
        Our parameters, under "embedding.weight" (where there is one), "recurrent.weight_ih_l0"
        and so on, "head.weight", "head.bias".
    last
        Whether the output of the last step alone is wanted.
    """

    def __init__(self, params: Mapping[str, Array], last: bool) -> None:
        self._torch: Any = importlib.import_module("torch")
        nn = self._torch.nn
        layers = sum("weight_hh" in name for name in params)
        width, hidden = params["recurrent.weight_ih_l0"].shape[1], params["head.weight"].shape[1]
        parts = {
            "recurrent": nn.LSTM(width, hidden, num_layers=layers),
            "head": nn.Linear(hidden, params["head.weight"].shape[0]),
        }
        if "embedding.weight" in params:
            parts["embedding"] = nn.Embedding(*params["embedding.weight"].shape)
        self._net = nn.ModuleDict(parts)
        self._net.load_state_dict(
            {name: self._torch.from_numpy(array.copy()) for name, array in params.items()}
        )
        self._last = last
        self._optimizer = self._torch.optim.Adam(self._net.parameters(), fused=True)
        self._loss = nn.CrossEntropyLoss()
        self._state: Any = None

    def ready(self, step: Step) -> Any:
        """Tensors of the same arrays."""
        tensor = self._torch.from_numpy
        return tensor(step.x.copy()), tensor(step.y.copy()), step.fresh

    def _forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        if "embedding" in self._net:
            x = self._net["embedding"](x)
        y, state = self._net["recurrent"](x, state)
        return self._net["head"](y[-1] if self._last else y), state

    def _backward(self, step: Any, state: Any) -> Any:
        x, y, _ = step
        logits, state = self._forward(x, state)
        self._optimizer.zero_grad()
        self._loss(logits.reshape(-1, logits.shape[-1]), y.reshape(-1)).backward()
        return tuple(part.detach() for part in state)

    def gradients(self, step: Any) -> dict[str, Array]:
        """By the names of the modules."""
        self._backward(step, None)
        named = self._net.named_parameters()
        return {name: parameter.grad.numpy().copy() for name, parameter in named}

    def update(self, step: Any, lr: float) -> None:
        """Forward, backward, clip, Adam."""
        self._state = self._backward(step, None if step[2] else self._state)
        self._torch.nn.utils.clip_grad_norm_(self._net.parameters(), CLIP)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()

    def logits(self, x: Any, state: Any) -> tuple[Array, Any]:
        """Call the modules, in inference mode."""
        with self._torch.inference_mode():
            found, state = self._forward(self._torch.from_numpy(x.copy()), state)
        return found.numpy(), state


# ---- The models ----------------------------------------------------------------------------------


class Race(ABC):
    """A model on both sides, its data, and how well it does.

    ``epochs`` of ``steps`` are trained, at a rate that falls from ``lr`` in a straight line to 0.
    """

    lr: float
    epochs: int
    sides: dict[str, Side]

    @abstractmethod
    def steps(self, epoch: int) -> Iterator[Step]:
        """Yield the updates of an epoch, the same ones whenever they are asked for."""

    @abstractmethod
    def figure(self, side: Side) -> float:
        """Measure on the validation data."""


def segments(pieces: Array, truncate: int) -> Iterator[tuple[Array, Array]]:
    """Walk along streams (T + 1, B): inputs and targets (t, B) with t <= truncate."""
    for start in range(0, len(pieces) - 1, truncate):
        end = min(start + truncate, len(pieces) - 1)
        yield pieces[start:end], pieces[start + 1 : end + 1]


class TextRace(Race):
    """The character model; bits per character."""

    lr = 0.008

    def __init__(self, number: int, epochs: int) -> None:
        self.epochs = epochs
        train, validation = char_lm.split(char_lm.topic_documents())
        vocabulary = char_lm.Vocabulary.of(train)
        self._train, self._validation = vocabulary.encode(train), vocabulary.encode(validation)
        sizes = char_lm.Sizes("lstm", layers=2, hidden=160, embedding=64)
        model = char_lm.Model(vocabulary, sizes, number)
        params = dict(model.chain.params)
        self.sides = {"rnncore": OurText(model), "torch": Torch(params, last=False)}
        self._number = number

    def steps(self, epoch: int) -> Iterator[Step]:
        """Segments of 32 characters of 16 streams, from a start that is not always the same."""
        rows, truncate = 16, 32
        start = int(np.random.default_rng([self._number, epoch]).integers(truncate))
        count = (len(self._train) - truncate) // rows // truncate
        pieces = char_lm.streams(self._train[start:], rows)[: count * truncate + 1]
        for place, (x, y) in enumerate(segments(pieces, truncate)):
            yield Step(x, y, fresh=place == 0)

    def figure(self, side: Side) -> float:
        """Bits per character, the state carried on."""
        pieces = char_lm.streams(self._validation, char_lm.VALIDATION_STREAMS)
        nats, state = 0.0, None
        for x, y in segments(pieces, char_lm.VALIDATION_SEGMENT):
            logits, state = side.logits(x, state)
            nats += rc.softmax_cross_entropy(logits, y)[0] * y.size
        return float(nats / np.log(2) / pieces[1:].size)


class DigitsRace(Race):
    """The classifier of digits; share of errors."""

    lr = 0.01

    def __init__(self, number: int, epochs: int) -> None:
        self.epochs = epochs
        images, labels = sequences.digits()
        order = np.random.default_rng([number, 0]).permutation(len(images))
        x = np.ascontiguousarray(images[order].swapaxes(0, 1))  # (8, N, 8)
        cut = 3 * len(order) // 4
        self._train = Step(x[:, :cut], labels[order][:cut])
        self._validation = Step(np.ascontiguousarray(x[:, cut:]), labels[order][cut:])
        recurrent, head = rc.LSTM(8, 64, seed=number), rc.Linear(64, 10, seed=number + 1)
        last = rc.Pooling("last")
        model = rc.Sequential({"recurrent": recurrent, "last": last, "head": head})
        self.sides = {"rnncore": OurDigits(model), "torch": Torch(model.params, last=True)}
        self._number = number

    def steps(self, epoch: int) -> Iterator[Step]:
        """Batches of 32 in a fresh order."""
        rows = 32
        order = np.random.default_rng([self._number, 1, epoch]).permutation(len(self._train.y))
        for start in range(0, len(order) - rows + 1, rows):
            chosen = order[start : start + rows]
            yield Step(np.ascontiguousarray(self._train.x[:, chosen]), self._train.y[chosen])

    def figure(self, side: Side) -> float:
        """Share of validation rows told wrongly."""
        logits, _ = side.logits(self._validation.x, None)
        return float((logits.argmax(axis=1) != self._validation.y).mean())


@dataclass(frozen=True)
class Model:
    """How a race is made, and how its figure is written."""

    make: Any
    epochs: int
    figure: str
    shape: str
    seeds: int


MODELS = {
    "characters": Model(TextRace, 6, "bits per character", "{:.4f}", 1),
    "digits": Model(DigitsRace, 30, "share of errors", "{:.4f}", 10),
}


# ---- Racing --------------------------------------------------------------------------------------


@dataclass
class Found:
    """What the races of one model on so many threads found: rows of both files, without these."""

    model: str
    threads: int
    times: list[tuple[Any, ...]] = field(default_factory=list)
    figures: list[tuple[Any, ...]] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Return PyTorch's time over ours, turn by turn."""
        mine, other = ([row[-1] for row in self.times if row[2] == side] for side in SIDES)
        return [b / a for a, b in zip(mine, other, strict=True)]

    def seconds(self, side: str) -> float:
        """Return the time of all updates of a side, in the mean of the seeds."""
        rows = [row for row in self.times if row[2] == side]
        return float(sum(row[-1] for row in rows) / len({row[0] for row in rows}))

    def last(self, side: str) -> list[float]:
        """Return the figures after the last epoch, seed by seed."""
        ends = {row[0]: row[-1] for row in self.figures if row[2] == side}
        return [float(ends[number]) for number in sorted(ends)]

    def rows(self, kind: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield lines of a file."""
        for row in kind:
            yield self.model, self.threads, *row[:-1], f"{row[-1]:.6g}"


def prove(race: Race) -> float:
    """Hold the first gradients of both sides against each other; return how far they are off."""
    step = next(race.steps(0))
    ours, theirs = (side.gradients(side.ready(step)) for side in race.sides.values())
    error, where = disagreement(theirs, ours)
    # The gradients are small: what they are held against is their own largest value.
    for name, want in ours.items():
        own = float(np.abs(theirs[name] - want).max() / np.abs(want).max())
        error, where = max((error, where), (own, name))
    if not error <= TOLERANCE:
        raise RuntimeError(f"{where}: off by {error:.1e} of the largest value, not {TOLERANCE:g}")
    return error


def turns(race: Race) -> Iterator[list[tuple[Step, float]]]:
    """Cut all updates, with their rates, into turns; one ends with its epoch."""
    per_epoch = sum(1 for _ in race.steps(0))
    total, done = race.epochs * per_epoch, 0
    for epoch in range(race.epochs):
        turn: list[tuple[Step, float]] = []
        for step in race.steps(epoch):
            turn.append((step, race.lr * (1 - done / total)))
            done += 1
            if len(turn) == CHUNK or done % per_epoch == 0:
                yield turn
                turn = []


def timed(side: Side, turn: Sequence[tuple[Step, float]]) -> float:
    """Return how long the updates of a turn take."""
    steps = [(side.ready(step), lr) for step, lr in turn]
    quiesce()
    began = time.perf_counter()
    for step, lr in steps:
        side.update(step, lr)
    return time.perf_counter() - began


def run(race: Race, number: int, found: Found) -> None:
    """Train both sides to the end, in turns."""
    per_epoch = sum(1 for _ in race.steps(0))
    done = 0
    for place, turn in enumerate(turns(race)):
        for key in SIDES if place % 2 == 0 else SIDES[::-1]:
            seconds = timed(race.sides[key], turn)
            found.times.append((number, place, key, len(turn), seconds))
        done += len(turn)
        if done % per_epoch == 0:
            epoch = done // per_epoch
            figures = {key: race.figure(race.sides[key]) for key in SIDES}
            found.figures += [(number, epoch, *entry) for entry in figures.items()]
            last = found.ratios()[-1]
            said = ", ".join(f"{key} {figure:.4f}" for key, figure in figures.items())
            where = f"{found.model} {number}, {found.threads} thread(s)"
            print(f"{where}: epoch {epoch}/{race.epochs}, {said}, x{last:.2f}", flush=True)


# ---- What is said --------------------------------------------------------------------------------


def page_row(found: Found) -> list[str]:
    """Return the line of a model: ratio, times, figures, and whether both are enough."""
    model = MODELS[found.model]
    ratios = found.ratios()
    ours, theirs = (found.last(side) for side in SIDES)
    some = len(ours) > 1
    text = [quartiles(e, model.shape) if some else model.shape.format(*e) for e in (ours, theirs)]
    return [
        found.model,
        str(found.threads),
        quartiles(ratios, "{:.2f}"),
        f"{NEEDED:g}",
        report.verdict(float(np.median(ratios)) >= NEEDED),
        *(report.duration(found.seconds(side)) for side in SIDES),
        *text,
        model.figure + (f", median of {len(ours)} seeds" if some else ""),
        report.verdict(no_worse(ours, theirs)),
    ]


def no_worse(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether our median is at most theirs, or equal within what rounding does.

    >>> no_worse([2.001], [2.0]), no_worse([2.1], [2.0]), no_worse([0.02], [0.018])
    (True, False, False)
    """
    mine, other = float(np.median(ours)), float(np.median(theirs))
    return mine <= (1 + EQUAL) * other


def page(machine: str, found: Iterable[Found]) -> str:
    """Return the page."""
    table = report.table(PAGE_HEAD, map(page_row, found))
    said = (
        "The ratio is PyTorch's time over ours: the median over the turns, and quartiles. Then "
        "come the seconds of all updates of one training and the validation figures after the last "
        f"epoch, lower is better; within {EQUAL:.1%} they count as equal."
    )
    return f"# Whole models beside PyTorch\n\n```text\n{machine}\n```\n\n{said}\n\n{table}\n"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    add("--seeds", nargs="+", type=seed, help="default: 0 for characters, 0 to 9 for digits")
    add("--epochs", type=factor, default=1.0, help="times the epochs of each model; default: 1")
    cores = len(usable_cores())
    add("--threads", nargs="+", type=int, default=sorted({1, cores}),
        help="default: 1, and all usable cores, as both sides take them untold")  # fmt: skip
    add("--out", type=Path, default=ROOT / "benches/results",
        help="folder; default: benches/results")  # fmt: skip
    options = parser.parse_args(argv)
    for threads in options.threads:
        if not 1 <= threads <= cores:
            parser.error(f"--threads: expected 1 to {cores}, the usable cores, got {threads}")
    lacking = peers.missing("torch")
    if lacking:
        parser.error(f"not installed: {', '.join(lacking)} (pip install torch)")
    return options


def race_all(options: argparse.Namespace) -> Iterator[Found]:
    """Run every model and seed that was asked for."""
    for name, threads in itertools.product(options.models, options.threads):
        model, found = MODELS[name], Found(name, threads)
        with pinned(threads):
            importlib.import_module("torch").set_num_threads(threads)
            rc.set_num_threads(threads)
            for number in range(model.seeds) if options.seeds is None else options.seeds:
                race: Race = model.make(number, max(1, round(model.epochs * options.epochs)))
                print(f"{name} {number}: first gradients agree to {prove(race):.1e}", flush=True)
                run(race, number, found)
        yield found


def main(argv: Sequence[str] | None = None) -> int:
    """Race, write it down, and return the exit status."""
    options = arguments(argv)
    command = shlex.join(["python", "benches/models.py", *(sys.argv[1:] if argv is None else argv)])
    machine = report.machine(command, max(options.threads), ["torch"], ())
    print(machine, flush=True)
    found = list(race_all(options))
    options.out.mkdir(parents=True, exist_ok=True)
    times = (row for one in found for row in one.rows(one.times))
    write_rows(options.out / "models.csv", TIMES_HEAD, times)
    figures = (row for one in found for row in one.rows(one.figures))
    write_rows(options.out / "models-figures.csv", FIGURES_HEAD, figures)
    text = page(machine, found)
    (options.out / "models.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote models.csv, models-figures.csv and models.md in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
