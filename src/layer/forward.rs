//! Some rows and units of one direction, forward over a range of steps.
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
//! A tile of several rows is one product that leaves its sums in a scratch; a single row takes several
//! panels at once and hands its sums to the cell in registers. Both sum in the same order. Rows of weights
//! that are stored as bfloat16 all go this way: for each group of panels loop 3 takes one row after the other.
//!
//! With few rows `W x` is computed for a chunk of steps at once: a tile of many rows where a step has
//! few. The sums go to memory and back in between, which is exact, so the bits are the same.
//!
//! Where several workers share the units of the same rows, they meet after each step: see
//! [`crate::gemm::relay`].

use std::ops::Range;

use crate::cell::{Cell, Forward, MAX_SLOTS, Slots, Spec, State};
use crate::error::Result;
use crate::gemm::kernel::{Begin, Joint, MAX_ROWS, Product, Rows, Term, max_rows, multiply};
use crate::gemm::pack::Panels;
use crate::gemm::relay::RelayEnd;
use crate::gemm::row::add_panels;
use crate::gemm::strips::Strips;
use crate::gemm::view::{Block, Field};
use crate::layer::config::{CellKind, with_cell};
use crate::layer::weights::{ForwardWeights, Lanes, blocks_per_panel};
use crate::memory::{Buffer, product};
use crate::parallel::Meter;
use crate::shape::Schedule;
use crate::simd::{Element, Group, Grouped, Kernel, Simd, Vector};

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

/// Where the results of a share go: its own rows and units of every table.
pub struct ForwardFields<'a, E> {
    /// [B, H]
    pub state: StateFields<'a, E>,
    /// [N, H] h after each step, for whoever reads it.
    pub y: Option<Field<'a, E>>,
    /// What backward will read.
    pub tape: Option<StepFields<'a, E>>,
}

/// One worker's rows and units over a range of steps.
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
    /// This worker's units; they begin at a panel.
    pub units: Range<usize>,
    /// [N, I] packed input.
    pub input: &'a [E],
    /// [B, H] what multiplies h' inside the recurrent product.
    pub mask: Option<&'a [E]>,
    /// Where the results go.
    pub fields: ForwardFields<'a, E>,
    /// [rows, H] m*h' of this step, and of the next.
    pub operand: RelayEnd<'a, E>,
    /// [rows, H] r*m*h' of this step, of a cell with its reset before the product.
    pub reset_operand: Option<RelayEnd<'a, E>>,
    /// Memory for this worker.
    pub space: &'a mut Workspace<E>,
    /// To be stopped.
    pub meter: Meter<'a>,
}

