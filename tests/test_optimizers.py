"""The optimizers against scalar loops and hand-computed steps; resumed runs; clipping."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnncore as rc
from rnncore import _core
from rnncore.linear import Linear
from rnncore.optimizers import (
    SGD,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    clip_grad_norm,
    clip_grad_value,
)
from rnncore.parameters import Parameters

FLOATS = ("float32", "float64")
SHAPES = {"w": (3, 4), "b": (4,), "scalar": (), "empty": (0, 2)}
Make = Callable[[Any], Optimizer]

SGD_OPTIONS: list[dict[str, Any]] = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3},
    {"lr": 0.1, "l1": 0.2},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3, "l1": 0.2},
]
ADAM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3},
    {"lr": 0.1, "betas": (0.0, 0.0), "eps": 0.1},
    {"lr": 0.1, "l1": 0.2},
    {"lr": 0.1, "weight_decay": 0.3, "l1": 0.2},
]
ADAMW_OPTIONS: list[dict[str, Any]] = [*ADAM_OPTIONS, {"lr": 0.1, "weight_decay": 0.0}]
RMSPROP_OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.1, "alpha": 0.5, "eps": 1e-3},
    {"lr": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "weight_decay": 0.3, "l1": 0.2},
    {"lr": 0.1, "momentum": 0.9, "l1": 0.2},
    {"lr": 0.1, "centered": True},
    {"lr": 0.1, "momentum": 0.9, "centered": True, "weight_decay": 0.3},
]
OPTIONS = [
    (make, options)
    for make, each in (
        (SGD, SGD_OPTIONS),
        (Adam, ADAM_OPTIONS),
        (AdamW, ADAMW_OPTIONS),
        (RMSprop, RMSPROP_OPTIONS),
    )
    for options in each
]
# One of each kind, with all the state that it can have.
MAKERS: list[Make] = [
    lambda params: SGD(params, 0.1, 0.9),
    Adam,
    AdamW,
    lambda params: RMSprop(params, momentum=0.9, centered=True),
]


def drawn(seed: int, dtype: str = "float64") -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def sign(w: float) -> float:
    return float(w > 0) - float(w < 0)


def scalar_sgd(
    w: float,
    gradients: list[float],
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    l1: float = 0.0,
) -> float:
    """Follow one weight, as the equations say."""
    v = 0.0
    for gradient in gradients:
        g = gradient + weight_decay * w + l1 * sign(w)
        v = momentum * v + g
        w = w - lr * (g + momentum * v if nesterov else v)
    return w


def scalar_adam(
    w: float,
    gradients: list[float],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    decoupled: bool = False,
) -> float:
    """Follow one weight through algorithm 1 of Kingma and Ba, line by line."""
    m = v = 0.0
    for t, gradient in enumerate(gradients, start=1):
        penalty = weight_decay * w + l1 * sign(w)
        g = gradient if decoupled else gradient + penalty
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat = m / (1 - betas[0] ** t)
        v_hat = v / (1 - betas[1] ** t)
        w = w - lr * m_hat / (math.sqrt(v_hat) + eps) - (lr * penalty if decoupled else 0.0)
    return w


def scalar_adamw(
    w: float, gradients: list[float], weight_decay: float = 0.01, **options: Any
) -> float:
    """Follow one weight through algorithm 2 of Loshchilov and Hutter, lr scaling the decay too."""
    return scalar_adam(w, gradients, weight_decay=weight_decay, decoupled=True, **options)


def scalar_rmsprop(
    w: float,
    gradients: list[float],
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
    l1: float = 0.0,
) -> float:
    """Follow one weight, as the equations say."""
    v = m = u = 0.0
    for gradient in gradients:
        g = gradient + weight_decay * w + l1 * sign(w)
        v = alpha * v + (1 - alpha) * g * g
        m = alpha * m + (1 - alpha) * g
        u = momentum * u + g / (math.sqrt(v - m * m if centered else v) + eps)
        w = w - lr * u
    return w


SCALAR = {SGD: scalar_sgd, Adam: scalar_adam, AdamW: scalar_adamw, RMSprop: scalar_rmsprop}


@pytest.mark.parametrize(("make", "options"), OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_steps_are_those_of_a_scalar_loop(make: Any, options: Any, dtype: str) -> None:
    scalar: Any = SCALAR[make]
    params = drawn(0, dtype)
    start = {name: array.copy() for name, array in params.items()}
    live = dict(params)
    gradients = [drawn(seed, dtype) for seed in range(1, 8)]
    kept = copy.deepcopy(gradients)
    optimizer = make(params, **options)
    for g in gradients:
        optimizer.step(g)
    for name, shape in SHAPES.items():
        assert params[name] is live[name]
        assert params[name].dtype == dtype
        for i in np.ndindex(shape):
            expected = scalar(
                float(start[name][i]), [float(g[name][i]) for g in gradients], **options
            )
            # float32 rounds some forty operations, each once.
            error = abs(float(params[name][i]) - expected)
            assert error <= (2e-5 if dtype == "float32" else 1e-14) * max(1.0, abs(expected))
    for g, before in zip(gradients, kept, strict=True):
        assert all((g[name] == before[name]).all() for name in SHAPES)


def test_sgd_by_hand() -> None:
    params = {"w": np.array([1.0, -2.0])}
    optimizer = SGD(params, 0.5, momentum=0.5)
    optimizer.step({"w": [1.0, 0.0]})
    assert params["w"].tolist() == [0.5, -2.0]  # v = 1
    optimizer.step({"w": [1.0, 0.0]})
    assert params["w"].tolist() == [-0.25, -2.0]  # v = 1.5
    optimizer.step({"w": [0.0, 0.0]})
    assert params["w"].tolist() == [-0.625, -2.0]  # v = 0.75

    params = {"w": np.array([1.0])}
    optimizer = SGD(params, 0.5, momentum=0.5, nesterov=True)
    optimizer.step({"w": [1.0]})
    assert params["w"].tolist() == [0.25]  # g + 0.5 * v = 1.5
    params = {"w": np.array([4.0])}
    SGD(params, 0.5, weight_decay=0.25).step({"w": [1.0]})
    assert params["w"].tolist() == [3.0]  # g = 1 + 0.25 * 4


def test_adam_by_hand() -> None:
    # m = 0.5 g, m_hat = g; v = 0.25 g^2, v_hat = g^2: the first step is lr, whatever g.
    params = {"w": np.array([1.0, 1.0, 1.0])}
    optimizer = Adam(params, lr=0.25, betas=(0.5, 0.75), eps=0.0)
    optimizer.step({"w": [2.0, -2.0, 0.5]})
    assert params["w"].tolist() == [0.75, 1.25, 0.75]
    # Of the first: m = 0.5 * 1 + 0.5 * 4 = 2.5, m_hat = 2.5 / 0.75;
    # v = 0.75 * 1 + 0.25 * 16 = 4.75, v_hat = 4.75 / 0.4375.
    optimizer.step({"w": [4.0, -4.0, 0.0]})
    expected = 0.25 * (2.5 / 0.75) / math.sqrt(4.75 / 0.4375)
    np.testing.assert_allclose(params["w"][:2], [0.75 - expected, 1.25 + expected], rtol=1e-15)


def test_adamw_by_hand() -> None:
    # As above the first step is lr, whatever g; before it 0.25 * (0.5 * w + 0.125 * sign(w)).
    params = {"w": np.array([1.0, -2.0, 0.0])}
    AdamW(params, 0.25, (0.5, 0.75), 0.0, 0.5, 0.125).step({"w": [2.0, -2.0, 0.5]})
    assert params["w"].tolist() == [
        1.0 - 0.125 - 0.03125 - 0.25,
        -2.0 + 0.25 + 0.03125 + 0.25,
        -0.25,
    ]
    # Without gradients only the penalties act: there is no division by a moment of them.
    params = {"w": np.array([1.0, -2.0])}
    AdamW(params, 0.25, weight_decay=0.5).step({"w": [0.0, 0.0]})
    assert params["w"].tolist() == [0.875, -1.75]
    assert AdamW(params).state_dict()["weight_decay"] == 0.01


def test_rmsprop_by_hand() -> None:
    params = {"w": np.array([1.0])}
    optimizer = RMSprop(params, 0.25, 0.75, 0.0)
    optimizer.step({"w": [2.0]})
    assert params["w"][0] == 0.5  # v = 4 / 4
    optimizer.step({"w": [-1.0]})
    assert params["w"][0] == pytest.approx(0.5 + 0.25, rel=1e-15, abs=0)  # v = 3 / 4 + 1 / 4
    params = {"w": np.array([1.0])}
    optimizer = RMSprop(params, 0.25, 0.5, 1.0, momentum=0.5, centered=True)
    optimizer.step({"w": [2.0]})
    assert params["w"][0] == 0.75  # v = 2, m = 1, u = 2 / (1 + 1)
    optimizer.step({"w": [2.0]})
    # v = 3, m = 1.5, u = 0.5 + 2 / (sqrt(0.75) + 1)
    expected = 0.75 - 0.25 * (0.5 + 2 / (math.sqrt(0.75) + 1))
    assert params["w"][0] == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_variance_that_rounding_makes_negative_is_zero(dtype: str) -> None:
    # Under constant gradients v - m^2 tends to 0, and falls below it in the last digits.
    gradients = np.random.default_rng(6).standard_normal(200).astype(dtype)
    params = {"w": np.zeros(200, dtype)}
    optimizer = RMSprop(params, lr=0.1, alpha=0.5, eps=1.0, centered=True)
    negative = False
    for _ in range(60):
        optimizer.step({"w": gradients})
        state = optimizer.state_dict()
        negative |= bool((state["square.w"] < np.square(state["mean.w"])).any())
    assert negative
    assert np.isfinite(params["w"]).all()


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, RMSprop])
def test_l1_leaves_zeros_and_infinities_alone(make: Any) -> None:
    params = {"w": np.array([0.0, np.inf, -np.inf])}
    make(params, lr=0.5, weight_decay=0.0, l1=0.25).step({"w": np.zeros(3)})
    assert params["w"].tolist() == [0.0, np.inf, -np.inf]


@pytest.mark.parametrize("make", [SGD, Adam])
def test_both_find_the_bottom_of_a_bowl(make: Any) -> None:
    params = {"w": np.array([3.0, -4.0])}
    optimizer = make(params, lr=0.1)
    for _ in range(1000):
        optimizer.step({"w": 2 * (params["w"] - 1)})
    np.testing.assert_allclose(params["w"], [1.0, 1.0], rtol=0, atol=1e-6)


def test_the_learning_rate_can_follow_a_schedule() -> None:
    params = {"w": np.array([0.0])}
    optimizer = SGD(params, 1.0)
    optimizer.step({"w": [1.0]})
    optimizer.lr = np.float64(0.25)  # a schedule made by NumPy
    assert optimizer.lr == 0.25
    assert type(optimizer.lr) is float
    optimizer.step({"w": [1.0]})
    assert params["w"].tolist() == [-1.25]
    with pytest.raises(ValueError, match=r"lr: expected a finite number >= 0, got -1"):
        optimizer.lr = -1
    assert optimizer.lr == 0.25


@pytest.mark.parametrize("dtype", FLOATS)
def test_numpy_scalars_as_options_do_not_widen_float32(dtype: str) -> None:
    results = []
    for kind in (float, np.float64):
        params = drawn(3, dtype)
        Adam(params, lr=kind(0.1), betas=(kind(0.8), kind(0.9)), weight_decay=kind(0.1)).step(
            drawn(4)
        )
        results.append(params)
    assert all((results[0][name] == results[1][name]).all() for name in SHAPES)


# ---- Trees -------------------------------------------------------------------------------------


def test_layers_prefixes_and_results_of_backward() -> None:
    head, tail = Linear(3, 2, dtype="float64", seed=0), Linear(2, 1, dtype="float64", seed=1)
    h, tape_head = head.forward(np.ones((4, 3)))
    _, tape_tail = tail.forward(h)
    g_tail = tail.backward(tape_tail, np.ones((4, 1)))
    g_head = head.backward(tape_head, g_tail.x)
    expected = {
        f"{prefix}.{name}": layer.params[name] - 0.5 * g.params[name]
        for prefix, layer, g in (("head", head, g_head), ("deep.tail", tail, g_tail))
        for name in layer.params
    }
    SGD({"head": head, "deep": {"tail": tail.params}}, 0.5).step(
        {"deep": {"tail": g_tail}, "head": g_head.params}
    )
    for name, value in expected.items():
        prefix, _, own = name.rpartition(".")
        layer = head if prefix == "head" else tail
        np.testing.assert_array_equal(layer.params[own], value)
    before = head.params["bias"].copy()
    SGD(head, 0.5).step(g_head)
    np.testing.assert_array_equal(head.params["bias"], before - 0.5 * g_head.params["bias"])


def test_an_array_replaced_in_a_plain_dict_is_found() -> None:
    params = {"w": np.zeros(2)}
    optimizer = SGD(params, 1.0)
    params["w"] = np.ones(2)
    optimizer.step({"w": [1.0, 0.0]})
    assert params["w"].tolist() == [0.0, 1.0]
    for replaced, message in (
        (np.ones(3), r"params\['w'\]: expected shape \(2,\), got \(3,\)"),
        (np.ones(2, "float32"), r"params\['w'\]: expected dtype float64, got float32"),
    ):
        params["w"] = replaced
        with pytest.raises(ValueError, match=message):
            optimizer.step({"w": [1.0, 0.0]})
    params["v"] = np.ones(2)
    with pytest.raises(ValueError, match="params: unexpected 'v'"):
        optimizer.step({"w": [1.0, 0.0]})


@pytest.mark.parametrize("make", MAKERS)
def test_arrays_that_share_memory_change_one_after_the_other(make: Make) -> None:
    rng = np.random.default_rng(0)
    w, *grads = (rng.standard_normal((5, 5)) for _ in range(4))
    shared, alone = w.copy(), w.copy()
    one = make({"w": shared, "transposed": shared.T, "row": shared[1]})
    many = [make({"w": part}) for part in (alone, alone.T, alone[1])]
    for g in grads:
        one.step({"w": g, "transposed": g + 1, "row": g[2]})
        for optimizer, own in zip(many, (g, g + 1, g[2]), strict=True):
            optimizer.step({"w": own})
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize("make", MAKERS)
def test_an_array_may_be_its_own_gradient(make: Make) -> None:
    w = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    copied = w.copy()
    make({"w": w}).step({"w": w})
    make({"w": copied}).step({"w": copied.copy()})
    np.testing.assert_array_equal(w, copied)


def test_gradients_may_share_a_buffer_with_their_parameters() -> None:
    buffer = bytearray(8 * 64)
    w, g = np.frombuffer(buffer, np.float64, 63, 8), np.frombuffer(buffer, np.float64, 63)
    g[:] = np.random.default_rng(0).standard_normal(63)
    copied = {"w": w.copy()}
    Adam(copied).step({"w": g.copy()})
    Adam({"w": w}).step({"w": g})
    np.testing.assert_array_equal(w, copied["w"])


def test_a_layer_goes_on_in_one_thread_while_adam_steps_in_another() -> None:
    layer = rc.LSTM(8, 256, seed=0)
    x = np.zeros((20, 4, 8), np.float32)
    optimizer = Adam(layer, lr=1e-6)
    grads = {name: np.ones_like(w) for name, w in layer.params.items()}
    done = threading.Event()

    def steps() -> None:
        while not done.is_set():
            optimizer.step(grads)

    with ThreadPoolExecutor(1) as pool:
        stepping = pool.submit(steps)
        try:
            for _ in range(200):
                layer(x)
        finally:
            done.set()
        stepping.result()


def test_the_core_says_what_it_cannot_change() -> None:
    adam: Any = partial(
        _core.adam,
        lr=0.1,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.0,
        l1=0.0,
        decoupled=False,
        step=1.0,
    )
    w, g, m, v = (np.ones((2, 3), np.float32) for _ in range(4))
    with pytest.raises(TypeError, match=r"^w: expected an array of float32, got int64"):
        adam(np.ones((2, 3), np.int64), g, m, v)
    with pytest.raises(TypeError, match=r"^g: expected an array of float32, got float64"):
        adam(w, g.astype(np.float64), m, v)
    with pytest.raises(ValueError, match=r"^mean: expected shape \(2, 3\), got \(3, 2\)"):
        adam(w, g, m.reshape(3, 2), v)
    with pytest.raises(ValueError, match=r"^variance: expected a C-contiguous aligned array"):
        adam(w, g, m, np.ones((3, 2), np.float32).T)
    assert not adam(w, w, m, v)
    assert not adam(w, g, m, m)
    halves = np.frombuffer(bytearray(4 * 9), np.float32)
    assert not adam(halves[:6].reshape(2, 3), g, halves[3:].reshape(2, 3), v)
    assert (w == 1).all()
    assert (m == 1).all()
    v.flags.writeable = False
    assert not adam(w, g, m, v)
    v.flags.writeable = True
    assert adam(w, g, m, v)
    assert (w != 1).all()


@pytest.mark.parametrize("shape", [(70_001,), (300, 257), (1, 40_000), (3, 5, 20_000)])
@pytest.mark.parametrize("make", MAKERS)
def test_a_large_array_gets_what_its_parts_would_get(make: Make, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    start, *grads = (rng.standard_normal(shape).astype(np.float32) for _ in range(4))
    whole = {"w": np.asfortranarray(start)}

    def cut(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        pieces = np.split(array.ravel(), range(1000, array.size, 1000))
        return {str(n): piece for n, piece in enumerate(pieces)}

    parts = cut(start.copy())
    one, many = make(whole), make(parts)
    for g in grads:
        norm = clip_grad_norm({"w": g}, math.inf)
        assert norm == pytest.approx(clip_grad_norm(cut(g), math.inf), rel=1e-12, abs=0)
        one.step({"w": g})
        many.step(cut(g))
    np.testing.assert_array_equal(whole["w"].ravel(), np.concatenate(list(parts.values())))


def test_views_that_are_not_contiguous_are_changed_in_place() -> None:
    base = np.zeros((4, 6))
    params = {"w": base[::2, ::3], "t": np.zeros((2, 3)).T}
    for optimizer in (
        SGD(params, 1.0, momentum=0.5, weight_decay=0.1, l1=0.01),
        Adam(params, 1.0),
        AdamW(params, 1.0, l1=0.01),
        RMSprop(params, 1.0, momentum=0.5, centered=True),
    ):
        optimizer.step({"w": np.ones((2, 2)), "t": np.ones((3, 2))})
    assert (base[::2, ::3] == params["w"]).all()
    assert (params["w"] < -3.9).all()
    assert np.count_nonzero(base) == 4


def mixed() -> Parameters:
    return Parameters({"w": np.ones((2, 3)), "b": np.ones(2, "float32")})


BAD_GRADS: list[tuple[Any, type[Exception], str]] = [
    ({"w": np.ones((2, 3))}, ValueError, "grads: missing 'b'"),
    ({"w": np.ones((2, 3)), "b": [1, 1], "c": 1}, ValueError, "grads: unexpected 'c'"),
    ({}, ValueError, "grads: missing 'w', 'b'"),
    (
        {"w": np.ones((3, 2)), "b": [1, 1]},
        ValueError,
        r"grads\['w'\]: expected shape \(2, 3\), got",
    ),
    (
        {"w": np.ones((2, 3)), "b": 1.0},
        ValueError,
        r"grads\['b'\]: expected shape \(2,\), got \(\)",
    ),
    ({"w": np.ones((2, 3)), "b": [1j, 1]}, TypeError, r"grads\['b'\]: expected real numbers"),
    ({"w": np.ones((2, 3)), "b": [1e300, 1]}, ValueError, r"grads\['b'\]: .* range of float32"),
    ({"w": np.ones((2, 3)), "b": None}, TypeError, r"grads\['b'\]: expected real .* got NoneType"),
    ({"w": np.ones((2, 3)), 1: [1, 1]}, TypeError, "grads: expected names that are text, got 1"),
    ([np.ones((2, 3))], TypeError, "grads: expected a mapping of names to arrays, .* got list"),
    (None, TypeError, "grads: expected a mapping .* got NoneType"),
]


@pytest.mark.parametrize(("grads", "error", "message"), BAD_GRADS)
@pytest.mark.parametrize("make", MAKERS)
def test_a_failing_step_changes_nothing(
    make: Make, grads: Any, error: type[Exception], message: str
) -> None:
    params = mixed()
    optimizer = make(params)
    optimizer.step(dict(mixed()))
    before = {name: array.copy() for name, array in params.items()}
    state = optimizer.state_dict()
    with pytest.raises(error, match=message):
        optimizer.step(grads)
    assert all((params[name] == before[name]).all() for name in params)
    assert all((value == state[name]).all() for name, value in optimizer.state_dict().items())


@pytest.mark.parametrize("make", MAKERS)
def test_a_read_only_parameter_stops_the_step_before_it_begins(make: Make) -> None:
    params = mixed()
    optimizer = make(params)
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['b'\]: .* got a read-only one"):
        optimizer.step(dict(mixed()))
    assert (params["w"] == 1).all()


@pytest.mark.parametrize("make", [*MAKERS[:3], RMSprop])
def test_nan_stays_in_its_element_and_settings_of_numpy_do_not_matter(make: Make) -> None:
    params = {"w": np.ones(3, "float32")}
    with np.errstate(all="raise"):
        make(params).step({"w": np.array([np.nan, 1.0, 1e30], "float32")})
    assert np.isnan(params["w"]).tolist() == [True, False, False]


BAD_PARAMS: list[tuple[Any, type[Exception], str]] = [
    ({}, ValueError, "params: expected at least one array, got none"),
    ({"a": {}}, ValueError, "params: expected at least one array, got none"),
    ({"w": [1.0]}, TypeError, r"params\['w'\]: expected a float32 or float64 .* got list"),
    (
        {"w": np.ones(2, int)},
        TypeError,
        r"params\['w'\]: expected a float32 or float64 .* got int64",
    ),
    ({"w": np.ones(2, ">f8")}, TypeError, r"params\['w'\]: .* got >f8"),
    ({"a": {"w": None}}, TypeError, r"params\['a.w'\]: .* got NoneType"),
    ({1: np.ones(2)}, TypeError, "params: expected names that are text, got 1"),
    ({"a": {"b": np.ones(2)}, "a.b": np.ones(2)}, ValueError, "params: .* got 'a.b' twice"),
    ([np.ones(2)], TypeError, "params: expected a mapping of names to arrays"),
    (SimpleNamespace(params=3), TypeError, "params: expected a mapping .* got SimpleNamespace"),
]


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS)
@pytest.mark.parametrize("call", [lambda p: SGD(p, 0.1), Adam, AdamW, RMSprop])
def test_params_that_cannot_be_optimized(
    call: Make, params: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(params)


@pytest.mark.parametrize(
    "call",
    [Adam, lambda tree: clip_grad_norm(tree, 1.0), lambda tree: clip_grad_value(tree, 1.0)],
)
def test_read_only_and_shared_arrays_are_refused(call: Callable[[Any], object]) -> None:
    shared = np.ones(2)
    with pytest.raises(ValueError, match=r"\['b.v'\]: expected every array once, got 'w' again"):
        call({"w": shared, "b": {"v": shared}})
    shared.flags.writeable = False
    with pytest.raises(ValueError, match=r"\['w'\]: .* got a read-only one"):
        call({"w": shared})


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (SGD, {"lr": -0.1}, ValueError, "lr: expected a finite number >= 0, got -0.1"),
        (SGD, {"lr": math.nan}, ValueError, "lr: expected a finite number >= 0, got nan"),
        (SGD, {"lr": math.inf}, ValueError, "lr: expected a finite number >= 0, got inf"),
        (SGD, {"lr": 10**400}, ValueError, "lr: expected a number in the range of float64"),
        (SGD, {"lr": "0.1"}, TypeError, "lr: expected a real number, got '0.1'"),
        (SGD, {"lr": True}, TypeError, "lr: expected a real number, got True"),
        (SGD, {"lr": None}, TypeError, "lr: expected a real number, got None"),
        (SGD, {"lr": 1j}, TypeError, "lr: expected a real number, got 1j"),
        (
            SGD,
            {"lr": 1, "momentum": 1.0},
            ValueError,
            "momentum: expected 0 <= number < 1, got 1.0",
        ),
        (SGD, {"lr": 1, "momentum": -0.1}, ValueError, "momentum: expected 0 <= number < 1, got -"),
        (SGD, {"lr": 1, "nesterov": True}, ValueError, "nesterov: expected momentum > 0 beside it"),
        (SGD, {"lr": 1, "nesterov": 1}, TypeError, "nesterov: expected True or False, got 1"),
        (SGD, {"lr": 1, "weight_decay": -1}, ValueError, "weight_decay: expected a finite number"),
        (SGD, {"lr": 1, "l1": -1}, ValueError, "l1: expected a finite number >= 0, got -1"),
        (SGD, {"lr": 1, "l1": True}, TypeError, "l1: expected a real number, got True"),
        (Adam, {"betas": (0.9, 1.0)}, ValueError, "beta2: expected 0 <= number < 1, got 1.0"),
        (Adam, {"betas": (-0.1, 0.9)}, ValueError, "beta1: expected 0 <= number < 1, got -0.1"),
        (Adam, {"betas": (0.9,)}, ValueError, "betas: expected 2 numbers, got 1"),
        (Adam, {"betas": 0.9}, TypeError, "betas: expected a pair of numbers, got float"),
        (Adam, {"eps": -1e-8}, ValueError, "eps: expected a finite number >= 0, got -1e-08"),
        (Adam, {"lr": -1}, ValueError, "lr: expected a finite number >= 0, got -1"),
        (Adam, {"weight_decay": "a"}, TypeError, "weight_decay: expected a real number, got 'a'"),
        (Adam, {"l1": math.inf}, ValueError, "l1: expected a finite number >= 0, got inf"),
        (AdamW, {"betas": (0.9, 1.0)}, ValueError, "beta2: expected 0 <= number < 1, got 1.0"),
        (
            AdamW,
            {"weight_decay": -1},
            ValueError,
            "^weight_decay: expected a finite number >= 0, got -1",
        ),
        (RMSprop, {"alpha": 1}, ValueError, "alpha: expected 0 <= number < 1, got 1"),
        (RMSprop, {"momentum": 1.0}, ValueError, "momentum: expected 0 <= number < 1, got 1.0"),
        (RMSprop, {"eps": -1}, ValueError, "eps: expected a finite number >= 0, got -1"),
        (RMSprop, {"centered": 1}, TypeError, "centered: expected True or False, got 1"),
        (RMSprop, {"l1": None}, TypeError, "l1: expected a real number, got None"),
    ],
)
def test_bad_options(make: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make({"w": np.zeros(2)}, **options)


# ---- State -------------------------------------------------------------------------------------


def through_file(state: Mapping[str, Any]) -> Mapping[str, Any]:
    buffer = io.BytesIO()
    np.savez(buffer, **state)
    buffer.seek(0)
    with np.load(buffer) as stored:
        return dict(stored)


@pytest.mark.parametrize(("make", "options"), OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_run_resumed_from_one_file_has_the_same_bits(
    make: Any, options: Any, dtype: str, tmp_path: Path
) -> None:
    options = {"lr": 0.1, **options}
    params = drawn(0, dtype)
    optimizer = make(params, **options)
    for seed in (1, 2, 3):
        optimizer.step(drawn(seed))
    file = tmp_path / "run.safetensors"
    rc.save(file, {"model": params, "optimizer": optimizer.state_dict()})
    for seed in (4, 5, 6):
        optimizer.step(drawn(seed))

    resumed_params = drawn(7, dtype)
    resumed = make(resumed_params, **options)
    state = resumed.state_dict()
    rc.load(file, into={"model": resumed_params, "optimizer": state})
    resumed.load_state_dict(state)
    for seed in (4, 5, 6):
        resumed.step(drawn(seed))
    assert all(resumed_params[name].tobytes() == params[name].tobytes() for name in SHAPES)
    after, expected = resumed.state_dict(), optimizer.state_dict()
    assert list(after) == list(expected)
    assert all(after[name].tobytes() == expected[name].tobytes() for name in expected)
    assert {value.dtype for name, value in after.items() if "." in name} <= {np.dtype(dtype)}


@pytest.mark.parametrize(("make", "options"), OPTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_resumed_run_has_the_same_bits(make: Any, options: Any, dtype: str) -> None:
    params = drawn(0, dtype)
    optimizer = make(params, **options)
    for seed in (1, 2, 3):
        optimizer.step(drawn(seed))
    optimizer.lr = 0.05
    stored = {name: array.copy() for name, array in params.items()}
    resumed = make(stored, lr=7.0)
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    pickled_params, pickled = pickle.loads(pickle.dumps((params, optimizer)))
    copied_params, copied = copy.deepcopy((params, optimizer))
    for seed in (4, 5, 6):
        for one in (optimizer, resumed, pickled, copied):
            one.step(drawn(seed))
    for other in (stored, pickled_params, copied_params):
        assert all(other[name].tobytes() == params[name].tobytes() for name in SHAPES)
    assert resumed.lr == pickled.lr == copied.lr == 0.05


def test_copies_of_a_layer_and_its_optimizer_stay_together() -> None:
    layer = Linear(2, 1, dtype="float64", seed=0)
    pair = (layer, Adam({"head": layer.params}))
    for other_layer, optimizer in (pickle.loads(pickle.dumps(pair)), copy.deepcopy(pair)):
        optimizer.step({"head": {"weight": [[1.0, 1.0]], "bias": [1.0]}})
        assert (other_layer.params["weight"] != layer.params["weight"]).all()


def test_state_dict_is_a_copy_under_plain_names() -> None:
    params = {"w": np.zeros(2)}
    sgd, adam = SGD(params, 0.5, 0.25), Adam(params)
    plain = ["lr", "momentum", "nesterov", "weight_decay", "l1"]
    assert list(sgd.state_dict()) == [*plain, "velocity.w"]
    assert list(SGD(params, 0.5).state_dict()) == plain
    assert list(adam.state_dict()) == [
        "lr", "beta1", "beta2", "eps", "weight_decay", "l1", "decoupled", "step",
        "mean.w", "variance.w",
    ]  # fmt: skip
    plain = ["lr", "alpha", "eps", "momentum", "centered", "weight_decay", "l1"]
    full = RMSprop(params, momentum=0.5, centered=True)
    assert list(full.state_dict()) == [*plain, "square.w", "mean.w", "velocity.w"]
    assert list(RMSprop(params).state_dict()) == [*plain, "square.w"]
    sgd.step({"w": [1.0, 2.0]})
    adam.step({"w": [1.0, 2.0]})
    state = sgd.state_dict()
    assert state["velocity.w"].tolist() == [1.0, 2.0]
    assert adam.state_dict()["step"] == 1
    assert {value.dtype for value in adam.state_dict().values()} == {np.dtype("float64")}
    state["velocity.w"][:] = 9
    assert sgd.state_dict()["velocity.w"].tolist() == [1.0, 2.0]
    fresh = SGD(params, 0.5)
    fresh.load_state_dict(state)
    state["velocity.w"][:] = 5
    assert fresh.state_dict()["velocity.w"].tolist() == [9.0, 9.0]


def test_loading_takes_over_whether_there_is_momentum() -> None:
    params = {"w": np.zeros(2)}
    optimizer = SGD(params, 0.5, 0.25)
    optimizer.load_state_dict(SGD(params, 0.125).state_dict())
    optimizer.step({"w": [1.0, 0.0]})
    optimizer.step({"w": [1.0, 0.0]})
    assert params["w"].tolist() == [-0.25, 0.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr": None}, ValueError, "state: missing 'lr'"),
        ({"mean.w": None}, ValueError, "state: missing 'mean.w'"),
        ({"mean.v": [1.0]}, ValueError, "state: unexpected 'mean.v'"),
        ({"mean.w": [1.0]}, ValueError, r"state\['mean.w'\]: expected shape \(2,\), got \(1,\)"),
        ({"variance.w": [1j, 1]}, TypeError, r"state\['variance.w'\]: expected real numbers"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": [1.0]}, ValueError, r"state\['lr'\]: expected shape \(\), got \(1,\)"),
        ({"lr": "1"}, TypeError, r"state\['lr'\]: expected real numbers"),
        ({"beta1": 1.0}, ValueError, "beta1: expected 0 <= number < 1, got 1.0"),
        ({"step": 1.5}, ValueError, "step: expected a whole number, got 1.5"),
        ({"step": -1}, ValueError, "step: expected a finite number >= 0, got -1.0"),
    ],
)
def test_a_failing_load_changes_nothing(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    optimizer = Adam({"w": np.zeros(2)}, lr=0.5)
    optimizer.step({"w": [1.0, 2.0]})
    before = optimizer.state_dict()
    wrong: dict[str, Any] = {**Adam({"w": np.zeros(2)}).state_dict(), **change}
    with pytest.raises(error, match=message):
        optimizer.load_state_dict({key: value for key, value in wrong.items() if value is not None})
    after = optimizer.state_dict()
    assert all((after[name] == before[name]).all() for name in before)


def test_states_of_another_kind_are_refused() -> None:
    params = {"w": np.zeros(2)}
    with pytest.raises(ValueError, match="state: missing 'momentum', 'nesterov'"):
        SGD(params, 0.1).load_state_dict(Adam(params).state_dict())
    with pytest.raises(ValueError, match="nesterov: expected 0 or 1, got 0.5"):
        SGD(params, 0.1).load_state_dict(
            {"lr": 1, "momentum": 0.5, "nesterov": 0.5, "weight_decay": 0, "l1": 0}
        )
    with pytest.raises(ValueError, match="decoupled: expected 1 for AdamW, got 0.0"):
        AdamW(params).load_state_dict(Adam(params).state_dict())
    with pytest.raises(ValueError, match="decoupled: expected 0 for Adam, got 1.0"):
        Adam(params).load_state_dict(AdamW(params).state_dict())
    with pytest.raises(ValueError, match="centered: expected 0 or 1, got 2.0"):
        RMSprop(params).load_state_dict({**RMSprop(params).state_dict(), "centered": 2})
    no_mapping: Any = [1]
    with pytest.raises(TypeError, match="state: expected a mapping, got list"):
        SGD(params, 0.1).load_state_dict(no_mapping)


def test_repr_shows_settings() -> None:
    params = {"w": np.zeros(2), "b": np.zeros(1)}
    assert repr(SGD(params, 0.1)) == (
        "<SGD of 2 arrays: lr=0.1, momentum=0, nesterov=0, weight_decay=0, l1=0>"
    )
    assert repr(Adam(params)).startswith(
        "<Adam of 2 arrays: lr=0.001, beta1=0.9, beta2=0.999, eps=1"
    )


# ---- Clipping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_clipping_scales_to_the_joint_norm(dtype: str) -> None:
    grads = drawn(5, dtype)
    before = {name: array.astype("float64") for name, array in grads.items()}
    live = dict(grads)
    expected = math.sqrt(sum(float(x) ** 2 for array in before.values() for x in array.flat))
    norm = clip_grad_norm(
        {
            "a": {"w": grads["w"]},
            "b": SimpleNamespace(params={"b": grads["b"]}),
            **{name: grads[name] for name in ("scalar", "empty")},
        },
        0.5,
    )
    assert type(norm) is float
    assert norm == pytest.approx(expected, rel=1e-14, abs=0)
    after = math.sqrt(sum(float(x) ** 2 for array in grads.values() for x in array.flat))
    assert after == pytest.approx(0.5, rel=1e-7 if dtype == "float32" else 1e-14, abs=0)
    for name in SHAPES:
        assert grads[name] is live[name]
        assert grads[name].dtype == dtype
        scaled = (before[name] * (0.5 / norm)).astype(dtype)
        np.testing.assert_allclose(grads[name], scaled, rtol=1e-7 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("limit", [5.0, 6, math.inf, np.float32(5.0)])
def test_gradients_within_the_limit_are_left_alone(limit: Any) -> None:
    grads = {"w": np.array([3.0, 0.0]), "b": np.array([4.0])}
    assert clip_grad_norm(grads, limit) == 5.0
    assert (grads["w"].tolist(), grads["b"].tolist()) == ([3.0, 0.0], [4.0])


@pytest.mark.parametrize(
    ("bad", "norm"), [(math.nan, math.nan), (math.inf, math.inf), (-math.inf, math.inf)]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_norm_that_is_not_finite_changes_nothing(bad: float, norm: float, dtype: str) -> None:
    grads = {"w": np.array([3.0, bad], dtype), "b": np.array([4.0], dtype)}
    with np.errstate(all="raise"):
        np.testing.assert_equal(clip_grad_norm(grads, 1.0), norm)
    assert (float(grads["w"][0]), float(grads["b"][0])) == (3.0, 4.0)
    both = {"w": np.array([math.nan, math.inf], dtype)}
    assert math.isnan(clip_grad_norm(both, 1.0))


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e-320, 1e160, 1e-160])
def test_squares_that_leave_the_range_of_float64(scale: float) -> None:
    grads = {"w": np.array([3.0, 0.0]) * scale, "b": np.array([4.0]) * scale}
    # The smallest are denormal: their own digits are few.
    tolerance = 1e-3 if scale == 1e-320 else 1e-14
    assert clip_grad_norm(grads, math.inf) == pytest.approx(5 * scale, rel=tolerance, abs=0)
    if scale > 1:
        clip_grad_norm(grads, 1.0)
        np.testing.assert_allclose([grads["w"][0], grads["b"][0]], [0.6, 0.8], rtol=1e-14)


def test_large_float32_gradients_keep_their_direction() -> None:
    grads = {"w": np.array([3e37, 4e37], "float32")}
    assert clip_grad_norm(grads, 1e-8) == pytest.approx(5e37, rel=1e-6, abs=0)
    np.testing.assert_allclose(grads["w"], [6e-9, 8e-9], rtol=1e-6)


def test_zero_gradients() -> None:
    grads = {"w": np.zeros(2), "empty": np.zeros(0)}
    assert clip_grad_norm(grads, 1.0) == 0.0
    assert grads["w"].tolist() == [0.0, 0.0]


def test_the_result_of_backward_is_clipped_in_place() -> None:
    layer = Linear(2, 1, dtype="float64", seed=0)
    _, tape = layer.forward([[3.0, 4.0]])
    g = layer.backward(tape, [[1.0]])
    assert clip_grad_norm({"head": g}, 1e-3) == pytest.approx(math.sqrt(26), rel=1e-15, abs=0)
    assert g.params["bias"][0] == pytest.approx(1e-3 / math.sqrt(26), rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("grads", "max_norm", "error", "message"),
    [
        ({"w": np.ones(2)}, 0.0, ValueError, "max_norm: expected a number > 0, got 0.0"),
        ({"w": np.ones(2)}, -1, ValueError, "max_norm: expected a number > 0, got -1"),
        ({"w": np.ones(2)}, math.nan, ValueError, "max_norm: expected a number > 0, got nan"),
        ({"w": np.ones(2)}, "1", TypeError, "max_norm: expected a real number, got '1'"),
        ({"w": np.ones(2)}, True, TypeError, "max_norm: expected a real number, got True"),
        ({}, 1.0, ValueError, "grads: expected at least one array, got none"),
        ({"w": [1.0]}, 1.0, TypeError, r"grads\['w'\]: expected a float32 or float64 .* got list"),
        (np.ones(2), 1.0, TypeError, "grads: expected a mapping of names .* got ndarray"),
    ],
)
def test_clipping_errors(grads: Any, max_norm: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        clip_grad_norm(grads, max_norm)


@pytest.mark.parametrize("dtype", FLOATS)
def test_clipping_by_value_holds_each_element_within_the_limit(dtype: str) -> None:
    grads = drawn(5, dtype)
    before = {name: array.copy() for name, array in grads.items()}
    live = dict(grads)
    tree = {"a": {"w": grads["w"]}, **{name: grads[name] for name in ("b", "scalar", "empty")}}
    clip_grad_value(tree, np.float64(0.5))
    changed = 0
    for name, shape in SHAPES.items():
        assert grads[name] is live[name]
        assert grads[name].dtype == dtype
        for i in np.ndindex(shape):
            expected = max(-0.5, min(0.5, float(before[name][i])))
            assert float(grads[name][i]) == expected
            changed += expected != float(before[name][i])
    assert 0 < changed < 17


@pytest.mark.parametrize("dtype", FLOATS)
def test_clipping_by_value_of_what_is_not_finite(dtype: str) -> None:
    grads = {"w": np.array([math.nan, math.inf, -math.inf, 1.0], dtype)}
    with np.errstate(all="raise"):
        clip_grad_value(grads, math.inf)
        np.testing.assert_array_equal(grads["w"], [math.nan, math.inf, -math.inf, 1.0])
        clip_grad_value(grads, 1e300)
        clip_grad_value(grads, 2)
    np.testing.assert_array_equal(grads["w"], [math.nan, 2.0, -2.0, 1.0])


def test_clipping_by_value_changes_the_result_of_backward() -> None:
    layer = Linear(2, 1, dtype="float64", seed=0)
    _, tape = layer.forward([[3.0, -4.0]])
    g = layer.backward(tape, [[1.0]])
    clip_grad_value({"head": g}, 2.0)
    assert g.params["weight"].tolist() == [[2.0, -2.0]]
    assert g.params["bias"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("grads", "max_value", "error", "message"),
    [
        ({"w": np.ones(2)}, 0.0, ValueError, "max_value: expected a number > 0, got 0.0"),
        ({"w": np.ones(2)}, -1, ValueError, "max_value: expected a number > 0, got -1"),
        ({"w": np.ones(2)}, math.nan, ValueError, "max_value: expected a number > 0, got nan"),
        ({"w": np.ones(2)}, "1", TypeError, "max_value: expected a real number, got '1'"),
        ({}, 1.0, ValueError, "grads: expected at least one array, got none"),
        ({"w": [1.0]}, 1.0, TypeError, r"grads\['w'\]: expected a float32 or float64 .* got list"),
    ],
)
def test_errors_of_clipping_by_value(
    grads: Any, max_value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        clip_grad_value(grads, max_value)


@pytest.mark.parametrize(
    "call",
    [
        lambda params, grads: clip_grad_norm(grads, 1e-3),
        lambda params, grads: clip_grad_value(grads, 1e-3),
        lambda params, grads: SGD(params, 0.1).step(grads),
    ],
)
@pytest.mark.parametrize("make", [lambda: rc.GRU(2, 3, seed=0), lambda: Linear(2, 3, seed=0)])
def test_layers_are_not_taken_for_gradients(call: Any, make: Any) -> None:
    layer = make()
    before = {name: array.copy() for name, array in layer.params.items()}
    name = type(layer).__name__
    for tree, grads, where, got in (
        (layer, layer, "grads", name),
        (layer.params, layer.params, "grads", "Parameters"),
        ({"a": layer}, {"a": layer}, r"grads\['a'\]", name),
        ({"a": {"b": layer}}, {"a": {"b": layer.params}}, r"grads\['a.b'\]", "Parameters"),
    ):
        expected = "expected gradients, such as backward returns"
        with pytest.raises(TypeError, match=f"^{where}: {expected}, got {got}, which holds weight"):
            call(tree, grads)
    assert all((layer.params[name] == before[name]).all() for name in before)
