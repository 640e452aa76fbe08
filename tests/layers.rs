//! The layers against a reference of plain loops, on every instruction level of this machine, and
//! against themselves: the same bits for any number of threads, any split of the batch, any checkpoint,
//! step by step and all at once.

#[path = "support/levels.rs"]
mod levels;
#[path = "support/naive.rs"]
mod naive;
#[path = "support/problem.rs"]
mod problem;

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use levels::levels;
use naive::{Answer, Problem};
use problem::{
    Arrays, CELLS, Case, Random, Setup, assert_close, assert_same, assert_same_bits, backward,
    compute, forward, slices, tolerance,
};
use rnncore::cell::Update;
use rnncore::error::Error;
use rnncore::layer::{
    BackwardOptions, CellKind, Config, Execution, ForwardOptions, Frozen, Input, Merge, Output,
    Stack, Storage,
};
use rnncore::memory::Buffer;
use rnncore::parallel::{Team, Watch};
use rnncore::simd::{Element, Level};

/// H around the lanes of every level (2 or 4, 8, 16), and around two and four vectors of them; odd
/// sizes leave a partial vector.
const HIDDEN: [usize; 12] = [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33];
/// B around the rows of every register tile (3, 6, 8, 12), one row, which has kernels of its own, and more
/// than are finished together (24).
const BATCH: [usize; 8] = [1, 2, 3, 5, 6, 7, 13, 27];
/// I of one value, of two, and beyond a vector.
const INPUT: [usize; 3] = [1, 2, 17];
/// T without a recurrence, with one, with several.
const TIME: [usize; 3] = [1, 2, 5];
/// One direction, and how two may merge.
const MERGES: [Option<Merge>; 5] = [
    None,
    Some(Merge::Concat),
    Some(Merge::Sum),
    Some(Merge::Mean),
    Some(Merge::Mul),
];
const CHECKPOINTS: [Option<usize>; 4] = [None, Some(1), Some(2), Some(usize::MAX)];

/// A pool of threads serves one call at a time, and a call that finds it taken computes alone: tests
/// that mean to see several threads at work take turns.
fn pool() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A case with everything in it, to be changed where a test wants something else.
fn case(cell: CellKind) -> Case {
    Case {
        cell,
        time: 5,
        batch: 7,
        input: 17,
        hidden: 9,
        layers: 2,
        merge: Some(Merge::Concat),
        bias: true,
        dropout: false,
        ragged: true,
        given: [true; 3],
        seed: 1,
    }
}

/// T for which a forward pass is worth `threads` threads.
fn time_worth(threads: usize, case: &Case) -> usize {
    let gates = naive::gate_names(case.cell).len();
    let per_step = gates * case.hidden * (case.input + case.hidden) * case.batch;
    // Ragged rows have half of their steps, more or less.
    (threads * 2_500_000 / per_step + 1) * if case.ragged { 2 } else { 1 }
}

/// The problem and what it should give. Where relu is in play, the first of some seeds that keeps
/// every pre-activation away from the kink.
fn solved<E: Element>(case: &Case) -> (Problem, Answer) {
    let away = if E::MANTISSA_BITS == 23 { 1e-5 } else { 1e-10 };
    for attempt in 0..20 {
        let attempted = Case {
            seed: case.seed.wrapping_add(attempt << 32),
            ..case.clone()
        };
        let problem = attempted.problem::<E>();
        let answer = naive::solve(&problem);
        if answer.margin > away {
            return (problem, answer);
        }
    }
    panic!("no seed keeps relu away from its kink: {case:?}");
}

// ---- Against the reference -----------------------------------------------------------------------

/// Every H with every B; directions, merges, ragged rows and checkpoints in all combinations along the
/// way; the other options as a stream of numbers has it.
fn agrees_at_all_sizes<E: Element>(cell: CellKind) {
    let sizes = HIDDEN
        .iter()
        .flat_map(|&hidden| BATCH.map(|batch| (hidden, batch)));
    for (k, (hidden, batch)) in sizes.enumerate() {
        let random = &mut Random(k as u64);
        let case = Case {
            hidden,
            batch,
            input: random.pick(&INPUT),
            time: random.pick(&TIME),
            layers: random.pick(&[1, 2]),
            merge: MERGES[k % 5],
            bias: random.below(4) > 0,
            dropout: random.below(4) == 0,
            ragged: k / 5 % 2 == 1,
            given: [0; 3].map(|_| random.below(4) > 0),
            seed: random.next(),
            ..case(cell)
        };
        let (problem, answer) = solved::<E>(&case);
        for level in levels() {
            let plain = Setup::plain(level);
            let context = format!("{case:?}, {plain:?}");
            let expected = compute::<E>(&problem, plain);
            assert_close(&expected, &answer.arrays, tolerance::<E>(), &context);

            let other = Setup {
                checkpoint: CHECKPOINTS[k / 10 % 4],
                batch_first: random.below(2) == 0,
                threads: random.pick(&[1, 2, 3]),
                ..plain
            };
            assert_same(
                &compute::<E>(&problem, other),
                &expected,
                &format!("{case:?}, {other:?}"),
            );
            let inference =
                forward::<E>(&problem, plain, Watch::unattended(), false).expect("forward");
            assert!(inference.tape.is_none());
            assert_same_bits(&inference.y, &expected[0].1, &context);
        }
    }
}

