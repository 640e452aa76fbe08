"""Chains of layers: held to their layers run one by one, to differences, and to rows run alone."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnncore as rc
from gradcheck import assert_gradient
from rnncore.protocol import Context, Interface, Layer, Stateless
from rnncore.sequential import FrozenSequential, SequentialTape

FLOATS = ("float32", "float64")
T, B, F = 6, 4, 3
LENGTHS = [4, 0, T, 1]


def pointwise(**o: Any) -> rc.Sequential:
    del o["batch_first"]
    return rc.Sequential(rc.Linear(F, 4, activation="sigmoid", seed=0, **o), rc.Linear(4, 2, **o))


def stacked(**o: Any) -> rc.Sequential:
    dtype = o["dtype"]
    return rc.Sequential(
        rc.Dropout(0.3, seed=1, batch_first=o["batch_first"]),
        rc.LSTM(F, 4, num_layers=2, dropout=0.2, recurrent_dropout=0.2, seed=2, **o),
        rc.Dropout(0.3, per_sequence=True, seed=3, batch_first=o["batch_first"]),
        rc.GRU(4, 3, bidirectional=True, seed=4, **o),
        rc.Linear(6, 2, dtype=dtype, activation="softmax", seed=5),
    )


def convolved(**o: Any) -> rc.Sequential:
    return rc.Sequential(
        rc.Conv1d(F, 4, 3, stride=2, seed=0, **o),
        rc.Conv1d(4, 4, 2, padding="causal", seed=1, **o),
        rc.MGU(4, 3, seed=2, **o),
    )


def pooled(mode: str) -> Callable[..., rc.Sequential]:
    def make(**o: Any) -> rc.Sequential:
        return rc.Sequential(
            {
                "conv": rc.Conv1d(F, 4, 2, padding="valid", seed=0, **o),
                "rnn": rc.RNN(4, 5, seed=1, **o),
                "pool": rc.Pooling(mode, batch_first=o["batch_first"]),
                "drop": rc.Dropout(0.3, seed=2, batch_first=o["batch_first"]),
                "head": rc.Linear(5, 2, dtype=o["dtype"], activation="sigmoid", seed=3),
            }
        )

    return make


def nested(**o: Any) -> rc.Sequential:
    encoder = rc.Sequential({"down": rc.Conv1d(F, 4, 2, seed=0, **o), "gru": rc.GRU(4, 3, **o)})
    head = rc.Sequential(rc.Linear(3, 4, dtype=o["dtype"]), rc.Linear(4, 2, dtype=o["dtype"]))
    return rc.Sequential({"encoder": encoder, "lstm": rc.LSTM(3, 3, **o), "head": head})


CHAINS: dict[str, Callable[..., rc.Sequential]] = {
    "pointwise": pointwise,
    "stacked": stacked,
    "convolved": convolved,
    **{mode: pooled(mode) for mode in ("last", "mean", "max")},
    "nested": nested,
}


@pytest.fixture(params=CHAINS)
def make(request: pytest.FixtureRequest) -> Callable[..., rc.Sequential]:
    """Each kind of chain."""
    chain: Callable[..., rc.Sequential] = CHAINS[request.param]
    return chain


def drawn(ragged: bool, batch_first: bool = False, seed: int = 0) -> tuple[NDArray[Any], Any]:
    """Draw x with NaN beyond the lengths, and the lengths."""
    x = np.random.default_rng(seed).standard_normal((T, B, F))
    if ragged:
        x[np.arange(T)[:, None] >= LENGTHS] = np.nan
    return (x.swapaxes(0, 1) if batch_first else x), (np.array(LENGTHS) if ragged else None)


def flat(tree: Any, prefix: str = "") -> dict[str, NDArray[Any]]:
    """Give every array of nested states a name."""
    if isinstance(tree, np.ndarray):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {k: a for key, value in items for k, a in flat(value, f"{prefix}/{key}").items()}


def unflat(tree: Any, arrays: Mapping[str, NDArray[Any]], prefix: str = "") -> Any:
    """Undo ``flat``, for states structured like `tree`."""
    if isinstance(tree, np.ndarray):
        return arrays[prefix]
    if isinstance(tree, Mapping):
        return {key: unflat(value, arrays, f"{prefix}/{key}") for key, value in tree.items()}
    return tuple(unflat(value, arrays, f"{prefix}/{k}") for k, value in enumerate(tree))


def random_state(model: rc.Sequential, rng: np.random.Generator) -> Any:
    """Draw states of all layers."""
    axes = (0, B, F) if not model.batch_first else (B, 0, F)
    _, state = model(np.zeros(axes), return_state=True)
    return unflat(state, {k: rng.standard_normal(a.shape) for k, a in flat(state, "").items()})


def padding_of_y(model: rc.Sequential, y: NDArray[Any], ragged: bool) -> NDArray[np.bool_]:
    """Mask the outputs (T', B) or (B, T') that do not count; rows that pool have none."""
    if not ragged or y.ndim == 2:
        return np.zeros(y.shape[:-1], np.bool_)
    steps = y.shape[1 if model.batch_first else 0]
    outside = np.arange(steps)[:, None] >= model.output_lengths(LENGTHS)
    return outside.T if model.batch_first else outside


# ---- Against the layers, differences, and rows alone ---------------------------------------------


def test_a_chain_is_its_layers_one_by_one() -> None:
    embedding, conv = rc.Embedding(9, 4, seed=0), rc.Conv1d(4, 5, 3, stride=2, seed=1)
    lstm, drop = rc.LSTM(5, 3, bidirectional=True, seed=2), rc.Dropout(0.5, seed=3)
    pool, head = rc.Pooling("mean"), rc.Linear(6, 2, activation="softmax", seed=4)
    model = rc.Sequential(embedding, conv, lstm, drop, pool, head)
    codes = np.random.default_rng(0).integers(0, 9, (T, B))
    lengths = np.array(LENGTHS)
    codes[np.arange(T)[:, None] >= lengths] = -1

    x1, t1 = embedding.forward(codes, lengths=lengths)
    x2, t2 = conv.forward(x1, lengths=lengths)
    shorter = conv.output_lengths(lengths)
    x3, final, t3 = lstm.forward(x2, lengths=shorter)
    x4, t4 = drop.forward(x3, lengths=shorter)
    x5, t5 = pool.forward(x4, lengths=shorter)
    expected, t6 = head.forward(x5)
    dy = np.random.default_rng(1).standard_normal(expected.shape)
    g6 = head.backward(t6, dy)
    g5 = pool.backward(t5, g6.x)
    g4 = drop.backward(t4, g5.x)
    g3 = lstm.backward(t3, g4.x)
    g2 = conv.backward(t2, g3.x)
    g1 = embedding.backward(t1, g2.x)

    drop.call_number = 0
    y, tape = model.forward(codes, lengths=lengths)
    g = model.backward(tape, dy)
    np.testing.assert_array_equal(y, expected, strict=True)
    assert list(tape.state) == ["2"]
    for mine, theirs in zip(tape.state["2"], final, strict=True):
        np.testing.assert_array_equal(mine, theirs, strict=True)
    assert g.x is None
    for mine, theirs in zip(g.state["2"], g3.state, strict=True):
        np.testing.assert_array_equal(mine, theirs, strict=True)
    parts: list[Any] = [g1, g2, g3, g4, g5, g6]
    by_layer = zip("012345", parts, strict=True)
    named = {f"{k}.{name}": a for k, part in by_layer for name, a in part.params.items()}
    assert list(g.params) == list(named) == list(model.params)
    for name, array in named.items():
        np.testing.assert_array_equal(g.params[name], array, strict=True)

    without, _ = model.forward(codes, lengths=lengths, dropout=False)
    np.testing.assert_array_equal(model(codes, lengths=lengths), without, strict=True)
    assert drop.call_number == 1


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gates_and_state_gradients_are_those_of_the_layers(ragged: bool, batch_first: bool) -> None:
    """In a chain inside a chain too; layers without gates are left out."""
    options: dict[str, Any] = {"dtype": "float64", "batch_first": batch_first}
    conv, gru = rc.Conv1d(F, 4, 3, stride=2, seed=0, **options), rc.GRU(4, 3, seed=1, **options)
    lstm = rc.LSTM(3, 2, num_layers=2, bidirectional=True, seed=2, **options)
    head = rc.Sequential(rc.Linear(4, 2, dtype="float64", seed=3))
    model = rc.Sequential(
        {"encoder": rc.Sequential({"conv": conv, "gru": gru}), "lstm": lstm, "head": head}
    )
    x, lengths = drawn(ragged, batch_first)
    shorter = conv.output_lengths(LENGTHS) if ragged else None
    y1 = conv(x, lengths=lengths)
    y2, _, gru_tape = gru.forward(y1, lengths=shorter)
    y3, _, lstm_tape = lstm.forward(y2, lengths=shorter)
    y4, head_tape = head.forward(y3)
    dy = np.random.default_rng(1).standard_normal(y4.shape)
    g4 = head.backward(head_tape, dy)
    lstm_gates, gru_gates = lstm_tape.gates(), gru_tape.gates()
    g3 = lstm.backward(lstm_tape, g4.x, return_state_grads=True)
    g2 = gru.backward(gru_tape, g3.x, return_state_grads=True)

    _, tape = model.forward(x, lengths=lengths)
    expected = {"encoder": {"gru": gru_gates}, "lstm": lstm_gates}
    np.testing.assert_equal(flat(tape.gates()), flat(expected))
    np.testing.assert_equal(flat(tape.tapes["lstm"].gates()), flat(lstm_gates))
    assert list(tape.tapes) == ["encoder", "lstm", "head"]
    plain = model.backward(tape, dy, keep=True)
    assert plain.state_grads is None
    g = model.backward(tape, dy, return_state_grads=True)
    assert g.state_grads is not None
    assert list(g.state_grads) == ["encoder", "lstm"]
    expected = {"encoder": {"gru": g2.state_grads}, "lstm": g3.state_grads}
    np.testing.assert_equal(flat(g.state_grads), flat(expected))
    np.testing.assert_equal(g.params, plain.params)


def test_a_chain_without_recurrent_layers_has_no_gates() -> None:
    model = rc.Sequential(rc.Linear(F, 2, seed=0))
    y, tape = model.forward(np.ones((T, F)))
    assert tape.gates() == {}
    assert model.backward(tape, y, return_state_grads=True).state_grads == {}
    used = "tape: expected an unused one, got one that backward"
    with pytest.raises(ValueError, match=used):
        tape.gates()
    with pytest.raises(ValueError, match=used):
        _ = tape.tapes


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_return_state_grads_is_a_bool(value: Any) -> None:
    model = rc.Sequential(rc.GRU(F, 2, seed=0))
    y, tape = model.forward(np.ones((T, F)))
    with pytest.raises(TypeError, match="return_state_grads: expected True or False, got"):
        model.backward(tape, y, return_state_grads=value)
    model.backward(tape, y)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_along_a_direction(
    make: Callable[..., rc.Sequential], ragged: bool, batch_first: bool
) -> None:
    rng = np.random.default_rng(5)
    model = make(dtype="float64", batch_first=batch_first)
    for array in model.params.values():
        array[...] = 0.5 * rng.standard_normal(array.shape)
    x, lengths = drawn(ragged, batch_first and model.batch_first)
    state = random_state(model, rng)
    numbers = model._extra_state()

    def run(at: Mapping[str, Any]) -> tuple[NDArray[Any], SequentialTape]:
        model._load_extra_state(numbers)  # the same masks
        model.load_params({name: at[name] for name in model.params})
        return model.forward(at["x"], unflat(state, at), lengths=lengths)

    point = {"x": x, **{name: a.copy() for name, a in model.params.items()}, **flat(state)}
    y, tape = run(point)
    weights = rng.standard_normal(y.shape)
    final = {key: rng.standard_normal(a.shape) for key, a in flat(tape.state).items()}

    def loss(at: Mapping[str, Any]) -> float:
        y, tape = run(at)
        total = (weights * y**2).sum() / 2
        return float(total + sum((final[k] * a).sum() for k, a in flat(tape.state).items()))

    dy = weights * y
    dy[padding_of_y(model, y, ragged)] = np.nan
    g = model.backward(tape, dy, unflat(tape.state, final))
    assert g.x is not None
    assert list(g.params) == list(model.params)
    assert_gradient(loss, point, {"x": g.x, **g.params, **flat(g.state)}, rng)
    assert (g.x[np.isnan(x)] == 0).all()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_of_a_ragged_batch_is_that_row_alone(
    make: Callable[..., rc.Sequential], batch_first: bool, dtype: str
) -> None:
    model = make(dtype=dtype, batch_first=batch_first)
    x, lengths = drawn(True, model.batch_first)
    with np.errstate(all="raise"):
        y, state = model(x, lengths=lengths, return_state=True)
    assert y.dtype == dtype
    assert (y[padding_of_y(model, y, ragged=True)] == 0).all()
    for row, length in enumerate(LENGTHS):
        alone, alone_state = model(
            x[row, :length] if model.batch_first else x[:length, row], return_state=True
        )
        mine = y[row] if y.ndim == 2 or model.batch_first else y[:, row]
        mine = mine if y.ndim == 2 else mine[: len(alone)]
        atol = 1e-5 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(mine, alone, rtol=0, atol=atol)
        for key, array in flat(alone_state).items():
            np.testing.assert_allclose(flat(state)[key][:, row], array, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (0, 0), (0,), (T,), (1, B)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_edge_shapes(
    make: Callable[..., rc.Sequential], shape: tuple[int, ...], batch_first: bool
) -> None:
    model = make(dtype="float64", batch_first=batch_first)
    if model.batch_first:
        shape = shape[::-1]
    x = np.ones((*shape, F))
    y, tape = model.forward(x)
    assert y.shape == model(x).shape
    g = model.backward(tape, y)
    assert g.x is not None
    assert g.x.shape == x.shape
    for name, array in g.params.items():
        assert array.shape == model.params[name].shape
        assert np.isfinite(array).all()
    if len(shape) == 2:
        rows = shape[0 if model.batch_first else 1]
        zero, zero_tape = model.forward(np.full(x.shape, np.nan), lengths=[0] * rows)
        assert np.isfinite(zero).all()
        dx = model.backward(zero_tape, zero).x
        assert dx is not None
        assert (dx == 0).all()


# ---- State ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sequence_in_pieces_is_the_whole(dtype: str) -> None:
    model = rc.Sequential(
        rc.LSTM(F, 4, num_layers=2, dtype=dtype, seed=0),
        rc.Sequential({"gru": rc.GRU(4, 3, dtype=dtype, seed=1)}),
    )
    x, _ = drawn(False)
    whole, final = model(x, return_state=True)
    for run in ("call", "forward"):
        state, pieces = None, []
        for piece in np.split(x, [2, 3]):
            if run == "call":
                y, state = model(piece, state, return_state=True)
            else:
                y, tape = model.forward(piece, state)
                state = tape.state
            pieces.append(y)
        np.testing.assert_array_equal(np.concatenate(pieces), whole, strict=True)
        for key, array in flat(final).items():
            np.testing.assert_array_equal(flat(state)[key], array, strict=True)


def test_gradients_flow_through_the_state_of_pieces() -> None:
    model = rc.Sequential(rc.GRU(F, 4, dtype="float64", seed=0), rc.Linear(4, 2, dtype="float64"))
    x, _ = drawn(False)
    dy = np.random.default_rng(3).standard_normal((T, B, 2))
    _, tape = model.forward(x)
    whole = model.backward(tape, dy)
    _, first = model.forward(x[:2])
    _, second = model.forward(x[2:], first.state)
    g2 = model.backward(second, dy[2:])
    g1 = model.backward(first, dy[:2], g2.state)
    assert whole.x is not None
    assert g1.x is not None
    assert g2.x is not None
    np.testing.assert_allclose(np.concatenate([g1.x, g2.x]), whole.x, rtol=0, atol=1e-14)
    for name, array in whole.params.items():
        np.testing.assert_allclose(g1.params[name] + g2.params[name], array, rtol=0, atol=1e-13)


def test_states_that_are_not_named_are_zero() -> None:
    model = rc.Sequential(rc.GRU(F, 4, seed=0), rc.LSTM(4, 2, seed=1))
    x, _ = drawn(False)
    h = np.ones((1, B, 4))
    y, tape = model.forward(x, {"0": h})
    expected, _, lstm_tape = model.layers["1"].forward(model.layers["0"](x, h)[0])
    np.testing.assert_array_equal(y, expected)
    dc = np.ones((1, B, 2))
    g = model.backward(tape, dstate={"1": (None, dc)})
    theirs = model.layers["1"].backward(lstm_tape, None, (None, dc))
    np.testing.assert_array_equal(g.params["1.weight_hh_l0"], theirs.params["weight_hh_l0"])


def test_bad_states() -> None:
    model = rc.Sequential({"gru": rc.GRU(F, 4, seed=0), "head": rc.Linear(4, 2)})
    x, _ = drawn(False)
    y, tape = model.forward(x)
    bad: list[tuple[Any, type[Exception], str]] = [
        (np.zeros((1, B, 4)), TypeError, "expected a mapping from names .*, got ndarray"),
        ({"head": 0}, ValueError, "expected 'gru', got 'head'"),
        ({0: 0}, ValueError, "expected 'gru', got 0"),
        ({"gru": np.zeros((1, B, 5))}, ValueError, r"expected shape \(L\*D, B, H\) = \(1, 4, 4\)"),
    ]
    for value, error, message in bad:
        with pytest.raises(error, match="^state: " + message):
            model(x, value)
        with pytest.raises(error, match="^state: " + message):
            model.forward(x, value)
        with pytest.raises(error, match="^dstate: " + message):
            model.backward(tape, y, value)
    model.backward(tape, y)  # still there
    with pytest.raises(ValueError, match="state: expected no name, as no layer has a state, got"):
        rc.Sequential(rc.Linear(F, 2))(x, {"0": 0})


# ---- Options of the calls ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 100])
def test_checkpoints_give_the_same_bits(k: int) -> None:
    model = stacked(dtype="float32", batch_first=False)
    numbers = model._extra_state()
    x, lengths = drawn(True)
    y, tape = model.forward(x, lengths=lengths)
    model._load_extra_state(numbers)
    again, less = model.forward(x, lengths=lengths, checkpoint=k)
    np.testing.assert_array_equal(again, y, strict=True)
    assert k == 100 or less.nbytes < tape.nbytes
    g, h = model.backward(tape, y), model.backward(less, y)
    for name in g.params:
        np.testing.assert_array_equal(g.params[name], h.params[name], strict=True)


def test_bad_calls() -> None:
    model = rc.Sequential(rc.Conv1d(F, 2, 3, seed=0), rc.Linear(2, 2))
    x, _ = drawn(False)
    number: Any = 1
    with pytest.raises(
        ValueError, match="checkpoint: expected None without a recurrent layer, got 3"
    ):
        model.forward(x, checkpoint=3)
    with pytest.raises(TypeError, match="dropout: expected True or False, got 1"):
        model.forward(x, dropout=number)
    with pytest.raises(TypeError, match="return_state: expected True or False, got 1"):
        model(x, return_state=number)
    with pytest.raises(TypeError, match="lengths: expected integers, got dtype float64"):
        model(x, lengths=[1.5] * B)
    with pytest.raises(ValueError, match="checkpoint: expected a positive integer, got 0"):
        rc.Sequential(rc.GRU(F, 2)).forward(x, checkpoint=0)
    for call in (model, model.forward):
        with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 3\) or \(T, 3\)") as info:
            call(x[..., :2])
        assert info.value.__notes__ == ["in layer '0': Conv1d(3, 2, 3, seed=0)"]


def test_a_failed_forward_gives_its_call_numbers_back() -> None:
    model = rc.Sequential(
        rc.Sequential(rc.Dropout(0.5, seed=0)), rc.GRU(F, 4, recurrent_dropout=0.5), rc.Linear(4, 2)
    )
    x, _ = drawn(False)
    model.forward(x)
    numbers = model._extra_state()
    with pytest.raises(ValueError, match="state: expected shape"):
        model.forward(x, {"1": np.zeros((1, B, 5))})
    assert model._extra_state() == numbers
    assert numbers["0.0.call_number"] == numbers["1.call_number"] == "1"
    model.forward(x, dropout=False)
    assert model._extra_state() == numbers


# ---- Tapes ---------------------------------------------------------------------------------------


def test_a_tape_is_used_once_unless_kept(make: Callable[..., rc.Sequential]) -> None:
    model = make(dtype="float64", batch_first=False)
    x, lengths = drawn(True)
    before = x.copy()
    y, tape = model.forward(x, lengths=lengths)
    size = tape.nbytes
    assert repr(tape) == f"<SequentialTape, {size} bytes>"
    assert size >= x.nbytes if model.params else size > 0
    np.testing.assert_array_equal(x, before)
    dy = np.ones_like(y)
    first = model.backward(tape, dy, keep=True)
    assert tape.nbytes == size
    # Nothing that the caller holds reaches the tape.
    x[:] = y[:] = np.nan
    lengths[:] = 0
    assert first.x is not None
    expected = first.x.copy()
    first.x[:] = np.nan
    second = model.backward(tape, dy)
    assert second.x is not None
    np.testing.assert_array_equal(second.x, expected)
    for name, array in first.params.items():
        np.testing.assert_array_equal(second.params[name], array)
        assert not np.shares_memory(second.params[name], array)
    assert (dy == 1).all()
    assert (tape.nbytes, repr(tape)) == (0, "<SequentialTape, used>")
    with pytest.raises(ValueError, match=r"tape: expected an unused one, .*keep=True"):
        model.backward(tape, dy)


def test_errors_in_backward_leave_the_tape_usable() -> None:
    model = rc.Sequential(rc.GRU(F, 4), rc.LSTM(4, 2), rc.Linear(2, 2))
    x, _ = drawn(False)
    y, tape = model.forward(x)
    number: Any = 1
    for dy, options, error, message in (
        (
            y[:2],
            {},
            ValueError,
            r"dy: expected shape \(\.\.\., out\) = \(6, 4, 2\), got \(2, 4, 2\)",
        ),
        (y.astype(complex), {}, TypeError, "dy: expected real numbers"),
        (y, {"dstate": {"0": np.ones(3)}}, ValueError, "dstate: expected shape"),
        (y, {"dstate": {"1": np.ones(3)}}, TypeError, r"dstate: expected a pair \(h, c\)"),
        (y, {"keep": number}, TypeError, "keep: expected True or False, got 1"),
    ):
        with pytest.raises(error, match=message):
            model.backward(tape, dy, **options)
    assert model.backward(tape, y).params
    assert list(tape.state) == ["0", "1"]


def test_without_dy_the_gradient_is_that_of_zero() -> None:
    model = rc.Sequential(rc.GRU(F, 4), rc.Linear(4, 2))
    x, _ = drawn(False)
    y, tape = model.forward(x)
    dh = np.ones((1, B, 4))
    a = model.backward(tape, dstate={"0": dh}, keep=True)
    b = model.backward(tape, np.zeros_like(y), {"0": dh})
    for name in a.params:
        np.testing.assert_array_equal(a.params[name], b.params[name])
    assert (a.params["1.weight"] == 0).all()
    assert a.params["0.weight_hh_l0"].any()


def test_a_tape_belongs_to_one_chain() -> None:
    model = rc.Sequential(rc.Linear(F, 2))
    y, tape = model.forward(np.ones(F))
    for stranger in (rc.Sequential(rc.Linear(F, 2)), copy.deepcopy(model), copy.copy(model)):
        with pytest.raises(ValueError, match="expected one of this layer, got one of another Seq"):
            stranger.backward(tape, y)
    nothing: Any = None
    with pytest.raises(TypeError, match="tape: expected a SequentialTape, got NoneType"):
        model.backward(nothing, y)
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="SequentialTape: expected to stay the only tape"):
            action(tape)


# ---- Parameters, files, copies -------------------------------------------------------------------


def test_parameters_are_those_of_the_layers() -> None:
    model = nested(dtype="float64", batch_first=False)
    names = ["encoder.down.weight", "encoder.down.bias", "encoder.gru.weight_ih_l0"]
    assert list(model.params)[:3] == names
    assert list(model.params)[-1] == "head.1.bias"
    model.params["head.1.bias"] = [1.0, 2.0]
    assert model.layers["head"].layers["1"].params["bias"].tolist() == [1.0, 2.0]
    model.layers["encoder"].layers["down"].params["weight"][...] = 7
    assert (model.params["encoder.down.weight"] == 7).all()
    with pytest.raises(ValueError, match=r"expected shape \(O, C, K\) = \(4, 3, 2\), got \(1,\)"):
        model.params["encoder.down.weight"] = [1.0]
    before = {name: a.copy() for name, a in model.params.items()}
    with pytest.raises(ValueError, match="params: missing 'encoder.down.weight'"):
        model.load_params({})
    other = nested(dtype="float64", batch_first=False)
    other.load_params(model.params)
    for name, array in before.items():
        np.testing.assert_array_equal(other.params[name], array)
    with pytest.raises(TypeError):
        model.layers["head"] = None  # type: ignore[index]


@pytest.mark.parametrize("optimizer", [rc.SGD, rc.Adam])
def test_optimizers_train_a_chain(optimizer: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, 16, F))
    target = x.sum(axis=(0, 2))[:, None] / 4
    model = rc.Sequential(
        rc.Conv1d(F, 8, 3, seed=0),
        rc.GRU(8, 8, seed=1),
        rc.Pooling("mean"),
        rc.Dropout(0.0),
        rc.Linear(8, 1, seed=2),
    )
    steps = optimizer(model, lr=0.02)
    losses = []
    for _ in range(60):
        y, tape = model.forward(x)
        loss, dy = rc.mean_squared_error(y, target)
        g = model.backward(tape, dy)
        assert rc.clip_grad_norm(g, 5.0) > 0
        steps.step(g)
        losses.append(loss)
    assert losses[-1] < losses[0] / 2


def test_a_chain_is_a_tree_among_others(tmp_path: Path) -> None:
    model, head = rc.Sequential(rc.GRU(F, 4)), rc.Linear(4, 2)
    optimizer = rc.SGD({"model": model, "head": head}, lr=1.0)
    y, tape = model.forward(drawn(False)[0])
    _, head_tape = head.forward(y)
    g_head = head.backward(head_tape, np.ones((T, B, 2)))
    before = model.params["0.bias_ih_l0"].copy()
    g = model.backward(tape, g_head.x)
    optimizer.step({"model": g, "head": g_head})
    np.testing.assert_array_equal(model.params["0.bias_ih_l0"], before - g.params["0.bias_ih_l0"])
    rc.save(tmp_path / "m.safetensors", {"model": model, "head": head})
    assert "model.0.weight_ih_l0" in rc.load(tmp_path / "m.safetensors")


def test_save_and_load(tmp_path: Path, make: Callable[..., rc.Sequential]) -> None:
    path = tmp_path / "model.safetensors"
    model, other = (make(dtype="float64", batch_first=False) for _ in range(2))
    for array in model.params.values():
        array += 1
    x, lengths = drawn(True)
    model.forward(x, lengths=lengths)
    model.save(path)
    other.load(path)
    assert model._extra_state() == other._extra_state()
    a, b = (m.forward(x, lengths=lengths)[0] for m in (model, other))
    np.testing.assert_array_equal(a, b, strict=True)
    # The same file as that of the layers in a mapping, and of rc.save.
    rc.save(tmp_path / "a", model)
    rc.save(tmp_path / "b", model.layers)
    model.save(path)
    assert path.read_bytes() == (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rc.load(path, into=dict(other.layers))


def test_masks_of_layers_with_the_same_inner_name_stay_apart() -> None:
    def make(seed: int) -> rc.Sequential:
        inner = rc.Sequential({"b": rc.Dropout(0.5, seed=seed)})
        return rc.Sequential({"a": inner, "b": rc.Dropout(0.5, seed=seed + 1)})

    model, other = make(0), make(7)
    model.layers["b"].call_number = 3
    other._load_extra_state(model._extra_state())
    assert other._extra_state() == {
        "a.b.seed": "0",
        "a.b.call_number": "0",
        "b.seed": "1",
        "b.call_number": "3",
    }


def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = rc.Sequential(rc.Dropout(0.5, seed=0), rc.Linear(F, 2), rc.Dropout(0.5, seed=1))
    rc.Sequential(rc.Dropout(0.5), rc.Linear(F, 3)).save(path)
    before = {name: a.copy() for name, a in model.params.items()}
    numbers = model._extra_state()
    with pytest.raises(ValueError, match=r"1.weight: expected shape \(2, 3\), got \(3, 3\)"):
        model.load(path)
    with pytest.raises(ValueError, match="seed: expected the digits of an integer, got 'x'"):
        model._load_extra_state(
            {"0.seed": "5", "0.call_number": "5", "2.seed": "x", "2.call_number": "0"}
        )
    assert model._extra_state() == numbers
    for name, array in before.items():
        np.testing.assert_array_equal(model.params[name], array)
    with pytest.raises(OSError, match="nowhere"):
        model.load(tmp_path / "nowhere")


def test_copies_are_independent_and_whole(make: Callable[..., rc.Sequential]) -> None:
    model = make(dtype="float64", batch_first=True)
    x, lengths = drawn(True, model.batch_first)
    model.forward(x, lengths=lengths)
    clones = [copy.deepcopy(model), *(pickle.loads(pickle.dumps(model, n)) for n in range(6))]
    expected, _ = model.forward(x, lengths=lengths)
    for clone in clones:
        assert repr(clone) == repr(model)
        y, tape = clone.forward(x, lengths=lengths)
        np.testing.assert_array_equal(y, expected, strict=True)
        clone.backward(tape, y)
        for array in clone.params.values():
            array[...] = 0
        assert not any(a.any() for layer in clone.layers.values() for a in layer.params.values())
    assert all(a.any() for name, a in model.params.items() if "weight" in name)
    shallow = copy.copy(model)
    for name, array in model.params.items():
        assert shallow.params[name] is array


def test_repr_is_the_call() -> None:
    names = {name: getattr(rc, name) for name in ("Sequential", "GRU", "Linear", "Dropout")}
    for text in (
        "Sequential(GRU(3, 4, seed=0), Linear(4, 2, seed=1))",
        "Sequential({'drop': Dropout(0.5, seed=0), 'rest': Sequential(Linear(3, 2, seed=1))})",
    ):
        assert repr(eval(text, names)) == text


# ---- What fits together --------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_at_once() -> None:
    gru, pool = rc.GRU(F, 4, seed=0), rc.Pooling("last")
    for layers, message in (
        (
            (gru, rc.Linear(5, 2, seed=0)),
            r"layers\['1'\]: expected a layer that takes 4 features, as layers\['0'\] gives, "
            r"got Linear\(5, 2, seed=0\)",
        ),
        ((gru, pool, rc.Dropout(0.1), rc.Linear(5, 2)), r"layers\['3'\]: expected .* takes 4 feat"),
        ((rc.Embedding(9, 4), rc.GRU(5, 2)), r"layers\['1'\]: .*takes 4 .*layers\['0'\] gives"),
        ((rc.Linear(3, 4), rc.Embedding(4, 2)), r"layers\['1'\]: expected to stand first, as it"),
        ((gru, pool, rc.GRU(4, 2)), r"layers\['2'\]: expected a layer that needs no steps, as an"),
        ((gru, pool, rc.Pooling("max")), r"layers\['2'\]: expected a layer that needs no steps"),
        ((gru, pool, rc.Dropout(0.5, per_sequence=True)), r"layers\['2'\]: .* needs no steps"),
        ((gru, pool, rc.Conv1d(4, 2, 1)), r"layers\['2'\]: expected a layer that needs no steps"),
        (
            (gru, rc.Linear(4, 2, dtype="float64")),
            r"layers\['1'\]: expected dtype=float32, as the layers before, got float64",
        ),
        (
            (rc.GRU(F, 4, batch_first=True), rc.Linear(4, 4), pool),
            r"layers\['2'\]: expected batch_first=True, as the layers before, got False",
        ),
        (
            (rc.Sequential(gru, pool), rc.Sequential(rc.Linear(4, 4), rc.LSTM(4, 2))),
            r"layers\['1'\]: expected a layer that needs no steps",
        ),
        ((gru, rc.Sequential(rc.Embedding(4, 2))), r"layers\['1'\]: expected to stand first"),
    ):
        with pytest.raises(ValueError, match=message):
            rc.Sequential(*layers)


def test_what_is_no_chain() -> None:
    linear = rc.Linear(3, 3)
    for arguments, error, message in (
        ((), ValueError, "layers: expected at least one layer, got none"),
        (({},), ValueError, "layers: expected at least one layer, got none"),
        (([linear],), TypeError, r"layers\['0'\]: expected a layer, got list"),
        ((linear, np.tanh), TypeError, r"layers\['1'\]: expected a layer, got ufunc"),
        ((rc.Linear,), TypeError, r"layers\['0'\]: expected a layer, got the class Linear"),
        ((linear, {"a": linear}), TypeError, r"layers\['1'\]: expected a layer, got dict"),
        (
            ({"a.b": linear},),
            ValueError,
            "layers: expected names without dots, not empty, got 'a.b'",
        ),
        (({"": linear},), ValueError, "layers: expected names without dots, not empty, got ''"),
        (({1: linear},), TypeError, "layers: expected names that are text, got 1"),
        ((linear, linear), ValueError, r"layers\['1'\]: expected every layer once, got '0' again"),
    ):
        with pytest.raises(error, match=message):
            rc.Sequential(*arguments)


def test_properties() -> None:
    model = nested(dtype="float64", batch_first=True)
    assert (model.dtype, model.batch_first) == (np.dtype("float64"), True)
    assert list(model.layers) == ["encoder", "lstm", "head"]
    bare = rc.Sequential(rc.Dropout(0.5), rc.Pooling("mean"))
    assert (bare.dtype, bare.batch_first, dict(bare.params)) == (None, False, {})
    assert isinstance(model, Layer)


def test_output_lengths() -> None:
    model = convolved(dtype="float32", batch_first=False)
    assert model.output_lengths([6, 5, 1, 0]).tolist() == [3, 3, 1, 0]
    given = np.array([2, 1])
    result = rc.Sequential(rc.Linear(2, 2)).output_lengths(given)
    assert result.tolist() == [2, 1]
    assert not np.shares_memory(result, given)
    with pytest.raises(ValueError, match="lengths: expected integers >= 0, got -1"):
        rc.Sequential(rc.Linear(2, 2)).output_lengths([-1])
    with pytest.raises(ValueError, match="output_lengths: expected layers that keep the steps"):
        pooled("max")(dtype="float32", batch_first=False).output_lengths([1])


class Doubled:
    """A user's layer: y = 2 x, at any place of a chain."""

    params: Mapping[str, NDArray[Any]] = {}

    def load_params(self, mapping: Any, /) -> None:
        del mapping

    def _interface(self) -> Interface:
        return Interface()

    def _output_lengths(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        return lengths

    def _infer(self, x: Any, context: Context) -> tuple[NDArray[Any], None]:
        del context
        return 2 * x, None

    def _train(self, x: Any, context: Context) -> tuple[NDArray[Any], None, NDArray[Any]]:
        del context
        return 2 * x, None, np.empty(0)

    def _backprop(self, tape: Any, dy: NDArray[Any], dstate: None) -> tuple[Any, None, Any]:
        del tape, dstate
        return 2 * dy, None, {}

    def _stream(self, batch_size: int) -> Stateless:
        del batch_size
        return Stateless(lambda x: 2 * x)


def test_a_layer_of_the_users_own() -> None:
    gru = rc.GRU(F, 4, seed=0)
    model = rc.Sequential(gru, Doubled())
    x, lengths = drawn(True)
    y, tape = model.forward(x, lengths=lengths)
    np.testing.assert_array_equal(y, 2 * gru(x, lengths=lengths)[0])
    _, _, own = gru.forward(x, lengths=lengths)
    np.testing.assert_array_equal(model.backward(tape, y).x, gru.backward(own, 2 * y).x)
    steps = np.ones((T, F), np.float32)
    np.testing.assert_array_equal(model.freeze().run(steps), model(steps))


# ---- Streams -------------------------------------------------------------------------------------

#: A product over fewer rows may be rounded otherwise, and what follows carries that on.
CLOSE = {"float32": 1e-5, "float64": 1e-13}


def streaming(dtype: str, batch_first: bool = False) -> rc.Sequential:
    """Return a chain of all that can stream, behind an Embedding."""
    o: dict[str, Any] = {"dtype": dtype, "batch_first": batch_first}
    return rc.Sequential(
        {
            "embedding": rc.Embedding(9, 4, dtype=dtype, seed=0),
            "conv": rc.Conv1d(4, 4, 2, padding="causal", dilation=2, seed=1, **o),
            "drop": rc.Dropout(0.5, batch_first=batch_first),
            "body": rc.Sequential({"lstm": rc.LSTM(4, 4, num_layers=2, seed=2, **o)}),
            "head": rc.Linear(4, 2, dtype=dtype, activation="softmax", seed=3),
        }
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("rows", [1, B])
def test_a_stream_is_the_full_pass(dtype: str, batch_first: bool, rows: int) -> None:
    model = streaming(dtype, batch_first)
    codes = np.random.default_rng(0).integers(0, 9, (T, rows))
    given = codes.T if batch_first else codes
    expected = model(given)
    stream = model.freeze(rows)
    assert isinstance(stream, FrozenSequential)
    for array in model.params.values():
        array *= 0  # a snapshot does not see it
    steps = np.stack([stream.step(c) for c in codes], axis=1 if batch_first else 0)
    assert steps.dtype == dtype
    np.testing.assert_allclose(steps, expected, rtol=0, atol=CLOSE[dtype])
    final = stream.state
    stream.reset()
    axis = 1 if batch_first else 0
    pieces = [stream.run(piece) for piece in np.split(given, [0, 2, 3], axis=axis)]
    np.testing.assert_allclose(np.concatenate(pieces, axis), expected, rtol=0, atol=CLOSE[dtype])
    for key, array in flat(stream.state).items():
        np.testing.assert_allclose(array, flat(final)[key], rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("cell", [rc.RNN, rc.LSTM, rc.GRU, rc.MGU])
def test_recurrent_layers_stream_with_the_bits_of_the_full_pass(dtype: str, cell: Any) -> None:
    model = rc.Sequential(
        rc.Dropout(0.5), cell(F, 4, dtype=dtype, seed=0), rc.GRU(4, 3, dtype=dtype, seed=1)
    )
    x = drawn(False)[0].astype(dtype)
    expected, final = model(x, return_state=True)
    stream = model.freeze(B)
    np.testing.assert_array_equal(np.stack([stream.step(x_t) for x_t in x]), expected, strict=True)
    for key, array in flat(final).items():
        np.testing.assert_array_equal(flat(stream.state)[key], array, strict=True)
    stream.reset()
    np.testing.assert_array_equal(stream.run(x), expected, strict=True)


def test_a_stream_of_one_row_takes_vectors() -> None:
    model = streaming("float64")
    codes = np.random.default_rng(0).integers(0, 9, T)
    stream = model.freeze()
    steps = [stream.step(int(code)) for code in codes]
    assert steps[0].shape == (2,)
    np.testing.assert_allclose(np.stack(steps), model(codes), rtol=0, atol=1e-13)
    stream.reset()
    np.testing.assert_allclose(stream.run(codes), model(codes), rtol=0, atol=1e-13)


def test_the_state_of_a_stream() -> None:
    model = streaming("float64")
    codes = np.random.default_rng(0).integers(0, 9, (T, B))
    stream, other = model.freeze(B), model.freeze(B)
    stream.run(codes)
    state = stream.state
    assert list(state) == ["conv", "body"]
    other.state = state
    for array in flat(state).values():
        array[:] = np.nan
    np.testing.assert_array_equal(other.step(codes[0]), stream.step(codes[0]))
    other.reset([0, 2])
    for key, array in flat(other.state).items():
        assert (array[:, [0, 2]] == 0).all()
        np.testing.assert_array_equal(array[:, [1, 3]], flat(stream.state)[key][:, [1, 3]])
    assert rc.Sequential(rc.Linear(2, 2)).freeze().state == {}


def test_bad_input_of_a_stream_changes_nothing() -> None:
    model = streaming("float64")
    codes = np.random.default_rng(0).integers(0, 9, (T, B))
    stream = model.freeze(B)
    stream.run(codes)
    before = flat(stream.state)
    good = stream.state
    number: Any = 1.5
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: stream.step(codes[0, :2]), ValueError, r"x_t: expected shape \(B = 4\), got \(2,"),
        (lambda: stream.step(0), ValueError, r"x_t: expected shape \(B = 4\), got \(\)"),
        (lambda: stream.step([0, 1, 2, 9]), ValueError, "indices: .* got 9 at position 3"),
        (lambda: stream.step([0.0] * B), TypeError, "x_t: expected integers, got dtype float64"),
        (lambda: stream.run(codes.T), ValueError, r"x: expected shape \(T, B = 4\), got \(4, 6\)"),
        (lambda: stream.run(codes - 9), ValueError, "indices: expected"),
        (lambda: stream.reset([B]), ValueError, "rows: expected 0 <= value <= B - 1 = 3, got 4"),
        (lambda: stream.reset(number), TypeError, "rows: expected integers"),
    ]
    for call, error, message in calls:
        with pytest.raises(error, match=message):
            call()
    bad: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "state: expected a mapping from names of layers .* got NoneType"),
        ({"conv": good["conv"]}, ValueError, "state: missing 'body'"),
        ({**good, "body": {"lstm": 0}}, TypeError, r"state: expected the pair \(h, c\)"),
        ({"conv": 0 * good["conv"], "body": {"lstm": (0, 0)}}, ValueError, "state: expected"),
    ]
    for value, error, message in bad:
        with pytest.raises(error, match=message):
            stream.state = value
    for key, array in flat(stream.state).items():
        np.testing.assert_array_equal(array, before[key])


