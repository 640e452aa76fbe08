"""One call that trains: batches, truncation, validation, early stopping, checkpoints.

``fit`` asks of a model what ``Sequential`` has: ``params``, ``load_params``, ``__call__``,
``forward``, ``backward`` and, to know its layout, ``batch_first`` and ``_interface``. It computes
nothing itself: the losses, optimizers and schedules are those of this package, or yours.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import losses, serialization
from .batches import Rows, batches, shortened
from .optimizers import Adam, Optimizer, clip_grad_norm, clip_grad_value
from .parameters import (
    as_choice,
    as_flag,
    as_real,
    as_seed,
    as_size,
    as_text,
    inside_lengths,
)
from .schedules import Schedule

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["History", "evaluate", "fit", "predict"]

LOSSES: Mapping[str, Callable[..., tuple[float, Any]]] = {
    "cross_entropy": losses.softmax_cross_entropy,
    "binary_cross_entropy": losses.binary_cross_entropy_with_logits,
    "mse": losses.mean_squared_error,
    "mae": losses.mean_absolute_error,
    "huber": losses.huber,
}
# Between two lines of progress where there is no terminal to draw a bar on.
_SECONDS_BETWEEN_LINES = 5.0


@dataclass
class History:
    """What a training did, epoch by epoch.

    Attributes
    ----------
    train_loss
        Mean loss of each epoch, over all that counts, while the weights moved (with dropout).
    validation_loss
        Loss on the validation rows after each epoch; empty without any.
    lr
        The learning rate at the end of each epoch.
    grad_norm
        Mean norm of all gradients together, before clipping.
    seconds
        What each epoch took, validation included.
    metrics
        Name to its value on the validation rows after each epoch.
    update_loss
        The loss of every update.
    best_epoch
        Index of the epoch whose weights are the best; None before the first one has ended.
    stopped
        Why it ended: "epochs", "patience", "seconds", "callback" or "interrupted".
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    update_loss: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    stopped: str = ""

    @property
    def watched(self) -> list[float]:
        """The curve that early stopping looks at: that of validation, or of training without it."""
        return self.validation_loss or self.train_loss

    def plot(self, ax: Any = None) -> Any:
        """Draw the learning curve; returns the matplotlib Axes. Needs the extra ``plot``."""
        return importlib.import_module("rnncore.plot").learning_curve(self, ax)

    def verdict(self, **options: Any) -> Any:
        """Say whether the kept weights over-fit, under-fit or are fine: ``rnncore.verdict``.

        Parameters
        ----------
        **options
            Those of ``rnncore.verdict``; ``at`` is the best epoch unless given.

        Raises
        ------
        ValueError
            If there was no validation, or no epoch has ended.
        """
        if not self.validation_loss:
            raise ValueError("verdict: expected a training with validation, got one without")
        judge = importlib.import_module("rnncore.diagnosis").verdict
        at = -1 if self.best_epoch is None else self.best_epoch
        return judge(self.train_loss, self.validation_loss, **{"at": at, **options})

    def __repr__(self) -> str:
        """Show how far it went and how well."""
        if not self.train_loss:
            return "<History of 0 epochs>"
        best = self.watched[self.best_epoch] if self.best_epoch is not None else math.nan
        kind = "validation" if self.validation_loss else "train"
        return f"<History of {len(self.train_loss)} epochs, best {kind} loss {best:.6g}>"


class _Data(NamedTuple):
    """Inputs, targets and weights of the same rows."""

    inputs: tuple[Rows, ...]
    targets: Rows
    weights: NDArray[np.float64] | None  # (N,)
    several: bool  # whether the model takes a tuple

    @property
    def size(self) -> int:
        return self.targets.count

    def subset(self, rows: NDArray[np.int64]) -> _Data:
        weights = None if self.weights is None else self.weights[rows]
        inputs = tuple(part.subset(rows) for part in self.inputs)
        return _Data(inputs, self.targets.subset(rows), weights, self.several)


class _Batch(NamedTuple):
    """Some rows, as model and loss take them."""

    x: Any
    lengths: Any
    y: NDArray[Any]
    y_lengths: NDArray[np.int64] | None  # of y, where it has steps
    weights: NDArray[np.float64] | None  # of the rows
    steps: int | None  # of x; None where there are several inputs


