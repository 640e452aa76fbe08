"""Pooling over time: naive loops, exact gradients, lengths, its tape, its copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradcheck import assert_gradient
from rnncore.pooling import Pooling, PoolingTape

FLOATS = ("float32", "float64")
MODES = ("last", "mean", "max")
T, B, F = 5, 4, 3
LENGTHS = [2, 0, T, 1]


def naive(x: NDArray[Any], lengths: Any, mode: str) -> NDArray[np.float64]:
    """Pool x (T, B, F) row by row and feature by feature."""
    y = np.zeros(x.shape[1:])
    for b, f in np.ndindex(y.shape):
        values = [float(x[t, b, f]) for t in range(lengths[b])]
        if values:
            pooled = {"last": values[-1], "mean": sum(values) / len(values), "max": max(values)}
            y[b, f] = pooled[mode]
    return y


def drawn(ragged: bool, seed: int = 0) -> tuple[NDArray[Any], Any]:
    """Draw x (T, B, F) with NaN beyond the lengths, and the lengths."""
    x = np.random.default_rng(seed).standard_normal((T, B, F))
    if not ragged:
        return x, None
    x[np.arange(T)[:, None] >= LENGTHS] = np.nan
    return x, np.array(LENGTHS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_forward_is_the_naive_loop(mode: str, ragged: bool, batch_first: bool, dtype: str) -> None:
    layer = Pooling(mode, batch_first=batch_first)
    x, lengths = drawn(ragged)
    x = x.astype(dtype)
    expected = naive(x, [T] * B if lengths is None else lengths, mode)
    given = x.swapaxes(0, 1) if batch_first else x
    with np.errstate(all="raise"):
        y = layer(given, lengths=lengths)
        again, _ = layer.forward(given, lengths=lengths)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-7 if dtype == "float32" else 1e-15)
    np.testing.assert_array_equal(again, y, strict=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_along_a_direction(mode: str, ragged: bool, batch_first: bool) -> None:
    rng = np.random.default_rng(1)
    layer = Pooling(mode, batch_first=batch_first)
    x, lengths = drawn(ragged)
    if batch_first:
        x = x.swapaxes(0, 1)
    dy = rng.standard_normal((B, F))

    def loss(at: Any) -> float:
        return float((dy * layer(at["x"], lengths=lengths) ** 2).sum()) / 2

    y, tape = layer.forward(x, lengths=lengths)
    dx = layer.backward(tape, dy * y).x
    assert dx.shape == x.shape
    assert_gradient(loss, {"x": x}, {"x": dx}, rng)
    if lengths is not None:
        assert (dx[np.isnan(x)] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_unbatched(mode: str) -> None:
    x, _ = drawn(False)
    for batch_first in (False, True):
        layer = Pooling(mode, batch_first=batch_first)
        y, tape = layer.forward(x[:, 0])
        batched, batched_tape = Pooling(mode).forward(x[:, :1])
        np.testing.assert_array_equal(y, batched[0], strict=True)
        dx = layer.backward(tape, np.arange(F)).x
        expected = Pooling.backward(batched_tape._layer, batched_tape, [np.arange(F)]).x  # type: ignore[arg-type]
        np.testing.assert_array_equal(dx, expected[:, 0], strict=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, B, F), (T, 0, F), (T, B, 0), (0, F), (T, 0)])
def test_empty_arrays(mode: str, shape: tuple[int, ...]) -> None:
    layer = Pooling(mode)
    y, tape = layer.forward(np.ones(shape))
    assert y.shape == shape[1:]
    assert (y == 0).all()
    dx = layer.backward(tape, np.full(y.shape, np.nan) if shape[0] == 0 else y).x
    assert dx.shape == shape
    if len(shape) == 3:
        assert (layer(np.ones(shape), lengths=[0] * shape[1]) == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_steps_give_and_get_nothing(mode: str) -> None:
    layer = Pooling(mode)
    y, tape = layer.forward(np.full((T, 2, F), np.nan), lengths=[0, 0])
    assert (y == 0).all()
    assert (layer.backward(tape, np.full((2, F), 1e300)).x == 0).all()


def test_a_maximum_is_the_first_of_equals_even_if_it_is_minus_infinity() -> None:
    layer = Pooling("max")
    x = np.array([[[1.0], [-np.inf]], [[1.0], [-np.inf]], [[1.0], [5.0]]])
    y, tape = layer.forward(x, lengths=[3, 2])
    assert y.tolist() == [[1.0], [-np.inf]]
    assert layer.backward(tape, [[2.0], [3.0]]).x[..., 0].tolist() == [[2, 3], [0, 0], [0, 0]]


@pytest.mark.parametrize("mode", MODES)
def test_nan_that_counts_stays_in_its_place(mode: str) -> None:
    x, _ = drawn(False)
    x[T - 1, 1, 2] = np.nan
    y, tape = Pooling(mode).forward(x)
    assert np.argwhere(np.isnan(y)).tolist() == [[1, 2]]
    assert isinstance(tape, PoolingTape)


def test_a_mean_of_many_float32_is_summed_in_float64() -> None:
    x = np.full((100_000, 1, 1), 0.1, "float32")
    assert Pooling("mean")(x).item() == np.float32(0.1)


@pytest.mark.parametrize("mode", MODES)
def test_arrays_are_fresh_and_inputs_stay(mode: str) -> None:
    layer = Pooling(mode)
    x, lengths = drawn(True)
    before, given = x.copy(), lengths.copy()
    y, tape = layer.forward(x, lengths=lengths)
    np.testing.assert_array_equal(x, before)
    dy = np.ones((B, F))
    expected = layer.backward(tape, dy, keep=True).x
    assert not np.shares_memory(y, x)
    y[:] = x[:] = 7
    lengths[:] = 1
    dx = layer.backward(tape, dy, keep=True).x
    np.testing.assert_array_equal(dx, expected)
    dx[:] = 7
    np.testing.assert_array_equal(layer.backward(tape, dy).x, expected)
    assert (dy == 1).all()
    assert given.tolist() == LENGTHS


def test_other_numbers_become_float64() -> None:
    assert Pooling("mean")([[1, 2], [3, 4]]).tolist() == [2.0, 3.0]
    y, tape = Pooling("mean").forward(np.ones((2, 2), "float32"))
    assert y.dtype == np.dtype("float32")
    layer: Any = tape._layer
    assert layer.backward(tape, [1.0, 2.0]).x.dtype == np.dtype("float32")


def test_a_tape_is_used_once_unless_kept() -> None:
    layer = Pooling("max")
    x, _ = drawn(False)
    _, tape = layer.forward(x)
    size = B * 8 + B * F * 8
    assert (tape.nbytes, repr(tape)) == (size, f"<PoolingTape, {size} bytes>")
    with pytest.raises(
        ValueError, match=r"dy: expected shape \(B, F\) = \(4, 3\), got \(5, 4, 3\)"
    ):
        layer.backward(tape, x)
    with pytest.raises(TypeError, match="dy: expected real numbers"):
        layer.backward(tape, np.ones((B, F), complex))
    number: Any = 0
    with pytest.raises(TypeError, match="keep: expected True or False, got 0"):
        layer.backward(tape, x[0], keep=number)
    layer.backward(tape, x[0], keep=True)
    layer.backward(tape, x[0])
    assert (tape.nbytes, repr(tape)) == (0, "<PoolingTape, used>")
    with pytest.raises(ValueError, match=r"tape: expected an unused one, .*keep=True"):
        layer.backward(tape, x[0])


def test_a_tape_belongs_to_one_layer() -> None:
    layer = Pooling("mean")
    _, tape = layer.forward(np.ones((T, F)))
    with pytest.raises(ValueError, match=r"dy: expected shape \(F,\) = \(3,\), got \(1, 3\)"):
        layer.backward(tape, np.ones((1, F)))
    for stranger in (Pooling("mean"), copy.deepcopy(layer)):
        with pytest.raises(ValueError, match="expected one of this layer, got one of another Pool"):
            stranger.backward(tape, np.ones(F))
    nothing: Any = None
    with pytest.raises(TypeError, match="tape: expected a PoolingTape, got NoneType"):
        layer.backward(nothing, np.ones(F))
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="PoolingTape: expected to stay the only tape"):
            action(tape)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.ones(3), {}, ValueError, r"x: expected shape \(T, B, F\) or \(T, F\), got \(3,\)"),
        (np.ones((1, 2, 3, 4)), {}, ValueError, r"x: expected shape \(T, B, F\) or \(T, F\), got"),
        (np.ones((2, 3), bool), {}, TypeError, "x: expected real numbers"),
        (np.ones((4, 3)), {"lengths": [4]}, ValueError, "lengths: expected None for an unbatched"),
        (np.ones((4, 1, 3)), {"lengths": [5]}, ValueError, "lengths: expected 0 <= value <= T = 4"),
        (np.ones((4, 1, 3)), {"lengths": [1, 1]}, ValueError, r"lengths: expected shape \(B,\)"),
        (np.ones((4, 1, 3)), {"lengths": [1.0]}, TypeError, "lengths: expected integers"),
    ],
)
def test_bad_x(x: Any, options: Any, error: type[Exception], message: str) -> None:
    layer = Pooling("last")
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x, **options)


@pytest.mark.parametrize(
    ("mode", "options", "error", "message"),
    [
        ("min", {}, ValueError, "mode: expected 'last' or 'mean' or 'max', got 'min'"),
        (None, {}, TypeError, "mode: expected 'last' or .*got None of type NoneType"),
        ("max", {"batch_first": 1}, TypeError, "batch_first: expected True or False, got 1"),
    ],
)
def test_bad_options(mode: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pooling(mode, **options)


def test_printing_and_copies() -> None:
    for text in ("Pooling('mean')", "Pooling('max', batch_first=True)"):
        layer = eval(text, {"Pooling": Pooling})
        for clone in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert repr(clone) == text
            assert (clone.mode, clone.batch_first) == (layer.mode, layer.batch_first)
            assert dict(clone.params) == {}
    layer.load_params({})
    with pytest.raises(ValueError, match="params: unexpected 'weight'"):
        layer.load_params({"weight": 1})
