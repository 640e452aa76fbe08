"""Verdicts, folds and gradients through time: held to numbers worked out by other means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnncore as rc
from rnncore.evaluation import LOSSES

CELLS: list[Any] = [rc.RNN, rc.LSTM, rc.GRU, rc.MGU]

# ---- The verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "validation", "word", "says"),
    [
        ([1.0, 0.5, 0.1], [1.0, 0.55, 0.15], "fine", "10 % is left in training and 15 % in"),
        ([1.0, 0.5, 0.1], [1.0, 0.55, 0.21], "over-fitting", "more data, augmentation, dropout"),
        ([1.0, 0.5, 0.1], [0.1, 0.1, 0.16], "over-fitting", "best at entry 1 of 3: stop earlier"),
        ([1.0, 0.9, 0.8], [1.0, 0.9, 0.85], "under-fitting", "still falling: train longer"),
        ([1.0, 0.8, 0.8], [1.0, 0.9, 0.9], "under-fitting", "a larger model, another learning"),
        ([1.0, 0.9, 0.8], [1.0, 0.9, 1.9], "under-fitting", ""),  # the first question comes first
        ([1.0, 0.9, 0.8], [1.0, 0.6, 0.4], "fine", ""),  # dropout makes training look poor
        ([1.0, np.nan], [1.0, 0.5], "diverged", "no longer finite"),
        ([1.0, 0.5], [1.0, np.inf], "diverged", "lower learning rate"),
    ],
)
def test_verdicts(train: list[float], validation: list[float], word: str, says: str) -> None:
    found = rc.verdict(train, validation)
    assert found.word == word
    assert says in found.advice
    assert str(found) == f"{word}: {found.advice}"
    np.testing.assert_equal([found.train, found.validation], [train[-1], validation[-1]])


def test_errors_are_shares_of_what_there_was_to_learn() -> None:
    loss = rc.verdict(0.5, 0.9, baseline=2.5, perfect=0.4)
    assert loss.train_error == pytest.approx(0.1 / 2.1)
    assert loss.validation_error == pytest.approx(0.5 / 2.1)
    assert loss.word == "over-fitting"
    score = rc.verdict([0.1, 0.7, 0.9], [0.1, 0.8, 0.7], baseline=0.1, perfect=1.0)
    assert score.train_error == pytest.approx(1 / 9)
    assert score.validation_error == pytest.approx(3 / 9)
    assert score.rise == pytest.approx(1 / 9)
    assert score.word == "over-fitting"
    assert "best at entry 2 of 3" in score.advice


def test_thresholds_and_the_entry_can_be_chosen() -> None:
    train, validation = [1.0, 0.4, 0.1, 0.0], [1.0, 0.5, 0.3, 0.6]
    words = [rc.verdict(train, validation, at=at).word for at in range(4)]
    assert words == ["under-fitting", "fine", "over-fitting", "over-fitting"]
    assert rc.verdict(train, validation, at=2).rise == 0.0
    assert rc.verdict(train, validation, at=2, gap=0.25).word == "fine"
    assert rc.verdict(train, validation, gap=1, rise=0.31).word == "fine"
    assert rc.verdict(train, validation, gap=1, rise=0.29).word == "over-fitting"
    assert rc.verdict(train, validation, at=1, poor=0.3).word == "under-fitting"
    assert rc.verdict(train, validation, at=-3) == rc.verdict(train, validation, at=1)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([], []), {}, ValueError, r"train: expected a number or shape \(N,\) with N >= 1"),
        (([[1.0]], [[1.0]]), {}, ValueError, r"train: .* got \(1, 1\)"),
        (([1.0, 0.5], [1.0]), {}, ValueError, r"validation: expected shape that of train = \(2,\)"),
        (("a", "b"), {}, TypeError, "train: expected real numbers"),
        ((1.0, 1.0), {}, ValueError, "baseline: expected the figure of a constant guess"),
        ((1.0, 1.0), {"baseline": 0.0}, ValueError, "baseline: expected another figure than"),
        ((1.0, 1.0), {"baseline": np.inf}, ValueError, "baseline: expected a finite number"),
        (([1.0, 0.5], [1.0, 0.5]), {"at": 2}, ValueError, "at: expected -2 <= at < N = 2, got 2"),
        (([1.0, 0.5], [1.0, 0.5]), {"at": 0.5}, TypeError, "at: expected an integer, got 0.5"),
        (([1.0, 0.5], [1.0, 0.5]), {"gap": -0.1}, ValueError, "gap: expected a number >= 0"),
        (([1.0, 0.5], [1.0, 0.5]), {"poor": np.nan}, ValueError, "poor: expected a number >= 0"),
        (([1.0, 0.5], [1.0, 0.5]), {"rise": "1"}, TypeError, "rise: expected a real number"),
    ],
)
def test_bad_curves_are_explained(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rc.verdict(*arguments, **options)


def test_the_constant_loss_is_that_of_the_best_constant() -> None:
    """Held to the losses themselves, at the best constant and beside it."""
    rng = np.random.default_rng(0)
    classes = rng.choice(4, 300, p=[0.5, 0.3, 0.2, 0.0])
    shares = np.bincount(classes, minlength=4) / 300
    with np.errstate(divide="ignore"):
        logits = np.broadcast_to(np.log(shares), (300, 4))
    expected = rc.softmax_cross_entropy(logits, classes)[0]
    assert rc.constant_loss(classes.reshape(3, 100)) == pytest.approx(expected)

    reals = rng.exponential(size=(5, 61, 2)) * [1.0, 3.0]
    for loss, function, middle in (
        ("mse", rc.mean_squared_error, reals.mean((0, 1))),
        ("mae", rc.mean_absolute_error, np.median(reals.reshape(-1, 2), 0)),
    ):
        figures = [
            function(np.broadcast_to(middle + nudge, reals.shape), reals)[0]
            for nudge in (0.0, 0.05, -0.05)
        ]
        assert rc.constant_loss(reals, loss) == pytest.approx(figures[0])
        assert figures[0] < min(figures[1:])

    # Huber's middle has no formula: no constant nearby may do better, and its loss is that found.
    found = [
        rc.huber(np.full((305, 1), guess), reals[..., k].reshape(-1, 1))[0]
        for k in range(2)
        for guess in np.linspace(0.0, 4.0, 4001)
    ]
    expected = np.reshape(found, (2, -1)).min(axis=1).mean()
    assert rc.constant_loss(reals, "huber") == pytest.approx(expected, rel=1e-6)
    assert rc.constant_loss([3.0, 3.0, 3.0], "huber") == 0.0
    wild = [0.0, 0.5, 1000.0]  # 0.75 + 0.25 - 1 = 0
    expected = rc.huber(np.full(3, 0.75), wild)[0]
    assert rc.constant_loss(wild, "huber") == pytest.approx(expected, rel=1e-12)

    ones = (rng.random((400, 2)) < [0.2, 0.7]).astype(float)
    p = ones.mean(0)
    constant = np.broadcast_to(np.log(p / (1 - p)), ones.shape)
    expected = rc.binary_cross_entropy_with_logits(constant, ones)[0]
    assert rc.constant_loss(ones, "binary_cross_entropy") == pytest.approx(expected)
    assert rc.constant_loss([1.0, 1.0], "binary_cross_entropy") == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "y: expected at least one target, got none"),
        (([0.5],), TypeError, "y: expected integers"),
        (([0, 1], "hinge"), ValueError, "loss: expected 'cross_entropy' or .* got 'hinge'"),
    ],
)
def test_a_constant_loss_needs_targets(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        rc.constant_loss(*arguments)


# ---- Folds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "folds"), [(10, 5), (11, 3), (7, 7), (2, 2)])
def test_every_row_is_held_out_once(n: int, folds: int) -> None:
    parts = rc.k_fold(n, folds)
    assert len(parts) == folds
    for train, held in parts:
        assert sorted([*train, *held]) == list(range(n))
        assert (np.diff(train) > 0).all()
        assert (np.diff(held) > 0).all()
        assert len(held) in (n // folds, -(-n // folds))
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(n))


def test_folds_are_shuffled_by_their_seed() -> None:
    def held(seed: int | None) -> list[list[int]]:
        return [h.tolist() for _, h in rc.k_fold(40, 4, seed=seed)]

    assert held(0) == held(0)
    assert held(0) != held(1)
    assert held(None) != held(None)


@pytest.mark.parametrize("kind", [np.int64, str, bool])
def test_stratified_folds_have_the_classes_evenly(kind: Any) -> None:
    labels = np.random.default_rng(0).choice(4, 103, p=[0.6, 0.25, 0.1, 0.05]).astype(kind)
    parts = rc.k_fold(103, 5, stratify=labels)
    for label in np.unique(labels):
        counts = [int((labels[held] == label).sum()) for _, held in parts]
        assert max(counts) - min(counts) <= 1
    sizes = [len(held) for _, held in parts]
    assert max(sizes) - min(sizes) <= 1


def test_groups_stay_together() -> None:
    rng = np.random.default_rng(1)
    groups = rng.choice([f"speaker {k}" for k in range(12)], 200)
    parts = rc.k_fold(200, 4, groups=groups)
    for train, held in parts:
        assert not set(groups[train]) & set(groups[held])
        assert len(train) + len(held) == 200
        assert 40 <= len(held) <= 60
    assert (
        len(
            {
                frozenset(held)
                for seed in range(5)
                for _, held in rc.k_fold(200, 4, seed=seed, groups=groups)
            }
        )
        > 4
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((5, 6), {}, ValueError, "folds: expected 2 <= folds <= n = 5, got 6"),
        ((5, 1), {}, ValueError, "folds: expected 2 <= folds <= n = 5, got 1"),
        ((0, 2), {}, ValueError, "n: expected a positive integer, got 0"),
        ((5, 2.0), {}, TypeError, "folds: expected a positive integer, got 2.0"),
        ((5, 2), {"groups": [1, 2]}, ValueError, r"groups: expected shape \(n,\) = \(5,\)"),
        ((5, 3), {"groups": [1, 1, 2, 2, 2]}, ValueError, "groups: expected at least folds = 3"),
        (
            (3, 2),
            {"stratify": [0.5, 1, 2]},
            TypeError,
            "stratify: expected integers, bools or text",
        ),
        (
            (2, 2),
            {"stratify": [0, 1], "groups": [0, 1]},
            ValueError,
            "stratify: expected None with",
        ),
        ((5, 2), {"seed": -1}, ValueError, "seed: expected an integer"),
    ],
)
def test_bad_folds_are_explained(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rc.k_fold(*arguments, **options)


# ---- Gradients through time ----------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape)


def test_norms_of_a_linear_recurrence_are_powers_of_its_matrix() -> None:
    """With relu far on the positive side h_T = U^k h_(T-k) + ..., whatever the input."""
    rnn = rc.RNN(2, 3, nonlinearity="relu", dtype="float64", seed=0)
    U = np.array([[0.9, 0.3, 0.0], [0.0, 0.8, 0.1], [0.2, 0.0, 0.7]])
    rnn.params["weight_hh_l0"] = U
    rnn.params["bias_ih_l0"][...] = 100.0
    norms = rc.gradient_norms(rnn, drawn(20, 1, 2), seed=5)["l0"]["h"]
    v = np.random.default_rng(5).standard_normal((1, 3))[0]
    v /= np.linalg.norm(v)
    expected = [np.linalg.norm(np.linalg.matrix_power(U.T, k) @ v) for k in range(20)]
    np.testing.assert_allclose(norms, expected, rtol=1e-12)
    # With orthogonal weights nothing is lost.
    rnn.params["weight_hh_l0"] = np.eye(3)[[1, 2, 0]]
    norms = rc.gradient_norms(rnn, drawn(20, 4, 2))["l0"]["h"]
    np.testing.assert_allclose(norms, 1.0, rtol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_norms_are_those_of_the_jacobian(cell: Any) -> None:
    """Over all directions v the mean of squares is the squared Frobenius norm over H."""
    layer = cell(2, 3, num_layers=2, dtype="float64", seed=1)
    x = drawn(6, 1, 2)
    _, _, tape = layer.forward(x)
    total: dict[str, dict[str, Any]] = {}
    for unit in np.eye(3):
        h = np.zeros((2, 1, 3))
        h[1] = unit
        dstate = (h, None) if cell is rc.LSTM else h
        g = layer.backward(tape, dstate=dstate, keep=True, return_state_grads=True)
        for part, named in g.state_grads.items():
            for name, array in named.items():
                squares = (array[:, 0] ** 2).sum(-1)[::-1]
                own = total.setdefault(part, {})
                own[name] = own.get(name, 0) + squares
    # Many rows, all alike, each with its own v.
    many = rc.gradient_norms(layer, np.repeat(x, 20_000, axis=1))
    assert list(many) == ["l0", "l1"]
    for part, named in total.items():
        assert list(many[part]) == list(named) == (["h", "c"] if cell is rc.LSTM else ["h"])
        for name, squares in named.items():
            np.testing.assert_allclose(many[part][name], np.sqrt(squares / 3), rtol=0.05)
    np.testing.assert_allclose(many["l1"]["h"][0], 1.0, rtol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_ragged_rows_count_from_their_own_end(cell: Any) -> None:
    layer = cell(2, 3, dtype="float64", seed=2)
    x, lengths = drawn(7, 4, 2), [3, 7, 0, 5]
    x[np.arange(7)[:, None] >= lengths] = np.nan
    norms = rc.gradient_norms(layer, x, lengths=lengths)
    rows = [
        rc.gradient_norms(layer, x[:n], lengths=[n if b == row else 0 for b in range(4)])
        for row, n in enumerate(lengths)
        if n
    ]
    for name, together in norms["l0"].items():
        assert together.shape == (7,)
        for k in range(7):
            alone = [r["l0"][name][k] for r in rows if len(r["l0"][name]) > k]
            assert together[k] == pytest.approx(np.sqrt(np.mean(np.square(alone))), rel=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_layouts_and_states(cell: Any) -> None:
    layer, turned = cell(2, 3, seed=2), cell(2, 3, batch_first=True, seed=2)
    x = drawn(6, 4, 2)
    state: Any = drawn(1, 4, 3, seed=1)
    state = (state, state) if cell is rc.LSTM else state
    norms = rc.gradient_norms(layer, x, state)
    np.testing.assert_equal(rc.gradient_norms(turned, x.swapaxes(0, 1), state), norms)
    assert not np.array_equal(rc.gradient_norms(layer, x)["l0"]["h"], norms["l0"]["h"])
    one = rc.gradient_norms(layer, x[:, 0])
    np.testing.assert_equal(rc.gradient_norms(layer, x[:, :1]), one)
    np.testing.assert_equal(rc.gradient_norms(turned, x[:, 0]), one)
    assert norms["l0"]["h"].dtype == np.float64
    assert rc.gradient_norms(layer, np.zeros((0, 4, 2)))["l0"]["h"].shape == (0,)
    assert rc.gradient_norms(layer, np.zeros((6, 0, 2)))["l0"]["h"].shape == (0,)


def test_gates_keep_a_gradient_that_a_vanilla_cell_loses() -> None:
    """With the forget gate open, as initialised, and orthogonal weights made smaller."""
    x = drawn(100, 16, 4)
    left = {}
    for cell in (rc.RNN, rc.LSTM, rc.GRU):
        layer = cell(4, 32, dtype="float64", seed=0)
        if cell is rc.LSTM:
            layer.params["bias_ih_l0"][32:64] = 4.0
        if cell is rc.GRU:
            layer.params["bias_ih_l0"][32:64] = 4.0
        left[cell.__name__] = rc.gradient_norms(layer, x)["l0"]["h"][99]
    assert left["RNN"] < 1e-8
    assert min(left["LSTM"], left["GRU"]) > 1e-3


def test_dropout_does_not_act_and_no_call_is_counted() -> None:
    layer = rc.GRU(2, 3, recurrent_dropout=0.5, seed=0)
    np.testing.assert_equal(
        rc.gradient_norms(layer, drawn(5, 2, 2)), rc.gradient_norms(layer, drawn(5, 2, 2))
    )
    assert layer.call_number == 0


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (rc.Linear(2, 3, seed=0), TypeError, "layer: expected a recurrent layer, got Linear"),
        (rc.GRU(2, 3, bidirectional=True, seed=0), ValueError, "layer: expected one direction"),
    ],
)
def test_layers_without_lags_are_refused(layer: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        rc.gradient_norms(layer, drawn(5, 2, 2))


def test_verdict_numbers_are_plain_floats() -> None:
    found = rc.verdict(*np.array([[1.0, 0.5], [1.0, 0.5]], "float32"))
    assert all(type(value) is float for value in found[1:6])


# ---- Curves --------------------------------------------------------------------------------------


def accuracy(prediction: Any, target: Any) -> float:
    return float((prediction.argmax(-1) == target).mean())


def signs(rows: int = 48, steps: int = 5, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sequences (T, B, 2) and whether the first feature is positive in the mean."""
    x = drawn(steps, rows, 2, seed=seed)
    return x, (x[..., 0].mean(axis=0) > 0).astype(np.int64)


