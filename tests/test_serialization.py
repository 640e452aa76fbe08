"""Saving and loading: what fits, what does not, and files made to harm."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import rnncore as rc

Arrays = dict[str, NDArray[Any]]
DTYPES = ["f8", "f4", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"]


class Layer:
    """The least that save and load need of a layer, with a state beside its parameters."""

    def __init__(self, value: float, calls: int = 0) -> None:
        self.params = {"weight": np.full((2, 3), value), "bias": np.full(3, value, np.float32)}
        self.calls = calls

    def load_params(self, mapping: Mapping[str, Any]) -> None:
        for name, array in self.params.items():
            array[...] = mapping[name]

    def _extra_state(self) -> dict[str, str]:
        return {"calls": str(self.calls)}

    def _load_extra_state(self, state: dict[str, str]) -> None:
        self.calls = int(state["calls"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether both hold the same names, types, shapes and bytes."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


# ---- Round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3), (1, 1, 1, 5)])
def test_arrays_come_back_as_they_were(file: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    rc.save(file, {"a": array})
    loaded = rc.load(file)
    assert equal(loaded, {"a": array})
    assert loaded["a"].flags.writeable
    assert loaded["a"].flags.c_contiguous
    assert loaded["a"].flags.aligned


def test_special_values_keep_their_bits(file: Path) -> None:
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324, 1.7e308])
    rc.save(file, {"a": values, "b": values[:5].astype("f4")})
    assert equal(rc.load(file), {"a": values, "b": values[:5].astype("f4")})


def test_arrays_larger_than_one_chunk(file: Path) -> None:
    tree = {name: np.arange(100_003, dtype=name) for name in ("f8", "f4", "i2")}
    rc.save(file, tree)
    assert equal(rc.load(file), tree)


def test_any_memory_layout_is_saved_as_its_values(file: Path) -> None:
    base = np.arange(24, dtype="f8").reshape(4, 6)
    misaligned = np.zeros(8 * 6 + 1, np.uint8)[1:].view("f8")
    misaligned[...] = np.arange(6)
    read_only = base.copy()
    read_only.flags.writeable = False
    tree: dict[str, Any] = {
        "fortran": np.asfortranarray(base),
        "strided": base[::2, ::-3],
        "broadcast": np.broadcast_to(base[0], (3, 6)),
        "swapped": base.astype(">f8"),
        "misaligned": misaligned,
        "read_only": read_only,
        "subclass": np.ma.masked_array(base),
        "list": [[1, 2], [3, 4]],
        "number": 2.5,
    }
    rc.save(file, tree)
    loaded = rc.load(file)
    assert loaded.keys() == tree.keys()
    for name, value in tree.items():
        expected = np.asarray(value)
        expected = np.array(expected, expected.dtype.newbyteorder("="))
        assert equal({"": loaded[name]}, {"": expected}), name


def test_names_survive(file: Path) -> None:
    names = ["weight", "a.b.c", "größe", "名", 'quote " and \\', "new\nline", " ", "nul\0"]
    tree = {name: np.full(1, k, "f4") for k, name in enumerate(names)}
    rc.save(file, tree)
    assert list(rc.load(file)) == names


def test_equal_contents_make_equal_files(tmp_path: Path) -> None:
    tree = {f"l{k}": Layer(k, k) for k in range(20)}
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import rnncore as rc
from test_serialization import Layer
rc.save(sys.argv[1], {{f"l{{k}}": Layer(k, k) for k in range(20)}})
"""
    rc.save(tmp_path / "here", tree)
    subprocess.run([sys.executable, "-c", program, tmp_path / "there"], check=True)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_an_empty_tree(file: Path) -> None:
    rc.save(file, {})
    assert rc.load(file) == {}
    rc.load(file, into={})


