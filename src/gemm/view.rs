//! Windows on tables of rows that several workers fill at once.
//!
//! A table holds, step after step, the rows of a schedule; a row holds `slots` runs of H values. A
//! worker owns some rows of every step and some columns of every row. [`Field::split_rows`] and
//! [`Field::split_columns`] cut ownership in two by value, so two owners never overlap and no lock is
//! needed: that is what makes the raw pointer below sound. Every access of a step goes through a [`Block`], whose
//! bounds were checked once for all of its rows, or through a [`Down`], whose vectors were too; whole rows are
//! checked where they are read or copied.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use crate::shape::Schedule;
use crate::simd::{Element, Simd, Vector};

/// How a table is laid out: where the rows of a step begin and how long they are.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Where the rows of each step lie.
    pub schedule: &'a Schedule,
    /// The step whose first row is the first of the table (tables of a chunk begin in the middle).
    pub first_step: usize,
    /// Runs of `width` values in a row.
    pub slots: usize,
    /// Values in a run.
    pub width: usize,
}

impl Layout<'_> {
    /// # Panics
    /// When there is no such number.
    fn row_len(&self) -> usize {
        self.slots
            .checked_mul(self.width)
            .expect("a row fits the address space")
    }

    /// The row of the table at which rows `rows` of step `t` begin. No sum here wraps around, whatever
    /// the arguments: each is held against a difference first.
    ///
    /// # Panics
    /// When the table has no such step, or the step no such rows.
    #[inline(always)]
    fn first_row(&self, t: usize, rows: &Range<usize>) -> usize {
        let offsets = self.schedule.offsets();
        let active = offsets[t + 1] - offsets[t];
        assert!(self.first_step <= t && rows.start <= rows.end && rows.end <= active);
        offsets[t] - offsets[self.first_step] + rows.start
    }
}

/// The rows and columns of a table that one worker may read and write.
pub struct Field<'a, E> {
    base: *mut E,
    rows_held: usize,
    layout: Layout<'a>,
    row_len: usize,
    rows: Range<usize>,
    /// Callers count columns from the first of these.
    columns: Range<usize>,
    owner: PhantomData<&'a mut [E]>,
}

// SAFETY: a Field is an exclusive borrow of the values it can reach; E is plain data.
unsafe impl<E: Send> Send for Field<'_, E> {}

impl<'a, E: Element> Field<'a, E> {
    /// The whole of `values`.
    ///
    /// # Panics
    /// When `values` is not a whole number of rows.
    pub fn new(values: &'a mut [E], layout: Layout<'a>) -> Self {
        let row_len = layout.row_len();
        assert!(row_len > 0 && values.len().is_multiple_of(row_len));
        Self {
            base: values.as_mut_ptr(),
            rows_held: values.len() / row_len,
            layout,
            row_len,
            rows: 0..usize::MAX,
            columns: 0..layout.width,
            owner: PhantomData,
        }
    }

