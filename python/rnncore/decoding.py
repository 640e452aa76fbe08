"""From logits to sequences: sampling, the likeliest symbol at each step, and beam search.

Everything here works on a *stream*: what ``freeze`` gives, or any object whose ``step`` takes codes
(B,) and returns logits (B, V), and whose ``state`` can be read and set. A state is an array with
the rows at axis 1, or a mapping or tuple of such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .parameters import as_integer_array, as_real, as_real_array, as_seed, as_size, as_text

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
        If an argument is not of real numbers, or ``rng`` no generator.
    ValueError
        If there are no symbols, a row has none to draw (all -inf, or a NaN), or ``temperature`` is
        negative.

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
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
    z = as_real_array("logits", logits, np.float64)
    if not z.ndim or not z.shape[-1]:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {z.shape}")
    rows = z.reshape(-1, z.shape[-1])
    largest = rows.max(axis=1)
    if not np.isfinite(largest).all():
        raise ValueError("logits: expected a finite largest logit in every row, got others")
    if _temperature(temperature) == 0.0:
        likeliest: NDArray[np.int64] = rows.argmax(axis=1).reshape(z.shape[:-1])
        return likeliest
    if top_k is not None:
        kept = np.argsort(-rows, axis=1, kind="stable")[:, : as_size("top_k", top_k)]
        limited = np.full_like(rows, -np.inf)
        np.put_along_axis(limited, kept, np.take_along_axis(rows, kept, axis=1), axis=1)
        rows = limited
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    noise = rng.gumbel(size=rows.shape)
    scaled = (rows - largest[:, None]) / temperature
    drawn: NDArray[np.int64] = (scaled + noise).argmax(axis=1).reshape(z.shape[:-1])
    return drawn


def _temperature(value: object) -> float:
    number = as_real("temperature", value)
    if not 0.0 <= number < np.inf:
        raise ValueError(f"temperature: expected a finite number >= 0, got {as_text(value)}")
    return number


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
        If an argument is of the wrong type or shape.

    Examples
    --------
    >>> import rnncore as rc
    >>> model = rc.Sequential(rc.Embedding(5, 4, seed=0), rc.GRU(4, 8, seed=1), rc.Linear(8, 5))
    >>> rc.generate(model.freeze(), [1, 2], 7, seed=0).shape
    (7,)
    """
    codes = as_integer_array("start", start)
    if codes.ndim not in (1, 2) or not len(codes):
        raise ValueError(f"start: expected shape (N,) or (N, B), N >= 1, got {codes.shape}")
    single = codes.ndim == 1
    codes = codes.reshape(len(codes), -1)
    steps = as_size("length", length)
    _temperature(temperature)
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(as_seed(seed))
    for before in codes[:-1]:
        stream.step(before)
    current = codes[-1]
    made = []
    done = np.zeros(len(current), bool)
    for _ in range(steps):
        logits = stream.step(current)
        current = sample(logits, rng, temperature=temperature, top_k=top_k)
        if end is not None:
            current[done] = end
            done |= current == end
        made.append(current)
        if done.all():
            break
    result = np.array(made)
    return result[:, 0] if single else result


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


def beam_search(
    stream: Any,
    start: int,
    length: int,
    *,
    width: int,
    end: int | None = None,
    alpha: float = 0.0,
) -> list[Hypothesis]:
    """Look for the likeliest sequences, keeping the ``width`` best beginnings at each step.

    A score is ``log P / ((5 + n) / 6)**alpha`` for n symbols, the end included.

    Parameters
    ----------
    stream
        What ``freeze(width)`` gives; it goes on from its state, which must be the same in all rows.
    start
        The code to read first.
    length
        Symbols at most.
    width
        Beginnings to keep. 1 is greedy.
    end : default None
        The symbol that ends a sequence.
    alpha : default 0
        How much longer sequences are favoured: 0 not at all.

    Returns
    -------
    list of Hypothesis
        At most ``width``, the best first.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or a logit is NaN.

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
    """
    width = as_size("width", width)
    steps = as_size("length", length)
    power = as_real("alpha", alpha)
    rows = np.zeros(width, np.int64)
    current = np.full(width, as_integer_array("start", start).item())
    # All rows begin alike, so only the first one counts at first.
    scores = np.full(width, -np.inf)
    scores[0] = 0.0
    beginnings: list[list[int]] = [[] for _ in range(width)]
    finished: list[Hypothesis] = []
    for n in range(1, steps + 1):
        log_p = _log_softmax(stream.step(current)) + scores[:, None]
        symbols = log_p.shape[1]
        # One more for each beginning that might end here.
        order = np.argsort(-log_p, axis=None, kind="stable")[: 2 * width]
        kept: list[tuple[int, int, float]] = []
        for place in order:
            row, symbol = divmod(int(place), symbols)
            value = float(log_p[row, symbol])
            if value == -np.inf or len(kept) == width:
                break
            if symbol == end:
                finished.append(_hypothesis(beginnings[row], value, n, power, ended=True))
            else:
                kept.append((row, symbol, value))
        if not kept or _settled(finished, width, kept[0][2], steps, power):
            kept = []
            break
        beginnings = [[*beginnings[row], symbol] for row, symbol, _ in kept]
        # Rows without a beginning repeat the last one and count for nothing.
        spare = width - len(kept)
        beginnings += [[] for _ in range(spare)]
        rows = np.array([row for row, *_ in kept] + [kept[-1][0]] * spare)
        current = np.array([symbol for _, symbol, _ in kept] + [kept[-1][1]] * spare)
        scores = np.array([value for *_, value in kept] + [-np.inf] * spare)
        stream.state = _rows(stream.state, rows)
    else:
        finished += [
            _hypothesis(codes, float(value), steps, power, ended=False)
            for codes, value in zip(beginnings, scores, strict=True)
            if value > -np.inf
        ]
    return sorted(finished, key=lambda found: -found.score)[:width]


def _hypothesis(codes: list[int], value: float, n: int, alpha: float, *, ended: bool) -> Hypothesis:
    score = value / ((5.0 + n) / 6.0) ** alpha
    return Hypothesis(np.array(codes, np.int64), value, score, ended)


def _settled(finished: list[Hypothesis], width: int, best: float, steps: int, alpha: float) -> bool:
    """Tell whether no beginning can still become one of the best."""
    if len(finished) < width:
        return False
    # A score grows with the length at most, and a log-probability only falls.
    reachable = best / ((5.0 + steps) / 6.0) ** alpha if alpha > 0 else best
    return reachable <= sorted((found.score for found in finished), reverse=True)[width - 1]


def _log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    z = np.asarray(logits, np.float64)
    if np.isnan(z).any():
        raise ValueError("logits: expected numbers, got NaN")
    z = z - z.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return found


def _rows(state: Any, rows: NDArray[np.int64]) -> Any:
    """Take rows of a state, however it is nested."""
    if isinstance(state, Mapping):
        return {name: _rows(part, rows) for name, part in state.items()}
    if isinstance(state, tuple):
        return tuple(_rows(part, rows) for part in state)
    return state[:, rows]