def test_paths_are_strings_or_path_like(tmp_path: Path) -> None:
    rc.save(str(tmp_path / "a"), {"a": np.ones(2)})
    assert rc.load(tmp_path / "a").keys() == {"a"}
    expected = "path: expected a str, bytes or path-like object"
    with pytest.raises(TypeError, match=f"{expected}, got 3"):
        rc.save(3, {"a": np.ones(2)})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=f"{expected}, got None"):
        rc.load(None)  # type: ignore[call-overload]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_paths_may_be_bytes_even_such_as_are_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    rc.save(path, {"a": np.ones(2)})
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff"]
    into = {"a": np.zeros(2)}
    rc.load(path, into=into)
    assert into["a"].tolist() == rc.load(path)["a"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="missing b"):
        rc.load(path, into={"a": np.zeros(2), "b": np.zeros(2)})


# ---- Other programs' files -----------------------------------------------------------------------


def test_others_read_our_files(file: Path) -> None:
    tree = {dtype: np.arange(7).astype(dtype) for dtype in DTYPES}
    rc.save(file, tree)
    assert equal(load_file(file), tree)


def test_we_read_the_files_of_others(file: Path) -> None:
    tree = {dtype: np.arange(7).astype(dtype) for dtype in DTYPES}
    save_file(tree, file, {"format": "np"})
    assert equal(rc.load(file), tree)
    into = {name: np.zeros_like(array) for name, array in tree.items()}
    rc.load(file, into=into)
    assert equal(into, tree)


def test_parameters_without_a_state_leave_it_alone(file: Path) -> None:
    save_file({"weight": np.ones((2, 3)), "bias": np.ones(3)}, file)
    layer = Layer(0.0, calls=7)
    rc.load(file, into=layer)
    assert layer.params["weight"].sum() == 6
    assert layer.calls == 7


# ---- Layers and trees ----------------------------------------------------------------------------


def test_a_layer_comes_back_with_its_state(file: Path) -> None:
    rc.save(file, Layer(1.5, calls=3))
    assert list(rc.load(file)) == ["weight", "bias"]
    layer = Layer(0.0)
    rc.load(file, into=layer)
    assert equal(layer.params, Layer(1.5).params)
    assert layer.calls == 3


def test_a_nested_tree_names_its_parts(file: Path) -> None:
    tree: dict[str, Any] = {"a": Layer(1.0, 1), "deep": {"b": Layer(2.0, 2), "c": np.arange(3)}}
    rc.save(file, tree)
    assert set(rc.load(file)) == {
        "a.weight", "a.bias", "deep.b.weight", "deep.b.bias", "deep.c",
    }  # fmt: skip
    fresh: dict[str, Any] = {"a": Layer(0.0), "deep": {"b": Layer(0.0), "c": np.zeros(3)}}
    rc.load(file, into=fresh)
    assert equal(fresh["deep"]["b"].params, Layer(2.0).params)
    assert (fresh["a"].calls, fresh["deep"]["b"].calls) == (1, 2)
    assert fresh["deep"]["c"].tolist() == [0.0, 1.0, 2.0]


def test_a_mapping_of_live_parameters_is_loaded_in_place(file: Path) -> None:
    rc.save(file, Layer(4.0).params)
    layer = Layer(0.0)
    weight = layer.params["weight"]
    rc.load(file, into=layer.params)
    assert (weight == 4.0).all()


