//! The same rows and units as `forward.rs`, back over the same steps: its loops in reverse.
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
//! number of rows, because the bits must not depend on it. A single row reads U as the caller has it:
//! its rows are in the right order, and packing them would cost as much as a step.

use std::ops::Range;

use crate::cell::{Backward, Cell, MAX_SLOTS, Saved, Slots, State};
use crate::error::Result;
use crate::gemm::kernel::{Begin, Joint, Product, Rows, Term, max_rows, multiply};
use crate::gemm::pack::Panels;
use crate::gemm::relay::RelayEnd;
use crate::gemm::row::{GateProduct, multiply_row};
use crate::gemm::strips::Strips;
use crate::gemm::view::{Block, Field, Table};
use crate::layer::config::{CellKind, with_cell};
use crate::layer::forward::{StateFields, each, masked, tiles};
use crate::layer::weights::{BackwardWeights, Lanes};
use crate::math::flush;
use crate::memory::{Buffer, product};
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::{Element, Group, Grouped, Kernel, Simd};

/// Gates of a panel that are multiplied in one go should stay in L2 while rows pass over them.
const PANEL_BYTES: usize = 256 << 10;

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

impl<E: Element> StepTables<'_, E> {
    /// The same, columns counted from `unit`.
    pub fn beginning_at(self, unit: usize) -> Self {
        Self {
            h_before: self.h_before.from_column(unit),
            c_before: self.c_before.map(|c| c.from_column(unit)),
            slots: self.slots.map(|slots| slots.from_column(unit)),
        }
    }
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

/// Where the results of a share go: its own rows and units of every table.
pub struct BackwardFields<'a, E> {
    /// [B, H] the gradient of the state: after the last of the steps, then before the first.
    pub state: StateFields<'a, E>,
    /// [B, H] h after the step at hand, for a cell whose backward reads it.
    pub output: Option<Field<'a, E>>,
    /// Of every step.
    pub gradients: GradientFields<'a, E>,
}

/// One worker's rows and units, back over a range of steps.
pub struct BackwardShare<'a, E> {
    /// The cell.
    pub cell: CellKind,
    /// The parameters.
    pub weights: &'a BackwardWeights<'a, E>,
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
    /// This worker's units; they begin at a panel.
    pub units: Range<usize>,
    /// What forward left, from this worker's first unit on.
    pub tape: StepTables<'a, E>,
    /// [N, H] the gradient of y, from this worker's first unit on.
    pub dy: Option<Table<'a, E>>,
    /// [B, H] what multiplied h' inside the recurrent product.
    pub mask: Option<&'a [E]>,
    /// Where the results go.
    pub fields: BackwardFields<'a, E>,
    /// [rows, slots, H] dpre of a step, where several workers share its units.
    pub relay: Option<RelayEnd<'a, E>>,
    /// Memory for this worker.
    pub space: &'a mut BackwardSpace<E>,
    /// To be stopped.
    pub meter: Meter<'a>,
}

/// The memory that one worker needs besides its results.
pub struct BackwardSpace<E> {
    /// [rows, panel width] dpre U, summed over the gates so far; [gates, H] of one row.
    sums: Buffer<E>,
}

impl<E: Element> BackwardSpace<E> {
    /// For `rows` rows of `hidden` units.
    pub fn new(lanes: Lanes, rows: usize, hidden: usize) -> Result<Self> {
        let what = "the workspace of a backward pass";
        let tile = product(&[rows, lanes.column_vectors(), lanes.lanes], what)?;
        let row = product(&[MAX_SLOTS, hidden.next_multiple_of(lanes.lanes)], what)?;
        Ok(Self {
            sums: Buffer::stale(tile.max(row), what)?,
        })
    }
}

impl<E: Element> Kernel<E> for &mut BackwardShare<'_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        with_cell!(self.cell, cell => s.enter(Walk { cell, share: self }))
    }
}

/// A share on its way back, with the cell as a type.
struct Walk<'w, 'a, E, C> {
    cell: C,
    share: &'w mut BackwardShare<'a, E>,
}

