//! The rows of a step in several tables at once.
//!
//! A worker goes through time with the same rows and columns in every table. So what must be held
//! against the tables' sizes is held once for all of them: who owns what when the strips are laid, where
//! a step lies when they move to it, and that a vector begins inside them when it is loaded or stored.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use crate::gemm::view::{Down, DownFrom, Field, Layout, Table};
use crate::shape::Schedule;
use crate::simd::{Element, Simd, Vector};

/// One table's part of a [`Strips`].
#[derive(Clone, Copy)]
struct Strip<E> {
    /// The first column of the strip in the first row of the table.
    origin: *mut E,
    /// The same column of the step's first row.
    base: *mut E,
    row_len: usize,
    slots: usize,
    slot_len: usize,
    /// The packed row that is the table's first, and how many it has.
    first_row: usize,
    rows_held: usize,
    /// Of a table with one step only, which does not move: a state.
    still: bool,
    /// Not there: never touched.
    absent: bool,
}

impl<E: Element> Strip<E> {
    /// Of nothing.
    const fn absent() -> Self {
        Self {
            origin: std::ptr::null_mut(),
            base: std::ptr::null_mut(),
            row_len: 0,
            slots: 0,
            slot_len: 0,
            first_row: 0,
            rows_held: 0,
            still: true,
            absent: true,
        }
    }

    /// Of the first `slots` slots of the table at `origin`, laid out so, for a worker's `rows`; `held` rows
    /// are there.
    #[inline(always)]
    fn new(
        origin: *mut E,
        layout: &Layout<'_>,
        schedule: &Schedule,
        rows: &Range<usize>,
        (held, slots): (usize, usize),
    ) -> Self {
        assert!(slots <= layout.slots);
        let row_len = layout.slots * layout.width;
        let still = !std::ptr::eq(layout.schedule, schedule);
        let first_row = layout.schedule.offsets()[layout.first_step];
        let mut strip = Self {
            origin,
            base: origin,
            row_len,
            slots,
            slot_len: layout.width,
            first_row,
            rows_held: held,
            still,
            absent: false,
        };
        if still {
            // A table of another schedule has one step, whose rows are the worker's.
            assert!(first_row == 0 && rows.end <= held && rows.end <= layout.schedule.active(0));
            strip.base = origin.wrapping_add(rows.start * row_len);
        }
        strip
    }

    /// Moves to packed row `row`, of which and of its followers `rows` are wanted.
    #[inline(always)]
    fn seek(&mut self, row: usize, rows: usize) {
        if self.still {
            return;
        }
        assert!(self.first_row <= row);
        let row = row - self.first_row;
        assert!(row <= self.rows_held && rows <= self.rows_held - row);
        self.base = self.origin.wrapping_add(row * self.row_len);
    }
}

/// Strips of W tables that a worker writes and of R tables that it only reads; any may be absent.
pub struct Strips<'a, E, const W: usize, const R: usize> {
    written: [Strip<E>; W],
    read: [Strip<E>; R],
    schedule: &'a Schedule,
    /// The worker's rows.
    own: Range<usize>,
    /// Rows of the step at hand.
    rows: usize,
    /// The worker's columns.
    width: usize,
    tables: PhantomData<&'a mut [E]>,
}

