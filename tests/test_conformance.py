"""The layers against what other libraries computed, at every instruction level."""

from __future__ import annotations

import numpy as np
import pytest

from conformance_cases import (
    FLOAT32_TOLERANCE,
    FLOAT64_TOLERANCE,
    Case,
    case_ids,
    load_case,
)
from gradcheck import members
from support_layers import DTYPES, Arrays, assert_close, by_name, make_layer

TOLERANCES = {"float64": FLOAT64_TOLERANCE, "float32": FLOAT32_TOLERANCE}


def expected(case: Case) -> Arrays:
    """All that the case knows, under the names of `by_name`."""
    arrays = {"y": case.y, "dx": case.dx}
    arrays |= dict(zip(("h", "c"), members(case.final), strict=False))
    arrays |= dict(zip(("dh0", "dc0"), members(case.dstate), strict=False))
    return arrays | {f"d_{name}": array for name, array in case.dparams.items()}


def computed(case: Case, dtype: str) -> Arrays:
    """Everything that a layer gives; numbers are cast to its type on their way in."""
    layer = make_layer(case.config, case.params, dtype=dtype)
    y, final, tape = layer.forward(case.x, case.state, lengths=case.lengths)
    return by_name(y, final, {}, layer.backward(tape, case.dy, case.dfinal))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case_id", case_ids())
def test_conformance(case_id: str, dtype: str) -> None:
    case = load_case(case_id)
    actual, wanted = computed(case, dtype), expected(case)
    assert all(array.dtype == np.dtype(dtype) for array in actual.values())
    # Keras has one bias where there are two here: it knows the gradient of one.
    absent = {"d_bias_hh_l0"} if case.family == "keras" else set()
    assert set(actual) - set(wanted) == absent
    assert_close({name: actual[name] for name in wanted}, wanted, TOLERANCES[dtype])