/// Nothing to do: no steps, no rows, no row with a step.
fn agrees_where_there_is_nothing<E: Element>(cell: CellKind) {
    for (time, batch, ragged) in [
        (0, 3, false),
        (5, 0, false),
        (0, 0, false),
        (0, 3, true),
        (5, 0, true),
    ] {
        for merge in MERGES {
            let (problem, answer) = solved::<E>(&Case {
                time,
                batch,
                ragged,
                merge,
                ..case(cell)
            });
            for (level, checkpoint) in levels()
                .into_iter()
                .flat_map(|level| CHECKPOINTS.map(|c| (level, c)))
            {
                let setup = Setup {
                    checkpoint,
                    ..Setup::plain(level)
                };
                let context = format!("T = {time}, B = {batch}, {merge:?}, {setup:?}");
                assert_close(
                    &compute::<E>(&problem, setup),
                    &answer.arrays,
                    0.0,
                    &context,
                );
            }
        }
    }
    let mut problem = case(cell).problem::<E>();
    problem.lengths = Some(vec![0; problem.batch]);
    let answer = naive::solve(&problem);
    for level in levels() {
        assert_close(
            &compute::<E>(&problem, Setup::plain(level)),
            &answer.arrays,
            0.0,
            level.name(),
        );
    }
}

/// So many steps that they are cut into chunks, forward (few rows) and backward.
fn agrees_over_many_steps<E: Element>(cell: CellKind) {
    for (batch, merge) in [(1, Some(Merge::Mul)), (3, None), (7, Some(Merge::Concat))] {
        let case = Case {
            time: 300,
            batch,
            merge,
            hidden: 5,
            layers: 1,
            ..case(cell)
        };
        let (problem, answer) = solved::<E>(&case);
        for level in levels() {
            let plain = Setup::plain(level);
            let context = format!("{case:?}, {plain:?}");
            let expected = compute::<E>(&problem, plain);
            assert_close(&expected, &answer.arrays, tolerance::<E>(), &context);
            let other = Setup {
                checkpoint: Some(70),
                ..plain
            };
            assert_same(
                &compute::<E>(&problem, other),
                &expected,
                &format!("{case:?}, {other:?}"),
            );
        }
    }
}

// ---- Against themselves --------------------------------------------------------------------------

/// Work for several threads is much work, so twins share it: of two forms of a cell one takes dense rows
/// in one direction, the other ragged rows in two; and float64 runs on the best level alone.
fn threads_do_not_change_bits<E: Element>(cell: CellKind) {
    let _turn = pool();
    let (dense, ragged) = ((None, false), (Some(Merge::Mean), true));
    let shapes = match cell {
        CellKind::Lstm => vec![dense, ragged],
        CellKind::Rnn { relu: false } => vec![dense],
        CellKind::Gru { update, .. } | CellKind::Mgu { update, .. } if update == Update::Keep => {
            vec![dense]
        }
        _ => vec![ragged],
    };
    let mut levels = levels();
    if E::MANTISSA_BITS == 52 {
        levels.drain(..levels.len() - 1);
    }
    for (level, (merge, ragged)) in levels
        .iter()
        .flat_map(|level| shapes.iter().map(move |shape| (*level, *shape)))
    {
        let mut case = Case {
            batch: 13,
            hidden: 33,
            layers: 1,
            merge,
            ragged,
            dropout: ragged,
            ..case(cell)
        };
        case.time = time_worth(3, &case);
        let problem = case.problem::<E>();
        let alone = compute::<E>(&problem, Setup::plain(level));
        for threads in [2, 3] {
            assert_eq!(
                Team::assemble(threads, &Watch::unattended()).size(),
                threads
            );
            let setup = Setup {
                threads,
                ..Setup::plain(level)
            };
            assert_same(
                &compute::<E>(&problem, setup),
                &alone,
                &format!("{case:?}, {setup:?}"),
            );
        }
    }
}

/// One row of a wide layer, or a few of a wider one: where there are two cores, two workers share its
/// units and meet at every step. Sizes leave the last panel of units incomplete.
fn shared_units_do_not_change_bits<E: Element>(cell: CellKind) {
    let _turn = pool();
    let mut levels = levels();
    if E::MANTISSA_BITS == 52 {
        levels.drain(..levels.len() - 1);
    }
    // Wide enough for two workers, whatever the number of gates; and U of several rows is large.
    let gates = naive::gate_names(cell).len() - 1;
    let (wide, wider) = ([500, 335, 275, 235][gates], [685, 485, 395, 345][gates]);
    let best = *levels.last().expect("there is a level");
    let cases = levels
        .into_iter()
        .flat_map(|level| [(level, false), (level, true)])
        .map(|(level, dropout)| (level, dropout, 1, wide))
        .chain([(best, false, 3, wider), (best, true, 13, wider)]);
    for (level, dropout, batch, hidden) in cases {
        let mut case = Case {
            batch,
            hidden,
            layers: 1,
            merge: None,
            ragged: batch > 1,
            dropout,
            ..case(cell)
        };
        case.time = time_worth(2, &case);
        let problem = case.problem::<E>();
        let alone = compute::<E>(&problem, Setup::plain(level));
        for checkpoint in [None, Some(4)] {
            let setup = Setup {
                threads: 2,
                checkpoint,
                ..Setup::plain(level)
            };
            assert_same(
                &compute::<E>(&problem, setup),
                &alone,
                &format!("{case:?}, {setup:?}"),
            );
        }
    }
}

