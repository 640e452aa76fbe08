"""One call that trains: batches, truncation, validation, early stopping, checkpoints.

``fit`` computes nothing itself. The model is ``Sequential`` or what has its methods, the losses,
optimizers and schedules are those of this package, or yours; ``evaluation`` knows how they fit
together, and this module what happens when.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import serialization
from .batches import batches
from .evaluation import (
    Batch,
    Data,
    Mean,
    Task,
    as_metrics,
    as_segment,
    measured,
)
from .optimizers import Adam, Optimizer, clip_grad_norm, clip_grad_value
from .parameters import as_choice, as_flag, as_real, as_seed, as_setting, as_size, as_text
from .progress import Progress
from .schedules import Schedule

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["History", "fit"]

# Validation has no tape: its batches may be larger than those of the training.
_ROWS_OF_VALIDATION = 256


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

    def _last_line(self) -> str:
        """Write the figures of the last epoch."""
        text = f"train {self.train_loss[-1]:.4g}"
        if self.validation_loss:
            text += f" | validation {self.validation_loss[-1]:.4g}"
        return text + "".join(f" | {name} {curve[-1]:.4g}" for name, curve in self.metrics.items())

    def __repr__(self) -> str:
        """Show how far it went and how well."""
        if not self.train_loss:
            return "<History of 0 epochs>"
        best = self.watched[self.best_epoch] if self.best_epoch is not None else math.nan
        kind = "validation" if self.validation_loss else "train"
        return f"<History of {len(self.train_loss)} epochs, best {kind} loss {best:.6g}>"


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
    those of the last. Ctrl-C ends the training and not the program: the model then has the weights
    of its best epoch so far, or before the first one has ended those of its last update.

    Parameters
    ----------
    model
        A ``Sequential``, or what has its methods (see the notes), such as ``EncoderDecoder``.
    x
        An array in the model's layout, (T, B, F) or with ``batch_first`` (B, T, F), integers
        without the last axis in front of an ``Embedding``; or a list of rows (T_i, F), arrays,
        tables or nested lists, which are padded batch by batch; or a tuple of such, for a model of
        several inputs, which have only the number of rows in common. Rows without time are rows of
        one step: ``x[None]``.
    y
        Targets. Where the model ends the steps (``Pooling``): (B, ...). Else for every step, in the
        layout of x; a list of arrays (T_i, ...) with a list of rows. Bools will do for
        "binary_cross_entropy".
    loss : default "cross_entropy"
        "cross_entropy", "binary_cross_entropy" (both on logits: the model ends without a softmax or
        sigmoid of its own), "mse", "mae", "huber"; or a callable
        ``(prediction, target) -> (loss, gradient)``, a mean over what counts. It is given
        ``lengths``, and ``batch_first=True``, where steps are ragged, and ``weights`` where rows
        are weighted; ``functools.partial`` gives options to the losses of this package.
    lengths : default None
        Integers (B,): row b of x counts up to step ``lengths[b]``. A tuple, for several inputs.
    sample_weight : default None
        (B,), a weight >= 0 for every row. An update counts as much as its rows weigh beside the
        others.
    optimizer : default None
        Made for the model's parameters, or for some of them, under whatever names: the others stay
        as they are. None: ``Adam(model)``.
    schedule : default None
        Of the optimizer, or a callable that makes it of the optimizer. ``ReduceLROnPlateau`` sees
        the validation loss, or the training loss without validation; where the schedule steps every
        update, the loss of that update.
    schedule_every : default "epoch"
        Whether the schedule steps after every epoch or every "update".
    epochs : default 100
        How often to go over the rows at most.
    batch_size : default 32
        Rows of an update.
    truncate : default None
        k >= 1: truncated backpropagation through time. A batch is cut into segments of k steps,
        each an update; the state is carried on from one to the next, its gradient is not. So one
        long stream a row, (T, B) with ``batch_size >= B``, is read from one end to the other. None:
        no cut. (A ``Conv1d`` has no state: it begins each segment with zeros.)
    bucket : default True
        Whether ragged rows of like lengths share a batch: less padding, a little less chance.
    shuffle : default True
        Whether every epoch has an order of its own. False: always that of the rows, or with
        ``bucket`` that of their lengths.
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
        By how much a loss must come down for ``patience`` to begin anew. The best weights are those
        of the lowest loss, by however little.
    augment : default None
        ``(x, lengths, rng) -> (x, lengths)``, applied to every batch of the training alone. Where
        every step has a target it must leave the steps in their places and the lengths as they are:
        no ``TimeWarp``, no ``WindowSlice``.
    checkpoint : default None
        A file to write after every epoch, whole or not at all: weights, best weights, optimizer,
        schedule, dropout, history and seed.
    resume : default False
        Whether to go on where the file ends, if there is one: with the same arguments, bit for bit
        as if never stopped. Settings of optimizer and schedule are those of the file. Where model,
        optimizer, schedule, metrics or having a validation differ, nothing is changed.
    max_seconds : default None
        Stop when so much time has passed, in the middle of an epoch too. What was done of it is
        measured like a whole one; a checkpoint does not have it, and a resumed run does it again.
    progress : default True
        Whether to show a bar of tqdm on a terminal (extra ``progress``), else a line every few
        seconds, on standard error.
    seed : default 0
        Of the order of rows, the share for validation, and ``augment``; None draws one, or takes
        that of the checkpoint.
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
        If a loss, a gradient or a parameter is NaN or infinite: the message names epoch, update,
        and the parameter or the row of the input that is. The model then has its best weights so
        far, at first those that it began with.
    OSError
        If the checkpoint cannot be written or read.

    Notes
    -----
    A model has ``params``, ``load_params``, ``model(x, lengths=...)``,
    ``model.forward(x, lengths=...)``, which returns y and a tape, and ``model.backward(tape, dy)``,
    which returns something with ``params``. Its y has steps if it has
    ``output_lengths(lengths)``, in the layout that its ``batch_first`` tells. For ``truncate`` both
    calls take a ``state``, the first with ``return_state=True`` returns y and a state, and a tape
    has one. With several inputs x and lengths are tuples.

    The same arguments give the same bits, for any number of threads (of NumPy's BLAS, which
    ``Linear`` multiplies with, the same number).

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
    task = Task(model, loss)
    data = task.data(x, y, lengths, sample_weight)
    path, saved, seed = _continued(checkpoint, as_flag("resume", resume), seed)
    data, held = _held_out(task, data, validation, seed)
    _check_counts(task, data, held)
    changed = _optimizer(optimizer, model)
    if metrics and held is None:
        raise ValueError("metrics: expected none without validation, got some (see evaluate)")
    plan = _Plan(
        epochs=as_size("epochs", epochs),
        batch_size=as_size("batch_size", batch_size),
        truncate=as_segment(task, data, truncate),
        bucket=as_flag("bucket", bucket),
        shuffle=as_flag("shuffle", shuffle),
        clip_norm=_limit("clip_norm", clip_norm),
        clip_value=_limit("clip_value", clip_value),
        metrics=as_metrics(metrics),
        patience=None if patience is None else as_size("patience", patience),
        min_delta=as_setting("min_delta", min_delta),
        augment=_augmentation(augment, task, data),
        every_update=as_choice("schedule_every", schedule_every, ("epoch", "update")) == "update",
        checkpoint=path,
        max_seconds=_limit("max_seconds", max_seconds),
        seed=seed,
        callback=_callable("callback", callback),
        progress=as_flag("progress", progress),
    )
    run = _Run(task, data, held, changed, _scheduled(schedule, changed), plan)
    if path is not None and saved is not None:
        run.resume(path, saved)
    return run.go()


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
    progress: bool


def _limit(name: str, value: object) -> float | None:
    """Check a number > 0, or None."""
    if value is None:
        return None
    number = as_real(name, value)
    if not number > 0:
        raise ValueError(f"{name}: expected a number > 0 or None, got {as_text(value)}")
    return number


def _callable(name: str, value: Any) -> Any:
    """Check a callable, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected a callable or None, got {as_text(value)}")
    return value


