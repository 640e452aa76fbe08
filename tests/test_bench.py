"""What the benchmark concludes from its numbers, and the hooks that it measures with; no timing."""

from __future__ import annotations

import csv
import math
import threading
from dataclasses import replace
from hashlib import pbkdf2_hmac
from pathlib import Path

import numpy as np
import ours
import prototype
import pytest
import report
from cases import LAYERS, PEAK, SHAPES, SUITES, Case, Choice, Memory, Result, Shape, cases
from race import (
    FEW_ROUNDS,
    MAX_ROUNDS,
    MIN_ROUNDS,
    count_rounds,
    disagreement,
    orders,
    others_run,
    quiesce,
)
from targets import TAPE_VALUES, Check, Target, checks, findings, memory_checks, sweep_dip

import rnncore as rc
from rnncore import _core

EVERYTHING = Choice(list(LAYERS), None, [1, 2], prototype=True)
SMALL = Case("grid", "lstm", "training", SHAPES[0], 1)


def result(case: Case, **seconds: float | list[float]) -> Result:
    """Return a result of a few rounds in which the peak does one operation a second."""
    rounds = {name: one if isinstance(one, list) else 3 * [one] for name, one in seconds.items()}
    rounds[PEAK] = 3 * [1.0]
    return Result(case, rounds, {name: case.flops() for name in seconds} | {PEAK: 1.0})


# ---- Cases ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_has_cases_and_each_of_them_once(suite: str) -> None:
    found = cases(suite, EVERYTHING)
    assert found
    assert len(set(found)) == len(found)
    assert {case.suite for case in found} == {suite}


def test_the_grid_is_every_cell_work_shape_and_number_of_threads() -> None:
    assert len(cases("grid", EVERYTHING)) == 3 * 2 * 8 * 2


def test_the_smallest_step_is_timed_at_every_vector_level() -> None:
    found = [case for case in cases("overhead", EVERYTHING) if case.shape.H == 32]
    levels = {case.level or rc.get_level() for case in found if case.cell == "lstm"}
    assert levels >= set(rc.levels()[1:])


def test_a_prototype_is_timed_only_when_there_is_one() -> None:
    assert not cases("prototype", replace(EVERYTHING, prototype=False))


def test_operations_are_those_of_the_products() -> None:
    one = Case("grid", "gru", "inference", Shape(5, 3, 7, 11), 1)
    forward = 2 * 5 * 3 * 3 * 11 * (7 + 11)
    assert one.flops() == forward
    assert one.of("gru", "training").flops() == 3 * forward
    deep = replace(one, num_layers=2, bidirectional=True)
    assert deep.flops() == 2 * 5 * 3 * 2 * 3 * 11 * ((7 + 11) + (2 * 11 + 11))
    ragged = replace(one, suite="ragged")
    lengths = ragged.lengths()
    assert lengths is not None
    assert ragged.flops() * 15 == forward * lengths.sum()


# ---- Answers -------------------------------------------------------------------------------------


def test_a_disagreement_is_relative_to_the_largest_value() -> None:
    want = {"y": np.array([0.0, 100.0]), "z": np.array([0.5])}
    assert disagreement(want, want)[0] == 0
    off = {"y": np.array([1.0, 100.0]), "z": np.array([0.5 + 1e-3])}
    error, worst = disagreement(off, want)
    assert error == pytest.approx(0.01)
    assert worst == "y"


def test_nan_is_infinitely_far_off() -> None:
    assert disagreement({"y": np.array([np.nan])}, {"y": np.zeros(1)}) == (math.inf, "y")


def test_another_shape_is_no_answer() -> None:
    with pytest.raises(ValueError, match=r"y: shape \(1, 1\), expected \(1,\)"):
        disagreement({"y": np.zeros((1, 1))}, {"y": np.zeros(1)})


def test_rounds_follow_the_budget_within_bounds() -> None:
    assert count_rounds(cost=0.1, seconds=2) == 20
    assert count_rounds(cost=0.001, seconds=2) == MAX_ROUNDS
    assert count_rounds(cost=1, seconds=2) == MIN_ROUNDS
    assert count_rounds(cost=10, seconds=2) == FEW_ROUNDS


