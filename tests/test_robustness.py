"""Numbers that are no ordinary numbers: NaN, infinities, denormals, and padding full of them.

What a bad number must not reach keeps its bits; what is beyond the lengths is exactly 0. Threads,
forks and hostile arguments are in test_bad_input.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradcheck import Problem, members
from rnncore import reference
from rnncore.reference import State
from support_layers import (
    DTYPES,
    FORMS,
    TOLERANCES,
    Arrays,
    assert_close,
    assert_same_bits,
    draw_problem,
    expected,
    is_sequence,
    make_config,
    make_layer,
    padding,
    run_native,
)

pytestmark = pytest.mark.usefixtures("level")

every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

#: Rows enough for two tiles of any height, so that a bad row has neighbours in its own.
T, B, I, H = 7, 13, 5, 19

#: Where the bad number is.
STEP, ROW = 3, 6
OTHERS = np.arange(B) != ROW


@cache
def clean(form: str, direction: str, L: int = 2, ragged: bool = False) -> Problem:
    """Draw a problem of finite numbers; ragged ones have NaN beyond the lengths."""
    config = make_config(form, direction, num_layers=L, input_size=I, hidden_size=H)
    return draw_problem(config, 13, T=T, B=B, ragged=ragged)


def spoilt(problem: Problem, where: str, value: float) -> Problem:
    """Put a value into one row of x, dy, the initial state or the final state's gradient."""
    changed: dict[str, Any] = {}
    if where in ("x", "dy"):
        changed[where] = getattr(problem, where).copy()
        changed[where][STEP, ROW, 2] = value
    else:
        parts = tuple(member.copy() for member in members(getattr(problem, where)))
        for part in parts:
            part[:, ROW, 2] = value
        changed[where] = parts if len(parts) == 2 else parts[0]
    return replace(problem, **changed)


def of_rows(results: Arrays, rows: npt.NDArray[np.bool_]) -> Arrays:
    """Take some rows of everything but the gradients of parameters, which sum over rows."""
    return {name: array[:, rows] for name, array in results.items() if not name.startswith("d_")}


