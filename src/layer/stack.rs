//! The entry points of the library: what may be asked, what comes back, and whether it fits.
//!
//! A [`Stack`] holds no numbers. It checks what it is given and hands on to one `Call`.

use crate::error::{Error, Result, shape_text};
use crate::layer::call::Call;
use crate::layer::config::Config;
use crate::layer::dropout::Masks;
use crate::layer::plan::Pass;
use crate::layer::tape::Tape;
use crate::memory::{Buffer, probe, product};
use crate::parallel::{Team, Watch};
use crate::shape::Schedule;
use crate::simd::{Element, Level};

/// How a call computes.
pub struct Execution<'a> {
    /// The instruction set.
    pub level: Level,
    /// Threads at most.
    pub threads: usize,
    /// Whether one thread shall do where others are seen to take the cores of more.
    pub makes_way: bool,
    /// What may stop the call.
    pub watch: Watch<'a>,
}

impl Execution<'_> {
    /// The threads of a call that is worth so many.
    pub(crate) fn team(&self, threads: usize) -> Team<'_> {
        match self.makes_way {
            true => Team::where_free(threads, &self.watch),
            false => Team::assemble(threads, &self.watch),
        }
    }
}

/// The caller's x.
#[derive(Clone, Copy)]
pub struct Input<'a, E> {
    /// (T, B, I), or (B, T, I) when `batch_first`.
    pub values: &'a [E],
    /// Its shape, as it came.
    pub shape: [usize; 3],
    /// Batch before time.
    pub batch_first: bool,
    /// (B,)
    pub lengths: Option<&'a [i64]>,
}

impl<E> Input<'_, E> {
    /// T and B.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        match self.shape {
            [batch, time, _] if self.batch_first => (time, batch),
            [time, batch, _] => (time, batch),
        }
    }
}

/// What `forward` shall do besides computing y.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions {
    /// Keep a tape.
    pub training: bool,
    /// Drop out, by these masks.
    pub masks: Option<Masks>,
    /// Keep every so many steps' state and recompute the rest in backward.
    pub checkpoint: Option<usize>,
}

/// What `forward` gives.
#[derive(Debug)]
pub struct Output<E> {
    /// (T, B, M), or (B, T, M).
    pub y: Buffer<E>,
    /// h, and c of an LSTM: (L*D, B, H) each.
    pub state: Vec<Vec<E>>,
    /// For `backward`, when training.
    pub tape: Option<Tape<E>>,
}

/// What `backward` shall do besides the gradients.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackwardOptions {
    /// Give the gradient of every state too.
    pub state_grads: bool,
}

/// What `backward` gives.
#[derive(Debug)]
pub struct Gradients<E> {
    /// As x.
    pub x: Buffer<E>,
    /// As the state.
    pub state: Vec<Vec<E>>,
    /// As the parameters, in their order.
    pub params: Vec<Buffer<E>>,
    /// Direction by direction, when wanted.
    pub state_grads: Vec<StateGradients<E>>,
}

/// The whole gradients of one direction's states, their direct parts included.
#[derive(Debug)]
pub struct StateGradients<E> {
    /// (T, B, H) or (B, T, H): dL/dh_t.
    pub h: Buffer<E>,
    /// Likewise dL/dc_t, of a cell with c.
    pub c: Option<Buffer<E>>,
}

