"""The losses against naive formulas and finite differences, and what does not count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradcheck import direction
from rnncore.losses import (
    binary_cross_entropy_with_logits,
    huber,
    mean_absolute_error,
    mean_squared_error,
    softmax_cross_entropy,
)

FLOATS = ("float32", "float64")
Loss = Callable[[NDArray[Any]], tuple[float, NDArray[Any]]]


def check_direction(loss: Loss, at: NDArray[np.float64], seed: int) -> None:
    """Hold <v, gradient> against a central difference of the loss along v, to 1e-7 relative."""
    v = direction(loss(at)[1], np.random.default_rng(seed))
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


@pytest.mark.parametrize(
    "loss",
    [
        softmax_cross_entropy,
        binary_cross_entropy_with_logits,
        mean_squared_error,
        mean_absolute_error,
        huber,
    ],
)
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
    loss: Any, batch_first: bool, lengths: Any, error: type[Exception], message: str
) -> None:
    shape = (3, 5, 2) if batch_first else (5, 3, 2)
    target = np.zeros(shape[:2] if loss is softmax_cross_entropy else shape, int)
    with pytest.raises(error, match=message):
        loss(np.zeros(shape), target, lengths=lengths, batch_first=batch_first)


# ---- Label smoothing ---------------------------------------------------------------------------


def test_label_smoothing_by_hand() -> None:
    # p = 1/4 and 3/4; q = 0.9 and 0.1
    loss, gradient = softmax_cross_entropy([[0.0, math.log(3)]], [0], label_smoothing=0.2)
    assert loss == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3), rel=1e-15, abs=0)
    np.testing.assert_allclose(gradient, [[0.25 - 0.9, 0.75 - 0.1]], rtol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0, 1, np.float32(0.25)])
def test_label_smoothing_is_the_naive_formula(smoothing: Any) -> None:
    z, t, w, lengths, inside = ragged(16)
    total = weight = 0.0
    slopes = np.zeros(z.shape)
    for i in zip(*inside.nonzero(), strict=True):
        q = [float(smoothing) / 3 + (1 - float(smoothing)) * (k == t[i]) for k in range(3)]
        p = [math.exp(value) / sum(math.exp(each) for each in z[i]) for value in z[i]]
        total -= w[i] * sum(q[k] * math.log(p[k]) for k in range(3))
        slopes[i] = [w[i] * (p[k] - q[k]) for k in range(3)]
        weight += w[i]
    loss, gradient = softmax_cross_entropy(
        z, t, lengths=lengths, weights=w, label_smoothing=smoothing
    )
    assert loss == pytest.approx(total / weight, rel=1e-14, abs=0)
    np.testing.assert_allclose(gradient, slopes / weight, rtol=0, atol=1e-16)


@pytest.mark.parametrize("options", ["", "weights", "ignore", "lengths", "weights ignore lengths"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_label_smoothing_gradient_along_a_direction(options: str, batch_first: bool) -> None:
    z, t, w, lengths, _ = ragged(2)
    if batch_first:
        z, t, w = z.swapaxes(0, 1), t.T, w.T
    keywords: dict[str, Any] = {"batch_first": batch_first, "label_smoothing": 0.3}
    keywords |= {"weights": w} if "weights" in options else {}
    keywords |= {"ignore_index": 1} if "ignore" in options else {}
    keywords |= {"lengths": lengths} if "lengths" in options else {}
    for seed in range(3):
        check_direction(lambda at: softmax_cross_entropy(at, t, **keywords), z, seed)


@pytest.mark.parametrize("dtype", FLOATS)
def test_label_smoothing_of_extreme_logits(dtype: str) -> None:
    z = np.array([[1e4, 0.0, -1e4]], dtype)
    loss, gradient = softmax_cross_entropy(z, [0], label_smoothing=0.75)
    assert loss == 0.25 * (1e4 + 2e4)  # a quarter each for the two others
    assert gradient.tolist() == [[0.5, -0.25, -0.25]]
    excluded = np.array([[-np.inf, 0.0]], dtype)
    for target, smoothing in ((1, 0.5), (0, 0.5), (0, 1.0), (1, 1.0)):
        loss, gradient = softmax_cross_entropy(excluded, [target], label_smoothing=smoothing)
        assert loss == np.inf
        assert np.isfinite(gradient).all()
    assert softmax_cross_entropy(excluded, [1], label_smoothing=0)[0] == 0.0


def test_label_smoothing_ignores_what_does_not_count() -> None:
    z = np.array([[np.nan, 0.0], [1.0, 0.0], [np.inf, 5.0]])
    expected = softmax_cross_entropy(z[[1]], [0], label_smoothing=0.1)
    loss, gradient = softmax_cross_entropy(
        z, [-1, 0, 1], ignore_index=-1, weights=[1, 1, 0], label_smoothing=0.1
    )
    assert loss == expected[0]
    assert gradient.tolist() == [[0.0, 0.0], *expected[1].tolist(), [0.0, 0.0]]
    assert softmax_cross_entropy(np.zeros((0, 2)), [], label_smoothing=0.1)[0] == 0.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_label_smoothing_keeps_the_dtype(dtype: str) -> None:
    z, t, _, _, _ = ragged(17, dtype)
    loss, gradient = softmax_cross_entropy(z, t, label_smoothing=0.1)
    exact = softmax_cross_entropy(z.astype("float64"), t, label_smoothing=0.1)
    assert gradient.dtype == dtype
    assert loss == pytest.approx(exact[0], rel=1e-6 if dtype == "float32" else 0, abs=0)
    np.testing.assert_allclose(gradient, exact[1], rtol=0, atol=1e-7 if dtype == "float32" else 0)


@pytest.mark.parametrize(
    ("smoothing", "error", "message"),
    [
        (-0.1, ValueError, "label_smoothing: expected 0 <= number <= 1, got -0.1"),
        (1.5, ValueError, "label_smoothing: expected 0 <= number <= 1, got 1.5"),
        (math.nan, ValueError, "label_smoothing: expected 0 <= number <= 1, got nan"),
        (None, TypeError, "label_smoothing: expected a real number, got None"),
        (True, TypeError, "label_smoothing: expected a real number, got True"),
    ],
)
def test_bad_label_smoothing(smoothing: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        softmax_cross_entropy([[0.0, 0.0]], [0], label_smoothing=smoothing)


# ---- Losses over elements ----------------------------------------------------------------------


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


Single = Callable[[float, float], float]

# Each loss with its options, the loss of one element and its derivative, as one writes them.
ELEMENTWISE: dict[str, tuple[Any, dict[str, Any], Single, Single]] = {
    "squared": (mean_squared_error, {}, lambda y, t: (y - t) ** 2, lambda y, t: 2 * (y - t)),
    "absolute": (
        mean_absolute_error,
        {},
        lambda y, t: abs(y - t),
        lambda y, t: math.copysign(1.0, y - t),
    ),
    "huber": (
        huber,
        {"delta": 0.75},
        lambda y, t: 0.5 * (y - t) ** 2 if abs(y - t) <= 0.75 else 0.75 * (abs(y - t) - 0.5 * 0.75),
        lambda y, t: max(-0.75, min(0.75, y - t)),
    ),
    "binary": (
        binary_cross_entropy_with_logits,
        {},
        lambda z, t: -t * math.log(sigmoid(z)) - (1 - t) * math.log(1 - sigmoid(z)),
        lambda z, t: sigmoid(z) - t,
    ),
    "binary with pos_weight": (
        binary_cross_entropy_with_logits,
        {"pos_weight": 2.5},
        lambda z, t: -2.5 * t * math.log(sigmoid(z)) - (1 - t) * math.log(1 - sigmoid(z)),
        lambda z, t: (1 - t) * sigmoid(z) - 2.5 * t * (1 - sigmoid(z)),
    ),
}
elementwise = pytest.mark.parametrize("kind", ELEMENTWISE)


def call(kind: str, y: Any, t: Any, **options: Any) -> tuple[float, NDArray[Any]]:
    """Call the loss of that name with its options."""
    loss, own, _, _ = ELEMENTWISE[kind]
    result: tuple[float, NDArray[Any]] = loss(y, t, **own, **options)
    return result


def targets(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw targets that the loss accepts."""
    return rng.uniform(0, 1, shape) if "binary" in kind else rng.standard_normal(shape)


