//! Some rows of one direction, forward over a range of steps.
//!
//! ```text
//! 1. for t in steps                       in order: each needs the last one's h
//! 2.   for panel in panels                units; any order
//! 3.     for tile in rows                 rows; any order
//!          sums  = bias
//!          sums += W x_t                  or, with few rows, what was computed for many steps at once
//!          sums += U (m*h')
//!          h, c, saved = cell(sums, h', c')
//! ```
//!
//! Loop 2 is outside loop 3, so that a panel is read into the nearest cache once a step. A cell with its
//! reset before the product goes through 2 and 3 twice, all units' gates first.
//!
//! With few rows `W x` is computed for a chunk of steps at once: a tile of many rows where a step has
//! few. The sums go to memory and back in between, which is exact, so the bits are the same.

use std::ops::Range;

use crate::cell::{Cell, Forward, MAX_SLOTS, Slots, Spec, State};
use crate::error::Result;
use crate::gemm::kernel::{
    MAX_ROWS, Product, RowProduct, Rows, max_rows, multiply, multiply_row, panels_at_once,
};
use crate::gemm::pack::Panels;
use crate::gemm::view::Field;
use crate::layer::config::{CellKind, with_cell};
use crate::layer::weights::{ForwardWeights, Lanes, blocks_per_panel};
use crate::memory::{Buffer, product};
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::{Element, Kernel, Simd, Vector};

/// Fewer rows than this take `W x` for a chunk of steps at once. A guess between 1 row (where it wins
/// 20 %) and 16 (where it loses up to 20 %).
const MERGE_BELOW: usize = 8;
/// Values of `W x` held for a chunk: they should stay in L2.
const CHUNK_VALUES: usize = 1 << 16;
/// Rows of a chunk at most.
const CHUNK_ROWS: usize = 128;

/// h and c of the rows of a share, [B, H]: before the first step, then after the last.
pub struct StateFields<'a, E> {
    /// h.
    pub h: Field<'a, E>,
    /// c, for a cell that has one.
    pub c: Option<Field<'a, E>>,
}

/// What backward will read of each step.
pub struct StepFields<'a, E> {
    /// [N, H] h before the step.
    pub h_before: Field<'a, E>,
    /// [N, H] c before the step.
    pub c_before: Option<Field<'a, E>>,
    /// [N, slots, H] the cell's slots.
    pub slots: Option<Field<'a, E>>,
}

/// One worker's rows over a range of steps.
pub struct ForwardShare<'a, E> {
    /// The cell.
    pub cell: CellKind,
    /// What this driver knows of it.
    pub spec: Spec,
    /// The packed parameters.
    pub weights: &'a ForwardWeights<E>,
    /// H.
    pub hidden: usize,
    /// I of this layer.
    pub features: usize,
    /// Which rows are there when.
    pub schedule: &'a Schedule,
    /// The steps to take; from the last to the first when `reverse`.
    pub steps: Range<usize>,
    /// Against time.
    pub reverse: bool,
    /// This worker's rows.
    pub rows: Range<usize>,
    /// [N, I] packed input.
    pub input: &'a [E],
    /// [B, H] what multiplies h' inside the recurrent product.
    pub mask: Option<&'a [E]>,
    /// [B, H]
    pub state: StateFields<'a, E>,
    /// [N, H] h after each step, for whoever reads it.
    pub y: Option<Field<'a, E>>,
    /// What backward will read.
    pub tape: Option<StepFields<'a, E>>,
    /// Memory for this worker.
    pub space: &'a mut Workspace<E>,
    /// To be stopped.
    pub meter: Meter<'a>,
}

/// The memory that one share needs besides its results.
pub struct Workspace<E> {
    /// [2][rows, H] m*h' of this step, and of the next.
    operand: [Buffer<E>; 2],
    /// [rows, H] r*m*h' of this step.
    reset_operand: Buffer<E>,
    /// [rows, panels, slots, lanes] the slots between the stages.
    pending: Buffer<E>,
    /// [tile rows, slots, lanes] sums.
    sums: Buffer<E>,
    /// [panels, chunk rows, slots of x, lanes] W x of a chunk of steps.
    chunk: Buffer<E>,
    /// [chunk rows, I] x of a chunk of steps.
    chunk_input: Buffer<E>,
}

