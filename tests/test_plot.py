"""Pictures: what is drawn is what was measured, on whatever axes, without a display."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

import rnncore as rc
import rnncore.plot
from rnncore.diagnosis import Curve

T, B, I, H = 9, 3, 2, 4
LENGTHS = [5, 9, 0]
plot: Any = rnncore.plot  # matplotlib's own types say little of what is drawn


def drawn(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape)


def history(**changes: Any) -> Any:
    values = {"train_loss": [2.0, 1.0, 0.5], "validation_loss": [2.1, 1.2, 1.4], "best_epoch": 1}
    return SimpleNamespace(**(values | changes))


def labels(ax: Any) -> list[str]:
    return [line.get_label() for line in ax.lines]


def rendered(figure: Any) -> NDArray[Any]:
    """Draw for real, warnings being errors, and return the pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


# ---- Curves --------------------------------------------------------------------------------------


def test_a_history_is_drawn_over_its_epochs() -> None:
    ax = plot.learning_curve(history(), baseline=2.3)
    assert labels(ax) == ["train", "validation", "best epoch: 2", "constant guess"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 2.0], [2, 1.0], [3, 0.5]])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [2.1, 1.2, 1.4])
    assert list(ax.lines[2].get_xdata()) == [2, 2]
    assert list(ax.lines[3].get_ydata()) == [2.3, 2.3]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("epoch", "loss", "linear")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == labels(ax)
    assert len(np.unique(rendered(ax.figure))) > 10
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_a_history_without_validation_has_one_line() -> None:
    ax = plot.learning_curve(history(validation_loss=[], best_epoch=None))
    assert labels(ax) == ["train"]


def test_a_single_epoch_can_be_seen() -> None:
    ax = plot.learning_curve({"train": [2.0]})
    assert ax.lines[0].get_marker() == "o"


def test_several_runs_stand_in_one_picture() -> None:
    ax = Figure().add_subplot()
    curves = {"small": [1.0, 0.9], "large": np.array([1.0, 0.5, 0.2])}
    assert plot.learning_curve(curves, ax, log=True) is ax
    assert labels(ax) == ["small", "large"]
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1, 2, 3])


def curve(name: str = "rows", values: Any = (40, 10, 160), **options: Any) -> Curve:
    train = np.array([[0.2, 0.4], [0.0, 0.2], [0.5, 0.7]])
    return Curve(name, values, train, train + np.array([[0.3], [1.0], [0.1]]), **options)


def test_a_learning_curve_over_rows_has_a_band_over_the_folds() -> None:
    ax = plot.learning_curve(curve(baseline=2.0))
    assert labels(ax) == ["train", "validation", "constant guess"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("training rows", "loss")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[10, 0.1], [40, 0.3], [160, 0.6]])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [1.1, 0.6, 0.7])
    band = ax.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(0.5), pytest.approx(1.2))


def test_one_fold_has_no_band() -> None:
    one = Curve("rows", (1, 2), np.ones((2, 1)), np.ones((2, 1)))
    assert not plot.learning_curve(one).collections


@pytest.mark.parametrize(
    ("values", "log", "scale"),
    [
        ((40, 10, 160), None, "linear"),
        ((40, 1, 160), None, "log"),
        ((40, 1, 160), False, "linear"),
        ((40, 10, 160), True, "log"),
        ((0.0, 0.001, 1.0), None, "linear"),
    ],
)
def test_a_validation_curve_marks_the_best_value(values: Any, log: Any, scale: str) -> None:
    ax = plot.validation_curve(curve("hidden_size", values), log=log)
    assert ax.get_xscale() == scale
    assert ax.get_xlabel() == "hidden_size"
    assert labels(ax)[-1] == f"best: {values[0]:g}"
    assert list(ax.lines[-1].get_xdata()) == [values[0]] * 2
    rendered(ax.figure)


