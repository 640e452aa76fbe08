//! One step of a share: its products, a panel at a time for several rows, or a panel or several for a
//! single row.

use std::ops::Range;

use super::results::{FinishRows, InRow, Mask, Results, finish, load_slots};
use crate::cell::{Cell, MAX_SLOTS, Slots};
use crate::error::Result;
use crate::gemm::kernel::{Begin, Joint, Product, Rows, Term, multiply};
use crate::gemm::pack::{Panels, Turns, following, groups};
use crate::gemm::relay::RelayEnd;
use crate::gemm::row::add_panels;
use crate::gemm::strips::Line;
use crate::gemm::view::Block;
use crate::layer::weights::{ForwardWeights, blocks_per_panel};
use crate::parallel::Meter;
use crate::simd::{Element, Simd, Vector};

/// How a share's units lie in panels.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    /// The panels of this share.
    pub(super) first: usize,
    pub(super) end: usize,
    /// Blocks of units in a panel; the last panel of a layer may have fewer.
    pub(super) blocks: usize,
    /// Values of the bias of a panel.
    pub(super) bias_len: usize,
}

impl Tiling {
    pub(super) fn of<C: Cell, S: Simd<E>, E: Element>(units: &Range<usize>) -> Self {
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

/// Panels that a single row takes at once in a stage that h' feeds `fed` slots of.
///
/// More panels have more independent sums, which hide the latency of a multiply-add. Fewer end sooner, and
/// the weights of the next are asked for while the cell is computed. Measured for LSTM and GRU on a Zen 4:
/// with 32 registers 4 to 6 sums are enough; with 16 their vectors are half as long, and 8 to 12 are better
/// as long as U is near. Pairs of bfloat16 are half the bytes and twice the work, and want more. Four panels
/// of one or two slots are a guess for MGU and vanilla cells.
fn panels_at_once<E: Element, S: Simd<E>, C: Cell>(
    fed: usize,
    hidden: usize,
    short: bool,
) -> usize {
    /// Bytes of U that a first-level cache holds.
    const NEAR: usize = 32 << 10;
    let gates = C::RECURRENT.len() + C::CANDIDATE.len();
    let near = gates * hidden * hidden * size_of::<E>() <= NEAR;
    let few_registers = S::REGISTERS < 32;
    match fed {
        _ if !S::FOR_SPEED => 1,
        4.. if short || (few_registers && near) => 2,
        4.. => 1,
        _ if C::INPUT == 3 && !few_registers => 2,
        3 if short || near => 4,
        3 => 2,
        _ => 4,
    }
}

/// The most that [`panels_at_once`] may say: as many are compiled.
const fn most_panels<E: Element, S: Simd<E>, C: Cell>() -> usize {
    match C::INPUT {
        _ if !S::FOR_SPEED => 1,
        4.. => 2,
        _ => 4,
    }
}

/// Rows whose sums of a panel are finished together: a multiple of the usual tiles' heights, and few enough
/// that the sums stay in the nearest cache. (Rows that are left over are few; whole tiles are worth more.)
pub(super) const ROWS_AT_ONCE: usize = 24;

/// Where the sums of a step come from.
#[derive(Clone, Copy)]
pub(super) enum Input<'s, E> {
    /// x of the step's rows, [rows, I]: W x is still to be multiplied.
    Rows(&'s [E]),
    /// W x + bias of a chunk, [panels, chunk rows, slots of x, lanes]: the step's first row in it, and
    /// the rows of the chunk.
    Ahead(&'s [E], usize, usize),
}

/// Everything that the steps of a share read and write.
pub(super) struct Step<'s, E, C> {
    pub(super) cell: C,
    pub(super) tiling: Tiling,
    pub(super) weights: &'s ForwardWeights<E>,
    pub(super) features: usize,
    pub(super) hidden: usize,
    pub(super) sums: &'s mut [E],
    pub(super) pending: &'s mut [E],
    pub(super) turns: &'s mut Turns,
    pub(super) results: Results<'s, E>,
    pub(super) meter: &'s Meter<'s>,
}

/// What a pass multiplies, and what it leaves for the next one.
struct Operands<'r, E> {
    /// x, or W x.
    input: Input<'r, E>,
    /// [rows, H] m*h', or r*m*h' in the second stage.
    recurrent: &'r [E],
    /// H.
    hidden: usize,
    /// [rows, units of this share] m*h; or r*m*h' in the first stage of two.
    next: Block<'r, E>,
}

impl<E: Element> Operands<'_, E> {
    /// Those of row `r`, where x has `features` values a row.
    #[inline(always)]
    fn row(&mut self, r: usize, features: usize) -> Operands<'_, E> {
        Operands {
            input: match self.input {
                Input::Rows(x) => Input::Rows(&x[r * features..]),
                Input::Ahead(chunk, first, total) => Input::Ahead(chunk, first + r, total),
            },
            recurrent: &self.recurrent[r * self.hidden..],
            hidden: self.hidden,
            next: self.next.row(r),
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
    pub(super) fn run<S: Simd<E>>(
        &mut self,
        s: S,
        input: Input<'_, E>,
        operand: &mut RelayEnd<'_, E>,
        reset_operand: &mut Option<RelayEnd<'_, E>>,
    ) -> Result<()> {
        let (rows, hidden) = (self.results.strips.rows(), self.hidden);
        let (recurrent, next) = operand.sides(rows);
        // W is not read where W x was computed ahead.
        let input_is_far = matches!(input, Input::Rows(_)) && self.weights.input.are_far();
        self.turns
            .turn(input_is_far || self.weights.recurrent.are_far());
        if C::CANDIDATE.is_empty() {
            self.pass(
                s,
                Stage::Only,
                Operands {
                    input,
                    recurrent,
                    hidden,
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
                    hidden,
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
                    hidden,
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
        let descending = self.turns.descending(s);
        if rows == 1 && !self.weights.is_short() && S::FOR_SPEED {
            let meter = self.meter;
            let (mut single, mut line) = self.single::<S>(stage, 0);
            for group in groups(first..end, single.at_once, descending) {
                let mut panel = group.start;
                while panel < group.end {
                    let count =
                        single.panels::<S, false>(s, panel, &mut line, stage, &mut operands);
                    meter.spend(count * work)?;
                    panel += count;
                }
            }
            return Ok(());
        }
        if self.weights.is_short() {
            // No tile reads pairs of bfloat16: rows take turns, so that a panel comes to the nearest cache once.
            let at_once = self.single::<S>(stage, 0).0.at_once;
            for group in groups(first..end, at_once, descending) {
                let mut panel = group.start;
                while panel < group.end {
                    let mut count = 0;
                    for r in 0..rows {
                        let mut operands = operands.row(r, self.features);
                        let (mut single, mut line) = self.single::<S>(stage, r);
                        count = single.panels::<S, true>(s, panel, &mut line, stage, &mut operands);
                    }
                    self.meter.spend(rows * count * work)?;
                    panel += count;
                }
            }
            return Ok(());
        }
        for panel in groups(first..end, 1, descending).flatten() {
            let mut done = 0;
            while done < rows {
                let some = done..rows.min(done + ROWS_AT_ONCE);
                done = some.end;
                self.rows(s, panel, some, stage, &mut operands);
            }
            self.meter.spend(rows * work)?;
        }
        Ok(())
    }

    /// Row `r` by itself, and where it is in every table.
    #[inline(always)]
    fn single<S: Simd<E>>(
        &mut self,
        stage: Stage,
        r: usize,
    ) -> (Single<'_, E, C>, Line<'_, E, 6, 0>) {
        let Tiling {
            first,
            end,
            blocks,
            bias_len,
        } = self.tiling;
        let short = self.weights.is_short();
        let (fed, pending) = match stage {
            Stage::Only => (C::RECURRENT.len(), 0),
            Stage::Gates => (C::RECURRENT.len(), r * (end - first) * bias_len),
            Stage::Candidate => (C::CANDIDATE.len(), r * (end - first) * bias_len),
        };
        let Results { strips, mask } = &mut self.results;
        let single = Single {
            cell: self.cell,
            tiling: self.tiling,
            weights: self.weights,
            pending: &mut self.pending[pending..],
            mask: mask.skip(r),
            at_once: panels_at_once::<E, S, C>(fed, self.hidden, short),
            full_end: end - usize::from(self::blocks::<C, E>(self.weights, end - 1) < blocks),
        };
        (single, strips.line(r))
    }

    /// Some rows of one panel, at most [`ROWS_AT_ONCE`].
    #[inline(always)]
    fn rows<S: Simd<E>>(
        &mut self,
        s: S,
        panel: usize,
        rows: Range<usize>,
        stage: Stage,
        operands: &mut Operands<'_, E>,
    ) {
        let blocks = blocks::<C, E>(self.weights, panel);
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
            let mut recurrent = term(joint, &self.weights.recurrent, panel, a, width);
            recurrent.ahead = self.ahead(s, &self.weights.recurrent, panel, &rows);
            let nothing = Term {
                depth: 0,
                joint: Joint::Add,
                ..recurrent
            };
            let (begin, input) = match operands.input {
                Input::Rows(x) => {
                    let a = rows_from(x, rows.start, self.features);
                    let mut input = term(Joint::Add, &self.weights.input, panel, a, width);
                    input.ahead = self.ahead(s, &self.weights.input, panel, &rows);
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
                let place = (rows.start + r, local * S::LANES);
                reset(
                    s,
                    (self.cell, self.tiling),
                    self.pending,
                    place,
                    pre,
                    operands,
                );
            }
            return;
        }
        for b in 0..blocks {
            s.enter(FinishRows {
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

    /// What some rows of a panel ask for: as much of the next one as they are of all rows. The next step begins
    /// with the panel that this one ends with.
    #[inline(always)]
    fn ahead<'p, S: Simd<E>>(
        &self,
        s: S,
        panels: &'p Panels<E>,
        panel: usize,
        rows: &Range<usize>,
    ) -> &'p [E] {
        if !panels.are_far() {
            return &[];
        }
        let Tiling { first, end, .. } = self.tiling;
        let Some(next) = following(panel, &(first..end), self.turns.descending(s)) else {
            return &[];
        };
        let (len, all) = (panels.panel_len(), self.results.strips.rows());
        panels.ahead(next, len * rows.start / all..len * rows.end / all)
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
                let mut input = term(Joint::Add, &self.weights.input, panel, a, width);
                input.ahead = self.ahead(s, &self.weights.input, panel, rows);
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
        let width = fed * S::LANES;
        let mut recurrent = term(Joint::Add, &self.weights.recurrent, panel, a, width);
        recurrent.ahead = self.ahead(s, &self.weights.recurrent, panel, rows);
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
        let mut product = term(Joint::Add, weights, panel, a, fed * S::LANES);
        product.ahead = self.ahead(s, weights, panel, rows);
        let sums = &mut self.sums[C::CANDIDATE.start * S::LANES..];
        add_product(s, product, (rows.len(), fed), (sums, row_len));
    }
}

/// A row by itself, a panel or several at a time: what its panels share, by value, so that it need not be
/// read again after every store. The row has number 0 in all that is handed to it: where the number was a
/// variable inside the loop over panels, a step of 32 units took up to a fifth longer.
struct Single<'s, E, C> {
    cell: C,
    tiling: Tiling,
    weights: &'s ForwardWeights<E>,
    pending: &'s mut [E],
    mask: Mask<'s, E>,
    /// Panels at most.
    at_once: usize,
    /// Where panels of all blocks end: the last one of a cell with one slot may have fewer.
    full_end: usize,
}

impl<E: Element, C: Cell> Single<'_, E, C> {
    /// Some panels from `panel` on; gives how many.
    #[inline(always)]
    fn panels<S: Simd<E>, const SHORT: bool>(
        &mut self,
        s: S,
        panel: usize,
        line: &mut Line<'_, E, 6, 0>,
        stage: Stage,
        operands: &mut Operands<'_, E>,
    ) -> usize {
        let full = self.full_end.saturating_sub(panel);
        macro_rules! of {
            ($blocks:literal) => {
                if most_panels::<E, S, C>() >= 4 && self.at_once >= 4 && full >= 4 {
                    self.panels_of::<S, 4, $blocks, SHORT>(s, panel, line, stage, operands)
                } else if most_panels::<E, S, C>() >= 2 && self.at_once >= 2 && full >= 2 {
                    self.panels_of::<S, 2, $blocks, SHORT>(s, panel, line, stage, operands)
                } else {
                    self.panels_of::<S, 1, $blocks, SHORT>(s, panel, line, stage, operands)
                }
            };
        }
        if C::SLOTS == 1 && full > 0 {
            of!(2)
        } else {
            of!(1)
        }
    }

    /// Q panels of B blocks each.
    #[inline(always)]
    fn panels_of<S: Simd<E>, const Q: usize, const B: usize, const SHORT: bool>(
        &mut self,
        s: S,
        panel: usize,
        line: &mut Line<'_, E, 6, 0>,
        stage: Stage,
        operands: &mut Operands<'_, E>,
    ) -> usize {
        let mut sums = [[s.splat(E::ZERO); MAX_SLOTS]; Q];
        let bias_len = self.tiling.bias_len;
        let local = panel - self.tiling.first;
        // W x that was computed ahead has the bias in it.
        let all_ahead = matches!(operands.input, Input::Ahead(..)) && C::INPUT == C::SLOTS;
        if stage == Stage::Candidate || !all_ahead {
            for q in 0..Q {
                let (from, at) = if stage == Stage::Candidate {
                    (&*self.pending, local + q)
                } else {
                    (&*self.weights.bias, panel + q)
                };
                let slots = side_by_side::<B>(0..C::SLOTS);
                let begin = &from[at * bias_len..][..slots.len() * S::LANES];
                for slot in slots {
                    sums[q][slot] = s.load(&begin[slot * S::LANES..]);
                }
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
                add_panels::<_, _, _, SHORT>(s, &mut sums, fed, x, weights);
            }
            Some(Input::Ahead(chunk, first, total)) => {
                let width = fed.len() * S::LANES;
                for q in 0..Q {
                    let before = (local + q) * total * C::INPUT * self.tiling.blocks;
                    let from = &chunk[before * S::LANES + first * width..][..width];
                    for slot in 0..fed.len() {
                        sums[q][slot] = s.load(&from[slot * S::LANES..]);
                    }
                }
            }
        }
        let panels = panels.expect("a second stage has weights");
        let fed = side_by_side::<B>(slots);
        add_panels::<_, _, _, SHORT>(s, &mut sums, fed, operands.recurrent, (panels, panel));
        // No closures: they are not inlined with their caller's instructions.
        macro_rules! in_row {
            ($units:expr) => {
                InRow {
                    line: &mut *line,
                    mask: self.mask,
                    next: &mut operands.next,
                    units: $units,
                }
            };
        }
        let first = local * self.tiling.blocks * S::LANES;
        let per_panel = self.tiling.blocks * S::LANES;
        if stage == Stage::Gates {
            for q in 0..Q {
                let place = (0, first + q * per_panel);
                reset(
                    s,
                    (self.cell, self.tiling),
                    self.pending,
                    place,
                    sums[q],
                    operands,
                );
            }
        } else if B == 2 {
            for q in 0..Q {
                let unit = first + q * per_panel;
                let mut second = sums[q];
                second[0] = sums[q][1];
                let units = [unit, unit + S::LANES];
                let places = in_row!(units);
                finish(s, self.cell, places, [sums[q], second]);
            }
        } else if Q == 1 {
            let places = in_row!([first]);
            finish(s, self.cell, places, [sums[0]]);
        } else {
            for q in 0..Q / 2 {
                let unit = first + 2 * q * per_panel;
                let places = in_row!([unit, unit + per_panel]);
                finish(s, self.cell, places, [sums[2 * q], sums[2 * q + 1]]);
            }
        }
        Q
    }
}

/// Blocks of units in a panel.
#[inline(always)]
fn blocks<C: Cell, E: Element>(weights: &ForwardWeights<E>, panel: usize) -> usize {
    weights.recurrent.vectors(panel) / C::RECURRENT.len()
}

/// Between the stages: gates are activated and wait in `pending`; r*m*h' is complete once every worker
/// has been here. A cell with two stages has one block of units in a panel.
#[inline(always)]
fn reset<E: Element, C: Cell, S: Simd<E>>(
    s: S,
    (cell, tiling): (C, Tiling),
    pending: &mut [E],
    (r, unit): (usize, usize),
    pre: Slots<S::V>,
    operands: &mut Operands<'_, E>,
) {
    let row = &operands.recurrent[r * operands.hidden..(r + 1) * operands.hidden];
    let h = s.load_partial(&row[tiling.first * S::LANES + unit..]);
    let (slots, product) = cell.reset(s, pre, h);
    operands.next.store(s, r, 0, unit, product);
    let place = r * (tiling.end - tiling.first) * S::LANES + unit;
    for slot in 0..C::SLOTS {
        slots[slot].store(&mut pending[place * C::SLOTS + slot * S::LANES..]);
    }
}

/// A product with one panel.
#[inline(always)]
pub(super) fn term<'a, E: Element>(
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
        ahead: &[],
    }
}

/// The rows of [rows, width] from `row` on.
#[inline(always)]
pub(super) fn rows_from<E>(values: &[E], row: usize, width: usize) -> Rows<'_, E> {
    Rows {
        values: &values[row * width..],
        row_stride: width,
        depth_stride: 1,
    }
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