impl<E: Element> Workspace<E> {
    /// For `rows` rows of a cell like `spec` with `hidden` units and `features` inputs, over `steps` steps.
    pub fn new(
        spec: &Spec,
        lanes: Lanes,
        rows: usize,
        steps: usize,
        (hidden, features): (usize, usize),
    ) -> Result<Self> {
        let what = "the workspace of a forward pass";
        let units = hidden.next_multiple_of(lanes.lanes * blocks_per_panel(spec, lanes.registers));
        let state = product(&[rows, hidden], what)?;
        let slots = product(&[rows, units, MAX_SLOTS], what)?;
        let stages = usize::from(spec.has_reset_stage());
        let chunk = chunk_rows(spec, rows, steps, units);
        Ok(Self {
            operand: [Buffer::stale(state, what)?, Buffer::stale(state, what)?],
            reset_operand: Buffer::stale(stages * state, what)?,
            pending: Buffer::stale(stages * slots, what)?,
            sums: Buffer::stale(MAX_ROWS * MAX_SLOTS * lanes.lanes, what)?,
            chunk: Buffer::stale(product(&[chunk, units, spec.input], what)?, what)?,
            chunk_input: Buffer::stale(product(&[chunk, features], what)?, what)?,
        })
    }
}

/// How many rows of `W x` to compute at once; 0 to compute it step by step.
fn chunk_rows(spec: &Spec, rows: usize, steps: usize, units: usize) -> usize {
    if rows >= MERGE_BELOW || steps <= 1 {
        return 0;
    }
    let fitting = (CHUNK_VALUES / (units * spec.input)).clamp(2 * MERGE_BELOW, CHUNK_ROWS);
    fitting.min(rows * steps).next_multiple_of(rows)
}

/// What is the same for every tile of a share.
#[derive(Clone, Copy)]
struct Tiling {
    /// Rows of a tile at most.
    rows: usize,
    /// Blocks of units in a full panel.
    blocks: usize,
    /// Panels, and blocks of units in the last one.
    panels: usize,
    last_blocks: usize,
    /// Panels that a single row takes at once.
    at_once: usize,
}

impl Tiling {
    fn of(spec: &Spec, registers: usize, lanes: usize, hidden: usize) -> Self {
        let blocks = blocks_per_panel(spec, registers);
        let widest = spec.widest_product() * blocks;
        let all = hidden.div_ceil(lanes);
        let panels = all.div_ceil(blocks);
        Self {
            rows: max_rows(registers, widest),
            blocks,
            panels,
            last_blocks: all - (panels - 1) * blocks,
            at_once: panels_at_once(widest),
        }
    }

    /// The panels that a tile beginning at `panel` takes: one, or for a single row several of one width.
    #[inline(always)]
    fn group(&self, panel: usize, rows: usize) -> (Range<usize>, usize) {
        if panel + 1 == self.panels {
            return (panel..self.panels, self.last_blocks);
        }
        let full = if self.last_blocks == self.blocks {
            self.panels
        } else {
            self.panels - 1
        };
        let end = if rows == 1 {
            (panel + self.at_once).min(full)
        } else {
            panel + 1
        };
        (panel..end, self.blocks)
    }
}

/// One step of one share: which step, how many rows, and where its `W x` lies if it was computed ahead.
#[derive(Clone, Copy)]
struct Step {
    t: usize,
    rows: usize,
    /// The step's first row in the chunk, and the rows of a chunk.
    ahead: Option<(usize, usize)>,
}

/// A few rows of a few panels: one panel, or several for a single row.
#[derive(Clone)]
struct Tile {
    rows: Range<usize>,
    panels: Range<usize>,
    /// Blocks of units in each of the panels.
    blocks: usize,
}

impl<E: Element> Kernel<E> for ForwardShare<'_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) -> Result<()> {
        let tiling = Tiling::of(&self.spec, S::REGISTERS, S::LANES, self.hidden);
        self.load_operand(s);
        let units = self.hidden.next_multiple_of(S::LANES * tiling.blocks);
        let capacity = chunk_rows(&self.spec, self.rows.len(), self.schedule.steps(), units);
        let (begin, count, reverse) = (self.steps.start, self.steps.len(), self.reverse);
        let in_order = move |k: usize| {
            if reverse {
                begin + count - 1 - k
            } else {
                begin + k
            }
        };
        let mut done = 0;
        while done < count {
            let chunk = if capacity == 0 {
                1
            } else {
                (capacity / self.rows.len()).min(count - done)
            };
            let steps = (done..done + chunk).map(in_order);
            if capacity > 0 {
                self.input_ahead(s, tiling, steps.clone())?;
            }
            let (mut first, total) = (0, steps.clone().map(|t| self.active(t)).sum());
            for t in steps {
                let rows = self.active(t);
                let ahead = (capacity > 0).then_some((first, total));
                self.step(s, tiling, Step { t, rows, ahead })?;
                first += rows;
            }
            done += chunk;
        }
        Ok(())
    }
}