/// A pool serves one call: whoever finds it taken computes alone.
#[test]
fn a_taken_pool_does_not_change_bits() {
    let _turn = pool();
    let mut case = Case {
        batch: 13,
        hidden: 33,
        layers: 1,
        ..case(CellKind::Lstm)
    };
    case.time = time_worth(3, &case);
    let problem = case.problem::<f32>();
    let setup = Setup {
        threads: 3,
        ..Setup::plain(Level::detect())
    };
    let together = compute::<f32>(&problem, setup);
    let watch = Watch::unattended();
    let taken = Team::assemble(2, &watch);
    assert_eq!((taken.size(), Team::assemble(3, &watch).size()), (2, 1));
    assert_same(
        &compute::<f32>(&problem, setup),
        &together,
        &format!("{case:?}, {setup:?}"),
    );
}

/// Some rows of the batch, of a problem without dropout (whose masks know each row by its number).
fn rows_of(problem: &Problem, rows: Range<usize>) -> Problem {
    assert!(problem.masks.is_none());
    let states = problem.config.layers * problem.config.directions();
    let by_time =
        |values: &Vec<f64>| take_rows(values, (problem.time, problem.batch), rows.clone());
    let part = |values: &Vec<f64>| take_rows(values, (states, problem.batch), rows.clone());
    Problem {
        config: problem.config.clone(),
        time: problem.time,
        batch: rows.len(),
        lengths: problem
            .lengths
            .as_ref()
            .map(|lengths| lengths[rows.clone()].to_vec()),
        params: problem.params.clone(),
        x: by_time(&problem.x),
        state: problem
            .state
            .as_ref()
            .map(|state| state.iter().map(part).collect()),
        masks: None,
        dy: problem.dy.as_ref().map(by_time),
        dstate: problem
            .dstate
            .iter()
            .map(|values| values.as_ref().map(part))
            .collect(),
    }
}

/// Some rows of an array (.., B, width) whose last axis follows from its length, of any leading size.
fn take_rows<E: Copy>(
    values: &[E],
    (leading, batch): (usize, usize),
    rows: Range<usize>,
) -> Vec<E> {
    let width = values.len() / (leading * batch);
    values
        .chunks_exact(batch * width)
        .flat_map(|step| step[rows.start * width..rows.end * width].to_vec())
        .collect()
}

fn splits_of_the_batch_do_not_change_bits<E: Element>(cell: CellKind) {
    // 24 rows are finished together.
    for (batch, hidden, merge, ragged) in [
        (13, 5, None, true),
        (13, 17, Some(Merge::Mul), false),
        (13, 33, Some(Merge::Concat), true),
        (49, 9, None, true),
    ] {
        let case = Case {
            batch,
            hidden,
            merge,
            ragged,
            ..case(cell)
        };
        let problem = case.problem::<E>();
        let states = problem.config.layers * problem.config.directions();
        for level in levels() {
            let whole = compute::<E>(&problem, Setup::plain(level));
            for rows in [0..5, 5..6, 6..13, 13..batch] {
                if rows.is_empty() {
                    continue;
                }
                let part = compute::<E>(&rows_of(&problem, rows.clone()), Setup::plain(level));
                for ((name, whole), (_, part)) in whole.iter().zip(&part) {
                    if name.starts_with("gradient of") {
                        continue; // a sum over the batch
                    }
                    let leading = if name.contains("state") {
                        states
                    } else {
                        problem.time
                    };
                    let own = take_rows(whole, (leading, problem.batch), rows.clone());
                    assert_same_bits(
                        part,
                        &own,
                        &format!("{name} of rows {rows:?}: {case:?}, {level:?}"),
                    );
                }
            }
        }
    }
}

/// Whole, in pieces with the state carried on, frozen and run, frozen and stepped: y and the state.
fn pieces_and_steps_do_not_change_bits<E: Element>(cell: CellKind) {
    for (batch, hidden) in [(1, 5), (1, 33), (3, 9), (13, 17)] {
        let case = Case {
            time: 12,
            batch,
            hidden,
            merge: None,
            ragged: false,
            ..case(cell)
        };
        let problem = case.problem::<E>();
        for level in levels() {
            let context = format!("{case:?}, {level:?}");
            let whole = forward::<E>(&problem, Setup::plain(level), Watch::unattended(), false)
                .expect("forward");
            let (y, state) = in_pieces::<E>(&problem, level);
            assert_same_bits(&y, &whole.y, &context);
            assert_states(&state, &whole.state, &context);
            steps_and_runs_have_the_bits_of(&whole, &problem, level, &context);
        }
    }
}

/// A frozen layer's steps and runs, beside a call of the whole.
fn steps_and_runs_have_the_bits_of<E: Element>(
    whole: &Output<E>,
    problem: &Problem,
    level: Level,
    context: &str,
) {
    for run in [frozen_steps, frozen_run::<E>] {
        let (y, state) = run(problem, level, Storage::Own);
        assert_same_bits(&y, &whole.y, context);
        assert_states(&state, &whole.state, context);
    }
}

/// Leaves NaN in the memory that calls keep for the next ones: pieces of all sizes that small layers
/// ask for, several of each.
fn spoil_kept_memory() {
    let mut pieces = Vec::new();
    let mut len = 8;
    while len < 1 << 17 {
        for _ in 0..6 {
            let mut piece = Buffer::<f64>::stale(len, "NaN").expect("memory");
            piece.fill(f64::NAN);
            pieces.push(piece);
        }
        len += (len / 5).next_multiple_of(8);
    }
}

fn what_calls_leave_behind_is_never_read<E: Element>(cell: CellKind) {
    for (hidden, merge, dropout) in [
        (9, Some(Merge::Concat), true),
        (33, Some(Merge::Mul), false),
        (4, None, true),
    ] {
        let case = Case {
            hidden,
            merge,
            dropout,
            ..case(cell)
        };
        let problem = case.problem::<E>();
        for (level, checkpoint) in levels()
            .into_iter()
            .flat_map(|level| [(level, None), (level, Some(2))])
        {
            let setup = Setup {
                checkpoint,
                ..Setup::plain(level)
            };
            let expected = compute::<E>(&problem, setup);
            spoil_kept_memory();
            assert_same(
                &compute::<E>(&problem, setup),
                &expected,
                &format!("{case:?}, {setup:?}"),
            );
        }
    }
}

