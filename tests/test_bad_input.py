"""What bad input gets: the result of the contiguous copy, or an error that says what was wrong.

Every refusal is held to one form: the argument's name, what was expected, what came. What could
end the process (memory that cannot be had, signals, forks) runs in a process of its own.
"""

import copy
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rnncore as rc

Array = NDArray[Any]

CELLS: list[Any] = [rc.RNN, rc.LSTM, rc.GRU, rc.MGU]
T, B, I, H = 6, 3, 4, 5
LENGTHS = [4, 0, 6]
# Seconds from Ctrl-C to the end of the call: ten times what is promised.
DEADLINE = 5.0


@pytest.fixture(params=CELLS, ids=lambda cell: cell.__name__)
def cell(request: pytest.FixtureRequest) -> Any:
    """Each of the four layers."""
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let calls use two threads, whatever the machine."""
    before = rc.get_num_threads()
    rc.set_num_threads(2)
    yield
    rc.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Array:
    """Draw float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def refused(error: type[Exception], name: str, expected: str, got: str, call: Any) -> None:
    """Assert that a call is refused in the one form."""
    with pytest.raises(error) as info:
        call()
    text = str(info.value)
    assert text.startswith(f"{name}: expected "), text
    assert expected in text, text
    assert f"got {got}" in text, text


def arguments(layer: Any) -> dict[str, Any]:
    """Make good arguments for `everything`, by the names that messages use."""
    parts = layer.num_layers * layer.num_directions
    state = {"state": normal(parts, B, H, seed=1), "dstate": normal(parts, B, H, seed=2)}
    if isinstance(layer, rc.LSTM):
        state = {
            f"{name}[{k}] ({letter})": normal(parts, B, H, seed=3 + k)
            for name in ("state", "dstate")
            for k, letter in enumerate("hc")
        }
    x_shape, y_shape = [T, B, I], [T, B, layer.output_size]
    if layer.batch_first:
        x_shape[:2] = y_shape[:2] = [B, T]
    return {"x": normal(*x_shape), "lengths": LENGTHS, "dy": normal(*y_shape, seed=5), **state}


def everything(layer: Any, **changes: Any) -> list[Array]:
    """Run forward, backward and gates with `arguments`, some changed; return all arrays."""
    values = {**arguments(layer), **changes}
    states: dict[str, Any] = {}
    for name in ("state", "dstate"):
        pair = [value for key, value in values.items() if key.split("[")[0] == name]
        states[name] = tuple(pair) if isinstance(layer, rc.LSTM) else pair[0]
    y, state, tape = layer.forward(values["x"], states["state"], lengths=values["lengths"])
    gates = [gate for part in tape.gates().values() for gate in part.values()]
    g = layer.backward(tape, values["dy"], states["dstate"], return_state_grads=True)
    steps = [array for part in g.state_grads.values() for array in part.values()]
    members = [m for s in (state, g.state) for m in (s if isinstance(s, tuple) else (s,))]
    return [y, g.x, *members, *gates, *steps, *g.params.values()]


def assert_same(a: list[Array], b: list[Array]) -> None:
    """Assert the same bits everywhere."""
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def real_names(layer: Any) -> list[str]:
    """Name the arguments that take real numbers."""
    return [name for name in arguments(layer) if name != "lengths"]


# ------------------------------------------------------------------ options of the layers

BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str, str]] = [
    ({"input_size": 0}, ValueError, "a positive integer", "0"),
    ({"hidden_size": -3}, ValueError, "a positive integer", "-3"),
    ({"num_layers": 0}, ValueError, "a positive integer", "0"),
    ({"input_size": 4.0}, TypeError, "a positive integer", "4.0"),
    ({"hidden_size": True}, TypeError, "a positive integer", "True"),
    ({"hidden_size": np.True_}, TypeError, "a positive integer", "np.True_"),
    ({"num_layers": "2"}, TypeError, "a positive integer", "'2'"),
    ({"num_layers": None}, TypeError, "a positive integer", "None"),
    ({"bias": 1}, TypeError, "True or False", "1"),
    ({"bidirectional": None}, TypeError, "True or False", "None"),
    ({"batch_first": "yes"}, TypeError, "True or False", "'yes'"),
    ({"merge": "max"}, ValueError, "'concat' or 'sum' or 'mean' or 'mul'", "'max'"),
    ({"merge": None}, TypeError, "'concat'", "None"),
    ({"init": "zeros"}, ValueError, "'orthogonal' or 'pytorch'", "'zeros'"),
    ({"dropout": 1.0, "num_layers": 2}, ValueError, "in [0, 1)", "1.0"),
    ({"dropout": -0.1, "num_layers": 2}, ValueError, "in [0, 1)", "-0.1"),
    ({"dropout": float("nan"), "num_layers": 2}, ValueError, "in [0, 1)", "nan"),
    ({"dropout": True, "num_layers": 2}, TypeError, "in [0, 1)", "True"),
    ({"dropout": "0.5", "num_layers": 2}, TypeError, "in [0, 1)", "'0.5'"),
    ({"dropout": 0.5}, ValueError, "0 with num_layers=1", "0.5"),
    ({"recurrent_dropout": float("inf")}, ValueError, "in [0, 1)", "inf"),
    ({"recurrent_dropout": 10**400}, ValueError, "in [0, 1)", "an integer of 1329 bits"),
    ({"recurrent_dropout": None}, TypeError, "in [0, 1)", "None"),
    ({"dtype": "float16"}, ValueError, "'float32' or 'float64'", "'float16'"),
    ({"dtype": np.int32}, ValueError, "'float32' or 'float64'", "<class 'numpy.int32'>"),
    ({"dtype": np.dtype(">f4")}, ValueError, "'float32' or 'float64'", "dtype('>f4')"),
    ({"dtype": None}, TypeError, "'float32' or 'float64'", "None"),
    ({"dtype": 3.5}, TypeError, "'float32' or 'float64'", "3.5"),
    ({"seed": -1}, ValueError, "an integer in [0, 2**64)", "-1"),
    ({"seed": 2**64}, ValueError, "an integer in [0, 2**64)", str(2**64)),
    ({"seed": 10**400}, ValueError, "an integer in [0, 2**64)", "an integer of 1329 bits"),
    ({"seed": 0.0}, TypeError, "an integer in [0, 2**64)", "0.0"),
    ({"seed": False}, TypeError, "an integer in [0, 2**64)", "False"),
]


