"""The dense layer: a matrix product, a bias and an activation, the head of most models.

The products are ``numpy.matmul``: how a row's sum is rounded may depend on how many rows share the
call and on NumPy's BLAS, unlike in the recurrent layers, whose bits do not depend on the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .initializers import glorot_uniform
from .parameters import (
    Parameters,
    as_choice,
    as_dtype,
    as_flag,
    as_real_array,
    as_seed,
    as_size,
    check_matrix_fits,
    check_shape,
)
from .protocol import Context, Interface, Stateless
from .ragged import as_ragged, gather, scatter
from .tape import SavedTape, opened

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["Linear", "LinearGradients", "LinearTape"]


class LinearGradients(NamedTuple):
    """What ``Linear.backward`` returns; every array is fresh and belongs to the caller.

    Attributes
    ----------
    x
        dL/dx, shaped like x.
    params
        Parameter name to gradient, summed over all leading axes, in the order of the layer's
        ``params``.
    """

    x: NDArray[Any]
    params: dict[str, NDArray[Any]]


class _Saved(NamedTuple):
    """What ``Linear.forward`` saves; N is the number of rows that count."""

    x: NDArray[Any]  # (N, in)
    y: NDArray[Any] | None  # (N, out): derivatives of activations take the output
    inside: NDArray[np.bool_] | None  # (T, B): where the rows were, None if all count
    shape: tuple[int, ...]  # of x


class LinearTape(SavedTape[_Saved]):
    """What one ``Linear.forward`` keeps: a copy of x, and of y unless the activation is "identity".

    The weights are not kept: ``backward`` uses those that the layer has when it is called.
    """

    __slots__ = ()


def identity(a: NDArray[Any]) -> NDArray[Any]:
    """Return y = a itself."""
    return a


def d_identity(dy: NDArray[Any], y: NDArray[Any] | None) -> NDArray[Any]:
    """Differentiate y = a: da = dy."""
    del y
    return dy


def sigmoid(a: NDArray[Any]) -> NDArray[Any]:
    """Return y = 1 / (1 + exp(-a)); where exp overflows, its limit 0."""
    y: NDArray[Any] = 1 / (1 + np.exp(-a))
    return y


def d_sigmoid(dy: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Differentiate the sigmoid, from its output: da = dy * y * (1 - y)."""
    da: NDArray[Any] = dy * y * (1 - y)
    return da


def softmax(a: NDArray[Any]) -> NDArray[Any]:
    """Return y = exp(a) / sum exp(a) along the last axis.

    The largest a of a row is subtracted first, so that no exponential overflows.
    """
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    y: NDArray[Any] = e / e.sum(axis=-1, keepdims=True)
    return y