def test_squares_by_hand() -> None:
    loss, gradient = mean_squared_error([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 4.0]])
    assert loss == (4 + 9) / 4
    assert gradient.tolist() == [[0.0, 1.0], [1.5, 0.0]]
    loss, gradient = mean_squared_error([1.0, 2.0], [0.0, 0.0], weights=[3.0, 1.0])
    assert loss == (3 + 4) / 4
    assert gradient.tolist() == [1.5, 1.0]


def test_absolute_differences_by_hand() -> None:
    loss, gradient = mean_absolute_error([1.0, 2.0, 3.0, 0.0], [1.0, 4.0, -3.0, 0.0])
    assert loss == (2 + 6) / 4
    assert gradient.tolist() == [0.0, -0.25, 0.25, 0.0]
    assert mean_absolute_error([1.0, 2.0], [0.0, 0.0], weights=[3.0, 1.0])[0] == (3 + 2) / 4


def test_huber_by_hand() -> None:
    # |d| = 0.5, 1, 3, 0: d^2 / 2 up to 1, then |d| - 1/2
    loss, gradient = huber([0.5, -1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 2.0])
    assert loss == (0.125 + 0.5 + 2.5) / 4
    assert gradient.tolist() == [0.125, -0.25, 0.25, 0.0]
    loss, gradient = huber([3.0, -8.0], [0.0, 0.0], delta=4)
    assert loss == (4.5 + 4 * (8 - 2)) / 2
    assert gradient.tolist() == [1.5, -2.0]


