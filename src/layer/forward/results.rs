//! What the steps of a share leave: the cell's equations, and every place where their results go.

use std::ops::Range;

use super::ForwardFields;
use crate::cell::{Cell, Forward, MAX_SLOTS, Slots, State};
use crate::gemm::strips::Strips;
use crate::gemm::view::Block;
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
    /// [rows, H] from the share's first row and unit on.
    mask: Option<&'s [E]>,
    hidden: usize,
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
        let ForwardFields { state, y, tape } = fields;
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
            mask: mask.map(|mask| &mask[own.start * hidden + units.start..]),
            hidden,
        }
    }
}

/// The rows of a tile in one block of units, their sums in memory. A function of its own, which has all
/// registers to itself.
pub(super) struct FinishTile<'f, 's, 'n, E, C> {
    pub(super) cell: C,
    pub(super) results: &'f mut Results<'s, E>,
    pub(super) next: &'f mut Block<'n, E>,
    /// [tile rows, slots, lanes], rows `row_len` apart.
    pub(super) sums: &'f [E],
    pub(super) row_len: usize,
    pub(super) rows: Range<usize>,
    pub(super) unit: usize,
}

impl<E: Element, C: Cell> Kernel<E> for FinishTile<'_, '_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Self {
            cell,
            results,
            next,
            sums,
            row_len,
            rows,
            unit,
        } = self;
        let mut sums = sums;
        let mut r = rows.start;
        while r + 1 < rows.end {
            let pre = [
                load_slots(s, C::SLOTS, sums),
                load_slots(s, C::SLOTS, &sums[row_len..]),
            ];
            results.finish(s, cell, [(r, unit), (r + 1, unit)], pre, next);
            sums = sums.get(2 * row_len..).unwrap_or_default();
            r += 2;
        }
        if r < rows.end {
            results.finish(s, cell, [(r, unit)], [load_slots(s, C::SLOTS, sums)], next);
        }
    }
}

impl<E: Element> Results<'_, E> {
    /// The cell's equations for N vectors of units, each of the row and unit that `places` says, and
    /// every place where their results go.
    #[inline(always)]
    pub(super) fn finish<K: Cell, S: Simd<E>, const N: usize>(
        &mut self,
        s: S,
        cell: K,
        places: [(usize, usize); N],
        pre: [Slots<S::V>; N],
        next: &mut Block<'_, E>,
    ) {
        let zero = Group([s.splat(E::ZERO); N]);
        let mut slots: Slots<Group<S::V, N>> = [zero; MAX_SLOTS];
        let mut before = State { h: zero, c: zero };
        each!(n < N {
            for slot in 0..K::SLOTS {
                slots[slot].0[n] = pre[n][slot];
            }
            let (r, unit) = places[n];
            let line = self.strips.line(r);
            before.h.0[n] = line.load(s, STATE_H, 0, unit);
            if K::HAS_CELL {
                before.c.0[n] = line.load(s, STATE_C, 0, unit);
            }
        });
        let Forward { saved, state } = cell.forward(Grouped::<S, N>(s), slots, before);
        each!(n < N {
            let (r, unit) = places[n];
            let h = state.h.0[n];
            next.store(s, r, 0, unit, self.masked(s, h, r, unit));
            let (has_y, has_tape) = (self.strips.has(OUTPUT), self.strips.has(TAPE_H));
            let mut line = self.strips.line(r);
            line.store(s, STATE_H, 0, unit, h);
            if K::HAS_CELL {
                line.store(s, STATE_C, 0, unit, state.c.0[n]);
            }
            if has_y {
                line.store(s, OUTPUT, 0, unit, h);
            }
            if has_tape {
                line.store(s, TAPE_H, 0, unit, before.h.0[n]);
                if K::HAS_CELL {
                    line.store(s, TAPE_C, 0, unit, before.c.0[n]);
                }
                for slot in 0..K::SAVED {
                    line.store(s, TAPE_SLOTS, slot, unit, saved[slot].0[n]);
                }
            }
        });
    }

    /// `value` times its mask, if there is one.
    #[inline(always)]
    fn masked<S: Simd<E>>(&self, s: S, value: S::V, r: usize, unit: usize) -> S::V {
        let width = S::LANES.min(self.strips.width() - unit);
        masked(s, value, self.mask, r * self.hidden + unit, width)
    }
}

/// `value` times its mask, if there is one.
#[inline(always)]
pub(in crate::layer) fn masked<E: Element, S: Simd<E>>(
    s: S,
    value: S::V,
    mask: Option<&[E]>,
    at: usize,
    width: usize,
) -> S::V {
    match mask {
        Some(mask) => value * s.load_partial(&mask[at..at + width]),
        None => value,
    }
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
