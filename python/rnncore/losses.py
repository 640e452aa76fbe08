"""Losses: each returns its value and its gradient in one call.

All are means over the elements that count. An element does not count if it lies beyond its row's
length, if its target is ``ignore_index``, or if its weight is 0; it is then never looked at, so it
may hold NaN or a target out of range, and its gradient is exactly 0. If nothing counts, the loss is
0.0 and so is the gradient. NaN and infinities among the rest go into the loss without a warning.

The definitions are PyTorch's with its "mean", and so are the names of options that it has too. Here
``weights`` belong to the elements and the mean is divided by their sum, in every loss.

The loss is summed in float64 whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .parameters import (
    as_flag,
    as_integer_array,
    as_lengths,
    as_real,
    as_real_array,
    as_text,
    check_good,
    check_range,
    check_shape,
    inside_lengths,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "binary_cross_entropy_with_logits",
    "huber",
    "mean_absolute_error",
    "mean_squared_error",
    "softmax_cross_entropy",
]

# From N predictions (N, ...) and what else belongs to them, to N losses and their derivatives
# (N, ...) with respect to the predictions. Every element counts.
Pointwise: TypeAlias = "Callable[..., tuple[NDArray[Any], NDArray[Any]]]"


def softmax_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    batch_first: bool = False,
) -> tuple[float, NDArray[Any]]:
    """Mean negative log-likelihood of the targets under the softmax of the logits.

    With p = softmax(z), weights w and label smoothing s, the target distribution is
    ``q_nk = (1 - s) [k = target_n] + s / K``, and over the elements n that count
    ``loss = sum_n w_n (log sum_k exp z_nk - sum_k q_nk z_nk) / sum_n w_n`` and
    ``dloss/dz_nk = w_n (p_nk - q_nk) / sum_n w_n``.
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
    label_smoothing : default 0.0
        s, from 0 to 1: the share of the target distribution that is spread evenly over all classes.
        If it is not 0, a logit of -inf, which excludes its class, makes the loss infinite.
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
        If logits, weights or ``label_smoothing`` are no real numbers, or targets, lengths or
        ``ignore_index`` no integers.
    ValueError
        If shapes do not fit, or targets, weights, lengths or ``label_smoothing`` are out of range.

    References
    ----------
    Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990;
    Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, Rethinking the Inception architecture for computer
    vision, 2016, section 7 (label smoothing).

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
    smoothing = as_real("label_smoothing", label_smoothing)
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(
            f"label_smoothing: expected 0 <= number <= 1, got {as_text(label_smoothing)}"
        )
    z = as_real_array("logits", logits)
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., K) with K >= 1, got {z.shape}")
    classes = z.shape[-1]
    t = as_integer_array("targets", targets)
    check_shape("targets", t, z.shape[:-1], "(...)")
    layout = ("(B, T, K)" if as_flag("batch_first", batch_first) else "(T, B, K)", 3, 3)
    counted = _inside("logits", z, layout, lengths, batch_first)
    counted = _not_ignored(t, ignore_index, counted)
    w, counted = _checked_weights(weights, t.shape, "(...)", counted)
    check_range("targets", t, 0, classes - 1, "K - 1", counted)

    return _mean(partial(_cross_entropy, smoothing=smoothing), z, (t,), w, counted)


