"""The training loop: what it computes, when it stops, what it leaves."""

from __future__ import annotations

import _thread
import copy
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnncore as rc
from rnncore import progress
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


def accuracy(prediction: Any, target: Any) -> float:
    return float((prediction.argmax(1) == target).mean())


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


@pytest.mark.parametrize("listed", [False, True])
def test_yes_and_no_may_be_bools(listed: bool) -> None:
    x, y = cases()
    bools = np.eye(3)[y] > 0
    given: Any = [row.tolist() for row in bools] if listed else bools
    found = rc.evaluate(classifier(), x, given, loss="binary_cross_entropy")
    assert found == rc.evaluate(classifier(), x, np.eye(3)[y], loss="binary_cross_entropy")
    loss = partial(rc.binary_cross_entropy_with_logits, pos_weight=2.0)
    assert rc.fit(classifier(), x, given, loss=loss, epochs=1, **QUIET).stopped == "epochs"
    with pytest.raises(TypeError, match="y.*: expected real numbers, got bool"):
        rc.fit(classifier(), x, given, loss="mse", **QUIET)


def test_an_error_of_the_loss_says_that_it_is_about_y() -> None:
    with pytest.raises(ValueError, match="targets: expected 0 <= value <= K - 1") as caught:
        rc.fit(classifier(), X, np.full(6, 3), **QUIET)
    assert "in the loss, whose targets are a batch of y" in caught.value.__notes__
    with pytest.raises(ValueError, match="target: expected shape of prediction") as caught:
        rc.evaluate(classifier(), X, np.zeros((6, 2)), loss="mse")
    assert "in the loss, whose targets are a batch of y" in caught.value.__notes__


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


def language_model() -> rc.Sequential:
    return rc.Sequential(
        {
            "in": rc.Embedding(5, 4, seed=0),
            "gru": rc.GRU(4, 6, seed=1),
            "out": rc.Linear(6, 5, seed=2),
        }
    )


def test_streams_are_read_from_one_end_to_the_other() -> None:
    codes = np.random.default_rng(0).integers(0, 5, (41, 3))
    by_hand, model = language_model(), language_model()
    optimizer = rc.Adam(by_hand, lr=0.01)
    for _ in range(2):
        state = None
        for start in range(0, 40, 16):
            x, y = codes[start : min(start + 16, 40)], codes[start + 1 : start + 17]
            logits, tape = by_hand.forward(x, state)
            state = tape.state
            optimizer.step(by_hand.backward(tape, rc.softmax_cross_entropy(logits, y)[1]))
    history = rc.fit(
        model, codes[:-1], codes[1:], optimizer=rc.Adam(model, lr=0.01), epochs=2,
        batch_size=8, shuffle=False, truncate=16, **QUIET,
    )  # fmt: skip
    assert len(history.update_loss) == 6
    assert same_bits(by_hand.params, model.params)


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


def test_ctrl_c_in_the_first_epoch_leaves_what_has_been_learnt() -> None:
    x, y = cases()
    model = classifier()
    left: list[dict[str, Any]] = []

    def interrupt(batch: Any, lengths: Any, rng: Any) -> tuple[Any, Any]:
        left.append({name: array.copy() for name, array in model.params.items()})
        if len(left) == 4:
            raise KeyboardInterrupt
        return batch, lengths

    history = rc.fit(model, x, y, batch_size=8, augment=interrupt, **QUIET)
    assert history.stopped == "interrupted"
    assert history.train_loss == []
    assert history.best_epoch is None
    assert len(history.update_loss) == 3
    assert same_bits(model.params, left[-1])
    assert not same_bits(model.params, left[0])


