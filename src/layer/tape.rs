//! What forward leaves for backward. Backward reads it and never writes to it.

use std::ops::Range;

use crate::cell::Spec;
use crate::error::Result;
use crate::layer::config::Config;
use crate::layer::dropout::Masks;
use crate::memory::{Buffer, copied, product};
use crate::shape::Schedule;
use crate::simd::Element;

/// h and c of every row, [B, H] in the schedule's order; c is empty for a cell without.
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
            h: copied(&self.h, "a checkpoint")?,
            c: copied(&self.c, "a checkpoint")?,
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

/// A range of steps: its tape, or the state from which its tape is made again.
#[derive(Debug)]
pub struct Segment<E> {
    /// The steps.
    pub steps: Range<usize>,
    /// Kept steps, or with checkpoints the state before the range.
    pub kept: Kept<E>,
}

/// What a segment holds.
#[derive(Debug)]
pub enum Kept<E> {
    /// Every step.
    Steps(StepTape<E>),
    /// The state before the first step taken.
    Checkpoint(DirectionState<E>),
}

/// One direction of one layer.
#[derive(Debug)]
pub struct DirectionTape<E> {
    /// In the order in which forward went through them.
    pub segments: Vec<Segment<E>>,
    /// [B, H] the final h, where outputs are read back; else empty.
    pub last: Vec<E>,
    /// [N, H] the outputs, where a product of directions needs them and checkpoints dropped the steps.
    pub outputs: Vec<E>,
}

impl<E> DirectionTape<E> {
    /// Whether some segment must be recomputed.
    pub fn has_checkpoints(&self) -> bool {
        let kept = |segment: &Segment<E>| matches!(segment.kept, Kept::Steps(_));
        !self.segments.iter().all(kept)
    }
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
            for segment in &direction.segments {
                values += match &segment.kept {
                    Kept::Steps(tape) => {
                        tape.h_before.len() + tape.c_before.len() + tape.slots.len()
                    }
                    Kept::Checkpoint(state) => state.h.len() + state.c.len(),
                };
            }
        }
        values * size_of::<E>()
    }

    /// Whether the caller's arrays have batch before time.
    pub fn is_batch_first(&self) -> bool {
        self.batch_first
    }

    /// How many ranges of steps follow one another.
    pub(crate) fn segments(&self) -> usize {
        self.directions
            .first()
            .map_or(1, |direction| direction.segments.len())
    }

    /// T and B of the call.
    pub fn sizes(&self) -> (usize, usize) {
        (self.schedule.time(), self.schedule.batch())
    }
}

/// The ranges of steps of `checkpoint` steps each, in the order in which a direction takes them.
pub fn segments(
    steps: usize,
    checkpoint: Option<usize>,
    reverse: bool,
) -> impl Iterator<Item = Range<usize>> {
    let length = checkpoint.unwrap_or(steps).max(1);
    (0..steps).step_by(length).map(move |begin| {
        let end = begin.saturating_add(length).min(steps);
        if reverse {
            steps - end..steps - begin
        } else {
            begin..end
        }
    })
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

    #[test]
    fn segments_cover_all_steps_in_order_taken() {
        let whole = || std::iter::once(0..5);
        assert!(segments(5, None, false).eq(whole()));
        assert_eq!(
            segments(5, Some(2), false).collect::<Vec<_>>(),
            [0..2, 2..4, 4..5]
        );
        assert_eq!(
            segments(5, Some(2), true).collect::<Vec<_>>(),
            [3..5, 1..3, 0..1]
        );
        assert!(segments(5, Some(usize::MAX), true).eq(whole()));
        assert_eq!(segments(0, None, false).count(), 0);
    }
}
