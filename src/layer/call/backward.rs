//! dy to dx, from the last layer to the first: the mirror of `forward.rs`.
//!
//! ```text
//! for layer in (0..L).rev()
//!   dy = merge backward(dropout(dy))       dropping is its own derivative
//!   for direction                          one after the other: both add to dx
//!     dstate, dparams, dx += steps back(dy, dstate)
//!   dy = dx
//! ```

use std::borrow::Cow;

use crate::error::Result;
use crate::layer::call::Call;
use crate::layer::config::Merge;
use crate::layer::direction::{
    BackwardBuffers, BackwardRun, BackwardTargets, Direction, OutputGradient,
};
use crate::layer::merge::{merge_backward, pack, unpack};
use crate::layer::products::ParamGradients;
use crate::layer::stack::{BackwardOptions, Gradients, StateGradients};
use crate::layer::tape::{DirectionTape, Kept, Tape, outputs};
use crate::memory::{Buffer, Values, product};
use crate::simd::Element;

/// A call on its way back through the layers.
struct BackwardPass<'a, E> {
    call: &'a Call<'a>,
    params: &'a [&'a [E]],
    /// (L*D, B, H) each, the gradients of the final states.
    after: &'a [Option<&'a [E]>],
    options: BackwardOptions,
    tape: &'a Tape<E>,
    /// Filled layer by layer.
    gradients: Gradients<E>,
}

impl Call<'_> {
    /// Back through all layers.
    pub fn backward<E: Element>(
        &self,
        params: &[&[E]],
        tape: &Tape<E>,
        dy: Option<&[E]>,
        dstate: &[Option<&[E]>],
        options: BackwardOptions,
    ) -> Result<Gradients<E>> {
        let mut pass = BackwardPass {
            call: self,
            params,
            after: dstate,
            options,
            tape,
            gradients: self.new_gradients(params)?,
        };
        let mut sequence = self.packed_gradient(dy, tape.batch_first)?;
        for layer in (0..self.config.layers).rev() {
            let mut dx = pass.layer(layer, sequence.as_deref())?;
            if layer > 0 {
                self.drop_between(layer - 1, &mut dx)?;
            }
            sequence = Some(Values::Owned(dx));
        }
        let mut gradients = pass.gradients;
        let (width, what) = (self.config.input, "the gradient of x (T * B * I)");
        let packed = sequence.expect("there is a layer").into_owned(what)?;
        gradients.x = unpack(
            packed,
            self.schedule,
            tape.batch_first,
            width,
            what,
            &self.meter(),
        )?;
        gradients.state_grads.reverse();
        Ok(gradients)
    }

    fn new_gradients<E: Element>(&self, params: &[&[E]]) -> Result<Gradients<E>> {
        let zeros = |like: &&[E]| Buffer::zeroed(like.len(), "the gradients of the parameters");
        Ok(Gradients {
            x: Buffer::stale(0, "the gradient of x")?,
            state: self.new_state("the gradient of the state (L * D * B * H)")?,
            params: params.iter().map(zeros).collect::<Result<_>>()?,
            state_grads: Vec::new(),
        })
    }

    /// dy [N, M]: a copy when it is not packed.
    fn packed_gradient<'y, E: Element>(
        &self,
        dy: Option<&'y [E]>,
        batch_first: bool,
    ) -> Result<Option<Values<'y, E>>> {
        let (schedule, width) = (self.schedule, self.config.output());
        let packed = |dy| match schedule.is_plain(batch_first) {
            true => Ok(Values::Borrowed(dy)),
            false => {
                let what = "the copy of dy (T * B * M)";
                pack(dy, schedule, batch_first, width, what, &self.meter()).map(Values::Owned)
            }
        };
        dy.map(packed).transpose()
    }

    /// What of dy [N, M] reaches one direction.
    fn output_gradient<'y, E: Element>(
        &self,
        index: usize,
        tape: &Tape<E>,
        dy: &'y [E],
    ) -> Result<OutputGradient<'y, E>> {
        let hidden = self.config.hidden;
        let (layer, reverse) = self.place(index);
        if self.is_side_by_side() {
            return Ok(OutputGradient {
                values: Values::Borrowed(dy),
                width: self.config.output(),
                column: usize::from(reverse) * hidden,
            });
        }
        let values = match self.config.merge {
            Merge::Sum | Merge::Concat => Values::Borrowed(dy),
            Merge::Mean => Values::Owned(merge_backward(dy, None, &self.meter())?),
            Merge::Mul => {
                let other = &tape.directions[self.indices(layer)][usize::from(!reverse)];
                let outputs = self.outputs_of(other, !reverse)?;
                Values::Owned(merge_backward(dy, Some(&outputs), &self.meter())?)
            }
        };
        Ok(OutputGradient {
            values,
            width: hidden,
            column: 0,
        })
    }

    /// [N, H] what a direction gave, from its tape.
    fn outputs_of<'t, E: Element>(
        &self,
        tape: &'t DirectionTape<E>,
        reverse: bool,
    ) -> Result<Cow<'t, [E]>> {
        match &tape.kept {
            Kept::Steps(kept) => {
                let (schedule, hidden) = (self.schedule, self.config.hidden);
                let steps = 0..schedule.steps();
                outputs(kept, steps, schedule, reverse, &tape.last, hidden).map(Cow::Owned)
            }
            Kept::Checkpoints(_) => Ok(Cow::Borrowed(&tape.outputs)),
        }
    }

    /// [N, H] for the gradients of a direction's states, if they are wanted.
    fn new_state_gradients<E: Element>(
        &self,
        options: BackwardOptions,
    ) -> Result<Option<StateGradients<E>>> {
        if !options.state_grads {
            return Ok(None);
        }
        let what = "the gradients of the states (T * B * H)";
        let len = product(&[self.schedule.packed_rows(), self.config.hidden], what)?;
        let zeros = || Buffer::zeroed(len, what);
        Ok(Some(StateGradients {
            h: zeros()?,
            c: self.spec.has_cell.then(zeros).transpose()?,
        }))
    }
}

