"""The layers against the reference: every array that there is, at every instruction level.

Three parts: sizes around every edge that the kernels have, one after the other; all options at one
size that fits no vector and no tile; and float32.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from gradcheck import Problem, members
from support_layers import (
    DIRECTIONS,
    FORMS,
    TOLERANCES,
    Arrays,
    Options,
    assert_close,
    assert_same_bits,
    draw_problem,
    expected,
    is_sequence,
    make_config,
    padding,
    run_native,
)

#: H by reason. A vector has 4, 8 or 16 lanes, depending on level and dtype.
HIDDEN = {
    "one unit": [1],
    "around 4 lanes": [3, 4, 5],
    "around 8 lanes": [7, 8, 9],
    "around 16 lanes": [15, 16, 17],
    "around two vectors of 16, four of 8": [31, 32, 33],
    "around four vectors of 16, the panel of a vanilla cell": [63, 64, 65],
}

#: B by reason. A register tile has at most 3, 6, 8 or 12 rows.
ROWS = {
    "one row has a kernel of its own": [1],
    "around a tile of 3": [2, 3, 4],
    "around tiles of 6 and 8; from 8 rows on W x is not computed ahead": [5, 6, 7, 8, 9],
    "around a tile of 12": [11, 12, 13],
    "two uneven tiles": [17],
}

#: I by reason.
FEATURES = {
    "one feature": [1],
    "fewer than lanes": [2],
    "one more than lanes": [17],
    "one more than four vectors of 16": [65],
}

#: (T, B) by reason. W x of few rows is computed for 128 rows of steps at once, and gradients of
#: weights for 256.
STEPS = {
    "one step": [(1, 5)],
    "one step of one row": [(1, 1)],
    "nothing to do": [(0, 3), (4, 0), (0, 0)],
    "around 128 rows of W x": [(127, 1), (64, 2), (43, 3)],
    "around 256 rows of gradients": [(85, 3), (64, 4), (257, 1)],
    "256, 256 and 88 rows of gradients": [(60, 10)],
    "one step has more rows than that": [(2, 300)],
}


def sizes(T: int = 4, B: int = 3, I: int = 3, H: int = 5) -> dict[str, int]:
    """Put one size on an edge and leave the others small."""
    return {"T": T, "B": B, "I": I, "H": H}


SIZES = {
    **{f"H{h}": sizes(H=h) for hs in HIDDEN.values() for h in hs},
    **{f"B{b}": sizes(B=b, H=17) for bs in ROWS.values() for b in bs},
    **{f"I{i}": sizes(I=i) for xs in FEATURES.values() for i in xs},
    **{f"T{t}-B{b}": sizes(T=t, B=b) for ts in STEPS.values() for t, b in ts},
    # 3 * 66 rows of 130 doubles for each gate pass 200 KB: from there on the operands of the weight
    # gradients are packed.
    "packed-operands": sizes(T=3, B=66, I=7, H=130),
    # 1200 rows of a panel of 32 doubles pass 256 KB: dx of an LSTM is summed up in two goes.
    "deep-products": sizes(T=2, B=7, I=33, H=300),
    # More than 128 rows of a panel of AVX-512, or 512 of AVX2, are more than 32 KB: the weight
    # gradients take several such panels at once, here in more than one go.
    "panels-at-once": sizes(T=3, B=66, I=7, H=530),
    "many-rows": sizes(T=1, B=600, I=7, H=530),
    # Two chunks of steps, the second of half the rows. More than 512 KB of the gates' gradients
    # take several panels at once even where one is small.
    "chunks-of-panels": sizes(T=3, B=127, I=7, H=530),
}

#: With at least two rows one can be shorter.
CASES = [(name, False) for name in SIZES]
CASES += [(name, True) for name, size in SIZES.items() if size["T"] > 1 and size["B"] > 1]


@cache
def solved(
    form: str, direction: str, size: tuple[tuple[str, int], ...], ragged: bool, dtype: str
) -> tuple[Problem, Arrays]:
    """Draw a problem and solve it with the reference, once for all levels."""
    T, B, I, H = (dict(size)[name] for name in "TBIH")
    config = make_config(form, direction, input_size=I, hidden_size=H)
    problem = draw_problem(config, seed=7, dtype=dtype, T=T, B=B, ragged=ragged)
    return problem, expected(problem)


def check(problem: Problem, wanted: Arrays, dtype: str) -> None:
    """Hold a layer to the reference; what is beyond the lengths is exactly 0."""
    actual = run_native(problem, dtype=dtype)
    assert all(array.dtype == np.dtype(dtype) for array in actual.values())
    assert_close(actual, wanted, TOLERANCES[dtype])
    beyond = padding(problem)
    if beyond.any():
        assert np.isnan(problem.x[beyond]).all()
        for name in filter(is_sequence, actual):
            assert not actual[name][beyond].any(), name


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    ("size", "ragged"), CASES, ids=[name + "-ragged" * ragged for name, ragged in CASES]
)
@pytest.mark.parametrize("form", FORMS)
def test_sizes(form: str, size: str, ragged: bool) -> None:
    problem, wanted = solved(form, "concat", tuple(SIZES[size].items()), ragged, "float64")
    check(problem, wanted, "float64")


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_length_zero_pass_their_state_through(level: str, form: str) -> None:
    """Bit for bit, and so do their gradients."""
    size = tuple(sizes(T=5, B=6).items())
    for dtype in TOLERANCES:
        problem, _ = solved(form, "concat", size, True, dtype)
        assert problem.lengths is not None
        empty = problem.lengths == 0
        assert empty.any(), level
        results = run_native(problem, dtype=dtype)
        for names, before in (("hc", problem.state), (("dh0", "dc0"), problem.dstate)):
            for name, member in zip(names, members(before), strict=False):
                passed = {name: results[name][:, empty]}
                assert_same_bits(passed, {name: member[:, empty].astype(dtype)})


OPTIONS: dict[str, Options] = {
    "plain": {},
    "no-bias": {"bias": False},
    "dropout": {"dropout": 0.3, "recurrent_dropout": 0.4},
}


@cache
def solved_with_options(form: str, direction: str, options: str, L: int) -> tuple[Problem, Arrays]:
    """Draw a ragged problem of several layers and solve it, once for all levels."""
    shape: Options = {"num_layers": L, "input_size": 6, "hidden_size": 19}
    config = make_config(form, direction, **shape, **OPTIONS[options])
    problem = draw_problem(config, seed=8, T=5, B=7, ragged=True, masked=options == "dropout")
    return problem, expected(problem)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("num_layers", [2, 3], ids=["l2", "l3"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_options(form: str, direction: str, options: str, num_layers: int) -> None:
    check(*solved_with_options(form, direction, options, num_layers), "float64")


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("size", ["H1", "H17", "H65", "B1", "B13", "I65", "T64-B2", "T60-B10"])
@pytest.mark.parametrize("form", FORMS)
def test_float32(form: str, size: str) -> None:
    ragged = SIZES[size]["B"] > 1
    problem, wanted = solved(form, "concat", tuple(SIZES[size].items()), ragged, "float32")
    check(problem, wanted, "float32")
