"""Mini-batches: which rows go together, and their arrays in a model's layout.

Rows may come as one array or, where their lengths differ, as a list of arrays. A batch is padded to
its own longest row alone, so rows of like lengths belong together: ``batches`` sees to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .parameters import as_lengths, as_plain_numbers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Rows", "as_items", "batches", "is_list_of_rows"]

# Batches in a pool that is sorted by length: enough for even batches, few enough to stay random.
_POOL = 32


def as_items(items: Iterable[Any]) -> list[Any]:
    """Return the items as a list, and those that can be arrays as such: tables, series, tensors."""
    ready = (np.ndarray, np.generic)
    return [
        np.asarray(item) if hasattr(item, "__array__") and not isinstance(item, ready) else item
        for item in items
    ]


def is_list_of_rows(value: object) -> bool:
    """Tell whether a value is a list of one array a row, and not one array of all rows.

    Examples
    --------
    >>> import numpy as np
    >>> is_list_of_rows([np.zeros(3), np.zeros(2)]), is_list_of_rows([[1, 2], [3]])
    (True, True)
    >>> is_list_of_rows([[1, 2], [3, 4]]), is_list_of_rows([1, 2]), is_list_of_rows(np.ones(2))
    (False, False, False)
    """
    if not isinstance(value, list):
        return False
    if any(isinstance(row, np.ndarray) and row.ndim for row in value):
        return True
    return len({len(row) for row in value if isinstance(row, (list, tuple))}) > 1


class Rows:
    """All rows of an input or of the targets, and arrays of some of them.

    Parameters
    ----------
    name
        The argument's name, for messages.
    value
        An array with the axis of rows at ``axis``; or a list of arrays, tables or nested lists
        (T_i, ...), one a row, be their lengths the same or not. A list of numbers is an array, an
        empty list has no rows.
    lengths : default None
        Integers (N,), the steps of each row that count; None with a list, which says it itself.
    axis : default 0
        Where the rows are: 1 in (T, B, ...), 0 in (B, T, ...) and where there is no time.

    Attributes
    ----------
    count
        N.
    lengths
        (N,) or None.

    Raises
    ------
    TypeError
        If the value is not of numbers, or the lengths are not integers.
    ValueError
        If there is no axis of rows, the rows of a list do not fit each other, or the lengths do not
        fit.

    Examples
    --------
    >>> import numpy as np
    >>> rows = Rows("x", [np.ones((2, 3)), np.ones((4, 3)), np.ones((1, 3))], axis=1)
    >>> x, lengths = rows.take(np.array([2, 0]))
    >>> x.shape, lengths
    ((2, 2, 3), array([1, 2]))
    """

    def __init__(
        self, name: str, value: Any, lengths: ArrayLike | None = None, *, axis: int = 0
    ) -> None:
        self._axis = axis
        self._list: list[NDArray[Any]] | None = None
        self.lengths: NDArray[np.int64] | None = None
        if isinstance(value, list):
            value = as_items(value)
        if is_list_of_rows(value) or _is_nested(value):
            if lengths is not None:
                raise ValueError(f"lengths: expected None with a list of rows as {name}, got some")
            self._list = _fitting(name, value)
            self.count = len(self._list)
            self.lengths = np.array([len(row) for row in self._list], np.int64)
            return
        self._array = as_plain_numbers(name, value, "real numbers")
        if self._array.ndim <= axis:
            layout = "(T, B, ...)" if axis else "(B, ...)"
            raise ValueError(f"{name}: expected shape {layout}, got {self._array.shape}")
        self.count = self._array.shape[axis]
        if lengths is not None:
            if self._array.ndim < 2:
                raise ValueError(f"lengths: expected None for {name} without time, got some")
            self.lengths = as_lengths(lengths, self._array.shape[1 - axis], self.count)

    @property
    def steps(self) -> NDArray[np.int64]:
        """(1,): the steps that a row has at most."""
        if self._list is not None:
            return np.array([max(map(len, self._list), default=0)])
        return np.array([self._array.shape[1 - self._axis]])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array; of a list, that of its first row."""
        if self._list is None:
            return self._array.shape
        return self._list[0].shape if self._list else (0,)

    @property
    def is_list(self) -> bool:
        """Whether the rows came as a list."""
        return self._list is not None

    def take(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return the arrays of some rows, no longer than the longest of them, and their lengths."""
        if self._list is not None:
            return _padded([self._list[row] for row in rows], self._axis), self._lengths(rows)
        taken = np.take(self._array, rows, axis=self._axis)
        lengths = self._lengths(rows)
        if lengths is not None:
            taken = shortened(taken, int(lengths.max(initial=0)), self._axis)
        return taken, lengths

    def _lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return None if self.lengths is None else self.lengths[rows]

    def subset(self, rows: NDArray[np.int64]) -> Rows:
        """Return some of the rows as rows of their own."""
        part = object.__new__(Rows)
        part._axis, part.count, part.lengths = self._axis, len(rows), self._lengths(rows)
        part._list = None if self._list is None else [self._list[row] for row in rows]
        if self._list is None:
            part._array = np.take(self._array, rows, axis=self._axis)
        return part


def _is_nested(value: object) -> bool:
    """Tell whether a value is a list of lists: its rows, even if they are all of one length."""
    return isinstance(value, list) and all(isinstance(row, (list, tuple)) for row in value)


def shortened(array: NDArray[Any], steps: int, axis: int) -> NDArray[Any]:
    """Cut an array with time off after so many steps."""
    return array[:steps] if axis else array[:, :steps]


def _fitting(name: str, rows: Sequence[Any]) -> list[NDArray[Any]]:
    """Convert a list of rows and check that they fit each other."""
    arrays = [as_plain_numbers(f"{name}[{k}]", row, "real numbers") for k, row in enumerate(rows)]
    filled = next((array for array in arrays if array.size), None)
    last = () if filled is None else filled.shape[1:]
    if filled is not None:
        # What an empty list is empty of, the others say.
        nothing = np.empty((0, *last), filled.dtype)
        arrays = [nothing if array.shape == (0,) else array for array in arrays]
    elif arrays:
        last = arrays[0].shape[1:]
    for k, array in enumerate(arrays):
        if array.ndim == 0 or array.shape[1:] != last:
            expected = f"(T, {', '.join(map(str, last))})" if last else "(T,)"
            raise ValueError(f"{name}[{k}]: expected shape {expected}, got {array.shape}")
    return arrays


def _padded(rows: list[NDArray[Any]], axis: int) -> NDArray[Any]:
    """Put rows side by side, zeros behind the shorter ones."""
    steps = max(map(len, rows), default=0)
    last = rows[0].shape[1:] if rows else ()
    dtype = np.result_type(*rows) if rows else np.float64
    padded = np.zeros((steps, len(rows), *last) if axis else (len(rows), steps, *last), dtype)
    by_row = padded.swapaxes(0, axis)
    for k, row in enumerate(rows):
        by_row[k, : len(row)] = row
    return padded


def batches(
    count: int,
    batch_size: int,
    lengths: NDArray[np.int64] | None = None,
    rng: np.random.Generator | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Cut rows into batches.

    Parameters
    ----------
    count
        N, the rows.
    batch_size
        The rows of a batch; the last one may have fewer.
    lengths : default None
        (N,), to put rows of like lengths into one batch. None: any rows.
    rng : default None
        For another order every time; None keeps the order, of lengths too.

    Yields
    ------
    ndarray of int64
        The rows of a batch; every row comes once.

    Examples
    --------
    >>> import numpy as np
    >>> [batch.tolist() for batch in batches(5, 2)]
    [[0, 1], [2, 3], [4]]
    >>> [batch.tolist() for batch in batches(4, 2, np.array([9, 1, 8, 2]))]
    [[1, 3], [2, 0]]
    """
    order = np.arange(count) if rng is None else rng.permutation(count)
    if lengths is None:
        for first in range(0, count, batch_size):
            yield order[first : first + batch_size]
        return
    pool = count if rng is None else batch_size * _POOL
    cut = []
    for first in range(0, count, max(pool, 1)):
        rows = order[first : first + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        cut += [rows[k : k + batch_size] for k in range(0, len(rows), batch_size)]
    for k in range(len(cut)) if rng is None else rng.permutation(len(cut)):
        yield cut[k]
