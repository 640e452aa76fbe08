"""Gradients of the layers against differences of their own outputs, in float64.

Every cell x directions and merge x layers x ragged or not x dropout masks or not, the gradients of
x, the initial states and every parameter: see gradcheck.py for how one is checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from gradcheck import (
    MARGIN,
    Problem,
    assert_gradient,
    draw_smooth,
    members,
    relu_margin,
    run_reference,
)
from rnncore.reference import Array
from support_layers import DIRECTIONS, FORMS, layer_of, make_config


def check_all_gradients(problem: Problem, rng: np.random.Generator) -> None:
    """Hold backward of a layer to differences of its forward; masks are those of one call."""
    config = problem.config
    if config.nonlinearity == "relu":
        assert relu_margin(config, problem.params, run_reference(problem)[2]) >= MARGIN
    layer = layer_of(problem)
    masked = problem.masks is not None

    def loss(point: Mapping[str, Array]) -> float:
        moved = problem.at(point)
        layer.load_params(moved.params)
        if moved.masks is None:
            return problem.loss(*layer(moved.x, moved.state, lengths=moved.lengths))
        layer.call_number = moved.masks[1]
        return problem.loss(*layer.forward(moved.x, moved.state, lengths=moved.lengths)[:2])

    y, _, tape = layer.forward(problem.x, problem.state, lengths=problem.lengths, dropout=masked)
    assert np.all(np.isfinite(y))
    g = layer.backward(tape, problem.dy, problem.dstate)
    states = dict(zip(("h0", "c0"), members(g.state), strict=False))
    assert_gradient(loss, problem.point(), {"x": g.x, **states, **g.params}, rng)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("num_layers", [1, 2], ids=["l1", "l2"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str, direction: str, num_layers: int, ragged: bool, masked: bool) -> None:
    p = 0.3 if masked else 0.0
    between = p if num_layers > 1 else 0.0
    config = make_config(
        form, direction, num_layers=num_layers, dropout=between, recurrent_dropout=p
    )
    problem = draw_smooth(config, seed=1, ragged=ragged, masked=masked)
    check_all_gradients(problem, np.random.default_rng(2))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("num_layers", [1, 2], ids=["l1", "l2"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_without_bias(form: str, num_layers: int) -> None:
    config = make_config(form, "concat", num_layers=num_layers, bias=False)
    problem = draw_smooth(config, seed=3, ragged=True)
    assert not any("bias" in name for name in problem.params)
    check_all_gradients(problem, np.random.default_rng(4))