/// The memory that one worker needs besides its results.
pub struct Workspace<E> {
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
    /// For `rows` rows and `units` units of a cell like `spec` with `features` inputs, over `steps` steps.
    pub fn new(
        spec: &Spec,
        lanes: Lanes,
        rows: usize,
        steps: usize,
        (units, features): (usize, usize),
    ) -> Result<Self> {
        let what = "the workspace of a forward pass";
        let units = units.next_multiple_of(lanes.lanes * blocks_per_panel(spec.slots));
        let slots = product(&[rows, units, MAX_SLOTS], what)?;
        let stages = usize::from(spec.has_reset_stage());
        let chunk = chunk_rows(spec, rows, steps, units);
        Ok(Self {
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

/// How a share's units lie in panels.
#[derive(Clone, Copy)]
struct Tiling {
    /// The panels of this share.
    first: usize,
    end: usize,
    /// Blocks of units in a panel; the last panel of a layer may have fewer.
    blocks: usize,
    /// Values of the bias of a panel.
    bias_len: usize,
}

impl Tiling {
    fn of<C: Cell, S: Simd<E>, E: Element>(units: &Range<usize>) -> Self {
        let blocks = blocks_per_panel(C::SLOTS);
        let per_panel = blocks * S::LANES;
        assert!(units.start.is_multiple_of(per_panel));
        Self {
            first: units.start / per_panel,
            end: units.end.div_ceil(per_panel),
            blocks,
            bias_len: blocks * C::SLOTS * S::LANES,
        }
    }
}

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
pub(super) use each;

/// Panels that a single row takes at once: 8 or more independent sums hide the latency of a
/// multiply-add, and 16 registers hold no more than 12.
///
/// Three slots on 32 registers are two: 6 sums of 16 lanes, a panel fewer to read at once. And a level
/// that does not fuse is not there for speed: one, for the sake of the module's size.
const fn panels_at_once<E: Element, S: Simd<E>, C: Cell>() -> usize {
    if !S::FUSED {
        1
    } else if C::INPUT >= 4 || (C::INPUT >= 3 && S::REGISTERS >= 32) {
        2
    } else {
        4
    }
}

impl<E: Element> Kernel<E> for &mut ForwardShare<'_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        with_cell!(self.cell, cell => s.enter(Walk { cell, share: self }))
    }
}

/// A share on its way through the steps, with the cell as a type.
struct Walk<'w, 'a, E, C> {
    cell: C,
    share: &'w mut ForwardShare<'a, E>,
}

impl<E: Element, C: Cell> Kernel<E> for Walk<'_, '_, E, C> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<()> {
        let Self { cell, share } = self;
        let (schedule, own, features) = (share.schedule, share.rows.clone(), share.features);
        let tiling = Tiling::of::<C, S, E>(&share.units);
        let units = share.units.len().next_multiple_of(S::LANES * tiling.blocks);
        let capacity = if share.weights.is_short() {
            0
        } else {
            chunk_rows(&share.spec, own.len(), schedule.steps(), units)
        };
        let mut ahead = Ahead {
            weights: share.weights,
            tiling,
            schedule,
            own: own.clone(),
            features,
            input: share.input,
            chunk: &mut share.space.chunk,
            chunk_input: &mut share.space.chunk_input,
            meter: &share.meter,
        };
        let mut step = Step {
            cell,
            tiling,
            weights: share.weights,
            features,
            hidden: share.hidden,
            sums: &mut share.space.sums,
            pending: &mut share.space.pending,
            results: Results::new::<C>(
                schedule,
                &own,
                &share.units,
                &mut share.fields,
                (share.mask, share.hidden),
            ),
            meter: &share.meter,
        };
        let (operand, reset_operand) = (&mut share.operand, &mut share.reset_operand);
        let (begin, count, reverse) = (share.steps.start, share.steps.len(), share.reverse);
        let in_order = move |k: usize| {
            if reverse {
                begin + count - 1 - k
            } else {
                begin + k
            }
        };
        let mut done = 0;
        while done < count {
            let chunk = match capacity {
                0 => count,
                _ => (capacity / own.len()).min(count - done),
            };
            let steps = (done..done + chunk).map(in_order);
            let mut total = 0;
            if capacity > 0 {
                total = s.enter(FillChunk(&mut ahead, steps.clone()))?;
            }
            let mut first = 0;
            for t in steps {
                let rows = active(schedule, &own, t);
                if rows > 0 {
                    let input = if capacity > 0 {
                        Input::Ahead(ahead.chunk, first, total)
                    } else {
                        let x = (schedule.rows(t).start + own.start) * features;
                        Input::Rows(&share.input[x..x + rows * features])
                    };
                    step.results.strips.seek(t, rows);
                    step.run(s, input, operand, reset_operand)?;
                }
                first += rows;
            }
            done += chunk;
        }
        Ok(())
    }
}

/// How many of a share's rows are there at step `t`.
#[inline(always)]
fn active(schedule: &Schedule, own: &Range<usize>, t: usize) -> usize {
    schedule.active(t).min(own.end).saturating_sub(own.start)
}

/// What `W x` of a chunk of steps needs.
struct Ahead<'s, E> {
    weights: &'s ForwardWeights<E>,
    tiling: Tiling,
    schedule: &'s Schedule,
    /// The share's rows.
    own: Range<usize>,
    features: usize,
    /// [N, I]
    input: &'s [E],
    /// [panels, chunk rows, slots of x, lanes]
    chunk: &'s mut [E],
    /// [chunk rows, I]
    chunk_input: &'s mut [E],
    meter: &'s Meter<'s>,
}

