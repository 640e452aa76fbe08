"""What the benchmark of tasks draws, how it judges, and what it keeps; nothing here takes long."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
import sequences
import tasks
from learners import Outcome
from tasks import BY_NAME, TASKS, Notebook, Record

import rnncore as rc

SYMBOLS = sequences.REBER_SYMBOLS


def rng(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


# ---- Reber grammar -------------------------------------------------------------------------------

#: Strings of Reber's grammar, without its B and E, from the graph by hand.
INNER = {"TXS", "TSXS", "PVV", "PTVV", "PVPS", "TXXVV", "TXXVPS", "PVPXVV"}


def accepted(inner: str) -> bool:
    """Whether the graph leads from its first state to its last."""
    state = 0
    for symbol in inner:
        following = dict(sequences.REBER_GRAPH[state])
        if symbol not in following:
            return False
        state = following[symbol]
    return not sequences.REBER_GRAPH[state]


def test_the_graph_is_that_of_reber() -> None:
    assert all(map(accepted, INNER))
    assert not any(map(accepted, ("", "T", "TXT", "PVVE", "VV", "TXSS")))


def test_a_string_is_embedded_and_says_what_may_follow() -> None:
    generator = rng()
    for _ in range(200):
        text, possible = sequences.embedded_reber(generator)
        assert text[0] == "B"
        assert text[-1] == "E"
        assert text[1] == text[-2]
        assert text[1] in "TP"
        assert text[2] == "B"
        assert text[-3] == "E"
        assert accepted(text[3:-3])
        assert len(possible) == len(text) - 1
        assert all(symbol in some for symbol, some in zip(text[1:], possible, strict=True))
        assert possible[-2] == text[1]  # what has to be remembered


def test_both_branches_are_drawn_alike() -> None:
    generator = rng()
    texts = [sequences.embedded_reber(generator).text for _ in range(4000)]
    assert 0.47 < np.mean([text[1] == "T" for text in texts]) < 0.53
    assert 0.47 < np.mean([text[3] == "T" for text in texts]) < 0.53


def test_a_batch_of_strings_predicts_the_next_symbol() -> None:
    strings = [sequences.embedded_reber(rng(n)) for n in range(5)]
    (x, y, lengths), possible = sequences.reber_batch(strings)
    assert lengths is not None
    for row, one in enumerate(strings):
        T = lengths[row]
        assert len(one.text) - 1 == T
        assert "".join(SYMBOLS[code] for code in x[:T, row].argmax(-1)) == one.text[:-1]
        assert "".join(SYMBOLS[code] for code in y[:T, row]) == one.text[1:]
        assert not x[T:, row].any()
        assert not possible[T:, row].any()
        assert possible[np.arange(T), row, y[:T, row]].all()
        assert possible[:T, row].sum(-1).tolist() == [len(some) for some in one.possible]


def test_no_test_string_is_a_training_string() -> None:
    train, test = sequences.reber_sets(rng(), 100)
    assert len(train) == len(test) == 100
    assert not {one.text for one in train} & {one.text for one in test}


def test_streams_in_pieces_are_one_stream() -> None:
    pieces = sequences.ReberStreams(rng(), 1)
    taken = [pieces.take(steps) for steps in (7, 1, 40)]
    whole, possible = sequences.ReberStreams(rng(), 1).take(48)
    np.testing.assert_array_equal(np.concatenate([batch.x for batch, _ in taken]), whole.x)
    np.testing.assert_array_equal(np.concatenate([some for _, some in taken]), possible)
    text = "".join(SYMBOLS[code] for code in whole.x[:, 0].argmax(-1))
    generator, expected = rng(), ""
    while len(expected) < 48:
        expected += sequences.embedded_reber(generator).text
    assert text == expected[:48]
    np.testing.assert_array_equal(whole.x[1:].argmax(-1), whole.y[:-1])
    assert np.take_along_axis(possible, whole.y[..., None], axis=-1).all()


def test_after_a_string_begins_another_one() -> None:
    batch, possible = sequences.ReberStreams(rng(), 2).take(200)
    codes = batch.x.argmax(-1)
    begins = batch.y[:-1] == SYMBOLS.index("B")
    # An E with a B behind it is the last one of a string: nothing else may come.
    last = begins & (codes[:-1] == SYMBOLS.index("E"))
    assert last.any()
    assert (possible[:-1][last].sum(-1) == 1).all()


def test_a_restarted_row_begins_a_string_and_leaves_the_others() -> None:
    streams, other = (sequences.ReberStreams(rng(), 2) for _ in range(2))
    for one in (streams, other):
        one.take(5)
    streams.restart(np.array([1]))
    x, expected = (one.take(4)[0].x for one in (streams, other))
    np.testing.assert_array_equal(x[:1, 0], expected[:1, 0])
    assert x[0, 1].argmax() == SYMBOLS.index("B")


@pytest.mark.parametrize(
    ("outputs", "possible", "right"),
    [
        ([0.0, 2.0, 1.0], [0, 1, 1], True),
        ([2.0, 2.0, 1.0], [0, 1, 0], False),  # no more active than another one
        ([0.0, 2.0, -1.0], [0, 1, 1], False),
        ([5.0, 2.0, 1.0], [0, 0, 0], True),  # beyond the end
    ],
)
def test_the_possible_symbols_must_be_the_most_active(
    outputs: list[float], possible: list[int], right: bool
) -> None:
    found = sequences.most_active(np.array(outputs), np.array(possible, bool))
    assert found.item() is right


class Oracle:
    """Says what may follow, and errs at some steps of one row."""

    def __init__(self, mistakes: dict[int, int], seed: int, steps: int) -> None:
        streams = sequences.ReberStreams(rng(seed), learners.STREAMS)
        pieces = [2000] * (steps // 2000) + [steps % 2000]  # rows draw in turns, piece by piece
        taken = [streams.take(piece)[1] for piece in pieces]
        self.answers = np.concatenate(taken).astype(float)
        for row, step in mistakes.items():
            self.answers[step, row] = 0
        self.read = 0

    def __call__(self, x: Any, state: Any, *, return_state: bool) -> tuple[Any, Any]:
        assert return_state
        self.read += len(x)
        return self.answers[self.read - len(x) : self.read], {}


def test_a_stream_is_followed_to_its_first_mistake() -> None:
    oracle: Any = Oracle({3: 2500, 4: 10}, seed=5, steps=3000)
    found = learners.steps_without_mistake(oracle, rng(5), 3000)
    assert found == (8 * 3000 + 2500 + 10) / 10
    perfect: Any = Oracle({}, seed=5, steps=3000)
    assert learners.steps_without_mistake(perfect, rng(5), 3000) == 3000


# ---- Long lags -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [20, 100])
def test_adding_is_what_it_says(steps: int) -> None:
    x, y, lengths = sequences.adding(rng(), 500, steps)
    assert lengths is not None
    assert x.shape == (steps + steps // 10, 500, 2)
    assert lengths.min() == steps
    assert lengths.max() == steps + steps // 10
    for row in range(500):
        numbers, marks = x[: lengths[row], row].T
        places = np.flatnonzero(marks == 1)
        assert len(places) == 2
        assert places[0] < 10
        assert places[1] < max(10, steps // 2 - 1)
        assert y[row, 0] == pytest.approx(0.5 + numbers[places].sum() / 4, abs=1e-6)
        ends = {0, lengths[row] - 1} - set(places)
        assert (marks[list(ends)] == -1).all()
        assert np.count_nonzero(marks) == 2 + len(ends)
        assert numbers[0] == 0 or places[0] > 0
        assert not x[lengths[row] :, row].any()
        assert np.abs(numbers).max() <= 1


def test_temporal_order_is_what_it_says() -> None:
    x, y, lengths = sequences.temporal_order(rng(), 400)
    assert lengths is not None
    assert (lengths.min(), lengths.max()) == (100, 110)
    codes = x.argmax(-1)
    for row in range(400):
        text = "".join("abcdXYEB"[code] for code in codes[: lengths[row], row])
        assert text[0] == "E"
        assert text[-1] == "B"
        places = [place for place, symbol in enumerate(text) if symbol in "XY"]
        assert len(places) == 2
        assert 10 <= places[0] <= 20
        assert 50 <= places[1] <= 60
        assert ["XX", "XY", "YX", "YY"][y[row]] == text[places[0]] + text[places[1]]
        assert set(text[1:-1]) <= set("abcdXY")
        assert not x[lengths[row] :, row].any()
    assert np.bincount(y).min() > 60


def test_copying_is_what_it_says() -> None:
    x, y, lengths = sequences.copying(rng(), 8, 30)
    assert lengths is None
    codes = x.argmax(-1)
    assert codes.shape == y.shape == (50, 8)
    assert codes[:10].max() < 8
    np.testing.assert_array_equal(codes[:10], y[-10:])
    assert (codes[10:39] == 8).all()
    assert (codes[39] == 9).all()
    assert (codes[40:] == 8).all()
    assert (y[:40] == 8).all()


# ---- Series and rows -----------------------------------------------------------------------------


def test_mackey_glass_solves_its_equation() -> None:
    """While t < 17 the delayed value is 0, but for the jump at 0: x decays as exp(-t / 10)."""
    x = sequences.mackey_glass(400)
    np.testing.assert_allclose(x[:17], 1.2 * np.exp(-np.arange(17) / 10), rtol=1e-7)
    # Beyond, the slope is that of the equation, seen by central differences of a smooth series.
    slope = (x[202:-1] - x[200:-3]) / 2
    wanted = 0.2 * x[184:-19] / (1 + x[184:-19] ** 10) - 0.1 * x[201:-2]
    assert np.abs(slope - wanted).max() < 0.01
    assert 0.2 < x[150:].std() < 0.25


def test_rows_of_several_channels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "some.ts"
    path.write_text("#x\n@classLabel true 2 10\n@data\n1,2,3:4,5,6:10\n\n7,8:9,0:2\n", "utf-8")
    rows, labels = sequences.read_ts(path)
    np.testing.assert_array_equal(rows[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(rows[1], [[7, 9], [8, 0]])
    assert labels.tolist() == [1, 0]  # 2 comes before 10


def test_a_missing_package_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps aeon$"):
        sequences.japanese_vowels("TRAIN")
    with pytest.raises(ImportError, match=r"^this task needs thing: pip install thing$"):
        sequences.required("no_such_module.inside", "thing")
    found = tasks.main(["--tasks", "japanese-vowels", "--seeds", "0", "--out", str(tmp_path)])
    assert found == 1
    assert "japanese-vowels: NOT RUN: this task needs" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# ---- Learners ------------------------------------------------------------------------------------


def test_an_lstm_without_a_forget_gate_stays_one() -> None:
    lstm = rc.LSTM(3, 5, seed=0)
    learners.hold_forget_open(lstm)
    model = rc.Sequential(lstm, rc.Linear(5, 2, seed=1))
    pupil = learners.Pupil(model, rc.mean_squared_error, 0.1, None)
    x = rng().standard_normal((30, 4, 3)).astype(np.float32)
    before = {name: array.copy() for name, array in lstm.params.items()}
    for _ in range(20):
        pupil.learn(sequences.Batch(x, np.ones((30, 4, 2), np.float32)))
    for name, array in lstm.params.items():
        np.testing.assert_array_equal(array[5:10], before[name][5:10])
        assert not np.array_equal(array[:5], before[name][:5])
    _, _, tape = lstm.forward(x)
    assert (tape.gates()["l0"]["f"] == 1).all()


def test_the_rate_falls_with_the_error() -> None:
    model = rc.Sequential(rc.RNN(1, 2, seed=0), rc.Linear(2, 1, seed=1))
    x = np.zeros((2, 1, 1), np.float32)
    for loss, rate in ((4.0, 0.1), (0.25, 0.05), (1e-9, 0.005)):
        pupil = learners.Pupil(model, lambda p, y, loss=loss: (loss, 0 * p), 0.1, 1.0)
        pupil.learn(sequences.Batch(x, x))
        assert pupil._optimizer.lr == pytest.approx(rate)


def test_biases_for_long_lags() -> None:
    lstm = rc.LSTM(1, 500, seed=0)
    learners.remember(lstm, 101, rng())
    bias = lstm.params["bias_ih_l0"]
    lags = np.exp(bias[500:1000])
    assert 1 <= lags.min() < 5
    assert 95 < lags.max() <= 100
    np.testing.assert_array_equal(bias[:500], -bias[500:1000])


def test_biases_of_an_update_gate() -> None:
    gru = rc.GRU(2, 500, seed=0)
    before = gru.params["bias_ih_l0"].copy()
    learners.keep_for(gru, 101, rng())
    bias = gru.params["bias_ih_l0"]
    keep = np.exp(bias[500:1000])
    assert keep.min() >= 1
    assert 95 < keep.max() <= 100
    bias[500:1000] = before[500:1000]
    np.testing.assert_array_equal(bias, before)


def test_images_move_by_a_pixel_at_most_and_lose_what_leaves() -> None:
    rows = 300
    pixels = np.zeros((8, 8, rows), np.float32)
    pixels[3, 5] = np.arange(1, rows + 1)
    pixels[0, 0] = -1
    moved, lengths = learners.shifted(pixels.reshape(64, rows, 1), None, rng())
    assert lengths is None
    found = moved.reshape(8, 8, rows)
    moves = set()
    for row in range(rows):
        (place,) = np.argwhere(found[..., row] == row + 1)
        down, across = (place - (3, 5)).tolist()
        moves.add((down, across))
        assert (found[..., row] == -1).sum() == (down >= 0 and across >= 0)
    assert moves == {(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)}


def test_a_budget_is_kept_and_its_failure_said() -> None:
    outcome = learners.adding(0, 64, steps=20)
    assert (outcome.solved, outcome.sequences) == (False, 64)
    assert outcome.figure > 1000  # of 2560


def test_a_small_task_is_solved_and_repeats() -> None:
    first, second = (learners.adding(3, 60_000, steps=20) for _ in range(2))
    assert first.solved
    assert first.figure < 30
    assert first == second


# ---- Records and page ----------------------------------------------------------------------------


def record(name: str, number: int, solved: bool, figure: float = 1.0) -> Record:
    return Record(name, number, 100, Outcome(solved, figure, 50, [(25, 0.5), (50, 0.25)], 1.5))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path)
    for one in (record("copying", 1, True), record("copying", 0, False), record("digits", 0, True)):
        notebook.add(one)
    again = Notebook(tmp_path)
    assert again.records == notebook.records
    assert [one.seed for one in again.of("copying")] == [0, 1]
    assert again.has("copying", 1, 100)
    assert not again.has("copying", 1, 200)
    assert not again.has("copying", 2, 100)
    again.add(record("copying", 0, True))
    assert Notebook(tmp_path).of("copying")[0].outcome.solved


def test_a_run_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, int]] = []

    def learn(number: int, budget: int) -> Outcome:
        asked.append((number, budget))
        return Outcome(number > 0, 0.5, budget, [(1, 1.0), (budget, 0.1)])

    monkeypatch.setitem(BY_NAME, "copying", replace(BY_NAME["copying"], learn=learn, budget=10))
    options = ["--tasks", "copying", "--out", str(tmp_path), "--seeds"]
    assert tasks.main([*options, "0"]) == 0
    assert tasks.main([*options, "0", "1"]) == 0
    assert asked == [(0, 10), (1, 10)]
    assert tasks.main([*options, "1", "--budget", "2"]) == 0
    assert asked[2:] == [(1, 20)]
    printed = capsys.readouterr().out
    assert "copying 0: FAILED, share of symbols repeated 0.500, after 10 sequences" in printed
    assert "copying 0: done before" in printed
    text = (tmp_path / "tasks.md").read_text("utf-8")
    assert "| 0.500 (0.500 to 0.500) | 15 (12 to 18) sequences |" in text
    assert "| 1 of 2 | **failed** |" in text


@pytest.mark.parametrize(
    ("name", "solved", "said"),
    [
        ("copying", 10, "solved"),
        ("copying", 6, "solved by most seeds"),
        ("copying", 5, "**failed**"),
        ("continual-reber-1997", 0, "**failed**, as published"),
        ("continual-reber-1997", 5, "**failed** by most seeds, as published"),
        ("continual-reber-1997", 6, "solved, against the paper"),
    ],
)
def test_a_task_that_fails_is_shown_as_failed(name: str, solved: int, said: str) -> None:
    records = [record(name, number, number < solved) for number in range(10)]
    assert tasks.verdict(BY_NAME[name], records) == said


def test_every_task_says_all_of_it() -> None:
    assert len(BY_NAME) == len(TASKS)
    for task in TASKS:
        said = tasks.protocol(task, task.budget)
        for part in (task.title, task.protocol, task.criterion, f"{task.budget:,} {task.unit}"):
            assert part in said


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "2147483648"])
def test_what_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"got '{text}'"):
        tasks.seed(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x"])
def test_what_is_no_factor_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"greater than 0, got '{text}'"):
        tasks.factor(text)
