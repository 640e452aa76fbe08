"""The tape of a layer written in NumPy: what one forward pass keeps for one backward pass.

The recurrent layers have a tape of their own, ``rnncore.layers.Tape``, which holds compiled memory.
"""

from __future__ import annotations

from typing import Any, Generic, NoReturn, Protocol, SupportsIndex, TypeVar, runtime_checkable

import numpy as np

from .parameters import refuse_copy

__all__ = ["Gated", "SavedTape", "opened"]

Saved = TypeVar("Saved", bound=tuple[Any, ...])


@runtime_checkable
class Gated(Protocol):
    """A tape that can show gates: that of a recurrent layer, and of a chain."""

    def gates(self) -> dict[str, Any]:
        """Return the gates' activations, by name."""


class SavedTape(Generic[Saved]):
    """What one ``forward`` keeps for ``backward``, until ``backward`` consumes it.

    Parameters
    ----------
    layer
        The layer whose ``forward`` it is.
    saved
        A named tuple of arrays that belong to the tape alone, and of whatever else is needed.
    """

    __slots__ = ("_layer", "_saved")

    def __init__(self, layer: object, saved: Saved) -> None:
        self._layer = layer
        self._saved: Saved | None = saved

    @property
    def nbytes(self) -> int:
        """Bytes held; 0 once ``backward`` has consumed the tape."""
        return sum(value.nbytes for value in self._saved or () if isinstance(value, np.ndarray))

    def __repr__(self) -> str:
        """Say the size, or that it is used."""
        size = "used" if self._saved is None else f"{self.nbytes} bytes"
        return f"<{type(self).__name__}, {size}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies and pickles: a tape is for one ``backward``."""
        refuse_copy(self)


def opened(kind: type[SavedTape[Saved]], tape: object, layer: object) -> Saved:
    """Return what a tape has saved, once it is known to be one that a layer can use.

    Parameters
    ----------
    kind
        The layer's class of tapes.
    tape
        What the user passed.
    layer
        The layer whose ``backward`` it is.

    Raises
    ------
    TypeError
        If it is no tape of that kind.
    ValueError
        If it is consumed or of another layer.
    """
    if not isinstance(tape, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"tape: expected {article} {kind.__name__}, got {type(tape).__name__}")
    if tape._layer is not layer:
        raise ValueError(
            f"tape: expected one of this layer, got one of another {type(tape._layer).__name__}"
        )
    if tape._saved is None:
        raise ValueError(
            "tape: expected an unused one, got one that backward has consumed "
            "(backward(..., keep=True) leaves it usable)"
        )
    return tape._saved
