//! One call of a stack, after its arguments were checked: layer by layer, both directions of each.
//!
//! | file | what it holds |
//! |---|---|
//! | `forward.rs` | x to y, from the first layer to the last |
//! | `backward.rs` | dy to dx, from the last layer to the first, mirroring it |
//! | `gates.rs` | what the tape knows of every gate, for the curious |
//!
//! Between layers a sequence is packed: N rows, the caller's rows of each step that are there, without
//! padding. Caller's arrays are packed on the way in and unpacked on the way out; a plain batch is laid
//! out so already, and neither is copied then.
//!
//! Two directions whose outputs are concatenated write the columns of one sequence. To be added,
//! averaged or multiplied each writes its own, and a pass over both merges them.

mod backward;
mod forward;
mod gates;

use std::ops::Range;

use crate::cell::Spec;
use crate::error::Result;
use crate::layer::Storage;
use crate::layer::config::{Config, Merge};
use crate::layer::direction::{Direction, Means};
use crate::layer::dropout::Masks;
use crate::layer::merge::{pack_state, unpack_state};
use crate::layer::plan::{self, Pass};
use crate::layer::stack::Execution;
use crate::layer::tape::{DirectionState, Kept, Tape};
use crate::layer::weights::{BackwardWeights, ForwardWeights, Params};
use crate::memory::{product, zeros};
use crate::parallel::{Meter, Team};
use crate::shape::Schedule;
use crate::simd::{Element, Level};

/// What every layer of one call shares.
pub struct Call<'a> {
    config: &'a Config,
    spec: Spec,
    schedule: &'a Schedule,
    /// One step of B rows: where states lie.
    still: Schedule,
    masks: Option<Masks>,
    team: Team<'a>,
    level: Level,
}

impl<'a> Call<'a> {
    /// A pass over the sequences of `schedule`, with its threads.
    pub fn new(
        config: &'a Config,
        execution: &'a Execution<'_>,
        schedule: &'a Schedule,
        masks: Option<Masks>,
        pass: Pass,
    ) -> Result<Self> {
        let threads = plan::threads(config, schedule, pass, execution.threads);
        Ok(Self {
            config,
            spec: config.cell.spec(),
            schedule,
            still: Schedule::dense(1, schedule.batch())?,
            masks,
            team: execution.team(threads),
            level: execution.level,
        })
    }

