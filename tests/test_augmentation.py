"""Augmentations: what they draw, what they leave alone, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnncore as rc

T, B, F = 12, 5, 3
LENGTHS = [7, 0, T, 1, 2]
NOT_A_FLAG: Any = 1
MAKE: dict[str, Callable[..., Any]] = {
    "jitter": lambda **o: rc.Jitter(0.5, **o),
    "scaling": lambda **o: rc.Scaling(0.5, **o),
    "warp": lambda **o: rc.TimeWarp(0.8, knots=3, **o),
    "slice": lambda **o: rc.WindowSlice(0.6, **o),
}


@pytest.fixture(params=MAKE)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Each kind of augmentation."""
    kind: Callable[..., Any] = MAKE[request.param]
    return kind


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(dtype: str = "float64", seed: int = 1) -> NDArray[Any]:
    return rng(seed).standard_normal((T, B, F)).astype(dtype)


def beyond(lengths: Any = LENGTHS) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.arange(T)[:, None] >= np.asarray(lengths)
    return mask


# ---- What all share ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padding_is_neither_read_nor_changed(make: Callable[..., Any], dtype: str) -> None:
    x = drawn(dtype)
    x[beyond()] = np.nan
    before = x.copy()
    y, lengths = make()(x, LENGTHS, rng())
    np.testing.assert_array_equal(x, before)
    assert y.dtype == dtype
    assert not np.shares_memory(x, y)
    assert np.isnan(y[beyond()]).all()
    assert np.isfinite(y[~beyond()]).all()
    assert not np.array_equal(y[~beyond()], x[~beyond()])
    assert (lengths <= LENGTHS).all()
    assert lengths.dtype == np.int64


def test_a_row_is_the_same_however_long_the_padding(make: Callable[..., Any]) -> None:
    """Of one row, so that the draws are in the same order; jitter draws for padding too."""
    x = rng(3).standard_normal((T, 1, F))
    short, n = make()(x[:7], [7], rng())
    long, m = make()(x, [7], rng())
    assert n == m
    np.testing.assert_array_equal(short[: n[0]], long[: n[0]])


@pytest.mark.parametrize("ragged", [False, True])
def test_batch_first_is_the_same_transposed(make: Callable[..., Any], ragged: bool) -> None:
    x, lengths = drawn(), (LENGTHS if ragged else None)
    y, n = make()(x, lengths, rng())
    turned, m = make(batch_first=True)(x.swapaxes(0, 1), lengths, rng())
    np.testing.assert_array_equal(turned.swapaxes(0, 1), y)
    np.testing.assert_equal(n, m)


def test_draws_follow_the_generator(make: Callable[..., Any]) -> None:
    x, augment = drawn(), make()
    first, _ = augment(x, None, rng(7))
    again, _ = augment(x, None, rng(7))
    other, _ = augment(x, None, rng(8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(0, B, F), (T, 0, F), (T, B, 0), (0, 0, F)])
@pytest.mark.parametrize("ragged", [False, True])
def test_nothing_in_nothing_out(
    make: Callable[..., Any], shape: tuple[int, ...], ragged: bool
) -> None:
    steps, rows, _ = shape
    y, lengths = make()(np.zeros(shape), [steps] * rows if ragged else None, rng())
    assert y.shape[1:] == shape[1:]
    assert (lengths is not None) == ragged
    assert not y.any()


def test_integers_become_floats_and_lists_will_do(make: Callable[..., Any]) -> None:
    y, _ = make()([[[1, 2]], [[3, 4]], [[5, 6]]], None, rng())
    assert y.dtype == np.float64


def test_its_repr_makes_it_again(make: Callable[..., Any]) -> None:
    names = {name: getattr(rc, name) for name in ("Jitter", "Scaling", "TimeWarp", "WindowSlice")}
    for options in ({}, {"batch_first": True}):
        augment = make(**options)
        again = eval(repr(augment), names)
        assert repr(again) == repr(augment)
        x = drawn()
        np.testing.assert_array_equal(again(x, None, rng())[0], augment(x, None, rng())[0])
        assert again.batch_first == bool(options)


