"""What the layers promise about their interface: options, layouts, states, tapes, copies.

The numbers themselves are held against the reference elsewhere; here it is asked only once, to
see that every result stands under its own name.
"""

import copy
import gc
import inspect
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnncore as rc
from rnncore import reference

Array = NDArray[Any]

CELLS: list[Any] = [rc.RNN, rc.LSTM, rc.GRU, rc.MGU]
NAMES = {rc.RNN: "rnn", rc.LSTM: "lstm", rc.GRU: "gru", rc.MGU: "mgu"}
GATES = {rc.RNN: "h", rc.LSTM: "ifgo", rc.GRU: "rzn", rc.MGU: "fn"}
# Every option away from its default, one cell with each of the cells' own.
OPTIONS: list[tuple[Any, dict[str, Any]]] = [
    (rc.RNN, {"nonlinearity": "relu", "bias": False}),
    (rc.RNN, {"num_layers": 2, "dropout": 0.25, "merge": "mean", "init": "pytorch"}),
    (rc.LSTM, {"num_layers": 3, "bidirectional": True, "recurrent_dropout": 0.5}),
    (rc.GRU, {"reset_after": False, "update_gate": "write", "dtype": "float64"}),
    (rc.MGU, {"reset_after": True, "update_gate": "keep", "batch_first": True}),
]
T, B, I, H = 6, 3, 4, 5
LENGTHS = [4, 0, 6]


@pytest.fixture(params=CELLS, ids=lambda cell: cell.__name__)
def cell(request: pytest.FixtureRequest) -> Any:
    """Each of the four layers."""
    return request.param


def normal(*shape: int, seed: int = 0) -> Array:
    """Draw float64 values."""
    return np.random.default_rng(seed).standard_normal(shape)


def members(state: Any) -> tuple[Array, ...]:
    """Return a state, or a gradient of one, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def state_like(layer: Any, *shape: int, seed: int = 1) -> Any:
    """Draw a state of the layer's structure."""
    h, c = normal(*shape, seed=seed), normal(*shape, seed=seed + 1)
    return (h, c) if isinstance(layer, rc.LSTM) else h