type YAndState<E> = (Vec<E>, Vec<Vec<E>>);

fn assert_states<E: Element>(got: &[Vec<E>], expected: &[Vec<E>], context: &str) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_same_bits(got, expected, context);
    }
}

/// A range of steps of x.
fn steps_of<'a, E>(arrays: &'a Arrays<E>, problem: &Problem, steps: Range<usize>) -> Input<'a, E> {
    let (batch, input) = (problem.batch, problem.config.input);
    let values = &arrays.x[steps.start * batch * input..steps.end * batch * input];
    Input {
        values,
        shape: [steps.len(), batch, input],
        batch_first: false,
        lengths: None,
    }
}

fn in_pieces<E: Element>(problem: &Problem, level: Level) -> YAndState<E> {
    let stack = Stack::new(problem.config.clone()).expect("a good config");
    let arrays = Arrays::<E>::of(problem, false);
    let execution = Setup::plain(level).execution(Watch::unattended());
    let (mut y, mut state) = (Vec::new(), arrays.state.clone().expect("a state"));
    for steps in [0..1, 1..6, 6..8, 8..12] {
        let input = steps_of(&arrays, problem, steps);
        let options = ForwardOptions::default();
        let output = stack
            .forward(
                &execution,
                &slices(&arrays.params),
                input,
                Some(&slices(&state)),
                options,
            )
            .expect("forward");
        y.extend_from_slice(&output.y);
        state = output.state;
    }
    (y, state)
}

fn frozen<E: Element>(
    problem: &Problem,
    arrays: &Arrays<E>,
    execution: &Execution<'_>,
    storage: Storage,
) -> Frozen<E> {
    let stack = Stack::new(problem.config.clone()).expect("a good config");
    let mut frozen = Frozen::new(
        &stack,
        execution,
        &slices(&arrays.params),
        problem.batch,
        storage,
    )
    .expect("frozen");
    frozen
        .set_state(&slices(arrays.state.as_ref().expect("a state")))
        .expect("a state that fits");
    frozen
}

fn frozen_steps<E: Element>(problem: &Problem, level: Level, storage: Storage) -> YAndState<E> {
    let arrays = Arrays::<E>::of(problem, false);
    let execution = Setup::plain(level).execution(Watch::unattended());
    let mut frozen = frozen(problem, &arrays, &execution, storage);
    let mut y = Vec::new();
    for t in 0..problem.time {
        let mut y_t = vec![E::from_f64(f64::NAN); problem.batch * problem.config.hidden];
        frozen
            .step(
                steps_of(&arrays, problem, t..t + 1).values,
                &mut y_t,
                &Watch::unattended(),
            )
            .expect("a step");
        y.extend(y_t);
    }
    (y, frozen.state().expect("the state"))
}

fn frozen_run<E: Element>(problem: &Problem, level: Level, storage: Storage) -> YAndState<E> {
    let arrays = Arrays::<E>::of(problem, false);
    let execution = Setup {
        threads: 3,
        ..Setup::plain(level)
    }
    .execution(Watch::unattended());
    let cut = problem.time * 5 / 12;
    let mut frozen = frozen(problem, &arrays, &execution, storage);
    let mut y = frozen
        .run(&execution, steps_of(&arrays, problem, 0..cut))
        .expect("a run")
        .to_vec();
    y.extend_from_slice(
        &frozen
            .run(&execution, steps_of(&arrays, problem, cut..problem.time))
            .expect("a run"),
    );
    (y, frozen.state().expect("the state"))
}

/// Weights stored as bfloat16 are those weights, rounded: the same bits as a layer that has them as
/// float32, in any batch, by steps and by runs.
#[test]
fn weights_stored_as_bfloat16_are_rounded_and_no_more() {
    let _turn = pool();
    for cell in CELLS {
        for (batch, input, hidden) in [(1, 4, 33), (1, 9, 70), (5, 3, 17), (13, 8, 35), (2, 4, 330)]
        {
            let case = Case {
                time: 12,
                batch,
                input,
                hidden,
                layers: 2,
                ragged: false,
                merge: None,
                ..case(cell)
            };
            let problem = case.problem::<f32>();
            let mut rounded = case.problem::<f32>();
            for (values, (_, shape)) in rounded.params.iter_mut().zip(problem.config.params()) {
                for value in values.iter_mut().filter(|_| shape.len() == 2) {
                    let upper = f32::pair(0.0, *value as f32).to_bits();
                    *value = f64::from(f32::from_bits(upper));
                }
            }
            assert_ne!(problem.params[0], rounded.params[0]);
            for level in levels() {
                let what = format!("{case:?}, {level:?}");
                let (expected, state) = frozen_steps::<f32>(&rounded, level, Storage::Own);
                for (y, end) in [
                    frozen_steps::<f32>(&problem, level, Storage::Bfloat16),
                    frozen_run::<f32>(&problem, level, Storage::Bfloat16),
                ] {
                    assert_same_bits(&y, &expected, &what);
                    assert_same_bits(&end.concat(), &state.concat(), &what);
                }
            }
        }
    }
}