@pytest.mark.parametrize(
    ("tree", "error", "text"),
    [
        ([np.ones(2)], TypeError, "tree: expected a layer or a mapping, got list"),
        ({1: np.ones(2)}, TypeError, "tree: expected names of type str, got 1"),
        ({"": np.ones(2)}, ValueError, "tree: expected a name without dots, got ''"),
        ({"a.b": {"c": 1.0}}, ValueError, "tree: expected a name without dots, got 'a.b'"),
        ({"a": {"b": 1.0}, "a.b": 2.0}, ValueError, "tree: two arrays have the name 'a.b'"),
        (
            {"a": np.ones(2, complex)},
            TypeError,
            r"tree\['a'\]: .*real floats or integers, got comp",
        ),
        ({10**5000: 1.0}, TypeError, "tree: expected names of type str, got an integer of"),
        (
            {"a": np.ma.masked_array([1.0, 2.0], [False, True])},
            ValueError,
            r"tree\['a'\]: expected no masked entries, got 1 of 2",
        ),
        ({"a": [1.0, True]}, TypeError, r"tree\['a'\]: .* got bool"),
        (
            {"a": [[1.0], []]},
            ValueError,
            r"tree\['a'\]: expected a rectangular array of real floats or integers, got",
        ),
        ({"a": np.ones(2, bool)}, TypeError, r"tree\['a'\]: .* got bool"),
        ({"a": np.array(["x"])}, TypeError, r"tree\['a'\]: .* got <U1"),
        ({"a": np.array([None])}, TypeError, r"tree\['a'\]: .* got object"),
        ({"a": np.array(["2020"], "M8[Y]")}, TypeError, r"tree\['a'\]: .* got datetime64"),
        ({"a": np.ones(2, "f2")}, TypeError, r'tensors\["a"\]: .* got dtype float16'),
        ({"__metadata__": np.ones(2)}, ValueError, '"__metadata__" is reserved'),
        ({"\ud800": np.ones(2)}, ValueError, "surrogates not allowed"),
    ],
)
def test_what_cannot_be_saved(file: Path, tree: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        rc.save(file, tree)
    assert list(file.parent.iterdir()) == []


# ---- Files that do not fit -----------------------------------------------------------------------


def test_everything_that_does_not_fit_is_listed_and_nothing_changes(file: Path) -> None:
    rc.save(file, {"a": {"weight": np.ones((2, 4)), "extra": np.ones(1)}, "b": np.ones(2)})
    layer, b = Layer(0.0), np.zeros(2)
    with pytest.raises(ValueError, match="does not fit") as caught:
        rc.load(file, into={"a": layer, "b": b})
    message = str(caught.value)
    assert "missing a.bias" in message
    assert "unexpected a.extra" in message
    assert "a.weight: expected shape (2, 3), got (2, 4)" in message
    assert str(file) in message
    assert equal(layer.params, Layer(0.0).params)
    assert not b.any()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (np.zeros(2, "i4"), "a: expected values that cast to int32, got float64"),
        (np.broadcast_to(np.zeros(1), 2), "a: expected a writeable array"),
        ([0.0, 0.0], "a: expected an array to load into, got list"),
    ],
)
def test_arrays_that_cannot_be_loaded_into(file: Path, target: Any, text: str) -> None:
    rc.save(file, {"a": np.ones(2)})
    with pytest.raises(ValueError, match=text):
        rc.load(file, into={"a": target})


@pytest.mark.parametrize(
    ("into", "text"),
    [
        ([np.ones(2)], "into: expected a layer or a mapping, got list"),
        ({1: np.ones(2)}, "into: expected names of type str, got 1"),
    ],
)
def test_what_cannot_be_loaded_into(file: Path, into: Any, text: str) -> None:
    rc.save(file, {"a": np.ones(2)})
    with pytest.raises(TypeError, match=f"^{text}$"):
        rc.load(file, into=into)


@pytest.mark.parametrize(
    ("saved", "dtype", "expected", "got"),
    [
        (1e300, "f4", "values in the range of float32", r"1e\+300"),
        (1e6, "f2", "values in the range of float16", r"1000000\.0"),
        (2**31, "i4", r"-2147483648 <= value <= the greatest int32 = 2147483647", "2147483648"),
        (np.uint64(2**63), "i8", "-9223372036854775808 <= value <= .*", str(2**63)),
    ],
)
def test_values_that_the_type_cannot_hold(
    file: Path, saved: Any, dtype: str, expected: str, got: str
) -> None:
    values = np.array([type(saved)(0), saved])
    rc.save(file, {"a": np.ones(2), "b": values})
    into = {"a": np.zeros(2), "b": np.zeros(2, dtype)}
    with pytest.raises(
        ValueError, match=rf"^into\['b'\]: expected {expected}, got {got} at position 1$"
    ):
        rc.load(file, into=into)
    assert not into["a"].any()
    assert not into["b"].any()


