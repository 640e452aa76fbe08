//! The unsafe code, at the level that every machine has, on sizes so small that Miri can follow every
//! access: windows on shared tables and strips of them, the micro-kernels, aligned memory, the pool of
//! threads, their meetings; and every form of every cell, forward and backward.
//!
//! Numbers are held to exact bits where the portable level promises an order of operations.

#[path = "support/naive.rs"]
mod naive;
#[path = "support/problem.rs"]
mod problem;
#[path = "support/products.rs"]
mod products;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use naive::solve;
use problem::{CELLS, Case, Setup, assert_close, assert_same, compute, tolerance};
use products::{From, Join, Operands, Tile, Walk, every_gate_product, every_row, every_tile};
use rnncore::error::{Error, Result};
use rnncore::gemm::kernel::{MAX_VECTORS, tiles};
use rnncore::gemm::pack::Panels;
use rnncore::gemm::relay::{Relay, RelayEnd};
use rnncore::gemm::row::{GateProduct, RowProduct, add_row, multiply_row};
use rnncore::gemm::strips::Strips;
use rnncore::gemm::view::{Field, Layout, Table};
use rnncore::layer::{CellKind, Merge};
use rnncore::memory::{Buffer, copied, filled, zeros};
use rnncore::parallel::{Barrier, Team, Watch};
use rnncore::shape::Schedule;
use rnncore::simd::{Broadcast, Element, Level, Portable, Simd, Vector};

/// `first`, `first + 1`, ...
fn counting<E: Element>(count: usize, first: usize) -> Vec<E> {
    (first..first + count)
        .map(|k| E::from_f64(k as f64))
        .collect()
}

/// Whether `call` panics.
fn panics<T>(call: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}

// ---- Windows on shared tables --------------------------------------------------------------------

/// Rows of 4, 2, 2 and 1 steps, after the order of lengths, and one of none.
fn schedule() -> Schedule {
    Schedule::ragged(5, 5, &[2, 0, 4, 1, 2]).expect("a good schedule")
}

/// Doubles every value of a field's own rows and columns, in blocks that do and do not fill vectors.
fn double<E: Element>(
    mut field: Field<'_, E>,
    layout: Layout<'_>,
    steps: Range<usize>,
    rows: Range<usize>,
    columns: usize,
) where
    Portable: Simd<E>,
{
    let lanes = <Portable as Simd<E>>::LANES;
    for t in steps {
        let rows = rows.start..rows.end.min(layout.schedule.active(t));
        if rows.start >= rows.end {
            continue;
        }
        for (column, width) in [
            (0, columns.min(2)),
            (columns.min(2), columns - columns.min(2)),
        ] {
            let mut block = field.block(t, rows.clone(), column, width);
            for (r, slot) in
                (0..rows.len()).flat_map(|r| (0..layout.slots).map(move |slot| (r, slot)))
            {
                for at in (0..width).step_by(lanes) {
                    let value = block.load(Portable, r, slot, at);
                    block.store(Portable, r, slot, at, value + value);
                }
            }
        }
    }
}

/// Four owners, by rows and by columns, each on a thread of its own: no lock, no value missed, none
/// touched twice.
fn owners_fill_a_table_together<E: Element>(first_step: usize)
where
    Portable: Simd<E>,
{
    let (schedule, slots) = (schedule(), 2);
    for (width, row_cut, column_cut) in [(7, 1, 3), (5, 2, 4), (1, 3, 0), (6, 0, 2), (4, 9, 4)] {
        let layout = Layout {
            schedule: &schedule,
            first_step,
            slots,
            width,
        };
        let rows_held = schedule.packed_rows() - schedule.offsets()[first_step];
        let mut values = counting::<E>(rows_held * slots * width, 0);
        let (below, above) = Field::new(&mut values, layout).split_rows(row_cut);
        let parts = [(below, 0..row_cut), (above, row_cut..usize::MAX)];
        std::thread::scope(|scope| {
            for (field, rows) in parts {
                let (left, right) = field.split_columns(column_cut);
                for (field, columns) in [(left, column_cut), (right, width - column_cut)] {
                    let rows = rows.clone();
                    scope.spawn(move || {
                        double(
                            field,
                            layout,
                            first_step..layout.schedule.steps(),
                            rows,
                            columns,
                        )
                    });
                }
            }
        });
        let expected: Vec<E> = (0..values.len())
            .map(|k| E::from_f64(2.0 * k as f64))
            .collect();
        assert_eq!(
            values, expected,
            "width {width}, rows cut at {row_cut}, columns at {column_cut}"
        );
    }
}

#[test]
fn owners_on_several_threads_fill_a_table() {
    for first_step in [0, 1, 3] {
        owners_fill_a_table_together::<f32>(first_step);
        owners_fill_a_table_together::<f64>(first_step);
    }
}

#[test]
fn an_owner_reads_its_rows_while_another_writes_others() {
    let schedule = schedule();
    let layout = Layout {
        schedule: &schedule,
        first_step: 0,
        slots: 2,
        width: 3,
    };
    let mut values = counting::<f32>(schedule.packed_rows() * 6, 0);
    let (mine, theirs) = Field::new(&mut values, layout).split_rows(1);
    std::thread::scope(|scope| {
        scope.spawn(move || double(theirs, layout, 0..layout.schedule.steps(), 1..usize::MAX, 3));
        for t in 0..layout.schedule.steps() {
            let first = layout.schedule.offsets()[t] * 6;
            assert_eq!(mine.rows(t, 0..1), counting::<f32>(6, first));
            assert!(mine.rows(t, 0..0).is_empty());
        }
    });
}