def test_huber_lies_between_its_two_pieces() -> None:
    y, t = np.random.default_rng(12).standard_normal((2, 50))
    half_squares, absolute = mean_squared_error(y, t), mean_absolute_error(y, t)
    wide, narrow = huber(y, t, delta=1e3), huber(y, t, delta=1e-9)
    assert wide[0] == pytest.approx(half_squares[0] / 2, rel=1e-15, abs=0)
    np.testing.assert_array_equal(wide[1], half_squares[1] / 2)
    assert narrow[0] == pytest.approx(1e-9 * absolute[0], rel=1e-8, abs=0)
    np.testing.assert_allclose(narrow[1], 1e-9 * absolute[1], rtol=1e-15)


def test_binary_cross_entropy_by_hand() -> None:
    loss, gradient = binary_cross_entropy_with_logits([0.0, math.log(3), math.log(3)], [1, 1, 0])
    expected = (math.log(2) + math.log(4 / 3) + math.log(4)) / 3
    assert loss == pytest.approx(expected, rel=1e-15, abs=0)
    np.testing.assert_allclose(gradient, [-0.5 / 3, -0.25 / 3, 0.75 / 3], rtol=1e-15)
    # With pos_weight: 3 log 2 of a yes, log 2 of a no, and half of each.
    loss, gradient = binary_cross_entropy_with_logits([0.0, 0.0, 0.0], [1, 0, 0.5], pos_weight=3)
    assert loss == pytest.approx((3 + 1 + 2) / 3 * math.log(2), rel=1e-15, abs=0)
    np.testing.assert_allclose(gradient, [-1.5 / 3, 0.5 / 3, -0.5 / 3], rtol=1e-15)


def test_binary_cross_entropy_is_softmax_of_two_classes() -> None:
    rng = np.random.default_rng(13)
    z, t = rng.standard_normal(20), rng.integers(0, 2, 20)
    both, slopes = softmax_cross_entropy(np.stack([np.zeros(20), z], axis=1), t)
    loss, gradient = binary_cross_entropy_with_logits(z, t)
    assert loss == pytest.approx(both, rel=1e-14, abs=0)
    np.testing.assert_allclose(gradient, slopes[:, 1], rtol=1e-13)


