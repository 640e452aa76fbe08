"""Diagnosis: whether a model learns too little or by heart, and whether its gradients arrive.

Four questions, each with numbers of its own: ``verdict`` reads a pair of curves and says
over-fitting, under-fitting or fine; ``learning_curve`` asks what more data would bring,
``validation_curve`` what another setting would; ``gradient_norms`` measures how much of a
gradient is left after k steps back through time. ``rnncore.plot`` draws all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from .evaluation import Adapter, evaluate, taken
from .layers import GRU, LSTM, MGU, RNN
from .losses import huber
from .parameters import (
    as_choice,
    as_integer_array,
    as_lengths,
    as_real,
    as_real_array,
    as_seed,
    as_size,
    as_text,
    check_range,
    check_shape,
)
from .training import fit

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .batches import Rows

__all__ = [
    "Curve",
    "Verdict",
    "constant_loss",
    "gradient_norms",
    "k_fold",
    "learning_curve",
    "validation_curve",
    "verdict",
]

Split: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"


# ---- The verdict ---------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A plain word on a pair of figures, and what it rests on.

    Printed, it is the word and the advice.

    Attributes
    ----------
    word
        "over-fitting", "under-fitting", "fine" or "diverged".
    train, validation
        The figures that were judged.
    train_error, validation_error
        The same as shares of what a constant guess gets wrong: 0 is perfect, 1 has learnt nothing.
    rise
        How much ``validation_error`` is above its least value until then.
    advice
        One sentence: what was seen, and what usually helps.
    """

    word: str
    train: float
    validation: float
    train_error: float
    validation_error: float
    rise: float
    advice: str

    def __str__(self) -> str:
        """Say the word and the advice."""
        return f"{self.word}: {self.advice}"


def verdict(
    train: ArrayLike,
    validation: ArrayLike,
    *,
    baseline: float | None = None,
    perfect: float = 0.0,
    at: int = -1,
    poor: float = 0.5,
    gap: float = 0.1,
    rise: float = 0.05,
) -> Verdict:
    """Say whether a model over-fits, under-fits or does fine, from its two curves.

    Figures become *errors*, ``(figure - perfect) / (baseline - perfect)``: 0 for a perfect
    model, 1 for one that has learnt nothing, whatever the loss or the score. Then, in this order:

    * "diverged": a figure is not finite.
    * "under-fitting": both errors are above ``poor``.
    * "over-fitting": the validation error is more than ``gap`` above the training error, or more
      than ``rise`` above its own least value before.
    * "fine": none of these.

    Parameters
    ----------
    train, validation
        Two curves (N,) of one figure, a loss or a score, in the order of the epochs; or two
        numbers.
    baseline : default None
        The figure of a constant guess: ``constant_loss(y)`` for a loss, the share of the most
        frequent class for an accuracy. None: the first entry of ``train``, which is fair only if
        nothing had been learnt there, so it can make a fast learner look like a poor one.
    perfect : default 0
        The figure of a model that could not be better: 0 for a loss, 1 for an accuracy. What nobody
        can predict counts as an error that is left; where it is known, say so here.
    at : default -1
        The entry to judge: the last one, or that of the weights that are kept.
    poor, gap, rise : default 0.5, 0.1 and 0.05
        The thresholds. They are conventions and not measured: half of what there was to learn, a
        tenth of it, a twentieth of it.

    Returns
    -------
    Verdict

    Raises
    ------
    TypeError
        If an argument is not of real numbers, or ``at`` no integer.
    ValueError
        If the curves are empty or of different shapes, ``at`` is out of range, a threshold is
        negative, or ``baseline`` is missing for two numbers, not finite, or equal to ``perfect``.

    Examples
    --------
    >>> import rnncore as rc
    >>> found = rc.verdict([2.3, 0.9, 0.2, 0.01], [2.2, 1.1, 0.9, 1.3])
    >>> found.word, round(found.rise, 2)
    ('over-fitting', 0.17)
    >>> print(rc.verdict(0.97, 0.95, baseline=0.1, perfect=1.0))
    fine: of what a constant guess gets wrong, 3 % is left in training and 6 % in validation.
    """
    curves = [_curve("train", train), _curve("validation", validation)]
    check_shape("validation", curves[1], curves[0].shape, "that of train")
    limits = [_threshold(*pair) for pair in (("poor", poor), ("gap", gap), ("rise", rise))]
    end = _entry(at, len(curves[0]))
    perfect = as_real("perfect", perfect)
    base = _baseline(baseline, curves[0], perfect)
    last, held = (float(curve[end]) for curve in curves)
    if not (math.isfinite(last) and math.isfinite(held) and math.isfinite(base)):
        advice = "the figures are no longer finite: a lower learning rate, or clip_norm, may help."
        return Verdict("diverged", last, held, math.nan, math.nan, math.nan, advice)
    errors = [(curve[: end + 1] - perfect) / (base - perfect) for curve in curves]
    return _judged(last, held, errors, limits)


