"""Do the estimators do well as they come? Their defaults on digits and on four series.

    make defaults                                     three seeds: two minutes on one core
    make defaults ARGS="--data sunspots nile --seeds 0"
    python benches/defaults.py --help                 in an environment that has what it needs

Digits are classified in five folds in the order of the file, whose folds have other writers. A
series is learnt up to its last origins; from each of these it is forecast, and what came to pass
then is told by ``update``, without another training. Beside the errors stand those of naive
forecasts, on the same steps. The table is printed; ``defaults.csv`` (every seed and fold) and
``defaults.md`` are written into ``--out``. What does not meet its bound is shown as missed and does
not change the exit status. Instruction levels round differently, so last digits may differ.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

# Networks are small: threads of a BLAS would only be in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import report
import sequences
from numpy.typing import NDArray
from tasks import ROOT, seed, write_rows

import rnncore as rc
from rnncore.sklearn import RecurrentClassifier, RecurrentForecaster

Values: TypeAlias = NDArray[np.float64]
#: Who says what: name to figure.
Figures: TypeAlias = dict[str, float]

SEEDS = 3
FOLDS = 5
NEEDED = 0.95  # of the digits, right
OURS = "ours"
NAIVE = ("last value", "last season", "drift")
HEAD = ("data", "seed", "fold", "forecast", "figure")
DIGITS_HEAD = ("data", "right: mean of five folds", "seeds", "worst fold", "needed", "")
SERIES_HEAD = ("series", "horizon", "origins", OURS, "seeds", *NAIVE, "below all naive ones")


@dataclass(frozen=True)
class Series:
    """A series to forecast: ``horizon`` steps from each of the last ``origins`` steps.

    ``season`` is its number of steps, 1 if there is none; ``options`` are those of the forecaster
    that are no defaults.
    """

    name: str
    title: str
    read: Callable[[], Values]
    horizon: int
    origins: int
    season: int = 1
    options: dict[str, Any] = field(default_factory=dict)


# ---- Data ----------------------------------------------------------------------------------------


def _statsmodels(name: str) -> Any:
    """Return the table of one of its data sets."""
    return sequences.required(f"statsmodels.datasets.{name}", "statsmodels").load_pandas().data


def sunspots() -> Values:
    """Return the yearly numbers of sunspots, 1700 to 2008."""
    return sequences.sunspots()[1]


def co2() -> Values:
    """Return monthly means of CO2 at Mauna Loa in ppm, 1958 to 2001; missing ones lie between."""
    months = _statsmodels("co2")["co2"].resample("MS").mean().interpolate()
    return np.asarray(months, np.float64)


def gdp() -> Values:
    """Return 100 times the log of quarterly real GDP of the USA, 1959 to 2009: per cents."""
    return 100 * np.log(np.asarray(_statsmodels("macrodata")["realgdp"], np.float64))


def nile() -> Values:
    """Return the yearly flow of the Nile at Aswan in 1e8 cubic metres, 1871 to 1970."""
    return np.asarray(_statsmodels("nile")["volume"], np.float64)


SERIES = (
    Series("sunspots", "sunspots, yearly", sunspots, 11, 40, season=11),
    Series("co2", "CO2, monthly, ppm", co2, 12, 40, season=12, options={"difference": 12}),
    Series("gdp", "log GDP, quarterly, %", gdp, 8, 40, options={"difference": 1}),
    Series("nile", "flow of the Nile, yearly", nile, 10, 20),
)
BY_NAME = {one.name: one for one in SERIES}


# ---- Figures -------------------------------------------------------------------------------------


def naive(known: Values, horizon: int, season: int) -> dict[str, Values]:
    """Return what follows a series, as is said without a model.

    >>> naive(np.array([1.0, 5.0, 2.0, 6.0]), 3, 2)["last season"]
    array([2., 6., 2.])
    >>> naive(np.array([1.0, 5.0, 2.0, 6.0]), 3, 2)["drift"]
    array([3., 7., 4.])
    """
    again = np.resize(known[-season:], horizon)
    change = (known[season:] - known[:-season]).mean()  # in a season, in the mean until now
    said = {
        "last value": np.full(horizon, known[-1]),
        "drift": again + change * (1 + np.arange(horizon) // season),
    }
    return said | ({"last season": again} if season > 1 else {})


def forecast_errors(series: Series, number: int) -> Figures:
    """Return the mean absolute errors over all origins and steps, ours and the naive ones."""
    y, horizon = series.read(), series.horizon
    last = len(y) - horizon
    first = last - series.origins + 1
    forecaster = RecurrentForecaster(random_state=number, **series.options).fit(y[:first])
    errors: dict[str, list[float]] = {}
    for now in range(first, last + 1):
        said = {OURS: forecaster.predict(horizon), **naive(y[:now], horizon, series.season)}
        for name, forecast in said.items():
            errors.setdefault(name, []).append(float(abs(forecast - y[now : now + horizon]).mean()))
        forecaster.update(y[now : now + 1])
    return {name: float(np.mean(values)) for name, values in errors.items()}


def digits_right(number: int, fold: int) -> float:
    """Return the share that is right in one of five folds, after training on the others."""
    images, labels = sequences.digits()
    held = np.array_split(np.arange(len(labels)), FOLDS)[fold]
    train = np.setdiff1d(np.arange(len(labels)), held)
    classifier = RecurrentClassifier(random_state=number).fit(images[train], labels[train])
    return float(classifier.score(images[held], labels[held]))


def rows_of(name: str, number: int) -> Iterator[tuple[str, int, int, str, float]]:
    """Yield the lines of ``defaults.csv`` for one seed."""
    if name == "digits":
        for fold in range(FOLDS):
            yield name, number, fold, OURS, digits_right(number, fold)
    else:
        for who, error in forecast_errors(BY_NAME[name], number).items():
            yield name, number, 0, who, error


# ---- The page ------------------------------------------------------------------------------------


def _spread(values: Sequence[float], shape: str) -> str:
    """Write the least and the greatest of the seeds."""
    return f"{shape.format(min(values))} to {shape.format(max(values))}"


def digits_row(found: Sequence[Sequence[Any]]) -> list[str]:
    """Return the line of the digits."""
    by_seed: dict[int, list[float]] = {}
    for _, number, _, _, right in found:
        by_seed.setdefault(number, []).append(right)
    means = [float(np.mean(rights)) for rights in by_seed.values()]
    worst = min(min(rights) for rights in by_seed.values())
    mean = float(np.mean(means))
    return [
        "digits, 8 steps of 8 pixels", f"{mean:.3f}", _spread(means, "{:.3f}"), f"{worst:.3f}",
        f">= {NEEDED}", report.verdict(mean >= NEEDED),
    ]  # fmt: skip


def series_row(series: Series, found: Sequence[Sequence[Any]]) -> list[str]:
    """Return the line of a series."""
    ours = [error for *_, who, error in found if who == OURS]
    beside = {who: error for *_, who, error in found if who != OURS}
    shape = "{:.1f}" if min(ours) >= 10 else "{:.2f}"
    mean = float(np.mean(ours))
    return [
        series.title + "".join(f", {name}={value}" for name, value in series.options.items()),
        str(series.horizon),
        str(series.origins),
        shape.format(mean),
        _spread(ours, shape),
        *(shape.format(beside[who]) if who in beside else "-" for who in NAIVE),
        report.verdict(mean < min(beside.values())),
    ]


def page(command: str, found: Sequence[Sequence[Any]]) -> str:
    """Return the tables."""
    parts = [
        "# The defaults of the estimators",
        f"`{command}`: means over the seeds, and the least and greatest of them. Errors of "
        "forecasts are mean absolute ones, over all steps of all origins.",
    ]
    own = {name: [row for row in found if row[0] == name] for name in ("digits", *BY_NAME)}
    if own["digits"]:
        parts.append(report.table(DIGITS_HEAD, [digits_row(own["digits"])]))
    forecast = [series_row(one, own[one.name]) for one in SERIES if own[one.name]]
    if forecast:
        parts.append(report.table(SERIES_HEAD, forecast))
    return "\n\n".join(parts) + "\n"


# ---- The command ---------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["digits", *BY_NAME]
    add = parser.add_argument
    add("--data", nargs="+", choices=names, default=names, metavar="NAME",
        help=f"default: all of {', '.join(names)}")  # fmt: skip
    add("--seeds", nargs="+", type=seed, default=list(range(SEEDS)), help="default: 0 to 2")
    add("--out", type=Path, default=ROOT / "benches/results",
        help="folder; default: benches/results")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, print and write it down, and return the exit status."""
    options = arguments(argv)
    rc.set_num_threads(1)
    words = sys.argv[1:] if argv is None else argv
    found = [row for name in options.data for one in options.seeds for row in rows_of(name, one)]
    text = page(shlex.join(["python", "benches/defaults.py", *words]), found)
    print(text, end="")
    options.out.mkdir(parents=True, exist_ok=True)
    lines = ((*place, f"{figure:.6g}") for *place, figure in found)
    write_rows(options.out / "defaults.csv", HEAD, lines)
    (options.out / "defaults.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
