"""What a model makes of many rows: outputs, losses, metrics, batch by batch.

A model is ``Sequential`` or what has its public methods. ``Adapter`` knows how the arrays of a
model lie; ``Task`` adds a loss, and is what training and evaluation have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import losses
from .batches import Rows, as_items, batches, shortened
from .parameters import (
    as_choice,
    as_real_array,
    as_size,
    as_text,
    check_good,
    check_shape,
    inside_lengths,
)
from .protocol import Interface, reads_back

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Adapter", "Batch", "Data", "Mean", "Task", "evaluate", "measured", "predict", "taken"]

LOSSES: Mapping[str, Callable[..., tuple[float, Any]]] = {
    "cross_entropy": losses.softmax_cross_entropy,
    "binary_cross_entropy": losses.binary_cross_entropy_with_logits,
    "mse": losses.mean_squared_error,
    "mae": losses.mean_absolute_error,
    "huber": losses.huber,
}


# Those that would apply the activation of a head a second time.
_ON_LOGITS = ("cross_entropy", "binary_cross_entropy")


class Data(NamedTuple):
    """Inputs, targets and weights of the same rows.

    Attributes
    ----------
    inputs
        One, or as many as the model takes.
    targets
        Of all rows.
    weights
        (N,), or None: all count the same.
    several
        Whether the model takes a tuple.
    numbers
        (N,), which of the user's rows these are.
    """

    inputs: tuple[Rows, ...]
    targets: Rows
    weights: NDArray[np.float64] | None
    several: bool
    numbers: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """What to put rows into batches by: the lengths of the first input that has some."""
        return lengths_of(self.inputs)

    def subset(self, rows: NDArray[np.int64]) -> Data:
        """Return some of the rows."""
        weights = None if self.weights is None else self.weights[rows]
        inputs = tuple(part.subset(rows) for part in self.inputs)
        return Data(inputs, self.targets.subset(rows), weights, self.several, self.numbers[rows])


class Batch(NamedTuple):
    """Some rows, as model and loss take them.

    Attributes
    ----------
    x, lengths
        What the model takes: an array and its lengths (B,) or None; tuples of such, if it takes
        several.
    y
        The targets.
    y_lengths
        (B,), the steps of y that count; None where all do, or y has no steps.
    weights
        (B,), of the rows, or None.
    numbers
        (B,), which of the user's rows these are.
    """

    x: Any
    lengths: Any
    y: NDArray[Any]
    y_lengths: NDArray[np.int64] | None
    weights: NDArray[np.float64] | None
    numbers: NDArray[np.int64]


class Adapter:
    """A model, and how its arrays lie.

    Parameters
    ----------
    model
        A ``Sequential``, or what has its methods.

    Raises
    ------
    TypeError
        If it lacks one of them.
    """

    def __init__(self, model: Any) -> None:
        needed = ("params", "load_params", "forward", "backward", "__call__")
        # A class has the methods too, but no parameters yet.
        known = not isinstance(model, type) and all(hasattr(model, name) for name in needed)
        fit = model._interface() if known and hasattr(model, "_interface") else None
        has_steps = hasattr(model, "output_lengths")
        self.per_step = has_steps if fit is None else not fit.ends_steps
        if not known or (self.per_step and not has_steps):
            hint = " (Sequential(layer) makes a model of it)" if known else ""
            raise TypeError(
                f"model: expected a Sequential or what has its methods, got {as_text(model)}{hint}"
            )
        self.model = model
        self.batch_first = bool(getattr(model, "batch_first", False))
        self.axis = 0 if self.batch_first else 1
        self.has_state = True if fit is None else fit.has_state
        # How each input fits; of a model that does not say, nothing is known.
        self._fits = model._inputs() if hasattr(model, "_inputs") else (fit,) if fit else ()

    def inputs(self, x: Any, lengths: Any) -> tuple[tuple[Rows, ...], bool]:
        """Convert and check the inputs, and tell whether the model takes a tuple of them."""
        several = isinstance(x, tuple)
        parts = x if several else (x,)
        each = lengths if several and lengths is not None else (lengths,) * len(parts)
        if several and (not isinstance(each, (tuple, list)) or len(each) != len(parts)):
            raise ValueError(f"lengths: expected a tuple of {len(parts)}, got {as_text(lengths)}")
        names = [f"x[{k}]" for k in range(len(parts))] if several else ["x"]
        rows = tuple(
            Rows(name, part, own, axis=self.axis)
            for name, part, own in zip(names, parts, each, strict=True)
        )
        if len({part.count for part in rows}) != 1:
            counts = [part.count for part in rows]
            raise ValueError(f"x: expected inputs of as many rows each, got {counts}")
        if len(rows) == len(self._fits):
            for name, part, fit in zip(names, rows, self._fits, strict=True):
                self._check_axes(name, part, fit)
        return rows, several

    def _check_axes(self, name: str, rows: Rows, fit: Interface) -> None:
        """Refuse an input with too few axes: its features or steps would be taken for its rows."""
        features = fit.needs_steps or fit.features_in is not None
        last = ["F"] if features and not fit.takes_indices else []
        layout = ["B", "T", *last] if self.batch_first else ["T", "B", *last]
        if rows.is_list:
            layout.remove("B")
        lacking = len(layout) - len(rows.shape)
        if lacking <= 0 or (rows.is_list and not rows.count):
            return
        hint, which = "", ""
        if rows.is_list:
            which = "[0]"
        elif lacking == 1:
            axis = "None" if self.batch_first == fit.needs_steps else ":, None"
            kind = "one row" if fit.needs_steps else "rows of one step"
            hint = f" ({name}[{axis}] makes {kind} of it)"
        expected = f"({', '.join(layout)}{',' if len(layout) == 1 else ''})"
        raise ValueError(f"{name}{which}: expected shape {expected}, got {rows.shape}{hint}")

    def targets(self, y: Any, inputs: tuple[Rows, ...]) -> Rows:
        """Convert the targets, of as many rows as the inputs."""
        targets = Rows("y", y, axis=self.axis if self.per_step else 0)
        count = inputs[0].count
        if targets.count != count:
            raise ValueError(f"y: expected as many rows as x, {count}, got {targets.count}")
        return targets

    def output_lengths(self, lengths: tuple[Any, ...], several: bool) -> Any:
        """Return the lengths of y for those of x; None where all steps count, or there are none."""
        if not self.per_step or all(own is None for own in lengths):
            return None
        return self.model.output_lengths(lengths if several else lengths[0])

    def output(
        self, parts: tuple[Rows, ...], several: bool, rows: NDArray[np.int64]
    ) -> tuple[NDArray[Any], Any]:
        """Return y of some rows, and its lengths."""
        x, given, lengths = taken(parts, rows, several=several)
        return self.model(x, lengths=given), self.output_lengths(lengths, several)

    def room(self, y: NDArray[Any], parts: tuple[Rows, ...], several: bool) -> NDArray[Any]:
        """Return zeros for the outputs of all rows, as long as x allows, given those of some."""
        axis = self.axis if self.per_step else 0
        shape = list(y.shape)
        shape[axis] = parts[0].count
        full = tuple(None if part.lengths is None else part.steps for part in parts)
        if (most := self.output_lengths(full, several)) is not None:
            shape[1 - axis] = int(most[0])
        return np.zeros(shape, y.dtype)


class Task(Adapter):
    """A model and its loss: how they fit together, and what they make of a batch.

    Parameters
    ----------
    model
        As of ``Adapter``.
    loss
        A name in ``LOSSES``, or a callable.

    Raises
    ------
    TypeError, ValueError
        If one of them is none, or a loss that is on logits by its name is given probabilities.
    """

    def __init__(self, model: Any, loss: str | Callable[..., tuple[float, Any]]) -> None:
        super().__init__(model)
        if isinstance(loss, str):
            self._loss = LOSSES[as_choice("loss", loss, tuple(LOSSES))]
            if loss in _ON_LOGITS and (found := _squashed(model)) is not None:
                raise ValueError(
                    f"loss: expected a model that ends in logits for {loss!r}, which has its own "
                    f"softmax or sigmoid, got {as_text(found)} at the end"
                )
        elif callable(loss):
            self._loss = loss
        else:
            raise TypeError(f"loss: expected a name or a callable, got {as_text(loss)}")
        # What functools.partial has given to one of the losses here.
        self._ignored = getattr(loss, "keywords", {}).get("ignore_index")
        self._is_binary = (
            getattr(self._loss, "func", self._loss) is losses.binary_cross_entropy_with_logits
        )

    def data(self, x: Any, y: Any, lengths: Any, weights: ArrayLike | None = None) -> Data:
        """Convert and check what ``fit`` and ``evaluate`` are given."""
        inputs, several = self.inputs(x, lengths)
        targets = self.targets(_as_zero_one(y) if self._is_binary else y, inputs)
        count = targets.count
        if not count:
            raise ValueError("x: expected at least one row, got none")
        checked = None
        if weights is not None:
            checked = as_real_array("sample_weight", weights, np.float64)
            check_shape("sample_weight", checked, (count,), "(B,)")
            good = (checked >= 0) & (checked < math.inf)
            check_good("sample_weight", checked, good, "finite values >= 0")
            if not 0 < checked.sum() < math.inf:
                raise ValueError(
                    f"sample_weight: expected a finite sum > 0, got {float(checked.sum())}"
                )
        data = Data(inputs, targets, checked, several, np.arange(count))
        self._check_steps(data)
        return data

    def _check_steps(self, data: Data) -> None:
        """Hold the lengths of ragged targets against those that the model's output will have."""
        given = data.targets.lengths
        if given is None:
            return
        expected = self.output_lengths(tuple(part.lengths for part in data.inputs), data.several)
        if not self.per_step:
            expected = np.full_like(given, given[0])
        if expected is None or np.array_equal(given, expected):
            return
        row = int(np.flatnonzero(given != expected)[0])
        why = f"as the model gives of x[{row}]" if self.per_step else "as y[0] has"
        what = "steps" if self.per_step else "values"
        raise ValueError(f"y[{row}]: expected {expected[row]} {what}, {why}, got {given[row]}")

    def batch(self, data: Data, rows: NDArray[np.int64]) -> Batch:
        """Take some rows."""
        x, given, lengths = taken(data.inputs, rows, several=data.several)
        y, _ = data.targets.take(rows)
        outer = self.output_lengths(lengths, data.several)
        if outer is not None:
            # x was cut to its longest row, and so is y.
            y = shortened(y, int(outer.max(initial=0)), self.axis)
        weights = None if data.weights is None else data.weights[rows]
        return Batch(x, given, y, outer, weights, data.numbers[rows])

    def segments(self, batch: Batch, truncate: int | None) -> Iterator[tuple[Batch, float]]:
        """Cut a batch into pieces of at most so many steps, one after the other in time.

        Each comes with its share of the batch's steps.
        """
        steps = 0 if truncate is None else batch.x.shape[1 - self.axis]
        if truncate is None or steps <= truncate:
            yield batch, 1.0
            return
        for start in range(0, steps, truncate):
            cut = slice(start, start + truncate)
            at: Any = cut if self.axis else (slice(None), cut)
            x = batch.x[at]
            length = x.shape[1 - self.axis]
            lengths = batch.lengths
            if lengths is not None:
                # A row that has ended has length 0 from here on; its state waits.
                lengths = np.clip(lengths - start, 0, length)
                if not lengths.any():
                    return
            piece = batch._replace(x=x, lengths=lengths, y=batch.y[at], y_lengths=lengths)
            yield piece, length / steps

    def judge(self, prediction: NDArray[Any], batch: Batch) -> tuple[float, NDArray[Any], float]:
        """Return the loss of a batch, its gradient, and how much counts in it."""
        options: dict[str, Any] = {}
        if batch.y_lengths is not None:
            options["lengths"] = batch.y_lengths
            if self.batch_first:
                options["batch_first"] = True
        weights = self._spread(batch)
        if weights is not None:
            options["weights"] = weights
        try:
            judged = self._loss(prediction, batch.y, **options)
        except Exception as error:
            error.add_note("in the loss, whose targets are a batch of y")
            raise
        if not isinstance(judged, tuple) or len(judged) != 2:
            raise TypeError(f"loss: expected to return (loss, gradient), got {as_text(judged)}")
        loss, gradient = judged
        return float(loss), gradient, self._amount(batch, weights)

    def _spread(self, batch: Batch) -> NDArray[np.float64] | None:
        """Spread the weights of the rows over the elements of the loss."""
        if batch.weights is None:
            return None
        axis = self.axis if self.per_step else 0
        ones = (1,) * (batch.y.ndim - axis - 1)
        return np.broadcast_to(batch.weights.reshape(*(1,) * axis, -1, *ones), batch.y.shape)

    def _amount(self, batch: Batch, weights: NDArray[np.float64] | None) -> float:
        """Return what a mean over batches weighs a batch with: what counts in it."""
        if weights is None and self._ignored is None:
            if batch.y_lengths is None:
                return float(batch.y.size)
            return float(batch.y_lengths.sum()) * math.prod(batch.y.shape[2:])
        counted = self._counted(batch)
        return float(counted.sum() if weights is None else weights[counted].sum())

    def counts(self, data: Data) -> bool:
        """Tell whether anything counts: inside the lengths, not ignored, with a weight."""
        for rows in batches(len(data.numbers), 256):
            batch = self.batch(data, rows)
            if self._amount(batch, self._spread(batch)) > 0:
                return True
        return False

    def _counted(self, batch: Batch) -> NDArray[np.bool_]:
        """Return which elements of y count, but for their weights."""
        y = batch.y
        counted = np.ones(y.shape, bool)
        if batch.y_lengths is not None:
            steps = y.shape[1 - self.axis]
            inside = inside_lengths(batch.y_lengths, steps, batch_first=self.batch_first)
            counted &= inside.reshape(inside.shape + (1,) * (y.ndim - 2))
        if self._ignored is not None:
            counted &= y != self._ignored
        return counted

    def pairs(self, prediction: NDArray[Any], batch: Batch) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return predictions and targets of the rows, or of the steps, that count."""
        counted = self._counted(batch)
        axes = 2 if self.per_step else 1
        rows = np.any(counted, axis=tuple(range(axes, counted.ndim)))
        return prediction[rows], batch.y[rows]


def taken(
    parts: tuple[Rows, ...], rows: NDArray[np.int64], *, several: bool
) -> tuple[Any, Any, tuple[NDArray[np.int64] | None, ...]]:
    """Return x and lengths of some rows as a model takes them, and the lengths of every input."""
    arrays, lengths = zip(*(part.take(rows) for part in parts), strict=True)
    if not several:
        return arrays[0], lengths[0], lengths
    return arrays, None if all(own is None for own in lengths) else lengths, lengths


class Mean:
    """A weighted mean that grows."""

    def __init__(self) -> None:
        self._sum = self._amount = 0.0

    def add(self, value: float, amount: float) -> None:
        """Take in a value of that weight."""
        self._sum += value * amount
        self._amount += amount

    @property
    def value(self) -> float:
        """The mean; 0 of nothing."""
        return self._sum / self._amount if self._amount else 0.0


def _squashed(model: Any) -> Any:
    """Return the layer, if there is one, that makes probabilities of a model's outputs."""
    layers = getattr(getattr(model, "decoder", model), "layers", None)
    if isinstance(layers, Mapping):
        for layer in reversed([*layers.values()]):
            # Pooling and dropout leave what the last layer with features gives.
            if layer._interface().features_out is not None:
                return _squashed(layer)
        return None
    return model if getattr(model, "activation", None) in ("softmax", "sigmoid") else None


