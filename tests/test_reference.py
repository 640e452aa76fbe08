"""The reference against other libraries, against differences, and against itself.

Three independent witnesses: the conformance cases fix the values of the vanilla cell, LSTM and
two forms of GRU; identities tie the other forms, MGU, directions and masks to those; directional
differences hold every backward half to its forward half.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias

import numpy as np
import pytest

import rnncore as rc
from conformance_cases import FAMILIES, FLOAT64_TOLERANCE, case_ids, disagreement, load_case
from gradcheck import (
    MARGIN,
    Problem,
    assert_derivative,
    assert_gradient,
    central_difference,
    direction,
    draw,
    draw_smooth,
    members,
    relu_margin,
    run_reference,
)
from rnncore import reference
from rnncore.reference import Array, Config, Gradients, Members, Saved, Step, Weights

I, H = 2, 5  # the alphabet of sizes

Options: TypeAlias = dict[str, Any]


def gated(cell: str) -> dict[str, Options]:
    """All four forms of GRU or MGU."""
    return {
        f"{cell}-{reset}-{update}": {
            "cell": cell,
            "reset_after": reset == "after",
            "update_gate": update,
        }
        for reset in ("after", "before")
        for update in ("keep", "write")
    }


#: Every cell with every option of its equations.
CELLS: dict[str, Options] = {
    "rnn-tanh": {"cell": "rnn", "nonlinearity": "tanh"},
    "rnn-relu": {"cell": "rnn", "nonlinearity": "relu"},
    "lstm": {"cell": "lstm"},
    **gated("gru"),
    **gated("mgu"),
}

#: One direction, or two with each merge.
DIRECTIONS: dict[str, Options] = {
    "forward": {},
    **{merge: {"bidirectional": True, "merge": merge} for merge in reference.MERGES},
}


def make_config(cell: str, direction: str = "forward", **options: Any) -> Config:
    """Combine a cell, its directions and other options, in that order."""
    sizes = {"input_size": I, "hidden_size": H}
    return Config(**(sizes | CELLS[cell] | DIRECTIONS[direction] | options))


def run_both(problem: Problem) -> tuple[Array, Members, Gradients]:
    y, state, tape = run_reference(problem)
    grads = reference.backward(problem.config, problem.params, tape, problem.dy, problem.dstate)
    return y, members(state), grads


def every_array(problem: Problem) -> dict[str, Array]:
    """All that forward and backward return, weight gradients apart, by name."""
    y, state, grads = run_both(problem)
    arrays = {"y": y, "x": grads.x}
    arrays |= {f"state{k}": s for k, s in enumerate(state)}
    arrays |= {f"dstate{k}": s for k, s in enumerate(members(grads.state))}
    arrays |= {f"{k}.{m}": s for k, v in grads.state_grads.items() for m, s in v.items()}
    return arrays


# ---------------------------------------------------------------------------------- conformance


def test_conformance_cases_are_all_there() -> None:
    for family, count in FAMILIES.items():
        assert len(case_ids(family)) == count


@pytest.mark.parametrize("family", ["proj", "onnx"])
def test_conformance_reader_refuses_other_families(family: str) -> None:
    with pytest.raises(ValueError, match=r"families: expected some of .*torch"):
        case_ids(family)
    with pytest.raises(ValueError, match=r"case_id: expected a family of .*torch"):
        load_case(f"{family}-0")


@pytest.mark.parametrize("case_id", case_ids())
def test_conformance(case_id: str) -> None:
    case = load_case(case_id)
    y, final, tape = reference.forward(case.config, case.params, case.x, case.state, case.lengths)
    grads = reference.backward(case.config, case.params, tape, case.dy, case.dfinal)
    pairs = {"y": (y, case.y), "dx": (grads.x, case.dx)}
    for k, name in enumerate(("h", "c")[: case.config.num_states]):
        pairs[f"{name}n"] = members(final)[k], members(case.final)[k]
        pairs[f"d{name}0"] = members(grads.state)[k], members(case.dstate)[k]
    pairs |= {name: (grads.params[name], expected) for name, expected in case.dparams.items()}
    for name, (actual, expected) in pairs.items():
        assert disagreement(actual, expected) <= FLOAT64_TOLERANCE, name
    absent = {"bias_hh_l0"} if case.family == "keras" else set()
    assert set(case.dparams) == set(grads.params) - absent


# ------------------------------------------------------------------ gradients against differences


def check_all_gradients(problem: Problem, rng: np.random.Generator) -> None:
    config = problem.config
    y, _, tape = run_reference(problem)
    assert np.all(np.isfinite(y))
    if config.nonlinearity == "relu":
        assert relu_margin(config, problem.params, tape) >= MARGIN
    grads = reference.backward(config, problem.params, tape, problem.dy, problem.dstate)
    states = dict(zip(("h0", "c0"), members(grads.state), strict=False))

    def loss(point: Mapping[str, Array]) -> float:
        moved = problem.at(point)
        return moved.loss(*run_reference(moved)[:2])

    assert_gradient(loss, problem.point(), {"x": grads.x, **states, **grads.params}, rng)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("num_layers", [1, 2], ids=["l1", "l2"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(
    cell: str,
    direction: str,
    num_layers: int,
    ragged: bool,
    masked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = 0.3 if masked else 0.0
    config = make_config(
        cell,
        direction,
        num_layers=num_layers,
        dropout=p if num_layers > 1 else 0.0,
        recurrent_dropout=p,
    )
    problem = draw_smooth(config, seed=1, ragged=ragged, masked=masked)
    rng = np.random.default_rng(2)
    check_all_gradients(problem, rng)
    check_state_grads(problem, rng, monkeypatch)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_without_bias(cell: str, num_layers: int) -> None:
    config = make_config(cell, "concat", num_layers=num_layers, bias=False)
    assert not any("bias" in name for name in config.parameter_shapes())
    check_all_gradients(draw_smooth(config, seed=3, ragged=True), np.random.default_rng(4))


def check_state_grads(
    problem: Problem, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Add small amounts to every state of every step, right where it is computed.

    The derivative of the loss by an amount added to h_t is the whole dL/dh_t. c_t is changed
    before h_t = o * tanh(c_t) is computed from it, and so the whole dL/dc_t is meant too.
    """
    config = problem.config
    _, _, tape = run_reference(problem)
    grads = reference.backward(config, problem.params, tape, problem.dy, problem.dstate)
    for member in ("h", "c")[: config.num_states]:
        whole = {name: grads.state_grads[name][member] for name in config.names()}
        nudges = {name: direction(g, rng) for name, g in whole.items()}
        exact = sum(float(np.vdot(nudges[name], whole[name])) for name in whole)

        def along(s: float, member: str = member, nudges: dict[str, Array] = nudges) -> float:
            with monkeypatch.context() as patch:
                pair = (nudged(problem, member, nudges, s), reference.CELLS[config.cell][1])
                patch.setitem(reference.CELLS, config.cell, pair)
                return problem.loss(*run_reference(problem)[:2])

        scale = float(np.sqrt(sum(np.vdot(v, v) for v in nudges.values())))
        assert_derivative(
            f"d{member}_t",
            exact / scale,
            central_difference(lambda s: along(s / scale)),  # noqa: B023
        )


