"""The convolution over time: every output sees a few neighbouring steps.

It is one matrix product over windows of the input, ``numpy.matmul``: as in ``Linear``, how a sum is
rounded may depend on how many windows share the call.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .parameters import (
    Parameters,
    as_choice,
    as_dtype,
    as_flag,
    as_integer_array,
    as_real_array,
    as_rows,
    as_seed,
    as_size,
    as_text,
    check_matrix_fits,
    check_range,
    check_shape,
)
from .protocol import Context, Interface, StreamBase
from .ragged import Ragged, as_ragged, gather, scatter
from .tape import SavedTape, opened

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["Conv1d", "Conv1dGradients", "Conv1dTape", "FrozenConv1d"]


class Conv1dGradients(NamedTuple):
    """What ``Conv1d.backward`` returns; every array is fresh and belongs to the caller.

    Attributes
    ----------
    x
        dL/dx, shaped like x; exactly 0 beyond the lengths.
    params
        Parameter name to gradient, summed over steps and batch rows, in the order of the layer's
        ``params``.
    """

    x: NDArray[Any]
    params: dict[str, NDArray[Any]]


class _Saved(NamedTuple):
    """What ``Conv1d.forward`` saves; the windows are cut again, as they are K times as large."""

    padded: NDArray[Any]  # (T + left + right, B, C), or batch first; 0 where nothing counts
    inside: NDArray[np.bool_] | None  # (T, B): the steps of x that count, None if all do
    inside_y: NDArray[np.bool_] | None  # (T', B): those of y
    shape: tuple[int, ...]  # of x
    shape_y: tuple[int, ...]  # of y


class Conv1dTape(SavedTape[_Saved]):
    """What one ``Conv1d.forward`` keeps for ``backward``: a padded copy of x.

    The weights are not kept: ``backward`` uses those that the layer has when it is called.
    """

    __slots__ = ()


class Conv1d:
    """Convolution over time: ``y[t] = sum_k W[:, :, k] x[t*stride + k*dilation - left] + b``.

    The steps before the first and after the last, those beyond a row's length among them, count as
    zeros. (Like everywhere in this field it is a correlation: the kernel is not turned round.)

    Parameters
    ----------
    in_channels, out_channels
        C and O, the sizes of the last axis of x and of y.
    kernel_size
        K, how many steps an output sees. They span ``S = (K - 1)*dilation + 1`` steps.
    stride : default 1
        Steps from one output to the next.
    padding : default "same"
        How many zeros stand before and after a row, left and right: ``"same"``: S - 1 in all, the
        odd one after, so that there are ceil(T / stride) outputs; ``"causal"``: S - 1 before, so
        that no output sees a later step, and as many outputs; ``"valid"``: none; an integer p >= 0:
        p before and p after.
    dilation : default 1
        Steps from one element of the kernel to the next.
    bias : default True
        Whether b is there.
    batch_first : default False
        Whether x and y are (B, T, ·).
    dtype : default "float32"
        "float32" or "float64": of the parameters, the arithmetic and the outputs.
    init : default "glorot"
        ``"glorot"``: W uniform in ±sqrt(6 / (K*C + K*O)), b zero. ``"pytorch"``: both uniform in
        ±1/sqrt(K*C).
    seed : default None
        Of the initial values: an integer in [0, 2**64). None: drawn from the operating system.

    Attributes
    ----------
    params
        ``weight`` (O, C, K) and, with bias, ``bias`` (O,): live arrays under fixed names, shaped as
        PyTorch's.
    seed
        The seed in use.

    Raises
    ------
    TypeError, ValueError
        If an option is not one of those above, or the sizes exceed the address space.
    MemoryError
        If the memory cannot be had.

    Notes
    -----
    A row of length L has ``(L + left + right - S) // stride + 1`` outputs, but not less than 0, and
    none if L is 0: ``output_lengths`` tells. Every row has the outputs that it would have alone.

    References
    ----------
    Waibel, Hanazawa, Hinton, Shikano and Lang, Phoneme recognition using time-delay neural
    networks, 1989. van den Oord et al., WaveNet: a generative model for raw audio, 2016,
    arXiv:1609.03499 (causal and dilated).

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.conv1d import Conv1d
    >>> conv = Conv1d(1, 1, 2, padding="causal", dtype="float64")
    >>> conv.load_params({"weight": [[[10.0, 1.0]]], "bias": [0.0]})
    >>> x = np.arange(1.0, 7.0).reshape(3, 2, 1)  # (T, B, C)
    >>> conv(x, lengths=[3, 2])[..., 0]
    array([[ 1.,  2.],
           [13., 24.],
           [35.,  0.]])
    >>> y, tape = conv.forward(x)
    >>> conv.backward(tape, np.ones_like(y)).params["bias"]
    array([6.])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: str | int = "same",
        dilation: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: int | None = None,
    ) -> None:
        self._in_channels = as_size("in_channels", in_channels)
        self._out_channels = as_size("out_channels", out_channels)
        self._kernel_size = as_size("kernel_size", kernel_size)
        self._stride = as_size("stride", stride)
        self._dilation = as_size("dilation", dilation)
        self._padding = _checked_padding(padding)
        self._bias = as_flag("bias", bias)
        self._batch_first = as_flag("batch_first", batch_first)
        self._dtype = as_dtype(dtype)
        self._init = as_choice("init", init, ("glorot", "pytorch"))
        self._seed = as_seed(seed)
        columns = self._in_channels * self._kernel_size
        check_matrix_fits("out_channels, in_channels*kernel_size", self._out_channels, columns)
        largest = max(self._span, self._stride, *self._ends)
        if largest > sys.maxsize // self._dtype.itemsize:
            raise ValueError(
                "kernel_size, stride, dilation, padding: expected steps that fit the address space,"
                f" got {as_text(largest)} of them"
            )
        self._params = Parameters(
            {name: a.astype(self._dtype, copy=False) for name, a in self._drawn().items()},
            {"weight": "(O, C, K)", "bias": "(O,)"} if self._bias else {"weight": "(O, C, K)"},
        )

    def _drawn(self) -> dict[str, NDArray[np.float64]]:
        """Draw the initial values in float64, so that a seed means the same for both dtypes."""
        rng = np.random.default_rng(self._seed)
        O, C, K = self._out_channels, self._in_channels, self._kernel_size
        bias = np.zeros(O)
        if self._init == "glorot":
            # An input is seen by K*O sums, an output sees K*C inputs; the matrix is O x K*C.
            bound = (6.0 / (K * (C + O))) ** 0.5
            weight = rng.uniform(-bound, bound, (O, C, K))
        else:
            bound = (C * K) ** -0.5
            weight = rng.uniform(-bound, bound, (O, C, K))
            bias = rng.uniform(-bound, bound, O)
        return {"weight": weight, "bias": bias} if self._bias else {"weight": weight}

    @property
    def in_channels(self) -> int:
        """C, the size of the last axis of x."""
        return self._in_channels

    @property
    def out_channels(self) -> int:
        """O, the size of the last axis of y."""
        return self._out_channels

    @property
    def kernel_size(self) -> int:
        """K, how many steps an output sees."""
        return self._kernel_size

    @property
    def stride(self) -> int:
        """Steps from one output to the next."""
        return self._stride

    @property
    def padding(self) -> str | int:
        """How many zeros stand before and after: "same", "causal", "valid" or a number."""
        return self._padding

    @property
    def dilation(self) -> int:
        """Steps from one element of the kernel to the next."""
        return self._dilation

    @property
    def bias(self) -> bool:
        """Whether there is a bias."""
        return self._bias

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ·)."""
        return self._batch_first

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the parameters, the arithmetic and every output."""
        return self._dtype

    @property
    def init(self) -> str:
        """Scheme of the initial parameters."""
        return self._init

    @property
    def seed(self) -> int:
        """The seed in use."""
        return self._seed

    @property
    def _span(self) -> int:
        """S, the steps from the first to the last that an output sees, both included."""
        return (self._kernel_size - 1) * self._dilation + 1

    @property
    def _ends(self) -> tuple[int, int]:
        """The numbers of zeros before and after a row."""
        if isinstance(self._padding, int):
            return self._padding, self._padding
        around = self._span - 1
        left = {"valid": 0, "same": around // 2, "causal": around}[self._padding]
        return left, (around - left if self._padding == "same" else 0)

    @property
    def params(self) -> Parameters:
        """The live parameters: ``weight`` (O, C, K), ``bias`` (O,)."""
        return self._params

    def load_params(self, mapping: Mapping[str, ArrayLike]) -> None:
        """Copy and cast a value into every parameter, or change nothing and raise.

        Parameters
        ----------
        mapping
            Name to array-like: exactly the names and shapes of ``params``.

        Raises
        ------
        TypeError
            If a value is not of real numbers.
        ValueError
            If a name is missing or unknown, or a shape differs.
        """
        self._params.load(mapping)

    def output_lengths(self, lengths: ArrayLike) -> NDArray[np.int64]:
        """Return how many outputs rows of these lengths have.

        Parameters
        ----------
        lengths
            Integers >= 0, of any shape.

        Returns
        -------
        ndarray of int64, of the shape of the lengths

        Raises
        ------
        TypeError
            If the lengths are not integers.
        ValueError
            If one is negative.

        Examples
        --------
        >>> from rnncore.conv1d import Conv1d
        >>> Conv1d(3, 4, 5, stride=2).output_lengths([7, 8, 1, 0])
        array([4, 4, 1, 0])
        >>> Conv1d(3, 4, 5, padding="valid").output_lengths([7, 4])
        array([3, 0])
        """
        checked = as_integer_array("lengths", lengths)
        most = sys.maxsize - sum(self._ends)
        check_range("lengths", checked, 0, most, "the greatest length")
        outputs = (checked + (sum(self._ends) - self._span)) // self._stride + 1
        return np.where(checked > 0, np.maximum(outputs, 0), 0)

    def __call__(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> NDArray[Any]:
        """Return y without a tape: inference.

        Parameters
        ----------
        x
            (T, B, C), or (B, T, C) with ``batch_first``, or (T, C) unbatched; converted to the
            layer's dtype.
        lengths : default None
            Integers (B,) in [0, T]: row b counts up to step ``lengths[b]``. What lies beyond is not
            read (it may hold NaN) and counts as zeros. None: everything counts.

        Returns
        -------
        ndarray (T', B, O), or (B, T', O), or (T', O)
            T' is ``output_lengths(T)``. 0 beyond ``output_lengths(lengths)``.

        Raises
        ------
        TypeError
            If x is not of real numbers, or the lengths are not integers.
        ValueError
            If a shape is wrong or a length out of range.
        """
        saved = self._padded(self._checked_x(x, lengths))
        return self._y(saved)

    def forward(
        self, x: ArrayLike, *, lengths: ArrayLike | None = None
    ) -> tuple[NDArray[Any], Conv1dTape]:
        """Return y and the tape that ``backward`` needs.

        Parameters
        ----------
        x, lengths
            As in ``layer(x)``. The tape keeps a copy.

        Returns
        -------
        y : ndarray (T', B, O), or (B, T', O), or (T', O)
            The same bits as from ``__call__``.
        tape : Conv1dTape

        Raises
        ------
        TypeError, ValueError
            As ``layer(x)``.
        """
        saved = self._padded(self._checked_x(x, lengths))
        return self._y(saved), Conv1dTape(self, saved)

    def _padded(self, ragged: Ragged) -> _Saved:
        """Put zeros around x, and where its padding was; say which outputs count."""
        x, lengths, inside = ragged
        axis = self._time_axis(x.ndim)
        steps = int(self.output_lengths(x.shape[axis]))
        shape = list(x.shape)
        shape[axis] += sum(self._ends)
        padded = np.zeros(shape, self._dtype)
        mask: Any = True if inside is None else inside[..., None]
        np.copyto(self._middle(padded, x.shape[axis]), x, where=mask)
        inside_y = None
        if lengths is not None:
            outputs, times = self.output_lengths(lengths), np.arange(steps)
            inside_y = times < outputs[:, None] if axis else times[:, None] < outputs
        shape_y = [*x.shape[:-1], self._out_channels]
        shape_y[axis] = steps
        return _Saved(padded, inside, inside_y, x.shape, tuple(shape_y))

    def _middle(self, padded: NDArray[Any], steps: int) -> NDArray[Any]:
        """View the part of the padded input that is x."""
        left, _ = self._ends
        return padded[self._along(padded.ndim, slice(left, left + steps))]

    def _windows(self, saved: _Saved) -> NDArray[Any]:
        """Cut out what each output that counts sees: (N, C*K), in the order of the weights."""
        axis = self._time_axis(len(saved.shape_y))
        columns = self._in_channels * self._kernel_size
        steps = saved.shape_y[axis]
        if steps == 0:  # the row may be shorter than a window
            return np.zeros((0, columns), self._dtype)
        view = np.lib.stride_tricks.sliding_window_view(saved.padded, self._span, axis=axis)
        taken = slice(0, (steps - 1) * self._stride + 1, self._stride)
        view = view[self._along(saved.padded.ndim, taken)][..., :: self._dilation]
        return gather(view, saved.inside_y).reshape(-1, columns)  # of (T', B, C, K)

    def _y(self, saved: _Saved) -> NDArray[Any]:
        """Compute y = windows W^T + b."""
        weight = self._params["weight"].reshape(self._out_channels, -1)  # (O, C*K)
        with np.errstate(all="ignore"):
            y: NDArray[Any] = self._windows(saved) @ weight.T
            if self._bias:
                y += self._params["bias"]
        return scatter(y, saved.inside_y, saved.shape_y)

    def backward(self, tape: Conv1dTape, dy: ArrayLike, *, keep: bool = False) -> Conv1dGradients:
        """Return the gradients of a loss whose gradient with respect to y is given.

        Parameters
        ----------
        tape
            Of a ``forward`` of this layer, not consumed yet.
        dy
            dL/dy, the shape of y. Beyond the output lengths it is not read.
        keep : default False
            Whether the tape stays usable.

        Returns
        -------
        Conv1dGradients
            ``.x``, of the shape of x, and ``.params``.

        Raises
        ------
        TypeError
            If ``tape`` is no Conv1dTape, ``dy`` not of real numbers, or ``keep`` no bool.
        ValueError
            If ``dy`` has another shape, or the tape is consumed or of another layer. The tape stays
            as it was.
        """
        saved = opened(Conv1dTape, tape, self)
        keep = as_flag("keep", keep)
        dy = as_real_array("dy", dy, self._dtype, counted=saved.inside_y)
        layout = "T', O" if dy.ndim == 2 else "B, T', O" if self._batch_first else "T', B, O"
        check_shape("dy", dy, saved.shape_y, f"({layout})")
        gradients = self._gradients(dy, saved)
        if not keep:
            tape._saved = None
        return gradients

    def _gradients(self, dy: NDArray[Any], saved: _Saved) -> Conv1dGradients:
        """Differentiate y = windows W^T + b; dy (T', B, O)."""
        weight = self._params["weight"]
        rows = gather(dy, saved.inside_y).reshape(-1, self._out_channels)  # (N, O)
        with np.errstate(all="ignore"):
            dweight = rows.T @ self._windows(saved)  # (O, C*K)
            params: dict[str, NDArray[Any]] = {"weight": dweight.reshape(weight.shape)}
            if self._bias:
                params["bias"] = rows.sum(axis=0)
            dwindows = (rows @ weight.reshape(self._out_channels, -1)).reshape(
                len(rows), self._in_channels, self._kernel_size
            )
            shape = (*saved.shape_y[:-1], *dwindows.shape[1:])
            dx = self._dx(scatter(dwindows, saved.inside_y, shape), saved)
        return Conv1dGradients(dx, params)

    def _dx(self, dwindows: NDArray[Any], saved: _Saved) -> NDArray[Any]:
        """Add up what the windows say of each step; dwindows (T', B, C, K)."""
        dpadded = np.zeros_like(saved.padded)
        steps = saved.shape_y[self._time_axis(len(saved.shape_y))]
        for k in range(self._kernel_size if steps else 0):
            first = k * self._dilation
            seen = slice(first, first + (steps - 1) * self._stride + 1, self._stride)
            dpadded[self._along(dpadded.ndim, seen)] += dwindows[..., k]
        dx = self._middle(dpadded, saved.shape[self._time_axis(dpadded.ndim)])
        if saved.inside is None:
            return np.ascontiguousarray(dx)
        return np.where(saved.inside[..., None], dx, dx.dtype.type(0))

    def _time_axis(self, ndim: int) -> int:
        return 1 if self._batch_first and ndim == 3 else 0

    def _along(self, ndim: int, steps: slice) -> tuple[slice, ...]:
        """Index those steps."""
        return (slice(None),) * self._time_axis(ndim) + (steps,)

    def _checked_x(self, x: ArrayLike, lengths: ArrayLike | None) -> Ragged:
        return as_ragged(
            x,
            lengths,
            features=self._in_channels,
            dtype=self._dtype,
            batch_first=self._batch_first,
        )

    def freeze(self, batch_size: int = 1) -> FrozenConv1d:
        """Return a snapshot that streams: one step at a time, remembering the inputs it needs.

        Later changes to ``params`` do not reach it.

        Parameters
        ----------
        batch_size : default 1
            B, the rows that every step takes.

        Returns
        -------
        FrozenConv1d
            For one thread at a time; a second one inside it raises RuntimeError.

        Raises
        ------
        TypeError, ValueError
            If ``batch_size`` is not a positive integer; or if the layer does not answer every step
            at once: it must have ``padding="causal"`` (or a kernel of one step without padding) and
            ``stride=1``.
        MemoryError
            If the memory cannot be had.

        Examples
        --------
        >>> import numpy as np
        >>> from rnncore.conv1d import Conv1d
        >>> conv = Conv1d(1, 1, 2, padding="causal", dtype="float64")
        >>> conv.load_params({"weight": [[[10.0, 1.0]]], "bias": [0.0]})
        >>> stream = conv.freeze()
        >>> [stream.step([value]).item() for value in (1.0, 2.0, 3.0)]
        [1.0, 12.0, 23.0]
        """
        rows = as_size("batch_size", batch_size)
        if self._stride != 1:
            raise ValueError(f"freeze: expected a layer with stride=1, got stride={self._stride}")
        if self._ends != (self._span - 1, 0):
            raise ValueError(
                f"freeze: expected a layer with padding='causal', got padding={self._padding!r}"
            )
        values = self._span * rows * self._in_channels
        if values * self._dtype.itemsize > sys.maxsize:
            raise ValueError(
                "batch_size: expected a size whose state (S - 1, B, C) fits the address space, "
                f"got {as_text(rows)}"
            )
        return FrozenConv1d(copy.deepcopy(self), rows)

    # ------------------------------------------------- in a Sequential

    def _interface(self) -> Interface:
        return Interface(
            self._in_channels,
            self._out_channels,
            self._dtype,
            batch_first=self._batch_first,
            needs_steps=True,
        )

    def _output_lengths(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.output_lengths(lengths)

    def _infer(self, x: Any, context: Context) -> tuple[NDArray[Any], None]:
        return self(x, lengths=context.lengths), None

    def _train(self, x: Any, context: Context) -> tuple[NDArray[Any], None, Conv1dTape]:
        y, tape = self.forward(x, lengths=context.lengths)
        return y, None, tape

    def _backprop(
        self, tape: Conv1dTape, dy: NDArray[Any], dstate: None
    ) -> tuple[NDArray[Any], None, dict[str, NDArray[Any]]]:
        dx, params = self.backward(tape, dy, keep=True)
        return dx, dstate, params

    def _stream(self, batch_size: int) -> FrozenConv1d:
        return self.freeze(batch_size)

    # ------------------------------------------------- printing

    def __repr__(self) -> str:
        """Return the call that makes an equal layer with the same seed."""
        options = [
            "" if self._stride == 1 else f"stride={self._stride}",
            "" if self._padding == "same" else f"padding={self._padding!r}",
            "" if self._dilation == 1 else f"dilation={self._dilation}",
            "" if self._bias else "bias=False",
            "batch_first=True" if self._batch_first else "",
            "" if self._dtype == np.float32 else f"dtype={self._dtype.name!r}",
            "" if self._init == "glorot" else f"init={self._init!r}",
            f"seed={self._seed}",
        ]
        sizes = (self._in_channels, self._out_channels, self._kernel_size)
        return f"Conv1d({', '.join([*map(str, sizes), *filter(None, options)])})"


class FrozenConv1d(StreamBase):
    """A snapshot of a causal ``Conv1d`` with the inputs that its next outputs see.

    ``Conv1d.freeze`` makes it. Copying or pickling it raises TypeError.

    Attributes
    ----------
    state
        The last S - 1 inputs (S - 1, B, C), the oldest first, zeros at the beginning; a copy.
        Setting it copies.
    """

    def __init__(self, conv: Conv1d, batch_size: int) -> None:
        super().__init__(batch_size)
        self._conv = conv
        self._past = np.zeros((conv._span - 1, batch_size, conv.in_channels), conv.dtype)

    @property
    def state(self) -> NDArray[Any]:
        """The last inputs (S - 1, B, C), the oldest first."""
        with self._alone():
            return self._past.copy()

    @state.setter
    def state(self, value: ArrayLike) -> None:
        state = as_real_array("state", value, self._conv.dtype, copy=True)
        check_shape("state", state, self._past.shape, "(S - 1, B, C)")
        with self._alone():
            self._past = state

    def step(self, x_t: ArrayLike) -> NDArray[Any]:
        """Advance by one step.

        Parameters
        ----------
        x_t
            (B, C), or (C,) for one row.

        Returns
        -------
        ndarray (B, O), or (O,)

        Raises
        ------
        TypeError, ValueError
            If x_t is not of real numbers, or of another shape.
        RuntimeError
            If another thread is inside.
        """
        x = as_real_array("x_t", x_t, self._conv.dtype)
        shape = (self._batch_size, self._conv.in_channels)
        if x.shape != shape and not (self._batch_size == 1 and x.shape == shape[1:]):
            one = f" or (C,) = {shape[1:]}" if self._batch_size == 1 else ""
            raise ValueError(f"x_t: expected shape (B, C) = {shape}{one}, got {x.shape}")
        y = self._advance(x.reshape(1, *shape))  # (1, B, O)
        return y.reshape(*x.shape[:-1], self._conv.out_channels)

    def run(self, x: ArrayLike) -> NDArray[Any]:
        """Advance over a whole sequence.

        Parameters
        ----------
        x
            In the layer's layout: (T, B, C), or (B, T, C) with ``batch_first``, or (T, C) for one
            row.

        Returns
        -------
        ndarray, (T, B, O), (B, T, O) or (T, O)

        Raises
        ------
        TypeError, ValueError
            If x is not of real numbers, or of another shape.
        RuntimeError
            If another thread is inside.
        """
        values = self._conv._checked_x(x, None).values
        major = values[:, None] if values.ndim == 2 else values
        if self._conv.batch_first and values.ndim == 3:
            major = values.swapaxes(0, 1)
        if major.shape[1] != self._batch_size:
            raise ValueError(
                f"x: expected {self._batch_size} rows (the batch_size of freeze), "
                f"got shape {values.shape}"
            )
        y = self._advance(major)
        if values.ndim == 2:
            return y[:, 0]
        return np.ascontiguousarray(y.swapaxes(0, 1)) if self._conv.batch_first else y

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Forget the inputs.

        Parameters
        ----------
        rows : default None
            Of these rows, an integer or integers; None: of all.

        Raises
        ------
        TypeError, ValueError
            If they are no integers from 0 to B - 1.
        """
        chosen = slice(None) if rows is None else as_rows(rows, self._batch_size)
        with self._alone():
            self._past[:, chosen] = 0

    def _advance(self, x: NDArray[Any]) -> NDArray[Any]:
        """Compute y (T, B, O) from x (T, B, C) and the past, and remember x."""
        O = self._conv.out_channels
        with self._alone():
            seen = np.concatenate([self._past, x])  # (S - 1 + T, B, C)
            y = np.empty((len(x), self._batch_size, O), x.dtype)
            if len(x):
                windows = np.lib.stride_tricks.sliding_window_view(seen, self._conv._span, axis=0)
                columns = windows[..., :: self._conv.dilation].reshape(len(x) * len(y[0]), -1)
                weight = self._conv.params["weight"].reshape(O, -1)
                with np.errstate(all="ignore"):
                    np.matmul(columns, weight.T, out=y.reshape(-1, O))
                    if self._conv.bias:
                        y += self._conv.params["bias"]
            self._past = seen[len(x) :].copy()
        return y

    def __repr__(self) -> str:
        """Show the layer and the number of rows."""
        return f"<FrozenConv1d of {self._conv!r}, batch_size={self._batch_size}>"


def _checked_padding(value: object) -> str | int:
    """Return a padding by name, or a number >= 0."""
    names = ("same", "causal", "valid")
    expected = f"{', '.join(map(repr, names))} or an integer >= 0"
    message = f"padding: expected {expected}, got {as_text(value)}"
    if isinstance(value, bool) or not isinstance(value, (str, int, np.integer)):
        raise TypeError(message)
    if value not in names if isinstance(value, str) else value < 0:
        raise ValueError(message)
    return value if isinstance(value, str) else int(value)