impl<E: Element> ForwardShare<'_, E> {
    /// How many of this share's rows are there at step `t`.
    fn active(&self, t: usize) -> usize {
        self.schedule
            .active(t)
            .min(self.rows.end)
            .saturating_sub(self.rows.start)
    }

    /// The operand of the recurrent product before the first step, for rows that enter later too.
    #[inline(always)]
    fn load_operand<S: Simd<E>>(&mut self, s: S) {
        let rows = self.rows.clone();
        for unit in (0..self.hidden).step_by(S::LANES) {
            let width = S::LANES.min(self.hidden - unit);
            let h = self.state.h.block(0, rows.clone(), unit, width);
            for r in 0..rows.len() {
                let value = masked(
                    s,
                    h.load(s, r, 0, 0),
                    self.mask,
                    (rows.start + r) * self.hidden + unit,
                    width,
                );
                let at = r * self.hidden + unit;
                for operand in &mut self.space.operand {
                    value.store_partial(&mut operand[at..at + width]);
                }
            }
        }
    }

    /// W x + bias of all rows of some steps, in this order.
    #[inline(always)]
    fn input_ahead<S: Simd<E>>(
        &mut self,
        s: S,
        tiling: Tiling,
        steps: impl Iterator<Item = usize> + Clone,
    ) -> Result<()> {
        let features = self.features;
        let mut total = 0;
        for t in steps {
            let rows = self.active(t);
            if rows == 0 {
                // All of this share's rows have ended, and lie beyond the step's.
                continue;
            }
            let first = (self.schedule.rows(t).start + self.rows.start) * features;
            let to = &mut self.space.chunk_input[total * features..(total + rows) * features];
            to.copy_from_slice(&self.input[first..first + rows * features]);
            total += rows;
        }
        let (input, lanes) = (&self.weights.input, S::LANES);
        let mut before = 0;
        for panel in 0..input.count() {
            let vectors = input.vectors(panel);
            let (width, blocks) = (vectors * lanes, vectors / self.spec.input);
            let sums = &mut self.space.chunk[before..before + total * width];
            before += total * width;
            for tile in tiles(total, max_rows(S::REGISTERS, vectors)) {
                let sums = &mut sums[tile.start * width..];
                for r in 0..tile.len() {
                    for b in 0..blocks {
                        let bias = (panel * tiling.blocks + b) * self.spec.slots * lanes;
                        let to = (r * blocks + b) * self.spec.input * lanes;
                        let len = self.spec.input * lanes;
                        sums[to..to + len].copy_from_slice(&self.weights.bias[bias..bias + len]);
                    }
                }
                let a = Rows {
                    values: &self.space.chunk_input[tile.start * features..],
                    row_stride: features,
                    depth_stride: 1,
                };
                multiply(
                    s,
                    Product {
                        rows: tile.len(),
                        vectors,
                        depth: features,
                        a,
                        panel: input.from_panel(panel),
                        panel_stride: width as isize,
                        sums,
                        sums_stride: width,
                        fresh: false,
                    },
                );
            }
            self.meter.spend(total * features * width)?;
        }
        Ok(())
    }

    /// One step of all rows that are there.
    #[inline(always)]
    fn step<S: Simd<E>>(&mut self, s: S, tiling: Tiling, step: Step) -> Result<()> {
        let work = self.features + self.hidden;
        let mut panel = 0;
        while panel < tiling.panels {
            let (panels, blocks) = tiling.group(panel, step.rows);
            panel = panels.end;
            for rows in tiles(step.rows, tiling.rows) {
                let tile = Tile {
                    rows,
                    panels: panels.clone(),
                    blocks,
                };
                self.begin_sums(s, tiling, step, &tile);
                if step.ahead.is_none() {
                    self.add_input(s, step, &tile);
                }
                self.add_recurrent(s, &tile);
                if self.spec.has_reset_stage() {
                    self.reset_gates(s, &tile);
                } else {
                    self.finish(s, tiling, step, &tile);
                }
            }
            self.meter
                .spend(step.rows * panels.len() * blocks * self.spec.slots * S::LANES * work)?;
        }
        if let Some(candidate) = &self.weights.candidate {
            panel = 0;
            while panel < tiling.panels {
                let (panels, blocks) = tiling.group(panel, step.rows);
                panel = panels.end;
                for rows in tiles(step.rows, tiling.rows) {
                    let tile = Tile {
                        rows,
                        panels: panels.clone(),
                        blocks,
                    };
                    self.resume_sums(s, &tile);
                    self.add_candidate(s, candidate, &tile);
                    self.finish(s, tiling, step, &tile);
                }
                self.meter
                    .spend(step.rows * panels.len() * S::LANES * self.hidden)?;
            }
        }
        self.space.operand.swap(0, 1);
        Ok(())
    }

    /// Sums begin with the bias, or with the `W x + bias` that was computed ahead.
    #[inline(always)]
    fn begin_sums<S: Simd<E>>(&mut self, s: S, tiling: Tiling, step: Step, tile: &Tile) {
        let (slots, input, rows) = (self.spec.slots, self.spec.input, tile.rows.len());
        let len = tile.blocks * slots * S::LANES;
        for (q, panel) in tile.panels.clone().enumerate() {
            let bias = panel * tiling.blocks * slots * S::LANES;
            let bias = &self.weights.bias[bias..bias + len];
            for r in 0..rows {
                let sums = &mut self.space.sums[(q * rows + r) * len..][..len];
                for at in (0..len).step_by(S::LANES) {
                    s.load(&bias[at..]).store(&mut sums[at..]);
                }
                if let Some((first, total)) = step.ahead {
                    let row = first + tile.rows.start + r;
                    let before = panel * total * tiling.blocks + row * tile.blocks;
                    for b in 0..tile.blocks {
                        let from = &self.space.chunk[(before + b) * input * S::LANES..];
                        for slot in 0..input {
                            let to = &mut sums[(b * slots + slot) * S::LANES..];
                            s.load(&from[slot * S::LANES..]).store(to);
                        }
                    }
                }
            }
        }
    }

    /// sums += W x_t.
    #[inline(always)]
    fn add_input<S: Simd<E>>(&mut self, s: S, step: Step, tile: &Tile) {
        let first = self.schedule.rows(step.t).start + self.rows.start + tile.rows.start;
        let a = Rows {
            values: &self.input[first * self.features..],
            row_stride: self.features,
            depth_stride: 1,
        };
        let row_len = tile.blocks * self.spec.slots * S::LANES;
        add_product(
            s,
            &self.weights.input,
            a,
            tile,
            &mut self.space.sums,
            row_len,
        );
    }

    /// sums += U (m*h').
    #[inline(always)]
    fn add_recurrent<S: Simd<E>>(&mut self, s: S, tile: &Tile) {
        let row_len = tile.blocks * self.spec.slots * S::LANES;
        let a = operand_rows(&self.space.operand[0], tile.rows.start, self.hidden);
        let sums = &mut self.space.sums[self.spec.recurrent.0 * S::LANES..];
        add_product(s, &self.weights.recurrent, a, tile, sums, row_len);
    }

    /// sums += U (r*m*h'), for the candidate.
    #[inline(always)]
    fn add_candidate<S: Simd<E>>(&mut self, s: S, panels: &Panels<E>, tile: &Tile) {
        let a = operand_rows(&self.space.reset_operand, tile.rows.start, self.hidden);
        let sums = &mut self.space.sums[self.spec.candidate.0 * S::LANES..];
        add_product(s, panels, a, tile, sums, self.spec.slots * S::LANES);
    }

    /// Between the stages: gates are activated and wait; r*m*h' is complete once every tile was here.
    #[inline(always)]
    fn reset_gates<S: Simd<E>>(&mut self, s: S, tile: &Tile) {
        with_cell!(self.cell, cell => s.enter(ResetGates { cell, share: self, tile }));
    }

    /// The sums of the second stage begin where the first left them.
    #[inline(always)]
    fn resume_sums<S: Simd<E>>(&mut self, s: S, tile: &Tile) {
        let rows = tile.rows.len();
        for (q, panel) in tile.panels.clone().enumerate() {
            for r in 0..rows {
                let row = (tile.rows.start + r) * self.weights.recurrent.count() + panel;
                let slots = load_slots(s, self.spec.slots, &self.space.pending, row);
                store_slots(
                    s,
                    self.spec.slots,
                    slots,
                    &mut self.space.sums,
                    q * rows + r,
                );
            }
        }
    }

    /// The cell's equations, and every place where their results go.
    #[inline(always)]
    fn finish<S: Simd<E>>(&mut self, s: S, tiling: Tiling, step: Step, tile: &Tile) {
        with_cell!(self.cell, cell => s.enter(Finish { cell, share: self, tiling, step, tile }));
    }
}