/// Partial vectors are zero beyond the block, and reading never reaches beyond the table.
fn tables_are_read_by_many<E: Element>()
where
    Portable: Simd<E>,
{
    let (schedule, width, origin) = (schedule(), 7, 2);
    let layout = Layout {
        schedule: &schedule,
        first_step: 1,
        slots: 2,
        width,
    };
    let values = counting::<E>(
        (schedule.packed_rows() - schedule.offsets()[1]) * 2 * width,
        1,
    );
    let table = Table::new(&values, layout).from_column(origin);
    let check = || {
        let lanes = <Portable as Simd<E>>::LANES;
        for (t, rows) in [(1, 0..3), (1, 2..3), (2, 0..1), (3, 0..1)] {
            let block = table.block(t, rows.clone(), 1, 4);
            for (r, slot, at) in [(0, 0, 0), (0, 1, 1), (rows.len() - 1, 1, 3), (0, 0, 4)] {
                let mut got = vec![E::ZERO; lanes];
                block.load(Portable, r, slot, at).store(&mut got);
                let row = schedule.offsets()[t] - schedule.offsets()[1] + rows.start + r;
                let first = (row * 2 + slot) * width + origin + 1 + at;
                for (lane, got) in got.into_iter().enumerate() {
                    let expected = if at + lane < 4 {
                        values[first + lane]
                    } else {
                        E::ZERO
                    };
                    assert_eq!(
                        got, expected,
                        "step {t}, row {r}, slot {slot}, column {at}, lane {lane}"
                    );
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(check);
        scope.spawn(check);
    });
}

#[test]
fn tables_are_read_by_several_threads() {
    tables_are_read_by_many::<f32>();
    tables_are_read_by_many::<f64>();
}

/// What a field does not own, it does not give: these must panic in every build, with overflow checks
/// or without.
#[test]
fn windows_beyond_what_is_owned_panic() {
    const FAR: usize = usize::MAX;
    let schedule = schedule();
    let layout = Layout {
        schedule: &schedule,
        first_step: 1,
        slots: 1,
        width: 6,
    };
    let held = schedule.packed_rows() - schedule.offsets()[1];
    let mut values = vec![0f32; held * 6];
    let whole = counting::<f32>(held * 6, 0);
    let blocks: [(usize, Range<usize>, usize, usize); 14] = [
        (1, 0..4, 0, 1), // more rows than the step has
        (1, 3..4, 0, 1), // the next step's row
        (2, 1..2, 0, 1), // as above
        (4, 0..1, 0, 1), // no such step
        (0, 0..1, 0, 1), // a step before the table
        (0, 0..4, 0, 1), // as above, ending where the table begins
        (0, 3..4, 0, 1), // as above
        (1, Range { start: 2, end: 1 }, 0, 1),
        (2, FAR - 1..FAR, 0, 1), // rows that wrap around to the step before
        (1, 0..1, 6, 1),
        (1, 0..1, 0, 7),
        (1, 0..1, FAR, 1),
        (1, 0..1, FAR - 1, 2),
        (1, 0..1, 1, FAR),
    ];
    for (t, rows, column, width) in blocks {
        let mut field = Field::new(&mut values, layout);
        let refused = panics(|| {
            field.block(t, rows.clone(), column, width);
        });
        assert!(
            refused,
            "field: step {t}, rows {rows:?}, column {column}, width {width}"
        );
        let table = Table::new(&whole, layout);
        let beyond = panics(|| table.block(t, rows.clone(), column, width));
        assert!(
            beyond,
            "table: step {t}, rows {rows:?}, column {column}, width {width}"
        );
    }
    assert!(panics(|| Table::new(&whole, layout)
        .from_column(FAR)
        .block(1, 0..1, 1, 1)));
    for rows in [0..4, 3..4, Range { start: 2, end: 1 }, FAR - 1..FAR] {
        assert!(
            panics(|| Field::new(&mut values, layout).rows(1, rows.clone()).len()),
            "{rows:?}"
        );
    }
    assert!(panics(|| Field::new(&mut values, layout)
        .rows(0, 0..4)
        .len()));
    let (left, right) = Field::new(&mut values, layout).split_columns(2);
    assert!(panics(|| left.rows(1, 0..1).len()) && panics(|| right.rows(1, 0..1).len()));
    let (mut below, mut above) = Field::new(&mut values, layout).split_rows(1);
    assert!(
        panics(|| {
            below.block(1, 1..2, 0, 1);
        }) && panics(|| {
            above.block(1, 0..1, 0, 1);
        })
    );
    assert!(panics(|| Field::new(&mut values[1..], layout)));
    // The same steps and rows copied, from a table of the same width or of others.
    let mut other = vec![0f32; held * 6];
    let mut copies = |(to, from): (Range<usize>, Range<usize>), (t, from_t), rows| {
        let cut = |values, columns: Range<usize>| {
            let (_, right) = Field::<f32>::new(values, layout).split_columns(columns.start);
            right.split_columns(columns.len()).0
        };
        let (mut field, source) = (cut(&mut values, to), cut(&mut other, from));
        !panics(|| field.copy_rows(t, rows, &source, from_t))
    };
    assert!(copies((1..4, 2..5), (1, 2), 0..1));
    assert!(!copies((1..4, 2..5), (1, 2), 1..2) && !copies((1..4, 2..5), (2, 1), 1..2));
    assert!(!copies((1..4, 2..5), (0, 1), 0..1) && !copies((1..4, 2..5), (1, 4), 0..1));
    assert!(!copies((1..4, 2..6), (1, 2), 0..1) && !copies((1..5, 2..5), (1, 2), 0..1));
    let two_slots = Layout {
        slots: 2,
        width: 3,
        ..layout
    };
    let source = Field::new(&mut other, two_slots);
    assert!(panics(|| {
        let (mut field, _) = Field::new(&mut values, layout).split_columns(3);
        field.copy_rows(1, 0..1, &source, 1);
    }));
}

/// Rows of a step of one table go to another step of another, between the columns of others.
#[test]
fn rows_are_copied_from_table_to_table() {
    let schedule = schedule();
    let layout = |width| Layout {
        schedule: &schedule,
        first_step: 0,
        slots: 1,
        width,
    };
    let rows = schedule.packed_rows();
    let (mut to, mut from) = (vec![0f32; rows * 5], counting::<f32>(rows * 4, 1));
    let expected = from.clone();
    let (mut left, _) = Field::new(&mut to, layout(5)).split_columns(3);
    let (_, source) = Field::new(&mut from, layout(4)).split_columns(1);
    left.copy_rows(0, 1..3, &source, 1);
    for row in 0..rows {
        for column in 0..5 {
            let copied = (1..3).contains(&row) && column < 3;
            let found = to[row * 5 + column];
            let step = schedule.offsets()[1];
            let want = if copied {
                expected[(step + row) * 4 + 1 + column]
            } else {
                0.0
            };
            assert_eq!(found, want, "row {row}, column {column}");
        }
    }
}

#[test]
fn places_beyond_a_block_panic() {
    let schedule = Schedule::dense(1, 3).expect("a good schedule");
    let layout = Layout {
        schedule: &schedule,
        first_step: 0,
        slots: 2,
        width: 5,
    };
    let mut values = vec![0f64; 30];
    for (row, slot, column) in [
        (1, 0, 0),
        (0, 2, 0),
        (0, 0, 5),
        (usize::MAX, 0, 0),
        (0, usize::MAX, 0),
        (0, 0, usize::MAX),
    ] {
        let mut field = Field::new(&mut values, layout);
        let mut block = field.block(0, 1..2, 1, 4);
        let zero = Broadcast::<f64>::splat(Portable, 0.0);
        assert!(
            panics(|| block.load(Portable, row, slot, column)),
            "{row} {slot} {column}"
        );
        assert!(
            panics(|| block.store(Portable, row, slot, column, zero)),
            "{row} {slot} {column}"
        );
        let block = Table::new(&values, layout).block(0, 1..2, 1, 4);
        assert!(
            panics(|| block.load(Portable, row, slot, column)),
            "{row} {slot} {column}"
        );
    }
}

// ---- Strips of several tables --------------------------------------------------------------------

/// The tables of a run: a whole sequence, a chunk with two slots of which the second is left alone, a
/// state; and a chunk of wider rows that is only read.
struct Tables<'a, E> {
    whole: Field<'a, E>,
    chunk: Field<'a, E>,
    state: Field<'a, E>,
    inputs: Table<'a, E>,
}

impl<'a, E: Element> Tables<'a, E> {
    /// The rows and columns before `at`, and those from it on.
    fn split_rows(self, at: usize) -> [Self; 2] {
        let inputs = self.inputs;
        let (whole, chunk) = (self.whole.split_rows(at), self.chunk.split_rows(at));
        let state = self.state.split_rows(at);
        [(whole.0, chunk.0, state.0), (whole.1, chunk.1, state.1)].map(|(whole, chunk, state)| {
            Self {
                whole,
                chunk,
                state,
                inputs,
            }
        })
    }

    fn split_columns(self, at: usize) -> [Self; 2] {
        let inputs = [self.inputs, self.inputs.from_column(at)];
        let (whole, chunk) = (self.whole.split_columns(at), self.chunk.split_columns(at));
        let state = self.state.split_columns(at);
        let [left, right] = inputs;
        [
            (whole.0, chunk.0, state.0, left),
            (whole.1, chunk.1, state.1, right),
        ]
        .map(|(whole, chunk, state, inputs)| Self {
            whole,
            chunk,
            state,
            inputs,
        })
    }

    /// Adds the input to the sequence and to the first slot of the chunk, and what the chunk had there to
    /// the state, over the steps from `first` on, for these rows and so many columns.
    fn walk(mut self, schedule: &Schedule, first: usize, own: Range<usize>, width: usize)
    where
        Portable: Simd<E>,
    {
        let (s, lanes) = (Portable, <Portable as Simd<E>>::LANES);
        let written = [
            Some((&mut self.whole, 1)),
            None,
            Some((&mut self.chunk, 1)),
            Some((&mut self.state, 1)),
        ];
        let read = [None, Some((self.inputs, 2))];
        let mut strips = Strips::new(schedule, own.clone(), width, written, read);
        assert_eq!(strips.width(), width);
        for t in first..schedule.steps() {
            let rows = own.end.min(schedule.active(t)).saturating_sub(own.start);
            if rows == 0 {
                continue;
            }
            strips.seek(t, rows);
            let line = strips.line(0);
            assert_eq!([0, 1, 2, 3].map(|k| line.has(k)), [true, false, true, true]);
            assert_eq!([0, 1].map(|k| line.has_read(k)), [false, true]);
            assert_eq!(strips.rows(), rows);
            for row in 0..rows {
                let mut line = strips.line(row);
                for column in (0..width).step_by(lanes) {
                    let input = line.read(s, 1, 1, column);
                    let (whole, chunk) = (line.load(s, 0, 0, column), line.load(s, 2, 0, column));
                    let state = line.load(s, 3, 0, column);
                    line.store(s, 0, 0, column, whole + input);
                    line.store(s, 2, 0, column, chunk + input);
                    line.store(s, 3, 0, column, state + chunk);
                }
            }
        }
    }
}

/// Four workers, by rows and by columns, each on a thread of its own, through ragged steps from the
/// middle of a sequence on.
fn workers_walk_their_strips<E: Element>()
where
    Portable: Simd<E>,
{
    let schedule = schedule();
    let steps_alone = Schedule::dense(1, schedule.batch()).expect("a good schedule");
    // The last two: one worker with all rows, one with all columns.
    for (first, width, row_cut, column_cut) in [
        (1, 7, 1, 3),
        (2, 5, 2, 4),
        (0, 9, 3, 5),
        (1, 6, 0, 2),
        (3, 4, 1, 4),
    ] {
        let packed = schedule.packed_rows();
        let held = packed - schedule.offsets()[first];
        let layout = |schedule, first_step, slots, width| Layout {
            schedule,
            first_step,
            slots,
            width,
        };
        let mut whole = counting::<E>(packed * width, 0);
        let mut chunk = counting::<E>(held * 2 * width, 1000);
        let mut state = counting::<E>(schedule.batch() * width, 3000);
        // Two columns that no strip begins at, in front and behind.
        let inputs = counting::<E>(held * 2 * (width + 4), 5000);

        let expected = {
            let (mut whole, mut chunk, mut state) = (whole.clone(), chunk.clone(), state.clone());
            for row in schedule.offsets()[first]..packed {
                let t = (0..schedule.steps()).rfind(|&t| schedule.offsets()[t] <= row);
                let place = row - schedule.offsets()[t.expect("a step")];
                let local = row - schedule.offsets()[first];
                for column in 0..width {
                    let input = inputs[(local * 2 + 1) * (width + 4) + 2 + column];
                    state[place * width + column] += chunk[local * 2 * width + column];
                    whole[row * width + column] += input;
                    chunk[local * 2 * width + column] += input;
                }
            }
            [whole, chunk, state]
        };

        let tables = Tables {
            whole: Field::new(&mut whole, layout(&schedule, 0, 1, width)),
            chunk: Field::new(&mut chunk, layout(&schedule, first, 2, width)),
            state: Field::new(&mut state, layout(&steps_alone, 0, 1, width)),
            inputs: Table::new(&inputs, layout(&schedule, first, 2, width + 4)).from_column(2),
        };
        let rows = [0..row_cut, row_cut..schedule.batch()];
        std::thread::scope(|scope| {
            for (part, own) in tables.split_rows(row_cut).into_iter().zip(rows) {
                let widths = [column_cut, width - column_cut];
                for (part, width) in part.split_columns(column_cut).into_iter().zip(widths) {
                    let (schedule, own) = (&schedule, own.clone());
                    scope.spawn(move || part.walk(schedule, first, own, width));
                }
            }
        });
        assert_eq!(
            [whole, chunk, state],
            expected,
            "from step {first}, width {width}, rows cut at {row_cut}, columns at {column_cut}"
        );
    }
}

#[test]
fn workers_on_several_threads_walk_their_strips() {
    workers_walk_their_strips::<f32>();
    workers_walk_their_strips::<f64>();
}

#[test]
fn strips_of_whole_rows_are_read_as_one() {
    let schedule = schedule();
    let layout = Layout {
        schedule: &schedule,
        first_step: 1,
        slots: 2,
        width: 3,
    };
    let held = schedule.packed_rows() - schedule.offsets()[1];
    let mut values = counting::<f64>(held * 6, 0);
    let (_, mut rest) = Field::new(&mut values, layout).split_rows(1);
    let mut strips = Strips::new(&schedule, 1..5, 3, [Some((&mut rest, 1)), None], []);
    assert!(strips.whole_rows(0).is_empty());
    strips.seek(1, 2);
    assert_eq!(strips.whole_rows(0), counting::<f64>(12, 6));
    assert!(panics(|| strips.whole_rows(1).len()));
    let (mut left, mut right) = Field::new(&mut values, layout).split_columns(2);
    let written = [Some((&mut left, 2)), Some((&mut right, 2))];
    let mut strips = Strips::new(&schedule, 0..1, 1, written, []);
    strips.seek(1, 1);
    assert!(panics(|| strips.whole_rows(0).len()) && panics(|| strips.whole_rows(1).len()));
}

/// What a table does not have, or its owner not own, no strip is laid over.
#[test]
fn strips_beyond_their_tables_panic() {
    const FAR: usize = usize::MAX;
    let (schedule, ragged) = (
        schedule(),
        Schedule::ragged(2, 3, &[2, 1, 1]).expect("good"),
    );
    let (states, few) = (
        Schedule::dense(1, 5).expect("a good schedule"),
        Schedule::dense(1, 2).expect("a good schedule"),
    );
    let layout = |schedule, first_step| Layout {
        schedule,
        first_step,
        slots: 2,
        width: 6,
    };
    // Rows, columns, slots; the schedule that the table is of, its first step, its rows.
    let good = (1..3, 4, 2);
    let cases = [
        (good.clone(), (&schedule, 1, 5), true),
        (good.clone(), (&states, 0, 5), true),
        (good.clone(), (&states, 0, 3), true),
        ((0..3, 4, 2), (&schedule, 1, 5), false), // a row of another owner
        ((1..4, 4, 2), (&schedule, 1, 5), false), // as above
        ((1..FAR, 4, 2), (&schedule, 1, 5), false),
        ((1..3, 5, 2), (&schedule, 1, 5), false), // a column of another owner
        ((1..3, FAR, 2), (&schedule, 1, 5), false),
        ((1..3, 4, 3), (&schedule, 1, 5), false), // no such slot
        ((1..3, 4, FAR), (&schedule, 1, 5), false),
        ((1..3, 4, 2), (&states, 0, 2), false), // a state with fewer rows
        ((1..3, 4, 2), (&few, 0, 5), false),    // as above, by its schedule
        ((1..3, 4, 2), (&ragged, 1, 5), false), // a state in the middle of a sequence
        ((1..3, 4, 2), (&schedule, 9, 5), false), // no such step
    ];
    for ((own, width, slots), (of, first_step, held), fits) in cases {
        let mut values = vec![0f32; held * 12];
        let case = format!("rows {own:?}, {width} x {slots}, {held} rows from {first_step}");
        let (_, field) = Field::new(&mut values, layout(of, first_step)).split_rows(1);
        let (field, _) = field.split_rows(3);
        let (_, mut field) = field.split_columns(2);
        let laid = !panics(|| {
            let written = [Some((&mut field, slots))];
            Strips::new(&schedule, own.clone(), width, written, []).width()
        });
        assert_eq!(laid, fits, "written: {case}");
        // Who only reads owns no rows: those that a step has not are refused when it is sought.
        if !matches!(own, Range { start: 0, .. } | Range { end: 4.., .. }) {
            let laid = !panics(|| {
                let table = Table::new(&values, layout(of, first_step)).from_column(2);
                let read = [Some((table, slots))];
                Strips::<_, 0, 1>::new(&schedule, own.clone(), width, [], read).width()
            });
            assert_eq!(laid, fits, "read: {case}");
        }
    }
}

#[test]
fn steps_beyond_the_tables_of_strips_panic() {
    const FAR: usize = usize::MAX;
    let schedule = schedule();
    let layout = Layout {
        schedule: &schedule,
        first_step: 1,
        slots: 1,
        width: 6,
    };
    // Steps 1 and 2 are there, and their rows 3 and 1 in number; step 3 is not.
    let held = schedule.offsets()[3] - schedule.offsets()[1];
    let (mut values, inputs) = (vec![0f32; held * 6], vec![0f32; held * 6]);
    for (start, t, rows, there) in [
        (0, 1, 3, true),
        (1, 1, 2, true),
        (0, 2, 1, true),
        (0, 1, 0, false),
        (0, 1, 4, false), // more rows than the worker has
        (1, 1, 3, false), // as above
        (0, 2, 2, false), // more than the step has
        (1, 2, 1, false), // none from there on
        (2, 2, 1, false), // as above
        (0, 0, 1, false), // a step before the table
        (0, 3, 1, false), // a step after it
        (0, 4, 1, false), // no such step
        (0, FAR, 1, false),
        (0, 1, FAR, false),
    ] {
        let own = start..3;
        let sought = !panics(|| {
            let mut field = Field::new(&mut values, layout);
            let written = [Some((&mut field, 1))];
            let mut strips = Strips::<_, 1, 0>::new(&schedule, own.clone(), 6, written, []);
            strips.seek(t, rows);
        });
        assert_eq!(sought, there, "written: rows from {start}, {rows} at {t}");
        let sought = !panics(|| {
            let read = [Some((Table::new(&inputs, layout), 1))];
            let mut strips = Strips::<_, 0, 1>::new(&schedule, own.clone(), 6, [], read);
            strips.seek(t, rows);
        });
        assert_eq!(sought, there, "read: rows from {start}, {rows} at {t}");
    }
}

/// A refused step leaves nothing behind: neither rows of the step before, seen from the new place in
/// the tables that have it, nor the other way round.
#[test]
fn strips_of_a_refused_step_are_at_no_step() {
    let (s, schedule) = (Portable, schedule());
    let layout = Layout {
        schedule: &schedule,
        first_step: 0,
        slots: 1,
        width: 2,
    };
    let packed = schedule.packed_rows();
    let (mut values, inputs) = (vec![0f64; packed * 2], vec![0f64; (packed - 1) * 2]);
    let mut field = Field::new(&mut values, layout);
    let read = [Some((Table::new(&inputs, layout), 1))];
    let mut strips = Strips::new(&schedule, 0..4, 2, [Some((&mut field, 1))], read);
    strips.seek(0, 4);
    // The field has the last step, which is one row; the table has not.
    assert!(panics(|| strips.seek(schedule.steps() - 1, 1)));
    assert!(panics(|| strips.line(3).load(s, 0, 0, 0)));
    assert!(panics(|| strips.line(0).load(s, 0, 0, 0)));
}

#[test]
fn places_beyond_a_line_panic() {
    const FAR: usize = usize::MAX;
    let (s, schedule) = (Portable, Schedule::dense(2, 3).expect("a good schedule"));
    let layout = Layout {
        schedule: &schedule,
        first_step: 0,
        slots: 3,
        width: 6,
    };
    let (mut values, inputs) = (vec![0f64; 6 * 18], vec![0f64; 6 * 18]);
    let mut field = Field::new(&mut values, layout);
    let written = [Some((&mut field, 2)), None];
    let read = [None, Some((Table::new(&inputs, layout), 2))];
    let mut strips = Strips::new(&schedule, 0..2, 5, written, read);
    assert!(panics(|| strips.line(0).load(s, 0, 0, 0)), "no step yet");
    strips.seek(1, 2);
    for row in [2, FAR] {
        assert!(panics(|| strips.line(row).load(s, 0, 0, 0)), "row {row}");
    }
    let zero = Broadcast::<f64>::splat(s, 0.0);
    // Of a written table; the read one is the other.
    for (k, slot, column, there) in [
        (0, 1, 4, true),
        (1, 0, 0, false), // absent
        (2, 0, 0, false),
        (FAR, 0, 0, false),
        (0, 2, 0, false),
        (0, FAR, 0, false),
        (0, 0, 5, false),
        (0, 0, FAR, false),
    ] {
        let place = format!("table {k}, slot {slot}, column {column}");
        let refused = panics(|| strips.line(1).load(s, k, slot, column));
        assert_eq!(refused, !there, "load: {place}");
        let refused = panics(|| strips.line(1).store(s, k, slot, column, zero));
        assert_eq!(refused, !there, "store: {place}");
        let other = 1usize.wrapping_sub(k);
        let refused = panics(|| strips.line(1).read(s, other, slot, column));
        assert_eq!(refused, !there, "read: {place}");
    }
}

/// Whole vectors of one row after the other: of all written tables of strips, and of a block.
#[test]
fn walks_down_stay_within_their_rows_slots_and_tables() {
    const FAR: usize = usize::MAX;
    let (s, schedule) = (Portable, Schedule::dense(2, 4).expect("a good schedule"));
    let lanes = <Portable as Simd<f64>>::LANES;
    let width = 2 * lanes + 1;
    let layout = Layout {
        schedule: &schedule,
        first_step: 0,
        slots: 2,
        width,
    };
    let row_len = 2 * width;
    let mut values = counting::<f64>(8 * row_len, 0);
    let mut field = Field::new(&mut values, layout);
    let mut strips = Strips::new(
        &schedule,
        0..4,
        width,
        [Some((&mut field, 2)), None],
        [] as [Option<(Table<f64>, usize)>; 0],
    );
    for rows in [0..0, 0..1] {
        let refused = panics(|| strips.down(s, rows.clone(), 0).rows());
        assert_eq!(refused, !rows.is_empty(), "no step yet");
    }
    strips.seek(1, 3);
    for (rows, column) in [
        (0..4, 0),
        (2..FAR, 0),
        (FAR - 1..FAR, 0),
        (Range { start: 2, end: 1 }, 0),
        (0..1, width),
        (0..1, width - lanes + 1),
        (0..1, FAR),
    ] {
        let refused = panics(|| strips.down(s, rows.clone(), column).rows());
        assert!(refused, "rows {rows:?}, column {column}");
    }
    // Each vector takes what the one a row before it in the other slot was.
    let mut down = strips.down(s, 1..3, lanes);
    assert!(down.has(0) && !down.has(1));
    assert_eq!(down.rows(), 2);
    let first = down.load(s, 0, 1, 0);
    down.store(s, 0, 0, 1, first);
    let zero = Broadcast::<f64>::splat(s, 0.0);
    for (k, slot, r) in [
        (0, 0, 2),
        (0, 0, FAR),
        (0, 2, 0),
        (0, FAR, 0),
        (1, 0, 0),
        (2, 0, 0),
    ] {
        let place = format!("table {k}, slot {slot}, row {r}");
        assert!(panics(|| down.load(s, k, slot, r)), "load: {place}");
        assert!(panics(|| down.store(s, k, slot, r, zero)), "store: {place}");
    }
    down.step(1);
    assert!(panics(|| down.load(s, 0, 0, 1)));
    let second = down.load(s, 0, 0, 0);
    down.store(s, 0, 1, 0, second);
    assert!(panics(|| down.step(2)));
    down.step(1);
    assert!(panics(|| down.load(s, 0, 0, 0)));
    let mut expected = counting::<f64>(8 * row_len, 0);
    let from = 5 * row_len + width + lanes;
    for slot in 0..2 {
        let to = 6 * row_len + slot * width + lanes;
        expected.copy_within(from..from + lanes, to);
    }
    assert_eq!(values, expected);

    let mut field = Field::new(&mut values, layout);
    let mut block = field.block(0, 1..3, 1, lanes + 1);
    for (rows, column) in [
        (0..3, 0),
        (0..1, 2),
        (0..1, FAR),
        (Range { start: 2, end: 1 }, 0),
    ] {
        let refused = panics(|| block.down(s, rows.clone(), column).rows());
        assert!(refused, "rows {rows:?}, column {column}");
    }
    let mut down = block.down(s, 1..2, 1);
    down.store(s, 0, 1, 0, zero);
    assert!(panics(|| down.load(s, 0, 2, 0)) && panics(|| down.load(s, 0, 0, 1)));
    let at = 2 * row_len + width + 2;
    expected[at..at + lanes].fill(0.0);
    assert_eq!(values, expected);
}

// ---- Micro-kernels -------------------------------------------------------------------------------

#[test]
fn tiles_are_all_rows_in_order_and_as_even_as_can_be() {
    for rows in 0..=50 {
        for most in 1..=12 {
            let cut: Vec<_> = tiles(rows, most).collect();
            let ends: Vec<_> = cut.iter().map(|tile| tile.end).collect();
            let starts: Vec<_> = cut.iter().map(|tile| tile.start).collect();
            let expected: Vec<_> = std::iter::once(0).chain(ends.iter().copied()).collect();
            assert_eq!(starts[..], expected[..cut.len()]);
            assert_eq!(expected[cut.len()], rows);
            assert_eq!(cut.len(), rows.div_ceil(most));
            let lengths = cut.iter().map(Range::len);
            let (short, long) = (lengths.clone().min(), lengths.max());
            assert!(long <= Some(most) && long.unwrap_or(0) - short.unwrap_or(0) <= 1);
        }
    }
}

#[test]
fn every_register_tile_multiplies() {
    every_tile(Portable, |a: f32, b, c| a * b + c);
    every_tile(Portable, |a: f64, b, c| a * b + c);
}

#[test]
fn every_row_kernel_adds() {
    every_row(Portable, |a: f32, b, c| a * b + c);
    every_row(Portable, |a: f64, b, c| a * b + c);
}

#[test]
fn every_row_of_gates_multiplies() {
    every_gate_product(Portable, |a: f32, b, c| a * b + c);
    every_gate_product(Portable, |a: f64, b, c| a * b + c);
}

/// A tile of two rows with every kind of operand; some of them walked backwards.
fn tile(vectors: usize) -> Tile {
    let width = vectors * <Portable as Simd<f32>>::LANES;
    let walk = |join, depth_stride, panel_stride| Walk {
        join,
        depth: 3,
        row_stride: 1,
        depth_stride,
        panel_stride,
    };
    Tile {
        rows: 2,
        vectors,
        begin: From::Rows(width + 1),
        terms: vec![
            walk(Join::Add, -2, -(width as isize)),
            walk(Join::Shift, 5, width as isize + 1),
            walk(Join::Chain, 2, width as isize),
        ],
        sums_stride: 2 * width,
    }
}

/// Whether the product of `tile` panics on these operands.
fn refuses(tile: &Tile, mut operands: Operands<f32>) -> bool {
    panics(|| tile.multiply(Portable, &mut operands))
}

/// One value too few of any operand must panic and not reach beyond.
#[test]
fn products_beyond_their_operands_panic() {
    let lanes = <Portable as Simd<f32>>::LANES;
    for vectors in 1..MAX_VECTORS {
        let good = tile(vectors);
        let operands = good.operands::<f32>(lanes);
        assert!(!refuses(&good, operands.clone()));
        let mut cut = operands.clone();
        cut.begin.pop();
        assert!(refuses(&good, cut), "begin");
        let mut cut = operands.clone();
        cut.sums.pop();
        assert!(refuses(&good, cut), "sums");
        for term in 0..good.terms.len() {
            let mut cut = operands.clone();
            cut.terms[term].a.pop();
            assert!(refuses(&good, cut), "a of term {term}");
            let mut cut = operands.clone();
            cut.terms[term].panel.pop();
            assert!(refuses(&good, cut), "panel of term {term}");
        }
        let mut cut = operands.clone();
        cut.terms[1].enters.pop();
        assert!(refuses(&good, cut), "the vector that enters");
        // The same beginning twice needs one row of it; sums that are read need no other.
        for begin in [From::Zero, From::Sums, From::Rows(0)] {
            let tile = Tile {
                begin,
                ..good.clone()
            };
            let mut operands = tile.operands::<f32>(lanes);
            assert!(!refuses(&tile, operands.clone()), "{begin:?}");
            if let From::Rows(_) = begin {
                operands.begin.pop();
                assert!(refuses(&tile, operands), "{begin:?}");
            }
        }
    }
}

/// Sizes that no kernel has, and strides that would wrap around to an index that is there.
#[test]
fn products_of_impossible_sizes_panic() {
    const FAR: usize = usize::MAX;
    let lanes = <Portable as Simd<f32>>::LANES;
    let good = tile(1);
    // Room for whatever a kernel might mistakenly take.
    let mut operands = good.operands::<f32>(lanes);
    operands.begin.resize(1000, 0.0);
    operands.sums.resize(1000, 0.0);
    for term in &mut operands.terms {
        term.a.resize(1000, 0.0);
        term.panel.resize(1000, 0.0);
        term.enters.resize(lanes, 0.0);
    }
    assert!(!refuses(&good, operands.clone()));
    for rows in [0, FAR] {
        let tile = Tile {
            rows,
            ..good.clone()
        };
        assert!(refuses(&tile, operands.clone()), "{rows} rows");
    }
    // A tile of four vectors has no room to shift.
    for vectors in [0, MAX_VECTORS, MAX_VECTORS + 1, FAR, FAR / lanes + 1] {
        let tile = Tile {
            vectors,
            ..good.clone()
        };
        assert!(refuses(&tile, operands.clone()), "{vectors} vectors");
    }
    let whole = Tile {
        vectors: MAX_VECTORS,
        terms: vec![good.terms[0]],
        ..good.clone()
    };
    assert!(!refuses(&whole, operands.clone()));
    for sums_stride in [FAR, FAR - 1, FAR / 2 + 1, 1000] {
        let tile = Tile {
            sums_stride,
            ..good.clone()
        };
        assert!(refuses(&tile, operands.clone()), "sums {sums_stride} apart");
    }
    for stride in [FAR, FAR - lanes + 1, 1000] {
        let tile = Tile {
            begin: From::Rows(stride),
            ..good.clone()
        };
        assert!(refuses(&tile, operands.clone()), "begins {stride} apart");
    }
    for term in 0..good.terms.len() {
        let walk = good.terms[term];
        let packed = Walk {
            depth_stride: 1,
            panel_stride: lanes as isize,
            ..walk
        };
        for walk in [
            Walk { depth: FAR, ..walk },
            Walk {
                depth: 1000,
                ..walk
            },
            Walk {
                row_stride: FAR,
                ..packed
            },
            Walk {
                row_stride: 1000,
                ..packed
            },
            // Neither rows nor k side by side; or k, but not beside a packed panel.
            Walk {
                row_stride: 2,
                ..walk
            },
            Walk {
                row_stride: 2,
                panel_stride: lanes as isize + 1,
                ..packed
            },
            Walk {
                depth_stride: isize::MIN,
                ..walk
            },
            Walk {
                depth_stride: isize::MAX,
                ..walk
            },
            Walk {
                depth_stride: 500,
                ..walk
            },
            Walk {
                panel_stride: isize::MIN,
                ..walk
            },
            Walk {
                panel_stride: isize::MIN + 2,
                ..walk
            },
            Walk {
                panel_stride: isize::MAX,
                ..walk
            },
            Walk {
                panel_stride: -500,
                ..walk
            },
        ] {
            let mut tile = good.clone();
            tile.terms[term] = walk;
            assert!(refuses(&tile, operands.clone()), "term {term}: {walk:?}");
        }
    }
}

#[test]
fn row_products_beyond_their_operands_panic() {
    type S = Portable;
    let lanes = <S as Simd<f64>>::LANES;
    let (a, panels) = (counting::<f64>(7, 0), counting::<f64>(15 * lanes, 0));
    let refused = |a: &[f64], panels: &[f64], vectors, (depth, strides): (usize, [usize; 3])| {
        let mut sums = [[Broadcast::<f64>::splat(Portable, 0.0); MAX_VECTORS]; 2];
        let [a_stride, panel_stride, panels_stride] = strides;
        let product = RowProduct {
            depth,
            a,
            a_stride,
            panels,
            panel_stride,
            panels_stride,
        };
        panics(|| add_row(Portable, &mut sums, vectors, product))
    };
    // Two rows of three, four apart; panels of three rows of two vectors, one vector between rows.
    let good = (3, [4, 3 * lanes, 7 * lanes]);
    assert!(!refused(&a, &panels, 1..3, good));
    assert!(refused(&a[1..], &panels, 1..3, good));
    assert!(refused(&a, &panels[1..], 1..3, good));
    assert!(refused(&a, &panels, 1..4, good));
    assert!(refused(&a, &panels, 3..5, good));
    assert!(refused(&a, &panels, 4..5, good));
    const FAR: usize = usize::MAX;
    for sizes in [
        (4, good.1),
        (FAR, good.1),
        (3, [FAR, 3 * lanes, 7 * lanes]),
        (3, [FAR - 1, 3 * lanes, 7 * lanes]),
        (3, [4, FAR, 7 * lanes]),
        (3, [4, FAR / 2 + 1, 7 * lanes]),
        (3, [4, 3 * lanes, FAR]),
        (3, [4, 3 * lanes, FAR - lanes]),
    ] {
        assert!(refused(&a, &panels, 1..3, sizes), "{sizes:?}");
    }
    // Nothing is read of nothing.
    assert!(!refused(&[], &[], 0..4, (0, [FAR; 3])));
}

#[test]
fn gate_products_beyond_their_operands_panic() {
    let lanes = <Portable as Simd<f32>>::LANES;
    let (watch, columns) = (Watch::unattended(), 3 * lanes);
    let (team, matrix) = (Team::assemble(1, &watch), vec![0f32; 2 * 3 * columns]);
    let panels =
        Panels::by_column(&team, &matrix, &[0, 1], (3, columns), lanes, 2).expect("memory");
    let refused = |gates, row: usize, range: Range<usize>, room: usize| {
        let either = [false, true].map(|descending| {
            let (a, mut sums) = (vec![0f32; row], vec![0f32; room]);
            let product = GateProduct {
                gates,
                a: &a,
                panels: &panels,
                range: range.clone(),
                descending,
                sums: &mut sums,
            };
            panics(|| multiply_row(Portable, product))
        });
        assert_eq!(either[0], either[1]);
        either[0]
    };
    assert!(!refused(2, 6, 0..2, columns));
    assert!(!refused(3, 6, 0..2, columns) && !refused(1, 6, 1..2, lanes));
    assert!(refused(2, 5, 0..2, columns) && refused(1, 5, 0..2, columns));
    assert!(refused(2, 6, 0..2, columns - 1) && refused(2, 6, 1..2, lanes - 1));
    assert!(refused(2, 6, 0..3, 2 * columns) && refused(2, 6, 2..3, columns));
    for gates in [0, 4, 5] {
        assert!(refused(gates, 6, 0..2, columns), "{gates}");
    }
}

// ---- Memory --------------------------------------------------------------------------------------

/// Zeros are zeros even where the memory has been used before, and two owners never share any.
fn buffers_are_their_own<E: Element>() {
    for len in [0, 1, 7, 8, 9, 15, 16, 17, 100] {
        for _ in 0..3 {
            let mut one = Buffer::<E>::zeroed(len, "values").expect("memory");
            let mut other = Buffer::<E>::stale(len, "values").expect("memory");
            assert_eq!((one.len(), other.len()), (len, len));
            assert!(len == 0 || one.as_ptr().addr().is_multiple_of(64));
            assert!(one.iter().all(|&value| value == E::ZERO));
            other.fill(E::ONE);
            one.copy_from_slice(&counting::<E>(len, 2));
            assert_eq!(*one, counting::<E>(len, 2));
            assert_eq!(*other, vec![E::ONE; len]);
            assert_eq!(*Buffer::copied(&one, "values").expect("memory"), *one);
        }
    }
    assert_eq!(zeros::<E>(0, "values").expect("memory"), []);
    assert_eq!(zeros::<E>(9, "values").expect("memory"), [E::ZERO; 9]);
}

#[test]
fn memory_is_aligned_and_its_owner_s_alone() {
    buffers_are_their_own::<f32>();
    buffers_are_their_own::<f64>();
    // Kept by one thread, taken by another.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(buffers_are_their_own::<f32>);
        }
    });
}