/// W x + bias of all rows of some steps, in this order; gives how many rows they are.
struct FillChunk<'c, 's, E, T>(&'c mut Ahead<'s, E>, T);

impl<E: Element, T: Iterator<Item = usize>> Kernel<E> for FillChunk<'_, '_, E, T> {
    type Output = Result<usize>;

    #[inline(always)]
    fn run<S: Simd<E>>(self, s: S) -> Result<usize> {
        let Self(ahead, steps) = self;
        let features = ahead.features;
        let mut total = 0;
        for t in steps {
            let rows = active(ahead.schedule, &ahead.own, t);
            if rows == 0 {
                // All of this share's rows have ended, and lie beyond the step's.
                continue;
            }
            let first = (ahead.schedule.rows(t).start + ahead.own.start) * features;
            let to = &mut ahead.chunk_input[total * features..(total + rows) * features];
            to.copy_from_slice(&ahead.input[first..first + rows * features]);
            total += rows;
        }
        let (weights, tiling) = (ahead.weights, ahead.tiling);
        let mut before = 0;
        for panel in tiling.first..tiling.end {
            let vectors = weights.input.vectors(panel);
            let width = vectors * S::LANES;
            let sums = &mut ahead.chunk[before..before + total * width];
            before += total * width;
            // The slots that x adds to come first, so the first `width` values are theirs.
            let bias = &weights.bias[panel * tiling.bias_len..];
            for tile in tiles(total, max_rows(S::REGISTERS, vectors)) {
                let a = rows_from(ahead.chunk_input, tile.start, features);
                multiply(
                    s,
                    Product {
                        rows: tile.len(),
                        vectors,
                        begin: Begin::Rows(bias, 0),
                        terms: &[term(Joint::Add, &weights.input, panel, a, width)],
                        sums: &mut sums[tile.start * width..],
                        sums_stride: width,
                    },
                );
            }
            ahead.meter.spend(total * features * width)?;
        }
        Ok(total)
    }
}

/// A product with one panel.
#[inline(always)]
fn term<'a, E: Element>(
    joint: Joint<'a, E>,
    panels: &'a Panels<E>,
    panel: usize,
    a: Rows<'a, E>,
    width: usize,
) -> Term<'a, E> {
    Term {
        joint,
        depth: panels.depth(),
        a,
        panel: panels.from_panel(panel),
        panel_stride: width as isize,
    }
}

/// Where the sums of a step come from.
#[derive(Clone, Copy)]
enum Input<'s, E> {
    /// x of the step's rows, [rows, I]: W x is still to be multiplied.
    Rows(&'s [E]),
    /// W x + bias of a chunk, [panels, chunk rows, slots of x, lanes]: the step's first row in it, and
    /// the rows of the chunk.
    Ahead(&'s [E], usize, usize),
}

/// Everything that the steps of a share read and write.
struct Step<'s, E, C> {
    cell: C,
    tiling: Tiling,
    weights: &'s ForwardWeights<E>,
    features: usize,
    hidden: usize,
    sums: &'s mut [E],
    pending: &'s mut [E],
    results: Results<'s, E>,
    meter: &'s Meter<'s>,
}

/// What a pass multiplies, and what it leaves for the next one.
struct Operands<'r, E> {
    /// x, or W x.
    input: Input<'r, E>,
    /// [rows, H] m*h', or r*m*h' in the second stage.
    recurrent: &'r [E],
    /// [rows, units of this share] m*h; or r*m*h' in the first stage of two.
    next: Block<'r, E>,
}

/// What a step leaves, of this share's units alone; columns count from the share's first unit.
struct Results<'s, E> {
    strips: Strips<'s, E, 6, 0>,
    /// [rows, H] from the share's first row and unit on.
    mask: Option<&'s [E]>,
    hidden: usize,
}

/// The tables of [`Results`]: the state, y, and the tape.
const H: usize = 0;
const C: usize = 1;
const Y: usize = 2;
const TAPE_H: usize = 3;
const TAPE_C: usize = 4;
const TAPE_SLOTS: usize = 5;