impl<'a, E: Element, const W: usize, const R: usize> Strips<'a, E, W, R> {
    /// Strips of the rows `own` of tables of `schedule`, or of a single step that has these rows, and of
    /// the first `width` columns that each counts; so many slots of each. They are at no step yet.
    ///
    /// # Panics
    /// When a table has not so many columns, or a field does not own the rows.
    #[inline(always)]
    pub fn new(
        schedule: &'a Schedule,
        own: Range<usize>,
        width: usize,
        written: [Option<(&'a mut Field<'_, E>, usize)>; W],
        read: [Option<(Table<'a, E>, usize)>; R],
    ) -> Self {
        // Counted loops: to map an array is to move it.
        let (mut fields, mut tables) = (written, read);
        let (mut written, mut read) = ([Strip::absent(); W], [Strip::absent(); R]);
        for k in 0..W {
            if let Some((field, slots)) = &mut fields[k] {
                let (origin, layout, held) = field.corner(&own, width);
                written[k] = Strip::new(origin, layout, schedule, &own, (held, *slots));
            }
        }
        for k in 0..R {
            if let Some((table, slots)) = &mut tables[k] {
                let (origin, layout, held) = table.corner(width);
                // Strips of `read` are never written to.
                let origin = origin.cast_mut();
                read[k] = Strip::new(origin, layout, schedule, &own, (held, *slots));
            }
        }
        Self {
            written,
            read,
            schedule,
            own,
            rows: 0,
            width,
            tables: PhantomData,
        }
    }

    /// Moves to the first `rows` of the worker's rows at step `t`.
    ///
    /// # Panics
    /// When the schedule has no such step, the step no such rows, or a table not this step.
    #[inline(always)]
    pub fn seek(&mut self, t: usize, rows: usize) {
        // Refused half-way, the strips are at no step.
        self.rows = 0;
        let offsets = self.schedule.offsets();
        let first = offsets[t];
        let active = offsets[t + 1] - first;
        assert!(0 < rows && rows <= self.own.len());
        assert!(rows <= active && self.own.start <= active - rows);
        let row = first + self.own.start;
        // Counted loops: as iterators the strips would stay in memory.
        for k in 0..W {
            self.written[k].seek(row, rows);
        }
        for k in 0..R {
            self.read[k].seek(row, rows);
        }
        self.rows = rows;
    }

    /// Rows of the step at hand.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    #[inline(always)]
    pub fn width(&self) -> usize {
        self.width
    }

    /// A row of the step, in every table.
    ///
    /// # Panics
    /// When the step has no such row.
    #[inline(always)]
    pub fn line(&mut self, row: usize) -> Line<'_, E, W, R> {
        assert!(row < self.rows);
        Line {
            written: [std::ptr::null_mut(); W],
            written_slots: [0; W],
            written_slot_len: [0; W],
            read: [std::ptr::null(); R],
            read_slots: [0; R],
            read_slot_len: [0; R],
            width: self.width,
            tables: PhantomData,
        }
        .filled(self, row)
    }

    /// The vector at `column` of some rows of the step, in every written table.
    ///
    /// # Panics
    /// When the step has no such rows, or the strip not all columns of the vector.
    #[inline(always)]
    pub fn down<S: Simd<E>>(&mut self, _s: S, rows: Range<usize>, column: usize) -> Down<'_, E, W> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(column <= self.width && S::LANES <= self.width - column);
        let mut from = [DownFrom::<E>::NOWHERE; W];
        for k in 0..W {
            let strip = &self.written[k];
            let at = rows.start * strip.row_len + column;
            from[k] = DownFrom {
                at: strip.base.wrapping_add(at),
                row_len: strip.row_len,
                slots: strip.slots,
                slot_len: strip.slot_len,
            };
        }
        // SAFETY: the strips have these rows and columns of every slot, all this worker's.
        unsafe { Down::from_raw(from, (rows.len(), S::LANES)) }
    }

    /// The rows of the step in written table `k`, whole.
    ///
    /// # Panics
    /// When the strip has not all columns of the table.
    #[inline(always)]
    pub fn whole_rows(&self, k: usize) -> &[E] {
        let strip = &self.written[k];
        assert!(self.width == strip.slot_len && !strip.absent);
        // SAFETY: as many columns as the table has begin at its first one, so the rows are this worker's
        // from end to end.
        unsafe { std::slice::from_raw_parts(strip.base, self.rows * strip.row_len) }
    }
}

/// A row in every table of a [`Strips`]: by value, so that a loop over it can keep it in registers. Copies
/// reach the same values, one access at a time.
#[derive(Clone, Copy)]
pub struct Line<'s, E, const W: usize, const R: usize> {
    written: [*mut E; W],
    written_slots: [usize; W],
    written_slot_len: [usize; W],
    read: [*const E; R],
    read_slots: [usize; R],
    read_slot_len: [usize; R],
    width: usize,
    tables: PhantomData<&'s mut [E]>,
}

