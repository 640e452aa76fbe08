//! One direction of one layer, whole: shares for the team, chunks for the products, checkpoints.

use std::ops::Range;

use crate::cell::Spec;
use crate::error::Result;
use crate::gemm::view::{Field, Layout, Table};
use crate::layer::backward::{BackwardShare, BackwardSpace, GradientFields, StepTables};
use crate::layer::config::CellKind;
use crate::layer::forward::{ForwardShare, StateFields, StepFields, Workspace};
use crate::layer::products::{self, Chunk, Extent, Outputs, ParamGradients, ProductSpace};
use crate::layer::tape::{DirectionState, DirectionTape, Kept, Segment, StepTape};
use crate::layer::weights::{BackwardWeights, ForwardWeights, Lanes};
use crate::memory::{copied, filled, product};
use crate::parallel::Team;
use crate::shape::Schedule;
use crate::simd::{Element, Level};

/// Packed rows whose dpre is held at once: enough for the products to run at full speed, few enough to
/// stay in L2 at H = 128. Measured flat between 128 and 512.
const CHUNK_ROWS: usize = 256;

/// What one direction of one layer is.
#[derive(Clone, Copy)]
pub struct Direction<'a, E> {
    /// The cell.
    pub cell: CellKind,
    /// What drivers know of it.
    pub spec: Spec,
    /// H.
    pub hidden: usize,
    /// I of this layer.
    pub features: usize,
    /// Against time.
    pub reverse: bool,
    /// Which rows are there when.
    pub schedule: &'a Schedule,
    /// One step of B rows: where states lie.
    pub still: &'a Schedule,
    /// [B, H] recurrent dropout.
    pub mask: Option<&'a [E]>,
    /// [N, I]
    pub input: &'a [E],
}

/// How a call computes.
#[derive(Clone, Copy)]
pub struct Means<'a, 'w> {
    /// Who computes.
    pub team: &'a Team<'w>,
    /// With which instructions.
    pub level: Level,
    /// What these look like.
    pub lanes: Lanes,
}

/// What a forward pass over some steps writes.
pub struct ForwardTargets<'a, E> {
    /// The state before, then after.
    pub state: &'a mut DirectionState<E>,
    /// [N, H]
    pub y: Option<Field<'a, E>>,
    /// Of the steps.
    pub tape: Option<&'a mut StepTape<E>>,
}

