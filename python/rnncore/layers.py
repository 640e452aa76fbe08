"""The recurrent layers: ``RNN``, ``LSTM``, ``GRU`` and ``MGU``, and what their calls return.

A layer holds its options and its parameters; ``rnncore._core.Stack`` computes. Here arguments are
converted and checked, the layouts ``(T, B, I)``, ``(B, T, I)`` and ``(T, I)`` become one, and
results get the structure of what came in. No arithmetic on values happens in this file.

Sizes: T steps, B batch rows, I input features, H hidden units, G gates, L layers, D directions,
M features of the merged output.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    SupportsIndex,
    TypeAlias,
    TypeVar,
)

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from rnncore import _core
from rnncore.initializers import INITS, recurrent_parameters
from rnncore.parameters import (
    Parameters,
    as_choice,
    as_dtype,
    as_flag,
    as_lengths,
    as_mask_state,
    as_probability,
    as_real_array,
    as_seed,
    as_size,
    as_text,
    as_uint64,
    check_shape,
    inside_lengths,
    on_line,
    refuse_copy,
)
from rnncore.protocol import Context, Interface

if TYPE_CHECKING:
    from rnncore._core import Frozen

__all__ = ["GRU", "LSTM", "MGU", "RNN", "Gradients", "Tape"]

Array: TypeAlias = NDArray[Any]
Pair: TypeAlias = tuple[Array, Array]
PairLike: TypeAlias = tuple[ArrayLike | None, ArrayLike | None] | list[ArrayLike | None]
State = TypeVar("State")

_UINT64 = 2**64
# What one parameter array costs besides its values: the array object, its name, two entries.
_ARRAY_BYTES = 512


class Gradients(Generic[State]):
    """What ``backward`` returns; every array is fresh and belongs to the caller.

    Attributes
    ----------
    x
        dL/dx, shaped like ``x``; exactly 0 beyond the lengths.
    state
        dL/d(initial state), with the structure of a state: one array, or for LSTM ``(h, c)``.
    params
        Parameter name to gradient, summed over steps and batch rows, in the order of the layer's
        ``params``.
    state_grads
        None unless ``return_state_grads=True``. Else ``{"l0": {"h": dL/dh_t}, ...}`` (LSTM: ``c``
        too), one ``(T, B, H)`` array each in the layer's layout: the whole derivative with respect
        to the state after step t, the direct part ``dy_t`` included.
    """

    __slots__ = ("params", "state", "state_grads", "x")

    def __init__(
        self,
        x: Array,
        state: State,
        params: dict[str, Array],
        state_grads: dict[str, dict[str, Array]] | None,
    ) -> None:
        self.x = x
        self.state = state
        self.params = params
        self.state_grads = state_grads

    def __repr__(self) -> str:
        """Name what is there, not its values."""
        return f"<Gradients of x {self.x.shape} and {len(self.params)} parameters>"


class Tape:
    """What one ``forward`` keeps for ``backward``: its inputs, states and gates, copied.

    Changing ``x`` or ``y`` afterwards changes nothing here. The weights are not kept: ``backward``
    and ``gates`` use those that the layer has when they are called. A tape is the only one of its
    forward pass: copying or pickling it raises TypeError.
    """

    __slots__ = ("_batched", "_core", "_layer", "_lengths", "_lock", "_rows", "_y_shape")

    def __init__(
        self,
        layer: _Recurrent[Any],
        core: _core.Tape,
        y_shape: tuple[int, ...],
        rows: int | None,
        lengths: NDArray[np.int64] | None,
    ) -> None:
        self._layer = layer
        self._core: _core.Tape | None = core
        self._y_shape = y_shape
        self._rows = rows
        self._lengths = None if lengths is None else lengths.copy()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held; 0 once ``backward`` has consumed the tape."""
        core = self._core
        return 0 if core is None else core.nbytes

    def gates(self) -> dict[str, dict[str, Array]]:
        """Return the gates' activations of every layer, direction and step.

        Returns
        -------
        dict
            ``{"l0": {"i": (T, B, H), ...}, "l0_reverse": ..., "l1": ...}`` in the layer's layout
            and the user's own time order, 0 beyond the lengths. LSTM: i, f, g, o; GRU: r, z, n;
            MGU: f, n; RNN: h.

        Raises
        ------
        ValueError
            If ``backward`` has consumed the tape.

        Examples
        --------
        >>> import numpy as np, rnncore as rc
        >>> _, _, tape = rc.GRU(2, 3, seed=0).forward(np.ones((4, 1, 2)))
        >>> {gate: a.shape for gate, a in tape.gates()["l0"].items()}
        {'r': (4, 1, 3), 'z': (4, 1, 3), 'n': (4, 1, 3)}
        """
        core = self._core
        if core is None:
            _raise_used()
        gates = self._layer._stack.gates(self._layer._arrays, core)
        if self._rows is not None:
            return gates
        axis = self._layer._batch_axis
        return {key: {g: a.squeeze(axis) for g, a in of.items()} for key, of in gates.items()}

    def _opened(self, *, keep: bool) -> _core.Tape:
        """Return the compiled tape; unless ``keep``, consume this one, of two threads for one."""
        with self._lock:
            core = self._core
            if core is None:
                _raise_used()
            if not keep:
                self._core = None
        return core

    def __repr__(self) -> str:
        """Name the layer's class and the size."""
        size = "used" if self._core is None else f"{self.nbytes} bytes"
        return f"<Tape of {type(self._layer).__name__}, {size}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse copies and pickles: a tape is for one ``backward``."""
        refuse_copy(self)