    /// The rows before `at` and the rows from it on, of every step.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        let at = at.clamp(self.rows.start, self.rows.end);
        let below = Self {
            rows: self.rows.start..at,
            columns: self.columns.clone(),
            ..self
        };
        let above = Self {
            rows: at..self.rows.end,
            ..self
        };
        (below, above)
    }

    /// The columns before `at` and the columns from it on; the second part counts its own from 0.
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        let at = self.columns.start + at.min(self.columns.len());
        let left = Self {
            columns: self.columns.start..at,
            rows: self.rows.clone(),
            ..self
        };
        let right = Self {
            columns: at..self.columns.end,
            ..self
        };
        (left, right)
    }

    /// Where this field's first column is in the first row of the table, how that is laid out, and how
    /// many rows it holds: for [`Strips`](crate::gemm::strips::Strips), of so many rows and columns.
    ///
    /// # Panics
    /// When they are not this field's own.
    #[inline(always)]
    pub(super) fn corner(
        &mut self,
        rows: &Range<usize>,
        width: usize,
    ) -> (*mut E, &Layout<'a>, usize) {
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end);
        assert!(width <= self.columns.len());
        // SAFETY: a table has a row, or nobody goes there; its columns were held against its width.
        let origin = self.base.wrapping_add(self.columns.start);
        (origin, &self.layout, self.rows_held)
    }

    /// Rows `rows` of step `t` as one slice, of a field that owns its whole rows.
    ///
    /// # Panics
    /// When that reaches beyond what this field owns.
    pub fn rows(&self, t: usize, rows: Range<usize>) -> &[E] {
        assert!(self.columns == (0..self.layout.width));
        let first = self.first_row(t, &rows);
        // SAFETY: these rows were just held against the table's size, and are this field's alone.
        unsafe {
            let from = self.base.add(first * self.row_len);
            std::slice::from_raw_parts(from, rows.len() * self.row_len)
        }
    }

    /// The row of the table at which rows `rows` of step `t` begin, all of them this field's own.
    #[inline(always)]
    fn first_row(&self, t: usize, rows: &Range<usize>) -> usize {
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end);
        let first = self.layout.first_row(t, rows);
        assert!(first + rows.len() <= self.rows_held);
        first
    }

    /// Copies rows `rows` of step `from_t` of another field to step `t` of this one: all columns that both
    /// own, in the only slot.
    ///
    /// # Panics
    /// When one of them has no such rows, or they do not have one slot and the same number of columns.
    pub fn copy_rows(&mut self, t: usize, rows: Range<usize>, from: &Self, from_t: usize) {
        let width = self.columns.len();
        assert!(width == from.columns.len() && self.layout.slots == 1 && from.layout.slots == 1);
        let first = self.first_row(t, &rows);
        let from_first = from.first_row(from_t, &rows);
        for r in 0..rows.len() {
            // SAFETY: both rows were just held against the size of their table, and columns lie within a row.
            // What a field owns nobody else can reach: this one may write, the other one read, and no two
            // overlap.
            unsafe {
                let to = (self.base).add((first + r) * self.row_len + self.columns.start);
                let row = (from.base).add((from_first + r) * from.row_len + from.columns.start);
                std::ptr::copy_nonoverlapping(row, to, width);
            }
        }
    }

    /// Rows `rows` of step `t`, `width` columns from `column` on, every slot.
    ///
    /// # Panics
    /// When that reaches beyond what this field owns.
    #[inline(always)]
    pub fn block(
        &mut self,
        t: usize,
        rows: Range<usize>,
        column: usize,
        width: usize,
    ) -> Block<'_, E> {
        assert!(column <= self.columns.len() && width <= self.columns.len() - column);
        let first = self.first_row(t, &rows);
        let row_stride = self.row_len;
        // SAFETY: row and column were just held against the table's size.
        let base = unsafe {
            self.base
                .add(first * row_stride + self.columns.start + column)
        };
        let slots = self.layout.slots;
        Block {
            base,
            row_stride,
            slot_stride: self.layout.width,
            rows: rows.len(),
            slots,
            width,
            owner: PhantomData,
        }
    }
}

/// A table that many may read and nobody writes.
#[derive(Clone, Copy)]
pub struct Table<'a, E> {
    values: &'a [E],
    rows_held: usize,
    layout: Layout<'a>,
    row_len: usize,
    /// The column that callers call 0.
    origin: usize,
}

impl<'a, E: Element> Table<'a, E> {
    /// The whole of `values`.
    ///
    /// # Panics
    /// When a row has no values.
    pub fn new(values: &'a [E], layout: Layout<'a>) -> Self {
        let row_len = layout.row_len();
        assert!(row_len > 0);
        Self {
            values,
            rows_held: values.len() / row_len,
            layout,
            row_len,
            origin: 0,
        }
    }

    /// The same table, its columns counted from `column` of those now.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn from_column(self, column: usize) -> Self {
        assert!(column <= self.layout.width - self.origin);
        let origin = self.origin + column;
        Self { origin, ..self }
    }

    /// As [`Field::corner`].
    #[inline(always)]
    pub(super) fn corner(&self, width: usize) -> (*const E, &Layout<'a>, usize) {
        assert!(width <= self.layout.width - self.origin);
        let origin = self.values.as_ptr().wrapping_add(self.origin);
        (origin, &self.layout, self.rows_held)
    }

    /// Rows `rows` of step `t`, `width` columns from `column` on, every slot.
    ///
    /// # Panics
    /// When that reaches beyond the table.
    #[inline(always)]
    pub fn block(
        &self,
        t: usize,
        rows: Range<usize>,
        column: usize,
        width: usize,
    ) -> ReadBlock<'a, E> {
        let room = self.layout.width - self.origin;
        assert!(column <= room && width <= room - column);
        let (first, row_stride) = (self.layout.first_row(t, &rows), self.row_len);
        assert!(first + rows.len() <= self.rows_held);
        let (slot_stride, slots) = (self.layout.width, self.layout.slots);
        // SAFETY: row and column were just held against the table's size.
        let base = unsafe {
            self.values
                .as_ptr()
                .add(first * row_stride + self.origin + column)
        };
        ReadBlock {
            base,
            row_stride,
            slot_stride,
            rows: rows.len(),
            slots,
            width,
            owner: PhantomData,
        }
    }
}

