//! x to y, from the first layer to the last.
//!
//! ```text
//! for layer in 0..L
//!   for segment in segments                both directions at once; one segment without checkpoints
//!     state, y, tape = steps(x, state)
//!   x = dropout(merge(y))
//! ```

use std::ops::Range;

use crate::error::Result;
use crate::gemm::view::{Field, Layout};
use crate::layer::call::Call;
use crate::layer::direction::{Direction, ForwardBuffers, ForwardRun};
use crate::layer::forward::ForwardShare;
use crate::layer::merge::{merge, pack, unpack};
use crate::layer::stack::{ForwardOptions, Input, Output};
use crate::layer::tape::{DirectionTape, Kept, Segment, StepTape, Tape, segments};
use crate::layer::weights::ForwardWeights;
use crate::memory::{Buffer, Values, copied, product, reserved};
use crate::parallel::Team;
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
    tape: DirectionTape<E>,
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
        let (call, options) = (self.call, self.options);
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
        let taken = |reverse| segments(call.schedule.steps(), options.checkpoint, reverse);
        for (steps, reverse_steps) in taken(false).zip(taken(true)) {
            let fields = call.output_fields(&mut ys).into_iter();
            let mut shares = Vec::new();
            for ((run, y), steps) in runs.iter_mut().zip(fields).zip([steps, reverse_steps]) {
                shares.extend(run.shares(&call.team, steps, y, options)?);
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
        let options = self.options;
        let kept = match options.training {
            true => segments(call.schedule.steps(), options.checkpoint, false).count(),
            false => 0,
        };
        Ok(DirectionRun {
            index,
            run: ForwardRun {
                direction,
                weights,
                state: call.state_of(&self.before, index)?,
                buffers: ForwardBuffers::new(&direction, call.means::<E>().lanes, cuts)?,
            },
            tape: DirectionTape {
                segments: reserved(kept, "the segments of the tape (T / k)")?,
                last: Vec::new(),
                outputs: Vec::new(),
            },
        })
    }

    /// A layer's directions after their last step: their states, and their tapes. `ys` are the outputs
    /// before they are merged.
    fn finish(&mut self, runs: Vec<DirectionRun<'_, E>>, ys: &[Buffer<E>]) -> Result<()> {
        let (call, checkpoint) = (self.call, self.options.checkpoint);
        let multiplied = call.is_multiplied();
        for (d, direction) in runs.into_iter().enumerate() {
            let DirectionRun { index, run, .. } = direction;
            let mut tape = direction.tape;
            call.put_state(&run.state, &mut self.state, index);
            let Some(kept) = &mut self.tape else {
                continue;
            };
            if multiplied && checkpoint.is_some() {
                tape.outputs = copied(&ys[d], "the tape (T * B * H)")?;
            }
            if multiplied || call.spec.reads_output {
                tape.last = run.state.h;
            }
            kept.directions.push(tape);
        }
        Ok(())
    }
}

impl<'a, E: Element> DirectionRun<'a, E> {
    /// The shares of the next `steps`, whose tape they fill when training.
    fn shares<'b>(
        &'b mut self,
        team: &'b Team<'_>,
        steps: Range<usize>,
        y: Field<'b, E>,
        options: ForwardOptions,
    ) -> Result<Vec<ForwardShare<'b, E>>>
    where
        'a: 'b,
    {
        if options.training {
            let kept = self.kept(&steps, options.checkpoint)?;
            let steps = steps.clone();
            self.tape.segments.push(Segment { steps, kept });
        }
        let tape = match self.tape.segments.last_mut() {
            Some(Segment {
                kept: Kept::Steps(tape),
                ..
            }) => Some(tape),
            _ => None,
        };
        Ok(self.run.shares(team, steps, Some(y), tape))
    }

    /// What the tape keeps of the next `steps`: room for all of them, or the state before the first.
    fn kept(&self, steps: &Range<usize>, checkpoint: Option<usize>) -> Result<Kept<E>> {
        let Direction {
            spec,
            schedule,
            hidden,
            ..
        } = self.run.direction;
        if checkpoint.is_some() {
            return Ok(Kept::Checkpoint(self.run.state.copied()?));
        }
        let rows = schedule.offsets()[steps.end] - schedule.offsets()[steps.start];
        Ok(Kept::Steps(StepTape::new(&spec, rows, hidden)?))
    }
}
