"""From logits to sequences: sampling, the likeliest symbol at each step, and beam search.

Everything here works on a *stream*: what ``freeze`` gives, or any object whose ``step`` takes codes
(B,) and returns logits (B, V), and whose ``state`` can be read and set. A state is an array with
the rows at axis 1, or a mapping or tuple of such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from .parameters import (
    as_integer_array,
    as_real,
    as_real_array,
    as_seed,
    as_size,
    as_text,
    check_generator,
    check_range,
    check_shape,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Hypothesis", "beam_search", "generate", "sample"]


def sample(
    logits: ArrayLike,
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> NDArray[np.int64]:
    """Draw one symbol for each row of logits.

    From ``softmax(logits / temperature)``, restricted to the ``top_k`` largest logits.

    Parameters
    ----------
    logits
        (..., V); -inf excludes a symbol.
    rng
        What draws.
    temperature : default 1
        Below 1 sharpens, above 1 flattens; 0 takes the likeliest symbol, the first of equals.
    top_k : default None
        How many symbols can be drawn at most; of equal logits the first. None: all.

    Returns
    -------
    ndarray of int64 (...)

    Raises
    ------
    TypeError
        If an argument is not of real numbers, ``top_k`` no integer, or ``rng`` no generator.
    ValueError
        If there are no symbols, a row has none to draw (all -inf, or a NaN), ``temperature`` is
        negative, or ``top_k`` below 1. Nothing has been drawn then.

    References
    ----------
    Fan, Lewis and Dauphin, Hierarchical neural story generation, 2018 (top k).

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.decoding import sample
    >>> rng = np.random.default_rng(0)
    >>> sample([[0.0, 9.0, 1.0], [5.0, 0.0, 4.0]], rng, temperature=0)
    array([1, 0])
    >>> set(sample(np.zeros((100, 5)), rng, top_k=2).tolist())
    {0, 1}
    """
    check_generator(rng)
    _check_options(temperature, top_k)
    z = as_real_array("logits", logits, np.float64)
    if not z.ndim or not z.shape[-1]:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {z.shape}")
    rows = z.reshape(-1, z.shape[-1])
    largest = _largest(rows)
    if temperature == 0.0:
        likeliest: NDArray[np.int64] = rows.argmax(axis=1).reshape(z.shape[:-1])
        return likeliest
    if top_k is not None:
        kept = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
        limited = np.full_like(rows, -np.inf)
        np.put_along_axis(limited, kept, np.take_along_axis(rows, kept, axis=1), axis=1)
        rows = limited
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    noise = rng.gumbel(size=rows.shape)
    with np.errstate(over="ignore"):  # near 0 all but the largest become -inf, as they should
        scaled = (rows - largest) / temperature
    drawn: NDArray[np.int64] = (scaled + noise).argmax(axis=1).reshape(z.shape[:-1])
    return drawn


def _check_options(temperature: object, top_k: object) -> None:
    """Check how to draw."""
    number = as_real("temperature", temperature)
    if not 0.0 <= number < np.inf:
        raise ValueError(f"temperature: expected a finite number >= 0, got {as_text(temperature)}")
    if top_k is not None:
        as_size("top_k", top_k)


def generate(
    stream: Any,
    start: ArrayLike,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    end: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> NDArray[np.int64]:
    """Continue sequences of codes, one symbol after the other.

    Parameters
    ----------
    stream
        What ``freeze`` gives for as many rows; it goes on from its state.
    start
        Codes (N,) for one row or (N, B), N >= 1: read first, and not part of the result.
    length
        How many symbols to add.
    temperature, top_k
        As in ``sample``; ``temperature=0`` is greedy.
    end : default None
        A symbol that ends a row: it and what follows in its row are ``end``; generation stops once
        all rows have ended.
    seed : default None
        A seed or a generator; None draws one.

    Returns
    -------
    ndarray of int64
        (n,) or (n, B), n <= length.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the stream has not moved then. But whether codes and ``end`` are
        below V shows as it reads: it has read what came before.

    Examples
    --------
    >>> import rnncore as rc
    >>> model = rc.Sequential(rc.Embedding(5, 4, seed=0), rc.GRU(4, 8, seed=1), rc.Linear(8, 5))
    >>> rc.generate(model.freeze(), [1, 2], 7, seed=0).shape
    (7,)
    """
    _check_stream(stream, "step")
    codes = as_integer_array("start", start)
    if codes.ndim not in (1, 2) or not len(codes):
        raise ValueError(f"start: expected shape (N,) or (N, B), N >= 1, got {codes.shape}")
    single = codes.ndim == 1
    codes = codes.reshape(len(codes), -1)
    steps = as_size("length", length)
    last = None if end is None else _symbol("end", end)
    _check_options(temperature, top_k)
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(as_seed(seed))
    for before in codes[:-1]:
        stream.step(before)
    current = codes[-1]
    made = []
    done = np.zeros(len(current), bool)
    for _ in range(steps):
        logits = stream.step(current)
        current = sample(logits, rng, temperature=temperature, top_k=top_k)
        if last is not None:
            _check_symbol("end", last, np.shape(logits)[-1])
            current[done] = last
            done |= current == last
        made.append(current)
        if done.all():
            break
    result = np.array(made)
    return result[:, 0] if single else result


def _check_stream(stream: object, *wanted: str) -> None:
    """Refuse a model that has not been frozen."""
    if not all(hasattr(stream, name) for name in wanted):
        raise TypeError(f"stream: expected what freeze gives, got {type(stream).__name__}")


def _symbol(name: str, value: object) -> int:
    """Check a symbol that the caller names, but for V, which nobody knows yet."""
    array = as_integer_array(name, value)
    check_shape(name, array, ())
    if array < 0:
        raise ValueError(f"{name}: expected a symbol >= 0, got {array}")
    return int(array)


def _check_symbol(name: str, symbol: int, symbols: int) -> None:
    check_range(name, np.array(symbol), 0, symbols - 1, "V - 1")


class Hypothesis(NamedTuple):
    """A sequence that a beam search has found.

    Attributes
    ----------
    codes
        (n,), without start and end.
    log_probability
        Sum of the log-probabilities of its symbols, that of the end included if it has ended.
    score
        What hypotheses are ordered by.
    ended
        Whether it ended before the longest length.
    """

    codes: NDArray[np.int64]
    log_probability: float
    score: float
    ended: bool


@overload
def beam_search(
    stream: Any,
    start: int | np.integer[Any],
    length: int,
    *,
    width: int,
    end: int | None = None,
    alpha: float = 0.0,
) -> list[Hypothesis]: ...
@overload
def beam_search(
    stream: Any,
    start: Sequence[int] | NDArray[Any],
    length: int,
    *,
    width: int,
    end: int | None = None,
    alpha: float = 0.0,
) -> list[list[Hypothesis]]: ...
def beam_search(
    stream: Any,
    start: ArrayLike,
    length: int,
    *,
    width: int,
    end: int | None = None,
    alpha: float = 0.0,
) -> list[Hypothesis] | list[list[Hypothesis]]:
    """Look for the likeliest sequences, keeping the ``width`` best beginnings at each step.

    A score is ``log P / ((5 + n) / 6)**alpha`` for n symbols, the end included.

    Parameters
    ----------
    stream
        What ``freeze(width)`` gives, or ``freeze(B * width)`` for B searches side by side; it goes
        on from its state, which must be the same in all ``width`` rows of a search, one after the
        other.
    start
        The code to read first; or codes (B,), one for each search.
    length
        Symbols at most.
    width
        Beginnings to keep. 1 is greedy while ``alpha`` is 0.
    end : default None
        The symbol that ends a sequence.
    alpha : default 0
        How much longer sequences are favoured: 0 not at all.

    Returns
    -------
    list of Hypothesis
        At most ``width``, the best first; a list of such lists for codes (B,). It is empty only if
        no symbol can follow.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; the stream has not moved then. But whether codes and ``end`` are
        below V and no logit is NaN shows as it reads: it has read what came before.

    References
    ----------
    Wu et al., Google's neural machine translation system, 2016, section 7 (the score, without its
    coverage penalty).

    Examples
    --------
    >>> import rnncore as rc
    >>> model = rc.Sequential(rc.Embedding(5, 4, seed=0), rc.GRU(4, 8, seed=1), rc.Linear(8, 5))
    >>> found = rc.beam_search(model.freeze(3), 1, 6, width=3, end=0)
    >>> len(found), found[0].score >= found[-1].score
    (3, True)
    >>> [len(each) for each in rc.beam_search(model.freeze(6), [1, 2], 6, width=3, end=0)]
    [3, 3]
    """
    _check_stream(stream, "step", "state")
    width = as_size("width", width)
    steps = as_size("length", length)
    last = None if end is None else _symbol("end", end)
    power = as_real("alpha", alpha)
    if not np.isfinite(power):
        raise ValueError(f"alpha: expected a finite number, got {as_text(alpha)}")
    starts = as_integer_array("start", start)
    if starts.ndim > 1:
        raise ValueError(f"start: expected a code or codes (B,), got shape {starts.shape}")
    beams = [_Beam(width, steps, last, power) for _ in range(starts.size)]
    current = np.repeat(starts, width)  # (B * width,)
    while any(beam.searching for beam in beams):
        log_p = _log_softmax(stream.step(current)).reshape(len(beams), width, -1)
        if last is not None:
            _check_symbol("end", last, log_p.shape[2])
        moves = [beam.extended(own) for beam, own in zip(beams, log_p, strict=True)]
        current = np.concatenate([symbols for _, symbols in moves])
        rows = np.concatenate([k * width + rows for k, (rows, _) in enumerate(moves)])
        stream.state = rows_of_state(stream.state, rows)
    found = [beam.found() for beam in beams]
    return found if starts.ndim else found[0]


class _Beam:
    """One search: the beginnings that it keeps, and what has ended."""

    def __init__(self, width: int, steps: int, end: int | None, alpha: float) -> None:
        self.searching = True
        self._width, self._steps, self._end, self._alpha = width, steps, end, alpha
        self._beginnings: list[list[int]] = [[] for _ in range(width)]
        # All rows begin alike, so only the first one counts at first.
        self._values = np.full(width, -np.inf)
        self._values[0] = 0.0
        self._length = 0
        self._ended: list[Hypothesis] = []

    def extended(self, log_p: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Take a step: from log P of each next symbol (width, V) to the rows and symbols kept.

        Both are (width,), whatever is kept: rows without a beginning count for nothing.
        """
        rows, symbols = np.zeros((2, self._width), np.int64)
        if not self.searching:
            return rows, symbols
        self._length += 1
        kept = self._kept(log_p + self._values[:, None])
        if not kept or self._settled(kept[0][2]):
            self.searching = False
            return rows, symbols
        n = len(kept)
        rows[:n], symbols[:n] = [row for row, *_ in kept], [symbol for _, symbol, _ in kept]
        self._values = np.full(self._width, -np.inf)
        self._values[:n] = [value for *_, value in kept]
        self._beginnings = [[*self._beginnings[row], symbol] for row, symbol, _ in kept]
        self._beginnings += [[] for _ in range(self._width - n)]
        if self._length == self._steps:
            self.searching = False
            self._ended += [
                self._hypothesis(codes, value, ended=False)
                for codes, (*_, value) in zip(self._beginnings, kept, strict=False)
            ]
        return rows, symbols

    def found(self) -> list[Hypothesis]:
        """Return the best, best first."""
        return sorted(self._ended, key=lambda hypothesis: -hypothesis.score)[: self._width]

    def _kept(self, values: NDArray[np.float64]) -> list[tuple[int, int, float]]:
        """Return (row, symbol, log P) of the best continuations (width, V), and note what ends."""
        symbols = values.shape[1]
        # Twice as many as are kept, since each beginning might end here.
        order = np.argsort(-values, axis=None, kind="stable")[: 2 * self._width]
        kept: list[tuple[int, int, float]] = []
        for place in order:
            row, symbol = divmod(int(place), symbols)
            value = float(values[row, symbol])
            if value == -np.inf or len(kept) == self._width:
                break
            if symbol == self._end:
                self._ended.append(self._hypothesis(self._beginnings[row], value, ended=True))
            else:
                kept.append((row, symbol, value))
        return kept

    def _hypothesis(self, codes: list[int], value: float, *, ended: bool) -> Hypothesis:
        score = value / self._penalty(self._length)
        return Hypothesis(np.array(codes, np.int64), value, score, ended)

    def _penalty(self, length: int) -> float:
        return float(((5.0 + length) / 6.0) ** self._alpha)

    def _settled(self, best: float) -> bool:
        """Tell whether no beginning can still become one of the best."""
        if len(self._ended) < self._width:
            return False
        # A log-probability only falls, and no length divides it by more than this.
        reachable = best / max(self._penalty(self._length), self._penalty(self._steps))
        return reachable <= self.found()[-1].score


def _largest(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest logit of each row (B, 1), once it is known to be one."""
    largest: NDArray[np.float64] = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError("logits: expected a finite largest logit in every row, got others")
    return largest


def _log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Return log P of each symbol (B, V), which is -inf for one that is excluded."""
    z = as_real_array("logits", logits, np.float64)
    z = z - _largest(z)
    found: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return found


def rows_of_state(state: Any, rows: NDArray[np.int64]) -> Any:
    """Take rows of a state, however it is nested."""
    if isinstance(state, Mapping):
        return {name: rows_of_state(part, rows) for name, part in state.items()}
    if isinstance(state, tuple):
        return tuple(rows_of_state(part, rows) for part in state)
    return state[:, rows]
