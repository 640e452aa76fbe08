"""Estimators with the interface of scikit-learn: classifier, regressor, forecaster, ensembles.

They are a ``Sequential`` of a recurrent layer, a pooling over time and a linear head, trained by
``rnncore.fit``; after fitting it is there as ``model_``, with all that a ``Sequential`` can do.
The module needs scikit-learn: ``pip install rnncore[sklearn]``.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        MetaEstimatorMixin,
        RegressorMixin,
        clone,
    )
    from sklearn.model_selection import train_test_split
    from sklearn.utils import (
        check_array,
        check_consistent_length,
        check_random_state,
        column_or_1d,
        get_tags,
        resample,
    )
    from sklearn.utils.class_weight import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.parallel import Parallel, delayed
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "rnncore.sklearn needs scikit-learn 1.6 or newer: pip install rnncore[sklearn]"
    ) from error

from .cases import (
    Cases,
    Scale,
    as_cases,
    from_channels_first,
    listed,
    take,
    to_channels_first,
)
from .dropout import Dropout
from .evaluation import predict
from .layers import GRU, LSTM, MGU, RNN
from .linear import Linear
from .losses import huber, mean_absolute_error, mean_squared_error, softmax_cross_entropy
from .optimizers import AdamW
from .parameters import (
    as_choice,
    as_flag,
    as_probability,
    as_setting,
    as_size,
    as_text,
    as_uint64,
    check_shape,
)
from .pooling import Pooling
from .schedules import CosineLR
from .sequential import Sequential
from .training import fit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "AveragingClassifier",
    "AveragingRegressor",
    "RecurrentClassifier",
    "RecurrentForecaster",
    "RecurrentRegressor",
    "from_channels_first",
    "to_channels_first",
]

_FLOATS = [np.float64, np.float32]

_CELLS: dict[str, Any] = {"rnn": RNN, "lstm": LSTM, "gru": GRU, "mgu": MGU}

_LOSSES: dict[str, Any] = {
    "squared_error": mean_squared_error,
    "absolute_error": mean_absolute_error,
    "huber": huber,
}

# Longest gradient, all weights together: recurrent networks meet cliffs.
_CLIP_NORM = 1.0

# What makes the network and its inputs, and so cannot change in a warm start.
_SHAPING = (
    "cell",
    "hidden_size",
    "num_layers",
    "bidirectional",
    "pooling",
    "dropout",
    "recurrent_dropout",
    "standardize",
)


class _Recurrent(BaseEstimator):  # type: ignore[misc]
    """What the estimators share: their parameters, the network, and its training."""

    _features: int  # of a step
    _columns: int | None  # of X in fit, if that was 2-D

    def __init__(
        self,
        *,
        cell: str,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        pooling: str,
        dropout: float,
        recurrent_dropout: float,
        noise: float,
        standardize: bool,
        alpha: float,
        batch_size: int | str,
        learning_rate: str,
        learning_rate_init: float,
        max_iter: int,
        early_stopping: bool,
        validation_fraction: float,
        n_iter_no_change: int,
        warm_start: bool,
        random_state: Any,
        verbose: bool,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.pooling = pooling
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.noise = noise
        self.standardize = standardize
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # ------------------------------------------------- cases in

    def _cases(self, X: Any, *, reset: bool) -> Cases:
        """Convert and check X; note its features (``reset``), or hold them to those of ``fit``."""
        several = listed(X)
        if several is not None:
            cases = as_cases("X", several)
            self._settle(cases[0].shape[1], None, reset)
            return cases
        array: NDArray[Any]
        if (X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim) > 2:
            array = check_array(X, allow_nd=True, dtype=_FLOATS, input_name="X", estimator=self)
            if array.ndim != 3 or not array.size:
                raise ValueError(f"X: expected shape (B, T, F), T and F >= 1, got {array.shape}")
            self._settle(array.shape[2], None, reset)
            return array
        if reset or self._columns is not None:
            array = validate_data(self, X, dtype=_FLOATS, reset=reset)
        else:  # fitted on (B, T, F): T is free
            array = check_array(X, dtype=_FLOATS, input_name="X", estimator=self)
        self._settle(1, array.shape[1], reset)
        return array[..., None]

    def _settle(self, features: int, columns: int | None, reset: bool) -> None:
        """Note the features of a step, and the columns where X is 2-D; or check the features."""
        if not reset:
            if features != self._features:
                raise ValueError(
                    f"X has {features} features per step, but {type(self).__name__} is expecting "
                    f"{self._features} features as input"
                )
            return
        self._features, self._columns = features, columns
        if columns is None:
            self.n_features_in_ = features
            _forget(self, "feature_names_in_")  # of an earlier fit

    def _weights(self, y: NDArray[Any], sample_weight: Any) -> NDArray[np.float64] | None:
        """Convert and check the weights of the cases; None stays None."""
        if sample_weight is None:
            return None
        return _as_weights("sample_weight", sample_weight, len(y))

    def _check_options(self) -> None:
        """Check the options that no layer and no call of the training checks under this name."""
        as_choice("cell", self.cell, tuple(_CELLS))
        as_choice("learning_rate", self.learning_rate, ("cosine", "constant"))
        as_probability("dropout", self.dropout)
        as_setting("noise", self.noise)
        as_setting("alpha", self.alpha)
        as_setting("learning_rate_init", self.learning_rate_init)
        for name in ("standardize", "early_stopping", "warm_start", "verbose"):
            as_flag(name, getattr(self, name))
        for name in ("num_layers", "max_iter", "n_iter_no_change"):
            as_size(name, getattr(self, name))
        if self.batch_size != "auto":
            as_size("batch_size", self.batch_size)
        if not as_setting("validation_fraction", self.validation_fraction, "fraction") > 0.0:
            raise ValueError("validation_fraction: expected 0 < number < 1, got 0")

    # ------------------------------------------------- the network

    def _network(self, outputs: int, seeds: list[int]) -> Sequential:
        """Make the network, with fresh weights."""
        recurrent = _CELLS[self.cell](
            self._features,
            self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout if self.num_layers > 1 else 0.0,
            recurrent_dropout=self.recurrent_dropout,
            batch_first=True,
            seed=seeds[0],
        )
        width = self.hidden_size * (2 if self.bidirectional else 1)
        layers = {
            "recurrent": recurrent,
            "pooling": Pooling(self.pooling, batch_first=True),
            "dropout": Dropout(self.dropout, seed=seeds[1], batch_first=True),
        }
        head = Linear(width, outputs, seed=seeds[2])
        return Sequential({"encoder": Sequential(layers), "head": head})

    def _begin(self, x: Cases, targets: NDArray[Any], outputs: int, seeds: list[int]) -> None:
        """Have a network, and scales by what it is trained on; with a warm start those of then."""
        shape = {name: getattr(self, name) for name in _SHAPING}
        shape |= {"features of X": self._features, "outputs": outputs}
        if not (self.warm_start and hasattr(self, "model_")):
            self.scale_ = Scale.of(x) if self.standardize else Scale.none(self._features)
            self._measure(targets)
            self.model_ = self._network(outputs, seeds)
            self._shape = shape
        elif shape != self._shape:
            name = next(name for name in shape if shape[name] != self._shape[name])
            raise ValueError(
                f"warm_start: expected {name} as in the fit before, {self._shape[name]!r}, "
                f"got {shape[name]!r}"
            )

    def _measure(self, targets: NDArray[Any]) -> None:
        """Take the scale of targets that have one."""

    def _scaled(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Return the targets as the network is to learn them."""
        return targets

    def _train(
        self,
        x: Cases,
        targets: NDArray[Any],
        weights: NDArray[np.float64] | None,
        loss: Any,
        *,
        outputs: int,
        strata: NDArray[Any] | None = None,
        in_time: bool = False,
    ) -> None:
        """Train on cases and their targets; keep the network and what happened."""
        rng = check_random_state(self.random_state)
        seeds = [int(seed) for seed in rng.randint(2**31 - 1, size=4)]
        training, held_out = self._split(len(x), strata, in_time, rng)
        self._begin(take(x, training), targets[training], outputs, seeds)
        x, targets = self.scale_.apply(x), self._scaled(targets)
        optimizer = AdamW(self.model_, lr=self.learning_rate_init, weight_decay=self.alpha)
        cosine = self.learning_rate == "cosine"
        batch_size: Any = self.batch_size
        if batch_size == "auto":
            batch_size = min(max(len(training) // 16, 4), 32)
        self.history_ = fit(
            self.model_,
            take(x, training),
            targets[training],
            loss=loss,
            sample_weight=None if weights is None else weights[training],
            optimizer=optimizer,
            schedule=CosineLR(optimizer, self.max_iter) if cosine else None,
            epochs=self.max_iter,
            batch_size=batch_size,
            validation=(take(x, held_out), targets[held_out]) if self.early_stopping else None,
            patience=self.n_iter_no_change if self.early_stopping else None,
            clip_norm=_CLIP_NORM,
            augment=_Noise(self.noise) if self.noise else None,
            progress=self.verbose,
            seed=seeds[3],
        )
        if self.history_.stopped == "interrupted":
            warnings.warn("fit: interrupted, the weights are the best so far", stacklevel=3)
        self.loss_curve_ = self.history_.train_loss
        self.n_iter_ = len(self.loss_curve_)

    def _split(
        self, cases: int, strata: NDArray[Any] | None, in_time: bool, rng: Any
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the rows to train on, and those held out for early stopping."""
        rows = np.arange(cases)
        if not self.early_stopping:
            return rows, rows[:0]
        training, held_out = train_test_split(
            rows,
            test_size=self.validation_fraction,
            stratify=strata,
            shuffle=not in_time,
            random_state=None if in_time else rng,
        )
        return training, held_out

    def _outputs(self, x: Cases) -> NDArray[np.float64]:
        """Return what the network says of checked cases, (B, outputs).

        The recurrent layers give a case the same bits in any company, and a product of float32 in
        the BLAS does not; so the head computes in float64, that a prediction does not depend on the
        rest of X.
        """
        features = predict(self.model_.layers["encoder"], self.scale_.apply(x))
        head = self.model_.layers["head"].params
        y: NDArray[np.float64] = np.asarray(features, np.float64) @ head["weight"].T + head["bias"]
        return y


@dataclass(frozen=True)
class _Noise:
    """Normal noise on a batch (B, T, F), for the training."""

    deviation: float

    def __call__(
        self, x: NDArray[Any], lengths: Any, rng: np.random.Generator
    ) -> tuple[NDArray[Any], Any]:
        """Return noisy inputs and the same lengths."""
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        noise *= np.float32(self.deviation)
        noise += x
        return noise, lengths


def _as_weights(name: str, value: Any, cases: int) -> NDArray[np.float64]:
    """Convert and check weights (B,)."""
    if not np.asarray(value).ndim:
        raise ValueError(f"{name}: expected shape (B,) = ({cases},), got {as_text(value)}")
    weights: NDArray[np.float64] = check_array(
        value, ensure_2d=False, dtype=np.float64, input_name=name
    )
    check_shape(name, weights, (cases,), "(B,)")
    if (weights < 0).any() or not weights.any():
        raise ValueError(
            f"{name}: expected weights >= 0, not all of them zero, "
            f"got values from {weights.min()} to {weights.max()}"
        )
    return weights


def _weighted(
    cases: Cases, targets: NDArray[Any], weights: NDArray[np.float64] | None
) -> tuple[Cases, NDArray[Any], NDArray[np.float64] | None]:
    """Leave out the cases of weight 0."""
    if weights is None:
        return cases, targets, None
    rows = np.flatnonzero(weights)
    return take(cases, rows), targets[rows], weights[rows]


@contextmanager
def _all_or_nothing(estimator: object) -> Iterator[None]:
    """Give an estimator its attributes back if its ``fit`` fails, so that it still predicts."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def _forget(estimator: object, attribute: str) -> None:
    if hasattr(estimator, attribute):
        delattr(estimator, attribute)


def _required(estimator: object, y: Any) -> Any:
    """Refuse a missing y in the words that scikit-learn expects."""
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None"
        )
    return y


def _as_labels(estimator: object, y: Any) -> NDArray[Any]:
    """Convert and check labels (B,)."""
    labels = check_array(
        _required(estimator, y), ensure_2d=False, dtype=None, input_name="y", estimator=estimator
    )
    labels = column_or_1d(labels, warn=True)
    check_classification_targets(labels)
    return np.asarray(labels)


# ---- Classifier ----------------------------------------------------------------------------------


class RecurrentClassifier(ClassifierMixin, _Recurrent):  # type: ignore[misc]
    """Classify sequences with a recurrent network.

    A recurrent layer reads each case, a pooling makes one vector of its outputs, and a linear layer
    and softmax make probabilities of that. Trained with cross-entropy and AdamW; gradients whose
    norm exceeds 1 are shortened to 1.

    Parameters
    ----------
    cell : default "gru"
        "gru", "lstm", "mgu" or "rnn" (tanh).
    hidden_size : default 64
        Units of each layer and direction.
    num_layers : default 1
        Recurrent layers, one on the other.
    bidirectional : default True
        Whether a second direction reads from the end.
    pooling : default "max"
        "max", "mean" or "last" over the steps. With two directions "last" has from the second what
        it knows after one step; take one of the others.
    dropout : default 0.3
        Probability of dropping an output, after each recurrent layer, in [0, 1).
    recurrent_dropout : default 0.0
        Probability of dropping a unit of h within the recurrence, one mask for a whole case.
    noise : default 0.3
        Standard deviation of normal noise that is added to the inputs (on their new scale with
        ``standardize``), fresh in each epoch, in training alone: against learning cases by heart.
    standardize : default True
        Whether every feature is brought to mean 0 and variance 1, as measured over all steps of the
        training cases. In 2-D X all columns are steps of one feature and share one scale.
    class_weight : default None
        Mapping from label to factor of its cases' weights; "balanced" makes all classes weigh the
        same. None: all 1.
    alpha : default 1e-4
        Decoupled weight decay of AdamW, >= 0.
    batch_size : default "auto"
        Cases in a step of the optimizer. "auto": 32, but for fewer than 512 cases a sixteenth of
        them and at least 4, so that an epoch has enough steps.
    learning_rate : default "cosine"
        "cosine" lowers the rate to 0 along half a wave until ``max_iter``; "constant" keeps it.
    learning_rate_init : default 5e-3
        The rate at the start.
    max_iter : default 30
        Epochs: how often every case is seen.
    early_stopping : default False
        Whether to hold cases out, stop when their mean loss, without weights, no longer falls, and
        keep the best weights.
    validation_fraction : default 0.1
        With ``early_stopping``: share of the cases held out, between 0 and 1, of each class alike.
    n_iter_no_change : default 10
        With ``early_stopping``: epochs without a lower loss after which to stop.
    warm_start : default False
        Whether ``fit`` goes on with the weights of the fit before, on data of the same features and
        labels (and the scale of then), with a fresh optimizer.
    random_state : default None
        Integer, ``RandomState`` or None: draws weights, order of cases, masks and what is held out.
    verbose : default False
        Whether to show progress.

    Attributes
    ----------
    classes_
        Sorted labels (K,).
    model_
        The ``Sequential`` with layers "encoder" and "head"; it takes x (B, T, F) as ``scale_``
        makes it and returns logits.
    scale_
        ``mean`` and ``spread`` (F,) of the inputs.
    history_
        The ``rnncore.History`` of the training.
    loss_curve_
        Training loss of each epoch.
    n_iter_
        Epochs done.
    n_features_in_
        F; but the number of columns, which is that of steps, if X was 2-D.
    feature_names_in_
        Names of the columns, if X was 2-D and had them.

    Notes
    -----
    X is one of these:

    - (B, T, F): B cases of T steps of F features.
    - A list of B arrays (T_b, F), or (T_b,) for one feature: cases of unequal lengths. No padding
      is needed and none is computed.
    - (B, T), an array, a data frame or nested lists: T steps of one feature. This is what tools
      want that know tables alone, such as ``BaggingClassifier``.

    Missing values are refused: fill them in, or leave the steps out. A network fitted on one kind
    of X takes the others too, if the features of a step agree; a 2-D X must have as many columns as
    in ``fit``.

    References
    ----------
    Collobert and Weston, A unified architecture for natural language processing, 2008 (the maximum
    over time); Loshchilov and Hutter, Decoupled weight decay regularization, 2019; Bishop, Training
    with noise is equivalent to Tikhonov regularization, 1995.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.sklearn import RecurrentClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [np.sin(rng.uniform(0.25, 0.35) * k * np.arange(rng.integers(20, 30)))
    ...      for k in [1, 2] * 30]
    >>> y = ["slow", "fast"] * 30
    >>> classifier = RecurrentClassifier(hidden_size=8, random_state=0).fit(X[:40], y[:40])
    >>> classifier.score(X[40:], y[40:]) >= 0.9
    True
    >>> classifier.predict_proba(X[:2]).shape
    (2, 2)
    """

    def __init__(
        self,
        *,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = True,
        pooling: str = "max",
        dropout: float = 0.3,
        recurrent_dropout: float = 0.0,
        noise: float = 0.3,
        standardize: bool = True,
        class_weight: Any = None,
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "cosine",
        learning_rate_init: float = 5e-3,
        max_iter: int = 30,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            pooling=pooling,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            noise=noise,
            standardize=standardize,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def fit(
        self, X: ArrayLike | list[Any], y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> RecurrentClassifier:
        """Train the network.

        Parameters
        ----------
        X
            Cases: (B, T, F), a list of B arrays (T_b, F), or (B, T).
        y
            Labels (B,): integers, bools or text.
        sample_weight : default None
            Weights (B,) >= 0. None: all 1. Cases of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If X, y or weights are not as above or hold NaN or infinity, or an option is wrong.
        """
        self._check_options()
        before = getattr(self, "classes_", None) if self.warm_start else None
        with _all_or_nothing(self):
            cases = self._cases(X, reset=True)
            y = _as_labels(self, y)
            check_consistent_length(cases, y)
            classes, codes = np.unique(y, return_inverse=True)
            if before is not None and not np.array_equal(before, classes):
                raise ValueError(
                    f"warm_start: expected the classes of the fit before, {before}, got {classes}"
                )
            self.classes_ = classes
            cases, codes, weights = _weighted(cases, codes, self._weights(y, sample_weight))
            self._train(
                cases, codes, weights, softmax_cross_entropy, outputs=len(classes), strata=codes
            )
        return self

    def _weights(self, y: NDArray[Any], sample_weight: Any) -> NDArray[np.float64] | None:
        """Return the weights of the cases, those of their classes in them."""
        weights = super()._weights(y, sample_weight)
        if self.class_weight is None:
            return weights
        given = compute_sample_weight(self.class_weight, y)
        factors = _as_weights("class_weight", given, len(y))
        if weights is None:
            return factors
        return _as_weights("sample_weight * class_weight", factors * weights, len(y))

    def _logits(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        return self._outputs(self._cases(X, reset=False))

    def predict(self, X: ArrayLike | list[Any]) -> NDArray[Any]:
        """Return the most probable label of each case.

        Parameters
        ----------
        X
            Cases, as in ``fit``.

        Returns
        -------
        ndarray (B,)

        Raises
        ------
        TypeError, ValueError
            If X is not as in ``fit``.
        NotFittedError
            Before ``fit``.
        """
        best = self._logits(X).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def decision_function(self, X: ArrayLike | list[Any]) -> NDArray[np.float64]:
        """Return the logits; with two classes, that of the second less that of the first.

        Parameters
        ----------
        X
            Cases, as in ``fit``.

        Returns
        -------
        ndarray (B, K), or (B,) with two classes

        Raises
        ------
        TypeError, ValueError, NotFittedError
            As ``predict``.
        """
        z = self._logits(X)
        return z[:, 1] - z[:, 0] if len(self.classes_) == 2 else z

    def predict_proba(self, X: ArrayLike | list[Any]) -> NDArray[np.float64]:
        """Return the probability of each class: softmax of the logits.

        Parameters
        ----------
        X
            Cases, as in ``fit``.

        Returns
        -------
        ndarray (B, K)
            In the order of ``classes_``.

        Raises
        ------
        TypeError, ValueError, NotFittedError
            As ``predict``.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: ArrayLike | list[Any]) -> NDArray[np.float64]:
        """Return the logarithms of the probabilities, without their underflow.

        Parameters
        ----------
        X
            Cases, as in ``fit``.

        Returns
        -------
        ndarray (B, K)
            In the order of ``classes_``.

        Raises
        ------
        TypeError, ValueError, NotFittedError
            As ``predict``.
        """
        z = self._logits(X)
        z = z - z.max(axis=1, keepdims=True)
        shares: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return shares


# ---- Regressor -----------------------------------------------------------------------------------


class _RealValued(_Recurrent):
    """What regressor and forecaster share: targets on a scale of their own."""

    loss: str

    def _train_on(
        self,
        cases: Cases,
        targets: NDArray[np.float64],
        weights: NDArray[np.float64] | None = None,
        *,
        in_time: bool = False,
    ) -> None:
        """Train on targets (B, K)."""
        loss = _LOSSES[self.loss]
        self._train(cases, targets, weights, loss, outputs=targets.shape[1], in_time=in_time)

    def _measure(self, targets: NDArray[Any]) -> None:
        own = Scale.of(targets) if self.standardize else Scale.none(targets.shape[1])
        self.target_scale_ = own

    def _scaled(self, targets: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self.target_scale_.apply(targets))

    def _check_options(self) -> None:
        super()._check_options()
        as_choice("loss", self.loss, tuple(_LOSSES))

    def _predicted(self, cases: Cases) -> NDArray[np.float64]:
        """Return predictions (B, K) in the units of the targets."""
        return self.target_scale_.undo(self._outputs(cases))


class RecurrentRegressor(RegressorMixin, _RealValued):  # type: ignore[misc]
    """Predict one number or several for each sequence, with a recurrent network.

    As ``RecurrentClassifier``, with K linear outputs.

    Parameters
    ----------
    loss : default "squared_error"
        "squared_error", "absolute_error" or "huber" (squared up to 1, absolute beyond; in standard
        deviations of the target with ``standardize``).
    standardize : default True
        As in ``RecurrentClassifier``, for the inputs and for each target. Predictions come back in
        the units of the targets.
    dropout : default 0.0
        As in ``RecurrentClassifier``. So are all other parameters, but ``noise`` is 0.0 by default:
        what keeps a classifier from being too sure blurs what a regressor measures.

    Attributes
    ----------
    target_scale_
        ``mean`` and ``spread`` (K,) of the targets.
    model_, scale_, history_, loss_curve_, n_iter_, n_features_in_, feature_names_in_
        As those of ``RecurrentClassifier``; ``model_`` predicts on the targets' new scale.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.sklearn import RecurrentRegressor
    >>> X = np.random.default_rng(0).standard_normal((80, 6, 1))
    >>> y = np.column_stack([X.sum(axis=(1, 2)), X.max(axis=(1, 2))])  # (B, 2)
    >>> regressor = RecurrentRegressor(hidden_size=16, random_state=0).fit(X, y)
    >>> regressor.predict(X).shape, regressor.score(X, y) > 0.9
    ((80, 2), True)
    """

    def __init__(
        self,
        *,
        loss: str = "squared_error",
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = True,
        pooling: str = "max",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        noise: float = 0.0,
        standardize: bool = True,
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "cosine",
        learning_rate_init: float = 5e-3,
        max_iter: int = 30,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            pooling=pooling,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            noise=noise,
            standardize=standardize,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.loss = loss

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(
        self, X: ArrayLike | list[Any], y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> RecurrentRegressor:
        """Train the network.

        Parameters
        ----------
        X
            Cases: (B, T, F), a list of B arrays (T_b, F), or (B, T).
        y
            Targets (B,), or (B, K) for several at once.
        sample_weight : default None
            Weights (B,) >= 0. None: all 1. Cases of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If X, y or weights are not as above or hold NaN or infinity, or an option is wrong.
        """
        self._check_options()
        with _all_or_nothing(self):
            cases = self._cases(X, reset=True)
            targets = check_array(
                _required(self, y),
                ensure_2d=False,
                dtype=np.float64,
                input_name="y",
                estimator=self,
            )
            check_consistent_length(cases, targets)
            if targets.ndim == 2 and targets.shape[1] == 1:
                targets = column_or_1d(targets, warn=True)
            self._one_target = targets.ndim == 1
            targets = targets.reshape(len(targets), -1)
            weights = self._weights(targets, sample_weight)
            cases, targets, weights = _weighted(cases, targets, weights)
            self._train_on(cases, targets, weights)
        return self

    def predict(self, X: ArrayLike | list[Any]) -> NDArray[np.float64]:
        """Return the prediction for each case.

        Parameters
        ----------
        X
            Cases, as in ``fit``.

        Returns
        -------
        ndarray (B,), or (B, K) if y had two axes

        Raises
        ------
        TypeError, ValueError
            If X is not as in ``fit``.
        NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        y = self._predicted(self._cases(X, reset=False))
        return y[:, 0] if self._one_target else y


# ---- Forecaster ----------------------------------------------------------------------------------


class RecurrentForecaster(_RealValued):
    """Predict how a series goes on, from its last steps, with a recurrent network.

    The network reads a window of ``n_lags`` steps and says the ``n_ahead`` that follow; it is
    trained on all windows of the series. Longer horizons go on from what has been predicted.

    Parameters
    ----------
    n_lags : default 24
        Steps that the network sees: at least one season, if there are seasons.
    n_ahead : default 1
        Steps that it predicts at once. 1 with any horizon is the recursive strategy, as many as the
        horizon the direct one.
    difference : default 0
        Lag of differences: the network sees and predicts ``y[t] - y[t - difference]``. 1 for a
        series with a trend, the length of a season for seasons that grow. 0: the series itself.
    loss, standardize
        As those of ``RecurrentRegressor``.
    cell, hidden_size, ...
        As those of ``RecurrentClassifier``, with other defaults: one direction
        (``bidirectional=False``), its last step (``pooling="last"``), no dropout and no noise; and,
        because one series is few data and windows overlap, a short training: ``max_iter=20`` at
        ``learning_rate_init=3e-3``. With ``early_stopping`` the last windows of the series are held
        out, not any.

    Attributes
    ----------
    n_series_, n_exogenous_
        D and E: numbers a step of y and of X.
    model_, scale_, target_scale_, history_, loss_curve_, n_iter_, n_features_in_
        As those of ``RecurrentRegressor``; a case is a window.

    Notes
    -----
    y is (N,), or (N, D) for D series that are predicted together. The exogenous inputs X, (N, E) or
    (N,), are known for the future too, such as prices or the day of the week: with step t of the
    window the network reads X of the steps t + 1 to t + ``n_ahead``.

    This is no classifier or regressor to scikit-learn, because y comes first and predicting takes
    a horizon: its checks and ``cross_val_score`` do not apply. Parameters, copies and pickles work
    as everywhere.

    References
    ----------
    Ben Taieb, Bontempi, Atiya and Sorjamaa, A review and comparison of strategies for multi-step
    ahead time series forecasting, 2012.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.sklearn import RecurrentForecaster
    >>> y = 5 + np.sin(np.arange(144) * 2 * np.pi / 12)
    >>> forecaster = RecurrentForecaster(n_lags=12, hidden_size=16, random_state=0)
    >>> ahead = forecaster.fit(y[:120]).predict(24)
    >>> ahead.shape, bool(abs(ahead - y[120:]).max() < 0.3)
    ((24,), True)
    """

    def __init__(
        self,
        *,
        n_lags: int = 24,
        n_ahead: int = 1,
        difference: int = 0,
        loss: str = "squared_error",
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        noise: float = 0.0,
        standardize: bool = True,
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "cosine",
        learning_rate_init: float = 3e-3,
        max_iter: int = 20,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            cell=cell,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            pooling=pooling,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            noise=noise,
            standardize=standardize,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
        )
        self.n_lags = n_lags
        self.n_ahead = n_ahead
        self.difference = difference
        self.loss = loss

    def _check_options(self) -> None:
        super()._check_options()
        as_size("n_lags", self.n_lags)
        as_size("n_ahead", self.n_ahead)
        as_uint64("difference", self.difference, expected="an integer >= 0")

    def fit(self, y: ArrayLike, X: ArrayLike | None = None) -> RecurrentForecaster:
        """Train the network on the windows of a series.

        Parameters
        ----------
        y
            (N,) or (N, D), equally spaced in time, the oldest step first; N >= n_lags + n_ahead +
            difference.
        X : default None
            Exogenous inputs (N, E) or (N,) of the same steps.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If y or X are not as above or hold NaN or infinity, or an option is wrong.
        """
        self._check_options()
        series = self._series(y)
        extra = self._extra(X, len(series))
        plan = self.n_lags, self.n_ahead, self.difference
        if len(series) < sum(plan):
            raise ValueError(
                f"y: expected at least n_lags + n_ahead + difference = {sum(plan)} steps, "
                f"got {len(series)}"
            )
        with _all_or_nothing(self):
            lags, ahead, lag = self._plan = plan
            self._one_series = np.ndim(y) == 1
            self.n_series_, self.n_exogenous_ = series.shape[1], extra.shape[1]
            changes = _differences(series, lag)
            inputs = _windows(changes[:-ahead], extra[lag:], lags, ahead)
            self._features, self._columns = inputs.shape[2], None
            self._train_on(inputs, _stretches(changes[lags:], ahead), in_time=True)
            self._remember(series, extra)
        return self

    def update(self, y: ArrayLike, X: ArrayLike | None = None) -> RecurrentForecaster:
        """Add steps that have come to pass: predictions go on from their end. No training.

        Parameters
        ----------
        y
            (N,) or (N, D), the steps that follow those known so far; N >= 1.
        X : default None
            Exogenous inputs of the same steps; needed if ``fit`` had some.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If y or X are not as in ``fit``.
        NotFittedError
            Before ``fit``.

        Examples
        --------
        >>> import numpy as np
        >>> from rnncore.sklearn import RecurrentForecaster
        >>> y = np.sin(np.arange(60))
        >>> forecaster = RecurrentForecaster(n_lags=8, max_iter=2).fit(y[:50])
        >>> forecaster.update(y[50:]).predict(3).shape
        (3,)
        """
        check_is_fitted(self)
        series = self._series(y)
        if series.shape[1] != self.n_series_:
            raise ValueError(f"y: expected {self.n_series_} series, got {series.shape[1]}")
        extra = self._extra(X, len(series))
        self._check_extra(extra)
        self._remember(np.concatenate([self._y, series]), np.concatenate([self._x, extra]))
        return self

    def predict(self, horizon: int, X: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return the steps that follow those of ``fit`` and ``update``.

        Parameters
        ----------
        horizon
            How many, 1 or more.
        X : default None
            Exogenous inputs of these steps, needed if ``fit`` had some: max(horizon, n_ahead) rows
            or more.

        Returns
        -------
        ndarray (horizon,), or (horizon, D) if y had two axes

        Raises
        ------
        TypeError, ValueError
            If ``horizon`` is no positive integer, or X not as in ``fit`` or too short.
        NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        horizon = as_size("horizon", horizon)
        lags, ahead, lag = self._plan
        total = max(horizon, ahead)
        extra = np.concatenate([self._x, self._future(X, total)])
        changes = np.empty((lags + total, self.n_series_))
        changes[:lags] = _differences(self._y, lag)
        done = 0
        while done < horizon:
            # The last stretch ends at the horizon, as X does; it may overlap the one before it.
            start = min(done, total - ahead)
            end = start + lags
            window = _windows(changes[start:end], extra[start : end + ahead], lags, ahead)
            stretch = self._predicted(window).reshape(ahead, -1)
            changes[lags + done : end + ahead] = stretch[done - start :]
            done = start + ahead
        y = _sums(changes[lags : lags + horizon], self._y, lag)
        return y[:, 0] if self._one_series else y

    def _series(self, y: Any) -> NDArray[np.float64]:
        """Convert and check y to (N, D)."""
        series = check_array(
            _required(self, y), ensure_2d=False, dtype=np.float64, input_name="y", estimator=self
        )
        return _columns("y", "(N,) or (N, D)", series)

    def _extra(self, X: Any, rows: int) -> NDArray[np.float64]:
        """Convert and check X to (N, E), E = 0 where there is none."""
        if X is None:
            return np.empty((rows, 0))
        extra = check_array(X, ensure_2d=False, dtype=np.float64, input_name="X", estimator=self)
        if len(extra) != rows:
            raise ValueError(f"X: expected a row for each of the {rows} steps, got {len(extra)}")
        return _columns("X", "(N,) or (N, E)", extra)

    def _future(self, X: Any, rows: int) -> NDArray[np.float64]:
        """Convert and check the X of the steps to predict, and return that many rows."""
        if X is not None and np.ndim(X) and len(X) > rows:
            X = X[:rows]
        extra = self._extra(X, rows)
        self._check_extra(extra)
        return extra

    def _check_extra(self, extra: NDArray[np.float64]) -> None:
        """Hold the exogenous inputs to those of ``fit``."""
        if extra.shape[1] != self.n_exogenous_:
            raise ValueError(
                f"X: expected {self.n_exogenous_} exogenous inputs a step, as in fit, "
                f"got {extra.shape[1]}"
            )

    def _remember(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> None:
        """Keep the end of the series, from which predictions go on."""
        lags, _, lag = self._plan
        self._y, self._x = y[-(lags + lag) :].copy(), x[-lags:].copy()


def _columns(name: str, letters: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, D) for (N,) or (N, D)."""
    if values.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape {letters}, got {values.shape}")
    return values.reshape(len(values), -1)


def _windows(
    y: NDArray[np.float64], x: NDArray[np.float64], lags: int, ahead: int
) -> NDArray[np.float64]:
    """Return what the network reads, (B, lags, D + ahead * E): all stretches of that many steps.

    A step of y (N, D) comes with x (N + ahead, E) of the ``ahead`` steps that follow it, so the
    last step of a window sees the exogenous inputs of all that is to be predicted.
    """
    following = _stretches(x[1:], ahead)
    steps = np.concatenate([y, following], axis=1)
    return np.lib.stride_tricks.sliding_window_view(steps, lags, axis=0).swapaxes(1, 2)


def _stretches(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return all stretches of N steps (N, D), each in one row, step after step."""
    views = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)
    return views.swapaxes(1, 2).reshape(len(views), -1)


def _differences(y: NDArray[np.float64], lag: int) -> NDArray[np.float64]:
    """Return ``y[t] - y[t - lag]``; y itself for a lag of 0."""
    return y[lag:] - y[:-lag] if lag else y


def _sums(
    changes: NDArray[np.float64], before: NDArray[np.float64], lag: int
) -> NDArray[np.float64]:
    """Undo ``_differences`` for the steps that follow those of ``before``."""
    if not lag:
        return changes.copy()
    y = np.concatenate([before[-lag:], changes])
    for t in range(lag, len(y)):
        y[t] += y[t - lag]
    return y[lag:]


# ---- Ensembles -----------------------------------------------------------------------------------


class _Averaging(MetaEstimatorMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """What the ensembles share: members trained side by side."""

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_estimators: int = 5,
        bootstrap: bool = False,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.bootstrap = bootstrap
        self.n_jobs = n_jobs
        self.random_state = random_state

    @abstractmethod
    def _default(self) -> Any:
        """Return the estimator that None stands for."""

    def _member(self) -> Any:
        return self._default() if self.estimator is None else self.estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self._member()).input_tags
        return tags

    def _fit_members(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Train the members."""
        rng = check_random_state(self.random_state)
        bootstrap = as_flag("bootstrap", self.bootstrap)
        members = []
        for _ in range(as_size("n_estimators", self.n_estimators)):
            member, seed = clone(self._member()), int(rng.randint(2**31 - 1))
            names = [name for name in member.get_params() if _names_a_seed(name)]
            if not names and not bootstrap:
                raise ValueError(
                    "estimator: expected one with a random_state without bootstrap, "
                    f"as all members would be equal, got {self._member()!r}"
                )
            members.append((member.set_params(**dict.fromkeys(names, seed)), seed))
        check_consistent_length(X, y, sample_weight)
        given = (X, y) if sample_weight is None else (X, y, sample_weight)
        self.estimators_ = Parallel(n_jobs=self.n_jobs)(
            delayed(_fit_member)(member, given, seed if bootstrap else None)
            for member, seed in members
        )
        for name in ("n_features_in_", "feature_names_in_"):
            _forget(self, name)
            if hasattr(self.estimators_[0], name):
                setattr(self, name, getattr(self.estimators_[0], name))


def _names_a_seed(parameter: str) -> bool:
    return parameter == "random_state" or parameter.endswith("__random_state")


def _fit_member(member: Any, given: tuple[Any, ...], seed: int | None) -> Any:
    """Train one member; with a seed, on as many cases drawn with replacement."""
    X, y, *weights = given if seed is None else resample(*given, random_state=seed)
    return member.fit(X, y, **({"sample_weight": weights[0]} if weights else {}))


class AveragingClassifier(ClassifierMixin, _Averaging):  # type: ignore[misc]
    """Several classifiers that differ in their seeds, and the mean of their probabilities.

    Networks that begin with other weights end in other minima, and their errors differ: the mean of
    a few is better than each. scikit-learn's ``BaggingClassifier`` does it for 2-D X and refuses
    cases (B, T, F) and ragged lists; this one passes on to its members whatever they take.

    Parameters
    ----------
    estimator : default None
        Classifier with ``predict_proba``; clones of it are trained. None:
        ``RecurrentClassifier()``.
    n_estimators : default 5
        Number of members.
    bootstrap : default False
        Whether a member sees B cases drawn with replacement, instead of all of them.
    n_jobs : default None
        Members trained at the same time, as joblib understands it: None is 1, -1 all cores. A
        worker process of joblib takes its share of the cores for the threads of rnncore.
    random_state : default None
        Integer, ``RandomState`` or None: gives every member a seed (each of its parameters named
        ``random_state``) and draws the cases.

    Attributes
    ----------
    estimators_
        The trained members.
    classes_
        Sorted labels (K,).
    n_features_in_
        That of the members.

    References
    ----------
    Lakshminarayanan, Pritzel and Blundell, Simple and scalable predictive uncertainty estimation
    using deep ensembles, 2017 (members differ in their seeds alone); Breiman, Bagging predictors,
    1996.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.sklearn import AveragingClassifier, RecurrentClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal((length, 2)) for length in rng.integers(5, 10, size=40)]
    >>> y = ["up" if case.mean() > 0 else "down" for case in X]
    >>> member = RecurrentClassifier(hidden_size=8)
    >>> ensemble = AveragingClassifier(member, n_estimators=3, random_state=0).fit(X, y)
    >>> ensemble.predict_proba(X).shape, ensemble.score(X, y) > 0.9
    ((40, 2), True)
    """

    def _default(self) -> RecurrentClassifier:
        return RecurrentClassifier()

    def fit(
        self, X: ArrayLike | list[Any], y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> AveragingClassifier:
        """Train the members.

        Parameters
        ----------
        X, y, sample_weight
            As the members take them.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            From a member; if an option is wrong; or if members have no ``random_state`` and no
            bootstrap, so that they would be equal.
        """
        labels = _as_labels(self, y)
        with _all_or_nothing(self):
            self.classes_ = np.unique(labels)
            self._fit_members(X, labels, sample_weight)
        return self

    def predict_proba(self, X: ArrayLike | list[Any]) -> NDArray[np.float64]:
        """Return the mean of the members' probabilities.

        Parameters
        ----------
        X
            As the members take it.

        Returns
        -------
        ndarray (B, K)
            In the order of ``classes_``. A class that a member's draw lacked has probability 0 from
            it.

        Raises
        ------
        TypeError, ValueError
            From a member.
        NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        total: Any = 0.0
        for member in self.estimators_:
            shares = member.predict_proba(X)
            every = np.zeros((len(shares), len(self.classes_)))
            every[:, np.searchsorted(self.classes_, member.classes_)] = shares
            total = total + every
        mean: NDArray[np.float64] = total / len(self.estimators_)
        return mean

    def predict(self, X: ArrayLike | list[Any]) -> NDArray[Any]:
        """Return the label of the greatest mean probability.

        Parameters
        ----------
        X
            As the members take it.

        Returns
        -------
        ndarray (B,)

        Raises
        ------
        TypeError, ValueError
            From a member.
        NotFittedError
            Before ``fit``.
        """
        best = self.predict_proba(X).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen


class AveragingRegressor(RegressorMixin, _Averaging):  # type: ignore[misc]
    """Several regressors that differ in their seeds, and the mean of what they predict.

    Parameters
    ----------
    estimator : default None
        Regressor; clones of it are trained. None: ``RecurrentRegressor()``.
    n_estimators, bootstrap, n_jobs, random_state
        As those of ``AveragingClassifier``.

    Attributes
    ----------
    estimators_
        The trained members.
    n_features_in_
        That of the members.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.sklearn import AveragingRegressor, RecurrentRegressor
    >>> X = np.random.default_rng(0).standard_normal((60, 6, 1))
    >>> y = X.sum(axis=(1, 2))
    >>> member = RecurrentRegressor(hidden_size=8)
    >>> ensemble = AveragingRegressor(member, n_estimators=3, random_state=0).fit(X, y)
    >>> ensemble.score(X, y) > 0.9
    True
    """

    def _default(self) -> RecurrentRegressor:
        return RecurrentRegressor()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags = get_tags(self._member()).target_tags
        return tags

    def fit(
        self, X: ArrayLike | list[Any], y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> AveragingRegressor:
        """Train the members.

        Parameters
        ----------
        X, y, sample_weight
            As the members take them.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            As ``AveragingClassifier.fit``.
        """
        self._fit_members(X, _required(self, y), sample_weight)
        return self

    def predict(self, X: ArrayLike | list[Any]) -> NDArray[np.float64]:
        """Return the mean of the members' predictions.

        Parameters
        ----------
        X
            As the members take it.

        Returns
        -------
        ndarray (B,) or (B, K)

        Raises
        ------
        TypeError, ValueError
            From a member.
        NotFittedError
            Before ``fit``.
        """
        check_is_fitted(self)
        mean: NDArray[np.float64] = np.mean([m.predict(X) for m in self.estimators_], axis=0)
        return mean