#[test]
fn memory_that_cannot_be_is_an_error() {
    let far = usize::MAX;
    assert!(matches!(
        Buffer::<f64>::stale(far, "values"),
        Err(Error::Overflow { .. })
    ));
    assert!(matches!(
        Buffer::<f64>::zeroed(far / 8, "values"),
        Err(Error::Memory { .. })
    ));
    assert!(matches!(
        zeros::<f32>(far, "values"),
        Err(Error::Memory { .. })
    ));
    assert!(matches!(
        filled(far, 0f64, "values"),
        Err(Error::Memory { .. })
    ));
    assert_eq!(copied(&[1f32, 2.0], "values").expect("memory"), [1.0, 2.0]);
}

// ---- Threads -------------------------------------------------------------------------------------

/// The pool serves one team at a time, so these tests take turns.
fn pool() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_team_fills_what_it_borrows() {
    let _turn = pool();
    let watch = Watch::unattended();
    for threads in [1, 2, 3] {
        let team = Team::assemble(threads, &watch);
        assert_eq!(team.size(), threads);
        // Borrowed, not owned, and twice over: workers must be done with it when `run` returns.
        let mut values = [0usize; 11];
        for round in 0..3 {
            let shares = values.chunks_mut(3).enumerate().collect();
            let done = team.run(shares, |(share, part): (usize, &mut [usize])| {
                part.iter_mut()
                    .enumerate()
                    .for_each(|(k, value)| *value += share * 3 + k + round);
                Ok(())
            });
            assert_eq!(done, Ok(()));
        }
        assert!(
            values
                .iter()
                .enumerate()
                .all(|(k, &value)| value == 3 * k + 3)
        );
        assert_eq!(team.run(Vec::<()>::new(), |()| Ok(())), Ok(()));
    }
}

