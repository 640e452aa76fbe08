"""The sequences that the tasks of ``tasks.py`` ask for: drawn at random, computed, or read.

A batch is (x, y, lengths): x (T, B, F) in float32, y what is to be said of each row (B, ...) or of
each step (T, B, ...), lengths (B,) or None where all rows are equally long. Every function that
draws takes the generator to draw with, so that a seed tells all.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Whole: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]


class Batch(NamedTuple):
    """Rows side by side."""

    x: Floats
    y: NDArray[Any]
    lengths: Whole | None = None


def one_hot(codes: Whole, size: int) -> Floats:
    """Return codes (...) as rows (..., size) with a single 1; a negative code is a row of zeros.

    >>> one_hot(np.array([1, -1]), 3).tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return np.asarray(codes[..., None] == np.arange(size), np.float32)


# ---- Reber grammar -------------------------------------------------------------------------------

REBER_SYMBOLS = "BTPSXVE"
# State to what may follow: symbol, next state. The graph of Reber (1967).
REBER_GRAPH: tuple[tuple[tuple[str, int], ...], ...] = (
    (("T", 1), ("P", 2)),
    (("S", 1), ("X", 3)),
    (("T", 2), ("V", 4)),
    (("X", 2), ("S", 5)),
    (("P", 3), ("V", 5)),
    (),
)


class Reber(NamedTuple):
    """A string of the embedded Reber grammar, and what may follow each of its symbols.

    ``possible[t]`` are the symbols that the grammar allows after ``text[: t + 1]``; after the last
    one nothing is left to say.
    """

    text: str
    possible: tuple[str, ...]


def embedded_reber(rng: np.random.Generator) -> Reber:
    """Draw a string: B, T or P, a string of Reber's grammar, the same T or P, E.

    Wherever two symbols may follow, each has one half.
    """
    outer = "TP"[rng.integers(2)]
    text, possible = "B" + outer + "B", ["TP", "B"]
    state = 0
    while REBER_GRAPH[state]:
        choices = REBER_GRAPH[state]
        possible.append("".join(symbol for symbol, _ in choices))
        symbol, state = choices[rng.integers(2)]
        text += symbol
    return Reber(text + "E" + outer + "E", (*possible, "E", outer, "E"))


def _codes(text: str) -> Whole:
    return np.array([REBER_SYMBOLS.index(symbol) for symbol in text], np.int64)


def _marks(possible: Sequence[str]) -> Bools:
    """Return which symbols are possible (T, 7)."""
    return np.array([[symbol in some for symbol in REBER_SYMBOLS] for some in possible], np.bool_)


def reber_batch(strings: Sequence[Reber]) -> tuple[Batch, Bools]:
    """Return strings as a batch to predict, and the symbols possible after each step (T, B, 7).

    x (T, B, 7) are all symbols but the last; y (T, B) is the symbol that comes next.
    """
    lengths = np.array([len(one.possible) for one in strings], np.int64)
    T, B = int(lengths.max()), len(strings)
    codes = np.full((T + 1, B), -1, np.int64)
    possible = np.zeros((T, B, len(REBER_SYMBOLS)), np.bool_)
    for row, one in enumerate(strings):
        codes[: len(one.text), row] = _codes(one.text)
        possible[: len(one.possible), row] = _marks(one.possible)
    x = one_hot(codes[:-1], len(REBER_SYMBOLS))
    x[np.arange(T)[:, None] >= lengths] = 0
    return Batch(x, np.maximum(codes[1:], 0), lengths), possible


def reber_sets(rng: np.random.Generator, size: int) -> tuple[list[Reber], list[Reber]]:
    """Draw a training set, and a test set none of whose strings is in the training set."""
    train = [embedded_reber(rng) for _ in range(size)]
    known = {one.text for one in train}
    test: list[Reber] = []
    while len(test) < size:
        one = embedded_reber(rng)
        if one.text not in known:
            test.append(one)
    return train, test