/// A NaN in one row is that row's own: from its step on, or against time up to its step.
fn a_nan_stays_in_its_row<E: Element>(cell: CellKind) {
    let (row, step) = (4, 2);
    for merge in [None, Some(Merge::Concat)] {
        let case = Case {
            hidden: 7,
            layers: 1,
            ragged: false,
            merge,
            ..case(cell)
        };
        let clean = case.problem::<E>();
        let mut spoilt = case.problem::<E>();
        spoilt.x[(step * case.batch + row) * case.input + 1] = f64::NAN;
        for level in levels() {
            let (clean, spoilt) = (
                compute::<E>(&clean, Setup::plain(level)),
                compute::<E>(&spoilt, Setup::plain(level)),
            );
            for rows in [0..row, row + 1..case.batch] {
                for ((name, clean), (_, spoilt)) in clean
                    .iter()
                    .zip(&spoilt)
                    .filter(|((name, _), _)| !name.starts_with("gradient of"))
                {
                    let leading = if name.contains("state") {
                        1 + usize::from(merge.is_some())
                    } else {
                        case.time
                    };
                    let own = |values: &[E]| take_rows(values, (leading, case.batch), rows.clone());
                    assert_same_bits(
                        &own(spoilt),
                        &own(clean),
                        &format!("{name}: {case:?}, {level:?}"),
                    );
                }
            }
            let width = if merge.is_some() { 14 } else { 7 };
            for t in 0..case.time {
                let y = |values: &[(String, Vec<E>)]| {
                    values[0].1[(t * case.batch + row) * width..][..width].to_vec()
                };
                let (clean, spoilt) = (y(&clean), y(&spoilt));
                let touched = |h: &[E]| h.iter().any(|h| h.to_f64().is_nan());
                assert_eq!(
                    touched(&spoilt[..7]),
                    t >= step,
                    "{case:?}, {level:?}, step {t}"
                );
                if t < step {
                    assert_same_bits(&spoilt[..7], &clean[..7], "before the NaN");
                }
                if merge.is_some() {
                    assert_eq!(
                        touched(&spoilt[7..]),
                        t <= step,
                        "{case:?}, {level:?}, step {t}, reverse"
                    );
                }
            }
        }
    }
}

macro_rules! suites {
    ($($suite:ident: $run:ident;)*) => {$(
        mod $suite {
            use super::*;

            suites!(@cells $run,
                rnn_tanh 0, rnn_relu 1, lstm 2, gru_after_keep 3, gru_after_write 4, gru_before_keep 5,
                gru_before_write 6, mgu_after_keep 7, mgu_after_write 8, mgu_before_keep 9, mgu_before_write 10,
            );
        }
    )*};
    (@cells $run:ident, $($cell:ident $index:literal,)*) => {$(
        mod $cell {
            use super::*;

            #[test]
            fn float32() {
                $run::<f32>(CELLS[$index]);
            }

            #[test]
            fn float64() {
                $run::<f64>(CELLS[$index]);
            }
        }
    )*};
}

suites! {
    all_sizes: agrees_at_all_sizes;
    nothing: agrees_where_there_is_nothing;
    many_steps: agrees_over_many_steps;
    threads: threads_do_not_change_bits;
    shared_units: shared_units_do_not_change_bits;
    splits: splits_of_the_batch_do_not_change_bits;
    pieces: pieces_and_steps_do_not_change_bits;
    nans: a_nan_stays_in_its_row;
    kept_memory: what_calls_leave_behind_is_never_read;
}

/// Weights beyond the caches: panels are cut along k, packed by several threads, and operands that lie
/// far apart are packed too; and every other step takes them from the last to the first.
fn agrees_beyond_the_caches<E: Element>() {
    let _turn = pool();
    let gru = |reset_after| CellKind::Gru {
        reset_after,
        update: Update::Keep,
    };
    // A wide vanilla layer with such weights is chaotic: what is rounded grows from step to step.
    for (cell, [time, batch, hidden], merge) in [
        (CellKind::Lstm, [12, 5, 301], None),
        // So much dpre of 120 rows that a block of it meets several panels, where one worker has it all.
        (CellKind::Lstm, [12, 10, 301], None),
        (CellKind::Lstm, [12, 1, 301], None),
        (CellKind::Lstm, [12, 5, 301], Some(Merge::Concat)),
        (gru(false), [12, 5, 313], Some(Merge::Sum)),
        (gru(false), [12, 1, 313], None),
        (gru(true), [12, 1, 313], None),
        (CellKind::Rnn { relu: false }, [4, 1, 449], None),
    ] {
        let case = Case {
            time,
            batch,
            input: 270,
            hidden,
            layers: 1,
            merge,
            ragged: false,
            ..case(cell)
        };
        let (problem, answer) = solved::<E>(&case);
        for level in levels() {
            let alone = compute::<E>(&problem, Setup::plain(level));
            assert_close(
                &alone,
                &answer.arrays,
                tolerance::<E>(),
                &format!("{case:?}, {level:?}"),
            );
            let setup = Setup {
                threads: 3,
                ..Setup::plain(level)
            };
            assert_same(
                &compute::<E>(&problem, setup),
                &alone,
                &format!("{case:?}, {setup:?}"),
            );
            if merge.is_none() {
                let plain = Setup::plain(level);
                let whole = forward::<E>(&problem, plain, Watch::unattended(), false);
                let context = format!("{case:?}, {level:?}");
                steps_and_runs_have_the_bits_of(
                    &whole.expect("forward"),
                    &problem,
                    level,
                    &context,
                );
            }
        }
    }
}

#[test]
fn beyond_the_caches_float32() {
    agrees_beyond_the_caches::<f32>();
}

#[test]
fn beyond_the_caches_float64() {
    agrees_beyond_the_caches::<f64>();
}

