"""Pictures: learning curves, gates, and gradients that fade or stay, with matplotlib.

Every function takes an ``ax`` (or a ``figure``) to draw on, or makes one of its own, and returns
it; nothing is ever shown or saved here. A figure of its own does not go through ``pyplot``, so that
no display is needed and no figure piles up::

    ax = rnncore.plot.learning_curve(history)
    ax.figure.savefig("curve.png")

In a notebook ``ax.figure`` as the last line of a cell shows it. The numbers behind a picture come
from ``rnncore.diagnosis`` or from a tape, and can be had without it. Needs the extra
``rnncore[plot]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from .diagnosis import Curve, gradient_norms
from .layers import Tape
from .parameters import (
    as_choice,
    as_flag,
    as_integer_array,
    as_real_array,
    as_size,
    as_text,
    check_range,
)
from .sequential import SequentialTape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage
    from numpy.typing import ArrayLike, NDArray

    from .layers import GRU, LSTM, MGU, RNN
    from .training import History

    Drawn = TypeVar("Drawn", bound=Figure | SubFigure)

__all__ = ["gates", "gradient_lag", "learning_curve", "validation_curve"]

#: Gates proper lie between 0 and 1; candidates and states around 0.
_GATES = ("i", "f", "o", "r", "z")
_NAMES = {
    "i": "input gate i",
    "f": "forget gate f",
    "g": "candidate g",
    "o": "output gate o",
    "r": "reset gate r",
    "z": "update gate z",
    "n": "candidate n",
    "h": "state h",
}


# ---- Curves --------------------------------------------------------------------------------------


def learning_curve(
    source: History | Curve | Mapping[str, ArrayLike],
    ax: Axes | None = None,
    *,
    baseline: float | None = None,
    log: bool = False,
) -> Axes:
    """Draw how training and validation go: over epochs, or over the number of training rows.

    Parameters
    ----------
    source
        What ``fit`` returns, over epochs, with a line at the best one; what
        ``diagnosis.learning_curve`` returns, over rows, with a band over the folds; or a mapping
        from labels to curves (N,), such as the losses of several runs, over epochs.
    ax : default None
        Where to draw; None makes a figure.
    baseline : default None
        The figure of a constant guess, drawn as a line. None: that of a ``Curve``, if it has one.
    log : default False
        Whether the vertical axis is logarithmic.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If ``source`` is none of these.
    ValueError
        If a mapping is empty, or a curve has not one axis.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import rnncore.plot
    >>> ax = rnncore.plot.learning_curve({"train": [2.0, 0.9, 0.4], "validation": [2.1, 1.2, 1.1]})
    >>> ax.get_xlabel(), [line.get_label() for line in ax.lines]
    ('epoch', ['train', 'validation'])
    """
    log = as_flag("log", log)
    if isinstance(source, Curve):
        ax = _banded(source, ax, "training rows")
        baseline = source.baseline if baseline is None else baseline
    else:
        curves, best = _curves(source)
        ax = _axes(ax)
        for label, curve in curves.items():
            # A single entry would be an invisible line.
            style = "o-" if len(curve) < 2 else "-"
            ax.plot(np.arange(1, len(curve) + 1), curve, style, label=label)
        if best is not None:
            ax.axvline(best, color="0.4", linestyle=":", label=f"best epoch: {best}")
        ax.set(xlabel="epoch", ylabel="loss", title="Learning curve")
        _whole_numbers(ax.xaxis)
    if baseline is not None:
        ax.axhline(baseline, color="0.4", linestyle="--", label="constant guess")
    if log:
        ax.set_yscale("log")
    ax.legend()
    return ax


def _curves(source: Any) -> tuple[dict[str, NDArray[np.float64]], int | None]:
    """Return the curves by label, and the best epoch, counted from 1, if there is one."""
    best = None
    if isinstance(source, Mapping):
        named = dict(source)
    elif hasattr(source, "train_loss") and hasattr(source, "validation_loss"):
        named = {"train": source.train_loss}
        if len(source.validation_loss):
            named["validation"] = source.validation_loss
            best = None if source.best_epoch is None else source.best_epoch + 1
    else:
        raise TypeError(
            "source: expected a History of fit, a Curve of learning_curve or a mapping from labels "
            f"to curves, got {type(source).__name__}"
        )
    if not named:
        raise ValueError("source: expected at least one curve, got an empty mapping")
    curves = {}
    for label, values in named.items():
        curves[label] = as_real_array(f"source[{label!r}]", values, np.float64)
        if curves[label].ndim != 1:
            raise ValueError(f"source[{label!r}]: expected shape (N,), got {curves[label].shape}")
    return curves, best


def validation_curve(curve: Curve, ax: Axes | None = None, *, log: bool | None = None) -> Axes:
    """Draw how training and validation depend on a setting, with a line at its best value.

    Parameters
    ----------
    curve
        What ``diagnosis.validation_curve`` returns. A band is the range over the folds, a line
        their mean. Values that are no numbers stand side by side.
    ax : default None
        Where to draw; None makes a figure.
    log : default None
        Whether the horizontal axis is logarithmic. None: if all values are positive and the
        largest is 50 times the smallest or more.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If ``curve`` is no Curve.
    ValueError
        If ``log`` is true for values that are not all positive numbers.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, rnncore.plot
    >>> from rnncore.diagnosis import Curve
    >>> figures = np.array([[0.9], [0.3], [0.1]])
    >>> curve = Curve("hidden_size", (2, 16, 128), figures, np.array([[0.9], [0.4], [0.6]]))
    >>> ax = rnncore.plot.validation_curve(curve)
    >>> ax.get_xlabel(), ax.get_xscale(), ax.lines[-1].get_label()
    ('hidden_size', 'log', 'best: 16')
    """
    if not isinstance(curve, Curve):
        raise TypeError(f"curve: expected a Curve, got {type(curve).__name__}")
    numbers = all(
        isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in curve.values
    )
    positive = numbers and min(curve.values) > 0
    if log is None:
        log = positive and max(curve.values) >= 50 * min(curve.values)
    elif as_flag("log", log) and not positive:
        raise ValueError(f"log: expected positive numbers, got values {as_text(curve.values)}")
    ax = _banded(curve, ax, curve.name, np.arange(len(curve.values)) if not numbers else None)
    if not numbers:
        ax.set_xticks(range(len(curve.values)), [str(value) for value in curve.values])
    if log:
        ax.set_xscale("log")
    place = curve.best if not numbers else curve.values[curve.best]
    best = curve.values[curve.best]
    label = f"best: {best:g}" if numbers else f"best: {best}"
    ax.axvline(place, color="0.4", linestyle=":", label=label)
    ax.set_title("Validation curve")
    ax.legend()
    return ax


def _banded(curve: Curve, ax: Axes | None, label: str, places: NDArray[Any] | None = None) -> Axes:
    """Draw both figures of a curve: the mean over the folds, and their range as a band."""
    ax = _axes(ax)
    x = np.asarray(curve.values) if places is None else places
    order = np.argsort(x)
    for name, figures in (("train", curve.train), ("validation", curve.validation)):
        (line,) = ax.plot(x[order], figures.mean(axis=1)[order], "o-", label=name)
        if figures.shape[1] > 1:
            low, high = figures.min(axis=1)[order], figures.max(axis=1)[order]
            ax.fill_between(x[order], low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel=label, ylabel=curve.figure, title="Learning curve")
    return ax


# ---- Gates ---------------------------------------------------------------------------------------


@overload
def gates(
    source: Tape | SequentialTape | Mapping[str, Any],
    row: int = 0,
    *,
    units: int | Sequence[int] | None = 32,
    parts: Sequence[str] | None = None,
    batch_first: bool | None = None,
    figure: None = None,
) -> Figure: ...
@overload
def gates(
    source: Tape | SequentialTape | Mapping[str, Any],
    row: int = 0,
    *,
    units: int | Sequence[int] | None = 32,
    parts: Sequence[str] | None = None,
    batch_first: bool | None = None,
    figure: Drawn,
) -> Drawn: ...
def gates(
    source: Tape | SequentialTape | Mapping[str, Any],
    row: int = 0,
    *,
    units: int | Sequence[int] | None = 32,
    parts: Sequence[str] | None = None,
    batch_first: bool | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw every gate of one row as a heat map: steps to the right, units upwards.

    Gates, which lie between 0 (closed) and 1 (open), have one scale of colours; candidates and
    states, which lie around 0, another one. Each layer and direction has a line of panels.

    Parameters
    ----------
    source
        A tape of a recurrent layer or of a chain, whose steps beyond the row's length are left out;
        or a mapping such as its ``gates()`` returns, perhaps nested, of which all steps are drawn.
    row : default 0
        Which row of the batch, from 0 to B - 1.
    units : default 32
        How many units, the first ones; or which, as a sequence of numbers. None: all.
    parts : default None
        Which layers and directions, such as ``["l0"]``, in a chain ``["encoder.l0"]``. None: all.
    batch_first : default None
        Whether the arrays of a mapping are (B, T, H); None is False. A tape knows it.
    figure : default None
        Where to draw; None makes one.

    Returns
    -------
    matplotlib.figure.Figure
        Or the subfigure that was handed over.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If a tape is consumed, there is no gate, a row, a unit or a part does not exist, or
        ``batch_first`` comes with a tape.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, rnncore as rc, rnncore.plot
    >>> gru = rc.GRU(2, 8, seed=0)
    >>> _, _, tape = gru.forward(np.random.default_rng(0).standard_normal((20, 3, 2)))
    >>> figure = rnncore.plot.gates(tape, row=1)
    >>> [ax.get_title() for ax in figure.axes[:3]]
    ['l0: reset gate r', 'l0: update gate z', 'l0: candidate n']
    """
    images = _images(source, row, batch_first)
    names = list(images if parts is None else parts)
    for part in names:
        if part not in images:
            raise ValueError(f"parts: expected some of {list(images)}, got {as_text(part)}")
    if not names:
        raise ValueError("source: expected at least one gate, got none")
    columns = max(len(images[part]) for part in names)
    if figure is None:
        figure = _figure((1 + 3.2 * columns, 0.6 + 2.4 * len(names)))
    grid = figure.subplots(len(names), columns, squeeze=False)
    # tanh keeps candidates and states within 1; relu does not.
    limit = max(1.0, *(_largest(images[part]) for part in names))
    drawn: dict[str, Any] = {}
    for axes, part in zip(grid, names, strict=True):
        for ax in axes[len(images[part]) :]:
            ax.remove()
        for ax, (gate, image) in zip(axes, images[part].items(), strict=False):
            ax.set(xlabel="step", ylabel="unit")
            ax.set_title(f"{part}: {_NAMES.get(gate, gate)}", fontsize="medium")
            kind = "gate (0 closed, 1 open)" if gate in _GATES else "candidate or state"
            drawn[kind] = _heat_map(ax, gate, image, _chosen(units, image.shape[1]), limit)
    panels = list(figure.axes)
    for kind, mappable in drawn.items():
        if mappable is not None:
            figure.colorbar(mappable, ax=panels, label=kind, aspect=30, fraction=0.04, pad=0.01)
    return figure


