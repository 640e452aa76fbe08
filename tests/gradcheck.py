"""Directional gradient checks, and the random networks that they are run on.

A gradient g of a loss is checked along a direction v, half of it random: <v, g> against the
central difference of the loss along v. One number tests every element of g at once, at the price
of four evaluations of the loss. With the loss <w, f(.)> for fixed random w, g is the
vector-Jacobian product vjp(w) of f.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rnncore import reference
from rnncore.reference import Array, Config, State, Tape

#: Relative, between <v, g> and the difference.
TOLERANCE = 1e-7

#: The difference is of fourth order, so its truncation is near STEP^4 = 1e-16, and its rounding
#: near 1e-16 / STEP = 1e-12: both are far below TOLERANCE.
STEP = 1e-4

#: Pre-activations of relu stay this far from its kink. The difference moves weights by 2 * STEP
#: along a unit vector, and these small networks amplify that less than tenfold.
MARGIN = 20 * STEP


def central_difference(f: Callable[[float], float]) -> float:
    """Derivative of f at 0, by the five-point rule."""
    near = f(STEP) - f(-STEP)
    far = f(2 * STEP) - f(-2 * STEP)
    return (8 * near - far) / (12 * STEP)


def assert_derivative(label: str, actual: float, expected: float) -> None:
    """Compare relatively; a zero is refused, since equal zeros would show nothing."""
    assert actual != 0, f"{label}: the derivative is zero, so this checks nothing"
    error = abs(actual - expected) / max(abs(actual), abs(expected))
    assert error <= TOLERANCE, f"{label}: <v, g> = {actual!r}, difference {expected!r}, {error:.1e}"


def assert_gradient(
    loss: Callable[[Mapping[str, Array]], float],
    point: Mapping[str, Array],
    gradient: Mapping[str, npt.ArrayLike],
    rng: np.random.Generator,
) -> None:
    """Check the gradient by each named array of the point, one after the other."""
    assert set(gradient) == set(point)
    for name, value in point.items():
        g = np.asarray(gradient[name], dtype=np.float64)
        assert g.shape == value.shape, f"{name}: gradient of shape {g.shape}, not {value.shape}"
        v = direction(g, rng)

        def along(s: float, name: str = name, value: Array = value, v: Array = v) -> float:
            return loss({**point, name: value + s * v})

        assert_derivative(name, float(np.vdot(v, g)), central_difference(along))


def direction(g: Array, rng: np.random.Generator) -> Array:
    """Draw a unit vector that leans towards g.

    A direction that happens to be nearly orthogonal to g would turn the rounding of the loss
    into a large relative error. Half of this one is random all the same.
    """
    v = rng.standard_normal(g.shape)
    v /= np.linalg.norm(v)
    length = np.linalg.norm(g)
    if length > 0:
        v += g / length
    return v / np.linalg.norm(v)


@dataclass(frozen=True)
class Problem:
    """A random network with its data and the weights dy, dstate of a loss.

    loss = sum over valid steps of y * dy  +  sum of final states * dstate

    In ragged problems one row is full, one has length 0, and both x and dy hold NaN beyond the
    lengths: if either were read there, the loss or a gradient would be NaN.
    """

    config: Config
    params: dict[str, Array]
    x: Array  # (T, B, I)
    state: State  # (L*D, B, H)
    lengths: npt.NDArray[np.int64] | None  # (B,)
    masks: tuple[int, int] | None
    dy: Array  # (T, B, M)
    dstate: State

    def point(self) -> dict[str, Array]:
        """Everything that the loss is differentiated by: x, h0 (c0), parameters."""
        states = dict(zip(("h0", "c0"), members(self.state), strict=False))
        return {"x": self.x, **states, **self.params}

    def at(self, point: Mapping[str, Array]) -> Problem:
        """Return the same problem at another point."""
        state = (point["h0"], point["c0"]) if "c0" in point else point["h0"]
        params = {name: point[name] for name in self.params}
        return replace(self, x=point["x"], state=state, params=params)

    def loss(self, y: Array, final: State) -> float:
        """Weigh what a forward pass returned."""
        T, B = self.x.shape[:2]
        lengths = np.full(B, T) if self.lengths is None else self.lengths
        valid = np.arange(T)[:, None] < lengths  # (T, B)
        total = np.vdot(y[valid], self.dy[valid])
        for s, ds in zip(members(final), members(self.dstate), strict=True):
            total += np.vdot(s, ds)
        return float(total)


def members(state: State) -> tuple[Array, ...]:
    """(h,), or (h, c)."""
    return state if isinstance(state, tuple) else (state,)


def draw(
    config: Config,
    rng: np.random.Generator,
    *,
    T: int = 3,
    B: int = 3,
    ragged: bool = False,
    masked: bool = False,
) -> Problem:
    """Draw a random problem."""
    normal = rng.standard_normal
    shape = (len(config.names()), B, config.hidden_size)

    def state() -> State:
        h = normal(shape)
        return (h, normal(shape)) if config.cell == "lstm" else h

    x, dy = normal((T, B, config.input_size)), normal((T, B, config.output_size))
    lengths = None
    if ragged:
        between = rng.integers(0, T + 1, size=max(B - 2, 0))
        lengths = rng.permutation(np.array([T, 0, *between][:B], dtype=np.int64))
        padding = np.arange(T)[:, None] >= lengths
        x[padding] = dy[padding] = np.nan
    params = {name: 0.5 * normal(s) for name, s in config.parameter_shapes().items()}
    masks = (int(rng.integers(2**63)), int(rng.integers(1000))) if masked else None
    return Problem(config, params, x, state(), lengths, masks, dy, state())


def draw_smooth(
    config: Config, seed: int, *, ragged: bool = False, masked: bool = False
) -> Problem:
    """Draw a problem at which the loss is smooth and depends on everything.

    Every cell but the relu one is smooth everywhere. With relu, draws are repeated until no
    pre-activation is near zero and no gradient is zero (a layer may be dead).
    """
    for attempt in range(200):
        problem = draw(config, np.random.default_rng([seed, attempt]), ragged=ragged, masked=masked)
        if config.nonlinearity != "relu":
            return problem
        _, _, tape = run_reference(problem)
        grads = reference.backward(config, problem.params, tape, problem.dy, problem.dstate)
        arrays = [grads.x, *members(grads.state), *grads.params.values()]
        if relu_margin(config, problem.params, tape) >= MARGIN and all(map(np.any, arrays)):
            return problem
    raise AssertionError(f"no smooth problem in 200 draws: {config}")


def run_reference(problem: Problem) -> tuple[Array, State, Tape]:
    """Run the reference forward on a problem."""
    return reference.forward(
        problem.config, problem.params, problem.x, problem.state, problem.lengths, problem.masks
    )


def relu_margin(config: Config, params: Mapping[str, npt.ArrayLike], tape: Tape) -> float:
    """Smallest |pre-activation| of a vanilla stack over all layers, directions and valid steps."""
    weights = reference.all_weights(config, params)
    runs = [run for layer in tape.layers for run in layer.directions]
    smallest = np.inf
    for p, run in zip(weights, runs, strict=True):
        for t in run.order():
            step = run.step(t)
            a = reference.affine(step.x, step.m * step.state[0], p)
            smallest = min(smallest, float(np.min(np.abs(a), initial=np.inf)))
    return smallest
