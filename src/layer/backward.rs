//! The same rows as `forward.rs`, back over the same steps: its loops in reverse.
//!
//! ```text
//! 1. for t in steps                       last step first: each needs dL/dh of the one after
//!      for row                            h, c, saved = cell(sums, h', c')
//!        dh += dy_t;  dpre, dh, dc = cell backward(saved, dh, dc)
//! 2.   for panel in panels                sums += U (m*h')
//! 3.     for tile in rows
//!          dh += m * (dpre U)             one chain of sums per gate, then the gates in order
//! ```
//!
//! `dh` and `dc` hold each row's gradient of the state *between* steps. They begin with the gradient of
//! the final state, which a row that is shorter simply keeps until its own last step; and a row whose
//! first step is done keeps the gradient of its initial state. So no step needs to know who comes or goes.
//!
//! What has no recursion (dW, dU, db, dx) is left to `products.rs`, which reads the dpre of a chunk.
//!
//! One chain per gate, because a single row would otherwise have too few independent sums; for every
//! number of rows, because the bits must not depend on it.

use std::ops::Range;

use crate::cell::{Backward, Cell, MAX_SLOTS, Saved, Slots, Spec, State};
use crate::error::Result;
use crate::gemm::kernel::{Product, RowProduct, Rows, max_rows, multiply, multiply_row};
use crate::gemm::pack::Panels;
use crate::gemm::view::{Field, Table};
use crate::layer::config::{CellKind, with_cell};
use crate::layer::forward::{StateFields, masked, tiles};
use crate::layer::weights::{BackwardWeights, Lanes};
use crate::math::flush;
use crate::memory::{Buffer, product};
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::{Element, Kernel, Simd, Vector};

/// What forward left of each step; the mirror of `StepFields`.
#[derive(Clone, Copy)]
pub struct StepTables<'a, E> {
    /// [N, H]
    pub h_before: Table<'a, E>,
    /// [N, H]
    pub c_before: Option<Table<'a, E>>,
    /// [N, slots, H]
    pub slots: Option<Table<'a, E>>,
}

/// What backward leaves of each step, for the products and for the curious.
pub struct GradientFields<'a, E> {
    /// [chunk, slots, H] gradients of the pre-activations.
    pub pre: Field<'a, E>,
    /// [chunk, H] m*h', when there is a mask.
    pub operand: Option<Field<'a, E>>,
    /// [chunk, H] r*m*h', of a cell with its reset before the product.
    pub reset_operand: Option<Field<'a, E>>,
    /// [N, H] the whole dL/dh_t.
    pub h: Option<Field<'a, E>>,
    /// [N, H] the whole dL/dc_t.
    pub c: Option<Field<'a, E>>,
}

/// One worker's rows, back over a range of steps.
pub struct BackwardShare<'a, E> {
    /// The cell.
    pub cell: CellKind,
    /// What this driver knows of it.
    pub spec: Spec,
    /// The packed parameters.
    pub weights: &'a BackwardWeights<E>,
    /// H.
    pub hidden: usize,
    /// Which rows are there when.
    pub schedule: &'a Schedule,
    /// The steps to go back over.
    pub steps: Range<usize>,
    /// Forward went against time, so this goes with it.
    pub reverse: bool,
    /// This worker's rows.
    pub rows: Range<usize>,
    /// What forward left.
    pub tape: StepTables<'a, E>,
    /// [N, H] the gradient of y.
    pub dy: Option<Table<'a, E>>,
    /// [B, H] what multiplied h' inside the recurrent product.
    pub mask: Option<&'a [E]>,
    /// [B, H] the gradient of the state: after the last of `steps`, then before the first.
    pub state: StateFields<'a, E>,
    /// [B, H] h after the step at hand, for a cell whose backward reads it.
    pub output: Option<Field<'a, E>>,
    /// Where the results go.
    pub gradients: GradientFields<'a, E>,
    /// Memory for this worker.
    pub space: &'a mut BackwardSpace<E>,
    /// To be stopped.
    pub meter: Meter<'a>,
}

