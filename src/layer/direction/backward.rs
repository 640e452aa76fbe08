//! The run back over the steps of `forward.rs`, from the last one taken to the first.
//!
//! ```text
//! 1. for some in steps                    last first; all, or those made again at once from a checkpoint
//! 2.   for chunk in some                  last first
//! 3.     for rows in shares               the recursion: dpre of the chunk, dh and dc before it
//! 4.     for outputs in shares            the products: dW, dU, db += and dx = from dpre
//! ```
//!
//! Loops 3 and 4 run in parallel, each for itself: 4 reads the dpre of all rows.

use std::ops::Range;

use crate::error::Result;
use crate::gemm::relay::Relay;
use crate::gemm::view::{Layout, Table};
use crate::layer::backward::{BackwardFields, BackwardShare, BackwardSpace, StepTables};
use crate::layer::direction::cutter::{Columns, Cutter, GradientCutter, StateCutter};
use crate::layer::direction::{Direction, Means};
use crate::layer::plan::Cuts;
use crate::layer::products::{self, Chunk, Extent, Outputs, ParamGradients, ProductSpace};
use crate::layer::stack::StateGradients;
use crate::layer::tape::{Checkpoints, DirectionState, DirectionTape, Kept, StepTape};
use crate::layer::weights::{BackwardWeights, ForwardWeights, Lanes};
use crate::memory::{Buffer, Values, copied, product, zeros};
use crate::shape::Schedule;
use crate::simd::Element;

/// Packed rows whose dpre is held at once: enough for the products to run at full speed, few enough to
/// stay in L2 at H = 128. Measured flat between 128 and 512.
const CHUNK_ROWS: usize = 256;

/// One direction on its way back.
pub struct BackwardRun<'a, E: Element> {
    /// What runs.
    pub direction: Direction<'a, E>,
    /// Its packed parameters.
    pub weights: &'a BackwardWeights<E>,
    /// [B, H] the gradient of the state before the steps taken back so far.
    pub state: DirectionState<E>,
    /// Its memory.
    pub buffers: BackwardBuffers<E>,
    /// Who computes, and how.
    pub means: Means<'a>,
    /// The gradient of y, if there is one.
    pub dy: Option<OutputGradient<'a, E>>,
    /// [N, H] the whole dL/dh_t and dL/dc_t, if they are wanted.
    pub shown: Option<StateGradients<E>>,
    /// Where the other results go.
    pub targets: BackwardTargets<'a, E>,
}

/// The gradient of y as one direction sees it: packed rows of `width`, of which its own begin at `column`.
pub struct OutputGradient<'a, E: Element> {
    /// [N, width]
    pub values: Values<'a, E>,
    /// M, or H.
    pub width: usize,
    /// The first of this direction's.
    pub column: usize,
}

/// What the products of a run add to.
pub struct BackwardTargets<'a, E> {
    /// dW and dU.
    pub params: ParamGradients<'a, E>,
    /// `[G*H]` twice, input side and recurrent side.
    pub bias: Option<(&'a mut [E], &'a mut [E])>,
    /// [N, I]
    pub dx: &'a mut [E],
    /// Whether dx holds the other direction's part.
    pub add_dx: bool,
}

/// Everything that a run back needs besides its results.
pub struct BackwardBuffers<E> {
    /// The shares of the recursion.
    cuts: Cuts,
    /// One for each range of rows.
    crews: Vec<Crew<E>>,
    /// One for each share of the products.
    product_spaces: Vec<ProductSpace<E>>,
    /// What the recursion leaves for the products.
    chunk: ChunkGradients<E>,
    /// [B, H] h after the step, for a cell that reads it.
    output: Vec<E>,
    /// [slots, H] sums of dpre, for the biases.
    bias: Vec<E>,
}

/// The workers of the same rows, and what they hand to one another.
struct Crew<E> {
    /// [rows, slots, H] dpre, if they are several.
    relay: Option<Relay<E>>,
    /// One for each range of units.
    spaces: Vec<BackwardSpace<E>>,
}

/// What the recursion over a chunk leaves; empty where the direction has none.
pub struct ChunkGradients<E> {
    /// [chunk, slots, H] dpre.
    pub pre: Buffer<E>,
    /// [chunk, H] m*h', when masked.
    pub operand: Buffer<E>,
    /// [chunk, H] r*m*h', of a two-stage cell.
    pub reset_operand: Buffer<E>,
}

/// A range of steps and its tape.
struct TapedSteps<'a, E> {
    steps: &'a Range<usize>,
    tape: &'a StepTape<E>,
}

