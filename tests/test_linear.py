"""The dense layer: naive formula, finite differences, its tape, its copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnncore.linear import Linear, LinearTape

FLOATS = ("float32", "float64")


def naive(x: NDArray[Any], w: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Three loops."""
    y = np.zeros((*x.shape[:-1], w.shape[0]))
    for index in np.ndindex(y.shape):
        y[index] = b[index[-1]]
        for i in range(w.shape[1]):
            y[index] += w[index[-1], i] * x[(*index[:-1], i)]
    return y


def filled(bias: bool, seed: int = 0, dtype: str = "float64") -> Linear:
    """Return a layer (3 to 2) whose bias is not 0."""
    return Linear(3, 2, bias=bias, dtype=dtype, init="pytorch", seed=seed)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (4,), (5, 4), (2, 3, 2), (0,), (3, 0)])
def test_forward_is_the_naive_formula(bias: bool, shape: tuple[int, ...]) -> None:
    layer = filled(bias)
    x = np.random.default_rng(1).standard_normal((*shape, 3))
    b = layer.params["bias"] if bias else np.zeros(2)
    y = layer(x)
    assert y.shape == (*shape, 2)
    np.testing.assert_allclose(y, naive(x, layer.params["weight"], b), rtol=0, atol=1e-14)
    again, _ = layer.forward(x)
    assert (again == y).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (4,), (5, 4)])