class _Task:
    """A model and its loss: how they fit together, and what they make of a batch."""

    def __init__(self, model: Any, loss: str | Callable[..., tuple[float, Any]]) -> None:
        for name in ("params", "load_params", "forward", "backward", "_interface"):
            if not hasattr(model, name) or isinstance(model, type):
                raise TypeError(
                    f"model: expected a Sequential or what has its methods, got {as_text(model)}"
                )
        self.model = model
        self.batch_first = bool(getattr(model, "batch_first", False))
        self.axis = 0 if self.batch_first else 1
        self.per_step = not model._interface().ends_steps
        if isinstance(loss, str):
            self.loss = LOSSES[as_choice("loss", loss, tuple(LOSSES))]
        elif callable(loss):
            self.loss = loss
        else:
            raise TypeError(f"loss: expected a name or a callable, got {as_text(loss)}")
        self._ignored = getattr(loss, "keywords", {}).get("ignore_index")

    def rows(self, x: Any, y: Any, lengths: Any, weights: ArrayLike | None = None) -> _Data:
        """Convert and check what ``fit`` and ``evaluate`` are given."""
        inputs, several = self.inputs(x, lengths)
        targets = Rows("y", y, axis=self.axis if self.per_step else 0)
        if any(part.count != targets.count for part in inputs):
            raise ValueError(
                f"y: expected as many rows as x, {inputs[0].count}, got {targets.count}"
            )
        if not targets.count:
            raise ValueError("x: expected at least one row, got none")
        checked = None
        if weights is not None:
            checked = np.asarray(weights, np.float64)
            if checked.shape != (targets.count,):
                raise ValueError(
                    f"sample_weight: expected shape (B,) = ({targets.count},), got {checked.shape}"
                )
            if not (np.isfinite(checked) & (checked >= 0)).all():
                raise ValueError("sample_weight: expected finite numbers >= 0, got others")
        data = _Data(inputs, targets, checked, several)
        self._check_steps(data)
        return data

    def inputs(self, x: Any, lengths: Any) -> tuple[tuple[Rows, ...], bool]:
        """Convert the inputs; a tuple of them, if the model takes several."""
        several = isinstance(x, tuple)
        parts = x if several else (x,)
        each = lengths if several and lengths is not None else (lengths,) * len(parts)
        if several and len(each) != len(parts):
            raise ValueError(f"lengths: expected a tuple of {len(parts)}, got {as_text(lengths)}")
        names = [f"x[{k}]" for k in range(len(parts))] if several else ["x"]
        rows = [
            Rows(name, part, own, axis=self.axis)
            for name, part, own in zip(names, parts, each, strict=True)
        ]
        if len({part.count for part in rows}) > 1:
            counts = [part.count for part in rows]
            raise ValueError(f"x: expected inputs of as many rows each, got {counts}")
        return tuple(rows), several

    def _check_steps(self, data: _Data) -> None:
        """Hold the lengths of ragged targets against those that the model's output will have."""
        given = data.targets.lengths
        expected = self.output_lengths(tuple(part.lengths for part in data.inputs), data.several)
        if given is None or expected is None or np.array_equal(given, expected):
            return
        row = int(np.flatnonzero(given != expected)[0])
        raise ValueError(
            f"y[{row}]: expected {expected[row]} steps, as the model gives of x[{row}], "
            f"got {given[row]}"
        )

    def output_lengths(self, lengths: tuple[Any, ...], several: bool) -> Any:
        """Return the lengths of y for those of x; None where all steps count, or there are none."""
        if not self.per_step or all(own is None for own in lengths):
            return None
        return self.model.output_lengths(lengths if several else lengths[0])

    def batch(self, data: _Data, rows: NDArray[np.int64]) -> _Batch:
        """Take some rows."""
        taken = [part.take(rows) for part in data.inputs]
        y, _ = data.targets.take(rows)
        lengths = tuple(own for _, own in taken)
        outer = self.output_lengths(lengths, data.several)
        if outer is not None:
            # x was cut to its longest row, and so is y.
            y = shortened(y, int(outer.max(initial=0)), self.axis)
        weights = None if data.weights is None else data.weights[rows]
        if data.several:
            x = tuple(array for array, _ in taken)
            return _Batch(x, lengths, y, outer, weights, None)
        array = taken[0][0]
        return _Batch(array, lengths[0], y, outer, weights, array.shape[1 - self.axis])

    def segments(self, batch: _Batch, truncate: int | None) -> Iterator[_Batch]:
        """Cut a batch into pieces of at most ``truncate`` steps, one after the other in time."""
        if truncate is None or batch.steps is None or batch.steps <= truncate:
            yield batch
            return
        for start in range(0, batch.steps, truncate):
            cut = np.s_[start : start + truncate]
            at: Any = cut if self.axis else np.s_[:, cut]
            x = batch.x[at]
            lengths = batch.lengths
            if lengths is not None:
                lengths = np.clip(lengths - start, 0, x.shape[1 - self.axis])
                if not lengths.any():
                    return
            yield _Batch(x, lengths, batch.y[at], lengths, batch.weights, x.shape[1 - self.axis])

    def judge(self, prediction: NDArray[Any], batch: _Batch) -> tuple[float, Any, float]:
        """Return the loss of a batch, its gradient, and how much counts in it."""
        options: dict[str, Any] = {}
        if batch.y_lengths is not None:
            options["lengths"] = batch.y_lengths
            if self.batch_first:
                options["batch_first"] = True
        weights = self._weights(prediction, batch)
        if weights is not None:
            options["weights"] = weights
        loss, gradient = self.loss(prediction, batch.y, **options)
        return float(loss), gradient, self._amount(batch, weights)

    def _weights(self, prediction: NDArray[Any], batch: _Batch) -> NDArray[np.float64] | None:
        """Spread the weights of the rows over the elements of the loss."""
        if batch.weights is None:
            return None
        rows = batch.weights
        axis = self.axis if self.per_step else 0
        shape = batch.y.shape
        return np.broadcast_to(
            rows.reshape((1,) * axis + (-1,) + (1,) * (len(shape) - axis - 1)), shape
        )

    def _amount(self, batch: _Batch, weights: NDArray[np.float64] | None) -> float:
        """Return what a mean over batches weighs a batch with: what counts in it."""
        if weights is None and batch.y_lengths is None and self._ignored is None:
            return float(batch.y.size)
        counted = np.ones(batch.y.shape) if weights is None else weights
        return float(counted[self.inside(batch)].sum())

    def inside(self, batch: _Batch) -> NDArray[np.bool_]:
        """Return which targets count, by row or by row and step."""
        shape = batch.y.shape[: 2 if self.per_step else 1]
        inside = np.ones(shape, bool)
        if batch.y_lengths is not None:
            inside = inside_lengths(
                batch.y_lengths, shape[1 - self.axis], batch_first=self.batch_first
            )
        return inside if self._ignored is None else inside & (batch.y != self._ignored)