/// A gate's name and its activation, (T, B, H) or (B, T, H), 0 beyond the lengths.
pub type NamedGate<E> = (&'static str, Buffer<E>);

/// Recurrent layers on top of each other.
#[derive(Clone, Debug)]
pub struct Stack {
    config: Config,
}

impl Stack {
    /// Layers as `config` says.
    ///
    /// # Errors
    /// As [`Config::checked`].
    pub fn new(config: Config) -> Result<Self> {
        Ok(Self {
            config: config.checked()?,
        })
    }

    /// What the layers are.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Forward through all layers.
    ///
    /// # Errors
    /// Arrays of a wrong size, memory that cannot be had, or a watch that stopped the call.
    pub fn forward<E: Element>(
        &self,
        execution: &Execution<'_>,
        params: &[&[E]],
        input: Input<'_, E>,
        state: Option<&[&[E]]>,
        options: ForwardOptions,
    ) -> Result<Output<E>> {
        self.check_params(params)?;
        let (config, schedule) = (&self.config, self.schedule_of(&input)?);
        if let Some(state) = state {
            let parts = state.iter().map(|part| Some(part.len()));
            self.check_state("state", parts, schedule.batch())?;
        }
        if options.checkpoint == Some(0) {
            return Err(Error::value("checkpoint", "at least 1", 0));
        }
        // Small pieces of each layer: states, tapes, lists.
        let row_bytes = schedule
            .batch()
            .saturating_mul(config.hidden * size_of::<E>());
        let pieces = row_bytes.saturating_mul(2).saturating_add(4096);
        probe(
            config.layers * config.directions(),
            pieces,
            "the pieces of the tape",
        )?;
        let call = Call::new(config, execution, &schedule, options.masks, Pass::Forward)?;
        call.forward(params, input, state, options)
    }

    /// Back through all layers. The tape is only read.
    ///
    /// # Errors
    /// As [`Self::forward`], and a tape of another layer.
    pub fn backward<E: Element>(
        &self,
        execution: &Execution<'_>,
        params: &[&[E]],
        tape: &Tape<E>,
        dy: Option<&[E]>,
        dstate: &[Option<&[E]>],
        options: BackwardOptions,
    ) -> Result<Gradients<E>> {
        self.check_tape(params, tape)?;
        let (config, schedule, masks) = (&self.config, &tape.schedule, tape.masks);
        if let Some(dy) = dy {
            self.check_dy(dy, schedule)?;
        }
        if !dstate.is_empty() {
            let parts = dstate.iter().map(|part| part.map(<[E]>::len));
            self.check_state("dstate", parts, schedule.batch())?;
        }
        let call = Call::new(config, execution, schedule, masks, Pass::Backward)?;
        call.backward(params, tape, dy, dstate, options)
    }

    /// Every gate's activation, direction by direction, gate by gate. With checkpoints they are
    /// computed again from `params`.
    ///
    /// # Errors
    /// As [`Self::backward`].
    pub fn gates<E: Element>(
        &self,
        execution: &Execution<'_>,
        params: &[&[E]],
        tape: &Tape<E>,
    ) -> Result<Vec<Vec<NamedGate<E>>>> {
        self.check_tape(params, tape)?;
        let (config, schedule, masks) = (&self.config, &tape.schedule, tape.masks);
        let call = Call::new(config, execution, schedule, masks, Pass::Forward)?;
        call.gates(params, tape)
    }

    // ---- Checks ------------------------------------------------------------------------------------

    pub(crate) fn check_params<E>(&self, params: &[&[E]]) -> Result<()> {
        let count = self.config.param_count();
        if params.len() != count {
            return Err(Error::value(
                "params",
                format!("{count} arrays"),
                params.len(),
            ));
        }
        for (index, param) in params.iter().enumerate() {
            let (rows, columns) = self.config.param_shape(index);
            if param.len() != rows * columns {
                // Names are made for the error alone.
                let (name, shape) = self.config.params().swap_remove(index);
                return Err(Error::shape(
                    name,
                    shape_text(&shape),
                    shape_text(&[param.len()]),
                ));
            }
        }
        Ok(())
    }

    fn check_tape<E>(&self, params: &[&[E]], tape: &Tape<E>) -> Result<()> {
        self.check_params(params)?;
        if tape.config != self.config {
            return Err(Error::tape("it was made by another layer"));
        }
        Ok(())
    }

    /// The schedule of the caller's x, held against the layer's sizes.
    fn schedule_of<E: Element>(&self, input: &Input<'_, E>) -> Result<Schedule> {
        let [_, _, features] = input.shape;
        let len = product(&input.shape, "x (T * B * I)");
        if features != self.config.input || input.values.len() != len? {
            let order = if input.batch_first { "B, T" } else { "T, B" };
            let expected = format!("({order}, I = {})", self.config.input);
            return Err(Error::shape("x", expected, shape_text(&input.shape)));
        }
        let (time, batch) = input.sizes();
        match input.lengths {
            Some(lengths) => Schedule::ragged(time, batch, lengths),
            None => Schedule::dense(time, batch),
        }
    }

    /// Holds dy against the sizes of the call, by its length.
    fn check_dy<E>(&self, dy: &[E], schedule: &Schedule) -> Result<()> {
        let [time, batch, width] = [schedule.time(), schedule.batch(), self.config.output()];
        if dy.len() != product(&[time, batch, width], "dy (T * B * M)")? {
            let expected = format!("(T, B, M) = ({time}, {batch}, {width})");
            return Err(Error::shape("dy", expected, shape_text(&[dy.len()])));
        }
        Ok(())
    }

    /// Holds (L*D, B, H) arrays against the layer's sizes, by their lengths.
    fn check_state(
        &self,
        name: &str,
        parts: impl ExactSizeIterator<Item = Option<usize>>,
        batch: usize,
    ) -> Result<()> {
        let (config, members) = (&self.config, self.config.cell.state_members());
        if parts.len() != members {
            return Err(Error::value(name, format!("{members} arrays"), parts.len()));
        }
        let (rows, hidden) = (config.layers * config.directions(), config.hidden);
        let len = product(&[rows, batch, hidden], "the state (L * D * B * H)")?;
        for part in parts.flatten() {
            if part != len {
                let expected = format!("(L*D, B, H) = ({rows}, {batch}, {hidden})");
                return Err(Error::shape(name, expected, shape_text(&[part])));
            }
        }
        Ok(())
    }
}
