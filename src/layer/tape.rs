//! What forward leaves for backward. Backward reads it and never writes to it.

use std::ops::Range;

use crate::cell::Spec;
use crate::error::Result;
use crate::layer::config::Config;
use crate::layer::dropout::Masks;
use crate::memory::{Buffer, copied, product, zeros};
use crate::shape::Schedule;
use crate::simd::Element;

/// h and c of every row, [B, H] in the schedule's order, or several of these one after the other; c is empty
/// for a cell without.
#[derive(Debug)]
pub struct DirectionState<E> {
    /// h.
    pub h: Vec<E>,
    /// c.
    pub c: Vec<E>,
}

impl<E: Element> DirectionState<E> {
    /// A copy.
    pub fn copied(&self) -> Result<Self> {
        Ok(Self {
            h: copied(&self.h, "a copy of the state")?,
            c: copied(&self.c, "a copy of the state")?,
        })
    }
}

/// The steps of a range: everything their backward reads. 1 value per unit, row and step for a vanilla
/// cell, 6 for an LSTM, 5 for a GRU, 4 for an MGU, and one less with the reset before the product.
#[derive(Debug)]
pub struct StepTape<E> {
    /// [N, H] h before each step.
    pub h_before: Buffer<E>,
    /// [N, H] c before each step; empty for a cell without.
    pub c_before: Buffer<E>,
    /// [N, slots, H] what the cell saves.
    pub slots: Buffer<E>,
}

impl<E: Element> StepTape<E> {
    /// Room for `rows` packed rows of a cell like `spec`; forward writes every one.
    pub fn new(spec: &Spec, rows: usize, hidden: usize) -> Result<Self> {
        let what = "the tape (T * B * slots * H)";
        let sized = |slots| Buffer::stale(product(&[rows, slots, hidden], what)?, what);
        Ok(Self {
            h_before: sized(1)?,
            c_before: sized(usize::from(spec.has_cell))?,
            slots: sized(spec.saved)?,
        })
    }
}

/// The states with which segments of steps begin, from which their tape is made again. Segments are numbered
/// in the order in which forward goes through them.
#[derive(Debug)]
pub struct Checkpoints<E> {
    /// Steps of a segment; the last one may have fewer.
    pub distance: usize,
    /// Where the states lie: a step for each segment, with all rows.
    pub segments: Schedule,
    /// [segments, B, H] each.
    pub states: DirectionState<E>,
}

impl<E: Element> Checkpoints<E> {
    /// Room for a state every `distance` steps of `schedule`.
    pub fn new(spec: &Spec, schedule: &Schedule, distance: usize, hidden: usize) -> Result<Self> {
        let what = "the checkpoints (T / k * B * H)";
        let (count, batch) = (schedule.steps().div_ceil(distance), schedule.batch());
        let sized = |members| zeros(product(&[count, members, batch, hidden], what)?, what);
        Ok(Self {
            distance,
            segments: Schedule::dense(count, batch)?,
            states: DirectionState {
                h: sized(1)?,
                c: sized(usize::from(spec.has_cell))?,
            },
        })
    }

    /// A copy of the state with which a segment begins.
    pub fn state(&self, segment: usize) -> Result<DirectionState<E>> {
        let part = |states: &[E]| {
            let len = states.len() / self.segments.steps();
            copied(&states[segment * len..(segment + 1) * len], "a checkpoint")
        };
        Ok(DirectionState {
            h: part(&self.states.h)?,
            c: part(&self.states.c)?,
        })
    }

    /// The steps of a segment, where there are so many in all.
    pub fn steps(&self, segment: usize, count: usize, reverse: bool) -> Range<usize> {
        let begin = segment * self.distance;
        let end = begin.saturating_add(self.distance).min(count);
        if reverse {
            count - end..count - begin
        } else {
            begin..end
        }
    }
}

/// What a direction keeps of its steps.
#[derive(Debug)]
pub enum Kept<E> {
    /// All of them.
    Steps(StepTape<E>),
    /// The state now and then.
    Checkpoints(Checkpoints<E>),
}

