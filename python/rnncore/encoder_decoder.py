"""Two chains, one to read and one to write: sequences to sequences of another length.

The state in which the encoder ends is the one in which the decoder begins, and the gradient goes
back the same way. There is no attention: all that the decoder knows of the source is that state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .decoding import beam_search, generate, rows_of_state
from .parameters import Parameters, as_flag, as_size, as_text
from .protocol import Interface, reads_back
from .sequential import Sequential, SequentialTape
from .serialization import Storable, under
from .tape import SavedTape, opened

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["EncoderDecoder", "EncoderDecoderGradients", "EncoderDecoderTape"]


class EncoderDecoderGradients(NamedTuple):
    """What ``EncoderDecoder.backward`` returns; every array is fresh.

    Attributes
    ----------
    x
        dL/dsource and dL/dtarget; None for what is made of integers.
    params
        Parameter name to gradient, in the order of ``params``.
    """

    x: tuple[NDArray[Any] | None, NDArray[Any] | None]
    params: dict[str, NDArray[Any]]


class _Saved(NamedTuple):
    encoder: SequentialTape
    decoder: SequentialTape


class EncoderDecoderTape(SavedTape[_Saved]):
    """What one ``EncoderDecoder.forward`` keeps for ``backward``.

    Attributes
    ----------
    state
        The decoder's final state, by the names of its layers.
    """

    __slots__ = ("state",)

    def __init__(self, layer: object, saved: _Saved, state: dict[str, Any]) -> None:
        super().__init__(layer, saved)
        self.state = state

    @property
    def nbytes(self) -> int:
        """Bytes held; 0 once ``backward`` has consumed the tape."""
        return 0 if self._saved is None else sum(tape.nbytes for tape in self._saved)

    def gates(self) -> dict[str, Any]:
        """Return the gates' activations of every recurrent layer of the two.

        Returns
        -------
        dict
            ``{"encoder": ..., "decoder": ...}``, each as ``SequentialTape.gates`` gives it.

        Raises
        ------
        ValueError
            If ``backward`` has consumed the tape.

        Examples
        --------
        >>> import rnncore as rc
        >>> model = rc.EncoderDecoder(
        ...     rc.Sequential({"embedding": rc.Embedding(9, 4), "lstm": rc.LSTM(4, 8)}),
        ...     rc.Sequential({"embedding": rc.Embedding(7, 4), "lstm": rc.LSTM(4, 8)}),
        ... )
        >>> _, tape = model.forward(([[1, 2], [3, 4], [5, 6]], [[0, 0], [1, 2]]))
        >>> tape.gates()["encoder"]["lstm"]["l0"]["f"].shape
        (3, 2, 8)
        """
        read, written = opened(EncoderDecoderTape, self, self._layer)
        return {"encoder": read.gates(), "decoder": written.gates()}


class EncoderDecoder(Storable):
    """An encoder whose final state starts a decoder (Sutskever, Vinyals and Le, 2014).

    Parameters
    ----------
    encoder
        A ``Sequential`` with recurrent layers of one direction, such as Embedding, LSTM. It ends
        with one: whatever followed would not be used.
    decoder
        A ``Sequential`` with as many layers that have a state, of the same cells and sizes, such as
        Embedding, LSTM, Linear: its y are logits.

    Attributes
    ----------
    encoder, decoder
        The two.
    params
        The parameters of both, live, under "encoder.…" and "decoder.…".

    Raises
    ------
    TypeError
        If one is no ``Sequential``.
    ValueError
        If the states of the two do not fit, their layouts or dtypes differ, they share parameters,
        or the encoder does not end with a layer that has a state.

    Notes
    -----
    It trains with ``fit`` on ``x = (source, target_in)`` and ``y = target_out``: teacher forcing,
    where target_in is the target behind a start symbol and target_out the target before an end
    symbol. Everything that ``fit`` asks of a model is here.

    References
    ----------
    Sutskever, Vinyals and Le, Sequence to sequence learning with neural networks, 2014,
    arXiv:1409.3215. Williams and Zipser, A learning algorithm for continually running fully
    recurrent neural networks, 1989 (teacher forcing).

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> model = rc.EncoderDecoder(
    ...     rc.Sequential({"embedding": rc.Embedding(9, 4), "lstm": rc.LSTM(4, 8)}),
    ...     rc.Sequential({"embedding": rc.Embedding(7, 4), "lstm": rc.LSTM(4, 8),
    ...                    "head": rc.Linear(8, 7)}),
    ... )
    >>> source, target = np.ones((5, 3), int), np.ones((4, 3), int)  # (T, B) each
    >>> logits, tape = model.forward((source, target))
    >>> logits.shape
    (4, 3, 7)
    >>> sorted(model.backward(tape, logits).params)[:2]
    ['decoder.embedding.weight', 'decoder.head.bias']
    >>> [codes.dtype.kind for codes in model.translate(source, start=1, end=2, length=6)]
    ['i', 'i', 'i']
    """

    def __init__(self, encoder: Sequential, decoder: Sequential) -> None:
        for name, chain in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(chain, Sequential):
                raise TypeError(f"{name}: expected a Sequential, got {as_text(chain)}")
        if encoder.batch_first != decoder.batch_first:
            raise ValueError(
                f"decoder: expected batch_first={encoder.batch_first}, as the encoder has, "
                f"got {decoder.batch_first}"
            )
        self._encoder, self._decoder = encoder, decoder
        self._bridge = _bridged(encoder, decoder)
        self._params = Parameters.joined({"encoder": encoder.params, "decoder": decoder.params})

    @property
    def encoder(self) -> Sequential:
        """What reads."""
        return self._encoder

    @property
    def decoder(self) -> Sequential:
        """What writes."""
        return self._decoder

    @property
    def params(self) -> Parameters:
        """The parameters of both, live."""
        return self._params

    @property
    def batch_first(self) -> bool:
        """Whether sequences are (B, T, ·)."""
        return self._encoder.batch_first

    def load_params(self, mapping: Mapping[str, ArrayLike]) -> None:
        """Copy and cast a value into every parameter, or change nothing and raise.

        Parameters
        ----------
        mapping
            Name to array-like: exactly the names and shapes of ``params``.

        Raises
        ------
        TypeError, ValueError
            If a name or a shape does not fit, or a value is not of real numbers.
        """
        self._params.load(mapping)

    def output_lengths(self, lengths: Any) -> Any:
        """Return the lengths of y for (those of the source, those of the target): the latter's.

        Parameters
        ----------
        lengths
            A pair; each integers (B,) or None.
        """
        own = _pair("lengths", lengths)[1]
        return None if own is None else self._decoder.output_lengths(own)

    def __call__(self, x: Any, *, lengths: Any = None) -> NDArray[Any]:
        """Return y for a source and the decoder's inputs, without a tape and without dropout.

        Parameters
        ----------
        x
            The pair (source, target), each as its chain takes it.
        lengths : default None
            The pair of their lengths, integers (B,) or None.

        Returns
        -------
        ndarray
            What the decoder gives: (T, B, V) for T steps of the target.

        Raises
        ------
        TypeError, ValueError, MemoryError
            From the chains, and if x or ``lengths`` is no pair.
        """
        (source, target), (own, others) = _pair("x", x), _pair("lengths", lengths)
        _, state = self._encoder(source, lengths=own, return_state=True)
        return self._decoder(target, self._handed_over(state), lengths=others)

    def forward(
        self, x: Any, *, lengths: Any = None, dropout: bool = True
    ) -> tuple[NDArray[Any], EncoderDecoderTape]:
        """Return y, and the tape that ``backward`` needs.

        Parameters
        ----------
        x, lengths
            As in ``model(x)``.
        dropout : default True
            Whether masks are active.

        Returns
        -------
        y : ndarray
        tape : EncoderDecoderTape

        Raises
        ------
        TypeError, ValueError, MemoryError
            As ``model(x)``.
        """
        (source, target), (own, others) = _pair("x", x), _pair("lengths", lengths)
        before = self._extra_state()
        try:
            _, read = self._encoder.forward(source, lengths=own, dropout=dropout)
            state = self._handed_over(read.state)
            y, written = self._decoder.forward(target, state, lengths=others, dropout=dropout)
        except BaseException:
            self._load_extra_state(before)
            raise
        return y, EncoderDecoderTape(self, _Saved(read, written), written.state)

    def backward(
        self, tape: EncoderDecoderTape, dy: ArrayLike | None = None, *, keep: bool = False
    ) -> EncoderDecoderGradients:
        """Return all gradients, through the decoder and its initial state into the encoder.

        Parameters
        ----------
        tape
            Of a ``forward`` of this model, not consumed yet.
        dy : default None
            dL/dy; None is zero.
        keep : default False
            Whether the tape stays usable.

        Returns
        -------
        EncoderDecoderGradients

        Raises
        ------
        TypeError, ValueError, MemoryError
            As ``Sequential.backward``.
        """
        read, written = opened(EncoderDecoderTape, tape, self)
        keep = as_flag("keep", keep)
        outer = self._decoder.backward(written, dy, keep=True)
        dstate = {name: outer.state[other] for name, other in self._bridge.items()}
        inner = self._encoder.backward(read, None, dstate, keep=True)
        if not keep:
            tape._saved = None
        params = {f"encoder.{name}": g for name, g in inner.params.items()}
        params |= {f"decoder.{name}": g for name, g in outer.params.items()}
        return EncoderDecoderGradients((inner.x, outer.x), params)

    def translate(
        self,
        source: Any,
        *,
        start: int,
        end: int,
        length: int,
        lengths: ArrayLike | None = None,
        width: int = 1,
        alpha: float = 0.6,
    ) -> list[NDArray[np.int64]]:
        """Write the likeliest target for each row of the source.

        The decoder must begin with an ``Embedding``: what it writes is what it reads next.

        Parameters
        ----------
        source
            As the encoder takes it, with an axis of rows.
        start, end
            The symbols before and after a target.
        length
            Symbols at most, the end included.
        lengths : default None
            Integers (B,) of the source.
        width : default 1
            1 is greedy; more is a beam search that keeps so many beginnings.
        alpha : default 0.6
            Of the beam search: how much longer targets are favoured.

        Returns
        -------
        list of ndarray of int64 (n,)
            For each row, without start and end.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, or the decoder cannot stream or takes no codes.
        """
        if not self._decoder._interface().takes_indices:
            raise ValueError("decoder: expected an Embedding in front, got a chain without")
        width = as_size("width", width)
        _, state = self._encoder(source, lengths=lengths, return_state=True)
        state = self._handed_over(state)
        rows = _rows_of(state)
        if not rows:
            return []
        if width == 1:
            return self._greedy(state, rows, (start, end, length))
        stream = self._decoder.freeze(rows * width)
        stream.state = rows_of_state(state, np.repeat(np.arange(rows), width))
        found = beam_search(stream, np.full(rows, start), length, width=width, end=end, alpha=alpha)
        return [best[0].codes for best in found]

    def _greedy(
        self, state: dict[str, Any], rows: int, symbols: tuple[int, int, int]
    ) -> list[NDArray[np.int64]]:
        """Take the likeliest symbol at each step, all rows at once."""
        start, end, length = symbols
        stream = self._decoder.freeze(rows)
        stream.state = state
        codes = generate(stream, np.full((1, rows), start), length, temperature=0, end=end, seed=0)
        ended = codes == end
        stops = np.where(ended.any(axis=0), ended.argmax(axis=0), len(codes))
        return [codes[:stop, row] for row, stop in enumerate(stops)]

    def _handed_over(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Name the encoder's states as the decoder's."""
        return {other: state[name] for name, other in self._bridge.items()}

    def _interface(self) -> Interface:
        ends = self._decoder._interface().ends_steps
        return Interface(batch_first=self.batch_first, needs_steps=True, ends_steps=ends)

    def _inputs(self) -> tuple[Interface, Interface]:
        """Say how each input fits, as ``_interface`` does for a model of one."""
        return self._encoder._interface(), self._decoder._interface()

    def _extra_state(self) -> dict[str, str]:
        """Return what a checkpoint keeps besides the parameters, of both."""
        return {
            f"{name}.{key}": text
            for name, chain in (("encoder", self._encoder), ("decoder", self._decoder))
            for key, text in chain._extra_state().items()
        }

    def _load_extra_state(self, state: Mapping[str, str]) -> None:
        """Give each chain its part of a checkpoint."""
        for name, chain in (("encoder", self._encoder), ("decoder", self._decoder)):
            if own := under(f"{name}.", state):
                chain._load_extra_state(own)

    def __getstate__(self) -> dict[str, Any]:
        """Keep the two chains alone."""
        return {"_encoder": self._encoder, "_decoder": self._decoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the model around the chains of a copy or a pickle."""
        self.__init__(state["_encoder"], state["_decoder"])  # type: ignore[misc]

    def __repr__(self) -> str:
        """Return the call that makes an equal model."""
        return f"EncoderDecoder({self._encoder!r}, {self._decoder!r})"


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    """Check for a pair; None is a pair of None for lengths."""
    if value is None and name == "lengths":
        return None, None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected a pair (source, target), got {as_text(value)}")
    return value[0], value[1]


def _bridged(encoder: Sequential, decoder: Sequential) -> dict[str, str]:
    """Return which of the decoder's layers begins where one of the encoder's ends."""
    ends, begins = _with_state(encoder), _with_state(decoder)
    if not ends or len(ends) != len(begins):
        raise ValueError(
            f"decoder: expected as many layers with a state as the encoder has, {len(ends)} "
            f"(at least 1), got {len(begins)}"
        )
    last = list(encoder.layers)[-1]
    if last not in ends:
        raise ValueError(
            f"encoder.layers[{last!r}]: expected a layer with a state to end with, since the "
            f"decoder is given the state alone, got {encoder.layers[last]!r}"
        )
    mine = {id(array) for array in encoder.params.values()}
    for name, array in decoder.params.items():
        if id(array) in mine:
            raise ValueError(f"decoder.params[{name!r}]: expected its own, got the encoder's")
    for (name, one), (other, two) in zip(ends.items(), begins.items(), strict=True):
        if _kind(one) != _kind(two) or reads_back(one):
            raise ValueError(
                f"decoder.layers[{other!r}]: expected the cell, sizes and dtype of "
                f"encoder.layers[{name!r}], one direction each, {one!r}, got {two!r}"
            )
    return dict(zip(ends, begins, strict=True))


def _with_state(chain: Sequential) -> dict[str, Any]:
    """Return the layers of a chain that have a state, a chain within it being one layer."""
    return {n: layer for n, layer in chain.layers.items() if layer._interface().has_state}


def _kind(layer: Any) -> tuple[Any, ...]:
    """Return what decides the structure of a layer's state."""
    if isinstance(layer, Sequential):
        return Sequential, *((name, _kind(part)) for name, part in _with_state(layer).items())
    wanted = ("num_layers", "hidden_size", "bidirectional", "dtype")
    return type(layer), *(getattr(layer, name, None) for name in wanted)


def _rows_of(state: Any) -> int:
    """Return B, as a state (L, B, H) has it."""
    while not isinstance(state, np.ndarray):
        state = next(iter(state.values() if isinstance(state, Mapping) else state))
    if state.ndim != 3:
        raise ValueError("source: expected an axis of rows, (T, B, ...) or (B, T, ...), got none")
    return int(state.shape[1])