impl<'a, E: Element> Direction<'a, E> {
    /// A layout of packed rows that begins at `first_step`.
    fn layout(&self, first_step: usize, slots: usize) -> Layout<'a> {
        Layout {
            schedule: self.schedule,
            first_step,
            slots,
            width: self.hidden,
        }
    }

    fn state_fields<'b>(&'b self, state: &'b mut DirectionState<E>) -> StateFields<'b, E>
    where
        'a: 'b,
    {
        let layout = Layout {
            schedule: self.still,
            first_step: 0,
            slots: 1,
            width: self.hidden,
        };
        let c = self.spec.has_cell.then(|| Field::new(&mut state.c, layout));
        StateFields {
            h: Field::new(&mut state.h, layout),
            c,
        }
    }

    /// The shares of this direction over `steps`, one for each of `cuts`.
    pub fn forward_shares<'b>(
        &'b self,
        team: &'b Team<'_>,
        weights: &'b ForwardWeights<E>,
        steps: Range<usize>,
        targets: ForwardTargets<'b, E>,
        cuts: &[Range<usize>],
        spaces: &'b mut [Workspace<E>],
    ) -> Vec<ForwardShare<'b, E>> {
        let ForwardTargets { state, y, tape } = targets;
        let first = steps.start;
        let mut state = Cutter::new(self.state_fields(state), |s, at| {
            let (h, h_rest) = s.h.split_rows(at);
            let (c, c_rest) = split(s.c, at);
            (
                StateFields { h, c },
                StateFields {
                    h: h_rest,
                    c: c_rest,
                },
            )
        });
        let mut y = Cutter::new(y, split);
        let fields = tape.map(|tape| StepFields {
            h_before: Field::new(&mut tape.h_before, self.layout(first, 1)),
            c_before: self
                .spec
                .has_cell
                .then(|| Field::new(&mut tape.c_before, self.layout(first, 1))),
            slots: (self.spec.saved > 0)
                .then(|| Field::new(&mut tape.slots, self.layout(first, self.spec.saved))),
        });
        let mut tape = Cutter::new(fields, |fields, at| match fields {
            None => (None, None),
            Some(StepFields {
                h_before,
                c_before,
                slots,
            }) => {
                let ((h, h_rest), (c, c_rest), (s, s_rest)) = (
                    h_before.split_rows(at),
                    split(c_before, at),
                    split(slots, at),
                );
                let below = StepFields {
                    h_before: h,
                    c_before: c,
                    slots: s,
                };
                (
                    Some(below),
                    Some(StepFields {
                        h_before: h_rest,
                        c_before: c_rest,
                        slots: s_rest,
                    }),
                )
            }
        });
        let shares = cuts.iter().zip(spaces).map(|(rows, space)| ForwardShare {
            cell: self.cell,
            spec: self.spec,
            weights,
            hidden: self.hidden,
            features: self.features,
            schedule: self.schedule,
            steps: steps.clone(),
            reverse: self.reverse,
            rows: rows.clone(),
            input: self.input,
            mask: self.mask,
            state: state.take(rows.end),
            y: y.take(rows.end),
            tape: tape.take(rows.end),
            space,
            meter: team.watch().meter(),
        });
        shares.collect()
    }

    /// Memory for [`Self::forward_shares`].
    pub fn forward_spaces(&self, lanes: Lanes, cuts: &[Range<usize>]) -> Result<Vec<Workspace<E>>> {
        let sizes = (self.hidden, self.features);
        cuts.iter()
            .map(|rows| Workspace::new(&self.spec, lanes, rows.len(), self.schedule.steps(), sizes))
            .collect()
    }

    /// Makes the tape of a checkpointed segment again.
    pub fn recompute(
        &self,
        means: Means<'_, '_>,
        weights: &ForwardWeights<E>,
        steps: Range<usize>,
        start: &DirectionState<E>,
    ) -> Result<(StepTape<E>, DirectionState<E>)> {
        let mut state = start.copied()?;
        let rows = self.rows_of(&steps);
        let mut tape = StepTape::zeroed(&self.spec, rows.len(), self.hidden)?;
        let cuts = self.schedule.split_rows(means.team.size());
        let mut spaces = self.forward_spaces(means.lanes, &cuts)?;
        let targets = ForwardTargets {
            state: &mut state,
            y: None,
            tape: Some(&mut tape),
        };
        let shares = self.forward_shares(means.team, weights, steps, targets, &cuts, &mut spaces);
        means
            .team
            .run(shares, |share| E::dispatch(means.level, share))?;
        Ok((tape, state))
    }

    /// The packed rows of some steps.
    fn rows_of(&self, steps: &Range<usize>) -> Range<usize> {
        let offsets = self.schedule.offsets();
        offsets[steps.start]..offsets[steps.end]
    }
}

/// The gradient of y as one direction sees it: packed rows of `width`, of which its own begin at `column`.
#[derive(Clone, Copy)]
pub struct OutputGradient<'a, E> {
    /// [N, width]
    pub values: &'a [E],
    /// M, or H.
    pub width: usize,
    /// The first of this direction's.
    pub column: usize,
}

/// What backward of one direction writes, besides dx.
pub struct BackwardTargets<'a, E> {
    /// The gradient of the final state, then of the initial one.
    pub state: &'a mut DirectionState<E>,
    /// dW, dU, and the biases' gradients.
    pub params: ParamGradients<'a, E>,
    /// Of the input side and of the recurrent side.
    pub bias: Option<(&'a mut [E], &'a mut [E])>,
    /// [N, I]
    pub dx: &'a mut [E],
    /// Whether dx holds the other direction's part.
    pub add_dx: bool,
    /// [N, H] the whole dL/dh_t and dL/dc_t.
    pub shown: Option<(&'a mut [E], Option<&'a mut [E]>)>,
}

