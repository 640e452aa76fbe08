"""Same inputs, same bits: whatever the threads, the batch, the pieces of a sequence, the call.

Every cell form at every instruction level, in float32 and float64. Within one level alone: two
levels round differently.
"""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnncore as rc
from gradcheck import Problem, members
from support_layers import (
    DTYPES,
    FORMS,
    Arrays,
    assert_same_bits,
    by_name,
    draw_problem,
    layer_of,
    make_config,
    run_native,
)

at_every_level = pytest.mark.usefixtures("level")
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

THREADS = (1, 2, 3, 8)

#: A thread more is taken for every so many multiply-adds.
WORTH_A_THREAD = 2_500_000


@cache
def problem_of(
    form: str, direction: str, ragged: bool, sizes: tuple[int, int, int, int], L: int = 1
) -> Problem:
    """Draw a problem; sizes are T, B, I, H."""
    T, B, I, H = sizes
    config = make_config(form, direction, num_layers=L, input_size=I, hidden_size=H)
    return draw_problem(config, 11, T=T, B=B, ragged=ragged)


# ------------------------------------------------------------------------------------- threads


def sizes_worth_threads(form: str, threads: int) -> tuple[int, int, int, int]:
    """T, B, I, H at which a forward pass alone is worth so many threads."""
    B, I, H = 24, 40, 67
    G = make_config(form).num_gates
    T = math.ceil(threads * WORTH_A_THREAD / (B * G * H * (I + H))) + 1
    return T, B, I, H


@at_every_level
@every_dtype
@every_form
def test_threads(form: str, dtype: str) -> None:
    """Weight gradients too: they sum over the batch, but never by thread."""
    problem = problem_of(form, "forward", False, sizes_worth_threads(form, max(THREADS)))
    rc.set_num_threads(THREADS[0])
    alone = run_native(problem, dtype=dtype)
    for threads in THREADS[1:]:
        rc.set_num_threads(threads)
        assert_same_bits(run_native(problem, dtype=dtype), alone)