/// A few rows of a few columns, to read and write.
pub struct Block<'a, E> {
    base: *mut E,
    row_stride: usize,
    slot_stride: usize,
    rows: usize,
    slots: usize,
    width: usize,
    owner: PhantomData<&'a mut [E]>,
}

impl<E: Element> Block<'_, E> {
    /// A block of `rows` rows of `slots` runs of `width` values, by its strides.
    ///
    /// # Safety
    /// * Every value of the block is valid for reading and writing while it lives, and nobody else's.
    #[inline(always)]
    pub(super) unsafe fn from_raw(
        base: *mut E,
        (row_stride, slot_stride): (usize, usize),
        (rows, slots): (usize, usize),
        width: usize,
    ) -> Self {
        Self {
            base,
            row_stride,
            slot_stride,
            rows,
            slots,
            width,
            owner: PhantomData,
        }
    }

    /// Values in a run.
    #[inline(always)]
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row as a block of its own.
    ///
    /// # Panics
    /// When there is no such row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> Block<'_, E> {
        assert!(row < self.rows);
        Block {
            base: self.base.wrapping_add(row * self.row_stride),
            rows: 1,
            owner: PhantomData,
            ..*self
        }
    }

    /// The vector at `column` of some rows.
    ///
    /// # Panics
    /// When there are no such rows, or not all columns of the vector.
    #[inline(always)]
    pub fn down<S: Simd<E>>(&mut self, _s: S, rows: Range<usize>, column: usize) -> Down<'_, E, 1> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(column <= self.width && S::LANES <= self.width - column);
        let from = DownFrom {
            at: self
                .base
                .wrapping_add(rows.start * self.row_stride + column),
            row_len: self.row_stride,
            slots: self.slots,
            slot_len: self.slot_stride,
        };
        // SAFETY: `Field::block` or the caller of `from_raw` vouched for all rows, slots and columns.
        unsafe { Down::from_raw([from], (rows.len(), S::LANES)) }
    }

    /// Where the values at `row`, `slot` and `column` of the block are, and how many there are.
    #[inline(always)]
    fn at(&self, row: usize, slot: usize, column: usize) -> (*mut E, usize) {
        assert!(row < self.rows && slot < self.slots && column <= self.width);
        // SAFETY: `Field::block` checked all rows, slots and columns of this block.
        let at = unsafe {
            self.base
                .add(row * self.row_stride + slot * self.slot_stride + column)
        };
        (at, self.width - column)
    }

    /// The vector at `row`, `slot` and `column`, zero beyond the block's width.
    #[inline(always)]
    pub fn load<S: Simd<E>>(&self, s: S, row: usize, slot: usize, column: usize) -> S::V {
        let (from, width) = self.at(row, slot, column);
        // SAFETY: `width` values from here on belong to the block, and a full load reads no more.
        unsafe {
            if width >= S::LANES {
                s.load_raw(from)
            } else {
                s.load_partial_raw(from, width)
            }
        }
    }

    /// Writes the vector at `row`, `slot` and `column`, as far as the block's width goes.
    #[inline(always)]
    pub fn store<S: Simd<E>>(
        &mut self,
        _s: S,
        row: usize,
        slot: usize,
        column: usize,
        value: S::V,
    ) {
        let (to, width) = self.at(row, slot, column);
        // SAFETY: `width` values from here on belong to the block alone, and a full store writes no more.
        unsafe {
            if width >= S::LANES {
                value.store_raw(to)
            } else {
                value.store_partial_raw(to, width)
            }
        }
    }
}

