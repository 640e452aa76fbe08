"""Train a character model on real text: it learns which character comes next.

    python examples/char_lm.py                    # the text that every Python carries
    python examples/char_lm.py --file novel.txt   # any text in UTF-8
    python examples/char_lm.py --help             # cells, sizes, rates, time

The model is embedding -> stacked recurrent layers -> linear -> softmax. It is trained by truncated
backpropagation through time: the text is cut into ``--batch`` streams that are read side by side,
``--truncate`` characters at a time. States are carried from one such segment to the next,
gradients are not. All of this is ``rc.fit``; here are only the streams and the learning rate.

The default text is that of pydoc's help topics, in alphabetical order. Topics quote each other at
length, so a paragraph that has been seen is left out (white space aside): otherwise a third of the
validation text would also be in the training text, and memory would pass for skill.

Train and validation: the last tenth of every document is for validation; a document is a topic, or
the whole of ``--file``. The figure to beat is that of a trigram count model on the same split.
What is saved are the weights of the best validation figure, not the last ones.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

# The recurrent layers have threads of their own; those of NumPy's BLAS, which wait by spinning,
# take the cores from them. To be said before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

import rnncore as rc
from rnncore.schedules import Schedule

Codes: TypeAlias = NDArray[np.int64]
Number = TypeVar("Number", int, float)
Recurrent: TypeAlias = rc.RNN | rc.LSTM | rc.GRU | rc.MGU

CELLS: dict[str, type[Recurrent]] = {"rnn": rc.RNN, "lstm": rc.LSTM, "gru": rc.GRU, "mgu": rc.MGU}
VALIDATION_SHARE = 0.1
# More would be faster, but each begins without context, which costs a little.
VALIDATION_STREAMS = 8
VALIDATION_SEGMENT = 256
BIT = math.log(2)  # in nats


# ---- Text ----------------------------------------------------------------------------------------


def topic_documents() -> list[str]:
    """Return pydoc's help topics in alphabetical order, every paragraph once."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    documents = []
    for _, topic in sorted(topics.items()):
        paragraphs = []
        for paragraph in topic.split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                paragraphs.append(paragraph.strip("\n"))
        if paragraphs:
            documents.append("\n\n".join(paragraphs) + "\n\n")
    return documents


def split(documents: Sequence[str], share: float = VALIDATION_SHARE) -> tuple[str, str]:
    """Cut off the end of every document for validation; join the rest, and the ends."""
    cuts = [len(document) - int(share * len(document)) for document in documents]
    train = "".join(text[:cut] for text, cut in zip(documents, cuts, strict=True))
    validation = "".join(text[cut:] for text, cut in zip(documents, cuts, strict=True))
    return train, validation


class Vocabulary:
    """The characters of the training text, numbered from 1; 0 stands for every other one.

    >>> vocabulary = Vocabulary.of("banana")
    >>> vocabulary.encode("nab?")
    array([3, 1, 2, 0])
    >>> vocabulary.decode([3, 1, 2])
    'nab'
    """

    def __init__(self, code_points: NDArray[np.int64]) -> None:
        self.code_points = code_points

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Make the vocabulary of a text, in the order of the code points."""
        return cls(np.array(sorted(map(ord, set(text))), np.int64))

    @property
    def size(self) -> int:
        """V, the number of codes."""
        return len(self.code_points) + 1

    def encode(self, text: str) -> Codes:
        """Return the code of every character (N,)."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        places = np.searchsorted(self.code_points, points)
        known = self.code_points[np.minimum(places, len(self.code_points) - 1)] == points
        return np.where(known, places + 1, 0)

    def decode(self, codes: Sequence[int] | Codes) -> str:
        """Return the text of codes; the unknown becomes U+FFFD."""
        return "".join(chr(self.code_points[code - 1]) if code else "\ufffd" for code in codes)


def streams(codes: Codes, rows: int) -> Codes:
    """Cut codes (N,) into equal pieces that are read side by side: (T + 1, rows).

    A piece ends with the character with which the next one begins, so that every character but the
    first is predicted once; up to ``rows - 1`` at the end are left over.

    >>> streams(np.arange(8), 2)
    array([[0, 3],
           [1, 4],
           [2, 5],
           [3, 6]])
    """
    steps = (len(codes) - 1) // rows
    pieces: Codes = codes[np.arange(steps + 1)[:, None] + steps * np.arange(rows)]
    return pieces


# ---- Baseline ------------------------------------------------------------------------------------