/// The memory that one share needs besides its results.
pub struct BackwardSpace<E> {
    /// [rows, panel width] dpre U, summed over the gates so far.
    sums: Buffer<E>,
    /// [rows, panel width] the next gate's, or of one row every gate's.
    chain: Buffer<E>,
}

impl<E: Element> BackwardSpace<E> {
    /// For `rows` rows.
    pub fn new(lanes: Lanes, rows: usize) -> Result<Self> {
        let what = "the workspace of a backward pass";
        let len = product(
            &[rows.max(MAX_SLOTS), lanes.column_vectors(), lanes.lanes],
            what,
        )?;
        Ok(Self {
            sums: Buffer::stale(len, what)?,
            chain: Buffer::stale(len, what)?,
        })
    }
}

impl<E: Element> Kernel<E> for BackwardShare<'_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) -> Result<()> {
        let (begin, count) = (self.steps.start, self.steps.len());
        for k in 0..count {
            let t = if self.reverse {
                begin + k
            } else {
                begin + count - 1 - k
            };
            let rows = self
                .schedule
                .active(t)
                .min(self.rows.end)
                .saturating_sub(self.rows.start);
            if rows > 0 {
                self.step(s, t, rows)?;
            }
        }
        Ok(())
    }
}

impl<E: Element> BackwardShare<'_, E> {
    /// The mirror of a forward step.
    #[inline(always)]
    fn step<S: Simd<E>>(&mut self, s: S, t: usize, rows: usize) -> Result<()> {
        let places = self.rows.start..self.rows.start + rows;
        with_cell!(self.cell, cell => s.enter(FinishBackward { cell, share: self, t, places: &places }));
        if let Some(candidate) = &self.weights.candidate {
            for panel in 0..candidate.count() {
                self.product(s, candidate, panel, t, &places, self.spec.candidate())?;
                with_cell!(self.cell, cell => s.enter(ResetGatesBackward { cell, share: self, panel, t, places: &places }));
            }
        }
        for panel in 0..self.weights.recurrent.count() {
            self.product(
                s,
                &self.weights.recurrent,
                panel,
                t,
                &places,
                self.spec.recurrent(),
            )?;
            self.add_to_state(s, panel, &places);
        }
        Ok(())
    }

    /// `space.sums` = dpre U for one panel of units: a chain of sums per slot, then the slots in order.
    #[inline(always)]
    fn product<S: Simd<E>>(
        &mut self,
        s: S,
        panels: &Panels<E>,
        panel: usize,
        t: usize,
        places: &Range<usize>,
        slots: Range<usize>,
    ) -> Result<()> {
        let (hidden, rows) = (self.hidden, places.len());
        let vectors = panels.vectors(panel);
        let width = vectors * S::LANES;
        let pre = &self.gradients.pre.rows(t, places.clone())[slots.start * hidden..];
        let weights = panels.from_panel(panel);
        let (sums, chain) = (&mut self.space.sums, &mut self.space.chain);
        if rows == 1 {
            multiply_row(
                s,
                RowProduct {
                    count: slots.len(),
                    vectors,
                    depth: hidden,
                    a: pre,
                    a_stride: hidden,
                    panels: weights,
                    panels_stride: hidden * width,
                    sums: chain,
                    sums_stride: width,
                    fresh: true,
                },
            );
            for at in (0..width).step_by(S::LANES) {
                let mut sum = s.load(&chain[at..]);
                for slot in 1..slots.len() {
                    sum = sum + s.load(&chain[slot * width + at..]);
                }
                sum.store(&mut sums[at..]);
            }
        } else {
            for slot in 0..slots.len() {
                let to = if slot == 0 { &mut *sums } else { &mut *chain };
                for tile in tiles(rows, max_rows(S::REGISTERS, vectors)) {
                    let a = &pre[tile.start * self.spec.slots * hidden + slot * hidden..];
                    multiply(
                        s,
                        Product {
                            rows: tile.len(),
                            vectors,
                            depth: hidden,
                            a: Rows {
                                values: a,
                                row_stride: self.spec.slots * hidden,
                                depth_stride: 1,
                            },
                            panel: &weights[slot * hidden * width..],
                            panel_stride: width as isize,
                            sums: &mut to[tile.start * width..],
                            sums_stride: width,
                            fresh: true,
                        },
                    );
                }
                if slot > 0 {
                    for at in (0..rows * width).step_by(S::LANES) {
                        (s.load(&sums[at..]) + s.load(&chain[at..])).store(&mut sums[at..]);
                    }
                }
            }
        }
        self.meter.spend(rows * slots.len() * hidden * width)
    }

    /// dh += m * sums.
    #[inline(always)]
    fn add_to_state<S: Simd<E>>(&mut self, s: S, panel: usize, places: &Range<usize>) {
        let (first, width) = self.columns::<S>(panel);
        let row_len = self.weights.recurrent.vectors(panel) * S::LANES;
        let mut dh = self.state.h.block(0, places.clone(), first, width);
        for r in 0..places.len() {
            for column in (0..width).step_by(S::LANES) {
                let sum = s.load(&self.space.sums[r * row_len + column..]);
                let at = (places.start + r) * self.hidden + first + column;
                let sum = masked(s, sum, self.mask, at, S::LANES.min(width - column));
                // Tiny gradients are carried as 0: denormals would slow every step from here on.
                dh.store(s, r, 0, column, flush(s, dh.load(s, r, 0, column) + sum));
            }
        }
    }

    /// The first column of a panel, and how many there are of H.
    #[inline(always)]
    fn columns<S: Simd<E>>(&self, panel: usize) -> (usize, usize) {
        let full = self.weights.recurrent.vectors(0) * S::LANES;
        let first = panel * full;
        (first, full.min(self.hidden - first))
    }
}