impl<E: Element, C: Cell> Kernel<E> for Walk<'_, '_, E, C> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        let Self { cell, share } = self;
        let (schedule, own) = (share.schedule, share.rows.clone());
        let mut step = Step {
            cell,
            weights: share.weights,
            units: share.units.clone(),
            sums: &mut share.space.sums,
            results: Results::new::<C>(
                schedule,
                &own,
                &share.units,
                &mut share.fields,
                (share.tape, share.dy),
                (share.mask, share.hidden),
            ),
            relay: &mut share.relay,
            meter: &share.meter,
        };
        let (begin, count, reverse) = (share.steps.start, share.steps.len(), share.reverse);
        for k in 0..count {
            let t = if reverse {
                begin + k
            } else {
                begin + count - 1 - k
            };
            let rows = schedule.active(t).min(own.end).saturating_sub(own.start);
            if rows > 0 {
                step.results.strips.seek(t, rows);
                step.run(s)?;
            }
        }
        Ok(())
    }
}

/// Everything that the steps of a share read and write.
struct Step<'s, 'r, E, C> {
    cell: C,
    weights: &'s BackwardWeights<'s, E>,
    units: Range<usize>,
    sums: &'s mut [E],
    results: Results<'s, E>,
    relay: &'s mut Option<RelayEnd<'r, E>>,
    meter: &'s Meter<'s>,
}

/// What a step leaves, and what forward left: this share's units, columns counted from its first.
struct Results<'s, E> {
    strips: Strips<'s, E, 8, 4>,
    /// [rows, H] from the share's first row and unit on.
    mask: Option<&'s [E]>,
    hidden: usize,
}