def _augmentation(value: Any, task: Task, data: Data) -> Any:
    """Check a callable, or None, that leaves targets of steps what they are."""
    # What is one of several inputs may well move: the targets may be of another.
    if task.per_step and not data.several and getattr(value, "moves_time", False):
        raise ValueError(
            "augment: expected one that leaves the steps in place, as every step has a target, "
            f"got {as_text(value)}"
        )
    return _callable("augment", value)


def _optimizer(optimizer: object, model: Any) -> Optimizer:
    """Check that an optimizer changes arrays of this model, or make one."""
    if optimizer is None:
        return Adam(model)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an optimizer or None, got {as_text(optimizer)}")
    _own_names(optimizer, model)
    return optimizer


def _own_names(optimizer: Optimizer, model: Any) -> dict[str, str]:
    """Return what the model calls each array of an optimizer, which may have names of its own."""
    known = {id(array): name for name, array in model.params.items()}
    names = {}
    for name, array in optimizer._arrays().items():
        if id(array) not in known:
            raise ValueError(
                f"optimizer: expected one of this model's parameters, got one of another {name!r}"
            )
        names[name] = known[id(array)]
    return names


def _scheduled(schedule: Any, optimizer: Optimizer) -> Schedule | None:
    """Check a schedule, or have it made."""
    if schedule is None:
        return None
    made = schedule
    if callable(schedule) and not isinstance(schedule, Schedule):
        made = schedule(optimizer)
    if not isinstance(made, Schedule):
        raise TypeError(
            f"schedule: expected a schedule or a callable that makes one, got {as_text(made)}"
        )
    if made._optimizer is not optimizer:
        raise ValueError("schedule: expected one of the optimizer given, got one of another")
    return made