class ReberStreams:
    """Rows of embedded Reber strings, one behind the other without a mark: they never end.

    Parameters
    ----------
    rng
        What strings are drawn with.
    rows
        B, streams side by side.
    """

    def __init__(self, rng: np.random.Generator, rows: int) -> None:
        self._rng = rng
        self._codes = [np.zeros(0, np.int64) for _ in range(rows)]
        self._marks = [np.zeros((0, len(REBER_SYMBOLS)), np.bool_) for _ in range(rows)]

    def take(self, steps: int) -> tuple[Batch, Bools]:
        """Return the next steps of every row, as ``reber_batch`` does; all rows are full."""
        for row in range(len(self._codes)):
            self._fill(row, steps + 1)
        codes = np.stack([codes[: steps + 1] for codes in self._codes], axis=1)
        possible = np.stack([marks[:steps] for marks in self._marks], axis=1)
        self._codes = [codes[steps:] for codes in self._codes]
        self._marks = [marks[steps:] for marks in self._marks]
        return Batch(one_hot(codes[:-1], len(REBER_SYMBOLS)), codes[1:]), possible

    def restart(self, rows: Whole) -> None:
        """Let the next steps of some rows begin with a fresh string."""
        for row in rows:
            self._codes[row], self._marks[row] = self._codes[row][:0], self._marks[row][:0]

    def _fill(self, row: int, steps: int) -> None:
        codes, marks = [self._codes[row]], [self._marks[row]]
        held = len(codes[0])
        while held < steps:
            one = embedded_reber(self._rng)
            codes.append(_codes(one.text))
            marks.append(_marks((*one.possible, "B")))  # a new string begins
            held += len(one.text)
        self._codes[row], self._marks[row] = np.concatenate(codes), np.concatenate(marks)


def most_active(outputs: NDArray[Any], possible: Bools) -> Bools:
    """Return whether the possible symbols are the most active outputs, step by step.

    Parameters
    ----------
    outputs
        (..., K), of any scale.
    possible
        (..., K); a step with k possible symbols is right if the k largest outputs are theirs.

    Returns
    -------
    ndarray (...) of bool
        True where nothing is possible: beyond the end of a row.

    Examples
    --------
    >>> most_active(np.array([[3, 1, 2], [3, 2, 1]]), np.array([[1, 0, 1], [1, 0, 1]], bool))
    array([ True, False])
    """
    least = np.where(possible, outputs, np.inf).min(axis=-1)
    others = np.where(possible, -np.inf, outputs).max(axis=-1)
    return np.asarray((least > others) | ~possible.any(axis=-1))


# ---- Long lags -----------------------------------------------------------------------------------