def _as_zero_one(y: Any) -> Any:
    """Make numbers of bools, in arrays, tables and lists: yes is 1, no is 0."""
    if isinstance(y, (list, tuple)):
        numbers = map(_as_zero_one, y)
        return tuple(numbers) if isinstance(y, tuple) else list(numbers)
    (y,) = as_items([y])
    if isinstance(y, np.ndarray) and y.dtype.kind == "b":
        return y.astype(np.int8)
    return int(y) if isinstance(y, (bool, np.bool_)) else y


def lengths_of(parts: tuple[Rows, ...]) -> NDArray[np.int64] | None:
    """Return the lengths of the first input that has some."""
    return next((part.lengths for part in parts if part.lengths is not None), None)


def predict(
    model: Any, x: Any, lengths: Any = None, *, batch_size: int = 256
) -> NDArray[Any] | list[NDArray[Any]]:
    """Return the model's outputs for many rows, batch by batch, without dropout.

    Parameters
    ----------
    model
        A ``Sequential``, or what has its methods.
    x
        As in ``fit``: an array in the model's layout, a list of rows (T_i, F), arrays, tables or
        nested lists, or a tuple of such.
    lengths : default None
        As in ``fit``.
    batch_size : default 256
        Rows at once.

    Returns
    -------
    ndarray or list of ndarray
        In the order of the rows: (B, ...) where the model ends the steps; else in the model's
        layout, zeros beyond the lengths; for a list of rows a list of arrays (T_i, ...).

    Raises
    ------
    TypeError, ValueError
        As ``fit`` for these arguments, and from the model.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> model = rc.Sequential(rc.GRU(2, 3, seed=0), rc.Linear(3, 1, seed=1))
    >>> [y.shape for y in rc.predict(model, [np.ones((4, 2)), np.ones((2, 2))])]
    [(4, 1), (2, 1)]
    """
    adapter = Adapter(model)
    parts, several = adapter.inputs(x, lengths)
    size = as_size("batch_size", batch_size)
    axis = adapter.axis if adapter.per_step else 0
    listed = adapter.per_step and any(part.is_list for part in parts)
    cases: list[Any] = [None] * parts[0].count
    if not cases and any(part.is_list for part in parts):
        if listed:
            return cases
        raise ValueError("x: expected at least one row in a list, got none")
    joined: NDArray[Any] | None = None
    # Of no rows at all the model says what shape their outputs have.
    for rows in [*batches(parts[0].count, size, lengths_of(parts))] or [np.arange(0)]:
        y, steps = adapter.output(parts, several, rows)
        if listed:
            # Beside a list, what came as an array without lengths has all its steps.
            for k, row in enumerate(rows):
                cases[row] = np.take(y, k, axis=axis)[: None if steps is None else steps[k]]
            continue
        if joined is None:
            joined = adapter.room(y, parts, several)
        if axis:
            joined[: len(y), rows] = y
        elif steps is None:
            joined[rows] = y
        else:
            joined[rows, : y.shape[1]] = y
    return cases if joined is None else joined


