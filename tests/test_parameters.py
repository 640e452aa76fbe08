"""The live mapping of parameters, and the conversions at the border of the library."""

from __future__ import annotations

import array as buffers
import copy
import decimal
import pickle
import warnings
from collections import UserList
from typing import Any

import numpy as np
import pytest

from rnncore.parameters import (
    Parameters,
    as_choice,
    as_dtype,
    as_flag,
    as_integer_array,
    as_lengths,
    as_mask_state,
    as_probability,
    as_real_array,
    as_rows,
    as_scalar,
    as_seed,
    as_setting,
    as_size,
    as_text,
    as_uint64,
    check_good,
    check_matrix_fits,
    check_names,
    check_range,
    check_shape,
    empty_on_line,
    inside_lengths,
    on_line,
)

FLOATS = ("float32", "float64")

# Untyped in some versions of NumPy, typed in others.
masked_array: Any = np.ma.masked_array


def make() -> Parameters:
    arrays = {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(2, "float32")}
    return Parameters(arrays, {"w": "(2*H, I)"})


def values_of(params: Parameters) -> dict[str, Any]:
    return {name: array.tolist() for name, array in params.items()}


def is_clean(array: np.ndarray[Any, Any], dtype: str) -> bool:
    flags = array.flags
    exact = type(array) is np.ndarray and array.dtype == np.dtype(dtype) and array.dtype.isnative
    return exact and flags.c_contiguous and flags.aligned


# ---- Parameters --------------------------------------------------------------------------------


def test_parameters_share_the_arrays_they_are_given() -> None:
    w = np.zeros((2, 3))
    params = Parameters({"w": w})
    assert params["w"] is w
    params["w"] += 1
    assert w.tolist() == [[1.0] * 3] * 2


def test_augmented_assignment_changes_in_place() -> None:
    params = make()
    before = params["w"]
    params["w"] -= np.ones((2, 3))
    assert params["w"] is before
    assert before.tolist() == [[-1.0, 0.0, 1.0], [2.0, 3.0, 4.0]]


def test_item_assignment_copies_into_the_array_and_casts() -> None:
    params = make()
    before = params["b"]
    source = np.array([1.5, 2.5])
    params["b"] = source
    source[:] = 9
    assert params["b"] is before
    assert before.dtype == np.float32
    assert before.tolist() == [1.5, 2.5]


def test_item_assignment_from_a_view_of_itself() -> None:
    params = make()
    params["w"] = params["w"][::-1, ::-1]
    assert params["w"].tolist() == [[5.0, 4.0, 3.0], [2.0, 1.0, 0.0]]


def test_wrong_shape_is_told_in_letters_and_numbers() -> None:
    params = make()
    with pytest.raises(
        ValueError, match=r"params\['w'\]: expected shape \(2\*H, I\) = \(2, 3\), g"
    ):
        params["w"] = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"params\['b'\]: expected shape \(2,\), got \(\)"):
        params["b"] = 0.0
    assert values_of(params) == values_of(make())


@pytest.mark.parametrize("value", [[1j, 0], [True, False], ["a", "b"], np.array([None, 1])])
def test_wrong_kind_is_refused_by_item_assignment(value: Any) -> None:
    params = make()
    with pytest.raises(TypeError, match=r"params\['b'\]: expected real numbers"):
        params["b"] = value


def test_names_are_fixed() -> None:
    params = make()
    with pytest.raises(KeyError, match="no parameter 'v'; the names are 'w', 'b'"):
        params["v"] = [1.0]
    with pytest.raises(KeyError, match="no parameter 'v'; the names are 'w', 'b'"):
        params["v"]
    with pytest.raises(TypeError, match=r"params\['w'\]: .* got a deletion"):
        del params["w"]
    assert list(params) == ["w", "b"]
    assert len(params) == 2
    assert "w" in params
    assert "v" not in params
    assert params.get("v") is None


def test_equality_is_identity_and_hashable() -> None:
    params = make()
    assert params == params
    assert params != make()
    assert len({params, params}) == 1