/// The tables that are written: the gradient of the state, and what else each step leaves.
const DH: usize = 0;
const DC: usize = 1;
const OUTPUT: usize = 2;
const PRE: usize = 3;
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
    fn new<K: Cell>(
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

impl<E: Element, C: Cell> Step<'_, '_, E, C> {
    /// The mirror of a forward step.
    #[inline(always)]
    fn run<S: Simd<E>>(&mut self, s: S) -> Result<()> {
        self.cells(s);
        self.turn()?;
        if !C::CANDIDATE.is_empty() {
            self.stage(s, C::CANDIDATE)?;
            self.turn()?;
        }
        self.stage(s, C::RECURRENT)
    }

    /// dpre is complete once every worker of these rows has been here.
    #[inline(always)]
    fn turn(&mut self) -> Result<()> {
        match self.relay {
            Some(relay) => relay.turn(),
            None => Ok(()),
        }
    }

    /// [`Cell::backward`] for every unit of every row.
    #[inline(always)]
    fn cells<S: Simd<E>>(&mut self, s: S) {
        let rows = self.results.strips.rows();
        let next = self.relay.as_mut().map(|relay| relay.sides(rows).1);
        let (cell, results) = (self.cell, &mut self.results);
        s.enter(CellsBack {
            cell,
            results,
            next,
        });
    }

    /// Back through the recurrent product of `slots`, for this worker's units.
    #[inline(always)]
    fn stage<S: Simd<E>>(&mut self, s: S, slots: Range<usize>) -> Result<()> {
        let (rows, width) = (self.results.strips.rows(), self.units.len());
        let work = slots.len() * self.results.hidden;
        if rows == 1 {
            self.row(s, slots);
            return self.meter.spend(work * width);
        }
        let panels = self.weights.panels(slots == C::CANDIDATE);
        let per_panel = panels.row_len(0);
        assert!(self.units.start.is_multiple_of(per_panel));
        for panel in self.units.start / per_panel..self.units.end.div_ceil(per_panel) {
            self.panel(s, (panels, panel), slots.clone());
            self.meter.spend(rows * work * panels.row_len(panel))?;
        }
        Ok(())
    }

    /// One panel of units: dpre U of some gates at a time, so that their weights stay in L2; then its
    /// sums go where they belong.
    #[inline(always)]
    fn panel<S: Simd<E>>(
        &mut self,
        s: S,
        (panels, panel): (&Panels<E>, usize),
        slots: Range<usize>,
    ) {
        let (hidden, rows) = (self.results.hidden, self.results.strips.rows());
        let width = panels.row_len(panel);
        let (vectors, gate_len) = (width / S::LANES, hidden * width);
        let first = panel * panels.row_len(0) - self.units.start;
        let weights = panels.from_panel(panel);
        let stride = C::SLOTS * hidden;
        let at_once = (PANEL_BYTES / (gate_len * size_of::<E>())).clamp(1, slots.len());
        let mut done = 0;
        while done < slots.len() {
            let gates = done..(done + at_once).min(slots.len());
            for tile in tiles(rows, max_rows(S::REGISTERS, vectors)) {
                let pre = match self.relay {
                    Some(relay) => relay.sides(rows).0,
                    None => self.results.strips.whole_rows(PRE),
                };
                let pre = &pre[tile.start * stride + slots.start * hidden..];
                let mut terms = [Term {
                    joint: Joint::Add,
                    depth: hidden,
                    a: Rows {
                        values: pre,
                        row_stride: stride,
                        depth_stride: 1,
                    },
                    panel: weights,
                    panel_stride: width as isize,
                }; MAX_SLOTS];
                for k in 0..gates.len() {
                    let gate = gates.start + k;
                    let term = &mut terms[k];
                    term.a.values = &pre[gate * hidden..];
                    term.panel = &weights[gate * gate_len..];
                    if gate > 0 {
                        term.joint = Joint::Chain;
                    }
                }
                multiply(
                    s,
                    Product {
                        rows: tile.len(),
                        vectors,
                        begin: match gates.start {
                            0 => Begin::Zero,
                            _ => Begin::Sums,
                        },
                        terms: &terms[..gates.len()],
                        sums: &mut self.sums[tile.start * width..],
                        sums_stride: width,
                    },
                );
                if gates.end == slots.len() {
                    self.arrive(s, slots == C::CANDIDATE, tile, (first, width));
                }
            }
            done = gates.end;
        }
    }

    /// One row: U as the caller has it.
    #[inline(always)]
    fn row<S: Simd<E>>(&mut self, s: S, slots: Range<usize>) {
        let (hidden, units) = (self.results.hidden, self.units.clone());
        let pre = match self.relay {
            Some(relay) => relay.sides(1).0,
            None => self.results.strips.whole_rows(PRE),
        };
        // The gates of neighbouring slots are neighbours.
        let first = C::gate(slots.start) * hidden * hidden;
        multiply_row(
            s,
            GateProduct {
                gates: slots.len(),
                depth: hidden,
                a: &pre[slots.start * hidden..],
                matrix: &self.weights.weight_hh[first + units.start..],
                stride: hidden,
                columns: units.len(),
                sums: self.sums,
            },
        );
        self.arrive(s, slots == C::CANDIDATE, 0..1, (0, units.len()));
    }

    /// What `sums` holds of some rows, `width` columns from unit `first` on, goes where it belongs: into
    /// the gradient of the state, or back through r*m*h'.
    #[inline(always)]
    fn arrive<S: Simd<E>>(
        &mut self,
        s: S,
        candidate: bool,
        rows: Range<usize>,
        (first, width): (usize, usize),
    ) {
        let columns = width.min(self.units.len() - first);
        let all = self.results.strips.rows();
        let mut next = match self.relay {
            Some(relay) if candidate => Some(relay.sides(all).1),
            _ => None,
        };
        for r in rows {
            for column in (0..columns).step_by(S::LANES) {
                let sum = s.load(&self.sums[r * width + column..]);
                let place = (r, first + column);
                if candidate {
                    self.results.reset(s, self.cell, place, sum, &mut next);
                } else {
                    self.results.add_to_state(s, place, sum);
                }
            }
        }
    }
}

/// [`Cell::backward`] for every unit of every row of a step. A function of its own, which has all
/// registers to itself.
struct CellsBack<'f, 's, 'n, E, C> {
    cell: C,
    results: &'f mut Results<'s, E>,
    next: Option<Block<'n, E>>,
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
    fn add_to_state<S: Simd<E>>(&mut self, s: S, place: (usize, usize), sum: S::V) {
        let sum = self.masked(s, sum, place);
        let mut line = self.strips.line(place.0);
        // Tiny gradients are carried as 0: denormals would slow every step from here on.
        let dh = flush(s, line.load(s, DH, 0, place.1) + sum);
        line.store(s, DH, 0, place.1, dh);
    }

    /// [`Cell::reset_backward`]: `product` is the gradient of r*m*h'.
    #[inline(always)]
    fn reset<C: Cell, S: Simd<E>>(
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
