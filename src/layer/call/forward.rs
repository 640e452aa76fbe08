//! x to y, from the first layer to the last.
//!
//! ```text
//! for layer in 0..L
//!   state, y, tape = steps(x, state)       both directions at once
//!   x = dropout(merge(y))
//! ```

use crate::error::Result;
use crate::gemm::view::{Field, Layout};
use crate::layer::call::Call;
use crate::layer::direction::{Direction, ForwardBuffers, ForwardRun};
use crate::layer::merge::{merge, pack, unpack};
use crate::layer::stack::{ForwardOptions, Input, Output};
use crate::layer::tape::{Checkpoints, DirectionTape, Kept, StepTape, Tape};
use crate::layer::weights::ForwardWeights;
use crate::memory::{Buffer, Values, copied, product, reserved};
use crate::simd::Element;

/// A call on its way through the layers.
struct ForwardPass<'a, E> {
    call: &'a Call<'a>,
    params: &'a [&'a [E]],
    /// (L*D, B, H) each, as they came.
    before: Vec<Option<&'a [E]>>,
    options: ForwardOptions,
    /// (L*D, B, H) each, filled layer by layer.
    state: Vec<Vec<E>>,
    /// When training.
    tape: Option<Tape<E>>,
}

/// One direction of a layer on its way through the steps.
struct DirectionRun<'a, E> {
    /// Its place among all directions.
    index: usize,
    run: ForwardRun<'a, E>,
    /// When training.
    kept: Option<Kept<E>>,
}

impl Call<'_> {
    /// Forward through all layers.
    pub fn forward<E: Element>(
        &self,
        params: &[&[E]],
        input: Input<'_, E>,
        state: Option<&[&[E]]>,
        options: ForwardOptions,
    ) -> Result<Output<E>> {
        let (schedule, batch_first) = (self.schedule, input.batch_first);
        let before = state.unwrap_or_default().iter().copied().map(Some);
        let mut pass = ForwardPass {
            call: self,
            params,
            before: before.collect(),
            options,
            state: self.new_state("the state (L * D * B * H)")?,
            tape: match options.training {
                true => Some(self.new_tape(batch_first)?),
                false => None,
            },
        };
        let mut sequence = self.packed(input, options.training)?;
        for layer in 0..self.config.layers {
            let y = pass.layer(layer, &sequence)?;
            let mut y = y;
            if layer + 1 < self.config.layers {
                self.drop_between(layer, &mut y)?;
            }
            let x = std::mem::replace(&mut sequence, Values::Owned(y));
            if let Some(tape) = &mut pass.tape {
                tape.inputs.push(x.into_owned("the copy of x (T * B * I)")?);
            }
        }
        let width = self.config.output();
        let packed = sequence.into_owned("y (T * B * M)")?;
        Ok(Output {
            y: unpack(
                packed,
                schedule,
                batch_first,
                width,
                "y (T * B * M)",
                &self.meter(),
            )?,
            state: pass.state,
            tape: pass.tape,
        })
    }

    fn new_tape<E>(&self, batch_first: bool) -> Result<Tape<E>> {
        let (layers, what) = (self.config.layers, "the tape (L)");
        Ok(Tape {
            config: self.config.clone(),
            schedule: self.schedule.copied()?,
            batch_first,
            masks: self.masks,
            inputs: reserved(layers, what)?,
            directions: reserved(layers * self.config.directions(), what)?,
        })
    }

    /// x [N, I]: a copy when it must stay or is not packed.
    fn packed<'x, E: Element>(&self, x: Input<'x, E>, stays: bool) -> Result<Values<'x, E>> {
        let (schedule, width) = (self.schedule, self.config.input);
        if !stays && schedule.is_plain(x.batch_first) {
            let len = schedule.packed_rows() * width;
            return Ok(Values::Borrowed(&x.values[..len]));
        }
        let what = "the copy of x (T * B * I)";
        pack(
            x.values,
            schedule,
            x.batch_first,
            width,
            what,
            &self.meter(),
        )
        .map(Values::Owned)
    }

    /// [N, M] of all directions, or [N, H] of each.
    fn new_outputs<E: Element>(&self) -> Result<Vec<Buffer<E>>> {
        let what = "the outputs (N * M)";
        let len = product(&[self.schedule.packed_rows(), self.config.output()], what)?;
        let count = if self.is_side_by_side() { 1 } else { 2 };
        // Every row of every step is written.
        (0..count).map(|_| Buffer::stale(len, what)).collect()
    }

    /// Where each direction writes its part of `ys`.
    fn output_fields<'y, E: Element>(&'y self, ys: &'y mut [Buffer<E>]) -> Vec<Field<'y, E>> {
        let layout = Layout {
            schedule: self.schedule,
            first_step: 0,
            slots: 1,
            width: self.config.output(),
        };
        let fields = ys.iter_mut().map(|y| Field::new(y, layout));
        if self.config.directions() == 2 && self.is_side_by_side() {
            fields
                .flat_map(|field| <[_; 2]>::from(field.split_columns(self.config.hidden)))
                .collect()
        } else {
            fields.collect()
        }
    }

    /// One sequence [N, M].
    fn merged<E: Element>(&self, ys: Vec<Buffer<E>>) -> Result<Buffer<E>> {
        let mut ys = ys.into_iter();
        let mut y = ys.next().expect("a layer has a direction");
        if let Some(reverse) = ys.next() {
            merge(self.config.merge, &mut y, &reverse, &self.meter())?;
        }
        Ok(y)
    }
}