impl<'s, E: Element, const W: usize, const R: usize> Line<'s, E, W, R> {
    /// Of row `row`, which is there. Counted loops: as iterators the arrays would stay in memory.
    #[inline(always)]
    fn filled<'a: 's>(mut self, strips: &'s Strips<'a, E, W, R>, row: usize) -> Self {
        for k in 0..W {
            let strip = &strips.written[k];
            self.written[k] = strip.base.wrapping_add(row * strip.row_len);
            self.written_slots[k] = strip.slots;
            self.written_slot_len[k] = strip.slot_len;
        }
        for k in 0..R {
            let strip = &strips.read[k];
            self.read[k] = strip.base.wrapping_add(row * strip.row_len);
            self.read_slots[k] = strip.slots;
            self.read_slot_len[k] = strip.slot_len;
        }
        self
    }

    /// Whether written table `k` is there.
    #[inline(always)]
    pub fn has(&self, k: usize) -> bool {
        self.written_slots[k] > 0
    }

    /// Whether read table `k` is there.
    #[inline(always)]
    pub fn has_read(&self, k: usize) -> bool {
        self.read_slots[k] > 0
    }

    /// The columns from `column` on that a vector of S has.
    ///
    /// # Panics
    /// When there is no such column.
    #[inline(always)]
    pub fn lanes<S: Simd<E>>(&self, column: usize) -> usize {
        S::LANES.min(self.width(column))
    }

    /// Columns from `column` on.
    #[inline(always)]
    fn width(&self, column: usize) -> usize {
        assert!(column < self.width);
        self.width - column
    }

    /// The vector at `column` in a slot of written table `k`, zero beyond the strip.
    ///
    /// # Panics
    /// When there is no such slot or column.
    #[inline(always)]
    pub fn load<S: Simd<E>>(&self, s: S, k: usize, slot: usize, column: usize) -> S::V {
        assert!(slot < self.written_slots[k]);
        let width = self.width(column);
        let at = slot * self.written_slot_len[k] + column;
        // SAFETY: the strip has this row, slot and column (an absent one has no slots), and the loads
        // read no more than the columns that follow.
        unsafe { load(s, self.written[k].add(at), width) }
    }

    /// [`Self::load`] from read table `k`.
    #[inline(always)]
    pub fn read<S: Simd<E>>(&self, s: S, k: usize, slot: usize, column: usize) -> S::V {
        assert!(slot < self.read_slots[k]);
        let width = self.width(column);
        let at = slot * self.read_slot_len[k] + column;
        // SAFETY: as for `load`.
        unsafe { load(s, self.read[k].add(at), width) }
    }

    /// Writes the vector at `column` in a slot of written table `k`, as far as the strip goes.
    ///
    /// # Panics
    /// When there is no such slot or column.
    #[inline(always)]
    pub fn store<S: Simd<E>>(&mut self, _s: S, k: usize, slot: usize, column: usize, value: S::V) {
        assert!(slot < self.written_slots[k]);
        let width = self.width(column);
        let at = slot * self.written_slot_len[k] + column;
        // SAFETY: the strip has this row, slot and column (an absent one has no slots); they are this
        // worker's alone, and the stores write no more than the columns that follow.
        unsafe {
            let to = self.written[k].add(at);
            if width >= S::LANES {
                value.store_raw(to)
            } else {
                value.store_partial_raw(to, width)
            }
        }
    }
}

/// The first `width` lanes from `from` on, all if there are as many.
///
/// # Safety
/// * `from` is valid for reading `width` values.
#[inline(always)]
unsafe fn load<E: Element, S: Simd<E>>(s: S, from: *const E, width: usize) -> S::V {
    // SAFETY: the caller vouches for the values.
    unsafe {
        if width >= S::LANES {
            s.load_raw(from)
        } else {
            s.load_partial_raw(from, width)
        }
    }
}
