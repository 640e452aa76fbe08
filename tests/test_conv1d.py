"""The convolution: naive loops, exact gradients over every option, lengths, streams, copies."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradcheck import assert_gradient
from rnncore.conv1d import Conv1d, Conv1dTape, FrozenConv1d

FLOATS = ("float32", "float64")
PADDINGS: tuple[Any, ...] = ("same", "causal", "valid", 0, 3)
T, B, C, O = 7, 4, 2, 3
LENGTHS = [4, 0, T, 1]

#: Kernel, stride, padding, dilation: every padding with all of the others.
FORMS = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d}
    for (k, d), s, p in itertools.product(
        [(1, 1), (2, 1), (3, 1), (3, 2), (4, 2)], (1, 2), PADDINGS
    )
]


def made(form: Any, **options: Any) -> Conv1d:
    """Return a layer whose bias is not 0."""
    return Conv1d(C, O, **{"dtype": "float64", "init": "pytorch", "seed": 0, **form, **options})


def naive(layer: Conv1d, x: NDArray[Any]) -> NDArray[np.float64]:
    """Convolve one row x (L, C) alone, by its definition."""
    K, d, s = layer.kernel_size, layer.dilation, layer.stride
    around = (K - 1) * d
    ends = {
        "same": (around // 2, around - around // 2),
        "causal": (around, 0),
        "valid": (0, 0),
    }
    p = layer.padding
    left, right = ends[p] if isinstance(p, str) else (p, p)
    rows = []
    for first in range(0, left + len(x) + right - around, s) if len(x) else ():
        y = np.zeros(O)
        if layer.bias:
            y += layer.params["bias"]
        for o, c, k in np.ndindex(O, C, K):
            t = first + k * d - left
            if 0 <= t < len(x):
                y[o] += layer.params["weight"][o, c, k] * x[t, c]
        rows.append(y)
    return np.array(rows).reshape(-1, O)


def drawn(ragged: bool, batch_first: bool = False) -> tuple[NDArray[Any], Any]:
    """Draw x with NaN beyond the lengths, and the lengths."""
    x = np.random.default_rng(1).standard_normal((T, B, C))
    lengths = np.array(LENGTHS) if ragged else None
    if ragged:
        x[np.arange(T)[:, None] >= LENGTHS] = np.nan
    return (x.swapaxes(0, 1) if batch_first else x), lengths


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_row_is_the_naive_loop_over_it_alone(form: Any) -> None:
    for bias, ragged, batch_first in itertools.product((True, False), repeat=3):
        layer = made(form, bias=bias, batch_first=batch_first)
        x, lengths = drawn(ragged, batch_first)
        with np.errstate(all="raise"):
            y = layer(x, lengths=lengths)
            again, _ = layer.forward(x, lengths=lengths)
        np.testing.assert_array_equal(again, y, strict=True)
        if batch_first:
            x, y = x.swapaxes(0, 1), y.swapaxes(0, 1)
        assert y.shape == (layer.output_lengths(T), B, O)
        for b, length in enumerate(LENGTHS if ragged else [T] * B):
            expected = naive(layer, x[:length, b])
            steps = len(expected)
            assert steps == layer.output_lengths(length)
            np.testing.assert_allclose(y[:steps, b], expected, rtol=0, atol=1e-14)
            assert (y[steps:, b] == 0).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_along_a_direction(form: Any, ragged: bool) -> None:
    for bias, batch_first in itertools.product((True, False), repeat=2):
        rng = np.random.default_rng(2)
        layer = made(form, bias=bias, batch_first=batch_first)
        x, lengths = drawn(ragged, batch_first)
        point = {"x": x, **{name: a.copy() for name, a in layer.params.items()}}
        y, tape = layer.forward(x, lengths=lengths)
        weights = rng.standard_normal(y.shape)
        dy = weights * y
        if lengths is not None:
            outputs = layer.output_lengths(lengths)
            outside = np.arange(y.shape[1 if batch_first else 0])[:, None] >= outputs
            dy[outside.T if batch_first else outside] = np.nan
        g = layer.backward(tape, dy)
        assert list(g.params) == list(layer.params)
        assert (g.x[np.isnan(x)] == 0).all()

        def loss(
            at: Any, layer: Conv1d = layer, lengths: Any = lengths, weights: Any = weights
        ) -> float:
            layer.load_params({name: at[name] for name in layer.params})
            return float((weights * layer(at["x"], lengths=lengths) ** 2).sum()) / 2

        assert_gradient(loss, point, {"x": g.x, **g.params}, rng)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(padding: Any, batch_first: bool) -> None:
    layer = made({"kernel_size": 3}, padding=padding, batch_first=batch_first)
    x = np.random.default_rng(3).standard_normal((T, C))
    y, tape = layer.forward(x)
    batched = x[None] if batch_first else x[:, None]
    y2, tape2 = layer.forward(batched)
    np.testing.assert_array_equal(y, y2[0] if batch_first else y2[:, 0], strict=True)
    g, g2 = layer.backward(tape, y), layer.backward(tape2, y2)
    np.testing.assert_array_equal(g.x, g2.x[0] if batch_first else g2.x[:, 0], strict=True)
    np.testing.assert_array_equal(g.params["weight"], g2.params["weight"], strict=True)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(0, B, C), (T, 0, C), (0, 0, C), (0, C), (2, B, C)])
def test_empty_and_short_sequences(padding: Any, shape: tuple[int, ...]) -> None:
    layer = made({"kernel_size": 4}, padding=padding)
    y, tape = layer.forward(np.ones(shape))
    steps = int(layer.output_lengths(shape[0]))
    assert y.shape == (steps, *shape[1:-1], O)
    assert steps == 0 or shape[0] > 0
    g = layer.backward(tape, y)
    assert g.x.shape == shape
    assert g.params["weight"].shape == (O, C, 4)
    assert np.isfinite(g.params["weight"]).all()


def test_causal_outputs_see_no_later_step_and_same_is_centred() -> None:
    x = np.zeros((T, 1))
    x[3] = 1
    for padding, seen in (("causal", [3, 4, 5]), ("same", [2, 3, 4])):
        layer = Conv1d(1, 1, 3, padding=padding, bias=False, seed=0)
        assert np.flatnonzero(layer(x)).tolist() == seen


def test_output_lengths_are_those_of_pytorch() -> None:
    # floor((L + 2p - d(K - 1) - 1) / s + 1), from the documentation of torch.nn.Conv1d.
    for K, s, p, d in itertools.product((1, 2, 5), (1, 2, 3), (0, 1, 4), (1, 2)):
        layer = Conv1d(C, O, K, stride=s, padding=p, dilation=d)
        lengths = np.arange(1, 30)
        expected = np.floor((lengths + 2 * p - d * (K - 1) - 1) / s + 1).clip(0)
        np.testing.assert_array_equal(layer.output_lengths(lengths), expected)
        assert layer.output_lengths(0) == 0
    for padding in ("same", "causal"):
        layer = Conv1d(C, O, 5, stride=3, padding=padding)
        np.testing.assert_array_equal(layer.output_lengths(range(30)), -(-np.arange(30) // 3))
    assert layer.output_lengths([[1, 2], [3, 4]]).shape == (2, 2)
    with pytest.raises(ValueError, match=r"lengths: expected 0 <= value .* got -1 at position 1"):
        layer.output_lengths([1, -1])
    with pytest.raises(TypeError, match="lengths: expected integers, got dtype float64"):
        layer.output_lengths([1.0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_that_of_the_layer(dtype: str) -> None:
    layer = made({"kernel_size": 3}, dtype=dtype)
    for x in ([[1, 2]] * T, np.ones((T, C), "float32"), np.ones((T, C), ">f8")):
        y, tape = layer.forward(x)
        g = layer.backward(tape, y.astype("float64" if dtype == "float32" else "float32"))
        assert y.dtype == g.x.dtype == dtype
        assert {a.dtype for a in (*g.params.values(), *layer.params.values())} == {np.dtype(dtype)}
    padding = np.full((T, B, C), 1e300)
    assert (layer(padding, lengths=[0] * B) == 0).all()


def test_a_seed_means_the_same_for_both_dtypes() -> None:
    for init in ("glorot", "pytorch"):
        a, b = (Conv1d(C, O, 3, dtype=dtype, init=init, seed=3) for dtype in FLOATS)
        for name in a.params:
            assert (a.params[name] == b.params[name].astype("float32")).all()


def test_initial_values() -> None:
    glorot = Conv1d(60, 30, 5, dtype="float64", seed=0).params
    bound = (6 / (5 * 90)) ** 0.5
    assert 0.99 * bound < np.abs(glorot["weight"]).max() <= bound
    assert (glorot["bias"] == 0).all()
    other = Conv1d(20, 200, 5, dtype="float64", init="pytorch", seed=0).params
    for name in other:
        assert 0.09 < np.abs(other[name]).max() <= 0.1
    assert Conv1d(C, O, 3).seed != Conv1d(C, O, 3).seed


def test_params_are_live() -> None:
    layer = made({"kernel_size": 1})
    layer.params["weight"] *= 0
    layer.params["bias"] = [1.0, 2.0, 3.0]
    assert layer(np.ones((1, C))).tolist() == [[1.0, 2.0, 3.0]]
    with pytest.raises(ValueError, match=r"expected shape \(O, C, K\) = \(3, 2, 1\), got \(2, 3\)"):
        layer.params["weight"] = np.zeros((2, 3))
    with pytest.raises(ValueError, match="params: missing 'bias'"):
        layer.load_params({"weight": np.zeros((3, 2, 1))})


@pytest.mark.parametrize("ragged", [False, True])
def test_the_tape_owns_what_it_needs(ragged: bool) -> None:
    layer = made({"kernel_size": 3})
    x, lengths = drawn(ragged)
    before = x.copy()
    y, tape = layer.forward(x, lengths=lengths)
    np.testing.assert_array_equal(x, before)
    dy = np.ones_like(y)
    expected = layer.backward(tape, dy, keep=True)
    x[:] = y[:] = np.nan
    if lengths is not None:
        lengths[:] = 0
    g = layer.backward(tape, dy, keep=True)
    np.testing.assert_array_equal(g.x, expected.x)
    g.x[:] = np.nan
    g.params["weight"][:] = np.nan
    again = layer.backward(tape, dy)
    np.testing.assert_array_equal(again.x, expected.x)
    np.testing.assert_array_equal(again.params["weight"], expected.params["weight"])
    assert (dy == 1).all()


def test_a_tape_is_used_once_unless_kept() -> None:
    layer = made({"kernel_size": 3})
    y, tape = layer.forward(np.ones((T, B, C)))
    assert isinstance(tape, Conv1dTape)
    size = (T + 2) * B * C * 8
    assert (tape.nbytes, repr(tape)) == (size, f"<Conv1dTape, {size} bytes>")
    with pytest.raises(ValueError, match=r"dy: expected shape \(T', B, O\) = \(7, 4, 3\), got \(4"):
        layer.backward(tape, y[:4])
    with pytest.raises(TypeError, match="dy: expected real numbers"):
        layer.backward(tape, y.astype(complex))
    layer.backward(tape, y, keep=True)
    layer.backward(tape, y)
    assert (tape.nbytes, repr(tape)) == (0, "<Conv1dTape, used>")
    with pytest.raises(ValueError, match=r"tape: expected an unused one, .*keep=True"):
        layer.backward(tape, y)


def test_a_tape_belongs_to_one_layer() -> None:
    layer = made({"kernel_size": 3})
    y, tape = layer.forward(np.ones((T, C)))
    for stranger in (made({"kernel_size": 3}), copy.deepcopy(layer)):
        with pytest.raises(ValueError, match="expected one of this layer, got one of another Conv"):
            stranger.backward(tape, y)
    nothing: Any = None
    with pytest.raises(TypeError, match="tape: expected a Conv1dTape, got NoneType"):
        layer.backward(nothing, y)
    number: Any = 1
    with pytest.raises(TypeError, match="keep: expected True or False, got 1"):
        layer.backward(tape, y, keep=number)
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="Conv1dTape: expected to stay the only tape"):
            action(tape)


def test_nan_that_counts_reaches_the_outputs_that_see_it() -> None:
    layer = made({"kernel_size": 3, "padding": "causal"})
    x, _ = drawn(False)
    x[2, 1, 0] = np.nan
    y = layer(x)
    assert np.argwhere(np.isnan(y).any(axis=2)).tolist() == [[2, 1], [3, 1], [4, 1]]


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.ones((T, 3)), {}, ValueError, r"x: expected shape \(T, B, 2\) or \(T, 2\), got \(7, 3"),
        (np.ones(2), {}, ValueError, r"x: expected shape \(T, B, 2\) or \(T, 2\), got \(2,\)"),
        (np.ones((T, C), bool), {}, TypeError, "x: expected real numbers"),
        (np.ones((T, C)), {"lengths": [4]}, ValueError, "lengths: expected None for an unbatched"),
        (np.ones((T, 1, C)), {"lengths": [8]}, ValueError, "lengths: expected 0 <= value <= T = 7"),
        ([[1e300, 0]], {}, ValueError, "x: expected values in the range of float32"),
    ],
)
def test_bad_x(x: Any, options: Any, error: type[Exception], message: str) -> None:
    layer = Conv1d(C, O, 3)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x, **options)


EXPECTED = "'same', 'causal', 'valid' or an integer >= 0"


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 1, 1), {}, ValueError, "in_channels: expected a positive integer, got 0"),
        ((1, 0, 1), {}, ValueError, "out_channels: expected a positive integer, got 0"),
        ((1, 1, 0), {}, ValueError, "kernel_size: expected a positive integer, got 0"),
        ((1, 1, 1.0), {}, TypeError, "kernel_size: expected a positive integer, got 1.0"),
        ((1, 1, 1), {"stride": 0}, ValueError, "stride: expected a positive integer, got 0"),
        ((1, 1, 1), {"dilation": 0}, ValueError, "dilation: expected a positive integer, got 0"),
        ((1, 1, 1), {"padding": -1}, ValueError, f"padding: expected {EXPECTED}, got -1"),
        ((1, 1, 1), {"padding": "full"}, ValueError, f"padding: expected {EXPECTED}, got 'full'"),
        ((1, 1, 1), {"padding": True}, TypeError, f"padding: expected {EXPECTED}, got True"),
        ((1, 1, 1), {"padding": 1.0}, TypeError, f"padding: expected {EXPECTED}, got 1.0"),
        ((1, 1, 1), {"padding": (1, 1)}, TypeError, "padding: expected"),
        ((1, 1, 1), {"bias": 1}, TypeError, "bias: expected True or False, got 1"),
        ((1, 1, 1), {"batch_first": 1}, TypeError, "batch_first: expected True or False, got 1"),
        ((1, 1, 1), {"dtype": "float16"}, ValueError, "dtype: expected 'float32' or 'float64'"),
        ((1, 1, 1), {"init": "zeros"}, ValueError, "init: expected 'glorot' or 'pytorch'"),
        ((1, 1, 1), {"seed": -1}, ValueError, "seed: expected an integer in"),
        ((2**30, 2**30, 2**10), {}, ValueError, "out_channels, in_channels\\*kernel_size: .*space"),
        (
            (2**29, 2**20, 2**9),
            {},
            MemoryError,
            "out_channels, in_channels\\*kernel_size: .*memory",
        ),
        ((1, 1, 2), {"dilation": 2**62}, ValueError, "kernel_size, stride, dilation, padding: "),
        ((1, 1, 1), {"padding": 10**400}, ValueError, "padding: expected steps that fit .*bits"),
    ],
)
def test_bad_options(sizes: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Conv1d(*sizes, **options)


@pytest.mark.parametrize(
    "text",
    [
        "Conv1d(2, 3, 4, seed=7)",
        "Conv1d(2, 3, 4, stride=2, padding='valid', dilation=3, bias=False, batch_first=True, "
        "dtype='float64', init='pytorch', seed=0)",
        "Conv1d(2, 3, 4, padding=5, seed=7)",
    ],
)
def test_printing_and_copies(text: str) -> None:
    layer = eval(text, {"Conv1d": Conv1d})
    layer.params["weight"] += 1
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(clone) == text
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        for name in (*names, "bias", "batch_first", "dtype", "init", "seed"):
            assert getattr(clone, name) == getattr(layer, name)
        x = np.ones((9, 2))
        np.testing.assert_array_equal(clone(x), layer(x))
        clone.params["weight"] *= 0
    assert layer.params["weight"].any()


# ---- Streams -------------------------------------------------------------------------------------

#: A product over fewer rows may be rounded otherwise.
CLOSE = {"float32": 1e-6, "float64": 1e-14}


@pytest.mark.parametrize("form", [(1, 1), (3, 1), (2, 3), (4, 2)], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_stream_is_the_full_pass(form: tuple[int, int], batch_first: bool, dtype: str) -> None:
    K, dilation = form
    layer = made(
        {"kernel_size": K, "dilation": dilation, "padding": "causal"},
        batch_first=batch_first,
        dtype=dtype,
    )
    x, _ = drawn(False, batch_first)
    expected = layer(x)
    stream = layer.freeze(B)
    assert isinstance(stream, FrozenConv1d)
    layer.params["weight"] *= 0  # a snapshot does not see it
    x_t = x.swapaxes(0, 1) if batch_first else x
    steps = np.stack([stream.step(value) for value in x_t], axis=1 if batch_first else 0)
    assert steps.dtype == dtype
    np.testing.assert_allclose(steps, expected, rtol=0, atol=CLOSE[dtype])
    assert stream.state.shape == ((K - 1) * dilation, B, C)
    stream.reset()
    axis = 1 if batch_first else 0
    pieces = [stream.run(piece) for piece in np.split(x, [0, 2, 3], axis=axis)]
    np.testing.assert_allclose(np.concatenate(pieces, axis), expected, rtol=0, atol=CLOSE[dtype])


def test_a_stream_of_one_row_takes_vectors() -> None:
    layer = made({"kernel_size": 3, "padding": "causal"})
    x = np.random.default_rng(4).standard_normal((T, C))
    stream = layer.freeze()
    steps = [stream.step(x_t) for x_t in x]
    assert steps[0].shape == (O,)
    np.testing.assert_allclose(np.stack(steps), layer(x), rtol=0, atol=1e-14)
    stream.reset()
    np.testing.assert_allclose(stream.run(x), layer(x), rtol=0, atol=1e-14)
    stream.reset()
    assert stream.step(x[:1]).shape == (1, O)


def test_the_state_of_a_stream() -> None:
    layer = made({"kernel_size": 3, "padding": "causal"})
    x, _ = drawn(False)
    stream, other = layer.freeze(B), layer.freeze(B)
    assert (stream.state == 0).all()
    stream.run(x[:4])
    np.testing.assert_array_equal(stream.state, x[2:4])
    state = stream.state
    other.state = state
    state[:] = np.nan
    np.testing.assert_array_equal(other.step(x[4]), stream.step(x[4]))
    stream.reset([0, 2])
    assert (stream.state[:, [0, 2]] == 0).all()
    np.testing.assert_array_equal(stream.state[:, [1, 3]], x[3:5, [1, 3]])
    stream.reset(1)
    assert (stream.state[:, 1] == 0).all()
    assert stream.state[:, 3].all()


def test_bad_input_of_a_stream_changes_nothing() -> None:
    layer = made({"kernel_size": 3, "padding": "causal"})
    x, _ = drawn(False)
    stream = layer.freeze(B)
    stream.run(x)
    before = stream.state
    with pytest.raises(ValueError, match=r"x_t: expected shape \(B, C\) = \(4, 2\), got \(2,\)"):
        stream.step(x[0, 0])
    with pytest.raises(ValueError, match=r"\(B, C\) = \(1, 2\) or \(C,\) = \(2,\), got \(4, 2\)"):
        layer.freeze().step(x[0])
    with pytest.raises(ValueError, match=r"x: expected 4 rows .*got shape \(7, 3, 2\)"):
        stream.run(x[:, :3])
    with pytest.raises(TypeError, match="x_t: expected real numbers"):
        stream.step(x[0].astype(complex))
    with pytest.raises(
        ValueError, match=r"state: expected shape \(S - 1, B, C\) = \(2, 4, 2\), got"
    ):
        stream.state = x
    for rows, error in (([B], ValueError), ([-1], ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"rows: expected .*got"):
            stream.reset(rows)
    np.testing.assert_array_equal(stream.state, before)


def test_what_cannot_stream() -> None:
    with pytest.raises(ValueError, match="freeze: expected .* stride=1, got stride=2"):
        made({"kernel_size": 3, "padding": "causal", "stride": 2}).freeze()
    for padding in ("same", "valid", 1):
        with pytest.raises(
            ValueError, match=f"freeze: .* padding='causal', got padding={padding!r}"
        ):
            made({"kernel_size": 3, "padding": padding}).freeze()
    for padding in ("same", "valid", 0):  # a kernel of one step looks nowhere else
        layer = made({"kernel_size": 1, "padding": padding})
        np.testing.assert_array_equal(layer.freeze().run(np.ones((T, C))), layer(np.ones((T, C))))
    layer = made({"kernel_size": 3, "padding": "causal"})
    for size, error in ((0, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="batch_size: expected a positive integer"):
            layer.freeze(size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size: expected a size .* the address space"):
        layer.freeze(2**62)


def test_a_stream_is_for_one_thread_and_has_no_copies() -> None:
    stream = made({"kernel_size": 3, "padding": "causal"}).freeze()
    assert repr(stream).startswith("<FrozenConv1d of Conv1d(2, 3, 3, padding='causal'")
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="FrozenConv1d: expected to stay the only one"):
            action(stream)
    failures = []

    def intrude() -> None:
        try:
            stream.step(np.ones(C))
        except RuntimeError as error:
            failures.append(str(error))

    with stream._alone():
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert failures == ["FrozenConv1d: expected one thread at a time, got another"]
    stream.step(np.ones(C))