def _held_out(task: Task, data: Data, validation: Any, seed: int) -> tuple[Data, Data | None]:
    """Return the rows to train on, and those to validate on."""
    if validation is None:
        return data, None
    if isinstance(validation, (tuple, list)):
        if len(validation) not in (2, 3):
            raise ValueError(
                f"validation: expected (x, y) or (x, y, lengths), got {len(validation)} items"
            )
        x, y, lengths = (*validation, None)[:3]
        try:
            return data, task.data(x, y, lengths)
        except (TypeError, ValueError) as error:
            error.add_note("in validation")
            raise
    share = as_real("validation", validation)
    rows = len(data.numbers)
    count = round(share * rows) if math.isfinite(share) else 0
    if not 0 < count < rows:
        raise ValueError(
            f"validation: expected a share that leaves rows on both sides of {rows}, "
            f"got {as_text(validation)}"
        )
    order = np.random.default_rng([seed, 0]).permutation(rows)
    return data.subset(np.sort(order[count:])), data.subset(np.sort(order[:count]))


def _check_counts(task: Task, data: Data, held: Data | None) -> None:
    """Refuse rows of which nothing counts: their loss of 0 would be the best."""
    for name, part, role in (("y", data, "train on"), ("validation", held, "validate on")):
        if part is not None and not task.counts(part):
            raise ValueError(
                f"{name}: expected something that counts to {role}, got nothing: all that there is "
                "has a weight of 0, is ignored, or lies beyond the lengths"
            )


def _continued(
    checkpoint: Any, resume: bool, seed: int | None
) -> tuple[Path | None, dict[str, NDArray[Any]] | None, int]:
    """Return the file to write, what is in it if it is to go on from there, and the seed."""
    if checkpoint is None:
        if resume:
            raise ValueError("resume: expected False without a checkpoint, got True")
        return None, None, as_seed(seed)
    try:
        path = Path(os.fsdecode(checkpoint))
    except TypeError:
        raise TypeError(
            f"checkpoint: expected a str, bytes or path-like object, got {as_text(checkpoint)}"
        ) from None
    if not path.parent.is_dir():
        # Known now, and not after an hour of the first epoch.
        raise FileNotFoundError(f"checkpoint: expected a folder that exists, got {str(path)!r}")
    if not resume or not path.exists():
        return path, None, as_seed(seed)
    saved = serialization.load(path)
    found = saved.get("seed")
    if found is None:
        raise ValueError(f"checkpoint: expected a file of fit, got another: {str(path)!r}")
    if seed is not None and as_seed(seed) != int(found):
        # Another order of rows, and other rows for validation: the model has seen them.
        raise ValueError(f"seed: expected that of the checkpoint, {int(found)}, got {seed}")
    return path, saved, int(found)