/// Where a vector of one table is in a first row, and where the others are.
#[derive(Clone, Copy)]
pub(super) struct DownFrom<E> {
    /// Its place in the first slot.
    pub(super) at: *mut E,
    pub(super) row_len: usize,
    /// 0 where the table is not there.
    pub(super) slots: usize,
    pub(super) slot_len: usize,
}

impl<E> DownFrom<E> {
    /// Of no table.
    pub(super) const NOWHERE: Self = Self {
        at: std::ptr::null_mut(),
        row_len: 0,
        slots: 0,
        slot_len: 0,
    };
}

/// A whole vector of one row after the other in several tables. What a vector of a [`Block`] is asked at
/// every access was asked when this was made, but for the slot and the row.
pub struct Down<'s, E, const W: usize> {
    /// At the row at hand.
    tables: [DownFrom<E>; W],
    /// Rows from the one at hand on.
    rows: usize,
    lanes: usize,
    owner: PhantomData<&'s mut [E]>,
}

impl<E: Element, const W: usize> Down<'_, E, W> {
    /// `rows` rows of vectors of `lanes` values, from these on.
    ///
    /// # Safety
    /// * In every slot of every table the vectors are valid for reading and writing while this lives, and
    ///   nobody else's.
    #[inline(always)]
    pub(super) unsafe fn from_raw(tables: [DownFrom<E>; W], (rows, lanes): (usize, usize)) -> Self {
        Self {
            tables,
            rows,
            lanes,
            owner: PhantomData,
        }
    }

    /// How many rows there are from the one at hand on.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether table `k` is there.
    #[inline(always)]
    pub fn has(&self, k: usize) -> bool {
        self.tables[k].slots > 0
    }

    /// Goes on by `rows` rows.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline(always)]
    pub fn step(&mut self, rows: usize) {
        assert!(rows <= self.rows);
        self.rows -= rows;
        for k in 0..W {
            let table = &mut self.tables[k];
            table.at = table.at.wrapping_add(rows * table.row_len);
        }
    }

    /// Where the vector of the row `r` after the one at hand is.
    #[inline(always)]
    fn at<S: Simd<E>>(&self, _s: S, k: usize, slot: usize, r: usize) -> *mut E {
        let table = self.tables[k];
        assert!(r < self.rows && slot < table.slots && S::LANES == self.lanes);
        table
            .at
            .wrapping_add(r * table.row_len + slot * table.slot_len)
    }

    /// The vector in a slot of table `k`, `r` rows after the one at hand.
    ///
    /// # Panics
    /// When there is no such slot or row.
    #[inline(always)]
    pub fn load<S: Simd<E>>(&self, s: S, k: usize, slot: usize, r: usize) -> S::V {
        // SAFETY: the tables have this row and slot, and all lanes of the vector.
        unsafe { s.load_raw(self.at(s, k, slot, r)) }
    }

    /// The mirror of [`Self::load`].
    #[inline(always)]
    pub fn store<S: Simd<E>>(&mut self, s: S, k: usize, slot: usize, r: usize, value: S::V) {
        // SAFETY: the tables have this row and slot, and all lanes of the vector, which are this worker's.
        unsafe { value.store_raw(self.at(s, k, slot, r)) }
    }
}

/// A few rows of a few columns, to read.
#[derive(Clone, Copy)]
pub struct ReadBlock<'a, E> {
    base: *const E,
    row_stride: usize,
    slot_stride: usize,
    rows: usize,
    slots: usize,
    width: usize,
    owner: PhantomData<&'a [E]>,
}

impl<E: Element> ReadBlock<'_, E> {
    /// The vector at `row`, `slot` and `column`, zero beyond the block's width.
    #[inline(always)]
    pub fn load<S: Simd<E>>(&self, s: S, row: usize, slot: usize, column: usize) -> S::V {
        assert!(row < self.rows && slot < self.slots && column <= self.width);
        let width = self.width - column;
        // SAFETY: `Table::block` checked all rows, slots and columns of this block, and a load reads
        // `width` values at most.
        unsafe {
            let from = self
                .base
                .add(row * self.row_stride + slot * self.slot_stride + column);
            if width >= S::LANES {
                s.load_raw(from)
            } else {
                s.load_partial_raw(from, width)
            }
        }
    }
}