impl<E: Element> BackwardBuffers<E> {
    /// For going back over `tape`.
    pub fn new(
        direction: &Direction<'_, E>,
        means: Means<'_>,
        tape: &DirectionTape<E>,
    ) -> Result<Self> {
        let (schedule, lanes, parts) = (direction.schedule, means.lanes, means.team.size());
        let rows = CHUNK_ROWS.max(schedule.batch()).min(schedule.packed_rows());
        let cuts = means.cuts(direction, 1);
        let sums = direction.spec.slots * direction.hidden;
        Ok(Self {
            crews: cuts
                .rows
                .iter()
                .map(|rows| Crew::new(direction, lanes, rows.len(), cuts.units.len()))
                .collect::<Result<_>>()?,
            product_spaces: (0..parts)
                .map(|_| ProductSpace::new(lanes, rows, direction.extent(), parts))
                .collect::<Result<_>>()?,
            cuts,
            chunk: ChunkGradients::new(direction, rows)?,
            output: copied(&tape.last, "the final state (B * H)")?,
            bias: zeros(sums, "the sums of the biases (G * H)")?,
        })
    }
}

impl<E: Element> Crew<E> {
    fn new(
        direction: &Direction<'_, E>,
        lanes: Lanes,
        rows: usize,
        workers: usize,
    ) -> Result<Self> {
        let (slots, hidden) = (direction.spec.slots, direction.hidden);
        let relay = || Relay::new(rows, slots, hidden, "the workspace of a backward pass");
        let space = |_| BackwardSpace::new(lanes, rows, hidden);
        Ok(Self {
            relay: (workers > 1).then(relay).transpose()?,
            spaces: (0..workers).map(space).collect::<Result<_>>()?,
        })
    }
}

impl<E: Element> ChunkGradients<E> {
    /// For at most `rows` packed rows.
    fn new(direction: &Direction<'_, E>, rows: usize) -> Result<Self> {
        let what = "a chunk of gradients (rows * G * H)";
        let sized = |slots| {
            let len = product(&[rows, slots, direction.hidden], what)?;
            Buffer::stale(len, what)
        };
        Ok(Self {
            pre: sized(direction.spec.slots)?,
            operand: sized(usize::from(direction.mask.is_some()))?,
            reset_operand: sized(usize::from(direction.spec.has_reset_stage()))?,
        })
    }
}