def test_load_takes_any_order_and_casts() -> None:
    params = make()
    arrays = dict(params)
    params.load({"b": [7, 8], "w": np.ones((2, 3), ">f4", order="F")})
    assert values_of(params) == {"w": [[1.0] * 3] * 2, "b": [7.0, 8.0]}
    assert all(params[name] is arrays[name] for name in params)


def test_load_can_swap_two_parameters() -> None:
    params = Parameters({"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])})
    params.load({"a": params["b"], "b": params["a"]})
    assert values_of(params) == {"a": [3.0, 4.0], "b": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("mapping", "error", "message"),
    [
        ({"w": np.ones((2, 3))}, ValueError, "params: missing 'b'"),
        ({}, ValueError, "params: missing 'w', 'b'"),
        ({"w": 1, "c": 2, "d": 3}, ValueError, "params: missing 'b'; unexpected 'c', 'd'"),
        ({"w": np.ones((2, 3)), "b": [1]}, ValueError, r"params\['b'\]: expected shape"),
        ({"w": np.ones((2, 3)), "b": [1j, 1]}, TypeError, r"params\['b'\]: .*complex128"),
        ({"w": np.ones((2, 3)), "b": [1e300, 1]}, ValueError, r"params\['b'\]: .*float32"),
        ([("w", 1)], TypeError, "params: expected a mapping .* got list"),
    ],
)
def test_a_failing_load_changes_nothing(mapping: Any, error: type[Exception], message: str) -> None:
    params = make()
    with pytest.raises(error, match=message):
        params.load(mapping)
    assert values_of(params) == values_of(make())


def test_load_into_a_read_only_array_changes_nothing() -> None:
    params = make()
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['b'\]: .* changed, got a read-only one"):
        params.load({"w": np.ones((2, 3)), "b": [1, 2]})
    assert values_of(params) == values_of(make())


def test_assigning_to_a_read_only_array_names_it() -> None:
    params = make()
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['b'\]: .* changed, got a read-only one"):
        params["b"] = [1, 2]
    assert values_of(params) == values_of(make())


def test_repr_shows_every_parameter() -> None:
    assert repr(make()) == (
        "Parameters({\n    'w': float64 (2*H, I) = (2, 3),\n    'b': float32 (2,),\n})"
    )
    assert repr(Parameters({})) == "Parameters({})"


def test_pickle_and_deepcopy_are_independent_and_complete() -> None:
    params = make()
    for other in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params)):
        assert values_of(other) == values_of(params)
        assert repr(other) == repr(params)
        other["w"] += 1
    assert values_of(params) == values_of(make())
    assert copy.copy(params)["w"] is params["w"]


def test_copies_of_two_mappings_keep_what_they_share() -> None:
    w = np.zeros(2)
    both = pickle.loads(pickle.dumps((Parameters({"a": w}), Parameters({"b": w}))))
    assert both[0]["a"] is both[1]["b"]