def test_gradients_along_a_direction(bias: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    layer = filled(bias)
    at = {"x": rng.standard_normal((*shape, 3)), **{k: a.copy() for k, a in layer.params.items()}}
    dy = rng.standard_normal((*shape, 2))

    def loss(values: dict[str, Any]) -> float:
        layer.load_params({name: values[name] for name in layer.params})
        # Squared, so that the difference depends on where it is taken.
        return float((dy * layer(values["x"]) ** 2).sum()) / 2

    loss(at)
    y, tape = layer.forward(at["x"])
    g = layer.backward(tape, dy * y)
    gradients = {"x": g.x, **g.params}
    assert list(g.params) == list(layer.params)
    for name in at:
        v = {key: np.zeros_like(value) for key, value in at.items()}
        v[name] = rng.standard_normal(at[name].shape)
        exact = float((v[name] * gradients[name]).sum())
        eps = 1e-5
        up = loss({key: at[key] + eps * v[key] for key in at})
        down = loss({key: at[key] - eps * v[key] for key in at})
        assert abs(exact) > 1e-3
        assert abs((up - down) / (2 * eps) - exact) <= 1e-7 * abs(exact)


def test_gradients_by_hand_sum_over_leading_axes() -> None:
    layer = Linear(2, 1, dtype="float64")
    layer.load_params({"weight": [[2.0, 3.0]], "bias": [0.0]})
    _, tape = layer.forward([[[1.0, 2.0]], [[3.0, 4.0]]])
    g = layer.backward(tape, [[[1.0]], [[10.0]]])
    assert g.x.tolist() == [[[2.0, 3.0]], [[20.0, 30.0]]]
    assert g.params["weight"].tolist() == [[31.0, 42.0]]
    assert g.params["bias"].tolist() == [11.0]


def test_no_rows_give_zero_gradients() -> None:
    layer = filled(True)
    y, tape = layer.forward(np.zeros((0, 3)))
    g = layer.backward(tape, y)
    assert g.x.shape == (0, 3)
    assert g.params["weight"].tolist() == [[0.0] * 3] * 2
    assert g.params["bias"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtype_is_that_of_the_layer(dtype: str) -> None:
    layer = filled(True, dtype=dtype)
    for x in ([[1, 2, 3]], np.ones((1, 3), "float32"), np.ones((1, 3)), np.ones((1, 3), ">f8")):
        y, tape = layer.forward(x)
        g = layer.backward(tape, np.ones((1, 2), "float64" if dtype == "float32" else "float32"))
        assert y.dtype == g.x.dtype == dtype
        assert {a.dtype for a in (*g.params.values(), *layer.params.values())} == {np.dtype(dtype)}


def test_a_seed_means_the_same_for_both_dtypes() -> None:
    for init in ("glorot", "pytorch"):
        a, b = (Linear(5, 4, dtype=dtype, init=init, seed=3) for dtype in FLOATS)
        for name in a.params:
            assert (a.params[name] == b.params[name].astype("float32")).all()


def test_initial_values() -> None:
    glorot = Linear(200, 100, dtype="float64", seed=0).params
    bound = (6 / 300) ** 0.5
    assert 0.99 * bound < np.abs(glorot["weight"]).max() <= bound
    assert abs(glorot["weight"].mean()) < bound / 50
    assert (glorot["bias"] == 0).all()
    other = Linear(100, 200, dtype="float64", init="pytorch", seed=0).params
    for name in other:
        assert 0.09 < np.abs(other[name]).max() <= 0.1
    a, b = Linear(3, 4), Linear(3, 4)
    assert a.seed != b.seed
    assert (a.params["weight"] != b.params["weight"]).all()


def test_params_are_live() -> None:
    layer = filled(True)
    layer.params["weight"] *= 0
    layer.params["bias"] = [1.0, 2.0]
    assert layer([1.0, 1.0, 1.0]).tolist() == [1.0, 2.0]
    with pytest.raises(
        ValueError, match=r"params\['weight'\]: expected shape \(out, in\) = \(2, 3\)"
    ):
        layer.params["weight"] = np.zeros((3, 2))


def test_load_params_is_strict() -> None:
    layer = filled(True)
    before = layer.params["weight"].copy()
    with pytest.raises(ValueError, match="params: missing 'bias'; unexpected 'b'"):
        layer.load_params({"weight": np.zeros((2, 3)), "b": np.zeros(2)})
    assert (layer.params["weight"] == before).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_tape_owns_what_it_needs(dtype: str) -> None:
    layer = filled(True, dtype=dtype)
    x = np.random.default_rng(4).standard_normal((4, 3)).astype(dtype)
    sources: tuple[Any, ...] = (x, x.view(type("Mine", (np.ndarray,), {})), x.data)
    for source in sources:
        layer_x = x.copy()
        y, tape = layer.forward(source)
        assert tape.nbytes == x.nbytes
        x[:] = np.nan
        y[:] = np.nan
        g = layer.backward(tape, np.ones((4, 2)))
        expected = np.ones((2, 4), dtype) @ layer_x
        np.testing.assert_array_equal(g.params["weight"], expected)
        x[:] = layer_x


def test_the_weights_are_those_of_the_backward_call() -> None:
    layer = filled(True)
    _, tape = layer.forward(np.ones(3))
    layer.params["weight"] = np.ones((2, 3))
    assert layer.backward(tape, [1.0, 1.0]).x.tolist() == [2.0, 2.0, 2.0]


def test_a_tape_is_used_once_unless_kept() -> None:
    layer = filled(True)
    _, tape = layer.forward(np.ones((4, 3)))
    first = layer.backward(tape, np.ones((4, 2)), keep=True)
    first.x[:] = 7
    second = layer.backward(tape, np.ones((4, 2)))
    assert second.x.tolist() != first.x.tolist()
    assert (first.params["weight"] == second.params["weight"]).all()
    assert tape.nbytes == 0
    assert repr(tape) == "<LinearTape, used>"
    with pytest.raises(ValueError, match=r"tape: expected an unused one, .*keep=True"):
        layer.backward(tape, np.ones((4, 2)))


@pytest.mark.parametrize(
    ("dy", "error", "message"),
    [
        (
            np.ones((4, 3)),
            ValueError,
            r"dy: expected shape \(\.\.\., out\) = \(4, 2\), got \(4, 3\)",
        ),
        (np.ones(2), ValueError, r"dy: expected shape .* got \(2,\)"),
        (np.ones((4, 2), complex), TypeError, "dy: expected real numbers"),
        (None, TypeError, "dy: expected real numbers .* got NoneType"),
    ],
)
def test_a_bad_dy_leaves_the_tape_usable(dy: Any, error: type[Exception], message: str) -> None:
    layer = filled(True)
    _, tape = layer.forward(np.ones((4, 3)))
    with pytest.raises(error, match=message):
        layer.backward(tape, dy)
    assert layer.backward(tape, np.ones((4, 2))).x.shape == (4, 3)


def test_a_tape_has_no_copies() -> None:
    _, tape = Linear(3, 2, seed=0).forward(np.ones((4, 3)))
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="LinearTape: expected to stay the only tape"):
            action(tape)


def test_a_tape_belongs_to_one_layer() -> None:
    layer, other = filled(True), filled(True)
    _, tape = layer.forward(np.ones(3))
    for stranger in (other, copy.deepcopy(layer)):
        with pytest.raises(
            ValueError, match="tape: expected one of this layer, got one of another"
        ):
            stranger.backward(tape, np.ones(2))
    not_a_tape: Any = "tape"
    with pytest.raises(TypeError, match="tape: expected a LinearTape, got str"):
        layer.backward(not_a_tape, np.ones(2))
    number: Any = 1
    with pytest.raises(TypeError, match="keep: expected True or False, got 1"):
        layer.backward(tape, np.ones(2), keep=number)
    assert isinstance(tape, LinearTape)
    assert repr(tape) == "<LinearTape, 24 bytes>"


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((4, 2)), ValueError, r"x: expected shape \(\.\.\., 3\), got \(4, 2\)"),
        (1.0, ValueError, r"x: expected shape \(\.\.\., 3\), got \(\)"),
        ([[1, 2, 3], [4]], ValueError, r"x: expected a rectangular array"),
        (np.ones(3, bool), TypeError, "x: expected real numbers .* got dtype bool"),
        (["a", "b", "c"], TypeError, "x: expected real numbers"),
        ([1e300, 0, 0], ValueError, "x: expected values in the range of float32"),
    ],
)
def test_bad_x(x: Any, error: type[Exception], message: str) -> None:
    layer = filled(True, dtype="float32")
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x)


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((0, 2), {}, ValueError, "in_features: expected a positive integer, got 0"),
        ((2, -1), {}, ValueError, "out_features: expected a positive integer, got -1"),
        ((2.0, 2), {}, TypeError, "in_features: expected a positive integer, got 2.0"),
        ((2, True), {}, TypeError, "out_features: expected a positive integer, got True"),
        ((2, 2), {"bias": 1}, TypeError, "bias: expected True or False, got 1"),
        ((2, 2), {"dtype": "float16"}, ValueError, "dtype: expected 'float32' or 'float64'"),
        (
            (2, 2),
            {"init": "zeros"},
            ValueError,
            "init: expected 'glorot' or 'pytorch', got 'zeros'",
        ),
        ((2, 2), {"seed": -1}, ValueError, "seed: expected an integer in"),
        ((2, 2), {"seed": "a"}, TypeError, "seed: expected an integer .* or None"),
        ((2**40, 2**40), {}, ValueError, "out_features, in_features: .* fits the address space"),
        ((2**29, 2**29), {}, MemoryError, "out_features, in_features: .* fits the memory"),
    ],
)
def test_bad_options(sizes: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Linear(*sizes, **options)


@pytest.mark.parametrize(
    "text",
    [
        "Linear(3, 2, seed=7)",
        "Linear(3, 2, bias=False, dtype='float64', init='pytorch', seed=18446744073709551615)",
    ],
)
def test_repr_round_trips(text: str) -> None:
    layer = eval(text, {"Linear": Linear})
    assert repr(layer) == text
    again = eval(repr(layer), {"Linear": Linear})
    assert (again.params["weight"] == layer.params["weight"]).all()


def test_properties() -> None:
    layer = filled(False, seed=5)
    assert (layer.in_features, layer.out_features, layer.bias) == (3, 2, False)
    assert (layer.dtype, layer.init, layer.seed) == (np.dtype("float64"), "pytorch", 5)
    with pytest.raises(AttributeError):
        layer.params = {}  # type: ignore[misc, assignment]


def test_pickle_and_deepcopy() -> None:
    layer = filled(True)
    layer.params["weight"] += 1
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert repr(other) == repr(layer)
        assert (other([1.0, 2.0, 3.0]) == layer([1.0, 2.0, 3.0])).all()
        other.params["weight"] *= 0
    assert (layer.params["weight"] != 0).all()


def test_nan_stays_in_its_row() -> None:
    layer = filled(True)
    x = np.ones((3, 3))
    x[1, 0] = np.nan
    with np.errstate(all="raise"):
        y, tape = layer.forward(x)
        g = layer.backward(tape, np.ones((3, 2)))
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(g.x).all()


def test_overflow_is_infinite_whatever_the_settings_of_numpy() -> None:
    layer = Linear(1, 1, dtype="float64")
    layer.load_params({"weight": [[10.0]], "bias": [0.0]})
    with np.errstate(all="raise"):
        y, tape = layer.forward([[1e308]])
        g = layer.backward(tape, [[-1e308]])
    assert (y.item(), g.x.item(), g.params["weight"].item()) == (np.inf, -np.inf, -np.inf)