impl<E: Element> BackwardPass<'_, E> {
    /// Back through one layer, both directions: [N, I] from [N, M].
    fn layer(&mut self, layer: usize, dy: Option<&[E]>) -> Result<Buffer<E>> {
        let (call, tape) = (self.call, self.tape);
        let masks = call.recurrent_masks::<E>(layer)?;
        let what = "the gradient of x (T * B * I)";
        let sizes = [call.schedule.packed_rows(), call.config.input_of(layer)];
        // Every row of every chunk is written.
        let mut dx = Buffer::stale(product(&sizes, what)?, what)?;
        let mut shown = Vec::new();
        for (index, mask) in call.indices(layer).zip(&masks) {
            let direction = call.direction(index, mask.as_deref(), &tape.inputs[layer]);
            shown.extend(self.direction(index, direction, dy, &mut dx)?);
        }
        // Layers come last first: so do directions, to be turned around together.
        self.gradients.state_grads.extend(shown.into_iter().rev());
        Ok(dx)
    }

    /// Back through one direction; gives the gradients of its states, if they are wanted.
    fn direction(
        &mut self,
        index: usize,
        direction: Direction<'_, E>,
        dy: Option<&[E]>,
        dx: &mut [E],
    ) -> Result<Option<StateGradients<E>>> {
        let (call, tape, means) = (self.call, self.tape, self.call.means::<E>());
        let weights = call.backward_weights(self.params, index)?;
        let again = call.recompute_weights(self.params, index, tape)?;
        let own_tape = &tape.directions[index];
        let dy = dy.map(|dy| call.output_gradient(index, tape, dy));
        let mut run = BackwardRun {
            direction,
            weights: &weights,
            state: call.state_of(self.after, index)?,
            buffers: BackwardBuffers::new(&direction, means, own_tape)?,
            means,
            dy: dy.transpose()?,
            shown: call.new_state_gradients(self.options)?,
            targets: self.targets(index, dx, direction.reverse),
        };
        run.run(own_tape, again.as_ref())?;
        let BackwardRun { state, shown, .. } = run;
        call.put_state(&state, &mut self.gradients.state, index);
        shown.map(|shown| self.unpacked(shown)).transpose()
    }

    /// Where the gradients of a direction's parameters and of its input go.
    fn targets<'t>(
        &'t mut self,
        index: usize,
        dx: &'t mut [E],
        add_dx: bool,
    ) -> BackwardTargets<'t, E> {
        let count = self.call.config.params_per_direction();
        let own = &mut self.gradients.params[index * count..(index + 1) * count];
        let [weight_ih, weight_hh, bias @ ..] = own else {
            unreachable!("a direction has two weights at least")
        };
        let bias = match bias {
            [input_side, recurrent_side] => Some((&mut input_side[..], &mut recurrent_side[..])),
            _ => None,
        };
        BackwardTargets {
            params: ParamGradients {
                weight_ih,
                weight_hh,
            },
            bias,
            dx,
            add_dx,
        }
    }

    /// The caller's (T, B, H) or (B, T, H) from [N, H].
    fn unpacked(&self, packed: StateGradients<E>) -> Result<StateGradients<E>> {
        let (schedule, hidden) = (self.call.schedule, self.call.config.hidden);
        let unpacked = |values| {
            let what = "the gradients of the states (T * B * H)";
            unpack(
                values,
                schedule,
                self.tape.batch_first,
                hidden,
                what,
                &self.call.meter(),
            )
        };
        Ok(StateGradients {
            h: unpacked(packed.h)?,
            c: packed.c.map(unpacked).transpose()?,
        })
    }
}