class _Totals:
    """A mean over batches."""

    def __init__(self) -> None:
        self._sum = self._amount = 0.0

    def add(self, value: float, amount: float) -> None:
        self._sum += value * amount
        self._amount += amount

    @property
    def mean(self) -> float:
        return self._sum / self._amount if self._amount else 0.0


def predict(
    model: Any, x: Any, lengths: Any = None, *, batch_size: int = 256
) -> NDArray[Any] | list[NDArray[Any]]:
    """Return the model's outputs for many rows, batch by batch, without dropout.

    Parameters
    ----------
    model
        A ``Sequential``, or what has its methods.
    x
        As in ``fit``: an array in the model's layout, a list of rows, or a tuple of such.
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
    task = _Task(model, "mse")
    parts, several = task.inputs(x, lengths)
    size = as_size("batch_size", batch_size)
    axis = task.axis if task.per_step else 0
    found: list[tuple[NDArray[np.int64], NDArray[Any], Any]] = []
    for rows in batches(parts[0].count, size, _lengths_of(parts)):
        taken = [part.take(rows) for part in parts]
        own = tuple(lengths for _, lengths in taken)
        y = _called(model, tuple(array for array, _ in taken), own, several)
        found.append((rows, y, task.output_lengths(own, several)))
    if task.per_step and any(part.is_list for part in parts):
        cases: list[Any] = [None] * parts[0].count
        for rows, y, steps in found:
            for k, row in enumerate(rows):
                cases[row] = np.take(y, k, axis=axis)[: steps[k]]
        return cases
    return _joined(found, parts[0].count, axis)


def _called(model: Any, arrays: tuple[Any, ...], lengths: tuple[Any, ...], several: bool) -> Any:
    return (
        model(arrays, lengths=None if all(own is None for own in lengths) else lengths)
        if several
        else model(arrays[0], lengths=lengths[0])
    )


def _joined(
    found: list[tuple[NDArray[np.int64], NDArray[Any], Any]], count: int, axis: int
) -> NDArray[Any]:
    """Put the outputs of batches together, as long as the longest."""
    if not found:
        return np.zeros((0,))
    first = found[0][1]
    shape = list(first.shape)
    shape[axis] = count
    if axis or (first.ndim > 2 and any(steps is not None for *_, steps in found)):
        shape[1 - axis] = max(y.shape[1 - axis] for _, y, _ in found)
    joined = np.zeros(shape, first.dtype)
    for rows, y, _ in found:
        if axis:
            joined[: len(y), rows] = y
        elif y.ndim > 2:
            joined[rows, : y.shape[1]] = y
        else:
            joined[rows] = y
    return joined


def _lengths_of(parts: tuple[Rows, ...]) -> NDArray[np.int64] | None:
    """Return what to bucket by: the lengths of the first input that has some."""
    return next((part.lengths for part in parts if part.lengths is not None), None)


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
    model, x, y, lengths, loss, sample_weight, truncate
        As in ``fit``.
    metrics : default None
        Name to a callable of predictions (N, ...) and targets (N, ...): of all rows, or of all
        steps that count.
    batch_size : default 256
        Rows at once.

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
    task = _Task(model, loss)
    data = task.rows(x, y, lengths, sample_weight)
    size = as_size("batch_size", batch_size)
    return _evaluated(task, data, metrics or {}, size, _truncation(task, truncate))


def _evaluated(
    task: _Task,
    data: _Data,
    metrics: Mapping[str, Callable[[Any, Any], float]],
    batch_size: int,
    truncate: int | None,
) -> dict[str, float]:
    total = _Totals()
    seen: list[tuple[Any, Any]] = []
    for rows in batches(data.size, batch_size, _lengths_of(data.inputs)):
        state = None
        for batch in task.segments(task.batch(data, rows), truncate):
            if truncate is None:
                prediction = task.model(batch.x, lengths=batch.lengths)
            else:
                prediction, state = task.model(
                    batch.x, state, lengths=batch.lengths, return_state=True
                )
            value, _, amount = task.judge(prediction, batch)
            total.add(value, amount)
            if metrics:
                # Of all rows, or of all steps that count.
                inside = task.inside(batch)
                seen.append((prediction[inside], batch.y[inside]))
    found = {"loss": total.mean}
    if metrics:
        predictions, targets = (np.concatenate(part) for part in zip(*seen, strict=True))
        found |= {name: float(metric(predictions, targets)) for name, metric in metrics.items()}
    return found


def _truncation(task: _Task, truncate: object) -> int | None:
    """Check ``truncate`` against the model."""
    if truncate is None:
        return None
    steps = as_size("truncate", truncate)
    if not task.per_step:
        raise ValueError("truncate: expected None for a model that ends the steps, got some")
    if not task.model._interface().has_state:
        raise ValueError("truncate: expected None for a model without a state, got some")
    if task.model.output_lengths([steps]) != [steps]:
        raise ValueError("truncate: expected None for a model that changes the steps, got some")
    return steps


def fit(
    model: Any,
    x: Any,
    y: Any,
    *,
    loss: str | Callable[..., tuple[float, Any]] = "cross_entropy",
    lengths: Any = None,
    sample_weight: ArrayLike | None = None,
    optimizer: Optimizer | None = None,
    schedule: Schedule | Callable[[Optimizer], Schedule] | None = None,
    schedule_every: Literal["epoch", "update"] = "epoch",
    epochs: int = 100,
    batch_size: int = 32,
    truncate: int | None = None,
    bucket: bool = True,
    shuffle: bool = True,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    validation: Any = None,
    metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    augment: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None,
    checkpoint: Any = None,
    resume: bool = False,
    max_seconds: float | None = None,
    progress: bool = True,
    seed: int | None = 0,
    callback: Callable[[History], object] | None = None,
) -> History:
    """Train a model in place, and return what happened.

    Each epoch goes over all rows once, in batches; each batch, or each segment of it, is an update.
    With validation or ``patience`` the model has the weights of its best epoch at the end, else
    those of the last; after Ctrl-C too, which ends the training and not the program.

    Parameters
    ----------
    model
        A ``Sequential``, or what has its methods, such as ``EncoderDecoder``.
    x
        An array in the model's layout, (T, B, F) or with ``batch_first`` (B, T, F), integers
        without the last axis in front of an ``Embedding``; or a list of arrays (T_i, F), one a row,
        which are padded batch by batch; or a tuple of such, for a model of several inputs.
    y
        Targets. Where the model ends the steps (``Pooling``): (B, ...). Else for every step, in the
        layout of x; a list of arrays (T_i, ...) with a list of rows.
    loss : default "cross_entropy"
        "cross_entropy", "binary_cross_entropy" (on logits), "mse", "mae", "huber"; or a callable
        ``(prediction, target) -> (loss, gradient)``, a mean over what counts. It is given
        ``lengths``, and ``batch_first=True``, where steps are ragged, and ``weights`` where rows
        are weighted; ``functools.partial`` gives options to the losses of this package.
    lengths : default None
        Integers (B,): row b of x counts up to step ``lengths[b]``. A tuple, for several inputs.
    sample_weight : default None
        (B,), a weight >= 0 for every row.
    optimizer : default None
        Made for the model's parameters. None: ``Adam(model)``.
    schedule : default None
        Of the optimizer, or a callable that makes it of the optimizer. ``ReduceLROnPlateau`` sees
        the validation loss, or the training loss without validation.
    schedule_every : default "epoch"
        Whether the schedule steps after every epoch or every "update".
    epochs : default 100
        How often to go over the rows at most.
    batch_size : default 32
        Rows of an update.
    truncate : default None
        k >= 1: truncated backpropagation through time. A batch is cut into segments of k steps,
        each an update; the state is carried on from one to the next, its gradient is not. None: no
        cut.
    bucket : default True
        Whether ragged rows of like lengths share a batch: less padding, a little less chance.
    shuffle : default True
        Whether every epoch has an order of its own. False keeps the order, as streams want it.
    clip_norm, clip_value : default None
        Limits of the gradients: of their joint norm, or of every element.
    validation : default None
        (x, y) or (x, y, lengths) to measure after every epoch; or a share, such as 0.1, of the
        rows, drawn at random and left out of the training.
    metrics : default None
        As in ``evaluate``, on the validation rows.
    patience : default None
        Stop after so many epochs without a better loss (of validation, or of training without it).
    min_delta : default 0
        By how much a loss must be lower to be better.
    augment : default None
        ``(x, lengths, rng) -> (x, lengths)``, applied to every batch of the training alone.
    checkpoint : default None
        A file to write after every epoch, whole or not at all: weights, best weights, optimizer,
        schedule, history.
    resume : default False
        Whether to go on where the file ends, if there is one: bit for bit as if never stopped.
    max_seconds : default None
        Stop after the epoch in which so much time has passed.
    progress : default True
        A bar of tqdm on a terminal (extra ``progress``), else a line now and then, on standard
        error.
    seed : default 0
        Of the order of rows, the share for validation, and ``augment``; None draws one.
    callback : default None
        Called with the history after every epoch; what is true ends the training.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, alone or beside others; from model, loss or optimizer too.
    FloatingPointError
        If a loss or a gradient is NaN or infinite: the message names epoch, update and parameter.
        The model then has the best weights so far.
    OSError
        If the checkpoint cannot be written or read.

    References
    ----------
    Williams and Peng, An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories, 1990 (truncation). Prechelt, Early stopping - but when?, 1998.

    Examples
    --------
    >>> import numpy as np, rnncore as rc
    >>> rng = np.random.default_rng(0)
    >>> x = [rng.standard_normal((n, 1)) for n in rng.integers(3, 9, size=64)]
    >>> y = np.array([int(row.sum() > 0) for row in x])
    >>> model = rc.Sequential(rc.GRU(1, 8, seed=0), rc.Pooling("last"), rc.Linear(8, 2, seed=1))
    >>> history = rc.fit(model, x, y, optimizer=rc.Adam(model, lr=0.02), epochs=20, progress=False)
    >>> history.train_loss[-1] < 0.3 < history.train_loss[0]
    True
    """
    task = _Task(model, loss)
    data = task.rows(x, y, lengths, sample_weight)
    seed = as_seed(seed)
    data, held = _held_out(task, data, validation, seed)
    own = Adam(model) if optimizer is None else optimizer
    if not isinstance(own, Optimizer):
        raise TypeError(f"optimizer: expected an optimizer or None, got {as_text(optimizer)}")
    plan = _Plan(
        epochs=as_size("epochs", epochs),
        batch_size=as_size("batch_size", batch_size),
        truncate=_truncation(task, truncate),
        bucket=as_flag("bucket", bucket),
        shuffle=as_flag("shuffle", shuffle),
        clip_norm=_limit("clip_norm", clip_norm),
        clip_value=_limit("clip_value", clip_value),
        metrics=metrics or {},
        patience=None if patience is None else as_size("patience", patience),
        min_delta=as_real("min_delta", min_delta),
        augment=augment,
        every_update=as_choice("schedule_every", schedule_every, ("epoch", "update")) == "update",
        checkpoint=None if checkpoint is None else Path(checkpoint),
        max_seconds=_limit("max_seconds", max_seconds),
        seed=seed,
        callback=callback,
    )
    run = _Run(task, data, held, own, _scheduled(schedule, own), plan)
    if as_flag("resume", resume):
        run.resume()
    with _Progress(run.rows_in_all, as_flag("progress", progress)) as bar:
        return run.run(bar)


class _Plan(NamedTuple):
    """The checked arguments of ``fit``."""

    epochs: int
    batch_size: int
    truncate: int | None
    bucket: bool
    shuffle: bool
    clip_norm: float | None
    clip_value: float | None
    metrics: Mapping[str, Callable[[Any, Any], float]]
    patience: int | None
    min_delta: float
    augment: Callable[[Any, Any, Any], tuple[Any, Any]] | None
    every_update: bool
    checkpoint: Path | None
    max_seconds: float | None
    seed: int
    callback: Callable[[History], object] | None


def _limit(name: str, value: object) -> float | None:
    """Check a number > 0, or None."""
    if value is None:
        return None
    number = as_real(name, value)
    if not number > 0:
        raise ValueError(f"{name}: expected a number > 0 or None, got {as_text(value)}")
    return number


def _scheduled(schedule: Any, optimizer: Optimizer) -> Schedule | None:
    if schedule is None or isinstance(schedule, Schedule):
        return schedule
    made = schedule(optimizer) if callable(schedule) else None
    if not isinstance(made, Schedule):
        raise TypeError(
            f"schedule: expected a schedule or a callable that makes one, got {as_text(schedule)}"
        )
    return made


def _held_out(task: _Task, data: _Data, validation: Any, seed: int) -> tuple[_Data, _Data | None]:
    """Return the rows to train on, and those to validate on."""
    if validation is None:
        return data, None
    if isinstance(validation, tuple):
        if len(validation) not in (2, 3):
            raise ValueError(
                f"validation: expected (x, y) or (x, y, lengths), got {len(validation)} items"
            )
        x, y, lengths = (*validation, None)[:3]
        return data, task.rows(x, y, lengths)
    share = as_real("validation", validation)
    count = round(share * data.size)
    if not 0 < share < 1 or not 0 < count < data.size:
        raise ValueError(
            f"validation: expected a share that leaves rows on both sides of {data.size}, "
            f"got {as_text(validation)}"
        )
    order = np.random.default_rng([seed, 0]).permutation(data.size)
    return data.subset(np.sort(order[count:])), data.subset(np.sort(order[:count]))


class _Run:
    """A training on its way."""

    def __init__(
        self,
        task: _Task,
        data: _Data,
        held: _Data | None,
        optimizer: Optimizer,
        schedule: Schedule | None,
        plan: _Plan,
    ) -> None:
        self.task, self.data, self.held = task, data, held
        self.optimizer, self.schedule, self.plan = optimizer, schedule, plan
        self.history = History(metrics={name: [] for name in plan.metrics})
        self._best = {name: array.copy() for name, array in task.model.params.items()}
        self._began = time.perf_counter()

    @property
    def rows_in_all(self) -> int:
        """Rows that all epochs have together, less those that are done."""
        return (self.plan.epochs - len(self.history.train_loss)) * self.data.size

    def run(self, bar: _Progress) -> History:
        """Go on to the end."""
        history = self.history
        history.stopped = ""
        try:
            while not history.stopped and len(history.train_loss) < self.plan.epochs:
                self._epoch(bar)
                self._after_epoch(bar)
        except KeyboardInterrupt:
            # An update may be half done: only what an epoch left is whole.
            history.stopped = "interrupted"
            self._restore()
        except FloatingPointError:
            self._restore()
            raise
        else:
            history.stopped = history.stopped or "epochs"
            if self.held is not None or self.plan.patience is not None:
                self._restore()
        return history

    def _restore(self) -> None:
        self.task.model.load_params(self._best)

    def _epoch(self, bar: _Progress) -> None:
        """Go over all rows once."""
        plan, history = self.plan, self.history
        epoch = len(history.train_loss)
        start = time.perf_counter()
        # A generator of its own: an epoch needs to know nothing of those before.
        rng = np.random.default_rng([plan.seed, 1 + epoch])
        lengths = _lengths_of(self.data.inputs) if plan.bucket else None
        total, norms = _Totals(), _Totals()
        order = rng if plan.shuffle else None
        for rows in batches(self.data.size, plan.batch_size, lengths, order):
            state = None
            batch = self._augmented(self.task.batch(self.data, rows), rng)
            for segment in self.task.segments(batch, plan.truncate):
                loss, amount, norm, state = self._update(segment, state)
                total.add(loss, amount)
                norms.add(norm, 1.0)
            bar.advance(len(rows), total.mean)
        history.train_loss.append(total.mean)
        history.grad_norm.append(norms.mean)
        if self.held is not None:
            found = _evaluated(
                self.task, self.held, plan.metrics, max(plan.batch_size, 256), plan.truncate
            )
            history.validation_loss.append(found.pop("loss"))
            for name, value in found.items():
                history.metrics[name].append(value)
        history.lr.append(self.optimizer.lr)
        history.seconds.append(time.perf_counter() - start)

    def _augmented(self, batch: _Batch, rng: np.random.Generator) -> _Batch:
        if self.plan.augment is None:
            return batch
        x, lengths = self.plan.augment(batch.x, batch.lengths, rng)
        if batch.steps is None:
            return batch._replace(x=x, lengths=lengths)
        outer = self.task.output_lengths((lengths,), several=False)
        return batch._replace(
            x=x, lengths=lengths, y_lengths=outer, steps=x.shape[1 - self.task.axis]
        )

    def _update(self, batch: _Batch, state: Any) -> tuple[float, float, float, Any]:
        """Make one step of the optimizer; give loss, what counts, norm, and the state after."""
        model, plan = self.task.model, self.plan
        # A state is handed on between segments alone: not every model takes one.
        given = {} if state is None else {"state": state}
        prediction, tape = model.forward(batch.x, lengths=batch.lengths, **given)
        after = tape.state if plan.truncate is not None else None
        loss, gradient, amount = self.task.judge(prediction, batch)
        if not math.isfinite(loss):
            self._refuse("the loss", loss)
        gradients = model.backward(tape, gradient).params
        if plan.clip_value is not None:
            self._check(gradients)
            clip_grad_value(gradients, plan.clip_value)
        norm = clip_grad_norm(gradients, math.inf if plan.clip_norm is None else plan.clip_norm)
        if not math.isfinite(norm):
            self._check(gradients)
            self._refuse("the norm of the gradients", norm)
        self.optimizer.step(gradients)
        self.history.update_loss.append(loss)
        if self.schedule is not None and plan.every_update:
            self.schedule.step(*self._metric(loss))
        return loss, amount, norm, after

    def _check(self, gradients: Mapping[str, NDArray[Any]]) -> None:
        """Name the first gradient that is not finite."""
        for name, array in gradients.items():
            bad = ~np.isfinite(array)
            if bad.any():
                self._refuse(f"the gradient of {name!r}", float(array[bad][0]))

    def _refuse(self, what: str, value: float) -> None:
        epoch, update = len(self.history.train_loss) + 1, len(self.history.update_loss) + 1
        raise FloatingPointError(
            f"epoch {epoch}, update {update}: {what} is {value} (a lower learning rate or "
            "clip_norm may help; the model has its best weights so far)"
        )

    def _metric(self, loss: float) -> tuple[float, ...]:
        """Return what the schedule is given: a loss, if it watches one."""
        assert self.schedule is not None
        try:
            self.schedule._check_metric(None)
        except TypeError:
            return (loss,)
        return ()

    def _after_epoch(self, bar: _Progress) -> None:
        """Keep what is best, move the schedule, write the checkpoint, and see whether to stop."""
        history, plan = self.history, self.plan
        epoch = len(history.train_loss) - 1
        curve = history.watched
        best = history.best_epoch
        if best is None or curve[-1] < curve[best] - plan.min_delta:
            history.best_epoch = best = epoch
            for name, array in self.task.model.params.items():
                self._best[name][...] = array
        if self.schedule is not None and not plan.every_update:
            self.schedule.step(*self._metric(curve[-1]))
        if plan.checkpoint is not None:
            serialization.save(plan.checkpoint, self._tree())
        bar.epoch(epoch + 1, history)
        if plan.callback is not None and plan.callback(history):
            history.stopped = "callback"
        elif plan.patience is not None and epoch - best >= plan.patience:
            history.stopped = "patience"
        elif plan.max_seconds is not None and time.perf_counter() - self._began > plan.max_seconds:
            history.stopped = "seconds"

    # ---- Checkpoints -----------------------------------------------------------------------------

    def _tree(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        history = self.history
        tree: dict[str, Any] = {
            "model": self.task.model,
            "best": self._best,
            "optimizer": self.optimizer.state_dict(),
            "history": {
                entry.name: np.array(getattr(history, entry.name), np.float64)
                for entry in fields(History)
                if isinstance(getattr(history, entry.name), list)
            },
            "metrics": {name: np.array(curve) for name, curve in history.metrics.items()},
            "best_epoch": np.array(-1 if history.best_epoch is None else history.best_epoch),
        }
        if self.schedule is not None:
            tree["schedule"] = self.schedule.state_dict()
        return tree

    def resume(self) -> None:
        """Go back to where the checkpoint was written, if there is one."""
        path = self.plan.checkpoint
        if path is None:
            raise ValueError("resume: expected False without a checkpoint, got True")
        if not path.exists():
            return
        tree = self._tree()
        sizes = {name: array.shape for name, array in serialization.load(path).items()}
        # The curves are as long as they were; all else must fit what is there now.
        for part in ("history", "metrics"):
            tree[part] = {name: np.zeros(sizes.get(f"{part}.{name}", (0,))) for name in tree[part]}
        serialization.load(path, into=tree)
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(tree["schedule"])
        for name, curve in tree["history"].items():
            setattr(self.history, name, curve.tolist())
        self.history.metrics = {name: curve.tolist() for name, curve in tree["metrics"].items()}
        best = int(tree["best_epoch"])
        self.history.best_epoch = None if best < 0 else best


class _Progress:
    """A bar of tqdm on a terminal where it is installed; else a line every few seconds."""

    def __init__(self, rows: int, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._last = time.perf_counter()
        if shown and sys.stderr.isatty():
            try:
                tqdm = importlib.import_module("tqdm")
            except ImportError:
                return
            self._bar = tqdm.tqdm(total=rows, unit="row", unit_scale=True)

    def advance(self, rows: int, loss: float) -> None:
        """Count rows, and show the mean loss of the epoch so far."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self._bar.update(rows)

    def epoch(self, number: int, history: History) -> None:
        """Say how an epoch went."""
        text = f"epoch {number} | train {history.train_loss[-1]:.4g}"
        if history.validation_loss:
            text += f" | validation {history.validation_loss[-1]:.4g}"
        for name, curve in history.metrics.items():
            text += f" | {name} {curve[-1]:.4g}" if curve else ""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
        elif self._shown and time.perf_counter() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.perf_counter()
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