def assert_same(a: Any, b: Any) -> None:
    """Assert the same structure and the same bits."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, strict=True)


def assert_same_gradients(a: Any, b: Any) -> None:
    """Assert that two results of backward agree bit for bit."""
    assert_same(a.x, b.x)
    assert_same(a.state, b.state)
    assert_same(a.params, b.params)
    assert (a.state_grads is None) == (b.state_grads is None)
    if a.state_grads is not None:
        assert_same(a.state_grads, b.state_grads)


# ------------------------------------------------------------------------- construction


def test_common_options_have_one_default() -> None:
    own = {"self", "nonlinearity", "reset_after", "update_gate"}
    signatures = [
        [p for name, p in inspect.signature(cell.__init__).parameters.items() if name not in own]
        for cell in CELLS
    ]
    assert all(signature == signatures[0] for signature in signatures)
    assert [(p.name, p.default) for p in signatures[0][2:]] == [
        ("num_layers", 1),
        ("bias", True),
        ("bidirectional", False),
        ("merge", "concat"),
        ("dropout", 0.0),
        ("recurrent_dropout", 0.0),
        ("batch_first", False),
        ("dtype", "float32"),
        ("init", "orthogonal"),
        ("seed", None),
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in signatures[0][2:])


def test_each_cell_has_its_own_defaults() -> None:
    assert rc.RNN(1, 1).nonlinearity == "tanh"
    gru, mgu = rc.GRU(1, 1), rc.MGU(1, 1)
    assert (gru.reset_after, gru.update_gate) == (True, "keep")
    assert (mgu.reset_after, mgu.update_gate) == (False, "write")


def test_attributes_tell_the_options(cell: Any) -> None:
    layer = cell(
        I,
        H,
        num_layers=2,
        bias=False,
        bidirectional=True,
        merge="sum",
        dropout=0.25,
        recurrent_dropout=0.5,
        batch_first=True,
        dtype=np.float64,
        init="pytorch",
        seed=7,
    )
    assert (layer.input_size, layer.hidden_size, layer.num_layers) == (I, H, 2)
    assert (layer.bias, layer.bidirectional, layer.batch_first) == (False, True, True)
    assert (layer.merge, layer.init, layer.seed) == ("sum", "pytorch", 7)
    assert (layer.dropout, layer.recurrent_dropout) == (0.25, 0.5)
    assert layer.dtype == np.float64
    assert (layer.num_directions, layer.output_size, layer.call_number) == (2, H, 0)


@pytest.mark.parametrize("name", ["input_size", "seed", "dtype", "dropout", "params", "merge"])
def test_options_cannot_be_changed(cell: Any, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(cell(I, H), name, 1)


def test_numpy_numbers_and_every_spelling_of_a_dtype_will_do() -> None:
    for dtype in ("float64", "f8", np.float64, np.dtype("float64"), float):
        numbers: list[Any] = [np.int32(I), np.uint8(H), np.True_, np.float32(0)]
        layer = rc.GRU(*numbers[:2], bias=numbers[2], dropout=numbers[3], dtype=dtype)
        assert (layer.input_size, layer.hidden_size, layer.bias) == (I, H, True)
        assert layer.dtype == np.float64
        assert eval(repr(layer), vars(rc)).dtype == np.float64


@pytest.mark.parametrize("merge", ["concat", "sum", "mean", "mul"])
def test_merge_decides_the_output_size(cell: Any, merge: str) -> None:
    one = cell(I, H, num_layers=2, merge=merge, seed=0)
    two = cell(I, H, num_layers=2, merge=merge, bidirectional=True, seed=0)
    assert one.output_size == H
    assert two.output_size == (2 * H if merge == "concat" else H)
    y, state = two(normal(T, B, I))
    assert y.shape == (T, B, two.output_size)
    assert all(member.shape == (4, B, H) for member in members(state))
    assert two.params["weight_ih_l1"].shape[1] == two.output_size
    # With one direction there is nothing to merge.
    assert_same(one(normal(T, B, I))[0], cell(I, H, num_layers=2, seed=0)(normal(T, B, I))[0])


# --------------------------------------------------------------------------- parameters


def test_names_and_shapes_are_pytorchs(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True)
    rows = len(GATES[cell]) * H
    expected: dict[str, tuple[int, ...]] = {}
    for part, features in (("l0", I), ("l0_reverse", I), ("l1", 2 * H), ("l1_reverse", 2 * H)):
        expected[f"weight_ih_{part}"] = (rows, features)
        expected[f"weight_hh_{part}"] = (rows, H)
        expected[f"bias_ih_{part}"] = (rows,)
        expected[f"bias_hh_{part}"] = (rows,)
    assert {name: array.shape for name, array in layer.params.items()} == expected
    assert list(layer.params) == list(expected)
    assert list(cell(I, H, bias=False).params) == ["weight_ih_l0", "weight_hh_l0"]


def test_parameters_are_live(cell: Any) -> None:
    layer, x = cell(I, H, seed=0), normal(T, B, I)
    before = layer(x)[0]
    parameters = layer.params
    parameters["weight_hh_l0"] *= 0.5
    changed = layer(x)[0]
    assert not np.array_equal(before, changed)
    parameters["weight_hh_l0"] = 2.0 * parameters["weight_hh_l0"]
    assert_same(layer(x)[0], before)
    assert layer.params is parameters
    with pytest.raises(ValueError, match=r"weight_hh_l0.*expected shape.*\*H, H\).*got \(2, 2\)"):
        parameters["weight_hh_l0"] = np.ones((2, 2))
    with pytest.raises(KeyError, match="weight_hr_l0"):
        parameters["weight_hr_l0"] = np.ones((2, 2))
    assert_same(layer(x)[0], before)


def test_load_params_copies_casts_or_changes_nothing(cell: Any) -> None:
    source, layer = cell(I, H, dtype="float64", seed=1), cell(I, H, seed=2)
    x = normal(T, B, I)
    before = layer(x)[0]
    shapes = {name: array.copy() for name, array in source.params.items()}
    last = list(shapes)[-1]
    bad: list[tuple[dict[str, Any], str]] = [
        ({name: shapes[name] for name in list(shapes)[:-1]}, last),
        ({**shapes, "extra": np.zeros(1)}, "extra"),
        ({**shapes, last: np.zeros(1)}, last),
    ]
    for mapping, name in bad:
        with pytest.raises(ValueError, match=name):
            layer.load_params(mapping)
        assert_same(layer(x)[0], before)
    with pytest.raises(TypeError, match=last):
        layer.load_params({**shapes, last: shapes[last].astype(complex)})
    assert_same(layer(x)[0], before)
    layer.load_params(source.params)
    for name, array in layer.params.items():
        assert_same(array, source.params[name].astype(np.float32))
        assert not np.shares_memory(array, source.params[name])


# ------------------------------------------------------------------------------ results


def run(layer: Any, x: Array, state: Any, dy: Array, dstate: Any, **options: Any) -> Any:
    """Return y, final state, tape and gradients, step gradients included."""
    y, final, tape = layer.forward(x, state, **options)
    g = layer.backward(tape, dy, dstate, keep=True, return_state_grads=True)
    return y, final, tape, g


@pytest.mark.parametrize("ragged", [False, True])
def test_every_result_stands_under_its_name(cell: Any, ragged: bool) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, dtype="float64", seed=3)
    x, dy = normal(T, B, I, seed=4), normal(T, B, 2 * H, seed=5)
    state, dstate = state_like(layer, 4, B, H, seed=6), state_like(layer, 4, B, H, seed=8)
    lengths = LENGTHS if ragged else None
    y, final, tape, g = run(layer, x, state, dy, dstate, lengths=lengths)
    gated = ("reset_after", "update_gate") if cell in (rc.GRU, rc.MGU) else ()
    own = {name: getattr(layer, name) for name in gated}
    config = reference.Config(NAMES[cell], I, H, num_layers=2, bidirectional=True, **own)
    ref_y, ref_final, ref_tape = reference.forward(config, layer.params, x, state, lengths)
    ref = reference.backward(config, layer.params, ref_tape, dy, dstate)
    ref_gates = reference.gates(config, ref_tape)

    assert g.state_grads is not None
    pairs = [(y, ref_y), (g.x, ref.x)]
    pairs += zip(members(final), members(ref_final), strict=True)
    pairs += zip(members(g.state), members(ref.state), strict=True)
    for got, expected in (
        (g.params, ref.params),
        *((g.state_grads[part], ref.state_grads[part]) for part in ref.state_grads),
        *((tape.gates()[part], ref_gates[part]) for part in ref_gates),
    ):
        assert list(got) == list(expected)
        pairs += [(got[name], expected[name]) for name in expected]
    assert list(g.state_grads) == list(tape.gates()) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    for one, other in pairs:
        assert one.shape == other.shape
        assert abs(one - other).max() <= 1e-12 * max(1.0, abs(other).max())


def test_the_structure_of_a_state_is_the_cells(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    _, state = layer(normal(T, B, I))
    assert isinstance(state, tuple) == (cell is rc.LSTM)
    y, again, tape = layer.forward(normal(T, B, I), list(state) if cell is rc.LSTM else state)
    assert type(again) is type(state)
    g = layer.backward(tape, np.ones_like(y))
    assert type(g.state) is type(state)
    assert g.state_grads is None
    assert "x (6, 3, 4)" in repr(g)


@pytest.mark.parametrize("ragged", [False, True])
def test_batch_first_is_the_same_transposed(cell: Any, ragged: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True, "seed": 0}
    time_major, batch_major = cell(I, H, **options), cell(I, H, batch_first=True, **options)
    x, dy = normal(T, B, I), normal(T, B, 2 * H, seed=1)
    state = state_like(time_major, 4, B, H)
    lengths = LENGTHS if ragged else None

    def turned(array: Array) -> Array:
        return np.ascontiguousarray(array.swapaxes(0, 1))

    y, final, tape, g = run(time_major, x, state, dy, state, lengths=lengths)
    y2, final2, tape2, g2 = run(batch_major, turned(x), state, turned(dy), state, lengths=lengths)
    assert y2.shape == (B, T, 2 * H)
    assert_same(y2, turned(y))
    assert_same(final2, final)
    assert_same(batch_major(turned(x), state, lengths=lengths), (y2, final2))
    assert_same(g2.x, turned(g.x))
    assert_same(g2.state, g.state)
    assert_same(g2.params, g.params)
    assert g.state_grads is not None
    assert g2.state_grads is not None
    for part, gates in tape.gates().items():
        assert_same(tape2.gates()[part], {name: turned(a) for name, a in gates.items()})
        steps = g.state_grads[part]
        assert_same(g2.state_grads[part], {name: turned(a) for name, a in steps.items()})


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(cell: Any, batch_first: bool) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, batch_first=batch_first, seed=0)
    axis = 0 if batch_first else 1
    x, dy, state = normal(T, I), normal(T, 2 * H, seed=1), state_like(layer, 4, H)
    batched = tuple(m[:, None] for m in members(state))
    batched_state = batched if cell is rc.LSTM else batched[0]
    y, final, tape, g = run(layer, x, state, dy, state)
    y2, final2, tape2, g2 = run(
        layer, np.expand_dims(x, axis), batched_state, np.expand_dims(dy, axis), batched_state
    )
    assert y.shape == (T, 2 * H)
    assert_same(y, y2.squeeze(axis))
    for one, other in zip(members(final), members(final2), strict=True):
        assert one.shape == (4, H)
        assert_same(one, other[:, 0])
    assert_same(layer(x, state)[0], y)
    assert_same(g.x, g2.x.squeeze(axis))
    for one, other in zip(members(g.state), members(g2.state), strict=True):
        assert_same(one, other[:, 0])
    assert_same(g.params, g2.params)
    for got, expected in ((tape.gates(), tape2.gates()), (g.state_grads, g2.state_grads)):
        assert got is not None
        for part, arrays in got.items():
            assert_same(arrays, {name: a.squeeze(axis) for name, a in expected[part].items()})


@pytest.mark.parametrize(("steps", "rows"), [(0, B), (T, 0), (0, 0)])
def test_nothing_in_nothing_out(cell: Any, steps: int, rows: int) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, seed=0)
    x, state = normal(steps, rows, I), state_like(layer, 4, rows, H)
    y, final, tape, g = run(layer, x, state, np.ones((steps, rows, 2 * H)), state)
    single = tuple(m.astype(np.float32) for m in members(state))
    assert y.shape == (steps, rows, 2 * H)
    assert_same(members(final), single)
    assert_same(members(layer(x, state)[1]), single)
    assert_same(members(g.state), single)
    assert g.x.shape == x.shape
    assert all(not array.any() for array in g.params.values())
    assert tape.gates()["l1"][GATES[cell][0]].shape == (steps, rows, H)
    empty_lengths: list[int] = [0] * rows
    assert_same(members(layer(x, state, lengths=empty_lengths)[1]), single)


def test_an_unbatched_sequence_may_be_empty(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    y, state = layer(np.zeros((0, I)))
    assert y.shape == (0, H)
    assert all(not member.any() for member in members(state))


def test_no_state_is_a_state_of_zeros(cell: Any) -> None:
    layer, x = cell(I, H, seed=0), normal(T, B, I)
    zeros = np.zeros((1, B, H))
    assert_same(layer(x), layer(x, (zeros, zeros) if cell is rc.LSTM else zeros))


def test_inference_is_the_training_forward_without_masks(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, dropout=0.5, recurrent_dropout=0.5, seed=0)
    x = normal(T, B, I)
    y, state, _ = layer.forward(x, lengths=LENGTHS, dropout=False)
    assert_same(layer(x, lengths=LENGTHS), (y, state))


def test_results_have_the_layers_dtype_whatever_comes(cell: Any) -> None:
    for dtype in ("float32", "float64"):
        layer = cell(I, H, dtype=dtype, seed=0)
        for x in (
            np.arange(T * B * I).reshape(T, B, I) % 7,
            (np.arange(T * B * I).reshape(T, B, I) % 7).astype(np.uint8),
            (np.arange(T * B * I).reshape(T, B, I) % 7).astype(np.float16),
            (np.arange(T * B * I).reshape(T, B, I) % 7).tolist(),
        ):
            y, state, tape = layer.forward(x)
            g = layer.backward(tape, np.ones((T, B, H), np.int8))
            exact = layer(np.asarray(x, dtype))
            assert_same((y, *members(state)), (exact[0], *members(exact[1])))
            arrays = [y, *members(state), g.x, *members(g.state), *g.params.values()]
            assert all(array.dtype == dtype for array in arrays)


def test_inputs_are_never_modified(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, dropout=0.5, dtype="float64", seed=0)
    arguments = {
        "x": normal(T, B, I),
        "state": state_like(layer, 4, B, H),
        "dy": normal(T, B, 2 * H),
        "dstate": state_like(layer, 4, B, H, seed=5),
        "lengths": np.array(LENGTHS),
        "params": dict(layer.params),
    }
    before = copy.deepcopy(arguments)
    y, _, tape = layer.forward(arguments["x"], arguments["state"], lengths=arguments["lengths"])
    kept = y.copy()
    layer.backward(tape, arguments["dy"], arguments["dstate"])
    for name, value in arguments.items():
        assert_same(value, before[name])
    assert_same(y, kept)


def test_gradients_are_fresh_arrays(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    y, _, tape = layer.forward(normal(T, B, I))
    first = layer.backward(tape, np.ones_like(y), keep=True)
    second = layer.backward(tape, np.ones_like(y), keep=True)
    kept = copy.deepcopy(second)
    first.x += 1
    for array in (*members(first.state), *first.params.values()):
        array += 1
    assert_same_gradients(second, kept)
    assert list(first.params) == list(layer.params)


# ----------------------------------------------------------------------- missing gradients


def test_a_missing_gradient_is_zero(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, seed=0)
    y, _, tape = layer.forward(normal(T, B, I), lengths=LENGTHS)
    dy, dstate = normal(T, B, 2 * H), state_like(layer, 4, B, H)
    zero = np.zeros((4, B, H))
    zeros = (zero, zero) if cell is rc.LSTM else zero

    def backward(*arguments: Any) -> Any:
        return layer.backward(tape, *arguments, keep=True, return_state_grads=True)

    assert_same_gradients(backward(dy), backward(dy, zeros))
    assert_same_gradients(backward(None, dstate), backward(np.zeros_like(y), dstate))
    assert_same_gradients(backward(), backward(np.zeros_like(y), zeros))
    if cell is rc.LSTM:
        dh, dc = dstate
        assert_same_gradients(backward(dy, (dh, None)), backward(dy, (dh, zero)))
        assert_same_gradients(backward(dy, [None, dc]), backward(dy, (zero, dc)))
        assert_same_gradients(backward(None, (None, None)), backward())


# -------------------------------------------------------------------------------- tapes


def test_a_tape_owns_what_it_needs(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, merge="mul", seed=0)
    x, state = normal(T, B, I).astype(np.float32), state_like(layer, 4, B, H)
    state = tuple(m.astype(np.float32) for m in members(state))
    state = state if cell is rc.LSTM else state[0]
    lengths = np.array(LENGTHS)
    dy = np.ones((T, B, H))
    dy[4:, 0] = 1e300  # padding, as long as the tape remembers its own lengths
    _, _, tape = layer.forward(x, state, lengths=lengths)
    expected = layer.backward(tape, dy)
    y, final, tape = layer.forward(x, state, lengths=lengths)
    gates = copy.deepcopy(tape.gates())
    for array in (x, y, *members(state), *members(final)):
        array[...] = np.nan
    lengths[:] = T
    assert_same(tape.gates(), gates)
    assert_same_gradients(layer.backward(tape, dy), expected)


def test_tapes_and_frozen_layers_have_no_copies(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    y, _, tape = layer.forward(normal(T, B, I))
    frozen = layer.freeze()
    assert isinstance(frozen, rc.Frozen)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="Tape: expected to stay the only tape of its forward"):
            pickle.dumps(tape, protocol)
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="Tape: expected to stay the only tape of its forward"):
            action(tape)
        with pytest.raises(TypeError, match=r"cannot pickle '.*Frozen'"):
            action(frozen)
    layer.backward(tape, y)  # it is as good as before


def test_gates_are_fresh_arrays_and_zero_beyond_the_lengths(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, seed=0)
    y, _, tape = layer.forward(normal(T, B, I), lengths=LENGTHS)
    expected = layer.backward(tape, np.ones_like(y), keep=True)
    gates = tape.gates()
    for part in gates.values():
        assert list(part) == list(GATES[cell])
        for array in part.values():
            assert array.shape == (T, B, H)
            for row, length in enumerate(LENGTHS):
                assert not array[length:, row].any()
                assert array[:length, row].any() == (length > 0)
            array[...] = np.nan
    assert_same_gradients(layer.backward(tape, np.ones_like(y)), expected)


def test_a_tape_is_used_once_unless_kept(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    y, _, tape = layer.forward(normal(T, B, I))
    dy = np.ones_like(y)
    held = tape.nbytes
    assert held >= y.nbytes + T * B * I * 4
    assert str(held) in repr(tape)
    first = layer.backward(tape, dy, keep=True)
    assert_same_gradients(layer.backward(tape, dy, keep=True), first)
    assert tape.nbytes == held
    assert_same_gradients(layer.backward(tape, dy), first)
    assert tape.nbytes == 0
    assert "used" in repr(tape)
    for keep in (False, True):
        with pytest.raises(ValueError, match=r"tape: expected an unused one, got one .*consumed"):
            layer.backward(tape, dy, keep=keep)
    with pytest.raises(ValueError, match=r"tape: expected an unused one, got one .*consumed"):
        tape.gates()


def test_bad_arguments_leave_the_tape_usable(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    y, _, tape = layer.forward(normal(T, B, I))
    dy = np.ones_like(y)
    calls: list[tuple[type[Exception], tuple[Any, ...], dict[str, Any]]] = [
        (ValueError, (dy[1:],), {}),
        (TypeError, (dy.astype(complex),), {}),
        (ValueError if cell is not rc.LSTM else TypeError, (dy, np.ones((1, B, H + 1))), {}),
        (TypeError, (dy,), {"keep": 1}),
        (TypeError, (dy,), {"return_state_grads": None}),
    ]
    for error, arguments, options in calls:
        with pytest.raises(error):
            layer.backward(tape, *arguments, **options)
    assert layer.backward(tape, dy).x.shape == (T, B, I)


@pytest.mark.parametrize("keep", [False, True])
def test_memory_that_cannot_be_had_gives_back_only_what_was_taken(
    keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = rc.GRU(I, H, seed=0)
    y, _, tape = layer.forward(normal(T, B, I))
    stack = layer._stack

    class Failing:
        def backward(self, *arguments: Any) -> Any:
            if keep:  # meanwhile another call consumes the tape
                monkeypatch.setattr(layer, "_stack", stack)
                layer.backward(tape, y)
            raise MemoryError("dx: could not allocate")

    monkeypatch.setattr(layer, "_stack", Failing())
    with pytest.raises(MemoryError):
        layer.backward(tape, y, keep=keep)
    monkeypatch.setattr(layer, "_stack", stack)
    if keep:
        with pytest.raises(ValueError, match="tape: expected an unused one"):
            layer.backward(tape, y)
    else:
        assert layer.backward(tape, y).x.shape == (T, B, I)


def test_the_weights_are_those_of_the_backward_call(cell: Any) -> None:
    layer, x = cell(I, H, seed=0), normal(T, B, I)
    y, _, tape = layer.forward(x)
    before = layer.backward(tape, np.ones_like(y), keep=True)
    layer.params["weight_ih_l0"] *= 2
    after = layer.backward(tape, np.ones_like(y))
    # dx = dpre W: with W doubled and the tape as it was, dx doubles exactly.
    assert_same(after.x, 2 * before.x)


@pytest.mark.parametrize("every", [1, 2, 5, T, T + 3, 10**30])
def test_checkpoints_change_memory_not_bits(cell: Any, every: int) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, dropout=0.5, recurrent_dropout=0.5, seed=0)
    x, state, dy = normal(T, B, I), state_like(layer, 4, B, H), normal(T, B, 2 * H)
    whole = run(layer, x, state, dy, state, lengths=LENGTHS)
    layer.call_number = 0
    pieces = run(layer, x, state, dy, state, lengths=LENGTHS, checkpoint=every)
    assert_same(pieces[0], whole[0])
    assert_same(pieces[1], whole[1])
    assert_same(pieces[2].gates(), whole[2].gates())
    assert_same_gradients(pieces[3], whole[3])


def test_a_checkpointed_tape_is_smaller(cell: Any) -> None:
    layer, x = cell(4, 32, seed=0), normal(256, 2, 4)
    whole, pieces = layer.forward(x)[2], layer.forward(x, checkpoint=16)[2]
    # What remains per step is x, of 4 features; the states of every 16th step add 2 or 4.
    assert pieces.nbytes < whole.nbytes / 2


def test_what_checkpoints_do_not_save(cell: Any) -> None:
    steps = 64
    x = normal(steps, B, I)
    layer = cell(I, H, num_layers=2, seed=0)
    whole, every, last = (layer.forward(x, checkpoint=k)[2].nbytes for k in (None, 1, steps))
    assert (every < whole) == (cell is not rc.RNN)
    # The inputs of both layers stay; with "mul" the outputs of both directions do too.
    inputs = 4 * steps * B * (I + H)
    assert inputs <= last < 1.5 * inputs
    mul = cell(I, H, num_layers=2, bidirectional=True, merge="mul", seed=0)
    outputs = 4 * steps * B * (2 * H) * 2
    assert mul.forward(x, checkpoint=steps)[2].nbytes >= inputs + outputs


def test_a_tape_keeps_its_layer_alive_and_lets_it_go(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    _, _, tape = layer.forward(normal(T, B, I))
    alive = weakref.ref(layer)
    del layer
    gc.collect()
    assert tape.gates()["l0"]
    assert alive() is not None
    del tape
    gc.collect()
    assert alive() is None


# ------------------------------------------------------------------------------ dropout


def test_the_call_number_advances_only_when_masks_act(cell: Any) -> None:
    x = normal(T, B, I)
    dry = cell(I, H, num_layers=2, seed=0)
    dry.forward(x)
    dry(x)
    assert dry.call_number == 0
    for options in ({"dropout": 0.5}, {"recurrent_dropout": 0.5}):
        layer = cell(I, H, num_layers=2, seed=0, **options)
        layer(x)
        layer.forward(x, dropout=False)
        assert layer.call_number == 0
        with pytest.raises(ValueError, match="x: expected shape"):
            layer.forward(x[..., 1:])
        with pytest.raises(ValueError, match="lengths: expected"):
            layer.forward(x, lengths=[T + 1] * B)
        assert layer.call_number == 0
        y, _, tape = layer.forward(x)
        assert layer.call_number == 1
        layer.backward(tape, np.ones_like(y))
        assert layer.call_number == 1


def test_a_failed_forward_gives_its_call_number_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def forward(self, *arguments: Any) -> Any:
            raise MemoryError("y: could not allocate")

    layer = rc.GRU(I, H, recurrent_dropout=0.5, seed=0)
    monkeypatch.setattr(layer, "_stack", Failing())
    with pytest.raises(MemoryError):
        layer.forward(normal(T, B, I))
    assert layer.call_number == 0


def test_the_call_number_replays_masks(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, dropout=0.5, recurrent_dropout=0.5, seed=0)
    x = normal(T, B, I)
    first, second = layer.forward(x)[0], layer.forward(x)[0]
    assert not np.array_equal(first, second)
    layer.call_number = np.int64(0)
    assert_same(layer.forward(x)[0], first)
    assert layer.call_number == 1
    other = cell(I, H, num_layers=2, dropout=0.5, recurrent_dropout=0.5, seed=1)
    other.load_params(layer.params)
    assert not np.array_equal(other.forward(x)[0], first)
    layer.call_number = 2**64 - 1
    layer.forward(x)
    assert layer.call_number == 0


def test_masks_are_those_of_the_reference() -> None:
    layer = rc.GRU(I, H, num_layers=2, dropout=0.3, recurrent_dropout=0.4, dtype="float64", seed=11)
    layer.call_number = 5
    x = normal(T, B, I)
    config = reference.Config("gru", I, H, num_layers=2, dropout=0.3, recurrent_dropout=0.4)
    expected, _, _ = reference.forward(config, layer.params, x, masks=(11, 5))
    y, _, _ = layer.forward(x)
    assert abs(y - expected).max() <= 1e-12


def test_a_tape_without_dropout_has_no_mask(cell: Any) -> None:
    wet = cell(I, H, num_layers=2, dropout=0.5, recurrent_dropout=0.5, seed=0)
    dry = cell(I, H, num_layers=2, seed=0)
    x, dy = normal(T, B, I), normal(T, B, H)
    results = [layer.forward(x, dropout=False) for layer in (wet, dry)]
    (y, state, tape), (dry_y, dry_state, dry_tape) = results
    assert_same(y, dry_y)
    assert_same(state, dry_state)
    assert_same_gradients(wet.backward(tape, dy), dry.backward(dry_tape, dy))


# ------------------------------------------------------------------------ copies, printing


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
def test_repr_round_trips(cell: Any, options: dict[str, Any]) -> None:
    for seed in (3, None):
        layer = cell(I, H, seed=seed, **options)
        again = eval(repr(layer), vars(rc))
        assert type(again) is type(layer)
        assert repr(again) == repr(layer)
        assert f"seed={layer.seed}" in repr(layer)
        for name in inspect.signature(cell).parameters:
            assert getattr(again, name) == getattr(layer, name)
        assert_same(dict(again.params), dict(layer.params))


def test_repr_tells_only_what_is_not_default() -> None:
    assert repr(rc.LSTM(3, 4, seed=7)) == "LSTM(3, 4, seed=7)"
    layer = rc.RNN(3, 4, nonlinearity="relu", dtype=np.float64, seed=7)
    assert repr(layer) == "RNN(3, 4, nonlinearity='relu', dtype='float64', seed=7)"


def copies(layer: Any) -> list[Any]:
    """Copy a layer in every way that makes an independent one."""
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    return [
        copy.deepcopy(layer),
        *(pickle.loads(pickle.dumps(layer, protocol)) for protocol in protocols),
    ]


@pytest.mark.parametrize(("cell", "options"), OPTIONS, ids=str)
def test_copies_continue_where_the_layer_is(cell: Any, options: dict[str, Any]) -> None:
    layer = cell(I, H, seed=None, **options)
    layer.params["weight_hh_l0"] *= 0.5
    layer.call_number = 9
    x = normal(T, B, I)
    clones = copies(layer)
    expected = layer.forward(x)
    for clone in clones:
        assert clone is not layer
        assert repr(clone) == repr(layer)
        assert clone.call_number == 9
        y, state, _ = clone.forward(x)
        assert_same(y, expected[0])
        assert_same(state, expected[1])
        assert clone.call_number == layer.call_number
        clone.params["weight_hh_l0"][...] = 0
        assert layer.params["weight_hh_l0"].any()


def test_a_pickle_with_its_arrays_in_read_only_buffers_can_be_trained() -> None:
    layer = rc.GRU(I, H, seed=0)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(layer, protocol=5, buffer_callback=buffers.append)
    clone = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
    assert_same(dict(clone.params), dict(layer.params))
    clone.params["weight_hh_l0"] *= 0.5
    assert not np.array_equal(clone.params["weight_hh_l0"], layer.params["weight_hh_l0"])


def test_a_shallow_copy_shares_the_parameters_alone() -> None:
    layer = rc.GRU(I, H, recurrent_dropout=0.5, seed=0)
    clone = copy.copy(layer)
    assert np.shares_memory(clone.params["weight_hh_l0"], layer.params["weight_hh_l0"])
    clone.forward(normal(T, B, I))
    assert (clone.call_number, layer.call_number) == (1, 0)


def test_layers_compare_by_identity(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    clone = copy.deepcopy(layer)
    assert layer == layer
    assert layer != clone
    assert len({layer, clone}) == 2


def test_subclasses_keep_their_attributes() -> None:
    layer = Named(3, 4, seed=0)
    layer.label = "encoder"
    clone = pickle.loads(pickle.dumps(layer))
    assert type(clone) is Named
    assert clone.label == "encoder"
    assert_same(clone(normal(T, B, 3))[0], layer(normal(T, B, 3))[0])


class Named(rc.GRU):
    """A user's layer; at module level so that it can be pickled."""

    label = ""


