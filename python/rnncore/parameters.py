"""Arrays at the border of the library: the live parameters, and the checked conversions.

Everything that a user hands over passes through one of the functions below, once. What leaves them
is what the computing code may rely on: an exact ``numpy.ndarray``, C-contiguous, aligned, in the
machine's byte order, of exactly one dtype. Bad input ends here with an error that names the
argument, says what was expected, and what came.

The common case, an array that is right already, is one test and no copy.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Kind",
    "Parameters",
    "as_choice",
    "as_dtype",
    "as_flag",
    "as_integer_array",
    "as_lengths",
    "as_mask_state",
    "as_plain_array",
    "as_plain_numbers",
    "as_probability",
    "as_real",
    "as_real_array",
    "as_rows",
    "as_scalar",
    "as_seed",
    "as_setting",
    "as_size",
    "as_text",
    "as_uint64",
    "check_generator",
    "check_good",
    "check_matrix_fits",
    "check_names",
    "check_range",
    "check_shape",
    "empty_on_line",
    "inside_lengths",
    "on_line",
    "refuse_copy",
]

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_LINE = 64  # bytes of a cache line, and of the widest vector
_INT64 = np.dtype(np.int64)

# What a setting must be: see ``as_setting``.
Kind: TypeAlias = Literal["nonnegative", "fraction", "flag", "whole", "size", "real"]


class Parameters(Mapping[str, "NDArray[Any]"]):
    """The live arrays of a layer under fixed names.

    The mapping and the layer share the arrays: an in-place change is seen by the layer's next call.
    Assigning an item checks the shape and copies the values *into* the array, casting them, so that
    ``params["weight"] -= step`` and ``params["weight"] = other`` both work. The names and their
    order are fixed: nothing can be added or removed. Two mappings are equal only if they are the
    same object.

    Parameters
    ----------
    arrays
        Name to float32 or float64 array. Arrays that are C-contiguous, aligned and in the machine's
        byte order are adopted as they are; others are converted.
    letters : default none
        Name to the shape in letters, such as ``"(4*H, H)"``, for messages.

    Raises
    ------
    TypeError
        If an array has another dtype.
    ValueError
        If ``letters`` has a name that ``arrays`` lacks.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.parameters import Parameters
    >>> params = Parameters({"weight": np.ones((2, 3)), "bias": np.zeros(2)})
    >>> params["weight"] *= 2
    >>> params["bias"] = [1, 2]
    >>> params["weight"][0], params["bias"]
    (array([2., 2., 2.]), array([1., 2.]))
    >>> list(params)
    ['weight', 'bias']
    """

    __slots__ = ("_arrays", "_letters")

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], letters: Mapping[str, str] | None = None
    ) -> None:
        self._arrays = {name: _adopt(name, array) for name, array in arrays.items()}
        self._letters = dict(letters or {})
        unknown = [name for name in self._letters if name not in self._arrays]
        if unknown:
            raise ValueError(f"letters: no parameter {_listed(unknown)}")

    @classmethod
    def joined(cls, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> Parameters:
        """Return one mapping over the arrays of several, which share them.

        Parameters
        ----------
        parts
            Prefix to mapping: the array ``name`` of ``prefix`` is called ``prefix.name``.

        Raises
        ------
        TypeError
            If an array is not of float32 or float64.
        ValueError
            If an array cannot be shared, because it is not C-contiguous, aligned and native.

        Examples
        --------
        >>> import numpy as np
        >>> from rnncore.parameters import Parameters
        >>> head = Parameters({"bias": np.zeros(2)})
        >>> joined = Parameters.joined({"head": head})
        >>> joined["head.bias"] += 1
        >>> head["bias"]
        array([1., 1.])
        """
        arrays: dict[str, NDArray[Any]] = {}
        letters: dict[str, str] = {}
        for prefix, part in parts.items():
            arrays |= {f"{prefix}.{name}": array for name, array in part.items()}
            if isinstance(part, Parameters):
                letters |= {f"{prefix}.{name}": text for name, text in part._letters.items()}
        joined = cls(arrays, letters)
        for name, array in arrays.items():
            if joined._arrays[name] is not array:
                raise ValueError(
                    f"params[{name!r}]: expected a C-contiguous, aligned, native numpy.ndarray, "
                    "got one that would have to be copied"
                )
        return joined

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return the live array."""
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(self._unknown(name)) from None

    def __setitem__(self, name: str, value: object) -> None:
        """Copy an array-like of exactly the same shape into the array."""
        array = self[name]
        # params[name] -= step has changed the array already and now assigns it to itself.
        if value is not array:
            fresh = self._converted(name, value)
            self._check_writeable(name)
            array[...] = fresh

    def __delitem__(self, name: str) -> NoReturn:
        """Refuse: the names are fixed."""
        raise TypeError(f"params[{name!r}]: expected the names to stay, got a deletion")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in their fixed order."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a parameter of that name."""
        return name in self._arrays

    def __eq__(self, other: object) -> bool:
        """Tell whether the two are one object: arrays have no single answer to ``==``."""
        return self is other

    __hash__ = object.__hash__

    def load(self, mapping: Mapping[str, Any]) -> None:
        """Copy every parameter from another mapping, cast to the dtype here; or change nothing.

        Parameters
        ----------
        mapping
            Exactly the same names, in any order, to array-likes of exactly the same shapes.

        Raises
        ------
        TypeError
            If ``mapping`` is no mapping, or an entry is not made of real numbers.
        ValueError
            If names are missing or unexpected (all are listed), a shape differs, a value does not
            fit the dtype, or an array here is read-only.

        Examples
        --------
        >>> import numpy as np
        >>> from rnncore.parameters import Parameters
        >>> params = Parameters({"bias": np.zeros(2, dtype="float32")})
        >>> params.load({"bias": [3, 4]})
        >>> params["bias"]
        array([3., 4.], dtype=float32)
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(
                f"params: expected a mapping of names to arrays, got {type(mapping).__name__}"
            )
        check_names("params", self._arrays, mapping)
        # Copies, since an entry may be a view of another array here: two parameters may be swapped.
        fresh = {name: self._converted(name, mapping[name], copy=True) for name in self._arrays}
        for name in self._arrays:
            self._check_writeable(name)
        for name, array in self._arrays.items():
            array[...] = fresh[name]

    def _converted(self, name: str, value: object, *, copy: bool = False) -> NDArray[Any]:
        """Convert to the shape and dtype of the parameter of that name."""
        array = self._arrays[name]
        label = f"params[{name!r}]"
        fresh = as_real_array(label, value, array.dtype, copy=copy)
        check_shape(label, fresh, array.shape, self._letters.get(name))
        return fresh

    def _check_writeable(self, name: str) -> None:
        """Refuse to change an array that the user has made read-only."""
        if not self._arrays[name].flags.writeable:
            raise ValueError(
                f"params[{name!r}]: expected an array that can be changed, got a read-only one"
            )

    def _unknown(self, name: object) -> str:
        return f"no parameter {name!r}; the names are {_listed(self._arrays)}"

    def __repr__(self) -> str:
        """Show names, dtypes and shapes, one parameter a line."""
        lines = [f"    {name!r}: {self._described(name)}," for name in self._arrays]
        return "\n".join(["Parameters({", *lines, "})"]) if lines else "Parameters({})"

    def _described(self, name: str) -> str:
        array = self._arrays[name]
        letters = self._letters.get(name)
        return f"{array.dtype} {letters + ' = ' if letters else ''}{array.shape}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the arrays and their names."""
        return type(self), (self._arrays, self._letters)


