"""Optimizers: they change live arrays in place, from gradients under the same names.

Parameters and gradients come as trees: a mapping of names to arrays, a mapping of prefixes to
trees, or anything with such a mapping as its ``params``, as layers and the results of ``backward``
have. So ``SGD({"lstm": lstm, "head": head}, 0.1).step({"lstm": g_lstm, "head": g_head})`` trains
two layers, whose arrays are then called ``lstm.weight_ih_l0`` and so on.

The conventions are PyTorch's: momentum accumulates gradients that are not scaled by the learning
rate, and eps is outside the root. The penalties act through their gradients: ``weight_decay`` adds
``weight_decay * w``, that of ``weight_decay / 2 * sum w^2`` (L2), and ``l1`` adds ``l1 * sign(w)``,
that of ``l1 * sum |w|``; only in AdamW they leave the gradient alone and act on w directly. They
reach every array, biases included; an optimizer for each group of arrays gives each its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import _core
from .parameters import (
    Kind,
    Parameters,
    as_flag,
    as_real,
    as_real_array,
    as_scalar,
    as_setting,
    as_text,
    check_names,
    check_shape,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_grad_norm", "clip_grad_value"]


class Optimizer(ABC):
    """What all optimizers share: the live arrays, their state, and checked steps.

    A subclass names its settings and its state, and has the update of one array.
    """

    # What the settings are, where they are not just finite and >= 0.
    _kinds: ClassVar[Mapping[str, Kind]] = {}

    def __init__(self, params: Any, settings: Mapping[str, object]) -> None:
        self._settings = self._checked(settings)
        self._tree = params
        arrays = _live_arrays("params", params)
        self._shapes = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        self._state = {name: self._fresh_state(array) for name, array in arrays.items()}

    @classmethod
    def _checked(cls, settings: Mapping[str, object]) -> dict[str, float]:
        """Check all settings and return them as floats."""
        return {
            name: as_setting(name, value, cls._kinds.get(name, "nonnegative"))
            for name, value in settings.items()
        }

    @staticmethod
    @abstractmethod
    def _slots(settings: Mapping[str, float]) -> tuple[str, ...]:
        """Name the state arrays that every parameter has under these settings."""

    @abstractmethod
    def _apply(self, arrays: dict[str, NDArray[Any]], gradients: dict[str, NDArray[Any]]) -> None:
        """Change arrays and state in place, once everything has been checked."""

    @property
    def lr(self) -> float:
        """The learning rate; a schedule sets it, or you do."""
        return self._settings["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        self._settings = self._checked({**self._settings, "lr": value})

    def step(self, grads: Any) -> None:
        """Update every array once.

        NaN and infinities in a gradient go into its array, without a warning.

        Parameters
        ----------
        grads
            Gradients: a tree that gives exactly the names and shapes of the parameters. Cast to
            their dtypes; not modified.

        Raises
        ------
        TypeError
            If a gradient is not of real numbers, or ``grads`` no tree or the layers themselves.
        ValueError
            If names are missing or unexpected, or a shape differs; or if an array of the parameters
            was replaced by one of another shape or dtype, or made read-only. Nothing has changed.
        MemoryError
            If the scratch memory, twice the largest array, cannot be had. Nothing has changed.
        RuntimeError
            If two threads step one ``Adam`` at a time: some arrays may have changed.
        """
        arrays = self._arrays()
        _refuse_layers(grads)
        given = _flatten("grads", grads)
        check_names("grads", arrays, given)
        gradients = {}
        for name, w in arrays.items():
            label = f"grads[{name!r}]"
            gradients[name] = as_real_array(label, given[name], w.dtype)
            check_shape(label, gradients[name], w.shape)
        with np.errstate(all="ignore"):
            self._apply(arrays, gradients)

    def _each(
        self, arrays: dict[str, NDArray[Any]], gradients: dict[str, NDArray[Any]]
    ) -> Iterator[tuple[Any, ...]]:
        """Yield every array, its gradient, its state, and two of scratch of its shape and dtype."""
        scratch = {
            dtype: np.empty((2, max(w.size for w in arrays.values() if w.dtype == dtype)), dtype)
            for dtype in {w.dtype for w in arrays.values()}
        }
        for name, w in arrays.items():
            a, b = (part[: w.size].reshape(w.shape) for part in scratch[w.dtype])
            yield w, gradients[name], self._state[name], a, b

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return what a resumed run needs: settings and state, as copies.

        With this and the parameters a run continues bit for bit. Every value is an array, so that
        the dictionary can be saved like parameters, in one file with them.

        Returns
        -------
        dict
            The settings under their names, as float64 arrays without axes, and the state as
            ``"velocity.weight"`` and so on.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> import rnncore as rc
        >>> gru = rc.GRU(2, 3)
        >>> optimizer = rc.Adam(gru, lr=0.01)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "run.safetensors"
        ...     rc.save(path, {"gru": gru, "optimizer": optimizer.state_dict()})
        ...     resumed = rc.Adam(gru)
        ...     state = resumed.state_dict()
        ...     rc.load(path, into={"gru": gru, "optimizer": state})
        >>> resumed.load_state_dict(state)
        >>> resumed.lr
        0.01
        """
        values = {name: np.array(value) for name, value in self._settings.items()}
        for slot in self._slots(self._settings):
            values |= {f"{slot}.{name}": self._state[name][slot].copy() for name in self._state}
        return values

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Continue where another optimizer of the same class and parameters stopped.

        Parameters
        ----------
        state
            From ``state_dict``. Settings, the learning rate included, are taken over; arrays are
            copied and cast.

        Raises
        ------
        TypeError
            If ``state`` is no mapping, or a value is not of real numbers.
        ValueError
            If names are missing or unexpected, a shape differs, or a setting is out of range.
            Nothing has changed.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        # Which arrays there must be depends on the settings, so these come first.
        lacking = [name for name in self._settings if name not in state]
        if lacking:
            raise ValueError(f"state: missing {', '.join(map(repr, lacking))}")
        settings = self._checked(
            {name: as_scalar(f"state[{name!r}]", state[name]) for name in self._settings}
        )
        slots = self._slots(settings)
        arrays = {f"{slot}.{name}": (slot, name) for slot in slots for name in self._shapes}
        check_names("state", {**self._settings, **arrays}, state)
        fresh: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in self._shapes}
        for key, (slot, name) in arrays.items():
            shape, dtype = self._shapes[name]
            fresh[name][slot] = as_real_array(f"state[{key!r}]", state[key], dtype, copy=True)
            check_shape(f"state[{key!r}]", fresh[name][slot], shape)
        self._settings, self._state = settings, fresh

    @staticmethod
    def _penalty(
        w: NDArray[Any], weight_decay: float, l1: float, a: NDArray[Any], b: NDArray[Any]
    ) -> NDArray[Any]:
        """Return weight_decay * w + l1 * sign(w), in a; b is scratch."""
        if weight_decay:
            np.multiply(w, weight_decay, out=a)
        else:  # 0 * inf would be NaN
            a.fill(0.0)
        if l1:
            np.sign(w, out=b)
            b *= l1
            a += b
        return a

    def _fresh_state(self, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {slot: np.zeros(array.shape, array.dtype) for slot in self._slots(self._settings)}

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Collect the live arrays anew: in a plain dict one may have been replaced."""
        arrays = _live_arrays("params", self._tree)
        check_names("params", self._shapes, arrays)
        for name, (shape, dtype) in self._shapes.items():
            check_shape(f"params[{name!r}]", arrays[name], shape)
            if arrays[name].dtype != dtype:
                raise ValueError(
                    f"params[{name!r}]: expected dtype {dtype}, got {arrays[name].dtype}"
                )
        return {name: arrays[name] for name in self._shapes}

    def __repr__(self) -> str:
        """Name the class, the settings and the number of arrays."""
        settings = ", ".join(f"{name}={value:g}" for name, value in self._settings.items())
        return f"<{type(self).__name__} of {len(self._shapes)} arrays: {settings}>"


class SGD(Optimizer):
    """Gradient descent with momentum.

    With gradient g, weight w and velocity v, which begins at 0:
    ``g = g + weight_decay * w + l1 * sign(w)``, ``v = momentum * v + g``, and ``w = w - lr * v``,
    or with nesterov ``w = w - lr * (g + momentum * v)``.

    Parameters
    ----------
    params
        The live arrays: a layer, a mapping of names to float32 or float64 arrays, or a mapping of
        prefixes to these.
    lr
        Learning rate >= 0.
    momentum : default 0.0
        From 0 to below 1.
    nesterov : default False
        Whether the gradient step looks ahead along the velocity; needs momentum.
    weight_decay : default 0.0
        Factor >= 0 of the L2 penalty's gradient.
    l1 : default 0.0
        Factor >= 0 of the L1 penalty's gradient.

    Raises
    ------
    TypeError
        If an option is no number, or ``params`` is not made of float arrays.
    ValueError
        If an option is out of range, ``params`` is empty, or an array is read-only or there twice.

    References
    ----------
    Polyak, Some methods of speeding up the convergence of iteration methods, 1964 (momentum);
    Sutskever, Martens, Dahl and Hinton, On the importance of initialization and momentum in deep
    learning, 2013, equations 1-4 (nesterov). There the velocity carries the learning rate; here,
    as in PyTorch, it does not, which differs only when the rate changes.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import SGD
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> optimizer = SGD(params, lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     optimizer.step({"w": [1.0, 0.0]})
    >>> params["w"]
    array([-0.25,  2.  ])
    """

    _kinds: ClassVar[Mapping[str, Kind]] = {"momentum": "fraction", "nesterov": "flag"}

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        l1: float = 0.0,
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": float(as_flag("nesterov", nesterov)),
            "weight_decay": weight_decay,
            "l1": l1,
        }
        super().__init__(params, settings)

    @classmethod
    def _checked(cls, settings: Mapping[str, object]) -> dict[str, float]:
        checked = super()._checked(settings)
        if checked["nesterov"] and not checked["momentum"]:
            raise ValueError("nesterov: expected momentum > 0 beside it, got momentum=0")
        return checked

    @staticmethod
    def _slots(settings: Mapping[str, float]) -> tuple[str, ...]:
        return ("velocity",) if settings["momentum"] else ()

    def _apply(self, arrays: dict[str, NDArray[Any]], gradients: dict[str, NDArray[Any]]) -> None:
        lr, momentum, nesterov, weight_decay, l1 = self._settings.values()
        for w, g, state, a, b in self._each(arrays, gradients):
            if weight_decay or l1:  # g + weight_decay * w + l1 * sign(w)
                g = np.add(g, self._penalty(w, weight_decay, l1, a, b), out=a)
            if momentum:  # v = momentum * v + g
                v = state["velocity"]
                v *= momentum
                v += g
                if nesterov:  # g + momentum * v
                    np.multiply(v, momentum, out=b)
                    g = np.add(g, b, out=b)
                else:
                    g = v
            w -= np.multiply(g, lr, out=b)


class Adam(Optimizer):
    """Steps scaled by running moments of the gradient.

    With gradient g, weight w, mean m and uncentred variance v, which begin at 0, at step
    t = 1, 2, ...:
    ``g = g + weight_decay * w + l1 * sign(w)``, ``m = beta1 * m + (1 - beta1) * g``,
    ``v = beta2 * v + (1 - beta2) * g^2``, and
    ``w = w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)``.

    Parameters
    ----------
    params
        The live arrays: a layer, a mapping of names to float32 or float64 arrays, or a mapping of
        prefixes to these.
    lr : default 1e-3
        Learning rate >= 0.
    betas : default (0.9, 0.999)
        beta1 and beta2, each from 0 to below 1.
    eps : default 1e-8
        A number >= 0, outside the root.
    weight_decay : default 0.0
        Factor >= 0 of the L2 penalty's gradient (part of g, not the decoupled decay of AdamW).
    l1 : default 0.0
        Factor >= 0 of the L1 penalty's gradient, part of g too.

    Raises
    ------
    TypeError
        If an option is no number, ``betas`` no pair, or ``params`` not made of float arrays.
    ValueError
        If an option is out of range, ``params`` is empty, or an array is read-only or there twice.

    References
    ----------
    Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import Adam
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> Adam(params, lr=0.5).step({"w": [3.0, -0.1]})
    >>> params["w"].round(6)
    array([0.5, 2.5])
    """

    _kinds: ClassVar[Mapping[str, Kind]] = {
        "beta1": "fraction",
        "beta2": "fraction",
        "decoupled": "flag",
        "step": "whole",
    }
    # Whether the penalties act on the weights directly and not through the moments.
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        l1: float = 0.0,
    ) -> None:
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas: expected a pair of numbers, got {type(betas).__name__}")
        if len(betas) != 2:
            raise ValueError(f"betas: expected 2 numbers, got {len(betas)}")
        settings = {
            "lr": lr,
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "weight_decay": weight_decay,
            "l1": l1,
            "decoupled": float(self._decoupled),
            "step": 0.0,
        }
        super().__init__(params, settings)

    @classmethod
    def _checked(cls, settings: Mapping[str, object]) -> dict[str, float]:
        checked = super()._checked(settings)
        if checked["decoupled"] != cls._decoupled:  # a state of Adam in AdamW, or the reverse
            expected, got = int(cls._decoupled), settings["decoupled"]
            raise ValueError(f"decoupled: expected {expected} for {cls.__name__}, got {got}")
        return checked

    @staticmethod
    def _slots(settings: Mapping[str, float]) -> tuple[str, ...]:
        del settings
        return ("mean", "variance")

    def _apply(self, arrays: dict[str, NDArray[Any]], gradients: dict[str, NDArray[Any]]) -> None:
        lr, beta1, beta2, eps, weight_decay, l1, decoupled, t = self._settings.values()
        change = partial(
            _core.adam,
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            l1=l1,
            decoupled=bool(decoupled),
            step=t + 1.0,
        )
        # All memory first: once arrays change, none may be missing.
        plain = {name: _plain(g) for name, g in gradients.items()}
        spare = np.empty(max(w.nbytes for w in arrays.values()), np.uint8)
        self._settings["step"] = t + 1.0
        for name, w in arrays.items():
            own = plain[name], *self._state[name].values()
            if _is_plain(w) and change(w, *own):
                continue
            # Of another layout, read by another thread, or its own gradient: work on a copy.
            copied = spare[: w.nbytes].view(w.dtype).reshape(w.shape)
            copied[...] = w
            if not change(copied, *own):
                raise RuntimeError(f"params[{name!r}]: expected one step at a time, got two")
            w[...] = copied


class AdamW(Adam):
    """Adam with penalties that do not pass through the moments.

    With gradient g and weight w, a step first takes
    ``w = w - lr * (weight_decay * w + l1 * sign(w))`` and then that of Adam without penalties.

    Parameters
    ----------
    params
        The live arrays: a layer, a mapping of names to float32 or float64 arrays, or a mapping of
        prefixes to these.
    lr : default 1e-3
        Learning rate >= 0; it scales the penalties too.
    betas : default (0.9, 0.999)
        beta1 and beta2, each from 0 to below 1.
    eps : default 1e-8
        A number >= 0, outside the root.
    weight_decay : default 0.01
        Factor >= 0 of the decay.
    l1 : default 0.0
        Factor >= 0 of the L1 penalty's gradient. Not in the paper: it is decoupled for the reason
        that the decay is, so that every weight feels the same pull whatever its gradients.

    Raises
    ------
    TypeError
        If an option is no number, ``betas`` no pair, or ``params`` not made of float arrays.
    ValueError
        If an option is out of range, ``params`` is empty, or an array is read-only or there twice.

    References
    ----------
    Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm 2. There the decay
    is scaled by the multiplier of a schedule and not by the learning rate; here, as in PyTorch, lr
    is both.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import AdamW
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> AdamW(params, lr=0.5, weight_decay=0.2).step({"w": [3.0, -0.1]})
    >>> params["w"].round(6)
    array([0.4, 2.3])
    """

    _decoupled: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        l1: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, l1)


class RMSprop(Optimizer):
    """Steps scaled by a running mean of the squared gradient.

    With gradient g, weight w, and mean square v, mean m and velocity u, which begin at 0:
    ``g = g + weight_decay * w + l1 * sign(w)``, ``v = alpha * v + (1 - alpha) * g^2``,
    ``u = momentum * u + g / (sqrt(v) + eps)`` and ``w = w - lr * u``. Centered,
    ``m = alpha * m + (1 - alpha) * g`` and ``v - m^2`` stands under the root.

    Parameters
    ----------
    params
        The live arrays: a layer, a mapping of names to float32 or float64 arrays, or a mapping of
        prefixes to these.
    lr : default 0.01
        Learning rate >= 0.
    alpha : default 0.99
        How much of the means stays at a step, from 0 to below 1.
    eps : default 1e-8
        A number >= 0, outside the root.
    momentum : default 0.0
        From 0 to below 1.
    centered : default False
        Whether the variance stands under the root instead of the mean square.
    weight_decay : default 0.0
        Factor >= 0 of the L2 penalty's gradient.
    l1 : default 0.0
        Factor >= 0 of the L1 penalty's gradient.

    Raises
    ------
    TypeError
        If an option is no number, or ``params`` is not made of float arrays.
    ValueError
        If an option is out of range, ``params`` is empty, or an array is read-only or there twice.

    References
    ----------
    Tieleman and Hinton, Neural networks for machine learning, lecture 6.5, 2012; Graves, Generating
    sequences with recurrent neural networks, 2013, equations 38-41 (centered, there with eps inside
    the root).

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import RMSprop
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> RMSprop(params, lr=0.5, alpha=0.75).step({"w": [3.0, -0.1]})
    >>> params["w"].round(6)
    array([0., 3.])
    """

    _kinds: ClassVar[Mapping[str, Kind]] = {
        "alpha": "fraction",
        "momentum": "fraction",
        "centered": "flag",
    }

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        *,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        l1: float = 0.0,
    ) -> None:
        settings = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "momentum": momentum,
            "centered": float(as_flag("centered", centered)),
            "weight_decay": weight_decay,
            "l1": l1,
        }
        super().__init__(params, settings)

    @staticmethod
    def _slots(settings: Mapping[str, float]) -> tuple[str, ...]:
        centered = ("mean",) if settings["centered"] else ()
        return ("square", *centered, *(("velocity",) if settings["momentum"] else ()))

    def _apply(self, arrays: dict[str, NDArray[Any]], gradients: dict[str, NDArray[Any]]) -> None:
        lr, alpha, eps, momentum, centered, weight_decay, l1 = self._settings.values()
        for w, g, state, a, b in self._each(arrays, gradients):
            if weight_decay or l1:  # g + weight_decay * w + l1 * sign(w)
                g = np.add(g, self._penalty(w, weight_decay, l1, a, b), out=a)
            # v = alpha * v + (1 - alpha) * g^2
            v = state["square"]
            v *= alpha
            np.square(g, out=b)
            b *= 1.0 - alpha
            v += b
            if centered:  # b = v - m^2, which only rounding can make negative
                m = state["mean"]
                m *= alpha
                m += np.multiply(g, 1.0 - alpha, out=b)
                np.square(m, out=b)
                np.subtract(v, b, out=b)
                np.maximum(b, 0.0, out=b)
                np.sqrt(b, out=b)
            else:
                np.sqrt(v, out=b)
            b += eps
            np.divide(g, b, out=b)
            if momentum:  # u = momentum * u + g / (sqrt(v) + eps)
                u = state["velocity"]
                u *= momentum
                u += b
                np.multiply(u, lr, out=b)
            else:
                b *= lr
            w -= b


def clip_grad_norm(grads: Any, max_norm: float) -> float:
    """Scale all gradients together so that their joint Euclidean norm is at most ``max_norm``.

    If the norm is NaN or infinite nothing is changed: look at what is returned, and skip the step.

    Parameters
    ----------
    grads
        Gradients: a mapping of names to float32 or float64 arrays, the result of a ``backward``, or
        a mapping of prefixes to these. Scaled in place, by ``max_norm / norm``, if the norm is
        larger.
    max_norm
        A number > 0; infinity only measures.

    Returns
    -------
    float
        The norm before scaling, computed in float64.

    Raises
    ------
    TypeError
        If ``max_norm`` is no number, or ``grads`` is not made of float arrays or is the layers
        themselves, whose weights would be scaled.
    ValueError
        If ``max_norm`` is NaN, 0 or negative, ``grads`` is empty, or an array is read-only or there
        twice. Nothing has changed.

    References
    ----------
    Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import clip_grad_norm
    >>> grads = {"w": np.array([3.0, 0.0]), "b": np.array([4.0])}
    >>> clip_grad_norm(grads, 1.0)
    5.0
    >>> grads["w"].round(12), grads["b"].round(12)
    (array([0.6, 0. ]), array([0.8]))
    """
    limit = _limit("max_norm", max_norm)
    _refuse_layers(grads)
    arrays = list(_live_arrays("grads", grads).values())
    with np.errstate(all="ignore"):
        norm = _norm(arrays)
        if math.isfinite(norm) and norm > limit:
            factor = limit / norm
            for g in arrays:
                # What is too small a factor for float32 may leave something of a huge gradient.
                dtype = g.dtype if factor >= np.finfo(g.dtype).tiny else np.dtype(np.float64)
                np.multiply(g, factor, out=g, dtype=dtype, casting="same_kind")
    return norm


def clip_grad_value(grads: Any, max_value: float) -> None:
    """Hold every element of the gradients within ±``max_value``.

    This changes the direction of the whole; ``clip_grad_norm`` keeps it. Infinities become the
    limit, and NaN stays.

    Parameters
    ----------
    grads
        Gradients: a mapping of names to float32 or float64 arrays, the result of a ``backward``, or
        a mapping of prefixes to these. Changed in place.
    max_value
        A number > 0; infinity changes nothing.

    Raises
    ------
    TypeError
        If ``max_value`` is no number, or ``grads`` is not made of float arrays or is the layers
        themselves, whose weights would be clipped.
    ValueError
        If ``max_value`` is NaN, 0 or negative, ``grads`` is empty, or an array is read-only or
        there twice. Nothing has changed.

    References
    ----------
    Mikolov, Statistical language models based on neural networks, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optimizers import clip_grad_value
    >>> grads = {"w": np.array([3.0, -0.5]), "b": np.array([-4.0])}
    >>> clip_grad_value(grads, 1.0)
    >>> grads["w"], grads["b"]
    (array([ 1. , -0.5]), array([-1.]))
    """
    limit = _limit("max_value", max_value)
    _refuse_layers(grads)
    with np.errstate(all="ignore"):
        for g in _live_arrays("grads", grads).values():
            np.clip(g, -limit, limit, out=g)


def _limit(name: str, value: object) -> float:
    """Return a limit of a clipping: a number > 0, infinity included."""
    limit = as_real(name, value)
    if not limit > 0.0:
        raise ValueError(f"{name}: expected a number > 0, got {as_text(value)}")
    return limit


def _norm(arrays: list[NDArray[Any]]) -> float:
    """Return the joint Euclidean norm, in float64, also where the squares leave its range."""
    squares = sum(_core.sum_of_squares(_plain(g)) for g in arrays)
    # In between, what underflows is too small to matter.
    if 1e-280 < squares < math.inf:
        return math.sqrt(squares)
    largest = max((float(np.abs(g).max()) for g in arrays if g.size), default=0.0)
    if math.isnan(squares) or not 0.0 < largest < math.inf:
        return squares if math.isnan(squares) else largest
    scaled = (np.square(np.divide(g, largest, dtype=np.float64)) for g in arrays)
    return largest * math.sqrt(sum(float(part.sum()) for part in scaled))


def _is_plain(array: NDArray[Any]) -> bool:
    """Whether the core takes an array as it is."""
    return array.flags.c_contiguous and array.flags.aligned


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as the core takes it: itself, or a copy in C order."""
    return array if _is_plain(array) else array.copy(order="C")


def _flatten(argument: str, tree: Any, prefix: str = "") -> dict[str, Any]:
    """Collect the leaves of a tree under their joined names."""
    branches = _branches(tree)
    if branches is None:
        where = f"{argument}[{prefix[:-1]!r}]" if prefix else argument
        raise TypeError(
            f"{where}: expected a mapping of names to arrays, or something with params, "
            f"got {type(tree).__name__}"
        )
    leaves: dict[str, Any] = {}
    for key, value in branches.items():
        if not isinstance(key, str):
            raise TypeError(f"{argument}: expected names that are text, got {as_text(key)}")
        name = prefix + key
        found = {name: value}
        if _branches(value) is not None:
            found = _flatten(argument, value, name + ".")
        for twice in found.keys() & leaves.keys():
            raise ValueError(f"{argument}: expected every name once, got {twice!r} twice")
        leaves |= found
    return leaves


def _refuse_layers(grads: Any, prefix: str = "") -> None:
    """Raise TypeError for layers and their parameters: the weights would be taken for gradients."""
    if isinstance(grads, Parameters) or callable(getattr(grads, "load_params", None)):
        where = f"grads[{prefix[:-1]!r}]" if prefix else "grads"
        raise TypeError(
            f"{where}: expected gradients, such as backward returns, "
            f"got {type(grads).__name__}, which holds weights"
        )
    if isinstance(grads, Mapping):
        for key, value in grads.items():
            _refuse_layers(value, f"{prefix}{key}.")


def _branches(tree: Any) -> Mapping[Any, Any] | None:
    """Return the mapping that a tree is or has; None for a leaf."""
    if isinstance(tree, Mapping):
        return tree
    params = getattr(tree, "params", None)
    return params if isinstance(params, Mapping) else None


def _live_arrays(argument: str, tree: Any) -> dict[str, NDArray[Any]]:
    """Collect the arrays of a tree that can be changed in place."""
    leaves = _flatten(argument, tree)
    if not leaves:
        raise ValueError(f"{argument}: expected at least one array, got none")
    seen: dict[int, str] = {}
    for name, array in leaves.items():
        label = f"{argument}[{name!r}]"
        if type(array) is not np.ndarray or array.dtype not in (np.float32, np.float64):
            got = array.dtype if type(array) is np.ndarray else type(array).__name__
            raise TypeError(f"{label}: expected a float32 or float64 numpy.ndarray, got {got}")
        if not array.flags.writeable:
            raise ValueError(f"{label}: expected an array that can be changed, got a read-only one")
        if id(array) in seen:
            # Changed twice, it would be wrong without anyone noticing.
            raise ValueError(f"{label}: expected every array once, got {seen[id(array)]!r} again")
        seen[id(array)] = name
    return leaves
