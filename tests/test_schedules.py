"""The schedules against their formulas, in front of each other, and resumed."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnncore as rc
from rnncore.optimizers import SGD, Adam, Optimizer
from rnncore.schedules import CosineLR, ReduceLROnPlateau, Schedule, StepLR, WarmupLR

Make = Callable[[Optimizer], Schedule]

# Each way to make a schedule, and whether it takes a metric.
MAKERS: dict[str, tuple[Make, bool]] = {
    "step": (lambda o: StepLR(o, 3, gamma=0.3), False),
    "cosine": (lambda o: CosineLR(o, 7, min_lr=0.01), False),
    "warm-up": (lambda o: WarmupLR(o, 4), False),
    "warm-up, step": (lambda o: WarmupLR(StepLR(o, 2), 3, start_factor=0.1), False),
    "warm-up, cosine": (lambda o: WarmupLR(CosineLR(o, 5), 4, start_factor=0.0), False),
    "warm-up, warm-up": (lambda o: WarmupLR(WarmupLR(CosineLR(o, 3), 3), 3, 0.7), False),
    "plateau": (lambda o: ReduceLROnPlateau(o, "min", 0.5, 1, cooldown=1), True),
    "plateau, max": (lambda o: ReduceLROnPlateau(o, "max", 0.5, 0, 0.1, "abs"), True),
    "warm-up, plateau": (lambda o: WarmupLR(ReduceLROnPlateau(o, patience=1), 3), True),
}
every = pytest.mark.parametrize("kind", MAKERS)
METRICS = [5.0, 4.0, 4.0, 4.5, 3.0, 3.5, 3.5, 3.5, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0]


def sgd(lr: float = 0.8) -> SGD:
    return SGD({"w": np.zeros(2)}, lr)


def rates(optimizer: Optimizer, schedule: Schedule, steps: int) -> list[float]:
    """Collect the rates of that many steps, from the current one on."""
    found = []
    for _ in range(steps):
        found.append(optimizer.lr)
        schedule.step()
    return found


def watched(optimizer: Optimizer, schedule: Schedule, metrics: list[float]) -> list[float]:
    """Collect the rates after each metric."""
    found = []
    for metric in metrics:
        schedule.step(metric)
        found.append(optimizer.lr)
    return found


# ---- Formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [1, 3, np.int64(4)])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2, 0.0])
def test_step(step_size: int, gamma: float) -> None:
    optimizer = sgd()
    found = rates(optimizer, StepLR(optimizer, step_size, gamma), 13)
    expected = [0.8 * float(gamma) ** (t // int(step_size)) for t in range(13)]
    assert found == expected


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("min_lr", [0.0, 0.1, 0.8])
def test_cosine(steps: int, min_lr: float) -> None:
    optimizer = sgd()
    found = rates(optimizer, CosineLR(optimizer, steps, min_lr), steps + 4)
    for t in range(steps):
        wave = math.cos(math.pi * t / steps)
        expected = min_lr + (0.8 - min_lr) * (1 + wave) / 2
        assert found[t] == pytest.approx(expected, rel=1e-15, abs=0)
    assert found[0] == 0.8
    assert found[steps:] == [min_lr] * 4  # exactly, and it stays


@pytest.mark.parametrize("start_factor", [0.0, 0.25, 1 / 3, 1])
@pytest.mark.parametrize("steps", [1, 5])
def test_warm_up(start_factor: float, steps: int) -> None:
    optimizer = sgd()
    found = rates(optimizer, WarmupLR(optimizer, steps, start_factor), steps + 3)
    for t in range(steps):
        expected = 0.8 * (start_factor + (1 - start_factor) * t / steps)
        assert found[t] == pytest.approx(expected, rel=1e-15, abs=0)
    assert found[steps:] == [0.8] * 3
    default = sgd(3.0)
    WarmupLR(default, 5)
    assert default.lr == 1.0


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    "make", [lambda o: StepLR(o, 2), lambda o: CosineLR(o, 5), lambda o: WarmupLR(o, 3)]
)
def test_a_warm_up_hands_over_at_its_end(make: Make, steps: int) -> None:
    plain, warm = sgd(), sgd()
    alone = rates(plain, make(plain), 8)
    found = rates(warm, WarmupLR(make(warm), steps, 0.5), steps + 8)
    other = sgd()
    assert found[:steps] == rates(other, WarmupLR(other, steps, 0.5), steps)
    assert found[steps:] == alone


def test_base_is_the_rate_at_the_beginning() -> None:
    optimizer = sgd(1.0)
    schedule = StepLR(optimizer, 2, 0.5)
    optimizer.lr = 7.0  # by hand, until the next step
    schedule.step()
    assert optimizer.lr == 1.0


def test_the_optimizer_follows() -> None:
    params = {"w": np.zeros(1)}
    optimizer = SGD(params, 1.0)
    schedule = WarmupLR(StepLR(optimizer, 1, 0.5), 2, 0.0)
    for _ in range(5):
        optimizer.step({"w": [1.0]})
        schedule.step()
    assert params["w"].tolist() == [-(0.0 + 0.5 + 1.0 + 0.5 + 0.25)]


# ---- On a plateau ------------------------------------------------------------------------------


def naive_plateau(
    metrics: list[float],
    lr: float,
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
) -> list[float]:
    """Follow the rule as the documentation tells it, with metrics turned so that less is better."""
    best, bad, wait, found = math.inf, 0, 0, []
    for metric in metrics:
        value = -metric if mode == "max" else metric
        scale = abs(best) if threshold_mode == "rel" and best < math.inf else 1.0
        better = value < best - threshold * scale
        best = value if better else best
        bad = 0 if better or wait else bad + 1
        wait = max(wait - 1, 0)
        if bad > patience:
            lr, bad, wait = min(lr, max(lr * factor, min_lr)), 0, cooldown
        found.append(lr)
    return found


PLATEAUS: list[dict[str, Any]] = [
    {"patience": 2},
    {"patience": 0, "factor": 0.5},
    {"patience": 1, "factor": 0.5, "cooldown": 2},
    {"patience": 1, "factor": 0.5, "min_lr": 0.3},
    {"patience": 1, "factor": 0.0},
    {"patience": 1, "threshold": 0.3},
    {"patience": 1, "threshold": 0.5, "threshold_mode": "abs"},
    {"patience": 0, "min_lr": 2.0},
]


@pytest.mark.parametrize("options", PLATEAUS)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_plateau_follows_the_naive_rule(options: Any, mode: str, shift: float) -> None:
    metrics = [float(m) + shift for m in np.random.default_rng(0).uniform(0, 4, 60).round(1)] + [
        math.nan,
        math.inf,
        -math.inf,
        1.0,
        1.0,
        1.0,
    ]
    optimizer = sgd()
    found = watched(optimizer, ReduceLROnPlateau(optimizer, mode, **options), metrics)
    assert found == naive_plateau(metrics, 0.8, mode, **options)
    if options.get("min_lr", 0.0) < 0.8:
        assert found[-1] < 0.8


def test_plateau_by_hand() -> None:
    optimizer = sgd(1.0)
    schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=1, cooldown=1)
    #      better    equal, worse: two bad  | cooling    two bad again  | cooling, better, one bad
    metrics = [2.0, 2.0, 2.5, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0]
    expected = [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert watched(optimizer, schedule, metrics) == expected


def test_plateau_defaults_are_those_of_pytorch() -> None:
    optimizer = sgd(1.0)
    schedule = ReduceLROnPlateau(optimizer)
    # Ten bad steps pass; 0.99995 is no improvement by one part in 10,000.
    assert watched(optimizer, schedule, [1.0] + [0.99995] * 10) == [1.0] * 11
    schedule.step(0.99995)
    assert optimizer.lr == 0.1


def test_a_worse_negative_metric_is_not_better() -> None:
    for mode, metrics in (("min", [-10.0, -9.9995]), ("max", [-10.0, -10.0005])):
        optimizer = sgd(1.0)
        schedule = ReduceLROnPlateau(optimizer, mode, patience=0)
        assert watched(optimizer, schedule, metrics) == [1.0, 0.1]


def test_plateau_lowers_the_rate_that_it_finds() -> None:
    optimizer = sgd(1.0)
    schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    schedule.step(1.0)
    optimizer.lr = 0.5
    schedule.step(1.0)
    assert optimizer.lr == 0.25


def test_a_warm_up_before_a_plateau_does_not_count_metrics() -> None:
    optimizer = sgd(1.0)
    schedule = WarmupLR(ReduceLROnPlateau(optimizer, patience=0), 2, 0.5)
    assert optimizer.lr == 0.5
    assert watched(optimizer, schedule, [1.0, 5.0, 5.0, 4.0, 4.0]) == [0.75, 1.0, 1.0, 1.0, 0.1]


# ---- State -------------------------------------------------------------------------------------


def advance(schedule: Schedule, metric: float, *, takes_metric: bool) -> None:
    schedule.step(metric if takes_metric else None)


@every
@pytest.mark.parametrize("at", [0, 1, 3, 4, 6, 9])
def test_a_run_resumed_from_one_file_has_the_same_bits(kind: str, at: int, tmp_path: Path) -> None:
    make, takes_metric = MAKERS[kind]

    def run(optimizer: Optimizer, schedule: Schedule, steps: range) -> list[float]:
        found = []
        for t in steps:
            optimizer.step({"w": np.random.default_rng(t).standard_normal(3)})
            found.append(optimizer.lr)
            advance(schedule, METRICS[t], takes_metric=takes_metric)
        return found

    params = {"w": np.ones(3, "float32")}
    optimizer = Adam(params, lr=0.1)
    schedule = make(optimizer)
    run(optimizer, schedule, range(at))
    file = tmp_path / "run.safetensors"
    states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    rc.save(file, {"model": params, **states})
    expected = run(optimizer, schedule, range(at, 14))

    for order in (("optimizer", "schedule"), ("schedule", "optimizer")):
        other = {"w": np.zeros(3, "float32")}
        again = Adam(other, lr=0.1)
        schedules = make(again)
        fresh = {"optimizer": again.state_dict(), "schedule": schedules.state_dict()}
        rc.load(file, into={"model": other, **fresh})
        for name in order:
            (again if name == "optimizer" else schedules).load_state_dict(fresh[name])
        assert run(again, schedules, range(at, 14)) == expected
        assert other["w"].tobytes() == params["w"].tobytes()
        before, after = schedule.state_dict(), schedules.state_dict()
        assert list(before) == list(after)
        assert all(before[key].tobytes() == after[key].tobytes() for key in before)


@every
def test_copies_and_pickles_continue(kind: str) -> None:
    make, takes_metric = MAKERS[kind]
    optimizer = sgd()
    schedule = make(optimizer)
    for metric in METRICS[:5]:
        advance(schedule, metric, takes_metric=takes_metric)
    pairs = [
        (optimizer, schedule),
        pickle.loads(pickle.dumps((optimizer, schedule))),
        copy.deepcopy((optimizer, schedule)),
    ]
    found: list[list[float]] = [[], [], []]
    for (own, one), values in zip(pairs, found, strict=True):
        for metric in METRICS[5:]:
            advance(one, metric, takes_metric=takes_metric)
            values.append(own.lr)
    assert found[0] == found[1] == found[2]


def test_a_state_brings_its_settings_and_the_rate() -> None:
    optimizer = sgd(1.0)
    schedule = StepLR(optimizer, 2, 0.5)
    for _ in range(3):
        schedule.step()
    optimizer.lr = 0.125  # by hand
    state = schedule.state_dict()
    assert {name: float(value) for name, value in state.items()} == {
        "base_lr": 1.0, "step": 3.0, "step_size": 2.0, "gamma": 0.5, "lr": 0.125,
    }  # fmt: skip
    assert {(value.dtype, value.shape) for value in state.values()} == {(np.dtype("float64"), ())}
    other = sgd(9.0)
    resumed = StepLR(other, 7, 0.9)
    resumed.load_state_dict(state)
    assert other.lr == 0.125
    assert rates(other, resumed, 4) == [0.125, 0.25, 0.25, 0.125]
    assert float(state["step"]) == 3.0  # a copy


def test_a_schedule_made_after_the_optimizer_was_loaded_resumes() -> None:
    optimizer = sgd(1.0)
    schedule = WarmupLR(CosineLR(optimizer, 4), 4, 0.5)
    expected = rates(optimizer, schedule, 12)
    for stop in range(11):
        optimizer = sgd(1.0)
        schedule = WarmupLR(CosineLR(optimizer, 4), 4, 0.5)
        rates(optimizer, schedule, stop)
        other = sgd(1.0)
        other.load_state_dict(optimizer.state_dict())
        resumed = WarmupLR(CosineLR(other, 4), 4, 0.5)  # begins at half of the loaded rate
        resumed.load_state_dict(schedule.state_dict())
        assert rates(other, resumed, 12 - stop) == expected[stop:]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": None}, ValueError, "state: missing 'step'"),
        ({"lr": None, "then.gamma": None}, ValueError, "state: missing 'then.gamma', 'lr'"),
        ({"gamma": 0.5}, ValueError, "state: unexpected 'gamma'"),
        ({"step": 1.5}, ValueError, "step: expected a whole number, got 1.5"),
        ({"step": -1}, ValueError, "step: expected a finite number >= 0, got -1.0"),
        ({"then.step_size": 0}, ValueError, "step_size: expected a whole number >= 1, got 0.0"),
        ({"then.gamma": math.nan}, ValueError, "gamma: expected a finite number >= 0, got nan"),
        ({"start_factor": 2}, ValueError, "start_factor: expected 0 <= number <= 1, got 2.0"),
        ({"lr": -1}, ValueError, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": [0.5]}, ValueError, r"state\['lr'\]: expected shape \(\), got \(1,\)"),
        ({"then.gamma": "1"}, TypeError, r"state\['then.gamma'\]: expected real numbers"),
        ({"base_lr": True}, TypeError, r"state\['base_lr'\]: expected real numbers"),
    ],
)
def test_a_failing_load_changes_nothing(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    optimizer = sgd()
    schedule = WarmupLR(StepLR(optimizer, 2), 3)
    rates(optimizer, schedule, 4)
    before = schedule.state_dict()
    other = sgd()
    wrong: dict[str, Any] = {**WarmupLR(StepLR(other, 5), 6).state_dict(), **change}
    with pytest.raises(error, match=f"^{message}"):
        schedule.load_state_dict({key: value for key, value in wrong.items() if value is not None})
    assert schedule.state_dict() == before


def test_states_of_another_kind_are_refused() -> None:
    optimizer = sgd()
    state = StepLR(optimizer, 2).state_dict()
    with pytest.raises(ValueError, match="^state: missing 'steps', 'min_lr'; unexpected 'step_siz"):
        CosineLR(optimizer, 2).load_state_dict(state)
    no_mapping: Any = [1]
    with pytest.raises(TypeError, match="^state: expected a mapping, got list$"):
        StepLR(optimizer, 2).load_state_dict(no_mapping)
    plateau = ReduceLROnPlateau(optimizer)
    for name in ("maximize", "relative"):
        with pytest.raises(ValueError, match=f"^{name}: expected 0 or 1, got 0.5$"):
            plateau.load_state_dict({**plateau.state_dict(), name: 0.5})


def test_repr_shows_settings() -> None:
    schedule = StepLR(sgd(0.5), 3)
    assert repr(schedule) == "<StepLR: base_lr=0.5, step=0, step_size=3, gamma=0.1>"


# ---- Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (StepLR, {"step_size": 0}, ValueError, "step_size: expected a positive integer, got 0"),
        (StepLR, {"step_size": 2.0}, TypeError, "step_size: expected a positive integer, got 2.0"),
        (StepLR, {"gamma": -1}, ValueError, "gamma: expected a finite number >= 0, got -1"),
        (StepLR, {"gamma": "1"}, TypeError, "gamma: expected a real number, got '1'"),
        (StepLR, {"optimizer": {}}, TypeError, "optimizer: expected an optimizer, got {}"),
        (CosineLR, {"steps": 0}, ValueError, "steps: expected a positive integer, got 0"),
        (CosineLR, {"steps": True}, TypeError, "steps: expected a positive integer, got True"),
        (CosineLR, {"min_lr": math.inf}, ValueError, "min_lr: expected a finite .* got inf"),
        (CosineLR, {"optimizer": None}, TypeError, "optimizer: expected an optimizer, got None"),
        (WarmupLR, {"steps": -1}, ValueError, "steps: expected a positive integer, got -1"),
        (WarmupLR, {"start_factor": 1.5}, ValueError, "start_factor: .* <= number <= 1, got 1.5"),
        (WarmupLR, {"start_factor": -1}, ValueError, "start_factor: .* number >= 0, got -1"),
        (WarmupLR, {"then": 3}, TypeError, "then: expected a schedule or an optimizer, got 3"),
        (ReduceLROnPlateau, {"mode": "a"}, ValueError, "mode: expected 'min' or 'max', got 'a'"),
        (ReduceLROnPlateau, {"mode": 0}, TypeError, "mode: expected 'min' or 'max', got 0"),
        (
            ReduceLROnPlateau,
            {"threshold_mode": ["rel"]},
            TypeError,
            r"threshold_mode: expected 'rel' or 'abs', got \['rel'\]",
        ),
        (ReduceLROnPlateau, {"factor": 1}, ValueError, "factor: expected 0 <= number < 1, got 1"),
        (ReduceLROnPlateau, {"patience": -1}, ValueError, "patience: .* an integer >= 0, got -1"),
        (ReduceLROnPlateau, {"cooldown": 1.0}, TypeError, "cooldown: .* an integer >= 0, got 1.0"),
        (ReduceLROnPlateau, {"threshold": math.nan}, ValueError, "threshold: .* >= 0, got nan"),
        (ReduceLROnPlateau, {"min_lr": -1}, ValueError, "min_lr: .* number >= 0, got -1"),
    ],
)
def test_bad_options(
    make: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    optimizer = sgd()
    good: dict[Any, dict[str, Any]] = {
        StepLR: {"optimizer": optimizer, "step_size": 2},
        CosineLR: {"optimizer": optimizer, "steps": 2},
        WarmupLR: {"then": optimizer, "steps": 2},
        ReduceLROnPlateau: {"optimizer": optimizer},
    }
    with pytest.raises(error, match=f"^{message}$"):
        make(**{**good[make], **options})
    assert optimizer.lr == 0.8


def test_a_schedule_under_way_cannot_follow_a_warm_up() -> None:
    optimizer = sgd()
    schedule = StepLR(optimizer, 1)
    schedule.step()
    schedule.step()
    with pytest.raises(ValueError, match="^then: expected a schedule that .*, got one at step 2$"):
        WarmupLR(schedule, 2)


@every
def test_metrics_are_taken_where_they_are_looked_at(kind: str) -> None:
    make, takes_metric = MAKERS[kind]
    optimizer = sgd()
    schedule = make(optimizer)
    before, lr = schedule.state_dict(), optimizer.lr
    name = type(schedule).__name__ if kind in ("step", "cosine", "warm-up") else ".*"
    wrong: list[tuple[Any, str]] = (
        [(None, "a real number, got None"), ("1", "a real number, got '1'")]
        if takes_metric
        else [(0.5, f"None for {name}, got 0.5")]
    )
    for metric, message in wrong:
        with pytest.raises(TypeError, match=f"^metric: expected {message}$"):
            schedule.step(metric)
    assert schedule.state_dict() == before
    assert optimizer.lr == lr


def test_a_rate_that_grows_without_limit_is_refused() -> None:
    optimizer = sgd(1.0)
    schedule = StepLR(optimizer, 1, gamma=1e200)
    schedule.step()
    for _ in range(2):
        with pytest.raises(ValueError, match="^lr: expected a finite number >= 0, got inf$"):
            schedule.step()
        assert optimizer.lr == 1e200
        assert schedule.state_dict()["step"] == 1
