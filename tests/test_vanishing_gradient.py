"""The example ``examples/vanishing_gradient.py``: its task, and a short run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import rnncore as rc

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import vanishing_gradient as example


def test_the_symbol_is_shown_at_the_first_step_alone() -> None:
    x, symbols = example.task(np.random.default_rng(0), 7, 50)
    assert x.shape == (7, 50, 5)
    np.testing.assert_array_equal(x[0, :, :4].argmax(axis=1), symbols)
    np.testing.assert_array_equal(x[0].sum(axis=1), 1.0)
    assert not x[1:, :, :4].any()
    assert x[1:, :, 4].all()
    assert set(symbols) == {0, 1, 2, 3}


def test_what_gates_let_through_is_their_product() -> None:
    lstm = rc.LSTM(5, 3, dtype="float64", seed=0)
    for weight in ("weight_ih_l0", "weight_hh_l0"):
        lstm.params[weight][3:6] = 0.0
    x, _ = example.task(np.random.default_rng(0), 11, 4)
    assert example.kept_by_gates(lstm, x) == pytest.approx((1 / (1 + np.exp(-1.0))) ** 10)


def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where gates begin open the gradient arrives and the symbol is learnt."""
    options = ["--steps", "30", "--hidden", "24", "--updates", "100", "--out", str(tmp_path / "a")]
    assert example.main(options) == 0
    printed = capsys.readouterr().out
    lines = re.findall(r"^(.{22}) +(\S+) +(\S+) \| +(\d+)%$", printed, re.MULTILINE)
    found = {label.strip(): (float(first), int(right)) for label, _, first, right in lines}
    assert list(found) == list(example.make_layers(2, 3.0, 0))
    assert found["RNN"][0] < 1e-6
    assert found["RNN"][1] < 50
    for label in ("LSTM, forget bias 3", "GRU, update bias 3"):
        assert found[label][0] > 1e-2
        assert found[label][1] > 90
    for name in ("vanishing_gradient.png", "gates.png"):
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [("--steps 1", "--steps: expected at least 2, got 1"), ("--updates 0", "--updates: expected")],
)
def test_bad_options_are_explained(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        example.main(options.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