@at_every_level
@every_dtype
@every_form
def test_threads_of_a_ragged_batch_of_two_directions(form: str, dtype: str) -> None:
    T, B, I, H = sizes_worth_threads(form, max(THREADS))
    problem = problem_of(form, "mul", True, (T, B, I, H))
    rc.set_num_threads(THREADS[0])
    alone = run_native(problem, dtype=dtype, checkpoint=T // 2)
    for threads in THREADS[1:]:
        rc.set_num_threads(threads)
        assert_same_bits(run_native(problem, dtype=dtype, checkpoint=T // 2), alone)


@cache
def one_long_row(form: str) -> Problem:
    """Draw a batch of one long row and many of one step, worth four threads even so."""
    T, B = 40, 12
    H = math.ceil(math.sqrt(4 * WORTH_A_THREAD / (T * make_config(form).num_gates)))
    config = make_config(form, "forward", input_size=3, hidden_size=H)
    lengths = np.ones(B, dtype=np.int64)
    lengths[B // 2] = T
    return draw_problem(config, 11, T=T, B=B, lengths=lengths)


@at_every_level
@every_dtype
@every_form
def test_threads_whose_rows_have_all_ended(form: str, dtype: str) -> None:
    problem = one_long_row(form)
    rc.set_num_threads(1)
    alone = run_native(problem, dtype=dtype)
    for threads in (2, 4):
        rc.set_num_threads(threads)
        assert_same_bits(run_native(problem, dtype=dtype), alone)


COUNT_THREADS = """
import os, sys, numpy as np, rnncore as rc
T, B, I, H = map(int, sys.argv[2:])
layer = getattr(rc, sys.argv[1])(I, H, init="pytorch", seed=0)
x = np.zeros((T, B, I), np.float32)
rc.set_num_threads(8)
before = len(os.listdir("/proc/self/task"))
layer(x)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
@pytest.mark.parametrize("form", ["rnn-tanh", "lstm", "gru-after-keep", "mgu-before-write"])
def test_eight_threads_are_really_used(form: str) -> None:
    """The calling thread works too, so there are seven more."""
    sizes = map(str, sizes_worth_threads(form, max(THREADS)))
    name = form.partition("-")[0].upper()
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS, name, *sizes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


# ----------------------------------------------------------------------------------- the batch

#: Cuts of 21 rows: each row alone, around every tile, and where W x is first computed ahead.
CUTS = [
    list(range(22)),
    [0, 1, 3, 6, 11, 21],
    [0, 7, 15, 21],
    [0, 12, 21],
]


def rows_of(results: Arrays, rows: slice) -> Arrays:
    """Take some rows of everything but the gradients of parameters, which sum over rows."""
    return {name: array[:, rows] for name, array in results.items() if not name.startswith("d_")}


def piece_of(problem: Problem, rows: slice) -> Problem:
    """Take some rows of a problem."""

    def cut(state: Any) -> Any:
        return tuple(s[:, rows] for s in state) if isinstance(state, tuple) else state[:, rows]

    return replace(
        problem,
        x=problem.x[:, rows],
        dy=problem.dy[:, rows],
        state=cut(problem.state),
        dstate=cut(problem.dstate),
        lengths=None if problem.lengths is None else problem.lengths[rows],
    )


@at_every_level
@every_dtype
@pytest.mark.parametrize(
    ("direction", "ragged"), [("forward", False), ("concat", True), ("mul", True)]
)
@every_form
def test_the_batch_in_pieces(form: str, direction: str, ragged: bool, dtype: str) -> None:
    problem = problem_of(form, direction, ragged, (6, 21, 9, 35), L=2)
    whole = run_native(problem, dtype=dtype)
    for cuts in CUTS:
        for begin, end in pairwise(cuts):
            rows = slice(begin, end)
            piece = run_native(piece_of(problem, rows), dtype=dtype)
            assert_same_bits(rows_of(piece, slice(None)), rows_of(whole, rows))


@at_every_level
@every_dtype
@every_form
def test_a_large_batch_on_threads_is_its_rows(form: str, dtype: str) -> None:
    problem = problem_of(form, "forward", False, sizes_worth_threads(form, 3))
    rc.set_num_threads(3)
    whole = run_native(problem, dtype=dtype)
    rc.set_num_threads(1)
    for rows in (slice(0, 1), slice(1, 6), slice(20, 24)):
        piece = run_native(piece_of(problem, rows), dtype=dtype)
        assert_same_bits(rows_of(piece, slice(None)), rows_of(whole, rows))


# -------------------------------------------------------------------------------- the sequence


def in_pieces(problem: Problem, cuts: list[int], dtype: str, *, training: bool) -> Arrays:
    """Run a sequence piece by piece with carried state; rows end where their lengths say."""
    layer = layer_of(problem, dtype=dtype)
    state, ys = problem.state, []
    for begin, end in pairwise(cuts):
        lengths = problem.lengths
        lengths = None if lengths is None else np.clip(lengths - begin, 0, end - begin)
        x = problem.x[begin:end]
        call = layer.forward if training else layer
        y, state, *_ = call(x, state, lengths=lengths)
        ys.append(y)
    return {"y": np.concatenate(ys), **dict(zip("hc", members(state), strict=False))}


@at_every_level
@every_dtype
@pytest.mark.parametrize(("B", "ragged"), [(1, False), (5, True), (13, False), (13, True)])
@every_form
def test_the_sequence_in_pieces(form: str, B: int, ragged: bool, dtype: str) -> None:
    T = 23
    problem = problem_of(form, "forward", ragged, (T, B, 9, 35), L=2)
    whole = in_pieces(problem, [0, T], dtype, training=False)
    for cuts in ([0, 1, 2, 5, 16, T], [0, 22, T], list(range(T + 1)), [0, 0, 9, 9, T]):
        assert_same_bits(in_pieces(problem, cuts, dtype, training=False), whole)
        assert_same_bits(in_pieces(problem, cuts, dtype, training=True), whole)


# -------------------------------------------------------------------------------------- freeze


@at_every_level
@every_dtype
@pytest.mark.parametrize("B", [1, 2, 7, 13])
@every_form
def test_a_frozen_layer_is_the_layer(form: str, B: int, dtype: str) -> None:
    T = 11
    problem = problem_of(form, "forward", False, (T, B, 9, 35), L=2)
    layer, x = layer_of(problem, dtype=dtype), problem.x.astype(dtype)
    y, final = layer(x)
    whole = {"y": y, **dict(zip("hc", members(final), strict=False))}
    frozen = layer.freeze(batch_size=B)
    out = np.empty((B, layer.output_size), dtype)

    def streamed(pieces: Iterator[Any]) -> Arrays:
        frozen.reset()
        ys = np.concatenate(list(pieces))
        return {"y": ys, **dict(zip("hc", members(frozen.state), strict=False))}

    assert_same_bits(streamed(frozen.step(x_t)[None] for x_t in x), whole)
    assert_same_bits(streamed(frozen.step(x_t, out=out)[None].copy() for x_t in x), whole)
    for cuts in ([0, T], [0, 1, 4, T], [0, 0, 10, T]):
        assert_same_bits(streamed(frozen.run(x[a:b]) for a, b in pairwise(cuts)), whole)
    runs_and_steps = (
        frozen.run(x[t : t + 2]) if t % 3 else frozen.step(x[t])[None]
        for t in range(T)
        if t % 3 < 2
    )
    assert_same_bits(streamed(runs_and_steps), whole)


@at_every_level
@every_dtype
@every_form
def test_a_frozen_layer_runs_on_threads_with_the_same_bits(form: str, dtype: str) -> None:
    problem = problem_of(form, "forward", False, sizes_worth_threads(form, 3))
    layer = layer_of(problem, dtype=dtype)
    rc.set_num_threads(1)
    y, final = layer(problem.x)
    rc.set_num_threads(3)
    frozen = layer.freeze(batch_size=problem.x.shape[1])
    assert_same_bits({"y": frozen.run(problem.x)}, {"y": y})
    for one, other in zip(members(frozen.state), members(final), strict=True):
        assert_same_bits({"state": one}, {"state": other})


def with_rounded_weights(layer: Any) -> Any:
    """Copy a float32 layer, its weights rounded to the nearest bfloat16, ties to even."""
    params = {name: p.copy() for name, p in layer.params.items()}
    for p in params.values():
        if p.ndim == 2:
            words = p.view(np.uint32)
            words += 0x7FFF + (words >> 16 & 1)
            words &= np.uint32(0xFFFF0000)
    other = copy.deepcopy(layer)
    other.load_params(params)
    return other


@at_every_level
@pytest.mark.parametrize("B", [1, 2, 13])
@pytest.mark.parametrize(("I", "H"), [(8, 32), (9, 35), (33, 70)])
@every_form
def test_bfloat16_weights_are_rounded_and_no_more(form: str, I: int, H: int, B: int) -> None:
    T = 11
    problem = problem_of(form, "forward", False, (T, B, I, H), L=2)
    layer, x = layer_of(problem, dtype="float32"), problem.x.astype("float32")
    rounded = with_rounded_weights(layer)
    y, final = rounded(x)
    whole = {"y": y, **dict(zip("hc", members(final), strict=False))}
    frozen = layer.freeze(B, weights="bfloat16")

    def streamed(pieces: Iterator[Any]) -> Arrays:
        frozen.reset()
        ys = np.concatenate(list(pieces))
        return {"y": ys, **dict(zip("hc", members(frozen.state), strict=False))}

    assert_same_bits(streamed(frozen.step(x_t)[None] for x_t in x), whole)
    for cuts in ([0, T], [0, 1, 4, T], [0, 0, 10, T]):
        assert_same_bits(streamed(frozen.run(x[a:b]) for a, b in pairwise(cuts)), whole)
    for a, b in ((0, 1), (B // 2, B)):
        part = layer.freeze(b - a, weights="bfloat16").run(np.ascontiguousarray(x[:, a:b]))
        assert_same_bits({"y": part}, {"y": np.ascontiguousarray(y[:, a:b])})


@at_every_level
@every_form
def test_bfloat16_weights_on_threads(form: str) -> None:
    problem = problem_of(form, "forward", False, sizes_worth_threads(form, 3))
    layer, x = layer_of(problem, dtype="float32"), problem.x.astype("float32")
    answers = []
    for threads, few in ((1, False), (3, False), (1, True), (2, True)):
        rc.set_num_threads(threads)
        # Of a single row workers would share the units.
        rows = x[:, :1] if few else x
        frozen = layer.freeze(rows.shape[1], weights="bfloat16")
        answers.append({"y": frozen.run(rows)})
    assert_same_bits(answers[1], answers[0])
    assert_same_bits(answers[3], answers[2])


# --------------------------------------------------------------------------- ways to call a layer


@at_every_level
@every_dtype
@pytest.mark.parametrize(
    ("direction", "ragged"), [("forward", False), ("concat", True), ("mul", True)]
)
@every_form
def test_inference_is_the_training_forward(
    form: str, direction: str, ragged: bool, dtype: str
) -> None:
    for B in (1, 13):
        problem = problem_of(form, direction, ragged, (9, B, 9, 35), L=2)
        layer = layer_of(problem, dtype=dtype)
        y, final = layer(problem.x, problem.state, lengths=problem.lengths)
        trained, final_trained, _ = layer.forward(problem.x, problem.state, lengths=problem.lengths)
        for one, other in zip(
            (y, *members(final)), (trained, *members(final_trained)), strict=True
        ):
            assert_same_bits({"inference": one}, {"inference": other})


@at_every_level
@every_dtype
@pytest.mark.parametrize("direction", ["forward", "concat", "sum", "mean", "mul"])
@every_form
def test_checkpoints(form: str, direction: str, dtype: str) -> None:
    T = 7
    config = make_config(
        form,
        direction,
        num_layers=2,
        input_size=3,
        hidden_size=17,
        dropout=0.3,
        recurrent_dropout=0.3,
    )
    for ragged in (False, True):
        problem = draw_problem(config, 12, T=T, B=6, ragged=ragged, masked=True)
        whole = run_native(problem, dtype=dtype)
        for every in (1, 2, 3, T, T + 5):
            assert_same_bits(run_native(problem, dtype=dtype, checkpoint=every), whole)


@at_every_level
@every_dtype
@every_form
def test_checkpoints_of_many_chunks(form: str, dtype: str) -> None:
    """Sums over rows are cut by checkpoints and by chunks of 256 rows, at different places."""
    problem = problem_of(form, "concat", True, (70, 9, 3, 9))
    whole = run_native(problem, dtype=dtype)
    for every in (1, 28, 29, 64):
        assert_same_bits(run_native(problem, dtype=dtype, checkpoint=every), whole)


@at_every_level
@every_dtype
@pytest.mark.parametrize("checkpoint", [None, 2])
@every_form
def test_a_kept_tape_gives_the_same_gradients_again(
    form: str, checkpoint: int | None, dtype: str
) -> None:
    problem = problem_of(form, "mul", True, (9, 6, 9, 35), L=2)
    layer = layer_of(problem, dtype=dtype)
    y, final, tape = layer.forward(
        problem.x, problem.state, lengths=problem.lengths, checkpoint=checkpoint
    )

    def backward(keep: bool) -> Arrays:
        gates = tape.gates()
        g = layer.backward(tape, problem.dy, problem.dstate, keep=keep, return_state_grads=True)
        return by_name(y, final, gates, g)

    first = backward(keep=True)
    assert_same_bits(backward(keep=True), first)
    assert_same_bits(backward(keep=False), first)
