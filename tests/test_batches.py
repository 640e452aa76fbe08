"""Rows in batches: every row once, no longer than they must be."""

from __future__ import annotations

import numpy as np
import pytest

from rnncore.batches import Rows, batches, is_list_of_rows


@pytest.mark.parametrize("count", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_row_comes_once_in_batches_of_the_size(
    count: int, ragged: bool, shuffled: bool
) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 50, count) if ragged else None
    order = np.random.default_rng(1) if shuffled else None
    found = list(batches(count, 7, lengths, order))
    assert sorted(np.concatenate(found).tolist() if found else []) == list(range(count))
    assert all(0 < len(rows) <= 7 for rows in found)
    assert len(found) <= -(-count // 7) + count // (7 * 32)


def test_buckets_hold_rows_of_like_lengths_in_another_order_every_time() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    rng = np.random.default_rng(1)
    one, two = (list(batches(500, 10, lengths, rng)) for _ in range(2))
    spread = [np.ptp(lengths[rows]) for rows in one]
    assert np.mean(spread) < 10
    assert [rows.tolist() for rows in one] != [rows.tolist() for rows in two]
    again = list(batches(500, 10, lengths, np.random.default_rng(1)))
    assert [rows.tolist() for rows in one] == [rows.tolist() for rows in again]


def test_rows_of_an_array_are_cut_to_the_longest_taken() -> None:
    values = np.arange(24).reshape(4, 3, 2)
    rows = Rows("x", values, [4, 1, 2], axis=1)
    x, lengths = rows.take(np.array([2, 1]))
    assert np.array_equal(x, values[:2, [2, 1]])
    assert lengths is not None
    assert lengths.tolist() == [2, 1]
    first = Rows("x", values, [3, 1, 0, 2], axis=0)
    x, lengths = first.take(np.array([3, 1]))
    assert np.array_equal(x, values[[3, 1], :2])
    part = first.subset(np.array([0, 2]))
    assert part.count == 2
    assert part.lengths is not None
    assert part.lengths.tolist() == [3, 0]


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_a_list_are_padded_with_zeros(axis: int) -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((n, 2)).astype(np.float32) for n in (3, 5, 0, 1)]
    rows = Rows("x", values, axis=axis)
    x, lengths = rows.take(np.array([3, 0, 2]))
    assert x.dtype == np.float32
    assert lengths is not None
    assert lengths.tolist() == [1, 3, 0]
    x = x if axis else x.swapaxes(0, 1)
    assert x.shape == (3, 3, 2)
    for k, row in enumerate((3, 0, 2)):
        assert np.array_equal(x[: len(values[row]), k], values[row])
        assert not x[len(values[row]) :, k].any()


class Table:
    """What is no array and can be one, as a table of another package."""

    def __init__(self, values: object) -> None:
        self._values = np.asarray(values)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        del dtype, copy
        return self._values


def test_a_list_of_tables_is_a_list_of_rows() -> None:
    values = [np.arange(6.0).reshape(3, 2), np.ones((3, 2))]
    rows = Rows("x", [Table(value) for value in values], axis=1)
    x, lengths = rows.take(np.array([0, 1]))
    assert np.array_equal(x, np.stack(values, axis=1))
    assert lengths is not None
    assert lengths.tolist() == [3, 3]
    # A list of tables without axes is one array of numbers.
    assert not Rows("y", [Table(1), Table(2)]).is_list


def test_an_empty_row_takes_its_shape_from_the_others() -> None:
    rows = Rows("x", [[], [[1], [2]], np.empty(0)], axis=0)
    x, lengths = rows.take(np.arange(3))
    assert x.shape == (3, 2, 1)
    assert x.dtype == np.int64
    assert lengths is not None
    assert lengths.tolist() == [0, 2, 0]


@pytest.mark.parametrize("axis", [0, 1])
def test_an_empty_list_has_no_rows(axis: int) -> None:
    rows = Rows("x", [], axis=axis)
    assert (rows.count, rows.is_list) == (0, True)


def test_what_is_a_list_of_rows() -> None:
    assert is_list_of_rows([np.ones(2), np.ones(2)])
    assert is_list_of_rows([[1], [1, 2]])
    assert not is_list_of_rows([[1, 2], [1, 2]])
    assert not is_list_of_rows([np.float64(1), np.float64(2)])
    assert not is_list_of_rows([])


@pytest.mark.parametrize(
    ("value", "lengths", "axis", "error", "match"),
    [
        (["a", "b"], None, 0, TypeError, "x: expected real numbers, got <U1"),
        (np.ones(3), None, 1, ValueError, r"x: expected shape \(T, B, ...\), got \(3,\)"),
        (np.ones(3), [1, 1, 1], 0, ValueError, "lengths: expected None for x without time"),
        ([np.ones(3), np.ones(2)], [3, 2], 0, ValueError, "lengths: expected None with a list"),
        ([np.ones((3, 2)), np.ones((2, 4))], None, 0, ValueError, r"x\[1\]: expected shape"),
        ([np.ones(2), np.array(["a"])], None, 0, TypeError, r"x\[1\]: expected real numbers"),
        ([np.ones((3, 2)), np.ones(2)], None, 0, ValueError, r"x\[1\]: expected shape \(T, 2\)"),
        ([np.ones(3), np.ones((2, 4))], None, 0, ValueError, r"x\[1\]: expected shape \(T,\), got"),
        (
            [[[1], [2, 3]]],
            None,
            0,
            ValueError,
            "expected a rectangular array of real numbers,",
        ),
        (np.ones((4, 2)), [5, 1], 1, ValueError, "lengths"),
    ],
)
def test_bad_rows(
    value: object, lengths: object, axis: int, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Rows("x", value, lengths, axis=axis)  # type: ignore[arg-type]