def nudged(
    problem: Problem, member: str, nudges: dict[str, Array], s: float
) -> Callable[[Step, Weights, Config], tuple[Members, Saved]]:
    """Build a forward step that adds s * nudges to one member of the state it computes."""
    config, (T, B) = problem.config, problem.x.shape[:2]
    lengths = np.full(B, T) if problem.lengths is None else problem.lengths
    step_forward, _ = reference.CELLS[config.cell]

    def places() -> Iterator[tuple[str, int]]:
        """Steps in the order in which the stack takes them."""
        for name in config.names():
            steps = range(T)
            for t in reversed(steps) if name.endswith("_reverse") else steps:
                yield name, t

    place = places()

    def forward(step: Step, p: Weights, config: Config) -> tuple[Members, Saved]:
        name, t = next(place)
        nudge = s * nudges[name][t, t < lengths]
        state, saved = step_forward(step, p, config)
        if member == "h":
            return (state[0] + nudge, *state[1:]), saved
        c = state[1] + nudge
        return (saved["o"] * np.tanh(c), c), saved

    return forward


@pytest.mark.parametrize("cell", CELLS)
def test_missing_gradients_are_zeros(cell: str) -> None:
    problem = draw(make_config(cell, "concat", num_layers=2), np.random.default_rng(5))
    config, params = problem.config, problem.params
    _, _, tape = run_reference(problem)
    zeros = tuple(np.zeros_like(s) for s in members(problem.dstate))

    def grads(dy: Array | None, dstate: object) -> list[Array]:
        g = reference.backward(config, params, tape, dy, dstate)
        return [g.x, *members(g.state), *g.params.values()]

    def same(a: list[Array], b: list[Array]) -> bool:
        return all(map(np.array_equal, a, b))

    pack: Callable[..., object] = (lambda *s: s) if len(zeros) == 2 else (lambda s: s)
    assert same(grads(problem.dy, None), grads(problem.dy, pack(*zeros)))
    assert same(grads(None, problem.dstate), grads(np.zeros_like(problem.dy), problem.dstate))
    assert not any(map(np.any, grads(None, None)))
    if cell == "lstm":
        dh, dc = members(problem.dstate)
        assert same(grads(None, (dh, None)), grads(None, (dh, zeros[1])))
        assert same(grads(None, (None, dc)), grads(None, (zeros[0], dc)))