#[test]
fn a_team_shares_out_the_windows_on_a_table() {
    let _turn = pool();
    let (schedule, watch) = (schedule(), Watch::unattended());
    let layout = Layout {
        schedule: &schedule,
        first_step: 0,
        slots: 1,
        width: 5,
    };
    let mut values = counting::<f64>(schedule.packed_rows() * 5, 0);
    let team = Team::assemble(2, &watch);
    let (below, above) = Field::new(&mut values, layout).split_rows(1);
    let done = team.run(vec![(below, 0..1), (above, 1..5)], |(field, rows)| {
        double(field, layout, 0..layout.schedule.steps(), rows, 5);
        Ok(())
    });
    assert_eq!(done, Ok(()));
    assert!(
        values
            .iter()
            .enumerate()
            .all(|(k, &value)| value == 2.0 * k as f64)
    );
}

#[test]
fn errors_and_panics_of_workers_reach_the_caller() {
    let _turn = pool();
    for (threads, bad) in [1, 2, 3]
        .into_iter()
        .flat_map(|threads| (0..4).map(move |bad| (threads, bad)))
    {
        let watch = Watch::unattended();
        let team = Team::assemble(threads, &watch);
        let panicking = |share: usize| -> Result<()> {
            assert_ne!(share, bad, "on purpose");
            Ok(())
        };
        assert!(panics(|| team.run((0..4).collect(), panicking)));
        // The pool is as good as before.
        let ran = AtomicUsize::new(0);
        let counting = |_: usize| {
            ran.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        assert_eq!(team.run((0..4).collect(), counting), Ok(()));
        assert_eq!(ran.into_inner(), 4);
        let failing = |share: usize| match share == bad {
            true => Err(Error::overflow("a share")),
            false => Ok(()),
        };
        assert_eq!(
            team.run((0..4).collect(), failing),
            Err(Error::overflow("a share"))
        );
    }
}

/// A stop is heard also when the caller merely waits for a worker whose work ends before its next look.
#[test]
fn a_poll_that_is_asked_while_waiting_stops_a_team() {
    let _turn = pool();
    let caller = std::thread::current().id();
    let (begun, asked) = (AtomicBool::new(false), AtomicBool::new(false));
    let poll = || {
        asked.store(true, Ordering::Release);
        true
    };
    let watch = Watch::new(&poll);
    let team = Team::assemble(2, &watch);
    let stopped = team.run(vec![0, 1], |_| {
        let mine = std::thread::current().id() == caller;
        if !mine {
            begun.store(true, Ordering::Release);
        }
        // The caller waits for the worker's share to begin, and that waits for the caller to ask.
        let heard = if mine { &begun } else { &asked };
        while !heard.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        Ok(())
    });
    assert_eq!(stopped, Err(Error::Interrupted));
}

#[test]
fn a_poll_stops_a_team() {
    let _turn = pool();
    let poll = || true;
    for threads in [1, 2, 3] {
        let watch = Watch::new(&poll);
        let team = Team::assemble(threads, &watch);
        let stopped = team.run((0..threads).collect(), |_| {
            let meter = watch.meter();
            loop {
                meter.spend(1 << 20)?;
            }
        });
        assert_eq!(stopped, Err(Error::Interrupted));
    }
}

#[test]
fn a_pool_that_is_taken_leaves_the_caller_alone() {
    let _turn = pool();
    let watch = Watch::unattended();
    let first = Team::assemble(2, &watch);
    assert_eq!(first.size(), 2);
    let inner = first.run(vec![0, 1], |share| {
        let watch = Watch::unattended();
        let team = Team::assemble(2, &watch);
        assert_eq!(team.size(), 1);
        team.run(vec![share, share + 1], |_| Ok(()))
    });
    assert_eq!(inner, Ok(()));
    drop(first);
    assert_eq!(Team::assemble(2, &watch).size(), 2);
}

// ---- Meetings ------------------------------------------------------------------------------------

/// Turns of a test: enough for every order of arrival where threads are fast.
const TURNS: usize = if cfg!(miri) { 20 } else { 1_000 };

/// What was done before a meeting is seen after it, by relaxed loads as well: the barrier orders them.
#[test]
fn a_barrier_meets_again_and_again() {
    for parties in 1..=3 {
        let barrier = Barrier::new(parties);
        assert_eq!(barrier.parties(), parties);
        let turns: Vec<_> = (0..parties).map(|_| AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            for mine in &turns {
                let (barrier, turns) = (&barrier, &turns);
                scope.spawn(move || {
                    for turn in 1..=TURNS {
                        mine.store(turn, Ordering::Relaxed);
                        assert_eq!(barrier.meet(), Ok(()));
                        for other in turns {
                            // Who is fast may be in the next turn, and cannot be further.
                            let seen = other.load(Ordering::Relaxed);
                            assert!(seen == turn || seen == turn + 1, "{seen} in turn {turn}");
                        }
                    }
                });
            }
        });
    }
}