/// One direction of one layer.
#[derive(Debug)]
pub struct DirectionTape<E> {
    /// Its steps.
    pub kept: Kept<E>,
    /// [B, H] the final h, where outputs are read back; else empty.
    pub last: Vec<E>,
    /// [N, H] the outputs, where a product of directions needs them and checkpoints dropped the steps.
    pub outputs: Vec<E>,
}

/// What one `forward` leaves for `backward`.
#[derive(Debug)]
pub struct Tape<E> {
    pub(crate) config: Config,
    pub(crate) schedule: Schedule,
    pub(crate) batch_first: bool,
    pub(crate) masks: Option<Masks>,
    /// [N, I] of each layer.
    pub(crate) inputs: Vec<Buffer<E>>,
    /// Layer by layer, direction by direction.
    pub(crate) directions: Vec<DirectionTape<E>>,
}

impl<E: Element> Tape<E> {
    /// Bytes held, the copy of x included.
    pub fn nbytes(&self) -> usize {
        let mut values: usize = self.inputs.iter().map(|x| x.len()).sum();
        for direction in &self.directions {
            values += direction.last.len() + direction.outputs.len();
            values += match &direction.kept {
                Kept::Steps(tape) => tape.h_before.len() + tape.c_before.len() + tape.slots.len(),
                Kept::Checkpoints(Checkpoints { states, .. }) => states.h.len() + states.c.len(),
            };
        }
        values * size_of::<E>()
    }

    /// Whether the caller's arrays have batch before time.
    pub fn is_batch_first(&self) -> bool {
        self.batch_first
    }

    /// T and B of the call.
    pub fn sizes(&self) -> (usize, usize) {
        (self.schedule.time(), self.schedule.batch())
    }
}

/// The output of each packed row of `steps`, [N, H]: what the next step (against the direction: the one
/// before) began with, or the final state.
pub fn outputs<E: Element>(
    tape: &StepTape<E>,
    steps: Range<usize>,
    schedule: &Schedule,
    reverse: bool,
    last: &[E],
    hidden: usize,
) -> Result<Vec<E>> {
    let mut values = crate::memory::reserved(tape.h_before.len(), "the outputs (N * H)")?;
    let offset = schedule.offsets()[steps.start];
    for t in steps.clone() {
        let next = if reverse {
            t.checked_sub(1)
        } else {
            Some(t + 1)
        }
        .filter(|next| steps.contains(next));
        let going_on = next.map_or(0, |next| schedule.active(next).min(schedule.active(t)));
        if let Some(next) = next {
            let first = (schedule.rows(next).start - offset) * hidden;
            values.extend_from_slice(&tape.h_before[first..first + going_on * hidden]);
        }
        values.extend_from_slice(&last[going_on * hidden..schedule.active(t) * hidden]);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::config::CellKind;

    #[test]
    fn segments_cover_all_steps_in_order_taken() {
        let segments = |steps, distance, reverse| {
            let schedule = Schedule::dense(steps, 3).unwrap();
            let spec = CellKind::Lstm.spec();
            let kept = Checkpoints::<f32>::new(&spec, &schedule, distance, 2).unwrap();
            let count = kept.segments.steps();
            assert_eq!(kept.states.c.len(), count * 6);
            let ranges = (0..count).map(|segment| kept.steps(segment, steps, reverse));
            ranges.collect::<Vec<_>>()
        };
        assert_eq!(segments(5, 2, false), [0..2, 2..4, 4..5]);
        assert_eq!(segments(5, 2, true), [3..5, 1..3, 0..1]);
        let whole: [_; 1] = std::array::from_fn(|_| 0..5);
        assert_eq!(segments(5, usize::MAX, true), whole);
        assert_eq!(segments(0, 1, false), []);
    }

    #[test]
    fn a_checkpoint_is_the_state_of_its_segment() {
        let schedule = Schedule::dense(3, 2).unwrap();
        let spec = CellKind::Rnn { relu: false }.spec();
        let mut kept = Checkpoints::<f64>::new(&spec, &schedule, 2, 1).unwrap();
        kept.states.h.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let state = kept.state(1).unwrap();
        assert_eq!((state.h, state.c), (vec![3.0, 4.0], vec![]));
    }
}