impl<'s, E: Element> Results<'s, E> {
    #[inline(always)]
    fn new<K: Cell>(
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

/// What a pass over the units does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Everything.
    Only,
    /// Of a cell with its reset before the product: the gates, and r*h'.
    Gates,
    /// Then the candidate, and the new state.
    Candidate,
}

impl<E: Element, C: Cell> Step<'_, E, C> {
    /// One step of all rows that are there.
    #[inline(always)]
    fn run<S: Simd<E>>(
        &mut self,
        s: S,
        input: Input<'_, E>,
        operand: &mut RelayEnd<'_, E>,
        reset_operand: &mut Option<RelayEnd<'_, E>>,
    ) -> Result<()> {
        let rows = self.results.strips.rows();
        let (recurrent, next) = operand.sides(rows);
        if C::CANDIDATE.is_empty() {
            self.pass(
                s,
                Stage::Only,
                Operands {
                    input,
                    recurrent,
                    next,
                },
            )?;
        } else {
            let relay = reset_operand
                .as_mut()
                .expect("a reset stage has an operand");
            let (_, product) = relay.sides(rows);
            self.pass(
                s,
                Stage::Gates,
                Operands {
                    input,
                    recurrent,
                    next: product,
                },
            )?;
            relay.turn()?;
            let (recurrent, _) = relay.sides(rows);
            self.pass(
                s,
                Stage::Candidate,
                Operands {
                    input,
                    recurrent,
                    next,
                },
            )?;
        }
        operand.turn()
    }

    /// Loops 2 and 3.
    #[inline(always)]
    fn pass<S: Simd<E>>(
        &mut self,
        s: S,
        stage: Stage,
        mut operands: Operands<'_, E>,
    ) -> Result<()> {
        let rows = self.results.strips.rows();
        let Tiling {
            first, end, blocks, ..
        } = self.tiling;
        let slots = match stage {
            Stage::Candidate => C::CANDIDATE.len(),
            _ => C::SLOTS,
        };
        let work = blocks * slots * S::LANES * (self.features + self.hidden);
        if rows == 1 || self.weights.is_short() {
            let mut panel = first;
            while panel < end {
                let mut count = 0;
                for r in 0..rows {
                    count = self.row(s, (r, panel), stage, &mut operands);
                }
                panel += count;
                self.meter.spend(rows * count * work)?;
            }
            return Ok(());
        }
        let most = max_rows(S::REGISTERS, blocks * C::INPUT.max(C::RECURRENT.len()));
        for panel in first..end {
            for tile in tiles(rows, most) {
                self.tile(s, panel, tile, stage, &mut operands);
            }
            self.meter.spend(rows * work)?;
        }
        Ok(())
    }

    // ---- One row -----------------------------------------------------------------------------------

    /// Row `r` of some panels from `panel` on; gives how many, which is the same for every row.
    #[inline(always)]
    fn row<S: Simd<E>>(
        &mut self,
        s: S,
        (r, panel): (usize, usize),
        stage: Stage,
        operands: &mut Operands<'_, E>,
    ) -> usize {
        let left = self.tiling.end - panel;
        // The last panel of a cell with one slot may have fewer blocks.
        let whole = self.blocks(self.tiling.end - 1) == self.tiling.blocks;
        let full = if whole { left } else { left - 1 };
        macro_rules! rows {
            ($blocks:literal) => {
                if panels_at_once::<E, S, C>() >= 4 && full >= 4 {
                    self.row_of::<S, 4, $blocks>(s, (r, panel), stage, operands)
                } else if panels_at_once::<E, S, C>() >= 2 && full >= 2 {
                    self.row_of::<S, 2, $blocks>(s, (r, panel), stage, operands)
                } else {
                    self.row_of::<S, 1, $blocks>(s, (r, panel), stage, operands)
                }
            };
        }
        if C::SLOTS == 1 && full > 0 {
            rows!(2)
        } else {
            rows!(1)
        }
    }

