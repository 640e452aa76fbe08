"""Where a long call is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

__all__ = ["Progress"]

# Between two lines.
_SECONDS = 5.0


class Progress:
    """A bar of tqdm on a terminal where it is installed; else a line every few seconds.

    All goes to standard error. A line that says how an epoch went is written when the last line is
    five seconds old, beside a bar too.

    Parameters
    ----------
    epochs
        How many there are in all.
    done
        How many of them are behind.
    shown
        Whether anything is to be seen.

    Examples
    --------
    >>> from rnncore.progress import Progress
    >>> with Progress(2, 0, shown=False) as progress:
    ...     progress.advance(0.5, 0.7)
    ...     progress.epoch(1, "train 0.6")
    ...     progress.end("all done")
    """

    def __init__(self, epochs: int, done: int, *, shown: bool) -> None:
        self._shown = shown
        self._epochs, self._begun, self._done = epochs, done, float(done)
        self._began = self._last = time.perf_counter()
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            try:
                tqdm = importlib.import_module("tqdm")
            except ImportError:
                return
            self._bar = tqdm.tqdm(
                total=epochs, initial=done, unit="epoch", unit_scale=True, dynamic_ncols=True
            )

    def advance(self, share: float, loss: float) -> None:
        """Count a share of an epoch.

        Parameters
        ----------
        share
            From 0 to 1.
        loss
            The mean loss of the epoch so far.
        """
        self._done += share
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update(share)
        elif self._due:
            epoch = min(int(self._done) + 1, self._epochs)
            part = f"{self._done - int(self._done):.0%}".replace("%", " %")
            self._line(f"epoch {epoch}/{self._epochs} at {part} | loss {loss:.4g} | {self._left}")

    def epoch(self, number: int, text: str) -> None:
        """Say how an epoch went.

        Parameters
        ----------
        number
            Of the epoch, from 1.
        text
            Its figures.
        """
        self._done = float(number)
        if self._bar is not None:
            # What was added up in shares is off by some roundings.
            self._bar.update(number - self._bar.n)
        if self._shown and self._due:
            self._line(f"epoch {number}/{self._epochs} | {text} | {self._left}")

    def end(self, text: str) -> None:
        """Say how it ended."""
        if self._shown:
            self._line(text)

    @property
    def _due(self) -> bool:
        return time.perf_counter() - self._last >= _SECONDS

    @property
    def _left(self) -> str:
        """Write the time that is left at the speed so far."""
        done = self._done - self._begun
        spent = time.perf_counter() - self._began
        seconds = round(spent / done * (self._epochs - self._done)) if done > 0 else 0
        return f"{seconds // 60}:{seconds % 60:02d} left"

    def _line(self, text: str) -> None:
        self._last = time.perf_counter()
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