# ------------------------------------------------------------ identities that fix the other forms


@pytest.mark.parametrize("cell", ["gru", "mgu"])
def test_keep_is_write_with_the_complementary_gate(cell: str) -> None:
    """1 - sigmoid(a) = sigmoid(-a): negating z's weights swaps the two conventions.

    MGU resets with the same gate, so it is run at U_n = 0, where the reset has no effect.
    """
    keep = make_config(f"{cell}-before-keep")
    problem = draw(keep, np.random.default_rng(6))
    gate = slice(H, 2 * H) if cell == "gru" else slice(0, H)
    problem.params["weight_hh_l0"][-H:] *= cell == "gru"
    negated = {name: array.copy() for name, array in problem.params.items()}
    for array in negated.values():
        array[gate] *= -1
    write = replace(problem, config=replace(keep, update_gate="write"), params=negated)
    a, b = every_array(problem), every_array(write)
    for name in a:
        assert disagreement(a[name], b[name]) <= 1e-14, name


@pytest.mark.parametrize("update", ["keep", "write"])
@pytest.mark.parametrize("reset", ["after", "before"])
def test_mgu_is_gru_with_one_gate(reset: str, update: str) -> None:
    mgu = draw(make_config(f"mgu-{reset}-{update}", "concat"), np.random.default_rng(7))
    tied = {name: np.concatenate([p[:H], p]) for name, p in mgu.params.items()}  # f, n -> f, f, n
    gru = replace(mgu, config=replace(mgu.config, cell="gru"), params=tied)
    a, b = every_array(mgu), every_array(gru)
    for name in a:
        assert disagreement(a[name], b[name]) <= 1e-14, name
    d_mgu, d_gru = run_both(mgu)[2].params, run_both(gru)[2].params
    for name, d in d_gru.items():
        assert (
            disagreement(d_mgu[name], np.concatenate([d[:H] + d[H : 2 * H], d[2 * H :]])) <= 1e-14
        )


@pytest.mark.parametrize("cell", ["gru", "mgu"])
def test_reset_after_and_before_differ_only_by_the_reset(cell: str) -> None:
    """With a wide open reset gate the two candidates are one, and both biases just add."""
    after = draw(make_config(f"{cell}-after-write"), np.random.default_rng(8))
    for name in ("weight_ih_l0", "weight_hh_l0"):
        after.params[name][:H] = 0.0
    after.params["bias_ih_l0"][:H] = 50.0  # sigmoid(50) rounds to 1
    before = replace(after, config=replace(after.config, reset_after=False))
    a, b = every_array(after), every_array(before)
    for name in a:
        assert disagreement(a[name], b[name]) <= 1e-14, name