@elementwise
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 4, 2)])
def test_elements_follow_the_naive_formula(kind: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    y, t, w = rng.standard_normal(shape), targets(kind, rng, shape), rng.uniform(0.1, 2, shape)
    single, derivative = ELEMENTWISE[kind][2:]
    pairs = {i: (float(y[i]), float(t[i])) for i in np.ndindex(shape)}
    for weights in (None, w):
        share = {i: 1.0 if weights is None else float(w[i]) for i in pairs}
        total = sum(share.values())
        loss, gradient = call(kind, y, t, weights=weights)
        expected = sum(share[i] * single(*pair) for i, pair in pairs.items()) / total
        assert loss == pytest.approx(expected, rel=1e-13, abs=0)
        assert gradient.shape == shape
        for i, pair in pairs.items():
            slope = share[i] * derivative(*pair) / total
            assert gradient[i] == pytest.approx(slope, rel=1e-13, abs=0)


@elementwise
@pytest.mark.parametrize("options", ["", "weights", "ignore", "lengths", "weights ignore lengths"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("features", [(), (3,), (2, 3)])
def test_gradient_of_elements_along_a_direction(
    kind: str, options: str, batch_first: bool, features: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(7)
    shape = ((4, 5) if batch_first else (5, 4)) + features
    y, t, w = rng.standard_normal(shape), targets(kind, rng, shape), rng.uniform(0, 2, shape)
    # Away from where the absolute difference has no derivative, and Huber's has no second one.
    y[np.abs(y - t) < 1e-3] += 1e-2
    y[np.abs(np.abs(y - t) - 0.75) < 1e-3] += 1e-2
    t[rng.uniform(size=shape) < 0.2] = -1 if "ignore" in options else 1
    keywords: dict[str, Any] = {"batch_first": batch_first}
    keywords |= {"weights": w} if "weights" in options else {}
    keywords |= {"ignore_index": -1} if "ignore" in options else {}
    keywords |= {"lengths": [5, 0, 2, 3]} if "lengths" in options else {}
    for seed in range(3):
        check_direction(lambda at: call(kind, at, t, **keywords), y, seed)


@elementwise
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_elements_that_do_not_count_are_never_looked_at(
    kind: str, dtype: str, batch_first: bool, weighted: bool
) -> None:
    y, _, _, lengths, inside = ragged(8, dtype)
    rng = np.random.default_rng(9)
    t, w = targets(kind, rng, y.shape), rng.uniform(0.1, 1, y.shape)
    clean = call(kind, y[inside], t[inside], weights=w[inside] if weighted else None)
    # 1e300 is out of float32's range: beyond the lengths that must not matter either.
    y[~inside], t[~inside], w[~inside] = np.nan, 1e300, np.inf
    y[4, 1], t[4, 1] = np.inf, np.inf
    if batch_first:
        y, t, w, inside = y.swapaxes(0, 1), t.swapaxes(0, 1), w.swapaxes(0, 1), inside.T
    loss, gradient = call(
        kind, y, t, lengths=lengths, weights=w if weighted else None, batch_first=batch_first
    )
    if not batch_first:  # the same elements in the same order: the same bits
        assert loss == clean[0]
        np.testing.assert_array_equal(gradient[inside], clean[1])
    rows = gradient.swapaxes(0, 1) if batch_first else gradient
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(rows[inside.T if batch_first else inside], clean[1], rtol=tolerance)
    assert loss == pytest.approx(clean[0], rel=tolerance, abs=0)
    assert gradient.shape == y.shape
    assert gradient.dtype == dtype
    assert (gradient[~inside] == 0).all()


@elementwise
@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_ignored_by_target_or_weight_do_not_count(kind: str, dtype: str) -> None:
    y = np.array([np.nan, 1.0, np.inf, -2.0], dtype)
    expected = call(kind, y[[1, 3]], [0.25, 1.0])
    ignored = call(kind, y, [-7, 0.25, -7, 1.0], ignore_index=-7)
    weighted = call(kind, y, [1e300, 0.25, np.nan, 1.0], weights=[0, 1, 0, 1])
    for loss, gradient in (ignored, weighted):
        assert loss == expected[0]
        assert gradient[[1, 3]].tolist() == expected[1].tolist()
        assert gradient[[0, 2]].tolist() == [0.0, 0.0]


def test_ignore_index_is_compared_before_the_cast() -> None:
    # As float32 the target 16777217 is 16777216.
    loss, _ = mean_squared_error(np.zeros(2, "float32"), [16777217, 1], ignore_index=16777216)
    assert loss == (16777216.0**2 + 1) / 2
    loss, gradient = mean_squared_error(np.zeros(2, "float32"), [2**30, 1], ignore_index=2**30)
    assert (loss, gradient.tolist()) == (1.0, [0.0, -2.0])


@elementwise
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((0,), {}),
        ((2, 0), {}),
        ((3,), {"weights": [0, 0, 0]}),
        ((3,), {"ignore_index": 1}),
        ((4, 2, 3), {"lengths": [0, 0]}),
        ((0, 2), {"lengths": [0, 0]}),
        ((0,), {"weights": np.zeros(0)}),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_loss_of_no_elements_is_zero(kind: str, shape: Any, options: Any, dtype: str) -> None:
    loss, gradient = call(kind, np.full(shape, np.nan, dtype), np.ones(shape), **options)
    assert loss == 0.0
    assert gradient.shape == shape
    assert gradient.dtype == dtype
    assert (gradient == 0).all()


@elementwise
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [None, np.full((10, 5), 0.5)])
def test_elements_keep_dtype_and_inputs(kind: str, dtype: str, weights: Any) -> None:
    rng = np.random.default_rng(10)
    y, t = rng.standard_normal((10, 5)).astype(dtype), targets(kind, rng, (10, 5)).astype(dtype)
    before = y.copy(), t.copy()
    loss, gradient = call(kind, y, t.astype("float64"), weights=weights)
    exact = call(kind, y.astype("float64"), t.astype("float64"), weights=weights)
    assert type(loss) is float
    assert type(gradient) is np.ndarray
    assert gradient.dtype == dtype
    assert not np.shares_memory(gradient, y)
    assert (y == before[0]).all()
    assert (t == before[1]).all()
    assert loss == pytest.approx(exact[0], rel=1e-6 if dtype == "float32" else 0, abs=0)
    np.testing.assert_allclose(gradient, exact[1], rtol=0, atol=1e-8 if dtype == "float32" else 0)


@elementwise
def test_elements_are_added_up_in_float64(kind: str) -> None:
    rng = np.random.default_rng(14)
    y, t = rng.standard_normal(500).astype("float32"), targets(kind, rng, (500,)).astype("float32")
    single = [call(kind, y[i], t[i])[0] for i in range(500)]
    loss, _ = call(kind, y, t)
    assert loss == pytest.approx(sum(single) / 500, rel=1e-14, abs=0)


def test_squares_in_float32_do_not_overflow_on_the_way() -> None:
    loss, gradient = mean_squared_error(np.array([1e30], "float32"), [0.0])
    assert loss == pytest.approx(1e60, rel=1e-6, abs=0)
    assert gradient[0] == np.float32(2e30)
    loss, gradient = huber(np.array([3.0, 1e30], "float32"), [0.0, 0.0], delta=1e300)
    assert loss == pytest.approx(1e60 / 4, rel=1e-6, abs=0)
    assert gradient.tolist() == [1.5, np.float32(5e29)]


@elementwise
def test_elements_let_nan_through(kind: str) -> None:
    loss, gradient = call(kind, [np.nan, 2.0], [1.0, 0.5])
    assert math.isnan(loss)
    assert math.isnan(gradient[0])
    assert gradient[1] == call(kind, [2.0], [0.5])[1][0] / 2


@pytest.mark.parametrize("kind", ["squared", "absolute", "huber"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_differences_let_bad_targets_through(kind: str, bad: float) -> None:
    loss, gradient = call(kind, [bad, 1.0], [bad, 0.0])
    assert math.isnan(loss)
    assert math.isnan(gradient[0])
    assert math.isfinite(gradient[1])
    loss, gradient = call(kind, [1.0], [math.inf])
    assert loss == math.inf
    assert gradient[0] == {"squared": -math.inf, "absolute": -1.0, "huber": -0.75}[kind]


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_cross_entropy_of_huge_logits(dtype: str) -> None:
    z = np.array([1e4, -1e4, 1e4, -1e4, 1e4, -1e4], dtype)
    loss, gradient = binary_cross_entropy_with_logits(z, [1, 0, 0, 1, 0.5, 0.5])
    assert loss == (1e4 + 1e4 + 5e3 + 5e3) / 6
    expected = np.array([0, 0, 1, -1, 0.5, -0.5], dtype) / dtype_of(dtype)(6)
    assert gradient.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_cross_entropy_of_infinite_logits(dtype: str) -> None:
    z = np.array([np.inf, -np.inf], dtype)
    for pos_weight in (None, 2.0):  # sure and right
        loss, gradient = binary_cross_entropy_with_logits(z, [1, 0], pos_weight=pos_weight)
        assert (loss, gradient.tolist()) == (0.0, [0.0, 0.0])
    loss, gradient = binary_cross_entropy_with_logits(z, [0, 1])  # sure and wrong
    assert (loss, gradient.tolist()) == (math.inf, [0.5, -0.5])
    assert binary_cross_entropy_with_logits(z, [0.5, 0.5])[0] == math.inf


@pytest.mark.parametrize("z", [5.0, 20.0, 50.0, 80.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_cross_entropy_keeps_the_digits_of_what_is_nearly_right(
    z: float, dtype: str
) -> None:
    tolerance = 5e-7 if dtype == "float32" else 1e-15
    for sign, target in ((1, 1.0), (-1, 0.0)):
        loss, gradient = binary_cross_entropy_with_logits(np.array([sign * z], dtype), [target])
        assert loss == pytest.approx(softplus(-z), rel=tolerance, abs=0)
        assert float(gradient[0]) == pytest.approx(-sign * sigmoid(-z), rel=tolerance, abs=0)


def dtype_of(name: str) -> Any:
    return np.dtype(name).type


@pytest.mark.parametrize("dtype", FLOATS)
def test_pos_weight_may_differ_along_the_last_axis(dtype: str) -> None:
    rng = np.random.default_rng(15)
    z, t = rng.standard_normal((5, 4, 3)).astype(dtype), rng.integers(0, 2, (5, 4, 3))
    w, lengths = rng.uniform(0.1, 1, z.shape), [5, 0, 2, 3]
    options: Any = {"lengths": lengths, "weights": w}
    c = [0.5, 2.0, 0.0]
    loss, gradient = binary_cross_entropy_with_logits(z, t, pos_weight=c, **options)
    # The mean is not divided by pos_weight: each place alone, weighed by its share of the weights.
    inside = np.arange(5)[:, None] < np.array(lengths)
    total, share = 0.0, [float(w[..., k][inside].sum() / w[inside].sum()) for k in range(3)]
    for k in range(3):
        place, slopes = binary_cross_entropy_with_logits(
            z[..., k], t[..., k], pos_weight=c[k], lengths=lengths, weights=w[..., k]
        )
        total += place * share[k]
        np.testing.assert_allclose(
            gradient[..., k], slopes * dtype_of(dtype)(share[k]),
            rtol=1e-6 if dtype == "float32" else 1e-13,
        )  # fmt: skip
    assert loss == pytest.approx(total, rel=1e-6 if dtype == "float32" else 1e-14, abs=0)
    assert gradient.dtype == dtype
    same = [
        binary_cross_entropy_with_logits(z, t, pos_weight=value, **options)
        for value in (None, 1, 1.0, np.ones(3, int), [1, 1, 1])
    ]
    assert len({value for value, _ in same}) == 1
    assert all((slopes == same[0][1]).all() for _, slopes in same)


@pytest.mark.parametrize("kind", ["squared", "absolute", "huber"])
@pytest.mark.parametrize(
    ("y", "t", "options", "error", "message"),
    [
        ([1.0, 2.0], [1.0], {}, ValueError, r"target: expected shape of prediction = \(2,\), got "),
        ([[1.0], [2.0]], [1.0, 2.0], {}, ValueError, r"target: .* \(2, 1\), got \(2,\)"),
        (
            [1.0, 2.0],
            [1.0],
            {"ignore_index": 1},
            ValueError,
            r"target: expected shape of prediction = \(2,\), got \(1,\)",
        ),
        ([1.0], [1j], {}, TypeError, "target: expected real numbers"),
        ([True], [1], {}, TypeError, "prediction: expected real numbers .* got bool"),
        (np.zeros(1, "float32"), [1e300], {}, ValueError, r"target: .* range of float32"),
        ([1.0], [1.0], {"weights": [[1.0]]}, ValueError, r"weights: .* of prediction = \(1,\)"),
        (
            [1.0, 1.0],
            [1.0, 1.0],
            {"weights": [1.0, -1.0]},
            ValueError,
            "weights: expected finite values >= 0, got -1.0 at position 1$",
        ),
        (
            [1.0],
            [1.0],
            {"lengths": [1]},
            ValueError,
            r"prediction: expected shape \(T, B, \.\.\.\) with lengths, got \(1,\)",
        ),
        ([1.0], [1.0], {"batch_first": None}, TypeError, "batch_first: expected True or False"),
        (
            [1.0],
            [1.0],
            {"ignore_index": -1.0},
            TypeError,
            "ignore_index: expected an integer or None, got -1.0",
        ),
        (
            [1.0],
            [1.0],
            {"ignore_index": 2**63},
            ValueError,
            "ignore_index: expected an integer of at most 64 bits, got 9223372036854775808",
        ),
    ],
)
def test_errors_of_differences(
    kind: str, y: Any, t: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call(kind, y, t, **options)


@pytest.mark.parametrize(
    ("delta", "error", "message"),
    [
        (0, ValueError, "delta: expected a finite number > 0, got 0"),
        (-1.5, ValueError, "delta: expected a finite number > 0, got -1.5"),
        (math.inf, ValueError, "delta: expected a finite number > 0, got inf"),
        (math.nan, ValueError, "delta: expected a finite number > 0, got nan"),
        ("1", TypeError, "delta: expected a real number, got '1'"),
        (True, TypeError, "delta: expected a real number, got True"),
    ],
)
def test_bad_delta(delta: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        huber([1.0], [1.0], delta=delta)


@pytest.mark.parametrize(
    ("z", "t", "options", "error", "message"),
    [
        ([1.0, 2.0], [1.0], {}, ValueError, r"targets: expected shape of logits = \(2,\), got "),
        ([1.0, 2.0], [0, 2], {}, ValueError, "targets: .* 0 <= value <= 1, got 2.0 at position 1$"),
        ([[1.0, 2.0]], [[0, -0.5]], {}, ValueError, r"targets: .* -0.5 at position \(0, 1\)$"),
        (1.0, np.nan, {}, ValueError, "targets: expected 0 <= value <= 1, got nan$"),
        ([1.0], [True], {}, TypeError, "targets: expected real numbers .* got bool"),
        ([1j], [1.0], {}, TypeError, "logits: expected real numbers"),
        ([1.0], [1.0], {"weights": [1, 1]}, ValueError, r"weights: .* of logits = \(1,\), got"),
        ([1.0], [1.0], {"lengths": [1]}, ValueError, r"logits: expected shape \(T, B, \.\.\.\)"),
        (
            [[1.0, 2.0]],
            [[1, 0]],
            {"pos_weight": [1, 2, 3]},
            ValueError,
            r"pos_weight: expected shape \(\) or \(K,\) = \(2,\), got \(3,\)$",
        ),
        (
            1.0,
            1.0,
            {"pos_weight": [1.0]},
            ValueError,
            r"pos_weight: expected shape \(\) .* got \(1,\)$",
        ),
        (
            [1.0, 2.0],
            [1, 0],
            {"pos_weight": [1, -2]},
            ValueError,
            "pos_weight: expected finite values >= 0, got -2.0 at position 1$",
        ),
        ([1.0], [1], {"pos_weight": np.inf}, ValueError, "pos_weight: expected finite .* got inf$"),
        ([1.0], [1], {"pos_weight": np.nan}, ValueError, "pos_weight: expected finite .* got nan$"),
        ([1.0], [1], {"pos_weight": "2"}, TypeError, "pos_weight: expected real numbers"),
    ],
)
def test_errors_of_binary_cross_entropy(
    z: Any, t: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        binary_cross_entropy_with_logits(z, t, **options)


def test_results_do_not_depend_on_numpy_error_settings() -> None:
    z = np.array([[0.0, -1e4], [np.inf, np.nan]])
    with np.errstate(all="raise"):
        assert math.isnan(softmax_cross_entropy(z, [0, 1], label_smoothing=0.1)[0])
        for kind in ELEMENTWISE:
            assert math.isnan(call(kind, z, np.zeros(z.shape))[0])
        assert math.isnan(huber(z.astype("float32"), z, delta=1e300)[0])