def test_a_round_is_everybody_once_and_nobody_always_follows_the_same() -> None:
    found = list(orders(4, MAX_ROUNDS))
    assert all(sorted(order) == [0, 1, 2, 3] for order in found)
    for who in range(4):
        before = {order[order.index(who) - 1] for order in found if order[0] != who}
        assert before == {0, 1, 2, 3} - {who}
    assert found == list(orders(4, MAX_ROUNDS))


def test_a_thread_that_computes_is_seen_and_waited_for() -> None:
    # It computes outside the interpreter's lock, as the threads of a peer do.
    work = threading.Thread(target=pbkdf2_hmac, args=("sha256", b"", b"", 300_000))
    work.start()
    seen = any(others_run() for _ in range(1000) if work.is_alive())
    work.join()
    assert seen
    quiesce()
    assert not others_run()


# ---- Targets -------------------------------------------------------------------------------------


def test_a_ratio_is_the_median_of_paired_rounds() -> None:
    found = result(SMALL, rnncore=[1.0, 10.0, 2.0], torch=[3.0, 20.0, 4.0])
    assert found.ratio("torch", "rnncore") == 2.0


def test_only_a_floor_of_one_allows_for_noise() -> None:
    assert Target("training", "torch", 1.0, 4.0).met(0.97)
    assert not Target("training", "torch", 1.0, 4.0).met(0.96)
    assert not Target("training", "jax", 1.15, 2.2).met(1.14)


def test_a_finding_counts_what_was_timed_of_what_was_named() -> None:
    wide = replace(SMALL, shape=SHAPES[1])
    stranger = replace(SMALL, shape=Shape(9, 9, 9, 9))
    run = [
        result(SMALL, rnncore=1.0, torch=0.5),
        result(wide, rnncore=1.0, torch=8.0),
        result(stranger, rnncore=1.0, torch=0.1),
    ]
    (found,) = findings(run)
    assert (found.target.peer, found.threads) == ("torch", 1)
    assert (len(found.pairs), found.named) == (2, 24)
    assert (found.worst, found.below) == ((0.5, SMALL), 1)
    assert found.mean == pytest.approx(2.0)


def test_who_packs_once_is_held_against_the_frozen_layer() -> None:
    case = replace(SMALL, work="inference")
    (found,) = findings([result(case, rnncore=9.0, frozen=1.0, openvino=2.0)])
    assert found.worst[0] == 2.0


def test_a_prototype_is_held_against_us_level_by_level() -> None:
    level = rc.levels()[-1]
    (case, *_) = cases("prototype", EVERYTHING)
    name = f"{level} gru inference"
    run = result(case, **{name: 1.0, f"prototype {name}": 1.5})
    (found,) = findings([run])
    assert (found.target.level, found.target.work) == (level, "inference")
    assert found.worst == (1.5, case.of("gru", "inference"))
    assert found.named == 16


# ---- Checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "at_most", "met"),
    [(1.0, True, True), (1.1, True, False), (1.0, False, True), (0.9, False, False)],
)
def test_a_bound_belongs_to_what_it_allows(found: float, at_most: bool, met: bool) -> None:
    assert Check("", "", found, 1.0, at_most).met is met


@pytest.mark.parametrize("at_most", [True, False])
def test_nan_meets_no_bound(at_most: bool) -> None:
    assert not Check("", "", math.nan, 1.0, at_most).met


def found_in(case: Case, **seconds: float) -> dict[float, bool]:
    """Return what was found, rounded, and whether it was enough."""
    run = checks([result(case, **seconds)], "avx2")
    return {round(check.found, 3): check.met for check in run}


def test_shares_are_of_the_peak_in_the_same_round() -> None:
    case = Case("grid", "lstm", "inference", Shape(50, 64, 512, 512), 1)
    seconds = case.flops() / 0.8
    assert found_in(case, rnncore=9 * seconds, frozen=seconds) == {0.8: False}
    assert found_in(case, frozen=case.flops() / 0.92) == {0.92: True}
    assert not found_in(replace(case, cell="rnn"), frozen=1.0)


