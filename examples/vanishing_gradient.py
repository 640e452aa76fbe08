"""Watch the gradient vanish in a vanilla network, and gates keep it.

    python examples/vanishing_gradient.py              # half a minute
    python examples/vanishing_gradient.py --steps 100  # a longer wait
    python examples/vanishing_gradient.py --help

The task: the first step of a sequence shows one of four symbols, all later steps are noise, and at
the end the network must say which symbol it was. What tells the weights so is the gradient that
comes back from the last step to the first. In a vanilla network each step multiplies it by the
recurrent weights and by the slope of tanh, ``dL/dh_{t-1} = U' (dL/dh_t * (1 - h_t^2))``, and it
fades like a power. In an LSTM it has a second way, along the cell: ``dL/dc_{t-1}`` has the part
``f_t * dL/dc_t``, with no matrix and no tanh between. Where the forget gate f is open, near 1, the
gradient arrives; in a GRU the same holds for its update gate z.

Gates are no magic: one that begins half shut multiplies by a half at each step, and the gradient
vanishes as well. That is why layers here begin with a forget bias of 1, and why a task with a long
wait wants more of it (Gers, Schmidhuber and Cummins, 2000; Jozefowicz, Zaremba and Sutskever,
2015). Orthogonal weights, the default here, slow the fading down in a vanilla network.

It prints the norms before training and the accuracy after it, and draws

* ``vanishing_gradient.png``: norm of dL/dh against the steps gone back, before and after training;
* ``gates.png``: the gates of a trained LSTM, row by row of units, while it remembers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import datasets
import numpy as np
from numpy.typing import NDArray

import rnncore as rc

Recurrent: TypeAlias = rc.RNN | rc.LSTM | rc.GRU
SYMBOLS = 4
FEATURES = SYMBOLS + 1  # the symbol, and one of noise
ROWS = 64
TEST_ROWS = 256


class Result(NamedTuple):
    """What became of one model.

    ``before`` and ``after`` are norms of dL/dh by lag (T,), ``accuracy`` is on unseen sequences.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    accuracy: float