def test_arrays_of_other_layouts_are_converted_when_adopted() -> None:
    params = Parameters({"w": np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f8")})
    assert is_clean(params["w"], "float64")
    assert params["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("value", [np.zeros(2, "int64"), np.zeros(2, "float16"), [1.0]])
def test_only_float_arrays_are_adopted(value: Any) -> None:
    with pytest.raises(TypeError, match=r"params\['w'\]: expected a float32 or float64 array, got"):
        Parameters({"w": value})


def test_letters_need_a_parameter() -> None:
    with pytest.raises(ValueError, match="letters: no parameter 'v'"):
        Parameters({"w": np.zeros(2)}, {"v": "(H,)"})


# ---- as_real_array -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_array_that_is_right_is_returned_itself(dtype: str) -> None:
    for array in (np.ones((2, 3), dtype), np.ones((), dtype), np.ones((0, 3), dtype)):
        assert as_real_array("x", array, dtype) is array
        assert as_real_array("x", array, np.dtype(dtype)) is array
        assert as_real_array("x", array) is array
        fresh = as_real_array("x", array, dtype, copy=True)
        assert is_clean(fresh, dtype)
        assert not np.shares_memory(fresh, array)


def test_a_read_only_array_needs_no_copy() -> None:
    array = np.ones(3)
    array.flags.writeable = False
    assert as_real_array("x", array, "float64") is array


def hostile_layouts(base: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of the values of base (2, 3), each in memory as no kernel would like it."""
    padded = np.zeros((4, 6), base.dtype)
    padded[::2, ::2] = base
    buffer = bytearray(base.nbytes + 1)
    misaligned = np.frombuffer(buffer, base.dtype, base.size, offset=1).reshape(base.shape)
    misaligned[...] = base
    read_only = np.asfortranarray(base)
    read_only.flags.writeable = False
    return {
        "fortran": np.asfortranarray(base),
        "strided": padded[::2, ::2],
        "reversed": np.ascontiguousarray(base[::-1, ::-1])[::-1, ::-1],
        "misaligned": misaligned,
        "swapped": base.astype(base.dtype.newbyteorder()),
        "read-only": read_only,
        "masked type": masked_array(base),
        "transposed": np.ascontiguousarray(base.T).T,
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "source", ["float16", "float32", "float64", "int8", "uint64", "longdouble"]
)
def test_every_memory_layout_gives_the_same_array(dtype: str, source: str) -> None:
    base = np.arange(6).reshape(2, 3).astype(source)
    for layout, value in hostile_layouts(base).items():
        for copied in (False, True):
            result = as_real_array("x", value, dtype, copy=copied)
            assert is_clean(result, dtype), layout
            assert result.tolist() == base.tolist(), layout
            assert not (copied and np.shares_memory(result, value)), layout


def test_zero_strides_and_matrices() -> None:
    result = as_real_array("x", np.broadcast_to(np.array([1.0, 2.0]), (3, 2)), "float64")
    assert is_clean(result, "float64")
    assert result.tolist() == [[1.0, 2.0]] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix([[1.0, 2.0]])
    assert is_clean(as_real_array("x", matrix, "float64"), "float64")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (2.5, 2.5),
        (np.float32(2.5), 2.5),
        ([], []),
        ([[]], [[]]),
        ([1, 2.5], [1.0, 2.5]),
        (((1, 2), [3, 4]), [[1.0, 2.0], [3.0, 4.0]]),
        ([np.array([1.0]), [2]], [[1.0], [2.0]]),
        (range(3), [0.0, 1.0, 2.0]),
        (UserList([1, 2]), [1.0, 2.0]),
        (buffers.array("d", [1, 2]), [1.0, 2.0]),
        ([float("nan")], None),
    ],
)
def test_scalars_and_sequences_convert(value: Any, expected: Any) -> None:
    for dtype in FLOATS:
        result = as_real_array("x", value, dtype)
        assert is_clean(result, dtype)
        assert np.isnan(result).all() if expected is None else result.tolist() == expected


def test_without_a_dtype_float32_and_float64_stay() -> None:
    for source, expected in {
        "float32": "float32",
        ">f4": "float32",
        "float64": "float64",
        "float16": "float64",
        "longdouble": "float64",
        "int32": "float64",
    }.items():
        assert as_real_array("x", np.ones(2, source)).dtype == np.dtype(expected), source
    assert as_real_array("x", [1, 2]).dtype == np.float64


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (np.ones(2, "complex64"), "complex64"),
        ([1j], "complex128"),
        (np.ones(2, bool), "bool"),
        (True, "bool"),
        ([True, 1.5], "bool"),
        ([[1.0], [np.True_]], "bool"),
        ([np.array([True]), np.array([1.0])], "bool"),
        (None, "NoneType"),
        ([1.0, None], "NoneType"),
        (np.array([1, 2], object), "object"),
        ({1: 2}, "dict"),
        ({1.0}, "set"),
        (decimal.Decimal(1), "Decimal"),
        ("1.5", "<U3"),
        (["1.5", 2.0], "<U"),
        (b"1", "|S1"),
        (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
        (np.array([1], "m8[s]"), "timedelta64"),
        (np.zeros(2, [("a", "f4")]), "'a'"),
        (masked_array(np.zeros(2, [("a", "f4")]), mask=True), "'a'"),
    ],
)
def test_what_is_not_real_is_a_type_error(value: Any, came: str) -> None:
    with pytest.raises(TypeError) as caught:
        as_real_array("x", value, "float32")
    assert str(caught.value).startswith("x: expected real numbers (floats or integers), got ")
    assert came in str(caught.value)


def self_containing() -> list[Any]:
    value: list[Any] = [1.0]
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value", [[[1, 2], [3]], (1, [2]), [np.ones(2), np.ones(3)], self_containing()]
)
def test_ragged_sequences_are_named(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"x: expected a rectangular array of real numbers.*ragged"
    ):
        as_real_array("x", value, "float32")


def test_masked_entries_are_refused_wherever_they_hide() -> None:
    masked = masked_array([1.0, 2.0, 3.0], mask=[False, True, True])
    with pytest.raises(ValueError, match="x: expected no masked entries, got 2 of 3"):
        as_real_array("x", masked, "float64")
    with pytest.raises(ValueError, match="x: expected no masked entries, got 2 of 3"):
        as_real_array("x", [masked, [1.0, 2.0, 3.0]], "float64")
    with pytest.raises(ValueError, match="x: expected no masked entries"):
        as_real_array("x", [np.ma.masked, 1.0], "float64")
    with pytest.raises(ValueError, match="x: expected no masked entries"):
        as_integer_array("x", masked.astype(int))


@pytest.mark.parametrize("value", [2**70, [2**70], [1, -(2**70)]])
def test_integers_beyond_64_bits_are_a_value_error(value: Any) -> None:
    for convert in (as_real_array, as_integer_array):
        with pytest.raises(ValueError, match="x: expected integers of at most 64 bits"):
            convert("x", value)


@pytest.mark.parametrize("order", ["<f8", ">f8", "longdouble"])
def test_finite_values_never_become_infinite_silently(order: str) -> None:
    value = np.array([[1.0, 2.0], [3.0, -1e300]], order)
    with pytest.raises(
        ValueError, match=r"x: .* range of float32, got -1e\+300 at position \(1, 1\)"
    ):
        as_real_array("x", value, "float32")
    with pytest.raises(ValueError, match="at position 0"):
        as_real_array("x", [1e39], "float32")
    with pytest.raises(ValueError, match="at position 2"):
        as_real_array("x", [np.inf, np.nan, 1e39], "float32")
    with pytest.raises(ValueError, match=r"got 1e\+39$"):
        as_real_array("x", 1e39, "float32", copy=True)


def test_infinities_nan_and_tiny_values_pass() -> None:
    with np.errstate(all="raise"):
        result = as_real_array("x", [np.inf, -np.inf, np.nan, 1e-300, 1e-40], "float32")
    assert result[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(result[2])
    assert result[3:].tolist() == [0.0, float(np.float32(1e-40))]


def test_what_does_not_count_may_be_too_large() -> None:
    value = np.ones((2, 2, 3))
    value[1, 0, 2] = 1e300
    counted = np.array([[True, True], [False, True]])
    result = as_real_array("x", value, "float32", counted=counted)
    assert result[1, 0].tolist() == [1.0, 1.0, np.inf]
    for unfit in (~counted, np.ones(5, bool)):
        with pytest.raises(ValueError, match="range of float32"):
            as_real_array("x", value, "float32", counted=unfit)


# ---- as_integer_array --------------------------------------------------------------------------


def test_integers_convert_and_int64_is_returned_itself() -> None:
    right = np.arange(6).reshape(2, 3)
    assert as_integer_array("t", right) is right
    assert not np.shares_memory(as_integer_array("t", right, copy=True), right)
    for source in ("int8", "uint16", ">i4", "uint64"):
        for layout, value in hostile_layouts(right.astype(source)).items():
            result = as_integer_array("t", value)
            assert is_clean(result, "int64"), layout
            assert result.tolist() == right.tolist(), layout
    assert as_integer_array("t", []).tolist() == []
    assert as_integer_array("t", [[], []]).shape == (2, 0)
    assert as_integer_array("t", 3).tolist() == 3


@pytest.mark.parametrize(
    "value",
    [[1.0], 1.0, np.zeros(0), np.ones(2, "float32"), [True], True, ["1"], [1j], None, [None]],
)
def test_what_is_no_integer_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="t: expected integers, got "):
        as_integer_array("t", value)


def test_unsigned_integers_beyond_int64_are_named_with_their_position() -> None:
    value = np.array([[1, 2], [2**63, 3]], "uint64")
    with pytest.raises(
        ValueError, match=r"t: .* below 2\*\*63, got 9223372036854775808 at .*\(1, 0\)"
    ):
        as_integer_array("t", value)


# ---- Checks ------------------------------------------------------------------------------------


def test_check_shape() -> None:
    check_shape("x", np.zeros((2, 3)), (2, 3))
    with pytest.raises(ValueError, match=r"^x: expected shape \(T, B\) = \(2, 3\), got \(3, 2\)$"):
        check_shape("x", np.zeros((3, 2)), (2, 3), "(T, B)")


def test_check_range_tells_value_and_position() -> None:
    values = np.array([[0, 4], [5, -1]])
    check_range("t", values, -1, 5, "K")
    check_range("t", np.zeros((0,), np.int64), 3, 2, "K")
    with pytest.raises(
        ValueError, match=r"t: expected 0 <= value <= K = 4, got 5 at position \(1, 0\)"
    ):
        check_range("t", values, 0, 4, "K")
    counted = np.array([[True, True], [False, True]])
    with pytest.raises(ValueError, match=r"got -1 at position \(1, 1\)"):
        check_range("t", values, 0, 4, "K", counted)
    counted[1, 1] = False
    check_range("t", values, 0, 4, "K", counted)


def test_check_names_lists_all_that_differ() -> None:
    check_names("p", {"a": 1, "b": 2}, {"b": 1, "a": 2})
    with pytest.raises(ValueError, match=r"^p: missing 'a', 'b'; unexpected 'c', 4$"):
        check_names("p", {"a": 1, "b": 2}, {"c": 1, 4: 2})  # type: ignore[dict-item]


def test_lengths() -> None:
    assert as_lengths([3, 0, 2], 3, 3).tolist() == [3, 0, 2]
    with pytest.raises(
        ValueError, match=r"lengths: expected 0 <= value <= T = 3, got 4 at position 1"
    ):
        as_lengths([3, 4], 3, 2)
    with pytest.raises(ValueError, match="got -1 at position 0"):
        as_lengths([-1, 4], 3, 2)
    with pytest.raises(ValueError, match=r"lengths: expected shape \(B,\) = \(3,\), got \(2,\)"):
        as_lengths([1, 2], 3, 3)
    with pytest.raises(TypeError, match="lengths: expected integers"):
        as_lengths([1.0, 2.0], 3, 2)


def test_inside_lengths_in_both_layouts() -> None:
    lengths = np.array([2, 0, 3])
    expected = [[True, False, True], [True, False, True], [False, False, True]]
    assert inside_lengths(lengths, 3).tolist() == expected
    assert inside_lengths(lengths, 3, batch_first=True).T.tolist() == expected


# ---- Options -----------------------------------------------------------------------------------


def test_sizes() -> None:
    assert as_size("n", np.int32(3)) == 3
    for value in (0, -1):
        with pytest.raises(ValueError, match="n: expected a positive integer, got"):
            as_size("n", value)
    for wrong in (1.0, "1", None, True, [1]):
        with pytest.raises(TypeError, match="n: expected a positive integer, got"):
            as_size("n", wrong)


def test_seeds() -> None:
    assert as_seed(2**64 - 1) == 2**64 - 1
    assert as_seed(np.uint8(3)) == 3
    assert as_seed(None) != as_seed(None)
    for value in (-1, 2**64):
        with pytest.raises(ValueError, match=r"seed: expected an integer in \[0, 2\*\*64\)"):
            as_seed(value)
    for wrong in (1.0, "1", True):
        with pytest.raises(TypeError, match=r"seed: expected an integer .* or None, got"):
            as_seed(wrong)


def test_integers_of_64_bits() -> None:
    assert as_uint64("n", np.uint64(2**64 - 1)) == 2**64 - 1
    with pytest.raises(ValueError, match=r"n: expected an integer in \[0, 2\*\*64\), got -1$"):
        as_uint64("n", -1)
    for wrong in (None, False, 1.0):
        with pytest.raises(TypeError, match=rf"n: expected an integer in .*, got {wrong}$"):
            as_uint64("n", wrong)


def test_values_in_messages() -> None:
    assert [as_text(value) for value in (None, "a", -(2**127))] == ["None", "'a'", str(-(2**127))]
    assert as_text(2**128) == "an integer of 129 bits"
    assert as_text(-(10**5000)) == "a negative integer of 16610 bits"
    assert as_text([10**5000]) == "an object of type list"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("nonnegative", [0, 1.5, 1e300], {-1e-300: "a finite number >= 0", np.inf: "a finite"}),
        ("fraction", [0.0, 0.999], {1: "0 <= number < 1", -0.1: "0 <= number < 1"}),
        ("flag", [0, 1.0], {0.5: "0 or 1", 2: "0 or 1", -1: "a finite number >= 0"}),
        ("whole", [0, 3.0], {1.5: "a whole number", -1: "a finite", np.inf: "a finite"}),
        ("size", [1, 3.0], {0: "a whole number >= 1", 1.5: "a whole number"}),
        ("real", [-1.5, -np.inf, np.inf], {}),
    ],
)
def test_settings_are_numbers_of_a_kind(kind: Any, good: list[Any], bad: dict[Any, str]) -> None:
    for value in good:
        number = as_setting("n", np.float64(value), kind)
        assert type(number) is float
        assert number == value
    for value, expected in bad.items():
        with pytest.raises(ValueError, match=rf"^n: expected {expected}.*, got {value}$"):
            as_setting("n", value, kind)
    for wrong in (True, "1", None, [1.0], np.ones(1)):
        with pytest.raises(TypeError, match="^n: expected a real number, got "):
            as_setting("n", wrong, kind)


def test_a_scalar_has_no_axes() -> None:
    scalar = as_scalar("n", np.array(3, "int8"))
    assert (type(scalar), scalar) == (float, 3.0)
    with pytest.raises(ValueError, match=r"^n: expected shape \(\), got \(1,\)$"):
        as_scalar("n", [3.0])
    with pytest.raises(TypeError, match="^n: expected real numbers"):
        as_scalar("n", True)


def test_values_that_are_not_good_are_shown_with_their_place() -> None:
    values = np.array([[1.0, -2.0], [np.nan, 4.0]])
    check_good("n", values, values > -3, "more", counted=np.array([[True, True], [False, True]]))
    check_good("n", values[:0], values[:0] > 0, "more")
    with pytest.raises(ValueError, match=r"^n: expected more, got -2.0 at position \(0, 1\)$"):
        check_good("n", values, values > 0, "more")
    with pytest.raises(ValueError, match=r"^n: expected more, got nan at position \(1, 0\)$"):
        check_good("n", values, values > -3, "more")


def test_flags() -> None:
    assert as_flag("keep", np.True_) is True
    for wrong in (1, 0, None, "yes"):
        with pytest.raises(TypeError, match="keep: expected True or False, got"):
            as_flag("keep", wrong)


def test_dtypes() -> None:
    for value in ("float32", "f4", np.float32, np.dtype("float32")):
        assert as_dtype(value) == np.float32
    assert as_dtype(float) == np.float64
    for wrong in ("float16", "int32", ">f4", "complex64", object, {"names": "a", "formats": "b"}):
        with pytest.raises((TypeError, ValueError), match="dtype: expected 'float32' or 'float64'"):
            as_dtype(wrong)
    assert as_dtype("float") == np.float64
    for strange in (None, 7, "no such type"):
        with pytest.raises(TypeError, match="dtype: expected 'float32' or 'float64', got"):
            as_dtype(strange)


def test_matrices_that_cannot_be_had() -> None:
    check_matrix_fits("m, n", 3, 4)
    with pytest.raises(ValueError, match=r"m, n: .* fits the address space, got .* and 4"):
        check_matrix_fits("m, n", 2**70, 4)
    with pytest.raises(MemoryError, match=r"m, n: .* fits the memory, got 1073741824 and 67108864"):
        check_matrix_fits("m, n", 2**30, 2**26)


def test_joined_parameters_share_the_arrays_and_their_letters() -> None:
    a = Parameters({"weight": np.zeros((2, 3))}, {"weight": "(out, in)"})
    b = {"bias": np.zeros(2)}
    joined = Parameters.joined({"a": a, "b.c": b})
    assert list(joined) == ["a.weight", "b.c.bias"]
    assert joined["a.weight"] is a["weight"]
    assert joined["b.c.bias"] is b["bias"]
    with pytest.raises(ValueError, match=r"params\['a.weight'\]: expected shape \(out, in\) = \(2"):
        joined["a.weight"] = [1.0]
    with pytest.raises(ValueError, match=r"params\['x.y'\]: expected a C-contiguous, aligned, nat"):
        Parameters.joined({"x": {"y": np.zeros((2, 4))[:, ::2]}})
    with pytest.raises(TypeError, match=r"params\['x.y'\]: expected a float32 or float64 array"):
        Parameters.joined({"x": {"y": np.zeros(2, int)}})


def test_choices_probabilities_and_rows() -> None:
    assert as_choice("name", "b", ("a", "b")) == "b"
    with pytest.raises(ValueError, match="name: expected 'a' or 'b', got 'c'"):
        as_choice("name", "c", ("a", "b"))
    with pytest.raises(TypeError, match="name: expected 'a' or 'b', got 1 of type int"):
        as_choice("name", 1, ("a", "b"))
    assert as_probability("p", np.float32(0.5)) == 0.5
    for value in (1, -1e-9, float("nan")):
        with pytest.raises(ValueError, match=r"p: expected a number in \[0, 1\), got"):
            as_probability("p", value)
    for wrong in (None, True, "0", [0.5]):
        with pytest.raises(TypeError, match=r"p: expected a number in \[0, 1\), got .* of type"):
            as_probability("p", wrong)
    assert as_rows(2, 3).tolist() == [2]
    assert as_rows([2, 0], 3).tolist() == [2, 0]
    for row in (3, -1):
        with pytest.raises(ValueError, match=f"rows: expected 0 <= .* B - 1 = 2, got {row}"):
            as_rows(row, 3)


def test_the_state_of_masks() -> None:
    assert as_mask_state({"format": "pt"}) is None
    assert as_mask_state({"seed": "3", "call_number": str(2**64 - 1)}) == (3, 2**64 - 1)
    for bad in ({"seed": "3"}, {"seed": "-3", "call_number": "0"}):
        with pytest.raises(ValueError, match="expected the digits of an integer, got"):
            as_mask_state(bad)
    with pytest.raises(ValueError, match=r"seed: expected an integer in \[0, 2\*\*64\)"):
        as_mask_state({"seed": str(2**64), "call_number": "0"})


# ---- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4), (7, 1, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_on_a_line(shape: tuple[int, ...], dtype: str) -> None:
    fresh = empty_on_line(shape, dtype)
    assert fresh.shape == shape
    assert fresh.dtype == dtype
    assert fresh.flags.c_contiguous
    assert fresh.flags.writeable
    assert fresh.size == 0 or fresh.ctypes.data % 64 == 0


def test_only_what_is_off_the_line_or_locked_is_copied() -> None:
    array = empty_on_line((4, 4), "float32")
    array[...] = np.arange(16).reshape(4, 4)
    assert on_line(array) is array
    shifted = array.ravel()[1:]
    assert np.array_equal(on_line(shifted), shifted)
    assert on_line(shifted).ctypes.data % 64 == 0
    locked = array[:]
    locked.flags.writeable = False
    assert on_line(locked).flags.writeable
    assert np.array_equal(on_line(locked), array)