/// [`Cell::reset`] for a tile.
struct ResetGates<'a, 'b, E, C> {
    cell: C,
    share: &'a mut ForwardShare<'b, E>,
    tile: &'a Tile,
}

impl<E: Element, C: Cell> Kernel<E> for ResetGates<'_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) {
        let Self { cell, share, tile } = self;
        let (rows, hidden) = (tile.rows.len(), share.hidden);
        let panels = share.weights.recurrent.count();
        let space = &mut *share.space;
        for (q, panel) in tile.panels.clone().enumerate() {
            // A cell with two stages has one block of units in a panel.
            let unit = panel * S::LANES;
            let width = S::LANES.min(hidden - unit);
            for r in 0..rows {
                let pre = load_slots(s, C::SLOTS, &space.sums, q * rows + r);
                let at = (tile.rows.start + r) * hidden + unit;
                let operand = s.load_partial(&space.operand[0][at..at + width]);
                let (slots, product) = cell.reset(s, pre, operand);
                product.store_partial(&mut space.reset_operand[at..at + width]);
                let row = (tile.rows.start + r) * panels + panel;
                store_slots(s, C::SLOTS, slots, &mut space.pending, row);
            }
        }
    }
}

/// [`Cell::forward`] for a tile.
struct Finish<'a, 'b, E, C> {
    cell: C,
    share: &'a mut ForwardShare<'b, E>,
    tiling: Tiling,
    step: Step,
    tile: &'a Tile,
}

