//! What every step hands to the next: rows that some workers write in parts and all of them read whole.
//!
//! A product `U h'` needs all of h', also where each worker makes only some units of h. So there are two
//! copies: during a step everybody reads the *current* one and writes its own columns of the *next* one;
//! then all meet, and the two change places. A worker that has all columns meets nobody.
//!
//! ```text
//! worker 0   read 0, write 1 | read 1, write 0 | read 0 ...
//! worker 1   read 0, write 1 | read 1, write 0 | read 0 ...
//!                            ^ turn            ^ turn
//! ```

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use crate::error::Result;
use crate::gemm::view::Block;
use crate::memory::{Buffer, product};
use crate::parallel::Barrier;
use crate::simd::Element;

/// Both copies of [rows, slots, width].
pub struct Relay<E> {
    copies: [Buffer<E>; 2],
    rows: usize,
    slots: usize,
    width: usize,
    /// Where its ends meet, and nobody else: that is what keeps readers and writers apart.
    barrier: Barrier,
}

impl<E: Element> Relay<E> {
    /// Room for so many rows.
    pub fn new(rows: usize, slots: usize, width: usize, what: &str) -> Result<Self> {
        let len = product(&[rows, slots, width], what)?;
        Ok(Self {
            copies: [Buffer::stale(len, what)?, Buffer::stale(len, what)?],
            rows,
            slots,
            width,
            barrier: Barrier::new(1),
        })
    }

    /// Both copies, to be filled before the first step.
    pub fn copies(&mut self) -> &mut [Buffer<E>; 2] {
        &mut self.copies
    }

    /// An end for each worker: it owns the columns `cuts[k]`. Each must be on a thread of its own.
    ///
    /// # Panics
    /// When the cuts do not follow one another.
    pub fn ends(&mut self, cuts: &[Range<usize>]) -> Vec<RelayEnd<'_, E>> {
        let mut taken = 0;
        for columns in cuts {
            assert!(taken <= columns.start && columns.start <= columns.end);
            assert!(columns.end <= self.width);
            taken = columns.end;
        }
        // The ends of an earlier time have left theirs.
        self.barrier = Barrier::new(cuts.len());
        let pointers = self.pointers();
        let end = |columns: &Range<usize>| self.end_of(pointers, columns.clone(), &self.barrier);
        cuts.iter().map(end).collect()
    }

    /// The only end, of a worker that has all columns.
    pub fn end(&mut self) -> RelayEnd<'_, E> {
        static ALONE: Barrier = Barrier::new(1);
        let pointers = self.pointers();
        self.end_of(pointers, 0..self.width, &ALONE)
    }

    fn pointers(&mut self) -> [*mut E; 2] {
        self.copies.each_mut().map(|copy| copy.as_mut_ptr())
    }

    fn end_of<'a>(
        &'a self,
        [current, next]: [*mut E; 2],
        columns: Range<usize>,
        barrier: &'a Barrier,
    ) -> RelayEnd<'a, E> {
        RelayEnd {
            current,
            next,
            rows: self.rows,
            slots: self.slots,
            width: self.width,
            columns,
            barrier,
            owner: PhantomData,
        }
    }
}

/// One worker's end of a [`Relay`].
pub struct RelayEnd<'a, E> {
    current: *mut E,
    next: *mut E,
    rows: usize,
    slots: usize,
    width: usize,
    columns: Range<usize>,
    barrier: &'a Barrier,
    owner: PhantomData<&'a mut [E]>,
}

// SAFETY: an end reaches its own columns of `next` and shares `current` for reading; the barrier keeps
// the two apart, and E is plain data.
unsafe impl<E: Send + Sync> Send for RelayEnd<'_, E> {}

impl<E: Element> RelayEnd<'_, E> {
    /// The first `rows` rows: the current ones whole, and this worker's columns of the next ones.
    ///
    /// # Panics
    /// When there are fewer rows.
    #[inline(always)]
    pub fn sides(&mut self, rows: usize) -> (&[E], Block<'_, E>) {
        assert!(rows <= self.rows);
        let row_len = self.slots * self.width;
        // SAFETY: both copies hold `self.rows` rows for as long as this end lives. Nobody writes to the
        // current one before all ends have turned, which this one cannot while the slice is borrowed;
        // the columns of the next one are this end's alone (`Relay::ends`), and no other end reads them
        // before all have turned.
        unsafe {
            let current = std::slice::from_raw_parts(self.current, rows * row_len);
            // An empty copy has no such place, and nobody goes there.
            let next = self.next.wrapping_add(self.columns.start);
            (
                current,
                Block::from_raw(
                    next,
                    (row_len, self.width),
                    (rows, self.slots),
                    self.columns.len(),
                ),
            )
        }
    }

    /// This worker's next rows become current, with those of everybody else.
    ///
    /// # Errors
    /// When another worker gave up.
    #[inline(always)]
    pub fn turn(&mut self) -> Result<()> {
        self.barrier.meet()?;
        std::mem::swap(&mut self.current, &mut self.next);
        Ok(())
    }
}

impl<E> Drop for RelayEnd<'_, E> {
    fn drop(&mut self) {
        // Whoever ends early, by an error or a panic, must not be waited for.
        self.barrier.leave();
    }
}