class _Recurrent(ABC, Generic[State]):
    """Stacked, optionally bidirectional recurrent layers: everything but the cell's equations.

    A subclass names the cell, its gates and its state, and says how a state looks from outside.
    """

    _cell: ClassVar[str]
    _gates: ClassVar[tuple[str, ...]]
    _states: ClassVar[tuple[str, ...]] = ("h",)
    _forget_gate: ClassVar[int | None] = None
    _own_options: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        merge: str = "concat",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        batch_first: bool = False,
        dtype: DTypeLike = "float32",
        init: str = "orthogonal",
        seed: int | None = None,
    ) -> None:
        self._input_size = as_size("input_size", input_size)
        self._hidden_size = as_size("hidden_size", hidden_size)
        self._num_layers = as_size("num_layers", num_layers)
        self._bias = as_flag("bias", bias)
        self._bidirectional = as_flag("bidirectional", bidirectional)
        self._merge = as_choice("merge", merge, ("concat", "sum", "mean", "mul"))
        self._dropout = as_probability("dropout", dropout)
        self._recurrent_dropout = as_probability("recurrent_dropout", recurrent_dropout)
        self._batch_first = as_flag("batch_first", batch_first)
        self._dtype = as_dtype(dtype)
        self._init = as_choice("init", init, tuple(INITS))
        self._seed = as_seed(seed)
        self._call_number = 0
        if self._dropout > 0.0 and self._num_layers == 1:
            raise ValueError(
                "dropout: expected 0 with num_layers=1 (it acts between layers, on every output "
                f"but the last), got {self._dropout!r}"
            )
        self._adopt(self._fresh_parameters())

    # ---------------------------------------------------------------- options

    @property
    def input_size(self) -> int:
        """I, the number of features of x."""
        return self._input_size

    @property
    def hidden_size(self) -> int:
        """H, the number of units of each layer and direction."""
        return self._hidden_size

    @property
    def num_layers(self) -> int:
        """L, the number of stacked layers."""
        return self._num_layers

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self._bias

    @property
    def bidirectional(self) -> bool:
        """Whether every layer reads the sequence in both directions."""
        return self._bidirectional

    @property
    def merge(self) -> str:
        """How two directions become one output: "concat", "sum", "mean" or "mul"."""
        return self._merge

    @property
    def dropout(self) -> float:
        """Probability of dropping an element of the output of every layer but the last."""
        return self._dropout

    @property
    def recurrent_dropout(self) -> float:
        """Probability of dropping a unit of h' inside the recurrent product."""
        return self._recurrent_dropout

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, ·) rather than (T, B, ·)."""
        return self._batch_first

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
        """The seed in use: of the initial parameters and of every dropout mask."""
        return self._seed

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self._bidirectional else 1

    @property
    def output_size(self) -> int:
        """M, the number of features of y: D*H for merge="concat", else H."""
        return self._hidden_size * (self.num_directions if self._merge == "concat" else 1)

    @property
    def call_number(self) -> int:
        """How many forward passes have drawn dropout masks, modulo 2**64.

        A mask depends on the seed and on this number: set it to repeat the masks of a call. Only a
        ``forward`` whose masks are active advances it.
        """
        return self._call_number

    @call_number.setter
    def call_number(self, value: int) -> None:
        number = as_uint64("call_number", value)
        with self._lock:
            self._call_number = number

    # ------------------------------------------------------------- parameters

    @property
    def params(self) -> Parameters:
        """The parameters, a live mapping from name to array with fixed keys.

        Names, shapes and the order of gates are PyTorch's: ``weight_ih_l{k} (G*H, I or M)``,
        ``weight_hh_l{k} (G*H, H)``, ``bias_ih_l{k}``, ``bias_hh_l{k} (G*H,)``, suffix ``_reverse``
        for the second direction. A change in place is seen by the next call; assigning an item
        checks the shape and copies into the array.
        """
        return self._params

    def load_params(self, mapping: Mapping[str, ArrayLike]) -> None:
        """Copy and cast a value into every parameter, or change nothing and raise.

        Parameters
        ----------
        mapping
            Name to array-like: exactly the names and shapes of ``params``.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a shape differs.
        TypeError
            If a value is not of real numbers.

        Examples
        --------
        >>> import rnncore as rc
        >>> a, b = rc.RNN(2, 3, seed=0), rc.RNN(2, 3, seed=1)
        >>> b.load_params(a.params)
        >>> bool((b.params["weight_hh_l0"] == a.params["weight_hh_l0"]).all())
        True
        """
        self._params.load(mapping)

    def _parts(self) -> list[str]:
        """Name every layer and direction: l0, l0_reverse, l1, ..."""
        suffixes = ("", "_reverse")[: self.num_directions]
        return [f"l{layer}{suffix}" for layer in range(self._num_layers) for suffix in suffixes]

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Give every parameter's shape, in numbers and in letters, in PyTorch's order."""
        H, D = self._hidden_size, self.num_directions
        rows = len(self._gates) * H
        GH = f"{len(self._gates)}*H"
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for index, part in enumerate(self._parts()):
            columns, letter = (self._input_size, "I") if index < D else (self.output_size, "M")
            shapes[f"weight_ih_{part}"] = (rows, columns), f"({GH}, {letter})"
            shapes[f"weight_hh_{part}"] = (rows, H), f"({GH}, H)"
            if self._bias:
                shapes[f"bias_ih_{part}"] = (rows,), f"({GH},)"
                shapes[f"bias_hh_{part}"] = (rows,), f"({GH},)"
        return shapes

    def _parameter_bytes(self) -> int:
        """Return what the parameters of all layers take, in closed form: L may be absurd."""
        H, D, L = self._hidden_size, self.num_directions, self._num_layers
        biases = 2 if self._bias else 0
        columns = L * (H + biases) + self._input_size + (L - 1) * self.output_size
        values = D * len(self._gates) * H * columns
        return values * self._dtype.itemsize + L * D * (2 + biases) * _ARRAY_BYTES

    def _fresh_parameters(self) -> dict[str, Array]:
        """Draw the initial parameters, once their memory is known to be obtainable."""
        needed = self._parameter_bytes()
        sizes = (self._input_size, self._hidden_size, self._num_layers)
        text = "input_size, hidden_size, num_layers: expected sizes whose parameters fit {}, got "
        text += f"{', '.join(map(as_text, sizes))} (bytes needed: {as_text(needed)})"
        if needed > sys.maxsize:
            raise ValueError(text.format("the address space"))
        try:
            # Asked for at once and given back, so that a hopeless size fails now, not after
            # minutes of drawing.
            np.empty(needed, np.uint8)
            return recurrent_parameters(
                {name: shape for name, (shape, _) in self._shapes().items()},
                hidden_size=self._hidden_size,
                init=self._init,
                forget_gate=self._forget_gate,
                seed=self._seed,
                dtype=self._dtype,
            )
        except MemoryError as error:
            raise MemoryError(text.format("the memory")) from error

    def _adopt(self, parameters: dict[str, Array]) -> None:
        """Make `parameters` the layer's own and build the compiled stack."""
        # Arrays from a pickle may lie anywhere, even in a read-only buffer.
        arrays = {name: on_line(array) for name, array in parameters.items()}
        letters = {name: text for name, (_, text) in self._shapes().items()}
        self._params = Parameters(arrays, letters)
        self._arrays = list(self._params.values())
        self._batch_axis = 0 if self._batch_first else 1
        self._masked = self._dropout > 0.0 or self._recurrent_dropout > 0.0
        self._lock = threading.Lock()
        self._stack = _core.Stack(
            self._cell,
            self._input_size,
            self._hidden_size,
            self._num_layers,
            self._bidirectional,
            self._merge,
            self._bias,
            self._dropout,
            self._recurrent_dropout,
            self._dtype.name,
            **{name: getattr(self, name) for name in self._own_options},
        )

    # ------------------------------------------------------------------ calls

    def __call__(
        self, x: ArrayLike, state: Any = None, *, lengths: ArrayLike | None = None
    ) -> tuple[Array, State]:
        """Run the layer over a sequence: inference, without dropout and without a tape.

        Parameters
        ----------
        x : (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) unbatched
            The input: real numbers of any type, converted to the layer's dtype.
        state : (L*D, B, H), unbatched (L*D, H); for LSTM a pair of them ``(h, c)``; default None
            The initial state, in the order l0, l0_reverse, l1, ...; None is all zeros.
            ``batch_first`` leaves it as it is.
        lengths : (B,) of integers in [0, T], default None
            The valid steps of each row, in any order. What lies beyond is not read (it may hold
            NaN), outputs 0, and leaves the state alone. None is T for every row.

        Returns
        -------
        y : (T, B, M), or (B, T, M) with ``batch_first``, or (T, M) unbatched
            The last layer's outputs.
        state
            The state after each row's last valid step (for the reverse direction: after t = 0),
            with the structure of the argument.

        Raises
        ------
        TypeError
            If an argument is not of real numbers, or a state of the wrong structure.
        ValueError
            If a shape or a length is wrong.
        MemoryError
            If the memory cannot be had.

        Examples
        --------
        >>> import numpy as np, rnncore as rc
        >>> lstm = rc.LSTM(3, 4, num_layers=2, bidirectional=True, seed=0)
        >>> y, (h, c) = lstm(np.ones((5, 2, 3)), lengths=[5, 2])
        >>> y.shape, h.shape, float(abs(y[2:, 1]).max())
        ((5, 2, 8), (4, 2, 4), 0.0)
        """
        x, rows, states, lengths = self._inputs(x, state, lengths)
        y, final, _ = self._stack.forward(
            self._arrays, x, states, lengths, self._batch_first, False, None, None
        )
        return self._outputs(y, final, rows)

    def forward(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        dropout: bool = True,
        checkpoint: int | None = None,
    ) -> tuple[Array, State, Tape]:
        """Run the layer over a sequence for training, and keep what ``backward`` needs.

        Parameters
        ----------
        x, state, lengths
            As in ``layer(x, state, lengths=lengths)``.
        dropout : default True
            Whether the layer's ``dropout`` and ``recurrent_dropout`` act. Dropout is inverted:
            what stays is scaled by 1/(1-p). Active masks are a function of ``seed`` and
            ``call_number``, which then advances by 1. False makes a tape without any mask.
        checkpoint : default None
            None keeps every step's gates. A positive k keeps the states of every k-th step alone,
            and ``backward`` computes the rest again: less memory, more time, the same bits. It
            holds the gates of k steps at a time, or of as many as have 256 rows between them.
            Each layer's input sequence stays for all steps even so; with ``merge="mul"`` the
            outputs of both directions are kept as well. k = 1 keeps every state and saves the gates
            alone: in an RNN, nothing.

        Returns
        -------
        y, state
            As from ``layer(x, ...)``, bit for bit when no mask is active.
        tape : Tape
            For one call of ``backward``.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As ``layer(x, ...)``; and TypeError if ``dropout`` is not a bool.

        References
        ----------
        Zaremba, Sutskever and Vinyals, Recurrent neural network regularization, 2014,
        arXiv:1409.2329 (dropout between layers). Gal and Ghahramani, A theoretically grounded
        application of dropout in recurrent neural networks, 2016, arXiv:1512.05287 (one recurrent
        mask for all steps). Chen et al., Training deep nets with sublinear memory cost, 2016,
        arXiv:1604.06174 (checkpoints).

        Examples
        --------
        >>> import numpy as np, rnncore as rc
        >>> gru = rc.GRU(3, 4, recurrent_dropout=0.5, seed=0)
        >>> x = np.ones((5, 2, 3))
        >>> y, state, tape = gru.forward(x)
        >>> gru.call_number
        1
        >>> gru.call_number = 0
        >>> again, _, _ = gru.forward(x)
        >>> bool((y == again).all())
        True
        """
        _strict_bool("dropout", dropout)
        # More steps than can be are as many as there are.
        every = None if checkpoint is None else min(as_size("checkpoint", checkpoint), sys.maxsize)
        x, rows, states, lengths = self._inputs(x, state, lengths)
        masks = (self._seed, self._next_call()) if dropout and self._masked else None
        try:
            y, final, core = self._stack.forward(
                self._arrays, x, states, lengths, self._batch_first, True, masks, every
            )
            assert core is not None
            y, final_state = self._outputs(y, final, rows)
            return y, final_state, Tape(self, core, y.shape, rows, lengths)
        except BaseException:
            if masks is not None:
                self._give_back_call(masks[1])
            raise

    def backward(
        self,
        tape: Tape,
        dy: ArrayLike | None = None,
        dstate: Any = None,
        *,
        keep: bool = False,
        return_state_grads: bool = False,
    ) -> Gradients[State]:
        """Backpropagate through time along a tape.

        The weights are those the layer has now; changing them between ``forward`` and ``backward``
        is a mistake that nothing can notice.

        Parameters
        ----------
        tape
            From this layer's ``forward``; a copy of the layer is another layer. It is consumed
            unless ``keep``, but an error in the arguments, or memory that cannot be had, leaves it
            usable. An interrupted call consumes it.
        dy : shaped like y, default None
            dL/dy; None is zero. Beyond the lengths it is not read.
        dstate : structured like the returned state, default None
            dL/d(final state); None is zero, and so is either member of the LSTM's pair.
        keep : default False
            Leave the tape as it is, for another ``backward``.
        return_state_grads : default False
            Also return dL/dh_t (and dL/dc_t) for every step, as ``Gradients.state_grads``.

        Returns
        -------
        Gradients
            ``x``, ``state``, ``params`` and ``state_grads``: fresh arrays. The gradients of the
            parameters are sums over steps and batch rows.

        Raises
        ------
        TypeError
            If an argument is of the wrong type.
        ValueError
            If the tape is used or another layer's, or a shape is wrong.
        MemoryError
            If the memory cannot be had.

        References
        ----------
        Werbos, Backpropagation through time: what it does and how to do it, 1990.

        Examples
        --------
        >>> import numpy as np, rnncore as rc
        >>> rnn = rc.RNN(3, 4, seed=0)
        >>> y, h, tape = rnn.forward(np.ones((5, 2, 3)))
        >>> g = rnn.backward(tape, dy=np.ones_like(y))
        >>> g.x.shape, g.state.shape, g.params["weight_ih_l0"].shape
        ((5, 2, 3), (1, 2, 4), (4, 3))
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected a Tape from forward, got {type(tape).__name__}")
        if tape._layer is not self:
            raise ValueError(
                "tape: expected one from this layer's own forward, got one of another layer, "
                f"{tape._layer!r}"
            )
        _strict_bool("keep", keep)
        _strict_bool("return_state_grads", return_state_grads)
        dy = None if dy is None else self._output_gradient(dy, tape)
        dstates = None if dstate is None else self._members("dstate", dstate, tape._rows)
        core = tape._opened(keep=keep)
        try:
            dx, dinitial, dparams, dsteps = self._stack.backward(
                self._arrays, core, dy, dstates, return_state_grads
            )
        except (TypeError, ValueError, MemoryError):
            # The core only reads the tape; whatever else ends the call, Ctrl-C too, consumes it.
            # Under `keep` it was never taken, and another thread may have consumed it since.
            if not keep:
                tape._core = core
            raise
        dx, dinitial_state = self._outputs(dx, dinitial, tape._rows)
        params = dict(zip(self._params, dparams, strict=True))
        grads = None if dsteps is None else self._state_grads(dsteps, tape._rows)
        return Gradients(dx, dinitial_state, params, grads)

    def freeze(self, batch_size: int = 1, weights: Literal["bfloat16"] | None = None) -> Frozen:
        """Return a packed snapshot of the weights that streams: one step at a time, with a state.

        Later changes to ``params`` do not reach it. ``s.step(x_t, out=None)`` takes ``(B, I)`` or,
        for one row, ``(I,)``, advances ``s.state`` and returns ``(B, M)`` or ``(M,)``: a fresh
        array, or ``out`` without any allocation. ``s.run(x)`` continues from ``s.state`` over a
        whole sequence in the layer's layout and returns y alone. ``s.reset(rows=None)`` zeroes the
        state, of the given rows or of all. A step gives the bits of the full pass.

        Copying or pickling it raises TypeError: freeze the layer again and set the new ``state``.

        Parameters
        ----------
        batch_size : default 1
            B, the rows that every step takes.
        weights : default None
            The format of the packed weights. None is the layer's own dtype. ``"bfloat16"``, for
            float32 layers alone, rounds ``weight_ih`` and ``weight_hh`` to the nearest bfloat16,
            which has 8 significant bits; biases, state and arithmetic stay float32. The snapshot
            takes half the memory, and a step of one row, which at ``hidden_size`` >= 256 waits for
            its weights, 0.3 to 0.7 of the time with AVX-512, 0.7 with AVX2; four rows or more gain
            nothing.
            y is that of a layer with rounded weights, bit for bit. In 200 steps of standard normal
            input, freshly drawn LSTM and GRU layers with ``(I, H)`` = (256, 256) and (256, 512)
            came out at most 0.0064 away from float32 weights.

        Returns
        -------
        Frozen
            For one thread at a time; a second one inside it raises RuntimeError.

        Raises
        ------
        TypeError, ValueError
            If ``batch_size`` is not a positive integer, ``weights`` neither None nor, for a float32
            layer, ``"bfloat16"``, or the layer bidirectional: the reverse direction begins at an
            end that a stream has not reached.
        MemoryError
            If the memory cannot be had.

        Examples
        --------
        >>> import numpy as np, rnncore as rc
        >>> gru = rc.GRU(3, 4, seed=0)
        >>> x = np.ones((5, 3), np.float32)
        >>> s = gru.freeze()
        >>> steps = np.stack([s.step(x_t) for x_t in x])
        >>> bool((steps == gru(x)[0]).all())
        True
        """
        rows = as_size("batch_size", batch_size)
        if rows * self._num_layers * self._hidden_size * self._dtype.itemsize > sys.maxsize:
            raise ValueError(
                "batch_size: expected a size whose state (L, B, H) fits the address space, "
                f"got {as_text(rows)}"
            )
        if weights is not None and not (
            self._dtype == np.float32 and isinstance(weights, str) and weights == "bfloat16"
        ):
            others = ' or "bfloat16"' if self._dtype == np.float32 else ""
            raise ValueError(
                f"weights: expected None (the layer's own {self._dtype.name}){others}, "
                f"got {as_text(weights)}"
            )
        if self._bidirectional:
            raise ValueError("freeze: expected a layer of one direction, got bidirectional=True")
        return self._stack.freeze(self._arrays, rows, self._batch_first, weights)

    # ------------------------------------------------- arguments and results

    def _inputs(
        self, x: ArrayLike, state: Any, lengths: ArrayLike | None
    ) -> tuple[Array, int | None, tuple[Array, ...] | None, NDArray[np.int64] | None]:
        """Convert and check x, state, lengths; B is None and x gets a batch axis if unbatched."""
        # Padding may hold what the dtype cannot: the cast waits until the lengths are known.
        x = as_real_array("x", x, self._dtype if lengths is None else None)
        shape = x.shape
        if len(shape) not in (2, 3) or shape[-1] != self._input_size:
            layout, sizes = "B, T" if self._batch_first else "T, B", self._input_size
            raise ValueError(f"x: expected shape ({layout}, {sizes}) or (T, {sizes}), got {shape}")
        rows: int | None = None
        if len(shape) == 3:
            rows = shape[self._batch_axis]
            if lengths is not None:
                lengths = as_lengths(lengths, shape[1 - self._batch_axis], rows)
                x = self._cast("x", x, lengths)
        elif lengths is None:
            x = np.expand_dims(x, self._batch_axis)
        else:
            raise ValueError(
                "lengths: expected None for an unbatched x of shape (T, I), "
                f"got {type(lengths).__name__}"
            )
        states = None if state is None else self._members("state", state, rows)
        return x, rows, states, lengths

    def _cast(self, name: str, array: Array, lengths: NDArray[np.int64] | None) -> Array:
        """Cast x or dy to the layer's dtype, whatever its padding holds."""
        if array.dtype == self._dtype:
            return array
        counted = None
        if lengths is not None:
            steps = array.shape[1 - self._batch_axis]
            counted = inside_lengths(lengths, steps, batch_first=self._batch_first)
        return as_real_array(name, array, self._dtype, counted=counted)

    def _output_gradient(self, dy: ArrayLike, tape: Tape) -> Array:
        """Convert and check dy."""
        array = as_real_array("dy", dy, self._dtype if tape._lengths is None else None)
        layout = "T, M" if tape._rows is None else "B, T, M" if self._batch_first else "T, B, M"
        check_shape("dy", array, tape._y_shape, f"({layout})")
        array = self._cast("dy", array, tape._lengths)
        return array if tape._rows is not None else np.expand_dims(array, self._batch_axis)

    def _member(self, name: str, value: ArrayLike, rows: int | None) -> Array:
        """Convert and check one array of a state."""
        array = as_real_array(name, value, self._dtype)
        parts = self._num_layers * self.num_directions
        H = self._hidden_size
        if rows is None:
            check_shape(name, array, (parts, H), "(L*D, H)")
            return np.expand_dims(array, 1)
        check_shape(name, array, (parts, rows, H), "(L*D, B, H)")
        return array

    @abstractmethod
    def _members(self, name: str, state: Any, rows: int | None) -> tuple[Any, ...]:
        """Convert and check a state, into a tuple of arrays in the order of ``_states``."""

    @abstractmethod
    def _state(self, members: tuple[Array, ...]) -> State:
        """Turn a tuple of arrays into a state as the user sees it."""

    def _outputs(
        self, y: Array, members: tuple[Array, ...], rows: int | None
    ) -> tuple[Array, State]:
        """Give results the structure of the arguments; drop the batch axis if unbatched."""
        if rows is None:
            y = y.squeeze(self._batch_axis)
            members = tuple(member.squeeze(1) for member in members)
        return y, self._state(members)

    def _state_grads(
        self, steps: list[tuple[Array, ...]], rows: int | None
    ) -> dict[str, dict[str, Array]]:
        """Name the gradients of every layer's and direction's states, in the layer's layout."""
        if rows is None:
            steps = [tuple(a.squeeze(self._batch_axis) for a in part) for part in steps]
        named = (dict(zip(self._states, part, strict=True)) for part in steps)
        return dict(zip(self._parts(), named, strict=True))

    def _next_call(self) -> int:
        """Take the next call number; two threads get two."""
        with self._lock:
            number = self._call_number
            self._call_number = (number + 1) % _UINT64
        return number

    def _give_back_call(self, number: int) -> None:
        """Undo ``_next_call`` for a forward that failed, unless another has begun since."""
        with self._lock:
            if self._call_number == (number + 1) % _UINT64:
                self._call_number = number

    # ------------------------------------------------------- in a Sequential

    def _interface(self) -> Interface:
        return Interface(
            self._input_size,
            self.output_size,
            self._dtype,
            batch_first=self._batch_first,
            needs_steps=True,
            has_state=True,
        )

    def _output_lengths(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        return lengths

    def _infer(self, x: Any, context: Context) -> tuple[Array, State]:
        return self(x, context.state, lengths=context.lengths)

    def _train(self, x: Any, context: Context) -> tuple[Array, State, Tape]:
        return self.forward(
            x,
            context.state,
            lengths=context.lengths,
            dropout=context.dropout,
            checkpoint=context.checkpoint,
        )

    def _backprop(
        self, tape: Tape, dy: Array, dstate: Any
    ) -> tuple[Array, State, dict[str, Array]]:
        g = self.backward(tape, dy, dstate, keep=True)
        return g.x, g.state, g.params

    def _backprop_traced(
        self, tape: Tape, dy: Array, dstate: Any
    ) -> tuple[Array, State, dict[str, Array], dict[str, dict[str, Array]]]:
        g = self.backward(tape, dy, dstate, keep=True, return_state_grads=True)
        assert g.state_grads is not None
        return g.x, g.state, g.params, g.state_grads

    def _stream(self, batch_size: int) -> Frozen:
        return self.freeze(batch_size)

    # ---------------------------------------------------- copies and printing

    def _options(self) -> dict[str, Any]:
        """Every keyword of the constructor with this layer's value."""
        names = (
            "num_layers", "bias", "bidirectional", "merge", "dropout", "recurrent_dropout",
            "batch_first", "dtype", "init", "seed",
        )  # fmt: skip
        options = {name: getattr(self, name) for name in (*self._own_options, *names)}
        options["dtype"] = self._dtype.name
        return options

    def __repr__(self) -> str:
        """Return the call that makes an equal layer with the same seed."""
        defaults = type(self).__init__.__kwdefaults__ or {}
        texts = [str(self._input_size), str(self._hidden_size)]
        for name, value in self._options().items():
            # The seed is always told: its default, None, is never its value.
            if name not in defaults or value != defaults[name]:
                texts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(texts)})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is rebuilt: the compiled stack, the lock and the cached lists."""
        state = self.__dict__.copy()
        for name in ("_stack", "_lock", "_arrays"):
            del state[name]
        state["_params"] = dict(self._params)
        state["_dtype"] = self._dtype.name
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the layer around the parameters of a copy or a pickle."""
        self.__dict__.update(state)
        self._dtype = np.dtype(state["_dtype"])
        self._adopt(state["_params"])

    def _extra_state(self) -> dict[str, str]:
        """Return what a checkpoint keeps besides the parameters, so that dropout masks replay."""
        return {"seed": str(self._seed), "call_number": str(self._call_number)}

    def _load_extra_state(self, state: Mapping[str, str]) -> None:
        """Take the seed and the call number of a checkpoint, or change nothing and raise."""
        values = as_mask_state(state)
        if values is not None:
            with self._lock:
                self._seed, self._call_number = values


