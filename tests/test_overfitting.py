"""The example ``examples/overfitting.py``: its data, its augmentation, and a short run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnncore as rc

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import overfitting as example


def test_no_image_is_in_two_parts() -> None:
    data = example.load(120, seed=0)
    counts = [part.x.shape[1] for part in data]
    assert counts == [120, example.VALIDATION_ROWS, 1797 - 320]
    images = np.concatenate([part.x for part in data], axis=1)
    assert images.shape == (8, 1797, 8)
    assert 0.0 == images.min() < images.max() == 1.0
    assert len({image.tobytes() for image in images.swapaxes(0, 1)}) == 1797
    assert all(set(part.y) == set(range(10)) for part in data)
    again = example.load(120, seed=0)
    np.testing.assert_array_equal(again.train.x, data.train.x)


def test_images_are_moved_by_a_pixel_at_most() -> None:
    x = np.zeros((8, 90, 8), np.float32)
    x[3, :, 4] = 1.0
    moved, lengths = example.shifted(x, None, np.random.default_rng(0))
    assert lengths is None
    lines, columns = (moved.sum(axis=axis).argmax(axis=at) for axis, at in ((2, 0), (0, 1)))
    np.testing.assert_array_equal(moved.sum(axis=(0, 2)), 1.0)
    assert set(lines) == {2, 3, 4}
    assert set(columns) == {3, 4, 5}
    assert len(set(zip(lines, columns, strict=True))) == 9
    # What leaves the image is gone, and zeros come in.
    full, _ = example.shifted(np.ones_like(x), None, np.random.default_rng(0))
    assert set(full.sum(axis=(0, 2))) == {49.0, 56.0, 64.0}


def test_an_ensemble_is_the_mean_of_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    data = example.load(40, seed=0)
    recipe = example.Recipe(units=4, epochs=2)
    guesses: list[Any] = []
    judge = example.judge

    def watched(found: Any, *rest: Any) -> Any:
        guesses.append(found)
        return judge(found, *rest)

    monkeypatch.setattr(example, "judge", watched)
    outcome = example.ensemble(recipe, data, 3, seed=0)
    *members, together = guesses
    assert len(members) == 3
    for place in range(3):
        mean = np.mean([member[place] for member in members], axis=0)
        np.testing.assert_allclose(together[place], mean, rtol=1e-12)
        np.testing.assert_allclose(mean.sum(axis=1), 1.0)
    expected = -np.log(together[2][np.arange(len(data.test.y)), data.test.y]).mean()
    assert outcome.losses[2] == pytest.approx(expected)


def test_without_patience_the_last_weights_are_judged() -> None:
    data = example.load(40, seed=0)
    recipe = example.Recipe(epochs=60)
    model, outcome = example.train(recipe, data, 0)
    assert outcome.history is not None
    assert outcome.history.best_epoch != 59
    last = rc.evaluate(model, *data.validation)["loss"]
    assert last == pytest.approx(outcome.history.validation_loss[-1], rel=1e-5)
    stopped, early = example.train(recipe._replace(patience=5), data, 0)
    assert early.history is not None
    best = min(early.history.validation_loss)
    assert rc.evaluate(stopped, *data.validation)["loss"] == pytest.approx(best, rel=1e-5)


def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small and large are told apart, and every remedy is in the table."""
    options = ["--rows", "60", "--epochs", "20", "--members", "2", "--folds", "2"]
    assert example.main([*options, "--out", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    pattern = r"^(.{16}) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)%  (\S+)$"
    lines = {
        label.strip(): (*map(float, figures), word)
        for label, *figures, word in re.findall(pattern, printed, re.MULTILINE)
    }
    assert list(lines) == [*example.recipes(1), "2 of these"]
    assert lines["too small"][-1] == "under-fitting"
    assert lines["too large"][-1] == "over-fitting"
    assert lines["too large"][0] < 0.5 * lines["too large"][1]
    assert lines["2 of these"][3] > lines["too small"][3]
    assert "too large: over-fitting: of what a constant guess gets wrong" in printed
    assert re.search(r"learning curve: from 65 to 130 rows the validation loss falls", printed)
    assert "validation curve: best weight_decay" in printed
    for name in ("overfitting.png", "curves.png"):
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rows 5", "--rows: expected 20 to 1500, got 5"),
        ("--epochs 0", "--epochs: expected 1 to 1000000, got 0"),
        ("--members 0", "--members: expected 1 to 1000, got 0"),
        ("--folds 1", "--folds: expected 2 to 10, got 1"),
    ],
)
def test_bad_options_are_explained(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        example.main(options.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
