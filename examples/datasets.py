"""Real data for the examples, all of it carried by installed packages: nothing is downloaded.

===============  =================================================  ==================
function         what                                               comes with
===============  =================================================  ==================
``digits``       1797 scanned digits, 8 x 8 pixels                  scikit-learn
``sunspots``     sunspots of each year, 1700 to 2008                statsmodels
``co2``          weekly CO2 above Mauna Loa, 1958 to 2001           statsmodels
``words``        the words of Python's help topics                  Python itself
``phrases``      runs of words from Python's help topics            Python itself
===============  =================================================  ==================

``pip install rnncore[examples]`` installs the packages.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.int64]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class MissingPackageError(ImportError):
    """A package that an example needs is not installed."""


def required(module: str) -> Any:
    """Import a module of an optional package, or say in one line what to install."""
    package = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise  # it is there, and lacks something itself
        name = {"sklearn": "scikit-learn"}.get(package, package)
        raise MissingPackageError(
            f"this example needs {name}: pip install rnncore[examples]"
        ) from None


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run an example and leave; what is not installed is said in one line."""
    try:
        sys.exit(main())
    except MissingPackageError as error:
        sys.exit(str(error))


def digits() -> tuple[Floats, Codes]:
    """Return scanned digits (N, 8, 8), from 0 (paper) to 1 (ink), and which digit each is (N,).

    From the test set of "Optical recognition of handwritten digits" (Alpaydin and Kaynak, 1998).
    """
    bunch = required("sklearn.datasets").load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


def sunspots() -> tuple[Codes, Floats]:
    """Return the years (309,) and the mean number of sunspots in each (309,)."""
    data = required("statsmodels.datasets.sunspots").load_pandas().data
    return data["YEAR"].to_numpy(np.int64), data["SUNACTIVITY"].to_numpy(np.float32)


def co2() -> Floats:
    """Return CO2 in parts per million, week by week (2284,); NaN where a week is missing."""
    data = required("statsmodels.datasets.co2").load_pandas().data
    weeks: Floats = data["co2"].to_numpy(np.float32)
    return weeks


def topics() -> str:
    """Return Python's help topics, in alphabetical order, as one text."""
    from pydoc_data.topics import topics as by_name

    return "\n\n".join(text for _, text in sorted(by_name.items()))


def words() -> list[str]:
    """Return the different words of the help topics, in small letters and alphabetical order.

    Of 3 to 12 letters.
    """
    found = set(re.findall(r"[a-z]+", topics().lower()))
    return sorted(word for word in found if 3 <= len(word) <= 12)


def phrases() -> list[str]:
    """Return the different runs of words of the help topics, in small letters and ordered.

    A run is what stands between marks and figures; it has 4 to 12 words. A word is made of letters,
    and perhaps of one apostrophe.
    """
    text = topics().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    word = r"[a-z]+(?:'[a-z]+)?"
    runs = re.findall(rf"{word}(?: {word})+", re.sub(r"(?<=\S)\n *(?=\S)", " ", text))
    return sorted({run for run in runs if 4 <= run.count(" ") + 1 <= 12})


def held_out(count: int, share: float, seed: int = 0) -> tuple[Codes, Codes]:
    """Draw which of ``count`` rows are for training and which are for the test.

    >>> train, test = held_out(10, 0.3)
    >>> len(train), len(test), sorted([*train, *test]) == list(range(10))
    (7, 3, True)
    """
    order = np.random.default_rng(seed).permutation(count)
    tests = round(share * count)
    return np.sort(order[tests:]), np.sort(order[:tests])
