"""The estimators: scikit-learn's own checks, every kind of input, every option, real data."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_digits
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks
from statsmodels.datasets import sunspots

from rnncore.sklearn import (
    AveragingClassifier,
    AveragingRegressor,
    RecurrentClassifier,
    RecurrentForecaster,
    RecurrentRegressor,
    _differences,
    _stretches,
    _sums,
    _windows,
    from_channels_first,
    to_channels_first,
)

SMALL: dict[str, Any] = {"hidden_size": 8, "max_iter": 3, "random_state": 0}


def waves(cases: int = 30, seed: int = 0) -> tuple[list[NDArray[Any]], list[str]]:
    """Slow and fast waves of unequal lengths, (T_b, 2), and what they are."""
    rng = np.random.default_rng(seed)
    X, y = [], []
    for case in range(cases):
        times = np.arange(rng.integers(20, 30)) * (0.3, 0.6)[case % 2] + rng.uniform(0, 6)
        X.append(np.column_stack([np.sin(times), np.cos(times)]))
        y.append(("slow", "fast")[case % 2])
    return X, y


def sums(cases: int = 60, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random sequences (B, 6, 2), and two weighted sums of each (B, 2)."""
    X = np.random.default_rng(seed).standard_normal((cases, 6, 2))
    return X, np.column_stack([X.sum(axis=(1, 2)), X[..., 0].sum(axis=1)])


# ---- scikit-learn's checks -----------------------------------------------------------------------

#: The checks that cannot pass, and why.
UNEQUAL = {
    "check_sample_weight_equivalence_on_dense_data": (
        "training goes through random batches, and a case of weight 2 is in one batch an epoch, "
        "not in two"
    )
}


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [
        # Quick ones; the defaults pass too.
        RecurrentClassifier(hidden_size=8, batch_size=64, learning_rate_init=0.02),
        RecurrentRegressor(hidden_size=32, batch_size=32, learning_rate_init=0.01),
        # Trees are quick, and the ensembles know nothing of their members.
        AveragingClassifier(DecisionTreeClassifier(), n_estimators=2),
        AveragingRegressor(DecisionTreeRegressor(), n_estimators=2),
    ],
    expected_failed_checks=lambda e: UNEQUAL if hasattr(e, "hidden_size") else {},
)
def test_the_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


# ---- Real data -----------------------------------------------------------------------------------


def test_digits_with_defaults() -> None:
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8)  # a row of 8 pixels is a step
    classifier = RecurrentClassifier(random_state=0).fit(X[:1200], y[:1200])
    assert classifier.score(X[1200:], y[1200:]) >= 0.95
    assert classifier.n_features_in_ == 8


def test_sunspots_beat_the_naive_forecasts() -> None:
    y = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()
    horizon, season, end = 11, 11, 260
    forecaster = RecurrentForecaster(random_state=0).fit(y[:end])
    errors: dict[str, list[float]] = {"network": [], "last": [], "season": []}
    for now in range(end, len(y) - horizon):
        known, after = y[:now], y[now : now + horizon]
        forecasts = {
            "network": forecaster.predict(horizon),
            "last": known[-1],
            "season": known[-season:],
        }
        for name, forecast in forecasts.items():
            errors[name].append(float(abs(forecast - after).mean()))
        forecaster.update(y[now : now + 1])
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["network"] < 0.8 * mean["season"] < mean["last"]


# ---- Kinds of input ------------------------------------------------------------------------------


def test_two_axes_are_three_with_one_feature() -> None:
    X, y = sums()
    flat, target = X[..., 0], y[:, 1]
    tables = {
        "array": flat,
        "lists": flat.tolist(),
        "frame": pd.DataFrame(flat, columns=[f"t{t}" for t in range(6)]),
    }
    expected = RecurrentRegressor(**SMALL).fit(flat[..., None], target).predict(flat[..., None])
    for name, table in tables.items():
        regressor = RecurrentRegressor(**SMALL).fit(table, target)
        assert_array_equal(regressor.predict(table), expected, err_msg=name)
        assert regressor.n_features_in_ == 6
    assert list(regressor.feature_names_in_) == [f"t{t}" for t in range(6)]
    regressor.fit(flat[..., None], target)
    assert not hasattr(regressor, "feature_names_in_")
    assert regressor.n_features_in_ == 1


@pytest.mark.parametrize("ragged", [False, True])
def test_a_case_is_predicted_alone_as_in_company(ragged: bool) -> None:
    X, y = waves(12)
    cases: Any = X if ragged else np.stack([case[:20] for case in X])
    classifier = RecurrentClassifier(**SMALL).fit(cases, y)
    together = classifier.predict_proba(cases)
    alone = [classifier.predict_proba(cases[k : k + 1])[0] for k in range(len(X))]
    assert_allclose(together, alone, rtol=1e-12)
    listed = classifier.predict_proba(list(cases))
    assert_allclose(listed, together, rtol=1e-12)


