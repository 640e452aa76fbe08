//! What the steps of a share leave: the cell's equations, and every place where their results go.

use std::ops::Range;

use super::ForwardFields;
use crate::cell::{Cell, Forward, MAX_SLOTS, Slots, State};
use crate::gemm::strips::{Line, Strips};
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

/// Where rows of a step are found.
pub(super) trait Lines<E> {
    /// Row `r` in every table.
    fn line(&mut self, r: usize) -> Line<'_, E, 6, 0>;
}

/// Any row of the step.
impl<E: Element> Lines<E> for Strips<'_, E, 6, 0> {
    #[inline(always)]
    fn line(&mut self, r: usize) -> Line<'_, E, 6, 0> {
        Strips::line(self, r)
    }
}

/// The one row that is asked for, found before.
impl<E: Element> Lines<E> for Line<'_, E, 6, 0> {
    #[inline(always)]
    fn line(&mut self, _r: usize) -> Line<'_, E, 6, 0> {
        *self
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
            mask: Mask::new(mask, hidden, own, units),
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
            let places = [(r, unit), (r + 1, unit)];
            finish(
                s,
                cell,
                (&mut results.strips, results.mask),
                places,
                pre,
                next,
            );
            sums = sums.get(2 * row_len..).unwrap_or_default();
            r += 2;
        }
        if r < rows.end {
            let pre = [load_slots(s, C::SLOTS, sums)];
            finish(
                s,
                cell,
                (&mut results.strips, results.mask),
                [(r, unit)],
                pre,
                next,
            );
        }
    }
}

/// The cell's equations for N vectors of units, each of the row and unit that `places` says, and every
/// place where their results go. Where `lines` is a single line, all places are in its row.
#[inline(always)]
pub(super) fn finish<E: Element, K: Cell, S: Simd<E>, const N: usize>(
    s: S,
    cell: K,
    (lines, mask): (&mut impl Lines<E>, Mask<'_, E>),
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
        let line = lines.line(r);
        before.h.0[n] = line.load(s, STATE_H, 0, unit);
        if K::HAS_CELL {
            before.c.0[n] = line.load(s, STATE_C, 0, unit);
        }
    });
    let Forward { saved, state } = cell.forward(Grouped::<S, N>(s), slots, before);
    each!(n < N {
        let (r, unit) = places[n];
        let h = state.h.0[n];
        let mut line = lines.line(r);
        let masked = mask.apply(s, h, places[n], line.lanes::<S>(unit));
        next.store(s, r, 0, unit, masked);
        line.store(s, STATE_H, 0, unit, h);
        if K::HAS_CELL {
            line.store(s, STATE_C, 0, unit, state.c.0[n]);
        }
        if line.has(OUTPUT) {
            line.store(s, OUTPUT, 0, unit, h);
        }
        if line.has(TAPE_H) {
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

/// The first `slots` vectors.
#[inline(always)]
pub(super) fn load_slots<E: Element, S: Simd<E>>(s: S, slots: usize, from: &[E]) -> Slots<S::V> {
    let mut values = [s.splat(E::ZERO); MAX_SLOTS];
    for slot in 0..slots {
        values[slot] = s.load(&from[slot * S::LANES..]);
    }
    values
}