# ---- One by one ----------------------------------------------------------------------------------


def test_jitter_adds_noise_of_its_deviation_feature_by_feature() -> None:
    x = np.full((2000, 10, 2), 5.0)
    noise = rc.Jitter([0.0, 2.0])(x, None, rng())[0] - x
    assert not noise[..., 0].any()
    assert abs(noise[..., 1].mean()) < 0.06
    assert noise[..., 1].std() == pytest.approx(2.0, rel=0.03)
    assert len(np.unique(noise[..., 1])) == 20_000
    np.testing.assert_array_equal(rc.Jitter([0.0, 2.0]).sigma, [0.0, 2.0])


def test_scaling_multiplies_a_row_by_one_factor_a_feature() -> None:
    x = 1.0 + rng(2).random((4, 5000, 2))
    factors = rc.Scaling(0.3)(x, None, rng())[0] / x
    np.testing.assert_allclose(factors, np.broadcast_to(factors[0], x.shape), rtol=1e-12)
    assert factors[0].mean() == pytest.approx(1.0, abs=0.01)
    assert factors[0].std() == pytest.approx(0.3, rel=0.03)
    assert (factors[0, :, 0] != factors[0, :, 1]).all()
    whole = rc.Scaling(0.3, per_feature=False)(x, None, rng())[0] / x
    np.testing.assert_allclose(whole, np.broadcast_to(whole[0, :, :1], x.shape), rtol=1e-12)


def test_a_warp_is_a_walk_through_time_that_never_turns_back() -> None:
    lengths = np.array([50, 3, 20, 2, 1, 0, 50])
    x = np.broadcast_to(np.arange(50.0)[:, None, None], (50, 7, 1))
    warped, unchanged = rc.TimeWarp(1.5, knots=2)(x, lengths, rng())
    np.testing.assert_array_equal(unchanged, lengths)
    for row, length in enumerate(lengths):
        times = warped[:length, row, 0]
        assert (np.diff(times) > 0).all()
        np.testing.assert_array_equal(
            times[[0, -1]] if length else [], [0, length - 1][: length * 2]
        )
        np.testing.assert_array_equal(warped[length:, row], x[length:, row])
    moved = abs(warped[:50, 0, 0] - np.arange(50))
    assert moved.max() > 1.0
    assert not np.array_equal(warped[:, 0], warped[:, 6])


def test_a_warp_interpolates_between_neighbours() -> None:
    """Every feature by the same times, which the first feature tells."""
    steps = np.arange(30.0)
    curve = np.sin(steps)
    x = np.stack([steps, curve, 3 * steps - 1], axis=1)[:, None]
    warped = rc.TimeWarp(0.7)(x, None, rng())[0][:, 0]
    times = warped[:, 0]
    np.testing.assert_allclose(warped[:, 1], np.interp(times, steps, curve), atol=1e-12)
    np.testing.assert_allclose(warped[:, 2], 3 * times - 1, atol=1e-12)


def test_the_speed_of_a_warp_is_smooth_and_of_its_deviation() -> None:
    """With one step a knot the logarithm of the speed is what was drawn, but for one factor."""
    x = np.broadcast_to(np.arange(201.0)[:, None, None], (201, 400, 1))
    speed = np.diff(rc.TimeWarp(0.2, knots=1)(x, None, rng())[0][..., 0], axis=0)
    logs = np.log(speed)
    assert abs(np.diff(logs, axis=0)).max() < 0.02
    turn = logs[0] - 2 * (logs[99] + logs[100]) / 2 + logs[-1]  # deviation sqrt(1 + 4 + 1)
    assert turn.std() == pytest.approx(0.2 * np.sqrt(6), rel=0.15)


def test_values_beside_an_infinity_stay_numbers_at_the_ends() -> None:
    x = np.array([1.0, np.inf, 2.0, np.inf, 3.0]).reshape(5, 1, 1)
    warped = rc.TimeWarp(0.5)(x, None, rng())[0]
    assert warped[0] == 1.0
    assert warped[-1] == 3.0