@pytest.mark.parametrize("cell", CELLS)
def test_reset_before_biases_have_equal_gradients(cell: str) -> None:
    """b_hn stands apart from b_in only in the reset-after candidate."""
    grads = run_both(draw(make_config(cell), np.random.default_rng(9)))[2].params
    equal = np.array_equal(grads["bias_ih_l0"], grads["bias_hh_l0"])
    assert equal == ("after" not in cell)


@pytest.mark.parametrize("direction", ["concat", "sum", "mean", "mul"])
@pytest.mark.parametrize("cell", CELLS)
def test_directions_are_two_runs_merged(cell: str, direction: str) -> None:
    """Row by row: reverse is the forward run over the row's own steps in reverse order."""
    config = make_config(cell, direction)
    problem = draw(config, np.random.default_rng(10), T=6, B=5, ragged=True)
    y, final, _ = run_both(problem)
    one = make_config(cell)
    params = [{n: problem.params[n + s] for n in one.parameter_shapes()} for s in ("", "_reverse")]
    assert problem.lengths is not None
    for b, length in enumerate(problem.lengths):
        runs = []
        for d, flip in enumerate((1, -1)):
            x = problem.x[:length, [b]][::flip]
            initial = [s[[d]][:, [b]] for s in members(problem.state)]
            state = (initial[0], initial[1]) if cell == "lstm" else initial[0]
            y_d, final_d, _ = reference.forward(one, params[d], x, state)
            for s, s_d in zip(final, members(final_d), strict=True):
                assert np.allclose(s[d, b], s_d[0, 0], rtol=0, atol=1e-14)
            runs.append(y_d[::flip, 0])
        merged = {
            "concat": np.concatenate(runs, axis=1),
            "sum": runs[0] + runs[1],
            "mean": (runs[0] + runs[1]) / 2,
            "mul": runs[0] * runs[1],
        }
        assert disagreement(y[:length, b], merged[direction]) <= 1e-14
        assert not np.any(y[length:, b])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("merge", reference.MERGES)
def test_merge_of_one_direction_is_that_direction(cell: str, merge: str) -> None:
    problem = draw(make_config(cell, num_layers=2), np.random.default_rng(11))
    other = replace(problem, config=replace(problem.config, merge=merge))
    for a, b in zip(every_array(problem).values(), every_array(other).values(), strict=True):
        assert np.array_equal(a, b)


# --------------------------------------------------------------------------------------- dropout

MASK64 = 2**64 - 1


def integer_bits(*values: int) -> int:
    """Hash in Python's own integers: seed first, then kind, call, layer, ..., feature."""
    s, *rest = values
    for v in rest:
        z = (s + 0x9E3779B97F4A7C15 * (v + 1)) & MASK64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        s = z ^ (z >> 31)
    return s


#: (kind, seed, call, layer, direction, t), bits of row 1, feature 2: a change of these numbers
#: would make every stored seed mean other masks.
GOLDEN_BITS = {
    (0, 0, 0, 0, 0, 0): 0x75267FBAFFDA9474,
    (0, 7, 0, 0, 0, 3): 0x897A39F434AC3DEF,
    (1, 7, 0, 0, 1, MASK64): 0x124D149CDE98EB86,
    (1, MASK64, 123456789, 2, 1, MASK64): 0xAB3DD6D34C20D8B5,
    (0, 81985529216486895, MASK64, 5, 0, 99): 0x3CED561BA9C5064C,
}