class Trigram:
    """A count model: each order is interpolated with the next lower one, down to the uniform.

    With n(h c) the times that c follows h, n(h) their sum over c, u(h) the number of different c
    that follow h, and h' for h without its first character::

        P(c | h) = (n(h c) + k u(h) P(c | h')) / (n(h) + k u(h))

    k = 1 is the method of Witten and Bell (1991), after Bell, Cleary and Witten (1990): the more
    different continuations a context has shown, the less its counts are trusted.
    """

    def __init__(self, text: str) -> None:
        # One more for the characters that the text does not have.
        self._classes = len(set(text)) + 1
        self._counts: Counter[str] = Counter()
        for order in (1, 2, 3):
            self._counts.update(text[i : i + order] for i in range(len(text) - order + 1))
        self._totals: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        for gram, count in self._counts.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1

    def probability(self, gram: str, strength: float) -> float:
        """Return P(last character of gram | the ones before it), for k = strength."""
        if not gram:
            return 1.0 / self._classes
        lower = self.probability(gram[1:], strength)
        context = gram[:-1]
        if not self._totals[context]:
            return lower
        weight = strength * self._kinds[context]
        return (self._counts[gram] + weight * lower) / (self._totals[context] + weight)

    def bits(self, text: str, strength: float) -> float:
        """Return the mean of -log2 P over every character but the first."""
        grams = Counter(text[max(i - 2, 0) : i + 1] for i in range(1, len(text)))
        total = sum(n * math.log2(self.probability(gram, strength)) for gram, n in grams.items())
        return -total / (len(text) - 1)