def test_infinities_load_into_a_narrower_type(file: Path) -> None:
    rc.save(file, {"a": np.array([np.inf, -np.inf, np.nan, 1e-300])})
    into = {"a": np.ones(3 + 1, np.float32)}
    rc.load(file, into=into)
    np.testing.assert_array_equal(into["a"], np.array([np.inf, -np.inf, np.nan, 0], np.float32))


def test_a_layer_that_refuses_leaves_the_others_as_they_were(file: Path) -> None:
    class Refusing(Layer):
        def load_params(self, mapping: Mapping[str, Any]) -> None:
            self.params["weight"][...] = mapping["weight"]
            raise ValueError("no")

    rc.save(file, {"a": Layer(1.0, 1), "b": Layer(2.0, 2), "c": np.ones(2)})
    tree: dict[str, Any] = {"a": Layer(0.0), "b": Refusing(0.0), "c": np.zeros(2)}
    with pytest.raises(ValueError, match=r"^no$"):
        rc.load(file, into=tree)
    for name in "ab":
        assert equal(tree[name].params, Layer(0.0).params)
        assert tree[name].calls == 0
    assert not tree["c"].any()


# ---- The file system -----------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_nothing_is_left_behind(file: Path) -> None:
    rc.save(file, {"a": np.ones(1000)})
    rc.save(file, {"b": np.ones(2)})
    assert rc.load(file).keys() == {"b"}
    assert list(file.parent.iterdir()) == [file]


def test_a_link_stays_a_link(file: Path) -> None:
    target = file.with_name("target")
    rc.save(target, {"a": np.ones(1)})
    file.symlink_to(target)
    rc.save(file, {"b": np.ones(1)})
    assert file.is_symlink()
    assert rc.load(target).keys() == {"b"}


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rc.save("model", {"a": np.ones(1)})
    assert os.listdir() == ["model"]