def test_ragged_cases_are_learned_whatever_holds_them() -> None:
    X, y = waves(60)
    assert RecurrentClassifier(random_state=0).fit(X[:30], y[:30]).score(X[30:], y[30:]) > 0.9
    objects = np.empty(30, object)
    objects[:] = X[:30]
    expected = RecurrentClassifier(**SMALL).fit(X[:30], y[:30]).predict_proba(X)
    for cases in (objects, pd.Series(X[:30]), tuple(X[:30]), [case.tolist() for case in X[:30]]):
        classifier = RecurrentClassifier(**SMALL).fit(cases, y[:30])
        assert_array_equal(classifier.predict_proba(X), expected)


def test_one_feature_needs_no_axis() -> None:
    X, y = waves()
    one = [case[:, 0] for case in X]
    with_axis = RecurrentClassifier(**SMALL).fit([case[:, None] for case in one], y)
    without = RecurrentClassifier(**SMALL).fit(one, y)
    assert_array_equal(with_axis.predict_proba(one), without.predict_proba(one))


def test_a_network_fitted_with_three_axes_takes_other_lengths() -> None:
    X, y = sums()
    regressor = RecurrentRegressor(**SMALL).fit(X[..., :1], y)
    longer = np.concatenate([X, X], axis=1)[..., 0]
    assert_allclose(regressor.predict(longer), regressor.predict(longer[..., None]), rtol=1e-12)
    regressor.fit(X[..., 0], y)
    with pytest.raises(ValueError, match="X has 12 features, but RecurrentRegressor is expecting"):
        regressor.predict(longer)


def test_inputs_are_not_changed() -> None:
    X, y = waves()
    before = [case.copy() for case in X]
    RecurrentClassifier(standardize=False, **SMALL).fit(X, y).predict(X)
    for case, copy in zip(X, before, strict=True):
        assert_array_equal(case, copy)