@pytest.mark.parametrize(("options", "error", "expected", "got"), BAD_OPTIONS, ids=str)
def test_bad_options(
    cell: Any, options: dict[str, Any], error: type[Exception], expected: str, got: str
) -> None:
    values = {"input_size": I, "hidden_size": H, **options}
    refused(error, next(iter(options)), expected, got, lambda: cell(**values))


@pytest.mark.parametrize(
    ("cell", "options", "error", "expected", "got"),
    [
        (rc.RNN, {"nonlinearity": "gelu"}, ValueError, "'tanh' or 'relu'", "'gelu'"),
        (rc.RNN, {"nonlinearity": 0}, TypeError, "'tanh' or 'relu'", "0"),
        (rc.GRU, {"update_gate": "Keep"}, ValueError, "'keep' or 'write'", "'Keep'"),
        (rc.MGU, {"update_gate": b"keep"}, TypeError, "'keep' or 'write'", "b'keep'"),
        (rc.GRU, {"reset_after": 0}, TypeError, "True or False", "0"),
        (rc.MGU, {"reset_after": "no"}, TypeError, "True or False", "'no'"),
    ],
)
def test_bad_options_of_one_cell(
    cell: Any, options: dict[str, Any], error: type[Exception], expected: str, got: str
) -> None:
    refused(error, next(iter(options)), expected, got, lambda: cell(I, H, **options))


HUGE = 10**5000  # more digits than Python prints


@pytest.mark.parametrize("value", [HUGE, -HUGE, [HUGE]], ids=["positive", "negative", "in a list"])
@pytest.mark.parametrize("option", inspect.signature(rc.GRU).parameters)
def test_an_integer_too_long_to_print_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^(.*, )?{option}.*: expected .*got "):
        rc.GRU(**({"input_size": I, "hidden_size": H} | {option: value}))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: rc.Linear(1, 1, seed=HUGE), "seed"),
        (lambda: rc.Linear(HUGE, 1), "out_features, in_features"),
        (lambda: rc.Linear(1, -HUGE), "out_features"),
        (lambda: rc.Linear(1, 1, bias=HUGE), "bias"),  # type: ignore[arg-type]
        (lambda: rc.Linear(1, 1, init=HUGE), "init"),  # type: ignore[arg-type]
        (lambda: rc.Embedding(HUGE, 1), "num_embeddings, embedding_dim"),
        (lambda: rc.Embedding(1, -HUGE), "embedding_dim"),
        (lambda: rc.Embedding(1, 1, seed=-HUGE), "seed"),
        (lambda: rc.RNN(1, 1).freeze(-HUGE), "batch_size"),
        (lambda: rc.RNN(1, 1).freeze(1, HUGE), "weights"),  # type: ignore[arg-type]
        (lambda: rc.RNN(1, 1).forward(normal(1, 1, 1), checkpoint=-HUGE), "checkpoint"),
        (lambda: setattr(rc.RNN(1, 1), "call_number", HUGE), "call_number"),
        (lambda: rc.SGD({"w": normal(1)}, lr=[HUGE]), "lr"),  # type: ignore[arg-type]
        (lambda: rc.SGD({"w": normal(1)}, 0.1, nesterov=HUGE), "nesterov"),  # type: ignore[arg-type]
        (lambda: rc.clip_grad_norm({"w": normal(1)}, [HUGE]), "max_norm"),  # type: ignore[arg-type]
        (lambda: rc.clip_grad_value({"w": normal(1)}, [HUGE]), "max_value"),  # type: ignore[arg-type]
        (lambda: rc.huber([1.0], [1.0], delta=[HUGE]), "delta"),  # type: ignore[arg-type]
        (lambda: rc.mean_squared_error([1.0], [1.0], ignore_index=-HUGE), "ignore_index"),
        (lambda: rc.WarmupLR(HUGE, 1), "then"),  # type: ignore[arg-type]
        (lambda: rc.StepLR(rc.SGD({"w": normal(1)}, 0.1), -HUGE), "step_size"),
        (lambda: rc.ReduceLROnPlateau(rc.SGD({"w": normal(1)}, 0.1), patience=HUGE), "patience"),
        (
            lambda: rc.ReduceLROnPlateau(rc.SGD({"w": normal(1)}, 0.1), mode=HUGE),  # type: ignore[arg-type]
            "mode",
        ),
        (lambda: rc.show_config(HUGE), "mode"),  # type: ignore[call-overload]
    ],
)
def test_an_integer_too_long_to_print_is_refused_elsewhere(make: Any, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected .*(of|type) "):
        make()


def test_options_are_keywords_and_cells_know_only_their_own(cell: Any) -> None:
    # Python's own messages tell the class that the user called.
    with pytest.raises(TypeError, match=rf"^{cell.__name__}\.__init__\(\) takes 3 positional"):
        cell(I, H, 2)
    with pytest.raises(TypeError, match=rf"^{cell.__name__}\.__init__\(\) .*'proj_size'"):
        cell(I, H, proj_size=2)
    foreign = {"reset_after": True} if cell in (rc.RNN, rc.LSTM) else {"nonlinearity": "tanh"}
    with pytest.raises(TypeError, match=next(iter(foreign))):
        cell(I, H, **foreign)


@pytest.mark.parametrize(
    ("value", "error", "got"),
    [(-1, ValueError, "-1"), (2**64, ValueError, str(2**64)), (1.0, TypeError, "1.0"),
     (True, TypeError, "True"), (None, TypeError, "None")],
)  # fmt: skip
def test_bad_call_number(value: Any, error: type[Exception], got: str) -> None:
    layer = rc.GRU(I, H)
    refused(error, "call_number", "[0, 2**64)", got, lambda: setattr(layer, "call_number", value))
    assert layer.call_number == 0


# --------------------------------------------------------------------------- x: rank and size


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "shape", [(), (I,), (T, B, I + 1), (T, I - 1), (T, B, 1, I), (T, B, 0), (0,), (I, T, B)]
)
def test_wrong_shape_of_x(cell: Any, batch_first: bool, shape: tuple[int, ...]) -> None:
    layer = cell(I, H, batch_first=batch_first)
    letters = f"({'B, T' if batch_first else 'T, B'}, {I}) or (T, {I})"
    for call in (layer, layer.forward):
        refused(ValueError, "x", letters, str(shape), lambda call=call: call(np.zeros(shape)))