def _images(source: Any, row: int, batch_first: bool | None) -> dict[str, dict[str, NDArray[Any]]]:
    """Return part to gate to the steps (t, H) of one row."""
    if isinstance(row, bool) or not isinstance(row, (int, np.integer)):
        raise TypeError(f"row: expected an integer, got {as_text(row)}")
    row = int(row)
    if isinstance(source, (Tape, SequentialTape)):
        if batch_first is not None:
            raise ValueError(
                f"batch_first: expected None with a tape, which knows it, got {batch_first}"
            )
        return {
            f"{prefix}{part}": {
                g: _row(a, row, tape._layer.batch_first)[:end] for g, a in of.items()
            }
            for prefix, tape in _tapes(source)
            for end in [_length(tape, row)]
            for part, of in tape.gates().items()
        }
    if not isinstance(source, Mapping):
        raise TypeError(f"source: expected a tape or its gates, got {type(source).__name__}")
    turned = batch_first is not None and as_flag("batch_first", batch_first)
    return {
        part: {
            gate: _row(as_real_array(f"{part}.{gate}", a), row, turned) for gate, a in of.items()
        }
        for part, of in _flat(source).items()
    }


def _tapes(tape: Any, prefix: str = "") -> Iterator[tuple[str, Tape]]:
    """Find the tapes of recurrent layers, however deep in chains."""
    if isinstance(tape, Tape):
        yield prefix, tape
    elif isinstance(tape, SequentialTape):
        for name, inner in tape.tapes.items():
            yield from _tapes(inner, f"{prefix}{name}.")


