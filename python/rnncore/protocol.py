"""What a ``Sequential`` asks of its layers: one small protocol that all of them share.

Every public layer has it. A class of yours that has it too can stand in a ``Sequential``; its
methods begin with an underscore because they are for the container, not for its users. They only
restate a layer's own ``__call__``, ``forward`` and ``backward`` in one common signature.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    NoReturn,
    Protocol,
    SupportsIndex,
    runtime_checkable,
)

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Context", "Interface", "Layer", "Stateless", "Stream", "StreamBase", "Traced"]


class Interface(NamedTuple):
    """How a layer fits between its neighbours.

    Attributes
    ----------
    features_in, features_out
        Size of the last axis of x and of y. None: of any size, and y has that of x.
    dtype
        Of the layer's arithmetic. None: it keeps that of x.
    batch_first
        Whether its first axis of three is the batch. None: the layer has no opinion.
    takes_indices
        Whether x is made of integers; such a layer must stand first.
    needs_steps
        Whether x must have an axis of time.
    ends_steps
        Whether y has none.
    has_state
        Whether the layer takes and returns a state.
    """

    features_in: int | None = None
    features_out: int | None = None
    dtype: np.dtype[Any] | None = None
    batch_first: bool | None = None
    takes_indices: bool = False
    needs_steps: bool = False
    ends_steps: bool = False
    has_state: bool = False


class Context(NamedTuple):
    """What comes with x.

    Attributes
    ----------
    lengths
        Integers (B,), the steps of each row that count, or None. After a layer that ends the steps
        it is None.
    batch_first
        Whether x is (B, T, F), for layers that have no opinion.
    state
        The layer's initial state, or None; None for layers that have none.
    dropout
        Whether masks are active; for ``_train`` alone.
    checkpoint
        None, or every how many steps a recurrent layer keeps its state; for ``_train`` alone.
    """

    lengths: NDArray[np.int64] | None
    batch_first: bool
    state: Any = None
    dropout: bool = True
    checkpoint: int | None = None


def reads_back(layer: Any) -> bool:
    """Tell whether a layer, or one however deep in a chain, reads in both directions."""
    inner = getattr(layer, "layers", None)
    parts = inner.values() if isinstance(inner, Mapping) else ()
    return bool(getattr(layer, "bidirectional", False)) or any(map(reads_back, parts))


class Stream(Protocol):
    """What freezing gives: a snapshot that takes one step at a time and keeps its own state."""

    state: Any

    def step(self, x_t: Any, /) -> NDArray[Any]:
        """Advance by one step: (B, F), or (F,) for one row."""

    def run(self, x: Any, /) -> NDArray[Any]:
        """Advance over a whole sequence in the layer's layout; return y alone."""

    def reset(self, rows: ArrayLike | None = None, /) -> None:
        """Set the state back to zero, of the given rows or of all."""


@runtime_checkable
class Layer(Protocol):
    """What stands in a ``Sequential``."""

    @property
    def params(self) -> Mapping[str, NDArray[Any]]:
        """The live parameters. The arrays stay the same objects."""

    def load_params(self, mapping: Mapping[str, ArrayLike], /) -> None:
        """Copy a value into every parameter, or change nothing and raise."""

    def _interface(self) -> Interface:
        """Say how the layer fits between its neighbours."""

    def _output_lengths(self, lengths: NDArray[np.int64], /) -> NDArray[np.int64] | None:
        """Return the lengths of y for those of x; None if y has no steps."""

    def _infer(self, x: Any, context: Context, /) -> tuple[NDArray[Any], Any]:
        """Return y and the final state (None without one), without a tape."""

    def _train(self, x: Any, context: Context, /) -> tuple[NDArray[Any], Any, Any]:
        """Return y, the final state and a tape; y is the caller's to change."""

    def _backprop(
        self, tape: Any, dy: NDArray[Any], dstate: Any, /
    ) -> tuple[NDArray[Any] | None, Any, Mapping[str, NDArray[Any]]]:
        """Return dx (None for integers), dstate and the parameters' gradients; keep the tape."""

    def _stream(self, batch_size: int, /) -> Stream:
        """Return a snapshot that streams; ValueError, saying why, if the layer cannot."""


@runtime_checkable
class Traced(Protocol):
    """What a layer has besides if it can tell the gradients of its states at every step."""

    def _backprop_traced(
        self, tape: Any, dy: NDArray[Any], dstate: Any, /
    ) -> tuple[NDArray[Any] | None, Any, Mapping[str, NDArray[Any]], Mapping[str, Any]]:
        """Return what ``_backprop`` does, then the gradients of the states by part and name."""


class StreamBase:
    """What streams written in NumPy share: one thread at a time, and no copies."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._lock = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one thread in, and raise in a second one."""
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(f"{type(self).__name__}: expected one thread at a time, got another")
        try:
            yield
        finally:
            self._lock.release()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies and pickles."""
        raise TypeError(
            f"{type(self).__name__}: expected to stay the only one of its state, got copied or "
            "pickled (freeze the layer again and set the new state)"
        )


class Stateless:
    """The stream of a layer that looks at one step alone.

    Parameters
    ----------
    infer
        The layer's inference; of a copy of the layer, if it has parameters.
    """

    state: Any = None

    def __init__(self, infer: Callable[[Any], NDArray[Any]]) -> None:
        self._infer = infer

    def step(self, x_t: Any, /) -> NDArray[Any]:
        """Return y of one step."""
        return self._infer(x_t)

    def run(self, x: Any, /) -> NDArray[Any]:
        """Return y of a sequence."""
        return self._infer(x)

    def reset(self, rows: ArrayLike | None = None, /) -> None:
        """Do nothing: there is no state."""
