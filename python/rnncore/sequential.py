"""A chain of layers that is trained, saved and streamed as one.

What it asks of a layer is ``rnncore.protocol.Layer``: a handful of methods that restate the layer's
own calls in one signature. Every layer of the package has them, a ``Sequential`` too, so that
chains nest; so may a class of yours. There is no list of known layers here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from .parameters import (
    Parameters,
    as_flag,
    as_integer_array,
    as_real_array,
    as_rows,
    as_size,
    as_text,
    check_names,
)
from .protocol import Context, Interface, Layer, Stream, StreamBase, Traced
from .serialization import Stateful, Storable, under
from .tape import Gated, SavedTape, opened

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


__all__ = ["FrozenSequential", "Sequential", "SequentialGradients", "SequentialTape"]


class SequentialGradients(NamedTuple):
    """What ``Sequential.backward`` returns; every array is fresh and belongs to the caller.

    Attributes
    ----------
    x
        dL/dx, shaped like x; None if x is made of integers.
    state
        Name of each layer that has a state to dL/d(its initial state), structured like a state.
    params
        Parameter name to gradient, in the order of ``params``.
    state_grads
        None unless ``return_state_grads=True``. Else name of each layer that has a state to the
        ``state_grads`` of its own ``backward``: ``{"encoder": {"l0": {"h": (T, B, H)}}}``; a chain
        inside the chain is one more level.
    """

    x: NDArray[Any] | None
    state: dict[str, Any]
    params: dict[str, NDArray[Any]]
    state_grads: dict[str, Any] | None = None


class _Saved(NamedTuple):
    """What ``Sequential.forward`` saves."""

    tapes: list[Any]  # of each layer
    shape_y: tuple[int, ...]
    dtype_y: np.dtype[Any]


class SequentialTape(SavedTape[_Saved]):
    """What one ``Sequential.forward`` keeps for ``backward``: the tapes of the layers.

    Attributes
    ----------
    state
        Name of each layer that has a state to its final state, as ``forward`` takes it: hand it to
        the next call to go on with the sequence. It stays when the tape is consumed.
    """

    __slots__ = ("state",)

    def __init__(self, layer: object, saved: _Saved, state: dict[str, Any]) -> None:
        super().__init__(layer, saved)
        self.state = state

    @property
    def nbytes(self) -> int:
        """Bytes held; 0 once ``backward`` has consumed the tape."""
        return 0 if self._saved is None else sum(tape.nbytes for tape in self._saved.tapes)

    @property
    def tapes(self) -> Mapping[str, Any]:
        """Name of each layer to its own tape, read-only; ValueError once the tape is consumed."""
        chain = self._layer
        assert isinstance(chain, Sequential)
        tapes = opened(SequentialTape, self, chain).tapes
        return MappingProxyType(dict(zip(chain.layers, tapes, strict=True)))

    def gates(self) -> dict[str, Any]:
        """Return the gates' activations of every recurrent layer.

        Returns
        -------
        dict
            Name of each layer whose tape has gates to them, as ``Tape.gates`` gives them:
            ``{"encoder": {"l0": {"i": (T, B, H), ...}, ...}}``. A chain inside the chain is one
            more level.

        Raises
        ------
        ValueError
            If ``backward`` has consumed the tape.

        Examples
        --------
        >>> import numpy as np, rnncore as rc
        >>> model = rc.Sequential({"encoder": rc.LSTM(2, 3, seed=0), "head": rc.Linear(3, 1)})
        >>> _, tape = model.forward(np.ones((4, 5, 2)))
        >>> tape.gates()["encoder"]["l0"]["f"].shape
        (4, 5, 3)
        """
        found = {name: t.gates() for name, t in self.tapes.items() if isinstance(t, Gated)}
        return {name: gates for name, gates in found.items() if gates}


class Sequential(Storable):
    """Layers one after the other: what one returns is what the next one takes.

    Parameters
    ----------
    *layers
        The layers, which get the names "0", "1", ...; or one mapping from names without dots to
        layers, in order. Every layer of the package will do: a recurrent one, ``Linear``,
        ``Embedding`` (first), ``Dropout``, ``Conv1d``, ``Pooling`` (which ends the steps), another
        ``Sequential``; and every other object with the methods of ``rnncore.protocol.Layer``.

    Attributes
    ----------
    layers
        Name to layer, read-only.
    params
        The parameters of all layers, a live mapping under names such as "0.weight_ih_l0" or
        "encoder.weight_ih_l0": what optimizers, ``save`` and ``load`` take.

    Raises
    ------
    TypeError
        If something is no layer, or a name no text.
    ValueError
        If there is no layer, a name cannot be used, a layer is there twice, or neighbours do not
        fit: in their numbers of features, in dtype, in ``batch_first``, or because a layer needs
        steps that an earlier one has ended.

    Notes
    -----
    ``lengths`` go through all layers. A ``Conv1d`` changes them (``output_lengths`` tells what a
    loss over steps needs), ``Pooling`` ends them. Whatever lies beyond them is not read, and is 0
    in y and in dL/dx.

    The state of the recurrent layers is a mapping from their names to states. ``forward`` takes one
    and leaves one in ``tape.state``; the call takes one and returns one with
    ``return_state=True``. So truncated backpropagation through time is::

        state = None
        for x in segments:
            y, tape = model.forward(x, state)
            ...
            state = tape.state

    A ``Conv1d`` has no state: each of its calls begins with zeros before the first step. Its stream
    from ``freeze`` remembers.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> model = rc.Sequential({
    ...     "embedding": rc.Embedding(10, 4, seed=0),
    ...     "encoder": rc.LSTM(4, 8, seed=1),
    ...     "last": rc.Pooling("last"),
    ...     "head": rc.Linear(8, 2, seed=2),
    ... })
    >>> codes = np.array([[1, 2], [3, 4], [5, -1]])  # (T, B); the second row is shorter
    >>> optimizer = rc.Adam(model, lr=0.01)
    >>> for _ in range(100):
    ...     logits, tape = model.forward(codes, lengths=[3, 2])
    ...     loss, dlogits = rc.softmax_cross_entropy(logits, [0, 1])
    ...     optimizer.step(model.backward(tape, dlogits))
    >>> model(codes, lengths=[3, 2]).argmax(axis=1)
    array([0, 1])
    >>> list(model.params)[:2]
    ['embedding.weight', 'encoder.weight_ih_l0']
    """

    def __init__(self, *layers: Any) -> None:
        self._adopt(_named(layers))

    def _adopt(self, layers: dict[str, Any]) -> None:
        """Take over checked layers, and derive what follows from them."""
        self._layers = layers
        self._fit = _chained(layers)
        self._with_state = tuple(n for n, layer in layers.items() if layer._interface().has_state)
        self._stateful = {n: layer for n, layer in layers.items() if isinstance(layer, Stateful)}
        self._params = Parameters.joined({name: layer.params for name, layer in layers.items()})

    @property
    def layers(self) -> Mapping[str, Any]:
        """Name to layer, in order, read-only."""
        return MappingProxyType(self._layers)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the layers; None if none has one."""
        return self._fit.dtype

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ·): as the layers say, False if none does."""
        return bool(self._fit.batch_first)

    @property
    def params(self) -> Parameters:
        """The parameters of all layers, live, under "layer.parameter"."""
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
        """Return the lengths that rows of these lengths have in y.

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
            If one is negative, or a layer ends the steps.

        Examples
        --------
        >>> import rnncore as rc
        >>> model = rc.Sequential(rc.Conv1d(3, 4, 5, stride=2), rc.GRU(4, 8))
        >>> model.output_lengths([7, 3, 0])
        array([4, 2, 0])
        """
        if self._fit.ends_steps:
            raise ValueError(
                "output_lengths: expected layers that keep the steps, got one that ends them"
            )
        checked = as_integer_array("lengths", lengths)
        if checked.size and checked.min() < 0:
            raise ValueError(f"lengths: expected integers >= 0, got {checked.min()}")
        for layer in self._layers.values():
            checked = layer._output_lengths(checked)
        return checked.copy()

    @overload
    def __call__(
        self,
        x: ArrayLike,
        state: Mapping[str, Any] | None = None,
        *,
        lengths: ArrayLike | None = None,
        return_state: Literal[False] = False,
    ) -> NDArray[Any]: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        state: Mapping[str, Any] | None = None,
        *,
        lengths: ArrayLike | None = None,
        return_state: Literal[True],
    ) -> tuple[NDArray[Any], dict[str, Any]]: ...
    def __call__(
        self,
        x: ArrayLike,
        state: Mapping[str, Any] | None = None,
        *,
        lengths: ArrayLike | None = None,
        return_state: bool = False,
    ) -> NDArray[Any] | tuple[NDArray[Any], dict[str, Any]]:
        """Return y without a tape: inference, without dropout.

        Parameters
        ----------
        x
            What the first layer takes: (T, B, F), or (B, T, F) with ``batch_first``, or (T, F)
            unbatched; integers without the last axis if it is an ``Embedding``.
        state : default None
            Name of a recurrent layer to its initial state; who is not named begins with zeros.
        lengths : default None
            Integers (B,) in [0, T]: row b counts up to step ``lengths[b]``. None: everything
            counts.
        return_state : default False
            Whether to return the final states too.

        Returns
        -------
        y : ndarray
            What the last layer gives.
        state : dict
            With ``return_state``: name of each recurrent layer to its final state.

        Raises
        ------
        TypeError, ValueError, MemoryError
            From a layer, with a note that names it; or if ``state`` is no mapping or names
            something else than a layer with a state.
        """
        return_state = as_flag("return_state", return_state)
        y, final = self._infer(x, Context(_lengths(lengths), self.batch_first, state))
        return (y, final) if return_state else y

    def forward(
        self,
        x: ArrayLike,
        state: Mapping[str, Any] | None = None,
        *,
        lengths: ArrayLike | None = None,
        dropout: bool = True,
        checkpoint: int | None = None,
    ) -> tuple[NDArray[Any], SequentialTape]:
        """Return y and the tape that ``backward`` needs.

        Parameters
        ----------
        x, state, lengths
            As in ``layer(x)``.
        dropout : default True
            Whether the masks of all layers are active. A call that fails gives back the call
            numbers that it has taken.
        checkpoint : default None
            A positive k makes the recurrent layers keep their states every k-th step alone, and
            ``backward`` compute the rest again: less memory, more time, the same bits.

        Returns
        -------
        y : ndarray
        tape : SequentialTape
            For one call of ``backward``; its ``state`` has the final states.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As ``layer(x)``; and TypeError if ``dropout`` is no bool, ValueError if ``checkpoint``
            is given without a recurrent layer.
        """
        dropout = as_flag("dropout", dropout)
        if checkpoint is not None and not self._with_state:
            raise ValueError(
                f"checkpoint: expected None without a recurrent layer, got {as_text(checkpoint)}"
            )
        context = Context(_lengths(lengths), self.batch_first, state, dropout, checkpoint)
        y, _, tape = self._train(x, context)
        return y, tape

    def backward(
        self,
        tape: SequentialTape,
        dy: ArrayLike | None = None,
        dstate: Mapping[str, Any] | None = None,
        *,
        keep: bool = False,
        return_state_grads: bool = False,
    ) -> SequentialGradients:
        """Return the gradients of a loss whose gradient with respect to y is given.

        Parameters
        ----------
        tape
            Of a ``forward`` of this chain, not consumed yet.
        dy : default None
            dL/dy, the shape of y; None is zero. Beyond the lengths it is not read.
        dstate : default None
            Name of a recurrent layer to dL/d(its final state); who is not named has zero.
        keep : default False
            Whether the tape stays usable. Whatever goes wrong leaves it as it was.
        return_state_grads : default False
            Also return dL/dh_t (and dL/dc_t) of every recurrent layer for every step.

        Returns
        -------
        SequentialGradients
            ``.x``, ``.state``, ``.params`` and ``.state_grads``.

        Raises
        ------
        TypeError
            If ``tape`` is no SequentialTape, ``dy`` not of real numbers, or ``keep`` or
            ``return_state_grads`` no bool.
        ValueError
            If ``dy`` has another shape, ``dstate`` names something else than a layer with a state,
            or the tape is consumed or of another chain.
        MemoryError
            If the memory cannot be had.
        """
        opened(SequentialTape, tape, self)
        keep = as_flag("keep", keep)
        traced = as_flag("return_state_grads", return_state_grads)
        dx, dinitial, params, states = self._backwards(tape, dy, dstate, traced=traced)
        if not keep:
            tape._saved = None
        return SequentialGradients(dx, dinitial, params, states if traced else None)

    def freeze(self, batch_size: int = 1) -> FrozenSequential:
        """Return a snapshot of the weights that streams: one step at a time, with a state.

        Later changes to ``params`` do not reach it. Recurrent layers of one direction stream, and
        ``Linear``, ``Embedding``, ``Dropout`` (which does nothing), causal ``Conv1d`` of stride 1
        and chains of these.

        Parameters
        ----------
        batch_size : default 1
            B, the rows that every step takes.

        Returns
        -------
        FrozenSequential
            For one thread at a time; a second one inside it raises RuntimeError.

        Raises
        ------
        TypeError, ValueError
            If ``batch_size`` is not a positive integer, or a layer cannot stream: the message names
            it.
        MemoryError
            If the memory cannot be had.

        Examples
        --------
        >>> import numpy as np, rnncore as rc
        >>> model = rc.Sequential(rc.GRU(3, 4, seed=0), rc.Linear(4, 2, seed=1))
        >>> x = np.ones((5, 3), np.float32)
        >>> s = model.freeze()
        >>> steps = np.stack([s.step(x_t) for x_t in x])
        >>> bool(abs(steps - model(x)).max() < 1e-6)
        True
        """
        rows = as_size("batch_size", batch_size)
        streams: dict[str, Stream] = {}
        for name, layer in self._layers.items():
            try:
                streams[name] = layer._stream(rows)
            except ValueError as error:
                raise ValueError(f"layers[{name!r}]: {error}") from None
        return FrozenSequential(streams, self._fit, rows, repr(self))

    # ------------------------------------------------- through the layers

    def _interface(self) -> Interface:
        return self._fit

    def _output_lengths(self, lengths: NDArray[np.int64]) -> NDArray[np.int64] | None:
        return None if self._fit.ends_steps else self.output_lengths(lengths)

    def _steps(self, context: Context) -> Iterator[tuple[str, Any, Context]]:
        """Walk through the layers, each with the state and the lengths that are its own."""
        states = self._states("state", context.state)
        lengths = context.lengths
        for name, layer in self._layers.items():
            own = context._replace(state=states.get(name), lengths=lengths)
            if name not in self._with_state:
                own = own._replace(checkpoint=None)
            yield name, layer, own
            lengths = None if lengths is None else layer._output_lengths(lengths)

    def _infer(self, x: Any, context: Context) -> tuple[NDArray[Any], dict[str, Any]]:
        final = {}
        for name, layer, own in self._steps(context):
            with _noted(name, layer):
                x, state = layer._infer(x, own)
            if name in self._with_state:
                final[name] = state
        return x, final

    def _train(
        self, x: Any, context: Context
    ) -> tuple[NDArray[Any], dict[str, Any], SequentialTape]:
        final, tapes = {}, []
        before = self._extra_state()
        try:
            for name, layer, own in self._steps(context):
                with _noted(name, layer):
                    x, state, tape = layer._train(x, own)
                tapes.append(tape)
                if name in self._with_state:
                    final[name] = state
        except BaseException:
            self._load_extra_state(before)
            raise
        return x, final, SequentialTape(self, _Saved(tapes, x.shape, x.dtype), final)

    def _backprop(
        self, tape: SequentialTape, dy: Any, dstate: Any
    ) -> tuple[NDArray[Any] | None, dict[str, Any], dict[str, NDArray[Any]]]:
        return self._backwards(tape, dy, dstate, traced=False)[:3]

    def _backprop_traced(
        self, tape: SequentialTape, dy: Any, dstate: Any
    ) -> tuple[NDArray[Any] | None, dict[str, Any], dict[str, NDArray[Any]], dict[str, Any]]:
        return self._backwards(tape, dy, dstate, traced=True)

    def _backwards(
        self, tape: SequentialTape, dy: Any, dstate: Any, *, traced: bool
    ) -> tuple[NDArray[Any] | None, dict[str, Any], dict[str, NDArray[Any]], dict[str, Any]]:
        """Walk through the layers in reverse; the last result is empty unless `traced`."""
        tapes, shape_y, dtype_y = opened(SequentialTape, tape, self)
        dstates = self._states("dstate", dstate)
        d = np.zeros(shape_y, dtype_y) if dy is None else dy
        dinitial: dict[str, Any] = {}
        params: dict[str, Mapping[str, NDArray[Any]]] = {}
        states: dict[str, Any] = {}
        for (name, layer), layer_tape in reversed([*zip(self._layers.items(), tapes, strict=True)]):
            own = layer_tape, d, dstates.get(name)
            with _noted(name, layer):
                if traced and isinstance(layer, Traced):
                    d, dinitial[name], params[name], states[name] = layer._backprop_traced(*own)
                else:
                    d, dinitial[name], params[name] = layer._backprop(*own)
        flat = {f"{name}.{key}": g for name in self._layers for key, g in params[name].items()}
        steps = {name: states[name] for name in self._layers if states.get(name)}
        return d, {name: dinitial[name] for name in self._with_state}, flat, steps

    def _states(self, argument: str, states: Any) -> Mapping[str, Any]:
        """Check a mapping of states by the layers' names."""
        if states is None:
            return {}
        if not isinstance(states, Mapping):
            raise TypeError(
                f"{argument}: expected a mapping from names of layers to their states, "
                f"got {type(states).__name__}"
            )
        for name in states:
            if name not in self._with_state:
                known = ", ".join(map(repr, self._with_state)) or "no name, as no layer has a state"
                raise ValueError(f"{argument}: expected {known}, got {as_text(name)}")
        return states

    def _stream(self, batch_size: int) -> FrozenSequential:
        return self.freeze(batch_size)

    # ------------------------------------------------- copies and printing

    def __repr__(self) -> str:
        """Return the call that makes an equal chain."""
        positional = list(self._layers) == [str(k) for k in range(len(self._layers))]
        if positional:
            return f"Sequential({', '.join(map(repr, self._layers.values()))})"
        named = ", ".join(f"{name!r}: {layer!r}" for name, layer in self._layers.items())
        return f"Sequential({{{named}}})"

    def __getstate__(self) -> dict[str, Any]:
        """Keep the layers alone: the rest follows from them."""
        derived = ("_fit", "_with_state", "_stateful", "_params")
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the chain around the layers of a copy or a pickle."""
        self.__dict__.update(state)
        self._adopt(self._layers)

    def _extra_state(self) -> dict[str, str]:
        """Return what a checkpoint keeps besides the parameters, of every layer."""
        return {
            f"{name}.{key}": text
            for name, layer in self._stateful.items()
            for key, text in layer._extra_state().items()
        }

    def _load_extra_state(self, state: Mapping[str, str]) -> None:
        """Give every layer its part of a checkpoint, or change nothing and raise."""
        done: list[tuple[Stateful, dict[str, str]]] = []
        try:
            for name, layer in self._stateful.items():
                done.append((layer, layer._extra_state()))
                layer._load_extra_state(under(f"{name}.", state))
        except BaseException:
            for layer, before in done:
                layer._load_extra_state(before)
            raise


class FrozenSequential(StreamBase):
    """A snapshot of a chain that takes one step at a time.

    ``Sequential.freeze`` makes it. Copying or pickling it raises TypeError: freeze the chain again
    and set the new ``state``.

    A recurrent layer gives the bits of the full pass. ``Linear`` and ``Conv1d`` multiply with
    NumPy's BLAS, which may round the last bits otherwise when fewer rows share the call. A ``run``
    that fails leaves every state as it was; after a ``step`` that was interrupted (Ctrl-C) some
    layers may be ahead of others: ``reset``, or set ``state``.

    Attributes
    ----------
    state
        Name of each layer that remembers to what it does: the state of a recurrent layer, the last
        inputs of a ``Conv1d``. A copy; setting it copies.
    """

    def __init__(
        self, streams: dict[str, Stream], fit: Interface, batch_size: int, text: str
    ) -> None:
        super().__init__(batch_size)
        self._streams = streams
        self._fit = fit
        self._text = text

    @property
    def state(self) -> dict[str, Any]:
        """Name of each layer that remembers to its state."""
        with self._alone():
            return self._states()

    @state.setter
    def state(self, value: Mapping[str, Any]) -> None:
        with self._alone():
            before = self._states()
            if not isinstance(value, Mapping):
                raise TypeError(
                    "state: expected a mapping from names of layers to their states, "
                    f"got {type(value).__name__}"
                )
            check_names("state", before, value)
            try:
                for name in before:
                    with _noted(name, self._streams[name]):
                        self._streams[name].state = value[name]
            except BaseException:
                for name, state in before.items():
                    self._streams[name].state = state
                raise

    def _states(self) -> dict[str, Any]:
        states = {name: stream.state for name, stream in self._streams.items()}
        return {name: state for name, state in states.items() if state is not None}

    def step(self, x_t: ArrayLike) -> NDArray[Any]:
        """Advance by one step.

        Parameters
        ----------
        x_t
            (B, F), or (F,) for one row; integers (B,) or () in front of an ``Embedding``.

        Returns
        -------
        ndarray (B, M), or (M,)
            A fresh array.

        Raises
        ------
        TypeError, ValueError
            If x_t is not of the right numbers, or of another shape.
        RuntimeError
            If another thread is inside.
        """
        x = self._checked("x_t", x_t, time=0)
        with self._alone():
            for stream in self._streams.values():
                x = stream.step(x)
        return x

    def run(self, x: ArrayLike) -> NDArray[Any]:
        """Advance over a whole sequence.

        Parameters
        ----------
        x
            In the chain's layout: (T, B, F), or (B, T, F) with ``batch_first``, or (T, F) for one
            row; integers without the last axis in front of an ``Embedding``.

        Returns
        -------
        ndarray
            As from ``model(x)``.

        Raises
        ------
        TypeError, ValueError
            If x is not of the right numbers, or of another shape.
        RuntimeError
            If another thread is inside.
        """
        values = self._checked("x", x, time=1)
        with self._alone():
            before = self._states()
            try:
                for stream in self._streams.values():
                    values = stream.run(values)
            except BaseException:
                # No layer may be ahead of another.
                for name, state in before.items():
                    self._streams[name].state = state
                raise
        return values

    def reset(self, rows: ArrayLike | None = None) -> None:
        """Set every state back to zero.

        Parameters
        ----------
        rows : default None
            Of these rows, an integer or integers; None: of all.

        Raises
        ------
        TypeError, ValueError
            If they are no integers from 0 to B - 1.
        """
        chosen = None if rows is None else as_rows(rows, self._batch_size)
        with self._alone():
            for stream in self._streams.values():
                stream.reset(chosen)

    def _checked(self, name: str, value: ArrayLike, *, time: int) -> NDArray[Any]:
        """Convert x, with that many axes of time, and check all axes but the last."""
        fit, B = self._fit, self._batch_size
        x = (
            as_integer_array(name, value)
            if fit.takes_indices
            else as_real_array(name, value, fit.dtype)
        )
        last = [] if fit.takes_indices else ["F"]
        batch = 0 if fit.batch_first else time
        unbatched = ["T"] * time + last
        batched = [*unbatched[:batch], f"B = {B}", *unbatched[batch:]]
        if not (x.ndim == len(batched) and x.shape[batch] == B) and not (
            x.ndim == len(unbatched) and B == 1
        ):
            one = f" or ({', '.join(unbatched)})" if B == 1 else ""
            raise ValueError(f"{name}: expected shape ({', '.join(batched)}){one}, got {x.shape}")
        if fit.features_in is not None and x.shape[-1] != fit.features_in:
            raise ValueError(f"{name}: expected {fit.features_in} features, got shape {x.shape}")
        return x

    def __repr__(self) -> str:
        """Show the chain and the number of rows."""
        return f"<FrozenSequential of {self._text}, batch_size={self._batch_size}>"


def _named(layers: tuple[Any, ...]) -> dict[str, Any]:
    """Give every layer its name, and check names and layers."""
    first = layers[0] if len(layers) == 1 else None
    named: Mapping[Any, Any]
    if isinstance(first, Mapping):
        named = first
    else:
        named = {str(k): layer for k, layer in enumerate(layers)}
    if not named:
        raise ValueError("layers: expected at least one layer, got none")
    seen: dict[int, str] = {}
    for name, layer in named.items():
        if not isinstance(name, str):
            raise TypeError(f"layers: expected names that are text, got {as_text(name)}")
        if not name or "." in name:
            raise ValueError(f"layers: expected names without dots, not empty, got {name!r}")
        if isinstance(layer, type) or not isinstance(layer, Layer):
            got = f"the class {layer.__name__}" if isinstance(layer, type) else type(layer).__name__
            raise TypeError(f"layers[{name!r}]: expected a layer, got {got}")
        if id(layer) in seen:
            raise ValueError(
                f"layers[{name!r}]: expected every layer once, got {seen[id(layer)]!r} again"
            )
        seen[id(layer)] = name
    return dict(named)


def _chained(layers: Mapping[str, Any]) -> Interface:
    """Check that neighbours fit, and say how the whole chain fits between its own."""
    fits = {name: layer._interface() for name, layer in layers.items()}
    whole = Interface()
    before = ""  # who gave the number of features, or ended the steps
    for name, fit in fits.items():
        if fit.takes_indices and name != next(iter(fits)):
            raise ValueError(
                f"layers[{name!r}]: expected to stand first, as it takes integers, "
                f"got a place behind others: {layers[name]!r}"
            )
        given, taken = whole.features_out, fit.features_in
        if given is not None and taken is not None and given != taken:
            raise ValueError(
                f"layers[{name!r}]: expected a layer that takes {given} features, "
                f"as layers[{before!r}] gives, got {layers[name]!r}"
            )
        if whole.ends_steps and fit.needs_steps:
            raise ValueError(
                f"layers[{name!r}]: expected a layer that needs no steps, as an earlier one ends "
                f"them, got {layers[name]!r}"
            )
        if fit.features_out is not None:
            before = name
        # What stands before the first layer with a number of features leaves it as it is.
        open_in = whole.features_in is None and given is None and not whole.takes_indices
        whole = Interface(
            taken if open_in else whole.features_in,
            given if fit.features_out is None else fit.features_out,
            _agreed("dtype", name, whole.dtype, fit.dtype),
            _agreed("batch_first", name, whole.batch_first, fit.batch_first),
            whole.takes_indices or fit.takes_indices,
            whole.needs_steps or fit.needs_steps,
            whole.ends_steps or fit.ends_steps,
            whole.has_state or fit.has_state,
        )
    return whole


def _agreed(option: str, name: str, earlier: Any, own: Any) -> Any:
    """Return what the layers so far and this one say of an option."""
    # Not `in`: to NumPy a dtype may equal None.
    if earlier is not None and own is not None and earlier != own:
        raise ValueError(
            f"layers[{name!r}]: expected {option}={earlier}, as the layers before, got {own}"
        )
    return own if earlier is None else earlier


def _lengths(lengths: ArrayLike | None) -> NDArray[np.int64] | None:
    """Convert lengths; the first layer checks them."""
    return None if lengths is None else as_integer_array("lengths", lengths)


@contextmanager
def _noted(name: str, layer: Any) -> Iterator[None]:
    """Name the layer in which an error occurred."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in layer {name!r}: {layer!r}")
        raise