@pytest.mark.parametrize("share", [0.01, 0.5, 0.75, 1.0])
def test_a_window_is_a_piece_of_the_row(share: float) -> None:
    lengths = np.array([40, 10, 1, 0, 7] * 40)
    x = np.broadcast_to(1.0 + np.arange(40.0)[:, None, None], (40, 200, 1))
    y, kept = rc.WindowSlice(share)(x, lengths, rng())
    assert kept is not None
    expected = np.minimum(np.maximum(np.rint(share * lengths), 1), lengths)
    np.testing.assert_array_equal(kept, expected)
    starts = []
    for row, (length, n) in enumerate(zip(lengths, kept, strict=True)):
        values = y[:, row, 0]
        if n:
            starts.append((length, int(values[0]) - 1))
            np.testing.assert_array_equal(values[:n], values[0] + np.arange(n))
            assert values[n - 1] <= length
        assert not values[n:length].any()
        np.testing.assert_array_equal(values[length:], x[length:, row, 0])
    # Every place is one where a window may begin.
    first = {start for length, start in starts if length == 10}
    assert first == set(range(10 - max(round(share * 10), 1) + 1))


def test_without_lengths_a_window_has_fewer_steps() -> None:
    x = np.broadcast_to(np.arange(10.0)[:, None, None], (10, 50, 1))
    y, lengths = rc.WindowSlice(0.7)(x, None, rng())
    assert lengths is None
    assert y.shape == (7, 50, 1)
    np.testing.assert_array_equal(
        y[..., 0] - y[0, :, 0], np.broadcast_to(np.arange(7.0)[:, None], (7, 50))
    )
    assert set(y[0, :, 0]) == {0.0, 1.0, 2.0, 3.0}
    assert y.flags.owndata


def test_compose_runs_one_after_the_other() -> None:
    x = drawn()
    first, second = rc.WindowSlice(0.5), rc.Jitter(0.1)
    both = rc.Compose(first, second)
    generator = rng(4)
    expected = second(*first(x, LENGTHS, generator), generator)
    np.testing.assert_equal(both(x, LENGTHS, rng(4)), expected)
    assert both.augmentations == (first, second)
    assert repr(both).startswith("Compose(WindowSlice(share=0.5), Jitter(sigma=0.1))")
    lengths = np.array(LENGTHS)
    assert rc.Compose()(x, lengths, rng()) == (x, lengths)


@pytest.mark.parametrize("kind", ["list", "array", "batch_first"])
def test_a_training_takes_them(kind: str) -> None:
    """Whatever form the rows have; the validation rows stay as they are."""
    turned = kind == "batch_first"
    augment = rc.Compose(*(make(batch_first=turned) for make in MAKE.values()))
    x = rng(5).standard_normal((T, 40, F))
    lengths: Any = rng(6).integers(3, T + 1, 40)
    y = np.array([int(x[: lengths[b], b, 0].sum() > 0) for b in range(40)])
    data: Any = x.swapaxes(0, 1) if turned else x
    if kind == "list":
        data, lengths = [x[: lengths[b], b] for b in range(40)], None

    def train(augment: Any) -> rc.History:
        model = rc.Sequential(
            rc.GRU(F, 4, batch_first=turned, seed=0),
            rc.Pooling("mean", batch_first=turned),
            rc.Linear(4, 2, seed=1),
        )
        return rc.fit(
            model, data, y, lengths=lengths, augment=augment, validation=0.25, epochs=2,
            batch_size=8, optimizer=rc.SGD(model, lr=0.0), progress=False,
        )  # fmt: skip

    plain, augmented = train(None), train(augment)
    assert augmented.train_loss[0] != augmented.train_loss[1]  # drawn anew each time
    assert plain.train_loss[0] == pytest.approx(plain.train_loss[1], rel=1e-5)
    assert augmented.validation_loss == plain.validation_loss