def evaluate(
    model: Any,
    x: Any,
    y: Any,
    lengths: Any = None,
    *,
    loss: str | Callable[..., tuple[float, Any]] = "cross_entropy",
    sample_weight: ArrayLike | None = None,
    metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
    batch_size: int = 256,
    truncate: int | None = None,
) -> dict[str, float]:
    """Return the loss, and metrics, of a model on rows, without dropout.

    Parameters
    ----------
    model, x, y, lengths, loss, sample_weight
        As in ``fit``.
    metrics : default None
        Name to a callable of predictions (N, ...) and targets (N, ...): of all rows, or of all
        steps that count.
    batch_size : default 256
        Rows at once.
    truncate : default None
        Steps at once, the state being carried on: the same figures (but for a ``Conv1d``, which
        begins each piece with zeros) in less memory.

    Returns
    -------
    dict
        "loss", and every metric by its name.

    Raises
    ------
    TypeError, ValueError
        As ``fit``.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> model = rc.Sequential(rc.GRU(2, 3, seed=0), rc.Pooling("last"), rc.Linear(3, 4, seed=1))
    >>> x, y = np.zeros((5, 6, 2)), np.array([0, 1, 2, 3, 0, 1])
    >>> accuracy = lambda p, t: float((p.argmax(-1) == t).mean())
    >>> found = rc.evaluate(model, x, y, metrics={"accuracy": accuracy})
    >>> round(found["loss"], 4), sorted(found)
    (1.3863, ['accuracy', 'loss'])
    """
    task = Task(model, loss)
    data = task.data(x, y, lengths, sample_weight)
    size = as_size("batch_size", batch_size)
    steps = as_segment(task, data, truncate)
    return measured(task, data, as_metrics(metrics), size, steps)


