//! Windows on tables of rows that several workers fill at once.
//!
//! A table holds, step after step, the rows of a schedule; a row holds `slots` runs of H values. A
//! worker owns some rows of every step and some columns of every row. [`Field::split_rows`] and
//! [`Field::split_columns`] cut ownership in two by value, so two owners never overlap and no lock is
//! needed: that is what makes the raw pointer below sound. Every access goes through a [`Block`], whose
//! bounds were checked once for a whole register tile.

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
    fn row_len(&self) -> usize {
        self.slots * self.width
    }

    /// The row of the table at which row `r` of step `t` lies.
    #[inline(always)]
    fn row(&self, t: usize, r: usize) -> usize {
        self.schedule.offsets()[t] - self.schedule.offsets()[self.first_step] + r
    }
}

/// The rows and columns of a table that one worker may read and write.
pub struct Field<'a, E> {
    base: *mut E,
    rows_held: usize,
    layout: Layout<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
    /// The column that callers call 0.
    origin: usize,
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
        assert!(layout.row_len() > 0 && values.len().is_multiple_of(layout.row_len()));
        Self {
            base: values.as_mut_ptr(),
            rows_held: values.len() / layout.row_len(),
            layout,
            rows: 0..usize::MAX,
            columns: 0..layout.width,
            origin: 0,
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
        let at = (self.origin + at).clamp(self.columns.start, self.columns.end);
        let left = Self {
            columns: self.columns.start..at,
            rows: self.rows.clone(),
            ..self
        };
        let right = Self {
            columns: at..self.columns.end,
            origin: at,
            ..self
        };
        (left, right)
    }

    /// Rows `rows` of step `t` as one slice, of a field that owns its whole rows.
    ///
    /// # Panics
    /// When that reaches beyond what this field owns.
    pub fn rows(&self, t: usize, rows: Range<usize>) -> &[E] {
        assert!(
            self.rows.start <= rows.start && rows.start <= rows.end && rows.end <= self.rows.end
        );
        assert!(self.columns == (0..self.layout.width));
        let (first, count) = (self.layout.row(t, rows.start), rows.end - rows.start);
        assert!(
            first + count <= self.rows_held
                && self.layout.row(t, rows.end) <= self.layout.row(t + 1, 0)
        );
        // SAFETY: these rows were just held against the table's size, and are this field's alone.
        unsafe {
            let from = self.base.add(first * self.layout.row_len());
            std::slice::from_raw_parts(from, count * self.layout.row_len())
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
        let column = self.origin + column;
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end);
        assert!(self.columns.start <= column && column + width <= self.columns.end);
        let first = self.layout.row(t, rows.start);
        let count = rows.end - rows.start;
        assert!(
            first + count <= self.rows_held
                && self.layout.row(t, rows.end) <= self.layout.row(t + 1, 0)
        );
        let row_stride = self.layout.row_len();
        // SAFETY: row and column were just held against the table's size.
        let base = unsafe { self.base.add(first * row_stride + column) };
        let slots = self.layout.slots;
        Block {
            base,
            row_stride,
            slot_stride: self.layout.width,
            rows: count,
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
    layout: Layout<'a>,
    /// The column that callers call 0.
    origin: usize,
}

impl<'a, E: Element> Table<'a, E> {
    /// The whole of `values`.
    pub fn new(values: &'a [E], layout: Layout<'a>) -> Self {
        Self {
            values,
            layout,
            origin: 0,
        }
    }

    /// The same table, its columns counted from `origin`.
    pub fn from_column(self, origin: usize) -> Self {
        Self { origin, ..self }
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
        let column = self.origin + column;
        let row_stride = self.layout.row_len();
        let first = self.layout.row(t, rows.start);
        let count = rows.end - rows.start;
        assert!(
            column + width <= self.layout.width
                && (first + count) * row_stride <= self.values.len()
        );
        let (slot_stride, slots) = (self.layout.width, self.layout.slots);
        // SAFETY: row and column were just held against the table's size.
        let base = unsafe { self.values.as_ptr().add(first * row_stride + column) };
        ReadBlock {
            base,
            row_stride,
            slot_stride,
            rows: count,
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