def _adopt(name: str, array: object) -> NDArray[Any]:
    """Return the array if the layers can work on it, else a converted one."""
    label = f"params[{name!r}]"
    got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
    if not isinstance(got, np.dtype) or got.newbyteorder("=") not in (_FLOAT32, _FLOAT64):
        raise TypeError(f"{label}: expected a float32 or float64 array, got {got}")
    return as_real_array(label, array)


# ---- Arrays ------------------------------------------------------------------------------------


def empty_on_line(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an uninitialised array that begins on a cache line.

    NumPy's own begin anywhere, so that vectors straddle two lines; and they may be resized, which
    would take the memory away under a call of the core. A view of other memory refuses that.

    Parameters
    ----------
    shape, dtype
        As for ``numpy.empty``.

    Returns
    -------
    ndarray
        C-contiguous; a view of a little more memory.

    Examples
    --------
    >>> from rnncore.parameters import empty_on_line
    >>> array = empty_on_line((3, 5), "float32")
    >>> array.shape, array.ctypes.data % 64
    ((3, 5), 0)
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _LINE - 1, np.uint8)
    first = -memory.ctypes.data % _LINE
    return memory[first : first + size].view(dtype).reshape(shape)


def on_line(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array itself if it begins on a cache line and can be written to, else a copy."""
    if array.flags.writeable and array.ctypes.data % _LINE == 0:
        return array
    copy = empty_on_line(array.shape, array.dtype)
    copy[...] = array
    return copy


def as_real_array(
    name: str,
    value: object,
    dtype: DTypeLike | None = None,
    *,
    copy: bool = False,
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[Any]:
    """Convert to a C-contiguous, aligned, native ``numpy.ndarray`` of exactly one dtype.

    Floats and integers of any width, scalars, nested sequences, and arrays of any memory layout,
    byte order and subclass convert. A value that is right already is returned itself, so the result
    may share memory with the argument unless ``copy`` is true.

    A finite number too large for ``dtype``, such as 1e300 for float32, is an error and does not
    silently become infinite; infinities and NaN pass, and numbers too small become 0 or denormal.

    Parameters
    ----------
    name
        The argument's name, for messages.
    value
        What the user passed.
    dtype : default None
        The dtype of the result. None: float32 and float64 arrays keep theirs, all else becomes
        float64.
    copy : default False
        Whether the result must be a fresh array.
    counted : default None
        A mask over the leading dimensions, True where the values count. Elsewhere, in the padding
        of a ragged batch, anything may stand, so numbers too large become infinite there. None:
        everything counts.

    Returns
    -------
    ndarray
        Of the shape of ``value``.

    Raises
    ------
    TypeError
        For complex numbers, bools, objects, text, dates and records.
    ValueError
        For nested sequences of unequal lengths, masked entries and numbers too large.

    Examples
    --------
    >>> from rnncore.parameters import as_real_array
    >>> as_real_array("x", [[1, 2], [3, 4]], "float32")
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """
    if type(value) is np.ndarray and not copy:
        kept = value.dtype in (_FLOAT32, _FLOAT64) if dtype is None else value.dtype == dtype
        flags = value.flags
        if kept and flags.c_contiguous and flags.aligned:
            return value
    source = as_plain_array(name, value, "real numbers (floats or integers)")
    if source.dtype.kind not in "fiu":
        raise TypeError(
            f"{name}: expected real numbers (floats or integers), got dtype {source.dtype}"
        )
    if dtype is None:
        dtype = _FLOAT32 if source.dtype.newbyteorder("=") == _FLOAT32 else _FLOAT64
    return _cast(name, source, np.dtype(dtype), copy, counted)


def as_integer_array(name: str, value: object, *, copy: bool = False) -> NDArray[np.int64]:
    """Convert to a C-contiguous, aligned, native ``numpy.ndarray`` of int64.

    Parameters
    ----------
    name
        The argument's name, for messages.
    value
        Integers of any width, as a scalar, nested sequences or an array. Floats are refused even
        where they are whole; an empty sequence is accepted.
    copy : default False
        Whether the result must be a fresh array.

    Returns
    -------
    ndarray
        Of the shape of ``value``.

    Raises
    ------
    TypeError
        For anything but integers.
    ValueError
        For nested sequences of unequal lengths, masked entries and integers beyond int64.

    Examples
    --------
    >>> from rnncore.parameters import as_integer_array
    >>> as_integer_array("lengths", [3, 1, 2])
    array([3, 1, 2])
    """
    if type(value) is np.ndarray and value.dtype == _INT64 and not copy:
        flags = value.flags
        if flags.c_contiguous and flags.aligned:
            return value
    source = as_plain_array(name, value, "integers")
    if source.size == 0 and isinstance(value, (list, tuple)):
        return np.zeros(source.shape, _INT64)  # NumPy makes [] an array of floats
    if source.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {source.dtype}")
    if source.dtype.kind == "u" and source.size and int(source.max()) > np.iinfo(_INT64).max:
        where = _position(int(source.argmax()), source.shape)
        raise ValueError(f"{name}: expected integers below 2**63, got {source.max()}{where}")
    return _cast(name, source, _INT64, copy, None)


def as_plain_array(name: str, value: object, expected: str) -> NDArray[Any]:
    """Make a plain ``numpy.ndarray``, of whatever dtype and layout the value has.

    Parameters
    ----------
    name
        The argument's name, for messages.
    value
        What the user passed.
    expected
        What its elements should be, for messages; the dtype of the result is the caller's to check.

    Raises
    ------
    TypeError
        For objects, and for nested sequences with a bool.
    ValueError
        For nested sequences of unequal lengths, masked entries, and integers beyond 64 bits.
    """
    if isinstance(value, np.ndarray):
        _check_unmasked(name, value)
        return np.asarray(value)
    nested = isinstance(value, (list, tuple))
    types = _leaf_types(name, value) if nested else {type(value)}
    if any(issubclass(kind, (bool, np.bool_)) for kind in types):
        # [True, 1.5] would become floats, though an array of bools is refused.
        raise TypeError(f"{name}: expected {expected}, got bool")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected a rectangular array of {expected}, "
            f"got a ragged {type(value).__name__} ({error})"
        ) from None
    if array.dtype != object:
        return array
    if all(issubclass(kind, (int, float, np.number)) for kind in types):
        raise ValueError(f"{name}: expected integers of at most 64 bits, got a larger one")
    strange = sorted(kind.__name__ for kind in types if not issubclass(kind, (int, float)))
    raise TypeError(f"{name}: expected {expected}, got {', '.join(strange)}")


def as_plain_numbers(name: str, value: object, expected: str) -> NDArray[Any]:
    """As ``as_plain_array``, and TypeError unless it is of real floats or integers."""
    array = as_plain_array(name, value, expected)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected {expected}, got {array.dtype}")
    return array


def _leaf_types(name: str, value: Any) -> set[type]:
    """Collect the types that nested lists and tuples hold; a bool array inside counts as bool."""
    found: set[type] = set()
    seen: set[int] = set()  # a list may hold itself
    levels = [value]
    while levels:
        level = levels.pop()
        if id(level) in seen:
            continue
        seen.add(id(level))
        types = set(map(type, level))
        inner = {kind for kind in types if issubclass(kind, (list, tuple, np.ndarray))}
        found |= types - inner
        for item in level if inner else ():
            if isinstance(item, np.ndarray):
                _check_unmasked(name, item)
                found.add(bool if item.dtype.kind == "b" else np.ndarray)
            elif isinstance(item, (list, tuple)):
                levels.append(item)
    return found


def _check_unmasked(name: str, array: NDArray[Any]) -> None:
    """Refuse masked entries: their data are no numbers that anybody meant."""
    # The first test spares plain arrays the import of numpy.ma.
    if type(array) is np.ndarray or not isinstance(array, np.ma.MaskedArray):
        return
    masked = 0 if array.dtype.kind == "V" else int(np.count_nonzero(np.ma.getmaskarray(array)))
    if masked:
        raise ValueError(f"{name}: expected no masked entries, got {masked} of {array.size}")


def _cast(
    name: str,
    source: NDArray[Any],
    dtype: np.dtype[Any],
    copy: bool,
    counted: NDArray[np.bool_] | None,
) -> NDArray[Any]:
    """Cast to the wanted dtype and layout; finite values that overflow are an error."""
    try:
        with np.errstate(over="raise", invalid="ignore", under="ignore"):
            result = _relaid(source, dtype, copy)
    except FloatingPointError:
        with np.errstate(all="ignore"):
            result = _relaid(source, dtype, copy)
            lost = np.isinf(result) & np.isfinite(source)
        if counted is not None and counted.shape == lost.shape[: counted.ndim]:
            lost &= counted.reshape(counted.shape + (1,) * (lost.ndim - counted.ndim))
        if lost.any():
            where = int(lost.argmax())
            raise ValueError(
                f"{name}: expected values in the range of {dtype}, "
                f"got {source.flat[where]}{_position(where, source.shape)}"
            ) from None
    return result


def _relaid(source: NDArray[Any], dtype: np.dtype[Any], copy: bool) -> NDArray[Any]:
    if copy or not source.flags.aligned:
        return np.array(source, dtype=dtype, order="C", copy=True)
    return np.asarray(source, dtype=dtype, order="C")


# ---- Shapes, ranges, names ---------------------------------------------------------------------


def check_shape(
    name: str, array: NDArray[Any], shape: tuple[int, ...], letters: str | None = None
) -> None:
    """Raise ValueError unless the array has exactly this shape.

    Parameters
    ----------
    name
        The argument's name, for the message.
    array
        The array to look at.
    shape
        The shape expected.
    letters : default None
        The same shape in letters, such as ``"(4*H, H)"``. None: only the numbers are told.
    """
    if array.shape != shape:
        expected = f"{letters} = {shape}" if letters else f"{shape}"
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")


def check_range(
    name: str,
    values: NDArray[np.int64],
    low: int,
    high: int,
    letters: str,
    counted: NDArray[np.bool_] | None = None,
) -> None:
    """Raise ValueError, with value and position, unless ``low <= values <= high`` where they count.

    Parameters
    ----------
    name
        The argument's name, for the message.
    values
        The integers to look at.
    low, high
        The least and the greatest value allowed.
    letters
        What ``high`` is, such as ``"K - 1"``.
    counted : default None
        A mask of the shape of ``values``. None: every value counts.
    """
    looked_at = values if counted is None else values[counted]
    if not looked_at.size or (int(looked_at.min()) >= low and int(looked_at.max()) <= high):
        return
    outside = (values < low) | (values > high)
    if counted is not None:
        outside &= counted
    where = int(outside.argmax())
    raise ValueError(
        f"{name}: expected {low} <= value <= {letters} = {high}, "
        f"got {values.flat[where]}{_position(where, values.shape)}"
    )


def check_good(
    name: str,
    values: NDArray[Any],
    good: NDArray[np.bool_],
    expected: str,
    counted: NDArray[np.bool_] | None = None,
) -> None:
    """Raise ValueError, with value and position, unless all values that count are good.

    Parameters
    ----------
    name
        The argument's name, for the message.
    values
        The numbers looked at.
    good
        A mask of their shape.
    expected
        What a good value is, for the message.
    counted : default None
        A mask of the shape of ``values``. None: every value counts.
    """
    bad = ~good if counted is None else counted & ~good
    if bad.any():
        where = int(bad.argmax())
        raise ValueError(
            f"{name}: expected {expected}, got {values.flat[where]}{_position(where, values.shape)}"
        )


def check_names(name: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Raise ValueError, listing all that differ, unless two mappings have the same names."""
    missing = [key for key in expected if key not in got]
    unexpected = [key for key in got if key not in expected]
    problems = [f"missing {_listed(missing)}"] if missing else []
    problems += [f"unexpected {_listed(unexpected)}"] if unexpected else []
    if problems:
        raise ValueError(f"{name}: {'; '.join(problems)}")


def as_lengths(value: object, steps: int, rows: int) -> NDArray[np.int64]:
    """Convert and check the lengths of a ragged batch.

    Parameters
    ----------
    value
        Integers (B,), each from 0 to T, in any order.
    steps
        T.
    rows
        B.

    Returns
    -------
    ndarray (B,), int64

    Raises
    ------
    TypeError
        For anything but integers.
    ValueError
        For another shape, or a length below 0 or above T.
    """
    lengths = as_integer_array("lengths", value)
    check_shape("lengths", lengths, (rows,), "(B,)")
    check_range("lengths", lengths, 0, steps, "T")
    return lengths


def inside_lengths(
    lengths: NDArray[np.int64], steps: int, *, batch_first: bool = False
) -> NDArray[np.bool_]:
    """Return the mask (T, B), or (B, T) with ``batch_first``, that is True at the valid steps.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.parameters import inside_lengths
    >>> inside_lengths(np.array([3, 1]), 3)
    array([[ True,  True],
           [ True, False],
           [ True, False]])
    """
    times = np.arange(steps)
    return times < lengths[:, None] if batch_first else times[:, None] < lengths


def as_rows(value: object, rows: int) -> NDArray[np.int64]:
    """Convert and check the numbers of some rows of a batch.

    Parameters
    ----------
    value
        An integer, or integers, each from 0 to B - 1.
    rows
        B.

    Returns
    -------
    ndarray (N,), int64

    Raises
    ------
    TypeError
        For anything but integers.
    ValueError
        For a number below 0 or above B - 1.
    """
    numbers = as_integer_array("rows", value)
    check_range("rows", numbers, 0, rows - 1, "B - 1")
    return numbers.reshape(-1)


def _position(where: int, shape: tuple[int, ...]) -> str:
    """Say where a flat index is: `` at position (2, 0)``, a bare number for one axis."""
    if not shape:
        return ""
    if len(shape) == 1:
        return f" at position {where}"
    return f" at position {tuple(int(i) for i in np.unravel_index(where, shape))}"


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


# ---- Options -----------------------------------------------------------------------------------


def as_size(name: str, value: object) -> int:
    """Return the size of a layer; TypeError unless an integer, ValueError unless 1 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a positive integer, got {as_text(value)}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {as_text(int(value))}")
    return int(value)


def as_uint64(name: str, value: object, *, expected: str = "an integer in [0, 2**64)") -> int:
    """Return an integer in [0, 2**64): seeds and call numbers feed 64-bit arithmetic."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected {expected}, got {as_text(value)}")
    if not 0 <= value < 2**64:
        raise ValueError(f"{name}: expected {expected}, got {as_text(int(value))}")
    return int(value)


