"""The definition of correct: every layer of this package in plain NumPy, float64, step by step.

Nothing here is fast and everything here is meant to be read. The compiled layers are tested
against this file, so wherever prose and code disagree, this code decides. It imports NumPy and
the standard library alone.

Backpropagation through time in one page
----------------------------------------
A recurrent network applies the same weights at every step,

    h_t = step(x_t, h_{t-1}; W, U, b),          t = 0, 1, ..., T-1,

and a loss L reads some or all of the h_t. Unfold the loop: it is an ordinary deep network with
T layers that happen to share one W. Write dh_t for dL/dh_t, and J_t for the Jacobian of h_t by
h_{t-1}. Two paths lead from h_t to the loss, so

    dh_t  =  dy_t                       direct: the loss reads y_t = h_t
          +  J_{t+1}^T dh_{t+1}         implicit: h_t feeds the next step

and the gradient is found by walking time backwards with one vector in hand (Werbos 1990).
The gradient of a weight also has two parts at each step, because h_t depends on W

    explicitly   this step multiplies by W; h_{t-1} is held fixed for it. The contribution is
                 an outer product of what came out of the product and what went into it,
                 (dL/da_t) x_t^T. It is *added* to dW, since all steps share W:
                     dL/dW = sum over t of the explicit part of step t.
    implicitly   W was used by all earlier steps too, and h_{t-1} carries their effect here.
                 No term is written for it: sending dL/dh_{t-1} = U^T (dL/da_t) one step back
                 lets those steps add explicit parts of their own.

(Pascanu et al. 2013 call the explicit part the immediate partial derivative.) In the code below
every explicit part is a line `d... += ...` marked `explicit`, in `affine_backward` and in
`candidate_after_backward`; every implicit part is a gradient handed back to the caller, marked
`implicit`. The loop that carries it is `sequence_backward`.

How to read the code
--------------------
* Functions come in pairs. The backward half stands under the forward half and walks its lines
  in reverse order; each line ends with the forward line that it differentiates.
* A batch is a matrix with one sequence in each row, so the paper's `W x` is `x @ W.T` here.
* `d` before a name is the gradient of the loss with respect to it; `h'` in a comment, `h_prev`
  in code, is the state before the step. Derivatives of activations take the *output*.
* Sizes: T steps, B batch rows, N rows still running at a step, I inputs, H hidden units,
  G gates, L layers, D directions, M features of a layer's output.
* Biases that are switched off are zeros here; their gradients are dropped.

Order of the file: configuration, dropout masks, activations, the affine map, vanilla cell, LSTM,
the two candidates and two updates that GRU and MGU share, GRU, MGU, sequence (one layer, one
direction, all of time), merge, layer (all directions), and the stack: `forward`, `backward`,
`gates`.

References
----------
.. [1] J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
.. [2] P. J. Werbos, "Backpropagation through time: what it does and how to do it",
   Proceedings of the IEEE 78(10), 1990.
.. [3] S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997.
.. [4] F. A. Gers, J. Schmidhuber and F. Cummins, "Learning to forget: continual prediction with
   LSTM", Neural Computation 12(10), 2000.
.. [5] A. Graves and J. Schmidhuber, "Framewise phoneme classification with bidirectional LSTM
   and other neural network architectures", Neural Networks 18, 2005.
.. [6] K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical
   machine translation", EMNLP 2014, section 2.3.
.. [7] J. Chung, C. Gulcehre, K. Cho and Y. Bengio, "Empirical evaluation of gated recurrent
   neural networks on sequence modeling", arXiv:1412.3555, 2014, section 3.2.
.. [8] G.-B. Zhou, J. Wu, C.-L. Zhang and Z.-H. Zhou, "Minimal gated unit for recurrent neural
   networks", International Journal of Automation and Computing 13(3), 2016.
.. [9] M. Schuster and K. K. Paliwal, "Bidirectional recurrent neural networks", IEEE
   Transactions on Signal Processing 45(11), 1997.
.. [10] W. Zaremba, I. Sutskever and O. Vinyals, "Recurrent neural network regularization",
   arXiv:1409.2329, 2014.
.. [11] Y. Gal and Z. Ghahramani, "A theoretically grounded application of dropout in recurrent
   neural networks", NIPS 2016.
.. [12] G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators",
   OOPSLA 2014.
.. [13] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
   networks", ICML 2013.

Examples
--------
>>> import numpy as np
>>> config = Config("gru", input_size=2, hidden_size=3)
>>> rng = np.random.default_rng(0)
>>> params = {k: rng.standard_normal(s) for k, s in config.parameter_shapes().items()}
>>> y, h, tape = forward(config, params, rng.standard_normal((5, 4, 2)), lengths=[5, 0, 2, 3])
>>> y.shape, h.shape
((5, 4, 3), (1, 4, 3))
>>> grads = backward(config, params, tape, dy=np.ones_like(y))
>>> grads.x.shape, grads.params["weight_hh_l0"].shape
((5, 4, 2), (9, 3))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Config", "Gradients", "Tape", "backward", "dropout_mask", "forward", "gates"]

Array: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
#: The state of one layer and direction, or its gradient: (h,), or (h, c) for LSTM.
Members: TypeAlias = tuple[Array, ...]
#: The state as users see it: h, or the pair (h, c) for LSTM.
State: TypeAlias = Array | tuple[Array, Array]
Saved: TypeAlias = dict[str, Array]


# ------------------------------------------------------------------------------- configuration

#: Gates of each cell in the order of the rows of W, U and b. The vanilla cell has no gate; its
#: one activation stands in the same place.
GATES: dict[str, tuple[str, ...]] = {
    "rnn": ("h",),
    "lstm": ("i", "f", "g", "o"),
    "gru": ("r", "z", "n"),
    "mgu": ("f", "n"),
}

#: What a step saves beside its gates, because computing it again would take another product (q)
#: or the whole past (c).
ALSO_SAVED: dict[str, tuple[str, ...]] = {"rnn": (), "lstm": ("c",), "gru": ("q",), "mgu": ("q",)}

#: Each cell's default of (reset_after, update_gate): PyTorch's for GRU, the paper's for MGU [8]_.
#: The other two cells have neither gate, and know no other value.
FORMS: dict[str, tuple[bool, str]] = {
    "rnn": (True, "keep"),
    "lstm": (True, "keep"),
    "gru": (True, "keep"),
    "mgu": (False, "write"),
}

MERGES = ("concat", "sum", "mean", "mul")
NONLINEARITIES = ("tanh", "relu")
UPDATE_GATES = ("keep", "write")


@dataclass(frozen=True)
class Config:
    """What a stack of recurrent layers is, apart from its weights.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru", "mgu"}
        Equations of a step.
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int, default 1
        L, at least 1.
    bidirectional : bool, default False
        Whether each layer also runs backwards in time (D = 2).
    merge : {"concat", "sum", "mean", "mul"}, default "concat"
        How the two directions combine, after every layer and before dropout.
    bias : bool, default True
        Whether there are bias_ih and bias_hh.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        Activation of the vanilla cell; the other cells know only "tanh".
    reset_after : bool, default True for GRU, False for MGU
        GRU and MGU: whether the reset gate acts after the product with U, or before it.
    update_gate : {"keep", "write"}, default "keep" for GRU, "write" for MGU
        GRU and MGU: whether an open update gate keeps h' or writes the candidate.
    dropout, recurrent_dropout : float, default 0.0
        Probabilities in [0, 1): on the merged output of every layer but the last, and on h'
        inside the recurrent product.

    Raises
    ------
    ValueError
        If an option is unknown, out of range, or has no meaning for the cell.

    Examples
    --------
    >>> config = Config("lstm", input_size=4, hidden_size=3, bidirectional=True, merge="sum")
    >>> config.num_directions, config.num_gates, config.output_size
    (2, 4, 3)
    >>> config.parameter_shapes()["weight_hh_l0_reverse"]
    (12, 3)
    """

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    merge: str = "concat"
    bias: bool = True
    nonlinearity: str = "tanh"
    # None becomes the cell's own default below; whoever reads the fields never sees it.
    reset_after: bool = None  # type: ignore[assignment]
    update_gate: str = None  # type: ignore[assignment]
    dropout: float = 0.0
    recurrent_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be run, and options that this cell would ignore."""
        check_choice("cell", self.cell, tuple(GATES))
        for name, default in zip(("reset_after", "update_gate"), FORMS[self.cell], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        check_choice("merge", self.merge, MERGES)
        check_choice("nonlinearity", self.nonlinearity, NONLINEARITIES)
        check_choice("update_gate", self.update_gate, UPDATE_GATES)
        for name in ("input_size", "hidden_size", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("dropout", "recurrent_dropout"):
            check_probability(name, getattr(self, name))
        if self.dropout > 0 and self.num_layers == 1:
            raise ValueError(
                f"dropout: expected 0 with one layer (it acts between layers), got {self.dropout}"
            )
        if self.cell != "rnn" and self.nonlinearity != "tanh":
            raise ValueError(f"nonlinearity: expected 'tanh' for {self.cell}, got 'relu'")
        form = self.reset_after, self.update_gate
        if self.cell in ("rnn", "lstm") and form != FORMS[self.cell]:
            raise ValueError(f"reset_after, update_gate: {self.cell} has no such gate")

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def num_gates(self) -> int:
        """G: rows of W per hidden unit."""
        return len(GATES[self.cell])

    @property
    def num_states(self) -> int:
        """Members of the state: 2, (h, c), for LSTM, else 1."""
        return 2 if self.cell == "lstm" else 1

    @property
    def output_size(self) -> int:
        """M: features of every layer's output, and so of the next layer's input."""
        directions = self.num_directions if self.merge == "concat" else 1
        return directions * self.hidden_size

    def names(self) -> list[str]:
        """Name every layer and direction in the order of the state: l0, l0_reverse, l1, ..."""
        suffixes = ("", "_reverse")[: self.num_directions]
        return [f"l{layer}{suffix}" for layer in range(self.num_layers) for suffix in suffixes]

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Map each parameter's name to its shape, in PyTorch's names and order."""
        rows = self.num_gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for k, name in enumerate(self.names()):
            first = k < self.num_directions
            shapes[f"weight_ih_{name}"] = (rows, self.input_size if first else self.output_size)
            shapes[f"weight_hh_{name}"] = (rows, self.hidden_size)
            if self.bias:
                shapes[f"bias_ih_{name}"] = (rows,)
                shapes[f"bias_hh_{name}"] = (rows,)
        return shapes


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_probability(name: str, p: float) -> None:
    """Raise ValueError unless 0 <= p < 1 (which NaN is not)."""
    if not 0 <= p < 1:
        raise ValueError(f"{name}: expected a probability in [0, 1), got {p}")


# ------------------------------------------------------------------------------- dropout masks

#: `kind` of a mask: between layers, one mask for every step (Zaremba et al. 2014), or recurrent,
#: one mask for all steps of a call (Gal and Ghahramani 2016). The layer ``Dropout`` has kind 2, for
#: either: its masks are not those of a recurrent layer with the same seed.
BETWEEN_LAYERS, RECURRENT = 0, 1

#: 2^64 divided by the golden ratio, made odd; then the two factors of the splitmix64 finaliser.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit integers, wrapping around (finaliser of splitmix64, Steele et al. 2014)."""
    z = (z ^ (z >> np.uint64(30))) * FACTORS[0]
    z = (z ^ (z >> np.uint64(27))) * FACTORS[1]
    return z ^ (z >> np.uint64(31))


def fold(s: npt.NDArray[np.uint64], v: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Stir the value v into the hash s, wrapping around."""
    return mix(s + GOLDEN * (v + np.uint64(1)))


def dropout_mask(
    kind: int,
    seed: int,
    call: int,
    layer: int,
    direction: int,
    t: int | None,
    rows: int,
    features: int,
    p: float,
) -> Array:
    """Compute an inverted dropout mask as a pure function of where it is used.

    No generator is advanced: every element is a hash of (seed, kind, call, layer, direction, t,
    row, feature), so any part of a mask can be had in any order, on any thread.

    Parameters
    ----------
    kind : int
        0 between layers, 1 recurrent, 2 the layer ``Dropout``.
    seed, call : int
        Seed of the layer, and its call number at the forward pass.
    layer, direction : int
        Index of the layer whose output (kind 0) or recurrence (kind 1) is masked; 0 forward, 1
        reverse. Kind 0 masks the merged output: direction 0. For kind 2 both are 0.
    t : int or None
        Step on the user's own time axis; None (the value 2^64 - 1) for one mask over all steps.
    rows, features : int
        Size of the mask: batch rows and columns, each counted from 0.
    p : float
        Probability of dropping, in [0, 1).

    Returns
    -------
    ndarray
        (rows, features): 0 where dropped, 1 / (1 - p) where kept.

    Raises
    ------
    ValueError
        If p is no probability or an integer is not in [0, 2^64).

    Examples
    --------
    >>> dropout_mask(0, seed=7, call=0, layer=0, direction=0, t=3, rows=2, features=4, p=0.5)
    array([[0., 2., 2., 0.],
           [0., 2., 2., 0.]])
    """
    check_probability("p", p)
    last = 2**64 - 1
    values = (kind, call, layer, direction, last if t is None else t)
    if not all(0 <= value <= last for value in (seed, *values)):
        raise ValueError("dropout_mask: expected integers in [0, 2**64)")
    # Arrays, not scalars: NumPy warns when a scalar wraps around.
    bits = np.full((1, 1), seed, dtype=np.uint64)
    for value in values:
        bits = fold(bits, np.full((1, 1), value, dtype=np.uint64))
    bits = fold(bits, np.arange(rows, dtype=np.uint64)[:, None])
    bits = fold(bits, np.arange(features, dtype=np.uint64)[None, :])
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits: exact, in [0, 1)
    return np.where(uniform >= p, 1.0 / (1.0 - p), 0.0)


# --------------------------------------------------------------------------------- activations


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), without overflow: the exponential only ever sees -|a|."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def d_sigmoid(y: Array) -> Array:
    """Differentiate y = sigmoid(a) by a, from y."""
    return y * (1.0 - y)


def tanh(a: Array) -> Array:
    """Hyperbolic tangent."""
    return np.tanh(a)


def d_tanh(y: Array) -> Array:
    """Differentiate y = tanh(a) by a, from y."""
    return 1.0 - y * y


def relu(a: Array) -> Array:
    """max(a, 0); NaN stays NaN."""
    return np.maximum(a, 0.0)


def d_relu(y: Array) -> Array:
    """Differentiate y = relu(a) by a, from y: 0 at the kink."""
    return np.where(y > 0, 1.0, 0.0)


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (tanh, d_tanh),
    "relu": (relu, d_relu),
}


# ------------------------------------------------------------- weights, a step, the affine map


class Weights(NamedTuple):
    """The weights of one layer and direction, or the gradients added up for them."""

    W: Array  # (G*H, I)
    U: Array  # (G*H, H)
    b_ih: Array  # (G*H,)
    b_hh: Array  # (G*H,)

    def gate(self, k: int) -> Weights:
        """View the H rows of gate k; the only place where gates are found by their offset."""
        H = self.U.shape[1]
        rows = slice(k * H, (k + 1) * H)
        return Weights(self.W[rows], self.U[rows], self.b_ih[rows], self.b_hh[rows])


class Step(NamedTuple):
    """What a step reads beside the weights; N rows are still running."""

    x: Array  # (N, I)
    state: Members  # h' (N, H), and c' (N, H) for LSTM
    m: Array  # (N, H): recurrent dropout mask, ones without dropout


def affine(x: Array, v: Array, p: Weights) -> Array:
    """Compute a = W x + b_ih + U v + b_hh: (N, I), (N, H) -> (N, rows of W)."""
    return x @ p.W.T + p.b_ih + v @ p.U.T + p.b_hh


def affine_backward(da: Array, x: Array, v: Array, p: Weights, dp: Weights) -> tuple[Array, Array]:
    """Add this step's use of the weights to dp; return dx and dv.

    `@` with the transpose of da also sums over the batch: rows share the weights as steps do.
    """
    dp.b_hh[...] += da.sum(axis=0)  # explicit     a = W x + b_ih + U v + b_hh
    dp.b_ih[...] += da.sum(axis=0)  # explicit
    dp.U[...] += da.T @ v  # explicit: dL/dU of this step, v = h' held fixed
    dp.W[...] += da.T @ x  # explicit: dL/dW of this step
    dv = da @ p.U  # implicit: from here the earlier steps, which used the weights too, get theirs
    dx = da @ p.W
    return dx, dv


# -------------------------------------------------------------------------------- vanilla cell


def rnn_forward(step: Step, p: Weights, config: Config) -> tuple[Members, Saved]:
    """Vanilla cell (Elman 1990): h = act(W x + b_ih + U (m*h') + b_hh).

    Returns the state (h,) and what backward needs: h itself, from which act' follows.
    """
    act, _ = ACTIVATIONS[config.nonlinearity]
    (h_prev,) = step.state
    v = step.m * h_prev
    a = affine(step.x, v, p)
    h = act(a)
    return (h,), {"h": h}


def rnn_backward(
    dstate: Members, saved: Saved, step: Step, p: Weights, dp: Weights, config: Config
) -> tuple[Array, Members, Members]:
    """Return dx, the gradient of the state before the step, and the whole dL/dh of this step."""
    _, d_act = ACTIVATIONS[config.nonlinearity]
    (dh,) = dstate
    (h_prev,) = step.state
    v = step.m * h_prev
    da = dh * d_act(saved["h"])  # h = act(a)
    dx, dv = affine_backward(da, step.x, v, p, dp)  # a = W x + b_ih + U v + b_hh
    dh_prev = step.m * dv  # v = m * h'                  implicit
    return dx, (dh_prev,), (dh,)


# ---------------------------------------------------------------------------------------- LSTM


def lstm_forward(step: Step, p: Weights, config: Config) -> tuple[Members, Saved]:
    """LSTM (Hochreiter and Schmidhuber 1997) with forget gate (Gers et al. 2000).

    i, f, o = sigmoid(.),  g = tanh(.),  c = f*c' + i*g,  h = o*tanh(c).

    Returns the state (h, c) and what backward needs: i, f, g, o and c; tanh(c) is recomputed.
    """
    h_prev, c_prev = step.state
    v = step.m * h_prev
    a = affine(step.x, v, p)
    a_i, a_f, a_g, a_o = np.split(a, config.num_gates, axis=1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), tanh(a_g), sigmoid(a_o)
    c = f * c_prev + i * g
    h = o * tanh(c)
    return (h, c), {"i": i, "f": f, "g": g, "o": o, "c": c}


def lstm_backward(
    dstate: Members, saved: Saved, step: Step, p: Weights, dp: Weights, config: Config
) -> tuple[Array, Members, Members]:
    """Return dx, the gradients of (h', c'), and the whole (dL/dh, dL/dc) of this step.

    All paths are followed, those through the gates included: full BPTT (Graves and Schmidhuber
    2005), not the truncated gradient of the 1997 paper. Along c the implicit part is only
    multiplied by f, never by U: while f is near 1 the error neither fades nor explodes.
    """
    dh, dc_next = dstate
    h_prev, c_prev = step.state
    i, f, g, o, c = (saved[name] for name in "ifgoc")
    v = step.m * h_prev
    do = dh * tanh(c)  # h = o * tanh(c)
    dc = dc_next + dh * o * d_tanh(tanh(c))  # h = o * tanh(c), beside the path from step t+1
    dc_prev = dc * f  # c = f*c' + i*g            implicit
    df = dc * c_prev  # c = f*c' + i*g
    di = dc * g  # c = f*c' + i*g
    dg = dc * i  # c = f*c' + i*g
    da_i, da_f, da_g, da_o = (
        di * d_sigmoid(i),  # i = sigmoid(a_i)
        df * d_sigmoid(f),  # f = sigmoid(a_f)
        dg * d_tanh(g),  # g = tanh(a_g)
        do * d_sigmoid(o),  # o = sigmoid(a_o)
    )
    da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)  # a_i, a_f, a_g, a_o = split(a)
    dx, dv = affine_backward(da, step.x, v, p, dp)  # a = W x + b_ih + U v + b_hh
    dh_prev = step.m * dv  # v = m * h'            implicit
    return dx, (dh_prev, dc_prev), (dh, dc)


# ------------------------------------------------- what GRU and MGU share: candidate and update
#
# A candidate takes the reset gate r, (N, H), and the weights of gate n alone. It returns n and
# the one array q that its backward half needs beside n.


def candidate_after(x: Array, v: Array, r: Array, p: Weights) -> tuple[Array, Array]:
    """Reset after the product: n = tanh(W x + b_in + r * (U v + b_hn)).

    The form of cuDNN, PyTorch and Keras (reset_after=True): all of U v can be computed before r
    is known. b_hn stays inside the reset product, so it is not the same as b_in.

    Saves q = U v + b_hn: r's gradient needs it, and computing it again is a matrix product.
    """
    q = v @ p.U.T + p.b_hh
    a = x @ p.W.T + p.b_ih + r * q
    n = tanh(a)
    return n, q


def candidate_after_backward(
    dn: Array,
    saved: tuple[Array, Array],
    inputs: tuple[Array, Array, Array],
    p: Weights,
    dp: Weights,
) -> tuple[Array, Array, Array]:
    """Return dx, dv, dr; saved is (n, q), inputs are (x, v, r)."""
    n, q = saved
    x, v, r = inputs
    da = dn * d_tanh(n)  # n = tanh(a)
    dr = da * q  # a = W x + b_in + r*q
    dq = da * r  # a = W x + b_in + r*q
    dp.b_ih[...] += da.sum(axis=0)  # explicit     a = W x + b_in + r*q
    dp.W[...] += da.T @ x  # explicit
    dx = da @ p.W
    dp.b_hh[...] += dq.sum(axis=0)  # explicit     q = U v + b_hn
    dp.U[...] += dq.T @ v  # explicit
    dv = dq @ p.U  # implicit
    return dx, dv, dr


def candidate_before(x: Array, v: Array, r: Array, p: Weights) -> tuple[Array, Array]:
    """Reset before the product, as published: n = tanh(W x + b_in + U (r*v) + b_hn).

    Equation 8 of Cho et al. 2014. Saves q = r*v.
    """
    q = r * v
    a = affine(x, q, p)
    n = tanh(a)
    return n, q


def candidate_before_backward(
    dn: Array,
    saved: tuple[Array, Array],
    inputs: tuple[Array, Array, Array],
    p: Weights,
    dp: Weights,
) -> tuple[Array, Array, Array]:
    """Return dx, dv, dr; saved is (n, q), inputs are (x, v, r)."""
    n, q = saved
    x, v, r = inputs
    da = dn * d_tanh(n)  # n = tanh(a)
    dx, dq = affine_backward(da, x, q, p, dp)  # a = W x + b_in + U q + b_hn
    dv = dq * r  # q = r*v                  implicit
    dr = dq * v  # q = r*v
    return dx, dv, dr


def update_keep(z: Array, h_prev: Array, n: Array) -> Array:
    """Keep the state where the gate is open: h = z*h' + (1-z)*n (equation 7 of Cho et al.)."""
    return z * h_prev + (1.0 - z) * n


def update_keep_backward(
    dh: Array, z: Array, h_prev: Array, n: Array
) -> tuple[Array, Array, Array]:
    """Return dz, dh', dn."""
    dz = dh * (h_prev - n)  # h = z*h' + (1-z)*n
    dh_prev = dh * z  # h = z*h' + (1-z)*n         implicit
    dn = dh * (1.0 - z)  # h = z*h' + (1-z)*n
    return dz, dh_prev, dn


def update_write(z: Array, h_prev: Array, n: Array) -> Array:
    """Write the candidate where the gate is open: h = (1-z)*h' + z*n (Chung et al. 2014)."""
    return (1.0 - z) * h_prev + z * n


def update_write_backward(
    dh: Array, z: Array, h_prev: Array, n: Array
) -> tuple[Array, Array, Array]:
    """Return dz, dh', dn."""
    dz = dh * (n - h_prev)  # h = (1-z)*h' + z*n
    dh_prev = dh * (1.0 - z)  # h = (1-z)*h' + z*n     implicit
    dn = dh * z  # h = (1-z)*h' + z*n
    return dz, dh_prev, dn


CANDIDATES = {
    True: (candidate_after, candidate_after_backward),
    False: (candidate_before, candidate_before_backward),
}
UPDATES = {
    "keep": (update_keep, update_keep_backward),
    "write": (update_write, update_write_backward),
}


# ----------------------------------------------------------------------------------------- GRU


def gru_forward(step: Step, p: Weights, config: Config) -> tuple[Members, Saved]:
    """Gated recurrent unit (Cho et al. 2014, equations 5 to 8), in four forms.

    r, z = sigmoid(.), n one of the two candidates, h one of the two updates. The mask m acts
    inside the products with U only: the update mixes n with the unmasked h'.

    Returns the state (h,) and what backward needs: r, z, n and the candidate's q.
    """
    candidate, _ = CANDIDATES[config.reset_after]
    update, _ = UPDATES[config.update_gate]
    (h_prev,) = step.state
    v = step.m * h_prev
    r = sigmoid(affine(step.x, v, p.gate(0)))
    z = sigmoid(affine(step.x, v, p.gate(1)))
    n, q = candidate(step.x, v, r, p.gate(2))
    h = update(z, h_prev, n)
    return (h,), {"r": r, "z": z, "n": n, "q": q}


def gru_backward(
    dstate: Members, saved: Saved, step: Step, p: Weights, dp: Weights, config: Config
) -> tuple[Array, Members, Members]:
    """Return dx, the gradient of (h',), and the whole dL/dh of this step.

    h' is reached on four ways: the update, the candidate, and the two gates. Their implicit
    parts add up.
    """
    _, candidate_backward = CANDIDATES[config.reset_after]
    _, update_backward = UPDATES[config.update_gate]
    (dh,) = dstate
    (h_prev,) = step.state
    r, z, n, q = (saved[name] for name in "rznq")
    x, v = step.x, step.m * h_prev
    dz, dh_prev, dn = update_backward(dh, z, h_prev, n)  # h = update(z, h', n)
    dx_n, dv_n, dr = candidate_backward(  # n, q = candidate(x, v, r)
        dn, (n, q), (x, v, r), p.gate(2), dp.gate(2)
    )
    da_z = dz * d_sigmoid(z)  # z = sigmoid(a_z)
    dx_z, dv_z = affine_backward(da_z, x, v, p.gate(1), dp.gate(1))  # a_z = W_z x + ... + b_hz
    da_r = dr * d_sigmoid(r)  # r = sigmoid(a_r)
    dx_r, dv_r = affine_backward(da_r, x, v, p.gate(0), dp.gate(0))  # a_r = W_r x + ... + b_hr
    dh_prev = dh_prev + step.m * (dv_r + dv_z + dv_n)  # v = m * h'     implicit
    return dx_r + dx_z + dx_n, (dh_prev,), (dh,)


# ----------------------------------------------------------------------------------------- MGU


def mgu_forward(step: Step, p: Weights, config: Config) -> tuple[Members, Saved]:
    """Minimal gated unit (Zhou et al. 2016): the GRU with one gate f in place of r and of z.

    f = sigmoid(.), n one of the two candidates, h one of the two updates. The paper's form is
    reset_after=False, update_gate="write".

    Returns the state (h,) and what backward needs: f, n and the candidate's q.
    """
    candidate, _ = CANDIDATES[config.reset_after]
    update, _ = UPDATES[config.update_gate]
    (h_prev,) = step.state
    v = step.m * h_prev
    f = sigmoid(affine(step.x, v, p.gate(0)))
    n, q = candidate(step.x, v, f, p.gate(1))
    h = update(f, h_prev, n)
    return (h,), {"f": f, "n": n, "q": q}


def mgu_backward(
    dstate: Members, saved: Saved, step: Step, p: Weights, dp: Weights, config: Config
) -> tuple[Array, Members, Members]:
    """Return dx, the gradient of (h',), and the whole dL/dh of this step.

    The gate is used twice, so its gradient is a sum of two.
    """
    _, candidate_backward = CANDIDATES[config.reset_after]
    _, update_backward = UPDATES[config.update_gate]
    (dh,) = dstate
    (h_prev,) = step.state
    f, n, q = (saved[name] for name in "fnq")
    x, v = step.x, step.m * h_prev
    df_update, dh_prev, dn = update_backward(dh, f, h_prev, n)  # h = update(f, h', n)
    dx_n, dv_n, df_reset = candidate_backward(  # n, q = candidate(x, v, f)
        dn, (n, q), (x, v, f), p.gate(1), dp.gate(1)
    )
    da_f = (df_update + df_reset) * d_sigmoid(f)  # f = sigmoid(a_f)
    dx_f, dv_f = affine_backward(da_f, x, v, p.gate(0), dp.gate(0))  # a_f = W_f x + ... + b_hf
    dh_prev = dh_prev + step.m * (dv_f + dv_n)  # v = m * h'     implicit
    return dx_f + dx_n, (dh_prev,), (dh,)


CELLS = {
    "rnn": (rnn_forward, rnn_backward),
    "lstm": (lstm_forward, lstm_backward),
    "gru": (gru_forward, gru_backward),
    "mgu": (mgu_forward, mgu_backward),
}


# ----------------------------------------------- sequence: one layer, one direction, all of time


class SequenceTape(NamedTuple):
    """What BPTT needs of one layer and direction. Places beyond a row's length are never read."""

    x: Array  # (T, B, I)
    states: Members  # (T, B, H) each: the state *before* step t
    saved: Saved  # name -> (T, B, H)
    m: Array  # (B, H)
    lengths: Integers  # (B,)
    reverse: bool

    def order(self) -> list[int]:
        """List the steps in the order in which this direction takes them."""
        T = len(self.x)
        return list(reversed(range(T))) if self.reverse else list(range(T))

    def rows(self, t: int) -> npt.NDArray[np.intp]:
        """Batch rows that have a step t.

        This is all there is to ragged batches. Other rows are not computed and masked, which
        would fail on NaN (0 * NaN is NaN), they are not there. In reverse, t falls from T-1, and
        a row joins, with its initial state, at its own last step.
        """
        return np.flatnonzero(t < self.lengths)

    def step(self, t: int) -> Step:
        """Gather the inputs of step t for the rows that have it."""
        rows = self.rows(t)
        return Step(self.x[t, rows], tuple(s[t, rows] for s in self.states), self.m[rows])


def sequence_forward(
    x: Array, state: Members, m: Array, lengths: Integers, reverse: bool, p: Weights, config: Config
) -> tuple[Array, Members, SequenceTape]:
    """Run one layer in one direction: (T, B, I), states (B, H) -> y (T, B, H), final states, tape.

    A row's outputs beyond its length are 0, and its final state is that of its last valid step;
    with length 0 that is the initial state.
    """
    T, B, H = *x.shape[:2], config.hidden_size
    step_forward, _ = CELLS[config.cell]
    names = GATES[config.cell] + ALSO_SAVED[config.cell]
    states = tuple(np.zeros((T, B, H)) for _ in state)
    tape = SequenceTape(x, states, {k: np.zeros((T, B, H)) for k in names}, m, lengths, reverse)
    state = tuple(s.copy() for s in state)
    y = np.zeros((T, B, H))
    for t in tape.order():
        rows = tape.rows(t)
        for s, s_before in zip(state, states, strict=True):
            s_before[t, rows] = s[rows]
        state_t, saved_t = step_forward(tape.step(t), p, config)  # h_t, c_t = step(x_t, h', c')
        y[t, rows] = state_t[0]  # y_t = h_t
        for s, s_t in zip(state, state_t, strict=True):
            s[rows] = s_t
        for name, value in saved_t.items():
            tape.saved[name][t, rows] = value
    return y, state, tape


def sequence_backward(
    dy: Array, dstate: Members, tape: SequenceTape, p: Weights, config: Config
) -> tuple[Array, Members, Weights, Members]:
    """Backpropagate through time: the carried `dstate` *is* the implicit part.

    Returns dx (T, B, I), the gradients of the initial states (B, H), those of the weights, and
    the whole gradients dL/dh_t (and dL/dc_t) of all steps, (T, B, H), 0 beyond the lengths.
    A row of length 0 takes part in no step, so its state's gradient passes straight through.
    """
    _, step_backward = CELLS[config.cell]
    dx = np.zeros_like(tape.x)
    dstates = tuple(np.zeros_like(s) for s in tape.states)
    dp = Weights(*(np.zeros_like(array) for array in p))
    dstate = tuple(ds.copy() for ds in dstate)
    for t in reversed(tape.order()):
        rows = tape.rows(t)
        saved_t = {name: value[t, rows] for name, value in tape.saved.items()}
        dstate_t = tuple(ds[rows] for ds in dstate)  # implicit: what steps after t sent back
        dh_t = dstate_t[0] + dy[t, rows]  # y_t = h_t: the direct part joins
        dx[t, rows], dstate_prev, whole = step_backward(  # h_t, c_t = step(x_t, h', c')
            (dh_t, *dstate_t[1:]), saved_t, tape.step(t), p, dp, config
        )
        for ds, ds_prev in zip(dstate, dstate_prev, strict=True):
            ds[rows] = ds_prev
        for ds_all, ds_t in zip(dstates, whole, strict=True):
            ds_all[t, rows] = ds_t
    return dx, dstate, dp, dstates


# --------------------------------------------------------------------------------------- merge


def merge_forward(outputs: Sequence[Array], merge: str) -> Array:
    """Combine the directions' outputs, (T, B, H) each, into (T, B, M); one alone stays itself."""
    if len(outputs) == 1:
        return outputs[0]
    a, b = outputs
    if merge == "concat":
        return np.concatenate([a, b], axis=2)
    if merge == "sum":
        return a + b
    if merge == "mean":
        return 0.5 * (a + b)
    return a * b


def merge_backward(dmerged: Array, outputs: Sequence[Array], merge: str) -> list[Array]:
    """Split the gradient of the merged output among the directions."""
    if len(outputs) == 1:
        return [dmerged]
    a, b = outputs
    if merge == "concat":
        return np.split(dmerged, 2, axis=2)  # concatenate([a, b])
    if merge == "sum":
        return [dmerged, dmerged]  # a + b
    if merge == "mean":
        return [0.5 * dmerged, 0.5 * dmerged]  # 0.5 * (a + b)
    return [dmerged * b, dmerged * a]  # a * b


# -------------------------------------------------------------------- layer: all its directions


class Masks(NamedTuple):
    """Dropout masks of one layer; ones where dropout is off."""

    output: Array  # (T, B, M)
    recurrent: list[Array]  # (B, H) for each direction


class LayerTape(NamedTuple):
    """What the backward pass needs of one layer."""

    directions: list[SequenceTape]
    outputs: list[Array]  # (T, B, H) for each direction; merge "mul" needs both
    mask: Array  # (T, B, M)


def layer_masks(config: Config, masks: tuple[int, int] | None, layer: int, T: int, B: int) -> Masks:
    """Draw the masks of one layer for T steps and B rows; all ones without `masks`."""
    H, M, D = config.hidden_size, config.output_size, config.num_directions
    output = np.ones((T, B, M))
    recurrent = [np.ones((B, H)) for _ in range(D)]
    if masks is not None:
        seed, call = masks
        if layer < config.num_layers - 1:  # between layers: not on the output of the last
            for t in range(T):
                output[t] = dropout_mask(
                    BETWEEN_LAYERS, seed, call, layer, 0, t, B, M, config.dropout
                )
        for direction in range(D):
            recurrent[direction] = dropout_mask(
                RECURRENT, seed, call, layer, direction, None, B, H, config.recurrent_dropout
            )
    return Masks(output, recurrent)


def layer_forward(
    x: Array,
    states: Sequence[Members],
    masks: Masks,
    lengths: Integers,
    weights: Sequence[Weights],
    config: Config,
) -> tuple[Array, list[Members], LayerTape]:
    """Run all directions of a layer, merge, drop: (T, B, I) -> (T, B, M), final states, tape.

    Both directions read the same x (Schuster and Paliwal 1997).
    """
    runs = [
        sequence_forward(x, states[d], masks.recurrent[d], lengths, d == 1, weights[d], config)
        for d in range(config.num_directions)
    ]
    outputs = [y for y, _, _ in runs]
    merged = merge_forward(outputs, config.merge)
    y = masks.output * merged
    return y, [s for _, s, _ in runs], LayerTape([tape for *_, tape in runs], outputs, masks.output)


def layer_backward(
    dy: Array,
    dstates: Sequence[Members],
    tape: LayerTape,
    weights: Sequence[Weights],
    config: Config,
) -> tuple[Array, list[Members], list[Weights], list[Members]]:
    """Return dx, then for each direction: initial state's, weights' and all steps' gradients."""
    dmerged = tape.mask * dy  # y = mask * merged
    doutputs = merge_backward(dmerged, tape.outputs, config.merge)  # merged = merge(outputs)
    runs = [  # outputs[d] = sequence(x, states[d])
        sequence_backward(doutputs[d], dstates[d], tape.directions[d], weights[d], config)
        for d in range(config.num_directions)
    ]
    dx = sum((run[0] for run in runs[1:]), start=runs[0][0])  # x is read by every direction
    return dx, [run[1] for run in runs], [run[2] for run in runs], [run[3] for run in runs]


# --------------------------------------------------------------------------------------- stack


@dataclass(frozen=True)
class Tape:
    """What `backward` needs of a forward pass. It holds copies: no later change can reach it."""

    config: Config
    layers: tuple[LayerTape, ...]


@dataclass(frozen=True)
class Gradients:
    """Gradients of a scalar loss, sums over the batch where rows share something.

    Attributes
    ----------
    x : ndarray
        (T, B, I), exactly 0 beyond the lengths.
    state : ndarray or pair of ndarray
        Of the initial state: (L*D, B, H), for LSTM the pair.
    params : dict of str to ndarray
        Of every parameter, by name.
    state_grads : dict of str to dict
        For each layer and direction ("l0", "l0_reverse", ...) the whole dL/dh_t as "h", its
        direct part included, and for LSTM dL/dc_t as "c": (T, B, H), 0 beyond the lengths.
    """

    x: Array
    state: State
    params: dict[str, Array]
    state_grads: dict[str, dict[str, Array]]


@np.errstate(over="ignore", invalid="ignore")  # NaN and Inf in the data are the user's affair
def forward(
    config: Config,
    params: Mapping[str, npt.ArrayLike],
    x: npt.ArrayLike,
    state: object = None,
    lengths: npt.ArrayLike | None = None,
    masks: tuple[int, int] | None = None,
) -> tuple[Array, State, Tape]:
    """Run the stack.

    Parameters
    ----------
    config : Config
        What to run.
    params : mapping of str to array
        Shapes as in `config.parameter_shapes()`.
    x : array (T, B, I)
        Input, time first. Beyond a row's length it is never read.
    state : array or pair of arrays (L*D, B, H), default zeros
        Initial h, for LSTM the pair (h, c).
    lengths : integer array (B,), default T for every row
        Steps of each row, 0 to T, in any order.
    masks : (seed, call_number), default None
        Turns both kinds of dropout on.

    Returns
    -------
    y : ndarray (T, B, M)
        Output of the last layer, 0 beyond the lengths.
    state : ndarray or pair of ndarray (L*D, B, H)
        State after each row's last step (in reverse: after t = 0).
    tape : Tape
        For `backward` and `gates`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong kind, name, shape or range.

    Examples
    --------
    >>> import numpy as np
    >>> config = Config("rnn", input_size=1, hidden_size=1, bias=False)
    >>> params = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.5]]}
    >>> y, h, _ = forward(config, params, np.ones((3, 1, 1)))
    >>> y.ravel().round(4)
    array([0.7616, 0.8811, 0.8938])
    >>> bool(h[0, 0, 0] == y[-1, 0, 0])
    True
    """
    D = config.num_directions
    weights = all_weights(config, params)
    x_layer = as_float64("x", x, ("T", "B", config.input_size))
    T, B = x_layer.shape[:2]
    initial = as_members("state", state, config, B)
    lengths = as_lengths(lengths, T, B)
    layers: list[LayerTape] = []
    final: list[Members] = []
    for layer in range(config.num_layers):
        k = slice(layer * D, (layer + 1) * D)
        drawn = layer_masks(config, masks, layer, T, B)
        x_layer, states, tape = layer_forward(
            x_layer, initial[k], drawn, lengths, weights[k], config
        )
        final += states
        layers.append(tape)
    return x_layer, as_state(final), Tape(config, tuple(layers))


@np.errstate(over="ignore", invalid="ignore")
def backward(
    config: Config,
    params: Mapping[str, npt.ArrayLike],
    tape: Tape,
    dy: npt.ArrayLike | None = None,
    dstate: object = None,
) -> Gradients:
    """Backpropagate through the stack and through time.

    Parameters
    ----------
    config, params, tape
        As given to and returned by `forward`.
    dy : array (T, B, M), default zeros
        Gradient of the loss by y. Beyond a row's length it is never used.
    dstate : array or pair of arrays (L*D, B, H), default zeros
        Gradient of the loss by the final state; a member of LSTM's pair may be None.

    Returns
    -------
    Gradients
        Fresh arrays; the tape is not changed.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong kind, name or shape, or the tape is of another config.

    Examples
    --------
    >>> import numpy as np
    >>> config = Config("rnn", input_size=1, hidden_size=1, bias=False)
    >>> params = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.5]]}
    >>> y, _, tape = forward(config, params, np.ones((3, 1, 1)))
    >>> grads = backward(config, params, tape, dy=np.ones((3, 1, 1)))
    >>> grads.state_grads["l0"]["h"].ravel().round(4)
    array([1.123 , 1.1006, 1.    ])
    """
    if tape.config != config:
        raise ValueError(f"tape: expected one of {config}, got one of {tape.config}")
    D = config.num_directions
    weights = all_weights(config, params)
    T, B, M = tape.layers[-1].mask.shape
    dx = np.zeros((T, B, M)) if dy is None else as_float64("dy", dy, (T, B, M))
    dfinal = as_members("dstate", dstate, config, B)
    dinitial: list[Members] = []
    dweights: list[Weights] = []
    dsteps: list[Members] = []
    for layer in reversed(range(config.num_layers)):
        k = slice(layer * D, (layer + 1) * D)
        dx, dstates, dp, steps = layer_backward(
            dx, dfinal[k], tape.layers[layer], weights[k], config
        )
        dinitial[:0], dweights[:0], dsteps[:0] = dstates, dp, steps
    return Gradients(
        x=dx,
        state=as_state(dinitial),
        params=by_name(config, dweights),
        state_grads={
            name: dict(zip(("h", "c"), members, strict=False))
            for name, members in zip(config.names(), dsteps, strict=True)
        },
    )


def gates(config: Config, tape: Tape) -> dict[str, dict[str, Array]]:
    """Show every gate at every step.

    Parameters
    ----------
    config, tape
        As given to and returned by `forward`.

    Returns
    -------
    dict of str to dict
        For each layer and direction ("l0", "l0_reverse", ...) the gates by name, each
        (T, B, H), 0 beyond the lengths: LSTM i, f, g, o; GRU r, z, n; MGU f, n; vanilla h.

    Examples
    --------
    >>> import numpy as np
    >>> config = Config("mgu", input_size=1, hidden_size=1)
    >>> params = {name: np.zeros(shape) for name, shape in config.parameter_shapes().items()}
    >>> _, _, tape = forward(config, params, np.ones((2, 1, 1)))
    >>> gates(config, tape)["l0"]["f"].ravel()
    array([0.5, 0.5])
    """
    runs = [run for layer in tape.layers for run in layer.directions]
    return {
        name: {gate: run.saved[gate].copy() for gate in GATES[config.cell]}
        for name, run in zip(config.names(), runs, strict=True)
    }


# ------------------------------------------------------------ from arguments to arrays and back


def as_float64(name: str, value: npt.ArrayLike, shape: tuple[int | str, ...]) -> Array:
    """Check the shape and copy real numbers to float64; a letter stands for any size."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    same_rank = array.ndim == len(shape)
    if not same_rank or any(
        isinstance(want, int) and want != got for want, got in zip(shape, array.shape, strict=True)
    ):
        wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    return array.astype(np.float64)  # a copy in any case: tapes and gradients own their arrays


def as_lengths(lengths: npt.ArrayLike | None, T: int, B: int) -> Integers:
    """Check the lengths; every row is full without them."""
    if lengths is None:
        return np.full(B, T, dtype=np.int64)
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" and array.size > 0:
        raise TypeError(f"lengths: expected integers, got {array.dtype}")
    if array.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), got {array.shape}")
    if np.any(array < 0) or np.any(array > T):
        raise ValueError(f"lengths: expected values from 0 to T = {T}, got {array.tolist()}")
    return array.astype(np.int64)


def as_members(name: str, state: object, config: Config, B: int) -> list[Members]:
    """Split a state, or a gradient of one, by layer and direction; None stands for zeros."""
    shape = (len(config.names()), B, config.hidden_size)
    members: Sequence[npt.ArrayLike | None]
    if state is None:
        members = [None] * config.num_states
    elif config.num_states == 1:
        members = [state]  # type: ignore[list-item]  # as_float64 refuses what is no array
    elif isinstance(state, (tuple, list)) and len(state) == config.num_states:
        members = state
    else:
        raise TypeError(f"{name}: expected a pair (h, c), got {type(state).__name__}")
    labels = [name] if len(members) == 1 else [f"{name}[{k}]" for k in range(len(members))]
    arrays = [
        np.zeros(shape) if member is None else as_float64(label, member, shape)
        for label, member in zip(labels, members, strict=True)
    ]
    return list(zip(*arrays, strict=True))


def as_state(members: Sequence[Members]) -> State:
    """Stack the states of all layers and directions: h, or (h, c)."""
    h, *c = (np.stack(arrays) for arrays in zip(*members, strict=True))
    return (h, c[0]) if c else h


def all_weights(config: Config, params: Mapping[str, npt.ArrayLike]) -> list[Weights]:
    """Check the parameters and group them by layer and direction; missing biases are zeros."""
    shapes = config.parameter_shapes()
    if set(params) != set(shapes):
        raise ValueError(f"params: expected names {sorted(shapes)}, got {sorted(params)}")
    p = {name: as_float64(name, params[name], shape) for name, shape in shapes.items()}
    zeros = np.zeros(config.num_gates * config.hidden_size)
    return [
        Weights(
            p[f"weight_ih_{name}"],
            p[f"weight_hh_{name}"],
            p.get(f"bias_ih_{name}", zeros),
            p.get(f"bias_hh_{name}", zeros),
        )
        for name in config.names()
    ]


def by_name(config: Config, weights: Sequence[Weights]) -> dict[str, Array]:
    """Give grouped gradients their parameters' names; those of absent biases are dropped."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    grouped = {
        f"{kind}_{name}": array
        for name, p in zip(config.names(), weights, strict=True)
        for kind, array in zip(kinds, p, strict=True)
    }
    return {name: grouped[name] for name in config.parameter_shapes()}
