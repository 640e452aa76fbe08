"""Augmentation: new training sequences from those that there are.

An augmentation is a callable ``(x, lengths, rng) -> (x, lengths)`` over a batch, drawn anew each
time; it belongs in front of training batches alone. A sequence that has been shaken, scaled or
warped a little means the same, and a network that sees it in many forms has less to learn by heart.

``moves_time`` says whether steps leave their places; ``fit`` refuses such an augmentation, and one
that changes lengths, where every step has a target.

What they share: x is never changed but copied, what lies beyond a row's length stays as it is
and is not read, and the draws come from the generator that is handed over, so that a run repeats
with its seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from .parameters import (
    as_flag,
    as_real,
    as_real_array,
    as_setting,
    as_size,
    as_text,
    check_generator,
    check_good,
)
from .ragged import as_ragged

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Lengths: TypeAlias = NDArray[np.int64] | None
    Augmentation: TypeAlias = Callable[
        [NDArray[Any], Lengths, np.random.Generator], tuple[NDArray[Any], Lengths]
    ]

__all__ = ["Compose", "Jitter", "Scaling", "TimeWarp", "WindowSlice"]


class _Batch(NamedTuple):
    """A batch in one layout, whatever the caller's is."""

    x: NDArray[Any]  # (T, B, F)
    lengths: Lengths
    inside: NDArray[np.bool_]  # (T, B): True at the steps that count


