"""The embedding: lookup, exact sums under repeated indices, its tape, its copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnncore.embedding import Embedding, EmbeddingTape

FLOATS = ("float32", "float64")


def naive(indices: NDArray[Any], dy: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """One row after the other, in float64."""
    dw = np.zeros((rows, dy.shape[-1]))
    for where in np.ndindex(indices.shape):
        dw[indices[where]] += dy[where]
    return dw


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (7,), (5, 4), (0,), (3, 0), (2, 1, 3)])
def test_lookup_and_gradient_are_the_naive_formula(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    layer = Embedding(6, 3, dtype=dtype, seed=1)
    indices = rng.integers(0, 6, shape)
    y, tape = layer.forward(indices)
    assert y.shape == (*shape, 3)
    assert y.dtype == dtype
    for where in np.ndindex(shape):
        assert (y[where] == layer.params["weight"][indices[where]]).all()
    assert (layer(indices) == y).all()
    # Whole numbers: every order of summation is exact.
    dy = rng.integers(-9, 9, y.shape).astype(dtype)
    dw = layer.backward(tape, dy).params["weight"]
    assert dw.dtype == dtype
    assert dw.flags.c_contiguous
    np.testing.assert_array_equal(dw, naive(np.asarray(indices), dy, 6))


def test_gradient_along_a_direction() -> None:
    rng = np.random.default_rng(2)
    layer = Embedding(5, 4, dtype="float64", seed=3)
    indices, dy = rng.integers(0, 5, (6, 3)), rng.standard_normal((6, 3, 4))
    at = layer.params["weight"].copy()

    def loss(w: NDArray[Any]) -> float:
        layer.params["weight"] = w
        return float((dy * layer(indices) ** 2).sum()) / 2

    y, tape = layer.forward(indices)
    dw = layer.backward(tape, dy * y).params["weight"]
    for _ in range(3):
        v = rng.standard_normal(at.shape)
        exact = float((v * dw).sum())
        numeric = (loss(at + 1e-5 * v) - loss(at - 1e-5 * v)) / 2e-5
        assert abs(exact) > 1e-3
        assert abs(numeric - exact) <= 1e-7 * abs(exact)


@pytest.mark.parametrize("rows", [1, 2, 100, 70_000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_many_repeated_indices(rows: int, dtype: str) -> None:
    rng = np.random.default_rng(4)
    layer = Embedding(rows, 5, dtype=dtype, seed=0)
    indices = rng.integers(0, rows, 3000) % 90
    _, tape = layer.forward(indices)
    dy = rng.standard_normal((3000, 5)).astype(dtype)
    dw = layer.backward(tape, dy, keep=True).params["weight"]
    expected = naive(indices, dy, rows)
    scale = 1e-6 if dtype == "float32" else 1e-14
    assert np.abs(dw - expected).max() <= scale * max(1.0, np.abs(expected).max())
    assert (dw[~np.isin(np.arange(rows), indices)] == 0).all()
    again = layer.backward(tape, dy).params["weight"]
    assert again is not dw
    assert (again == dw).all()


def test_nan_in_one_row_of_dy_touches_one_vector_only() -> None:
    layer = Embedding(4, 2, dtype="float64")
    _, tape = layer.forward([0, 1, 1, 3])
    dy = np.array([[1.0, 1.0], [np.nan, np.inf], [1.0, -np.inf], [2.0, 2.0]])
    with np.errstate(all="raise"):
        dw = layer.backward(tape, dy).params["weight"]
    assert np.isnan(dw[1]).all()
    assert dw[[0, 2, 3]].tolist() == [[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]


@pytest.mark.parametrize("value", [[2, 0], (2, 0), np.array([2, 0], ">i2"), np.array([2, 0], "u8")])
def test_integers_of_every_kind(value: Any) -> None:
    layer = Embedding(3, 2)
    assert (layer(value) == layer.params["weight"][[2, 0]]).all()
    assert layer([]).shape == (0, 2)
    assert layer(1).shape == (2,)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (
            [0, 3],
            ValueError,
            r"indices: expected 0 <= .* num_embeddings - 1 = 2, got 3 at position 1",
        ),
        ([[0, 1], [-1, 1]], ValueError, r"indices: .* got -1 at position \(1, 0\)"),
        (-1, ValueError, r"indices: .* = 2, got -1$"),
        ([2**63], ValueError, r"indices: .* got 9223372036854775808 at position 0"),
        ([2**70], ValueError, "indices: expected integers of at most 64 bits"),
        ([[0], [1, 2]], ValueError, "indices: expected a rectangular array"),
        ([0.0, 1.0], TypeError, "indices: expected integers, got dtype float64"),
        ([True], TypeError, "indices: expected integers, got bool"),
        (np.zeros(2, bool), TypeError, "indices: expected integers, got dtype bool"),
        (["a"], TypeError, "indices: expected integers, got dtype <U1"),
        (None, TypeError, "indices: expected integers, got NoneType"),
    ],
)
def test_bad_indices(indices: Any, error: type[Exception], message: str) -> None:
    layer = Embedding(3, 2)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(indices)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_lies_beyond_the_lengths_is_never_read(batch_first: bool, dtype: str) -> None:
    rng = np.random.default_rng(7)
    layer = Embedding(5, 2, dtype=dtype, seed=1)
    lengths = np.array([2, 0, 4])
    inside = np.arange(4)[:, None] < lengths
    indices = np.where(inside, rng.integers(0, 5, (4, 3)), -7)
    dy = np.where(inside[..., None], rng.standard_normal((4, 3, 2)), np.nan)
    if batch_first:
        indices, dy, inside = indices.T, dy.swapaxes(0, 1), inside.T
    y, tape = layer.forward(indices, lengths=lengths, batch_first=batch_first)
    assert (layer(indices, lengths=lengths, batch_first=batch_first) == y).all()
    assert y.dtype == dtype
    assert (y[~inside] == 0).all()
    rows, rows_tape = layer.forward(indices[inside])
    np.testing.assert_array_equal(y[inside], rows)
    expected = layer.backward(rows_tape, dy[inside]).params["weight"]
    np.testing.assert_array_equal(layer.backward(tape, dy).params["weight"], expected)
    with pytest.raises(ValueError, match=r"indices: expected 0 <= .* got -7"):
        layer(indices, batch_first=batch_first)


def test_bad_lengths() -> None:
    layer = Embedding(5, 2)
    for call in (layer, layer.forward):
        with pytest.raises(
            ValueError, match=r"indices: expected shape \(T, B\) with lengths, got \(3,\)"
        ):
            call([1, 2, 3], lengths=[3])
        with pytest.raises(
            ValueError, match=r"indices: expected shape \(B, T\) with lengths, got \(\)"
        ):
            call(1, lengths=[3], batch_first=True)
        with pytest.raises(
            ValueError, match=r"lengths: expected shape \(B,\) = \(2,\), got \(3,\)"
        ):
            call([[1, 2], [3, 4], [0, 0]], lengths=[3, 3, 3])
        with pytest.raises(ValueError, match="lengths: expected 0 <= value <= T = 1, got 2"):
            call([[1, 2]], lengths=[1, 2])


def test_the_tape_owns_its_indices_and_y_is_fresh() -> None:
    layer = Embedding(3, 2, dtype="float64")
    indices = np.array([0, 2])
    y, tape = layer.forward(indices)
    assert tape.nbytes == 16
    indices[:] = 1
    y[:] = np.nan
    assert np.isfinite(layer.params["weight"]).all()
    dw = layer.backward(tape, np.ones((2, 2))).params["weight"]
    assert dw.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


def test_a_tape_is_used_once_unless_kept() -> None:
    layer = Embedding(3, 2)
    _, tape = layer.forward([1])
    assert repr(tape) == "<EmbeddingTape, 8 bytes>"
    layer.backward(tape, [[1, 1]], keep=True)
    layer.backward(tape, [[1, 1]])
    assert (tape.nbytes, repr(tape)) == (0, "<EmbeddingTape, used>")
    with pytest.raises(ValueError, match=r"tape: expected an unused one, .*keep=True"):
        layer.backward(tape, [[1, 1]])


@pytest.mark.parametrize(
    ("dy", "error", "message"),
    [
        (np.ones((2, 2)), ValueError, r"dy: .*\(\.\.\., embedding_dim\) = \(1, 2\), got \(2, 2\)"),
        (np.ones((1, 2), complex), TypeError, "dy: expected real numbers"),
        (None, TypeError, "dy: expected real numbers .* got NoneType"),
    ],
)
def test_a_bad_dy_leaves_the_tape_usable(dy: Any, error: type[Exception], message: str) -> None:
    layer = Embedding(3, 2)
    _, tape = layer.forward([1])
    with pytest.raises(error, match=message):
        layer.backward(tape, dy)
    assert layer.backward(tape, [[1, 2]]).params["weight"].tolist() == [[0, 0], [1, 2], [0, 0]]


def test_a_tape_has_no_copies() -> None:
    _, tape = Embedding(3, 2, seed=0).forward([0, 2])
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="EmbeddingTape: expected to stay the only tape"):
            action(tape)


def test_a_tape_belongs_to_one_layer() -> None:
    layer = Embedding(3, 2)
    _, tape = layer.forward([1])
    assert isinstance(tape, EmbeddingTape)
    for stranger in (Embedding(3, 2), copy.deepcopy(layer)):
        with pytest.raises(
            ValueError, match="tape: expected one of this layer, got one of another"
        ):
            stranger.backward(tape, [[1, 1]])
    not_a_tape: Any = None
    with pytest.raises(TypeError, match="tape: expected an EmbeddingTape, got NoneType"):
        layer.backward(not_a_tape, [[1, 1]])
    number: Any = 0
    with pytest.raises(TypeError, match="keep: expected True or False, got 0"):
        layer.backward(tape, [[1, 1]], keep=number)


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 2), {}, ValueError, "num_embeddings: expected a positive integer, got 0"),
        ((2, 0), {}, ValueError, "embedding_dim: expected a positive integer, got 0"),
        ((2, "2"), {}, TypeError, "embedding_dim: expected a positive integer, got '2'"),
        ((2, 2), {"dtype": "int64"}, ValueError, "dtype: expected 'float32' or 'float64'"),
        ((2, 2), {"seed": 2**64}, ValueError, "seed: expected an integer in"),
        ((2**40, 2**40), {}, ValueError, "num_embeddings, embedding_dim: .* the address space"),
        ((2**29, 2**29), {}, MemoryError, "num_embeddings, embedding_dim: .* the memory"),
    ],
)
def test_bad_options(sizes: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Embedding(*sizes, **options)


def test_initial_values_are_standard_normal_and_seeded() -> None:
    w = Embedding(200, 100, dtype="float64", seed=0).params["weight"]
    assert abs(w.mean()) < 0.02
    assert abs(w.std() - 1) < 0.02
    single = Embedding(200, 100, seed=0).params["weight"]
    assert (single == w.astype("float32")).all()
    assert Embedding(3, 2).seed != Embedding(3, 2).seed


@pytest.mark.parametrize(
    "text", ["Embedding(3, 2, seed=7)", "Embedding(3, 2, dtype='float64', seed=0)"]
)
def test_repr_round_trips(text: str) -> None:
    layer = eval(text, {"Embedding": Embedding})
    assert repr(layer) == text
    again = eval(repr(layer), {"Embedding": Embedding})
    assert (again.params["weight"] == layer.params["weight"]).all()


def test_properties_and_live_params() -> None:
    layer = Embedding(3, 2, dtype="float64", seed=5)
    assert (layer.num_embeddings, layer.embedding_dim) == (3, 2)
    assert (layer.dtype, layer.seed) == (np.dtype("float64"), 5)
    layer.load_params({"weight": np.arange(6).reshape(3, 2)})
    layer.params["weight"] -= 1
    assert layer([2, 0]).tolist() == [[3.0, 4.0], [-1.0, 0.0]]
    with pytest.raises(
        ValueError, match=r"\(num_embeddings, embedding_dim\) = \(3, 2\), got \(2, 3\)"
    ):
        layer.load_params({"weight": np.zeros((2, 3))})


def test_pickle_and_deepcopy() -> None:
    layer = Embedding(3, 2)
    layer.params["weight"] += 1
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert repr(other) == repr(layer)
        assert (other([0, 1, 2]) == layer([0, 1, 2])).all()
        other.params["weight"] *= 0
    assert (layer.params["weight"] != 0).all()
