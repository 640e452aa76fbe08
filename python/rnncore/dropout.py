"""Dropout as a layer of its own, in front of, between and behind other layers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .parameters import (
    Parameters,
    as_flag,
    as_mask_state,
    as_probability,
    as_real_array,
    as_seed,
    as_uint64,
    check_shape,
)
from .protocol import Context, Interface, Stateless
from .ragged import Ragged, as_ragged
from .tape import SavedTape, opened

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Dropout", "DropoutGradients", "DropoutTape"]

#: `kind` of this layer's masks (see `rnncore.reference.dropout_mask`). 0 and 1 are those of the
#: recurrent layers: with the same seed the masks differ all the same.
KIND = 2

_UINT64 = 2**64


class DropoutGradients(NamedTuple):
    """What ``Dropout.backward`` returns; every array is fresh and belongs to the caller.

    Attributes
    ----------
    x
        dL/dx, shaped like x; exactly 0 where x was dropped and beyond the lengths.
    params
        Empty: the layer has no parameters.
    """

    x: NDArray[Any]
    params: dict[str, NDArray[Any]]


class _Saved(NamedTuple):
    """What ``Dropout.forward`` saves."""

    kept: NDArray[np.bool_] | None  # broadcasts to x; None if nothing was dropped
    inside: NDArray[np.bool_] | None  # (T, B): the steps that count, None if all do
    shape: tuple[int, ...]  # of x
    dtype: np.dtype[Any]  # of x


class DropoutTape(SavedTape[_Saved]):
    """What one ``Dropout.forward`` keeps for ``backward``: what was dropped, one byte an element.

    With ``per_sequence`` it is one byte for each row and feature.
    """

    __slots__ = ()


class Dropout:
    """Inverted dropout: in training, drop each element with probability p, scale the rest.

    What stays is multiplied by 1 / (1 - p), so that inference, ``layer(x)``, changes nothing. What
    is dropped becomes exactly 0, whatever it was.

    Parameters
    ----------
    p
        Probability in [0, 1) of dropping an element.
    per_sequence : default False
        One mask for all time steps of a call: a feature of a row is dropped at every step or at
        none. False: a fresh mask every step.
    batch_first : default False
        Whether x is (B, T, F).
    seed : default None
        Integer in [0, 2**64) of the masks; None draws one, which ``layer.seed`` and ``repr`` tell.
        Give two layers different seeds: with the same they drop the same places.

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
    A mask is a pure function of (seed, call number, t, row, feature), the one of the recurrent
    layers with its ``kind`` 2: ``rnncore.reference.dropout_mask(2, seed, call, 0, 0, t, rows,
    features, p)``, with t = None for ``per_sequence``. So a run can be repeated, and resumed from a
    saved file. An unbatched x (T, F) has the masks of the batch of one row, and (F,) those of one
    step.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, Dropout: a simple way to prevent
    neural networks from overfitting, 2014. Gal and Ghahramani, A theoretically grounded application
    of dropout in recurrent neural networks, 2016, arXiv:1512.05287 (one mask for all steps).

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.dropout import Dropout
    >>> layer = Dropout(0.5, per_sequence=True, seed=3)
    >>> y, tape = layer.forward(np.ones((2, 1, 4)))
    >>> y[:, 0]
    array([[0., 0., 2., 0.],
           [0., 0., 2., 0.]])
    >>> layer.backward(tape, np.ones((2, 1, 4))).x[:, 0]
    array([[0., 0., 2., 0.],
           [0., 0., 2., 0.]])
    >>> layer.call_number
    1
    """

    def __init__(
        self,
        p: float,
        *,
        per_sequence: bool = False,
        batch_first: bool = False,
        seed: int | None = None,
    ) -> None:
        self._p = as_probability("p", p)
        self._per_sequence = as_flag("per_sequence", per_sequence)
        self._batch_first = as_flag("batch_first", batch_first)
        self._seed = as_seed(seed)
        self._call_number = 0
        self._params = Parameters({})
        self._lock = threading.Lock()

    @property
    def p(self) -> float:
        """Probability of dropping an element."""
        return self._p

    @property
    def per_sequence(self) -> bool:
        """Whether one mask serves all time steps."""
        return self._per_sequence

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, F)."""
        return self._batch_first

    @property
    def seed(self) -> int:
        """The seed in use."""
        return self._seed

    @property
    def call_number(self) -> int:
        """How many forward passes have drawn masks, modulo 2**64.

        A mask depends on the seed and on this number: set it to repeat the masks of a call. Only a
        ``forward`` whose masks are active advances it.
        """
        return self._call_number

    @call_number.setter
    def call_number(self, value: int) -> None:
        number = as_uint64("call_number", value)
        with self._lock:
            self._call_number = number

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
        """Return x as it is: inference.

        Parameters
        ----------
        x
            (T, B, F), or (B, T, F) with ``batch_first``, or (T, F), or (F,). float32 and float64
            keep their dtype, all else becomes float64.
        lengths : default None
            Integers (B,) in [0, T]: row b counts up to step ``lengths[b]``. What lies beyond is not
            read (it may hold NaN), and y is 0 there. None: everything counts.

        Returns
        -------
        ndarray, of the shape of x
            A fresh array.

        Raises
        ------
        TypeError
            If x is not of real numbers, or the lengths are not integers.
        ValueError
            If a shape is wrong or a length out of range.
        """
        x, _, inside = self._checked_x(x, lengths)
        return _masked(x, None, inside, 1.0)

    def forward(
        self, x: ArrayLike, *, lengths: ArrayLike | None = None, dropout: bool = True
    ) -> tuple[NDArray[Any], DropoutTape]:
        """Return y and the tape that ``backward`` needs.

        Parameters
        ----------
        x, lengths
            As in ``layer(x)``.
        dropout : default True
            Whether elements are dropped. The mask is a function of ``seed`` and ``call_number``,
            which then advances by 1 (not with p = 0, where there is no mask). False makes a tape
            without any mask.

        Returns
        -------
        y : ndarray, of the shape of x
        tape : DropoutTape

        Raises
        ------
        TypeError, ValueError
            As ``layer(x)``; and TypeError if ``dropout`` is no bool.
        """
        dropout = as_flag("dropout", dropout)
        x, _, inside = self._checked_x(x, lengths)
        kept = self._next_mask(x.shape) if dropout and self._p > 0 else None
        y = _masked(x, kept, inside, self._scale(kept))
        return y, DropoutTape(self, _Saved(kept, inside, x.shape, x.dtype))

    def backward(self, tape: DropoutTape, dy: ArrayLike, *, keep: bool = False) -> DropoutGradients:
        """Return the gradient of a loss whose gradient with respect to y is given.

        Parameters
        ----------
        tape
            Of a ``forward`` of this layer, not consumed yet.
        dy
            dL/dy, the shape of y. It is not read where x was dropped and beyond the lengths.
        keep : default False
            Whether the tape stays usable.

        Returns
        -------
        DropoutGradients
            ``.x``, of the shape and dtype of x, and the empty ``.params``.

        Raises
        ------
        TypeError
            If ``tape`` is no DropoutTape, ``dy`` not of real numbers, or ``keep`` no bool.
        ValueError
            If ``dy`` has another shape, or the tape is consumed or of another layer. The tape stays
            as it was.
        """
        kept, inside, shape, dtype = opened(DropoutTape, tape, self)
        keep = as_flag("keep", keep)
        dy = as_real_array("dy", dy, dtype, counted=inside)
        check_shape("dy", dy, shape)
        # y = x / (1 - p) where kept and inside, else 0
        gradients = DropoutGradients(_masked(dy, kept, inside, self._scale(kept)), {})
        if not keep:
            tape._saved = None
        return gradients

    def _scale(self, kept: NDArray[np.bool_] | None) -> float:
        """Return what the kept elements are multiplied by."""
        return 1.0 if kept is None else 1.0 / (1.0 - self._p)

    def _next_mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Draw the mask of the next call; two threads get two, and a failed call none."""
        time = 1 if self._batch_first and len(shape) == 3 else 0
        # (T, B, F); unbatched and single steps have one row
        steps = shape[time] if len(shape) > 1 else 1
        rows = shape[1 - time] if len(shape) == 3 else 1
        with self._lock:
            kept = self._mask(self._call_number, steps, rows, shape[-1])
            self._call_number = (self._call_number + 1) % _UINT64
        if len(shape) < 3:
            return kept.reshape(shape if len(shape) == 1 else (-1, shape[-1]))
        return kept.swapaxes(0, time)

    def _mask(self, call: int, steps: int, rows: int, features: int) -> NDArray[np.bool_]:
        """Compute where ``dropout_mask(2, seed, call, 0, 0, t, rows, features, p)`` is not 0.

        For all t at once: (T, B, F), or (1, B, F) with ``per_sequence``.
        """
        # Loaded with the first mask, not with the package.
        from rnncore.reference import fold

        bits = np.full((1, 1, 1), self._seed, np.uint64)
        for value in (KIND, call, 0, 0):
            bits = fold(bits, np.full((1, 1, 1), value, np.uint64))
        times = np.array([_UINT64 - 1]) if self._per_sequence else np.arange(steps)
        bits = fold(bits, times.astype(np.uint64)[:, None, None])
        bits = fold(bits, np.arange(rows, dtype=np.uint64)[:, None])  # (T, B, 1)
        columns = np.arange(features, dtype=np.uint64)
        kept = np.empty((*bits.shape[:2], features), np.bool_)
        for kept_t, bits_t in zip(kept, bits, strict=True):  # a step at a time stays in the cache
            uniform = (fold(bits_t, columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            np.greater_equal(uniform, self._p, out=kept_t)
        return kept

    def _checked_x(self, x: ArrayLike, lengths: ArrayLike | None) -> Ragged:
        if lengths is None and not self._per_sequence:
            array = as_real_array("x", x)
            if array.ndim == 1:
                return Ragged(array, None, None)
        return as_ragged(x, lengths, features="F", dtype=None, batch_first=self._batch_first)

    # ------------------------------------------------- in a Sequential

    def _interface(self) -> Interface:
        return Interface(batch_first=self._batch_first, needs_steps=self._per_sequence)

    def _output_lengths(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        return lengths

    def _infer(self, x: Any, context: Context) -> tuple[NDArray[Any], None]:
        return self(x, lengths=context.lengths), None

    def _train(self, x: Any, context: Context) -> tuple[NDArray[Any], None, DropoutTape]:
        y, tape = self.forward(x, lengths=context.lengths, dropout=context.dropout)
        return y, None, tape

    def _backprop(
        self, tape: DropoutTape, dy: NDArray[Any], dstate: None
    ) -> tuple[NDArray[Any], None, dict[str, NDArray[Any]]]:
        dx, params = self.backward(tape, dy, keep=True)
        return dx, dstate, params

    def _stream(self, batch_size: int) -> Stateless:
        del batch_size
        return Stateless(lambda x: np.array(x))

    # ------------------------------------------------- copies and printing

    def __repr__(self) -> str:
        """Return the call that makes an equal layer with the same seed."""
        options = [
            "per_sequence=True" if self._per_sequence else "",
            "batch_first=True" if self._batch_first else "",
            f"seed={self._seed}",
        ]
        return f"Dropout({', '.join([repr(self._p), *filter(None, options)])})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over everything, with a lock of its own."""
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _extra_state(self) -> dict[str, str]:
        """Return what a checkpoint keeps, so that masks replay."""
        return {"seed": str(self._seed), "call_number": str(self._call_number)}

    def _load_extra_state(self, state: Mapping[str, str]) -> None:
        """Take the seed and the call number of a checkpoint, or change nothing and raise."""
        values = as_mask_state(state)
        if values is not None:
            with self._lock:
                self._seed, self._call_number = values


def _masked(
    x: NDArray[Any],
    kept: NDArray[np.bool_] | None,
    inside: NDArray[np.bool_] | None,
    scale: float,
) -> NDArray[Any]:
    """Return scale * x where kept and inside, else 0, without reading what is there."""
    where: Any = True if kept is None else kept
    if inside is not None:
        where = where & inside[..., None]
    y = np.zeros_like(x)
    with np.errstate(all="ignore"):
        np.multiply(x, x.dtype.type(scale), out=y, where=where)
    return y
