"""Cases: many short sequences, as an array or, where their lengths differ, as a list of arrays.

What an estimator is fitted on. ``(B, T, F)`` here, cases first; other packages for time series put
the channels before the time, ``(B, F, T)``, and two functions go from one layout to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from .batches import as_items, is_list_of_rows
from .parameters import as_real_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Cases",
    "Scale",
    "as_cases",
    "from_channels_first",
    "listed",
    "take",
    "to_channels_first",
]

# (B, T, F), or B arrays (T_b, F).
Cases: TypeAlias = "NDArray[Any] | list[NDArray[Any]]"


def listed(value: object) -> list[Any] | None:
    """Return cases that come one by one as a list; None where one array holds all of them.

    One by one are a list or tuple with an array or frame in it, nested lists of unequal lengths,
    and an array or series of objects that is like such a list. Nested lists of equal lengths are
    one array.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.cases import listed
    >>> listed(([1, 2], [3]))
    [[1, 2], [3]]
    >>> listed([[1, 2], [3, 4]]), listed(np.zeros((2, 3)))
    (None, None)
    """
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        value = np.asarray(value)
        if value.ndim != 1:
            return None
    elif not isinstance(value, (list, tuple)):
        return None
    cases = as_items(value)
    return cases if is_list_of_rows(cases) else None


def as_cases(name: str, value: list[Any]) -> list[NDArray[Any]]:
    """Convert and check a list of cases.

    Parameters
    ----------
    name
        The argument's name, for messages.
    value
        Array-likes (T_b, F), or (T_b,) where a step is one number; T_b >= 1.

    Returns
    -------
    list of ndarray (T_b, F)
        Of float32 where the case is, else of float64.

    Raises
    ------
    TypeError
        If a case is not of real numbers.
    ValueError
        If a case has no step, another shape, NaN or infinity, or the numbers of
        features differ.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.cases import as_cases
    >>> [case.shape for case in as_cases("X", [np.zeros((3, 2)), np.zeros((5, 2))])]
    [(3, 2), (5, 2)]
    """
    cases = [_as_case(f"{name}[{number}]", case) for number, case in enumerate(value)]
    features = cases[0].shape[1]
    for number, case in enumerate(cases):
        if case.shape[1] != features:
            raise ValueError(
                f"{name}[{number}]: expected {features} features, as in {name}[0], "
                f"got shape {case.shape}"
            )
    return cases


def _as_case(name: str, value: object) -> NDArray[Any]:
    """Convert and check one case (T, F) or (T,)."""
    case = as_real_array(name, value)
    if case.ndim not in (1, 2) or not case.size:
        raise ValueError(f"{name}: expected shape (T, F) or (T,), T and F >= 1, got {case.shape}")
    case = case.reshape(len(case), -1)
    bad = ~np.isfinite(case)
    if bad.any():
        step = int(np.flatnonzero(bad.any(axis=1))[0])
        kind = "NaN" if np.isnan(case[step]).any() else "infinity"
        raise ValueError(
            f"{name}: expected finite numbers, got {kind} at step {step} "
            "(fill in missing values, or leave those steps out: lengths may differ)"
        )
    return case


def take(cases: Cases, rows: NDArray[np.intp]) -> Cases:
    """Return the cases of these numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.cases import take
    >>> [len(case) for case in take([np.zeros((3, 1)), np.zeros((2, 1))], np.array([1]))]
    [2]
    """
    return cases[rows] if isinstance(cases, np.ndarray) else [cases[row] for row in rows]


# ---- Scales --------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """What brings every feature to mean 0 and variance 1: ``(x - mean) / spread``.

    Attributes
    ----------
    mean, spread
        (F,), float64. The spread is a standard deviation; 1 for a feature that never changes.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.cases import Scale
    >>> scale = Scale.of([np.array([[1.0], [3.0]]), np.array([[5.0]])])
    >>> scale.mean, scale.spread.round(3)
    (array([3.]), array([1.633]))
    >>> scale.undo(scale.apply(np.array([[[5.0]]]))).round(6)
    array([[[5.]]])
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, cases: Cases) -> Scale:
        """Measure the features over all steps of all cases."""
        count = sum(len(part) for part in _parts(cases))
        mean = sum(part.sum(axis=0, dtype=np.float64) for part in _parts(cases)) / count
        square = sum(np.square(part - mean).sum(axis=0) for part in _parts(cases)) / count
        spread = np.sqrt(square)
        # The mean of equal numbers is rounded, and what remains of them is no variation.
        steady = spread <= 1e-12 * np.abs(mean)
        return cls(mean, np.where(steady, 1.0, spread))

    @classmethod
    def none(cls, features: int) -> Scale:
        """Return the scale that changes nothing."""
        return cls(np.zeros(features), np.ones(features))

    def apply(self, cases: Cases) -> Cases:
        """Return fresh cases of float32 on the scale."""
        if isinstance(cases, np.ndarray):
            return as_real_array("X", (cases - self.mean) / self.spread, np.float32)
        return [as_real_array("X", (c - self.mean) / self.spread, np.float32) for c in cases]

    def undo(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return values (..., F) as they were before the scale."""
        undone: NDArray[np.float64] = values * self.spread + self.mean
        return undone


def _parts(cases: Cases) -> Iterator[NDArray[Any]]:
    """Iterate over arrays (N, F) that hold all steps."""
    if isinstance(cases, np.ndarray):
        yield cases.reshape(-1, cases.shape[-1])
    else:
        yield from cases


# ---- Layouts -------------------------------------------------------------------------------------


def from_channels_first(X: Any) -> Cases:
    """Return cases (T, F) for cases whose channels come before the time.

    That layout is usual in collections of time series; the estimators here take what is returned.

    Parameters
    ----------
    X
        (B, F, T), or a list of B arrays (F, T_b).

    Returns
    -------
    ndarray (B, T, F), or a list of B arrays (T_b, F)
        Fresh, of float32 where they were, else of float64.

    Raises
    ------
    TypeError
        If X is not of real numbers.
    ValueError
        If it has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.sklearn import from_channels_first
    >>> from_channels_first(np.zeros((10, 3, 50))).shape
    (10, 50, 3)
    >>> [case.shape for case in from_channels_first([np.zeros((3, 50)), np.zeros((3, 20))])]
    [(50, 3), (20, 3)]
    """
    return _exchanged(X, "F, T")


def to_channels_first(X: Any) -> Cases:
    """Return cases whose channels come before the time: undo ``from_channels_first``.

    Parameters
    ----------
    X
        (B, T, F), or a list of B arrays (T_b, F); (B, T) and (T_b,) have one channel.

    Returns
    -------
    ndarray (B, F, T), or a list of B arrays (F, T_b)
        Fresh, of float32 where they were, else of float64.

    Raises
    ------
    TypeError
        If X is not of real numbers.
    ValueError
        If it has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.sklearn import to_channels_first
    >>> to_channels_first(np.zeros((10, 50, 3))).shape, to_channels_first(np.zeros((10, 50))).shape
    ((10, 3, 50), (10, 1, 50))
    """
    return _exchanged(X, "T, F")


def _exchanged(X: Any, letters: str) -> Cases:
    """Return cases with their two axes, in letters, exchanged."""
    cases = listed(X)
    if cases is not None:
        return [_swapped(f"X[{n}]", case, f"({letters})") for n, case in enumerate(cases)]
    return _swapped("X", X, f"(B, {letters})")


def _swapped(name: str, value: object, letters: str) -> NDArray[Any]:
    """Return a fresh array with its last two axes exchanged.

    ``letters`` is the shape; where it ends in F, one axis less is one feature.
    """
    values = as_real_array(name, value)
    axes = letters.count(",") + 1
    if letters.endswith("F)") and values.ndim == axes - 1:
        values = values[..., None]
    if values.ndim != axes:
        raise ValueError(f"{name}: expected shape {letters}, got {values.shape}")
    return values.swapaxes(-1, -2).copy()
