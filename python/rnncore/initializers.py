"""Initial values of the recurrent layers' parameters: one function a scheme, one generator a layer.

All values are drawn in float64 from ``numpy.random.default_rng(seed)``, parameter after parameter
in the layer's order, and then cast: a seed gives the same float64 draws whatever the dtype.
``numpy.random`` is loaded when the first layer is made, not when the package is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rnncore.parameters import empty_on_line

__all__ = ["INITS", "glorot_uniform", "orthogonal", "recurrent_parameters"]


def glorot_uniform(rng: np.random.Generator, fan_out: int, fan_in: int) -> NDArray[np.float64]:
    """Draw a matrix whose entries are uniform in ±sqrt(6 / (fan_in + fan_out)).

    The bound keeps the variance of signals and of gradients alike through one linear map.

    Parameters
    ----------
    rng
        Source of the randomness.
    fan_out, fan_in
        Rows and columns: what the map returns and what it takes.

    Returns
    -------
    ndarray (fan_out, fan_in), float64

    References
    ----------
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks,
    2010, equation 16.

    Examples
    --------
    >>> import numpy as np
    >>> W = glorot_uniform(np.random.default_rng(0), 2, 4)
    >>> W.shape, bool(abs(W).max() <= 1.0)
    ((2, 4), True)
    """
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    return rng.uniform(-bound, bound, (fan_out, fan_in))


def orthogonal(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Draw a square orthogonal matrix, uniformly among all of them.

    The Q of a Gaussian matrix's QR decomposition is uniform once each column takes the sign that
    makes the diagonal of R positive. Powers of such a matrix neither grow nor shrink a vector.

    Parameters
    ----------
    rng
        Source of the randomness.
    size
        Number of rows and of columns.

    Returns
    -------
    ndarray (size, size), float64

    References
    ----------
    Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks, 2013, arXiv:1312.6120. Mezzadri, How to generate random matrices from
    the classical compact groups, 2006, arXiv:math-ph/0609050, section 5 (the signs).

    Examples
    --------
    >>> import numpy as np
    >>> U = orthogonal(np.random.default_rng(0), 3)
    >>> np.allclose(U @ U.T, np.eye(3), rtol=0, atol=1e-14)
    True
    """
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    q *= np.where(np.diagonal(r) < 0.0, -1.0, 1.0)
    return np.asarray(q, np.float64)


def recurrent_parameters(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    hidden_size: int,
    init: str,
    forget_gate: int | None,
    seed: int,
    dtype: np.dtype[Any],
) -> dict[str, NDArray[Any]]:
    """Draw fresh parameters for a recurrent layer, gate by gate.

    Parameters
    ----------
    shapes
        Name to shape, in the order of drawing: ``weight_ih_* (G*H, features)``,
        ``weight_hh_* (G*H, H)``, and ``bias_ih_*``, ``bias_hh_*`` ``(G*H,)``.
    hidden_size
        H, the rows that each gate has in every parameter.
    init
        A key of ``INITS``. ``"orthogonal"``: Glorot-uniform input weights and orthogonal recurrent
        weights, each gate for itself, and zero biases; ``"pytorch"``: uniform in ±1/sqrt(H).
    forget_gate
        Index of the gate whose part of ``bias_ih`` is 1 under ``"orthogonal"``, or None. An open
        forget gate lets the LSTM's memory, and its gradient, survive the first updates.
    seed
        Seed of ``numpy.random.default_rng``.
    dtype
        float32 or float64.

    Returns
    -------
    dict
        Name to a fresh C-contiguous array on a cache line, in the order of ``shapes``.

    References
    ----------
    Gers, Schmidhuber and Cummins, Learning to forget, 2000, and Jozefowicz, Zaremba and Sutskever,
    An empirical exploration of recurrent network architectures, 2015 (the forget bias).

    Examples
    --------
    >>> import numpy as np
    >>> p = recurrent_parameters(
    ...     {"weight_hh_l0": (6, 3), "bias_ih_l0": (6,)}, hidden_size=3, init="orthogonal",
    ...     forget_gate=1, seed=0, dtype=np.dtype("float64"))
    >>> p["bias_ih_l0"]
    array([0., 0., 0., 1., 1., 1.])
    """
    rng = np.random.default_rng(seed)
    scheme = INITS[init]
    parameters = {}
    for name, shape in shapes.items():
        values = parameters[name] = empty_on_line(shape, dtype)
        for gate in range(shape[0] // hidden_size):
            rows = slice(gate * hidden_size, (gate + 1) * hidden_size)
            block: tuple[int, ...] = (hidden_size, *shape[1:])
            values[rows] = scheme(rng, name, block, gate == forget_gate)
    return parameters


def _orthogonal_scheme(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], forget: bool
) -> NDArray[np.float64] | float:
    """Glorot-uniform W, orthogonal U, zero biases, but 1 in the forget part of ``bias_ih``."""
    if name.startswith("weight_ih"):
        return glorot_uniform(rng, *shape)
    if name.startswith("weight_hh"):
        return orthogonal(rng, shape[0])
    # In one of the two biases alone: the gate sees their sum.
    return 1.0 if forget and name.startswith("bias_ih") else 0.0


def _pytorch_scheme(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], forget: bool
) -> NDArray[np.float64]:
    """Uniform in ±1/sqrt(H), every parameter: how PyTorch's recurrent modules begin."""
    del name, forget
    bound = 1.0 / math.sqrt(shape[0])
    return rng.uniform(-bound, bound, shape)


# A string: evaluated, it would load numpy.random with the package.
_Scheme: TypeAlias = (
    "Callable[[np.random.Generator, str, tuple[int, ...], bool], NDArray[np.float64] | float]"
)

INITS: Mapping[str, _Scheme] = {"orthogonal": _orthogonal_scheme, "pytorch": _pytorch_scheme}
