"""What the suites share that hold the compiled layers to the reference and to themselves.

A `Problem` (see gradcheck.py) says what is computed. `run_native` and `expected` compute it, with a
layer and with the reference, and return every array there is under the same names, so that
suites compare two dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import rnncore as rc
from conformance_cases import disagreement
from gradcheck import Problem, draw, members, run_reference
from rnncore import reference
from rnncore.reference import Config, State, Weights

Options: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

DTYPES = ("float32", "float64")

#: Native against reference, as `disagreement` measures it: what some hundred roundings leave.
#: float64 rounds to 1e-16, float32 to 6e-8.
TOLERANCES = {"float64": 1e-12, "float32": 2e-5}

#: Relative distance from zero at which rounding cannot carry a pre-activation of relu across.
KINKS = {"float64": 1e-14, "float32": 1e-6}

LAYERS: dict[str, Any] = {"rnn": rc.RNN, "lstm": rc.LSTM, "gru": rc.GRU, "mgu": rc.MGU}

#: Options of the equations, by cell; a layer does not know those of another.
OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "rnn": ("nonlinearity",),
    "lstm": (),
    "gru": ("reset_after", "update_gate"),
    "mgu": ("reset_after", "update_gate"),
}


def gated(cell: str) -> dict[str, Options]:
    """All four forms of GRU or MGU."""
    return {
        f"{cell}-{'after' if after else 'before'}-{update}": {
            "cell": cell,
            "reset_after": after,
            "update_gate": update,
        }
        for after in (True, False)
        for update in reference.UPDATE_GATES
    }


#: Every cell with every option of its equations.
FORMS: dict[str, Options] = {
    **{f"rnn-{n}": {"cell": "rnn", "nonlinearity": n} for n in reference.NONLINEARITIES},
    "lstm": {"cell": "lstm"},
    **gated("gru"),
    **gated("mgu"),
}

#: One direction, or two with each merge.
DIRECTIONS: dict[str, Options] = {
    "forward": {},
    **{merge: {"bidirectional": True, "merge": merge} for merge in reference.MERGES},
}


def make_config(form: str, direction: str = "forward", **options: Any) -> Config:
    """Combine a form, its directions and other options, in that order."""
    sizes = {"input_size": 2, "hidden_size": 5}
    return Config(**(sizes | FORMS[form] | DIRECTIONS[direction] | options))


def make_layer(
    config: Config,
    params: Mapping[str, npt.ArrayLike],
    *,
    dtype: str = "float64",
    seed: int = 0,
    batch_first: bool = False,
) -> Any:
    """Build the layer that a configuration of the reference describes, with these parameters."""
    common = ("num_layers", "bias", "bidirectional", "merge", "dropout", "recurrent_dropout")
    layer = LAYERS[config.cell](
        config.input_size,
        config.hidden_size,
        **{name: getattr(config, name) for name in (*common, *OWN_OPTIONS[config.cell])},
        dtype=dtype,
        seed=seed,
        batch_first=batch_first,
        init="pytorch",
    )
    layer.load_params(params)
    return layer


def draw_problem(
    config: Config,
    seed: int,
    *,
    dtype: str = "float64",
    lengths: npt.NDArray[np.int64] | None = None,
    change: Callable[[Problem], Problem] = lambda problem: problem,
    **sizes: Any,
) -> Problem:
    """Draw a problem whose numbers `dtype` holds and whose rounding errors stay small.

    Weights shrink with the number of terms of a sum: with large ones every step would multiply
    what an earlier one had rounded off, and no two programs would agree for long. For the same
    reason no pre-activation of relu is so near to 0 that rounding could decide its side. `change`
    may alter what was drawn before that is asked.
    """
    for attempt in range(100):
        problem = draw(config, np.random.default_rng([seed, attempt]), **sizes)
        problem = rounded(replace(problem, params=shrunk(config, problem.params)), dtype)
        problem = change(problem if lengths is None else shortened(problem, lengths))
        if is_clear_of_kinks(problem, dtype):
            return problem
    raise AssertionError(f"no problem with relu away from zero in 100 draws: {config}")


def shrunk(config: Config, params: dict[str, reference.Array]) -> dict[str, reference.Array]:
    """Divide weights by the deviation of a sum over their columns, so that sums stay near 1.

    A mask of probability p multiplies the variance of every term by 1 / (1 - p).
    """
    kept = {"weight_ih": 1.0 - config.dropout, "weight_hh": 1.0 - config.recurrent_dropout}
    return {
        name: p * np.sqrt(kept[name[:9]] / p.shape[1]) if p.ndim == 2 else p
        for name, p in params.items()
    }


def shortened(problem: Problem, lengths: npt.NDArray[np.int64]) -> Problem:
    """Give the rows of a problem these lengths, and NaN beyond them."""
    problem = replace(problem, lengths=lengths, x=problem.x.copy(), dy=problem.dy.copy())
    problem.x[padding(problem)] = problem.dy[padding(problem)] = np.nan
    return problem


def is_clear_of_kinks(problem: Problem, dtype: str) -> bool:
    """Whether rounding cannot change the side of 0 on which a pre-activation of relu lies.

    Distances from 0 are relative to the sum of the magnitudes of all terms, as rounding errors are.
    A sum of zeros is no danger: it is 0 however it is computed.
    """
    config = problem.config
    if config.nonlinearity != "relu":
        return True
    _, _, tape = run_reference(problem)
    runs = [run for layer in tape.layers for run in layer.directions]
    for p, run in zip(reference.all_weights(config, problem.params), runs, strict=True):
        magnitudes = Weights(*map(np.abs, p))
        for step in map(run.step, run.order()):
            v = step.m * step.state[0]
            a = np.abs(reference.affine(step.x, v, p))
            terms = reference.affine(np.abs(step.x), np.abs(v), magnitudes)
            if np.any(a < KINKS[dtype] * terms):
                return False
    return True


def rounded(problem: Problem, dtype: str) -> Problem:
    """Round every number of a problem to what `dtype` holds; the reference computes in float64."""

    def cast(array: reference.Array) -> reference.Array:
        return array.astype(dtype).astype(np.float64)

    def cast_state(state: State) -> State:
        return (cast(state[0]), cast(state[1])) if isinstance(state, tuple) else cast(state)

    return replace(
        problem,
        params={name: cast(p) for name, p in problem.params.items()},
        x=cast(problem.x),
        state=cast_state(problem.state),
        dy=cast(problem.dy),
        dstate=cast_state(problem.dstate),
    )


def layer_of(problem: Problem, *, dtype: str = "float64", batch_first: bool = False) -> Any:
    """Build the layer of a problem, ready to draw its dropout masks."""
    seed, call = problem.masks or (0, 0)
    layer = make_layer(
        problem.config, problem.params, dtype=dtype, seed=seed, batch_first=batch_first
    )
    layer.call_number = call
    return layer


def run_native(
    problem: Problem, *, dtype: str = "float64", checkpoint: int | None = None
) -> Arrays:
    """Return everything that forward, gates and backward of a layer give, by name."""
    layer = layer_of(problem, dtype=dtype)
    y, final, tape = layer.forward(
        problem.x,
        problem.state,
        lengths=problem.lengths,
        dropout=problem.masks is not None,
        checkpoint=checkpoint,
    )
    gates = tape.gates()
    g = layer.backward(tape, problem.dy, problem.dstate, return_state_grads=True)
    return by_name(y, final, gates, g)


def expected(problem: Problem) -> Arrays:
    """Return what the reference gives, under the names of `run_native`."""
    config, params = problem.config, problem.params
    y, final, tape = reference.forward(
        config, params, problem.x, problem.state, problem.lengths, problem.masks
    )
    g = reference.backward(config, params, tape, problem.dy, problem.dstate)
    return by_name(y, final, reference.gates(config, tape), g)


def by_name(y: npt.NDArray[Any], final: Any, gates: Any, g: Any) -> Arrays:
    """Flatten results: y, h, c, dx, dh0, dc0, gates, gradients of parameters and of all states."""
    arrays = {"y": y, "dx": g.x}
    arrays |= dict(zip(("h", "c"), members(final), strict=False))
    arrays |= dict(zip(("dh0", "dc0"), members(g.state), strict=False))
    arrays |= {f"{part}.{gate}": a for part, of in gates.items() for gate, a in of.items()}
    arrays |= {f"d_{name}": a for name, a in g.params.items()}
    steps = g.state_grads or {}
    arrays |= {f"{part}.d{s}": a for part, of in steps.items() for s, a in of.items()}
    return arrays


def is_sequence(name: str) -> bool:
    """Whether an array of `by_name` is (T, B, ·): y, dx, gates and gradients of all states."""
    return name in ("y", "dx") or "." in name


def assert_close(actual: Arrays, expected: Arrays, tolerance: float) -> None:
    """Assert the same names, in the same order, and values that agree to the tolerance."""
    assert list(actual) == list(expected)
    for name, array in expected.items():
        error = disagreement(actual[name], array)
        assert error <= tolerance, f"{name} {array.shape}: off by {error:.2e}, not {tolerance:.0e}"


def assert_same_bits(actual: Arrays, expected: Arrays) -> None:
    """Assert the same names, shapes, types and bits: -0 is not 0 here."""
    assert list(actual) == list(expected)
    for name, array in expected.items():
        other = actual[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape), name
        if other.tobytes() != array.tobytes():
            differ = np.argwhere(bits(other) != bits(array))
            first = tuple(differ[0].tolist())
            raise AssertionError(
                f"{name} {array.shape}: {len(differ)} values differ, the first at {first}: "
                f"{other[first]!r}, expected {array[first]!r}"
            )


def bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Show floating-point numbers as the integers of their bits."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def padding(problem: Problem) -> npt.NDArray[np.bool_]:
    """(T, B): whether a place is beyond its row's length."""
    T, B = problem.x.shape[:2]
    lengths = np.full(B, T) if problem.lengths is None else problem.lengths
    return np.arange(T)[:, None] >= lengths