# ------------------------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("where", ["x", "state", "dy", "dstate"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("direction", ["forward", "concat", "mul"])
@every_form
def test_a_bad_number_stays_in_its_row(form: str, direction: str, value: float, where: str) -> None:
    problem = clean(form, direction)
    bad = spoilt(problem, where, value)
    for dtype in DTYPES:
        good, results = run_native(problem, dtype=dtype), run_native(bad, dtype=dtype)
        assert_same_bits(of_rows(results, OTHERS), of_rows(good, OTHERS))
        touched = of_rows(results, ~OTHERS)
        if np.isnan(value):
            assert any(np.isnan(array).any() for array in touched.values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@every_dtype
@every_form
def test_a_bad_input_is_felt_from_its_step_on(form: str, value: float, dtype: str) -> None:
    """In time order by the forward direction, against it by the reverse one."""
    problem = clean(form, "concat", L=1)
    good = run_native(problem, dtype=dtype)
    results = run_native(spoilt(problem, "x", value), dtype=dtype)
    before, after = slice(0, STEP), slice(STEP + 1, None)
    y, good_y = results["y"][:, ROW], good["y"][:, ROW]
    assert_same_bits({"forward": y[before, :H]}, {"forward": good_y[before, :H]})
    assert_same_bits({"reverse": y[after, H:]}, {"reverse": good_y[after, H:]})
    assert_same_bits({"h": results["h"][:, OTHERS]}, {"h": good["h"][:, OTHERS]})
    if np.isnan(value):
        assert np.isnan(y[STEP:, :H]).all()
        assert np.isnan(y[: STEP + 1, H:]).all()
        assert np.isnan(results["h"][:, ROW]).all()


@every_dtype
@every_form
def test_a_bad_output_gradient_is_felt_from_its_step_back(form: str, dtype: str) -> None:
    """Against time by the forward direction's gradients, in time order by the reverse one's."""
    problem = clean(form, "sum", L=1)
    good = run_native(problem, dtype=dtype)
    results = run_native(spoilt(problem, "dy", np.nan), dtype=dtype)
    after, before = slice(STEP + 1, None), slice(0, STEP)
    for part, untouched in (("l0", after), ("l0_reverse", before)):
        name = f"{part}.dh"
        steps = {name: results[name][untouched, ROW]}
        assert_same_bits(steps, {name: good[name][untouched, ROW]})
        assert np.isnan(results[name][STEP, ROW]).any()
    for name in ("y", "h", "c"):
        if name in good:
            assert_same_bits({name: results[name]}, {name: good[name]})


@every_dtype
@every_form
def test_nan_appears_where_the_reference_has_it(form: str, dtype: str) -> None:
    """Whatever came out, no NaN is lost and none is made: NaN in x and in the states."""
    problem = clean(form, "concat", L=1)
    for where in ("x", "state"):
        bad = spoilt(problem, where, np.nan)
        wanted, actual = expected(bad), run_native(bad, dtype=dtype)
        for name in ("y", "h", "dx", "dh0"):
            np.testing.assert_array_equal(np.isnan(actual[name]), np.isnan(wanted[name]), name)


# --------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("direction", ["forward", "concat", "sum", "mean", "mul"])
@every_form
def test_padding_reaches_nothing(form: str, direction: str, value: float) -> None:
    """Not even the gradients of parameters; and everything there is exactly 0."""
    problem = clean(form, direction, ragged=True)
    beyond = padding(problem)
    filled = replace(problem, x=problem.x.copy(), dy=problem.dy.copy())
    zeros = replace(problem, x=problem.x.copy(), dy=problem.dy.copy())
    filled.x[beyond] = filled.dy[beyond] = value
    zeros.x[beyond] = zeros.dy[beyond] = 0.0
    for dtype in DTYPES:
        results = run_native(filled, dtype=dtype)
        assert_same_bits(results, run_native(zeros, dtype=dtype))
        for name, array in results.items():
            assert np.isfinite(array).all(), name
            assert not is_sequence(name) or not array[beyond].any(), name


# ------------------------------------------------------------------------------------- denormals


def smallest_normal(dtype: str) -> float:
    return float(np.finfo(dtype).smallest_normal)


@every_dtype
@every_form
def test_denormal_numbers_come_in_like_others(form: str, dtype: str) -> None:
    """In x, in the states, in the gradients; alone and among ordinary numbers."""
    tiny = smallest_normal(dtype) / 8
    problem = clean(form, "concat")
    for share in (0.5, 1.0):
        rng = np.random.default_rng(14)

        def thin(array: reference.Array, rng: Any = rng, share: float = share) -> reference.Array:
            denormal = rng.random(array.shape) < share
            return np.where(denormal, tiny * np.sign(array), array).astype(dtype)

        def thin_state(state: State) -> State:
            return (thin(state[0]), thin(state[1])) if isinstance(state, tuple) else thin(state)

        thinned = replace(
            problem,
            params={name: p.astype(dtype) for name, p in problem.params.items()},
            x=thin(problem.x),
            state=thin_state(problem.state),
            dy=thin(problem.dy),
            dstate=thin_state(problem.dstate),
        )
        assert 0 < np.abs(thinned.x).min() < smallest_normal(dtype)
        assert_close(run_native(thinned, dtype=dtype), expected(thinned), TOLERANCES[dtype])


@every_dtype
@every_form
def test_a_state_that_fades_ends_at_zero(form: str, dtype: str) -> None:
    """Carried values never become denormal, forward or backward, where every step costs more.

    With all weights 0 the gates are 1/2 and the candidate is 0: the state of every gated cell, and
    with U = 1/2 that of the vanilla ones, halves at each step, and so does the gradient.
    """
    steps = 160 if dtype == "float32" else 1200
    config = make_config(form, "forward", input_size=1, hidden_size=H, bias=False)
    params = {name: np.zeros(shape) for name, shape in config.parameter_shapes().items()}
    if config.cell == "rnn":
        params["weight_hh_l0"] = 0.5 * np.eye(H)
    layer = make_layer(config, params, dtype=dtype)
    start = np.full((1, 2, H), 1e-3)
    state = (start, start) if config.cell == "lstm" else start
    y, final, tape = layer.forward(np.zeros((steps, 2, 1)), state)
    g = layer.backward(tape, None, state, return_state_grads=True)
    member = "c" if config.cell == "lstm" else "h"
    for fading in (y, g.state_grads["l0"][member]):
        values = np.abs(fading)
        assert values.any()
        assert not values[(values < smallest_normal(dtype))].any()
    for faded in (*members(final), *members(g.state)):
        assert not faded.any()
