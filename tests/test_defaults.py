"""What the table of the estimators' defaults compares and says; one short series is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import defaults
import numpy as np
import pytest
import sequences
from defaults import BY_NAME, OURS, Series
from tasks import ROOT


def test_naive_forecasts_repeat_the_end_and_go_on_as_before() -> None:
    known = np.array([0.0, 4.0, 1.0, 3.0, 7.0, 4.0])  # a season of 3, higher by 3 each
    said = defaults.naive(known, 7, 3)
    assert said["last value"].tolist() == [4.0] * 7
    assert said["last season"].tolist() == [3.0, 7.0, 4.0, 3.0, 7.0, 4.0, 3.0]
    assert said["drift"].tolist() == [6.0, 10.0, 7.0, 9.0, 13.0, 10.0, 12.0]
    said = defaults.naive(np.array([1.0, 2.0, 5.0]), 2, 1)
    assert said["drift"].tolist() == [7.0, 9.0]
    assert "last season" not in said


def test_errors_are_over_all_steps_of_the_last_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Zero:
        """Knows how much it has been told, and says 0."""

        def __init__(self, **options: Any) -> None:
            assert options == {"random_state": 5, "difference": 1}

        def fit(self, y: Any) -> Zero:
            self.known = list(y)
            return self

        def update(self, y: Any) -> None:
            self.known += list(y)

        def predict(self, horizon: int) -> Any:
            assert self.known == list(range(len(self.known)))
            asked.append(len(self.known))
            return np.zeros(horizon)

    monkeypatch.setattr(defaults, "RecurrentForecaster", Zero)
    line = Series("line", "a line", lambda: np.arange(20.0), 4, 3, options={"difference": 1})
    found = defaults.forecast_errors(line, 5)
    assert asked == [14, 15, 16]  # the last four steps, 16 to 19, are the last that can be held
    assert found == {OURS: 16.5, "last value": 2.5, "drift": 0.0}


def test_folds_hold_every_digit_once_in_the_order_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class Listener:
        def __init__(self, **options: Any) -> None:
            assert options == {"random_state": 1}

        def fit(self, x: Any, y: Any) -> Listener:
            self.rows = len(x)
            return self

        def score(self, x: Any, y: Any) -> float:
            assert self.rows + len(x) == 1797
            seen.append(y)
            return 1.0

    monkeypatch.setattr(defaults, "RecurrentClassifier", Listener)
    rows = list(defaults.rows_of("digits", 1))
    assert rows == [("digits", 1, fold, OURS, 1.0) for fold in range(5)]
    np.testing.assert_array_equal(np.concatenate(seen), sequences.digits()[1])


def test_what_misses_its_bound_is_shown_as_missed() -> None:
    rows = [("digits", 0, fold, OURS, right) for fold, right in enumerate((0.94, 0.95))]
    assert defaults.digits_row(rows)[-1] == "**missed**"
    found = [("nile", n, 0, who, e) for n in (0, 1) for who, e in ((OURS, 9.0 + n), ("drift", 9.4))]
    assert defaults.series_row(BY_NAME["nile"], found)[-1] == "**missed**"
    assert defaults.series_row(BY_NAME["nile"], found[:2])[-1] == "met"


def test_a_series_is_run_and_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert defaults.main(["--data", "nile", "--seeds", "0", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "defaults.md").read_text("utf-8")
    assert "| flow of the Nile, yearly | 10 | 20 |" in text
    assert text.rstrip().endswith("| met |")
    lines = (tmp_path / "defaults.csv").read_text("utf-8").splitlines()
    assert lines[0] == "data,seed,fold,forecast,figure"
    assert len(lines) == 4


def test_the_figures_quoted_are_those_of_the_table() -> None:
    table = (ROOT / "benches/results/defaults.md").read_text("utf-8")
    assert "| digits, 8 steps of 8 pixels | 0.965 |" in table
    assert "(0.965 in five folds)" in (ROOT / "README.md").read_text("utf-8")
    design = " ".join((ROOT / "DESIGN.md").read_text("utf-8").split())
    assert "over 30 epochs 0.965 (`make defaults`)" in design
    for said, figure in (("sunspots", 16.1), ("differences of 12", 0.54), ("differences", 1.36)):
        assert f"{said} {figure} " in design
        assert f"| {figure} |" in table
