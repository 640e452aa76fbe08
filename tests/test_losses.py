"""The losses against naive formulas and finite differences, and what does not count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rnncore.losses import mean_squared_error, softmax_cross_entropy

FLOATS = ("float32", "float64")
Loss = Callable[[NDArray[Any]], tuple[float, NDArray[Any]]]


def check_direction(loss: Loss, at: NDArray[np.float64], seed: int) -> None:
    """Hold <v, gradient> against a central difference of the loss along v, to 1e-7 relative."""
    v = np.random.default_rng(seed).standard_normal(at.shape)
    eps = 1e-5
    numeric = (loss(at + eps * v)[0] - loss(at - eps * v)[0]) / (2 * eps)
    exact = float((v * loss(at)[1]).sum())
    assert abs(exact) > 1e-3, "a direction that shows nothing"
    assert abs(numeric - exact) <= 1e-7 * abs(exact)


def naive_cross_entropy(z: Any, t: Any, w: Any) -> float:
    """Mean of -log softmax, element by element, as one writes it on paper."""
    total, weight = 0.0, 0.0
    for row, target, share in zip(z, t, w, strict=True):
        p = math.exp(row[target]) / sum(math.exp(value) for value in row)
        total -= share * math.log(p)
        weight += share
    return total / weight


def naive_gradient(loss: Callable[[NDArray[Any]], float], at: NDArray[Any]) -> NDArray[Any]:
    """Central differences, one element after the other."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += 1e-6
        down[index] -= 1e-6
        gradient[index] = (loss(up) - loss(down)) / 2e-6
    return gradient