class _Augmentation(ABC):
    """What all share: one call, which checks its arguments and hides the layout."""

    _moves_time: ClassVar[bool] = False

    def __init__(self, *, batch_first: bool) -> None:
        self._batch_first = as_flag("batch_first", batch_first)

    @property
    def batch_first(self) -> bool:
        """Whether x is (B, T, F) rather than (T, B, F)."""
        return self._batch_first

    @property
    def moves_time(self) -> bool:
        """Whether steps leave their places, which targets of theirs would not follow."""
        return self._moves_time

    def __call__(
        self, x: ArrayLike, lengths: ArrayLike | None, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return an augmented copy of a batch.

        Parameters
        ----------
        x
            (T, B, F), or (B, T, F) with ``batch_first``: real numbers. float32 stays float32,
            everything else becomes float64.
        lengths
            Integers (B,) in [0, T], or None: every step counts.
        rng
            What draws.

        Returns
        -------
        x : ndarray
            A fresh array.
        lengths : ndarray (B,), or None
            None if it was.

        Raises
        ------
        TypeError
            If x is not of real numbers, the lengths not of integers, or ``rng`` no
            ``numpy.random.Generator``.
        ValueError
            If a shape or a length is wrong.
        """
        check_generator(rng)
        # A copy: what is augmented is written to.
        fresh = as_real_array("x", x, copy=True)
        values, checked, inside = as_ragged(
            fresh, lengths, features="F", dtype=None, batch_first=self._batch_first
        )
        if values.ndim != 3:
            layout = "(B, T, F)" if self._batch_first else "(T, B, F)"
            raise ValueError(f"x: expected shape {layout}, got {values.shape}")
        if inside is None:
            inside = np.ones(values.shape[:2], np.bool_)
        if self._batch_first:
            values, inside = values.swapaxes(0, 1), inside.T
        values, checked = self._apply(_Batch(values, checked, inside), rng)
        return (values.swapaxes(0, 1) if self._batch_first else values), checked

    @abstractmethod
    def _apply(self, batch: _Batch, rng: np.random.Generator) -> tuple[NDArray[Any], Lengths]:
        """Change ``batch.x`` in place or return another, and return the new lengths."""

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Return every option but ``batch_first``, by name."""

    def __repr__(self) -> str:
        """Return the call that makes an equal one."""
        options = [f"{name}={value!r}" for name, value in self._options().items()]
        options += ["batch_first=True"] if self._batch_first else []
        return f"{type(self).__name__}({', '.join(options)})"


class Jitter(_Augmentation):
    """Add noise to every value: sensors are never quite exact.

    Parameters
    ----------
    sigma : default 0.05
        The deviation of the normal noise, in the unit of x: one number, or one for each feature
        (F,).
    batch_first : default False
        Whether x is (B, T, F).

    Raises
    ------
    TypeError
        If ``sigma`` is not of real numbers, or ``batch_first`` no bool.
    ValueError
        If it has more than one axis, or a value is not finite and >= 0.

    References
    ----------
    Um et al., Data augmentation of wearable sensor data for Parkinson's disease monitoring using
    convolutional neural networks, 2017, arXiv:1706.00527.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> x, lengths = rc.Jitter(0.1)(np.zeros((3, 2, 1)), [3, 1], np.random.default_rng(0))
    >>> bool(x[:, 0].all()), bool(x[1:, 1].any())  # padding is left alone
    (True, False)
    """

    def __init__(self, sigma: ArrayLike = 0.05, *, batch_first: bool = False) -> None:
        super().__init__(batch_first=batch_first)
        self._sigma = as_real_array("sigma", sigma, np.float64, copy=True)
        if self._sigma.ndim > 1:
            raise ValueError(f"sigma: expected one number or shape (F,), got {self._sigma.shape}")
        good = np.isfinite(self._sigma) & (self._sigma >= 0)
        check_good("sigma", self._sigma, good, "finite numbers >= 0")

    @property
    def sigma(self) -> NDArray[np.float64]:
        """The deviation of the noise, () or (F,); a copy."""
        return self._sigma.copy()

    def _apply(self, batch: _Batch, rng: np.random.Generator) -> tuple[NDArray[Any], Lengths]:
        x, lengths, inside = batch
        if self._sigma.ndim and len(self._sigma) != x.shape[2]:
            raise ValueError(
                f"x: expected {len(self._sigma)} features, as sigma has, got {x.shape[2]}"
            )
        noise = self._sigma.astype(x.dtype) * rng.standard_normal(x.shape, x.dtype)
        np.add(x, noise, out=x, where=inside[:, :, None])
        return x, lengths

    def _options(self) -> dict[str, Any]:
        return {"sigma": self._sigma.tolist()}


class Scaling(_Augmentation):
    """Multiply every row by a factor of its own: the same movement, stronger or weaker.

    Parameters
    ----------
    sigma : default 0.1
        The deviation of the factors, which are normal with mean 1.
    per_feature : default True
        Whether each feature of a row has a factor of its own. False: one for the whole row.
    batch_first : default False
        Whether x is (B, T, F).

    Raises
    ------
    TypeError
        If ``sigma`` is no real number, or another option no bool.
    ValueError
        If ``sigma`` is not finite and >= 0.

    References
    ----------
    Um et al., 2017, as for ``Jitter``.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> x, _ = rc.Scaling(0.1)(np.ones((3, 2, 1)), None, np.random.default_rng(0))
    >>> x[..., 0].round(2)
    array([[1.01, 0.99],
           [1.01, 0.99],
           [1.01, 0.99]])
    """

    def __init__(
        self, sigma: float = 0.1, *, per_feature: bool = True, batch_first: bool = False
    ) -> None:
        super().__init__(batch_first=batch_first)
        self._sigma = as_setting("sigma", sigma)
        self._per_feature = as_flag("per_feature", per_feature)

    @property
    def sigma(self) -> float:
        """The deviation of the factors."""
        return self._sigma

    @property
    def per_feature(self) -> bool:
        """Whether each feature of a row has a factor of its own."""
        return self._per_feature

    def _apply(self, batch: _Batch, rng: np.random.Generator) -> tuple[NDArray[Any], Lengths]:
        x, lengths, inside = batch
        _, B, F = x.shape
        factors = 1.0 + self._sigma * rng.standard_normal((B, F if self._per_feature else 1))
        np.multiply(x, factors.astype(x.dtype), out=x, where=inside[:, :, None])
        return x, lengths

    def _options(self) -> dict[str, Any]:
        return {"sigma": self._sigma, "per_feature": self._per_feature}


class TimeWarp(_Augmentation):
    """Stretch and squeeze time, smoothly: the same movement, faster here and slower there.

    The logarithm of the speed is drawn at both ends of a row and at ``knots`` places between, and
    is linear from one to the next, so that time never runs backwards. The first and the last
    step that count keep their places, and values between two steps are interpolated. The steps of x
    move: targets that belong to steps do not move with them.

    Parameters
    ----------
    sigma : default 0.2
        The deviation of the logarithm of the speed.
    knots : default 4
        At how many places between the ends the speed is drawn.
    batch_first : default False
        Whether x is (B, T, F).

    Raises
    ------
    TypeError
        If ``sigma`` is no real number, ``knots`` no integer, or ``batch_first`` no bool.
    ValueError
        If ``sigma`` is not finite and >= 0, or ``knots`` not positive.

    References
    ----------
    Um et al., 2017, as for ``Jitter``; they draw the speed itself, by a cubic spline.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> x = np.arange(5.0).reshape(5, 1, 1)
    >>> warped, _ = rc.TimeWarp(0.5)(x, None, np.random.default_rng(0))
    >>> warped[:, 0, 0].round(2)
    array([0.  , 1.  , 2.06, 3.03, 4.  ])
    """

    _moves_time = True

    def __init__(self, sigma: float = 0.2, *, knots: int = 4, batch_first: bool = False) -> None:
        super().__init__(batch_first=batch_first)
        self._sigma = as_setting("sigma", sigma)
        self._knots = as_size("knots", knots)

    @property
    def sigma(self) -> float:
        """The deviation of the logarithm of the speed."""
        return self._sigma

    @property
    def knots(self) -> int:
        """At how many places between the ends of a row the speed is drawn."""
        return self._knots

    def _apply(self, batch: _Batch, rng: np.random.Generator) -> tuple[NDArray[Any], Lengths]:
        x, lengths, inside = batch
        T, B, _ = x.shape
        logs = self._sigma * rng.standard_normal((self._knots + 2, B))
        last = (np.full(B, T) if lengths is None else lengths) - 1
        # Rows of one step have no speed; two steps stay where they are.
        movable = inside & (last > 1)
        if not movable.any():
            return x, lengths
        times = _warped_times(logs, np.maximum(last, 1), T)
        before = np.minimum(times.astype(np.int64), np.maximum(last - 1, 0))
        share = (times - before)[:, :, None].astype(x.dtype)
        rows = np.arange(B)
        after = np.minimum(before + 1, T - 1)
        # A share of 0 or 1 takes one value as it is: beside it may stand an infinity.
        with np.errstate(invalid="ignore"):
            between = x[before, rows] * (1 - share) + x[after, rows] * share
        between = np.where(share == 0, x[before, rows], between)
        between = np.where(share == 1, x[after, rows], between)
        np.copyto(x, between, where=movable[:, :, None])
        return x, lengths

    def _options(self) -> dict[str, Any]:
        return {"sigma": self._sigma, "knots": self._knots}


def _warped_times(logs: NDArray[Any], last: NDArray[np.int64], steps: int) -> NDArray[np.float64]:
    """Return where every new step (T, B) lies in the old time; from 0 to ``last`` in each row."""
    intervals = len(logs) - 1
    places = np.minimum(np.arange(steps)[:, None] / last, 1.0) * intervals
    knot = np.minimum(places.astype(np.int64), intervals - 1)
    rows, share = np.arange(len(last)), places - knot
    speed = np.exp(logs[knot, rows] * (1 - share) + logs[knot + 1, rows] * share)
    way = np.zeros_like(speed)
    np.cumsum((speed[1:] + speed[:-1]) / 2, axis=0, out=way[1:])
    times: NDArray[np.float64] = np.minimum(way / way[last, rows], 1.0) * last
    return times


class WindowSlice(_Augmentation):
    """Cut a window out of every row: a piece of the sequence must be enough to know it.

    The window of row b has ``share`` of its steps, rounded, but at least one, and begins anywhere.
    It moves to the first steps. With lengths these become shorter, and the steps that are freed
    hold 0; without them T does. Targets that belong to steps do not move with them.

    Parameters
    ----------
    share : default 0.9
        The share of the steps that a window keeps, above 0 and at most 1.
    batch_first : default False
        Whether x is (B, T, F).

    Raises
    ------
    TypeError
        If ``share`` is no real number, or ``batch_first`` no bool.
    ValueError
        If ``share`` is out of range.

    References
    ----------
    Le Guennec, Malinowski and Tavenard, Data augmentation for time series classification using
    convolutional neural networks, 2016.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> x = np.arange(10.0).reshape(10, 1, 1)
    >>> window, lengths = rc.WindowSlice(0.5)(x, [10], np.random.default_rng(0))
    >>> window[:, 0, 0], lengths
    (array([5., 6., 7., 8., 9., 0., 0., 0., 0., 0.]), array([5]))
    """

    _moves_time = True

    def __init__(self, share: float = 0.9, *, batch_first: bool = False) -> None:
        super().__init__(batch_first=batch_first)
        self._share = as_real("share", share)
        if not 0 < self._share <= 1:
            raise ValueError(f"share: expected a number above 0, at most 1, got {as_text(share)}")

    @property
    def share(self) -> float:
        """The share of the steps that a window keeps."""
        return self._share

    def _apply(self, batch: _Batch, rng: np.random.Generator) -> tuple[NDArray[Any], Lengths]:
        x, lengths, inside = batch
        T, B, _ = x.shape
        whole = np.full(B, T) if lengths is None else lengths
        kept = np.minimum(np.maximum(np.rint(self._share * whole).astype(np.int64), 1), whole)
        start = rng.integers(0, whole - kept + 1)
        times = np.arange(T)[:, None]
        moved = x[np.minimum(times + start, T - 1), np.arange(B)] if T else x
        if lengths is None:
            return moved[: int(kept[0]) if B else T].copy(), None
        moved[inside & (times >= kept)] = 0
        np.copyto(x, moved, where=inside[:, :, None])
        return x, kept

    def _options(self) -> dict[str, Any]:
        return {"share": self._share}


class Compose:
    """Several augmentations, one after the other.

    Parameters
    ----------
    *augmentations
        Callables ``(x, lengths, rng) -> (x, lengths)``, in order: those of this module, or yours.

    Raises
    ------
    TypeError
        If one cannot be called.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> augment = rc.Compose(rc.WindowSlice(0.9), rc.TimeWarp(0.2), rc.Jitter(0.05))
    >>> x, lengths = augment(np.ones((20, 8, 3)), None, np.random.default_rng(0))
    >>> x.shape
    (18, 8, 3)
    """

    def __init__(self, *augmentations: Augmentation) -> None:
        for place, augmentation in enumerate(augmentations):
            if not callable(augmentation):
                raise TypeError(
                    f"augmentations[{place}]: expected a callable (x, lengths, rng) -> "
                    f"(x, lengths), got {type(augmentation).__name__}"
                )
        self._augmentations = augmentations

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """The augmentations, in order."""
        return self._augmentations

    @property
    def moves_time(self) -> bool:
        """Whether one of them says so of itself."""
        return any(getattr(part, "moves_time", False) for part in self._augmentations)

    def __call__(
        self, x: Any, lengths: Any, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return the batch after all of them.

        Parameters
        ----------
        x, lengths, rng
            What the first one takes.

        Returns
        -------
        x, lengths
            What the last one gives; without any, those that came.

        Raises
        ------
        TypeError, ValueError
            From an augmentation, with a note that names it; or TypeError if it gives no pair.
        """
        for place, augmentation in enumerate(self._augmentations):
            try:
                result = augmentation(x, lengths, rng)
            except Exception as error:
                error.add_note(f"in augmentations[{place}]: {augmentation!r}")
                raise
            if not (isinstance(result, tuple) and len(result) == 2):
                raise TypeError(
                    f"augmentations[{place}]: expected to return (x, lengths), "
                    f"got {type(result).__name__} from {augmentation!r}"
                )
            x, lengths = result
        return x, lengths

    def __repr__(self) -> str:
        """Return the call that makes an equal one."""
        return f"Compose({', '.join(map(repr, self._augmentations))})"
