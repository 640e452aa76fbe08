"""Random layers, every option at once: native against reference.

A case is a number: the same number draws the same layer on every machine with the same instruction
levels. What fails names its case, and

    pytest tests/test_properties.py --first-case NUMBER --cases 1

runs it again; `--cases N` runs more of them than the usual 2,000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

import rnncore as rc
from gradcheck import Problem, members
from rnncore import reference
from rnncore.reference import Config, State
from support_layers import (
    DIRECTIONS,
    DTYPES,
    FORMS,
    TOLERANCES,
    Arrays,
    assert_close,
    assert_same_bits,
    by_name,
    draw_problem,
    expected,
    layer_of,
    make_config,
)

#: Cases of one test.
BLOCK = 100

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """All that distinguishes a case from another, apart from its numbers."""

    number: int
    form: str
    direction: str
    config: Config
    dtype: str
    level: str
    threads: int
    T: int
    B: int
    lengths: tuple[int, ...] | None
    layout: str  # "time first", "batch first", "unbatched"
    masked: bool
    checkpoint: int | None
    state: bool  # given, or None
    dy: bool
    dstate: str  # the members that are given: "", "h", "c", "hc"
    keep: bool


def draw_case(number: int) -> Case:
    """Draw the case of a number."""
    rng = np.random.default_rng(number)

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    def one_of(choices: Any) -> Any:
        options = list(choices)
        return options[rng.integers(len(options))]

    # Most cases are small; a few are large enough for several threads and several chunks.
    large = chance(0.03)
    T = int(rng.integers(10, 30)) if large else one_of((0, 1, 1, 2, 3, 4, 5, 7, 10))
    B = int(rng.integers(12, 30)) if large else one_of((0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 13))
    H = int(rng.integers(60, 100)) if large else one_of((*range(1, 21), 31, 32, 33, 65))
    I = one_of((1, 2, 3, 5, 8, 16, 17, 33))
    L = one_of((1, 1, 2, 2, 3))
    layout = one_of(("time first", "time first", "batch first", "unbatched"))
    if layout == "unbatched":
        B = 1
    lengths = None
    if layout != "unbatched" and chance(0.6):
        drawn = rng.integers(0, T + 1, size=B)
        lengths = tuple(int(n) for n in np.where(rng.random(B) < 0.2, one_of((0, T)), drawn))
    form, direction = one_of(FORMS), one_of(DIRECTIONS)
    config = make_config(
        form,
        direction,
        input_size=I,
        hidden_size=H,
        num_layers=L,
        bias=chance(0.8),
        dropout=one_of((0.0, 0.3, 0.9)) if L > 1 else 0.0,
        recurrent_dropout=one_of((0.0, 0.3, 0.9)),
    )
    return Case(
        number=number,
        form=form,
        direction=direction,
        config=config,
        dtype=one_of(DTYPES),
        level=one_of(rc.levels()),
        threads=one_of((1, 2, 3, 8)),
        T=T,
        B=B,
        lengths=lengths,
        layout=layout,
        masked=chance(0.7),
        checkpoint=one_of((None, None, 1, 2, 3, T + 1)),
        state=chance(0.7),
        dy=chance(0.8),
        dstate=one_of(("", "h", "c", "hc") if config.cell == "lstm" else ("", "h")),
        keep=chance(0.2),
    )


def problem_of(case: Case) -> Problem:
    """Draw the numbers; what is not given is 0."""
    lengths = None if case.lengths is None else np.array(case.lengths, dtype=np.int64)
    return draw_problem(
        case.config,
        case.number,
        dtype=case.dtype,
        T=case.T,
        B=case.B,
        masked=case.masked,
        lengths=lengths,
        change=without_missing(case),
    )


def without_missing(case: Case) -> Callable[[Problem], Problem]:
    """Put zeros where nothing is given."""

    def kept(array: reference.Array, given: bool) -> reference.Array:
        return array if given else np.zeros_like(array)

    def kept_members(state: State, given: str) -> State:
        if isinstance(state, tuple):
            return kept(state[0], "h" in given), kept(state[1], "c" in given)
        return kept(state, "h" in given)

    def change(problem: Problem) -> Problem:
        return replace(
            problem,
            state=kept_members(problem.state, "hc" if case.state else ""),
            dy=kept(problem.dy, case.dy),
            dstate=kept_members(problem.dstate, case.dstate),
        )

    return change


# ------------------------------------------------------------------------- the layer's own layout


def to_layout(array: Array, layout: str) -> Array:
    """(T, B, ·) as the layer takes it."""
    if layout == "unbatched":
        return array[:, 0]
    return array.swapaxes(0, 1) if layout == "batch first" else array


def from_layout(array: Array, layout: str) -> Array:
    """(T, B, ·) from what the layer gave."""
    if layout == "unbatched":
        return array[:, None]
    return array.swapaxes(0, 1) if layout == "batch first" else array


def state_to_layout(state: State, given: str, case: Case) -> Any:
    """Leave out the batch axis if there is none, and every member that is not given."""
    if not given:
        return None
    unbatched = case.layout == "unbatched"
    parts = [member[:, 0] if unbatched else member for member in members(state)]
    if len(parts) == 1:
        return parts[0]
    return tuple(part if name in given else None for name, part in zip("hc", parts, strict=True))


def state_from_layout(state: Any, case: Case) -> Any:
    parts = [part[:, None] if case.layout == "unbatched" else part for part in members(state)]
    return tuple(parts) if len(parts) == 2 else parts[0]


def run_case(case: Case, problem: Problem) -> tuple[Arrays, Arrays]:
    """Return everything from the layer as (T, B, ·), and once more from a kept tape."""
    rc.set_level(case.level)
    rc.set_num_threads(case.threads)
    layer = layer_of(problem, dtype=case.dtype, batch_first=case.layout == "batch first")
    x, dy = to_layout(problem.x, case.layout), to_layout(problem.dy, case.layout)
    state = state_to_layout(problem.state, "hc" if case.state else "", case)
    dstate = state_to_layout(problem.dstate, case.dstate, case)
    y, final, tape = layer.forward(
        x, state, lengths=case.lengths, dropout=case.masked, checkpoint=case.checkpoint
    )
    if not (case.masked and (case.config.dropout or case.config.recurrent_dropout)):
        again, final_again = layer(x, state, lengths=case.lengths)
        for one, other in zip((again, *members(final_again)), (y, *members(final)), strict=True):
            assert_same_bits({"inference": one}, {"inference": other})

    def backward(keep: bool) -> Arrays:
        gates = tape.gates()
        g = layer.backward(
            tape, dy if case.dy else None, dstate, keep=keep, return_state_grads=True
        )
        g.x, g.state = from_layout(g.x, case.layout), state_from_layout(g.state, case)
        for named in (gates, g.state_grads):
            for arrays in named.values():
                arrays.update({k: from_layout(a, case.layout) for k, a in arrays.items()})
        return by_name(from_layout(y, case.layout), state_from_layout(final, case), gates, g)

    first = backward(keep=case.keep)
    return first, backward(keep=False) if case.keep else first


def check(case: Case) -> None:
    """Hold one case to the reference."""
    problem = problem_of(case)
    first, again = run_case(case, problem)
    assert_same_bits(again, first)
    assert all(array.dtype == np.dtype(case.dtype) for array in first.values())
    assert_close(first, expected(problem), TOLERANCES[case.dtype])


def describe(case: Case) -> str:
    """Everything about a case, and how to run it again."""
    lines = [f"  {field.name} = {getattr(case, field.name)!r}" for field in fields(case)]
    command = f"pytest tests/test_properties.py --first-case {case.number} --cases 1"
    return "\n".join([f"case {case.number}, run again by {command}", *lines])


# -------------------------------------------------------------------------------------- the tests


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "numbers" in metafunc.fixturenames:
        first = metafunc.config.getoption("--first-case")
        end = first + metafunc.config.getoption("--cases")
        blocks = [range(k, min(k + BLOCK, end)) for k in range(first, end, BLOCK)]
        metafunc.parametrize("numbers", blocks, ids=[f"{b.start}-{b.stop - 1}" for b in blocks])


def test_random_layers(numbers: range) -> None:
    for number in numbers:
        case = draw_case(number)
        try:
            check(case)
        except BaseException as error:
            error.add_note(describe(case))
            raise


def test_the_usual_cases_have_every_option() -> None:
    """Each choice by itself, and pairs that are easily forgotten."""
    cases = [draw_case(number) for number in range(2000)]
    for name, choices in {
        "form": FORMS,
        "direction": DIRECTIONS,
        "dtype": DTYPES,
        "level": rc.levels(),
        "threads": (1, 2, 3, 8),
        "layout": ("time first", "batch first", "unbatched"),
        "dstate": ("", "h", "c", "hc"),
        "T": (0, 1),
        "B": (0, 1),
    }.items():
        assert {getattr(case, name) for case in cases} >= set(choices), name
    ragged = [case for case in cases if case.lengths and 0 < sum(case.lengths) < case.T * case.B]
    assert {(case.form, case.direction) for case in ragged} == {
        (form, direction) for form in FORMS for direction in DIRECTIONS
    }
    assert any(0 in (case.lengths or ()) for case in ragged)
    assert any(case.lengths and not any(case.lengths) for case in cases)
    assert any(not case.dy and not case.dstate for case in cases)
    assert any(not case.state and case.config.num_layers == 3 for case in cases)
