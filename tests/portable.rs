//! The unsafe code, at the level that every machine has, on sizes so small that Miri can follow every
//! access: windows on shared tables, the micro-kernels, the pool of threads, aligned memory; and every
//! form of every cell, forward and backward.
//!
//! Numbers are held to exact bits where the portable level promises an order of operations.

#[path = "support/naive.rs"]
mod naive;
#[path = "support/problem.rs"]
mod problem;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use naive::solve;
use problem::{CELLS, Case, Setup, assert_close, assert_same, compute, tolerance};
use rnncore::error::{Error, Result};
use rnncore::gemm::kernel::{Product, RowProduct, Rows, max_rows, multiply, multiply_row};
use rnncore::gemm::view::{Field, Layout, Table};
use rnncore::layer::{CellKind, Merge};
use rnncore::memory::{Buffer, copied, filled, zeros};
use rnncore::parallel::{Team, Watch};
use rnncore::shape::Schedule;
use rnncore::simd::{Element, Level, Portable, Simd, Vector};

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
        let zero = Simd::<f64>::splat(Portable, 0.0);
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

// ---- Micro-kernels -------------------------------------------------------------------------------

/// One operand's size and strides.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    vectors: usize,
    depth: usize,
    row_stride: usize,
    depth_stride: isize,
    panel_stride: isize,
    sums_stride: usize,
}

/// The last index plus one of a walk of `n` steps.
fn extent(stride: isize, n: usize) -> usize {
    stride.unsigned_abs() * n.saturating_sub(1)
}

/// The index of step k of a walk: a negative stride begins at the far end.
fn index(stride: isize, n: usize, k: usize) -> usize {
    if stride < 0 {
        stride.unsigned_abs() * (n - 1 - k)
    } else {
        stride.unsigned_abs() * k
    }
}

struct Operands<E> {
    a: Vec<E>,
    panel: Vec<E>,
    sums: Vec<E>,
}

impl Shape {
    /// Exactly as many values as the product needs.
    fn operands<E: Element>(&self) -> Operands<E>
    where
        Portable: Simd<E>,
    {
        let width = self.vectors * <Portable as Simd<E>>::LANES;
        let a = extent(self.depth_stride, self.depth) + (self.rows - 1) * self.row_stride + 1;
        let panel = extent(self.panel_stride, self.depth) + width;
        let sums = (self.rows - 1) * self.sums_stride + width;
        let some = |count: usize, scale: f64| {
            (0..count)
                .map(|k| E::from_f64((k as f64 * scale).sin()))
                .collect()
        };
        Operands {
            a: some(a, 0.7),
            panel: some(panel, 0.3),
            sums: some(sums, 1.1),
        }
    }

    fn product<'a, E: Element>(
        &self,
        operands: &'a mut Operands<E>,
        fresh: bool,
    ) -> Product<'a, E> {
        let a = Rows {
            values: &operands.a[..],
            row_stride: self.row_stride,
            depth_stride: self.depth_stride,
        };
        Product {
            rows: self.rows,
            vectors: self.vectors,
            depth: self.depth,
            a,
            panel: &operands.panel,
            panel_stride: self.panel_stride,
            sums: &mut operands.sums,
            sums_stride: self.sums_stride,
            fresh,
        }
    }

    /// The portable level multiplies, then adds, in the order of k.
    fn expected<E: Element>(&self, operands: &Operands<E>, fresh: bool) -> Vec<E>
    where
        Portable: Simd<E>,
    {
        let mut sums = operands.sums.clone();
        for r in 0..self.rows {
            for column in 0..self.vectors * <Portable as Simd<E>>::LANES {
                let sum = &mut sums[r * self.sums_stride + column];
                if fresh {
                    *sum = E::ZERO;
                }
                for k in 0..self.depth {
                    let a =
                        operands.a[r * self.row_stride + index(self.depth_stride, self.depth, k)];
                    *sum =
                        a * operands.panel[index(self.panel_stride, self.depth, k) + column] + *sum;
                }
            }
        }
        sums
    }
}

/// Every register tile, with operands read by rows, by columns, and backwards.
fn every_tile<E: Element>()
where
    Portable: Simd<E>,
{
    for vectors in 1..=4 {
        let width = vectors * <Portable as Simd<E>>::LANES;
        for rows in 1..=max_rows(<Portable as Simd<E>>::REGISTERS, vectors) {
            for (depth, row_stride, depth_stride, panel_stride, sums_stride) in [
                (3, 3, 1, width as isize, width),
                (2, 1, rows as isize, width as isize, width + 1),
                (3, 1, -(rows as isize), -(width as isize), width + 2),
                (2, 5, -2, -(width as isize + 3), width),
                (1, 0, 0, -1, width),
                (0, 7, -7, -7, width),
            ] {
                let shape = Shape {
                    rows,
                    vectors,
                    depth,
                    row_stride,
                    depth_stride,
                    panel_stride,
                    sums_stride,
                };
                for fresh in [false, true] {
                    let mut operands = shape.operands::<E>();
                    let expected = shape.expected(&operands, fresh);
                    multiply(Portable, shape.product(&mut operands, fresh));
                    assert_eq!(operands.sums, expected, "{shape:?}, fresh {fresh}");
                }
            }
        }
    }
}

