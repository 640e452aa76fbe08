"""The compiled half of rnncore; import ``rnncore`` instead."""

from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Frozen",
    "Stack",
    "Tape",
    "__version__",
    "adam",
    "cores",
    "get_level",
    "get_num_threads",
    "levels",
    "load_tensors",
    "multiply_add",
    "save_tensors",
    "set_level",
    "set_num_threads",
    "sum_of_squares",
]

__version__: str

def levels() -> list[str]: ...
def get_level() -> str: ...
def set_level(name: str) -> None: ...
def cores() -> int: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def multiply_add(rounds: int, dtype: str) -> int: ...
def adam(
    w: NDArray[Any],
    g: NDArray[Any],
    mean: NDArray[Any],
    variance: NDArray[Any],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    l1: float,
    decoupled: bool,
    step: float,
) -> bool: ...
def sum_of_squares(array: NDArray[Any]) -> float: ...
def save_tensors(
    path: str | PathLike[str],
    tensors: dict[str, NDArray[Any]],
    metadata: dict[str, str],
) -> None: ...
def load_tensors(
    path: str | PathLike[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]: ...

@final
class Stack:
    def __new__(
        cls,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        merge: str,
        bias: bool,
        dropout: float,
        recurrent_dropout: float,
        dtype: str,
        *,
        nonlinearity: str = "tanh",
        reset_after: bool = True,
        update_gate: str = "keep",
    ) -> Stack: ...
    def forward(
        self,
        params: list[NDArray[Any]],
        x: NDArray[Any],
        state: tuple[NDArray[Any], ...] | None,
        lengths: NDArray[np.int64] | None,
        batch_first: bool,
        training: bool,
        masks: tuple[int, int] | None,
        checkpoint: int | None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...], Tape | None]: ...
    def backward(
        self,
        params: list[NDArray[Any]],
        tape: Tape,
        dy: NDArray[Any] | None,
        dstate: tuple[NDArray[Any] | None, ...] | None,
        state_grads: bool,
    ) -> tuple[
        NDArray[Any],
        tuple[NDArray[Any], ...],
        list[NDArray[Any]],
        list[tuple[NDArray[Any], ...]] | None,
    ]: ...
    def gates(
        self, params: list[NDArray[Any]], tape: Tape
    ) -> dict[str, dict[str, NDArray[Any]]]: ...
    def freeze(
        self,
        params: list[NDArray[Any]],
        batch_size: int,
        batch_first: bool,
        weights: str | None,
    ) -> Frozen: ...

@final
class Tape:
    @property
    def nbytes(self) -> int: ...

@final
class Frozen:
    @property
    def state(self) -> Any: ...
    @state.setter
    def state(self, value: Any) -> None: ...
    def step(self, x_t: ArrayLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]: ...
    def run(self, x: ArrayLike) -> NDArray[Any]: ...
    def _repeat_step(self, x_t: ArrayLike, times: int) -> NDArray[Any]: ...
    def reset(self, rows: ArrayLike | None = None) -> None: ...
