"""Pooling over time: from a sequence to one vector a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from .parameters import (
    Parameters,
    as_choice,
    as_flag,
    as_real_array,
    check_shape,
)
from .protocol import Context, Interface
from .ragged import Ragged, as_ragged
from .tape import SavedTape, opened

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Pooling", "PoolingGradients", "PoolingTape"]


class PoolingGradients(NamedTuple):
    """What ``Pooling.backward`` returns; every array is fresh and belongs to the caller.

    Attributes
    ----------
    x
        dL/dx, shaped like x; exactly 0 at steps that y does not depend on.
    params
        Empty: the layer has no parameters.
    """

    x: NDArray[Any]
    params: dict[str, NDArray[Any]]


class _Saved(NamedTuple):
    """What ``Pooling.forward`` saves."""

    lengths: NDArray[np.int64]  # (B,)
    where: NDArray[np.int64] | None  # (B, F): the step of each maximum, for "max" alone
    shape: tuple[int, ...]  # of x
    dtype: np.dtype[Any]  # of x


class PoolingTape(SavedTape[_Saved]):
    """What one ``Pooling.forward`` keeps: the lengths, and for "max" where each maximum was."""

    __slots__ = ()


class Pooling:
    """One vector a row, from the steps that count: the last, the mean or the maximum.

    ``y[b] = x[L_b - 1, b]``, ``sum_{t < L_b} x[t, b] / L_b`` or ``max_{t < L_b} x[t, b]`` for a row
    of length L_b; a row of length 0 gives 0.

    Parameters
    ----------
    mode
        "last", "mean" or "max", each feature for itself. Behind a bidirectional layer "last" takes
        from the reverse direction what it has after one step; "mean" and "max" see all of it.
    batch_first : default False
        Whether x is (B, T, F).

    Attributes
    ----------
    params
        Empty, so that the layer can stand in one tree with others.

    Raises
    ------
    TypeError, ValueError
        If an option is not one of those above.

    Notes
    -----
    The mean is summed in float64. The gradient of a maximum goes to its first step, where several
    are equal. A NaN that counts makes the maximum NaN, as it makes the mean.

    References
    ----------
    Collobert and Weston, A unified architecture for natural language processing, 2008 (the maximum
    over time).

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.pooling import Pooling
    >>> x = np.array([[[1.0], [4.0]], [[3.0], [np.nan]]])  # (T, B, F)
    >>> for mode in ("last", "mean", "max"):
    ...     print(Pooling(mode)(x, lengths=[2, 1]).tolist())
    [[3.0], [4.0]]
    [[2.0], [4.0]]
    [[3.0], [4.0]]
    """

    def __init__(self, mode: str, *, batch_first: bool = False) -> None:
        self._mode = as_choice("mode", mode, ("last", "mean", "max"))
        self._batch_first = as_flag("batch_first", batch_first)
        self._params = Parameters({})

    @property
    def mode(self) -> str:
        """What is taken: "last", "mean" or "max"."""
        return self._mode

    @property
    def batch_first(self) -> bool:
        """Whether x is (B, T, F)."""
        return self._batch_first

    @property
    def params(self) -> Parameters:
        """No parameters: an empty mapping."""
        return self._params

    def load_params(self, mapping: Mapping[str, ArrayLike]) -> None:
        """Check that there is nothing to load.

        Parameters
        ----------
        mapping
            An empty mapping.

        Raises
        ------
        TypeError, ValueError
            If it is no mapping, or not empty.
        """
        self._params.load(mapping)

    def __call__(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> NDArray[Any]:
        """Return y without a tape: inference.

        Parameters
        ----------
        x
            (T, B, F), or (B, T, F) with ``batch_first``, or (T, F) unbatched. float32 and float64
            keep their dtype, all else becomes float64.
        lengths : default None
            Integers (B,) in [0, T]: row b counts up to step ``lengths[b]``. What lies beyond is not
            read (it may hold NaN). None: everything counts.

        Returns
        -------
        ndarray (B, F), or (F,) unbatched
            Of the dtype of x; 0 in rows without any step.

        Raises
        ------
        TypeError
            If x is not of real numbers, or the lengths are not integers.
        ValueError
            If a shape is wrong or a length out of range.
        """
        y, _ = self._pooled(self._checked_x(x, lengths))
        return y

    def forward(
        self, x: ArrayLike, *, lengths: ArrayLike | None = None
    ) -> tuple[NDArray[Any], PoolingTape]:
        """Return y and the tape that ``backward`` needs.

        Parameters
        ----------
        x, lengths
            As in ``layer(x)``.

        Returns
        -------
        y : ndarray (B, F), or (F,) unbatched
            The same bits as from ``__call__``.
        tape : PoolingTape

        Raises
        ------
        TypeError, ValueError
            As ``layer(x)``.
        """
        y, saved = self._pooled(self._checked_x(x, lengths))
        return y, PoolingTape(self, saved)

    def _pooled(self, ragged: Ragged) -> tuple[NDArray[Any], _Saved]:
        """Compute y (B, F) or (F,), and what the tape saves."""
        x = self._time_major(ragged.values)  # (T, B, F)
        T, B, F = x.shape
        lengths = np.full(B, T) if ragged.lengths is None else ragged.lengths
        inside = np.arange(T)[:, None, None] < lengths[:, None]  # (T, B, 1)
        where: NDArray[np.int64] | None = None
        y = np.zeros((B, F), x.dtype)
        some = lengths > 0  # (B,)
        with np.errstate(all="ignore"):
            if self._mode == "mean":
                total = np.sum(x, axis=0, dtype=np.float64, where=inside)
                y[...] = total / np.maximum(lengths, 1)[:, None]
            elif self._mode == "last":
                y[some] = x[lengths[some] - 1, some]
            elif T > 0:
                # The first of equals: padding, -inf here, comes after what counts.
                where = np.where(inside, x, -np.inf).argmax(axis=0)
                y[some] = np.take_along_axis(x, where[None], axis=0)[0, some]
        saved = _Saved(lengths, where, ragged.values.shape, x.dtype)
        return (y if ragged.values.ndim == 3 else y[0]), saved

    def backward(self, tape: PoolingTape, dy: ArrayLike, *, keep: bool = False) -> PoolingGradients:
        """Return the gradient of a loss whose gradient with respect to y is given.

        Parameters
        ----------
        tape
            Of a ``forward`` of this layer, not consumed yet.
        dy
            dL/dy (B, F), or (F,) unbatched. In rows of length 0 it is not read.
        keep : default False
            Whether the tape stays usable.

        Returns
        -------
        PoolingGradients
            ``.x``, of the shape and dtype of x, and the empty ``.params``.

        Raises
        ------
        TypeError
            If ``tape`` is no PoolingTape, ``dy`` not of real numbers, or ``keep`` no bool.
        ValueError
            If ``dy`` has another shape, or the tape is consumed or of another layer. The tape stays
            as it was.
        """
        saved = opened(PoolingTape, tape, self)
        keep = as_flag("keep", keep)
        dy = as_real_array("dy", dy, saved.dtype, counted=self._counted(saved))
        rows = (len(saved.lengths),) if len(saved.shape) == 3 else ()
        check_shape("dy", dy, (*rows, saved.shape[-1]), "(B, F)" if rows else "(F,)")
        gradients = PoolingGradients(self._gradient(np.atleast_2d(dy), saved), {})
        if not keep:
            tape._saved = None
        return gradients

    def _gradient(self, dy: NDArray[Any], saved: _Saved) -> NDArray[Any]:
        """Differentiate y by x; dy (B, F)."""
        dx = np.zeros(saved.shape, saved.dtype)
        dx_t = self._time_major(dx)  # (T, B, F), a view
        some = np.flatnonzero(saved.lengths > 0)
        lengths = saved.lengths[some]
        with np.errstate(all="ignore"):
            if self._mode == "mean":
                share = np.zeros_like(dy)
                share[some] = dy[some] / lengths.astype(dy.dtype)[:, None]
                inside = np.arange(len(dx_t))[:, None, None] < saved.lengths[:, None]
                np.copyto(dx_t, share, where=inside)
            elif self._mode == "last":
                dx_t[lengths - 1, some] = dy[some]
            elif saved.where is not None:
                columns = np.arange(dy.shape[1])
                dx_t[saved.where[some], some[:, None], columns] = dy[some]
        return dx

    def _counted(self, saved: _Saved) -> NDArray[np.bool_] | None:
        """(B,): the rows whose dy counts."""
        return saved.lengths > 0 if len(saved.shape) == 3 else None

    def _time_major(self, x: NDArray[Any]) -> NDArray[Any]:
        """View x as (T, B, F)."""
        if x.ndim == 2:
            return x[:, None]
        return x.swapaxes(0, 1) if self._batch_first else x

    def _checked_x(self, x: ArrayLike, lengths: ArrayLike | None) -> Ragged:
        return as_ragged(x, lengths, features="F", dtype=None, batch_first=self._batch_first)

    # ------------------------------------------------- in a Sequential

    def _interface(self) -> Interface:
        return Interface(batch_first=self._batch_first, needs_steps=True, ends_steps=True)

    def _output_lengths(self, lengths: NDArray[np.int64]) -> None:
        """Return None: y has no steps."""

    def _infer(self, x: Any, context: Context) -> tuple[NDArray[Any], None]:
        return self(x, lengths=context.lengths), None

    def _train(self, x: Any, context: Context) -> tuple[NDArray[Any], None, PoolingTape]:
        y, tape = self.forward(x, lengths=context.lengths)
        return y, None, tape

    def _backprop(
        self, tape: PoolingTape, dy: NDArray[Any], dstate: None
    ) -> tuple[NDArray[Any], None, dict[str, NDArray[Any]]]:
        dx, params = self.backward(tape, dy, keep=True)
        return dx, dstate, params

    def _stream(self, batch_size: int) -> NoReturn:
        raise ValueError("freeze: expected a layer that answers step by step, got Pooling")

    # ------------------------------------------------- printing

    def __repr__(self) -> str:
        """Return the call that makes an equal layer."""
        return f"Pooling({self._mode!r}{', batch_first=True' if self._batch_first else ''})"
