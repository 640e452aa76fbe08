"""The dense layer: naive formula, finite differences, its tape, its copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradcheck import assert_gradient
from rnncore.linear import Linear, LinearTape

FLOATS = ("float32", "float64")
ACTIVATIONS = ("identity", "softmax", "sigmoid")


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


def activated(a: NDArray[Any], activation: str) -> NDArray[Any]:
    """Apply an activation to one row after the other, by its textbook formula."""
    y = a.copy()
    for row in y.reshape(-1, a.shape[-1]):
        if activation == "sigmoid":
            row[:] = [1 / (1 + np.exp(-value)) for value in row]
        elif activation == "softmax":
            row[:] = np.exp(row) / sum(np.exp(value) for value in row)
    return y


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(), (4,), (5, 4), (0,), (3, 0)])
def test_activations_are_their_formulas(activation: str, shape: tuple[int, ...]) -> None:
    layer = Linear(3, 2, activation=activation, dtype="float64", init="pytorch", seed=0)
    x = np.random.default_rng(1).standard_normal((*shape, 3))
    y = layer(x)
    a = naive(x, layer.params["weight"], layer.params["bias"])
    np.testing.assert_allclose(y, activated(a, activation), rtol=0, atol=1e-14)
    again, _ = layer.forward(x)
    assert (again == y).all()


def drawn_lengths(batch_first: bool, x: NDArray[Any], dy: NDArray[Any]) -> NDArray[np.int64]:
    """Return lengths for T = 4, B = 3, and put NaN beyond them."""
    lengths = np.array([2, 0, 4])
    outside = np.arange(4)[:, None] >= lengths
    for array in (x, dy):
        array[outside.T if batch_first else outside] = np.nan
    return lengths


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["dense", "ragged", "batch_first"])
def test_gradients_through_activations_and_lengths(
    activation: str, bias: bool, layout: str
) -> None:
    rng = np.random.default_rng(3)
    layer = Linear(3, 2, activation=activation, bias=bias, dtype="float64", init="pytorch", seed=1)
    batch_first = layout == "batch_first"
    shape = (3, 4) if batch_first else (4, 3)
    x, dy = rng.standard_normal((*shape, 3)), rng.standard_normal((*shape, 2))
    options: dict[str, Any] = {}
    if layout != "dense":
        options = {"lengths": drawn_lengths(batch_first, x, dy), "batch_first": batch_first}
    weights = np.nan_to_num(dy)
    point = {"x": x, **{name: array.copy() for name, array in layer.params.items()}}

    def loss(at: Any) -> float:
        layer.load_params({name: at[name] for name in layer.params})
        return float((weights * layer(at["x"], **options) ** 2).sum()) / 2

    loss(point)
    y, tape = layer.forward(x, **options)
    g = layer.backward(tape, np.where(np.isnan(dy), np.nan, dy * y))
    assert list(g.params) == list(layer.params)
    assert_gradient(loss, point, {"x": g.x, **g.params}, rng)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_lies_beyond_the_lengths_is_never_read(
    activation: str, batch_first: bool, dtype: str
) -> None:
    rng = np.random.default_rng(5)
    layer = Linear(3, 2, activation=activation, dtype=dtype, init="pytorch", seed=1)
    shape = (3, 4) if batch_first else (4, 3)
    x, dy = rng.standard_normal((*shape, 3)), rng.standard_normal((*shape, 2))
    lengths = drawn_lengths(batch_first, x, dy)
    x[np.isnan(x)] = 1e300  # more than float32 holds
    with np.errstate(all="raise"):
        y, tape = layer.forward(x, lengths=lengths, batch_first=batch_first)
        g = layer.backward(tape, dy)
    inside = np.isfinite(dy[..., 0])
    rows, rows_tape = layer.forward(x[inside])
    expected = layer.backward(rows_tape, dy[inside])
    assert (layer(x, lengths=lengths, batch_first=batch_first) == y).all()
    np.testing.assert_array_equal(y[inside], rows)
    np.testing.assert_array_equal(g.x[inside], expected.x)
    assert (y[~inside] == 0).all()
    assert (g.x[~inside] == 0).all()
    for name, array in expected.params.items():
        np.testing.assert_array_equal(g.params[name], array)


@pytest.mark.parametrize(
    ("x", "lengths", "error", "message"),
    [
        (np.ones((4, 3)), [4], ValueError, r"lengths: expected None for an unbatched x .*got list"),
        (
            np.ones((1, 4, 3, 3)),
            [4],
            ValueError,
            r"x: expected shape \(T, B, 3\) or \(T, 3\), got \(1, 4, 3, 3\)",
        ),
        (np.ones((4, 2, 3)), [4], ValueError, r"lengths: expected shape \(B,\) = \(2,\), got"),
        (np.ones((4, 1, 3)), [5], ValueError, "lengths: expected 0 <= value <= T = 4, got 5"),
        (np.ones((4, 1, 3)), [1.0], TypeError, "lengths: expected integers, got dtype float64"),
    ],
)
def test_bad_lengths(x: Any, lengths: Any, error: type[Exception], message: str) -> None:
    layer = filled(True)
    for call in (layer, layer.forward):
        with pytest.raises(error, match=message):
            call(x, lengths=lengths)
    number: Any = 1
    with pytest.raises(TypeError, match="batch_first: expected True or False, got 1"):
        layer(x, batch_first=number)


@pytest.mark.parametrize("dtype", FLOATS)
def test_activations_saturate_without_nan(dtype: str) -> None:
    x = np.array([[1e4, 0.0], [-1e4, 0.0], [0.0, 0.0]])
    for activation, expected in (
        ("softmax", [[1, 0], [0, 1], [0.5, 0.5]]),
        ("sigmoid", [[1, 0.5], [0, 0.5], [0.5, 0.5]]),
    ):
        layer = Linear(2, 2, activation=activation, bias=False, dtype=dtype)
        layer.load_params({"weight": np.eye(2)})
        with np.errstate(all="raise"):
            y, tape = layer.forward(x)
            g = layer.backward(tape, np.ones((3, 2)))
        assert y.tolist() == expected
        assert np.isfinite(g.x).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_changing_y_changes_no_gradient(activation: str) -> None:
    layer = Linear(3, 2, activation=activation, dtype="float64", seed=0)
    x = np.random.default_rng(6).standard_normal((4, 3))
    _, tape = layer.forward(x)
    expected = layer.backward(tape, np.ones((4, 2)))
    y, tape = layer.forward(x)
    y[:] = np.nan
    g = layer.backward(tape, np.ones((4, 2)))
    np.testing.assert_array_equal(g.x, expected.x)
    np.testing.assert_array_equal(g.params["weight"], expected.params["weight"])


def test_a_loss_on_logits_sees_what_a_saturated_softmax_hides() -> None:
    head = Linear(2, 2, activation="softmax", bias=False)
    head.load_params({"weight": 200 * np.eye(2)})
    y, tape = head.forward([[1.0, 0.0]])
    # -log y of class 1 is infinite, and the softmax's own gradient is 0.
    assert y.tolist() == [[1.0, 0.0]]
    assert (head.backward(tape, [[0.0, 1.0]]).x == 0).all()


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
        (
            (2, 2),
            {"activation": "tanh"},
            ValueError,
            "activation: expected 'identity' or 'softmax' or 'sigmoid', got 'tanh'",
        ),
        (
            (2, 2),
            {"activation": None},
            TypeError,
            "activation: expected 'identity' or 'softmax' or 'sigmoid', got None of type NoneType",
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
        "Linear(3, 2, activation='softmax', seed=7)",
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
    assert layer.activation == "identity"
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
