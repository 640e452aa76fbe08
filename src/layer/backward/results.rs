//! What the steps back leave: the cell's equations in reverse, and every place where their results go.

use std::ops::Range;

use super::{BackwardFields, StepTables};
use crate::cell::{Backward, Cell, MAX_SLOTS, Saved, Slots, State};
use crate::gemm::strips::Strips;
use crate::gemm::view::{Block, Table};
use crate::layer::forward::{each, masked};
use crate::math::flush;
use crate::shape::Schedule;
use crate::simd::{Element, Group, Grouped, Kernel, Simd};

/// What a step leaves, and what forward left: this share's units, columns counted from its first.
pub(super) struct Results<'s, E> {
    pub(super) strips: Strips<'s, E, 8, 4>,
    /// [rows, H] from the share's first row and unit on.
    pub(super) mask: Option<&'s [E]>,
    pub(super) hidden: usize,
}

/// The tables that are written: the gradient of the state, and what else each step leaves.
const DH: usize = 0;
const DC: usize = 1;
const OUTPUT: usize = 2;
pub(super) const PRE: usize = 3;
const OPERAND: usize = 4;
const RESET_OPERAND: usize = 5;
const SHOWN_H: usize = 6;
const SHOWN_C: usize = 7;
/// The tables that are read.
const H_BEFORE: usize = 0;
const C_BEFORE: usize = 1;
const SLOTS: usize = 2;
const DY: usize = 3;

impl<'s, E: Element> Results<'s, E> {
    #[inline(always)]
    pub(super) fn new<K: Cell>(
        schedule: &'s Schedule,
        own: &Range<usize>,
        units: &Range<usize>,
        fields: &'s mut BackwardFields<'_, E>,
        (tape, dy): (StepTables<'s, E>, Option<Table<'s, E>>),
        (mask, hidden): (Option<&'s [E]>, usize),
    ) -> Self {
        let BackwardFields {
            state,
            output,
            gradients,
        } = fields;
        let written = [
            Some((&mut state.h, 1)),
            state.c.as_mut().map(|c| (c, 1)),
            output.as_mut().map(|output| (output, 1)),
            Some((&mut gradients.pre, K::SLOTS)),
            gradients.operand.as_mut().map(|operand| (operand, 1)),
            gradients.reset_operand.as_mut().map(|operand| (operand, 1)),
            gradients.h.as_mut().map(|h| (h, 1)),
            gradients.c.as_mut().map(|c| (c, 1)),
        ];
        let read = [
            Some((tape.h_before, 1)),
            tape.c_before.map(|c| (c, 1)),
            tape.slots.map(|slots| (slots, K::SAVED)),
            dy.map(|dy| (dy, 1)),
        ];
        Self {
            strips: Strips::new(schedule, own.clone(), units.len(), written, read),
            mask: mask.map(|mask| &mask[own.start * hidden + units.start..]),
            hidden,
        }
    }
}

/// [`Cell::backward`] for every unit of every row of a step. A function of its own, which has all
/// registers to itself.
pub(super) struct CellsBack<'f, 's, 'n, E, C> {
    pub(super) cell: C,
    pub(super) results: &'f mut Results<'s, E>,
    pub(super) next: Option<Block<'n, E>>,
}

impl<E: Element, C: Cell> Kernel<E> for CellsBack<'_, '_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Self {
            cell,
            results,
            mut next,
        } = self;
        let (rows, width) = (results.strips.rows(), results.strips.width());
        for r in 0..rows {
            let mut unit = 0;
            while unit + S::LANES < width {
                results.back(s, cell, [(r, unit), (r, unit + S::LANES)], &mut next);
                unit += 2 * S::LANES;
            }
            if unit < width {
                results.back(s, cell, [(r, unit)], &mut next);
            }
        }
    }
}