impl<E: Element> ForwardPass<'_, E> {
    /// One layer, both directions: [N, M] from [N, I].
    fn layer(&mut self, layer: usize, input: &[E]) -> Result<Buffer<E>> {
        let call = self.call;
        let masks = call.recurrent_masks::<E>(layer)?;
        let indices = call.indices(layer);
        let weights = indices
            .clone()
            .map(|index| call.forward_weights(self.params, index))
            .collect::<Result<Vec<_>>>()?;
        let mut runs = indices
            .zip(masks.iter().zip(&weights))
            .map(|(index, (mask, weights))| {
                let direction = call.direction(index, mask.as_deref(), input);
                self.begin(index, direction, weights)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut ys = call.new_outputs::<E>()?;
        let steps = 0..call.schedule.steps();
        if !steps.is_empty() {
            let mut shares = Vec::new();
            for (DirectionRun { run, kept, .. }, y) in
                runs.iter_mut().zip(call.output_fields(&mut ys))
            {
                shares.extend(run.shares(&call.team, steps.clone(), Some(y), kept.as_mut()));
            }
            call.means::<E>().run(shares)?;
        }
        self.finish(runs, &ys)?;
        call.merged(ys)
    }

    /// A direction before its first step.
    fn begin<'r>(
        &self,
        index: usize,
        direction: Direction<'r, E>,
        weights: &'r ForwardWeights<E>,
    ) -> Result<DirectionRun<'r, E>> {
        let call = self.call;
        let cuts = call.means::<E>().cuts(&direction, call.config.directions());
        let kept = self.options.training.then(|| self.kept(&direction));
        Ok(DirectionRun {
            index,
            run: ForwardRun {
                direction,
                weights,
                state: call.state_of(&self.before, index)?,
                buffers: ForwardBuffers::new(&direction, call.means::<E>().lanes, cuts)?,
            },
            kept: kept.transpose()?,
        })
    }

    /// Room for what a direction keeps of its steps: all of them, or a state now and then.
    fn kept(&self, direction: &Direction<'_, E>) -> Result<Kept<E>> {
        let Direction {
            spec,
            schedule,
            hidden,
            ..
        } = direction;
        match self.options.checkpoint {
            None => StepTape::new(spec, schedule.packed_rows(), *hidden).map(Kept::Steps),
            Some(distance) => {
                Checkpoints::new(spec, schedule, distance, *hidden).map(Kept::Checkpoints)
            }
        }
    }

    /// A layer's directions after their last step: their states, and their tapes. `ys` are the outputs
    /// before they are merged.
    fn finish(&mut self, runs: Vec<DirectionRun<'_, E>>, ys: &[Buffer<E>]) -> Result<()> {
        let (call, checkpoint) = (self.call, self.options.checkpoint);
        let multiplied = call.is_multiplied();
        for (d, direction) in runs.into_iter().enumerate() {
            let DirectionRun { index, run, kept } = direction;
            call.put_state(&run.state, &mut self.state, index);
            let (Some(tape), Some(kept)) = (&mut self.tape, kept) else {
                continue;
            };
            let (mut last, mut outputs) = (Vec::new(), Vec::new());
            if multiplied && checkpoint.is_some() {
                outputs = copied(&ys[d], "the tape (T * B * H)")?;
            }
            if multiplied || call.spec.reads_output {
                last = run.state.h;
            }
            tape.directions.push(DirectionTape {
                kept,
                last,
                outputs,
            });
        }
        Ok(())
    }
}