def as_seed(value: object) -> int:
    """Return the seed, an integer in [0, 2**64); None draws one from the operating system."""
    if value is None:
        return int.from_bytes(os.urandom(8), "little")
    return as_uint64("seed", value, expected="an integer in [0, 2**64) or None")


def check_generator(value: object) -> None:
    """Raise TypeError unless an argument ``rng`` is one of NumPy's generators."""
    if not isinstance(value, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(value).__name__}")


def check_matrix_fits(names: str, rows: int, columns: int) -> None:
    """Raise unless the memory for a float64 matrix can be had, before minutes go into drawing it.

    Parameters
    ----------
    names
        The arguments that give the sizes, for messages.
    rows, columns
        The sizes.

    Raises
    ------
    ValueError
        If it would exceed the address space.
    MemoryError
        If the memory cannot be had.
    """
    needed = rows * columns * _FLOAT64.itemsize
    got = f"{as_text(rows)} and {as_text(columns)}"
    message = f"{names}: expected sizes whose matrix fits the {{}}, got {got}"
    if needed > sys.maxsize:
        raise ValueError(message.format("address space"))
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        raise MemoryError(message.format("memory")) from None


def as_flag(name: str, value: object) -> bool:
    """Return a switch as a bool; TypeError for all but bools."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {as_text(value)}")
    return bool(value)


def as_real(name: str, value: object) -> float:
    """Return a scalar as a float; TypeError for bools and all that is no real number."""
    scalar = isinstance(value, (int, float, np.integer, np.floating))
    if not scalar or isinstance(value, bool):
        raise TypeError(f"{name}: expected a real number, got {as_text(value)}")
    try:
        # NumPy scalars would widen float32 arrays, Python floats do not.
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{name}: expected a number in the range of float64, got more") from None


def as_setting(name: str, value: object, kind: Kind = "nonnegative") -> float:
    """Return a setting that a training keeps as a number; what it must be is its kind.

    Parameters
    ----------
    name
        The setting's name, for messages.
    value
        What the user passed.
    kind : default "nonnegative"
        "nonnegative": finite and >= 0. And of these "fraction": below 1. "flag": 0 or 1. "whole": a
        whole number. "size": a whole number >= 1. Besides them "real": any real number.
    """
    number = as_real(name, value)
    if kind == "real":
        return number
    below = 1.0 if kind == "fraction" else math.inf
    if not 0.0 <= number < below:
        expected = "a finite number >= 0" if kind != "fraction" else "0 <= number < 1"
    elif kind == "flag" and number not in (0.0, 1.0):
        expected = "0 or 1"
    elif kind in ("whole", "size") and not number.is_integer():
        expected = "a whole number"
    elif kind == "size" and number < 1.0:
        expected = "a whole number >= 1"
    else:
        return number
    raise ValueError(f"{name}: expected {expected}, got {as_text(value)}")


def as_scalar(name: str, value: object) -> float:
    """Return an array-like without axes as a float: how a saved state holds a setting."""
    array = as_real_array(name, value, _FLOAT64)
    check_shape(name, array, ())
    return float(array)


def as_dtype(value: object) -> np.dtype[Any]:
    """Return the dtype of a layer, float32 or float64, given by name, by type or as a dtype."""
    message = f"dtype: expected 'float32' or 'float64', got {as_text(value)}"
    if value is None:  # to NumPy it means float64
        raise TypeError(message)
    try:
        dtype: np.dtype[Any] = np.dtype(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise TypeError(message) from None
    if dtype not in (_FLOAT32, _FLOAT64):
        raise ValueError(message)
    return dtype


def as_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return one of a few names; TypeError unless text, ValueError unless one of them."""
    expected = " or ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(
            f"{name}: expected {expected}, got {as_text(value)} of type {type(value).__name__}"
        )
    if value not in choices:
        raise ValueError(f"{name}: expected {expected}, got {as_text(value)}")
    return str(value)