/// Whoever leaves after the last meeting spoils it for nobody, however late the others look.
#[test]
fn a_party_may_leave_after_the_last_meeting() {
    for _ in 0..TURNS / 10 {
        let barrier = Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    assert_eq!((barrier.meet(), barrier.meet()), (Ok(()), Ok(())));
                    barrier.leave();
                });
            }
        });
    }
}

#[test]
fn nobody_waits_for_a_party_that_left() {
    let barrier = Barrier::new(3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                assert_eq!(barrier.meet(), Ok(()));
                assert_eq!(barrier.meet(), Err(Error::Interrupted));
            });
        }
        assert_eq!(barrier.meet(), Ok(()));
        barrier.leave();
    });
    // Asking again does not make up for who is missing.
    for _ in 0..4 {
        assert_eq!(barrier.meet(), Err(Error::Interrupted));
    }
    // There is nobody to wait for.
    let alone = Barrier::new(1);
    alone.leave();
    assert_eq!(alone.meet(), Ok(()));
}

/// A step's rows: each value is the one to its right, wherever that was made, and one more.
fn step<E: Element>(end: &mut RelayEnd<'_, E>, columns: Range<usize>, rows: usize)
where
    Portable: Simd<E>,
{
    let (slots, width) = (2, 7);
    let (current, mut next) = end.sides(rows);
    assert_eq!(
        (current.len(), next.width()),
        (rows * slots * width, columns.len())
    );
    let lanes = <Portable as Simd<E>>::LANES;
    for (row, slot) in (0..rows).flat_map(|row| [(row, 0), (row, 1)]) {
        let from = &current[(row * slots + slot) * width..][..width];
        for column in (0..columns.len()).step_by(lanes) {
            let right = |lane| from[(columns.start + column + lane + 1) % width] + E::ONE;
            let values: Vec<E> = (0..lanes).map(right).collect();
            next.store(Portable, row, slot, column, Portable.load(&values));
        }
    }
}

/// The workers own these columns; the rows of a step become fewer.
fn workers_hand_over<E: Element>(cuts: &[Range<usize>])
where
    Portable: Simd<E>,
{
    let (rows, slots, width, turns) = (3, 2, 7, TURNS / 5);
    let mut relay = Relay::<E>::new(rows, slots, width, "rows").expect("memory");
    let first = counting::<E>(rows * slots * width, 0);
    for copy in relay.copies() {
        copy.copy_from_slice(&first);
    }
    let active = |turn: usize| if turn < turns / 2 { rows } else { rows - 1 };
    let ends = relay.ends(cuts);
    std::thread::scope(|scope| {
        for (mut end, columns) in ends.into_iter().zip(cuts) {
            let first = &first;
            scope.spawn(move || {
                for turn in 0..turns {
                    step(&mut end, columns.clone(), active(turn));
                    assert_eq!(end.turn(), Ok(()));
                }
                let (got, _) = end.sides(active(turns));
                for (at, &got) in got.iter().enumerate() {
                    let column = (at % width + turns) % width;
                    let expected = first[at / width * width + column].to_f64() + turns as f64;
                    assert_eq!(got.to_f64(), expected, "value {at}");
                }
            });
        }
    });
}

#[test]
fn workers_hand_rows_to_one_another() {
    workers_hand_over::<f32>(&[0..3, 3..7]);
    workers_hand_over::<f64>(&[0..4, 4..7]);
    workers_hand_over::<f32>(&[0..2, 2..2, 2..7]);
    workers_hand_over::<f64>(std::slice::from_ref(&(0..7)));
}

#[test]
fn the_only_end_of_a_relay_has_all_columns() {
    let mut relay = Relay::<f64>::new(3, 2, 7, "rows").expect("memory");
    for copy in relay.copies() {
        copy.copy_from_slice(&counting::<f64>(42, 0));
    }
    let mut end = relay.end();
    for _ in 0..7 {
        step(&mut end, 0..7, 3);
        assert_eq!(end.turn(), Ok(()));
    }
    // Each value is back where it was.
    assert_eq!(end.sides(3).0, counting::<f64>(42, 7));
    drop(end);
    // The copies have changed places an odd number of times.
    assert_eq!(*relay.copies()[1], counting::<f64>(42, 7));
}

#[test]
fn a_relay_may_have_no_rows() {
    let mut relay = Relay::<f32>::new(0, 1, 7, "rows").expect("memory");
    for mut end in relay.ends(&[0..3, 3..7]) {
        assert!(end.sides(0).0.is_empty());
        assert!(panics(|| end.sides(1).0.len()));
    }
}

/// An error or a panic of one worker is an error of the others, however long they would have waited.
#[test]
fn an_end_that_is_dropped_early_stops_the_others() {
    for panic in [false, true] {
        let mut relay = Relay::<f32>::new(1, 2, 7, "rows").expect("memory");
        let ends = relay.ends(&[0..2, 2..4, 4..7]);
        std::thread::scope(|scope| {
            for (worker, mut end) in ends.into_iter().enumerate() {
                scope.spawn(move || {
                    assert_eq!(end.turn(), Ok(()));
                    if worker == 1 {
                        let gone = panics(move || {
                            let end = end;
                            assert!(!panic, "on purpose");
                            drop(end);
                        });
                        assert_eq!(gone, panic);
                    } else {
                        assert_eq!(end.turn(), Err(Error::Interrupted));
                    }
                });
            }
        });
    }
}

#[test]
fn ends_that_would_share_columns_panic() {
    let cases: [(&[Range<usize>], bool); 9] = [
        (&[0..3, 3..7], true),
        (&[1..3, 5..7], true),
        (&[0..0, 7..7], true),
        (&[0..4, 3..7], false),
        (&[3..7, 0..3], false),
        (&[0..3, 3..8], false),
        (&[0..3, Range { start: 5, end: 4 }], false),
        (std::slice::from_ref(&(0..7)), true),
        (&[0..2, 2..4, 4..7], true),
    ];
    for (cuts, good) in cases {
        let mut relay = Relay::<f64>::new(2, 1, 7, "rows").expect("memory");
        let refused = panics(|| relay.ends(cuts).len());
        assert_eq!(refused, !good, "{cuts:?}");
    }
    let mut relay = Relay::<f64>::new(2, 1, 7, "rows").expect("memory");
    for rows in [3, usize::MAX] {
        assert!(panics(|| relay.end().sides(rows).0.len()), "{rows} rows");
    }
    let far = usize::MAX;
    assert!(Relay::<f64>::new(far, 2, 2, "rows").is_err());
    assert!(Relay::<f64>::new(2, far / 2 + 1, 2, "rows").is_err());
}

// ---- Layers --------------------------------------------------------------------------------------

/// Forward, backward, gates and gradients of states of two rows over two steps, the first row one step
/// shorter: tiles of two rows, kernels of one, and partial vectors in all of them.
fn agrees<E: Element>(cell: CellKind, merge: Option<Merge>, dropout: bool) {
    let case = Case {
        cell,
        time: 2,
        batch: 2,
        input: 2,
        hidden: 5,
        layers: 1,
        merge,
        bias: true,
        dropout,
        ragged: false,
        given: [true; 3],
        seed: 3,
    };
    let mut problem = case.problem::<E>();
    problem.lengths = Some(vec![1, 2]);
    problem.spoil_padding();
    let answer = solve(&problem);
    assert!(answer.margin > 1e-5, "relu needs another seed");
    let level = Level::named("portable").expect("portable is everywhere");
    let plain = compute::<E>(&problem, Setup::plain(level));
    assert_close(
        &plain,
        &answer.arrays,
        tolerance::<E>(),
        &format!("{case:?}"),
    );
    if cell == CellKind::Lstm {
        let setup = Setup {
            threads: 2,
            checkpoint: Some(1),
            batch_first: true,
            level,
        };
        let again = compute::<E>(&problem, setup);
        assert_same(&again, &plain, &format!("{case:?}, {setup:?}"));
    }
}

#[test]
fn rnn_agrees_with_the_reference() {
    agrees::<f32>(CELLS[0], None, true);
    agrees::<f32>(CELLS[1], Some(Merge::Mul), false);
}

#[test]
fn lstm_agrees_with_the_reference() {
    let _turn = pool();
    agrees::<f32>(CELLS[2], Some(Merge::Concat), true);
    agrees::<f64>(CELLS[2], None, false);
}

#[test]
fn gru_agrees_with_the_reference() {
    agrees::<f32>(CELLS[3], None, true);
    agrees::<f32>(CELLS[6], None, true);
    agrees::<f64>(CELLS[5], None, false);
}

#[test]
fn mgu_agrees_with_the_reference() {
    agrees::<f32>(CELLS[7], None, false);
    agrees::<f32>(CELLS[10], Some(Merge::Mean), true);
}