def test_the_overhead_of_a_step_is_what_it_takes_over_rust() -> None:
    case = Case("overhead", "lstm", "step", Shape(1, 1, 16, 32), 1)
    seconds = {"frozen": 1.1e-6, "frozen out=": 0.8e-6, "rust": 0.29e-6}
    assert found_in(case, **seconds) == {0.81: False, 0.51: True, 0.29: True}
    # The widest level has another bound.
    assert found_in(replace(case, level="avx512"), rust=0.29e-6) == {0.29: False}
    assert not found_in(replace(case, cell="gru"), rust=0.29e-6)


def test_more_threads_are_held_against_one() -> None:
    case = Case("scaling", "lstm", "training", SHAPES[0], 2)
    seconds = {"threads=1": 1.0, "threads=2": 1.04, "threads=8": 2.1}
    assert found_in(case, **seconds) == {1.04: True, 2.1: False}
    wide = replace(case, shape=SHAPES[2])
    assert found_in(wide, **{"threads=1": 1.0, "threads=2": 0.8}) == {1.25: False, 0.8: True}


def test_a_neighbour_may_cost_twice_the_time_of_one_thread_alone() -> None:
    case = Case("neighbour", "lstm", "training", SHAPES[2], 2)
    seconds = {"threads=1": 1.0, "threads=1 (busy)": 9.0, "threads=2 (busy)": 1.9}
    assert found_in(case, **seconds) == {1.9: True}


def test_other_suites_have_one_bound_each() -> None:
    shape = SHAPES[3]
    denormals = Case("denormals", "lstm", "training", shape, 1)
    times = {"rnncore": 1.6, "rnncore (ordinary)": 1.0, "torch": 20.0, "torch (ordinary)": 1.0}
    assert found_in(denormals, **times) == {1.6: False}
    assert found_in(replace(denormals, suite="checkpoint"), rnncore=1, checkpoints=1.3) == {
        1.3: True
    }
    assert found_in(replace(denormals, suite="bfloat16"), frozen=1.4, bfloat16=1) == {1.4: False}


def test_a_dip_is_found_among_its_neighbours() -> None:
    case = Case("sweep", "lstm", "inference", Shape(20, 40, 64, 128), 1)
    seconds: dict[str, float] = {f"B={rows}": float(rows) for rows in range(1, 41)}
    assert sweep_dip(result(case, **seconds)) == (1.0, 8)
    seconds["B=17"] *= 2
    seconds["B=5"] *= 9  # too few rows to be promised anything
    assert sweep_dip(result(case, **seconds)) == (0.5, 17)


@pytest.mark.parametrize("cell", TAPE_VALUES)
def test_a_tape_holds_no_more_values_than_promised(cell: str) -> None:
    assert ours.tape_values(cell) <= TAPE_VALUES[cell]


@pytest.mark.parametrize(
    ("at_once", "steps"), [(1, 13.0), (2, 23.0), (None, 100.0)], ids=["one", "two", "all"]
)
def test_gates_held_with_checkpoints_are_measured(at_once: int | None, steps: float) -> None:
    """A backward pass that holds one segment at a time, two, and all that it made again."""
    case = Case("memory", "lstm", "training", Shape(100, 64, 256, 256), 1)
    step, other = 400_000, 30_000_000
    weights = 4 * 256 * 512 * 4
    memory = [Memory(case, "rnncore", 7, 7 + other + 100 * step, 100 * step)]
    for name, k in (("checkpoints", 10), ("two segments", 50)):
        tape = 30 * step // k
        again = (100 if at_once is None else at_once * k) * step - (at_once is None) * tape
        memory.append(Memory(case, name, 9, 9 + other + weights + tape + again, tape))
    (found,) = (check for check in memory_checks(memory) if check.promise.startswith("steps'"))
    assert found.found == pytest.approx(steps)
    assert found.met is (at_once == 1)


# ---- Pages ---------------------------------------------------------------------------------------


def a_run() -> tuple[list[Result], list[Memory]]:
    step = Case("bfloat16", "lstm", "step", Shape(1, 1, 256, 256), 1)
    big = Case("grid", "lstm", "training", Shape(50, 64, 512, 512), 1)
    results = [
        result(big, rnncore=1.0, torch=0.5),
        Result(
            SMALL, {PEAK: [1.0], "rnncore": [1.0]}, {PEAK: 1.0, "rnncore": 1.0}, {}, {"jax": "no"}
        ),
        Result(step, skipped="weights: not yet"),
    ]
    return results, [Memory(SMALL, "rnncore", 1, 2, 3), Memory(SMALL, "torch", 1, 2)]


