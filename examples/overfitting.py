"""Too little, too much by heart, and what helps: over-fitting from beginning to end.

    python examples/overfitting.py             # half a minute; needs scikit-learn and matplotlib
    python examples/overfitting.py --rows 300  # with more training data there is less to mend
    python examples/overfitting.py --help

The data are real: images of handwritten digits (8 x 8 pixels, from scikit-learn), read by an LSTM
line by line, eight steps of eight features. Of 1797 images 120 are for training; so few that a
large network can learn them by heart. 200 others are for validation, by which everything is
decided; the rest, for the test, is looked at in the table alone.

1. A model that is too small under-fits: it does badly even on what it has seen.
2. A large one over-fits: perfect on what it has seen, much worse on the rest, and its validation
   loss rises while the training loss still falls.
3. Remedies, one at a time, then together: early stopping, dropout (between the layers and in the
   recurrence), weight decay (L2), augmentation, and the mean of several models.
4. A learning curve says whether more data would help, a validation curve how strong a remedy should
   be.

It prints a table with a verdict on each model, and draws ``overfitting.png``, the learning curves
of all runs, and ``curves.png``, the curves of step 4.
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

Floats: TypeAlias = NDArray[np.float32]
Classes: TypeAlias = NDArray[np.int64]

STEPS = FEATURES = 8
DIGITS = 10
VALIDATION_ROWS = 200


class Part(NamedTuple):
    """Images and their digits."""

    x: Floats  # (T, B, F)
    y: Classes  # (B,)


class Data(NamedTuple):
    """The three parts of the data."""

    train: Part
    validation: Part
    test: Part


class Recipe(NamedTuple):
    """How a model is made and trained."""

    units: int = 96
    dropout: float = 0.0  # before the last layer
    recurrent_dropout: float = 0.0
    weight_decay: float = 0.0
    augment: Any = None
    patience: int | None = None
    epochs: int = 80


class Outcome(NamedTuple):
    """What became of a recipe."""

    history: rc.History | None
    losses: tuple[float, float, float]  # training, validation, test
    accuracy: float  # on the test part
    verdict: rc.Verdict


def load(rows: int, seed: int) -> Data:
    """Split the digits into parts, at random."""
    images, y = datasets.digits()
    x = np.ascontiguousarray(images.transpose(1, 0, 2))
    order = np.random.default_rng(seed).permutation(x.shape[1])
    cuts = np.split(order, [rows, rows + VALIDATION_ROWS])
    return Data(*(Part(x[:, part], y[part]) for part in cuts))


def shifted(
    x: Floats, lengths: Classes | None, rng: np.random.Generator
) -> tuple[Floats, Classes | None]:
    """Move every image by at most a pixel: an augmentation that knows what its data are."""
    moved = np.pad(x, ((1, 1), (0, 0), (1, 1)))
    first = rng.integers(0, 3, (2, x.shape[1]))
    lines = first[0] + np.arange(STEPS)[:, None]  # (T, B)
    columns = first[1][:, None] + np.arange(FEATURES)  # (B, F)
    rows = np.arange(x.shape[1])
    return moved[lines[:, :, None], rows[:, None], columns], lengths


#: Strokes a little longer or shorter, darker or lighter, and not quite clean.
AUGMENT = rc.Compose(shifted, rc.TimeWarp(0.2), rc.Scaling(0.1, per_feature=False), rc.Jitter(0.05))


def recipes(epochs: int) -> dict[str, Recipe]:
    """Return everything that is tried, by label."""
    full = Recipe(epochs=epochs)
    return {
        "too small": full._replace(units=2),
        "too large": full,
        "early stopping": full._replace(patience=10),
        "dropout": full._replace(dropout=0.5, recurrent_dropout=0.25),
        "weight decay": full._replace(weight_decay=0.003),
        "augmentation": full._replace(augment=AUGMENT),
        # What makes learning by heart harder makes all learning slower: twice the epochs.
        "all together": Recipe(96, 0.3, 0.2, 0.0003, AUGMENT, patience=40, epochs=2 * epochs),
    }


def make(recipe: Recipe, seed: int) -> tuple[rc.Sequential, dict[str, Any]]:
    """Return a fresh model of a recipe, and the options of ``rc.fit`` for it."""
    model = rc.Sequential(
        {
            "lstm": rc.LSTM(
                FEATURES, recipe.units, recurrent_dropout=recipe.recurrent_dropout, seed=seed
            ),
            "last": rc.Pooling("last"),
            "dropout": rc.Dropout(recipe.dropout, seed=seed + 1),
            "head": rc.Linear(recipe.units, DIGITS, seed=seed + 2),
        }
    )
    options = {
        "optimizer": rc.Adam(model, lr=0.003, weight_decay=recipe.weight_decay),
        "epochs": recipe.epochs,
        "batch_size": 20,
        "augment": recipe.augment,
        "patience": recipe.patience,
        "seed": seed,
        "progress": False,
    }
    return model, options


def probabilities(model: rc.Sequential, x: Floats) -> NDArray[np.float64]:
    """Return the probability of every digit (B, K)."""
    z = np.asarray(rc.predict(model, x), np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = e / e.sum(axis=1, keepdims=True)
    return shares


def judge(guesses: Sequence[NDArray[np.float64]], data: Data, history: Any = None) -> Outcome:
    """Measure probabilities of the digits of all three parts."""
    losses = [
        float(-np.log(p[np.arange(len(part.y)), part.y]).mean())
        for p, part in zip(guesses, data, strict=True)
    ]
    accuracy = float((guesses[2].argmax(axis=1) == data.test.y).mean())
    verdict = rc.verdict(losses[0], losses[1], baseline=rc.constant_loss(data.train.y))
    return Outcome(history, (losses[0], losses[1], losses[2]), accuracy, verdict)


def train(recipe: Recipe, data: Data, seed: int) -> tuple[rc.Sequential, Outcome]:
    """Train a model by a recipe and judge it."""
    model, options = make(recipe, seed)
    last: dict[str, NDArray[Any]] = {}

    def remember(history: rc.History) -> None:
        last.update({name: array.copy() for name, array in model.params.items()})

    history = rc.fit(
        model, *data.train, validation=tuple(data.validation), callback=remember, **options
    )
    if recipe.patience is None:
        # With validation the best weights come back; here they would be early stopping in disguise.
        model.load_params(last)
    guesses = [probabilities(model, part.x) for part in data]
    return model, judge(guesses, data, history)


def ensemble(recipe: Recipe, data: Data, members: int, seed: int) -> Outcome:
    """Train several models that differ in their seeds, and judge the mean of their guesses."""
    models = [train(recipe, data, seed + 10 * k)[0] for k in range(1, members + 1)]
    guesses = [np.mean([probabilities(model, part.x) for model in models], axis=0) for part in data]
    return judge(guesses, data)


def line(label: str, outcome: Outcome) -> str:
    """Write one line of the table."""
    losses = "  ".join(f"{loss:10.3f}" for loss in outcome.losses)
    return f"{label:16} {losses}  {outcome.accuracy:8.1%}  {outcome.verdict.word}"


def draw(outcomes: dict[str, Outcome], path: Path) -> None:
    """Save the learning curves of all runs."""
    runs = {label: o.history for label, o in outcomes.items() if o.history is not None}
    figure = datasets.required("matplotlib.figure").Figure(figsize=(13, 6.5), layout="constrained")
    grid = figure.subplots(2, -(-len(runs) // 2), sharey=True, squeeze=False).ravel()
    for ax, (label, history) in zip(grid, runs.items(), strict=False):
        rc.plot.learning_curve(history, ax)
        ax.set_title(f"{label}: {outcomes[label].verdict.word}")
        ax.set_ylim(0, 3)
    for ax in grid[len(runs) :]:
        ax.remove()
    figure.savefig(path, dpi=110)


def study(data: Data, epochs: int, folds: int, seed: int, path: Path) -> None:
    """Ask what more data would bring, and how strong weight decay should be; save the answers."""
    x = np.concatenate([data.train.x, data.validation.x], axis=1)
    y = np.concatenate([data.train.y, data.validation.y])

    def plain() -> Any:
        return make(Recipe(epochs=epochs), seed)

    def decayed(weight_decay: float) -> Any:
        return make(Recipe(epochs=epochs, weight_decay=weight_decay), seed)

    curve = rc.diagnosis.learning_curve(
        plain, x, y, sizes=(0.125, 0.25, 0.5, 1.0), folds=folds, seed=seed
    )
    before, after = curve.validation.mean(axis=1)[[-2, -1]]
    print(
        f"learning curve: from {curve.values[-2]} to {curve.values[-1]} rows the validation loss "
        f"{'falls' if after < before else 'rises'} from {before:.2f} to {after:.2f}; "
        f"{curve.verdicts()[-1].word}"
    )
    strengths = rc.diagnosis.validation_curve(
        decayed, "weight_decay", (1e-4, 1e-3, 3e-3, 1e-2, 1e-1), x, y, folds=folds, seed=seed
    )
    words = ", ".join(
        f"{value:g} {verdict.word}"
        for value, verdict in zip(strengths.values, strengths.verdicts(), strict=True)
    )
    print(f"validation curve: best weight_decay {strengths.values[strengths.best]:g} ({words})")
    figure = datasets.required("matplotlib.figure").Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rc.plot.learning_curve(curve, left)
    rc.plot.validation_curve(strengths, right)
    figure.savefig(path, dpi=110)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=120, help="training images")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--members", type=int, default=4, help="models of the ensemble")
    parser.add_argument("--folds", type=int, default=3, help="folds of the curves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    options = parser.parse_args(argv)
    limits = {"rows": (20, 1500), "epochs": (1, 10**6), "members": (1, 1000), "folds": (2, 10)}
    for name, (least, most) in limits.items():
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name}: expected {least} to {most}, got {getattr(options, name)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    options = parse(argv)
    data = load(options.rows, options.seed)
    print("loss             training   validation        test  accuracy  verdict")
    outcomes = {}
    for label, recipe in recipes(options.epochs).items():
        _, outcomes[label] = train(recipe, data, options.seed)
        print(line(label, outcomes[label]), flush=True)
    together = recipes(options.epochs)["all together"]
    mean = ensemble(together, data, options.members, options.seed)
    print(line(f"{options.members} of these", mean))
    large = outcomes["too large"].history
    assert large is not None
    print(f"too large: {large.verdict(at=-1)}")
    options.out.mkdir(parents=True, exist_ok=True)
    draw(outcomes, options.out / "overfitting.png")
    study(
        data, max(options.epochs // 3, 1), options.folds, options.seed, options.out / "curves.png"
    )
    print(f"pictures: {options.out / 'overfitting.png'}, {options.out / 'curves.png'}")
    return 0


if __name__ == "__main__":
    datasets.run_program(main)