def trigram_bits(train: str, validation: str) -> float:
    """Return what a trigram count model reaches on the validation text, in bits per character.

    The strength of its smoothing is the best of a few on the last tenth of the training text, for
    counts of the rest; the counts are then those of the whole.
    """
    cut = len(train) - max(len(train) // 10, 2)
    part, held_out = Trigram(train[:cut]), train[cut:]
    strengths = [2.0**power for power in range(-3, 6)]
    best = min(strengths, key=lambda strength: part.bits(held_out, strength))
    return Trigram(train).bits(validation, best)


# ---- Model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What a model is made of."""

    cell: str
    layers: int
    hidden: int
    embedding: int
    dropout: float = 0.0
    recurrent_dropout: float = 0.0


class Model:
    """Embedding -> recurrent layers -> linear: the logits of the next character.

    Sizes: T steps, B rows, V characters in the vocabulary. ``chain`` goes from codes (T, B) to
    logits (T, B, V).
    """

    def __init__(self, vocabulary: Vocabulary, sizes: Sizes, seed: int) -> None:
        self.vocabulary = vocabulary
        self.chain = rc.Sequential(
            {
                "embedding": rc.Embedding(vocabulary.size, sizes.embedding, seed=seed),
                "recurrent": CELLS[sizes.cell](
                    sizes.embedding,
                    sizes.hidden,
                    num_layers=sizes.layers,
                    dropout=sizes.dropout,
                    recurrent_dropout=sizes.recurrent_dropout,
                    seed=seed + 1,
                ),
                "head": rc.Linear(sizes.hidden, vocabulary.size, seed=seed + 2),
            }
        )

    def save(self, path: Path) -> None:
        """Write weights and vocabulary to one safetensors file."""
        rc.save(path, {**self.chain.layers, "vocabulary": self.vocabulary.code_points})

    @classmethod
    def load(cls, path: Path) -> Model:
        """Make the model of a file; all that ``__init__`` wants can be read off its shapes.

        Dropout is not among it: the model is for use, not for more training.
        """
        arrays = rc.load(path)
        rows, hidden = arrays["recurrent.weight_hh_l0"].shape
        sizes = Sizes(
            cell={1: "rnn", 2: "mgu", 3: "gru", 4: "lstm"}[rows // hidden],
            layers=sum(name.startswith("recurrent.weight_hh_l") for name in arrays),
            hidden=hidden,
            embedding=arrays["embedding.weight"].shape[1],
        )
        model = cls(Vocabulary(arrays["vocabulary"]), sizes, seed=0)
        rc.load(path, into={**model.chain.layers, "vocabulary": model.vocabulary.code_points})
        return model

    def __repr__(self) -> str:
        """Show the layers."""
        count = sum(array.size for array in self.chain.params.values())
        return "\n".join([*map(repr, self.chain.layers.values()), f"{count:,} parameters"])


def bits(logits: NDArray[Any], targets: Codes) -> tuple[float, NDArray[Any]]:
    """Return the cross-entropy in bits per character, and its gradient."""
    nats, gradient = rc.softmax_cross_entropy(logits, targets)
    return nats / BIT, gradient / BIT


def validation_pair(codes: Codes) -> tuple[Codes, Codes]:
    """Return inputs and targets (T, B) of all codes (N,)."""
    pieces = streams(codes, min(VALIDATION_STREAMS, len(codes) - 1))
    return pieces[:-1], pieces[1:]


def evaluate(model: Model, codes: Codes) -> float:
    """Return the mean bits per character of codes (N,), without dropout, the state carried on."""
    inputs, targets = validation_pair(codes)
    return rc.evaluate(model.chain, inputs, targets, loss=bits, truncate=VALIDATION_SEGMENT)["loss"]


def sample(model: Model, prompt: str, length: int, temperature: float, seed: int) -> str:
    """Let the model continue a prompt, one character after the other.

    The chain is frozen: its weights are packed once, and a step keeps its own state.
    """
    rng = np.random.default_rng(seed)
    stream = model.chain.freeze()
    codes = model.vocabulary.encode(prompt).tolist()
    for code in codes[:-1]:
        stream.step(code)
    for _ in range(length):
        logits = stream.step(codes[-1])
        logits[0] = -np.inf  # the unknown is no character that could be written
        codes.append(int(rc.sample(logits, rng, temperature=temperature)))
    return prompt + model.vocabulary.decode(codes[len(prompt) :])


# ---- Training ------------------------------------------------------------------------------------


class StraightToZero(Schedule):
    """Lower the rate along a line to zero, whose end can be brought nearer.

    The last epochs then average out the noise of the first.

    >>> optimizer = rc.SGD({"w": np.zeros(2)}, lr=1.0)
    >>> schedule = StraightToZero(optimizer, 4)
    >>> schedule.step()
    >>> optimizer.lr
    0.75
    >>> schedule.end_at(2)
    >>> optimizer.lr
    0.5
    """

    def __init__(self, optimizer: Any, steps: int) -> None:
        super().__init__(optimizer, optimizer.lr, {"steps": steps})

    def _rate(self, step: float) -> float:
        return self._settings["base_lr"] * max(1.0 - step / self._settings["steps"], 0.0)

    def end_at(self, steps: float) -> None:
        """Bring the end nearer, and go on along the new line."""
        self._settings["steps"] = min(self._settings["steps"], steps)
        self._optimizer.lr = self._rate(self._settings["step"])


def train(
    model: Model, codes: Codes, validation: Codes, options: argparse.Namespace, path: Path
) -> rc.History:
    """Train a model; keep the weights of its best validation figure, in a file too.

    The rate falls to zero at the end of the epochs, or where the time ends at the speed so far. So
    a machine with time to spare has the same result every time.
    """
    pieces = streams(codes, options.batch)
    optimizer = rc.Adam(model.chain, lr=options.lr)
    per_epoch = math.ceil((len(pieces) - 1) / options.truncate)
    schedule = StraightToZero(optimizer, options.epochs * per_epoch)

    def after_epoch(history: rc.History) -> None:
        done = len(history.update_loss)
        schedule.end_at(max(done * options.seconds // sum(history.seconds), done))
        if history.best_epoch == len(history.train_loss) - 1:
            model.save(path)

    history = rc.fit(
        model.chain,
        pieces[:-1],
        pieces[1:],
        loss=bits,
        optimizer=optimizer,
        schedule=schedule,
        schedule_every="update",
        epochs=options.epochs,
        batch_size=options.batch,
        truncate=options.truncate,
        shuffle=False,
        clip_norm=options.clip / BIT,  # the option is in nats, as the figures of others are
        validation=validation_pair(validation),
        max_seconds=options.seconds,
        callback=after_epoch,
        seed=options.seed,
    )
    model.save(path)
    return history


def draw(path: Path, history: rc.History, trigram: float) -> str:
    """Draw the learning curve, and return a line that tells where, or what is missing."""
    try:
        axes = history.plot()
    except ImportError as error:
        return f"no learning curve: {error}"
    axes.axhline(trigram, linestyle="--", color="tab:red", label="trigram, validation")
    axes.set_ylabel("bits per character")
    axes.legend()
    axes.figure.savefig(path, dpi=120)
    return f"learning curve: {path}"


# ---- Command line --------------------------------------------------------------------------------


def number(
    kind: type[Number], expected: str, holds: Callable[[Number], bool]
) -> Callable[[str], Number]:
    """Make a reader of an option's text that says what it expected."""

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return read


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    count = number(int, "a whole number of at least 1", lambda value: value >= 1)
    seed = number(int, "a whole number from 0 to below 2**32", lambda value: 0 <= value < 2**32)
    positive = number(float, "a number greater than 0", lambda value: 0 < value < math.inf)
    share = number(float, "a number from 0 to below 1", lambda value: 0 <= value < 1)

    parser = argparse.ArgumentParser(
        description="Train a character model: embedding, stacked recurrent layers, linear.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model = parser.add_argument_group("model")
    model.add_argument("--cell", choices=tuple(CELLS), default="lstm", help="recurrent cell")
    model.add_argument("--layers", type=count, default=2, help="stacked recurrent layers")
    model.add_argument("--hidden", type=count, default=160, help="units of each layer")
    model.add_argument("--embedding", type=count, default=64, help="features of a character")
    model.add_argument("--dropout", type=share, default=0.0, help="between the layers")
    model.add_argument("--recurrent-dropout", type=share, default=0.0, help="inside the layers")
    training = parser.add_argument_group("training")
    training.add_argument("--lr", type=positive, default=0.008, help="Adam's rate at the start")
    training.add_argument("--clip", type=positive, default=1.0, help="largest norm of gradients")
    training.add_argument("--batch", type=count, default=16, help="streams read side by side")
    training.add_argument("--truncate", type=count, default=32, help="steps gradients go back")
    training.add_argument("--epochs", type=count, default=6, help="times the text is read")
    training.add_argument("--seconds", type=positive, default=90.0, help="training takes at most")
    training.add_argument("--seed", type=seed, default=0, help="of weights, dropout and sample")
    files = parser.add_argument_group("files and sample")
    files.add_argument(
        "--file",
        type=Path,
        default=argparse.SUPPRESS,
        help="text in UTF-8, in place of pydoc's topics",
    )
    files.add_argument("--out", type=Path, default=Path(), help="folder for model and curve")
    files.add_argument("--prompt", default="The ", help="how the sample begins")
    files.add_argument("--sample", type=count, default=500, help="characters to generate")
    files.add_argument("--temperature", type=positive, default=0.7, help="below 1: less daring")
    return parser


def read_texts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, str]:
    """Return the texts to train and to validate on, or end with a usage error."""
    try:
        documents = [options.file.read_text("utf-8")] if options.file else topic_documents()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"argument --file: cannot read it as text in UTF-8: {error}")
    train, validation = split(documents)
    least = max(
        math.ceil((options.batch + 1) * options.truncate / (1 - VALIDATION_SHARE)),
        math.ceil(2 / VALIDATION_SHARE),
    )
    total = len(train) + len(validation)
    if total < least:
        parser.error(
            f"argument --file: expected at least {least:,} characters for --batch {options.batch} "
            f"and --truncate {options.truncate}, got {total:,}"
        )
    return train, validation


def make_model(
    parser: argparse.ArgumentParser, options: argparse.Namespace, vocabulary: Vocabulary
) -> Model:
    """Return the model of the options, or end with a usage error."""
    sizes = Sizes(
        cell=options.cell,
        layers=options.layers,
        hidden=options.hidden,
        embedding=options.embedding,
        dropout=options.dropout,
        recurrent_dropout=options.recurrent_dropout,
    )
    try:
        return Model(vocabulary, sizes, options.seed)
    except (ValueError, MemoryError) as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Train, report, save, and check what was saved."""
    parser = command_line()
    options = parser.parse_args(argv, argparse.Namespace(file=None))
    if not options.prompt:
        parser.error("argument --prompt: expected at least one character")
    train_text, validation_text = read_texts(parser, options)
    vocabulary = Vocabulary.of(train_text)
    model = make_model(parser, options, vocabulary)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    train_codes = vocabulary.encode(train_text)
    validation = vocabulary.encode(validation_text)

    print(f"text: {len(train_codes):,} characters to train on, {len(validation):,} to validate on")
    print(f"vocabulary: {vocabulary.size - 1} characters and one for all others")
    trigram = trigram_bits(train_text, validation_text)
    print(f"trigram count model: validation {trigram:.3f} bits/char")
    print(model, flush=True)

    path = options.out / "char_lm.safetensors"
    history = train(model, train_codes, validation, options, path)
    if history.stopped == "interrupted":
        print("interrupted: going on with the best weights so far")
    best = evaluate(model, validation)
    print(f"best validation: {best:.3f} bits/char, trigram {trigram:.3f}")
    print(draw(options.out / "char_lm.png", history, trigram))

    saved = Model.load(path)
    again = evaluate(saved, validation)
    # Not bit for bit: linear layers use NumPy's BLAS, which promises no such thing.
    if not math.isclose(again, best, rel_tol=1e-6):
        raise RuntimeError(f"{path}: expected {best} bits/char after reload, got {again}")
    print(f"model: {path}, reloaded: validation {again:.3f} bits/char")
    print(f"sample at temperature {options.temperature:g}:\n")
    print(sample(saved, options.prompt, options.sample, options.temperature, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