def test_extra_state_is_the_seed_and_the_call_number() -> None:
    layer, other = rc.GRU(I, H, recurrent_dropout=0.5, seed=3), rc.GRU(I, H, recurrent_dropout=0.5)
    layer.call_number = 2**64 - 1
    state = layer._extra_state()
    assert state == {"seed": "3", "call_number": str(2**64 - 1)}
    other._load_extra_state(state)
    assert (other.seed, other.call_number) == (3, 2**64 - 1)
    other.load_params(layer.params)
    assert_same(other.forward(normal(T, B, I))[0], layer.forward(normal(T, B, I))[0])
    before = other._extra_state()
    for name in ("seed", "call_number"):
        bad: dict[str, str]
        for bad in ({**state, name: "-1"}, {**state, name: "x"}, {**state, name: str(2**64)}):
            with pytest.raises(ValueError, match=rf"{name}: expected .*got"):
                other._load_extra_state(bad)
        with pytest.raises(ValueError, match=rf"{name}: expected .*got 'nothing'"):
            other._load_extra_state({key: text for key, text in state.items() if key != name})
        assert other._extra_state() == before
    other._load_extra_state({"format": "pt"})
    assert other._extra_state() == before


# ------------------------------------------------------------------------------- freeze


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_frozen_layer_streams_in_the_layers_layout(cell: Any, batch_first: bool) -> None:
    layer = cell(I, H, num_layers=2, batch_first=batch_first, dtype="float64", seed=0)
    x = normal(B, T, I) if batch_first else normal(T, B, I)
    y, final = layer(x)
    frozen = layer.freeze(batch_size=B)
    layer.params["weight_hh_l0"] *= 0  # a snapshot does not see it
    assert_same(frozen.run(x), y)
    assert_same(frozen.state, final)
    frozen.reset()
    x_t, y_t = (x.swapaxes(0, 1), y.swapaxes(0, 1)) if batch_first else (x, y)
    for t in range(T):
        assert_same(frozen.step(np.ascontiguousarray(x_t[t])), np.ascontiguousarray(y_t[t]))
    assert_same(frozen.state, final)