/// Without this, the tests of threads could compare one thread with itself.
#[cfg(target_os = "linux")]
#[test]
fn a_long_call_has_all_the_threads_that_it_may_have() {
    let _turn = pool();
    let threads = 5; // more than any other test asks for
    let named = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("the list of threads");
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim_end() == "rnncore-4").count()
    };
    let mut case = Case {
        batch: 13,
        hidden: 33,
        layers: 1,
        merge: None,
        ragged: false,
        ..case(CellKind::Lstm)
    };
    let small = case.problem::<f32>();
    let setup = Setup {
        threads,
        ..Setup::plain(Level::detect())
    };
    forward::<f32>(&small, setup, Watch::unattended(), false).expect("forward");
    assert_eq!(named(), 0, "a short call is not worth a thread");
    case.time = time_worth(threads, &case);
    forward::<f32>(&case.problem::<f32>(), setup, Watch::unattended(), false).expect("forward");
    assert_eq!(named(), 1);
}

// ---- Stopped -------------------------------------------------------------------------------------

/// Two shapes of about the same work: steps of much work each, and very many of little each.
fn long_cases() -> [Case; 3] {
    let case = Case {
        layers: 1,
        ragged: false,
        merge: None,
        ..case(CellKind::Lstm)
    };
    [
        Case {
            time: 40,
            batch: 13,
            input: 64,
            hidden: 128,
            ..case
        },
        Case {
            time: 12_000,
            batch: 2,
            input: 16,
            hidden: 16,
            ..case
        },
        // Two workers that meet at every step.
        Case {
            time: 400,
            batch: 1,
            input: 16,
            hidden: 300,
            ..case
        },
    ]
}

#[test]
fn a_poll_that_says_stop_ends_forward_and_backward() {
    let _turn = pool();
    for (case, threads) in long_cases()
        .iter()
        .flat_map(|case| [1, 2, 3].map(|threads| (case, threads)))
    {
        let problem = case.problem::<f32>();
        for checkpoint in [None, Some(7)] {
            let setup = Setup {
                threads,
                checkpoint,
                ..Setup::plain(Level::detect())
            };
            // Several threads share the work, and one of them asks.
            let looks = if threads == 1 { 3 } else { 1 };
            let context = format!("{case:?}, {setup:?}");
            let asked = Cell::new(0);
            let caller = std::thread::current().id();
            let stop_at = |n: usize| {
                let (asked, caller) = (&asked, &caller);
                asked.set(0);
                move || {
                    assert_eq!(
                        std::thread::current().id(),
                        *caller,
                        "only the calling thread asks"
                    );
                    asked.set(asked.get() + 1);
                    asked.get() >= n
                }
            };
            let poll = stop_at(usize::MAX);
            let output = forward::<f32>(&problem, setup, Watch::new(&poll), true).expect("forward");
            assert!(
                asked.get() >= looks,
                "asked {} times: {context}",
                asked.get()
            );
            let poll = stop_at(usize::MAX);
            let whole = backward(&problem, setup, Watch::new(&poll), &output).expect("backward");
            assert!(
                asked.get() >= 2 * looks,
                "asked {} times: {context}",
                asked.get()
            );
            for n in [1, looks] {
                let poll = stop_at(n);
                let stopped = forward::<f32>(&problem, setup, Watch::new(&poll), true).map(|_| ());
                assert_eq!(stopped, Err(Error::Interrupted), "{context}");
                let poll = stop_at(n);
                let stopped = backward(&problem, setup, Watch::new(&poll), &output).map(|_| ());
                assert_eq!(stopped, Err(Error::Interrupted), "{context}");
            }
            // The tape was only read: it is as good as before.
            let again = backward(&problem, setup, Watch::unattended(), &output).expect("backward");
            assert_same_bits(&again.x, &whole.x, &context);
        }
    }
}

#[test]
fn a_stopped_run_leaves_the_frozen_state() {
    for case in long_cases() {
        let problem = case.problem::<f32>();
        let arrays = Arrays::<f32>::of(&problem, false);
        let level = Level::detect();
        let mut frozen = frozen(
            &problem,
            &arrays,
            &Setup::plain(level).execution(Watch::unattended()),
            Storage::Own,
        );
        let before = frozen.state().expect("the state");
        let poll = || true;
        let execution = Setup::plain(level).execution(Watch::new(&poll));
        assert_eq!(
            frozen.run(&execution, arrays.input(&problem, false)),
            Err(Error::Interrupted)
        );
        assert_eq!(frozen.state().expect("the state"), before);
    }
}

// ---- Refused -------------------------------------------------------------------------------------

/// A good call of a small layer, for tests that spoil one thing about it.
struct Call {
    problem: Problem,
    arrays: Arrays<f32>,
    stack: Stack,
}

impl Call {
    fn new(cell: CellKind) -> Self {
        let case = Case {
            time: 3,
            batch: 2,
            input: 4,
            hidden: 5,
            layers: 1,
            ragged: false,
            ..case(cell)
        };
        let problem = case.problem::<f32>();
        let stack = Stack::new(problem.config.clone()).expect("a good config");
        Self {
            arrays: Arrays::of(&problem, false),
            problem,
            stack,
        }
    }

    /// The message of a forward with these arguments.
    fn refused(
        &self,
        params: &[&[f32]],
        input: Input<'_, f32>,
        state: Option<&[&[f32]]>,
        options: ForwardOptions,
    ) -> String {
        let execution = Setup::plain(Level::detect()).execution(Watch::unattended());
        let result = self
            .stack
            .forward(&execution, params, input, state, options);
        result
            .map(|_| ())
            .expect_err("this must be refused")
            .to_string()
    }

