"""Many to many, not aligned: one text is read to its end, then another one is written.

::

                                    w   o   r   d  (end)
                                    ^   ^   ^   ^   ^
    [LSTM] -> [LSTM] -> [LSTM] -> [LSTM -> LSTM -> ...]
      ^         ^         ^         ^   ^   ^   ^   ^
      w         r         d     (start) w   o   r   d

    given: "wrd"                    what it wrote is what it reads next

The encoder's final state is all that the decoder gets, and what the decoder gets wrong teaches the
encoder through that state. In training the decoder reads the true symbols (teacher forcing), in use
its own: the likeliest at each step (greedy), or those of a beam search.

Two tasks, each tested on what was not trained on, and right only if every symbol is:

*Dates*, written in five ways, become ISO 8601: "Monday, 9 March 1998" is 1998-03-09. The texts come
from a rule, for days from 1900 to 2099, but the network sees examples alone, and has to find out
about months, missing zeros and order.

*Vowels* come back: "wrd" is "word". The words are those of Python's help topics, and many skeletons
have several good answers, so that no answer is sure and a beam search finds a little more.

    python examples/encoder_decoder.py

The figures to beat: for dates 0, since every day has an answer of its own; for words the share of a
program that puts "e", the usual vowel, between any two consonants and nowhere else.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
import pictures
from datasets import Codes

import rnncore as rc

# What is read and what is to be written, of each row.
Pairs: TypeAlias = list[tuple[str, str]]

START, END = 0, 1  # the symbols of texts follow


class Task(NamedTuple):
    """Pairs to train on, and others to test on."""

    train: Pairs
    test: Pairs


class Result(NamedTuple):
    """Shares of test texts that came out right in every symbol."""

    greedy: float
    beam: float
    baseline: float


# ---- Tasks ---------------------------------------------------------------------------------------

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
VOWELS = "aeiou"


def ways_to_write(day: datetime.date) -> list[str]:
    """Write a day as people do.

    >>> ways_to_write(datetime.date(1998, 3, 9))[:3]
    ['9 March 1998', 'March 9, 1998', 'Monday, 9 March 1998']
    >>> ways_to_write(datetime.date(1998, 3, 9))[3:]
    ['Mon 9 Mar 1998', '9. 3. 1998']
    """
    # Not by strftime, whose names depend on the machine's language.
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    return [
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{weekday}, {day.day} {month} {day.year}",
        f"{weekday[:3]} {day.day} {month[:3]} {day.year}",
        f"{day.day}. {day.month}. {day.year}",
    ]


def dates(count: int = 5000, tests: int = 300, seed: int = 0) -> Task:
    """Draw different days, each in one way of writing."""
    rng = np.random.default_rng(seed)
    first = datetime.date(1900, 1, 1).toordinal()
    after = datetime.date(2100, 1, 1).toordinal()
    days = rng.choice(np.arange(first, after), count + tests, replace=False)
    pairs = []
    for day in map(datetime.date.fromordinal, days.tolist()):
        pairs.append((ways_to_write(day)[rng.integers(5)], day.isoformat()))
    return Task(pairs[tests:], pairs[:tests])


def skeleton(word: str) -> str:
    """Take the vowels out of a word.

    >>> skeleton("vowel")
    'vwl'
    """
    return "".join(letter for letter in word if letter not in VOWELS)


def vowels() -> Task:
    """Return words with and without vowels."""
    pairs = [(skeleton(word), word) for word in datasets.words() if skeleton(word)]
    train, test = datasets.held_out(len(pairs), 0.15)
    return Task([pairs[k] for k in train], [pairs[k] for k in test])


# ---- Model ---------------------------------------------------------------------------------------


class Translator:
    """An encoder and a decoder, and the symbols that they read and write."""

    def __init__(self, pairs: Pairs, hidden: int, seed: int) -> None:
        self.source = sorted(set("".join(source for source, _ in pairs)))
        self.target = sorted(set("".join(target for _, target in pairs)))
        self.longest = max(len(target) for _, target in pairs) + 1  # its end included
        symbols = len(self.target) + 2
        self.model = rc.EncoderDecoder(
            rc.Sequential(
                rc.Embedding(len(self.source), 24, seed=seed),
                rc.LSTM(24, hidden, seed=seed + 1),
            ),
            rc.Sequential(
                rc.Embedding(symbols, 24, seed=seed + 2),
                rc.LSTM(24, hidden, seed=seed + 3),
                rc.Linear(hidden, symbols, seed=seed + 4),
            ),
        )

    def fit(self, pairs: Pairs, epochs: int, seed: int, progress: bool) -> rc.History:
        """Train by teacher forcing."""
        targets = [[self.target.index(letter) + 2 for letter in target] for _, target in pairs]
        read = [self.read(source) for source, _ in pairs]
        before = [np.array([START, *target]) for target in targets]
        after = [np.array([*target, END]) for target in targets]
        optimizer = rc.Adam(self.model, lr=0.01)
        return rc.fit(
            self.model, (read, before), after, optimizer=optimizer,
            schedule=rc.CosineLR(optimizer, epochs), epochs=epochs, clip_norm=1.0,
            seed=seed, progress=progress,
        )  # fmt: skip

    def read(self, source: str) -> Codes:
        """Return the codes of a text to read."""
        return np.array([self.source.index(letter) for letter in source])

    def write(self, sources: Sequence[str], width: int = 1) -> list[str]:
        """Return what the model makes of texts: greedily, or by a beam search."""
        lengths = np.array([len(source) for source in sources])
        codes = np.zeros((lengths.max(), len(sources)), np.int64)  # (T, B)
        for k, source in enumerate(sources):
            codes[: len(source), k] = self.read(source)
        written = self.model.translate(
            codes, lengths=lengths, start=START, end=END, length=self.longest, width=width
        )
        # An untrained model may write the start, which has no letter.
        letters = ["?", "?", *self.target]
        return ["".join(letters[code] for code in row) for row in written]

    def share(self, pairs: Pairs, width: int = 1) -> float:
        """Return the share of texts that come out right in every symbol."""
        written = self.write([source for source, _ in pairs], width)
        return exact(written, pairs)


def exact(written: Sequence[str], pairs: Pairs) -> float:
    """Return the share of texts that are as they should be."""
    return float(np.mean([own == target for own, (_, target) in zip(written, pairs, strict=True)]))


def learn(
    task: Task, *, hidden: int = 96, epochs: int = 8, seed: int = 0, progress: bool = False
) -> tuple[Translator, Result]:
    """Train on a task, and measure on its test texts."""
    translator = Translator([*task.train, *task.test], hidden, seed)
    translator.fit(task.train, epochs, seed, progress)
    baseline = exact(["e".join(source) for source, _ in task.test], task.test)
    greedy, beam = translator.share(task.test), translator.share(task.test, width=5)
    return translator, Result(greedy, beam, baseline)


def draw(figure: Any, results: dict[str, Result]) -> None:
    """Show the shares that came out right, task by task."""
    ax = figure.add_subplot(
        ylabel="right in every symbol, %", title="texts that were not trained on"
    )
    labels = {"greedy": "greedy", "beam": "beam of five", "baseline": "to beat"}
    for k, (name, label) in enumerate(labels.items()):
        heights = [100 * getattr(found, name) for found in results.values()]
        ax.bar([place + 0.25 * k for place in range(len(results))], heights, 0.25, label=label)
    ax.set_xticks([place + 0.25 for place in range(len(results))], list(results))
    ax.legend()


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the figures beside those to beat, and a few texts of the tests."""
    parser = argparse.ArgumentParser(description="Many to many: one text read, another written.")
    parser.add_argument("--seed", type=int, default=0, help="of days, weights and order")
    pictures.add_option(parser)
    options = parser.parse_args(argv)
    seed = options.seed
    results = {}
    print("right in every symbol:")
    for name, task, epochs in (("dates", dates(seed=seed), 8), ("vowels", vowels(), 20)):
        translator, found = learn(task, epochs=epochs, seed=seed, progress=True)
        results[name] = found
        print(
            f"{name:<7} greedy {found.greedy:.3f}, beam of five {found.beam:.3f} "
            f"(to beat: {found.baseline:.3f})"
        )
        sources, targets = zip(*task.test[:: len(task.test) // 6], strict=True)
        for source, target, own in zip(sources, targets, translator.write(sources, 5), strict=True):
            print(f"  {source} -> {own}" + ("" if own == target else f" ({target})"))
    if options.out:
        pictures.save(options.out / "encoder_decoder.png", lambda figure: draw(figure, results))
    return 0


if __name__ == "__main__":
    datasets.run_program(main)