class _SingleState(_Recurrent[Array]):
    """A layer whose state is h alone."""

    def _members(self, name: str, state: Any, rows: int | None) -> tuple[Array]:
        return (self._member(name, state, rows),)

    def _state(self, members: tuple[Array, ...]) -> Array:
        return members[0]


class RNN(_SingleState):
    """The vanilla recurrent network.

    ``h = act(W x + b_ih + U h' + b_hh)``, where h' is the previous state, W is ``weight_ih`` and U
    is ``weight_hh``.

    Parameters
    ----------
    input_size
        I, the number of features of x.
    hidden_size
        H, the number of units of each layer and direction.
    nonlinearity : default "tanh"
        The activation act: "tanh" or "relu".
    num_layers : default 1
        L, how many layers are stacked; each reads the merged output of the one below.
    bias : default True
        Whether there are biases.
    bidirectional : default False
        Whether a second network reads every sequence from its end to its start.
    merge : default "concat"
        How two directions become one output, after every layer: "concat", "sum", "mean" or "mul".
        With one direction there is nothing to merge.
    dropout : default 0.0
        Probability in [0, 1) of dropping an element of the merged output of every layer but the
        last, in ``forward``.
    recurrent_dropout : default 0.0
        Probability in [0, 1) of dropping a unit of h' inside ``U (m*h')``, in ``forward``: one mask
        for each row and unit, the same for all steps of a call.
    batch_first : default False
        Whether x and y are (B, T, ·); states are (L*D, B, H) even so.
    dtype : default "float32"
        "float32" or "float64".
    init : default "orthogonal"
        "orthogonal": Glorot-uniform W, orthogonal U, zero biases; "pytorch": all uniform in
        ±1/sqrt(H).
    seed : default None
        Integer in [0, 2**64) of the initial parameters and the dropout masks; None draws one,
        which ``layer.seed`` and ``repr`` tell.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type or out of range.
    MemoryError
        If the parameters do not fit the memory.

    References
    ----------
    Elman, Finding structure in time, 1990.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> rnn = rc.RNN(3, 4, nonlinearity="relu", seed=0)
    >>> y, h = rnn(np.ones((5, 2, 3)))
    >>> y.shape, h.shape, bool((y[-1] == h[0]).all())
    ((5, 2, 4), (1, 2, 4), True)
    """

    _cell = "rnn"
    _gates = ("h",)
    _own_options = ("nonlinearity",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        nonlinearity: str = "tanh",
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        merge: str = "concat",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        batch_first: bool = False,
        dtype: DTypeLike = "float32",
        init: str = "orthogonal",
        seed: int | None = None,
    ) -> None:
        self._nonlinearity = as_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            bidirectional=bidirectional,
            merge=merge,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            batch_first=batch_first,
            dtype=dtype,
            init=init,
            seed=seed,
        )

    @property
    def nonlinearity(self) -> str:
        """The activation: "tanh" or "relu"."""
        return self._nonlinearity