    fn refused_backward(&self, dy: Option<&[f32]>, dstate: &[Option<&[f32]>]) -> String {
        let setup = Setup::plain(Level::detect());
        let output =
            forward::<f32>(&self.problem, setup, Watch::unattended(), true).expect("forward");
        let (execution, tape) = (
            setup.execution(Watch::unattended()),
            output.tape.expect("a tape"),
        );
        let params = slices(&self.arrays.params);
        let result = self.stack.backward(
            &execution,
            &params,
            &tape,
            dy,
            dstate,
            BackwardOptions::default(),
        );
        result
            .map(|_| ())
            .expect_err("this must be refused")
            .to_string()
    }
}

#[test]
fn wrong_arguments_of_forward_are_errors_that_name_them() {
    let call = Call::new(CellKind::Lstm);
    let (params, good) = (
        slices(&call.arrays.params),
        call.arrays.input(&call.problem, false),
    );
    let options = ForwardOptions::default();
    let shaped = |shape| call.refused(&params, Input { shape, ..good }, None, options);
    assert_eq!(
        shaped([3, 2, 5]),
        "x: expected shape (T, B, I = 4), got (3, 2, 5)"
    );
    assert_eq!(
        shaped([3, 3, 4]),
        "x: expected shape (T, B, I = 4), got (3, 3, 4)"
    );
    let batch_first = Input {
        shape: [2, 3, 3],
        batch_first: true,
        ..good
    };
    assert_eq!(
        call.refused(&params, batch_first, None, options),
        "x: expected shape (B, T, I = 4), got (2, 3, 3)"
    );
    assert_eq!(
        shaped([usize::MAX, 2, 4]),
        "x (T * B * I): the size does not fit the address space"
    );

    let with_lengths = |lengths| {
        call.refused(
            &params,
            Input {
                lengths: Some(lengths),
                ..good
            },
            None,
            options,
        )
    };
    assert_eq!(
        with_lengths(&[1]),
        "lengths: expected shape (B,) = (2,), got (1,)"
    );
    assert_eq!(
        with_lengths(&[1, 4]),
        "lengths: expected values between 0 and T = 3, got 4 at row 1"
    );
    assert_eq!(
        with_lengths(&[-1, 3]),
        "lengths: expected values between 0 and T = 3, got -1 at row 0"
    );

    let fewer = &params[..params.len() - 1];
    assert_eq!(
        call.refused(fewer, good, None, options),
        "params: expected 8 arrays, got 7"
    );
    let mut short = params.clone();
    short[1] = &short[1][1..];
    assert_eq!(
        call.refused(&short, good, None, options),
        "weight_hh_l0: expected shape (20, 5), got (99,)"
    );

    let state = slices(call.arrays.state.as_ref().expect("a state"));
    assert_eq!(
        call.refused(&params, good, Some(&state[..1]), options),
        "state: expected 2 arrays, got 1"
    );
    let short = [state[0], &state[1][1..]];
    assert_eq!(
        call.refused(&params, good, Some(&short), options),
        "state: expected shape (L*D, B, H) = (2, 2, 5), got (19,)"
    );
    let never = ForwardOptions {
        checkpoint: Some(0),
        ..options
    };
    assert_eq!(
        call.refused(&params, good, None, never),
        "checkpoint: expected at least 1, got 0"
    );
}

#[test]
fn wrong_arguments_of_backward_are_errors_that_name_them() {
    let call = Call::new(CellKind::Lstm);
    let dy = call.arrays.dy.as_deref().expect("a gradient of y");
    assert_eq!(
        call.refused_backward(Some(&dy[1..]), &[]),
        "dy: expected shape (T, B, M) = (3, 2, 10), got (59,)"
    );
    let dh = vec![0f32; 20];
    assert_eq!(
        call.refused_backward(None, &[Some(&dh)]),
        "dstate: expected 2 arrays, got 1"
    );
    assert_eq!(
        call.refused_backward(None, &[None, Some(&dh[1..])]),
        "dstate: expected shape (L*D, B, H) = (2, 2, 5), got (19,)"
    );
    let other = Call::new(CellKind::Rnn { relu: false });
    let setup = Setup::plain(Level::detect());
    let output = forward::<f32>(&other.problem, setup, Watch::unattended(), true).expect("forward");
    let error = backward(&call.problem, setup, Watch::unattended(), &output)
        .map(|_| ())
        .expect_err("another's tape");
    assert!(matches!(error, Error::Tape { .. }), "{error}");
}

#[test]
fn layers_that_cannot_be_are_errors() {
    let good = case(CellKind::Lstm).config();
    let refused = |config: Config| {
        Stack::new(config)
            .map(|_| ())
            .expect_err("this must be refused")
            .to_string()
    };
    assert_eq!(
        refused(Config {
            input: 0,
            ..good.clone()
        }),
        "input_size: expected at least 1, got 0"
    );
    assert_eq!(
        refused(Config {
            hidden: 0,
            ..good.clone()
        }),
        "hidden_size: expected at least 1, got 0"
    );
    assert_eq!(
        refused(Config {
            layers: 0,
            ..good.clone()
        }),
        "num_layers: expected at least 1, got 0"
    );
    for p in [-0.1, 1.0, f64::NAN] {
        let message = refused(Config {
            dropout: p,
            ..good.clone()
        });
        assert_eq!(
            message,
            format!("dropout: expected a probability in [0, 1), got {p}")
        );
        let message = refused(Config {
            recurrent_dropout: p,
            ..good.clone()
        });
        assert_eq!(
            message,
            format!("recurrent_dropout: expected a probability in [0, 1), got {p}")
        );
    }
    let message = refused(Config {
        dropout: 0.5,
        layers: 1,
        ..good.clone()
    });
    assert_eq!(
        message,
        "dropout: expected 0 for a single layer (it acts between layers), got 0.5"
    );
    for hidden in [usize::MAX, usize::MAX / 2, 1 << 40] {
        let message = refused(Config {
            hidden,
            ..good.clone()
        });
        assert!(
            message.ends_with("the size does not fit the address space"),
            "{message}"
        );
    }
}

