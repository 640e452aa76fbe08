//! What the tape knows of every gate, in the caller's layout.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::Result;
use crate::layer::call::Call;
use crate::layer::direction::Direction;
use crate::layer::merge::{Columns, copy, unpack_columns};
use crate::layer::stack::NamedGate;
use crate::layer::tape::{DirectionTape, Kept, StepTape, Tape, outputs};
use crate::layer::weights::ForwardWeights;
use crate::memory::{product, zeros};
use crate::simd::Element;

impl Call<'_> {
    /// The gates of all layers, direction by direction.
    pub fn gates<E: Element>(
        &self,
        params: &[&[E]],
        tape: &Tape<E>,
    ) -> Result<Vec<Vec<NamedGate<E>>>> {
        let mut all = Vec::new();
        for layer in 0..self.config.layers {
            let masks = self.recurrent_masks::<E>(layer)?;
            for (index, mask) in self.indices(layer).zip(&masks) {
                let direction = self.direction(index, mask.as_deref(), &tape.inputs[layer]);
                let again = self.recompute_weights(params, index, tape)?;
                let slots = self.slots(&direction, &tape.directions[index], again.as_ref())?;
                all.push(self.named_gates(&slots, tape.batch_first)?);
            }
        }
        Ok(all)
    }

    /// Values of one packed row of [`Self::slots`].
    fn slots_len(&self) -> usize {
        self.spec.saved.max(1) * self.config.hidden
    }

    /// [N, slots, H] what a direction saved of all its steps; the outputs of a cell that saves nothing.
    fn slots<E: Element>(
        &self,
        direction: &Direction<'_, E>,
        tape: &DirectionTape<E>,
        again: Option<&ForwardWeights<E>>,
    ) -> Result<Vec<E>> {
        let what = "the gates (T * B * G * H)";
        let (offsets, row_len) = (self.schedule.offsets(), self.slots_len());
        let len = product(&[self.schedule.packed_rows(), row_len], what)?;
        let mut slots = zeros(len, what)?;
        let mut put = |steps: &Range<usize>, kept: &StepTape<E>, last: &[E]| {
            let to = &mut slots[offsets[steps.start] * row_len..offsets[steps.end] * row_len];
            let from = self.slots_of(direction, steps, kept, last)?;
            copy(&from, to, &self.meter())
        };
        match &tape.kept {
            Kept::Steps(kept) => put(&(0..self.schedule.steps()), kept, &tape.last)?,
            Kept::Checkpoints(checkpoints) => {
                let weights = again.expect("checkpoints come with packed weights");
                for (segment, steps) in direction.together(checkpoints) {
                    let (means, state) = (self.means::<E>(), checkpoints.state(segment)?);
                    let (made, after) = direction.recompute(means, weights, &steps, state)?;
                    put(&steps, &made, &after.h)?;
                }
            }
        }
        Ok(slots)
    }

    /// [rows, slots, H] of some steps, from their tape and h after the last of them.
    fn slots_of<'t, E: Element>(
        &self,
        direction: &Direction<'_, E>,
        steps: &Range<usize>,
        tape: &'t StepTape<E>,
        last: &[E],
    ) -> Result<Cow<'t, [E]>> {
        if self.spec.saved > 0 {
            return Ok(Cow::Borrowed(&tape.slots));
        }
        let (schedule, reverse) = (self.schedule, direction.reverse);
        outputs(
            tape,
            steps.clone(),
            schedule,
            reverse,
            last,
            direction.hidden,
        )
        .map(Cow::Owned)
    }

    /// Each gate's slot of a direction, (T, B, H) or (B, T, H), 0 beyond the lengths.
    fn named_gates<E: Element>(&self, slots: &[E], batch_first: bool) -> Result<Vec<NamedGate<E>>> {
        let hidden = self.config.hidden;
        let gate = |&(name, slot): &(&'static str, usize)| {
            let columns = Columns {
                packed: slots,
                row_len: self.slots_len(),
                first: slot * hidden,
                width: hidden,
            };
            let what = "the gates (T * B * H)";
            Ok((
                name,
                unpack_columns(columns, self.schedule, batch_first, what, &self.meter())?,
            ))
        };
        self.spec.gates.iter().map(gate).collect()
    }
}