def _judged(
    train: float, validation: float, errors: list[NDArray[np.float64]], limits: list[float]
) -> Verdict:
    """Compare errors that end where the model is judged."""
    poor, gap, rise = limits
    left, held = (float(error[-1]) for error in errors)
    best = int(np.nanargmin(errors[1]))
    risen = held - float(errors[1][best])
    seen = f"{left:.0%} is left in training and {held:.0%} in validation".replace("%", " %")
    seen = f"of what a constant guess gets wrong, {seen}"
    if left > poor and held > poor:
        word = "under-fitting"
        # A quarter of the curve ago: what falls by more than the tolerance has not settled.
        earlier = errors[0][max(len(errors[0]) * 3 // 4 - 1, 0)]
        helps = (
            "it was still falling: train longer"
            if earlier - left > rise
            else "a larger model, another learning rate, weaker penalties or less dropout may help"
        )
    elif risen > rise:
        word = "over-fitting"
        seen += f", which was best at entry {best + 1} of {len(errors[1])}"
        helps = "stop earlier (patience), or use dropout, weight decay, augmentation or more data"
    elif held - left > gap:
        word = "over-fitting"
        helps = (
            "more data, augmentation, dropout, weight decay, an ensemble or a smaller model may "
            "help"
        )
    else:
        word, helps = "fine", ""
    advice = f"{seen}: {helps}." if helps else f"{seen}."
    return Verdict(word, train, validation, left, held, risen, advice)


def _curve(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """Convert a curve (N,) or a number."""
    curve = np.atleast_1d(as_real_array(name, value, np.float64))
    if curve.ndim != 1 or not curve.size:
        raise ValueError(f"{name}: expected a number or shape (N,) with N >= 1, got {curve.shape}")
    return curve


def _threshold(name: str, value: object) -> float:
    limit = as_real(name, value)
    if not limit >= 0:
        raise ValueError(f"{name}: expected a number >= 0, got {as_text(value)}")
    return limit


def _entry(at: object, entries: int) -> int:
    """Return the place of the entry to judge, counted from the front."""
    if isinstance(at, bool) or not isinstance(at, (int, np.integer)):
        raise TypeError(f"at: expected an integer, got {as_text(at)}")
    if not -entries <= at < entries:
        raise ValueError(f"at: expected {-entries} <= at < N = {entries}, got {as_text(int(at))}")
    return int(at) % entries


def _baseline(baseline: float | None, train: NDArray[np.float64], perfect: float) -> float:
    """Check the figure of a constant guess, or take the first of a curve."""
    if baseline is None:
        if len(train) == 1:
            raise ValueError(
                "baseline: expected the figure of a constant guess, as there is no curve to take "
                "it from, got None"
            )
        base = float(train[0])
    else:
        base = as_real("baseline", baseline)
        if not math.isfinite(base):
            raise ValueError(f"baseline: expected a finite number, got {as_text(baseline)}")
    if base == perfect:
        raise ValueError(f"baseline: expected another figure than perfect = {perfect}, got {base}")
    return base


#: The losses that ``constant_loss`` knows: from targets (N, K) to the losses of the best constant.
_CONSTANT: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "binary_cross_entropy": lambda y: _entropy(y.mean(0)) + _entropy(1 - y.mean(0)),
    "mse": lambda y: y.var(0),
    "mae": lambda y: abs(y - np.median(y, 0)).mean(0),
    "huber": lambda y: np.array(huber(np.broadcast_to(_huber_middle(y), y.shape), y)[0]),
}


def constant_loss(y: ArrayLike, loss: str = "cross_entropy") -> float:
    """Return the loss of the best guess that is the same for every input.

    It is what a model has to beat: the ``baseline`` of ``verdict``.

    Parameters
    ----------
    y
        The targets that count. For "cross_entropy" integers of any shape; else real numbers (N,)
        or (..., K), with a constant for each of K outputs.
    loss : default "cross_entropy"
        Any that ``fit`` knows by name. "cross_entropy": the entropy of the classes' shares.
        "binary_cross_entropy": that of the share of ones. "mse": the variance. "mae": the mean
        distance from the median. "huber": that from the middle which balances distances cut to 1.

    Raises
    ------
    TypeError
        If y is not of integers, or of real numbers.
    ValueError
        If there are no targets, or ``loss`` is none of the five.

    Examples
    --------
    >>> import rnncore as rc
    >>> round(rc.constant_loss([0, 1, 1, 0]), 4), rc.constant_loss([1.0, 3.0], "mse")
    (0.6931, 1.0)
    """
    as_choice("loss", loss, ("cross_entropy", *_CONSTANT))
    classes = loss == "cross_entropy"
    targets = as_integer_array("y", y) if classes else as_real_array("y", y, np.float64)
    if not targets.size:
        raise ValueError("y: expected at least one target, got none")
    if classes:
        _, counts = np.unique(targets, return_counts=True)
        return float(_entropy(counts / targets.size).sum())
    columns = targets.reshape(-1, targets.shape[-1] if targets.ndim > 1 else 1)
    return float(_CONSTANT[loss](columns).mean())


def _entropy(shares: NDArray[Any]) -> NDArray[Any]:
    """Return -p log p, 0 where p is 0."""
    result: NDArray[Any] = -shares * np.log(np.where(shares > 0, shares, 1))
    return result


def _huber_middle(y: NDArray[Any]) -> NDArray[Any]:
    """Return the constants (K,) with the least Huber loss on y (N, K), by halving."""
    low, high = y.min(0), y.max(0)
    for _ in range(64):
        middle = low + (high - low) / 2
        below = np.clip(y - middle, -1.0, 1.0).sum(0) > 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    result: NDArray[Any] = low
    return result


# ---- Curves --------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """Figures of training and validation at several values of something.

    Attributes
    ----------
    name
        Of what: "rows" (training rows) or the name of a setting.
    values : (N,)
        The values.
    train, validation : (N, K)
        A figure for each value and fold.
    figure
        What the figures are, such as "loss".
    baseline
        The figure of a constant guess; None if it is not known.
    perfect
        The figure of a model that could not be better.
    """

    name: str
    values: tuple[Any, ...]
    train: NDArray[np.float64]
    validation: NDArray[np.float64]
    figure: str = "loss"
    baseline: float | None = None
    perfect: float = 0.0

    @property
    def best(self) -> int:
        """Which value has the validation figure nearest to the perfect one, in the mean."""
        return int(np.argmin(abs(self.validation.mean(axis=1) - self.perfect)))

    def verdicts(
        self, baseline: float | None = None, *, poor: float = 0.5, gap: float = 0.1
    ) -> list[Verdict]:
        """Judge the mean figures at every value.

        Parameters
        ----------
        baseline : default None
            As for ``verdict``. None: that of the curve.
        poor, gap : default 0.5 and 0.1
            As for ``verdict``.

        Returns
        -------
        list of Verdict
            In the order of ``values``.

        Raises
        ------
        ValueError
            If no baseline is known.
        """
        base = self.baseline if baseline is None else baseline
        means = zip(self.train.mean(axis=1), self.validation.mean(axis=1), strict=True)
        return [
            verdict(train, held, baseline=base, perfect=self.perfect, poor=poor, gap=gap)
            for train, held in means
        ]


def learning_curve(
    make_model: Callable[[], Any],
    x: Any,
    y: Any,
    *,
    sizes: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    folds: int | Iterable[tuple[ArrayLike, ArrayLike]] = 5,
    lengths: Any = None,
    metric: Callable[[Any, Any], float] | None = None,
    baseline: float | None = None,
    perfect: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Curve:
    """Train on more and more rows, and see whether more data would help.

    Every model is trained from the start by ``fit``, once for each size and fold. If the figure of
    validation still gets better at the right end, more data will help; if both figures are poor
    and close, they will not, and the model is too small.

    Parameters
    ----------
    make_model
        Called without arguments; returns a fresh model, or a pair of a model and a dict of options
        for its ``fit``, such as ``{"optimizer": rc.AdamW(model, weight_decay=0.1)}``.
    x, y
        All data, as ``fit`` takes them.
    sizes : default (0.2, 0.4, 0.6, 0.8, 1)
        How many training rows: integers are rows, floats shares of a fold's training rows. The
        rows of a size are also in every larger one.
    folds : default 5
        How many folds ``k_fold`` makes (stratified where y has one class for each row), or pairs of
        row numbers (train, validation).
    lengths : default None
        As for ``fit``.
    metric : default None
        A callable (prediction, target) whose value is the figure, such as an accuracy. None: the
        loss.
    baseline : default None
        The figure of a constant guess, for the verdicts. None: ``constant_loss`` of y, if the
        figure is a loss with a name and y has one target for each row; else not known.
    perfect : default None
        The figure of a model that could not be better. None: 0 for the loss, 1 for a metric.
    seed : default 0
        Of the folds, of the order of the rows, and of ``fit``.
    **options
        For ``fit``: ``loss``, ``epochs``, ``batch_size`` and its others, but ``optimizer``, which
        belongs to one model, ``sample_weight``, ``checkpoint`` and ``resume``.

    Returns
    -------
    Curve
        Its ``name`` is "rows", its ``values`` numbers of rows.

    Raises
    ------
    TypeError, ValueError
        If sizes, folds or options are wrong, or from ``fit``.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> x = np.random.default_rng(0).standard_normal((6, 60, 2))  # (T, B, F)
    >>> y = (x[-1, :, 0] > 0).astype(int)
    >>> def make_model():
    ...     return rc.Sequential(rc.GRU(2, 8, seed=0), rc.Pooling("last"), rc.Linear(8, 2, seed=1))
    >>> curve = rc.diagnosis.learning_curve(make_model, x, y, sizes=(10, 40), folds=3, epochs=5)
    >>> curve.values, curve.validation.shape
    ((10, 40), (2, 3))
    """
    data = _Data.of(make_model(), x, y, lengths)
    _check_options(options, ("optimizer", *_NOT_BY_ROWS))
    figure = _Figure(options, metric, baseline, perfect, seed)
    parts = _folds(folds, data, seed)
    rows = _sizes(sizes, min(len(train) for train, _ in parts))
    rng = np.random.default_rng(as_seed(seed))
    orders = [(rng.permutation(train), held) for train, held in parts]
    figures = [
        [figure.measured(make_model(), data, order[:n], held) for order, held in orders]
        for n in rows
    ]
    return figure.curve("rows", rows, figures, data)


def validation_curve(
    make_model: Callable[..., Any],
    name: str,
    values: Iterable[Any],
    x: Any,
    y: Any,
    *,
    folds: int | Iterable[tuple[ArrayLike, ArrayLike]] = 5,
    lengths: Any = None,
    metric: Callable[[Any, Any], float] | None = None,
    baseline: float | None = None,
    perfect: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Curve:
    """Train with one value of a setting after the other, and see which is best.

    Left of the best value of, say, ``hidden_size`` a model under-fits: both figures are poor. Right
    of it, it over-fits: training gets better and validation does not.

    Parameters
    ----------
    make_model
        Called as ``make_model(**{name: value})``; returns what it does for ``learning_curve``. So
        the setting may also be one of the optimizer, or of ``fit``.
    name
        Of the setting.
    values
        At least one.
    x, y, folds, lengths, metric, baseline, perfect, seed, **options
        As for ``learning_curve``.

    Returns
    -------
    Curve

    Raises
    ------
    TypeError, ValueError
        As ``learning_curve``; and if ``name`` is no text or there is no value.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> x = np.random.default_rng(0).standard_normal((6, 60, 2))
    >>> y = (x[-1, :, 0] > 0).astype(int)
    >>> def make_model(units):
    ...     return rc.Sequential(
    ...         rc.GRU(2, units, seed=0), rc.Pooling("last"), rc.Linear(units, 2, seed=1)
    ...     )
    >>> curve = rc.diagnosis.validation_curve(
    ...     make_model, "units", (1, 16), x, y, folds=3, epochs=20
    ... )
    >>> curve.values[curve.best]
    16
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected text, got {as_text(name)}")
    tried = tuple(values)
    if not tried:
        raise ValueError("values: expected at least one, got none")
    data = _Data.of(make_model(**{name: tried[0]}), x, y, lengths)
    _check_options(options, ("optimizer", *_NOT_BY_ROWS))
    figure = _Figure(options, metric, baseline, perfect, seed)
    parts = _folds(folds, data, seed)
    figures = [
        [figure.measured(make_model(**{name: value}), data, *rows) for rows in parts]
        for value in tried
    ]
    return figure.curve(name, tried, figures, data)


class _Data(NamedTuple):
    """All rows, and how to take some."""

    inputs: tuple[Rows, ...]
    several: bool  # whether the model takes a tuple
    y: Any
    targets: Rows
    per_step: bool

    @classmethod
    def of(cls, made: Any, x: Any, y: Any, lengths: Any) -> _Data:
        """Look at a model to know the layout of its data."""
        model, _ = _made(made)
        try:
            adapter = Adapter(model)
        except TypeError as error:
            raise TypeError(f"make_model: expected to return a model ({error})") from None
        inputs, several = adapter.inputs(x, lengths)
        targets = adapter.targets(y, inputs)
        return cls(inputs, several, y, targets, adapter.per_step)

    def take(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Return the arguments x, y and lengths of some rows."""
        x, lengths, _ = taken(self.inputs, rows, several=self.several)
        return {"x": x, "y": self.targets.take(rows)[0], "lengths": lengths}


class _Figure(NamedTuple):
    """What is trained and measured, the same for every point of a curve."""

    options: dict[str, Any]
    metric: Callable[[Any, Any], float] | None
    baseline: float | None
    perfect: float | None
    seed: int

    def measured(
        self, made: Any, data: _Data, train: NDArray[np.int64], held: NDArray[np.int64]
    ) -> tuple[float, float]:
        """Train a fresh model, and return its figures on the rows it saw and on the others."""
        model, own = _made(made)
        _check_options(own, _NOT_BY_ROWS)
        options = {"seed": self.seed, "progress": False} | self.options | own
        fit(model, **data.take(train), **options)
        metrics = None if self.metric is None else {"figure": self.metric}
        name = "loss" if self.metric is None else "figure"
        loss = options.get("loss", "cross_entropy")
        first, second = (
            evaluate(model, **data.take(rows), loss=loss, metrics=metrics)[name]
            for rows in (train, held)
        )
        return first, second

    def curve(self, name: str, values: tuple[Any, ...], figures: Any, data: _Data) -> Curve:
        """Return the figures (N, K, 2) as a curve."""
        both = np.array(figures, np.float64)
        loss = self.metric is None
        label = "loss" if loss else getattr(self.metric, "__name__", "metric")
        perfect = self.perfect if self.perfect is not None else 0.0 if loss else 1.0
        base, kind = self.baseline, self.options.get("loss", "cross_entropy")
        if base is None and loss and isinstance(kind, str) and not data.per_step:
            base = constant_loss(data.y, kind)
        return Curve(name, values, both[..., 0], both[..., 1], label, base, perfect)


#: Options of ``fit`` that belong to one model or to certain rows, not to a whole study.
_NOT_BY_ROWS = ("sample_weight", "checkpoint", "resume")


def _check_options(options: dict[str, Any], refused: tuple[str, ...]) -> None:
    """Refuse options that cannot be shared by many trainings."""
    for name in refused:
        if name in options:
            hint = " (make_model may return one, made for its model)" if name == "optimizer" else ""
            raise ValueError(f"{name}: expected none for many trainings, got one{hint}")


def _made(made: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model and its own options for ``fit``."""
    if not isinstance(made, tuple):
        return made, {}
    if len(made) != 2 or not isinstance(made[1], dict):
        raise TypeError("make_model: expected a model, or a pair of a model and a dict of options")
    return made[0], made[1]


def _folds(folds: Any, data: _Data, seed: int) -> list[Split]:
    """Make folds, or check those that came."""
    if isinstance(folds, (int, np.integer)) and not isinstance(folds, bool):
        classes = None if data.per_step else np.asarray(data.y)
        stratify = classes is not None and classes.ndim == 1 and classes.dtype.kind in "iu"
        return k_fold(
            data.targets.count, int(folds), seed=seed, stratify=classes if stratify else None
        )
    parts = []
    for place, pair in enumerate(folds):
        if len(pair) != 2:
            raise ValueError(f"folds[{place}]: expected (train, validation), got {len(pair)} items")
        numbers = [as_integer_array(f"folds[{place}]", part).reshape(-1) for part in pair]
        for part in numbers:
            check_range(f"folds[{place}]", part, 0, data.targets.count - 1, "B - 1")
            if not part.size:
                raise ValueError(f"folds[{place}]: expected rows in both parts, got none")
        parts.append((numbers[0], numbers[1]))
    if not parts:
        raise ValueError("folds: expected at least one pair, got none")
    return parts


def _sizes(sizes: Sequence[float], most: int) -> tuple[int, ...]:
    """Return numbers of rows, of which a fold has at most so many."""
    rows = []
    for place, size in enumerate(sizes):
        name = f"sizes[{place}]"
        whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        number = as_real(name, size)
        if not whole and not 0 < number <= 1:
            raise ValueError(f"{name}: expected a share above 0, at most 1, got {as_text(size)}")
        n = int(number) if whole else max(round(number * most), 1)
        if not 1 <= n <= most:
            raise ValueError(f"{name}: expected 1 <= rows <= {most} (a fold has no more), got {n}")
        rows.append(n)
    if not rows:
        raise ValueError("sizes: expected at least one, got none")
    return tuple(rows)


# ---- Folds ---------------------------------------------------------------------------------------


def k_fold(
    n: int,
    folds: int = 5,
    *,
    seed: int | None = 0,
    groups: ArrayLike | None = None,
    stratify: ArrayLike | None = None,
) -> list[Split]:
    """Split rows into folds: each is the validation part once, the others the training part.

    The result is row numbers and no data, because rows are the second axis here and may be ragged:
    ``x[:, rows]``, ``lengths[rows]``. scikit-learn's splitters give such numbers too, and
    whatever takes ``folds`` here takes theirs as well; these few lines save the dependency in the
    common cases.

    Parameters
    ----------
    n
        B, the number of rows.
    folds : default 5
        How many, from 2 to B.
    seed : default 0
        Of the shuffling; None draws one.
    groups : default None
        (n,) of integers, bools or text: rows of one group (a speaker, a patient) stay in one fold.
        The largest groups are dealt first, each to the fold with the fewest rows.
    stratify : default None
        (n,) of integers, bools or text: every class is spread evenly over the folds.

    Returns
    -------
    list of (train, validation)
        Sorted row numbers.

    Raises
    ------
    TypeError
        If ``n`` or ``folds`` is no integer.
    ValueError
        If there are fewer rows or groups than folds, a shape is wrong, or both ``groups`` and
        ``stratify`` are given (scikit-learn's StratifiedGroupKFold weighs the two).

    Examples
    --------
    >>> import rnncore as rc
    >>> [list(map(int, held)) for _, held in rc.k_fold(6, 3, groups=[0, 0, 1, 2, 1, 2])]
    [[0, 1], [2, 4], [3, 5]]
    """
    rows, k = as_size("n", n), as_size("folds", folds)
    if not 2 <= k <= rows:
        raise ValueError(f"folds: expected 2 <= folds <= n = {rows}, got {k}")
    rng = np.random.default_rng(as_seed(seed))
    order = rng.permutation(rows)
    if groups is not None and stratify is not None:
        raise ValueError("stratify: expected None with groups, got both")
    fold = np.empty(rows, np.int64)
    if groups is not None:
        fold[:] = _fold_of_groups(_labels("groups", groups, rows), k, rng)
    else:
        if stratify is not None:
            # Classes one after the other, each in its shuffled order, dealt out like cards.
            order = order[np.argsort(_labels("stratify", stratify, rows)[order], kind="stable")]
        fold[order] = np.arange(rows) % k
    return [(np.flatnonzero(fold != part), np.flatnonzero(fold == part)) for part in range(k)]


def _labels(name: str, value: ArrayLike, rows: int) -> NDArray[np.int64]:
    """Turn the labels of rows, integers, bools or text, into numbers from 0."""
    labels = np.asarray(value)
    if labels.dtype.kind not in "biuUS":
        raise TypeError(f"{name}: expected integers, bools or text, got dtype {labels.dtype}")
    check_shape(name, labels, (rows,), "(n,)")
    numbers: NDArray[np.int64] = np.unique(labels, return_inverse=True)[1]
    return numbers


def _fold_of_groups(
    groups: NDArray[np.int64], folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the fold of every row, whole groups in one fold."""
    sizes = np.bincount(groups)
    if len(sizes) < folds:
        raise ValueError(f"groups: expected at least folds = {folds} groups, got {len(sizes)}")
    order = rng.permutation(len(sizes))
    fold_of, filled = np.empty(len(sizes), np.int64), np.zeros(folds, np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return fold_of[groups]


# ---- Gradients through time ----------------------------------------------------------------------


def gradient_norms(
    layer: RNN | LSTM | GRU | MGU,
    x: ArrayLike,
    state: Any = None,
    *,
    lengths: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Measure how much of a gradient is left after k steps back through time.

    For every row, the gradient v of its last h is drawn: a vector of length 1 in any direction. Of
    dL/dh_t = (dh_T/dh_t)' v, k = T - t steps earlier, the norm is taken, and over rows the root of
    the mean of squares. In the mean over v that is the Frobenius norm of the Jacobian dh_T/dh_t
    over the root of H. If it falls like a power of k the network cannot learn what lies that far
    back, if it grows like one the updates explode.

    Parameters
    ----------
    layer
        A recurrent layer of one direction. With several layers v is that of the last one.
    x : (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) unbatched
        The input.
    state : default None
        The initial state; None is zeros.
    lengths : (B,) of integers, default None
        Steps are counted back from each row's own last one.
    seed : default 0
        Of v.

    Returns
    -------
    dict
        As ``Gradients.state_grads``: ``{"l0": {"h": (K,)}}``, for LSTM "c" too. Entry k belongs to
        lag k; K is the greatest length, and rows that are shorter than a lag do not count there.
        float64.

    Raises
    ------
    TypeError
        If ``layer`` is no recurrent layer, or an argument of the wrong type.
    ValueError
        If the layer is bidirectional, or a shape is wrong.

    References
    ----------
    Hochreiter, Untersuchungen zu dynamischen neuronalen Netzen, 1991; Bengio, Simard and
    Frasconi, Learning long-term dependencies with gradient descent is difficult, 1994; Pascanu,
    Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013,
    arXiv:1211.5063.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> x = np.random.default_rng(0).standard_normal((50, 8, 4))
    >>> norms = rc.gradient_norms(rc.RNN(4, 16, dtype="float64", seed=0), x)["l0"]["h"]
    >>> norms.shape, float(norms[0].round(6)), bool(norms[49] < 0.01)
    ((50,), 1.0, True)
    """
    if not isinstance(layer, (RNN, LSTM, GRU, MGU)):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
    if layer.bidirectional:
        raise ValueError(
            "layer: expected one direction, as lags are counted back from the last step, "
            "got bidirectional=True"
        )
    _, final, tape = layer.forward(x, state, lengths=lengths, dropout=False)
    h = final[0] if isinstance(final, tuple) else final
    v = np.random.default_rng(as_seed(seed)).standard_normal(h.shape[1:])
    seeded = np.zeros_like(h)
    seeded[-1] = v / np.linalg.norm(v, axis=-1, keepdims=True)
    dstate = (seeded, None) if isinstance(final, tuple) else seeded
    g = layer.backward(tape, dstate=dstate, return_state_grads=True)
    assert g.state_grads is not None
    return {
        part: {name: _by_lag(grads, lengths, layer.batch_first) for name, grads in named.items()}
        for part, named in g.state_grads.items()
    }


def _by_lag(
    grads: NDArray[Any], lengths: ArrayLike | None, batch_first: bool
) -> NDArray[np.float64]:
    """Return the root mean square norm (K,) of gradients of states, by steps from the last one."""
    norms = np.linalg.norm(grads.astype(np.float64), axis=-1)
    norms = norms[:, None] if norms.ndim == 1 else norms.T if batch_first else norms  # (T, B)
    T, B = norms.shape
    last = (np.full(B, T) if lengths is None else as_lengths(lengths, T, B)) - 1
    times = last - np.arange(int(last.max(initial=-1)) + 1)[:, None]  # (K, B)
    squares = norms[np.maximum(times, 0), np.arange(B)] ** 2
    counted = times >= 0
    means = np.sum(squares, axis=1, where=counted) / counted.sum(axis=1)
    result: NDArray[np.float64] = np.sqrt(means)
    return result