def ragged(seed: int, dtype: str = "float64") -> tuple[Any, ...]:
    """Draw logits (T, B, K), targets (T, B), weights (T, B), lengths (B,), and the mask (T, B)."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((5, 4, 3)).astype(dtype)
    lengths = np.array([5, 0, 2, 3])
    inside = np.arange(5)[:, None] < lengths
    return z, rng.integers(0, 3, (5, 4)), rng.uniform(0.1, 2, (5, 4)), lengths, inside


# ---- Softmax cross-entropy ---------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    loss, gradient = softmax_cross_entropy([[0.0, math.log(3)], [0.0, 0.0]], [1, 0])
    assert loss == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-15, abs=0)
    np.testing.assert_allclose(gradient, [[0.125, -0.125], [-0.25, 0.25]], rtol=1e-15)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (), (2, 1, 3)])
def test_cross_entropy_is_the_naive_formula(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    z, t = rng.standard_normal((*shape, 4)), rng.integers(0, 4, shape)
    w = rng.uniform(0, 2, shape)

    def naive(at: NDArray[Any]) -> float:
        return naive_cross_entropy(at.reshape(-1, 4), t.reshape(-1), np.reshape(w, -1))

    loss, gradient = softmax_cross_entropy(z, t, weights=w)
    assert loss == pytest.approx(naive(z), rel=1e-13, abs=0)
    np.testing.assert_allclose(gradient, naive_gradient(naive, z), rtol=0, atol=1e-9)
    assert gradient.shape == z.shape
    w = np.ones(shape)
    assert softmax_cross_entropy(z, t)[0] == pytest.approx(naive(z), rel=1e-13, abs=0)


@pytest.mark.parametrize("options", ["", "weights", "ignore", "lengths", "weights ignore lengths"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_cross_entropy_gradient_along_a_direction(options: str, batch_first: bool) -> None:
    z, t, w, lengths, _ = ragged(2)
    if batch_first:
        z, t, w = z.swapaxes(0, 1), t.T, w.T
    keywords: dict[str, Any] = {"batch_first": batch_first}
    keywords |= {"weights": w} if "weights" in options else {}
    keywords |= {"ignore_index": 1} if "ignore" in options else {}
    keywords |= {"lengths": lengths} if "lengths" in options else {}
    for seed in range(3):
        check_direction(lambda at: softmax_cross_entropy(at, t, **keywords), z, seed)


@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_of_huge_logits_is_finite(dtype: str) -> None:
    z = np.array([[1e4, 0.0, -1e4], [-1e30, 1e30, 0.0]], dtype)
    loss, gradient = softmax_cross_entropy(z, [1, 1])
    assert loss == 5e3
    assert gradient.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]


def test_cross_entropy_of_excluded_classes() -> None:
    loss, gradient = softmax_cross_entropy([[-np.inf, 0.0, 0.0]], [1])
    assert loss == pytest.approx(math.log(2), rel=1e-15, abs=0)
    assert gradient.tolist() == [[0.0, -0.5, 0.5]]
    assert softmax_cross_entropy([[-np.inf, 0.0]], [0])[0] == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cross_entropy_lets_nan_through_in_its_own_row(bad: float) -> None:
    loss, gradient = softmax_cross_entropy([[bad, 0.0], [0.0, 0.0]], [0, 0])
    assert math.isnan(loss)
    assert np.isnan(gradient[0]).all()
    assert gradient[1].tolist() == [-0.25, 0.25]


def test_cross_entropy_of_equal_weights_is_the_plain_mean() -> None:
    z, t, _, _, _ = ragged(3)
    plain = softmax_cross_entropy(z, t)
    weighted = softmax_cross_entropy(z, t, weights=np.full(t.shape, 3.0))
    assert weighted[0] == pytest.approx(plain[0], rel=1e-14, abs=0)
    np.testing.assert_allclose(weighted[1], plain[1], rtol=1e-13)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_cross_entropy_never_looks_at_what_does_not_count(dtype: str, batch_first: bool) -> None:
    z, t, w, lengths, inside = ragged(4, dtype)
    clean = softmax_cross_entropy(z[inside], t[inside], weights=w[inside])
    z[~inside], t[~inside], w[~inside] = np.nan, -7, np.nan
    if batch_first:
        z, t, w = z.swapaxes(0, 1), t.T, w.T
        inside = inside.T
    options: Any = {"lengths": lengths, "weights": w, "batch_first": batch_first}
    loss, gradient = softmax_cross_entropy(z, t, **options)
    assert gradient.shape == z.shape
    if not batch_first:  # the same elements in the same order: the same bits
        assert loss == clean[0]
        assert (gradient[inside] == clean[1]).all()
    assert loss == pytest.approx(clean[0], rel=1e-6 if dtype == "float32" else 1e-14, abs=0)
    assert (gradient[~inside] == 0).all()
    assert (gradient[inside] != 0).all()


def test_ignored_targets_and_zero_weights_do_not_count() -> None:
    z = np.array([[np.nan, 0.0], [1.0, 0.0], [np.inf, 5.0], [0.0, 2.0]])
    expected = softmax_cross_entropy(z[[1, 3]], [0, 1])
    ignored = softmax_cross_entropy(z, [-1, 0, -1, 1], ignore_index=-1)
    weighted = softmax_cross_entropy(z, [9, 0, -9, 1], weights=[0, 1, 0, 1])
    for loss, gradient in (ignored, weighted):
        assert loss == expected[0]
        assert gradient[[1, 3]].tolist() == expected[1].tolist()
        assert gradient[[0, 2]].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_ignore_index_may_be_a_valid_class() -> None:
    z = np.zeros((3, 2))
    loss, gradient = softmax_cross_entropy(z, [0, 1, 0], ignore_index=0)
    assert loss == pytest.approx(math.log(2), rel=1e-15, abs=0)
    assert gradient.tolist() == [[0.0, 0.0], [0.5, -0.5], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3), {"ignore_index": 0}),
        ((2, 3), {"weights": [0, 0]}),
        ((4, 2, 3), {"lengths": [0, 0]}),
        ((0, 2, 3), {"lengths": [0, 0]}),
        ((0, 3), {}),
        ((5, 0, 3), {"lengths": []}),
        ((0, 3), {"weights": np.zeros(0)}),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_cross_entropy_of_nothing_is_zero(shape: Any, options: Any, dtype: str) -> None:
    z = np.full(shape, np.nan, dtype)
    loss, gradient = softmax_cross_entropy(z, np.zeros(shape[:-1], int), **options)
    assert loss == 0.0
    assert gradient.shape == shape
    assert gradient.dtype == dtype
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [None, np.full((5, 4), 0.5)])
def test_cross_entropy_keeps_dtype_and_inputs(dtype: str, weights: Any) -> None:
    z, t, _, lengths, _ = ragged(5, dtype)
    before = z.copy(), t.copy()
    loss, gradient = softmax_cross_entropy(z, t, weights=weights, lengths=lengths)
    exact = softmax_cross_entropy(z.astype("float64"), t, weights=weights, lengths=lengths)
    assert type(loss) is float
    assert gradient.dtype == dtype
    assert type(gradient) is np.ndarray
    assert not np.shares_memory(gradient, z)
    assert (z == before[0]).all()
    assert (t == before[1]).all()
    assert loss == pytest.approx(exact[0], rel=1e-6 if dtype == "float32" else 0, abs=0)
    np.testing.assert_allclose(gradient, exact[1], rtol=0, atol=1e-7 if dtype == "float32" else 0)


def test_cross_entropy_is_added_up_in_float64() -> None:
    z, t, _, _, _ = ragged(11, "float32")
    single = [softmax_cross_entropy(z[i], t[i])[0] for i in np.ndindex(t.shape)]
    assert {float(np.float32(value)) for value in single} == set(single)
    loss, _ = softmax_cross_entropy(z, t)
    assert loss == pytest.approx(sum(single) / len(single), rel=1e-15, abs=0)


def test_other_number_types_give_float64() -> None:
    for z in ([[1, 0]], np.ones((1, 2), "float16"), np.ones((1, 2), "longdouble")):
        assert softmax_cross_entropy(z, [0])[1].dtype == np.float64
    swapped = softmax_cross_entropy(np.ones((1, 2), ">f4"), np.zeros(1, ">i2"))[1]
    assert swapped.dtype == np.float32
    assert swapped.dtype.isnative


@pytest.mark.parametrize(
    ("z", "t", "options", "error", "message"),
    [
        (np.zeros((2, 3)), [0, 3], {}, ValueError, r"targets: .* K - 1 = 2, got 3 at position 1"),
        (np.zeros((2, 3)), [-1, 0], {}, ValueError, r"targets: .* got -1 at position 0"),
        (np.zeros((1, 2, 3)), [[0, 9]], {}, ValueError, r"got 9 at position \(0, 1\)"),
        (np.zeros((2, 3)), [0], {}, ValueError, r"targets: expected shape \(\.\.\.\) = \(2,\)"),
        (np.zeros((2, 3)), [[0], [1]], {}, ValueError, r"targets: expected shape .* got \(2, 1\)"),
        (np.zeros((2, 3)), [0.0, 1.0], {}, TypeError, "targets: expected integers, got dtype fl"),
        (np.zeros((2, 3)), [True, False], {}, TypeError, "targets: expected integers, got bool"),
        (np.zeros((2, 3)), None, {}, TypeError, "targets: expected integers, got NoneType"),
        (np.zeros((2, 3), complex), [0, 1], {}, TypeError, "logits: expected real numbers"),
        (np.zeros((2, 0)), [0, 1], {}, ValueError, r"logits: expected shape \(\.\.\., K\) with K"),
        (1.0, 0, {}, ValueError, r"logits: expected shape \(\.\.\., K\) with K >= 1, got \(\)"),
        (np.zeros((2, 3)), [0, 1], {"weights": [1]}, ValueError, "weights: expected shape"),
        (np.zeros((2, 3)), [0, 1], {"weights": [1, -1]}, ValueError, "weights: .* got -1.0 at .*1"),
        (np.zeros((2, 3)), [0, 1], {"weights": [np.nan, 1]}, ValueError, "weights: .* got nan"),
        (np.zeros((2, 3)), [0, 1], {"weights": [1, np.inf]}, ValueError, "weights: .* got inf"),
        (np.zeros((2, 3)), [0, 1], {"weights": [1e308] * 2}, ValueError, "weights: .* sum is fin"),
        (np.zeros((2, 3)), [0, 1], {"weights": ["a", "b"]}, TypeError, "weights: expected real"),
        (
            np.zeros((2, 3)),
            [0, 1],
            {"ignore_index": 1.0},
            TypeError,
            "ignore_index: expected an in",
        ),
        (
            np.zeros((2, 3)),
            [0, 1],
            {"ignore_index": True},
            TypeError,
            "ignore_index: expected an i",
        ),
        (
            np.zeros((2, 3)),
            [0, 1],
            {"lengths": [1]},
            ValueError,
            r"logits: .* \(T, B, K\) with len",
        ),
        (np.zeros((2, 3)), [0, 1], {"batch_first": 1}, TypeError, "batch_first: expected True or"),
    ],
)
def test_cross_entropy_errors(
    z: Any, t: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        softmax_cross_entropy(z, t, **options)


@pytest.mark.parametrize("loss", ["cross-entropy", "squares"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([1, 6, 0], ValueError, r"lengths: expected 0 <= value <= T = 5, got 6 at position 1"),
        ([1, -1, 0], ValueError, r"lengths: .* got -1 at position 1"),
        ([1, 1], ValueError, r"lengths: expected shape \(B,\) = \(3,\), got \(2,\)"),
        ([1.0, 1.0, 1.0], TypeError, "lengths: expected integers, got dtype float64"),
    ],
)
def test_lengths_out_of_place(
    loss: str, batch_first: bool, lengths: Any, error: type[Exception], message: str
) -> None:
    shape = (3, 5, 2) if batch_first else (5, 3, 2)
    options: Any = {"lengths": lengths, "batch_first": batch_first}
    call, target = (
        (mean_squared_error, np.zeros(shape))
        if loss == "squares"
        else (softmax_cross_entropy, np.zeros(shape[:2], int))
    )
    with pytest.raises(error, match=message):
        call(np.zeros(shape), target, **options)


# ---- Mean squared error ------------------------------------------------------------------------


def test_squares_by_hand() -> None:
    loss, gradient = mean_squared_error([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 4.0]])
    assert loss == (4 + 9) / 4
    assert gradient.tolist() == [[0.0, 1.0], [1.5, 0.0]]
    loss, gradient = mean_squared_error([1.0, 2.0], [0.0, 0.0], weights=[3.0, 1.0])
    assert loss == (3 + 4) / 4
    assert gradient.tolist() == [1.5, 1.0]


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 4, 2)])
def test_squares_are_the_naive_formula(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    y, t, w = rng.standard_normal((3, *shape))
    w = np.abs(w)
    terms = [
        (float(w[i]) * (float(y[i]) - float(t[i])) ** 2, float(w[i])) for i in np.ndindex(shape)
    ]
    expected = sum(term for term, _ in terms) / sum(weight for _, weight in terms)
    assert mean_squared_error(y, t, weights=w)[0] == pytest.approx(expected, rel=1e-13, abs=0)


@pytest.mark.parametrize("options", ["", "weights", "lengths", "weights lengths"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("features", [(), (3,), (2, 3)])
def test_squares_gradient_along_a_direction(
    options: str, batch_first: bool, features: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(7)
    shape = ((4, 5) if batch_first else (5, 4)) + features
    y, t, w = rng.standard_normal((3, *shape))
    keywords: dict[str, Any] = {"batch_first": batch_first}
    keywords |= {"weights": w**2} if "weights" in options else {}
    keywords |= {"lengths": [5, 0, 2, 3]} if "lengths" in options else {}
    for seed in range(3):
        check_direction(lambda at: mean_squared_error(at, t, **keywords), y, seed)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_squares_never_look_at_what_does_not_count(batch_first: bool, weighted: bool) -> None:
    y, _, _, lengths, inside = ragged(8, "float32")
    rng = np.random.default_rng(9)
    t, w = rng.standard_normal(y.shape), rng.uniform(0.1, 1, y.shape)
    clean = mean_squared_error(y[inside], t[inside], weights=w[inside] if weighted else None)
    # 1e300 is out of float32's range: beyond the lengths that must not matter either.
    y[~inside], t[~inside], w[~inside] = np.nan, 1e300, np.inf
    y[4, 1], t[4, 1] = np.inf, np.inf
    if batch_first:
        y, t, w, inside = y.swapaxes(0, 1), t.swapaxes(0, 1), w.swapaxes(0, 1), inside.T
    loss, gradient = mean_squared_error(
        y, t, lengths=lengths, weights=w if weighted else None, batch_first=batch_first
    )
    assert loss == pytest.approx(clean[0], rel=1e-14, abs=0)
    assert gradient.shape == y.shape
    assert gradient.dtype == np.float32
    assert (gradient[~inside] == 0).all()
    rows = gradient.swapaxes(0, 1) if batch_first else gradient
    np.testing.assert_array_equal(rows[inside.T if batch_first else inside], clean[1])


def test_squares_with_zero_weights_do_not_count() -> None:
    loss, gradient = mean_squared_error(
        np.array([np.nan, 1.0], "float32"), [1e300, 3.0], weights=[0.0, 2.0]
    )
    assert loss == 4.0
    assert gradient.tolist() == [0.0, -4.0]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((0,), {}),
        ((2, 0), {}),
        ((3,), {"weights": [0, 0, 0]}),
        ((4, 2, 3), {"lengths": [0, 0]}),
        ((0, 2), {"lengths": [0, 0]}),
        ((0,), {"weights": np.zeros(0)}),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_squares_of_nothing_are_zero(shape: Any, options: Any, dtype: str) -> None:
    loss, gradient = mean_squared_error(np.full(shape, np.nan, dtype), np.ones(shape), **options)
    assert loss == 0.0
    assert gradient.shape == shape
    assert gradient.dtype == dtype
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_squares_keep_dtype_and_inputs(dtype: str) -> None:
    y, t = np.random.default_rng(10).standard_normal((2, 50)).astype(dtype)
    before = y.copy(), t.copy()
    loss, gradient = mean_squared_error(y, t.astype("float64"))
    assert type(loss) is float
    assert gradient.dtype == dtype
    assert not np.shares_memory(gradient, y)
    assert (y == before[0]).all()
    assert (t == before[1]).all()
    # The squares are taken and added up in float64.
    d = (y - t).astype("float64")
    assert loss == pytest.approx(float((d * d).sum() / 50), rel=1e-15, abs=0)


def test_squares_in_float32_do_not_overflow_on_the_way() -> None:
    loss, gradient = mean_squared_error(np.array([1e30], "float32"), [0.0])
    assert loss == pytest.approx(1e60, rel=1e-6, abs=0)
    assert gradient[0] == np.float32(2e30)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_squares_let_nan_through(bad: float) -> None:
    loss, gradient = mean_squared_error([bad, 1.0], [bad, 0.0])
    assert math.isnan(loss)
    assert math.isnan(gradient[0])
    assert gradient[1] == 1.0


@pytest.mark.parametrize(
    ("y", "t", "options", "error", "message"),
    [
        ([1.0, 2.0], [1.0], {}, ValueError, r"target: expected shape of prediction = \(2,\), got "),
        ([[1.0], [2.0]], [1.0, 2.0], {}, ValueError, r"target: .* \(2, 1\), got \(2,\)"),
        ([1.0], [1j], {}, TypeError, "target: expected real numbers"),
        ([True], [1], {}, TypeError, "prediction: expected real numbers .* got bool"),
        (np.zeros(1, "float32"), [1e300], {}, ValueError, r"target: .* range of float32"),
        ([1.0], [1.0], {"weights": [[1.0]]}, ValueError, r"weights: .* of prediction = \(1,\)"),
        ([1.0], [1.0], {"weights": [-1.0]}, ValueError, "weights: .* got -1.0 at position"),
        (
            [1.0],
            [1.0],
            {"lengths": [1]},
            ValueError,
            r"prediction: expected shape \(T, B, \.\.\.\)",
        ),
        ([1.0], [1.0], {"batch_first": None}, TypeError, "batch_first: expected True or False"),
    ],
)
def test_squares_errors(y: Any, t: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mean_squared_error(y, t, **options)


def test_results_do_not_depend_on_numpy_error_settings() -> None:
    z = np.array([[0.0, -1e4], [np.inf, np.nan]])
    with np.errstate(all="raise"):
        assert math.isnan(softmax_cross_entropy(z, [0, 1])[0])
        assert math.isnan(mean_squared_error(z, z)[0])