def _cross_entropy(
    z: NDArray[Any], t: NDArray[np.int64], smoothing: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Losses (N,) and derivatives (N, K) of logits z (N, K) and classes t (N,)."""
    n = np.arange(len(t))
    z = z - z.max(axis=1, keepdims=True)
    slopes = np.exp(z)
    total = slopes.sum(axis=1)
    losses = np.log(total)
    # d loss / dz = softmax(z) - q, and q is one-hot(t) without smoothing
    slopes /= total[:, None]
    slopes[n, t] -= 1.0 - smoothing
    if smoothing < 1.0:  # 0 * inf would be NaN
        losses -= (1.0 - smoothing) * z[n, t]
    if smoothing > 0.0:
        losses = losses - smoothing * z.mean(axis=1, dtype=np.float64)
        slopes -= smoothing / z.shape[1]
    return losses, slopes


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    pos_weight: ArrayLike | None = None,
    batch_first: bool = False,
) -> tuple[float, NDArray[Any]]:
    """Mean negative log-likelihood of yes-or-no targets under the sigmoid of the logits.

    With p = sigmoid(z), target t, weights w and ``pos_weight`` c, over the elements that count,
    ``loss = sum w (-c t log p - (1 - t) log(1 - p)) / sum w`` and
    ``dloss/dz = w ((1 - t) p - c t (1 - p)) / sum w``. Both logarithms are taken of z, not of p, so
    that they neither overflow nor lose their digits.

    Parameters
    ----------
    logits
        z, of any shape. Every element is a decision of its own.
    targets
        t, probabilities of "yes" from 0 to 1, of exactly the shape of z. Cast to the dtype of z.
    lengths : default None
        Integers (B,) for z (T, B, ...): row b counts up to step ``lengths[b]``. None: every step
        counts.
    weights : default None
        w, a finite weight >= 0 for every element, of exactly the shape of z; for one weight a step
        pass ``np.broadcast_to(w[..., None], z.shape)``. The mean is divided by their sum.
        None: all 1.
    ignore_index : default None
        A target that says "do not count", such as -1. None: there is none.
    pos_weight : default None
        c, finite and >= 0: how many times a "yes" counts, a number or one for each place (K,) of
        the last axis. The mean is not divided by it. None: 1.
    batch_first : default False
        Whether the axes to which ``lengths`` refers are (B, T, ...); without ``lengths`` the two
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
        If logits, targets, weights or ``pos_weight`` are no real numbers, or lengths or
        ``ignore_index`` no integers.
    ValueError
        If shapes do not fit, or targets, weights, ``pos_weight`` or lengths are out of range.

    References
    ----------
    Bishop, Pattern recognition and machine learning, 2006, equation 4.90.

    Examples
    --------
    >>> from rnncore.losses import binary_cross_entropy_with_logits
    >>> loss, gradient = binary_cross_entropy_with_logits([0.0, -1e4], [1, 0])
    >>> round(loss, 6)
    0.346574
    >>> gradient
    array([-0.25,  0.  ])
    """
    z, t, w, counted = _checked_elements(
        ("logits", "targets"), logits, targets, lengths, weights, ignore_index, batch_first
    )
    check_good("targets", t, (t >= 0) & (t <= 1), "0 <= value <= 1", counted)
    if pos_weight is None:
        return _mean(_binary_cross_entropy, z, (t,), w, counted)
    c = as_real_array("pos_weight", pos_weight, z.dtype)
    if c.shape not in ((), z.shape[-1:]):
        raise ValueError(f"pos_weight: expected shape () or (K,) = {z.shape[-1:]}, got {c.shape}")
    check_good("pos_weight", c, (c >= 0) & (c < np.inf), "finite values >= 0")
    return _mean(_binary_cross_entropy, z, (t, np.broadcast_to(c, z.shape)), w, counted)


def _binary_cross_entropy(
    z: NDArray[Any], t: NDArray[Any], *c: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Losses and derivatives (N,) of logits z, targets t and perhaps weights c of "yes"."""
    small = np.exp(-np.abs(z))
    both = np.log1p(small)  # in -log p = max(-z, 0) + both and -log(1 - p) = max(z, 0) + both
    yes, no = (t * c[0] if c else t), 1 - t
    losses = _share(yes, np.maximum(-z, 0) + both) + _share(no, np.maximum(z, 0) + both)
    # d loss / dz = no * p - yes * (1 - p)
    smaller, larger = small / (1 + small), 1 / (1 + small)
    positive = z >= 0
    slopes = no * np.where(positive, larger, smaller)
    slopes -= yes * np.where(positive, smaller, larger)
    return losses, slopes


def _share(factor: NDArray[Any], value: NDArray[Any]) -> NDArray[Any]:
    """Return the product, and 0 where the factor is 0, though the value be infinite."""
    return np.where((factor == 0) & (value == np.inf), 0, factor * value)


def mean_squared_error(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
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
    ignore_index : default None
        A target that says "do not count", such as -999 for a missing value. None: there is none.
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
        If prediction, target or weights are no real numbers, or lengths or ``ignore_index`` no
        integers.
    ValueError
        If shapes do not fit, or weights or lengths are out of range.

    Examples
    --------
    >>> from rnncore.losses import mean_squared_error
    >>> mean_squared_error([1.0, 2.0], [1.0, 4.0])
    (2.0, array([ 0., -2.]))
    """
    y, t, w, counted = _checked_elements(
        ("prediction", "target"), prediction, target, lengths, weights, ignore_index, batch_first
    )
    return _mean(_squared_error, y, (t,), w, counted)


def _squared_error(y: NDArray[Any], t: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Losses and derivatives (N,)."""
    d = y - t
    losses = np.square(d, dtype=np.float64)
    d *= 2
    return losses, d


def mean_absolute_error(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    batch_first: bool = False,
) -> tuple[float, NDArray[Any]]:
    """Mean of the absolute differences.

    With prediction y, target t and weights w, over the elements that count,
    ``loss = sum w |y - t| / sum w`` and ``dloss/dy = w sign(y - t) / sum w``, which is 0 where the
    two are equal.

    Parameters
    ----------
    prediction, target, lengths, weights, ignore_index, batch_first
        As those of ``mean_squared_error``.

    Returns
    -------
    loss : float
    gradient : ndarray
        dloss/dy, fresh, of the shape of y and of its dtype if that is float32 or float64, else
        float64.

    Raises
    ------
    TypeError, ValueError
        As ``mean_squared_error``.

    Examples
    --------
    >>> from rnncore.losses import mean_absolute_error
    >>> mean_absolute_error([1.0, 2.0], [1.0, 4.0])
    (1.0, array([ 0. , -0.5]))
    """
    y, t, w, counted = _checked_elements(
        ("prediction", "target"), prediction, target, lengths, weights, ignore_index, batch_first
    )
    return _mean(_absolute_error, y, (t,), w, counted)


def _absolute_error(y: NDArray[Any], t: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Losses and derivatives (N,)."""
    d = y - t
    return np.abs(d), np.sign(d)


def huber(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    delta: float = 1.0,
    lengths: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    batch_first: bool = False,
) -> tuple[float, NDArray[Any]]:
    """Mean of differences that are squared where they are small and absolute where they are large.

    With prediction y, target t, d = y - t and weights w, over the elements that count, the loss is
    the weighted mean of ``d^2 / 2`` where ``|d| <= delta`` and ``delta (|d| - delta / 2)``
    elsewhere; the derivative of each is d, held within ±delta.

    Parameters
    ----------
    prediction, target, lengths, weights, ignore_index, batch_first
        As those of ``mean_squared_error``.
    delta : default 1.0
        Where the two pieces meet: finite and > 0.

    Returns
    -------
    loss : float
    gradient : ndarray
        dloss/dy, fresh, of the shape of y and of its dtype if that is float32 or float64, else
        float64.

    Raises
    ------
    TypeError, ValueError
        As ``mean_squared_error``, and if ``delta`` is not as above.

    References
    ----------
    Huber, Robust estimation of a location parameter, 1964.

    Examples
    --------
    >>> from rnncore.losses import huber
    >>> huber([1.0, 2.0], [1.5, 4.0])
    (0.8125, array([-0.25, -0.5 ]))
    """
    limit = as_real("delta", delta)
    if not 0.0 < limit < np.inf:
        raise ValueError(f"delta: expected a finite number > 0, got {as_text(delta)}")
    y, t, w, counted = _checked_elements(
        ("prediction", "target"), prediction, target, lengths, weights, ignore_index, batch_first
    )
    return _mean(partial(_huber_error, delta=limit), y, (t,), w, counted)


def _huber_error(
    y: NDArray[Any], t: NDArray[Any], delta: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Losses and derivatives (N,), both pieces as one: c (d - c / 2), c being d within ±delta."""
    d = y - t
    c = np.clip(d, -delta, delta, dtype=np.float64)
    return c * (d - c / 2), c.astype(y.dtype)


# ---- What the losses share ---------------------------------------------------------------------


def _mean(
    pointwise: Pointwise,
    prediction: NDArray[Any],
    others: tuple[NDArray[Any], ...],
    w: NDArray[np.float64] | None,
    counted: NDArray[np.bool_] | None,
) -> tuple[float, NDArray[Any]]:
    """Average a loss over the elements that count, and differentiate the average.

    Parameters
    ----------
    pointwise
        The loss of single elements.
    prediction
        (..., K) or (...).
    others
        What else ``pointwise`` takes, each (...).
    w
        Weights (...), > 0 where anything counts. None: all 1.
    counted
        The mask (...). None: everything counts.

    Returns
    -------
    loss : float
    gradient : ndarray
        Of the shape of ``prediction``.
    """
    each = prediction.shape[others[0].ndim :]  # (K,) or ()
    y = prediction.reshape(others[0].size, *each)
    rest = [array.reshape(-1) for array in others]
    share = None if w is None else w.reshape(-1)
    rows = None if counted is None else np.flatnonzero(counted)
    if rows is not None:
        y, rest = y[rows], [array[rows] for array in rest]
        share = None if share is None else share[rows]
    with np.errstate(all="ignore"):
        losses, slopes = pointwise(y, *rest)
        if share is None:
            size = max(len(y), 1)
            slopes /= size
            loss = float(losses.sum(dtype=np.float64) / size)
        else:
            share = share / (share.sum() or 1.0)  # the sum is 0 if nothing counts
            slopes *= share.astype(slopes.dtype).reshape(-1, *(1 for _ in each))
            loss = float((losses * share).sum())
    if rows is None:
        return loss, slopes.reshape(prediction.shape)
    gradient = np.zeros((others[0].size, *each), slopes.dtype)
    gradient[rows] = slopes
    return loss, gradient.reshape(prediction.shape)


def _checked_elements(
    names: tuple[str, str],
    prediction: ArrayLike,
    target: ArrayLike,
    lengths: ArrayLike | None,
    weights: ArrayLike | None,
    ignore_index: int | None,
    batch_first: bool,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64] | None, NDArray[np.bool_] | None]:
    """Return prediction, target, weights and the mask of what counts, all of one shape.

    ``names`` are those of prediction and target, for messages.
    """
    name, target_name = names
    y = as_real_array(name, prediction)
    layout = ("(B, T, ...)" if as_flag("batch_first", batch_first) else "(T, B, ...)", 2, y.ndim)
    counted = _inside(name, y, layout, lengths, batch_first)
    if counted is not None:
        steps = counted.reshape(counted.shape + (1,) * (y.ndim - 2))
        counted = np.broadcast_to(steps, y.shape)
    letters = f"of {name}"
    if ignore_index is not None:
        # Before the cast to the dtype of y, which could move a target onto the index.
        given = as_real_array(target_name, target)
        check_shape(target_name, given, y.shape, letters)
        counted = _not_ignored(given, ignore_index, counted)
    w, counted = _checked_weights(weights, y.shape, letters, counted)
    t = as_real_array(target_name, target, y.dtype, counted=counted)
    check_shape(target_name, t, y.shape, letters)
    return y, t, w, counted


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
    # NaN is not good either.
    check_good("weights", w, (w >= 0) & (w < np.inf), "finite values >= 0")
    with np.errstate(over="ignore"):
        if w.sum() == np.inf:
            raise ValueError("weights: expected values whose sum is finite, got inf")
    return w, w > 0


def _not_ignored(
    t: NDArray[Any], ignore_index: int | None, counted: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Return the mask of what counts without the targets that are ``ignore_index``."""
    if ignore_index is None:
        return counted
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
        raise TypeError(f"ignore_index: expected an integer or None, got {as_text(ignore_index)}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(
            f"ignore_index: expected an integer of at most 64 bits, got {as_text(ignore_index)}"
        )
    named: NDArray[np.bool_] = t != int(ignore_index)
    return named if counted is None else counted & named