impl<E: Element, C: Cell> Kernel<E> for Finish<'_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<E>>(mut self, s: S) {
        let blocks = self.tile.blocks;
        for (q, panel) in self.tile.panels.clone().enumerate() {
            for b in 0..blocks {
                let unit = (panel * self.tiling.blocks + b) * S::LANES;
                let first = (q * self.tile.rows.len() * blocks + b) * C::SLOTS;
                self.block(s, unit, (first, blocks * C::SLOTS));
            }
        }
    }
}

impl<E: Element, C: Cell> Finish<'_, '_, E, C> {
    /// One vector of units of the rows of a tile. `sums` says where the first row's sums are, and how
    /// far apart rows are, in vectors.
    #[inline(always)]
    fn block<S: Simd<E>>(&mut self, s: S, unit: usize, sums: (usize, usize)) {
        let (cell, step, rows) = (self.cell, self.step, &self.tile.rows);
        let ForwardShare {
            state,
            y,
            tape,
            mask,
            space,
            hidden,
            rows: own,
            ..
        } = &mut *self.share;
        let (hidden, mask) = (*hidden, *mask);
        let width = S::LANES.min(hidden - unit);
        let places = own.start + rows.start..own.start + rows.end;
        let mut h_state = state.h.block(0, places.clone(), unit, width);
        let mut c_state = if C::HAS_CELL {
            state
                .c
                .as_mut()
                .map(|c| c.block(0, places.clone(), unit, width))
        } else {
            None
        };
        let mut y = y
            .as_mut()
            .map(|y| y.block(step.t, places.clone(), unit, width));
        let mut tape = tape.as_mut().map(|tape| {
            let h_before = tape.h_before.block(step.t, places.clone(), unit, width);
            let c_before = if C::HAS_CELL {
                tape.c_before
                    .as_mut()
                    .map(|c| c.block(step.t, places.clone(), unit, width))
            } else {
                None
            };
            let slots = if C::SAVED > 0 {
                tape.slots
                    .as_mut()
                    .map(|slots| slots.block(step.t, places.clone(), unit, width))
            } else {
                None
            };
            (h_before, c_before, slots)
        });
        for r in 0..rows.len() {
            let mut pre: Slots<S::V> = [s.splat(E::ZERO); MAX_SLOTS];
            for slot in 0..C::SLOTS {
                pre[slot] = s.load(&space.sums[(sums.0 + r * sums.1 + slot) * S::LANES..]);
            }
            let h_before = h_state.load(s, r, 0, 0);
            let c_before = c_state.as_ref().map_or(h_before, |c| c.load(s, r, 0, 0));
            let Forward { saved, state } = cell.forward(
                s,
                pre,
                State {
                    h: h_before,
                    c: c_before,
                },
            );
            h_state.store(s, r, 0, 0, state.h);
            if let Some(c) = &mut c_state {
                c.store(s, r, 0, 0, state.c);
            }
            let operand = masked(s, state.h, mask, (places.start + r) * hidden + unit, width);
            let at = (rows.start + r) * hidden + unit;
            if width == S::LANES {
                operand.store(&mut space.operand[1][at..]);
            } else {
                operand.store_partial(&mut space.operand[1][at..at + width]);
            }
            if let Some(y) = &mut y {
                y.store(s, r, 0, 0, state.h);
            }
            if let Some((tape_h, tape_c, slots)) = &mut tape {
                tape_h.store(s, r, 0, 0, h_before);
                if let Some(tape_c) = tape_c {
                    tape_c.store(s, r, 0, 0, c_before);
                }
                if let Some(slots) = slots {
                    for slot in 0..C::SAVED {
                        slots.store(s, r, slot, 0, saved[slot]);
                    }
                }
            }
        }
    }
}

