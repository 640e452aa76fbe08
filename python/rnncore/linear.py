"""The dense layer: a matrix product and a bias, the head of most models.

The products are ``numpy.matmul``: how a row's sum is rounded may depend on how many rows share the
call and on NumPy's BLAS, unlike in the recurrent layers, whose bits do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, SupportsIndex

import numpy as np

from .initializers import glorot_uniform
from .parameters import (
    Parameters,
    as_dtype,
    as_flag,
    as_real_array,
    as_seed,
    as_size,
    as_text,
    check_matrix_fits,
    check_shape,
    refuse_copy,
)

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


class LinearTape:
    """What one ``Linear.forward`` keeps for ``backward``: a copy of x.

    The weights are not kept: ``backward`` uses those that the layer has when it is called.
    """

    __slots__ = ("_layer", "_x")

    def __init__(self, layer: Linear, x: NDArray[Any]) -> None:
        self._layer = layer
        self._x: NDArray[Any] | None = x  # (..., in)

    @property
    def nbytes(self) -> int:
        """Bytes held; 0 once ``backward`` has consumed the tape."""
        return 0 if self._x is None else self._x.nbytes

    def __repr__(self) -> str:
        """Say the size, or that it is used."""
        return f"<LinearTape, {'used' if self._x is None else f'{self.nbytes} bytes'}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies and pickles: a tape is for one ``backward``."""
        refuse_copy(self)


class Linear:
    """Affine map of the last axis: ``y = x W^T + b``.

    Parameters
    ----------
    in_features, out_features
        Sizes of the last axis of x and of y.
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
        bias: bool = True,
        dtype: DTypeLike = "float32",
        init: str = "glorot",
        seed: int | None = None,
    ) -> None:
        self._in_features = as_size("in_features", in_features)
        self._out_features = as_size("out_features", out_features)
        self._bias = as_flag("bias", bias)
        self._dtype = as_dtype(dtype)
        if init not in ("glorot", "pytorch"):
            raise ValueError(f"init: expected 'glorot' or 'pytorch', got {as_text(init)}")
        self._init = init
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

    def __call__(self, x: ArrayLike) -> NDArray[Any]:
        """Return y without a tape: inference.

        Parameters
        ----------
        x
            (..., in); converted to the layer's dtype.

        Returns
        -------
        ndarray (..., out)

        Raises
        ------
        TypeError
            If x is not of real numbers.
        ValueError
            If its last axis is not of size ``in_features``.

        Examples
        --------
        >>> from rnncore.linear import Linear
        >>> head = Linear(2, 1, dtype="float64")
        >>> head.load_params({"weight": [[2.0, 3.0]], "bias": [1.0]})
        >>> head([[1.0, 1.0], [0.0, 2.0]])
        array([[6.],
               [7.]])
        """
        return self._y(self._checked_x(x, copy=False))

    def forward(self, x: ArrayLike) -> tuple[NDArray[Any], LinearTape]:
        """Return y and the tape that ``backward`` needs.

        Parameters
        ----------
        x
            (..., in); converted to the layer's dtype. The tape keeps a copy.

        Returns
        -------
        y : ndarray (..., out)
            The same bits as from ``__call__``.
        tape : LinearTape

        Raises
        ------
        TypeError
            If x is not of real numbers.
        ValueError
            If its last axis is not of size ``in_features``.
        """
        x = self._checked_x(x, copy=True)
        return self._y(x), LinearTape(self, x)

    def _y(self, x: NDArray[Any]) -> NDArray[Any]:
        """Compute y = x W^T + b; x (..., in)."""
        rows = x.reshape(-1, self._in_features)
        with np.errstate(all="ignore"):
            y: NDArray[Any] = rows @ self._params["weight"].T
            if self._bias:
                y += self._params["bias"]
        return y.reshape(*x.shape[:-1], self._out_features)

    def backward(self, tape: LinearTape, dy: ArrayLike, *, keep: bool = False) -> LinearGradients:
        """Return the gradients of a loss whose gradient with respect to y is given.

        Parameters
        ----------
        tape
            Of a ``forward`` of this layer, not consumed yet.
        dy
            dL/dy (..., out), the shape of y.
        keep : default False
            Whether the tape stays usable.

        Returns
        -------
        LinearGradients
            ``.x`` (..., in) and ``.params``.

        Raises
        ------
        TypeError
            If ``tape`` is no LinearTape, ``dy`` not of real numbers, or ``keep`` no bool.
        ValueError
            If ``dy`` has another shape, or the tape is consumed or of another layer. The tape stays
            as it was.
        """
        if not isinstance(tape, LinearTape):
            raise TypeError(f"tape: expected a LinearTape, got {type(tape).__name__}")
        if tape._layer is not self:
            raise ValueError("tape: expected one of this layer, got one of another Linear")
        x = tape._x
        if x is None:
            raise ValueError(
                "tape: expected an unused one, got one that backward has consumed "
                "(backward(..., keep=True) leaves it usable)"
            )
        keep = as_flag("keep", keep)
        dy = as_real_array("dy", dy, self._dtype)
        check_shape("dy", dy, (*x.shape[:-1], self._out_features), "(..., out)")
        gradients = self._gradients(x, dy)
        if not keep:
            tape._x = None
        return gradients

    def _gradients(self, x: NDArray[Any], dy: NDArray[Any]) -> LinearGradients:
        """Differentiate y = x W^T + b; x (..., in), dy (..., out)."""
        x_rows = x.reshape(-1, self._in_features)
        dy_rows = dy.reshape(-1, self._out_features)
        with np.errstate(all="ignore"):
            params: dict[str, NDArray[Any]] = {"weight": dy_rows.T @ x_rows}
            if self._bias:
                params["bias"] = dy_rows.sum(axis=0)
            dx = dy_rows @ self._params["weight"]
        return LinearGradients(dx.reshape(x.shape), params)

    def _checked_x(self, x: ArrayLike, *, copy: bool) -> NDArray[Any]:
        array = as_real_array("x", x, self._dtype, copy=copy)
        if array.ndim == 0 or array.shape[-1] != self._in_features:
            raise ValueError(f"x: expected shape (..., {self._in_features}), got {array.shape}")
        return array

    def __repr__(self) -> str:
        """Return the call that makes an equal layer with the same seed."""
        options = [
            "" if self._bias else "bias=False",
            "" if self._dtype == np.float32 else f"dtype={self._dtype.name!r}",
            "" if self._init == "glorot" else f"init={self._init!r}",
            f"seed={self._seed}",
        ]
        texts = [str(self._in_features), str(self._out_features), *filter(None, options)]
        return f"Linear({', '.join(texts)})"
