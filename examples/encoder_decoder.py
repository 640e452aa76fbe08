"""Many to many, not aligned: dates as people write them become dates as machines sort them.

::

                                         1  9  9  8  -  ...  (end)
                                         ^  ^  ^  ^  ^
    [LSTM] -> [LSTM] -> ... [LSTM] ->  [ LSTM -> LSTM -> ... ]
      ^         ^             ^          ^  ^  ^  ^  ^
      M         o             8     (start) 1  9  9  8  ...

    "Mon 23 March 1998"               what it wrote is what it reads next

The encoder reads the whole text; its final state is all that the decoder gets, and what the decoder
gets wrong teaches the encoder through that state. In training the decoder reads the true symbols
(teacher forcing), in use its own: the likeliest at each step (greedy), or those of a beam search.

    python examples/encoder_decoder.py

The data are days from 1900 to 2099, written in five ways; the texts come from a rule, but the
network sees none of it: it has to find out about months, short years' digits and order from
examples. The days of the test are not trained on, in any way of writing. The figure to beat is 0:
no text contains its answer, and every answer is different.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from datasets import Codes

import rnncore as rc

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SOURCE = sorted(set("".join((*MONTHS, *WEEKDAYS)) + "0123456789 ,."))
TARGET = ["start", "end", *"0123456789-"]
START, END = 0, 1
LONGEST = 11  # the target with its end


class Result(NamedTuple):
    """Shares of dates that came out right in every symbol."""

    model: rc.EncoderDecoder
    greedy: float
    beam: float


def ways_to_write(day: datetime.date) -> list[str]:
    """Write a day as people do.

    >>> ways_to_write(datetime.date(1998, 3, 9))[:3]
    ['9 March 1998', 'March 9, 1998', 'Monday, 9 March 1998']
    >>> ways_to_write(datetime.date(1998, 3, 9))[3:]
    ['Mon 9 Mar 1998', '9. 3. 1998']
    """
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    return [
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{weekday}, {day.day} {month} {day.year}",
        f"{weekday[:3]} {day.day} {month[:3]} {day.year}",
        f"{day.day}. {day.month}. {day.year}",
    ]


class Pairs(NamedTuple):
    """Sources and targets, as codes without start and end."""

    source: list[Codes]
    target: list[Codes]


def draw(count: int, seed: int) -> tuple[Pairs, Pairs]:
    """Draw days: pairs to train on, and 300 others to test on; each day in one way of writing."""
    rng = np.random.default_rng(seed)
    first = datetime.date(1900, 1, 1).toordinal()
    last = datetime.date(2099, 12, 31).toordinal()
    drawn = rng.choice(last - first + 1, count + 300, replace=False) + first
    source, target = [], []
    for number in drawn:
        day = datetime.date.fromordinal(int(number))
        text = ways_to_write(day)[rng.integers(5)]
        source.append(np.array([SOURCE.index(letter) for letter in text]))
        target.append(np.array([TARGET.index(letter) for letter in day.isoformat()]))
    return Pairs(source[300:], target[300:]), Pairs(source[:300], target[:300])


def make(hidden: int, seed: int) -> rc.EncoderDecoder:
    """Return a model for these alphabets."""
    encoder = rc.Sequential(
        rc.Embedding(len(SOURCE), 16, seed=seed), rc.LSTM(16, hidden, seed=seed + 1)
    )
    decoder = rc.Sequential(
        rc.Embedding(len(TARGET), 16, seed=seed + 2),
        rc.LSTM(16, hidden, seed=seed + 3),
        rc.Linear(hidden, len(TARGET), seed=seed + 4),
    )
    return rc.EncoderDecoder(encoder, decoder)


def translate(model: rc.EncoderDecoder, source: list[Codes], width: int = 1) -> list[Codes]:
    """Write the targets of many sources, greedily or by a beam search."""
    lengths = np.array([len(row) for row in source])
    padded = np.zeros((lengths.max(), len(source)), np.int64)  # (T, B)
    for k, row in enumerate(source):
        padded[: len(row), k] = row
    return model.translate(
        padded, lengths=lengths, start=START, end=END, length=LONGEST, width=width
    )


def exact(found: list[Codes], target: list[Codes]) -> float:
    """Return the share of rows that agree in every symbol."""
    return float(np.mean([np.array_equal(a, b) for a, b in zip(found, target, strict=True)]))


def run(
    *,
    count: int = 6000,
    hidden: int = 96,
    epochs: int = 12,
    lr: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Train, and measure on days that were not trained on."""
    train, test = draw(count, seed)
    model = make(hidden, seed)
    target_in = [np.array([START, *row]) for row in train.target]
    target_out = [np.array([*row, END]) for row in train.target]
    optimizer = rc.Adam(model, lr=lr)
    rc.fit(
        model, (train.source, target_in), target_out, optimizer=optimizer,
        schedule=rc.CosineLR(optimizer, epochs), epochs=epochs, clip_norm=1.0,
        seed=seed, progress=progress,
    )  # fmt: skip
    greedy, beam = (exact(translate(model, test.source, w), test.target) for w in (1, 4))
    return Result(model, greedy, beam)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the figures, and read a few dates."""
    parser = argparse.ArgumentParser(description="Many to many: dates into ISO 8601.")
    parser.add_argument("--epochs", type=int, default=12, help="times all dates are seen")
    parser.add_argument("--seed", type=int, default=0, help="of days, weights and order")
    options = parser.parse_args(argv)
    found = run(epochs=options.epochs, seed=options.seed, progress=True)
    print(f"right in every symbol, greedy:       {found.greedy:.3f}")
    print(f"right in every symbol, beam of four: {found.beam:.3f}")
    for text in ("Thursday, 4 October 1957", "July 20, 1969", "9. 11. 1989"):
        codes = np.array([SOURCE.index(letter) for letter in text])
        (written,) = translate(found.model, [codes])
        print(f"  {text} -> {''.join(TARGET[code] for code in written)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
