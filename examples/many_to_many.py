"""Many to many, aligned: for each letter of a text without spaces, whether a word begins there.

::

      1  0  0  1  0   1  0  0  0         1: a word begins
      ^  ^  ^  ^  ^   ^  ^  ^  ^
     [ -> GRU -> and <- GRU <- ]
      ^  ^  ^  ^  ^   ^  ^  ^  ^
      t  h  e  i  s   t  e  x  t

Each step has an answer of its own, so that input and output are equally long; the phrases are not,
and come as a list. What follows matters as much as what came before ("in" or "into"?), so the layer
reads in both directions; the program also trains one that reads forwards alone.

    python examples/many_to_many.py

The data are runs of words from Python's help topics; a tenth of them is kept for the test. The
figure to beat is that of a table: what was usual for these five letters around the place.

A language model is the other aligned mapping: ``examples/char_lm.py``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pictures
from datasets import Codes

import rnncore as rc

ALPHABET = datasets.LETTERS + "'"


class Data(NamedTuple):
    """Letters (T_i,) without spaces, and tags (T_i,): 1 where a word begins."""

    x: list[Codes]
    y: list[Codes]

    def subset(self, rows: Codes) -> Data:
        """Return some of the rows."""
        return Data([self.x[k] for k in rows], [self.y[k] for k in rows])


class Result(NamedTuple):
    """F scores of the beginnings of words, in phrases that were not trained on."""

    model: rc.Sequential
    score: float
    forwards: float
    baseline: float


def tagged(phrases: Sequence[str]) -> Data:
    """Take the spaces out of phrases.

    >>> x, y = tagged(["a bad cab"])
    >>> x[0], y[0]
    (array([0, 1, 0, 3, 2, 0, 1]), array([1, 1, 0, 0, 1, 0, 0]))
    """
    x = [np.array([ALPHABET.index(letter) for letter in p if letter != " "]) for p in phrases]
    y = [np.array([int(k == 0) for word in p.split() for k in range(len(word))]) for p in phrases]
    return Data(x, y)


def spaced(codes: Codes, tags: Codes) -> str:
    """Put the spaces back.

    >>> spaced(np.array([0, 1, 0, 3]), np.array([1, 1, 0, 0]))
    'a bad'
    """
    pairs = zip(codes, tags, strict=True)
    return "".join(" " * int(tag) + ALPHABET[code] for code, tag in pairs).strip()


def f_score(found: Sequence[Codes], y: Sequence[Codes]) -> float:
    """Return the F score of 1 among all but the first tags of each row.

    >>> f_score([np.array([1, 1, 0, 1])], [np.array([1, 0, 0, 1])])
    0.6666666666666666
    """
    ours, true = (np.concatenate([row[1:] for row in rows]) for rows in (found, y))
    return float(2 * (ours & true).sum() / (ours.sum() + true.sum()))


def by_table(train: Data, test: Data) -> list[Codes]:
    """Tag by what was usual for the letter and the two on each side of it; 0 for what is new."""

    def contexts(row: Codes) -> list[tuple[int, ...]]:
        padded = np.pad(row, 2, constant_values=-1)
        return [tuple(window) for window in np.lib.stride_tricks.sliding_window_view(padded, 5)]

    votes: Counter[tuple[int, ...]] = Counter()
    for row, tags in zip(*train, strict=True):
        for context, tag in zip(contexts(row), tags, strict=True):
            votes[context] += 2 * int(tag) - 1
    return [np.array([int(votes[context] > 0) for context in contexts(row)]) for row in test.x]


def make(bidirectional: bool, seed: int) -> rc.Sequential:
    """Return a tagger: the logits of both tags at each step."""
    gru = rc.GRU(16, 48, bidirectional=bidirectional, seed=seed + 1)
    head = rc.Linear(gru.output_size, 2, seed=seed + 2)
    return rc.Sequential(rc.Embedding(len(ALPHABET), 16, seed=seed), gru, head)


def tag(model: rc.Sequential, x: list[Codes]) -> list[Codes]:
    """Return the likelier tag of every letter."""
    return [logits.argmax(axis=1) for logits in rc.predict(model, x)]


def run(*, epochs: int = 8, seed: int = 0, progress: bool = False) -> Result:
    """Train on nine tenths of the phrases, and measure on the rest."""
    data = tagged(datasets.phrases())
    train, test = (data.subset(part) for part in datasets.held_out(len(data.x), 0.1))
    scores = {}
    for bidirectional in (False, True):
        model = make(bidirectional, seed)
        optimizer = rc.Adam(model, lr=0.01)
        rc.fit(
            model, train.x, train.y, optimizer=optimizer, schedule=rc.CosineLR(optimizer, epochs),
            epochs=epochs, clip_norm=1.0, seed=seed, progress=progress,
        )  # fmt: skip
        scores[bidirectional] = f_score(tag(model, test.x), test.y)
    return Result(model, scores[True], scores[False], f_score(by_table(train, test), test.y))


def draw(figure: Any, model: rc.Sequential, text: str) -> None:
    """Show for each letter of a text how probable it is that a word begins there."""
    (codes,), _ = tagged([text])
    logits = np.asarray(rc.predict(model, [codes])[0], np.float64)  # (T, 2)
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    ax = figure.add_subplot(ylabel="probability", title="where words begin")
    ax.bar(range(len(text)), p)
    ax.set_xticks(range(len(text)), list(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the figures beside those to beat, and put spaces into a few phrases."""
    parser = argparse.ArgumentParser(description="Many to many, aligned: where do words begin?")
    parser.add_argument("--epochs", type=int, default=8, help="times all phrases are seen")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order")
    pictures.add_option(parser)
    options = parser.parse_args(argv)
    found = run(epochs=options.epochs, seed=options.seed, progress=True)
    print(f"F score, both directions: {found.score:.3f}")
    print(f"F score, forwards alone:  {found.forwards:.3f}")
    print(f"F score, table:           {found.baseline:.3f}")
    for text in ("thestateiscarriedon", "agradientisnotafunction", "whatfollowsmattersaswell"):
        (codes,), _ = tagged([text])
        print(f"  {text} -> {spaced(codes, tag(found.model, [codes])[0])}")
    if options.out:
        pictures.save(
            options.out / "many_to_many.png", lambda figure: draw(figure, found.model, text)
        )
    return 0


if __name__ == "__main__":
    datasets.run_program(main)
