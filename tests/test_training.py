"""The training loop: what it computes, when it stops, what it leaves."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnncore as rc
from rnncore import training
from rnncore.batches import Rows

RNG = np.random.default_rng(7)
QUIET: dict[str, Any] = {"progress": False}


def classifier(seed: int = 0, *, dropout: float = 0.0, batch_first: bool = False) -> rc.Sequential:
    return rc.Sequential(
        {
            "gru": rc.GRU(2, 6, seed=seed, batch_first=batch_first, recurrent_dropout=dropout),
            "last": rc.Pooling("last", batch_first=batch_first),
            "head": rc.Linear(6, 3, seed=seed + 1),
        }
    )


def tagger(seed: int = 0, *, batch_first: bool = False) -> rc.Sequential:
    return rc.Sequential(
        {
            "lstm": rc.LSTM(2, 5, seed=seed, batch_first=batch_first),
            "head": rc.Linear(5, 3, seed=seed + 1),
        }
    )


def cases(count: int = 40) -> tuple[list[Any], Any]:
    """Rows of 3 to 8 steps; the class is where their sum lies."""
    rng = np.random.default_rng(3)
    x = [rng.standard_normal((n, 2)).astype(np.float32) for n in rng.integers(3, 9, count)]
    return x, np.digitize([float(row.sum()) for row in x], [-1.5, 1.5])


def same_bits(one: Any, two: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


def padded(x: list[Any], axis: int = 1) -> tuple[Any, Any]:
    array, lengths = Rows("x", x, axis=axis).take(np.arange(len(x)))
    return array, lengths


# ---- What it computes ----------------------------------------------------------------------------


def test_one_update_is_that_of_a_loop_by_hand() -> None:
    x, y = cases(12)
    array, lengths = padded(x)
    by_hand, by_fit = classifier(), classifier()
    optimizer = rc.SGD(by_hand, lr=0.1)
    for _ in range(3):
        logits, tape = by_hand.forward(array, lengths=lengths)
        loss, gradient = rc.softmax_cross_entropy(logits, y)
        gradients = by_hand.backward(tape, gradient)
        norm = rc.clip_grad_norm(gradients, 0.05)
        optimizer.step(gradients)
    history = rc.fit(
        by_fit,
        array,
        y,
        lengths=lengths,
        optimizer=rc.SGD(by_fit, lr=0.1),
        epochs=3,
        batch_size=12,
        clip_norm=0.05,
        bucket=False,
        shuffle=False,
        **QUIET,
    )
    assert same_bits(by_hand.params, by_fit.params)
    assert history.train_loss[-1] == loss
    assert history.grad_norm[-1] == norm
    assert len(history.update_loss) == 3


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("per_step", [False, True])
def test_lists_arrays_and_layouts_agree(batch_first: bool, per_step: bool) -> None:
    x, y = cases()
    axis = 0 if batch_first else 1
    make = tagger if per_step else classifier
    steps = [np.arange(len(row)) % 3 for row in x]
    results = []
    for as_list in (True, False):
        model = make(batch_first=batch_first)
        targets: Any = y
        if per_step:
            targets = steps if as_list else padded(steps, axis)[0]
        inputs, lengths = (x, None) if as_list else padded(x, axis)
        history = rc.fit(model, inputs, targets, lengths=lengths, epochs=2, batch_size=8, **QUIET)
        results.append((history.train_loss, dict(model.params)))
    assert results[0][0] == results[1][0]
    assert same_bits(results[0][1], results[1][1])


def test_the_mean_loss_does_not_depend_on_the_batches() -> None:
    x, _ = cases()
    y = [np.arange(len(row)) % 3 for row in x]
    model = tagger()
    whole = rc.evaluate(model, x, y, batch_size=100)["loss"]
    parts = rc.evaluate(model, x, y, batch_size=7)["loss"]
    still = rc.fit(
        model, x, y, optimizer=rc.SGD(model, lr=1e-30), epochs=1, batch_size=9, **QUIET
    ).train_loss[0]
    assert parts == pytest.approx(whole, rel=1e-6)
    assert still == pytest.approx(whole, rel=1e-6)
    array, lengths = padded(x)
    targets = padded(y)[0]
    exact, _ = rc.softmax_cross_entropy(model(array, lengths=lengths), targets, lengths=lengths)
    assert whole == pytest.approx(exact, rel=1e-6)


def test_weights_of_rows_and_ignored_targets_count() -> None:
    x, y = cases()
    weights = np.random.default_rng(0).random(len(y))
    weights[3] = 0.0
    model = classifier()
    array, lengths = padded(x)
    exact, _ = rc.softmax_cross_entropy(model(array, lengths=lengths), y, weights=weights)
    found = rc.evaluate(model, x, y, sample_weight=weights, batch_size=7)["loss"]
    assert found == pytest.approx(exact, rel=1e-6)
    steps = [np.where(np.arange(len(row)) % 2, -1, 1) for row in x]
    loss = partial(rc.softmax_cross_entropy, ignore_index=-1)
    tags = tagger()
    exact, _ = loss(tags(array, lengths=lengths), padded(steps)[0], lengths=lengths)
    assert rc.evaluate(tags, x, steps, loss=loss, batch_size=7)["loss"] == pytest.approx(exact)
    spread = rc.evaluate(tags, x, steps, loss=loss, sample_weight=np.full(len(x), 2.0))["loss"]
    assert spread == pytest.approx(exact)


def test_metrics_see_what_counts_alone() -> None:
    x, _ = cases()
    y = [np.full(len(row), 1) for row in x]
    seen = {}

    def metric(prediction: Any, target: Any) -> float:
        seen["shapes"] = prediction.shape, target.shape
        return float((target == 1).mean())

    found = rc.evaluate(tagger(), x, y, metrics={"ones": metric})
    count = sum(map(len, x))
    assert seen["shapes"] == ((count, 3), (count,))
    assert found["ones"] == 1.0


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse", "mae", "huber"])
def test_every_loss_by_name_learns(loss: str) -> None:
    x, y = cases()
    targets: Any = y if loss == "cross_entropy" else np.eye(3)[y]
    model = classifier()
    history = rc.fit(
        model, x, targets, loss=loss, optimizer=rc.Adam(model, lr=0.02), epochs=15, **QUIET
    )
    assert history.train_loss[-1] < 0.8 * history.train_loss[0]


def test_a_loss_of_yours_is_called_with_what_it_needs() -> None:
    x, y = cases()
    calls = []

    def loss(prediction: Any, target: Any, **options: Any) -> tuple[float, Any]:
        calls.append(sorted(options))
        return rc.softmax_cross_entropy(prediction, target)

    array = RNG.standard_normal((4, 10, 2))
    rc.fit(classifier(), array, np.arange(10) % 3, loss=loss, epochs=1, **QUIET)
    rc.fit(classifier(), x, y, loss=loss, epochs=1, batch_size=40, **QUIET)
    assert calls == [[], []]


# ---- Truncation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_truncation_carries_the_state_and_cuts_the_gradient(batch_first: bool) -> None:
    x, _ = cases(10)
    y = [np.arange(len(row)) % 3 for row in x]
    array, lengths = padded(x)
    targets, _ = padded(y)
    by_hand = tagger()
    optimizer = rc.SGD(by_hand, lr=0.2)
    state = None
    for start in range(0, len(array), 3):
        own = np.clip(lengths - start, 0, 3)
        own = np.minimum(own, len(array[start : start + 3]))
        logits, tape = by_hand.forward(array[start : start + 3], state, lengths=own)
        state = tape.state
        _, gradient = rc.softmax_cross_entropy(logits, targets[start : start + 3], lengths=own)
        optimizer.step(by_hand.backward(tape, gradient))
    model = tagger(batch_first=batch_first)
    rc.fit(
        model,
        x,
        y,
        optimizer=rc.SGD(model, lr=0.2),
        epochs=1,
        batch_size=10,
        truncate=3,
        bucket=False,
        shuffle=False,
        **QUIET,
    )
    for name, array in by_hand.params.items():
        assert np.allclose(array, model.params[name], rtol=1e-5, atol=1e-7)


def test_a_truncated_evaluation_is_the_whole_one() -> None:
    x, _ = cases(10)
    y = [np.arange(len(row)) % 3 for row in x]
    whole = rc.evaluate(tagger(), x, y)["loss"]
    assert rc.evaluate(tagger(), x, y, truncate=2)["loss"] == pytest.approx(whole, rel=1e-6)


# ---- When it stops, and what it leaves -----------------------------------------------------------


def test_early_stopping_restores_the_best_weights() -> None:
    x, y = cases()
    model = classifier()
    history = rc.fit(
        model,
        x[:20],
        y[:20],
        validation=(x[20:], y[20:]),
        optimizer=rc.Adam(model, lr=0.1),
        epochs=200,
        patience=5,
        **QUIET,
    )
    assert history.stopped == "patience"
    assert history.best_epoch == int(np.argmin(history.validation_loss))
    assert len(history.validation_loss) == history.best_epoch + 6
    assert rc.evaluate(model, x[20:], y[20:])["loss"] == pytest.approx(
        min(history.validation_loss), rel=1e-6
    )


def test_a_share_for_validation_is_left_out_of_the_training() -> None:
    x, y = cases()
    seen: set[float] = set()

    def spy(batch: Any, lengths: Any, rng: Any) -> tuple[Any, Any]:
        seen.update(batch[0, :, 0].tolist())
        return batch, lengths

    history = rc.fit(classifier(), x, y, validation=0.25, augment=spy, epochs=2, **QUIET)
    assert len(seen) == 30
    assert len(history.validation_loss) == 2
    assert history.stopped == "epochs"


def test_ctrl_c_keeps_the_best_so_far() -> None:
    x, y = cases()
    model = classifier()
    kept: list[dict[str, Any]] = []

    def interrupt(history: rc.History) -> None:
        kept.append({name: array.copy() for name, array in model.params.items()})
        if len(history.train_loss) == 3:
            raise KeyboardInterrupt

    history = rc.fit(model, x, y, optimizer=rc.Adam(model, lr=0.02), callback=interrupt, **QUIET)
    assert history.stopped == "interrupted"
    assert len(history.train_loss) == 3
    assert history.best_epoch is not None
    assert same_bits(model.params, kept[history.best_epoch])


def test_ctrl_c_in_the_first_epoch_leaves_the_weights_as_they_were() -> None:
    x, y = cases()
    model = classifier()
    before = {name: array.copy() for name, array in model.params.items()}

    def interrupt(batch: Any, lengths: Any, rng: Any) -> tuple[Any, Any]:
        if not same_bits(before, model.params):
            raise KeyboardInterrupt
        return batch, lengths

    history = rc.fit(model, x, y, batch_size=8, augment=interrupt, **QUIET)
    assert history.stopped == "interrupted"
    assert history.train_loss == []
    assert same_bits(model.params, before)


def test_a_loss_that_is_not_finite_is_named() -> None:
    x, y = cases()
    x[11] = np.full((4, 2), np.nan, np.float32)
    model = classifier()
    before = {name: array.copy() for name, array in model.params.items()}
    with pytest.raises(FloatingPointError, match=r"epoch 1, update \d+: the loss is nan"):
        rc.fit(model, x, y, batch_size=8, **QUIET)
    assert same_bits(model.params, before)


@pytest.mark.parametrize("clip", [{}, {"clip_value": 1.0}, {"clip_norm": 1.0}])
def test_a_gradient_that_is_not_finite_is_named(clip: dict[str, Any]) -> None:
    def loss(prediction: Any, target: Any) -> tuple[float, Any]:
        return 1.0, np.full_like(prediction, np.inf)

    x, y = RNG.standard_normal((4, 8, 2)), np.zeros(8, int)
    expected = r"epoch 1, update 1: the gradient of '\w+\.\w+' is (nan|inf)"
    with pytest.raises(FloatingPointError, match=expected):
        rc.fit(classifier(), x, y, loss=loss, **clip, **QUIET)


def test_callback_and_time_end_it() -> None:
    x, y = cases()
    stop = rc.fit(classifier(), x, y, callback=lambda h: len(h.train_loss) == 2, **QUIET)
    assert (stop.stopped, len(stop.train_loss)) == ("callback", 2)
    late = rc.fit(classifier(), x, y, max_seconds=1e-9, **QUIET)
    assert (late.stopped, len(late.train_loss)) == ("seconds", 1)


@pytest.mark.parametrize("every", ["epoch", "update"])
def test_schedules_step_as_told(every: Any) -> None:
    x, y = cases()
    model = classifier()
    history = rc.fit(
        model,
        x,
        y,
        optimizer=rc.Adam(model, lr=0.1),
        schedule=lambda optimizer: rc.StepLR(optimizer, 5, gamma=0.5),
        schedule_every=every,
        epochs=5,
        batch_size=8,
        **QUIET,
    )
    expected = [0.1] * 5 if every == "epoch" else [0.1 * 0.5**k for k in range(1, 6)]
    assert history.lr == pytest.approx(expected)


def test_a_plateau_sees_the_loss() -> None:
    x, y = cases()
    model = classifier()
    optimizer = rc.SGD(model, lr=1e-12)
    schedule = rc.WarmupLR(rc.ReduceLROnPlateau(optimizer, patience=0), 1)
    history = rc.fit(model, x, y, optimizer=optimizer, schedule=schedule, epochs=6, **QUIET)
    assert history.lr[-1] < history.lr[1]


# ---- Checkpoints ---------------------------------------------------------------------------------


def resumable(path: Path, epochs: int, *, resume: bool) -> tuple[rc.Sequential, rc.History]:
    x, y = cases()
    model = classifier(dropout=0.3)
    optimizer = rc.Adam(model, lr=0.05)
    history = rc.fit(
        model,
        x,
        y,
        optimizer=optimizer,
        schedule=rc.CosineLR(optimizer, 6),
        validation=0.25,
        metrics={"accuracy": lambda p, t: float((p.argmax(1) == t).mean())},
        epochs=epochs,
        batch_size=7,
        augment=rounded,
        checkpoint=path,
        resume=resume,
        **QUIET,
    )
    return model, history


def rounded(x: Any, lengths: Any, rng: Any) -> tuple[Any, Any]:
    return x + rng.normal(0, 0.1, x.shape).astype(x.dtype), lengths


def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole, history = resumable(tmp_path / "whole.safetensors", 6, resume=False)
    resumable(tmp_path / "part.safetensors", 2, resume=True)
    resumable(tmp_path / "part.safetensors", 3, resume=True)
    part, parts = resumable(tmp_path / "part.safetensors", 6, resume=True)
    assert same_bits(whole.params, part.params)
    for curve in ("train_loss", "validation_loss", "lr", "grad_norm", "update_loss"):
        assert getattr(history, curve) == getattr(parts, curve), curve
    assert history.metrics == parts.metrics
    assert history.best_epoch == parts.best_epoch
    finished, again = resumable(tmp_path / "part.safetensors", 6, resume=True)
    assert again.train_loss == history.train_loss
    assert same_bits(finished.params, whole.params)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    x, y = cases()
    rc.fit(classifier(), x, y, epochs=1, checkpoint=path, **QUIET)
    other = rc.Sequential(rc.GRU(2, 7, seed=0), rc.Pooling("last"), rc.Linear(7, 3, seed=1))
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match="does not fit"):
        rc.fit(other, x, y, epochs=2, checkpoint=path, resume=True, **QUIET)
    assert same_bits(before.params, other.params)


# ---- Predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_predictions_keep_the_order_of_the_rows(batch_first: bool) -> None:
    x, _ = cases()
    array, lengths = padded(x, 0 if batch_first else 1)
    tags = tagger(batch_first=batch_first)
    whole = tags(array, lengths=lengths)
    assert np.allclose(rc.predict(tags, array, lengths, batch_size=7), whole, atol=1e-6)
    for k, row in enumerate(rc.predict(tags, x, batch_size=7)):
        own = whole[k] if batch_first else whole[:, k]
        assert np.allclose(row, own[: len(x[k])], atol=1e-6)
    labels = classifier(batch_first=batch_first)
    expected = labels(array, lengths=lengths)
    assert np.allclose(rc.predict(labels, x, batch_size=7), expected, atol=1e-6)


# ---- Progress and printing -----------------------------------------------------------------------


def test_progress_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = cases()
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_LINES", 0.0)
    history = rc.fit(classifier(), x, y, validation=0.2, epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("epoch 1 | train ")
    assert err.count("validation") == 2
    assert repr(history).startswith("<History of 2 epochs, best validation loss ")
    assert repr(rc.History()) == "<History of 0 epochs>"


def test_the_same_seed_gives_the_same_bits_for_any_threads() -> None:
    x, y = cases()
    before = rc.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            rc.set_num_threads(threads)
            model = classifier(dropout=0.2)
            rc.fit(model, x, y, epochs=2, batch_size=8, **QUIET)
            results.append(dict(model.params))
    finally:
        rc.set_num_threads(before)
    assert same_bits(*results)


# ---- Bad input -----------------------------------------------------------------------------------

X, Y = np.zeros((4, 6, 2), np.float32), np.zeros(6, int)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": rc.GRU}, TypeError, "model: expected a Sequential"),
        ({"y": np.zeros(5, int)}, ValueError, "y: expected as many rows as x, 6, got 5"),
        ({"x": np.zeros((4, 0, 2)), "y": np.zeros(0, int)}, ValueError, "at least one row"),
        ({"loss": "hinge"}, ValueError, "loss: expected 'cross_entropy' or"),
        ({"loss": 3}, TypeError, "loss: expected a name or a callable"),
        ({"optimizer": "adam"}, TypeError, "optimizer: expected an optimizer"),
        ({"schedule": "cosine"}, TypeError, "schedule: expected a schedule"),
        ({"schedule_every": "day"}, ValueError, "schedule_every: expected 'epoch' or 'update'"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"truncate": 2}, ValueError, "truncate: expected None for a model that ends the steps"),
        ({"validation": 1.5}, ValueError, "validation: expected a share"),
        ({"validation": (X,)}, ValueError, r"validation: expected \(x, y\) or \(x, y, lengths\)"),
        ({"patience": 0}, ValueError, "patience"),
        ({"clip_norm": 0}, ValueError, "clip_norm: expected a number > 0 or None"),
        ({"clip_value": -1.0}, ValueError, "clip_value: expected a number > 0 or None"),
        ({"sample_weight": [1.0]}, ValueError, "sample_weight: expected shape"),
        ({"sample_weight": [-1.0] * 6}, ValueError, "sample_weight: expected finite numbers >= 0"),
        ({"lengths": [1, 2]}, ValueError, "lengths"),
        ({"resume": True}, ValueError, "resume: expected False without a checkpoint"),
        ({"shuffle": 1}, TypeError, "shuffle: expected True or False"),
        ({"x": (X, X), "lengths": ([1] * 6,)}, ValueError, "lengths: expected a tuple of 2"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    given = {"model": classifier(), "x": X, "y": Y, **QUIET, **arguments}
    with pytest.raises(error, match=match):
        rc.fit(given.pop("model"), given.pop("x"), given.pop("y"), **given)


def test_ragged_targets_must_have_the_steps_of_the_output() -> None:
    x, _ = cases()
    y = [np.zeros(len(row), int) for row in x]
    y[4] = y[4][:-1]
    with pytest.raises(ValueError, match=r"y\[4\]: expected \d steps, as the model gives"):
        rc.fit(tagger(), x, y, **QUIET)


def test_a_strided_convolution_in_front_is_accounted_for() -> None:
    x, _ = cases()
    model = rc.Sequential(
        rc.Conv1d(2, 4, 3, stride=2, seed=0), rc.GRU(4, 5, seed=1), rc.Linear(5, 3, seed=2)
    )
    steps = model.output_lengths([len(row) for row in x])
    y = [np.arange(n) % 3 for n in steps]
    history = rc.fit(model, x, y, epochs=2, batch_size=8, **QUIET)
    assert math.isfinite(history.train_loss[-1])
    assert [len(row) for row in rc.predict(model, x, batch_size=9)] == steps.tolist()
    with pytest.raises(ValueError, match="truncate: expected None for a model that changes"):
        rc.fit(model, x, y, truncate=2, **QUIET)
