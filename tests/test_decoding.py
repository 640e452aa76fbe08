"""Sampling and search, against what enumeration and counting give."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import rnncore as rc

V = 4


def language_model(seed: int = 0) -> rc.Sequential:
    """Return a model of V symbols with opinions."""
    model = rc.Sequential(
        rc.Embedding(V, 5, seed=seed, dtype="float64"),
        rc.LSTM(5, 7, seed=seed + 1, dtype="float64"),
        rc.Linear(7, V, seed=seed + 2, dtype="float64"),
    )
    model.params["2.weight"] *= 4
    return model


def log_probability(model: rc.Sequential, codes: list[int]) -> float:
    """Return log P(codes[1:] | codes[0])."""
    logits = model(np.array(codes[:-1])[:, None])[:, 0]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(sum(log_p[t, code] for t, code in enumerate(codes[1:])))


# ---- Sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 3])
def test_frequencies_are_those_of_the_softmax(temperature: float, top_k: int | None) -> None:
    logits = np.array([0.3, -1.0, 1.2, 0.0, -0.5])
    n = 20_000
    drawn = rc.sample(
        np.tile(logits, (n, 1)), np.random.default_rng(0), temperature=temperature, top_k=top_k
    )
    p = np.exp(logits / temperature)
    if top_k is not None:
        p[np.argsort(-logits)[top_k:]] = 0
    p /= p.sum()
    counts = np.bincount(drawn, minlength=5)
    assert not counts[p == 0].any()
    chi_square = ((counts - n * p)[p > 0] ** 2 / (n * p[p > 0])).sum()
    assert chi_square < 18.5  # 0.999 of the distribution with 4 degrees of freedom


def test_cold_and_narrow_samples_are_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 50, 9))
    expected = logits.argmax(axis=-1)
    for options in (
        {"temperature": 0},
        {"temperature": 1e-9},
        {"temperature": 1e-320},
        {"top_k": 1},
    ):
        assert np.array_equal(rc.sample(logits, rng, **options), expected)


def test_what_is_excluded_is_not_drawn() -> None:
    logits = np.array([[0.0, -np.inf, 0.0]] * 1000)
    assert set(rc.sample(logits, np.random.default_rng(0), top_k=9).tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("logits", "options", "error", "match"),
    [
        ([[1.0, np.nan]], {}, ValueError, "logits: expected a finite largest logit"),
        ([[-np.inf, -np.inf]], {}, ValueError, "logits: expected a finite largest logit"),
        (np.zeros((3, 0)), {}, ValueError, r"logits: expected shape \(..., V\)"),
        ([1.0], {"temperature": -1}, ValueError, "temperature: expected a finite number >= 0"),
        ([1.0], {"temperature": np.nan}, ValueError, "temperature"),
        ([1.0], {"top_k": 0}, ValueError, "top_k"),
        ([1.0], {"top_k": 0, "temperature": 0}, ValueError, "top_k: expected a positive integer"),
        ([1.0], {"top_k": "abc", "temperature": 0}, TypeError, "top_k: expected a positive"),
        (["a"], {}, TypeError, "logits"),
    ],
)
def test_bad_samples(
    logits: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        rc.sample(logits, np.random.default_rng(0), **options)
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator"):
        rc.sample([1.0], 0)  # type: ignore[arg-type]


# ---- Generation ----------------------------------------------------------------------------------


def test_greedy_generation_follows_the_model() -> None:
    model = language_model()
    made = rc.generate(model.freeze(), [1, 3, 2], 6, temperature=0)
    codes = [1, 3, 2]
    for _ in range(6):
        codes.append(int(model(np.array(codes)[:, None])[-1, 0].argmax()))
    assert made.tolist() == codes[3:]


def test_rows_are_generated_side_by_side_and_end_alone() -> None:
    model = language_model(3)
    start = np.array([[0, 1, 2, 3]])
    made = rc.generate(model.freeze(4), start, 12, temperature=0, end=2)
    for row in range(4):
        alone = rc.generate(model.freeze(), start[:, row], 12, temperature=0, end=2)
        assert made[: len(alone), row].tolist() == alone.tolist()
        assert (made[len(alone) :, row] == 2).all()
        assert 2 not in alone[:-1]


def test_a_seed_repeats_and_a_stream_goes_on() -> None:
    model = language_model()
    one, two = (rc.generate(model.freeze(), [1], 30, seed=5) for _ in range(2))
    assert one.tolist() == two.tolist()
    assert one.tolist() != rc.generate(model.freeze(), [1], 30, seed=6).tolist()
    stream = model.freeze()
    first = rc.generate(stream, [1], 4, temperature=0)
    rest = rc.generate(stream, first[-1:], 4, temperature=0)
    whole = rc.generate(model.freeze(), [1], 8, temperature=0)
    assert [*first, *rest] == whole.tolist()


@pytest.mark.parametrize(
    ("start", "options", "match"),
    [
        ([], {}, r"start: expected shape \(N,\) or \(N, B\)"),
        (1, {}, r"start: expected shape"),
        ([1], {"length": 0}, "length"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"end": V}, "end: expected 0 <= value <= V - 1 = 3, got 4"),
        ([1], {"end": [0]}, r"end: expected shape \(\)"),
    ],
)
def test_bad_generation(start: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rc.generate(
            language_model().freeze(),
            np.array(start, int),
            options.pop("length", 3),
            **options,
        )


@pytest.mark.parametrize(
    "options", [{"end": -1}, {"top_k": -3}, {"top_k": -3, "temperature": 0}, {"temperature": -1}]
)
def test_options_are_checked_before_the_stream_moves(options: dict[str, Any]) -> None:
    stream = language_model().freeze()
    before = stream.state["1"][0].copy()
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected "):
        rc.generate(stream, [1, 2], 3, **options)
    assert np.array_equal(stream.state["1"][0], before)


def test_a_model_that_is_not_frozen_is_refused_by_name() -> None:
    message = "stream: expected what freeze gives, got Sequential"
    with pytest.raises(TypeError, match=message):
        rc.generate(language_model(), [1], 3)
    with pytest.raises(TypeError, match=message):
        rc.beam_search(language_model(), 1, 3, width=2)

    class WithoutState:
        def step(self, codes: Any) -> Any:
            return np.zeros((len(codes), V))

    assert rc.generate(WithoutState(), [1], 3, temperature=0).tolist() == [0, 0, 0]
    with pytest.raises(TypeError, match="stream: expected what freeze gives, got WithoutState"):
        rc.beam_search(WithoutState(), 1, 3, width=2)


# ---- Beam search ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, 0])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_beam_wide_enough_finds_what_enumeration_finds(end: int | None, alpha: float) -> None:
    model, length = language_model(1), 4
    width = V**length
    found = rc.beam_search(model.freeze(width), 1, length, width=width, end=end, alpha=alpha)
    everything = []
    for n in range(1, length + 1):
        for codes in itertools.product(range(V), repeat=n):
            if end in codes[:-1] or (codes[-1] != end and n < length):
                continue
            value = log_probability(model, [1, *codes])
            symbols = [c for c in codes if c != end]
            everything.append((value / ((5 + n) / 6) ** alpha, value, symbols))
    everything.sort(key=lambda one: -one[0])
    assert len(found) == len(everything)
    for hypothesis, (score, value, symbols) in zip(found, everything, strict=True):
        assert hypothesis.score == pytest.approx(score)
        assert hypothesis.log_probability == pytest.approx(value)
        assert hypothesis.codes.tolist() == symbols


def test_a_beam_of_one_is_greedy() -> None:
    for seed in range(5):
        model = language_model(seed)
        greedy = rc.generate(model.freeze(), [1], 9, temperature=0, end=0)
        (best,) = rc.beam_search(model.freeze(1), 1, 9, width=1, end=0)
        assert best.codes.tolist() == [code for code in greedy.tolist() if code != 0]
        assert best.ended == (0 in greedy)


def test_a_wider_beam_is_not_worse() -> None:
    for seed in range(5):
        model = language_model(seed)
        best = [
            rc.beam_search(model.freeze(width), 1, 6, width=width)[0].log_probability
            for width in (1, 4, V**6)
        ]
        assert best[2] >= best[1] - 1e-9
        assert best[2] >= best[0] - 1e-9


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_searches_side_by_side_are_searches_alone(alpha: float) -> None:
    model, width, start = language_model(0), 3, [1, 3, 0, 1]
    found = rc.beam_search(model.freeze(12), start, 8, width=width, end=0, alpha=alpha)
    assert len(found) == 4
    assert [len(each[0].codes) for each in found] == [1, 8, 0, 1]  # some end early, others late
    for each, code in zip(found, start, strict=True):
        alone = rc.beam_search(model.freeze(width), code, 8, width=width, end=0, alpha=alpha)
        assert [one.codes.tolist() for one in each] == [one.codes.tolist() for one in alone]
        assert [one.score for one in each] == pytest.approx([one.score for one in alone])
        assert [one.ended for one in each] == [one.ended for one in alone]
    assert rc.beam_search(model.freeze(1), np.zeros(0, int), 8, width=width) == []


def test_a_search_goes_on_from_the_state_of_its_stream() -> None:
    model = language_model(4)
    stream = model.freeze(2)
    stream.step([3, 3])
    found = rc.beam_search(stream, 1, 3, width=2)
    for hypothesis in found:
        value = log_probability(model, [3, 1, *hypothesis.codes])
        before = log_probability(model, [3, 1])
        assert hypothesis.log_probability == pytest.approx(value - before)


class Table:
    """The least that a stream is: the logits of each symbol for the one before it."""

    def __init__(self, logits: Any) -> None:
        self.logits, self.state = np.array(logits), np.zeros((1, 9, 0))

    def step(self, codes: Any) -> Any:
        return self.logits[codes]


def test_any_object_with_a_step_is_a_stream() -> None:
    cycle = np.full((3, 3), -np.inf)
    cycle[[0, 1, 2], [1, 2, 0]] = 0.0
    assert rc.generate(Table(cycle), [0], 5, seed=0).tolist() == [1, 2, 0, 1, 2]
    found = rc.beam_search(Table(cycle), 0, 5, width=4)
    assert [one.codes.tolist() for one in found] == [[1, 2, 0, 1, 2]]
    assert found[0].log_probability == 0.0


def test_logits_that_leave_nothing_are_refused() -> None:
    for value in (np.nan, -np.inf):
        with pytest.raises(ValueError, match="logits: expected a finite largest logit"):
            rc.beam_search(Table([[value, value]] * 2), 0, 3, width=2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0}, "width: expected a positive integer, got 0"),
        ({"length": 0}, "length: expected a positive integer, got 0"),
        ({"start": [[1, 2]]}, r"start: expected a code or codes \(B,\), got shape \(1, 2\)"),
        ({"start": [1, 2]}, r"expected shape \(B = 2\), got \(4,\)"),
        ({"end": -1}, "end: expected a symbol >= 0, got -1"),
        ({"end": V}, "end: expected 0 <= value <= V - 1 = 3, got 4"),
        ({"alpha": np.nan}, "alpha: expected a finite number, got nan"),
    ],
)
def test_bad_searches(options: dict[str, Any], match: str) -> None:
    given = {"start": 1, "length": 3, "width": 2, **options}
    with pytest.raises(ValueError, match=match):
        rc.beam_search(language_model().freeze(2), **given)