def adding(rng: np.random.Generator, rows: int, steps: int) -> Batch:
    """Draw the adding problem of Hochreiter and Schmidhuber (1997), experiment 4.

    Each step has a number from [-1, 1] and a mark. The mark is 1 at two steps: one of the first ten
    and another one of the first T/2 - 1; it is -1 at the first and at the last step, and 0
    elsewhere. If the first step is a marked one, its number counts as 0. A row has from T to
    T + T/10 steps.

    Parameters
    ----------
    rng, rows
        Generator, and B.
    steps
        T, the shortest row.

    Returns
    -------
    Batch
        x (T + T/10, B, 2); y (B, 1) = 0.5 + (X1 + X2) / 4, X the marked numbers.
    """
    longest = steps + steps // 10
    lengths = rng.integers(steps, longest + 1, rows)
    each = np.arange(rows)
    first = rng.integers(0, 10, rows)
    second = rng.integers(0, steps // 2 - 2, rows)
    second += second >= first  # another step than the first
    x = np.zeros((longest, rows, 2), np.float32)
    x[:, :, 0] = rng.uniform(-1, 1, (longest, rows))
    x[0, :, 1] = -1
    x[lengths - 1, each, 1] = -1
    x[first, each, 1] = 1
    x[second, each, 1] = 1
    zero = np.minimum(first, second) == 0
    x[0, zero, 0] = 0
    y = 0.5 + (x[first, each, 0] + x[second, each, 0]) / 4
    x[np.arange(longest)[:, None] >= lengths] = 0
    return Batch(x, y[:, None].astype(np.float32), lengths)


def temporal_order(rng: np.random.Generator, rows: int) -> Batch:
    """Draw task 6a of Hochreiter and Schmidhuber (1997): the order of X and Y.

    A row begins with E, ends with B, and has 100 to 110 symbols: one of a, b, c, d each, but X or Y
    at a place from 10 to 20 and at another from 50 to 60. Symbols are a b c d X Y E B.

    Returns
    -------
    Batch
        x (110, B, 8) one-hot; y (B,), the class: 0 for X X, 1 for X Y, 2 for Y X, 3 for Y Y.
    """
    lengths = rng.integers(100, 111, rows)
    each = np.arange(rows)
    codes = rng.integers(0, 4, (110, rows))
    codes[0] = 6
    codes[lengths - 1, each] = 7
    first, second = rng.integers(0, 2, (2, rows))
    codes[rng.integers(10, 21, rows), each] = 4 + first
    codes[rng.integers(50, 61, rows), each] = 4 + second
    codes[np.arange(110)[:, None] >= lengths] = -1
    return Batch(one_hot(codes, 8), 2 * first + second, lengths)


COPIED = 10  # symbols to remember


def copying(rng: np.random.Generator, rows: int, blanks: int) -> Batch:
    """Draw the copying problem as Arjovsky, Shah and Bengio (2016) state it.

    Ten symbols of eight kinds, T - 1 blanks, a sign to begin, ten blanks: T + 20 steps. What is to
    be said is blank until the sign has come, and then the ten symbols. Codes 0 to 7 are the
    symbols, 8 the blank, 9 the sign.

    Parameters
    ----------
    rng, rows
        Generator, and B.
    blanks
        T.

    Returns
    -------
    Batch
        x (T + 20, B, 10) one-hot; y (T + 20, B).
    """
    steps = blanks + 2 * COPIED
    symbols = rng.integers(0, 8, (COPIED, rows))
    codes = np.full((steps, rows), 8, np.int64)
    codes[:COPIED] = symbols
    codes[COPIED + blanks - 1] = 9
    y = np.full((steps, rows), 8, np.int64)
    y[-COPIED:] = symbols
    return Batch(one_hot(codes, 10), y)


# ---- Series --------------------------------------------------------------------------------------


def mackey_glass(steps: int, delay: float = 17.0, start: float = 1.2) -> NDArray[np.float64]:
    """Return x(0), x(1), ... of dx/dt = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x(t).

    x is ``start`` at 0 and 0 before, as Jang (1993) has it. By Runge and Kutta's fourth order with
    steps of 0.1; between them x(t - delay) is interpolated linearly.

    >>> mackey_glass(3).round(4).tolist()
    [1.2, 1.0858, 0.9825]
    """
    substeps, h = 10, 0.1
    lag = round(delay * substeps)
    x = np.zeros((steps - 1) * substeps + 1)
    x[0] = start

    def slope(value: float, late: float) -> float:
        return 0.2 * late / (1.0 + late**10) - 0.1 * value

    for n in range(len(x) - 1):
        now, then = (float(x[k]) if k >= 0 else 0.0 for k in (n - lag, n - lag + 1))
        half = (now + then) / 2
        k1 = slope(float(x[n]), now)
        k2 = slope(float(x[n]) + h / 2 * k1, half)
        k3 = slope(float(x[n]) + h / 2 * k2, half)
        k4 = slope(float(x[n]) + h * k3, then)
        x[n + 1] = x[n] + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return np.asarray(x[::substeps])


def sunspots() -> tuple[Whole, NDArray[np.float64]]:
    """Return the years 1700 to 2008 and their mean numbers of sunspots (N,), of statsmodels."""
    data = required("statsmodels.datasets.sunspots", "statsmodels").load_pandas().data
    return data["YEAR"].to_numpy(np.int64), data["SUNACTIVITY"].to_numpy(np.float64)


# ---- Rows to classify ----------------------------------------------------------------------------


def required(module: str, package: str) -> Any:
    """Import a module of an optional package, or say in one line what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this task needs {package}: pip install {package}") from error


def digits() -> tuple[Floats, Whole]:
    """Return scikit-learn's digits (N, 8, 8), from 0 to 1, and which each is (N,), in its order."""
    bunch = required("sklearn.datasets", "scikit-learn").load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


VOWELS = "datasets/data/JapaneseVowels/JapaneseVowels_{}.ts"


def japanese_vowels(part: str) -> tuple[list[Floats], Whole]:
    """Return utterances (T_i, 12) and which of nine men spoke (N,); part is "TRAIN" or "TEST".

    Read from the files that aeon and sktime carry; neither is imported.
    """
    for package in ("aeon", "sktime"):
        found = importlib.util.find_spec(package)
        for folder in found.submodule_search_locations or () if found else ():
            path = Path(folder) / VOWELS.format(part)
            if path.exists():
                return read_ts(path)
    raise ImportError("this task needs the data of aeon or sktime: pip install --no-deps aeon")


def read_ts(path: Path) -> tuple[list[Floats], Whole]:
    """Read a file of several channels: ``a,b,c:d,e,f:label``, channel by channel, one row a line.

    Labels are numbered in the order of their values.
    """
    rows, names = [], []
    for line in _data_lines(path):
        *channels, name = line.split(":")
        values = [np.array(channel.split(","), np.float32) for channel in channels]
        rows.append(np.stack(values, axis=1))
        names.append(name)
    kinds = sorted(set(names), key=lambda name: (len(name), name))
    return rows, np.array([kinds.index(name) for name in names], np.int64)


def _data_lines(path: Path) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip().lower() == "@data")
    return (line.strip() for line in lines[start + 1 :] if line.strip())
