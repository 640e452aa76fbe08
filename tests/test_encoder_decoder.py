"""Encoder and decoder: one gradient through both, and what they write."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnncore as rc
from gradcheck import assert_gradient

CELLS = [rc.LSTM, rc.GRU, rc.RNN, rc.MGU]


def make(
    cell: Any = rc.LSTM, *, batch_first: bool = False, dropout: float = 0.0, layers: int = 1
) -> rc.EncoderDecoder:
    common: dict[str, Any] = {"dtype": "float64", "batch_first": batch_first}
    own = {**common, "num_layers": layers, "recurrent_dropout": dropout}
    return rc.EncoderDecoder(
        rc.Sequential(
            {
                "embedding": rc.Embedding(7, 4, seed=0, dtype="float64"),
                "reader": cell(4, 6, seed=1, **own),
            }
        ),
        rc.Sequential(
            {
                "embedding": rc.Embedding(5, 3, seed=2, dtype="float64"),
                "writer": cell(3, 6, seed=3, **own),
                "head": rc.Linear(6, 5, seed=4, dtype="float64"),
            }
        ),
    )


def batch(batch_first: bool = False) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 7, (6, 3)), rng.integers(0, 5, (4, 3))
    lengths = np.array([6, 2, 4]), np.array([1, 4, 3])
    return ((source.T, target.T) if batch_first else (source, target)), lengths


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_gradient_is_that_of_a_central_difference(
    cell: Any, batch_first: bool, ragged: bool
) -> None:
    model = make(cell, batch_first=batch_first, layers=2)
    x, lengths = batch(batch_first)
    given = lengths if ragged else None
    rng = np.random.default_rng(1)
    y, tape = model.forward(x, lengths=given)
    w = rng.standard_normal(y.shape)
    gradients = model.backward(tape, w).params
    assert list(gradients) == list(model.params)
    direction = {name: rng.standard_normal(a.shape) for name, a in model.params.items()}
    analytic = sum(float((gradients[name] * v).sum()) for name, v in direction.items())
    values, eps = [], 1e-6
    start = {name: a.copy() for name, a in model.params.items()}
    for sign in (1, -1):
        for name, a in model.params.items():
            a[...] = start[name] + sign * eps * direction[name]
        values.append(float((w * model(x, lengths=given)).sum()))
    assert analytic == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-6, abs=1e-7)
    assert np.abs(gradients["encoder.reader.weight_hh_l0"]).max() > 1e-6


@pytest.mark.parametrize("ragged", [False, True])
def test_real_inputs_have_gradients_too(ragged: bool) -> None:
    common: dict[str, Any] = {"dtype": "float64"}
    model = rc.EncoderDecoder(
        rc.Sequential(rc.Linear(3, 4, seed=0, **common), rc.GRU(4, 5, seed=1, **common)),
        rc.Sequential(rc.GRU(2, 5, seed=2, **common), rc.Linear(5, 3, seed=3, **common)),
    )
    rng = np.random.default_rng(0)
    source, target = rng.standard_normal((6, 3, 3)), rng.standard_normal((4, 3, 2))
    lengths = (np.array([6, 0, 4]), np.array([2, 4, 3])) if ragged else None
    if lengths is not None:
        source[np.arange(6)[:, None] >= lengths[0]] = np.nan
        target[np.arange(4)[:, None] >= lengths[1]] = np.nan
    y, tape = model.forward((source, target), lengths=lengths)
    w = rng.standard_normal(y.shape)
    g = model.backward(tape, w)
    ds, dt = g.x
    assert ds is not None
    assert dt is not None

    def loss(at: Any) -> float:
        model.load_params({name: at[name] for name in model.params})
        return float((w * model((at["source"], at["target"]), lengths=lengths)).sum())

    point = {"source": source, "target": target}
    point |= {name: array.copy() for name, array in model.params.items()}
    assert_gradient(loss, point, {"source": ds, "target": dt, **g.params}, rng)


def test_chains_within_chains_hand_their_states_over() -> None:
    def stack(name: str, size: int) -> rc.Sequential:
        inner = rc.Sequential({name: rc.GRU(4, size, seed=1), "lstm": rc.LSTM(size, 5, seed=2)})
        return rc.Sequential({"embedding": rc.Embedding(7, 4, seed=0), "inner": inner})

    model = rc.EncoderDecoder(stack("gru", 6), stack("gru", 6))
    x, lengths = batch()
    y, tape = model.forward(x, lengths=lengths)
    _, state = model.encoder(x[0], lengths=lengths[0], return_state=True)
    assert np.array_equal(y, model.decoder(x[1], state, lengths=lengths[1]))
    g = model.backward(tape, np.ones_like(y))
    assert np.abs(g.params["encoder.inner.gru.weight_hh_l0"]).max() > 0
    for other in (stack("gru", 8), stack("rnn", 6)):
        with pytest.raises(ValueError, match="expected the cell, sizes and dtype"):
            rc.EncoderDecoder(model.encoder, other)


def test_y_is_the_decoder_begun_where_the_encoder_ended() -> None:
    model = make()
    x, lengths = batch()
    _, state = model.encoder(x[0], lengths=lengths[0], return_state=True)
    expected = model.decoder(x[1], {"writer": state["reader"]}, lengths=lengths[1])
    y, tape = model.forward(x, lengths=lengths)
    assert np.array_equal(model(x, lengths=lengths), expected)
    assert np.array_equal(y, expected)
    assert tape.nbytes > 0
    model.backward(tape, y, keep=True)
    model.backward(tape, y)
    assert tape.nbytes == 0
    with pytest.raises(ValueError, match="tape: expected an unused one"):
        model.backward(tape, y)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_is_written_is_what_the_decoder_says(width: int, batch_first: bool) -> None:
    model = make(batch_first=batch_first)
    model.params["decoder.head.weight"] *= 5
    (source, _), (lengths, _) = batch(batch_first)
    written = model.translate(
        source, lengths=lengths, start=1, end=2, length=7, width=width, alpha=0.0
    )
    assert len(written) == 3

    def value(row: int, codes: list[int]) -> float:
        own = source[row : row + 1] if batch_first else source[:, row : row + 1]
        target = np.array([1, *codes])
        logits = model(
            (own, target[None] if batch_first else target[:, None]),
            lengths=(lengths[row : row + 1], None),
        ).reshape(-1, 5)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        ends = [*codes, 2] if len(codes) < 7 else codes
        return float(sum(log_p[t, code] for t, code in enumerate(ends)))

    greedy = model.translate(source, lengths=lengths, start=1, end=2, length=7)
    for row, codes in enumerate(written):
        assert 2 not in codes
        assert len(codes) <= 7
        alone = source[row : row + 1] if batch_first else source[:, row : row + 1]
        (again,) = model.translate(
            alone, lengths=lengths[row : row + 1], start=1, end=2, length=7, width=width, alpha=0.0
        )
        assert again.tolist() == codes.tolist()
        if width > 1:
            assert value(row, codes.tolist()) >= value(row, greedy[row].tolist()) - 1e-9


def test_it_learns_with_fit_to_turn_sequences_round() -> None:
    rng = np.random.default_rng(0)
    source = [rng.integers(3, 7, n) for n in rng.integers(1, 4, 400)]
    target_in = [np.array([1, *(row[::-1] - 2)]) for row in source]
    target_out = [np.array([*(row[::-1] - 2), 0]) for row in source]
    common: dict[str, Any] = {"seed": 1}
    model = rc.EncoderDecoder(
        rc.Sequential(rc.Embedding(7, 8, **common), rc.GRU(8, 32, **common)),
        rc.Sequential(rc.Embedding(5, 8, **common), rc.GRU(8, 32, **common), rc.Linear(32, 5)),
    )
    history = rc.fit(
        model,
        (source, target_in),
        target_out,
        optimizer=rc.Adam(model, lr=0.02),
        epochs=25,
        batch_size=32,
        validation=0.2,
        progress=False,
    )
    assert min(history.validation_loss) < 0.15
    array = np.zeros((3, 50), int)
    for k, row in enumerate(source[:50]):
        array[: len(row), k] = row
    lengths = [len(row) for row in source[:50]]
    written = model.translate(array, lengths=lengths, start=1, end=0, length=5, width=2)
    right = sum(
        codes.tolist() == (row[::-1] - 2).tolist()
        for codes, row in zip(written, source[:50], strict=True)
    )
    assert right >= 45


def test_copies_files_and_dropout(tmp_path: Path) -> None:
    model = make(dropout=0.4)
    x, lengths = batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other(x, lengths=lengths), model(x, lengths=lengths))
        assert other.params["encoder.embedding.weight"] is other.encoder.params["embedding.weight"]
    one, _ = model.forward(x)
    rc.save(tmp_path / "m.safetensors", model)
    two, _ = model.forward(x)
    assert not np.array_equal(one, two)
    other = make(dropout=0.4)
    rc.load(tmp_path / "m.safetensors", into=other)
    again, _ = other.forward(x)
    assert np.array_equal(again, two)
    still, _ = model.forward(x, dropout=False)
    assert np.array_equal(still, model(x))


def test_a_model_saves_and_loads_itself(tmp_path: Path) -> None:
    model, other, x = make(dropout=0.4), make(dropout=0.4), batch()[0]
    for array in other.params.values():
        array *= 0.5
    model.forward(x)
    model.save(tmp_path / "own")
    rc.save(tmp_path / "same", model)
    assert (tmp_path / "own").read_bytes() == (tmp_path / "same").read_bytes()
    other.load(tmp_path / "own")
    assert np.array_equal(other(x), model(x))
    assert np.array_equal(other.forward(x)[0], model.forward(x)[0])  # the same masks
    with pytest.raises(ValueError, match=r"missing encoder\.reader\.weight_ih_l1"):
        make(layers=2).load(tmp_path / "own")


def test_a_tape_shows_the_gates_of_both() -> None:
    model, (source, target) = make(), batch()[0]
    _, tape = model.forward((source, target))
    found = tape.gates()
    assert {name: list(own) for name, own in found.items()} == {
        "encoder": ["reader"],
        "decoder": ["writer"],
    }
    _, read = model.encoder.forward(source)
    _, written = model.decoder.forward(target, {"writer": read.state["reader"]})
    for name, expected in (("encoder", read.gates()), ("decoder", written.gates())):
        np.testing.assert_equal(found[name], expected)
    model.backward(tape)
    with pytest.raises(ValueError, match="tape: expected an unused one"):
        tape.gates()


def test_a_forward_that_fails_gives_back_its_call_numbers() -> None:
    model = make(dropout=0.4)
    (source, _), _ = batch()
    with pytest.raises(ValueError, match="indices"):
        model.forward((source, np.full((4, 3), 9)))
    assert model.encoder.layers["reader"].call_number == 0


E = rc.Embedding(4, 3)


@pytest.mark.parametrize(
    ("encoder", "decoder", "error", "match"),
    [
        (rc.GRU(3, 4), rc.Sequential(rc.GRU(3, 4)), TypeError, "encoder: expected a Sequential"),
        (rc.Sequential(rc.GRU(3, 4)), None, TypeError, "decoder: expected a Sequential"),
        (
            rc.Sequential(rc.GRU(3, 4, batch_first=True)),
            rc.Sequential(rc.GRU(3, 4)),
            ValueError,
            "decoder: expected batch_first=True",
        ),
        (
            rc.Sequential(rc.Linear(3, 4)),
            rc.Sequential(rc.GRU(3, 4)),
            ValueError,
            "decoder: expected as many layers with a state",
        ),
        (
            rc.Sequential(rc.GRU(3, 4)),
            rc.Sequential(rc.LSTM(3, 4)),
            ValueError,
            "expected the cell, sizes and dtype of encoder.layers",
        ),
        (
            rc.Sequential(rc.GRU(3, 4)),
            rc.Sequential(rc.GRU(3, 5)),
            ValueError,
            "expected the cell, sizes and dtype",
        ),
        (
            rc.Sequential(rc.GRU(3, 4, bidirectional=True)),
            rc.Sequential(rc.GRU(3, 4, bidirectional=True)),
            ValueError,
            "one direction each",
        ),
        (
            rc.Sequential(rc.GRU(3, 4), rc.Pooling("last"), rc.Linear(4, 2)),
            rc.Sequential(rc.GRU(3, 4)),
            ValueError,
            r"encoder.layers\['2'\]: expected a layer with a state to end with",
        ),
        (
            rc.Sequential(E, rc.GRU(3, 4)),
            rc.Sequential(E, rc.GRU(3, 4)),
            ValueError,
            r"decoder.params\['0.weight'\]: expected its own, got the encoder's",
        ),
    ],
)
def test_chains_that_do_not_fit(
    encoder: Any, decoder: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        rc.EncoderDecoder(encoder, decoder)


def test_bad_arguments() -> None:
    model = make()
    x, _ = batch()
    with pytest.raises(TypeError, match=r"x: expected a pair \(source, target\)"):
        model(x[0])
    with pytest.raises(TypeError, match="lengths: expected a pair"):
        model(x, lengths=3)
    with pytest.raises(ValueError, match="width"):
        model.translate(x[0], start=1, end=2, length=3, width=0)
    with pytest.raises(ValueError, match="source: expected an axis of rows"):
        model.translate([1, 2], start=1, end=2, length=3)
    assert model.translate(np.zeros((2, 0), int), start=1, end=2, length=3, width=2) == []
    plain = rc.EncoderDecoder(rc.Sequential(rc.GRU(3, 4)), rc.Sequential(rc.GRU(3, 4)))
    with pytest.raises(ValueError, match="decoder: expected an Embedding in front"):
        plain.translate(np.zeros((2, 1, 3)), start=1, end=2, length=3)
    assert repr(model).startswith("EncoderDecoder(Sequential(")