def classifier(units: int = 4, batch_first: bool = False) -> rc.Sequential:
    return rc.Sequential(
        rc.GRU(2, units, batch_first=batch_first, seed=0),
        rc.Pooling("last", batch_first=batch_first),
        rc.Linear(units, 2, seed=1),
    )


OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 8}


def test_a_learning_curve_is_many_trainings() -> None:
    """Held to ``fit`` and ``evaluate`` called by hand, for folds given and sizes of both kinds."""
    x, y = signs()
    folds = [(np.arange(30), np.arange(30, 48)), (np.arange(18, 48), np.arange(18))]
    curve = rc.diagnosis.learning_curve(
        classifier, x, y, sizes=(10, 0.5, 1.0), folds=folds, seed=3, **OPTIONS
    )
    assert (curve.name, curve.figure, curve.perfect) == ("rows", "loss", 0.0)
    assert curve.values == (10, 15, 30)
    assert curve.baseline == rc.constant_loss(y)
    rng = np.random.default_rng(3)
    for k, (train, held) in enumerate(folds):
        order = rng.permutation(train)
        for place, n in enumerate(curve.values):
            model, rows = classifier(), order[:n]
            rc.fit(model, x[:, rows], y[rows], seed=3, progress=False, **OPTIONS)
            for figures, part in ((curve.train, rows), (curve.validation, held)):
                expected = rc.evaluate(model, x[:, part], y[part])["loss"]
                assert figures[place, k] == pytest.approx(expected, rel=1e-6)