def test_a_frozen_layer_of_one_row_takes_vectors(cell: Any) -> None:
    layer = cell(I, H, dtype="float64", seed=0)
    x = normal(T, I)
    frozen = layer.freeze()
    y = np.stack([frozen.step(x_t) for x_t in x])
    assert_same(y, layer(x)[0])


@pytest.mark.parametrize("cell", [rc.LSTM, rc.GRU])
def test_how_far_bfloat16_weights_lead(cell: Any) -> None:
    layer = cell(256, 256, seed=0)
    x = normal(200, 256).astype(np.float32)
    frozen = layer.freeze(weights="bfloat16")
    error = np.abs(frozen.run(x) - layer.freeze().run(x)).max()
    assert 1e-3 < error < 1e-2


def test_a_frozen_layer_says_what_it_is() -> None:
    layer = rc.GRU(3, 4, num_layers=2, seed=0)
    sizes = "3 -> 4, 2 layers, batch_size=5"
    assert repr(layer.freeze(5)) == f"<Frozen: {sizes}, weights=float32>"
    assert repr(layer.freeze(5, weights="bfloat16")) == f"<Frozen: {sizes}, weights=bfloat16>"


def test_a_nan_among_bfloat16_weights_stays_one() -> None:
    layer = rc.RNN(3, 4, seed=0)
    # All that makes it a NaN lies in the bits that bfloat16 drops.
    layer.params["weight_ih_l0"].view(np.uint32)[2, 1] = 0x7F800001
    y = layer.freeze(weights="bfloat16").step(np.ones(3, np.float32))
    assert np.isnan(y).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_parameters_of_copies_begin_on_cache_lines(copied: Any) -> None:
    layer = rc.GRU(3, 5, num_layers=2, bidirectional=True, seed=0)
    for one in (layer, copied(layer)):
        assert {array.ctypes.data % 64 for array in one.params.values()} == {0}