class LSTM(_Recurrent[Pair]):
    """Long short-term memory, with a forget gate.

    With ``a = W x + b_ih + U h' + b_hh``, one block of H rows for each gate::

        i = sigmoid(a_i)    f = sigmoid(a_f)    g = tanh(a_g)    o = sigmoid(a_o)
        c = f*c' + i*g
        h = o*tanh(c)

    The state is the pair ``(h, c)``. Rows of the parameters are in the order i, f, g, o.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, merge
        As for ``RNN``.
    dropout, recurrent_dropout, batch_first, dtype, seed
        As for ``RNN``.
    init : default "orthogonal"
        As for ``RNN``; under "orthogonal" the forget part of every ``bias_ih`` is 1.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for ``RNN``.

    References
    ----------
    Hochreiter and Schmidhuber, Long short-term memory, 1997. Gers, Schmidhuber and Cummins,
    Learning to forget: continual prediction with LSTM, 2000 (the forget gate).

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> lstm = rc.LSTM(3, 4, seed=0)
    >>> y, (h, c) = lstm(np.ones((5, 2, 3)))
    >>> y, (h, c) = lstm(np.ones((5, 2, 3)), (h, c))
    >>> h.shape, c.shape
    ((1, 2, 4), (1, 2, 4))
    """

    _cell = "lstm"
    _gates = ("i", "f", "g", "o")
    _states = ("h", "c")
    _forget_gate = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        merge: str = "concat",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        batch_first: bool = False,
        dtype: DTypeLike = "float32",
        init: str = "orthogonal",
        seed: int | None = None,
    ) -> None:
        # The signature is repeated so that Python's own errors about arguments name LSTM.
        super().__init__(
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            bidirectional=bidirectional,
            merge=merge,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            batch_first=batch_first,
            dtype=dtype,
            init=init,
            seed=seed,
        )

    def _members(self, name: str, state: Any, rows: int | None) -> tuple[Any, ...]:
        if not isinstance(state, (tuple, list)):
            raise TypeError(f"{name}: expected a pair (h, c), got {type(state).__name__}")
        if len(state) != len(self._states):
            raise ValueError(f"{name}: expected a pair (h, c), got {len(state)} members")
        # A missing gradient is zero; a missing state would be a mistake.
        optional = name == "dstate"
        return tuple(
            None
            if member is None and optional
            else self._member(f"{name}[{k}] ({s})", member, rows)
            for k, (s, member) in enumerate(zip(self._states, state, strict=True))
        )

    def _state(self, members: tuple[Array, ...]) -> Pair:
        h, c = members
        return h, c


