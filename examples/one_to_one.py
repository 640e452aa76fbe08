"""One to one: an image is told from nine others, in a single step.

::

    digit
      ^
    [RNN]
      ^
    64 pixels

With one step there is nothing to remember: the state before it is zero, so that
``h = tanh(W x + b_ih + U 0 + b_hh)`` is a plain hidden layer, and the network an ordinary one. The
program shows it: the layer agrees with that formula, and training leaves U as it was.

    python examples/one_to_one.py

The data are scikit-learn's digits. The figure to beat is that of the nearest mean image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pictures
from datasets import Codes, Floats

import rnncore as rc


class Result(NamedTuple):
    """What came out, on images that were not trained on."""

    accuracy: float
    baseline: float
    formula_gap: float  # largest difference between the layer and the formula above
    recurrent_change: float  # largest change of U by training
    weights: Floats  # W (H, 64) after training


def nearest_mean(x: Floats, y: Codes, x_test: Floats, y_test: Codes) -> float:
    """Return how many test images (N, 64) are nearest to the mean image of their own digit."""
    means = np.stack([x[y == digit].mean(axis=0) for digit in range(10)])
    distances = ((x_test[:, None] - means) ** 2).sum(axis=2)  # (N, 10)
    return float((distances.argmin(axis=1) == y_test).mean())


def run(*, epochs: int = 20, seed: int = 0, progress: bool = False) -> Result:
    """Train and measure."""
    images, y = datasets.digits()
    x = images.reshape(len(images), 64)
    train, test = datasets.held_out(len(x), 0.25)

    layer = rc.RNN(64, 48, seed=seed)
    model = rc.Sequential(layer, rc.Pooling("last"), rc.Linear(48, 10, seed=seed + 1))
    p = {name: array.copy() for name, array in layer.params.items()}
    before = np.tanh(x @ p["weight_ih_l0"].T + p["bias_ih_l0"] + p["bias_hh_l0"])
    gap = float(abs(layer(x[None])[0][0] - before).max())  # x[None] is (T, B, F) with T = 1

    optimizer = rc.Adam(model, lr=0.005)
    rc.fit(
        model, x[None, train], y[train], optimizer=optimizer,
        epochs=epochs, seed=seed, progress=progress,
    )  # fmt: skip
    logits = np.asarray(rc.predict(model, x[None, test]))
    accuracy = float((logits.argmax(axis=1) == y[test]).mean())
    change = float(abs(layer.params["weight_hh_l0"] - p["weight_hh_l0"]).max())
    baseline = nearest_mean(x[train], y[train], x[test], y[test])
    return Result(accuracy, baseline, gap, change, layer.params["weight_ih_l0"].copy())


def draw(figure: Any, weights: Floats) -> None:
    """Show what units look for: their weights, each set as an image of 8 x 8 pixels."""
    limit = float(abs(weights).max())
    for ax, unit in zip(figure.subplots(3, 8).flat, weights, strict=False):
        ax.imshow(unit.reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.axis("off")
    figure.suptitle("what 24 units look for: ink (red) and paper (blue)")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print the figures beside those to beat."""
    parser = argparse.ArgumentParser(description="One to one: digits in a single step.")
    parser.add_argument("--epochs", type=int, default=20, help="times all images are seen")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order")
    pictures.add_option(parser)
    options = parser.parse_args(argv)
    found = run(epochs=options.epochs, seed=options.seed, progress=True)
    print(f"test accuracy             {found.accuracy:.3f}")
    print(f"nearest mean image        {found.baseline:.3f}")
    print(f"layer against tanh(W x + b): {found.formula_gap:.1e} apart")
    print(f"largest change of U by training: {found.recurrent_change:g}")
    if options.out:
        pictures.save(options.out / "one_to_one.png", lambda figure: draw(figure, found.weights))
    return 0


if __name__ == "__main__":
    datasets.run_program(main)