/// [`Cell::backward`] for every unit of some rows.
struct FinishBackward<'a, 'b, E, C> {
    cell: C,
    share: &'a mut BackwardShare<'b, E>,
    t: usize,
    places: &'a Range<usize>,
}

impl<E: Element, C: Cell> Kernel<E> for FinishBackward<'_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Self {
            cell,
            share,
            t,
            places,
        } = self;
        let BackwardShare {
            tape,
            dy,
            mask,
            state,
            output,
            gradients,
            hidden,
            ..
        } = share;
        let (hidden, mask) = (*hidden, *mask);
        let whole = || (places.clone(), 0, hidden);
        macro_rules! block {
            ($table:expr, $t:expr) => {{
                let (rows, column, width) = whole();
                $table.block($t, rows, column, width)
            }};
        }
        let h_before = block!(tape.h_before, t);
        let c_before = if C::HAS_CELL {
            tape.c_before.map(|c| block!(c, t))
        } else {
            None
        };
        let slots = if C::SAVED > 0 {
            tape.slots.map(|slots| block!(slots, t))
        } else {
            None
        };
        let dy = dy.map(|dy| block!(dy, t));
        let mut dh_state = block!(state.h, 0);
        let mut dc_state = if C::HAS_CELL {
            state.c.as_mut().map(|c| block!(c, 0))
        } else {
            None
        };
        let mut output = if C::READS_OUTPUT {
            output.as_mut().map(|output| block!(output, 0))
        } else {
            None
        };
        let mut pre = block!(gradients.pre, t);
        let mut operand = gradients.operand.as_mut().map(|field| block!(field, t));
        let mut dh_shown = gradients.h.as_mut().map(|field| block!(field, t));
        let mut dc_shown = gradients.c.as_mut().map(|field| block!(field, t));
        for r in 0..places.len() {
            for unit in (0..hidden).step_by(S::LANES) {
                let mut saved: Slots<S::V> = [s.splat(E::ZERO); MAX_SLOTS];
                if let Some(slots) = &slots {
                    for slot in 0..C::SAVED {
                        saved[slot] = slots.load(s, r, slot, unit);
                    }
                }
                let h = h_before.load(s, r, 0, unit);
                let c = c_before.as_ref().map_or(h, |c| c.load(s, r, 0, unit));
                let mut after = h;
                if let Some(output) = &mut output {
                    after = output.load(s, r, 0, unit);
                    // The step before this one leaves what this one began with.
                    output.store(s, r, 0, unit, h);
                }
                let mut dh = dh_state.load(s, r, 0, unit);
                if let Some(dy) = &dy {
                    dh = dh + dy.load(s, r, 0, unit);
                }
                let dc = dc_state.as_ref().map_or(dh, |dc| dc.load(s, r, 0, unit));
                let saved = Saved {
                    slots: saved,
                    before: State { h, c },
                    output: after,
                };
                let back: Backward<S::V> = cell.backward(s, saved, State { h: dh, c: dc });
                dh_state.store(s, r, 0, unit, back.before.h);
                if let Some(dc_state) = &mut dc_state {
                    dc_state.store(s, r, 0, unit, back.before.c);
                }
                for slot in 0..C::SLOTS {
                    pre.store(s, r, slot, unit, back.pre[slot]);
                }
                if let Some(operand) = &mut operand {
                    let width = S::LANES.min(hidden - unit);
                    operand.store(
                        s,
                        r,
                        0,
                        unit,
                        masked(s, h, mask, (places.start + r) * hidden + unit, width),
                    );
                }
                if let Some(shown) = &mut dh_shown {
                    shown.store(s, r, 0, unit, dh);
                }
                if let Some(shown) = &mut dc_shown {
                    shown.store(s, r, 0, unit, back.cell);
                }
            }
        }
    }
}