@pytest.fixture
def _ctrl_c_raises() -> Iterator[None]:
    """See to it that SIGINT raises, which a shell may have turned off for what it runs behind."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_raises")
@pytest.mark.parametrize("delay", np.geomspace(0.0005, 0.3, 12).tolist())
def test_ctrl_c_at_any_point_leaves_the_best_weights_so_far(delay: float, tmp_path: Path) -> None:
    x, y = cases()
    model = classifier()
    timer = threading.Timer(delay, _thread.interrupt_main)

    def begin(batch: Any, lengths: Any, rng: Any) -> tuple[Any, Any]:
        if timer.ident is None:
            timer.start()
        return batch, lengths

    history = rc.fit(
        model,
        x[:20],
        y[:20],
        validation=(x[20:], y[20:]),
        optimizer=rc.Adam(model, lr=0.05),
        metrics={"accuracy": accuracy},
        epochs=10**6,
        max_seconds=60,  # an interrupt that gets lost is a failure and not an endless run
        batch_size=4,
        augment=begin,
        checkpoint=tmp_path / "c.safetensors",
        **QUIET,
    )
    timer.join()
    assert history.stopped == "interrupted"
    curves = [history.validation_loss, history.lr, history.seconds, *history.metrics.values()]
    assert {len(curve) for curve in curves} == {len(history.train_loss)}
    if history.best_epoch is not None:
        assert history.validation_loss[history.best_epoch] == min(history.validation_loss)
        found = rc.evaluate(model, x[20:], y[20:])["loss"]
        assert found == history.validation_loss[history.best_epoch]


@pytest.mark.parametrize("validation", [None, 0.25])
def test_a_loss_that_is_not_finite_is_named_with_its_row(validation: float | None) -> None:
    x, y = cases()
    x[11] = np.full((4, 2), np.nan, np.float32)
    model = classifier()
    before = {name: array.copy() for name, array in model.params.items()}
    expected = r"epoch 1, update \d+: the loss is nan, as x holds nan in row 11 \("
    with pytest.raises(FloatingPointError, match=expected):
        rc.fit(model, x, y, batch_size=8, validation=validation, seed=1, **QUIET)
    assert same_bits(model.params, before)
    expected = r"epoch 1, update 2: the validation loss is nan, as x holds nan in row 11 \("
    with pytest.raises(FloatingPointError, match=expected):
        rc.fit(model, x[12:], y[12:], batch_size=14, validation=(x, y), **QUIET)


def test_a_target_that_is_not_finite_is_named_with_its_row() -> None:
    x, y = cases()
    targets = np.eye(3)[y]
    targets[5, 1] = np.inf
    with pytest.raises(FloatingPointError, match=r"the loss is inf, as y holds inf in row 5"):
        rc.fit(classifier(), x, targets, loss="mse", batch_size=8, **QUIET)


def test_a_parameter_that_is_not_finite_is_named() -> None:
    x, y = cases()
    model = classifier()
    kept: dict[str, Any] = {}

    def spoil(history: rc.History) -> None:
        kept.update({name: array.copy() for name, array in model.params.items()})
        model.params["gru.bias_hh_l0"][2] = np.inf

    expected = r"epoch 2, update 10: the parameter 'gru.bias_hh_l0' has become inf"
    with pytest.raises(FloatingPointError, match=expected):
        rc.fit(model, x, y, batch_size=8, callback=spoil, **QUIET)
    assert same_bits(model.params, kept)

    def loss(prediction: Any, target: Any) -> tuple[float, Any]:
        return 1.0, np.full_like(prediction, 1e30)

    one = classifier()
    with pytest.raises(FloatingPointError, match=r"update 1: the parameter '\S+' has become -?inf"):
        rc.fit(one, x, y, loss=loss, optimizer=rc.SGD(one, 1e30), batch_size=40, **QUIET)


@pytest.mark.parametrize("clip", [{}, {"clip_value": 1.0}, {"clip_norm": 1.0}])
def test_a_gradient_that_is_not_finite_is_named(clip: dict[str, Any]) -> None:
    def loss(prediction: Any, target: Any) -> tuple[float, Any]:
        return 1.0, np.full_like(prediction, np.inf)

    x, y = RNG.standard_normal((4, 8, 2)), np.zeros(8, int)
    expected = r"epoch 1, update 1: the gradient of '\w+\.\w+' is (nan|inf)"
    with pytest.raises(FloatingPointError, match=expected):
        rc.fit(classifier(), x, y, loss=loss, **clip, **QUIET)


def test_the_best_weights_are_the_lowest_though_patience_wants_more() -> None:
    x, y = cases()
    model = classifier()
    history = rc.fit(
        model,
        x[:20],
        y[:20],
        validation=(x[20:], y[20:]),
        patience=4,
        min_delta=0.05,
        **QUIET,
    )
    curve = history.validation_loss
    assert history.stopped == "patience"
    assert history.best_epoch == int(np.argmin(curve))
    assert rc.evaluate(model, x[20:], y[20:])["loss"] == min(curve)
    # No entry of the last four is 0.05 below the one that was such a step down.
    assert len(curve) == 5
    assert min(curve) < curve[0]


def test_time_ends_it_within_an_epoch(tmp_path: Path) -> None:
    x, y = cases()
    path = tmp_path / "c.safetensors"
    model = classifier()

    def slow(batch: Any, lengths: Any, rng: Any) -> tuple[Any, Any]:
        time.sleep(0.02)
        return batch, lengths

    history = rc.fit(
        model, x, y, validation=0.5, batch_size=1, augment=slow, max_seconds=0.05,
        checkpoint=path, **QUIET,
    )  # fmt: skip
    assert history.stopped == "seconds"
    assert 1 <= len(history.update_loss) < 20
    assert len(history.train_loss) == len(history.validation_loss) == 1
    assert not path.exists()


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


# ---- Which parameters, how much ------------------------------------------------------------------


def test_an_optimizer_of_one_layer_leaves_the_others_alone() -> None:
    x, y = cases()
    model = classifier()
    before = {name: array.copy() for name, array in model.params.items()}
    only = {"head": model.layers["head"]}
    history = rc.fit(model, x, y, optimizer=rc.Adam(only, lr=0.05), epochs=5, **QUIET)
    assert history.train_loss[-1] < history.train_loss[0]
    for name, array in model.params.items():
        assert np.array_equal(array, before[name]) == name.startswith("gru"), name


def test_an_optimizer_may_have_names_of_its_own(tmp_path: Path) -> None:
    x, y = cases()
    models = [classifier(), classifier()]
    layers = models[1].layers
    named = [models[0], {"a": layers["gru"], "b": layers["head"]}]
    histories = [
        rc.fit(model, x, y, optimizer=rc.Adam(tree), clip_norm=0.1, epochs=2, **QUIET)
        for model, tree in zip(models, named, strict=True)
    ]
    assert histories[0].train_loss == histories[1].train_loss
    assert same_bits(models[0].params, models[1].params)
    other = {"a": layers["gru"], "gru": classifier().layers["gru"]}
    with pytest.raises(ValueError, match="got one of another 'gru.weight_ih_l0'"):
        rc.fit(models[1], x, y, optimizer=rc.Adam(other), **QUIET)


def test_a_plateau_of_updates_sees_the_loss_of_each() -> None:
    x, y = cases()
    model = classifier()
    optimizer = rc.SGD(model, lr=0.1)
    seen: list[float] = []

    class Spy(rc.ReduceLROnPlateau):
        def step(self, metric: Any = None) -> None:
            seen.append(metric)
            super().step(metric)

    history = rc.fit(
        model, x, y, optimizer=optimizer, schedule=Spy(optimizer), schedule_every="update",
        validation=0.2, epochs=2, **QUIET,
    )  # fmt: skip
    assert seen == history.update_loss


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_weights_of_rows_count_beyond_their_batch(batch_size: int) -> None:
    """Over an epoch of tiny steps the weights move along the gradient of the weighted mean."""
    x, y = cases()
    weights = np.random.default_rng(0).exponential(size=len(y))
    model = rc.Sequential(
        rc.GRU(2, 4, seed=0, dtype="float64"),
        rc.Pooling("last"),
        rc.Linear(4, 3, seed=1, dtype="float64"),
    )
    array, lengths = padded(x)
    logits, tape = model.forward(array, lengths=lengths)
    _, gradient = rc.softmax_cross_entropy(logits, y, weights=weights)
    expected = model.backward(tape, gradient).params
    before = {name: array.copy() for name, array in model.params.items()}
    rows = 40 // batch_size * batch_size  # whole batches have the same share of an epoch
    rc.fit(
        model, x, y, sample_weight=weights, optimizer=rc.SGD(model, 1e-7), epochs=1,
        batch_size=batch_size, **QUIET,
    )  # fmt: skip
    for name, array in model.params.items():
        moved = (before[name] - array) / 1e-7 / (40 / batch_size)
        tolerance = 1e-5 if rows == 40 else 0.1
        assert np.abs(moved - expected[name]).max() < tolerance, name


def test_both_limits_of_the_gradient_hold_and_the_norm_is_that_before() -> None:
    x, y = cases()
    norms = []
    tried: list[dict[str, Any]] = [
        {},
        {"clip_value": 1e-3},
        {"clip_norm": 1e-3},
        {"clip_value": 0.01, "clip_norm": 1e-3},
    ]
    for limits in tried:
        model = classifier()
        before = {name: array.copy() for name, array in model.params.items()}
        history = rc.fit(
            model, x, y, optimizer=rc.SGD(model, 1.0), epochs=1, batch_size=40, **limits, **QUIET
        )
        norms += history.grad_norm
        moved = np.concatenate([(a - before[n]).ravel() for n, a in model.params.items()])
        if "clip_norm" in limits:
            assert np.linalg.norm(moved) == pytest.approx(1e-3, rel=1e-3)
        elif limits:
            assert abs(moved).max() == pytest.approx(1e-3, rel=1e-3)
    assert len(set(norms)) == 1


@pytest.mark.parametrize("of_training", [False, True])
def test_both_sides_of_a_split_must_weigh_something(of_training: bool) -> None:
    x, y = cases()
    held = np.random.default_rng([0, 0]).permutation(40)[:8]  # as the seed 0 draws them
    weights = np.zeros(40) if of_training else np.ones(40)
    weights[held] = float(of_training)
    name, role = ("y", "train") if of_training else ("validation", "validate")
    with pytest.raises(ValueError, match=f"{name}: expected something that counts to {role} on"):
        rc.fit(classifier(), x, y, sample_weight=weights, validation=0.2, **QUIET)
    history = rc.fit(
        classifier(), x, y, sample_weight=weights, validation=0.2, seed=1, epochs=1, **QUIET
    )
    assert history.validation_loss[0] > 0


def test_targets_of_which_all_are_ignored_are_refused() -> None:
    x, y = cases()
    loss = partial(rc.softmax_cross_entropy, ignore_index=-1)
    none = np.full(40, -1)
    with pytest.raises(ValueError, match="validation: expected something that counts to validate"):
        rc.fit(classifier(), x, y, loss=loss, validation=(x, none), **QUIET)
    with pytest.raises(ValueError, match="y: expected something that counts to train on, got"):
        rc.fit(classifier(), x, none, loss=loss, **QUIET)
    lengths = np.zeros(6, int)
    steps = np.zeros((4, 6), int)
    with pytest.raises(ValueError, match="validation: expected something that counts to validate"):
        rc.fit(tagger(), X, steps, validation=(X, steps, lengths), **QUIET)


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
        metrics={"accuracy": accuracy},
        epochs=epochs,
        batch_size=7,
        augment=rounded,
        checkpoint=path,
        resume=resume,
        **QUIET,
    )
    return model, history


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "killed.safetensors"
    folder = Path(__file__).parent
    program = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        f"from pathlib import Path; from test_training import resumable\n"
        f"resumable(Path({str(path)!r}), 10**6, resume=False)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            while not path.exists():
                assert process.poll() is None
                time.sleep(0.01)
        finally:
            process.kill()
    done = len(rc.load(path)["history.train_loss"])
    whole, history = resumable(tmp_path / "whole.safetensors", done + 2, resume=False)
    part, parts = resumable(path, done + 2, resume=True)
    assert same_bits(whole.params, part.params)
    assert history.train_loss == parts.train_loss
    assert not list(tmp_path.glob("killed.*tmp*"))


def test_a_training_that_patience_has_ended_stays_ended(tmp_path: Path) -> None:
    x, y = cases()
    results = []
    for _ in range(2):
        model = classifier()
        history = rc.fit(
            model, x[:20], y[:20], validation=(x[20:], y[20:]), patience=3,
            optimizer=rc.Adam(model, lr=0.1), checkpoint=tmp_path / "c", resume=True, **QUIET,
        )  # fmt: skip
        assert history.stopped == "patience"
        results.append((history.train_loss, dict(model.params)))
    assert results[0][0] == results[1][0]
    assert same_bits(results[0][1], results[1][1])


def test_the_seed_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    x, y = cases()
    whole = classifier()
    path = tmp_path / "c.safetensors"
    rc.fit(whole, x, y, epochs=2, seed=None, checkpoint=path, **QUIET)
    seed = int(rc.load(path)["seed"])
    part, again = classifier(), classifier()
    rc.fit(part, x, y, epochs=3, seed=None, checkpoint=path, resume=True, **QUIET)
    rc.fit(again, x, y, epochs=3, seed=seed, **QUIET)
    assert same_bits(part.params, again.params)
    with pytest.raises(ValueError, match=rf"seed: expected that of the checkpoint, {seed}, got 4"):
        rc.fit(part, x, y, epochs=3, seed=4, checkpoint=path, resume=True, **QUIET)
    part.save(path)
    with pytest.raises(ValueError, match=r"checkpoint: expected a file of fit, got another"):
        rc.fit(part, x, y, checkpoint=path, resume=True, **QUIET)
    with pytest.raises(FileNotFoundError, match=r"checkpoint: expected a folder that exists"):
        rc.fit(part, x, y, checkpoint=tmp_path / "no" / "c", **QUIET)


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


@pytest.mark.parametrize(
    ("wrote", "resumes", "match"),
    [
        ({"validation": 0.2}, {}, "resume: expected some as validation, as '.*' was written with"),
        ({}, {"validation": 0.2}, "resume: expected None as validation, as '.*' was written with"),
        ({}, {"optimizer": rc.AdamW}, "resume: .* got others: decoupled: expected"),
        ({}, {"optimizer": rc.RMSprop}, "resume: .* got others: .* missing"),
        ({}, {"schedule": rc.StepLR}, "resume: .* got others: .* missing"),
        (
            {"schedule": rc.CosineLR},
            {"schedule": rc.StepLR},
            "resume: .* got others: .* missing",
        ),
        ({"schedule": rc.CosineLR}, {}, "resume: .* got others: .* unexpected schedule"),
        (
            {"validation": 0.2},
            {"validation": 0.2, "metrics": {"accuracy": accuracy}},
            "resume: .* got others: .* missing metrics.accuracy",
        ),
    ],
)
def test_a_training_of_other_arguments_is_not_resumed(
    wrote: dict[str, Any], resumes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    x, y = cases()

    def run(model: rc.Sequential, arguments: dict[str, Any]) -> None:
        make, schedule = arguments.get("optimizer", rc.Adam), arguments.get("schedule")
        optimizer = make(model, lr=0.03)
        own = arguments | {"optimizer": optimizer}
        if schedule is not None:
            own["schedule"] = schedule(optimizer, 5)
        try:
            rc.fit(model, x, y, epochs=2, checkpoint=tmp_path / "c", resume=True, **own, **QUIET)
        finally:
            states.append(optimizer.state_dict())

    states: list[dict[str, Any]] = []
    run(classifier(), wrote)
    model = classifier(seed=5)
    before = {name: array.copy() for name, array in model.params.items()}
    with pytest.raises(ValueError, match=match):
        run(model, resumes)
    assert same_bits(model.params, before)
    assert same_bits(states[-1], resumes.get("optimizer", rc.Adam)(model, lr=0.03).state_dict())


@pytest.mark.parametrize(
    "change",
    [
        lambda x, lengths, rng: (x, np.maximum(lengths - 1, 1)),
        lambda x, lengths, rng: (x, None),
        lambda x, lengths, rng: (x[:-1], np.minimum(lengths, len(x) - 1)),
    ],
    ids=["shorter", "none", "cut"],
)
def test_an_augmentation_must_not_change_the_steps_that_have_targets(change: Any) -> None:
    x, y = cases()
    steps = [np.arange(len(row)) % 3 for row in x]
    with pytest.raises(ValueError, match="augment: expected to leave the steps and lengths of x"):
        rc.fit(tagger(), x, steps, augment=change, **QUIET)
    # Where the model ends the steps they may change.
    assert rc.fit(classifier(), x, y, augment=change, epochs=1, **QUIET).stopped == "epochs"


def test_lengths_of_all_steps_are_no_change() -> None:
    def full(x: Any, lengths: Any, rng: Any) -> tuple[Any, Any]:
        assert lengths is None
        return x, np.full(x.shape[1], len(x))

    y = np.zeros((4, 6), int)
    assert rc.fit(tagger(), X, y, augment=full, epochs=1, **QUIET).stopped == "epochs"


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


def test_predictions_are_as_long_as_x_and_known_without_rows() -> None:
    tags = tagger()
    array = np.zeros((9, 3, 2), np.float32)
    lengths = [4, 2, 5]
    found = rc.predict(tags, array, lengths, batch_size=2)
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, tags(array, lengths=lengths))
    assert np.shape(rc.predict(tags, array[:, :0])) == (9, 0, 3)
    assert np.shape(rc.predict(classifier(), array[:, :0])) == (0, 3)
    nested = [[[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 3.0]]]
    assert [row.shape for row in rc.predict(tags, nested)] == [(2, 3)] * 3
    strided = rc.Sequential(rc.Conv1d(2, 4, 3, stride=2, seed=0), rc.GRU(4, 3, seed=1))
    assert np.array_equal(
        rc.predict(strided, array, lengths, batch_size=2), strided(array, lengths=lengths)
    )


# ---- Other models --------------------------------------------------------------------------------


class Ours:
    """A model with the public methods alone, around a chain."""

    def __init__(self, chain: rc.Sequential) -> None:
        self.chain = chain
        self.params = chain.params
        self.load_params = chain.load_params

    def __call__(self, x: Any, state: Any = None, **options: Any) -> Any:
        return self.chain(x, state, **options)

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> Any:
        return self.chain.forward(x, state, lengths=lengths)

    def backward(self, tape: Any, dy: Any) -> Any:
        return self.chain.backward(tape, dy)


class OursWithSteps(Ours):
    def output_lengths(self, lengths: Any) -> Any:
        return self.chain.output_lengths(lengths)


def test_a_model_needs_public_methods_alone(tmp_path: Path) -> None:
    x, y = cases()
    steps = [np.arange(len(row)) % 3 for row in x]
    whole, ours = classifier(), Ours(classifier())
    rc.fit(whole, x, y, epochs=2, checkpoint=tmp_path / "c", **QUIET)
    rc.fit(ours, x, y, epochs=2, **QUIET)
    assert same_bits(whole.params, ours.params)
    assert np.array_equal(rc.predict(whole, x), rc.predict(ours, x))
    tags, theirs = tagger(), OursWithSteps(tagger())
    rc.fit(tags, x, steps, epochs=2, truncate=3, validation=0.2, **QUIET)
    rc.fit(theirs, x, steps, epochs=2, truncate=3, validation=0.2, **QUIET)
    assert same_bits(tags.params, theirs.params)


def test_several_inputs_share_their_rows_alone() -> None:
    rng = np.random.default_rng(0)
    source = [rng.integers(0, 5, n) for n in rng.integers(2, 7, 30)]
    target = [np.concatenate([[5], row[::-1][:3]]) for row in source]
    wanted = [np.concatenate([row[1:], [6]]) for row in target]
    model = rc.EncoderDecoder(
        rc.Sequential({"in": rc.Embedding(7, 4, seed=0), "gru": rc.GRU(4, 8, seed=1)}),
        rc.Sequential(
            {
                "in": rc.Embedding(7, 4, seed=2),
                "gru": rc.GRU(4, 8, seed=3),
                "out": rc.Linear(8, 7, seed=4),
            }
        ),
    )
    history = rc.fit(
        model, (source, target), wanted, validation=0.2, optimizer=rc.Adam(model, lr=0.03),
        epochs=8, batch_size=4, **QUIET,
    )  # fmt: skip
    assert history.validation_loss[-1] < 0.8 * history.validation_loss[0]
    (sources, source_lengths), (targets, target_lengths) = padded(source), padded(target)
    lengths = (source_lengths, target_lengths)
    as_arrays = rc.evaluate(model, (sources, targets), padded(wanted)[0], lengths)["loss"]
    assert rc.evaluate(model, (source, target), wanted)["loss"] == pytest.approx(as_arrays)
    outputs = rc.predict(model, (source, target), batch_size=7)
    whole = model((sources, targets), lengths=lengths)
    for k, row in enumerate(outputs):
        assert np.allclose(row, whole[: len(target[k]), k], atol=1e-6)
    with pytest.raises(ValueError, match="truncate: expected None with several inputs, got 2"):
        rc.fit(model, (source, target), wanted, truncate=2, **QUIET)


def test_one_input_may_be_a_list_and_the_other_an_array() -> None:
    rng = np.random.default_rng(0)
    source = [rng.standard_normal((n, 2)) for n in (5, 2, 4)]
    target = rng.integers(0, 5, (4, 3))
    model = rc.EncoderDecoder(
        rc.Sequential(rc.GRU(2, 4, seed=0)),
        rc.Sequential(rc.Embedding(5, 3, seed=1), rc.GRU(3, 4, seed=2), rc.Linear(4, 5, seed=3)),
    )
    assert rc.fit(model, (source, target), target, epochs=1, **QUIET).stopped == "epochs"
    array, lengths = padded(source)
    whole = model((array, target), lengths=(lengths, None))
    found = rc.predict(model, (source, target))
    assert [row.shape for row in found] == [(4, 5)] * 3
    assert np.allclose(np.stack([*found], axis=1), whole, atol=1e-6)


# ---- Progress and printing -----------------------------------------------------------------------


@pytest.mark.parametrize("bar", [False, True])
def test_progress_goes_to_standard_error(
    bar: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if bar:
        pytest.importorskip("tqdm")
    x, y = cases()
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: bar)
    history = rc.fit(classifier(), x, y, validation=0.2, epochs=2, batch_size=16)
    out, err = capsys.readouterr()
    assert out == ""
    lines = re.split("[\r\n]+", err)
    at = [
        line for line in lines if re.fullmatch(r"epoch 1/2 at 50 % \| loss \S+ \| 0:00 left", line)
    ]
    assert len(at) == (0 if bar else 1)
    ends = [
        line for line in lines if re.match(r"epoch [12]/2 \| train \S+ \| validation \S+ \| ", line)
    ]
    assert len(ends) == 2
    assert ("epoch/s" in err) == bar
    assert f"{history!r}, ended by 'epochs'" in lines
    assert repr(history).startswith("<History of 2 epochs, best validation loss ")
    assert repr(rc.History()) == "<History of 0 epochs>"


def test_without_tqdm_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    x, y = cases()
    rc.fit(classifier(), x, y, epochs=1)
    assert capsys.readouterr().err.startswith("<History of 1 epochs, best train loss ")


def test_a_history_is_drawn_and_judged() -> None:
    x, y = cases()
    model = classifier()
    history = rc.fit(
        model, x, y, validation=0.3, optimizer=rc.Adam(model, lr=0.05), epochs=40, **QUIET
    )
    axes = history.plot()
    assert [line.get_label() for line in axes.lines][:2] == ["train", "validation"]
    assert axes.lines[1].get_ydata().tolist() == history.validation_loss
    assert history.plot(axes) is axes
    found = history.verdict()
    assert history.best_epoch is not None
    assert found.validation == min(history.validation_loss)
    assert found.word == "over-fitting"
    assert history.verdict(at=0, baseline=1e-9).word == "under-fitting"


def test_a_verdict_needs_validation() -> None:
    with pytest.raises(ValueError, match="verdict: expected a training with validation, got one"):
        rc.History(train_loss=[1.0]).verdict()


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
        ({"sample_weight": [-1.0] * 6}, ValueError, "sample_weight: expected finite values >= 0"),
        ({"sample_weight": [0.0] * 6}, ValueError, "sample_weight: expected a finite sum > 0"),
        (
            {"model": rc.GRU(2, 3)},
            TypeError,
            r"got GRU.* \(Sequential\(layer\) makes a model of it",
        ),
        ({"y": [[0], [1], [0, 1], [1], [0], [0]]}, ValueError, r"y\[2\]: expected 1 values, as y"),
        ({"optimizer": rc.Adam(classifier())}, ValueError, "optimizer: expected one of this model"),
        (
            {"schedule": rc.StepLR(rc.Adam(classifier()), 1)},
            ValueError,
            "schedule: expected one of",
        ),
        ({"metrics": {"a": max}}, ValueError, "metrics: expected none without validation"),
        ({"metrics": [max], "validation": 0.5}, TypeError, "metrics: expected a mapping"),
        (
            {"metrics": {"a": 1}, "validation": 0.5},
            TypeError,
            "metrics: expected names and callables",
        ),
        (
            {"metrics": {"loss": max}, "validation": 0.5},
            ValueError,
            "metrics: expected names other",
        ),
        ({"augment": 1}, TypeError, "augment: expected a callable or None"),
        ({"callback": 1}, TypeError, "callback: expected a callable or None"),
        ({"checkpoint": 1}, TypeError, "checkpoint: expected a str, bytes or path-like"),
        ({"min_delta": -1}, ValueError, "min_delta"),
        ({"validation": float("nan")}, ValueError, "validation: expected a share"),
        ({"validation": (X, Y[:3])}, ValueError, "y: expected as many rows as x, 6, got 3"),
        ({"loss": lambda p, t: 1.0}, TypeError, r"loss: expected to return \(loss, gradient\)"),
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


def test_inputs_without_an_axis_of_rows_are_refused() -> None:
    x, y = RNG.standard_normal((20, 3)), np.zeros((20, 3))
    model = rc.Sequential(rc.GRU(3, 4), rc.Linear(4, 3))
    expected = r"x: expected shape \(T, B, F\), got \(20, 3\) \(x\[:, None\] makes one row of it\)"
    with pytest.raises(ValueError, match=expected):
        rc.fit(model, x, y, loss="mse", **QUIET)
    with pytest.raises(ValueError, match=expected):
        rc.predict(model, x)
    with pytest.raises(ValueError, match=expected):
        rc.fit(model, x[:, None], y[:, None], loss="mse", validation=(x, y), **QUIET)
    assert np.shape(rc.predict(model, x[:, None])) == (20, 1, 3)
    first = rc.Sequential(rc.Conv1d(3, 4, 3, batch_first=True), rc.Linear(4, 3))
    with pytest.raises(ValueError, match=r"got \(20, 3\) \(x\[None\] makes one row of it"):
        rc.predict(first, x)
    with pytest.raises(ValueError, match=r"x\[0\]: expected shape \(T, F\), got \(5,\)"):
        rc.predict(model, [np.ones(5), np.ones(4)])
    codes = rc.Sequential(rc.Embedding(5, 3), rc.GRU(3, 4, batch_first=True))
    with pytest.raises(ValueError, match=r"shape \(B, T\), got \(4,\) \(x\[None\] makes one row"):
        rc.predict(codes, np.array([1, 2, 3, 4]))
    assert [np.shape(row) for row in rc.predict(codes, [np.array([1, 2]), [3]])] == [(2, 4), (1, 4)]


def test_rows_without_time_are_rows_of_one_step() -> None:
    x, y = RNG.standard_normal((100, 8)), np.arange(100) % 2
    model = rc.Sequential(rc.Linear(8, 2))
    with pytest.raises(ValueError, match=r"\(x\[None\] makes rows of one step of it"):
        rc.fit(model, x, y, **QUIET)
    with pytest.raises(ValueError, match=r"\(x\[None\] makes rows of one step of it"):
        rc.predict(model, x)
    assert rc.fit(model, x[None], y[None], epochs=1, **QUIET).stopped == "epochs"
    assert np.array_equal(rc.predict(model, x[None])[0], model(x))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_a_loss_on_logits_is_not_given_probabilities(activation: str, loss: str) -> None:
    def head() -> rc.Linear:
        return rc.Linear(3, 2, activation=activation)

    gru = {"gru": rc.GRU(2, 3)}
    models = [
        rc.Sequential({**gru, "last": rc.Pooling("last"), "head": head()}),
        rc.Sequential({**gru, "head": head(), "drop": rc.Dropout(0.1), "last": rc.Pooling("last")}),
        rc.Sequential(rc.Sequential(rc.GRU(2, 3), rc.Sequential(head()))),
        rc.EncoderDecoder(rc.Sequential(rc.GRU(2, 3)), rc.Sequential(rc.GRU(2, 3), head())),
    ]
    expected = (
        rf"loss: expected a model that ends in logits for '{loss}', .* got Linear\(.*at the end"
    )
    for model in models:
        with pytest.raises(ValueError, match=expected):
            rc.fit(model, X, Y, loss=loss, **QUIET)
        with pytest.raises(ValueError, match=expected):
            rc.evaluate(model, X, Y, loss=loss)
    found = rc.evaluate(models[0], X, np.zeros((6, 2)), loss="mse")
    assert found["loss"] > 0
    gate = rc.Sequential(head(), rc.Linear(2, 2))
    assert rc.evaluate(gate, np.zeros((4, 6, 3)), np.zeros((4, 6), int))["loss"] > 0


def test_each_of_several_inputs_needs_its_axes() -> None:
    model = rc.EncoderDecoder(
        rc.Sequential(rc.GRU(2, 4)), rc.Sequential(rc.Embedding(5, 3), rc.GRU(3, 4))
    )
    source, target = np.zeros((6, 3, 2), np.float32), np.zeros((4, 3), int)
    assert np.shape(rc.predict(model, (source, target))) == (4, 3, 4)
    with pytest.raises(ValueError, match=r"x\[0\]: expected shape \(T, B, F\), got \(6, 3\)"):
        rc.predict(model, (source[..., 0], target))


def test_an_empty_list_has_no_predictions() -> None:
    assert rc.predict(tagger(), []) == []
    with pytest.raises(ValueError, match="x: expected at least one row in a list, got none"):
        rc.predict(classifier(), [])
    with pytest.raises(ValueError, match="x: expected at least one row, got none"):
        rc.fit(classifier(), [], [], **QUIET)


@pytest.mark.parametrize("nested", [False, True])
def test_what_reads_backwards_cannot_be_truncated(nested: bool) -> None:
    both = rc.GRU(2, 3, bidirectional=True)
    model = rc.Sequential(rc.Sequential(both) if nested else both)
    with pytest.raises(ValueError, match="truncate: expected None for a bidirectional model"):
        rc.fit(model, X, np.zeros((4, 6, 6)), loss="mse", truncate=2, **QUIET)
    stateless = rc.Sequential(rc.Linear(2, 3))
    with pytest.raises(ValueError, match="truncate: expected None for a model without a state"):
        rc.fit(stateless, X, np.zeros((4, 6), int), truncate=2, **QUIET)


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