class _Best(NamedTuple):
    """Weights, and after which epoch they were the model's; None: at the beginning."""

    epoch: int | None
    weights: dict[str, NDArray[Any]]


class _Run:
    """A training on its way."""

    def __init__(
        self,
        task: Task,
        data: Data,
        held: Data | None,
        optimizer: Optimizer,
        schedule: Schedule | None,
        plan: _Plan,
    ) -> None:
        self.task, self.data, self.held = task, data, held
        self.optimizer, self.schedule, self.plan = optimizer, schedule, plan
        self.history = History(metrics={name: [] for name in plan.metrics})
        params = task.model.params
        # The gradients that count, of a model that may be trained in part.
        self._names = _own_names(optimizer, task.model)
        self._watches = schedule is not None and _watches(schedule)
        self._mean_weight = 1.0 if data.weights is None else float(data.weights.mean())
        self._best = _Best(None, {name: array.copy() for name, array in params.items()})
        # Where the next best weights are copied to: an interrupt must not find half a copy.
        self._spare = {name: np.empty_like(array) for name, array in params.items()}
        self._judged = 0  # epochs that have been asked whether they are the best
        self._told_to_stop = False
        self._began = time.perf_counter()

    # ---- Epochs ----------------------------------------------------------------------------------

    def go(self) -> History:
        """Go on to the end, or to the first Ctrl-C."""
        history, plan = self.history, self.plan
        with Progress(plan.epochs, len(history.train_loss), shown=plan.progress) as bar:
            try:
                while not (why := self._why_to_stop()):
                    self._epoch(bar)
                history.stopped = why
                if self.held is not None or plan.patience is not None:
                    self._restore()
            except KeyboardInterrupt:
                history.stopped = "interrupted"
                self._cut_to_whole_epochs()
                # Before the first epoch has ended, what has been learnt is better than nothing.
                if self._best.epoch is not None:
                    self._restore()
            except FloatingPointError:
                self._restore()
                raise
            bar.end(f"{history!r}, ended by {history.stopped!r}")
        return history

    def _why_to_stop(self) -> str:
        """Return why no further epoch follows, or nothing."""
        history, plan = self.history, self.plan
        done = len(history.train_loss)
        if self._told_to_stop:
            return "callback"
        if plan.patience is not None and _waited(history.watched, plan.min_delta) >= plan.patience:
            return "patience"
        if done >= plan.epochs:
            return "epochs"
        return "seconds" if done and self._is_late() else ""

    def _restore(self) -> None:
        """Give the model its best weights."""
        self.history.best_epoch = self._best.epoch
        try:
            self.task.model.load_params(self._best.weights)
        except KeyboardInterrupt:
            # A second Ctrl-C in these microseconds must not leave half of them.
            self.task.model.load_params(self._best.weights)

    def _cut_to_whole_epochs(self) -> None:
        """Drop the figures of an epoch that an interrupt did not let end."""
        history = self.history
        whole = max(self._judged, 0 if self._best.epoch is None else self._best.epoch + 1)
        curves = [history.train_loss, history.validation_loss, history.grad_norm, history.lr]
        for curve in [*curves, history.seconds, *history.metrics.values()]:
            del curve[whole:]

    def _epoch(self, bar: Progress) -> None:
        """Go over all rows once, validate, and keep what is best."""
        history, plan = self.history, self.plan
        start = time.perf_counter()
        mean, norms = Mean(), Mean()
        state: Any = None
        updates, cut = self._updates, False
        for batch, begins, share in self._segments(len(history.train_loss)):
            # Something of every epoch is done, however little time there is.
            if self._updates > updates and self._is_late():
                cut = True
                break
            loss, amount, norm, state = self._update(batch, None if begins else state)
            mean.add(loss, amount)
            norms.add(norm, 1.0)
            bar.advance(share, mean.value)
        self._check_weights(self._updates)
        found = {}
        if self.held is not None:
            size = max(plan.batch_size, _ROWS_OF_VALIDATION)
            found = measured(self.task, self.held, plan.metrics, size, plan.truncate)
            if not math.isfinite(found["loss"]):
                whole = self.task.batch(self.held, np.arange(len(self.held.numbers)))
                why = _bad_row_of(self.task, whole)
                self._refuse(f"the validation loss is {found['loss']}{why}", self._updates)
            history.validation_loss.append(found["loss"])
        for name, curve in history.metrics.items():
            curve.append(found[name])
        history.grad_norm.append(norms.value)
        history.lr.append(self.optimizer.lr)
        history.seconds.append(time.perf_counter() - start)
        history.train_loss.append(mean.value)
        self._after_epoch(bar, cut)

    def _is_late(self) -> bool:
        limit = self.plan.max_seconds
        return limit is not None and time.perf_counter() - self._began > limit

    def _segments(self, epoch: int) -> Iterator[tuple[Batch, bool, float]]:
        """Give the parts of an epoch, whether each begins with no state, and its share."""
        plan, task = self.plan, self.task
        # A generator of its own: an epoch needs to know nothing of those before.
        rng = np.random.default_rng([plan.seed, 1 + epoch])
        lengths = self.data.lengths if plan.bucket else None
        order = rng if plan.shuffle else None
        for rows in batches(len(self.data.numbers), plan.batch_size, lengths, order):
            batch = task.batch(self.data, rows)
            if plan.augment is not None:
                batch = self._augmented(batch, plan.augment, rng)
            begins = True
            for segment, share in task.segments(batch, plan.truncate):
                yield segment, begins, share * len(rows) / len(self.data.numbers)
                begins = False

    def _augmented(
        self, batch: Batch, augment: Callable[[Any, Any, Any], tuple[Any, Any]], rng: Any
    ) -> Batch:
        """Return a batch with x as the augmentation makes it; y stays, and must still fit."""
        task, several = self.task, self.data.several
        x, lengths = augment(batch.x, batch.lengths, rng)
        each = lengths if several else (lengths,)
        outer = None if lengths is None else task.output_lengths(each, several)
        after = batch._replace(x=x, lengths=lengths, y_lengths=outer)
        if task.per_step and not _same_steps(batch, after, task.axis):
            raise ValueError(
                "augment: expected to leave the steps and lengths of x as they are, as every step "
                f"has a target, got others from {as_text(augment)}"
            )
        return after

    def _after_epoch(self, bar: Progress, cut: bool) -> None:
        """Keep what is best, move the schedule, write the checkpoint, and ask whether to stop."""
        history, plan = self.history, self.plan
        epoch = len(history.train_loss) - 1
        curve = history.watched
        if self._best.epoch is None or curve[-1] < curve[self._best.epoch]:
            for name, array in self.task.model.params.items():
                self._spare[name][...] = array
            before = self._best
            self._best = _Best(epoch, self._spare)
            self._spare = before.weights
        history.best_epoch = self._best.epoch
        self._judged = epoch + 1
        if self.schedule is not None and not plan.every_update:
            self._move_schedule(curve[-1])
        # An epoch that was cut short is done again by a run that is resumed.
        if plan.checkpoint is not None and not cut:
            serialization.save(plan.checkpoint, self._tree())
        bar.epoch(epoch + 1, history._last_line())
        self._told_to_stop = plan.callback is not None and bool(plan.callback(history))

    def _move_schedule(self, loss: float) -> None:
        assert self.schedule is not None
        self.schedule.step(*(loss,) if self._watches else ())

    # ---- Updates ---------------------------------------------------------------------------------

    def _update(self, batch: Batch, state: Any) -> tuple[float, float, float, Any]:
        """Make one step of the optimizer; give loss, what counts, norm, and the state after."""
        model, plan, update = self.task.model, self.plan, self._updates + 1
        # A state is handed on between segments alone: not every model takes one.
        given = {} if state is None else {"state": state}
        prediction, tape = model.forward(batch.x, lengths=batch.lengths, **given)
        after = None if plan.truncate is None else tape.state
        loss, gradient, amount = self.task.judge(prediction, batch)
        if not math.isfinite(loss):
            self._check_weights(update)
            self._refuse(f"the loss is {loss}{_bad_row_of(self.task, batch)}", update)
        if batch.weights is not None:
            # The loss has divided by the weights of this batch, which has its part of all of them.
            gradient = gradient * (float(batch.weights.mean()) / self._mean_weight)
        gradients = model.backward(tape, gradient).params
        gradients = {name: gradients[name] for name in self._names.values()}
        norm = self._clipped(gradients)
        self.optimizer.step({own: gradients[name] for own, name in self._names.items()})
        self.history.update_loss.append(loss)
        if self.schedule is not None and plan.every_update:
            self._move_schedule(loss)
        return loss, amount, norm, after

    def _clipped(self, gradients: dict[str, NDArray[Any]]) -> float:
        """Clip the gradients, and return the norm that they had before."""
        by_norm, by_value = self.plan.clip_norm, self.plan.clip_value
        # The norm of what is clipped by value is another one, and is needed only for both limits.
        first = by_norm if by_norm is not None and by_value is None else math.inf
        norm = clip_grad_norm(gradients, first)
        if not math.isfinite(norm):
            for name, array in gradients.items():
                if (value := _not_finite(array)) is not None:
                    self._refuse(f"the gradient of {name!r} is {value}", self._updates + 1)
            self._refuse(f"the norm of all gradients is {norm}", self._updates + 1)
        if by_value is not None:
            clip_grad_value(gradients, by_value)
            if by_norm is not None:
                clip_grad_norm(gradients, by_norm)
        return norm

    def _check_weights(self, update: int) -> None:
        for name, array in self.task.model.params.items():
            if (value := _not_finite(array)) is not None:
                self._refuse(f"the parameter {name!r} has become {value}", update)

    @property
    def _updates(self) -> int:
        return len(self.history.update_loss)

    def _refuse(self, what: str, update: int) -> None:
        epoch = len(self.history.train_loss) + 1
        raise FloatingPointError(
            f"epoch {epoch}, update {update}: {what} (the model has its best weights so far; a "
            "lower learning rate or clip_norm may help)"
        )

    # ---- Checkpoints -----------------------------------------------------------------------------

    def _tree(self) -> dict[str, Any]:
        """Return all that a checkpoint holds.

        The generators need no place in it: those of an epoch follow from the seed and its number,
        and masks from the call numbers that the model's layers save.
        """
        history = self.history
        curves = {
            entry.name: np.array(getattr(history, entry.name), np.float64)
            for entry in fields(History)
            if isinstance(getattr(history, entry.name), list)
        }
        tree: dict[str, Any] = {
            "model": self.task.model,
            "best": self._best.weights,
            "best_epoch": np.array(-1 if self._best.epoch is None else self._best.epoch),
            "optimizer": self.optimizer.state_dict(),
            "history": curves,
            "metrics": {name: np.array(curve) for name, curve in history.metrics.items()},
            "seed": np.array(self.plan.seed, np.uint64),
        }
        if self.schedule is not None:
            tree["schedule"] = self.schedule.state_dict()
        return tree

    def resume(self, path: Path, saved: Mapping[str, NDArray[Any]]) -> None:
        """Go back to where a checkpoint was written, which has these arrays, or change nothing."""
        tree, history = self._tree(), self.history
        shapes = {name: array.shape for name, array in saved.items()}
        with_validation = shapes.get("history.validation_loss", (0,)) != (0,)
        if with_validation != (self.held is not None):
            expected, got = ("some", "none") if with_validation else ("None", "some")
            raise ValueError(
                f"resume: expected {expected} as validation, as {str(path)!r} was written with, "
                f"got {got}"
            )
        # The curves are as long as they were; all else must fit what is there now.
        for part in ("history", "metrics"):
            tree[part] = {name: np.zeros(shapes.get(f"{part}.{name}", (0,))) for name in tree[part]}
        before = self.optimizer.state_dict()
        try:
            # The model itself comes last: all that can be wrong is known by then.
            serialization.load(path, into=tree | {"model": self._spare})
            self.optimizer.load_state_dict(tree["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(tree["schedule"])
            serialization.load(path, into=tree)
        except (TypeError, ValueError) as error:
            self.optimizer.load_state_dict(before)
            raise ValueError(
                f"resume: expected the arguments that {str(path)!r} was written with, "
                f"got others: {error}"
            ) from error
        for name, curve in tree["history"].items():
            setattr(history, name, curve.tolist())
        history.metrics = {name: curve.tolist() for name, curve in tree["metrics"].items()}
        epoch = int(tree["best_epoch"])
        self._best = self._best._replace(epoch=None if epoch < 0 else epoch)
        history.best_epoch = self._best.epoch
        self._judged = len(history.train_loss)


def _watches(schedule: Schedule) -> bool:
    """Tell whether a schedule wants to see a loss."""
    try:
        schedule._check_metric(None)
    except TypeError:
        return True
    return False


def _same_steps(one: Batch, other: Batch, axis: int) -> bool:
    """Tell whether the targets of a batch fit another x, as far as steps and lengths go."""
    pair: tuple[Any, ...] = one.y_lengths, other.y_lengths
    if not isinstance(one.x, tuple):
        if one.x.shape[:2] != np.shape(other.x)[:2]:
            return False
        # No lengths are those of all steps.
        whole = np.full(one.x.shape[axis], one.x.shape[1 - axis])
        pair = tuple(whole if part.lengths is None else part.lengths for part in (one, other))
    return bool(np.array_equal(*pair))


def _waited(curve: list[float], min_delta: float) -> int:
    """Return for how many epochs a curve has not come down by more than ``min_delta``.

    >>> _waited([3.0, 2.0, 1.95, 1.9], 0.2)
    2
    """
    mark, since = math.inf, 0
    for value in curve:
        since += 1
        if value < mark - min_delta:
            mark, since = value, 0
    return since


def _bad_row_of(task: Task, batch: Batch) -> str:
    """Say where a loss that is not finite comes from, if the data show it."""
    parts: tuple[Any, ...] = (batch.x,)
    lengths: tuple[Any, ...] = (batch.lengths,)
    if isinstance(batch.x, tuple):
        parts, lengths = batch.x, batch.lengths or (None,) * len(batch.x)
    names = ["x"] if len(parts) == 1 else [f"x[{k}]" for k in range(len(parts))]
    places = [*zip(names, parts, lengths, [task.axis] * len(parts), strict=True)]
    places.append(("y", batch.y, batch.y_lengths, task.axis if task.per_step else 0))
    for name, array, own, axis in places:
        if (found := _bad_row(array, own, axis)) is not None:
            return f", as {name} holds {found[1]} in row {batch.numbers[found[0]]}"
    return ""


def _bad_row(array: Any, lengths: Any, axis: int) -> tuple[int, float] | None:
    """Return the first row with a value that counts and is not finite, and the value."""
    for k, row in enumerate(np.moveaxis(np.asarray(array), axis, 0)):
        value = _not_finite(row if lengths is None else row[: lengths[k]])
        if value is not None:
            return k, value
    return None


def _not_finite(array: NDArray[Any]) -> float | None:
    """Return the first value that is NaN or infinite, if there is one."""
    if array.dtype.kind != "f":
        return None
    bad = ~np.isfinite(array)
    return float(array[bad][0]) if bad.any() else None