    fn means<E: Element>(&self) -> Means<'_> {
        Means::of::<E>(&self.team, self.level)
    }

    // ---- Layers and directions ---------------------------------------------------------------------

    /// The places of a layer's directions among all: l0, l0_reverse, l1, ...
    fn indices(&self, layer: usize) -> Range<usize> {
        let count = self.config.directions();
        layer * count..(layer + 1) * count
    }

    /// The layer of a direction, and whether it goes against time.
    fn place(&self, index: usize) -> (usize, bool) {
        let count = self.config.directions();
        (index / count, index % count == 1)
    }

    fn direction<'d, E: Element>(
        &'d self,
        index: usize,
        mask: Option<&'d [E]>,
        input: &'d [E],
    ) -> Direction<'d, E> {
        let (layer, reverse) = self.place(index);
        Direction {
            cell: self.config.cell,
            spec: self.spec,
            hidden: self.config.hidden,
            features: self.config.input_of(layer),
            reverse,
            schedule: self.schedule,
            still: &self.still,
            mask,
            input,
        }
    }

    // ---- Parameters --------------------------------------------------------------------------------

    fn params<'p, E>(&self, params: &[&'p [E]], index: usize) -> Params<'p, E> {
        let count = self.config.params_per_direction();
        let own = &params[index * count..(index + 1) * count];
        Params {
            weight_ih: own[0],
            weight_hh: own[1],
            bias: self.config.bias.then(|| (own[2], own[3])),
        }
    }

    fn forward_weights<E: Element>(
        &self,
        params: &[&[E]],
        index: usize,
    ) -> Result<ForwardWeights<E>> {
        let (params, sizes) = (self.params(params, index), self.sizes(index));
        let lanes = self.means::<E>().lanes;
        ForwardWeights::pack(&self.spec, &self.team, lanes, params, sizes, Storage::Own)
    }

    fn backward_weights<E: Element>(
        &self,
        params: &[&[E]],
        index: usize,
    ) -> Result<BackwardWeights<E>> {
        let (params, sizes) = (self.params(params, index), self.sizes(index));
        let lanes = self.means::<E>().lanes;
        BackwardWeights::pack(&self.spec, &self.team, lanes, params, sizes)
    }

    /// [`Self::forward_weights`], if the direction's tape has to be made again from checkpoints.
    fn recompute_weights<E: Element>(
        &self,
        params: &[&[E]],
        index: usize,
        tape: &Tape<E>,
    ) -> Result<Option<ForwardWeights<E>>> {
        match tape.directions[index].kept {
            Kept::Steps(_) => Ok(None),
            Kept::Checkpoints(_) => self.forward_weights(params, index).map(Some),
        }
    }

    /// H and I.
    fn sizes(&self, index: usize) -> (usize, usize) {
        let (layer, _) = self.place(index);
        (self.config.hidden, self.config.input_of(layer))
    }

    // ---- Merging -----------------------------------------------------------------------------------

    /// Whether two directions are written side by side, or there is only one.
    fn is_side_by_side(&self) -> bool {
        self.config.directions() == 1 || self.config.merge == Merge::Concat
    }

    /// Whether backward of one direction reads the outputs of the other.
    fn is_multiplied(&self) -> bool {
        self.config.directions() == 2 && self.config.merge == Merge::Mul
    }

    /// To be stopped where nothing is shared out.
    fn meter(&self) -> Meter<'_> {
        self.team.watch().meter()
    }

    // ---- Dropout -----------------------------------------------------------------------------------

    /// [B, H] for each direction of a layer: what multiplies h' inside the recurrent product.
    fn recurrent_masks<E: Element>(&self, layer: usize) -> Result<Vec<Option<Vec<E>>>> {
        let p = self.config.recurrent_dropout;
        let mask = |direction| match self.masks {
            Some(masks) if p > 0.0 => masks
                .recurrent((layer, direction), p, self.schedule, self.config.hidden)
                .map(Some),
            _ => Ok(None),
        };
        (0..self.config.directions()).map(mask).collect()
    }

    /// [N, M] leaves `layer`: features are dropped, or gradients of dropped features are.
    fn drop_between<E: Element>(&self, layer: usize, values: &mut [E]) -> Result<()> {
        let (p, width) = (self.config.dropout, self.config.output());
        if let Some(masks) = self.masks
            && p > 0.0
        {
            masks.between_layers(layer, p, self.schedule, width, values, &self.meter())?;
        }
        Ok(())
    }

    // ---- States ------------------------------------------------------------------------------------

    /// (L*D, B, H) arrays of zeros, for the state or its gradient.
    fn new_state<E: Element>(&self, what: &str) -> Result<Vec<Vec<E>>> {
        let config = self.config;
        let sizes = [
            config.layers,
            config.directions(),
            self.schedule.batch(),
            config.hidden,
        ];
        let len = product(&sizes, what)?;
        (0..config.cell.state_members())
            .map(|_| zeros(len, what))
            .collect()
    }

    /// The state of one direction, from the caller's (L*D, B, H) arrays; zeros without.
    fn state_of<E: Element>(
        &self,
        state: &[Option<&[E]>],
        index: usize,
    ) -> Result<DirectionState<E>> {
        let len = self.schedule.batch() * self.config.hidden;
        let part = |member: usize| {
            let values = state.get(member).copied().flatten();
            let own = values.map(|values| &values[index * len..(index + 1) * len]);
            pack_state(own, self.schedule, self.config.hidden)
        };
        let c = if self.spec.has_cell {
            part(1)?
        } else {
            Vec::new()
        };
        Ok(DirectionState { h: part(0)?, c })
    }

    /// Writes one direction's state into the caller's arrays.
    fn put_state<E: Element>(&self, from: &DirectionState<E>, to: &mut [Vec<E>], index: usize) {
        let len = self.schedule.batch() * self.config.hidden;
        for (values, target) in [&from.h, &from.c].into_iter().zip(to) {
            let own = &mut target[index * len..(index + 1) * len];
            unpack_state(values, self.schedule, self.config.hidden, own);
        }
    }
}