def test_ragged_lists_are_no_arrays(cell: Any) -> None:
    layer = cell(2, H)
    refused(ValueError, "x", "rectangular", "", lambda: layer([[[1, 2]], [[1, 2, 3]]]))


# ------------------------------------------------------------------------------------- dtypes

REFUSED_DTYPES = ["complex64", "complex128", "bool", "object", "U3", "S3", "datetime64[s]",
                  "timedelta64[s]", "V4", "f4,f4"]  # fmt: skip


@pytest.mark.parametrize("dtype", REFUSED_DTYPES)
def test_numbers_that_are_not_real(cell: Any, dtype: str) -> None:
    layer = cell(I, H)
    for name in real_names(layer):
        bad = np.zeros(arguments(layer)[name].shape, dtype)
        if dtype == "object":
            bad[...] = 0.5  # a number inside does not make the array one of numbers
        refused(
            TypeError,
            name,
            "real numbers",
            f"dtype {bad.dtype}",
            lambda name=name, bad=bad: everything(layer, **{name: bad}),
        )


@pytest.mark.parametrize(
    ("value", "got"),
    [("text", "dtype <U4"), (b"bytes", "dtype |S5"), ({}, "dict"), (object(), "object"),
     (True, "bool"), ([[True, 1.5]], "bool"), ([[None, 1.0]], "NoneType"),
     (1j, "dtype complex128")],
)  # fmt: skip
def test_values_that_are_no_arrays_of_numbers(cell: Any, value: Any, got: str) -> None:
    refused(TypeError, "x", "real numbers", got, lambda: cell(2, H)(value))


def test_finite_numbers_that_the_dtype_cannot_hold(cell: Any) -> None:
    layer = cell(I, H, dtype="float32")
    for name in real_names(layer):
        bad = arguments(layer)[name].astype(np.float64)
        bad[0, 0, 0] = 1e300
        refused(
            ValueError,
            name,
            "the range of float32",
            "1e+300 at position (0, 0, 0)",
            lambda name=name, bad=bad: everything(layer, **{name: bad}),
        )


# ------------------------------------------------------------------------------------ layouts


class Labelled(np.ndarray[Any, Any]):
    """A subclass whose arithmetic must not be reached."""

    def __array_ufunc__(self, *arguments: Any, **options: Any) -> Any:
        """Refuse to compute."""
        raise AssertionError("the subclass was asked to compute")


class Exporter:
    """An object that is no array but can become one."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return the array."""
        return self.array if dtype is None else self.array.astype(dtype)