#[test]
fn wrong_arguments_of_a_frozen_layer_are_errors_and_change_nothing() {
    let case = Case {
        time: 3,
        batch: 2,
        input: 4,
        hidden: 5,
        layers: 2,
        ragged: false,
        merge: None,
        ..case(CellKind::Lstm)
    };
    let problem = case.problem::<f64>();
    let arrays = Arrays::<f64>::of(&problem, false);
    let execution = Setup::plain(Level::detect()).execution(Watch::unattended());
    let mut frozen = frozen(&problem, &arrays, &execution, Storage::Own);
    let before = frozen.state().expect("the state");
    assert_eq!(
        (frozen.batch(), frozen.state_len(), frozen.config()),
        (2, 20, &problem.config)
    );

    let message =
        |result: rnncore::error::Result<()>| result.expect_err("this must be refused").to_string();
    let (x, mut y) = (vec![0.0; 8], vec![0.0; 10]);
    assert_eq!(
        message(frozen.step(&x[1..], &mut y, &Watch::unattended())),
        "x: expected shape (B, I) = (2, 4), got (7,)"
    );
    assert_eq!(
        message(frozen.step(&x, &mut y[1..], &Watch::unattended())),
        "out: expected shape (B, H) = (2, 5), got (9,)"
    );
    let input = Input {
        values: &arrays.x,
        shape: [3, 1, 8],
        batch_first: false,
        lengths: None,
    };
    assert_eq!(
        message(frozen.run(&execution, input).map(|_| ())),
        "x: expected shape (T, B, I) = (T, 2, 4), got (3, 1, 8)"
    );
    assert_eq!(
        message(frozen.set_state(&[&before[0]])),
        "state: expected 2 arrays, got 1"
    );
    let short = [&before[0][..], &before[1][1..]];
    assert_eq!(
        message(frozen.set_state(&short)),
        "state: expected shape (L, B, H) = (2, 2, 5), got (19,)"
    );
    assert_eq!(
        message(frozen.reset(Some(&[0, 2]))),
        "rows: expected integers from 0 to B - 1 = 1, got 2"
    );
    assert_eq!(frozen.state().expect("the state"), before);

    frozen.reset(Some(&[1])).expect("a row that exists");
    for (before, after) in before.iter().zip(frozen.state().expect("the state")) {
        for (k, (before, after)) in before.chunks(5).zip(after.chunks(5)).enumerate() {
            assert_eq!(after, if k % 2 == 0 { before } else { &[0.0; 5] });
        }
    }
    frozen.reset(None).expect("all rows");
    assert!(
        frozen
            .state()
            .expect("the state")
            .concat()
            .iter()
            .all(|&h| h == 0.0)
    );

    let stack = |config| Stack::new(config).expect("a good config");
    let both = Config {
        bidirectional: true,
        ..problem.config.clone()
    };
    let params: Vec<Vec<f64>> = both
        .params()
        .iter()
        .map(|(_, shape)| vec![0.0; shape.iter().product()])
        .collect();
    let made = Frozen::new(&stack(both), &execution, &slices(&params), 2, Storage::Own).map(|_| ());
    assert_eq!(
        message(made),
        "freeze: expected a layer with one direction, got bidirectional=True"
    );
    let made = Frozen::new(
        &stack(problem.config.clone()),
        &execution,
        &slices(&arrays.params),
        0,
        Storage::Own,
    )
    .map(|_| ());
    assert_eq!(message(made), "batch_size: expected at least 1, got 0");
    let made = Frozen::new(
        &stack(problem.config.clone()),
        &execution,
        &slices(&arrays.params),
        2,
        Storage::Bfloat16,
    )
    .map(|_| ());
    assert_eq!(
        message(made),
        "weights: expected None for a layer of float64, got bfloat16"
    );
}

#[test]
fn frozen_input_that_does_not_fit_its_shape_or_is_ragged_is_an_error() {
    let case = Case {
        time: 3,
        batch: 2,
        input: 4,
        hidden: 5,
        layers: 1,
        ragged: false,
        merge: None,
        ..case(CellKind::Lstm)
    };
    let problem = case.problem::<f64>();
    let arrays = Arrays::<f64>::of(&problem, false);
    let execution = Setup::plain(Level::detect()).execution(Watch::unattended());
    let mut frozen = frozen(&problem, &arrays, &execution, Storage::Own);
    for (shape, batch_first) in [([4, 2, 4], false), ([2, 4, 4], true), ([2, 2, 4], false)] {
        let input = Input {
            values: &arrays.x,
            shape,
            batch_first,
            lengths: None,
        };
        assert!(
            matches!(frozen.run(&execution, input), Err(Error::Shape { .. })),
            "{shape:?}"
        );
    }
    let input = Input {
        values: &arrays.x,
        shape: [3, 2, 4],
        batch_first: false,
        lengths: Some(&[3, 1]),
    };
    let error = frozen.run(&execution, input).expect_err("lengths");
    assert!(error.to_string().starts_with("lengths: expected none"));
}