def measured(
    task: Task,
    data: Data,
    metrics: Mapping[str, Callable[[Any, Any], float]],
    batch_size: int,
    truncate: int | None,
) -> dict[str, float]:
    """Return what ``evaluate`` does, of checked arguments."""
    mean = Mean()
    seen: list[tuple[Any, Any]] = []
    for rows in batches(len(data.numbers), batch_size, data.lengths):
        state = None
        for batch, _ in task.segments(task.batch(data, rows), truncate):
            if truncate is None:
                prediction = task.model(batch.x, lengths=batch.lengths)
            else:
                prediction, state = task.model(
                    batch.x, state, lengths=batch.lengths, return_state=True
                )
            value, _, amount = task.judge(prediction, batch)
            mean.add(value, amount)
            if metrics:
                seen.append(task.pairs(prediction, batch))
    found = {"loss": mean.value}
    if metrics:
        predictions, targets = (np.concatenate(part) for part in zip(*seen, strict=True))
        found |= {name: float(metric(predictions, targets)) for name, metric in metrics.items()}
    return found


def as_metrics(metrics: object) -> Mapping[str, Callable[[Any, Any], float]]:
    """Check names and callables."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: expected a mapping of names to callables, got {metrics!r}")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not callable(metric):
            raise TypeError(
                f"metrics: expected names and callables, got {as_text(name)}: {as_text(metric)}"
            )
        if name in ("", "loss"):
            raise ValueError(f"metrics: expected names other than '' and 'loss', got {name!r}")
    return metrics


def as_segment(task: Task, data: Data, truncate: object) -> int | None:
    """Check ``truncate`` against model and data, which must let a state be carried on."""
    if truncate is None:
        return None
    steps = as_size("truncate", truncate)
    why = ""
    if data.several:
        why = "with several inputs"
    elif not task.per_step:
        why = "for a model that ends the steps"
    elif not task.has_state:
        why = "for a model without a state"
    elif not np.array_equal(task.model.output_lengths([steps]), [steps]):
        why = "for a model that changes the steps"
    elif reads_back(task.model):
        why = "for a bidirectional model, whose reverse direction comes from what is still to come"
    if why:
        raise ValueError(f"truncate: expected None {why}, got {steps}")
    return steps
