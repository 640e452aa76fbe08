"""Losses: each returns its value and its gradient in one call.

Both are means over the elements that count. An element does not count if it lies beyond its row's
length, if its target is ``ignore_index``, or if its weight is 0; it is then never looked at, so it
may hold NaN or a target out of range, and its gradient is exactly 0. If nothing counts, the loss is
0.0 and so is the gradient. NaN and infinities among the rest go into the loss without a warning.

The loss is summed in float64 whatever the dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .parameters import (
    as_flag,
    as_integer_array,
    as_lengths,
    as_real_array,
    as_text,
    check_range,
    check_shape,
    inside_lengths,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["mean_squared_error", "softmax_cross_entropy"]


def softmax_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    batch_first: bool = False,
) -> tuple[float, NDArray[Any]]:
    """Mean negative log-likelihood of the targets under the softmax of the logits.

    With p = softmax(z) and weights w, over the elements n that count,
    ``loss = sum_n w_n (log sum_k exp z_nk - z_n,target) / sum_n w_n`` and
    ``dloss/dz_nk = w_n (p_nk - [k = target_n]) / sum_n w_n``.
    A row's largest logit is subtracted first, so that no exponential overflows.

    Parameters
    ----------
    logits
        z, unnormalised log-probabilities (..., K), K >= 1.
    targets
        Classes (...), integers from 0 to K - 1.
    lengths : default None
        Integers (B,) for logits (T, B, K): row b counts up to step ``lengths[b]``. None: every
        step counts.
    weights : default None
        w (...), a finite weight >= 0 for every target. The mean is divided by their sum. None:
        all 1.
    ignore_index : default None
        A target that says "do not count". None: there is none.
    batch_first : default False
        Whether the axes to which ``lengths`` refers are (B, T, K); without ``lengths`` the two
        layouts are the same to a mean.

    Returns
    -------
    loss : float
    gradient : ndarray
        dloss/dz, fresh, of the shape of the logits and of their dtype if that is float32 or
        float64, else float64.

    Raises
    ------
    TypeError
        If logits or weights are no real numbers, or targets, lengths or ``ignore_index`` no
        integers.
    ValueError
        If shapes do not fit, or targets, weights or lengths are out of range.

    References
    ----------
    Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990.

    Examples
    --------
    >>> from rnncore.losses import softmax_cross_entropy
    >>> loss, gradient = softmax_cross_entropy([[0.0, 0.0], [3.0, 3.0]], [0, 1])
    >>> round(loss, 6)
    0.693147
    >>> gradient
    array([[-0.25,  0.25],
           [ 0.25, -0.25]])
    """
    z = as_real_array("logits", logits)
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., K) with K >= 1, got {z.shape}")
    classes = z.shape[-1]
    t = as_integer_array("targets", targets)
    check_shape("targets", t, z.shape[:-1], "(...)")
    layout = ("(B, T, K)" if as_flag("batch_first", batch_first) else "(T, B, K)", 3, 3)
    counted = _inside("logits", z, layout, lengths, batch_first)
    if ignore_index is not None:
        named = t != _checked_ignore_index(ignore_index)
        counted = named if counted is None else counted & named
    w, counted = _checked_weights(weights, t.shape, "(...)", counted)
    check_range("targets", t, 0, classes - 1, "K - 1", counted)

    z_rows, t_rows = z.reshape(-1, classes), t.reshape(-1)
    w_rows = None if w is None else w.reshape(-1)
    if counted is None:
        loss, gradient = _cross_entropy(z_rows, t_rows, w_rows)
    else:
        rows = np.flatnonzero(counted)
        gradient = np.zeros_like(z_rows)
        loss, gradient[rows] = _cross_entropy(
            z_rows[rows], t_rows[rows], None if w_rows is None else w_rows[rows]
        )
    return loss, gradient.reshape(z.shape)


def _cross_entropy(
    z: NDArray[Any], t: NDArray[np.int64], w: NDArray[np.float64] | None
) -> tuple[float, NDArray[Any]]:
    """Loss and gradient (N, K) of rows that all count: z (N, K), t (N,), w (N,) > 0."""
    if not len(t):
        return 0.0, np.zeros_like(z)
    n = np.arange(len(t))
    with np.errstate(all="ignore"):
        z = z - z.max(axis=1, keepdims=True)
        gradient = np.exp(z)
        total = gradient.sum(axis=1)
        nll = np.log(total) - z[n, t]
        # d nll / dz = softmax(z) - one-hot(t)
        gradient /= total[:, None]
        gradient[n, t] -= 1
        if w is None:
            gradient /= len(t)
            return float(nll.sum(dtype=np.float64) / len(t)), gradient
        share = w / w.sum()
        gradient *= share.astype(z.dtype)[:, None]
        return float((nll * share).sum()), gradient


def mean_squared_error(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    batch_first: bool = False,
) -> tuple[float, NDArray[Any]]:
    """Mean of the squared differences.

    With prediction y, target t and weights w, over the elements that count,
    ``loss = sum w (y - t)^2 / sum w`` and ``dloss/dy = 2 w (y - t) / sum w``.

    Parameters
    ----------
    prediction
        y, of any shape.
    target
        t, of exactly the shape of y: nothing is broadcast. Cast to the dtype of y.
    lengths : default None
        Integers (B,) for y (T, B, ...): row b counts up to step ``lengths[b]``. None: every
        step counts.
    weights : default None
        w, a finite weight >= 0 for every element, of exactly the shape of y; for one weight a step
        pass ``np.broadcast_to(w[..., None], y.shape)``. The mean is divided by their sum.
        None: all 1.
    batch_first : default False
        Whether the axes to which ``lengths`` refers are (B, T, ...); without ``lengths`` the two
        layouts are the same to a mean.

    Returns
    -------
    loss : float
    gradient : ndarray
        dloss/dy, fresh, of the shape of y and of its dtype if that is float32 or float64, else
        float64.

    Raises
    ------
    TypeError
        If prediction, target or weights are no real numbers, or lengths no integers.
    ValueError
        If shapes do not fit, or weights or lengths are out of range.

    Examples
    --------
    >>> from rnncore.losses import mean_squared_error
    >>> mean_squared_error([1.0, 2.0], [1.0, 4.0])
    (2.0, array([ 0., -2.]))
    """
    y = as_real_array("prediction", prediction)
    layout = ("(B, T, ...)" if as_flag("batch_first", batch_first) else "(T, B, ...)", 2, y.ndim)
    counted = _inside("prediction", y, layout, lengths, batch_first)
    if counted is not None:
        steps = counted.reshape(counted.shape + (1,) * (y.ndim - 2))
        counted = np.broadcast_to(steps, y.shape)
    w, counted = _checked_weights(weights, y.shape, "of prediction", counted)
    t = as_real_array("target", target, y.dtype, counted=counted)
    check_shape("target", t, y.shape, "of prediction")

    with np.errstate(all="ignore"):
        d = np.zeros_like(y)
        np.subtract(y, t, out=d, where=True if counted is None else counted)
        squares = np.square(d, dtype=np.float64)
        if w is None:
            size = max(y.size if counted is None else int(np.count_nonzero(counted)), 1)
            d *= 2 / size
            return float(squares.sum() / size), d
        share = w / (w.sum() or 1.0)  # all weights 0: no share in anything
        d *= (2 * share).astype(y.dtype)
        return float((squares * share).sum()), d


def _inside(
    name: str,
    values: NDArray[Any],
    layout: tuple[str, int, int],
    lengths: ArrayLike | None,
    batch_first: bool,
) -> NDArray[np.bool_] | None:
    """Return the mask (T, B) or (B, T) of the steps inside the lengths; None if all are.

    ``layout`` is the shape in letters, the least and the greatest number of axes.
    """
    if lengths is None:
        return None
    letters, least, most = layout
    if not least <= values.ndim <= most:
        raise ValueError(f"{name}: expected shape {letters} with lengths, got {values.shape}")
    rows, steps = values.shape[:2] if batch_first else values.shape[1::-1]
    return inside_lengths(as_lengths(lengths, steps, rows), steps, batch_first=batch_first)


def _checked_weights(
    weights: ArrayLike | None,
    shape: tuple[int, ...],
    letters: str,
    counted: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_] | None]:
    """Return the weights, 0 where nothing counts, and the mask of what counts with them."""
    if weights is None:
        return None, counted
    w = as_real_array("weights", weights, np.float64)
    check_shape("weights", w, shape, letters)
    if counted is not None:
        w = np.where(counted, w, 0.0)
    bad = ~((w >= 0) & (w < np.inf))  # NaN is bad too
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), shape))
        raise ValueError(
            f"weights: expected finite values >= 0, got {w[where]} at position {where}"
        )
    with np.errstate(over="ignore"):
        if w.sum() == np.inf:
            raise ValueError("weights: expected values whose sum is finite, got inf")
    return w, w > 0


def _checked_ignore_index(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"ignore_index: expected an integer or None, got {as_text(value)}")
    return int(value)