    /// Row `r` of Q panels of B blocks each.
    #[inline(always)]
    fn row_of<S: Simd<E>, const Q: usize, const B: usize>(
        &mut self,
        s: S,
        (r, panel): (usize, usize),
        stage: Stage,
        operands: &mut Operands<'_, E>,
    ) -> usize {
        let mut sums = [[s.splat(E::ZERO); MAX_SLOTS]; Q];
        let Tiling {
            first: first_panel,
            end,
            bias_len,
            ..
        } = self.tiling;
        let local = panel - first_panel;
        for q in 0..Q {
            let (from, at) = if stage == Stage::Candidate {
                (&*self.pending, r * (end - first_panel) + local + q)
            } else {
                (&*self.weights.bias, panel + q)
            };
            let slots = side_by_side::<B>(0..C::SLOTS);
            let begin = &from[at * bias_len..][..slots.len() * S::LANES];
            for slot in slots {
                sums[q][slot] = s.load(&begin[slot * S::LANES..]);
            }
        }
        let (input, slots, panels) = match stage {
            Stage::Candidate => (None, C::CANDIDATE, self.weights.candidate.as_ref()),
            _ => (
                Some(operands.input),
                C::RECURRENT,
                Some(&self.weights.recurrent),
            ),
        };
        let fed = side_by_side::<B>(0..C::INPUT);
        match input {
            None => {}
            Some(Input::Rows(x)) => {
                let weights = (&self.weights.input, panel);
                let x = &x[r * self.features..];
                add_panels(s, &mut sums, fed, x, weights);
            }
            Some(Input::Ahead(chunk, first, total)) => {
                let width = fed.len() * S::LANES;
                for q in 0..Q {
                    let before = (local + q) * total * C::INPUT * self.tiling.blocks;
                    let from = &chunk[before * S::LANES + (first + r) * width..][..width];
                    for slot in 0..fed.len() {
                        sums[q][slot] = s.load(&from[slot * S::LANES..]);
                    }
                }
            }
        }
        let panels = panels.expect("a second stage has weights");
        let fed = side_by_side::<B>(slots);
        let recurrent = &operands.recurrent[r * self.hidden..];
        add_panels(s, &mut sums, fed, recurrent, (panels, panel));
        // No closures: they are not inlined with their caller's instructions.
        let first = local * self.tiling.blocks * S::LANES;
        let per_panel = self.tiling.blocks * S::LANES;
        if stage == Stage::Gates {
            for q in 0..Q {
                self.reset(s, (r, first + q * per_panel), sums[q], operands);
            }
        } else if B == 2 {
            for q in 0..Q {
                let unit = first + q * per_panel;
                let places = [(r, unit), (r, unit + S::LANES)];
                let mut second = sums[q];
                second[0] = sums[q][1];
                let pre = [sums[q], second];
                self.results
                    .finish(s, self.cell, places, pre, &mut operands.next);
            }
        } else if Q == 1 {
            self.results
                .finish(s, self.cell, [(r, first)], [sums[0]], &mut operands.next);
        } else {
            for q in 0..Q / 2 {
                let unit = first + 2 * q * per_panel;
                let places = [(r, unit), (r, unit + per_panel)];
                let pre = [sums[2 * q], sums[2 * q + 1]];
                self.results
                    .finish(s, self.cell, places, pre, &mut operands.next);
            }
        }
        Q
    }

    // ---- Several rows ------------------------------------------------------------------------------