def test_a_validation_curve_varies_one_setting() -> None:
    """Of the model, and of the optimizer, which comes with the model."""
    x, y = signs()
    folds = rc.k_fold(48, 3, seed=5, stratify=y)

    def make(rate: float) -> tuple[rc.Sequential, dict[str, Any]]:
        model = classifier()
        return model, {"optimizer": rc.Adam(model, lr=rate), "epochs": 6}

    curve = rc.diagnosis.validation_curve(
        make, "rate", iter([1e-6, 0.03]), x, y, folds=3, metric=accuracy, seed=5, **OPTIONS
    )
    assert (curve.name, curve.figure, curve.perfect) == ("rate", "accuracy", 1.0)
    assert curve.values == (1e-6, 0.03)
    assert curve.baseline is None
    assert curve.best == 1
    for place, rate in enumerate(curve.values):
        for k, (train, held) in enumerate(folds):
            model, own = make(rate)
            rc.fit(model, x[:, train], y[train], seed=5, progress=False, batch_size=8, **own)
            assert curve.train[place, k] == accuracy(model(x[:, train]), y[train])
            assert curve.validation[place, k] == accuracy(model(x[:, held]), y[held])


@pytest.mark.parametrize("kind", ["list", "lengths", "batch_first", "per_step", "several"])
def test_rows_are_taken_from_every_form_of_data(kind: str) -> None:
    """All forms of the same data give the figures of the plain one."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 6, 30)
    x, _ = signs(30)
    x[np.arange(5)[:, None] >= lengths] = 0.0
    y = np.array([x[: lengths[b], b, 0].mean() > 0 for b in range(30)]).astype(int)
    options: dict[str, Any] = {"sizes": (0.5, 1.0), "folds": 3, **OPTIONS}
    plain = rc.diagnosis.learning_curve(classifier, x, y, lengths=lengths, **options)
    if kind == "list":
        rows = [x[: lengths[b], b] for b in range(30)]
        other = rc.diagnosis.learning_curve(classifier, rows, y, **options)
    elif kind == "batch_first":
        other = rc.diagnosis.learning_curve(
            lambda: classifier(batch_first=True), x.swapaxes(0, 1), y, lengths=lengths, **options
        )
    elif kind == "per_step":
        cut = rc.diagnosis.learning_curve(
            lambda: rc.Sequential(rc.GRU(2, 3, seed=0), rc.Linear(3, 2, seed=0)),
            [x[: lengths[b], b] for b in range(30)],
            [(x[: lengths[b], b, 0] > 0).astype(int) for b in range(30)],
            **options,
        )
        assert cut.baseline is None
        assert (cut.train[1] < 0.7).all()
        with pytest.raises(ValueError, match="baseline: expected the figure of a constant guess"):
            cut.verdicts()
        assert len(cut.verdicts(0.7)) == 2
        return
    elif kind == "several":

        class Pair:
            """Two inputs, the second of which does not matter."""

            def __init__(self) -> None:
                self._inner = classifier()

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

            def __call__(self, x: Any, lengths: Any = None) -> Any:
                return self._inner(x[0], lengths=None if lengths is None else lengths[0])

            def forward(self, x: Any, lengths: Any = None) -> Any:
                return self._inner.forward(x[0], lengths=None if lengths is None else lengths[0])

            def output_lengths(self, lengths: Any) -> Any:
                return self._inner.output_lengths(lengths[0])

        other = rc.diagnosis.learning_curve(
            Pair, (x, drawn(2, 30, 1)), y, lengths=(lengths, None), **options
        )
    else:
        other = rc.diagnosis.learning_curve(classifier, x, y, lengths=lengths.tolist(), **options)
    np.testing.assert_allclose(other.train, plain.train, rtol=1e-5)
    np.testing.assert_allclose(other.validation, plain.validation, rtol=1e-5)


def baseline(x: Any, reals: Any, loss: str) -> float | None:
    """Return the baseline of a curve of a small regressor."""
    curve = rc.diagnosis.learning_curve(
        lambda: rc.Sequential(rc.RNN(2, 3, seed=0), rc.Pooling("mean"), rc.Linear(3, 1, seed=0)),
        x, reals, sizes=(1.0,), folds=3, loss=loss, epochs=1,
    )  # fmt: skip
    return curve.baseline


def test_folds_of_classes_are_stratified_and_others_are_not() -> None:
    """Seen in what training is given: a rare class that is in every fold."""
    x, _ = signs(30)
    seen: list[int] = []

    def count(prediction: Any, target: Any) -> float:
        seen.append(int((target == 1).sum()))
        return 0.0

    y = np.array([1] * 3 + [0] * 27)
    rc.diagnosis.learning_curve(
        classifier, x, y, sizes=(1.0,), folds=3, metric=count, epochs=1, batch_size=30
    )
    assert seen == [2, 1] * 3
    reals = drawn(30, 1)
    assert baseline(x, reals, "mse") == rc.constant_loss(reals, "mse")


def test_every_named_loss_of_fit_has_a_constant_and_so_a_baseline() -> None:
    y: dict[str, Any] = {"cross_entropy": [0, 1, 1], "binary_cross_entropy": [0.0, 1.0, 1.0]}
    for loss in LOSSES:
        assert rc.constant_loss(y.get(loss, [0.0, 2.5, 5.0]), loss) > 0
    reals = drawn(12, 1)
    assert baseline(signs(12)[0], reals, "huber") == rc.constant_loss(reals, "huber")


def test_every_value_of_a_curve_has_a_verdict() -> None:
    train = np.array([[0.9, 0.9], [0.1, 0.3], [0.0, 0.0]])
    held = np.array([[0.9, 1.1], [0.2, 0.3], [0.4, 0.6]])
    curve = rc.diagnosis.Curve("units", (1, 8, 64), train, held, baseline=1.0)
    words = ["under-fitting", "fine", "over-fitting"]
    assert [found.word for found in curve.verdicts()] == words
    assert [found.word for found in curve.verdicts(gap=0.6)] == ["under-fitting", "fine", "fine"]
    assert curve.verdicts(poor=0.0, gap=9.0)[1].word == "under-fitting"
    assert curve.verdicts(10.0)[0].train_error == pytest.approx(0.09)
    assert curve.best == 1


def study(**changes: Any) -> Any:
    x, y = signs(12)
    return rc.diagnosis.learning_curve(**{"make_model": classifier, "x": x, "y": y, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sizes": ()}, ValueError, "sizes: expected at least one, got none"),
        ({"sizes": (0.0,)}, ValueError, r"sizes\[0\]: expected a share above 0, at most 1, got 0"),
        ({"sizes": (1.5,)}, ValueError, r"sizes\[0\]: expected a share above 0, at most 1, got 1"),
        ({"sizes": (1, 100)}, ValueError, r"sizes\[1\]: expected 1 <= rows <= 9 .* got 100"),
        ({"sizes": ("a",)}, TypeError, r"sizes\[0\]: expected a real number"),
        ({"folds": 1}, ValueError, "folds: expected 2 <= folds <= n = 12, got 1"),
        ({"folds": []}, ValueError, "folds: expected at least one pair, got none"),
        ({"folds": [([0], [1], [2])]}, ValueError, r"folds\[0\]: expected \(train, validation\)"),
        ({"folds": [([0], [12])]}, ValueError, r"folds\[0\]: expected 0 <= value <= B - 1 = 11"),
        ({"folds": [([0], [])]}, ValueError, r"folds\[0\]: expected rows in both parts"),
        ({"y": np.zeros(3, int)}, ValueError, "y: expected as many rows as x, 12, got 3"),
        ({"optimizer": 1}, ValueError, "optimizer: expected none for many trainings, got one"),
        ({"sample_weight": 1}, ValueError, "sample_weight: expected none for many trainings"),
        ({"checkpoint": "a"}, ValueError, "checkpoint: expected none for many trainings"),
        ({"make_model": lambda: (1, 2)}, TypeError, "make_model: expected a model, or a pair"),
        ({"make_model": lambda: 3}, TypeError, "make_model: expected to return a model"),
        ({"epochs": 0}, ValueError, "epochs: expected a positive integer"),
        (
            {"make_model": lambda: (classifier(), {"resume": True})},
            ValueError,
            "resume: expected none for many trainings",
        ),
    ],
)
def test_bad_studies_are_explained(changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        study(**changes)


@pytest.mark.parametrize(
    ("name", "values", "error", "message"),
    [
        (3, [1], TypeError, "name: expected text, got 3"),
        ("units", [], ValueError, "values: expected at least one, got none"),
    ],
)
def test_bad_settings_are_explained(name: Any, values: Any, error: Any, message: str) -> None:
    x, y = signs(12)
    with pytest.raises(error, match=message):
        rc.diagnosis.validation_curve(classifier, name, values, x, y)


def test_a_history_gives_its_verdict_and_picture() -> None:
    x, y = signs()
    history = rc.fit(classifier(), x, y, validation=0.25, progress=False, epochs=5, batch_size=8)
    base = rc.constant_loss(y)
    at = history.best_epoch
    assert at is not None
    found = history.verdict(baseline=base)
    curves = history.train_loss, history.validation_loss
    assert found == rc.verdict(*curves, baseline=base, at=at)
    ax = history.plot()
    assert [line.get_label() for line in ax.lines][-1] == f"best epoch: {at + 1}"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.train_loss)