class Failing(Doubled):
    """A layer whose stream always fails."""

    def _stream(self, batch_size: int) -> Stateless:
        def fail(x: Any) -> NDArray[Any]:
            raise MemoryError(x.shape)

        return Stateless(fail)


def test_a_run_that_fails_half_way_leaves_no_layer_ahead() -> None:
    stream = rc.Sequential(rc.LSTM(F, 4), Failing()).freeze(B)
    with pytest.raises(MemoryError):
        stream.run(np.ones((T, B, F)))
    assert all((array == 0).all() for array in flat(stream.state).values())


def test_shapes_that_a_stream_takes() -> None:
    model = rc.Sequential(rc.Linear(F, 2, dtype="float64"))
    for rows, shape, message in (
        (2, (3, F), r"x_t: expected shape \(B = 2, F\), got \(3, 3\)"),
        (2, (F,), r"x_t: expected shape \(B = 2, F\), got \(3,\)"),
        (1, (2, F), r"x_t: expected shape \(B = 1, F\) or \(F\), got \(2, 3\)"),
        (1, (F + 1,), r"x_t: expected 3 features, got shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.freeze(rows).step(np.ones(shape))
    model = rc.Sequential(rc.GRU(F, 2, batch_first=True))
    with pytest.raises(ValueError, match=r"x: expected shape \(B = 2, T, F\), got \(6, 2, 3\)"):
        model.freeze(2).run(np.ones((T, 2, F)))


def test_what_cannot_stream_is_named() -> None:
    causal = rc.Conv1d(F, F, 3, padding="causal")
    for layer, message in (
        (rc.GRU(F, 2, bidirectional=True), "freeze: expected a layer of one direction, got bidir"),
        (rc.Pooling("mean"), "freeze: expected a layer that answers step by step, got Pooling"),
        (rc.Conv1d(F, 2, 3), "freeze: expected a layer with padding='causal', got padding='same'"),
        (rc.Conv1d(F, 2, 3, padding="causal", stride=2), "freeze: .* stride=1, got stride=2"),
        (rc.Sequential({"p": rc.Pooling("max")}), r"layers\['p'\]: freeze: expected a layer"),
    ):
        with pytest.raises(ValueError, match=r"^layers\['that'\]: " + message):
            rc.Sequential({"causal": causal, "that": layer}).freeze()
    for size, error in ((0, ValueError), (True, TypeError)):
        with pytest.raises(error, match="batch_size: expected a positive integer"):
            rc.Sequential(causal).freeze(size)


def test_a_stream_is_for_one_thread_and_has_no_copies() -> None:
    stream = rc.Sequential(rc.Linear(F, 2, seed=0)).freeze()
    assert repr(stream) == "<FrozenSequential of Sequential(Linear(3, 2, seed=0)), batch_size=1>"
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="FrozenSequential: expected to stay the only one"):
            action(stream)
    failures = []

    def intrude() -> None:
        try:
            stream.step(np.ones(F))
        except RuntimeError as error:
            failures.append(str(error))

    with stream._alone():
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert failures == ["FrozenSequential: expected one thread at a time, got another"]
    stream.step(np.ones(F))