CASE = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([CASE, np.zeros((3, 1))], ValueError, r"X\[1\]: expected 2 features, as in X\[0\]"),
        ([CASE, np.zeros((0, 2))], ValueError, r"X\[1\]: expected shape \(T, F\) or \(T,\)"),
        ([CASE, np.zeros((2, 2, 2))], ValueError, r"X\[1\]: expected shape \(T, F\) or \(T,\)"),
        ([CASE, np.full((3, 2), np.nan)], ValueError, r"X\[1\]: .* got NaN at step 0 \(fill in"),
        ([CASE, [[1, 2], [3, np.inf]]], ValueError, r"X\[1\]: .* got infinity at step 1"),
        ([CASE, np.full((3, 2), "a")], TypeError, r"X\[1\]: expected real numbers"),
        ([CASE, CASE + 1j], TypeError, r"X\[1\]: expected real numbers"),
        ([CASE], ValueError, "inconsistent numbers of samples"),
        (np.full((2, 3, 2), np.nan), ValueError, "X contains NaN"),
        (np.zeros((2, 0, 2)), ValueError, r"X: expected shape \(B, T, F\)"),
        (np.zeros((2, 3, 0)), ValueError, r"X: expected shape \(B, T, F\)"),
        (np.zeros((2, 3, 2, 2)), ValueError, r"X: expected shape \(B, T, F\)"),
        (np.zeros(2), ValueError, "Expected 2D array, got 1D array"),
    ],
)
def test_bad_cases_are_refused(X: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RecurrentClassifier(**SMALL).fit(X, [0, 1])


def test_other_features_than_in_fit_are_refused() -> None:
    X, y = waves()
    classifier = RecurrentClassifier(**SMALL).fit(X, y)
    for cases in (X[0][None, :, :1], [X[0][:, 0]], X[0][None, :, 0]):
        with pytest.raises(ValueError, match="X has 1 features per step, but RecurrentClassifier"):
            classifier.predict(cases)
    with pytest.raises(NotFittedError):
        RecurrentClassifier().predict(X)
    with pytest.raises(NotFittedError):
        RecurrentRegressor().predict(X)


# ---- The classifier ------------------------------------------------------------------------------


def test_probabilities_decisions_and_labels_agree() -> None:
    X, y = waves()
    for labels in (y, [label == "slow" for label in y], [k % 3 for k in range(len(y))]):
        classifier = RecurrentClassifier(**SMALL).fit(X, labels)
        shares, decision = classifier.predict_proba(X), classifier.decision_function(X)
        assert_array_equal(classifier.classes_, np.unique(labels))
        assert_allclose(shares.sum(axis=1), 1.0)
        assert_allclose(classifier.predict_log_proba(X), np.log(shares))
        assert_array_equal(classifier.predict(X), classifier.classes_[shares.argmax(axis=1)])
        if len(classifier.classes_) == 2:
            assert_allclose(decision, np.log(shares[:, 1] / shares[:, 0]))
        else:
            assert_array_equal(decision.argmax(axis=1), shares.argmax(axis=1))


def test_class_weights_are_case_weights() -> None:
    X, y = waves()
    weights = np.where(np.array(y) == "slow", 3.0, 0.5)
    by_class = RecurrentClassifier(class_weight={"slow": 3.0, "fast": 0.5}, **SMALL).fit(X, y)
    by_case = RecurrentClassifier(**SMALL).fit(X, y, weights)
    equal = RecurrentClassifier(**SMALL).fit(X, y)
    assert_array_equal(by_class.predict_proba(X), by_case.predict_proba(X))
    slow = [e.predict_proba(X)[:, 1].mean() for e in (by_class, equal)]
    assert slow[0] > slow[1] + 0.05
    balanced = RecurrentClassifier(class_weight="balanced", **SMALL).fit(X[:20], y[1:21])
    assert_allclose(balanced.predict_proba(X).sum(axis=1), 1.0)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("weights", [3.0, [2.0], np.ones(29), np.ones((30, 1))])
def test_weights_of_another_shape_are_refused(class_weight: Any, weights: Any) -> None:
    X, y = waves()
    classifier = RecurrentClassifier(class_weight=class_weight, **SMALL)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(B,\) = \(30,\), got"):
        classifier.fit(X, y, weights)


def test_weights_and_class_weights_are_checked_apart_and_together() -> None:
    X, y = waves()
    negative = RecurrentClassifier(class_weight={"slow": -1.0, "fast": -1.0}, **SMALL)
    with pytest.raises(ValueError, match="class_weight: expected weights >= 0, not all of them"):
        negative.fit(X, y, np.ones(30))
    with pytest.raises(ValueError, match="sample_weight: expected weights >= 0, not all of them"):
        negative.fit(X, y, -np.ones(30))
    slow_alone = RecurrentClassifier(class_weight={"slow": 1.0, "fast": 0.0}, **SMALL)
    with pytest.raises(ValueError, match=r"sample_weight \* class_weight: expected weights >= 0"):
        slow_alone.fit(X, y, np.array(y) == "fast")


def test_batches_of_light_cases_make_light_steps() -> None:
    X = np.random.default_rng(0).standard_normal((60, 5, 2))  # says nothing of y
    y = np.arange(60) % 6 == 0
    weights = np.where(y, 1000.0, 1.0)
    options = SMALL | {"max_iter": 10, "batch_size": 4}  # most batches have no heavy case
    assert RecurrentClassifier(**options).fit(X, y, weights).predict(X).mean() > 0.95


@pytest.mark.parametrize("kind", [RecurrentClassifier, RecurrentRegressor])
def test_a_case_without_weight_is_left_out(kind: Any) -> None:
    X, _ = waves()
    y = np.arange(30) % 2
    weights = np.random.default_rng(0).integers(0, 2, 30).astype(float)
    some = np.flatnonzero(weights)
    whole = kind(**SMALL).fit(X, y, weights)
    part = kind(**SMALL).fit([X[k] for k in some], y[some], weights[some])
    assert_array_equal(whole.predict(X), part.predict(X))
    with pytest.raises(ValueError, match=r"sample_weight: expected weights >= 0, not all of them"):
        kind(**SMALL).fit(X, y, np.zeros(30))
    with pytest.raises(ValueError, match=r"sample_weight: expected weights >= 0"):
        kind(**SMALL).fit(X, y, weights - 0.5)


# ---- The regressor -------------------------------------------------------------------------------


def test_several_targets_at_once() -> None:
    X, y = sums(120)
    both = RecurrentRegressor(random_state=0).fit(X[:80], y[:80])
    assert both.predict(X).shape == (120, 2)
    assert both.score(X[80:], y[80:]) > 0.9
    one = RecurrentRegressor(**SMALL).fit(X, y[:, 0])
    assert one.predict(X).shape == (120,)


def test_predictions_have_the_units_of_the_targets() -> None:
    X, y = sums()
    plain = RecurrentRegressor(**SMALL).fit(X, y).predict(X)
    scaled = RecurrentRegressor(**SMALL).fit(X, 1e4 * y + 1e6).predict(X)
    assert_allclose((scaled - 1e6) / 1e4, plain, atol=1e-2)
    constant = RecurrentRegressor(**SMALL).fit(X, np.full(60, 7.0)).predict(X)
    assert_allclose(constant, 7.0, atol=0.5)


def test_losses_differ_where_targets_are_wild() -> None:
    X, y = sums(120)
    wild = y[:, 0].copy()
    wild[::10] += 100.0
    error = {}
    for loss in ("squared_error", "absolute_error", "huber"):
        regressor = RecurrentRegressor(loss=loss, random_state=0, max_iter=10).fit(X, wild)
        error[loss] = np.median(abs(regressor.predict(X) - y[:, 0]))
    assert error["absolute_error"] < error["squared_error"] / 2
    assert len(set(error.values())) == 3


# ---- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "mgu"])
def test_the_network_is_as_the_options_say(cell: str) -> None:
    X, y = waves(8)
    options: dict[str, Any] = {
        "num_layers": 2,
        "dropout": 0.25,
        "recurrent_dropout": 0.125,
        "pooling": "mean",
    }
    classifier = RecurrentClassifier(cell=cell, bidirectional=False, **options, **SMALL).fit(X, y)
    encoder = classifier.model_.layers["encoder"].layers
    recurrent = encoder["recurrent"]
    assert type(recurrent).__name__.lower() == cell
    assert recurrent.params["weight_hh_l1"].shape[1] == 8
    assert "weight_hh_l0_reverse" not in recurrent.params
    assert (recurrent.dropout, recurrent.recurrent_dropout) == (0.25, 0.125)
    assert encoder["dropout"].p == 0.25
    assert encoder["pooling"].mode == "mean"
    assert classifier.n_iter_ == len(classifier.loss_curve_) == 3


@pytest.mark.parametrize(
    "option",
    [
        {"noise": 0.5},
        {"standardize": False},
        {"alpha": 10.0},
        {"batch_size": 7},
        {"learning_rate": "constant"},
        {"learning_rate_init": 0.05},
        {"dropout": 0.5},
        {"recurrent_dropout": 0.5},
        {"bidirectional": False},
        {"random_state": 1},
    ],
    ids=str,
)
def test_every_option_changes_the_outcome(option: dict[str, Any]) -> None:
    X, y = waves(20)
    plain = RecurrentClassifier(**SMALL).fit(X, y)
    again = RecurrentClassifier(**SMALL).fit(X, y)
    other = RecurrentClassifier(**SMALL | option).fit(X, y)
    assert_array_equal(plain.predict_proba(X), again.predict_proba(X))
    assert abs(plain.predict_proba(X) - other.predict_proba(X)).max() > 1e-6


def test_weight_decay_makes_weights_smaller() -> None:
    X, y = waves(20)
    norms = [
        np.linalg.norm(
            RecurrentClassifier(alpha=alpha, **SMALL).fit(X, y).model_.params["head.weight"]
        )
        for alpha in (0.0, 20.0)
    ]
    assert norms[1] < 0.7 * norms[0]


def test_the_scale_is_that_of_all_steps() -> None:
    X, y = waves(20)
    steps = np.concatenate(X)
    scale = RecurrentClassifier(**SMALL).fit(X, y).scale_
    assert_allclose(scale.mean, steps.mean(axis=0))
    assert_allclose(scale.spread, steps.std(axis=0))
    dense = np.ones((4, 3, 2))
    dense[..., 1] = 0.1  # whose mean is rounded
    steady = RecurrentClassifier(**SMALL).fit(dense, [0, 1, 0, 1]).scale_
    assert_array_equal(steady.spread, 1.0)


def test_early_stopping_keeps_the_best_weights() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((80, 5, 2)), rng.integers(0, 2, 80)  # nothing to learn
    options: dict[str, Any] = {"hidden_size": 16, "dropout": 0.0, "noise": 0.0, "random_state": 0}
    classifier = RecurrentClassifier(
        early_stopping=True, validation_fraction=0.25, n_iter_no_change=3, max_iter=50, **options
    ).fit(X, y)
    losses = classifier.history_.validation_loss
    best = int(np.argmin(losses))
    assert classifier.n_iter_ == len(losses) == best + 1 + 3
    assert losses[-1] > losses[best]
    longer = RecurrentClassifier(max_iter=50, **options).fit(X, y)
    assert longer.n_iter_ == 50


def test_a_warm_start_goes_on() -> None:
    X, y = waves()
    classifier = RecurrentClassifier(warm_start=True, **SMALL).fit(X, y)
    first = classifier.loss_curve_[0]
    model = classifier.model_
    classifier.fit(X, y)
    assert classifier.model_ is model
    assert classifier.loss_curve_[0] < first
    cold = RecurrentClassifier(**SMALL).fit(X, y)
    assert cold.fit(X, y).loss_curve_[0] == first
    with pytest.raises(ValueError, match="warm_start: expected the classes of the fit before"):
        classifier.fit(X, np.arange(30) % 3)
    with pytest.raises(ValueError, match="warm_start: expected hidden_size as in .* 8, got 4"):
        classifier.set_params(hidden_size=4).fit(X, y)
    with pytest.raises(ValueError, match="warm_start: expected features of X as in .* 2, got 1"):
        classifier.set_params(hidden_size=8).fit([case[:, :1] for case in X], y)
    regressor = RecurrentRegressor(warm_start=True, **SMALL).fit(X, np.arange(30))
    with pytest.raises(
        ValueError, match="warm_start: expected outputs as in the fit before, 1, got 2"
    ):
        regressor.fit(X, np.zeros((30, 2)))


def test_verbose_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = waves(8)
    RecurrentClassifier(**SMALL).fit(X, y)
    assert capsys.readouterr() == ("", "")
    RecurrentClassifier(verbose=True, **SMALL).fit(X, y)
    assert "<History of 3 epochs, best " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("cell", "elman", ValueError),
        ("hidden_size", 0, ValueError),
        ("hidden_size", 2.0, TypeError),
        ("num_layers", 0, ValueError),
        ("bidirectional", "yes", TypeError),
        ("pooling", "first", ValueError),
        ("dropout", 1.0, ValueError),
        ("recurrent_dropout", -0.1, ValueError),
        ("noise", -1.0, ValueError),
        ("standardize", 1, TypeError),
        ("alpha", -1.0, ValueError),
        ("batch_size", 0, ValueError),
        ("batch_size", "all", TypeError),
        ("learning_rate", "adaptive", ValueError),
        ("learning_rate_init", -1.0, ValueError),
        ("max_iter", 0, ValueError),
        ("early_stopping", None, TypeError),
        ("validation_fraction", 0.0, ValueError),
        ("validation_fraction", 1.0, ValueError),
        ("n_iter_no_change", 0, ValueError),
        ("warm_start", 1, TypeError),
        ("verbose", 2, TypeError),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: Any, error: type[Exception]) -> None:
    X, y = waves(4)
    name = {"pooling": "(pooling|mode)"}.get(option, option)
    with pytest.raises(error, match=rf"{name}: expected "):
        RecurrentClassifier(**SMALL | {option: value}).fit(X, y)