@pytest.mark.parametrize(("place", "bits"), GOLDEN_BITS.items())
def test_mask_hash_is_fixed(place: tuple[int, int, int, int, int, int], bits: int) -> None:
    kind, seed, call, layer, direction, t = place
    assert integer_bits(seed, kind, call, layer, direction, t, 1, 2) == bits
    for p in (0.0, 0.1, 0.5, 0.9):
        mask = reference.dropout_mask(*place, 3, 4, p)
        for row, feature in itertools.product(range(3), range(4)):
            u = (integer_bits(seed, kind, call, layer, direction, t, row, feature) >> 11) / 2**53
            assert mask[row, feature] == (1 / (1 - p) if u >= p else 0)
    last = (*place[:5], None)
    assert np.array_equal(
        reference.dropout_mask(*last, 3, 4, 0.5),
        reference.dropout_mask(*place[:5], MASK64, 3, 4, 0.5),
    )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mask_keep_rate(p: float) -> None:
    rows, features = 400, 250
    mask = reference.dropout_mask(0, 12, 3, 0, 0, 5, rows, features, p)
    kept = mask > 0
    assert set(np.unique(mask)) == {0.0, 1 / (1 - p)}
    for counts, n in (
        (np.array([kept.sum()]), rows * features),
        (kept.sum(axis=0), rows),
        (kept.sum(axis=1), features),
    ):
        deviation = np.abs(counts - n * (1 - p)) / np.sqrt(n * p * (1 - p))
        assert deviation.max() < 5


def test_mask_depends_on_its_place_alone() -> None:
    base = {"kind": 0, "seed": 1, "call": 2, "layer": 3, "direction": 0, "t": 4}
    mask = reference.dropout_mask(**base, rows=6, features=40, p=0.5)
    assert np.array_equal(mask, reference.dropout_mask(**base, rows=6, features=40, p=0.5))
    part = reference.dropout_mask(**base, rows=2, features=7, p=0.5)
    assert np.array_equal(part, mask[:2, :7])
    assert not np.array_equal(mask[0], mask[1])
    for name, value in base.items():
        moved = base | {name: value + 1}
        assert not np.array_equal(
            mask, reference.dropout_mask(**moved, rows=6, features=40, p=0.5)
        ), name


def test_mask_keeps_an_element_at_exactly_p() -> None:
    u = (integer_bits(3, 0, 0, 0, 0, 0, 0, 0) >> 11) / 2**53
    assert reference.dropout_mask(0, 3, 0, 0, 0, 0, 1, 1, u) == 1 / (1 - u)
    assert reference.dropout_mask(0, 3, 0, 0, 0, 0, 1, 1, np.nextafter(u, 1)) == 0


def test_mask_of_zero_probability_and_zero_size() -> None:
    assert np.array_equal(reference.dropout_mask(1, 9, 0, 0, 1, None, 3, 2, 0.0), np.ones((3, 2)))
    assert reference.dropout_mask(1, 9, 0, 0, 1, None, 0, 2, 0.5).shape == (0, 2)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0, float("nan")])
