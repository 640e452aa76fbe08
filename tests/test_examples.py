"""The programs in ``examples``: that each one learns, its parts, and what it says when it cannot.

Budgets are far below those of the programs: a few seconds in all.
"""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import datasets
import encoder_decoder
import many_to_many
import many_to_one
import one_to_many
import one_to_one

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = ("one_to_one", "one_to_many", "many_to_one", "many_to_many", "encoder_decoder")


# ---- Each mapping learns -------------------------------------------------------------------------


def test_one_to_one_beats_the_nearest_mean_and_leaves_the_recurrence_alone() -> None:
    found = one_to_one.run(epochs=8)
    assert found.accuracy > 0.94 > found.baseline > 0.8
    assert found.formula_gap < 1e-5
    assert found.recurrent_change == 0.0


def test_one_to_many_beats_counts_and_follows_its_temperature() -> None:
    found = one_to_many.learn(epochs=5)
    assert found.bits < found.baseline - 0.3
    model, known = found.model, set(datasets.words())
    letters = "abcdefgilmnoprstuw"
    cold, warm = (one_to_many.write(model, letters * 10, temperature=t) for t in (0.4, 1.5))
    assert [word[0] for word in cold] == list(letters * 10)
    assert sum(word in known for word in cold) > 2 * sum(word in known for word in warm)
    greedy = one_to_many.write(model, letters, temperature=0.0)
    assert one_to_many.write(model, letters, top_k=1, seed=3) == greedy
    assert one_to_many.write(model, letters, seed=1) != one_to_many.write(model, letters, seed=2)


def test_many_to_one_classifies_from_the_last_state() -> None:
    found = many_to_one.classify(epochs=8)
    assert found.model > 0.93 > found.baseline > 0.8


def test_many_to_one_foretells_sunspots_better_than_a_line() -> None:
    found = many_to_one.sunspots(epochs=60)
    assert found.model < found.baseline < 20


def test_many_to_one_foretells_co2_far_better_than_no_change() -> None:
    series = datasets.co2()
    unchanged = np.roll(series, 13)
    found = many_to_one.foretell(
        series, unchanged, ahead=13, shortest=52, longest=78, scale=3, epochs=8
    )
    assert found.model < found.baseline / 2


def test_many_to_many_beats_the_table_and_gains_by_reading_both_ways() -> None:
    found = many_to_many.run(epochs=2)
    assert found.score > found.forwards + 0.02
    assert found.score > found.baseline + 0.05


def test_encoder_decoder_learns_to_read_dates() -> None:
    task = encoder_decoder.dates(count=2500, tests=100)
    assert not {target for _, target in task.train} & {target for _, target in task.test}
    _, found = encoder_decoder.learn(task, hidden=64, epochs=7)
    assert found.greedy > 0.8
    assert found.beam > 0.8
    assert found.baseline == 0.0


def test_encoder_decoder_learns_to_put_vowels_back() -> None:
    task = encoder_decoder.vowels()
    _, found = encoder_decoder.learn(task, hidden=64, epochs=8)
    assert found.greedy > 3 * found.baseline > 0
    assert found.beam > found.greedy


# ---- Data ----------------------------------------------------------------------------------------


def test_the_data_are_real_and_the_same_each_time() -> None:
    images, labels = datasets.digits()
    assert images.shape == (1797, 8, 8)
    assert images.min() == 0
    assert images.max() == 1
    assert set(labels.tolist()) == set(range(10))
    years, spots = datasets.sunspots()
    assert (years[0], years[-1], len(spots)) == (1700, 2008, 309)
    assert len(datasets.co2()) == 2284
    for texts in (datasets.words(), datasets.phrases()):
        assert len(texts) == len(set(texts)) > 2000
        assert texts == sorted(texts)
        assert not [text for text in texts if not re.fullmatch(r"[a-z]+(['a-z ]*[a-z])?", text)]
    assert "generator" in datasets.words()


def test_tests_and_training_share_nothing() -> None:
    train, test = datasets.held_out(50, 0.2)
    assert len(test) == 10
    assert not set(train.tolist()) & set(test.tolist())
    series = np.arange(200, dtype=np.float32)
    series[30:33] = np.nan
    found = many_to_one.windows(series, 5, 10, 20)
    for x, y, place in zip(found.x, found.y, found.place, strict=True):
        assert y[0] == 5
        assert x[-1] == 0
        assert not np.isnan(x).any()
        assert len(x) <= 20
        assert x[0, 0] + place - 5 >= 0


def test_the_guesses_to_beat_are_what_they_say() -> None:
    wave = np.sin(np.arange(120) * 2 * np.pi / 12).astype(np.float32) + np.arange(120) / 10
    for guess in (
        many_to_one.by_season(wave.astype(np.float32), 3, 12),
        many_to_one.by_line(wave.astype(np.float32), 14),
    ):
        assert np.isnan(guess).sum() in (14, 15)
        np.testing.assert_allclose(guess[15:], wave[15:], atol=1e-3)


# ---- As programs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["datasets", *PROGRAMS])
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert results.attempted or name in ("one_to_one", "many_to_one")


def test_a_program_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert one_to_one.main(["--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"test accuracy +0\.\d{3}\nnearest mean image +0\.\d{3}\n", printed)
    assert one_to_many.main(["--epochs", "1", "--letters", "ab"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"bits per letter on new words: \d\.\d\d\n", printed)
    assert len(re.findall(r"^  a\S* b\S*$", printed, re.MULTILINE)) == 5


@pytest.mark.parametrize("letters", ["", "aB", "é"])
def test_letters_that_no_word_begins_with_are_refused(
    letters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        one_to_many.main(["--letters", letters])
    assert "--letters: expected letters a to z, got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "module", "package"),
    [
        ("one_to_one.main([])", "sklearn", "scikit-learn"),
        ("many_to_one.co2()", "statsmodels", "statsmodels"),
    ],
)
def test_what_is_not_installed_is_said_in_one_line(call: str, module: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.path.insert(0, {str(EXAMPLES)!r});"
        f"import datasets, one_to_one, many_to_one; datasets.run_program(lambda: {call})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"this example needs {package}: pip install rnncore[examples]\n"


def test_a_fault_inside_an_installed_package_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="scipy"):
        datasets.required("sklearn.datasets")