class _Gated(_SingleState):
    """What GRU and MGU have in common: where the reset acts and what the update gate means."""

    _own_options = ("reset_after", "update_gate")
    _reset_after: bool
    _update_gate: str

    @property
    def reset_after(self) -> bool:
        """Whether the reset multiplies ``U h' + b_hn`` rather than h'."""
        return self._reset_after

    @property
    def update_gate(self) -> str:
        """What an open update gate does: "keep" the state or "write" the candidate."""
        return self._update_gate


class GRU(_Gated):
    """The gated recurrent unit, in all four forms found in the literature.

    With ``a = W x + b_ih + U h' + b_hh`` for the gates r and z::

        r = sigmoid(a_r)    z = sigmoid(a_z)
        n = tanh(W_n x + b_in + r*(U_n h' + b_hn))       reset_after=True
        n = tanh(W_n x + b_in + U_n (r*h') + b_hn)       reset_after=False
        h = z*h' + (1-z)*n                               update_gate="keep"
        h = (1-z)*h' + z*n                               update_gate="write"

    The defaults are the equations of PyTorch, Keras and ONNX. Rows of the parameters are in the
    order r, z, n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, merge
        As for ``RNN``.
    reset_after : default True
        Whether the reset acts after the recurrent product, ``b_hn`` inside it, or before.
    update_gate : default "keep"
        Whether an open update gate keeps the state or writes the candidate.
    dropout, recurrent_dropout, batch_first, dtype, init, seed
        As for ``RNN``. With ``reset_after=False`` the recurrent mask acts in ``U_n (r*(m*h'))``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for ``RNN``.

    References
    ----------
    Cho et al., Learning phrase representations using RNN encoder-decoder for statistical machine
    translation, 2014, arXiv:1406.1078, equations 5-8 (reset before, "keep"). Chung et al.,
    Empirical evaluation of gated recurrent neural networks on sequence modeling, 2014,
    arXiv:1412.3555 ("write").

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> gru = rc.GRU(3, 4, bidirectional=True, merge="sum", seed=0)
    >>> y, h = gru(np.ones((5, 2, 3)))
    >>> y.shape, h.shape
    ((5, 2, 4), (2, 2, 4))
    """

    _cell = "gru"
    _gates = ("r", "z", "n")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        reset_after: bool = True,
        update_gate: str = "keep",
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        merge: str = "concat",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        batch_first: bool = False,
        dtype: DTypeLike = "float32",
        init: str = "orthogonal",
        seed: int | None = None,
    ) -> None:
        self._reset_after = as_flag("reset_after", reset_after)
        self._update_gate = as_choice("update_gate", update_gate, ("keep", "write"))
        super().__init__(
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            bidirectional=bidirectional,
            merge=merge,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            batch_first=batch_first,
            dtype=dtype,
            init=init,
            seed=seed,
        )


