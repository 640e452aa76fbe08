"""Many to one: a sequence is read to its end, and one answer is given.

::

                          answer
                            ^
    [GRU] -> [GRU] -> ... [GRU]
      ^        ^            ^
     x_1      x_2          x_n

Twice. Classification: a digit is read line by line, eight pixels at a time, as if by a scanner.
Regression: the next value of a series is foretold from the years or weeks before it. There the
rows have different lengths n, and the answer comes from the state after the last valid step, which
``Pooling("last")`` takes.

    python examples/many_to_one.py

The data are scikit-learn's digits, and statsmodels' sunspots (of a year) and CO2 (of a week; what
is foretold is a quarter of a year ahead). Tests are on the last quarter of a series, which comes
after all that was trained on. The figures to beat: the nearest mean image; for sunspots a line
through the last nine years (an autoregression, by least squares); for CO2 the change in the same
weeks a year before.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pictures
from datasets import Floats

import rnncore as rc


class Result(NamedTuple):
    """A figure on what was not trained on, and the one to beat."""

    model: float
    baseline: float


class Forecast(NamedTuple):
    """The errors of the model and of the guess to beat, and what the model said."""

    model: float
    baseline: float
    places: list[int]  # where in the series
    values: Floats  # (N,)


# ---- Classification ------------------------------------------------------------------------------


def classify(*, epochs: int = 25, seed: int = 0, progress: bool = False) -> Result:
    """Return accuracies on digits that were not trained on."""
    images, y = datasets.digits()
    train, test = datasets.held_out(len(images), 0.25)
    x = images.swapaxes(0, 1)  # (T, B, F) = (8 lines, images, 8 pixels)
    model = rc.Sequential(
        rc.GRU(8, 48, seed=seed), rc.Pooling("last"), rc.Linear(48, 10, seed=seed + 1)
    )
    optimizer = rc.Adam(model, lr=0.01)
    rc.fit(
        model, x[:, train], y[train], optimizer=optimizer,
        epochs=epochs, seed=seed, progress=progress,
    )  # fmt: skip
    logits = np.asarray(rc.predict(model, x[:, test]))
    accuracy = (logits.argmax(axis=1) == y[test]).mean()
    means = np.stack([images[train][y[train] == digit].mean(axis=0) for digit in range(10)])
    distances = ((images[test][:, None] - means) ** 2).sum(axis=(2, 3))
    return Result(float(accuracy), float((distances.argmin(axis=1) == y[test]).mean()))


# ---- Regression ----------------------------------------------------------------------------------


class Windows(NamedTuple):
    """Pieces of a series, each with the value to foretell."""

    x: list[Floats]  # (n, 1) each: the values, less the last one
    y: Floats  # (N, 1): the value to foretell, less the last one
    place: list[int]  # where in the series that value stands


def windows(series: Floats, ahead: int, shortest: int, longest: int, seed: int = 0) -> Windows:
    """Cut a window of random length before every value; what is missing (NaN) is left out."""
    rng = np.random.default_rng(seed)
    x, y, place = [], [], []
    for target in range(shortest + ahead, len(series)):
        end = target - ahead + 1
        window = series[max(end - int(rng.integers(shortest, longest + 1)), 0) : end]
        if np.isnan(window[-1]) or np.isnan(series[target]):
            continue
        window = window[~np.isnan(window)]
        x.append((window - window[-1])[:, None])
        y.append([series[target] - window[-1]])
        place.append(target)
    return Windows(x, np.array(y, np.float32), place)


def foretell(
    series: Floats,
    guess: Floats,
    *,
    ahead: int,
    shortest: int,
    longest: int,
    scale: float,
    epochs: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> Forecast:
    """Return root-mean-square errors on the last quarter of a series: the model's, the guess's."""
    found = windows(series / scale, ahead, shortest, longest)
    cut = first_test(series)
    train = [k for k, place in enumerate(found.place) if place < cut]
    # The first test windows would else hold what is a target of the training.
    test = [k for k, place in enumerate(found.place) if place >= cut + ahead]
    model = rc.Sequential(
        rc.GRU(1, 24, seed=seed), rc.Pooling("last"), rc.Linear(24, 1, seed=seed + 1)
    )
    optimizer = rc.Adam(model, lr=0.01)
    rc.fit(
        model, [found.x[k] for k in train], found.y[train], loss="mse", optimizer=optimizer,
        schedule=rc.CosineLR(optimizer, epochs), epochs=epochs, clip_norm=1.0,
        seed=seed, progress=progress,
    )  # fmt: skip
    error = np.asarray(rc.predict(model, [found.x[k] for k in test])) - found.y[test]
    places = [found.place[k] for k in test]
    guess_error = guess[places] - series[places]
    values = series[places] + scale * error[:, 0]
    return Forecast(scale * root_mean_square(error), root_mean_square(guess_error), places, values)


def first_test(series: Floats) -> int:
    """Return where the last quarter of a series begins."""
    return 3 * len(series) // 4


def root_mean_square(error: Floats) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.square(error, dtype=np.float64).mean()))


def by_line(series: Floats, lags: int) -> Floats:
    """Return a linear guess (N,) from the ``lags`` values before, fitted before the tests."""
    past = np.lib.stride_tricks.sliding_window_view(series, lags)[:-1]
    past = np.hstack([past, np.ones((len(past), 1), np.float32)])
    known = first_test(series) - lags
    weights, *_ = np.linalg.lstsq(past[:known], series[lags:][:known], rcond=None)
    guess = np.full_like(series, np.nan)
    guess[lags:] = past @ weights
    return guess


def by_season(series: Floats, ahead: int, season: int) -> Floats:
    """Return a guess (N,): what was ``ahead`` before, and the change since then a season ago."""
    guess = np.full_like(series, np.nan)
    change = series[ahead:-season] - series[: -season - ahead]
    guess[season + ahead :] = series[season:-ahead] + change
    return guess


def sunspots(*, epochs: int = 60, seed: int = 0, progress: bool = False) -> Forecast:
    """Foretell the sunspots of a year from 10 to 40 years before it."""
    _, series = datasets.sunspots()
    return foretell(
        series, by_line(series, 9), ahead=1, shortest=10, longest=40, scale=50,
        epochs=epochs, seed=seed, progress=progress,
    )  # fmt: skip


def co2(*, epochs: int = 60, seed: int = 0, progress: bool = False) -> Forecast:
    """Foretell CO2 a quarter of a year ahead from a year, or up to a year and a half."""
    series = datasets.co2()
    return foretell(
        series, by_season(series, 13, 52), ahead=13, shortest=52, longest=78, scale=3,
        epochs=epochs, seed=seed, progress=progress,
    )  # fmt: skip


def draw(figure: Any, found: Forecast) -> None:
    """Show the sunspots of the test years, and what was foretold a year before."""
    years, series = datasets.sunspots()
    ax = figure.add_subplot(xlabel="year", ylabel="sunspots", title="foretold a year ahead")
    ax.plot(years[found.places], series[found.places], color="0.6", label="seen")
    ax.plot(years[found.places], found.values, "o-", markersize=3, label="foretold")
    ax.legend()


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print the figures beside those to beat."""
    parser = argparse.ArgumentParser(description="Many to one: classification and regression.")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order")
    pictures.add_option(parser)
    options = parser.parse_args(argv)
    seed = options.seed
    digits = classify(seed=seed, progress=True)
    print(f"digits, accuracy:   {digits.model:.3f} (nearest mean image {digits.baseline:.3f})")
    spots = sunspots(seed=seed, progress=True)
    print(f"sunspots, error:    {spots.model:.1f} (line through nine years {spots.baseline:.1f})")
    air = co2(seed=seed, progress=True)
    print(f"CO2, error in ppm:  {air.model:.2f} (change a year before {air.baseline:.2f})")
    if options.out:
        pictures.save(options.out / "many_to_one.png", lambda figure: draw(figure, spots))
    return 0


if __name__ == "__main__":
    datasets.run_program(main)