def misaligned(array: Array) -> Array:
    """Copy into memory that begins one byte late."""
    memory = bytearray(array.nbytes + 1)
    view = np.frombuffer(memory, array.dtype, array.size, offset=1).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def field(array: Array) -> Array:
    """Copy into one field of packed records: strides that are no multiple of the item."""
    records = np.zeros(array.shape, [("tag", "i1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


def read_only(array: Array) -> Array:
    """Copy, and forbid writing."""
    plain = array.copy()
    plain.setflags(write=False)
    return plain


def every_other(array: Array) -> Array:
    """Copy into every other element along the last axis of a larger array."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan).astype(array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "fortran": np.asfortranarray,
    "negative strides": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "negative last stride": lambda a: a[..., ::-1].copy()[..., ::-1],
    "zero strides": lambda a: np.broadcast_to(a[:1], a.shape),
    "one element": lambda a: np.broadcast_to(a.flat[0], a.shape),
    "every other": every_other,
    "swapped axes": lambda a: a.swapaxes(0, 1).copy().swapaxes(0, 1),
    "misaligned": misaligned,
    "field of records": field,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": read_only,
    "subclass": lambda a: a.view(Labelled),
    "unmasked": lambda a: np.ma.MaskedArray(a, mask=False),
    "exporter": Exporter,
    "list": lambda a: a.tolist(),
    "memoryview": lambda a: a.copy().data,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_every_layout_gives_what_the_contiguous_copy_gives(
    cell: Any, layout: str, batch_first: bool
) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True, batch_first=batch_first, seed=0)
    for name in real_names(layer):
        strange = LAYOUTS[layout](arguments(layer)[name])
        plain = np.array(strange, np.float32, order="C", subok=False)
        assert_same(everything(layer, **{name: strange}), everything(layer, **{name: plain}))


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">f8", "longdouble", "i1", "u8", ">i4"])
def test_every_real_dtype_gives_what_the_converted_copy_gives(cell: Any, dtype: str) -> None:
    layer = cell(I, H, seed=0)
    for name in real_names(layer):
        strange = (4 * abs(arguments(layer)[name])).astype(dtype)
        plain = strange.astype(np.float32)
        assert_same(everything(layer, **{name: strange}), everything(layer, **{name: plain}))


@pytest.mark.parametrize(
    "layout",
    ["zero strides", "negative strides", "every other", "misaligned", "byte-swapped", "read-only",
     "subclass", "exporter", "list"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["i8", "u1", "i4", "u8"])
def test_every_layout_of_lengths(layout: str, dtype: str) -> None:
    layer = rc.GRU(I, H, seed=0)
    lengths = np.array([4, 6, 1], dtype)
    if layout == "negative strides":
        strange: Any = lengths[::-1].copy()[::-1]
    elif layout == "every other":
        strange = np.repeat(lengths, 2)[::2]
    elif layout == "misaligned" and dtype == "u1":
        strange = np.frombuffer(b"\x00" + lengths.tobytes(), dtype, offset=1)
    else:
        strange = LAYOUTS[layout](lengths)
    plain = np.array(strange, np.int64, subok=False)
    assert_same(everything(layer, lengths=strange), everything(layer, lengths=plain))


def test_a_memory_map_is_an_array(cell: Any, tmp_path: Path) -> None:
    layer, x = cell(I, H, seed=0), arguments(cell(I, H))["x"]
    x.tofile(tmp_path / "x.bin")
    mapped = np.memmap(tmp_path / "x.bin", np.float32, mode="r", shape=x.shape)
    assert_same(everything(layer, x=mapped), everything(layer, x=x))


def test_masked_entries_are_refused(cell: Any) -> None:
    layer = cell(I, H)
    for name in real_names(layer):
        bad = np.ma.MaskedArray(arguments(layer)[name], mask=False)
        bad[0, 0, 0] = np.ma.masked
        refused(
            ValueError,
            name,
            "no masked entries",
            "1 of",
            lambda name=name, bad=bad: everything(layer, **{name: bad}),
        )


@pytest.mark.parametrize("layout", ["fortran", "misaligned", "byte-swapped", "subclass", "list"])
def test_every_layout_of_parameters_loads(cell: Any, layout: str) -> None:
    layer, source = cell(I, H, seed=0), cell(I, H, seed=1)
    layer.load_params({name: LAYOUTS[layout](array) for name, array in source.params.items()})
    assert_same(list(layer.params.values()), list(source.params.values()))


def test_a_parameter_of_another_size_is_noticed(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    _, _, tape = layer.forward(normal(T, B, I))
    with pytest.raises(ValueError, match="does not own its data"):
        layer.params["bias_hh_l0"].resize(1, refcheck=False)
    # Nobody can do it from outside; the core holds sizes against each other even so.
    layer._arrays[list(layer.params).index("bias_hh_l0")] = np.zeros(1, np.float32)
    for call in (
        lambda: layer(normal(T, B, I)),
        lambda: layer.backward(tape, normal(T, B, H)),
        layer.freeze,
    ):
        with pytest.raises(ValueError, match=r"bias_hh_l0.*expected.*got \(1,\)"):
            call()


# ------------------------------------------------------------------------------------ lengths


@pytest.mark.parametrize(
    ("lengths", "error", "expected", "got"),
    [
        ([4.0, 1.0, 2.0], TypeError, "integers", "dtype float64"),
        (np.array([4, 1, 2], np.float32), TypeError, "integers", "dtype float32"),
        (np.array([4, 1, 2], complex), TypeError, "integers", "dtype complex128"),
        ([True, False, True], TypeError, "integers", "bool"),
        (np.array([True, False, True]), TypeError, "integers", "dtype bool"),
        (np.array([4, 1, 2], object), TypeError, "integers", "dtype object"),
        (["4", "1", "2"], TypeError, "integers", "dtype <U1"),
        (np.array([4, 1, 2], "m8[s]"), TypeError, "integers", "dtype timedelta64[s]"),
        ({4, 1, 2}, TypeError, "integers", "set"),
        ([None, 1, 2], TypeError, "integers", "NoneType"),
        (np.zeros(0), TypeError, "integers", "dtype float64"),
        (4, ValueError, "(B,) = (3,)", "()"),
        ([4, 1], ValueError, "(B,) = (3,)", "(2,)"),
        ([4, 1, 2, 3], ValueError, "(B,) = (3,)", "(4,)"),
        ([], ValueError, "(B,) = (3,)", "(0,)"),
        ([[4, 1, 2]], ValueError, "(B,) = (3,)", "(1, 3)"),
        ([4, -1, 2], ValueError, "0 <= value <= T = 6", "-1 at position 1"),
        ([4, 1, 7], ValueError, "0 <= value <= T = 6", "7 at position 2"),
        ([4, 1, 2**63 - 1], ValueError, "0 <= value <= T = 6", f"{2**63 - 1} at position 2"),
        (np.array([4, 2**64 - 1, 2], np.uint64), ValueError, "below 2**63", str(2**64 - 1)),
        ([4, 10**30, 2], ValueError, "at most 64 bits", "a larger one"),
    ],
    ids=str,
)
def test_bad_lengths(
    cell: Any, lengths: Any, error: type[Exception], expected: str, got: str
) -> None:
    for batch_first in (False, True):
        layer = cell(I, H, batch_first=batch_first)
        x = arguments(layer)["x"]
        for call in (layer, layer.forward):
            refused(
                error, "lengths", expected, got, lambda call=call, x=x: call(x, lengths=lengths)
            )


def test_an_unbatched_sequence_takes_no_lengths(cell: Any) -> None:
    layer = cell(I, H)
    for lengths in ([T], T, np.array([T])):
        refused(
            ValueError,
            "lengths",
            "None for an unbatched x of shape (T, I)",
            type(lengths).__name__,
            lambda lengths=lengths: layer(normal(T, I), lengths=lengths),
        )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e300])
def test_padding_may_hold_anything(cell: Any, batch_first: bool, padding: float) -> None:
    layer = cell(
        I, H, num_layers=2, bidirectional=True, merge="mul", batch_first=batch_first, seed=0
    )
    good = arguments(layer)
    dirty = {name: good[name].astype(np.float64) for name in ("x", "dy")}
    for array in dirty.values():
        steps_first = array.swapaxes(0, 1) if batch_first else array
        for row, length in enumerate(LENGTHS):
            steps_first[length:, row] = padding
    results = everything(layer, **dirty)
    assert_same(results, everything(layer))
    assert all(np.isfinite(array).all() for array in results)
    dx = results[1].swapaxes(0, 1) if batch_first else results[1]
    assert all(not dx[length:, row].any() for row, length in enumerate(LENGTHS))


# -------------------------------------------------------------------------------------- states


def test_wrong_shapes_of_states_and_gradients(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, bidirectional=True)
    for name in real_names(layer):
        if name == "x":
            continue
        good = arguments(layer)[name]
        letters = "(T, B, M)" if name == "dy" else "(L*D, B, H)"
        for bad in (good[1:], good[:, 1:], good[..., 1:], good[0], good[None]):
            refused(
                ValueError,
                name,
                f"{letters} = {good.shape}",
                str(bad.shape),
                lambda name=name, bad=bad: everything(layer, **{name: bad}),
            )


def test_wrong_shapes_of_unbatched_states_and_gradients(cell: Any) -> None:
    layer = cell(I, H, num_layers=2)
    lstm = cell is rc.LSTM
    x, good, bad = normal(T, I), normal(2, H), normal(2, 1, H)
    _, _, tape = layer.forward(x)
    for name, call in (
        ("state", lambda state: layer(x, state)),
        ("dstate", lambda state: layer.backward(tape, None, state)),
    ):
        state = (good, bad) if lstm else bad
        label = f"{name}[1] (c)" if lstm else name
        refused(ValueError, label, "(L*D, H) = (2, 5)", "(2, 1, 5)", lambda c=call, s=state: c(s))
    refused(
        ValueError,
        "dy",
        "(T, M) = (6, 5)",
        "(6, 1, 5)",
        lambda: layer.backward(tape, normal(T, 1, H)),
    )


def test_the_state_of_an_lstm_is_a_pair() -> None:
    layer, h = rc.LSTM(I, H), normal(1, B, H)
    x = normal(T, B, I)
    y, _, tape = layer.forward(x)
    calls: list[tuple[str, Callable[[Any], Any]]] = [
        ("state", lambda state: layer(x, state)),
        ("state", lambda state: layer.forward(x, state)),
        ("dstate", lambda state: layer.backward(tape, y, state)),
    ]
    for name, call in calls:
        for bad, error, got in (
            (h, TypeError, "ndarray"),
            (np.stack([h, h]), TypeError, "ndarray"),
            ({"h": h, "c": h}, TypeError, "dict"),
            ((h,), ValueError, "1 members"),
            ([h, h, h], ValueError, "3 members"),
            ((), ValueError, "0 members"),
        ):
            refused(error, name, "a pair (h, c)", got, lambda c=call, b=bad: c(b))
    for pair, label in (((None, h), "state[0] (h)"), ((h, None), "state[1] (c)")):
        refused(TypeError, label, "real numbers", "NoneType", lambda p=pair: layer(x, p))


@pytest.mark.parametrize("cell", [rc.RNN, rc.GRU, rc.MGU])
def test_the_state_of_the_others_is_one_array(cell: Any) -> None:
    layer, h = cell(I, H), normal(1, B, H)
    refused(
        ValueError,
        "state",
        "(L*D, B, H) = (1, 3, 5)",
        "(2, 1, 3, 5)",
        lambda: layer(normal(T, B, I), (h, h)),
    )


# ---------------------------------------------------------------------------- options of calls


@pytest.mark.parametrize("value", [0, 1, 0.5, None, "no", np.True_, np.array(True), []])
def test_dropout_of_a_call_is_a_bool(cell: Any, value: Any) -> None:
    layer = cell(I, H, recurrent_dropout=0.5)
    refused(
        TypeError,
        "dropout",
        "True or False",
        repr(value),
        lambda: layer.forward(normal(T, B, I), dropout=value),
    )
    assert layer.call_number == 0


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_bad_checkpoint(cell: Any, value: Any, error: type[Exception]) -> None:
    layer = cell(I, H)
    refused(
        error,
        "checkpoint",
        "a positive integer",
        repr(value),
        lambda: layer.forward(normal(T, B, I), checkpoint=value),
    )


def test_bad_freeze(cell: Any) -> None:
    layer = cell(I, H)
    for value, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        refused(
            error, "batch_size", "positive", repr(value), lambda v=value: layer.freeze(batch_size=v)
        )
    for weights in ("int8", "BFLOAT16", b"bfloat16", 16, ["bfloat16"], np.array(["bfloat16"])):
        refused(
            ValueError,
            "weights",
            'None (the layer\'s own float32) or "bfloat16"',
            repr(weights),
            lambda w=weights: layer.freeze(weights=w),
        )
    double = cell(I, H, dtype="float64")
    expected = "None (the layer's own float64)"
    refused(
        ValueError, "weights", expected, "'bfloat16'", lambda: double.freeze(weights="bfloat16")
    )
    two = cell(I, H, bidirectional=True)
    refused(ValueError, "freeze", "one direction", "bidirectional=True", two.freeze)


def test_bad_input_of_a_frozen_layer(cell: Any) -> None:
    frozen = cell(I, H, seed=0).freeze(batch_size=B)
    for value in (normal(B, I + 1), normal(B + 1, I), normal(I), np.float32(1)):
        with pytest.raises(ValueError, match=r"x_t: expected .*got"):
            frozen.step(value)
    for value in (normal(T, B, I + 1), normal(T, B + 1, I), normal(I)):
        with pytest.raises(ValueError, match=r"x: expected .*got"):
            frozen.run(value)
    for dtype in REFUSED_DTYPES:
        with pytest.raises(TypeError, match=r"x_t: expected .*got"):
            frozen.step(np.zeros((B, I), dtype))
        with pytest.raises(TypeError, match=r"x: expected .*got"):
            frozen.run(np.zeros((T, B, I), dtype))
    x_t = normal(B, I)
    expected = cell(I, H, seed=0).freeze(batch_size=B).step(x_t)
    bad_outs: list[tuple[Any, type[Exception]]] = [
        (np.empty((B, H + 1), np.float32), ValueError),
        (np.empty((B, H), np.float64), TypeError),
        (read_only(normal(B, H)), ValueError),
        (np.asfortranarray(normal(B, H)), ValueError),
        ([0.0], TypeError),
    ]
    for out, error in bad_outs:
        with pytest.raises(error, match=r"out: expected .*got"):
            frozen.step(x_t, out=out)
    for rows, wrong in (
        ([B], ValueError),
        ([0, -1], ValueError),
        (1.5, TypeError),
        ("0", TypeError),
        (True, TypeError),
        ([True, False], TypeError),
        (np.array([True, False, True]), TypeError),
    ):
        with pytest.raises(wrong, match=r"rows: expected .*got"):
            frozen.reset(rows)
    for state in (normal(1, B + 1, H), normal(1, B, H).astype(complex), "state"):
        bad_state = (state, state) if cell is rc.LSTM else state
        with pytest.raises((ValueError, TypeError), match=r"state.*: expected .*got"):
            frozen.state = bad_state
    # Nothing of this has moved the state.
    np.testing.assert_array_equal(frozen.step(x_t), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_frozen_layer_takes_every_layout(cell: Any, layout: str) -> None:
    layer = cell(I, H, seed=0)
    for method, value in (("step", normal(B, I)), ("run", normal(T, B, I))):
        strange = LAYOUTS[layout](value)
        plain = np.array(strange, np.float32, order="C", subok=False)
        results = [getattr(layer.freeze(B), method)(argument) for argument in (strange, plain)]
        np.testing.assert_array_equal(*results, strict=True)


# --------------------------------------------------------------------------------------- tapes


def test_what_is_no_tape(cell: Any) -> None:
    layer = cell(I, H)
    for value, got in ((None, "NoneType"), (normal(1), "ndarray"), (layer, cell.__name__)):
        refused(TypeError, "tape", "a Tape", got, lambda v=value: layer.backward(v))


def test_a_tape_of_another_layer(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    y, _, tape = layer.forward(normal(T, B, I))
    others = [cell(I, H, seed=0), copy.deepcopy(layer), copy.copy(layer), rc.RNN(1, 1)]
    for other in others:
        refused(
            ValueError,
            "tape",
            "one from this layer's own forward",
            "one of another layer",
            lambda other=other: other.backward(tape, y),
        )
    layer.backward(tape, y)  # no refusal has used it
    refused(ValueError, "tape", "an unused one", "one that", lambda: layer.backward(tape, y))


# ------------------------------------------------------------------------------ absurd sizes


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 2**62},
        {"input_size": 2**63},
        {"num_layers": 2**61},
        {"hidden_size": 2**31, "num_layers": 2**31},
        {"hidden_size": 10**30},
        {"num_layers": 10**400},
    ],
    ids=str,
)
def test_sizes_whose_product_overflows(cell: Any, sizes: dict[str, int]) -> None:
    values = {"input_size": 1, "hidden_size": 1, **sizes}
    refused(
        ValueError,
        "input_size, hidden_size, num_layers",
        "the address space",
        "",
        lambda: cell(**values),
    )


@pytest.mark.parametrize(
    "sizes", [{"hidden_size": 2**25}, {"input_size": 2**50}, {"num_layers": 2**42}], ids=str
)
def test_sizes_that_no_machine_holds(cell: Any, sizes: dict[str, int]) -> None:
    # More than the 2**47 bytes that a process can address: refused at once, whatever the machine.
    values = {"input_size": 1, "hidden_size": 1, **sizes}
    with pytest.raises(MemoryError, match=r"hidden_size.*expected sizes.*fit the memory, got"):
        cell(**values)


def test_a_batch_that_no_machine_holds(cell: Any) -> None:
    layer = cell(I, H)
    refused(
        ValueError,
        "batch_size",
        "fits the address space",
        str(2**62),
        lambda: layer.freeze(batch_size=2**62),
    )
    with pytest.raises(MemoryError, match="allocate"):
        layer.freeze(batch_size=2**47)


def test_a_view_that_no_machine_could_copy(cell: Any) -> None:
    layer = cell(I, H)
    with pytest.raises(MemoryError, match="allocate"):
        layer(np.broadcast_to(np.float32(0), (2**45, B, I)))


def test_endless_time_of_no_rows_takes_no_time() -> None:
    script = """
import numpy as np, rnncore as rc
for cell in (rc.RNN, rc.LSTM, rc.GRU, rc.MGU):
    layer = cell(4, 5, num_layers=2, bidirectional=True)
    x = np.zeros((2**40, 0, 4), np.float32)
    assert layer(x)[0].shape == (2**40, 0, 10)
    assert layer(x, lengths=[])[0].shape == (2**40, 0, 10)
"""
    assert run_script(script, timeout=20) == ""


# ---------------------------------------------------------------------- processes of their own


def run_script(script: str, timeout: float = 120) -> str:
    """Run Python code in a process of its own, demand success, return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return done.stdout


LIMITS = """
import ctypes, os, resource, sys
import numpy as np, rnncore as rc

hard = resource.getrlimit(resource.RLIMIT_AS)[1]

def limit(extra):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, hard))

def lift():
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
"""
MEMORY = """
def bits():
    y, (h, c), tape = small.forward(small_x)
    g = small.backward(tape, y)
    return b"".join(a.tobytes() for a in (y, h, c, g.x, *g.params.values()))

rc.set_num_threads({threads})
small = rc.LSTM(8, 16, num_layers=2, bidirectional=True, seed=0)
small_x = np.ones((20, 8, 8), np.float32)
expected = bits()
{setup}
limit(32 * 2**20)
try:
    {attempt}
except MemoryError as error:
    text = str(error)
else:
    sys.exit("expected a MemoryError")
assert {says!r} in text, text
assert bits() == expected  # still under the limit
lift()
assert bits() == expected
{after}
"""
WIDE = "layer = rc.GRU(4, 64, seed=0); x = np.ones((8000, 64, 4), np.float32)"
TAPE = WIDE + "; y, _, tape = layer.forward(x)"
# What needs how much (the limit leaves 32 MiB): name -> setup, attempt, word in the message, after.
HUNGRY: dict[str, tuple[str, str, str, str]] = {
    # weight_hh: 144 MB
    "construct": ("", "rc.LSTM(4, 3000)", "hidden_size", ""),
    # y: 131 MB
    "inference": (WIDE, "layer(x)", "allocate", "layer(x)"),
    # y: 131 MB, the tape several times that
    "forward": (WIDE, "layer.forward(x)", "allocate", "layer.forward(x)"),
    # x as float32: 131 MB
    "conversion": (
        "layer = rc.GRU(64, 4); x = np.ones((8000, 64, 64), np.int8)",
        "layer(x)",
        "allocate",
        "layer(x)",
    ),
    # dx: 147 MB. The tape must survive the refusal.
    "backward": (
        "layer = rc.GRU(256, 4, seed=0); x = np.ones((4500, 32, 256), np.float32)\n"
        "y, _, tape = layer.forward(x); y2, _, tape2 = layer.forward(x)\n"
        "expected_dx = layer.backward(tape2, y).x.sum(dtype=np.float64)",
        "layer.backward(tape, y)",
        "allocate",
        "assert layer.backward(tape, y).x.sum(dtype=np.float64) == expected_dx",
    ),
    # dL/dh_t: 131 MB
    "state gradients": (
        TAPE,
        "layer.backward(tape, y, return_state_grads=True)",
        "allocate",
        "assert layer.backward(tape, y, return_state_grads=True).state_grads",
    ),
    # three gates: 393 MB
    "gates": (TAPE, "tape.gates()", "allocate", "assert tape.gates()"),
    # weight_hh packed: 67 MB
    "freeze": (
        "layer = rc.LSTM(4, 2048, init='pytorch')",
        "layer.freeze()",
        "allocate",
        "layer.freeze()",
    ),
    # y: 131 MB
    "run": (WIDE + "; s = layer.freeze(64)", "s.run(x)", "allocate", "s.run(x)"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", HUNGRY)
def test_memory_that_cannot_be_had(what: str, threads: int) -> None:
    setup, attempt, says, after = HUNGRY[what]
    script = MEMORY.format(setup=setup, attempt=attempt, says=says, after=after, threads=threads)
    run_script(LIMITS + script)


# Each limit in a child of its own, which has no buffers from earlier calls; the first that is
# enough ends the scan.
SCAN = """
def ending(extra):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        limit(extra)
        {attempt}
        status = 0
    except MemoryError:
        status = 3
    except BaseException as error:
        lift()
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)

rc.set_num_threads(2)
layer = rc.RNN(1, 1, num_layers={num_layers}, seed=0)
{setup}
endings = []
for extra in range(0, 2**30, {step} * 2**20):
    endings.append(ending(extra))
    if endings[-1] == 0:
        break
if set(endings) != {{0, 3}}:
    sys.exit(f"expected 3 (MemoryError), in the end 0 (success), got {{endings}}")
"""
# What allocates as much as the batch, the steps, the layers or the argument make it: name ->
# layers, setup, attempt, step of the limit in MB.
SCANS: dict[str, tuple[int, str, str, int]] = {
    "rows": (
        1,
        "x, lengths = np.ones((1, 4_000_000, 1), np.float32), np.ones(4_000_000, np.int64)",
        "layer(x, lengths=lengths)",
        8,
    ),
    "rows of a tape": (
        1,
        "x, lengths = np.ones((1, 4_000_000, 1), np.float32), np.ones(4_000_000, np.int64)",
        "layer.forward(x, lengths=lengths)",
        8,
    ),
    "steps": (
        1,
        "x = np.ones((2_000_000, 1, 1), np.float32)",
        "layer.forward(x, checkpoint=1)",
        16,
    ),
    "layers": (20_000, "x = np.ones((2, 1, 1), np.float32)", "layer(x)", 1),
    "reset": (
        1,
        "frozen, rows = layer.freeze(10**6), list(range(10**6))",
        "frozen.reset(rows)",
        1,
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
@pytest.mark.parametrize("what", SCANS)
def test_no_limit_of_memory_ends_the_process(what: str) -> None:
    num_layers, setup, attempt, step = SCANS[what]
    script = SCAN.format(num_layers=num_layers, setup=setup, attempt=attempt, step=step)
    run_script(LIMITS + script)


# Once malloc has nothing left, whoever asks for memory fails; Python's own objects come from
# pools that have room.
EXHAUSTED = """
malloc = ctypes.CDLL(None).malloc
malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
sizes = [2**k for k in range(24, 11, -1)] + list(range(4096, 0, -16))

def exhaust():
    for size in sizes:
        while malloc(size):
            pass

layer = rc.{cell}(8, 16, num_layers=2, seed=0)
frozen, same = layer.freeze(3), layer.freeze(3)
x, out = np.ones((3, 8), np.float32), np.empty((3, 16), np.float32)
room = [object() for _ in range(100_000)]
del room
limit(0)
exhaust()
for _ in range(1000):
    frozen.step(x, out=out)
freed = malloc(16)
lift()
assert freed is None, "a step has freed memory"
for _ in range(1000):
    y = same.step(x)
assert (y == out).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
def test_a_step_into_an_array_asks_for_no_memory(cell: Any) -> None:
    run_script(LIMITS + EXHAUSTED.format(cell=cell.__name__))


INTERRUPT = """
import signal, time
import numpy as np, rnncore as rc

# A shell may have started us with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def bits():
    y, h, tape = small.forward(small_x)
    g = small.backward(tape, y)
    return b"".join(a.tobytes() for a in (y, h, g.x, *g.params.values()))

rc.set_num_threads({threads})
small, small_x = rc.GRU(8, 16, seed=0), np.ones((20, 8, 8), np.float32)
expected = bits()
layer = rc.LSTM(4, 2048, init="pytorch", seed=0)

def steps(seconds):
    "How many steps the forward pass makes in that time, by what 40 of them take."
    x = np.ones((40, 1, 4), np.float32)
    layer(x)
    start = time.perf_counter()
    layer(x)
    return int(40 * seconds / (time.perf_counter() - start))

{setup}
print("ready", flush=True)
try:
    {attempt}
except KeyboardInterrupt:
    assert bits() == expected
    {after}
    print("interrupted", flush=True)
else:
    print("finished before the signal came", flush=True)
"""
# Each attempt lasts at least three times the deadline: only a call that looks for signals passes.
LONG: dict[str, tuple[str, str, str]] = {
    "inference": ("x = np.ones((steps(15), 1, 4), np.float32)", "layer(x)", "pass"),
    "run": (
        "x = np.ones((steps(15), 1, 4), np.float32); s = layer.freeze()",
        "s.run(x)",
        "pass",
    ),
    # The training forward costs what inference costs, and backward with checkpoints three times it.
    "backward": (
        "x = np.ones((steps(5), 1, 4), np.float32); y, _, tape = layer.forward(x, checkpoint=50)",
        "layer.backward(tape, y)",
        "assert tape.nbytes == 0",
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process there")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", LONG)
def test_ctrl_c_ends_a_long_call(what: str, threads: int) -> None:
    setup, attempt, after = LONG[what]
    script = INTERRUPT.format(setup=setup, attempt=attempt, after=after, threads=threads)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)  # let it get into the call
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
        assert (process.returncode, out) == (0, "interrupted\n"), err
        assert time.monotonic() - start < DEADLINE
    finally:
        process.kill()
        process.communicate()


FORK = """
import os, signal, sys, threading, time
import numpy as np, rnncore as rc

def bits(layer, x):
    y, h, tape = layer.forward(x, lengths=np.arange(len(x[0])) % (len(x) + 1))
    g = layer.backward(tape, y)
    return b"".join(a.tobytes() for a in (y, h, g.x, *g.params.values()))

def child_agrees():
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = 0 if bits(layer, x) == expected else 1
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "the child hangs"

rc.set_num_threads(3)
layer = rc.GRU(32, 48, num_layers=2, bidirectional=True, recurrent_dropout=0.0, seed=0)
x = np.random.default_rng(0).standard_normal((40, 64, 32)).astype(np.float32)
expected = bits(layer, x)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_computes_the_same_bits() -> None:
    script = """
for _ in range(3):
    result = child_agrees()
    assert result == 0, result
assert bits(layer, x) == expected
"""
    run_script(FORK + script)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_forked_while_another_thread_computes_works() -> None:
    script = """
other, stop = rc.GRU(32, 48, seed=1), threading.Event()

def busy():
    while not stop.is_set():
        bits(other, x)

thread = threading.Thread(target=busy)
thread.start()
try:
    for _ in range(5):
        result = child_agrees()
        assert result == 0, result
finally:
    stop.set()
    thread.join()
assert bits(layer, x) == expected
"""
    run_script(FORK + script)


# ---------------------------------------------------------------------------- several threads


@pytest.mark.usefixtures("two_threads")
def test_threads_in_one_layer_compute_what_one_alone_computes(cell: Any) -> None:
    layer = cell(I, 32, num_layers=2, bidirectional=True, seed=0)

    def work(seed: int) -> bytes:
        x = normal(30, 16, I, seed=seed)
        y, state, tape = layer.forward(x, lengths=np.arange(16) * 2)
        g = layer.backward(tape, y)
        states = [m for s in (state, g.state) for m in (s if isinstance(s, tuple) else (s,))]
        again = layer(x)[0]
        return b"".join(a.tobytes() for a in (y, g.x, again, *states, *g.params.values()))

    alone = [work(seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(24))) == alone


@pytest.mark.usefixtures("two_threads")
def test_threads_that_draw_masks_draw_each_mask_once(cell: Any) -> None:
    layer = cell(I, H, num_layers=2, dropout=0.5, recurrent_dropout=0.5, seed=0)
    x = normal(T, B, I)
    alone = sorted(layer.forward(x)[0].tobytes() for _ in range(64))
    assert len(set(alone)) == 64
    layer.call_number = 0
    with ThreadPoolExecutor(8) as pool:
        together = sorted(pool.map(lambda _: layer.forward(x)[0].tobytes(), range(64)))
    assert together == alone
    assert layer.call_number == 64


@pytest.mark.usefixtures("two_threads")
def test_of_several_threads_one_gets_the_tape(cell: Any) -> None:
    layer = cell(I, 16, seed=0)
    x = normal(50, 4, I)
    for _ in range(10):
        y, _, tape = layer.forward(x)
        expected = layer.backward(tape, y, keep=True).x
        barrier = threading.Barrier(6)

        def race(y: Array = y, tape: Any = tape, barrier: Any = barrier) -> Array | str:
            barrier.wait()
            try:
                dx: Array = layer.backward(tape, y).x
            except ValueError as error:
                return str(error)
            return dx

        with ThreadPoolExecutor(6) as pool:
            results = [future.result() for future in [pool.submit(race) for _ in range(6)]]
        won = [result for result in results if not isinstance(result, str)]
        lost = [result for result in results if isinstance(result, str)]
        assert len(won) == 1
        np.testing.assert_array_equal(won[0], expected)
        assert all(text.startswith("tape: expected an unused one, got") for text in lost)


@pytest.mark.usefixtures("two_threads")
def test_several_threads_may_keep_one_tape(cell: Any) -> None:
    layer = cell(I, 16, seed=0)
    y, _, tape = layer.forward(normal(50, 4, I))
    expected = layer.backward(tape, y, keep=True).x
    with ThreadPoolExecutor(4) as pool:
        for dx in pool.map(lambda _: layer.backward(tape, y, keep=True).x, range(16)):
            np.testing.assert_array_equal(dx, expected)


def test_two_threads_in_one_frozen_layer_are_refused() -> None:
    frozen = rc.LSTM(4, 256, init="pytorch", seed=0).freeze()
    x, x_t = np.ones((20_000, 4), np.float32), np.ones(4, np.float32)
    inside = threading.Thread(target=lambda: frozen.run(x))
    inside.start()
    refusals = 0
    while inside.is_alive():
        try:
            frozen.step(x_t)
        except RuntimeError:
            refusals += 1
    inside.join()
    assert refusals > 0
    frozen.reset()
    np.testing.assert_array_equal(
        frozen.step(x_t), rc.LSTM(4, 256, init="pytorch", seed=0).freeze().step(x_t)
    )