def test_settings_that_are_no_numbers_stand_side_by_side() -> None:
    ax = plot.validation_curve(
        curve("cell", ("lstm", "gru", "rnn"), figure="accuracy", perfect=1.0)
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["lstm", "gru", "rnn"]
    assert ax.get_ylabel() == "accuracy"
    assert labels(ax)[-1] == "best: gru"
    assert list(ax.lines[-1].get_xdata()) == [1, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot.learning_curve([1.0]), TypeError, "source: expected a History"),
        (lambda: plot.learning_curve({}), ValueError, "source: expected at least one"),
        (
            lambda: plot.learning_curve({"a": [[1.0]]}),
            ValueError,
            r"source\['a'\]: expected shape \(N,\), got \(1, 1\)",
        ),
        (lambda: plot.learning_curve({"a": [1.0]}, log=1), TypeError, "log: expected"),
        (
            lambda: plot.learning_curve({"a": [1.0]}, 3),
            TypeError,
            "ax: expected matplotlib",
        ),
        (lambda: plot.validation_curve({}), TypeError, "curve: expected a Curve, got dict"),
        (
            lambda: plot.validation_curve(curve("a", (0, 1, 2)), log=True),
            ValueError,
            r"log: expected positive numbers, got values \(0, 1, 2\)",
        ),
    ],
)
def test_bad_curves_are_explained(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- Gates ---------------------------------------------------------------------------------------


def images(figure: Any) -> dict[str, NDArray[Any]]:
    """Title of each panel to what it shows (units, steps)."""
    return {ax.get_title(): np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images}


NAMES = {
    rc.RNN: {"h": "state h"},
    rc.LSTM: {
        "i": "input gate i", "f": "forget gate f", "g": "candidate g", "o": "output gate o"
    },
    rc.GRU: {"r": "reset gate r", "z": "update gate z", "n": "candidate n"},
    rc.MGU: {"f": "forget gate f", "n": "candidate n"},
}  # fmt: skip


@pytest.mark.parametrize("cell", NAMES)
@pytest.mark.parametrize(("batch_first", "ragged"), [(False, True), (True, False), (True, True)])
def test_every_gate_of_a_tape_has_a_panel(cell: Any, batch_first: bool, ragged: bool) -> None:
    layer = cell(I, H, bidirectional=True, batch_first=batch_first, seed=0)
    x = drawn(*((B, T, I) if batch_first else (T, B, I)))
    _, _, tape = layer.forward(x, lengths=LENGTHS if ragged else None)
    gates, end = tape.gates(), (LENGTHS[0] if ragged else T)
    shown = images(plot.gates(tape))
    expected = {
        f"{part}: {NAMES[cell][g]}": (a[0] if batch_first else a[:, 0])[:end].T
        for part, of in gates.items()
        for g, a in of.items()
    }
    assert list(shown) == list(expected)
    for title, image in expected.items():
        np.testing.assert_array_equal(shown[title], image)


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_layout_of_a_mapping_is_told(batch_first: bool) -> None:
    values = drawn(*((B, T, H) if batch_first else (T, B, H)))
    figure = plot.gates({"l0": {"f": values}}, 2, batch_first=batch_first)
    row = values[2] if batch_first else values[:, 2]
    np.testing.assert_array_equal(images(figure)["l0: forget gate f"], row.T)


def test_gates_have_one_scale_and_candidates_another() -> None:
    layer = rc.LSTM(I, H, seed=0)
    _, _, tape = layer.forward(drawn(T, B, I))
    figure = plot.gates(tape)
    limits = {ax.get_title(): ax.images[0].get_clim() for ax in figure.axes if ax.images}
    assert limits["l0: forget gate f"] == limits["l0: output gate o"] == (0.0, 1.0)
    assert limits["l0: candidate g"] == (-1.0, 1.0)
    panel = figure.axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("step", "unit")
    bars = [ax.get_ylabel() for ax in figure.axes if not ax.images]
    assert bars == ["gate (0 closed, 1 open)", "candidate or state"]
    rendered(figure)
    relu = rc.RNN(I, H, nonlinearity="relu", seed=0)
    _, _, tape = relu.forward(100 * drawn(T, B, I))
    top = tape.gates()["l0"]["h"][:, 0].max()
    scale = plot.gates(tape).axes[0].images[0].get_clim()
    np.testing.assert_allclose(scale, [-top, top])


def test_units_parts_and_figure_can_be_chosen() -> None:
    layer = rc.GRU(I, H, num_layers=2, seed=0)
    _, _, tape = layer.forward(drawn(T, B, I))
    n = tape.gates()["l1"]["n"][:, 0].T
    given = Figure()
    figure = plot.gates(tape, units=[3, 1], parts=["l1"], figure=given)
    assert figure is given
    shown = images(figure)
    assert list(shown) == ["l1: reset gate r", "l1: update gate z", "l1: candidate n"]
    np.testing.assert_array_equal(shown["l1: candidate n"], n[[3, 1]])
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["3", "1"]
    for units, expected in ((2, n[:2]), (None, n), (1000, n)):
        shown = images(plot.gates(tape, units=units))
        np.testing.assert_array_equal(shown["l1: candidate n"], expected)
    halves: Any = Figure().subfigures(1, 2)
    assert plot.gates(tape, figure=halves[1]) is halves[1]
    assert not halves[0].axes


def test_an_unbatched_sequence_is_row_0() -> None:
    layer = rc.MGU(I, H, seed=0)
    _, _, tape = layer.forward(drawn(T, I))
    for source in (tape, tape.gates()):
        shown = images(plot.gates(source))
        np.testing.assert_array_equal(shown["l0: candidate n"], tape.gates()["l0"]["n"].T)
    with pytest.raises(ValueError, match="row: expected 0 <= row <= B - 1 = 0, got 1"):
        plot.gates(tape, 1)


def test_a_chain_shows_all_its_recurrent_layers() -> None:
    """With panels removed where a layer has fewer gates, and lengths that a convolution changes."""
    inner = rc.Sequential({"conv": rc.Conv1d(I, 3, 2, stride=2), "rnn": rc.RNN(3, H, seed=0)})
    model = rc.Sequential({"encoder": inner, "gru": rc.GRU(H, 2, seed=1), "out": rc.Linear(2, 1)})
    _, tape = model.forward(drawn(T, B, I), lengths=LENGTHS)
    figure = plot.gates(tape)
    shown = images(figure)
    assert list(shown) == [
        "encoder.rnn.l0: state h",
        *(f"gru.l0: {name}" for name in NAMES[rc.GRU].values()),
    ]
    steps = int(model.layers["encoder"].output_lengths(LENGTHS)[0])
    expected = tape.gates()["gru"]["l0"]["z"][:steps, 0].T
    np.testing.assert_array_equal(shown["gru.l0: update gate z"], expected)
    mapping = images(plot.gates(tape.gates()))
    assert list(mapping) == list(shown)
    np.testing.assert_array_equal(mapping["gru.l0: update gate z"][:, :steps], expected)
    rendered(figure)


def test_a_row_without_steps_is_an_empty_panel() -> None:
    _, _, tape = rc.RNN(I, H, seed=0).forward(drawn(T, B, I), lengths=LENGTHS)
    figure = plot.gates(tape, 2)
    (ax,) = figure.axes
    assert ax.get_title() == "l0: state h"
    assert [text.get_text() for text in ax.texts] == ["no steps"]
    rendered(figure)


def used_tape() -> Any:
    layer = rc.RNN(I, H, seed=0)
    y, _, tape = layer.forward(drawn(T, B, I))
    layer.backward(tape, y)
    return tape


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (3, {}, TypeError, "source: expected a tape or its gates, got int"),
        ({}, {}, ValueError, "source: expected at least one gate, got none"),
        ({"l0": np.ones(3)}, {}, TypeError, r"source\['l0'\]: expected a mapping from gates"),
        ({"l0": {"f": np.ones(3)}}, {}, ValueError, r"source: expected arrays \(T, B, H\)"),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"row": 3}, ValueError, "row: expected 0 <= row <="),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"row": -1}, ValueError, "row: expected 0 <= row <="),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"row": 0.5}, TypeError, "row: expected an integer"),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"row": True}, TypeError, "row: expected an integer"),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"units": [4]}, ValueError, "units: expected 0 <="),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"units": []}, ValueError, "units: expected a number"),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"units": 0}, ValueError, "units: expected a positive"),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"parts": ["l1"]}, ValueError, r"parts: .*\['l0'\]"),
        ({"l0": {"f": np.ones((2, 3, 4))}}, {"batch_first": 1}, TypeError, "batch_first: expected"),
        (used_tape(), {}, ValueError, "tape: expected an unused one"),
        (used_tape(), {"batch_first": True}, ValueError, "batch_first: expected None with a tape"),
    ],
)
def test_bad_gates_are_explained(
    source: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot.gates(source, **options)


# ---- Gradients -----------------------------------------------------------------------------------


def test_gradients_are_drawn_by_lag() -> None:
    layers: dict[str, Any] = {
        "vanilla": rc.RNN(I, H, seed=0),
        "LSTM": rc.LSTM(I, H, num_layers=2, seed=0),
        "GRU": rc.GRU(I, H, seed=0),
    }
    x = drawn(T, B, I)
    ax = Figure().add_subplot()
    assert plot.gradient_lag(layers, x, lengths=[5, 9, 0], seed=3, ax=ax) is ax
    assert labels(ax) == list(layers)
    assert ax.get_yscale() == "log"
    assert "lag k" in ax.get_xlabel()
    for line, (label, layer) in zip(ax.lines, layers.items(), strict=True):
        norms = rc.gradient_norms(layer, x, lengths=[5, 9, 0], seed=3)
        expected = norms["l1" if label == "LSTM" else "l0"]["h"]
        np.testing.assert_array_equal(line.get_ydata(), expected)
        np.testing.assert_array_equal(line.get_xdata(), np.arange(T))
    cells = plot.gradient_lag({"LSTM": layers["LSTM"]}, x, member="c")
    norms = rc.gradient_norms(layers["LSTM"], x)
    np.testing.assert_array_equal(cells.lines[0].get_ydata(), norms["l1"]["c"])
    rendered(cells.figure)


def test_a_line_ends_where_nothing_is_left() -> None:
    rnn = rc.RNN(I, H, seed=0)
    rnn.params["weight_hh_l0"][...] = 0.0
    ax = plot.gradient_lag({"without memory": rnn}, drawn(T, B, I))
    curve = np.asarray(ax.lines[0].get_ydata())
    assert curve[0] == pytest.approx(1.0)
    assert np.isnan(curve[1:]).all()
    rendered(ax.figure)


@pytest.mark.parametrize(
    ("layers", "options", "error", "message"),
    [
        ([rc.RNN(I, H)], {}, TypeError, "layers: expected a mapping from labels to layers"),
        ({}, {}, ValueError, "layers: expected at least one layer, got none"),
        ({"a": rc.GRU(I, H)}, {"member": "c"}, ValueError, r"member: expected 'h' for .*\['a'\]"),
        ({"a": rc.GRU(I, H)}, {"member": "z"}, ValueError, "member: expected 'h' or 'c'"),
        ({"a": rc.Linear(I, H)}, {}, TypeError, "layer: expected a recurrent layer, got Linear"),
    ],
)
def test_bad_layers_are_explained(
    layers: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plot.gradient_lag(layers, drawn(T, B, I), **options)


# ---- Matplotlib ----------------------------------------------------------------------------------


def test_no_figure_goes_through_pyplot() -> None:
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot.learning_curve({"train": [1.0, 0.5]}),
        lambda: plot.gates({"l0": {"f": np.ones((2, 3, 4))}}),
        lambda: plot.gradient_lag({"a": rc.RNN(I, H)}, drawn(T, B, I)),
    ],
)
def test_without_matplotlib_the_extra_is_named(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install rnncore\[plot\]"):
        call()