impl<E: Element> BackwardRun<'_, E> {
    /// Back over all steps. `again` is what recomputes segments, where `tape` has checkpoints.
    pub fn run(
        &mut self,
        tape: &DirectionTape<E>,
        again: Option<&ForwardWeights<E>>,
    ) -> Result<()> {
        let direction = self.direction;
        match &tape.kept {
            Kept::Steps(tape) => {
                let steps = &(0..direction.schedule.steps());
                self.taped(&TapedSteps { steps, tape })?;
            }
            Kept::Checkpoints(checkpoints) => {
                let weights = again.expect("checkpoints come with packed weights");
                for (segment, steps) in direction.together(checkpoints) {
                    let state = checkpoints.state(segment)?;
                    let (tape, _) = direction.recompute(self.means, weights, &steps, state)?;
                    self.taped(&TapedSteps {
                        steps: &steps,
                        tape: &tape,
                    })?;
                }
            }
        }
        self.put_bias();
        Ok(())
    }

    fn taped(&mut self, taped: &TapedSteps<'_, E>) -> Result<()> {
        let direction = self.direction;
        for steps in direction.chunks(taped.steps.clone()) {
            self.recursion(taped, &steps)?;
            self.products(taped, &steps)?;
        }
        Ok(())
    }

    /// The recursion over the `steps` of a chunk; the mirror of `ForwardRun::shares`.
    fn recursion(&mut self, taped: &TapedSteps<'_, E>, steps: &Range<usize>) -> Result<()> {
        let (direction, weights, means) = (self.direction, self.weights, self.means);
        let tape = direction.tables(taped);
        let dy = self.dy.as_ref().map(|dy| dy.table(direction.schedule));
        let mut state = StateCutter::new(&direction, &mut self.state);
        let buffers = &mut self.buffers;
        let (reads_output, layout) = (direction.spec.reads_output, direction.state_layout());
        let mut output = Cutter::over(reads_output, &mut buffers.output, layout);
        let shown = self.shown.as_mut();
        let mut gradients = GradientCutter::new(&direction, steps.start, &mut buffers.chunk, shown);
        let cuts = &buffers.cuts;
        let mut shares = Vec::with_capacity(cuts.rows.len() * cuts.units.len());
        for (rows, crew) in cuts.rows.iter().zip(&mut buffers.crews) {
            let mut rest = BackwardFields {
                state: state.take(rows.end),
                output: output.take(rows.end),
                gradients: gradients.take(rows.end),
            };
            let Crew { relay, spaces } = crew;
            let mut ends = relay
                .as_mut()
                .map(|relay| relay.ends(&cuts.units).into_iter());
            for (units, space) in cuts.units.iter().zip(spaces) {
                let (fields, others) = rest.split_columns(units.len());
                rest = others;
                shares.push(BackwardShare {
                    cell: direction.cell,
                    weights,
                    hidden: direction.hidden,
                    schedule: direction.schedule,
                    steps: steps.clone(),
                    reverse: direction.reverse,
                    rows: rows.clone(),
                    units: units.clone(),
                    tape: tape.beginning_at(units.start),
                    dy: dy.map(|dy| dy.from_column(units.start)),
                    mask: direction.mask,
                    fields,
                    relay: ends.as_mut().and_then(Iterator::next),
                    space,
                    meter: means.team.watch().meter(),
                });
            }
        }
        means.run(shares)
    }

    /// What the recursion over the `steps` of a chunk left, multiplied.
    fn products(&mut self, taped: &TapedSteps<'_, E>, steps: &Range<usize>) -> Result<()> {
        let (direction, means, targets) = (&self.direction, self.means, &mut self.targets);
        let (rows, features) = (direction.rows_of(steps), direction.features);
        let outputs = Outputs {
            params: ParamGradients {
                weight_ih: &mut *targets.params.weight_ih,
                weight_hh: &mut *targets.params.weight_hh,
            },
            bias: &mut self.buffers.bias,
            dx: &mut targets.dx[rows.start * features..rows.end * features],
            add_dx: targets.add_dx,
        };
        let shares = products::shares(
            &direction.spec,
            direction.chunk(taped, steps, &self.buffers.chunk),
            direction.extent(),
            &self.weights.input,
            outputs,
            &mut self.buffers.product_spaces,
            || means.team.watch().meter(),
        );
        means.run(shares)
    }

    /// Gives each side's bias the sums of the slots that it adds to.
    fn put_bias(&mut self) {
        let (spec, hidden) = (self.direction.spec, self.direction.hidden);
        let Some((input_side, recurrent_side)) = &mut self.targets.bias else {
            return;
        };
        let slots = self.buffers.bias.chunks_exact(hidden);
        for (slot, sums) in slots.enumerate() {
            let rows = spec.gate[slot] * hidden..(spec.gate[slot] + 1) * hidden;
            if slot < spec.input {
                input_side[rows.clone()].copy_from_slice(sums);
            }
            if spec.is_recurrent(slot) {
                recurrent_side[rows].copy_from_slice(sums);
            }
        }
    }
}

impl<E: Element> OutputGradient<'_, E> {
    /// To be read step by step.
    fn table<'b>(&'b self, schedule: &'b Schedule) -> Table<'b, E> {
        let layout = Layout {
            schedule,
            first_step: 0,
            slots: 1,
            width: self.width,
        };
        Table::new(&self.values, layout).from_column(self.column)
    }
}