    /// Some rows of one panel.
    #[inline(always)]
    fn tile<S: Simd<E>>(
        &mut self,
        s: S,
        panel: usize,
        rows: Range<usize>,
        stage: Stage,
        operands: &mut Operands<'_, E>,
    ) {
        let blocks = self.blocks(panel);
        let per_panel = self.tiling.bias_len;
        let row_len = blocks * C::SLOTS * S::LANES;
        let local = panel - self.tiling.first;
        let bias = &self.weights.bias[panel * per_panel..];
        if stage == Stage::Candidate {
            self.candidate(s, panel, &rows, operands.recurrent);
        } else if C::INPUT == C::RECURRENT.len() {
            let joint = match C::RECURRENT.start {
                0 => Joint::Add,
                _ => Joint::Shift(&bias[C::INPUT * S::LANES..]),
            };
            let width = blocks * C::INPUT * S::LANES;
            let a = rows_from(operands.recurrent, rows.start, self.hidden);
            let recurrent = term(joint, &self.weights.recurrent, panel, a, width);
            let nothing = Term {
                depth: 0,
                joint: Joint::Add,
                ..recurrent
            };
            let (begin, input) = match operands.input {
                Input::Rows(x) => {
                    let a = rows_from(x, rows.start, self.features);
                    let input = term(Joint::Add, &self.weights.input, panel, a, width);
                    (Begin::Rows(bias, 0), input)
                }
                Input::Ahead(chunk, first, total) => {
                    let before = local * total * self.tiling.blocks * C::INPUT * S::LANES;
                    let from = &chunk[before + (first + rows.start) * width..];
                    (Begin::Rows(from, width), nothing)
                }
            };
            multiply(
                s,
                Product {
                    rows: rows.len(),
                    vectors: blocks * C::INPUT,
                    begin,
                    terms: &[input, recurrent],
                    sums: self.sums,
                    sums_stride: row_len,
                },
            );
        } else {
            self.uneven(s, panel, &rows, operands);
        }
        if stage == Stage::Gates {
            for r in 0..rows.len() {
                let pre = load_slots(s, C::SLOTS, &self.sums[r * row_len..]);
                self.reset(s, (rows.start + r, local * S::LANES), pre, operands);
            }
            return;
        }
        for b in 0..blocks {
            s.enter(FinishTile {
                cell: self.cell,
                results: &mut self.results,
                next: &mut operands.next,
                sums: &self.sums[b * C::SLOTS * S::LANES..],
                row_len,
                rows: rows.clone(),
                unit: (local * self.tiling.blocks + b) * S::LANES,
            });
        }
    }

    /// Blocks of units in a panel.
    #[inline(always)]
    fn blocks(&self, panel: usize) -> usize {
        self.weights.recurrent.vectors(panel) / C::RECURRENT.len()
    }

    /// Between the stages: gates are activated and wait in `pending`; r*m*h' is complete once every
    /// worker has been here. A cell with two stages has one block of units in a panel.
    #[inline(always)]
    fn reset<S: Simd<E>>(
        &mut self,
        s: S,
        (r, unit): (usize, usize),
        pre: Slots<S::V>,
        operands: &mut Operands<'_, E>,
    ) {
        let row = &operands.recurrent[r * self.hidden..(r + 1) * self.hidden];
        let h = s.load_partial(&row[self.tiling.first * S::LANES + unit..]);
        let (slots, product) = self.cell.reset(s, pre, h);
        operands.next.store(s, r, 0, unit, product);
        let pending = r * (self.tiling.end - self.tiling.first) * S::LANES + unit;
        for slot in 0..C::SLOTS {
            slots[slot].store(&mut self.pending[pending * C::SLOTS + slot * S::LANES..]);
        }
    }

    /// The sums of a cell whose x and h' feed different numbers of slots: product after product.
    #[inline(always)]
    fn uneven<S: Simd<E>>(
        &mut self,
        s: S,
        panel: usize,
        rows: &Range<usize>,
        operands: &Operands<'_, E>,
    ) {
        let row_len = C::SLOTS * S::LANES;
        let bias = &self.weights.bias[panel * row_len..][..row_len];
        for r in 0..rows.len() {
            self.sums[r * row_len..][..row_len].copy_from_slice(bias);
        }
        let width = C::INPUT * S::LANES;
        match operands.input {
            Input::Rows(x) => {
                let a = rows_from(x, rows.start, self.features);
                let input = term(Joint::Add, &self.weights.input, panel, a, width);
                add_product(s, input, (rows.len(), C::INPUT), (self.sums, row_len));
            }
            Input::Ahead(chunk, first, total) => {
                let before = (panel - self.tiling.first) * total * width;
                for r in 0..rows.len() {
                    let from = &chunk[before + (first + rows.start + r) * width..][..width];
                    self.sums[r * row_len..][..width].copy_from_slice(from);
                }
            }
        }
        let fed = C::RECURRENT.len();
        let a = rows_from(operands.recurrent, rows.start, self.hidden);
        let recurrent = term(
            Joint::Add,
            &self.weights.recurrent,
            panel,
            a,
            fed * S::LANES,
        );
        let sums = &mut self.sums[C::RECURRENT.start * S::LANES..];
        add_product(s, recurrent, (rows.len(), fed), (sums, row_len));
    }

