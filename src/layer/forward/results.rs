//! What the steps of a share leave: the cell's equations, and every place where their results go.

use std::ops::Range;

use super::ForwardFields;
use crate::cell::{Cell, Forward, MAX_SLOTS, Slots, State};
use crate::gemm::strips::{Line, Strips};
use crate::gemm::view::{Block, Down};
use crate::shape::Schedule;
use crate::simd::{Element, Group, Grouped, Kernel, Simd};

/// A block for each member of a group, one after the other in the code: as a loop, groups would live in
/// memory.
macro_rules! each {
    ($n:ident < $count:ident $body:block) => {{
        const { assert!(0 < $count && $count <= 2) };
        {
            let $n = 0;
            $body
        }
        if $count > 1 {
            let $n = $count - 1;
            $body
        }
    }};
}
pub(in crate::layer) use each;

/// What a step leaves, of this share's units alone; columns count from the share's first unit.
pub(super) struct Results<'s, E> {
    pub(super) strips: Strips<'s, E, 6, 0>,
    pub(super) mask: Mask<'s, E>,
}

/// What multiplies h' inside the recurrent product, if anything does.
#[derive(Clone, Copy)]
pub(in crate::layer) struct Mask<'s, E> {
    /// [rows, H] from the share's first row and unit on.
    values: Option<&'s [E]>,
    hidden: usize,
}

impl<'s, E: Element> Mask<'s, E> {
    /// Of the rows `own` and the units `units` of a mask [B, H].
    #[inline(always)]
    pub(in crate::layer) fn new(
        values: Option<&'s [E]>,
        hidden: usize,
        own: &Range<usize>,
        units: &Range<usize>,
    ) -> Self {
        Self {
            values: values.map(|values| &values[own.start * hidden + units.start..]),
            hidden,
        }
    }

    /// Without the rows before `r`.
    #[inline(always)]
    pub(super) fn skip(self, r: usize) -> Self {
        Self {
            values: self.values.map(|values| &values[r * self.hidden..]),
            hidden: self.hidden,
        }
    }

    /// `value` of row `r` and `width` units from `unit` on, times its mask.
    #[inline(always)]
    pub(in crate::layer) fn apply<S: Simd<E>>(
        self,
        s: S,
        value: S::V,
        (r, unit): (usize, usize),
        width: usize,
    ) -> S::V {
        match self.values {
            Some(mask) => {
                let at = r * self.hidden + unit;
                value * s.load_partial(&mask[at..at + width])
            }
            None => value,
        }
    }
}

/// The tables of [`Results`]: the state, y, and the tape.
const STATE_H: usize = 0;
const STATE_C: usize = 1;
const OUTPUT: usize = 2;
const TAPE_H: usize = 3;
const TAPE_C: usize = 4;
const TAPE_SLOTS: usize = 5;

impl<'s, E: Element> Results<'s, E> {
    #[inline(always)]
    pub(super) fn new<K: Cell>(
        schedule: &'s Schedule,
        own: &Range<usize>,
        units: &Range<usize>,
        fields: &'s mut ForwardFields<'_, E>,
        (mask, hidden): (Option<&'s [E]>, usize),
    ) -> Self {
        let ForwardFields { state, y, tape, .. } = fields;
        let (mut tape_h, mut tape_c, mut tape_slots) = (None, None, None);
        if let Some(tape) = tape {
            tape_h = Some((&mut tape.h_before, 1));
            tape_c = tape.c_before.as_mut().map(|c| (c, 1));
            tape_slots = tape.slots.as_mut().map(|slots| (slots, K::SAVED));
        }
        let written = [
            Some((&mut state.h, 1)),
            state.c.as_mut().map(|c| (c, 1)),
            y.as_mut().map(|y| (y, 1)),
            tape_h,
            tape_c,
            tape_slots,
        ];
        Self {
            strips: Strips::new(schedule, own.clone(), units.len(), written, []),
            mask: Mask::new(mask, hidden, own, units),
        }
    }
}

/// Some rows of a step in one block of units, their sums in memory.
pub(super) struct FinishRows<'f, 's, 'n, E, C> {
    pub(super) cell: C,
    pub(super) results: &'f mut Results<'s, E>,
    pub(super) next: &'f mut Block<'n, E>,
    /// [rows, slots, lanes], rows `row_len` apart.
    pub(super) sums: &'f [E],
    pub(super) row_len: usize,
    pub(super) rows: Range<usize>,
    pub(super) unit: usize,
}

impl<E: Element, C: Cell> Kernel<E> for FinishRows<'_, '_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Self {
            cell,
            results,
            next,
            mut sums,
            row_len,
            rows,
            unit,
        } = self;
        let Results { strips, mask } = results;
        if strips.width() - unit < S::LANES {
            // The last block of a layer that has no whole vector.
            for r in rows {
                let places = InRow {
                    line: &mut strips.line(r),
                    mask: mask.skip(r),
                    next: &mut next.row(r),
                    units: [unit],
                };
                finish(s, cell, places, [load_slots(s, C::SLOTS, sums)]);
                sums = sums.get(row_len..).unwrap_or_default();
            }
            return;
        }
        let mut down = Downwards {
            tables: strips.down(s, rows.clone(), unit),
            next: next.down(s, rows.clone(), unit),
            mask: *mask,
            row: rows.start,
            unit,
        };
        while S::FOR_SPEED && down.tables.rows() >= 2 {
            let pre = [
                load_slots(s, C::SLOTS, sums),
                load_slots(s, C::SLOTS, &sums[row_len..]),
            ];
            finish(s, cell, &mut down, pre);
            down.step(2);
            sums = sums.get(2 * row_len..).unwrap_or_default();
        }
        while down.tables.rows() > 0 {
            finish(s, cell, &mut down, [load_slots(s, C::SLOTS, sums)]);
            down.step(1);
            sums = sums.get(row_len..).unwrap_or_default();
        }
    }
}

