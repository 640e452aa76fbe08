"""Ragged batches in NumPy: the steps that count, taken together and put back.

What lies beyond a row's length is padding. It may hold anything, so it is never multiplied by a
mask (0 * NaN is NaN): it is left out of what is computed, and zeros are put back in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .parameters import as_lengths, as_real_array, inside_lengths

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Ragged", "as_ragged", "gather", "scatter"]


class Ragged(NamedTuple):
    """A sequence, and which of its steps count; both None where all do.

    Attributes
    ----------
    values
        (T, B, F), or (B, T, F) batch first, or (T, F) unbatched.
    lengths
        (B,)
    inside
        (T, B), or (B, T) batch first: True at the steps that count.
    """

    values: NDArray[Any]
    lengths: NDArray[np.int64] | None
    inside: NDArray[np.bool_] | None


def as_ragged(
    value: ArrayLike,
    lengths: ArrayLike | None,
    *,
    features: int | str,
    dtype: np.dtype[Any] | None,
    batch_first: bool,
) -> Ragged:
    """Convert and check the argument x of a layer that knows time, and its lengths.

    Parameters
    ----------
    value
        x: (T, B, F), or (B, T, F) with ``batch_first``, or (T, F).
    lengths
        Integers (B,) in [0, T], or None.
    features
        F, or the letter for it where any number will do.
    dtype
        Of the result; None keeps float32 and float64 and makes all else float64.
    batch_first
        Whether the first axis of three is the batch.

    Raises
    ------
    TypeError
        If x is not of real numbers, or the lengths are not integers.
    ValueError
        If a shape is wrong, a length out of range, a number that counts too large for the dtype,
        or lengths come with an unbatched x.
    """
    # Padding may hold what the dtype cannot: the cast waits until the lengths are known.
    x = as_real_array("x", value, dtype if lengths is None else None)
    if x.ndim not in (2, 3) or (isinstance(features, int) and x.shape[-1] != features):
        layout = "B, T" if batch_first else "T, B"
        raise ValueError(
            f"x: expected shape ({layout}, {features}) or (T, {features}), got {x.shape}"
        )
    if lengths is None:
        return Ragged(x, None, None)
    if x.ndim == 2:
        raise ValueError(
            "lengths: expected None for an unbatched x of shape (T, F), "
            f"got {type(lengths).__name__}"
        )
    rows, steps = x.shape[:2] if batch_first else x.shape[1::-1]
    checked = as_lengths(lengths, steps, rows)
    inside = inside_lengths(checked, steps, batch_first=batch_first)
    return Ragged(as_real_array("x", x, dtype, counted=inside), checked.copy(), inside)


def gather(values: NDArray[Any], inside: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Take what counts: (N, ...) of (T, B, ...), in the order of the mask; all, if it is None."""
    taken: NDArray[Any] = values if inside is None else values[inside]
    return taken


def scatter(
    rows: NDArray[Any], inside: NDArray[np.bool_] | None, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Put back what ``gather`` took, with zeros where nothing counts.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.ragged import scatter
    >>> scatter(np.array([1.0, 2.0]), np.array([[True, False], [False, True]]), (2, 2))
    array([[1., 0.],
           [0., 2.]])
    """
    if inside is None:
        return rows.reshape(shape)
    values = np.zeros(shape, rows.dtype)
    values[inside] = rows
    return values