def test_mask_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match=r"p: expected a probability in \[0, 1\)"):
        reference.dropout_mask(0, 0, 0, 0, 0, 0, 1, 1, p)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_mask_refuses_what_is_no_64_bit_integer(seed: int) -> None:
    with pytest.raises(ValueError, match=r"expected integers in \[0, 2\*\*64\)"):
        reference.dropout_mask(0, seed, 0, 0, 0, 0, 1, 1, 0.5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_acts_on_merged_outputs_between_layers(cell: str, direction: str) -> None:
    """Two layers with dropout are two stacks of one layer with a mask in between."""
    config = make_config(cell, direction, num_layers=2, dropout=0.4)
    problem = draw(config, np.random.default_rng(12), masked=True)
    assert problem.masks is not None
    T, B, M = *problem.x.shape[:2], config.output_size
    x: Array = problem.x
    for layer in range(2):
        one = make_config(cell, direction, input_size=x.shape[2])
        D = one.num_directions
        names = {n: n.replace("l0", f"l{layer}") for n in one.parameter_shapes()}
        h, *c = (s[layer * D : (layer + 1) * D] for s in members(problem.state))
        x, _, _ = reference.forward(
            one, {n: problem.params[old] for n, old in names.items()}, x, (h, *c) if c else h
        )
        if layer == 0:
            seed, call = problem.masks
            masks = [reference.dropout_mask(0, seed, call, 0, 0, t, B, M, 0.4) for t in range(T)]
            assert np.any(np.array(masks) == 0)
            x = x * np.array(masks)
    assert np.array_equal(run_reference(problem)[0], x)


@pytest.mark.parametrize("direction", ["forward", "concat"])
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_dropout_scales_columns_of_u(cell: str, direction: str) -> None:
    """U (m*h') = (U diag(m)) h': each row alone, with its own masked weights and no dropout."""
    config = make_config(cell, direction, num_layers=2, recurrent_dropout=0.4)
    problem = draw(config, np.random.default_rng(13), masked=True)
    y, final, _ = run_reference(problem)
    assert problem.masks is not None
    B = problem.x.shape[1]
    for b in range(B):
        params = dict(problem.params)
        for k, name in enumerate(config.names()):
            layer, d = divmod(k, config.num_directions)
            m = reference.dropout_mask(1, *problem.masks, layer, d, None, B, H, 0.4)[b]
            params[f"weight_hh_{name}"] = params[f"weight_hh_{name}"] * m
        h, *c = (s[:, [b]] for s in members(problem.state))
        y_b, final_b, _ = reference.forward(config, params, problem.x[:, [b]], (h, *c) if c else h)
        assert disagreement(y[:, b], y_b[:, 0]) <= 1e-14
        for s, s_b in zip(members(final), members(final_b), strict=True):
            assert disagreement(s[:, b], s_b[:, 0]) <= 1e-14


# ------------------------------------------------------------------------- rows keep to themselves


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_padding_is_never_read(cell: str, direction: str) -> None:
    """NaN beyond the lengths and zeros there give the same bits, weight gradients included."""
    config = make_config(cell, direction, num_layers=2, dropout=0.2, recurrent_dropout=0.2)
    rng = np.random.default_rng(14)
    nan = draw(config, rng, T=6, B=5, ragged=True, masked=True)
    assert np.isnan(nan.x).any()
    assert np.isnan(nan.dy).any()
    zero = replace(nan, x=np.nan_to_num(nan.x, nan=0.0), dy=np.nan_to_num(nan.dy, nan=0.0))
    a = every_array(nan) | run_both(nan)[2].params
    b = every_array(zero) | run_both(zero)[2].params
    assert nan.lengths is not None
    padding = np.arange(6)[:, None] >= nan.lengths
    for name, array in a.items():
        assert np.all(np.isfinite(array)), name
        assert np.array_equal(array, b[name]), name
        if array.shape[:2] == padding.shape:
            assert not np.any(array[padding]), name
    shown = reference.gates(config, run_reference(nan)[2])
    for values in shown.values():
        for gate in values.values():
            assert not np.any(gate[padding])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_length_zero_passes_the_state_through(cell: str, direction: str) -> None:
    config = make_config(cell, direction)
    problem = draw(config, np.random.default_rng(15), ragged=True)
    assert problem.lengths is not None
    (b,) = np.flatnonzero(problem.lengths == 0)[:1]
    y, final, grads = run_both(problem)
    assert not np.any(y[:, b])
    assert not np.any(grads.x[:, b])
    for after, before in zip(final, members(problem.state), strict=True):
        assert np.array_equal(after[:, b], before[:, b])
    for before, after in zip(members(grads.state), members(problem.dstate), strict=True):
        assert np.array_equal(before[:, b], after[:, b])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_bad_number_stays_in_its_row(cell: str, direction: str, value: float) -> None:
    config = make_config(cell, direction, num_layers=2, dropout=0.2, recurrent_dropout=0.2)
    clean = draw(config, np.random.default_rng(16), T=5, B=4, masked=True)
    x = clean.x.copy()
    x[2, 1] = value
    a, b = every_array(clean), every_array(replace(clean, x=x))
    others = [0, 2, 3]
    for name in a:
        assert np.array_equal(a[name][:, others], b[name][:, others]), name
    if np.isnan(value):
        assert np.all(np.isnan(b["y"][2, 1]))


@pytest.mark.parametrize("cell", CELLS)
def test_nan_enters_at_its_own_step(cell: str) -> None:
    """Forward direction: from that step on. Reverse direction: at that step and earlier."""
    clean = draw(make_config(cell, "concat"), np.random.default_rng(17), T=5, B=4)
    x = clean.x.copy()
    x[2, 1] = np.nan
    y, y_nan = run_both(clean)[0], run_both(replace(clean, x=x))[0]
    assert np.array_equal(y_nan[:2, 1, :H], y[:2, 1, :H])
    assert np.all(np.isnan(y_nan[2:, 1, :H]))
    assert np.array_equal(y_nan[3:, 1, H:], y[3:, 1, H:])
    assert np.all(np.isnan(y_nan[:3, 1, H:]))


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_empty(cell: str, direction: str, T: int, B: int) -> None:
    config = make_config(cell, direction, num_layers=2, dropout=0.5, recurrent_dropout=0.5)
    problem = draw(config, np.random.default_rng(18), T=T, B=B, masked=True)
    for lengths in (None, np.zeros(B, dtype=np.int64)):
        y, final, grads = run_both(replace(problem, lengths=lengths))
        assert y.shape == (T, B, config.output_size)
        assert grads.x.shape == (T, B, I)
        for after, before in zip(final, members(problem.state), strict=True):
            assert np.array_equal(after, before)
        for before, after in zip(members(grads.state), members(problem.dstate), strict=True):
            assert np.array_equal(before, after)
        for name, shape in config.parameter_shapes().items():
            assert np.array_equal(grads.params[name], np.zeros(shape))
        shown = reference.gates(config, run_reference(problem)[2])
        for values in (*shown.values(), *grads.state_grads.values()):
            assert all(array.shape == (T, B, H) for array in values.values())


# ----------------------------------------------------------------------- gates, tapes, arguments


@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_shown_by_name(cell: str) -> None:
    config = make_config(cell, "sum", num_layers=2)
    problem = draw(config, np.random.default_rng(19))
    y, _, tape = run_reference(problem)
    shown = reference.gates(config, tape)
    assert list(shown) == ["l0", "l0_reverse", "l1", "l1_reverse"]
    names = {"rnn": "h", "lstm": "ifgo", "gru": "rzn", "mgu": "fn"}[config.cell]
    assert all(list(values) == list(names) for values in shown.values())
    for values in shown.values():
        for name, gate in values.items():
            low = 0 if name in "ifrzo" else (0 if "relu" in cell else -1)
            high = np.inf if "relu" in cell else 1
            assert np.all((gate >= low) & (gate <= high))
    if config.cell == "rnn":
        assert np.array_equal(shown["l1"]["h"] + shown["l1_reverse"]["h"], y)
    shown["l0"][names[0]][:] = 7.0  # a copy: the tape is not changed
    assert not np.any(reference.gates(config, tape)["l0"][names[0]] == 7.0)


def test_tape_is_kept_apart_from_the_arguments() -> None:
    problem = draw(make_config("gru-after-keep", "mul", num_layers=2), np.random.default_rng(20))
    y, _, tape = run_reference(problem)
    before = reference.backward(problem.config, problem.params, tape, problem.dy, problem.dstate)
    problem.x[:] = y[:] = 9.0
    for s in members(problem.state):
        s[:] = 9.0
    after = reference.backward(problem.config, problem.params, tape, problem.dy, problem.dstate)
    assert np.array_equal(before.x, after.x)
    for name, d in before.params.items():
        assert np.array_equal(d, after.params[name])


def test_arguments_are_not_changed() -> None:
    problem = draw(make_config("lstm", "concat", num_layers=2), np.random.default_rng(21))
    arrays = [*problem.point().values(), problem.dy, *members(problem.dstate)]
    copies = [array.copy() for array in arrays]
    run_both(problem)
    assert all(map(np.array_equal, arrays, copies))


@pytest.mark.parametrize("layer", [rc.RNN, rc.LSTM, rc.GRU, rc.MGU])
def test_config_has_the_defaults_of_the_layers(layer: Any) -> None:
    config = Config(layer.__name__.lower(), 1, 1)
    options = inspect.signature(layer).parameters
    names = [field.name for field in fields(Config) if field.name in options]
    assert len(names) >= 7
    for name in names[2:]:
        assert getattr(config, name) == options[name].default, name


def test_config_of_a_cell_keeps_what_is_given() -> None:
    config = Config("mgu", 1, 1, update_gate="keep")
    assert (config.reset_after, config.update_gate) == (False, "keep")
    assert replace(config, num_layers=2) == Config("mgu", 1, 1, 2, update_gate="keep")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "qrnn"}, "cell: expected one of 'rnn', 'lstm', 'gru', 'mgu', got 'qrnn'"),
        ({"merge": "max"}, "merge: expected one of"),
        ({"nonlinearity": "sin"}, "nonlinearity: expected one of 'tanh', 'relu', got 'sin'"),
        ({"cell": "lstm", "nonlinearity": "relu"}, "nonlinearity: expected 'tanh' for lstm"),
        ({"update_gate": "both"}, "update_gate: expected one of 'keep', 'write', got 'both'"),
        ({"cell": "lstm", "update_gate": "write"}, "reset_after, update_gate: lstm has no such"),
        ({"cell": "rnn", "reset_after": False}, "reset_after, update_gate: rnn has no such gate"),
        ({"input_size": 0}, "input_size: expected at least 1, got 0"),
        ({"hidden_size": 0}, "hidden_size: expected at least 1, got 0"),
        ({"num_layers": 0}, "num_layers: expected at least 1, got 0"),
        ({"dropout": 0.5}, "dropout: expected 0 with one layer"),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout: expected a probability"),
    ],
)
def test_config_refuses(options: Options, message: str) -> None:
    base: Options = {"cell": "gru", "input_size": I, "hidden_size": H}
    with pytest.raises(ValueError, match=f"^{message}"):
        Config(**(base | options))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": np.zeros((4, 3, 7))}, ValueError, r"x: expected shape \(T, B, 2\), got \(4, 3, 7\)"),
        ({"x": np.zeros((4, 2))}, ValueError, r"x: expected shape \(T, B, 2\), got \(4, 2\)"),
        (
            {"x": np.zeros((4, 3, 2), complex)},
            TypeError,
            "x: expected real numbers, got complex128",
        ),
        (
            {"state": np.zeros((1, 3, 5))},
            TypeError,
            r"state: expected a pair \(h, c\), got ndarray",
        ),
        (
            {"state": (np.zeros((1, 3, 5)), np.zeros((1, 2, 5)))},
            ValueError,
            r"state\[1\]: expected shape \(1, 3, 5\), got \(1, 2, 5\)",
        ),
        ({"lengths": [1, 2]}, ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
        ({"lengths": [1, 2, 5]}, ValueError, "lengths: expected values from 0 to T = 4, got"),
        ({"lengths": [1, 2, -1]}, ValueError, "lengths: expected values from 0 to T = 4, got"),
        ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "lengths: expected integers, got float64"),
        ({"params": {}}, ValueError, r"params: expected names \['bias_hh_l0', .*, got \[\]"),
    ],
)
def test_forward_refuses(changes: Options, error: type, message: str) -> None:
    config = make_config("lstm")
    params = {name: np.zeros(shape) for name, shape in config.parameter_shapes().items()}
    arguments: Options = {"params": params, "x": np.zeros((4, 3, I))}
    with pytest.raises(error, match=f"^{message}"):
        reference.forward(config, **(arguments | changes))


def test_forward_names_the_parameter_that_does_not_fit() -> None:
    config = make_config("gru-after-keep")
    params = {name: np.zeros(shape) for name, shape in config.parameter_shapes().items()}
    params["weight_hh_l0"] = np.zeros((5, 5))
    with pytest.raises(ValueError, match=r"^weight_hh_l0: expected shape \(15, 5\), got \(5, 5\)"):
        reference.forward(config, params, np.zeros((4, 3, I)))


def test_backward_refuses() -> None:
    problem = draw(make_config("rnn-tanh"), np.random.default_rng(22), B=4)
    config, params = problem.config, problem.params
    _, _, tape = run_reference(problem)
    with pytest.raises(ValueError, match=r"^dy: expected shape \(3, 4, 5\), got \(4, 3, 5\)"):
        reference.backward(config, params, tape, np.zeros((4, 3, 5)))
    with pytest.raises(ValueError, match=r"^dstate: expected shape \(1, 4, 5\), got \(4, 5\)"):
        reference.backward(config, params, tape, dstate=np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"^tape: expected one of Config"):
        reference.backward(replace(config, nonlinearity="relu"), params, tape)