def test_the_page_says_what_was_met_missed_lost_and_not_timed() -> None:
    results, memory = a_run()
    page = report.markdown("a machine", results, memory)
    assert "a machine" in page
    assert "| training | torch | 1 | 1 of 24 | 0.50 (lstm 50,64,512,512) | 1 | **missed**" in page
    assert "| training, share of the peak | 1 |" in page
    assert "| 0.50 | torch | grid training lstm 50,64,512,512 1 thread(s) |" in page
    assert "| jax | grid training lstm 100,1,16,32 1 thread(s) | no |" in page
    assert "SKIPPED: weights: not yet" in page
    assert "rnncore peak 0 MiB" in page


def test_the_readme_gets_the_tables_between_its_markers() -> None:
    section = report.readme_section("a machine", *a_run(), "docs/bench.png")
    assert "A peer is faster in 1 of 1 comparisons" in section
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    once = report.between_markers(page, section)
    assert section in once
    assert report.between_markers(once, section) == once
    assert once.startswith(page[: page.index("<!-- bench -->")])
    assert once.endswith(page[page.index("<!-- /bench -->") :])


def test_the_readme_shows_how_we_stand_beside_a_prototype() -> None:
    level = rc.levels()[-1]
    (case, *_) = cases("prototype", EVERYTHING)
    name = f"{level} lstm training"
    run = [result(case, **{name: 1.0, f"prototype {name}": 0.9})]
    section = report.readme_section("a machine", run, [], None)
    assert f"| training, {level} | prototype | 1 | 1 of 16 | 0.90 (lstm {case.shape})" in section


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one <!-- bench -->"):
        report.between_markers("no markers", "text")


def test_rates_of_a_prototype_are_read_from_its_line() -> None:
    line = (
        "final (100, 1, 16, 32) peak 116.2/116.5 | a2 L: 46.3(40%,max46) 43.6(37%,max44) "
        "54.0(46%,max54) a5 G: 66.6(57%,max67) 58.4(50%,max58) 67.2(58%,max67)"
    )
    assert prototype.rates(line) == {
        "avx2 lstm inference": 46.3,
        "avx2 lstm training": 54.0,
        "avx512 gru inference": 66.6,
        "avx512 gru training": 67.2,
    }


def test_every_row_of_the_samples_has_a_key_of_its_own(tmp_path: Path) -> None:
    everything = [case for suite in SUITES for case in cases(suite, EVERYTHING)]
    deep = replace(SMALL, num_layers=2, bidirectional=True)
    path = tmp_path / "bench.csv"
    report.write_csv(path, [result(case, rnncore=1.0) for case in (*everything, deep)])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * (len(everything) + 1)  # the peak has rows too
    keys = {tuple(row[name] for name in row if name not in ("flops", "seconds")) for row in rows}
    assert len(keys) == len(rows)
    (last,) = {(row["num_layers"], row["bidirectional"], row["level"]) for row in rows[-6:]}
    assert last == ("2", "1", "")


# ---- Hooks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", rc.levels())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_multiply_adds_are_counted(level: str, dtype: str) -> None:
    with ours.settings(threads=1, level=level):
        once = _core.multiply_add(1, dtype)
        assert once > 0
        assert _core.multiply_add(1000, dtype) == 1000 * once
    with ours.settings(threads=2, level=level):
        assert _core.multiply_add(1000, dtype) == 2000 * once
    assert _core.multiply_add(0, dtype) == 0


def test_multiply_adds_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match='dtype: expected "float32" or "float64", got "int8"'):
        _core.multiply_add(1, "int8")


@pytest.mark.parametrize("cell", LAYERS)
def test_a_repeated_step_is_that_many_steps(cell: str) -> None:
    layer = LAYERS[cell](3, 5, seed=0)
    x_t = np.linspace(-1, 1, 3, dtype=np.float32)
    one, other = layer.freeze(), layer.freeze()
    for _ in range(7):
        y = one.step(x_t)
    np.testing.assert_array_equal(other._repeat_step(x_t, 7), y)
    np.testing.assert_array_equal(other.state, one.state)
