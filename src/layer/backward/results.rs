//! What the steps back leave: the cell's equations in reverse, and every place where their results go.

use std::ops::Range;

use super::{BackwardFields, StepTables};
use crate::cell::{Backward, Cell, MAX_SLOTS, Saved, Slots, State};
use crate::gemm::strips::{Line, Strips};
use crate::gemm::view::{Block, Table};
use crate::layer::forward::{Mask, each};
use crate::math::flush;
use crate::shape::Schedule;
use crate::simd::{Element, Group, Grouped, Kernel, Simd};

/// What a step leaves, and what forward left: this share's units, columns counted from its first.
pub(super) struct Results<'s, E> {
    pub(super) strips: Strips<'s, E, 8, 4>,
    pub(super) mask: Mask<'s, E>,
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
            mask: Mask::new(mask, hidden, own, units),
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
            let mut row = results.row(r);
            let mut unit = 0;
            while unit + S::LANES < width {
                row.cell(s, cell, [unit, unit + S::LANES], &mut next);
                unit += 2 * S::LANES;
            }
            if unit < width {
                row.cell(s, cell, [unit], &mut next);
            }
        }
    }
}

impl<E: Element> Results<'_, E> {
    /// A row of the step.
    #[inline(always)]
    pub(super) fn row(&mut self, r: usize) -> RowBack<'_, E> {
        RowBack {
            line: self.strips.line(r),
            mask: self.mask,
            r,
        }
    }
}

/// A row of a step in every table, by value: so that it need not be found again after every store.
pub(super) struct RowBack<'s, E> {
    line: Line<'s, E, 8, 4>,
    mask: Mask<'s, E>,
    r: usize,
}

impl<E: Element> RowBack<'_, E> {
    /// [`Cell::backward`] for N vectors of units; the mirror of finishing a forward step.
    #[inline(always)]
    fn cell<C: Cell, S: Simd<E>, const N: usize>(
        &mut self,
        s: S,
        cell: C,
        units: [usize; N],
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
            let (line, unit) = (&mut self.line, units[n]);
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
            if line.has_read(DY) {
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
            let unit = units[n];
            self.leave::<C, S>(s, unit, slots, next);
            let line = &mut self.line;
            line.store(s, DH, 0, unit, back.h.0[n]);
            if C::HAS_CELL {
                line.store(s, DC, 0, unit, back.c.0[n]);
            }
            if line.has(SHOWN_H) {
                line.store(s, SHOWN_H, 0, unit, dh.0[n]);
            }
            if line.has(SHOWN_C) {
                line.store(s, SHOWN_C, 0, unit, dc.0[n]);
            }
            if line.has(OPERAND) {
                let operand = self.masked(s, before.h.0[n], unit);
                self.line.store(s, OPERAND, 0, unit, operand);
            }
        });
    }

    /// dpre of one vector of units, for the products and for the other workers.
    #[inline(always)]
    fn leave<C: Cell, S: Simd<E>>(
        &mut self,
        s: S,
        unit: usize,
        slots: Slots<S::V>,
        next: &mut Option<Block<'_, E>>,
    ) {
        for slot in 0..C::SLOTS {
            self.line.store(s, PRE, slot, unit, slots[slot]);
        }
        if let Some(next) = next {
            for slot in 0..C::SLOTS {
                next.store(s, self.r, slot, unit, slots[slot]);
            }
        }
    }

    /// dh += m * sum.
    #[inline(always)]
    pub(super) fn add_to_state<S: Simd<E>>(&mut self, s: S, unit: usize, sum: S::V) {
        let sum = self.masked(s, sum, unit);
        // Tiny gradients are carried as 0: denormals would slow every step from here on.
        let dh = flush(s, self.line.load(s, DH, 0, unit) + sum);
        self.line.store(s, DH, 0, unit, dh);
    }

    /// [`Cell::reset_backward`]: `product` is the gradient of r*m*h'.
    #[inline(always)]
    pub(super) fn reset<C: Cell, S: Simd<E>>(
        &mut self,
        s: S,
        cell: C,
        unit: usize,
        product: S::V,
        next: &mut Option<Block<'_, E>>,
    ) {
        let mut slots: Slots<S::V> = [s.splat(E::ZERO); MAX_SLOTS];
        let mut saved = slots;
        for slot in 0..C::SLOTS {
            slots[slot] = self.line.load(s, PRE, slot, unit);
            saved[slot] = self.line.read(s, SLOTS, slot, unit);
        }
        let h_before = self.line.read(s, H_BEFORE, 0, unit);
        let operand = self.masked(s, h_before, unit);
        let (slots, d_operand) = cell.reset_backward(s, slots, saved, operand, product);
        self.leave::<C, S>(s, unit, slots, next);
        let d_operand = self.masked(s, d_operand, unit);
        let dh = self.line.load(s, DH, 0, unit) + d_operand;
        self.line.store(s, DH, 0, unit, dh);
        // r*m*h', as the forward product saw it
        let operand = cell.reset_operand(s, saved, operand);
        self.line.store(s, RESET_OPERAND, 0, unit, operand);
    }

    /// `value` times its mask, if there is one.
    #[inline(always)]
    fn masked<S: Simd<E>>(&self, s: S, value: S::V, unit: usize) -> S::V {
        let width = self.line.lanes::<S>(unit);
        self.mask.apply(s, value, (self.r, unit), width)
    }
}