    /// The sums of the second stage: where the first left them, and U (r*m*h').
    #[inline(always)]
    fn candidate<S: Simd<E>>(&mut self, s: S, panel: usize, rows: &Range<usize>, operand: &[E]) {
        let row_len = C::SLOTS * S::LANES;
        let panels = self.tiling.end - self.tiling.first;
        for r in 0..rows.len() {
            let row = (rows.start + r) * panels + panel - self.tiling.first;
            let from = &self.pending[row * row_len..][..row_len];
            self.sums[r * row_len..][..row_len].copy_from_slice(from);
        }
        let weights = self
            .weights
            .candidate
            .as_ref()
            .expect("a second stage has weights");
        let fed = C::CANDIDATE.len();
        let a = rows_from(operand, rows.start, self.hidden);
        let product = term(Joint::Add, weights, panel, a, fed * S::LANES);
        let sums = &mut self.sums[C::CANDIDATE.start * S::LANES..];
        add_product(s, product, (rows.len(), fed), (sums, row_len));
    }
}

/// The rows of a tile in one block of units, their sums in memory. A function of its own, which has all
/// registers to itself.
struct FinishTile<'f, 's, 'n, E, C> {
    cell: C,
    results: &'f mut Results<'s, E>,
    next: &'f mut Block<'n, E>,
    /// [tile rows, slots, lanes], rows `row_len` apart.
    sums: &'f [E],
    row_len: usize,
    rows: Range<usize>,
    unit: usize,
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
    fn finish<K: Cell, S: Simd<E>, const N: usize>(
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
            before.h.0[n] = line.load(s, H, 0, unit);
            if K::HAS_CELL {
                before.c.0[n] = line.load(s, C, 0, unit);
            }
        });
        let Forward { saved, state } = cell.forward(Grouped::<S, N>(s), slots, before);
        each!(n < N {
            let (r, unit) = places[n];
            let h = state.h.0[n];
            next.store(s, r, 0, unit, self.masked(s, h, r, unit));
            let (has_y, has_tape) = (self.strips.has(Y), self.strips.has(TAPE_H));
            let mut line = self.strips.line(r);
            line.store(s, H, 0, unit, h);
            if K::HAS_CELL {
                line.store(s, C, 0, unit, state.c.0[n]);
            }
            if has_y {
                line.store(s, Y, 0, unit, h);
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

/// Cuts `rows` into tiles of at most `most` rows, as even as can be.
#[inline(always)]
pub fn tiles(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = rows.div_ceil(most);
    (0..count).map(move |k| rows * k / count..rows * (k + 1) / count)
}

/// The rows of [rows, width] from `row` on.
#[inline(always)]
fn rows_from<E>(values: &[E], row: usize, width: usize) -> Rows<'_, E> {
    Rows {
        values: &values[row * width..],
        row_stride: width,
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

/// The first `slots` vectors.
#[inline(always)]
fn load_slots<E: Element, S: Simd<E>>(s: S, slots: usize, from: &[E]) -> Slots<S::V> {
    let mut values = [s.splat(E::ZERO); MAX_SLOTS];
    for slot in 0..slots {
        values[slot] = s.load(&from[slot * S::LANES..]);
    }
    values
}

/// The vectors of a panel row: B blocks of a cell with one slot stand side by side as the slots of any
/// other cell do.
#[inline(always)]
fn side_by_side<const B: usize>(slots: Range<usize>) -> Range<usize> {
    slots.start..(slots.end * B).min(MAX_SLOTS)
}

/// sums += one product, in place.
#[inline(always)]
fn add_product<E: Element, S: Simd<E>>(
    s: S,
    term: Term<'_, E>,
    (rows, vectors): (usize, usize),
    (sums, sums_stride): (&mut [E], usize),
) {
    multiply(
        s,
        Product {
            rows,
            vectors,
            begin: Begin::Sums,
            terms: &[term],
            sums,
            sums_stride,
        },
    );
}