def task(
    rng: np.random.Generator, steps: int, rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw sequences (T, B, F) that show a symbol first and noise ever after, and the symbols."""
    x = np.zeros((steps, rows, FEATURES), np.float32)
    symbols = rng.integers(0, SYMBOLS, rows)
    x[0, np.arange(rows), symbols] = 1.0
    x[1:, :, SYMBOLS] = rng.standard_normal((steps - 1, rows))
    return x, symbols


def opened(layer: Any, bias: float) -> Any:
    """Set the bias of the gate that keeps: f of an LSTM, z of a GRU; both are the second one."""
    H = layer.hidden_size
    layer.params["bias_ih_l0"][H : 2 * H] = bias
    return layer


def make_layers(hidden: int, bias: float, seed: int) -> dict[str, Recurrent]:
    """Return the layers to compare, by label."""
    size = (FEATURES, hidden)
    return {
        "RNN": rc.RNN(*size, init="pytorch", seed=seed),
        "RNN, orthogonal": rc.RNN(*size, seed=seed),
        "LSTM, forget bias 1": rc.LSTM(*size, seed=seed),
        f"LSTM, forget bias {bias:g}": opened(rc.LSTM(*size, seed=seed), bias),
        "GRU, update bias 0": rc.GRU(*size, seed=seed),
        f"GRU, update bias {bias:g}": opened(rc.GRU(*size, seed=seed), bias),
    }


def train(layer: Recurrent, steps: int, updates: int, seed: int) -> float:
    """Train a layer to remember, and return its accuracy on sequences it has not seen."""
    model = rc.Sequential(
        {
            "layer": layer,
            "last": rc.Pooling("last"),
            "head": rc.Linear(layer.hidden_size, SYMBOLS, seed=seed),
        }
    )
    optimizer = rc.Adam(model, lr=0.005)
    rng = np.random.default_rng(seed)
    for _ in range(updates):
        x, symbols = task(rng, steps, ROWS)
        logits, tape = model.forward(x)
        _, d_logits = rc.softmax_cross_entropy(logits, symbols)
        g = model.backward(tape, d_logits)
        rc.clip_grad_norm(g.params, 1.0)
        optimizer.step(g)
    x, symbols = task(np.random.default_rng(seed + 1), steps, TEST_ROWS)
    return float((model(x).argmax(axis=1) == symbols).mean())


def kept_by_gates(layer: rc.LSTM, x: NDArray[np.float32]) -> float:
    """Return how much of dL/dc the forget gates alone let through from the last step to the first.

    It is the product of a unit's gates over the steps, in the mean over units and rows.
    """
    _, _, tape = layer.forward(x)
    f = tape.gates()["l0"]["f"].astype(np.float64)  # (T, B, H)
    return float(f[1:].prod(axis=0).mean())


def run(layers: dict[str, Recurrent], steps: int, updates: int, seed: int) -> dict[str, Result]:
    """Measure, train and measure again; print a line for each layer."""
    x, _ = task(np.random.default_rng(seed + 2), steps, ROWS)
    results = {}
    print(f"{'':22} dL/dh, of which there is 1 at the end")
    print(f"{'':22} {steps // 2:4} steps back  {steps - 1:4} steps back | accuracy")
    for label, layer in layers.items():
        before = rc.gradient_norms(layer, x)["l0"]["h"]
        accuracy = train(layer, steps, updates, seed)
        after = rc.gradient_norms(layer, x)["l0"]["h"]
        results[label] = Result(before, after, accuracy)
        middle, first = before[steps // 2], before[steps - 1]
        print(f"{label:22} {middle:15.1e}  {first:15.1e} | {accuracy:7.0%}", flush=True)
    print(f"(accuracy after {updates} updates; a guess has {1 / SYMBOLS:.0%})")
    return results


def draw(layers: dict[str, Recurrent], results: dict[str, Result], steps: int, out: Path) -> None:
    """Save both pictures."""
    figure = datasets.required("matplotlib.figure").Figure(figsize=(11, 4.5), layout="constrained")
    before, after = figure.subplots(1, 2, sharey=True)
    for label, result in results.items():
        before.plot(result.before, label=label)
        after.plot(result.after, label=f"{label}: {result.accuracy:.0%} right")
    for ax, title in ((before, "before training"), (after, "after training")):
        ax.set(yscale="log", xlabel="lag k (steps back in time)", title=title)
        ax.set_ylim(bottom=1e-9)
        ax.legend(fontsize="small")
    before.set_ylabel("norm of dL/dh at step T - k")
    figure.savefig(out / "vanishing_gradient.png", dpi=120)

    lstm = next(layer for label, layer in reversed(layers.items()) if isinstance(layer, rc.LSTM))
    x, _ = task(np.random.default_rng(0), steps, 1)
    _, _, tape = lstm.forward(x)
    rc.plot.gates(tape).savefig(out / "gates.png", dpi=120)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=60, help="T, how long to remember")
    parser.add_argument("--hidden", type=int, default=32, help="units of each layer")
    parser.add_argument("--updates", type=int, default=200, help="training batches")
    parser.add_argument("--bias", type=float, default=3.0, help="of the gates that begin open")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    options = parser.parse_args(argv)
    if options.steps < 2:
        parser.error(f"--steps: expected at least 2, got {options.steps}")
    if options.updates < 1:
        parser.error(f"--updates: expected at least 1, got {options.updates}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    options = parse(argv)
    layers = make_layers(options.hidden, options.bias, options.seed)
    lstm = layers[f"LSTM, forget bias {options.bias:g}"]
    assert isinstance(lstm, rc.LSTM)
    x, _ = task(np.random.default_rng(options.seed), options.steps, ROWS)
    kept = kept_by_gates(lstm, x)
    results = run(layers, options.steps, options.updates, options.seed)
    print(
        f"LSTM with forget bias {options.bias:g}: before training, its gates alone let {kept:.1%} "
        f"of dL/dc through {options.steps - 1} steps; after it, {kept_by_gates(lstm, x):.1%}"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    draw(layers, results, options.steps, options.out)
    print(f"pictures: {options.out / 'vanishing_gradient.png'}, {options.out / 'gates.png'}")
    return 0


if __name__ == "__main__":
    datasets.run_program(main)