/// Everything that backward of one direction needs for its chunks, allocated before it begins.
struct BackwardBuffers<E> {
    cuts: Vec<Range<usize>>,
    spaces: Vec<BackwardSpace<E>>,
    product_spaces: Vec<ProductSpace<E>>,
    /// [chunk, slots, H]
    pre: Vec<E>,
    /// [chunk, H], when masked
    operand: Vec<E>,
    /// [chunk, H], of a two-stage cell
    reset_operand: Vec<E>,
    /// [B, H] h after the step, for a cell that reads it
    output: Vec<E>,
    /// [slots, H]
    bias: Vec<E>,
}

impl<'a, E: Element> Direction<'a, E> {
    /// Back over all steps. `forward_weights` are there when checkpoints must be recomputed.
    pub fn backward(
        &self,
        means: Means<'_, '_>,
        (forward_weights, weights): (Option<&ForwardWeights<E>>, &BackwardWeights<E>),
        tape: &DirectionTape<E>,
        dy: Option<OutputGradient<'_, E>>,
        mut targets: BackwardTargets<'_, E>,
    ) -> Result<()> {
        let mut buffers = self.buffers(means, tape)?;
        for Segment { steps, kept } in tape.segments.iter().rev() {
            match (kept, forward_weights) {
                (Kept::Steps(steps_tape), _) => {
                    self.backward_segment(
                        means,
                        weights,
                        steps,
                        steps_tape,
                        dy,
                        &mut targets,
                        &mut buffers,
                    )?;
                }
                (Kept::Checkpoint(start), Some(forward_weights)) => {
                    let (steps_tape, _) =
                        self.recompute(means, forward_weights, steps.clone(), start)?;
                    self.backward_segment(
                        means,
                        weights,
                        steps,
                        &steps_tape,
                        dy,
                        &mut targets,
                        &mut buffers,
                    )?;
                }
                (Kept::Checkpoint(_), None) => unreachable!("checkpoints come with packed weights"),
            }
        }
        if let Some((input_side, recurrent_side)) = targets.bias {
            for slot in 0..self.spec.slots {
                let sums = &buffers.bias[slot * self.hidden..(slot + 1) * self.hidden];
                let rows =
                    self.spec.gate[slot] * self.hidden..(self.spec.gate[slot] + 1) * self.hidden;
                if slot < self.spec.input {
                    input_side[rows.clone()].copy_from_slice(sums);
                }
                if self.spec.is_recurrent(slot) {
                    recurrent_side[rows].copy_from_slice(sums);
                }
            }
        }
        Ok(())
    }

    fn extent(&self) -> Extent {
        Extent {
            hidden: self.hidden,
            features: self.features,
            slots: self.spec.slots,
        }
    }

