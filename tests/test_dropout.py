"""Dropout: its masks are those of the reference, exact gradients, lengths, its tape, its copies."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnncore as rc
from gradcheck import assert_gradient
from rnncore.dropout import Dropout, DropoutTape
from rnncore.reference import dropout_mask

FLOATS = ("float32", "float64")
T, B, F = 5, 3, 4


def mask(layer: Dropout, call: int, steps: int, rows: int, features: int) -> NDArray[Any]:
    """Compute the mask (T, B, F) of a call, step by step, as the reference defines it."""
    y = np.empty((steps, rows, features))
    for t in range(steps):
        time = None if layer.per_sequence else t
        y[t] = dropout_mask(2, layer.seed, call, 0, 0, time, rows, features, layer.p)
    return y


@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_masks_are_those_of_the_reference(
    p: float, per_sequence: bool, batch_first: bool, seed: int
) -> None:
    layer = Dropout(p, per_sequence=per_sequence, batch_first=batch_first, seed=seed)
    x = np.random.default_rng(0).standard_normal((T, B, F))
    for call in (0, 1, 2**64 - 1):
        layer.call_number = call
        y, _ = layer.forward(x.swapaxes(0, 1) if batch_first else x)
        assert layer.call_number == (call + 1) % 2**64
        expected = x * mask(layer, call, T, B, F)
        np.testing.assert_array_equal(y.swapaxes(0, 1) if batch_first else y, expected)


@pytest.mark.parametrize("per_sequence", [False, True])
def test_unbatched_masks_are_those_of_one_row(per_sequence: bool) -> None:
    for batch_first in (False, True):
        layer = Dropout(0.5, per_sequence=per_sequence, batch_first=batch_first, seed=1)
        y, _ = layer.forward(np.ones((T, F)))
        np.testing.assert_array_equal(y, mask(layer, 0, T, 1, F)[:, 0])
    if not per_sequence:
        y, _ = layer.forward(np.ones(F))
        np.testing.assert_array_equal(y, mask(layer, 1, 1, 1, F)[0, 0])


def test_one_mask_a_sequence_is_the_same_at_every_step_and_another_in_every_call() -> None:
    layer = Dropout(0.5, per_sequence=True, seed=0)
    x = np.ones((T, B, 50))
    (a, _), (b, _) = layer.forward(x), layer.forward(x)
    assert (a == a[0]).all()
    assert (a[:, 0] != a[:, 1]).any()
    assert (a != b).any()
    each, _ = Dropout(0.5, seed=0).forward(x)
    assert (each != each[0]).any()


def test_masks_are_not_those_of_a_recurrent_layer_with_the_same_seed() -> None:
    layer = Dropout(0.5, seed=7)
    y, _ = layer.forward(np.ones((T, B, 50)))
    for kind in (0, 1):
        assert (y[3] != dropout_mask(kind, 7, 0, 0, 0, 3, B, 50, 0.5)).any()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_as_many_are_dropped_as_p_says(p: float) -> None:
    y, _ = Dropout(p, seed=0).forward(np.ones((50, 40, 50)))
    # Five deviations of a mean of 10^5 draws.
    assert abs((y == 0).mean() - p) < 5 * (p * (1 - p) / 1e5) ** 0.5
    assert set(np.unique(y)) == {0.0, 1 / (1 - p)}


@pytest.mark.parametrize("dtype", FLOATS)
def test_inference_changes_nothing(dtype: str) -> None:
    layer = Dropout(0.5, seed=0)
    x = np.random.default_rng(0).standard_normal((T, B, F)).astype(dtype)
    y = layer(x)
    np.testing.assert_array_equal(y, x, strict=True)
    assert not np.shares_memory(x, y)
    again, tape = layer.forward(x, dropout=False)
    np.testing.assert_array_equal(again, x, strict=True)
    np.testing.assert_array_equal(layer.backward(tape, x).x, x, strict=True)
    assert layer.call_number == 0
    none = Dropout(0, seed=0)
    np.testing.assert_array_equal(none.forward(x)[0], x, strict=True)
    assert none.call_number == 0


@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_along_a_direction(per_sequence: bool, batch_first: bool, ragged: bool) -> None:
    rng = np.random.default_rng(2)
    layer = Dropout(0.4, per_sequence=per_sequence, batch_first=batch_first, seed=3)
    x, dy = rng.standard_normal((T, B, F)), rng.standard_normal((T, B, F))
    lengths = np.array([2, 0, T]) if ragged else None
    if lengths is not None:
        outside = np.arange(T)[:, None] >= lengths
        x[outside] = dy[outside] = np.nan
    if batch_first:
        x, dy = x.swapaxes(0, 1), dy.swapaxes(0, 1)
    weights = np.nan_to_num(dy)

    def loss(at: Any) -> float:
        layer.call_number = 5
        y, _ = layer.forward(at["x"], lengths=lengths)
        return float((weights * y**2).sum()) / 2

    layer.call_number = 5
    y, tape = layer.forward(x, lengths=lengths)
    g = layer.backward(tape, dy * y)
    assert g.params == {}
    assert_gradient(loss, {"x": x}, {"x": g.x}, rng)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("per_sequence", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_what_lies_beyond_the_lengths_is_never_read(
    dtype: str, per_sequence: bool, dropout: bool
) -> None:
    layer = Dropout(0.5, per_sequence=per_sequence, seed=0)
    x = np.random.default_rng(1).standard_normal((T, B, F)).astype(dtype)
    dense, dense_tape = layer.forward(x, dropout=dropout)
    expected = layer.backward(dense_tape, x).x
    lengths = [2, 0, T]
    outside = np.arange(T)[:, None] >= lengths
    x[outside] = np.nan
    layer.call_number = 0
    with np.errstate(all="raise"):
        y, tape = layer.forward(x, lengths=lengths, dropout=dropout)
        g = layer.backward(tape, x)
    dense[outside] = expected[outside] = 0
    np.testing.assert_array_equal(y, dense, strict=True)
    np.testing.assert_array_equal(g.x, expected, strict=True)
    np.testing.assert_array_equal(
        layer(x, lengths=lengths), np.where(outside[..., None], 0, x).astype(dtype), strict=True
    )


def test_what_is_dropped_is_zero_whatever_it_was() -> None:
    layer = Dropout(0.5, seed=0)
    x = np.full((T, B, F), np.nan)
    y, tape = layer.forward(x)
    dropped = mask(layer, 0, T, B, F) == 0
    assert (y[dropped] == 0).all()
    assert np.isnan(y[~dropped]).all()
    dx = layer.backward(tape, np.full((T, B, F), np.inf)).x
    assert (dx[dropped] == 0).all()
    assert (dx[~dropped] == np.inf).all()


@pytest.mark.parametrize("shape", [(0, B, F), (T, 0, F), (T, B, 0), (0, F), (0,)])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_empty_arrays(shape: tuple[int, ...], per_sequence: bool) -> None:
    if per_sequence and len(shape) == 1:
        return
    layer = Dropout(0.5, per_sequence=per_sequence)
    y, tape = layer.forward(np.zeros(shape))
    assert y.shape == layer(np.zeros(shape)).shape == shape
    assert layer.backward(tape, y).x.shape == shape
    assert layer.call_number == 1


def test_other_numbers_become_float64_and_dy_takes_the_dtype_of_x() -> None:
    layer = Dropout(0.5, seed=0)
    others: tuple[Any, ...] = ([[1, 2], [3, 4]], np.ones((2, 2), "int8"), np.ones((2, 2), ">f8"))
    for x in others:
        assert layer(x).dtype == np.dtype("float64")
        assert layer.forward(x)[0].dtype == np.dtype("float64")
    y, tape = layer.forward(np.ones((2, 2), "float32"))
    assert y.dtype == layer.backward(tape, np.ones((2, 2))).x.dtype == np.dtype("float32")


def test_arrays_are_fresh_and_inputs_stay() -> None:
    layer = Dropout(0.5, seed=0)
    x = np.ones((T, B, F))
    y, tape = layer.forward(x)
    y[:] = x[:] = 7
    dy = np.ones((T, B, F))
    first = layer.backward(tape, dy, keep=True).x
    assert (dy == 1).all()
    np.testing.assert_array_equal(first, mask(layer, 0, T, B, F))
    first[:] = 7
    np.testing.assert_array_equal(layer.backward(tape, dy).x, mask(layer, 0, T, B, F))


def test_a_tape_is_used_once_unless_kept() -> None:
    layer = Dropout(0.5, seed=0)
    _, tape = layer.forward(np.ones((T, B, F)))
    assert isinstance(tape, DropoutTape)
    assert (tape.nbytes, repr(tape)) == (60, "<DropoutTape, 60 bytes>")
    for wrong in (np.ones((T, B)), np.ones((T, B, F), complex)):
        with pytest.raises((ValueError, TypeError), match="dy: expected"):
            layer.backward(tape, wrong)
    layer.backward(tape, np.ones((T, B, F)), keep=True)
    layer.backward(tape, np.ones((T, B, F)))
    assert (tape.nbytes, repr(tape)) == (0, "<DropoutTape, used>")
    with pytest.raises(ValueError, match=r"tape: expected an unused one, .*keep=True"):
        layer.backward(tape, np.ones((T, B, F)))
    _, tape = Dropout(0.5, per_sequence=True).forward(np.ones((T, B, F)))
    assert tape.nbytes == B * F


def test_a_tape_belongs_to_one_layer() -> None:
    layer = Dropout(0.5)
    _, tape = layer.forward(np.ones((T, F)))
    for stranger in (Dropout(0.5), copy.deepcopy(layer)):
        with pytest.raises(ValueError, match="expected one of this layer, got one of another Drop"):
            stranger.backward(tape, np.ones((T, F)))
    nothing: Any = None
    with pytest.raises(TypeError, match="tape: expected a DropoutTape, got NoneType"):
        layer.backward(nothing, np.ones((T, F)))
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="DropoutTape: expected to stay the only tape"):
            action(tape)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": 1}, ValueError, r"p: expected a number in \[0, 1\), got 1"),
        ({"p": -0.1}, ValueError, r"p: expected a number in \[0, 1\), got -0.1"),
        ({"p": float("nan")}, ValueError, r"p: expected a number in \[0, 1\), got nan"),
        ({"p": "0.5"}, TypeError, r"p: expected a number .* got '0.5' of type str"),
        ({"p": True}, TypeError, r"p: expected a number .* got True of type bool"),
        ({"p": 0.5, "per_sequence": 1}, TypeError, "per_sequence: expected True or False, got 1"),
        ({"p": 0.5, "batch_first": "no"}, TypeError, "batch_first: expected True or False"),
        ({"p": 0.5, "seed": -1}, ValueError, "seed: expected an integer in"),
    ],
)
def test_bad_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Dropout(**options)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (1.0, {}, ValueError, r"x: expected shape \(T, B, F\) or \(T, F\), got \(\)"),
        (np.ones((1, 2, 3, 4)), {}, ValueError, r"x: expected shape \(T, B, F\) or \(T, F\), got"),
        (np.ones(3, bool), {}, TypeError, "x: expected real numbers"),
        (np.ones((4, 3)), {"lengths": [4]}, ValueError, "lengths: expected None for an unbatched"),
        (np.ones((4, 1, 3)), {"lengths": [5]}, ValueError, "lengths: expected 0 <= value <= T = 4"),
    ],
)
def test_bad_x(x: Any, options: Any, error: type[Exception], message: str) -> None:
    layer = Dropout(0.5)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x, **options)
    assert layer.call_number == 0


def test_bad_calls() -> None:
    layer = Dropout(0.5, per_sequence=True)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, F\) or \(T, F\), got \(3,\)"):
        layer.forward(np.ones(3))
    number: Any = 1
    with pytest.raises(TypeError, match="dropout: expected True or False, got 1"):
        layer.forward(np.ones((2, 3)), dropout=number)
    with pytest.raises(ValueError, match=r"call_number: expected an integer in .*got -1"):
        layer.call_number = -1
    with pytest.raises(ValueError, match="params: unexpected 'weight'"):
        layer.load_params({"weight": 1})
    layer.load_params({})
    assert dict(layer.params) == {}


@pytest.mark.parametrize(
    "text", ["Dropout(0.5, seed=7)", "Dropout(0.25, per_sequence=True, batch_first=True, seed=0)"]
)
def test_repr_round_trips(text: str) -> None:
    layer = eval(text, {"Dropout": Dropout})
    assert repr(layer) == text
    assert Dropout(0.5).seed != Dropout(0.5).seed


def test_copies_continue_where_the_layer_is() -> None:
    layer = Dropout(0.5)
    layer.call_number = 9
    clones = (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
    y, _ = layer.forward(np.ones((T, B, F)))
    for clone in clones:
        assert repr(clone) == repr(layer)
        assert clone.call_number == 9
        np.testing.assert_array_equal(clone.forward(np.ones((T, B, F)))[0], y)


def test_a_saved_file_resumes_the_masks(tmp_path: Path) -> None:
    head = rc.Linear(F, F)
    layer, other = Dropout(0.5), Dropout(0.5)
    layer.forward(np.ones((T, B, F)))
    rc.save(tmp_path / "m.safetensors", {"drop": layer, "head": head})
    rc.load(tmp_path / "m.safetensors", into={"drop": other, "head": head})
    assert (other.seed, other.call_number) == (layer.seed, 1)
    a, b = (d.forward(np.ones((T, B, F)))[0] for d in (layer, other))
    np.testing.assert_array_equal(a, b)
    before = other._extra_state()
    other._load_extra_state({"format": "pt"})
    for bad in ({"seed": "3"}, {"seed": "x", "call_number": "0"}):
        with pytest.raises(ValueError, match=r"expected the digits of an integer, got"):
            other._load_extra_state(bad)
    assert other._extra_state() == before


def test_two_threads_get_two_masks() -> None:
    layer = Dropout(0.5, seed=0)
    x = np.ones((T, B, F))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: layer.forward(x)[0].tobytes(), range(40)))
    assert layer.call_number == 40
    assert sorted(found) == sorted(mask(layer, call, T, B, F).tobytes() for call in range(40))
