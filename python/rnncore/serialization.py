"""Save and load parameters as safetensors files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, overload, runtime_checkable

import numpy as np

from rnncore import _core
from rnncore.parameters import as_plain_numbers, as_real_array, as_text, check_range

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@runtime_checkable
class Parametrized(Protocol):
    """Anything with named parameters: every layer, and any class of yours that does the same."""

    @property
    def params(self) -> Mapping[str, NDArray[Any]]:
        """The live mapping from names to arrays."""

    def load_params(self, mapping: Mapping[str, ArrayLike], /) -> None:
        """Copy every array of `mapping`, which must have exactly the names of `params`."""


@runtime_checkable
class Stateful(Protocol):
    """A layer that keeps more than parameters, such as the seed of its dropout."""

    def _extra_state(self) -> dict[str, str]: ...

    def _load_extra_state(self, state: dict[str, str], /) -> None: ...


Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
# A mapping's values are layers, arrays or such mappings again; mypy joins the types of different
# layers to `object`, so that saying so would refuse `{"lstm": lstm, "head": head}`.
Tree: TypeAlias = "Parametrized | Mapping[str, Any]"


def save(path: Path, tree: Tree) -> None:
    """Save parameters to a safetensors file, whole or not at all.

    An existing file is replaced only when the new one is complete. Layers also save what they
    need to continue exactly: the seed and the call number of their dropout.

    Parameters
    ----------
    path : str, bytes or path-like
        The file to write.
    tree : layer, mapping of names to arrays, or a nested mapping of both
        ``{"lstm": lstm, "head": head}`` gives names such as ``lstm.weight_ih_l0``.

    Raises
    ------
    TypeError
        If a name is no string, or an array is not of real floats or integers.
    ValueError
        If two arrays get the same name, a name cannot be used, or an array has masked entries.
    OSError
        If the file cannot be written; an existing one is unchanged.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import rnncore as rc
    >>> weights = {"encoder": {"weight": np.eye(2)}, "scale": np.ones(3, np.float32)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rc.save(Path(folder) / "model.safetensors", weights)
    ...     arrays = rc.load(Path(folder) / "model.safetensors")
    >>> {name: array.shape for name, array in arrays.items()}
    {'encoder.weight': (2, 2), 'scale': (3,)}
    """
    leaves = _Leaves("tree", tree)
    tensors = {name: _plain(name, array) for name, array in leaves.arrays.items()}
    metadata = {
        prefix + key: text
        for prefix, layer in leaves.stateful.items()
        for key, text in layer._extra_state().items()
    }
    _core.save_tensors(_decoded(path), tensors, metadata)


@overload
def load(path: Path) -> dict[str, NDArray[Any]]: ...
@overload
def load(path: Path, *, into: Tree) -> None: ...
def load(path: Path, *, into: Tree | None = None) -> dict[str, NDArray[Any]] | None:
    """Load parameters from a safetensors file.

    Parameters
    ----------
    path : str, bytes or path-like
        The file to read, from `save` or from any other program.
    into : layer, mapping of names to arrays, or a nested mapping of both, optional
        What to load into, in place and cast to its types. The file must have exactly its names
        and shapes; when it has not, nothing is changed.

    Returns
    -------
    dict or None
        Without `into`, fresh arrays by name, in the order of the file.

    Raises
    ------
    TypeError
        If `into` is neither a layer nor a mapping.
    ValueError
        If the file is no valid safetensors file or does not fit `into`, or a value does not fit the
        type of the array to load it into. The message lists every missing name, unexpected name
        and wrong shape.
    MemoryError
        If the arrays do not fit the memory.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import rnncore as rc
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     rc.save(path, {"weight": np.eye(2)})
    ...     weights = {"weight": np.zeros((2, 2), np.float32)}
    ...     rc.load(path, into=weights)
    >>> weights["weight"]
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    path = _decoded(path)
    tensors, metadata = _core.load_tensors(path)
    if into is None:
        return tensors
    leaves = _Leaves("into", into)
    problems = list(_problems(leaves.arrays, tensors))
    if problems:
        raise ValueError(f"path: {path!r} does not fit `into`: {'; '.join(problems)}")
    with _unchanged_on_error(leaves):
        _load_extra_states(leaves.stateful, metadata)
        for prefix, layer in leaves.layers.items():
            layer.load_params({name: tensors[prefix + name] for name in layer.params})
        for name, array in leaves.loose.items():
            array[...] = _fitted(f"into[{name!r}]", tensors[name], array.dtype)
    return None


class Storable:
    """What models share that are a file of their own."""

    def save(self: Parametrized, path: Path) -> None:
        """Save all parameters to a safetensors file, whole or not at all.

        The file also has what the layers need to continue exactly: seeds and call numbers of their
        dropout masks. It is that of ``rnncore.save(path, model)``, and for a ``Sequential`` that of
        ``rnncore.save(path, model.layers)``.

        Parameters
        ----------
        path : str, bytes or path-like
            The file to write.

        Raises
        ------
        TypeError
            If ``path`` is no path.
        OSError
            If the file cannot be written; an existing one is unchanged.
        """
        save(path, self)

    def load(self: Parametrized, path: Path) -> None:
        """Load all parameters from a safetensors file, or change nothing and raise.

        Parameters
        ----------
        path : str, bytes or path-like
            The file to read. It must have exactly the names and shapes of ``params``.

        Raises
        ------
        TypeError
            If ``path`` is no path.
        ValueError
            If it is no valid safetensors file or does not fit.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> import rnncore as rc
        >>> a, b = (rc.Sequential(rc.GRU(3, 4), rc.Linear(4, 2)) for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a.save(Path(folder) / "model.safetensors")
        ...     b.load(Path(folder) / "model.safetensors")
        >>> bool((a.params["1.weight"] == b.params["1.weight"]).all())
        True
        """
        load(path, into=self)


def under(prefix: str, state: Mapping[str, str]) -> dict[str, str]:
    """Return what stands under a prefix, without it: one layer's part of an extra state."""
    return {k.removeprefix(prefix): text for k, text in state.items() if k.startswith(prefix)}


class _Leaves:
    """The arrays and layers of a tree, under their full names."""

    def __init__(self, argument: str, tree: Tree) -> None:
        self.argument = argument
        self.arrays: dict[str, Any] = {}
        self.layers: dict[str, Parametrized] = {}
        self.loose: dict[str, Any] = {}
        self._visit(tree, "")

    @property
    def stateful(self) -> dict[str, Stateful]:
        """Those layers that keep more than parameters."""
        return {
            prefix: layer for prefix, layer in self.layers.items() if isinstance(layer, Stateful)
        }

    def _visit(self, tree: object, prefix: str) -> None:
        if isinstance(tree, Parametrized):
            self.layers[prefix] = tree
            for name, array in tree.params.items():
                self._add(prefix + name, array)
        elif isinstance(tree, Mapping):
            for key, value in tree.items():
                self._visit(value, self._joined(prefix, key, value))
        elif prefix:
            name = prefix.removesuffix(".")
            self._add(name, tree)
            self.loose[name] = tree
        else:
            raise TypeError(
                f"{self.argument}: expected a layer or a mapping, got {type(tree).__name__}"
            )

    def _add(self, name: str, array: object) -> None:
        if name in self.arrays:
            raise ValueError(f"{self.argument}: two arrays have the name {name!r}")
        self.arrays[name] = array

    def _joined(self, prefix: str, key: object, value: object) -> str:
        if not isinstance(key, str):
            raise TypeError(f"{self.argument}: expected names of type str, got {as_text(key)}")
        # A dot in the name of a layer would make its parameters look like another layer's.
        if not key or ("." in key and isinstance(value, (Parametrized, Mapping))):
            name = prefix + key
            raise ValueError(f"{self.argument}: expected a name without dots, got {name!r}")
        return f"{prefix}{key}."


def _plain(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return the array as the file holds it: real numbers, C order, native bytes."""
    array = as_plain_numbers(f"tree[{name!r}]", value, "real floats or integers")
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def _decoded(path: Path) -> str:
    """Return the path as text; bytes are decoded as Python does for file names."""
    try:
        return os.fsdecode(path)
    except TypeError:
        expected = "a str, bytes or path-like object"
        raise TypeError(f"path: expected {expected}, got {as_text(path)}") from None


def _fitted(name: str, source: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Cast to the type of an array to load into; what does not fit is an error."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        check_range(name, source, int(limits.min), int(limits.max), f"the greatest {dtype}")
    return as_real_array(name, source, dtype)


def _problems(expected: Mapping[str, Any], got: Mapping[str, NDArray[Any]]) -> Iterator[str]:
    """Why the arrays of a file cannot be loaded, one sentence each."""
    yield from (f"missing {name}" for name in expected if name not in got)
    yield from (f"unexpected {name}" for name in got if name not in expected)
    for name, array in expected.items():
        if name not in got:
            continue
        if not isinstance(array, np.ndarray):
            yield f"{name}: expected an array to load into, got {type(array).__name__}"
        elif not array.flags.writeable:
            yield f"{name}: expected a writeable array to load into, got a read-only one"
        elif array.shape != got[name].shape:
            yield f"{name}: expected shape {array.shape}, got {got[name].shape}"
        elif not np.can_cast(got[name].dtype, array.dtype, "same_kind"):
            yield f"{name}: expected values that cast to {array.dtype}, got {got[name].dtype}"


def _load_extra_states(layers: Mapping[str, Stateful], metadata: Mapping[str, str]) -> None:
    """Give each layer its own part of the text."""
    for prefix, layer in layers.items():
        # Another program's file holds parameters alone.
        if state := under(prefix, metadata):
            layer._load_extra_state(state)


@contextmanager
def _unchanged_on_error(leaves: _Leaves) -> Iterator[None]:
    """Put every array and layer back as it was when the body fails half-way."""
    arrays = [(array, array.copy()) for array in leaves.arrays.values()]
    states = [(layer, layer._extra_state()) for layer in leaves.stateful.values()]
    try:
        yield
    except BaseException:
        for array, before in arrays:
            array[...] = before
        for layer, state in states:
            layer._load_extra_state(state)
        raise
