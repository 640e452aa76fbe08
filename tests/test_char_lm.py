"""The character model of ``examples/char_lm.py``: its parts, and whole runs on a small text."""

from __future__ import annotations

import argparse
import doctest
import itertools
import math
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnncore as rc
from gradcheck import assert_gradient

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import char_lm

TEXT = "".join(
    f"{a} {b} sat on the {c}; the {c} sat on {a} {b}.\n"
    for a in ("a", "the", "one", "no")
    for b in ("cat", "dog", "ox", "hen", "fly")
    for c in ("mat", "hat", "roof", "wall", "sea", "hill")
)
TINY = [
    *("--hidden", "16", "--embedding", "8", "--batch", "4", "--truncate", "16"),
    *("--epochs", "3", "--lr", "0.02", "--sample", "60", "--prompt", "t"),
]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture
def run(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the program on the small text, in a folder of its own, and return what it printed."""

    def run_main(*options: str) -> str:
        out = tmp_path / "out"
        assert char_lm.main([*TINY, "--file", str(text_file), "--out", str(out), *options]) == 0
        return capsys.readouterr().out

    return run_main


def figure(pattern: str, printed: str) -> float:
    """Return the one number that a pattern finds."""
    found = re.findall(pattern, printed)
    assert len(found) == 1, (pattern, printed)
    return float(found[0])


def small_model(cell: str = "lstm", seed: int = 0, **options: Any) -> char_lm.Model:
    sizes = char_lm.Sizes(cell=cell, layers=2, hidden=7, embedding=5, **options)
    return char_lm.Model(char_lm.Vocabulary.of(TEXT), sizes, seed)


def options(**changes: Any) -> argparse.Namespace:
    values = {
        "lr": 0.01, "clip": 1.0, "batch": 4, "truncate": 16, "epochs": 3, "seconds": 60.0, "seed": 0
    }  # fmt: skip
    return argparse.Namespace(**values | changes)


# ---- Text ----------------------------------------------------------------------------------------


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(char_lm)
    assert results.attempted >= 5
    assert results.failed == 0


def test_every_document_gives_its_end_to_validation() -> None:
    train, validation = char_lm.split(["abcdefghij" * 2, "ABCDEFGHI", "0123456789"])
    assert train == "abcdefghijabcdefgh" + "ABCDEFGHI" + "012345678"
    assert validation == "ij" + "" + "9"


def test_topics_are_ordered_and_say_nothing_twice() -> None:
    documents = char_lm.topic_documents()
    assert documents == char_lm.topic_documents()
    assert sum(map(len, documents)) > 300_000
    paragraphs = Counter(
        " ".join(paragraph.split()) for text in documents for paragraph in text.split("\n\n")
    )
    del paragraphs[""]
    assert max(paragraphs.values()) == 1


def test_characters_that_training_lacks_get_the_reserved_code() -> None:
    vocabulary = char_lm.Vocabulary.of("ba\N{GRINNING FACE}a")
    assert vocabulary.size == 4
    text = "a\N{GRINNING FACE}bz \N{GRINNING CAT FACE WITH SMILING EYES}"
    codes = vocabulary.encode(text)
    assert codes.dtype == np.int64
    assert codes.tolist() == [1, 3, 2, 0, 0, 0]
    assert vocabulary.decode(codes) == "a\N{GRINNING FACE}b\ufffd\ufffd\ufffd"
    assert len(vocabulary.encode("")) == 0


@pytest.mark.parametrize(("length", "rows"), [(2, 1), (13, 1), (13, 3), (14, 3), (15, 3), (100, 7)])
def test_streams_predict_every_character_once(length: int, rows: int) -> None:
    pieces = char_lm.streams(np.arange(length), rows)
    assert pieces.shape == ((length - 1) // rows + 1, rows)
    assert (np.diff(pieces, axis=0) == 1).all()
    targets = pieces[1:].T.ravel()
    np.testing.assert_array_equal(targets, np.arange(1, targets.size + 1))
    assert length - 1 - targets.size < rows


# ---- Baseline ------------------------------------------------------------------------------------


def test_trigram_by_hand() -> None:
    """From n(a) = 2, n(b) = n(aa) = n(ab) = n(aab) = 1 and three classes, with k = 1."""
    trigram = char_lm.Trigram("aab")
    expected = {
        "a": 8 / 15,  # (2 + 2/3) / (3 + 2)
        "b": 1 / 3,  # (1 + 2/3) / (3 + 2)
        "?": 2 / 15,  # (0 + 2/3) / (3 + 2)
        "aa": 31 / 60,  # (1 + 2*8/15) / (2 + 2)
        "ab": 5 / 12,  # (1 + 2*1/3) / (2 + 2)
        "aab": 17 / 24,  # (1 + 5/12) / (1 + 1)
        "bab": 5 / 12,  # nothing has followed "ba": as after "a"
        "??b": 1 / 3,
    }
    for gram, probability in expected.items():
        assert trigram.probability(gram, 1.0) == pytest.approx(probability, rel=1e-14), gram
    # k = 2: (1 + 4/3) / (3 + 4)
    assert trigram.probability("b", 2.0) == pytest.approx(1 / 3, rel=1e-14)
    assert trigram.probability("a", 2.0) == pytest.approx(10 / 21, rel=1e-14)
    bits = -(math.log2(31 / 60) + math.log2(17 / 24)) / 2
    assert trigram.bits("aab", 1.0) == pytest.approx(bits, rel=1e-14)


@pytest.mark.parametrize("strength", [0.125, 1.0, 32.0])
@pytest.mark.parametrize("context", ["", "t", "th", "zq", "\N{GREEK SMALL LETTER PI}"])
def test_trigram_probabilities_sum_to_one(context: str, strength: float) -> None:
    trigram = char_lm.Trigram(TEXT)
    classes = [*sorted(set(TEXT)), "\N{REPLACEMENT CHARACTER}"]
    total = math.fsum(trigram.probability(context + c, strength) for c in classes)
    assert total == pytest.approx(1.0, rel=1e-12)


def test_trigram_knows_order_and_chance() -> None:
    assert char_lm.trigram_bits("abc" * 500, "abc" * 50) < 0.02
    noise = "".join(np.random.default_rng(0).choice(list("abcd"), 20_000))
    assert 1.99 < char_lm.trigram_bits(noise[:18_000], noise[18_000:]) < 2.02


def test_trigram_chooses_its_strength_without_the_validation_text() -> None:
    """A text that repeats exactly wants the least smoothing, whatever comes afterwards."""
    train = "abcdefghij" * 100
    chosen = char_lm.Trigram(train).bits("jihgfedcba", 2.0**-3)
    assert char_lm.trigram_bits(train, "jihgfedcba") == chosen
    assert char_lm.Trigram(train).bits("jihgfedcba", 2.0**5) < chosen


# ---- Model ---------------------------------------------------------------------------------------


def test_evaluation_is_the_mean_over_one_long_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(dropout=0.5, recurrent_dropout=0.5)
    codes = model.vocabulary.encode(TEXT[:3000])
    monkeypatch.setattr(char_lm, "VALIDATION_STREAMS", 1)
    logits = model.chain(codes[:-1, None])
    z = logits[:, 0].astype(np.float64)
    nats = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), codes[1:]]
    expected = nats.mean() / math.log(2)
    assert char_lm.evaluate(model, codes) == pytest.approx(expected, rel=1e-6)
    assert model.chain.layers["recurrent"].call_number == 0  # dropout was off


def test_bits_and_their_gradient() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 3, 5))
    targets = np.random.default_rng(1).integers(0, 5, (4, 3))
    even, _ = char_lm.bits(np.zeros((4, 3, 8)), targets)
    assert even == pytest.approx(3.0, rel=1e-12)
    _, gradient = char_lm.bits(logits, targets)
    assert_gradient(
        lambda point: char_lm.bits(point["z"], targets)[0],
        {"z": logits},
        {"z": gradient},
        np.random.default_rng(2),
    )


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_a_file_alone_makes_the_model_again(cell: str, tmp_path: Path) -> None:
    model = small_model(cell, seed=5)
    model.save(tmp_path / "model.safetensors")
    again = char_lm.Model.load(tmp_path / "model.safetensors")
    assert repr(again.chain.layers["recurrent"]) == repr(model.chain.layers["recurrent"])
    np.testing.assert_array_equal(again.vocabulary.code_points, model.vocabulary.code_points)
    codes = model.vocabulary.encode(TEXT[:200])[:, None]
    np.testing.assert_array_equal(again.chain(codes), model.chain(codes))


def test_samples_repeat_with_their_seed() -> None:
    model = small_model()
    text = char_lm.sample(model, "the ", 100, 1.0, seed=3)
    assert len(text) == 104
    assert text.startswith("the ")
    assert text == char_lm.sample(model, "the ", 100, 1.0, seed=3)
    assert text != char_lm.sample(model, "the ", 100, 1.0, seed=4)


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_a_cold_sample_takes_the_likeliest_of_the_full_pass(cell: str) -> None:
    model = small_model(cell)
    model.chain.params["head.bias"][0] = 100.0  # the unknown must not be written, however likely
    text = char_lm.sample(model, "on the", 50, 1e-6, seed=0)
    assert "\N{REPLACEMENT CHARACTER}" not in text
    codes = model.vocabulary.encode(text)
    logits = model.chain(codes[:-1, None])
    likeliest = logits[:, 0, 1:].argmax(axis=1) + 1
    np.testing.assert_array_equal(likeliest[5:], codes[6:])


def test_a_prompt_may_hold_unknown_characters() -> None:
    prompt = "\N{GREEK SMALL LETTER PI}"
    assert char_lm.sample(small_model(), prompt, 5, 1.0, seed=0).startswith(prompt)


# ---- Training ------------------------------------------------------------------------------------


def train(path: Path, **changes: Any) -> tuple[char_lm.Model, rc.History]:
    model = small_model()
    codes = model.vocabulary.encode(TEXT)
    return model, char_lm.train(model, codes[:4000], codes[4000:], options(**changes), path)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the rate of every update."""
    found: list[float] = []
    step = rc.Adam.step

    def watched(self: rc.Adam, gradients: Any) -> None:
        found.append(self.lr)
        step(self, gradients)

    monkeypatch.setattr(rc.Adam, "step", watched)
    return found


def test_the_best_weights_are_saved_as_soon_as_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    figures = iter([3.0, 2.0, 2.5, 2.0])
    weights, files = [], []

    def scripted(task: Any, *_: Any) -> dict[str, float]:
        weights.append(task.model.params["head.weight"].copy())
        files.append(rc.load(path)["head.weight"] if path.exists() else None)
        return {"loss": next(figures)}

    monkeypatch.setattr("rnncore.training.measured", scripted)
    model, history = train(path, epochs=4)
    assert history.best_epoch == 1
    assert history.validation_loss == [3.0, 2.0, 2.5, 2.0]
    assert files[0] is None
    for k, best in ((1, 0), (2, 1), (3, 1)):
        np.testing.assert_array_equal(files[k], weights[best])
    assert not np.array_equal(weights[1], weights[3])
    np.testing.assert_array_equal(rc.load(path)["head.weight"], weights[1])
    np.testing.assert_array_equal(model.chain.params["head.weight"], weights[1])


def test_the_rate_falls_to_zero(tmp_path: Path, rates: list[float]) -> None:
    _, history = train(tmp_path / "model.safetensors", epochs=2)
    per_epoch = math.ceil((4000 - 1) // 4 / 16)
    assert len(rates) == len(history.update_loss) == 2 * per_epoch
    np.testing.assert_allclose(rates, 0.01 * (1 - np.arange(len(rates)) / len(rates)), rtol=1e-12)


def test_without_time_for_all_epochs_the_plan_is_shorter(
    tmp_path: Path, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that knows updates alone, in time for three and a half epochs of ten."""
    monkeypatch.setattr(time, "perf_counter", lambda: float(len(rates)))
    _, history = train(tmp_path / "model.safetensors", epochs=10, seconds=63 * 3.5)
    assert history.stopped == "seconds"
    assert history.seconds == [63, 63, 63, 32]
    k = np.arange(221)
    np.testing.assert_allclose(rates[:63], 0.01 * (1 - k[:63] / 630), rtol=1e-12)
    np.testing.assert_allclose(rates[63:], 0.01 * (1 - k[63:] / 220), rtol=1e-12, atol=1e-12)


def test_an_epoch_that_takes_too_long_is_cut(run: Any) -> None:
    printed = run("--epochs", "1000000", "--seconds", "0.5")
    assert figure(r"best validation: ([\d.]+) bits/char", printed) > 0.0


# ---- Whole runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_a_run_learns_saves_and_reloads(cell: str, run: Any, tmp_path: Path) -> None:
    printed = run("--cell", cell, "--dropout", "0.05", "--recurrent-dropout", "0.05")
    best = figure(r"best validation: ([\d.]+) bits/char", printed)
    assert figure(r"reloaded: validation ([\d.]+) bits/char", printed) == best
    assert best < 0.6 * math.log2(len(set(TEXT)) + 1)

    train, validation = char_lm.split([TEXT])
    trigram = char_lm.trigram_bits(train, validation)
    assert figure(r"trigram count model: validation ([\d.]+)", printed) == round(trigram, 3)
    model = char_lm.Model.load(tmp_path / "out" / "char_lm.safetensors")
    bits = char_lm.evaluate(model, model.vocabulary.encode(validation))
    assert round(bits, 3) == best
    assert (tmp_path / "out" / "char_lm.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert printed.endswith(char_lm.sample(model, "t", 60, 0.7, seed=0) + "\n")


def test_runs_with_one_seed_are_equal(run: Any) -> None:
    def result(printed: str) -> str:
        return str(printed[printed.index("best validation") :])

    first = result(run("--dropout", "0.1", "--seed", "7"))
    assert first == result(run("--dropout", "0.1", "--seed", "7"))
    assert first != result(run("--dropout", "0.1", "--seed", "8"))


@pytest.mark.parametrize("updates", [0, 5, 100])
def test_an_interrupt_keeps_the_best_and_finishes(
    updates: int, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = rc.Sequential.forward
    calls = itertools.count()

    def interrupted(self: rc.Sequential, *arguments: Any, **options: Any) -> Any:
        if next(calls) == updates:
            raise KeyboardInterrupt
        return forward(self, *arguments, **options)

    monkeypatch.setattr(rc.Sequential, "forward", interrupted)
    printed = run()
    assert "interrupted: going on with the best weights so far" in printed
    best = figure(r"best validation: ([\d.]+) bits/char", printed)
    assert figure(r"reloaded: validation ([\d.]+) bits/char", printed) == best
    assert (tmp_path / "out" / "char_lm.png").is_file()


def test_a_terminal_gets_a_bar(
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    options = [*TINY, "--file", str(text_file), "--out", str(tmp_path)]
    assert char_lm.main(options) == 0
    printed = capsys.readouterr()
    assert "epoch/s, loss " in printed.err
    assert "<History of 3 epochs, best validation loss " in printed.err
    assert "best validation: " in printed.out


def test_what_is_not_installed_is_named(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tqdm", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("rnncore.progress._SECONDS", 0.0)
    printed = run()
    assert re.search(r"no learning curve: .*matplotlib.*pip install rnncore\[plot\]", printed)
    assert not (tmp_path / "out" / "char_lm.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--file missing.txt", r"--file: cannot read it as text in UTF-8: .*missing\.txt"),
        ("--file .", r"--file: cannot read it as text in UTF-8: "),
        ("--file latin.txt", r"--file: cannot read it as text in UTF-8: .*position 3"),
        ("--file empty.txt", r"--file: expected at least 89 characters for --batch 4 .*got 0"),
        ("--file short.txt", r"for --batch 4 and --truncate 16, got 88"),
        ("--out text.txt", r"--out: .*text\.txt"),
        ("--cell lstmm", r"--cell: invalid choice: 'lstmm'"),
        ("--layers 0", r"--layers: expected a whole number of at least 1, got '0'"),
        ("--hidden 1.5", r"--hidden: expected a whole number of at least 1, got '1\.5'"),
        ("--hidden 1000000000000", r"hidden_size.*: expected sizes whose parameters fit"),
        ("--dropout 1", r"--dropout: expected a number from 0 to below 1, got '1'"),
        ("--recurrent-dropout nan", r"--recurrent-dropout: expected a number from 0 .*got 'nan'"),
        ("--layers 1 --dropout 0.1", r"dropout: expected 0 with num_layers=1"),
        ("--lr inf", r"--lr: expected a number greater than 0, got 'inf'"),
        ("--temperature 0", r"--temperature: expected a number greater than 0, got '0'"),
        ("--seconds soon", r"--seconds: expected a number greater than 0, got 'soon'"),
        ("--seed -1", r"--seed: expected a whole number from 0 to below 2\*\*32, got '-1'"),
        ("--prompt ", r"--prompt: expected at least one character"),
    ],
)
def test_bad_options_are_explained(
    options: str,
    message: str,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes(b"abc\xe9" * 1000)
    Path("empty.txt").write_bytes(b"")
    Path("short.txt").write_text("x" * 88, "utf-8")
    with pytest.raises(SystemExit) as caught:
        char_lm.main([*TINY, "--file", str(text_file), *options.split(" ")])
    assert caught.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error
    assert not list(tmp_path.glob("char_lm*"))
