"""The initial values: bounds, orthogonality, biases, and that a seed says everything."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import rnncore as rc
from rnncore.initializers import glorot_uniform, orthogonal, recurrent_parameters

CELLS: list[Any] = [rc.RNN, rc.LSTM, rc.GRU, rc.MGU]
GATES = {rc.RNN: 1, rc.LSTM: 4, rc.GRU: 3, rc.MGU: 2}


def blocks(array: np.ndarray[Any, Any], hidden_size: int) -> list[np.ndarray[Any, Any]]:
    """Split a parameter into its gates' parts."""
    return np.split(array, array.shape[0] // hidden_size)


def test_glorot_uniform_fills_its_interval() -> None:
    W = glorot_uniform(np.random.default_rng(0), 300, 100)
    bound = math.sqrt(6 / 400)
    assert W.shape == (300, 100)
    assert 0.999 * bound < W.max() <= bound
    assert -0.999 * bound > W.min() >= -bound
    # Uniform: variance bound²/3; its estimate from 30,000 values scatters by 0.5 %.
    assert W.var() == pytest.approx(bound**2 / 3, rel=0.03)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_orthogonal_is_orthogonal(size: int) -> None:
    U = orthogonal(np.random.default_rng(size), size)
    assert U.dtype == np.float64
    np.testing.assert_allclose(U @ U.T, np.eye(size), rtol=0, atol=1e-14)


def test_orthogonal_takes_the_signs_that_make_it_uniform() -> None:
    U = orthogonal(np.random.default_rng(3), 9)
    gaussian = np.random.default_rng(3).standard_normal((9, 9))
    R = U.T @ gaussian
    assert (np.diagonal(R) > 0).all()
    np.testing.assert_allclose(np.tril(R, -1), 0, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_each_gate_is_drawn_for_itself(cell: Any) -> None:
    layer = cell(5, 8, num_layers=2, bidirectional=True, dtype="float64", seed=1)
    for name, array in layer.params.items():
        parts = blocks(array, 8)
        assert len(parts) == GATES[cell]
        if name.startswith("weight_hh"):
            for U in parts:
                np.testing.assert_allclose(U @ U.T, np.eye(8), rtol=0, atol=1e-14)
        elif name.startswith("weight_ih"):
            features = 5 if "_l0" in name else 16
            bound = math.sqrt(6 / (features + 8))
            for W in parts:
                assert W.shape == (8, features)
                assert 0.8 * bound < abs(W).max() <= bound
        for a in range(len(parts)):
            for b in range(a):
                assert name.startswith("bias") or not np.array_equal(parts[a], parts[b])


@pytest.mark.parametrize("cell", CELLS)
def test_biases_are_zero_but_the_forget_bias_of_the_lstm(cell: Any) -> None:
    layer = cell(3, 4, num_layers=3, bidirectional=True, seed=1)
    names = [name for name in layer.params if name.startswith("bias")]
    assert len(names) == 12
    for name in names:
        expected = np.zeros(GATES[cell] * 4)
        if cell is rc.LSTM and name.startswith("bias_ih"):
            expected[4:8] = 1
        np.testing.assert_array_equal(layer.params[name], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_pytorch_is_uniform_throughout(cell: Any) -> None:
    layer = cell(30, 25, num_layers=2, init="pytorch", dtype="float64", seed=1)
    bound = 1 / math.sqrt(25)
    for array in layer.params.values():
        assert abs(array).max() <= bound
        assert len(np.unique(array)) == array.size
        assert array.min() < -0.5 * bound
        assert array.max() > 0.5 * bound


@pytest.mark.parametrize("init", ["orthogonal", "pytorch"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_seed_says_everything(cell: Any, init: str) -> None:
    one, same, other = (cell(3, 4, init=init, dtype="float64", seed=s) for s in (5, 5, 6))
    single = cell(3, 4, init=init, dtype="float32", seed=5)
    for name, array in one.params.items():
        np.testing.assert_array_equal(array, same.params[name])
        np.testing.assert_array_equal(array.astype(np.float32), single.params[name])
        assert single.params[name].dtype == np.float32
        if name.startswith("weight"):
            assert not np.array_equal(array, other.params[name])


def test_without_a_seed_each_layer_draws_its_own() -> None:
    one, other = rc.GRU(3, 4), rc.GRU(3, 4)
    assert one.seed != other.seed
    again = rc.GRU(3, 4, seed=one.seed)
    np.testing.assert_array_equal(one.params["weight_hh_l0"], again.params["weight_hh_l0"])


def test_arrays_are_fresh_contiguous_and_in_order() -> None:
    shapes = {"weight_hh_l0": (4, 2), "bias_ih_l0": (4,), "weight_ih_l0": (4, 3)}
    arrays = recurrent_parameters(
        shapes, hidden_size=2, init="pytorch", forget_gate=None, seed=0, dtype=np.dtype("float32")
    )
    assert list(arrays) == list(shapes)
    for name, array in arrays.items():
        assert array.shape == shapes[name]
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
        assert array.flags.writeable


def test_numpy_random_is_loaded_with_the_first_layer_not_with_the_package() -> None:
    script = """
import sys
import numpy
before = "numpy.random" in sys.modules
import rnncore
assert ("numpy.random" in sys.modules) == before
rnncore.RNN(1, 1)
assert "numpy.random" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