/// [`Cell::reset_backward`] for one panel of units: `space.sums` is the gradient of r*m*h'.
struct ResetGatesBackward<'a, 'b, E, C> {
    cell: C,
    share: &'a mut BackwardShare<'b, E>,
    panel: usize,
    t: usize,
    places: &'a Range<usize>,
}

impl<E: Element, C: Cell> Kernel<E> for ResetGatesBackward<'_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Self {
            cell,
            share,
            panel,
            t,
            places,
        } = self;
        let (first, width) = share.columns::<S>(panel);
        let row_len = share.weights.recurrent.vectors(panel) * S::LANES;
        let BackwardShare {
            tape,
            mask,
            state,
            gradients,
            space,
            hidden,
            ..
        } = share;
        let h_before = tape.h_before.block(t, places.clone(), first, width);
        let saved = tape
            .slots
            .map(|slots| slots.block(t, places.clone(), first, width));
        let mut dh = state.h.block(0, places.clone(), first, width);
        let mut pre = gradients.pre.block(t, places.clone(), first, width);
        let mut reset_operand = gradients
            .reset_operand
            .as_mut()
            .map(|field| field.block(t, places.clone(), first, width));
        for r in 0..places.len() {
            for column in (0..width).step_by(S::LANES) {
                let mut slots: Slots<S::V> = [s.splat(E::ZERO); MAX_SLOTS];
                let mut kept = slots;
                for slot in 0..C::SLOTS {
                    slots[slot] = pre.load(s, r, slot, column);
                    if let Some(saved) = &saved {
                        kept[slot] = saved.load(s, r, slot, column);
                    }
                }
                let at = (places.start + r) * *hidden + first + column;
                let vector = S::LANES.min(width - column);
                let operand = masked(s, h_before.load(s, r, 0, column), *mask, at, vector);
                let product = s.load(&space.sums[r * row_len + column..]);
                let (slots, d_operand) = cell.reset_backward(s, slots, kept, operand, product);
                for slot in 0..C::SLOTS {
                    pre.store(s, r, slot, column, slots[slot]);
                }
                let d_operand = masked(s, d_operand, *mask, at, vector);
                dh.store(s, r, 0, column, dh.load(s, r, 0, column) + d_operand);
                if let Some(field) = &mut reset_operand {
                    // r*m*h', as the forward product saw it
                    field.store(s, r, 0, column, cell.reset_operand(s, kept, operand));
                }
            }
        }
    }
}