class MGU(_Gated):
    """The minimal gated unit: a GRU whose one gate f both resets and updates.

    With ``a = W x + b_ih + U h' + b_hh`` for the gate f::

        f = sigmoid(a_f)
        n = tanh(W_n x + b_in + U_n (f*h') + b_hn)       reset_after=False
        n = tanh(W_n x + b_in + f*(U_n h' + b_hn))       reset_after=True
        h = (1-f)*h' + f*n                               update_gate="write"
        h = f*h' + (1-f)*n                               update_gate="keep"

    Rows of the parameters are in the order f, n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, merge
        As for ``RNN``.
    reset_after : default False
        Whether the gate acts after the recurrent product, ``b_hn`` inside it, or before.
    update_gate : default "write"
        Whether an open gate keeps the state or writes the candidate.
    dropout, recurrent_dropout, batch_first, dtype, init, seed
        As for ``GRU``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As for ``RNN``.

    References
    ----------
    Zhou, Wu, Zhang and Zhou, Minimal gated unit for recurrent neural networks, 2016,
    arXiv:1603.09420.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> mgu = rc.MGU(3, 4, seed=0)
    >>> {name: p.shape for name, p in mgu.params.items()}
    {'weight_ih_l0': (8, 3), 'weight_hh_l0': (8, 4), 'bias_ih_l0': (8,), 'bias_hh_l0': (8,)}
    """

    _cell = "mgu"
    _gates = ("f", "n")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        reset_after: bool = False,
        update_gate: str = "write",
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        merge: str = "concat",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        batch_first: bool = False,
        dtype: DTypeLike = "float32",
        init: str = "orthogonal",
        seed: int | None = None,
    ) -> None:
        self._reset_after = as_flag("reset_after", reset_after)
        self._update_gate = as_choice("update_gate", update_gate, ("keep", "write"))
        super().__init__(
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            bidirectional=bidirectional,
            merge=merge,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            batch_first=batch_first,
            dtype=dtype,
            init=init,
            seed=seed,
        )


# ------------------------------------------------------- checks of single arguments


def _strict_bool(name: str, value: Any) -> None:
    """Refuse all but True and False: nothing that merely looks true may turn an option on."""
    if value is not True and value is not False:
        raise TypeError(f"{name}: expected True or False, got {as_text(value)}")


def _raise_used() -> NoReturn:
    """Say that the tape is gone."""
    raise ValueError(
        "tape: expected an unused one, got one that backward has consumed "
        "(backward(..., keep=True) leaves it usable)"
    )