def test_the_loss_is_refused_by_name() -> None:
    message = "loss: expected 'squared_error' or 'absolute_error' or 'huber', got 'mse'"
    with pytest.raises(ValueError, match=message):
        RecurrentRegressor(loss="mse").fit(np.zeros((4, 3)), np.zeros(4))
    with pytest.raises(ValueError, match=message):
        RecurrentForecaster(loss="mse").fit(np.zeros(40))


def test_a_failed_fit_leaves_the_estimator_as_it_was() -> None:
    X, y = waves()
    other = np.random.default_rng(0).standard_normal((30, 5))
    three = np.arange(30) % 3
    for kind, first in ((RecurrentClassifier, y), (RecurrentRegressor, three)):
        for warm_start in (False, True):
            estimator = kind(warm_start=warm_start, **SMALL).fit(X, first)
            before, expected = dict(vars(estimator)), estimator.predict(X)
            bad: list[tuple[Any, Any, Any]] = [
                (other, first, -np.ones(30)),
                (X, three[:-1], None),
                (X, three, [2.0]),
                ([case[:, :1] for case in X], [np.nan] * 30, None),
            ]
            for cases, targets, weights in bad:
                with pytest.raises(ValueError):  # noqa: PT011
                    estimator.fit(cases, targets, weights)
                assert vars(estimator) == before
                assert_array_equal(estimator.predict(X), expected)


