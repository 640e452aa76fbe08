//! The unsafe code, at the level that every machine has, on sizes so small that Miri can follow every
//! access: windows on shared tables, the micro-kernels, the pool of threads, aligned memory; and every
//! form of every cell, forward and backward.
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
use rnncore::gemm::kernel::{MAX_VECTORS, max_rows};
use rnncore::gemm::row::{GateProduct, RowProduct, add_row, multiply_row};
use rnncore::gemm::view::{Field, Layout, Table};
use rnncore::layer::{CellKind, Merge};
use rnncore::memory::{Buffer, copied, filled, zeros};
use rnncore::parallel::{Team, Watch};
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

// ---- Micro-kernels -------------------------------------------------------------------------------

#[test]
fn every_register_tile_multiplies() {
    every_tile::<f32, _>(Portable);
    every_tile::<f64, _>(Portable);
}

#[test]
fn every_row_kernel_adds() {
    every_row::<f32, _>(Portable);
    every_row::<f64, _>(Portable);
}

#[test]
fn every_row_of_gates_multiplies() {
    every_gate_product::<f32, _>(Portable);
    every_gate_product::<f64, _>(Portable);
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
    let rows = max_rows(<Portable as Simd<f32>>::REGISTERS, 1);
    for rows in [0, rows + 1, FAR] {
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
        for walk in [
            Walk { depth: FAR, ..walk },
            Walk {
                depth: 1000,
                ..walk
            },
            Walk {
                row_stride: FAR,
                ..walk
            },
            Walk {
                row_stride: 1000,
                ..walk
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
    const FAR: usize = usize::MAX;
    let lanes = <Portable as Simd<f32>>::LANES;
    let refused = |lens: [usize; 3], [gates, depth, stride, columns]: [usize; 4]| {
        let [a, matrix, mut sums] = lens.map(|len| vec![0f32; len]);
        let product = GateProduct {
            gates,
            depth,
            a: &a,
            matrix: &matrix,
            stride,
            columns,
            sums: &mut sums,
        };
        panics(|| multiply_row(Portable, product))
    };
    // By columns, and streamed: there a row of sums for each gate.
    let (columns, wide) = (2 * lanes - 1, (512 << 10) / 4);
    let cases = [
        ([6, 5 * 9 + columns, columns], [2, 3, 9, columns]),
        ([6, 5 * wide + columns, 4 * lanes], [2, 3, wide, columns]),
    ];
    for (lens, sizes) in cases {
        assert!(!refused(lens, sizes), "{sizes:?}");
        for operand in 0..3 {
            let mut lens = lens;
            lens[operand] -= 1;
            assert!(refused(lens, sizes), "{sizes:?}, operand {operand}");
        }
        let [gates, depth, stride, _] = sizes;
        for sizes in [
            [0, depth, stride, columns],
            [3, depth, stride, columns],
            [5, 0, stride, columns],
            [gates, depth + 1, stride, columns],
            [gates, FAR, stride, columns],
            [gates, depth, columns - 1, columns],
            [gates, depth, stride + 1, columns],
            [gates, depth, FAR, columns],
            [gates, depth, stride, FAR],
        ] {
            assert!(refused(lens, sizes), "{sizes:?}");
        }
    }
    // No rows: the sums are zeros, and there must be as many as columns.
    assert!(!refused([0, 0, 3], [2, 0, 3, 3]));
    assert!(refused([0, 0, 2], [2, 0, 3, 3]));
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