def test_the_file_has_the_usual_permissions(file: Path) -> None:
    plain = file.with_name("plain")
    plain.touch()
    rc.save(file, {"a": np.ones(1)})
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("action", [rc.load, lambda path: rc.save(path, {"a": np.ones(1)})])
def test_errors_of_the_system_are_pythons_own(
    tmp_path: Path, action: Callable[[Path], object]
) -> None:
    missing = tmp_path / "no" / "model"
    with pytest.raises(FileNotFoundError) as caught:
        action(missing)
    assert caught.value.filename == str(missing)
    with pytest.raises(IsADirectoryError):
        action(tmp_path)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds."""

    def ring(signum: int, frame: object) -> None:
        raise TimeoutError("rang")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_ends_a_long_save_and_the_old_file_stays(file: Path) -> None:
    rc.save(file, {"a": np.ones(2)})
    huge = np.zeros(2**29, "f4")  # 2 GiB that were never touched
    with pytest.raises(TimeoutError, match=r"^rang$"), alarm(0.05):
        rc.save(file, {"a": huge})
    assert list(file.parent.iterdir()) == [file]
    assert rc.load(file)["a"].tolist() == [1.0, 1.0]


# ---- Files made to harm --------------------------------------------------------------------------


def packed(header: bytes | dict[str, Any], data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def tensor(dtype: str, shape: list[Any], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = packed({"a": tensor("F32", [2], 0, 8)}, bytes(8))

HOSTILE = {
    "empty": b"",
    "shorter than its length": b"\x05\x00\x00",
    "length without header": (8).to_bytes(8, "little"),
    "header longer than the file": packed(b"{}", size=1000),
    "header of 2**64 - 1 bytes": packed(b"{}", size=2**64 - 1),
    "header of 2**63 bytes": packed(b"{}", size=2**63),
    "header beyond the limit": packed(b"{}" + b" " * (8 << 20)),
    "header is no text": packed(b"\xff\xfe\xfd\xfc"),
    "header is no JSON": packed(b"weights"),
    "header is a list": packed(b"[]"),
    "header is cut": packed(b'{"a": {"dtype": "F32"'),
    "header nested deeply": packed(b'{"a":' + b"[" * 100_000),
    "metadata is no text": packed({"__metadata__": {"a": 1}}),
    "tensor lacks a shape": packed({"a": {"dtype": "F32", "data_offsets": [0, 0]}}),
    "unknown type": packed({"a": tensor("F33", [2], 0, 8)}, bytes(8)),
    "negative size": packed({"a": tensor("F32", [-2], 0, 8)}, bytes(8)),
    "fractional size": packed({"a": tensor("F32", [2.5], 0, 10)}, bytes(10)),
    "size of 2**64": packed({"a": tensor("F32", [2**64], 0, 8)}, bytes(8)),
    "product overflows": packed({"a": tensor("F32", [2**33, 2**33], 0, 8)}, bytes(8)),
    "bytes overflow": packed({"a": tensor("F64", [2**61], 0, 8)}, bytes(8)),
    "zero hides a huge size": packed({"a": tensor("F32", [0, 2**64 - 1], 0, 0)}),
    "zero hides huge sizes": packed({"a": tensor("F32", [0, 2**62, 2**62], 0, 0)}),
    "too many dimensions": packed({"a": tensor("F32", [1] * 65, 0, 4)}, bytes(4)),
    "offsets reversed": packed({"a": tensor("F32", [2], 8, 0)}, bytes(8)),
    "offsets overlap": packed(
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)
    ),
    "offsets leave a hole": packed(
        {"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, bytes(12)
    ),
    "offsets do not match the shape": packed({"a": tensor("F32", [3], 0, 8)}, bytes(8)),
    "offsets beyond the file": packed({"a": tensor("F32", [2], 0, 8)}, bytes(7)),
    "bytes after the last tensor": GOOD + b"\0",
    "cut in the data": GOOD[:-1],
    "a name twice": packed(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "half precision": packed({"a": tensor("F16", [2], 0, 4)}, bytes(4)),
    "bfloat16": packed({"a": tensor("BF16", [2], 0, 4)}, bytes(4)),
    "bool": packed({"a": tensor("BOOL", [2], 0, 2)}, b"\x02\x03"),
    "four bits": packed({"a": tensor("F4", [2], 0, 1)}, bytes(1)),
    "a pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(file: Path, kind: str) -> None:
    file.write_bytes(HOSTILE[kind])
    layer = Layer(0.0)
    for into in ({}, {"into": layer}):
        with pytest.raises(ValueError, match="path: expected a safetensors file, got "):
            rc.load(file, **into)
    assert equal(layer.params, Layer(0.0).params)


def test_every_cut_of_a_good_file_is_refused(file: Path) -> None:
    rc.save(file, {"a": np.arange(5), "b": Layer(1.0)})
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="path: expected a safetensors file"):
            rc.load(file)


def test_every_changed_byte_loads_or_is_refused(file: Path) -> None:
    whole = packed({"a": tensor("F32", [2, 1], 0, 8), "__metadata__": {"k": "v"}}, bytes(8))
    refusals = []
    for place in range(len(whole)):
        for value in (0, 0x22, 0x39, 0x7F, 0xFF):
            file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                arrays = rc.load(file)
            except ValueError as error:
                refusals.append(str(error))
            else:
                assert [array.nbytes for array in arrays.values()] == [8]
    assert len(refusals) > len(whole)
    assert all(text.startswith("path: expected a safetensors file") for text in refusals)


LIMITED = """
import resource, sys
import numpy as np
import rnncore as rc
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
try:
    rc.load(sys.argv[1])
except MemoryError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        ({"a": tensor("F64", [2**30], 0, 2**33)}, 2**33, f"a: could not allocate {2**33} bytes"),
    ],
)
def test_memory_that_cannot_be_had(file: Path, header: Any, data: int, text: str) -> None:
    start = packed(header)
    file.write_bytes(start)
    os.truncate(file, len(start) + data)  # sparse: it takes no room on the disk
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, file], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == text