impl<E: Element> Results<'_, E> {
    /// [`Cell::backward`] for N vectors of units, each of the row and unit that `places` says; the mirror
    /// of finishing a forward step.
    #[inline(always)]
    fn back<C: Cell, S: Simd<E>, const N: usize>(
        &mut self,
        s: S,
        cell: C,
        places: [(usize, usize); N],
        next: &mut Option<Block<'_, E>>,
    ) {
        let zero = Group([s.splat(E::ZERO); N]);
        let mut saved = Saved {
            slots: [zero; MAX_SLOTS],
            before: State { h: zero, c: zero },
            output: zero,
        };
        let (mut dh, mut dc) = (zero, zero);
        each!(n < N {
            let has_dy = self.strips.has_read(DY);
            let (r, unit) = places[n];
            let mut line = self.strips.line(r);
            for slot in 0..C::SAVED {
                saved.slots[slot].0[n] = line.read(s, SLOTS, slot, unit);
            }
            let h = line.read(s, H_BEFORE, 0, unit);
            saved.before.h.0[n] = h;
            if C::HAS_CELL {
                saved.before.c.0[n] = line.read(s, C_BEFORE, 0, unit);
                dc.0[n] = line.load(s, DC, 0, unit);
            }
            if C::READS_OUTPUT {
                saved.output.0[n] = line.load(s, OUTPUT, 0, unit);
                // The step before this one leaves what this one began with.
                line.store(s, OUTPUT, 0, unit, h);
            }
            dh.0[n] = line.load(s, DH, 0, unit);
            if has_dy {
                dh.0[n] = dh.0[n] + line.read(s, DY, 0, unit);
            }
        });
        let before = saved.before;
        let after = State { h: dh, c: dc };
        let Backward {
            pre,
            before: back,
            cell: dc,
        } = cell.backward(Grouped::<S, N>(s), saved, after);
        each!(n < N {
            let mut slots: Slots<S::V> = [s.splat(E::ZERO); MAX_SLOTS];
            for slot in 0..C::SLOTS {
                slots[slot] = pre[slot].0[n];
            }
            self.leave::<C, S>(s, places[n], slots, next);
            let has_operand = self.strips.has(OPERAND);
            let (shows_h, shows_c) = (self.strips.has(SHOWN_H), self.strips.has(SHOWN_C));
            let (r, unit) = places[n];
            let mut line = self.strips.line(r);
            line.store(s, DH, 0, unit, back.h.0[n]);
            if C::HAS_CELL {
                line.store(s, DC, 0, unit, back.c.0[n]);
            }
            if shows_h {
                line.store(s, SHOWN_H, 0, unit, dh.0[n]);
            }
            if shows_c {
                line.store(s, SHOWN_C, 0, unit, dc.0[n]);
            }
            if has_operand {
                let operand = self.masked(s, before.h.0[n], places[n]);
                self.strips.line(r).store(s, OPERAND, 0, unit, operand);
            }
        });
    }

    /// dpre of one vector of units, for the products and for the other workers.
    #[inline(always)]
    fn leave<C: Cell, S: Simd<E>>(
        &mut self,
        s: S,
        place: (usize, usize),
        slots: Slots<S::V>,
        next: &mut Option<Block<'_, E>>,
    ) {
        let mut line = self.strips.line(place.0);
        for slot in 0..C::SLOTS {
            line.store(s, PRE, slot, place.1, slots[slot]);
        }
        if let Some(next) = next {
            for slot in 0..C::SLOTS {
                next.store(s, place.0, slot, place.1, slots[slot]);
            }
        }
    }

    /// dh += m * sum.
    #[inline(always)]
    pub(super) fn add_to_state<S: Simd<E>>(&mut self, s: S, place: (usize, usize), sum: S::V) {
        let sum = self.masked(s, sum, place);
        let mut line = self.strips.line(place.0);
        // Tiny gradients are carried as 0: denormals would slow every step from here on.
        let dh = flush(s, line.load(s, DH, 0, place.1) + sum);
        line.store(s, DH, 0, place.1, dh);
    }

    /// [`Cell::reset_backward`]: `product` is the gradient of r*m*h'.
    #[inline(always)]
    pub(super) fn reset<C: Cell, S: Simd<E>>(
        &mut self,
        s: S,
        cell: C,
        place: (usize, usize),
        product: S::V,
        next: &mut Option<Block<'_, E>>,
    ) {
        let mut slots: Slots<S::V> = [s.splat(E::ZERO); MAX_SLOTS];
        let mut saved = slots;
        let (r, unit) = place;
        let line = self.strips.line(r);
        for slot in 0..C::SLOTS {
            slots[slot] = line.load(s, PRE, slot, unit);
            saved[slot] = line.read(s, SLOTS, slot, unit);
        }
        let h_before = line.read(s, H_BEFORE, 0, unit);
        let operand = self.masked(s, h_before, place);
        let (slots, d_operand) = cell.reset_backward(s, slots, saved, operand, product);
        self.leave::<C, S>(s, place, slots, next);
        let d_operand = self.masked(s, d_operand, place);
        let mut line = self.strips.line(r);
        let dh = line.load(s, DH, 0, unit) + d_operand;
        line.store(s, DH, 0, unit, dh);
        // r*m*h', as the forward product saw it
        let operand = cell.reset_operand(s, saved, operand);
        line.store(s, RESET_OPERAND, 0, unit, operand);
    }

    /// `value` times its mask, if there is one.
    #[inline(always)]
    fn masked<S: Simd<E>>(&self, s: S, value: S::V, (r, unit): (usize, usize)) -> S::V {
        let width = S::LANES.min(self.strips.width() - unit);
        masked(s, value, self.mask, r * self.hidden + unit, width)
    }
}
