"""A picture for each example, drawn when the option ``--out`` asks for it.

matplotlib is imported then, and not before: ``pip install rnncore[examples]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--out`` to the options of a program."""
    parser.add_argument("--out", type=Path, help="folder for a picture; without it there is none")


def save(path: Path, draw: Callable[[Any], None], size: tuple[float, float] = (8.0, 4.0)) -> None:
    """Draw on a fresh figure of that size, in inches, and save it."""
    # A figure of its own: pyplot would look for a display.
    figure = datasets.required("matplotlib.figure").Figure(figsize=size, layout="constrained")
    draw(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")