def test_a_failed_fit_leaves_forecaster_and_ensemble_as_they_were() -> None:
    series = np.sin(np.arange(60.0))
    forecaster = RecurrentForecaster(n_lags=8, **SMALL).fit(series)
    expected = forecaster.predict(3)
    forecaster.set_params(early_stopping=True, validation_fraction=0.999)  # leaves no row to train
    with pytest.raises(ValueError, match="train"):
        forecaster.fit(np.column_stack([series, series]))
    assert_array_equal(forecaster.predict(3), expected)
    X, y = waves()
    ensemble = AveragingClassifier(RecurrentClassifier(**SMALL), n_estimators=2).fit(X, y)
    shares = ensemble.predict_proba(X)
    with pytest.raises(ValueError, match="sample_weight"):
        ensemble.fit(X, np.arange(30) % 3, -np.ones(30))
    assert_array_equal(ensemble.predict_proba(X), shares)


def test_an_interrupted_training_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = waves(8)

    def interrupt(self: object, share: float, loss: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rnncore.progress.Progress.advance", interrupt)
    with pytest.warns(UserWarning, match="fit: interrupted"):
        classifier = RecurrentClassifier(**SMALL).fit(X, y)
    assert classifier.n_iter_ == 0
    assert classifier.predict(X).shape == (8,)


# ---- In scikit-learn's tools ---------------------------------------------------------------------


def test_in_pipelines() -> None:
    X, y = sums(80)
    target = y[:, 0]
    table = make_pipeline(StandardScaler(), RecurrentRegressor(**SMALL)).fit(X[..., 0], target)
    assert table.predict(X[..., 0]).shape == (80,)
    channels = X.swapaxes(1, 2)  # (B, F, T)
    swapped = make_pipeline(FunctionTransformer(from_channels_first), RecurrentRegressor(**SMALL))
    plain = RecurrentRegressor(**SMALL).fit(X, target)
    assert_array_equal(swapped.fit(channels, target).predict(channels), plain.predict(X))


@pytest.mark.parametrize("ragged", [False, True])
def test_in_searches_and_cross_validation(ragged: bool) -> None:
    cases, y = waves(24)
    X: Any = cases if ragged else np.stack([case[:20] for case in cases])
    search = GridSearchCV(
        RecurrentClassifier(**SMALL | {"max_iter": 6}), {"cell": ["gru", "rnn"]}, cv=2
    ).fit(X, y)
    assert search.best_params_["cell"] in ("gru", "rnn")
    assert search.predict(X).shape == (24,)
    scores = cross_val_score(RecurrentClassifier(random_state=0), X, y, cv=2)
    assert scores.shape == (2,)
    assert scores.min() > 0.8


def test_bagging_takes_tables_alone() -> None:
    X, y = waves(24)
    table = np.stack([case[:20, 0] for case in X])
    bagging = BaggingClassifier(RecurrentClassifier(**SMALL), n_estimators=2, random_state=0)
    assert bagging.fit(table, y).predict_proba(table).shape == (24, 2)
    for refused in (table[..., None], X):  # why there is AveragingClassifier
        with pytest.raises(ValueError, match=r"dim|inhomogeneous"):
            bagging.fit(refused, y)


@pytest.mark.parametrize(
    "estimator",
    [
        RecurrentClassifier(**SMALL),
        RecurrentRegressor(**SMALL),
        AveragingClassifier(RecurrentClassifier(**SMALL), n_estimators=2, random_state=0),
        AveragingRegressor(RecurrentRegressor(**SMALL), n_estimators=2, random_state=0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_copies_and_pickles_predict_the_same(estimator: Any) -> None:
    X, _ = waves(12)
    y = np.arange(12) % 2
    fitted = clone(estimator).fit(X, y)
    expected = fitted.predict(X)
    assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), expected)
    assert_array_equal(clone(fitted).fit(X, y).predict(X), expected)
    assert is_classifier(fitted) == isinstance(
        estimator, (RecurrentClassifier, AveragingClassifier)
    )
    assert is_classifier(fitted) != is_regressor(fitted)


# ---- Ensembles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True])
def test_members_average_and_differ(ragged: bool) -> None:
    X, y = waves(20)
    cases: Any = X if ragged else np.stack([case[:20] for case in X])
    member = RecurrentClassifier(**SMALL)
    ensemble = AveragingClassifier(member, n_estimators=3, random_state=0).fit(cases, y)
    shares = [one.predict_proba(cases) for one in ensemble.estimators_]
    assert_allclose(ensemble.predict_proba(cases), np.mean(shares, axis=0))
    assert abs(shares[0] - shares[1]).max() > 1e-3
    assert ensemble.n_features_in_ == 2
    assert member.get_params()["random_state"] == 0
    again = AveragingClassifier(member, n_estimators=3, random_state=0).fit(cases, y)
    assert_array_equal(again.predict_proba(cases), ensemble.predict_proba(cases))


def test_members_are_trained_side_by_side_through_joblib() -> None:
    X, y = waves(20)
    member = RecurrentClassifier(**SMALL)
    alone = AveragingClassifier(member, n_estimators=2, random_state=0).fit(X, y)
    seen: list[int] = []

    class Watched(joblib.parallel.ThreadingBackend):  # type: ignore[misc]
        def effective_n_jobs(self, n_jobs: int) -> int:
            seen.append(n_jobs)
            return int(super().effective_n_jobs(n_jobs))

    joblib.register_parallel_backend("watched", Watched)
    with joblib.parallel_config(backend="watched"):
        both = AveragingClassifier(member, n_estimators=2, n_jobs=2, random_state=0).fit(X, y)
    assert 2 in seen
    assert_allclose(both.predict_proba(X), alone.predict_proba(X), rtol=1e-4)


def test_a_bootstrap_draws_cases() -> None:
    X, target = sums(40)
    y = target[:, 0]
    options: dict[str, Any] = {"n_estimators": 3, "bootstrap": True, "random_state": 0}
    regressor = AveragingRegressor(LinearRegression(), **options).fit(X[..., 0], y)
    slopes = np.array([one.coef_ for one in regressor.estimators_])
    assert abs(slopes[0] - slopes[1]).max() > 1e-6
    assert_allclose(
        regressor.predict(X[..., 0]),
        np.mean([one.predict(X[..., 0]) for one in regressor.estimators_], axis=0),
    )
    both = AveragingRegressor(RecurrentRegressor(**SMALL), **options).fit(X, target, np.ones(40))
    assert both.predict(X).shape == (40, 2)
    with pytest.raises(ValueError, match="estimator: expected one with a random_state without"):
        AveragingRegressor(LinearRegression()).fit(X[..., 0], y)
    with pytest.raises(ValueError, match="n_estimators: expected a positive integer, got 0"):
        AveragingRegressor(n_estimators=0).fit(X, y)


def test_a_class_that_a_draw_lacks_has_no_probability() -> None:
    X = np.arange(12.0).reshape(12, 1)
    y = ["rare"] + ["a", "b"] * 5 + ["a"]
    ensemble = AveragingClassifier(
        DecisionTreeClassifier(), n_estimators=8, bootstrap=True, random_state=0
    ).fit(X, y)
    lacking = [one for one in ensemble.estimators_ if len(one.classes_) == 2]
    assert 0 < len(lacking) < 8
    shares = ensemble.predict_proba(X)
    assert_allclose(shares.sum(axis=1), 1.0)
    assert shares[0, 2] == pytest.approx(1 - len(lacking) / 8)


def test_the_defaults_of_ensembles_are_recurrent() -> None:
    assert isinstance(AveragingClassifier()._default(), RecurrentClassifier)
    assert isinstance(AveragingRegressor()._default(), RecurrentRegressor)


# ---- The forecaster ------------------------------------------------------------------------------


def test_windows_are_what_the_network_is_to_see() -> None:
    y, x = np.arange(6.0)[:, None], 10 * np.arange(8.0)[:, None]
    windows = _windows(y, x, lags=3, ahead=2)
    assert windows.shape == (4, 3, 3)
    for first, window in enumerate(windows):
        for step, (value, *following) in enumerate(window):
            now = first + step
            assert value == now
            assert following == [10.0 * (now + 1), 10.0 * (now + 2)]
    assert_array_equal(_stretches(y[3:], 2)[:, 0], y[3:5, 0])


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_sums_undo_differences(lag: int) -> None:
    y = np.random.default_rng(0).standard_normal((12, 2))
    assert_allclose(_sums(_differences(y, lag)[8 - lag :], y[:8], lag), y[8:], rtol=1e-12)


@pytest.mark.parametrize("ahead", [1, 4, 10])
def test_exogenous_inputs_are_used_where_they_belong(ahead: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((260, 2))
    y = 3 * x[:, 0] - x[:, 1] + 20  # of the same step, so X alone tells what comes
    options: dict[str, Any] = {"n_lags": 6, "n_ahead": ahead, "random_state": 0, "max_iter": 60}
    forecaster = RecurrentForecaster(**options).fit(y[:250], x[:250])
    ahead_of = forecaster.predict(10, x[250:])
    assert abs(ahead_of - y[250:]).mean() < 0.3 * y.std()
    assert_array_equal(forecaster.predict(10, x[250:].tolist()), ahead_of)
    assert forecaster.n_exogenous_ == 2
    with pytest.raises(ValueError, match="X: expected 2 exogenous inputs a step, as in fit, got 0"):
        forecaster.predict(10)
    with pytest.raises(ValueError, match="X: expected a row for each of the 10 steps, got 9"):
        forecaster.predict(10, x[251:])


def test_a_stretch_longer_than_the_horizon_is_cut() -> None:
    y = np.sin(np.arange(80.0))
    forecaster = RecurrentForecaster(n_lags=8, n_ahead=5, **SMALL).fit(y)
    five = forecaster.predict(5)
    assert_array_equal(forecaster.predict(3), five[:3])
    # Seven steps: a stretch from now on, then one that ends with the seventh.
    seven = forecaster.predict(7)
    assert_array_equal(seven[:5], five)
    forecaster.update(five[:2])
    assert_allclose(forecaster.predict(5)[-2:], seven[5:], rtol=1e-12)


def test_longer_horizons_go_on_from_predictions() -> None:
    y = np.sin(np.arange(80.0))
    forecaster = RecurrentForecaster(n_lags=8, difference=1, **SMALL).fit(y)
    ten = forecaster.predict(10)
    for step in range(10):
        one = forecaster.predict(1)
        assert_allclose(one, ten[step : step + 1], rtol=1e-9)
        forecaster.update(one)


def test_differences_follow_a_trend() -> None:
    times = np.arange(240.0)
    y = times + 5 * np.sin(times * 2 * np.pi / 12)
    errors = [
        abs(
            RecurrentForecaster(n_lags=12, difference=lag, random_state=0).fit(y[:200]).predict(40)
            - y[200:]
        ).mean()
        for lag in (0, 1, 12)
    ]
    assert errors[1] < 4 < errors[0]
    assert errors[2] < 4


def test_several_series_at_once() -> None:
    times = np.arange(200.0)
    y = np.column_stack([np.sin(times / 3), 50 + 10 * np.cos(times / 3)])
    forecaster = RecurrentForecaster(n_lags=20, random_state=0).fit(y[:180])
    found = forecaster.predict(20)
    assert found.shape == (20, 2)
    assert (abs(found - y[180:]).mean(axis=0) < 0.2 * y.std(axis=0)).all()
    assert forecaster.n_series_ == 2
    with pytest.raises(ValueError, match="y: expected 2 series, got 1"):
        forecaster.update(y[:, 0])


def test_the_last_windows_are_held_out() -> None:
    y = np.sin(np.arange(120.0))
    forecaster = RecurrentForecaster(
        n_lags=8, early_stopping=True, n_iter_no_change=2, **SMALL
    ).fit(y)
    assert len(forecaster.history_.validation_loss) == forecaster.n_iter_
    changed = y.copy()
    changed[-8:] += 100.0  # of targets that are held out
    other = RecurrentForecaster(n_lags=8, early_stopping=True, n_iter_no_change=2, **SMALL)
    assert other.fit(changed).loss_curve_ == forecaster.loss_curve_


def test_forecasters_are_copied_and_pickled() -> None:
    y = np.sin(np.arange(60.0))
    forecaster = RecurrentForecaster(n_lags=8, **SMALL).fit(y)
    expected = forecaster.predict(5)
    assert_array_equal(pickle.loads(pickle.dumps(forecaster)).predict(5), expected)
    assert_array_equal(clone(forecaster).fit(y).predict(5), expected)
    forecaster.set_params(n_lags=3)  # of the next fit
    assert_array_equal(forecaster.predict(5), expected)


@pytest.mark.parametrize(
    ("y", "X", "options", "error", "message"),
    [
        (np.zeros(8), None, {}, ValueError, r"y: expected at least n_lags \+ .* = 9 steps, got 8"),
        ([1.0] * 9 + [np.nan], None, {}, ValueError, "y contains NaN"),
        (np.zeros((9, 1, 1)), None, {}, ValueError, "dim 3"),
        (None, None, {}, ValueError, "requires y to be passed"),
        (np.zeros(20), np.zeros(19), {}, ValueError, "X: expected a row for each of the 20 steps"),
        (np.zeros(20), np.full(20, np.inf), {}, ValueError, "X contains infinity"),
        (np.zeros(20), None, {"n_lags": 0}, ValueError, "n_lags: expected a positive integer"),
        (np.zeros(20), None, {"n_ahead": 1.0}, TypeError, "n_ahead: expected a positive integer"),
        (np.zeros(20), None, {"difference": -1}, ValueError, "difference: expected "),
        (
            np.zeros(20),
            None,
            {"difference": 1.0},
            TypeError,
            "difference: expected an integer >= 0",
        ),
    ],
)
def test_bad_series_are_refused(
    y: Any, X: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    forecaster = RecurrentForecaster(**{"n_lags": 8, **SMALL, **options})
    with pytest.raises(error, match=message):
        forecaster.fit(y, X)


@pytest.mark.parametrize(("horizon", "error"), [(0, ValueError), (1.0, TypeError)])
def test_bad_horizons_are_refused(horizon: Any, error: type[Exception]) -> None:
    with pytest.raises(NotFittedError):
        RecurrentForecaster().predict(3)
    with pytest.raises(NotFittedError):
        RecurrentForecaster().update([3.0])
    forecaster = RecurrentForecaster(n_lags=8, **SMALL).fit(np.zeros(20))
    with pytest.raises(error, match="horizon: expected a positive integer"):
        forecaster.predict(horizon)


# ---- Layouts, and the module ---------------------------------------------------------------------


def test_layouts_are_converted_and_back() -> None:
    X, _ = sums(5)
    assert_array_equal(to_channels_first(X), X.swapaxes(1, 2))
    assert_array_equal(from_channels_first(to_channels_first(X)), X)
    assert_array_equal(to_channels_first(X[..., 0]), X[..., :1].swapaxes(1, 2))
    cases, _ = waves(4)
    there = to_channels_first(cases)
    assert [case.shape for case in there] == [case.T.shape for case in cases]
    for case, back in zip(cases, from_channels_first(there), strict=True):
        assert_array_equal(case, back)
        assert not np.shares_memory(case, back)
    assert [case.shape for case in to_channels_first([np.zeros(3), np.zeros(4)])] == [
        (1, 3),
        (1, 4),
    ]
    assert from_channels_first(X.astype("float32")).dtype == np.float32  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("function", "X", "message"),
    [
        (from_channels_first, np.zeros((2, 3)), r"X: expected shape \(B, F, T\), got \(2, 3\)"),
        (from_channels_first, [np.zeros(3)], r"X\[0\]: expected shape \(F, T\), got \(3,\)"),
        (to_channels_first, np.zeros(3), r"X: expected shape \(B, T, F\), got \(3,\)"),
        (to_channels_first, [np.zeros((1, 1, 1))], r"X\[0\]: expected shape \(T, F\)"),
    ],
)
def test_other_layouts_are_refused(function: Any, X: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(X)


def test_without_scikit_learn_one_line_says_what_to_do() -> None:
    program = "import sys; sys.modules['sklearn'] = None; import rnncore.sklearn"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: rnncore.sklearn needs scikit-learn 1.6 or newer: pip install rnncore[sklearn]"
    )