# ---- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: rc.Jitter(-1.0), ValueError, "sigma: expected finite numbers >= 0, got -1.0"),
        (lambda: rc.Jitter([0.1, np.nan]), ValueError, "sigma: .* got nan at position 1"),
        (lambda: rc.Jitter([[0.1]]), ValueError, r"sigma: expected one number or shape \(F,\)"),
        (lambda: rc.Jitter("a"), TypeError, "sigma: expected real numbers"),
        (lambda: rc.Scaling(np.inf), ValueError, "sigma: expected a finite number >= 0, got inf"),
        (lambda: rc.Scaling(True), TypeError, "sigma: expected a real number, got True"),
        (
            lambda: rc.Scaling(per_feature=NOT_A_FLAG),
            TypeError,
            "per_feature: expected True or False",
        ),
        (lambda: rc.TimeWarp(-0.1), ValueError, "sigma: expected a finite number >= 0, got -0.1"),
        (lambda: rc.TimeWarp(knots=0), ValueError, "knots: expected a positive integer, got 0"),
        (
            lambda: rc.TimeWarp(batch_first=NOT_A_FLAG),
            TypeError,
            "batch_first: expected True or False",
        ),
        (lambda: rc.WindowSlice(0.0), ValueError, "share: expected a number above 0, at most 1"),
        (lambda: rc.WindowSlice(1.1), ValueError, "share: .*, got 1.1"),
        (lambda: rc.WindowSlice(np.nan), ValueError, "share: .*, got nan"),
        (lambda: rc.Compose(rc.Jitter(), NOT_A_FLAG), TypeError, r"augmentations\[1\]: .* got int"),
    ],
)
def test_bad_options_are_explained(make_it: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_it()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((T, F)), None, rng()), ValueError, r"x: expected shape \(T, B, F\), got"),
        ((np.zeros(T), None, rng()), ValueError, "x: expected shape"),
        ((np.zeros((T, B, F), complex), None, rng()), TypeError, "x: expected real numbers"),
        ((np.zeros((T, B, F)), [T], rng()), ValueError, r"lengths: expected shape \(B,\) = \(5,\)"),
        ((np.zeros((T, B, F)), [T + 1] * B, rng()), ValueError, "lengths: expected 0 <= value"),
        ((np.zeros((T, B, F)), [1.0] * B, rng()), TypeError, "lengths: expected integers"),
        ((np.zeros((T, B, F)), None, 0), TypeError, "rng: expected a numpy.random.Generator"),
    ],
)
def test_bad_batches_are_explained(
    make: Callable[..., Any], arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()(*arguments)


def test_another_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="x: expected 2 features, as sigma has, got 3"):
        rc.Jitter([0.1, 0.2])(drawn(), None, rng())


@pytest.mark.parametrize(
    "augment", [rc.TimeWarp(0.2), rc.Compose(rc.Jitter(), rc.WindowSlice(1.0))], ids=repr
)
def test_what_moves_time_is_refused_where_steps_have_targets(augment: Any) -> None:
    assert augment.moves_time
    model = rc.Sequential(rc.GRU(F, 3), rc.Linear(3, 2))
    x, y = np.zeros((T, B, F)), np.zeros((T, B), int)
    with pytest.raises(ValueError, match="augment: expected one that leaves the steps in place"):
        rc.fit(model, x, y, augment=augment, progress=False)


def test_noise_leaves_time_in_place() -> None:
    augment = rc.Compose(rc.Jitter(), rc.Scaling(), lambda x, lengths, rng: (x, lengths))
    assert not augment.moves_time
    model = rc.Sequential(rc.GRU(F, 3), rc.Linear(3, 2))
    x, y = np.zeros((T, B, F)), np.zeros((T, B), int)
    assert rc.fit(model, x, y, augment=augment, epochs=1, progress=False).stopped == "epochs"


def test_an_error_inside_a_composition_names_its_place() -> None:
    both = rc.Compose(rc.Scaling(), rc.Jitter([0.1, 0.2]))
    with pytest.raises(ValueError, match="x: expected 2 features") as caught:
        both(drawn(), None, rng())
    assert caught.value.__notes__ == ["in augmentations[1]: Jitter(sigma=[0.1, 0.2])"]
    with pytest.raises(TypeError, match=r"augmentations\[0\]: expected to return \(x, lengths\)"):
        rc.Compose(lambda x, lengths, rng: x)(drawn(), None, rng())  # type: ignore[arg-type,return-value]
