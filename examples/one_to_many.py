"""One to many: from one letter a whole word is written, letter after letter.

::

      o       r       d     (end)
      ^       ^       ^       ^
    [GRU] -> [GRU] -> [GRU] -> [GRU]
      ^       ^       ^       ^
      w       o       r       d

    given   what it wrote is what it reads next

Training shows the network real words and asks for the next letter at each step; generation feeds
it its own choices. A low temperature writes what is most usual, a high one takes risks; ``top_k``
cuts off what is least likely.

    python examples/one_to_many.py

The data are the words of Python's help topics; a tenth of them is kept for the test. The figure to
beat is that of counting which letter follows which.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pictures
from datasets import Codes

import rnncore as rc

END = 0  # the letters are 1 to 26
SIZE = 1 + len(datasets.LETTERS)


class Result(NamedTuple):
    """The trained model, and its bits per letter on words that it has not seen."""

    model: rc.Sequential
    bits: float
    baseline: float


def encoded(word: str) -> Codes:
    """Return the codes of a word and of its end.

    >>> encoded("abz")
    array([ 1,  2, 26,  0])
    """
    return np.array([datasets.LETTERS.index(letter) + 1 for letter in word] + [END])


def decoded(codes: Sequence[int] | Codes) -> str:
    """Return the word of codes, up to its end.

    >>> decoded([1, 2, 26, 0, 0])
    'abz'
    """
    letters = [datasets.LETTERS[code - 1] if code else " " for code in codes]
    return "".join(letters).split(" ")[0]


def bigram_bits(train: Sequence[Codes], test: Sequence[Codes]) -> float:
    """Return the bits per letter of counts of pairs, one added to each count."""
    counts = np.ones((SIZE, SIZE))
    for row in train:
        np.add.at(counts, (row[:-1], row[1:]), 1)
    p = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log2(np.concatenate([p[row[:-1], row[1:]] for row in test]))))


def learn(*, epochs: int = 15, seed: int = 0, progress: bool = False) -> Result:
    """Train on nine tenths of the words, and measure on the rest."""
    rows = [encoded(word) for word in datasets.words()]
    train, test = ([rows[k] for k in part] for part in datasets.held_out(len(rows), 0.1))
    model = rc.Sequential(
        rc.Embedding(SIZE, 16, seed=seed),
        rc.GRU(16, 96, seed=seed + 1),
        rc.Dropout(0.3, seed=seed + 2),
        rc.Linear(96, SIZE, seed=seed + 3),
    )
    optimizer = rc.Adam(model, lr=0.01)
    rc.fit(
        model, [row[:-1] for row in train], [row[1:] for row in train], optimizer=optimizer,
        schedule=rc.CosineLR(optimizer, epochs), epochs=epochs, clip_norm=1.0,
        seed=seed, progress=progress,
    )  # fmt: skip
    nats = rc.evaluate(model, [row[:-1] for row in test], [row[1:] for row in test])["loss"]
    return Result(model, nats / math.log(2), bigram_bits(train, test))


def write(
    model: rc.Sequential,
    letters: str,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Write one word from each first letter."""
    start = np.array([[datasets.LETTERS.index(letter) + 1 for letter in letters]])  # (1, B)
    codes = rc.generate(
        model.freeze(len(letters)), start, 14,
        temperature=temperature, top_k=top_k, end=END, seed=seed,
    )  # fmt: skip
    return [first + decoded(column) for first, column in zip(letters, codes.T, strict=True)]


def draw(figure: Any, shares: dict[str, float]) -> None:
    """Show how often what is written is a word, for each way to write."""
    ax = figure.add_subplot(ylabel="words of the topics, %", title="safe and daring")
    ax.bar(list(shares), [100 * share for share in shares.values()])


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the figures beside those to beat, and write."""
    parser = argparse.ArgumentParser(description="One to many: words from their first letters.")
    parser.add_argument("--epochs", type=int, default=15, help="times all words are seen")
    parser.add_argument(
        "--letters", default="abcdefgilmnoprstuw", help="first letters to go on from"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and words")
    pictures.add_option(parser)
    options = parser.parse_args(argv)
    if not options.letters or set(options.letters) - set(datasets.LETTERS):
        parser.error(f"argument --letters: expected letters a to z, got {options.letters!r}")
    found = learn(epochs=options.epochs, seed=options.seed, progress=True)
    print(f"bits per letter on new words: {found.bits:.2f}")
    print(f"counts of pairs:              {found.baseline:.2f}")
    known = set(datasets.words())
    shares = {}
    for temperature, top_k in ((0.0, None), (0.5, None), (1.0, 5), (1.0, None), (1.5, None)):
        # The first of each letter is shown, all twenty are counted.
        made = write(
            found.model, 20 * options.letters,
            temperature=temperature, top_k=top_k, seed=options.seed,
        )  # fmt: skip
        share = sum(word in known for word in made) / len(made)
        letters = "all letters" if top_k is None else f"{top_k} letters"
        setting = f"temperature {temperature:g}, {letters}"
        shares[setting.replace(", ", "\n")] = share
        print(f"{setting}: {100 * share:.0f} % are words of the topics")
        print(" ", " ".join(made[: len(options.letters)]))
    if options.out:
        pictures.save(options.out / "one_to_many.png", lambda figure: draw(figure, shares))
    return 0


if __name__ == "__main__":
    datasets.run_program(main)