/// Where N vectors of a step are found in every table.
pub(super) trait Places<E: Element, const N: usize> {
    /// Vector `n` of a table.
    fn load<S: Simd<E>>(&self, s: S, n: usize, table: usize) -> S::V;
    /// Writes vector `n` of a slot of a table.
    fn store<S: Simd<E>>(&mut self, s: S, n: usize, place: (usize, usize), value: S::V);
    /// Whether the table is there.
    fn has(&self, table: usize) -> bool;
    /// Leaves h, times its mask, for the next step.
    fn pass_on<S: Simd<E>>(&mut self, s: S, n: usize, h: S::V);
}

/// Vectors side by side in one row; they may end with the row.
pub(super) struct InRow<'p, 's, 'n, E, const N: usize> {
    pub(super) line: &'p mut Line<'s, E, 6, 0>,
    /// Of this row.
    pub(super) mask: Mask<'p, E>,
    /// Of this row.
    pub(super) next: &'p mut Block<'n, E>,
    pub(super) units: [usize; N],
}

impl<E: Element, const N: usize> Places<E, N> for InRow<'_, '_, '_, E, N> {
    #[inline(always)]
    fn load<S: Simd<E>>(&self, s: S, n: usize, table: usize) -> S::V {
        self.line.load(s, table, 0, self.units[n])
    }

    #[inline(always)]
    fn store<S: Simd<E>>(&mut self, s: S, n: usize, (table, slot): (usize, usize), value: S::V) {
        self.line.store(s, table, slot, self.units[n], value);
    }

    #[inline(always)]
    fn has(&self, table: usize) -> bool {
        self.line.has(table)
    }

    #[inline(always)]
    fn pass_on<S: Simd<E>>(&mut self, s: S, n: usize, h: S::V) {
        let unit = self.units[n];
        let masked = self.mask.apply(s, h, (0, unit), self.line.lanes::<S>(unit));
        self.next.store(s, 0, 0, unit, masked);
    }
}

/// Whole vectors below each other.
struct Downwards<'s, 'n, E> {
    tables: Down<'s, E, 6>,
    next: Down<'n, E, 1>,
    mask: Mask<'s, E>,
    /// The step's number of the row at hand.
    row: usize,
    unit: usize,
}

impl<E: Element> Downwards<'_, '_, E> {
    #[inline(always)]
    fn step(&mut self, rows: usize) {
        self.tables.step(rows);
        self.next.step(rows);
        self.row += rows;
    }
}

impl<E: Element, const N: usize> Places<E, N> for &mut Downwards<'_, '_, E> {
    #[inline(always)]
    fn load<S: Simd<E>>(&self, s: S, n: usize, table: usize) -> S::V {
        self.tables.load(s, table, 0, n)
    }

    #[inline(always)]
    fn store<S: Simd<E>>(&mut self, s: S, n: usize, (table, slot): (usize, usize), value: S::V) {
        self.tables.store(s, table, slot, n, value);
    }

    #[inline(always)]
    fn has(&self, table: usize) -> bool {
        self.tables.has(table)
    }

    #[inline(always)]
    fn pass_on<S: Simd<E>>(&mut self, s: S, n: usize, h: S::V) {
        let masked = self.mask.apply(s, h, (self.row + n, self.unit), S::LANES);
        self.next.store(s, 0, 0, n, masked);
    }
}

/// The cell's equations for N vectors of units, and every place where their results go.
#[inline(always)]
pub(super) fn finish<E: Element, K: Cell, S: Simd<E>, const N: usize>(
    s: S,
    cell: K,
    mut places: impl Places<E, N>,
    pre: [Slots<S::V>; N],
) {
    let zero = Group([s.splat(E::ZERO); N]);
    let mut slots: Slots<Group<S::V, N>> = [zero; MAX_SLOTS];
    let mut before = State { h: zero, c: zero };
    each!(n < N {
        for slot in 0..K::SLOTS {
            slots[slot].0[n] = pre[n][slot];
        }
        before.h.0[n] = places.load(s, n, STATE_H);
        if K::HAS_CELL {
            before.c.0[n] = places.load(s, n, STATE_C);
        }
    });
    let Forward { saved, state } = cell.forward(Grouped::<S, N>(s), slots, before);
    each!(n < N {
        let h = state.h.0[n];
        places.pass_on(s, n, h);
        places.store(s, n, (STATE_H, 0), h);
        if K::HAS_CELL {
            places.store(s, n, (STATE_C, 0), state.c.0[n]);
        }
        if places.has(OUTPUT) {
            places.store(s, n, (OUTPUT, 0), h);
        }
        if places.has(TAPE_H) {
            places.store(s, n, (TAPE_H, 0), before.h.0[n]);
            if K::HAS_CELL {
                places.store(s, n, (TAPE_C, 0), before.c.0[n]);
            }
            for slot in 0..K::SAVED {
                places.store(s, n, (TAPE_SLOTS, slot), saved[slot].0[n]);
            }
        }
    });
}

/// The first `slots` vectors.
#[inline(always)]
pub(super) fn load_slots<E: Element, S: Simd<E>>(s: S, slots: usize, from: &[E]) -> Slots<S::V> {
    let mut values = [s.splat(E::ZERO); MAX_SLOTS];
    for slot in 0..slots {
        values[slot] = s.load(&from[slot * S::LANES..]);
    }
    values
}