def d_softmax(dy: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Differentiate the softmax, from its output: da = y * (dy - sum dy*y)."""
    da: NDArray[Any] = y * (dy - (dy * y).sum(axis=-1, keepdims=True))
    return da


#: Name to y(a), which returns a fresh array but for the identity, and da(dy, y).
ACTIVATIONS: Mapping[str, tuple[Callable[..., NDArray[Any]], Callable[..., NDArray[Any]]]] = {
    "identity": (identity, d_identity),
    "softmax": (softmax, d_softmax),
    "sigmoid": (sigmoid, d_sigmoid),
}


class Linear:
    """Affine map of the last axis, and an activation: ``y = act(x W^T + b)``.

    Parameters
    ----------
    in_features, out_features
        Sizes of the last axis of x and of y.
    activation : default "identity"
        act: "identity", "softmax" over the last axis, or "sigmoid". For training, a loss on the
        logits is better conditioned than one on probabilities: keep "identity" with
        ``softmax_cross_entropy``, which is exact where a softmax has saturated and a loss of its
        output is infinite or flat. An activation here is for layers whose output is itself the
        quantity wanted: probabilities at inference, a gate, or a target of ``mean_squared_error``.
    bias : default True
        Whether b is there.
    dtype : default "float32"
        "float32" or "float64": of the parameters, the arithmetic and the outputs.
    init : default "glorot"
        ``"glorot"``: W uniform in ±sqrt(6 / (in + out)), b zero. ``"pytorch"``: both uniform in
        ±1/sqrt(in).
    seed : default None
        Of the initial values: an integer in [0, 2**64). None: drawn from the operating system.

    Attributes
    ----------
    params
        ``weight`` (out, in) and, with bias, ``bias`` (out,): live arrays under fixed names.
    seed
        The seed in use.

    Raises
    ------
    TypeError, ValueError
        If an option is not one of those above, or the sizes exceed the address space.
    MemoryError
        If the memory cannot be had.

    References
    ----------
    Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990 (the
    softmax).

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.linear import Linear
    >>> head = Linear(3, 2, dtype="float64", seed=0)
    >>> x = np.ones((5, 4, 3))
    >>> y, tape = head.forward(x)
    >>> y.shape
    (5, 4, 2)
    >>> g = head.backward(tape, np.ones_like(y))
    >>> g.x.shape, g.params["bias"]
    ((5, 4, 3), array([20., 20.]))
    >>> head
    Linear(3, 2, dtype='float64', seed=0)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str = "identity",
        bias: bool = True,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: int | None = None,
    ) -> None:
        self._in_features = as_size("in_features", in_features)
        self._out_features = as_size("out_features", out_features)
        self._activation = as_choice("activation", activation, tuple(ACTIVATIONS))
        self._bias = as_flag("bias", bias)
        self._dtype = as_dtype(dtype)
        self._init = as_choice("init", init, ("glorot", "pytorch"))
        self._seed = as_seed(seed)
        check_matrix_fits("out_features, in_features", self._out_features, self._in_features)
        self._params = Parameters(
            {name: a.astype(self._dtype, copy=False) for name, a in self._drawn().items()},
            {"weight": "(out, in)", "bias": "(out,)"} if self._bias else {"weight": "(out, in)"},
        )

    def _drawn(self) -> dict[str, NDArray[np.float64]]:
        """Draw the initial values in float64, so that a seed means the same for both dtypes."""
        rng = np.random.default_rng(self._seed)
        if self._init == "glorot":
            weight = glorot_uniform(rng, self._out_features, self._in_features)
            bias = np.zeros(self._out_features)
        else:
            bound = self._in_features**-0.5
            weight = rng.uniform(-bound, bound, (self._out_features, self._in_features))
            bias = rng.uniform(-bound, bound, self._out_features)
        return {"weight": weight, "bias": bias} if self._bias else {"weight": weight}

    @property
    def in_features(self) -> int:
        """Size of the last axis of x."""
        return self._in_features

    @property
    def out_features(self) -> int:
        """Size of the last axis of y."""
        return self._out_features

    @property
    def activation(self) -> str:
        """What is applied to x W^T + b: "identity", "softmax" or "sigmoid"."""
        return self._activation

    @property
    def bias(self) -> bool:
        """Whether there is a bias."""
        return self._bias

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
    def params(self) -> Parameters:
        """The live parameters: ``weight`` (out, in), ``bias`` (out,)."""
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

    def __call__(
        self, x: ArrayLike, *, lengths: ArrayLike | None = None, batch_first: bool = False
    ) -> NDArray[Any]:
        """Return y without a tape: inference.

        Parameters
        ----------
        x
            (..., in); converted to the layer's dtype.
        lengths : default None
            Integers (B,) in [0, T] for x (T, B, in): row b counts up to step ``lengths[b]``. What
            lies beyond is not read (it may hold NaN), and y is 0 there. None: everything counts.
        batch_first : default False
            Whether the axes to which ``lengths`` refers are (B, T, in); without ``lengths`` the
            two layouts are the same.

        Returns
        -------
        ndarray (..., out)

        Raises
        ------
        TypeError
            If x is not of real numbers, or the lengths are not integers.
        ValueError
            If the last axis of x is not of size ``in_features``, or x and lengths do not fit.

        Examples
        --------
        >>> from rnncore.linear import Linear
        >>> head = Linear(2, 1, dtype="float64")
        >>> head.load_params({"weight": [[2.0, 3.0]], "bias": [1.0]})
        >>> head([[1.0, 1.0], [0.0, 2.0]])
        array([[6.],
               [7.]])
        """
        rows, inside, shape = self._checked_x(x, lengths, batch_first, copy=False)
        return scatter(self._y(rows), inside, (*shape[:-1], self._out_features))

    def forward(
        self, x: ArrayLike, *, lengths: ArrayLike | None = None, batch_first: bool = False
    ) -> tuple[NDArray[Any], LinearTape]:
        """Return y and the tape that ``backward`` needs.

        Parameters
        ----------
        x, lengths, batch_first
            As in ``layer(x)``. The tape keeps a copy.

        Returns
        -------
        y : ndarray (..., out)
            The same bits as from ``__call__``.
        tape : LinearTape

        Raises
        ------
        TypeError, ValueError
            As ``layer(x)``.
        """
        rows, inside, shape = self._checked_x(x, lengths, batch_first, copy=True)
        y = self._y(rows)
        kept = None if self._activation == "identity" else y.copy()
        tape = LinearTape(self, _Saved(rows, kept, inside, shape))
        return scatter(y, inside, (*shape[:-1], self._out_features)), tape

    def _y(self, x: NDArray[Any]) -> NDArray[Any]:
        """Compute y = act(x W^T + b); x (N, in), y (N, out)."""
        act, _ = ACTIVATIONS[self._activation]
        with np.errstate(all="ignore"):
            a: NDArray[Any] = x @ self._params["weight"].T
            if self._bias:
                a += self._params["bias"]
            return act(a)

    def backward(self, tape: LinearTape, dy: ArrayLike, *, keep: bool = False) -> LinearGradients:
        """Return the gradients of a loss whose gradient with respect to y is given.

        Parameters
        ----------
        tape
            Of a ``forward`` of this layer, not consumed yet.
        dy
            dL/dy (..., out), the shape of y. Beyond the lengths it is not read.
        keep : default False
            Whether the tape stays usable.

        Returns
        -------
        LinearGradients
            ``.x`` (..., in), exactly 0 beyond the lengths, and ``.params``.

        Raises
        ------
        TypeError
            If ``tape`` is no LinearTape, ``dy`` not of real numbers, or ``keep`` no bool.
        ValueError
            If ``dy`` has another shape, or the tape is consumed or of another layer. The tape stays
            as it was.
        """
        x, y, inside, shape = opened(LinearTape, tape, self)
        keep = as_flag("keep", keep)
        dy = as_real_array("dy", dy, self._dtype, counted=inside)
        check_shape("dy", dy, (*shape[:-1], self._out_features), "(..., out)")
        dx, params = self._gradients(gather(dy, inside).reshape(-1, self._out_features), x, y)
        gradients = LinearGradients(scatter(dx, inside, shape), params)
        if not keep:
            tape._saved = None
        return gradients

    def _gradients(
        self, dy: NDArray[Any], x: NDArray[Any], y: NDArray[Any] | None
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """Differentiate y = act(x W^T + b); dy (N, out), x (N, in), y (N, out)."""
        _, d_act = ACTIVATIONS[self._activation]
        with np.errstate(all="ignore"):
            da = d_act(dy, y)
            params: dict[str, NDArray[Any]] = {"weight": da.T @ x}
            if self._bias:
                params["bias"] = da.sum(axis=0)
            return da @ self._params["weight"], params

    def _checked_x(
        self, x: ArrayLike, lengths: ArrayLike | None, batch_first: bool, *, copy: bool
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None, tuple[int, ...]]:
        """Return the rows of x that count (N, in), where they were, and the shape of x."""
        batch_first = as_flag("batch_first", batch_first)
        if lengths is not None:
            values, _, inside = as_ragged(
                x, lengths, features=self._in_features, dtype=self._dtype, batch_first=batch_first
            )
            return gather(values, inside), inside, values.shape
        array = as_real_array("x", x, self._dtype, copy=copy)
        if array.ndim == 0 or array.shape[-1] != self._in_features:
            raise ValueError(f"x: expected shape (..., {self._in_features}), got {array.shape}")
        return array.reshape(-1, self._in_features), None, array.shape

    # ------------------------------------------------- in a Sequential

    def _interface(self) -> Interface:
        return Interface(self._in_features, self._out_features, self._dtype)

    def _output_lengths(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        return lengths

    def _infer(self, x: Any, context: Context) -> tuple[NDArray[Any], None]:
        return self(x, lengths=context.lengths, batch_first=context.batch_first), None

    def _train(self, x: Any, context: Context) -> tuple[NDArray[Any], None, LinearTape]:
        y, tape = self.forward(x, lengths=context.lengths, batch_first=context.batch_first)
        return y, None, tape

    def _backprop(
        self, tape: LinearTape, dy: NDArray[Any], dstate: None
    ) -> tuple[NDArray[Any], None, dict[str, NDArray[Any]]]:
        dx, params = self.backward(tape, dy, keep=True)
        return dx, dstate, params

    def _stream(self, batch_size: int) -> Stateless:
        del batch_size
        return Stateless(copy.deepcopy(self))

    # ------------------------------------------------- printing

    def __repr__(self) -> str:
        """Return the call that makes an equal layer with the same seed."""
        options = [
            "" if self._activation == "identity" else f"activation={self._activation!r}",
            "" if self._bias else "bias=False",
            "" if self._dtype == np.float32 else f"dtype={self._dtype.name!r}",
            "" if self._init == "glorot" else f"init={self._init!r}",
            f"seed={self._seed}",
        ]
        texts = [str(self._in_features), str(self._out_features), *filter(None, options)]
        return f"Linear({', '.join(texts)})"