/// Cuts `rows` into tiles of at most `most` rows, as even as can be.
#[inline(always)]
pub fn tiles(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = rows.div_ceil(most);
    (0..count).map(move |k| rows * k / count..rows * (k + 1) / count)
}

/// Rows of an operand [rows, H] from `row` on.
#[inline(always)]
fn operand_rows<E>(operand: &[E], row: usize, hidden: usize) -> Rows<'_, E> {
    Rows {
        values: &operand[row * hidden..],
        row_stride: hidden,
        depth_stride: 1,
    }
}

/// `value` times its mask, if there is one.
#[inline(always)]
pub fn masked<E: Element, S: Simd<E>>(
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

/// The slots of row `row` of a packed [rows, slots, lanes].
#[inline(always)]
fn load_slots<E: Element, S: Simd<E>>(s: S, slots: usize, from: &[E], row: usize) -> Slots<S::V> {
    let mut values = [s.splat(E::ZERO); MAX_SLOTS];
    for (slot, value) in values.iter_mut().enumerate().take(slots) {
        *value = s.load(&from[(row * slots + slot) * S::LANES..]);
    }
    values
}

/// The mirror of [`load_slots`].
#[inline(always)]
fn store_slots<E: Element, S: Simd<E>>(
    _s: S,
    slots: usize,
    values: Slots<S::V>,
    to: &mut [E],
    row: usize,
) {
    for (slot, value) in values.iter().enumerate().take(slots) {
        value.store(&mut to[(row * slots + slot) * S::LANES..]);
    }
}

/// sums += a panels, for the rows and panels of a tile.
#[inline(always)]
fn add_product<E: Element, S: Simd<E>>(
    s: S,
    panels: &Panels<E>,
    a: Rows<'_, E>,
    tile: &Tile,
    sums: &mut [E],
    row_len: usize,
) {
    let panel = tile.panels.start;
    let (vectors, depth) = (panels.vectors(panel), panels.depth());
    if tile.rows.len() == 1 {
        multiply_row(
            s,
            RowProduct {
                count: tile.panels.len(),
                vectors,
                depth,
                a: a.values,
                a_stride: 0,
                panels: panels.from_panel(panel),
                panels_stride: panels.panel_len(),
                sums,
                sums_stride: row_len,
                fresh: false,
            },
        );
    } else {
        multiply(
            s,
            Product {
                rows: tile.rows.len(),
                vectors,
                depth,
                a,
                panel: panels.from_panel(panel),
                panel_stride: (vectors * S::LANES) as isize,
                sums,
                sums_stride: row_len,
                fresh: false,
            },
        );
    }
}