#[test]
fn every_register_tile_multiplies() {
    every_tile::<f32>();
    every_tile::<f64>();
}

/// Every number of products of one row that share the registers.
fn every_row_kernel<E: Element>()
where
    Portable: Simd<E>,
{
    for (vectors, count) in (1..=4).flat_map(|vectors| (1..=4).map(move |count| (vectors, count))) {
        let width = vectors * <Portable as Simd<E>>::LANES;
        for (depth, a_stride, gap) in [(3, 0, 0), (2, 2, 3), (0, 1, 0)] {
            for fresh in [false, true] {
                let (panels_stride, sums_stride) = (depth * width + gap, width + gap);
                let a = counting::<E>((count - 1) * a_stride + depth, 1);
                let panels = counting::<E>((count - 1) * panels_stride + depth * width, 2);
                let mut sums = counting::<E>((count - 1) * sums_stride + width, 3);
                let mut expected = sums.clone();
                for (q, column) in
                    (0..count).flat_map(|q| (0..width).map(move |column| (q, column)))
                {
                    let sum = &mut expected[q * sums_stride + column];
                    *sum = if fresh { E::ZERO } else { *sum };
                    for k in 0..depth {
                        *sum = a[q * a_stride + k] * panels[q * panels_stride + k * width + column]
                            + *sum;
                    }
                }
                let (a, panels) = (&a[..], &panels[..]);
                multiply_row(
                    Portable,
                    RowProduct {
                        count,
                        vectors,
                        depth,
                        a,
                        a_stride,
                        panels,
                        panels_stride,
                        sums: &mut sums,
                        sums_stride,
                        fresh,
                    },
                );
                assert_eq!(
                    sums, expected,
                    "{count} x {vectors}, depth {depth}, fresh {fresh}"
                );
            }
        }
    }
}

#[test]
fn every_row_kernel_multiplies() {
    every_row_kernel::<f32>();
    every_row_kernel::<f64>();
}

/// One value too few of any operand, or sizes that no kernel has, must panic and not reach beyond.
#[test]
fn products_beyond_their_operands_panic() {
    let lanes = <Portable as Simd<f32>>::LANES;
    let good = Shape {
        rows: 2,
        vectors: 1,
        depth: 3,
        row_stride: 1,
        depth_stride: -2,
        panel_stride: -(lanes as isize),
        sums_stride: lanes,
    };
    let refused = |shape: Shape, cut: [usize; 3]| {
        let Operands { a, panel, sums } = good.operands::<f32>();
        let mut operands = Operands {
            a: a[..a.len() - cut[0]].to_vec(),
            panel: panel[..panel.len() - cut[1]].to_vec(),
            sums: sums[..sums.len() - cut[2]].to_vec(),
        };
        panics(|| multiply(Portable, shape.product(&mut operands, false)))
    };
    assert!(!refused(good, [0; 3]));
    for cut in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        assert!(refused(good, cut), "{cut:?}");
    }
    let (far, back) = (usize::MAX, isize::MIN);
    for shape in [
        Shape { rows: 0, ..good },
        Shape { vectors: 0, ..good },
        Shape { vectors: 5, ..good },
        Shape {
            rows: max_rows(<Portable as Simd<f32>>::REGISTERS, 1) + 1,
            row_stride: 0,
            sums_stride: 0,
            ..good
        },
        Shape { depth: 4, ..good },
        Shape { depth: far, ..good },
        Shape {
            row_stride: far,
            ..good
        },
        Shape {
            sums_stride: far,
            ..good
        },
        Shape {
            depth_stride: back,
            ..good
        },
        Shape {
            panel_stride: back,
            ..good
        },
        Shape {
            panel_stride: back + 2,
            ..good
        },
    ] {
        assert!(refused(shape, [0; 3]), "{shape:?}");
    }
}

#[test]
fn row_products_beyond_their_operands_panic() {
    let lanes = <Portable as Simd<f64>>::LANES;
    let (a, panels) = (counting::<f64>(6, 0), counting::<f64>(6 * lanes, 0));
    let refused = |a: &[f64],
                   panels: &[f64],
                   sums: usize,
                   (count, depth, a_stride, panels_stride, sums_stride)| {
        let mut sums = vec![0.0; sums];
        let sums = &mut sums[..];
        let product = RowProduct {
            count,
            vectors: 1,
            depth,
            a,
            a_stride,
            panels,
            panels_stride,
            sums,
            sums_stride,
            fresh: false,
        };
        panics(|| multiply_row(Portable, product))
    };
    let good = (2, 3, 3, 3 * lanes, lanes);
    assert!(!refused(&a, &panels, 2 * lanes, good));
    assert!(refused(&a[1..], &panels, 2 * lanes, good));
    assert!(refused(&a, &panels[1..], 2 * lanes, good));
    assert!(refused(&a, &panels, 2 * lanes - 1, good));
    let far = usize::MAX;
    for sizes in [
        (0, 3, 3, 6, 2),
        (5, 0, 0, 0, 0),
        (2, far, 3, 6, 2),
        (2, 3, far, 6, 2),
        (2, 3, 3, far, 2),
        (2, 3, 3, 6, far),
        (2, 3, far - 1, 6, 2),
    ] {
        assert!(refused(&a, &panels, 2 * lanes, sizes), "{sizes:?}");
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