    fn buffers(&self, means: Means<'_, '_>, tape: &DirectionTape<E>) -> Result<BackwardBuffers<E>> {
        let (lanes, hidden, what) = (
            means.lanes,
            self.hidden,
            "a chunk of gradients (rows * G * H)",
        );
        let cuts = self.schedule.split_rows(means.team.size());
        let rows = CHUNK_ROWS
            .max(self.schedule.batch())
            .min(self.schedule.packed_rows());
        let sized = |wanted: bool, slots| -> Result<Vec<E>> {
            filled(
                if wanted {
                    product(&[rows, slots, hidden], what)?
                } else {
                    0
                },
                E::ZERO,
                what,
            )
        };
        let parts = means.team.size();
        Ok(BackwardBuffers {
            spaces: cuts
                .iter()
                .map(|rows| BackwardSpace::new(lanes, rows.len()))
                .collect::<Result<_>>()?,
            product_spaces: (0..parts)
                .map(|_| ProductSpace::new(lanes, rows, self.extent(), parts))
                .collect::<Result<_>>()?,
            cuts,
            pre: sized(true, self.spec.slots)?,
            operand: sized(self.mask.is_some(), 1)?,
            reset_operand: sized(self.spec.has_reset_stage(), 1)?,
            output: copied(&tape.last, what)?,
            bias: filled(self.spec.slots * hidden, E::ZERO, what)?,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_segment(
        &self,
        means: Means<'_, '_>,
        weights: &BackwardWeights<E>,
        steps: &Range<usize>,
        tape: &StepTape<E>,
        dy: Option<OutputGradient<'_, E>>,
        targets: &mut BackwardTargets<'_, E>,
        buffers: &mut BackwardBuffers<E>,
    ) -> Result<()> {
        for chunk in self.chunks(steps.clone()) {
            let rows = self.rows_of(&chunk);
            self.recursion(
                means,
                weights,
                (steps.start, tape),
                chunk.clone(),
                dy,
                targets,
                buffers,
            )?;
            let offset = rows.start - self.rows_of(steps).start;
            let operand = if self.mask.is_some() {
                &buffers.operand[..rows.len() * self.hidden]
            } else {
                &tape.h_before[offset * self.hidden..(offset + rows.len()) * self.hidden]
            };
            let reset_rows = if self.spec.has_reset_stage() {
                rows.len()
            } else {
                0
            };
            let chunk = Chunk {
                pre: &buffers.pre[..rows.len() * self.spec.slots * self.hidden],
                input: &self.input[rows.start * self.features..rows.end * self.features],
                operand,
                reset_operand: &buffers.reset_operand[..reset_rows * self.hidden],
                rows: rows.len(),
                ascending: self.reverse,
            };
            let outputs = Outputs {
                params: ParamGradients {
                    weight_ih: &mut *targets.params.weight_ih,
                    weight_hh: &mut *targets.params.weight_hh,
                },
                bias: &mut buffers.bias,
                dx: &mut targets.dx[rows.start * self.features..rows.end * self.features],
                add_dx: targets.add_dx,
            };
            let meter = || means.team.watch().meter();
            let shares = products::shares(
                &self.spec,
                chunk,
                self.extent(),
                &weights.input,
                outputs,
                &mut buffers.product_spaces,
                meter,
            );
            means
                .team
                .run(shares, |share| E::dispatch(means.level, share))?;
        }
        Ok(())
    }

    /// The chunks of a range of steps, in the order in which backward takes them.
    fn chunks(&self, steps: Range<usize>) -> Vec<Range<usize>> {
        let offsets = self.schedule.offsets();
        let mut chunks = Vec::new();
        let mut left = steps;
        while !left.is_empty() {
            let chunk = if self.reverse {
                let most = offsets[left.start] + CHUNK_ROWS;
                let end = (left.start + 1..=left.end)
                    .take_while(|&t| offsets[t] <= most)
                    .last();
                left.start..end.unwrap_or(left.start + 1)
            } else {
                let begin = (left.start..left.end)
                    .rev()
                    .take_while(|&t| offsets[left.end] - offsets[t] <= CHUNK_ROWS)
                    .last();
                begin.unwrap_or(left.end - 1)..left.end
            };
            if self.reverse {
                left.start = chunk.end
            } else {
                left.end = chunk.start
            }
            chunks.push(chunk);
        }
        chunks
    }

    /// The recursion over one chunk, shared by rows.
    #[allow(clippy::too_many_arguments)]
    fn recursion(
        &self,
        means: Means<'_, '_>,
        weights: &BackwardWeights<E>,
        (first, tape): (usize, &StepTape<E>),
        steps: Range<usize>,
        dy: Option<OutputGradient<'_, E>>,
        targets: &mut BackwardTargets<'_, E>,
        buffers: &mut BackwardBuffers<E>,
    ) -> Result<()> {
        let tables = StepTables {
            h_before: Table::new(&tape.h_before, self.layout(first, 1)),
            c_before: self
                .spec
                .has_cell
                .then(|| Table::new(&tape.c_before, self.layout(first, 1))),
            slots: (self.spec.saved > 0)
                .then(|| Table::new(&tape.slots, self.layout(first, self.spec.saved))),
        };
        let dy = dy.map(|dy| {
            let layout = Layout {
                schedule: self.schedule,
                first_step: 0,
                slots: 1,
                width: dy.width,
            };
            Table::new(dy.values, layout).from_column(dy.column)
        });
        let chunk = |slots| self.layout(steps.start, slots);
        let still = Layout {
            schedule: self.still,
            first_step: 0,
            slots: 1,
            width: self.hidden,
        };
        let rows = self.rows_of(&steps).len();
        let mut pre = Cutter::new(
            Some(Field::new(
                &mut buffers.pre[..rows * self.spec.slots * self.hidden],
                chunk(self.spec.slots),
            )),
            split,
        );
        let masked = self.mask.is_some();
        let mut operand = Cutter::new(
            masked.then(|| Field::new(&mut buffers.operand, chunk(1))),
            split,
        );
        let staged = self.spec.has_reset_stage();
        let mut reset_operand = Cutter::new(
            staged.then(|| Field::new(&mut buffers.reset_operand, chunk(1))),
            split,
        );
        let mut output = Cutter::new(
            self.spec
                .reads_output
                .then(|| Field::new(&mut buffers.output, still)),
            split,
        );
        let (h, c) = match &mut targets.shown {
            None => (None, None),
            Some((h, c)) => (
                Some(Field::new(h, self.layout(0, 1))),
                c.as_mut().map(|c| Field::new(c, self.layout(0, 1))),
            ),
        };
        let (mut h, mut c) = (Cutter::new(h, split), Cutter::new(c, split));
        let mut dh = Cutter::new(Some(Field::new(&mut targets.state.h, still)), split);
        let mut dc = Cutter::new(
            self.spec
                .has_cell
                .then(|| Field::new(&mut targets.state.c, still)),
            split,
        );
        let shares = buffers
            .cuts
            .iter()
            .zip(&mut buffers.spaces)
            .map(|(rows, space)| BackwardShare {
                cell: self.cell,
                spec: self.spec,
                weights,
                hidden: self.hidden,
                schedule: self.schedule,
                steps: steps.clone(),
                reverse: self.reverse,
                rows: rows.clone(),
                tape: tables,
                dy,
                mask: self.mask,
                state: StateFields {
                    h: dh.take(rows.end).expect("there is an h"),
                    c: dc.take(rows.end),
                },
                output: output.take(rows.end),
                gradients: GradientFields {
                    pre: pre.take(rows.end).expect("there are gradients"),
                    operand: operand.take(rows.end),
                    reset_operand: reset_operand.take(rows.end),
                    h: h.take(rows.end),
                    c: c.take(rows.end),
                },
                space,
                meter: means.team.watch().meter(),
            });
        means
            .team
            .run(shares.collect(), |share| E::dispatch(means.level, share))
    }
}

/// Cuts rows off something, share by share.
struct Cutter<T, F> {
    rest: Option<T>,
    cut: F,
}

impl<T, F: Fn(T, usize) -> (T, T)> Cutter<T, F> {
    fn new(whole: T, cut: F) -> Self {
        Self {
            rest: Some(whole),
            cut,
        }
    }

    /// The rows before `end` that were not taken yet.
    fn take(&mut self, end: usize) -> T {
        let whole = self.rest.take().expect("a cutter always has a rest");
        let (taken, rest) = (self.cut)(whole, end);
        self.rest = Some(rest);
        taken
    }
}

fn split<'a, E: Element>(
    field: Option<Field<'a, E>>,
    at: usize,
) -> (Option<Field<'a, E>>, Option<Field<'a, E>>) {
    match field {
        None => (None, None),
        Some(field) => {
            let (below, above) = field.split_rows(at);
            (Some(below), Some(above))
        }
    }
}