def _length(tape: Tape, row: int) -> int | None:
    """Return how many steps of a row count; None for all."""
    lengths = tape._lengths
    return None if lengths is None or not 0 <= row < len(lengths) else int(lengths[row])


def _flat(source: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """Join the names of nested mappings, down to those that hold the gates."""
    flat: dict[str, Mapping[str, Any]] = {}
    for name, of in source.items():
        if not isinstance(of, Mapping):
            raise TypeError(
                f"source[{name!r}]: expected a mapping from gates to arrays, "
                f"got {type(of).__name__}"
            )
        if any(isinstance(value, Mapping) for value in of.values()):
            flat |= _flat(of, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = of
    return flat


def _row(values: NDArray[Any], row: int, batch_first: bool) -> NDArray[Any]:
    """Take one row (T, H) of gates (T, B, H), (B, T, H) or, of one row alone, (T, H)."""
    if values.ndim not in (2, 3):
        raise ValueError(f"source: expected arrays (T, B, H) or (T, H), got {values.shape}")
    rows = 1 if values.ndim == 2 else values.shape[0 if batch_first else 1]
    if not 0 <= row < rows:
        raise ValueError(f"row: expected 0 <= row <= B - 1 = {rows - 1}, got {row}")
    if values.ndim == 2:
        return values
    taken: NDArray[Any] = values[row] if batch_first else values[:, row]
    return taken


def _chosen(units: int | Sequence[int] | None, hidden: int) -> NDArray[np.int64]:
    """Return the numbers of the units to draw."""
    if units is None:
        return np.arange(hidden)
    numbers = as_integer_array("units", units)
    if numbers.ndim == 0:
        return np.arange(min(as_size("units", units), hidden))
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(f"units: expected a number of units or their numbers, got {units!r}")
    check_range("units", numbers, 0, hidden - 1, "H - 1")
    return numbers


def _largest(named: Mapping[str, NDArray[Any]]) -> float:
    """Return the largest magnitude of the candidates and states."""
    return max(
        (
            float(np.max(abs(image[np.isfinite(image)]), initial=0.0))
            for gate, image in named.items()
            if gate not in _GATES
        ),
        default=0.0,
    )


def _heat_map(
    ax: Axes, gate: str, image: NDArray[Any], units: NDArray[np.int64], limit: float
) -> AxesImage | None:
    """Draw the chosen units of one gate (T, H); None if there is no step."""
    if not len(image):
        ax.text(0.5, 0.5, "no steps", ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return None
    low, high, colours = (0.0, 1.0, "viridis") if gate in _GATES else (-limit, limit, "RdBu_r")
    drawn = ax.imshow(
        image[:, units].T,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap=colours,
        vmin=low,
        vmax=high,
    )
    _whole_numbers(ax.xaxis)
    if np.array_equal(units, np.arange(len(units))):
        _whole_numbers(ax.yaxis)
    else:
        ax.set_yticks(range(len(units)), [str(unit) for unit in units])
    return drawn


# ---- Gradients -----------------------------------------------------------------------------------


def gradient_lag(
    layers: Mapping[str, RNN | LSTM | GRU | MGU],
    x: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    member: str = "h",
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw how much of a gradient is left, layer beside layer, against the steps it went back.

    A straight line downwards is a gradient that vanishes like a power; a level one reaches any
    distance. The numbers are those of ``diagnosis.gradient_norms``, of the last layer of each
    stack. Where a norm is 0 (below the least number of its dtype), its line ends.

    Parameters
    ----------
    layers
        Labels to recurrent layers of one direction: ``{"RNN": rnn, "LSTM": lstm, "GRU": gru}``.
    x
        The input of all of them: (T, B, I), or (B, T, I) with ``batch_first``, or (T, I).
    lengths : default None
        Integers (B,), or None: every step counts.
    member : default "h"
        The state whose gradient is drawn: "h", or "c" if all layers are LSTM.
    seed : default 0
        Of the directions in which the gradients begin.
    ax : default None
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError
        If ``layers`` is no mapping to recurrent layers.
    ValueError
        If there is no layer, or one has not that member, or has two directions.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, rnncore as rc, rnncore.plot
    >>> layers = {"RNN": rc.RNN(4, 16, seed=0), "LSTM": rc.LSTM(4, 16, seed=0)}
    >>> x = np.random.default_rng(0).standard_normal((50, 8, 4))
    >>> ax = rnncore.plot.gradient_lag(layers, x)
    >>> ax.get_yscale(), ax.get_xlabel()
    ('log', 'lag k (steps back in time)')
    """
    as_choice("member", member, ("h", "c"))
    if not isinstance(layers, Mapping):
        raise TypeError(
            f"layers: expected a mapping from labels to layers, got {type(layers).__name__}"
        )
    if not layers:
        raise ValueError("layers: expected at least one layer, got none")
    norms = {}
    for label, layer in layers.items():
        found = gradient_norms(layer, x, lengths=lengths, seed=seed)
        last = found[list(found)[-1]]
        if member not in last:
            raise ValueError(f"member: expected 'h' for layers[{label!r}], got {member!r}")
        norms[label] = last[member]
    ax = _axes(ax)
    for label, curve in norms.items():
        ax.plot(np.where(curve > 0, curve, np.nan), label=label)
    ax.set_yscale("log")
    ax.set(
        xlabel="lag k (steps back in time)",
        ylabel=f"norm of dL/d{member} at step T - k (dL/dh at T is 1)",
        title="Gradient through time",
    )
    ax.legend()
    return ax


# ---- Figures -------------------------------------------------------------------------------------


def _axes(ax: Axes | None) -> Axes:
    """Return the given axes, or some in a figure of their own."""
    if ax is None:
        axes: Axes = _figure((7.0, 4.5)).add_subplot()
        return axes
    if not hasattr(ax, "plot"):
        raise TypeError(f"ax: expected matplotlib Axes or None, got {type(ax).__name__}")
    return ax


def _whole_numbers(axis: Axis) -> None:
    """Put ticks at whole numbers alone: there is no half step, unit or epoch."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _figure(size: tuple[float, float]) -> Figure:
    """Make a figure that no window manager knows of."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "rnncore.plot: expected matplotlib to be installed (pip install rnncore[plot])"
        ) from error
    return Figure(figsize=size, layout="constrained")