impl<E: Element> Direction<'_, E> {
    /// What forward left of some steps, to be read step by step; the mirror of `TapeCutter`.
    fn tables<'b>(&'b self, taped: &TapedSteps<'b, E>) -> StepTables<'b, E> {
        let (spec, tape) = (self.spec, taped.tape);
        let table = |values, slots| Table::new(values, self.layout(taped.steps.start, slots));
        StepTables {
            h_before: table(&tape.h_before, 1),
            c_before: spec.has_cell.then(|| table(&tape.c_before, 1)),
            slots: (spec.saved > 0).then(|| table(&tape.slots, spec.saved)),
        }
    }

    /// What the products read of the `steps` of a chunk.
    fn chunk<'b>(
        &'b self,
        taped: &TapedSteps<'b, E>,
        steps: &Range<usize>,
        gradients: &'b ChunkGradients<E>,
    ) -> Chunk<'b, E> {
        let (rows, hidden) = (self.rows_of(steps), self.hidden);
        let len = rows.len() * hidden;
        let first = (rows.start - self.rows_of(taped.steps).start) * hidden;
        let staged = if self.spec.has_reset_stage() { len } else { 0 };
        Chunk {
            pre: &gradients.pre[..len * self.spec.slots],
            input: &self.input[rows.start * self.features..rows.end * self.features],
            operand: if self.mask.is_some() {
                &gradients.operand[..len]
            } else {
                &taped.tape.h_before[first..first + len]
            },
            reset_operand: &gradients.reset_operand[..staged],
            rows: rows.len(),
            ascending: self.reverse,
        }
    }

    fn extent(&self) -> Extent {
        Extent {
            hidden: self.hidden,
            features: self.features,
            slots: self.spec.slots,
        }
    }

    /// Segments that are made again at once, the last ones taken first: as many as fit in a chunk, which has
    /// to be in memory anyway, and at least one. The first of them, and the steps of all.
    pub fn together(
        &self,
        checkpoints: &Checkpoints<E>,
    ) -> impl Iterator<Item = (usize, Range<usize>)> {
        let steps = |segment| {
            let count = self.schedule.steps();
            checkpoints.steps(segment, count, self.reverse)
        };
        let mut left = checkpoints.segments.steps();
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let mut together = steps(left);
            while left > 0 {
                let before = steps(left - 1);
                let wider = together.start.min(before.start)..together.end.max(before.end);
                if self.rows_of(&wider).len() > CHUNK_ROWS {
                    break;
                }
                together = wider;
                left -= 1;
            }
            Some((left, together))
        })
    }

    /// The chunks of a range of steps, in the order in which backward takes them.
    fn chunks(&self, steps: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (offsets, reverse) = (self.schedule.offsets(), self.reverse);
        let mut left = steps;
        std::iter::from_fn(move || {
            if left.is_empty() {
                return None;
            }
            if reverse {
                let most = offsets[left.start] + CHUNK_ROWS;
                let fits = |&t: &usize| offsets[t] <= most;
                let end = (left.start + 1..=left.end).take_while(fits).last();
                let end = end.unwrap_or(left.start + 1);
                Some(std::mem::replace(&mut left.start, end)..end)
            } else {
                let fits = |&t: &usize| offsets[left.end] - offsets[t] <= CHUNK_ROWS;
                let begin = (left.start..left.end).rev().take_while(fits).last();
                let begin = begin.unwrap_or(left.end - 1);
                Some(begin..std::mem::replace(&mut left.end, begin))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::config::CellKind;

    #[test]
    fn segments_are_made_again_as_many_at_once_as_fit_in_a_chunk() {
        let groups = |schedule: &Schedule, distance, reverse| {
            let spec = CellKind::Lstm.spec();
            let direction = Direction::<f32> {
                cell: CellKind::Lstm,
                spec,
                hidden: 1,
                features: 1,
                reverse,
                schedule,
                still: schedule,
                mask: None,
                input: &[],
            };
            let kept = Checkpoints::new(&spec, schedule, distance, 1).unwrap();
            direction.together(&kept).collect::<Vec<_>>()
        };
        // 100 rows: two steps fit, whatever the segments; of three no second segment does.
        let dense = Schedule::dense(7, 100).unwrap();
        assert_eq!(
            groups(&dense, 1, false),
            [(5, 5..7), (3, 3..5), (1, 1..3), (0, 0..1)]
        );
        assert_eq!(groups(&dense, 1, true)[..2], [(5, 0..2), (3, 2..4)]);
        assert_eq!(groups(&dense, 3, false), [(2, 6..7), (1, 3..6), (0, 0..3)]);
        assert_eq!(groups(&dense, 7, true), [(0, 0..7)]);
        // One row to the end, 256 at the first step.
        let mut lengths = vec![1; 256];
        lengths[0] = 9;
        let ragged = Schedule::ragged(9, 256, &lengths).unwrap();
        assert_eq!(groups(&ragged, 2, false), [(1, 2..9), (0, 0..2)]);
        assert_eq!(groups(&ragged, 2, true), [(4, 0..1), (0, 1..9)]);
        assert_eq!(groups(&Schedule::dense(0, 5).unwrap(), 2, false), []);
    }

    #[test]
    fn chunks_cover_all_steps_from_the_last_one_taken() {
        // Steps of 100 rows, of which two fit; steps of 1 row; steps of more rows than fit.
        for (batch, lengths, expected) in [
            (100, vec![5; 100], vec![3..5, 1..3, 0..1]),
            (1, vec![300], vec![44..300, 0..44]),
            (300, vec![2; 300], vec![1..2, 0..1]),
        ] {
            let time = lengths[0] as usize;
            let schedule = Schedule::ragged(time, batch, &lengths).unwrap();
            let direction = |reverse| Direction::<f32> {
                cell: CellKind::Lstm,
                spec: CellKind::Lstm.spec(),
                hidden: 1,
                features: 1,
                reverse,
                schedule: &schedule,
                still: &schedule,
                mask: None,
                input: &[],
            };
            assert_eq!(
                direction(false).chunks(0..time).collect::<Vec<_>>(),
                expected
            );
            let mirrored: Vec<_> = expected
                .iter()
                .map(|steps| time - steps.end..time - steps.start)
                .collect();
            assert_eq!(
                direction(true).chunks(0..time).collect::<Vec<_>>(),
                mirrored
            );
        }
    }
}