def as_probability(name: str, value: object) -> float:
    """Return a probability of dropping, a real number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"{name}: expected a number in [0, 1), "
            f"got {as_text(value)} of type {type(value).__name__}"
        )
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {as_text(value)}")
    return float(value)


def as_mask_state(state: Mapping[str, str]) -> tuple[int, int] | None:
    """Read the seed and the call number that a checkpoint keeps for a layer's dropout masks.

    None if neither is there: the file is another program's and has parameters alone. ValueError if
    one of them is missing or no integer in [0, 2**64).
    """
    names = ("seed", "call_number")
    if not any(name in state for name in names):
        return None
    values = []
    for name in names:
        text = state.get(name, "nothing")
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise ValueError(f"{name}: expected the digits of an integer, got {text!r}")
        values.append(as_uint64(name, int(text)))
    seed, call_number = values
    return seed, call_number


# ---- Messages and copies -----------------------------------------------------------------------


def as_text(value: object) -> str:
    """Write a value into a message: its ``repr``, or the size of an integer too long to print.

    Examples
    --------
    >>> from rnncore.parameters import as_text
    >>> as_text("a"), as_text(-3), as_text(10**5000)
    ("'a'", '-3', 'an integer of 16610 bits')
    """
    if isinstance(value, int) and abs(value) >= 2**128:
        sign = "an" if value > 0 else "a negative"
        return f"{sign} integer of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:  # such an integer inside a list
        return f"an object of type {type(value).__name__}"


def refuse_copy(tape: object) -> NoReturn:
    """Raise TypeError: each tape is used up by one ``backward``, which a copy would get around."""
    raise TypeError(
        f"{type(tape).__name__}: expected to stay the only tape of its forward pass, "
        "got copied or pickled (backward(..., keep=True) leaves a tape usable)"
    )
