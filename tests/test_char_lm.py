"""The character model of ``examples/char_lm.py``: its parts, and whole runs on a small text."""

from __future__ import annotations

import doctest
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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


def schedule(**changes: Any) -> char_lm.Schedule:
    values: dict[str, Any] = {
        "lr": 0.01, "clip": 1.0, "batch": 4, "truncate": 16, "epochs": 3, "seconds": 60.0, "seed": 0
    }  # fmt: skip
    return char_lm.Schedule(**values | changes)


def leaves(tree: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays of layers or their gradients under joined names."""
    return {
        f"{part}.{name}": array
        for part, holder in tree.items()
        for name, array in holder.params.items()
    }


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


@pytest.mark.parametrize("truncate", [1, 4, 5, 12, 50])
def test_segments_join_to_the_streams(truncate: int) -> None:
    pieces = char_lm.streams(np.arange(37), 3)
    parts = list(char_lm.segments(pieces, truncate))
    assert all(len(x) == truncate for x, _ in parts[:-1])
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), pieces[:-1])
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), pieces[1:])


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


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_segments_with_carried_state_are_one_long_pass(cell: str) -> None:
    model = small_model(cell)
    pieces = char_lm.streams(model.vocabulary.encode(TEXT), 3)
    whole, last = model.recurrent(model.embedding(pieces[:-1]))
    outputs = []
    state: Any = None
    for inputs, _ in char_lm.segments(pieces, 50):
        y, state, _ = model.recurrent.forward(model.embedding(inputs), state)
        outputs.append(y)
    np.testing.assert_array_equal(np.concatenate(outputs), whole)
    np.testing.assert_array_equal(np.asarray(state), np.asarray(last))


def test_evaluation_is_the_mean_over_one_long_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(dropout=0.5, recurrent_dropout=0.5)
    codes = model.vocabulary.encode(TEXT[:3000])
    monkeypatch.setattr(char_lm, "VALIDATION_STREAMS", 1)
    logits, _ = model(codes[:-1, None])
    z = logits[:, 0].astype(np.float64)
    nats = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), codes[1:]]
    expected = nats.mean() / math.log(2)
    assert char_lm.evaluate(model, codes) == pytest.approx(expected, rel=1e-6)
    assert model.recurrent.call_number == 0  # dropout was off


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_gradient_of_the_whole_model(cell: str) -> None:
    """In float64, against differences along a direction in every parameter."""
    model = small_model(cell)
    V = model.vocabulary.size
    model.embedding = rc.Embedding(V, 5, dtype="float64", seed=1)
    model.recurrent = char_lm.CELLS[cell](5, 7, num_layers=2, dtype="float64", seed=2)
    model.head = rc.Linear(7, V, dtype="float64", seed=3)
    rng = np.random.default_rng(4)
    inputs, targets = rng.integers(0, V, (2, 6, 3))

    def loss(point: Mapping[str, NDArray[Any]]) -> float:
        for name, value in point.items():
            part, parameter = name.split(".")
            model.parts[part].params[parameter] = value
        return rc.softmax_cross_entropy(model(inputs)[0], targets)[0]

    logits, _, tapes = model.forward(inputs)
    _, d_logits = rc.softmax_cross_entropy(logits, targets)
    gradient = leaves(model.backward(tapes, d_logits))
    point = {name: array.copy() for name, array in leaves(model.parts).items()}
    assert_gradient(loss, point, gradient, rng)


@pytest.mark.parametrize("cell", char_lm.CELLS)
def test_a_file_alone_makes_the_model_again(cell: str, tmp_path: Path) -> None:
    model = small_model(cell, seed=5)
    model.save(tmp_path / "model.safetensors")
    again = char_lm.Model.load(tmp_path / "model.safetensors")
    assert type(again.recurrent) is type(model.recurrent)
    np.testing.assert_array_equal(again.vocabulary.code_points, model.vocabulary.code_points)
    codes = model.vocabulary.encode(TEXT[:200])[:, None]
    np.testing.assert_array_equal(again(codes)[0], model(codes)[0])


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
    model.head.params["bias"][0] = 100.0  # the unknown must not be written, however likely
    text = char_lm.sample(model, "on the", 50, 1e-6, seed=0)
    assert "\N{REPLACEMENT CHARACTER}" not in text
    codes = model.vocabulary.encode(text)
    logits, _ = model(codes[:-1, None])
    likeliest = logits[:, 0, 1:].argmax(axis=1) + 1
    np.testing.assert_array_equal(likeliest[5:], codes[6:])


def test_a_prompt_may_hold_unknown_characters() -> None:
    prompt = "\N{GREEK SMALL LETTER PI}"
    assert char_lm.sample(small_model(), prompt, 5, 1.0, seed=0).startswith(prompt)


# ---- Training ------------------------------------------------------------------------------------


def trainer(path: Path, **changes: Any) -> char_lm.Trainer:
    model = small_model()
    codes = model.vocabulary.encode(TEXT)
    return char_lm.Trainer(model, codes[:4000], codes[4000:], schedule(**changes), path)


def test_the_best_weights_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    figures = iter([3.0, 2.0, 2.5, 2.0])
    weights = []

    def scripted(model: char_lm.Model, codes: char_lm.Codes) -> float:
        del codes
        weights.append(model.head.params["weight"].copy())
        return next(figures)

    monkeypatch.setattr(char_lm, "evaluate", scripted)
    subject = trainer(path, epochs=4)
    subject.run()
    assert subject.best == 2.0
    assert list(subject.history.validation.values()) == [3.0, 2.0, 2.5, 2.0]
    assert not np.array_equal(weights[1], weights[3])
    np.testing.assert_array_equal(rc.load(path)["head.weight"], weights[1])


def test_the_rate_falls_to_zero_and_the_state_is_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = trainer(tmp_path / "model.safetensors", epochs=2)
    rates: list[float] = []
    fresh: list[bool] = []
    update = subject._update

    def watched(inputs: Any, targets: Any, state: Any) -> tuple[float, Any]:
        rates.append(subject._optimizer.lr)
        fresh.append(state is None)
        assert inputs.shape == targets.shape == (16, 4)
        return update(inputs, targets, state)

    monkeypatch.setattr(subject, "_update", watched)
    subject.run()
    per_epoch = (4000 - 16) // 4 // 16
    assert len(rates) == 2 * per_epoch
    np.testing.assert_allclose(rates, 0.01 * (1 - np.arange(len(rates)) / len(rates)), rtol=1e-12)
    assert [i for i, begins in enumerate(fresh) if begins] == [0, per_epoch]


def test_without_time_for_all_epochs_the_plan_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that knows updates alone, in time for three and a half epochs of ten."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    subject = trainer(tmp_path / "model.safetensors", epochs=10, seconds=62 * 3.5)
    rates: list[float] = []
    update = subject._update

    def one_second(*arguments: Any) -> tuple[float, Any]:
        nonlocal now
        now += 1.0
        rates.append(subject._optimizer.lr)
        return update(*arguments)

    monkeypatch.setattr(subject, "_update", one_second)
    subject.run()
    assert list(subject.history.validation) == [62, 124, 186, 217]
    np.testing.assert_allclose(rates[:62], 0.01 * (1 - np.arange(62) / 620), rtol=1e-12)
    np.testing.assert_allclose(rates[62:], 0.01 * (1 - np.arange(62, 217) / 217), rtol=1e-12)


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
    assert len(re.findall(r"epoch \d/3 \| .* characters/s \| \d+:\d\d left", printed)) == 3

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
    update = char_lm.Trainer._update

    def interrupted(self: char_lm.Trainer, *arguments: Any) -> Any:
        if len(self.history.train) == updates:
            raise KeyboardInterrupt
        return update(self, *arguments)

    monkeypatch.setattr(char_lm.Trainer, "_update", interrupted)
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
    assert "char/s, loss " in printed.err
    assert "epoch 3/3" in printed.out


def test_what_is_not_installed_is_named(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tqdm", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(char_lm, "SECONDS_BETWEEN_LINES", 0.0)
    printed = run()
    assert "no learning curve: it needs matplotlib (pip install matplotlib)" in printed
    assert not (tmp_path / "out" / "char_lm.png").exists()
    assert re.search(
        r"^  loss [\d.]+ \| train [\d.]+ bits/char \| [\d,]+ characters/s \| \d+:\d\d left$",
        printed,
        re.MULTILINE,
    )


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
